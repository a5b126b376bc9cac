"""Lets clean-up steps ask what became of the steps that they depend on."""

from __future__ import annotations

import asyncflow._core.history.replay  # noqa: F401  # the result of a failed step may need it
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._kernel.policy import Call, Policy
from asyncflow._kernel.run_scope import Parts
from asyncflow.events import AttemptStarted


class CleanUps(Policy):
    """The policy of a run with clean-up steps."""

    arguments = frozenset({"run_if"})

    def __init__(self, parts: Parts) -> None:
        self._scope = parts.scope

    def on_call(self, call: Call, node: int, step: WorkflowStep, running: AttemptStarted) -> Call:
        plan, extras = self._scope.plan, self._scope.run_context.extras
        found = map(self._scope.state.result, plan.dependencies[plan.index[step.name]])
        results = {result.step_name: result for result in found if result is not None}
        extras[running.step, running.item].results = results  # type: ignore[misc]
        return call
