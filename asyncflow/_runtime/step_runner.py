"""The attempts of one node: a step, or an item of a mapped step.

Rules:

1. `asyncio.wait_for` enforces an attempt's limit, and nothing else does. It can't tell its own end
   from a `TimeoutError` of the action, and it hands on the late value of an action that swallowed
   the cancellation. So what it awaits returns whatever happens, and has looked before how often
   its task was asked to cancel.
2. There are two lanes, and `StepRunner.launch` chooses one, by the step. In the plain lane an
   attempt has a limit and no other policy, as most have; the other one can do everything. What a
   node waits for before and between its attempts is the same in both. A run with a journal has the
   full lane alone: it stores each start and end as an event, and the plain lane makes none.
3. An attempt starts in a fresh copy of the context in which the run was started.
4. An error's traceback keeps the frames that it went through, and through them their callers, also
   those that were stripped from it. None of them may lead back to the error: that would be a
   reference cycle. Hence each ``del self``.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import math
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from functools import partial
from operator import is_
from types import CoroutineType, coroutine
from typing import TYPE_CHECKING, Any, Protocol

from asyncflow._core.arguments import reject_awaitable
from asyncflow._core.context import AttemptExtras, RunContext, enter_attempt
from asyncflow._core.errors import (
    ActionNotAwaitableError,
    OutputNotAwaitedError,
    ResultRefusedError,
)
from asyncflow._core.graph import ITEM, Binding
from asyncflow._core.results import REDACTED, REDACTED_OUTPUT, Interruption, Payload, StepResult
from asyncflow._core.state import RunState
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
from asyncflow._runtime.dispatcher import EventDispatcher
from asyncflow._runtime.durable import RunPersistence
from asyncflow._runtime.outcome import as_failure, step_cancelled, timeout_error
from asyncflow._runtime.permits import Permits
from asyncflow._runtime.stop_control import StopControl
from asyncflow._runtime.watchdog import HeartbeatTimer, Watchdog
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    StepCancelled,
    StepFailed,
    StepSucceeded,
)

if TYPE_CHECKING:
    from asyncflow._runtime.notes import NoteQueue
    from asyncflow._runtime.remote_attempt import RemoteAttempt, RemoteAttempts

__all__ = ["Host", "StepRunner", "checked_awaitable", "refuse_unawaited"]

_ALMOST_NOTHING_S = 1e-9
"""A limit that has passed already. With 0, `asyncio.wait_for` would not even begin."""


class Host(Protocol):
    """The run, as what runs its steps calls it back."""

    def settled(self, node: int) -> None:
        """A node has ended, and that is reported."""

    def interrupt(self, error: BaseException, why: Interruption) -> None:
        """Stop the run and raise the cause, unless it has another one."""

    def broken(self, bug: BaseException, reason: str) -> None:
        """Do the same for a bug of asyncflow. The state may be wrong from here on."""


class StepRunner:
    """Runs the attempts of nodes, each node in one task.

    Attributes:
        items: The items of mapped steps that are under way, by node.

    Args:
        host: The run.
        run: What the run's attempts have in common.
        context: In which attempts start.
        bindings: Where each parameter of a step's action comes from, by step.
        inputs: The inputs of the run.
        state: The state of the run.
        dispatcher: Where events go.
        permits: What attempts wait for.
        stop: Who was asked to stop.
        watchdog: Warns of attempts that do not end.
        persistence: Makes payloads of outputs, and stores events; ``None`` without a journal.
        notes: Takes what attempts in other processes say; ``None`` if nothing receives it.
        engines: Submits attempts to engines; ``None`` if no step has one.
    """

    def __init__(
        self,
        host: Host,
        run: RunContext,
        context: contextvars.Context,
        bindings: list[Binding],
        inputs: Mapping[str, Any],
        state: RunState,
        dispatcher: EventDispatcher,
        permits: Permits,
        stop: StopControl,
        watchdog: Watchdog,
        persistence: RunPersistence | None,
        notes: NoteQueue | None,
        engines: RemoteAttempts | None,
    ) -> None:
        self._host = host
        self._run = run
        self._context = context
        self._inputs = inputs
        self._state = state
        self._dispatcher = dispatcher
        self._permits = permits
        self._stop_control = stop
        self._watchdog = watchdog
        self._persistence = persistence
        self._loop = asyncio.get_running_loop()
        self._steps = state.step_runs.steps
        self._notes = notes
        self._engines = engines
        self._bindings = bindings
        self.items: dict[int, Any] = {}

    def provide(self, resources: Mapping[str, Any]) -> None:
        """Take the resources of the run, which parameters receive as they do inputs."""
        self._inputs = {**self._inputs, **resources}

    def launch(self, node: int) -> Coroutine[Any, Any, object]:
        """Return the coroutine of a node's task. It raises nothing but a cancellation."""
        step = self._steps[node]
        is_plain = step.is_plain and self._persistence is None
        if step.max_retries > 1 or step.needs_permit or not is_plain:
            return self.run(node, step, is_plain=is_plain)
        if WAIT_FOR_MAKES_A_TASK:  # pragma: no cover - before 3.12
            return self._bounded(node, 1, partial(self.run_plain, node, step, 1))
        return asyncio.wait_for(self.run_plain(node, step, 1), step.timeout_s)

    # The plain lane.

    # A generator-based coroutine: if a cancellation comes before its first line, an async function
    # would warn that it was never awaited.
    @coroutine
    def run_plain(
        self, node: int, step: WorkflowStep, attempt: int
    ) -> Generator[Any, Any, float | None]:
        """Make one attempt of a plain step or item. It raises nothing.

        Returns:
            How many milliseconds to wait before the next attempt; ``None`` if the node has ended.
        """
        try:
            running = self._state.begin(node, attempt, self._run.now_ms())
            if self._dispatcher.observers:
                self._dispatcher.notify(AttemptStarted(*running))
            enter_attempt(running)
            if self._dispatcher.has_entries:
                self._dispatcher.enter(AttemptStarted(*running))
            bindings = self._bindings
            binding = bindings[node] if node < len(bindings) else self.binding_of(node)
            try:
                awaitable = (
                    step.action(**self.arguments(node, binding)) if binding else step.action()
                )
                if type(awaitable) is CoroutineType:
                    output = yield from awaitable  # type: ignore[misc]  # as generators may
                else:
                    output = yield from _awaited(checked_awaitable(step.name, awaitable))
                if type(output) is CoroutineType:
                    refuse_unawaited(step.name, output)
            except BaseException as error:
                strip_internal_frames(error)
                return self._conclude(node, error, None)
            if cancel_count():
                return self._conclude(node, None, output)
            ended_ms = self._run.now_ms()
            self._state.succeed(node, ended_ms, output)
            if self._dispatcher.observers:
                name, item = step.name, running[4]
                success = StepSucceeded(name, attempt, ended_ms, output, item)
                self._dispatcher.notify(success)
            self._host.settled(node)
            return None
        except BaseException as bug:
            self._break(node, bug)
            return None
        finally:
            del self

    # The attempts of a node.

    async def run(self, node: int, step: WorkflowStep, *, is_plain: bool) -> None:
        """Make attempts of a node, in either lane, until it has ended."""
        permit = make_attempt = None
        attempt = 0
        try:
            while True:
                if step.needs_permit:
                    permit = self._permits.take(step) or await self._permits.acquire(node, step)
                attempt = self._state.step_runs.next_attempt(node)
                if self._persistence is not None:
                    await self._store_start(node, self._persistence)
                if step.remote is not None:
                    delay_ms = await self._attempt_on_engine(node, step, attempt)
                elif is_plain and attempt == 1 and not WAIT_FOR_MAKES_A_TASK:
                    if step.timeout_s is not None:
                        self._watchdog.expect(self._loop.time() + step.timeout_s)
                    delay_ms = await asyncio.wait_for(self.run_plain(node, step, 1), step.timeout_s)
                else:
                    lane = self.run_plain if is_plain else self._attempt
                    make_attempt = partial(lane, node, step, attempt)
                    delay_ms = await self._bounded(node, attempt, make_attempt)
                    del lane
                if permit is not None:
                    self._permits.release(node, permit)
                    permit = None
                if delay_ms is None:
                    return
                if not await self._permits.back_off(node, delay_ms):
                    self._host.settled(node)
                    return
        except asyncio.CancelledError:
            self._report_cancelled(node)
            self._host.settled(node)
        except BaseException as bug:
            self._break(node, bug)
        finally:
            if permit is not None:
                latest = self._state.latest_attempt(node)
                has_begun = latest is not None and latest.attempt == attempt
                self._permits.release(node, permit, unused=not has_begun)
            del self, make_attempt

    # The lane that can do everything.

    async def _store_start(self, node: int, persistence: RunPersistence) -> None:
        """Report that an attempt starts, and wait until that is stored; only then is it made."""
        self._dispatcher.emit(self._start_of(node))
        await self._stop_control.undisturbed(node, persistence.session.flush)

    def _start_of(self, node: int) -> AttemptStarted:
        runs, now_ms = self._state.step_runs, self._run.now_ms()
        queued_ms = self._state.queue.queued_ms(node, now_ms)
        step, attempt = runs.steps[node], runs.next_attempt(node)
        engine = "" if step.remote is None else step.remote.name
        return AttemptStarted(step.name, attempt, now_ms, queued_ms, runs.item_of(node), engine)

    async def _attempt(self, node: int, step: WorkflowStep, attempt: int) -> float | None:
        """Make one attempt of any node. It raises nothing, and returns what `run_plain` does."""
        payload = None
        try:
            if self._persistence is None:
                self._dispatcher.emit(self._start_of(node))
            running = self._state.running_attempt(node)
            assert running is not None
            item = running.item
            enter_attempt((step.name, attempt, running.at_ms, running.queued_ms, item))
            if self._dispatcher.has_entries:
                self._dispatcher.enter(running)
            limit = self._state.deadlines.latest_limit(node)
            ends_s = math.inf if limit is None else self._run.at_s(limit.ends_ms)
            try:
                output = await self._call(node, step, running, ends_s)
                payload = self._accepted(node, step, attempt, output)
            except BaseException as error:
                strip_internal_frames(error)
                return self._conclude(node, error, None)
            return self._conclude(node, None, output, payload)
        except BaseException as bug:
            self._break(node, bug)
            return None
        finally:
            del self

    def _accepted(self, node: int, step: WorkflowStep, attempt: int, output: Any) -> Payload | None:
        """Return how an output is stored, if the run has a journal.

        Raises:
            ResultRefusedError: The step's retry policy does not accept it.
            PayloadError: It can't be stored.
        """
        name, until = self._state.step_runs.name_of(node), step.retry.until
        try:
            if until is not None and not reject_awaitable("Retry: until", until(output)):
                raise ResultRefusedError(name, attempt, REDACTED_OUTPUT if step.secret else output)
            if self._persistence is None:
                return None
            return self._persistence.output(name, step, output)
        finally:
            del self  # what the policy raises keeps this frame

    async def _call(
        self, node: int, step: WorkflowStep, running: AttemptStarted, ends_s: float
    ) -> Any:
        """Await the action, in the event loop or in a worker."""
        binding, extras = self.binding_of(node), self._run.extras
        arguments = self.arguments(node, binding) if binding else {}
        key = step.name, running.item
        heartbeat = on_missed = None
        if step.heartbeat_ms is not None:
            on_missed = partial(self._stop_control.miss_heartbeat, node, running_task())
            heartbeat = HeartbeatTimer(self._loop, step.heartbeat_ms / 1000, on_missed)
        extras[key] = AttemptExtras(ends_s, heartbeat, self._results_for(node, step))
        try:
            if step.runs_in == "loop":
                output = await checked_awaitable(step.name, step.action(**arguments))
            else:
                output = await self._call_in_worker(
                    node, step, running, arguments, ends_s, heartbeat
                )
        finally:
            del extras[key]
            if heartbeat is not None:
                heartbeat.stop()
            del self, heartbeat, on_missed
        if type(output) is CoroutineType:
            refuse_unawaited(step.name, output)
        return output

    def _call_in_worker(
        self,
        node: int,
        step: WorkflowStep,
        running: AttemptStarted,
        arguments: dict[str, Any],
        ends_s: float,
        heartbeat: HeartbeatTimer | None,
    ) -> Awaitable[Any]:
        from asyncflow._runtime.workers import run_in_process, run_in_thread  # few need them

        if step.runs_in == "process":
            return run_in_process(step.action, arguments, heartbeat, self._notes)
        if not step.is_cleanup:
            ends_s = min(ends_s, self._run.deadline_s)
        return run_in_thread(
            step.action,
            arguments,
            ends=ends_s,
            on_abandon=partial(self._permits.abandon, node),
            has_missed_heartbeat=partial(self._stop_control.missed_heartbeat.__contains__, node),
        )

    def _results_for(self, node: int, step: WorkflowStep) -> dict[str, StepResult]:
        """The results of a clean-up step's dependencies."""
        if not step.is_cleanup:
            return {}
        plan = self._run.plan
        found = map(self._state.result, plan.dependencies[plan.index[step.name]])
        return {result.step_name: result for result in found if result is not None}

    # The same on an engine.

    async def _attempt_on_engine(self, node: int, step: WorkflowStep, attempt: int) -> float | None:
        """Make one attempt on an engine, and return what `run_plain` does."""
        assert self._engines is not None
        remote = follow = None
        try:
            if self._persistence is None:
                self._dispatcher.emit(self._start_of(node))
            binding = self.binding_of(node)
            remote = self._engines.submit(node, self.arguments(node, binding) if binding else {})
            follow = partial(self._follow, node, step, attempt, remote)
            try:
                await self._stop_control.undisturbed(node, remote.until_begun)
                return await self._bounded(node, attempt, follow)
            except asyncio.CancelledError:
                remote.stop()  # the run stops the node before the body has begun
            return await follow()
        finally:
            del self, remote, follow

    async def _follow(
        self, node: int, step: WorkflowStep, attempt: int, remote: RemoteAttempt
    ) -> float | None:
        """Await an attempt on an engine, report how it ends, and return what `run_plain` does.

        It raises nothing. If it is cancelled, the engine stops the body first.
        """
        heartbeat = None
        try:
            if step.heartbeat_ms is not None and not remote.is_stopping:
                on_missed = partial(self._stop_control.miss_heartbeat, node, running_task())
                heartbeat = HeartbeatTimer(self._loop, step.heartbeat_ms / 1000, on_missed)
                remote.heartbeat = heartbeat
                del on_missed
            try:
                output = await remote.outcome()
                payload = self._accepted(node, step, attempt, output)
            except BaseException as error:
                strip_internal_frames(error)
                return self._conclude(node, error, None)
            return self._conclude(node, None, output, payload)
        except BaseException as bug:
            self._break(node, bug)
            return None
        finally:
            if heartbeat is not None:
                heartbeat.stop()
            del self, remote, heartbeat

    # Both lanes.

    def binding_of(self, node: int) -> Binding:
        """Return where each parameter of a node's action comes from."""
        is_item = node >= len(self._bindings)
        return self._bindings[self._state.step_runs.owner_of(node) if is_item else node]

    def arguments(self, node: int, binding: Binding) -> dict[str, Any]:
        """Return what an action or a condition is called with."""
        arguments = {}
        for parameter, source in binding:
            if isinstance(source, str):
                arguments[parameter] = self._inputs[source]
            elif source == ITEM:
                arguments[parameter] = self.items[node]
            else:
                arguments[parameter] = self._state.output(source)
        return arguments

    async def _bounded(
        self,
        node: int,
        attempt: int,
        make_attempt: Callable[[], Awaitable[float | None]],
    ) -> float | None:
        """Await an attempt within its limit, and return what it does.

        Raises:
            asyncio.CancelledError: The run stops the node, and the attempt has not begun.
        """
        ended: list[float | None] = []
        work = None
        try:
            while True:
                limit_s, now_ms = None, self._run.now_ms()
                limit = self._state.deadlines.begin_limit(node, now_ms)
                if limit is not None:
                    self._watchdog.expect(self._run.at_s(limit.ends_ms))
                    limit_s = max((limit.ends_ms - now_ms) / 1000, _ALMOST_NOTHING_S)
                work = self._isolated(make_attempt, ended, node, attempt)
                try:
                    delay_ms = await asyncio.wait_for(work, limit_s)
                except (TimeoutError, asyncio.CancelledError):
                    # The task of the attempt was cancelled before its first line, or with its
                    # last; or, before 3.12, this one was.
                    assert isinstance(work, asyncio.Task)
                    await outlast(work.done, partial(asyncio.wait, [work]))
                    if not ended:
                        if node in self._stop_control.requested:
                            raise
                        forget_cancels()
                        continue
                    delay_ms = ended[0]
                if isinstance(work, asyncio.Task) and node not in self._stop_control.requested:
                    forget_cancels()  # a third party's
                return delay_ms
        finally:
            del self, make_attempt, work

    def _isolated(
        self,
        make_attempt: Callable[[], Awaitable[float | None]],
        ended: list[float | None],
        node: int,
        attempt: int,
    ) -> Awaitable[float | None]:
        """Return an attempt, or a task that runs it in a context in which none has run before."""
        if attempt == 1 and not WAIT_FOR_MAKES_A_TASK:
            return make_attempt()
        name = self._watchdog.task_name(node, attempt)
        if not WAIT_FOR_MAKES_A_TASK and self._context_is_clean():
            running_task().set_name(name)
            return make_attempt()
        work = self._noted(make_attempt, ended, node)
        # Not an eager task: if it failed at once, its error's traceback would keep the frame that
        # makes it, which holds the task, which holds the error.
        context = None if attempt == 1 else self._context.copy()
        return asyncio.Task(work, loop=self._loop, name=name, context=context)

    async def _noted(
        self,
        make_attempt: Callable[[], Awaitable[float | None]],
        ended: list[float | None],
        node: int,
    ) -> float | None:
        """Make an attempt and note what it returns, which a task may lose when it is cancelled."""
        try:
            if node in self._stop_control.requested:
                # Before 3.12 this task begins although the one that waits for it was cancelled.
                raise asyncio.CancelledError  # pragma: no cover
            ended.append(await make_attempt())
            return ended[0]
        finally:
            del self, make_attempt

    def _context_is_clean(self) -> bool:
        """Whether an attempt has left nothing in the context but which attempt it was."""
        enter_attempt(None)
        now, then = contextvars.copy_context(), self._context
        return len(now) == len(then) and all(map(is_, map(now.get, then), then.values()))

    def _conclude(
        self,
        node: int,
        error: BaseException | None,
        output: Any,
        payload: Payload | None = None,
    ) -> float | None:
        """Report how an attempt has ended, in whose task this is called.

        Returns:
            How many milliseconds to wait before the next attempt; ``None`` if the node has ended.
        """
        state, stop = self._state, self._stop_control
        running, name = state.running_attempt(node), state.step_runs.name_of(node)
        assert running is not None
        ended_ms, attempt, delay_ms = self._run.now_ms(), running.attempt, None
        if cancel_count() or node in stop.missed_heartbeat:
            limit = stop.cause_of(node, running, ended_ms, returned=error is None)
            if limit is not None and (error is None or isinstance(error, FAILURES)):
                error = timeout_error(*limit, name, attempt, error)
        is_stopped = stop.has_reached(node)
        try:
            if not is_stopped:
                forget_cancels()  # those of its limit, the step's own, or a third party's
                if isinstance(error, FAILURES):
                    error = as_failure(error, name, attempt)
                    error, delay_ms = self._retry_or_fail(node, name, attempt, error, ended_ms)
            if error is None:
                secret = self._steps[node].secret
                if secret and self._run.secrets is not None:
                    self._run.secrets.add(output)
                step, item = running.step, running.item
                success = StepSucceeded(step, attempt, ended_ms, output, item, secret)
                self._dispatcher.emit(success, self.as_stored(node, success, payload))
            else:
                self._report_failure(node, running, ended_ms, error, delay_ms, is_stopped)
            if delay_ms is None:
                self._host.settled(node)
            return delay_ms
        finally:
            # What a retry policy raised keeps this frame.
            del self, state, stop
            error = output = None

    def _retry_or_fail(
        self, node: int, name: str, attempt: int, failure: Exception, ended_ms: float
    ) -> tuple[BaseException, float | None]:
        """Return what an attempt has failed with, and the backoff if another one follows."""
        try:
            return failure, self._state.deadlines.retry_delay_ms(node, failure, ended_ms)
        except BaseException as raised:  # by the step's retry policy
            strip_internal_frames(raised)
            if raised is not failure:
                raised.__context__ = failure
            is_failure = isinstance(raised, FAILURES)
            return as_failure(raised, name, attempt) if is_failure else raised, None
        finally:
            del self, failure

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
            reason = f"step {name!r} raised {type(error).__name__}"
            emit(StepCancelled(name, attempt, ended_ms, reason, error, item))
            self._host.interrupt(error, Interruption("step", reason))
        elif is_stopped:
            emit(step_cancelled(self._state, node, ended_ms, error))
        elif delay_ms is not None:
            emit(AttemptFailed(name, attempt, ended_ms, error, delay_ms, item))
        else:
            emit(StepFailed(name, attempt, ended_ms, error, item))

    def as_stored(
        self, node: int, success: StepSucceeded, payload: Payload | None = None
    ) -> StepSucceeded | None:
        """Return a success as a journal stores it, if the run has one."""
        if self._persistence is None:
            return None
        if success.secret:
            payload = REDACTED  # also of a mapped step, which may have no items
        step, item = success.step, success.item
        return StepSucceeded(step, success.attempt, success.at_ms, payload, item, success.secret)

    def _report_cancelled(self, node: int) -> None:
        """Report a node that the run has stopped while no attempt of it was running."""
        # If it had not started, the run has reported already that it was skipped.
        if self._state.result(node) is None and self._state.latest_attempt(node) is not None:
            error = self._state.attempt_log.last_error(node)
            self._dispatcher.emit(step_cancelled(self._state, node, self._run.now_ms(), error))

    def _break(self, node: int, bug: BaseException) -> None:
        self._host.broken(bug, f"step {self._steps[node].name!r} could not be run")
        self._host.settled(node)


def checked_awaitable(name: str, returned: object) -> Awaitable[Any]:
    """Return what an action has returned, if it can be awaited.

    Raises:
        ActionNotAwaitableError: It can't.
    """
    if not inspect.isawaitable(returned):
        raise ActionNotAwaitableError(name, type(returned).__name__)
    return returned


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def refuse_unawaited(name: str, output: CoroutineType[Any, Any, Any]) -> None:
    """Refuse an output that is a coroutine which nothing has begun to await.

    Raises:
        OutputNotAwaitedError: It is one.
    """
    if inspect.getcoroutinestate(output) == inspect.CORO_CREATED:
        output.close()  # or Python would warn that it was never awaited
        raise OutputNotAwaitedError(name, output.__qualname__)
