"""What displays say of a step over several runs of its pipeline."""

from __future__ import annotations

from asyncflow._core.analysis.statistics import SameErrors, StepStatistics
from asyncflow._core.text import plural


def frequency_text(group: SameErrors, step: StepStatistics) -> str:
    """Return in how many runs of a step an error occurred: ``in 4 of 60 runs``."""
    ran = sum(outcome is not None for outcome in step.outcomes)
    return f"in {len(group.runs):,} of {plural(ran, 'run')}"


def items_text(step: StepStatistics) -> str:
    """Return how many items failed or were retried in all runs: ``2 failed, 8 retried``."""
    counts = {"failed": sum(step.failed_items), "retried": sum(step.retried_items)}
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
