"""When the attempts of one clock may start in a pool: after its pause, and spread evenly.

Of a pool that processes share, each has a part of the rates. So its starts are spread by a pace,
which goes as fast as that part: what was owed for the latest start when the part changes is owed
still, and is paid off faster or slower. Spread by time instead, a part that comes and goes would
allow what it did not while it was gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from asyncflow._core.pool import Clock, PoolTicket

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
