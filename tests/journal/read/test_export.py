"""A run is copied into a file of its own: whole, without secrets, over nothing."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from asyncflow import (
    Orchestrator,
    Pipeline,
    RunNotFoundError,
    RunUnreadableError,
    WorkflowStep,
    after,
    current_step,
    run_pipeline,
)
from asyncflow.journal import SQLiteJournal


class Work:
    def __init__(self) -> None:
        self.is_broken = True
        self.calls: list[str] = []

    async def extract(self, day: str, token: str) -> bytes:
        self.calls.append("extract")
        logging.getLogger("work").info("reads %s", day)
        current_step().attach("rows.csv", b"a,b", media_type="text/csv")
        return b"rows"

    async def load(self, extract: bytes) -> int:
        self.calls.append("load")
        if self.is_broken:
            raise OSError("no disk")
        return len(extract)

    def steps(self) -> list[WorkflowStep]:
        return [
            WorkflowStep("extract", self.extract),
            WorkflowStep("load", self.load, ["extract"]),
        ]

    def orchestrator(self, journal: Any, run_id: str = "r") -> Orchestrator:
        return Orchestrator(
            self.steps(), name="etl", journal=journal, secret_inputs=["token"]
        ).with_options(run_id=run_id)


@pytest.fixture
def work() -> Work:
    return Work()


async def test_the_copy_says_the_same_and_can_be_rerun(
    make_journal: Any, work: Work, tmp_path: Path
) -> None:
    path = tmp_path / "r.db"
    journal = make_journal(logs="INFO")
    await work.orchestrator(journal).run(day="monday", token="hunter2")
    await work.orchestrator(journal, run_id="other").run(day="monday", token="hunter2")

    await journal.export("r", path)

    assert [each.name for each in tmp_path.iterdir() if each.name.startswith("r.db")] == ["r.db"]
    assert b"hunter2" not in path.read_bytes()
    async with SQLiteJournal(path) as copy:
        assert [record.run_id for record in await copy.runs()] == ["r"]
        assert await copy.record("r") == await journal.record("r")
        assert str(await copy.events("r")) == str(await journal.events("r"))
        assert str(await copy.notes("r")) == str(await journal.notes("r"))
        assert (await copy.report("r")).to_json() == (await journal.report("r")).to_json()

        work.is_broken = False
        work.calls.clear()
        report = await work.orchestrator(copy).rerun("r", "again", inputs={"token": "other"})

        assert report.all_passed
        assert work.calls == ["load"]
    assert [record.run_id for record in await journal.runs()] == ["other", "r"]


async def test_a_copy_has_a_result_from_the_cache_with_its_origin_but_no_cache(
    make_journal: Any, tmp_path: Path
) -> None:
    calls: list[str] = []
    etl = Pipeline("etl")

    @etl.step(cache_ms=3_600_000)
    async def load() -> int:
        calls.append("load")
        return 3

    @etl.step
    async def check(rows: int = after(load)) -> None:
        calls.append("check")
        raise ValueError(rows)

    journal = make_journal()
    for run_id in ("first", "second"):
        await etl.with_options(journal=journal, run_id=run_id).run()
    calls.clear()

    await journal.export("second", tmp_path / "copy.db")

    async with SQLiteJournal(tmp_path / "copy.db") as copy:
        at_home = etl.with_options(journal=copy)
        assert (await copy.report("second"))["load"].origin == "first"
        again = await at_home.rerun("second", "again")
        assert (again["load"].origin, calls) == ("first", ["check"])
        await at_home.with_options(run_id="new").run()
        assert calls == ["check", "load", "check"]


async def test_what_has_become_secret_is_left_out(
    make_journal: Any, work: Work, tmp_path: Path
) -> None:
    async def name(user: str) -> str:
        return f"name of {user}"

    async def fails(name: str) -> None:
        raise ValueError

    journal = make_journal()
    before = [WorkflowStep("name", name), WorkflowStep("fails", fails, ["name"])]
    now = [WorkflowStep("name", name, secret=True), WorkflowStep("fails", fails, ["name"])]
    await run_pipeline(before, inputs={"user": "hunter2"}, journal=journal, run_id="r")
    options: Any = {"journal": journal, "run_id": "r", "secret_inputs": ["user"]}
    await run_pipeline(now, inputs={"user": "hunter2"}, **options)

    await journal.export("r", tmp_path / "copy.db")

    assert b"hunter2" not in (tmp_path / "copy.db").read_bytes()
    async with SQLiteJournal(tmp_path / "copy.db") as copy:
        assert str(await copy.report("r")) == str(await journal.report("r"))


async def test_a_file_is_not_overwritten(journal: Any, work: Work, tmp_path: Path) -> None:
    await work.orchestrator(journal).run(day="monday", token="x")
    path = tmp_path / "copy.db"
    path.write_text("mine")

    with pytest.raises(FileExistsError):
        await journal.export("r", path)

    assert path.read_text() == "mine"


async def test_no_file_is_left_of_a_run_that_is_not_there_or_damaged(
    journal: Any, database: Any, work: Work, tmp_path: Path
) -> None:
    await work.orchestrator(journal).run(day="monday", token="x")
    path = tmp_path / "copy.db"

    with pytest.raises(RunNotFoundError):
        await journal.export("x", path)
    database.query("UPDATE events SET at_ms = 77 WHERE position = 2")
    with pytest.raises(RunUnreadableError):
        await journal.export("r", path)

    assert not [each for each in tmp_path.iterdir() if each.name.startswith("copy")]


async def test_a_run_that_is_deleted_meanwhile_is_not_found_and_leaves_no_file(
    make_journal: Any, work: Work, tmp_path: Path
) -> None:
    journal, other = make_journal(), make_journal()
    await work.orchestrator(journal).run(day="monday", token="x")

    class Deleting(type(tmp_path)):  # type: ignore[misc]
        """A path that is asked for its name after the run was found, and before it is read."""

        def __fspath__(self) -> str:
            forgetting = threading.Thread(target=asyncio.run, args=[other.forget("r")])
            forgetting.start()
            forgetting.join()
            return super().__fspath__()

    with pytest.raises(RunNotFoundError):
        await journal.export("r", Deleting(tmp_path / "copy.db"))

    assert not [each for each in tmp_path.iterdir() if each.name.startswith("copy")]


@pytest.mark.parametrize(
    "database", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
)
async def test_a_run_whose_row_has_a_nan_is_copied_once(
    make_journal: Any, database: Any, work: Work, tmp_path: Path
) -> None:
    journal, path = make_journal(), tmp_path / "copy.db"
    await work.orchestrator(journal).run(day="monday", token="x")
    database.query("UPDATE runs SET due_at = 'NaN'")  # which differs from itself

    await asyncio.wait_for(journal.export("r", path), 10)

    async with SQLiteJournal(path) as copy:
        assert str(await copy.events("r")) == str(await journal.events("r"))


async def test_a_run_that_is_running_has_no_owner_in_the_copy(
    make_journal: Any, tmp_path: Path
) -> None:
    journal, path = make_journal(), tmp_path / "copy.db"

    async def copies() -> None:
        await journal.export("r", path)

    await run_pipeline([WorkflowStep("s", copies)], journal=journal, run_id="r")

    async with SQLiteJournal(path) as copy:
        record = await copy.record("r")
        assert (record.status, record.owner) == ("ORPHANED", None)
        assert (await copy.orphans()) == [record]
