"""What a unit waits for before an attempt: a place, its journal, the pause, an abandoned thread.

Rules:

1. None of it is part of the attempt's time.
2. Only the run can cut a wait short. If anybody else cancels the task of a unit meanwhile, the
   wait goes on.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from asyncflow._cancels import forget_cancels
from asyncflow._core.errors import StepTimeoutError
from asyncflow._core.state import RunState
from asyncflow._core.step import WorkflowStep
from asyncflow._journal import Book
from asyncflow._keeper import Keeper
from asyncflow._limiters import limiter_for
from asyncflow._observers import Observer
from asyncflow._slots import Slot
from asyncflow._verdicts import Verdicts
from asyncflow.events import AttemptStarted, StepFailed

if TYPE_CHECKING:
    from asyncflow._workers import ThreadEnd

__all__ = ["Waits"]


class Waits(Verdicts):
    """The layer of a run in which its units wait for their attempts."""

    __slots__ = ("_is_limited", "_keeper", "_queue", "_steps", "_threads", "_turns")

    def __init__(
        self, state: RunState, observers: tuple[Observer, ...], keeper: Keeper | None
    ) -> None:
        super().__init__(state, observers, None if keeper is None else keeper.book)
        self._keeper = keeper
        self._steps = state.units.steps
        self._queue = state.queue
        self._is_limited = state.is_limited
        self._turns: dict[int, asyncio.Future[None]] = {}
        """What each unit waits for that stands in line for its next attempt."""
        self._threads: dict[int, ThreadEnd] = {}
        """What tells of each unit with an abandoned thread that the thread has ended."""

    @abstractmethod
    def _advance_soon(self) -> None:
        """See to what may start now, in the next turn of the loop."""

    async def _take_slot(self, unit: int, step: WorkflowStep) -> Slot | None:
        limiter = limiter_for(step)
        if step.pool is None and limiter is None:
            return None
        slot = Slot(step.pool, limiter)
        await self._undisturbed(unit, slot.take)
        return slot

    async def _keep_start(self, unit: int, step: WorkflowStep, book: Book) -> int:
        """Tell that the next attempt starts, and return its number when that is kept."""
        attempt = self._state.units.next_attempt(unit)
        started = AttemptStarted(step.name, attempt, self._now_ms())
        if self._is_limited or not step.is_plain:
            started = self._in_full(unit, started)
        self._state.start(unit, started)
        self._pass_on(started)
        await self._undisturbed(unit, book.kept)
        self._began[unit] = self._now_ms()
        return attempt

    def _undo_start(self, unit: int, slot: Slot | None) -> None:
        """See to an attempt whose task was cancelled before its first line."""
        if slot is not None:
            slot.give_back(unused=True)
        if unit in self._asked:
            raise asyncio.CancelledError
        forget_cancels()

    def _give_back(self, unit: int, slot: Slot) -> None:
        thread = self._threads.get(unit)
        if thread is None or thread.done():
            slot.give_back()
        else:
            thread.call_at_once(slot.give_back_to_pool)
            thread.add_done_callback(lambda _: slot.give_back())

    def _in_full(self, unit: int, running: AttemptStarted) -> AttemptStarted:
        queued_ms = self._state.queue.queued_ms(unit, running.at_ms)
        item = self._state.units.item_of(unit)
        return AttemptStarted(running.step, running.attempt, running.at_ms, queued_ms, item)

    async def _pause(self, unit: int, delay_ms: float) -> bool:
        """Wait between two attempts, at least one turn of the loop; return whether one follows."""
        if self._is_limited:
            self._advance_soon()  # there is room for another one
        left_s = delay_ms / 1000
        until = self._loop.time() + left_s
        while True:
            try:
                await asyncio.sleep(left_s)
            except asyncio.CancelledError:
                if unit in self._asked:
                    raise
                forget_cancels()  # the attempt that has ended cancelled its task, or a stranger
            left_s = until - self._loop.time()
            if left_s <= 0:
                break
        if unit in self._threads and not await self._thread_has_ended(unit):
            return False
        if self._is_limited:
            await self._next_turn(unit)
        return True

    async def _thread_has_ended(self, unit: int) -> bool:
        """Wait for an abandoned thread, which no attempt may overlap, but not past a deadline."""
        thread, latest = self._threads[unit], self._state.units.latest[unit]
        assert latest is not None
        deadline_ms, ends_ms = self._steps[unit].deadline_ms, self._state.limits.step_ends_ms(unit)
        left_s = None if deadline_ms is None else max(0.0, (ends_ms - self._now_ms()) / 1000)
        await self._undisturbed(unit, partial(asyncio.wait, [thread], timeout=left_s))
        if thread.done() or deadline_ms is None:
            return True
        name = self._state.units.name_of(unit)
        error = StepTimeoutError(name, latest.attempt, deadline_ms, "step")
        now_ms, item = self._now_ms(), latest.item
        self._tell_failure(StepFailed(latest.step, latest.attempt, now_ms, error, item))
        return False

    async def _next_turn(self, unit: int) -> None:
        turn = self._turns[unit] = self._loop.create_future()
        self._state.get_in_line(unit, self._now_ms())
        self._advance_soon()
        try:
            await self._undisturbed(unit, partial(asyncio.wait, [turn]))
        finally:
            del self._turns[unit]

    async def _undisturbed(self, unit: int, wait: Callable[[], Awaitable[object]]) -> None:
        """Wait for something, and begin anew if anybody but the run cancels that."""
        while True:
            try:
                await wait()
            except asyncio.CancelledError:
                if unit in self._asked:
                    raise
                forget_cancels()
            else:
                return
