"""A journal keeps every event of a run, so that a run whose process has died can go on.

It comes with an extra: ``pip install 'asyncflow-tiers[journal]'``::

    from asyncflow.journal import SQLiteJournal

    async with SQLiteJournal("runs.db") as journal:
        report = await run_pipeline(steps, run_id="nightly-2024-06-01", journal=journal)

A journal may serve any number of runs at once, in any number of event loops and threads, and any
number of processes may share one database: a run belongs to one of them at a time. A process that
has stopped renewing its lease on a run loses it, and then can't write to it any more.

Anybody who can write to the database decides what a resumed run goes on with. With
``codec="cloudpickle"`` they can run any code there; without it, a pickle is never read.
"""

from __future__ import annotations

import os

from asyncflow._archive import RunRecord, RunStatus, StoredEvent
from asyncflow._asked import check_lease, check_text
from asyncflow._sqlite import IN_MEMORY, SQLite, Synchronous
from asyncflow._store import Store
from asyncflow._stored import SQLJournal

__all__ = ["PostgresJournal", "RunRecord", "RunStatus", "SQLiteJournal", "StoredEvent"]


class SQLiteJournal(SQLJournal):
    """A journal in a file, for one machine.

    One thread writes to the file, another one reads from it; they start when they are first needed,
    and neither block an event loop nor keep the interpreter alive. Close it (``async with``,
    `aclose`, `close`).

    The file is in WAL mode, so while it is open there are two more beside it (``-wal``, ``-shm``;
    they belong to it), and it must not be on a network file system. It must be empty, or have been
    written by a journal: the database of another program is left as it is.

    Any number of processes may share the file through journals, with every version of SQLite.
    Versions before 3.51.3 (see ``sqlite3.sqlite_version``) can damage a file in WAL mode if one
    process commits at a certain moment while another one copies the log into the file
    (sqlite.org/wal.html#walresetbug). Journals copy it only while nobody can write. That does not
    cover other programs that write to the file with such a version: theirs may copy it at any time.
    Reading it is harmless.

    Args:
        path: The file. It is created if there is none; its directory must exist. With
            ``":memory:"``, for tests, the runs are gone when the journal is closed, and reading
            makes those that write wait.
        synchronous: ``"FULL"``: what is committed survives that the machine loses power.
            ``"NORMAL"``: it survives that the process dies, but the last commits may be lost if the
            machine loses power; steps whose results are lost so run again. It is faster, and the
            database is as safe.
        codec: ``"json"`` keeps what comes back exactly equal from JSON, given the annotations of
            the actions or without them. ``"cloudpickle"`` pickles what does not, which needs an
            extra (``asyncflow-tiers[cloudpickle]``); whoever can write to the file can then run
            code.
        max_payload_bytes: How many bytes one output or one input may take.
        lease_s: After how many seconds without a sign of life a process loses its runs, 0.1 to
            86,400. A third of it is how long a write waits while other processes write.
        owner: What others are told who runs a run; by default process id and host.

    Raises:
        TypeError: The path is neither text nor a path.
        ValueError: It is the address of something else, there is no such ``synchronous`` or
            ``codec``, or a number is out of range.
        JournalError: When it is used: the file can't be read or written. The message says why, and
            what is safe.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Synchronous = "FULL",
        codec: str = "json",
        max_payload_bytes: int = 1_048_576,
        lease_s: float = 30.0,
        owner: str | None = None,
    ) -> None:
        if synchronous not in ("FULL", "NORMAL"):
            raise ValueError(f"synchronous must be 'FULL' or 'NORMAL', not {synchronous!r}")
        check_lease(lease_s)
        name = _checked_path(path)
        first, second = (Store(SQLite(name, synchronous, lease_s / 3)) for _ in range(2))
        super().__init__(
            first,
            None if name == IN_MEMORY else second,  # which would be another database
            codec=codec,
            max_payload_bytes=max_payload_bytes,
            lease_s=lease_s,
            owner=owner,
        )


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
        from asyncflow._postgres_store import Postgres, PostgresStore  # psycopg may be missing

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


def _checked_path(path: object) -> str:
    name = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(name, str):
        raise TypeError(f"path must be a str or a path such as a pathlib.Path, not {path!r}")
    scheme, has_scheme, _ = name.partition("://")
    if has_scheme and scheme.replace("+", "").isalnum():
        # What follows may hold a password.
        is_postgres = scheme.startswith("postgres")
        way_out = "give it to PostgresJournal" if is_postgres else "give a path, such as 'runs.db'"
        raise ValueError(f"path must be that of a file, not a {scheme}:// address; {way_out}")
    return name


for _public in (PostgresJournal, RunRecord, SQLiteJournal, StoredEvent):
    _public.__module__ = __name__  # where users know them from
