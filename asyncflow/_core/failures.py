"""The order of failures: which step with an error is shown first, in every text and on every page.

Rules:

1. The step that failed first is the cause that people look for, so it comes first.
2. Steps that were cancelled with an error come after all that failed: they were stopped because of
   one.
3. A step that fell back has succeeded, so it is no failure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from asyncflow._core.results import StepResult, StepStatus
from asyncflow._core.step_view import StepView

Step = TypeVar("Step", StepView, StepResult)


def failures(steps: Iterable[Step]) -> list[Step]:
    """Return the steps that failed, the first failure first, then cancelled ones with an error."""
    found = [
        step
        for step in steps
        if step.status is StepStatus.FAILED
        or (step.status is StepStatus.CANCELLED and step.error is not None)
    ]
    return sorted(found, key=lambda step: (step.status is StepStatus.CANCELLED, _ended_ms(step)))


def first_failure(steps: Iterable[Step]) -> Step | None:
    """Return the step that failed first, if one has failed."""
    first = next(iter(failures(steps)), None)
    return None if first is None or first.status is not StepStatus.FAILED else first


def fail_fast_reason(step: str) -> str:
    """Return why a run stops that fails fast, by the step that failed."""
    return f"step {step!r} failed and fail_fast is on"


def _ended_ms(step: StepView | StepResult) -> float:
    """Return when a step ended; 0 for a result of a step that failed before its first attempt."""
    if isinstance(step, StepView):
        return step.ended_ms or 0.0
    ended_ms = (step.started_ms or 0.0) + step.duration_ms
    # The duration of a step that ran in several segments leaves out what lies between.
    ends = (each.started_ms + each.duration_ms for each in step.recorded or ())
    of_items = map(_ended_ms, step.items or ())
    return max(ended_ms, *ends, *of_items) if step.recorded or step.items else ended_ms
