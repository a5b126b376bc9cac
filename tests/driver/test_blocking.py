"""A step that blocks the event loop is reported with the blocking line, in real time."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest

from asyncflow import Retry, RunReport, WorkflowStep, run_pipeline
from asyncflow._policies.loop_monitor import has_gil
from asyncflow.events import Event, LoopBlocked, RunFinished, StepFailed, StepSucceeded
from asyncflow.testing import run_in_virtual_time

pytestmark = [
    pytest.mark.realtime,
    pytest.mark.skipif(not has_gil(), reason="without a GIL no block is reported"),
]

BLOCK_S = 0.25


def block() -> None:
    time.sleep(BLOCK_S)  # this line blocks


async def blocks() -> str:
    block()
    return "done"


async def waits() -> None:
    for _ in range(20):
        await asyncio.sleep(0.01)


def run(*steps: WorkflowStep) -> tuple[RunReport, list[Event]]:
    events: list[Event] = []
    with asyncio.Runner() as runner:
        report = runner.run(run_pipeline(steps, fail_fast=False, observers=[events.append]))
    return report, events


def test_a_step_that_blocks_is_named_with_the_line(caplog: pytest.LogCaptureFixture) -> None:
    report, events = run(
        WorkflowStep("waits", waits),
        WorkflowStep("blocks", blocks, ["waits"]),
        WorkflowStep("after", waits, ["blocks"]),
    )

    (blocked,) = [event for event in events if isinstance(event, LoopBlocked)]
    assert (blocked.step, blocked.attempt, blocked.item) == ("blocks", 1, None)
    assert blocked.blocked_ms >= 100
    assert __file__ in blocked.where
    assert blocked.where.endswith("in block")
    assert report["blocks"].loop_blocked_ms == blocked.blocked_ms
    assert report["waits"].loop_blocked_ms == report["after"].loop_blocked_ms == 0
    (warning,) = caplog.records
    assert (warning.name, warning.levelno) == ("asyncflow", logging.WARNING)
    assert "step 'blocks', attempt 1, blocked the event loop" in warning.getMessage()
    assert blocked.where in warning.getMessage()


def test_a_block_at_the_end_of_a_run_is_reported_before_the_run_finishes() -> None:
    report, events = run(WorkflowStep("blocks", blocks))

    kinds = [type(event) for event in events]
    assert kinds.index(StepSucceeded) < kinds.index(LoopBlocked) < kinds.index(RunFinished)
    assert report["blocks"].output == "done"
    assert report["blocks"].loop_blocked_ms >= 100


def test_each_blocking_attempt_is_reported_and_the_result_has_the_sum() -> None:
    async def blocks_and_fails() -> None:
        block()
        raise ValueError

    report, events = run(WorkflowStep("blocks", blocks_and_fails, max_retries=2))

    blocked = [event for event in events if isinstance(event, LoopBlocked)]
    assert [event.attempt for event in blocked] == [1, 2]
    assert report["blocks"].loop_blocked_ms == sum(event.blocked_ms for event in blocked)
    assert isinstance(events[-2], StepFailed | LoopBlocked)


def test_a_block_in_a_nested_run_is_reported_by_that_run_alone() -> None:
    inner: list[Event] = []

    async def nested() -> None:
        await run_pipeline([WorkflowStep("inner", blocks)], observers=[inner.append])

    _, outer = run(WorkflowStep("nested", nested))

    assert [event.step for event in inner if isinstance(event, LoopBlocked)] == ["inner"]
    assert not [event for event in outer if isinstance(event, LoopBlocked)]


def blocking_steps(events: list[Event]) -> list[str]:
    return [event.step for event in events if isinstance(event, LoopBlocked)]


def test_a_condition_that_blocks_is_not_blamed_on_the_step_that_has_ended() -> None:
    def when() -> bool:
        block()
        return True

    report, events = run(
        WorkflowStep("first", waits), WorkflowStep("second", waits, ["first"], when=when)
    )

    assert report.all_passed
    assert blocking_steps(events) == []


def test_a_condition_that_blocks_is_not_blamed_on_a_mapped_step() -> None:
    async def numbers() -> list[int]:
        return [1, 2, 3]

    async def work(numbers: int) -> None:
        await asyncio.sleep(0.01)

    def when() -> bool:
        block()
        return True

    report, events = run(
        WorkflowStep("numbers", numbers),
        WorkflowStep("work", work, ["numbers"], map_over="numbers", max_retries=2),
        WorkflowStep("other", waits, ["numbers"], when=when),
    )

    assert report.all_passed
    assert blocking_steps(events) == []


def test_an_observer_that_blocks_is_not_blamed_on_the_step_of_its_event() -> None:
    events: list[Event] = []

    def observer(event: Event) -> None:
        events.append(event)
        if isinstance(event, StepSucceeded):
            block()

    with asyncio.Runner() as runner:
        runner.run(run_pipeline([WorkflowStep("waits", waits)], observers=[observer]))

    assert StepSucceeded in map(type, events)
    assert blocking_steps(events) == []


def test_an_until_that_blocks_is_not_blamed_on_a_step_in_a_thread() -> None:
    def until(_: object) -> bool:
        block()
        return True

    step = WorkflowStep(
        "thread", time.monotonic, runs_in="thread", max_retries=2, retry=Retry(until=until)
    )
    report, events = run(step)

    assert report.all_passed
    assert blocking_steps(events) == []


def test_the_blocking_attempt_is_found_whatever_the_name_of_its_step() -> None:
    async def numbers() -> list[int]:
        return [1, 2]

    async def work(numbers: int) -> None:
        if numbers == 2:
            block()

    async def third_party() -> None:
        await asyncio.sleep(0.3)
        block()

    async def main() -> list[Event]:
        events: list[Event] = []
        other = asyncio.create_task(third_party(), name="asyncflow:r:unknown#1")
        steps = [
            WorkflowStep("numbers", numbers),
            WorkflowStep("a#1[1]", work, ["numbers"], map_over="numbers"),
            WorkflowStep("a[1]", blocks, ["a#1[1]"]),
            WorkflowStep("b[]", waits, ["a[1]"]),
        ]
        await run_pipeline(steps, observers=[events.append], run_id="r")
        await other
        return events

    with asyncio.Runner() as runner:
        events = runner.run(main())

    blocked = [event for event in events if isinstance(event, LoopBlocked)]
    assert [(event.step, event.item) for event in blocked] == [("a#1[1]", 1), ("a[1]", None)]


def test_no_monitor_thread_outlives_a_short_run() -> None:
    before = threading.active_count()

    async def main() -> int:
        await run_pipeline([WorkflowStep("waits", waits)])
        return threading.active_count()

    with asyncio.Runner() as runner:
        assert runner.run(main()) == before


def test_virtual_time_reports_no_block() -> None:
    events: list[Event] = []

    run_in_virtual_time(run_pipeline([WorkflowStep("blocks", blocks)], observers=[events.append]))

    assert not [event for event in events if isinstance(event, LoopBlocked)]
