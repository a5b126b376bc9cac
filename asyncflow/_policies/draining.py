"""Drains a run: nothing more starts, and the attempts that are running end.

If these complete the run, it ends as usual. Otherwise it is interrupted, unless it only waits for
signals. Nested runs drain with the run around them (`asyncflow._policies.nested_runs`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncflow._core.errors import RunCancelledError
from asyncflow._core.history.results import Interruption, Key
from asyncflow._kernel.policy import Policy
from asyncflow._kernel.run_scope import Parts
from asyncflow._policies.nested_runs import NestedLink, NestedRuns, enter_outer_run

if TYPE_CHECKING:
    from asyncflow._policies.resources import Resources
    from asyncflow._policies.waits import Waits


class Draining(Policy):
    """The policy of a run that may be drained: by its handle, or with the run around it."""

    def __init__(self, parts: Parts, waits: Waits | None, resources: Resources | None) -> None:
        scope = self._scope = parts.scope
        self._run = parts.run
        self._stop_control = parts.stop_control
        self._state = scope.state
        self._waits = waits
        self._resources = resources
        self._reason = ""
        """Why the run drains; empty if it does not."""
        self._has_ended = False
        self._nested = NestedRuns(scope.loop, scope.context, self._stop_attempt)
        self._outer: NestedLink | None = None
        """Its link to the run around it, if there is one."""

    def drain_soon(self, reason: str) -> None:
        """Drain the run, from the next turn of the loop on."""
        self._scope.loop.call_soon(self._drain, reason, context=self._scope.context)

    def _drain(self, reason: str) -> None:
        state, plan = self._state, self._scope.plan
        if self._has_ended or self._reason or state.stop_reason is not None:
            return
        self._reason = reason
        if self._waits is not None and self._waits.suspend():
            if self._resources is not None:
                self._resources.stop_opening()
            return
        self._nested.drain(reason)
        steps, has_begun = len(plan.steps), state.step_runs.has_begun
        running = [node for node in self._scope.live if node < steps and has_begun(node)]
        if len(running) < state.readiness.unsettled:
            self.on_back_off()

    def _stop_attempt(self, key: Key) -> None:
        """Stop an attempt whose nested runs start nothing more, since this run drains."""
        self.on_back_off()
        for node, task in list(self._scope.live.items()):
            running = self._state.step_runs.running_attempt(node)
            requested = self._stop_control.requested
            is_it = running is not None and (running.step, running.item) == key
            if is_it and node not in requested:
                self._stop_control.request(node, task, self._scope.run_context.now_ms())

    def on_open(self) -> None:
        self._outer = enter_outer_run(self.drain_soon)
        if self._outer is not None and self._waits is not None:
            self._waits.stay()

    def on_back_off(self) -> None:
        if self._reason:
            error = RunCancelledError(self._scope.run_id, self._reason)
            self._run.wind_down(error, Interruption("drained", self._reason))

    def on_end(self) -> None:
        self._has_ended = True

    def on_ended(self) -> None:
        self._nested.close()

    async def on_raise(self, raised: BaseException | None) -> BaseException | None:
        if self._outer is None:
            return raised
        is_drained = isinstance(raised, RunCancelledError) and self._state.cause == "drained"
        try:
            if is_drained:
                raised = await self._outer.stand_still() or raised
            self._outer.leave()
            return raised
        finally:
            self._outer = None  # it refers back to us
            del raised
