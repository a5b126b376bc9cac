"""A run that waits for a signal in OpenTelemetry: no error, no result and no duration."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from telemetry import Telemetry, status_of

from asyncflow import Pipeline, after
from asyncflow.journal import SQLiteJournal


def orders():
    pipeline = Pipeline("orders")

    @pipeline.step
    async def draft():
        await asyncio.sleep(2)
        return "offer"

    approved = pipeline.signal("approved", bool, depends_on=[draft])
    pipeline.signal("count", int, depends_on=[draft], deadline_ms=90_000, default=1)

    @pipeline.step
    async def send(answer: bool = after(approved)):
        await asyncio.sleep(3)
        return answer

    return pipeline


def waits_of(span):
    return [
        (each.attributes["cicd.pipeline.task.name"], each.attributes.get("asyncflow.reason"))
        for each in span.events
        if each.name == "asyncflow.waiting"
    ]


def run_durations(otel):
    return [(each.count, each.sum) for each in otel.metrics().get("cicd.pipeline.run.duration", [])]


async def test_each_segment_says_what_it_waits_for_and_only_the_last_has_a_result(otel):
    first, second, third = otel, Telemetry(), Telemetry()
    async with SQLiteJournal(":memory:") as journal:
        run = orders().with_options(journal=journal, run_id="r")
        await run.with_options(observers=[first.observer]).run()
        await asyncio.sleep(60)
        await journal.signal("r", "approved", True)
        await run.with_options(observers=[second.observer]).run()
        await asyncio.sleep(60)
        report = await run.with_options(observers=[third.observer]).run()

    segments = [each.span("RUN orders") for each in (first, second, third)]
    assert [status_of(each) for each in segments] == [("UNSET", None)] * 2 + [("OK", None)]
    results = [each.attributes.get("cicd.pipeline.result") for each in segments]
    assert results == [None, None, "success"]
    reasons = [each.attributes.get("asyncflow.reason") for each in segments]
    assert reasons == ["waits for approved, count", "waits for count", None]
    assert waits_of(segments[0]) == [("approved", None), ("count", None)]
    assert [span.name for span in first.spans] == ["draft attempt 1", "draft", "RUN orders"]
    answered = second.span("approved")
    assert status_of(answered) == ("OK", None)
    assert answered.start_time == answered.end_time
    assert second.links(answered) == ["draft"]
    assert third.span("count").attributes["asyncflow.fell_back"] is True
    assert report.all_passed

    assert [run_durations(each) for each in (first, second)] == [[], []]
    assert run_durations(third) == [(1, pytest.approx(report.total_duration_ms / 1000))]
    assert report.total_duration_ms < 10_000
    for each in (first, second, third):
        assert [point.value for point in each.metrics()["cicd.pipeline.run.active"]] == [0]


@dataclass
class Even:
    """A type of which no schema says all."""

    number: int

    def __post_init__(self):
        if self.number % 2:
            raise ValueError("it is odd")


async def test_a_refused_value_is_an_event_of_the_run(otel):
    pipeline = Pipeline("orders")
    pipeline.signal("approved", Even)
    async with SQLiteJournal(":memory:") as journal:
        run = pipeline.with_options(journal=journal, run_id="r")
        await run.run()
        await journal.signal("r", "approved", {"number": 1})
        report = await run.with_options(observers=[otel.observer]).run()

    first, refused = waits_of(otel.span("RUN orders"))
    assert report.status == "WAITING"
    assert first == ("approved", None)
    assert "signal 'approved'" in refused[1]


async def test_a_run_that_stays_in_its_process_has_one_span_over_its_wait(otel):
    async with orders().with_options(observers=[otel.observer]).start() as run:
        await asyncio.sleep(60)
        await run.signal("approved", True)
        await run.report()

    span = otel.span("RUN orders")
    assert status_of(span) == ("OK", None)
    assert "asyncflow.reason" not in span.attributes
    assert waits_of(span) == [("approved", None), ("count", None)]
