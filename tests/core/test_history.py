"""What a history keeps of the items of steps with ``keep_outputs=False``."""

from __future__ import annotations

import pytest

from asyncflow import StepStatus
from asyncflow._core.history.log import History, LogEntry
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    LoopBlocked,
    MapStarted,
    RunFinished,
    RunStarted,
    StepSucceeded,
)

BEGIN = [RunStarted("r", 0.0, {"m": ()}), MapStarted("m", 0.0, 1, keeps_outputs=False)]
STARTED = AttemptStarted("m", 1, 1.0, 0.5, item=0)
SUCCEEDED = StepSucceeded("m", 1, 4.0, "done", item=0)
BLOCKED = LoopBlocked("m", 1, 2.0, 150.0, "etl.py:3 in act", item=0)
BLOCKED_LATE = LoopBlocked("m", 1, 5.0, 120.0, "etl.py:3 in act", item=0)


def history_of(*entries: LogEntry) -> History:
    history = History(None, frozenset({"m"}))
    for entry in (*BEGIN, *entries):
        history.append(entry)
    return history


def kept(history: History) -> list[Event]:
    return list(history.events())[len(BEGIN) :]


@pytest.mark.parametrize("is_plain", [True, False])
def test_an_item_that_succeeds_at_once_is_counted_and_leaves_no_entry(is_plain: bool) -> None:
    started = ("m", 1, 1.0, 0.5, 0)
    history = history_of(*([started, (started, 4.0, "done")] if is_plain else [STARTED, SUCCEEDED]))

    assert kept(history) == []
    left_out = history.left_out["m"]
    assert (left_out.count, left_out.queued_ms) == (1, 0.5)
    assert (left_out.started_ms, left_out.latest_ms) == (1.0, 4.0)


def test_an_item_that_runs_its_first_attempt_leaves_no_entry_yet() -> None:
    assert kept(history_of(STARTED)) == []


def test_an_item_that_is_tried_again_is_kept_without_its_output() -> None:
    failed = AttemptFailed("m", 1, 2.0, ValueError("boom"), 0.0, item=0)
    again, succeeded = (
        AttemptStarted("m", 2, 3.0, item=0),
        StepSucceeded("m", 2, 4.0, None, item=0),
    )

    history = history_of(STARTED, failed, again, StepSucceeded("m", 2, 4.0, "done", item=0))

    assert kept(history) == [STARTED, failed, again, succeeded]
    assert not history.left_out


def test_that_an_item_left_out_blocked_the_loop_is_not_kept() -> None:
    assert kept(history_of(STARTED, SUCCEEDED, BLOCKED_LATE)) == []


def test_all_blocks_of_an_item_that_is_kept_are_part_of_its_result() -> None:
    history = history_of(STARTED, BLOCKED, SUCCEEDED, BLOCKED_LATE)
    for entry in (StepSucceeded("m", 0, 6.0, None), RunFinished(6.0, "PASSED")):
        history.append(entry)

    step = history.folded().steps["m"]

    assert step.items is not None
    result = step.items[0].to_result(6.0)
    assert (result.status, result.output, result.loop_blocked_ms) == (
        *(StepStatus.SUCCESS, None),
        270.0,
    )
