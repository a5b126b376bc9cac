"""Whole runs: their events, notes and reports, with decoded values.

Every method runs in the journal's thread for reading.

One guarded replay: every reader of a whole run reads what `RunReader._replay` returns, so that
whatever is damaged in a run, each of them gets the same `RunUnreadableError`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from asyncflow._core.analysis.comparison import RunComparison, compare
from asyncflow._core.errors import (
    JournalError,
    LeaseLostError,
    PayloadError,
    RunUnreadableError,
)
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import Payload, RunStatus, StepStatus
from asyncflow._core.history.stored_report import report_from
from asyncflow._core.text import describe_fully, did_you_mean
from asyncflow.events import (
    Event,
    ResultReused,
    RunResumed,
    RunStarted,
    StepSucceeded,
)
from asyncflow.journal._codec.payloads import Codec
from asyncflow.journal._codec.signal_types import check_payload
from asyncflow.journal._read.overviews import LATEST_START, OF_STEPS, brief_event_of, read_brief
from asyncflow.journal._read.queries import StoredEvent
from asyncflow.journal._read.run_lists import RunLists, RunRow, contradiction
from asyncflow.journal._write.notes import NoteFilter, note_of
from asyncflow.journal._write.signals import EXPIRED, SENT, SentSignal, Signals, is_same, why_second
from asyncflow.journal._write.store import Store

_NOTES = 1_000
"""How many notes to read at a time: SQL can't search their texts."""
_FIXED = RunRow._fields.index("owner")
"""How many columns of the row of a run come before those of its lease."""


class RunReader:
    """Reads whole runs from a store.

    Its methods raise `RunNotFoundError` if there is no such run, and `RunUnreadableError` if it is
    damaged, or a newer asyncflow wrote it.
    """

    def __init__(self, store: Store, lists: RunLists, codec: Codec) -> None:
        self._store = store
        self._lists = lists
        self._signals = Signals(store)
        self._name = store.database.name
        self._codec = codec

    def history(self, run_id: str, last: int) -> StoredRun:
        """Return the replay of a claimed run, whose last position is known, with all that it has.

        Raises:
            LeaseLostError: There are more: another process has claimed the run meanwhile.
            JournalError: There are fewer: the database that is read lags behind.
        """

        def read() -> StoredRun:
            run = self._replay_with_log(run_id, last) or StoredRun()
            run.journal.checkpoints, run.journal.calls = self._store.saved(run_id)
            return run

        return self._store.together(read)

    def passed(self, run_id: str) -> StoredRun | None:
        """Return the replay of a run that has passed, which is final; ``None`` for any other."""
        row = self._lists.row(run_id)
        if row is None or row.status != "passed":
            return None
        run = self._replay_with_log(run_id)
        return run if run is not None and run.status is RunStatus.PASSED else None

    def _replay_with_log(self, run_id: str, last: int | None = None) -> StoredRun | None:
        """Return the same as `_replay`, with what the run's report needs to have its events."""
        events = list[Event]()
        run = self._replay(run_id, last, events)
        if run is not None:
            run.log = events
        return run

    def _replay(
        self, run_id: str, last: int | None = None, events: list[Event] | None = None
    ) -> StoredRun | None:
        """Return the replay of a run, and add its events to a list; ``None`` if there is none.

        Raise `JournalError` if its last position is known and another one, as `history` says.
        """
        row = self._lists.row(run_id)
        while True:
            run, ends, count = StoredRun(), list[Event](), 0
            failure: tuple[int, Exception] | None = None
            for event in self._store.events(run_id):
                count += 1
                ends[1:] = [event]
                if events is not None:
                    events.append(event)
                try:
                    if failure is None:
                        run.apply(event)
                # Only our replay is in here. Events that don't follow from each other can make it
                # raise anything, as they can make the decoding of a row.
                except Exception as error:
                    failure = count, error
            if last is not None:
                self._check_last(run_id, count, last)
            before, problem = row, contradiction(run_id, row, ends, count)
            if not problem:
                break
            # Between the two reads it may have begun, resumed, ended or been deleted. Then columns
            # other than those of its lease have changed. NaN in a damaged row differs from itself.
            row = self._lists.row(run_id)
            if repr(row and row[:_FIXED]) == repr(before and before[:_FIXED]):
                raise RunUnreadableError(self._name, run_id, problem)
            if events is not None:
                events.clear()
        if failure is not None:
            position, cause = failure
            problem = f"it does not follow from the events before it ({describe_fully(cause)})"
            try:
                raise RunUnreadableError(self._name, run_id, problem, position) from cause
            finally:
                del failure, cause  # its traceback refers to this frame, and so to the replay
        if run.signals.schemas or last is not None:  # its owner asks only for what comes later
            run.signals.sent = self._signals.read(run_id)
        return run if count else None

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

    def events(self, run_id: str, after: int) -> list[StoredEvent]:
        """Return the events of a run after a position."""
        found: list[Any] = []
        if after:
            # A part can't be replayed. Its rows are checked, and a follower replays them.
            found += self._store.events(run_id, after)
        else:
            self._replay(run_id, events=found)
        if not found:
            self._lists.check_exists(run_id)
        for at, event in enumerate(found):  # in its place: they may be many
            position = after + at + 1
            found[at] = StoredEvent(position, self._decoded(run_id, position, event))
        return found

    def notes(self, run_id: str, where: NoteFilter) -> list[StoredEvent]:
        """Return the notes of a run that a filter selects. What is damaged is replaced."""
        found: list[StoredEvent] = []
        limit = math.inf if where.limit is None else where.limit
        page = _NOTES if where.text else int(min(limit, _NOTES))
        left = where
        while len(found) < limit:
            rows = self._store.notes(run_id, left, page)
            for row in rows:
                note = note_of(row, with_data=where.data)
                if where.selects(note) and len(found) < limit:
                    found.append(StoredEvent(row[1], note))
            if len(rows) < page:
                break
            left = left.beyond(rows[-1][1])
        if not found:
            self._lists.check_exists(run_id)
        return found[::-1] if where.newest else found

    def report(self, run_id: str) -> RunReport:
        """Return the report of a run as far as it has come."""
        return self._report_of(run_id, self.run(run_id, with_log=True))

    def run(self, run_id: str, *, with_log: bool = False) -> StoredRun:
        """Return the replay of a run as far as it has come, if asked with a log for its report."""
        run = (self._replay_with_log if with_log else self._replay)(run_id)
        if run is None:
            raise self._lists.unknown(run_id)
        if run.is_running:
            status = self._lists.record(run_id).status
            run.journal.is_orphaned = status is RunStatus.ORPHANED
        return run

    def _report_of(self, run_id: str, run: StoredRun) -> RunReport:
        return report_from(run, partial(self._shown, run_id, None))

    def comparison(self, run_id: str, baseline: str) -> RunComparison:
        """Return how a run differs from a baseline."""
        reports, fingerprints = [], []
        for each in (run_id, baseline):  # one replay at a time
            run = self.run(each)
            reports.append(self._report_of(each, run))
            fingerprints.append(run.carryover.fingerprints)
            del run
        return compare(*reports, fingerprints=(fingerprints[0], fingerprints[1]))

    def schema(self, run_id: str, name: str) -> Mapping[str, Any]:
        """Return the schema of a signal; raise `ValueError` if the run has none of this name."""
        run, _ = self._run_with(run_id, name)
        schema: Mapping[str, Any] = run.signals.schemas[name]
        return schema

    def _run_with(self, run_id: str, signal: str) -> tuple[StoredRun, int | None]:
        """Return what is known of a run that has a signal of this name.

        It comes with the checksum of the run.
        """

        def read() -> tuple[Sequence[Sequence[Any]], int | None]:
            names, checksum = self._signals.waited_for(run_id)
            # While it waits for this, nothing but the types is of interest.
            wanted = LATEST_START if signal in names else OF_STEPS
            return read_brief(self._store, (wanted, [run_id])).get(run_id, ()), checksum

        rows, checksum = self._store.together(read)
        if not rows:
            raise self._lists.unknown(run_id)
        run = StoredRun(without_items=True)
        for row in rows:
            try:
                run.apply(brief_event_of(row))
            except Exception as error:  # as in `_replay`: a damaged row can make it raise anything
                problem = describe_fully(error)
                raise RunUnreadableError(self._name, run_id, problem, row[1]) from error
        known = run.signals.schemas
        if signal not in known:
            names = ", ".join(map(repr, known))
            hint = did_you_mean(signal, known) or (names and f"; its signals are {names}")
            raise ValueError(f"run {run_id!r} waits for no signal {signal!r}{hint}")
        return run, checksum

    def check_signal(
        self, run_id: str, name: str, payload: Payload, sent_by: str = "", note: str = ""
    ) -> SentSignal | None:
        """Return what to send to a run; ``None`` if its step has taken the value already.

        Raise `ValueError` if the run has no signal of this name, if the value can't be of its type,
        or if its step has another value, or was skipped by its condition.
        """
        run, checksum = self._run_with(run_id, name)
        sent = SentSignal(run_id, name, payload, checksum, sent_by, note)
        check_payload(name, payload, run.signals.schemas[name])
        step = run.carryover.settled().get((name, None))
        if step is None:
            return sent
        received = self._signals.read(run_id)
        if received.get(name) is not None:
            return sent  # the row of the value that was sent tells whether this is the same
        if step.status is StepStatus.SKIPPED and step.by_condition:
            raise ValueError(
                f"signal {name!r} of run {run_id!r} was skipped by its condition, so it takes no "
                "value"
            )
        if step.status is not StepStatus.SUCCESS:
            return sent
        output = self.run(run_id).carryover.settled()[name, None].output
        if isinstance(output, Payload) and is_same(output, payload):
            return None
        raise ValueError(why_second(run_id, name, EXPIRED if name in received else SENT))

    def _decoded(self, run_id: str, position: int, event: Event) -> Event:
        shown = partial(self._shown, run_id, position)
        if isinstance(event, StepSucceeded | ResultReused):
            output = event.output
            return replace(event, output=output and shown(event.step, output))
        if isinstance(event, RunStarted | RunResumed):
            inputs = {name: shown(name, value) for name, value in event.inputs.items()}
            return replace(event, inputs=inputs)
        return event

    def _shown(self, run_id: str, position: int | None, name: str, payload: Payload) -> Any:
        """Return what readers see of a payload; raise `RunUnreadableError` if it is damaged."""
        try:
            return self._codec.shown(name, payload)
        except PayloadError as error:
            raise RunUnreadableError(self._name, run_id, str(error), position) from error
