"""Runs pipelines that fail, time out and are cancelled, and measures what is left of them.

A *round* is a number of steps, in as many runs as they take. Each run is started, watched and ended
in a way that is chosen at random. Between two rounds nothing runs, and what is still there is
counted. It may grow while caches fill, and no more after that.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from asyncflow import (
    Orchestrator,
    Pool,
    Retry,
    RunCancelledError,
    RunReport,
    WorkflowStep,
    current_step,
)
from asyncflow.journal import SQLiteJournal

__all__ = ["Sample", "Soak", "problems_in"]

WORKERS = 32
"""How many runs there are at a time."""
_JOURNALED = 0.25
"""The part of the runs that have a journal, which costs several times as much."""
_IN_THREAD = 0.02
"""The part of the runs that have a step in a thread."""
_NEW = 0.1
"""The part of the runs whose pipeline is made for them."""

MOST_OBJECTS = 1_000
"""How many more objects there may be at the end. One a run would be thousands."""
MOST_MEMORY_KB = 8_192
"""How much memory the second half may add: the allocator's, since no object is new."""


class Sample(NamedTuple):
    """What there is between two rounds."""

    steps: int
    seconds: float
    objects: int
    tasks: int
    threads: int
    descriptors: int
    memory_kb: int
    held: int
    """Resources that are open, actions that are live, what holds or awaits a slot, and threads of
    the loop monitor, which must end with the last run or a moment later."""


def problems_in(samples: list[Sample]) -> list[str]:
    """Return what has grown in the second half of the rounds, in words; nothing if all is flat.

    Args:
        samples: One for each round.
    """
    if len(samples) < 4:
        return ["four rounds tell more than chance does, and there were fewer"]
    early, last = samples[(len(samples) - 1) // 2], samples[-1]
    found = [f"held after {each.steps:,} steps: {each.held}" for each in samples if each.held]
    for what, allowed in (
        ("objects", MOST_OBJECTS),
        ("tasks", 0),
        ("threads", 0),
        ("descriptors", 0),
        ("memory_kb", MOST_MEMORY_KB),
    ):
        before, after = getattr(early, what), getattr(last, what)
        if after > before + allowed:
            found.append(
                f"{what}: {before:,} after {early.steps:,} steps, {after:,} after {last.steps:,}; "
                f"{allowed:,} more are allowed"
            )
    return found


class Soak:
    """A number of runs, one after the other, and what has become of them.

    Args:
        seed: Chooses what happens.
        folder: An empty folder for the journal.
    """

    def __init__(self, seed: int, folder: Path) -> None:
        self._random = Random(seed)
        self._journal = SQLiteJournal(folder / "runs.db")
        self._steps = self._opened = self._bodies = 0
        """How many actions have been called, how many resources are open, and actions are live."""
        self._pool = Pool(4)
        self._pipelines = {runs_in: self._pipeline(runs_in) for runs_in in ("loop", "thread")}
        self.ends: Counter[str] = Counter()
        """How often a run has ended in each way."""
        self.outcomes: Counter[str] = Counter()
        """How the steps have ended."""

    # What runs.

    def _pipeline(self, runs_in: str) -> Orchestrator:
        def blocking() -> int:
            time.sleep(0.001)
            return threading.active_count()

        tries: Any = {"max_retries": 3, "retry": Retry(base_ms=0.2), "timeout_ms": 5}
        thread = WorkflowStep("thread", blocking, ["rows"], runs_in="thread")
        return Orchestrator(
            [
                WorkflowStep("rows", self._rows),
                WorkflowStep(
                    "each", self._each, ["rows"], map_over="rows", pool=self._pool, **tries
                ),
                WorkflowStep("total", self._total, ["each"]),
                WorkflowStep("slow", self._act, ["rows"], **tries),
                WorkflowStep("late", self._act, ["rows"], deadline_ms=8),
                WorkflowStep("odd", self._act, ["slow"], when=self._is_odd, timeout_ms=5),
                *(WorkflowStep(f"plain{n}", self._act, ["rows"], timeout_ms=5) for n in range(5)),
                WorkflowStep("tidy", self._tidy, ["total", "late"], run_if="always"),
                *([thread] if runs_in == "thread" else []),
            ],
            name="soak",
            max_concurrency=8,
        )

    def _is_odd(self) -> bool:
        return self._steps % 2 == 1

    async def _rows(self, connection: object) -> list[int]:
        self._steps += 1
        return list(range(self._random.randint(0, 30)))

    async def _each(self, rows: int) -> int:
        await self._act()
        return rows

    async def _total(self, each: list[int]) -> int:
        self._steps += 1
        return sum(each)

    async def _tidy(self) -> None:
        self._steps += 1
        await asyncio.sleep(0)

    async def _act(self) -> int:
        """Do what an action may do: mostly nothing, and now and then whatever is unpleasant."""
        self._steps += 1
        self._bodies += 1
        try:
            chance = self._random.random()
            if chance < 0.7:
                await asyncio.sleep(0)
            elif chance < 0.9:
                current_step().progress(1, 2)
                await asyncio.sleep(0.001 * self._random.random())
            elif chance < 0.97:
                raise OSError(f"failure {self._steps}")
            elif chance < 0.99:
                await asyncio.get_running_loop().create_future()
            else:
                try:
                    await asyncio.sleep(1)
                except asyncio.CancelledError:  # it takes its time, and then returns a value
                    await asyncio.sleep(0.001)
            return self._steps
        finally:
            self._bodies -= 1

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[object]:
        self._opened += 1
        try:
            yield object()
        finally:
            await asyncio.sleep(0)
            self._opened -= 1

    # How it is run.

    async def rounds(self, steps: int, count: int) -> AsyncGenerator[Sample]:
        """Run so many steps altogether in so many rounds; yield a sample after each."""
        began = time.monotonic()
        async with self._journal:
            await self._warm_up()
            for number in range(1, count + 1):
                async with asyncio.TaskGroup() as group:
                    for _ in range(WORKERS):
                        group.create_task(self._work(steps * number // count))
                await self._journal.prune(timedelta(0))
                gc.collect()
                await self._let_the_loop_monitor_end()
                yield self._sample(time.monotonic() - began)

    async def _warm_up(self) -> None:
        """Do first what leaves something for good, or whether it grows would be chance.

        A step in a thread imports modules. The first checkpoint of a WAL leaves a descriptor, which
        SQLite can't close while the file is locked, and which the next checkpoint uses.
        """
        steps = [
            WorkflowStep("thread", int, runs_in="thread"),
            *(WorkflowStep(f"large{n}", self._large) for n in range(5)),
        ]
        report = await Orchestrator(steps, journal=self._journal).run()
        assert report.all_passed

    async def _large(self) -> str:
        return "x" * 1_000_000  # five of these are more than a WAL holds

    async def _let_the_loop_monitor_end(self) -> None:
        """Wait for its thread, which a short run leaves to the next one for a moment.

        So whether a look finds it would be chance. On a busy machine, the moment is longer.
        """
        give_up = time.monotonic() + 20
        while _loop_monitors() and time.monotonic() < give_up:
            await asyncio.sleep(0.01)

    def _sample(self, seconds: float) -> Sample:
        return Sample(
            steps=self._steps,
            seconds=seconds,
            objects=len(gc.get_objects()),
            tasks=len(asyncio.all_tasks()),
            threads=_threads(),
            descriptors=len(os.listdir("/proc/self/fd")),
            memory_kb=_memory_kb(),
            held=(
                self._opened
                + self._bodies
                + self._pool.in_use
                + self._pool.waiting
                + _loop_monitors()
            ),
        )

    async def _work(self, until: int) -> None:
        random = self._random
        while self._steps < until:
            runs_in = "thread" if random.random() < _IN_THREAD else "loop"
            if random.random() < _NEW:
                pipeline = self._pipeline(runs_in)
            else:
                pipeline = self._pipelines[runs_in]
            pipeline = pipeline.with_options(
                resources={"connection": self._connection},
                fail_fast=random.random() < 0.3,
                schedule=random.choice(["tiers", "ready"]),
                deadline_ms=random.choice([None, None, 20]),
                journal=self._journal if random.random() < _JOURNALED else None,
            )
            way = random.choice(_WAYS)
            try:
                report = await way(self, pipeline)
            except (asyncio.CancelledError, RunCancelledError) as error:
                self.ends[f"{way.__name__[1:]}: {type(error).__name__}"] += 1
                del error
            else:
                self._note(way.__name__[1:], report)
                del report

    def _note(self, way: str, report: RunReport) -> None:
        self.ends[f"{way}: {'passed' if report.all_passed else 'failed'}"] += 1
        self.outcomes.update(result.status.name for result in report.results)

    async def _awaited(self, pipeline: Orchestrator) -> RunReport:
        return await pipeline.run()

    async def _resumed(self, pipeline: Orchestrator) -> RunReport:
        """Run it again if it has failed, as the same run."""
        pipeline = pipeline.with_options(journal=self._journal, run_id=str(self._random.random()))
        report = await pipeline.run()
        return report if report.all_passed else await pipeline.run()

    async def _cancelled(self, pipeline: Orchestrator) -> RunReport:
        task = asyncio.create_task(pipeline.run())
        await self._a_while()
        task.cancel()
        return await task

    async def _watched(self, pipeline: Orchestrator) -> RunReport:
        async with pipeline.start() as run:
            async for _ in run.events():
                pass
            return await run.report()

    async def _asked_to_end(self, pipeline: Orchestrator) -> RunReport:
        async with pipeline.start() as run:
            await self._a_while()
            run.cancel("enough")
            return await run.report()

    async def _left(self, pipeline: Orchestrator) -> RunReport:
        """Leave the block by an error while the run continues."""
        run = pipeline.start()
        with suppress(ZeroDivisionError):
            async with run:
                await self._a_while()
                raise ZeroDivisionError
        return await run.report()

    async def _a_while(self) -> None:
        for _ in range(self._random.randint(0, 20)):
            await asyncio.sleep(0)
        if self._random.random() < 0.5:
            await asyncio.sleep(0.005 * self._random.random())


_WAYS = [
    *(Soak._awaited, Soak._awaited, Soak._resumed, Soak._cancelled),
    *(Soak._watched, Soak._asked_to_end, Soak._left),
]


def _threads() -> int:
    # anyio ends its threads when they have had nothing to do for ten seconds.
    return sum("AnyIO worker" not in each.name for each in threading.enumerate())


def _loop_monitors() -> int:
    return sum(each.name == "asyncflow loop monitor" for each in threading.enumerate())


def _memory_kb() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024
