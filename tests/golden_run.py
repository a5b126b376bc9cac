"""The golden run: the events of a run in which everything happens that a view must show.

Its process dies after 4 seconds, and another one resumes it an hour later. All six statuses occur
while it runs, and five at its end. One step has three attempts with two backoffs between them.
"""

from __future__ import annotations

from dataclasses import replace

from asyncflow import RestoredOutput, RunReport, RunStatus, StepStatus, StepTimeoutError
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.results import REDACTED
from asyncflow._core.history.stored_report import report_from
from asyncflow.events import (
    AttemptBegan,
    AttemptFailed,
    AttemptStarted,
    Event,
    LoopBlocked,
    MapStarted,
    RunFinished,
    RunResumed,
    RunStarted,
    StepCancelled,
    StepFailed,
    StepReused,
    StepSkipped,
    StepSucceeded,
    ThreadAbandoned,
)

__all__ = [
    "EVENTS_BEFORE_CRASH",
    "GOLDEN",
    "HOSTILE",
    "LONG",
    "SECRET",
    "WALL_TIME",
    "golden_report",
]

WALL_TIME = 1_767_225_600.0  # 2026-01-01 00:00 UTC
HOSTILE = "<script>alert('step')</script>"
LONG = "normalise_customer_addresses_against_the_national_register_v2"
SECRET = "hunter2"

DEPENDENCIES = {
    "extract": (),
    "rates": (),
    "token": (),
    "archive": (),
    "validate": ("extract",),
    LONG: ("extract", "rates"),
    "fetch": ("validate",),
    "index": ("validate",),
    HOSTILE: ("validate", LONG),
    "load": ("fetch", HOSTILE),
    "notify": ("load",),
    "tidy": ("token", "archive", "index", "notify"),  # a clean-up step
}
MAX_RETRIES = {**dict.fromkeys(DEPENDENCIES, 1), "rates": 3, "fetch": 2, LONG: 2, HOSTILE: 2}

_NETWORK = ConnectionError("the server of the rates closed the connection")
_MARKUP = ValueError("</pre><script>alert('error')</script> & more\nin a second line")
_TOO_LATE = StepTimeoutError("fetch[2]", 1, 800.0, "attempt")
_STOP = f"step {HOSTILE!r} failed and fail_fast is on"


def _with_traceback(error: Exception) -> Exception:
    try:
        raise error
    except Exception as raised:
        return raised


GOLDEN: list[Event] = [
    RunStarted(
        "nightly-2026-01-01",
        WALL_TIME,
        DEPENDENCIES,
        "nightly import",
        inputs={
            "url": "https://example.org/?q=<b>&x=1",
            "password": RestoredOutput("redacted"),
        },
        max_retries=MAX_RETRIES,
        secret=("token",),
    ),
    AttemptStarted("extract", 1, 0.5),
    AttemptStarted("rates", 1, 0.6),
    AttemptStarted("token", 1, 250.0, queued_ms=249.0),
    StepSucceeded("token", 1, 300.0, SECRET),
    StepSkipped("archive", 301.0, "its condition was false", by_condition=True),
    AttemptFailed("rates", 1, 400.0, _NETWORK, 500.0),
    StepSucceeded("extract", 1, 900.0, {"rows": 3, "html": "<script>alert('output')</script>"}),
    AttemptStarted("rates", 2, 1000.0, queued_ms=100.0),
    AttemptFailed("rates", 2, 1400.0, _NETWORK, 1000.0),
    AttemptStarted("rates", 3, 2400.0),
    StepSucceeded("rates", 3, 2600.0, [1.07, 0.84]),
    AttemptStarted("validate", 1, 2600.5),
    AttemptStarted(LONG, 1, 2600.6),
    LoopBlocked("validate", 1, 2900.0, 180.0, "validate.py:12 in check"),
    StepSucceeded("validate", 1, 3000.0, None),
    AttemptStarted("index", 1, 3000.4, engine="dask"),
    AttemptBegan("index", 1, 3000.5, "dask", "tcp://10.0.0.7:40001"),
    StepSucceeded("index", 1, 3000.9, ""),
    # The process dies here, while the step with the long name is running.
    RunResumed(
        "nightly-2026-01-01",
        4000.0,
        WALL_TIME + 3600.0,
        DEPENDENCIES,
        {},
        unfinished={LONG: "it had not finished"},
        pipeline="nightly import",
        max_retries=MAX_RETRIES,
        secret=("token",),
    ),
    *(StepReused(name, 4001.0) for name in ("extract", "rates", "token", "validate", "index")),
    StepReused("archive", 4001.0, status=StepStatus.SKIPPED),
    AttemptStarted(LONG, 2, 4002.0),
    MapStarted("fetch", 4002.0, 4),
    AttemptStarted("fetch", 1, 4002.5, item=0),
    AttemptStarted("fetch", 1, 4002.6, item=1),
    AttemptStarted("fetch", 1, 4002.7, item=2),
    StepSucceeded("fetch", 1, 4200.0, "page 0", item=0),
    AttemptStarted("fetch", 1, 4201.0, queued_ms=198.0, item=3),
    StepSucceeded(LONG, 2, 4500.0, 17),
    AttemptStarted(HOSTILE, 1, 4501.0),
    AttemptFailed(HOSTILE, 1, 4600.0, _MARKUP, 100.0),
    AttemptStarted(HOSTILE, 2, 4700.0),
    ThreadAbandoned("fetch", 1, 4802.6, item=2),
    AttemptFailed("fetch", 1, 4802.7, _TOO_LATE, 3000.0, item=2),
    StepFailed(HOSTILE, 2, 4900.0, _with_traceback(_MARKUP)),
    StepSkipped("load", 4900.5, _STOP),
    StepSkipped("notify", 4900.5, _STOP),
    StepCancelled("fetch", 1, 4901.0, _STOP, None, item=1),
    StepCancelled("fetch", 1, 4901.1, _STOP, _TOO_LATE, item=2),
    StepCancelled("fetch", 1, 4902.0, _STOP, RuntimeError("could not clean up"), item=3),
    StepCancelled("fetch", 0, 4902.5, _STOP, None),
    AttemptStarted("tidy", 1, 4903.0),
    StepSucceeded("tidy", 1, 5000.0, {"files": ["a.tmp"] * 3}),
    RunFinished(5000.5, RunStatus.FAILED, _STOP),
]
"""The events of the run, in order."""

EVENTS_BEFORE_CRASH = next(at for at, event in enumerate(GOLDEN) if isinstance(event, RunResumed))
"""How many events the first process emitted before it died."""


def golden_report(count: int = len(GOLDEN)) -> RunReport:
    """Return the report that a journal has of the first events, without the secret output."""
    stored = [
        replace(event, output=REDACTED)
        if isinstance(event, StepSucceeded) and event.output == SECRET
        else event
        for event in GOLDEN[:count]
    ]
    return report_from(StoredRun.with_log(stored), lambda step, payload: payload)
