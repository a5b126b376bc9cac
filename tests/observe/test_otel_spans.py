"""Runs, steps, items and attempts have spans that match the events and nest correctly."""

from __future__ import annotations

import asyncio
import gc
import logging
from contextvars import ContextVar

import pytest
from freed import Holding, without_collector
from memory_journal import MemoryJournal
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import NoOpTracerProvider, SpanKind
from results import HostileError
from telemetry import Telemetry, status_of

from asyncflow import (
    RestoredError,
    RunStatus,
    WorkflowStep,
    current_step,
    run_pipeline,
)
from asyncflow.events import (
    AttemptBegan,
    AttemptStarted,
    LoopBlocked,
    RunFinished,
    RunResumed,
    RunStarted,
    RunTimedOut,
    StepFailed,
    StepSucceeded,
    ThreadAbandoned,
)
from asyncflow.logs import LoggingObserver
from asyncflow.otel import OpenTelemetryObserver

MARK: ContextVar[str] = ContextVar("mark", default="nothing")


async def instant(**_):
    return "the output"


async def slow(**_):
    await asyncio.sleep(0.25)


async def forever(**_):
    await asyncio.Event().wait()


async def fail(**_):
    raise LookupError("nothing there")


async def two():
    return ["x", "y"]


def flaky(failures=1):
    async def act(**_):
        await asyncio.sleep(0.1)
        if current_step().attempt <= failures:
            raise ValueError("not yet")

    return act


def paths(otel):
    return sorted(otel.path(span) for span in otel.spans)


async def test_a_run_its_steps_and_attempts_have_spans_within_each_other(otel):
    await run_pipeline(
        [
            WorkflowStep("a", instant),
            WorkflowStep("b", flaky(), ["a"], max_retries=2),
            WorkflowStep("c", instant, ["a", "b"]),
        ],
        run_id="r1",
        name="etl",
        observers=[otel.observer],
    )

    assert paths(otel) == [
        "RUN etl",
        "RUN etl > a",
        "RUN etl > a > a attempt 1",
        "RUN etl > b",
        "RUN etl > b > b attempt 1",
        "RUN etl > b > b attempt 2",
        "RUN etl > c",
        "RUN etl > c > c attempt 1",
    ]
    assert otel.links(otel.span("a")) == []
    assert otel.links(otel.span("b")) == ["a"]
    assert otel.links(otel.span("c")) == ["a", "b"]


async def test_the_spans_carry_the_attributes_of_their_run_step_and_attempt(otel):
    await run_pipeline(
        [WorkflowStep("a", two), WorkflowStep("m", instant, ["a"], map_over="a")],
        run_id="r1",
        name="etl",
        observers=[otel.observer],
    )

    run, step, item = otel.span("RUN etl"), otel.span("a"), otel.span("m item", item=1)
    assert run.kind == SpanKind.SERVER
    assert step.kind == SpanKind.INTERNAL
    assert dict(run.attributes) == {
        "cicd.pipeline.name": "etl",
        "cicd.pipeline.action.name": "RUN",
        "cicd.pipeline.run.id": "r1",
        "cicd.pipeline.result": "success",
        "asyncflow.steps": 2,
    }
    assert dict(step.attributes) == {
        "cicd.pipeline.run.id": "r1",
        "cicd.pipeline.task.name": "a",
        "cicd.pipeline.task.run.id": "a",
        "cicd.pipeline.task.run.result": "success",
    }
    assert dict(item.attributes) == {
        "cicd.pipeline.run.id": "r1",
        "cicd.pipeline.task.name": "m",
        "cicd.pipeline.task.run.id": "m[1]",
        "cicd.pipeline.task.run.result": "success",
        "asyncflow.item": 1,
    }
    assert dict(otel.span("m attempt 1", item=1).attributes) == {
        "cicd.pipeline.run.id": "r1",
        "cicd.pipeline.task.name": "m",
        "cicd.pipeline.task.run.id": "m[1]",
        "asyncflow.item": 1,
        "asyncflow.attempt": 1,
        "asyncflow.attempt.result": "success",
        "asyncflow.queued_ms": 0.0,
    }
    assert {status_of(span) for span in otel.spans} == {("OK", None)}


# The current span.


def current():
    return trace.get_current_span().get_span_context().span_id


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("limits", [{}, {"timeout_ms": None}, {"deadline_ms": 60_000}])
async def test_the_span_of_an_attempt_is_current_in_its_action(otel, durable, mapped, limits):
    found = []

    async def act(**_):
        here = current_step()
        found.append((here.item, here.attempt, current()))
        with otel.tracer.start_as_current_span(f"inner {here.attempt}"):
            await asyncio.sleep(0)
        await asyncio.create_task(in_task(here.attempt))
        assert current() == found[-1][2] or mapped
        if here.attempt < 3:
            raise ValueError

    async def in_task(attempt):
        with otel.tracer.start_as_current_span(f"task {attempt}"):
            await asyncio.sleep(0)

    options = {"map_over": "a"} if mapped else {}
    before = current()
    report = await run_pipeline(
        [WorkflowStep("a", two), WorkflowStep("b", act, ["a"], max_retries=3, **options, **limits)],
        observers=[otel.observer],
        journal=MemoryJournal(latency_s=0.001) if durable else None,
        run_id="r",
    )

    assert report.all_passed
    assert current() == before == 0
    above = "RUN > b > b item" if mapped else "RUN > b"
    for item, attempt, span_id in found:
        more = {} if item is None else {"item": item}
        assert otel.span(f"b attempt {attempt}", **more).context.span_id == span_id
    for attempt in (1, 2, 3):
        count = 2 if mapped else 1
        for name in ("inner", "task"):
            path = f"{above} > b attempt {attempt} > {name} {attempt}"
            assert paths(otel).count(path) == count


async def test_a_run_is_within_the_span_that_is_current_for_its_caller(otel):
    async def nested():
        await run_pipeline([WorkflowStep("inner", instant)], name="n", observers=[otel.observer])

    with otel.tracer.start_as_current_span("request") as request:
        await run_pipeline([WorkflowStep("a", nested)], observers=[otel.observer])
        assert trace.get_current_span() is request

    deepest = "request > RUN > a > a attempt 1 > RUN n > inner > inner attempt 1"
    assert deepest in paths(otel)
    assert otel.span("RUN").kind == SpanKind.INTERNAL


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("leaves", [False, True])
async def test_the_context_variables_of_an_action_are_the_same_without_the_observer(
    otel, observed, durable, leaves
):
    found = []

    async def act():
        found.append(MARK.get())
        if leaves:
            MARK.set("left behind")
        if current_step().attempt < 3:
            raise ValueError

    await run_pipeline(
        [WorkflowStep("a", act, max_retries=3, retry=1), WorkflowStep("b", act, ["a"])],
        observers=[otel.observer] if observed else [],
        journal=MemoryJournal() if durable else None,
        fail_fast=False,
    )

    assert found == ["nothing"] * 4
    assert MARK.get() == "nothing"


async def test_conditions_and_sources_of_items_are_outside_the_span_of_an_attempt(otel):
    found = []

    class Source:
        async def __aiter__(self):
            found.append(current())
            yield 1

    async def source():
        return Source()

    def condition():
        found.append(current())
        return True

    await run_pipeline(
        [
            WorkflowStep("a", source),
            WorkflowStep("m", instant, ["a"], map_over="a", when=condition),
        ],
        observers=[otel.observer],
    )

    assert found == [0, 0]


# Outcomes.


def ends(otel, name):
    span = otel.span(name)
    attributes = dict(span.attributes)
    result = [
        attributes.get(key)
        for key in (
            "cicd.pipeline.result",
            "cicd.pipeline.task.run.result",
            "asyncflow.attempt.result",
        )
        if key in attributes
    ]
    return *result, *status_of(span), attributes.get("error.type")


def exceptions(span):
    return [event.attributes for event in span.events if event.name == "exception"]


async def test_a_failure_is_recorded_on_its_attempts_its_step_and_the_run(otel):
    await run_pipeline([WorkflowStep("a", fail, max_retries=2)], observers=[otel.observer])

    expected = ("failure", "ERROR", "LookupError: nothing there", "LookupError")
    assert ends(otel, "a attempt 1") == expected
    assert ends(otel, "a attempt 2") == expected
    assert ends(otel, "a") == expected
    why = "step 'a' failed and fail_fast is on"
    assert ends(otel, "RUN") == ("failure", "ERROR", why, "LookupError")
    assert otel.span("a attempt 1").attributes["asyncflow.retry_in_ms"] == 0
    (first,), (second,) = (exceptions(otel.span(f"a attempt {n}")) for n in (1, 2))
    assert first["exception.type"] == "LookupError"
    assert first["exception.message"] == "nothing there"
    assert second["exception.stacktrace"].startswith("Traceback")
    assert "in fail" in second["exception.stacktrace"]
    assert "nodes.py" not in second["exception.stacktrace"]
    assert exceptions(otel.span("a")) == exceptions(otel.span("RUN")) == []


async def test_a_step_that_fell_back_is_ok_and_its_attempts_have_failed(otel):
    step = WorkflowStep("a", fail, max_retries=2, fallback=lambda error: "secret")
    await run_pipeline([step], observers=[otel.observer])

    expected = ("failure", "ERROR", "LookupError: nothing there", "LookupError")
    assert ends(otel, "a attempt 1") == ends(otel, "a attempt 2") == expected
    assert ends(otel, "a") == ("success", "OK", None, "LookupError")
    assert otel.span("a").attributes["asyncflow.fell_back"] is True
    assert ends(otel, "RUN")[:2] == ("success", "OK")
    (recorded,) = exceptions(otel.span("a attempt 2"))
    assert recorded["exception.message"] == "nothing there"


@pytest.mark.parametrize(
    ("action", "result", "error"),
    [(fail, "failure", "LookupError"), (forever, "timeout", "asyncflow.StepTimeoutError")],
)
async def test_a_step_that_is_cancelled_between_two_attempts_ends_with_its_last_error(
    otel, action, result, error
):
    async def fails_later():
        await asyncio.sleep(0.1)
        raise LookupError("nothing there")

    await run_pipeline(
        [
            WorkflowStep("a", fails_later),
            WorkflowStep("b", action, max_retries=2, retry=9_000, timeout_ms=50),
        ],
        observers=[otel.observer],
    )

    assert ends(otel, "b attempt 1")[0] == result
    assert ends(otel, "b")[0] == "cancellation"
    assert ends(otel, "b")[3] == error
    assert len(exceptions(otel.span("b attempt 1"))) == 1
    assert exceptions(otel.span("b")) == []


async def test_failures_of_items_are_recorded_on_their_attempts_and_as_a_group_on_the_step(otel):
    await run_pipeline(
        [WorkflowStep("a", two), WorkflowStep("m", fail, ["a"], map_over="a")],
        fail_fast=False,
        observers=[otel.observer],
    )

    assert exceptions(otel.span("m attempt 1", item=0))[0]["exception.type"] == "LookupError"
    assert exceptions(otel.span("m item", item=0)) == []
    assert exceptions(otel.span("m"))[0]["exception.type"] == "ExceptionGroup"
    assert ends(otel, "RUN")[3] == "ExceptionGroup"


async def test_an_error_that_raises_when_inspected_is_still_recorded(otel):
    async def refuse():
        raise HostileError

    await run_pipeline([WorkflowStep("a", refuse)], observers=[otel.observer])

    assert ends(otel, "a attempt 1")[3] == "results.HostileError"
    assert ends(otel, "RUN")[0] == "failure"


async def test_an_error_restored_from_a_report_keeps_its_type(otel):
    async def restore():
        raise RestoredError("builtins.KeyError", "'x'", "the first traceback")

    await run_pipeline([WorkflowStep("a", restore)], observers=[otel.observer])

    (recorded,) = exceptions(otel.span("a attempt 1"))
    assert dict(recorded) == {
        "exception.type": "KeyError",
        "exception.message": "'x'",
        "exception.stacktrace": "the first traceback",
    }
    assert ends(otel, "a")[3] == "KeyError"


async def test_text_that_cannot_be_encoded_is_escaped(otel):
    name = "a\ud800\n"

    async def act():
        raise ValueError("\udfff")

    await run_pipeline([WorkflowStep(name, act)], name=name, run_id=name, observers=[otel.observer])

    assert len(otel.spans) == 3
    for span in otel.spans:
        span.to_json().encode()
        for values in (span.attributes, *(event.attributes for event in span.events)):
            assert "\ud800" not in str(dict(values))
            str(list(values.values())).encode()
    assert otel.span("a\\ud800\\n").attributes["cicd.pipeline.task.name"] == "a\\ud800\n"
    for points in otel.metrics().values():
        for point in points:
            str(dict(point.attributes)).encode()


async def test_inputs_and_outputs_are_in_no_span_and_no_metric(otel):
    async def act(password):
        return f"hello {password}"

    async def take(a):
        return [a]

    await run_pipeline(
        [WorkflowStep("a", act, secret=True), WorkflowStep("b", take, ["a"])],
        inputs={"password": "hunter2"},
        secret_inputs=["password"],
        observers=[otel.observer],
    )

    assert len(otel.spans) == 5
    assert "hunter2" not in "".join(span.to_json() for span in otel.spans)
    assert "hunter2" not in repr(otel.metrics())


def test_a_blocked_loop_and_an_abandoned_thread_are_events_of_the_attempts_span(otel):
    observe = otel.observer.for_run()
    for event in [
        RunStarted("r", 1_000.0, {"a": ()}),
        AttemptStarted("a", 1, 0.0),
        LoopBlocked("a", 1, 400.0, 350.0, "etl.py:12 in load"),
        ThreadAbandoned("a", 1, 500.0),
        StepSucceeded("a", 1, 600.0, None),
        LoopBlocked("a", 1, 610.0, 350.0, "etl.py:12 in load"),  # the attempt has already ended
        RunFinished(700.0, RunStatus.PASSED),
    ]:
        observe(event)

    blocked, abandoned = otel.span("a attempt 1").events
    assert blocked.name == "asyncflow.loop_blocked"
    assert dict(blocked.attributes) == {
        "asyncflow.blocked_ms": 350.0,
        "asyncflow.where": "etl.py:12 in load",
    }
    assert blocked.timestamp == 1_000_400_000_000
    assert abandoned.name == "asyncflow.thread_abandoned"
    assert abandoned.timestamp == 1_000_500_000_000


async def test_calls_by_name_are_events_of_the_span_of_their_step_or_item(otel):
    async def ask():
        await asyncio.sleep(0.25)

    async def loop(two):
        if current_step().attempt == 1:
            await current_step().call("ask-1", ask)
            raise ValueError("not yet")
        await current_step().call("ask-1", ask)  # it was stored
        await current_step().call("ask-2", ask)

    steps = [
        WorkflowStep("two", two),
        WorkflowStep("loop", loop, ["two"], map_over="two", max_retries=2, retry=0),
    ]
    await run_pipeline(steps, observers=[otel.observer])

    calls = [event for event in otel.span("loop item", item=0).events if event.name == "call"]
    assert [dict(each.attributes) for each in calls] == [
        {
            "asyncflow.call.name": f"ask-{attempt}",
            "asyncflow.call.duration_ms": 250.0,
            "asyncflow.attempt": attempt,
        }
        for attempt in (1, 2)
    ]


def test_the_span_of_an_attempt_says_on_which_engine_and_worker_it_ran(otel):
    observe = otel.observer.for_run()
    for event in [
        RunStarted("r", 1_000.0, {"a": ()}),
        AttemptStarted("a", 1, 100.0, 40.0, engine="dask"),
        AttemptBegan("a", 1, 300.0, "dask", "w1"),
        StepSucceeded("a", 1, 600.0, None),
        RunFinished(700.0, RunStatus.PASSED),
    ]:
        observe(event)

    span = otel.span("a attempt 1")
    assert span.start_time == 1_000_100_000_000
    assert (span.attributes["asyncflow.engine"], span.attributes["asyncflow.worker"]) == (
        "dask",
        "w1",
    )
    (began,) = span.events
    assert (began.name, began.timestamp) == ("asyncflow.began", 1_000_300_000_000)
    assert dict(began.attributes) == {"asyncflow.worker": "w1"}


# Resumed runs.


async def test_a_resumed_run_has_its_own_trace_and_marks_reused_steps(otel):
    journal, events = MemoryJournal(), []
    steps = [
        WorkflowStep("a", two),
        WorkflowStep("m", slow, ["a"], map_over="a"),
        WorkflowStep("b", slow, ["m"]),
    ]
    options = {"run_id": "r", "name": "etl", "max_concurrency": 1}
    await run_pipeline(steps, journal=journal, observers=[otel.observer], **options)
    again = Telemetry()
    left = journal.died_after(7, "r")

    await run_pipeline(steps, journal=left, observers=[again.observer, events.append], **options)

    run = again.span("RUN etl")
    assert run.attributes["cicd.pipeline.run.id"] == "r"
    assert run.attributes["asyncflow.resumed"] is True
    assert run.context.trace_id != otel.span("RUN etl").context.trace_id
    assert "asyncflow.resumed" not in otel.span("RUN etl").attributes
    assert again.span("a").attributes["asyncflow.reused"] is True
    assert again.span("m item", item=0).attributes["asyncflow.reused"] is True
    assert ends(again, "a") == ("success", "OK", None, None)
    assert again.links(again.span("m")) == ["a"]
    resumed = events[0]
    assert run.start_time == pytest.approx(resumed.wall_time * 1e9, abs=1_000)
    passed_ms = events[-1].at_ms - resumed.at_ms
    assert run.end_time - run.start_time == pytest.approx(passed_ms * 1e6, abs=1_000)


def test_of_steps_that_fail_at_one_moment_the_first_one_of_the_run_is_its_failure(otel):
    observe = otel.observer.for_run()

    for event in [
        RunStarted("r", 1.0, {"a": (), "b": (), "c": ()}),
        *(AttemptStarted(step, 1, 0.0) for step in "abc"),
        StepFailed("b", 1, 1.0, KeyError("b")),
        StepFailed("a", 1, 1.0, LookupError("a")),
        StepFailed("c", 1, 2.0, OSError("c")),
        RunFinished(3.0, RunStatus.FAILED),
    ]:
        observe(event)

    assert otel.spans[-1].attributes["error.type"] == "LookupError"


def test_a_resumed_run_does_not_inherit_the_stop_of_the_earlier_segment(otel):
    observe = otel.observer.for_run()

    for event in [
        RunStarted("r", 1.0, {"a": ()}, pipeline="etl"),
        AttemptStarted("a", 1, 0.0),
        StepFailed("a", 1, 1.0, LookupError("nothing there")),
        RunTimedOut(2.0, 2.0),
        RunFinished(3.0, RunStatus.FAILED),
        RunResumed("r", 3.0, 1_000.0, {"a": ()}, {}, pipeline="etl"),
        RunFinished(4.0, RunStatus.FAILED),
    ]:
        observe(event)

    before, after = otel.spans[-2:]
    assert before.attributes["cicd.pipeline.result"] == "timeout"
    assert before.attributes["error.type"] == "LookupError"
    assert after.attributes["cicd.pipeline.result"] == "failure"
    assert "error.type" not in after.attributes
    durations = otel.metrics()["cicd.pipeline.run.duration"]
    results = [point.attributes["cicd.pipeline.result"] for point in durations]
    assert sorted(results) == ["failure", "timeout"]


# Memory.


async def test_without_a_collector_a_dropped_report_frees_what_observed_steps_held(otel):
    hold = Holding()

    async def act(**_):
        one = hold()
        if len(hold) > 1:
            raise ValueError
        return one

    log = logging.Logger("test")
    log.addHandler(logging.NullHandler())
    with without_collector():
        report = await run_pipeline(
            [WorkflowStep("a", act), WorkflowStep("b", act, ["a"], max_retries=2)],
            observers=[otel.observer, LoggingObserver(log)],
        )
        assert len(hold) == 3
        assert len(hold.alive()) == 3
        del report
        assert hold.alive() == []


# Without an SDK, and with one that fails.


@pytest.mark.parametrize("provider", [None, NoOpTracerProvider()])
async def test_without_an_sdk_nothing_happens(provider):
    report = await run_pipeline(
        [WorkflowStep("a", flaky(), max_retries=2), WorkflowStep("b", fail, ["a"])],
        observers=[OpenTelemetryObserver(provider)],
    )

    assert len(report.failed) == 1


class Failing(SpanProcessor):
    """Raises at its n-th call."""

    def __init__(self, count):
        self.left = count

    def on_start(self, span, parent_context=None):
        self.on_end(span)

    def on_end(self, span):
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("the processor is broken")


@pytest.mark.parametrize("count", range(1, 18))
async def test_when_the_sdk_fails_nothing_stays_open_or_in_flight(count, caplog):
    otel = Telemetry(Failing(count))

    report = await run_pipeline(
        [
            WorkflowStep("a", two),
            WorkflowStep("m", flaky(), ["a"], map_over="a", max_retries=2),
            WorkflowStep("b", slow),
        ],
        observers=[otel.observer],
    )

    assert report.all_passed
    assert "the processor is broken" in caplog.text
    assert otel.in_flight() == {}
    assert all(span.end_time is not None for span in otel._exporter.get_finished_spans())


def test_a_dropped_observer_of_an_unfinished_run_leaves_nothing_open(otel):
    observe = otel.observer.for_run()
    observe(RunStarted("r", 1_000.0, {"a": ()}))
    observe(AttemptStarted("a", 1, 0.0))
    assert otel.in_flight() == {"cicd.pipeline.run.active": 1, "asyncflow.attempts.active": 1}

    del observe
    gc.collect()

    assert otel.in_flight() == {}
    assert [span.name for span in otel.spans] == ["a attempt 1", "a", "RUN"]
    assert {status_of(span) for span in otel.spans} == {("ERROR", "did not finish")}


async def test_the_spans_of_all_segments_carry_the_attributes_of_the_run(otel):
    journal, outcomes = MemoryJournal(), iter([LookupError("nothing there"), "the output"])

    async def flaky():
        outcome = next(outcomes)
        if isinstance(outcome, LookupError):
            raise outcome
        return outcome

    for attributes in ({"tenant": "a\ud800", "tier": 2, "urgent": True}, {}):
        await run_pipeline(
            [WorkflowStep("a", flaky)],
            journal=journal,
            run_id="r",
            attributes=attributes,
            observers=[otel.observer],
        )

    found = [dict(span.attributes) for span in otel.spans if span.name == "RUN"]
    assert len(found) == 2
    for each in found:
        assert {name: value for name, value in each.items() if ".run.attribute." in name} == {
            "asyncflow.run.attribute.tenant": "a\\ud800",
            "asyncflow.run.attribute.tier": 2,
            "asyncflow.run.attribute.urgent": True,
        }
