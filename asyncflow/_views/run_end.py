"""How a run ended, in a few words: the verdict, and the steps that did not succeed."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from asyncflow._core.results import StepStatus
from asyncflow._core.step_view import StepView
from asyncflow._views.event_text import took
from asyncflow._views.run_view import RunView

_COUNTED = (
    *(StepStatus.SUCCESS, StepStatus.FAILED, StepStatus.CANCELLED, StepStatus.SKIPPED),
    *(StepStatus.RUNNING, StepStatus.PENDING),
)
_WORDS = {StepStatus.SUCCESS: "succeeded"}


class LostSteps(NamedTuple):
    """Steps that did not run, or not to their end, for the same reason."""

    status: StepStatus
    reason: str
    names: list[str]


def verdict(view: RunView) -> str:
    """Return ``FAILED in 4.9 s: 15 succeeded, 1 failed, 4 skipped, 3 retried, 9 reused``."""
    counts = [
        f"{view.counts[status]:,} {_WORDS.get(status, status.lower())}"
        for status in _COUNTED
        if view.counts[status]
    ]
    if retried := retried_steps(view):
        counts.append(f"{retried:,} retried")
    if reused := sum(step.reused for step in view.steps.values()):
        counts.append(f"{reused:,} reused")
    spent = took(view.at_ms, view.at_ms + view.paused_ms)
    return f"{view.word} in {spent}: {', '.join(counts) or 'no steps'}"


def retried_steps(view: RunView) -> int:
    """Return how many steps had more than one attempt, or an item that had."""
    return sum(
        any(_is_retried(each) for each in (step, *(step.items or {}).values()))
        for step in view.steps.values()
    )


def _is_retried(step: StepView) -> bool:
    return len(step.attempts) - step.fresh_from > 1


def failed_steps(view: RunView) -> list[StepView]:
    """Return the steps that failed, the first failure first, then cancelled ones with an error."""
    steps = [
        step
        for step in view.steps.values()
        if step.status is StepStatus.FAILED
        or (step.status is StepStatus.CANCELLED and step.error is not None)
    ]
    return sorted(
        steps, key=lambda step: (step.status is not StepStatus.FAILED, step.ended_ms or 0.0)
    )


def lost_steps(view: RunView) -> list[LostSteps]:
    """Return the steps that were cancelled or skipped because of something else, by reason.

    Cancelled ones come first, then the reasons with the most steps. Steps that were skipped on
    purpose are not lost.
    """
    groups: dict[tuple[StepStatus, str], list[str]] = defaultdict(list)
    for name, step in view.steps.items():
        is_lost = step.status is StepStatus.CANCELLED and step.error is None
        if is_lost or (step.status is StepStatus.SKIPPED and not step.on_purpose):
            groups[step.status, step.reason or ""].append(name)
    lost = [LostSteps(status, reason, names) for (status, reason), names in groups.items()]
    return sorted(
        lost, key=lambda each: (each.status is not StepStatus.CANCELLED, -len(each.names))
    )
