"""The line of a pool whose attempts have keys.

It goes by priority; then keys take turns, then the runs of a key; then by age.

Rules:

1. A turn is a place: a number that rises. A key takes the place of its first ticket as it joins,
   and a new one, behind all others, when one of its tickets has been granted. So no key has a
   second turn while another one that is in line has had none. The runs of a key do the same.
2. A ticket with an earlier age has its place back, and so do its run and its key.
3. A key at its limit keeps its place, and is passed over until a slot of it is free.
4. A key without ticket and slot is forgotten.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import heapify, heappop, heappush, nlargest
from itertools import count
from typing import TYPE_CHECKING, Generic, TypeVar

from asyncflow._core.pools.pool import PoolKeyStats

if TYPE_CHECKING:
    from asyncflow._core.pools.pool import PoolTicket

_MOST_SHOWN = 100
"""How many keys the state of a pool lists."""


class _Member:
    """What takes turns: a run of a key, or a key of a priority."""

    __slots__ = ("entry", "name", "place")

    def __init__(self, name: object) -> None:
        self.name = name
        self.place = sys.maxsize
        self.entry: object = None
        """What stands for it in the heap; ``None`` if it is passed over."""


M = TypeVar("M", bound=_Member)


class _Turns(Generic[M]):
    """Members by name, of which the one with the lowest place is next."""

    __slots__ = ("_heap", "_numbers", "by_name")

    def __init__(self) -> None:
        self.by_name: dict[object, M] = {}
        self._heap: list[tuple[int, int, M]] = []
        self._numbers = count()

    def put(self, member: M, place: int) -> None:
        """Let a member wait at a place."""
        self.by_name[member.name] = member
        member.place = place
        member.entry = entry = place, next(self._numbers), member
        heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self.by_name) + 16:  # those that left are still there
            self._heap = [each for each in self._heap if each[-1].entry is each]
            heapify(self._heap)

    def remove(self, member: M) -> None:
        """Forget a member."""
        del self.by_name[member.name]
        member.entry = None

    def next(self) -> M | None:
        """Return who is next, unless all are passed over."""
        heap = self._heap
        while heap and heap[0][-1].entry is not heap[0]:
            heappop(heap)
        return heap[0][-1] if heap else None


class _RunOfKey(_Member):
    """The tickets of a run that have a key and a priority, by age."""

    __slots__ = ("tickets",)

    def __init__(self, name: object) -> None:
        super().__init__(name)
        self.tickets: list[tuple[int, PoolTicket]] = []


class _Key(_Member):
    """The runs with tickets that have a key, of one priority."""

    __slots__ = ("runs",)

    def __init__(self, name: object) -> None:
        super().__init__(name)
        self.runs = _Turns[_RunOfKey]()


class _Count:
    """How much there is of a key, of all priorities."""

    __slots__ = ("in_use", "shown", "waiting")

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self.in_use = self.waiting = 0


class KeyedLine:
    """Who waits for a pool. ``per_key`` limits the slots of each key but ``None``.

    ``ages`` gives the places: it is that of the tickets.
    """

    def __init__(self, per_key: int | None, ages: Iterator[int]) -> None:
        self._per_key = sys.maxsize if per_key is None else per_key
        self._ages = ages
        self._levels: dict[int, _Turns[_Key]] = {}
        """Those of a priority, from the highest on."""
        self._counts: dict[str, _Count] = {}
        self._aside: dict[PoolTicket, None] = {}
        """The tickets that can't take slots now."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[PoolTicket]:
        for level in self._levels.values():
            for key in level.by_name.values():
                for run in key.runs.by_name.values():
                    for _, ticket in run.tickets:
                        yield ticket
        yield from self._aside

    def highest_priority(self) -> int:
        """Return the highest priority in a line that is not empty."""
        return max((*self._levels, *(ticket.priority for ticket in self._aside)))

    def add(self, ticket: PoolTicket) -> None:
        """Let a ticket join."""
        self._count += 1
        if ticket.key is not None:
            self._count_of(ticket).waiting += 1
        self._insert(ticket)

    def _insert(self, ticket: PoolTicket) -> None:
        level = self._levels.get(ticket.priority)
        if level is None:
            self._levels[ticket.priority] = level = _Turns()
            self._levels = dict(sorted(self._levels.items(), reverse=True))
        key = level.by_name.get(ticket.key) or _Key(ticket.key)
        run = key.runs.by_name.get(ticket.run) or _RunOfKey(ticket.run)
        insort(run.tickets, (ticket.age, ticket))
        if ticket.age < run.place:
            key.runs.put(run, ticket.age)
        if ticket.age < key.place or key.entry is None:  # another ticket is next, which may fit
            level.put(key, min(ticket.age, key.place))

    def remove(self, ticket: PoolTicket) -> None:
        """Let a ticket leave that has no slots."""
        self._count -= 1
        if ticket.key is not None:
            self._count_of(ticket).waiting -= 1
            self._forget(ticket.key)
        if ticket in self._aside:
            del self._aside[ticket]
        else:
            self._extract(ticket)

    def _extract(self, ticket: PoolTicket, *, has_turn: bool = False) -> None:
        level = self._levels[ticket.priority]
        key = level.by_name[ticket.key]
        run = key.runs.by_name[ticket.run]
        del run.tickets[bisect_left(run.tickets, (ticket.age,))]
        if not run.tickets:
            key.runs.remove(run)
        elif has_turn:
            key.runs.put(run, next(self._ages))
        if not key.runs.by_name:
            level.remove(key)
            if not level.by_name:
                del self._levels[ticket.priority]
        elif has_turn or key.entry is None:
            level.put(key, next(self._ages) if has_turn else key.place)

    def next(self) -> PoolTicket | None:
        """Return the ticket that is next, of those whose key is below its limit."""
        for level in self._levels.values():
            while (key := level.next()) is not None:
                run = key.runs.next()
                assert run is not None
                ticket = run.tickets[0][1]
                if self.has_room(ticket):
                    return ticket
                key.entry = None
        return None

    def has_room(self, ticket: PoolTicket) -> bool:
        """Whether the key of a ticket is below its limit."""
        if ticket.key is None:
            return True
        in_use = self._counts[ticket.key].in_use
        return not in_use or in_use + ticket.slots <= self._per_key

    def grant(self, ticket: PoolTicket) -> None:
        """Let the ticket that is next have its slots."""
        self._count -= 1
        self._extract(ticket, has_turn=True)
        if ticket.key is not None:
            its = self._count_of(ticket)
            its.waiting -= 1
            its.in_use += ticket.slots

    def take_back(self, ticket: PoolTicket) -> None:
        """Take back the slots of a ticket."""
        if ticket.key is not None:
            self._counts[ticket.key].in_use -= ticket.slots
            self._forget(ticket.key)
            self._pass_over_no_longer(ticket.key)

    def take_back_all(self) -> None:
        """Take back all slots."""
        for key, its in list(self._counts.items()):
            its.in_use = 0
            self._forget(key)
            self._pass_over_no_longer(key)

    def set_aside(self, ticket: PoolTicket) -> None:
        """Let a ticket that can't take slots now keep its age, and nothing else."""
        self._extract(ticket)
        self._aside[ticket] = None

    def put_back(self, ticket: PoolTicket) -> None:
        """Let a ticket have its place again, if it was set aside."""
        if ticket in self._aside:
            del self._aside[ticket]
            self._insert(ticket)

    def _pass_over_no_longer(self, name: str) -> None:
        for level in self._levels.values():
            key = level.by_name.get(name)
            if key is not None and key.entry is None:
                level.put(key, key.place)

    # How much there is of each key.

    def _count_of(self, ticket: PoolTicket) -> _Count:
        assert ticket.key is not None
        found = self._counts.get(ticket.key)
        if found is None:
            found = self._counts[ticket.key] = _Count(ticket.shown_key)
        return found

    def _forget(self, key: str) -> None:
        its = self._counts[key]
        if not its.in_use and not its.waiting:
            del self._counts[key]

    def stats(self) -> tuple[PoolKeyStats, ...]:
        """Return the state of those of which there is most."""
        busiest = nlargest(
            _MOST_SHOWN, self._counts.values(), key=lambda its: its.waiting + its.in_use
        )
        return tuple(PoolKeyStats(its.shown, its.in_use, its.waiting) for its in busiest)
