"""Deadlines decide how long an attempt may take, and whether another attempt follows."""

from __future__ import annotations

from typing import Any

import pytest

from asyncflow import (
    ResultRefusedError,
    Retry,
    StepTimeoutError,
    WorkflowStep,
)
from asyncflow._core.pipeline.graph import plan
from asyncflow._core.running.deadlines import Limit
from asyncflow._core.running.state import RunState
from asyncflow.events import AttemptFailed, AttemptStarted, RunStarted

BOOM = OSError("boom")
NONE = None


async def nothing() -> None: ...


def state_of(step: WorkflowStep, deadline_ms: float | None = None, **options: Any) -> RunState:
    state = RunState(plan([step]), deadline_ms=deadline_ms, **options)
    state.apply(RunStarted("r1", 1_000.0, state._plan.depends_on))
    state.queue.take_ready()
    return state


def run_until(attempt: int, state: RunState, took_ms: float, delay_ms: float) -> float:
    """Start all attempts up to this one, each after the backoff; return its start time."""
    now = 100.0
    for number in range(1, attempt):
        state.apply(AttemptStarted("x", number, now))
        state.apply(AttemptFailed("x", number, now + took_ms, BOOM, delay_ms))
        now += took_ms + delay_ms
    state.apply(AttemptStarted("x", attempt, now))
    return now


# Attempts begin at 100 ms and take 10 ms each.
# timeout, deadline, run's deadline, attempts, backoff, which attempt: its limit, the next delay
TABLE: list[tuple[Any, ...]] = [
    # No limits: only the number of attempts counts.
    (NONE, NONE, NONE, 1, 0, 1, NONE, NONE),
    (NONE, NONE, NONE, 2, 0, 1, NONE, 0.0),
    (NONE, NONE, NONE, 2, 0, 2, NONE, NONE),
    (NONE, NONE, NONE, 3, 5, 1, NONE, 5.0),
    (NONE, NONE, NONE, 3, 5, 2, NONE, 5.0),
    (NONE, NONE, NONE, 3, 5, 3, NONE, NONE),
    (NONE, NONE, NONE, 9, 1e9, 8, NONE, 1e9),
    # A timeout limits each attempt and does not prevent a retry.
    (30, NONE, NONE, 1, 0, 1, ("attempt", 30, 130), NONE),
    (30, NONE, NONE, 3, 0, 1, ("attempt", 30, 130), 0.0),
    (30, NONE, NONE, 3, 0, 2, ("attempt", 30, 140), 0.0),
    (30, NONE, NONE, 3, 7, 2, ("attempt", 30, 147), 7.0),
    (30, NONE, NONE, 3, 7, 3, ("attempt", 30, 164), NONE),
    (1, NONE, NONE, 3, 7, 1, ("attempt", 1, 101), 7.0),
    (0.5, NONE, NONE, 3, 7, 1, ("attempt", 0.5, 100.5), 7.0),
    # A deadline counts from the first start, over all attempts and backoffs.
    (NONE, 50, NONE, 1, 0, 1, ("step", 50, 150), NONE),
    (NONE, 50, NONE, 9, 0, 1, ("step", 50, 150), 0.0),
    (NONE, 50, NONE, 9, 0, 4, ("step", 50, 150), 0.0),
    (NONE, 50, NONE, 9, 0, 5, ("step", 50, 150), NONE),
    (NONE, 50, NONE, 9, 20, 1, ("step", 50, 150), 20.0),
    (NONE, 50, NONE, 9, 20, 2, ("step", 50, 150), NONE),
    (NONE, 50, NONE, 9, 39, 1, ("step", 50, 150), 39.0),
    (NONE, 50, NONE, 9, 40, 1, ("step", 50, 150), NONE),
    (NONE, 50, NONE, 9, 41, 1, ("step", 50, 150), NONE),
    (NONE, 10, NONE, 9, 0, 1, ("step", 10, 110), NONE),
    (NONE, 10.5, NONE, 9, 0, 1, ("step", 10.5, 110.5), 0.0),
    # The tighter of the two ends the attempt.
    (30, 50, NONE, 9, 0, 1, ("attempt", 30, 130), 0.0),
    (30, 50, NONE, 9, 0, 2, ("attempt", 30, 140), 0.0),
    (30, 50, NONE, 9, 0, 3, ("attempt", 30, 150), 0.0),
    (30, 50, NONE, 9, 0, 4, ("step", 50, 150), 0.0),
    (30, 50, NONE, 9, 5, 2, ("attempt", 30, 145), 5.0),
    (30, 50, NONE, 9, 15, 2, ("step", 50, 150), NONE),
    (50, 50, NONE, 9, 0, 1, ("attempt", 50, 150), 0.0),
    (60, 50, NONE, 9, 0, 1, ("step", 50, 150), 0.0),
    (30, 50, NONE, 2, 5, 2, ("attempt", 30, 145), NONE),
    # The run's deadline counts from the start of the run; here it limits backoffs only.
    (NONE, NONE, 120, 9, 0, 1, NONE, 0.0),
    (NONE, NONE, 120, 9, 9, 1, NONE, 9.0),
    (NONE, NONE, 120, 9, 10, 1, NONE, NONE),
    (NONE, NONE, 120, 9, 0, 2, NONE, NONE),
    (NONE, NONE, 110, 9, 0, 1, NONE, NONE),
    (NONE, NONE, 50, 9, 0, 1, NONE, NONE),
    (30, NONE, 120, 9, 9, 1, ("attempt", 30, 130), 9.0),
    (30, NONE, 120, 9, 11, 1, ("attempt", 30, 130), NONE),
    # All three.
    (30, 50, 120, 9, 9, 1, ("attempt", 30, 130), 9.0),
    (30, 50, 120, 9, 10, 1, ("attempt", 30, 130), NONE),
    (30, 50, 500, 9, 39, 1, ("attempt", 30, 130), 39.0),
    (30, 50, 500, 9, 40, 1, ("attempt", 30, 130), NONE),
    (30, 15, 120, 9, 5, 1, ("step", 15, 115), NONE),
    (30, 15, 120, 9, 4, 1, ("step", 15, 115), 4.0),
    (30, 50, 120, 1, 0, 1, ("attempt", 30, 130), NONE),
]


@pytest.mark.parametrize(
    ("timeout", "deadline", "run_deadline", "attempts", "wait", "attempt", "limit", "follows"),
    TABLE,
)
class TestTable:
    def test_the_tighter_limit_ends_an_attempt(
        self, timeout: Any, deadline: Any, run_deadline: Any, attempts: int, wait: float,
        attempt: int, limit: Any, follows: Any,
    ) -> None:  # fmt: skip
        step = WorkflowStep(
            *("x", nothing), max_retries=attempts, timeout_ms=timeout, deadline_ms=deadline
        )
        state = state_of(step, run_deadline)

        now = run_until(attempt, state, 10, wait)

        assert state.deadlines.of(0, now) == (limit and Limit(*limit))
        assert state.deadlines.deadline_ms == run_deadline

    def test_another_attempt_follows_if_one_is_left_and_its_backoff_ends_in_time(
        self, timeout: Any, deadline: Any, run_deadline: Any, attempts: int, wait: float,
        attempt: int, limit: Any, follows: Any,
    ) -> None:  # fmt: skip
        step = WorkflowStep(
            *("x", nothing),
            max_retries=attempts,
            timeout_ms=timeout,
            deadline_ms=deadline,
            retry=wait,
        )
        state = state_of(step, run_deadline)

        now = run_until(attempt, state, 10, wait)

        assert state.deadlines.after_failure(0, BOOM, now + 10).delay_ms == follows


class TestDeadline:
    def test_the_deadline_of_a_step_that_has_not_started_counts_from_now(self) -> None:
        step = WorkflowStep("x", nothing, timeout_ms=None, deadline_ms=50)

        for options in ({}, {"max_concurrency": 1}):
            state = state_of(step, **options)
            assert state.deadlines.of(0, 7.0) == Limit("step", 50, 57.0)

    def test_the_deadline_of_a_step_excludes_the_queued_time_of_an_attempt(self) -> None:
        step = WorkflowStep("x", nothing, timeout_ms=None, deadline_ms=50, max_retries=9)
        state = state_of(step, max_concurrency=1)
        state.apply(AttemptStarted("x", 1, 100.0, 90.0))
        state.apply(AttemptFailed("x", 1, 110.0, BOOM, 5.0))

        assert state.deadlines.of(0, 114.0) == Limit("step", 50, 150.0)
        state.queue.put_again(0, 115.0)
        assert state.deadlines.of(0, 125.0) == Limit("step", 50, 160.0)
        state.queue.take_ready()
        assert state.deadlines.of(0, 135.0) == Limit("step", 50, 170.0)
        state.apply(AttemptStarted("x", 2, 135.0, state.queue.queued_ms(0, 135.0)))
        assert state.deadlines.of(0, 135.0) == Limit("step", 50, 170.0)
        assert state.deadlines.after_failure(0, BOOM, 169.9).delay_ms == 0.0
        assert state.deadlines.after_failure(0, BOOM, 170.0).delay_ms is None

    def test_a_deadline_that_ends_an_attempt_slightly_early_has_passed(self) -> None:
        """A timer may be early by the resolution of the clock, and sums of times are rounded."""
        for timeout_ms in (None, 50):
            step = WorkflowStep(
                *("x", nothing), timeout_ms=timeout_ms, deadline_ms=50, max_retries=9
            )
            state = state_of(step)
            state.apply(AttemptStarted("x", 1, 100.0))
            error = StepTimeoutError("x", 1, 50, "step")

            assert state.deadlines.after_failure(0, error, 149.9999).delay_ms is None
            assert state.deadlines.after_failure(0, BOOM, 149.9).delay_ms == 0.0

    def test_the_deadline_of_a_step_excludes_the_queued_time_of_all_attempts(self) -> None:
        step = WorkflowStep("x", nothing, timeout_ms=None, deadline_ms=50, max_retries=9)
        state = state_of(step)

        for attempt, (at_ms, queued_ms) in enumerate([(100, 90), (120, 7), (140, 8)], 1):
            if attempt > 1:
                state.apply(AttemptFailed("x", attempt - 1, at_ms - 10, BOOM, 0.0))
            state.apply(AttemptStarted("x", attempt, at_ms, queued_ms))

        assert state.deadlines.of(0, 140.0) == Limit("step", 50, 165.0)

    def test_the_deadline_of_the_run_does_not_apply_to_clean_up_steps(self) -> None:
        step = WorkflowStep("x", nothing, run_if="always", retry=5, max_retries=2)
        state = state_of(step, 50)

        state.apply(AttemptStarted("x", 1, 100.0))

        assert state.deadlines.after_failure(0, BOOM, 110.0).delay_ms == 5.0


class TestPolicy:
    def test_the_policy_receives_the_attempt_the_error_and_the_random_source_of_the_run(
        self,
    ) -> None:
        retry = Retry(base_ms=10, on=lambda error: error is BOOM)
        state = state_of(WorkflowStep("x", nothing, retry=retry, max_retries=9), random=lambda: 0.5)

        run_until(3, state, 10, 0)

        assert state.deadlines.after_failure(0, BOOM, 200.0).delay_ms == 20.0
        assert state.deadlines.after_failure(0, OSError("boom"), 200.0).delay_ms is None

    def test_a_requested_delay_that_ends_too_late_prevents_the_retry(self) -> None:
        retry = Retry(on=lambda error: 60)
        for deadline_ms, expected in ((70.0, None), (70.1, 60.0)):
            step = WorkflowStep("x", nothing, retry=retry, max_retries=2, deadline_ms=deadline_ms)
            state = state_of(step)
            run_until(1, state, 10, 0)

            assert state.deadlines.after_failure(0, BOOM, 110.0).delay_ms == expected

    def test_a_refused_value_is_retried_within_the_limits(self) -> None:
        retry = Retry(base_ms=5, jitter=False, on=KeyError, until=bool)
        step = WorkflowStep("x", nothing, retry=retry, max_retries=2, deadline_ms=50)
        state = state_of(step)
        refusal = ResultRefusedError("x", 1, None)

        run_until(1, state, 10, 0)

        assert state.deadlines.after_failure(0, refusal, 110.0).delay_ms == 5.0
        assert state.deadlines.after_failure(0, BOOM, 110.0).delay_ms is None
        assert state.deadlines.after_failure(0, refusal, 145.0).delay_ms is None


# Of the mutants that mutmut makes of `Deadlines`, one survives: its `after_failure` allows a
# backoff that ends exactly one slack before the limit. No rule decides that case.
