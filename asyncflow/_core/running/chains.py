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
from collections.abc import Mapping
from typing import Any, NamedTuple

from asyncflow._core.history.results import StepStatus
from asyncflow._core.pipeline.graph import Plan
from asyncflow._core.running.scheduler import Readiness, most_waiting
from asyncflow._core.running.step_runs import (
    NodeEnd,
    Phase,
    StepRuns,
    is_restored,
    output_of,
    status_of,
)
from asyncflow.events import StepSkipped


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

    def __init__(
        self, plan: Plan, runs: StepRuns, readiness: Readiness, max_concurrency: int | None
    ) -> None:
        self._chained = plan.chained
        self._runs = runs
        self._readiness = readiness
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

    def end_item(self, node: int, at_ms: float) -> None:
        """Queue an item that has ended for the steps that are mapped over its step."""
        source, number = self._runs.owner_of(node), self._runs.item_of(node)
        if source in self._chained:
            assert number is not None
            self._put(source, number, self._runs.ends[node], at_ms)

    def end(self, step: int, at_ms: float) -> None:
        """Note that a step has ended. One that is reused has all its items."""
        end = self._runs.ends[step]
        if step in self._chained and is_restored(end):
            for number, item in sorted((end.items or {}).items()):
                self._put(step, number, item, at_ms)
        for later in self._chained.get(step, ()):
            self.queues[later].complete()
        if step in self.queues:
            self.queues[step].close()

    def _put(self, source: int, number: int, end: NodeEnd | None, at_ms: float) -> None:
        status, problem = status_of(end), ""
        if status is StepStatus.SKIPPED:
            assert isinstance(end, StepSkipped) or is_restored(end)
            problem = end.reason or ""
        elif status is not StepStatus.SUCCESS:
            word = "failed" if status is StepStatus.FAILED else "was cancelled"
            problem = f"item {number} of step {self._runs.steps[source].name!r} {word}"
        item = ChainedItem(number, output_of(end), problem)
        for later in self._chained[source]:
            self.queues[later].put(item)
        if not problem:
            self._readiness.flow(source, at_ms)

    def holds_back(self, source: int) -> bool:
        """Whether a mapped step must not start another item now."""
        runs = self._runs
        for later in self._chained.get(source, ()):
            most = most_waiting(runs.steps[later], self._max_concurrency)
            if self.queues[later].waiting > most and runs.phases[later] is Phase.MAPPING:
                return True
        return False
