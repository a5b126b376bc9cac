"""The line in which steps wait for their start, first come, first served."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from asyncflow._phases import IN_FLIGHT
from asyncflow._pool import Pool
from asyncflow._step import WorkflowStep

__all__ = ["StartQueue"]


class StartQueue:
    """Lets in who stands in line, as far as the run's limit and the pools have room.

    A pool is shared with other runs, so being let in is not yet having a slot of it. But no more
    are let in than it has slots: else those who wait for it would fill the run's own limit, and
    keep out others who need not wait.

    Attributes:
        has_news: Whether there may be somebody to take, or a step that is newly doomed.
        is_limited: Whether anybody may have to wait, here or for a pool or a thread.

    Args:
        limit: How many may be in at the same time; ``None`` means any number.
        steps: The step of each unit that may stand in line, by the number of the unit. It may
            become longer.
        special: Those of them that may have a pool, or run elsewhere than in the event loop.
    """

    def __init__(
        self, limit: int | None, steps: Sequence[WorkflowStep], special: Iterable[int]
    ) -> None:
        self._is_of_all = limit is not None
        self.is_limited = self._is_of_all or not all(
            _waits_for_nothing(steps[step]) for step in special
        )
        self.has_news = False
        self._room = math.inf if limit is None else limit
        self._steps = steps
        self._line: deque[int] = deque()
        self._held: dict[Pool, deque[int]] = {}
        """Who was first in line when there was no room in their pool."""
        self._taken: dict[Pool, int] = {}
        self._since: dict[int, float] = {}

    def put(self, units: Sequence[int], at_ms: float) -> None:
        """Put some at the end of the line."""
        if not units:
            return
        self._line.extend(units)
        self.has_news = True
        if self.is_limited:
            for unit in units:
                if self._is_of_all or not _waits_for_nothing(self._steps[unit]):
                    self._since[unit] = at_ms

    def queued_ms(self, unit: int, at_ms: float) -> float:
        """How long one has stood in line, or waits since it was let in."""
        return at_ms - self._since.get(unit, at_ms)

    def take_all(self) -> list[int]:
        """Return all who stand in line, if none of them has to wait."""
        taken = list(self._line)
        self._line.clear()
        return taken

    def take(self) -> Iterator[int]:
        """Yield who may go in now. The caller says `enter` before it asks for the next."""
        for pool, held in self._held.items():
            while held and self._has_room(pool):
                yield held.popleft()
        while self._line and self._room > 0:
            unit = self._line.popleft()
            pool_of_unit = self._steps[unit].pool
            if pool_of_unit is None or self._has_room(pool_of_unit):
                yield unit
            else:
                self._held.setdefault(pool_of_unit, deque()).append(unit)

    def _has_room(self, pool: Pool) -> bool:
        return self._room > 0 and self._taken.get(pool, 0) < pool.size

    def enter(self, unit: int) -> None:
        """Count one as in, which need not have stood in line."""
        self._count(unit, 1)

    def leave(self, unit: int) -> None:
        """Count one as out."""
        self._count(unit, -1)
        self.has_news = True

    def moved(self, unit: int, before: int, now: int) -> None:
        """Count one as in or out whose phase has changed."""
        was_in, is_in = before in IN_FLIGHT, now in IN_FLIGHT
        if was_in and not is_in:
            self.leave(unit)
        elif is_in and not was_in:
            self.enter(unit)  # it did not stand in line: a stored run is being replayed

    def begin(self, unit: int) -> None:
        """One need no longer wait."""
        self._since.pop(unit, None)

    def _count(self, unit: int, change: int) -> None:
        self._room -= change
        pool = self._steps[unit].pool
        if pool is not None:
            self._taken[pool] = self._taken.get(pool, 0) + change


def _waits_for_nothing(step: WorkflowStep) -> bool:
    """Whether a step needs no slot of a pool, and no thread or process."""
    return step.pool is None and step.runs_in == "loop"
