"""The sign of each status, which every view shows beside its word."""

from __future__ import annotations

from collections.abc import Mapping

from asyncflow._result import StepStatus

__all__ = ["SIGNS"]

SIGNS: Mapping[StepStatus, str] = {
    StepStatus.PENDING: "○",
    StepStatus.RUNNING: "▷",
    StepStatus.SUCCESS: "✓",
    StepStatus.FAILED: "✗",
    StepStatus.SKIPPED: "⊘",
    StepStatus.CANCELLED: "■",
}
"""They can be told apart without colours. Each takes one cell in a terminal."""
