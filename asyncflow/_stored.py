"""A journal that keeps its runs in an SQL database: all that the databases have in common."""

from __future__ import annotations

import asyncio
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Literal, TypeVar, get_args

from asyncflow._book import Book, Desk
from asyncflow._clerk import Clerk, Opening
from asyncflow._codec import CODECS, Codec
from asyncflow._errors import PayloadError, RunAlreadyActiveError, RunNotFoundError, nearest
from asyncflow._numbers import check_number
from asyncflow._owner import is_dead, this_owner, this_process
from asyncflow._payload import Payload
from asyncflow._report import RestoredOutput, RunReport
from asyncflow._rows import column_of, from_column
from asyncflow._store import Claim, Store, StoredRun
from asyncflow._story import Story
from asyncflow._thread import Thread
from asyncflow.events import Event, RunResumed, RunStarted, StepSucceeded

__all__ = ["RunRecord", "RunStatus", "SQLJournal", "StoredEvent", "check_lease"]

T = TypeVar("T")
Self = TypeVar("Self", bound="SQLJournal")

RunStatus = Literal["running", "passed", "failed", "interrupted"]

_PICKLED = 'it is pickled, and read only with codec="cloudpickle"'

_LONGEST_LEASE_S = 86_400

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 1.0
"""How long to wait before another owner of a run is asked for again."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a journal knows of a run at a glance."""

    run_id: str
    pipeline: str
    """The name of its pipeline, if that has one."""
    status: RunStatus
    """``"running"`` until it has ended, also if its process has died meanwhile."""
    started_at: float
    """When it began, in seconds since the epoch (UTC)."""
    updated_at: float
    """When it began, was resumed or ended, whichever was last, in seconds since the epoch."""
    owner: str | None
    """Who runs it; ``None`` if nobody does, or a lease has run out."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event of a run, as it was kept."""

    position: int
    """Its place among the events of its run, counted from 1."""
    event: Event


class SQLJournal:
    """The journal of one database."""

    def __init__(
        self,
        store: Store,
        *,
        codec: str,
        max_payload_bytes: int,
        lease_s: float,
        owner: str | None,
    ) -> None:
        if codec not in CODECS:
            known = " or ".join(map(repr, CODECS))
            raise ValueError(f"codec must be {known}, not {codec!r}{nearest(codec, CODECS)}")
        check_number("max_payload_bytes", max_payload_bytes, 1)
        self._name = store.database.name
        self._codec = Codec(codec, max_payload_bytes)
        self._store = store
        claim = Claim(owner or this_owner(), this_process(), lease_s, is_dead)
        self._clerk = Clerk(self._store, claim)
        self._thread = Thread("asyncflow journal", self._clerk.renew)
        self._lock = threading.Lock()
        self._desks: weakref.WeakValueDictionary[asyncio.AbstractEventLoop, Desk] = (
            weakref.WeakValueDictionary()
        )
        self._closed = False

    # --- for a run ------------------------------------------------------------------------------

    async def open(
        self, run_id: str, *, pipeline: str, wait: bool, read: Callable[[Sequence[Event]], T]
    ) -> tuple[Book, T]:
        """Become the only owner of a run, and read what is kept of it. A run calls this.

        Args:
            run_id: The run.
            pipeline: What its pipeline is called.
            wait: Whether to wait until another owner is gone.
            read: Called once with its events, none if it is new, in the journal's thread.

        Raises:
            RunAlreadyActiveError: Another one owns it, and is not waited for.
            JournalError: The journal can't be read or written.
            ValueError: No database would take that id.
        """
        if not run_id or column_of(run_id) != run_id:
            raise ValueError(
                "run_id must have a character, no quotes at its start, and neither NUL nor "
                f"surrogates, unlike {run_id!r}"
            )
        loop = asyncio.get_running_loop()
        pause = _FIRST_WAIT_S
        while True:
            opening = Opening(self._clerk)
            job = loop.run_in_executor(self._thread, opening.claim, run_id, loop, read)
            try:
                holding, answer = await job
            except asyncio.CancelledError:
                opening.abandon(self._thread)
                raise
            except RunAlreadyActiveError:
                if not wait:
                    raise
            else:
                return Book(self._desk_of(loop), holding), answer
            finally:
                del job  # its error refers to this frame, and so to it
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_WAIT_S)

    def encode(self, subject: str, value: Any, hint: Any) -> Payload:
        """Turn a value into bytes. A run calls this.

        Args:
            subject: What the value is, for the error: "the output of step 'load'".
            value: The value.
            hint: Its type; `Any` if nobody knows.

        Raises:
            PayloadError: It would not come back equal, or it is too large.
        """
        return self._codec.encode(subject, value, hint)

    def decode(self, subject: str, payload: Payload, hint: Any) -> Any:
        """Turn bytes into the value again. A run calls this.

        Args:
            subject: What the value is, for the error.
            payload: The bytes.
            hint: The value's type; `Any` if nobody knows.

        Raises:
            PayloadError: They are not such a value, or this journal doesn't read pickles.
        """
        return self._codec.decode(subject, payload, hint)

    def _desk_of(self, loop: asyncio.AbstractEventLoop) -> Desk:
        with self._lock:
            desk = self._desks.get(loop)
            if desk is None:
                desk = self._desks[loop] = Desk(loop, self._thread, self._clerk)
            return desk

    # --- for people -----------------------------------------------------------------------------

    async def runs(
        self,
        status: RunStatus | None = None,
        pipeline: str | None = None,
        since: datetime | float | None = None,
        limit: int | None = None,
    ) -> list[RunRecord]:
        """Return the runs that are kept, those that began last first.

        Args:
            status: Only those with this status.
            pipeline: Only those of the pipeline of this name.
            since: Only those that began then or later: a datetime, naive for local time, or
                seconds since the epoch.
            limit: Only so many.

        Raises:
            ValueError: There is no such status.
            JournalError: The journal can't be read.
        """
        _check_status(status)
        if isinstance(since, datetime):
            since = since.timestamp()
        if pipeline is not None:
            pipeline = column_of(pipeline)
        found = await self._do(
            self._store.runs, status=status, pipeline=pipeline, since=since, limit=limit
        )
        return [_record_of(run) for run in found]

    async def orphans(self) -> list[RunRecord]:
        """Return the runs that have not ended and that nobody runs, those that began last first.

        Their process is provably dead, or has not renewed its lease, or has left them when the
        journal failed. Start them again under their id, and they go on where they were.

        Raises:
            JournalError: The journal can't be read.
        """

        def find() -> list[StoredRun]:
            return [
                run
                for run in self._store.runs(status="running")
                if run.owner is None or is_dead(run.process or "")
            ]

        return [_record_of(run) for run in await self._do(find)]

    async def events(self, run_id: str, after: int = 0) -> list[StoredEvent]:
        """Return the events of a run in their order.

        Outputs and inputs are what JSON makes of them without a type hint. A secret one, and a
        pickled one unless the journal has ``codec="cloudpickle"``, stays a `Payload`.

        Args:
            run_id: The run.
            after: Only those whose position is greater.

        Raises:
            RunNotFoundError: There is no such run.
            JournalError: The journal can't be read.
        """
        return await self._do(self._read, run_id, after)

    def _read(self, run_id: str, after: int) -> list[StoredEvent]:
        self._must_know(run_id)
        stored = self._store.events(run_id, after)
        return [StoredEvent(position, self._decoded(event)) for position, event in stored]

    async def report(self, run_id: str) -> RunReport:
        """Return the report of a run; of one that has not ended, what is known so far.

        Outputs are what JSON makes of them without a type hint. In place of a secret one, and of a
        pickled one unless the journal has ``codec="cloudpickle"``, stands a `RestoredOutput`.

        Args:
            run_id: The run.

        Raises:
            RunNotFoundError: There is no such run.
            JournalError: The journal can't be read.
        """
        return await self._do(self._told, run_id)

    def _told(self, run_id: str) -> RunReport:
        self._must_know(run_id)
        story = Story(event for _, event in self._store.events(run_id))
        return story.report(self._output)

    def _output(self, step: str, payload: Payload) -> Any:
        value = self._value(payload)
        return RestoredOutput(f"<{_PICKLED}>") if value is payload else value

    def _decoded(self, event: Event) -> Event:
        """Return an event with values in place of payloads, as far as they can be decoded."""
        if isinstance(event, StepSucceeded):
            return replace(event, output=self._value(event.output))
        if isinstance(event, RunStarted | RunResumed):
            inputs = {name: self._value(value) for name, value in event.inputs.items()}
            return replace(event, inputs=inputs)
        return event

    def _value(self, payload: Payload | None) -> Any:
        try:
            return payload and self._codec.decode("a value", payload, Any)
        except PayloadError:
            return payload

    def _must_know(self, run_id: str) -> StoredRun:
        found = self._store.runs(run_id=run_id)
        if found:
            return found[0]
        others = [run.run_id for run in self._store.runs(limit=1_000)]
        raise RunNotFoundError(run_id, self._name, nearest(run_id, others))

    async def prune(self, older_than: timedelta | float, *, status: RunStatus | None = None) -> int:
        """Delete runs that have ended and return how many; never one that is active.

        Args:
            older_than: Only those that ended longer ago: a timedelta, or seconds.
            status: Only those with this status.

        Raises:
            ValueError: There is no such status, or the age is negative.
            JournalError: The journal can't be written.
        """
        _check_status(status)
        if isinstance(older_than, timedelta):
            older_than = older_than.total_seconds()
        check_number("older_than", older_than, 0, kind="a timedelta or a number", unit=" s")
        count = 0
        # Few at a time, so that runs which write do not wait for long.
        while some := await self._do(self._store.prune, older_than, status):
            count += some
        return count

    # --- its life -------------------------------------------------------------------------------

    async def __aenter__(self: Self) -> Self:
        try:
            await self._do(self._store.runs, limit=0)  # whatever is wrong shows now
        except BaseException:
            await self.aclose()  # `__aexit__` is not called
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Commit what is under way and disconnect. Runs that are still going on fail."""
        try:
            if self._thread.has_started and not self._closed:
                # It may have to wait for the disk.
                await asyncio.get_running_loop().run_in_executor(self._thread, self._clerk.close)
        finally:
            self.close()

    def close(self) -> None:
        """Do as `aclose` does, and let the calling thread wait for it."""
        self._end()
        self._thread.join()

    def _end(self) -> None:
        self._closed = True
        self._thread.end(self._clerk.close)

    def __del__(self) -> None:
        # Without the attribute, its construction has failed.
        if not getattr(self, "_closed", True):
            self._end()
            if self._thread.has_started:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    async def _do(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: call(*args, **kwargs))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"


def _record_of(run: StoredRun) -> RunRecord:
    status: Any = run.status
    return RunRecord(
        run.run_id, from_column(run.pipeline), status, run.started_at, run.updated_at, run.owner
    )


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


def _check_status(status: str | None) -> None:
    known = get_args(RunStatus)
    if status is not None and status not in known:
        names = ", ".join(map(repr, known))
        raise ValueError(f"status must be one of {names}, not {status!r}")
