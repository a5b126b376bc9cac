"""Carries the rows of the ETL: in scratch files between its steps, at last into SQLite."""

from __future__ import annotations

import errno
import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from asyncflow.examples._csv_reader import until_cancelled

__all__ = ["Loaded", "Rows", "Table", "Workspace", "replace_table"]

_BOOKKEEPING = """
    CREATE TABLE IF NOT EXISTS etl_loads (
        table_name TEXT PRIMARY KEY, source TEXT, encoding TEXT, delimiter TEXT
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS etl_quarantine (
        table_name TEXT, source_line INTEGER, reason TEXT, raw TEXT,
        PRIMARY KEY (table_name, source_line)
    ) WITHOUT ROWID;
"""


class Rows:
    """A sequence of rows in a file: each line is a JSON list.

    Attributes:
        count: How many rows there are.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.count = 0

    def append(self, row: list[Any]) -> None:
        """Add a row at the end. The rows must not be read meanwhile."""
        self._file.write(json.dumps(row))
        self._file.write("\n")
        self.count += 1

    def read(self) -> Iterator[list[Any]]:
        """Yield the rows from the first one on, in a step in a thread.

        Raises:
            asyncio.CancelledError: The step must stop.
        """
        self._file.seek(0)
        return map(json.loads, until_cancelled(self._file))


class Workspace:
    """The scratch files of one run. They have no names, so even a killed run leaves none behind.

    Together they take about three times the space of the source, in the system's temporary
    folder, which ``TMPDIR`` overrides.

    Attributes:
        snapshot: The bytes of the source, which stay the same for all steps.
        accepted: Valid rows: the number of the line, then the cells as text.
        quarantine: Invalid rows: the number of the line, the reason, and the text of the row.
        table: The rows to insert: the number of the line, then the values.
    """

    def __init__(self) -> None:
        with ExitStack() as files:
            self.snapshot: IO[bytes] = files.enter_context(tempfile.TemporaryFile())
            self.accepted, self.quarantine, self.table = (
                Rows(files.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8")))
                for _ in range(3)
            )
            self._files = files.pop_all()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()


@dataclass(frozen=True, slots=True)
class Table:
    """A table to create, and the source of its rows."""

    name: str
    columns: tuple[tuple[str, str], ...]
    """The name and the type of each column but ``source_line``, which every table has first."""
    source: str
    encoding: str
    delimiter: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """How many rows of a source the database has."""

    rows: int
    quarantined: int


def replace_table(
    database: Path,
    table: Table,
    rows: Iterable[Sequence[Any]],
    quarantine: Iterable[Sequence[Any]],
) -> Loaded:
    """Replace a table and its quarantine, those of an earlier run, in one transaction.

    Whatever stops it leaves the database as it was, and a reader sees the old rows until the new
    ones are complete. Both iterables are consumed row by row.

    Args:
        database: The file; created if it does not exist.
        table: The table to create.
        rows: The number of the line and the values of each row.
        quarantine: The number of the line, the reason and the text of each invalid row.

    Raises:
        FileNotFoundError: The folder of the database does not exist.
        ValueError: The database has a table with that name that no earlier run created.
        sqlite3.Error: The database is locked or damaged, or the file is not a database.
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
    for statement in _BOOKKEEPING.split(";"):  # executescript() would commit first
        connection.execute(statement)
    exists = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [name]).fetchone()
    ours = connection.execute("SELECT 1 FROM etl_loads WHERE table_name = ?", [name]).fetchone()
    if exists and not ours:
        raise ValueError(
            f"the database has a table {name!r} that this pipeline did not create; "
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
