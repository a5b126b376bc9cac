"""Whatever is damaged in a stored run, each reader gives the right answer or the documented error.

`damaged.py` has the damage and the readers.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import AsyncExitStack, closing, suppress
from functools import cache
from html import unescape
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pytest
from journal.read.damaged import (
    BYSTANDER,
    VICTIMS,
    Damage,
    RunUnreadable,
    answers,
    changes,
    damages,
    make_checksums_right,
    remove_types,
    set_value,
    write,
)
from segments import store_segment

from asyncflow import JournalError, Pipeline, RunNotFoundError, RunStatus, RunUnreadableError
from asyncflow._core.history.results import Payload
from asyncflow.events import (
    AttemptStarted,
    Event,
    RunFinished,
    RunResumed,
    RunStarted,
    StepAttached,
    StepLogged,
    StepSucceeded,
)
from asyncflow.journal import SQLiteJournal
from asyncflow.journal._codec.events import sealed
from asyncflow.testing import run_in_virtual_time

ALL = bool(os.environ.get("ASYNCFLOW_ALL_DAMAGE"))
"""Whether all damages are tried, which takes long, or a sample."""


_folder = TemporaryDirectory()


@cache
def intact() -> tuple[Path, dict[str, dict[str, Any]]]:
    """Return a journal, and what the readers answer about each of its runs."""
    path = Path(_folder.name) / "intact.db"
    run_in_virtual_time(write(path))
    remove_types(path)
    copy = path.with_name("copy.db")
    known = {}
    for run_id in (*VICTIMS, BYSTANDER):
        shutil.copy(path, copy)
        known[run_id] = answers(copy, run_id)
    return path, known


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., None]:
    """Return a function that damages a copy of the journal and asks all readers."""
    path, known = intact()

    def check_one(damage: Damage, *, with_right_checksums: bool = False) -> None:
        copy = tmp_path / "runs.db"
        for suffix in ("", "-wal", "-shm"):
            copy.with_name(copy.name + suffix).unlink(missing_ok=True)
        shutil.copy(path, copy)
        with closing(sqlite3.connect(copy)) as database, database:
            damage.apply(database)
            if with_right_checksums:
                make_checksums_right(database)
        found = answers(copy, damage.run_id)
        assert_others_are_shown(found, known[BYSTANDER])
        if not with_right_checksums:
            assert_right_or_refused(damage, found, known[damage.run_id])

    return check_one


def assert_others_are_shown(found: dict[str, Any], before: dict[str, Any]) -> None:
    assert found["other report"] == before["other report"]
    assert found["record list"][BYSTANDER] == before["record list"][BYSTANDER]
    assert BYSTANDER in found["table"]
    assert BYSTANDER in [run["run_id"] for run in json.loads(found["runs"])]


LISTS = ("record list", "runs", "table", "record", "api record")


CHANGING = ("status", "updated_at", "last_event", "paused_s")
"""The columns of a run that no checksum covers."""


def without_duration(record: str) -> str:
    return re.sub(r"latest_ms=[^,]*", "", record)


def assert_right_or_refused(damage: Damage, found: dict[str, Any], before: dict[str, Any]) -> None:
    where = f"run {damage.run_id!r} can't be read"
    if damage.table == "events" and damage.column not in ("run_id", "position", "(row)"):
        where = f"event {damage.position} of run {damage.run_id!r} can't be read"
    for name in found.keys() - LISTS:
        if isinstance(found[name], RunUnreadable):
            assert where in unescape(found[name]), name
        elif name == "last events" and damage.column in ("run_id", "position", "(row)"):
            pass  # that the last row is missing shows only in the whole run
        elif damage.table != "leases" or name != "resume":  # a lease may seem to be held
            assert found[name] == before[name], name
    if damage.table == "events":
        # A list takes the duration of a run from its last event without a look at the others.
        assert without_duration(found["record"]) == without_duration(before["record"])
        # Nothing that was stored is used if any of it is damaged.
        assert isinstance(found["report"], RunUnreadable)
        assert isinstance(found["resume"], RunUnreadable)
    elif damage.table == "runs" and damage.column not in CHANGING:
        assert found["record"] == before["record"] or "damaged=True" in found["record"]
        listed = found["record list"].get(damage.run_id)
        assert listed in (None, before["record list"][damage.run_id]) or listed["damaged"]


def sample() -> list[Damage]:
    """Return some of each kind: of each column, and of each kind of event."""
    found: dict[tuple[Any, ...], Damage] = {}
    every = list(damages(intact()[0]))
    for index, damage in enumerate(every):
        if index % 3 == 0:
            found.setdefault((damage.table, damage.column, damage.number), damage)
    for index, damage in enumerate(every):
        if index % 7 == 0:
            found.setdefault((damage.run_id, damage.position), damage)
    return list(found.values())


def test_damage_is_reported_by_every_reader(check: Any) -> None:
    for damage in sample()[::32]:
        check(damage)


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("with_right_checksums", [False, True])
@pytest.mark.parametrize("run_id", VICTIMS)
@pytest.mark.parametrize("table", ["runs", "leases", *(f"events{n}" for n in range(8))])
def test_all_damage_is_reported_by_every_reader(
    check: Any, table: str, run_id: str, with_right_checksums: bool
) -> None:
    """With right checksums, the damage is older than these, and must not raise other errors."""
    every = damages(intact()[0]) if ALL else sample()[with_right_checksums::3]
    for number, damage in enumerate(every):
        part = f"events{number % 8}" if damage.table == "events" else damage.table
        if damage.run_id == run_id and part == table:
            check(damage, with_right_checksums=with_right_checksums)


@pytest.mark.parametrize(
    "flips",
    [
        30,
        pytest.param(
            10_000 if ALL else 200, marks=[pytest.mark.exhaustive, pytest.mark.timeout(1200)]
        ),
    ],
)
def test_no_flipped_bit_of_the_file_changes_an_answer(tmp_path: Path, flips: int) -> None:
    path, random = tmp_path / "runs.db", Random(flips)
    run_in_virtual_time(write(path))
    data = path.read_bytes()
    right = run_in_virtual_time(reports(path))
    assert set(right) == {*VICTIMS, BYSTANDER}
    noticed = 0

    for _ in range(flips):
        at, bit = random.randrange(len(data)), random.randrange(8)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :])

        found = run_in_virtual_time(reports(path))

        noticed += found != right
        assert found.items() <= right.items(), (at, bit)
    assert noticed > flips / 40  # most pages of so small a file are empty


async def reports(path: Path) -> dict[str, str]:
    """Return the reports and the events of all runs that can be read."""
    found = {}
    async with AsyncExitStack() as stack:
        with suppress(JournalError):
            journal = await stack.enter_async_context(SQLiteJournal(path))
            for run_id in (*VICTIMS, BYSTANDER):
                with suppress(JournalError):
                    report = await journal.report(run_id)
                    found[run_id] = f"{report.to_json()} {await journal.events(run_id)}"
    return found


# --- single cases --------------------------------------------------------------------------------


async def store(
    journal: Any, run_id: str = "r", *more: Event, status: Any = RunStatus.PASSED
) -> None:
    output = Payload("json", b'{"rows":20}')
    events = [
        RunStarted(run_id, 5.0, {"a": (), "b": ("a",)}, "etl"),
        AttemptStarted("a", 1, 1.0),
        StepSucceeded("a", 1, 2.0, output),
        *more,
    ]
    ended = [RunFinished(9.0, status)] if status else []
    await store_segment(journal, run_id, *events, *ended)


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("events", "data = BYTES WHERE position = 3"),
        ("events", "payload = '{}' WHERE position = 3"),
        ("events", "step = 'b' WHERE position = 3"),
        ("events", "item = 1 WHERE position = 3"),
        ("events", "attempt = 2 WHERE position = 3"),
        ("events", "at_ms = 3 WHERE position = 3"),
        ("events", "codec = 'json-plain' WHERE position = 3"),
        ("events", "data = NULL WHERE position = 3"),
        ("events", "data_checksum = 7 WHERE position = 3"),
        ("events", "kind = 'StepFailed' WHERE position = 3"),
        ("events", "checksum = checksum + 1 WHERE position = 3"),
        ("events", "position = 9 WHERE position = 3"),
        ("events", "run_id = 'x' WHERE position = 3"),
        ("runs", "pipeline = 'elt' WHERE run_id = 'r'"),
        ("runs", "started_at = 6 WHERE run_id = 'r'"),
        ("runs", "status = 'failed' WHERE run_id = 'r'"),
        ("runs", "checksum = 0 WHERE run_id = 'r'"),
    ],
)
async def test_a_changed_row_is_refused_in_every_database(
    journal: Any, database: Any, table: str, change: str
) -> None:
    await store(journal)
    await store(journal, "other")
    is_of_r = " AND run_id = 'r'" if table == "events" else ""
    change = change.replace("BYTES", database.bytes(b"[30]"))
    database.query(f"UPDATE {table} SET {change}{is_of_r}")

    for read in (journal.report, journal.events, resumed(journal)):
        with pytest.raises(RunUnreadableError, match="run 'r' can't be read"):
            await read("r")

    assert (await journal.report("other"))["a"].output == {"rows": 20}
    assert {run.run_id for run in await journal.runs()} == {"r", "other"}
    await journal.forget("r")
    assert [run.run_id for run in await journal.runs()] == ["other"]


def resumed(journal: Any) -> Callable[[str], Any]:
    return lambda run_id: journal.open(run_id, wait=False, read=bool)


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("DELETE FROM events", "its events are missing"),
        ("DELETE FROM runs", "its row is missing"),
        ("DELETE FROM events WHERE position = 1", "event 1 .* in its place is event 2"),
        ("DELETE FROM events WHERE position = 3", "event 3 .* in its place is event 4"),
        ("DELETE FROM events WHERE position = 4", "later ones are missing"),
        ("UPDATE runs SET last_event = 5", "later ones are missing"),
    ],
)
async def test_missing_rows_are_noticed(
    journal: Any, database: Any, statement: str, says: str
) -> None:
    await store(journal)
    database.query(statement)

    for read in (journal.report, journal.events, resumed(journal)):
        with pytest.raises(RunUnreadableError, match=says):
            await read("r")
    assert (await journal.record("r")).damaged == (says == "its row is missing")
    assert await journal.cancel("r") is False
    await journal.forget("r")
    with pytest.raises(RunNotFoundError):
        await journal.record("r")


@pytest.mark.parametrize("status", [None, RunStatus.FAILED])
async def test_a_missing_segment_is_noticed(journal: Any, database: Any, status: Any) -> None:
    await store(journal, "r", status=RunStatus.FAILED)
    ended = [RunFinished(9.5, status)] if status else []
    resumed = RunResumed("r", 9.0, 20.0, {"a": (), "b": ("a",)}, {})
    await store_segment(journal, "r", resumed, *ended)
    database.query("DELETE FROM events WHERE position > 4")

    with pytest.raises(RunUnreadableError, match="later ones are missing"):
        await journal.report("r")


async def test_missing_last_events_of_a_run_that_has_not_ended_are_not_noticed(
    journal: Any, database: Any
) -> None:
    await store(journal, status=None)
    database.query("DELETE FROM events WHERE position = 3")

    assert (await journal.report("r"))["a"].status == "RUNNING"


async def test_a_run_that_ends_between_two_reads_is_read_again(journal: Any) -> None:
    await store(journal)
    row = journal._lists.row
    seen = [(await journal._read(row, "r"))._replace(status="running", updated_at=1.0)]
    journal._lists.row = lambda run_id: seen.pop() if seen else row(run_id)

    assert (await journal.report("r")).status == "PASSED"
    assert not seen


async def test_an_output_that_is_no_json_is_refused(journal: Any, database: Any) -> None:
    """Its checksum is right: another program wrote it."""
    await store(journal)
    row = sealed("r", 3, "StepSucceeded", "a", None, 1, 2.0, "json", None, b'{"rows"')
    *_, of_data, checksum, data = row
    database.query(
        f"UPDATE events SET data = {database.bytes(data)}, data_checksum = {of_data}, "
        f"checksum = {checksum} WHERE position = 3"
    )

    for read in (journal.report, journal.events):
        with pytest.raises(RunUnreadableError, match="can't be read from the journal"):
            await read("r")


async def test_a_damaged_lease_does_not_hide_its_run(journal: Any, tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    async with SQLiteJournal(path) as journal:
        await store(journal, status=None)
        await store(journal, "other")
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "CREATE TABLE lax (run_id UNIQUE, token, owner, process, renewed_at, expires_at, "
            "cancel_token, clock, boot_expires_at, cancel_reason, cancel_cause)"
        )
        database.execute(
            "INSERT INTO lax SELECT run_id, 'x', 7, '{\"pid\": 1e99}', 'x', 1e12, 'x', x'ff', 'x', "
            "7, 7 FROM leases"
        )
        database.execute("DROP TABLE leases")
        database.execute("ALTER TABLE lax RENAME TO leases")
    async with SQLiteJournal(path) as journal:
        assert {run.owner for run in await journal.runs()} == {"7"}
        assert (await journal.report("other")).status == "PASSED"
        with pytest.raises(RunUnreadableError, match="its lease is damaged"):
            await journal.cancel("other")
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE leases SET owner = NULL")
    async with SQLiteJournal(path) as journal:
        with pytest.raises(RunUnreadableError, match="its lease is damaged"):
            await resumed(journal)("other")
        await journal.forget("other")
        assert [run.run_id for run in await journal.runs()] == ["r"]


# --- the database's own checks -------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        *(f"events SET {column} = 'x'" for column in ("position", "item", "attempt", "at_ms")),
        *(f"events SET {column} = NULL" for column in ("run_id", "position", "kind", "at_ms")),
        *(f"runs SET {column} = NULL" for column in ("pipeline", "status", "checksum")),
        "events SET checksum = 'x'",
        "runs SET started_at = 'x'",
        "runs SET status = 'paused'",
        "leases SET token = 'x'",
        "leases SET expires_at = NULL",
    ],
)
async def test_the_database_refuses_what_does_not_fit(
    journal: Any, database: Any, change: str
) -> None:
    await store(journal)

    with pytest.raises((sqlite3.IntegrityError, psycopg.Error)):
        database.query(f"UPDATE {change}")


NOTES = [
    StepLogged("a", 1, 1.0, 20, "db", "one"),
    StepAttached("a", 1, 2.0, "plot", "image/png", b"\x89PNG"),
    StepLogged("a", 1, 3.0, 40, "db", "three", 7),
]


def test_a_damaged_note_hides_no_other_and_stops_no_run(tmp_path: Path) -> None:
    path, copy = tmp_path / "intact.db", tmp_path / "damaged.db"

    async def write_notes() -> None:
        async with SQLiteJournal(path) as journal:
            session, _ = await journal.open("r", wait=False, read=bool)
            session.append(RunStarted("r", 1.0, {"a": ()}))
            for note in NOTES:
                session.append_note(note)
            await session.close()

    async def read_notes() -> list[Any]:
        async with SQLiteJournal(copy) as journal:
            found = await journal.notes("r")
            await journal.notes("r", data=False, newest=True, limit=2, text="e")
            session, _ = await journal.open("r", wait=False, read=bool)
            session.append_note(NOTES[0])
            await session.close()
            assert (await journal.report("r")).run_id == "r"
            assert (await journal.notes("r"))[-1].event in (
                NOTES[0],
                *[each.event for each in found],
            )
        return [each.event for each in found]

    run_in_virtual_time(write_notes())
    remove_types(path)
    with closing(sqlite3.connect(path)) as database:
        database.row_factory = sqlite3.Row
        (row,) = database.execute("SELECT rowid AS id, * FROM notes WHERE position = 2").fetchall()
    for column in row.keys()[2:]:
        for value in changes(row[column]):
            shutil.copy(path, copy)
            with closing(sqlite3.connect(copy)) as database, database:
                set_value("notes", column, row["id"], value)(database)

            found = run_in_virtual_time(read_notes())

            others = [each for each in found if each in NOTES]
            assert [each for each in others if each != NOTES[1]] == [NOTES[0], NOTES[2]], column
            damaged = [each for each in found if each not in NOTES]
            for each in damaged:
                assert "is damaged and can't be shown" in getattr(each, "message", ""), (
                    column,
                    value,
                    each,
                )
            assert len(found) == 3 or column == "position"


def test_a_damaged_signal_hides_no_run_and_its_step_takes_another_one(tmp_path: Path) -> None:
    path, copy, pipeline = tmp_path / "intact.db", tmp_path / "damaged.db", Pipeline("orders")
    pipeline.signal("approved", bool)

    async def run(journal: Any, run_id: str) -> RunStatus:
        return (await pipeline.with_options(journal=journal, run_id=run_id).run()).status

    async def let_runs_wait() -> None:
        async with SQLiteJournal(path) as journal:
            for run_id in ("r", "other"):
                await run(journal, run_id)
            await journal.signal("r", "approved", True)

    async def read_and_resume() -> RunStatus:
        async with SQLiteJournal(copy) as journal:
            summaries = await journal.summaries(await journal.runs())
            assert summaries["other"].waits == ("approved",)
            with suppress(ValueError):  # the first one may count
                await journal.signal("r", "approved", True)
            if await run(journal, "r") is RunStatus.WAITING:
                await journal.signal("r", "approved", True)
            return await run(journal, "r")

    run_in_virtual_time(let_runs_wait())
    remove_types(path)
    of_signals = ("kind", "codec", "data", "checksum", "name")
    for table, column in [*(("signals", each) for each in of_signals), ("runs", "waits")]:
        with closing(sqlite3.connect(path)) as database:
            query = f"SELECT rowid, {column} FROM {table} WHERE run_id = 'r'"
            ((row, stored),) = database.execute(query).fetchall()
        for value in (*changes(stored), '"'):  # as a name that is quoted begins
            shutil.copy(path, copy)
            with closing(sqlite3.connect(copy)) as database, database:
                set_value(table, column, row, value)(database)

            assert run_in_virtual_time(read_and_resume()) is RunStatus.PASSED, (column, value)


def test_a_value_that_has_changed_since_it_was_sent_reaches_no_step(tmp_path: Path) -> None:
    path, refunds = tmp_path / "journal.db", Pipeline("refunds")
    refunds.signal("amount", int)

    async def run(*amounts: int) -> Any:
        async with SQLiteJournal(path) as journal:
            running = refunds.with_options(journal=journal, run_id="r")
            report = await running.run()
            for amount in amounts:
                await journal.signal("r", "amount", amount)
            return report

    run_in_virtual_time(run(100))
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE signals SET data = ?", [b"900"])

    assert run_in_virtual_time(run()).status is RunStatus.WAITING
    run_in_virtual_time(run(100))
    assert run_in_virtual_time(run())["amount"].output == 100
