"""Calls plain functions in threads and processes, for steps with ``runs_in``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from asyncflow._core.errors import StepTimeoutError
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._kernel.policy import Call, Passage, Policy
from asyncflow._kernel.run_scope import Parts
from asyncflow._policies.permits import Permits
from asyncflow._policies.workers import run_in_process, run_in_thread
from asyncflow.events import AttemptStarted, ThreadAbandoned

if TYPE_CHECKING:
    from asyncflow._policies.workers import Heartbeats, ThreadEnd


class WorkerSteps(Policy):
    """The policy of a run with such steps. What an engine runs, runs there.

    A thread can't be stopped, so an attempt may end before its thread does: no other attempt of the
    node overlaps it. ``permits``, if there are any, keep what the node holds until then.
    """

    arguments = frozenset({"runs_in", "engine"})

    def __init__(self, parts: Parts, permits: Permits | None) -> None:
        self._scope = parts.scope
        self._state = parts.scope.state
        self._dispatcher = parts.dispatcher
        self._stop_control = parts.stop_control
        self._permits = permits
        self._threads: dict[int, ThreadEnd] = {}
        """Resolved when the abandoned thread of a node has ended."""

    def on_gate(
        self, node: int, step: WorkflowStep
    ) -> Callable[[], Coroutine[Any, Any, Passage]] | None:
        thread = self._threads.get(node)
        is_free = thread is None or thread.done()
        return None if is_free else partial(self._thread_ended, node, step)

    async def _thread_ended(self, node: int, step: WorkflowStep) -> Passage:
        """Wait for an abandoned thread, but not past a deadline."""
        thread, runs, left_s = self._threads[node], self._state.step_runs, None
        latest = runs.latest_attempt(node)
        assert latest is not None
        if step.deadline_ms is not None:
            ends_ms = self._state.deadlines.step_ends_ms(node)
            left_s = max(0.0, (ends_ms - self._scope.run_context.now_ms()) / 1000)
        await asyncio.wait([thread], timeout=left_s)
        if thread.done() or step.deadline_ms is None:
            return None
        name = runs.name_of(node)
        return StepTimeoutError(name, latest.attempt, step.deadline_ms, "step")

    def abandon(self, node: int, thread: ThreadEnd) -> None:
        """Report that the running attempt of a node ends before its thread does."""
        running = self._state.step_runs.running_attempt(node)
        assert running is not None
        self._threads[node] = thread
        if self._permits is not None:
            self._permits.until[node] = thread
        now_ms = self._scope.run_context.now_ms()
        self._dispatcher.emit(ThreadAbandoned(running.step, running.attempt, now_ms, running.item))

    def on_call(self, call: Call, node: int, step: WorkflowStep, running: AttemptStarted) -> Call:
        if step.runs_in == "loop" or step.remote is not None:
            return call
        in_worker = self._in_process if step.runs_in == "process" else self._in_thread
        return partial(in_worker, node, step, running)

    def _in_process(self, node: int, step: WorkflowStep, running: AttemptStarted) -> Awaitable[Any]:
        arguments = self._scope.data.of_action(node)
        extras = self._scope.run_context.extras[running.step, running.item]
        heartbeat = cast("Heartbeats | None", extras.heartbeat)
        return run_in_process(step.action, arguments, heartbeat, self._scope.run_context.notes)

    def _in_thread(self, node: int, step: WorkflowStep, running: AttemptStarted) -> Awaitable[Any]:
        run_context = self._scope.run_context
        ends_s = run_context.extras[running.step, running.item].deadline_s
        if not step.is_cleanup:
            ends_s = min(ends_s, run_context.deadline_s)
        return run_in_thread(
            step.action,
            self._scope.data.of_action(node),
            ends=ends_s,
            on_abandon=partial(self.abandon, node),
            has_missed_heartbeat=partial(self._stop_control.was_cut, node),
        )
