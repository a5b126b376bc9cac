"""When a service looks at its journal again: every second, or when it knows of something to do.

In virtual time a look takes no time and a day has 86,400 of them. But all processes are this one
then, so that the looks which would find nothing are left out. The others are when they would be.
"""

from __future__ import annotations

import asyncio
import math
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncflow.journal._base import SQLJournal


class Polls:
    """Says when to look, as a context manager around all looks of a kind."""

    def __init__(self, journal: SQLJournal, every_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._every_s = every_s
        self._is_virtual = journal._virtual_now() is not None
        self._journal = journal
        self._began_s = self._loop.time()
        self._has_changed = False
        self._wait: asyncio.Timeout | None = None

    def __enter__(self) -> Polls:
        if self._is_virtual:
            self._journal._watch(self._tell)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_virtual:
            self._journal._unwatch(self._tell)
        self._wait = None

    def _tell(self) -> None:  # called in any thread
        self._loop.call_soon_threadsafe(self._change)

    def _change(self) -> None:
        self._has_changed = True
        if self._wait is not None:
            count = math.floor((self._loop.time() - self._began_s) / self._every_s) + 1
            self._end_by(self._began_s + count * self._every_s)

    def begin(self) -> None:
        """Note that a look begins."""
        self._began_s = self._loop.time()
        self._has_changed = False

    def until_next(self, next_s: float, *, may_skip: bool) -> asyncio.Timeout:
        """Return what raises `TimeoutError` when the next look is due.

        ``next_s`` is in how many seconds the last look knows of something. If it has found nothing,
        ``may_skip`` says that looks may be left out.
        """
        at_s = self._loop.time() + max(next_s, 0.0)
        if not (self._is_virtual and may_skip) or self._has_changed:
            at_s = min(at_s, self._began_s + self._every_s)
        self._wait = asyncio.timeout_at(None if at_s == math.inf else at_s)
        return self._wait

    def _end_by(self, at_s: float) -> None:
        """Let what `until_next` has returned last end earlier, if it is under way."""
        wait = self._wait
        if wait is None:
            return
        when = wait.when()
        if when is None or at_s < when:
            try:
                wait.reschedule(at_s)
            except RuntimeError:  # it has ended
                self._wait = None
