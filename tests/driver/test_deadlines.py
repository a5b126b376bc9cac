"""When attempts start and end: timeouts, backoffs and deadlines, to the millisecond."""

from __future__ import annotations

import asyncio
import threading

import pytest
from fake_engine import FakeEngine

from asyncflow import (
    Retry,
    StepStatus,
    StepTimeoutError,
    WorkflowStep,
    current_step,
    run_pipeline,
)
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    RunTimedOut,
    StepCancelled,
    StepFailed,
    StepSucceeded,
)
from asyncflow.testing import run_in_virtual_time

pytestmark = pytest.mark.exact_time

LETTERS = {
    AttemptStarted: "start",
    AttemptFailed: "retry",
    StepSucceeded: "success",
    StepFailed: "fail",
    StepCancelled: "cancel",
    RunTimedOut: "deadline",
}


def timeline(events):
    """Return the events and their times as one line."""
    return " ".join(
        f"{LETTERS[type(event)]}@{round(event.at_ms, 6):g}"
        for event in events
        if type(event) in LETTERS
    )


def doubling(base_ms, max_ms=30_000):
    return Retry(base_ms=base_ms, factor=2, max_ms=max_ms, jitter=False)


def attempts_that(*each_takes_ms, ends="fail"):
    """Return an action whose attempts take this long; all fail, or all but the last."""
    durations = iter(each_takes_ms)

    async def action():
        takes = next(durations)
        await asyncio.sleep(takes / 1000)
        if ends == "fail" or current_step().attempt < len(each_takes_ms):
            raise ValueError(takes)

    return action


async def slow_to_clean_up():
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.007)


F, S = "fail", "succeed"
TABLE = [
    # each attempt takes, its end, attempts, timeout, retry, step's deadline, run's, what happens
    ([0], S, 1, None, 0, None, None, "start@0 success@0"),
    ([10], S, 1, None, 0, None, None, "start@0 success@10"),
    ([10], F, 1, None, 0, None, None, "start@0 fail@10"),
    ([10], S, 1, 20, 0, None, None, "start@0 success@10"),
    ([30], S, 1, 20, 0, None, None, "start@0 fail@20"),
    ([10], F, 1, 20, 0, None, None, "start@0 fail@10"),
    # A retry.
    ([10, 10], S, 2, None, 0, None, None, "start@0 retry@10 start@10 success@20"),
    ([10, 10], F, 2, None, 0, None, None, "start@0 retry@10 start@10 fail@20"),
    ([10, 10], S, 2, None, 5, None, None, "start@0 retry@10 start@15 success@25"),
    ([10, 10], F, 2, None, 5, None, None, "start@0 retry@10 start@15 fail@25"),
    ([0, 0, 0], S, 3, None, 5, None, None, "start@0 retry@0 start@5 retry@5 start@10 success@10"),
    ([30, 10], S, 2, 20, 5, None, None, "start@0 retry@20 start@25 success@35"),
    ([30, 30], F, 2, 20, 5, None, None, "start@0 retry@20 start@25 fail@45"),
    ([30, 30], F, 2, 20, 0, None, None, "start@0 retry@20 start@20 fail@40"),
    # The backoff grows, up to its maximum.
    (
        [0] * 4,
        F,
        4,
        None,
        doubling(10),
        None,
        None,
        "start@0 retry@0 start@10 retry@10 start@30 retry@30 start@70 fail@70",
    ),
    (
        [0] * 4,
        F,
        4,
        None,
        doubling(10, 15),
        None,
        None,
        "start@0 retry@0 start@10 retry@10 start@25 retry@25 start@40 fail@40",
    ),
    (
        [1, 2, 3],
        F,
        3,
        None,
        doubling(10),
        None,
        None,
        "start@0 retry@1 start@11 retry@13 start@33 fail@36",
    ),
    # The step's deadline ends an attempt.
    ([30], S, 1, None, 0, 20, None, "start@0 fail@20"),
    ([10], S, 1, None, 0, 20, None, "start@0 success@10"),
    ([30], S, 3, None, 0, 20, None, "start@0 fail@20"),
    ([30], S, 3, 10, 0, 5, None, "start@0 fail@5"),
    ([10, 30], S, 2, None, 0, 25, None, "start@0 retry@10 start@10 fail@25"),
    ([10, 30], S, 2, None, 5, 25, None, "start@0 retry@10 start@15 fail@25"),
    ([30, 30], S, 2, 10, 5, 20, None, "start@0 retry@10 start@15 fail@20"),
    ([30, 30], S, 2, 10, 5, 40, None, "start@0 retry@10 start@15 fail@25"),
    ([10, 5], S, 2, None, 5, 25, None, "start@0 retry@10 start@15 success@20"),
    # No backoff starts that would reach the step's deadline.
    ([10], F, 2, None, 10, 20, None, "start@0 fail@10"),
    ([10], F, 2, None, 11, 20, None, "start@0 fail@10"),
    ([10, 0], F, 2, None, 9, 20, None, "start@0 retry@10 start@19 fail@19"),
    ([10], F, 9, None, 1_000, 500, None, "start@0 fail@10"),
    ([0] * 2, F, 9, None, doubling(10), 25, None, "start@0 retry@0 start@10 fail@10"),
    # Nor one that would reach the run's deadline.
    ([10], F, 2, None, 10, None, 20, "start@0 fail@10"),
    ([10], F, 2, None, 60, 100, 50, "start@0 fail@10"),
    ([10], F, 2, None, 60, 50, 100, "start@0 fail@10"),
    ([10, 0], F, 2, None, 9, None, 20, "start@0 retry@10 start@19 fail@19"),
    # The run's deadline cancels running attempts and is reported.
    ([30], S, 1, None, 0, None, 20, "start@0 deadline@20 cancel@20"),
    ([30], S, 1, 25, 0, None, 20, "start@0 deadline@20 cancel@20"),
    ([30], S, 1, 15, 0, None, 20, "start@0 fail@15"),
    ([30], S, 3, None, 0, 25, 20, "start@0 deadline@20 cancel@20"),
    ([30], S, 3, None, 0, 15, 20, "start@0 fail@15"),
    ([10, 30], S, 2, None, 5, None, 25, "start@0 retry@10 start@15 deadline@25 cancel@25"),
    ([10, 30], S, 3, 5, 0, None, 8, "start@0 retry@5 start@5 deadline@8 cancel@8"),
    ([10], S, 1, None, 0, None, 20, "start@0 success@10"),
    ([5, 5], S, 2, 10, 5, 16, 17, "start@0 retry@5 start@10 success@15"),
]


@pytest.mark.parametrize(
    ("takes", "end", "attempts", "timeout", "retry", "deadline", "of_run", "expected"), TABLE
)
def test_every_attempt_starts_and_ends_on_time(
    takes, end, attempts, timeout, retry, deadline, of_run, expected
):
    events = []
    step = WorkflowStep(
        "a",
        attempts_that(*takes, ends=end),
        max_retries=attempts,
        timeout_ms=timeout,
        retry=retry,
        deadline_ms=deadline,
    )

    run_in_virtual_time(run_pipeline([step], deadline_ms=of_run, observers=[events.append]))

    assert timeline(events) == expected


@pytest.mark.parametrize(
    ("limits", "of_run", "kind", "limit_ms"),
    [
        ({"timeout_ms": 10, "deadline_ms": 20}, 30, "attempt", 10),
        ({"timeout_ms": 20, "deadline_ms": 10}, 30, "step", 10),
        ({"timeout_ms": 20, "deadline_ms": 30}, 10, "run", 10),
        ({"heartbeat_ms": 10, "deadline_ms": 20}, 30, "heartbeat", 10),
        ({"timeout_ms": 10, "deadline_ms": 10}, None, "attempt", 10),
        ({"timeout_ms": None, "deadline_ms": 10}, None, "step", 10),
        ({"timeout_ms": None}, 10, "run", 10),
    ],
)
async def test_the_error_says_which_limit_was_the_tightest(limits, of_run, kind, limit_ms):
    report = await run_pipeline([WorkflowStep("a", slow_to_clean_up, **limits)], deadline_ms=of_run)

    error = report["a"].error
    assert isinstance(error, StepTimeoutError)
    assert (error.kind, error.timeout_ms, error.attempt) == (kind, limit_ms, 1)


async def test_clean_up_after_a_deadline_is_awaited_and_no_attempt_follows():
    report = await run_pipeline(
        [WorkflowStep("a", slow_to_clean_up, deadline_ms=10, max_retries=5)]
    )

    assert (report["a"].status, report["a"].attempts) == (StepStatus.FAILED, 1)
    assert round(report["a"].duration_ms, 6) == 17


async def test_a_run_that_exceeds_its_deadline_skips_the_rest_and_is_not_raised():
    report = await run_pipeline(
        [
            WorkflowStep("runs", slow_to_clean_up),
            WorkflowStep("waits", slow_to_clean_up, ["runs"]),
        ],
        deadline_ms=10,
    )

    assert report.stop_reason == "the run exceeded its deadline of 10 ms"
    assert (report["runs"].status, report["waits"].status) == (
        StepStatus.CANCELLED,
        StepStatus.SKIPPED,
    )
    assert report["waits"].reason == report["runs"].reason == report.stop_reason


async def test_a_deadline_that_the_run_meets_leaves_no_timer():
    async def succeed():
        return 1

    await run_pipeline([WorkflowStep("a", succeed)], deadline_ms=60_000)

    loop = asyncio.get_running_loop()
    assert [timer for timer in loop._scheduled if not timer.cancelled()] == []


@pytest.mark.parametrize(
    ("limits", "of_run", "remaining"),
    [
        ({"timeout_ms": None}, None, None),
        ({"timeout_ms": 30, "deadline_ms": 50}, 40, 30),
        ({"timeout_ms": 50, "deadline_ms": 30}, 40, 30),
        ({"timeout_ms": 50, "deadline_ms": 40}, 30, 30),
        ({"timeout_ms": 50, "deadline_ms": 40, "run_if": "always"}, 30, 40),
    ],
)
async def test_the_tightest_limit_decides_the_remaining_time(limits, of_run, remaining):
    async def action():
        return current_step().remaining_ms()

    report = await run_pipeline([WorkflowStep("a", action, **limits)], deadline_ms=of_run)

    if remaining is None:
        assert report["a"].output is None
    else:
        assert remaining - 5 < report["a"].output <= remaining + 0.001


@pytest.mark.parametrize(
    ("limits", "of_run", "inner", "remaining"),
    [
        ({"timeout_ms": None}, None, {"timeout_ms": None}, None),
        ({"timeout_ms": 1_000}, None, {}, 900),
        ({"timeout_ms": None}, 1_000, {}, 900),
        ({"timeout_ms": 1_000}, None, {"timeout_ms": None, "run_if": "always"}, 900),
        ({"timeout_ms": 1_000, "run_if": "always"}, 50, {}, 900),
        ({"timeout_ms": 1_000}, None, {"timeout_ms": 500}, 500),
    ],
)
def test_a_nested_run_sees_the_limits_of_the_attempt_around_it(limits, of_run, inner, remaining):
    def read():
        return current_step().remaining_ms()

    async def act():
        return read()

    async def middle():
        steps = [
            WorkflowStep("loop", act, **inner),
            WorkflowStep("thread", read, runs_in="thread", **inner),
        ]
        report = await run_pipeline(steps)
        return [result.output for result in report.results]

    async def outermost():
        await asyncio.sleep(0.1)
        report = await run_pipeline([WorkflowStep("middle", middle, timeout_ms=None)])
        return report["middle"].output

    async def main():
        steps = [WorkflowStep("outermost", outermost, **limits)]
        return await run_pipeline(steps, deadline_ms=of_run)

    left = run_in_virtual_time(main())["outermost"].output

    assert left == (2 * [None] if remaining is None else pytest.approx(2 * [remaining]))


def test_an_engine_learns_of_the_limits_around_a_nested_run():
    engine = FakeEngine()

    async def nest():
        step = WorkflowStep("inner", asyncio.sleep, timeout_ms=None, run_if="always")
        await run_pipeline([step], inputs={"delay": 0}, engine=engine)

    run_in_virtual_time(run_pipeline([WorkflowStep("nest", nest, timeout_ms=1_000)]))

    (call,) = engine.calls
    assert (call.limit_s, call.deadline_s) == (None, pytest.approx(1))


async def test_a_heartbeat_keeps_an_attempt_alive_for_any_length_of_time():
    async def beats():
        for _ in range(6):
            await asyncio.sleep(0.01)
            current_step().heartbeat()
        return "alive"

    report = await run_pipeline([WorkflowStep("a", beats, heartbeat_ms=30, timeout_ms=None)])

    assert report["a"].output == "alive"


async def test_an_attempt_without_a_heartbeat_is_cancelled_awaited_and_retried():
    cleaned = []

    async def dies():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.005)
            cleaned.append(current_step().attempt)

    events = []
    await run_pipeline(
        [WorkflowStep("a", dies, heartbeat_ms=10, max_retries=2)], observers=[events.append]
    )

    assert cleaned == [1, 2]
    assert timeline(events) == "start@0 retry@15 start@15 fail@30"


async def test_a_value_returned_after_a_missed_heartbeat_is_no_success():
    async def swallows():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "late"

    report = await run_pipeline([WorkflowStep("a", swallows, heartbeat_ms=10)])

    assert (report["a"].error.kind, report["a"].output) == ("heartbeat", None)


async def test_each_item_of_a_mapped_step_has_its_own_heartbeat_and_deadline():
    async def numbers():
        return range(4)

    async def action(numbers):
        await asyncio.sleep(0.001 if numbers % 2 else 1)

    steps = [
        WorkflowStep("numbers", numbers),
        *(
            WorkflowStep(
                f"by {limit}", action, {"numbers": "numbers"}, map_over="numbers", **{limit: 15}
            )
            for limit in ("heartbeat_ms", "deadline_ms", "timeout_ms")
        ),
    ]

    report = await run_pipeline(steps, fail_fast=False)

    kinds = {"by heartbeat_ms": "heartbeat", "by deadline_ms": "step", "by timeout_ms": "attempt"}
    for name, kind in kinds.items():
        errors = [item.error and item.error.kind for item in report[name].items]
        assert errors == [kind, None, kind, None]


@pytest.mark.realtime
@pytest.mark.parametrize(
    ("fail_fast", "fallback"), [(True, None), (False, None), (True, lambda error: "instead")]
)
def test_a_step_fails_at_its_deadline_without_waiting_for_its_running_thread(fail_fast, fallback):
    release = threading.Event()

    async def main():
        loop = asyncio.get_running_loop()
        loop.call_later(0.4, release.set)  # the thread ends in any case
        return await run_pipeline(
            [
                WorkflowStep(
                    "a",
                    release.wait,
                    runs_in="thread",
                    max_retries=3,
                    timeout_ms=50,
                    deadline_ms=120,
                    fallback=fallback,
                )
            ],
            fail_fast=fail_fast,
        )

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        report = runner.run(main())
        was_released = release.is_set()
        release.set()

    error = report["a"].error
    assert isinstance(error, StepTimeoutError)
    assert (error.kind, error.attempt) == ("step", 1)
    assert report["a"].attempts == len(report["a"].history) == 1
    assert report["a"].abandoned
    assert report["a"].output == (fallback and "instead")
    assert not was_released


@pytest.mark.parametrize("whose", ["step", "run"])
async def test_a_note_names_the_backoff_that_would_exceed_a_deadline(whose):
    async def fails():
        raise OSError

    step = WorkflowStep(
        "a", fails, max_retries=2, retry=5_000, deadline_ms=1_000 if whose == "step" else None
    )
    report = await run_pipeline([step], deadline_ms=1_000 if whose == "run" else None)

    assert report["a"].attempts == 1
    assert report["a"].error.__notes__ == [
        f"not retried: the 5000 ms backoff would exceed the {whose}'s deadline"
    ]
