"""Each test of the journal contract runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest

from asyncflow.journal import PostgresJournal, SQLiteJournal


class TestedDatabase(Protocol):
    """A new, empty database that a test can open with a journal or query directly."""

    source: str
    """Source code that defines ``make(**options)``, to open a journal in another process."""

    def make(self, **options: Any) -> Any:
        """Return a journal that stores its runs in the database."""
        ...

    def query(self, sql: str) -> list[Any]:
        """Execute one statement, commit it, and return its rows."""
        ...

    def bytes(self, data: bytes) -> str:
        """Return bytes as SQL."""
        ...

    def expire_leases(self, run_id: str = "%") -> None:
        """Let the leases of runs with such ids expire."""
        ...


class TestedSQLite:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "runs.db"
        self.source = f"""
from asyncflow.journal import SQLiteJournal
def make(**options):
    return SQLiteJournal({str(self.path)!r}, **options)
"""

    def make(self, **options: Any) -> SQLiteJournal:
        return SQLiteJournal(self.path, **options)

    def query(self, sql: str) -> list[Any]:
        connection = sqlite3.connect(self.path, isolation_level=None)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    def bytes(self, data: bytes) -> str:
        return f"X'{data.hex()}'"

    def expire_leases(self, run_id: str = "%") -> None:
        expiry = "expires_at = 1, boot_expires_at = 1"
        self.query(f"UPDATE leases SET {expiry} WHERE run_id LIKE '{run_id}'")


class TestedPostgres:
    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.source = f"""
from asyncflow.journal import PostgresJournal
def make(**options):
    return PostgresJournal({dsn!r}, **options)
"""

    def make(self, **options: Any) -> PostgresJournal:
        return PostgresJournal(self.dsn, **options)

    def query(self, sql: str) -> list[Any]:
        in_schema = "-csearch_path=asyncflow"
        with psycopg.connect(self.dsn, autocommit=True, options=in_schema) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def bytes(self, data: bytes) -> str:
        return f"'\\x{data.hex()}'"

    def expire_leases(self, run_id: str = "%") -> None:
        self.query(f"UPDATE leases SET expires_at = 1 WHERE run_id LIKE '{run_id}'")


on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
"""Marks a slow test of threads, polls and leases in this process: no database has a part in it."""


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> TestedDatabase:
    if request.param == "sqlite":
        return TestedSQLite(tmp_path)
    return TestedPostgres(request.getfixturevalue("dsn"))


@pytest.fixture
def make_journal(database: TestedDatabase) -> Iterator[Callable[..., Any]]:
    """Open journals on the database and close them after the test."""
    made = []

    def make(**options: Any) -> Any:
        made.append(database.make(**options))
        return made[-1]

    yield make
    for journal in made:
        journal.close()


@pytest.fixture
def journal(make_journal: Callable[..., Any]) -> Any:
    return make_journal()
