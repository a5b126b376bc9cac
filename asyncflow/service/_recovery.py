"""Resumes the runs that have lost their process, for as long as a service lives.

These are orphans, and runs that a service has interrupted because it was shut down. A run that was
cancelled stays as it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, Protocol

from asyncflow._core.errors import (
    JournalError,
    RunAlreadyActiveError,
    RunCancelledError,
    RunNotFoundError,
)
from asyncflow._core.results import InterruptionCause, RunStatus
from asyncflow._runtime.handle import RunHandle
from asyncflow._runtime.orchestrator import Orchestrator
from asyncflow._runtime.pipeline import Pipeline
from asyncflow._runtime.recovery import (
    RecoverableJournal,
    RecoverableRun,
    find_pipeline,
    log_unresumed,
)
from asyncflow.events import Event
from asyncflow.service._errors import ServiceStoppingError
from asyncflow.service._places import Places

__all__ = ["Recovery", "ServiceJournal"]

_PASSING = (RunAlreadyActiveError, RunCancelledError, JournalError)
"""What prevents a resumption now, and may not do so later."""

_log = logging.getLogger("asyncflow")


class PositionedEvent(Protocol):
    """An event as a journal stores it."""

    @property
    def position(self) -> int:
        """Its place among the events of its run, counted from 1."""
        ...

    @property
    def event(self) -> Event:
        """The event."""
        ...


class ServiceJournal(RecoverableJournal, Protocol):
    """The journal of a service, such as those of `asyncflow.journal`."""

    async def runs(
        self,
        status: Literal[RunStatus.INTERRUPTED],
        *,
        limit: int | None,
        cause: InterruptionCause | None = None,
    ) -> Sequence[RecoverableRun]:
        """Return the runs that were interrupted, by this cause if one is given."""
        ...

    async def events(self, run_id: str, after: int = 0) -> list[Any]:
        """Return the events of a run after a position, each a `PositionedEvent`."""
        ...

    async def cancel(self, run_id: str) -> bool:
        """Ask the process that runs a run to stop it; return whether there is one."""
        ...


class Recovery:
    """Looks for runs to resume, again and again.

    Args:
        journal: The journal.
        pipelines: The pipelines whose runs it resumes, by name.
        places: One is taken for each run.
        active: The runs that the service has.
        begin: Starts a run for which a place was taken, and frees it in the end.
    """

    def __init__(
        self,
        journal: ServiceJournal,
        pipelines: Mapping[str, Pipeline | Orchestrator],
        places: Places,
        active: Collection[str],
        begin: Callable[[Pipeline | Orchestrator, str], Awaitable[RunHandle]],
    ) -> None:
        self._journal = journal
        self._pipelines = pipelines
        self._places = places
        self._active = active
        self._begin = begin
        self._unresumable: set[str] = set()
        """The runs that can't be resumed here, which was logged."""
        self._beginning: set[asyncio.Task[None]] = set()

    async def run(self, every_s: float) -> None:
        """Resume runs as there is room for them, before any new ones, until this is cancelled.

        Args:
            every_s: How often to look for others, in seconds.
        """
        while True:
            try:
                await self._resume()
            except JournalError as error:
                _log.warning("the service can't look for runs to resume: %s", error)
            await asyncio.sleep(every_s)

    async def _resume(self) -> None:
        journal = self._journal
        found: list[RecoverableRun] = [*await journal.orphans()]
        found += await journal.runs(RunStatus.INTERRUPTED, limit=None, cause="drained")
        for run in found:
            # A nested run is resumed by the step that has started it.
            if run.parent or run.run_id in self._unresumable or run.run_id in self._active:
                continue
            pipeline = find_pipeline(run, self._pipelines)
            if pipeline is None:
                self._unresumable.add(run.run_id)
            else:
                await self._places.wait()
                task = asyncio.create_task(self._resume_one(pipeline, run))
                self._beginning.add(task)
                task.add_done_callback(self._beginning.discard)
        # If this is cancelled, they begin nevertheless, or the service refuses them: a cancelled
        # start would be stored as a run that was cancelled for good.
        if self._beginning:
            await asyncio.wait(self._beginning)

    async def _resume_one(self, pipeline: Pipeline | Orchestrator, run: RecoverableRun) -> None:
        """Resume a run for which a place was taken."""
        run_id = run.run_id
        try:
            if await self._is_as_found(run):
                await self._begin(pipeline, run_id)
        except ServiceStoppingError:
            pass
        except Exception as error:
            log_unresumed(run_id, error)
            if not isinstance(error, _PASSING):
                self._unresumable.add(run_id)

    async def _is_as_found(self, run: RecoverableRun) -> bool:
        """Return whether a run is as it was found; if not, free its place.

        While it waited for the place, another process may have ended, cancelled or deleted it.
        """
        is_as_found = False
        try:
            with suppress(RunNotFoundError):
                is_as_found = await self._journal.record(run.run_id) == run
        finally:
            if not is_as_found:
                self._places.free()
        return is_as_found
