"""A connection to PostgreSQL as a journal's database.

1. A process that writes to a run locks the row of its lease, so another process claims the run
   either before that transaction or after it.
2. Times are by the server's clock. The machines' clocks do not matter.
3. A process that stands still does not block others for long: the server ends its transaction. Nor
   does a server that stands still block a process.
4. A lost connection is an `UnsettledError`, which `PostgresStore` handles.
"""

from __future__ import annotations

import re
import selectors
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from typing import Any, TypeVar, cast

from asyncflow._core.errors import JournalError, MissingExtraError
from asyncflow._core.text import escape_controls
from asyncflow.journal._event_codec import EventRow, event_checksum, run_checksum
from asyncflow.journal._sql import OF_FAILED_ITEMS, WAS_DRAINED, Cursor, UnsettledError, either_case

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

_CHECKSUMMED = 500
"""For how many rows at a time a migration computes checksums."""


def _add_checksums(connection: _Connection) -> None:
    """Give the rows of earlier versions the checksums that they would have now."""
    for table, columns, key, checksum in (
        ("events", EventRow._fields, ("run_id", "position"), event_checksum),
        ("runs", ("run_id", "pipeline", "started_at"), ("run_id",), run_checksum),
    ):
        connection.execute(f"ALTER TABLE asyncflow.{table} ADD COLUMN checksum BIGINT".encode())
        last: Sequence[Any] = ()
        while True:
            names, marks = ", ".join(key), ", ".join(["%s"] * len(last))
            rows = connection.execute(
                f"SELECT {', '.join(columns)} FROM asyncflow.{table} "
                f"{f'WHERE ({names}) > ({marks})' if last else ''} "
                f"ORDER BY {names} LIMIT {_CHECKSUMMED}".encode(),
                last,
            ).fetchall()
            if not rows:
                break
            connection.cursor().executemany(
                f"UPDATE asyncflow.{table} SET checksum = %s WHERE ({names}) = "
                f"({', '.join(['%s'] * len(key))})".encode(),
                [(checksum(*row), *row[: len(key)]) for row in rows],
            )
            last = rows[-1][: len(key)]
        connection.execute(
            f"ALTER TABLE asyncflow.{table} ALTER COLUMN checksum SET NOT NULL".encode()
        )


_MIGRATIONS: list[list[str | Callable[[_Connection], None]]] = [
    [
        # Identifiers are compared by their bytes: in Python's order, whatever the server's locales.
        'CREATE TABLE asyncflow.runs (run_id TEXT COLLATE "C" PRIMARY KEY, '
        "pipeline TEXT NOT NULL, status TEXT NOT NULL, started_at DOUBLE PRECISION NOT NULL, "
        "updated_at DOUBLE PRECISION NOT NULL)",
        "CREATE INDEX runs_by_start ON asyncflow.runs (started_at, run_id)",
        'CREATE TABLE asyncflow.leases (run_id TEXT COLLATE "C" PRIMARY KEY, '
        "token BIGINT NOT NULL, owner TEXT, process TEXT, expires_at DOUBLE PRECISION NOT NULL)",
        'CREATE TABLE asyncflow.events (run_id TEXT COLLATE "C" NOT NULL, '
        "position BIGINT NOT NULL, kind TEXT NOT NULL, step TEXT, item BIGINT, attempt BIGINT, "
        "at_ms DOUBLE PRECISION NOT NULL, codec TEXT, payload TEXT, data BYTEA, "
        "PRIMARY KEY (run_id, position))",
    ],
    [
        "ALTER TABLE asyncflow.leases ADD COLUMN cancel_token BIGINT",
        "CREATE INDEX leases_cancelled ON asyncflow.leases (run_id) WHERE cancel_token IS NOT NULL",
        "CREATE INDEX runs_by_status ON asyncflow.runs (status, started_at, run_id)",
        "CREATE INDEX runs_by_pipeline ON asyncflow.runs (pipeline, started_at, run_id)",
    ],
    [
        _add_checksums,
        "ALTER TABLE asyncflow.runs ADD COLUMN paused_s DOUBLE PRECISION NOT NULL DEFAULT 0",
        "ALTER TABLE asyncflow.runs ADD COLUMN last_event BIGINT",
        "UPDATE asyncflow.runs SET last_event = CASE status WHEN 'running' THEN 0 ELSE (SELECT "
        "COALESCE(MAX(position), 0) FROM asyncflow.events WHERE events.run_id = runs.run_id) END",
        "ALTER TABLE asyncflow.runs ALTER COLUMN last_event SET NOT NULL",
        # For new rows: one that is there and does not fit is noticed when it is read.
        "ALTER TABLE asyncflow.events ADD CONSTRAINT events_fit CHECK (position > 0 AND item >= 0 "
        "AND attempt >= 0 AND at_ms >= 0 AND at_ms < 'Infinity') NOT VALID",
        "ALTER TABLE asyncflow.runs ADD CONSTRAINT runs_fit CHECK (status IN ('running', 'passed', "
        "'failed', 'interrupted') AND started_at >= 0 AND started_at < 'Infinity') NOT VALID",
    ],
    [
        'CREATE TABLE asyncflow.notes (run_id TEXT COLLATE "C" NOT NULL, '
        "position BIGINT NOT NULL, kind TEXT NOT NULL, step TEXT NOT NULL, item BIGINT, "
        "attempt BIGINT NOT NULL, at_ms DOUBLE PRECISION NOT NULL, level BIGINT, "
        "payload TEXT NOT NULL, data BYTEA, checksum BIGINT NOT NULL, "
        "PRIMARY KEY (run_id, position))",
        'ALTER TABLE asyncflow.runs ADD COLUMN parent TEXT COLLATE "C"',
        "ALTER TABLE asyncflow.runs ADD COLUMN parent_step TEXT",
        "ALTER TABLE asyncflow.runs ADD COLUMN forked_from TEXT",
        "CREATE INDEX runs_by_parent ON asyncflow.runs (parent, started_at, run_id) "
        "WHERE parent IS NOT NULL",
        # With the status, which counts read.
        "DROP INDEX asyncflow.runs_by_pipeline",
        "CREATE INDEX runs_by_pipeline ON asyncflow.runs (pipeline, started_at, run_id, status)",
        "CREATE INDEX events_of_steps ON asyncflow.events (run_id, kind, position) "
        "WHERE item IS NULL",
    ],
    [
        "ALTER TABLE asyncflow.runs ADD COLUMN cause TEXT",
        "UPDATE asyncflow.runs SET cause = 'drained' WHERE "
        f"{WAS_DRAINED.format(schema='asyncflow.')}",
        "CREATE INDEX runs_by_cause ON asyncflow.runs (cause, started_at, run_id) "
        "WHERE cause IS NOT NULL",
    ],
    [
        "ALTER TABLE asyncflow.runs DROP CONSTRAINT runs_fit",
        "ALTER TABLE asyncflow.runs ADD CONSTRAINT runs_fit CHECK (status IN ('running', "
        "'waiting', 'passed', 'failed', 'interrupted') AND started_at >= 0 "
        "AND started_at < 'Infinity') NOT VALID",
        "ALTER TABLE asyncflow.runs ADD COLUMN waits TEXT",
        "ALTER TABLE asyncflow.runs ADD COLUMN due_at DOUBLE PRECISION",
        "ALTER TABLE asyncflow.runs ADD COLUMN asks BIGINT",
        'ALTER TABLE asyncflow.runs ADD COLUMN label TEXT COLLATE "C"',
        "CREATE INDEX runs_by_label ON asyncflow.runs (label, started_at, run_id) "
        "WHERE label IS NOT NULL",
        "CREATE INDEX runs_due ON asyncflow.runs (due_at) WHERE due_at IS NOT NULL",
        "CREATE INDEX runs_asking ON asyncflow.runs (pipeline, asks) WHERE asks IS NOT NULL",
        "ALTER TABLE asyncflow.leases ADD COLUMN cancel_reason TEXT",
        "ALTER TABLE asyncflow.leases ADD COLUMN signal_token BIGINT",
        "CREATE INDEX leases_signalled ON asyncflow.leases (run_id) WHERE signal_token IS NOT NULL",
        'CREATE TABLE asyncflow.signals (run_id TEXT COLLATE "C" NOT NULL, name TEXT NOT NULL, '
        "kind TEXT NOT NULL, sent_at DOUBLE PRECISION NOT NULL, sent_by TEXT NOT NULL, "
        "codec TEXT, data BYTEA, checksum BIGINT NOT NULL, PRIMARY KEY (run_id, name))",
        "CREATE INDEX events_of_failed_items ON asyncflow.events (run_id, step, item, kind) "
        f"WHERE {OF_FAILED_ITEMS.format(table='')}",
        'CREATE TABLE asyncflow.checkpoints (run_id TEXT COLLATE "C" NOT NULL, '
        "step TEXT NOT NULL, item BIGINT NOT NULL, codec TEXT NOT NULL, data BYTEA NOT NULL, "
        "checksum BIGINT NOT NULL, PRIMARY KEY (run_id, step, item))",
        'CREATE TABLE asyncflow.cached_results (key TEXT COLLATE "C" PRIMARY KEY, '
        'run_id TEXT COLLATE "C" NOT NULL, position BIGINT NOT NULL, attempts BIGINT NOT NULL, '
        "duration_ms DOUBLE PRECISION NOT NULL, stored_at DOUBLE PRECISION NOT NULL, "
        "checksum BIGINT NOT NULL)",
        "CREATE INDEX cached_results_by_run ON asyncflow.cached_results (run_id)",
    ],
]
"""Number n, counted from 0, brings the schema from version n to n + 1. Never change one that was
released: add another."""

_MIGRATION_LOCK = 0x6173796E63666C6F
"""The advisory lock for migrations: the first letters of asyncflow."""

_TABLES = re.compile(r"\b(runs|leases|events|notes|signals|checkpoints|cached_results)\b")
_MARK = re.compile(r"\?")
_NOW = "extract(epoch FROM clock_timestamp())::float8"

_DIALECT = {
    "{valid}": "(l.expires_at > {now})",
    "{expiry}": "expires_at = {now} + ?",
    "{lock}": " FOR UPDATE",
    "{like}": "~",
    "{of_steps}": "",
    "{of_failed_items}": "",
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
    """A `asyncflow.journal._sql.Database`.

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

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            connection.close()

    def _connected(self) -> _Connection:
        if self._connection is None:
            self.answered_at = time.monotonic()
            self._connection = self._connect()
            self.server.is_up = self.server.was_up = True
        if not self._connection.is_migrated:
            self._migrate(self._connection)
            self._connection.is_migrated = True
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

    def _migrate(self, connection: _Connection) -> None:
        version = _version(connection)
        if version < len(_MIGRATIONS):
            with connection.atomically():
                connection.execute("SELECT pg_advisory_xact_lock(%s)", [_MIGRATION_LOCK])
                version = _migrated(connection)
        if version > len(_MIGRATIONS):
            raise JournalError(
                self.name,
                f"a newer asyncflow has made its tables (schema {version}, and this one knows up "
                f"to {len(_MIGRATIONS)}); they were left as they are: upgrade asyncflow, or use "
                "another database",
            )

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
    own = _TABLES.sub(r"asyncflow.\1", sql).replace("{now}", _NOW)
    return _MARK.sub(lambda _: f"${next(numbers)}", own)


class _Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that does not wait forever for a server that does not answer."""

    lease_s = 30.0
    answered_at = 0.0
    is_migrated = False

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


def _version(connection: _Connection) -> int:
    # Not by to_regclass(), which may have cached before a lock that there was no such table.
    sql = "SELECT FROM pg_tables WHERE schemaname = 'asyncflow' AND tablename = 'schema_version'"
    if not _is_true(connection, f"SELECT EXISTS ({sql})"):
        return 0
    rows = connection.execute("SELECT version FROM asyncflow.schema_version").fetchall()
    return max((int(version) for (version,) in rows), default=0)


def _migrated(connection: _Connection) -> int:
    """Migrate the schema unless another process has just done so, and return its version."""
    version = _version(connection)
    if version == 0:
        # An existing schema was made for this user, who may not be allowed to create one.
        if not _is_true(connection, "SELECT 'asyncflow' IN (SELECT nspname FROM pg_namespace)"):
            connection.execute("CREATE SCHEMA asyncflow")
        connection.execute("CREATE TABLE asyncflow.schema_version (version BIGINT NOT NULL)")
        connection.execute("INSERT INTO asyncflow.schema_version VALUES (0)")
    for statements in _MIGRATIONS[version:]:
        for statement in statements:
            if isinstance(statement, str):
                connection.execute(statement.encode())
            else:
                statement(connection)
        connection.execute("UPDATE asyncflow.schema_version SET version = version + 1")
    return max(version, len(_MIGRATIONS))


def _is_true(connection: _Connection, sql: str) -> bool:
    return connection.execute(sql.encode()).fetchone() == (True,)
