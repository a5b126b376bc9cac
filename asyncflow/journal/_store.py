"""The SQL statements of a journal: runs, their events, and the leases of their owners.

They are the same for every database. A database must provide what `Database` asks for: how a
transaction begins and ends, its dialect (`translate`), its schema, and what its driver's errors
mean, as `JournalError`. Everything is called in one thread only.

- `runs` has one row per run, written with its first event. Its status follows the events.
- `leases` says who may write to a run. A claim raises the run's `token`, and every transaction that
  writes events checks the token, so an owner that stood still writes nothing after another one has
  claimed the run. A row stays when its owner releases it, so that tokens only grow. `cancel_token`
  is the token of the claim that was asked to stop, so the request is void for the next claim. Times
  are by the database's clock.
- `events` has one row per event, with the columns of `asyncflow.journal._event_codec.EventRow` and
  their checksum.
- `notes` has one row per note: what steps say, which no replay reads. Its columns are those of
  `asyncflow.journal._notes.NoteRow`.

What is read may be damaged. A row of `events` is checked when it is read, and a run whose rows
can't be read is a `RunUnreadableError`. Values of the other tables may be of any type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from itertools import chain, islice
from typing import Any, NamedTuple, Protocol

from asyncflow._core.errors import (
    JournalError,
    RunAlreadyActiveError,
    RunUnreadableError,
    describe_fully,
)
from asyncflow.events import Event, NoteEvent
from asyncflow.journal._event_codec import (
    EventRow,
    column_of,
    event_checksum,
    event_of,
    run_checksum,
)
from asyncflow.journal._notes import NoteFilter, NoteRow, note_rows
from asyncflow.journal._queries import RunFilter

__all__ = [
    "Change",
    "Claim",
    "CommitBatch",
    "Cursor",
    "Database",
    "DatabaseChangedError",
    "Refusals",
    "RunRow",
    "Store",
    "UnsettledError",
    "either_case",
]

Parameters = Sequence[Any]


class UnsettledError(JournalError):
    """The transaction may or may not be committed, and may succeed if it is tried again."""


class DatabaseChangedError(JournalError):
    """Another database has taken the place of the one in which the leases were acquired."""


class Cursor(Protocol):
    """A cursor of DB-API 2.0."""

    @property
    def rowcount(self) -> int: ...
    def execute(self, sql: str, parameters: Parameters = ..., /) -> object: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...


class Database(Protocol):
    """A connection to a database.

    It connects when it is first used and after the connection was lost, and migrates the schema
    then. Errors of the driver in a ``with`` block of `transaction` or `reading`, or at its begin or
    end, are raised as `JournalError`.
    """

    name: str
    """Its name in errors: a path, or an address without its password."""

    def translate(self, sql: str) -> str:
        """Return a statement in the dialect of this database, cached.

        ``?`` stands for a parameter, ``{now}`` for the seconds since the epoch by the database's
        clock (not that of the transaction's start), as a float, and ``{lock}``, at the end of a
        SELECT in a transaction, for what locks its rows (``FOR UPDATE``), if the database needs
        that. ``{like}`` compares a text with a `pattern`. ``{bytes}`` is the function for the size
        of a text, in bytes if that is fast, else in characters. ``{of_steps}``, after a table
        ``events``, lets it be read by the index of the events that are not of items, if the
        database would not choose that by itself. ``{valid}`` is the condition that a lease
        ``l`` has not expired, and ``{expiry}`` assigns when it expires: in ``?`` seconds.
        """
        ...

    def pattern(self, text: str) -> str:
        """Return a pattern that matches every text that contains this one, in any case."""
        ...

    def transaction(self) -> AbstractContextManager[Cursor]:
        """Begin a transaction that writes; the end of the block commits it or rolls it back."""
        ...

    def reading(self) -> AbstractContextManager[Cursor]:
        """Return a cursor for SELECTs."""
        ...

    def close(self) -> None:
        """Disconnect, and never raise. The next use connects again."""
        ...


def either_case(letter: str) -> str:
    """Return a letter and its lower and upper case, each once, if that is one character."""
    return "".join(sorted({c for c in (letter, letter.lower(), letter.upper()) if len(c) == 1}))


class Change(NamedTuple):
    """What events change in the row of their run."""

    status: str
    position: int
    """That of the latest of these events."""
    pipeline: str | None = None
    """Set by the first event, as is ``started_at``."""
    started_at: float | None = None
    unpaused_at: float | None = None
    """When the run would have started if it had never paused; set by a resumption."""
    parent: str | None = None
    """Set by the first event, as the next two are; ``None`` for an empty text."""
    parent_step: str | None = None
    forked_from: str | None = None


class CommitBatch(NamedTuple):
    """What one run has to commit."""

    run_id: str
    token: int
    rows: Sequence[EventRow]
    change: Change | None
    release: bool
    """Whether to release the lease afterwards."""
    notes: Sequence[NoteEvent] = ()
    first_note: int = 0
    """The position of the first note; those of the others follow."""
    replaced: Sequence[int] = ()
    """The positions of stored notes to delete."""


class Claim(NamedTuple):
    """The process that claims runs, and how."""

    owner: str
    process: str
    """A description of the process and of this claim, which no other claim has."""
    lease_s: float
    is_void: Callable[[str], bool]
    """Whether the claim of another owner is void: its process is provably dead, or gave it up."""


Refusals = dict[tuple[str, int], int | None]
"""For which claims nothing was written, each a run id and a token: with the position of the last
stored event, which is not the one that was committed last; or ``None`` for a lost lease."""


class RunRow(NamedTuple):
    """A row of `runs` with its lease, as it was read: if it is damaged, its values are of any type.

    An undamaged one has the types of `asyncflow.journal._queries.RunRecord`.
    """

    run_id: Any
    pipeline: Any
    status: Any
    started_at: Any
    updated_at: Any
    last_event: Any
    """The position of the latest event that changed the row. If the run has ended, it is the last
    of all, so that missing ones are noticed."""
    checksum: Any
    """That of the columns that never change, by `run_checksum`."""
    parent: Any
    parent_step: Any
    forked_from: Any
    owner: Any
    """The lease holder; ``None`` if there is none, or the lease has expired."""
    process: Any
    latest_ms: Any
    """The time of its latest event, whose checksum was not compared."""
    paused_s: Any
    """By how much its start and the times of its events have drifted apart by the wall clock."""


_EVENT = (*EventRow._fields, "checksum")
"""The columns of `events`."""

_NOTE = (*NoteRow._fields, "checksum")
"""The columns of `notes`."""

_FREE = "(l.owner IS NULL OR NOT {valid})"

_OWNER = f"CASE WHEN {_FREE} THEN NULL ELSE l.owner END"

_MAKE_LEASE = (
    # Not DO NOTHING: in PostgreSQL, another transaction could delete the row that is there.
    "INSERT INTO leases (run_id, token, expires_at) VALUES (?, CAST({now} * 1000 AS BIGINT), 0) "
    "ON CONFLICT (run_id) DO UPDATE SET token = leases.token"
)
_LEASE = "SELECT l.owner, l.process, {valid}, l.token FROM leases l WHERE l.run_id = ?{lock}"
_CLAIM = (
    "UPDATE leases SET token = token + 1, owner = ?, process = ?, {expiry}, cancel_token = NULL "
    "WHERE run_id = ?"
)
_RENEW = "UPDATE leases SET {expiry} WHERE run_id = ? AND token = ?"
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
    "INSERT INTO runs (run_id, pipeline, status, started_at, last_event, checksum, parent, "
    "parent_step, forked_from, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, {now})"
)
_CHANGE_RUN = (
    "UPDATE runs SET status = ?, last_event = ?, updated_at = {now}, "
    "paused_s = COALESCE(? - started_at, paused_s) WHERE run_id = ?"
)
_EVENTS = (
    f"SELECT {', '.join(_EVENT)} FROM events WHERE run_id = ? AND position > ? ORDER BY position"
)
_LAST = (
    "SELECT COALESCE((SELECT MAX(position) FROM events WHERE run_id = ?), 0), "
    "(SELECT COUNT(*) FROM runs WHERE run_id = ?), "
    # A damaged position must not prevent the next ones.
    f"COALESCE((SELECT MAX(position) FROM notes WHERE run_id = ? AND position < {1 << 53}), 0)"
)
_LAST_OF_LEASE = "(SELECT COALESCE(MAX(e.position), 0) FROM events e WHERE e.run_id = l.run_id)"
_RUNS = (
    "SELECT r.run_id, r.pipeline, r.status, r.started_at, r.updated_at, "
    "r.last_event, r.checksum, r.parent, r.parent_step, r.forked_from, "
    f"{_OWNER}, l.process, "
    "COALESCE((SELECT e.at_ms FROM events e WHERE e.run_id = r.run_id "
    "ORDER BY e.position DESC LIMIT 1), 0), r.paused_s "
    "FROM runs r LEFT JOIN leases l ON l.run_id = r.run_id"
)
_LONGEST_OUTPUT = 4_096
"""How many bytes of an output are read where no caller needs it, so that its row can be checked."""
_LONGEST_START = 65_536
"""The same for the first event of a run, of which only the inputs are shown."""
_BRIEF = ", ".join(
    f"CASE WHEN e.kind IN ('StepSucceeded', 'StepTakenOver') "
    f"AND {{bytes}}(e.{column}) > {_LONGEST_OUTPUT} THEN NULL ELSE e.{column} END"
    if column in ("payload", "data")
    else f"e.{column}"
    for column in _EVENT
)
"""The columns of an event, without a long output."""
_OF_STEPS = "events e {of_steps} WHERE e.item IS NULL AND e.run_id IN ({ids})"
_STARTS = (
    f"{_OF_STEPS} AND e.kind IN ('RunStarted', 'RunResumed') AND (e.kind = 'RunResumed' "
    f"OR {{bytes}}(e.payload) <= {_LONGEST_START})"
)
_FIRST_FAILURE = (
    "runs r JOIN events e ON e.run_id = r.run_id WHERE e.position = ("
    "SELECT MIN(f.position) FROM events f {of_steps} WHERE f.run_id = r.run_id "
    "AND f.item IS NULL AND f.kind = 'StepFailed' AND f.position > COALESCE("
    "(SELECT MAX(g.position) FROM events g {of_steps} WHERE g.run_id = r.run_id "
    "AND g.item IS NULL AND g.kind = 'RunResumed'), 0)) AND r.run_id IN ({ids})"
)
"""The ids are those of `runs`: PostgreSQL would ask this of all runs, and then compare the ids."""
_LAST_CHANGE = (
    "runs r JOIN events e ON e.run_id = r.run_id WHERE e.position = r.last_event "
    "AND r.run_id IN ({ids})"
)
_PIPELINES = (
    "WITH RECURSIVE named (pipeline) AS (SELECT MIN(r.pipeline) FROM runs r UNION ALL "
    "SELECT (SELECT MIN(r.pipeline) FROM runs r WHERE r.pipeline > named.pipeline) FROM named "
    "WHERE named.pipeline IS NOT NULL) SELECT pipeline FROM named WHERE pipeline IS NOT NULL"
)
"""One search of an index for each name, whatever the number of runs."""
_COUNTS = "SELECT r.status, COUNT(*) FROM runs r WHERE {where} GROUP BY r.status"
_RUNNING = (
    f"SELECT {_OWNER}, l.process FROM runs r LEFT JOIN leases l ON l.run_id = r.run_id "
    "WHERE {where}"
)
_BEFORE = ("", "r.started_at < ?", "(r.started_at, r.run_id) < (?, ?)")
"""The condition for runs before a place, by how many parts of the place are given."""
_LAST_NOTE = "(SELECT COALESCE(MAX(n.position), 0) FROM notes n WHERE n.run_id = l.run_id)"
_ENDED = (
    f"SELECT r.run_id, {_LAST_OF_LEASE} + {_LAST_NOTE} "
    "FROM leases l JOIN runs r ON r.run_id = l.run_id "
    f"WHERE {_FREE} AND r.status <> 'running' AND r.updated_at <= {{now}} - ?"
)
_ENDED_AS = f"{_ENDED} AND r.status = ?"
_STRAY = (
    f"SELECT l.run_id, 0 FROM leases l WHERE {_FREE} "
    "AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.run_id = l.run_id)"
)
_DELETABLE = (
    f"SELECT l.run_id FROM leases l WHERE {_FREE} AND NOT EXISTS (SELECT 1 FROM runs r WHERE "
    "r.run_id = l.run_id AND (r.status = 'running' OR r.updated_at > {now} - ?))"
)

_CHUNK = 64
"""How many rows or ids one statement takes at most; a power of two."""
_PARTS = 8
"""How many SELECTs, each with so many ids, one statement joins at most."""


class Store:
    """Executes the statements on one database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def _execute(self, cursor: Cursor, sql: str, parameters: Parameters = ()) -> None:
        cursor.execute(self.database.translate(sql), parameters)

    def claim(self, run_id: str, claim: Claim) -> int:
        """Claim a run and return the token of the claim.

        Raises:
            RunAlreadyActiveError: It has another owner, whose claim is not void.
            RunUnreadableError: The row of its lease is damaged.
        """
        with self.database.transaction() as cursor:
            self._execute(cursor, _MAKE_LEASE, (run_id,))
            self._execute(cursor, _LEASE, (run_id,))
            lease = cursor.fetchone()
            _check_free(run_id, lease, claim)
            token = self._token_of(run_id, lease) + 1
            self._execute(cursor, _CLAIM, (claim.owner, claim.process, claim.lease_s, run_id))
        return token

    def _token_of(self, run_id: str, lease: Sequence[Any]) -> int:
        token = lease[-1]
        if not isinstance(token, int):
            raise RunUnreadableError(self.database.name, run_id, "the row of its lease is damaged")
        return token

    def renew(self, claims: Iterable[tuple[str, int]], lease_s: float) -> set[tuple[str, int]]:
        """Renew the leases of claims, each a run id and a token, and return the lost ones."""
        lost = set()
        with self.database.transaction() as cursor:
            for run_id, token in sorted(claims):
                self._execute(cursor, _RENEW, (lease_s, run_id, token))
                if not cursor.rowcount:
                    lost.add((run_id, token))
        return lost

    def release(self, run_id: str, token: int) -> None:
        """Release the lease of a claim if the claim is still valid."""
        with self.database.transaction() as cursor:
            self._execute(cursor, _RELEASE, (run_id, token))

    def cancel(self, run_id: str, claim: Claim) -> int | None:
        """Request cancellation from the lease holder; return its token, or None if there is none.

        A holder whose claim is void counts as none.
        """
        with self.database.transaction() as cursor:
            self._execute(cursor, _LEASE, (run_id,))
            lease = cursor.fetchone()
            if lease is None or not _is_owned(lease, claim):
                return None
            token = self._token_of(run_id, lease)
            self._execute(cursor, _CANCEL, (run_id,))
        return token

    def cancelled(self) -> list[tuple[str, int]]:
        """Return the claims that were asked to stop, each a run id and a token."""
        with self.database.reading() as cursor:
            self._execute(cursor, _CANCELLED)
            return [(run_id, token) for run_id, token in cursor.fetchall()]

    def write(self, take: Callable[[], Sequence[CommitBatch]]) -> Refusals:
        """Write batches in one transaction; return the claims for which nothing was written.

        Args:
            take: Returns the batches. Called when the transaction has begun, which may take long.
        """
        refused: Refusals = {}
        with self.database.transaction() as cursor:
            batches = take()
            claims = self._lock(cursor, {batch.run_id for batch in batches})
            owned = []
            for batch in batches:
                claim = batch.run_id, batch.token
                last = claims.get(claim)
                if last is None or (batch.rows and batch.rows[0].position != last + 1):
                    refused[claim] = last
                else:
                    owned.append(batch)
            self._insert(cursor, [row for batch in owned for row in batch.rows])
            for batch in owned:
                if batch.notes:
                    self._insert_notes(cursor, batch)
                self._finish(cursor, batch)
        return refused

    def _insert_notes(self, cursor: Cursor, batch: CommitBatch) -> None:
        rows = note_rows(batch.run_id, batch.first_note, batch.notes)
        for chunk in _chunks(rows):
            # A transaction that is tried again may have been committed before.
            sql = f"{_insertion('notes', _NOTE, len(chunk))} ON CONFLICT DO NOTHING"
            self._execute(cursor, sql, list(chain(*chunk)))
        for chunk in _chunks(batch.replaced):
            sql = f"DELETE FROM notes WHERE run_id = ? AND position IN ({_marks(len(chunk))})"
            self._execute(cursor, sql, [batch.run_id, *chunk])

    def _lock(self, cursor: Cursor, of: Iterable[str]) -> dict[tuple[str, int], int]:
        """Lock the leases of runs; return the last position of each, by run id and token."""
        claims: dict[tuple[str, int], int] = {}
        # In one order, so that two processes that lock rows never wait for each other.
        run_ids = sorted(of)
        for chunk in _chunks(_padded(run_ids)):
            self._execute(
                cursor,
                f"SELECT l.run_id, l.token, {_LAST_OF_LEASE} FROM leases l WHERE l.run_id IN "
                f"({_marks(len(chunk))}) ORDER BY l.run_id{{lock}}",
                chunk,
            )
            claims.update(((run_id, token), last) for run_id, token, last in cursor.fetchall())
        return claims

    def _insert(self, cursor: Cursor, rows: Sequence[EventRow]) -> None:
        # Few statements: after each one this thread waits for the interpreter's lock.
        for chunk in _chunks(rows):
            values = [(*row, event_checksum(*row)) for row in chunk]
            sql = _insertion("events", _EVENT, len(chunk))
            self._execute(cursor, sql, list(chain(*values)))

    def _finish(self, cursor: Cursor, batch: CommitBatch) -> None:
        change = batch.change
        if change and change.started_at is not None:
            run_id, pipeline, started_at = batch.run_id, change.pipeline or "", change.started_at
            others = change.parent, change.parent_step, change.forked_from
            checksum = run_checksum(run_id, pipeline, started_at, *others)
            run = run_id, pipeline, change.status, started_at, change.position, checksum, *others
            self._execute(cursor, _BEGIN_RUN, run)
        elif change:
            changed = change.status, change.position, change.unpaused_at, batch.run_id
            self._execute(cursor, _CHANGE_RUN, changed)
        if batch.release:
            self._execute(cursor, _RELEASE, (batch.run_id, batch.token))

    def events(self, run_id: str, after: int = 0) -> list[tuple[int, Event]]:
        """Return the events of a run after a position, each with its position, in order.

        Raises:
            RunUnreadableError: A row is damaged or missing, or a newer asyncflow wrote it.
        """
        with self.database.reading() as cursor:
            self._execute(cursor, _EVENTS, (run_id, after))
            rows = cursor.fetchall()
        return [
            (position, self._event(run_id, position, row))
            for position, row in enumerate(rows, after + 1)
        ]

    def _event(self, run_id: str, position: int, row: Sequence[Any]) -> Event:
        if row[1] != position:
            raise RunUnreadableError(
                self.database.name, run_id, f"in its place is event {row[1]!r}", position
            )
        try:
            return event_of(row)
        # Only our decoding is in here. In a damaged row anything can be of any type, so it can
        # raise anything: a list of the errors would not be complete.
        except Exception as error:
            raise RunUnreadableError(
                self.database.name, run_id, describe_fully(error), position
            ) from error

    def last_positions(self, run_id: str) -> tuple[int, int]:
        """Return the positions of the last event and the last note of a run, 0 if it has none.

        Raises:
            RunUnreadableError: The run has no events, or a row is damaged.
        """
        with self.database.reading() as cursor:
            self._execute(cursor, _LAST, (run_id, run_id, run_id))
            ((position, runs, note),) = cursor.fetchall()
        if not isinstance(position, int):
            problem = f"the position of an event is {position!r}"
            raise RunUnreadableError(self.database.name, run_id, problem)
        if runs and not position:
            raise RunUnreadableError(self.database.name, run_id, "its events are missing")
        return position, note

    def notes(self, run_id: str, where: NoteFilter, page: int) -> list[Sequence[Any]]:
        """Return rows of notes that a filter selects, ``text`` aside, at most a page of them.

        They are those of the lowest positions, or with ``newest`` those of the highest ones, in the
        order of the filter.
        """
        conditions, values = where.conditions()
        columns = [*_NOTE]
        if not where.data:
            columns[columns.index("data")] = "NULL"
        sql = (
            f"SELECT {', '.join(columns)} FROM notes WHERE run_id = ? AND {conditions} "
            f"ORDER BY position {'DESC' if where.newest else 'ASC'} LIMIT ?"
        )
        with self.database.reading() as cursor:
            self._execute(cursor, sql, [run_id, *values, page])
            return cursor.fetchall()

    def run(self, run_id: str) -> RunRow | None:
        """Return the row of a run; ``None`` if there is none."""
        rows = self._runs({"r.run_id = ?": [run_id]}, None)
        return rows[0] if rows else None

    def runs(self, where: RunFilter) -> list[RunRow]:
        """Return the runs that a filter selects, ``orphaned`` aside, which SQL can't tell."""
        return self._runs(self._conditions(where), where.limit)

    def _conditions(self, where: RunFilter) -> dict[str, Sequence[Any]]:
        before = where.before
        place = before if before is None or isinstance(before, tuple) else (before,)
        pipeline = None if where.pipeline is None else column_of(where.pipeline)
        parent = None if where.parent is None else column_of(where.parent)
        pattern = None if where.text is None else self.database.pattern(where.text)
        return {
            "r.status = ?": _some(where.status),
            "r.pipeline = ?": _some(pipeline),
            "r.parent = ?": _some(parent),
            "r.started_at >= ?": _some(where.since),
            _BEFORE[len(place or ())]: place or (),
            "(r.run_id {like} ? OR r.pipeline {like} ?)": _some(pattern) * 2,
        }

    def _runs(self, conditions: Mapping[str, Sequence[Any]], limit: int | None) -> list[RunRow]:
        where, values = _joined(conditions)
        sql = f"{_RUNS} WHERE {where} ORDER BY r.started_at DESC, r.run_id DESC"
        if limit is not None:
            sql, values = f"{sql} LIMIT ?", [*values, limit]
        with self.database.reading() as cursor:
            self._execute(cursor, sql, values)
            return [RunRow(*row) for row in cursor.fetchall()]

    def step_events(self, run_ids: Sequence[str]) -> dict[Any, list[Sequence[Any]]]:
        """Return the rows of the events of runs, those of items aside, by run and in their order.

        A long output is left out.
        """
        return self._brief([(_OF_STEPS, run_ids)])

    def brief_events(
        self,
        running: Sequence[str],
        ended: Sequence[str],
        failed: Sequence[str],
        interrupted: Sequence[str],
    ) -> dict[Any, list[Sequence[Any]]]:
        """Return rows of events that say briefly how runs stand, as `step_events` returns them.

        Args:
            running: Runs of which all events are wanted, those of items aside.
            ended: Runs whose starts are wanted: the first event, unless it is long, and those
                with which they were resumed.
            failed: Runs of which the first failure of a step is wanted, after the last resumption.
            interrupted: Runs of which the last event is wanted.
        """
        return self._brief(
            [
                (_OF_STEPS, running),
                (_STARTS, ended),
                (_FIRST_FAILURE, failed),
                (_LAST_CHANGE, interrupted),
            ]
        )

    def _brief(self, wanted: Iterable[tuple[str, Sequence[str]]]) -> dict[Any, list[Sequence[Any]]]:
        parts: list[tuple[str, list[str]]] = []
        for source, run_ids in wanted:
            for chunk in _chunks(_padded(run_ids)):
                sql = f"SELECT {_BRIEF} FROM {source}".replace("{ids}", _marks(len(chunk)))
                parts.append((sql, chunk))
        rows: list[Sequence[Any]] = []
        with self.database.reading() as cursor:
            for at in range(0, len(parts), _PARTS):
                several = parts[at : at + _PARTS]
                sql = " UNION ALL ".join(sql for sql, _ in several)
                self._execute(cursor, sql, [*chain(*(chunk for _, chunk in several))])
                rows += cursor.fetchall()
        found: dict[Any, list[Sequence[Any]]] = {}
        for row in sorted(rows, key=_position_of):
            found.setdefault(row[0], []).append(row)
        return found

    def counts(self, where: RunFilter) -> list[tuple[Any, int]]:
        """Return how many of the runs that a filter selects have which status in their row."""
        return self._aggregate(_COUNTS, where)

    def leases_of_running(self, where: RunFilter) -> list[tuple[Any, Any]]:
        """Return the lease holder and the process of each run that has not ended, as `RunRow`."""
        return self._aggregate(_RUNNING, replace(where, status="running"))

    def _aggregate(self, sql: str, where: RunFilter) -> list[Any]:
        conditions, values = _joined(self._conditions(where))
        with self.database.reading() as cursor:
            self._execute(cursor, sql.replace("{where}", conditions), values)
            return cursor.fetchall()

    def pipelines(self) -> list[Any]:
        """Return the names of the pipelines that have runs, as their columns have them."""
        with self.database.reading() as cursor:
            self._execute(cursor, _PIPELINES)
            return [name for (name,) in cursor.fetchall()]

    def ended(self, age_s: float, status: str | None) -> list[tuple[str, int]]:
        """Return the runs that ended so long ago and have no owner, with how many rows they have.

        Without a status, free leases that have no run are among them.
        """
        sql, values = (_ENDED, [age_s]) if status is None else (_ENDED_AS, [age_s, status])
        with self.database.reading() as cursor:
            self._execute(cursor, f"{sql} ORDER BY r.run_id", values)
            rows = cursor.fetchall()
            if status is None:
                self._execute(cursor, _STRAY)
                rows += cursor.fetchall()
        # A damaged position is of any type; these serve to divide the runs into transactions.
        return [(id_, at if isinstance(at, int) else 0) for id_, at in rows]

    def prune(self, run_ids: Sequence[str], age_s: float) -> int:
        """Delete runs that `ended` returned, if it still would; return how many that were."""
        with self.database.transaction() as cursor:
            # One statement locks them, the next one sees how they have changed before that.
            self._lock(cursor, run_ids)
            deleted = 0
            for chunk in _chunks(run_ids):
                sql = f"{_DELETABLE} AND l.run_id IN ({_marks(len(chunk))})"
                self._execute(cursor, sql, [age_s, *chunk])
                deleted += self._delete(cursor, [run_id for (run_id,) in cursor.fetchall()])
        return deleted

    def forget(self, run_id: str, claim: Claim) -> None:
        """Delete a run if it exists.

        Raises:
            RunAlreadyActiveError: It has an owner, whose claim is not void.
        """
        with self.database.transaction() as cursor:
            self._execute(cursor, _LEASE, (run_id,))
            for lease in cursor.fetchall():
                _check_free(run_id, lease, claim)
            self._delete(cursor, [run_id])

    def _delete(self, cursor: Cursor, run_ids: Sequence[str]) -> int:
        deleted = 0
        for chunk in _chunks(run_ids):
            for table in ("events", "notes", "leases", "runs"):
                sql = f"DELETE FROM {table} WHERE run_id IN ({_marks(len(chunk))})"
                self._execute(cursor, sql, chunk)
            deleted += cursor.rowcount
        return deleted


def _check_free(run_id: str, lease: Sequence[Any], claim: Claim) -> None:
    if _is_owned(lease, claim):
        raise RunAlreadyActiveError(run_id, lease[0])


def _is_owned(lease: Sequence[Any], claim: Claim) -> bool:
    owner, process, unexpired, _ = lease
    return owner is not None and bool(unexpired) and not claim.is_void(process)


def _position_of(row: Sequence[Any]) -> int:
    position = row[1]
    return position if isinstance(position, int) else 0  # a damaged one is of any type


def _joined(conditions: Mapping[str, Sequence[Any]]) -> tuple[str, list[Any]]:
    """Return those conditions that have values as one, and all values."""
    where = " AND ".join(condition for condition, values in conditions.items() if values)
    return where or "1 = 1", [*chain(*conditions.values())]


def _some(value: Any) -> list[Any]:
    return [] if value is None else [value]


def _chunks(rows: Sequence[Any]) -> Iterator[list[Any]]:
    """Split rows into lengths that are powers of two, so that few statements are compiled."""
    rest, left, size = iter(rows), len(rows), _CHUNK
    while left:
        while size > left:
            size //= 2
        yield list(islice(rest, size))
        left -= size


def _padded(run_ids: Sequence[str]) -> list[str]:
    """Repeat the last id up to a length that `_chunks` does not split into other ones.

    So few statements have to be compiled.
    """
    count = len(run_ids)
    missing = (-count) % min(_CHUNK, 1 << max(0, count - 1).bit_length())
    return [*run_ids, *[*run_ids[-1:]] * missing]


@cache
def _insertion(table: str, columns: tuple[str, ...], count: int) -> str:
    rows = ", ".join([f"({_marks(len(columns))})"] * count)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {rows}"


def _marks(count: int) -> str:
    return ", ".join(["?"] * count)
