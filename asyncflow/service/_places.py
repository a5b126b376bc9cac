"""How many runs a service has at a time, and when there may be room for another one."""

from __future__ import annotations

import asyncio
import math
from collections import deque

from asyncflow._core.arguments import check_count
from asyncflow.service._errors import ServiceFullError

_LATEST = 100
"""How many durations the estimate of the next free place looks at."""
_LONGEST_RETRY_S = 60


class Places:
    """The places for runs. Each is taken when a run is accepted, and freed when it has ended.

    ``most`` says how many there are, at least 1; ``None`` for no limit.
    """

    def __init__(self, most: int | None) -> None:
        if most is not None:
            kind, hint = "an int or None", "; use None for no limit"
            check_count("max_runs", most, 1, kind=kind, hint=hint)
        self._most = most
        self._free = None if most is None else asyncio.Semaphore(most)
        self._taken = 0
        self._durations: deque[float] = deque(maxlen=_LATEST)

    @property
    def most(self) -> int | None:
        """How many there are; ``None`` for no limit."""
        return self._most

    @property
    def taken(self) -> int:
        """How many are taken."""
        return self._taken

    @property
    def free_now(self) -> int | None:
        """How many can be taken without waiting; ``None`` for any number."""
        if self._free is None or self._most is None:
            return None
        return 0 if self._free.locked() else self._most - self._taken

    async def take_one(self) -> bool:
        """Take a place if one is there and no run waits for it; return whether it was taken."""
        if self.free_now == 0:
            return False
        await self.wait()
        return True

    async def take(self) -> None:
        """Take a place, without waiting.

        Raise `ServiceFullError` if there is none, or the next one is for whom `wait` has.
        """
        if self._free is not None and self._free.locked():
            assert self._most is not None
            raise ServiceFullError(self._retry_after_s(self._most), self._most)
        await self.wait()

    async def wait(self) -> None:
        """Wait for a place, and take it. Those who wait have precedence, in their order."""
        if self._free is not None:
            await self._free.acquire()
        self._taken += 1

    def free(self, duration_s: float | None = None) -> None:
        """Free a place, after so many seconds if a run took them."""
        self._taken -= 1
        if self._free is not None:
            self._free.release()
        if duration_s is not None:
            self._durations.append(duration_s)

    def _retry_after_s(self, most: int) -> int:
        """Return when the next of the runs ends if they began evenly, as those before took."""
        if not self._durations:
            return 1
        average_s = sum(self._durations) / len(self._durations)
        return max(1, min(math.ceil(average_s / most), _LONGEST_RETRY_S))
