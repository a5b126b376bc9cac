"""Builders of results and reports, and objects whose special methods raise."""

from __future__ import annotations

from typing import Any

from asyncflow import Attempt, RunReport, StepResult, StepStatus

__all__ = [
    "Hostile",
    "HostileError",
    "Refusing",
    "cancelled",
    "failed",
    "mapped",
    "raised",
    "report_of",
    "retried",
    "skipped",
    "skipped_by_condition",
    "statuses",
    "succeeded",
]

SUCCESS, FAILED = StepStatus.SUCCESS, StepStatus.FAILED
SKIPPED, CANCELLED = StepStatus.SKIPPED, StepStatus.CANCELLED


class Refusing(Exception):
    """The error that hostile objects raise."""


class Hostile:
    """An output whose special methods raise."""

    def refuse(self, *_: object) -> Any:
        raise Refusing

    __repr__ = __str__ = __bool__ = __eq__ = __hash__ = __len__ = __iter__ = refuse
    __format__ = __lt__ = __reduce__ = __reduce_ex__ = refuse


class HostileError(Exception):
    """An error that can be raised, and whose special methods raise."""

    def refuse(self, *_: object) -> Any:
        raise Refusing

    __repr__ = __str__ = __bool__ = __eq__ = __hash__ = refuse
    __reduce__ = __reduce_ex__ = refuse


def report_of(*results: StepResult, total_duration_ms: float = 14.0) -> RunReport:
    return RunReport("r1", results, total_duration_ms=total_duration_ms, wall_time=1_000.5)


def succeeded(name: str, output: Any = None, **fields: Any) -> StepResult:
    fields = {"attempts": 1, "duration_ms": 3.0, "started_ms": 0.0, **fields}
    return StepResult(name, SUCCESS, output=output, **fields)


def retried(name: str, error: BaseException, **fields: Any) -> StepResult:
    """Return the result of a step whose first attempt ended with an error."""
    history = (Attempt(1, 0.0, 1.0, error), Attempt(2, 1.0, 2.0, None))
    return succeeded(name, attempts=2, recorded=history, **fields)


def failed(name: str, error: BaseException, **fields: Any) -> StepResult:
    fields = {"attempts": 1, "duration_ms": 3.0, "started_ms": 0.0, **fields}
    return StepResult(name, FAILED, error=error, **fields)


def skipped(name: str, reason: str = "it depends on step 'a', which failed") -> StepResult:
    return StepResult(name, SKIPPED, reason=reason, recorded=())


def skipped_by_condition(name: str) -> StepResult:
    return StepResult(name, SKIPPED, reason="its when was false", recorded=(), by_condition=True)


def mapped(name: str, *items: StepResult, **fields: Any) -> StepResult:
    attempts = sum(item.attempts for item in items)
    fields = {"attempts": attempts, "started_ms": 0.0, "recorded": (), **fields}
    return StepResult(name, SUCCESS, items=items, **fields)


def cancelled(name: str, error: BaseException | None = None) -> StepResult:
    return StepResult(name, CANCELLED, 1, 2.0, None, error, "step 'a' failed", 0.0)


def raised(error: BaseException) -> BaseException:
    """Return the error with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


def statuses(report: RunReport) -> dict[str, StepStatus]:
    """Return how each step has ended."""
    return {name: result.status for name, result in report.items()}
