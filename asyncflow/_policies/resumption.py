"""Reports the results that a run reuses: of its earlier segments, or of the run that it reruns."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager

from asyncflow._core.errors import StepCrashedError
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._kernel.policy import Policy
from asyncflow._kernel.run_scope import Parts
from asyncflow._policies.durable import RunPersistence

_REUSED_A_TURN = 100
"""After how many steps of a resumed run, or reused results of a rerun, other tasks get a turn."""


class EarlierResults(Policy):
    """The policy of a run that begins with a snapshot."""

    def __init__(self, parts: Parts, persistence: RunPersistence | None) -> None:
        self._scope = parts.scope
        self._dispatcher = parts.dispatcher
        self._run = parts.run
        self._persistence = persistence
        self._block: AbstractContextManager[None] | None = None
        """While it is open, all that is stored is stored together."""
        self._cancelled: asyncio.CancelledError | None = None

    def on_open(self) -> None:
        persistence = self._persistence
        if persistence is not None and persistence.together and self._scope.start.reused:
            self._block = persistence.together()
            self._block.__enter__()

    async def on_resume(self) -> None:
        await self._report_reused()
        self.on_end()
        await self._report_stored()
        cancelled, self._cancelled = self._cancelled, None
        try:
            if cancelled is not None:
                raise cancelled  # what is reused was reported all the same
        finally:
            del self, cancelled  # it keeps this frame

    def on_end(self) -> None:
        if self._block is not None:
            self._block.__exit__(None, None, None)
            self._block = None

    def on_admit(self, node: int, step: WorkflowStep) -> bool:
        """Fail a node whose process has died too often while it ran."""
        runs = self._scope.state.step_runs
        pending = runs.pending_attempts(node)
        if pending is None or not pending.is_interrupted:
            return True
        latest, unfinished, crashes = pending.latest, pending.unfinished, pending.crashes
        if step.remote is not None and not step.remote.tells_began:
            crashes = unfinished  # a body that kills this process at once leaves no trace
        if crashes <= step.max_crashes:
            return True
        self._run.fail(node, StepCrashedError(runs.name_of(node), latest.attempt, crashes))
        return False

    async def _report_reused(self) -> None:
        """Report what a rerun reuses, which is stored with the first event of the run."""
        persistence = self._persistence
        for count, (reused, stored) in enumerate(self._scope.start.reused, 1):
            assert persistence is not None
            persistence.instead[id(reused)] = stored
            self._dispatcher.emit(reused)
            if count % _REUSED_A_TURN == 0 and self._block is not None:
                await self._give_turn()

    async def _report_stored(self) -> None:
        """Report the results of earlier segments."""
        plan, snapshot = self._scope.plan, self._scope.start.snapshot
        now_ms = self._scope.run_context.now_ms
        assert snapshot is not None
        for count, index in enumerate(plan.order):
            stored = snapshot.stored_end(plan.steps[index], now_ms())
            if stored is not None:
                self._dispatcher.emit(stored)
            # The first turn is for the journal, which may have been asked to cancel the run.
            if count % _REUSED_A_TURN == 0:
                await self._give_turn()

    async def _give_turn(self) -> None:
        """Let other tasks have a turn, unless the run is cancelled already."""
        if self._cancelled is None:
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError as early:
                self._cancelled = early
