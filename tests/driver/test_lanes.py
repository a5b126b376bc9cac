"""Both lanes of the step runner behave alike, also at their edges."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import time
import types

import pytest
from freed import Holding, without_collector
from memory_journal import MemoryJournal
from third_party import step_tasks

from asyncflow import Pool, StepStatus, StepTimeoutError, WorkflowStep, run_pipeline
from asyncflow._kernel.asyncio_compat import clock_of
from asyncflow._kernel.nodes import Nodes
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    RunStarted,
    StepCancelled,
    StepSkipped,
    StepSucceeded,
)
from asyncflow.testing import VirtualTimeLoop

LANES = pytest.mark.parametrize(
    "options", [{}, {"heartbeat_ms": 60_000}, {"pool": True}], ids=["plain", "full", "pool"]
)


def in_lane(options: dict[str, object]) -> dict[str, object]:
    return {"pool": Pool(1)} if "pool" in options else dict(options)


async def nothing() -> None: ...


async def fail() -> None:
    raise ValueError("always")


@LANES
async def test_an_action_can_return_a_generator_based_coroutine(options):
    @types.coroutine
    def old():
        yield from asyncio.sleep(0).__await__()
        return 7

    report = await run_pipeline([WorkflowStep("old", old, **in_lane(options))])

    assert report["old"].output == 7


@pytest.mark.parametrize("attempts", [1, 2])
@LANES
async def test_an_internal_error_between_two_attempts_is_raised_instead_of_hanging(
    options, attempts, monkeypatch
):
    async def defective(*_):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(Nodes, "_back_off", defective)

    with pytest.raises(ZeroDivisionError):
        await run_pipeline(
            [
                WorkflowStep("a", fail, max_retries=1 + attempts, **in_lane(options)),
                WorkflowStep("b", nothing, depends_on=["a"]),
            ],
            fail_fast=False,
        )


async def test_a_task_that_a_third_party_cancels_before_its_first_line_is_started_again():
    loop = asyncio.get_running_loop()
    if loop.get_task_factory() is not None:
        pytest.skip("an eager task has had its first line when it exists")
    cancelled, calls = [], []

    def cancel_the_next_task(first):
        (task,) = step_tasks() - first
        cancelled.append(task)
        task.cancel()

    async def a():
        # It comes between the start of the next step and the first turn of its task.
        loop.call_soon(cancel_the_next_task, step_tasks())

    async def b():
        calls.append(1)

    report = await run_pipeline([WorkflowStep("a", a), WorkflowStep("b", b, depends_on=["a"])])

    assert report.all_passed
    assert [task.cancelled() for task in cancelled] == [True]
    assert calls == [1]


@pytest.mark.parametrize("stops", [False, True], ids=["goes on", "stops"])
async def test_an_attempt_that_its_sibling_cancels_before_its_first_line(stops):
    if asyncio.get_running_loop().get_task_factory() is not None:
        pytest.skip("an eager task has had its first line when it exists")
    calls = []

    async def a():
        for task in asyncio.all_tasks():
            if task.get_name().endswith(":b#1"):
                task.cancel()
        if stops:
            caller.cancel()

    async def b():
        calls.append(1)

    steps = [WorkflowStep("a", a), WorkflowStep("b", b)]
    events: list[Event] = []
    caller = asyncio.ensure_future(run_pipeline(steps, observers=[events.append]))
    await asyncio.wait([caller])

    assert caller.cancelled() is stops
    ends = [event.step for event in events if isinstance(event, StepSucceeded | StepSkipped)]
    assert ends == ["a", "b"]
    assert calls == ([] if stops else [1])


@LANES
async def test_a_limit_is_known_although_the_loop_was_blocked_before_the_attempt_began(options):
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualTimeLoop):
        pytest.skip("a loop is blocked for an exact time only if that is virtual")

    async def blocks():
        loop._now += 0.005

    async def hangs():
        await asyncio.Event().wait()

    hanging = WorkflowStep("b", hangs, timeout_ms=20, **in_lane(options))
    report = await run_pipeline([WorkflowStep("a", blocks), hanging])

    assert isinstance(report["b"].error, StepTimeoutError)


async def test_a_clock_that_was_patched_is_the_clock_of_the_run(monkeypatch):
    loop = asyncio.new_event_loop()
    try:
        assert clock_of(loop) is time.monotonic
        monkeypatch.setattr(loop, "time", lambda: 5.0)
        assert clock_of(loop)() == 5.0
    finally:
        loop.close()
    virtual = VirtualTimeLoop()
    try:
        assert clock_of(virtual)() == virtual.time()
    finally:
        virtual.close()


async def test_a_timeout_that_passes_with_the_stop_is_recognized():
    if not isinstance(asyncio.get_running_loop(), VirtualTimeLoop):
        pytest.skip("two limits pass in the same instant only in virtual time")
    if sys.version_info < (3, 12):
        pytest.skip("its task is woken up a turn later")

    async def slow():
        await asyncio.sleep(1)

    async def slow_to_clean_up():
        try:
            await asyncio.sleep(1)
        finally:
            await asyncio.sleep(0.005)

    report = await run_pipeline(
        [
            WorkflowStep("slow", slow, timeout_ms=10),
            WorkflowStep("cleans", slow_to_clean_up, timeout_ms=10),
        ]
    )

    assert report["slow"].status is StepStatus.FAILED
    assert isinstance(report["cleans"].error, StepTimeoutError)


async def test_without_a_collector_an_observers_interrupt_frees_what_the_steps_held():
    holding = Holding()

    async def hold():
        return holding()

    def observe(event: Event) -> None:
        if not isinstance(event, AttemptStarted) and getattr(event, "step", "") == "a":
            raise KeyboardInterrupt

    with without_collector():
        with pytest.raises(KeyboardInterrupt):
            await run_pipeline([WorkflowStep("a", hold)], observers=[observe])
        await asyncio.sleep(0)
        assert holding
        assert holding.alive() == []


def over(action, **options: object) -> list[WorkflowStep]:
    async def two() -> list[int]:
        return [1, 2]

    return [
        WorkflowStep("two", two),
        WorkflowStep("mapped", action, {"item": "two"}, map_over="two", **options),
    ]


@pytest.mark.parametrize("when", [None, lambda: True], ids=["at once", "in the next turn"])
async def test_a_bug_in_what_starts_steps_ends_the_run(monkeypatch, when):
    def defective(*_):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("asyncflow._core.running.scheduler.AdmissionQueue.take_ready", defective)

    with pytest.raises(ZeroDivisionError):
        await run_pipeline([WorkflowStep("a", nothing, when=when)])


async def test_a_bug_in_one_item_ends_the_wait_for_all_items(monkeypatch):
    gate = asyncio.Event()

    async def act(item):
        if item == 1:
            await asyncio.sleep(0.01)
            raise ValueError
        try:
            await gate.wait()
        finally:
            await asyncio.sleep(0.01)

    def defective(*_):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("asyncflow._kernel.attempt.Attempts.conclude", defective)

    with pytest.raises(ZeroDivisionError):
        await run_pipeline(over(act))


async def test_a_mapped_step_waits_for_its_items_although_a_third_party_cancels_it():
    gate = asyncio.Event()

    async def act(item):
        await gate.wait()
        return item

    run = asyncio.ensure_future(run_pipeline(over(act)))
    while len(step_tasks()) < 3:
        await asyncio.sleep(0)
    mapped = next(task for task in step_tasks() if "mapped[" not in repr(task))
    mapped.cancel()
    await asyncio.sleep(0.005)
    gate.set()
    report = await run

    assert report["mapped"].output == [1, 2]


async def test_a_session_whose_close_a_third_party_cancels_is_closed_again():
    journal = MemoryJournal()

    async def cancel_the_close():
        while True:
            for task in asyncio.all_tasks():
                if task.get_name() == "asyncflow:r1":
                    task.cancel()
                    return
            await asyncio.sleep(0)

    cancelling = asyncio.ensure_future(cancel_the_close())
    report = await run_pipeline([WorkflowStep("a", nothing)], journal=journal, run_id="r1")
    await cancelling

    assert report.all_passed
    again = await run_pipeline([WorkflowStep("a", nothing)], journal=journal, run_id="r1")
    assert again["a"].attempts == 1
    await asyncio.sleep(0)


@LANES
async def test_the_error_of_a_limit_shows_where_the_step_was(options):
    async def hangs():
        await asyncio.Event().wait()

    report = await run_pipeline([WorkflowStep("a", hangs, timeout_ms=5, **in_lane(options))])

    error = report["a"].error
    assert isinstance(error, StepTimeoutError)
    assert isinstance(error.__context__, asyncio.CancelledError)
    assert error.__context__.__traceback__.tb_frame.f_code is hangs.__code__


@pytest.mark.parametrize("limit", ["timeout_ms", "deadline_ms", "heartbeat_ms"])
async def test_what_ends_a_program_does_so_in_the_cleanup_after_a_limit_as_well(limit):
    async def exits():
        try:
            await asyncio.Event().wait()
        finally:
            raise SystemExit("in the clean-up")

    with pytest.raises(SystemExit, match="in the clean-up"):
        await run_pipeline([WorkflowStep("a", exits, max_retries=3, **{limit: 10})])


@pytest.mark.parametrize("limits", [{"timeout_ms": 200, "max_retries": 2}, {"deadline_ms": 200}])
@LANES
async def test_a_limit_that_begins_while_others_block_the_loop_is_a_timeout(options, limits):
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualTimeLoop):
        pytest.skip("a loop is blocked for an exact time only if that is virtual")

    variable = contextvars.ContextVar("variable")

    async def hangs():
        variable.set(None)  # so that the second attempt has a task of its own
        await asyncio.Event().wait()

    def block(turns: int) -> None:
        loop._now += 0.01
        if turns:
            loop.call_soon(block, turns - 1)

    def observe(event: Event) -> None:
        if isinstance(event, RunStarted | AttemptFailed):
            block(10)

    step = WorkflowStep("hangs", hangs, **limits, **in_lane(options))
    report = await run_pipeline([step], observers=[observe])

    errors = [type(attempt.error) for attempt in report["hangs"].history]
    assert errors == [StepTimeoutError] * step.max_retries


@LANES
async def test_a_step_that_a_failure_cancels_has_not_exceeded_the_runs_deadline(options):
    async def hangs():
        await asyncio.Event().wait()

    async def fails():
        await asyncio.sleep(0)
        raise ValueError

    steps = [WorkflowStep("hangs", hangs, **in_lane(options)), WorkflowStep("fails", fails)]
    report = await run_pipeline(steps, deadline_ms=60_000)

    assert report["hangs"].status is StepStatus.CANCELLED
    assert report["hangs"].error is None


@pytest.mark.parametrize("attempt", [1, 2])
@LANES
async def test_a_step_that_fails_before_the_stop_reaches_it_keeps_its_own_error(options, attempt):
    variable = contextvars.ContextVar("variable", default=0)

    def step_that_fails(turns: int):
        calls, cancelled = [], []

        async def fails():
            calls.append(None)
            variable.set(len(calls))  # so that the next attempt has a task of its own
            try:
                for _ in range(turns if len(calls) == attempt else 0):
                    await asyncio.sleep(0)
            except asyncio.CancelledError:
                cancelled.append(None)
                raise
            raise ValueError(turns)

        return fails, cancelled

    async def fails_first():
        for _ in range(5 * attempt):
            await asyncio.sleep(0)
        raise KeyError("first")

    fates = set()
    for turns in range(25):
        action, cancelled = step_that_fails(turns)
        second = WorkflowStep("second", action, max_retries=attempt, **in_lane(options))
        report = await run_pipeline([WorkflowStep("first", fails_first), second])

        expected = StepStatus.CANCELLED if cancelled else StepStatus.FAILED
        assert report["second"].status is expected, turns
        if not cancelled:
            assert str(report["second"].error) == str(turns)
            assert report["second"] in report.failed
        fates.add(expected)
    assert len(fates) == 2


async def test_no_attempt_follows_one_that_ends_in_the_turn_of_the_stop():
    variable = contextvars.ContextVar("variable", default=0)
    calls = []

    async def flaky():
        calls.append(variable.get())
        variable.set(len(calls))  # so that the next attempt has a task of its own
        if len(calls) == 2:
            await asyncio.sleep(0.01)
            run.cancel()
        raise ValueError

    events = []
    step = WorkflowStep("flaky", flaky, max_retries=5)
    run = asyncio.ensure_future(run_pipeline([step], observers=[events.append]))
    with pytest.raises(asyncio.CancelledError):
        await run

    assert calls == [0, 0]
    assert isinstance(events[-2], StepCancelled)
    assert isinstance(events[-2].error, ValueError)


async def test_a_missed_heartbeat_of_one_step_says_nothing_about_another():
    if not isinstance(asyncio.get_running_loop(), VirtualTimeLoop):
        pytest.skip("the last half millisecond of a limit is exact only in virtual time")

    async def silent():
        try:
            await asyncio.sleep(1)
        finally:
            await asyncio.sleep(0.5)

    async def just_in_time():
        await asyncio.sleep(0.0195)
        return "in time"

    steps = [
        WorkflowStep("silent", silent, heartbeat_ms=5),
        WorkflowStep("just_in_time", just_in_time, timeout_ms=20, heartbeat_ms=60_000),
    ]
    report = await run_pipeline(steps, fail_fast=False)

    assert isinstance(report["silent"].error, StepTimeoutError)
    assert report["just_in_time"].output == "in time"


class PausingLoop(VirtualTimeLoop):
    """Pauses after it has set a timer, as for a collection of the whole heap."""

    def call_at(self, *args, **options):
        handle = super().call_at(*args, **options)
        self._now += 0.05
        return handle


@pytest.mark.parametrize("late_value", [False, True])
@pytest.mark.parametrize("attempts", [1, 2])
@LANES
def test_a_limit_whose_timer_started_well_before_the_attempt_is_known_as_the_cause(
    options, attempts, late_value
):
    async def hang():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if not late_value:
                raise
        return "late"

    step = WorkflowStep("a", hang, timeout_ms=200, max_retries=attempts, **in_lane(options))
    loop = PausingLoop()
    try:
        report = loop.run_until_complete(run_pipeline([step]))
    finally:
        loop.close()

    assert report["a"].status is StepStatus.FAILED
    assert [type(each.error) for each in report["a"].history] == [StepTimeoutError] * attempts


@LANES
def test_a_loop_that_is_closed_over_a_run_is_no_bug_and_disturbs_no_other_loop(
    options, monkeypatch
):
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # the task group can't abort
    events: list[Event] = []

    async def hang():
        await asyncio.sleep(60)

    def abandon():
        loop = VirtualTimeLoop()
        loop.set_exception_handler(lambda *_: None)
        step = WorkflowStep("a", hang, **in_lane(options))
        loop.create_task(run_pipeline([step], observers=[events.append]))
        loop.run_until_complete(asyncio.sleep(1))
        loop.close()

    async def be_cancelled_meanwhile():
        asyncio.current_task().cancel()
        gc.collect()
        return asyncio.current_task().cancelling()

    abandon()

    with asyncio.Runner() as runner:
        other = runner.get_loop().create_task(be_cancelled_meanwhile())
        runner.get_loop().run_until_complete(asyncio.wait([other]))

    assert other.cancelled()
    assert [type(event) for event in events] == [RunStarted, AttemptStarted]
