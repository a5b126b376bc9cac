"""What limits how many workers there are."""

from __future__ import annotations

import anyio

from asyncflow._core.graph import Plan
from asyncflow._core.step import WorkflowStep

__all__ = ["limiter_for", "prepare"]


def prepare(plan: Plan) -> None:
    """Import what steps in threads and processes need, before a run's time begins to count."""
    for index in plan.special:
        limiter_for(plan.steps[index])


def limiter_for(step: WorkflowStep) -> anyio.CapacityLimiter | None:
    """Return what limits how many such workers there are, if the step runs in one."""
    if step.runs_in == "loop":
        return None
    # Only those who use it shall wait for its imports.
    from asyncflow._runtime.workers import limiter_for as limiter_of

    return limiter_of(step.runs_in)
