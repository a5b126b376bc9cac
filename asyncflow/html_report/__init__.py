"""The report of a run as one page of HTML.

It comes with an extra: ``pip install 'asyncflow-tiers[report]'``::

    report = await run_pipeline(steps)
    Path("run.html").write_text(report.to_html(), encoding="utf-8")

A page of the events themselves tells more than a report knows of, such as at which line the event
loop was blocked::

    events: list[Event] = []
    await run_pipeline(steps, observers=[events.append])
    Path("run.html").write_text(to_html(events), encoding="utf-8")
"""

from __future__ import annotations

from collections.abc import Iterable

from asyncflow._core.report import RunReport
from asyncflow._views.run_view import RunView
from asyncflow.events import Event
from asyncflow.html_report._event_log import event_log, log_of_report
from asyncflow.html_report._page import page

__all__ = ["to_html"]


def to_html(run: RunReport | Iterable[Event]) -> str:
    """Return the page of a run: one file of HTML that needs no network and no other file.

    It shows the first failure with its traceback, the timeline with each attempt, the graph, all
    steps, all events, and how inputs and outputs begin. All of it is there with JavaScript off.
    What is secret is not in it. The same events give the same page.

    Args:
        run: The report of the run; or its events, from the first one on, as an observer hears
            them or a journal gives them. They need not be all: a run that goes on is shown as it
            was at the latest one.

    Raises:
        ValueError: There is no event.
    """
    if isinstance(run, RunReport):
        view = RunView.from_report(run)
        log = log_of_report(view)
    else:
        events = list(run)
        view, log = RunView(events), event_log(events)
    return page(view, log, now_ms=view.at_ms)
