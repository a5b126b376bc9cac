"""Processes that share a pool never have more slots than it has, and have them by demand."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any
from weakref import ref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow._core.pools.pool import Clock, Pool, PoolTicket
from asyncflow._core.pools.shares import Negotiated, PoolNumbers, PoolShare, ShareRow, fair_parts

NOW = 1_000.0
TURN_S = 0.5


def row(process: str, demand: int, least: int = 1, since: float = NOW) -> ShareRow:
    return ShareRow(
        process=process,
        demand=demand,
        granted=0,
        least=least,
        since=since,
        numbers=PoolNumbers(8, None, None),
    )


def parts(size: int, *rows: ShareRow, now: float = NOW) -> list[int]:
    found = fair_parts(size, rows, now)
    return [found[each.process] for each in rows]


@st.composite
def sizes_and_rows(draw: st.DrawFn) -> tuple[int, list[ShareRow]]:
    size, count = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    rows = []
    for number in range(count):
        least = draw(st.integers(0, 4))
        demand = least + draw(st.integers(0 if least else 1, 14))
        since = NOW - draw(st.sampled_from([0.0, 1.0, 5.0, 50.0]))
        rows.append(row(f"p{number}", demand, least, since))
    return size, rows


@given(sizes_and_rows(), st.integers(0, 20))
def test_parts_add_up_to_no_more_than_the_size_and_none_has_less_without_need(
    case: tuple[int, list[ShareRow]], turn: int
) -> None:
    size, rows = case
    found = fair_parts(size, rows, NOW + turn * TURN_S)
    included = [each for each in rows if found[each.process] >= min(each.least, size)]
    left_out = [each for each in rows if each not in included]

    assert 0 <= sum(found.values()) <= size
    assert min(found.values()) >= 0
    assert all(found[each.process] == 0 for each in left_out)
    if included:
        assert sum(found.values()) == size
    for one in included:
        has = found[one.process]
        for other in included:
            more = found[other.process]
            is_short = has < min(one.demand, size)
            assert not (is_short and more > max(has + 1, other.least))
            assert not (is_short and more > min(other.demand, size))


@given(sizes_and_rows())
def test_in_a_round_of_turns_each_gets_what_its_next_attempt_needs(
    case: tuple[int, list[ShareRow]],
) -> None:
    size, rows = case
    rows = [each._replace(since=NOW) for each in rows]
    rounds = [fair_parts(size, rows, NOW + turn * TURN_S) for turn in range(len(rows))]

    for each in rows:
        assert any(found[each.process] >= min(each.least, size) for found in rounds)


@given(st.integers(1, 12), st.integers(1, 6))
def test_odd_slots_take_turns(size: int, count: int) -> None:
    rows = [row(f"p{number}", 20) for number in range(count)]
    rounds = [fair_parts(size, rows, NOW + turn * TURN_S) for turn in range(count)]

    assert {sum(found[each.process] for found in rounds) for each in rows} == {size}
    assert all(max(found.values()) - min(found.values()) <= 1 for found in rounds)


def test_each_has_what_it_demands_or_as_much_as_any_and_the_rest_is_divided() -> None:
    assert parts(8, row("a", 1)) == [8]
    assert parts(8, row("a", 2), row("b", 20)) == [2, 6]
    assert parts(9, row("a", 2), row("b", 20), row("c", 4), now=NOW + TURN_S) == [2, 4, 3]
    assert parts(9, row("a", 2), row("b", 1)) == [5, 4]


def test_who_needs_more_at_once_than_its_part_is_served_when_it_has_waited_for_a_round() -> None:
    light, heavy = row("light", 8), row("heavy", 4, least=4)

    assert parts(4, light, heavy) == [0, 4]
    assert parts(4, light, heavy, now=NOW + TURN_S) == [4, 0]
    assert parts(4, light, heavy._replace(since=NOW - 10), now=NOW + TURN_S) == [0, 4]
    assert parts(4, light._replace(since=NOW - 11), heavy._replace(since=NOW - 10)) == [4, 0]


def test_a_shared_pool_needs_a_name_and_has_no_limit_by_key() -> None:
    pool = Pool(4, name="openai", shared=True)

    assert (pool.shared, Pool(4).shared) == (True, False)
    assert (pool.stats().share, Pool(4).stats().share) == (0, None)
    assert repr(pool) == "<Pool(4, name='openai', shared=True): 0 in use, 0 waiting>"
    with pytest.raises(AttributeError):
        pool.shared = False  # type: ignore[misc]
    for name in (None, ""):
        with pytest.raises(ValueError, match="a shared pool needs a name"):
            Pool(4, name=name, shared=True)
    with pytest.raises(
        ValueError, match="per_key of a shared pool holds in one process only: leave it"
    ):
        Pool(4, name="openai", shared=True, per_key=1)
    with pytest.raises(TypeError, match="shared must be True or False, not 1"):
        Pool(4, name="openai", shared=1)  # type: ignore[arg-type]


class Time:
    """The time of all processes."""

    def __init__(self) -> None:
        self.now = 100.0
        self.clock = Clock(Time, lambda: self.now)


class Spender:
    """A process that starts whatever its share of a pool allows, one attempt after the other."""

    def __init__(self, time: Time, **rates: Any) -> None:
        self.pool = Pool(8, name="openai", shared=True, **rates)
        self.time = time
        self.share = PoolShare(self.pool, time.clock, ref(self), None, lambda: None)
        self.share.enter()
        self.starts: list[tuple[float, float]] = []
        """When each attempt started, and how many units it took."""
        self.look_at_s = math.inf
        self.units = 1.0
        self.ticket: PoolTicket | None = None

    def have(self, limit: int, size: int = 8, lease_s: float = 1e9) -> None:
        """Settle what another share of the pool leaves."""
        mine = row("p", 1)._replace(granted=limit)
        self.share.settle(Negotiated(mine, limit, size, 0, True), self.time.now + lease_s)
        self.spend()

    def spend(self) -> None:
        while self.ticket is None or self.ticket.has_slots:
            if self.ticket is not None:
                self.starts.append((self.time.now, self.ticket.tokens or 1.0))
                self.ticket.release()
            tokens = self.units if self.pool.tokens_per_minute else 0.0
            self.look_at_s = math.inf
            self.ticket = self.pool._join(self.time.clock, self.call, tokens=tokens)

    def call(self, at_s: float | None) -> None:
        if at_s is not None:
            self.look_at_s = at_s


def run(time: Time, spenders: list[Spender], seconds: float) -> None:
    """Let time pass, in which each starts what it may."""
    until = time.now + seconds
    while (at_s := min(each.look_at_s for each in spenders)) <= until:
        time.now = max(time.now, at_s)
        for each in spenders:
            if each.look_at_s <= time.now:
                each.look_at_s = math.inf
                assert each.ticket is not None
                each.ticket.look(time.now)
                each.spend()
    time.now = until


changes = st.lists(
    st.tuples(
        st.lists(st.integers(0, 8), min_size=3, max_size=3),
        st.floats(0.01, 4.0),
        st.sampled_from([1.0, 2.0, 5.0]),
    ),
    min_size=1,
    max_size=25,
)


@pytest.mark.parametrize(
    ("rates", "per_s"),
    [({"per_second": 2.0}, 2.0), ({"per_minute": 60.0}, 1.0), ({"tokens_per_minute": 120.0}, 2.0)],
)
@given(changes)
def test_in_any_time_all_processes_start_what_the_rate_allows_and_one_each(
    rates: dict[str, float], per_s: float, moves: list[tuple[list[int], float, float]]
) -> None:
    time = Time()
    spenders = [Spender(time, **rates) for _ in range(3)]
    largest = 1.0
    for wanted, seconds, units in moves:
        left, limits = 8, []
        for limit in wanted:
            limits.append(min(limit, left))
            left -= limits[-1]
        pairs = sorted(zip(spenders, limits, strict=True), key=lambda p: p[1] - p[0].share.limit)
        for spender, limit in pairs:  # who has less than before goes first, as the database sees to
            spender.units = units
            largest = max(largest, units)
            spender.have(limit)
        run(time, spenders, seconds)

    starts = sorted(start for each in spenders for start in each.starts)
    most_units = max((units for _, units in starts), default=1.0)
    for first, last in combinations(range(len(starts)), 2):
        window_s = starts[last][0] - starts[first][0]
        spent = sum(units for _, units in starts[first : last + 1])
        assert spent <= per_s * window_s + 3 * most_units + 1e-6


def test_a_part_of_the_rate_spreads_starts_as_much_wider() -> None:
    time = Time()
    one, other = (Spender(time, per_second=10.0) for _ in range(2))
    one.have(6)
    other.have(2)
    run(time, [one, other], 10)

    assert len(one.starts) == pytest.approx(75, abs=2)
    assert len(other.starts) == pytest.approx(25, abs=2)


def test_what_is_owed_for_the_latest_start_stays_owed_when_the_part_changes() -> None:
    time = Time()
    one = Spender(time, per_minute=60.0)
    one.have(8)
    assert len(one.starts) == 1
    run(time, [one], 0.5)
    one.have(0)
    run(time, [one], 3600)
    one.have(2)
    run(time, [one], 3)

    assert [at_s - 100 for at_s, _ in one.starts] == pytest.approx([0, 3602.5])


def test_the_time_after_the_end_of_a_lease_pays_nothing_off() -> None:
    time = Time()
    one = Spender(time, per_minute=60.0)
    one.have(8, lease_s=0.25)
    time.now += 100
    one.have(8)
    run(time, [one], 0.9)

    assert [at_s - 100 for at_s, _ in one.starts] == pytest.approx([0, 100.75])


def test_slots_that_the_collector_releases_while_the_journal_looks_go_to_the_next() -> None:
    time = Time()
    pool = Pool(8, name="openai", shared=True)
    share = PoolShare(pool, time.clock, ref(pool), None, lambda: None)
    share.enter()
    share.settle(Negotiated(row("p", 1), 1, 8, 0, True), time.now + 30)
    held = [pool._join(time.clock, lambda at_s: None, key="a")]
    drops: list[bool] = []

    def is_running() -> bool:
        if drops:
            held.clear()
        return True

    clock = time.clock._replace(is_running=is_running)
    waiting = [pool._join(clock, lambda at_s: None, key=key) for key in ("a", "b", "c")]
    drops.append(True)

    share.demand()

    assert [each.has_slots for each in waiting] == [True, False, False]
