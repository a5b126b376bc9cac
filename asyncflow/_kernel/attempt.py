"""How an attempt is made, from its limit to its end: the lane that can do everything.

Rules:

1. `asyncio.wait_for` enforces an attempt's limit, and nothing else does. It can't tell its own end
   from a `TimeoutError` of the action, and it hands on the late value of an action that swallowed
   the cancellation. So what it awaits returns whatever happens, and has looked before how often
   its task was asked to cancel.
2. An attempt starts in a fresh copy of the context in which the run was started.
3. `Attempts.conclude` alone says how an attempt has ended, in both lanes, and in this order: a
   limit has cancelled it; there is a value; the error ends the run; the run asked it to stop; it
   has failed.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Awaitable, Callable
from functools import partial
from operator import is_
from types import CoroutineType
from typing import Any

from asyncflow._core.arguments import checked_awaitable, refuse_unawaited, reject_awaitable
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._core.running.context import AttemptExtras, enter_attempt
from asyncflow._core.running.deadlines import AfterFailure
from asyncflow._core.tracebacks import strip_internal_frames
from asyncflow._kernel.asyncio_compat import (
    FAILURES,
    WAIT_FOR_MAKES_A_TASK,
    cancel_count,
    forget_cancels,
    outlast,
    running_task,
)
from asyncflow._kernel.outcome import (
    as_failure,
    attempt_started,
    raised_by,
    step_cancelled,
    step_succeeded,
    timeout_error,
)
from asyncflow._kernel.policy import Call, NodeHooks
from asyncflow._kernel.run_scope import Parts
from asyncflow.events import AttemptFailed, AttemptStarted, StepCancelled, StepFailed

_NOTHING_FOLLOWS = AfterFailure(None)

_ALMOST_NOTHING_S = 1e-9
"""A limit that has passed already. With 0, `asyncio.wait_for` would not even begin."""


class Attempts:
    """Makes single attempts, and reports how they end."""

    def __init__(self, parts: Parts) -> None:
        scope = self._scope = parts.scope
        self._run = parts.run
        self._dispatcher = parts.dispatcher
        self._stop_control = parts.stop_control
        self._data = scope.data
        self._state = scope.state
        self._runs = scope.state.step_runs
        self._run_context = scope.run_context

    async def bounded(
        self, node: int, attempt: int, make_attempt: Callable[[], Awaitable[float | None]]
    ) -> float | None:
        """Await an attempt within its limit, and return what it does.

        Raises:
            asyncio.CancelledError: The run stops the node, and the attempt has not begun.
        """
        while True:
            limit_s, now_ms = None, self._run_context.now_ms()
            limit = self._state.deadlines.begin_limit(node, now_ms)
            if limit is not None:
                self._stop_control.watchdog.expect(self._run_context.at_s(limit.ends_ms))
                limit_s = max((limit.ends_ms - now_ms) / 1000, _ALMOST_NOTHING_S)
            if self.take_task(node, attempt):
                return await asyncio.wait_for(make_attempt(), limit_s)
            ended = await self._in_own_task(node, attempt, limit_s, make_attempt)
            if ended:
                return ended[0]

    def take_task(self, node: int, attempt: int) -> bool:
        """Give the task of a node the name of an attempt; return False if it can't make that."""
        if WAIT_FOR_MAKES_A_TASK or (attempt > 1 and not self._context_is_clean()):
            return False
        if attempt > 1:
            running_task().set_name(self._stop_control.watchdog.task_name(node, attempt))
        return True

    async def _in_own_task(
        self,
        node: int,
        attempt: int,
        limit_s: float | None,
        make_attempt: Callable[[], Awaitable[float | None]],
    ) -> list[float | None]:
        """Await an attempt in a context in which none has run before; return what it does.

        A task that is cancelled with its last line loses what it returns: so that is kept here.
        One that a third party cancels before its first line keeps nothing: it must be made again.
        """
        ended: list[float | None] = []
        # Not an eager task: if it failed at once, its error's traceback would keep the frame that
        # makes it, which holds the task, which holds the error.
        context = None if attempt == 1 else self._scope.context.copy()
        work = self._noted(node, ended, make_attempt)
        name = self._stop_control.watchdog.task_name(node, attempt)
        task = asyncio.Task(work, loop=self._scope.loop, name=name, context=context)
        try:
            await asyncio.wait_for(task, limit_s)
        except (TimeoutError, asyncio.CancelledError):
            # The task was cancelled, or before 3.12 this one was.
            await outlast(task.done, partial(asyncio.wait, [task]))
            if not ended and node in self._stop_control.requested:
                raise
        if node not in self._stop_control.requested:
            forget_cancels()  # a third party's
        return ended

    # Not a function in the one above: a frame keeps its function, and that what it closes over.
    async def _noted(
        self,
        node: int,
        ended: list[float | None],
        make_attempt: Callable[[], Awaitable[float | None]],
    ) -> None:
        if node in self._stop_control.requested:
            # Before 3.12 this task begins although the one that waits for it was cancelled.
            raise asyncio.CancelledError  # pragma: no cover
        ended.append(await make_attempt())

    def _context_is_clean(self) -> bool:
        """Whether an attempt has left nothing in the context but which attempt it was."""
        enter_attempt(None)
        # Not by `==` of contexts: it compares values by theirs, which may raise, and an equal value
        # is not the same.
        now, then = contextvars.copy_context(), self._scope.context
        return len(now) == len(then) and all(map(is_, map(now.get, then), then.values()))

    async def make(
        self, node: int, step: WorkflowStep, attempt: int, hooks: NodeHooks
    ) -> float | None:
        """Make one attempt of any node. It raises nothing, and returns what `conclude` does."""
        try:
            if not hooks.on_started:  # else its start was reported before
                now_ms = self._run_context.now_ms()
                self._dispatcher.emit(attempt_started(self._state, node, now_ms))
            running = self._runs.running_attempt(node)
            assert running is not None
            if not hooks.makes_attempts_elsewhere:
                item = running.item
                enter_attempt((step.name, attempt, running.at_ms, running.queued_ms, item))
                for hook in self._dispatcher.hooks.on_attempt:
                    hook(running)
            try:
                output = await self._call(node, step, running, hooks)
                self._check_output(node, step, attempt, output, hooks)
            except BaseException as error:
                strip_internal_frames(error)
                return self.conclude(node, error, None)
            return self.conclude(node, None, output)
        except BaseException as bug:
            self.break_down(node, bug)
            return None

    async def _call(
        self, node: int, step: WorkflowStep, running: AttemptStarted, hooks: NodeHooks
    ) -> Any:
        """Await a call of the action, as the policies want it."""
        limit = self._state.deadlines.latest_limit(node)
        ends_s = math.inf if limit is None else self._run_context.at_s(limit.ends_ms)
        extras, key = self._run_context.extras, (step.name, running.item)
        extras[key] = AttemptExtras(ends_s)
        call: Call = partial(self._act, node, step)
        try:
            for hook in hooks.on_call:
                call = hook(call, node, step, running)
            output = await call()
        finally:
            del extras[key]
        if type(output) is CoroutineType:
            refuse_unawaited(step.name, output)
        return output

    def _act(self, node: int, step: WorkflowStep) -> Awaitable[Any]:
        """Call the action in the event loop."""
        return checked_awaitable(step.name, step.action(**self._data.of_action(node)))

    def _check_output(
        self, node: int, step: WorkflowStep, attempt: int, output: Any, hooks: NodeHooks
    ) -> None:
        """Check the output of an attempt.

        Raises:
            SharedIteratorError: It is an iterator, and several steps or items take it.
            ResultRefusedError: The step's retry policy does not accept it.
            Exception: A policy refuses it.
        """
        self._data.refuse_shared(node, output)
        until = step.retry.until
        if until is not None and not reject_awaitable("Retry: until", until(output)):
            raise self._state.step_runs.result_refused(node, attempt, output)
        for hook in hooks.on_output:
            hook(node, step, output)

    # How it ended.

    def conclude(self, node: int, error: BaseException | None, output: Any) -> float | None:
        """Report how an attempt has ended, in whose task this is called.

        Return how many milliseconds to wait before the next attempt; ``None`` if the node has
        ended.
        """
        if isinstance(error, GeneratorExit) and self._scope.loop.is_closed():
            raise error  # in no task, or in one of another loop, whose cancellations are not ours
        runs, stop = self._runs, self._stop_control
        running, name = runs.running_attempt(node), runs.name_of(node)
        assert running is not None
        ended_ms, attempt, follows = self._run_context.now_ms(), running.attempt, _NOTHING_FOLLOWS
        cause: BaseException | None = None
        if cancel_count() or stop.was_cut(node):
            limit = stop.cause_of(node, running, ended_ms, returned=error is None)
            if limit is not None and (error is None or isinstance(error, FAILURES)):
                error = timeout_error(*limit, name, attempt, error)
        is_stopped = stop.has_reached(node)
        if not is_stopped:
            forget_cancels()  # those of its limit, the step's own, or a third party's
            if isinstance(error, FAILURES):
                failure = as_failure(error, name, attempt)
                error, follows = self._what_follows(node, failure, ended_ms)
        delay_ms, named_ms = follows
        if named_ms is not None:
            for hook in self._hooks_of(node).on_retry_after:
                hook(node, ended_ms, named_ms, delay_ms is not None)
        if delay_ms is None and not is_stopped and isinstance(error, Exception):
            cause = error
            error, output = self._rescue(node, attempt, error)
        if error is None:
            step = runs.steps[node]
            success = step_succeeded(step, attempt, ended_ms, output, running.item, cause)
            self._dispatcher.emit(success)
        else:
            self._report_failure(node, running, ended_ms, error, delay_ms, is_stopped)
        if delay_ms is None:
            self._run.settled(node)
        return delay_ms

    def _what_follows(
        self, node: int, failure: Exception, ended_ms: float
    ) -> tuple[BaseException, AfterFailure]:
        """Return what an attempt has failed with, and what follows."""
        try:
            return failure, self._state.deadlines.after_failure(node, failure, ended_ms)
        except BaseException as raised:  # by the step's retry policy
            strip_internal_frames(raised)
            if raised is not failure:
                raised.__context__ = failure
            if not isinstance(raised, FAILURES):
                return raised, _NOTHING_FOLLOWS
            running = self._runs.running_attempt(node)
            assert running is not None
            name = self._runs.name_of(node)
            return as_failure(raised, name, running.attempt), _NOTHING_FOLLOWS

    def _hooks_of(self, node: int) -> NodeHooks:
        return self._dispatcher.hooks.of_nodes[self._runs.steps[node].given]

    def _rescue(
        self, node: int, attempt: int, failure: Exception
    ) -> tuple[BaseException | None, Any]:
        """Return what a node has failed with, or the output with which it succeeds instead."""
        hooks, step = self._hooks_of(node), self._runs.steps[node]
        if not hooks.on_rescue:
            return failure, None
        error: BaseException = failure
        for rescue in hooks.on_rescue:
            try:
                output = rescue(node, step, failure)
                self._data.refuse_shared(node, output)
                for hook in hooks.on_output:
                    hook(node, step, output)
                return None, output
            except BaseException as raised:
                strip_internal_frames(raised)
                if raised is not failure:
                    raised.__context__ = failure
                error = raised
                if not isinstance(error, FAILURES):
                    break
        if isinstance(error, FAILURES):
            error = as_failure(error, self._runs.name_of(node), attempt)
        return error, None

    def fail_between(self, node: int, failure: Exception) -> None:
        """Report a node that fails for good while no attempt of it runs, or has ever run."""
        latest, now_ms = self._runs.latest_attempt(node), self._run_context.now_ms()
        name, item = self._runs.key_of(node)
        attempt = 0 if latest is None else latest.attempt
        # No attempt has a context for it.
        context = self._scope.context.copy()
        error, output = context.run(self._rescue, node, attempt, failure)
        if error is None:
            step = self._runs.steps[node]
            success = step_succeeded(step, attempt, now_ms, output, item, failure)
            self._dispatcher.emit(success)
            return
        is_failure = isinstance(error, FAILURES)
        if is_failure or node not in self._state.awaiting:  # else it ends as the run stops
            self._dispatcher.emit(StepFailed(name, attempt, now_ms, error, item))
        if not is_failure:
            self._run.interrupt(error, raised_by(f"the fallback of step {name!r}", error))

    def _report_failure(
        self,
        node: int,
        running: AttemptStarted,
        ended_ms: float,
        error: BaseException,
        delay_ms: float | None,
        is_stopped: bool,
    ) -> None:
        emit = self._dispatcher.emit
        name, attempt, item = running.step, running.attempt, running.item
        if not isinstance(error, FAILURES):
            why = raised_by(f"step {name!r}", error)
            emit(StepCancelled(name, attempt, ended_ms, why.reason, error, item))
            self._run.interrupt(error, why)
        elif is_stopped:
            emit(step_cancelled(self._state, node, ended_ms, error))
        elif delay_ms is not None:
            emit(AttemptFailed(name, attempt, ended_ms, error, delay_ms, item))
        else:
            emit(StepFailed(name, attempt, ended_ms, error, item))

    def report_cancelled(self, node: int) -> None:
        """Report a node that the run has stopped while no attempt of it was running."""
        # If it had not started, the run has reported already that it was skipped.
        if not self._runs.has_ended(node) and self._runs.latest_attempt(node) is not None:
            error = self._runs.last_error(node)
            now_ms = self._run_context.now_ms()
            self._dispatcher.emit(step_cancelled(self._state, node, now_ms, error))
        self._run.settled(node)

    def break_down(self, node: int, bug: BaseException) -> None:
        """End a node because of a bug of asyncflow."""
        name = self._runs.steps[node].name
        self._run.broken(bug, f"step {name!r} could not be run")
        self._run.settled(node)
