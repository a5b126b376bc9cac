"""Warns of a step that goes on running although it was cancelled."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

__all__ = ["GRACE_S", "Suspect", "Watchdog"]

_log = logging.getLogger("asyncflow")

GRACE_S = 5.0
"""How many seconds a step may take to end after it was cancelled before it is named."""


class Suspect(NamedTuple):
    """A running attempt that was cancelled, or will be if it has not ended by then."""

    step_name: str
    attempt: int
    cancelled_at: float
    """In seconds of the loop's clock; it may lie in the future."""
    where: Callable[[], str]
    """Tells the line at which it waits; asked only if there is something to warn of."""


class Watchdog:
    """Logs a warning for each attempt that has not ended `GRACE_S` after it was cancelled.

    It has one timer, which stands at the earliest moment at which there may be something to
    warn of. So a run in which everything ends in time pays for one timer.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._named: set[tuple[str, int]] = set()
        self.horizon = math.inf
        """The planned look is for attempts cancelled at this time, or later."""

    def expect(self, cancelled_at: float, suspects: Callable[[], Iterator[Suspect]]) -> None:
        """Plan a look for an attempt that is cancelled at the given time of the loop's clock.

        Only the timer keeps the callable, which belongs to the run: else the two were a cycle.
        """
        if cancelled_at < self.horizon:
            self.stop()
            self.horizon = cancelled_at
            self._timer = self._loop.call_at(cancelled_at + GRACE_S, self._look, suspects)

    def stop(self) -> None:
        """Plan no look."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self.horizon = None, math.inf

    def _look(self, suspects: Callable[[], Iterator[Suspect]]) -> None:
        self._timer, self.horizon = None, math.inf
        latest = self._loop.time() - GRACE_S + 0.001  # a timer may fire that much too early
        for suspect in suspects():
            attempt = suspect.step_name, suspect.attempt
            if attempt in self._named:
                continue
            if suspect.cancelled_at > latest:
                self.expect(suspect.cancelled_at, suspects)
                continue
            self._named.add(attempt)
            _log.warning(
                "step %r, attempt %d, has not ended %g s after it was cancelled; it is at %s",
                *attempt,
                GRACE_S,
                suspect.where(),
            )
