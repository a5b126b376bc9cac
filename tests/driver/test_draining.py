"""A run that drains: what is running ends, and nothing else starts."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from functools import wraps
from typing import Any

import pytest
from fake_engine import FakeEngine
from memory_journal import MemoryJournal

from asyncflow import (
    JournalError,
    Orchestrator,
    Pool,
    RunCancelledError,
    RunStatus,
    WorkflowStep,
    run_pipeline,
)
from asyncflow.events import Event, RunInterrupted
from asyncflow.testing import run_in_virtual_time


def in_virtual_time(test: Any) -> Any:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        run_in_virtual_time(test(*args, **kwargs))

    return run


def step(name: str, seconds: float, *depends_on: str, **policies: Any) -> WorkflowStep:
    async def act() -> str:
        await asyncio.sleep(seconds)
        return name

    return WorkflowStep(name, act, depends_on, timeout_ms=None, **policies)


def statuses(error: pytest.ExceptionInfo[RunCancelledError]) -> dict[str, str]:
    assert error.value.report is not None
    return {name: result.status.name for name, result in error.value.report.items()}


def now_s() -> float:
    return asyncio.get_running_loop().time() - 1_000  # where virtual time starts


@pytest.mark.parametrize("journal", [None, MemoryJournal()])
@in_virtual_time
async def test_running_steps_end_and_the_others_are_skipped(journal: Any) -> None:
    steps = [step("a", 1), step("b", 5), step("c", 1, "a", "b"), step("d", 1, "c")]
    pipeline = Orchestrator(steps, schedule="ready", journal=journal)

    async with pipeline.start() as run:
        await asyncio.sleep(2)
        run.drain("of a deployment")
        run.drain("again")
        with pytest.raises(RunCancelledError, match="of a deployment") as stopped:
            await run.report()

    assert now_s() == 5
    assert statuses(stopped) == {"a": "SUCCESS", "b": "SUCCESS", "c": "SKIPPED", "d": "SKIPPED"}
    assert stopped.value.report["d"].reason == "of a deployment"  # type: ignore[index]
    assert run.status == "INTERRUPTED"


@in_virtual_time
async def test_a_run_of_which_only_running_steps_are_left_passes() -> None:
    events: list[Event] = []
    steps = [step("a", 1), step("b", 5, "a"), step("c", 3, "a")]

    async with Orchestrator(steps, observers=[events.append]).start() as run:
        await asyncio.sleep(2)
        run.drain("of a deployment")
        report = await run.report()
        run.drain("too late")

    assert report.all_passed
    assert not [event for event in events if isinstance(event, RunInterrupted)]


@pytest.mark.parametrize("journal", [None, MemoryJournal()])
@in_virtual_time
async def test_what_waits_for_a_worker_of_an_engine_does_not_begin_any_more(journal: Any) -> None:
    engine = FakeEngine(workers=1)
    steps = [step("a", 5), step("b", 5), step("here", 3, engine="local")]
    pipeline = Orchestrator(steps, engine=engine, journal=journal).with_options(run_id="r")

    async with pipeline.start() as run:
        await asyncio.sleep(1)
        run.drain("of a deployment")
        with pytest.raises(RunCancelledError) as stopped:
            await run.report()

    assert now_s() == 5
    assert statuses(stopped) == {"a": "SUCCESS", "b": "CANCELLED", "here": "SUCCESS"}
    if journal is not None:
        report = await pipeline.run()
        assert report.all_passed
        assert [each.step_name for each in report.reused] == ["a", "here"]


@in_virtual_time
async def test_no_attempt_follows_one_that_fails_meanwhile() -> None:
    calls: list[float] = []

    async def fail() -> None:
        calls.append(now_s())
        await asyncio.sleep(1)
        raise ConnectionError("again")

    steps = [WorkflowStep("fail", fail, max_retries=3, retry=1_000), step("other", 10)]
    async with Orchestrator(steps).start() as run:
        await asyncio.sleep(0.5)
        run.drain("of a deployment")
        with pytest.raises(RunCancelledError) as stopped:
            await run.report()

    assert calls == [0]
    assert now_s() == 10  # the other one had been running
    assert statuses(stopped) == {"fail": "CANCELLED", "other": "SUCCESS"}
    assert isinstance(stopped.value.report["fail"].error, ConnectionError)  # type: ignore[index]


@in_virtual_time
async def test_a_step_that_fails_for_good_meanwhile_fails_its_run() -> None:
    async def fail() -> None:
        await asyncio.sleep(1)
        raise ConnectionError("down")

    retried = WorkflowStep("retried", fail, max_retries=2, retry=1_000)
    steps = [retried, WorkflowStep("fail", fail), step("other", 10)]
    async with Orchestrator(steps).start() as run:
        await asyncio.sleep(0.5)
        run.drain("of a deployment")
        report = await run.report()

    assert now_s() == 1
    assert report.status == "FAILED"
    assert report["other"].status.name == "CANCELLED"


@in_virtual_time
async def test_a_cancellation_stops_what_is_running() -> None:
    async with Orchestrator([step("a", 60), step("b", 1, "a")]).start() as run:
        await asyncio.sleep(1)
        run.drain("of a deployment")
        await asyncio.sleep(1)
        run.cancel("out of time")
        with pytest.raises(RunCancelledError) as stopped:
            await run.report()

    assert now_s() == 2
    assert statuses(stopped) == {"a": "CANCELLED", "b": "SKIPPED"}


@in_virtual_time
async def test_items_that_run_end_and_the_others_never_start() -> None:
    async def three() -> list[int]:
        return [1, 2, 3]

    async def act(three: int) -> int:
        await asyncio.sleep(three)
        return three

    steps = [
        WorkflowStep("three", three),
        WorkflowStep("each", act, ["three"], map_over="three", timeout_ms=None),
    ]
    async with Orchestrator(steps, max_concurrency=2).start() as run:
        await asyncio.sleep(0.5)
        run.drain("of a deployment")
        with pytest.raises(RunCancelledError) as stopped:
            await run.report()

    assert now_s() == 2
    assert stopped.value.report is not None
    items = stopped.value.report["each"].items
    assert [item.output for item in items] == [1, 2]


def nesting(journal: Any, *inner: WorkflowStep, after_s: float = 0) -> Orchestrator:
    """A pipeline whose first step runs a nested run of these steps, after some time."""

    async def nests() -> None:
        await asyncio.sleep(after_s)
        report = await run_pipeline(inner, journal=journal, run_id="nested")
        report.raise_for_failures()

    steps = [
        WorkflowStep("nests", nests, timeout_ms=None),
        step("beside", 6),
        step("last", 1, "nests"),
    ]
    return Orchestrator(steps, journal=journal).with_options(run_id="outer")


@pytest.mark.parametrize("after_s", [0, 3])
@in_virtual_time
async def test_a_nested_run_drains_with_its_outer_run(after_s: float) -> None:
    journal, begun = MemoryJournal(), list[str]()

    def inner(name: str, *depends_on: str) -> WorkflowStep:
        async def act() -> str:
            begun.append(name)
            await asyncio.sleep(5)
            return name

        return WorkflowStep(name, act, depends_on)

    pipeline = nesting(journal, inner("first"), inner("second", "first"), after_s=after_s)
    async with pipeline.start() as run:
        await asyncio.sleep(2)
        run.drain("of a deployment")
        with pytest.raises(RunCancelledError) as stopped:
            await run.report()

    # What runs has ended: the first step of the nested run, and the one beside it. A nested run
    # that comes later starts nothing at all.
    assert now_s() == 6
    assert begun == ([] if after_s else ["first"])
    assert statuses(stopped) == {"nests": "CANCELLED", "beside": "SUCCESS", "last": "SKIPPED"}
    causes = [e.cause for e in journal.stored["nested"] if isinstance(e, RunInterrupted)]
    assert causes == ["drained"]
    assert not journal.open_sessions
    report = await pipeline.run()
    assert report.all_passed
    assert begun == ["first", "second"]


@in_virtual_time
async def test_a_step_continues_whose_nested_run_is_complete() -> None:
    async with nesting(MemoryJournal(), step("only", 3)).start() as run:
        await asyncio.sleep(2)
        run.drain("of a deployment")
        with pytest.raises(RunCancelledError) as stopped:
            await run.report()

    assert statuses(stopped) == {"nests": "SUCCESS", "beside": "SUCCESS", "last": "SKIPPED"}


@in_virtual_time
async def test_a_nested_run_that_stands_still_leaves_others_of_its_step_their_time() -> None:
    journal = MemoryJournal()

    async def nests() -> None:
        async with asyncio.TaskGroup() as group:
            for run_id, steps in {
                "short": [step("a", 2), step("b", 1, "a")],
                "middling": [step("a", 3), step("b", 1, "a")],
                "long": [step("a", 5)],
            }.items():
                group.create_task(run_pipeline(steps, journal=journal, run_id=run_id))

    pipeline = Orchestrator([WorkflowStep("nests", nests)], journal=journal)
    async with pipeline.with_options(run_id="outer").start() as run:
        await asyncio.sleep(1)
        run.drain("of a deployment")
        with pytest.raises(RunCancelledError) as stopped:
            await run.report()

    assert now_s() == 5
    assert statuses(stopped) == {"nests": "CANCELLED"}
    ends = {run_id: events[-1] for run_id, events in journal.stored.items()}
    assert {run_id: (end.status, end.cause) for run_id, end in ends.items()} == {
        "outer": ("INTERRUPTED", "drained"),
        "short": ("INTERRUPTED", "drained"),
        "middling": ("INTERRUPTED", "drained"),
        "long": ("PASSED", None),
    }


@in_virtual_time
async def test_a_cancellation_reaches_a_nested_run_that_stands_still() -> None:
    journal = MemoryJournal()

    async def nests() -> None:
        steps = [step("a", 2), step("b", 1, "a")]
        async with asyncio.TaskGroup() as group:
            group.create_task(run_pipeline(steps, journal=journal, run_id="nested"))
            group.create_task(run_pipeline([step("long", 60)], journal=journal, run_id="other"))

    pipeline = Orchestrator([WorkflowStep("nests", nests, timeout_ms=None)])
    async with pipeline.start() as run:
        await asyncio.sleep(1)
        run.drain("of a deployment")
        await asyncio.sleep(3)
        run.drain("out of time", spare_running=False)
        with pytest.raises(RunCancelledError):
            await run.report()

    assert now_s() == 4
    assert not journal.open_sessions


@in_virtual_time
async def test_a_nested_run_that_outlives_its_outer_run_ends_as_drained() -> None:
    nested = list[asyncio.Task[Any]]()

    async def leaves_it_behind() -> None:
        steps = [step("a", 5), step("b", 1, "a")]
        nested.append(asyncio.create_task(run_pipeline(steps)))
        await asyncio.sleep(2)

    steps = [WorkflowStep("nests", leaves_it_behind), step("last", 1, "nests")]
    async with Orchestrator(steps).start() as run:
        await asyncio.sleep(1)
        run.drain("of a deployment")
        with pytest.raises(RunCancelledError):
            await run.report()
    assert now_s() == 2

    with pytest.raises(RunCancelledError) as stopped:
        await nested[0]

    assert now_s() == 5
    assert statuses(stopped) == {"a": "SUCCESS", "b": "SKIPPED"}


@in_virtual_time
async def test_a_nested_run_drains_without_its_outer_run() -> None:
    statuses_of_nested = list[dict[str, str]]()

    async def nests() -> None:
        async with Orchestrator([step("a", 2), step("b", 1, "a")]).start() as run:
            await asyncio.sleep(1)
            run.drain("of a deployment")
            with pytest.raises(RunCancelledError) as stopped:
                await run.report()
        statuses_of_nested.append(statuses(stopped))

    report = await run_pipeline([WorkflowStep("nests", nests), step("last", 1, "nests")])

    assert statuses_of_nested == [{"a": "SUCCESS", "b": "SKIPPED"}]
    assert report.all_passed


@in_virtual_time
async def test_a_run_that_has_not_begun_is_cancelled() -> None:
    run = Orchestrator([step("a", 1)]).start()
    run.drain("of a deployment")

    with pytest.raises(RunCancelledError, match="of a deployment"):
        await run.__aenter__()


@in_virtual_time
async def test_a_resumed_run_that_drains_at_once_keeps_its_results() -> None:
    journal = MemoryJournal()
    steps = [step(f"s{n}", 0) for n in range(250)] + [step("last", 9, "s0")]
    pipeline = Orchestrator(steps, journal=journal).with_options(run_id="r")
    async with pipeline.start() as run:
        await asyncio.sleep(1)

    async with pipeline.start() as run:
        run.drain("of a deployment")
        with pytest.raises(RunCancelledError):
            await run.report()

    report = await pipeline.run()
    assert report.all_passed
    assert len(report.reused) == 250


@in_virtual_time
async def test_flush_waits_until_the_start_is_stored_or_the_run_has_failed() -> None:
    journal = MemoryJournal(latency_s=2)
    async with Orchestrator([step("a", 9)], journal=journal).start() as run:
        begun_s = now_s()
        await run.flush()
        assert now_s() == begun_s + 2

    async with Orchestrator([step("a", 9)]).start() as run:
        await run.flush()

    failing = MemoryJournal(latency_s=2, fail_at=1)
    async with Orchestrator([step("a", 9)], journal=failing).start() as run:
        with pytest.raises(JournalError):
            await run.flush()


@pytest.mark.parametrize("schedule", ["tiers", "ready"])
@in_virtual_time
async def test_a_run_that_drains_in_any_turn_resumes_and_repeats_nothing(schedule: Any) -> None:
    pool = Pool(1)
    for turns in itertools.count():
        done: list[str] = []
        failures = ["flaky"]

        async def numbers(done: list[str] = done) -> list[int]:
            done.append("numbers")
            return [1, 2, 3]

        async def flaky(done: list[str] = done, failures: list[str] = failures) -> None:
            await asyncio.sleep(0)
            if failures:
                failures.pop()
                raise ConnectionError("again")
            done.append("flaky")

        async def each(numbers: int, done: list[str] = done) -> int:
            await asyncio.sleep(0)
            done.append(f"each {numbers}")
            return numbers

        async def clean_up(done: list[str] = done) -> None:
            done.append("clean up")

        steps = [
            WorkflowStep("numbers", numbers),
            WorkflowStep("flaky", flaky, max_retries=2, retry=0),
            WorkflowStep("each", each, ["numbers"], map_over="numbers", pool=pool),
            WorkflowStep("clean up", clean_up, ["each"], run_if="always"),
        ]
        pipeline = Orchestrator(
            steps, schedule=schedule, max_concurrency=2, journal=MemoryJournal()
        ).with_options(run_id="r")
        with suppress(RunCancelledError):
            async with pipeline.start() as run:
                for _ in range(turns):
                    await asyncio.sleep(0)
                has_ended = run.status is not RunStatus.RUNNING
                run.drain("of a deployment")
                await run.report()

        report = await pipeline.run()

        assert report.all_passed, turns
        assert sorted(done) == ["clean up", "each 1", "each 2", "each 3", "flaky", "numbers"], turns
        if has_ended:
            break
