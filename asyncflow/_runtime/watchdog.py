"""Warns of a step that goes on running although it was cancelled, and finds whose task is whose.

A limit that moves on with every sign of life.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import Context
from typing import Any

from asyncflow._core.context import RunContext, attempt_in
from asyncflow._core.state import RunState
from asyncflow._core.tracebacks import awaiting_location
from asyncflow._runtime.asyncio_compat import TIMER_SLACK_S
from asyncflow.events import AttemptStarted

__all__ = [
    "GRACE_S",
    "HeartbeatTimer",
    "Watchdog",
]


class HeartbeatTimer:
    """Calls ``lapse`` once, when it has not beaten for so long.

    Args:
        loop: Whose clock counts.
        limit_s: How many seconds may pass between two beats.
        lapse: Called without arguments.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limit_s: float, lapse: Callable[[], object]
    ) -> None:
        self._loop = loop
        self._limit_s = limit_s
        self._last = loop.time()
        self._timer: asyncio.TimerHandle | None = loop.call_at(
            self._last + limit_s, self._look, lapse
        )

    def beat(self) -> None:
        """Give a sign of life, from any thread."""
        self._last = self._loop.time()

    def stop(self) -> None:
        """Need no more signs of life."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, lapse: Callable[[], object]) -> None:
        ends = self._last + self._limit_s
        if self._loop.time() >= ends - TIMER_SLACK_S:
            self._timer = None
            lapse()
        else:
            self._timer = self._loop.call_at(ends, self._look, lapse)


_log = logging.getLogger("asyncflow")

GRACE_S = 5.0
"""How many seconds a step may take to end after it was cancelled before it is named."""


class Watchdog:
    """Logs a warning for each attempt that has not ended `GRACE_S` after it was cancelled.

    It has one timer, which stands at the earliest moment at which there may be something to
    warn of. So a run in which everything ends in time pays for one timer.

    Args:
        state: The state of the run.
        run: What the run's attempts have in common.
        context: That of the run: what is warned of here is said by none of its steps.
        live: The task of each unit that runs.
        asked: When the run has asked a unit to stop, for each that it has.
    """

    def __init__(
        self,
        state: RunState,
        run: RunContext,
        context: Context,
        live: Mapping[int, asyncio.Task[Any]],
        asked: Mapping[int, float],
    ) -> None:
        self._state = state
        self._run = run
        self._loop = asyncio.get_running_loop()
        self._context = context
        self._live = live
        self._asked = asked
        self.prefix = f"asyncflow:{run.run_id}:"
        """With what the names of the tasks begin."""
        self._timer: asyncio.TimerHandle | None = None
        self._named: set[tuple[int, int]] = set()
        self.horizon = math.inf
        """The planned look is for attempts cancelled at this time, or later."""

    def task_name(self, node: int, attempt: int) -> str:
        """Return what the task is called in which an attempt runs."""
        return f"{self.prefix}{self._state.step_runs.name_of(node)}#{attempt}"

    def expect(self, cancelled_at: float) -> None:
        """Plan a look for an attempt that is cancelled at the given time of the loop's clock."""
        if cancelled_at < self.horizon:
            self.stop()
            self.horizon = cancelled_at
            look_at = cancelled_at + GRACE_S
            self._timer = self._loop.call_at(look_at, self._look, context=self._context)

    def stop(self) -> None:
        """Plan no look."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self.horizon = None, math.inf

    def attempt_of(self, task: asyncio.Task[Any] | None) -> AttemptStarted | None:
        """Return the attempt of the run that a task belongs to, if it does to one.

        Before 3.12 a task that an action has made can't be told from others.
        """
        if task is None:
            return None
        if sys.version_info >= (3, 12):
            return attempt_in(task.get_context(), self._run)
        return self._attempt_named(task.get_name())  # pragma: no cover

    def _attempt_named(self, name: str) -> AttemptStarted | None:
        if not name.startswith(self.prefix):
            return None
        # There may be many units: so the one name is taken apart, not all others put together.
        node, _, attempt = name.removeprefix(self.prefix).rpartition("#")
        step, _, rest = node.rpartition("[")
        item = int(rest[:-1]) if rest[:-1].isdecimal() else None
        for latest in self._state.step_runs.latest:
            if (
                latest is not None
                and (latest.step == node if latest.item is None else latest.step == step)
                and (latest.item is None or latest.item == item)
                and str(latest.attempt) == attempt
            ):
                return latest
        return None

    def _look(self) -> None:
        self._timer, self.horizon = None, math.inf
        latest = self._loop.time() - GRACE_S + TIMER_SLACK_S
        for node, running, cancelled_at in self._suspects():
            if (node, running.attempt) in self._named:
                continue
            if cancelled_at > latest:
                self.expect(cancelled_at)
                continue
            self._named.add((node, running.attempt))
            _log.warning(
                "step %r, attempt %d, has not ended %g s after it was cancelled; it is at %s",
                self._state.step_runs.name_of(node),
                running.attempt,
                GRACE_S,
                self._where(node, running.attempt),
            )

    def _suspects(self) -> Iterator[tuple[int, AttemptStarted, float]]:
        """What may run although it was cancelled, or would if it has not ended by then."""
        for node in self._live:
            running = self._state.running_attempt(node)
            if running is None:
                continue
            limit = self._state.deadlines.of(node, running.at_ms)
            cancelled_ms = self._asked.get(node, math.inf if limit is None else limit.ends_ms)
            if cancelled_ms < math.inf:
                yield node, running, self._run.started_s + cancelled_ms / 1000

    def _where(self, node: int, attempt: int) -> str:
        """Return the line at which an attempt waits: in its own task, if it has one."""
        name, task = self.task_name(node, attempt), self._live[node]
        tasks = asyncio.all_tasks(self._loop)
        own = next((each for each in tasks if each.get_name() == name and each is not task), task)
        return awaiting_location(own.get_coro())
