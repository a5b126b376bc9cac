"""Each error of an SQLite file says what happened, what is safe and what to do."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asyncflow._core.errors import JournalError
from asyncflow._core.history.results import Payload
from asyncflow.events import AttemptStarted, RunStarted, StepSucceeded
from asyncflow.journal import SQLiteJournal
from asyncflow.journal._database import sqlite as _sqlite
from asyncflow.journal._database.tables import VERSION

ROOT = Path(__file__).parents[2]
SAFE = "what was committed before is safe"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


def run_started(run_id: str = "r") -> RunStarted:
    return RunStarted(run_id, 1.0, {"a": ()})


async def opened(journal: Any, run_id: str = "r") -> Any:
    return (await journal.open(run_id, wait=False, read=bool))[0]


async def problem_when_opened(path: Path, **options: Any) -> str:
    async with asyncio.timeout(20):
        with pytest.raises(JournalError) as caught:
            async with SQLiteJournal(path, **options):
                pass
    assert caught.value.journal == str(path)
    assert str(caught.value) == f"journal {path}: {caught.value.problem}"
    return caught.value.problem


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Hold a write lock on the file, as another program with an open transaction does."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield other
    finally:
        other.close()


async def test_a_missing_directory_is_reported(path: Path) -> None:
    problem = await problem_when_opened(path.parent / "missing" / "runs.db")

    assert problem == (
        "it can't be opened (unable to open database file); nothing was changed: its directory "
        "must exist, and this user must be allowed to write there"
    )


async def test_a_directory_instead_of_a_file_is_refused(tmp_path: Path) -> None:
    assert await problem_when_opened(tmp_path) == (
        "it is a directory (unable to open database file); name a file in it, such as runs.db"
    )


async def test_a_file_that_is_not_a_database_is_left_unchanged(path: Path) -> None:
    path.write_bytes(b"Dear diary, " * 100)

    problem = await problem_when_opened(path)

    assert problem.startswith(
        "it is not an SQLite database (file is not a database); it was left as"
    )
    assert path.read_bytes() == b"Dear diary, " * 100


async def test_a_damaged_database_is_reported(path: Path) -> None:
    async with SQLiteJournal(path) as journal:
        for number in range(50):
            session = await opened(journal, f"r{number}")
            session.append(run_started(f"r{number}"))
            session.append(StepSucceeded("a", 1, 1.0, Payload("json", b'"%s"' % (b"x" * 2_000))))
            await session.close()
    content = path.read_bytes()
    path.write_bytes(content[:4_096] + b"\xa5" * (len(content) - 4_096))

    with pytest.raises(JournalError, match=r"the database is damaged \(.*malformed\); nothing"):
        async with SQLiteJournal(path) as journal:
            await opened(journal, "r1")


async def test_a_database_with_another_schema_is_left_unchanged(path: Path) -> None:
    async with SQLiteJournal(path):
        pass
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 6")
    other.close()
    before = path.read_bytes()

    problem = await problem_when_opened(path)

    assert problem == (
        "another version of asyncflow has made its tables (schema 6, and this one makes and reads "
        f"{VERSION} alone); they were left as they are: use that version, or a new journal"
    )
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("statements", "named"),
    [
        ("CREATE TABLE events (name TEXT)", ", with the tables events"),
        ("CREATE TABLE runs (x); CREATE TABLE orders (x)", ", with the tables orders, runs"),
        ("CREATE TABLE orders (x); PRAGMA user_version = 1", ", with the tables orders"),
        ("PRAGMA user_version = 1", ""),
        ("PRAGMA application_id = 7", ""),
    ],
)
async def test_a_database_of_another_program_is_left_unchanged(
    path: Path, statements: str, named: str
) -> None:
    other = sqlite3.connect(path)
    other.executescript(statements)
    other.close()
    content = path.read_bytes()

    problem = await problem_when_opened(path)

    assert problem == (
        f"it is the database of another program{named}; it was left as it is: use another file"
    )
    assert path.read_bytes() == content


WHOLE = f"{SAFE}, and nothing of this transaction was stored"


@pytest.mark.realtime
async def test_a_write_to_a_database_locked_by_another_program_fails(path: Path) -> None:
    async with SQLiteJournal(path, lease_s=0.3) as journal:
        session = await opened(journal)
        session.append(run_started())
        await session.flush()
        with locked(path):
            session.append(AttemptStarted("a", 1, 1.0))

            with pytest.raises(JournalError) as caught:
                await session.close()
        assert [stored.event for stored in await journal.events("r")] == [run_started()]

    assert caught.value.problem == (
        "another process has kept the database locked for 0.1 s (database is locked); "
        f"{WHOLE}: find what locks it, such as a shell with an open transaction or a backup"
    )


@pytest.mark.realtime
async def test_opening_a_new_file_locked_by_another_program_fails(path: Path) -> None:
    with locked(path):
        problem = await problem_when_opened(path, lease_s=0.3)

    assert problem.startswith("another process has kept the database locked for 0.1 s")


@pytest.mark.realtime
async def test_calls_that_were_queued_while_the_file_was_locked_share_one_wait(path: Path) -> None:
    async with SQLiteJournal(path, lease_s=0.9) as journal:

        async def wait_s(run_id: str) -> float:
            began = time.monotonic()
            with pytest.raises(JournalError, match="locked for 0"):
                await opened(journal, run_id)
            return time.monotonic() - began

        with locked(path):
            together = await asyncio.gather(*(wait_s(f"r{number}") for number in range(10)))
            later = await wait_s("later")
        session = await opened(journal)
        session.append(run_started())
        await session.close()

    assert 0.25 < min(together) <= max(together) < 1.0  # one after another, it was 3 s
    assert 0.25 < later < 1.0


async def test_a_journal_waits_for_a_lock_to_be_released(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_waiting = threading.Event()
    monkeypatch.setattr(time, "sleep", lambda _: is_waiting.set())
    with locked(path) as other:
        async with asyncio.timeout(20):
            journal = SQLiteJournal(path)
            opening = asyncio.create_task(opened(journal))
            await asyncio.to_thread(is_waiting.wait, 20)
            other.execute("ROLLBACK")
            session = await opening

    session.append(run_started())
    await session.close()
    await journal.aclose()


async def test_runs_fail_on_a_full_disk_and_can_be_resumed(path: Path) -> None:
    journal = SQLiteJournal(path)
    session, other = await opened(journal), await opened(journal, "other")
    session.append(run_started())
    await session.flush()
    connection = journal._store.database._connection  # type: ignore[attr-defined]
    await journal._write(connection.execute, "PRAGMA max_page_count = 1")
    failures: list[JournalError] = []
    for each in (session, other):
        each.watch(failures.append)
        each.append(StepSucceeded("a", 1, 1.0, Payload("json", b'"%s"' % (b"x" * 100_000))))

    for each in (session, other):
        with pytest.raises(JournalError) as caught:
            await each.close()
        assert caught.value.problem == (
            f"the disk is full (database or disk is full); {WHOLE}: make room and start the run "
            "again"
        )
    await asyncio.sleep(0)
    assert len(failures) == 2
    assert failures[0] is not failures[1]

    await journal._write(connection.execute, "PRAGMA max_page_count = 1000000")
    again = await opened(journal)  # the claims were released
    await (await opened(journal, "other")).close()
    again.append(AttemptStarted("a", 2, 1.0))
    await again.close()
    stored = [stored.event for stored in await journal.events("r")]
    assert stored == [run_started(), AttemptStarted("a", 2, 1.0)]
    await journal.aclose()


CHILD = """
import asyncio, concurrent.futures.thread, os, resource, sys
from asyncflow._core.errors import JournalError
from asyncflow._core.history.results import Payload
from asyncflow.events import *
from asyncflow.journal import SQLiteJournal
async def main():
    async with SQLiteJournal(sys.argv[1]) as journal:
        session, segments = await journal.open("r", wait=False, read=lambda run: run.segments)
        print(len(segments))
        {body}
        if not segments:
            session.append(RunStarted("r", 1.0, {{"a": ()}}))
        session.append(AttemptStarted("a", 1, 1.0))
        session.append(StepSucceeded("a", 1, 1.0, Payload("json", b'"%s"' % (b"x" * 1_000_000))))
        await session.close()
if "as nobody" in sys.argv and os.geteuid() == 0:
    os.setuid(65534)  # root may write anything
try:
    asyncio.run(main())
except JournalError as error:
    print(error.problem)
"""


def run_child(path: Path, *words: str, body: str = "pass") -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(body=body), str(path), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert not done.stderr
    return done.stdout.splitlines()


@pytest.mark.process
@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of a process")
def test_a_file_that_cannot_grow_fails_the_run(path: Path) -> None:
    body = "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))"

    count, problem = run_child(path, body=body)

    assert (count, problem) == (
        "0",
        f"the file system failed (disk I/O error); {WHOLE}: look at the disk, its quota and its "
        "limits, and start the run again",
    )
    assert run_child(path) == ["0"]
    assert run_child(path) == ["1"]


SERVICE = """
import asyncio, os, resource, sys
from asyncflow import JournalError, WorkflowStep, run_pipeline
from asyncflow.journal import SQLiteJournal
is_full = True
async def fill():
    if is_full:  # not even the release of a lease finds room
        size = os.stat(sys.argv[1] + "-wal").st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
steps = [WorkflowStep("a", lambda: asyncio.sleep(0)), WorkflowStep("b", fill, ["a"])]
async def main():
    global is_full
    async with SQLiteJournal(sys.argv[1], lease_s=600) as journal:
        try:
            await run_pipeline(steps, journal=journal, run_id="r")
        except JournalError as error:
            print(error.problem.partition(" (")[0])
        print([orphan.run_id for orphan in await journal.orphans()])
        is_full = False
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        report = await run_pipeline(steps, journal=journal, run_id="r")
        print(report.status, [result.step_name for result in report.reused])
asyncio.run(main())
"""


@pytest.mark.process
@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of a process")
def test_a_service_resumes_its_own_run_after_a_full_disk(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVICE, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
    )

    assert done.stdout.splitlines() == ["the file system failed", "['r']", "PASSED ['a']"]


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs users")
@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_read_only_file_or_directory_is_reported(tmp_path: Path, what: str) -> None:
    path = tmp_path / "runs.db"
    if what == "file":
        assert run_child(path) == ["0"]
    path.touch()
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    for above in tmp_path.parents[:2]:
        above.chmod(0o755)

    (problem,) = run_child(path, "as nobody")

    tmp_path.chmod(0o755)
    assert "write" in problem
    assert "can only be read" in problem or "can't be opened" in problem


@pytest.mark.process
def test_concurrent_processes_create_the_schema_once(path: Path) -> None:
    script = """
import sys
from asyncflow.journal._database.sqlite import SQLite
database = SQLite(sys.argv[1], "FULL", 20)
print("ready", flush=True)
sys.stdin.readline()
with database.reading() as cursor:
    cursor.execute("SELECT count(*) FROM runs")
database.close()
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"

    for process in processes:
        assert process.stdin
        print(file=process.stdin, flush=True)

    for process in processes:
        process.communicate()
        assert process.returncode == 0


def test_tables_that_another_process_made_are_not_made_again(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    _sqlite._make_tables(connection)

    _sqlite._make_tables(connection)

    assert _sqlite._version(connection) == VERSION
    connection.close()


def test_tables_that_cannot_all_be_made_leave_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sqlite, "SCHEMA", ["CREATE TABLE runs (x PRIMARY KEY)", "CREATE TABLE"])
    database = _sqlite.SQLite(str(path), "FULL", 1.0)

    with pytest.raises(JournalError), database.reading():
        pass

    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
    assert _sqlite._version(connection) == 0
    connection.close()


def test_a_connection_that_cannot_roll_back_is_replaced(path: Path) -> None:
    database = _sqlite.SQLite(str(path), "FULL", 1.0)
    with pytest.raises(JournalError), database.transaction() as cursor:
        database._connection.close()  # type: ignore[union-attr]

    with database.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM runs")
    database.close()
    database.close()


async def test_the_synchronous_option_is_applied(path: Path) -> None:
    for synchronous, number in (("FULL", 2), ("NORMAL", 1)):
        async with SQLiteJournal(path, synchronous=synchronous) as journal:  # type: ignore[arg-type]
            connection = journal._store.database._connection  # type: ignore[attr-defined]

            def pragma(about: str, connection: Any = connection) -> Any:
                return connection.execute(f"PRAGMA {about}").fetchone()[0]

            assert await journal._write(pragma, "synchronous") == number
            assert await journal._write(pragma, "journal_mode") == "wal"
            assert await journal._write(pragma, "wal_autocheckpoint") == 0


def wal_sizes_while_writing(database: _sqlite.SQLite, path: Path, count: int) -> list[int]:
    sizes = []
    for position in range(1, count + 1):
        with database.transaction() as cursor:
            cursor.execute(
                "INSERT INTO events (run_id, position, kind, at_ms, data, checksum) "
                "VALUES (?, ?, 'x', 0, ?, 0)",
                ("r", position, b"x" * 100_000),
            )
        sizes.append(path.with_name("runs.db-wal").stat().st_size)
    return sizes


def test_the_wal_stays_short(path: Path) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    database = _sqlite.SQLite(str(link), "NORMAL", 1.0)

    sizes = wal_sizes_while_writing(database, path, 200)

    assert max(sizes) < 4.5e6
    assert sum(after < before for before, after in pairwise(sizes)) >= 4
    assert path.stat().st_size > 10_000_000
    database.close()
    assert not path.with_name("runs.db-wal").exists()


def test_a_checkpoint_blocks_writers_and_its_failure_is_ignored(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = _sqlite.SQLite(str(path), "NORMAL", 1.0)
    wal_sizes_while_writing(database, path, 1)
    refusals = []

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        other = sqlite3.connect(path, timeout=0, isolation_level=None)
        with pytest.raises(sqlite3.OperationalError, match="locked") as caught:
            other.execute("BEGIN IMMEDIATE")
        other.close()
        refusals.append(caught.value)
        raise caught.value

    monkeypatch.setattr(_sqlite, "_WAL_BYTES", 0)
    ours = SimpleNamespace(**{**vars(sqlite3), "connect": connect})
    monkeypatch.setattr(_sqlite, "sqlite3", ours)

    with database.transaction() as cursor:
        cursor.execute("DELETE FROM events")

    assert refusals  # the failed checkpoint does not fail the committed transaction
    monkeypatch.undo()
    with database.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM events")
        assert cursor.fetchone() == (0,)
    database.close()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"synchronous": "OFF"}, ValueError, "synchronous must be 'FULL' or 'NORMAL', not 'OFF'"),
        ({"codec": "cloudpikle"}, ValueError, "did you mean 'cloudpickle'"),
        ({"codec": "xml"}, ValueError, "codec must be 'json' or 'cloudpickle', not 'xml'"),
        ({"lease_s": 0.01}, ValueError, "lease_s must be finite and at least 0.1 s, not 0.01"),
        ({"lease_s": "1"}, TypeError, "lease_s must be a number, not str"),
        ({"max_payload_bytes": 0}, ValueError, "max_payload_bytes must be finite and at least 1"),
    ],
)
def test_an_invalid_option_is_refused(
    path: Path, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        SQLiteJournal(path, **options)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ("postgresql://me:pass@host/x", ValueError, "of a database; give it to PostgresJournal"),
        ("postgresql+psycopg://me:pass@host/x", ValueError, "give it to PostgresJournal"),
        ("host=h password=pass@h dbname=x", ValueError, "give it to PostgresJournal"),
        ("connect_timeout=1 service = x\nuser=pass@", ValueError, "give it to PostgresJournal"),
        ("sqlite:///x.db", ValueError, "of a file, not an address; give one such as 'runs.db'"),
        ("me:pass@host", ValueError, "of a file, not an address; give one such as 'runs.db'"),
        (3, TypeError, "path must be a str or a path such as a pathlib.Path, not 3"),
        (b"x.db", TypeError, "path must be a str or a path such as a pathlib.Path, not b'x.db'"),
        (None, TypeError, "path must be a str or a path such as a pathlib.Path, not None"),
    ],
)
def test_an_argument_that_is_not_a_path_is_refused(
    given: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        SQLiteJournal(given)

    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize("name", ["host.db", "a=b.db", "ghost=1", "me@host", "C:/me@host", "12:00"])
def test_the_name_of_a_file_may_look_a_little_like_an_address(name: str) -> None:
    assert SQLiteJournal(name).path == name


def test_a_message_of_the_database_that_is_no_text_says_that_it_is_damaged(path: Path) -> None:
    # As that of a schema with a flipped bit, which SQLite quotes.
    database = _sqlite.SQLite(str(path), "FULL", 1.0)

    with pytest.raises(JournalError, match="the database is damaged"), database.reading():
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    database.close()
