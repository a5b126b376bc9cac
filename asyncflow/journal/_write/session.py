"""Group commit: the events of all runs of an event loop go to the database in few transactions.

A transaction takes what all runs of all loops have submitted when it begins. What comes later waits
for the next one. A `CommitQueue` submits the events of its loop's sessions at the end of the turn
in which a session waits for its events. Otherwise it waits a few turns of the loop, and no time,
for what may follow: the end of a step and the start of the next one go together.

The worker thread runs one job after the other. So when a job of a queue is done, everything that
the queue had submitted is committed, by whichever job.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from asyncflow._core.analysis.statistics import StepRun
from asyncflow._core.errors import JournalError, RunCancelledError
from asyncflow._core.history.results import Key, Payload, RunStatus, SignalAnswer
from asyncflow._core.pipeline.signal import asks_of
from asyncflow._core.running.checkpoints import StoredCall
from asyncflow.events import (
    Event,
    NoteEvent,
    RunFinished,
    RunResumed,
    RunStarted,
    StepFailed,
    StepSkipped,
    StepStreamed,
    StepSucceeded,
    StepWaiting,
)
from asyncflow.journal._codec.events import column_of, row_of, status_column, write_error
from asyncflow.journal._database.sql import Statement, virtual_now
from asyncflow.journal._database.tables import EventRow
from asyncflow.journal._write.attributes import attributes_column, indexed
from asyncflow.journal._write.cached import remembered
from asyncflow.journal._write.checkpoints import changes_of, stored_call
from asyncflow.journal._write.queue import announce, left_queue
from asyncflow.journal._write.signals import SentSignal, forget
from asyncflow.journal._write.store import Change, CommitBatch
from asyncflow.journal._write.summaries import summary_of
from asyncflow.journal._write.worker import JournalWorker, Lease, WorkerThread

_OnStop = Callable[[JournalError | RunCancelledError], object]
_Waiter = asyncio.Future[None]

_TURNS = 8
"""How many turns of the loop to wait for what may follow. A run takes up to 4 from the end of a
step to the start of the next one."""

_NOTES_S = 0.2
"""How long notes wait for events to go with. A step may say something without end, and each
transaction waits for the disk."""

_RUNNING = status_column(RunStatus.RUNNING)
_CHANGING = (RunStarted, RunResumed, RunFinished)
"""The events that change the row of their run."""


class SQLSession:
    """One run's `asyncflow._policies.durable.JournalSession`, used in its event loop only."""

    def __init__(self, queue: CommitQueue, lease: Lease) -> None:
        self._queue = queue
        self._lease = lease
        self._appended = lease.committed
        """The position of the last event that was appended."""
        self._rows: list[EventRow] = []
        self._notes: list[NoteEvent] = []
        self._statements: list[Statement] = []
        self._remembered: list[Statement] = []
        self._waits: dict[str, float | None] = {}
        """The signals that the run waits for, each with when its deadline expires."""
        self._asks: int | None = None
        self._failure: tuple[str, Mapping[str, Any]] | None = None
        """The first step of this segment that failed, and its error as rows have it."""
        self._steps: Mapping[str, StepRun] | None = None
        """How the steps have ended, if the run is about to do so."""
        self._checkpoints: dict[Key, Payload | None] = {}
        self._calls: list[tuple[str, _Waiter]] = []
        self._landing: list[tuple[str, _Waiter]] = []
        """The calls, by name, of which the batch that was taken stores what they returned."""
        self._change: Change | None = None
        self._is_queued = lease.is_queued
        self.is_held = False
        """Whether what was appended must not be committed yet."""
        self._closing = False
        self._waiters: deque[tuple[int, _Waiter]] = deque()
        self._closers: list[_Waiter] = []
        self._on_stop: _OnStop | None = None
        self._cancel_reported = False
        self._on_signal: Callable[[], object] | None = None
        lease.on_change = self.settle

    def watch(self, on_stop: _OnStop) -> None:
        self._on_stop = on_stop
        self.settle()

    def append(self, event: Event) -> None:
        if self._closing or self._lease.failure:
            return
        self._appended += 1
        self._rows.append(row_of(self._lease.run_id, self._appended, event))
        if isinstance(event, StepWaiting):
            self._waits[event.step] = event.until
            if event.refused:
                self.execute(forget(self._lease.run_id, event.step))
        elif isinstance(event, _CHANGING):
            if self._is_queued:
                self._leave_queue(event)
            if not isinstance(event, RunFinished):
                self._failure = None
                if event.signals:
                    self._asks = asks_of(event.signals, event.signal_deadlines)
            change = _merged(self._change, self._appended, event, self._waits, self._asks)
            self._change = change._replace(now=virtual_now(self._lease.loop))
            if isinstance(event, RunStarted) and event.attributes:
                run_id, started_at = self._lease.run_id, event.wall_time + 0.0
                self.execute(indexed(run_id, started_at, event.attributes))
            elif isinstance(event, RunResumed) and event.signals:
                self._forget_void(event)
            elif isinstance(event, RunFinished):
                run_id, steps, self._steps = self._lease.run_id, self._steps, None
                self.execute(summary_of(run_id, self._appended, event, self._failure, steps))
        elif isinstance(event, StepFailed) and self._failure is None and event.item is None:
            self._failure = event.step, write_error(event.error)
        if self._waits and isinstance(event, StepSucceeded | StepFailed | StepSkipped):
            self._waits.pop(event.step, None)
        self._queue.schedule(self)

    def _leave_queue(self, event: RunResumed | RunFinished | RunStarted) -> None:
        """Note that the run waits to start no longer."""
        self._is_queued = False
        began_at = event.wall_time if isinstance(event, RunResumed) else None
        for statement in left_queue(self._lease.run_id, began_at):
            self.execute(statement)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Commit what is appended within the block in one transaction, or nothing of it."""
        self.is_held = True
        try:
            yield
        finally:
            self.is_held = False
        self._queue.schedule(self)

    def _forget_void(self, event: RunResumed) -> None:
        """Forget the signals that answer what is made anew, and deadlines that begin anew."""
        for name in event.signals:
            if name in event.outdated:
                self.execute(forget(self._lease.run_id, name))
            elif name in event.unfinished:
                self.execute(forget(self._lease.run_id, name, only_expired=True))

    def on_signal(self, call: Callable[[], object]) -> None:
        self._on_signal = call

    async def send(self, name: str, answer: SignalAnswer | None) -> None:
        await self._queue.send(self._lease.run_id, name, answer)
        if answer is None:  # the first one may have come long ago
            self._lease.is_told = True

    async def receive(self) -> dict[str, SignalAnswer | None]:
        if not (self._lease.is_told or await self._queue.is_told(self._lease)):
            return {}
        self._lease.is_told = True  # until something was received: this may be cancelled, or fail
        await self.flush()  # what is void must not be read again
        received = await self._queue.receive(self._lease)
        self._lease.is_told = False
        return received

    def execute(self, statement: Statement) -> None:
        """Commit a change of other rows with the events of this turn, or not at all."""
        if not (self._closing or self._lease.failure):
            self._statements.append(statement)
            self._queue.schedule(self)

    def append_note(self, note: NoteEvent) -> None:
        if self._closing or self._lease.failure:
            return
        self._notes.append(note)
        if isinstance(note, StepStreamed):  # it has waited for more, and readers wait for it
            self._queue.schedule(self)
        else:
            self._queue.delay(self)

    def append_checkpoint(self, step: str, item: int | None, payload: Payload | None) -> None:
        if self._closing or self._lease.failure:
            return
        self._checkpoints[step, item] = payload
        self._queue.schedule(self)

    def append_call(self, step: str, item: int | None, name: str, stored: StoredCall) -> _Waiter:
        waiter = self._queue.loop.create_future()
        if self._lease.failure or self._closing:
            waiter.set_exception(self._not_stored(name))
        else:
            self._calls.append((name, waiter))
            self.execute(stored_call(self._lease.run_id, (step, item), name, stored))
            self._queue.hurry()  # the attempt waits for it
        return waiter

    async def load_call(self, step: str, item: int | None, name: str) -> StoredCall | None:
        return await self._queue.load_call(self._lease.run_id, (step, item), name)

    def _not_stored(self, name: str) -> JournalError:
        why = self._lease.failure
        problem = "its run has ended" if why is None else why.problem
        return JournalError(
            self._queue.journal, f"what call {name!r} returned was not stored: {problem}"
        )

    def append_cached(self, key: str, attempts: int, duration_ms: float) -> _Waiter:
        run_id, position = self._lease.run_id, self._appended
        if not (self._closing or self._lease.failure):
            now = virtual_now(self._queue.loop)
            self._remembered.append(remembered(key, run_id, position, attempts, duration_ms, now))
            self._queue.schedule(self)
        waiter = self._queue.loop.create_future()
        self._waiters.append((position, waiter))
        return waiter

    def append_step_runs(self, steps: Mapping[str, StepRun]) -> None:
        self._steps = steps

    async def flush(self) -> None:
        lease = self._lease
        if lease.failure or lease.committed < self._appended:
            if self._rows:
                self._queue.hurry()
            waiter = self._queue.loop.create_future()
            self._waiters.append((self._appended, waiter))
            await waiter

    def close(self) -> Coroutine[Any, Any, None]:
        # It begins at the call: a task that awaits it may be cancelled before its first step.
        if not self._closing:
            self._closing = True
            self._queue.schedule(self)
            self._queue.hurry()
        return self._closed()

    async def _closed(self) -> None:
        if not self._lease.released:
            waiter = self._queue.loop.create_future()
            self._closers.append(waiter)
            await waiter
            announce(self._queue.journal)
        if self._lease.failure:
            raise self._lease.failure

    def take_batch(self) -> tuple[Lease, CommitBatch]:
        """Return what must be committed, and forget it."""
        run_id, token = self._lease.run_id, self._lease.token
        batch = CommitBatch(
            run_id,
            token,
            self._rows,
            self._change,
            self._closing,
            self._notes,
            statements=[*self._statements, *changes_of(run_id, self._checkpoints)],
            remembered=self._remembered,
        )
        self._rows, self._notes, self._statements, self._change = [], [], [], None
        self._checkpoints, self._remembered = {}, []
        self._landing, self._calls = self._calls, []
        return self._lease, batch

    def land(self) -> None:
        """The batch that was taken is stored, or was refused."""
        self._queue.streams.wake(self._lease.run_id)
        while self._landing:
            name, waiter = self._landing.pop()
            if waiter.done():
                continue
            if self._lease.failure:
                waiter.set_exception(self._not_stored(name))
            else:
                waiter.set_result(None)

    def fail(self, error: JournalError) -> None:
        """End the session, because the worker takes no more batches."""
        self._lease.fail(error)
        self._lease.let_go()

    def settle(self) -> None:
        """Compare with the lease: wake waiters, and report a failure or a cancel request."""
        lease, waiters = self._lease, self._waiters
        if self._on_stop and lease.cancel_reason is not None and not self._cancel_reported:
            self._cancel_reported = True
            cancelled = RunCancelledError(lease.run_id, lease.cancel_reason)
            cancelled.cause = lease.cancel_cause
            self._queue.loop.call_soon(self._on_stop, cancelled)
        if self._on_signal and lease.signalled:
            lease.signalled = False
            self._queue.loop.call_soon(self._on_signal)
        if self._on_stop and lease.failure:
            self._queue.loop.call_soon(self._on_stop, lease.failure)
            self._on_stop = None
        while waiters and not lease.failure and waiters[0][0] <= lease.committed:
            _resolve(waiters.popleft()[1])
        if lease.released:
            self._on_stop = self._on_signal = lease.on_change = None
            while self._closers:
                _resolve(self._closers.pop())


class _NoQueue:
    """Takes the place of a `CommitQueue` for events that one transaction of their own stores."""

    def schedule(self, session: SQLSession) -> None: ...


def batch_of(run_id: str, events: Iterable[Event], loop: asyncio.AbstractEventLoop) -> CommitBatch:
    """Return what to store of a run that no process has, from its first event on."""
    queue: Any = _NoQueue()
    session = SQLSession(queue, Lease(run_id, 0, loop, "", None))
    for event in events:
        session.append(event)
    return session.take_batch()[1]


class FinishedSession:
    """The session of a run that has passed: there is nothing to write, and no lease to hold."""

    def watch(self, on_stop: _OnStop) -> None: ...

    def append(self, event: Event) -> None: ...

    async def flush(self) -> None: ...

    async def close(self) -> None: ...


class CommitQueue:
    """The sessions of one event loop that have something to commit."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        thread: WorkerThread,
        worker: JournalWorker,
        streams: StreamWatch,
    ) -> None:
        self.loop = loop
        self.streams = streams
        self.journal = worker.name
        self._thread = thread
        self._worker = worker
        self._scheduled: dict[SQLSession, None] = {}
        self._submitted: list[SQLSession] = []
        self._delayed: dict[SQLSession, None] = {}
        """Those that have notes and may have no events."""
        self._timer: asyncio.TimerHandle | None = None
        self._busy = False
        self._turns = 0

    async def send(self, run_id: str, name: str, answer: SignalAnswer | None) -> None:
        """Store a signal, or that its deadline has expired."""
        sent = SentSignal(run_id, name, None)
        if answer is not None:
            sent = SentSignal(run_id, name, answer.payload, None, answer.sent_by, answer.note)
        await self._worker.send_signal(sent._replace(now=virtual_now(self.loop)))

    async def is_told(self, lease: Lease) -> bool:
        """Whether something was sent to a run since it was claimed or has received."""
        return await self._worker.is_told(lease)

    async def receive(self, lease: Lease) -> dict[str, SignalAnswer | None]:
        """Return what was sent to a run."""
        return await self.loop.run_in_executor(self._thread, self._worker.receive, lease)

    async def load_call(self, run_id: str, key: Key, name: str) -> StoredCall | None:
        """Return what a call has returned; ``None`` if it is damaged."""
        wanted = run_id, key, name
        return await self._worker.load_call(wanted)

    def schedule(self, session: SQLSession) -> None:
        """Submit a session's events a few turns from now, or after the job that is under way."""
        if session.is_held:
            return
        if not self._scheduled:
            self._turns = _TURNS
        self._scheduled[session] = None
        if not self._busy:
            self._busy = True
            self.loop.call_soon(self._wait)

    def delay(self, session: SQLSession) -> None:
        """Submit a session's notes with its next events, or in a moment."""
        self._delayed[session] = None
        if self._timer is None:
            self._timer = self.loop.call_later(_NOTES_S, self._submit_notes)

    def _submit_notes(self) -> None:
        self._timer = None
        for session in list(self._delayed):
            self.schedule(session)

    def hurry(self) -> None:
        """Submit at the end of this turn."""
        self._turns = min(self._turns, 1)

    def _wait(self) -> None:
        if self._turns:
            self._turns -= 1
            self.loop.call_soon(self._wait)
        else:
            self._submit()

    def _submit(self) -> None:
        sessions = self._submitted = list(self._scheduled)
        self._scheduled.clear()
        for session in sessions:
            self._delayed.pop(session, None)
        if self._timer is not None and not self._delayed:
            self._timer.cancel()
            self._timer = None
        self._worker.submit([session.take_batch() for session in sessions])
        try:
            job = self.loop.run_in_executor(self._thread, self._worker.commit)
        except JournalError as error:
            for session in sessions:
                session.fail(JournalError(error.journal, error.problem))
            self._settle()
        else:
            job.add_done_callback(self._settle)

    def _settle(self, job: asyncio.Future[None] | None = None) -> None:
        submitted, self._submitted = self._submitted, []
        self._busy = bool(self._scheduled)
        if self._busy:
            self._wait()
        for session in submitted:
            session.land()
            session.settle()


def _merged(
    before: Change | None,
    position: int,
    event: RunStarted | RunResumed | RunFinished,
    waits: Mapping[str, float | None],
    asks: int | None,
) -> Change:
    """Return what an event and those before it change in the row of their run."""
    if isinstance(event, RunStarted):
        return Change(
            _RUNNING,
            position,
            column_of(event.pipeline),
            event.wall_time + 0.0,
            parent=_column_or_null(event.parent),
            parent_step=_column_or_null(event.parent_step),
            rerun_of=_column_or_null(event.rerun_of),
            label=_column_or_null(event.label),
            key=_column_or_null(event.key),
            attributes=attributes_column(event.attributes),
        )
    change = (before or Change(_RUNNING, position))._replace(position=position)
    if isinstance(event, RunFinished):
        is_waiting = event.status is RunStatus.WAITING
        return change._replace(
            status=status_column(event.status),
            cause=event.cause,
            waits=dict(waits) if is_waiting else None,
            asks=asks if is_waiting else None,
        )
    # When it would have started if it had never paused.
    unpaused_at = event.wall_time - event.at_ms / 1000
    return change._replace(status=_RUNNING, cause=None, unpaused_at=unpaused_at)


def _column_or_null(text: str) -> str | None:
    return column_of(text) if text else None


def _resolve(waiter: _Waiter) -> None:
    if not waiter.done():
        waiter.set_result(None)


class StreamWatch:
    """Wakes the readers of runs when something of these was committed here. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, dict[asyncio.Event, asyncio.AbstractEventLoop]] = {}

    @contextmanager
    def watching(self, run_id: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set when something of a run was committed."""
        news = asyncio.Event()
        with self._lock:
            self._waiting.setdefault(run_id, {})[news] = asyncio.get_running_loop()
        try:
            yield news
        finally:
            with self._lock:
                del self._waiting[run_id][news]
                if not self._waiting[run_id]:
                    del self._waiting[run_id]

    def wake(self, run_id: str) -> None:
        """Wake the readers of a run."""
        if run_id not in self._waiting:
            return
        with self._lock:
            for news, loop in self._waiting.get(run_id, {}).items():
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(news.set)
