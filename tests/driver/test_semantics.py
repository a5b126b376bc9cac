"""One test for each row of the semantics table of the design."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import sys
from functools import partial

import anyio
import pytest
from freed import Holding, without_collector
from results import statuses

from asyncflow import (
    ActionNotAwaitableError,
    Orchestrator,
    OutputNotAwaitedError,
    Retry,
    StepCancelledError,
    StepStatus,
    StepTimeoutError,
    WorkflowStep,
    current_step,
    run_pipeline,
)
from asyncflow._kernel.watchdog import GRACE_S
from asyncflow.events import AttemptFailed, AttemptStarted, RunFinished, RunInterrupted
from asyncflow.testing import VirtualTimeLoop

pytestmark = pytest.mark.parametrize("schedule", ["tiers", "ready"])
SUCCESS, FAILED, SKIPPED, CANCELLED = (
    StepStatus.SUCCESS,
    StepStatus.FAILED,
    StepStatus.SKIPPED,
    StepStatus.CANCELLED,
)


async def succeed() -> str:
    return "done"


async def fail() -> None:
    raise ValueError("broken")


async def forever() -> None:
    await asyncio.Event().wait()


def needs_virtual_time():
    if not isinstance(asyncio.get_running_loop(), VirtualTimeLoop):
        pytest.skip("the grace period is five seconds, which is too long in real time")


class Flaky:
    """Fails a number of times, then succeeds."""

    def __init__(self, failures, error=ValueError):
        self.failures = failures
        self.error = error
        self.calls = 0

    async def __call__(self):
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error(f"call {self.calls}")
        return self.calls


class Cleaning:
    """Runs until it is cancelled, then spends a while on clean-up."""

    def __init__(self, takes=0.01, then=None):
        self.takes = takes
        self.then = then
        self.started = asyncio.Event()
        self.cleaned = 0
        self.cancels = 0

    async def __call__(self):
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancels += 1
            await asyncio.sleep(self.takes)
            self.cleaned += 1
            if isinstance(self.then, BaseException):
                raise self.then from None
            if self.then is not None:
                return self.then
            raise


# Scheduling.


async def test_a_step_starts_when_its_dependencies_have_succeeded(schedule):
    log = []

    def step(name, *needs):
        async def action(**outputs):
            assert set(outputs) == set(needs)
            await asyncio.sleep(0.001)
            log.append(name)
            return name.upper()

        return WorkflowStep(name, action, needs)

    report = await run_pipeline(
        [step("d", "b", "c"), step("b", "a"), step("c", "a"), step("a")], schedule=schedule
    )

    assert log[0] == "a"
    assert log[-1] == "d"
    assert list(report) == ["a", "b", "c", "d"]
    assert report["d"].output == "D"


async def test_only_the_ready_schedule_starts_a_step_before_an_unrelated_one_has_ended(schedule):
    slow_ended = asyncio.Event()
    seen = {}

    async def slow():
        await asyncio.sleep(0.02)
        slow_ended.set()

    async def follower():
        seen["slow had ended"] = slow_ended.is_set()

    await run_pipeline(
        [
            WorkflowStep("slow", slow),
            WorkflowStep("quick", succeed),
            WorkflowStep("follower", follower, ["quick"]),
        ],
        schedule=schedule,
    )

    assert seen["slow had ended"] == (schedule == "tiers")


async def test_steps_of_a_tier_run_concurrently_but_no_more_than_max_concurrency(schedule):
    running = highest = 0

    async def action():
        nonlocal running, highest
        running += 1
        highest = max(highest, running)
        await asyncio.sleep(0.001)
        running -= 1

    steps = [WorkflowStep(f"s{i}", action) for i in range(20)]

    await run_pipeline(steps, schedule=schedule)
    unlimited, highest = highest, 0
    report = await run_pipeline(steps, schedule=schedule, max_concurrency=3)

    assert (unlimited, highest) == (20, 3)
    assert report.all_passed


async def test_a_failed_step_frees_its_max_concurrency_slot(schedule):
    steps = [WorkflowStep(f"s{i}", fail if i % 2 else succeed) for i in range(9)]

    report = await run_pipeline(steps, False, schedule=schedule, max_concurrency=1)

    assert (len(report.succeeded), len(report.failed)) == (5, 4)


async def test_a_step_between_two_attempts_occupies_no_max_concurrency_slot(schedule):
    order = []

    async def fails_first():
        order.append(f"attempt {current_step().attempt}")
        if current_step().attempt == 1:
            raise ValueError

    async def other():
        order.append("other")

    report = await run_pipeline(
        [WorkflowStep("a", fails_first, max_retries=2, retry=10), WorkflowStep("b", other)],
        schedule=schedule,
        max_concurrency=1,
    )

    assert order == ["attempt 1", "other", "attempt 2"]
    assert report.all_passed


async def test_a_run_inside_a_step_has_a_max_concurrency_of_its_own(schedule):
    async def nested():
        barrier = asyncio.Barrier(2)
        steps = [WorkflowStep(name, barrier.wait) for name in ("one", "two")]
        return (await run_pipeline(steps, schedule=schedule, max_concurrency=2)).all_passed

    report = await run_pipeline(
        [WorkflowStep("a", nested, timeout_ms=1_000), WorkflowStep("b", succeed)],
        schedule=schedule,
        max_concurrency=1,
    )

    assert report["a"].output is True


# Attempts.


async def test_a_failed_attempt_is_retried_while_attempts_remain(schedule):
    flaky = Flaky(failures=2)

    report = await run_pipeline([WorkflowStep("a", flaky, max_retries=3)], schedule=schedule)

    result = report["a"]
    assert (result.status, result.attempts, result.output, flaky.calls) == (SUCCESS, 3, 3, 3)
    assert [str(attempt.error) for attempt in result.history] == ["call 1", "call 2", "None"]
    assert [attempt.number for attempt in result.history] == [1, 2, 3]


async def test_the_last_attempts_error_is_the_steps(schedule):
    flaky = Flaky(failures=5)

    report = await run_pipeline([WorkflowStep("a", flaky, max_retries=2)], schedule=schedule)

    assert report["a"].attempts == 2
    assert str(report["a"].error) == "call 2"
    with pytest.raises(ValueError, match="call 2"):
        report.raise_for_failures()


async def test_a_backoff_passes_between_two_attempts_and_none_after_the_last(schedule):
    events = []

    report = await run_pipeline(
        [WorkflowStep("a", fail, max_retries=3, retry=10)],
        schedule=schedule,
        observers=[events.append],
    )

    assert [event.retry_in_ms for event in events if isinstance(event, AttemptFailed)] == [10, 10]
    assert report["a"].attempts == 3
    if isinstance(asyncio.get_running_loop(), VirtualTimeLoop):
        assert [round(each.started_ms, 6) for each in report["a"].history] == [0, 10, 20]
        assert round(report["a"].duration_ms, 6) == 20


async def test_a_step_that_backs_off_is_cancelled_at_once_with_its_last_error(schedule):
    flaky = Flaky(9)

    async def fail_later():
        await asyncio.sleep(0.01)
        raise KeyError

    report = await run_pipeline(
        [WorkflowStep("a", flaky, max_retries=9, retry=60_000), WorkflowStep("b", fail_later)],
        schedule=schedule,
    )

    assert (report["a"].status, report["a"].attempts) == (CANCELLED, 1)
    assert str(report["a"].error) == "call 1"
    assert report["a"].history[0].error is report["a"].error


async def test_a_cancellation_ends_a_backoff(schedule):
    started = asyncio.get_running_loop().time()
    run = asyncio.ensure_future(
        run_pipeline([WorkflowStep("a", Flaky(9), max_retries=9, retry=60_000)], schedule=schedule)
    )
    await asyncio.sleep(0.005)

    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run

    assert asyncio.get_running_loop().time() - started < 30


async def test_other_tasks_run_between_two_attempts(schedule):
    turns = 0

    async def ticker():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(ticker())
    await run_pipeline([WorkflowStep("a", Flaky(99), max_retries=50)], schedule=schedule)
    ticking.cancel()

    assert turns >= 49


async def test_every_attempt_sees_the_context_of_the_caller_and_none_changes_it(schedule):
    variable = contextvars.ContextVar("variable", default="untouched")
    variable.set("the caller's")
    seen = []

    async def action():
        seen.append(variable.get())
        variable.set("dirty")
        raise ValueError

    await run_pipeline(
        [WorkflowStep("a", action, max_retries=3), WorkflowStep("b", action)],
        fail_fast=False,
        schedule=schedule,
    )

    assert seen == ["the caller's"] * 4
    assert variable.get() == "the caller's"


async def test_an_action_that_raises_when_called_is_a_failed_attempt(schedule):
    def broken():
        raise LookupError("no coroutine came")

    report = await run_pipeline([WorkflowStep("a", broken, max_retries=2)], schedule=schedule)

    assert isinstance(report["a"].error, LookupError)
    assert report["a"].attempts == 2


async def test_an_action_that_returns_no_awaitable_fails_after_one_call(schedule):
    calls = []

    report = await run_pipeline(
        [WorkflowStep("a", lambda: calls.append(1), max_retries=3)], schedule=schedule
    )

    assert isinstance(report["a"].error, ActionNotAwaitableError)
    assert 'runs_in="thread"' in str(report["a"].error)
    assert (len(calls), report["a"].attempts) == (1, 1)


@pytest.mark.parametrize(
    "options", [{}, {"deadline_ms": 100}, {"retry": Retry(until=lambda value: value is None)}]
)
async def test_an_action_that_forgets_an_await_fails_after_one_call(schedule, options):
    calls = []

    async def forgets():
        calls.append(1)
        return succeed()

    step = WorkflowStep("a", forgets, max_retries=3, **options)
    report = await run_pipeline([step], schedule=schedule)

    assert isinstance(report["a"].error, OutputNotAwaitedError)
    assert "coroutine succeed without having awaited it" in str(report["a"].error)
    assert (len(calls), report["a"].attempts) == (1, 1)


async def test_a_coroutine_that_is_already_awaited_is_an_ordinary_output(schedule):
    tasks = []

    async def has_awaited():
        work = succeed()
        await work
        return work

    async def leaves_it_to_a_task():
        work = asyncio.sleep(0.01, "done")
        tasks.append(asyncio.ensure_future(work))
        await asyncio.sleep(0)
        return work

    report = await run_pipeline(
        [WorkflowStep("a", has_awaited), WorkflowStep("b", leaves_it_to_a_task)], schedule=schedule
    )

    assert report.all_passed
    assert await tasks[0] == "done"


async def test_every_kind_of_async_callable_runs(schedule):
    class Callable:
        async def __call__(self):
            return "object"

        async def method(self):
            return "method"

    steps = [
        WorkflowStep("function", succeed),
        WorkflowStep("object", Callable()),
        WorkflowStep("method", Callable().method),
        WorkflowStep("lambda", lambda: succeed()),
        WorkflowStep("task", lambda: asyncio.ensure_future(succeed())),
    ]

    report = await run_pipeline(steps, schedule=schedule)

    assert [result.output for result in report.results] == [
        "done",
        "object",
        "method",
        "done",
        "done",
    ]


@pytest.mark.parametrize(
    "error", [StopIteration(), StopAsyncIteration(), ExceptionGroup("g", [OSError()])]
)
async def test_any_exception_of_a_step_is_an_ordinary_failure(schedule, error):
    async def action():
        raise error

    report = await run_pipeline([WorkflowStep("a", action)], schedule=schedule)

    assert report["a"].status is FAILED
    assert report["a"].error is error or isinstance(error, StopIteration)


@pytest.mark.parametrize("output", [None, "", 0, [], {"a": (1,)}])
async def test_an_output_is_returned_unchanged(schedule, output):
    async def action():
        return output

    report = await run_pipeline([WorkflowStep("a", action)], schedule=schedule)

    assert report["a"].output is output
    assert report.all_passed


# Time limits.


async def test_an_attempt_that_exceeds_its_timeout_is_cancelled_awaited_and_retried(schedule):
    attempts = []

    async def action():
        attempts.append(Cleaning())
        await attempts[-1]()

    report = await run_pipeline(
        [WorkflowStep("a", action, timeout_ms=20, max_retries=2)], schedule=schedule
    )

    result = report["a"]
    assert isinstance(result.error, StepTimeoutError)
    assert (result.error.step_name, result.error.attempt, result.error.timeout_ms) == ("a", 2, 20)
    assert [attempt.cleaned for attempt in attempts] == [1, 1]
    if isinstance(asyncio.get_running_loop(), VirtualTimeLoop):
        assert [round(each.started_ms, 6) for each in result.history] == [0, 30]
        assert round(result.duration_ms, 6) == 60


@pytest.mark.exact_time
async def test_a_timeout_does_not_include_the_wait_for_the_tier(schedule):
    async def slow():
        await asyncio.sleep(0.05)

    report = await run_pipeline(
        [WorkflowStep("slow", slow), WorkflowStep("quick", slow, ["slow"], timeout_ms=70)],
        schedule=schedule,
    )

    assert report.all_passed


async def test_a_timeout_error_of_the_step_is_reported_as_the_same_object(schedule):
    own = TimeoutError("the database said so")

    async def action():
        raise own

    report = await run_pipeline([WorkflowStep("a", action)], schedule=schedule)

    assert report["a"].error is own


async def test_a_value_returned_after_the_timeout_is_no_success(schedule):
    report = await run_pipeline(
        [WorkflowStep("a", Cleaning(then="late"), timeout_ms=20)], schedule=schedule
    )

    assert (report["a"].status, report["a"].output) == (FAILED, None)
    assert isinstance(report["a"].error, StepTimeoutError)
    assert report["a"].error.__cause__ is None


async def test_an_error_from_a_clean_up_is_the_cause_of_the_timeout_error(schedule):
    broken = ConnectionError("rollback failed")

    report = await run_pipeline(
        [WorkflowStep("a", Cleaning(then=broken), timeout_ms=20)], schedule=schedule
    )

    assert isinstance(report["a"].error, StepTimeoutError)
    assert report["a"].error.__cause__ is broken


async def test_a_timeout_of_none_means_no_limit(schedule):
    async def action():
        await asyncio.sleep(0.03)
        return current_step().remaining_ms()

    report = await run_pipeline([WorkflowStep("a", action, timeout_ms=None)], schedule=schedule)

    assert report["a"].output is None
    assert report.all_passed


@pytest.mark.parametrize("options", [{}, {"heartbeat_ms": 60_000}], ids=["plain", "full"])
async def test_a_step_that_has_returned_at_its_timeout_keeps_its_value(schedule, options):
    async def action():
        loop = asyncio.get_running_loop()
        if isinstance(loop, VirtualTimeLoop):
            loop._now += 0.05  # a callback that blocks the loop past the limit
        return "in time"

    step = WorkflowStep("a", action, timeout_ms=20, **options)
    report = await run_pipeline([step], schedule=schedule)

    assert report["a"].output == "in time"


# Cancellation from inside.


async def test_a_step_that_cancels_itself_fails_and_is_retried(schedule):
    async def action():
        asyncio.current_task().cancel()
        await asyncio.sleep(1)

    caller = asyncio.current_task()

    report = await run_pipeline([WorkflowStep("a", action, max_retries=2)], schedule=schedule)

    error = report["a"].error
    assert isinstance(error, StepCancelledError)
    assert not isinstance(error, asyncio.CancelledError)
    assert isinstance(error.__cause__, asyncio.CancelledError)
    assert report["a"].attempts == 2
    assert caller.cancelling() == 0


async def test_a_step_that_raises_cancelled_error_is_not_lost(schedule):
    async def action():
        raise asyncio.CancelledError("mine")

    report = await run_pipeline(
        [WorkflowStep("a", action), WorkflowStep("b", succeed, ["a"])], schedule=schedule
    )

    assert statuses(report) == {"a": FAILED, "b": SKIPPED}
    assert not report.all_passed


async def test_awaiting_a_future_that_a_third_party_cancelled_is_a_failure(schedule):
    async def action():
        other = asyncio.ensure_future(asyncio.sleep(1))
        other.cancel()
        await other

    report = await run_pipeline([WorkflowStep("a", action)], fail_fast=False, schedule=schedule)

    assert isinstance(report["a"].error, StepCancelledError)


async def test_a_step_that_cancels_itself_with_its_last_line_has_succeeded(schedule):
    async def action():
        asyncio.current_task().cancel()
        return "value"

    report = await run_pipeline(
        [WorkflowStep("a", action), WorkflowStep("b", succeed, ["a"])], schedule=schedule
    )

    assert report["a"].output == "value"
    assert report.all_passed


async def test_a_step_that_cancels_itself_and_fails_is_retried_unharmed(schedule):
    calls = []

    async def action():
        calls.append(1)
        asyncio.current_task().cancel()
        if len(calls) == 1:
            raise ValueError
        return "value"

    report = await run_pipeline([WorkflowStep("a", action, max_retries=2)], schedule=schedule)

    assert (report["a"].status, report["a"].attempts) == (SUCCESS, 2)


# Failing for good.


async def test_fail_fast_cancels_siblings_awaits_them_and_skips_the_rest(schedule):
    cleaning = Cleaning()

    async def fail_later():
        await cleaning.started.wait()
        raise ValueError("broken")

    report = await run_pipeline(
        [
            WorkflowStep("a", fail_later),
            WorkflowStep("b", cleaning),
            WorkflowStep("c", succeed, ["a"]),
            WorkflowStep("d", succeed, ["b"]),
        ],
        schedule=schedule,
    )

    assert statuses(report) == {"a": FAILED, "b": CANCELLED, "c": SKIPPED, "d": SKIPPED}
    assert (cleaning.cancels, cleaning.cleaned) == (1, 1)
    assert report["b"].error is None
    assert all("'a' failed" in report[name].reason for name in "bcd")


async def test_without_fail_fast_only_descendants_are_skipped(schedule):
    report = await run_pipeline(
        [
            WorkflowStep("a", fail),
            WorkflowStep("b", succeed),
            WorkflowStep("c", succeed, ["a"]),
            WorkflowStep("d", succeed, ["b"]),
            WorkflowStep("e", succeed, ["c", "d"]),
        ],
        fail_fast=False,
        schedule=schedule,
    )

    assert statuses(report) == {"a": FAILED, "b": SUCCESS, "c": SKIPPED, "d": SUCCESS, "e": SKIPPED}
    assert report["e"].reason == "it depends on step 'a', which failed"


async def test_a_failure_followed_by_a_successful_retry_cancels_no_sibling(schedule):
    async def slow():
        await asyncio.sleep(0.01)
        return "undisturbed"

    report = await run_pipeline(
        [WorkflowStep("flaky", Flaky(2), max_retries=3), WorkflowStep("slow", slow)],
        schedule=schedule,
    )

    assert report["slow"].output == "undisturbed"


async def test_a_sibling_that_returns_a_value_when_cancelled_succeeds(schedule):
    cleaning = Cleaning(then="saved")

    async def fail_later():
        await cleaning.started.wait()
        raise ValueError

    report = await run_pipeline(
        [WorkflowStep("a", fail_later), WorkflowStep("b", cleaning)], schedule=schedule
    )

    assert (report["b"].status, report["b"].output) == (SUCCESS, "saved")


async def test_a_sibling_whose_clean_up_raises_is_cancelled_and_keeps_the_error(schedule):
    broken = OSError("disk gone")
    cleaning = Cleaning(then=broken)

    async def fail_later():
        await cleaning.started.wait()
        raise ValueError

    report = await run_pipeline(
        [WorkflowStep("a", fail_later), WorkflowStep("b", cleaning, max_retries=5)],
        schedule=schedule,
    )

    assert (report["b"].status, report["b"].attempts) == (CANCELLED, 1)
    assert report["b"].error is broken


async def test_two_steps_that_fail_in_the_same_turn_both_keep_their_errors(schedule):
    gate = asyncio.Event()

    async def fail_at_gate():
        await gate.wait()
        raise ValueError(current_step().step_name)

    async def open_gate():
        await asyncio.sleep(0.005)
        gate.set()
        return "opened"

    report = await run_pipeline(
        [
            WorkflowStep("a", fail_at_gate),
            WorkflowStep("b", fail_at_gate),
            WorkflowStep("c", open_gate),
        ],
        schedule=schedule,
    )

    assert statuses(report) == {"a": FAILED, "b": FAILED, "c": SUCCESS}
    with pytest.raises(ExceptionGroup) as raised:
        report.raise_for_failures()
    assert sorted(map(str, raised.value.exceptions)) == ["a", "b"]


@pytest.mark.parametrize("turns", range(7))
async def test_a_step_between_two_attempts_is_cancelled_with_its_last_error(schedule, turns):
    async def fail_in_a_while():
        for _ in range(turns):
            await asyncio.sleep(0)
        raise KeyError

    flaky = Flaky(999)

    report = await run_pipeline(
        [WorkflowStep("a", fail_in_a_while), WorkflowStep("b", flaky, max_retries=1000)],
        schedule=schedule,
    )

    assert report["b"].status is CANCELLED
    assert report["b"].attempts == flaky.calls < 20
    assert str(report["b"].error) == f"call {flaky.calls}"


@pytest.mark.parametrize("options", [{}, {"heartbeat_ms": 60_000}], ids=["plain", "full"])
async def test_a_value_that_a_stopped_step_returns_after_its_limit_is_no_success(schedule, options):
    cleaning = Cleaning(takes=0.04, then="saved")

    async def fail_later():
        await cleaning.started.wait()
        raise ValueError

    async def catch_twice():
        try:
            return await cleaning()
        except asyncio.CancelledError:
            return "saved in spite of the limit"

    report = await run_pipeline(
        [WorkflowStep("a", fail_later), WorkflowStep("b", catch_twice, timeout_ms=30, **options)],
        schedule=schedule,
    )

    assert (report["b"].status, report["b"].output) == (CANCELLED, None)
    assert isinstance(report["b"].error, StepTimeoutError)
    assert report["b"].error.kind == "attempt"


@pytest.mark.exact_time
@pytest.mark.parametrize("options", [{}, {"heartbeat_ms": 60_000}], ids=["plain", "full"])
async def test_a_stopped_step_whose_limit_passes_while_it_cleans_up_is_cancelled_once_more(
    schedule, options
):
    if sys.version_info < (3, 12):
        pytest.skip("wait_for limits the clean-up of what was cancelled from Python 3.12 on")
    cancels = []

    async def cleans_too_long():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancels.append("stop")
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                cancels.append("limit")
                raise

    report = await run_pipeline(
        [WorkflowStep("a", fail), WorkflowStep("b", cleans_too_long, timeout_ms=20, **options)],
        schedule=schedule,
    )

    assert cancels == ["stop", "limit"]
    assert report["b"].status is CANCELLED
    assert report.total_duration_ms < 5_000


async def test_a_timeout_is_recognized_after_a_cancellation_by_the_step_itself(schedule):
    async def action():
        asyncio.current_task().cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1)
        await asyncio.Event().wait()

    report = await run_pipeline([WorkflowStep("a", action, timeout_ms=20)], schedule=schedule)

    assert isinstance(report["a"].error, StepTimeoutError)
    assert report["a"].error.__cause__ is None


# Cancellation from outside.


async def test_a_caller_receives_its_cancellation_after_the_steps_have_cleaned_up(schedule):
    cleaning = [Cleaning(), Cleaning()]
    events = []
    run = asyncio.ensure_future(
        run_pipeline(
            [
                WorkflowStep("a", cleaning[0], timeout_ms=None),
                WorkflowStep("b", cleaning[1], timeout_ms=None),
                WorkflowStep("c", succeed, ["a"]),
            ],
            schedule=schedule,
            observers=[events.append],
        )
    )
    await cleaning[1].started.wait()

    run.cancel("shutdown")
    with pytest.raises(asyncio.CancelledError) as raised:
        await run

    assert raised.value.args == ("shutdown",)
    assert [each.cleaned for each in cleaning] == [1, 1]
    assert [each.cancels for each in cleaning] == [1, 1]
    assert isinstance(events[-1], RunFinished)
    assert events[-1].status == "INTERRUPTED"
    assert events[-1].stop_reason == "the caller was cancelled: shutdown"
    assert sum(isinstance(event, RunInterrupted) for event in events) == 1


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (None, "the caller was cancelled"),
        ("", "the caller was cancelled"),
        ("two\nlines", "the caller was cancelled: two\\nlines"),
        (Exception("not text"), "the caller was cancelled"),
    ],
)
async def test_the_stop_reason_quotes_the_message_of_the_callers_cancellation(
    message, reason, schedule
):
    cleaning, events = Cleaning(), []
    step = WorkflowStep("a", cleaning)
    run = asyncio.ensure_future(run_pipeline([step], schedule=schedule, observers=[events.append]))
    await cleaning.started.wait()

    run.cancel(message)
    with pytest.raises(asyncio.CancelledError):
        await run

    assert events[-1].stop_reason == reason


async def swallows_a_cancellation_and_continues():
    """Act like code with its own time limit that does not know `Task.uncancel`."""
    asyncio.current_task().cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    await asyncio.sleep(1_000)


@pytest.mark.parametrize("timeout_ms", [None, 30_000])
async def test_a_step_that_has_swallowed_a_cancellation_can_be_cancelled(schedule, timeout_ms):
    needs_virtual_time()
    step = WorkflowStep("a", swallows_a_cancellation_and_continues, timeout_ms=timeout_ms)
    started = asyncio.get_running_loop().time()
    run = asyncio.ensure_future(run_pipeline([step], schedule=schedule))
    await asyncio.sleep(0.01)

    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run

    assert asyncio.get_running_loop().time() - started < 6


@pytest.mark.parametrize(
    ("limits", "deadline_ms", "sibling", "status"),
    [
        ({}, None, [WorkflowStep("b", fail)], CANCELLED),
        ({}, 20, [], CANCELLED),
        ({"heartbeat_ms": 20}, None, [], FAILED),
        ({"timeout_ms": 20}, None, [], FAILED),
    ],
    ids=["fail_fast", "deadline", "heartbeat", "timeout"],
)
async def test_the_run_can_stop_a_step_that_has_swallowed_a_cancellation(
    schedule, limits, deadline_ms, sibling, status
):
    needs_virtual_time()
    options = {"timeout_ms": None, **limits}
    step = WorkflowStep("a", swallows_a_cancellation_and_continues, **options)

    report = await run_pipeline([step, *sibling], schedule=schedule, deadline_ms=deadline_ms)

    assert report["a"].status is status
    assert report.total_duration_ms < 6_000


async def test_an_attempt_cancelled_by_a_third_party_finishes_its_cleanup(schedule):
    needs_virtual_time()
    if sys.version_info < (3, 12):
        pytest.skip(
            "an attempt has its own task, and the run cannot see that a third party cancels it"
        )
    tasks, cleaned = {}, []

    async def obeys(name, takes):
        tasks[name] = asyncio.current_task()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(takes)
            cleaned.append(name)

    async def fails():
        await asyncio.sleep(0.01)
        for task in tasks.values():
            task.cancel()
        await asyncio.sleep(0)
        raise ValueError

    steps = [
        WorkflowStep("swallows", swallows_a_cancellation_and_continues, timeout_ms=None),
        WorkflowStep("short", lambda: obeys("short", 3)),
        WorkflowStep("long", lambda: obeys("long", 8), timeout_ms=None),
        WorkflowStep("fails", fails),
    ]
    started = asyncio.get_running_loop().time()
    run = asyncio.ensure_future(run_pipeline(steps, schedule=schedule))
    await asyncio.sleep(2)
    run.cancel()  # does not prolong the grace period
    with pytest.raises(asyncio.CancelledError):
        await run

    assert cleaned == ["short"]
    assert asyncio.get_running_loop().time() - started == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize("takes", [0.04, 7])
@pytest.mark.parametrize("isolated", [False, True], ids=["first", "isolated"])
@pytest.mark.parametrize("limit", ["timeout_ms", "heartbeat_ms"])
@pytest.mark.parametrize("stopped_by", ["sibling", "caller", "deadline"])
async def test_an_attempt_that_cleans_up_after_a_limit_is_not_cancelled_again(
    schedule, limit, stopped_by, isolated, takes
):
    if takes > 1 or stopped_by == "deadline":
        needs_virtual_time()
    marked, cleaned = contextvars.ContextVar("marked", default=0), []
    is_cleaning = asyncio.Event()

    async def slow():
        attempt = marked.get() + 1 if not isolated else current_step().attempt
        marked.set(attempt)
        if isolated and attempt == 1:
            raise OSError  # the next attempt has its own task, since this one changed its context
        try:
            await asyncio.Event().wait()
        finally:
            is_cleaning.set()
            await asyncio.sleep(takes)
            cleaned.append(attempt)

    async def fails_meanwhile():
        await is_cleaning.wait()
        raise ValueError

    limits = {"timeout_ms": None, limit: 10}
    steps = [WorkflowStep("slow", slow, max_retries=2 if isolated else 1, **limits)]
    if stopped_by == "sibling":
        steps.append(WorkflowStep("fails", fails_meanwhile))
    run = asyncio.ensure_future(
        run_pipeline(steps, schedule=schedule, deadline_ms=30 if stopped_by == "deadline" else None)
    )
    if stopped_by == "caller":
        await is_cleaning.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
    else:
        assert (await run)["slow"].status is not SUCCESS

    assert len(cleaned) == 1


def longer_than_the_grace_period():
    """How long a clean-up takes after which a step that is asked again would be cancelled again."""
    return GRACE_S + 1 if isinstance(asyncio.get_running_loop(), VirtualTimeLoop) else 0.02


async def test_a_second_cancellation_orphans_nothing(schedule):
    cleaning = Cleaning(takes=longer_than_the_grace_period())
    step = WorkflowStep("a", cleaning, timeout_ms=None)
    run = asyncio.ensure_future(run_pipeline([step], schedule=schedule))
    await cleaning.started.wait()

    run.cancel()
    await asyncio.sleep(0.005)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run

    assert (cleaning.cancels, cleaning.cleaned) == (1, 1)


async def test_a_step_that_a_failure_has_cancelled_is_not_cancelled_again_with_the_caller(schedule):
    cleaning = Cleaning(takes=longer_than_the_grace_period())

    async def fail_later():
        await cleaning.started.wait()
        raise ValueError

    steps = [WorkflowStep("a", fail_later), WorkflowStep("b", cleaning)]
    run = asyncio.ensure_future(run_pipeline(steps, schedule=schedule))
    while not cleaning.cancels:
        await asyncio.sleep(0)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run

    assert (cleaning.cancels, cleaning.cleaned) == (1, 1)


async def test_a_cancellation_before_the_first_step_has_started_skips_them_all(schedule):
    events = []
    run = asyncio.ensure_future(
        run_pipeline([WorkflowStep("a", forever)], schedule=schedule, observers=[events.append])
    )
    await asyncio.sleep(0)

    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run

    assert isinstance(events[-1], RunFinished)


@pytest.mark.parametrize("turns", range(12))
@pytest.mark.parametrize("fail_fast", [True, False])
async def test_a_cancellation_in_any_turn_propagates(schedule, turns, fail_fast):
    async def two_turns():
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    events = []
    run = asyncio.ensure_future(
        run_pipeline(
            [
                WorkflowStep("a", two_turns),
                WorkflowStep("b", Flaky(3), max_retries=3),
                WorkflowStep("c", two_turns, ["a"]),
                WorkflowStep("d", forever, ["c"] if not fail_fast else [], timeout_ms=None),
            ],
            fail_fast,
            schedule=schedule,
            observers=[events.append],
        )
    )
    for _ in range(turns):
        await asyncio.sleep(0)

    ended_before = run.done()
    run.cancel()

    if not ended_before:
        with pytest.raises(asyncio.CancelledError):
            await run
        # A run that is cancelled before its first line emits no event.
        assert not events or isinstance(events[-1], RunFinished)


async def test_the_cancelling_count_of_the_caller_is_unchanged(schedule):
    caller = asyncio.current_task()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(0)

    report = await run_pipeline(
        [WorkflowStep("a", fail), WorkflowStep("b", forever)], schedule=schedule
    )

    assert not report.all_passed
    assert caller.cancelling() == 1
    caller.uncancel()


async def test_inside_an_expiring_anyio_scope_clean_up_completes_and_the_scope_catches(schedule):
    cleaning = Cleaning()
    with anyio.CancelScope() as scope:

        def expire(event):
            if isinstance(event, AttemptStarted):
                scope.deadline = anyio.current_time() + 0.01

        step = WorkflowStep("a", cleaning, timeout_ms=None)
        await run_pipeline([step], schedule=schedule, observers=[expire])

    assert scope.cancelled_caught
    assert (cleaning.cancels, cleaning.cleaned) == (1, 1)
    assert asyncio.current_task().cancelling() == 0


async def test_a_timeout_around_the_run_cancels_it(schedule):
    cleaning = Cleaning()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await run_pipeline([WorkflowStep("a", cleaning, timeout_ms=None)], schedule=schedule)

    assert cleaning.cleaned == 1


async def test_a_run_inside_a_step_is_cancelled_with_it(schedule):
    cleaning = Cleaning()

    async def inner():
        step = WorkflowStep("inner", cleaning, timeout_ms=None)
        return await run_pipeline([step], schedule=schedule)

    report = await run_pipeline([WorkflowStep("outer", inner, timeout_ms=20)], schedule=schedule)

    assert isinstance(report["outer"].error, StepTimeoutError)
    assert cleaning.cleaned == 1


# Base exceptions.


@pytest.mark.parametrize("fail_fast", [True, False])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_a_base_exception_stops_the_run_and_propagates_unchanged(schedule, fail_fast, kind):
    cleaning = Cleaning()
    stop = kind("stop")
    calls = []

    async def action():
        calls.append(1)
        await cleaning.started.wait()
        raise stop

    events = []
    with pytest.raises(kind) as raised:
        await run_pipeline(
            [
                WorkflowStep("a", action, max_retries=3),
                WorkflowStep("b", cleaning, timeout_ms=None),
            ],
            fail_fast,
            schedule=schedule,
            observers=[events.append],
        )

    assert raised.value is stop
    assert len(calls) == 1
    assert cleaning.cleaned == 1
    assert (events[-1].status, events[-1].cause) == ("INTERRUPTED", "step")


async def test_of_two_interruptions_in_one_turn_the_first_propagates(schedule):
    gate = asyncio.Event()

    async def action():
        await gate.wait()
        raise SystemExit(current_step().step_name)

    async def open_gate():
        await asyncio.sleep(0.001)
        gate.set()

    with pytest.raises(SystemExit) as raised:
        await run_pipeline(
            [
                WorkflowStep("a", action),
                WorkflowStep("b", action),
                WorkflowStep("gate", open_gate),
            ],
            schedule=schedule,
        )

    assert raised.value.code == "a"


async def test_a_cancellation_does_not_import_the_asyncio_backend_of_anyio(schedule, monkeypatch):
    monkeypatch.delitem(sys.modules, "anyio._backends._asyncio", raising=False)
    cleaning = Cleaning()
    run = asyncio.ensure_future(run_pipeline([WorkflowStep("a", cleaning)], schedule=schedule))
    await cleaning.started.wait()

    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run

    assert cleaning.cleaned == 1
    assert "anyio._backends._asyncio" not in sys.modules


async def test_an_internal_error_stops_the_run_and_is_raised_instead_of_hanging(
    schedule, monkeypatch
):
    def defective(*_):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("asyncflow._kernel.attempt.Attempts.conclude", defective)
    cleaning = Cleaning()

    with pytest.raises(ZeroDivisionError):
        await run_pipeline(
            [WorkflowStep("a", fail), WorkflowStep("b", cleaning), WorkflowStep("c", fail)],
            schedule=schedule,
        )


async def test_pytest_fail_in_a_step_fails_the_test(schedule):
    async def action():
        pytest.fail("as a user would")

    with pytest.raises(pytest.fail.Exception, match="as a user would"):
        await run_pipeline([WorkflowStep("a", action)], schedule=schedule)


# Steps that ignore their cancellation.


async def test_a_step_that_ignores_its_cancellation_is_named_after_the_grace_period(
    schedule, caplog
):
    needs_virtual_time()

    async def stubborn():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(7)

    with caplog.at_level(logging.WARNING, "asyncflow"):
        report = await run_pipeline(
            [
                WorkflowStep("stubborn", stubborn, timeout_ms=1_000, max_retries=2),
                WorkflowStep("polite", Cleaning(takes=4), timeout_ms=1_000),
            ],
            fail_fast=False,
            schedule=schedule,
        )

    assert report["stubborn"].attempts == 2
    assert len(caplog.records) == 2
    assert "'stubborn', attempt 1, has not ended 5 s after" in caplog.text
    assert f"{__file__}:" in caplog.text
    assert "stubborn" in caplog.records[1].getMessage()


@pytest.mark.long_time
async def test_each_attempt_that_does_not_end_is_named_once(schedule, caplog):
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualTimeLoop):
        pytest.skip("the grace period is five seconds, which is too long in real time")

    async def long():
        await asyncio.sleep(9)

    with caplog.at_level(logging.WARNING, "asyncflow"):
        await run_pipeline(
            [
                WorkflowStep("first", Cleaning(takes=20), timeout_ms=1_000),
                WorkflowStep("second", Cleaning(takes=20), timeout_ms=3_000),
                WorkflowStep("unlimited", long, timeout_ms=None),
                WorkflowStep("backing off", Flaky(1), max_retries=2, retry=8_000),
            ],
            fail_fast=False,
            schedule=schedule,
        )

    assert [record.args[0] for record in caplog.records] == ["first", "second"]


async def test_a_stopped_step_that_does_not_end_is_named_too(schedule, caplog):
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualTimeLoop):
        pytest.skip("the grace period is five seconds, which is too long in real time")
    stubborn = Cleaning(takes=20)

    async def fail_later():
        await stubborn.started.wait()
        raise ValueError

    with caplog.at_level(logging.WARNING, "asyncflow"):
        await run_pipeline(
            [WorkflowStep("a", fail_later), WorkflowStep("b", stubborn, timeout_ms=None)],
            schedule=schedule,
        )

    assert len(caplog.records) == 1
    assert "step 'b', attempt 1" in caplog.text


# Pipelines as a whole.


async def test_an_empty_pipeline_passes(schedule):
    events = []

    report = await run_pipeline([], schedule=schedule, observers=[events.append])

    assert report.all_passed
    assert len(report) == 0
    assert [type(event).__name__ for event in events] == ["RunStarted", "RunFinished"]


async def test_the_same_steps_in_concurrent_runs_are_independent(schedule):
    async def action(value):
        await asyncio.sleep(0.001 * value)
        return value

    orchestrator = Orchestrator([WorkflowStep("a", action)], schedule=schedule)

    reports = await asyncio.gather(
        *(orchestrator.with_options(run_id=str(i)).run(value=i) for i in range(5))
    )

    assert [report["a"].output for report in reports] == list(range(5))
    assert [report.run_id for report in reports] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
async def test_an_observer_that_raises_is_logged_dropped_and_harmless(schedule, error, caplog):
    seen, calls = [], []

    def broken(event):
        calls.append(event)
        raise error("observer down")

    with caplog.at_level(logging.ERROR, "asyncflow"):
        report = await run_pipeline(
            [WorkflowStep("a", succeed)], schedule=schedule, observers=[broken, seen.append]
        )

    assert report.all_passed
    assert len(calls) == 1
    assert len(seen) == 4
    assert "observer down" in caplog.text
    assert "RunStarted" in caplog.text


@pytest.mark.parametrize("at", [0, 1, 2, 3])
async def test_an_observer_that_interrupts_stops_the_run_at_any_event(schedule, at):
    seen = []

    def interrupting(event):
        seen.append(event)
        if len(seen) == at + 1:
            raise KeyboardInterrupt(f"at {at}")

    with pytest.raises(KeyboardInterrupt, match=f"at {at}"):
        await run_pipeline(
            [WorkflowStep("a", succeed)], schedule=schedule, observers=[interrupting]
        )


async def test_all_observers_receive_the_same_events_in_the_same_order(schedule):
    def interrupting(event):
        raise SystemExit

    heard = []
    with pytest.raises(SystemExit):
        await run_pipeline(
            [WorkflowStep("a", succeed)],
            schedule=schedule,
            observers=[interrupting, heard.append],
        )

    assert [type(event).__name__ for event in heard] == [
        "RunStarted",
        "RunInterrupted",
        "StepSkipped",
        "RunFinished",
    ]


async def test_a_run_that_ends_before_its_stop_is_due_leaves_no_timer(schedule):
    def interrupting(event):
        raise SystemExit

    with pytest.raises(SystemExit):
        await run_pipeline([], schedule=schedule, observers=[interrupting])
    await asyncio.sleep(0)

    loop = asyncio.get_running_loop()
    if isinstance(loop, VirtualTimeLoop):
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == []


async def test_a_run_is_interrupted_once_however_many_reasons_there_are(schedule):
    events = []

    async def action():
        caller.cancel()
        raise GeneratorExit

    caller = asyncio.ensure_future(
        run_pipeline([WorkflowStep("a", action)], schedule=schedule, observers=[events.append])
    )
    await asyncio.wait([caller])

    assert isinstance(caller.exception(), GeneratorExit)
    assert sum(isinstance(event, RunInterrupted) for event in events) == 1


async def test_events_report_all_that_happens_in_order(schedule):
    events = []

    await run_pipeline(
        [WorkflowStep("a", Flaky(1), max_retries=2), WorkflowStep("b", succeed, ["a"])],
        schedule=schedule,
        run_id="r",
        observers=[events.append],
    )

    assert [type(event).__name__ for event in events] == [
        "RunStarted",
        "AttemptStarted",
        "AttemptFailed",
        "AttemptStarted",
        "StepSucceeded",
        "AttemptStarted",
        "StepSucceeded",
        "RunFinished",
    ]
    assert events[0].dependencies == {"a": (), "b": ("a",)}
    assert isinstance(events[2], AttemptFailed)
    assert events[2].retry_in_ms == 0
    assert events[-1].status == "PASSED"
    times = [event.at_ms for event in events[1:]]
    assert times == sorted(times)


async def test_current_step_describes_the_attempt_also_in_tasks_that_it_starts(schedule):
    async def child():
        return current_step().attempt

    async def action():
        step = current_step()
        if step.attempt == 1:
            raise ValueError
        inherited = await asyncio.create_task(child())
        return (
            step.run_id,
            step.step_name,
            step.attempt,
            step.max_retries,
            step.idempotency_key,
            inherited,
            repr(step),
        )

    report = await run_pipeline(
        [WorkflowStep("a", action, max_retries=2)], schedule=schedule, run_id="r"
    )

    assert report["a"].output == (
        "r",
        "a",
        2,
        2,
        "r/a",
        2,
        "<StepContext 'a', attempt 2, of run r>",
    )
    with pytest.raises(RuntimeError, match="only while a step's action runs"):
        current_step()


async def test_remaining_time_shrinks_and_never_falls_below_zero(schedule):
    seen = []

    async def action():
        seen.append(current_step().remaining_ms())
        try:
            await asyncio.sleep(1)
        finally:
            seen.append(current_step().remaining_ms())

    await run_pipeline([WorkflowStep("a", action, timeout_ms=20)], schedule=schedule)

    first, last = seen
    assert 0 <= last <= 2 < first <= 20.001


async def test_tasks_are_named_after_run_step_and_attempt(schedule):
    names = []

    async def action():
        await asyncio.sleep(0)  # an eager task receives its name after its first wait
        names.append(asyncio.current_task().get_name())
        if len(names) == 1:
            raise ValueError

    await run_pipeline([WorkflowStep("load", action, max_retries=2)], schedule=schedule, run_id="r")

    assert names == ["asyncflow:r:load#1", "asyncflow:r:load#2"]


async def test_without_a_collector_a_dropped_report_frees_what_the_steps_held(schedule):
    hold = Holding()

    async def fails():
        thing = hold()
        await asyncio.sleep(0)
        raise ValueError(type(thing))

    async def fails_at_once():
        thing = hold()
        raise ValueError(type(thing))

    async def hangs():
        thing = hold()
        await asyncio.Event().wait()
        return thing

    async def cancels_itself():
        thing = hold()
        asyncio.current_task().cancel()
        await asyncio.sleep(1)
        return thing

    async def returns():
        return hold()

    async def run_all():
        report = await run_pipeline(
            [
                WorkflowStep("returns", returns),
                WorkflowStep("fails", fails, max_retries=2),
                WorkflowStep("fails at once", fails_at_once, max_retries=2),
                WorkflowStep("hangs", hangs, timeout_ms=10),
                WorkflowStep("cancels itself", cancels_itself),
                WorkflowStep("after", succeed, ["fails"]),
            ],
            fail_fast=False,
            schedule=schedule,
        )
        assert len(report.failed) == 4

    async def run_fail_fast():
        cleaning = Cleaning(then=OSError())
        report = await run_pipeline(
            [WorkflowStep("fails", fails), WorkflowStep("b", cleaning), WorkflowStep("c", hangs)],
            schedule=schedule,
        )
        assert len(report.failed) == 1

    async def run_cancelled():
        run = asyncio.ensure_future(run_pipeline([WorkflowStep("a", hangs)], schedule=schedule))
        while not hold:
            await asyncio.sleep(0)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    async def run_cancelled_and_not_awaited():
        steps = [WorkflowStep("gives", returns), WorkflowStep("hangs", hangs, ["gives"])]
        run = asyncio.ensure_future(run_pipeline(steps, schedule=schedule))
        while len(hold) < 2:
            await asyncio.sleep(0)
        run.cancel()
        await asyncio.wait([run])

    async def run_with_a_condition_that_raises():
        def raises():
            thing = hold()
            raise ValueError(type(thing))

        steps = [WorkflowStep("a", succeed, when=raises), WorkflowStep("b", succeed)]
        report = await run_pipeline(steps, schedule=schedule)
        assert report["a"].status is FAILED

    async def run_cancelled_far_below():
        async def inner():
            thing = hold()
            await run_pipeline([WorkflowStep("a", hangs)], schedule=schedule)
            return thing

        run = asyncio.ensure_future(inner())
        while len(hold) < 2:
            await asyncio.sleep(0)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    async def run_with_runs_inside():
        async def inner(action):
            await run_pipeline([WorkflowStep("inner", action)], schedule=schedule)

        actions = {"a": returns, "b": fails, "c": fails_at_once}
        steps = [WorkflowStep(name, partial(inner, action)) for name, action in actions.items()]
        report = await run_pipeline(steps, schedule=schedule)
        assert report.all_passed

    async def run_interrupted():
        async def interrupts():
            thing = hold()
            raise KeyboardInterrupt(type(thing))

        with contextlib.suppress(KeyboardInterrupt):
            await run_pipeline([WorkflowStep("a", interrupts)], schedule=schedule)

    with without_collector():
        for scenario in (
            run_all,
            run_fail_fast,
            run_cancelled,
            run_cancelled_and_not_awaited,
            run_with_a_condition_that_raises,
            run_cancelled_far_below,
            run_with_runs_inside,
            run_interrupted,
        ):
            await scenario()
            await asyncio.sleep(0)
            assert hold, scenario
            assert hold.alive() == [], scenario
            hold.clear()


async def test_the_start_of_an_attempt_is_reported_before_its_action_is_called(schedule):
    events = []

    async def action():
        assert isinstance(events[-1], AttemptStarted)

    report = await run_pipeline(
        [WorkflowStep("a", action)], schedule=schedule, observers=[events.append]
    )

    assert report.all_passed
