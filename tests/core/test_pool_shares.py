"""Processes that share a pool never have more slots than it has, and have them by demand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow._core.pool import Pool
from asyncflow._core.pool_shares import ShareRow, fair_parts

NOW = 1_000.0
TURN_S = 0.5


def row(process: str, demand: int, least: int = 1, since: float = NOW, **options: int) -> ShareRow:
    return ShareRow(
        process, demand, **{"granted": 0, "size": 8, **options}, least=least, since=since
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
        ValueError, match="per_key of a shared pool holds in one process only; use two"
    ):
        Pool(4, name="openai", shared=True, per_key=1)
    with pytest.raises(TypeError, match="shared must be True or False, not 1"):
        Pool(4, name="openai", shared=1)  # type: ignore[arg-type]
