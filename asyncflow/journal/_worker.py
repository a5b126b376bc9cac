"""What the thread of a journal does: it claims runs, writes for them and renews the claims.

Between its jobs it also looks, once a second, whether another process wants a run to stop.

Everything in here is called in that thread, but for `JournalWorker.hand_in`.

A thread that does a journal's work, one job after the other.

It is an executor, so that ``loop.run_in_executor`` waits for its jobs, and it differs from that of
the standard library in three ways: it does something of its own at set times, also while no loop
gets to run; it never keeps the interpreter alive; and it starts when it gets its first job.

Who owns a run: which process, on which machine, and whether that process is dead.

Death is told on Linux only, and only of a process of the same boot, process namespace and time
namespace. Of any other one nothing is known, and its lease says when it counts as dead.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import math
import os
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from asyncflow._core.errors import JournalError, LeaseLostError, describe_fully
from asyncflow.journal._store import Claim, CommitBatch, Store

__all__ = [
    "JournalWorker",
    "Lease",
    "PendingClaim",
    "Thread",
    "is_dead",
    "this_owner",
    "this_process",
]

_PROC = Path("/proc")


def this_owner() -> str:
    """Return what people call this process: host and process id."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def this_process() -> str:
    """Return what `is_dead` tells this process by, as JSON."""
    pid = os.getpid()
    return json.dumps({"where": _where(), "pid": pid, "started": _started(pid)})


def is_dead(process: str) -> bool:
    """Whether a process, described by `this_process`, is provably dead."""
    try:
        known = json.loads(process)
        where, pid, started = known["where"], known["pid"], known["started"]
    except (ValueError, KeyError, TypeError):  # another version wrote it
        return False
    if not where or where != _where() or not started:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # of another user
    now = _started(pid)
    return now == _NOBODY or (bool(now) and now != started)


_NOBODY = "nobody"


def _where() -> str:
    """Return what processes have in common that can tell each other's death, or nothing."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        spaces = [os.readlink(_PROC / "self/ns" / name) for name in ("pid", "time")]
    except OSError:
        return ""
    return " ".join([boot, *spaces])


def _started(pid: int) -> str:
    """Return when a process started, in ticks since the boot; nothing if that can't be seen.

    It is `_NOBODY` for one that has ended and of which only its exit code is left.
    """
    try:
        # The name, in parentheses, may hold anything.
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        threads = os.listdir(_PROC / str(pid) / "task")
    except OSError:
        return ""
    # With other threads left, only the main one has ended.
    return _NOBODY if fields[0] in "ZX" and len(threads) == 1 else fields[19]


T = TypeVar("T")

_Job = tuple[concurrent.futures.Future[Any], Callable[..., Any], tuple[Any, ...]]


class Thread(concurrent.futures.Executor):
    """One thread.

    Args:
        name: Its name.
        journal: What errors call the journal.
        routine: Called between jobs. It returns after how many seconds it wants to be called
            again, or ``None`` if only after the next job. It must not raise.
    """

    def __init__(self, name: str, journal: str, routine: Callable[[], float | None]) -> None:
        self._name = name
        self._journal = journal
        self._routine = routine
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended = False
        self._process = os.getpid()

    @property
    def has_started(self) -> bool:
        """Whether it has been given a job, and this is not a fork of its process."""
        return self._thread is not None and self._process == os.getpid()

    def submit(
        self, fn: Callable[..., T], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[T]:
        """Let the thread call something, after all that it was given before.

        Raises:
            JournalError: The thread was told to end, or can't start, or this is a fork of its
                process.
        """
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        with self._lock:
            if self._ended:
                raise JournalError(self._journal, "it is closed: make another one to go on")
            if self._process != os.getpid():
                raise JournalError(
                    self._journal, "it belongs to the parent of this process: open it anew"
                )
            if self._thread is None:
                self._thread = self._started()
            self._jobs.put((future, fn, args))
        return future

    def end(self, last: Callable[[], object]) -> None:
        """Let the thread call something after all that it was given, and then end."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            if self.has_started:
                self._jobs.put((concurrent.futures.Future(), last, ()))
                self._jobs.put(None)

    def join(self) -> None:
        """Wait until the thread has ended, which it was told to."""
        if self._thread and self.has_started:
            self._thread.join()

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise JournalError(
                self._journal,
                f"its thread can't be started ({error}), so nothing was read or written: this "
                "process, or its machine, has too many of them",
            ) from error
        return thread

    def _work(self) -> None:
        pause: float | None = None
        while True:
            try:
                job = self._jobs.get(timeout=pause)
            except queue.Empty:
                pass
            else:
                if job is None:
                    return
                _do(*job)
                del job  # what it has returned belongs to others
            pause = self._routine()


def _do(
    future: concurrent.futures.Future[Any], fn: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = fn(*args)
    except BaseException as error:
        future.set_exception(error)
        del future  # the error refers to this frame, and so to it
    else:
        future.set_result(result)


_LONGEST_PAUSE_S = 1.0
"""How often to look for requests of other processes, unless leases are shorter than thrice that."""


class Lease:
    """A run that is claimed here, and how far the thread has come with it.

    The thread changes it and the run's event loop reads it, after a job of the thread has ended or
    when `tell` was called.
    """

    def __init__(self, run_id: str, token: int, loop: asyncio.AbstractEventLoop) -> None:
        self.run_id = run_id
        self.token = token
        self.loop = loop
        self.kept = 0
        """Up to which position all is committed."""
        self.failure: JournalError | None = None
        """Why nothing more is written."""
        self.over = False
        """Whether the claim was given up, as far as that went."""
        self.lease_until = math.inf
        """Until when nobody else has claimed the run, by `time.monotonic`."""
        self.is_cancelled = False
        """Whether somebody has asked that the run be stopped."""
        self.tell: Callable[[], object] | None = None
        """What to call in the event loop after something that no job of its tells of."""

    def fail(self, error: JournalError) -> None:
        """Note the first failure."""
        self.failure = self.failure or error

    def wake(self) -> None:
        """Let the event loop hear of it."""
        if self.tell:
            with suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(self.tell)


class JournalWorker:
    """What the thread works with.

    Args:
        store: The database.
        claim: How this journal claims runs.
    """

    def __init__(self, store: Store, claim: Claim) -> None:
        self.store = store
        self.name = store.database.name
        self._claim = claim
        self._inbox: deque[tuple[Lease, CommitBatch]] = deque()
        self._holdings: dict[tuple[str, int], Lease] = {}
        self._due = 0.0
        self._look_due = 0.0
        self._pause_s = min(_LONGEST_PAUSE_S, claim.lease_s / 3)

    # --- claims ---------------------------------------------------------------------------------

    def claim(self, run_id: str, loop: asyncio.AbstractEventLoop) -> Lease:
        """Claim a run, and see how much of it is kept.

        Raises:
            RunAlreadyActiveError: Another one owns it.
            JournalError: The database fails.
        """
        asked = time.monotonic()
        holding = Lease(run_id, self.store.claim(run_id, self._claim), loop)
        holding.lease_until = asked + self._claim.lease_s
        if not self._holdings:
            self._due = asked + self._claim.lease_s / 3
            self._look_due = asked + self._pause_s
        self._holdings[run_id, holding.token] = holding
        try:
            holding.kept = self.store.last_position(run_id)
        except BaseException:
            self.give_back(holding)
            raise
        return holding

    def give_back(self, holding: Lease) -> None:
        """Give up a claim without writing anything. If that fails, it will expire."""
        self._holdings.pop((holding.run_id, holding.token), None)
        with suppress(JournalError):
            self.store.release(holding.run_id, holding.token)

    # --- writing --------------------------------------------------------------------------------

    def hand_in(self, work: Iterable[tuple[Lease, CommitBatch]]) -> None:
        """Have parcels written by the next transaction. Any thread may call it."""
        self._inbox.extend(work)

    def write(self) -> None:
        """Write all that was handed in, if another call has not done it yet."""
        if not self._inbox:
            return
        taken: list[tuple[Lease, CommitBatch]] = []

        def take() -> list[CommitBatch]:
            while self._inbox:
                taken.append(_still_due(*self._inbox.popleft()))
            return [parcel for _, parcel in taken]

        try:
            lost = self.store.write(take)
        except Exception as error:  # of the driver, if it is no JournalError
            take()  # if it could not even begin
            for holding, _ in taken:
                holding.fail(self._failure(error))
            with suppress(Exception):  # as in give_back; this time it may work, as it is small
                for holding, parcel in taken:
                    if parcel.release:
                        self.store.release(holding.run_id, holding.token)
        else:
            for holding, parcel in taken:
                if (parcel.run_id, parcel.token) in lost:
                    holding.fail(self._lost(holding))
                elif parcel.rows:
                    holding.kept = parcel.rows[-1].position
        for holding, parcel in taken:
            if parcel.release:
                holding.over = True
                self._holdings.pop((holding.run_id, holding.token), None)

    def _failure(self, error: Exception) -> JournalError:
        """Return an error for one run: each is raised, and so changed, by itself."""
        problem = error.problem if isinstance(error, JournalError) else describe_fully(error)
        mine = JournalError(self.name, problem)
        mine.__cause__ = error
        return mine

    def _lost(self, holding: Lease) -> JournalError:
        return LeaseLostError(
            self.name,
            f"another process has taken run {holding.run_id!r} over, since this one did not renew "
            f"its lease within {self._claim.lease_s:g} s: it stood still, or its lease was taken "
            "away; what it had committed before is safe, and the other one goes on from there",
        )

    # --- leases ---------------------------------------------------------------------------------

    def look_after(self) -> float | None:
        """Renew leases and look for requests, each at its time; return the seconds left."""
        now = time.monotonic()
        if self._holdings and now >= self._due:
            self._due = now + self._claim.lease_s / 3
            self._renew(now)
        if self._holdings and now >= self._look_due:
            self._look_due = now + self._pause_s
            with suppress(Exception):  # if that matters, renewing or writing fails as well
                self._pass_on(self.store.cancelled())
        next_due = min(self._due, self._look_due)
        return max(0.0, next_due - time.monotonic()) if self._holdings else None

    def _renew(self, now: float) -> None:
        for key, holding in list(self._holdings.items()):
            if holding.loop.is_closed():  # nobody can go on with it
                del self._holdings[key]
        try:
            lost = self.store.renew(self._holdings, self._claim.lease_s)
        except Exception as error:
            self._due = now + self._claim.lease_s / 10
            self._count_the_days(self._failure(error))
            return
        for key, holding in list(self._holdings.items()):
            if key in lost:
                self._end(holding, self._lost(holding))
            else:
                holding.lease_until = now + self._claim.lease_s

    def _count_the_days(self, error: JournalError) -> None:
        now = time.monotonic()
        for holding in list(self._holdings.values()):
            if now >= holding.lease_until:
                problem = f"the lease of run {holding.run_id!r} could not be renewed: "
                self._end(holding, JournalError(error.journal, problem + error.problem))

    def _end(self, holding: Lease, error: JournalError) -> None:
        del self._holdings[holding.run_id, holding.token]
        holding.fail(error)
        holding.wake()

    # --- requests -------------------------------------------------------------------------------

    def cancel(self, run_id: str) -> bool:
        """Ask whoever owns a run to stop it; return whether anybody does.

        Raises:
            JournalError: The database fails.
        """
        token = self.store.cancel(run_id, self._claim)
        if token is not None:
            self._pass_on([(run_id, token)])
        return token is not None

    def _pass_on(self, requests: Iterable[tuple[str, int]]) -> None:
        for key in requests:
            holding = self._holdings.get(key)
            if holding and not holding.is_cancelled:
                holding.is_cancelled = True
                holding.wake()

    def close(self) -> None:
        """Let all runs fail that are still open, and disconnect."""
        for holding in list(self._holdings.values()):
            problem = f"it was closed while run {holding.run_id!r} was going on"
            self._end(holding, JournalError(self.name, problem))
        self.store.database.close()


class PendingClaim:
    """A claim that is under way in the thread, while whoever wants it may be cancelled."""

    def __init__(self, clerk: JournalWorker) -> None:
        self._clerk = clerk
        self._lock = threading.Lock()
        self._abandoned = False
        self.holding: Lease | None = None
        """The claim, when it is there."""

    def claim(self, run_id: str, loop: asyncio.AbstractEventLoop) -> Lease:
        """Claim the run. The thread calls it."""
        holding = self._clerk.claim(run_id, loop)
        with self._lock:
            self.holding, abandoned = holding, self._abandoned
        if abandoned:
            self.give_back()
        return holding

    def give_back(self) -> None:
        """Give the claim back, which is there. The thread calls it."""
        assert self.holding
        self._clerk.give_back(self.holding)

    def abandon(self, thread: Thread) -> None:
        """Have the claim given back, now or when it is there."""
        with self._lock:
            self._abandoned, holding = True, self.holding
        if holding:
            with suppress(JournalError):  # the journal is closed, and has given it up
                thread.submit(self.give_back)


def _still_due(holding: Lease, parcel: CommitBatch) -> tuple[Lease, CommitBatch]:
    """Return a parcel, without its events if those before have not been written."""
    if holding.failure:
        parcel = parcel._replace(rows=(), change=None)
    return holding, parcel
