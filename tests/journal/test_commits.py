"""A run waits for the disk once per step."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncflow import Orchestrator, WorkflowStep
from asyncflow.journal import SQLiteJournal

STEPS = 20
OVERHEAD = 4
"""Claim, start of the run, start of its first step, end of the run, release."""


@pytest.fixture
def disk_commits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The COMMIT statements of all connections that the test opens."""
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


async def return_one() -> int:
    return 1


def chains(count: int) -> list[WorkflowStep]:
    return [
        WorkflowStep(
            f"{chain}-{position}", return_one, [f"{chain}-{position - 1}"] if position else []
        )
        for chain in range(count)
        for position in range(STEPS)
    ]


@pytest.mark.parametrize("schedule", ["tiers", "ready"])
@pytest.mark.parametrize("count", [1, 50])
async def test_a_step_costs_one_commit_that_concurrent_steps_share(
    disk_commits: list[str], tmp_path: Path, count: int, schedule: str
) -> None:
    orchestrator = Orchestrator(chains(count), schedule=schedule)
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        disk_commits.clear()  # ignore those that created the tables

        await orchestrator.run(journal=journal)

        assert STEPS < len(disk_commits) <= STEPS + OVERHEAD
