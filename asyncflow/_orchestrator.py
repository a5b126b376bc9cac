"""The driver: runs what the state says is ready, and tells it what happened.

This is the only place that knows asyncio's tasks, time limits and cancellation. Rules:

1. One task a step, in the run's task group. The group owns their lifetimes and nothing else: no
   child raises into it, so it never cancels anything by itself. A group that aborts because of
   a child loses a cancellation of its parent before 3.13: gh-116720.
2. Only the run stops steps: it notes whom it asked, then cancels each of them once. What a step
   makes of a cancellation is judged by that note, never by where the exception came from.
3. The run waits for its steps in the body of the group, and whatever happens to it meanwhile it
   goes on waiting until they have all ended.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import sys
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from typing import Any, Protocol, get_args

import anyio

from asyncflow._engine import StepContext, call_action, enter_step
from asyncflow._errors import StepCancelledError, StepTimeoutError
from asyncflow._graph import Binding, Plan, bind, plan
from asyncflow._report import RunReport
from asyncflow._state import RunState, Schedule
from asyncflow._step import WorkflowStep
from asyncflow._watchdog import Suspect, Watchdog
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    RunFinished,
    RunInterrupted,
    RunStarted,
    StepCancelled,
    StepFailed,
    StepSkipped,
    StepSucceeded,
)

__all__ = ["Observer", "Orchestrator", "run_pipeline"]

_log = logging.getLogger("asyncflow")

# Before 3.12 `wait_for` runs what it is given in a task of its own, and throws away what that
# task returned if the waiting is cancelled. So there we make the task, and ask it afterwards.
_WAIT_FOR_NEEDS_A_TASK = sys.version_info < (3, 12)

# How much earlier than asked a timer may fire: uvloop counts in whole milliseconds (uvloop #739).
_TIMER_SLACK_MS = 1.0

# What an attempt came to: its value, its error, and how often its task was asked to cancel.
_Outcome = tuple[Any, BaseException | None, int]


class Observer(Protocol):
    """Called with every event of a run, in order, as it happens.

    It must return at once: the event loop waits for it. One that raises an `Exception` is
    logged and not called again in that run; the run goes on.
    """

    def __call__(self, event: Event, /) -> object: ...


class Orchestrator:
    """A pipeline that was checked and planned once and can be run many times, also concurrently.

    Args:
        steps: The steps, in any order.
        fail_fast: What happens when a step fails for good. If true (the default), the running
            steps are cancelled and the others skipped; if false, only the steps that depend on
            the failed one are skipped.
        schedule: ``"tiers"`` (the default) starts a tier when the one before has ended;
            ``"ready"`` starts a step as soon as its own dependencies have succeeded.
        max_concurrency: How many steps may run at the same time, at least 1; ``None`` (the
            default) means no limit. A step that waits for its next attempt counts as running.
        observers: Callables that are given each `asyncflow.events` object as it happens.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has an impossible value, two steps have the same name, or a
            dependency names an unknown step.
        CyclicDependencyError: The steps depend on each other in a circle.
    """

    def __init__(
        self,
        steps: Iterable[WorkflowStep],
        fail_fast: bool = True,
        *,
        schedule: Schedule = "tiers",
        max_concurrency: int | None = None,
        observers: Iterable[Observer] = (),
    ) -> None:
        _check_options(schedule, max_concurrency)
        self._fail_fast = fail_fast
        self._schedule: Schedule = schedule
        self._max_concurrency = max_concurrency
        self._observers = _checked_observers(observers)
        self._plan = plan(steps)
        planned = self._plan.steps
        self._dependencies = {
            planned[index].name: planned[index].depends_on for index in self._plan.order()
        }

    async def run(
        self, *, inputs: Mapping[str, Any] | None = None, run_id: str | None = None
    ) -> RunReport:
        """Run the pipeline and return its report, also when steps failed.

        Args:
            inputs: Values for the parameters of actions, by parameter name.
            run_id: Identifies the run; by default a random one is made.

        Raises:
            ValueError: Nothing provides a required parameter of an action, or both a dependency
                and an input do. Nothing has run.
            RuntimeError: No asyncio event loop is running this code.
            asyncio.CancelledError: The caller was cancelled. The steps have ended.
            BaseException: What a step raised that is neither an `Exception` nor a cancellation,
                such as `KeyboardInterrupt` or `SystemExit`. The steps have ended.
        """
        _check_asyncio()
        inputs = {} if inputs is None else dict(inputs)
        state = RunState(
            self._plan,
            fail_fast=self._fail_fast,
            schedule=self._schedule,
            max_concurrency=self._max_concurrency,
        )
        run = _Run(
            run_id if run_id is not None else os.urandom(8).hex(),
            self._plan,
            bind(self._plan, inputs),
            inputs,
            state,
            self._observers,
        )
        return await run.execute(self._dependencies)


async def run_pipeline(
    steps: Iterable[WorkflowStep],
    fail_fast: bool = True,
    *,
    schedule: Schedule = "tiers",
    max_concurrency: int | None = None,
    inputs: Mapping[str, Any] | None = None,
    run_id: str | None = None,
    observers: Iterable[Observer] = (),
) -> RunReport:
    """Check, plan and run a pipeline once, and return its report, also when steps failed.

    It takes the arguments of `Orchestrator` and of `Orchestrator.run` together, and raises what
    they raise. All checks are made before any action is called.
    """
    orchestrator = Orchestrator(
        steps,
        fail_fast,
        schedule=schedule,
        max_concurrency=max_concurrency,
        observers=observers,
    )
    return await orchestrator.run(inputs=inputs, run_id=run_id)


class _Run:
    """One run: its tasks, and the way from what becomes of them to the state's events."""

    def __init__(
        self,
        run_id: str,
        plan: Plan,
        bindings: list[Binding],
        inputs: Mapping[str, Any],
        state: RunState,
        observers: tuple[Observer, ...],
    ) -> None:
        self._run_id = run_id
        self._steps = plan.steps
        self._bindings = bindings
        self._inputs = inputs
        self._state = state
        self._observers = observers
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._started = self._loop.time()
        self._live: dict[int, asyncio.Task[None]] = {}
        """The task of each step that was started and has not ended."""
        self._attempt_tasks: dict[int, asyncio.Task[_Outcome]] = {}
        """The tasks of those attempts that have one of their own."""
        self._asked: set[int] = set()
        """The steps that the run has asked to stop."""
        self._asked_ms = 0.0
        self._stop_is_due = False
        self._advancing = False
        self._settled: asyncio.Future[None] | None = None
        self._interruption: BaseException | None = None
        self._watchdog = Watchdog(self._loop, self._suspects)

    async def execute(self, dependencies: Mapping[str, tuple[str, ...]]) -> RunReport:
        self._emit(RunStarted(self._run_id, time.time(), dependencies))
        try:
            async with asyncio.TaskGroup() as self._group:
                # From the loop, not from here: the traceback of an eager task that fails at once
                # would keep our callers' frames, and in one of them stands the report: a cycle.
                self._loop.call_soon(self._advance)
                await self._until_settled()
        except asyncio.CancelledError:
            if self._interruption is None:
                self._close()
                raise
        self._close()
        if self._interruption is not None:
            try:
                raise self._interruption
            finally:
                del self  # or the raised object would keep itself, through this frame
        return self._state.report()

    def _close(self) -> None:
        self._watchdog.stop()
        self._emit(RunFinished(self._now_ms(), self._state.outcome))

    # Waiting for the steps.

    async def _until_settled(self) -> None:
        try:
            await self._all_settled()
        except asyncio.CancelledError:
            self._emit(RunInterrupted(self._now_ms(), "the caller was cancelled"))
            self._stop()
            # anyio repeats a cancellation until it is obeyed. The shield keeps that from turning
            # the wait for the steps' clean-up into a busy loop.
            with anyio.CancelScope(shield=True):
                while self._live:
                    try:
                        await self._all_settled()
                    except asyncio.CancelledError:
                        continue  # cancelled again; the steps were asked and end in their time
            raise

    async def _all_settled(self) -> None:
        while self._live or self._state.unsettled:
            self._settled = self._loop.create_future()
            await self._settled

    def _wake_if_settled(self) -> None:
        waiting = self._settled
        if waiting is None or waiting.done() or self._live or self._state.unsettled:
            return
        waiting.set_result(None)

    # Starting and stopping them.

    def _advance(self) -> None:
        """Start what is ready and skip what is doomed, until there is neither."""
        if self._advancing:
            return  # an eager task has ended within its start, in the loop below
        self._advancing = True
        skipped = True
        while skipped:
            for index in self._state.ready():
                self._start(index)
            skipped = self._skip_doomed()
        self._advancing = False
        self._wake_if_settled()

    def _start(self, index: int) -> None:
        task = self._group.create_task(
            self._run_step(index),
            name=f"asyncflow:{self._run_id}:{self._steps[index].name}#1",
            context=self._context.copy(),
        )
        if not task.done():  # an eager one may be
            self._live[index] = task

    def _skip_doomed(self) -> bool:
        doomed = self._state.doomed()
        for index, reason in doomed:
            self._emit(StepSkipped(self._steps[index].name, self._now_ms(), reason))
        return bool(doomed)

    def _interrupt(self, cause: BaseException, reason: str) -> None:
        """Stop the run because of something that `execute` shall raise."""
        if self._interruption is None:
            self._interruption = cause
            if not self._state.has_finished:
                self._emit(RunInterrupted(self._now_ms(), reason))
                self._stop_soon()

    def _stop_soon(self) -> None:
        # One turn of the loop later, so that steps which fail in the same turn keep their errors.
        if not self._stop_is_due:
            self._stop_is_due = True
            self._loop.call_soon(self._stop)

    def _stop(self) -> None:
        """Ask each live step to stop, once."""
        now_ms = self._asked_ms = self._now_ms()
        self._skip_doomed()
        for index, task in list(self._live.items()):
            if index in self._asked:
                continue
            self._asked.add(index)
            if not self._state.attempts(index):
                # A task that is cancelled before its first line never runs: nobody else tells.
                del self._live[index]
                reason = self._state.stop_reason or ""
                self._emit(StepSkipped(self._steps[index].name, now_ms, reason))
            task.cancel()
        self._watchdog.expect(self._loop.time())
        self._wake_if_settled()

    def _suspects(self) -> Iterator[Suspect]:
        for index, task in self._live.items():
            step, attempt = self._steps[index], self._state.attempts(index)
            if index in self._asked:
                cancelled_ms = self._asked_ms
            elif self._state.is_attempting(index) and step.timeout_ms is not None:
                cancelled_ms = self._state.attempt_started_ms(index) + step.timeout_ms
            else:
                continue
            cancelled_at = self._started + cancelled_ms / 1000
            yield Suspect(
                step.name, attempt, cancelled_at, self._attempt_tasks.get(index, task)
            )

    # One step.

    async def _run_step(self, index: int) -> None:
        """The retry loop of one step. It raises nothing: what happens is told in events."""
        step = self._steps[index]
        limit_s = None if step.timeout_ms is None else step.timeout_ms / 1000
        attempt = 1
        try:
            while True:
                work: Any = self._attempt(index, attempt)
                if attempt > 1 or _WAIT_FOR_NEEDS_A_TASK:
                    work = self._own_task(index, attempt, work)
                try:
                    value, error, cancels = await asyncio.wait_for(work, limit_s)
                except TimeoutError as timeout:
                    # A TimeoutError of the action is handed on as a value, so this is the limit's.
                    value, error, cancels = None, _timed_out(step, attempt, timeout), 0
                except asyncio.CancelledError as cancelled:
                    value, error, cancels = await _outcome_after(work, cancelled)
                if error is None and not cancels:
                    self._emit(StepSucceeded(step.name, attempt, self._now_ms(), value))
                    return
                delay_ms = self._judge(index, value, error, cancels)
                if delay_ms is None:
                    return
                await self._pause(index, delay_ms)
                attempt += 1
        except asyncio.CancelledError:
            self._emit(self._cancelled(index, error))
        except BaseException as bug:
            self._interrupt(bug, f"step {step.name!r} could not be run")
        finally:
            self._live.pop(index, None)
            self._attempt_tasks.pop(index, None)
            self._advance()
            # An error's traceback may keep this frame, which must not lead back to the error.
            del self
            value = error = work = None

    async def _attempt(self, index: int, attempt: int) -> _Outcome:
        """Call the action and await it. Only a `CancelledError` is raised: `wait_for` needs it."""
        step, binding = self._steps[index], self._bindings[index]
        now = self._loop.time()
        self._emit(AttemptStarted(step.name, attempt, (now - self._started) * 1000))
        if step.timeout_ms is not None and self._watchdog.is_asleep:
            self._watchdog.expect(now + step.timeout_ms / 1000)
        enter_step(StepContext(self._run_id, step, attempt, self._loop, now))
        try:
            value = await call_action(step, self._arguments(binding) if binding else {})
            return value, None, _cancels()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return None, error, _cancels()
        finally:
            del self  # as in _run_step

    def _own_task(
        self, index: int, attempt: int, work: Coroutine[Any, Any, _Outcome]
    ) -> asyncio.Task[_Outcome]:
        """Give an attempt a task of its own, with the run's context as it was at the start."""
        task = self._attempt_tasks[index] = self._loop.create_task(
            work,
            name=f"asyncflow:{self._run_id}:{self._steps[index].name}#{attempt}",
            context=self._context.copy(),
        )
        return task

    def _arguments(self, binding: Binding) -> dict[str, Any]:
        results, inputs = self._state.results, self._inputs
        arguments = {}
        for parameter, source in binding:
            if isinstance(source, str):
                arguments[parameter] = inputs[source]
            else:
                result = results[source]
                assert result is not None  # a step starts when its dependencies have succeeded
                arguments[parameter] = result.output
        return arguments

    def _judge(
        self, index: int, value: Any, error: BaseException | None, cancels: int
    ) -> float | None:
        """Tell what an attempt came to.

        Returns:
            How many milliseconds to wait before the next attempt, or ``None`` if the step ended.
        """
        step, attempt, now_ms = self._steps[index], self._state.attempts(index), self._now_ms()
        asked = index in self._asked
        if cancels and step.timeout_ms is not None:
            # The step has answered a cancellation with a value or an error. If it came from the
            # limit, the attempt has exceeded it, and what it brought is late.
            horizon_ms = self._asked_ms if asked else now_ms + _TIMER_SLACK_MS
            if self._state.attempt_started_ms(index) + step.timeout_ms < horizon_ms:
                late = StepTimeoutError(step.name, attempt, step.timeout_ms)
                late.__cause__ = error
                error = late
        if not asked:
            _forget_cancels()  # the step's own, or those of its limit
        if error is None:
            self._emit(StepSucceeded(step.name, attempt, now_ms, value))
            return None
        if not isinstance(error, Exception | asyncio.CancelledError):
            reason = f"step {step.name!r} raised {type(error).__name__}"
            self._emit(StepCancelled(step.name, attempt, now_ms, reason, error))
            self._interrupt(error, reason)
            return None
        if asked:
            self._emit(self._cancelled(index, error))
            return None
        if isinstance(error, asyncio.CancelledError):
            own = StepCancelledError(step.name, attempt)
            own.__cause__ = error
            error = own
        delay_ms = self._state.after_failure(index, error)
        if delay_ms is not None:
            self._emit(AttemptFailed(step.name, attempt, now_ms, error, delay_ms))
            return delay_ms
        self._emit(StepFailed(step.name, attempt, now_ms, error))
        if self._state.stop_reason is not None:
            self._stop_soon()
        return None

    def _cancelled(self, index: int, error: BaseException | None) -> StepCancelled:
        if isinstance(error, asyncio.CancelledError):
            error = None
        step, attempt = self._steps[index], self._state.attempts(index)
        reason = self._state.stop_reason or ""
        return StepCancelled(step.name, attempt, self._now_ms(), reason, error)

    async def _pause(self, index: int, delay_ms: float) -> None:
        """Wait between two attempts: at least one turn of the loop, so that others get theirs."""
        until = self._loop.time() + delay_ms / 1000
        while True:
            try:
                return await asyncio.sleep(max(0.0, until - self._loop.time()))
            except asyncio.CancelledError:
                if index in self._asked:
                    raise
                # The attempt before has cancelled its task with its last line: it ended anyway.
                _forget_cancels()

    # Telling.

    def _now_ms(self) -> float:
        return (self._loop.time() - self._started) * 1000

    def _emit(self, event: Event) -> None:
        self._state.apply(event)
        if self._observers:
            self._tell(event)

    def _tell(self, event: Event) -> None:
        for observer in self._observers:
            try:
                observer(event)
            except BaseException as error:
                self._observers = tuple(one for one in self._observers if one is not observer)
                if not isinstance(error, Exception):
                    self._interrupt(error, f"an observer raised {type(error).__name__}")
                    continue
                _log.exception("an observer failed and is not called again, at %r", event)


async def _outcome_after(work: Any, cancelled: asyncio.CancelledError) -> _Outcome:
    """Return what an attempt came to when the wait for it has ended with a cancellation."""
    if isinstance(work, asyncio.Task):
        while not work.done():
            # Before 3.12 `wait_for` leaves a timed-out task to itself if it is cancelled then.
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError:
                continue
        if not work.cancelled():
            return work.result()
    return None, cancelled, 0


def _timed_out(step: WorkflowStep, attempt: int, timeout: TimeoutError) -> StepTimeoutError:
    assert step.timeout_ms is not None
    error = StepTimeoutError(step.name, attempt, step.timeout_ms)
    error.__context__ = timeout.__cause__  # the cancellation: it tells where the step was
    return error


def _cancels() -> int:
    """Return how often the running task was asked to cancel."""
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


def _forget_cancels() -> None:
    task = asyncio.current_task()
    assert task is not None
    while task.cancelling():
        task.uncancel()


def _check_asyncio() -> None:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no running event loop, or trio's
        task = None
    if task is None:
        raise RuntimeError(
            "asyncflow runs only in a task of an asyncio event loop; start it with asyncio.run(), "
            "or with anyio.run() and its default backend"
        )


def _check_options(schedule: object, max_concurrency: object) -> None:
    known = get_args(Schedule)
    if schedule not in known:
        raise ValueError(f"schedule must be {' or '.join(map(repr, known))}, not {schedule!r}")
    if max_concurrency is None:
        return
    if isinstance(max_concurrency, bool) or not isinstance(max_concurrency, int):
        raise TypeError(
            f"max_concurrency must be an int or None, not {type(max_concurrency).__name__}"
        )
    if max_concurrency < 1:
        raise ValueError(
            f"max_concurrency must be at least 1, not {max_concurrency}; use None for no limit"
        )


def _checked_observers(observers: object) -> tuple[Observer, ...]:
    if callable(observers) or not isinstance(observers, Iterable):
        raise TypeError("observers must be a list of callables; put a single one in a list")
    checked = tuple(observers)
    for observer in checked:
        if not callable(observer):
            raise TypeError(f"an observer must be callable, not {type(observer).__name__}")
    return checked
