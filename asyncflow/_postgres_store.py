"""What a journal asks of a PostgreSQL server lives through a lost connection, or a short restart.

Of a transaction whose end nobody has told nothing is guessed. On a new connection it is looked up
where to do it twice would be wrong, and done again if it was not done: for as long as a lease
lasts, counted from when the server last showed that it was there.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count
from typing import Any, TypeVar

from asyncflow._core.errors import JournalError, RunAlreadyActiveError
from asyncflow._postgres import Postgres, UnsettledError
from asyncflow._rows import Row
from asyncflow._store import Claim, Parcel, Store, StoredRun
from asyncflow.events import Event

__all__ = ["Postgres", "PostgresStore"]

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

    def write(self, take: Callable[[], Sequence[Parcel]]) -> set[tuple[str, int]]:
        taken: list[Sequence[Parcel]] = []

        def take_once() -> Sequence[Parcel]:
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

    def runs(self, **asked: Any) -> list[StoredRun]:
        return self._patiently(partial(super().runs, **asked))

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

    def _lost_if_written(self, parcels: Sequence[Parcel]) -> set[tuple[str, int]] | None:
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
