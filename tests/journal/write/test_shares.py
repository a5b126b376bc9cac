"""Processes share the slots and the pauses of a pool by way of a database.

A process is a `Pool` with a share here, whose clock a test moves; so is the clock of the database.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncflow import JournalError, Pool
from asyncflow._core.pools.pool import Clock, PoolTicket
from asyncflow._core.pools.shares import TICK_S
from asyncflow.journal._database.machine import LeaseClock, held_claims, is_void, this_process
from asyncflow.journal._database.sqlite import SQLite
from asyncflow.journal._write.shares import Shares
from asyncflow.journal._write.store import Claim

LEASE_S = 30.0
REAL = "stands for the clock that real event loops share"


class World:
    """A database, and the time in which processes use it."""

    def __init__(self, path: Path) -> None:
        self.now = 100_000.0
        self.wall_jump_s = 0.0
        self.path = path
        self.is_away = False
        self.processes: list[Process] = []
        self.databases: list[Any] = []

    def database(self) -> Any:
        clock = LeaseClock("m", "b", "", lambda: self.now + self.wall_jump_s, lambda: self.now)
        self.databases.append(SQLite(str(self.path), "NORMAL", 0.1, clock))
        return self.databases[-1]

    def process(self, size: int = 8, name: str = "openai", **options: Any) -> Process:
        self.processes.append(Process(self, Pool(size, name=name, shared=True, **options)))
        return self.processes[-1]

    def rows(self, columns: str = "demand, granted") -> list[Any]:
        sql = f"SELECT {columns} FROM shares ORDER BY process"
        with self.databases[0].reading() as cursor:
            cursor.execute(sql)
            return cursor.fetchall()

    def run(self, seconds: float) -> None:
        """Let time pass, in which each process that does not stand still negotiates when due."""
        until = self.now + seconds
        while True:
            moving = [each for each in self.processes if each.moves]
            due = [max(each.share.due_s(LEASE_S), each.ticks_at_s) for each in moving]
            at_s, look_s = (
                min(due, default=math.inf),
                min(each.looks_at_s for each in self.processes),
            )
            if min(at_s, look_s) > until:
                break
            self.now = max(self.now, min(at_s, look_s))
            if at_s <= look_s:
                moving[due.index(at_s)].tick()
            else:
                for each in self.processes:
                    each.look()
        self.now = until


class Process:
    """A process that uses a pool."""

    def __init__(self, world: World, pool: Pool) -> None:
        self.world = world
        self.pool = pool
        self.moves = True
        self.ticks_at_s = -math.inf
        self.looks_at_s = math.inf
        self.wakes = 0
        self.clock = Clock(Process, lambda: world.now)
        claim = Claim("me", this_process(), LEASE_S, is_void)
        self.shares = Shares(world.database(), claim, self, self.call)  # type: ignore[arg-type]
        self.enter()
        self.tokens = 0.0
        """How many each attempt takes."""
        self.starts: list[float] = []
        self.running: list[PoolTicket] = []
        self.lined_up: list[PoolTicket] = []
        self.transactions = 0
        self.meanwhile: Callable[[], object] = lambda: None
        """Called when a transaction is committed and the process has not heard of that."""

    def enter(self) -> None:
        self.share = self.shares.enter(self.pool, self.clock, ref(self), "the database")

    def submit(self, call: Callable[[], object]) -> None:
        self.wakes += 1

    def call(self, method: Callable[..., Any], *args: Any) -> Any:
        if self.world.is_away:
            raise JournalError("of a test", "it can't be reached")
        self.transactions += 1
        done = method(*args)
        self.meanwhile()
        return done

    def tick(self) -> None:
        self.shares.negotiate()
        self.ticks_at_s = self.world.now + 1e-6
        self.start()

    def look(self) -> None:
        """Let the pool look at its line, if it has asked for that now."""
        if self.looks_at_s <= self.world.now:
            self.looks_at_s = math.inf
            self.lined_up[0].look(self.world.now)
            self.start()

    def note(self, at_s: float | None) -> None:
        if at_s is not None:
            self.looks_at_s = at_s

    def join(self, count: int = 1, slots: int = 1) -> None:
        for _ in range(count):
            ticket = self.pool._take(slots)
            if ticket is None:
                tokens = self.tokens if self.pool.tokens_per_minute else 0.0
                ticket = self.pool._join(self.clock, self.note, slots=slots, tokens=tokens)
            self.lined_up.append(ticket)
        self.start()

    def start(self) -> None:
        """Note what has its slots now."""
        started = [each for each in self.lined_up if each.has_slots]
        self.starts += [self.world.now] * len(started)
        self.running += started
        self.lined_up = [each for each in self.lined_up if not each.has_slots]

    def end(self, count: int = 1) -> None:
        for _ in range(count):
            self.running.pop(0).release()
        self.start()

    @property
    def is_live(self) -> bool:
        return self.world.now < self.share.until_s

    @property
    def stats(self) -> tuple[int | None, int, int]:
        found = self.pool.stats()
        return found.share, found.in_use, found.waiting


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with worlds(tmp_path / "runs.db") as made:
        yield made


@contextmanager
def worlds(path: Path) -> Iterator[World]:
    made = World(path)
    try:
        yield made
    finally:
        for database in made.databases:
            database.close()


def test_a_process_alone_has_the_whole_size_from_its_first_tick(world: World) -> None:
    one = world.process()
    one.join(3)
    assert one.stats == (0, 0, 3)
    assert one.wakes == 1

    one.tick()

    assert one.stats == (8, 3, 0)
    one.join(5)
    assert one.stats == (8, 8, 0)
    assert one.transactions == 1


def test_a_demand_is_met_within_two_ticks_and_the_end_of_one_attempt(world: World) -> None:
    one, other = world.process(), world.process()
    one.join(20)
    world.run(0.01)
    world.run(5)
    assert one.stats == (8, 8, 12)

    other.join(1)
    world.run(2 * TICK_S)
    assert other.stats == (0, 0, 1)
    one.end(1)
    assert one.stats == (7, 7, 12)  # it starts no other instead
    world.run(2 * TICK_S)

    assert other.stats == (1, 1, 0)


def test_what_a_process_has_to_spare_goes_to_another_one_within_a_second(world: World) -> None:
    one, other = world.process(), world.process()
    one.join(1)
    world.run(60)
    transactions = one.transactions
    world.run(60)
    assert one.transactions - transactions == pytest.approx(60, abs=2)  # nothing was written

    other.join(7)
    world.run(1.2)

    assert other.stats == (7, 7, 0)


def test_who_runs_all_it_has_and_lets_none_wait_only_renews_its_lease(world: World) -> None:
    one = world.process()
    one.join(8)
    world.run(1)
    transactions = one.transactions

    world.run(120)

    assert one.transactions - transactions == 12
    assert one.is_live


def test_who_runs_all_it_has_gives_back_at_the_end_of_attempts_whose_successors_are_in_no_line(
    world: World,
) -> None:
    one, other = world.process(), world.process()
    one.join(8)
    world.run(1)
    other.join(2)
    for _ in range(3):  # as a run does that has more items than the pool has slots
        one.end(1)
        one.join(1)
        world.run(TICK_S)
    world.run(TICK_S)
    one.end(2)
    world.run(2 * TICK_S)

    assert other.stats[1:] == (2, 0)


def test_a_process_without_need_has_no_row_and_makes_no_transaction(world: World) -> None:
    one = world.process()
    one.join(1)
    world.run(1)
    one.end(1)
    world.run(TICK_S)
    transactions = one.transactions

    assert world.rows() == []
    assert one.stats == (0, 0, 0)
    world.run(3600)
    assert one.transactions == transactions
    one.join(1)
    one.tick()
    assert one.stats == (8, 1, 0)


def test_demands_divide_the_slots_and_the_odd_one_takes_turns(world: World) -> None:
    processes = [world.process(size=4) for _ in range(3)]
    most = [0, 0, 0]
    for process in processes:
        process.join(50)
    for _ in range(100):
        world.run(0.1)
        for at, process in enumerate(processes):
            most[at] += len(process.running)
            process.end(len(process.running))
            process.join(8)
        assert sum(len(each.running) for each in processes) <= 4

    assert max(most) - min(most) < 60
    assert sum(most) > 300


def test_many_slots_at_once_do_not_starve_beside_a_line_of_single_ones(world: World) -> None:
    light, heavy = world.process(size=4), world.process(size=4)
    light.join(500)
    world.run(1)
    heavy.join(1, slots=4)

    for _ in range(12):  # attempts of 4 seconds, of which one ends each second
        world.run(1)
        if light.running:
            light.end(1)
        if heavy.running:
            break

    assert heavy.stats == (4, 4, 0)
    assert light.stats[:2] == (0, 0)


def test_nothing_starts_after_the_lease_has_ended_by_the_own_clock(world: World) -> None:
    one = world.process()
    one.join(1)
    world.run(1)
    one.moves = False  # its thread is busy
    world.run(LEASE_S)

    one.join(1)

    assert one.stats == (0, 1, 1)
    one.moves = True
    world.run(TICK_S)
    assert one.stats == (8, 2, 0)


def test_a_process_that_stood_still_exceeds_the_size_by_what_it_has_in_flight(world: World) -> None:
    one, other = world.process(), world.process()
    one.join(2)
    other.join(20)
    world.run(1)
    one.moves = False
    world.run(LEASE_S + 1)
    assert other.stats == (8, 8, 12)

    one.moves = True
    one.join(3)
    world.run(1)

    assert one.stats == (0, 2, 3)
    assert world.rows("SUM(granted)") == [(8,)]
    one.end(2)
    other.end(4)
    world.run(1)
    assert (len(one.running), len(other.running)) == (3, 5)


def test_a_wall_clock_that_jumps_changes_no_lease_and_no_pause(world: World) -> None:
    one, other = world.process(), world.process()
    one.join(8)
    world.run(1)
    for jump_s in (-7200.0, 7200.0):
        world.wall_jump_s = jump_s
        other.join(1)
        world.run(5)
        assert other.stats[:2] == (0, 0)
    one.pool._pause(one.clock, world.now + 3, "ask")
    world.wall_jump_s = 0.0
    world.run(1)

    assert other.share.paused_until_s == pytest.approx(world.now + 2)


def test_the_slots_of_a_dead_process_are_free_at_once_on_its_machine(world: World) -> None:
    one, other = world.process(), world.process()
    one.join(8)
    world.run(1)
    one.moves = False
    other.join(1)
    world.run(1)
    assert other.stats == (0, 0, 1)

    (entry,) = one.shares._members
    held_claims.discard(entry.claim)  # as of a process that is dead
    world.run(TICK_S)

    assert other.stats == (8, 1, 0)


def test_what_a_process_has_it_keeps_while_the_database_is_away_until_its_lease_ends(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    one = world.process()
    one.join(2)
    world.run(1)
    world.is_away = True
    away_s = world.now

    world.run(LEASE_S - 5)
    one.join(2)
    assert one.stats == (8, 4, 0)
    assert not caplog.records
    world.run(LEASE_S)
    one.join(1)

    assert one.stats == (0, 4, 1)
    assert one.share.failing_since_s == pytest.approx(away_s, abs=1.5)
    (warned,) = caplog.messages
    assert warned.startswith("no attempt starts in pool 'openai' until its database answers")
    world.is_away = False
    world.run(3)
    assert one.stats == (8, 5, 0)
    assert one.share.failing_since_s is None


def test_the_smaller_of_two_sizes_counts_while_both_live_with_a_warning(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = world.process(size=8), world.process(size=4)
    one.join(20)
    world.run(1)
    other.join(1)
    world.run(1)
    assert one.stats == (3, 8, 12)
    one.end(8)
    world.run(1)

    assert (len(one.running), len(other.running)) == (3, 1)
    assert caplog.messages == [
        "pool 'openai' has size 4 here, and size 8 in another process: while both use it, the "
        "smaller numbers count",
        "pool 'openai' has size 8 here, and size 4 in another process: while both use it, the "
        "smaller numbers count",
    ]
    other.end(1)
    world.run(1)
    assert one.stats[:2] == (8, 8)


def test_each_of_several_other_sizes_is_told_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    for size in (2, 4, 8):
        world.process(size).join(20)
    world.run(10)

    assert len(caplog.messages) == len(set(caplog.messages)) == 6


def test_a_size_that_is_set_counts_at_once_if_smaller_and_when_all_have_it_if_larger(
    world: World,
) -> None:
    one, other = world.process(), world.process()
    one.join(30)
    other.join(30)
    world.run(1)
    one.end(4)
    world.run(1)
    assert (len(one.running), len(other.running)) == (4, 4)
    one.pool.size = 2
    assert one.stats[0] == 2
    world.run(TICK_S)
    one.end(4)
    other.end(4)
    world.run(1)
    assert len(one.running) + len(other.running) == 2

    one.pool.size = 12
    world.run(1)
    assert len(one.running) + len(other.running) == 8
    other.pool.size = 12
    world.run(2)
    assert (len(one.running), len(other.running)) == (6, 6)


def test_an_attempt_that_needs_more_than_the_smaller_size_takes_the_whole_pool(
    world: World,
) -> None:
    one, other = world.process(size=8), world.process(size=4)
    other.join(3)
    world.run(1)
    one.join(1, slots=6)
    world.run(1)
    assert one.stats[1:] == (0, 1)

    for _ in range(20):
        world.run(0.5)
        other.end(len(other.running))
        other.join(1)
        if one.running:
            break

    assert one.stats[1:] == (6, 0)
    assert not other.running


def test_a_run_that_begins_does_not_undo_a_smaller_size(world: World) -> None:
    one = world.process()
    one.join(1)
    world.run(1)
    one.pool.size = 2

    one.enter()
    one.join(7)

    assert one.stats == (2, 2, 6)


def test_a_smaller_size_takes_nothing_back_and_lets_no_other_start_before_that_has_ended(
    world: World,
) -> None:
    one, other, third = (world.process() for _ in range(3))
    one.join(4)
    other.join(4)
    world.run(2)
    for each in (one, other, third):
        each.pool.size = 4
    third.join(1)
    world.run(1)
    assert world.rows("SUM(granted)") == [(8,)]

    one.end(4)
    world.run(1)
    assert third.stats[1:] == (0, 1)
    other.end(1)
    world.run(1)

    assert third.stats[1:] == (1, 0)


def test_what_starts_while_a_process_tells_the_others_what_it_has_is_within_that(
    world: World,
) -> None:
    one, other = world.process(), world.process()
    one.join(2)
    world.run(1)
    other.join(20)
    world.run(0.2)
    one.meanwhile = lambda: one.join(6)
    world.run(1)

    assert len(one.running) + len(other.running) == 8


def test_what_starts_meanwhile_is_within_what_the_others_leave_too(world: World) -> None:
    one, other = world.process(size=9), world.process(size=9)
    one.join(4)
    other.join(4)
    world.run(2)
    other.end(3)
    world.run(2)
    one.pool.size = 4
    one.end(3)
    one.meanwhile = lambda: one.join(1)
    one.tick()

    assert world.rows("SUM(granted)") == [(4,)]
    assert one.stats == (1, 1, 1)


def test_slots_are_compared_with_the_size_and_never_with_the_share(world: World) -> None:
    one, other = world.process(), world.process()
    one.join(20)
    world.run(1)
    other.join(1, slots=6)
    for _ in range(20):
        world.run(0.5)
        one.end(len(one.running))
        if other.running:
            break

    assert other.stats[1:] == (6, 0)


def test_an_attempt_that_needs_more_than_there_are_now_takes_the_whole_pool(world: World) -> None:
    one, other = world.process(), world.process()
    one.pool.size = other.pool.size = 2
    other.join(2)
    world.run(1)
    one.join(1, slots=8)
    world.run(3)
    assert one.stats[1:] == (0, 1)

    other.end(2)
    world.run(1)

    assert one.stats[1:] == (8, 0)
    other.join(1)
    world.run(5)
    assert other.stats[1:] == (0, 1)


def test_a_pause_reaches_the_others_a_tick_later_and_those_that_come_before_they_start(
    world: World,
) -> None:
    one, other, late = (world.process() for _ in range(3))
    one.join(1)
    other.join(20)
    world.run(1)

    one.pool._pause(one.clock, world.now + 60, "ask")
    world.run(TICK_S)
    late.join(1)
    world.run(TICK_S)

    for each in (other, late):
        pause = each.pool._pause_of(each.clock)
        assert pause is not None
        assert pause.by == "ask"
        assert pause.left_ms == pytest.approx(60_000, abs=250)
    assert late.stats[1:] == (0, 1)
    other.end(1)
    assert len(other.running) == 6
    told = one.transactions, other.transactions
    world.run(30)
    assert not any(each.share.must_tell_pause for each in world.processes)
    assert one.transactions - told[0] < 40


def test_while_the_pool_is_paused_who_waits_asks_once_a_second(world: World) -> None:
    one = world.process()
    one.join(1)
    world.run(1)
    one.pool._pause(one.clock, world.now + 60.05, "ask")
    one.join(20)
    world.run(1)
    transactions = one.transactions

    world.run(59)
    assert one.transactions - transactions == pytest.approx(59, abs=2)
    world.run(0.1)
    assert one.stats == (8, 8, 13)


def test_a_pause_is_told_by_a_process_that_has_no_attempt_left(world: World) -> None:
    one, other = world.process(), world.process()
    one.join(1)
    other.join(1)
    world.run(1)
    one.end(1)
    world.run(1)
    assert one.share.row is None

    one.pool._pause(one.clock, world.now + 60, "ask")
    transactions = one.transactions
    world.run(1.5)

    assert one.transactions == transactions + 1
    assert other.pool._pause_of(other.clock) is not None


def test_a_pause_from_before_the_first_run_is_told_too(world: World) -> None:
    one, other = world.process(), world.process()
    pool = Pool(8, name="openai", shared=True)
    pool._pause(one.clock, world.now + 60, "")
    one.shares.enter(pool, one.clock, ref(one), "the database")
    one.tick()
    other.join(1)
    world.run(1)

    assert other.stats[1:] == (0, 1)


def test_the_longer_pause_counts(world: World) -> None:
    one, other = world.process(), world.process()
    for each in (one, other):
        each.join(1)
    world.run(1)

    one.pool._pause(one.clock, world.now + 10, "short")
    other.pool._pause(other.clock, world.now + 20, "long")
    world.run(1.5)

    for each in (one, other):
        pause = each.pool._pause_of(each.clock)
        assert pause is not None
        assert (pause.by, round(pause.left_ms, -2)) == ("long", 18_500)


def test_all_pools_of_a_process_take_one_transaction(world: World) -> None:
    one = world.process()
    second = Pool(2, name="db", shared=True)
    share = one.shares.enter(second, one.clock, ref(one), "the database")
    tickets = [second._join(one.clock, lambda at_s: None) for _ in range(3)]
    one.join(1)

    one.tick()

    assert one.transactions == 1
    assert (one.stats[0], share.limit) == (8, 2)
    assert [each.has_slots for each in tickets] == [True, True, False]


def test_a_run_that_ends_leaves_an_ordinary_pool_and_no_row(world: World) -> None:
    one = world.process()
    one.join(1)
    world.run(1)
    one.end(1)
    one.share.leave()
    world.run(1)

    assert world.rows() == []
    assert one.pool._share is None
    assert one.pool._take(8) is not None


def test_a_run_that_ends_while_its_pool_waits_for_a_share_locks_nothing(world: World) -> None:
    """The collector may end one at any line of any thread."""
    one = world.process()
    one.join(1)

    with one.pool._lock, one.shares._lock:
        thread = threading.Thread(target=one.share.leave)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()


def test_a_damaged_row_counts_for_nobody(world: World) -> None:
    one = world.process()
    one.join(1)
    one.tick()
    with world.databases[0].transaction() as cursor:
        cursor.execute("DROP TABLE shares")
        cursor.execute(
            "CREATE TABLE shares (pool, process, demand, granted, least, since, size, per_minute, "
            "tokens_per_minute, expires_at, clock, boot_expires_at, PRIMARY KEY (pool, process))"
        )
        cursor.execute(
            "INSERT INTO shares VALUES ('openai', 'x', 8, 'y', 1, 0, 8, NULL, NULL, 1e12, 'm', 0)"
        )

    world.run(LEASE_S)

    assert world.rows("process <> 'x'") == [(1,)]


def test_a_journal_that_closes_ends_its_leases_and_what_runs_goes_on(world: World) -> None:
    one, other = world.process(), world.process()
    one.join(3)
    other.join(20)
    world.run(1)
    one.moves = False
    one.shares.close()
    one.join(1)
    world.run(1)

    assert one.stats == (0, 3, 1)
    assert other.stats[:2] == (5, 5)
    one.end(3)
    assert one.stats == (0, 0, 1)
    world.run(LEASE_S)
    assert other.stats[:2] == (8, 8)


steps = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(
            ["join", "join", "join 3", "end", "end all", "tick", "time", "time", "long", "die"]
        ),
    ),
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(steps, st.integers(1, 6))
def test_whatever_processes_do_no_more_run_than_the_pool_has(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[int, str]], size: int
) -> None:
    with worlds(tmp_path_factory.mktemp("shares") / "runs.db") as world:
        processes = [world.process(size=max(size, 3)) for _ in range(3)]
        for at, move in moves:
            process = processes[at]
            if move == "join":
                process.join(1)
            elif move == "join 3":
                process.join(1, slots=3)
            elif move == "end" and process.running:
                process.end(1)
            elif move == "end all":
                process.end(len(process.running))
            elif move == "tick":
                process.tick()
            elif move == "time":
                world.run(0.3)
            elif move == "long":
                world.run(LEASE_S + 1)
            elif move == "die" and process.moves:
                process.moves = False
                process.running.clear()
                processes[at] = world.process(size=max(size, 3))

            live = [each for each in processes if each.is_live]
            assert sum(each.share.limit for each in live) <= max(size, 3)
            assert sum(each.pool.in_use for each in processes) <= max(size, 3)


# Rates.


def test_processes_start_together_what_the_rate_allows_and_each_its_part(world: World) -> None:
    processes = [world.process(per_second=10.0) for _ in range(3)]
    for process in processes:
        process.join(1_000)
    for _ in range(200):
        world.run(0.1)
        for process in processes:
            process.end(len(process.running))

    counts = [len(each.starts) for each in processes]
    assert 180 <= sum(counts) <= 203
    assert max(counts) - min(counts) < 20


def test_a_process_alone_has_the_whole_rate(world: World) -> None:
    one = world.process(tokens_per_minute=600.0)
    one.tokens = 5.0
    one.join(1_000)
    for _ in range(100):
        world.run(0.1)
        one.end(len(one.running))

    assert len(one.starts) == pytest.approx(20, abs=1)


def test_tokens_are_compared_with_the_whole_rate_and_never_with_its_part(world: World) -> None:
    one, other = (world.process(tokens_per_minute=600.0) for _ in range(2))
    for process in (one, other):
        process.tokens = 600.0
        process.join(2)
    world.run(1)
    assert len(one.starts) + len(other.starts) >= 1

    for _ in range(300):
        world.run(1)
        for process in (one, other):
            process.end(len(process.running))

    assert (len(one.starts), len(other.starts)) == (2, 2)


def test_a_process_has_its_part_of_the_rate_until_its_latest_start_is_paid_off(
    world: World,
) -> None:
    one = world.process(per_minute=12.0)
    one.join(1)
    one.tick()
    one.end(1)
    one.share.leave()
    world.run(4)
    assert world.rows() == [(1, 8)]

    world.run(2)
    assert world.rows() == []
    assert one.pool._share is None
    world.run(3600)
    one.enter()
    one.join(1)
    one.tick()
    assert len(one.starts) == 2


def test_the_smallest_rates_count_while_processes_say_others_with_a_warning(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    fast, slow = world.process(), world.process(per_second=1.0)
    fast.join(100)
    slow.join(100)
    world.run(10)
    assert len(fast.starts) + len(slow.starts) <= 8 + 10 + 2  # what the first had before
    assert sorted(set(caplog.messages)) == [
        f"pool 'openai' has {here} here, and {there} in another process: while both use it, the "
        "smaller numbers count"
        for here, there in [("size 8", "size 8, per_minute 60"), ("size 8, per_second 1", "size 8")]
    ]

    before = len(fast.starts)
    while slow.lined_up:
        slow.lined_up.pop().release(unused=True)
    slow.end(len(slow.running))
    slow.share.leave()
    world.run(30)
    fast.end(len(fast.running))
    world.run(1)

    assert len(fast.starts) - before >= 8


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["join", "end", "end", "wait"])), max_size=60
    )
)
def test_whatever_processes_do_they_start_no_more_than_the_rate_allows_and_one_each(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[int, str]]
) -> None:
    with worlds(tmp_path_factory.mktemp("rates") / "runs.db") as world:
        processes = [world.process(size=2, per_second=4.0) for _ in range(3)]
        for at, move in moves:
            process = processes[at]
            if move == "join":
                process.join(3)
            elif move == "end":
                process.end(len(process.running))
            world.run(1.1 if move == "wait" else 0.15)

        starts = sorted(start for each in processes for start in each.starts)
        for first in range(len(starts)):
            for last in range(first + 1, len(starts)):
                window_s = starts[last] - starts[first]
                assert last - first + 1 <= 4.0 * window_s + 3 + 1e-6
