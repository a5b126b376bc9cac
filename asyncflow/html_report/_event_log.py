"""The event log of a page: what happened in a run, one line an event."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

from asyncflow._core.errors import describe_error, escape_controls
from asyncflow._core.results import StepStatus
from asyncflow._core.step_view import StepView
from asyncflow._views.event_text import describe_event, duration, subject
from asyncflow._views.run_view import RunView
from asyncflow.events import Event, RunStarted

__all__ = ["MOST_LOGGED", "EventLog", "LoggedEvent", "event_log", "log_of_report"]

MOST_LOGGED = 3_000
"""Of more events, a log has the first and the last ones."""
_TEXT = 300

T = TypeVar("T")


class LoggedEvent(NamedTuple):
    """One event."""

    at_ms: float
    kind: str
    """The name of its class."""
    text: str
    step: str | None = None
    attempt: int | None = None
    item: int | None = None


class EventLog(NamedTuple):
    """The events of a run, in the order in which they happened."""

    events: tuple[LoggedEvent, ...]
    left_out: int
    """How many are not listed, between the first and the last half."""


def event_log(events: Sequence[Event]) -> EventLog:
    """Return the log of the events of a run."""
    listed, left_out = _first_and_last(events)
    return EventLog(tuple([_logged(event) for event in listed]), left_out)


def log_of_report(view: RunView) -> EventLog:
    """Return the log of a run of which only the report is known, and so not every event.

    A report does not say when a step was skipped: that is listed at the end.
    """
    logged = [LoggedEvent(0.0, "RunStarted", f"run {view.run_id} started")]
    logged += [
        LoggedEvent(segment.at_ms, "RunResumed", f"run {view.run_id} resumed")
        for segment in view.segments[1:]
    ]
    for step in view.steps.values():
        logged += _log_of(step, step.name, None, view)
        for number, item in (step.items or {}).items():
            logged += _log_of(item, step.name, number, view)
    # Stable: what happens at once stays in order, and what was resumed had ended before.
    logged.sort(key=lambda each: (each.at_ms, each.kind in ("RunResumed", "StepReused")))
    if view.outcome is not None:
        why = "" if view.stop_reason is None else f": {view.stop_reason}"
        text = f"the run {_OUTCOMES[view.outcome]} after {duration(view.at_ms)}{why}"
        logged.append(LoggedEvent(view.at_ms, "RunFinished", text))
    listed, left_out = _first_and_last(logged)
    return EventLog(tuple([each._replace(text=_short(each.text)) for each in listed]), left_out)


def _first_and_last(entries: Sequence[T]) -> tuple[Sequence[T], int]:
    """Return those that are listed, and how many are left out between them."""
    half, left_out = MOST_LOGGED // 2, max(len(entries) - MOST_LOGGED, 0)
    return ([*entries[:half], *entries[-half:]] if left_out else entries), left_out


def _logged(event: Event) -> LoggedEvent:
    at_ms = 0.0 if isinstance(event, RunStarted) else event.at_ms
    text, step = describe_event(event), getattr(event, "step", None)
    if step is not None:  # which has a column of its own
        text = text.removeprefix(subject(event)).lstrip(": ")
    attempt, item = getattr(event, "attempt", None) or None, getattr(event, "item", None)
    return LoggedEvent(at_ms, type(event).__name__, _short(text), step, attempt, item)


def _log_of(step: StepView, name: str, item: int | None, view: RunView) -> Iterator[LoggedEvent]:
    """Return what happened to a step or to an item of it, in order."""
    if step.items is not None and step.started_ms is not None:
        text = f"started mapping {len(step.items)} items"
        yield LoggedEvent(step.started_ms, "MapStarted", text, name)
    for attempt in step.attempts:
        number = attempt.number
        which = f"attempt {number} " if number > 1 else ""
        queued = (
            f" after {duration(attempt.queued_ms)} in the queue" if attempt.queued_ms >= 1 else ""
        )
        text = f"{which}started{queued}"
        yield LoggedEvent(attempt.started_ms, "AttemptStarted", text, name, number, item)
        end_ms = attempt.ended_ms
        if end_ms is None:
            continue
        if attempt.abandoned:
            text = f"the thread of attempt {number} can't be stopped and keeps running"
            yield LoggedEvent(end_ms, "ThreadAbandoned", text, name, number, item)
        for block in attempt.blocks:
            text = f"blocked the event loop for {duration(block.blocked_ms)}"
            yield LoggedEvent(end_ms, "LoopBlocked", text, name, number, item)
        has_followed = attempt.retry_in_ms is not None or attempt.end == "crashed"
        if has_followed and attempt.error is not None:
            text = f"attempt {number} failed: {describe_error(attempt.error)}"
            yield LoggedEvent(end_ms, "AttemptFailed", text, name, number, item)
    kind = _ENDS.get(step.status)
    if kind is not None:
        unknown_ms = view.segments[-1].at_ms if step.reused else view.at_ms
        at_ms = unknown_ms if step.ended_ms is None else step.ended_ms
        latest = step.attempts[-1].number if step.attempts else None
        yield LoggedEvent(at_ms, kind, _end_text(step), name, latest, item)
    if step.reused:
        at_ms = view.segments[-1].at_ms
        yield LoggedEvent(at_ms, "StepReused", "reused from the journal", name, None, item)


def _end_text(step: StepView) -> str:
    text = "succeeded" if step.status is StepStatus.SUCCESS else step.status.lower()
    if step.attempts and step.attempts[-1].number > 1:
        text += f" in attempt {step.attempts[-1].number}"
    why = [step.reason or "", "" if step.error is None else describe_error(step.error)]
    return ": ".join([text, *filter(None, why)])


def _short(text: str) -> str:
    line = escape_controls(text)
    return line if len(line) <= _TEXT else f"{line[:_TEXT]}…"


_ENDS = {
    StepStatus.SUCCESS: "StepSucceeded",
    StepStatus.FAILED: "StepFailed",
    StepStatus.CANCELLED: "StepCancelled",
    StepStatus.SKIPPED: "StepSkipped",
}
_OUTCOMES = {"passed": "passed", "failed": "failed", "interrupted": "was interrupted"}
