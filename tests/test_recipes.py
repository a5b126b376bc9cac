"""What the recipes promise beyond the output that their pages show."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_journal import MemoryJournal
from test_docs_pages import ROOT, blocks_of

from asyncflow import RunReport, StepTimeoutError, WorkflowStep, current_step, run_pipeline
from asyncflow.events import AttemptStarted
from asyncflow.testing import run_in_virtual_time

RECIPES = ROOT / "docs" / "recipes"


def classes_of(page: str) -> dict[str, Any]:
    """Return what the blocks of a page that define classes define."""
    names: dict[str, Any] = {"__name__": page}
    for block in blocks_of(RECIPES / page):
        if "\nclass " in block.code:
            exec(compile(block.code, f"{page}:{block.line}", "exec"), names)
    return names


RetryBudget = classes_of("retry-budget.md")["RetryBudget"]
breakers = classes_of("circuit-breaker.md")
CircuitBreaker, CircuitOpenError = breakers["CircuitBreaker"], breakers["CircuitOpenError"]


class TestRetryBudget:
    @given(
        outcomes=st.lists(st.booleans(), max_size=60),
        share=st.sampled_from([0.1, 0.5]),
        burst=st.integers(1, 5),
    )
    def test_retries_are_a_share_of_the_successes_and_a_burst(
        self, outcomes: list[bool], share: float, burst: int
    ) -> None:
        answers = iter(outcomes)
        retries = 0

        async def call(items: int) -> None:
            if not next(answers, False):
                raise ConnectionError

        retry = RetryBudget(share, burst).policy(base_ms=1, jitter=False)
        report = run_items(call, 20, max_retries=9, retry=retry)

        items = report["call"].items or ()
        retries = sum(item.attempts - 1 for item in items)
        assert retries <= burst + share * sum(item.error is None for item in items)

    def test_the_error_says_that_the_budget_is_spent(self) -> None:
        async def call(items: int) -> None:
            raise ConnectionError

        report = run_items(call, 2, max_retries=2, retry=RetryBudget(burst=1).policy(base_ms=0))

        first, second = report["call"].items or ()
        assert (first.attempts, second.attempts) == (2, 1)
        assert second.error is not None
        assert second.error.__notes__[0] == "not retried: the retry budget is spent"

    def test_an_error_that_is_not_worth_a_retry_spends_nothing(self) -> None:
        budget = RetryBudget()

        async def call(items: int) -> None:
            raise LookupError

        run_items(call, 5, max_retries=3, retry=budget.policy(lambda error: False))

        assert budget.left == budget.burst

    def test_an_answer_in_milliseconds_spends_a_retry(self) -> None:
        budget = RetryBudget()

        async def call(items: int) -> None:
            raise ConnectionError

        report = run_items(call, 1, max_retries=2, retry=budget.policy(lambda error: 500))

        assert report.total_duration_ms == 500
        assert budget.left == budget.burst - 1


class Provider:
    """Fails, hangs or answers, behind a circuit breaker in virtual time."""

    def __init__(self, **options: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.breaker = CircuitBreaker(clock=self.loop.time, **options)
        self.answer: BaseException | None = None
        self.takes_s = 0.0
        self.asked_at: list[float] = []

    async def call(self) -> None:
        with self.breaker.call():
            self.asked_at.append(self.loop.time())
            await asyncio.sleep(self.takes_s)
            if self.answer is not None:
                raise self.answer

    async def run(self, calls: int = 1, **options: Any) -> list[str]:
        """Make so many calls at once, and return the names of their errors."""
        steps = [WorkflowStep(f"call {n}", self.call, **options) for n in range(calls)]
        report = await run_pipeline(steps, fail_fast=False)
        return [type(result.error).__name__ for result in report.results]


class TestCircuitBreaker:
    pytestmark = pytest.mark.virtual_time

    async def test_after_some_failures_within_the_window_calls_fail_without_asking(self) -> None:
        provider = Provider(failures=3, window_s=10, open_s=30)
        provider.answer = ConnectionError()

        assert await provider.run(3) == ["ConnectionError"] * 3
        assert await provider.run(5) == ["CircuitOpenError"] * 5

        assert len(provider.asked_at) == 3

    async def test_failures_that_are_further_apart_than_the_window_open_nothing(self) -> None:
        provider = Provider(failures=3, window_s=10)
        provider.answer = ConnectionError()

        for _ in range(10):
            assert await provider.run() == ["ConnectionError"]
            await asyncio.sleep(6)

    async def test_one_call_probes_and_its_success_closes_the_circuit(self) -> None:
        provider = Provider(failures=1, open_s=30)
        provider.answer = ConnectionError()
        await provider.run()
        provider.answer, provider.takes_s = None, 1.0
        await asyncio.sleep(30)

        assert await provider.run(3) == ["NoneType", "CircuitOpenError", "CircuitOpenError"]
        assert await provider.run(3) == ["NoneType"] * 3

    async def test_a_probe_that_fails_leaves_the_circuit_open_as_long_again(self) -> None:
        provider = Provider(failures=3, window_s=10, open_s=30)
        provider.answer = ConnectionError()
        await provider.run(3)

        for _ in range(8):
            await asyncio.sleep(10)
            await provider.run(2)

        assert provider.asked_at == [0, 0, 0, 30, 60]

    async def test_a_probe_that_is_cancelled_is_followed_by_another_one(self) -> None:
        provider = Provider(failures=1, open_s=30)
        provider.answer = ConnectionError()
        await provider.run()
        provider.answer, provider.takes_s = None, 5.0
        await asyncio.sleep(30)
        probe = asyncio.create_task(provider.run())
        await asyncio.sleep(1)
        probe.cancel()
        await asyncio.wait([probe])

        assert await provider.run() == ["CircuitOpenError"]
        await asyncio.sleep(29)
        assert await provider.run() == ["NoneType"]
        assert await provider.run() == ["NoneType"]

    async def test_a_timeout_counts_and_a_cancellation_does_not(self) -> None:
        provider = Provider(failures=1)
        provider.takes_s = 60.0
        run = asyncio.create_task(provider.run(2))
        await asyncio.sleep(1)
        run.cancel()
        await asyncio.wait([run])

        assert await provider.run(timeout_ms=1_300.7) == [StepTimeoutError.__name__]
        assert await provider.run() == ["CircuitOpenError"]

    async def test_the_error_says_when_the_next_call_may_try(self) -> None:
        provider = Provider(failures=1, open_s=30)
        provider.answer = ConnectionError()
        await provider.run()
        await asyncio.sleep(10)

        with pytest.raises(CircuitOpenError, match="next try in 20 s") as raised:
            await provider.call()

        assert raised.value.retry_in_ms == 20_000


class TestNotifications:
    @pytest.mark.virtual_time
    async def test_a_clean_up_step_repeats_only_a_message_that_was_being_sent(self) -> None:
        sent: list[str] = []

        async def load() -> None:
            raise OSError("the disk is full")

        async def alert() -> None:
            sent.append(current_step().idempotency_key)

        steps = [WorkflowStep("load", load), WorkflowStep("alert", alert, run_if="failure")]
        journal = MemoryJournal()
        await run_pipeline(steps, journal=journal, run_id="r", fail_fast=False)
        begun = journal.stored["r"].index(AttemptStarted("alert", 1, 0.0)) + 1
        sent_later = []
        for events in range(1, len(journal.stored["r"])):
            sent.clear()
            left = journal.died_after(events)
            await run_pipeline(steps, journal=left, run_id="r", fail_fast=False)
            sent_later.append(len(sent))

        assert sent_later == [1] * begun + [0] * (len(sent_later) - begun)
        assert sent_later[-1] == 0


def run_items(call: Any, count: int, **options: Any) -> RunReport:
    async def items() -> range:
        return range(count)

    steps = [
        WorkflowStep("items", items),
        WorkflowStep("call", call, ["items"], map_over="items", **options),
    ]
    return run_in_virtual_time(run_pipeline(steps, fail_fast=False))
