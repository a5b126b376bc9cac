"""Overviews of runs: statistics and lists.

Of a run whose latest segment has ended, its summary says how. The others are read: their events,
without outputs.

Every method runs in the journal's thread for reading. Rows may be damaged: an overview says so, or
leaves out what it would have read from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from asyncflow._core.analysis.slowness import Slower, is_comparable, is_slower, slower_of
from asyncflow._core.analysis.statistics import StepRun, step_runs, step_statistics
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.results import REDACTED_OUTPUT, RunStatus, StepStatus
from asyncflow._core.record import replace as with_changes
from asyncflow.events import Event, ResultReused, RunStarted
from asyncflow.journal._codec.events import event_of, read_error
from asyncflow.journal._codec.payloads import Codec
from asyncflow.journal._database.sql import chunks, marks, padded
from asyncflow.journal._database.tables import EVENT_COLUMNS
from asyncflow.journal._read.queries import (
    UNENDED,
    USUAL_RUNS,
    PipelineStatistics,
    RunFilter,
    RunRecord,
    RunSummary,
)
from asyncflow.journal._read.run_lists import RunLists, RunRow, contradiction, record_of
from asyncflow.journal._write.signals import Signals
from asyncflow.journal._write.store import Store
from asyncflow.journal._write.summaries import (
    SELECT_ENDS,
    SELECT_STEPS,
    SegmentEnd,
    Summary,
    summaries_by_run,
)

_LONGEST_START = 65_536
"""How many bytes of the first event of a run are read, of which only the inputs are shown."""
_BRIEF = ", ".join("NULL" if column == "data" else f"e.{column}" for column in EVENT_COLUMNS)
"""The columns of an event, without its output."""
_WHOLE = "events e WHERE e.run_id IN ({ids})"
OF_STEPS = f"{_WHOLE} AND e.item IS NULL"
_STARTS = (
    "events e {of_runs} WHERE e.step IS NULL AND e.run_id IN ({ids}) "
    "AND e.kind IN ('RunStarted', 'RunResumed') AND (e.kind = 'RunResumed' "
    f"OR {{bytes}}(e.payload) <= {_LONGEST_START})"
)
"""The first event, unless it is long, and those with which the run was resumed."""
LATEST_START = (
    f"{_WHOLE} AND e.position = (SELECT MAX(f.position) FROM events f {{of_runs}} WHERE "
    "f.run_id = e.run_id AND f.step IS NULL AND f.kind IN ('RunStarted', 'RunResumed'))"
)
"""The event with which the latest segment began."""

_LONGEST_STEPS = 65_536
"""Of a run with a longer summary, some 1,000 steps, a list does not say which ones were slower than
usual: it would decode that of twenty runs more."""

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
        rows = self._lists.rows(RunFilter(pipeline=pipeline, limit=runs), has_started=True)
        summaries = self._summaries(SELECT_STEPS, [row.run_id for row in rows])
        others = [row.run_id for row in rows if not _has_steps(summaries.get(row.run_id))]
        events = read_brief(self._store, (_WHOLE, others))
        records: list[RunRecord] = []
        steps: list[Mapping[str, StepRun]] = []
        for row in rows:
            run_id = row.run_id
            found = _steps_of(row, summaries.get(run_id), events.get(run_id, ()))
            if found is None:  # unless it has changed between the reads, it is damaged
                again = self._lists.row(run_id)
                if again is None:
                    continue
                row = again
                brief = read_brief(self._store, (_WHOLE, [run_id]))
                found = _steps_of(row, None, brief.get(run_id, ()))
            record = record_of(row)
            records.append(replace(record, damaged=True) if found is None else record)
            steps.append(found or {})
        return PipelineStatistics(pipeline, tuple(records), step_statistics(steps))

    def slower(self, records: Iterable[RunRecord]) -> dict[str, Slower]:
        """Return which runs were slower than usual, and in which steps, by id.

        Only for those, and for their pipelines, more is read than how long runs take.
        """
        usual_ms: dict[str, float | None] = {}
        slow: dict[str, list[RunRecord]] = {}
        for record in records:
            if record.damaged or not is_comparable(record.status, record.rerun_of):
                continue
            name = record.pipeline
            if name not in usual_ms:
                usual_ms[name] = self._lists.usual_ms(name)
            if is_slower(record.latest_ms, usual_ms[name]):
                slow.setdefault(name, []).append(record)
        found: dict[str, Slower] = {}
        for name, runs in slow.items():
            usual_run_ms = usual_ms[name]
            assert usual_run_ms is not None
            summaries = self._summaries(SELECT_STEPS, [run.run_id for run in runs])
            steps = {run.run_id: _few_steps_of(summaries.get(run.run_id)) for run in runs}
            usual = self.statistics(name, USUAL_RUNS).usual_ms if any(steps.values()) else {}
            for run_id, of_run in steps.items():
                took = {step: run.duration_ms for step, run in of_run.items() if run.has_passed}
                found[run_id] = slower_of(usual_run_ms, took, usual)
        return found

    def _summaries(self, select: str, run_ids: Sequence[str]) -> dict[Any, Summary]:
        found: dict[Any, Summary] = {}
        for chunk in chunks(padded(run_ids)):
            rows = self._store.read(select.replace("{ids}", marks(len(chunk))), chunk)
            found.update(summaries_by_run(rows))
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
        )
        ends = self._summaries(
            SELECT_ENDS, [*by_status[RunStatus.FAILED], *by_status[RunStatus.INTERRUPTED]]
        )
        return {
            run_id: replace(
                self._summary(run_id, events.get(run_id, ()), ends.get(run_id), has_ended),
                usual_ms=usual_ms.get(pipelines.get(run_id, "")),
            )
            for has_ended, run_ids in ((False, running), (True, ended))
            for run_id in run_ids
        }

    def _summary(
        self,
        run_id: str,
        rows: Sequence[Sequence[Any]],
        summary: Summary | None,
        has_ended: bool,
    ) -> RunSummary:
        try:
            events = [brief_event_of(row) for row in rows]
            run = StoredRun(events)
            end = SegmentEnd() if summary is None else summary.end()
            error = read_error(end.error)
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
        if error is not None:
            return RunSummary(inputs, failed_step=end.failed_step, error=error)
        return RunSummary(inputs, stop_reason=end.stop_reason)

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
    """Return an event that was read without its output, and without those of items."""
    event = event_of(row, is_brief=True)
    return with_changes(event, items=None) if isinstance(event, ResultReused) else event


def _few_steps_of(summary: Summary | None) -> Mapping[str, StepRun]:
    """Return how the steps of a run ended, by its summary; nothing if it has many, or is damaged.

    Then a list says no more than that the run was slower than usual.
    """
    try:
        if summary is None or not summary.data or len(summary.data) > _LONGEST_STEPS:
            return {}
        return summary.steps() or {}
    # Only our decoding is in here.
    except Exception:
        return {}


def _has_steps(summary: Summary | None) -> bool:
    return summary is not None and summary.data is not None


def _steps_of(
    row: RunRow, summary: Summary | None, rows: Sequence[Sequence[Any]]
) -> dict[str, StepRun] | None:
    """Return how the steps of a run ended, by its summary, or else by its events.

    ``None`` if it is damaged, or if these are of different moments.
    """
    try:
        if summary is not None and _has_steps(summary):
            is_of_row = summary.position == row.last_event and not record_of(row).damaged
            return summary.steps() if is_of_row else None
        events = [event_of(each, is_brief=True) for each in rows]
        count = rows[-1][1] if rows else 0
        if contradiction(row.run_id, row, events, count):
            return None
        run = StoredRun(events)
        run.journal.is_orphaned = record_of(row).status is RunStatus.ORPHANED
        return step_runs(run)
    # Only our decoding and our replay are in here, as in `RunReader._replay`.
    except Exception:
        return None


def _position_of(row: Sequence[Any]) -> int:
    position = row[1]
    return position if isinstance(position, int) else 0  # a damaged one is of any type
