"""Runs that wait to start, in the journal of any database."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from virtual_journals import in_virtual_time

from asyncflow import (
    Orchestrator,
    RunAlreadyActiveError,
    RunCancelledError,
    RunStatus,
    WorkflowStep,
    resume_all,
)
from asyncflow.journal import QueueStats, SQLiteJournal, WaitsFor
from asyncflow.journal._database.machine import LeaseClock
from asyncflow.journal._database.sqlite import SQLite
from asyncflow.journal._write.queue import Queue
from asyncflow.journal._write.store import Store


async def sync(pause_s: float = 1.0) -> float:
    await asyncio.sleep(pause_s)
    return pause_s


def work(journal: Any, **options: Any) -> Orchestrator:
    return Orchestrator([WorkflowStep("sync", sync, timeout_ms=None)]).with_options(
        name="work", journal=journal, **options
    )


async def due(journal: Any, limit: int = 10, skipped: Any = ()) -> list[str]:
    return [run.run_id for run in (await journal._due_to_start(["work"], limit, skipped)).runs]


@in_virtual_time
async def test_one_run_a_key_is_due_the_one_that_was_due_first_first(journal: Any) -> None:
    enqueue = work(journal).enqueue
    for run_id, key, delay_ms in (
        ("a1", "a", 300),
        ("a2", "a", 0),
        ("free", None, 100),
        ("b1", "b", 200),
        ("b2", "b", 200),
        ("tomorrow", None, 86_400_000),
    ):
        await enqueue(run_id=run_id, key=key, delay_ms=delay_ms)

    assert await due(journal) == ["a2"]
    await asyncio.sleep(1)
    assert await due(journal) == ["a2", "free", "b1"]
    assert await due(journal, 2) == ["a2", "free"]
    assert await due(journal, 2, ["a2"]) == ["free", "b1"]
    assert (await journal._due_to_start(["other"], 10)) == ([], None)

    await work(journal, run_id="a2").run()
    assert await due(journal) == ["free", "b1", "a1"]
    await work(journal, run_id="a1").run()
    assert await due(journal) == ["free", "b1"]
    found = await journal._due_to_start(["work"], 10)
    assert found.next_s == pytest.approx(86_400, abs=10)


async def test_a_poll_asks_for_no_lease_of_a_run_that_has_a_key_until_it_has_ended(
    tmp_path: Path,
) -> None:
    asked: list[float] = []

    def wall_s() -> float:
        asked.append(time.time())
        return asked[-1]

    path = str(tmp_path / "journal.db")
    database = SQLite(path, "FULL", 1.0, LeaseClock("machine", "boot", "", wall_s, time.monotonic))
    async with SQLiteJournal(path) as journal:
        holders = [
            asyncio.create_task(work(journal, run_id=key, key=key).run(pause_s=3600))
            for key in "abc"
        ]
        while len(await journal.runs("RUNNING")) < 3:
            await asyncio.sleep(0)
        for key in "abc":
            await work(journal).enqueue(run_id=f"behind {key}", key=key)

        found, early = Queue(Store(database)).due(time.time() + 1, ["work"], 10, ())

        assert (found.runs, early, asked) == ([], [], [])
        for holder in holders:
            holder.cancel()
        await asyncio.wait(holders)
    database.close()


@in_virtual_time
async def test_the_queue_in_numbers_and_what_each_run_waits_for(journal: Any) -> None:
    assert await journal.queue() == QueueStats(0, 0, None, 0)
    enqueue = work(journal).enqueue
    await enqueue(run_id="held", key="k")
    holder = asyncio.create_task(work(journal, run_id="held").run(pause_s=100))
    await asyncio.sleep(1)
    at_s = asyncio.get_running_loop().wall_time()  # type: ignore[attr-defined]
    for run_id, options in {
        "behind": {"key": "k"},
        "last": {"key": "k"},
        "place": {},
        "time": {"delay_ms": 60_000, "key": "k"},
        "first": {"key": "free"},
        "second": {"key": "free"},
    }.items():
        await enqueue(run_id=run_id, **options)
    await asyncio.sleep(5)

    waits = {run.run_id: run.waits_for for run in await journal.runs("WAITING")}
    by_kind = {
        kind: sorted(run.run_id for run in await journal.runs(waits_for=kind))
        for kind in ("time", "key", "place", "signal")
    }

    assert by_kind == {
        "time": ["time"],
        "key": ["behind", "last", "second"],
        "place": ["first", "place"],
        "signal": [],
    }
    assert waits["behind"] == WaitsFor("key", due_at=at_s, key="k")
    assert waits["place"] == WaitsFor("place", due_at=at_s)
    assert waits["time"] == WaitsFor("time", due_at=at_s + 60)
    assert await journal.queue() == QueueStats(6, 5, pytest.approx(5), 1)
    assert await journal.queue(pipeline="other") == QueueStats(0, 0, None, 0)
    assert (await journal.record("behind")).waits_for == waits["behind"]
    holder.cancel()
    await asyncio.wait([holder])


@in_virtual_time
async def test_of_many_who_enqueue_the_only_one_one_does(journal: Any, make_journal: Any) -> None:
    journals = [journal, make_journal()]

    found = await asyncio.gather(
        *(
            work(journals[n % 2]).enqueue(run_id=f"r{n}", key="k", on_conflict="return")
            for n in range(20)
        )
    )
    same = await asyncio.gather(
        *(work(journals[n % 2]).enqueue({"pause_s": 2.0}, run_id="same") for n in range(20))
    )

    assert len({*found}) == 1
    assert {*same} == {"same"}
    assert len(await journal.runs()) == 2


@in_virtual_time
async def test_of_many_who_start_a_run_that_waits_one_does(journal: Any, make_journal: Any) -> None:
    await work(journal).enqueue(run_id="r")
    journals = [journal, make_journal()]

    ends = await asyncio.gather(
        *(work(journals[n % 2], run_id="r").run() for n in range(10)), return_exceptions=True
    )

    assert sum(isinstance(end, RunAlreadyActiveError) for end in ends) == 9
    assert (await journal.record("r")).status is RunStatus.PASSED
    assert (await journal.queue()).waiting == 0


async def test_a_process_that_dies_before_it_has_started_the_run_leaves_it_in_the_queue(
    make_journal: Any, database: Any
) -> None:
    journal, other = make_journal(), make_journal()
    await work(journal).enqueue({"pause_s": 0.0}, run_id="r", key="k")
    await work(journal).enqueue({"pause_s": 0.0}, run_id="next", key="k")
    await journal.open("r", wait=False, read=lambda stored: stored)  # its claim is committed
    assert await due(other) == []
    with pytest.raises(RunAlreadyActiveError, match="run 'r'"):
        await work(other, run_id="next").run()

    database.expire_leases("r")

    assert await due(other) == ["r"]
    assert (await work(other, run_id="r").run()).all_passed
    assert await due(other) == ["next"]


async def test_a_run_that_was_started_and_lost_its_process_is_an_orphan(
    make_journal: Any, database: Any
) -> None:
    journal, other = make_journal(), make_journal()
    for run_id in "ab":
        await work(journal).enqueue({"pause_s": 3600.0}, run_id=run_id, key="k")
    task = asyncio.create_task(work(journal, run_id="a").run())
    while not await journal.runs("RUNNING"):
        await asyncio.sleep(0.01)

    database.expire_leases("a")

    assert [run.run_id for run in await other.orphans()] == ["a"]
    assert await due(other) == []
    assert await other.cancel("a")
    assert await due(other) == ["b"]
    with pytest.raises(RunCancelledError):
        async with asyncio.timeout(20):
            await task


@in_virtual_time
async def test_a_cancelled_run_ends_without_a_start_and_frees_the_line(journal: Any) -> None:
    for run_id in "abc":
        await work(journal).enqueue(run_id=run_id, key="k")

    assert await journal.cancel("a", "the customer is gone")
    await journal.forget("b")

    assert await due(journal) == ["c"]
    report = await journal.report("a")
    assert report.status is RunStatus.INTERRUPTED
    assert report.stop_reason == "the run was cancelled: the customer is gone"
    assert not await journal.cancel("a")
    # Started again under its id it resumes, as any cancelled run.
    assert (await work(journal, run_id="a").run()).all_passed


@in_virtual_time
async def test_resume_all_starts_what_is_due_also_behind_each_other(journal: Any) -> None:
    for run_id in "abc":
        await work(journal).enqueue(run_id=run_id, key="k")
    await work(journal).enqueue(run_id="later", delay_ms=60_000)

    reports = await resume_all(journal, [work(journal)])

    assert [report.run_id for report in reports] == ["a", "b", "c"]
    assert (await journal.record("later")).status is RunStatus.WAITING


@in_virtual_time
async def test_a_deadline_counts_from_the_start(journal: Any) -> None:
    await work(journal).enqueue({"pause_s": 3.0}, run_id="r")
    await asyncio.sleep(3_600)

    report = await work(journal, run_id="r", deadline_ms=5_000).run()

    assert report.all_passed
    assert report.total_duration_ms == pytest.approx(3_000)
