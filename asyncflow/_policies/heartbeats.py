"""Limits the time from one heartbeat of an attempt to the next, for steps with ``heartbeat_ms``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._kernel.asyncio_compat import TIMER_SLACK_S, running_task
from asyncflow._kernel.policy import Call, Policy
from asyncflow._kernel.run_scope import Parts
from asyncflow.events import AttemptStarted


class HeartbeatLimits(Policy):
    """The policy of a run with such steps."""

    arguments = frozenset({"heartbeat_ms"})

    def __init__(self, parts: Parts) -> None:
        self._loop = parts.scope.loop
        self._extras = parts.scope.run_context.extras
        self._stop_control = parts.stop_control

    def on_call(self, call: Call, node: int, step: WorkflowStep, running: AttemptStarted) -> Call:
        return partial(self._limited, call, node, step, running)

    async def _limited(
        self, call: Call, node: int, step: WorkflowStep, running: AttemptStarted
    ) -> Any:
        assert step.heartbeat_ms is not None
        on_missed = partial(self._miss, node, step, step.heartbeat_ms, running_task())
        timer = HeartbeatTimer(self._loop, step.heartbeat_ms / 1000, on_missed)
        self._extras[running.step, running.item].heartbeat = timer  # type: ignore[misc]
        try:
            return await call()
        finally:
            timer.stop()

    def _miss(
        self, node: int, step: WorkflowStep, limit_ms: float, task: asyncio.Task[Any]
    ) -> None:
        """Cancel an attempt that has missed its heartbeat, unless it is cleaning up."""
        # A thread can't know that it was asked to stop, and works on.
        can_know = step.runs_in != "thread" or step.remote is not None  # the engine asks there
        if not (can_know and node in self._stop_control.requested):
            self._stop_control.cut(node, task, "heartbeat", limit_ms)


class HeartbeatTimer:
    """Calls a function once, when no heartbeat has come in time.

    It counts ``limit_s`` seconds from one heartbeat to the next on the loop's clock, and calls
    ``on_missed`` without arguments.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limit_s: float, on_missed: Callable[[], object]
    ) -> None:
        self._loop = loop
        self._limit_s = limit_s
        self._last = loop.time()
        self._last_elsewhere_s: Callable[[], float] = float
        self._timer: asyncio.TimerHandle | None = loop.call_at(
            self._last + limit_s, self._look, on_missed
        )

    def beat(self) -> None:
        """Note a heartbeat, from any thread."""
        self._last = self._loop.time()

    def follow(self, last_beat_s: Callable[[], float]) -> None:
        """Count the heartbeats of another process too.

        ``last_beat_s`` returns the time of its last one, in seconds of `time.monotonic`, which the
        processes of a machine share; 0 for none.
        """
        self._last_elsewhere_s = last_beat_s

    def stop(self) -> None:
        """Expect no more heartbeats."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, on_missed: Callable[[], object]) -> None:
        age_s = time.monotonic() - self._last_elsewhere_s()
        ends_s = max(self._last, self._loop.time() - age_s) + self._limit_s
        if self._loop.time() >= ends_s - TIMER_SLACK_S:
            self._timer = None
            on_missed()
        else:
            self._timer = self._loop.call_at(ends_s, self._look, on_missed)
