"""Every test of the contract runs on each kind of database."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from asyncflow.journal import SQLiteJournal


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

    def remove(self) -> None: ...


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

    def remove(self) -> None: ...


PLACES: dict[str, Callable[[Path], Place]] = {"sqlite": SQLitePlace}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    place = PLACES[request.param](tmp_path)
    yield place
    place.remove()


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
