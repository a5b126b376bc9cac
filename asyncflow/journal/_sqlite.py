"""The journal in an SQLite file."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from asyncflow._core.errors import JournalError
from asyncflow._core.text import safe_text
from asyncflow.journal._base import SQLJournal
from asyncflow.journal._database.addresses import is_other_address, is_postgres_address
from asyncflow.journal._database.sqlite import IN_MEMORY, SQLite, Synchronous
from asyncflow.journal._read.queries import check_lease
from asyncflow.journal._write.store import Store
from asyncflow.journal._write.worker import WorkerThread


class SQLiteJournal(SQLJournal):
    """A journal in a file, for one machine.

    One thread writes to the file and another one reads from it. They start when they are first
    needed, and neither block an event loop nor keep the interpreter alive. Close the journal
    (``async with``, `aclose`, `close`).

    The file is in WAL mode: while it is open, two more files belong to it (``-wal``, ``-shm``), and
    it must not be on a network file system. It must be empty, or written by a journal; the database
    of another program is left as it is.

    Any number of processes may share the file through journals, with every version of SQLite.
    Versions before 3.51.3 (see ``sqlite3.sqlite_version``) can damage a file in WAL mode if one
    process commits at a certain moment of another one's checkpoint
    (sqlite.org/wal.html#walresetbug). Journals checkpoint only while no process can write. That
    does not cover other programs that write to the file with such a version. Reading is harmless.

    Args:
        path: The file. It is created if it is missing; its directory must exist. With
            ``":memory:"``, for tests, the runs are gone when the journal is closed, and writes wait
            for reads.
        synchronous: With ``"FULL"``, a commit survives a power failure. With ``"NORMAL"`` it
            survives the death of the process, but a power failure may undo the last commits, whose
            steps then run again. That is faster, and the database is as safe.
        codec: ``"json"`` stores values that come back exactly equal from JSON, with or without the
            annotations of the actions. ``"cloudpickle"`` pickles other values, which needs an extra
            (``asyncflow-tiers[cloudpickle]``); anyone who can write to the file can then run code.
        max_payload_bytes: The maximum size of one output or input, in bytes.
        max_stream_bytes: How much an attempt may stream, in bytes as JSON.
        lease_s: After how many seconds without renewal a process loses its runs, 0.1 to 86,400. A
            write waits for a third of it while other processes write.
        owner: The name of this process for others; by default its id and host.
        close_timeout_s: How many seconds closing the journal waits for active runs to record their
            end; 0 for not at all.
        logs: From which level on the log records of steps are stored: a number or a name, such as
            ``"INFO"``. ``None`` (the default) stores none.
        prints: Whether the lines that steps print are stored.

    Raises:
        TypeError: The path is neither a text nor a path.
        ValueError: It is the address of something else, there is no such ``synchronous``,
            ``codec`` or level, or a number is out of range.
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
        max_stream_bytes: int = 16_777_216,
        lease_s: float = 30.0,
        owner: str | None = None,
        close_timeout_s: float = 5.0,
        logs: int | str | None = None,
        prints: bool = False,
    ) -> None:
        if synchronous not in ("FULL", "NORMAL"):
            raise ValueError(
                f"synchronous must be 'FULL' or 'NORMAL', not {safe_text(repr, synchronous)}"
            )
        check_lease(lease_s)
        name = _checked_path(path)
        self.path = name
        """The path of its file, as it was given."""
        opened = threading.Event()
        first, second = (SQLite(name, synchronous, lease_s / 3, opened=opened) for _ in range(2))
        super().__init__(
            Store(first),
            None if name == IN_MEMORY else Store(second),  # it would be another database
            codec=codec,
            max_payload_bytes=max_payload_bytes,
            max_stream_bytes=max_stream_bytes,
            lease_s=lease_s,
            owner=owner,
            close_timeout_s=close_timeout_s,
            logs=logs,
            prints=prints,
        )
        first.waiting_since = partial(getattr, self._write_thread, "waiting_since")
        first.let_go = partial(_submit, self._write_thread, self._worker.check)
        second.let_go = partial(_submit, self._read_thread, second.close)


def _submit(thread: WorkerThread, call: Callable[[], object]) -> None:
    with suppress(JournalError):  # the journal is closed
        thread.submit(call)


def _checked_path(path: object) -> str:
    name = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(name, str):
        shown = safe_text(repr, path)
        raise TypeError(f"path must be a str or a path such as a pathlib.Path, not {shown}")
    # An address may hold a password, and would be the name of the file.
    if is_postgres_address(name):
        raise ValueError(
            "path must be that of a file, not the address of a database; give it to PostgresJournal"
        )
    if is_other_address(name):
        raise ValueError("path must be that of a file, not an address; give one such as 'runs.db'")
    return name
