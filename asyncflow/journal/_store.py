"""What a journal keeps in an SQL database: runs, their events, and who owns them.

The statements are the same for every database. What a second database must provide is a
`Database`: how a transaction begins and ends, its dialect (`phrase`), its schema, and what its
driver's errors mean, as `JournalError`.

- `runs` has one row a run, written with its first event. Its status follows the events.
- `leases` says who may write to a run. Whoever claims a run raises its `token`, and every
  transaction that writes events checks the token, so an owner that was taken for dead writes
  nothing more when it wakes up. A row stays when its owner leaves, so that tokens only grow.
  `cancel_token` is the token of the claim that was asked to stop, so it asks nothing of the next
  one. Times are those of the database's clock.
- `events` has one row an event. Its columns are those of `asyncflow.journal._event_codec.Row`.

What a journal needs of the database that it keeps its runs in.

All of it is called in one thread only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from itertools import chain, islice
from typing import Any, NamedTuple, Protocol

from asyncflow._core.errors import JournalError, RunAlreadyActiveError, describe_fully
from asyncflow.events import Event
from asyncflow.journal._event_codec import Row, column_of, event_of
from asyncflow.journal._queries import RunFilter

__all__ = [
    "Change",
    "Claim",
    "CommitBatch",
    "Cursor",
    "Database",
    "RunRow",
    "Store",
    "UnsettledError",
    "either_case",
]

Parameters = Sequence[Any]


class UnsettledError(JournalError):
    """It may have been committed or not, and it may succeed if it is tried again."""


class Cursor(Protocol):
    """A cursor of DB-API 2.0."""

    @property
    def rowcount(self) -> int: ...
    def execute(self, sql: str, parameters: Parameters = ..., /) -> object: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...


class Database(Protocol):
    """One connection to a database, or several behind one face.

    It connects when it is first used, and again when the connection was lost, and brings the
    schema up to date then. Whatever the driver raises in a ``with`` block of `transaction` or
    `reading`, or while it begins or ends one, is raised as a `JournalError`.
    """

    name: str
    """What error messages call it: a path, an address without its password."""

    def phrase(self, sql: str) -> str:
        """Return a statement in the words of this database, and remember it.

        ``?`` stands for a parameter, ``{now}`` for the seconds since the epoch by the database's
        clock (not that of the transaction's start), as a float, and ``{lock}``, at the end of a
        SELECT in a transaction, for what locks its rows (``FOR UPDATE``), if that needs saying.
        ``{like}`` compares a text with a `pattern`.
        """
        ...

    def pattern(self, text: str) -> str:
        """Return what matches every text that has this one in it, in whatever case."""
        ...

    def transaction(self) -> AbstractContextManager[Cursor]:
        """Begin a transaction that writes. The ``with`` block commits it, or rolls it back."""
        ...

    def reading(self) -> AbstractContextManager[Cursor]:
        """Give a cursor for SELECTs."""
        ...

    def close(self) -> None:
        """Disconnect, never raise. Using it again afterwards connects again."""
        ...


def either_case(letter: str) -> str:
    """Return a letter as it is, small and large, each once and as long as it stays one."""
    return "".join(sorted({c for c in (letter, letter.lower(), letter.upper()) if len(c) == 1}))


class Change(NamedTuple):
    """What an event changes in the row of its run."""

    status: str
    pipeline: str | None = None
    """Set by the event with which the run begins, as is ``started_at``."""
    started_at: float | None = None


class CommitBatch(NamedTuple):
    """What one run has to write."""

    run_id: str
    token: int
    rows: Sequence[Row]
    change: Change | None
    release: bool
    """Whether its owner leaves it afterwards."""


class Claim(NamedTuple):
    """Who wants to own a run."""

    owner: str
    process: str
    lease_s: float
    is_dead: Callable[[str], bool]
    """Whether the process of another owner is provably dead."""


class RunRow(NamedTuple):
    """A row of `runs`, with what its lease says."""

    run_id: str
    pipeline: str
    status: str
    started_at: float
    updated_at: float
    owner: str | None
    """Who has claimed it; ``None`` if nobody has, or the lease is over."""
    process: str | None


_FREE = "(l.owner IS NULL OR l.expires_at <= {now})"

_MAKE_LEASE = (
    # Not DO NOTHING: in PostgreSQL, another transaction could delete the row that is there.
    "INSERT INTO leases (run_id, token, expires_at) VALUES (?, CAST({now} * 1000 AS BIGINT), 0) "
    "ON CONFLICT (run_id) DO UPDATE SET token = leases.token"
)
_LEASE = "SELECT owner, process, expires_at > {now}, token FROM leases WHERE run_id = ?{lock}"
_CLAIM = (
    "UPDATE leases SET token = token + 1, owner = ?, process = ?, expires_at = {now} + ?, "
    "cancel_token = NULL WHERE run_id = ?"
)
_RENEW = "UPDATE leases SET expires_at = {now} + ? WHERE run_id = ? AND token = ?"
_RELEASE = (
    "UPDATE leases SET owner = NULL, process = NULL, expires_at = 0, cancel_token = NULL "
    "WHERE run_id = ? AND token = ?"
)
_CANCEL = "UPDATE leases SET cancel_token = token WHERE run_id = ?"
# The first condition is that of an index, which has little in it.
_CANCELLED = (
    "SELECT run_id, token FROM leases WHERE cancel_token IS NOT NULL AND cancel_token = token"
)
_BEGIN_RUN = (
    "INSERT INTO runs (run_id, pipeline, status, started_at, updated_at) VALUES (?, ?, ?, ?, {now})"
)
_CHANGE_RUN = "UPDATE runs SET status = ?, updated_at = {now} WHERE run_id = ?"
_EVENTS = (
    f"SELECT {', '.join(Row._fields[1:])} FROM events "
    "WHERE run_id = ? AND position > ? ORDER BY position"
)
_LAST = "SELECT COALESCE(MAX(position), 0) FROM events WHERE run_id = ?"
_RUNS = (
    "SELECT r.run_id, r.pipeline, r.status, r.started_at, r.updated_at, "
    f"CASE WHEN {_FREE} THEN NULL ELSE l.owner END, l.process "
    "FROM runs r LEFT JOIN leases l ON l.run_id = r.run_id"
)
_BEFORE = ("", "r.started_at < ?", "(r.started_at, r.run_id) < (?, ?)")
"""What it means to be before a place in that list, of which so much is known."""
_ENDED = (
    "SELECT r.run_id, (SELECT COALESCE(MAX(e.position), 0) FROM events e "
    "WHERE e.run_id = r.run_id) FROM leases l JOIN runs r ON r.run_id = l.run_id "
    f"WHERE {_FREE} AND r.status <> 'running' AND r.updated_at <= {{now}} - ?"
)
_ENDED_SO = f"{_ENDED} AND r.status = ?"
_STRAY = (
    f"SELECT l.run_id, 0 FROM leases l WHERE {_FREE} "
    "AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.run_id = l.run_id)"
)
_DELETABLE = (
    f"SELECT l.run_id FROM leases l WHERE {_FREE} AND NOT EXISTS (SELECT 1 FROM runs r WHERE "
    "r.run_id = l.run_id AND (r.status = 'running' OR r.updated_at > {now} - ?))"
)

_ROWS_AT_ONCE = 64
"""How many rows one INSERT writes at most. It is a power of two."""


class Store:
    """The statements, in the words of one database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def claim(self, run_id: str, claim: Claim) -> int:
        """Become the owner of a run and return the token of that.

        Raises:
            RunAlreadyActiveError: Another one owns it, and may be alive.
        """
        phrase = self.database.phrase
        with self.database.transaction() as cursor:
            cursor.execute(phrase(_MAKE_LEASE), (run_id,))
            cursor.execute(phrase(_LEASE), (run_id,))
            lease = cursor.fetchone()
            _check_free(run_id, lease, claim)
            cursor.execute(phrase(_CLAIM), (claim.owner, claim.process, claim.lease_s, run_id))
        return int(lease[-1]) + 1

    def renew(self, claims: Iterable[tuple[str, int]], lease_s: float) -> set[tuple[str, int]]:
        """Prolong claims, each a run and its token, and return those that are lost."""
        lost = set()
        with self.database.transaction() as cursor:
            for run_id, token in sorted(claims):
                cursor.execute(self.database.phrase(_RENEW), (lease_s, run_id, token))
                if not cursor.rowcount:
                    lost.add((run_id, token))
        return lost

    def release(self, run_id: str, token: int) -> None:
        """Give up a claim, if it still holds."""
        with self.database.transaction() as cursor:
            cursor.execute(self.database.phrase(_RELEASE), (run_id, token))

    def cancel(self, run_id: str, claim: Claim) -> int | None:
        """Leave word for whoever owns a run to stop it, and return the token of that claim.

        It is ``None`` if nobody owns the run, or who does is provably dead.
        """
        with self.database.transaction() as cursor:
            cursor.execute(self.database.phrase(_LEASE), (run_id,))
            lease = cursor.fetchone()
            if lease is None or not _is_owned(lease, claim):
                return None
            cursor.execute(self.database.phrase(_CANCEL), (run_id,))
        return int(lease[-1])

    def cancelled(self) -> list[tuple[str, int]]:
        """Return the claims that were asked to stop, each a run and its token."""
        with self.database.reading() as cursor:
            cursor.execute(self.database.phrase(_CANCELLED))
            return [(run_id, int(token)) for run_id, token in cursor.fetchall()]

    def write(self, take: Callable[[], Sequence[CommitBatch]]) -> set[tuple[str, int]]:
        """Write parcels in one transaction and return the claims that are lost.

        Args:
            take: Called once when the transaction has begun, which may take a while.
        """
        with self.database.transaction() as cursor:
            parcels = take()
            owned = self._owned(cursor, parcels)
            mine = [parcel for parcel in parcels if (parcel.run_id, parcel.token) in owned]
            self._insert(cursor, [row for parcel in mine for row in parcel.rows])
            for parcel in mine:
                self._finish(cursor, parcel)
        return {(parcel.run_id, parcel.token) for parcel in parcels} - owned

    def _owned(self, cursor: Cursor, parcels: Sequence[CommitBatch]) -> set[tuple[str, int]]:
        return self._tokens(cursor, {parcel.run_id for parcel in parcels})

    def _tokens(self, cursor: Cursor, of: Iterable[str]) -> set[tuple[str, int]]:
        """Lock leases, and return each run with its token."""
        owned: set[tuple[str, int]] = set()
        # In one order, so that two processes that lock rows never wait for each other.
        run_ids = sorted(of)
        for some in _chunks([*run_ids, *run_ids[-1:] * _missing(len(run_ids))]):
            cursor.execute(
                self.database.phrase(
                    "SELECT run_id, token FROM leases WHERE run_id IN "
                    f"({_marks(len(some))}) ORDER BY run_id{{lock}}"
                ),
                some,
            )
            owned.update((run_id, token) for run_id, token in cursor.fetchall())
        return owned

    def _insert(self, cursor: Cursor, rows: Sequence[Row]) -> None:
        # Few statements: after each one this thread waits for the interpreter's lock.
        for some in _chunks(rows):
            cursor.execute(self.database.phrase(_insertion(len(some))), list(chain(*some)))

    def _finish(self, cursor: Cursor, parcel: CommitBatch) -> None:
        phrase, change = self.database.phrase, parcel.change
        if change and change.started_at is not None:
            begun = (parcel.run_id, change.pipeline, change.status, change.started_at)
            cursor.execute(phrase(_BEGIN_RUN), begun)
        elif change:
            cursor.execute(phrase(_CHANGE_RUN), (change.status, parcel.run_id))
        if parcel.release:
            cursor.execute(phrase(_RELEASE), (parcel.run_id, parcel.token))

    def events(self, run_id: str, after: int = 0) -> list[tuple[int, Event]]:
        """Return the events of a run after a position, each with its own, in order."""
        with self.database.reading() as cursor:
            cursor.execute(self.database.phrase(_EVENTS), (run_id, after))
            rows = cursor.fetchall()
        return [(row[0], self._event(run_id, row)) for row in rows]

    def _event(self, run_id: str, row: Sequence[Any]) -> Event:
        try:
            return event_of(row)
        except Exception as error:  # what is not as we have written it may be anything
            raise JournalError(
                self.database.name,
                f"event {row[0]} of run {run_id!r} can't be read ({describe_fully(error)}). It was "
                "left as it is; a newer asyncflow may have written it",
            ) from error

    def last_position(self, run_id: str) -> int:
        """Return the position of the last event of a run, 0 if it has none."""
        with self.database.reading() as cursor:
            cursor.execute(self.database.phrase(_LAST), (run_id,))
            ((position,),) = cursor.fetchall()
        return int(position)

    def run(self, run_id: str) -> RunRow | None:
        """Return the row of a run, ``None`` if there is none."""
        rows = self._runs({"r.run_id = ?": [run_id]}, None)
        return rows[0] if rows else None

    def runs(self, where: RunFilter) -> list[RunRow]:
        """Return the runs that a filter selects, but for its ``orphaned``, which SQL can't tell."""
        before = where.before
        place = before if before is None or isinstance(before, tuple) else (before,)
        pipeline = None if where.pipeline is None else column_of(where.pipeline)
        pattern = None if where.text is None else self.database.pattern(where.text)
        return self._runs(
            {
                "r.status = ?": _some(where.status),
                "r.pipeline = ?": _some(pipeline),
                "r.started_at >= ?": _some(where.since),
                _BEFORE[len(place or ())]: place or (),
                "(r.run_id {like} ? OR r.pipeline {like} ?)": _some(pattern) * 2,
            },
            where.limit,
        )

    def _runs(self, conditions: Mapping[str, Sequence[Any]], limit: int | None) -> list[RunRow]:
        where = " AND ".join(condition for condition, values in conditions.items() if values)
        values = [*chain(*conditions.values())]
        sql = f"{_RUNS} WHERE {where or '1 = 1'} ORDER BY r.started_at DESC, r.run_id DESC"
        if limit is not None:
            sql, values = f"{sql} LIMIT ?", [*values, limit]
        with self.database.reading() as cursor:
            cursor.execute(self.database.phrase(sql), values)
            return [RunRow(*row) for row in cursor.fetchall()]

    def ended(self, age_s: float, status: str | None) -> list[tuple[str, int]]:
        """Return the runs that ended that long ago and that nobody owns, and their last positions.

        With no status, leases that nobody holds and that have no run are among them.
        """
        sql, values = (_ENDED, [age_s]) if status is None else (_ENDED_SO, [age_s, status])
        with self.database.reading() as cursor:
            cursor.execute(self.database.phrase(f"{sql} ORDER BY r.run_id"), values)
            found = cursor.fetchall()
            if status is None:
                cursor.execute(self.database.phrase(_STRAY))
                found += cursor.fetchall()
        return [(run_id, int(position)) for run_id, position in found]

    def prune(self, run_ids: Sequence[str], age_s: float) -> int:
        """Delete what `ended` has found, if that still holds; return how many runs it was."""
        with self.database.transaction() as cursor:
            # One statement locks them, the next one sees what they have become before that.
            self._tokens(cursor, run_ids)
            deleted = 0
            for some in _chunks(run_ids):
                sql = f"{_DELETABLE} AND l.run_id IN ({_marks(len(some))})"
                cursor.execute(self.database.phrase(sql), [age_s, *some])
                deleted += self._delete(cursor, [run_id for (run_id,) in cursor.fetchall()])
        return deleted

    def forget(self, run_id: str, claim: Claim) -> None:
        """Delete a run, if there is such.

        Raises:
            RunAlreadyActiveError: Somebody owns it, and may be alive.
        """
        with self.database.transaction() as cursor:
            cursor.execute(self.database.phrase(_LEASE), (run_id,))
            for lease in cursor.fetchall():
                _check_free(run_id, lease, claim)
            self._delete(cursor, [run_id])

    def _delete(self, cursor: Cursor, run_ids: Sequence[str]) -> int:
        deleted = 0
        for some in _chunks(run_ids):
            for table in ("events", "leases", "runs"):
                sql = f"DELETE FROM {table} WHERE run_id IN ({_marks(len(some))})"
                cursor.execute(self.database.phrase(sql), some)
            deleted += cursor.rowcount
        return deleted


def _check_free(run_id: str, lease: Sequence[Any], claim: Claim) -> None:
    if _is_owned(lease, claim):
        raise RunAlreadyActiveError(run_id, lease[0])


def _is_owned(lease: Sequence[Any], claim: Claim) -> bool:
    owner, process, unexpired, _ = lease
    return owner is not None and bool(unexpired) and not claim.is_dead(process)


def _some(value: Any) -> list[Any]:
    return [] if value is None else [value]


def _chunks(rows: Sequence[Any]) -> Iterator[list[Any]]:
    """Split rows into a few lengths, powers of two, so that few statements have to be compiled."""
    rest, size = iter(rows), _ROWS_AT_ONCE
    left = len(rows)
    while left:
        while size > left:
            size //= 2
        yield list(islice(rest, size))
        left -= size


def _missing(count: int) -> int:
    """Return how many there are to the next length that `_chunks` takes in one piece."""
    return (-count) % min(_ROWS_AT_ONCE, 1 << max(0, count - 1).bit_length())


@cache
def _insertion(count: int) -> str:
    row = f"({_marks(len(Row._fields))})"
    return f"INSERT INTO events ({', '.join(Row._fields)}) VALUES {', '.join([row] * count)}"


def _marks(count: int) -> str:
    return ", ".join(["?"] * count)
