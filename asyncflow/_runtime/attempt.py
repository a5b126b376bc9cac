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
from typing import TYPE_CHECKING, Any

from asyncflow._core.arguments import (
    PLAIN_OUTPUTS,
    checked_awaitable,
    is_iterator,
    refuse_unawaited,
    reject_awaitable,
)
from asyncflow._core.composition import takers_of
from asyncflow._core.context import AttemptExtras, enter_attempt
from asyncflow._core.errors import ResultRefusedError, SharedIteratorError
from asyncflow._core.graph import outputs_to_keep
from asyncflow._core.results import REDACTED_OUTPUT
from asyncflow._core.scheduler import AfterFailure
from asyncflow._core.signal import take_instead
from asyncflow._core.step import WorkflowStep
from asyncflow._core.tracebacks import strip_internal_frames
from asyncflow._runtime.asyncio_compat import (
    FAILURES,
    WAIT_FOR_MAKES_A_TASK,
    cancel_count,
    forget_cancels,
    outlast,
    running_task,
)
from asyncflow._runtime.outcome import as_failure, raised_by, step_cancelled, timeout_error
from asyncflow._runtime.policy import Call
from asyncflow._runtime.run_scope import Parts
from asyncflow.events import AttemptFailed, AttemptStarted, StepCancelled, StepFailed, StepSucceeded

if TYPE_CHECKING:
    from asyncflow._runtime.remote_attempt import RemoteAttempt, RemoteAttempts

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
        self._permits = parts.permits
        self._data = scope.data
        self._state = scope.state
        self._run_context = scope.run_context
        self.on_success: Callable[[int, AttemptStarted, float], object] | None = None
        """Called when a success was reported that is not that of a fallback."""
        self._engines: RemoteAttempts | None = None
        plan = scope.plan
        if plan.special and any(plan.steps[index].remote for index in plan.special):
            from asyncflow._runtime.remote_attempt import RemoteAttempts  # few need it

            to_keep = outputs_to_keep(plan, scope.start.bindings)
            self._engines = RemoteAttempts(parts, to_keep)

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
        now, then = contextvars.copy_context(), self._scope.context
        return len(now) == len(then) and all(map(is_, map(now.get, then), then.values()))

    async def make(self, node: int, step: WorkflowStep, attempt: int) -> float | None:
        """Make one attempt of any node. It raises nothing, and returns what `conclude` does."""
        try:
            if self._scope.persistence is None:
                self._dispatcher.emit(self.start_of(node))
            running = self._state.running_attempt(node)
            assert running is not None
            item = running.item
            enter_attempt((step.name, attempt, running.at_ms, running.queued_ms, item))
            for hook in self._dispatcher.hooks.on_attempt:
                hook(running)
            try:
                act = partial(self._act, node, step)
                output = await self._call(act, node, step, running)
                self._check_output(node, step, attempt, output)
            except BaseException as error:
                strip_internal_frames(error)
                return self.conclude(node, error, None)
            return self.conclude(node, None, output)
        except BaseException as bug:
            self.break_down(node, bug)
            return None

    def start_of(self, node: int) -> AttemptStarted:
        """Return the event of an attempt that starts now."""
        runs, now_ms = self._state.step_runs, self._run_context.now_ms()
        queued_ms = self._state.queue.queued_ms(node, now_ms)
        step, attempt = runs.steps[node], runs.next_attempt(node)
        engine = "" if step.remote is None else step.remote.name
        return AttemptStarted(step.name, attempt, now_ms, queued_ms, runs.item_of(node), engine)

    async def _call(
        self, call: Call, node: int, step: WorkflowStep, running: AttemptStarted
    ) -> Any:
        """Await a call of the action, as the policies want it."""
        limit = self._state.deadlines.latest_limit(node)
        ends_s = math.inf if limit is None else self._run_context.at_s(limit.ends_ms)
        extras, key = self._run_context.extras, (step.name, running.item)
        extras[key] = AttemptExtras(ends_s)
        try:
            for hook in self._dispatcher.hooks.on_call:
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

    def _check_output(self, node: int, step: WorkflowStep, attempt: int, output: Any) -> None:
        """Check the output of an attempt.

        Raises:
            SharedIteratorError: It is an iterator, and several steps or items take it.
            ResultRefusedError: The step's retry policy does not accept it.
            Exception: A policy refuses it.
        """
        self.refuse_shared(node, output)
        name, until = self._state.step_runs.name_of(node), step.retry.until
        if until is not None and not reject_awaitable("Retry: until", until(output)):
            raise ResultRefusedError(name, attempt, REDACTED_OUTPUT if step.secret else output)
        for hook in self._dispatcher.hooks.on_output:
            hook(node, step, output)

    def refuse_shared(self, node: int, output: Any) -> None:
        """Refuse an output that is an iterator, if several steps or items take it.

        A step whose result a resumed run reuses takes nothing any more.
        """
        if type(output) in PLAIN_OUTPUTS or not is_iterator(output):
            return
        plan, start, runs = self._scope.plan, self._scope.start, self._state.step_runs
        step = node if runs.item_of(node) is None else runs.owner_of(node)
        restored = () if start.checkpoint is None else start.checkpoint.restored_steps(plan)
        takers = [at for at in takers_of(plan, start.bindings, step) if at not in restored]
        if len(takers) > 1:
            names = tuple(plan.steps[at].name for at in dict.fromkeys(takers))
            raise SharedIteratorError(runs.name_of(node), type(output).__name__, names)

    # On an engine.

    async def make_on_engine(self, node: int, step: WorkflowStep, attempt: int) -> float | None:
        """Make one attempt on an engine, and return what `conclude` does."""
        assert self._engines is not None
        if self._scope.persistence is None:
            self._dispatcher.emit(self.start_of(node))
        remote = self._engines.submit(node, self._data.of_action(node))
        follow = partial(self._follow, node, step, attempt, remote)
        try:
            await self._stop_control.undisturbed(node, remote.until_begun)
            return await self.bounded(node, attempt, follow)
        except asyncio.CancelledError:
            remote.stop()  # the run stops the node before the body has begun
        return await follow()

    async def _follow(
        self, node: int, step: WorkflowStep, attempt: int, remote: RemoteAttempt
    ) -> float | None:
        """Await an attempt on an engine. If this is cancelled, the engine stops the body first."""
        try:
            running = self._state.running_attempt(node)
            assert running is not None
            try:
                if remote.is_stopping:
                    output = await remote.outcome()
                else:
                    output = await self._call(remote.outcome, node, step, running)
                self._check_output(node, step, attempt, output)
            except BaseException as error:
                strip_internal_frames(error)
                return self.conclude(node, error, None)
            return self.conclude(node, None, output)
        except BaseException as bug:
            self.break_down(node, bug)
            return None

    # How it ended.

    def conclude(self, node: int, error: BaseException | None, output: Any) -> float | None:
        """Report how an attempt has ended, in whose task this is called.

        Return how many milliseconds to wait before the next attempt; ``None`` if the node has
        ended.
        """
        if isinstance(error, GeneratorExit) and self._scope.loop.is_closed():
            raise error  # in no task, or in one of another loop, whose cancellations are not ours
        state, stop = self._state, self._stop_control
        running, name = state.running_attempt(node), state.step_runs.name_of(node)
        assert running is not None
        ended_ms, attempt, follows = self._run_context.now_ms(), running.attempt, _NOTHING_FOLLOWS
        cause: BaseException | None = None
        if cancel_count() or node in stop.missed_heartbeat:
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
            self._permits.pause(node, ended_ms, named_ms, is_retried=delay_ms is not None)
        if delay_ms is None and not is_stopped and isinstance(error, Exception):
            cause = error
            error, output = self.fall_back(node, attempt, error)
        if error is None:
            secret, item = state.step_runs.steps[node].secret, running.item
            success = StepSucceeded(running.step, attempt, ended_ms, output, item, secret, cause)
            self._dispatcher.emit(success)
            if self.on_success is not None and cause is None:
                self.on_success(node, running, ended_ms)
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
            running = self._state.running_attempt(node)
            assert running is not None
            name = self._state.step_runs.name_of(node)
            return as_failure(raised, name, running.attempt), _NOTHING_FOLLOWS

    def fall_back(
        self, node: int, attempt: int, failure: Exception
    ) -> tuple[BaseException | None, Any]:
        """Return what a node has failed with, or the output of its fallback."""
        runs = self._state.step_runs
        step, name = runs.steps[node], runs.name_of(node)
        if step.fallback is None:
            return failure, None
        try:
            what = f"the fallback of step {step.name!r}"
            output = reject_awaitable(what, step.fallback(failure))
            self.refuse_shared(node, output)
            if step.signal is not None:
                output = take_instead(step.signal, name, output, "fallback")
            for hook in self._dispatcher.hooks.on_output:
                hook(node, step, output)
            return None, output
        except BaseException as raised:
            strip_internal_frames(raised)
            if raised is not failure:
                raised.__context__ = failure
            is_failure = isinstance(raised, FAILURES)
            return as_failure(raised, name, attempt) if is_failure else raised, None

    def fail_between(self, node: int, failure: Exception) -> None:
        """Report a node that fails for good while no attempt of it runs, or has ever run."""
        latest, now_ms = self._state.latest_attempt(node), self._run_context.now_ms()
        name, item = self._state.step_runs.key_of(node)
        attempt = 0 if latest is None else latest.attempt
        # No attempt has a context for it.
        context = self._scope.context.copy()
        error, output = context.run(self.fall_back, node, attempt, failure)
        if error is None:
            secret = self._state.step_runs.steps[node].secret
            success = StepSucceeded(name, attempt, now_ms, output, item, secret, failure)
            self._dispatcher.emit(success)
            return
        self._dispatcher.emit(StepFailed(name, attempt, now_ms, error, item))
        if not isinstance(error, FAILURES):
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
        if not self._state.has_ended(node) and self._state.latest_attempt(node) is not None:
            error = self._state.last_error(node)
            now_ms = self._run_context.now_ms()
            self._dispatcher.emit(step_cancelled(self._state, node, now_ms, error))
        self._run.settled(node)

    def break_down(self, node: int, bug: BaseException) -> None:
        """End a node because of a bug of asyncflow."""
        name = self._state.step_runs.steps[node].name
        self._run.broken(bug, f"step {name!r} could not be run")
        self._run.settled(node)
