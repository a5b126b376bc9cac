"""Replaces a table of an SQLite database, in one transaction."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Loaded", "Table", "replace_table"]

_BOOKS = """
    CREATE TABLE IF NOT EXISTS etl_loads (
        table_name TEXT PRIMARY KEY, source TEXT, encoding TEXT, delimiter TEXT
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS etl_quarantine (
        table_name TEXT, source_line INTEGER, reason TEXT, raw TEXT,
        PRIMARY KEY (table_name, source_line)
    ) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Table:
    """A table to be, and where its rows come from."""

    name: str
    columns: tuple[tuple[str, str], ...]
    """The name and the type of each column, after ``source_line``, which all tables have."""
    source: str
    encoding: str
    delimiter: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """How many rows the database has of a table."""

    rows: int
    quarantined: int


def replace_table(
    database: Path,
    table: Table,
    rows: Iterable[Sequence[Any]],
    quarantine: Iterable[Sequence[Any]],
) -> Loaded:
    """Put a table and its quarantine in the place of those that an earlier run has made.

    All of it is one transaction: whatever stops it, the database is then as it was before, and
    a reader sees the old rows until the new ones are complete. Both iterables are consumed row
    by row.

    Args:
        database: The file; it is made if it does not exist.
        table: What to make.
        rows: For each row the number of its line and its values.
        quarantine: For each row that was refused the number of its line, the reason and its text.

    Raises:
        FileNotFoundError: The folder of the database does not exist.
        ValueError: The database has such a table, and no earlier run has made it.
        sqlite3.Error: The database is locked or damaged, or is no database.
    """
    if not database.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, "the database's folder does not exist", str(database.parent)
        )
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with connection:  # commits, or rolls back if anything is raised
            _drop(connection, table.name)
            loaded = _fill(connection, table, rows)
            connection.execute("DELETE FROM etl_quarantine WHERE table_name = ?", [table.name])
            refused = connection.executemany(
                "INSERT INTO etl_quarantine VALUES (?, ?, ?, ?)",
                ([table.name, *row] for row in quarantine),
            )
    return Loaded(loaded, max(0, refused.rowcount))  # it is -1 if there were none


def _drop(connection: sqlite3.Connection, name: str) -> None:
    for statement in _BOOKS.split(";"):  # executescript() would commit first
        connection.execute(statement)
    exists = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [name]).fetchone()
    ours = connection.execute("SELECT 1 FROM etl_loads WHERE table_name = ?", [name]).fetchone()
    if exists and not ours:
        raise ValueError(
            f"the database has a table {name!r} that did not come from here; "
            "choose another database, or rename the source"
        )
    connection.execute(f'DROP TABLE IF EXISTS "{name}"')


def _fill(connection: sqlite3.Connection, table: Table, rows: Iterable[Sequence[Any]]) -> int:
    columns = [f'"{name}" {kind.upper()}' for name, kind in table.columns]
    definition = ", ".join(["source_line INTEGER PRIMARY KEY", *columns])
    connection.execute(f'CREATE TABLE "{table.name}" ({definition})')
    values = ", ".join("?" * (len(columns) + 1))
    connection.execute(
        "INSERT OR REPLACE INTO etl_loads VALUES (?, ?, ?, ?)",
        [table.name, table.source, table.encoding, table.delimiter],
    )
    inserted = connection.executemany(f'INSERT INTO "{table.name}" VALUES ({values})', rows)
    return max(0, inserted.rowcount)
