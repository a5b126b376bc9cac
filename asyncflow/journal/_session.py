"""The runs of an event loop that a journal has open: what they write goes into few transactions.

Group commit: what all runs of all event loops have to write when a transaction begins goes into
it, and what comes while it is under way waits for the next one. A `CommitQueue` hands in what its
loop's sessions have at the end of the turn in which one of them asks for it to be stored. The rest
waits a few turns of the loop, and no time, for what may follow from it: the end of a step and the
start of the next one go together.

The journal's thread does one thing after the other. So when it has done what a desk asked for, all
that this desk handed in is kept, whoever's transaction has taken it along.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from asyncflow._core.errors import JournalError, RunCancelledError
from asyncflow.events import Event, RunFinished, RunResumed, RunStarted
from asyncflow.journal._event_codec import Row, column_of, row_of
from asyncflow.journal._store import Change, CommitBatch
from asyncflow.journal._worker import JournalWorker, Lease, Thread

__all__ = ["CommitQueue", "FinishedSession", "SQLSession"]

_Waiter = asyncio.Future[None]
_OnStop = Callable[[JournalError | RunCancelledError], object]


class SQLSession:
    """What one run writes. Only its event loop may use it."""

    def __init__(self, desk: CommitQueue, holding: Lease) -> None:
        self._desk = desk
        self._holding = holding
        self._added = holding.kept
        self._rows: list[Row] = []
        self._change: Change | None = None
        self._closing = False
        self._waiters: deque[tuple[int, _Waiter]] = deque()
        self._closers: list[_Waiter] = []
        self._on_stop: _OnStop | None = None
        self._is_cancelled = False
        holding.tell = self.settle

    def watch(self, on_stop: _OnStop) -> None:
        """Have something called in the event loop if the journal fails or the run is cancelled."""
        self._on_stop = on_stop
        self.settle()

    def add(self, event: Event) -> None:
        """Have an event written. Never blocks. After a failure or the close it does nothing."""
        if self._closing or self._holding.failure:
            return
        self._added += 1
        self._rows.append(row_of(self._holding.run_id, self._added, event))
        if isinstance(event, _CHANGING):
            self._change = _changed(self._change, event)
        self._desk.expect(self)

    async def kept(self) -> None:
        """Wait until all that was added before is committed. After a failure, wait for ever."""
        holding = self._holding
        if holding.failure or holding.kept < self._added:
            if self._rows:
                self._desk.hurry()
            waiter = self._desk.loop.create_future()
            self._waiters.append((self._added, waiter))
            await waiter

    def close(self) -> Coroutine[Any, Any, None]:
        """Wait until all is committed and give up the claim.

        It may be cancelled, and called again. It begins when it is called: a task that awaits it
        may be cancelled before its first step.

        Raises:
            JournalError: Something was not committed.
        """
        if not self._closing:
            self._closing = True
            self._desk.expect(self)
            self._desk.hurry()
        return self._closed()

    async def _closed(self) -> None:
        if not self._holding.over:
            waiter = self._desk.loop.create_future()
            self._closers.append(waiter)
            await waiter
        if self._holding.failure:
            raise self._holding.failure

    def hand_over(self) -> tuple[Lease, CommitBatch]:
        """Return what there is to write, which is forgotten here."""
        rows, change = self._rows, self._change
        self._rows, self._change = [], None
        run_id, token = self._holding.run_id, self._holding.token
        return self._holding, CommitBatch(run_id, token, rows, change, self._closing)

    def give_up(self, error: JournalError) -> None:
        """Note that nothing more can be handed in."""
        self._holding.fail(error)
        self._holding.over = True

    def settle(self) -> None:
        """Let go on what has waited for what the thread has done by now."""
        holding, waiters = self._holding, self._waiters
        if self._on_stop and holding.is_cancelled and not self._is_cancelled:
            self._is_cancelled = True
            self._desk.loop.call_soon(self._on_stop, RunCancelledError(holding.run_id))
        if self._on_stop and holding.failure:
            self._desk.loop.call_soon(self._on_stop, holding.failure)
            self._on_stop = None
        while waiters and not holding.failure and waiters[0][0] <= holding.kept:
            _resolve(waiters.popleft()[1])
        if holding.over:
            self._on_stop = holding.tell = None
            while self._closers:
                _resolve(self._closers.pop())


class FinishedSession:
    """What a run has to write that has passed: nothing. So who reads it need not own it."""

    def watch(self, on_stop: _OnStop) -> None:
        """Do nothing: nobody gets that far."""

    def add(self, event: Event) -> None:
        """Do nothing, either."""

    async def kept(self) -> None:
        """Return at once, as there is nothing."""

    async def close(self) -> None:
        """Do nothing."""


class CommitQueue:
    """The books of one event loop: it hands in what they have to write, all at once."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, thread: Thread, clerk: JournalWorker
    ) -> None:
        self.loop = loop
        self._thread = thread
        self._clerk = clerk
        self._expected: dict[SQLSession, None] = {}
        self._sent: list[SQLSession] = []
        self._busy = False
        self._turns = 0

    def expect(self, book: SQLSession) -> None:
        """Let a book hand over what it has, a few turns from now or after what is under way."""
        if not self._expected:
            self._turns = _TURNS
        self._expected[book] = None
        if not self._busy:
            self._busy = True
            self.loop.call_soon(self._wait)

    def hurry(self) -> None:
        """Let the books hand over what they have at the end of this turn."""
        self._turns = min(self._turns, 1)

    def _wait(self) -> None:
        if self._turns:
            self._turns -= 1
            self.loop.call_soon(self._wait)
        else:
            self._send()

    def _send(self) -> None:
        books = self._sent = list(self._expected)
        self._expected.clear()
        self._clerk.hand_in([book.hand_over() for book in books])
        try:
            job = self.loop.run_in_executor(self._thread, self._clerk.write)
        except JournalError as error:
            for book in books:
                book.give_up(JournalError(error.journal, error.problem))
            self._settle()
        else:
            job.add_done_callback(self._settle)

    def _settle(self, job: asyncio.Future[None] | None = None) -> None:
        sent, self._sent = self._sent, []
        self._busy = bool(self._expected)
        if self._busy:
            self._wait()
        for book in sent:
            book.settle()


_TURNS = 8
"""How many turns of the loop to wait for what may follow. A run takes up to 4 from the end of a
step to the start of the next one."""

_CHANGING = (RunStarted, RunResumed, RunFinished)


def _changed(before: Change | None, event: RunStarted | RunResumed | RunFinished) -> Change:
    """Return what events change in the row of their run."""
    if isinstance(event, RunStarted):
        return Change("running", column_of(event.pipeline), event.wall_time)
    status = event.outcome if isinstance(event, RunFinished) else "running"
    return before._replace(status=status) if before else Change(status)


def _resolve(waiter: _Waiter) -> None:
    if not waiter.done():
        waiter.set_result(None)
