"""What stands between a journal and the tables of a PostgreSQL database."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier

import psycopg
import pytest
from journal.kept_runs import KEPT, PIPELINES
from postgres_server import PostgresServer, until

from asyncflow._core.errors import JournalError
from asyncflow.journal import PostgresJournal
from asyncflow.journal._postgres_connection import _MIGRATIONS, Postgres
from asyncflow.journal._store import Cursor


def runs_of(database: Postgres) -> list[object]:
    def ask(cursor: Cursor) -> list[object]:
        cursor.execute(database.translate("SELECT run_id FROM runs"))
        return cursor.fetchall()

    try:
        with database.reading() as cursor:
            return ask(cursor)
    finally:
        database.close()


async def use(dsn: str) -> None:
    async with PostgresJournal(dsn):
        pass


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dsn", "name"),
    [
        ("postgresql://me:s3cret@host:5433/runs", "postgresql://me@host:5433/runs"),
        ("postgres://me@host/runs?password=s3cret", "postgresql://me@host/runs"),
        ("host=host user=me password=s3cret dbname=runs", "postgresql://me@host/runs"),
        ("hostaddr=127.0.0.1 sslpassword=s3cret", "postgresql://127.0.0.1/"),
        ("postgresql://me:s3cret@a:1,b:2/runs", "postgresql://me@a,b:1,2/runs"),
        ("", "postgresql:///"),
    ],
)
def test_an_address_is_shown_without_what_is_secret(dsn: str, name: str) -> None:
    journal = PostgresJournal(dsn)

    assert repr(journal) == f"PostgresJournal({name!r})"
    assert "s3cret" not in repr(journal)


@pytest.mark.parametrize(
    "dsn", ["postgresql://me:s3%cret@host/runs", "host=host password=a s3cret", "pasword=s3cret"]
)
def test_an_address_that_cannot_be_read_is_not_shown_either(dsn: str) -> None:
    with pytest.raises(ValueError, match="postgresql://user@host:5432/database") as caught:
        PostgresJournal(dsn)

    assert "s3cret" not in str(caught.value)
    assert caught.value.__suppress_context__


async def test_a_lease_may_last_for_a_day(dsn: str) -> None:
    async with PostgresJournal(dsn, lease_s=86_400) as journal:
        book, _ = await journal.open("r", wait=False, read=len)
        await book.close()


async def test_a_wrong_password_is_told_at_once(
    dsn: str, postgres_server: PostgresServer, only_with_a_password: str
) -> None:
    address = dsn.replace("postgres@", f"{only_with_a_password}:s3cret@")

    with pytest.raises(JournalError) as caught:
        await use(address)

    told = str(caught.value)
    assert told.startswith("journal postgresql://bob@127.0.0.1:")
    assert "it can't be reached (" in told
    assert "password authentication failed" in told
    assert "the password are right" in told
    assert "s3cret" not in told
    assert caught.value.journal == postgres_server.dsn(dsn.rpartition("/")[2]).replace(
        "postgres@", "bob@"
    )


@pytest.fixture
def only_with_a_password(postgres_server: PostgresServer) -> Iterator[str]:
    """The name of a user who is asked for a password."""
    rules = postgres_server.folder / "data" / "pg_hba.conf"
    before = rules.read_text()
    postgres_server.execute("CREATE ROLE bob LOGIN PASSWORD 'right'")
    rules.write_text(f"host all bob 127.0.0.1/32 scram-sha-256\n{before}")
    postgres_server.restart()
    yield "bob"
    rules.write_text(before)
    postgres_server.restart()
    postgres_server.execute("DROP ROLE bob")


async def test_an_unknown_database_is_told_at_once(postgres_server: PostgresServer) -> None:
    with pytest.raises(JournalError, match='database "nowhere" does not exist'):
        await use(postgres_server.dsn("nowhere"))


async def test_a_server_that_is_not_there_is_told_at_once(postgres_server: PostgresServer) -> None:
    address = postgres_server.dsn().replace(str(postgres_server.port), "1")

    with pytest.raises(
        JournalError, match=r"it can't be reached \(.*refused.*that the server runs"
    ):
        await use(address)


def test_without_psycopg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "asyncflow.journal._postgres")
    monkeypatch.delitem(sys.modules, "asyncflow.journal._postgres_connection")

    with pytest.raises(ImportError, match=r"pip install 'asyncflow-tiers\[postgres\]'"):
        PostgresJournal("")


# --- the schema -----------------------------------------------------------------------------------


async def test_the_tables_are_apart_from_those_of_others(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE events (theirs INT)")

    await use(dsn)

    with psycopg.connect(dsn) as connection:
        found = connection.execute(
            "SELECT schemaname || '.' || tablename FROM pg_tables "
            "WHERE schemaname IN ('public', 'asyncflow') ORDER BY 1"
        )
        assert [name for (name,) in found] == [
            "asyncflow.events",
            "asyncflow.leases",
            "asyncflow.runs",
            "asyncflow.schema_version",
            "public.events",
        ]


def test_processes_that_make_the_tables_at_once_do_not_disturb_each_other(dsn: str) -> None:
    together = Barrier(8)

    def begin(_: int) -> list[object]:
        database = Postgres(dsn, 10.0)
        together.wait()
        return runs_of(database)

    with ThreadPoolExecutor(8) as executor:
        found = list(executor.map(begin, range(8)))

    assert found == [[]] * 8
    assert version_in(dsn) == 2


def version_in(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("SELECT version FROM asyncflow.schema_version").fetchall()
    ((version,),) = rows
    return version


async def test_newer_tables_are_left_alone(dsn: str) -> None:
    await use(dsn)
    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE asyncflow.schema_version SET version = 3")

    with pytest.raises(JournalError, match=r"schema 3, and this one knows up to 2.*upgrade"):
        await use(dsn)

    assert version_in(dsn) == 3


async def test_tables_of_the_first_schema_are_brought_up_to_date(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as as_it_was:
        as_it_was.setattr("asyncflow.journal._postgres_connection._MIGRATIONS", _MIGRATIONS[:1])
        assert runs_of(Postgres(dsn, 10.0)) == []
    assert version_in(dsn) == 1
    fill(dsn, KEPT / "schema-1-with-id.db")

    async with PostgresJournal(dsn) as journal:
        statuses = {run.run_id: run.status for run in await journal.runs()}
        report = await journal.report("passed")
        assert await journal.cancel("cut short") is False
        inputs = {"password": "hunter2"}
        again = await PIPELINES["failed"].run(run_id="failed", journal=journal, inputs=inputs)

    assert statuses == {
        "passed": "passed",
        "failed": "failed",
        "timed out": "failed",
        "interrupted": "interrupted",
        "cut short": "running",
    }
    assert report["price"].output == ["3.00"] * 3
    assert again.all_passed
    assert version_in(dsn) == 2


def fill(dsn: str, path: Path) -> None:
    """Copy the runs of a file into a database."""
    with (
        closing(sqlite3.connect(path)) as source,
        psycopg.connect(dsn, options="-csearch_path=asyncflow") as target,
    ):
        for table in ("runs", "leases", "events"):
            rows = source.execute(f"SELECT * FROM {table}")
            marks = ", ".join(["%s"] * len(rows.description))
            target.cursor().executemany(f"INSERT INTO {table} VALUES ({marks})".encode(), rows)


def test_a_migration_happens_as_a_whole_or_not_at_all(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Postgres(dsn, 10.0)
    bad = ["CREATE TABLE asyncflow.runs ()", "CREATE TABLE asyncflow.runs ()"]
    monkeypatch.setattr("asyncflow.journal._postgres_connection._MIGRATIONS", [bad])

    with pytest.raises(JournalError, match='"runs" already exists'):
        runs_of(database)
    monkeypatch.undo()

    with psycopg.connect(dsn) as connection:
        found = connection.execute("SELECT to_regnamespace('asyncflow') IS NULL").fetchone()
    assert found == (True,)
    assert runs_of(database) == []


@pytest.fixture
def guest(postgres_server: PostgresServer, dsn: str) -> Iterator[str]:
    """The address of the database for a user who may do nothing in it."""
    postgres_server.execute("CREATE ROLE guest LOGIN")
    yield dsn.replace("postgres@", "guest@")
    postgres_server.execute("DROP OWNED BY guest", dsn.rpartition("/")[2])
    postgres_server.execute("DROP ROLE guest")


async def test_who_may_not_make_the_tables_is_told_what_is_needed(guest: str) -> None:
    with pytest.raises(JournalError, match=r"permission denied.*allowed to create a schema"):
        await use(guest)


async def test_who_is_given_a_schema_makes_the_tables_there(guest: str, dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE SCHEMA asyncflow AUTHORIZATION guest")

    await use(guest)

    assert version_in(dsn) == 2


async def test_what_can_only_be_read_says_so(dsn: str) -> None:
    await use(dsn)
    journal = PostgresJournal(f"{dsn}?options=-cdefault_transaction_read_only%3Don")

    async with journal:
        assert await journal.runs() == []
        with pytest.raises(JournalError, match=r"it can only be read \(.*target_session_attrs"):
            await journal.open("r", wait=False, read=len)


@pytest.mark.parametrize(("asked", "told"), [("off", "on"), ("on", "on"), ("local", "local")])
def test_what_is_told_to_be_committed_is_on_the_disk(dsn: str, asked: str, told: str) -> None:
    database = Postgres(f"{dsn}?options=-csynchronous_commit%3D{asked}", 10.0)

    with database.transaction() as cursor:
        cursor.execute("SHOW synchronous_commit")
        found = cursor.fetchall()
    database.close()

    assert found == [(told,)]


async def test_a_closed_journal_leaves_no_connection(
    dsn: str, postgres_server: PostgresServer
) -> None:
    await use(dsn)

    # The server takes note of it in a moment.
    open_ones = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'asyncflow'"
    until(lambda: postgres_server.execute(open_ones) == [(0,)])
