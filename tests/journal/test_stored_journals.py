"""Journals that an earlier version wrote can be read, and their runs can be resumed."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Coroutine
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from journal.stored_runs import NEWER, PIPELINES, STORED

from asyncflow import RestoredError, RestoredOutput, RunReport, StepStatus
from asyncflow.events import StepAttached, StepLogged, StepProgressed
from asyncflow.journal import SQLiteJournal
from asyncflow.testing import run_in_virtual_time

SUCCESS, FAILED, SKIPPED, CANCELLED = (
    StepStatus.SUCCESS,
    StepStatus.FAILED,
    StepStatus.SKIPPED,
    StepStatus.CANCELLED,
)


@pytest.fixture(params=sorted(STORED.glob("*.db")), ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copy(request.param, tmp_path / "runs.db"))


def with_journal(path: Path, call: Any) -> Any:
    async def main() -> Any:
        async with SQLiteJournal(path) as journal:
            return await call(journal)

    coroutine: Coroutine[Any, Any, Any] = main()
    return run_in_virtual_time(coroutine)


def report_of(path: Path, run_id: str) -> RunReport:
    report = with_journal(path, lambda journal: journal.report(run_id))
    assert isinstance(report, RunReport)
    return report


def resume(path: Path, run_id: str, **inputs: Any) -> RunReport:
    report = with_journal(
        path,
        lambda journal: (
            PIPELINES[run_id].with_options(run_id=run_id, journal=journal).run(**inputs)
        ),
    )
    assert isinstance(report, RunReport)
    return report


def statuses(report: RunReport) -> dict[str, StepStatus]:
    return {name: result.status for name, result in report.items()}


def test_stored_journals_exist() -> None:
    assert sorted(STORED.glob("*.db"))


def test_a_stored_journal_is_migrated(path: Path) -> None:
    with_journal(path, lambda journal: journal.runs())

    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (6,)
        counts = connection.execute("SELECT count(cancel_token), count(clock) FROM leases")
        assert counts.fetchone() == (0, 0)


def test_the_runs_of_a_stored_journal_are_listed(path: Path) -> None:
    runs = with_journal(path, lambda journal: journal.runs())
    orphans = with_journal(path, lambda journal: journal.orphans())

    assert {run.run_id: (run.pipeline, run.status) for run in runs if run.run_id not in NEWER} == {
        "passed": ("orders", "PASSED"),
        "failed": ("orders", "FAILED"),
        "timed out": ("slow", "FAILED"),
        "interrupted": ("slow", "INTERRUPTED"),
        "cut short": ("slow", "ORPHANED"),
    }
    assert [run.run_id for run in orphans] == ["cut short"]


def test_a_stored_passed_run_has_a_report(path: Path) -> None:
    report = report_of(path, "passed")

    assert report.all_passed
    assert report["log_in"].output == RestoredOutput("redacted")
    assert report["price"].output == ["3.00"] * 3  # without the pipeline, the type is unknown
    assert [item.attempts for item in report["price"].items or ()] == [2, 2, 2]
    assert isinstance((report["price"].items or ())[0].history[0].error, RestoredError)
    assert report["clean/tidy"].output == {"1": "one"}
    assert report["never"].by_condition


def test_stored_runs_that_did_not_pass_have_reports(path: Path) -> None:
    failed = report_of(path, "failed")
    assert failed["price"].status is FAILED
    assert failed["load"].status is SKIPPED
    assert failed["alarm"].output == "sent"
    assert failed.stop_reason == "step 'price' failed and fail_fast is on"
    assert statuses(report_of(path, "timed out")) == {"quick": SUCCESS, "slow": CANCELLED}
    assert report_of(path, "interrupted")["slow"].reason == "the caller was cancelled"
    assert statuses(report_of(path, "cut short")) == {
        "quick": SUCCESS,
        "slow": StepStatus.RUNNING,
    }


def test_a_stored_failed_run_resumes(path: Path) -> None:
    report = resume(path, "failed", password="hunter2")

    assert report.all_passed
    assert {result.step_name for result in report.reused} >= {"log_in", "extract", "clean/sort"}
    assert [item.reused for item in report["price"].items or ()] == [True, True, False]
    assert report["load"].output == ["one"]


@pytest.mark.parametrize("run_id", ["interrupted", "cut short"])
def test_a_stored_unfinished_run_resumes(path: Path, run_id: str) -> None:
    report = resume(path, run_id)

    assert report.all_passed
    assert report["quick"].reused
    numbers = [(each.segment, each.number) for each in report["slow"].history]
    assert numbers == [(1, 1), (2, 2 if run_id == "cut short" else 1)]


@pytest.mark.parametrize("path", sorted(STORED.glob("schema-[1-4]*.db")), indirect=True)
@pytest.mark.parametrize("start", ["", "the run was cancelled: ", "the caller was cancelled: "])
def test_a_run_that_a_service_of_before_interrupted_is_known_as_drained(
    path: Path, start: str
) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(
            "UPDATE events SET payload = replace(payload, 'the caller was cancelled', ?) "
            "WHERE run_id = 'interrupted' AND kind = 'RunFinished'",
            [f"{start}the service was shut down"],
        )

    runs = with_journal(path, lambda journal: journal.runs(cause="drained"))

    assert [(run.run_id, run.cause) for run in runs] == [("interrupted", "drained")]


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """Return a copy of the first journal that has all kinds of runs."""
    return Path(shutil.copy(STORED / "schema-4.db", tmp_path / "runs.db"))


def test_stored_notes_are_read(newer: Path) -> None:
    notes = [each.event for each in with_journal(newer, lambda journal: journal.notes("passed"))]
    warned = with_journal(
        newer, lambda journal: journal.notes("passed", text="NO PRICE OF", item=1)
    )

    assert {
        (each.message, each.level, each.attempt) for each in notes if type(each) is StepLogged
    } == {(f"no price of monday {name}", logging.WARNING, 1) for name in "äbc"}
    assert [each.event.message for each in warned] == ["no price of monday b"]
    progress = [each for each in notes if isinstance(each, StepProgressed)]
    assert sorted((each.item, each.attempt, each.done, each.unit) for each in progress) == [
        (item, 2, 2, "prices") for item in range(3)
    ]
    attached = {each.item: each for each in notes if isinstance(each, StepAttached)}
    assert attached[2].data.decode() == "name,amount\nmonday c,1.5\n"


def test_a_stored_run_within_a_run_and_a_stored_rerun_know_their_origins(newer: Path) -> None:
    runs = {run.run_id: run for run in with_journal(newer, lambda journal: journal.runs())}

    assert runs.keys() == PIPELINES.keys()
    assert (runs["nested"].parent, runs["nested"].parent_step) == ("outer", "nest")
    assert runs["fork"].rerun_of == "failed"
    fork = report_of(newer, "fork")
    assert fork.rerun_of == "failed"
    assert fork.all_passed
    assert fork["extract"].origin == "failed"
    assert fork["load"].origin == ""
    assert resume(newer, "fork", password="hunter2")["price"].output == [Decimal("3.00")] * 3


def test_a_stored_journal_gets_notes(path: Path) -> None:
    report = with_journal(
        path,
        lambda journal: (
            PIPELINES["failed"]
            .with_options(run_id="failed", journal=journal)
            .run(password="hunter2")
        ),
    )
    notes = with_journal(path, lambda journal: journal.notes("failed", kinds=[StepAttached]))

    assert report.all_passed
    assert (notes[-1].event.step, notes[-1].event.item) == ("price", 2)
