"""How callers select runs: by their status, and by times that people type."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from asyncflow import RunStatus
from asyncflow.journal._read.queries import RunFilter, parse_time

NOW_S = datetime(2024, 6, 1, 12, tzinfo=UTC).timestamp()


@pytest.mark.parametrize("status", RunStatus)
def test_a_status_is_accepted_in_any_case(status: RunStatus) -> None:
    accepted = [RunFilter(each).status for each in (status, status.upper(), status.lower())]

    assert accepted == [status] * 3
    assert {type(each) for each in accepted} == {RunStatus}


@pytest.mark.parametrize("status", ["lost", "PASSED ", "", 3])
def test_an_unknown_status_is_refused_with_the_valid_ones(status: Any) -> None:
    with pytest.raises(ValueError, match=r"status must be one of RUNNING, PASSED, .*, not "):
        RunFilter(status)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", NOW_S - 30),
        ("15m", NOW_S - 15 * 60),
        ("2h", NOW_S - 2 * 3_600),
        ("3d", NOW_S - 3 * 86_400),
        ("1w", NOW_S - 7 * 86_400),
        ("2 h ago", NOW_S - 2 * 3_600),
        ("1 week ago", NOW_S - 7 * 86_400),
        ("3 days", NOW_S - 3 * 86_400),
        ("today", datetime(2024, 6, 1).timestamp()),
        ("yesterday", datetime(2024, 5, 31).timestamp()),
        ("99999d", 0.0),
        ("2024-06-01T12:00Z", NOW_S),
        ("2024-06-01T14:00+02:00", NOW_S),
        ("2024-06-01", datetime(2024, 6, 1).timestamp()),  # local time
        ("20240601", datetime(2024, 6, 1).timestamp()),
        ("2999-01-01", datetime(2999, 1, 1).timestamp()),
        ("1717243200", 1_717_243_200.0),
        ("0", 0.0),
        ("0.5", 0.5),
    ],
)
def test_a_time_is_an_age_a_date_or_seconds_since_the_epoch(text: str, seconds: float) -> None:
    assert parse_time(text, NOW_S) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "2x",
            "h",
            "-2h",
            "2  h",
            "2h go",
            "²h",
            "tomorrow",
            "nan",
            "-1",
            "1e999",
            "1960-01-01",
        ),
        *("0001-01-01", "99999-01-01", "9999999w", f"{'9' * 5_000}d"),
    ],
)
def test_an_invalid_time_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match=r"^invalid time '.*'; use an age \(2h, 3d\) or an ISO"):
        parse_time(text, NOW_S)
