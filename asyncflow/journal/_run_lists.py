"""The SQL statements that read many runs: lists of runs, and what their statistics need.

What is read may be damaged: values may be of any type, and a row of `events` is checked by those
who decode it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

from asyncflow._core.results import RunStatus
from asyncflow.journal._event_codec import column_of, status_column
from asyncflow.journal._queries import RunFilter, parse_status
from asyncflow.journal._sql import (
    EVENT_COLUMNS,
    OF_FAILED_ITEMS,
    OWNER,
    Database,
    Parameters,
    chunks,
    marks,
    padded,
)


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
    label: Any
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


_STARTS_SINCE_END = (
    "(SELECT COUNT(*) FROM events s {of_steps} WHERE s.run_id = r.run_id AND s.item IS NULL "
    "AND s.kind IN ('RunStarted', 'RunResumed') AND s.position > COALESCE((SELECT MAX(f.position) "
    "FROM events f {of_steps} WHERE f.run_id = r.run_id AND f.item IS NULL "
    "AND f.kind = 'RunFinished'), 0))"
)
_RUNS = (
    "SELECT r.run_id, r.pipeline, r.status, r.started_at, r.updated_at, "
    "r.last_event, r.checksum, r.parent, r.parent_step, r.forked_from, r.label, "
    f"{OWNER}, l.process, "
    "COALESCE((SELECT e.at_ms FROM events e WHERE e.run_id = r.run_id "
    "ORDER BY e.position DESC LIMIT 1), 0), r.paused_s, r.cause, "
    f"CASE WHEN r.status = 'running' THEN {_STARTS_SINCE_END} ELSE 0 END "
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
    for column in EVENT_COLUMNS
)
"""The columns of an event, without a long output."""
_OF_STEPS = "events e {of_steps} WHERE e.item IS NULL AND e.run_id IN ({ids})"
_STARTS = (
    f"{_OF_STEPS} AND e.kind IN ('RunStarted', 'RunResumed') AND (e.kind = 'RunResumed' "
    f"OR {{bytes}}(e.payload) <= {_LONGEST_START})"
)
_LATEST_START = (
    f"{_OF_STEPS} AND e.position = (SELECT MAX(f.position) FROM events f {{of_steps}} WHERE "
    "f.run_id = e.run_id AND f.item IS NULL AND f.kind IN ('RunStarted', 'RunResumed'))"
)
_FIRST_FAILURE = (
    "runs r JOIN events e ON e.run_id = r.run_id WHERE e.position = ("
    "SELECT MIN(f.position) FROM events f {of_steps} WHERE f.run_id = r.run_id "
    "AND f.item IS NULL AND f.kind = 'StepFailed' AND f.position > COALESCE("
    "(SELECT MAX(g.position) FROM events g {of_steps} WHERE g.run_id = r.run_id "
    "AND g.item IS NULL AND g.kind = 'RunResumed'), 0)) AND r.run_id IN ({ids})"
)
"""The ids are those of `runs`: PostgreSQL would ask this of all runs, and then compare the ids."""
_ITEM_COUNTS = (
    "SELECT i.run_id, i.step, SUM(i.failed), SUM(1 - i.failed) FROM ("
    "SELECT e.run_id, e.step, MAX(CASE WHEN e.kind = 'AttemptFailed' THEN 0 ELSE 1 END) AS failed "
    "FROM (SELECT s.run_id, s.step, MAX(s.position) AS began FROM events s {of_steps} "
    "WHERE s.item IS NULL AND s.kind = 'MapStarted' AND s.run_id IN ({ids}) "
    "GROUP BY s.run_id, s.step) m JOIN events e {of_failed_items} ON e.run_id = m.run_id "
    f"AND e.step = m.step AND e.position > m.began WHERE {OF_FAILED_ITEMS.format(table='e.')} "
    "GROUP BY e.run_id, e.step, e.item) i GROUP BY i.run_id, i.step"
)
"""How many items of a mapped step failed, and how many only in attempts before their last one."""
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
    f"SELECT {OWNER}, l.process FROM runs r LEFT JOIN leases l ON l.run_id = r.run_id "
    "WHERE {where}"
)
_BEFORE = ("", "r.started_at < ?", "(r.started_at, r.run_id) < (?, ?)")
"""The condition for runs before a place, by how many parts of the place are given."""

_PARTS = 8
"""How many SELECTs, each with so many ids, one statement joins at most."""


class RunLists:
    """Executes these statements on one database.

    ``retry`` returns what a call returns, which it may repeat.
    """

    def __init__(
        self, database: Database, retry: Callable[[Callable[[], list[Any]]], list[Any]]
    ) -> None:
        self._database = database
        self._retry = retry

    def _read(self, sql: str, values: Parameters = ()) -> list[Any]:
        def attempt() -> list[Any]:
            with self._database.reading() as cursor:
                cursor.execute(self._database.translate(sql), values)
                return cursor.fetchall()

        return self._retry(attempt)

    def run(self, run_id: str) -> RunRow | None:
        """Return the row of a run; ``None`` if there is none."""
        rows = self._runs({"r.run_id = ?": [run_id]}, None)
        return rows[0] if rows else None

    def some(self, run_ids: Sequence[str]) -> dict[Any, RunRow]:
        """Return the rows of runs, by run id."""
        found: list[RunRow] = []
        for chunk in chunks(padded(run_ids)):
            found += self._runs({f"r.run_id IN ({marks(len(chunk))})": chunk}, None)
        return {row.run_id: row for row in found}

    def runs(self, where: RunFilter) -> list[RunRow]:
        """Return the runs that a filter selects; as SQL can't tell, orphaned ones are running."""
        return self._runs(self._conditions(where), where.limit)

    def _conditions(self, where: RunFilter) -> dict[str, Sequence[Any]]:
        before = where.before
        place = before if before is None or isinstance(before, tuple) else (before,)
        pipeline = None if where.pipeline is None else column_of(where.pipeline)
        parent = None if where.parent is None else column_of(where.parent)
        label = None if where.label is None else column_of(where.label)
        status = parse_status(where.status)
        pattern = None if where.text is None else self._database.pattern(where.text)
        return {
            "r.status = ?": _some(status and status_column(status)),
            "r.cause = ?": _some(where.cause),
            "r.pipeline = ?": _some(pipeline),
            "r.parent = ?": _some(parent),
            "r.started_at >= ?": _some(where.since),
            _BEFORE[len(place or ())]: place or (),
            "r.label = ?": _some(label),
            "(r.run_id {like} ? OR r.pipeline {like} ? OR r.label {like} ?)": _some(pattern) * 3,
        }

    def _runs(self, conditions: Mapping[str, Sequence[Any]], limit: int | None) -> list[RunRow]:
        where, values = _joined(conditions)
        sql = f"{_RUNS} WHERE {where} ORDER BY r.started_at DESC, r.run_id DESC"
        if limit is not None:
            sql, values = f"{sql} LIMIT ?", [*values, limit]
        return [RunRow(*row) for row in self._read(sql, values)]

    def step_events(self, run_ids: Sequence[str]) -> dict[Any, list[Sequence[Any]]]:
        """Return the rows of the events of runs, without those of items, by run and in their order.

        A long output is left out.
        """
        return self._brief([(_OF_STEPS, run_ids)])

    def latest_starts(self, run_ids: Sequence[str]) -> dict[Any, list[Sequence[Any]]]:
        """Return the row of the event with which each run began its latest segment."""
        return self._brief([(_LATEST_START, run_ids)])

    def item_counts(self, run_ids: Sequence[str]) -> dict[Any, dict[Any, tuple[Any, Any]]]:
        """Return how many items failed and how many were retried, by run and by step.

        Only steps with such items are there, and only what came after they last began counts.
        """
        found: dict[Any, dict[Any, tuple[Any, Any]]] = {}
        for chunk in chunks(padded(run_ids)):
            rows = self._read(_ITEM_COUNTS.replace("{ids}", marks(len(chunk))), chunk)
            for run_id, step, failed, retried in rows:
                found.setdefault(run_id, {})[step] = failed, retried
        return found

    def brief_events(
        self,
        running: Sequence[str],
        ended: Sequence[str],
        failed: Sequence[str],
        interrupted: Sequence[str],
    ) -> dict[Any, list[Sequence[Any]]]:
        """Return rows of events that say briefly how runs stand, as `step_events` returns them.

        Of the runs ``running``, all events are wanted but those of items. Of those ``ended``,
        the starts are: the first event, unless it is long, and those with which they were resumed.
        Of those ``failed``, the first failure of a step is, after the last resumption. Of those
        ``interrupted``, the last event is.
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
            for chunk in chunks(padded(run_ids)):
                sql = f"SELECT {_BRIEF} FROM {source}".replace("{ids}", marks(len(chunk)))
                parts.append((sql, chunk))
        rows: list[Sequence[Any]] = []
        for at in range(0, len(parts), _PARTS):
            several = parts[at : at + _PARTS]
            sql = " UNION ALL ".join(sql for sql, _ in several)
            rows += self._read(sql, [*chain(*(chunk for _, chunk in several))])
        found: dict[Any, list[Sequence[Any]]] = {}
        for row in sorted(rows, key=_position_of):
            found.setdefault(row[0], []).append(row)
        return found

    def counts(self, where: RunFilter) -> list[tuple[Any, int]]:
        """Return how many of the runs that a filter selects have which status in their row."""
        return self._aggregate(_COUNTS, where)

    def leases_of_running(self, where: RunFilter) -> list[tuple[Any, Any]]:
        """Return the lease holder and the process of each run that has not ended, as `RunRow`."""
        return self._aggregate(_RUNNING, replace(where, status=RunStatus.RUNNING))

    def _aggregate(self, sql: str, where: RunFilter) -> list[Any]:
        conditions, values = _joined(self._conditions(where))
        return self._read(sql.replace("{where}", conditions), values)

    def pipelines(self) -> list[Any]:
        """Return the names of the pipelines that have runs, as their columns have them."""
        return [name for (name,) in self._read(_PIPELINES)]


def _position_of(row: Sequence[Any]) -> int:
    position = row[1]
    return position if isinstance(position, int) else 0  # a damaged one is of any type


def _joined(conditions: Mapping[str, Sequence[Any]]) -> tuple[str, list[Any]]:
    """Return those conditions that have values as one, and all values."""
    where = " AND ".join(condition for condition, values in conditions.items() if values)
    return where or "1 = 1", [*chain(*conditions.values())]


def _some(value: Any) -> list[Any]:
    return [] if value is None else [value]
