"""Assertions about when steps ran, which say what happened instead.

A plain ``assert`` is enough for the rest: the pytest plugin adds the timelines of a failed test's
runs, and the steps that have the status with which one was compared.
"""

from __future__ import annotations

from itertools import pairwise

from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import StepResult
from asyncflow._core.text import duration
from asyncflow.testing._recorded_runs import timeline


def assert_order(report: RunReport, *steps: str) -> None:
    """Check that steps ran one after the other, each from its first attempt to its end.

    Of two steps that took no time in the same moment, as fakes do in virtual time, one ran before
    the other only if the other depends on it, directly or through others.

    Args:
        report: The report of the run.
        *steps: The names of the steps, in the order in which they must have run.

    Raises:
        AssertionError: One started before the one before had ended, or did not run.
        KeyError: There is no such step.
        TypeError: ``report`` is no `RunReport`, or fewer than two steps are named.
    """
    __tracebackhide__ = True
    for before, after in pairwise(_ran(report, steps)):
        if _end_of(before) > (after.started_ms or 0.0):
            _fail(report, f"{after.step_name!r} started before {before.step_name!r} had ended")
        is_tie = _end_of(after) == before.started_ms
        if is_tie and before.step_name not in _needed_by(after, report):
            _fail(report, _tied(before, after, report))


def assert_overlap(report: RunReport, *steps: str) -> None:
    """Check that steps ran at the same time: all of them, for more than an instant.

    Each counts from its first attempt to its end.

    Args:
        report: The report of the run.
        *steps: The names of the steps.

    Raises:
        AssertionError: They did not, or one did not run.
        KeyError: There is no such step.
        TypeError: ``report`` is no `RunReport`, or fewer than two steps are named.
    """
    __tracebackhide__ = True
    ran = _ran(report, steps)
    latest = max(ran, key=lambda result: result.started_ms or 0.0)
    for other in ran:
        if _end_of(other) <= (latest.started_ms or 0.0):
            names = f"{other.step_name!r} and {latest.step_name!r}"
            problem = "took no time" if other is latest else "did not run at the same time"
            _fail(report, f"{repr(other.step_name) if other is latest else names} {problem}")


def _ran(report: RunReport, steps: tuple[str, ...]) -> list[StepResult]:
    __tracebackhide__ = True
    if not isinstance(report, RunReport):
        raise TypeError(f"report must be a RunReport, not {type(report).__name__}")
    if len(steps) < 2:
        raise TypeError("name at least two steps")
    results = [report[step] for step in steps]
    for result in results:
        if result.started_ms is None:
            _fail(report, f"{result.step_name!r} did not run")
    return results


def _needed_by(result: StepResult, report: RunReport) -> set[str]:
    """Return the names of the steps that a step depends on, directly or through others."""
    needed: set[str] = set()
    waiting = [result]
    while waiting:
        new = [name for name in waiting.pop().depends_on if name in report and name not in needed]
        needed.update(new)
        waiting += [report[name] for name in new]
    return needed


def _tied(before: StepResult, after: StepResult, report: RunReport) -> str:
    if after.step_name in _needed_by(before, report):
        return f"{before.step_name!r} depends on {after.step_name!r}, so it ran after it"
    return (
        f"{before.step_name!r} and {after.step_name!r} took no time in the same moment, so which "
        "came first is unknown; let one of them sleep"
    )


def _end_of(result: StepResult) -> float:
    return (result.started_ms or 0.0) + result.duration_ms


def _fail(report: RunReport, problem: str) -> None:
    __tracebackhide__ = True
    ran = [
        f"  {result.step_name} from {duration(result.started_ms)} to {duration(_end_of(result))}"
        for result in report.results
        if result.started_ms is not None
    ]
    raise AssertionError("\n".join([problem, *ran, timeline(report)]))
