"""One run: its tasks, time limits and cancellations, and the events they amount to.

This is where asyncio is. Rules:

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
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple, Protocol

import anyio

from asyncflow._awaiting import awaiting_line
from asyncflow._engine import RunContext, call_action, enter_attempt
from asyncflow._errors import StepCancelledError, StepTimeoutError
from asyncflow._graph import Binding, Plan, Shape
from asyncflow._report import RunReport
from asyncflow._state import RunState
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

__all__ = ["Observer", "Run"]
_log = logging.getLogger("asyncflow")

# Before 3.12 `wait_for` runs what it is given in a task of its own, and throws away what that
# task returned if the waiting is cancelled. So there we make the task, and ask it afterwards.
_WAIT_FOR_NEEDS_A_TASK = sys.version_info < (3, 12)

# How much earlier than asked a timer may fire: uvloop counts in whole milliseconds (uvloop #739).
_TIMER_SLACK_S = 0.001


class _Shortfall(NamedTuple):
    """What an attempt came to, if it was not a value in time."""

    error: BaseException | None
    """What it raised; ``None`` if it returned after its task had been asked to cancel."""
    value: Any
    ended: float
    """In seconds of the loop's clock."""
    cancels: int
    """How often its task had been asked to cancel by then."""


class Observer(Protocol):
    """Called with every event of a run, in order, as it happens.

    It must return at once: the event loop waits for it. One that raises an `Exception` is
    logged and not called again in that run; the run goes on.
    """

    def __call__(self, event: Event, /) -> object: ...


class Run:
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
        self._steps = plan.steps
        self._bindings = bindings
        self._inputs = inputs
        self._state = state
        self._observers = observers
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._started = self._loop.time()
        self._identity = RunContext(run_id, plan, self._loop, self._started)
        self._task_prefix = f"asyncflow:{run_id}:"
        self._live: dict[int, asyncio.Task[None]] = {}
        """The task of each step that was started and has not ended."""
        self._asked: set[int] = set()
        """The steps that the run has asked to stop."""
        self._asked_ms = 0.0
        self._stop_is_due = False
        self._is_broken = False
        """Whether a step could not be run for a reason of ours, so that the books stay open."""
        self._advancing = False
        self._settled: asyncio.Future[None] | None = None
        self._interruption: BaseException | None = None
        self._watchdog = Watchdog(self._loop)

    async def execute(self) -> RunReport:
        self._emit(RunStarted(self._identity.run_id, time.time(), Shape(self._identity.plan)))
        cancellation: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as self._group:
                # From the loop, not from here: the traceback of an eager task that fails at once
                # would keep our callers' frames, and in one of them stands the report: a cycle.
                self._loop.call_soon(self._advance, context=self._context)
                # What leaves the body of a group is kept by it in a cycle, so nothing leaves it.
                cancellation = await self._until_settled()
        except asyncio.CancelledError as at_exit:
            cancellation = at_exit
        self._close()
        if self._interruption is None and cancellation is None:
            return self._state.report()
        try:
            raise self._interruption or cancellation  # type: ignore[misc]
        finally:
            del self, cancellation  # or what is raised would keep itself, through this frame

    def _close(self) -> None:
        self._watchdog.stop()
        if not self._is_broken:
            self._emit(RunFinished(self._now_ms(), self._state.outcome))

    # Waiting for the steps.

    async def _until_settled(self) -> asyncio.CancelledError | None:
        """Wait until every step has ended; return the cancellation that came meanwhile, if any."""
        try:
            await self._all_settled()
        except asyncio.CancelledError as cancellation:
            self._tell_interruption("the caller was cancelled")
            self._stop()
            # anyio repeats a cancellation until it is obeyed. The shield keeps that from turning
            # the wait for the steps' clean-up into a busy loop.
            with _shield():
                while self._live:
                    try:
                        await self._all_settled()
                    except asyncio.CancelledError:
                        continue  # cancelled again; the steps were asked and end in their time
            return cancellation
        return None

    async def _all_settled(self) -> None:
        while not self._is_over():
            self._settled = self._loop.create_future()
            await self._settled

    def _wake_if_settled(self) -> None:
        waiting = self._settled
        if waiting is not None and not waiting.done() and self._is_over():
            waiting.set_result(None)

    def _is_over(self) -> bool:
        return not self._live and (not self._state.unsettled or self._is_broken)

    # Starting and stopping them.

    def _advance(self) -> None:
        """Start what is ready and skip what is doomed, until there is neither.

        Called in the run's context, so that a step's task starts with a fresh copy of it.
        """
        self._advancing = True
        try:
            while self._state.has_news:
                self._start(self._state.ready())
                self._skip_doomed()
        except BaseException as bug:
            self._break_off(bug, "a step could not be started")
        finally:
            self._advancing = False
        self._wake_if_settled()
        del self  # the traceback of an eager task keeps this frame, as it keeps that of _run_step

    def _start(self, batch: list[int]) -> None:
        group, live = self._group, self._live
        for index in batch:
            # Where an attempt has a task of its own, that one bears the name.
            name = (
                None
                if _WAIT_FOR_NEEDS_A_TASK
                else f"{self._task_prefix}{self._steps[index].name}#1"
            )
            task = group.create_task(self._run_step(index), name=name)
            if not task.done():  # an eager one may be
                live[index] = task
        if batch:
            self._loop.call_soon(self._restart_unbegun, batch, context=self._context)
        del self, group, live  # as in _advance

    def _restart_unbegun(self, batch: list[int]) -> None:
        """Start those steps anew whose tasks a stranger has cancelled before their first line.

        Such a task never runs, so it can tell nobody. It has ended by now, a turn later.
        """
        unbegun = [index for index in batch if index in self._live and self._live[index].done()]
        for index in unbegun:
            del self._live[index]
        if unbegun:
            self._start(unbegun)

    def _break_off(self, bug: BaseException, reason: str) -> None:
        """Stop the run for a reason of ours; the books stay open, since they may be wrong."""
        self._is_broken = True
        self._interrupt(bug, reason)

    def _skip_doomed(self) -> None:
        for index, reason in self._state.doomed():
            self._emit(StepSkipped(self._steps[index].name, self._now_ms(), reason))

    def _interrupt(self, cause: BaseException, reason: str) -> None:
        """Stop the run because of something that `execute` shall raise."""
        if self._interruption is None:
            self._interruption = cause
            if not self._state.has_finished:
                self._tell_interruption(reason)
                self._stop_soon()

    def _tell_interruption(self, reason: str) -> None:
        if self._state.outcome != "interrupted":
            self._emit(RunInterrupted(self._now_ms(), reason))

    def _stop_soon(self) -> None:
        # One turn of the loop later, so that steps which fail in the same turn keep their errors.
        if not self._stop_is_due:
            self._stop_is_due = True
            self._loop.call_soon(self._stop)

    def _stop(self) -> None:
        """Ask each live step to stop, once."""
        if self._state.has_finished:
            return
        now_ms = self._asked_ms = self._now_ms()
        self._skip_doomed()
        for index, task in list(self._live.items()):
            if index in self._asked:
                continue
            self._asked.add(index)
            if not self._has_begun(index, 1):
                # A task that is cancelled before its first line never runs: nobody else tells.
                del self._live[index]
                reason = self._state.stop_reason or ""
                self._emit(StepSkipped(self._steps[index].name, now_ms, reason))
            if not task.cancelling():
                task.cancel()  # else its limit or a stranger did, and it is cleaning up
        if self._live:
            self._watchdog.expect(self._loop.time(), self._suspects)
        self._wake_if_settled()

    def _suspects(self) -> Iterator[Suspect]:
        for index, task in self._live.items():
            running, timeout_ms = self._state.running_attempt(index), self._steps[index].timeout_ms
            if running is None:
                continue
            if index in self._asked:
                cancelled_ms = self._asked_ms
            elif timeout_ms is not None:
                cancelled_ms = running.at_ms + timeout_ms
            else:
                continue
            cancelled_at = self._started + cancelled_ms / 1000
            where = partial(self._where, task, running)
            yield Suspect(running.step, running.attempt, cancelled_at, where)

    def _where(self, task: asyncio.Task[Any], running: AttemptStarted) -> str:
        """Return the line at which an attempt waits: in its own task, if it has one."""
        name = f"{self._task_prefix}{running.step}#{running.attempt}"
        tasks = asyncio.all_tasks(self._loop)
        own = next((each for each in tasks if each.get_name() == name and each is not task), task)
        return awaiting_line(own.get_coro())

    # One step.

    async def _run_step(self, index: int) -> None:
        """The retry loop of one step. It raises nothing: what happens is told in events."""
        step = self._steps[index]
        limit_s = None if step.timeout_ms is None else step.timeout_ms / 1000
        attempt = 1
        shortfall: _Shortfall | None = None
        try:
            while True:
                work: Any = self._attempt(index, step, attempt, limit_s)
                if attempt > 1 or _WAIT_FOR_NEEDS_A_TASK:
                    # Not an eager task: between two attempts the others get a turn; and if it
                    # failed at once, its error's traceback would keep the frame that makes it,
                    # which holds the task, which holds the error.
                    work = asyncio.Task(
                        work,
                        loop=self._loop,
                        name=f"{self._task_prefix}{step.name}#{attempt}",
                        context=None if attempt == 1 else self._context.copy(),
                    )
                try:
                    shortfall = await asyncio.wait_for(work, limit_s)
                except (TimeoutError, asyncio.CancelledError) as cut:
                    if not self._has_begun(index, attempt):
                        if index in self._asked:
                            raise asyncio.CancelledError from None
                        _forget_cancels()
                        continue
                    # A TimeoutError of the action is handed on as a value: this one is the limit's.
                    shortfall = (
                        await self._shortfall_after(index, work, cut)
                        if isinstance(cut, asyncio.CancelledError)
                        else self._timed_out(step, attempt, cut)
                    )
                if shortfall is None:
                    return
                delay_ms = self._judge(index, shortfall)
                if delay_ms is None:
                    return
                if delay_ms:
                    await self._pause(index, delay_ms)
                attempt += 1
        except asyncio.CancelledError:
            # Before 3.12 the run may have told already that it was skipped.
            if self._state.results[index] is None:  # pragma: no branch
                self._emit(self._cancelled(index, self._state.last_error(index)))
        except BaseException as bug:
            self._break_off(bug, f"step {step.name!r} could not be run")
        finally:
            self._live.pop(index, None)
            if self._state.has_news or not self._live:
                self._follow_up()
            # An error's traceback may keep this frame, which must not lead back to the error.
            del self
            shortfall = work = None

    def _has_begun(self, index: int, attempt: int) -> bool:
        """Whether the action was called for this attempt."""
        latest = self._state.latest_attempt(index)
        return latest is not None and latest.attempt >= attempt

    def _follow_up(self) -> None:
        """See to what follows the end of a step."""
        if not self._advancing:  # else an eager task has ended within its start
            if self._state.has_news:
                self._context.run(self._advance)
            else:
                self._wake_if_settled()
        del self  # as in _advance

    async def _attempt(
        self, index: int, step: WorkflowStep, attempt: int, limit_s: float | None
    ) -> _Shortfall | None:
        """Call the action and await it. Only a `CancelledError` is raised: `wait_for` needs it."""
        if self._asked and index in self._asked:
            # Before 3.12 `wait_for` hands the cancellation on when this has begun already.
            raise asyncio.CancelledError  # pragma: no cover
        loop, binding = self._loop, self._bindings[index]
        began = loop.time()
        running = AttemptStarted(step.name, attempt, (began - self._started) * 1000)
        self._state.apply(running)
        if self._observers:
            self._tell(running)
        enter_attempt((self._identity, running))
        ends = math.inf if limit_s is None else began + limit_s
        if ends < self._watchdog.horizon:
            self._watchdog.expect(ends, self._suspects)
        try:
            value = await call_action(step, self._arguments(binding) if binding else None)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return _Shortfall(error, None, loop.time(), _cancels())
        else:
            ended = loop.time()
            if ended >= ends - _TIMER_SLACK_S and _cancels():
                return _Shortfall(None, value, ended, _cancels())
            success = StepSucceeded(step.name, attempt, (ended - self._started) * 1000, value)
            self._state.apply(success)
            if self._observers:
                self._tell(success)
            return None
        finally:
            del self  # as in _run_step

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

    async def _shortfall_after(
        self, index: int, work: Any, cancelled: asyncio.CancelledError
    ) -> _Shortfall | None:
        """Return what an attempt came to when the wait for it has ended with a cancellation."""
        if isinstance(work, asyncio.Task):
            while not work.done():  # pragma: no cover - only before 3.12
                # Before 3.12 `wait_for` abandons a timed-out task if it is cancelled then.
                try:
                    await asyncio.wait([work])
                except asyncio.CancelledError:
                    continue
            if not work.cancelled():
                shortfall: _Shortfall | None = work.result()
                return shortfall
        if self._state.results[index] is not None:
            return None  # it cancelled its own task with its last line, and has succeeded
        return _Shortfall(cancelled, None, self._loop.time(), _cancels())

    def _timed_out(self, step: WorkflowStep, attempt: int, timeout: TimeoutError) -> _Shortfall:
        assert step.timeout_ms is not None
        error = StepTimeoutError(step.name, attempt, step.timeout_ms)
        error.__context__ = timeout.__cause__  # the cancellation: it tells where the step was
        return _Shortfall(error, None, self._loop.time(), 0)

    def _judge(self, index: int, shortfall: _Shortfall) -> float | None:
        """Tell what an attempt came to that was not a value in time.

        Returns:
            How many milliseconds to wait before the next attempt, or ``None`` if the step ended.
        """
        step, running = self._steps[index], self._state.running_attempt(index)
        assert running is not None
        attempt, asked = running.attempt, index in self._asked
        ended_ms = (shortfall.ended - self._started) * 1000
        error = self._late(step, running, shortfall, asked) or shortfall.error
        if not asked:
            _forget_cancels()  # the step's own, or those of its limit
        if error is None:
            self._emit(StepSucceeded(step.name, attempt, ended_ms, shortfall.value))
            return None
        if not isinstance(error, Exception | asyncio.CancelledError):
            reason = f"step {step.name!r} raised {type(error).__name__}"
            self._emit(StepCancelled(step.name, attempt, ended_ms, reason, error))
            self._interrupt(error, reason)
            return None
        if asked:
            self._emit(self._cancelled(index, error))
            return None
        if isinstance(error, asyncio.CancelledError):
            cause, error = error, StepCancelledError(step.name, attempt)
            error.__cause__ = cause
        delay_ms = self._state.after_failure(index, error)
        if delay_ms is not None:
            self._emit(AttemptFailed(step.name, attempt, ended_ms, error, delay_ms))
            return delay_ms
        self._emit(StepFailed(step.name, attempt, ended_ms, error))
        if self._state.stop_reason is not None:
            self._stop_soon()
        return None

    def _late(
        self, step: WorkflowStep, running: AttemptStarted, shortfall: _Shortfall, asked: bool
    ) -> StepTimeoutError | None:
        """Return the limit's error if it was the limit that the attempt answered so late."""
        if not shortfall.cancels or step.timeout_ms is None:
            return None
        ended_ms = (shortfall.ended - self._started) * 1000
        horizon_ms = self._asked_ms if asked else ended_ms + _TIMER_SLACK_S * 1000
        if running.at_ms + step.timeout_ms >= horizon_ms:
            return None  # the cancellation was the run's, or the step's own
        late = StepTimeoutError(step.name, running.attempt, step.timeout_ms)
        if not isinstance(shortfall.error, asyncio.CancelledError):
            late.__cause__ = shortfall.error
        return late

    def _cancelled(self, index: int, error: BaseException | None) -> StepCancelled:
        if isinstance(error, asyncio.CancelledError):
            error = None
        latest = self._state.latest_attempt(index)
        assert latest is not None
        reason = self._state.stop_reason or ""
        return StepCancelled(latest.step, latest.attempt, self._now_ms(), reason, error)

    async def _pause(self, index: int, delay_ms: float) -> None:
        """Wait between two attempts."""
        until = self._loop.time() + delay_ms / 1000
        while (delay_s := until - self._loop.time()) > 0:
            try:
                await asyncio.sleep(delay_s)
            except asyncio.CancelledError:
                if index in self._asked:
                    raise
                _forget_cancels()  # the attempt that has ended cancelled its task, or a stranger

    # Telling.

    def _now_ms(self) -> float:
        return (self._loop.time() - self._started) * 1000

    def _emit(self, event: Event) -> None:
        self._state.apply(event)
        if self._observers:
            self._tell(event)

    def _tell(self, event: Event) -> None:
        interruptions = []
        for observer in self._observers:
            try:
                observer(event)
            except BaseException as error:
                self._observers = tuple(one for one in self._observers if one is not observer)
                if isinstance(error, Exception):
                    subject = getattr(event, "step", "the run")
                    _log.exception(
                        "an observer failed and is not called again, at %s of %s",
                        type(event).__name__,
                        subject,
                    )
                else:
                    interruptions.append(error)
        while interruptions:  # after all have been told, so that they hear it in order
            self._interrupt(
                interruptions[0], f"an observer raised {type(interruptions[0]).__name__}"
            )
            del interruptions[0]  # an error keeps this frame


def _shield() -> AbstractContextManager[object]:
    # No scope of anyio's can be around us before it has loaded its backend, which takes a while.
    if "anyio._backends._asyncio" in sys.modules:
        return anyio.CancelScope(shield=True)
    return nullcontext()


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
