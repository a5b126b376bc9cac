"""What the pages ask of a journal, and of the pipelines whose runs they may resume."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Protocol

from asyncflow._archive import RunRecord, RunStatus, StoredEvent

__all__ = ["Resumable", "RunsJournal"]


class RunsJournal(Protocol):
    """A journal as `asyncflow.journal` has them."""

    async def runs(
        self,
        status: RunStatus | None = None,
        pipeline: str | None = None,
        since: float | None = None,
        limit: int | None = 100,
        *,
        before: tuple[float, str] | None = None,
        text: str | None = None,
        orphaned: bool | None = None,
    ) -> list[RunRecord]:
        """Return the runs that are kept, those that began last first."""
        ...

    async def record(self, run_id: str) -> RunRecord:
        """Return what is known of a run at a glance."""
        ...

    async def events(self, run_id: str, after: int = 0) -> list[StoredEvent]:
        """Return the events of a run after a position."""
        ...

    async def cancel(self, run_id: str) -> bool:
        """Ask whoever runs a run to stop it; return whether somebody does."""
        ...


class Resumable(Protocol):
    """What runs a pipeline: an `Orchestrator`, or a `Pipeline`, which has one."""

    def run(self, *, run_id: str | None = None, journal: Any = None) -> Coroutine[Any, Any, Any]:
        """Start a run, or go on with it."""
        ...
