"""Every event reads as one line of plain English, whatever the names of steps and errors."""

from __future__ import annotations

import typing
from types import UnionType
from typing import Any

import pytest

from asyncflow import RunStatus, StepStatus
from asyncflow._core.errors import RestoredError
from asyncflow._core.text import duration
from asyncflow._views.event_text import describe_event, subject
from asyncflow.events import (
    AttemptBegan,
    AttemptFailed,
    AttemptLocated,
    AttemptStarted,
    Event,
    LoopBlocked,
    MapStarted,
    PoolPaused,
    ResultReused,
    RunFinished,
    RunInterrupted,
    RunResumed,
    RunStarted,
    RunTimedOut,
    SignalReceived,
    StepAttached,
    StepCalled,
    StepCancelled,
    StepFailed,
    StepLogged,
    StepProgressed,
    StepReused,
    StepSkipped,
    StepStreamed,
    StepSucceeded,
    StepWaiting,
    ThreadAbandoned,
)

FAILED, SKIPPED, CANCELLED = StepStatus.FAILED, StepStatus.SKIPPED, StepStatus.CANCELLED
ONE, TWO = {"a": ()}, {"a": (), "b": ("a",)}
NO = ValueError("no\nand more")
FAIL_FAST = "step 'a' failed and fail_fast is on"

LINES: list[tuple[Event, int | None, str]] = [
    (RunStarted("r1", 0.0, ONE), None, "run r1 started: 1 step"),
    (RunStarted("r1", 0.0, TWO, "etl"), None, "run r1 of etl started: 2 steps"),
    (
        RunStarted("r1", 0.0, TWO, rerun_of="r0"),
        None,
        "run r1 started as a rerun of run r0: 2 steps",
    ),
    (RunResumed("r1", 5.0, 0.0, TWO, {}), None, "run r1 resumed: 2 steps"),
    (RunResumed("r1", 5.0, 0.0, TWO, {}, pipeline="etl"), None, "run r1 of etl resumed: 2 steps"),
    (
        RunResumed("r1", 5.0, 0.0, TWO, {}, {"a": "its version is another"}, {"b": "x"}),
        None,
        "run r1 resumed: 2 steps, 2 of which run again",
    ),
    (
        RunInterrupted(5.0, "the caller was cancelled"),
        None,
        "the run stops because the caller was cancelled",
    ),
    (PoolPaused(5.0, 2_005.0), None, "a pool is paused for 2.0 s"),
    (PoolPaused(5.0, 65.0, "api", "ask[3]"), None, "pool api is paused by ask[3] for 60 ms"),
    (RunTimedOut(5.0, 1500), None, "the run stops because it exceeded its deadline of 1.5 s"),
    (RunFinished(5.0, RunStatus.PASSED), None, "the run passed after 5 ms"),
    (
        RunFinished(5.0, RunStatus.FAILED, FAIL_FAST),
        None,
        f"the run failed after 5 ms: {FAIL_FAST}",
    ),
    (RunFinished(5.0, RunStatus.WAITING), None, "the run waits after 5 ms"),
    (
        RunFinished(5.0, RunStatus.INTERRUPTED, "the caller was cancelled"),
        None,
        "the run was interrupted after 5 ms: the caller was cancelled",
    ),
    (AttemptStarted("a", 1, 5.0), None, "a started"),
    (AttemptStarted("a", 1, 5.0), 1, "a started"),
    (AttemptStarted("a", 1, 5.0), 3, "a: attempt 1 of 3 started"),
    (AttemptStarted("a", 2, 5.0), None, "a: attempt 2 started"),
    (AttemptStarted("a", 2, 5.0), 3, "a: attempt 2 of 3 started"),
    (AttemptStarted("a", 1, 5.0, 0.4), 1, "a started"),
    (AttemptStarted("a", 1, 5.0, 40.0, 7), 1, "a[7] started after 40 ms in the queue"),
    (
        AttemptFailed("a", 1, 5.0, NO, 100.0),
        3,
        "a: attempt 1 of 3 failed, retrying in 100 ms: ValueError: no",
    ),
    (
        AttemptFailed("a", 1, 5.0, NO, 0.0, 2),
        None,
        "a[2]: attempt 1 failed, retrying at once: ValueError: no",
    ),
    (MapStarted("a", 5.0), None, "a started mapping its items"),
    (MapStarted("a", 5.0, 1), None, "a started mapping 1 item"),
    (MapStarted("a", 5.0, 12_000), None, "a started mapping 12,000 items"),
    (StepWaiting("a", 5.0, 1e9), None, "a waits for a signal"),
    (SignalReceived("a", 5.0, 1e9), None, "a was answered"),
    (SignalReceived("a", 5.0, 1e9, "Zoë"), None, "a was answered by Zoë"),
    (SignalReceived("a", 5.0, 1e9, "Zoë", "fine\nsee 4711"), None, "a was answered by Zoë: fine …"),
    (StepWaiting("a", 5.0, 1e9, 1500.0), None, "a waits for a signal, for 1.5 s at most"),
    (
        StepWaiting("a", 5.0, 1e9, refused="'no' is no bool"),
        None,
        "a waits for a signal: 'no' is no bool",
    ),
    (StepSucceeded("a", 1, 5.0, "secret"), None, "a succeeded"),
    (StepSucceeded("a", 2, 5.0, "secret"), 3, "a succeeded in attempt 2 of 3"),
    (StepSucceeded("a", 0, 5.0, ["secret"]), 3, "a succeeded"),
    (
        StepSucceeded("a", 2, 5.0, "secret", 4, error=OSError("gone")),
        3,
        "a[4] failed in attempt 2 of 3 and fell back: OSError: gone",
    ),
    (StepFailed("a", 1, 5.0, NO, 3), None, "a[3] failed: ValueError: no"),
    (StepFailed("a", 3, 5.0, NO), 3, "a failed in attempt 3 of 3: ValueError: no"),
    (
        StepFailed("a", 1, 5.0, RestoredError("package.Odd", "gone")),
        None,
        "a failed: Odd: gone",
    ),
    (StepCancelled("a", 1, 5.0, FAIL_FAST, None), None, f"a cancelled: {FAIL_FAST}"),
    (
        StepCancelled("a", 2, 5.0, FAIL_FAST, NO),
        None,
        f"a cancelled in attempt 2: {FAIL_FAST} (ValueError: no)",
    ),
    (
        StepSkipped("b", 5.0, "it depends on step 'a', which failed"),
        None,
        "b skipped: it depends on step 'a', which failed",
    ),
    (StepReused("a", 5.0, 4), None, "a[4] reused"),
    (StepReused("a", 5.0, origin="r0"), None, "a reused from run r0"),
    (
        ResultReused("a", 0.0, "r0", 2, 1500.0, None, 4),
        None,
        "a[4] reused from run r0: 2 attempts, 1.5 s",
    ),
    (
        ResultReused("a", 0.0, "r0", 0, 1500.0, None, items=3),
        None,
        "a reused from run r0: 3 items, 1.5 s",
    ),
    (StepReused("a", 5.0, None, FAILED), None, "a not run again: it failed before"),
    (StepReused("a", 5.0, None, SKIPPED), None, "a not run again: it was skipped before"),
    (StepReused("a", 5.0, None, CANCELLED), None, "a not run again: it was cancelled before"),
    (AttemptStarted("a", 1, 5.0, engine="dask"), None, "a submitted to dask"),
    (AttemptStarted("a", 2, 5.0, engine="dask"), 3, "a: attempt 2 of 3 submitted to dask"),
    (AttemptBegan("a", 1, 5.0, "dask", "w1"), None, "a began on dask, worker w1"),
    (AttemptBegan("a", 2, 5.0, "ray", "", 3), 3, "a[3]: attempt 2 of 3 began on ray"),
    (AttemptLocated("a", 1, 5.0, "executor", "h:7"), None, "a ran on executor, worker h:7"),
    (AttemptLocated("a", 2, 5.0, "x", "h:7", 3), 3, "a[3]: attempt 2 of 3 ran on x, worker h:7"),
    (
        ThreadAbandoned("a", 1, 5.0),
        3,
        "a: the thread of attempt 1 of 3 can't be stopped and keeps running",
    ),
    (
        LoopBlocked("a", 1, 5.0, 350.0, "etl.py:12 in load"),
        None,
        "a blocked the event loop for 350 ms at etl.py:12 in load",
    ),
    (StepLogged("a", 1, 5.0, 20, "db", "3 rows"), None, "a: INFO 3 rows"),
    (StepLogged("a", 2, 5.0, 25, "db", "no\nand more", 3), 3, "a[3]: level 25 no …"),
    (StepProgressed("a", 1, 5.0, 1200, 3000, "rows"), None, "a: 1,200 of 3,000 rows"),
    (StepProgressed("a", 1, 5.0, 0.5), None, "a: 0.5"),
    (
        StepAttached("a", 1, 5.0, "loss", "image/png", b"..."),
        None,
        "a attached loss (image/png)",
    ),
    (StepStreamed("a", 1, 5.0, 1, 2, b"[1,2]"), None, "a streamed 2 values"),
    (StepCalled("a", 1, 5.0, "ask-3", 1_250.0, 64), None, "a called ask-3 (1.2 s)"),
]


def all_events() -> set[type]:
    return {kind for kind in typing.get_args(Event) if not isinstance(kind, UnionType)}


@pytest.mark.parametrize(("event", "attempts", "line"), LINES)
def test_an_event_has_this_description(event: Event, attempts: int | None, line: str) -> None:
    assert describe_event(event, attempts) == line


def test_every_event_has_a_description() -> None:
    assert {type(event) for event, _, _ in LINES} == all_events()


ENUMS = {"outcome", "status"}
NASTY = "a\n\x1b[2J\u202eb\ud800"


def hostile(event: Any) -> Any:
    """Return the event with texts that would corrupt a terminal or a log."""
    values = {}
    for name in event.__slots__:
        value = getattr(event, name)
        values[name] = NASTY if isinstance(value, str) and name not in ENUMS else value
    return type(event)(**values)


@pytest.mark.parametrize("kind", sorted(all_events(), key=lambda kind: kind.__name__))
def test_a_description_is_one_line_whatever_its_values(kind: type) -> None:
    event = hostile(next(event for event, _, _ in LINES if type(event) is kind))

    line = describe_event(event)

    assert not {"\n", "\x1b", "\u202e", "\ud800"} & set(line)
    assert "\\n\\x1b[2J" in line or kind in {RunTimedOut, RunFinished}


@pytest.mark.parametrize("error", [ValueError("a\x1b[2J"), type("Bad\n", (Exception,), {})()])
def test_an_error_cannot_break_the_line(error: Exception) -> None:
    assert "\x1b" not in describe_event(StepFailed("a", 1, 0.0, error))
    assert "\n" not in describe_event(StepFailed("a", 1, 0.0, error))


def test_a_subject_is_a_step_an_item_or_the_run() -> None:
    assert subject(StepReused("fetch", 0.0)) == "fetch"
    assert subject(StepReused("fetch\n", 0.0, 3)) == "fetch\\n[3]"
    assert subject(RunTimedOut(0.0, 1.0)) == "the run"


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0.0, "0 ms"),
        (0.2149, "0.2 ms"),
        (0.96, "1 ms"),
        (12.4, "12 ms"),
        (999.4, "999 ms"),
        (999.6, "1.0 s"),
        (1_540, "1.5 s"),
        (59_940, "59.9 s"),
        (59_960, "1 min 0 s"),
        (125_000, "2 min 5 s"),
        (3_599_400, "59 min 59 s"),
        (3_599_600, "1 h 0 min"),
        (7_500_000, "2 h 5 min"),
    ],
)
def test_a_duration_has_a_readable_unit(ms: float, text: str) -> None:
    assert duration(ms) == text
