"""Callers find runs by page, by part of a name, and by whether a process runs them."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from segments import store_segment

from asyncflow import Orchestrator, RunStatus, WorkflowStep
from asyncflow.events import AttemptStarted, RunFinished, RunInterrupted, RunResumed, RunStarted
from asyncflow.journal import SQLiteJournal
from asyncflow.journal._write.store import Store

Make = Callable[..., Any]


async def a_run(
    journal: Any,
    run_id: str,
    wall_time: float = 1.0,
    *,
    status: Any = RunStatus.PASSED,
    pipeline: str = "",
) -> None:
    ended = [RunFinished(9.0, status)] if status else []
    await store_segment(journal, run_id, RunStarted(run_id, wall_time, {"a": ()}, pipeline), *ended)


async def ids(runs: Any) -> list[str]:
    return [run.run_id for run in await runs]


# --- by their parent ------------------------------------------------------------------------------


async def test_a_record_counts_the_processes_that_have_died_since_the_run_last_ended(
    journal: Any,
) -> None:
    crashes = []
    events = [
        RunStarted("r", 1.0, {}),
        RunResumed("r", 2.0, 3.0, {}, {}),
        RunResumed("r", 2.0, 3.0, {}, {}),
        RunFinished(3.0, RunStatus.INTERRUPTED),
        RunResumed("r", 3.0, 4.0, {}, {}),
    ]
    for event in events:
        session, _ = await journal.open("r", wait=False, read=bool)
        session.append(event)
        await session.flush()
        while_it_runs = (await journal.record("r")).crashes
        await session.close()
        crashes.append((while_it_runs, (await journal.record("r")).crashes))

    assert crashes == [(0, 1), (1, 2), (2, 3), (0, 0), (0, 1)]


@pytest.mark.parametrize("parent", ["r", "a/b", '"quoted"', "a\0\ud800"])
async def test_runs_are_found_by_the_run_whose_step_started_them(journal: Any, parent: str) -> None:
    for run_id, within, wall_time in (("one", parent, 1.0), ("two", parent, 2.0), ("x", "", 3.0)):
        origin = {"parent": within, "parent_step": within, "rerun_of": within}
        await store_segment(journal, run_id, RunStarted(run_id, wall_time, {}, **origin))

    found = await journal.runs(parent=parent)

    assert [record.run_id for record in found] == ["two", "one"]
    assert {record.parent for record in found} == {parent}
    assert {record.parent_step for record in found} == {parent}
    assert {record.rerun_of for record in found} == {parent}
    assert await ids(journal.runs(parent=parent, limit=1)) == ["two"]
    assert await ids(journal.runs(parent="other")) == []
    assert (await journal.record("x")).parent == ""
    assert (await journal.report("one")).parent == parent


# --- by their label -------------------------------------------------------------------------------


async def test_runs_are_found_by_their_label_and_by_a_part_of_it(journal: Any) -> None:
    for run_id, label in (("one", "order 12345"), ("two", "Order 123456"), ("x", "")):
        await store_segment(journal, run_id, RunStarted(run_id, 1.0, {}, label=label))

    (found,) = await journal.runs(label="order 12345")

    assert (found.run_id, found.label) == ("one", "order 12345")
    assert await ids(journal.runs(label="order")) == []
    assert await ids(journal.runs(text="order 12")) == ["two", "one"]
    assert (await journal.record("x")).label == ""
    assert (await journal.report("two")).label == "Order 123456"


# --- by their attributes --------------------------------------------------------------------------


async def test_runs_are_found_by_all_of_their_attributes(journal: Any) -> None:
    named: dict[str, dict[str, Any]] = {
        "one": {"tenant": "acme", "urgent": True},
        "two": {"tenant": "acme", "urgent": False},
        "three": {"tenant": 'a"\0\ud800', "urgent": True},
        "x": {},
    }
    for at, (run_id, attributes) in enumerate(named.items()):
        started = RunStarted(run_id, float(at), {}, "p", attributes=attributes)
        await store_segment(journal, run_id, started, RunFinished(1.0, RunStatus.PASSED))

    (found,) = await journal.runs(attributes={"urgent": True, "tenant": "acme"})

    assert (found.run_id, found.attributes) == ("one", {"tenant": "acme", "urgent": True})
    assert await ids(journal.runs(attributes={"tenant": "acme"})) == ["two", "one"]
    page = await journal.runs(attributes={"tenant": "acme"}, limit=1)
    before = page[-1].place
    assert await ids(journal.runs(attributes={"tenant": "acme"}, before=before)) == ["one"]
    assert await ids(journal.runs(attributes={"tenant": "acme"}, since=1.0)) == ["two"]
    assert await ids(journal.runs("failed", attributes={"tenant": "acme"})) == []
    assert await ids(journal.runs(attributes={"tenant": 'a"\0\ud800'})) == ["three"]
    assert len(await journal.runs(attributes={})) == 4
    assert (await journal.report("two")).attributes == named["two"]

    await journal.forget("one")
    await journal.prune(timedelta(0))

    await store_segment(journal, "one", RunStarted("one", 1.0, {}))
    assert await journal.runs(attributes={"urgent": True}) == []
    assert (await journal.record("one")).attributes == {}


async def test_attributes_are_compared_with_their_types(journal: Any) -> None:
    values = [1, 1.0, True, "1", 0, False, -(2**63), 2**63 - 1, 1e300, "true", ""]
    for at, value in enumerate(values):
        await store_segment(journal, str(at), RunStarted(str(at), 1.0, {}, attributes={"n": value}))

    for at, value in enumerate(values):
        (found,) = await journal.runs(attributes={"n": value})
        assert found.run_id == str(at)
        assert (type(found.attributes["n"]), found.attributes["n"]) == (type(value), value)


async def test_an_exported_run_has_its_attributes(journal: Any, tmp_path: Path) -> None:
    await store_segment(journal, "r", RunStarted("r", 1.0, {}, attributes={"tenant": "acme"}))

    await journal.export("r", tmp_path / "one.db")

    async with SQLiteJournal(tmp_path / "one.db") as copy:
        (found,) = await copy.runs(attributes={"tenant": "acme"})
        assert found.attributes == (await copy.report("r")).attributes == {"tenant": "acme"}


async def test_the_rows_of_all_attributes_are_one_statement_of_the_transaction_of_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        statements: list[str] = []
        execute = Store._execute
        monkeypatch.setattr(
            Store, "_execute", lambda self, *of: (statements.append(of[1]), execute(self, *of))[1]
        )
        attributes = {f"n{at}": at for at in range(16)}

        await store_segment(journal, "r", RunStarted("r", 1.0, {}, attributes=attributes))

        assert sum("run_attributes" in each for each in statements) == 1
        assert len(await journal.runs(attributes=attributes)) == 1


# --- by what interrupted them ---------------------------------------------------------------------


async def test_runs_are_found_by_what_interrupted_them(journal: Any) -> None:
    for run_id, cause in (("one", "drained"), ("two", "drained"), ("x", "cancelled"), ("y", None)):
        interrupted = RunInterrupted(1.0, "why", cause)
        ended = RunFinished(2.0, RunStatus.INTERRUPTED, "why", cause)
        await store_segment(journal, run_id, RunStarted(run_id, 1.0, {}), interrupted, ended)
    await store_segment(journal, "one", RunResumed("one", 2.0, 3.0, {}, {}))

    found = await journal.runs(cause="drained")

    assert [(run.run_id, run.cause) for run in found] == [("two", "drained")]
    assert (await journal.record("one")).cause is (await journal.record("y")).cause is None
    assert [each.event.cause for each in await journal.events("x", 1)] == ["cancelled"] * 2
    with pytest.raises(ValueError, match="cause must be one of 'caller', 'cancelled', 'replaced'"):
        await journal.runs(cause="shut down")


# --- page by page --------------------------------------------------------------------------------


async def test_runs_are_read_page_by_page_even_if_several_started_at_the_same_time(
    journal: Any,
) -> None:
    for number in range(10):
        await a_run(journal, f"r{number}", float(number // 4), pipeline="p" if number % 2 else "q")

    pages, place = [], None
    while page := await journal.runs(limit=3, before=place):
        pages.append([run.run_id for run in page])
        place = page[-1].place

    assert pages == [["r9", "r8", "r7"], ["r6", "r5", "r4"], ["r3", "r2", "r1"], ["r0"]]
    assert await ids(journal.runs(before=(1.0, "r6"), pipeline="p")) == ["r5", "r3", "r1"]
    assert await ids(journal.runs(before=(1.0, "no such run"))) == await ids(journal.runs(before=1))


async def test_a_page_can_end_at_a_time(journal: Any) -> None:
    for number in range(5):
        await a_run(journal, f"r{number}", float(number))

    assert await ids(journal.runs(before=3.0)) == ["r2", "r1", "r0"]
    assert await ids(journal.runs(before=datetime.fromtimestamp(2))) == ["r1", "r0"]
    assert await ids(journal.runs(since=1, before=3)) == ["r2", "r1"]
    assert await ids(journal.runs(since=1, before=(3.0, "r3"), limit=1)) == ["r2"]
    assert await journal.runs(before=0) == []


# --- by a part of a name -------------------------------------------------------------------------


async def test_text_search_covers_ids_and_names_and_ignores_case(journal: Any) -> None:
    await a_run(journal, "Nightly-1", pipeline="etl")
    await a_run(journal, "x-2", pipeline="the NIGHTLY load")
    await a_run(journal, "Käse-3", pipeline="Ölpreise 100%")
    await a_run(journal, "under_4", pipeline="[a-z]*?^\\d{2}|.")

    async def found(text: str) -> list[str]:
        return sorted(await ids(journal.runs(text=text)))

    assert await found("nightly") == ["Nightly-1", "x-2"]
    assert await found("NIGHTLY-") == ["Nightly-1"]
    assert await found("ETL") == ["Nightly-1"]
    assert await found("KÄS") == ["Käse-3"]
    assert await found("ölPREISE") == ["Käse-3"]
    assert await found("0%") == ["Käse-3"]
    for text in ("[A-Z]", "]*?^", "^\\D{2}|.", "*", "?", "\\", "{", "|"):
        assert await found(text) == ["under_4"], text
    assert await found("_") == ["under_4"]
    assert await found("-") == ["Käse-3", "Nightly-1", "under_4", "x-2"]
    assert await found("a-y") == []
    assert await found("") == ["Käse-3", "Nightly-1", "under_4", "x-2"]
    assert await ids(journal.runs(text="nightly", pipeline="etl", status="PASSED")) == ["Nightly-1"]


# --- by whether a process runs them --------------------------------------------------------------


async def test_a_run_that_no_process_runs_is_orphaned(make_journal: Make, database: Any) -> None:
    journal = make_journal(owner="me")
    await a_run(journal, "ended", 1.0)
    await a_run(journal, "left", 2.0, status=None)
    sessions = {}
    for number, run_id in enumerate(["going on", "silent"]):
        sessions[run_id], _ = await journal.open(run_id, wait=False, read=bool)
        sessions[run_id].append(RunStarted(run_id, 3.0 + number, {"a": ()}))
        await sessions[run_id].flush()
    database.expire_leases("silent")

    runs = {run.run_id: run for run in await journal.runs()}

    assert {run_id: run.status for run_id, run in runs.items()} == {
        "silent": "ORPHANED",
        "going on": "RUNNING",
        "left": "ORPHANED",
        "ended": "PASSED",
    }
    assert (runs["going on"].owner, runs["silent"].owner) == ("me", None)
    assert await ids(journal.runs("ORPHANED")) == ["silent", "left"]
    assert await ids(journal.runs("ORPHANED", limit=1)) == ["silent"]
    assert await ids(journal.runs("ORPHANED", before=(4.0, "silent"))) == ["left"]
    assert await ids(journal.runs("ORPHANED", limit=0)) == []
    assert await ids(journal.runs("RUNNING")) == ["going on"]
    assert await journal.orphans() == await journal.runs("ORPHANED")
    await sessions["going on"].close()


async def test_orphans_are_found_across_many_pages(
    journal: Any, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncflow.journal._read.run_lists._PAGE", 3)
    for number in range(10):
        await a_run(journal, f"r{number}", float(number // 2), status=None)
    database.query(
        "UPDATE leases SET owner = 'x', process = '{}', expires_at = 1e12 WHERE token > 0"
    )
    database.query("UPDATE leases SET owner = NULL WHERE run_id IN ('r1', 'r8', 'r9')")

    assert await ids(journal.runs("ORPHANED")) == ["r9", "r8", "r1"]
    assert await ids(journal.runs("ORPHANED", limit=2)) == ["r9", "r8"]
    assert await ids(journal.orphans()) == ["r9", "r8", "r1"]
    assert len(await journal.runs("RUNNING", limit=None)) == 7
    assert await ids(journal.runs("RUNNING", limit=4)) == ["r7", "r6", "r5", "r4"]


# --- one run -------------------------------------------------------------------------------------


async def test_the_duration_of_a_run_leaves_its_pauses_out_and_its_span_does_not(
    make_journal: Any,
) -> None:
    journal = make_journal()
    begun = RunStarted("r", 100.0, {"a": ()}), AttemptStarted("a", 1, 2_000.0)
    await store_segment(journal, "r", *begun)
    orphan, so_far = await journal.record("r"), await journal.report("r")

    session, _ = await journal.open("r", wait=False, read=bool)
    session.append(RunResumed("r", 2_000.0, 130.0, {"a": ()}, {}))
    await session.flush()
    running = await journal.record("r")
    session.append(RunFinished(3_000.0, RunStatus.PASSED))
    await session.close()
    ended, report = await journal.record("r"), await journal.report("r")

    assert (orphan.status, orphan.duration_s, orphan.span_s) == ("ORPHANED", 2.0, 2.0)
    assert (so_far.total_duration_ms, so_far.span_ms) == (2_000.0, 2_000.0)
    assert (running.duration_s, running.span_s, running.paused_s) == (None, None, 28.0)
    assert (ended.duration_s, ended.span_s) == (3.0, 31.0)
    assert (report.total_duration_ms, report.span_ms) == (3_000.0, 31_000.0)


@pytest.mark.parametrize(
    ("filters", "error", "says"),
    [
        ({"before": "r1"}, TypeError, "before must be a datetime or seconds since the epoch, or"),
        ({"before": (1.0,)}, TypeError, "before must be a time, or what RunRecord.place gives"),
        ({"before": (1.0, 2)}, TypeError, "the run id in before must be a str, not int"),
        ({"before": ("1", "r")}, TypeError, "the time in before must be a datetime or seconds"),
        ({"before": (math.nan, "r")}, ValueError, "the time in before must be finite"),
        ({"before": (1.0, "a\0")}, ValueError, "the run id in before must have neither NUL nor"),
        ({"before": (1.0, "\ud800")}, ValueError, "the run id in before must have neither NUL"),
        ({"before": -1}, ValueError, "before must be finite and at least 0"),
        ({"text": 3}, TypeError, "text must be a str, not int"),
        ({"text": "a\0"}, ValueError, "text must have at most 1,000 characters, and neither NUL"),
        ({"text": "\ud800"}, ValueError, "text must have at most 1,000 characters"),
        ({"text": "x" * 1_001}, ValueError, "text must have at most 1,000 characters"),
        ({"parent": 1}, TypeError, "parent must be a str, not int"),
    ],
)
async def test_an_invalid_filter_is_refused(
    journal: Any, filters: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        await journal.runs(**filters)


async def test_run_lists_use_an_index(database: Any, journal: Any) -> None:
    """Without the index, the database sorts 100,000 runs to return one page."""
    await journal.runs()
    explain = "EXPLAIN QUERY PLAN" if database.__class__.__name__ == "TestedSQLite" else "EXPLAIN"
    if explain == "EXPLAIN":
        database.query(
            "INSERT INTO runs (run_id, pipeline, status, started_at, updated_at, last_event, "
            "checksum) SELECT 'r' || n, 'p' || n % 9, 'passed', n, n, 0, 0 "
            "FROM generate_series(1, 20000) n"
        )
        database.query("ANALYZE runs")
    ordered = "ORDER BY started_at DESC, run_id DESC LIMIT 100"
    wheres = {
        "(started_at, run_id) < (9, 'r9')": "runs_by_start",
        "status = 'failed'": "runs_by_status",
        "pipeline = 'p1' AND (started_at, run_id) < (9, 'r9')": "runs_by_pipeline",
        "parent = 'p1' AND (started_at, run_id) < (9, 'r9')": "runs_by_parent",
    }

    for where, index in wheres.items():
        plan = str(database.query(f"{explain} SELECT run_id FROM runs WHERE {where} {ordered}"))

        assert index in plan, plan
        assert "TEMP B-TREE" not in plan
        assert "Sort" not in plan


@pytest.mark.parametrize("what", ["record", "orphans", "runs", "counts"])
async def test_a_run_that_ends_while_it_is_read_is_no_orphan(
    journal: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Its row was read while it ran, and its process gives up its claim before that is judged."""
    may_end, has_ended, store = asyncio.Event(), threading.Event(), journal._reading
    loop, read = asyncio.get_running_loop(), store.read

    def read_and_wait(sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        rows: list[Any] = read(sql, parameters)
        if "leases" in sql:
            loop.call_soon_threadsafe(may_end.set)
            assert has_ended.wait(30)
        return rows

    async def statuses() -> list[RunStatus]:
        if what == "record":
            return [(await journal.record("r")).status]
        if what == "counts":
            return [status for status, count in (await journal.counts()).items() if count]
        runs = await (journal.orphans() if what == "orphans" else journal.runs())
        return [run.status for run in runs]

    pipeline = Orchestrator([WorkflowStep("waits", may_end.wait)])
    async with pipeline.with_options(journal=journal, run_id="r").start() as run:
        await run.flush()
        monkeypatch.setattr(store, "read", read_and_wait)
        reading = asyncio.create_task(statuses())
        await run.report()
        has_ended.set()

        found = await reading

    # What is counted as running may be a moment older than the claims.
    expected = {"orphans": [], "counts": [RunStatus.RUNNING]}
    assert found == expected.get(what, [RunStatus.PASSED])
