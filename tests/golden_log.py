"""The events of one run in which nearly everything happens: every view is a fold over them."""

from __future__ import annotations

from asyncflow import StepTimeoutError
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    LoopBlocked,
    MapStarted,
    RunFinished,
    RunStarted,
    StepCancelled,
    StepFailed,
    StepSkipped,
    StepSucceeded,
    ThreadAbandoned,
)

__all__ = ["GOLDEN"]

_STOP = "step 'load' failed and fail_fast is on"

GOLDEN: list[Event] = [
    RunStarted(
        "golden",
        1_700_000_000.25,
        {
            "extract": (),
            "audit": (),
            "optional": (),
            "fetch": ("extract",),
            "load": ("fetch",),
            "index": ("fetch", "extract"),
            "report": ("load", "audit"),
            "notify": ("report",),
        },
        "nightly",
    ),
    StepSkipped("optional", 0.25, "its condition was not met", on_purpose=True),
    AttemptStarted("extract", 1, 0.5),
    AttemptStarted("audit", 1, 1.0, 0.5),
    AttemptFailed("extract", 1, 20.5, ConnectionError("no answer"), 100.0),
    LoopBlocked("audit", 1, 100.0, 150.0, "audit.py:7 in audit"),
    AttemptStarted("extract", 2, 120.5),
    StepSucceeded("extract", 2, 150.0, ["x", "y"]),
    ThreadAbandoned("audit", 1, 501.0),
    AttemptFailed("audit", 1, 501.0, StepTimeoutError("audit", 1, 500.0), 0.0),
    AttemptStarted("audit", 2, 900.0),
    StepSucceeded("audit", 2, 901.5, None),
    MapStarted("fetch", 902.0),
    AttemptStarted("fetch", 1, 902.0, item=0),
    AttemptStarted("fetch", 1, 905.0, 3.0, item=1),
    StepSucceeded("fetch", 1, 910.0, "X", item=0),
    StepSucceeded("fetch", 1, 930.0, "Y", item=1),
    StepSucceeded("fetch", 0, 930.0, ["X", "Y"]),
    AttemptStarted("load", 1, 931.0),
    AttemptStarted("index", 1, 931.0),
    StepFailed("load", 1, 940.125, ValueError("column 'price' is missing")),
    StepSkipped("report", 940.5, _STOP),
    StepSkipped("notify", 940.5, _STOP),
    StepCancelled("index", 1, 941.0, _STOP, None),
    RunFinished(941.5, "failed", _STOP),
]
