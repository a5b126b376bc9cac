"""Watches whether attempts end after they were cancelled."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from asyncflow._core.running.context import attempt_in
from asyncflow._core.tracebacks import awaiting_location
from asyncflow._kernel.asyncio_compat import TIMER_SLACK_S
from asyncflow._kernel.run_scope import RunScope
from asyncflow.events import AttemptStarted

_log = logging.getLogger("asyncflow")

GRACE_S = 5.0
"""How many seconds an attempt may take to end after it was cancelled before a warning names it."""


class Watchdog:
    """Logs a warning for each attempt that has not ended `GRACE_S` after it was cancelled.

    It has one timer, set for the earliest moment at which there may be something to warn of. So a
    run in which everything ends in time pays for one timer.

    ``stop_requested`` says when the run has asked a node to stop, in milliseconds.
    """

    def __init__(self, scope: RunScope, stop_requested: Mapping[int, float]) -> None:
        self._state = scope.state
        self._runs = scope.state.step_runs
        self._run_context = scope.run_context
        self._loop = scope.loop
        self._context = scope.context  # no step must seem to log the warning
        self._live = scope.live
        self._stop_requested = stop_requested
        self.prefix = f"asyncflow:{scope.run_id}:"
        """How the names of the tasks begin."""
        self._timer: asyncio.TimerHandle | None = None
        self._warned: set[tuple[int, int]] = set()
        self.horizon = math.inf
        """The planned look is for attempts cancelled at this time, or later."""
        self._shortest_s = math.inf
        """What is cancelled in so many seconds, or later, has a look planned for it."""

    def task_name(self, node: int, attempt: int) -> str:
        """Return the name of the task in which an attempt runs."""
        return f"{self.prefix}{self._runs.name_of(node)}#{attempt}"

    def engine_task_name(self, node: int, attempt: int) -> str:
        """Return the name of the task that awaits the engine on which an attempt runs."""
        engine = self._runs.steps[node].remote
        return f"{self.task_name(node, attempt)} on {engine and engine.name}"

    def expect(self, cancelled_s: float) -> None:
        """Plan a look for an attempt that is cancelled at the given time of the loop's clock."""
        if cancelled_s < self.horizon:
            if self._timer is not None:
                self.stop()
            self.horizon = cancelled_s
            look_at = cancelled_s + GRACE_S
            self._timer = self._loop.call_at(look_at, self._look, context=self._context)

    def expect_in(self, seconds: float) -> None:
        """Do the same for an attempt that is cancelled so many seconds from now."""
        if seconds < self._shortest_s:
            self._shortest_s = seconds
            self.expect(self._loop.time() + seconds)

    def stop(self) -> None:
        """Plan no look."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self.horizon = None, math.inf

    def attempt_of(self, task: asyncio.Task[Any] | None) -> AttemptStarted | None:
        """Return the attempt of the run that a task belongs to, if there is one.

        Before 3.12, a task that an action has made is unknown.
        """
        if task is None:
            return None
        if sys.version_info >= (3, 12):
            return attempt_in(task.get_context(), self._run_context)
        return self._attempt_named(task.get_name())  # pragma: no cover

    def _attempt_named(self, name: str) -> AttemptStarted | None:
        if not name.startswith(self.prefix):
            return None
        # There may be many nodes: so one name is taken apart, and the others are not put together.
        whole, _, attempt = name.removeprefix(self.prefix).rpartition("#")
        step, _, rest = whole.rpartition("[")
        item = int(rest[:-1]) if rest[:-1].isdecimal() else None
        for latest in map(self._runs.latest_attempt, range(len(self._runs.steps))):
            if (
                latest is not None
                and (latest.step == whole if latest.item is None else latest.step == step)
                and (latest.item is None or latest.item == item)
                and str(latest.attempt) == attempt
            ):
                return latest
        return None

    def _look(self) -> None:
        self._timer, self.horizon, self._shortest_s = None, math.inf, math.inf
        latest_s = self._loop.time() - GRACE_S + TIMER_SLACK_S
        overdue = []
        for node, running, cancelled_s in self._suspects():
            if (node, running.attempt) in self._warned:
                continue
            if cancelled_s > latest_s:
                self.expect(cancelled_s)
            else:
                overdue.append((node, running.attempt))
        if overdue:
            self._warn(overdue)

    def _warn(self, overdue: list[tuple[int, int]]) -> None:
        # Where an attempt has a task of its own, that one knows where it waits.
        tasks = {task.get_name(): task for task in asyncio.all_tasks(self._loop)}
        for node, attempt in overdue:
            self._warned.add((node, attempt))
            task = tasks.get(self.task_name(node, attempt), self._live[node])
            task = tasks.get(self.engine_task_name(node, attempt), task)
            _log.warning(
                "step %r, attempt %d, has not ended %g s after it was cancelled, and the run waits "
                "for it; it is at %s",
                *(self._runs.name_of(node), attempt, GRACE_S),
                awaiting_location(task.get_coro()),
            )

    def _suspects(self) -> Iterator[tuple[int, AttemptStarted, float]]:
        """The attempts that run although they were cancelled, or would if they do not end."""
        for node in self._live:
            running = self._runs.running_attempt(node)
            if running is None:
                continue
            limit = self._state.deadlines.of_running(node, running.at_ms)
            by_limit_ms = math.inf if limit is None else limit.ends_ms
            cancelled_ms = self._stop_requested.get(node, by_limit_ms)
            if cancelled_ms < math.inf:
                yield node, running, self._run_context.at_s(cancelled_ms)
