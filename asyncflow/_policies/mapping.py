"""The mapped steps of a run: each item becomes a node of its own.

Rules:

1. An item is taken from its source only when the one before has been scheduled, so that neither
   items nor tasks pile up in front of a pool or of ``max_concurrency``; and none is taken while too
   many finished ones wait for a later step (`asyncflow._core.running.chains`), or too many
   for equal calls.
2. A mapped step ends after its items, whatever became of them. Their failures are raised together,
   if they are more than it tolerates.
3. A source that is an asynchronous iterator may hang. So each wait for its next item is limited,
   and all of them together; the time in which no item is asked for is not.
4. A step that is mapped over a mapped step takes the items of that as they end, and skips those
   that did not succeed. It succeeds only if that one did.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Set,
    Sized,
)
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, NamedTuple

from asyncflow._core.errors import StepTimeoutError
from asyncflow._core.history.results import StepStatus, outputs_of, with_note
from asyncflow._core.pipeline.graph import maker_of
from asyncflow._core.pipeline.step import WorkflowStep, tolerates
from asyncflow._core.running.chains import ItemQueue
from asyncflow._core.running.deadlines import ROUNDING_MS
from asyncflow._core.running.step_runs import ItemEnd
from asyncflow._core.text import describe_error
from asyncflow._core.tracebacks import strip_internal_frames
from asyncflow._kernel.asyncio_compat import FAILURES, forget_cancels
from asyncflow._kernel.outcome import as_failure, raised_by, step_cancelled, timeout_error
from asyncflow._kernel.policy import Policy
from asyncflow._kernel.run_scope import Parts
from asyncflow._kernel.stop_control import StopControl
from asyncflow.events import MapStarted, StepCancelled, StepFailed, StepSkipped, StepSucceeded

_ITEMS_A_TURN = 100
"""After how many items of a mapped step other tasks get a turn."""


class _Iteration(NamedTuple):
    """How the iteration over the items of a mapped step has ended."""

    is_complete: bool = False
    failure: Exception | None = None
    """What the step fails with, whatever becomes of the items that there are."""
    stopped_by: BaseException | None = None
    """What it raised as the run stopped it, or for the run to raise."""


class Maps(Policy):
    """The policy of a run with mapped steps: each runs its items from one task.

    ``adding`` takes the mapped steps that are about to add items: see `Permits`, if there are any.
    With ``needs_order``, items must have the same order in every process.
    """

    arguments = frozenset({"map_over"})

    def __init__(self, parts: Parts, adding: set[int] | None, *, needs_order: bool) -> None:
        scope = parts.scope
        self._run = parts.run
        self._dispatcher = parts.dispatcher
        self._stop_control = parts.stop_control
        self._data = scope.data
        self._items = scope.data.items
        self._state = scope.state
        self._runs = scope.state.step_runs
        self._chains = scope.state.chains
        self._snapshot = scope.start.snapshot
        self._plan = scope.plan
        self._now_ms = scope.run_context.now_ms
        self._needs_order = needs_order
        self._loop = scope.loop
        self._changes: dict[int, asyncio.Future[None]] = {}
        """What each mapped step waits for: that one of its items is scheduled or ends."""
        self._ended: dict[int, deque[tuple[int, asyncio.Task[Any] | None]]] = {}
        """The items of each mapped step that are to be forgotten when their tasks have ended, which
        still know them; and by the task of the step, which may just wait for one to be scheduled.
        """
        self._added: dict[int, int] = {}
        """How many items each mapped step has added since its task has let others run."""
        self._adding = adding
        self._is_broken = False

    def on_launch(self, node: int, step: WorkflowStep) -> Coroutine[Any, Any, None] | None:
        if node >= len(self._plan.steps):
            self._note_change(node)
            return None
        if self._adding is not None:
            self._adding.add(node)
        return self._run_map(node, step)

    def _pause(self, node: int) -> None:
        """Note that a mapped step adds nothing now: it waits, has ended, or will never begin."""
        if self._adding is not None:
            self._adding.discard(node)

    async def _run_map(self, node: int, step: WorkflowStep) -> None:
        """Run a mapped step to its end."""
        try:
            queue = self._queue_of(node)
            count = count_of(self._source_of(step)) if queue is None else queue.count
            start = MapStarted(step.name, self._now_ms(), count, step.keep_outputs)
            self._dispatcher.emit(start)
            iteration = await self._iterate(node, step, queue)
            while (items := self._runs.ends_of_items(node)) is None:
                if self._is_broken:
                    return
                with suppress(asyncio.CancelledError):
                    await self._change(node)
            if iteration.is_complete:  # it may have told another length, or have grown meanwhile
                count = self._runs.count_of_items(node)
            skipped = sum(item.status is StepStatus.SKIPPED for item in items)
            given = None if count is None else count - skipped
            failure = common_error(step, items, given, iteration.failure)
            self._report_end(node, step, items, iteration, failure)
        except BaseException as bug:
            self._run.broken(bug, f"step {step.name!r} could not be run")
        finally:
            self._pause(node)
            self._wake_up_chain(node)
            self._run.settled(node)

    async def _iterate(self, node: int, step: WorkflowStep, queue: ItemQueue | None) -> _Iteration:
        """Take the items of a mapped step from its source, until that ends or the run stops."""
        try:
            if queue is None:
                return _Iteration(await self._add_items(node, step))
            return _Iteration(await self._add_items_of(queue, node, step))
        except GeneratorExit:  # pragma: no cover - the loop was closed over it
            raise
        except BaseException as error:
            strip_internal_frames(error)
            if not isinstance(error, FAILURES):
                self._run.interrupt(error, raised_by(f"step {step.name!r}", error))
            elif node not in self._stop_control.requested:
                forget_cancels()
                return _Iteration(failure=as_failure(error, step.name, 0))
            return _Iteration(stopped_by=error)

    def _report_end(
        self,
        node: int,
        step: WorkflowStep,
        items: list[ItemEnd],
        iteration: _Iteration,
        failure: Exception | None,
    ) -> None:
        """Report how a mapped step ends, whose items have all ended."""
        state, emit, now_ms = self._state, self._dispatcher.emit, self._now_ms()
        queue = self._queue_of(node)
        if failure is not None:
            emit(StepFailed(step.name, 0, now_ms, failure))
        elif not iteration.is_complete or not self._have_all_ended(node, items):
            emit(step_cancelled(state, node, now_ms, iteration.stopped_by))
        elif queue is not None and not self._runs.has_succeeded(queue.source):
            cause = step.map_over or ""
            reason = f"its items depend on step {cause!r}, which did not succeed"
            emit(StepCancelled(step.name, 0, now_ms, reason, None, cause=cause))
        else:
            output = outputs_of(items) if step.keep_outputs else None
            emit(StepSucceeded(step.name, 0, now_ms, output, secret=step.secret))

    def on_broken(self) -> None:
        self._is_broken = True
        self.look_again()

    def look_again(self) -> None:
        """Let each mapped step that waits look whether it may add another item."""
        for node in list(self._changes):
            self._wake_up(node)

    def on_settled(self, node: int, task: asyncio.Task[Any] | None) -> None:
        if node in self._items:
            del self._items[node]
            self._note_change(node)
            if not self._runs.must_keep(node):
                owner = self._runs.owner_of(node)
                self._ended.setdefault(owner, deque()).append((node, task))
            if self._plan.chained:
                self._wake_up_chain(self._runs.owner_of(node))
        elif task is None:  # a mapped step that will never start
            self._pause(node)

    def _note_change(self, item: int) -> None:
        """Wake up the mapped step of an item that was scheduled or has ended."""
        self._wake_up(self._runs.owner_of(item))

    def _wake_up_chain(self, node: int) -> None:
        """Wake up the steps before and after a mapped step, which may go on."""
        for later in self._plan.chained.get(node, ()):
            self._wake_up(later)
        queue = self._queue_of(node)
        if queue is not None:
            self._wake_up(queue.source)

    def _wake_up(self, node: int) -> None:
        change = self._changes.pop(node, None)
        if change is not None and not change.done():
            change.set_result(None)
            if self._adding is not None:
                self._adding.add(node)

    async def _add_items(self, node: int, step: WorkflowStep) -> bool:
        """Make each item a node; return whether none was left out, as when the run stops."""
        number, source = 0, self._source_of(step)
        verb = "return" if step.map_over in self._plan.index else "pass"
        if self._needs_order:
            check_order(source, step.name, verb)
        may_wait = isinstance(source, AsyncIterable)
        if may_wait:
            self._pause(node)
        waits = _ItemWaits(node, step, *self._limit_of(step), self._now_ms, self._stop_control)
        async with aclosing(each_item(source, step.name, waits.next_of, verb)) as values:
            async for value in values:
                if self._stops(node):
                    return False
                await self._add_item(node, number, value)
                if may_wait:
                    self._pause(node)
                number += 1
        return True

    async def _add_items_of(self, queue: ItemQueue, node: int, step: WorkflowStep) -> bool:
        """Do the same with the items of a mapped step, as they end."""
        while True:
            item = queue.take()
            if item is None and queue.is_complete:
                return True
            if item is None:
                await self._change(node)
                continue
            if self._stops(node):
                return False
            self._wake_up(queue.source)
            if item.problem:
                self._dispatcher.emit(
                    StepSkipped(step.name, self._now_ms(), item.problem, item=item.number)
                )
                self._wake_up_chain(node)
                if self._state.stop_reason is not None:
                    self._run.advance()  # what had failed is too much of what is left
            else:
                await self._add_item(node, item.number, item.output)

    async def _add_item(self, node: int, number: int, value: Any) -> None:
        """Make an item a node, and wait until it is scheduled and there is room for another."""
        state, ended = self._state, self._ended.get(node)
        if self._adding is not None:
            self._adding.add(node)
        # Once the run stops, nodes are known as asked to stop, and clean-up steps need others.
        while ended and state.stop_reason is None and (not ended[0][1] or ended[0][1].done()):
            state.forget_item(ended.popleft()[0])
        stored, snapshot = None, self._snapshot
        if snapshot is not None:
            stored = snapshot.stored_end(self._plan.steps[node], self._now_ms(), number)
        if stored is None:
            item = state.add_item(node, self._now_ms(), number)
            self._items[item] = value
            self._run.advance()
            while state.queue.is_queued(item) or state.queue.has_parked_too_many(node):
                await self._change(node)
        else:
            self._dispatcher.emit(stored)
            if self._plan.chained:
                self._run.advance()  # it may be the first one for a later step
                self._wake_up_chain(node)
        while self._chains is not None and self._chains.holds_back(node):
            await self._change(node)
        added = self._added[node] = self._added.get(node, 0) + 1
        if added >= _ITEMS_A_TURN:
            self._added[node] = 0
            self._pause(node)
            await self._stop_control.undisturbed(node, partial(asyncio.sleep, 0))

    def _queue_of(self, node: int) -> ItemQueue | None:
        """Return the queue of a step that is mapped over a mapped step; ``None`` for another."""
        return None if self._chains is None else self._chains.queues.get(node)

    def _stops(self, node: int) -> bool:
        """Whether a mapped step starts no more items, since the run stops."""
        return self._state.stop_reason is not None and not self._state.is_exempt_from_stop(node)

    async def _change(self, node: int) -> None:
        """Wait until an item of the mapped step is scheduled or has ended; it may be neither."""
        change = self._changes[node] = self._loop.create_future()
        self._added[node] = 0
        if self._adding is not None:
            self._adding.discard(node)
        try:
            await change
        except asyncio.CancelledError:
            if node in self._stop_control.requested:
                raise
            forget_cancels()

    def _source_of(self, step: WorkflowStep) -> Any:
        """Return the output or the input over which a step is mapped."""
        assert step.map_over is not None
        source = self._plan.index.get(step.map_over)
        return self._data.input(step.map_over) if source is None else self._runs.output(source)

    def _limit_of(self, step: WorkflowStep) -> tuple[str, float | None]:
        """Return what gives a mapped step its items, and the limit of each wait for one."""
        assert step.map_over is not None
        if step.map_over not in self._plan.index:
            return step.map_over, None  # an input
        maker = self._plan.steps[maker_of(self._plan, self._plan.index[step.map_over])]
        return maker.name, maker.timeout_ms

    def _have_all_ended(self, node: int, items: list[ItemEnd]) -> bool:
        """Whether the run has stopped no item of a mapped step."""
        # An item that was dropped before it started has no result.
        is_whole = len(items) == len(self._runs.items(node))
        return is_whole and all(item.status is not StepStatus.CANCELLED for item in items)


class _ItemWaits:
    """Waits for the items of an asynchronous iterator, within the limits of a mapped step.

    ``source`` is what gives the items. ``timeout_ms`` limits each wait for one, and the step's
    ``deadline_ms`` all of them together.
    """

    def __init__(
        self,
        node: int,
        step: WorkflowStep,
        source: str,
        timeout_ms: float | None,
        now_ms: Callable[[], float],
        stop_control: StopControl,
    ) -> None:
        self._node = node
        self._step = step
        self._source = source
        self._timeout_ms = math.inf if timeout_ms is None else timeout_ms
        self._left_ms = math.inf if step.deadline_ms is None else step.deadline_ms
        self._now_ms = now_ms
        self._stop_requested = stop_control.requested
        self._limits = stop_control.item_limits

    async def next_of(self, iterator: AsyncIterator[Any]) -> Any:
        """Return the next item, or `_END` if there is none.

        Raises:
            StepTimeoutError: It did not come within a limit.
        """
        limit_ms = min(self._timeout_ms, self._left_ms)
        if limit_ms == math.inf:
            return await anext(iterator, _END)
        began_ms, item, late = self._now_ms(), _END, None
        ends_ms = began_ms + limit_ms
        # Not `wait_for`: before 3.12, each item would come to another task and context.
        async with asyncio.timeout(limit_ms / 1000) as limit:
            self._limits[self._node] = limit
            try:
                item = await anext(iterator, _END)
            except FAILURES as error:
                if not self._is_late(limit, ends_ms):
                    raise
                late = self._timeout(error)
            else:
                if self._is_late(limit, ends_ms):
                    late = self._timeout(None)
            finally:
                del self._limits[self._node]
                self._left_ms -= self._now_ms() - began_ms
        if late is None:
            return item
        try:
            raise late
        finally:
            del late  # it keeps this frame

    def _is_late(self, limit: asyncio.Timeout, ends_ms: float) -> bool:
        """Whether a limit has ended a wait, and the run had not asked the step to stop before."""
        asked_ms = self._stop_requested.get(self._node, math.inf)
        return limit.expired() and asked_ms > ends_ms - ROUNDING_MS

    def _timeout(self, error: BaseException | None) -> StepTimeoutError:
        name, deadline_ms = self._step.name, self._step.deadline_ms
        if deadline_ms is not None and self._left_ms <= self._timeout_ms:
            return timeout_error("step", deadline_ms, name, 0, error, self._source)
        return timeout_error("attempt", self._timeout_ms, name, 0, error, self._source)


_END = object()
"""Follows the last item of an asynchronous iterator."""


async def each_item(
    source: Any, name: str, next_of: Callable[[AsyncIterator[Any]], Awaitable[Any]], verb: str
) -> AsyncGenerator[Any, None]:
    """Yield the items of what a mapped step maps over, one by one.

    ``next_of`` waits for those of an asynchronous iterator, and ``verb`` says in an error what is
    done with a source: "return" or "pass". A generator is closed at the end,
    however that comes.

    Raise `TypeError` for what is not iterable, and for text, whose letters are hardly meant.
    """
    if isinstance(source, AsyncIterable):
        iterator = aiter(source)
        try:
            while (item := await next_of(iterator)) is not _END:
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
            f"{verb} a list"
        )


def count_of(source: Any) -> int | None:
    """Return how many items there will be, if what is mapped over can tell."""
    try:
        return len(source) if isinstance(source, Sized) else None
    except Exception:  # it is the user's object
        return None


def check_order(source: Any, name: str, verb: str) -> None:
    """Check that items have the same order in every process, since a journal numbers them.

    Raise `TypeError` for those of a set.
    """
    if isinstance(source, Set):
        raise TypeError(
            f"step {name!r} maps over a {type(source).__name__}, which has another order in each "
            f"process, so that a resumed run could not tell its items apart; {verb} a list"
        )


def common_error(
    step: WorkflowStep, items: list[ItemEnd], count: int | None, error: Exception | None
) -> Exception | None:
    """Return what a mapped step fails with, if it fails.

    ``items`` are those that are remembered, of so many in all, if that is known. Those that are
    skipped were not given to the step. ``error`` ended the iteration over the items early, if
    anything did.
    """
    name, failed = step.name, [item for item in items if item.status is StepStatus.FAILED]
    items = [item for item in items if item.status is not StepStatus.SKIPPED]
    if error is None and tolerates(step, len(failed), count):
        return None
    errors = [with_note(item.error, f"in {item.name}") for item in failed]
    if not errors:
        return error
    first = f"{failed[0].name}: {describe_error(errors[0])}"
    known = len(items) if count is None else count
    of_all = "1 item" if known == 1 else f"{known} items"
    message = f"{len(errors)} of {of_all} of step {name!r} failed; the first is {first}"
    return ExceptionGroup(message, errors if error is None else [error, *errors])
