"""In CI a test that skips itself fails, unless its reason is listed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from listed_skips import listed_reasons, refuse_an_unlisted_skip


def skipped(reason: str) -> pytest.TestReport:
    place = ("test_it.py", 1, f"Skipped: {reason}")
    return pytest.TestReport("test_it", ("test_it.py", 1, "test_it"), {}, "skipped", place, "call")


@pytest.mark.parametrize(
    ("ci", "reason", "outcome"),
    [
        ("true", "mypy is not installed", "failed"),
        ("true", "nothing is sent", "skipped"),
        ("", "mypy is not installed", "skipped"),
    ],
)
def test_a_skip_that_ci_does_not_list_is_a_failure_there(
    monkeypatch: pytest.MonkeyPatch,
    ci: str,
    reason: str,
    outcome: Literal["failed", "skipped"],
) -> None:
    monkeypatch.setenv("CI", ci)
    report = skipped(reason)

    refuse_an_unlisted_skip(report)

    assert report.outcome == outcome
    assert reason in str(report.longrepr)


def test_each_listed_reason_is_one_of_a_test() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("*.py"))

    assert [reason for reason in listed_reasons() if f'"{reason}"' not in code] == []
