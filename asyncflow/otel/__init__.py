"""OpenTelemetry spans and metrics of runs.

Requires ``opentelemetry-api`` only: the application decides by its SDK where spans and measurements
go.
"""

from __future__ import annotations

from collections.abc import Iterable

from asyncflow._core.errors import MissingExtraError

try:
    from opentelemetry.metrics import MeterProvider, get_meter
    from opentelemetry.trace import Tracer, TracerProvider, get_tracer
except ImportError as _error:
    raise MissingExtraError(
        "asyncflow.otel needs opentelemetry-api, which comes with an extra: "
        "pip install 'asyncflow-tiers[otel]'"
    ) from _error

from asyncflow._core.pools.pool import Pool
from asyncflow.events import AttemptStarted, Event
from asyncflow.otel._metrics import (
    Instruments,
    ObservedService,
    RunMetrics,
    observe_pools,
    observe_services,
)
from asyncflow.otel._spans import RunSpans

__all__ = ["OpenTelemetryObserver"]

_NAME = "asyncflow"


class OpenTelemetryObserver:
    """Records spans and metrics of runs: ``observers=[OpenTelemetryObserver()]``.

    A run has a span, whose parent is the span that is current where the run starts; a step has a
    span within it, with links to the steps it depends on; an item of a mapped step has a span
    within that of the step; and each attempt has a span within that of its step or item. The span
    of an attempt is current in its action, and in the threads and tasks that inherit the action's
    context, so spans that are made there become its children. After the run, the current span is
    what it was before.

    Names and attributes follow the semantic conventions ``cicd.pipeline.*``; others begin with
    ``asyncflow.``. Inputs and outputs are never recorded. Durations of runs, of steps and of the
    waits of attempts for a pool or for ``max_concurrency`` are measured in seconds; attempts, their
    errors, and active runs and attempts are counted.

    One observer serves any number of runs at once.

    Args:
        tracer_provider: Makes the spans; by default the global one.
        meter_provider: Records the measurements; by default the global one.
        pools: Those whose state is measured too: their slots, the share of them that this process
            has if processes share the pool, how many are taken here, attempts that wait, how long
            they are still paused, and the retries that are left; and for each ``pool_key``, of at
            most 100 of which there is most, how many slots it has and how many of its attempts
            wait. Give them to one observer only.
        services: Those of which is measured how many places are taken, and how many runs wait to
            start in their journal. Each service on a journal measures the same queue, so take the
            maximum of the replicas, not the sum. Give them to one observer only.

    Raises:
        TypeError: An argument is not a provider, one of the pools is no `Pool`, or one of the
            services is no `asyncflow.service.Service`.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        pools: Iterable[Pool] = (),
        services: Iterable[ObservedService] = (),
    ) -> None:
        _check("tracer_provider", tracer_provider, "get_tracer")
        _check("meter_provider", meter_provider, "get_meter")
        self._tracer = get_tracer(_NAME, tracer_provider=tracer_provider)
        meter = get_meter(_NAME, meter_provider=meter_provider)
        if not isinstance(pools, Iterable):
            raise TypeError(f"pools must be a list of Pool objects, not {type(pools).__name__}")
        pools = tuple(pools)
        for pool in pools:
            if not isinstance(pool, Pool):
                raise TypeError(f"pools must hold Pool objects, not {type(pool).__name__}")
        self._instruments = Instruments(meter)
        if pools:
            observe_pools(meter, pools)
        if not isinstance(services, Iterable):
            kind = type(services).__name__
            raise TypeError(f"services must be a list of Service objects, not {kind}")
        services = tuple(services)
        for service in services:
            if not hasattr(service, "_stats_now"):
                raise TypeError(f"services must hold Service objects, not {type(service).__name__}")
        if services:
            observe_services(meter, services)

    def for_run(self) -> _RunTelemetry:
        """Return the observer of one run."""
        return _RunTelemetry(self._tracer, self._instruments)


def _check(name: str, provider: object, method: str) -> None:
    if provider is not None and not callable(getattr(provider, method, None)):
        kind = name.replace("_", " ").title().replace(" ", "")
        raise TypeError(f"{name} must be a {kind}, not {type(provider).__name__}")


class _RunTelemetry:
    """Observes one run. However it ends, no span stays open and no counter stays raised."""

    def __init__(self, tracer: Tracer, instruments: Instruments) -> None:
        self._spans = RunSpans(tracer)
        self._metrics = RunMetrics(instruments)

    def __call__(self, event: Event) -> None:
        try:
            self._metrics.record(event)
            self._spans.record(event)
        except BaseException:  # a span processor, say: the run drops this observer
            self._close()
            raise

    def enter_attempt(self, running: AttemptStarted) -> None:
        self._spans.enter(running)

    def __del__(self) -> None:
        # A run whose loop is closed emits no last event.
        self._close()

    def _close(self) -> None:
        self._metrics.close()
        self._spans.close()
