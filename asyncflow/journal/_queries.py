"""What a journal tells of its runs, in plain data.

All of it is called in the journal's thread for reading.

Checks what people ask of a journal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, get_args

from asyncflow._core.arguments import check_number
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
from asyncflow.journal._event_codec import column_of, from_column, is_storable
from asyncflow.journal._payload_codec import Codec
from asyncflow.journal._store import RunRow, Store
from asyncflow.journal._worker import is_dead

__all__ = [
    "JournalReader",
    "RunRecord",
    "RunStatus",
    "StoredEvent",
    "can_be_sought",
    "check_flag",
    "check_lease",
    "check_new_id",
    "check_sought",
    "check_status",
    "check_text",
    "place_of",
    "seconds_of",
]

RunStatus = Literal["running", "passed", "failed", "interrupted"]

_A_PAGE = 1_000
"""How many runs to read at a time in search of orphans, which no SQL can tell."""

_PICKLED = 'it is pickled, and read only with codec="cloudpickle"'


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a journal knows of a run at a glance."""

    run_id: str
    pipeline: str
    """The name of its pipeline, if that has one."""
    status: RunStatus
    """``"running"`` until it has ended, also if its process has died meanwhile."""
    started_at: float
    """When it began, in seconds since the epoch (UTC), by the clock of the machine that ran it."""
    updated_at: float
    """When it began, was resumed or ended, whichever was last, in seconds since the epoch, by the
    clock of the database, which may be that of another machine."""
    owner: str | None
    """Who runs it, or did until it died; ``None`` if nobody does, or a lease has run out."""
    orphaned: bool = False
    """Whether it has not ended and nobody runs it: its process is provably dead, or has not renewed
    its lease, or has left it when the journal failed."""

    @property
    def duration_s(self) -> float | None:
        """From when it began until it ended, in seconds, also what nobody ran it for meanwhile.

        ``None`` while its status is ``"running"``. If the clocks of the database and of the machine
        that began the run differ, it is off by that much, and at least 0. What the steps took
        depends on no wall clock: `RunReport.total_duration_ms`.
        """
        return None if self.status == "running" else max(0.0, self.updated_at - self.started_at)

    @property
    def place(self) -> tuple[float, str]:
        """Its place in the list of all runs: what ``before`` takes for the page that follows it."""
        return self.started_at, self.run_id


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event of a run, as it was kept."""

    position: int
    """Its place among the events of its run, counted from 1."""
    event: Event


class JournalReader:
    """What is kept in a store, in the words of people.

    Args:
        store: The database.
        codec: What decodes values.
    """

    def __init__(self, store: Store, codec: Codec) -> None:
        self.store = store
        self._name = store.database.name
        self._codec = codec

    def past(self, run_id: str, last: int) -> list[Event]:
        """Return the events of a run that was claimed, which are so many.

        Raises:
            JournalError: Others are there: the database that is read from is behind.
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
        """Return the events of a run that has passed, to which nothing is ever added; else none."""
        if not self.store.runs(run_id=run_id, status="passed"):
            return []
        events = [event for _, event in self.store.events(run_id)]
        last = events[-1] if events else None
        return events if isinstance(last, RunFinished) and last.outcome == "passed" else []

    def runs(
        self, *, orphaned: bool | None = None, limit: int | None = None, **asked: Any
    ) -> list[RunRecord]:
        """Return the runs that `Store.runs` returns, all of them or only the orphaned or others."""
        if orphaned is None:
            return [_record_of(run) for run in self.store.runs(limit=limit, **asked)]
        if orphaned and asked.get("status") is None:
            asked["status"] = "running"  # no other one can be
        found: list[RunRecord] = []
        while limit is None or len(found) < limit:
            page = [_record_of(run) for run in self.store.runs(limit=_A_PAGE, **asked)]
            found += [record for record in page if record.orphaned == orphaned]
            if len(page) < _A_PAGE:
                break
            asked["before"] = page[-1].place
        return found[:limit]

    def record(self, run_id: str) -> RunRecord:
        """Return what is known of a run at a glance.

        Raises:
            RunNotFoundError: There is no such run.
        """
        runs = self.runs(run_id=run_id)
        if not runs:
            raise self.unknown(run_id)
        return runs[0]

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
        """Return the report of a run, as far as it has come.

        Raises:
            RunNotFoundError: There is no such run.
            JournalError: Its events make no sense: something else has changed them.
        """
        stored = self.store.events(run_id)
        if not stored:
            raise self.unknown(run_id)
        try:
            story = StoredRun(event for _, event in stored)
        except Exception as error:
            raise JournalError(
                self._name,
                f"the events of run {run_id!r} don't follow from each other "
                f"({describe_fully(error)}), so something else has changed them; "
                "they were left as they are",
            ) from error
        return story.report(self._shown)

    def unknown(self, run_id: str) -> RunNotFoundError:
        """Return the error that says that there is no such run, and which one was perhaps meant."""
        others = [run.run_id for run in self.store.runs(limit=1_000)]
        return RunNotFoundError(run_id, self._name, did_you_mean(run_id, others))

    def _decoded(self, event: Event) -> Event:
        """Return an event with values in place of payloads, as far as they can be decoded."""
        if isinstance(event, StepSucceeded):
            output = event.output
            return replace(event, output=output and self._shown(event.step, output))
        if isinstance(event, RunStarted | RunResumed):
            inputs = {name: self._shown(name, value) for name, value in event.inputs.items()}
            return replace(event, inputs=inputs)
        return event

    def _shown(self, name: str, payload: Payload) -> Any:
        """Return the value of an output or an input, or what stands for one that is not read."""
        if payload == REDACTED:
            return REDACTED_OUTPUT
        try:
            return self._codec.decode(name, payload, Any)
        except PayloadError:
            return RestoredOutput(f"<{_PICKLED}>")


def _record_of(run: RunRow) -> RunRecord:
    status: Any = run.status
    orphaned = status == "running" and (run.owner is None or is_dead(run.process or ""))
    pipeline = from_column(run.pipeline)
    return RunRecord(
        run.run_id, pipeline, status, run.started_at, run.updated_at, run.owner, orphaned
    )


_LONGEST_LEASE_S = 86_400
_LONGEST_SOUGHT = 1_000
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_RELATIVE = (".", "..")
"""What clients take out of an address before they send it."""

_TIME = "a datetime or seconds since the epoch"


def check_lease(lease_s: float) -> None:
    """Check for how long a lease is to hold.

    Raises:
        TypeError: It is no number.
        ValueError: It is no time between a tenth of a second and a day.
    """
    check_number("lease_s", lease_s, 0.1, unit=" s")
    if lease_s > _LONGEST_LEASE_S:
        raise ValueError(
            f"lease_s must be at most {_LONGEST_LEASE_S} s, not {lease_s:g}; it is how long others "
            "wait for a process that has died on another machine"
        )


def check_text(what: str, value: object) -> None:
    """Check what has to be a text.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {type(value).__name__}")


def check_new_id(run_id: str) -> None:
    """Check an id under which a run may be kept.

    Raises:
        TypeError: It is no text.
        ValueError: A database, a line of text or the address of a page could not have it.
    """
    check_text("run_id", run_id)
    if not run_id:
        raise ValueError("run_id must not be empty; leave it out to have one made")
    is_plain = column_of(run_id) == run_id and not _CONTROL.search(run_id)
    if not is_plain or run_id in _RELATIVE:
        raise ValueError(
            f"run_id can't be {run_id!r}: it stands in tables, lines of text and addresses of "
            "pages, so it must have no control characters and no surrogates, not begin with '\"', "
            "and not be '.' or '..'"
        )


def check_status(status: str | None) -> None:
    """Check the status that runs are to have.

    Raises:
        ValueError: There is no such status.
    """
    known = get_args(RunStatus)
    if status is not None and status not in known:
        names = ", ".join(map(repr, known))
        raise ValueError(f"status must be one of {names}, not {status!r}")


def check_flag(what: str, value: object) -> None:
    """Check what has to be true, false or left open.

    Raises:
        TypeError: It is none of these.
    """
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{what} must be True, False or None, not {type(value).__name__}")


def check_sought(text: str) -> None:
    """Check a text that is looked for in names.

    Raises:
        TypeError: It is no text.
        ValueError: It is too long, or no database would take it.
    """
    check_text("text", text)
    if not can_be_sought(text):
        raise ValueError(
            f"text must have at most {_LONGEST_SOUGHT:,} characters, and neither NUL nor surrogates"
        )


def can_be_sought(text: str) -> bool:
    """Whether a text is short enough, and one that every database takes."""
    return len(text) <= _LONGEST_SOUGHT and is_storable(text)


def seconds_of(what: str, time: datetime | float, kind: str = _TIME) -> float:
    """Return a time in seconds since the epoch.

    Raises:
        TypeError: It is none.
        ValueError: It is not finite, or before the epoch.
    """
    if isinstance(time, datetime):
        return time.timestamp()
    check_number(what, time, 0, kind=kind)
    return time


def place_of(before: Any) -> float | tuple[float, str]:
    """Return a time, or the place of a run in the list of all.

    Raises:
        TypeError: It is neither.
        ValueError: It is not finite, or before the epoch, or no run can have the id.
    """
    if not isinstance(before, tuple):
        return seconds_of("before", before, f"{_TIME}, or RunRecord.place")
    try:
        started_at, run_id = before
    except ValueError:
        raise TypeError("before must be a time, or what RunRecord.place gives") from None
    check_text("the run id in before", run_id)
    if not is_storable(run_id):
        raise ValueError(f"the run id in before must have neither NUL nor surrogates: {run_id!r}")
    return seconds_of("the time in before", started_at), run_id
