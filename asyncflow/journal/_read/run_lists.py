"""Lists of runs: what the rows of `runs` say, in SQL and as `RunRecord`.

Every method runs in the journal's thread for reading. A row may be damaged: its values may be of
any type, and its record says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, starmap
from typing import Any, NamedTuple, get_args

from asyncflow._core.analysis.statistics import usual
from asyncflow._core.errors import RunNotFoundError, RunUnreadableError
from asyncflow._core.history.results import InterruptionCause, RunStatus
from asyncflow._core.text import did_you_mean
from asyncflow.events import Event, RunFinished, RunStarted
from asyncflow.journal._codec.events import (
    column_of,
    from_column,
    is_moment,
    run_checksum,
    status_column,
)
from asyncflow.journal._database.machine import is_void
from asyncflow.journal._database.sql import OWNER, chunks, marks, padded
from asyncflow.journal._read.queries import (
    UNFINISHED,
    USUAL_RUNS,
    PipelineStatistics,
    RunFilter,
    RunRecord,
    WaitKind,
    WaitsFor,
    parse_status,
)
from asyncflow.journal._write.attributes import (
    OF_ATTRIBUTE,
    attributes_column,
    attributes_of,
    conditions_of,
)
from asyncflow.journal._write.queue import WAITS_FOR
from asyncflow.journal._write.signals import Signals, names_in
from asyncflow.journal._write.store import Store

_PAGE = 1_000
"""How many runs to read at a time when only orphaned ones are wanted: SQL can't tell which are."""


class RunRow(NamedTuple):
    """A row of `runs` with its lease, as it was read: if it is damaged, its values are of any type.

    An undamaged one has the types of `asyncflow.journal._read.queries.RunRecord`.
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
    rerun_of: Any
    label: Any
    key: Any
    attributes: Any
    owner: Any
    """The lease holder; ``None`` if there is none, or the lease has expired."""
    process: Any
    latest_ms: Any
    """The time of its latest event, whose checksum was not compared."""
    paused_s: Any
    """By how much its start and the times of its events have drifted apart by the wall clock."""
    cause: Any
    starts: Any
    """In how many segments it ran since it last ended; 0 if it has ended."""
    enqueued_at: Any
    began_at: Any
    """When a run that was enqueued started."""
    waits: Any
    """The signals that it waits for, as JSON, if it does."""
    waits_for: Any
    due_at: Any
    """When a run that waits to start is due."""
    renewed_at: Any
    """When its process last took or renewed the lease, which it may have given up since."""


_STARTS_SINCE_END = (
    "(SELECT COUNT(*) FROM events s {of_runs} WHERE s.run_id = r.run_id AND s.step IS NULL "
    "AND s.kind IN ('RunStarted', 'RunResumed') AND s.position > COALESCE((SELECT MAX(f.position) "
    "FROM events f {of_runs} WHERE f.run_id = r.run_id AND f.step IS NULL "
    "AND f.kind = 'RunFinished'), 0))"
)
_RUNS = (
    "SELECT r.run_id, r.pipeline, r.status, r.started_at, r.updated_at, "
    "r.last_event, r.checksum, r.parent, r.parent_step, r.rerun_of, r.label, r.key, "
    "r.attributes, "
    f"{OWNER}, l.process, "
    "COALESCE((SELECT e.at_ms FROM events e WHERE e.run_id = r.run_id "
    "ORDER BY e.position DESC LIMIT 1), 0), r.paused_s, r.cause, "
    f"CASE WHEN r.status = 'running' THEN {_STARTS_SINCE_END} ELSE 0 END, "
    f"r.enqueued_at, r.began_at, r.waits, {WAITS_FOR}, q.due_at, l.renewed_at "
    "FROM {runs} LEFT JOIN leases l ON l.run_id = r.run_id "
    "LEFT JOIN queued q ON q.run_id = r.run_id WHERE {where} "
    "ORDER BY {order}.started_at DESC, {order}.run_id DESC"
)
_PIPELINES = (
    "WITH RECURSIVE named (pipeline) AS (SELECT MIN(r.pipeline) FROM runs r UNION ALL "
    "SELECT (SELECT MIN(r.pipeline) FROM runs r WHERE r.pipeline > named.pipeline) FROM named "
    "WHERE named.pipeline IS NOT NULL) SELECT pipeline FROM named WHERE pipeline IS NOT NULL"
)
"""One search of an index for each name, whatever the number of runs."""
_COUNTS = "SELECT r.status, COUNT(*) FROM runs r WHERE {where} GROUP BY r.status"
_LEASES = (
    f"SELECT {OWNER}, l.process FROM runs r LEFT JOIN leases l ON l.run_id = r.run_id "
    "WHERE {where}"
)
_BEFORE = ("", "{order}.started_at < ?", "({order}.started_at, {order}.run_id) < (?, ?)")
"""The condition for runs before a place, by how many parts of the place are given."""

Conditions = dict[str, Sequence[Any]]
"""SQL conditions, each with its values; one without values is left out."""


class RunLists:
    """Reads lists of runs from a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.signals = Signals(store)

    def rows(
        self, where: RunFilter, now: float | None = None, *, has_started: bool = False
    ) -> list[RunRow]:
        """Return the rows that a filter selects; as SQL can't tell, orphaned runs are running.

        ``now`` is the present in virtual time, by which a run that waits to start is due. With
        ``has_started``, there are no such runs.
        """
        conditions = self._conditions(where)
        if has_started:
            conditions["(q.run_id IS NULL OR ? = 0)"] = [1]
        if where.waits_for is not None:
            conditions |= {"r.status = ?": ["waiting"], f"{WAITS_FOR} = ?": [now, where.waits_for]}
        return self._rows(conditions, where.limit, bool(where.attributes), now)

    def row(self, run_id: str, now: float | None = None) -> RunRow | None:
        """Return the row of a run; ``None`` if there is none."""
        rows = self._rows({"r.run_id = ?": [run_id]}, None, now=now)
        return rows[0] if rows else None

    def _rows(
        self,
        conditions: Conditions,
        limit: int | None,
        by_attribute: bool = False,
        now: float | None = None,
    ) -> list[RunRow]:
        last = ("", []) if limit is None else (" LIMIT ?", [limit])
        runs, order = (f"{OF_ATTRIBUTE} runs r", "a") if by_attribute else ("runs r", "r")
        sql = _RUNS.replace("{runs}", runs)
        rows = self._read(sql, conditions, *last, order=order, first=[now])
        return [RunRow(*row) for row in rows]

    def _read(
        self,
        sql: str,
        conditions: Conditions,
        last: str = "",
        values: Sequence[Any] = (),
        order: str = "r",
        first: Sequence[Any] = (),
    ) -> list[Any]:
        """Return the rows that a SELECT finds where those conditions are met that have values.

        ``order`` is the table by whose index runs are read in the order of their starts. ``first``
        are the values that come before those of the conditions.
        """
        where = " AND ".join(condition for condition, given in conditions.items() if given)
        sql = sql.replace("{where}", where or "1 = 1").replace("{order}", order) + last
        return self._store.read(sql, [*first, *chain(*conditions.values()), *values])

    def runs(self, where: RunFilter, now: float | None = None) -> list[RunRecord]:
        """Return the runs that a filter selects."""
        if where.status not in UNFINISHED:
            return self._records(self.rows(where, now))
        found: list[RunRecord] = []
        page = replace(where, limit=_PAGE)
        while where.limit is None or len(found) < where.limit:
            records = self._records(self.rows(page))
            found += [record for record in records if record.status is where.status]
            if len(records) < _PAGE:
                break
            page = replace(page, before=records[-1].place)
        return found[: where.limit]

    def record(self, run_id: str, now: float | None = None) -> RunRecord:
        """Return the record of a run; a damaged one if the run has events and no row."""
        row = self.row(run_id, now)
        if row is None:
            self.check_exists(run_id)
            row = RunRow(run_id, *[None] * (len(RunRow._fields) - 1))
        return self._records([row])[0]

    def _records(self, rows: Iterable[RunRow]) -> list[RunRecord]:
        """Return the records of rows; of those that seem to be orphaned, the rows are read again.

        Such a run may have ended since, which it commits before it lets go of its claim.
        """
        records = [record_of(row) for row in rows]
        orphaned = [each.run_id for each in records if each.status is RunStatus.ORPHANED]
        again: dict[str, RunRecord] = {}
        for chunk in chunks(padded(orphaned)):
            of_chunk = self._rows({f"r.run_id IN ({marks(len(chunk))})": chunk}, None)
            again.update((each.run_id, each) for each in map(record_of, of_chunk))
        return [again.get(each.run_id, each) for each in records]

    def last_passed(self, run_id: str) -> RunRecord | None:
        """Return the last run of the same pipeline that passed and started before a run."""
        record = self.record(run_id)
        if not record.pipeline:
            return None
        before = record.place
        where = RunFilter(RunStatus.PASSED, pipeline=record.pipeline, before=before, limit=1)
        return next(iter(self.runs(where)), None)

    def due(
        self,
        now: float | None,
        pipelines: Iterable[str] | None,
        limit: int,
        skipped: Collection[str],
        among: Sequence[str] | None,
    ) -> list[RunRecord]:
        """Return the waiting runs to continue that no process has claimed; see `Signals.due`."""
        names = None if pipelines is None else [*map(column_of, pipelines)]
        found: list[RunRecord] = []
        seen = set(skipped)
        while wanted := limit - len(found):
            due = self.signals.due(now, names, wanted, seen, among)
            rows: dict[Any, RunRow] = {}
            for chunk in chunks(padded(due)):
                of_chunk = self._rows({f"r.run_id IN ({marks(len(chunk))})": chunk}, None)
                rows.update((row.run_id, row) for row in of_chunk)
            found += [
                record_of(row)
                for row in map(rows.get, due)
                if row and row.status == "waiting" and _is_orphaned(row.owner, row.process)
            ]
            if len(due) < wanted:
                break
            seen.update(due)
        return found

    def counts(self, where: RunFilter) -> dict[RunStatus, int]:
        """Return how many of the runs that a filter selects have which status."""
        counts = dict.fromkeys(RunStatus, 0)
        for column, count in self._read(_COUNTS, self._conditions(where)):
            counts[_STATUSES.get(column, RunStatus.RUNNING)] += count
        if counts[RunStatus.RUNNING]:
            running = self._conditions(replace(where, status=RunStatus.RUNNING))
            leases = self._read(_LEASES, running)
            if any(owner and _is_orphaned(owner, process) for owner, process in leases):
                leases = self._read(_LEASES, running)  # as in `_records`
            # Others may have begun between the two reads.
            orphaned = min(sum(starmap(_is_orphaned, leases)), counts[RunStatus.RUNNING])
            counts[RunStatus.ORPHANED] = orphaned
            counts[RunStatus.RUNNING] -= orphaned
        return counts

    def pipelines(self) -> list[str]:
        """Return the names of the pipelines that have runs, sorted."""
        return sorted({name_of(column) for (column,) in self._store.read(_PIPELINES)})

    def usual_ms(self, pipeline: str) -> float | None:
        """Return how long runs of a pipeline usually take, in milliseconds."""
        if not pipeline:
            return None
        passed = self.runs(RunFilter(RunStatus.PASSED, pipeline=pipeline, limit=USUAL_RUNS))
        return usual(PipelineStatistics(pipeline, tuple(passed), {}).passed_ms)

    def check_exists(self, run_id: str) -> None:
        """Check that there is a run, even a damaged one."""
        last = self._store.last_positions([run_id])[run_id]
        # If it can't be read, there is something of it.
        if not (isinstance(last, RunUnreadableError) or last[0]):
            raise self.unknown(run_id)

    def unknown(self, run_id: str) -> RunNotFoundError:
        """Return the error for a run that does not exist, with the most similar id."""
        others = [record.run_id for record in self.runs(RunFilter(limit=1_000))]
        return RunNotFoundError(run_id, self._store.database.name, did_you_mean(run_id, others))

    def _conditions(self, where: RunFilter) -> Conditions:
        before = where.before
        place = before if before is None or isinstance(before, tuple) else (before,)
        return {
            **conditions_of(where.attributes or {}),
            "r.status = ?": _some(parse_status(where.status), status_column),
            "r.cause = ?": _some(where.cause),
            "r.pipeline = ?": _some(where.pipeline, column_of),
            "r.parent = ?": _some(where.parent, column_of),
            "{order}.started_at >= ?": _some(where.since),
            _BEFORE[len(place or ())]: place or (),
            "r.label = ?": _some(where.label, column_of),
            "(r.run_id {like} ? OR r.pipeline {like} ? OR r.label {like} ?)": 3
            * _some(where.text, self._store.database.pattern),
        }


def _some(value: Any, as_column: Callable[[Any], object] | None = None) -> list[Any]:
    if value is None:
        return []
    return [value if as_column is None else as_column(value)]


def contradiction(run_id: str, row: RunRow | None, events: Sequence[Event], count: int) -> str:
    """Return in what the row of a run and its events contradict each other; empty if in nothing.

    ``events`` are its events, or only some, the first and the last among them, and ``count`` says
    how many it has in all.
    """
    if row is None:
        return "its row is missing" if events else ""
    if not _is_sound(row):
        return "its row is damaged"
    if not events:
        return "its events are missing"
    first, last = events[0], events[-1]
    if not isinstance(first, RunStarted) or (first.run_id, *_columns_of(first)) != (
        run_id,
        row.pipeline,
        row.parent or "",
        row.parent_step or "",
        row.rerun_of or "",
        row.label or "",
        row.key or "",
        row.attributes,
    ):
        return "its first event does not fit its row"
    status = last.status if isinstance(last, RunFinished) else RunStatus.RUNNING
    has_gap = count < row.last_event or (status not in UNFINISHED and count != row.last_event)
    if status_column(status) != row.status or has_gap:
        return (
            f"its last event is {count}, a {type(last).__name__}, and does not fit its row, which "
            f"says {row.status!r} after event {row.last_event}: later ones are missing"
        )
    return ""


def _columns_of(event: RunStarted) -> list[str | None]:
    texts = event.pipeline, event.parent, event.parent_step, event.rerun_of, event.label, event.key
    return [*map(column_of, texts), attributes_column(event.attributes)]


def name_of(column: object) -> str:
    """Return a name from its column, or something like it if the column is damaged."""
    try:
        return from_column(column)  # type: ignore[arg-type]
    except (AttributeError, TypeError, ValueError):
        return _text_of(column)


def record_of(row: RunRow) -> RunRecord:
    is_damaged = not _is_sound(row)
    status = _STATUSES.get(row.status, RunStatus.RUNNING)
    if status is RunStatus.RUNNING and _is_orphaned(row.owner, row.process):
        status = RunStatus.ORPHANED

    def text(column: Any) -> str:
        return "" if is_damaged else from_column(column or "")

    return RunRecord(
        run_id=_text_of(row.run_id),
        pipeline=text(row.pipeline),
        status=status,
        started_at=_started_at(row),
        updated_at=row.updated_at if is_moment(row.updated_at) else 0.0,
        owner=None if row.owner is None else _text_of(row.owner),
        latest_ms=row.latest_ms if _is_number(row.latest_ms) else 0.0,
        paused_s=_paused_s(row),
        damaged=is_damaged,
        parent=text(row.parent),
        parent_step=text(row.parent_step),
        rerun_of=text(row.rerun_of),
        label=text(row.label),
        key=text(row.key),
        attributes={} if is_damaged else attributes_of(row.attributes),
        cause=row.cause if row.cause in get_args(InterruptionCause) else None,
        enqueued_at=_enqueued_at(row),
        waits_for=_waits_for(row),
        crashes=max(0, (row.starts or 0) - (status is RunStatus.RUNNING)),
        seen_at=row.renewed_at if is_moment(row.renewed_at) else None,
    )


def _started_at(row: RunRow) -> float:
    stored_at: float = row.started_at if is_moment(row.started_at) else 0.0
    return row.began_at if is_moment(row.began_at) else stored_at


def _enqueued_at(row: RunRow) -> float | None:
    if row.enqueued_at is None or not is_moment(row.started_at):
        return None
    return float(row.started_at)


def _paused_s(row: RunRow) -> float:
    """Return for how long no process ran a run after its start."""
    paused_s: float = row.paused_s if _is_number(row.paused_s) else 0.0
    waited_s = _started_at(row) - (_enqueued_at(row) or _started_at(row))
    return max(paused_s - waited_s, 0.0)


def _waits_for(row: RunRow) -> WaitsFor | None:
    kind = row.waits_for
    if kind not in get_args(WaitKind):
        return None
    if kind == "signal":
        return WaitsFor(kind, signals=tuple(map(str, names_in(row.waits) or ())))
    due_at = float(row.due_at) if is_moment(row.due_at) else 0.0
    return WaitsFor(kind, due_at=due_at, key=name_of(row.key) if kind == "key" else "")


def _is_orphaned(owner: object, process: object) -> bool:
    """Whether no process runs a run that has not ended, by its lease."""
    return owner is None or is_void(process if isinstance(process, str) else "")


_STATUSES: Mapping[object, RunStatus] = {
    status_column(each): each for each in RunStatus if each is not RunStatus.ORPHANED
}


def _is_sound(row: RunRow) -> bool:
    """Whether the row of a run is undamaged, as far as its checksum and the types tell."""
    try:
        others = row.parent, row.parent_step, row.rerun_of, row.label, row.key
        checksum = run_checksum(row.run_id, row.pipeline, row.started_at, *others, row.attributes)
        attributes_of(row.attributes)
        for text in (row.pipeline, *filter(None, others)):
            from_column(text)
    except (AttributeError, TypeError, ValueError):  # it is no text, or none of ours
        return False
    times = row.started_at, row.updated_at
    return (
        checksum == row.checksum
        and row.status in _STATUSES
        and isinstance(row.last_event, int)
        and all(map(is_moment, times))
    )


def _is_number(value: object) -> bool:
    return type(value) in (float, int) and 0 <= value < 1e14  # type: ignore[operator]


def _text_of(value: object) -> str:
    """Return a value as a text without surrogates."""
    return str(value).encode("utf-8", "backslashreplace").decode()
