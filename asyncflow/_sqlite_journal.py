"""A journal in a file."""

from __future__ import annotations

import os

from asyncflow._asked import check_lease
from asyncflow._sqlite import IN_MEMORY, SQLite, Synchronous
from asyncflow._store import Store
from asyncflow._stored import SQLJournal

__all__ = ["SQLiteJournal"]


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
