"""The journal of 0.1.0, which is stored beside the tests, is open to every reader.

Until 0.1.0 is released, its file is written anew after each change of the schema. From then on it
is what users have: then a change of the schema must open it, and no test here may be changed.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from virtual_journals import in_virtual_time

from asyncflow import RunStatus, StepStatus, resume_all
from asyncflow._cli import commands
from asyncflow.html_report import to_html
from asyncflow.journal import SQLiteJournal
from asyncflow.journal._database.tables import VERSION as SCHEMA
from asyncflow.service import Service
from asyncflow.web import app
from tests.release import ROOT, is_released
from tests.stored_journal import (
    FILE,
    PIPELINES,
    VERSION,
    Approval,
    Price,
    agent,
    called,
    make,
    orders,
    rates,
    reports,
    shop,
)

STATUSES = {
    "agent-failed": RunStatus.FAILED,
    "agent-orphaned": RunStatus.ORPHANED,
    "answered": RunStatus.WAITING,
    "cached": RunStatus.PASSED,
    "cancelled": RunStatus.INTERRUPTED,
    "later": RunStatus.WAITING,
    "nested": RunStatus.PASSED,
    "outer": RunStatus.PASSED,
    "passed": RunStatus.PASSED,
    "queued": RunStatus.WAITING,
    "queued-behind": RunStatus.WAITING,
    "rerun": RunStatus.PASSED,
    "waiting": RunStatus.WAITING,
}


def test_until_the_release_the_stored_journal_is_written_anew_for_each_schema() -> None:
    is_new = is_released(ROOT, VERSION) or schema_of(FILE) == SCHEMA

    assert is_new, "run python -m tests.stored_journal, and commit the file"


def schema_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def test_the_same_code_writes_the_same_rows(tmp_path: Path) -> None:
    one, other = tmp_path / "one.db", tmp_path / "other.db"

    make(one)
    make(other)

    assert rows_of(one) == rows_of(other)
    assert len(rows_of(one)) > 150


def rows_of(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [*connection.iterdump()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The stored journal; before the release, if its schema is an older one, a new one like it."""
    path = tmp_path / "runs.db"
    if is_released(ROOT, VERSION) or schema_of(FILE) == SCHEMA:
        shutil.copy(FILE, path)
    else:
        make(path)
    called.clear()
    return path


@pytest.fixture
def make_journal(path: Path) -> Callable[[], SQLiteJournal]:
    return lambda: SQLiteJournal(path)


@in_virtual_time
async def test_lists_have_all_runs(journal: SQLiteJournal) -> None:
    records = {record.run_id: record for record in await journal.runs(limit=None)}

    assert {run_id: record.status for run_id, record in records.items()} == STATUSES
    assert [run.run_id for run in await journal.runs(attributes={"tenant": "acme"})] == [
        "rerun",
        "passed",
    ]
    assert [run.run_id for run in await journal.orphans()] == ["agent-orphaned"]
    assert records["rerun"].rerun_of == "passed"
    assert (records["nested"].parent, records["nested"].parent_step) == ("outer", "inner")
    assert records["passed"].label == "order 12345"
    assert (await journal.queue()).waiting == 3
    assert await journal.pipelines() == sorted(pipeline.name for pipeline in PIPELINES)


@in_virtual_time
async def test_reports_have_outputs_errors_and_notes(journal: SQLiteJournal) -> None:
    report = await shop.with_options(journal=journal).report("passed")
    failed = await journal.report("agent-failed")

    assert report["price"].output == [Price("tea", 1.5), Price("milk", 1.5)]
    assert report["total"].output == 3.0
    assert "hunter2" not in report.to_json()
    assert str(report["price"].items[2].error) == "builtins.LookupError: nobody sells rum"
    assert str(failed["think"].error) == "builtins.TimeoutError: the model is busy"
    notes = [type(each.event).__name__ for each in await journal.notes("passed")]
    assert notes.count("StepLogged") == 5
    assert {"StepAttached", "StepProgressed"} <= {*notes}
    streamed = [each.value async for each in journal.streamed("passed", "total")]
    assert streamed == ["the", "total", "is"]
    steps = (await journal.statistics("shop")).steps
    assert steps["price"].failed_items == (1, 1)
    assert (await journal.compare("rerun", "passed")).steps


@in_virtual_time
async def test_each_run_is_exported_and_shown_as_a_page(
    journal: SQLiteJournal, tmp_path: Path
) -> None:
    transport = httpx.ASGITransport(app(journal))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8765") as client:
        for run_id in STATUSES:
            assert (await client.get(f"/runs/{run_id}")).status_code == 200, run_id
            await journal.export(run_id, tmp_path / f"{run_id}.db")
        runs = await client.get("/")

    assert all(run_id in runs.text for run_id in STATUSES)
    async with SQLiteJournal(tmp_path / "passed.db") as exported:
        assert (await exported.report("passed")).all_passed


def test_the_command_line_shows_runs_steps_logs_and_differences(path: Path) -> None:
    def run(*arguments: str) -> str:
        done = CliRunner().invoke(commands, [*arguments, "--journal", str(path)])
        assert done.exit_code == 0, done.output
        return done.output

    assert all(run_id in run("runs", "--limit", "50") for run_id in STATUSES)
    assert all(run_id in run("show", run_id) for run_id in STATUSES)
    assert "nobody sells rum" in run("show", "passed", "price[2]")
    assert "asking for tea" in run("logs", "passed")
    assert "passed" in run("diff", "rerun", "passed")
    assert "price" in run("stats", "shop")


@in_virtual_time
async def test_runs_that_wait_continue_with_their_answers(journal: SQLiteJournal) -> None:
    await journal.signal("waiting", "approved", Approval(True, 7))

    continued = {report.run_id: report for report in await resume_all(journal, [orders])}

    assert {run_id: report["send"].output for run_id, report in continued.items()} == {
        "answered": "sent: offer for answered, up to 100",
        "waiting": "sent: offer for waiting, up to 7",
    }
    assert called == []  # no draft is made anew
    told = to_html(await journal.report("answered"))
    assert "Is this right for answered: offer for answered?" in told
    assert "as we said by phone" in told


@in_virtual_time
async def test_runs_that_have_lost_their_process_or_failed_continue_where_they_were(
    journal: SQLiteJournal,
) -> None:
    (orphan,) = await resume_all(journal, [agent])
    cancelled = await agent.with_options(journal=journal, run_id="cancelled").run()
    with pytest.raises(LookupError):
        await journal.record("no such run")

    assert orphan["think"].output == "HOW?, from {'answers': 1}"
    assert cancelled["think"].output == "WHEN?, from None"
    assert called == ["ask when?"]  # no call is paid twice


@in_virtual_time
async def test_results_are_reused_by_other_runs(journal: SQLiteJournal) -> None:
    report = await rates.with_options(journal=journal, run_id="later-on").run(currency="CHF")
    rerun = await shop.with_options(journal=journal).rerun("passed", "again")

    assert report["rate"].output == 1.07
    assert called == []
    assert rerun["items"].status is StepStatus.SUCCESS
    assert rerun["items"].origin == "passed"


@in_virtual_time
async def test_runs_that_wait_to_start_do_so_in_their_order(journal: SQLiteJournal) -> None:
    async with Service([reports], journal=journal):
        while (await journal.queue()).waiting:
            await asyncio.sleep(1)

    assert sorted(called) == ["write later", "write queued", "write queued-behind"]
    assert called.index("write queued") < called.index("write queued-behind")


@in_virtual_time
async def test_runs_are_forgotten(journal: SQLiteJournal) -> None:
    await journal.forget("passed")

    assert "passed" not in {run.run_id for run in await journal.runs(limit=None)}
