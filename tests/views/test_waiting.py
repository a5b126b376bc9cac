"""For what a run waits is said in the same words everywhere."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from asyncflow._views.waiting import queue_text, wait_text
from asyncflow.journal import QueueStats, WaitsFor

NOW_S = datetime(2026, 12, 1, 12, 0, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("wait", "text"),
    [
        (WaitsFor("signal", signals=("approval",)), "for approval"),
        (WaitsFor("signal", signals=("a\n", "b", "c")), "for a\\n and 2 more"),
        (WaitsFor("place", due_at=NOW_S), "for a place"),
        (WaitsFor("key", due_at=NOW_S, key="customer\t17"), "for key customer\\t17"),
        (WaitsFor("time", due_at=NOW_S + 7_500), "until 16:05"),
        (WaitsFor("time", due_at=NOW_S + 59), "until 14:00:59"),
        (WaitsFor("time", due_at=NOW_S + 10 * 3_600), "until 2026-12-02 00:00"),
        (WaitsFor("time", due_at=1e300), "until a time that no calendar has"),
    ],
)
def test_a_run_waits(wait: WaitsFor, text: str) -> None:
    assert wait_text(wait, NOW_S, timezone(timedelta(hours=2))) == text


@pytest.mark.parametrize(
    ("queue", "text"),
    [
        (QueueStats(0, 0, None, 0), ""),
        (QueueStats(1, 0, None, 0), "1 run waits to start: 0 due"),
        (
            QueueStats(1_200, 1_100, 64.0, 1),
            "1,200 runs wait to start: 1,100 due, the oldest for 1 min 4 s; 1 key blocked",
        ),
    ],
)
def test_a_queue_is_counted(queue: QueueStats, text: str) -> None:
    assert queue_text(queue) == text
