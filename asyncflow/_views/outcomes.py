"""How displays show the outcome of a step in one of several runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from asyncflow._core.results import STATUS_SYMBOLS, StepStatus
from asyncflow._core.statistics import SameErrors, StepOutcome, StepStatistics
from asyncflow._core.text import plural


class ShownOutcome(NamedTuple):
    symbol: str
    """One cell wide, and clear without colour."""
    words: str
    status: StepStatus
    """The status whose colour it shares; one that passed after a retry has a colour of its own."""


def _like(status: StepStatus, words: str, symbol: str = "") -> ShownOutcome:
    return ShownOutcome(symbol or STATUS_SYMBOLS[status], words, status)


OUTCOMES: Mapping[StepOutcome, ShownOutcome] = {
    "SUCCESS": _like(StepStatus.SUCCESS, "succeeded"),
    "RETRIED": _like(StepStatus.SUCCESS, "succeeded after a retry", "↻"),
    "FAILED": _like(StepStatus.FAILED, "failed"),
    "SKIPPED": _like(StepStatus.SKIPPED, "skipped"),
    "CANCELLED": _like(StepStatus.CANCELLED, "cancelled"),
    "REUSED": _like(StepStatus.SUCCESS, "result reused", "="),
    "RUNNING": _like(StepStatus.RUNNING, "running"),
    "PENDING": _like(StepStatus.PENDING, "did not run"),
}


def frequency_text(group: SameErrors, step: StepStatistics) -> str:
    """Return in how many runs of a step an error occurred: ``in 4 of 60 runs``."""
    ran = sum(outcome is not None for outcome in step.outcomes)
    return f"in {len(group.runs):,} of {plural(ran, 'run')}"


def items_text(step: StepStatistics) -> str:
    """Return how many items failed or were retried in all runs: ``2 failed, 8 retried``."""
    counts = {"failed": sum(step.failed_items), "retried": sum(step.retried_items)}
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
