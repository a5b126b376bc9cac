"""What a journal asks of a PostgreSQL server lives through a lost connection, or a short restart.

Of a transaction whose end nobody has told nothing is guessed. On a new connection it is looked up
where to do it twice would be wrong, and done again if it was not done: for as long as a lease
lasts, counted from when the server last showed that it was there.

A journal in a PostgreSQL database.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from asyncflow._core.errors import JournalError, RunAlreadyActiveError
from asyncflow.events import Event
from asyncflow.journal._base import SQLJournal
from asyncflow.journal._event_codec import Row
from asyncflow.journal._queries import RunFilter, check_lease, check_text
from asyncflow.journal._store import Claim, CommitBatch, RunRow, Store, UnsettledError

if TYPE_CHECKING:
    from asyncflow.journal._postgres_connection import Postgres

__all__ = [
    "PostgresJournal",
    "PostgresStore",
]


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
        from asyncflow.journal._postgres_connection import Postgres  # psycopg may be missing

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


T = TypeVar("T")

_UNREACHABLE = (
    "it can't be reached ({said}); nothing was changed: see that the address, the user and the "
    "password are right, and that the server runs"
)
_LOST = (
    "the connection was lost, and there was no other in time ({said}); what was committed before "
    "is safe, and what was just being written was kept as a whole or not at all: start the run "
    "again under its id when the server is back, and it goes on from there"
)


class PostgresStore(Store):
    """Does everything again if the connection was lost, for as long as a claim holds.

    What may have been committed is looked up first, where to do it twice would be wrong.
    """

    database: Postgres

    def claim(self, run_id: str, claim: Claim) -> int:
        # No other claim has that mark, not even one of this process.
        marked = json.dumps({**json.loads(claim.process), "claim": uuid.uuid4().hex})
        attempts = count(1)

        def attempt() -> int:
            is_first = next(attempts) == 1
            try:
                return Store.claim(self, run_id, claim._replace(process=marked))
            except RunAlreadyActiveError:
                token = None if is_first else self._token(run_id, marked)
                if token is None:
                    raise
                return token

        return self._patiently(attempt)

    def write(self, take: Callable[[], Sequence[CommitBatch]]) -> set[tuple[str, int]]:
        taken: list[Sequence[CommitBatch]] = []

        def take_once() -> Sequence[CommitBatch]:
            if not taken:
                taken.append(take())
            return taken[0]

        def attempt() -> set[tuple[str, int]]:
            lost = self._lost_if_written(taken[0]) if taken else None
            return Store.write(self, take_once) if lost is None else lost

        return self._patiently(attempt)

    def renew(self, claims: Iterable[tuple[str, int]], lease_s: float) -> set[tuple[str, int]]:
        return self._patiently(partial(super().renew, list(claims), lease_s))

    def release(self, run_id: str, token: int) -> None:
        self._patiently(partial(super().release, run_id, token))

    def events(self, run_id: str, after: int = 0) -> list[tuple[int, Event]]:
        return self._patiently(partial(super().events, run_id, after))

    def cancel(self, run_id: str, claim: Claim) -> int | None:
        return self._patiently(partial(super().cancel, run_id, claim))

    def cancelled(self) -> list[tuple[str, int]]:
        return self._patiently(super().cancelled)

    def last_position(self, run_id: str) -> int:
        return self._patiently(partial(super().last_position, run_id))

    def run(self, run_id: str) -> RunRow | None:
        return self._patiently(partial(super().run, run_id))

    def runs(self, where: RunFilter) -> list[RunRow]:
        return self._patiently(partial(super().runs, where))

    def ended(self, age_s: float, status: str | None) -> list[tuple[str, int]]:
        return self._patiently(partial(super().ended, age_s, status))

    def prune(self, run_ids: Sequence[str], age_s: float) -> int:
        return self._patiently(partial(super().prune, run_ids, age_s))

    def forget(self, run_id: str, claim: Claim) -> None:
        self._patiently(partial(super().forget, run_id, claim))

    def _token(self, run_id: str, process: str) -> int | None:
        """Return the token of a claim that was made although nobody has told so."""
        with self.database.reading() as cursor:
            cursor.execute(
                self.database.phrase("SELECT token FROM leases WHERE run_id = ? AND process = ?"),
                (run_id, process),
            )
            found = cursor.fetchone()
        return None if found is None else int(found[0])

    def _lost_if_written(self, parcels: Sequence[CommitBatch]) -> set[tuple[str, int]] | None:
        """Return what `write` would have, if it has committed the parcels; ``None`` if not."""
        leases = self._leases([parcel.run_id for parcel in parcels])
        written: set[tuple[str, int]] = set()
        missing: set[tuple[str, int]] = set()
        for run_id, token, rows, _, release in parcels:
            if rows:
                (written if self._has(rows[-1]) else missing).add((run_id, token))
            elif release and leases.get(run_id) == (token, None):
                written.add((run_id, token))  # nobody else gives up a claim of ours
        return missing if written else None

    def _leases(self, run_ids: Sequence[str]) -> dict[str, tuple[int, str | None]]:
        """Return tokens and owners, after the transaction has ended that a lost connection had."""
        with self.database.transaction() as cursor:
            cursor.execute(
                self.database.phrase(
                    "SELECT run_id, token, owner FROM leases WHERE run_id = ANY(?) "
                    "ORDER BY run_id{lock}"
                ),
                (list(run_ids),),
            )
            return {run_id: (token, owner) for run_id, token, owner in cursor.fetchall()}

    def _has(self, row: Row) -> bool:
        with self.database.reading() as cursor:
            cursor.execute(
                self.database.phrase(
                    f"SELECT {', '.join(Row._fields)} FROM events WHERE run_id = ? AND position = ?"
                ),
                (row.run_id, row.position),
            )
            # Another owner may have written one in that place.
            return bool(cursor.fetchone() == tuple(row))

    def _patiently(self, attempt: Callable[[], T]) -> T:
        database, pause_s, give_up_at = self.database, 0.05, 0.0
        while True:
            try:
                return attempt()
            except UnsettledError as error:
                give_up_at = give_up_at or database.well_until + database.lease_s
                if not database.was_there or time.monotonic() + pause_s > give_up_at:
                    database.was_there = False  # the next one will not wait
                    problem = _LOST if database.has_been_there else _UNREACHABLE
                    problem = problem.format(said=error.problem)
                    raise JournalError(database.name, problem) from error
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)
