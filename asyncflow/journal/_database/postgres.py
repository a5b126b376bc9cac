"""A connection to PostgreSQL as a journal's database.

1. A process that writes to a run locks the row of its lease, so another process claims the run
   either before that transaction or after it.
2. Times are by the server's clock. The machines' clocks do not matter.
3. A process that stands still does not block others for long: the server ends its transaction. Nor
   does a server that stands still block a process.
4. A lost connection is replaced. It is unknown then whether its transaction was committed, so
   `Postgres.retry` repeats it: what a journal does in a transaction leads to the same if it was
   done before.
"""

from __future__ import annotations

import re
import selectors
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from typing import Any, TypeVar, cast

from asyncflow._core.errors import JournalError, MissingExtraError
from asyncflow._core.text import escape_controls
from asyncflow.journal._database.sql import Cursor, UnsettledError, either_case
from asyncflow.journal._database.tables import OF_TABLES, SCHEMA, VERSION, adapted, why_unknown

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.pq import TransactionStatus
except ImportError as _error:  # also if it finds no libpq
    raise MissingExtraError(
        "a journal in PostgreSQL needs psycopg 3 and libpq, which come with an extra: "
        "pip install 'asyncflow-tiers[postgres]'"
    ) from _error

T = TypeVar("T")

_SCHEMA_LOCK = 0x6173796E63666C6F
"""The advisory lock for making the tables: the first letters of asyncflow."""

_TYPES = {
    "TEXT": 'TEXT COLLATE "C"',
    "INTEGER": "BIGINT",
    "REAL": "DOUBLE PRECISION",
    "BLOB": "BYTEA",
}
_MARK = re.compile(r"\?")
_NOW = "extract(epoch FROM clock_timestamp())::float8"

_DIALECT = {
    "{valid}": "(l.expires_at > {now})",
    "{left}": "(l.expires_at - {now})",
    "{expiry}": "expires_at = {now} + ?",
    "{lock}": " FOR UPDATE",
    "{like}": "~",
    "{of_runs}": "",
    "{bytes}": "octet_length",
}

_BEGIN = """
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL idle_in_transaction_session_timeout = '{idle_s:.3f} s';
SELECT set_config('synchronous_commit', 'on', true)
WHERE current_setting('synchronous_commit') = 'off';
"""

_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)  # Windows has no other


class ServerState:
    """What the connections of a journal know of its server.

    ``is_up`` says whether it answered when it was last needed, and ``was_up`` whether it ever did.
    """

    is_up = was_up = False


class Postgres:
    """A `asyncflow.journal._database.sql.Database`.

    ``dsn`` is a URI, or libpq's keywords and values. A server that does not answer for ``lease_s``
    seconds, which is how long a lease lasts, counts as lost. ``server`` is what other connections
    to it know.
    """

    def __init__(self, dsn: str, lease_s: float, server: ServerState | None = None) -> None:
        self._parameters = _parameters(dsn)
        self.name = _name(self._parameters)
        self.lease_s = lease_s
        self._connection: _Connection | None = None
        self.answered_at = 0.0
        """When the server last answered, or was last connected to, by `time.monotonic`."""
        self.server = server or ServerState()

    def translate(self, sql: str) -> str:
        return _translated(sql)

    def pattern(self, text: str) -> str:
        # Sets of letters, since ~* and ILIKE know the cases of the database's locale only.
        return "".join(f"[{either_case(c)}]" if c.isalpha() else re.escape(c) for c in text)

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        with self._translated_errors():
            connection = self._connected()
            with connection.atomically():
                yield _cursor_of(connection)

    @contextmanager
    def reading(self) -> Iterator[Cursor]:
        with self._translated_errors():
            yield _cursor_of(self._connected())

    def retry(self, attempt: Callable[[], T]) -> T:
        """Return what a call returns, repeated for as long as a lease lasts.

        The time counts from when the server last answered.
        """
        pause_s, give_up_at = 0.05, 0.0
        while True:
            try:
                return attempt()
            except UnsettledError as error:
                give_up_at = give_up_at or self.answered_at + self.lease_s
                if not self.server.is_up or time.monotonic() + pause_s > give_up_at:
                    self.server.is_up = False  # the next call will not wait
                    problem = _LOST if self.server.was_up else _UNREACHABLE
                    raise JournalError(self.name, problem.format(said=error.problem)) from error
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            connection.close()

    def _connected(self) -> _Connection:
        if self._connection is None:
            self.answered_at = time.monotonic()
            self._connection = self._connect()
            self.server.is_up = self.server.was_up = True
        if not self._connection.has_tables:
            self._prepare(self._connection)
            self._connection.has_tables = True
        return self._connection

    def _connect(self) -> _Connection:
        defaults = {
            "connect_timeout": max(2, min(10, int(self.lease_s))),
            "fallback_application_name": "asyncflow",
        }
        try:
            connection = _Connection.connect(autocommit=True, **{**defaults, **self._parameters})
        except psycopg.Error as error:
            raise UnsettledError(self.name, _message(error)) from error
        connection.lease_s = self.lease_s
        return connection

    def _prepare(self, connection: _Connection) -> None:
        """Make the tables if there are none, and check their version."""
        version = _version(connection)
        if version is None:
            with connection.atomically():
                connection.execute("SELECT pg_advisory_xact_lock(%s)", [_SCHEMA_LOCK])
                version = _version(connection)
                if version is None:  # another process may just have made them
                    _make_tables(connection)
                    version = VERSION
        if version != VERSION:
            raise why_unknown(self.name, version)

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            connection = self._connection
            assert connection is not None
            self.answered_at = connection.answered_at
            is_lost = connection.is_lost()
            if is_lost:
                self.close()
            if is_lost or error.sqlstate in _TRANSIENT:
                raise UnsettledError(self.name, _message(error)) from error
            problem, way_out = _PROBLEMS.get(error.sqlstate or "", ("the database failed", _SAFE))
            raise JournalError(self.name, f"{problem} ({_message(error)}); {way_out}") from error


@cache
def _translated(sql: str) -> str:
    for placeholder, own in _DIALECT.items():
        sql = sql.replace(placeholder, own)
    numbers = count(1)
    own = OF_TABLES.sub(r"asyncflow.\1", sql).replace("{now}", _NOW)
    return _MARK.sub(lambda _: f"${next(numbers)}", own)


class _Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that does not wait forever for a server that does not answer."""

    lease_s = 30.0
    answered_at = 0.0
    has_tables = False

    def wait(self, gen: Generator[Any, Any, T], *_: Any, **__: Any) -> T:
        """Do psycopg's network operations except connecting, with a time limit."""
        with _Selector() as selector:
            try:
                wanted = next(gen)
                while True:
                    self.answered_at = time.monotonic()
                    selector.register(self.pgconn.socket, int(wanted))
                    ready = selector.select(self.lease_s)
                    if not ready:
                        self.pgconn.finish()
                        raise psycopg.OperationalError(
                            f"the server has not answered for {self.lease_s:g} s"
                        )
                    selector.unregister(self.pgconn.socket)
                    wanted = gen.send(ready[0][1])
            except StopIteration as end:
                returned: T = end.value
                return returned

    def is_lost(self) -> bool:
        """Whether it can't be used any more."""
        return self.closed or self.info.transaction_status != TransactionStatus.IDLE

    @contextmanager
    def atomically(self) -> Iterator[None]:
        """Commit everything that the ``with`` block does, or nothing."""
        # One message of several statements, which can't be prepared. The settings end with the
        # transaction, because behind a pooler, others use the connection then.
        self.execute(_BEGIN.format(idle_s=self.lease_s / 3).encode(), prepare=False)
        try:
            yield
            self.execute(b"COMMIT")
        except BaseException:
            with suppress(psycopg.Error):  # the connection is lost
                self.execute(b"ROLLBACK")
            raise


_UNREACHABLE = (
    "it can't be reached ({said}); nothing was changed: see that the address, the user and the "
    "password are right, and that the server runs"
)
_LOST = (
    "the connection was lost and not replaced in time ({said}); what was committed before "
    "is safe, and what was just being written was stored as a whole or not at all: start the run "
    "again under its id when the server is back, and it resumes from there"
)
_SAFE = "what was committed before is safe, and nothing of this transaction was stored"

_TRANSIENT = {"40001", "40P01", "55P03", "57014"}
"""Errors of a transaction that may succeed later on the same connection: a conflict, a deadlock, a
lock that was not free, the server's time limit for a statement."""

_PROBLEMS = {
    "53100": ("the disk of the server is full", f"{_SAFE}: make room and start the run again"),
    "25006": (
        "it can only be read",
        f"{_SAFE}: name the primary server, or all of them with target_session_attrs=read-write",
    ),
    "42501": (
        "this user may not do that",
        f"{_SAFE}: to make the tables it must be allowed to create a schema in the database, and "
        "it must own them later, or be granted their use",
    ),
}


def _message(error: psycopg.Error) -> str:
    """Return the message of the server, or of the driver, in one line."""
    return escape_controls(" ".join(str(error.diag.message_primary or error).split()))


def _parameters(dsn: str) -> dict[str, Any]:
    try:
        return conninfo_to_dict(dsn)
    except psycopg.Error:
        # The message may quote parts of the password.
        raise ValueError(
            "the address of the database can't be read; it is written as "
            "postgresql://user@host:5432/database, with %40 for a @ in a name or a password"
        ) from None


def _name(parameters: Mapping[str, Any]) -> str:
    """Return an address without secrets."""
    user, host, port, database = (
        parameters.get(name, "") for name in ("user", "host", "port", "dbname")
    )
    return (
        f"postgresql://{user and f'{user}@'}{host or parameters.get('hostaddr', '')}"
        f"{port and f':{port}'}/{database}"
    )


def _cursor_of(connection: _Connection) -> Cursor:
    # Any other one parses a long statement each time. For type checkers, it takes literals only.
    return cast("Cursor", psycopg.RawCursor(connection))


def _version(connection: _Connection) -> int | None:
    """Return the version of the schema; ``None`` if there is none yet."""
    # Not by to_regclass(), which may have cached before a lock that there was no such table.
    sql = "SELECT FROM pg_tables WHERE schemaname = 'asyncflow' AND tablename = 'schema_version'"
    if not _is_true(connection, f"SELECT EXISTS ({sql})"):
        return None
    rows = connection.execute("SELECT version FROM asyncflow.schema_version").fetchall()
    return max((int(version) for (version,) in rows), default=0)


def _make_tables(connection: _Connection) -> None:
    # An existing schema was made for this user, who may not be allowed to create one.
    if not _is_true(connection, "SELECT 'asyncflow' IN (SELECT nspname FROM pg_namespace)"):
        connection.execute("CREATE SCHEMA asyncflow")
    connection.execute("CREATE TABLE asyncflow.schema_version (version BIGINT NOT NULL)")
    connection.execute("INSERT INTO asyncflow.schema_version VALUES (%s)", [VERSION])
    for statement in SCHEMA:
        connection.execute(adapted(statement, _TYPES, "asyncflow").encode())


def _is_true(connection: _Connection, sql: str) -> bool:
    return connection.execute(sql.encode()).fetchone() == (True,)
