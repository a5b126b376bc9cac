"""The event log of a page: what happened in a run, one line an event."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, TypeVar

from asyncflow._core.errors import describe_error, escape_controls
from asyncflow._core.results import StepStatus, has_fallen_back
from asyncflow._core.step_view import AttemptView, StepView
from asyncflow._views.event_text import describe_event, duration, ended_as, place_text, subject
from asyncflow._views.preview import share, shortened
from asyncflow._views.run_view import RunView
from asyncflow.events import Event, RunResumed, RunStarted, StepReused, StepTakenOver

MOST_LOGGED = 3_000
"""Of more events, a log has the first and the last ones."""
_ALL_TEXTS, _TEXT = 16_000, range(80, 300)
"""The bytes of all long texts in a page together, and the limits of each one."""

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
    segment: int = 1
    """The segment of the run in which it happened, counted from 1."""


class EventLog(NamedTuple):
    """The events of a run, in the order in which they happened."""

    events: tuple[LoggedEvent, ...]
    left_out: int
    """How many are not listed, between the first and the last half."""


def event_log(events: Sequence[Event]) -> EventLog:
    """Return the log of the events of a run."""
    resumed = accumulate(isinstance(event, RunResumed) for event in events)
    listed, left_out = _first_and_last([*zip(events, resumed, strict=True)])
    return _log([_logged(event, 1 + count) for event, count in listed], left_out)


def log_of_report(view: RunView) -> EventLog:
    """Return the log of a run of which only the report is known, and so not every event.

    A report does not say when a step was skipped: that is listed at the end.
    """
    latest = len(view.segments)
    fork = f" as a fork of run {view.forked_from}" if view.forked_from else ""
    logged = [LoggedEvent(0.0, "RunStarted", f"run {view.run_id} started{fork}")]
    for number, segment in enumerate(view.segments[1:], 2):
        text = f"run {view.run_id} resumed"
        logged.append(LoggedEvent(segment.at_ms, "RunResumed", text, segment=number))
    for step in view.steps.values():
        logged += _log_of(step, step.name, None, view)
    # Stable: what happens at once stays in order.
    logged.sort(key=lambda each: (each.segment, each.at_ms))
    if view.has_ended:
        why = "" if view.stop_reason is None else f": {view.stop_reason}"
        text = f"the run {ended_as(view.status)} after {duration(view.at_ms)}{why}"
        logged.append(LoggedEvent(view.at_ms, "RunFinished", text, segment=latest))
    listed, left_out = _first_and_last(logged)
    return _log(listed, left_out)


def _log(listed: Sequence[LoggedEvent], left_out: int) -> EventLog:
    long = sum(len(each.text) > _TEXT.start for each in listed)
    limit = share(_ALL_TEXTS, long, _TEXT)
    return EventLog(
        tuple([each._replace(text=_short(each.text, limit)) for each in listed]), left_out
    )


def _first_and_last(entries: Sequence[T]) -> tuple[Sequence[T], int]:
    """Return those that are listed, and how many are left out between them."""
    half, left_out = MOST_LOGGED // 2, max(len(entries) - MOST_LOGGED, 0)
    return ([*entries[:half], *entries[-half:]] if left_out else entries), left_out


def _logged(event: Event, segment: int) -> LoggedEvent:
    at_ms = 0.0 if isinstance(event, RunStarted) else event.at_ms
    text, step = describe_event(event), getattr(event, "step", None)
    if step is not None:  # which has a column of its own
        text = text.removeprefix(subject(event)).lstrip(": ")
    attempt, item = getattr(event, "attempt", None) or None, getattr(event, "item", None)
    return LoggedEvent(at_ms, type(event).__name__, text, step, attempt, item, segment)


def _log_of(step: StepView, name: str, item: int | None, view: RunView) -> Iterator[LoggedEvent]:
    """Return what happened to a step and its items, or to an item of it."""
    latest = len(view.segments)
    if step.items is not None:
        text = f"started mapping {len(step.items)} items"
        for time in step.active:
            yield LoggedEvent(time.started_ms, "MapStarted", text, name, segment=time.segment)
    for attempt in step.attempts:
        # The end of the step tells how the last attempt of its series ended.
        is_last = attempt is step.latest and (step.reused or attempt.segment == latest)
        yield from _log_of_attempt(attempt, name, item, is_last)
    for index, each in [*step.former_items.items(), *(step.items or {}).items()]:
        yield from _log_of(each, name, index, view)
    kind = _ENDS.get(step.status)
    if step.origin:
        count = None if step.items is None else len(step.items)
        figures = step.origin, step.origin_attempts, step.origin_ms
        yield _logged(StepTakenOver(name, 0.0, *figures, None, item, count), 1)
    elif kind is not None:
        ended_ms, segment = step.ended_ms, latest
        if step.reused:
            segment = step.latest.segment if step.latest else 1
            ended_ms = view.segments[-1].at_ms if ended_ms is None else ended_ms
        elif ended_ms is None or step.latest is None:
            ended_ms = view.at_ms
        number = step.latest.number if step.latest else None
        yield LoggedEvent(ended_ms, kind, _end_text(step), name, number, item, segment)
    if step.reused:
        reused = StepReused(name, view.segments[-1].at_ms, item, step.status, step.origin)
        yield _logged(reused, latest)


def _log_of_attempt(
    attempt: AttemptView, name: str, item: int | None, is_last: bool
) -> Iterator[LoggedEvent]:
    number, end_ms, error = attempt.number, attempt.ended_ms, attempt.error

    def logged(at_ms: float, kind: str, text: str) -> LoggedEvent:
        return LoggedEvent(at_ms, kind, text, name, number, item, attempt.segment)

    which = f"attempt {number} " if number > 1 else ""
    queued = f" after {duration(attempt.queued_ms)} in the queue" if attempt.queued_ms >= 1 else ""
    kind, begin = "AttemptStarted", "started"
    if attempt.engine:  # of its submission, a report does not know the time
        kind, begin = "AttemptBegan", f"began on {place_text(attempt.engine, attempt.worker)}"
        if not attempt.worker:
            kind, begin = "AttemptStarted", f"submitted to {attempt.engine}"
    yield logged(attempt.started_ms, kind, f"{which}{begin}{queued}")
    if end_ms is None:
        return
    if attempt.abandoned:
        text = f"the thread of attempt {number} can't be stopped and keeps running"
        yield logged(end_ms, "ThreadAbandoned", text)
    for block in attempt.blocks:
        text = f"blocked the event loop for {duration(block.blocked_ms)}"
        yield logged(end_ms, "LoopBlocked", text)
    why = "" if error is None else f": {describe_error(error)}"
    if attempt.retry_in_ms is not None or attempt.end == "crashed":
        yield logged(end_ms, "AttemptFailed", f"attempt {number} failed{why}")
    elif not is_last:
        status = _STATUSES.get(attempt.end or "", StepStatus.FAILED)
        yield logged(end_ms, _ENDS[status], f"{_WORDS[status]}{_in_attempt(number)}{why}")


def _end_text(step: StepView) -> str:
    text = _WORDS[step.status] + ("" if step.latest is None else _in_attempt(step.latest.number))
    if has_fallen_back(step):
        text = text.replace(_WORDS[step.status], "failed") + " and fell back"
    why = [step.reason or "", "" if step.error is None else describe_error(step.error)]
    return ": ".join([text, *filter(None, why)])


def _in_attempt(number: int) -> str:
    return f" in attempt {number}" if number > 1 else ""


def _short(text: str, limit: int) -> str:
    return shortened(escape_controls(text[: limit + 1]), limit)


_ENDS = {
    StepStatus.SUCCESS: "StepSucceeded",
    StepStatus.FAILED: "StepFailed",
    StepStatus.CANCELLED: "StepCancelled",
    StepStatus.SKIPPED: "StepSkipped",
}
_WORDS = {status: status.lower() for status in StepStatus} | {StepStatus.SUCCESS: "succeeded"}
_STATUSES = {"succeeded": StepStatus.SUCCESS, "cancelled": StepStatus.CANCELLED}
"""By how the last attempt ended."""
