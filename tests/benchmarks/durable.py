"""What a durable step costs, by the clock, on the disk where temporary files are.

Against the rows that it must write, written by a loop around `sqlite3` that does nothing else,
in as few commits as the rule of writing ahead allows: what has started is kept before an action
is called. And against DBOS, which also keeps a step's result in SQLite, if it is installed.
"""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import statistics
import time
from asyncio import Handle
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from asyncflow import Orchestrator, WorkflowStep
from asyncflow.events import RunFinished, RunStarted
from asyncflow.journal import SQLiteJournal
from tests.benchmarks.graphs import SHAPES, pipeline
from tests.benchmarks.ratios import Row, ratio

__all__ = ["durable"]

IN_FLIGHT = 50
LENGTH = 100
"""How many steps a chain has."""

_numbers = count()


async def one() -> int:
    return 1


def chains(width: int, length: int) -> list[WorkflowStep]:
    """So many chains of steps beside each other."""
    return [
        WorkflowStep(f"c{chain}s{place}", one, [f"c{chain}s{place - 1}"] if place else [])
        for chain in range(width)
        for place in range(length)
    ]


def durable(rounds: int) -> Iterator[Row]:
    with TemporaryDirectory() as folder:
        shapes = {
            "a chain of steps": (chains(1, LENGTH), 1, LENGTH),
            f"{IN_FLIGHT} chains at once": (chains(IN_FLIGHT, 10), IN_FLIGHT, 10),
            f"a fan of {IN_FLIGHT}": (pipeline(SHAPES["fan"](IN_FLIGHT + 2), one), IN_FLIGHT, 1),
        }
        for subject, (steps, width, length) in shapes.items():
            bench = Bench(Path(folder) / f"{width}x{length}.db", steps)
            yield Row(f"{subject}: a durable step", bench.ours_s() / len(steps) * 1e3, None, "ms")
            yield Row(
                "   the same without a journal", bench.plain_s() / len(steps) * 1e3, None, "ms"
            )
            value = ratio(bench.ours_s, bench.by_hand_s, rounds)
            yield Row("   / its rows in sqlite3, in as few commits", value, 2.0)
        yield from against_dbos(Path(folder), max(3, rounds // 3))
        yield Row(
            "longest callback of the loop, 10,000 events", longest_callback_ms(rounds), 5, "ms"
        )


class Bench:
    """A pipeline, a journal for it, and the rows that a run of it leaves there."""

    def __init__(self, path: Path, steps: Sequence[WorkflowStep]) -> None:
        self._path = path
        self._orchestrator = Orchestrator(steps, schedule="ready")
        self.ours_s()
        with closing(sqlite3.connect(path)) as database:
            database.row_factory = sqlite3.Row
            rows = database.execute("SELECT * FROM events ORDER BY position").fetchall()
            self._columns = rows[0].keys()
            self._rows = [tuple(row) for row in rows]
            (self._schema,) = database.execute(
                "SELECT sql FROM sqlite_master WHERE name = 'events'"
            ).fetchone()

    def ours_s(self) -> float:
        async def timed() -> float:
            async with SQLiteJournal(self._path) as journal:
                await journal.runs()  # so that it is open
                return await _seconds(self._orchestrator.run, journal=journal, run_id=_new_id())

        return asyncio.run(timed())

    def plain_s(self) -> float:
        return asyncio.run(_seconds(self._orchestrator.run))

    def by_hand_s(self) -> float:
        """Write the same rows, with a commit wherever an action has to wait for one."""
        path = self._path.with_suffix(".by-hand.db")
        marks = ", ".join("?" * len(self._columns))
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            if not database.execute("SELECT 1 FROM sqlite_master").fetchone():
                database.execute(self._schema)
            gc.collect()
            began, run_id = time.perf_counter(), _new_id()
            for batch in self._batches():
                database.execute("BEGIN IMMEDIATE")
                database.executemany(
                    f"INSERT INTO events VALUES ({marks})", [(run_id, *row[1:]) for row in batch]
                )
                database.execute("COMMIT")
            return time.perf_counter() - began

    def _batches(self) -> Iterator[list[tuple[Any, ...]]]:
        """What is kept together: ends of steps, then the starts that follow from them."""
        kind = self._columns.index("kind")
        batch: list[tuple[Any, ...]] = []
        for row in self._rows:
            if batch and batch[-1][kind] == "AttemptStarted" and row[kind] != "AttemptStarted":
                yield batch
                batch = []
            batch.append(row)
        yield batch


async def _seconds(work: Callable[..., Awaitable[object]], **arguments: Any) -> float:
    gc.collect()
    began = time.perf_counter()
    await work(**arguments)
    return time.perf_counter() - began


def _new_id() -> str:
    return f"run {next(_numbers)}"


def against_dbos(folder: Path, rounds: int) -> Iterator[Row]:
    if find_spec("dbos") is None:
        print("   DBOS is not installed, so it was left out: pip install --group bench")
        return
    from dbos import DBOS

    @DBOS.step()
    async def step(number: int) -> int:
        return number

    @DBOS.workflow()
    async def chain(length: int) -> None:
        for number in range(length):
            await step(number)

    async def measured() -> list[Row]:
        url = f"sqlite:///{folder / 'dbos.db'}"
        DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR"})
        DBOS.launch()
        try:
            async with SQLiteJournal(folder / "ours.db") as journal:
                return [
                    row
                    for subject, width, length, limit in (
                        ("a chain of steps", 1, LENGTH, 10),
                        (f"{IN_FLIGHT} runs of a chain at once", IN_FLIGHT, 4, 1),
                    )
                    for row in await _beside_dbos(
                        subject, width, length, limit, rounds, journal, chain
                    )
                ]
        finally:
            DBOS.destroy()

    yield from asyncio.run(measured())


async def _beside_dbos(
    subject: str,
    width: int,
    length: int,
    limit: float,
    rounds: int,
    journal: SQLiteJournal,
    their_chain: Callable[[int], Awaitable[object]],
) -> list[Row]:
    orchestrator = Orchestrator(chains(1, length))

    async def ours() -> None:
        runs = (orchestrator.run(journal=journal, run_id=_new_id()) for _ in range(width))
        await asyncio.gather(*runs)

    async def theirs() -> None:
        await asyncio.gather(*[their_chain(length) for _ in range(width)])

    pairs = [(await _seconds(ours), await _seconds(theirs)) for _ in range(rounds + 1)][1:]
    our_ms, their_ms = (
        statistics.median(times) / (width * length) * 1e3 for times in zip(*pairs, strict=True)
    )
    share = statistics.median(our_s / their_s for our_s, their_s in pairs)
    return [
        Row(f"{subject}: a step with DBOS", their_ms, None, "ms"),
        Row("   a durable step", our_ms, None, "ms"),
        Row("   / DBOS", share * 100, limit, "%"),
    ]


def longest_callback_ms(rounds: int) -> float:
    """The longest time that the loop gave to one callback between a run's first and last event."""
    longest, is_on = 0.0, False
    run_handle = Handle._run

    def sampled(handle: Handle) -> None:
        nonlocal longest
        began = time.perf_counter()
        was_on = is_on
        run_handle(handle)
        if was_on and is_on:
            longest = max(longest, time.perf_counter() - began)

    def switch(event: object) -> None:
        nonlocal is_on
        if isinstance(event, RunStarted | RunFinished):
            is_on = isinstance(event, RunStarted)

    steps = chains(IN_FLIGHT, 100)
    orchestrator = Orchestrator(steps, schedule="ready", observers=[switch])

    async def timed(path: Path) -> None:
        async with SQLiteJournal(path) as journal:
            await orchestrator.run(journal=journal)

    found = []
    with TemporaryDirectory() as folder, patch.object(Handle, "_run", sampled):
        for number in range(rounds):
            longest = 0.0
            asyncio.run(timed(Path(folder) / f"{number}.db"))
            found.append(longest * 1e3)
    return statistics.median(found)
