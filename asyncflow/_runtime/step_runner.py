"""The attempts of one node: a step, or an item of a mapped step.

Rules:

1. There are two lanes, and `StepRunner.launch` chooses one, by the step. In the plain lane an
   attempt has a limit and no other policy, as most have; `asyncflow._runtime.attempt` can do
   everything. What a node waits for before and between its attempts is the same in both.
2. A run with a journal has the full lane alone: it stores each start and end as an event, and the
   plain lane makes none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from asyncflow._core.arguments import PLAIN_OUTPUTS, checked_awaitable, refuse_unawaited
from asyncflow._core.context import enter_attempt
from asyncflow._core.errors import PayloadError
from asyncflow._core.step import WorkflowStep
from asyncflow._core.tracebacks import strip_internal_frames
from asyncflow._runtime.asyncio_compat import WAIT_FOR_MAKES_A_TASK, cancel_count
from asyncflow._runtime.attempt import Attempts
from asyncflow._runtime.attempt_311 import make_only_attempt
from asyncflow._runtime.durable import RunPersistence
from asyncflow._runtime.run_scope import Parts
from asyncflow.events import AttemptStarted, StepSucceeded

if TYPE_CHECKING:
    from asyncflow._runtime.caching import StepCache


class StepRunner:
    """Runs the attempts of nodes, each node in one task."""

    def __init__(self, parts: Parts) -> None:
        scope = parts.scope
        self._run = parts.run
        self._dispatcher = parts.dispatcher
        self._stop_control = parts.stop_control
        self._permits = parts.permits
        self._data = scope.data
        self._bindings = scope.data.bindings
        self._step_count = len(self._bindings)
        self._state = scope.state
        self._steps = scope.state.step_runs.steps
        self._persistence = scope.persistence
        self._now_ms = scope.run_context.now_ms
        self._last_errors = scope.run_context.last_errors
        self._saved = scope.run_context.checkpoints.saved
        self.attempts = Attempts(parts)
        self.cache: StepCache | None = None
        caches = self._persistence is not None and self._persistence.caches
        if caches and any(scope.plan.steps[index].cache_ms for index in scope.plan.special):
            from asyncflow._runtime.caching import StepCache  # few need it

            self.cache = StepCache(parts)
            self.attempts.on_success = self.cache.succeeded

    def launch(self, node: int) -> Coroutine[Any, Any, object]:
        """Return the coroutine of a node's task. It raises nothing but a cancellation."""
        step = self._steps[node]
        is_plain = step.is_plain and self._persistence is None
        if step.max_retries > 1 or step.needs_permit or not is_plain:
            return self.run(node, step, is_plain=is_plain)
        if WAIT_FOR_MAKES_A_TASK:  # pragma: no cover - before 3.12
            make_attempt = partial(self.run_plain, node, step, 1)
            return make_only_attempt(
                node, self._state, self._stop_control, make_attempt, self._now_ms
            )
        return self._make_plain(node, step, 1)

    async def _make_plain(self, node: int, step: WorkflowStep, attempt: int) -> float | None:
        """Make an attempt of a plain node within its limit, in this task; not before 3.12."""
        # Read before the timer starts: a collection or another process may come between the two,
        # and an attempt that started later than its timer would seem to end before its limit.
        started_ms = self._now_ms()
        made = self.run_plain(node, step, attempt, started_ms)
        return await asyncio.wait_for(made, step.timeout_s)

    async def run_plain(
        self, node: int, step: WorkflowStep, attempt: int, started_ms: float | None = None
    ) -> float | None:
        """Make one attempt of a plain step or item. It raises nothing.

        ``started_ms`` is when it started; now, if `Deadlines.begin_limit` has noted its limit.

        Return how many milliseconds to wait before the next attempt; ``None`` if the node has
        ended.
        """
        if WAIT_FOR_MAKES_A_TASK and node in self._stop_control.requested:
            # This task begins although the one that waits for it was cancelled.
            raise asyncio.CancelledError  # pragma: no cover - before 3.12
        try:
            at_ms = self._now_ms() if started_ms is None else started_ms
            running = self._state.begin(node, attempt, at_ms)
            if self._dispatcher.hooks.on_applied:
                self._dispatcher.applied(AttemptStarted(*running))
            enter_attempt(running)
            for hook in self._dispatcher.hooks.on_attempt:
                hook(AttemptStarted(*running))
            bindings = self._bindings
            try:
                if node >= self._step_count or bindings[node]:
                    awaitable = step.action(**self._data.of_action(node))
                else:
                    awaitable = step.action()
                if type(awaitable) is not CoroutineType:
                    awaitable = checked_awaitable(step.name, awaitable)
                output = await awaitable
                if type(output) not in PLAIN_OUTPUTS:
                    if type(output) is CoroutineType:
                        refuse_unawaited(step.name, output)
                    self.attempts.refuse_shared(node, output)
            except BaseException as error:
                strip_internal_frames(error)
                return self.attempts.conclude(node, error, None)
            if cancel_count():
                return self.attempts.conclude(node, None, output)
            ended_ms = self._now_ms()
            self._state.succeed(node, ended_ms, output)
            if self._dispatcher.hooks.on_applied:
                name, item = step.name, running[4]
                self._dispatcher.applied(StepSucceeded(name, attempt, ended_ms, output, item))
            self._run.settled(node)
            return None
        except BaseException as bug:
            self.attempts.break_down(node, bug)
            return None

    async def run(self, node: int, step: WorkflowStep, *, is_plain: bool) -> None:
        """Make attempts of a node, in either lane, until it has ended."""
        attempt = 0
        attempts, lane = self.attempts, self.run_plain if is_plain else self.attempts.make
        cache = None if step.cache_ms is None else self.cache
        try:
            if cache is not None and not await self._must_run(node, step, cache):
                return
            while True:
                if step.needs_permit and not self._permits.may_start(node):
                    await self._permits.acquire(node, step)
                attempt = self._state.step_runs.next_attempt(node)
                if attempt > 1:
                    self._remember_error(node)
                if self._persistence is not None:
                    await self._store_start(node, self._persistence)
                if step.remote is not None:
                    delay_ms = await attempts.make_on_engine(node, step, attempt)
                elif is_plain and attempts.take_task(node, attempt):
                    if step.timeout_s is not None:
                        self._stop_control.watchdog.expect_in(step.timeout_s)
                    delay_ms = await self._make_plain(node, step, attempt)
                else:
                    make_attempt = partial(lane, node, step, attempt)
                    delay_ms = await attempts.bounded(node, attempt, make_attempt)
                if step.needs_permit:
                    self._permits.release(node)
                if delay_ms is None:
                    return
                late = await self._permits.back_off(node, delay_ms)
                if late is not None:
                    attempts.fail_between(node, late)
                    self._run.settled(node)
                    return
        except asyncio.CancelledError:
            attempts.report_cancelled(node)
        except BaseException as bug:
            attempts.break_down(node, bug)
        finally:
            if attempt > 1:
                self._last_errors.pop(self._state.step_runs.key_of(node), None)
            if self._saved:  # that the journal has stays there, unless the step has succeeded
                self._saved.pop(self._state.step_runs.key_of(node), None)
            if cache is not None:
                cache.give_up(node)
            if step.needs_permit and not (cache is not None and cache.is_parked(node)):
                self._permits.forget(node)  # no action was called with what it still holds

    async def _must_run(self, node: int, step: WorkflowStep, cache: StepCache) -> bool:
        """Whether a node with ``cache_ms`` must run; if not, its task is over."""
        try:
            return await cache.may_start(node, step)
        except PayloadError as error:  # an argument can't be stored, so no key has it
            self.attempts.fail_between(node, error)
            self._run.settled(node)
            return False

    def _remember_error(self, node: int) -> None:
        """Let the action ask what the attempt before failed with."""
        error = self._state.error_to_ask_for(node)
        if error is not None:
            self._last_errors[self._state.step_runs.key_of(node)] = error

    async def _store_start(self, node: int, persistence: RunPersistence) -> None:
        """Report that an attempt starts, and wait until that is stored; only then is it made."""
        self._dispatcher.emit(self.attempts.start_of(node))
        await self._stop_control.undisturbed(node, persistence.session.flush)
