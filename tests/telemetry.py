"""OpenTelemetry's real SDK, which stores in memory what an observer exports."""

from __future__ import annotations

from collections import Counter
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from asyncflow.otel import OpenTelemetryObserver

__all__ = ["Telemetry", "status_of"]


class _Started(SpanProcessor):
    def __init__(self) -> None:
        self.names: Counter[str] = Counter()

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.names[span.name] += 1


class Telemetry:
    """An SDK for one test, and an observer that uses it."""

    def __init__(self, *processors: SpanProcessor) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self._started = _Started()
        self.provider = TracerProvider(shutdown_on_exit=False)
        for processor in (*processors, self._started, SimpleSpanProcessor(self._exporter)):
            self.provider.add_span_processor(processor)
        self.meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.observer = OpenTelemetryObserver(self.provider, self.meters)
        self.tracer = self.provider.get_tracer("test")

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans, in the order of their ends; all must have ended."""
        ended = list(self._exporter.get_finished_spans())
        assert Counter(span.name for span in ended) == self._started.names
        return ended

    def span(self, name: str, **attributes: Any) -> ReadableSpan:
        """Return the only span with this name and these `asyncflow.` attributes."""
        wanted = {f"asyncflow.{key}": value for key, value in attributes.items()}
        (found,) = [
            span
            for span in self.spans
            if span.name == name and wanted.items() <= dict(span.attributes or {}).items()
        ]
        return found

    def parent(self, span: ReadableSpan) -> ReadableSpan | None:
        """Return the parent of a span."""
        if span.parent is None:
            return None
        (found,) = [s for s in self.spans if s.context.span_id == span.parent.span_id]
        assert found.context.trace_id == span.context.trace_id
        return found

    def path(self, span: ReadableSpan) -> str:
        """Return the names from the root to a span."""
        above = self.parent(span)
        return span.name if above is None else f"{self.path(above)} > {span.name}"

    def links(self, span: ReadableSpan) -> list[str]:
        """Return the names of the spans that a span links to."""
        by_id = {other.context.span_id: other.name for other in self.spans}
        return [by_id[link.context.span_id] for link in span.links]

    def metrics(self) -> dict[str, list[Any]]:
        """Return the data points of each instrument."""
        data = self._reader.get_metrics_data()
        return {
            metric.name: list(metric.data.data_points)
            for resource in (data.resource_metrics if data is not None else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def units(self) -> dict[str, str]:
        """Return the unit of each instrument."""
        data = self._reader.get_metrics_data()
        return {
            metric.name: metric.unit
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def in_flight(self) -> dict[str, float]:
        """Return the counts in flight by instrument, without zeros."""
        return {
            name: total
            for name, points in self.metrics().items()
            if name.endswith(".active") and (total := sum(abs(p.value) for p in points))
        }


def status_of(span: ReadableSpan) -> tuple[str, str | None]:
    return span.status.status_code.name, span.status.description
