"""The journal in a PostgreSQL database, and how it survives a lost connection."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar, cast

from asyncflow._core.errors import JournalError, RunAlreadyActiveError
from asyncflow.journal._base import SQLJournal
from asyncflow.journal._event_codec import EventRow
from asyncflow.journal._queries import check_lease, check_text
from asyncflow.journal._sql import UnsettledError
from asyncflow.journal._store import Claim, CommitBatch, Refusals, Store

if TYPE_CHECKING:
    from asyncflow.journal._postgres_connection import Postgres


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
        lease_s: float = 30.0,
        owner: str | None = None,
        close_timeout_s: float = 5.0,
        logs: int | str | None = None,
        prints: bool = False,
    ) -> None:
        # psycopg may be missing
        from asyncflow.journal._postgres_connection import Postgres, ServerState

        check_text("dsn", dsn)
        check_lease(lease_s)
        server = ServerState()
        super().__init__(
            PostgresStore(Postgres(dsn, lease_s, server)),
            PostgresStore(Postgres(dsn, lease_s, server)),
            codec=codec,
            max_payload_bytes=max_payload_bytes,
            lease_s=lease_s,
            owner=owner,
            close_timeout_s=close_timeout_s,
            logs=logs,
            prints=prints,
        )


F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_UNREACHABLE = (
    "it can't be reached ({said}); nothing was changed: see that the address, the user and the "
    "password are right, and that the server runs"
)
_LOST = (
    "the connection was lost and not replaced in time ({said}); what was committed before "
    "is safe, and what was just being written was stored as a whole or not at all: start the run "
    "again under its id when the server is back, and it resumes from there"
)


def _retried(method: F) -> F:
    def retried(self: PostgresStore, *args: Any, **kwargs: Any) -> Any:
        return self.retry(partial(method, self, *args, **kwargs))

    return cast("F", retried)


class PostgresStore(Store):
    """Retries everything after a lost connection, for as long as a lease lasts.

    The time counts from when the server last answered. Where doing it twice would be wrong, it
    first looks up whether the transaction was committed.
    """

    database: Postgres

    def claim(self, wanted: Sequence[tuple[str, Claim]]) -> list[int | Exception]:
        attempts = count(1)

        def attempt() -> list[int | Exception]:
            is_first, found = next(attempts) == 1, Store.claim(self, wanted)
            if is_first:
                return found
            return [
                (isinstance(token, RunAlreadyActiveError) and self._token(run_id, claim.process))
                or token
                for (run_id, claim), token in zip(wanted, found, strict=True)
            ]

        return self.retry(attempt)

    def write(self, take: Callable[[], Sequence[CommitBatch]]) -> Refusals:
        taken: list[Sequence[CommitBatch]] = []

        def take_once() -> Sequence[CommitBatch]:
            if not taken:
                taken.append(take())
            return taken[0]

        def attempt() -> Refusals:
            refused = self._refused_if_written(taken[0]) if taken else None
            return Store.write(self, take_once) if refused is None else refused

        return self.retry(attempt)

    renew = _retried(Store.renew)
    release = _retried(Store.release)
    cancel = _retried(Store.cancel)
    prune = _retried(Store.prune)
    forget = _retried(Store.forget)

    def _token(self, run_id: str, process: str) -> int | None:
        """Return the token of a claim that was committed although its answer was lost."""
        with self.database.reading() as cursor:
            self._execute(
                cursor,
                "SELECT token FROM leases WHERE run_id = ? AND process = ?",
                (run_id, process),
            )
            row = cursor.fetchone()
        return None if row is None else int(row[0])

    def _refused_if_written(self, batches: Sequence[CommitBatch]) -> Refusals | None:
        """Return what `write` would have returned if it committed the batches; None if not."""
        leases = self._leases([batch.run_id for batch in batches])
        written: set[tuple[str, int]] = set()
        missing: set[tuple[str, int]] = set()
        for run_id, token, rows, _, release, *_ in batches:
            if rows:
                (written if self._has(rows[-1]) else missing).add((run_id, token))
            elif release and leases.get(run_id) == (token, None):
                written.add((run_id, token))  # only its holder releases a lease
        return dict.fromkeys(missing) if written else None

    def _leases(self, run_ids: Sequence[str]) -> dict[str, tuple[int, str | None]]:
        """Return tokens and owners, once the transaction of the lost connection has ended."""
        with self.database.transaction() as cursor:
            self._execute(
                cursor,
                "SELECT run_id, token, owner FROM leases WHERE run_id = ANY(?) "
                "ORDER BY run_id{lock}",
                (list(run_ids),),
            )
            return {run_id: (token, owner) for run_id, token, owner in cursor.fetchall()}

    def _has(self, row: EventRow) -> bool:
        with self.database.reading() as cursor:
            self._execute(
                cursor,
                f"SELECT {', '.join(EventRow._fields)} FROM events "
                "WHERE run_id = ? AND position = ?",
                (row.run_id, row.position),
            )
            # Another owner may have written another event there.
            return bool(cursor.fetchone() == tuple(row))

    def retry(self, attempt: Callable[[], T]) -> T:
        """Return what a call returns, repeated while its outcome is unsettled.

        Raise `JournalError` if the call fails, or the server is gone for too long.
        """
        database, pause_s, give_up_at = self.database, 0.05, 0.0
        server = database.server
        while True:
            try:
                return attempt()
            except UnsettledError as error:
                give_up_at = give_up_at or database.answered_at + database.lease_s
                if not server.is_up or time.monotonic() + pause_s > give_up_at:
                    server.is_up = False  # the next call will not wait
                    problem = _LOST if server.was_up else _UNREACHABLE
                    problem = problem.format(said=error.problem)
                    raise JournalError(database.name, problem) from error
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)
