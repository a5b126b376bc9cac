"""Reads runs from a store: their records, events and reports, with decoded values.

Every method runs in the journal's thread for reading.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from asyncflow._core.errors import (
    JournalError,
    PayloadError,
    RunNotFoundError,
    describe_fully,
    did_you_mean,
)
from asyncflow._core.replay import StoredRun
from asyncflow._core.report import RunReport
from asyncflow._core.results import REDACTED, REDACTED_OUTPUT, Payload, RestoredOutput
from asyncflow.events import Event, RunFinished, RunResumed, RunStarted, StepSucceeded
from asyncflow.journal._event_codec import from_column
from asyncflow.journal._payload_codec import Codec
from asyncflow.journal._queries import RunFilter, RunRecord, StoredEvent
from asyncflow.journal._store import RunRow, Store
from asyncflow.journal._worker import is_dead

__all__ = ["JournalReader"]

_PAGE = 1_000
"""How many runs to read at a time when only orphaned ones are wanted: SQL can't tell which are."""

_PICKLED = 'it is pickled, and read only with codec="cloudpickle"'


class JournalReader:
    """Answers queries about stored runs.

    Args:
        store: The database.
        codec: Decodes outputs and inputs.
    """

    def __init__(self, store: Store, codec: Codec) -> None:
        self.store = store
        self._name = store.database.name
        self._codec = codec

    def history(self, run_id: str, last: int) -> list[Event]:
        """Return the events of a claimed run, whose last position is known.

        Raises:
            JournalError: The last position is another one: the database that is read lags behind.
        """
        stored = self.store.events(run_id)
        if not stored or stored[-1][0] != last:
            seen = stored[-1][0] if stored else 0
            raise JournalError(
                self._name,
                f"it shows up to {seen} of the {last} events of run {run_id!r}, so nothing was "
                "done: they seem to come from a standby that is behind; name the primary "
                "server, or all of them with target_session_attrs=read-write",
            )
        return [event for _, event in stored]

    def passed(self, run_id: str) -> list[Event]:
        """Return the events of a run that has passed, which are final; of any other run, none."""
        row = self.store.run(run_id)
        if row is None or row.status != "passed":
            return []
        events = [event for _, event in self.store.events(run_id)]
        last = events[-1] if events else None
        return events if isinstance(last, RunFinished) and last.outcome == "passed" else []

    def runs(self, where: RunFilter) -> list[RunRecord]:
        """Return the runs that a filter selects."""
        if where.orphaned is None:
            return [_record_of(row) for row in self.store.runs(where)]
        found: list[RunRecord] = []
        page = replace(where, limit=_PAGE)
        while where.limit is None or len(found) < where.limit:
            records = [_record_of(row) for row in self.store.runs(page)]
            found += [record for record in records if record.orphaned == where.orphaned]
            if len(records) < _PAGE:
                break
            page = replace(page, before=records[-1].place)
        return found[: where.limit]

    def record(self, run_id: str) -> RunRecord:
        """Return the record of a run.

        Raises:
            RunNotFoundError: There is no such run.
        """
        row = self.store.run(run_id)
        if row is None:
            raise self.unknown(run_id)
        return _record_of(row)

    def events(self, run_id: str, after: int) -> list[StoredEvent]:
        """Return the events of a run after a position.

        Raises:
            RunNotFoundError: There is no such run.
        """
        stored = self.store.events(run_id, after)
        if not stored:
            self.record(run_id)
        return [StoredEvent(position, self._decoded(event)) for position, event in stored]

    def report(self, run_id: str) -> RunReport:
        """Return the report of a run as far as it has come.

        Raises:
            RunNotFoundError: There is no such run.
            JournalError: Its events contradict each other: another program has changed them.
        """
        stored = self.store.events(run_id)
        if not stored:
            raise self.unknown(run_id)
        try:
            run = StoredRun(event for _, event in stored)
        except Exception as error:
            raise JournalError(
                self._name,
                f"the events of run {run_id!r} don't follow from each other "
                f"({describe_fully(error)}): another program has changed them; they were left as "
                "they are",
            ) from error
        return run.report(self._shown)

    def unknown(self, run_id: str) -> RunNotFoundError:
        """Return the error for a run that does not exist, with the most similar id."""
        others = [row.run_id for row in self.store.runs(RunFilter(limit=1_000))]
        return RunNotFoundError(run_id, self._name, did_you_mean(run_id, others))

    def _decoded(self, event: Event) -> Event:
        if isinstance(event, StepSucceeded):
            output = event.output
            return replace(event, output=output and self._shown(event.step, output))
        if isinstance(event, RunStarted | RunResumed):
            inputs = {name: self._shown(name, value) for name, value in event.inputs.items()}
            return replace(event, inputs=inputs)
        return event

    def _shown(self, name: str, payload: Payload) -> Any:
        """Return the value of a payload, or a `RestoredOutput` if it must not be decoded."""
        if payload == REDACTED:
            return REDACTED_OUTPUT
        try:
            return self._codec.decode(name, payload, Any)
        except PayloadError:
            return RestoredOutput(f"<{_PICKLED}>")


def _record_of(row: RunRow) -> RunRecord:
    status: Any = row.status
    orphaned = status == "running" and (row.owner is None or is_dead(row.process or ""))
    pipeline = from_column(row.pipeline)
    return RunRecord(
        row.run_id,
        pipeline,
        status,
        row.started_at,
        row.updated_at,
        row.owner,
        orphaned,
        row.latest_ms,
        max(row.paused_s, 0.0),
    )
