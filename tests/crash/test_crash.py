"""Processes die at every point of a durable run, and what is promised holds each time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import cycle, product
from pathlib import Path
from random import Random

import pytest

if not hasattr(os, "fork"):
    pytest.skip("processes are forked and killed here", allow_module_level=True)

from tests.crash.cycles import Cycles, Forks, Spawns, fast_folder
from tests.crash.shapes import SHAPES

pytestmark = pytest.mark.crash

SCHEDULES = ["tiers", "ready"]
AT_LEAST = 36
"""So many processes are killed of each shape under each schedule."""


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as engine:
        yield engine


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_folder() as path:
        yield path


def test_more_than_500_processes_are_killed_in_all() -> None:
    assert len(SHAPES) * len(SCHEDULES) * AT_LEAST > 500


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("shape", "schedule"), [*product(SHAPES, SCHEDULES)])
def test_a_kept_result_is_never_computed_again_wherever_a_process_dies(
    forks: Forks, folder: Path, shape: str, schedule: str
) -> None:
    cycles = Cycles(forks, folder, shape, schedule)

    cycles.sweep()

    assert cycles.killed >= AT_LEAST


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("shape", "schedule"), [*zip(SHAPES, cycle(SCHEDULES), strict=False)])
def test_the_same_holds_when_the_resumed_process_dies_too_and_the_next_one(
    forks: Forks, folder: Path, shape: str, schedule: str
) -> None:
    cycles, random = Cycles(forks, folder, shape, schedule), Random(shape)
    first = cycles.kill(cycles.start, random.randint(1, len(cycles.points) // 2))
    assert first is not None

    second = cycles.sweep(first)
    cycles.sweep(second[-3])

    assert cycles.killed > 10


def test_the_points_lie_around_each_statement_and_each_effect(forks: Forks, folder: Path) -> None:
    points = Cycles(forks, folder, "chain", "tiers").points

    assert {"before BEGIN", "before INSERT", "before COMMIT", "after COMMIT"} <= {*points}
    assert {"before the effect of third -", "after the effect of third -"} <= {*points}


def test_it_is_the_same_in_fresh_interpreters(folder: Path) -> None:
    cycles, random = Cycles(Spawns(), folder, "mapped", "ready"), Random(1)

    while cycles.killed < 6:
        cycles.walk(random)


def test_a_step_that_takes_its_process_along_is_given_up_after_max_crashes(
    forks: Forks, folder: Path
) -> None:
    cycles = Cycles(forks, folder, "chain", "ready")
    state = cycles.start
    for _ in range(4):  # max_crashes is 3
        after = cycles.kill(state, "after the effect of second -")
        assert after is not None
        state = after

    told = cycles.end(state)

    statuses = {name: status for name, (status, *_) in told.items()}
    assert statuses == {
        "first": "SUCCESS",
        "second": "FAILED",
        "third": "SKIPPED",
        "fourth": "SKIPPED",
    }
    assert told["second"][2].startswith("StepCrashedError: ")


@pytest.mark.parametrize("shape", ["layers", "mapped"])
def test_of_two_processes_that_run_the_same_one_takes_over_when_the_other_dies(
    forks: Forks, folder: Path, shape: str
) -> None:
    cycles, random = Cycles(forks, folder, shape, "ready"), Random(2)

    for _ in range(8):
        cycles.contest(random)

    assert cycles.killed > 0


def test_a_process_may_be_killed_at_any_time(forks: Forks, folder: Path) -> None:
    cycles, random = Cycles(forks, folder, "layers", "ready"), Random(3)

    while cycles.killed < 20:
        cycles.stroll(random)
