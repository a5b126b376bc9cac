"""The report of a run as one page of HTML.

It comes with an extra: ``pip install 'asyncflow-tiers[report]'``::

    report = await run_pipeline(steps)
    Path("run.html").write_text(report.to_html(), encoding="utf-8")
"""

from __future__ import annotations

from collections.abc import Iterable

from asyncflow._page import page
from asyncflow._view import RunView
from asyncflow.events import Event

__all__ = ["to_html"]


def to_html(events: Iterable[Event]) -> str:
    """Return the page of a run: one file of HTML that needs no network and no other file.

    It shows the first failure with its traceback, the timeline with each attempt, the graph, all
    steps, all events, and the beginnings of inputs and outputs. All of it is there with JavaScript
    off. What is secret is not in it. The same events give the same page.

    Args:
        events: The events of the run, from its first one on, as an observer hears them or as a
            journal gives them. They need not be all: a page of a run that goes on shows it as it
            was at the latest one.

    Raises:
        ValueError: There is no event.
    """
    told = list(events)
    view = RunView(told)
    return page(view, told, now_ms=view.at_ms)
