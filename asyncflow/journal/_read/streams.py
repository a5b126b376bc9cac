"""Follows what the steps of a run stream, as it is stored.

The values are notes: a row has those that an attempt streamed within a moment. Its position is that
of the last of them, so the first one's follows from how many there are.

Readers in the process that commits are woken by the commit, others poll. What they ask at the same
moment is read once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from asyncflow._core.errors import RunNotFoundError
from asyncflow._core.running.streamed import StreamedValue
from asyncflow._core.text import did_you_mean
from asyncflow.events import RunResumed, RunStarted, StepStreamed
from asyncflow.journal._codec.events import column_of
from asyncflow.journal._write.keys import CONTINUES
from asyncflow.journal._write.notes import note_of
from asyncflow.journal._write.store import Store

if TYPE_CHECKING:
    from asyncflow.journal._base import SQLJournal
    from asyncflow.journal._read.queries import StoredEvent

_log = logging.getLogger("asyncflow")

MOST_ROWS = 5_000
"""How many rows of a run, or of a step, a page reads, the last ones."""
_ROWS = 100
"""How many rows are read at a time."""

_EVENTS = (
    "SELECT position, kind FROM events WHERE run_id = ? AND position > ? AND (kind = 'RunResumed' "
    "OR (step = ? AND item IS NULL AND kind IN ('AttemptStarted', 'MapStarted', 'StepWaiting', "
    "'StepSucceeded', 'StepReused', 'ResultReused', 'StepFailed', 'StepCancelled', 'StepSkipped'))"
    ") ORDER BY position"
)
_LAST = "SELECT MAX(position) FROM events WHERE run_id = ?"
_CONTINUES = f"SELECT CASE WHEN {CONTINUES} THEN 1 ELSE 0 END FROM runs r WHERE r.run_id = ?"
_SUCCESSES = ("StepSucceeded", "StepReused", "ResultReused")
_STARTS = ("AttemptStarted", "MapStarted", "StepWaiting")


async def latest_streamed(
    journal: SQLJournal, run_id: str, *, step: str | None = None, after: int = 0
) -> list[StoredEvent]:
    """Return what the steps of a run have streamed last, for a page: at most `MOST_ROWS` notes."""
    return await journal.notes(
        run_id, after=after, kinds=[StepStreamed], step=step, newest=True, limit=MOST_ROWS
    )


class StreamPlace(NamedTuple):
    """How far a reader has come."""

    run_id: str
    step: str | None
    """The step whose values it reads; ``None`` for those of all steps."""
    after: int
    """The position of the last value that it has."""
    seen: int = 0
    """The position of the last event that says whether the step has ended."""
    last_end: str = ""
    """The kind of the event with which the step has ended, if it has."""


class StreamedSince(NamedTuple):
    """What follows a place."""

    place: StreamPlace
    values: list[StreamedValue]
    is_all: bool
    """Whether there is no more now."""
    exists: bool
    """Whether the run is stored."""
    has_ended: bool
    """Whether the step or the run had ended before that was read."""


class StreamReader:
    """Reads what steps stream. Its methods run in the journal's thread for reading."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def check(self, run_id: str, step: str | None) -> None:
        """Raise `RunNotFoundError` if there is no such run, and `ValueError` if no such step."""
        names: set[str] = set()
        for event in self._store.events(run_id):
            if isinstance(event, RunStarted | RunResumed):
                names.update(event.dependencies)
            if step is None or step in names:
                return
        if not names:
            raise RunNotFoundError(run_id, self._store.database.name)
        assert step is not None
        raise ValueError(f"run {run_id!r} has no step {step!r}{did_you_mean(step, names)}")

    def read_all(self, places: Sequence[StreamPlace]) -> list[StreamedSince]:
        """Return what follows each of some places, which often are the same."""
        found = {place: self._store.together(partial(self._read, place)) for place in {*places}}
        return [found[place] for place in places]

    def _read(self, place: StreamPlace) -> StreamedSince:
        # The end first: what was streamed before is stored before.
        runs = self._store.read(_CONTINUES, (place.run_id,))
        has_ended = bool(runs and not runs[0][0])
        if runs and not has_ended and place.step is not None:
            place = self._end_of_step(place, place.step)
            has_ended = bool(place.last_end)
        rows = self._store.streamed(place.run_id, place.step, place.after, _ROWS)
        values: list[StreamedValue] = []
        for row in rows:
            values += self._values_of(row, place.after)
        if rows:
            place = place._replace(after=rows[-1][1])
        return StreamedSince(place, values, len(rows) < _ROWS, bool(runs), has_ended)

    def _values_of(self, row: Sequence[Any], after: int) -> list[StreamedValue]:
        run_id, position = row[0], row[1]
        note = note_of(row, with_data=True)
        if not isinstance(note, StepStreamed):
            _log.warning(
                "journal %s: values that run %r streamed are damaged and were left out",
                *(self._store.database.name, run_id),
            )
            return []
        first = position - note.count + 1
        about = note.step, note.item, note.segment, note.attempt
        return [
            StreamedValue(at, *about, value, note.at_ms)
            for at, value in enumerate(json.loads(note.data), first)
            if at > after
        ]

    def _end_of_step(self, place: StreamPlace, step: str) -> StreamPlace:
        """Return a place with what is known of the end of its step."""
        last_end, parameters = place.last_end, (place.run_id, place.seen, column_of(step))
        for position, kind in self._store.read(_EVENTS, parameters):
            if kind == "RunResumed":
                if last_end and not self._stays(place, position, last_end):
                    last_end = ""
            else:
                last_end = "" if kind in _STARTS else kind
        ((last,),) = self._store.read(_LAST, (place.run_id,))
        return place._replace(seen=last or place.seen, last_end=last_end)

    def _stays(self, place: StreamPlace, position: int, last_end: str) -> bool:
        """Whether a step that had ended has in a resumed run."""
        resumed = next(self._store.events(place.run_id, position - 1))
        return (
            last_end in _SUCCESSES
            and isinstance(resumed, RunResumed)
            and place.step not in resumed.outdated
        )
