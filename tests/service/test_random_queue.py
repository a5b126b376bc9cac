"""Random producers, replicas, cancellations, shutdowns and crashes of a queue, in virtual time.

- None is lost: what was enqueued passes, unless it was cancelled, forgotten or replaced.
- None runs twice at a time, and no two started runs of a key are there at any time.
- The newest wins: what was replaced names the run that did it, which is there.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from asyncflow import (
    JournalError,
    Pipeline,
    RunAlreadyActiveError,
    RunNotFoundError,
    RunStatus,
    current_step,
)
from asyncflow.journal import RunRecord, SQLiteJournal
from asyncflow.service import Service, ServiceUnavailableError
from asyncflow.testing import run_in_virtual_time

KEYS = ["a", "b", "newest"]
SEEDS = [*range(6)] + [pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(6, 150)]


class World:
    """One journal, and all that happens to its queue."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.random = Random(seed)
        self.enqueued: dict[str, str | None] = {}
        """The key of each run that was acknowledged."""
        self.dropped: set[str] = set()
        """The runs that were cancelled or forgotten."""
        self.running: dict[str, str] = {}
        """By run, and by key, the run that runs."""
        self.broken: list[str] = []
        self.replicas: list[tuple[Service, AsyncExitStack, SQLiteJournal]] = []

    def pipeline(self) -> Pipeline:
        pipeline = Pipeline("work")
        gate = pipeline.signal("gate", bool, when=lambda waits: waits)

        @pipeline.step(timeout_ms=None)
        async def first(key: str, waits: bool, pause_s: float) -> None:
            with self.alone(key):
                await asyncio.sleep(pause_s)

        @pipeline.step(timeout_ms=None, depends_on=["first", gate])
        async def second(key: str, pause_s: float) -> None:
            with self.alone(key):
                await asyncio.sleep(pause_s)

        return pipeline

    @contextmanager
    def alone(self, key: str) -> Iterator[None]:
        run_id = current_step().run_id
        names = [f"run {run_id}", *([f"key {key}"] if key else [])]
        for name in names:
            if name in self.running:
                self.broken.append(f"{run_id} runs beside {self.running[name]}: {name}")
            self.running[name] = run_id
        try:
            yield
        finally:
            for name in names:
                self.running.pop(name, None)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        try:
            for _ in range(2):
                await self.start_replica()
            yield
        finally:
            while self.replicas:
                await self.stop_replica(crashes=False)

    async def start_replica(self) -> None:
        stack = AsyncExitStack()
        journal = SQLiteJournal(self.path, close_timeout_s=0)
        await stack.enter_async_context(journal)
        grace_ms = self.random.choice([0, 500, 10_000])
        service = Service(
            [self.pipeline()],
            journal=journal,
            max_runs=self.random.choice([1, 2, 5]),
            grace_ms=grace_ms,
            resume_every_s=1,
        )
        await stack.enter_async_context(service)
        self.replicas.append((service, stack, journal))

    async def stop_replica(self, *, crashes: bool) -> None:
        _, stack, journal = self.replicas.pop(self.random.randrange(len(self.replicas)))
        if crashes:  # what it ran stays as it was stored, and its steps end
            await journal.aclose()
        with suppress(JournalError):
            await stack.aclose()

    async def act(self, number: int) -> None:
        random = self.random
        service, _, journal = random.choice(self.replicas)
        known = [*self.enqueued]
        what = random.choices(
            ["enqueue", "start", "cancel", "forget", "restart", "crash"], [60, 8, 6, 2, 4, 4]
        )[0]
        with suppress(RunAlreadyActiveError, RunNotFoundError, ServiceUnavailableError):
            if what in ("enqueue", "start"):
                await self.add(service, number, starts=what == "start")
            elif what in ("cancel", "forget") and known:
                run_id = random.choice(known)
                self.dropped.add(run_id)
                if what == "cancel":
                    await service.cancel(run_id)
                else:
                    await journal.forget(run_id)
            elif what in ("restart", "crash"):
                await self.stop_replica(crashes=what == "crash")
                await self.start_replica()

    async def add(self, service: Service, number: int, *, starts: bool) -> None:
        random, run_id = self.random, f"r{number}"
        key = random.choice([None, *KEYS])
        inputs: dict[str, Any] = {
            "key": key or "",
            "waits": random.random() < 0.1,
            "pause_s": random.random() * 3,
        }
        if starts:
            await service.start("work", inputs, run_id=run_id, key=key)
            self.enqueued[run_id] = key
        else:
            how: Any = random.choice(["wait", "wait", "return", "raise"] if key else ["wait"])
            if key == "newest":
                how = "replace"
            delay_ms = random.choice([0, 0, random.random() * 10_000])
            stored = await service.enqueue(
                "work", inputs, run_id=run_id, key=key, on_conflict=how, delay_ms=delay_ms
            )
            if stored == run_id:
                self.enqueued[run_id] = key
        if inputs["waits"]:
            asyncio.get_running_loop().call_later(
                random.random() * 20, lambda: self.signals.add(self.answer(run_id))
            )

    def answer(self, run_id: str) -> asyncio.Task[None]:
        async def send() -> None:
            async with SQLiteJournal(self.path) as journal:
                with suppress(RunNotFoundError, ValueError):
                    await journal.signal(run_id, "gate", True)

        return asyncio.create_task(send())

    async def run(self) -> None:
        self.signals: set[asyncio.Task[None]] = set()
        async with SQLiteJournal(self.path) as journal:
            async with self.serving():
                for number in range(60):
                    await self.act(number)
                    await asyncio.sleep(self.random.random())
                async with asyncio.timeout(3_600):
                    while not all(map(has_ended, await journal.runs(limit=None))):
                        await asyncio.sleep(1)
            await self.check(journal)

    async def check(self, journal: SQLiteJournal) -> None:
        found = {run.run_id: run for run in await journal.runs(limit=None)}
        assert self.broken == []
        assert (await journal.queue()).waiting == 0
        for run_id in self.enqueued.keys() - self.dropped:
            run = found[run_id]
            if run.cause != "replaced":
                assert run.status is RunStatus.PASSED, run
                continue
            reason = (await journal.report(run_id)).stop_reason
            by = re.fullmatch("the run was cancelled: run '(.+)' has replaced it", reason or "")
            assert by is not None, reason
            newer = found.get(by[1])
            assert by[1] in self.dropped or (newer is not None and newer.key == run.key)


def has_ended(run: RunRecord) -> bool:
    """Whether a run has ended, so that no service continues it."""
    return run.status in ("PASSED", "FAILED") or (
        run.status == "INTERRUPTED" and run.cause != "drained"
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_no_run_is_lost_or_doubled_whatever_happens(tmp_path: Path, seed: int) -> None:
    run_in_virtual_time(World(tmp_path / "runs.db", seed).run(), seed=seed)
