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
import logging
import math
import sys
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from operator import is_
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from asyncflow._core.arguments import reject_awaitable
from asyncflow._core.context import AttemptExtras, RunContext, enter_attempt, enter_run
from asyncflow._core.errors import ResultRefusedError
from asyncflow._core.graph import ITEM, Binding, Plan
from asyncflow._core.results import StepResult
from asyncflow._core.state import RunState
from asyncflow._core.step import WorkflowStep
from asyncflow._core.tracebacks import strip_internal_frames
from asyncflow._runtime.asyncio_compat import TIMER_SLACK_S, cancel_requested, cancels, running_task
from asyncflow._runtime.calls import call_action, call_in_worker, check_coroutine
from asyncflow._runtime.dispatcher import Observer
from asyncflow._runtime.durable import RunPersistence
from asyncflow._runtime.outcome import Shortfall
from asyncflow._runtime.permits import Waits
from asyncflow._runtime.watchdog import HeartbeatTimer, Watchdog
from asyncflow.events import (
    AttemptStarted,
    LoopBlocked,
    StepSucceeded,
    ThreadAbandoned,
)

if TYPE_CHECKING:
    from asyncflow._runtime.workers import ThreadEnd

__all__ = ["FIRST_TASK_BEARS_THE_NAME", "Attempts"]
_log = logging.getLogger("asyncflow")

# Before 3.12 `wait_for` runs what it is given in a task of its own, and throws away what that
# task returned if the waiting is cancelled. So there we make the task, and ask it afterwards.
_WAIT_FOR_NEEDS_A_TASK = sys.version_info < (3, 12)
FIRST_TASK_BEARS_THE_NAME = not _WAIT_FOR_NEEDS_A_TASK
"""Whether the first attempt of a unit runs in the task of the unit."""

_ALMOST_NOTHING_S = 1e-9
"""A limit that has passed already. With 0, `wait_for` would not even begin."""


class Attempts(Waits):
    """Runs the attempts of the units of a run, one task a unit.

    What a run makes of their ends, and when it starts and stops them, is left to `Run`.
    """

    __slots__ = (
        "_bindings",
        "_changes",
        "_context",
        "_identity",
        "_inputs",
        "_is_broken",
        "_live",
        "_values",
        "_watchdog",
    )

    def __init__(
        self,
        run_id: str,
        plan: Plan,
        bindings: list[Binding],
        inputs: Mapping[str, Any],
        state: RunState,
        observers: tuple[Observer, ...],
        keeper: RunPersistence | None,
    ) -> None:
        super().__init__(state, observers, keeper)
        self._bindings = bindings
        self._inputs = inputs
        self._context = contextvars.copy_context()
        deadline_ms = state.deadlines.deadline_ms
        ends = math.inf if deadline_ms is None else self._loop.time() + deadline_ms / 1000
        self._identity = RunContext(
            run_id, plan, self._loop.time, self._started, ends, {}, cancel_requested
        )
        self._context.run(enter_run, self._identity)
        self._is_broken = False
        """Whether a step could not be run for a reason of ours, so that the books stay open."""
        self._live: dict[int, asyncio.Task[None]] = {}
        """The task of each unit that was started and has not ended."""
        self._values: dict[int, Any] = {}
        """The items that the units of mapped steps are about."""
        self._changes: dict[int, asyncio.Future[None]] = {}
        """What each mapped step waits for: that something changes among its items."""
        self._watchdog = Watchdog(state, self._identity, self._context, self._live, self._asked)

    @abstractmethod
    def _break_off(self, bug: BaseException, reason: str) -> None:
        """Stop the run for a reason of ours; the books stay open, since they may be wrong."""

    @abstractmethod
    def _follow_up(self, node: int) -> None:
        """See to what follows the end of a unit."""

    async def run_node(self, node: int) -> None:
        """The retry loop of one unit. It raises nothing: what happens is told in events."""
        step, attempt = self._steps[node], 1
        work = shortfall = slot = None
        try:
            while True:
                if not step.is_plain:
                    slot = await self._take_slot(node, step)
                if self._book is not None:
                    attempt = await self._keep_start(node, step, self._book)
                limit_s = step.timeout_s if step.is_plain else self._limit_s(node, step)
                work = self._attempt(node, step, attempt, limit_s)
                if _WAIT_FOR_NEEDS_A_TASK or attempt > 1:
                    work = self._isolated(work, node, attempt)
                try:
                    shortfall = await asyncio.wait_for(work, limit_s)
                except (TimeoutError, asyncio.CancelledError) as cut:
                    if not self._has_begun(node, attempt):
                        self._undo_start(node, slot)
                        continue
                    shortfall = await self._shortfall_after(node, work, cut)
                if slot is not None:
                    self._give_back(node, slot)
                if shortfall is None:
                    return
                delay_ms = self._judge(node, shortfall)
                if delay_ms is None or not await self._pause(node, delay_ms):
                    return
                attempt += 1
        except asyncio.CancelledError:
            self._tell_cut_short(node)
        except BaseException as bug:
            self._break_off(bug, f"step {step.name!r} could not be run")
        finally:
            if slot is not None:
                self._give_back(node, slot)
            self._live.pop(node, None)
            self._follow_up(node)
            # An error's traceback may keep this frame, which must not lead back to the error.
            del self
            shortfall = work = None

    def _limit_s(self, node: int, step: WorkflowStep) -> float | None:
        """How many seconds the attempt that is about to start may take."""
        if step.deadline_ms is None:
            return step.timeout_s
        now_ms = self._now_ms()
        limit = self._state.deadlines.of(node, now_ms)
        assert limit is not None
        return max((limit.ends_ms - now_ms) / 1000, _ALMOST_NOTHING_S)

    def _isolated(self, work: Any, node: int, attempt: int) -> Any:
        """Return an attempt's coroutine, or a task that runs it where no other one has been."""
        name = self._watchdog.task_name(node, attempt)
        if not _WAIT_FOR_NEEDS_A_TASK and self._context_is_clean():
            running_task().set_name(name)
            return work
        # Not an eager task: if it failed at once, its error's traceback would keep the frame that
        # makes it, which holds the task, which holds the error.
        context = None if attempt == 1 else self._context.copy()
        return asyncio.Task(work, loop=self._loop, name=name, context=context)

    def _context_is_clean(self) -> bool:
        """Whether an attempt has left nothing in the context but which attempt it was."""
        enter_attempt(None)
        now, then = contextvars.copy_context(), self._context
        return len(now) == len(then) and all(map(is_, map(now.get, then), then.values()))

    # One attempt.

    async def _attempt(
        self, node: int, step: WorkflowStep, attempt: int, limit_s: float | None
    ) -> Shortfall | None:
        """Call the action and await it. Only a `CancelledError` is raised: `wait_for` needs it."""
        if self._asked and node in self._asked:
            raise asyncio.CancelledError  # pragma: no cover - before 3.12, its task has begun
        loop, binding = self._loop, self._bindings[node]
        began = loop.time()
        if self._keeper is None:
            running = AttemptStarted(step.name, attempt, (began - self._started) * 1000)
            if self._is_limited or not step.is_plain:
                running = self._in_full(node, running)
            self._state.start(node, running)
            if self._observers:
                self._tell(running)
        else:
            running = self._latest(node)
        enter_attempt(running)
        if self._has_entries:
            self._tell(running, entered=running)
        ends = math.inf if limit_s is None else began + limit_s
        if ends < self._watchdog.horizon:
            self._watchdog.expect(ends)
        arguments = self._arguments(node, binding) if binding else None
        try:
            if step.is_plain and self._keeper is None:
                value = await call_action(step, arguments)
                if type(value) is CoroutineType:
                    check_coroutine(step, value)
            else:
                value = await self._call_specially(node, step, running, arguments, ends)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            strip_internal_frames(error)
            return Shortfall(error, None, loop.time(), cancels())
        else:
            ended = loop.time()
            if (ended >= ends - TIMER_SLACK_S or self._lapsed) and cancels():
                return Shortfall(None, value, ended, cancels())
            at_ms = (ended - self._started) * 1000
            success = StepSucceeded(step.name, attempt, at_ms, value, running.item)
            kept = None if self._keeper is None else self._as_kept(node, success)
            self._state.succeed(node, success)
            if self._keeper is not None or self._observers:
                self._pass_on(success, kept)
            return None
        finally:
            del self  # as in _run_unit

    def _latest(self, node: int) -> AttemptStarted:
        latest = self._state.step_runs.latest[node]
        assert latest is not None
        return latest

    def _arguments(self, node: int, binding: Binding) -> dict[str, Any]:
        results, inputs = self._state.step_runs.results, self._inputs
        arguments = {}
        for parameter, source in binding:
            if isinstance(source, str):
                arguments[parameter] = inputs[source]
            elif source == ITEM:
                arguments[parameter] = self._values[node]
            else:
                result = results[source]
                assert result is not None  # a step starts when its dependencies have settled
                arguments[parameter] = result.output
        return arguments

    async def _call_specially(
        self,
        node: int,
        step: WorkflowStep,
        running: AttemptStarted,
        arguments: dict[str, Any] | None,
        ends: float,
    ) -> Any:
        """Await the action of a step that has policies of its own."""
        key, extras = (running.step, running.item), self._identity.extras
        name, keeper, payloads = self._state.step_runs.name_of(node), self._keeper, self._payloads
        heart = abandon = None
        if step.heartbeat_ms is not None:
            limit_s = step.heartbeat_ms / 1000
            heart = HeartbeatTimer(self._loop, limit_s, partial(self._lapse, node, running_task()))
        extras[key] = AttemptExtras(ends, heart, self._results_for(step))
        try:
            if step.runs_in == "loop":
                value = await call_action(step, arguments)
            else:
                abandon, lapsed = partial(self._abandon, node, running), self._lapsed
                if step.run_if == "success":
                    ends = min(ends, self._identity.deadline_s)
                value = await call_in_worker(
                    step, arguments, ends, abandon, partial(lapsed.__contains__, node)
                )
        finally:
            del extras[key]
            if heart is not None:
                heart.stop()
            del self, abandon  # as in _run_unit
        if type(value) is CoroutineType:
            check_coroutine(step, value)
        until = step.retry.until
        if until is not None and not reject_awaitable("Retry: until", until(value)):
            raise ResultRefusedError(name, running.attempt, value)
        if keeper is not None:
            payloads[node] = keeper.output(name, step, value)
        return value

    def _results_for(self, step: WorkflowStep) -> dict[str, StepResult]:
        if step.run_if == "success":
            return {}
        plan, results = self._identity.plan, self._state.step_runs.results
        needed = plan.dependencies[plan.index[step.name]]
        return {result.step_name: result for at in needed if (result := results[at]) is not None}

    def _lapse(self, node: int, task: asyncio.Task[Any]) -> None:
        """Cancel an attempt that has given no sign of life, unless it is cleaning up."""
        # A thread does not know that it was asked to stop, and works on.
        was_asked = node in self._asked and self._steps[node].runs_in != "thread"
        if not was_asked and not self._is_cut_short(node):
            self._lapsed.add(node)
            task.cancel()

    def _on_block(self, task: asyncio.Task[Any] | None, blocked_ms: float, where: str) -> None:
        """Tell of a step that has kept the event loop from doing anything else."""
        running = self._watchdog.attempt_of(task)
        # What runs elsewhere only waits in its task, which may be held up by others.
        if running is not None and self._is_in_loop(running.step):
            name, attempt, item = running.step, running.attempt, running.item
            self._emit(LoopBlocked(name, attempt, self._now_ms(), blocked_ms, where, item))
            _log.warning(
                "step %r, attempt %d, blocked the event loop for %.0f ms at %s; let it await, "
                'or make it a plain function with runs_in="thread"',
                *(name, attempt, blocked_ms, where),
            )

    def _is_in_loop(self, step: str) -> bool:
        plan = self._identity.plan
        return plan.steps[plan.index[step]].runs_in == "loop"

    def _abandon(self, node: int, running: AttemptStarted, thread: ThreadEnd) -> None:
        self._threads[node] = thread
        self._emit(ThreadAbandoned(running.step, running.attempt, self._now_ms(), running.item))
