"""What a unit waits for before an attempt: a place, its journal, the pause, an abandoned thread.

Rules:

1. None of it is part of the attempt's time.
2. Only the run can cut a wait short. If anybody else cancels the task of a unit meanwhile, the
   wait goes on.

What an attempt must have before it may start: a slot of a pool, a thread, a process.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import anyio

from asyncflow._core.errors import StepTimeoutError
from asyncflow._core.policies import Pool, PoolTicket
from asyncflow._core.state import RunState
from asyncflow._core.step import WorkflowStep
from asyncflow._runtime.asyncio_compat import forget_cancels, has_virtual_time
from asyncflow._runtime.dispatcher import Observer
from asyncflow._runtime.durable import JournalSession, RunPersistence
from asyncflow._runtime.limiters import limiter_for
from asyncflow._runtime.outcome import Verdicts
from asyncflow.events import AttemptStarted, StepFailed

if TYPE_CHECKING:
    from asyncflow._runtime.workers import ThreadEnd

__all__ = [
    "Slot",
    "Waits",
]


class Slot:
    """A slot of a pool and a token of a limiter, taken together and given back together.

    Args:
        pool: The pool, if any.
        limiter: The limiter, if any.
    """

    def __init__(self, pool: Pool | None, limiter: anyio.CapacityLimiter | None) -> None:
        self._pool = pool
        self._limiter = limiter
        self._ticket: PoolTicket | None = None
        self._has_token = False

    async def take(self) -> None:
        """Wait for both. If that is cancelled, neither is kept."""
        try:
            if self._pool is not None:
                await self._take_ticket(self._pool)
            if self._limiter is not None:
                await self._take_token(self._limiter)
        except BaseException:
            self.give_back(unused=True)
            raise

    async def _take_token(self, limiter: anyio.CapacityLimiter) -> None:
        try:
            # A token that is free is never waited for: before 4.16 anyio, if cancelled in the
            # turn that it then lets pass, gives back a token of the task, and not this one.
            limiter.acquire_on_behalf_of_nowait(self)
        except anyio.WouldBlock:
            await limiter.acquire_on_behalf_of(self)
        self._has_token = True

    async def _take_ticket(self, pool: Pool) -> None:
        loop = asyncio.get_running_loop()
        called: asyncio.Future[None] = loop.create_future()
        self._ticket = pool.request_slot(lambda: loop.call_soon_threadsafe(_resolve, called))
        if not self._ticket.has_slot:
            await called
        delay_s = self._ticket.reserve_start(
            loop.time(), loop if has_virtual_time(loop) else time.monotonic
        )
        if delay_s > 0:
            await asyncio.sleep(delay_s)

    def give_back(self, *, unused: bool = False) -> None:
        """Give back what was taken; ``unused`` if no attempt has started."""
        if self._has_token:
            assert self._limiter is not None
            self._limiter.release_on_behalf_of(self)
            self._has_token = False
        if self._ticket is not None:
            self._ticket.release(unused=unused)

    def give_back_to_pool(self) -> None:
        """Give back the slot of the pool only; from any thread, also if the loop is closed."""
        if self._ticket is not None:
            self._ticket.release()


def _resolve(called: asyncio.Future[None]) -> None:
    if not called.done():  # it is, if the waiting was cancelled
        called.set_result(None)


class Waits(Verdicts):
    """The layer of a run in which its units wait for their attempts."""

    __slots__ = ("_is_limited", "_keeper", "_queue", "_steps", "_threads", "_turns")

    def __init__(
        self, state: RunState, observers: tuple[Observer, ...], keeper: RunPersistence | None
    ) -> None:
        super().__init__(state, observers, None if keeper is None else keeper.book)
        self._keeper = keeper
        self._steps = state.step_runs.steps
        self._queue = state.queue
        self._is_limited = state.is_limited
        self._turns: dict[int, asyncio.Future[None]] = {}
        """What each unit waits for that stands in line for its next attempt."""
        self._threads: dict[int, ThreadEnd] = {}
        """What tells of each unit with an abandoned thread that the thread has ended."""

    @abstractmethod
    def _advance_soon(self) -> None:
        """See to what may start now, in the next turn of the loop."""

    async def _take_slot(self, node: int, step: WorkflowStep) -> Slot | None:
        limiter = limiter_for(step)
        if step.pool is None and limiter is None:
            return None
        slot = Slot(step.pool, limiter)
        await self._undisturbed(node, slot.take)
        return slot

    async def _keep_start(self, node: int, step: WorkflowStep, book: JournalSession) -> int:
        """Tell that the next attempt starts, and return its number when that is kept."""
        attempt = self._state.step_runs.next_attempt(node)
        started = AttemptStarted(step.name, attempt, self._now_ms())
        if self._is_limited or not step.is_plain:
            started = self._in_full(node, started)
        self._state.start(node, started)
        self._pass_on(started)
        await self._undisturbed(node, book.kept)
        self._began[node] = self._now_ms()
        return attempt

    def _undo_start(self, node: int, slot: Slot | None) -> None:
        """See to an attempt whose task was cancelled before its first line."""
        if slot is not None:
            slot.give_back(unused=True)
        if node in self._asked:
            raise asyncio.CancelledError
        forget_cancels()

    def _give_back(self, node: int, slot: Slot) -> None:
        thread = self._threads.get(node)
        if thread is None or thread.done():
            slot.give_back()
        else:
            thread.call_at_once(slot.give_back_to_pool)
            thread.add_done_callback(lambda _: slot.give_back())

    def _in_full(self, node: int, running: AttemptStarted) -> AttemptStarted:
        queued_ms = self._state.queue.queued_ms(node, running.at_ms)
        item = self._state.step_runs.item_of(node)
        return AttemptStarted(running.step, running.attempt, running.at_ms, queued_ms, item)

    async def _pause(self, node: int, delay_ms: float) -> bool:
        """Wait between two attempts, at least one turn of the loop; return whether one follows."""
        if self._is_limited:
            self._advance_soon()  # there is room for another one
        left_s = delay_ms / 1000
        until = self._loop.time() + left_s
        while True:
            try:
                await asyncio.sleep(left_s)
            except asyncio.CancelledError:
                if node in self._asked:
                    raise
                forget_cancels()  # the attempt that has ended cancelled its task, or a stranger
            left_s = until - self._loop.time()
            if left_s <= 0:
                break
        if node in self._threads and not await self._thread_has_ended(node):
            return False
        if self._is_limited:
            await self._next_turn(node)
        return True

    async def _thread_has_ended(self, node: int) -> bool:
        """Wait for an abandoned thread, which no attempt may overlap, but not past a deadline."""
        thread, latest = self._threads[node], self._state.step_runs.latest[node]
        assert latest is not None
        deadline_ms, ends_ms = (
            self._steps[node].deadline_ms,
            self._state.deadlines.step_ends_ms(node),
        )
        left_s = None if deadline_ms is None else max(0.0, (ends_ms - self._now_ms()) / 1000)
        await self._undisturbed(node, partial(asyncio.wait, [thread], timeout=left_s))
        if thread.done() or deadline_ms is None:
            return True
        name = self._state.step_runs.name_of(node)
        error = StepTimeoutError(name, latest.attempt, deadline_ms, "step")
        now_ms, item = self._now_ms(), latest.item
        self._tell_failure(StepFailed(latest.step, latest.attempt, now_ms, error, item))
        return False

    async def _next_turn(self, node: int) -> None:
        turn = self._turns[node] = self._loop.create_future()
        self._state.enqueue_retry(node, self._now_ms())
        self._advance_soon()
        try:
            await self._undisturbed(node, partial(asyncio.wait, [turn]))
        finally:
            del self._turns[node]

    async def _undisturbed(self, node: int, wait: Callable[[], Awaitable[object]]) -> None:
        """Wait for something, and begin anew if anybody but the run cancels that."""
        while True:
            try:
                await wait()
            except asyncio.CancelledError:
                if node in self._asked:
                    raise
                forget_cancels()
            else:
                return
