"""The journal in a PostgreSQL database."""

from __future__ import annotations

from asyncflow._core.arguments import check_text
from asyncflow.journal._base import SQLJournal
from asyncflow.journal._read.queries import check_lease
from asyncflow.journal._write.store import Store


class PostgresJournal(SQLJournal):
    """A journal in a PostgreSQL database, for processes on any number of machines.

    It needs psycopg 3, which comes with an extra: ``pip install 'asyncflow-tiers[postgres]'``. One
    thread writes to the database and another one reads from it, each on a connection of its own,
    made when it is first needed. Close it (``async with``, `aclose`, `close`).

    Its tables are in a schema of their own, ``asyncflow``. If that is missing, the journal creates
    it, and the user must be allowed to. The owner of a run does not depend on the machines' clocks.

    A lost connection is replaced. What was being written is looked up and, if it is missing,
    written again. So runs survive a restart of the server, or a switch to another one, within
    ``lease_s``. After that they fail with a `JournalError`.

    A pooler that gives each transaction another connection, such as PgBouncer, must support
    prepared statements (``max_prepared_statements``, since version 1.21).

    A commit counts when it is on the server's disk (``synchronous_commit``), even if the server's
    default is ``off``. A standby that is to take over must be synchronous: one that lags behind
    would have lost reported commits and claims.

    Args:
        dsn: The address, ``postgresql://user@host:5432/database`` or in libpq's keywords. The
            password is never shown. With several hosts, add ``target_session_attrs=read-write``.
        codec: ``"json"`` stores values that come back exactly equal from JSON, with or without the
            annotations of the actions. ``"cloudpickle"`` pickles other values, which needs an extra
            (``asyncflow-tiers[cloudpickle]``); anyone who can write to the tables can then run
            code.
        max_payload_bytes: The maximum size of one output or input, in bytes.
        max_stream_bytes: How much an attempt may stream, in bytes as JSON.
        lease_s: After how many seconds without renewal a process loses its runs, 0.1 to 86,400.
            The server may be unreachable for as long before the runs fail.
        owner: The name of this process for others; by default its id and host.
        close_timeout_s: How many seconds closing the journal waits for active runs to record their
            end; 0 for not at all.
        logs: From which level on the log records of steps are stored: a number or a name, such as
            ``"INFO"``. ``None`` (the default) stores none.
        prints: Whether the lines that steps print are stored.

    Raises:
        ImportError: psycopg or libpq is missing.
        TypeError: The address is not a string.
        ValueError: The address can't be read, there is no such ``codec`` or level, or a number is
            out of range.
        JournalError: When it is used: the database can't be reached, read or written. The message
            says why, and what is safe.
    """

    def __init__(
        self,
        dsn: str,
        *,
        codec: str = "json",
        max_payload_bytes: int = 1_048_576,
        max_stream_bytes: int = 16_777_216,
        lease_s: float = 30.0,
        owner: str | None = None,
        close_timeout_s: float = 5.0,
        logs: int | str | None = None,
        prints: bool = False,
    ) -> None:
        # psycopg may be missing
        from asyncflow.journal._database.postgres import Postgres, ServerState

        check_text("dsn", dsn)
        check_lease(lease_s)
        server = ServerState()
        super().__init__(
            Store(Postgres(dsn, lease_s, server)),
            Store(Postgres(dsn, lease_s, server)),
            codec=codec,
            max_payload_bytes=max_payload_bytes,
            max_stream_bytes=max_stream_bytes,
            lease_s=lease_s,
            owner=owner,
            close_timeout_s=close_timeout_s,
            logs=logs,
            prints=prints,
        )
