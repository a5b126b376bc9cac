"""How long a run usually takes, and which of its steps took longer this time, in words."""

from __future__ import annotations

from collections.abc import Mapping

from asyncflow._core.analysis.slowness import Slower, is_comparable, is_slower, slower_of
from asyncflow._core.history.results import StepStatus
from asyncflow._core.text import duration, escape_controls, plural
from asyncflow._views.run_view import RunView

_MOST_NAMED = 2


def slowness_of(
    view: RunView, usual_ms: float | None, usual_steps_ms: Mapping[str, float]
) -> Slower | None:
    """Return what made a run slower than usual, of the steps that decided when it ended.

    ``None`` if it was not, or if that can't be told: without ``usual_ms``, of a run that has not
    passed, and of a rerun.
    """
    if usual_ms is None or not is_comparable(view.status, view.rerun_of):
        return None
    if not is_slower(view.at_ms, usual_ms):
        return None
    path = [view.steps[name] for name in view.critical_path(view.at_ms)]
    ran = [step for step in path if step.status is StepStatus.SUCCESS and not step.reused]
    took = {step.name: step.duration_ms(view.at_ms) for step in ran}
    return slower_of(usual_ms, took, usual_steps_ms)


def slowness_text(slower: Slower | None) -> str:
    """Return ``usually 1.7 s: train_forecast +600 ms``; empty for what was not slower."""
    if slower is None:
        return ""
    named = slower.steps[:_MOST_NAMED]
    parts = [f"{escape_controls(name)} +{duration(more_ms)}" for name, more_ms in named]
    if left := len(slower.steps) - len(named):
        parts.append(plural(left, "more step"))
    where = f": {', '.join(parts)}" if parts else ""
    return f"usually {duration(slower.usual_ms)}{where}"
