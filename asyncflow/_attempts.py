"""The attempts of a step: its retry loop, its limits, and what becomes of each attempt.

Rules:

1. `asyncio.wait_for` enforces the limits. It can't tell its own end from a `TimeoutError` of the
   action, and it hands on the late value of an action that swallowed the cancellation. So what it
   waits for returns errors as values, together with how often the task was asked to cancel.
2. An attempt starts in a fresh copy of the context in which the run was started.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import sys
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from asyncflow._clock import TIMER_SLACK_S
from asyncflow._engine import (
    AttemptExtras,
    RunContext,
    attempt_variable,
    call_action,
    call_in_worker,
    enter_attempt,
    enter_run,
    limiter_for,
)
from asyncflow._errors import ResultRefusedError, StepTimeoutError
from asyncflow._graph import ITEM, Binding, Plan
from asyncflow._heart import Heart
from asyncflow._ledger import Observer
from asyncflow._plain import plain_answer
from asyncflow._result import StepResult
from asyncflow._slots import Slot
from asyncflow._state import RunState
from asyncflow._step import WorkflowStep
from asyncflow._verdicts import (
    Shortfall,
    Verdicts,
    cancels,
    forget_cancels,
    leave_out_our_frames,
    running_task,
)
from asyncflow._watchdog import Watchdog
from asyncflow.events import (
    AttemptStarted,
    StepFailed,
    StepSucceeded,
    ThreadAbandoned,
)

if TYPE_CHECKING:
    from asyncflow._workers import ThreadEnd

__all__ = ["FIRST_TASK_BEARS_THE_NAME", "Attempts"]

# Before 3.12 `wait_for` runs what it is given in a task of its own, and throws away what that
# task returned if the waiting is cancelled. So there we make the task, and ask it afterwards.
_WAIT_FOR_NEEDS_A_TASK = sys.version_info < (3, 12)
FIRST_TASK_BEARS_THE_NAME = not _WAIT_FOR_NEEDS_A_TASK
"""Whether the first attempt of a unit runs in the task of the unit."""

_ALMOST_NOTHING_S = 1e-9
"""A limit that has passed already. With 0, `wait_for` would not even begin."""


class Attempts(Verdicts):
    """Runs the attempts of the units of a run, one task a unit.

    What a run makes of their ends, and when it starts and stops them, is left to `Run`.
    """

    def __init__(
        self,
        run_id: str,
        plan: Plan,
        bindings: list[Binding],
        inputs: Mapping[str, Any],
        state: RunState,
        observers: tuple[Observer, ...],
    ) -> None:
        super().__init__(state, observers)
        self._steps = state.units.steps
        self._queue = state.queue
        self._is_limited = state.is_limited
        self._bindings = bindings
        self._inputs = inputs
        self._context = contextvars.copy_context()
        deadline_ms = state.limits.deadline_ms
        ends = math.inf if deadline_ms is None else self._started + deadline_ms / 1000
        self._identity = RunContext(run_id, plan, self._loop, self._started, ends, {})
        self._context.run(enter_run, self._identity)
        self._live: dict[int, asyncio.Task[None]] = {}
        """The task of each unit that was started and has not ended."""
        self._turns: dict[int, asyncio.Future[None]] = {}
        """What each unit waits for that stands in line for its next attempt."""
        self._threads: dict[int, ThreadEnd] = {}
        """What tells of each unit with an abandoned thread that the thread has ended."""
        self._values: dict[int, Any] = {}
        """The items that the units of mapped steps are about."""
        self._changes: dict[int, asyncio.Future[None]] = {}
        """What each mapped step waits for: that something changes among its items."""
        self._watchdog = Watchdog(state, self._identity, self._live, self._asked)

    @abstractmethod
    def _advance_soon(self) -> None:
        """See to what may start now, in the next turn of the loop."""

    @abstractmethod
    def _break_off(self, bug: BaseException, reason: str) -> None:
        """Stop the run for a reason of ours; the books stay open, since they may be wrong."""

    @abstractmethod
    def _follow_up(self, unit: int) -> None:
        """See to what follows the end of a unit."""

    async def _run_unit(self, unit: int) -> None:
        """The retry loop of one unit. It raises nothing: what happens is told in events."""
        step, attempt = self._steps[unit], 1
        work = shortfall = slot = None
        try:
            while True:
                if not step.is_plain:
                    slot = await self._take_slot(unit, step)
                limit_s = step.timeout_s if step.is_plain else self._limit_s(unit, step)
                work = self._attempt(unit, step, attempt, limit_s)
                if _WAIT_FOR_NEEDS_A_TASK or attempt > 1:
                    work = self._isolated(work, unit, attempt)
                try:
                    shortfall = await asyncio.wait_for(work, limit_s)
                except (TimeoutError, asyncio.CancelledError) as cut:
                    if not self._has_begun(unit, attempt):
                        self._undo_start(unit, slot)
                        continue
                    shortfall = await self._shortfall_after(unit, work, cut)
                if slot is not None:
                    self._give_back(unit, slot)
                if shortfall is None:
                    return
                delay_ms = self._judge(unit, shortfall)
                if delay_ms is None or not await self._pause(unit, delay_ms):
                    return
                attempt += 1
        except asyncio.CancelledError:
            self._tell_cut_short(unit)
        except BaseException as bug:
            self._break_off(bug, f"step {step.name!r} could not be run")
        finally:
            if slot is not None:
                self._give_back(unit, slot)
            self._live.pop(unit, None)
            self._follow_up(unit)
            # An error's traceback may keep this frame, which must not lead back to the error.
            del self
            shortfall = work = None

    # Before an attempt, and between two.

    async def _take_slot(self, unit: int, step: WorkflowStep) -> Slot | None:
        limiter = limiter_for(step)
        if step.pool is None and limiter is None:
            return None
        slot = Slot(step.pool, limiter)
        await self._undisturbed(unit, slot.take)
        return slot

    def _undo_start(self, unit: int, slot: Slot | None) -> None:
        """See to an attempt whose task was cancelled before its first line."""
        if slot is not None:
            slot.give_back(unused=True)
        if unit in self._asked:
            raise asyncio.CancelledError
        forget_cancels()

    def _give_back(self, unit: int, slot: Slot) -> None:
        thread = self._threads.get(unit)
        if thread is None or thread.done():
            slot.give_back()
        else:
            thread.call_at_once(slot.give_back_to_pool)
            thread.add_done_callback(lambda _: slot.give_back())

    def _limit_s(self, unit: int, step: WorkflowStep) -> float | None:
        """How many seconds the attempt that is about to start may take."""
        if step.deadline_ms is None:
            return step.timeout_s
        now_ms = self._now_ms()
        limit = self._state.limits.of(unit, now_ms)
        assert limit is not None
        return max((limit.ends_ms - now_ms) / 1000, _ALMOST_NOTHING_S)

    def _isolated(self, work: Any, unit: int, attempt: int) -> Any:
        """Return an attempt's coroutine, or a task that runs it where no other one has been."""
        name = self._watchdog.task_name(unit, attempt)
        if not _WAIT_FOR_NEEDS_A_TASK and self._context_is_clean():
            running_task().set_name(name)
            return work
        # Not an eager task: if it failed at once, its error's traceback would keep the frame that
        # makes it, which holds the task, which holds the error.
        context = None if attempt == 1 else self._context.copy()
        return asyncio.Task(work, loop=self._loop, name=name, context=context)

    def _context_is_clean(self) -> bool:
        """Whether an attempt has left nothing in the context but which attempt it was."""
        now, then = contextvars.copy_context(), self._context
        return len(now) == len(then) and all(
            now.get(variable) is value
            for variable, value in then.items()
            if variable is not attempt_variable
        )

    async def _pause(self, unit: int, delay_ms: float) -> bool:
        """Wait between two attempts, at least one turn of the loop; return whether one follows."""
        if self._is_limited:
            self._advance_soon()  # there is room for another one
        until = self._loop.time() + delay_ms / 1000
        while True:
            try:
                await asyncio.sleep(max(0.0, until - self._loop.time()))
            except asyncio.CancelledError:
                if unit in self._asked:
                    raise
                forget_cancels()  # the attempt that has ended cancelled its task, or a stranger
            if self._loop.time() >= until:
                break
        if unit in self._threads and not await self._thread_has_ended(unit):
            return False
        if self._is_limited:
            await self._next_turn(unit)
        return True

    async def _thread_has_ended(self, unit: int) -> bool:
        """Wait for an abandoned thread, which no attempt may overlap, but not past a deadline."""
        thread, latest = self._threads[unit], self._state.units.latest[unit]
        assert latest is not None
        deadline_ms, ends_ms = self._steps[unit].deadline_ms, self._state.limits.step_ends_ms(unit)
        left_s = None if deadline_ms is None else max(0.0, (ends_ms - self._now_ms()) / 1000)
        await self._undisturbed(unit, partial(asyncio.wait, [thread], timeout=left_s))
        if thread.done() or deadline_ms is None:
            return True
        name = self._state.units.name_of(unit)
        error = StepTimeoutError(name, latest.attempt, deadline_ms, "step")
        now_ms, item = self._now_ms(), latest.item
        self._tell_failure(StepFailed(latest.step, latest.attempt, now_ms, error, item))
        return False

    async def _next_turn(self, unit: int) -> None:
        turn = self._turns[unit] = self._loop.create_future()
        self._state.get_in_line(unit, self._now_ms())
        self._advance_soon()
        try:
            await self._undisturbed(unit, partial(asyncio.wait, [turn]))
        finally:
            del self._turns[unit]

    async def _undisturbed(self, unit: int, wait: Callable[[], Awaitable[object]]) -> None:
        """Wait for something, and begin anew if anybody but the run cancels that."""
        while True:
            try:
                await wait()
            except asyncio.CancelledError:
                if unit in self._asked:
                    raise
                forget_cancels()
            else:
                return

    # One attempt.

    async def _attempt(
        self, unit: int, step: WorkflowStep, attempt: int, limit_s: float | None
    ) -> Shortfall | None:
        """Call the action and await it. Only a `CancelledError` is raised: `wait_for` needs it."""
        if self._asked and unit in self._asked:
            raise asyncio.CancelledError  # pragma: no cover - before 3.12, its task has begun
        loop, binding = self._loop, self._bindings[unit]
        began = loop.time()
        running = AttemptStarted(step.name, attempt, (began - self._started) * 1000)
        if self._is_limited or not step.is_plain:
            running = self._in_full(unit, running)
        self._state.apply(running)
        if self._observers:
            self._tell(running)
        enter_attempt(running)
        ends = math.inf if limit_s is None else began + limit_s
        if ends < self._watchdog.horizon:
            self._watchdog.expect(ends)
        arguments = self._arguments(unit, binding) if binding else None
        try:
            if step.is_plain:
                value = await call_action(step, arguments)
            else:
                value = await self._call_specially(unit, step, running, arguments, ends)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            leave_out_our_frames(error)
            return Shortfall(error, None, loop.time(), cancels())
        else:
            ended = loop.time()
            if (ended >= ends - TIMER_SLACK_S or self._lapsed) and cancels():
                return Shortfall(None, value, ended, cancels())
            at_ms = (ended - self._started) * 1000
            success = StepSucceeded(step.name, attempt, at_ms, value, running.item)
            self._state.apply(success)
            if self._observers:
                self._tell(success)
            return None
        finally:
            del self  # as in _run_unit

    def _in_full(self, unit: int, running: AttemptStarted) -> AttemptStarted:
        queued_ms = self._state.queued_ms(unit, running.at_ms)
        item = self._state.units.item_of(unit)
        return AttemptStarted(running.step, running.attempt, running.at_ms, queued_ms, item)

    def _arguments(self, unit: int, binding: Binding) -> dict[str, Any]:
        results, inputs = self._state.units.results, self._inputs
        arguments = {}
        for parameter, source in binding:
            if isinstance(source, str):
                arguments[parameter] = inputs[source]
            elif source == ITEM:
                arguments[parameter] = self._values[unit]
            else:
                result = results[source]
                assert result is not None  # a step starts when its dependencies have settled
                arguments[parameter] = result.output
        return arguments

    async def _call_specially(
        self,
        unit: int,
        step: WorkflowStep,
        running: AttemptStarted,
        arguments: dict[str, Any] | None,
        ends: float,
    ) -> Any:
        """Await the action of a step that has policies of its own."""
        key, extras = (running.step, running.item), self._identity.extras
        name = self._state.units.name_of(unit)
        heart = abandon = None
        if step.heartbeat_ms is not None:
            limit_s = step.heartbeat_ms / 1000
            heart = Heart(self._loop, limit_s, partial(self._lapse, unit, running_task()))
        extras[key] = AttemptExtras(ends, heart, self._results_for(step))
        try:
            if step.runs_in == "loop":
                value = await call_action(step, arguments)
            else:
                abandon, lapsed = partial(self._abandon, unit, running), self._lapsed
                if step.run_if == "success":
                    ends = min(ends, self._identity.ends)
                value = await call_in_worker(
                    step, arguments, ends, abandon, partial(lapsed.__contains__, unit)
                )
        finally:
            del extras[key]
            if heart is not None:
                heart.stop()
            del self, abandon  # as in _run_unit
        until = step.retry.until
        if until is not None and not plain_answer("Retry: until", until(value)):
            raise ResultRefusedError(name, running.attempt, value)
        return value

    def _results_for(self, step: WorkflowStep) -> dict[str, StepResult]:
        if step.run_if == "success":
            return {}
        plan, results = self._identity.plan, self._state.units.results
        needed = plan.dependencies[plan.index[step.name]]
        return {result.step_name: result for at in needed if (result := results[at]) is not None}

    def _lapse(self, unit: int, task: asyncio.Task[Any]) -> None:
        """Cancel an attempt that has given no sign of life."""
        if unit not in self._asked and not task.cancelling():
            self._lapsed.add(unit)
            task.cancel()

    def _abandon(self, unit: int, running: AttemptStarted, thread: ThreadEnd) -> None:
        self._threads[unit] = thread
        self._emit(ThreadAbandoned(running.step, running.attempt, self._now_ms(), running.item))
