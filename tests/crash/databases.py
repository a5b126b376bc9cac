"""Where the journal of a killed run is, and how its rows are read without it."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

import psycopg

from tests.postgres_server import PostgresServer

__all__ = ["Call", "Database", "Files", "Row", "Server", "StepRun"]

StepRun = tuple[str, str]
"""A step, and its item or "-"."""

Call = tuple[str, str, str]
"""A step, its item or "-", and the name of a call."""


class Row(NamedTuple):
    """The columns of a stored event that are checked."""

    position: int
    kind: str
    step: str | None
    item: int | None
    attempt: int | None
    payload: Any

    @property
    def step_run(self) -> StepRun:
        return (self.step or "", "-" if self.item is None else str(self.item))


_EVENTS = f"SELECT {', '.join(Row._fields)} FROM events WHERE run_id = ? ORDER BY position"
_SAVED = "SELECT data FROM checkpoints WHERE run_id = ? AND step = 'parts' AND item = -1"
_CALLS = "SELECT step, item, name FROM checkpoints WHERE run_id = ? AND name <> ''"
_RUN = "SELECT status FROM runs WHERE run_id = ?"
_OWNER = "SELECT owner FROM leases WHERE run_id = ?"


class Database(Protocol):
    """The database of runs, to be looked at from outside."""

    @property
    def dsn(self) -> str | None:
        """Its address; ``None`` if it is a file in the folder of the run."""

    def rows(self, folder: Path, run_id: str) -> list[Row]:
        """Return the stored events of a run."""

    def saved(self, folder: Path, run_id: str) -> int | None:
        """Return the checkpoint of the step ``parts``, if one is stored."""

    def calls(self, folder: Path, run_id: str) -> set[Call]:
        """Return the calls by name of which it has what they returned."""

    def status(self, folder: Path, run_id: str) -> tuple[str | None, str | None]:
        """Return the status of a run, and its owner; the former is ``None`` if there is none."""


class Files:
    """A file of SQLite in the folder of each run."""

    dsn = None

    def rows(self, folder: Path, run_id: str) -> list[Row]:
        with _opened(folder / "runs.db") as database:
            if database is None:
                return []
            result = database.execute("PRAGMA integrity_check").fetchone()[0]
            assert result == "ok", result
            if not database.execute(_HAS_TABLES).fetchall():
                return []
            return [Row(*row) for row in database.execute(_EVENTS, (run_id,))]

    def saved(self, folder: Path, run_id: str) -> int | None:
        with _opened(folder / "runs.db") as database:
            if database is None or not database.execute(_HAS_CHECKPOINTS).fetchall():
                return None
            return _saved(database.execute(_SAVED, (run_id,)).fetchall())

    def calls(self, folder: Path, run_id: str) -> set[Call]:
        with _opened(folder / "runs.db") as database:
            if database is None or not database.execute(_HAS_CHECKPOINTS).fetchall():
                return set()
            return _calls(database.execute(_CALLS, (run_id,)).fetchall())

    def status(self, folder: Path, run_id: str) -> tuple[str | None, str | None]:
        with _opened(folder / "runs.db") as database:
            if database is None:
                return None, None
            try:
                if not database.execute(_HAS_TABLES).fetchall():
                    return None, None
                found = database.execute(_RUN, (run_id,)).fetchone()
                owner = database.execute(_OWNER, (run_id,)).fetchone()
            except sqlite3.DatabaseError as error:
                return str(error), None
        return (found[0] if found else None), (owner[0] if owner else None)


_HAS_TABLES = "SELECT 1 FROM sqlite_master WHERE name = 'events'"
_HAS_CHECKPOINTS = "SELECT 1 FROM sqlite_master WHERE name = 'checkpoints'"


def _saved(rows: list[Any]) -> int | None:
    return int(bytes(rows[0][0])) if rows else None


def _calls(rows: list[Any]) -> set[Call]:
    return {(step, "-" if item < 0 else str(item), name) for step, item, name in rows}


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection | None]:
    """Open a copy of a database, so that recovering it is left to the process that resumes."""
    if not path.exists() or not path.stat().st_size:
        yield None
        return
    with TemporaryDirectory(dir=path.parent) as folder:
        for suffix in ("", "-wal", "-journal"):
            source = path.with_name(path.name + suffix)
            if source.exists():
                shutil.copy(source, Path(folder) / source.name)
        with closing(sqlite3.connect(Path(folder) / path.name)) as database:
            yield database


class Server:
    """A PostgreSQL server, in which each run has an id of its own."""

    def __init__(self, server: PostgresServer, dsn: str | None = None) -> None:
        self._server = server
        self.dsn = dsn or server.dsn()
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self.cuts = self.restarts = 0
        """How many connections were cut, and how often the server was restarted."""

    def rows(self, folder: Path, run_id: str) -> list[Row]:
        return [Row(*row) for row in self._query(_EVENTS, run_id)]

    def saved(self, folder: Path, run_id: str) -> int | None:
        return _saved(self._query(_SAVED, run_id))

    def calls(self, folder: Path, run_id: str) -> set[Call]:
        return _calls(self._query(_CALLS, run_id))

    def status(self, folder: Path, run_id: str) -> tuple[str | None, str | None]:
        found, owner = self._query(_RUN, run_id), self._query(_OWNER, run_id)
        return (found[0][0] if found else None), (owner[0][0] if owner else None)

    def disturb(self, random: Random, whole_s: float) -> None:
        """Cut all connections after a random time; now and then restart the server at once."""
        time.sleep(random.uniform(0, whole_s))
        if random.random() < 0.02:
            self.restarts += 1
            self.close()
            self._server.restart("immediate")
        else:
            cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE"
            others = " backend_type = 'client backend' AND pid <> pg_backend_pid()"
            self.cuts += len(self._query(cut + others))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _query(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        if self._connection is None:
            in_schema = "-csearch_path=asyncflow"
            self._connection = psycopg.connect(self.dsn, autocommit=True, options=in_schema)
        text = sql.replace("?", "%s").encode()
        try:
            return self._connection.execute(text, arguments or None).fetchall()
        except psycopg.errors.UndefinedTable:
            return []  # no process has come to create it
