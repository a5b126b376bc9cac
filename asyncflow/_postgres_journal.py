"""A journal in a PostgreSQL database."""

from __future__ import annotations

from asyncflow._asked import check_lease, check_text
from asyncflow._stored import SQLJournal

__all__ = ["PostgresJournal"]


class PostgresJournal(SQLJournal):
    """A journal in a PostgreSQL database, for processes on any number of machines.

    It needs psycopg 3, which comes with an extra: ``pip install 'asyncflow-tiers[postgres]'``. One
    thread writes to the database and another one reads from it, each on a connection of its own,
    which is made when it is first needed. Close it (``async with``, `aclose`, `close`).

    Its tables are in a schema of their own, ``asyncflow``, which is made when it is missing; then
    the user must be allowed to create one. Who owns a run does not depend on the clocks of the
    machines.

    A lost connection is made anew. What was being written is looked up and, if it was not kept,
    written again: so runs live through a restart of the server, or a switch to another one, that
    takes no longer than ``lease_s``. After that they fail with a `JournalError`.

    Behind a pooler that gives each transaction another connection, such as PgBouncer, that one must
    know prepared statements (``max_prepared_statements``, since version 1.21).

    A commit is told when it is on the server's disk (``synchronous_commit``), also where the
    server's default is ``off``. A standby that is to take over must be a synchronous one: one that
    is behind would have forgotten commits that were told, and claims of runs.

    Args:
        dsn: The address, ``postgresql://user@host:5432/database`` or in libpq's keywords. The
            password is never shown. Several hosts may be named; then say
            ``target_session_attrs=read-write`` as well.
        codec: ``"json"`` keeps what comes back exactly equal from JSON, given the annotations of
            the actions or without them. ``"cloudpickle"`` pickles what does not, which needs an
            extra (``asyncflow-tiers[cloudpickle]``); whoever can write to the tables can then run
            code.
        max_payload_bytes: How many bytes one output or one input may take.
        lease_s: After how many seconds without a sign of life a process loses its runs, 0.1 to
            86,400. So long a server may be gone, too, before the runs fail.
        owner: What others are told who runs a run; by default process id and host.

    Raises:
        ImportError: psycopg, or the library that it needs, is missing.
        TypeError: The address is no text.
        ValueError: The address can't be read, there is no such ``codec``, or a number is out of
            range.
        JournalError: When it is used: the database can't be reached, read or written. The message
            says why, and what is safe.
    """

    def __init__(
        self,
        dsn: str,
        *,
        codec: str = "json",
        max_payload_bytes: int = 1_048_576,
        lease_s: float = 30.0,
        owner: str | None = None,
    ) -> None:
        from asyncflow._postgres import Postgres  # psycopg may be missing
        from asyncflow._postgres_store import PostgresStore

        check_text("dsn", dsn)
        check_lease(lease_s)
        super().__init__(
            PostgresStore(Postgres(dsn, lease_s)),
            PostgresStore(Postgres(dsn, lease_s)),
            codec=codec,
            max_payload_bytes=max_payload_bytes,
            lease_s=lease_s,
            owner=owner,
        )
