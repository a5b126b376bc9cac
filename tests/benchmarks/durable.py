"""Measures the cost of a durable step, on the disk of temporary files.

The reference is a hand-written loop with `sqlite3` and group commit. It writes as many rows with
the same columns, and calls an action once the row of its start is committed. DBOS, if it is
installed, is a second reference: it also stores the result of a step in SQLite.

Limits are for the CPU time of all threads. How long a disk takes, and a thread until it gets its
turn, depends on what else the machine does.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from asyncio import Handle
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from resource import RUSAGE_THREAD, getrusage
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from asyncflow import Orchestrator, RunReport, WorkflowStep
from asyncflow.events import RunFinished, RunStarted
from asyncflow.journal import SQLiteJournal
from tests.benchmarks.graphs import SHAPES, pipeline
from tests.benchmarks.ratios import Ratio, Row, compared, seconds

IN_FLIGHT = 50
LENGTH = 100
"""The number of steps in a chain."""

_numbers = count()


async def one() -> int:
    return 1


def chains(width: int, length: int) -> list[WorkflowStep]:
    """Return `width` independent chains of `length` steps."""
    return [
        WorkflowStep(f"c{chain}s{place}", one, [f"c{chain}s{place - 1}"] if place else [])
        for chain in range(width)
        for place in range(length)
    ]


def durable(rounds: int) -> Iterator[Row]:
    with TemporaryDirectory() as folder:
        shapes = {
            f"chain of {LENGTH}": chains(1, LENGTH),
            f"{IN_FLIGHT} chains of 10": chains(IN_FLIGHT, 10),
            "fan of 1,000": pipeline(SHAPES["fan"](1_000), one),
            "chain of 3": chains(1, 3),
        }
        for subject, steps in shapes.items():
            bench = Bench(Path(folder) / f"{subject}.db", steps)
            yield compared(f"durable {subject}", bench.ours_s, bench.by_hand_s, rounds)
            clock = time.perf_counter
            real = Ratio(partial(bench.ours_s, clock), partial(bench.by_hand_s, clock), rounds)
            yield Row("   in real time", real, None)
            yield Row(
                "   real time of a step",
                lambda real=real, steps=steps: real.ours / len(steps) * 1e3,
                None,
                "ms",
            )
        yield from against_dbos(Path(folder), max(3, rounds // 3))
        yield Row(
            "longest callback of the loop, 10,000 events",
            lambda: longest_callback_ms(rounds),
            5,
            "ms",
        )


class Bench:
    """A pipeline, a journal for it, and the rows that one run stores."""

    def __init__(self, path: Path, steps: Sequence[WorkflowStep]) -> None:
        self._path = path
        self._steps = steps
        self._repeats = max(1, LENGTH // len(steps))
        self._orchestrator = Orchestrator(steps, schedule="ready")
        self.ours_s()
        with closing(sqlite3.connect(path)) as database:
            (self._schema,) = database.execute(
                "SELECT sql FROM sqlite_master WHERE name = 'events'"
            ).fetchone()

    def ours_s(self, clock: Callable[[], float] = time.process_time) -> float:
        async def timed() -> float:
            async with SQLiteJournal(self._path) as journal:
                await journal.runs()  # opens the database
                run = partial(_run, self._orchestrator, journal)
                return await seconds(run, clock=clock, repeats=self._repeats)

        return asyncio.run(timed())

    def by_hand_s(self, clock: Callable[[], float] = time.process_time) -> float:
        with closing(self._other_database()) as database:
            run = partial(run_by_hand, self._steps, partial(self._write, database))
            return asyncio.run(seconds(run, clock=clock, repeats=self._repeats))

    def _other_database(self) -> sqlite3.Connection:
        path = self._path.with_suffix(".other.db")
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        if not database.execute("SELECT 1 FROM sqlite_master").fetchone():
            database.execute(self._schema)
        return database

    def _write(self, database: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> None:
        database.execute("BEGIN IMMEDIATE")
        database.executemany(
            "INSERT INTO events (attempt, checksum, run_id, position, kind, step, at_ms, codec, "
            "data) VALUES (1, 0, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        database.execute("COMMIT")


async def _run(orchestrator: Orchestrator, journal: SQLiteJournal) -> RunReport:
    return await orchestrator.with_options(journal=journal, run_id=_new_id()).run()


async def run_by_hand(
    steps: Sequence[WorkflowStep], write: Callable[[list[tuple[Any, ...]]], None]
) -> list[Any]:
    """Run steps as soon as their dependencies have ended; store their starts and results."""
    loop, run_id, began = asyncio.get_running_loop(), _new_id(), time.monotonic()
    rows: list[tuple[Any, ...]] = []
    waiters: list[asyncio.Future[None]] = []
    positions, is_writing = count(1), False
    tasks: dict[str, asyncio.Task[Any]] = {}

    def add(kind: str, step: str | None = None, output: bytes | None = None) -> None:
        at_ms, codec = (time.monotonic() - began) * 1000, output and "json"
        rows.append((run_id, next(positions), kind, step, at_ms, codec, output))

    async def stored() -> None:
        nonlocal is_writing
        waiters.append(waiter := loop.create_future())
        if not is_writing:
            is_writing = True
            group.create_task(write_all())
        await waiter

    async def write_all() -> None:
        nonlocal is_writing
        while waiters:
            served, batch = waiters.copy(), rows.copy()
            waiters.clear(), rows.clear()
            await loop.run_in_executor(thread, write, batch)
            for waiter in served:
                waiter.set_result(None)
        is_writing = False

    async def run(step: WorkflowStep) -> Any:
        for name in step.depends_on:
            await tasks[name]
        add("AttemptStarted", step.name)
        await stored()
        output = await step.action()
        add("StepSucceeded", step.name, json.dumps(output).encode())
        return output

    with ThreadPoolExecutor(1) as thread:
        async with asyncio.TaskGroup() as group:
            add("RunStarted")
            for step in steps:
                tasks[step.name] = group.create_task(run(step))
            outputs = await asyncio.gather(*tasks.values())
            add("RunFinished")
            await stored()
    return outputs


def _new_id() -> str:
    return f"run {next(_numbers)}"


def against_dbos(folder: Path, rounds: int) -> Iterator[Row]:
    if find_spec("dbos") is None:
        print("   DBOS is not installed and not measured: pip install --group bench")
        return
    from dbos import DBOS

    @DBOS.step()
    async def step(number: int) -> int:
        return number

    async def chain(length: int) -> int:
        return sum([await step(1) for _ in range(length)])

    @DBOS.workflow()
    async def workflow(width: int, length: int) -> list[int]:
        return await asyncio.gather(*[chain(length) for _ in range(width)])

    async def launch() -> SQLiteJournal:
        url = f"sqlite:///{folder / 'dbos.db'}"
        DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR"})
        DBOS.launch()
        return SQLiteJournal(folder / "ours.db")

    with asyncio.Runner() as runner:
        journal = runner.run(launch())

        def measured(
            runs: int, work: Callable[[], Awaitable[Any]], clock: Callable[[], float]
        ) -> float:
            return runner.run(seconds(partial(_at_once, runs, work), clock=clock))

        try:
            # Concurrent runs, chains of each, steps of each, and the most of the CPU time of DBOS.
            for runs, width, length, limit in (
                (1, 1, LENGTH, 0.3),
                (1, IN_FLIGHT, 10, 0.08),
                (IN_FLIGHT, 1, 10, None),
            ):
                ours = partial(_run, Orchestrator(chains(width, length), schedule="ready"), journal)
                theirs = partial(workflow, width, length)
                ratios = [
                    Ratio(
                        partial(measured, runs, ours, clock),
                        partial(measured, runs, theirs, clock),
                        rounds,
                    )
                    for clock in (time.process_time, time.perf_counter)
                ]
                subject = f"durable, runs x chains x steps: {runs} x {width} x {length} / DBOS"
                yield Row(subject, ratios[0], limit)
                yield Row("   in real time", ratios[1], None)
                for whose in "ours", "theirs":
                    ms = getattr(ratios[1], whose) / (runs * width * length) * 1e3
                    yield Row(f"   real time of a step, {whose}", ms, None, "ms")
        finally:
            DBOS.destroy()
            runner.run(journal.aclose())


async def _at_once(count: int, work: Callable[[], Awaitable[Any]]) -> list[Any]:
    return await asyncio.gather(*[work() for _ in range(count)])


def longest_callback_ms(rounds: int) -> float:
    """Return the duration of the longest callback between a run's first and last event.

    It includes waiting for the journal's thread. Callbacks that the system interrupted don't count.
    """
    longest, is_on = 0.0, False
    run_handle = Handle._run

    def sampled(handle: Handle) -> None:
        nonlocal longest
        was_on, interruptions = is_on, _interruptions()
        began = time.perf_counter()
        run_handle(handle)
        lasted = time.perf_counter() - began
        if lasted > longest and was_on and is_on and _interruptions() == interruptions:
            longest = lasted

    def switch(event: object) -> None:
        nonlocal is_on
        if isinstance(event, RunStarted | RunFinished):
            is_on = isinstance(event, RunStarted)

    steps = chains(IN_FLIGHT, 100)
    orchestrator = Orchestrator(steps, schedule="ready", observers=[switch])

    async def timed(path: Path) -> None:
        async with SQLiteJournal(path) as journal:
            await orchestrator.with_options(journal=journal).run()

    found = []
    with TemporaryDirectory() as folder, patch.object(Handle, "_run", sampled):
        for number in range(rounds):
            longest = 0.0
            asyncio.run(timed(Path(folder) / f"{number}.db"))
            found.append(longest * 1e3)
    return min(found)  # a callback that waits for a commit does so in every run


def _interruptions() -> int:
    """Return how often the operating system has preempted this thread."""
    return getrusage(RUSAGE_THREAD).ru_nivcsw
