"""The events of a mapped step of which few attempts fail, as timelines must show in proportion."""

from __future__ import annotations

from asyncflow import RunStatus
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    MapStarted,
    RunFinished,
    RunStarted,
    StepFailed,
    StepSucceeded,
)

__all__ = ["mapped_run"]

_LANES = 10


def mapped_run(failing: int, *, retried: bool, items: int = 200) -> list[Event]:
    """Return the events of a run whose only step, ``fetch``, goes through its items, ten at a time.

    Each item takes 100 ms. A failing one fails after 20 ms.

    Args:
        failing: How many items fail in their first attempt, at regular intervals.
        retried: Whether they succeed in a second attempt, or stay failed.
        items: How many items there are.
    """
    events: list[Event] = [RunStarted("r", 0.0, {"fetch": ()}), MapStarted("fetch", 0.0, items)]
    timed: list[tuple[float, Event]] = []
    every = items // failing
    for item in range(items):
        at_ms = item // _LANES * 100.0
        end_ms = at_ms + 99.0
        timed.append((at_ms, AttemptStarted("fetch", 1, at_ms, item=item)))
        if item % every or item // every >= failing:
            timed.append((end_ms, StepSucceeded("fetch", 1, end_ms, None, item=item)))
            continue
        error, failed_ms = ConnectionError("reset by peer"), at_ms + 20.0
        if not retried:
            timed.append((failed_ms, StepFailed("fetch", 1, failed_ms, error, item=item)))
            continue
        again_ms = failed_ms + 5.0
        timed += [
            (failed_ms, AttemptFailed("fetch", 1, failed_ms, error, 5.0, item=item)),
            (again_ms, AttemptStarted("fetch", 2, again_ms, item=item)),
            (end_ms, StepSucceeded("fetch", 2, end_ms, None, item=item)),
        ]
    events += [event for _, event in sorted(timed, key=lambda each: each[0])]
    at_ms = items / _LANES * 100.0
    if retried:
        return [
            *events,
            StepSucceeded("fetch", 0, at_ms, None),
            RunFinished(at_ms, RunStatus.PASSED),
        ]
    failed = StepFailed("fetch", 0, at_ms, ConnectionError("some items failed"))
    return [*events, failed, RunFinished(at_ms, RunStatus.FAILED)]
