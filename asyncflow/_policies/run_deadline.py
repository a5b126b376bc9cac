"""The deadline of a run, which does not count while nothing but waits for signals is left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from asyncflow._kernel.policy import Policy
from asyncflow._kernel.run_scope import Parts
from asyncflow.events import RunTimedOut

if TYPE_CHECKING:
    from asyncflow._policies.resources import Resources


class RunDeadline(Policy):
    """The policy of a run with a deadline. ``resources`` are those of the run, if it has any."""

    def __init__(self, parts: Parts, resources: Resources | None) -> None:
        scope = parts.scope
        self._run = parts.run
        self._dispatcher = parts.dispatcher
        self._state = scope.state
        self._resources = resources
        self._loop = scope.loop
        self._context = scope.context
        self._run_context = scope.run_context
        self._timer: asyncio.TimerHandle | None = None
        self._rests_since_s: float | None = None

    def on_watch(self) -> Callable[[], object]:
        self._start()
        return self._stop

    def _start(self) -> None:
        ends_s = self._run_context.deadline_s
        self._timer = self._loop.call_at(ends_s, self._expire, context=self._context)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None  # one that has expired keeps its callback, and so this

    def _expire(self) -> None:
        """Stop the run."""
        state, now_ms = self._state, self._run_context.now_ms
        deadline_ms = state.deadlines.deadline_ms
        assert deadline_ms is not None
        if self._resources is not None and self._resources.time_out(deadline_ms):
            return
        if state.stop_reason is None and state.readiness.ordinary_unsettled:
            self._dispatcher.emit(RunTimedOut(now_ms(), deadline_ms, self._run.explain()))
            self._run.stop_soon()

    def rest(self) -> None:
        """Stop counting: nothing but waits is left."""
        if self._rests_since_s is None:
            self._stop()
            self._rests_since_s = self._loop.time()

    def resume(self) -> None:
        """Count again, if it rests: a step that waited is about to end."""
        if self._rests_since_s is None:
            return
        rested_s = self._loop.time() - self._rests_since_s
        self._rests_since_s = None
        self._run_context.deadline_s += rested_s  # type: ignore[misc]  # it moves with it
        self._state.deadlines.began_ms += rested_s * 1000
        self._start()
