"""A run waits for the disk once per step."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from asyncflow import Orchestrator, WorkflowStep
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
            *(run_id, store.claim(run_id, claim), [], None, False),
            remembered=[remembered(key, run_id, 1, 1, 0.0, None) for key in keys],
        )
        for run_id, keys in (("r1", "db"), ("r2", "ca"))
    ]
    store._execute = note  # type: ignore[method-assign]
    store.write(lambda: batches)
    database.close()

    assert stored == ["a", "b", "c", "d"]
