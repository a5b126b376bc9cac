"""The mapped steps of a run: their items are taken up one by one and run as units of their own.

Rules:

1. An item is taken from its source only when the one before has been let in, so that neither
   items nor tasks pile up in front of a pool or of ``max_concurrency``.
2. A mapped step ends after its items, in whatever way. What fails of them is kept together.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from contextlib import aclosing, suppress

from asyncflow._attempts import Attempts
from asyncflow._errors import StepCancelledError
from asyncflow._items import common_error, each_item
from asyncflow._result import StepResult, StepStatus
from asyncflow._step import WorkflowStep
from asyncflow._verdicts import forget_cancels
from asyncflow.events import MapStarted, StepCancelled, StepFailed, StepSucceeded

__all__ = ["Fanout"]

_ITEMS_A_TURN = 100
"""After how many items of a mapped step the others get a turn."""


class Fanout(Attempts):
    """The layer of a run that goes through the items of mapped steps."""

    @abstractmethod
    def _advance_now(self) -> None:
        """See to what may start now, or in the next turn of the loop if that is being done."""

    async def _run_items(self, unit: int) -> None:
        """Go through the items of a mapped step. It raises nothing, as `_run_unit`."""
        step, is_complete = self._steps[unit], False
        error: Exception | None = None
        try:
            self._emit(MapStarted(step.name, self._now_ms()))
            try:
                await self._take_up_items(unit, step)
                is_complete = True
            except asyncio.CancelledError as cancelled:
                if unit not in self._asked:
                    forget_cancels()
                    error = StepCancelledError(step.name, 0)
                    error.__cause__ = cancelled
            except Exception as failure:
                error = failure
            while (items := self._state.units.results_of_items(unit)) is None:
                with suppress(asyncio.CancelledError):
                    await self._change(unit)
            self._tell_end_of_items(step, items, error, is_complete)
        except BaseException as bug:
            self._break_off(bug, f"step {step.name!r} could not be run")
        finally:
            self._live.pop(unit, None)
            self._follow_up(unit)
            del self  # as in _run_unit
            error = items = None

    async def _take_up_items(self, unit: int, step: WorkflowStep) -> None:
        assert step.map_over is not None
        source = self._state.units.results[self._identity.plan.index[step.map_over]]
        assert source is not None
        if source.status is not StepStatus.SUCCESS:
            return  # it is a clean-up step, and there is nothing to go through
        async with aclosing(each_item(source.output, step.name)) as values:
            async for value in values:
                item = self._state.add_item(unit, self._now_ms())
                self._bindings.append(self._bindings[unit])
                self._values[item] = value
                self._advance_now()
                while self._state.stands_in_line(item):
                    await self._change(unit)
                if item % _ITEMS_A_TURN == 0:
                    await asyncio.sleep(0)

    async def _change(self, unit: int) -> None:
        """Wait until an item of the mapped step has been let in or has ended."""
        change = self._changes[unit] = self._loop.create_future()
        await change

    def _note_change(self, item: int) -> None:
        change = self._changes.pop(self._state.units.owner_of(item), None)
        if change is not None and not change.done():
            change.set_result(None)

    def _tell_end_of_items(
        self,
        step: WorkflowStep,
        items: list[StepResult],
        error: Exception | None,
        is_complete: bool,
    ) -> None:
        now_ms = self._now_ms()
        error = common_error(step.name, items, error)
        if error is not None:
            self._emit(StepFailed(step.name, 0, now_ms, error))
            if self._state.stop_reason is not None:
                self._stop_soon()
        elif is_complete and all(item.status is StepStatus.SUCCESS for item in items):
            self._emit(StepSucceeded(step.name, 0, now_ms, [item.output for item in items]))
        else:
            reason = self._state.stop_reason or ""
            self._emit(StepCancelled(step.name, 0, now_ms, reason, None))
