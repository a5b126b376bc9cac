"""The PostgreSQL connection of a journal: addresses, errors and the schema."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import psycopg
import pytest
from postgres_server import PostgresServer, until

from asyncflow._core.errors import JournalError
from asyncflow.journal import PostgresJournal
from asyncflow.journal._database.postgres import Postgres
from asyncflow.journal._database.sql import Cursor
from asyncflow.journal._database.tables import VERSION


def runs_of(database: Postgres) -> list[object]:
    def ask(cursor: Cursor) -> list[object]:
        cursor.execute(database.translate("SELECT run_id FROM runs"))
        return cursor.fetchall()

    try:
        with database.reading() as cursor:
            return ask(cursor)
    finally:
        database.close()


async def open_and_close(dsn: str) -> None:
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
def test_an_address_is_shown_without_secrets(dsn: str, name: str) -> None:
    journal = PostgresJournal(dsn)

    assert repr(journal) == f"PostgresJournal({name!r})"
    assert "s3cret" not in repr(journal)


@pytest.mark.parametrize(
    "dsn", ["postgresql://me:s3%cret@host/runs", "host=host password=a s3cret", "pasword=s3cret"]
)
def test_an_invalid_address_is_not_shown(dsn: str) -> None:
    with pytest.raises(ValueError, match="postgresql://user@host:5432/database") as caught:
        PostgresJournal(dsn)

    assert "s3cret" not in str(caught.value)
    assert caught.value.__suppress_context__


async def test_a_lease_can_last_a_day(dsn: str) -> None:
    async with PostgresJournal(dsn, lease_s=86_400) as journal:
        session, _ = await journal.open("r", wait=False, read=bool)
        await session.close()


async def test_a_wrong_password_is_reported_at_once(
    dsn: str, postgres_server: PostgresServer, password_role: str
) -> None:
    address = dsn.replace("postgres@", f"{password_role}:s3cret@")

    with pytest.raises(JournalError) as caught:
        await open_and_close(address)

    message = str(caught.value)
    assert message.startswith("journal postgresql://bob@127.0.0.1:")
    assert "it can't be reached (" in message
    assert "password authentication failed" in message
    assert "the password are right" in message
    assert "s3cret" not in message
    assert caught.value.journal == postgres_server.dsn(dsn.rpartition("/")[2]).replace(
        "postgres@", "bob@"
    )


@pytest.fixture
def password_role(postgres_server: PostgresServer) -> Iterator[str]:
    """Return the name of a role that needs a password."""
    rules = postgres_server.folder / "data" / "pg_hba.conf"
    before = rules.read_text()
    postgres_server.execute("CREATE ROLE bob LOGIN PASSWORD 'right'")
    rules.write_text(f"host all bob 127.0.0.1/32 scram-sha-256\n{before}")
    postgres_server.restart()
    yield "bob"
    rules.write_text(before)
    postgres_server.restart()
    postgres_server.execute("DROP ROLE bob")


async def test_an_unknown_database_is_reported_at_once(postgres_server: PostgresServer) -> None:
    with pytest.raises(JournalError, match='database "nowhere" does not exist'):
        await open_and_close(postgres_server.dsn("nowhere"))


async def test_an_unreachable_server_is_reported_at_once(postgres_server: PostgresServer) -> None:
    address = postgres_server.dsn().replace(str(postgres_server.port), "1")

    with pytest.raises(
        JournalError, match=r"it can't be reached \(.*refused.*that the server runs"
    ):
        await open_and_close(address)


def test_a_missing_psycopg_is_reported_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "asyncflow.journal._postgres")
    monkeypatch.delitem(sys.modules, "asyncflow.journal._database.postgres")

    with pytest.raises(ImportError, match=r"pip install 'asyncflow-tiers\[postgres\]'"):
        PostgresJournal("")


# --- the schema -----------------------------------------------------------------------------------


async def test_the_tables_are_in_their_own_schema(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE events (theirs INT)")

    await open_and_close(dsn)

    with psycopg.connect(dsn) as connection:
        found = connection.execute(
            "SELECT schemaname || '.' || tablename FROM pg_tables "
            "WHERE schemaname IN ('public', 'asyncflow') ORDER BY 1"
        )
        assert [name for (name,) in found] == [
            "asyncflow.cached_results",
            "asyncflow.checkpoints",
            "asyncflow.events",
            "asyncflow.keys",
            "asyncflow.leases",
            "asyncflow.notes",
            "asyncflow.pools",
            "asyncflow.queued",
            "asyncflow.run_attributes",
            "asyncflow.runs",
            "asyncflow.schema_version",
            "asyncflow.shares",
            "asyncflow.signals",
            "asyncflow.summaries",
            "public.events",
        ]


def test_connections_can_create_the_tables_concurrently(dsn: str) -> None:
    together = Barrier(8)

    def create_tables(_: int) -> list[object]:
        database = Postgres(dsn, 10.0)
        together.wait()
        return runs_of(database)

    with ThreadPoolExecutor(8) as executor:
        found = list(executor.map(create_tables, range(8)))

    assert found == [[]] * 8
    assert version_in(dsn) == VERSION


def version_in(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("SELECT version FROM asyncflow.schema_version").fetchall()
    ((version,),) = rows
    return version


async def test_tables_of_another_schema_are_left_unchanged(dsn: str) -> None:
    await open_and_close(dsn)
    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE asyncflow.schema_version SET version = 7")

    with pytest.raises(
        JournalError, match=rf"schema 7, and this one makes and reads {VERSION} alone"
    ):
        await open_and_close(dsn)

    assert version_in(dsn) == 7


def test_tables_are_made_as_a_whole_or_not_at_all(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Postgres(dsn, 10.0)
    bad = ["CREATE TABLE runs (x INTEGER)", "CREATE TABLE runs (x INTEGER)"]
    monkeypatch.setattr("asyncflow.journal._database.postgres.SCHEMA", bad)

    with pytest.raises(JournalError, match='"runs" already exists'):
        runs_of(database)
    monkeypatch.undo()

    with psycopg.connect(dsn) as connection:
        found = connection.execute("SELECT to_regnamespace('asyncflow') IS NULL").fetchone()
    assert found == (True,)
    assert runs_of(database) == []


@pytest.fixture
def guest(postgres_server: PostgresServer, dsn: str) -> Iterator[str]:
    """Return the address of the database for a role without privileges."""
    postgres_server.execute("CREATE ROLE guest LOGIN")
    yield dsn.replace("postgres@", "guest@")
    postgres_server.execute("DROP OWNED BY guest", dsn.rpartition("/")[2])
    postgres_server.execute("DROP ROLE guest")


async def test_a_user_who_cannot_create_the_tables_learns_the_missing_privilege(guest: str) -> None:
    with pytest.raises(JournalError, match=r"permission denied.*allowed to create a schema"):
        await open_and_close(guest)


async def test_a_user_who_owns_the_schema_can_create_the_tables(guest: str, dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE SCHEMA asyncflow AUTHORIZATION guest")

    await open_and_close(guest)

    assert version_in(dsn) == VERSION


async def test_a_read_only_database_is_reported(dsn: str) -> None:
    await open_and_close(dsn)
    journal = PostgresJournal(f"{dsn}?options=-cdefault_transaction_read_only%3Don")

    async with journal:
        assert await journal.runs() == []
        with pytest.raises(JournalError, match=r"it can only be read \(.*target_session_attrs"):
            await journal.open("r", wait=False, read=bool)


@pytest.mark.parametrize(
    ("requested", "applied"), [("off", "on"), ("on", "on"), ("local", "local")]
)
def test_a_commit_always_waits_for_the_disk(dsn: str, requested: str, applied: str) -> None:
    database = Postgres(f"{dsn}?options=-csynchronous_commit%3D{requested}", 10.0)

    with database.transaction() as cursor:
        cursor.execute("SHOW synchronous_commit")
        found = cursor.fetchall()
    database.close()

    assert found == [(applied,)]


async def test_a_closed_journal_leaves_no_connection(
    dsn: str, postgres_server: PostgresServer
) -> None:
    await open_and_close(dsn)

    # The server notices a closed connection after a moment.
    open_ones = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'asyncflow'"
    until(lambda: postgres_server.execute(open_ones) == [(0,)])
