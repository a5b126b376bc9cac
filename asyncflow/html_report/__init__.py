"""The report of a run as one HTML page, with the extra ``report``.

::

    report = await run_pipeline(steps)
    Path("run.html").write_text(report.to_html(), encoding="utf-8")

A page of the events says more than a report knows, such as which line blocked the event loop::

    events: list[Event] = []
    await run_pipeline(steps, observers=[events.append])
    Path("run.html").write_text(to_html(events), encoding="utf-8")
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from asyncflow._core.report import RunReport
from asyncflow._views.run_view import RunView
from asyncflow.events import Event
from asyncflow.html_report._event_log import event_log, log_of_report
from asyncflow.html_report._page import page

__all__ = ["to_html"]


def to_html(
    run: RunReport | Iterable[Event], *, usual_ms: Mapping[str, float] | None = None
) -> str:
    """Return the page of a run: one HTML file that needs no network and no other file.

    It shows the first failure with its traceback, the timeline of all attempts, the graph, all
    steps, all events, and the beginnings of inputs and outputs, also with JavaScript off. It has
    no secrets. The same events give the same page.

    Args:
        run: The report of the run; or its events from the first one on, as an observer or a
            journal has them. A run that has not ended is shown as of its latest event.
        usual_ms: How many milliseconds steps usually take, by name, which the page shows beside
            their duration and marks on the timeline. By default it shows nothing of that.

    Raises:
        ValueError: There is no event.
    """
    if isinstance(run, RunReport):
        view = RunView.from_report(run)
        log = log_of_report(view)
    else:
        events = list(run)
        view, log = RunView(events), event_log(events)
    return page(view, log, now_ms=view.at_ms, usual_ms=usual_ms)
