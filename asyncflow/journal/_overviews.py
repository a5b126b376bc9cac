"""Overviews of runs: statistics and summaries, from their events without those of items.

Every method runs in the journal's thread for reading. Rows may be damaged: an overview says so, or
leaves out what it would have read from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from asyncflow._core.replay import StoredRun
from asyncflow._core.results import REDACTED_OUTPUT, RunStatus, StepStatus
from asyncflow._core.statistics import ItemCounts, StepRun, step_runs, step_statistics
from asyncflow.events import (
    Event,
    ResultReused,
    RunFinished,
    RunResumed,
    RunStarted,
    StepFailed,
)
from asyncflow.journal._event_codec import event_of
from asyncflow.journal._payload_codec import Codec
from asyncflow.journal._queries import (
    UNENDED,
    PipelineStatistics,
    RunFilter,
    RunRecord,
    RunSummary,
)
from asyncflow.journal._run_lists import RunLists, RunRow, contradiction, name_of, record_of
from asyncflow.journal._signals import Signals
from asyncflow.journal._sql import EVENT_COLUMNS, OF_FAILED_ITEMS, chunks, marks, padded
from asyncflow.journal._store import Store

_LONGEST_START = 65_536
"""How many bytes of the first event of a run are read, of which only the inputs are shown."""
_BRIEF = ", ".join("NULL" if column == "data" else f"e.{column}" for column in EVENT_COLUMNS)
"""The columns of an event, without its output."""
OF_STEPS = "events e {of_steps} WHERE e.item IS NULL AND e.run_id IN ({ids})"
_STARTS = (
    f"{OF_STEPS} AND e.kind IN ('RunStarted', 'RunResumed') AND (e.kind = 'RunResumed' "
    f"OR {{bytes}}(e.payload) <= {_LONGEST_START})"
)
"""The first event, unless it is long, and those with which the run was resumed."""
LATEST_START = (
    f"{OF_STEPS} AND e.position = (SELECT MAX(f.position) FROM events f {{of_steps}} WHERE "
    "f.run_id = e.run_id AND f.item IS NULL AND f.kind IN ('RunStarted', 'RunResumed'))"
)
"""The event with which the latest segment began."""
_FIRST_FAILURE = (
    "runs r JOIN events e ON e.run_id = r.run_id WHERE e.position = ("
    "SELECT MIN(f.position) FROM events f {of_steps} WHERE f.run_id = r.run_id "
    "AND f.item IS NULL AND f.kind = 'StepFailed' AND f.position > COALESCE("
    "(SELECT MAX(g.position) FROM events g {of_steps} WHERE g.run_id = r.run_id "
    "AND g.item IS NULL AND g.kind = 'RunResumed'), 0)) AND r.run_id IN ({ids})"
)
"""The first failure of a step after the last resumption.

The ids are those of `runs`: PostgreSQL would ask this of all runs, and then compare the ids."""
_ITEM_COUNTS = (
    "SELECT i.run_id, i.step, SUM(i.failed), SUM(1 - i.failed) FROM ("
    "SELECT e.run_id, e.step, MAX(CASE WHEN e.kind = 'AttemptFailed' THEN 0 ELSE 1 END) AS failed "
    "FROM (SELECT s.run_id, s.step, MAX(s.position) AS began FROM events s {of_steps} "
    "WHERE s.item IS NULL AND s.kind = 'MapStarted' AND s.run_id IN ({ids}) "
    "GROUP BY s.run_id, s.step) m JOIN events e {of_failed_items} ON e.run_id = m.run_id "
    f"AND e.step = m.step AND e.position > m.began WHERE {OF_FAILED_ITEMS.format(table='e.')} "
    "GROUP BY e.run_id, e.step, e.item) i GROUP BY i.run_id, i.step"
)
"""How many items of a mapped step have failed since it last began, and how many only in attempts
before their last one. Only steps with such items are there."""
_LAST_CHANGE = (
    "runs r JOIN events e ON e.run_id = r.run_id WHERE e.position = r.last_event "
    "AND r.run_id IN ({ids})"
)
"""The event that changed the row last: in a run that has ended, the last one."""

_PARTS = 8
"""How many SELECTs, each with so many ids, one statement joins at most."""


class Overviews:
    """Reads overviews of runs from a store."""

    def __init__(self, store: Store, lists: RunLists, codec: Codec) -> None:
        self._store = store
        self._lists = lists
        self._signals = Signals(store)
        self._codec = codec

    def statistics(self, pipeline: str, runs: int) -> PipelineStatistics:
        """Return the statistics of the latest runs of a pipeline."""
        rows = self._lists.rows(RunFilter(pipeline=pipeline, limit=runs))
        run_ids = [row.run_id for row in rows]
        events = read_brief(self._store, (OF_STEPS, run_ids))
        items = self._item_counts(run_ids)
        records: list[RunRecord] = []
        steps: list[dict[str, StepRun]] = []
        for row in rows:
            run = _replay_of_steps(row, events.get(row.run_id, ()))
            if run is None:  # unless it has changed between the two reads, it is damaged
                again = self._lists.row(row.run_id)
                if again is None:
                    continue
                row, run_id = again, row.run_id
                found = read_brief(self._store, (OF_STEPS, [run_id]))
                run = _replay_of_steps(row, found.get(run_id, ()))
            record = record_of(row)
            records.append(record if run else replace(record, damaged=True))
            steps.append(step_runs(run, items.get(row.run_id, {})) if run else {})
        return PipelineStatistics(pipeline, tuple(records), step_statistics(steps))

    def _item_counts(self, run_ids: Sequence[str]) -> dict[str, dict[str, ItemCounts]]:
        found: dict[str, dict[str, ItemCounts]] = {}
        for chunk in chunks(padded(run_ids)):
            rows = self._store.read(_ITEM_COUNTS.replace("{ids}", marks(len(chunk))), chunk)
            for run_id, step, *counts in rows:
                found.setdefault(run_id, {})[name_of(step)] = ItemCounts(*counts)
        return found

    def summaries(self, records: Iterable[RunRecord]) -> dict[str, RunSummary]:
        """Return what a list says of runs beside their records, by id."""
        by_status: dict[RunStatus, list[str]] = {status: [] for status in RunStatus}
        pipelines: dict[str, str] = {}
        for record in records:
            by_status[record.status].append(record.run_id)
            if record.status is RunStatus.RUNNING and not record.rerun_of:
                pipelines[record.run_id] = record.pipeline
        usual_ms = {name: self._lists.usual_ms(name) for name in {*pipelines.values()}}
        running = [*chain(*map(by_status.pop, UNENDED))]
        ended = [*chain(*by_status.values())]
        events = read_brief(
            self._store,
            (OF_STEPS, running),
            (_STARTS, ended),
            (_FIRST_FAILURE, by_status[RunStatus.FAILED]),
            (_LAST_CHANGE, by_status[RunStatus.INTERRUPTED]),
        )
        return {
            run_id: replace(
                self._summary(run_id, events.get(run_id, ()), has_ended=has_ended),
                usual_ms=usual_ms.get(pipelines.get(run_id, "")),
            )
            for has_ended, run_ids in ((False, running), (True, ended))
            for run_id in run_ids
        }

    def _summary(
        self, run_id: str, rows: Sequence[Sequence[Any]], *, has_ended: bool
    ) -> RunSummary:
        try:
            events = [brief_event_of(row) for row in rows]
            starts = [each for each in events if isinstance(each, RunStarted | RunResumed)]
            run = StoredRun(starts if has_ended else events)
            inputs = self._inputs_of(run) if isinstance(events[0], RunStarted) else {}
        # There may be no events. Else a damaged row can make the decoding and the replay raise
        # anything, as it can in `RunReader._replay`.
        except Exception:
            return RunSummary()
        if not has_ended:
            unsettled = run.counts[StepStatus.PENDING] + run.counts[StepStatus.RUNNING]
            active = [n for n, step in run.steps.items() if step.status is StepStatus.RUNNING]
            waits = [n for n, step in run.steps.items() if step.waiting_since is not None]
            sent = self._signals.read(run_id) if waits else {}
            answered = [name for name in waits if sent.get(name) is not None]
            count = len(run.steps)
            return RunSummary(
                inputs, count, count - unsettled, tuple(active), tuple(waits), tuple(answered)
            )
        last = events[-1]
        if isinstance(last, StepFailed):
            return RunSummary(inputs, failed_step=last.step, error=last.error)
        reason = last.stop_reason if isinstance(last, RunFinished) else None
        return RunSummary(inputs, stop_reason=reason)

    def _inputs_of(self, run: StoredRun) -> dict[str, Any]:
        return {
            name: REDACTED_OUTPUT if name in run.secret_inputs else self._codec.shown(name, value)
            for name, value in run.inputs.items()
        }


def read_brief(store: Store, *wanted: tuple[str, Sequence[str]]) -> dict[Any, list[Sequence[Any]]]:
    """Return rows of events, without outputs, by run and in their order.

    What is wanted is the source of a SELECT, such as `OF_STEPS`, for the runs with some ids.
    """
    parts: list[tuple[str, list[str]]] = []
    for source, run_ids in wanted:
        for chunk in chunks(padded(run_ids)):
            sql = f"SELECT {_BRIEF} FROM {source}".replace("{ids}", marks(len(chunk)))
            parts.append((sql, chunk))
    rows: list[Sequence[Any]] = []
    for at in range(0, len(parts), _PARTS):
        several = parts[at : at + _PARTS]
        sql = " UNION ALL ".join(sql for sql, _ in several)
        rows += store.read(sql, [*chain(*(chunk for _, chunk in several))])
    found: dict[Any, list[Sequence[Any]]] = {}
    for row in sorted(rows, key=_position_of):
        found.setdefault(row[0], []).append(row)
    return found


def brief_event_of(row: Sequence[Any]) -> Event:
    """Return an event that was read without its output."""
    event = event_of(row, is_brief=True)
    if isinstance(event, ResultReused):
        return replace(event, items=None)  # they are not read
    return event


def _replay_of_steps(row: RunRow, rows: Sequence[Sequence[Any]]) -> StoredRun | None:
    """Return the replay of a run from its events without those of items; None if it is damaged."""
    try:
        events = [brief_event_of(each) for each in rows]
        count = rows[-1][1] if rows else 0
        if contradiction(row.run_id, row, events, count):
            return None
        return StoredRun(events, without_items=True)
    # Only our decoding and our replay are in here, as in `RunReader._replay`.
    except Exception:
        return None


def _position_of(row: Sequence[Any]) -> int:
    position = row[1]
    return position if isinstance(position, int) else 0  # a damaged one is of any type
