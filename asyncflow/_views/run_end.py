"""How a run ended, in a few words: the verdict, and the steps that did not succeed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from asyncflow._core.analysis.looks import WAITS_LOOK
from asyncflow._core.analysis.slowness import Slower
from asyncflow._core.history.results import (
    StepStatus,
    has_fallen_back,
)
from asyncflow._core.history.step_view import StepView
from asyncflow._core.text import escape_controls, plural
from asyncflow._views.event_text import took
from asyncflow._views.progress import left_text
from asyncflow._views.run_view import RunView
from asyncflow._views.slowness import slowness_text

_MOST_NAMES = 3


class LostSteps(NamedTuple):
    """Steps that did not run, or not to their end, for the same reason."""

    status: StepStatus
    reason: str
    names: list[str]


def verdict(
    view: RunView,
    now_ms: float | None = None,
    *,
    has_died: bool = False,
    slower: Slower | None = None,
    usual_ms: float | None = None,
) -> str:
    """Return ``FAILED in 4.9 s: 15 succeeded, 1 failed, 1 retried (load), 9 reused``.

    A run that was resumed says also which steps of earlier processes it ran again.

    ``now_ms`` is the present of a run that has not ended, by default its latest event, and
    ``has_died`` says whether its process is gone, which no event tells. ``slower`` is there if it
    was slower than usual: ``PASSED in 2.3 s (usually 1.7 s: train +600 ms): 9 succeeded``.
    ``usual_ms`` is how long it usually takes, by which one that is running says what is left.
    """
    waiting = [step.name for step in view.waiting]
    counts = [
        f"{count:,} {look.said}{f' ({_names(waiting)})' if look is WAITS_LOOK else ''}"
        for look, count in view.looks(has_died=has_died)
    ]
    if retried := retried_steps(view):
        counts.append(f"{len(retried):,} retried ({_names(retried)})")
    endured = [*endured_steps(view)]
    if tolerated := sum(step.tally[StepStatus.FAILED] for step in endured):
        counts.append(f"{plural(tolerated, 'item')} failed, tolerated")
    if fell_back := sum(map(has_fallen_back, _with_items(endured))):
        counts.append(f"{fell_back:,} fell back")
    if reused := sum(step.reused for step in view.steps.values()):
        counts.append(f"{reused:,} reused")
    if again := again_steps(view):
        counts.append(f"{len(again):,} ran again ({_names(again)})")
    said = ", ".join(counts) or "no steps"
    if view.is_queued:
        return f"{view.word}: {said}"
    ran_ms = view.at_ms if now_ms is None else now_ms
    spent = took(ran_ms, ran_ms + view.paused_ms)
    spent += f" ({slowness_text(slower)})" if slower is not None else ""
    if view.is_running and not has_died and not view.rerun_of:  # which runs only a part
        spent = ", ".join(filter(None, [spent, left_text(usual_ms, ran_ms)]))
    if has_died:
        return f"ORPHANED after {spent}: {said}"
    return f"{view.word} {'for' if view.is_running else 'in'} {spent}: {said}"


def _names(steps: Sequence[str]) -> str:
    names = [escape_controls(name) for name in steps[:_MOST_NAMES]]
    more = [f"{len(steps) - len(names):,} more"] if len(steps) > len(names) else []
    return ", ".join([*names, *more])


def again_steps(view: RunView) -> list[str]:
    """Return the names of the steps that a resumed run, or a rerun, has run again."""
    return [
        name
        for name, step in view.steps.items()
        if step.rerun_reason and not step.reused and step.active and not step.ran_before
    ]


def retried_steps(view: RunView) -> list[str]:
    """Return the names of the steps that `is_retried` holds for."""
    return [name for name, step in view.steps.items() if is_retried(step)]


def is_retried(step: StepView) -> bool:
    """Whether a step has passed, or runs, after an attempt that failed, or an item of it has.

    One that failed for good all the same, or fell back, is not retried: it has failed.
    """
    return step.error is None and any(
        each.error is None and each.retries > 0 for each in _with_items([step])
    )


def endured_steps(view: RunView) -> Iterator[StepView]:
    """Yield the steps that succeeded although they, or items of them, failed."""
    for step in view.steps.values():
        if step.status is StepStatus.SUCCESS and (
            step.tally[StepStatus.FAILED] or any(map(has_fallen_back, _with_items([step])))
        ):
            yield step


def _with_items(steps: Iterable[StepView]) -> Iterator[StepView]:
    for step in steps:
        yield step
        yield from (step.items or {}).values()


def lost_steps(view: RunView) -> list[LostSteps]:
    """Return the steps that were cancelled or skipped because of something else, by reason.

    Cancelled ones come first, then the reasons with the most steps. Steps that were skipped on
    purpose are not lost.
    """
    groups: dict[tuple[StepStatus, str], list[str]] = defaultdict(list)
    for name, step in view.steps.items():
        is_lost = step.status is StepStatus.CANCELLED and step.error is None
        if is_lost or (step.status is StepStatus.SKIPPED and not step.by_condition):
            groups[step.status, step.reason or ""].append(name)
    lost = [LostSteps(status, reason, names) for (status, reason), names in groups.items()]
    return sorted(
        lost, key=lambda each: (each.status is not StepStatus.CANCELLED, -len(each.names))
    )
