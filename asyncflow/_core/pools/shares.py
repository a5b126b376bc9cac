"""What a process has of a pool that processes share, and when it must ask their database for more.

Rules:

1. The slots that are granted to live processes never add up to more than the size. A process raises
   its own number by what the others leave, while no other can change one; only it lowers it.
2. A process starts attempts while they take no more than what is granted to it and than its fair
   part. It holds on to what it runs and to its fair part, and leaves the rest. So one whose line is
   never empty still gives slots back: at the end of an attempt, instead of starting the next.
3. Parts are fair by demand: a process has what it demands, or as much as any that has less than it
   demands. What no process demands is divided equally. Odd slots take turns.
4. It starts nothing after its lease has ended by its own clock, which started before that of the
   database. Nothing of this is on the way of an attempt, but a look at that clock.
5. A process that neither runs an attempt nor lets one wait has no row, once it owes nothing for
   its latest start.
6. The collector may end a run at any line of any thread. So the end of a run locks nothing; what
   follows from it is the journal's to do.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ref

if TYPE_CHECKING:
    from asyncflow._core.pools.pool import Clock, Pool, PoolTicket

TICK_S = 0.1
"""How often a process asks for its share while attempts wait."""
_SPARE_S = 1.0
"""How often it looks whether another process has come while it has more than it runs."""
_LATE_S = 1.0
"""How long a database may take to answer before people hear that it does not."""
_EQUAL_S = 0.001
"""By how little the ends of two pauses differ that are the same one."""
_TURN_S = 0.5
"""How long a process has an odd slot."""


class PoolNumbers(NamedTuple):
    """The numbers of a pool, as a process says them; the others may say otherwise."""

    size: int
    per_minute: float | None
    """How many attempts may start in a minute."""
    tokens_per_minute: float | None


class ShareRow(NamedTuple):
    """What the database knows of a process that uses a pool."""

    process: str
    demand: int
    """How many slots it could fill now."""
    granted: int
    least: int
    """How many slots the next attempt in its line needs; 0 if none waits."""
    since: float
    """When that became the next, by the clock of the database."""
    numbers: PoolNumbers


def fair_parts(size: int, rows: Collection[ShareRow], now: float) -> dict[str, int]:
    """Return how many slots each process may have; they add up to no more than ``size``.

    First each gets what its next attempt needs: a process that gets less than that gets none.
    Processes take turns to be the first. One whose next attempt has waited for longer than a round
    of that goes before all others until it is served: its turn may end before slots are free, or
    before there are as many as it needs. ``now`` is by the clock of the database.
    """
    in_order = sorted(rows)
    first = int(now / _TURN_S) % len(in_order)
    in_order = in_order[first:] + in_order[:first]
    parts, left = dict.fromkeys((row.process for row in rows), 0), size
    late = now - (len(in_order) + 1) * _TURN_S
    for row in sorted(in_order, key=lambda row: min(row.since, late)):
        least = min(row.least, size)
        if least <= left:
            parts[row.process] = least
            left -= least
        else:
            in_order.remove(row)
    demands = {row.process: min(row.demand, size) for row in in_order}
    level = _level(size, demands, parts)
    for process, demand in demands.items():
        parts[process] = max(parts[process], min(demand, level))
    left = size - sum(parts.values())
    for process, demand in demands.items():  # these are more than there are slots left
        if left and parts[process] == level < demand:
            parts[process] += 1
            left -= 1
    if in_order:
        each, odd = divmod(left, len(in_order))
        for at, process in enumerate(demands):
            parts[process] += each + (at < odd)
    return parts


def _level(size: int, demands: Mapping[str, int], floors: Mapping[str, int]) -> int:
    """Return up to how many slots each demand can be met."""
    low, high = 0, max(demands.values(), default=0)
    while low < high:
        level = (low + high + 1) // 2
        if sum(max(floors[each], min(demand, level)) for each, demand in demands.items()) <= size:
            low = level
        else:
            high = level - 1
    return low


class Demand(NamedTuple):
    """What the attempts of this process need of a pool."""

    in_use: int
    waiting: int
    """How many slots those that wait need, as far as the pool has so many."""
    head: PoolTicket | None
    """The next one."""
    owes: bool
    """Whether another start would have to wait for a rate. Meanwhile the process needs its part of
    that, though it may need no slot: else the next one would wait as long again."""

    @property
    def is_any(self) -> bool:
        """Whether the process needs anything."""
        return bool(self.in_use or self.waiting or self.owes)


_NO_DEMAND = Demand(0, 0, None, owes=False)


class Negotiated(NamedTuple):
    """What a process is about to have."""

    row: ShareRow
    limit: int
    """How many slots attempts may take here: what is granted, or its fair part if that is less."""
    size: int
    """That of the pool: the smallest that a process says."""
    in_use: int
    has_others: bool
    """Whether other processes have a row."""


class PoolShare:
    """What this process has of a pool that others use too.

    A journal moves it: it calls `negotiate` while it has locked the pool in its database, and then
    `settle`, or `fail`. ``wake`` lets it see `due_s` soon, and ``clock`` is the one that real event
    loops share. ``journal`` and ``database`` say whose it is: two journals may have one database.
    """

    def __init__(
        self,
        pool: Pool,
        clock: Clock,
        journal: ref[Any],
        database: object,
        wake: Callable[[], object],
    ) -> None:
        self.pool = pool
        self.journal = journal
        self.database = database
        self._clock = clock
        self._wake = wake
        self._entered = 0
        self._ended = deque[None]()
        """How many runs have begun to use it, and for each that has ended since an entry."""
        self.row: ShareRow | None = None
        """What the database has, as far as this process knows."""
        self.limit = 0
        """How many slots attempts may take here while the lease holds."""
        self.size = pool._size
        """How many the pool has: the smallest number that a process says."""
        self._rate_part = 0.0
        """Which part of the rates that is."""
        self.interval_s = self.token_s = 0.0
        """How long a start takes, and a token, as the processes say that allow the fewest."""
        self.until_s = -math.inf
        """When the lease ends."""
        self.failing_since_s: float | None = None
        """When the first of the latest negotiations began, if they have failed."""
        self.is_closed = False
        """Whether its journal is closed."""
        self._tried_s = -math.inf
        self._told_in_use = 0
        self._age = self._looks = 0
        """The age of a ticket that would have been made at that time, and how many since."""
        self._has_others = self._is_asking = self._is_trying = False
        self._head: PoolTicket | None = None
        self._since: float | None = None
        """When that became the next, by the clock of the database."""
        self.paused_until_s = -math.inf
        """Until when the pool is paused, as far as this has told that or was told."""
        self.paused_by = ""
        self.must_tell_pause = False

    # The pool calls these.

    def check_lease(self) -> None:
        """Let nothing start once the lease has ended. The pool is locked."""
        if self.limit and self._clock.now_s() >= self.until_s:
            self._limit_to(0, 0.0, self.until_s)

    def is_for(self, clock: Clock | None) -> bool:
        """Whether who goes by this clock needs the share."""
        return clock is not None and clock.key is self._clock.key

    def owes(self) -> bool:
        """Whether another start would have to wait for a rate. The pool is locked."""
        return self.pool._gates.owes(self._clock)

    def _limit_to(self, limit: int, rate_part: float, at_s: float) -> None:
        """Let attempts take so many slots from a time on. The pool is locked."""
        self.limit, self._rate_part = limit, rate_part
        if self.pool._share is self:
            self.pool._limit = min(limit, self.pool._size)
            self.pool._gates.set_part(self._clock, rate_part, at_s)

    def ask(self) -> None:
        """Let the journal learn soon that an attempt waits."""
        if not self._is_asking:
            self._is_asking = True
            self._wake()

    def note_pause(self, clock: Clock, until_s: float, by: str) -> None:
        """Tell the other processes of a pause that has begun here."""
        if clock.key is not self._clock.key:
            return
        with self.pool._lock:
            if until_s <= self.paused_until_s + _EQUAL_S:
                return
            self.paused_until_s, self.paused_by, self.must_tell_pause = until_s, by, True
        self._wake()

    # Runs.

    @property
    def is_short(self) -> bool:
        """Whether attempts wait here although the pool might have slots for them elsewhere."""
        pool = self.pool
        with pool._lock:
            self.check_lease()
            demand = self.demand()
            return (
                bool(demand.waiting)
                and self.limit < min(self.size, pool._size)
                and (demand.head is None or demand.in_use + demand.head.slots > self.limit)
            )

    def enter(self) -> None:
        """Let a run use the pool by this share."""
        pool = self.pool
        with pool._lock:
            self._entered += 1
            pool._share = self
            pool._gates.set_slowest(self.interval_s, self.token_s)
            self._limit_to(self.limit, self._rate_part, self.now_s())
        pause = pool._pause_of(self._clock)
        if pause is not None:  # it may be from before
            self.note_pause(self._clock, self.now_s() + pause.left_ms / 1000, pause.by)

    def leave(self) -> None:
        """Note that a run has ended."""
        self._ended.append(None)
        self._wake()

    @property
    def runs(self) -> int:
        """How many runs use it."""
        with self.pool._lock:
            while self._ended:
                self._ended.popleft()
                self._entered -= 1
            return self._entered

    def let_go(self) -> None:
        """Let the pool be an ordinary one again if nothing here uses it."""
        pool = self.pool
        with pool._lock:
            if not (self.runs or pool._in_use or self.owes()) and pool._share is self:
                self._detach()

    def _detach(self) -> None:
        self.pool._share, self.pool._limit = None, self.pool._size
        self.pool._gates.leave_share()

    # The journal calls the others.

    def now_s(self) -> float:
        """The present by the clock of the lease."""
        return self._clock.now_s()

    def begin(self) -> float:
        """Note that the journal is about to negotiate; return the present."""
        self._tried_s, self._is_trying = self.now_s(), True
        self._age, self._looks = next(self.pool._ages), 0
        return self._tried_s

    @property
    def away_since_s(self) -> float | None:
        """Since when the database has not answered, if it does not."""
        is_late = self._is_trying and self.now_s() - self._tried_s > _LATE_S
        return self._tried_s if is_late and self.failing_since_s is None else self.failing_since_s

    @property
    def has_news(self) -> bool:
        """Whether there is something that the database knows, or is to know."""
        demand = self.demand()
        return bool(self.row or self.must_tell_pause or demand.is_any)

    def demand(self) -> Demand:
        """Return what attempts need."""
        return self.pool._demand(self) if self.pool._share is self else _NO_DEMAND

    def listen(self) -> None:
        """Note that the journal looks at nothing from now on, unless it is asked."""
        self._is_asking = False

    def due_s(self, lease_s: float) -> float:
        """Return when to negotiate next; infinite if there is nothing to say."""
        demand, row = self.demand(), self.row
        tick_s = min(TICK_S, lease_s / 3)
        soon_s = self._tried_s + tick_s
        if self.failing_since_s is not None:
            soon_s = self._tried_s + min(max(tick_s, lease_s / 10), 1.0)
        if self.must_tell_pause:
            return -math.inf if self.failing_since_s is None else soon_s
        if not demand.is_any:
            return math.inf if row is None else soon_s
        if demand.waiting and self.now_s() < self.paused_until_s:  # nothing starts before
            return max(soon_s, min(self.paused_until_s, self._tried_s + min(_SPARE_S, lease_s / 3)))
        if row is None or demand.waiting or row.numbers != self._numbers():
            return soon_s
        if demand.in_use >= row.granted > 0:
            return soon_s if self._have_started() else self._tried_s + lease_s / 3
        if self._has_others and demand.in_use < self._told_in_use:
            return soon_s  # another may wait for what has become free
        return max(soon_s, self._tried_s + min(_SPARE_S, lease_s / 3))

    def _have_started(self) -> bool:
        """Whether attempts have started since the journal began to negotiate.

        Then more may wait: those that a run holds back are in no line. Each has taken an age.
        """
        self._looks += 1
        return next(self.pool._ages) != self._age + self._looks

    def negotiate(self, process: str, rows: Sequence[ShareRow], now: float) -> Negotiated | None:
        """Return what the process is to have; ``None`` if it needs nothing.

        ``rows`` are the live ones, and ``now`` is the present by the clock of the database. From
        now on nothing starts beyond that: what this tells the others, they may rely on.
        """
        pool = self.pool
        with pool._lock:
            pool._is_moving = True  # the collector may release slots, and no other may get them
            try:
                return self._negotiate(process, rows, now)
            finally:
                pool._is_moving = False

    def _negotiate(self, process: str, rows: Sequence[ShareRow], now: float) -> Negotiated | None:
        demand = self.demand()
        others = [row for row in rows if row.process != process]
        before = next((row.granted for row in rows if row.process == process), 0)
        if not demand.is_any:
            self._lower(0, 0.0)
            self.let_go()
            return None
        if demand.head is None:
            self._since = None if self.row is None else self.row.since  # of no meaning
        elif self._head is None or not self._head.is_waiting:
            self._since = None
        self._head = demand.head
        if self._since is None:
            self._since = now
        numbers = self._numbers()
        size = min([numbers.size, *(each.numbers.size for each in others)])
        row = ShareRow(
            process,
            demand=min(max(demand.in_use + demand.waiting, 1), size),
            granted=before,
            least=0 if demand.head is None else min(demand.head.slots, size),
            since=self._since,
            numbers=numbers,
        )
        part = fair_parts(size, [row, *others], now)[process]
        left = size - sum(each.granted for each in others)
        kept = min(demand.in_use, before)
        granted = max(kept, min(max(demand.in_use, part), left))
        limit = min(granted, part)
        self._lower(limit, limit / size)
        self._hear_rates(others)
        row = row._replace(granted=granted)
        return Negotiated(row, limit, size, demand.in_use, bool(others))

    def _numbers(self) -> PoolNumbers:
        pool = self.pool
        per_second = pool.per_second
        per_minute = pool.per_minute if per_second is None else per_second * 60
        return PoolNumbers(pool._size, per_minute, pool.tokens_per_minute)

    def _hear_rates(self, others: Sequence[ShareRow]) -> None:
        """Let the smallest rates count that the other processes say."""
        said = [row.numbers for row in others]
        rates = [60 / each.per_minute for each in said if each.per_minute]
        tokens = [60 / each.tokens_per_minute for each in said if each.tokens_per_minute]
        heard = max(rates, default=0.0), max(tokens, default=0.0)
        if heard != (self.interval_s, self.token_s):
            self.interval_s, self.token_s = heard
            self.pool._gates.set_slowest(*heard)

    def _lower(self, limit: int, rate_part: float) -> None:
        self.check_lease()
        rate_part = min(self._rate_part, rate_part)
        self._limit_to(min(self.limit, limit), rate_part, self.now_s())

    def settle(self, had: Negotiated | None, until_s: float) -> None:
        """Take what was negotiated, which the database has until then by the own clock."""
        pool = self.pool
        with pool._lock:
            self.failing_since_s = None
            self._is_asking = self._is_trying = False
            self.check_lease()
            self.row, self.until_s, limit, rate_part = None, until_s, 0, 0.0
            if had is not None:
                self.row, self._told_in_use = had.row, had.in_use
                self._has_others = had.has_others
                self.size, limit, rate_part = had.size, had.limit, had.limit / had.size
            self._limit_to(limit, rate_part, self.now_s())
        pool._settle()

    def fail(self) -> None:
        """Note that the database could not be reached: what it has is as it was, or negotiated."""
        if self.failing_since_s is None:
            self.failing_since_s = self._tried_s
        self._is_asking = self._is_trying = False

    def hear_pause(self, left_s: float, by: str, told_until_s: float | None) -> None:
        """Pause the pool if another process has. These know of a pause until ``told_until_s``."""
        until_s = self.now_s() + left_s
        with self.pool._lock:
            if told_until_s == self.paused_until_s:
                self.must_tell_pause = False
            if left_s <= 0 or until_s <= self.paused_until_s + _EQUAL_S:
                return
            self.paused_until_s = until_s
        self.pool._pause(self._clock, until_s, by)

    def close(self) -> None:
        """End the lease: its journal is closed."""
        with self.pool._lock:
            self.is_closed, self.until_s = True, -math.inf
            self._lower(0, 0.0)
            if not self.runs and self.pool._share is self:  # what runs was abandoned
                self._detach()
