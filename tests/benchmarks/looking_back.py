"""Measures queries of a journal of 100,000 runs, and the pages made of them, in CPU milliseconds.

Most rows are copies of a run's, made by the database, which nothing reads; and of these runs, one
in ten has events. What is read was written as runs write it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from asyncflow import RunStatus
from asyncflow._core.analysis.statistics import step_runs_of
from asyncflow._core.history.log import History
from asyncflow._core.history.results import Payload
from asyncflow.events import (
    AttemptStarted,
    Event,
    MapStarted,
    RunFinished,
    RunStarted,
    StepFailed,
    StepSucceeded,
)
from asyncflow.journal import SQLiteJournal
from asyncflow.web import app
from tests.benchmarks.ratios import Row

RUNS, STEPS, PIPELINES = 100_000, 20, 10
READ = 60
"""How many runs of each pipeline are written as runs are."""
ITEMS, MAPPED_RUNS = 5_000, 50
MAX_MS = 100.0
_NEWEST_S = 1_700_000_000.0


def looking_back(rounds: int) -> Iterator[Row]:
    with TemporaryDirectory() as folder:
        many, mapped = Path(folder) / "many.db", Path(folder) / "mapped.db"
        _write(many, READ, items=0)
        _copy(many, RUNS - READ * PIPELINES)
        _write(mapped, MAPPED_RUNS // PIPELINES, items=ITEMS)
        yield from asyncio.run(_measured(many, mapped, rounds))


async def _measured(many: Path, mapped: Path, rounds: int) -> list[Row]:
    async with SQLiteJournal(many) as journal, SQLiteJournal(mapped) as with_items:
        newest = await journal.runs(limit=50)
        subjects: dict[str, Callable[[], Awaitable[object]]] = {
            f"statistics of 50 runs of {STEPS} steps": lambda: journal.statistics("p1"),
            f"   each with a mapped step of {ITEMS:,} items": lambda: with_items.statistics("p"),
            "counts by status": journal.counts,
            "   of one pipeline": lambda: journal.counts(pipeline="p1"),
            "summaries of 50 runs": lambda: journal.summaries(newest),
            "the list of runs as a page": lambda: _page(journal, "/"),
            "   filtered by pipeline and status": lambda: _page(
                journal, "/?pipeline=p1&status=failed"
            ),
            "the page of a pipeline": lambda: _page(journal, "/pipelines/p1"),
        }
        return [
            Row(f"{RUNS:,} runs: {name}" if name[0] != " " else name, value, MAX_MS, "ms")
            for name, value in [
                (name, await _cpu_ms(call, rounds)) for name, call in subjects.items()
            ]
        ]


async def _cpu_ms(call: Callable[[], Awaitable[object]], rounds: int) -> float:
    """Return the least CPU time of all threads."""
    await call()
    times = []
    for _ in range(rounds):
        began = time.process_time()
        await call()
        times.append((time.process_time() - began) * 1e3)
    return min(times)


async def _page(journal: SQLiteJournal, path: str) -> None:
    transport = httpx.ASGITransport(app(journal))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        (await client.get(path)).raise_for_status()


def _write(path: Path, runs: int, *, items: int) -> None:
    async def write() -> None:
        async with SQLiteJournal(path, synchronous="NORMAL") as journal:
            for number in range(runs * PIPELINES):
                run_id, name = f"run-{number}", "p" if items else f"p{number % PIPELINES}"
                session, _ = await journal.open(run_id, wait=False, read=bool)
                history = History()
                history.log += _events(run_id, name, _NEWEST_S + number, number, items)
                session.append_step_runs(step_runs_of(history))
                for event in history.events():
                    session.append(event)
                await session.close()

    asyncio.run(write())


def _events(
    run_id: str, pipeline: str, started_at: float, number: int, items: int
) -> Iterator[Event]:
    names = [f"step_{place}_of_the_pipeline" for place in range(STEPS)]
    dependencies = {name: tuple(names[max(at - 1, 0) : at]) for at, name in enumerate(names)}
    fingerprints = dict.fromkeys(names, ("an input", "1"))
    inputs = {"day": Payload("json", b'"2024-06-01"')}
    yield RunStarted(run_id, started_at, dependencies, pipeline, fingerprints, inputs)
    for at, name in enumerate(names):
        if items and at == STEPS // 2:
            yield MapStarted(name, at * 10.0, items)
            for item in range(items):
                yield AttemptStarted(name, 1, at * 10.0, item=item)
                yield StepSucceeded(name, 1, at * 10.0 + 9, Payload("json", b"1"), item)
            yield StepSucceeded(name, 0, at * 10.0 + 9, None)
            continue
        yield AttemptStarted(name, 1, at * 10.0)
        if number % 3 == 2 and at == STEPS - 1:
            yield StepFailed(name, 1, at * 10.0 + 9, ValueError("no such table: orders"))
        else:
            yield StepSucceeded(name, 1, at * 10.0 + 9, Payload("json", b'{"rows": 12}'))
    yield RunFinished(STEPS * 10.0, RunStatus.FAILED if number % 3 == 2 else RunStatus.PASSED)


def _copy(path: Path, copies: int) -> None:
    """Add earlier runs, each with the rows of one that passed."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA cache_size = -262144")
        database.execute("BEGIN")
        for table, changes in {
            "runs": {"started_at": f"started_at - 1 - n * {_NEWEST_S / copies / 2}"},
            "leases": {},
            "events": {},
            "summaries": {},
        }.items():
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            values = [
                f"printf('%06d-', n) || {column}"
                if column == "run_id"
                else changes.get(column, column)
                for column in columns
            ]
            count = copies // PIPELINES
            for pipeline in range(PIPELINES):
                source = f"run-{pipeline + PIPELINES * (pipeline % 3 == 2)}"
                database.execute(
                    "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers "
                    f"WHERE n < {count // 10 if table == 'events' else count}) INSERT INTO {table} "
                    f"SELECT {', '.join(values)} FROM numbers, {table} WHERE run_id = ?",
                    [source],
                )
        database.execute("COMMIT")
