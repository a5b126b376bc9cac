"""The deadline of a run, which does not count while nothing but waits for signals is left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from asyncflow._runtime.run_scope import RunScope


class RunDeadline:
    """Calls ``on_expiry`` when the run has used up its time."""

    def __init__(self, scope: RunScope, on_expiry: Callable[[], object]) -> None:
        self._loop = scope.loop
        self._context = scope.context
        self._run_context = scope.run_context
        self._deadlines = scope.state.deadlines
        self._on_expiry = on_expiry
        self._timer: asyncio.TimerHandle | None = None
        self._rests_since_s: float | None = None

    def start(self) -> None:
        ends_s = self._run_context.deadline_s
        self._timer = self._loop.call_at(ends_s, self._on_expiry, context=self._context)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def rest(self) -> None:
        """Stop counting: nothing but waits is left."""
        if self._rests_since_s is None:
            self.stop()
            self._rests_since_s = self._loop.time()

    def resume(self) -> None:
        """Count again, if it rests: a step that waited is about to end."""
        if self._rests_since_s is None:
            return
        rested_s = self._loop.time() - self._rests_since_s
        self._rests_since_s = None
        self._run_context.deadline_s += rested_s  # type: ignore[misc]  # it moves with it
        self._deadlines.began_ms += rested_s * 1000
        self.start()
