"""The SQL statements of a journal about single runs: their leases, what is written, their events.

They are the same for every database, as are those that read many runs
(`asyncflow.journal._read.run_lists`, `asyncflow.journal._read.overviews`).

- `runs` has one row per run, written with its first event. Its status follows the events.
- `run_attributes` has one row per attribute of a run (`asyncflow.journal._write.attributes`).
- `leases` says who may write to a run. A claim raises the run's `token`, and every transaction that
  writes events checks the token, so an owner that stood still writes nothing after another one has
  claimed the run. A row stays when its owner releases it, so that tokens only grow. `cancel_token`
  equals the token while the run is asked to stop, and only then `cancel_reason` counts. A claim
  takes the request over, since the owner that was asked may have died; a release drops it, unless
  the run may continue. Times are by the database's clock.
- `keys` has one row per key of a pipeline (`asyncflow.journal._write.keys`), and `queued` one per
  run that waits to start (`asyncflow.journal._write.queue`).
- `events` has one row per event: an `asyncflow.journal._database.tables.EventRow`.
- `signals` has one row per signal of a run, by its name: the value that was sent first, or that
  its deadline has expired. The sender writes the row; the owner of the run makes it an event.
- `notes` has one row per note: what steps say, which no replay reads. It is a row of an event, with
  the level of a log record.
- `checkpoints` has the latest one of each step and item that has saved one and not succeeded
  (`asyncflow.journal._write.checkpoints`).
- `summaries` has what lists say of a run whose latest segment has ended
  (`asyncflow.journal._write.summaries`).
- `pools` and `shares` say how many slots processes have of pools that they share, and until when
  these are paused (`asyncflow.journal._write.shares`).
- `cached_results` names the event with the latest success of each call of a step with ``cache_ms``
  (`asyncflow.journal._write.cached`).

What is read may be damaged. A row of `events` is checked when it is read, and a run whose rows
can't be read is a `RunUnreadableError`. Values of the other tables may be of any type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from asyncflow._core.errors import RunAlreadyActiveError, RunUnreadableError
from asyncflow._core.history.results import Key, RunStatus, why_cancelled
from asyncflow._core.running.checkpoints import StoredCall
from asyncflow._core.running.step_cache import CachedResult
from asyncflow._core.text import describe_fully
from asyncflow.events import Event, NoteEvent, RunFinished, RunInterrupted
from asyncflow.journal._codec.events import (
    column_of,
    event_of,
    from_column,
    row_of,
    run_checksum,
    status_column,
)
from asyncflow.journal._database.sql import (
    FREE,
    NOW,
    Cursor,
    Database,
    Parameters,
    Statement,
    changing,
    chunks,
    marks,
    padded,
)
from asyncflow.journal._database.tables import EVENT_COLUMNS, EventRow
from asyncflow.journal._write.cached import SELECT_CACHED, CacheLookup, Wanted, cached_of, wanted_by
from asyncflow.journal._write.checkpoints import (
    SELECT_CALL,
    SELECT_CHECKPOINTS,
    Saved,
    call_of,
    key_of_call,
    saved_of,
)
from asyncflow.journal._write.keys import (
    CONTINUES,
    FENCE,
    QUEUED,
    CancelCause,
    LockedKeys,
    RunKey,
    UnlockedKeysError,
    check_line,
    forget_unused,
    is_owned,
    key_of,
    replacement,
)
from asyncflow.journal._write.notes import NoteFilter, note_rows
from asyncflow.journal._write.signals import waiting, wake
from asyncflow.journal._write.summaries import summary_of

T = TypeVar("T")


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
    """Set by the first event, as the next four are; ``None`` for an empty text."""
    parent_step: str | None = None
    rerun_of: str | None = None
    label: str | None = None
    key: str | None = None
    attributes: str | None = None
    """As JSON."""
    cause: str | None = None
    """What has interrupted the run, if something has."""
    waits: dict[str, float | None] | None = None
    """The signals that the run waits for, if its segment has ended for that, each with when its
    deadline expires, in seconds since the epoch."""
    asks: int | None = None
    """Then, what its pipeline asks for: `asks_of` its signals."""
    now: float | None = None
    """The present in virtual time."""


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
    statements: Sequence[Statement] = ()
    """What changes in other tables, in this order. A transaction may be tried again, so each
    leads to the same if it was executed before."""
    remembered: Sequence[Statement] = ()
    """What lets results be found, each with the key as its first parameter."""


class Claim(NamedTuple):
    """The process that claims runs, and how."""

    owner: str
    process: str
    """A description of the process and of this claim, which no other claim has."""
    lease_s: float
    is_void: Callable[[str], bool]
    """Whether the claim of another owner is void: its process is provably dead, or gave it up."""
    key: RunKey | None = None
    """The key of the run if it is a new one."""
    takes_key: bool = True
    """Whether the run is to have its key. Without it, no step may start."""
    now: float | None = None
    """The present in virtual time."""


Refusals = dict[tuple[str, int], int | None]
"""For which claims nothing was written, each a run id and a token: with the position of the last
stored event, which is not the one that was committed last; or ``None`` for a lost lease."""


_PAGE = 500
"""How many rows of a long answer to read at a time."""

TABLES_OF_A_RUN = (
    *("events", "notes", "signals", "checkpoints", "summaries", "cached_results", "queued"),
    *("run_attributes", "leases", "runs"),
)
"""Those with rows of runs, in the order in which these are deleted."""

_NOTE = (*EVENT_COLUMNS, "level")
"""The columns of `notes`."""

_NEW_LEASE = "(?, CAST({now} * 1000 AS BIGINT), 0)"
_LEASES = (
    "SELECT l.owner, l.process, {valid}, l.cancel_token, "
    "(SELECT r.key FROM runs r WHERE r.run_id = l.run_id), l.token, l.run_id FROM leases l"
)
_KEY = 4
"""Where the key of the run is among these columns."""
_LEASE = f"{_LEASES} WHERE l.run_id = ?{{lock}}"
_CLAIM = (
    "UPDATE leases SET token = token + 1, owner = ?, process = ?, renewed_at = {now}, {expiry}, "
    "cancel_token = CASE WHEN cancel_token = token THEN token + 1 END WHERE run_id = ?"
)
_RENEW = "UPDATE leases SET renewed_at = {now}, {expiry} WHERE run_id = ? AND token = ?"
# The next owner reads what was sent with the history.
_RELEASE = (
    "UPDATE leases SET owner = NULL, process = NULL, expires_at = 0, signal_token = NULL, "
    "cancel_token = CASE WHEN EXISTS (SELECT 1 FROM runs r WHERE r.run_id = leases.run_id "
    f"AND {CONTINUES}) THEN cancel_token END WHERE run_id = ? AND token = ?"
)
# The first request gives the reason, as in `RunHandle.cancel`.
_REQUEST = (
    "UPDATE leases SET cancel_token = token, "
    "cancel_reason = CASE WHEN cancel_token = token THEN cancel_reason ELSE {reason} END, "
    "cancel_cause = CASE WHEN cancel_token = token THEN cancel_cause ELSE {cause} END"
)
_CANCEL = f"{_REQUEST.format(reason='?', cause='?')} WHERE run_id = ?"
_OF_OUTER = "(SELECT p.cancel_{} FROM leases p WHERE p.run_id = ?)"
_CANCEL_NESTED = (
    f"{_REQUEST.format(reason=_OF_OUTER.format('reason'), cause=_OF_OUTER.format('cause'))} "
    f"WHERE run_id IN (SELECT r.run_id FROM runs r WHERE r.parent = ? AND r.enqueued_at IS NULL "
    f"AND {CONTINUES})"
)
_END = (
    "UPDATE leases SET token = token + 1, owner = NULL, process = NULL, expires_at = 0, "
    "cancel_token = NULL, signal_token = NULL WHERE run_id = ?"
)
_FREE_KEY = (
    "UPDATE keys SET run_id = '' WHERE run_id = ? AND (pipeline, key) = "
    "(SELECT r.pipeline, r.key FROM runs r WHERE r.run_id = ?)"
)
_LATEST = "SELECT position, at_ms FROM events WHERE run_id = ? ORDER BY position DESC LIMIT 1"
_MAY_CONTINUE = f"SELECT 1 FROM runs r WHERE r.run_id = ? AND {CONTINUES}"
# The first condition is that of an index, which has little in it.
_CANCELLED = (
    "SELECT run_id, token, cancel_reason, cancel_cause FROM leases "
    "WHERE cancel_token IS NOT NULL AND cancel_token = token"
)
_BEGIN_RUN = (
    "INSERT INTO runs (run_id, pipeline, status, started_at, last_event, checksum, parent, "
    "parent_step, rerun_of, label, key, attributes, cause, updated_at) "
    f"VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, {NOW})"
)
_CHANGE_RUN = (
    f"UPDATE runs SET status = ?, cause = ?, last_event = ?, updated_at = {NOW}, "
    "paused_s = COALESCE(? - started_at, paused_s), waits = NULL, due_at = NULL, asks = NULL "
    "WHERE run_id = ?"
)
_OF_EVENTS = f"SELECT {', '.join(EVENT_COLUMNS)} FROM events WHERE run_id = ?"
_EVENTS = f"{_OF_EVENTS} AND position > ? ORDER BY position"
_EVENT = f"{_OF_EVENTS} AND position = ?"
_LAST = (
    "SELECT CAST(? AS TEXT), COALESCE((SELECT MAX(position) FROM events WHERE run_id = ?), 0), "
    "(SELECT COUNT(*) FROM runs WHERE run_id = ?), "
    "(SELECT COALESCE(cancel_reason, '') FROM leases WHERE run_id = ? AND cancel_token = token), "
    "(SELECT cancel_cause FROM leases WHERE run_id = ?), "
    # A damaged position must not prevent the next ones.
    f"COALESCE((SELECT MAX(position) FROM notes WHERE run_id = ? AND position < {1 << 53}), 0)"
)
_LAST_OF_LEASE = "(SELECT COALESCE(MAX(e.position), 0) FROM events e WHERE e.run_id = l.run_id)"
_LAST_NOTE = "(SELECT COALESCE(MAX(n.position), 0) FROM notes n WHERE n.run_id = l.run_id)"
# A process continues what was answered since: pruned, an accepted signal would be lost.
_WAS_ANSWERED = (
    f"EXISTS (SELECT 1 FROM signals s WHERE s.run_id = r.run_id AND s.sent_at > {NOW} - ?)"
)
_ENDED = (
    f"SELECT r.run_id, {_LAST_OF_LEASE} + {_LAST_NOTE} "
    "FROM leases l JOIN runs r ON r.run_id = l.run_id "
    f"WHERE {FREE} AND r.status NOT IN ('running', 'waiting') "
    f"AND r.updated_at <= {NOW} - ? AND NOT {_WAS_ANSWERED}"
)
# The next look of a process continues a waiting run that is due.
_ENDED_AS = _ENDED.replace(
    "r.status NOT IN ('running', 'waiting')",
    f"r.status = ? AND (r.due_at IS NULL OR r.due_at > {NOW}) AND NOT {QUEUED}",
)
_STRAY = (
    f"SELECT l.run_id, 0 FROM leases l WHERE {FREE} "
    "AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.run_id = l.run_id)"
)
_DELETABLE = (
    f"SELECT l.run_id FROM leases l WHERE {FREE} AND NOT EXISTS (SELECT 1 FROM runs r WHERE "
    f"r.run_id = l.run_id AND (r.status IN ('running', 'waiting') OR r.updated_at > {NOW} - ? "
    f"OR {_WAS_ANSWERED}))"
)
_DELETABLE_AS = _DELETABLE.replace(
    "r.status IN ('running', 'waiting')", f"r.status <> ? OR r.due_at <= {NOW} OR {QUEUED}"
)

# What `Service(keep=...)` deletes: no run that a service continues, and no nested run before that
# whose step has started it, which would run it again if it were resumed. One that has lost a
# resource is continued unless it is nested, which one that a step has enqueued is not.
_UNNEEDED = (
    f"{FREE} AND r.status NOT IN ('running', 'waiting') AND (r.cause IS NULL "
    "OR r.cause NOT IN ('drained', 'resource') OR (r.cause = 'resource' AND r.parent IS NOT NULL "
    "AND r.enqueued_at IS NULL)) "
    "AND NOT EXISTS (SELECT 1 FROM runs p WHERE p.run_id = r.parent) "
    f"AND r.updated_at <= {NOW} - ? AND NOT {_WAS_ANSWERED}"
)
# By their start, since no index has their end: what ended so long ago has started before.
_OLD = (
    f"SELECT r.run_id, {_LAST_OF_LEASE} + {_LAST_NOTE}, r.started_at "
    f"FROM runs r CROSS JOIN leases l WHERE l.run_id = r.run_id AND r.started_at <= {NOW} - ? "
    f"AND (r.started_at, r.run_id) > (?, ?) AND {_UNNEEDED} "
    "ORDER BY r.started_at, r.run_id LIMIT ?"
)
_DELETABLE_OLD = (
    "SELECT r.run_id FROM runs r JOIN leases l ON l.run_id = r.run_id "
    f"WHERE {_UNNEEDED} AND r.run_id IN"
)


class Store:
    """Executes the statements on one database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def together(self, read: Callable[[], T]) -> T:
        """Return what a call returns, whose reads are of one database."""

        def attempt() -> T:
            with self.database.reading():
                return read()

        return self.database.retry(attempt)

    def read(self, sql: str, parameters: Parameters = ()) -> list[Any]:
        """Return the rows that a SELECT finds."""

        def attempt() -> list[Any]:
            with self.database.reading() as cursor:
                self._execute(cursor, sql, parameters)
                return cursor.fetchall()

        return self.database.retry(attempt)

    def pages(self, sql: str, parameters: Parameters = ()) -> Iterator[list[Any]]:
        """Yield the rows that a SELECT finds, as of one moment, some at a time.

        So a long run is never there as rows, events and replay at once.
        """

        def begin() -> Cursor:
            with self.database.reading() as cursor:
                self._execute(cursor, sql, parameters)
                return cursor

        cursor = self.database.retry(begin)
        while True:
            with self.database.reading():  # what the driver raises is translated
                rows = cursor.fetchmany(_PAGE)
            if not rows:
                return
            yield rows

    def _execute(self, cursor: Cursor, sql: str, parameters: Parameters = ()) -> None:
        cursor.execute(self.database.translate(sql), parameters)

    def claim(self, wanted: Sequence[tuple[str, Claim]]) -> list[int | Exception]:
        """Claim runs, and return the token of each claim. It takes a request to cancel over.

        The answer for a run with another owner, whose claim is not void, or whose key another run
        has, is a `RunAlreadyActiveError`, and for one whose lease has a damaged row a
        `RunUnreadableError`.
        """
        keys = {claim.key for _, claim in wanted if claim.key is not None}
        while True:
            try:
                return self._claim_all(wanted, keys)
            except UnlockedKeysError as found:
                keys |= found.keys

    @changing
    def _claim_all(
        self,
        cursor: Cursor,
        wanted: Sequence[tuple[str, Claim]],
        keys: set[RunKey],
    ) -> list[int | Exception]:
        """Do the same if these keys are all that the runs have."""
        found: list[int | Exception] = []
        locked = LockedKeys(self.database, cursor, keys)
        leases = self.lock_leases(cursor, {run_id for run_id, _ in wanted} | locked.runs)
        wanted_keys = [self._key(cursor, leases, *each) for each in wanted]
        if unlocked := {key for key, _ in wanted_keys if key is not None} - keys:
            raise UnlockedKeysError(unlocked)
        for (run_id, claim), (key, is_new) in zip(wanted, wanted_keys, strict=True):
            try:
                if key is not None and is_new:
                    check_line(self.database, cursor, key, claim.now)
                token = self._claim(cursor, leases, run_id, claim, key, locked)
            except (RunAlreadyActiveError, RunUnreadableError) as error:
                found.append(error.with_traceback(None))  # or it would keep the others
            else:
                found.append(token)
                leases[run_id] = (claim.owner, claim.process, True, None, None, token, run_id)
        return found

    def lock_leases(self, cursor: Cursor, run_ids: Iterable[str]) -> dict[str, Sequence[Any]]:
        """Lock the leases of runs, which are made where there are none, and return them by run."""
        leases: dict[str, Sequence[Any]] = {}
        # In one order, so that two processes that lock leases never wait for each other.
        for chunk in chunks(sorted(run_ids)):
            self.make_leases(cursor, chunk)
            sql = f"{_LEASES} WHERE l.run_id IN ({marks(len(chunk))}) ORDER BY l.run_id{{lock}}"
            self._execute(cursor, sql, chunk)
            leases.update((lease[-1], lease) for lease in cursor.fetchall())
        return leases

    def take_unused(self, cursor: Cursor, run_id: str, lease: Sequence[Any], claim: Claim) -> None:
        """Let no earlier owner of a locked lease begin the run, which is not there.

        Raise `RunAlreadyActiveError` if a process is about to begin it.
        """
        _check_free(run_id, lease, claim)
        if lease[0] is not None:
            self._execute(cursor, FENCE, (run_id,))

    def _key(
        self, cursor: Cursor, leases: Mapping[str, Sequence[Any]], run_id: str, claim: Claim
    ) -> tuple[RunKey | None, bool]:
        """Return the key that a run is to have, and whether it is new and has that of its claim."""
        if not claim.takes_key or (claim.key is None and leases[run_id][_KEY] is None):
            return None, False
        try:
            return key_of(self.database, cursor, run_id), False
        except LookupError:
            return claim.key, True

    def _claim(
        self,
        cursor: Cursor,
        leases: Mapping[str, Sequence[Any]],
        run_id: str,
        claim: Claim,
        key: RunKey | None,
        locked: LockedKeys,
    ) -> int:
        lease = leases[run_id]
        _, process, unexpired, cancel_token, *_ = lease
        if process == claim.process and unexpired:  # this very claim was committed
            return self._token_of(run_id, lease)
        _check_free(run_id, lease, claim)
        token = self._token_of(run_id, lease) + 1
        if key is not None:
            replacing = locked.replaced_by(key, run_id, leases, claim)
            if replacing is not None:
                self.end_replaced(cursor, locked.had_by(key), replacing, claim.now)
                locked.free(key)
            locked.take(key, run_id, leases, claim)
        self._execute(cursor, _CLAIM, (claim.owner, claim.process, claim.lease_s, run_id))
        if cancel_token == token - 1:
            self._cancel_nested(cursor, run_id)
        return token

    def make_leases(self, cursor: Cursor, run_ids: Sequence[str]) -> None:
        """Make the rows of the leases of a few runs, where there are none, in a transaction."""
        values = ", ".join([_NEW_LEASE] * len(run_ids))
        # Not DO NOTHING: in PostgreSQL, another transaction could delete the row that is there.
        sql = (
            f"INSERT INTO leases (run_id, token, expires_at) VALUES {values} "
            "ON CONFLICT (run_id) DO UPDATE SET token = leases.token"
        )
        self._execute(cursor, sql, run_ids)

    def _token_of(self, run_id: str, lease: Sequence[Any]) -> int:
        token = lease[-2]
        if not isinstance(token, int):
            raise RunUnreadableError(self.database.name, run_id, "the row of its lease is damaged")
        return token

    @changing
    def renew(
        self, cursor: Cursor, claims: Iterable[tuple[str, int]], lease_s: float
    ) -> set[tuple[str, int]]:
        """Renew the leases of claims, each a run id and a token, and return the lost ones."""
        lost = set()
        for run_id, token in sorted(claims):
            self._execute(cursor, _RENEW, (lease_s, run_id, token))
            if not cursor.rowcount:
                lost.add((run_id, token))
        return lost

    @changing
    def release(self, cursor: Cursor, run_id: str, token: int) -> None:
        """Release the lease of a claim if the claim is still valid."""
        self._execute(cursor, _RELEASE, (run_id, token))

    @changing
    def cancel(self, cursor: Cursor, run_id: str, reason: str, claim: Claim) -> int | None:
        """Request the cancellation of a run from its owner, or from the next one if it has none.

        Return the latest token; ``None`` if the run has ended. An empty reason is none.
        """
        self._execute(cursor, _LEASE, (run_id,))
        lease = cursor.fetchone()
        if lease is None:
            return None
        token, has_owner = self._token_of(run_id, lease), is_owned(lease, claim)
        if not has_owner:
            self._execute(cursor, _MAY_CONTINUE, (run_id,))
            if cursor.fetchone() is None:
                return None
        self.request_stop(cursor, run_id, reason, "cancelled")
        if not has_owner:
            self._cancel_nested(cursor, run_id)
        # If its segment has just ended, the next process that continues it ends it.
        self._execute(cursor, *wake(run_id))
        return token

    def request_stop(self, cursor: Cursor, run_id: str, reason: str, cause: CancelCause) -> None:
        """Request that a run stops whose lease is locked."""
        self._execute(cursor, _CANCEL, (column_of(reason), cause, run_id))

    def end_replaced(self, cursor: Cursor, run_id: str, by: str, now: float | None) -> None:
        """End a run that no process has, whose lease is locked, since another one replaces it.

        ``now`` is the present in virtual time. Raise `RunUnreadableError` if the run is damaged;
        then it is as it was.
        """
        self._execute(cursor, _LATEST, (run_id,))
        latest = cursor.fetchone()
        if latest is None:
            raise RunUnreadableError(self.database.name, run_id, "its events are missing")
        position, at_ms = latest
        reason = replacement(by)
        self.request_stop(cursor, run_id, reason, "replaced")
        self._cancel_nested(cursor, run_id)
        self._execute(cursor, _END, (run_id,))
        why = why_cancelled(reason, "replaced")
        finished = RunFinished(at_ms, RunStatus.INTERRUPTED, why.reason, why.cause)
        events: list[Event] = [RunInterrupted(at_ms, why.reason, why.cause), finished]
        rows = [row_of(run_id, position + at, event) for at, event in enumerate(events, 1)]
        last = position + len(rows)
        self.insert(cursor, rows)
        self._execute(cursor, *summary_of(run_id, last, finished, None, None))
        change = Change(status_column(finished.status), last, cause=why.cause, now=now)
        self.finish(cursor, CommitBatch(run_id, 0, rows, change, release=False))

    def _cancel_nested(self, cursor: Cursor, run_id: str) -> None:
        """Do the same for the nested runs of a run whose steps can't stop them any more."""
        self._execute(cursor, _CANCEL_NESTED, (run_id, run_id, column_of(run_id)))

    def cancelled(self) -> list[tuple[str, int, str, CancelCause]]:
        """Return the claims that were asked to stop: run id, token, reason and cause of each."""
        return [
            (run_id, token, _reason_of(why), _cause_of(cause))
            for run_id, token, why, cause in self.read(_CANCELLED)
        ]

    def write(self, take: Callable[[], Sequence[CommitBatch]]) -> Refusals:
        """Write batches in one transaction; return the claims for which nothing was written.

        ``take`` returns the batches. It is called when the transaction has begun, which may take
        long.
        """
        return self._write([], take)

    @changing
    def _write(
        self,
        cursor: Cursor,
        taken: list[CommitBatch],
        take: Callable[[], Sequence[CommitBatch]],
    ) -> Refusals:
        """Write what was taken, or else take it.

        What is there already was committed, but its answer was lost.
        """
        is_repeated = bool(taken)
        taken += () if is_repeated else take()
        claims = self._lock(cursor, {batch.run_id for batch in taken})
        written = {id(each) for each in taken if is_repeated and self._has(cursor, each)}
        refused: Refusals = {}
        owned = []
        for batch in taken:
            claim = batch.run_id, batch.token
            last = claims.get(claim)
            # Who has claimed the run since may have done so after this release was committed.
            # What stores something, such as what a call returned, may be missing instead.
            releases_only = batch.release and not (batch.rows or batch.statements)
            has_released = is_repeated and releases_only and last is None
            if id(batch) in written or (written and not batch.rows) or has_released:
                continue
            if last is None or (batch.rows and batch.rows[0].position != last + 1):
                refused[claim] = last
            else:
                owned.append(batch)
        self.insert(cursor, [row for batch in owned for row in batch.rows])
        for batch in owned:
            if batch.notes:
                self._insert_notes(cursor, batch)
            for statement in batch.statements:
                self._execute(cursor, *statement)
            self.finish(cursor, batch)
        # Runs share these rows: in one order, so that two processes never wait for each other.
        remembered = [each for batch in owned for each in batch.remembered]
        for statement in sorted(remembered, key=_key_of):
            self._execute(cursor, *statement)
        return refused

    def _has(self, cursor: Cursor, batch: CommitBatch) -> bool:
        """Whether the last event of a batch is stored."""
        if not batch.rows:
            return False
        row = batch.rows[-1]
        self._execute(cursor, _EVENT, (row.run_id, row.position))
        # Another owner may have written another event there.
        return bool(cursor.fetchone() == row)

    def _insert_notes(self, cursor: Cursor, batch: CommitBatch) -> None:
        rows = note_rows(batch.run_id, batch.first_note, batch.notes)
        for chunk in chunks(rows):
            # It may have been committed before.
            sql = f"{_insertion('notes', _NOTE, len(chunk))} ON CONFLICT DO NOTHING"
            self._execute(cursor, sql, list(chain(*chunk)))
        for chunk in chunks(batch.replaced):
            sql = f"DELETE FROM notes WHERE run_id = ? AND position IN ({marks(len(chunk))})"
            self._execute(cursor, sql, [batch.run_id, *chunk])

    def _lock(self, cursor: Cursor, of: Iterable[str]) -> dict[tuple[str, int], int]:
        """Lock the leases of runs; return the last position of each, by run id and token."""
        claims: dict[tuple[str, int], int] = {}
        # In one order, so that two processes that lock rows never wait for each other.
        run_ids = sorted(of)
        for chunk in chunks(padded(run_ids)):
            self._execute(
                cursor,
                f"SELECT l.run_id, l.token, {_LAST_OF_LEASE} FROM leases l WHERE l.run_id IN "
                f"({marks(len(chunk))}) ORDER BY l.run_id{{lock}}",
                chunk,
            )
            claims.update(((run_id, token), last) for run_id, token, last in cursor.fetchall())
        return claims

    def insert(self, cursor: Cursor, rows: Sequence[EventRow]) -> None:
        # Few statements: after each one this thread waits for the interpreter's lock.
        for chunk in chunks(rows):
            sql = _insertion("events", EVENT_COLUMNS, len(chunk))
            self._execute(cursor, sql, list(chain(*chunk)))

    def finish(self, cursor: Cursor, batch: CommitBatch) -> None:
        change = batch.change
        if change and change.started_at is not None:
            run_id, pipeline, started_at = batch.run_id, change.pipeline or "", change.started_at
            others = (
                *(change.parent, change.parent_step, change.rerun_of, change.label),
                *(change.key, change.attributes),
            )
            checksum = run_checksum(run_id, pipeline, started_at, *others)
            run = run_id, pipeline, change.status, started_at, change.position, checksum, *others
            self._execute(cursor, _BEGIN_RUN, (*run, change.cause, change.now))
        elif change:
            changed = change.status, change.cause, change.position, change.now, change.unpaused_at
            self._execute(cursor, _CHANGE_RUN, (*changed, batch.run_id))
        if change and change.waits:
            self._execute(cursor, *waiting(batch.run_id, change.waits, change.asks))
        if batch.release:
            self._execute(cursor, _RELEASE, (batch.run_id, batch.token))

    def events(self, run_id: str, after: int = 0) -> Iterator[Event]:
        """Yield the events of a run after a position, in order, as of one moment.

        Raise `RunUnreadableError` if a row is damaged or missing, or a newer asyncflow wrote it.
        """
        position = after
        for rows in self.pages(_EVENTS, (run_id, after)):
            for row in rows:
                position += 1
                yield self._event(run_id, position, row)

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

    def saved(self, run_id: str) -> Saved:
        """Return what the steps and items of a run have saved."""
        rows = self.read(SELECT_CHECKPOINTS, (run_id,))
        return saved_of(self.database.name, run_id, rows)

    def calls(self, wanted: Sequence[tuple[str, Key, str]]) -> list[StoredCall | None]:
        """Return what calls have returned, each of a run, of a step or item, and with a name."""
        found = [(each[0], self.read(SELECT_CALL, key_of_call(*each))) for each in wanted]
        return [call_of(self.database.name, run_id, rows) for run_id, rows in found]

    def cached_all(self, lookups: Sequence[CacheLookup]) -> list[CachedResult | None]:
        """Return the success that each of some lookups leads to, if there is one."""
        found = {now: self.cached(wanted, now) for now, wanted in wanted_by(lookups).items()}
        return [found[each.now].get(each.key) for each in lookups]

    def cached(self, wanted: Wanted, now: float | None) -> dict[str, CachedResult]:
        """Return the successes with some keys that are not too old, by key.

        ``now`` is the present in virtual time.
        """
        rows: list[Sequence[Any]] = []
        for chunk in chunks(padded(list(wanted))):
            sql = SELECT_CACHED.replace("{keys}", marks(len(chunk)))
            rows += self.read(sql, [now, *chunk])
        return cached_of(self.database.name, wanted, rows)

    def last_positions(
        self, run_ids: Sequence[str]
    ) -> dict[str, tuple[int, int, str | None, CancelCause] | RunUnreadableError]:
        """Return the positions of the last event and note of runs, and why each must stop, if so.

        A position is 0 if there is none. The answer for a run that has no events, or a damaged row,
        is a `RunUnreadableError`.
        """
        rows: list[Sequence[Any]] = []
        for chunk in chunks(padded(run_ids)):
            sql = " UNION ALL ".join([_LAST] * len(chunk))
            rows += self.read(sql, [run_id for run_id in chunk for _ in range(6)])
        return {run_id: self._last_of(run_id, *row) for run_id, *row in rows}

    def _last_of(
        self, run_id: str, position: Any, runs: int, reason: Any, cause: Any, note: int
    ) -> tuple[int, int, str | None, CancelCause] | RunUnreadableError:
        if not isinstance(position, int):
            problem = f"the position of an event is {position!r}"
        elif runs and not position:
            problem = "its events are missing"
        else:
            why = None if reason is None else _reason_of(reason)
            return position, note, why, _cause_of(cause)
        return RunUnreadableError(self.database.name, run_id, problem)

    def notes(self, run_id: str, where: NoteFilter, page: int) -> list[Sequence[Any]]:
        """Return rows of notes that a filter selects but for ``text``, at most a page of them.

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
        return self.read(sql, [run_id, *values, page])

    def streamed(
        self, run_id: str, step: str | None, after: int, limit: int
    ) -> list[Sequence[Any]]:
        """Return the first rows of notes with values that were streamed after a position."""
        of_step, values = ("", []) if step is None else (" AND step = ?", [column_of(step)])
        sql = (
            f"SELECT {', '.join(_NOTE)} FROM notes WHERE run_id = ? AND position > ? "
            f"AND kind = 'StepStreamed'{of_step} ORDER BY position LIMIT ?"
        )
        return self.read(sql, [run_id, after, *values, limit])

    def ended(self, age_s: float, status: str | None, now: float | None) -> list[tuple[str, int]]:
        """Return the runs that ended so long ago and have no owner, with how many rows they have.

        Without a status, free leases that have no run are among them. ``now`` is the present in
        virtual time.
        """
        sql, values = (_ENDED, []) if status is None else (_ENDED_AS, [status, now])
        rows = self.read(f"{sql} ORDER BY r.run_id", [*values, now, age_s, now, age_s])
        if status is None:
            rows += self.read(_STRAY)
        # A damaged position is of any type; these serve to divide the runs into transactions.
        return [(id_, at if isinstance(at, int) else 0) for id_, at in rows]

    @changing
    def prune(
        self,
        cursor: Cursor,
        run_ids: Sequence[str],
        age_s: float,
        status: str | None,
        now: float | None,
    ) -> int:
        """Delete runs that `ended` returned, if it still would; return how many that were."""
        sql, values = (_DELETABLE, []) if status is None else (_DELETABLE_AS, [status, now])
        # One statement locks them, the next one sees how they have changed before that.
        self._lock(cursor, run_ids)
        deleted = 0
        for chunk in chunks(run_ids):
            of_chunk = f"{sql} AND l.run_id IN ({marks(len(chunk))})"
            self._execute(cursor, of_chunk, [*values, now, age_s, now, age_s, *chunk])
            deleted += self._delete(cursor, [run_id for (run_id,) in cursor.fetchall()])
        return deleted

    def unneeded(
        self, age_s: float, after: tuple[float, str], limit: int, now: float | None
    ) -> list[tuple[str, int, float]]:
        """Return the runs that ended so long ago and that no service needs any more.

        They are a page, behind a place in the order of their starts; each with how many rows it
        has, and its start. ``now`` is the present in virtual time.
        """
        rows = self.read(_OLD, [now, age_s, *after, now, age_s, now, age_s, limit])
        return [(id_, at if isinstance(at, int) else 0, start) for id_, at, start in rows]

    @changing
    def prune_unneeded(
        self, cursor: Cursor, run_ids: Sequence[str], age_s: float, now: float | None
    ) -> int:
        """Delete runs that `unneeded` returned, if it still would; return how many that were."""
        self._lock(cursor, run_ids)  # as in `prune`
        deleted = 0
        for chunk in chunks(run_ids):
            sql = f"{_DELETABLE_OLD} ({marks(len(chunk))})"
            self._execute(cursor, sql, [now, age_s, now, age_s, *chunk])
            deleted += self._delete(cursor, [run_id for (run_id,) in cursor.fetchall()])
        return deleted

    @changing
    def forget_keys(self, cursor: Cursor) -> bool:
        """Delete some keys whose run is gone; return whether there may be more."""
        return forget_unused(self.database, cursor)

    @changing
    def forget(self, cursor: Cursor, run_id: str, claim: Claim) -> None:
        """Delete a run if it exists, and free its key.

        Raise `RunAlreadyActiveError` if it has an owner, whose claim is not void.
        """
        # A key is locked before a lease. Else a new run of this id seemed to have it at first.
        self._execute(cursor, _FREE_KEY, (run_id, run_id))
        self._execute(cursor, _LEASE, (run_id,))
        for lease in cursor.fetchall():
            _check_free(run_id, lease, claim)
        self._delete(cursor, [run_id])

    def _delete(self, cursor: Cursor, run_ids: Sequence[str]) -> int:
        deleted = 0
        for chunk in chunks(run_ids):
            for table in TABLES_OF_A_RUN:
                sql = f"DELETE FROM {table} WHERE run_id IN ({marks(len(chunk))})"
                self._execute(cursor, sql, chunk)
            deleted += cursor.rowcount
        return deleted


def _key_of(statement: Statement) -> Any:
    return statement.parameters[0]


def _cause_of(column: Any) -> CancelCause:
    return "replaced" if column == "replaced" else "cancelled"


def _reason_of(column: Any) -> str:
    """Return the reason of a request to stop; empty if there is none, or if it is damaged."""
    with suppress(AttributeError, TypeError, ValueError):
        return from_column(column)
    return ""


def _check_free(run_id: str, lease: Sequence[Any], claim: Claim) -> None:
    if is_owned(lease, claim):
        raise RunAlreadyActiveError(run_id, lease[0])


@cache
def _insertion(table: str, columns: tuple[str, ...], count: int) -> str:
    rows = ", ".join([f"({marks(len(columns))})"] * count)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {rows}"
