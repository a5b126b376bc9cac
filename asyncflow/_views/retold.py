"""The events of a run, told anew from its report.

They are those that the run has told, as far as a report knows of them: when a step was skipped is
not in it, nor at which line the loop was blocked. A run that was resumed is told as if it had been
resumed once, after all that it took over and all that was cut short.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from operator import itemgetter

from asyncflow._core.report import RunReport
from asyncflow._core.results import Attempt, StepResult, StepStatus, visible_output
from asyncflow._views.step_view import end_of
from asyncflow.events import (
    RECALLED,
    AttemptFailed,
    AttemptStarted,
    Event,
    LoopBlocked,
    MapStarted,
    RunFinished,
    RunResumed,
    RunStarted,
    StepCancelled,
    StepEvent,
    StepFailed,
    StepReused,
    StepSkipped,
    StepSucceeded,
    ThreadAbandoned,
)

__all__ = ["retold"]

_ROUNDED_MS = 1e-6
"""By how much a sum of times may differ from the time that it stands for."""


def retold(report: RunReport) -> list[Event]:
    """Return the events of the run of a report, in the order of their times."""
    again = {n: each.rerun_reason for n, each in report.items() if each.rerun_reason is not None}
    still_ms = _stood_still_ms(report) if again or report.reused else None
    before, after = _Events(), _Events()
    for result in report.values():
        _tell(result, before, after, still_ms, report.total_duration_ms)
    dependencies = {name: result.depends_on for name, result in report.items()}
    secret = tuple(name for name, result in report.items() if result.secret)
    started_at = report.wall_time
    told: list[Event] = [
        RunStarted(
            report.run_id,
            started_at,
            dependencies,
            report.pipeline,
            inputs=report.inputs,
            secret=secret,
        ),
        *before.in_order(),
    ]
    if still_ms is not None:
        wall_time = started_at + still_ms / 1000
        resumed = RunResumed(report.run_id, still_ms, wall_time, dependencies, {}, secret=secret)
        recalled = tuple(name for name, why in again.items() if why == RECALLED)
        unfinished = {name: why for name, why in again.items() if why != RECALLED}
        told.append(
            replace(resumed, unfinished=unfinished, recalled=recalled, pipeline=report.pipeline)
        )
    told += after.in_order()
    if report.outcome != "running":
        told.append(RunFinished(report.total_duration_ms, report.outcome, report.stop_reason))
    return told


class _Events:
    """Events of several units, each of which has its own in order; times are rounded sums."""

    def __init__(self) -> None:
        self._dated: list[tuple[float, StepEvent]] = []

    def add(self, events: Iterable[StepEvent], not_before: float = 0.0) -> float:
        """Add events of a unit, in their order; return when the last of them comes."""
        for event in events:
            not_before = max(not_before, event.at_ms)
            self._dated.append((not_before, event))
        return not_before

    def in_order(self) -> Iterator[StepEvent]:
        self._dated.sort(key=itemgetter(0))  # stable, so that each unit's stay in order
        return (event for _, event in self._dated)


def _ended_ms(result: StepResult) -> float:
    """Return when a step ended; not before what belongs to it, although sums are rounded."""
    if result.started_ms is None:
        return 0.0
    within = [attempt.started_ms for attempt in result.history[-1:]]
    within += [_ended_ms(item) for item in result.items or ()]
    return max(result.started_ms + result.duration_ms, *within, 0.0)


def _stood_still_ms(report: RunReport) -> float:
    """Return a time by which all had ended that was reused, or was cut short."""
    known = [each for each in report.values() if each.reused or each.rerun_reason is not None]
    units = [each for result in known for each in (result, *(result.items or ()))]
    ends = [_ended_ms(unit) for unit in units if unit.reused]
    cut_short = [a for unit in units for a in unit.history if _has_crashed(a)]
    for result in known:  # what was there before the step went through its items again
        for item in result.items or ():
            cut_short += [a for a in item.history if a.started_ms < _started_ms(result)]
    return max([*ends, *map(_end_of, cut_short)], default=0.0)


def _tell(
    result: StepResult,
    before: _Events,
    after: _Events,
    still_ms: float | None,
    run_ended_ms: float,
) -> None:
    """Tell of a step what was before the run was resumed, if it was, and what after that."""
    name = result.step_name
    if result.rerun_reason is None and not result.reused:
        still_ms = None  # nothing of it was there before
    if result.status is StepStatus.SKIPPED:
        at_ms = still_ms if result.reused and still_ms is not None else run_ended_ms
        skipped = StepSkipped(name, at_ms, result.reason or "", result.on_purpose)
        (before if result.reused else after).add([skipped])
    elif result.items is not None and result.started_ms is not None:
        _tell_map(result, result.items, before, after, still_ms)
    elif result.reused:
        before.add(_unit(result, name, None))
    else:
        _split(result, name, None, before, after, still_ms)
    if result.reused:
        after.add([StepReused(name, still_ms or 0.0, status=result.status)])


def _tell_map(
    result: StepResult,
    items: tuple[StepResult, ...],
    before: _Events,
    after: _Events,
    still_ms: float | None,
) -> None:
    """Tell of a mapped step. It may have gone on with items, and attempts, that it had before."""
    name, began_ms = result.step_name, _started_ms(result)
    first_ms = min([began_ms, *(_started_ms(item) for item in items if item.history)])
    begin, again = (MapStarted(name, at_ms, len(items)) for at_ms in (first_ms, began_ms))
    if still_ms is not None:
        before.add([begin])
    own = before if result.reused else after
    began_ms = ended_ms = own.add([again])
    for number, item in enumerate(items):
        if result.reused:
            ended_ms = max(ended_ms, before.add(_unit(item, name, number), first_ms))
        elif item.reused:
            before.add(_unit(item, name, number), first_ms)
            after.add([StepReused(name, began_ms, number, item.status)], began_ms)
        else:
            ended_ms = max(ended_ms, _split(item, name, number, before, after, still_ms, began_ms))
    own.add(_end(result, name, None, 0), ended_ms)


def _started_ms(result: StepResult) -> float:
    return result.started_ms or 0.0


def _split(
    result: StepResult,
    step: str,
    item: int | None,
    before: _Events,
    after: _Events,
    still_ms: float | None,
    not_before: float = 0.0,
) -> float:
    """Tell of a unit that goes on with the attempts that had failed when the run stood still."""
    failed = [
        each.number
        for each in result.history
        if still_ms is not None
        and each.error is not None
        and _end_of(each) <= still_ms
        and (each.number < result.attempts or _has_crashed(each))
    ]
    count = max(failed, default=0)
    events = list(_unit(result, step, item))
    kept = [
        isinstance(event, AttemptStarted | AttemptFailed) and event.attempt <= count
        for event in events
    ].count(True)
    before.add(events[:kept])
    return after.add(events[kept:], not_before)


def _unit(result: StepResult, step: str, item: int | None) -> Iterator[StepEvent]:
    """Tell of a step that is not mapped, or of an item."""
    history = result.history
    has_ended = result.status is not StepStatus.RUNNING
    for at, attempt in enumerate(history):
        yield AttemptStarted(step, attempt.number, attempt.started_ms, attempt.queued_ms, item)
        if at + 1 < len(history):
            yield from _failure(attempt, history[at + 1], step, item)
        elif not has_ended or _ended_ms(result) - _end_of(attempt) > _ROUNDED_MS:
            # It was waiting for another attempt when it was cut short.
            yield from _failure(attempt, None, step, item)
    if history and has_ended:
        last, ended_ms = history[-1], _ended_ms(result)
        if result.abandoned:
            yield ThreadAbandoned(step, last.number, ended_ms, item)
        if result.loop_blocked_ms:
            yield LoopBlocked(step, last.number, ended_ms, result.loop_blocked_ms, "", item)
    elif result.attempts > len(history) and result.started_ms is not None:
        # The latest attempt is not in the history of a step that has not ended.
        yield AttemptStarted(step, result.attempts, result.started_ms, item=item)
    yield from _end(result, step, item, result.attempts)


def _has_crashed(attempt: Attempt) -> bool:
    # One that was cancelled may have the error of the attempt before.
    number = getattr(attempt.error, "attempt", attempt.number)
    return end_of(attempt.error) == "crashed" and number == attempt.number


def _end_of(attempt: Attempt) -> float:
    return attempt.started_ms + attempt.duration_ms


def _failure(
    attempt: Attempt, following: Attempt | None, step: str, item: int | None
) -> Iterator[AttemptFailed]:
    ended_ms = _end_of(attempt)
    wait_ms = 0.0
    if following is not None:
        ended_ms = min(ended_ms, following.started_ms)  # sums are rounded
        wait_ms = max(following.started_ms - following.queued_ms - ended_ms, 0.0)
    if attempt.error is not None:
        yield AttemptFailed(step, attempt.number, ended_ms, attempt.error, wait_ms, item)


def _end(result: StepResult, step: str, item: int | None, attempt: int) -> Iterator[StepEvent]:
    at_ms, error = _ended_ms(result), result.error
    if result.status is StepStatus.SUCCESS:
        yield StepSucceeded(step, attempt, at_ms, visible_output(result), item)
    elif result.status is StepStatus.FAILED and error is not None:
        yield StepFailed(step, attempt, at_ms, error, item)
    elif result.status is StepStatus.CANCELLED:
        yield StepCancelled(step, attempt, at_ms, result.reason or "", error, item)
