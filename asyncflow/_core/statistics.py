"""What a pipeline's runs say together about each of its steps: outcomes, durations, flakiness.

Rules:

1. A step has one outcome in each run: how it ended at last, over all segments of the run. One that
   fell back has failed.
2. Durations are those of `StepResult.duration_ms`, of runs in which the step ran and succeeded.
3. A percentile is by nearest rank: the smallest duration that is at least as long as that share of
   all. So it is one that was measured, and that of one duration is that duration.
4. A run shows that a step is flaky if a retry of it passed: the same code and the same inputs had
   both outcomes. An attempt whose process died, or that came before the step began anew in a run
   that had ended, says nothing about the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, cast, get_args

from asyncflow._core.replay import StoredRun
from asyncflow._core.results import StepStatus
from asyncflow._core.step_view import StepView

StepOutcome: TypeAlias = Literal[
    "SUCCESS", "RETRIED", "FAILED", "SKIPPED", "CANCELLED", "REUSED", "RUNNING", "PENDING"
]
"""How a step ended in a run: its `StepStatus`, or ``RETRIED`` if it succeeded after an attempt that
had failed, and ``REUSED`` if the run took over its result."""

STEP_OUTCOMES: tuple[StepOutcome, ...] = get_args(StepOutcome)

_FAILURES = ("failed", "timed out")


class StepRun(NamedTuple):
    """A step in one run."""

    outcome: StepOutcome
    duration_ms: float | None
    """``None`` if it did not run there, or has not ended."""


@dataclass(frozen=True, slots=True)
class StepStatistics:
    """A step over several runs of its pipeline. Times are milliseconds."""

    outcomes: tuple[StepOutcome | None, ...]
    """How it ended in each run, in the order of the runs; ``None`` for a run without the step, and
    for a damaged one."""
    durations_ms: tuple[float | None, ...]
    """How long it took in each run, waits between attempts included, whatever its outcome;
    ``None`` where it did not run or has not ended."""

    @property
    def passed_ms(self) -> list[float]:
        """Its durations in the runs in which it ran and succeeded, in the order of the runs."""
        return [
            duration_ms
            for outcome, duration_ms in zip(self.outcomes, self.durations_ms, strict=True)
            if outcome in ("SUCCESS", "RETRIED") and duration_ms is not None
        ]

    @property
    def median_ms(self) -> float | None:
        """The median of `passed_ms`; ``None`` if it never ran and succeeded."""
        return median(self.passed_ms)

    @property
    def p95_ms(self) -> float | None:
        """The 95th percentile of `passed_ms` by nearest rank; ``None`` as for the median."""
        return nearest_rank(self.passed_ms, 95)

    @property
    def last_ms(self) -> float | None:
        """The first of `passed_ms`, which is that of the latest run; ``None`` as for the median."""
        return next(iter(self.passed_ms), None)

    @property
    def flakiness(self) -> float | None:
        """In which share of the runs it passed after a retry, from 0 to 1.

        Of the runs in which it passed or failed; ``None`` if there is none. A mapped step's retries
        are those of its items, and don't count.
        """
        passed, retried, failed = map(self.outcomes.count, ("SUCCESS", "RETRIED", "FAILED"))
        count = passed + retried + failed
        return retried / count if count else None


def step_runs(run: StoredRun) -> dict[str, StepRun]:
    """Return how each step ended in a run, in topological order."""
    return {name: StepRun(_outcome(step), _duration_ms(step)) for name, step in run.steps.items()}


def _outcome(step: StepView) -> StepOutcome:
    if step.status is not StepStatus.SUCCESS:
        return cast("StepOutcome", step.status.value)
    if step.reused and step.started_ms is None:
        return "REUSED"
    if step.error is not None:
        return "FAILED"  # its fallback has returned the output
    series = step.attempts[step.fresh_from :]
    return "RETRIED" if any(attempt.end in _FAILURES for attempt in series) else "SUCCESS"


def _duration_ms(step: StepView) -> float | None:
    return None if step.ended_ms is None else step.duration_ms(step.ended_ms)


def step_statistics(runs: Sequence[Mapping[str, StepRun]]) -> dict[str, StepStatistics]:
    """Return the statistics of each step of some runs.

    ``runs`` are the steps of each run, the latest run first; an empty mapping for a damaged one.
    Return the steps of the latest run in their order, then those that only earlier runs had.
    """
    names = dict.fromkeys(name for run in runs for name in run)
    nowhere = None, None
    return {
        name: StepStatistics(*zip(*(run.get(name, nowhere) for run in runs), strict=True))
        for name in names
    }


def median(values: Sequence[float]) -> float | None:
    """Return the middle value, or the mean of the two; ``None`` without values."""
    if not values:
        return None
    ordered, middle = sorted(values), len(values) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def nearest_rank(values: Sequence[float], percent: int) -> float | None:
    """Return a percentile by nearest rank: one of the values; ``None`` without values.

    ``percent`` is from 1 to 100, and ``values`` are in any order.
    """
    if not values:
        return None
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]
