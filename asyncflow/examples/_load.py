"""Carries the rows of the ETL: in scratch files between its steps, at last into SQLite."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from asyncflow.examples._csv import until_cancelled

_QUARANTINE = """
    CREATE TABLE IF NOT EXISTS etl_quarantine (
        table_name TEXT, source_line INTEGER, reason TEXT, raw TEXT,
        PRIMARY KEY (table_name, source_line)
    )"""


class Rows:
    """A sequence of rows in a file: each line is a JSON list."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.count = 0

    def append(self, *row: Any) -> None:
        """Add a row at the end. The rows must not be read meanwhile."""
        self._file.write(f"{json.dumps(row)}\n")
        self.count += 1

    def read(self) -> Iterator[list[Any]]:
        """Yield the rows from the first one on."""
        self._file.seek(0)
        return map(json.loads, until_cancelled(self._file))


class Workspace(ExitStack):
    """The scratch files of one run. They have no names, so even a killed run leaves none behind.

    Each row begins with the number of its line. Its cells as text follow in ``accepted``, its
    values in ``table``; the reason and its text in ``quarantine``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.snapshot, self.accepted = self._scratch(), Rows(self._scratch())
        self.quarantine, self.table = Rows(self._scratch()), Rows(self._scratch())

    def _scratch(self) -> IO[str]:
        return self.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", newline=""))


@dataclass(frozen=True, slots=True)
class Table:
    """A table to create: its name, and the name and the type of each column.

    The column ``source_line``, which every table has first, is not among them.
    """

    name: str
    columns: tuple[tuple[str, str], ...]


def replace_table(
    database: Path,
    table: Table,
    rows: Iterable[Sequence[Any]],
    quarantine: Iterable[Sequence[Any]],
) -> None:
    """Replace a table and its quarantine, those of an earlier run, in one transaction.

    Whatever stops it leaves the database as it was, and a reader sees the old rows until the new
    ones are complete.
    """
    if database.is_dir() or not database.parent.is_dir():
        raise ValueError(f"the database {database} is a folder, or its folder does not exist")
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with connection:  # commits, or rolls back if anything is raised
            _create(connection, table)
            values = ", ".join("?" * (len(table.columns) + 1))
            connection.executemany(f'INSERT INTO "{table.name}" VALUES ({values})', rows)
            connection.execute("DELETE FROM etl_quarantine WHERE table_name = ?", [table.name])
            connection.executemany(
                "INSERT INTO etl_quarantine VALUES (?, ?, ?, ?)",
                ([table.name, *row] for row in quarantine),
            )


def _create(connection: sqlite3.Connection, table: Table) -> None:
    connection.execute(_QUARANTINE)
    existing = connection.execute("SELECT name FROM pragma_table_info(?)", [table.name]).fetchall()
    if existing and existing[0] != ("source_line",):
        raise ValueError(
            f"the database has a table {table.name!r} that this pipeline did not create; "
            "choose another database, or rename the source"
        )
    connection.execute(f'DROP TABLE IF EXISTS "{table.name}"')
    columns = [f'"{name}" {kind.upper()}' for name, kind in table.columns]
    definition = ", ".join(["source_line INTEGER PRIMARY KEY", *columns])
    connection.execute(f'CREATE TABLE "{table.name}" ({definition})')
