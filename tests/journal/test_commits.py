"""A run waits for the disk once per step."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from asyncflow import JournalError, Orchestrator, RunAlreadyActiveError, Signal, WorkflowStep
from asyncflow.journal import SQLiteJournal
from asyncflow.journal._cached import remembered
from asyncflow.journal._sqlite import SQLite
from asyncflow.journal._store import Claim, CommitBatch, Refusals, Store

STEPS = 20
OVERHEAD = 4
"""Claim, start of the run, start of its first step, end of the run, release."""


@pytest.fixture
def disk_commits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The COMMIT statements of all connections that the test opens."""
    made: list[str] = []
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect

    def note(statement: str) -> None:
        if statement == "COMMIT":
            made.append(statement)

    def traced(*arguments: object, **options: object) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.set_trace_callback(note)
        return connection

    monkeypatch.setattr(sqlite3, "connect", traced)
    return made


async def return_one() -> int:
    return 1


def chains(count: int) -> list[WorkflowStep]:
    return [
        WorkflowStep(
            f"{chain}-{position}", return_one, [f"{chain}-{position - 1}"] if position else []
        )
        for chain in range(count)
        for position in range(STEPS)
    ]


@pytest.mark.parametrize("schedule", ["tiers", "ready"])
@pytest.mark.parametrize("count", [1, 50])
async def test_a_step_costs_one_commit_that_concurrent_steps_share(
    disk_commits: list[str], tmp_path: Path, count: int, schedule: str
) -> None:
    orchestrator = Orchestrator(chains(count), schedule=schedule)
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        disk_commits.clear()  # ignore those that created the tables

        await orchestrator.with_options(journal=journal).run()

        assert STEPS < len(disk_commits) <= STEPS + OVERHEAD


async def test_a_rerun_commits_what_it_takes_over_with_its_start(tmp_path: Path) -> None:
    steps = [WorkflowStep(f"s{number}", return_one) for number in range(300)]
    steps.append(WorkflowStep("last", return_one, [step.name for step in steps]))
    kinds: list[list[str]] = []
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        orchestrator = Orchestrator(steps, journal=journal)
        await orchestrator.with_options(run_id="r").run()
        write = journal._store.write

        def note(take: Callable[[], Sequence[CommitBatch]]) -> Refusals:
            def taking() -> Sequence[CommitBatch]:
                batches = take()
                kinds.append([row.kind for batch in batches for row in batch.rows])
                return batches

            return write(taking)

        journal._store.write = note  # type: ignore[method-assign]
        await orchestrator.rerun("r", "f", from_="last")

    assert kinds[0][:301] == ["RunStarted", *["StepTakenOver"] * 300]
    assert [*chain.from_iterable(kinds)].count("StepTakenOver") == 300


def test_runs_that_share_results_store_them_in_one_order(tmp_path: Path) -> None:
    database = SQLite(str(tmp_path / "runs.db"), "NORMAL", 1.0)
    store, claim = Store(database), Claim("owner", "process", 60, lambda process: False)
    stored: list[str] = []
    execute = store._execute

    def note(cursor: Any, sql: str, parameters: Sequence[Any] = ()) -> None:
        if "INTO cached_results" in sql:
            stored.append(parameters[0])
        execute(cursor, sql, parameters)

    batches = [
        CommitBatch(
            *(run_id, *store.claim([(run_id, claim)]), [], None, False),
            remembered=[remembered(key, run_id, 1, 1, 0.0, None) for key in keys],
        )
        for run_id, keys in (("r1", "db"), ("r2", "ca"))
    ]
    store._execute = note  # type: ignore[method-assign]
    store.write(lambda: batches)
    database.close()

    assert stored == ["a", "b", "c", "d"]


@asynccontextmanager
async def at_once(journal: SQLiteJournal, asked: Any, count: int) -> AsyncIterator[None]:
    """Hold the thread that writes until so many questions wait for it."""
    free = threading.Event()
    journal._write_thread.submit(free.wait)
    try:
        yield
        while len(asked._asked) < count:
            await asyncio.sleep(0)
    finally:
        free.set()


def waiting(journal: SQLiteJournal, run_id: str) -> Orchestrator:
    steps = [WorkflowStep("approved", Signal(bool)), WorkflowStep("go", return_one, ["approved"])]
    return Orchestrator(steps, journal=journal).with_options(run_id=run_id)


async def test_runs_that_start_at_once_and_signals_that_come_at_once_share_commits(
    disk_commits: list[str], tmp_path: Path
) -> None:
    run_ids = [f"r{number}" for number in range(20)]
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        worker = journal._worker
        disk_commits.clear()
        async with at_once(journal, worker.claims, 20):
            runs = [asyncio.create_task(waiting(journal, run_id).run()) for run_id in run_ids]
        await asyncio.gather(*runs)
        starting = len(disk_commits)
        disk_commits.clear()
        async with at_once(journal, worker.signals, 20):
            sent = [
                asyncio.create_task(journal.signal(run_id, "approved", True)) for run_id in run_ids
            ]
        await asyncio.gather(*sent)
        sending = len(disk_commits)

    assert starting < 20
    assert sending == 1


async def test_each_of_several_claims_and_signals_at_once_has_an_answer_of_its_own(
    tmp_path: Path,
) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        worker = journal._worker
        async with at_once(journal, worker.claims, 3):
            runs = [asyncio.create_task(waiting(journal, run_id).run()) for run_id in "rrs"]
        reports = await asyncio.gather(*runs, return_exceptions=True)
        async with at_once(journal, worker.signals, 3):
            sent = [
                asyncio.create_task(journal.signal(run_id, "approved", value))
                for run_id, value in (("r", True), ("r", False), ("s", False))
            ]
        answers = await asyncio.gather(*sent, return_exceptions=True)

        assert [type(report) is RunAlreadyActiveError for report in reports].count(True) == 1
        assert [type(answer) for answer in answers].count(ValueError) == 1
        assert answers[2] is None
        assert [run.run_id for run in await journal.due()] == ["r", "s"]


async def test_what_was_asked_for_beside_a_failure_is_done_nevertheless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, calls = Store.claim, []

    def fail_once(store: Store, wanted: Any) -> Any:
        calls.append(len(wanted))
        if len(calls) == 1:
            raise JournalError("runs.db", "the disk is full")
        return claim(store, wanted)

    monkeypatch.setattr(Store, "claim", fail_once)
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        async with at_once(journal, journal._worker.claims, 3):
            runs = [asyncio.create_task(waiting(journal, run_id).run()) for run_id in "rst"]
        reports = await asyncio.gather(*runs, return_exceptions=True)

    assert calls == [3, 1, 1]
    assert [type(report) is JournalError for report in reports] == [True, False, False]


async def test_a_claim_made_beside_others_for_a_run_that_was_cancelled_is_given_up(
    tmp_path: Path,
) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        async with at_once(journal, journal._worker.claims, 2):
            runs = [asyncio.create_task(waiting(journal, run_id).run()) for run_id in "rs"]
            while len(journal._worker.claims._asked) < 2:
                await asyncio.sleep(0)
            runs[1].cancel()
            await asyncio.wait(runs[1:])
        await runs[0]
        report = await waiting(journal, "s").run()

    assert (runs[1].cancelled(), report.status) == (True, "WAITING")


async def test_a_look_for_signals_that_finds_nothing_costs_no_commit(
    disk_commits: list[str], tmp_path: Path
) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        disk_commits.clear()
        await waiting(journal, "r").run()

    assert len(disk_commits) == 3  # the claim, the wait, the end of the segment
