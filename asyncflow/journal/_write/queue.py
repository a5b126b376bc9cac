"""The SQL statements about runs that wait to start: they are stored, and become due.

Such a run has the events `RunStarted` and `RunFinished`, which says that it waits, and a row of
`queued`. Its start is a resumption, which deletes that row in its transaction. So after a crash at
any point it is queued, or started.

- A run is in line from when it is due. The line is by that time, then by when a run was stored. A
  run that is not due holds up no other one.
- The runs of a key start one after the other, so a poll asks only for the first of them.
  ``keys.due_at`` is not later than the time at which that one is due, and may be too early: the
  start and the end of a run lock its lease, and no key. A poll that finds it too early corrects it.
  So a poll costs the same however many runs wait.
- A row with a key is inserted under the lock of the key. The owner of the run deletes it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

from asyncflow.journal._codec.events import column_of, from_column
from asyncflow.journal._database.sql import FREE, NOW, Cursor, Statement, changing
from asyncflow.journal._write.keys import (
    CONTINUES,
    FENCE,
    QUEUED,
    CancelCause,
    LockedKeys,
    RunKey,
    first_in_line,
    is_owned,
    replacement,
    waits_already,
)

if TYPE_CHECKING:
    from asyncflow.journal._write.store import Claim, CommitBatch, Store


_NOW = f"(SELECT {NOW})"
"""The present, evaluated once a statement: an index finds what is earlier or later."""
_FIRST_OF_KEY = (
    "(SELECT h.run_id FROM queued h WHERE h.pipeline = {of}.pipeline AND h.key = {of}.key "
    "ORDER BY h.due_at, h.seq LIMIT 1)"
)
# In this order: most runs that have a key for long must be continued, whoever has their lease, and
# SQLite asks Python whether a lease is valid.
_HOLDER = (
    "(SELECT r.run_id FROM runs r LEFT JOIN leases l ON l.run_id = r.run_id "
    "WHERE r.run_id = k.run_id AND r.key = k.key AND r.pipeline = k.pipeline "
    f"AND (({CONTINUES} AND (l.cancel_token IS NULL OR l.cancel_token <> l.token) "
    f"AND NOT {QUEUED}) OR NOT {FREE}))"
)
"""The run that has a key ``k``, as far as SQL can tell; ``NULL`` if the key is free."""
_HAS_PROCESS = f"EXISTS (SELECT 1 FROM leases l WHERE l.run_id = k.run_id AND NOT {FREE})"
"""Whether a process has the run that had a key ``k`` last, as far as SQL can tell."""
_IS_REPLACED = (
    "EXISTS (SELECT 1 FROM queued x WHERE x.pipeline = k.pipeline AND x.key = k.key "
    f"AND x.replaces = 1 AND x.due_at <= {_NOW})"
)
_UNCLAIMED = f"NOT EXISTS (SELECT 1 FROM leases l WHERE l.run_id = q.run_id AND NOT {FREE})"
_COLUMNS = "q.run_id, q.pipeline, q.key, q.due_at, q.seq, q.replaces, q.checksum"
_DUE_WITHOUT_KEY = (
    f"SELECT {_COLUMNS}, NULL AS of_pipeline, NULL AS of_key, 1 AS is_due FROM queued q "
    f"WHERE q.pipeline = ? AND q.key IS NULL AND q.due_at <= {_NOW} AND {_UNCLAIMED} "
    "ORDER BY q.due_at, q.seq LIMIT ?"
)
# First as few as are wanted, or PostgreSQL would join all of them with their runs.
_FREE_KEYS = (
    f"SELECT k.pipeline, k.key, k.run_id, k.due_at FROM keys k WHERE k.pipeline = ? "
    f"AND k.due_at <= {_NOW} AND ({_HOLDER} IS NULL OR ({_IS_REPLACED} AND NOT {_HAS_PROCESS})) "
    "ORDER BY k.due_at LIMIT ?"
)
_DUE_WITH_KEY = (
    f"SELECT {_COLUMNS}, k.pipeline AS of_pipeline, k.key AS of_key, "
    f"CASE WHEN q.due_at <= {_NOW} THEN 1 ELSE 0 END AS is_due FROM ({_FREE_KEYS}) k "
    f"LEFT JOIN queued q ON q.run_id = {_FIRST_OF_KEY.replace('{of}', 'k')} "
    f"WHERE q.run_id IS NULL OR {_UNCLAIMED}"
)
# Not MIN, for which SQLite would read all of them.
_NEXT = (
    f"SELECT (SELECT q.due_at FROM queued q WHERE q.pipeline = ? AND q.key IS NULL "
    f"AND q.due_at > {_NOW} ORDER BY q.due_at LIMIT 1)",
    f"SELECT (SELECT k.due_at FROM keys k WHERE k.pipeline = ? AND k.due_at > {_NOW} "
    "ORDER BY k.due_at LIMIT 1)",
    # One that replaces others does so also while it is behind another one of its key.
    f"SELECT (SELECT q.due_at FROM queued q WHERE q.pipeline = ? AND q.replaces = 1 "
    f"AND q.due_at > {_NOW} ORDER BY q.due_at LIMIT 1)",
)
_NEXT_WAIT = (
    f"SELECT (SELECT r.due_at FROM runs r WHERE r.due_at > {_NOW} ORDER BY r.due_at LIMIT 1)"
)
_PRESENT = f"SELECT {_NOW}"
_REPLACING = (
    "SELECT q.pipeline, q.key, l.process, l.cancel_token, l.token FROM queued q "
    "JOIN keys k ON k.pipeline = q.pipeline AND k.key = q.key "
    f"JOIN leases l ON l.run_id = k.run_id AND l.run_id <> q.run_id AND NOT {FREE} "
    f"WHERE q.pipeline = ? AND q.replaces = 1 AND q.due_at <= {_NOW}"
)
"""The keys whose run a process has, and which another run must replace now."""
_REPLACED_NOW = (
    f"SELECT q.run_id FROM queued q WHERE q.pipeline = ? AND q.key = ? AND q.replaces = 1 "
    f"AND q.due_at <= {_NOW}"
)
_OF_KEY = "SELECT q.run_id FROM queued q WHERE q.pipeline = ? AND q.key = ?"
_INSERT = (
    "INSERT INTO queued (run_id, pipeline, key, due_at, seq, replaces, checksum) "
    "VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_TIMES = f"SELECT {_NOW}, CAST({{now}} * 1000000 AS BIGINT)"
_MARK_KEY = (
    "UPDATE keys SET due_at = (SELECT MIN(h.due_at) FROM queued h "
    "WHERE h.pipeline = keys.pipeline AND h.key = keys.key) WHERE pipeline = ? AND key = ?"
)
_MARK_RUN = "UPDATE runs SET enqueued_at = started_at WHERE run_id = ?"
_STARTED = "UPDATE runs SET began_at = ? WHERE run_id = ?"
_DELETE = "DELETE FROM queued WHERE run_id = ?"
_STILL_QUEUED = "SELECT 1 FROM queued q WHERE q.run_id = ?"
_EXISTS = "SELECT 1 FROM runs r WHERE r.run_id = ?"
_COUNTS = (
    f"SELECT COUNT(*), COUNT(CASE WHEN q.due_at <= {_NOW} THEN 1 END), "
    f"MIN(CASE WHEN q.due_at <= {_NOW} THEN q.due_at END), {_NOW} FROM queued q WHERE {{where}}"
)
_BLOCKED = (
    f"SELECT COUNT(*) FROM keys k WHERE k.due_at <= {_NOW} AND {_HOLDER} IS NOT NULL "
    "AND EXISTS (SELECT 1 FROM queued h WHERE h.pipeline = k.pipeline AND h.key = k.key "
    f"AND h.due_at <= {_NOW}) AND {{where}}"
)

WAITS_FOR = (
    "CASE WHEN r.status <> 'waiting' THEN NULL WHEN q.run_id IS NULL THEN 'signal' "
    f"WHEN q.due_at > {NOW} THEN 'time' WHEN q.key IS NOT NULL "
    f"AND ({_FIRST_OF_KEY.replace('{of}', 'q')} <> q.run_id OR EXISTS (SELECT 1 FROM keys k "
    f"WHERE k.pipeline = q.pipeline AND k.key = q.key AND {_HOLDER} "
    "IS NOT NULL)) THEN 'key' ELSE 'place' END"
)
"""For what a run ``r`` waits, whose row of `queued` is ``q``. Its parameter is the present."""


def left_queue(run_id: str, began_at: float | None) -> list[Statement]:
    """Return what notes that a run waits to start no longer: it begins then, or has ended."""
    left = [Statement(_DELETE, (run_id,))]
    if began_at is not None:
        left.append(Statement(_STARTED, (began_at, run_id)))
    return left


watchers: dict[str, list[Callable[[], object]]] = {}
"""By the name of a journal, what to call when a run may start or continue because of any journal of
that name. In virtual time all of them are in this process, and polls would make a day long."""


def announce(journal: str) -> None:
    """Say that a run may start or continue because of a journal with this name."""
    for call in [*watchers.get(journal, ())]:
        call()


class QueuedRun(NamedTuple):
    """A row of `queued`, as it was read: if it is damaged, its values are of any type."""

    run_id: Any
    pipeline: Any
    key: Any
    due_at: Any
    seq: Any
    replaces: Any
    checksum: Any

    @property
    def name(self) -> str:
        """The name of its pipeline."""
        return from_column(self.pipeline)

    @property
    def is_damaged(self) -> bool:
        return bool(_checksum(*self[:-1]) != self.checksum)


class DueRuns(NamedTuple):
    """What a poll has found."""

    runs: Sequence[QueuedRun]
    next_s: float | None
    """In how many seconds another run becomes due, if one does."""


class NewRun(NamedTuple):
    """A run to enqueue."""

    run_id: str
    pipeline: str
    batch: CommitBatch
    """Its events, and what they change."""
    key: str | None
    delay_s: float
    now: float | None
    """The present in virtual time."""
    on_conflict: str
    """What to do if there is another run of its key."""


def _checksum(run_id: Any, pipeline: Any, key: Any, due_at: Any, seq: Any, replaces: Any) -> int:
    text = f"{run_id}\0{pipeline}\0{key}\0{due_at!r}\0{seq}\0{replaces}"
    return crc32(text.encode("utf-8", "surrogatepass"))


class Queue:
    """Executes these statements on one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.database = store.database

    @changing
    def enqueue(self, cursor: Cursor, new: NewRun, claim: Claim) -> str | None:
        """Store a run that waits to start, and return its id.

        Return the id of another run of the key instead, if ``on_conflict`` says so. ``None`` means
        that a run of this id is there. Raise `RunAlreadyActiveError` if a process is about to begin
        one, or if another run of the key must not be there.
        """
        run_id, pipeline = new.run_id, column_of(new.pipeline)
        key = None if new.key is None else RunKey(pipeline, column_of(new.key))
        locked = LockedKeys(self.database, cursor, [] if key is None else [key])
        replaced: list[str] = []
        if key is not None and new.on_conflict == "replace":
            replaced = [each for (each,) in self._rows(cursor, _OF_KEY, *key)]
        leases = self._store.lock_leases(cursor, {run_id, *replaced} | locked.runs)
        if self._rows(cursor, _EXISTS, run_id):
            return None
        self._store.take_unused(cursor, run_id, leases[run_id], claim)
        for each in replaced:
            # One that a process is about to start is cancelled when this one is due.
            if not is_owned(leases[each], claim) and self._rows(cursor, _STILL_QUEUED, each):
                self._store.end_replaced(cursor, each, run_id, new.now)
                self._execute(cursor, _DELETE, (each,))
        if key is not None and new.on_conflict in ("raise", "return"):
            first = first_in_line(self.database, cursor, key)
            holder = locked.holder(key, leases, claim)
            if new.on_conflict == "return" and first is not None:
                return first
            if new.on_conflict == "return" and holder is not None:
                return holder.run_id
            if holder is not None:
                raise holder
            if first is not None:
                raise waits_already(first, key)
        self._store.insert(cursor, new.batch.rows)
        for statement in new.batch.statements:
            self._execute(cursor, *statement)
        self._store.finish(cursor, new.batch)
        self._execute(cursor, _MARK_RUN, (run_id,))
        ((now, seq),) = self._rows(cursor, _TIMES, new.now)
        replaces = int(new.on_conflict == "replace")
        row = run_id, pipeline, key and key.key, now + new.delay_s, seq, replaces
        self._execute(cursor, _INSERT, (*row, _checksum(*row)))
        if key is not None:
            self._execute(cursor, _MARK_KEY, key)
        return run_id

    def due(
        self, now: float | None, pipelines: Iterable[str], limit: int, skipped: Collection[object]
    ) -> tuple[DueRuns, list[RunKey]]:
        """Return the runs to start but for those skipped, one a key, the one due first first.

        Return with them the keys that are to be corrected before all such runs are found. ``now``
        is the present in virtual time.
        """
        columns = [*map(column_of, pipelines)]
        most = limit + len(skipped)
        parts: list[str] = []
        values: list[Any] = []
        for pipeline in columns:
            parts += [f"SELECT * FROM ({_DUE_WITHOUT_KEY}) p{len(parts)}"]
            values += [pipeline, now, most]
            parts += [f"SELECT * FROM ({_DUE_WITH_KEY}) p{len(parts)}"]
            values += [now, pipeline, now, now, most]
        if not parts:
            return DueRuns((), None), []
        found: list[QueuedRun] = []
        early: list[RunKey] = []
        for *row, of_pipeline, of_key, is_due in self._store.read(
            " UNION ALL ".join(parts), values
        ):
            if not is_due:
                early.append(RunKey(of_pipeline, of_key))
            elif row[0] not in skipped:
                found.append(QueuedRun(*row))
        found.sort(key=_place)
        next_s = None
        if not early and (len(found) < limit or not limit):
            next_s = self._next_s(now, columns)
        return DueRuns(found[:limit], next_s), early

    def replacing(
        self, now: float | None, pipelines: Iterable[str], is_void: Callable[[str], bool]
    ) -> list[RunKey]:
        """Return the keys whose run must stop, since another one is due that replaces it."""
        return [
            RunKey(of, key)
            for pipeline in map(column_of, pipelines)
            for of, key, process, cancel, token in self._store.read(_REPLACING, [pipeline, now])
            if cancel != token or is_void(process if isinstance(process, str) else "")
        ]

    @changing
    def replace(
        self, cursor: Cursor, key: RunKey, claim: Claim, now: float | None
    ) -> tuple[str, int, str, CancelCause] | None:
        """Ask the run that has a key to stop if another one is due that replaces it.

        Return its id and token, the reason and the cause.
        """
        locked = LockedKeys(self.database, cursor, [key])
        leases = self._store.lock_leases(cursor, locked.runs)
        run_id = locked.had_by(key)
        by = self._rows(cursor, _REPLACED_NOW, *key, now)
        if not by or not run_id or by[0][0] == run_id:
            return None
        if not is_owned(leases[run_id], claim):
            if leases[run_id][0] is not None:  # its process is gone, and SQL can't tell
                self._execute(cursor, FENCE, (run_id,))
            return None
        reason = replacement(by[0][0])
        self._store.request_stop(cursor, run_id, reason, "replaced")
        return run_id, leases[run_id][-2], reason, "replaced"

    def _next_s(self, now: float | None, pipelines: Sequence[str]) -> float | None:
        selects = [_PRESENT]
        values: list[Any] = [now]
        for pipeline in pipelines:
            selects += _NEXT
            values += [pipeline, now] * len(_NEXT)
        (present,), *times = self._store.read(" UNION ALL ".join(selects), values)
        later = [at for (at,) in times if isinstance(at, float | int)]
        return min(later) - present if later else None

    def next_wait_s(self, now: float | None) -> float | None:
        """Return in how many seconds another run is due that waits for signals, if one is."""
        (present,), (next_at,) = self._store.read(f"{_PRESENT} UNION ALL {_NEXT_WAIT}", [now, now])
        return next_at - present if isinstance(next_at, float | int) else None

    @changing
    def correct(self, cursor: Cursor, keys: Iterable[RunKey]) -> None:
        """Note when the first run of each of some keys is due, and of which none waits."""
        wanted = sorted(set(keys))
        LockedKeys(self.database, cursor, wanted)
        for key in wanted:  # each statement sees what was there when the keys were locked
            self._execute(cursor, _MARK_KEY, key)

    def counts(self, now: float | None, pipeline: str | None) -> tuple[int, int, float | None, int]:
        """Return how many runs wait, how many of them are due, for how long, and blocked keys."""
        values = [] if pipeline is None else [column_of(pipeline)]

        def read() -> tuple[int, int, float | None, int]:
            sql = _COUNTS.replace("{where}", "q.pipeline = ?" if values else "1 = 1")
            ((waiting, due, oldest, present),) = self._store.read(sql, [now, now, now, *values])
            sql = _BLOCKED.replace("{where}", "k.pipeline = ?" if values else "1 = 1")
            ((blocked,),) = self._store.read(sql, [now, now, *values])
            oldest_s = None if oldest is None else max(0.0, present - oldest)
            return waiting, due, oldest_s, blocked

        return self._store.together(read)

    def _execute(self, cursor: Cursor, sql: str, parameters: Sequence[Any]) -> None:
        cursor.execute(self.database.translate(sql), parameters)

    def _rows(self, cursor: Cursor, sql: str, *parameters: Any) -> list[Any]:
        self._execute(cursor, sql, parameters)
        return cursor.fetchall()


def _place(run: QueuedRun) -> tuple[float, int]:
    try:
        return float(run.due_at), int(run.seq)
    except (TypeError, ValueError):  # it is damaged
        return 0.0, 0
