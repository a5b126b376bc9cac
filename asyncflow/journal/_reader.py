"""Reads runs from a store: their records, events and reports, with decoded values.

Every method runs in the journal's thread for reading.

One guarded replay: every reader of a whole run reads what `JournalReader._replay` returns, so that
whatever is damaged in a run, each of them gets the same `RunUnreadableError`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, starmap
from typing import Any, get_args

from asyncflow._core.comparison import RunComparison, compare
from asyncflow._core.error_text import describe_fully
from asyncflow._core.errors import (
    JournalError,
    LeaseLostError,
    PayloadError,
    RunNotFoundError,
    RunUnreadableError,
)
from asyncflow._core.remote_output import RemoteOutput, is_remote
from asyncflow._core.replay import StoredRun
from asyncflow._core.report import RunReport
from asyncflow._core.results import (
    REDACTED,
    REDACTED_OUTPUT,
    InterruptionCause,
    Payload,
    RestoredOutput,
    RunStatus,
    StepStatus,
)
from asyncflow._core.statistics import ItemCounts, StepRun, step_runs, step_statistics, usual
from asyncflow._core.text import did_you_mean, safe_text
from asyncflow.events import (
    Event,
    RunFinished,
    RunResumed,
    RunStarted,
    StepFailed,
    StepSucceeded,
    StepTakenOver,
)
from asyncflow.journal._event_codec import (
    column_of,
    event_of,
    event_without_output,
    from_column,
    is_moment,
    run_checksum,
    status_column,
)
from asyncflow.journal._machine import is_void
from asyncflow.journal._notes import NoteFilter, note_of
from asyncflow.journal._payload_codec import Codec
from asyncflow.journal._queries import (
    UNENDED,
    UNFINISHED,
    USUAL_RUNS,
    PipelineStatistics,
    RunFilter,
    RunRecord,
    RunSummary,
    StoredEvent,
)
from asyncflow.journal._run_lists import RunRow
from asyncflow.journal._schema import mismatch
from asyncflow.journal._signals import EXPIRED, SENT, is_same, why_second
from asyncflow.journal._store import Store

_PAGE = 1_000
"""How many runs to read at a time when only orphaned ones are wanted: SQL can't tell which are."""

_NOTES = 1_000
"""How many notes to read at a time: SQL can't search their texts."""
_FIXED = RunRow._fields.index("owner")
"""How many columns of the row of a run come before those of its lease."""

_PICKLED = 'it is pickled, and read only with codec="cloudpickle"'


class JournalReader:
    """Answers queries about stored runs.

    Its methods raise `RunNotFoundError` if there is no such run, and `RunUnreadableError` if it is
    damaged, or a newer asyncflow wrote it.
    """

    def __init__(self, store: Store, codec: Codec) -> None:
        self.store = store
        self._name = store.database.name
        self._codec = codec

    def history(self, run_id: str, last: int) -> StoredRun:
        """Return the replay of a claimed run, whose last position is known, with checkpoints.

        Raises:
            LeaseLostError: There are more: another process has claimed the run meanwhile.
            JournalError: There are fewer: the database that is read lags behind.
        """
        run, _ = self._replay(run_id, last)
        run.checkpoints = self.store.checkpoints(run_id)
        return run

    def passed(self, run_id: str) -> StoredRun | None:
        """Return the replay of a run that has passed, which is final; ``None`` for any other."""
        row = self.store.lists.run(run_id)
        if row is None or _STATUSES.get(row.status) is not RunStatus.PASSED:
            return None
        run, _ = self._replay(run_id)
        return run if run.status is RunStatus.PASSED else None

    def _replay(
        self, run_id: str, last: int | None = None
    ) -> tuple[StoredRun, list[tuple[int, Event]]]:
        """Return the replay of a run and its events, each with its position; none if there is none.

        Raise `JournalError` if its last position is known and another one, as `history` says.
        """
        row = self.store.lists.run(run_id)
        while True:
            stored = self.store.events(run_id)
            if last is not None:
                self._check_last(run_id, len(stored), last)
            events = [event for _, event in stored]
            before, problem = row, _contradiction(run_id, row, events, len(events))
            if not problem:
                break
            # Between the two reads it may have begun, resumed, ended or been deleted. Then columns
            # other than those of its lease have changed. NaN in a damaged row differs from itself.
            row = self.store.lists.run(run_id)
            if repr(row and row[:_FIXED]) == repr(before and before[:_FIXED]):
                raise RunUnreadableError(self._name, run_id, problem)
        run, position = StoredRun(), 0
        try:
            for _, event in stored:
                position += 1
                run.apply(event)
        # Only our replay is in here. Events that don't follow from each other can make it raise
        # anything, as they can make the decoding of a row.
        except Exception as error:
            problem = f"it does not follow from the events before it ({describe_fully(error)})"
            raise RunUnreadableError(self._name, run_id, problem, position) from error
        return run, stored

    def _check_last(self, run_id: str, seen: int, last: int) -> None:
        if seen > last:
            raise LeaseLostError(
                self._name,
                f"another process has taken over run {run_id!r} while this one was reading its "
                "events, because this one did not renew its lease in time: it stood still; "
                "nothing was done here, and the other process continues the run",
            )
        if seen < last:
            raise JournalError(
                self._name,
                f"it shows up to {seen} of the {last} events of run {run_id!r}, so nothing was "
                "done: they seem to come from a standby that is behind; name the primary "
                "server, or all of them with target_session_attrs=read-write",
            )

    def runs(self, where: RunFilter) -> list[RunRecord]:
        """Return the runs that a filter selects."""
        if where.status not in UNFINISHED:
            return [_record_of(row) for row in self.store.lists.runs(where)]
        found: list[RunRecord] = []
        page = replace(where, limit=_PAGE)
        while where.limit is None or len(found) < where.limit:
            records = [_record_of(row) for row in self.store.lists.runs(page)]
            found += [record for record in records if record.status is where.status]
            if len(records) < _PAGE:
                break
            page = replace(page, before=records[-1].place)
        return found[: where.limit]

    def statistics(self, pipeline: str, runs: int) -> PipelineStatistics:
        """Return the statistics of the latest runs of a pipeline."""
        rows = self.store.lists.runs(RunFilter(pipeline=pipeline, limit=runs))
        run_ids = [row.run_id for row in rows]
        events, items = self.store.lists.step_events(run_ids), self._item_counts(run_ids)
        records: list[RunRecord] = []
        steps: list[dict[str, StepRun]] = []
        for row in rows:
            run = _replay_of_steps(row, events.get(row.run_id, ()))
            if run is None:  # unless it has changed between the two reads, it is damaged
                again = self.store.lists.run(row.run_id)
                if again is None:
                    continue
                row, run_id = again, row.run_id
                run = _replay_of_steps(row, self.store.lists.step_events([run_id]).get(run_id, ()))
            record = _record_of(row)
            records.append(record if run else replace(record, damaged=True))
            steps.append(step_runs(run, items.get(row.run_id, {})) if run else {})
        return PipelineStatistics(pipeline, tuple(records), step_statistics(steps))

    def usual_ms(self, pipeline: str) -> float | None:
        """Return how long runs of a pipeline usually take, in milliseconds."""
        if not pipeline:
            return None
        passed = self.runs(RunFilter(RunStatus.PASSED, pipeline=pipeline, limit=USUAL_RUNS))
        return usual(PipelineStatistics(pipeline, tuple(passed), {}).passed_ms)

    def _item_counts(self, run_ids: Sequence[str]) -> dict[str, dict[str, ItemCounts]]:
        return {
            run_id: {_name_of(step): ItemCounts(*counts) for step, counts in steps.items()}
            for run_id, steps in self.store.lists.item_counts(run_ids).items()
        }

    def summaries(self, records: Iterable[RunRecord]) -> dict[str, RunSummary]:
        """Return what a list says of runs beside their records, by id."""
        by_status: dict[RunStatus, list[str]] = {status: [] for status in RunStatus}
        pipelines: dict[str, str] = {}
        for record in records:
            by_status[record.status].append(record.run_id)
            if record.status is RunStatus.RUNNING and not record.rerun_of:
                pipelines[record.run_id] = record.pipeline
        usual_ms = {name: self.usual_ms(name) for name in {*pipelines.values()}}
        running = [*chain(*map(by_status.pop, UNENDED))]
        ended = [*chain(*by_status.values())]
        events = self.store.lists.brief_events(
            running, ended, by_status[RunStatus.FAILED], by_status[RunStatus.INTERRUPTED]
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
            events = [_brief_event_of(row) for row in rows]
            starts = [each for each in events if isinstance(each, RunStarted | RunResumed)]
            run = StoredRun(starts if has_ended else events)
            inputs = self._inputs_of(run) if isinstance(events[0], RunStarted) else {}
        # There may be no events. Else a damaged row can make the decoding and the replay raise
        # anything, as it can in `_replay`.
        except Exception:
            return RunSummary()
        if not has_ended:
            unsettled = run.counts[StepStatus.PENDING] + run.counts[StepStatus.RUNNING]
            active = [n for n, step in run.steps.items() if step.status is StepStatus.RUNNING]
            waits = [n for n, step in run.steps.items() if step.waiting_since is not None]
            sent = self.store.signals.read(run_id) if waits else {}
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
            name: REDACTED_OUTPUT
            if name in run.secret_inputs
            else self._shown(run.run_id, 1, name, value)
            for name, value in run.inputs.items()
        }

    def counts(self, where: RunFilter) -> dict[RunStatus, int]:
        """Return how many of the runs that a filter selects have which status."""
        counts = dict.fromkeys(RunStatus, 0)
        for column, count in self.store.lists.counts(where):
            counts[_STATUSES.get(column, RunStatus.RUNNING)] += count
        if counts[RunStatus.RUNNING]:
            orphaned = sum(starmap(_is_orphaned, self.store.lists.leases_of_running(where)))
            # Others may have begun between the two reads.
            counts[RunStatus.ORPHANED] = min(orphaned, counts[RunStatus.RUNNING])
            counts[RunStatus.RUNNING] -= counts[RunStatus.ORPHANED]
        return counts

    def pipelines(self) -> list[str]:
        """Return the names of the pipelines that have runs, sorted."""
        return sorted(set(map(_name_of, self.store.lists.pipelines())))

    def record(self, run_id: str) -> RunRecord:
        """Return the record of a run; a damaged one if the run has events and no row."""
        row = self.store.lists.run(run_id)
        if row is None:
            self.check_exists(run_id)
            return _record_of(RunRow(run_id, *[None] * (len(RunRow._fields) - 1)))
        return _record_of(row)

    def events(self, run_id: str, after: int) -> list[StoredEvent]:
        """Return the events of a run after a position."""
        # A part can't be replayed. Its rows are checked, and a follower of the run replays them.
        stored = self.store.events(run_id, after) if after else self._replay(run_id)[1]
        if not stored:
            self.record(run_id)
        return [StoredEvent(at, self._decoded(run_id, at, event)) for at, event in stored]

    def notes(self, run_id: str, where: NoteFilter) -> list[StoredEvent]:
        """Return the notes of a run that a filter selects. What is damaged is replaced."""
        found: list[StoredEvent] = []
        limit = math.inf if where.limit is None else where.limit
        page = _NOTES if where.text else int(min(limit, _NOTES))
        left = where
        while len(found) < limit:
            rows = self.store.notes(run_id, left, page)
            for row in rows:
                note = note_of(row, with_data=where.data)
                if where.selects(note) and len(found) < limit:
                    found.append(StoredEvent(row[1], note))
            if len(rows) < page:
                break
            left = left.beyond(rows[-1][1])
        if not found:
            self.record(run_id)
        return found[::-1] if where.newest else found

    def report(self, run_id: str) -> RunReport:
        """Return the report of a run as far as it has come."""
        return self._report_of(run_id, self.run(run_id))

    def run(self, run_id: str) -> StoredRun:
        """Return the replay of a run as far as it has come."""
        run, stored = self._replay(run_id)
        if not stored:
            raise self.unknown(run_id)
        return run

    def _report_of(self, run_id: str, run: StoredRun) -> RunReport:
        return run.report(partial(self._shown, run_id, None))

    def comparison(self, run_id: str, baseline: str) -> RunComparison:
        """Return how a run differs from a baseline."""
        run, other = self.run(run_id), self.run(baseline)
        reports = self._report_of(run_id, run), self._report_of(baseline, other)
        return compare(*reports, fingerprints=(run.fingerprints, other.fingerprints))

    def last_passed(self, run_id: str) -> RunRecord | None:
        """Return the last run of the same pipeline that passed and started before a run."""
        record = self.record(run_id)
        if not record.pipeline:
            return None
        before = record.place
        where = RunFilter(RunStatus.PASSED, pipeline=record.pipeline, before=before, limit=1)
        return next(iter(self.runs(where)), None)

    def waiting(self, run_id: str) -> RunRecord | None:
        """Return the record of a run if it waits for a signal."""
        row = self.store.lists.run(run_id)
        record = None if row is None else _record_of(row)
        return record if record is not None and record.status is RunStatus.WAITING else None

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
            due = self.store.signals.due(now, names, wanted, seen, among)
            rows = self.store.lists.some(due)
            found += [
                _record_of(row)
                for row in map(rows.get, due)
                if row and row.status == "waiting" and _is_orphaned(row.owner, row.process)
            ]
            if len(due) < wanted:
                break
            seen.update(due)
        return found

    def check_signal(self, run_id: str, name: str, payload: Payload) -> bool:
        """Return whether a value is news to a run, whose step may have taken it already.

        Raise `ValueError` if the run has no signal of this name, if the value can't be of its type,
        or if its step has another value, or was skipped by its condition.
        """
        lists = self.store.lists
        # While it waits for this, nothing but the types is of interest.
        is_waited_for = name in self.store.signals.waited_for(run_id)
        read = lists.latest_starts if is_waited_for else lists.step_events
        rows = read([run_id]).get(run_id, ())
        if not rows:
            raise self.unknown(run_id)
        run = StoredRun(without_items=True)
        for row in rows:
            try:
                run.apply(_brief_event_of(row))
            except Exception as error:  # as in `_replay`: a damaged row can make it raise anything
                problem = describe_fully(error)
                raise RunUnreadableError(self._name, run_id, problem, row[1]) from error
        if name not in run.signals:
            names = ", ".join(map(repr, run.signals))
            hint = did_you_mean(name, run.signals) or (names and f"; its signals are {names}")
            raise ValueError(f"run {run_id!r} waits for no signal {name!r}{hint}")
        if payload.codec in ("json", "json-plain"):
            problem = mismatch(json.loads(payload.data), run.signals[name])
            if problem:
                shown = safe_text(str, payload.data.decode())
                raise ValueError(f"signal {name!r} {problem}, not {shown}")
        step = run.settled().get((name, None))
        if step is None:
            return True
        received = self.store.signals.read(run_id)
        if received.get(name) is not None:
            return True  # the row of the value that was sent tells whether this is the same
        if step.status is StepStatus.SKIPPED and step.by_condition:
            raise ValueError(
                f"signal {name!r} of run {run_id!r} was skipped by its condition, so it takes no "
                "value"
            )
        if step.status is not StepStatus.SUCCESS:
            return True
        # A long output was left out.
        output = self.run(run_id).settled()[name, None].output
        if isinstance(output, Payload) and is_same(output, payload):
            return False
        raise ValueError(why_second(run_id, name, EXPIRED if name in received else SENT))

    def check_exists(self, run_id: str) -> None:
        """Check that there is a run, even a damaged one."""
        try:
            if not self.store.last_positions(run_id)[0]:
                raise self.unknown(run_id)
        except RunUnreadableError:
            pass  # there is something of it

    def unknown(self, run_id: str) -> RunNotFoundError:
        """Return the error for a run that does not exist, with the most similar id."""
        others = [record.run_id for record in self.runs(RunFilter(limit=1_000))]
        return RunNotFoundError(run_id, self._name, did_you_mean(run_id, others))

    def _decoded(self, run_id: str, position: int, event: Event) -> Event:
        shown = partial(self._shown, run_id, position)
        if isinstance(event, StepSucceeded | StepTakenOver):
            output = event.output
            return replace(event, output=output and shown(event.step, output))
        if isinstance(event, RunStarted | RunResumed):
            inputs = {name: shown(name, value) for name, value in event.inputs.items()}
            return replace(event, inputs=inputs)
        return event

    def _shown(self, run_id: str, position: int | None, name: str, payload: Payload) -> Any:
        """Return the value of a payload, or a `RestoredOutput` if it must not be decoded.

        Raise `RunUnreadableError` if it can't be decoded, although it needs no code of the user.
        """
        if payload == REDACTED:
            return REDACTED_OUTPUT
        if is_remote(payload):
            return RemoteOutput.from_payload(payload)
        try:
            return self._codec.decode(name, payload, Any)
        except PayloadError as error:
            if payload.codec == "cloudpickle":
                return RestoredOutput(f"<{_PICKLED}>")
            raise RunUnreadableError(self._name, run_id, str(error), position) from error


def _contradiction(run_id: str, row: RunRow | None, events: Sequence[Event], count: int) -> str:
    """Return in what the row of a run and its events contradict each other; empty if in nothing.

    ``events`` are its events, or those of steps alone, and ``count`` says how many it has in all.
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
        row.forked_from or "",
        row.label or "",
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


def _columns_of(event: RunStarted) -> list[str]:
    return [
        column_of(text)
        for text in (event.pipeline, event.parent, event.parent_step, event.rerun_of, event.label)
    ]


def _replay_of_steps(row: RunRow, rows: Sequence[Sequence[Any]]) -> StoredRun | None:
    """Return the replay of a run from its events without those of items; None if it is damaged."""
    try:
        events = [_brief_event_of(each) for each in rows]
        count = rows[-1][1] if rows else 0
        if _contradiction(row.run_id, row, events, count):
            return None
        return StoredRun(events, without_items=True)
    # Only our decoding and our replay are in here, as in `JournalReader._replay`.
    except Exception:
        return None


def _brief_event_of(row: Sequence[Any]) -> Event:
    """Return an event that was read without its output if that is long."""
    _, _, kind, *_, codec, payload, data, _ = row
    has_output = codec is not None if kind == "StepSucceeded" else kind == "StepTakenOver"
    is_cut = has_output and payload is None and data is None
    event = event_without_output(row) if is_cut else event_of(row)
    if isinstance(event, StepTakenOver):
        return replace(event, items=None)  # they are not read
    return event


def _name_of(column: object) -> str:
    """Return a name from its column, or something like it if the column is damaged."""
    try:
        return from_column(column)  # type: ignore[arg-type]
    except (AttributeError, TypeError, ValueError):
        return _text_of(column)


def _record_of(row: RunRow) -> RunRecord:
    is_damaged = not _is_sound(row)
    status = _STATUSES.get(row.status, RunStatus.RUNNING)
    if status is RunStatus.RUNNING and _is_orphaned(row.owner, row.process):
        status = RunStatus.ORPHANED
    return RunRecord(
        run_id=_text_of(row.run_id),
        pipeline="" if is_damaged else from_column(row.pipeline),
        status=status,
        started_at=row.started_at if is_moment(row.started_at) else 0.0,
        updated_at=row.updated_at if is_moment(row.updated_at) else 0.0,
        owner=None if row.owner is None else _text_of(row.owner),
        latest_ms=row.latest_ms if _is_number(row.latest_ms) else 0.0,
        paused_s=row.paused_s if _is_number(row.paused_s) else 0.0,
        damaged=is_damaged,
        parent="" if is_damaged else from_column(row.parent or ""),
        parent_step="" if is_damaged else from_column(row.parent_step or ""),
        rerun_of="" if is_damaged else from_column(row.forked_from or ""),
        label="" if is_damaged else from_column(row.label or ""),
        cause=row.cause if row.cause in get_args(InterruptionCause) else None,
        crashes=max(0, (row.starts or 0) - (status is RunStatus.RUNNING)),
    )


def _is_orphaned(owner: object, process: object) -> bool:
    """Whether no process runs a run that has not ended, by its lease."""
    return owner is None or is_void(process if isinstance(process, str) else "")


_STATUSES: Mapping[object, RunStatus] = {
    status_column(each): each for each in RunStatus if each is not RunStatus.ORPHANED
}


def _is_sound(row: RunRow) -> bool:
    """Whether the row of a run is undamaged, as far as its checksum and the types tell."""
    try:
        others = row.parent, row.parent_step, row.forked_from, row.label
        checksum = run_checksum(row.run_id, row.pipeline, row.started_at, *others)
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
