"""Pools: what a step in one costs, what each policy adds, many runs on one, a storm of refusals."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from asyncflow import Pool, Retry, WorkflowStep, current_step, run_pipeline
from asyncflow.journal import SQLiteJournal
from asyncflow.testing import run_in_virtual_time
from tests.benchmarks.by_hand import run_by_hand
from tests.benchmarks.graphs import instant, suspending
from tests.benchmarks.ratios import Ratio, Row, compared, cpu_s, seconds

# A policy that is used may cost as much as a timer and a call through the loop.
MAX_OF_A_POLICY = 2.5

STEPS, SLOTS, FAST = 1_000, 100, 1e9
"""A rate that is never reached costs what a rate does, and lets nobody wait."""


def steps_in(
    pool: Pool, action: Callable[[], Awaitable[Any]], **options: Any
) -> list[WorkflowStep]:
    return [WorkflowStep(f"s{i}", action, pool=pool, **options) for i in range(STEPS)]


def pools(rounds: int) -> Iterator[Row]:
    for action in (instant, suspending):
        yield _against_a_semaphore(
            f"in a pool of 100, {action.__name__}", Pool(SLOTS), action, rounds
        )
    pool = Pool(SLOTS, per_second=FAST)
    yield _against_a_semaphore("in a pool of 100 with a rate, instant", pool, instant, rounds)
    yield _against_a_semaphore(
        "in a pool of 100 with 3 priorities, instant", Pool(SLOTS), instant, rounds, priorities=3
    )
    yield compared(
        "50 runs of 100 steps in a pool of 20",
        lambda: cpu_s(lambda: _many_runs(Pool(20))),
        lambda: cpu_s(lambda: _many_by_hand(asyncio.Semaphore(20))),
        rounds,
    )
    yield Row("   memory that such a pool keeps afterwards", _kept_kib, 16, "KiB")


def _against_a_semaphore(
    subject: str,
    pool: Pool,
    action: Callable[[], Awaitable[Any]],
    rounds: int,
    priorities: int = 1,
) -> Row:
    steps = [
        WorkflowStep(f"s{i}", action, pool=pool, priority=i % priorities) for i in range(STEPS)
    ]
    return compared(
        f"1,000 steps {subject}",
        lambda: cpu_s(lambda: run_pipeline(steps)),
        lambda: cpu_s(lambda: run_by_hand(steps, asyncio.Semaphore(SLOTS))),
        rounds,
    )


async def _many_runs(pool: Pool) -> list[Any]:
    steps = [WorkflowStep(f"s{i}", suspending, pool=pool) for i in range(100)]
    return await asyncio.gather(*(run_pipeline(steps) for _ in range(50)))


async def _many_by_hand(slots: asyncio.Semaphore) -> list[Any]:
    steps = [WorkflowStep(f"s{i}", suspending) for i in range(100)]
    return await asyncio.gather(*(run_by_hand(steps, slots) for _ in range(50)))


def _kept_kib() -> float:
    pool = Pool(20)
    asyncio.run(_many_runs(pool))
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.take_snapshot()
    asyncio.run(_many_runs(pool))
    gc.collect()
    after = tracemalloc.take_snapshot()
    tracemalloc.stop()
    kept = after.filter_traces([tracemalloc.Filter(True, "*pool.py")]).compare_to(
        before.filter_traces([tracemalloc.Filter(True, "*pool.py")]), "filename"
    )
    return sum(each.size_diff for each in kept) / 1024


A_PROCESS = 4
"""How many slots there are for each process: what a share costs is to be little at that size."""

MAX_OF_TICKS_A_S = 11


def shared_pools(rounds: int) -> Iterator[Row]:
    with TemporaryDirectory() as folder:
        path = Path(folder, "runs.db")
        shared, own = (
            steps_in(Pool(A_PROCESS, name="p", shared=is_shared), suspending)
            for is_shared in (True, False)
        )
        yield compared(
            "1,000 durable steps in a shared pool, beside one that is not shared",
            lambda: asyncio.run(_durable_cpu_s(path, shared)),
            lambda: asyncio.run(_durable_cpu_s(path, own)),
            rounds,
        )
        yield Row(
            "   transactions of shares while attempts wait",
            lambda: asyncio.run(_ticks_a_s(path)),
            MAX_OF_TICKS_A_S,
            "/s",
        )


async def _durable_cpu_s(path: Path, steps: list[WorkflowStep]) -> float:
    async with SQLiteJournal(path, synchronous="NORMAL") as journal:
        await journal.runs()  # opens the database
        return await seconds(lambda: run_pipeline(steps, journal=journal))


async def _ticks_a_s(path: Path) -> float:
    async def wait() -> None:
        await asyncio.sleep(0.01)

    ticks = 0
    async with SQLiteJournal(path, synchronous="NORMAL") as journal:
        shares = journal._worker.shares
        negotiate = shares.negotiate

        def counted() -> None:
            nonlocal ticks
            ticks += 1
            negotiate()

        shares.negotiate = counted  # type: ignore[method-assign]
        began_s = time.monotonic()
        await run_pipeline(steps_in(Pool(A_PROCESS, name="p", shared=True), wait), journal=journal)
        return ticks / (time.monotonic() - began_s)


def pool_policies(rounds: int) -> Iterator[Row]:
    plain = steps_in(Pool(SLOTS), suspending)
    always = Retry(on=lambda error: True)
    policies: dict[str, tuple[Pool, dict[str, Any]]] = {
        "per_second": (Pool(SLOTS, per_second=FAST), {}),
        "tokens_per_minute": (Pool(SLOTS, tokens_per_minute=FAST * 60), {"tokens": 1}),
        "slots=2": (Pool(2 * SLOTS), {"slots": 2}),
        "slots of a function": (Pool(SLOTS), {"slots": lambda: 1}),
        "priority": (Pool(SLOTS), {"priority": 1}),
        "pool_key": (Pool(SLOTS, per_key=SLOTS), {"pool_key": "a"}),
        "retry_budget": (Pool(SLOTS, retry_budget=0.1), {}),
        "pauses": (Pool(SLOTS), {"max_retries": 2, "retry": always}),
    }
    for name, (pool, options) in policies.items():
        steps = steps_in(pool, suspending, **options)
        value = Ratio(
            lambda steps=steps: cpu_s(lambda: run_pipeline(steps)),
            lambda: cpu_s(lambda: run_pipeline(plain)),
            rounds,
        )
        yield Row(f"1,000 steps with {name} / a plain pool", value, MAX_OF_A_POLICY)


class Refused(Exception):
    retry_after_ms = 1_000


class Service:
    """Admits ten requests in each second, and names the next second to all others."""

    def __init__(self) -> None:
        self.began = asyncio.get_running_loop().time()
        self.second = self.admitted = self.refusals = self.attempts = 0

    async def __call__(self, numbers: int) -> int:
        self.attempts = max(self.attempts, current_step().attempt)
        second = int(asyncio.get_running_loop().time() - self.began + 1e-9)
        if second > self.second:
            self.second, self.admitted = second, 0
        self.admitted += 1
        if self.admitted > 10:
            self.refusals += 1
            raise Refused
        await asyncio.sleep(0.1)
        return numbers


def refusals(_: int) -> Iterator[Row]:
    """Ask for 200 items, in virtual time."""
    for size, most in ((5, 95), (20, 190)):
        report, service = run_in_virtual_time(_storm(Pool(size)))
        yield Row(f"a storm on Pool({size}): refusals for 200 items", service.refusals, most, "")
        yield Row("   seconds", report.total_duration_ms / 1000, 22.1, "s")
        yield Row("   attempts of the unluckiest item", service.attempts, 6, "")
        missing = sum(item.status != "SUCCESS" for item in report["ask"].items)
        yield Row("   items that failed", missing, 0, "")


async def _storm(pool: Pool) -> tuple[Any, Service]:
    service = Service()
    named = Retry(base_ms=0, on=lambda error: error.retry_after_ms)  # type: ignore[attr-defined]
    steps = [
        WorkflowStep("numbers", lambda: asyncio.sleep(0, range(200))),
        WorkflowStep(
            *("ask", service, ["numbers"]),
            map_over="numbers",
            pool=pool,
            max_retries=6,
            retry=named,
        ),
    ]
    return await run_pipeline(steps, fail_fast=False), service
