"""A run fails if the files of its journal are moved, replaced or cut; it gets no second owner."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from asyncflow import RunReport, WorkflowStep, run_pipeline
from asyncflow._core.errors import JournalError, RunAlreadyActiveError
from asyncflow.events import AttemptStarted, Event, RunFinished, RunStarted
from asyncflow.journal import SQLiteJournal
from asyncflow.journal._database import file as database_file
from asyncflow.journal._database.file import DatabaseFile
from asyncflow.journal._database.sqlite import SQLite

ROOT = Path(__file__).parents[3]
SUFFIXES = ("", "-wal", "-shm")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def move(path: Path, *suffixes: str) -> None:
    for suffix in suffixes:
        beside(path, suffix).rename(beside(path, f".moved{suffix}"))


def put_back(path: Path, *suffixes: str) -> None:
    for suffix in suffixes:
        beside(path, f".moved{suffix}").rename(beside(path, suffix))


def replace_by_copy(path: Path, suffix: str = "") -> None:
    copy = beside(path, ".copy")
    shutil.copy(beside(path, suffix), copy)
    copy.rename(beside(path, suffix))


def replace_by_a_new_journal(path: Path) -> None:
    move(path, *SUFFIXES)
    database = SQLite(str(beside(path, ".new")), "FULL", 1.0)
    with database.reading():
        pass
    database.close()
    beside(path, ".new").rename(path)


def truncate(path: Path, suffix: str, keep: float) -> None:
    file = beside(path, suffix)
    os.truncate(file, int(file.stat().st_size * keep))


GAMES: dict[str, tuple[Callable[[Path], None], str]] = {
    "moved": (lambda path: move(path, ""), "runs.db was moved or deleted while it was open"),
    "all moved": (lambda path: move(path, *SUFFIXES), "runs.db was moved or deleted while it was"),
    "deleted": (Path.unlink, "runs.db was moved or deleted while it was open"),
    "copied": (replace_by_copy, "runs.db was replaced by another file while it was open"),
    "replaced": (replace_by_a_new_journal, "runs.db was replaced by another file while it was"),
    "emptied": (lambda path: truncate(path, "", 0), "runs.db was emptied while it was open"),
    "wal deleted": (lambda path: beside(path, "-wal").unlink(), "-wal was moved or deleted while"),
    "wal copied": (lambda path: replace_by_copy(path, "-wal"), "-wal was replaced by another"),
    "wal emptied": (lambda path: truncate(path, "-wal", 0), "-wal was cut from"),
    "wal cut": (lambda path: truncate(path, "-wal", 0.9), "-wal was cut from"),
    "shm deleted": (lambda path: beside(path, "-shm").unlink(), "-shm was moved or deleted"),
    "shm copied": (lambda path: replace_by_copy(path, "-shm"), "-shm was replaced by another"),
}


def pipeline(*actions: Callable[[], Any]) -> list[WorkflowStep]:
    names = [f"s{number}" for number in range(len(actions))]
    return [
        WorkflowStep(name, action, names[number - 1 : number] if number else [])
        for number, (name, action) in enumerate(zip(names, actions, strict=True))
    ]


async def nothing() -> None: ...


@pytest.mark.parametrize(
    ("game", "stage"),
    [
        *((game, "first step") for game in GAMES),
        *(("copied", stage) for stage in ("claimed", "last step", "ended")),
    ],
)
async def test_a_run_fails_at_the_next_commit(path: Path, game: str, stage: str) -> None:
    play, says = GAMES[game]
    calls = []

    def observe(event: Event) -> None:
        is_due = {
            "claimed": isinstance(event, RunStarted),
            "first step": isinstance(event, AttemptStarted) and event.step == "s1",
            "last step": isinstance(event, AttemptStarted) and event.step == "s2",
            "ended": isinstance(event, RunFinished) and event.status == "PASSED",
        }
        if is_due[stage]:
            play(path)

    async def act() -> None:
        calls.append(None)

    async with SQLiteJournal(path, synchronous="NORMAL") as journal:
        await run_pipeline(pipeline(nothing), journal=journal, run_id="earlier")

        with pytest.raises(JournalError) as caught:
            await run_pipeline(
                pipeline(act, act, act), journal=journal, run_id="r", observers=[observe]
            )

    assert says in caught.value.problem
    assert str(path) in caught.value.problem
    assert "nothing more is written: " in caught.value.problem
    assert len(calls) == {"claimed": 0, "first step": 1, "last step": 2, "ended": 3}[stage]


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("game", ["moved", "copied", "emptied", "wal cut", "shm deleted"])
async def test_a_second_caller_does_not_get_the_run(path: Path, game: str, own: bool) -> None:
    play, _ = GAMES[game]
    journal, other = SQLiteJournal(path, lease_s=0.3), SQLiteJournal(path)
    rival = journal if own else other

    async def claim() -> None:
        with pytest.raises((JournalError, RunAlreadyActiveError)):
            await rival.open("r", wait=False, read=bool)

    async def act() -> None:
        # Between two transactions: a WAL that is cut within one is filled up again.
        await asyncio.wrap_future(journal._write_thread.submit(play, path))
        claiming = asyncio.create_task(claim())
        try:
            await asyncio.sleep(3_600)  # until the journal notices
        finally:
            await claiming
            if own:
                await claim()  # this step is still cleaning up

    with pytest.raises(JournalError):
        await run_pipeline(pipeline(nothing, act, nothing), journal=journal, run_id="r")

    await other.aclose()
    await journal.aclose()


@pytest.mark.parametrize("suffixes", [[""], [*SUFFIXES]])
async def test_a_run_resumes_when_its_files_are_put_back(path: Path, suffixes: list[str]) -> None:
    calls: list[str] = []
    is_moved = False

    async def first() -> None:
        calls.append("first")

    async def second() -> None:
        nonlocal is_moved
        calls.append("second")
        if not is_moved:
            is_moved = True
            move(path, *suffixes)

    async def run() -> RunReport:
        return await run_pipeline(pipeline(first, second), journal=journal, run_id="r")

    async with SQLiteJournal(path) as journal:
        for _ in range(2):  # it makes no new journal where the old one was
            with pytest.raises(JournalError, match=r"was moved or deleted|is missing, but"):
                await run()
        with pytest.raises(JournalError, match=r"was moved or deleted|is missing, but"):
            await journal.runs()
        assert path.exists() is False
        put_back(path, *suffixes)

        report = await run()

        assert report.all_passed
        assert calls == ["first", "second", "second"]
        assert [record.status for record in await journal.runs()] == ["PASSED"]


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
async def test_a_run_resumes_from_the_file_after_its_wal_was_deleted(
    path: Path, suffix: str
) -> None:
    is_deleted = False

    async def act() -> None:
        nonlocal is_deleted
        if not is_deleted:
            is_deleted = True
            beside(path, suffix).unlink()

    async with SQLiteJournal(path) as journal:
        with pytest.raises(JournalError, match="start it again with what is there now"):
            await run_pipeline(pipeline(nothing, act), journal=journal, run_id="r")

        report = await run_pipeline(pipeline(nothing, act), journal=journal, run_id="r")

        assert report.all_passed
        # What the deleted file held was copied when it was closed.
        assert [result.step_name for result in report.reused] == ["s0"]


@pytest.mark.parametrize("call", ["runs", "cancel"])
async def test_any_call_that_finds_the_change_stops_the_runs(path: Path, call: str) -> None:
    async with SQLiteJournal(path) as journal:
        idle, _ = await journal.open("idle", wait=False, read=bool)
        await journal.runs()  # opens the connection for reading
        stopped = asyncio.get_running_loop().create_future()
        idle.watch(stopped.set_result)
        replace_by_copy(path)

        with pytest.raises(JournalError, match="replaced by another file"):
            await (journal.runs() if call == "runs" else journal.cancel("idle"))

        assert "replaced by another file" in str(await stopped)
        assert await journal.runs() == []
        with pytest.raises(JournalError):
            await idle.close()


async def test_an_idle_run_notices_within_a_poll(path: Path) -> None:
    async with SQLiteJournal(path, lease_s=0.1) as journal:
        idle, _ = await journal.open("idle", wait=False, read=bool)
        stopped = asyncio.get_running_loop().create_future()
        idle.watch(stopped.set_result)

        move(path, *SUFFIXES)

        assert "moved or deleted" in str(await asyncio.wait_for(stopped, 20))
        with pytest.raises(JournalError):
            await idle.close()


async def test_a_relative_path_is_that_of_the_folder_where_the_journal_was_made(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = path.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(path.parent)
    journal = SQLiteJournal("runs.db")
    monkeypatch.chdir(elsewhere)

    async def act() -> None:
        os.chdir("..")

    async with journal:
        assert (await run_pipeline(pipeline(act), journal=journal)).all_passed

    assert path.exists()
    assert [*elsewhere.iterdir()] == []


async def test_a_folder_that_is_closed_to_this_user_is_reported(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = os.stat

    def refused(of: Any, **options: Any) -> os.stat_result:
        if str(of).startswith(str(path)):
            raise PermissionError(13, "Permission denied")
        return stat(of, **options)

    async def act() -> None:
        monkeypatch.setattr(os, "stat", refused)

    journal = SQLiteJournal(path)
    with pytest.raises(JournalError, match=r"runs\.db can't be looked at any more \(Permission de"):
        await run_pipeline(pipeline(act), journal=journal)
    monkeypatch.undo()
    await journal.aclose()


async def test_files_that_are_put_back_at_once_are_a_change_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = os.stat

    def refused_once(of: Any, **options: Any) -> os.stat_result:
        monkeypatch.setattr(os, "stat", stat)
        raise FileNotFoundError

    async def act() -> None:
        monkeypatch.setattr(os, "stat", refused_once)

    async with SQLiteJournal(path) as journal:
        with pytest.raises(JournalError, match=r"runs\.db was moved away for a moment"):
            await run_pipeline(pipeline(act), journal=journal)


def test_a_commit_into_a_file_that_was_just_moved_is_not_reported(path: Path) -> None:
    database = SQLite(str(path), "FULL", 1.0)

    def move_before(statement: str) -> None:
        if statement == "COMMIT":  # after the last check before it
            move(path, *SUFFIXES)

    def commit() -> None:
        with database.transaction() as cursor:
            cursor.execute("INSERT INTO leases (run_id, token, expires_at) VALUES ('r', 1, 1)")
            cursor.connection.set_trace_callback(move_before)

    with pytest.raises(JournalError, match="moved or deleted"):
        commit()
    put_back(path, *SUFFIXES)
    with database.transaction() as cursor:
        assert cursor.execute("SELECT run_id FROM leases").fetchall() == [("r",)]
    database.close()


@pytest.mark.parametrize("keep", [0, 0.3, 0.99])
def test_what_is_left_of_a_cut_wal_is_not_copied_into_the_database(path: Path, keep: float) -> None:
    database = SQLite(str(path), "FULL", 1.0)
    for number in range(100):
        with database.transaction() as cursor:
            cursor.execute(
                "INSERT INTO leases (run_id, token, expires_at) VALUES (?, 1, 1)",
                (f"{number} {'x' * 500}",),
            )
    content = path.read_bytes()
    truncate(path, "-wal", keep)

    with pytest.raises(JournalError, match="-wal was cut from"), database.transaction():
        pass

    assert path.read_bytes() == content
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("keep", [0, 0.3, 0.99])
def test_a_wal_that_is_cut_within_a_transaction_is_noticed_before_the_commit(
    path: Path, keep: float
) -> None:
    database = SQLite(str(path), "FULL", 1.0)
    with database.reading():
        pass
    content = path.read_bytes()

    def cut_within_a_transaction() -> None:
        with database.transaction() as cursor:
            cursor.execute("INSERT INTO leases (run_id, token, expires_at) VALUES ('r', 1, 1)")
            truncate(path, "-wal", keep)

    with pytest.raises(JournalError, match="-wal was cut from"):
        cut_within_a_transaction()

    database.close()
    assert path.read_bytes() == content


def test_what_fails_in_a_transaction_because_the_file_was_moved_says_so(path: Path) -> None:
    database = SQLite(str(path), "FULL", 1.0)
    with database.reading():
        pass

    def fail_in_a_file_that_was_moved() -> None:
        with database.transaction() as cursor:
            move(path, "")
            cursor.execute("SELECT x FROM what_is_not_there_any_more")

    with pytest.raises(JournalError, match="was moved or deleted"):
        fail_in_a_file_that_was_moved()


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_a_file_that_is_deleted_while_it_is_opened_is_reported(
    path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = SQLite(str(path), "FULL", 1.0)
    prepare = database._prepare

    def prepare_and_delete(connection: sqlite3.Connection) -> None:
        prepare(connection)
        beside(path, suffix).unlink()

    monkeypatch.setattr(database, "_prepare", prepare_and_delete)

    with pytest.raises(JournalError, match=f"runs.db{suffix} was moved or deleted"):
        with database.reading():
            pass
    database.close()


def test_a_file_that_is_deleted_before_anything_is_in_it_is_reported(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    def connect_and_delete(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        path.unlink()
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect_and_delete)
    database = SQLite(str(path), "FULL", 1.0)

    with pytest.raises(JournalError, match=r"runs\.db"), database.reading():
        pass


def test_a_wal_that_another_program_restarts_is_not_cut(path: Path) -> None:
    database = SQLite(str(path), "FULL", 1.0)
    lease = "INSERT INTO leases (run_id, token, expires_at) VALUES (?, 1, 1)"
    with database.transaction() as cursor:
        cursor.execute(lease, ("a",))
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert beside(path, "-wal").stat().st_size == 0

    with database.transaction() as cursor:
        cursor.execute(lease, ("b",))

    with database.transaction() as cursor:
        assert cursor.execute("SELECT run_id FROM leases").fetchall() == [("a",), ("b",)]
    database.close()


# --- before a journal is opened ------------------------------------------------------------------


@pytest.mark.parametrize(("change", "state"), [("deleted", "is missing"), ("emptied", "is empty")])
async def test_a_wal_without_its_database_is_refused(path: Path, change: str, state: str) -> None:
    first = SQLite(str(path), "FULL", 1.0)
    with first.transaction() as cursor:
        cursor.execute("INSERT INTO leases (run_id, token, expires_at) VALUES ('r', 1, 1)")
    for suffix in SUFFIXES:
        shutil.copy(beside(path, suffix), beside(path, f".left{suffix}"))
    first.close()
    left = beside(path, ".left")  # as a killed process leaves it
    GAMES[change][0](left)

    with pytest.raises(JournalError) as caught:
        async with SQLiteJournal(left):
            pass

    assert caught.value.problem == (
        f"{left} {state}, but {left}-wal belongs to it: the database was moved, deleted or emptied "
        "while a process used it, which may still run; put it back, or remove the -wal and the "
        "-shm as well to begin anew"
    )
    for suffix in ("-wal", "-shm"):
        beside(left, suffix).unlink()
    async with SQLiteJournal(left) as journal:
        assert await journal.runs() == []


async def test_a_journal_that_was_open_is_not_made_anew_in_an_emptied_file(path: Path) -> None:
    async with SQLiteJournal(path) as journal:
        await journal.runs()
        for suffix in ("", "-wal"):  # without its -shm, the system would kill this process
            truncate(path, suffix, 0)
        with pytest.raises(JournalError, match=r"runs\.db was emptied while it was open"):
            await journal.runs()

        with pytest.raises(JournalError, match=r"runs\.db was emptied while it was open"):
            await journal.open("r", wait=False, read=bool)

    assert path.stat().st_size == 0


# --- older copies --------------------------------------------------------------------------------


async def test_a_run_does_not_continue_in_a_history_that_lacks_its_events(
    journal: Any, database: Any
) -> None:
    session, _ = await journal.open("r", wait=False, read=bool)
    session.append(RunStarted("r", 1.0, {"a": ()}))
    session.append(AttemptStarted("a", 1, 1.0))
    await session.flush()
    database.query("DELETE FROM events WHERE position = 2")

    session.append(AttemptStarted("a", 2, 2.0))
    with pytest.raises(JournalError) as caught:
        await session.close()

    assert caught.value.problem.startswith(
        "it has 1 of the 2 events of run 'r' that were committed, so nothing more was written"
    )
    assert [stored.position for stored in await journal.events("r")] == [1]


# --- between processes ---------------------------------------------------------------------------

RIVAL = """
import asyncio, sys
from asyncflow.journal import SQLiteJournal
from asyncflow.journal._database import file as database_file
from asyncflow.journal._database.file import DatabaseFile
async def main():
    async with SQLiteJournal(sys.argv[1]) as journal:
        await journal.open("r", wait=False, read=bool)
try:
    asyncio.run(main())
except Exception as error:
    print(type(error).__name__)
else:
    print("owner")
"""


@pytest.mark.process
@pytest.mark.parametrize("game", ["moved", "deleted", "copied", "emptied"])
async def test_another_process_does_not_get_the_run(path: Path, game: str) -> None:
    play, says = GAMES[game]
    answers = []

    async def act() -> None:
        play(path)
        command = [sys.executable, "-c", RIVAL, str(path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
        answers.append(done.stdout.strip())

    async with SQLiteJournal(path, lease_s=600) as journal:
        with pytest.raises(JournalError) as caught:
            await run_pipeline(pipeline(act), journal=journal, run_id="r")

    assert says in caught.value.problem
    assert answers in (["DatabaseChangedError"], ["RunAlreadyActiveError"], ["JournalError"])


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_takes_over_no_lock_of_its_parent(path: Path) -> None:
    file = DatabaseFile.at(str(path))
    with file._lock, database_file._files_lock:  # as a worker thread may hold them during a fork
        pid = os.fork()
        if not pid:
            try:
                signal.alarm(10)
                database = SQLite(str(path), "FULL", 1.0)
                with database.reading():
                    os._exit(0)
            finally:
                os._exit(1)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_file_that_is_replaced_while_its_tables_are_made_is_not_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = SQLite(str(path), "FULL", 1.0)
    prepare, rivals = database._prepare, []

    def slowly(connection: sqlite3.Connection) -> None:
        prepare(connection)
        replace_by_a_new_journal(path)
        rivals.append(sqlite3.connect(path))
        rivals[0].execute("SELECT count(*) FROM runs")  # so that all three files are there

    monkeypatch.setattr(database, "_prepare", slowly)

    with pytest.raises(JournalError, match="was replaced by another file"), database.reading():
        pass

    rivals[0].close()
