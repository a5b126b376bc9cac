"""The report of a run as one HTML page, with the extra ``report``.

::

    report = await run_pipeline(steps)
    Path("run.html").write_text(report.to_html(), encoding="utf-8")

A page of the events says more than a report knows, such as which line blocked the event loop::

    events: list[Event] = []
    await run_pipeline(steps, observers=[events.append])
    Path("run.html").write_text(to_html(events), encoding="utf-8")
"""

# A model of the page, and templates that place it. They may import the views and the core. A
# report calls it when it is asked for its page, and so do the browser pages and the command line.

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain

from asyncflow._core.arguments import check_number
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import RunStatus
from asyncflow._views.next_command import PLACEHOLDER, command_of
from asyncflow._views.notes import NOTES, RunNotes
from asyncflow._views.run_view import RunView, count_left_out
from asyncflow.events import Event
from asyncflow.html_report._event_log import event_log
from asyncflow.html_report._page import page
from asyncflow.html_report._page_model import PageContext

__all__ = ["to_html"]


def to_html(
    run: RunReport | Iterable[Event],
    notes: Iterable[Event] = (),
    *,
    resume: str = "",
    usual_ms: Mapping[str, float] | None = None,
    usual_run_ms: float | None = None,
    orphaned: bool = False,
    until: float | None = None,
) -> str:
    """Return the page of a run: one HTML file that needs no network and no other file.

    It shows the first failure with its traceback, the timeline of all attempts, the graph, all
    steps, all events, the beginnings of inputs and outputs, and what steps have logged and
    attached, also with JavaScript off. It has no secrets. The same events give the same page.

    Args:
        run: The report of the run; or its events from the first one on, as an observer or a
            journal has them. Notes may be among them.
        notes: More notes of the run: log lines, progress and attachments of its steps.
        resume: The command that resumes the run, which is shown if it failed or was interrupted.
            By default, the page of events that a journal stored has one with placeholders.
        usual_ms: How many milliseconds steps usually take, by name, which the page shows beside
            their duration and marks on the timeline. By default it shows nothing of that.
        usual_run_ms: The same of the run, which its head says, with the steps that took longer, if
            the run passed.
        orphaned: Whether no process runs it, although it has not ended, as a journal and its
            reports know. Then its page says that steps were running when their process died.
        until: Until when a run that has not ended is shown, in seconds since the epoch (UTC); by
            default until its latest event.

    Raises:
        ValueError: There is no event.
        TypeError: An argument has the wrong type.
    """
    if not isinstance(resume, str):
        raise TypeError(f"resume must be a str, not {type(resume).__name__}")
    if usual_ms is not None and not isinstance(usual_ms, Mapping):
        raise TypeError(f"usual_ms must be a mapping, not {type(usual_ms).__name__}")
    for step, usual in (usual_ms or {}).items():
        check_number(f"usual_ms of {step!r}", usual, 0)
    if usual_run_ms is not None:
        check_number("usual_run_ms", usual_run_ms, 0)
    if until is not None:
        check_number("until", until, 0, unit=" s")
    for name, given in (("run", run), ("notes", notes)):
        if not isinstance(given, RunReport | Iterable):
            raise TypeError(f"{name} must be the events of a run, not {type(given).__name__}")
    events, said = list[Event](), RunNotes()
    for each in chain(run.events() if isinstance(run, RunReport) else run, notes):
        if isinstance(each, NOTES):
            said.apply(each)
        elif isinstance(each, Event):
            events.append(each)
        else:
            raise TypeError(
                "run must be a RunReport or the events of a run, and notes their notes; there is "
                f"a {type(each).__name__} among them"
            )
    view, log = RunView(events), event_log(events)
    if isinstance(run, RunReport):
        count_left_out(view, run)
        orphaned = orphaned or run.status is RunStatus.ORPHANED
    if not resume and view.carryover.fingerprints:  # only a run with a journal has them
        resume = command_of("resume", view.run_id, PLACEHOLDER, journal="JOURNAL")
    context = PageContext(
        said,
        resume=resume,
        usual_ms=usual_ms or {},
        usual_run_ms=usual_run_ms,
        is_orphaned=orphaned and view.is_running,
    )
    return page(view, log, context, now_ms=view.at_ms if until is None else view.ms_at(until))
