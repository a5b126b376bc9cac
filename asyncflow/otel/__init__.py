"""OpenTelemetry: the spans of each run, step and attempt, and what can be measured of them.

It needs the package ``opentelemetry-api`` only, which does nothing by itself: what becomes of spans
and measurements is decided by the application that sets up an SDK.
"""

from __future__ import annotations

try:
    from opentelemetry.metrics import MeterProvider, get_meter
    from opentelemetry.trace import Tracer, TracerProvider, get_tracer
except ImportError as _error:
    raise ImportError(
        "asyncflow.otel needs opentelemetry-api, which comes with an extra: "
        "pip install 'asyncflow-tiers[otel]'"
    ) from _error

from asyncflow.events import AttemptStarted, Event
from asyncflow.otel._metrics import Instruments, RunMetrics
from asyncflow.otel._spans import RunSpans

__all__ = ["OpenTelemetryObserver"]

_NAME = "asyncflow"


class OpenTelemetryObserver:
    """Makes spans and measurements of runs, for ``observers=[OpenTelemetryObserver()]``.

    A run has a span, whose parent is the span that is current where the run is started; a step
    has one within it, with links to those of the steps that it depends on; an item of a mapped
    step has one within that of the step; and each attempt has one within that of its step or item.
    The span of an attempt is the current one in its action, and so in the threads and tasks that
    inherit the action's context: what makes spans there makes children of it. Nothing is current
    any more after the run that was not before.

    Names and attributes are those of the semantic conventions ``cicd.pipeline.*``, and else begin
    with ``asyncflow.``. No input and no output is ever shown. Measured in seconds are the duration
    of runs, of steps, and of the time for which attempts wait for their turn; counted are attempts,
    their errors, and what is in flight.

    One observer serves any number of runs at the same time.

    Args:
        tracer_provider: Makes the spans; by default what is set for the whole process.
        meter_provider: Takes the measurements; by default what is set for the whole process.

    Raises:
        TypeError: What is given is no such provider.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        _check("tracer_provider", tracer_provider, "get_tracer")
        _check("meter_provider", meter_provider, "get_meter")
        self._tracer = get_tracer(_NAME, tracer_provider=tracer_provider)
        self._instruments = Instruments(get_meter(_NAME, meter_provider=meter_provider))

    def for_run(self) -> _RunTelemetry:
        """Return what observes one run."""
        return _RunTelemetry(self._tracer, self._instruments)


def _check(name: str, provider: object, method: str) -> None:
    if provider is not None and not callable(getattr(provider, method, None)):
        kind = name.replace("_", " ").title().replace(" ", "")
        raise TypeError(f"{name} must be a {kind}, not {type(provider).__name__}")


class _RunTelemetry:
    """Observes one run. However that ends, no span stays open and nothing stays in flight."""

    def __init__(self, tracer: Tracer, instruments: Instruments) -> None:
        self._spans = RunSpans(tracer)
        self._metrics = RunMetrics(instruments)

    def __call__(self, event: Event) -> None:
        try:
            self._metrics.tell(event)
            self._spans.tell(event)
        except BaseException:  # of a processor of spans, say: we are not called again
            self._close()
            raise

    def enter_attempt(self, running: AttemptStarted) -> None:
        self._spans.enter(running)

    def __del__(self) -> None:
        # A run that is broken off, as when its loop is closed over it, tells nobody its end.
        self._close()

    def _close(self) -> None:
        self._metrics.close()
        self._spans.close()
