"""Kills the processes that enqueue, start, cancel and run runs, and looks for what was lost.

``python -m tests.crash.queues --kills 2000 --journal postgres --seed 7``

Producers enqueue runs, most of them with one of a few keys, some later, and cancel some; others
they run themselves, if the key is free. Replicas run what waits, and what was killed. Again and
again one of these processes is killed, and another one takes its place. In the end a last replica
runs what is left.

- None is lost: whatever `enqueue` has acknowledged ends as passed or cancelled.
- None runs twice at a time, and no two runs of a key do: an action holds a lock of its run and one
  of its key, which end with its process.
- The newest wins: a run that was replaced names the one that did it, which has passed, or was
  replaced or cancelled in its turn.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random, randrange
from typing import Any

from asyncflow import (
    Pipeline,
    RunAlreadyActiveError,
    RunCancelledError,
    RunNotFoundError,
    RunStatus,
)
from asyncflow.journal import PostgresJournal, SQLiteJournal
from asyncflow.service import Service
from tests.crash.cycles import BrokenPromise, fast_folder
from tests.postgres_server import running_server

_KEYS = 4
_PRODUCERS, _REPLICAS = 2, 2
_EVERY_S = 0.15
"""How often a process is killed."""
_LEASE_S = 2.0
_BY = re.compile("the run was cancelled: run '(?P<by>[^']+)' has replaced it")


class Queues:
    """One journal, its producers and replicas, and what they write down.

    ``dsn`` is the address of a PostgreSQL server; ``None`` for a file of SQLite.
    """

    def __init__(self, folder: Path, dsn: str | None = None) -> None:
        self._folder = folder
        self._dsn = dsn
        self._processes: dict[int, Callable[[int], Any]] = {}
        self.killed = self.replaced = 0
        (folder / "locks").mkdir()

    # --- the processes --------------------------------------------------------------------------

    def _journal(self) -> Any:
        if self._dsn is not None:
            return PostgresJournal(self._dsn, lease_s=_LEASE_S)
        return SQLiteJournal(self._folder / "runs.db", lease_s=_LEASE_S)

    def _note(self, kind: str, what: str) -> None:
        """Add a line to what is known of a kind, which is there if this process dies then."""
        file = os.open(self._folder / kind, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(file, f"{what}\n".encode())
        os.close(file)

    def _noted(self, kind: str) -> list[str]:
        with suppress(FileNotFoundError):
            return (self._folder / kind).read_text().splitlines()
        return []

    @contextmanager
    def _alone(self, name: str, run_id: str) -> Iterator[None]:
        """Note it if another process, or another run here, is within a block with this name."""
        file = os.open(self._folder / "locks" / name, os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._note("broken", f"run {run_id} was running beside another one of {name}")
        try:
            yield
        finally:
            os.close(file)

    def _pipeline(self) -> Pipeline:
        pipeline = Pipeline("work")

        @pipeline.step(max_crashes=10_000)  # a run may be killed again and again
        async def first(run_id: str, key: str, pause_s: float) -> None:
            self._note("started", run_id)
            with self._alone(f"run-{run_id}", run_id), self._alone(f"key-{key or run_id}", run_id):
                await asyncio.sleep(pause_s)

        @pipeline.step(depends_on=["first"], max_crashes=10_000)
        async def second(run_id: str, key: str, pause_s: float) -> None:
            with self._alone(f"run-{run_id}", run_id), self._alone(f"key-{key or run_id}", run_id):
                await asyncio.sleep(pause_s)

        return pipeline

    async def _produce(self, seed: int) -> None:
        random, number = Random(seed), 0
        async with self._journal() as journal:
            pipeline = self._pipeline().with_options(journal=journal)
            while True:
                number += 1
                run_id = f"{seed}-{number}"
                key = random.choice([None, *(f"k{n}" for n in range(_KEYS)), "newest"])
                inputs = {"run_id": run_id, "key": key or "", "pause_s": random.random() * 0.02}
                if key and random.random() < 0.3:  # not in line, if nobody waits
                    with suppress(RunAlreadyActiveError, RunCancelledError):
                        await pipeline.with_options(run_id=run_id, key=key).run(**inputs)
                    continue
                delay_ms = random.choice([0, 0, 0, random.random() * 400])
                how: Any = random.choice(["wait", "wait", "wait", "return"] if key else ["wait"])
                if key == "newest":
                    how = "replace"
                stored = await pipeline.enqueue(
                    inputs, run_id=run_id, key=key, delay_ms=delay_ms, on_conflict=how
                )
                if stored == run_id:
                    self._note("enqueued", run_id)
                if random.random() < 0.1:
                    self._note("cancelled", stored)
                    with suppress(RunNotFoundError):
                        await journal.cancel(stored)
                await asyncio.sleep(random.random() * 0.06)

    async def _serve(self, _: int) -> None:
        async with self._journal() as journal:
            service = Service([self._pipeline()], journal=journal, max_runs=3, resume_every_s=0.2)
            async with service:
                await asyncio.sleep(3600)

    def _start(self, work: Callable[[int], Any]) -> None:
        seed = randrange(10**9)
        child = os.fork()
        if child:
            self._processes[child] = work
            return
        status = 1
        try:
            asyncio.run(work(seed))
            status = 0
        except BaseException:
            self._note("broken", f"a process has ended: {traceback.format_exc()}")
        finally:
            os._exit(status)

    def _kill(self, child: int) -> None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        del self._processes[child]

    # --- what is promised -----------------------------------------------------------------------

    def run(self, kills: int, random: Random) -> None:
        """Kill so many processes, and raise `BrokenPromise` if that loses or doubles anything."""
        try:
            for work in [self._produce] * _PRODUCERS + [self._serve] * _REPLICAS:
                self._start(work)
            for _ in range(kills):
                time.sleep(random.random() * 2 * _EVERY_S)
                child, work = random.choice([*self._processes.items()])
                self._kill(child)
                self.killed += 1
                self._start(work)
                self._check_broken()
        finally:
            for child in [*self._processes]:
                self._kill(child)
        asyncio.run(self._end())

    def _check_broken(self) -> None:
        for line in self._noted("broken"):
            raise BrokenPromise(line)

    async def _end(self) -> None:
        """Run what is left, and look at what became of all runs."""
        async with self._journal() as journal:
            async with (
                Service([self._pipeline()], journal=journal, max_runs=20, resume_every_s=0.1),
                asyncio.timeout(120),
            ):
                while await journal.runs("WAITING", limit=1) or any(
                    [await journal.runs(status, limit=1) for status in ("RUNNING", "ORPHANED")]
                ):
                    await asyncio.sleep(0.2)
            found = {run.run_id: run for run in await journal.runs(limit=None)}
            by = {
                run_id: _BY.fullmatch((await journal.report(run_id)).stop_reason or "")
                for run_id, run in found.items()
                if run.cause == "replaced"
            }
            queue = await journal.queue()
        self._check_broken()
        if queue.waiting:
            raise BrokenPromise(f"{queue.waiting} runs wait for ever")
        cancelled = {*self._noted("cancelled")}
        for run_id in self._noted("enqueued"):
            if run_id not in found:
                raise BrokenPromise(f"run {run_id} was acknowledged and is lost")
        for run_id, run in found.items():
            may_be = {RunStatus.PASSED}
            if run_id in cancelled or run_id in by:
                may_be |= {RunStatus.INTERRUPTED}
            if run.status not in may_be:
                raise BrokenPromise(f"run {run_id} is {run.status}, {run.cause}")

        self.replaced = len(by)
        for run_id, reason in by.items():
            newer = reason and found.get(reason["by"])
            has_run = newer and (
                newer.status is RunStatus.PASSED or newer.run_id in {*by, *cancelled}
            )
            if not has_run:
                raise BrokenPromise(f"run {run_id} was replaced by nothing: {reason}")

    @property
    def enqueued(self) -> int:
        """How many runs were acknowledged."""
        return len(self._noted("enqueued"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.queues", description=__doc__)
    parser.add_argument("--kills", type=int, default=2_000, help="how many processes to kill")
    parser.add_argument("--seed", type=int, default=randrange(10**6), help="chooses where")
    parser.add_argument("--journal", choices=["sqlite", "postgres"], default="sqlite")
    options = parser.parse_args()
    random, began_s = Random(options.seed), time.monotonic()
    print(f"seed {options.seed}", flush=True)
    try:
        with fast_folder() as folder, database(options.journal) as dsn:
            queues = Queues(folder, dsn)
            queues.run(options.kills, random)
            enqueued, took_s = queues.enqueued, time.monotonic() - began_s
    except BrokenPromise as failure:
        print(failure)
        return 1
    print(
        f"{options.journal}: {queues.killed} processes were killed in {took_s:.0f} s, "
        f"{enqueued} runs enqueued, {queues.replaced} replaced; no promise is broken"
    )
    return 0


@contextmanager
def database(kind: str) -> Iterator[str | None]:
    """Return the address of a database; ``None`` for a file."""
    if kind == "sqlite":
        yield None
    else:
        with running_server() as server:
            yield server.dsn()


if __name__ == "__main__":
    sys.exit(main())
