"""The mapped steps of a run: their items are taken up one by one and run as units of their own.

Rules:

1. An item is taken from its source only when the one before has been let in, so that neither
   items nor tasks pile up in front of a pool or of ``max_concurrency``.
2. A mapped step ends after its items, in whatever way. What fails of them is kept together.

The items of a mapped step: where they come from, and what they come to together.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Set, Sized
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from asyncflow._core.errors import describe_error
from asyncflow._core.results import StepResult, StepStatus, with_note
from asyncflow._core.step import WorkflowStep
from asyncflow._core.tracebacks import strip_internal_frames
from asyncflow._runtime.asyncio_compat import FAILURES, forget_cancels
from asyncflow._runtime.outcome import as_failure
from asyncflow._runtime.step_runner import Attempts
from asyncflow.events import MapStarted, StepFailed, StepSucceeded

__all__ = [
    "Fanout",
    "check_order",
    "common_error",
    "count_of",
    "each_item",
]


async def each_item(source: Any, name: str) -> AsyncGenerator[Any, None]:
    """Yield the items of what a mapped step maps over, one by one.

    An asynchronous generator is closed at the end, wherever that is.

    Raises:
        TypeError: It is no iterable and no async iterable; or it is text, of which hardly
            anybody wants each letter.
    """
    if isinstance(source, AsyncIterable):
        iterator = aiter(source)
        try:
            async for item in iterator:
                yield item
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None:
                await close()
    elif isinstance(source, Iterable) and not isinstance(source, str | bytes):
        for item in source:
            yield item
    else:
        raise TypeError(
            f"step {name!r} maps over {type(source).__name__}, which is not a collection of items"
        )


def count_of(source: Any) -> int | None:
    """Return how many items there will be, if what is mapped over can tell."""
    try:
        return len(source) if isinstance(source, Sized) else None
    except Exception:  # it is the user's object
        return None


def check_order(source: Any, name: str) -> None:
    """Check that the items have the same order in every process, since they are kept by number.

    Raises:
        TypeError: They have not, being those of a set.
    """
    if isinstance(source, Set):
        raise TypeError(
            f"step {name!r} maps over a {type(source).__name__}, which has another order in each "
            "process, so that a resumed run could not tell its items apart; return a list"
        )


def common_error(name: str, items: list[StepResult], error: Exception | None) -> Exception | None:
    """Return what a mapped step fails with, if it fails.

    Args:
        name: The step.
        items: The results of its items.
        error: What ended the iteration over the items too early, if anything did.
    """
    failed = [item for item in items if item.status is StepStatus.FAILED]
    errors = [with_note(item, f"in {item.step_name}") for item in failed]
    if not errors:
        return error
    told = f"{failed[0].step_name}: {describe_error(errors[0])}"
    message = f"{len(errors)} of {len(items)} items of step {name!r} failed; the first is {told}"
    return ExceptionGroup(message, errors if error is None else [error, *errors])


_ITEMS_A_TURN = 100
"""After how many items of a mapped step the others get a turn."""


class Fanout(Attempts):
    """The layer of a run that goes through the items of mapped steps."""

    @abstractmethod
    def _advance_now(self) -> None:
        """See to what may start now, or in the next turn of the loop if that is being done."""

    async def _run_items(self, node: int) -> None:
        """Go through the items of a mapped step. It raises nothing, as `run_node`."""
        step, is_complete = self._steps[node], False
        error: BaseException | None = None
        failure: Exception | None = None
        try:
            count = count_of(self._source_of(step).output)
            self._emit(MapStarted(step.name, self._now_ms(), count))
            try:
                is_complete = await self._take_up_items(node, step)
            except GeneratorExit:  # pragma: no cover - the loop was closed over it
                raise
            except BaseException as raised:
                strip_internal_frames(raised)
                error = raised
                if not isinstance(raised, FAILURES):
                    self._interrupt(raised, f"step {step.name!r} raised {type(raised).__name__}")
                elif node not in self._asked:
                    forget_cancels()
                    failure = as_failure(error, step.name, 0)
            while (items := self._state.step_runs.results_of_items(node)) is None:
                if self._is_broken:
                    return
                with suppress(asyncio.CancelledError):
                    await self._change(node)
            failure = common_error(step.name, items, failure)
            if failure is not None:
                self._tell_failure(StepFailed(step.name, 0, self._now_ms(), failure))
            elif is_complete and self._have_all_succeeded(node, items):
                output = [item.output for item in items]
                success = StepSucceeded(step.name, 0, self._now_ms(), output)
                self._emit(success, self._as_kept(node, success))
            else:
                self._emit(self._cancelled(node, error))
        except BaseException as bug:
            self._break_off(bug, f"step {step.name!r} could not be run")
        finally:
            self._live.pop(node, None)
            self._follow_up(node)
            del self  # as in _run_unit
            error = failure = items = None

    def _have_all_succeeded(self, node: int, items: list[StepResult]) -> bool:
        # An item that was withdrawn before it began has no result.
        is_whole = len(items) == self._state.step_runs.count_of_items(node)
        return is_whole and all(item.status is StepStatus.SUCCESS for item in items)

    def _source_of(self, step: WorkflowStep) -> StepResult:
        """Return the result of the step over whose output a step is mapped."""
        assert step.map_over is not None
        source = self._state.step_runs.results[self._identity.plan.index[step.map_over]]
        assert source is not None
        return source

    async def _take_up_items(self, node: int, step: WorkflowStep) -> bool:
        """Make each item a unit; return whether none was left out, as when the run stops."""
        source = self._source_of(step)
        if source.status is not StepStatus.SUCCESS:
            return True  # it is a clean-up step, and there is nothing to go through
        try:
            if self._keeper is not None:
                check_order(source.output, step.name)
            async with aclosing(each_item(source.output, step.name)) as values:
                async for value in values:
                    if self._state.stop_reason is not None and not self._state.is_exempt_from_stop(
                        node
                    ):
                        return False
                    number = self._state.step_runs.count_of_items(node)
                    self._bindings.append(self._bindings[node])
                    stored_end = self._state.stored_end(node, self._now_ms(), number)
                    if stored_end is None:
                        await self._take_up(node, value)
                    else:
                        self._emit(stored_end)
                    if number % _ITEMS_A_TURN == 0:
                        await self._undisturbed(node, partial(asyncio.sleep, 0))
            return True
        finally:
            del self  # what the iteration raised keeps this frame

    async def _take_up(self, node: int, value: Any) -> None:
        """Make an item a unit, and wait until it has been let in."""
        item = self._state.add_item(node, self._now_ms())
        self._values[item] = value
        self._advance_now()
        while self._state.is_queued(item):
            await self._change(node)

    async def _change(self, node: int) -> None:
        """Wait until an item of the mapped step has been let in or has ended, or for nothing."""
        change = self._changes[node] = self._loop.create_future()
        try:
            await change
        except asyncio.CancelledError:
            if node in self._asked:
                raise
            forget_cancels()

    def _note_change(self, item: int) -> None:
        change = self._changes.pop(self._state.step_runs.owner_of(item), None)
        if change is not None and not change.done():
            change.set_result(None)
