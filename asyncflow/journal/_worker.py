"""The journal's worker thread: acquires leases, commits events, renews leases.

Once a second, or more often if leases are short, it also polls for requests of other processes to
cancel a run. Everything runs in that thread, except where a docstring says otherwise.

Whether the process that holds a lease is dead is known on Linux only, and only if it was started in
the same boot, process namespace and time namespace. Any other process loses its runs when its
leases expire.
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
    "WorkerThread",
    "is_dead",
    "this_owner",
    "this_process",
]

T = TypeVar("T")

_POLL_S = 1.0
"""How often to poll for cancel requests, unless a third of a lease is shorter."""


class Lease:
    """A run that this journal has claimed, and how far the worker has come with it.

    The worker thread changes it. The run's event loop reads it after a job of the thread has ended,
    or when `on_change` is called.
    """

    def __init__(self, run_id: str, token: int, loop: asyncio.AbstractEventLoop) -> None:
        self.run_id = run_id
        self.token = token
        self.loop = loop
        self.committed = 0
        """The position of the last event that is committed."""
        self.failure: JournalError | None = None
        """Why no more events are written."""
        self.released = False
        """Whether the worker is done with it, even if the release itself failed."""
        self.valid_until = math.inf
        """Until when no other process can claim the run, by `time.monotonic`."""
        self.cancel_requested = False
        self.on_change: Callable[[], object] | None = None
        """Called in the event loop after a change that no job of this run reports."""

    def fail(self, error: JournalError) -> None:
        """Set the failure unless there is an earlier one."""
        self.failure = self.failure or error

    def notify(self) -> None:
        """Schedule `on_change` in the event loop."""
        if self.on_change:
            with suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(self.on_change)


class JournalWorker:
    """Holds the leases of a journal and writes its events.

    Args:
        store: The database.
        claim: What to claim runs with.
    """

    def __init__(self, store: Store, claim: Claim) -> None:
        self.store = store
        self.name = store.database.name
        self._claim = claim
        self._inbox: deque[tuple[Lease, CommitBatch]] = deque()
        self._leases: dict[tuple[str, int], Lease] = {}
        self._renew_at = 0.0
        self._poll_at = 0.0
        self._poll_s = min(_POLL_S, claim.lease_s / 3)

    # --- claims ---------------------------------------------------------------------------------

    def claim(self, run_id: str, loop: asyncio.AbstractEventLoop) -> Lease:
        """Claim a run, and read the position of its last event.

        Raises:
            RunAlreadyActiveError: Another process, or another run of this one, owns it.
            JournalError: The database fails.
        """
        requested_at = time.monotonic()
        lease = Lease(run_id, self.store.claim(run_id, self._claim), loop)
        lease.valid_until = requested_at + self._claim.lease_s
        if not self._leases:
            self._renew_at = requested_at + self._claim.lease_s / 3
            self._poll_at = requested_at + self._poll_s
        self._leases[run_id, lease.token] = lease
        try:
            lease.committed = self.store.last_position(run_id)
        except BaseException:
            self.release(lease)
            raise
        return lease

    def release(self, lease: Lease) -> None:
        """Release a lease without writing events. If that fails, the lease expires."""
        self._leases.pop((lease.run_id, lease.token), None)
        with suppress(JournalError):
            self.store.release(lease.run_id, lease.token)

    # --- commits --------------------------------------------------------------------------------

    def submit(self, batches: Iterable[tuple[Lease, CommitBatch]]) -> None:
        """Queue batches for the next transaction. Any thread may call it."""
        self._inbox.extend(batches)

    def commit(self) -> None:
        """Commit all queued batches in one transaction; nothing if another call has done so."""
        if not self._inbox:
            return
        taken: list[tuple[Lease, CommitBatch]] = []

        def take() -> list[CommitBatch]:
            while self._inbox:
                taken.append(_without_gap(*self._inbox.popleft()))
            return [batch for _, batch in taken]

        try:
            lost = self.store.write(take)
        except Exception as error:  # the driver's, if it is not a JournalError
            take()  # the transaction may have failed to begin
            for lease, _ in taken:
                lease.fail(self._failure(error))
            with suppress(Exception):  # as in release; it may work, since it is small
                for lease, batch in taken:
                    if batch.release:
                        self.store.release(lease.run_id, lease.token)
        else:
            for lease, batch in taken:
                if (batch.run_id, batch.token) in lost:
                    lease.fail(self._lost(lease))
                elif batch.rows:
                    lease.committed = batch.rows[-1].position
        for lease, batch in taken:
            if batch.release:
                lease.released = True
                self._leases.pop((lease.run_id, lease.token), None)

    def _failure(self, error: Exception) -> JournalError:
        """Return a new error for one run, since raising an error changes it."""
        problem = error.problem if isinstance(error, JournalError) else describe_fully(error)
        failure = JournalError(self.name, problem)
        failure.__cause__ = error
        return failure

    def _lost(self, lease: Lease) -> JournalError:
        return LeaseLostError(
            self.name,
            f"another process has taken over run {lease.run_id!r}, because this one did not renew "
            f"its lease within {self._claim.lease_s:g} s: it stood still, or its lease was taken "
            "away; what it had committed is safe, and the other process resumes from there",
        )

    # --- between jobs ---------------------------------------------------------------------------

    def tick(self) -> float | None:
        """Renew leases and poll for cancel requests when due; return the seconds to the next."""
        now = time.monotonic()
        if self._leases and now >= self._renew_at:
            self._renew_at = now + self._claim.lease_s / 3
            self._renew(now)
        if self._leases and now >= self._poll_at:
            self._poll_at = now + self._poll_s
            with suppress(Exception):  # if that matters, renewing or writing fails as well
                self._request_cancel(self.store.cancelled())
        due = min(self._renew_at, self._poll_at)
        return max(0.0, due - time.monotonic()) if self._leases else None

    def _renew(self, now: float) -> None:
        for key, lease in list(self._leases.items()):
            if lease.loop.is_closed():  # its run can't continue
                del self._leases[key]
        try:
            lost = self.store.renew(self._leases, self._claim.lease_s)
        except Exception as error:
            self._renew_at = now + self._claim.lease_s / 10
            self._fail_expired(self._failure(error))
            return
        for key, lease in list(self._leases.items()):
            if key in lost:
                self._end(lease, self._lost(lease))
            else:
                lease.valid_until = now + self._claim.lease_s

    def _fail_expired(self, error: JournalError) -> None:
        now = time.monotonic()
        for lease in list(self._leases.values()):
            if now >= lease.valid_until:
                problem = f"the lease of run {lease.run_id!r} could not be renewed: "
                self._end(lease, JournalError(error.journal, problem + error.problem))

    def _end(self, lease: Lease, error: JournalError) -> None:
        del self._leases[lease.run_id, lease.token]
        lease.fail(error)
        lease.notify()

    # --- requests -------------------------------------------------------------------------------

    def cancel(self, run_id: str) -> bool:
        """Request cancellation from the lease holder of a run; return whether there is one.

        Raises:
            JournalError: The database fails.
        """
        token = self.store.cancel(run_id, self._claim)
        if token is not None:
            self._request_cancel([(run_id, token)])
        return token is not None

    def _request_cancel(self, claims: Iterable[tuple[str, int]]) -> None:
        for key in claims:
            lease = self._leases.get(key)
            if lease and not lease.cancel_requested:
                lease.cancel_requested = True
                lease.notify()

    def close(self) -> None:
        """Fail all runs that are still open, and disconnect."""
        for lease in list(self._leases.values()):
            problem = f"it was closed while run {lease.run_id!r} was running"
            self._end(lease, JournalError(self.name, problem))
        self.store.database.close()


def _without_gap(lease: Lease, batch: CommitBatch) -> tuple[Lease, CommitBatch]:
    """Return a batch, without its events if earlier events of its run were not written."""
    if lease.failure:
        batch = batch._replace(rows=(), change=None)
    return lease, batch


class PendingClaim:
    """A claim that the worker thread is making while the task that wants it may be cancelled."""

    def __init__(self, worker: JournalWorker) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self._abandoned = False
        self.lease: Lease | None = None
        """The lease, once the run is claimed."""

    def claim(self, run_id: str, loop: asyncio.AbstractEventLoop) -> Lease:
        """Claim the run. Called in the worker thread."""
        lease = self._worker.claim(run_id, loop)
        with self._lock:
            self.lease, abandoned = lease, self._abandoned
        if abandoned:
            self.release()
        return lease

    def release(self) -> None:
        """Release the lease, which exists. Called in the worker thread."""
        assert self.lease
        self._worker.release(self.lease)

    def abandon(self, thread: WorkerThread) -> None:
        """Have the lease released, now or as soon as it exists. Called in the event loop."""
        with self._lock:
            self._abandoned, lease = True, self.lease
        if lease:
            with suppress(JournalError):  # the journal is closed, and has released it
                thread.submit(self.release)


# --- the thread ----------------------------------------------------------------------------------

_Job = tuple[concurrent.futures.Future[Any], Callable[..., Any], tuple[Any, ...]]


class WorkerThread(concurrent.futures.Executor):
    """An executor of one thread, which runs its jobs one after the other.

    Unlike `concurrent.futures.ThreadPoolExecutor` it also calls a routine at set times, even if no
    event loop is running; it never keeps the interpreter alive; and it starts with its first job.

    Args:
        name: The thread's name.
        journal: The journal's name in errors.
        routine: Called between jobs. It returns in how many seconds to call it again, or ``None``
            for after the next job. It must not raise.
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
        """Whether it has received a job, and this process is not a fork of its process."""
        return self._thread is not None and self._process == os.getpid()

    def submit(
        self, fn: Callable[..., T], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[T]:
        """Queue a call behind all earlier ones.

        Raises:
            JournalError: The thread is to end, or can't start, or this is a fork of its process.
        """
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        with self._lock:
            if self._ended:
                raise JournalError(self._journal, "it is closed; open another journal")
            if self._process != os.getpid():
                raise JournalError(
                    self._journal,
                    "it belongs to the parent of this process; open a journal in this one",
                )
            if self._thread is None:
                self._thread = self._start()
            self._jobs.put((future, fn, args))
        return future

    def end(self, last: Callable[[], object]) -> None:
        """Let the thread end after all jobs so far and one last call."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            if self.has_started:
                self._jobs.put((concurrent.futures.Future(), last, ()))
                self._jobs.put(None)

    def join(self) -> None:
        """Wait for the thread to end after `end`."""
        if self._thread and self.has_started:
            self._thread.join()

    def _start(self) -> threading.Thread:
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
                _run_job(*job)
                del job  # it would keep the result alive
            pause = self._routine()


def _run_job(
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


# --- processes -----------------------------------------------------------------------------------

_PROC = Path("/proc")
_EXITED = "exited"


def this_owner() -> str:
    """Return a description of this process for people: its id and host."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def this_process() -> str:
    """Return a description of this process for `is_dead`, as JSON."""
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
    except (OverflowError, TypeError):  # it is no process id
        return False
    except OSError:
        pass  # it belongs to another user
    now = _started(pid)
    return now == _EXITED or (bool(now) and now != started)


def _where() -> str:
    """Identify the boot and the namespaces of this process; empty if they can't be read."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        spaces = [os.readlink(_PROC / "self/ns" / name) for name in ("pid", "time")]
    except OSError:
        return ""
    return " ".join([boot, *spaces])


def _started(pid: int) -> str:
    """Return when a process started, in ticks since the boot; empty if that can't be read.

    It is `_EXITED` for a process that has exited and of which only the exit code is left.
    """
    try:
        # The name, in parentheses, may hold anything.
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        threads = os.listdir(_PROC / str(pid) / "task")
    except OSError:
        return ""
    # With other threads left, only the main one has ended.
    return _EXITED if fields[0] in "ZX" and len(threads) == 1 else fields[19]
