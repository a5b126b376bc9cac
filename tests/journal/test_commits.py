"""How often a run has to wait for the disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncflow import Orchestrator, WorkflowStep
from asyncflow.journal import SQLiteJournal

STEPS = 20
OVERHEAD = 4
"""The claim, the start of the run and of its first step, its end, and giving it up."""


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those of all connections that are opened in the test."""
    made: list[str] = []
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect

    def note(statement: str) -> None:
        if statement == "COMMIT":
            made.append(statement)

    def traced(*arguments: object, **options: object) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.set_trace_callback(note)
        return connection

    monkeypatch.setattr(sqlite3, "connect", traced)
    return made


async def one() -> int:
    return 1


def chains(count: int) -> list[WorkflowStep]:
    return [
        WorkflowStep(f"{chain}-{place}", one, [f"{chain}-{place - 1}"] if place else [])
        for chain in range(count)
        for place in range(STEPS)
    ]


@pytest.mark.parametrize("schedule", ["tiers", "ready"])
@pytest.mark.parametrize("count", [1, 50])
async def test_a_step_costs_one_commit_which_all_that_run_beside_it_share(
    commits: list[str], tmp_path: Path, count: int, schedule: str
) -> None:
    orchestrator = Orchestrator(chains(count), schedule=schedule)
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        commits.clear()  # without those that have made the tables

        await orchestrator.run(journal=journal)

        assert STEPS < len(commits) <= STEPS + OVERHEAD
