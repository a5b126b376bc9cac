"""Calls plain functions in threads and processes, for steps with ``runs_in``."""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from asyncflow._core.step import WorkflowStep
from asyncflow._runtime.policy import Call, Policy
from asyncflow._runtime.run_scope import Parts
from asyncflow._runtime.workers import run_in_process, run_in_thread
from asyncflow.events import AttemptStarted

if TYPE_CHECKING:
    from asyncflow._runtime.workers import Heartbeats


class WorkerSteps(Policy):
    """The policy of a run with such steps. What an engine runs, runs there."""

    def __init__(self, parts: Parts) -> None:
        self._scope = parts.scope
        self._permits = parts.permits
        self._missed_heartbeat = parts.stop_control.missed_heartbeat

    def on_call(self, call: Call, node: int, step: WorkflowStep, running: AttemptStarted) -> Call:
        if step.runs_in == "loop" or step.remote is not None:
            return call
        in_worker = self._in_process if step.runs_in == "process" else self._in_thread
        return partial(in_worker, node, step, running)

    def _in_process(self, node: int, step: WorkflowStep, running: AttemptStarted) -> Awaitable[Any]:
        arguments = self._scope.data.of_action(node)
        extras = self._scope.run_context.extras[running.step, running.item]
        heartbeat = cast("Heartbeats | None", extras.heartbeat)
        return run_in_process(step.action, arguments, heartbeat, self._scope.notes)

    def _in_thread(self, node: int, step: WorkflowStep, running: AttemptStarted) -> Awaitable[Any]:
        run_context = self._scope.run_context
        ends_s = run_context.extras[running.step, running.item].deadline_s
        if not step.is_cleanup:
            ends_s = min(ends_s, run_context.deadline_s)
        return run_in_thread(
            step.action,
            self._scope.data.of_action(node),
            ends=ends_s,
            on_abandon=partial(self._permits.abandon, node),
            has_missed_heartbeat=partial(self._missed_heartbeat.__contains__, node),
        )
