"""A limit that moves on with every sign of life."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from asyncflow._clock import TIMER_SLACK_S

__all__ = ["Heart"]


class Heart:
    """Calls ``lapse`` once, when it has not beaten for so long.

    Args:
        loop: Whose clock counts.
        limit_s: How many seconds may pass between two beats.
        lapse: Called without arguments.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limit_s: float, lapse: Callable[[], object]
    ) -> None:
        self._loop = loop
        self._limit_s = limit_s
        self._last = loop.time()
        self._timer: asyncio.TimerHandle | None = loop.call_at(
            self._last + limit_s, self._look, lapse
        )

    def beat(self) -> None:
        """Give a sign of life, from any thread."""
        self._last = self._loop.time()

    def stop(self) -> None:
        """Need no more signs of life."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, lapse: Callable[[], object]) -> None:
        ends = self._last + self._limit_s
        if self._loop.time() >= ends - TIMER_SLACK_S:
            self._timer = None
            lapse()
        else:
            self._timer = self._loop.call_at(ends, self._look, lapse)
