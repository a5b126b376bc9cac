"""``resume --status`` resumes all runs that match."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from contextlib import closing

import pytest

from asyncflow import Orchestrator, WorkflowStep
from asyncflow.journal import SQLiteJournal

from .conftest import Shell

SHOP = """
    import asyncio, os
    from asyncflow import Pipeline, after

    pipeline = Pipeline("shop")
    active = most = 0
    gates = {}

    @pipeline.step
    async def extract(day: int):
        return day

    @pipeline.step
    async def load(rows: int = after(extract)):
        global active, most
        active += 1
        most = max(most, active)
        with open("most", "w") as file:
            file.write(str(most))
        at_once = int(os.environ.get("AT_ONCE", "1"))
        gate = gates.setdefault(at_once, asyncio.Event())
        if active == at_once:
            gate.set()
        await gate.wait()
        active -= 1
        if not os.path.exists("repaired") or rows == 2:
            raise OSError("no disk")

    other = Pipeline("other")

    @other.step
    async def fails():
        raise ValueError("other")
"""


FORGETS = """
        import sqlite3
        from contextlib import closing
        with closing(sqlite3.connect("asyncflow.db")) as database, database:
            for table in ("runs", "events"):
                database.execute(f"DELETE FROM {table} WHERE run_id = 'other'")
        """


@pytest.fixture
def shop(shell: Shell) -> Shell:
    shell.write("shop.py", SHOP)
    for day in (1, 2, 3):
        arguments = "--run-id", f"day-{day}", "--input", f"day={day}", "--attribute", f"day={day}"
        shell("run", "shop:pipeline", *arguments, "--quiet", exits=1)
    shell("run", "shop:other", "--run-id", "other", "--quiet", exits=1)
    shell.write("repaired", "")
    return shell


def statuses(shell: Shell) -> dict[str, str]:
    return {run["run_id"]: run["status"] for run in shell.json("runs", "--json")}


def test_all_that_match_are_resumed_one_after_the_other_and_listed(shop: Shell) -> None:
    result = shop("resume", "--status", "FAILED", "shop:pipeline", exits=1)

    assert result.stderr.splitlines() == [
        "1 of 3: run day-1 PASSED",
        "2 of 3: run day-2 FAILED",
        "3 of 3: run day-3 PASSED",
    ]
    rows = [line.split()[:3] for line in result.stdout.splitlines()[1:]]
    assert rows == [["day-3", "✓", "PASSED"], ["day-2", "✗", "FAILED"], ["day-1", "✓", "PASSED"]]
    assert "load: OSError: no disk" in result.stdout
    assert statuses(shop)["other"] == "FAILED"
    assert (shop.directory / "most").read_text() == "1"


def test_several_at_once(shop: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AT_ONCE", "3")

    result = shop("resume", "--status", "failed", "shop:pipeline", "--jobs", "3", "--json", exits=1)

    found = {run["run_id"]: run["status"] for run in json.loads(result.stdout)}
    assert found == {"day-1": "PASSED", "day-2": "FAILED", "day-3": "PASSED"}
    assert (shop.directory / "most").read_text() == "3"


def test_only_those_with_an_attribute_are_resumed(shop: Shell) -> None:
    result = shop("resume", "--status", "FAILED", "--attribute", "day=3", "shop:pipeline")

    assert result.stderr.splitlines() == ["1 of 1: run day-3 PASSED"]
    assert statuses(shop)["day-1"] == "FAILED"


def test_several_pipelines_of_the_runs_since_then(shop: Shell) -> None:
    later = shop("resume", "--status", "FAILED", "--since", "2999-01-01", "shop:pipeline")
    both = shop("resume", "--status", "FAILED", "shop:pipeline", "shop:other", exits=1)

    assert later.stderr == "no matching runs\n"
    assert "4 of 4" in both.stderr


def test_pipelines_of_the_project_count_if_none_is_named(shop: Shell) -> None:
    shop.write("pyproject.toml", '[tool.asyncflow]\npipelines = ["shop:pipeline", "shop:other"]\n')

    named = shop("resume", "--status", "FAILED", "shop:other", "--dry-run")
    of_project = shop("resume", "--status", "FAILED", "--dry-run", "--json")

    assert re.findall("of run (.+):", named.stdout) == ["other"]
    assert len(json.loads(of_project.stdout)) == 4


def test_damaged_and_removed_runs_cost_no_other(shop: Shell) -> None:
    # The first run that is resumed forgets another one, while the runs are resumed.
    shop.write("more.py", SHOP.replace("global active", FORGETS + "global active"))
    with closing(sqlite3.connect("asyncflow.db")) as database, database:
        database.execute("UPDATE events SET at_ms = 1 WHERE run_id = 'day-2'")

    result = shop("resume", "--status", "FAILED", "more:pipeline", "more:other", exits=1)

    assert "run day-1 PASSED" in result.stderr
    assert "run day-2 was not resumed: journal asyncflow.db: event 1" in result.stderr
    assert "run other was not resumed: " in result.stderr
    assert "4 of 4" in result.stderr
    listed = [line.split()[0] for line in result.stdout.splitlines()[1:]]
    assert listed[0] == "day-3"
    assert "other" not in listed


def test_a_run_that_can_not_be_resumed_costs_no_other(shop: Shell) -> None:
    shop.write("more.py", SHOP.replace("async def load", "async def loaded"))

    result = shop("resume", "--status", "FAILED", "more:pipeline", exits=3)

    assert (
        "'day-1' can't continue: pipeline 'shop' no longer has its step 'load' (did you mean"
        in (result.stderr)
    )
    assert "3 of 3" in result.stderr


def test_a_dry_run_shows_what_each_would_do(shop: Shell) -> None:
    before = shop("runs", "--json").stdout

    result = shop("resume", "--status", "FAILED", "shop:pipeline", "--dry-run")
    as_json = shop.json("resume", "--status", "FAILED", "shop:pipeline", "--dry-run", "--json")

    assert result.stdout.split("\n\n")[0] == (
        "A resumption of run day-1: 1 reused, 1 to run\n"
        "[REUSED ] extract\n"
        "[RUNS   ] load: it had failed"
    )
    assert [preview["run_id"] for preview in as_json] == ["day-1", "day-2", "day-3"]
    assert shop("runs", "--json").stdout == before


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["day-1", "shop:pipeline", "--jobs", "2"], "give --status too"),
        (["day-1", "shop:pipeline", "--since", "1d"], "give --status too"),
        (["day-1", "shop:pipeline", "--attribute", "day=1"], "give --status too"),
        (["--status", "PASSED", "shop:pipeline"], "no such run can be resumed"),
        (["--status", "FAILED", "shop:pipeline", "--html", "x.html"], "about one run"),
        (["--status", "FAILED"], "name the pipelines"),
        ([], "Missing argument 'RUN'"),
    ],
)
def test_what_makes_no_sense_is_refused(shop: Shell, arguments: list[str], problem: str) -> None:
    assert problem in shop("resume", *arguments, exits=2).stderr


OFFERS = """
    import asyncio, os
    from asyncflow import Pipeline, after
    from asyncflow.journal import SQLiteJournal

    pipeline = Pipeline("offers", fail_fast=False)
    approved = pipeline.signal("approved", bool)

    async def answered_by_a_service(run_id):
        async with SQLiteJournal("asyncflow.db") as journal:
            await journal.signal(run_id, "approved", True)
            await pipeline.with_options(journal=journal, run_id=run_id).run()

    @pipeline.step
    async def send(approved: bool = after(approved)):
        if not os.path.exists("sent"):
            open("sent", "w").close()
            await answered_by_a_service("b")
        else:
            raise OSError("no mail server")
"""


@pytest.fixture
def offers(shell: Shell) -> Shell:
    shell.write("offers.py", OFFERS)
    for run_id in ("a", "b"):
        shell("run", "offers:pipeline", "--run-id", run_id, "--quiet", exits=5)
    shell("signal", "a", "approved", "true")
    return shell


def test_a_run_that_a_service_has_continued_sooner_is_no_failure(offers: Shell) -> None:
    result = offers("resume", "--status", "WAITING", "offers:pipeline")

    assert result.stderr.splitlines() == [
        "1 of 2: run a PASSED",
        "2 of 2: run b was taken by another process: it is FAILED now",
    ]
    assert statuses(offers) == {"a": "PASSED", "b": "FAILED"}


def test_a_run_that_is_active_in_a_service_is_no_failure(offers: Shell) -> None:
    journal = SQLiteJournal("asyncflow.db")
    asyncio.run(journal.open("b", wait=False, read=lambda stored: stored.status))
    offers.write("sent", "")
    offers.write("others.py", OFFERS.replace("raise OSError", "print"))
    try:
        result = offers("resume", "--status", "WAITING", "others:pipeline")
    finally:
        journal.close()

    assert "run a PASSED" in result.stderr
    assert "run b was taken by another process: " in result.stderr


def test_runs_that_wait_to_start_are_started_when_they_are_due(shell: Shell) -> None:
    async def step() -> None: ...

    async def enqueue() -> None:
        async with SQLiteJournal("asyncflow.db") as journal:
            work = Orchestrator([WorkflowStep("step", step)], name="work", journal=journal)
            for run_id, delay_ms in ("a", 0), ("b", 0), ("later", 3_600_000):
                await work.enqueue(run_id=run_id, key="k", delay_ms=delay_ms)

    asyncio.run(enqueue())
    shell.write(
        "work.py",
        """
        from asyncflow import Pipeline
        pipeline = Pipeline("work")

        @pipeline.step
        async def step(): ...
        """,
    )

    shell("resume", "work:pipeline", "--status", "WAITING", "--jobs", "3", "--quiet")

    assert statuses(shell) == {"a": "PASSED", "b": "PASSED", "later": "WAITING"}
