"""Every test of the contract runs on each kind of database."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest

from asyncflow.journal import PostgresJournal, SQLiteJournal


class Place(Protocol):
    """A new, empty database, and ways to it that go round the journal."""

    source: str
    """What makes a journal of it in another process: ``make(**options)`` after this."""

    def make(self, **options: Any) -> Any:
        """Return a journal of it."""
        ...

    def query(self, sql: str) -> list[Any]:
        """Run one statement, commit it, and return its rows."""
        ...


class SQLitePlace:
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


class PostgresPlace:
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


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return SQLitePlace(tmp_path)
    return PostgresPlace(request.getfixturevalue("dsn"))


@pytest.fixture
def make_journal(place: Place) -> Iterator[Callable[..., Any]]:
    """Make a journal of the place; it is closed after the test."""
    made = []

    def make(**options: Any) -> Any:
        made.append(place.make(**options))
        return made[-1]

    yield make
    for journal in made:
        journal.close()


@pytest.fixture
def journal(make_journal: Callable[..., Any]) -> Any:
    return make_journal()
