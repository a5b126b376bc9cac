"""The OpenTelemetry metrics of runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Protocol

from opentelemetry.metrics import (
    CallbackOptions,
    Counter,
    Histogram,
    Meter,
    Observation,
    UpDownCounter,
)

from asyncflow import events
from asyncflow._core.errors import JournalError
from asyncflow._core.history.results import RunStatus
from asyncflow._core.pools.pool import Pool, PoolKeyStats, PoolStats
from asyncflow.otel import _semconv as semconv
from asyncflow.otel._semconv import attempt_end, encodable, error_type, result_of

_Attributes = dict[str, Any]
_Ended = events.StepSucceeded | events.StepFailed | events.StepCancelled

# The usual boundaries are milliseconds. These reach from a short step to a run of an hour.
_SECONDS = [
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0),
]


class Instruments:
    """The instruments of a meter, shared by all runs."""

    def __init__(self, meter: Meter) -> None:
        def seconds(name: str, description: str) -> Histogram:
            return meter.create_histogram(
                name, "s", description, explicit_bucket_boundaries_advisory=_SECONDS
            )

        self.run_duration: Histogram = seconds(
            semconv.METRIC_RUN_DURATION, "How long runs of a pipeline took."
        )
        self.step_duration: Histogram = seconds(
            semconv.METRIC_STEP_DURATION,
            "How long steps took, from their first attempt to their last.",
        )
        self.queued: Histogram = seconds(
            semconv.METRIC_QUEUED, "How long attempts waited before they started or began."
        )
        self.attempts: Counter = meter.create_counter(
            semconv.METRIC_ATTEMPTS, "{attempt}", "Attempts that ended."
        )
        self.errors: Counter = meter.create_counter(
            semconv.METRIC_ERRORS, "{error}", "Attempts that failed."
        )
        self.runs_active: UpDownCounter = meter.create_up_down_counter(
            semconv.METRIC_RUNS_ACTIVE, "{run}", "Runs that are running."
        )
        self.attempts_active: UpDownCounter = meter.create_up_down_counter(
            semconv.METRIC_ATTEMPTS_ACTIVE, "{attempt}", "Attempts that are running."
        )


def observe_pools(meter: Meter, pools: Iterable[Pool]) -> None:
    """Let a meter read the state of pools whenever it collects measurements."""
    named = [(pool, {semconv.POOL_NAME: encodable(pool.name or "")}) for pool in pools]

    def gauge(
        name: str, unit: str, description: str, read: Callable[[PoolStats], float | None]
    ) -> None:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            for pool, attributes in named:
                value = read(pool.stats())
                # The retries of a pool without a budget are infinite.
                if value is not None and value < math.inf:
                    yield Observation(value, attributes)

        meter.create_observable_gauge(name, [observe], unit, description)

    def of_keys(
        name: str, unit: str, description: str, read: Callable[[PoolKeyStats], int]
    ) -> None:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            for pool, attributes in named:
                for its in pool.stats().keys:
                    key = encodable(its.key)
                    yield Observation(read(its), {**attributes, semconv.POOL_KEY: key})

        meter.create_observable_gauge(name, [observe], unit, description)

    size, in_use = "Slots that a pool has.", "Slots of a pool that are taken."
    waiting = "Attempts that wait for a pool."
    share = "Slots that this process may use of a pool that processes share."
    of_key = "Slots that a key of a pool has taken."
    waiting_of_key = "Attempts of a key that wait for a pool."
    paused, retries = "How long a pool is still paused.", "Retries that its budget allows."
    of_keys(semconv.METRIC_POOL_KEY_IN_USE, "{slot}", of_key, lambda its: its.in_use)
    of_keys(semconv.METRIC_POOL_KEY_WAITING, "{attempt}", waiting_of_key, lambda its: its.waiting)
    gauge(semconv.METRIC_POOL_SIZE, "{slot}", size, lambda stats: stats.size)
    gauge(semconv.METRIC_POOL_SHARE, "{slot}", share, lambda stats: stats.share)
    gauge(semconv.METRIC_POOL_IN_USE, "{slot}", in_use, lambda stats: stats.in_use)
    gauge(semconv.METRIC_POOL_WAITING, "{attempt}", waiting, lambda stats: stats.waiting)
    gauge(semconv.METRIC_POOL_PAUSED, "s", paused, lambda stats: stats.paused_ms / 1000)
    gauge(semconv.METRIC_POOL_RETRIES, "{retry}", retries, lambda stats: stats.retries_left)


class ObservedService(Protocol):
    """A `asyncflow.service.Service`, as far as a meter reads it."""

    async def stats(self) -> Any: ...
    def _stats_now(self) -> Any: ...


def observe_services(meter: Meter, services: Iterable[ObservedService]) -> None:
    """Let a meter read how full services are, and their queues, when it collects measurements."""
    services = tuple(services)

    def gauge(name: str, unit: str, description: str, read: Callable[[Any], float | None]) -> None:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            for service in services:
                with suppress(JournalError):  # it is closed, or can't be read now
                    value = read(service._stats_now())
                    if value is not None:
                        yield Observation(value)

        meter.create_observable_gauge(name, [observe], unit, description)

    def of_queue(name: str, unit: str, description: str, read: Callable[[Any], float]) -> None:
        gauge(name, unit, description, lambda stats: stats.queue and read(stats.queue))

    waiting, due = "Runs that wait to start.", "Runs that wait to start and are due."
    oldest = "For how long the first run that is due has been due."
    blocked = "Keys with runs that are due, and another run that has not ended."
    taken, most = "Places of a service that are taken.", "Places that a service has."
    of_queue(semconv.METRIC_QUEUE_WAITING, "{run}", waiting, lambda queue: queue.waiting)
    of_queue(semconv.METRIC_QUEUE_DUE, "{run}", due, lambda queue: queue.due)
    of_queue(semconv.METRIC_QUEUE_OLDEST_DUE, "s", oldest, lambda queue: queue.oldest_due_s or 0.0)
    of_queue(semconv.METRIC_QUEUE_BLOCKED_KEYS, "{key}", blocked, lambda queue: queue.blocked_keys)
    gauge(semconv.METRIC_SERVICE_TAKEN, "{run}", taken, lambda stats: stats.taken)
    gauge(semconv.METRIC_SERVICE_MAX_RUNS, "{run}", most, lambda stats: stats.max_runs)


class RunMetrics:
    """Records the metrics of one run."""

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments
        self._run: _Attributes | None = None
        """The attributes of the run while it is running."""
        self._name: _Attributes = {}
        self._has_timed_out = False
        self._steps: dict[str, _Attributes] = {}
        """The attributes of each step."""
        self._started_ms: dict[str, float] = {}
        """When each running step started, on the run's clock."""
        self._running: dict[tuple[str, int | None], _Attributes] = {}
        """The attributes of each running attempt."""
        self._submitted_ms: dict[tuple[str, int | None], float] = {}
        """When each attempt that waits for a worker of an engine was first queued."""

    def record(self, event: events.Event) -> None:
        """Record an event."""
        handler = _HANDLERS.get(type(event))
        if handler is not None:
            handler(self, event)

    def close(self) -> None:
        """Decrement the counters of active runs and attempts whose end will not be reported."""
        while self._running:
            self._instruments.attempts_active.add(-1, self._running.popitem()[1])
        run, self._run = self._run, None
        if run is not None:
            self._instruments.runs_active.add(-1, run)

    def _begin(self, event: events.RunStarted | events.RunResumed) -> None:
        self.close()  # the segment before, if these are the events of a stored run
        self._name = {semconv.PIPELINE_NAME: encodable(event.pipeline)} if event.pipeline else {}
        self._has_timed_out = False
        self._steps.clear()
        self._started_ms.clear()
        self._submitted_ms.clear()
        self._run = {**self._name, semconv.RUN_STATE: semconv.RUN_STATE_EXECUTING}
        self._instruments.runs_active.add(1, self._run)

    def _time_out(self, _: events.RunTimedOut) -> None:
        self._has_timed_out = True

    def _finish(self, event: events.RunFinished) -> None:
        if event.status is RunStatus.WAITING:  # its end, in another segment, has its duration
            self.close()
            return
        result = result_of(event, has_timed_out=self._has_timed_out)
        attributes = {
            **self._name,
            semconv.RUN_STATE: semconv.RUN_STATE_EXECUTING,
            semconv.RESULT: result,
        }
        self._instruments.run_duration.record(event.at_ms / 1000, self._name | attributes)
        self.close()

    def _start_attempt(self, event: events.AttemptStarted) -> None:
        attributes = self._attributes(event.step)
        if event.item is None:
            self._started_ms.setdefault(event.step, event.at_ms)
        self._instruments.attempts_active.add(1, attributes)
        self._running[event.step, event.item] = attributes
        if event.engine:
            self._submitted_ms[event.step, event.item] = event.at_ms - event.queued_ms
        else:
            self._instruments.queued.record(event.queued_ms / 1000, attributes)

    def _begin_attempt(self, event: events.AttemptBegan) -> None:
        queued_ms = event.at_ms - self._submitted_ms.pop((event.step, event.item))
        self._instruments.queued.record(queued_ms / 1000, self._attributes(event.step))

    def _start_map(self, event: events.MapStarted) -> None:
        self._started_ms[event.step] = event.at_ms

    def _end_attempt(self, event: events.AttemptFailed | _Ended) -> None:
        self._submitted_ms.pop((event.step, event.item), None)
        attributes = self._running.pop((event.step, event.item), None)
        if attributes is None:
            return  # it was cancelled between two attempts, or is mapped and has none of its own
        self._instruments.attempts_active.add(-1, attributes)
        self._instruments.attempts.add(1, {**attributes, semconv.ATTEMPT_RESULT: result_of(event)})
        if isinstance(event, events.AttemptFailed | events.StepFailed):
            self._instruments.errors.add(
                1, {**self._name, semconv.ERROR_TYPE: error_type(event.error)}
            )

    def _end(self, event: _Ended) -> None:
        self._end_attempt(attempt_end(event))
        started_ms = self._started_ms.pop(event.step, None) if event.item is None else None
        if started_ms is not None:
            attributes = {**self._attributes(event.step), semconv.TASK_RESULT: result_of(event)}
            self._instruments.step_duration.record((event.at_ms - started_ms) / 1000, attributes)

    def _attributes(self, step: str) -> _Attributes:
        if step not in self._steps:
            self._steps[step] = {**self._name, semconv.TASK_NAME: encodable(step)}
        return self._steps[step]


_HANDLERS: Mapping[type[events.Event], Callable[[RunMetrics, Any], None]] = {
    events.RunStarted: RunMetrics._begin,
    events.RunResumed: RunMetrics._begin,
    events.RunTimedOut: RunMetrics._time_out,
    events.RunFinished: RunMetrics._finish,
    events.AttemptStarted: RunMetrics._start_attempt,
    events.AttemptBegan: RunMetrics._begin_attempt,
    events.MapStarted: RunMetrics._start_map,
    events.AttemptFailed: RunMetrics._end_attempt,
    events.StepSucceeded: RunMetrics._end,
    events.StepFailed: RunMetrics._end,
    events.StepCancelled: RunMetrics._end,
}
