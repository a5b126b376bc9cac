"""When attempts may start in a pool: after its pause, and spread evenly, by the clock of each.

Of a pool that processes share, each has a part of the rates. So its starts are spread by a pace,
which goes as fast as that part: what was owed for the latest start when the part changes is owed
still, and is paid off faster or slower. Spread by time instead, a part that comes and goes would
allow what it did not while it was gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from asyncflow._core.pools.pool import Clock, PoolTicket

_MINUTE_S = 60.0
"""How long the tokens of an attempt count at most: it may take more than a minute gives now."""


class CommonPause(NamedTuple):
    """A pause that counts by all clocks."""

    now_s: Callable[[], float]
    """The clock by which it was made."""
    until_s: float
    """Until when by that clock it counts for a clock that is new to the pool."""
    pause_s: float
    """How long it is by any clock."""


class PoolPause(NamedTuple):
    """The rest of a pause."""

    left_ms: float
    by: str
    """The step that has caused it, if one has."""


class Gates:
    """The gates of a pool, by clock, with its rates and the pause that counts by all clocks.

    Whoever calls it has locked the pool.

    Attributes:
        per_second: How many attempts may start in a second.
        per_minute: The same for a minute.
        tokens_per_minute: How many tokens those may take that start in a minute.
        most_tokens: The largest ``tokens_per_minute`` that there has been, if any.
        are_rated: Whether starts, or their tokens, are spread.
        may_hold: Whether an attempt may have to wait although there are slots.
    """

    __slots__ = (
        *("_by_clock", "_common_pause", "_interval_s", "_part", "_slowest", "_token_s"),
        *("are_rated", "may_hold", "most_tokens", "per_minute", "per_second"),
        *("tokens_per_minute",),
    )

    def __init__(
        self,
        per_second: float | None,
        per_minute: float | None,
        tokens_per_minute: float | None,
    ) -> None:
        self.most_tokens: float | None = None
        self._by_clock: WeakKeyDictionary[Any, Gate] = WeakKeyDictionary()
        self._common_pause: CommonPause | None = None
        """The latest pause that counts by all clocks."""
        self._slowest = 0.0, 0.0
        """How long a start takes, and a token, as other processes say that share the pool."""
        self._part: tuple[Clock, float] | None = None
        """The part of the rates that this process has of a shared pool, and by which clock."""
        self.set_rates(per_second, per_minute, tokens_per_minute)

    def set_rates(
        self,
        per_second: float | None,
        per_minute: float | None,
        tokens_per_minute: float | None,
    ) -> None:
        """Let other rates count."""
        self.per_second, self.per_minute = per_second, per_minute
        self.tokens_per_minute = tokens_per_minute
        if tokens_per_minute is not None:
            self.most_tokens = max(tokens_per_minute, self.most_tokens or 0.0)
        self._use_rates()

    def set_slowest(self, interval_s: float, token_s: float) -> None:
        """Let no start take less time than that, and no token: other processes say so."""
        self._slowest = interval_s, token_s
        self._use_rates()

    def _use_rates(self) -> None:
        interval_s, token_s = self._slowest
        if self.per_minute is not None:
            interval_s = max(interval_s, 60 / self.per_minute)
        elif self.per_second is not None:
            interval_s = max(interval_s, 1 / self.per_second)
        if self.tokens_per_minute is not None:
            token_s = max(token_s, 60 / self.tokens_per_minute)
        self._interval_s, self._token_s = interval_s, token_s
        self.are_rated = bool(interval_s or token_s)
        for gate in list(self._by_clock.values()):
            gate.set_rates(interval_s, token_s)
        self.may_hold = self.are_rated or bool(self._by_clock or self._common_pause)

    def begin_anew(self) -> None:
        """Forget all pauses and starts."""
        self._by_clock.clear()
        self._common_pause = None
        self.may_hold = self.are_rated

    # The starts of a clock.

    def look(self, ticket: PoolTicket) -> float | None:
        """Return when a ticket may have its slots; ``None`` for now."""
        clock = ticket.clock
        assert clock is not None
        gate = self._refresh(clock)
        if gate is None:
            self.may_hold = self.are_rated or bool(self._by_clock)
            return None
        opens_s = gate.opens_s(ticket)
        if opens_s > gate.now_s(clock):
            return opens_s
        if not self.are_rated and self._common_pause is None:
            del self._by_clock[clock.key]  # its pause is over: nothing is left to be judged
            self.may_hold = bool(self._by_clock)
        return None

    def take(self, ticket: PoolTicket) -> None:
        """Count the start of a ticket."""
        assert ticket.clock is not None
        self._open(ticket.clock).take(ticket)

    def has_one_of(self, ticket: PoolTicket) -> bool:
        """Whether the start of a ticket may have been counted."""
        return ticket.clock is not None and ticket.clock.key in self._by_clock

    def give_back(self, ticket: PoolTicket) -> None:
        """Count the start of a ticket no longer."""
        gate = None if ticket.clock is None else self._by_clock.get(ticket.clock.key)
        if gate is not None:
            gate.give_back(ticket)

    def vouch(self, clock: Clock, at_s: float) -> None:
        """Note that a time has come for which a timer was set."""
        gate = self._by_clock.get(clock.key)
        if gate is not None:
            gate.vouched_s = max(gate.vouched_s, at_s)

    def _open(self, clock: Clock) -> Gate:
        """Return the gate of a clock, which has one from now on."""
        gate = self._by_clock.get(clock.key)
        if gate is None:
            gate = self._by_clock[clock.key] = Gate(self._interval_s, self._token_s)
            if self._part is not None and self._part[0].key is clock.key:
                gate.set_part(self._part[1], clock.now_s())
        return gate

    def _refresh(self, clock: Clock) -> Gate | None:
        """Return the gate of a clock, if it has one, after the pause that counts by all clocks."""
        common = self._common_pause
        if common is not None and common.until_s <= common.now_s():
            common = self._common_pause = None
        gate = self._by_clock.get(clock.key)
        if common is not None and (gate is None or gate.common_pause is not common):
            gate = self._open(clock)
            gate.common_pause = common
            gate.pause(clock.now_s() + common.pause_s, "")
        return gate

    # Pauses.

    def pause(self, clock: Clock, until_s: float, by: str) -> bool:
        """Let nothing of a clock start before then; return whether something could have."""
        has_begun = self._open(clock).pause(until_s, by)
        self.may_hold = self.may_hold or has_begun
        return has_begun

    def pause_all(self, pause: CommonPause, clocks: Sequence[Clock]) -> None:
        """Let nothing start before then, by whatever clock; ``clocks`` are those of the caller, who
        pauses its own, and of those who wait.
        """
        if self._common_pause is not None and self._common_pause.until_s >= pause.until_s:
            return
        self._common_pause, self.may_hold = pause, True
        own, *others = clocks
        self._open(own).common_pause = pause
        for clock in others:
            self._refresh(clock)

    def pause_of(self, clock: Clock) -> PoolPause | None:
        """Return what is left of the pause of a clock, if there is one."""
        gate = self._refresh(clock)
        if gate is None or gate.paused_until_s <= gate.now_s(clock):
            return None
        return PoolPause((gate.paused_until_s - clock.now_s()) * 1000, gate.paused_by)

    # The part of a process.

    def set_part(self, clock: Clock, part: float, now_s: float) -> None:
        """Let the starts of a clock be spread by a part of the rates, from 0 to 1."""
        self._part = clock, part
        gate = self._by_clock.get(clock.key)
        if gate is not None:
            gate.set_part(part, now_s)

    def owes(self, clock: Clock) -> bool:
        """Whether another start of a clock would have to wait for a rate."""
        gate = self._by_clock.get(clock.key)
        return gate is not None and gate.owes(clock.now_s())

    def leave_share(self) -> None:
        """Forget other processes: the pool is an ordinary one again."""
        self._part = None
        self.set_slowest(0.0, 0.0)


class Gate:
    """When the attempts of one clock may start: after the pause, and spread evenly."""

    __slots__ = (
        *("_paced_s", "_part", "_since_s", "common_pause", "paused_by", "paused_until_s"),
        *("starts", "tokens", "vouched_s"),
    )

    def __init__(self, interval_s: float, token_s: float) -> None:
        self.paused_until_s = self.vouched_s = -math.inf
        self.paused_by = ""
        self.common_pause: CommonPause | None = None
        """The latest of these that counts in ``paused_until_s``."""
        self.starts, self.tokens = _Rate(interval_s), _Rate(token_s, _MINUTE_S)
        self._part, self._since_s, self._paced_s = 1.0, 0.0, 0.0
        """How fast the pace goes, since when, and where it was then: at first it is the clock."""

    def set_rates(self, interval_s: float, token_s: float) -> None:
        self.starts.set(interval_s)
        self.tokens.set(token_s)

    def pause(self, until_s: float, by: str) -> bool:
        """Let nothing start before then; return whether something could have."""
        if until_s <= self.paused_until_s:
            return False
        self.paused_until_s, self.paused_by = until_s, by
        return True

    def now_s(self, clock: Clock) -> float:
        """The present time, which is not before one whose timer has fired."""
        return max(clock.now_s(), self.vouched_s)

    def set_part(self, part: float, now_s: float) -> None:
        """Go on with a part of the rates, from 0 to 1."""
        if part != self._part:
            self._paced_s, self._since_s = self._pace_at(now_s), max(now_s, self._since_s)
            self._part = part

    def _pace_at(self, now_s: float) -> float:
        return self._paced_s + max(now_s - self._since_s, 0.0) * self._part

    def _time_of(self, paced_s: float) -> float:
        ahead_s = paced_s - self._paced_s
        if not self._part:
            return math.inf if ahead_s > 0 else -math.inf
        return self._since_s + ahead_s / self._part

    def owes(self, now_s: float) -> bool:
        """Whether another start would have to wait for a rate."""
        return max(self.starts.opens_s, self.tokens.opens_s) > self._pace_at(now_s)

    def opens_s(self, ticket: PoolTicket) -> float:
        opens_s = self.starts.opens_s
        if ticket.tokens:
            opens_s = max(opens_s, self.tokens.opens_s)
        return max(self.paused_until_s, self._time_of(opens_s))

    def take(self, ticket: PoolTicket) -> None:
        assert ticket.clock is not None
        ticket.started_s = self._pace_at(self.now_s(ticket.clock))
        ticket.before = self.starts.take(ticket, 1), self.tokens.take(ticket, ticket.tokens)

    def give_back(self, ticket: PoolTicket) -> None:
        starts, tokens = ticket.before
        self.starts.give_back(ticket, starts)
        self.tokens.give_back(ticket, tokens)


class CountedStart(NamedTuple):
    """A start that counts against a rate."""

    age: int = -1
    """That of its ticket."""
    at_s: float = -math.inf
    units: float = 0.0


NO_START = CountedStart()


class _Rate:
    """Spreads evenly what starts: the next may start when what the latest took has passed."""

    __slots__ = ("_latest", "_longest_s", "_unit_s", "opens_s")

    def __init__(self, unit_s: float, longest_s: float = math.inf) -> None:
        self._unit_s = unit_s
        self._longest_s = longest_s
        self._count(NO_START)

    def _count(self, latest: CountedStart) -> None:
        self._latest = latest
        self.opens_s = latest.at_s + min(latest.units * self._unit_s, self._longest_s)

    def set(self, unit_s: float) -> None:
        """Let a unit take another time, after the latest start too."""
        before_s, self._unit_s = self._unit_s, unit_s
        self._count(self._latest if before_s and unit_s else NO_START)

    def take(self, ticket: PoolTicket, units: float) -> CountedStart:
        """Count a start; return the one that counted until then, for `give_back`."""
        before = self._latest
        if self._unit_s and units:
            self._count(CountedStart(ticket.age, ticket.started_s, units))
        return before

    def give_back(self, ticket: PoolTicket, before: CountedStart) -> None:
        # One that started later has waited for these units already.
        if self._latest.age == ticket.age:
            self._count(before)
