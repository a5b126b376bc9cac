"""Whether and when a failed attempt is retried."""

from __future__ import annotations

import asyncio

import pytest
from third_party import step_tasks

from asyncflow import (
    Pool,
    ResultRefusedError,
    Retry,
    StepCancelledError,
    StepStatus,
    StepTimeoutError,
    WorkflowStep,
    current_step,
    run_pipeline,
)
from asyncflow.events import AttemptFailed, RunFinished
from asyncflow.testing import VirtualTimeLoop


class Failing:
    """Raises these errors, one an attempt, then returns the number of the attempt."""

    def __init__(self, *errors):
        self.errors = errors

    async def __call__(self):
        attempt = current_step().attempt
        if attempt <= len(self.errors):
            raise self.errors[attempt - 1]
        return attempt


async def backoffs_of(retry, *errors, attempts=9, **options):
    """Run a step that fails so; return its result and its backoffs."""
    events = []
    step = WorkflowStep("a", Failing(*errors), max_retries=attempts, retry=retry, **options)
    report = await run_pipeline([step], observers=[events.append])
    backoffs = [event.retry_in_ms for event in events if isinstance(event, AttemptFailed)]
    return report["a"], backoffs


def some(count):
    return [ValueError(n) for n in range(count)]


@pytest.mark.parametrize(
    ("retry", "expected"),
    [
        (2, [2, 2, 2]),
        (Retry(base_ms=1, factor=2, jitter=False), [1, 2, 4]),
        (Retry(base_ms=1, factor=3, max_ms=5, jitter=False), [1, 3, 5]),
        (Retry(base_ms=1, factor=1, jitter=False), [1, 1, 1]),
        (Retry(base_ms=4, factor=2, random=lambda: 0.5), [2, 4, 8]),
        (Retry(base_ms=4, factor=2, random=lambda: 0.0), [0, 0, 0]),
        (Retry(base_ms=1, factor=1e308, max_ms=3, jitter=False), [1, 3, 3]),
    ],
)
async def test_the_policy_decides_the_backoffs(retry, expected):
    result, backoffs = await backoffs_of(retry, *some(3))

    assert backoffs == expected
    assert result.output == 4


async def test_on_receives_a_timeout_too():
    received = []

    async def hang():
        await asyncio.Event().wait()

    await run_pipeline(
        [
            WorkflowStep(
                "a", hang, timeout_ms=5, max_retries=2, retry=Retry(on=lambda e: received.append(e))
            )
        ]
    )

    assert isinstance(received[0], StepTimeoutError)


@pytest.mark.parametrize(
    "on", [lambda _: {}["nothing"], lambda _: "soon", lambda _: -1, lambda _: float("nan")]
)
async def test_an_on_that_raises_or_returns_nonsense_fails_the_step(on):
    result, backoffs = await backoffs_of(Retry(on=on), *some(9))

    assert backoffs == []
    assert isinstance(result.error, KeyError | TypeError)
    assert isinstance(result.error.__context__, ValueError)


async def test_an_on_that_raises_its_argument_creates_no_context_cycle():
    def on(error):
        raise error

    result, _ = await backoffs_of(Retry(on=on), ValueError("same"))

    assert str(result.error) == "same"
    assert result.error.__context__ is None


async def test_an_on_that_raises_a_cancellation_fails_only_the_step():
    def on(_):
        raise asyncio.CancelledError

    result, _ = await backoffs_of(Retry(on=on), *some(9))

    assert isinstance(result.error, StepCancelledError)
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.parametrize("policy", ["on", "until"])
async def test_a_policy_that_raises_a_base_exception_stops_the_run(policy):
    events = []
    stop = KeyboardInterrupt()

    def interrupt(_):
        raise stop

    action = Failing(*some(9)) if policy == "on" else Failing()
    step = WorkflowStep("a", action, max_retries=3, retry=Retry(**{policy: interrupt}))

    with pytest.raises(KeyboardInterrupt) as raised:
        await run_pipeline([step], observers=[events.append])

    assert raised.value is stop
    assert isinstance(events[-1], RunFinished)


async def test_a_refused_result_is_retried_whatever_on_says():
    step = WorkflowStep(
        "a",
        Failing(),
        max_retries=5,
        retry=Retry(base_ms=1, until=lambda value: value == 3, on=OSError),
    )

    report = await run_pipeline([step])

    assert (report["a"].output, report["a"].attempts) == (3, 3)
    assert [type(each.error) for each in report["a"].history[:2]] == [ResultRefusedError] * 2


async def test_an_until_that_returns_an_awaitable_fails_the_attempt():
    async def is_done(value):
        return False

    retry = Retry(base_ms=0, until=lambda value: is_done(value))

    report = await run_pipeline([WorkflowStep("a", Failing(), max_retries=2, retry=retry)])

    assert report["a"].status is StepStatus.FAILED
    assert str(report["a"].error).startswith("Retry: until returned coroutine, which would have")


async def test_an_until_that_raises_fails_the_attempt_with_its_error():
    retry = Retry(base_ms=0, until=lambda value: {3: True}[value])

    report = await run_pipeline([WorkflowStep("a", Failing(), max_retries=5, retry=retry)])

    assert report["a"].output == 3
    assert [type(each.error) for each in report["a"].history[:2]] == [KeyError] * 2


@pytest.mark.parametrize("options", [{}, {"max_concurrency": 1}])
@pytest.mark.parametrize("more", [{}, {"pool": Pool(1)}, {"deadline_ms": 10_000}])
async def test_a_third_party_that_cancels_a_step_between_its_attempts_changes_nothing(
    options, more
):
    attacked = []

    def attack():
        attacked.extend(step_tasks())
        for task in attacked:
            task.cancel()

    async def first_fails():
        if current_step().attempt == 1:
            asyncio.get_running_loop().call_later(0.002, attack)
            raise ValueError
        return "recovered"

    report = await run_pipeline(
        [WorkflowStep("a", first_fails, max_retries=2, retry=10, **more)], **options
    )

    assert len(attacked) == 1
    assert report["a"].output == "recovered"
    assert report["a"].history[1].started_ms > 8


@pytest.mark.parametrize("options", [{}, {"heartbeat_ms": 60_000}, {"pool": Pool(1)}])
async def test_an_action_sees_what_the_attempt_before_failed_with(options):
    first, second, seen = ValueError(1), ValueError(2), []

    async def ask():
        step = current_step()
        seen.append(step.last_error)
        if step.attempt < 3:
            raise (first, second)[step.attempt - 1]

    await run_pipeline([WorkflowStep("ask", ask, max_retries=3, **options)])

    assert len(seen) == 3
    assert seen[0] is None
    assert (seen[1], seen[2]) == (first, second)


async def test_each_item_sees_its_own_last_error():
    async def ask(numbers):
        step = current_step()
        if step.attempt == 1:
            await asyncio.sleep(0.001 * numbers)
            raise ValueError(numbers)
        return str(step.last_error)

    steps = [
        WorkflowStep("numbers", lambda: asyncio.sleep(0, [3, 1, 2])),
        WorkflowStep("ask", ask, ["numbers"], map_over="numbers", max_retries=2, retry=5),
    ]

    report = await run_pipeline(steps)

    assert report["ask"].output == ["3", "1", "2"]


async def test_the_last_error_is_a_timeout_if_the_attempt_before_exceeded_its_limit():
    async def slow_at_first():
        if current_step().attempt == 1:
            await asyncio.sleep(1)
        return current_step().last_error

    report = await run_pipeline([WorkflowStep("a", slow_at_first, timeout_ms=5, max_retries=2)])

    assert isinstance(report["a"].output, StepTimeoutError)


class EarlyLoop(VirtualTimeLoop):
    """Has timers that are early by a tenth, as a loop's are that counts whole milliseconds."""

    def call_later(self, delay, *args, **options):
        return super().call_later(0.9 * delay, *args, **options)


def test_a_pause_between_attempts_does_not_end_with_an_early_timer():
    begun_s = []
    loop = EarlyLoop()

    async def fails():
        begun_s.append(loop.time())
        raise ValueError

    step = WorkflowStep("a", fails, max_retries=2, retry=1_000)
    try:
        loop.run_until_complete(run_pipeline([step]))
    finally:
        loop.close()

    assert begun_s[1] - begun_s[0] == pytest.approx(1)
