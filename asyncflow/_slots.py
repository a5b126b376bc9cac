"""What an attempt must have before it may start: a slot of a pool, a thread, a process."""

from __future__ import annotations

import asyncio
import time

import anyio

from asyncflow._clock import has_virtual_time
from asyncflow._core.policies import Pool, Ticket

__all__ = ["Slot"]


class Slot:
    """A slot of a pool and a token of a limiter, taken together and given back together.

    Args:
        pool: The pool, if any.
        limiter: The limiter, if any.
    """

    def __init__(self, pool: Pool | None, limiter: anyio.CapacityLimiter | None) -> None:
        self._pool = pool
        self._limiter = limiter
        self._ticket: Ticket | None = None
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
        self._ticket = pool.ask(lambda: loop.call_soon_threadsafe(_resolve, called))
        if not self._ticket.has_slot:
            await called
        delay_s = self._ticket.pace(loop.time(), loop if has_virtual_time(loop) else time.monotonic)
        if delay_s > 0:
            await asyncio.sleep(delay_s)

    def give_back(self, *, unused: bool = False) -> None:
        """Give back what was taken; ``unused`` if no attempt has started."""
        if self._has_token:
            assert self._limiter is not None
            self._limiter.release_on_behalf_of(self)
            self._has_token = False
        if self._ticket is not None:
            self._ticket.give_back(unused=unused)

    def give_back_to_pool(self) -> None:
        """Give back the slot of the pool only; from any thread, also if the loop is closed."""
        if self._ticket is not None:
            self._ticket.give_back()


def _resolve(called: asyncio.Future[None]) -> None:
    if not called.done():  # it is, if the waiting was cancelled
        called.set_result(None)
