"""Who was asked to stop, by whom, and when: nobody but `StopControl` cancels a node's task.

Rules:

1. The run asks a node to stop at most once.
2. An attempt that was cancelled already, by a limit or by a third party, may be cleaning up. It is
   not cancelled again before a grace period has passed.
3. A cancellation that neither the run nor a limit has requested is a third party's. It never cuts
   a wait between attempts short.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from typing import Any

from asyncflow._core.context import RunContext
from asyncflow._core.scheduler import Limit
from asyncflow._core.state import RunState
from asyncflow._runtime.asyncio_compat import TIMER_SLACK_S, forget_cancels
from asyncflow._runtime.watchdog import GRACE_S
from asyncflow.events import AttemptStarted

__all__ = ["StopControl"]


class StopControl:
    """Asks nodes to stop, and knows who has asked.

    Attributes:
        requested: When the run has asked a node to stop, in milliseconds, by node.
        called_ms: When an action was called, by node, if that was after its attempt started: a
            journal first stores the start.

    Args:
        state: The state of the run.
        run: What the run's attempts have in common.
        context: The run's, for timers.
        live: The task of each node that runs.
    """

    def __init__(
        self,
        state: RunState,
        run: RunContext,
        context: Context,
        live: Mapping[int, asyncio.Task[Any]],
    ) -> None:
        self._state = state
        self._run = run
        self._context = context
        self._live = live
        self._loop = asyncio.get_running_loop()
        self.requested: dict[int, float] = {}
        self.called_ms: dict[int, float] = {}
        self._missed_heartbeat: set[int] = set()
        self._doubtful: list[int] = []
        """The nodes that were to stop and were not cancelled, since a third party had done so."""
        self._timer: asyncio.TimerHandle | None = None

    def request(self, node: int, task: asyncio.Task[Any], at_ms: float) -> None:
        """Ask a node to stop for the run."""
        self.requested[node] = at_ms
        is_cancelled = task.cancelling() or node in self._missed_heartbeat
        if not is_cancelled or not self._state.is_attempting(node):
            task.cancel()
        elif not self._is_cut_short(node):
            self._doubtful.append(node)

    def grant_grace(self) -> None:
        """Cancel again what continues in spite of a third party's cancellation, but not soon."""
        if self._doubtful:
            self.close()
            self._timer = self._loop.call_later(GRACE_S, self._cancel_again, context=self._context)

    def _cancel_again(self) -> None:
        for node in self._doubtful:
            if node in self._live:
                self._live[node].cancel()
        self._doubtful.clear()

    def miss_heartbeat(self, node: int, task: asyncio.Task[Any]) -> None:
        """Cancel an attempt that has missed its heartbeat, unless it is cleaning up."""
        # A thread can't know that it was asked to stop, and works on.
        in_loop = self._state.step_runs.steps[node].runs_in != "thread"
        if not (in_loop and node in self.requested) and not self._is_cut_short(node):
            self._missed_heartbeat.add(node)
            task.cancel()

    def has_missed_heartbeat(self, node: int) -> bool:
        """Whether the running attempt of a node was cancelled for that."""
        return node in self._missed_heartbeat

    def take_missed_heartbeat(self, node: int) -> bool:
        """Return the same, once for each time: the attempt has ended."""
        if node not in self._missed_heartbeat:
            return False
        self._missed_heartbeat.discard(node)
        return True

    def limit_of(self, node: int, running: AttemptStarted) -> Limit | None:
        """Return the tighter limit of a running attempt, if it has any."""
        return self._state.deadlines.of(node, self.called_ms.get(node, running.at_ms))

    def _is_cut_short(self, node: int) -> bool:
        """Whether a limit has cancelled the running attempt.

        Its task can't tell: the action may have swallowed an earlier cancellation, also its own.
        """
        running = self._state.running_attempt(node)
        if running is None or node in self._missed_heartbeat:
            return running is not None
        limit = self.limit_of(node, running)
        return limit is not None and limit.ends_ms <= self._run.now_ms() + TIMER_SLACK_S * 1000

    async def undisturbed(self, node: int, wait: Callable[[], Awaitable[object]]) -> None:
        """Wait for something in a node's task; begin again if a third party cancels that.

        Raises:
            asyncio.CancelledError: The run has asked the node to stop.
        """
        while True:
            try:
                await wait()
            except asyncio.CancelledError:
                if node in self.requested:
                    raise
                forget_cancels()
            else:
                return

    def close(self) -> None:
        """Cancel nothing again."""
        if self._timer is not None:
            self._timer.cancel()
