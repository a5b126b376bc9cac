"""The items between two mapped steps of a chain, of which the later one is mapped over the earlier.

Rules:

1. An item keeps the number that it has in the earlier step. The later step runs those that have
   succeeded there, and skips any other.
2. An item is queued for the later step when it has ended in the earlier one. What is left when the
   earlier step ends is taken in the order of the numbers.
3. While too many items wait for a later step that has begun, its source starts no further item. One
   that has not begun may need the end of its source, so it does not hold the source back; nor does
   one that has ended. A step that has begun can always go on: it waits for slots, which running
   attempts free, and for later steps, of which the last one waits for none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from asyncflow._core.graph import Plan
from asyncflow._core.scheduler import most_waiting
from asyncflow._core.step_runs import Phase


class ChainedItem(NamedTuple):
    """An item that has ended in the earlier step."""

    number: int
    output: Any
    problem: str = ""
    """Why the later step skips it; empty if it has succeeded."""


class ItemQueue:
    """The items that wait for one later step.

    Attributes:
        source: The earlier step.
        count: How many items there will be, as far as that is known.
        is_complete: Whether the earlier step has ended, so that no more items come.
    """

    def __init__(self, source: int) -> None:
        self.source = source
        self.count: int | None = None
        self.is_complete = False
        self._waiting: deque[ChainedItem] = deque()
        self._put = 0
        self._is_closed = False

    @property
    def waiting(self) -> int:
        """How many items wait."""
        return len(self._waiting)

    def put(self, item: ChainedItem) -> None:
        """Let an item wait for the later step."""
        self._put += 1
        if not self._is_closed:
            self._waiting.append(item)

    def take(self) -> ChainedItem | None:
        """Return the next item, if one waits."""
        return self._waiting.popleft() if self._waiting else None

    def complete(self) -> None:
        """Note that the earlier step has ended."""
        self.is_complete, self.count = True, self._put
        self._waiting = deque(sorted(self._waiting, key=lambda item: item.number))

    def close(self) -> None:
        """Drop what waits, and what comes: the later step has ended."""
        self._is_closed = True
        self._waiting.clear()


class Chains:
    """The chains of one run. ``queues`` has one for each step that is mapped over a mapped step."""

    def __init__(self, plan: Plan, phases: Sequence[Phase], max_concurrency: int | None) -> None:
        self._chained = plan.chained
        self._phases = phases
        self._steps = plan.steps
        self._max_concurrency = max_concurrency
        self.queues: Mapping[int, ItemQueue] = {
            later: ItemQueue(source)
            for source, all_later in plan.chained.items()
            for later in all_later
        }

    def begin(self, source: int, count: int | None) -> None:
        """Note that a mapped step begins, and how many items it will have, if it knows."""
        for later in self._chained.get(source, ()):
            self.queues[later].count = count

    def end_item(self, source: int, number: int, output: Any, problem: str) -> None:
        """Note that an item of a mapped step has ended, as `ChainedItem` says."""
        item = ChainedItem(number, output, problem)
        for later in self._chained[source]:
            self.queues[later].put(item)

    def end(self, step: int) -> None:
        """Note that a step has ended."""
        for later in self._chained.get(step, ()):
            self.queues[later].complete()
        if step in self.queues:
            self.queues[step].close()

    def holds_back(self, source: int) -> bool:
        """Whether a mapped step must not start another item now."""
        for later in self._chained.get(source, ()):
            most = most_waiting(self._steps[later], self._max_concurrency)
            if self.queues[later].waiting > most and self._phases[later] is Phase.MAPPING:
                return True
        return False
