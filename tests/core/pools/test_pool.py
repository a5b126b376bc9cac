"""A pool never grants more slots than it has, and serves its line in order and at its times."""

from __future__ import annotations

import copy
import gc
import itertools
import math
import pickle
import random
import sys
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow import Pool
from asyncflow._core.pools.pool import Clock, PoolTicket

EXACT = 1e-9


class Key:
    """Stands for an event loop: compared by identity, and possibly garbage-collected."""


class Hand:
    """A clock that a test moves, with all that wait by it."""

    def __init__(self, now: float = 0.0) -> None:
        self.now, self.is_running = now, True
        self.clock = Clock(Key(), lambda: self.now, lambda: self.is_running)
        self.pool: Pool
        self.timers: list[tuple[float, int]] = []
        self.order: list[str] = []
        self.starts: list[float] = []
        self.tickets: list[PoolTicket] = []
        """One that is lost gives back its slots."""
        self._numbers = itertools.count()

    def join(self, pool: Pool, name: str = "", **needs: Any) -> PoolTicket:
        """Join the line of a pool, as a node of a run does."""
        self.pool = pool

        def call(at_s: float | None) -> None:
            if at_s is None:
                self.order.append(name)
                self.starts.append(self.now)
            else:
                self.timers.append((at_s, next(self._numbers)))

        self.tickets.append(pool._join(self.clock, call, **needs))
        return self.tickets[-1]

    def run(self, until: float = math.inf) -> None:
        """Let time pass: fire the timers up to then, in order."""
        while self.timers and min(self.timers)[0] <= until:
            timer = min(self.timers)
            self.timers.remove(timer)
            # The clock of a loop that fires a timer may be a little short of its time.
            self.now = max(self.now, timer[0] - EXACT)
            self.pool._look(self.clock, timer[0])
        self.now = max(self.now, until) if until < math.inf else self.now


def closed(at_s: float | None) -> None:
    raise RuntimeError("Event loop is closed")


def take(pool: Pool, slots: int = 1) -> PoolTicket:
    ticket = pool._take(slots)
    assert ticket is not None
    return ticket


RATES = ("per_second", "per_minute", "tokens_per_minute")


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "kind", "message"),
        [
            ({"size": True}, TypeError, "size must be an int, not bool"),
            ({"size": 1.0}, TypeError, "size must be an int, not float"),
            (
                {"size": 0},
                ValueError,
                "size must be at least 1, not 0; to let nothing start for a while, pause it: "
                "pool.pause(ms)",
            ),
            *(
                (
                    {name: rate},
                    TypeError,
                    f"{name} must be a number or None, not {type(rate).__name__}",
                )
                for name in RATES
                for rate in (True, Fraction(1, 2))
            ),
            *(
                ({name: rate}, ValueError, f"{name} must be finite and above 0, not {rate}")
                for name in RATES
                # The last ones are so small, or so great, that no interval belongs to them.
                for rate in (0, math.nan, math.inf, 10**400, 5e-324, 1 / sys.float_info.max)
            ),
            ({"pauses": 1}, TypeError, "pauses must be True or False, not 1"),
            ({"max_pause_ms": "1s"}, TypeError, "max_pause_ms must be a number, not str"),
            ({"retry_budget": "10%"}, TypeError, "retry_budget must be a number or None, not str"),
            ({"name": 3}, TypeError, "name must be a str or None, not int"),
        ],
    )
    def test_one_that_makes_no_pool_is_refused(
        self, options: dict[str, Any], kind: type[Exception], message: str
    ) -> None:
        with pytest.raises(kind) as refused:
            Pool(**{"size": 1, **options})

        assert str(refused.value) == f"a pool's {message}"

    def test_a_pool_has_one_rate_of_starts(self) -> None:
        with pytest.raises(ValueError, match="per_second or per_minute"):
            Pool(1, per_second=1, per_minute=60)

    @pytest.mark.parametrize(
        "options", [{"max_pause_ms": 0}, {"max_pause_ms": math.inf}, {"retry_budget": -0.1}]
    )
    def test_an_option_out_of_its_range_is_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="must be finite and at least"):
            Pool(1, **options)

    @pytest.mark.parametrize("ms", [-1, math.nan, math.inf])
    def test_a_pause_must_be_finite_and_not_negative(self, ms: float) -> None:
        with pytest.raises(ValueError, match="pause: ms"):
            Pool(1).pause(ms)

    def test_the_repr_shows_how_many_slots_are_in_use_and_awaited(self) -> None:
        pool = Pool(2, per_second=1e9, name="x")
        hands = [Hand() for _ in range(5)]
        for hand in hands:
            hand.join(pool)

        assert repr(pool) == "<Pool(2, per_second=1e+09, name='x'): 2 in use, 3 waiting>"
        assert repr(Pool(1, pauses=False)) == "<Pool(1, pauses=False): 0 in use, 0 waiting>"

    @pytest.mark.parametrize("make_copy", [pickle.dumps, copy.copy, copy.deepcopy])
    def test_a_pool_belongs_to_its_process(self, make_copy: Callable[[Pool], object]) -> None:
        with pytest.raises(TypeError, match="a Pool belongs to its process"):
            make_copy(Pool(1))

    def test_a_number_is_checked_when_it_is_set_as_when_the_pool_is_made(self) -> None:
        pool = Pool(2, per_second=3)

        for name, value in [("size", 0), ("per_second", 0), ("tokens_per_minute", math.nan)]:
            with pytest.raises(ValueError, match=f"a pool's {name} must be"):
                setattr(pool, name, value)
        with pytest.raises(TypeError, match="size must be an int, not float"):
            pool.size = 2.0  # type: ignore[assignment]
        with pytest.raises(ValueError, match="set per_second to None before per_minute"):
            pool.per_minute = 60
        pool.per_second = None
        pool.per_minute = 60
        with pytest.raises(ValueError, match="set per_minute to None before per_second"):
            pool.per_second = 1

        assert (pool.size, pool.per_second, pool.per_minute) == (2, None, 60)
        assert pool.tokens_per_minute is None

    @pytest.mark.parametrize("name", ["pauses", "max_pause_ms", "retry_budget", "name", "in_use"])
    def test_all_but_its_numbers_is_read_only(self, name: str) -> None:
        pool = Pool(1)

        with pytest.raises(AttributeError):
            setattr(pool, name, getattr(pool, name))


class TestNumbers:
    """Numbers that are set while attempts run and wait."""

    def test_a_larger_size_lets_those_who_wait_start_and_a_smaller_one_takes_nothing_back(
        self,
    ) -> None:
        pool, hand = Pool(1), Hand()
        tickets = [hand.join(pool, name) for name in "abcd"]

        pool.size = 3
        at_three = list(hand.order)
        pool.size = 1
        taken = pool.size, pool.in_use, pool.waiting
        for ticket in tickets[:2]:
            ticket.release()
        with_one_left = list(hand.order)
        tickets[2].release()

        assert at_three == with_one_left == ["a", "b", "c"]
        assert taken == (1, 3, 1)
        assert hand.order == ["a", "b", "c", "d"]

    def test_what_needs_more_slots_than_there_are_starts_when_all_are_free_and_takes_all(
        self,
    ) -> None:
        pool, hand = Pool(4), Hand()
        first = hand.join(pool, "first", slots=2)
        second = hand.join(pool, "second")
        pool.size = 2
        large = hand.join(pool, "large", slots=4)
        hand.join(pool, "behind")

        first.release()
        before = list(hand.order)
        second.release()

        assert before == ["first", "second"]
        assert hand.order == ["first", "second", "large"]
        large.release()
        assert hand.order == ["first", "second", "large", "behind"]

    @pytest.mark.parametrize(
        ("rate", "starts"),
        [(4, [0, 0.25, 0.5, 0.75]), (0.5, [0, 2, 4, 6]), (None, [0, 0.1, 0.1, 0.1])],
    )
    def test_another_rate_counts_from_the_latest_start_and_none_ends_the_wait(
        self, rate: float | None, starts: list[float]
    ) -> None:
        pool, hand = Pool(9, per_second=1), Hand()
        for _ in range(4):
            hand.join(pool)
        hand.run(0.1)

        pool.per_second = rate
        hand.run()

        assert hand.starts == pytest.approx(starts)

    def test_a_rate_where_there_was_none_counts_from_the_next_start(self) -> None:
        pool, hand = Pool(9), Hand()
        hand.join(pool)

        pool.per_minute = 30
        for _ in range(3):
            hand.join(pool)
        hand.run()

        assert hand.starts == pytest.approx([0, 0, 2, 4])

    def test_a_start_that_was_given_back_does_not_count_when_the_rate_is_set(self) -> None:
        pool, hand = Pool(9, per_second=1), Hand()
        hand.join(pool, "never began").release(unused=True)

        pool.per_second = 0.1
        hand.join(pool, "next")

        assert hand.starts == [0, 0]

    def test_the_start_before_one_that_was_given_back_counts_when_the_rate_is_set(self) -> None:
        pool, hand = Pool(9, per_second=1, tokens_per_minute=600), Hand()
        hand.join(pool, "began", tokens=10)
        hand.run(2.0)
        hand.join(pool, "never began", tokens=10).release(unused=True)

        pool.per_second = 0.1
        hand.join(pool, "next")
        hand.run(11.0)
        pool.tokens_per_minute = 30
        hand.join(pool, "takes tokens", tokens=1)
        hand.run()

        assert hand.starts == pytest.approx([0, 2, 10, 20])

    def test_tokens_beyond_what_a_minute_gives_now_count_as_those_of_a_minute(self) -> None:
        pool, hand = Pool(9, tokens_per_minute=1_000), Hand()
        pool.tokens_per_minute = 100

        hand.join(pool, tokens=1_000)
        hand.join(pool, tokens=50)
        hand.join(pool, tokens=1)
        hand.run(70.0)
        pool.tokens_per_minute = 50
        hand.run()

        assert hand.starts == pytest.approx([0, 60, 120])

    def test_each_clock_takes_a_new_rate(self) -> None:
        pool, hands = Pool(9, per_second=1), [Hand(0.0), Hand(50.0)]
        for hand in hands:
            hand.join(pool)
            hand.join(pool)

        pool.per_second = 4
        for hand in hands:
            hand.run()

        assert [hand.starts[-1] for hand in hands] == pytest.approx([0.25, 50.25])

    def test_an_attempt_whose_loop_is_closed_does_not_keep_a_number_from_counting(self) -> None:
        pool, hand = Pool(1), Hand()
        hand.join(pool, "holds")
        pool._join(hand.clock, closed)
        hand.join(pool, "waits")

        pool.size = 2

        assert hand.order == ["holds", "waits"]


class TestLine:
    def test_a_second_release_has_no_effect(self) -> None:
        pool, hand = Pool(1), Hand()
        first = take(pool)
        first.release()
        second = take(pool)
        third = hand.join(pool)

        first.release()
        first.release(unused=True)

        assert (pool.in_use, pool.waiting) == (1, 1)
        assert (second.has_slots, third.has_slots) == (True, False)

    def test_a_slot_skips_tickets_whose_event_loop_is_closed(self) -> None:
        pool, hand = Pool(1), Hand()
        first = take(pool)
        gone = [pool._join(hand.clock, closed) for _ in range(3)]
        alive = hand.join(pool, "alive")

        first.release()

        assert hand.order == ["alive"]
        assert alive.has_slots
        assert not any(ticket.has_slots for ticket in gone)
        for ticket in gone:
            ticket.release()  # its owner may still do so
        assert (pool.in_use, pool.waiting) == (1, 0)

    def test_a_slot_that_no_ticket_can_take_is_free(self) -> None:
        pool = Pool(1)
        first = take(pool)
        pool._join(Hand().clock, closed)

        first.release()

        assert (pool.in_use, pool.waiting) == (0, 0)
        assert pool._take() is not None

    def test_a_head_whose_loop_is_closed_does_not_hold_the_line_through_a_pause(self) -> None:
        pool, hand = Pool(1), Hand()
        pool._pause(hand.clock, 5.0, "")
        pool._join(hand.clock, closed)
        alive = hand.join(pool)

        hand.run()

        assert alive.has_slots
        assert (pool.in_use, pool.waiting) == (1, 0)

    def test_a_callback_may_release_its_slot_at_once(self) -> None:
        """This happens if the garbage collector closes a coroutine during the call."""
        pool, hand = Pool(1), Hand()
        first = take(pool)
        tickets: list[PoolTicket] = []
        tickets.append(pool._join(hand.clock, lambda _: tickets[0].release()))
        last = hand.join(pool, "last")

        first.release()

        assert hand.order == ["last"]
        assert last.has_slots
        assert (pool.in_use, pool.waiting) == (1, 0)

    def test_the_collector_may_release_others_at_any_line(self) -> None:
        """Here in each call that the pool makes while its line moves."""
        pool, hand = Pool(2), Hand()
        waiting: list[PoolTicket] = []

        def call(_: float | None) -> None:
            for ticket in waiting[1::2]:
                ticket.release(unused=True)

        held = [take(pool), take(pool)]
        waiting += [pool._join(hand.clock, call) for _ in range(9)]
        for ticket in held:
            ticket.release()
        for ticket in waiting:
            ticket.release()

        assert (pool.in_use, pool.waiting) == (0, 0)

    def test_slots_that_a_lost_ticket_holds_are_free(self) -> None:
        pool = Pool(1)
        lost = take(pool)

        del lost
        gc.collect()

        assert pool.in_use == 0

    @given(st.integers(1, 4), st.randoms(use_true_random=False))
    def test_the_line_moves_by_priority_and_age_and_no_slot_is_lost(
        self, size: int, chance: random.Random
    ) -> None:
        pool, hand, largest = Pool(size), Hand(), size
        waiting: list[tuple[int, int, str]] = []
        inside: dict[str, PoolTicket] = {}
        tickets: dict[str, PoolTicket] = {}
        needs: dict[str, int] = {}

        def free() -> int:
            return size - sum(needs[name] for name in inside)

        for number in range(60):
            if chance.random() < 0.1:
                pool.size = size = chance.randint(1, 4)
                largest = max(largest, size)
            elif not tickets or chance.random() < 0.6:
                name, slots = str(number), chance.randint(1, largest)
                priority = chance.choice([0, 0, 1, -1])
                needs[name] = slots
                waiting.append((-priority, number, name))
                waiting.sort()
                tickets[name] = hand.join(pool, name, slots=slots, priority=priority)
            else:
                name = chance.choice(list(tickets))
                waiting = [entry for entry in waiting if entry[-1] != name]
                inside.pop(name, None)
                tickets.pop(name).release(unused=chance.random() < 0.5)
            while waiting and (needs[waiting[0][-1]] <= free() or not inside):
                name = waiting.pop(0)[-1]
                inside[name] = tickets[name]
                assert hand.order.pop(0) == name
            assert hand.order == []
            assert pool.in_use == size - free()
            assert pool.waiting == len(waiting)
            assert all(ticket.has_slots == (n in inside) for n, ticket in tickets.items())

    def test_a_ticket_with_an_earlier_age_has_the_place_of_that(self) -> None:
        pool, hand = Pool(1), Hand()
        first = take(pool)
        hand.join(pool, "next")
        hand.join(pool, "again", age=first.age)

        first.release()

        assert hand.order == ["again"]


class TestStoppedLoops:
    def test_who_waits_there_is_passed_over_until_the_loop_runs_again(self) -> None:
        pool, stopped, other = Pool(1), Hand(), Hand()
        holder = other.join(pool, "holder")
        waits = stopped.join(pool, "stopped", priority=1)
        stopped.is_running = False
        rest = [other.join(pool, name) for name in "abc"]

        for ticket in (holder, *rest[:2]):
            ticket.release()

        assert other.order == ["holder", "a", "b", "c"]
        assert (stopped.order, pool.waiting) == ([], 1)
        assert len(stopped.timers) == 1  # what it does when it runs again, once
        stopped.is_running = True
        stopped.now = 1.0
        waits.look(stopped.timers[0][0])
        rest[2].release()
        assert (stopped.order, pool.in_use, pool.waiting) == (["stopped"], 1, 0)

    def test_the_slots_of_who_holds_some_there_stay_taken(self) -> None:
        pool, stopped, other = Pool(1), Hand(), Hand()
        stopped.join(pool, "stopped")
        stopped.is_running = False

        other.join(pool, "other")

        assert (other.order, pool.in_use, pool.waiting) == ([], 1, 1)

    def test_who_waits_in_a_closed_one_leaves_the_line(self) -> None:
        pool, stopped, other = Pool(1), Hand(), Hand()
        holder = other.join(pool, "holder")
        stopped.is_running = False
        gone = pool._join(stopped.clock, closed)
        other.join(pool, "other")

        holder.release()
        gone.release()

        assert (other.order, pool.in_use, pool.waiting) == (["holder", "other"], 1, 0)


class TestBeginningAnew:
    def test_only_numbers_and_the_line_are_left(self) -> None:
        pool, hand = Pool(2, per_second=1, retry_budget=0.1), Hand()
        pool.size = 1
        pool._retries.spend()
        hand.join(pool, "first")
        pool._pause(hand.clock, 100.0, "")
        hand.join(pool, "waits")

        pool._begin_anew()

        assert hand.order == ["first", "waits"]
        assert (pool.size, pool.in_use, pool.waiting, pool._retries.left) == (1, 1, 0, 10)
        assert pool._pause_of(hand.clock) is None

    def test_slots_that_were_taken_before_are_not_returned(self) -> None:
        pool, hand = Pool(2), Hand()
        tickets = [take(pool), take(pool)]

        pool._begin_anew()
        held, waits = take(pool, 2), hand.join(pool)

        assert not tickets[0].renew()
        for ticket in tickets:  # with and without a line
            ticket.release()
            waits.release()
        assert pool.in_use == 2
        held.release()
        assert pool.in_use == 0


class TestThreads:
    def test_concurrent_threads_never_hold_more_slots_than_the_pool_has(self) -> None:
        pool, size, inside, highest = Pool(3, per_second=1e9), 3, 0, 0
        counting, failures = threading.Lock(), list[BaseException]()

        def work(seed: int) -> None:
            nonlocal inside, highest
            chance, hand = random.Random(seed), Hand()
            try:
                for number in range(300):
                    hand.now = number * 1e-6
                    called = threading.Event()

                    def call(at_s: float | None, called: threading.Event = called) -> None:
                        if at_s is None:
                            called.set()
                        else:
                            threading.Timer(0, pool._look, (hand.clock, at_s)).start()

                    if chance.random() < 0.1:
                        pool._pause(hand.clock, hand.now + 1e-9, "")
                    ticket = pool._join(hand.clock, call, priority=chance.randint(0, 1))
                    if chance.random() < 0.2:
                        ticket.release(unused=True)  # whether it had its slot or not
                        continue
                    assert called.wait(20)
                    with counting:
                        inside += 1
                        highest = max(highest, inside)
                    with counting:
                        inside -= 1
                    ticket.release()
                    ticket.release()
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
        finally:
            sys.setswitchinterval(interval)

        assert not failures
        assert 1 <= highest <= size
        assert (pool.in_use, pool.waiting) == (0, 0)


def starts_of(pool: Pool, requested: list[float], hand: Hand | None = None) -> list[float]:
    """Return the start times of requests at these times."""
    hand, tickets = hand or Hand(), []
    hand.starts.clear()
    for now in requested:
        hand.run(now)
        tickets.append(hand.join(pool))
    hand.run()
    for ticket in tickets:
        ticket.release()
    return hand.starts


class TestRate:
    def test_without_a_rate_all_may_start_at_once(self) -> None:
        assert starts_of(Pool(10), [5.0] * 10) == [5.0] * 10

    def test_a_rate_may_be_that_of_a_minute(self) -> None:
        assert starts_of(Pool(9, per_minute=30), [0.0] * 4) == pytest.approx([0, 2, 4, 6])

    def test_a_request_after_the_next_free_start_starts_at_once(self) -> None:
        starts = starts_of(Pool(10, per_second=2), [0.0, 0.5, 3.0, 3.1, 9.0])

        assert starts == pytest.approx([0.0, 0.5, 3, 3.5, 9])

    def test_tokens_are_spread_evenly_and_those_without_any_need_not_wait(self) -> None:
        pool, hand = Pool(9, tokens_per_minute=600), Hand()
        for name, tokens in [("a", 100), ("b", 200), ("free", 0), ("c", 50), ("d", 10)]:
            hand.join(pool, name, tokens=tokens)
        hand.run()

        assert hand.order == ["a", "b", "free", "c", "d"]
        assert hand.starts == pytest.approx([0, 10, 10, 30, 35])

    @given(
        st.integers(1, 6),
        st.sampled_from([1, 2, 3, 7, 10, 0.5, 1.5, 0.3]),
        st.lists(st.tuples(st.floats(0, 1.5), st.booleans(), st.integers(0, 5)), max_size=60),
    )
    def test_no_second_has_more_starts_than_the_rate_plus_one(
        self, size: int, rate: float, requests: list[tuple[float, bool, int]]
    ) -> None:
        """Some tickets are cancelled before they start, in any order."""
        pool, hand = Pool(size, per_second=rate), Hand()
        tickets: list[PoolTicket] = []

        for passes, is_cancelled, which in requests:
            hand.run(hand.now + passes)
            waiting = [ticket for ticket in tickets if not ticket.has_slots]
            if is_cancelled and waiting:
                waiting[which % len(waiting)].release(unused=True)
                tickets = [ticket for ticket in tickets if not ticket._is_done]
            else:
                tickets.append(hand.join(pool))
            for ticket in [ticket for ticket in tickets if ticket.has_slots][:3]:
                tickets.remove(ticket)
                ticket.release()

        starts = hand.starts
        assert starts == sorted(starts)
        for begin, first in enumerate(starts):
            within = [start for start in starts[begin:] if start < first + 1 - 1e-6]
            assert len(within) <= rate + 1
        for before, after in itertools.pairwise(starts):
            assert after - before >= 1 / rate - 1e-6

    @given(st.randoms(use_true_random=False))
    def test_each_start_is_an_interval_after_the_last_that_began_whatever_is_set_meanwhile(
        self, chance: random.Random
    ) -> None:
        pool, hand, rate = Pool(9, per_second=2), Hand(), 2.0
        given: dict[str, PoolTicket] = {}
        """Those that have joined, and have not begun yet."""
        counted: dict[str, float] = {}
        """The starts that were not given back."""

        for number in range(40):
            what = chance.choice(["join", "join", "begin", "give back", "pass", "pass", "set"])
            if what == "join":
                given[str(number)] = hand.join(pool, str(number))
            elif what == "set":
                pool.per_second = rate = chance.choice([0.5, 2, 4])
            elif what == "pass":
                hand.run(hand.now + chance.random())
            elif given:
                name = chance.choice([*given])
                ticket = given.pop(name)
                if what == "give back":
                    ticket.release(unused=True)
                    counted.pop(name, None)
                elif ticket.has_slots:
                    ticket.release()
            for name, start in zip(hand.order, hand.starts, strict=True):
                assert start - max(counted.values(), default=-math.inf) >= 1 / rate - 1e-6
                counted[name] = start
            hand.order.clear()
            hand.starts.clear()

    def test_the_start_and_the_tokens_of_an_attempt_that_never_began_are_returned(self) -> None:
        pool, hand = Pool(10, tokens_per_minute=600, per_minute=6), Hand()
        hand.join(pool, "used").release()
        hand.run(10.0)
        unused = hand.join(pool, "unused", tokens=600)
        hand.join(pool, "next", tokens=10)
        assert hand.order == ["used", "unused"]

        unused.release(unused=True)

        assert hand.order == ["used", "unused", "next"]  # at 10 s, and not at 70 s

    @pytest.mark.parametrize("now", [0.0, 1_000.5, 10_000.0])
    def test_each_clock_has_starts_of_its_own(self, now: float) -> None:
        pool, hand, other = Pool(4, per_second=1), Hand(1_000.0), Hand(now)

        assert starts_of(pool, [1_000.0, 1_000.0], hand) == pytest.approx([1_000, 1_001])
        assert starts_of(pool, [now, now], other) == pytest.approx([now, now + 1])
        hand.now = 1_001.0
        assert starts_of(pool, [1_001.0], hand) == pytest.approx([1_002])

    def test_a_new_loop_does_not_inherit_the_clock_of_a_collected_one(self) -> None:
        pool = Pool(2, per_second=1)
        starts_of(pool, [0.0])
        gc.collect()

        assert starts_of(pool, [0.0]) == [0.0]


class TestPause:
    def test_the_longer_pause_wins(self) -> None:
        pool, hand = Pool(1), Hand()
        for until in (5.0, 9.0, 2.0):
            pool._pause(hand.clock, until, "")
        hand.join(pool)

        hand.run()

        assert hand.starts == pytest.approx([9])

    def test_starts_that_a_rate_allows_are_spread_from_its_end_on(self) -> None:
        pool, hand = Pool(9, per_second=2), Hand()
        for _ in range(4):
            hand.join(pool)
        pool._pause(hand.clock, 10.0, "")

        hand.run()

        assert hand.starts == pytest.approx([0, 10, 10.5, 11])

    def test_where_no_loop_runs_it_is_made_for_all_clocks(self) -> None:
        pool, early, late = Pool(9), Hand(5.0), Hand(77.0)
        pool._pause(early.clock, 5.1, "")
        early.join(pool)

        pool.pause(2_000)
        pool.pause(1_000)  # the longer one wins
        early.run(6.0)
        late.join(pool)
        early.run()
        late.run()
        early.join(pool)
        late.join(pool)

        assert early.starts == pytest.approx([7, 7])
        assert late.starts == pytest.approx([79, 79])
        assert pool.stats().paused_ms > 1_000

    def test_who_looks_later_by_the_clock_of_the_caller_does_not_make_it_longer(self) -> None:
        pool = Pool(1)
        pool.pause(60_000)
        [gate] = pool._gates._by_clock.values()
        until_s = gate.paused_until_s

        pool.stats()

        assert gate.paused_until_s == until_s

    def test_when_it_is_over_nothing_is_left_of_it(self) -> None:
        pool, hand = Pool(2), Hand()
        pool._pause(hand.clock, 1.0, "")
        assert pool._take() is None
        hand.join(pool)
        hand.run()

        assert pool._take() is not None

    def test_a_clock_that_never_quite_reaches_the_end_does_not_go_on_for_ever(self) -> None:
        # At this time, the clock can't show the difference that the timer has waited for.
        pool, hand = Pool(1), Hand(1e9)
        pool._pause(hand.clock, 1e9 + 0.1, "")
        hand.join(pool, "a")
        hand.join(pool, "b")

        hand.run()

        assert hand.order == ["a"]

    def test_stats_say_how_long_and_why(self) -> None:
        pool = Pool(3, name="api")
        ticket = take(pool)
        hand = Hand()
        hand.join(pool, slots=3)

        pool.pause(60_000)
        stats = pool.stats()

        assert (stats.in_use, stats.waiting, stats.paused_by) == (1, 1, "")
        assert 50_000 < stats.paused_ms <= 60_000
        assert stats.retries_left == math.inf
        ticket.release()

    def test_it_is_capped(self) -> None:
        pool = Pool(1, max_pause_ms=500)

        pool.pause(86_400_000)

        assert 0 < pool.stats().paused_ms <= 500


class TestBudget:
    def test_it_has_a_burst_and_each_success_earns_its_part(self) -> None:
        pool = Pool(1, retry_budget=0.1)

        burst = [pool._retries.spend() for _ in range(11)]
        for _ in range(10):
            pool._retries.earn()
        after = [pool._retries.spend() for _ in range(2)]

        assert burst == [True] * 10 + [False]
        assert after == [True, False]


class TestFairness:
    @given(st.integers(1, 4), st.randoms(use_true_random=False))
    def test_with_finite_work_every_ticket_gets_its_slots(
        self, size: int, chance: random.Random
    ) -> None:
        rates: dict[str, Any] = chance.choice(
            [{}, {"per_second": 3}, {"tokens_per_minute": 120}, {"per_minute": 90}]
        )
        pool, hand, largest = Pool(size, **rates), Hand(), size
        held: list[PoolTicket] = []
        done = 0

        for _ in range(40):
            if chance.random() < 0.1:
                pool.size = chance.randint(1, 4)
                largest = max(largest, pool.size)
            if chance.random() < 0.1 and pool.per_minute is None:
                pool.per_second = chance.choice([None, 2, 5])
            if chance.random() < 0.1:
                pool.tokens_per_minute = chance.choice([None, 60, 600])
            slots, priority = chance.randint(1, largest), chance.randint(-1, 1)
            held.append(
                hand.join(pool, slots=slots, priority=priority, tokens=chance.randint(0, 5))
            )
            if chance.random() < 0.2:
                pool._pause(hand.clock, hand.now + chance.random() * 9, "")
            if chance.random() < 0.3:
                hand.run(hand.now + chance.random() * 3)
            if chance.random() < 0.2:
                held.pop(chance.randrange(len(held))).release(unused=True)
        while held:
            hand.run(hand.now + 1)
            ready = [ticket for ticket in held if ticket.has_slots]
            for ticket in ready:
                held.remove(ticket)
                ticket.release()
                done += 1
            assert ready or hand.timers, "nothing can ever start"

        assert (pool.in_use, pool.waiting) == (0, 0)
