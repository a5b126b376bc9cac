"""Runs are measured in seconds, and none stays in flight."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from fake_engine import FakeEngine
from hypothesis import given
from hypothesis import strategies as st
from memory_journal import MemoryJournal
from random_runs import RUN_ID, RandomPipeline, key_of
from telemetry import Telemetry
from turn_counting import TurnCountingLoop

from asyncflow import JournalError, Orchestrator, Pool, WorkflowStep, current_step, run_pipeline
from asyncflow.events import (
    AttemptBegan,
    AttemptStarted,
    RunFinished,
    RunResumed,
    RunStarted,
    StepCancelled,
    StepFailed,
    StepReused,
    StepSkipped,
    StepSucceeded,
)
from asyncflow.journal import SQLiteJournal
from asyncflow.otel import OpenTelemetryObserver
from asyncflow.service import Service

SETTLED = StepSucceeded | StepFailed | StepCancelled | StepSkipped | StepReused


async def instant(**_):
    return [1, 2, 3]


async def flaky(**_):
    await asyncio.sleep(0.5)
    if current_step().attempt == 1:
        raise ValueError


async def fail(**_):
    await asyncio.sleep(0.5)
    raise LookupError


def points(otel, name):
    """Return the sums of histograms, or the values of counters, by attributes."""
    return {
        tuple(sorted(point.attributes.items())): getattr(point, "sum", getattr(point, "value", 0))
        for point in otel.metrics()[name]
    }


def counts(otel, name):
    return [point.count for point in otel.metrics()[name]]


ETL = ("cicd.pipeline.name", "etl")


async def test_runs_and_steps_are_measured_in_seconds(otel):
    await run_pipeline(
        [WorkflowStep("a", flaky, max_retries=2, retry=1_000), WorkflowStep("b", fail, ["a"])],
        name="etl",
        observers=[otel.observer],
    )

    run = ETL, ("cicd.pipeline.result", "failure"), ("cicd.pipeline.run.state", "executing")
    assert points(otel, "cicd.pipeline.run.duration") == {run: pytest.approx(2.5)}
    assert points(otel, "asyncflow.step.duration") == {
        (
            ETL,
            ("cicd.pipeline.task.name", "a"),
            ("cicd.pipeline.task.run.result", "success"),
        ): pytest.approx(2.0),
        (
            ETL,
            ("cicd.pipeline.task.name", "b"),
            ("cicd.pipeline.task.run.result", "failure"),
        ): pytest.approx(0.5),
    }
    assert {otel.units()[name] for name in otel.units() if name.endswith("duration")} == {"s"}


async def test_the_boundaries_of_durations_suit_seconds(otel):
    await run_pipeline([WorkflowStep("a", instant)], observers=[otel.observer])

    (point,) = otel.metrics()["asyncflow.step.duration"]
    assert point.explicit_bounds[0] < 0.005
    assert 3_600 in point.explicit_bounds


async def test_attempts_and_their_errors_are_counted(otel):
    await run_pipeline(
        [
            WorkflowStep("a", flaky, max_retries=2),
            WorkflowStep("b", fail, ["a"], fallback=lambda error: None),
        ],
        name="etl",
        observers=[otel.observer],
    )

    assert points(otel, "asyncflow.attempts") == {
        (("asyncflow.attempt.result", result), ETL, ("cicd.pipeline.task.name", step)): 1
        for step, result in [("a", "failure"), ("a", "success"), ("b", "failure")]
    }
    assert points(otel, "cicd.pipeline.run.errors") == {
        (ETL, ("error.type", "ValueError")): 1,
        (ETL, ("error.type", "LookupError")): 1,
    }


async def test_the_queue_time_of_each_attempt_is_measured(otel):
    async def slow(**_):
        await asyncio.sleep(2)

    await run_pipeline(
        [WorkflowStep("a", instant), WorkflowStep("m", slow, ["a"], map_over="a")],
        max_concurrency=1,
        observers=[otel.observer],
    )

    by = {dict(key)["cicd.pipeline.task.name"]: each for key, each in points(otel, QUEUED).items()}
    assert by == {"a": 0, "m": pytest.approx(4.0)}  # an item is queued when the one before starts
    assert sum(counts(otel, QUEUED)) == 4
    assert sum(counts(otel, "asyncflow.step.duration")) == 2  # items are no steps


async def test_the_wait_for_a_worker_is_a_part_of_the_queue_time(otel):
    steps = [WorkflowStep("a", instant), WorkflowStep("b", flaky, timeout_ms=1)]

    await run_pipeline(steps, engine=FakeEngine(workers=1), observers=[otel.observer])
    observe = otel.observer.for_run()
    for event in [
        RunStarted("r", 1_000.0, {"c": ()}),
        AttemptStarted("c", 1, 2_000.0, 1_000.0, engine="dask"),
        AttemptBegan("c", 1, 5_000.0, "dask", "w1"),
        StepSucceeded("c", 1, 6_000.0, None),
        AttemptStarted("d", 1, 2_000.0, engine="dask"),
        StepCancelled("d", 1, 9_000.0, "stopped", None),
    ]:
        observe(event)

    by = {dict(key)["cicd.pipeline.task.name"]: each for key, each in points(otel, QUEUED).items()}
    assert by == {"a": 0, "b": 0, "c": 4.0}  # d has not begun


QUEUED = "asyncflow.attempt.queue.duration"


async def test_runs_and_attempts_in_flight_are_counted(otel):
    seen = []

    async def look(**_):
        seen.append({name: points(otel, name) for name in otel.in_flight()})

    await run_pipeline(
        [WorkflowStep("a", instant), WorkflowStep("b", look, ["a"])],
        name="etl",
        observers=[otel.observer],
    )

    (seen,) = seen
    assert sum(seen["asyncflow.attempts.active"].values()) == 1
    assert seen["cicd.pipeline.run.active"] == {
        (ETL, ("cicd.pipeline.run.state", "executing")): 1,
    }
    assert otel.in_flight() == {}


# For any run, however it ends.


def in_loop(main, seed):
    loop = TurnCountingLoop(None, eager=seed % 3 == 0)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main)


async def observed(pipeline, journal, otel, turn=None):
    """Run a random pipeline, cancelled in the given turn; return its events."""
    loop = asyncio.get_running_loop()
    world, events = pipeline.world(journal), []
    if journal.latency_s is None:
        journal, world.enter = None, lambda context: (context.step_name, context.item)
    task = asyncio.Task(
        run_pipeline(
            pipeline.steps(world),
            run_id=RUN_ID,
            journal=journal,
            observers=[otel.observer, events.append, world.observe],
            **pipeline.options,
        )
    )
    loop.turn, loop.turns, loop.cancel_accepted, loop.victim = turn, 0, False, task
    await asyncio.wait([task])
    loop.victim = None
    assert task.cancelled() or isinstance(task.exception(), JournalError | None)
    return events


def check(otel, events):
    """Spans and counts match the events, and nothing is in flight."""
    assert otel.in_flight() == {}
    spans = otel.spans  # all have ended
    if not events:  # the run never started, or it had passed before
        assert spans == []
        return
    attempts = Counter((e.step, e.attempt) for e in events if isinstance(e, AttemptStarted))
    named = Counter(s.name for s in spans if "asyncflow.attempt" in s.attributes)
    assert named == {f"{step} attempt {number}": n for (step, number), n in attempts.items()}
    steps = {key_of(event) for event in events if isinstance(event, SETTLED)}
    settled = [s.attributes for s in spans if "cicd.pipeline.task.run.result" in s.attributes]
    assert len(settled) == len(steps)
    assert {(s["cicd.pipeline.task.name"], s.get("asyncflow.item")) for s in settled} == steps
    started, finished = events[0], events[-1]
    assert isinstance(started, RunStarted | RunResumed)
    assert isinstance(finished, RunFinished)
    assert len(spans) == 1 + len(settled) + attempts.total()
    by_id = {span.context.span_id: span for span in spans}
    for span in spans:
        if span.parent is not None:
            above = by_id[span.parent.span_id]
            assert above.start_time <= span.start_time <= span.end_time <= above.end_time
    counted = sum(point.value for point in otel.metrics().get("asyncflow.attempts", []))
    assert counted == attempts.total()


@given(seed=st.integers(0, 1_000_000))
def test_spans_and_counts_match_the_events_of_any_run(seed):
    pipeline, otel = RandomPipeline(seed), Telemetry()
    journal = MemoryJournal(latency_s=pipeline.latency_s if seed % 2 else None)

    check(otel, in_loop(observed(pipeline, journal, otel), seed))


@given(seed=st.integers(0, 1_000_000), turn=st.integers(0, 40), share=st.floats(0, 1))
def test_nothing_stays_in_flight_however_a_run_ends_and_resumes(seed, turn, share):
    pipeline, otel = RandomPipeline(seed), Telemetry()
    journal = MemoryJournal(latency_s=pipeline.latency_s)

    check(otel, in_loop(observed(pipeline, journal, otel, turn), seed))

    again = Telemetry()
    left = (
        journal.died_after(int(len(journal.stored.get(RUN_ID, ())) * share))
        if (RUN_ID in journal.stored)
        else MemoryJournal()
    )
    left.fail_at = random.Random(seed).choice([None, 1, 2, 5])
    check(again, in_loop(observed(pipeline, left, again), seed))


async def test_the_state_of_pools_is_measured_when_it_is_asked_for(otel):
    api, plain = Pool(3, retry_budget=0.5, name="api"), Pool(2)
    shared = Pool(4, name="shared", shared=True)
    OpenTelemetryObserver(otel.provider, otel.meters, pools=[api, plain, shared])
    ticket = api._take(2)
    api.pause(60_000)

    share = points(otel, "asyncflow.pool.slots.share")
    limit = points(otel, "asyncflow.pool.slots.limit")
    used = points(otel, "asyncflow.pool.slots.used")
    paused = points(otel, "asyncflow.pool.pause.remaining")
    retries = points(otel, "asyncflow.pool.retries.remaining")
    ticket.release()

    of_api, of_plain, of_shared = [
        (("asyncflow.pool.name", name),) for name in ("api", "", "shared")
    ]
    assert limit == {of_api: 3, of_plain: 2, of_shared: 4}
    assert share == {of_shared: 0}  # no attempt here needs one
    assert used == {of_api: 2, of_plain: 0, of_shared: 0}
    assert paused[of_plain] == 0
    assert 50 < paused[of_api] <= 60
    assert retries == {of_api: 10}
    with pytest.raises(TypeError, match="pools must hold Pool objects, not int"):
        OpenTelemetryObserver(otel.provider, otel.meters, pools=[3])


async def test_keys_of_pools_are_measured_while_they_have_slots_or_wait(otel):
    async def act(tenant):
        await asyncio.sleep(1)

    pool = Pool(2, per_key=1, name="shop")
    OpenTelemetryObserver(otel.provider, otel.meters, pools=[pool])
    names = ("slots.used", "waiting")

    def measured():
        found = [points(otel, f"asyncflow.pool.key.{name}") for name in names]
        return {dict(at)["asyncflow.pool.key"]: [of[at] for of in found] for at in found[0]}

    steps = [
        WorkflowStep("tenants", lambda: asyncio.sleep(0, ["a", "a", "b", "\ud800"])),
        WorkflowStep(
            *("act", act, {"tenant": "tenants"}),
            map_over="tenants",
            pool=pool,
            pool_key=lambda tenant: tenant,
        ),
    ]
    run = asyncio.ensure_future(run_pipeline(steps))
    await asyncio.sleep(0.5)
    at_first = measured()
    await asyncio.sleep(1)
    later = measured()
    await run

    assert at_first == {"a": [1, 1], "b": [1, 0], "\\ud800": [0, 1]}
    assert later == {"a": [1, 0], "\\ud800": [1, 0]}
    assert "asyncflow.pool.key.waiting" not in otel.metrics()


async def test_queues_and_places_of_services_are_measured_when_it_is_asked_for(otel):
    started = asyncio.Event()

    async def work():
        started.set()
        await asyncio.sleep(1_000)

    journal = SQLiteJournal(":memory:")
    pipeline = Orchestrator([WorkflowStep("work", work)], name="etl")
    async with journal, Service([pipeline], journal=journal, max_runs=1) as service:
        OpenTelemetryObserver(otel.provider, otel.meters, services=[service])
        await service.enqueue("etl", key="a")
        await started.wait()
        await service.enqueue("etl", key="a")
        await service.enqueue("etl", delay_ms=60_000)
        await asyncio.sleep(10)

        measured = {name: points(otel, f"asyncflow.{name}").get(()) for name in (*QUEUE, *PLACES)}

        assert measured == {
            "queue.waiting": 2,
            "queue.due": 1,
            "queue.oldest_due": pytest.approx(10),
            "queue.blocked_keys": 1,
            "service.taken": 1,
            "service.max_runs": 1,
        }
        in_thread = await asyncio.to_thread(points, otel, "asyncflow.queue.waiting")
        assert in_thread == {(): 2}  # a meter usually collects in a thread of its own
        for run in service.runs:
            run.cancel()
    assert "asyncflow.queue.waiting" not in otel.metrics()  # the journal is closed
    with pytest.raises(TypeError, match="services must hold Service objects, not int"):
        OpenTelemetryObserver(otel.provider, otel.meters, services=[3])


QUEUE = ("queue.waiting", "queue.due", "queue.oldest_due", "queue.blocked_keys")
PLACES = ("service.taken", "service.max_runs")
