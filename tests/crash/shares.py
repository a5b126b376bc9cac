"""Kills, stops and locks out processes that share a pool, and looks for one slot too many.

``python -m tests.crash.shares --seconds 120 --journal postgres --seed 7``

Processes run runs whose steps use one shared pool. Each call notes its begin and its end in a file,
where what a process has written stays when it is killed. Again and again a process is killed, and
another one takes its place. Now and then one stands still for longer than its lease, the database
is locked for as long, or the provider refuses all calls for a while. In the end a last process runs
what is left.

- Never more calls run at once than the pool has slots, over all live processes. A process whose
  lease has ended may have what it had in flight on top, and starts nothing before it has a share
  again.
- With a rate, no more calls begin in any time than it allows, and one for each process.
- Nobody starves: each process starts calls again and again.
- After a refusal in one process there are no more refusals in the others than the pool has slots,
  and they soon start nothing, even if the provider refuses that process alone.
- All runs end.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import signal
import sqlite3
import sys
import time
import traceback
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from random import Random, randrange
from typing import Any, NamedTuple

import psycopg

from asyncflow import JournalError, Pipeline, Pool, Retry, RunStatus
from asyncflow.journal import PostgresJournal, SQLiteJournal
from asyncflow.service import Service
from tests.crash.cycles import BrokenPromise, fast_folder
from tests.crash.queues import database

_PROCESSES = 4
_RUNS = 3
"""How many runs a process has at a time, so that some attempt always waits."""
_EVERY_S = 0.4
"""How often a process is killed."""
_LEASE_S = 1.0
_AWAY_S = 2.0
"""How long a process stands still, or the database is locked: longer than a lease."""
_STARVED_S = 8.0
"""After this time without a slot a process starves. It includes a lease, the turns of all others, a
pause, and a busy machine."""
_LATE_S = 0.5
"""How much later a call may begin than it got its slots: its start is stored before."""
_WINDOW_S = 2.0
"""The time in which calls are counted that begin."""
_REFUSING_S = 2.0
_TOLD_S = 1.2
"""When nothing begins any more in any process: a tick is 0.1 s, and what has its slots then begins
when its start is stored, which may take long on a busy machine."""


class Busy(Exception):
    """What the provider answers while it refuses."""

    def __init__(self, retry_after_ms: float) -> None:
        super().__init__(retry_after_ms)
        self.retry_after_ms = retry_after_ms


class _Line(NamedTuple):
    """A line of the file: what a process has done, and its share and slots then."""

    what: str
    pid: int
    call: str
    slots: int
    share: int
    in_use: int
    at_s: float


class Seen(NamedTuple):
    """What the file tells of what is promised."""

    calls: int
    most: int
    """How many slots were taken at once, by processes that did not stand still."""
    most_on_top: int
    """How many more at once, by those whose lease had ended since."""
    longest_wait_s: float
    """How long a process had no slot."""
    first_slots_s: list[float]
    """How long new processes waited for their first slot."""
    refusals: list[int]
    """How many refusals each time in the processes other than the first."""


class SharedPools:
    """One journal, the processes that share a pool of ``size``, and what they write down.

    ``dsn`` is the address of a PostgreSQL server; ``None`` for a file of SQLite.
    """

    def __init__(
        self,
        folder: Path,
        dsn: str | None = None,
        size: int = 8,
        *,
        per_second: float | None = None,
    ) -> None:
        self._folder = folder
        self._dsn = dsn
        self._size = size
        self._per_second = per_second
        self._children: list[int] = []
        self.killed = 0

    # --- the processes --------------------------------------------------------------------------

    def _journal(self) -> Any:
        if self._dsn is not None:
            return PostgresJournal(self._dsn, lease_s=_LEASE_S)
        return SQLiteJournal(self._folder / "runs.db", lease_s=_LEASE_S)

    def _note(self, what: str, pid: int, call: str = "-", slots: int = 0, pool: Any = None) -> None:
        """Add a line to the file, which is there if this process dies then."""
        stats = None if pool is None else pool.stats()
        share, in_use = (0, 0) if stats is None else (stats.share or 0, stats.in_use)
        line = f"{what} {pid} {call} {slots} {share} {in_use} {time.monotonic()}\n"
        file = os.open(self._folder / "lines", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(file, line.encode())
        os.close(file)

    def _pipeline(self, pool: Pool) -> Pipeline:
        pipeline = Pipeline("calls")
        refusing, pid, asked = self._folder / "refusing", os.getpid(), set[int]()

        def needed(slots: int) -> int:
            if not asked:
                asked.add(pid)
                self._note("asks", pid)
            return slots

        @pipeline.step(
            map_over="holds",
            pool=pool,
            slots=needed,
            max_retries=1_000,
            retry=Retry(on=lambda error: getattr(error, "retry_after_ms", False)),
            max_crashes=10_000,  # a run may be killed again and again
        )
        async def call(holds: float, slots: int) -> None:
            number = os.urandom(8).hex()
            self._note("begin", pid, number, slots, pool)
            try:
                with suppress(FileNotFoundError):
                    until_s, whom = refusing.read_text().split()
                    left_s = float(until_s) - time.monotonic()
                    if left_s > 0 and int(whom) in (0, pid):
                        self._note("refused", pid)
                        raise Busy(left_s * 1000)
                await asyncio.sleep(holds)
            finally:
                self._note("end", pid, number, slots, pool)

        return pipeline

    def _pool(self, per_second: float | None) -> Pool:
        return Pool(self._size, per_second=per_second, name="provider", shared=True)

    async def _work(self, seed: int) -> None:
        pool = self._pool(self._per_second)
        async with self._journal() as journal:
            pipeline = self._pipeline(pool).with_options(journal=journal)
            async with asyncio.TaskGroup() as runs:
                for number in range(_RUNS):
                    runs.create_task(self._run_on(pipeline, Random(seed + number)))

    async def _run_on(self, pipeline: Any, random: Random) -> None:
        """Run one run after the other."""
        while True:
            holds = [random.random() * 0.02 for _ in range(random.randint(5, 25))]
            slots = random.choice([1, 1, min(2, self._size)])
            with suppress(JournalError):  # the database is locked
                await pipeline.run(holds=holds, slots=slots)

    def _start(self) -> None:
        seed = randrange(10**9)
        child = os.fork()
        if child:
            self._children.append(child)
            return
        status = 1
        try:
            asyncio.run(self._work(seed))
            status = 0
        except BaseException:
            (self._folder / f"broken-{os.getpid()}").write_text(traceback.format_exc())
        finally:
            os._exit(status)

    def _kill(self, child: int) -> None:
        # What a dead process held is free at once. So the line is written while it stands still.
        self._stop(child)
        self._note("killed", child)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        self._children.remove(child)

    def _stop(self, child: int) -> None:
        os.kill(child, signal.SIGSTOP)
        _, status = os.waitpid(child, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            self._children.remove(child)
            self._check_broken()
            raise BrokenPromise(f"process {child} has ended")

    # --- what happens ---------------------------------------------------------------------------

    def __enter__(self) -> SharedPools:
        for _ in range(_PROCESSES):
            self._start()
        ends_s = time.monotonic() + 30
        while not {*self._children} <= {line.pid for line in self._lines() if line.slots}:
            if time.monotonic() > ends_s:
                raise BrokenPromise("not all processes get slots")
            time.sleep(0.05)
            self._check_broken()
        return self

    def __exit__(self, *_: object) -> None:
        for child in [*self._children]:
            with suppress(BrokenPromise):
                self._kill(child)

    def kill_holders(self, seconds: float, random: Random) -> None:
        """Kill processes, and start others."""
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            time.sleep(random.random() * 2 * _EVERY_S)
            self._kill(random.choice(self._children))
            self.killed += 1
            self._start()
            self._check_broken()

    def stand_still(self, random: Random) -> None:
        """Let a process stand still for longer than its lease."""
        child = random.choice(self._children)
        self._stop(child)
        self._note("stopped", child)
        time.sleep(_AWAY_S)
        self._note("continued", child)
        os.kill(child, signal.SIGCONT)
        time.sleep(_LEASE_S)

    def lock_out(self) -> None:
        """Lock the database for longer than a lease: on a server, what the shares need of it."""
        with _locked(self._folder, self._dsn):
            self._note("locked", 0)
            time.sleep(_AWAY_S)
            self._note("unlocked", 0)
        time.sleep(_LEASE_S)

    def refuse(self, *, whom: int = 0) -> None:
        """Let the provider refuse all calls for a while, or those of one process."""
        until_s = time.monotonic() + _REFUSING_S
        self._note("refusing", whom)
        part = self._folder / "refusing.part"
        part.write_text(f"{until_s} {whom}")
        part.rename(self._folder / "refusing")
        time.sleep(_REFUSING_S + 0.3)

    def refuse_one(self, random: Random) -> None:
        self.refuse(whom=random.choice(self._children))

    # --- what is promised -----------------------------------------------------------------------

    def end(self) -> Seen:
        """End all processes, run what is left, and raise `BrokenPromise` if one was broken."""
        self.__exit__()
        self._check_broken()
        self._note("finishing", 0)
        asyncio.run(self._end())
        return self._check()

    async def _end(self) -> None:
        going_on = {RunStatus.RUNNING, RunStatus.ORPHANED}
        async with self._journal() as journal:
            pipeline = self._pipeline(self._pool(None))
            async with (
                Service([pipeline], journal=journal, max_runs=40, resume_every_s=0.1),
                asyncio.timeout(60 + self.killed),
            ):
                while going_on & {run.status for run in await journal.runs(limit=None)}:
                    while await journal.runs("RUNNING", limit=1):
                        await asyncio.sleep(0.1)
            for run in await journal.runs(limit=None):
                if run.status is not RunStatus.PASSED:
                    raise BrokenPromise(f"run {run.run_id} is {run.status}, {run.cause}")

    def _check_broken(self) -> None:
        for file in self._folder.glob("broken-*"):
            raise BrokenPromise(f"a process has ended: {file.read_text()}")

    def _lines(self) -> Iterator[_Line]:
        with suppress(FileNotFoundError), (self._folder / "lines").open() as lines:
            for line in lines:
                what, pid, call, slots, share, in_use, at_s = line.split()
                yield _Line(what, int(pid), call, int(slots), int(share), int(in_use), float(at_s))

    def _check(self) -> Seen:
        ledger = _Ledger(self._size, self._per_second)
        for line in self._lines():
            if line.what == "finishing":
                break  # without a rate
            ledger.read(line)
        return ledger.seen()


class _Ledger:
    """Reads the lines, and raises `BrokenPromise` at the first that must not be there."""

    def __init__(self, size: int, per_second: float | None) -> None:
        self._size = size
        self._per_second = per_second
        self._starts_s: list[float] = []
        self._kills_s: list[float] = []
        self._held: defaultdict[int, dict[str, int]] = defaultdict(dict)
        """The slots of the calls that run, by process."""
        self._old: defaultdict[int, dict[str, int]] = defaultdict(dict)
        """Of those that had their slots before the lease of their process ended."""
        self._last: dict[int, _Line] = {}
        """The latest line of each process."""
        self._on_top: dict[int, int] = {}
        """With how many slots a process whose lease has ended may begin: it had them before, but
        their calls had not begun."""
        self._woken_s: dict[int, float] = {}
        """When each process has gone on after that."""
        self._since_s: dict[int, float] = {}
        """Since when each process has had no slot."""
        self._new: set[int] = set()
        """The processes that have had none yet."""
        self._ends_s = math.inf
        """When the leases have ended, since the database is locked."""
        self._refused: list[list[int]] = []
        """The processes that were refused each time."""
        self._refusing_from_s = self._refusing_until_s = math.inf
        self._calls = self._most = self._most_on_top = 0
        self._longest_s = 0.0
        self._first_s: list[float] = []

    def read(self, line: _Line) -> None:
        pid = line.pid
        match line.what:
            case "asks":
                self._since_s[pid] = line.at_s
                self._new.add(pid)
            case "begin":
                self._begin(line)
            case "end":
                self._held[pid].pop(line.call, None)
                self._old[pid].pop(line.call, None)
                if not (self._held[pid] or self._old[pid]):
                    self._since_s[pid] = line.at_s
            case "killed":
                self._kills_s.append(line.at_s)
                self._end_wait(line)
                for known in (self._held, self._old, self._on_top, self._last):
                    known.pop(pid, None)
                self._new.discard(pid)
            case "stopped":
                self._since_s.pop(pid, None)
                self._put_aside(pid, math.inf)
            case "continued":
                self._woken_s[pid] = self._since_s[pid] = line.at_s
            case "locked":
                self._ends_s = line.at_s + _LEASE_S + _LATE_S
            case "unlocked":
                self._ends_s = math.inf
                self._since_s = dict.fromkeys(self._since_s, line.at_s)
                for each in [*self._last]:
                    self._put_aside(each, line.at_s)
            case "refusing":
                self._refused.append([])
                self._refusing_from_s = math.inf
                self._refusing_until_s = line.at_s + _REFUSING_S
            case "refused":
                if not self._refused[-1]:
                    self._refusing_from_s = line.at_s + _TOLD_S
                self._refused[-1].append(pid)
        if line.call != "-":
            self._last[pid] = line

    def _put_aside(self, pid: int, woken_s: float) -> None:
        """Let what a process has in flight be on top: its lease has ended meanwhile."""
        had = self._held.pop(pid, {})
        self._old[pid] |= had
        last = self._last.get(pid)
        most = max(last.in_use, last.share) if last else 0
        self._on_top[pid] = most - sum(had.values())
        self._woken_s[pid] = woken_s

    def _begin(self, line: _Line) -> None:
        pid = line.pid
        self._calls += 1
        self._starts_s.append(line.at_s)
        self._end_wait(line)
        if line.at_s > self._ends_s:
            if self._woken_s.get(pid) != math.inf:
                self._put_aside(pid, math.inf)
            if self._on_top[pid] < line.slots:
                raise BrokenPromise(f"it begins although its lease has ended: {line}")
        if self._refusing_from_s < line.at_s < self._refusing_until_s:
            raise BrokenPromise(f"it begins although the pool is paused: {line}")
        on_top = self._on_top.get(pid, 0)
        has_woken = line.at_s < self._woken_s.get(pid, -math.inf) + _LEASE_S
        had_slots = has_woken and on_top > 0  # else it needs a share as any other
        if had_slots:
            self._on_top[pid] = on_top - line.slots
        (self._old if had_slots else self._held)[pid][line.call] = line.slots
        taken, old = (
            sum(sum(calls.values()) for calls in each.values()) for each in (self._held, self._old)
        )
        self._most, self._most_on_top = max(self._most, taken), max(self._most_on_top, old)
        if taken > self._size:
            by = {pid: sum(calls.values()) for pid, calls in self._held.items() if calls}
            raise BrokenPromise(f"{taken} of {self._size} slots are taken: {by}, {line}")

    def _end_wait(self, line: _Line) -> None:
        since_s = self._since_s.pop(line.pid, None)
        if since_s is None:
            return
        waited_s = line.at_s - since_s
        if waited_s > _STARVED_S:
            raise BrokenPromise(f"it had no slot for {waited_s:.1f} s: {line}")
        if line.what == "begin" and line.pid in self._new:
            self._new.discard(line.pid)
            self._first_s.append(waited_s)
        elif line.pid not in self._new:
            self._longest_s = max(self._longest_s, waited_s)

    def _check_rate(self) -> None:
        for at, began_s in enumerate(self._starts_s):
            ends_s = began_s + _WINDOW_S
            count = bisect_left(self._starts_s, ends_s) - at
            kills = bisect_left(self._kills_s, ends_s) - bisect_left(self._kills_s, began_s)
            most = (self._per_second or math.inf) * (_WINDOW_S + _LATE_S) + _PROCESSES + kills
            if count > most:
                raise BrokenPromise(f"{count} calls in {_WINDOW_S} s, and not {most:.0f}")

    def seen(self) -> Seen:
        self._check_rate()
        elsewhere = [sum(pid != pids[0] for pid in pids) for pids in self._refused if pids]
        if max(elsewhere, default=0) > self._size:
            raise BrokenPromise(f"after a refusal, the other processes had more: {self._refused}")
        return Seen(
            *(self._calls, self._most, self._most_on_top, self._longest_s),
            first_slots_s=sorted(self._first_s),
            refusals=elsewhere,
        )


@contextmanager
def _locked(folder: Path, dsn: str | None) -> Iterator[None]:
    """Lock what the shares of pools need of a database: in a file, all of it."""
    if dsn is not None:
        with psycopg.connect(dsn) as server:
            server.execute("LOCK TABLE asyncflow.shares IN ACCESS EXCLUSIVE MODE")
            yield
        return
    with closing(sqlite3.connect(folder / "runs.db", isolation_level=None, timeout=30)) as file:
        file.execute("BEGIN IMMEDIATE")
        yield
        file.execute("ROLLBACK")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.shares", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="how long to kill processes")
    parser.add_argument("--size", type=int, default=8, help="how many slots the pool has")
    parser.add_argument("--per-second", type=float, help="how many calls may start in a second")
    parser.add_argument("--seed", type=int, default=randrange(10**6), help="chooses whom")
    parser.add_argument("--journal", choices=["sqlite", "postgres"], default="sqlite")
    options = parser.parse_args()
    random = Random(options.seed)
    print(f"seed {options.seed}", flush=True)
    try:
        with fast_folder() as folder, database(options.journal) as dsn:
            pools = SharedPools(folder, dsn, options.size, per_second=options.per_second)
            with pools:
                pools.kill_holders(options.seconds, random)
                for _ in range(5):
                    pools.stand_still(random)
                    pools.lock_out()
                    pools.refuse()
                    pools.refuse_one(random)
            seen = pools.end()
    except BrokenPromise as failure:
        print(failure)
        return 1
    first_s = seen.first_slots_s
    print(
        f"{options.journal}: {pools.killed} processes were killed, {seen.calls} calls, at most "
        f"{seen.most} of {options.size} slots taken, {seen.most_on_top} more by processes whose "
        f"lease had ended; the first slot after {1000 * first_s[len(first_s) // 2]:.0f} ms "
        f"(at most {1000 * first_s[-1]:.0f}), no longer than {1000 * seen.longest_wait_s:.0f} ms "
        f"without one; refusals elsewhere: {seen.refusals}; no promise is broken"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
