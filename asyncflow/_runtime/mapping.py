"""The mapped steps of a run: each item becomes a node of its own.

Rules:

1. An item is taken from its source only when the one before has been scheduled, so that neither
   items nor tasks pile up in front of a pool or of ``max_concurrency``.
2. A mapped step ends after its items, whatever became of them. Their failures are raised together.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Set, Sized
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from asyncflow._core.errors import describe_error
from asyncflow._core.results import Interruption, StepResult, StepStatus, with_note
from asyncflow._core.step import WorkflowStep
from asyncflow._core.tracebacks import strip_internal_frames
from asyncflow._runtime.action_data import ActionData
from asyncflow._runtime.asyncio_compat import FAILURES, forget_cancels
from asyncflow._runtime.dispatcher import EventDispatcher
from asyncflow._runtime.outcome import as_failure, step_cancelled
from asyncflow._runtime.run_scope import Host, RunScope
from asyncflow._runtime.stop_control import StopControl
from asyncflow.events import MapStarted, StepFailed, StepSucceeded

_ITEMS_A_TURN = 100
"""After how many items of a mapped step other tasks get a turn."""


class MapRunner:
    """Runs the items of mapped steps, each mapped step in one task."""

    def __init__(
        self,
        scope: RunScope,
        host: Host,
        dispatcher: EventDispatcher,
        stop: StopControl,
        data: ActionData,
    ) -> None:
        self._run = host
        self._dispatcher = dispatcher
        self._stop_control = stop
        self._items = data.items
        self._state = scope.state
        self._plan = scope.plan
        self._now_ms = scope.run_context.now_ms
        self._persistence = scope.persistence
        self._loop = scope.loop
        self._changes: dict[int, asyncio.Future[None]] = {}
        """What each mapped step waits for: that one of its items is scheduled or ends."""
        self._is_broken = False

    async def run(self, node: int, step: WorkflowStep) -> None:
        """Run a mapped step to its end. It raises nothing."""
        state, emit, now_ms = self._state, self._dispatcher.emit, self._now_ms
        is_complete = False
        error: BaseException | None = None
        failure: Exception | None = None
        try:
            emit(MapStarted(step.name, now_ms(), count_of(self._source_of(step))))
            try:
                is_complete = await self._add_items(node, step)
            except GeneratorExit:  # pragma: no cover - the loop was closed over it
                raise
            except BaseException as raised:
                strip_internal_frames(raised)
                error = raised
                if not isinstance(raised, FAILURES):
                    reason = f"step {step.name!r} raised {type(raised).__name__}"
                    self._run.interrupt(raised, Interruption("step", reason))
                elif node not in self._stop_control.requested:
                    forget_cancels()
                    failure = as_failure(error, step.name, 0)
            while (items := state.step_runs.results_of_items(node)) is None:
                if self._is_broken:
                    return
                with suppress(asyncio.CancelledError):
                    await self._change(node)
            failure = common_error(step.name, items, failure)
            if failure is not None:
                emit(StepFailed(step.name, 0, now_ms(), failure))
            elif is_complete and self._have_all_succeeded(node, items):
                success = StepSucceeded(
                    step.name, 0, now_ms(), [item.output for item in items], secret=step.secret
                )
                persistence = self._persistence
                emit(success, None if persistence is None else persistence.stored(success, None))
            else:
                emit(step_cancelled(state, node, now_ms(), error))
        except BaseException as bug:
            self._run.broken(bug, f"step {step.name!r} could not be run")
        finally:
            self._run.settled(node)

    def give_up(self) -> None:
        """Wait for no more items: the state may be wrong, so that they never end."""
        self._is_broken = True
        for node in list(self._changes):
            self._wake_up(node)

    def forget(self, item: int) -> None:
        """Forget an item that has ended or will never start."""
        if item in self._items:
            del self._items[item]
            self.note_change(item)

    def note_change(self, item: int) -> None:
        """Wake up the mapped step of an item that was scheduled or has ended."""
        self._wake_up(self._state.step_runs.owner_of(item))

    def _wake_up(self, node: int) -> None:
        change = self._changes.pop(node, None)
        if change is not None and not change.done():
            change.set_result(None)

    async def _add_items(self, node: int, step: WorkflowStep) -> bool:
        """Make each item a node; return whether none was left out, as when the run stops."""
        state, number = self._state, 0
        source = self._source_of(step)
        if self._persistence is not None:
            check_order(source, step.name)
        async with aclosing(each_item(source, step.name)) as values:
            async for value in values:
                if state.stop_reason is not None and not state.is_exempt_from_stop(node):
                    return False
                number = state.step_runs.count_of_items(node)
                stored = state.stored_end(node, self._now_ms(), number)
                if stored is None:
                    await self._add_item(node, value)
                else:
                    self._dispatcher.emit(stored)
                if number % _ITEMS_A_TURN == 0:
                    await self._stop_control.undisturbed(node, partial(asyncio.sleep, 0))
        return True

    async def _add_item(self, node: int, value: Any) -> None:
        """Make an item a node, and wait until it is scheduled."""
        item = self._state.add_item(node, self._now_ms())
        self._items[item] = value
        self._run.advance()
        while self._state.is_queued(item):
            await self._change(node)

    async def _change(self, node: int) -> None:
        """Wait until an item of the mapped step is scheduled or has ended; it may be neither."""
        change = self._changes[node] = self._loop.create_future()
        try:
            await change
        except asyncio.CancelledError:
            if node in self._stop_control.requested:
                raise
            forget_cancels()

    def _source_of(self, step: WorkflowStep) -> Any:
        """Return the output over which a step is mapped."""
        assert step.map_over is not None
        source = self._state.result(self._plan.index[step.map_over])
        assert source is not None
        return source.output

    def _have_all_succeeded(self, node: int, items: list[StepResult]) -> bool:
        # An item that was dropped before it started has no result.
        is_whole = len(items) == self._state.step_runs.count_of_items(node)
        return is_whole and all(item.status is StepStatus.SUCCESS for item in items)


async def each_item(source: Any, name: str) -> AsyncGenerator[Any, None]:
    """Yield the items of what a mapped step maps over, one by one.

    An asynchronous generator is closed at the end, however that comes.

    Raise `TypeError` for what is not iterable, and for text, whose letters are hardly meant.
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
            f"step {name!r} maps over {type(source).__name__}, which is not a collection of items; "
            "return a list"
        )


def count_of(source: Any) -> int | None:
    """Return how many items there will be, if what is mapped over can tell."""
    try:
        return len(source) if isinstance(source, Sized) else None
    except Exception:  # it is the user's object
        return None


def check_order(source: Any, name: str) -> None:
    """Check that items have the same order in every process, since a journal numbers them.

    Raise `TypeError` for those of a set.
    """
    if isinstance(source, Set):
        raise TypeError(
            f"step {name!r} maps over a {type(source).__name__}, which has another order in each "
            "process, so that a resumed run could not tell its items apart; return a list"
        )


def common_error(name: str, items: list[StepResult], error: Exception | None) -> Exception | None:
    """Return what a mapped step fails with, if it fails.

    ``error`` ended the iteration over the items early, if anything did.
    """
    failed = [item for item in items if item.status is StepStatus.FAILED]
    errors = [with_note(item, f"in {item.step_name}") for item in failed]
    if not errors:
        return error
    first = f"{failed[0].step_name}: {describe_error(errors[0])}"
    of_all = "1 item" if len(items) == 1 else f"{len(items)} items"
    message = f"{len(errors)} of {of_all} of step {name!r} failed; the first is {first}"
    return ExceptionGroup(message, errors if error is None else [error, *errors])
