"""The critical path of a run: the chain of steps that decided when it ended.

Rules:

1. It is read backwards from the step that ended last; of several, from the last in topological
   order.
2. A step started because another one ended: the last of its dependencies, or later the last step of
   the tier before, or one that held a slot. So before a step comes the one that ended last until it
   started.
3. A dependency goes before any other step that ended at about the same time.
4. A step that takes its items one by one starts before the step that they come from has ended. That
   one comes before it.
5. Before a step that was cancelled comes the failure that stopped the run, if it ran then.
6. A step that waits for a signal is one that runs from its turn on, until it takes what was sent:
   the path is that of the span of the run, pauses included.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from asyncflow._core.history.results import SignalWait, StepResult, StepStatus

_SAME_MS = 1e-6
"""By how much a sum of times may differ from the time that it stands for."""
_CLOSE_MS = 1.0
"""Within which time an event loop starts what may start."""


class StepTime(NamedTuple):
    """When a step ran, in milliseconds since the run started."""

    name: str
    started_ms: float
    ended_ms: float
    depends_on: tuple[str, ...]
    status: StepStatus


class _WithWait(Protocol):
    @property
    def status(self) -> StepStatus: ...
    @property
    def wait(self) -> SignalWait | None: ...


def time_of_wait(step: _WithWait) -> tuple[float, float] | None:
    """Return from when to when a step has waited for its signal.

    ``None`` if it did not, or was skipped meanwhile: the wait of such a step decided nothing. One
    that goes on ends after all else, since nothing else is left to do when the run pauses.
    """
    if step.wait is None or step.status is StepStatus.SKIPPED:
        return None
    started_ms, ended_ms, _ = step.wait
    return started_ms, math.inf if ended_ms is None else ended_ms


def time_of(result: StepResult, *, was_resumed: bool) -> StepTime | None:
    """Return when a step ran, from its first start to its last end; None if it did not."""
    started_ms = result.started_ms
    if started_ms is None:
        times = time_of_wait(result)
        return times and StepTime(result.step_name, *times, result.depends_on, result.status)
    ended_ms = started_ms + result.duration_ms
    if was_resumed:  # then its duration is that of several times
        attempts = [each for one in (result, *(result.items or ())) for each in one.history]
        ends = [each.started_ms + each.duration_ms for each in attempts]
        ended_ms = max(ends, default=ended_ms)
    return StepTime(result.step_name, started_ms, ended_ms, result.depends_on, result.status)


def critical_path(times: Iterable[StepTime]) -> list[str]:
    """Return the names of the steps along the path, in their order.

    ``times`` are those of the steps that have started or waited, in topological order.
    """
    by_end = sorted(times, key=lambda step: step.ended_ms)
    ends = [step.ended_ms for step in by_end]
    by_name = {step.name: step for step in by_end}
    failure = next((each for each in by_end if each.status is StepStatus.FAILED), None)
    path: dict[str, None] = {}
    step = by_end[-1] if by_end else None
    while step is not None:
        path[step.name] = None
        if (
            failure is not None
            and failure.name not in path
            and step.status is StepStatus.CANCELLED
            and step.started_ms < failure.ended_ms <= step.ended_ms
        ):
            if step.ended_ms <= failure.ended_ms + _CLOSE_MS:
                del path[step.name]  # its clean-up took no time
            step = failure
            continue
        needed = [by_name[name] for name in step.depends_on if name in by_name and name not in path]
        latest = max(needed, key=lambda each: each.ended_ms, default=None)
        if latest is not None and latest.ended_ms > step.started_ms - _CLOSE_MS:
            step = latest
            continue
        at = bisect_right(ends, step.started_ms + _SAME_MS) - 1
        while at >= 0 and (by_end[at].name in path or by_end[at].started_ms >= step.started_ms):
            at -= 1  # it took no time
        other = by_end[at] if at >= 0 else None
        is_other = other is not None and (
            latest is None or other.ended_ms > latest.ended_ms + _CLOSE_MS
        )
        step = other if is_other else latest
    return [*path][::-1]
