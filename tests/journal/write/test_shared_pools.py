"""Runs use pools that processes share, by the database of their journal."""

from __future__ import annotations

import asyncio
import math
import os
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from memory_journal import MemoryJournal

from asyncflow import Orchestrator, Pool, Retry, RunCancelledError, WorkflowStep, run_pipeline
from asyncflow._core.pools.pool import Clock
from asyncflow._policies.pool_sharing import sharing, why_waiting
from asyncflow.journal import SQLiteJournal
from asyncflow.testing import crash_everywhere, run_in_virtual_time, simulate


def shared(size: int = 2, name: str = "openai", **options: Any) -> Pool:
    return Pool(size, name=name, shared=True, **options)


class Work:
    """An action that waits until it may go on, and counts."""

    def __init__(self) -> None:
        self.running = self.most = self.started = 0
        self.may_go_on = asyncio.Event()

    async def __call__(self) -> None:
        self.started += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.may_go_on.wait()
        finally:
            self.running -= 1


def steps_in(pool: Pool, work: Callable[[], Any], count: int = 1, **options: Any) -> list[Any]:
    return [WorkflowStep(f"s{number}", work, pool=pool, **options) for number in range(count)]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


def rows(database: Any) -> list[Any]:
    return [tuple(row) for row in database.query("SELECT demand, granted FROM shares")]


async def test_attempts_start_by_the_share_and_the_row_is_gone_afterwards(
    journal: Any, database: Any
) -> None:
    pool, work = shared(2), Work()
    run = asyncio.create_task(run_pipeline(steps_in(pool, work, 5), journal=journal))
    await until(lambda: work.running == 2)

    await until(lambda: pool.stats().share)
    assert pool.stats().share == 2
    assert [granted for _, granted in rows(database)] == [2]
    work.may_go_on.set()
    assert (await run).all_passed
    assert (work.started, work.most) == (5, 2)
    await until(lambda: not rows(database))
    assert pool.stats().share == 0


async def test_a_run_without_a_journal_is_refused_before_anything_runs() -> None:
    work = Work()

    with pytest.raises(ValueError, match=r"pool 'openai' is shared, .* needs a journal, .*: give"):
        await run_pipeline(steps_in(shared(), work))

    assert not work.started


async def test_a_journal_that_knows_no_shares_is_refused_before_anything_runs() -> None:
    work, journal = Work(), MemoryJournal()

    with pytest.raises(TypeError, match="MemoryJournal can't say how many slots each process has"):
        await run_pipeline(steps_in(shared(), work), journal=journal)

    assert not work.started
    assert not journal.open_sessions


async def test_another_pool_of_the_same_name_is_refused_while_the_first_is_in_use(
    journal: Any,
) -> None:
    work = Work()
    first, second = (Orchestrator(steps_in(shared(), work), journal=journal) for _ in range(2))
    run = asyncio.create_task(first.run())
    await until(lambda: work.running)

    with pytest.raises(ValueError, match="another Pool object that is shared as 'openai'"):
        await second.run()
    others = Orchestrator(steps_in(shared(name="other"), work), journal=journal)
    work.may_go_on.set()
    assert (await others.run()).all_passed
    assert (await run).all_passed

    assert (await second.run()).all_passed
    assert work.started == 3


async def test_a_pool_belongs_to_one_journal_while_a_run_uses_it(
    journal: Any, tmp_path: Path
) -> None:
    work, pool = Work(), shared()
    pipeline = Orchestrator(steps_in(pool, work))
    async with SQLiteJournal(tmp_path / "other.db") as other:
        run = asyncio.create_task(pipeline.with_options(journal=journal).run())
        await until(lambda: work.running)

        with pytest.raises(ValueError, match="is shared in the database of another journal"):
            await pipeline.with_options(journal=other).run()
        work.may_go_on.set()
        assert (await run).all_passed

        assert (await pipeline.with_options(journal=other).run()).all_passed
        assert (await pipeline.with_options(journal=journal).run()).all_passed
    assert work.started == 3


async def test_a_pool_is_free_when_the_journal_of_a_run_that_never_ends_is_closed(
    tmp_path: Path,
) -> None:
    pool, work = shared(), Work()
    work.may_go_on.set()
    journal = SQLiteJournal(tmp_path / "one.db")
    with sharing([pool], SimpleNamespace(journal=journal)):  # type: ignore[arg-type]
        async with SQLiteJournal(tmp_path / "other.db") as other:
            pipeline = Orchestrator(steps_in(pool, work), journal=other)
            assert (await pipeline.with_options(journal=journal).run()).all_passed
            with pytest.raises(ValueError, match="is shared in the database of another journal"):
                await pipeline.run()
            journal.close()
            assert (await pipeline.run()).all_passed


async def test_runs_of_several_loops_have_one_share(journal: Any) -> None:
    pool, counts = shared(3), []

    def in_a_thread() -> bool:
        async def work() -> None:
            counts.append(pool.in_use)
            await asyncio.sleep(0.005)

        return asyncio.run(run_pipeline(steps_in(pool, work, 8), journal=journal)).all_passed

    passed = await asyncio.gather(*(asyncio.to_thread(in_a_thread) for _ in range(3)))

    assert passed == [True] * 3
    assert len(counts) == 24
    assert max(counts) <= 3


@pytest.mark.parametrize("has_journal", [False, True])
def test_under_a_virtual_clock_it_is_an_ordinary_pool(has_journal: bool, tmp_path: Path) -> None:
    pool = shared(2)

    async def second() -> None:
        await asyncio.sleep(1)

    async def main() -> Any:
        pipeline = Orchestrator(steps_in(pool, second, 4))
        if not has_journal:
            return await pipeline.run()
        async with SQLiteJournal(tmp_path / "runs.db") as journal:
            return await pipeline.with_options(journal=journal).run()

    report = run_in_virtual_time(main())

    assert report.all_passed
    starts = [round(each.started_ms or 0) for each in report.results]
    assert starts == [0, 0, 1_000, 1_000]


def test_simulated_and_crashed_runs_have_ordinary_pools(tmp_path: Path) -> None:
    async def work() -> int:
        return 1

    pipeline = Orchestrator(steps_in(shared(1), work, 2))

    assert simulate(pipeline).all_passed
    crash_everywhere(pipeline, lambda: SQLiteJournal(tmp_path / "runs.db"))


async def test_what_waits_for_its_share_says_so_and_since_when_the_database_is_away(
    tmp_path: Path,
) -> None:
    pool, path, attempts = shared(1), tmp_path / "runs.db", []

    async def work() -> None:
        attempts.append(1)
        raise OSError

    retry = Retry(base_ms=250, jitter=False)
    async with SQLiteJournal(path, lease_s=2, synchronous="NORMAL") as journal:
        pipeline = Orchestrator(steps_in(pool, work, retry=retry, max_retries=2), journal=journal)
        async with pipeline.start() as run:
            await until(lambda: attempts)
            await until(lambda: not pool.stats().share)  # it has given back what it does not need
            with closing(sqlite3.connect(path, isolation_level=None)) as lock:
                lock.execute("BEGIN IMMEDIATE")
                await until(lambda: "unreachable" in why_waiting(pool))
                run.cancel("enough")
                await asyncio.sleep(0.05)  # it is reported in a later turn
                lock.execute("ROLLBACK")
            with pytest.raises(RunCancelledError) as cancelled:
                await run.report()

    assert len(attempts) == 1
    assert re.fullmatch(
        r".*enough while it waits for its share of pool 'openai' "
        r"\(database unreachable since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\)",
        str(cancelled.value.report.stop_reason),
    )


async def test_cancelling_a_run_that_waits_for_its_share_leaves_nothing(
    journal: Any, database: Any
) -> None:
    pool, work = shared(1), Work()
    first = asyncio.create_task(run_pipeline(steps_in(pool, work), journal=journal))
    await until(lambda: work.running)
    second = asyncio.create_task(run_pipeline(steps_in(pool, work), journal=journal))
    await until(lambda: pool.waiting)

    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second

    assert (pool.in_use, pool.waiting) == (1, 0)
    work.may_go_on.set()
    assert (await first).all_passed
    await until(lambda: not rows(database))


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_a_forked_process_has_no_share(journal: Any, tmp_path: Path) -> None:
    pool, work = shared(2), Work()
    run = asyncio.create_task(run_pipeline(steps_in(pool, work), journal=journal))
    await until(lambda: work.running)
    other = str(tmp_path / "child.db")

    child = os.fork()
    if not child:  # pragma: no cover - not measured in another process
        try:
            is_right = pool.stats().share == 0 and pool.in_use == 0
            asyncio._set_running_loop(None)

            async def in_child() -> bool:
                async def act() -> None: ...

                async with SQLiteJournal(other) as own:
                    return (await run_pipeline(steps_in(pool, act), journal=own)).all_passed

            is_right = is_right and asyncio.run(in_child())
            os._exit(0 if is_right else 1)
        finally:
            os._exit(2)

    ended = await asyncio.to_thread(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(ended[1]) == 0
    work.may_go_on.set()
    assert (await run).all_passed


class Member:
    """A process that uses a pool by a journal of its own, and asks when a test lets it."""

    def __init__(self, journal: Any) -> None:
        self.journal = journal
        self.clock = Clock(time.monotonic, time.monotonic)
        self.pool = shared(8)
        self.share = journal._share(self.pool, self.clock)
        self.share._wake = lambda: None
        self.tickets: list[Any] = []

    def join(self, count: int) -> None:
        self.tickets += [self.pool._join(self.clock, lambda at_s: None) for _ in range(count)]

    async def ask(self) -> int:
        await self.journal._write(self.journal._worker.shares.negotiate)
        return self.pool.in_use

    def end(self, count: int) -> None:
        for _ in range(count):
            self.tickets.pop(0).release()


async def test_processes_share_the_slots_and_pauses_in_any_database(
    make_journal: Any, database: Any
) -> None:
    one, other = Member(make_journal()), Member(make_journal())
    one.join(8)
    other.join(2)
    assert await one.ask() == 8
    assert await other.ask() == 0
    await one.ask()
    one.end(2)
    assert one.pool.in_use == 6
    await one.ask()
    assert await other.ask() == 2
    assert sorted(rows(database)) == [(2, 2), (6, 6)]

    other.pool._pause(other.clock, time.monotonic() + 60, "ask")
    await other.ask()
    await one.ask()
    pause = one.pool._pause_of(one.clock)
    assert pause is not None
    assert pause.by == "ask"
    assert 50_000 < pause.left_ms <= 60_000

    database.query("UPDATE shares SET expires_at = 1, boot_expires_at = 1")
    await other.ask()
    assert rows(database) == [(2, 8)]
    one.end(6)
    await one.ask()
    other.end(2)
    await other.ask()
    assert rows(database) == []


async def test_an_attempt_that_asks_after_one_that_gave_up_is_heard(
    journal: Any, database: Any
) -> None:
    pool, clock = shared(2), Clock(time.monotonic, time.monotonic)
    share, shares = journal._share(pool, clock), journal._worker.shares
    first = pool._join(clock, lambda at_s: None)
    await until(lambda: first.has_slots)
    first.release()
    await until(lambda: share.row is None)
    pool._join(clock, lambda at_s: None).release()  # before the next tick
    for _ in range(2):
        await journal._write(lambda: None)  # the thread has looked meanwhile
    await until(lambda: shares._poll_at == math.inf)

    second = pool._join(clock, lambda at_s: None)

    await until(lambda: second.has_slots)


async def test_processes_ask_for_several_pools_at_once_without_a_deadlock(
    make_journal: Any, database: Any
) -> None:
    journals = [make_journal() for _ in range(3)]
    clock, tickets = Clock(time.monotonic, time.monotonic), []
    for journal in journals:
        for name in ("a", "b", "c")[:: 1 if journal is journals[0] else -1]:
            pool = shared(2, name)
            journal._share(pool, clock)._wake = lambda: None
            tickets.append(pool._join(clock, lambda at_s: None))

    async with asyncio.timeout(30):
        for _ in range(20):
            await asyncio.gather(*(each._write(each._worker.shares.negotiate) for each in journals))

    granted = database.query("SELECT pool, SUM(granted) FROM shares GROUP BY pool")
    assert all(total <= 2 for _, total in granted)
    assert sum(each.has_slots for each in tickets) == 6
