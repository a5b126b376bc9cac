"""The promises of a durable run hold, whichever point a process is killed at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

import pytest

if not hasattr(os, "fork"):
    pytest.skip("needs os.fork: processes are forked and killed", allow_module_level=True)

from tests.crash.cycles import Cycles, Forks, Spawns, fast_folder
from tests.crash.databases import Server
from tests.crash.shapes import SHAPES, SIGNALS, STAYING

pytestmark = pytest.mark.crash

SCHEDULES = ["tiers", "ready"]
SWEPT = [shape for shape in SHAPES if shape not in STAYING]
AT_LEAST = 30
"""How many processes of each shape are killed; `make crash` kills as many as one likes."""


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as engine:
        yield engine


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_folder() as path:
        yield path


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("shape", "schedule"), [*zip(SWEPT, cycle(SCHEDULES[::-1]))])
def test_a_stored_result_is_never_computed_again_wherever_a_process_dies(
    forks: Forks, folder: Path, shape: str, schedule: str
) -> None:
    cycles = Cycles(forks, folder, shape, schedule)

    cycles.sweep()

    assert cycles.killed >= AT_LEAST


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("shape", "schedule"), [*zip(SWEPT, cycle(SCHEDULES))])
def test_a_stored_result_is_never_computed_again_when_resumed_processes_die_too(
    forks: Forks, folder: Path, shape: str, schedule: str
) -> None:
    cycles, random = Cycles(forks, folder, shape, schedule), Random(shape)
    first = cycles.kill(cycles.start, random.randint(1, len(cycles.points) // 2))
    assert first is not None

    second = cycles.sweep(first, every=3)
    cycles.sweep(second[-3])

    assert cycles.killed > 10


@pytest.mark.timeout(300)
@pytest.mark.parametrize("shape", SIGNALS)
def test_no_signal_is_lost_or_counts_twice_wherever_a_process_dies(
    forks: Forks, folder: Path, shape: str
) -> None:
    cycles, random = Cycles(forks, folder, shape, "ready"), Random(8)

    for _ in range(12):
        cycles.kill_senders(random)
        cycles.kill_one_of_two(random)
        cycles.cancel_without_a_process(random)

    assert cycles.killed >= AT_LEAST


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("shape", "kind"), [("waiting", "postgres"), ("staying", "sqlite")])
def test_an_owner_that_stands_still_has_no_say_when_it_wakes_up(
    forks: Forks, folder: Path, shape: str, kind: str, request: pytest.FixtureRequest
) -> None:
    server = None
    if kind == "postgres":
        start, dsn = request.getfixturevalue("postgres_server"), request.getfixturevalue("dsn")
        server = Server(start, dsn)
    cycles, random = Cycles(forks, folder, shape, "tiers", server), Random(9)

    try:
        for _ in range(6):
            cycles.stall(random)
    finally:
        if server is not None:
            server.close()


@pytest.mark.timeout(300)
def test_no_call_by_name_is_paid_again_wherever_a_process_dies(forks: Forks, folder: Path) -> None:
    cycles, random = Cycles(forks, folder, "calling", "ready"), Random(11)

    cycles.sweep()
    while cycles.killed < 200:
        cycles.kill_at_random_points(random)


def test_each_statement_and_each_effect_has_kill_points(forks: Forks, folder: Path) -> None:
    points = Cycles(forks, folder, "chain", "tiers").points

    assert {"before BEGIN", "before INSERT", "before COMMIT", "after COMMIT"} <= {*points}
    assert {"before the effect of third -", "after the effect of third -"} <= {*points}


@pytest.mark.timeout(300)
def test_a_process_may_die_while_it_makes_the_tables(forks: Forks, folder: Path) -> None:
    cycles = Cycles(forks, folder, "chain", "tiers", has_tables=False)
    random = Random(10)

    cycles.sweep()
    for _ in range(8):
        cycles.kill_one_of_two(random)

    assert "before CREATE" in cycles.points


def test_the_promises_hold_in_fresh_interpreters(folder: Path) -> None:
    cycles, random = Cycles(Spawns(), folder, "mapped", "ready"), Random(1)

    while cycles.killed < 6:
        cycles.kill_at_random_points(random)


def test_a_step_that_kills_its_process_fails_after_max_crashes(forks: Forks, folder: Path) -> None:
    cycles = Cycles(forks, folder, "chain", "ready")
    state = cycles.start
    for _ in range(4):  # max_crashes is 3
        after = cycles.kill(state, "after the effect of second -")
        assert after is not None
        state = after

    results = cycles.end(state)

    statuses = {name: status for name, (status, *_) in results.items()}
    assert statuses == {
        "first": "SUCCESS",
        "second": "FAILED",
        "third": "SKIPPED",
        "fourth": "SKIPPED",
    }
    assert results["second"][2].startswith("StepCrashedError: ")


@pytest.mark.parametrize("shape", ["layers", "mapped"])
def test_a_second_process_continues_a_run_when_the_first_dies(
    forks: Forks, folder: Path, shape: str
) -> None:
    cycles, random = Cycles(forks, folder, shape, "ready"), Random(2)

    for _ in range(8):
        cycles.kill_one_of_two(random)

    assert cycles.killed > 0


def test_a_process_may_be_killed_at_any_time(forks: Forks, folder: Path) -> None:
    cycles, random = Cycles(forks, folder, "layers", "ready"), Random(3)

    while cycles.killed < 20:
        cycles.kill_at_random_times(random)


@pytest.mark.parametrize("shape", ["layers", "mapped", "failing"])
def test_a_run_that_is_cancelled_without_a_process_has_no_more_effects(
    forks: Forks, folder: Path, shape: str
) -> None:
    cycles, random = Cycles(forks, folder, shape, "ready"), Random(7)

    while cycles.cancelled < 10:
        cycles.cancel_without_a_process(random)

    assert cycles.killed > 10


@pytest.mark.timeout(300)
def test_the_promises_hold_on_a_server_whose_connections_are_cut(
    forks: Forks, folder: Path, postgres_server: Any, dsn: str
) -> None:
    server, random = Server(postgres_server, dsn), Random(4)
    cycles = Cycles(forks, folder, "retried", "ready", server)

    try:
        while cycles.killed < 12:
            cycles.kill_at_random_points(random)
            cycles.kill_one_of_two(random)
            cycles.cancel_without_a_process(random)
        while server.cuts < 8:
            cycles.cut_connections(random)
    finally:
        server.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("shape", ["mapped", "failing"])
def test_what_is_reported_is_stored_whatever_is_done_to_the_files(
    forks: Forks, folder: Path, shape: str
) -> None:
    cycles, random = Cycles(forks, folder, shape, "ready"), Random(5)

    while cycles.games < 24:
        cycles.play_with_files(random)
        cycles.play_between(random)


def test_a_run_has_one_owner_although_wall_clocks_jump(forks: Forks, folder: Path) -> None:
    cycles, random = Cycles(forks, folder, "layers", "tiers"), Random(6)

    while cycles.jumps < 16:
        cycles.jump(random)
