"""The events that results imply: of a report that a user has made, and so has no others.

Rules:

1. The replay of these events has the attempts that the results tell, and their ends. What else
   results say (a run that they were reused from, where the loop was blocked) is left out.
2. All of it is told as if one process had done it.
3. An item that its result only counts has no event: who shows the report counts it (`view_of`).
4. No two fields of a result need agree, so no event comes before one that must precede it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from asyncflow._core.history.results import (
    UNSETTLED,
    Attempt,
    RunStatus,
    SignalWait,
    StepResult,
    StepStatus,
    run_facts,
)
from asyncflow._core.record import replace
from asyncflow.events import (
    AttemptBegan,
    AttemptFailed,
    AttemptStarted,
    Event,
    MapStarted,
    RunFinished,
    RunInterrupted,
    RunStarted,
    StepCancelled,
    StepEvent,
    StepFailed,
    StepReused,
    StepSkipped,
    StepSucceeded,
    StepWaiting,
)

if TYPE_CHECKING:
    from asyncflow._core.history.report import RunReport


def facts_of(report: RunReport) -> dict[str, Any]:
    """Return what a report says of its run, by the names of the fields of its first event."""
    results = report.results
    return {
        "run_id": report.run_id,
        "wall_time": report.wall_time,
        "dependencies": {result.step_name: result.depends_on for result in results},
        "pipeline": report.pipeline,
        "inputs": report.inputs,
        "max_retries": {r.step_name: r.max_retries for r in results if r.max_retries is not None},
        **run_facts(report),
    }


def events_of(report: RunReport) -> Iterator[Event]:
    """Yield the events that the results of a report imply, in order."""
    results = [_with_since(result, report.wall_time) for result in report.results]
    ended_ms = report.total_duration_ms
    yield RunStarted(
        **facts_of(report),
        secret=tuple([r.step_name for r in results if r.secret]),
        rerun_reasons={r.step_name: r.rerun_reason for r in results if r.rerun_reason},
        process=report.segments[0].process,
    )
    told = [event for result in results for event in _of_step(result, ended_ms)]
    yield from sorted(told, key=lambda event: event.at_ms)
    if report.status is RunStatus.INTERRUPTED:
        yield RunInterrupted(ended_ms, report.stop_reason or "")
    if report.status not in (RunStatus.RUNNING, RunStatus.ORPHANED):
        yield RunFinished(ended_ms, report.status, report.stop_reason)


def _with_since(result: StepResult, wall_time: float) -> StepResult:
    """Return the result of a step that has waited as if it still did: since when."""
    if result.wait is None or result.wait.ended_ms is None or result.wait.lasted_ms is None:
        return result
    since = wall_time + (result.wait.ended_ms - result.wait.lasted_ms) / 1000
    return replace(result, waiting_since=since)


def _of_step(result: StepResult, now_ms: float) -> list[StepEvent]:
    name, items = result.step_name, result.items or ()
    attempts: dict[int | None, list[Attempt]] = {}
    for attempt in result.history:
        attempts.setdefault(attempt.item, []).append(attempt)
    own = attempts.pop(None, [])
    if result.items is None and not attempts:
        return [*_of_node(name, None, result, own, now_ms)]
    began_ms = result.started_ms or 0.0
    count = None if result.items is None else len(items) + result.left_out
    told: list[StepEvent] = [MapStarted(name, began_ms, count, not result.left_out)]
    for at, each in enumerate(items):
        number = at if each.item is None else each.item
        former = attempts.pop(number, [])
        told += _of_node(name, number, each, [*former, *each.history], now_ms, began_ms)
    for gone, former in attempts.items():
        pending = StepResult(name, StepStatus.PENDING)
        told += _of_node(name, gone, pending, former, now_ms, began_ms)
    told.sort(key=lambda event: event.at_ms)
    return [*told, *_end(name, None, result, 0, max(told[-1].at_ms, began_ms + result.duration_ms))]


def _of_node(
    name: str,
    item: int | None,
    result: StepResult,
    attempts: Sequence[Attempt],
    now_ms: float,
    earliest_ms: float = 0.0,
) -> Iterator[StepEvent]:
    """Yield the attempts of a step or an item, and how it has ended."""
    at_ms, number = earliest_ms, 0
    ends_with_last = result.status not in UNSETTLED
    for attempt, later in pairwise([*attempts, None]):
        assert attempt is not None
        number, began_ms = attempt.number, max(attempt.started_ms, at_ms)
        queued_ms, engine = attempt.queued_ms, attempt.engine
        yield AttemptStarted(name, number, began_ms, queued_ms, item, engine)
        if attempt.worker:
            yield AttemptBegan(name, number, began_ms, engine, attempt.worker, item)
        at_ms = began_ms + attempt.duration_ms
        if later is None and ends_with_last:
            break
        wait_ms = attempt.retry_in_ms or 0.0
        if attempt.error is not None:
            yield AttemptFailed(name, number, at_ms, attempt.error, wait_ms, item)
        elif attempt.cancelled:
            yield StepCancelled(name, number, at_ms, "", None, item)
        else:
            yield StepSucceeded(name, number, at_ms, None, item)
    if result.status is StepStatus.RUNNING and result.attempts > len(attempts):
        began_ms = max(at_ms, result.started_ms or 0.0)
        yield AttemptStarted(name, number + 1, began_ms, 0.0, item, result.engine)
    if result.waiting_since is not None and item is None:
        since, until = result.waiting_since, result.waiting_until
        deadline_ms = None if until is None else (until - since) * 1000
        wait = result.wait or SignalWait(now_ms)
        yield StepWaiting(name, max(at_ms, wait.started_ms), since, deadline_ms)
        at_ms = max(at_ms, now_ms if wait.ended_ms is None else wait.ended_ms)
    yield from _end(name, item, result, number, at_ms)


def _end(
    name: str, item: int | None, result: StepResult, number: int, at_ms: float
) -> Iterable[StepEvent]:
    error, reason = result.error, result.reason or ""
    if result.status is StepStatus.SUCCESS:
        output, secret = result.output, result.secret
        yield StepSucceeded(name, number, at_ms, output, item, secret, error)
    elif result.status is StepStatus.FAILED:
        failure = ValueError("not known") if error is None else error
        yield StepFailed(name, number, at_ms, failure, item)
    elif result.status is StepStatus.CANCELLED:
        yield StepCancelled(name, number, at_ms, reason, error, item)
    elif result.status is StepStatus.SKIPPED:
        yield StepSkipped(name, at_ms, reason, result.by_condition, item)
    if result.reused:
        keeps_outputs = not result.left_out
        yield StepReused(name, at_ms, item, result.status, "", keeps_outputs)
