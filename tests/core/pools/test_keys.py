"""In the line of a pool, keys take turns, and none has more slots than the pool gives one."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow._core.pools.pool import Pool, PoolKeyStats, PoolTicket
from tests.core.pools.test_pool import Hand, closed


class Ticket(NamedTuple):
    name: str
    key: str | None
    run: str
    slots: int
    priority: int
    since: int


def has_had_none(waiting: list[Any], one: Any, last: dict[Any, int]) -> list[Any]:
    """Return who waits since before the latest turn of one, and has had none since then."""
    turn = last.get(one, -1)
    return [other for other, since in waiting if since < turn and last.get(other, -1) < turn]


@pytest.mark.parametrize("most_slots", [1, 2])
@given(st.integers(1, 4), st.sampled_from([None, 1, 2, 3]), st.randoms(use_true_random=False))
def test_no_key_has_a_second_turn_while_another_has_had_none_nor_more_slots_than_it_may(
    most_slots: int, size: int, per_key: int | None, chance: random.Random
) -> None:
    """And so the runs of a key; by priority before that, and by age after it."""
    pool, hand, limit = Pool(size, per_key=per_key), Hand(), per_key or 99
    waiting: dict[str, Ticket] = {}
    inside: dict[str, Ticket] = {}
    tickets: dict[str, PoolTicket] = {}
    used = Counter[str | None]()
    key_turns: dict[Any, int] = {}
    run_turns: dict[Any, int] = {}
    grants = 0
    names = chance.choice([["a"], ["a", "b"], ["a", "b", "c", None, "a"]])
    priorities = chance.choice([[0], [0, 0, 1]])

    def is_at_limit(ticket: Ticket) -> bool:
        return ticket.key is not None and used[ticket.key] + ticket.slots > limit

    def check_grant(ticket: Ticket) -> None:
        """Check that it is this one's turn."""
        others = [each for each in waiting.values() if not is_at_limit(each)]
        # Where a large one of a key may be next, that key may be passed over.
        sure = [
            each
            for each in others
            if not any(is_at_limit(it) for it in waiting.values() if it.key == each.key)
        ]
        assert not [each for each in sure if each.priority > ticket.priority]
        peers = [each for each in sure if each.priority == ticket.priority]
        level, key = ticket.priority, (ticket.priority, ticket.key)
        of_keys = [((level, each.key), each.since) for each in peers if each.key != ticket.key]
        assert not has_had_none(of_keys, key, key_turns), "another key has had none"
        same = [
            each
            for each in waiting.values()
            if (each.key, each.priority) == (ticket.key, ticket.priority)
        ]
        of_runs = [((key, each.run), each.since) for each in same if each.run != ticket.run]
        assert not has_had_none(of_runs, (key, ticket.run), run_turns), "another run has had none"
        assert not [it for it in same if it.run == ticket.run and it.since < ticket.since]

    for number in range(80):
        if chance.random() < 0.05:
            pool.size = size = chance.randint(1, 4)
        elif not tickets or chance.random() < 0.6:
            # Those without a key join before any other now and then: then the line changes.
            key = chance.choice(names) if number > 4 else None
            slots = min(chance.randint(1, most_slots), limit if key else 9)
            ticket = Ticket(
                str(number), key, chance.choice("xy"), slots, chance.choice(priorities), grants
            )
            waiting[ticket.name] = ticket
            tickets[ticket.name] = hand.join(
                pool,
                ticket.name,
                key=key,
                shown_key=key or "",
                run=ticket.run,
                slots=slots,
                priority=ticket.priority,
            )
        else:
            name = chance.choice(list(tickets))
            waiting.pop(name, None)
            if gone := inside.pop(name, None):
                used[gone.key] -= gone.slots
            tickets.pop(name).release(unused=chance.random() < 0.5)
        for name in hand.order:
            ticket = waiting.pop(name)
            check_grant(ticket)
            inside[name] = ticket
            used[ticket.key] += ticket.slots
            grants += 1
            if pool._keys is not None:  # else the line goes by age, and nothing takes turns
                key_turns[ticket.priority, ticket.key] = grants
                run_turns[(ticket.priority, ticket.key), ticket.run] = grants
            assert ticket.key is None or used[ticket.key] <= limit
        hand.order.clear()
        taken = sum(ticket.slots for ticket in inside.values())
        assert (pool.in_use, pool.waiting) == (taken, len(waiting))
        if most_slots == 1 and taken < size:
            assert all(map(is_at_limit, waiting.values())), "it waits although there is room"

    while tickets:
        name = next(name for name in tickets if name in inside or tickets[name].has_slots)
        tickets.pop(name).release()
    assert (pool.in_use, pool.waiting) == (0, 0)
    if pool._keys is not None:
        assert pool._keys.stats() == ()
        assert not pool._keys._levels


def test_a_key_at_its_limit_holds_up_no_other_and_goes_on_where_it_was() -> None:
    pool, hand = Pool(3, per_key=1), Hand()
    names = ["a1", "a2", "b1", "a3", "b2", "free1", "free2"]
    tickets = {name: hand.join(pool, name, key=_key_of(name), run="x") for name in names}
    at_limit = [name for name in names if tickets[name].is_at_limit]

    tickets["a1"].release()

    assert at_limit == ["a2", "a3", "b2"]
    assert hand.order == ["a1", "b1", "free1", "a2"]


def test_the_runs_of_a_key_take_turns_and_within_one_it_goes_by_age() -> None:
    pool, hand = Pool(1), Hand()
    tickets = {
        name: hand.join(pool, name, key="a", run=name[0])
        for name in ["x1", "x2", "x3", "x4", "y1", "y2", "z1"]
    }

    for _ in range(6):
        tickets[hand.order[-1]].release()

    assert hand.order == ["x1", "x2", "y1", "z1", "x3", "y2", "x4"]


def test_what_fits_starts_when_a_larger_one_of_its_key_leaves_the_line() -> None:
    pool, hand = Pool(4, per_key=2), Hand()
    for name, slots in [("first", 1), ("large", 2), ("small", 1)]:
        hand.join(pool, name, key="a", run="x", slots=slots)
    before = list(hand.order)

    hand.tickets[1].release()

    assert before == ["first"]
    assert hand.order == ["first", "small"]


def _key_of(name: str) -> str | None:
    return None if name.startswith("free") else name[0]


def test_an_attempt_that_keeps_its_age_is_next_of_those_that_came_after_it() -> None:
    pool, hand = Pool(1), Hand()
    before = hand.join(pool, "before", key="a", run="x")
    refused = hand.join(pool, "refused", key="b", run="x")
    for name in ("c1", "b1"):
        hand.join(pool, name, key=name[0], run="x")
    before.release()

    pool._pause(hand.clock, 5.0, "")
    refused.release()
    again = hand.join(pool, "again", key="b", run="x", age=refused.age)
    hand.run()
    again.release()

    assert hand.order == ["before", "refused", "again", "c1"]


def test_keys_of_higher_priority_go_first_and_their_limit_holds_up_none_of_a_lower_one() -> None:
    pool, hand = Pool(2, per_key=1), Hand()
    for name, priority in [("a1", 1), ("a2", 1), ("b1", 0), ("a3", 0), ("c1", 1)]:
        hand.join(pool, name, key=name[0], run="x", priority=priority)

    first = list(hand.order)
    assert pool._waits_below(1) is False
    hand.tickets[2].release()

    assert first == ["a1", "b1"]
    assert hand.order == ["a1", "b1", "c1"]


def test_who_waits_in_a_stopped_loop_is_passed_over_with_its_key_and_has_its_age_back() -> None:
    pool, stopped, other = Pool(1), Hand(), Hand()
    holder = other.join(pool, "holder", key="h", run="x")
    waits = stopped.join(pool, "stopped", key="a", run="y")
    stopped.is_running = False
    gone = pool._join(stopped.clock, closed, key="a", shown_key="a", run="z")
    last = other.join(pool, "b1", key="b", run="x")
    other.join(pool, "b2", key="b", run="x")

    holder.release()
    assert (other.order, pool.waiting) == (["holder", "b1"], 2)
    gone.release()
    stopped.is_running = True
    waits.look(stopped.timers[0][0])
    last.release()

    assert stopped.order == ["stopped"]
    assert (pool.in_use, pool.waiting) == (1, 1)


def test_keys_that_are_gone_are_forgotten_however_many_there_were() -> None:
    pool, hand = Pool(1, per_key=1), Hand()
    holder = hand.join(pool, "holder", key="holder", run="x")

    hand.join(pool, key="waits", shown_key="w<secret>", run="x")
    for number in range(1_000):
        hand.join(pool, key=str(number), run=number).release()

    keys = pool._keys
    assert keys is not None
    assert keys.stats() == (PoolKeyStats("", 1, 0), PoolKeyStats("w<secret>", 0, 1))
    assert len(keys._levels[0]._heap) < 20
    holder.release()


def test_slots_that_were_taken_before_a_pool_began_anew_count_for_no_key() -> None:
    pool, hand = Pool(4, per_key=1), Hand()
    first = hand.join(pool, "first", key="a", run="x")
    hand.join(pool, "waits", key="a", run="x")

    pool._begin_anew()
    first.release()
    hand.join(pool, "third", key="a", run="x")

    assert hand.order == ["first", "waits"]
    assert (pool.in_use, pool.waiting) == (1, 1)
