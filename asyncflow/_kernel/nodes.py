"""The attempts of one node: a step, or an item of a mapped step.

Rules:

1. There are two lanes, and the hooks of a node choose one. In the plain lane an attempt has a limit
   and nothing else, as most have; `asyncflow._kernel.attempt` can do everything. What happens
   before and between attempts is the same in both.
2. The plain lane makes no events: the state takes what has happened without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from types import CoroutineType
from typing import Any

from asyncflow._core.arguments import PLAIN_OUTPUTS, checked_awaitable, refuse_unawaited
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._core.running.context import enter_attempt
from asyncflow._core.tracebacks import strip_internal_frames
from asyncflow._kernel.asyncio_compat import NO_TIME_S, WAIT_FOR_MAKES_A_TASK, cancel_count
from asyncflow._kernel.attempt import Attempts
from asyncflow._kernel.outcome import attempt_started
from asyncflow._kernel.policy import NoAttempt, NodeHooks
from asyncflow._kernel.run_scope import Parts
from asyncflow.events import AttemptStarted, StepSucceeded

if WAIT_FOR_MAKES_A_TASK:  # pragma: no cover - before 3.12
    from asyncflow._kernel.attempt_311 import make_only_attempt

_ONE_TURN = partial(asyncio.sleep, 0)


class Nodes:
    """Runs the attempts of nodes, each node in one task."""

    def __init__(self, parts: Parts) -> None:
        scope = parts.scope
        self._run = parts.run
        self._dispatcher = parts.dispatcher
        self._stop_control = parts.stop_control
        self._data = scope.data
        self._bindings = scope.data.bindings
        self._step_count = len(self._bindings)
        self._state = scope.state
        self._runs = scope.state.step_runs
        self._steps = scope.state.step_runs.steps
        self._run_context = scope.run_context
        self._now_ms = scope.run_context.now_ms
        self._clock = scope.loop.time
        self.attempts = Attempts(parts)
        self._remembered = scope.run_context.by_node

    def launch(self, node: int, hooks: NodeHooks) -> Coroutine[Any, Any, object]:
        """Return the coroutine of a node's task. It raises nothing but a cancellation."""
        step = self._steps[node]
        if step.max_retries > 1 or not hooks.is_direct:
            return self._make_attempts(node, step, hooks)
        if WAIT_FOR_MAKES_A_TASK:  # pragma: no cover - before 3.12
            make_attempt = partial(self._attempt_plain, node, step, 1)
            return make_only_attempt(  # pyright: ignore[reportPossiblyUnboundVariable]
                node, self._state, self._stop_control, make_attempt, self._now_ms
            )
        return self._make_plain(node, step, 1)

    async def _make_plain(self, node: int, step: WorkflowStep, attempt: int) -> float | None:
        """Make an attempt of a plain node within its limit, in this task; not before 3.12."""
        # Read before the timer starts: a collection or another process may come between the two,
        # and an attempt that started later than its timer would seem to end before its limit.
        started_ms = self._now_ms()
        made = self._attempt_plain(node, step, attempt, started_ms)
        return await asyncio.wait_for(made, step.timeout_s)

    async def _attempt_plain(
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
                    self._data.refuse_shared(node, output)
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

    async def _make_attempts(self, node: int, step: WorkflowStep, hooks: NodeHooks) -> None:
        """Make attempts of a node, in either lane, until it has ended or is parked."""
        is_parked, make = False, self._plain if hooks.is_plain else self._full
        try:
            while True:
                for gate in hooks.on_gate:
                    if (wait := gate(node, step)) is None:
                        continue
                    passage = await self._stop_control.undisturbed(node, wait)
                    if passage is not None:
                        is_parked = passage is NoAttempt.IS_PARKED
                        return self._leave(node, passage)
                attempt = self._runs.next_attempt(node)
                if attempt > 1:
                    self._remember_error(node)
                delay_ms = await make(node, step, attempt, hooks)
                for hook in hooks.on_attempted:
                    hook(node)
                if delay_ms is None:
                    return None
                await self._back_off(node, delay_ms, hooks)
        except asyncio.CancelledError:
            self.attempts.report_cancelled(node)
        except BaseException as bug:
            self.attempts.break_down(node, bug)
        finally:
            if not is_parked:
                for remembered in self._remembered:
                    if remembered:
                        remembered.pop(self._runs.key_of(node), None)
                if hooks.on_over:
                    self.over(node, hooks)

    def _leave(self, node: int, passage: NoAttempt | Exception) -> None:
        """End or park a node that makes no other attempt."""
        if passage is NoAttempt.IS_PARKED:
            self._run.park(node)
        elif isinstance(passage, Exception):
            self._run.fail(node, passage)
        else:
            self._run.settled(node)

    def over(self, node: int, hooks: NodeHooks) -> None:
        """Let the policies know that the task of a node is over, or that it gets none."""
        try:
            for hook in hooks.on_over:
                hook(node)
        except BaseException as bug:
            name = self._steps[node].name
            self._run.broken(bug, f"a policy of step {name!r} failed")

    def _plain(
        self, node: int, step: WorkflowStep, attempt: int, _: NodeHooks
    ) -> Awaitable[float | None]:
        """Make an attempt in the plain lane; return what awaits it."""
        if not self.attempts.take_task(node, attempt):
            make = partial(self._attempt_plain, node, step, attempt)
            return self.attempts.bounded(node, attempt, make)
        if step.timeout_s is not None:
            self._stop_control.watchdog.expect_in(step.timeout_s)
        return self._make_plain(node, step, attempt)

    def _full(
        self, node: int, step: WorkflowStep, attempt: int, hooks: NodeHooks
    ) -> Awaitable[float | None]:
        """Make an attempt in the full lane; return what awaits it."""
        make = partial(self.attempts.make, node, step, attempt, hooks)
        if hooks.on_started:
            return self._make_after_start(node, step, attempt, hooks, make)
        return self.attempts.bounded(node, attempt, make)

    async def _make_after_start(
        self,
        node: int,
        step: WorkflowStep,
        attempt: int,
        hooks: NodeHooks,
        make: Callable[[], Awaitable[float | None]],
    ) -> float | None:
        """Report the start of an attempt, and make it when the policies let its limit count.

        Raises:
            asyncio.CancelledError: The run stops the node, and nothing was begun.
        """
        self._dispatcher.emit(attempt_started(self._state, node, self._now_ms()))
        try:
            for started in hooks.on_started:
                if (wait := started(node, step)) is not None:
                    await self._stop_control.undisturbed(node, wait)
            return await self.attempts.bounded(node, attempt, make)
        except asyncio.CancelledError:
            must_end = [hook(node) for hook in hooks.on_abort]
            if not any(must_end):
                raise
        return await make()

    async def _back_off(self, node: int, delay_ms: float, hooks: NodeHooks) -> None:
        """Wait between two attempts, at least one turn of the loop.

        Raises:
            asyncio.CancelledError: The run has asked the node to stop.
        """
        self._stop_control.check_before_backoff(node)
        clock = self._clock
        ends_s = clock() + delay_ms / 1000
        if hooks.on_hold:
            ends_ms = (ends_s - self._run_context.started_s) * 1000
            is_held = [hook(node, delay_ms, ends_ms) for hook in hooks.on_hold]
            if any(is_held):
                return
        if self._state.queue.is_dirty:
            self._run.advance()  # there is room for another node
        if not delay_ms:
            await self._stop_control.undisturbed(node, _ONE_TURN)
            return
        await self._stop_control.undisturbed(node, lambda: asyncio.sleep(ends_s - clock()))
        while ends_s - clock() > NO_TIME_S:  # a timer may be early
            await self._stop_control.undisturbed(node, lambda: asyncio.sleep(ends_s - clock()))

    def _remember_error(self, node: int) -> None:
        """Let the action ask what the attempt before failed with."""
        error = self._runs.error_to_ask_for(node)
        if error is not None:
            self._run_context.last_errors[self._runs.key_of(node)] = error
