"""A pool never grants more slots than it has, and serves its queue in order."""

from __future__ import annotations

import itertools
import math
import random
import sys
import threading
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow._core.policies import Pool, PoolTicket

EXACT = 1e-9


class Clock:
    """Stands for an event loop: compared by identity, and possibly garbage-collected."""


CLOCK = Clock()


def must_not_be_called() -> None:
    raise AssertionError("a ticket that has its slot or was released was called")


class TestArguments:
    @pytest.mark.parametrize("size", [None, True, False, 1.0, "3", Decimal(1), math.nan, []])
    def test_the_size_must_be_an_int(self, size: Any) -> None:
        with pytest.raises(TypeError) as refused:
            Pool(size)

        assert str(refused.value) == f"a pool's size must be an int, not {type(size).__name__}"

    @pytest.mark.parametrize("size", [0, -1, -(10**30)])
    def test_the_size_must_be_at_least_one(self, size: int) -> None:
        with pytest.raises(ValueError, match="size") as refused:
            Pool(size)

        assert str(refused.value) == f"a pool's size must be at least 1, not {size}"

    @pytest.mark.parametrize("rate", [True, False, "5", Decimal(1), Fraction(1, 2), 1j, []])
    def test_the_rate_must_be_a_number_or_none(self, rate: Any) -> None:
        with pytest.raises(TypeError) as refused:
            Pool(1, per_second=rate)

        assert str(refused.value) == (
            f"a pool's per_second must be a number or None, not {type(rate).__name__}"
        )

    @pytest.mark.parametrize(
        "rate",
        # The positive ones are so small, or so great, that no interval belongs to them.
        [0, 0.0, -1, -0.1, math.nan, math.inf, -math.inf, 10**400, 5e-324, 1 / sys.float_info.max],
    )
    def test_the_rate_must_be_finite_and_above_zero(self, rate: float) -> None:
        with pytest.raises(ValueError, match="per_second") as refused:
            Pool(1, per_second=rate)

        assert str(refused.value) == (f"a pool's per_second must be finite and above 0, not {rate}")

    def test_the_repr_shows_how_many_slots_are_in_use_and_awaited(self) -> None:
        pool = Pool(2, per_second=0.5)
        for _ in range(5):
            pool._request_slot(must_not_be_called)

        assert repr(pool) == "<Pool(2, per_second=0.5): 2 in use, 3 waiting>"
        assert repr(Pool(1)) == "<Pool(1): 0 in use, 0 waiting>"


class TestQueue:
    def test_a_second_release_has_no_effect(self) -> None:
        pool = Pool(1)
        first = pool._request_slot(must_not_be_called)
        first.release()
        second = pool._request_slot(must_not_be_called)
        third = pool._request_slot(lambda: None)

        first.release()
        first.release(unused=True)

        assert (pool.in_use, pool.waiting) == (1, 1)
        assert (second.has_slot, third.has_slot) == (True, False)

    def test_a_ticket_that_leaves_the_queue_is_not_called_and_takes_no_slot(self) -> None:
        pool, called = Pool(1), list[str]()
        first = pool._request_slot(must_not_be_called)
        impatient, patient = (
            pool._request_slot(must_not_be_called),
            pool._request_slot(lambda: called.append("patient")),
        )

        impatient.release()
        impatient.release()
        assert (pool.in_use, pool.waiting) == (1, 1)
        first.release()

        assert called == ["patient"]
        assert (impatient.has_slot, patient.has_slot) == (False, True)

    def test_a_slot_skips_tickets_whose_event_loop_is_closed(self) -> None:
        def closed() -> None:
            raise RuntimeError("Event loop is closed")

        pool, called = Pool(1), list[str]()
        first = pool._request_slot(must_not_be_called)
        gone = [pool._request_slot(closed) for _ in range(3)]
        alive = pool._request_slot(lambda: called.append("alive"))

        first.release()

        assert called == ["alive"]
        assert alive.has_slot
        assert not any(ticket.has_slot for ticket in gone)
        for ticket in gone:
            ticket.release()  # its owner may still do so
        assert (pool.in_use, pool.waiting) == (1, 0)

    def test_a_slot_that_no_ticket_can_take_is_free(self) -> None:
        def closed() -> None:
            raise RuntimeError("Event loop is closed")

        pool = Pool(1)
        first = pool._request_slot(must_not_be_called)
        pool._request_slot(closed)

        first.release()

        assert (pool.in_use, pool.waiting) == (0, 0)
        assert pool._request_slot(must_not_be_called).has_slot

    def test_a_callback_may_release_its_slot_at_once(self) -> None:
        """This happens if the garbage collector closes a coroutine during the call."""
        pool, called = Pool(1), list[str]()
        first = pool._request_slot(must_not_be_called)
        tickets: list[PoolTicket] = []
        tickets.append(pool._request_slot(lambda: tickets[0].release()))
        last = pool._request_slot(lambda: called.append("last"))

        first.release()

        assert called == ["last"]
        assert last.has_slot
        assert (pool.in_use, pool.waiting) == (1, 0)

    @given(st.integers(1, 4), st.randoms(use_true_random=False))
    def test_no_ticket_overtakes_another_and_no_slot_is_lost(
        self, size: int, chance: random.Random
    ) -> None:
        pool, queue, inside = Pool(size), deque[int](), set[int]()
        tickets: dict[int, PoolTicket] = {}

        def call(number: int) -> Callable[[], None]:
            def is_next() -> None:
                assert queue.popleft() == number
                inside.add(number)

            return is_next

        for number in range(60):
            if not tickets or chance.random() < 0.6:
                queue.append(number)
                tickets[number] = pool._request_slot(call(number))
                if tickets[number].has_slot:
                    call(number)()
            else:
                leaver = chance.choice(list(tickets))
                if leaver in inside:
                    inside.remove(leaver)
                else:
                    queue.remove(leaver)
                tickets.pop(leaver).release(unused=chance.random() < 0.5)
            assert (pool.in_use, pool.waiting) == (len(inside), len(queue))
            assert len(inside) == min(size, len(tickets))
            assert all(ticket.has_slot == (n in inside) for n, ticket in tickets.items())


class TestThreads:
    def test_concurrent_threads_never_hold_more_slots_than_the_pool_has(self) -> None:
        pool, size, inside, highest = Pool(3, per_second=1e9), 3, 0, 0
        counting, failures = threading.Lock(), list[BaseException]()

        def work(seed: int) -> None:
            nonlocal inside, highest
            chance = random.Random(seed)
            try:
                for number in range(300):
                    called = threading.Event()
                    ticket = pool._request_slot(called.set)
                    if chance.random() < 0.2:
                        ticket.release(unused=True)  # whether it had its slot or not
                        continue
                    assert ticket.has_slot or called.wait(20)
                    ticket.reserve_start(number * 1e-6, CLOCK)
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


def starts_of(pool: Pool, requested: list[float], clock: object = CLOCK) -> list[float]:
    """Return the start times of requests at these times, each released at once."""
    starts = []
    for now in requested:
        ticket = pool._request_slot(must_not_be_called)
        starts.append(now + ticket.reserve_start(now, clock))
        ticket.release()
    return starts


class TestRate:
    def test_without_a_rate_all_may_start_at_once(self) -> None:
        pool = Pool(1)

        assert starts_of(pool, [5.0] * 10) == [5.0] * 10

    @pytest.mark.parametrize("rate", [5, 3, 0.3, 7.7, 1000, 1e-6])
    def test_starts_are_spread_evenly(self, rate: float) -> None:
        pool = Pool(100, per_second=rate)

        starts = [
            100.0 + pool._request_slot(must_not_be_called).reserve_start(100.0, CLOCK)
            for _ in range(100)
        ]

        assert starts == pytest.approx([100.0 + n / rate for n in range(100)])

    def test_a_request_after_the_next_free_start_starts_at_once(self) -> None:
        pool = Pool(10, per_second=2)

        assert starts_of(pool, [0.0, 0.5, 3.0, 3.1, 9.0]) == pytest.approx([0.0, 0.5, 3, 3.5, 9])

    @given(
        st.integers(1, 6),
        st.sampled_from([1, 2, 3, 7, 10, 0.5, 1.5, 0.3]),
        st.lists(st.tuples(st.floats(0, 1.5), st.booleans(), st.integers(0, 5)), max_size=60),
    )
    def test_no_second_has_more_starts_than_the_rate_plus_one(
        self, size: int, rate: float, requests: list[tuple[float, bool, int]]
    ) -> None:
        """Some tickets start when they may; others are cancelled before, in any order."""
        pool, now, starts = Pool(size, per_second=rate), 0.0, list[float]()
        held: list[tuple[float, PoolTicket]] = []

        for pause, is_cancelled, which in requests:
            now += pause
            for start, ticket in [entry for entry in held if entry[0] <= now]:
                starts.append(start)
                held.remove((start, ticket))
                ticket.release()
            if is_cancelled and held:
                held.pop(which % len(held))[1].release(unused=True)
            elif len(held) < size:
                ticket = pool._request_slot(must_not_be_called)
                held.append((now + ticket.reserve_start(now, CLOCK), ticket))

        starts.extend(start for start, _ in held)
        starts.sort()
        for begin, first in enumerate(starts):
            within = [start for start in starts[begin:] if start < first + 1 - EXACT]
            assert len(within) <= rate + 1
        for before, after in itertools.pairwise(starts):
            assert after - before >= 1 / rate - EXACT

    def test_an_unused_start_is_returned(self) -> None:
        pool = Pool(10, per_second=1)
        first, second = (
            pool._request_slot(must_not_be_called),
            pool._request_slot(must_not_be_called),
        )
        assert (first.reserve_start(0.0, CLOCK), second.reserve_start(0.0, CLOCK)) == (0.0, 1.0)

        second.release(unused=True)

        assert pool._request_slot(must_not_be_called).reserve_start(0.0, CLOCK) == 1.0
        assert pool._request_slot(must_not_be_called).reserve_start(0.0, CLOCK) == 2.0

    def test_a_ticket_cancelled_while_others_wait_lets_no_other_start_too_early(self) -> None:
        pool = Pool(2, per_second=1)
        assert starts_of(pool, [0.0]) == [0.0]
        cancelled, waits = (
            pool._request_slot(must_not_be_called),
            pool._request_slot(must_not_be_called),
        )
        assert (cancelled.reserve_start(0.0, CLOCK), waits.reserve_start(0.0, CLOCK)) == (1.0, 2.0)

        cancelled.release(unused=True)

        assert pool._request_slot(must_not_be_called).reserve_start(0.0, CLOCK) == 3.0

    def test_requests_move_up_if_all_waiting_tickets_are_cancelled(self) -> None:
        pool = Pool(100, per_second=1)
        starts_of(pool, [0.0])
        waiting = [pool._request_slot(must_not_be_called) for _ in range(50)]
        assert [ticket.reserve_start(0.0, CLOCK) for ticket in waiting] == list(range(1, 51))

        for ticket in waiting:
            ticket.release(unused=True)

        assert starts_of(pool, [0.25, 0.25, 0.25]) == [1.0, 2.0, 3.0]

    def test_a_start_counts_until_its_interval_is_over_although_a_later_one_is_returned(
        self,
    ) -> None:
        pool = Pool(3, per_second=1)
        assert starts_of(pool, [0.9]) == [0.9]
        cancelled = [pool._request_slot(must_not_be_called), pool._request_slot(must_not_be_called)]
        assert [ticket.reserve_start(1.5, CLOCK) for ticket in cancelled] == pytest.approx(
            [0.4, 1.4]
        )

        for ticket in cancelled:
            ticket.release(unused=True)

        assert starts_of(pool, [1.6]) == pytest.approx([1.9])

    def test_many_cancelled_tickets_let_no_other_start_too_early(self) -> None:
        pool = Pool(2, per_second=1)
        starts_of(pool, [0.0])
        waits, is_next = pool._request_slot(must_not_be_called), 1.0
        assert waits.reserve_start(0.0, CLOCK) == is_next

        for _ in range(10):
            also_waits, is_next = pool._request_slot(must_not_be_called), is_next + 1
            assert also_waits.reserve_start(0.0, CLOCK) == is_next
            waits.release(unused=True)
            waits = also_waits

        assert pool._request_slot(must_not_be_called).reserve_start(0.0, CLOCK) == 12.0

    @pytest.mark.parametrize("now", [0.0, 1_000.5, 10_000.0])
    def test_the_clock_of_another_event_loop_does_not_block_a_pool(self, now: float) -> None:
        pool, other = Pool(2, per_second=1), Clock()
        starts_of(pool, [1_000.0, 1_000.0])

        assert starts_of(pool, [now, now], other) == [now, now + 1]

    def test_a_new_loop_does_not_inherit_the_clock_of_a_collected_one(self) -> None:
        pool, gone = Pool(2, per_second=1), Clock()
        starts_of(pool, [0.0], gone)

        del gone

        assert starts_of(pool, [0.0], Clock()) == [0.0]

    def test_a_start_on_another_clock_is_not_returned_to_this_one(self) -> None:
        pool, other = Pool(2, per_second=1), Clock()
        cancelled = pool._request_slot(must_not_be_called)
        cancelled.reserve_start(0.0, other)
        assert starts_of(pool, [0.0]) == [0.0]

        cancelled.release(unused=True)

        assert starts_of(pool, [0.0]) == [1.0]


# Of the mutants that mutmut makes of `Pool` and `PoolTicket`, these survive, since they differ in
# nothing: `None` for `PoolTicket._is_done` and for `popitem(last=...)`, which are only tested for
# truth.
