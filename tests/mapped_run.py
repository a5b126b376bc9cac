"""The events of runs with mapped steps: one of which few attempts fail, and a chain of two."""

from __future__ import annotations

from operator import itemgetter

from asyncflow import RunStatus
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    MapStarted,
    RunFinished,
    RunStarted,
    StepFailed,
    StepSkipped,
    StepSucceeded,
)

__all__ = ["chain_run", "mapped_run"]

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


def chain_run(parsed_at: float = 3.0) -> list[Event]:
    """Return the events of a run in which one of two items of ``fetch`` goes on to ``parse``.

    ``fetch`` ends after 9 ms, and ``parse`` begins at the given time.
    """
    error, why = OSError("gone"), "item 1 of step 'fetch' failed"
    timed: list[tuple[float, Event]] = [
        (0.0, AttemptStarted("urls", 1, 0.0)),
        (1.0, StepSucceeded("urls", 1, 1.0, None)),
        (1.0, MapStarted("fetch", 1.0, 2)),
        *((1.0, AttemptStarted("fetch", 1, 1.0, item=item)) for item in (0, 1)),
        (3.0, StepSucceeded("fetch", 1, 3.0, None, item=0)),
        (9.0, StepFailed("fetch", 1, 9.0, error, item=1)),
        (9.0, StepSucceeded("fetch", 0, 9.0, None)),
        (parsed_at, MapStarted("parse", parsed_at, 2)),
        (parsed_at, AttemptStarted("parse", 1, parsed_at, item=0)),
        (12.0, StepSkipped("parse", 12.0, why, item=1)),
        (12.0, StepSucceeded("parse", 1, 12.0, None, item=0)),
        (12.0, StepSucceeded("parse", 0, 12.0, None)),
        (12.0, RunFinished(12.0, RunStatus.PASSED)),
    ]
    steps = {"urls": (), "fetch": ("urls",), "parse": ("urls", "fetch")}
    return [RunStarted("r", 0.0, steps), *(event for _, event in sorted(timed, key=itemgetter(0)))]
