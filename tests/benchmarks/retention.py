"""Measures what short durable runs pay while a service deletes 100,000 old runs of their journal.

In real time, since what it could cost is waiting: for the thread that writes, and for the disk.
Both sides are the same load with the same journal, in turn, so that both meet the same file. Each
measurement has several of the small transactions that delete.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from asyncflow import Orchestrator, WorkflowStep
from asyncflow.journal import SQLiteJournal
from tests.benchmarks.ratios import Ratio, Row

RUNS, STEPS, IN_FLIGHT, WINDOW = 100_000, 10, 8, 160
MAX_RATIO = 1.1
_DAY_S = 86_400.0


def retention(rounds: int) -> Iterator[Row]:
    with TemporaryDirectory() as folder, asyncio.Runner() as runner:
        path = Path(folder) / "runs.db"
        runner.run(_write(path))
        journal = SQLiteJournal(path)
        old = _count(path)
        load = Orchestrator(_steps(3)).with_options(journal=journal)
        ratio = Ratio(
            lambda: runner.run(_window(load, journal, prunes=True)),
            lambda: runner.run(_window(load, journal, prunes=False)),
            rounds,
        )
        subject = f"runs of 3 steps while {RUNS:,} old runs are deleted, in real time"
        yield Row(subject, ratio, MAX_RATIO)
        yield Row("   old runs deleted meanwhile", lambda: old - _count(path), None, "")
        left = _count(path)
        assert 0 < left < old, "the load was not measured beside deletions"
        runner.run(journal.aclose())


async def one() -> int:
    return 1


def _steps(count: int) -> list[WorkflowStep]:
    return [
        WorkflowStep(f"step_{at}", one, [f"step_{at - 1}"] if at else []) for at in range(count)
    ]


async def _window(load: Orchestrator, journal: SQLiteJournal, *, prunes: bool) -> float:
    """Return how many seconds the load takes, from its first start to its last end."""
    pruning = asyncio.create_task(journal._prune_unneeded(_DAY_S)) if prunes else None
    left = iter(range(WINDOW))

    async def client() -> None:
        for _ in left:
            assert await load.run()

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(client())
    took = time.perf_counter() - began
    if pruning is not None:
        assert not pruning.done(), "nothing is left to delete; write more runs"
        pruning.cancel()
        with suppress(asyncio.CancelledError):
            await pruning
    return took


async def _write(path: Path) -> None:
    """Write a run, and copy its rows as runs that ended long ago."""
    async with SQLiteJournal(path) as journal:
        await Orchestrator(_steps(STEPS)).with_options(journal=journal, run_id="r").run()
    long_ago = f"1e9 + n * {_DAY_S / RUNS}"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA cache_size = -262144")
        database.execute("BEGIN")
        for table in ("runs", "leases", "events", "summaries"):
            changes = {"run_id": "printf('old-%06d', n)"}
            if table == "runs":
                changes |= {"started_at": long_ago, "updated_at": long_ago}
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            values = ", ".join(changes.get(column, column) for column in columns)
            database.execute(
                "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers "
                f"WHERE n < {RUNS}) INSERT INTO {table} SELECT {values} FROM numbers, {table} "
                "WHERE run_id = 'r'"
            )
        database.execute("COMMIT")


def _count(path: Path) -> int:
    with closing(sqlite3.connect(path)) as database:
        (count,) = database.execute(
            "SELECT COUNT(*) FROM runs WHERE run_id LIKE 'old-%'"
        ).fetchone()
    return int(count)
