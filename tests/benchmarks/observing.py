"""Measures the cost of observers, against the same run without one.

The steps do nothing, so the ratios are the worst case; the time per step is what counts.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NoOpTracerProvider

from asyncflow import ObserverFactory, run_pipeline
from asyncflow.logs import LoggingObserver
from asyncflow.otel import OpenTelemetryObserver
from tests.benchmarks.graphs import SHAPES, pipeline, suspending
from tests.benchmarks.ratios import Ratio, Row, cpu_s

COUNT = 1_000


def observing(rounds: int) -> Iterator[Row]:
    """Yield, for each observer, the ratio and the microseconds that it adds to a step."""
    steps = pipeline(SHAPES["layered"](COUNT), suspending)

    def run_s(*observers: ObserverFactory) -> float:
        return cpu_s(lambda: run_pipeline(steps, observers=observers))

    for subject, make, limit in OBSERVERS:
        observer = make()
        value = Ratio(lambda observer=observer: run_s(observer), run_s, rounds)
        yield Row(f"{COUNT:,} steps with {subject} / without", value, limit)
        more_us = (value.ours - value.theirs) / COUNT * 1e6
        yield Row("   more a step", more_us, None, "us")


def _logging(level: int) -> LoggingObserver:
    logger = logging.Logger("benchmark", level)
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    return LoggingObserver(logger)


def _sdk(*, sampled: bool) -> OpenTelemetryObserver:
    tracing = TracerProvider(shutdown_on_exit=False, **({} if sampled else {"sampler": ALWAYS_OFF}))
    tracing.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))
    return OpenTelemetryObserver(
        tracing, MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    )


OBSERVERS: list[tuple[str, Callable[[], ObserverFactory], float]] = [
    ("LoggingObserver, its level off", lambda: _logging(logging.WARNING), 1.6),
    ("LoggingObserver", lambda: _logging(logging.INFO), 6.0),
    (
        "OpenTelemetryObserver, no SDK",
        lambda: OpenTelemetryObserver(NoOpTracerProvider(), NoOpMeterProvider()),
        5.0,
    ),
    ("OpenTelemetryObserver, not sampled", lambda: _sdk(sampled=False), 15.0),
    ("OpenTelemetryObserver, SDK", lambda: _sdk(sampled=True), 20.0),
]
