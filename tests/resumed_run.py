"""The events of runs that were resumed: what happened before must stay visible in every display."""

from __future__ import annotations

from asyncflow import RunStatus, StepStatus
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    RunFinished,
    RunResumed,
    RunStarted,
    StepFailed,
    StepReused,
    StepSkipped,
    StepSucceeded,
)

__all__ = ["OUTAGE", "PAUSE_S", "RESUMED", "crashed_often"]

DEPENDENCIES: dict[str, tuple[str, ...]] = {
    "extract": (),
    "load": ("extract",),
    "alert": ("load",),
    "publish": ("load",),
}
_MAX_RETRIES = {"extract": 1, "load": 2, "alert": 1, "publish": 1}
_START = 1_767_225_600.0  # 2026-01-01 00:00 UTC
PAUSE_S = 3 * 86_400.0
_STOP = "step 'load' failed and fail_fast is on"


def _with_traceback() -> ConnectionError:
    try:
        raise ConnectionError("the database is down")
    except ConnectionError as error:
        return error


OUTAGE = _with_traceback()

RESUMED: list[Event] = [
    RunStarted(
        "nightly",
        _START,
        DEPENDENCIES,
        "nightly import",
        max_retries=_MAX_RETRIES,
        process="one:11",
    ),
    AttemptStarted("extract", 1, 0.0),
    StepSucceeded("extract", 1, 400.0, 3),
    AttemptStarted("load", 1, 400.0),
    AttemptFailed("load", 1, 600.0, TimeoutError("no connection"), 100.0),
    AttemptStarted("load", 2, 700.0),
    StepFailed("load", 2, 1000.0, OUTAGE),
    AttemptStarted("alert", 1, 1000.0),
    StepSkipped("publish", 1000.0, _STOP),
    StepSucceeded("alert", 1, 1200.0, None),
    RunFinished(1200.0, RunStatus.FAILED, _STOP),
    # It is resumed three days later, once the database is up again.
    RunResumed(
        "nightly",
        1200.0,
        _START + 1.2 + PAUSE_S,
        DEPENDENCIES,
        {},
        unfinished={"load": "it had failed"},
        afresh=True,
        pipeline="nightly import",
        max_retries=_MAX_RETRIES,
        process="two:22",
    ),
    StepReused("extract", 1200.0),
    AttemptStarted("load", 1, 1200.0),
    StepSucceeded("load", 1, 1700.0, None),
    StepSkipped("alert", 1700.0, "no dependency failed", by_condition=True),
    AttemptStarted("publish", 1, 1700.0),
    StepSucceeded("publish", 1, 2000.0, None),
    RunFinished(2000.0, RunStatus.PASSED),
]
"""The run fails, an alert is sent, and it is resumed three days later, when ``load`` succeeds."""


def crashed_often(times: int) -> list[Event]:
    """Return the events of a run whose only other step kills its process, again and again."""
    dependencies = {"fetch": (), "train": ("fetch",)}
    most = {"fetch": 1, "train": times + 1}
    events: list[Event] = [
        RunStarted("training", _START, dependencies, max_retries=most),
        AttemptStarted("fetch", 1, 0.0),
        StepSucceeded("fetch", 1, 100.0, None),
    ]
    at_ms, wall_time = 100.0, _START + 0.1
    for number in range(1, times + 1):
        events.append(AttemptStarted("train", number, at_ms))
        at_ms, wall_time = at_ms + 100.0, wall_time + 60.1
        why = {"train": "it had not finished"}
        events += [
            AttemptFailed("train", number, at_ms, ValueError("not converging"), 10.0)
            for _ in range(number % 2)
        ]
        events += [
            RunResumed(
                "training", at_ms, wall_time, dependencies, {}, unfinished=why, max_retries=most
            ),
            StepReused("fetch", at_ms, status=StepStatus.SUCCESS),
        ]
    return [
        *events,
        AttemptStarted("train", times + 1, at_ms),
        StepSucceeded("train", times + 1, at_ms + 100.0, None),
        RunFinished(at_ms + 100.0, RunStatus.PASSED),
    ]
