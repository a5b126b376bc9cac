"""Who was asked to stop, by whom, and when: only `StopControl` cancels a node's task.

Rules:

1. The run asks a node to stop at most once.
2. An attempt that was cancelled already, by a limit or by a third party, may be cleaning up. It is
   not cancelled again before a grace period has passed, which begins when the run asks it. Nor is
   an iterator from which a mapped step takes its items, once a limit has ended the wait for one.
3. A cancellation that neither the run nor a limit has requested is a third party's. It never cuts
   a wait between attempts short.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from asyncflow._core.errors import TimeoutKind
from asyncflow._core.running.deadlines import ROUNDING_MS
from asyncflow._kernel.asyncio_compat import TIMER_SLACK_S, forget_cancels, running_task
from asyncflow._kernel.run_scope import Host, RunScope
from asyncflow._kernel.watchdog import GRACE_S, Watchdog
from asyncflow.events import AttemptStarted

T = TypeVar("T")


class StopControl:
    """Asks nodes to stop, and knows who has asked.

    ``requested`` says when the run has asked a node to stop, in milliseconds.
    """

    def __init__(self, scope: RunScope, host: Host) -> None:
        self._run = host
        self._state = scope.state
        self._now_ms = scope.run_context.now_ms
        self._context = scope.context
        self._live = scope.live
        self._loop = scope.loop
        self.requested: dict[int, float] = {}
        self._cut: dict[int, tuple[TimeoutKind, float]] = {}
        """The limit of a policy, in milliseconds, that has cancelled the attempt of a node."""
        self.item_limits: dict[int, asyncio.Timeout] = {}
        """The limit of the item for which each mapped step waits."""
        self.watchdog = Watchdog(scope, self.requested)
        self._timers: list[asyncio.TimerHandle] = []
        """Those that cancel the nodes which were to stop when a third party had cancelled them."""

    def request(self, node: int, task: asyncio.Task[Any], at_ms: float) -> None:
        """Ask a node to stop for the run."""
        self.requested[node] = at_ms
        if node in self.item_limits and self.item_limits[node].expired():
            return
        is_cancelled = task.cancelling() or node in self._cut
        if not is_cancelled or not self._state.step_runs.is_attempting(node):
            task.cancel()
        elif not self._is_cut_short(node):
            cancel = self._cancel_again
            self._timers.append(self._loop.call_later(GRACE_S, cancel, node, context=self._context))

    def _cancel_again(self, node: int) -> None:
        """Cancel a node that continues in spite of a third party's cancellation."""
        if node in self._live:
            self._live[node].cancel()

    def cut(self, node: int, task: asyncio.Task[Any], kind: TimeoutKind, limit_ms: float) -> None:
        """Cancel an attempt for a limit of a policy, unless a limit has: it may be cleaning up."""
        if not self._is_cut_short(node):
            self._cut[node] = kind, limit_ms
            task.cancel()

    def was_cut(self, node: int) -> bool:
        """Whether a limit of a policy has cancelled the running attempt of a node."""
        return node in self._cut

    def cause_of(
        self, node: int, running: AttemptStarted, ended_ms: float, *, returned: bool
    ) -> tuple[TimeoutKind, float] | None:
        """Return the kind and the milliseconds of the limit that an attempt has exceeded.

        It has, if the limit had passed by the attempt's end. If the run asked the node to stop
        before, what the attempt raises is the end of its clean-up; only a value is too late.
        The clock alone can't tell: a step that blocks the loop passes its limit too. So this is
        for attempts whose task was asked to cancel.
        """
        if node in self._cut:
            return self._cut.pop(node)
        before_ms = ended_ms + TIMER_SLACK_S * 1000
        if node in self.requested and not returned:
            before_ms = self.requested[node] + ROUNDING_MS  # in a tie, the limit came first
        limit = self._state.deadlines.passed(node, running.at_ms, before_ms)
        return None if limit is None else (limit.kind, limit.ms)

    def _is_cut_short(self, node: int) -> bool:
        """Whether a limit has cancelled the running attempt.

        Its task can't tell: the action may have swallowed an earlier cancellation, also its own.
        """
        running = self._state.step_runs.running_attempt(node)
        if running is None or node in self._cut:
            return running is not None
        before_ms = self._now_ms() + TIMER_SLACK_S * 1000
        return self._state.deadlines.passed(node, running.at_ms, before_ms) is not None

    def has_reached(self, node: int) -> bool:
        """Whether the run has asked the attempt to stop in whose task this is called.

        Where an attempt has a task of its own before 3.12, the request reaches it some turns after
        it has reached the task of the node. What the attempt does meanwhile, it does by itself.
        """
        if node not in self.requested:
            return False
        task = running_task()
        return task is self._live.get(node) or task.cancelling() > 0

    def check_before_backoff(self, node: int) -> None:
        """Let a node wait for its next attempt.

        Raises:
            asyncio.CancelledError: The run has asked the node to stop, or does so now.
        """
        self._run.backs_off()
        if node in self.requested:
            # The cancellation came as the attempt ended, so nothing has raised it.
            raise asyncio.CancelledError

    async def undisturbed(self, node: int, wait: Callable[[], Awaitable[T]]) -> T:
        """Return what a wait in a node's task does; begin again if a third party cancels that.

        Raises:
            asyncio.CancelledError: The run has asked the node to stop.
        """
        while True:
            try:
                return await wait()
            except asyncio.CancelledError:
                if node in self.requested:
                    raise
                forget_cancels()

    def close(self) -> None:
        """Cancel nothing again."""
        for timer in self._timers:
            timer.cancel()
        self.watchdog.stop()
