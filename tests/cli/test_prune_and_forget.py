"""``prune`` and ``forget`` remove runs from a journal."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from click.shell_completion import ShellComplete

from asyncflow import Orchestrator, WorkflowStep
from asyncflow._cli import commands
from asyncflow.journal import SQLiteJournal

from .conftest import Shell

DAY_S = 86_400


def store_run(shell: Shell, run_id: str, *, ended_days_ago: int = 0) -> None:
    shell("run", "etl:pipeline", "--quiet", "--run-id", run_id)
    ended_at = time.time() - ended_days_ago * DAY_S
    with closing(sqlite3.connect("asyncflow.db")) as database, database:
        database.execute("UPDATE runs SET updated_at = ? WHERE run_id = ?", (ended_at, run_id))


def ids(shell: Shell) -> set[str]:
    return {run["run_id"] for run in shell.json("runs", "--json")}


@contextmanager
def active_run(run_id: str) -> Iterator[None]:
    """Run a pipeline in another event loop inside a ``with`` block."""

    async def begin() -> asyncio.Task[object]:
        has_started = asyncio.Event()

        async def hang() -> None:
            has_started.set()
            await asyncio.Event().wait()

        pipeline = Orchestrator([WorkflowStep("hang", hang, timeout_ms=None)], name="etl")
        task = asyncio.ensure_future(pipeline.with_options(run_id=run_id, journal=journal).run())
        await has_started.wait()
        return task

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    loop = asyncio.new_event_loop()
    with closing(SQLiteJournal("asyncflow.db")) as journal, closing(loop):
        task = loop.run_until_complete(begin())
        yield
        loop.run_until_complete(end())


# prune


def test_runs_that_ended_before_an_age_are_removed(shell: Shell) -> None:
    store_run(shell, "old", ended_days_ago=91)
    store_run(shell, "older", ended_days_ago=400)
    store_run(shell, "young", ended_days_ago=89)

    result = shell("prune", "--older-than", "90d")

    assert re.fullmatch(
        r"removed 2 runs that ended before [\d-]{10} [\d:]{8} UTC\S*\n", result.stdout
    )
    assert result.stderr == ""
    assert ids(shell) == {"young"}


def test_the_number_of_removed_runs_is_available_as_json(shell: Shell) -> None:
    store_run(shell, "old", ended_days_ago=91)

    assert shell.json("prune", "--older-than", "90d", "--json") == {"removed": 1}
    assert shell.json("prune", "--older-than", "90d", "--json") == {"removed": 0}


def test_an_active_run_is_never_removed(shell: Shell) -> None:
    store_run(shell, "old", ended_days_ago=1)
    with active_run("r1"):
        assert shell.json("prune", "--older-than", "0s", "--json") == {"removed": 1}
        assert ids(shell) == {"r1"}


@pytest.mark.parametrize("text", ["", "90", "-90d", "soon", "2999-01-01", "0001-01-01"])
def test_an_invalid_age_removes_nothing(shell: Shell, text: str) -> None:
    store_run(shell, "old", ended_days_ago=91)

    result = shell("prune", "--older-than", text, exits=2)

    assert "Invalid value for '--older-than'" in result.stderr
    assert ids(shell) == {"old"}


def test_prune_requires_an_age(shell: Shell) -> None:
    store_run(shell, "old", ended_days_ago=91)

    assert "Missing option '--older-than'" in shell("prune", exits=2).stderr
    assert ids(shell) == {"old"}


# forget


def test_passed_and_failed_runs_can_be_forgotten(shell: Shell) -> None:
    store_run(shell, "one")
    shell("run", "etl:failing", "--quiet", "--run-id", "two", exits=1)

    passed, failed = shell("forget", "one"), shell("forget", "two")

    assert (passed.stdout, passed.stderr) == ("removed run one of etl (PASSED)\n", "")
    assert failed.stdout == "removed run two of etl:failing (FAILED)\n"
    assert shell("runs").stderr == "no matching runs\n"


def test_the_json_of_a_forgotten_run_equals_that_of_the_list(shell: Shell) -> None:
    store_run(shell, "one")
    (listed,) = shell.json("runs", "--json")

    assert shell.json("forget", "one", "--json") == listed


@pytest.mark.parametrize("name", ["nightly", "latest", "nightly-2"])
def test_forget_requires_the_full_run_id(shell: Shell, name: str) -> None:
    store_run(shell, "nightly-1")

    result = shell("forget", name, exits=4)

    assert f"has no run {name!r}" in result.stderr
    assert ids(shell) == {"nightly-1"}


def test_an_active_run_is_not_forgotten(shell: Shell) -> None:
    with active_run("r1"):
        result = shell("forget", "r1", exits=1)

        assert re.fullmatch(
            r"Error: run 'r1' is active in process \d+ on .*; stop it with "
            r"`asyncflow cancel r1`, and then forget it\n",
            result.stderr,
        )
        assert ids(shell) == {"r1"}


# Both.


@pytest.mark.parametrize("command", [["prune", "--older-than", "1d"], ["forget", "r1"]])
def test_a_missing_journal_is_not_created(shell: Shell, command: list[str]) -> None:
    assert "does not exist" in shell(*command, exits=4).stderr
    assert not list(shell.directory.glob("*.db*"))


def test_the_commands_and_their_arguments_are_completed(shell: Shell) -> None:
    store_run(shell, "one")
    completion = ShellComplete(commands, {}, "asyncflow", "_ASYNCFLOW_COMPLETE")

    def completed(*words: str) -> list[str]:
        found = completion.get_completions(list(words[:-1]), words[-1])
        return [item.value for item in found]

    assert completed("pr") == ["prune"]
    assert completed("forget", "o") == ["one"]
    assert "--older-than" in completed("prune", "--ol")
    assert completed("runs", "--status", "pas") == ["PASSED"]
