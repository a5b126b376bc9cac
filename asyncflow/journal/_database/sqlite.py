"""The SQLite file of a journal.

Several processes may share the file:

- A transaction that writes begins with ``BEGIN IMMEDIATE``. If it read first, it would fail at
  once, without waiting, when another process wrote in between.
- A checkpoint copies the WAL into the file only while no process can write. Before version 3.51.3,
  SQLite could damage the file otherwise (sqlite.org/wal.html, "the WAL-reset bug").
- A transaction fails if the file at the path is not the one that is open (`file`). The
  look before the commit keeps it out of a file that was moved away. The look after it covers the
  moment between; a commit that fails it is not reported as stored.
- Leases expire by a clock that all processes of the machine share (`machine`).
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Literal, TypeVar

from asyncflow._core.errors import JournalError
from asyncflow._core.text import escape_controls
from asyncflow.journal._database.file import DatabaseFile
from asyncflow.journal._database.machine import LeaseClock, this_machine
from asyncflow.journal._database.sql import DatabaseChangedError, either_case
from asyncflow.journal._database.tables import SCHEMA, VERSION, why_unknown

T = TypeVar("T")

Synchronous = Literal["FULL", "NORMAL"]

IN_MEMORY = ":memory:"
"""The path of a database that belongs to one connection."""

_APPLICATION = 0x61737966
"""The `PRAGMA application_id` of a journal: the first letters of asyncflow."""

# Without a second tree for row ids; SQLite before 3.37 does not know strict tables.
_OF_TABLE = "WITHOUT ROWID, STRICT" if sqlite3.sqlite_version_info >= (3, 37) else "WITHOUT ROWID"

_EXPIRES = (
    "IFNULL(CAST(l.expires_at AS REAL), 0), CAST(l.clock AS BLOB), CAST(l.boot_expires_at AS REAL)"
)

_DIALECT = {
    "{now}": "asyncflow_now()",
    "{lock}": "",
    "{like}": "GLOB",
    # Without statistics, SQLite takes one index of a run's events to be as good as another.
    "{of_runs}": "INDEXED BY events_of_runs",
    # Where SQLite has it, it reads no more than the size.
    "{bytes}": "octet_length" if sqlite3.sqlite_version_info >= (3, 43) else "length",
    "{valid}": f"asyncflow_left({_EXPIRES}) > 0",
    "{left}": f"asyncflow_left({_EXPIRES})",
    "{expiry}": "(expires_at, clock, boot_expires_at) = (SELECT asyncflow_now() + lease_s, "
    "asyncflow_clock(), asyncflow_boot_now() + lease_s FROM (SELECT ? AS lease_s))",
}

_WAL_BYTES = 4 * 1024 * 1024
"""How large the WAL may grow. When it is restarted, it is truncated to half of that."""

_SAFE = "what was committed before is safe, and nothing of this transaction was stored"


class SQLite:
    """A `asyncflow.journal._database.sql.Database`.

    ``synchronous`` says whether a commit reaches the disk, or only the operating system.
    ``patience_s`` is how many seconds to wait for other processes that write. Leases expire by
    ``clock``. ``opened`` is set when the file has been opened, and shared by the connections of a
    journal: none of them makes a new file after that.
    """

    def __init__(
        self,
        path: str,
        synchronous: Synchronous,
        patience_s: float,
        clock: LeaseClock | None = None,
        opened: threading.Event | None = None,
    ) -> None:
        self.name = path
        # The working directory may change before the file is opened, and while it is open.
        self._file = None if path == IN_MEMORY else DatabaseFile.at(os.path.abspath(path))
        self._synchronous = synchronous
        self._patience_s = patience_s
        self._clock = clock or this_machine()
        self._connection: sqlite3.Connection | None = None
        self._is_reading = False
        self._opened = opened or threading.Event()
        self._wal = (0, 0)
        """The size of the WAL after this connection's last commit, in bytes, and its version: that
        of the database as other connections have changed it."""
        self.let_go: Callable[[], object] = _no_other_thread
        """Called in any thread when the file has changed; see `DatabaseFile.attach`."""
        self.waiting_since: Callable[[], float] = time.monotonic
        """Returns since when the present call has waited for its turn."""
        self._locked_since: float | None = None
        """When the wait for a lock began that was in vain, until there is none any more."""

    def translate(self, sql: str) -> str:
        return _translated(sql)

    def pattern(self, text: str) -> str:
        # Alone in brackets, every character but ^ stands for itself; ^ does so without brackets.
        sets = [letter if letter == "^" else f"[{either_case(letter)}]" for letter in text]
        return f"*{''.join(sets)}*"

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Cursor]:
        with self._translated_errors():
            connection = self._connected()
            cursor = connection.cursor()
            self._begin(cursor)
            try:
                yield cursor
                # Nothing counts before COMMIT, which would fill up with zeros what was cut.
                version = self._check_wal(connection)
                cursor.execute("COMMIT")
            except BaseException as error:
                self._roll_back()
                if isinstance(error, sqlite3.Error):
                    with suppress(sqlite3.Error):
                        self._check_wal(connection)  # the files may be why
                raise
            if self._file:
                self._wal = self._file.check_wal(self.name, 0), version
                if self._wal[0] >= _WAL_BYTES:
                    self._checkpoint(cursor, self._file.target)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Cursor]:
        with self._translated_errors():
            connection, is_inner = self._connected(), self._is_reading
            if self._file and not is_inner:
                self._file.check(self.name)
            self._is_reading = True
            try:
                yield connection.cursor()
            finally:
                self._is_reading = is_inner

    def retry(self, attempt: Callable[[], T]) -> T:
        return attempt()  # a commit in a file has failed, or has not

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            if self._file:
                self._file.detach(self.let_go)
                if self._file.is_cut:
                    # Closing the last connection copies the WAL into the file, unless it is
                    # interrupted. Without the part that is missing, that would damage the file.
                    connection.interrupt()
            with suppress(sqlite3.Error):
                connection.close()

    def _check_wal(self, connection: sqlite3.Connection) -> int:
        """Check the files in a transaction, and return its version of the database."""
        if not self._file:
            return 0
        version = _data_version(connection)
        size, last_version = self._wal
        # Only a restart of the WAL makes it shorter, by a commit of this connection or another one.
        self._file.check_wal(self.name, size if version == last_version else 0)
        return version

    def _checkpoint(self, cursor: sqlite3.Cursor, path: str) -> None:
        """Copy a large WAL into the file, so that the next transaction restarts it."""
        # A failure that matters recurs in the next transaction.
        with suppress(sqlite3.Error):
            cursor.execute("BEGIN IMMEDIATE")
            try:
                # The transaction blocks other writers, and can't do this itself.
                existing = f"{Path(path).as_uri()}?mode=rw"  # never a new one at that path
                with closing(sqlite3.connect(existing, uri=True, isolation_level=None)) as second:
                    second.execute("PRAGMA wal_checkpoint(PASSIVE)")
            finally:
                cursor.execute("ROLLBACK")

    def _begin(self, cursor: sqlite3.Cursor) -> None:
        """Begin a transaction that writes."""
        began, was_locked = time.monotonic(), self._locked_since is not None
        if was_locked:
            cursor.execute(f"PRAGMA busy_timeout = {self._left_s(began) * 1000:.0f}")
        try:
            cursor.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            self._note_lock(error, began)
            raise
        finally:
            if was_locked:
                cursor.execute(f"PRAGMA busy_timeout = {self._patience_s * 1000:.0f}")
        self._locked_since = None

    def _left_s(self, now: float) -> float:
        """Return how long to wait for a lock. Calls that were queued during a wait share it.

        They wait one after another in this thread: else the sixth of them would hear of a lock
        after six times as long.
        """
        if self._locked_since is None:
            return self._patience_s
        since = max(self._locked_since, self.waiting_since())
        return min(max(since + self._patience_s - now, 0.0), self._patience_s)

    def _note_lock(self, error: sqlite3.OperationalError, began: float) -> None:
        """Note since when the file has been locked, if that is what a wait ended with."""
        if _is_busy(error) and self._locked_since is None:
            self._locked_since = began

    def _roll_back(self) -> None:
        assert self._connection
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            self.close()  # rolls back as well

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            path, file = IN_MEMORY, self._file
            if file:
                file.before_connecting(self.name, must_exist=self._opened.is_set())
                path = file.target
            connection = sqlite3.connect(
                path, timeout=self._patience_s, isolation_level=None, cached_statements=256
            )
            # A damaged text must not make a whole list unreadable: its row's checksum tells.
            connection.text_factory = _text_of
            try:
                opened = file.database_id() if file else None
                self._prepare(connection)
                if file:
                    version = _data_version(connection)
                    self._wal = file.attach(self.name, opened, self.let_go), version
            except BaseException:
                connection.close()
                raise
            self._connection = connection
            self._opened.set()
        return self._connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        self._add_functions(connection)
        _check_owner(connection, self.name)
        # For this statement alone, SQLite does not always wait for others.
        self._patiently(lambda: connection.execute("PRAGMA journal_mode = WAL"))
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES // 2}")
        if not _version(connection):
            _make_tables(connection)
        if (version := _version(connection)) != VERSION:
            raise why_unknown(self.name, version)

    def _add_functions(self, connection: sqlite3.Connection) -> None:
        clock = self._clock

        def left_s(until_s: float, name: bytes | None, boot_until_s: float | None) -> float:
            # Converted, because a damaged lease must not make the list of runs unreadable.
            text = None if name is None else name.decode(errors="replace")
            return clock.left_s(until_s, text, boot_until_s)

        for name, count, function in (
            ("now", 0, clock.wall_s),
            ("boot_now", 0, clock.boot_s),
            ("clock", 0, lambda: clock.name),
            ("left", 3, left_s),
        ):
            # Deterministic within one statement, so that they are not called for each row.
            connection.create_function(f"asyncflow_{name}", count, function, deterministic=True)

    def _patiently(self, call: Callable[[], T]) -> T:
        began = time.monotonic()
        until = began + self._left_s(began)
        while True:
            try:
                return call()
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() > until:
                    self._note_lock(error, began)
                    raise
                time.sleep(0.005)

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except DatabaseChangedError:
            self.close()  # the next use opens what is there then
            raise
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            raise JournalError(self.name, self._explain(error, code)) from error
        except UnicodeDecodeError as error:  # of the message, which quotes a damaged schema
            problem = self._explain(error, sqlite3.SQLITE_CORRUPT)
            raise JournalError(self.name, problem) from error

    def _explain(self, error: Exception, code: int) -> str:
        problem, way_out = _PROBLEMS.get(code, _UNKNOWN)
        if code == sqlite3.SQLITE_CANTOPEN and self._file and os.path.isdir(self._file.path):
            problem, way_out = "it is a directory", "name a file in it, such as runs.db"
        problem = problem.format(patience_s=self._patience_s)
        return f"{problem} ({escape_controls(str(error))}); {way_out}"


@cache
def _translated(sql: str) -> str:
    for placeholder, own in _DIALECT.items():
        sql = sql.replace(placeholder, own)
    return sql


def _no_other_thread() -> None:
    """Do nothing: a connection that only one thread uses finds the change by itself."""


_PROBLEMS = {
    sqlite3.SQLITE_FULL: ("the disk is full", f"{_SAFE}: make room and start the run again"),
    sqlite3.SQLITE_IOERR: (
        "the file system failed",
        f"{_SAFE}: look at the disk, its quota and its limits, and start the run again",
    ),
    sqlite3.SQLITE_BUSY: (
        "another process has kept the database locked for {patience_s:g} s",
        f"{_SAFE}: find what locks it, such as a shell with an open transaction or a backup",
    ),
    sqlite3.SQLITE_NOTADB: (
        "it is not an SQLite database",
        "it was left as it is: use another file",
    ),
    sqlite3.SQLITE_CORRUPT: (
        "the database is damaged",
        "nothing more is written to it: save a copy, try sqlite3's .recover, and use another file",
    ),
    sqlite3.SQLITE_READONLY: (
        "it can only be read",
        f"{_SAFE}: give this user the right to write to the file and to its directory",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        "it can't be opened",
        "nothing was changed: its directory must exist, and this user must be allowed to write "
        "there",
    ),
}
_UNKNOWN = ("the database failed", _SAFE)


_text_of = partial(str, encoding="utf-8", errors="surrogateescape")


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _check_owner(connection: sqlite3.Connection, name: str) -> None:
    """Check that a database is empty or a journal, before anything in it is changed."""
    connection.execute("BEGIN")  # to read everything at one moment
    try:
        ((application,),) = connection.execute("PRAGMA application_id").fetchall()
        version = _version(connection)
        found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    finally:
        with suppress(sqlite3.Error):  # some errors roll back by themselves
            connection.execute("ROLLBACK")
    tables = {table for (table,) in found}
    is_ours = application == _APPLICATION
    is_empty = not application and not version and not tables
    if not (is_ours or is_empty):
        problem = "it is the database of another program"
        if tables:
            problem += f", with the tables {escape_controls(', '.join(sorted(tables)))}"
        raise JournalError(name, f"{problem}; it was left as it is: use another file")


def _data_version(connection: sqlite3.Connection) -> int:
    """Return a number that changes when another connection commits."""
    (version,) = connection.execute("PRAGMA data_version").fetchone()
    return int(version)


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _make_tables(connection: sqlite3.Connection) -> None:
    """Make the tables, unless another process just did."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not _version(connection):
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            for statement in SCHEMA:
                is_table = statement.startswith("CREATE TABLE")
                connection.execute(f"{statement} {_OF_TABLE}" if is_table else statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
