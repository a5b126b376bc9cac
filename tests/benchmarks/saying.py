"""Measures the cost of what steps say: log records in the journal, and reports of progress.

A run whose log records go to the journal is measured against the same durable run whose records go
to a file, by a `logging.FileHandler`; in the CPU time of all threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from asyncflow import Orchestrator, WorkflowStep, current_step
from asyncflow.journal import SQLiteJournal
from tests.benchmarks.ratios import Ratio, Row, seconds

LINES = 100
"""How many records each step logs."""
STEPS = 50
MAX_OF_A_FILE = 1.8
MAX_OF_PROGRESS_US = 1.6

_numbers = count()
_log = logging.getLogger("benchmark")


async def talk() -> None:
    for number in range(LINES):
        _log.info("loaded row %d of %d", number, LINES)


def chain() -> list[WorkflowStep]:
    return [WorkflowStep(f"s{n}", talk, [f"s{n - 1}"] if n else []) for n in range(STEPS)]


def fan() -> list[WorkflowStep]:
    return [WorkflowStep(f"s{n}", talk) for n in range(STEPS)]


def saying(rounds: int) -> Iterator[Row]:
    with TemporaryDirectory() as folder:
        for shape, steps in (("a chain", chain()), ("a fan", fan())):
            orchestrator = Orchestrator(steps, schedule="ready")
            bench = Bench(Path(folder), orchestrator)
            ms = bench.in_journal_s() / STEPS * 1e3
            yield Row(f"{shape} of {STEPS} steps, {LINES} log lines each: a step", ms, None, "ms")
            value = Ratio(bench.in_journal_s, bench.in_file_s, rounds)
            yield Row("   / the same with the lines in a file", value, MAX_OF_A_FILE)
    yield Row("a report of progress", progress_us, MAX_OF_PROGRESS_US, "us")


class Bench:
    """A pipeline whose steps log, and where their records go."""

    def __init__(self, folder: Path, orchestrator: Orchestrator) -> None:
        self._folder = folder
        self._orchestrator = orchestrator

    def in_journal_s(self) -> float:
        return asyncio.run(self._timed("logged.db", logs="INFO"))

    def in_file_s(self) -> float:
        root = logging.getLogger()
        handler = logging.FileHandler(self._folder / "lines.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        try:
            return asyncio.run(self._timed("silent.db"))
        finally:
            root.setLevel(logging.WARNING)
            root.removeHandler(handler)
            handler.close()

    async def _timed(self, name: str, logs: str | None = None) -> float:
        async with SQLiteJournal(self._folder / name, logs=logs) as journal:
            await journal.runs()  # opens the database
            options = {"journal": journal, "run_id": f"run {next(_numbers)}"}
            return await seconds(self._orchestrator.with_options(**options).run)


def progress_us() -> float:
    """Return the CPU time of a report of progress by a step that is observed, in microseconds."""
    found = []

    async def work() -> None:
        step = current_step()
        for _ in range(5):
            began = time.thread_time()
            for number in range(100_000):
                step.progress(number, 100_000, "rows")
            found.append((time.thread_time() - began) * 10)

    steps = [WorkflowStep("work", work)]
    asyncio.run(Orchestrator(steps, observers=[lambda event: None]).run())
    return min(found)
