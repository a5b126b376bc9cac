"""``prune`` and ``forget``: what a journal need not keep any longer."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta

import pytest
from click.shell_completion import ShellComplete

from asyncflow import Orchestrator, WorkflowStep
from asyncflow._cli import commands
from asyncflow.journal import SQLiteJournal

from .conftest import Shell

DAY_S = 86_400


def keep(shell: Shell, run_id: str, *, ended_days_ago: int = 0) -> None:
    shell("run", "etl:pipeline", "--quiet", "--run-id", run_id)
    ended_at = time.time() - ended_days_ago * DAY_S
    with closing(sqlite3.connect("asyncflow.db")) as database, database:
        database.execute(
            "UPDATE runs SET started_at = ?, updated_at = ? WHERE run_id = ?",
            (ended_at, ended_at, run_id),
        )


def ids(shell: Shell) -> set[str]:
    return {run["run_id"] for run in shell.json("runs", "--json")}


@contextmanager
def going_on(run_id: str) -> Iterator[None]:
    """Have somebody else run a run meanwhile."""

    async def begin() -> asyncio.Task[object]:
        has_begun = asyncio.Event()

        async def hang() -> None:
            has_begun.set()
            await asyncio.Event().wait()

        pipeline = Orchestrator([WorkflowStep("hang", hang, timeout_ms=None)], name="etl")
        task = asyncio.ensure_future(pipeline.run(run_id=run_id, journal=journal))
        await has_begun.wait()
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


def test_runs_that_ended_long_ago_are_removed(shell: Shell) -> None:
    keep(shell, "old", ended_days_ago=91)
    keep(shell, "older", ended_days_ago=400)
    keep(shell, "young", ended_days_ago=89)

    result = shell("prune", "--older-than", "90d")

    assert re.fullmatch(r"removed 2 runs that ended before [\d-]{10} [\d:]{8}\n", result.stdout)
    assert result.stderr == ""
    assert ids(shell) == {"young"}


def test_a_date_says_it_too(shell: Shell) -> None:
    keep(shell, "old", ended_days_ago=91)
    keep(shell, "young", ended_days_ago=89)
    date = datetime.now() - timedelta(days=90)

    result = shell("prune", "--older-than", f"{date:%Y-%m-%dT%H:%M}")

    assert result.stdout == f"removed 1 run that ended before {date:%Y-%m-%d %H:%M}:00\n"
    assert ids(shell) == {"young"}


def test_how_many_were_removed_is_told_in_json(shell: Shell) -> None:
    keep(shell, "old", ended_days_ago=91)

    assert shell.json("prune", "--older-than", "90d", "--json") == {"removed": 1}
    assert shell.json("prune", "--older-than", "90d", "--json") == {"removed": 0}


def test_what_goes_on_is_never_removed(shell: Shell) -> None:
    keep(shell, "old", ended_days_ago=1)
    with going_on("r1"):
        assert shell.json("prune", "--older-than", "0s", "--json") == {"removed": 1}
        assert ids(shell) == {"r1"}


@pytest.mark.parametrize("text", ["", "90", "-90d", "soon", "2999-01-01", "0001-01-01"])
def test_an_age_that_is_none_removes_nothing(shell: Shell, text: str) -> None:
    keep(shell, "old", ended_days_ago=91)

    result = shell("prune", "--older-than", text, exits=2)

    assert "Invalid value for '--older-than'" in result.stderr
    assert ids(shell) == {"old"}


def test_how_old_must_be_said(shell: Shell) -> None:
    keep(shell, "old", ended_days_ago=91)

    assert "Missing option '--older-than'" in shell("prune", exits=2).stderr
    assert ids(shell) == {"old"}


# forget


def test_a_run_is_forgotten_whatever_has_become_of_it(shell: Shell) -> None:
    keep(shell, "one")
    shell("run", "etl:failing", "--quiet", "--run-id", "two", exits=1)

    passed, failed = shell("forget", "one"), shell("forget", "two")

    assert (passed.stdout, passed.stderr) == ("removed run one of etl (PASSED)\n", "")
    assert failed.stdout == "removed run two of etl:failing (FAILED)\n"
    assert shell("runs").stderr == "no matching runs\n"


@pytest.mark.parametrize(
    ("status", "says"),
    [("running", "ORPHANED"), ("interrupted", "INTERRUPTED")],
)
def test_a_run_that_has_not_come_to_its_end_is_forgotten_too(
    shell: Shell, status: str, says: str
) -> None:
    keep(shell, "one")
    with closing(sqlite3.connect("asyncflow.db")) as database, database:
        database.execute("UPDATE runs SET status = ?", (status,))

    assert shell("forget", "one").stdout == f"removed run one of etl ({says})\n"


def test_what_was_forgotten_is_told_in_json_as_the_list_does(shell: Shell) -> None:
    keep(shell, "one")
    (listed,) = shell.json("runs", "--json")

    assert shell.json("forget", "one", "--json") == listed


@pytest.mark.parametrize("name", ["nightly", "latest", "nightly-2"])
def test_only_the_whole_id_names_what_is_forgotten(shell: Shell, name: str) -> None:
    keep(shell, "nightly-1")

    result = shell("forget", name, exits=4)

    assert f"has no run {name!r}" in result.stderr
    assert ids(shell) == {"nightly-1"}


def test_a_run_that_goes_on_is_not_forgotten(shell: Shell) -> None:
    with going_on("r1"):
        result = shell("forget", "r1", exits=1)

        assert re.fullmatch(
            r"Error: run 'r1' is active in process \d+ on .*; stop it with "
            r"`asyncflow cancel r1`, and then forget it\n",
            result.stderr,
        )
        assert ids(shell) == {"r1"}


def test_a_run_without_a_pipeline_name_is_told_without_one(shell: Shell) -> None:
    async def run() -> None:
        async with SQLiteJournal("asyncflow.db") as journal:
            await Orchestrator([]).run(run_id="one", journal=journal)

    asyncio.run(run())

    assert shell("forget", "one").stdout == "removed run one (PASSED)\n"


# Both.


@pytest.mark.parametrize("command", [["prune", "--older-than", "1d"], ["forget", "r1"]])
def test_a_journal_that_is_not_there_is_not_made(shell: Shell, command: list[str]) -> None:
    assert "does not exist" in shell(*command, exits=4).stderr
    assert not list(shell.directory.glob("*.db*"))


def test_a_shell_completes_them(shell: Shell) -> None:
    keep(shell, "one")
    completion = ShellComplete(commands, {}, "asyncflow", "_ASYNCFLOW_COMPLETE")

    def completed(*words: str) -> list[str]:
        found = completion.get_completions(list(words[:-1]), words[-1])
        return [item.value for item in found]

    assert completed("pr") == ["prune"]
    assert completed("forget", "o") == ["one"]
    assert "--older-than" in completed("prune", "--ol")
