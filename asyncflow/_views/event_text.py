"""Each event of a run as one line of plain English.

Rules:

1. A line has no output and no input, because they may be secret. It has no control character,
   whatever steps and errors are called.
2. It does not say when the event happened: each display has its own place for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from asyncflow import events
from asyncflow._core.analysis.remarks import answered_text, nth_of, reused_text
from asyncflow._core.arguments import LEVELS
from asyncflow._core.history.results import RunStatus, StepStatus
from asyncflow._core.text import (
    LONGEST_LINE,
    cut,
    describe_error,
    duration,
    escape_controls,
    plural,
)

_Attempt = Callable[[int], str]
"""Names an attempt by its number: ``attempt 2 of 3``."""


def describe_event(event: events.Event, attempts: int | None = None) -> str:
    """Return what happened: ``extract: attempt 2 of 3 started``, ``load skipped: …``.

    ``attempts`` says how many its step has in all; ``None`` leaves that out.
    """
    line = _LINES[type(event)](event, lambda number: f"attempt {nth_of(number, attempts)}")
    return escape_controls(line)


def subject(event: events.Event) -> str:
    """Return the subject of an event: ``fetch``, ``fetch[3]`` for an item, or ``the run``."""
    step, item = event.step, event.item
    if step is None:
        return "the run"
    return escape_controls(step if item is None else f"{step}[{item}]")


def took(active_ms: float, span_ms: float) -> str:
    """Return how long a run took: ``3.0 s``, or ``3.0 s of 1 min 4 s`` if it was paused.

    ``active_ms`` says for how long its segments were running, and ``span_ms`` is the same with the
    pauses between them.
    """
    active, span = duration(active_ms), duration(span_ms)
    return active if span_ms <= active_ms or active == span else f"{active} of {span}"


def counted(progress: events.StepProgressed) -> str:
    """Return how much is done: ``1,204 of 5,000 rows``, or ``1,204 rows`` without a total."""
    of = "" if progress.total is None else f" of {number_text(progress.total)}"
    unit = f" {escape_controls(progress.unit)}" if progress.unit else ""
    return f"{number_text(progress.done)}{of}{unit}"


def number_text(value: float) -> str:
    """Return a number with at most one decimal: ``1,204``, ``0.5``."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _run_started(event: events.RunStarted, _: _Attempt) -> str:
    origin = f" as a rerun of run {event.rerun_of}" if event.rerun_of else ""
    return f"run {_name(event)} started{origin}: {plural(len(event.dependencies), 'step')}"


def _run_resumed(event: events.RunResumed, _: _Attempt) -> str:
    again = len(event.outdated) + len(event.unfinished) + len(event.recalled)
    rest = f", {again} of which {'runs' if again == 1 else 'run'} again" if again else ""
    if event.missing_steps:
        rest += f", {plural(len(event.missing_steps), 'step')} no longer in the pipeline"
    return f"run {_name(event)} resumed: {plural(len(event.dependencies), 'step')}{rest}"


def _run_interrupted(event: events.RunInterrupted, _: _Attempt) -> str:
    return f"the run stops because {event.reason}"


def _run_timed_out(event: events.RunTimedOut, _: _Attempt) -> str:
    return f"the run stops because it exceeded its deadline of {duration(event.deadline_ms)}"


def _pool_paused(event: events.PoolPaused, _: _Attempt) -> str:
    return f"{pause_text(event)} for {duration(event.until_ms - event.at_ms)}"


def pause_text(event: events.PoolPaused) -> str:
    """Return which pool is paused, and why: ``pool api is paused by ask[3]``."""
    pool = f"pool {event.pool}" if event.pool else "a pool"
    return f"{pool} is paused by {event.by}" if event.by else f"{pool} is paused"


def ended_as(status: RunStatus) -> str:
    """Return how a segment of a run ended: ``passed``, ``failed``, ``was interrupted``."""
    return _ENDS.get(status, status.lower())


_ENDS = {RunStatus.INTERRUPTED: "was interrupted", RunStatus.WAITING: "waits"}


def _run_finished(event: events.RunFinished, _: _Attempt) -> str:
    why = "" if event.stop_reason is None else f": {event.stop_reason}"
    return f"the run {ended_as(event.status)} after {duration(event.at_ms)}{why}"


def _attempt_started(event: events.AttemptStarted, attempt: _Attempt) -> str:
    which, plainly = attempt(event.attempt), "attempt 1"
    how = f"submitted to {event.engine}" if event.engine else "started"
    start = f" {how}" if which == plainly else f": {which} {how}"
    queued = f" after {duration(event.queued_ms)} in the queue" if event.queued_ms >= 1 else ""
    return f"{subject(event)}{start}{queued}"


def _attempt_began(event: events.AttemptBegan, attempt: _Attempt) -> str:
    which, plainly = attempt(event.attempt), "attempt 1"
    began = " began" if which == plainly else f": {which} began"
    return f"{subject(event)}{began} on {place_text(event.engine, event.worker)}"


def _attempt_located(event: events.AttemptLocated, attempt: _Attempt) -> str:
    which = attempt(event.attempt)
    ran = f"{subject(event)} ran" if which == "attempt 1" else f"{subject(event)}: {which} ran"
    return f"{ran} on {place_text(event.engine, event.worker)}"


def _attempt_failed(event: events.AttemptFailed, attempt: _Attempt) -> str:
    again = "at once" if event.retry_in_ms <= 0 else f"in {duration(event.retry_in_ms)}"
    which, why = attempt(event.attempt), describe_error(event.error)
    return f"{subject(event)}: {which} failed, retrying {again}: {why}"


def _map_started(event: events.MapStarted, _: _Attempt) -> str:
    items = "its items" if event.count is None else plural(event.count, "item")
    return f"{subject(event)} started mapping {items}"


def _step_waiting(event: events.StepWaiting, _: _Attempt) -> str:
    left = event.deadline_ms
    limit = "" if left is None else f", for {duration(left)} at most"
    refused = f": {event.refused}" if event.refused else ""
    return f"{subject(event)} waits for a signal{limit}{refused}"


def _signal_received(event: events.SignalReceived, _: _Attempt) -> str:
    return f"{subject(event)} was {answered_text(event)}"


def _step_succeeded(event: events.StepSucceeded, attempt: _Attempt) -> str:
    if event.error is not None:
        which = _in_which(event, attempt)
        return f"{subject(event)} failed{which} and fell back: {describe_error(event.error)}"
    return f"{subject(event)} succeeded{_in_which(event, attempt)}"


def _step_failed(event: events.StepFailed, attempt: _Attempt) -> str:
    return f"{subject(event)} failed{_in_which(event, attempt)}: {describe_error(event.error)}"


def _step_cancelled(event: events.StepCancelled, attempt: _Attempt) -> str:
    error = "" if event.error is None else f" ({describe_error(event.error)})"
    why = _because(event.reason)
    return f"{subject(event)} cancelled{_in_which(event, attempt)}{why}{error}"


def _step_skipped(event: events.StepSkipped, _: _Attempt) -> str:
    return f"{subject(event)} skipped{_because(event.reason)}"


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""  # not every report has one


def _step_reused(event: events.StepReused, _: _Attempt) -> str:
    if event.origin or event.status == StepStatus.SUCCESS:
        return f"{subject(event)} {reused_text(event.origin)}"
    return f"{subject(event)} not run again: it {_WAS[event.status]} before"


def _result_reused(event: events.ResultReused, _: _Attempt) -> str:
    made = plural(event.attempts, "attempt")
    if event.items is not None:
        made = plural(event.items, "item")
    figures = f"{made}, {duration(event.duration_ms)}"
    return f"{subject(event)} {reused_text(event.origin)}: {figures}"


def _thread_abandoned(event: events.ThreadAbandoned, attempt: _Attempt) -> str:
    which = attempt(event.attempt)
    return f"{subject(event)}: the thread of {which} can't be stopped and keeps running"


def _loop_blocked(event: events.LoopBlocked, _: _Attempt) -> str:
    where = f" at {event.where}" if event.where else ""
    return f"{subject(event)} blocked the event loop for {duration(event.blocked_ms)}{where}"


def _step_logged(event: events.StepLogged, _: _Attempt) -> str:
    level = _LEVELS.get(event.level) or f"level {event.level}"
    first, *rest = event.message.split("\n", 1)
    return f"{subject(event)}: {level} {cut(first, LONGEST_LINE)}{' …' if rest else ''}"


def _step_progressed(event: events.StepProgressed, _: _Attempt) -> str:
    return f"{subject(event)}: {counted(event)}"


def _step_attached(event: events.StepAttached, _: _Attempt) -> str:
    return f"{subject(event)} attached {event.name} ({event.media_type})"


def _step_called(event: events.StepCalled, _: _Attempt) -> str:
    return f"{subject(event)} called {event.name} ({duration(event.duration_ms)})"


def _step_streamed(event: events.StepStreamed, _: _Attempt) -> str:
    return f"{subject(event)} streamed {plural(event.count, 'value')}"


_LEVELS = {number: name for name, number in LEVELS.items()}


def _name(event: events.RunStarted | events.RunResumed) -> str:
    return f"{event.run_id} of {event.pipeline}" if event.pipeline else event.run_id


def place_text(engine: str, worker: str) -> str:
    """Return where an attempt runs: ``dask, worker w1``."""
    return f"{engine}, worker {worker}" if worker else engine


def _in_which(
    event: events.StepSucceeded | events.StepFailed | events.StepCancelled, attempt: _Attempt
) -> str:
    """Return in which attempt a step ended, if not in the first one."""
    return f" in {attempt(event.attempt)}" if event.attempt > 1 else ""


_WAS: Mapping[StepStatus, str] = {
    StepStatus.FAILED: "failed",
    StepStatus.SKIPPED: "was skipped",
    StepStatus.CANCELLED: "was cancelled",
}

_LINES: Mapping[type[events.Event], Callable[[Any, _Attempt], str]] = {
    events.RunStarted: _run_started,
    events.RunResumed: _run_resumed,
    events.RunInterrupted: _run_interrupted,
    events.RunTimedOut: _run_timed_out,
    events.PoolPaused: _pool_paused,
    events.RunFinished: _run_finished,
    events.AttemptStarted: _attempt_started,
    events.AttemptBegan: _attempt_began,
    events.AttemptLocated: _attempt_located,
    events.AttemptFailed: _attempt_failed,
    events.MapStarted: _map_started,
    events.StepWaiting: _step_waiting,
    events.SignalReceived: _signal_received,
    events.StepSucceeded: _step_succeeded,
    events.StepFailed: _step_failed,
    events.StepCancelled: _step_cancelled,
    events.StepSkipped: _step_skipped,
    events.StepReused: _step_reused,
    events.ResultReused: _result_reused,
    events.ThreadAbandoned: _thread_abandoned,
    events.LoopBlocked: _loop_blocked,
    events.StepLogged: _step_logged,
    events.StepProgressed: _step_progressed,
    events.StepAttached: _step_attached,
    events.StepCalled: _step_called,
    events.StepStreamed: _step_streamed,
}
