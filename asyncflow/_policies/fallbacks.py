"""Lets steps with ``fallback`` succeed with its output when they have failed for good."""

from __future__ import annotations

from typing import Any

from asyncflow._core.arguments import reject_awaitable
from asyncflow._core.pipeline.signal import take_instead
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._kernel.policy import Policy


class Fallbacks(Policy):
    """The policy of a run with such steps."""

    arguments = frozenset({"fallback"})

    def on_rescue(self, node: int, step: WorkflowStep, failure: Exception) -> Any:
        assert step.fallback is not None
        output = reject_awaitable(f"the fallback of step {step.name!r}", step.fallback(failure))
        if step.signal is not None:
            output = take_instead(step.signal, step.name, output, "fallback")
        return output
