"""The events of a run, told anew from its report.

They are those that the run has told, as far as a report knows of them: when a step was skipped is
not in it, nor at which line the loop was blocked. A run that was resumed is told as if it had been
resumed once, after the last of what it took over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from asyncflow._report import RunReport
from asyncflow._result import Attempt, StepResult, StepStatus, shown_output
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    LoopBlocked,
    MapStarted,
    RunFinished,
    RunResumed,
    RunStarted,
    StepCancelled,
    StepFailed,
    StepReused,
    StepSkipped,
    StepSucceeded,
    ThreadAbandoned,
)

__all__ = ["retold"]


def retold(report: RunReport) -> list[Event]:
    """Return the events of the run of a report, in the order of their times."""
    dependencies = {name: result.depends_on for name, result in report.items()}
    secret = tuple(name for name, result in report.items() if result.secret)
    end_ms = report.total_duration_ms
    told = [
        event
        for result in report.values()
        for event in _of_step(result, 0.0 if result.reused else end_ms)
    ]
    told += _resumption(report, dependencies, secret)
    told.sort(key=_time_of)  # stable, so that each step's events stay in order
    begin = RunStarted(
        report.run_id,
        report.wall_time,
        dependencies,
        report.pipeline,
        inputs=report.inputs,
        secret=secret,
    )
    if report.outcome == "running":
        return [begin, *told]
    return [begin, *told, RunFinished(end_ms, report.outcome, report.stop_reason)]


def _time_of(event: Event) -> float:
    return 0.0 if isinstance(event, RunStarted) else event.at_ms


def _resumption(
    report: RunReport, dependencies: dict[str, tuple[str, ...]], secret: tuple[str, ...]
) -> list[Event]:
    reused = report.reused
    reasons = {
        name: result.rerun_reason
        for name, result in report.items()
        if result.rerun_reason is not None
    }
    if not reused and not reasons:
        return []
    at_ms = max((_end_of(result) for result in reused), default=0.0)
    resumed = RunResumed(
        report.run_id,
        at_ms,
        report.wall_time + at_ms / 1000,
        dependencies,
        {},
        unfinished=reasons,
        secret=secret,
    )
    held = [StepReused(result.step_name, at_ms, status=result.status) for result in reused]
    return [resumed, *held]


def _end_of(result: StepResult) -> float:
    return 0.0 if result.started_ms is None else result.started_ms + result.duration_ms


def _of_step(result: StepResult, skipped_ms: float) -> Iterator[Event]:
    name = result.step_name
    if result.status is StepStatus.SKIPPED:
        yield StepSkipped(name, skipped_ms, result.reason or "", result.on_purpose)
    elif result.items is not None and result.started_ms is not None:
        yield MapStarted(name, result.started_ms, len(result.items))
        for number, item in enumerate(result.items):
            yield from _of_unit(item, name, number, item.attempts)
        yield from _end(result, name, None, 0)
    else:
        yield from _of_unit(result, name, None, result.attempts)


def _of_unit(result: StepResult, step: str, item: int | None, attempts: int) -> Iterator[Event]:
    history = result.history
    for attempt, following in pairwise(history):
        yield AttemptStarted(step, attempt.number, attempt.started_ms, attempt.queued_ms, item)
        yield from _failure(attempt, following.started_ms - following.queued_ms, step, item)
    if result.status is StepStatus.RUNNING:
        yield from _so_far(result, step, item)
    elif history:
        last = history[-1]
        yield AttemptStarted(step, last.number, last.started_ms, last.queued_ms, item)
        if result.abandoned:
            yield ThreadAbandoned(step, last.number, last.started_ms + last.duration_ms, item)
        if result.loop_blocked_ms:
            ended_ms = last.started_ms + last.duration_ms
            yield LoopBlocked(step, last.number, ended_ms, result.loop_blocked_ms, "", item)
    yield from _end(result, step, item, attempts)


def _so_far(result: StepResult, step: str, item: int | None) -> Iterator[Event]:
    """Tell the latest attempts of a step that has not ended: those that failed are its history."""
    if result.history:
        last = result.history[-1]
        yield AttemptStarted(step, last.number, last.started_ms, last.queued_ms, item)
        yield from _failure(last, _end_of(result), step, item)
    if result.attempts > len(result.history) and result.started_ms is not None:
        yield AttemptStarted(step, result.attempts, result.started_ms, item=item)


def _failure(
    attempt: Attempt, next_ms: float, step: str, item: int | None
) -> Sequence[AttemptFailed]:
    ended_ms = attempt.started_ms + attempt.duration_ms
    if attempt.error is None:
        return ()
    wait_ms = max(next_ms - ended_ms, 0.0)
    return [AttemptFailed(step, attempt.number, ended_ms, attempt.error, wait_ms, item)]


def _end(result: StepResult, step: str, item: int | None, attempt: int) -> Iterator[Event]:
    at_ms, error = _end_of(result), result.error
    if result.status is StepStatus.SUCCESS:
        yield StepSucceeded(step, attempt, at_ms, shown_output(result), item)
    elif result.status is StepStatus.FAILED and error is not None:
        yield StepFailed(step, attempt, at_ms, error, item)
    elif result.status is StepStatus.CANCELLED:
        yield StepCancelled(step, attempt, at_ms, result.reason or "", error, item)
