"""Which runs continue by themselves: they have lost their process, or wait."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.results import RunStatus

CONTINUED = ("drained", "resource")
"""What interrupted a run that continues when it can."""


class NotLostError(Exception):
    """Another process has ended or deleted a run since this one found it."""


class LostRuns:
    """A journal that opens no run but those that have lost their process, or wait.

    ``causes`` are those of interruptions after which a run is resumed too; ``None`` stands for all.
    """

    def __init__(self, journal: Any, causes: Collection[str] | None) -> None:
        self.__wrapped__ = journal
        self._causes = causes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    async def open(
        self, run_id: str, *, wait: bool, read: Callable[[StoredRun], Any], **key: Any
    ) -> Any:
        """Open a run, or raise `NotLostError`."""

        def read_lost(stored: StoredRun) -> Any:
            # Only now, no other process can end it.
            is_stopped = stored.status is RunStatus.INTERRUPTED and (
                self._causes is None or stored.cause in self._causes
            )
            if not stored.segments or (stored.has_ended and not is_stopped):
                raise NotLostError
            return read(stored)

        return await self.__wrapped__.open(run_id, wait=wait, read=read_lost, **key)
