"""The journal's worker thread: acquires leases, commits events, renews leases.

Once a second, or more often if leases are short, it also polls for requests of other processes to
cancel a run. Everything runs in that thread, except where a docstring says otherwise.

A lease is *held* from its claim until the run has let go of it, even if it is lost meanwhile: the
run may still be cleaning up. After that it is free to this process, whatever the database says.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakValueDictionary

from asyncflow._core.errors import JournalError, LeaseLostError, RunAlreadyActiveError
from asyncflow._core.history.results import Key, SignalAnswer
from asyncflow._core.running.checkpoints import StoredCall
from asyncflow._core.text import describe_fully
from asyncflow.journal._database.machine import held_claims, new_claim
from asyncflow.journal._database.sql import DatabaseChangedError, virtual_now
from asyncflow.journal._write.keys import CancelCause, RunKey
from asyncflow.journal._write.notes import ProgressKey, last_positions, latest_only
from asyncflow.journal._write.queue import Queue
from asyncflow.journal._write.shares import Shares
from asyncflow.journal._write.signals import SentSignal, Signals
from asyncflow.journal._write.store import Claim, CommitBatch, Store

T = TypeVar("T")
Question = TypeVar("Question")
Answer = TypeVar("Answer")

_Wait = tuple[concurrent.futures.Future[None], Collection[str], asyncio.AbstractEventLoop | None]

_log = logging.getLogger("asyncflow")

_POLL_S = 1.0
"""How often to poll for cancel requests, unless a third of a lease is shorter."""


class Lease:
    """A run that this journal has claimed, and how far the worker has come with it.

    The worker thread changes it. The run's event loop reads it after a job of the thread has ended,
    or when `on_change` is called.

    ``token`` is the fencing token, ``loop`` the event loop of the run, ``claim`` its claim among
    the `held_claims` of this process, and ``within`` the run whose action has claimed this one, if
    one has.
    """

    def __init__(
        self,
        run_id: str,
        token: int,
        loop: asyncio.AbstractEventLoop,
        claim: str,
        within: str | None,
    ) -> None:
        self.run_id = run_id
        self.token = token
        self.loop = loop
        self.within = within
        self._claim = claim
        self.committed = 0
        """The position of the last event that is committed."""
        self.noted = 0
        """The position of the last note."""
        self.progress: dict[ProgressKey, int] = {}
        """The position of the latest progress of each attempt."""
        self.failure: JournalError | None = None
        """Why no more events are written."""
        self.released = False
        """Whether the run has let go of it, even if its release in the database failed."""
        self.valid_until = math.inf
        """Until when no other process can claim the run, by `time.monotonic`."""
        self.is_queued = False
        """Whether the run waits to start."""
        self.cancel_reason: str | None = None
        """Why the run was asked to stop, empty if no reason was given; ``None`` if it was not."""
        self.cancel_cause: CancelCause = "cancelled"
        self.signalled = False
        """Whether a signal may have come that the run has not read."""
        self.is_told = False
        """Whether the run must receive what was sent to it, whatever the database says. Its event
        loop alone changes this."""
        self.on_change: Callable[[], object] | None = None
        """Called in the event loop after a change that no job of this run reports."""

    def fail(self, error: JournalError) -> None:
        """Set the failure unless there is an earlier one."""
        self.failure = self.failure or error

    def let_go(self) -> None:
        """Make the run free to this process. Any thread may call it."""
        self.released = True
        held_claims.discard(self._claim)

    def notify(self) -> None:
        """Schedule `on_change` in the event loop."""
        if self.on_change:
            with suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(self.on_change)


class JournalWorker:
    """Holds the leases of a journal and writes its events, in a thread of its own."""

    def __init__(self, store: Store, claim: Claim) -> None:
        self.store = store
        self.name = store.database.name
        self.thread = WorkerThread(self.name, self.tick)
        self._signals = Signals(store)
        self._queue = Queue(store)
        self.shares = Shares(store.database, claim, self.thread, self.call)
        self._claim = claim
        self.claim_run = Shared(self.thread, self._claim_all)
        self.send_signal = Shared(self.thread, self._send_all)
        self.is_told = Shared(self.thread, self._are_told)
        self.load_call = Shared(self.thread, self._load_calls)
        self._inbox: deque[tuple[Lease, CommitBatch]] = deque()
        self._leases: dict[tuple[str, int], Lease] = {}
        self._claimed: WeakValueDictionary[str, Lease] = WeakValueDictionary()
        """The latest lease of each run, even if it is lost: the run may be cleaning up."""
        self._renew_at = 0.0
        self._poll_at = 0.0
        self._poll_s = min(_POLL_S, claim.lease_s / 3)
        self._waits: list[_Wait] = []
        self.given_up: list[str] = []
        """The ids of the runs that were still active when the journal was closed."""

    # --- claims ---------------------------------------------------------------------------------

    def _claim_all(self, wanted: Sequence[PendingClaim]) -> list[Lease | Exception]:
        """Claim runs in one transaction, and read the position of the last event of each.

        The answer for a run that another process, or another run of this one, owns is a
        `RunAlreadyActiveError`.
        """
        requested_at = time.monotonic()
        claims = {each: new_claim(self._claim.process) for each in wanted if self._may_claim(each)}
        names = {name for name, _ in claims.values()}
        held_claims.update(names)  # before the database has them, or another journal takes them
        asked = [
            (
                each.run_id,
                self._claim._replace(
                    process=process, key=each.key, takes_key=each.takes_key, now=each.now
                ),
            )
            for each, (_, process) in claims.items()
        ]
        try:
            tokens = self.call(self.store.claim, asked) if asked else []
        except BaseException:
            held_claims.difference_update(names)
            raise
        answers: dict[PendingClaim, Lease | Exception] = {}
        leases: dict[PendingClaim, Lease] = {}
        for (each, (name, _)), token in zip(claims.items(), tokens, strict=True):
            if isinstance(token, Exception):
                held_claims.discard(name)
                answers[each] = token
            else:
                lease = leases[each] = Lease(each.run_id, token, each.loop, name, each.within)
                lease.valid_until = requested_at + self._claim.lease_s
                self._hold(lease, requested_at)
        for each, answer in zip(leases, self._counted([*leases.values()]), strict=True):
            answers[each] = answer
            if isinstance(answer, Lease):
                each.settle(answer)
        refusal = partial(RunAlreadyActiveError, owner=self._claim.owner)
        return [answers.get(each) or refusal(each.run_id) for each in wanted]

    def _may_claim(self, wanted: PendingClaim) -> bool:
        """Whether a run that is wanted is not one of this process, which may be cleaning up."""
        before = self._claimed.get(wanted.run_id)
        is_free = before is None or before.released or before.loop.is_closed()
        return is_free and not wanted.is_abandoned

    def _hold(self, lease: Lease, requested_at: float) -> None:
        if not self._leases:
            self._renew_at = requested_at + self._claim.lease_s / 3
            self._poll_at = requested_at + self._poll_s
        self._leases[lease.run_id, lease.token] = self._claimed[lease.run_id] = lease

    def _counted(self, leases: Sequence[Lease]) -> Iterator[Lease | Exception]:
        """Yield each lease; or why its events can't be counted, and it is released."""
        found: Mapping[str, tuple[int, int, str | None, CancelCause] | Exception] = {}
        failure: Exception | None = None
        try:
            found = self.call(self.store.last_positions, [lease.run_id for lease in leases])
        except Exception as error:
            failure = error
        for lease in leases:
            last = self._failure(failure) if failure else found[lease.run_id]
            if isinstance(last, Exception):
                self.release(lease)
                yield last
            else:
                lease.committed, lease.noted, lease.cancel_reason, lease.cancel_cause = last
                yield lease

    def release(self, lease: Lease) -> None:
        """Release a lease without writing events. If that fails, the lease expires."""
        with suppress(JournalError):
            self.call(self.store.release, lease.run_id, lease.token)
        self._let_go(lease)

    def _let_go(self, lease: Lease) -> None:
        self._leases.pop((lease.run_id, lease.token), None)
        lease.let_go()
        self._report_ends()

    # --- commits --------------------------------------------------------------------------------

    def submit(self, batches: Iterable[tuple[Lease, CommitBatch]]) -> None:
        """Queue batches for the next transaction. Any thread may call it."""
        for batch in batches:  # `append` can be called in any thread, by its documentation
            self._inbox.append(batch)

    def commit(self) -> None:
        """Commit all queued batches in one transaction; nothing if another call has done so."""
        if not self._inbox:
            return
        taken: list[tuple[Lease, CommitBatch]] = []

        def take() -> list[CommitBatch]:
            while self._inbox:
                taken.append(_prepared(*self._inbox.popleft()))
            return [batch for _, batch in taken]

        try:
            refused = self.store.write(take)
        except Exception as error:  # the driver's, if it is not a JournalError
            take()  # the transaction may have failed to begin
            for lease, _ in taken:
                lease.fail(self._failure(error))
            self._end_if_changed(error)
            with suppress(Exception):  # as in release; it may work, since it is small
                for lease, batch in taken:
                    if batch.release:
                        self.store.release(lease.run_id, lease.token)
        else:
            for lease, batch in taken:
                claim = batch.run_id, batch.token
                if claim in refused:
                    lease.fail(self._refusal(lease, refused[claim]))
                elif batch.rows:
                    lease.committed = batch.rows[-1].position
        for lease, batch in taken:
            if batch.release:
                self._let_go(lease)

    def _failure(self, error: Exception) -> JournalError:
        """Return a new error for one run, since raising an error changes it."""
        problem = error.problem if isinstance(error, JournalError) else describe_fully(error)
        failure = JournalError(self.name, problem)
        failure.__cause__ = error
        return failure

    def _refusal(self, lease: Lease, last: int | None) -> JournalError:
        if last is None:
            return self._lost(lease)
        return JournalError(
            self.name,
            f"it has {last} of the {lease.committed} events of run {lease.run_id!r} that were "
            "committed, so nothing more was written: an older copy has taken its place, or "
            "another program has changed it; put back what was there, or start the run again to "
            "resume from what is there now",
        )

    def _lost(self, lease: Lease) -> JournalError:
        return LeaseLostError(
            self.name,
            f"another process has taken over run {lease.run_id!r}, because this one did not renew "
            f"its lease within {self._claim.lease_s:g} s: it stood still, or its lease was taken "
            "away; what it had committed is safe, and the other process resumes from there",
        )

    # --- between jobs ---------------------------------------------------------------------------

    def tick(self) -> float | None:
        """Renew leases and poll for cancel requests when due, and see to shares of pools.

        Return the seconds to the next time.
        """
        shares_s = self.shares.poll()
        now = time.monotonic()
        if self._leases and now >= self._renew_at:
            self._renew_at = now + self._claim.lease_s / 3
            self._renew(now)
        if self._leases and now >= self._poll_at:
            self._poll_at = now + self._poll_s
            with suppress(Exception):  # if that matters, renewing or writing fails as well
                self._request_cancel(self.call(self.store.cancelled))
                self._tell_signals(self.call(self._signals.signalled))
        self._report_ends()  # a loop may have stopped
        if not self._leases:
            return shares_s
        leases_s = max(0.0, min(self._renew_at, self._poll_at) - time.monotonic())
        return leases_s if shares_s is None else min(leases_s, shares_s)

    def _renew(self, now: float) -> None:
        for lease in list(self._leases.values()):
            if lease.loop.is_closed():  # its run can't continue
                self._let_go(lease)
        try:
            lost = self.store.renew(self._leases, self._claim.lease_s)
        except Exception as error:
            self._renew_at = now + self._claim.lease_s / 10
            self._end_if_changed(error)
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

    def call(self, method: Callable[..., T], *args: Any) -> T:
        """Call a method of the store, and end all leases if it finds that the database changed."""
        try:
            return method(*args)
        except DatabaseChangedError as error:
            self._end_if_changed(error)
            raise

    def _end_if_changed(self, error: BaseException) -> None:
        """End all leases if they are not in the database that is there now."""
        if isinstance(error, DatabaseChangedError):
            for lease in list(self._leases.values()):
                self._end(lease, self._failure(error))

    def _end(self, lease: Lease, error: JournalError) -> None:
        del self._leases[lease.run_id, lease.token]
        lease.fail(error)
        lease.notify()
        self._report_ends()

    # --- requests -------------------------------------------------------------------------------

    def cancel(self, run_id: str, reason: str) -> bool:
        """Request the cancellation of a run; return whether it will end as cancelled."""
        token = self.call(self.store.cancel, run_id, reason, self._claim)
        if token is not None:
            self._request_cancel([(run_id, token, reason, "cancelled")])
        return token is not None

    def replace(self, key: RunKey, now: float | None) -> None:
        """Request the cancellation of the run that has a key, for the run that replaces it.

        ``now`` is the present in virtual time.
        """
        found = self.call(self._queue.replace, key, self._claim, now)
        if found is not None:
            self._request_cancel([found])

    def _request_cancel(self, claims: Iterable[tuple[str, int, str, CancelCause]]) -> None:
        for run_id, token, reason, cause in claims:
            lease = self._leases.get((run_id, token))
            if lease and lease.cancel_reason is None:
                lease.cancel_reason, lease.cancel_cause = reason, cause
                lease.notify()

    def _send_all(self, sent: Sequence[SentSignal]) -> Sequence[Exception | None]:
        """Store signals, and tell the runs that are here; return what is wrong with each."""
        problems = self.call(self._signals.send, sent, self._claim.owner)
        here = [self._claimed.get(each.run_id) for each in sent]
        self._tell_signals((lease.run_id, lease.token) for lease in here if lease is not None)
        return problems

    def _tell_signals(self, claims: Iterable[tuple[str, int]]) -> None:
        for key in claims:
            lease = self._leases.get(key)
            if lease:
                lease.signalled = True
                lease.notify()

    def _are_told(self, leases: Sequence[Lease]) -> Sequence[bool | Exception]:
        """Whether something was sent to each of these runs, which it has not received."""
        told = self.call(self._signals.told, [lease.run_id for lease in leases])
        return [
            self._failure(lease.failure) if lease.failure else lease.run_id in told
            for lease in leases
        ]

    def receive(self, lease: Lease) -> dict[str, SignalAnswer | None]:
        """Return what was sent to such a run."""
        return self.call(self._signals.receive, lease.run_id, lease.token)

    def _load_calls(self, wanted: Sequence[tuple[str, Key, str]]) -> Sequence[StoredCall | None]:
        """Return what calls of such runs have returned."""
        return self.call(self.store.calls, wanted)

    # --- the end --------------------------------------------------------------------------------

    def check(self) -> None:
        """End all leases, and disconnect, if another database has taken the place of this one."""
        with suppress(Exception):  # what else matters recurs
            self.call(self.store.cancelled)

    def wait(
        self,
        ended: concurrent.futures.Future[None],
        within: str | None,
        blocked: asyncio.AbstractEventLoop | None,
    ) -> None:
        """Report when all runs have ended, except for those that can't end before the caller.

        ``ended`` gets its result then. ``within`` is the run whose action waits, if one does: it
        can't end, nor can the runs whose actions it runs within. ``blocked`` is the event loop that
        can't run while the caller waits, if there is one.
        """
        around = {lease.run_id: lease.within for lease in self._leases.values()}
        waiting: set[str] = set()
        while within in around and within not in waiting:
            waiting.add(within)
            within = around[within]
        self._waits.append((ended, waiting, blocked))
        self._report_ends()

    def _report_ends(self) -> None:
        for wait in self._waits.copy():
            ended, waiting, blocked = wait
            if not any(
                lease.loop.is_running() and lease.loop is not blocked
                for lease in self._leases.values()
                if lease.run_id not in waiting
            ):
                self._waits.remove(wait)
                if ended.set_running_or_notify_cancel():
                    ended.set_result(None)

    def close(self) -> None:
        """Fail the runs that are still active, and disconnect."""
        active = list(self._leases.values())
        self.given_up += sorted(lease.run_id for lease in active)
        if active:
            _log.warning(
                "journal %s: closed before these runs had ended, which are stored as running: %s; "
                "start them again to resume them",
                *(self.name, ", ".join(map(repr, self.given_up))),
            )
        for lease in active:
            problem = f"it was closed while run {lease.run_id!r} was running"
            self._end(lease, JournalError(self.name, problem))
            if lease.loop.is_closed():
                lease.let_go()
        self.shares.close()
        self.store.database.close()


def _prepared(lease: Lease, batch: CommitBatch) -> tuple[Lease, CommitBatch]:
    """Return a batch with the positions of its notes; empty if earlier events were not written."""
    if lease.failure:
        batch = CommitBatch(lease.run_id, lease.token, (), None, batch.release)
    elif batch.notes:
        first = lease.noted + 1
        notes, replaced = latest_only(batch.notes, first, lease.progress)
        for position, _ in last_positions(notes, first):
            lease.noted = position
        batch = batch._replace(notes=notes, first_note=first, replaced=replaced)
    return lease, batch


class PendingClaim:
    """A claim that the worker thread is making while the task that wants it may be cancelled.

    ``loop`` runs the run, and ``within`` is the run whose action asks for it, if one does. ``key``
    and ``takes_key`` are as in `Claim`.
    """

    def __init__(
        self,
        worker: JournalWorker,
        run_id: str,
        loop: asyncio.AbstractEventLoop,
        within: str | None,
        key: RunKey | None,
        takes_key: bool,
    ) -> None:
        self.run_id = run_id
        self.loop = loop
        self.within = within
        self.key = key
        self.takes_key = takes_key
        self.now = virtual_now(loop)
        self._worker = worker
        self.is_abandoned = False
        self.lease: Lease | None = None
        """The lease, once the run is claimed."""

    # Of both threads, each says what it has done before it looks at what the other one did: at
    # least one of them releases the lease, and a second release changes nothing.

    def settle(self, lease: Lease) -> None:
        """Have the lease. Called in the worker thread."""
        self.lease = lease
        if self.is_abandoned:
            self.release()

    def release(self) -> None:
        """Release the lease, which exists. Called in the worker thread."""
        assert self.lease
        self._worker.release(self.lease)

    def abandon(self) -> None:
        """Have the lease released, now or as soon as it exists. Called in the event loop."""
        self.is_abandoned = True
        if self.lease:
            self.lease.let_go()  # at once: a claim may be made before the job that releases it
            with suppress(JournalError):  # the journal is closed
                self._worker.thread.submit(self.release)


# --- the thread ----------------------------------------------------------------------------------

_NAME = "asyncflow journal"
"""The name of threads of journals, by which `asyncflow.testing` recognises them."""

_MOST_AT_ONCE = 64
"""How many questions share a call at most. Leases are renewed between calls."""


class Shared(Generic[Question, Answer]):
    """A call in a worker thread that answers several questions at once.

    They are those of one turn of an event loop, and those that come while its call before is under
    way. A call is queued behind all that was queued when its questions came: a signal must not
    overtake a commit. ``answer_all`` returns an answer, or an error, for each question.
    """

    def __init__(
        self,
        thread: WorkerThread,
        answer_all: Callable[[Sequence[Question]], Sequence[Answer | Exception]],
    ) -> None:
        self._thread = thread
        self._answer_all = answer_all
        self._waiting: dict[
            asyncio.AbstractEventLoop, deque[tuple[asyncio.Future[Answer], Question]]
        ] = {}
        """The questions for the next call of each loop that has one under way, or at hand."""

    async def __call__(self, question: Question) -> Answer:
        """Return the answer to a question, or raise the error."""
        loop = asyncio.get_running_loop()
        if loop not in self._waiting:
            for other in [*self._waiting]:
                if other.is_closed():  # its call will never be settled
                    self._waiting.pop(other, None)  # another thread may have done so
            self._waiting[loop] = deque()
            loop.call_soon(self._submit, loop)
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting[loop].append((future, question))
        try:
            return await future
        finally:
            del future  # its error refers to this frame

    def _submit(self, loop: asyncio.AbstractEventLoop) -> None:
        waiting = self._waiting[loop]
        group: list[tuple[asyncio.Future[Answer], Question]] = []
        while waiting and len(group) < _MOST_AT_ONCE:
            asked = waiting.popleft()
            if not asked[0].done():
                group.append(asked)
        if not group:
            del self._waiting[loop]
            return
        futures = [future for future, _ in group]
        try:
            job = loop.run_in_executor(self._thread, self._answer, group)
        except JournalError as error:  # the journal is closed
            for future, _ in (*group, *self._waiting.pop(loop)):
                if not future.done():
                    future.set_exception(JournalError(error.journal, error.problem))
        else:
            job.add_done_callback(lambda job: self._settle(loop, futures, job.result()))

    def _answer(
        self, group: list[tuple[asyncio.Future[Answer], Question]]
    ) -> list[Answer | BaseException | None]:
        """Answer the questions of a group that were not cancelled. Called in the worker thread."""
        wanted = [not future.cancelled() for future, _ in group]
        questions = [each[1] for each, is_wanted in zip(group, wanted, strict=True) if is_wanted]
        group.clear()  # an error refers to this frame, which must not keep its future
        answers = iter(self._answers(questions) if questions else ())
        return [next(answers) if is_wanted else None for is_wanted in wanted]

    def _answers(self, questions: Sequence[Question]) -> Sequence[Answer | BaseException]:
        try:
            return self._answer_all(questions)
        except BaseException as error:
            if not questions[1:]:
                return [error]
        # It may be the fault of any of them: each has a call of its own.
        return [answer for each in questions for answer in self._answers([each])]

    def _settle(
        self,
        loop: asyncio.AbstractEventLoop,
        futures: Iterable[asyncio.Future[Answer]],
        answers: Iterable[Answer | BaseException | None],
    ) -> None:
        for future, answer in zip(futures, answers, strict=True):
            if future.done():  # its task was cancelled
                continue
            if isinstance(answer, BaseException):
                future.set_exception(answer)
            else:
                future.set_result(answer)  # type: ignore[arg-type]  # None, if it was cancelled
        self._submit(loop)


def _run(
    future: concurrent.futures.Future[Any], function: Callable[..., Any], *arguments: Any
) -> None:
    try:
        result = function(*arguments)
    except BaseException as error:
        future.set_exception(error)
        del future  # the error refers to this frame, and so to it
    else:
        future.set_result(result)


def _run_unless_cancelled(
    future: concurrent.futures.Future[Any], function: Callable[..., Any], *arguments: Any
) -> None:
    if future.set_running_or_notify_cancel():
        _run(future, function, *arguments)
    del future


class _ThreadJob(NamedTuple):
    run: Callable[[], object]
    queued_at: float


class WorkerThread(concurrent.futures.Executor):
    """An executor of one thread, which runs its jobs one after the other.

    Unlike `concurrent.futures.ThreadPoolExecutor` it also calls a routine at set times, even if no
    event loop is running; it never keeps the interpreter alive; and it starts with its first job.

    ``journal`` is its name in errors. ``routine`` is called between jobs. It returns in how many
    seconds to call it again, or ``None`` for after the next job. It must not raise.
    """

    def __init__(self, journal: str, routine: Callable[[], float | None]) -> None:
        self._journal = journal
        self._routine = routine
        self._jobs: queue.SimpleQueue[_ThreadJob | None] = queue.SimpleQueue()
        self._lock = threading.RLock()  # the collector may submit while this thread does so
        self._thread: threading.Thread | None = None
        self._ended = False
        self._process = os.getpid()
        self.waiting_since = 0.0
        """When the present job was queued, by `time.monotonic`."""

    @property
    def has_started(self) -> bool:
        """Whether it has received a job, and this process is not a fork of its process."""
        return self._thread is not None and self._process == os.getpid()

    def submit(
        self, fn: Callable[..., T], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[T]:
        """Queue a call behind all earlier ones.

        Raise `JournalError` if the thread is to end, or can't start, or this is a fork of its
        process.
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
            run = partial(_run_unless_cancelled, future, fn, *args)
            self._jobs.put(_ThreadJob(run, time.monotonic()))
        return future

    def end(self, last: Callable[[], object]) -> None:
        """Let the thread end after all jobs so far and one last call."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            if self.has_started:
                run = partial(_run, concurrent.futures.Future(), last)
                self._jobs.put(_ThreadJob(run, time.monotonic()))
                self._jobs.put(None)

    def join(self) -> None:
        """Wait for the thread to end after `end`."""
        if self._thread and self.has_started:
            self._thread.join()

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._work, name=_NAME, daemon=True)
        try:
            Context().run(thread.start)  # it may inherit that, and outlive the run it starts in
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
                self.waiting_since = time.monotonic()
            else:
                if job is None:
                    return
                self.waiting_since = job.queued_at
                job.run()
                del job  # it would keep the result alive
            pause = self._routine()
