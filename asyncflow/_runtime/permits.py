"""What an attempt must hold before it may start, and what a node waits for between two attempts.

Rules:

1. None of it is part of the attempt's time.
2. Only the run can cut a wait short. If a third party cancels the node's task meanwhile, the wait
   continues.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

import anyio

from asyncflow._core.errors import StepTimeoutError
from asyncflow._core.graph import Plan
from asyncflow._core.policies import Pool, PoolTicket
from asyncflow._core.step import WorkflowStep
from asyncflow._runtime.asyncio_compat import has_virtual_time
from asyncflow._runtime.dispatcher import EventDispatcher
from asyncflow._runtime.run_scope import Host, RunScope
from asyncflow._runtime.stop_control import StopControl
from asyncflow.events import StepFailed, ThreadAbandoned

if TYPE_CHECKING:
    from asyncflow._runtime.workers import ThreadEnd

_NO_TIME_S = 1e-8
"""What is left of a wait that is over: a loop takes a timer for due that is nearer than the
resolution of its clock, and a virtual clock does not advance for it."""


def prepare_workers(plan: Plan) -> None:
    """Import what steps in threads and processes need, before a run's time begins to count."""
    for index in plan.special:
        _limiter_for(plan.steps[index])


def _limiter_for(step: WorkflowStep) -> anyio.CapacityLimiter | None:
    """Return what limits how many workers of the step's kind there are, if it runs in one."""
    if not step.needs_worker:
        return None
    from asyncflow._runtime.workers import limiter_for  # few need what that imports

    return limiter_for(step.runs_in)


class Permit:
    """A slot of a pool and a token of a limiter, acquired together and released together."""

    def __init__(self, pool: Pool | None, limiter: anyio.CapacityLimiter | None) -> None:
        self._pool = pool
        self._limiter = limiter
        self._ticket: PoolTicket | None = None
        self._has_token = False

    async def acquire(self) -> None:
        """Wait for both. If that is cancelled, neither is held."""
        try:
            if self._pool is not None:
                await self._take_ticket(self._pool)
            if self._limiter is not None:
                await self._take_token(self._limiter)
        except BaseException:
            self.release(unused=True)
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
        self._ticket = pool._request_slot(lambda: loop.call_soon_threadsafe(_resolve, called))
        if not self._ticket.has_slot:
            await called
        delay_s = self._ticket.reserve_start(
            loop.time(), loop if has_virtual_time(loop) else time.monotonic
        )
        if delay_s > 0:
            await asyncio.sleep(delay_s)

    def release(self, *, unused: bool = False) -> None:
        """Release what was acquired; ``unused`` if no attempt has started."""
        if self._has_token:
            assert self._limiter is not None
            self._limiter.release_on_behalf_of(self)
            self._has_token = False
        if self._ticket is not None:
            self._ticket.release(unused=unused)

    def release_slot(self) -> None:
        """Release the slot of the pool only; from any thread, also if the loop is closed."""
        if self._ticket is not None:
            self._ticket.release()


def _resolve(called: asyncio.Future[None]) -> None:
    if not called.done():  # it is, if the waiting was cancelled
        called.set_result(None)


class Permits:
    """Lets the attempts of a run wait for what they must hold.

    ``turns`` has what each node waits for that is queued for its next attempt.
    """

    def __init__(
        self, scope: RunScope, host: Host, dispatcher: EventDispatcher, stop: StopControl
    ) -> None:
        self._run = host
        self._dispatcher = dispatcher
        self._stop_control = stop
        self._state = scope.state
        self._now_ms = scope.run_context.now_ms
        self._loop = scope.loop
        self.turns: dict[int, asyncio.Future[None]] = {}
        self._threads: dict[int, ThreadEnd] = {}
        """Resolved when the abandoned thread of a node has ended."""

    def take(self, step: WorkflowStep) -> PoolTicket | None:
        """Return what a plain attempt must hold, if it need not wait for that; else `acquire`."""
        return step.pool._take_slot() if step.is_plain and step.pool is not None else None

    async def acquire(self, node: int, step: WorkflowStep) -> Permit:
        """Wait for a slot of the step's pool, and for a thread or process if it needs one."""
        permit = Permit(step.pool, _limiter_for(step))
        await self._stop_control.undisturbed(node, permit.acquire)
        return permit

    def release(self, node: int, permit: Permit | PoolTicket, *, unused: bool = False) -> None:
        """Release a permit; if its attempt has abandoned a thread, when that has ended."""
        thread = self._threads.get(node)
        if thread is None or thread.done():
            permit.release(unused=unused)
        else:
            assert isinstance(permit, Permit)  # a plain attempt runs in the loop
            thread.call_at_once(permit.release_slot)
            thread.add_done_callback(lambda _: permit.release())

    def abandon(self, node: int, thread: ThreadEnd) -> None:
        """Report that the running attempt of a node ends before its thread does."""
        running = self._state.running_attempt(node)
        assert running is not None
        self._threads[node] = thread
        now_ms = self._now_ms()
        self._dispatcher.emit(ThreadAbandoned(running.step, running.attempt, now_ms, running.item))

    def readmit(self, node: int) -> bool:
        """Let a node start its next attempt, if it is one that waits for that."""
        turn = self.turns.get(node)
        if turn is not None:
            turn.set_result(None)
        return turn is not None

    async def back_off(self, node: int, delay_ms: float) -> bool:
        """Wait between two attempts, at least one turn of the loop.

        Return whether another attempt follows. Otherwise the node has failed, and that is reported.

        Raises:
            asyncio.CancelledError: The run has asked the node to stop.
        """
        self._stop_control.check_before_backoff(node)
        if self._state.queue.is_dirty:
            self._run.advance()  # there is room for another node
        clock = self._loop.time
        ends_s = clock() + delay_ms / 1000
        await self._stop_control.undisturbed(node, lambda: asyncio.sleep(ends_s - clock()))
        while ends_s - clock() > _NO_TIME_S:  # a timer may be early
            await self._stop_control.undisturbed(node, lambda: asyncio.sleep(ends_s - clock()))
        if node in self._threads and not await self._thread_has_ended(node):
            return False
        if self._state.is_limited:
            await self._next_turn(node)
        return True

    async def _thread_has_ended(self, node: int) -> bool:
        """Wait for an abandoned thread, which no attempt may overlap, but not past a deadline."""
        thread, latest = self._threads[node], self._state.latest_attempt(node)
        assert latest is not None
        deadline_ms = self._state.step_runs.steps[node].deadline_ms
        left_s = None
        if deadline_ms is not None:
            ends_ms = self._state.deadlines.step_ends_ms(node)
            left_s = max(0.0, (ends_ms - self._now_ms()) / 1000)
        await self._stop_control.undisturbed(node, partial(asyncio.wait, [thread], timeout=left_s))
        if thread.done() or deadline_ms is None:
            return True
        name = self._state.step_runs.name_of(node)
        error = StepTimeoutError(name, latest.attempt, deadline_ms, "step")
        now_ms = self._now_ms()
        self._dispatcher.emit(StepFailed(latest.step, latest.attempt, now_ms, error, latest.item))
        return False

    async def _next_turn(self, node: int) -> None:
        turn = self.turns[node] = self._loop.create_future()
        self._state.enqueue_retry(node, self._now_ms())
        self._run.advance()
        try:
            await self._stop_control.undisturbed(node, partial(asyncio.wait, [turn]))
        finally:
            del self.turns[node]
