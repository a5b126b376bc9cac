"""The rows of summaries: what lists and statistics say of a run beside its row in `runs`.

The owner of a run writes one in the transaction of each `RunFinished`, so that a list need not read
the events of a run that has ended, or waits. It counts as long as its position is that
of the latest event that changed the row of the run: a run that goes on has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from asyncflow._core.analysis.statistics import StepRun
from asyncflow._core.history.results import RunStatus
from asyncflow.events import RunFinished
from asyncflow.journal._codec.events import (
    StoredError,
    data_checksum,
    event_checksum,
    from_json,
    to_json,
)
from asyncflow.journal._database.sql import Statement

_REPLACE = (
    "INSERT INTO summaries (run_id, position, payload, data_checksum, checksum, data) "
    "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (run_id) DO UPDATE SET position = excluded.position, "
    "payload = excluded.payload, data_checksum = excluded.data_checksum, "
    "checksum = excluded.checksum, data = excluded.data"
)

_SELECT = (
    "SELECT s.run_id, s.position, s.payload, s.data_checksum, s.checksum, {data} "
    "FROM summaries s WHERE s.run_id IN ({ids}) "
    "AND s.position = (SELECT r.last_event FROM runs r WHERE r.run_id = s.run_id)"
)
SELECT_ENDS = _SELECT.replace("{data}", "NULL")
"""How runs ended, without their steps."""
SELECT_STEPS = _SELECT.replace("{data}", "s.data")


class SegmentEnd(msgspec.Struct, omit_defaults=True):
    """How a segment of a run ended."""

    failed_step: str = ""
    """The step that failed first in it, if the run failed."""
    error: StoredError | None = None
    """Its error."""
    stop_reason: str | None = None


class Summary(NamedTuple):
    """A row of `summaries`, as it was read: if it is damaged, its values are of any type."""

    run_id: Any
    position: Any
    payload: Any
    data_checksum: Any
    checksum: Any
    data: Any

    def end(self) -> SegmentEnd:
        """Return how the run ended; raise anything if the row is damaged."""
        *_, of_data, checksum, _ = self
        if _checksum(*self[:3], of_data) != checksum:
            raise ValueError("its checksum is wrong, so it has changed since it was written")
        end: SegmentEnd = from_json(self.payload, SegmentEnd)
        return end

    def steps(self) -> dict[str, StepRun] | None:
        """Return how its steps ended, if it says that; raise anything if the row is damaged."""
        self.end()
        if data_checksum(self.data) != self.data_checksum:
            raise ValueError("the checksum of its data is wrong, so they have changed")
        if self.data is None:
            return None
        steps: dict[str, StepRun] = from_json(self.data.decode(), dict[str, StepRun])
        return steps


def summary_of(
    run_id: str,
    position: int,
    event: RunFinished,
    failure: tuple[str, Mapping[str, Any]] | None,
    steps: Mapping[str, StepRun] | None,
) -> Statement:
    """Return what writes the summary of a segment that has ended.

    ``failure`` is the first step that failed, and its error as rows have it. Without ``steps``,
    who asks for these reads the whole run.
    """
    # A run may fail in a step and be cancelled then: it says why it stopped.
    has_failed = event.status is RunStatus.FAILED
    failed_step, error = failure if failure and has_failed else ("", None)
    end = {"failed_step": failed_step, "error": error, "stop_reason": event.stop_reason}
    payload = to_json({name: value for name, value in end.items() if value})
    data = None if steps is None else to_json(steps).encode()
    of_data = data_checksum(data)
    values = run_id, position, payload, of_data
    return Statement(_REPLACE, (*values, _checksum(*values), data))


def summaries_by_run(rows: Iterable[Sequence[Any]]) -> dict[Any, Summary]:
    """Return the rows of one of the SELECTs by run."""
    return {row[0]: Summary(*row) for row in rows}


def _checksum(run_id: str, position: int, payload: str, of_data: int | None) -> int:
    return event_checksum(
        run_id, position, "Summary", None, None, None, 0.0, None, payload, of_data
    )
