"""A small soak finds nothing, and a soak finds what grows; ``make soak`` runs a million steps."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak.soak import MOST_MEMORY_KB, MOST_OBJECTS, Sample, problems_in

ROOT = Path(__file__).parents[2]


def soak(*arguments):
    command = [sys.executable, *arguments, "--steps", "3000", "--rounds", "6", "--seed", "1"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.process
@pytest.mark.timeout(300)
def test_nothing_is_left_of_runs_that_fail_time_out_and_are_cancelled():
    ended = soak("-m", "tests.soak")

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "nothing has grown" in ended.stdout
    for end in ("awaited: passed", "awaited: failed", "cancelled: CancelledError", "resumed:"):
        assert end in ended.stdout
    for status in ("SUCCESS", "FAILED", "CANCELLED", "SKIPPED"):
        assert re.search(rf"'{status}': [1-9]", ended.stdout)


LEAK = """
import asyncio, sys
from asyncflow._kernel.run import Run
from tests.soak.__main__ import main

kept, end = [], Run.execute

async def execute(self):
    try:
        return await end(self)
    finally:
        kept.append(self)

Run.execute = execute
sys.exit(main())
"""


@pytest.mark.process
@pytest.mark.timeout(300)
def test_a_soak_notices_runs_that_are_kept():
    ended = soak("-c", LEAK)

    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "PROBLEM: objects: " in ended.stdout


FLAT = Sample(1000, 1.0, 29_000, 1, 3, 15, 50_000, 0)


def after(change):
    """Return samples of which the later ones have changed."""
    later = FLAT._replace(**{name: getattr(FLAT, name) + more for name, more in change.items()})
    return [FLAT, FLAT, FLAT, later, later]


@pytest.mark.parametrize(
    ("what", "allowed"),
    [
        *(("objects", MOST_OBJECTS), ("memory_kb", MOST_MEMORY_KB)),
        *(("tasks", 0), ("threads", 0), ("descriptors", 0)),
    ],
)
def test_what_has_grown_is_a_problem(what, allowed):
    assert problems_in(after({what: allowed})) == []

    (problem,) = problems_in(after({what: allowed + 1}))

    assert problem.startswith(f"{what}: ")


def test_what_is_held_while_nothing_runs_is_a_problem():
    problems = problems_in([FLAT, FLAT._replace(held=2), FLAT, FLAT])

    assert problems == ["held after 1,000 steps: 2"]


def test_too_few_rounds_tell_nothing():
    assert problems_in([FLAT, FLAT, FLAT]) != []
