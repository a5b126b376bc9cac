"""What runs are counted by in OpenTelemetry: instruments, and one run's entries in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry.metrics import Meter

from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    MapStarted,
    RunFinished,
    RunResumed,
    RunStarted,
    RunTimedOut,
    StepCancelled,
    StepFailed,
    StepSucceeded,
)
from asyncflow.otel._semconv import (
    ATTEMPT_RESULT,
    ERROR_TYPE,
    METRIC_ATTEMPTS,
    METRIC_ATTEMPTS_ACTIVE,
    METRIC_ERRORS,
    METRIC_QUEUED,
    METRIC_RUN_DURATION,
    METRIC_RUNS_ACTIVE,
    METRIC_STEP_DURATION,
    PIPELINE_NAME,
    RESULT,
    RUN_STATE,
    RUN_STATE_EXECUTING,
    TASK_NAME,
    TASK_RESULT,
    error_type,
    result_of,
    sendable,
)

__all__ = ["Instruments", "RunMetrics"]

_Attributes = dict[str, Any]
_Ended = StepSucceeded | StepFailed | StepCancelled

# The boundaries that are usual count milliseconds. From a step of a few to a run of an hour.
_SECONDS = [
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0),
]


class Instruments:
    """The instruments of a meter, for any number of runs."""

    def __init__(self, meter: Meter) -> None:
        def seconds(name: str, description: str) -> Any:
            return meter.create_histogram(
                name, "s", description, explicit_bucket_boundaries_advisory=_SECONDS
            )

        self.run_duration = seconds(METRIC_RUN_DURATION, "How long runs of a pipeline took.")
        self.step_duration = seconds(
            METRIC_STEP_DURATION, "How long steps took, from their first attempt to their last."
        )
        self.queued = seconds(
            METRIC_QUEUED, "How long attempts waited for a pool or for max_concurrency."
        )
        self.attempts = meter.create_counter(METRIC_ATTEMPTS, "{attempt}", "Attempts that ended.")
        self.errors = meter.create_counter(METRIC_ERRORS, "{error}", "Attempts that failed.")
        self.runs_active = meter.create_up_down_counter(
            METRIC_RUNS_ACTIVE, "{run}", "Runs that are going on."
        )
        self.attempts_active = meter.create_up_down_counter(
            METRIC_ATTEMPTS_ACTIVE, "{attempt}", "Attempts that are running."
        )


class RunMetrics:
    """Counts and measures one run."""

    def __init__(self, instruments: Instruments) -> None:
        self._to = instruments
        self._run: _Attributes | None = None
        """What the run is counted by while it goes on."""
        self._name: _Attributes = {}
        self._has_timed_out = False
        self._steps: dict[str, _Attributes] = {}
        """What each step is counted by."""
        self._began: dict[str, float] = {}
        """When each step that is running began, in milliseconds of the run."""
        self._running: dict[tuple[str, int | None], _Attributes] = {}
        """The attempts that are in flight."""

    def tell(self, event: Event) -> None:
        """Enter what has happened."""
        entry = _ENTRIES.get(type(event))
        if entry is not None:
            entry(self, event)

    def close(self) -> None:
        """Take back what is in flight, which nothing will tell the end of."""
        while self._running:
            self._to.attempts_active.add(-1, self._running.popitem()[1])
        run, self._run = self._run, None
        if run is not None:
            self._to.runs_active.add(-1, run)

    def _begin(self, event: RunStarted | RunResumed) -> None:
        self.close()  # of a stored run, the stretch before
        self._name = {PIPELINE_NAME: sendable(event.pipeline)} if event.pipeline else {}
        self._has_timed_out = False
        self._steps.clear()
        self._began.clear()
        run = {**self._name, RUN_STATE: RUN_STATE_EXECUTING}
        self._to.runs_active.add(1, run)
        self._run = run

    def _time_out(self, _: RunTimedOut) -> None:
        self._has_timed_out = True

    def _finish(self, event: RunFinished) -> None:
        result = result_of(event, has_timed_out=self._has_timed_out)
        by = {**self._name, RUN_STATE: RUN_STATE_EXECUTING, RESULT: result}
        self._to.run_duration.record(event.at_ms / 1000, by)
        self.close()

    def _start_attempt(self, event: AttemptStarted) -> None:
        by = self._of(event.step)
        if event.item is None:
            self._began.setdefault(event.step, event.at_ms)
        self._to.attempts_active.add(1, by)
        self._running[event.step, event.item] = by
        self._to.queued.record(event.queued_ms / 1000, by)

    def _start_map(self, event: MapStarted) -> None:
        self._began[event.step] = event.at_ms

    def _end_attempt(self, event: AttemptFailed | _Ended) -> None:
        by = self._running.pop((event.step, event.item), None)
        if by is None:
            return  # it was cut short between two attempts, or it has none of its own
        self._to.attempts_active.add(-1, by)
        self._to.attempts.add(1, {**by, ATTEMPT_RESULT: result_of(event)})
        if isinstance(event, AttemptFailed | StepFailed):
            self._to.errors.add(1, {**self._name, ERROR_TYPE: error_type(event.error)})

    def _end(self, event: _Ended) -> None:
        self._end_attempt(event)
        began_ms = self._began.pop(event.step, None) if event.item is None else None
        if began_ms is not None:
            by = {**self._of(event.step), TASK_RESULT: result_of(event)}
            self._to.step_duration.record((event.at_ms - began_ms) / 1000, by)

    def _of(self, step: str) -> _Attributes:
        found = self._steps.get(step)
        if found is None:
            found = self._steps[step] = {**self._name, TASK_NAME: sendable(step)}
        return found


_ENTRIES: Mapping[type[Event], Callable[[RunMetrics, Any], None]] = {
    RunStarted: RunMetrics._begin,
    RunResumed: RunMetrics._begin,
    RunTimedOut: RunMetrics._time_out,
    RunFinished: RunMetrics._finish,
    AttemptStarted: RunMetrics._start_attempt,
    MapStarted: RunMetrics._start_map,
    AttemptFailed: RunMetrics._end_attempt,
    StepSucceeded: RunMetrics._end,
    StepFailed: RunMetrics._end,
    StepCancelled: RunMetrics._end,
}
