"""In CI, a test may only skip itself for a reason that ``skips_in_ci.txt`` lists."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

LIST = Path(__file__).with_name("skips_in_ci.txt")


def listed_reasons() -> set[str]:
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def refuse_an_unlisted_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn the report of a skip that CI does not list into one of a failure."""
    if os.environ.get("CI") != "true" or not isinstance(report.longrepr, tuple):
        return
    reason = report.longrepr[2].removeprefix("Skipped: ")
    if reason not in listed_reasons():
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, which {LIST.name} does not allow: {reason}"
