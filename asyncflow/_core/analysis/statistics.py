"""What a pipeline's runs say together about each of its steps: outcomes, durations, flakiness.

Rules:

1. A step has one outcome in each run: how it ended at last, over all segments of the run. One that
   fell back has failed.
2. Durations are those of `StepResult.duration_ms`, of runs in which the step ran and succeeded.
3. A percentile is by nearest rank: the smallest duration that is at least as long as that share of
   all. So it is one that was measured, and that of one duration is that duration.
4. A run shows that a step is flaky if a retry of it passed: the same code and the same inputs had
   both outcomes. An attempt whose process died, or that came before the step began anew in a run
   that had ended, says nothing about the step. Of a mapped step, its items' retries count.
5. Items count as the latest segment that mapped them left them: an item that failed for good, or
   fell back, has failed, and one that passed after a retry was retried.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, cast

from asyncflow._core.history.log import History, LogEntry, as_event, ended_by, start_of, step_of
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.results import StepStatus
from asyncflow._core.history.step_view import StepView
from asyncflow._core.text import describe_error
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    MapStarted,
    StepFailed,
    StepSkipped,
    StepSucceeded,
)

StepOutcome: TypeAlias = Literal[
    "SUCCESS",
    "RETRIED",
    "FAILED",
    "SKIPPED",
    "CANCELLED",
    "REUSED",
    "RUNNING",
    "ORPHANED",
    "WAITS",
    "PENDING",
]
"""How a step ended in a run: its `StepStatus`, or ``RETRIED`` if it succeeded after an attempt that
had failed, ``REUSED`` if the run reused its result, ``ORPHANED`` if it was running when the process
of the run died, and ``WAITS`` if it waits for a signal."""


class ItemCounts(NamedTuple):
    """How many items of a mapped step failed or were retried in one run."""

    failed: int = 0
    """How many failed for good, or fell back."""
    retried: int = 0
    """How many passed after a retry."""


_NO_ITEMS = ItemCounts()


class StepRun(NamedTuple):
    """A step in one run."""

    outcome: StepOutcome
    duration_ms: float | None
    """``None`` if it did not run there, or has not ended."""
    items: ItemCounts = _NO_ITEMS
    error: str = ""
    """What it failed with, or what its last failed attempt did; empty if nothing failed."""

    @property
    def has_passed(self) -> bool:
        """Whether it ran there and succeeded."""
        return self.outcome in ("SUCCESS", "RETRIED") and self.duration_ms is not None


class SameErrors(NamedTuple):
    """The runs in which a step failed in the same way, whatever numbers its message has."""

    error: str
    """That of the latest of these runs."""
    runs: list[int]
    """The places of these runs among all, the latest one first."""


@dataclass(frozen=True, slots=True)
class StepStatistics:
    """A step over several runs of its pipeline. Times are milliseconds."""

    outcomes: tuple[StepOutcome | None, ...]
    """How it ended in each run, in the order of the runs; ``None`` for a run without the step, and
    for a damaged one."""
    durations_ms: tuple[float | None, ...]
    """How long it took in each run, waits between attempts included, whatever its outcome;
    ``None`` where it did not run or has not ended."""
    failed_items: tuple[int, ...]
    """How many items of it failed for good in each run, tolerated ones and those that fell back
    included; 0 for a step that is not mapped."""
    retried_items: tuple[int, ...]
    """How many items of it passed after a retry in each run."""
    errors: tuple[str, ...]
    """With which error it failed in each run, or an attempt of it before one that passed; empty
    where nothing failed. Those of items are left out."""

    @property
    def error_groups(self) -> list[SameErrors]:
        """The runs with errors in groups of the same error, the most frequent one first."""
        groups: dict[str, SameErrors] = {}
        for place, error in enumerate(self.errors):
            if error:
                group = groups.setdefault(re.sub(r"\d+", "0", error), SameErrors(error, []))
                group.runs.append(place)
        return sorted(groups.values(), key=lambda group: -len(group.runs))

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
    def failure_rate(self) -> float | None:
        """In which share of the runs it failed, from 0 to 1.

        Of the runs in which it passed or failed; ``None`` if there is none.
        """
        return self._share_of("FAILED")

    @property
    def flakiness(self) -> float | None:
        """In which share of the runs it, or an item of it, passed after a retry, from 0 to 1.

        Of the runs in which it passed or failed; ``None`` if there is none.
        """
        return self._share_of("RETRIED")

    def _share_of(self, outcome: StepOutcome) -> float | None:
        decided = sum(map(self.outcomes.count, ("SUCCESS", "RETRIED", "FAILED")))
        return self.outcomes.count(outcome) / decided if decided else None


def step_runs(run: StoredRun) -> dict[str, StepRun]:
    """Return how each step ended in a run, in topological order."""
    runs = {name: _run_of(step) for name, step in run.steps.items()}
    if not run.journal.is_orphaned:
        return runs
    return {
        name: each._replace(outcome="ORPHANED") if each.outcome == "RUNNING" else each
        for name, each in runs.items()
    }


_LONGEST_REPLAY = 10_000
"""How many events are replayed at most while the event loop waits: some 30 ms."""


def step_runs_of(history: History) -> dict[str, StepRun] | None:
    """Return the same of a run that has just ended here; ``None`` if that would take long.

    But for a few steps, a run that was never resumed need not be replayed.
    """
    start = history.start()
    if start is None:
        return step_runs(history.folded()) if history.unfolded <= _LONGEST_REPLAY else None
    entries: dict[str, list[LogEntry]] = {name: [] for name in start.dependencies}
    for entry in history.log:
        # Inline for most of them, which are events.
        name = entry.step if not isinstance(entry, tuple) else step_of(entry)
        if name is not None:
            entries[name].append(entry)
    found: dict[str, StepRun] = {}
    replay: StoredRun | None = None
    for name, of_step in entries.items():
        run = _run_of_entries(of_step)
        if run is None:
            if replay is None:  # most runs need none
                replay = StoredRun([start])
            for entry in of_step:
                replay.apply(as_event(entry))
            run = _run_of(replay.steps[name])
        found[name] = run
    return found


def _run_of_entries(entries: Sequence[LogEntry]) -> StepRun | None:
    """Return how a step ended; ``None`` if only the replay tells."""
    if not entries:
        return StepRun("PENDING", None)
    first, last = entries[0], entries[-1]
    # Most steps are like this.
    if len(entries) == 2 and type(first) is AttemptStarted and type(last) is StepSucceeded:
        if last.error is None and not first.engine:
            return StepRun("SUCCESS", last.at_ms - first.at_ms)
    elif isinstance(first, StepSkipped):
        return StepRun("SKIPPED", None)
    is_mapped, end = isinstance(first, MapStarted), ended_by(last)
    start = first if isinstance(first, MapStarted) else start_of(first)
    if start is None or end is None:
        return None
    items = _counts_of_entries(entries) if is_mapped else _NO_ITEMS
    error = end.error
    outcome: StepOutcome = end.status.value
    if end.status is StepStatus.SUCCESS and error is not None:
        outcome = "FAILED"  # its fallback has returned the output
    elif end.status is StepStatus.SUCCESS:
        failed = [each for each in entries if isinstance(each, AttemptFailed) and each.item is None]
        error = failed[-1].error if failed else None
        outcome = "RETRIED" if failed or items.retried else outcome
    of_error = outcome in ("FAILED", "RETRIED") and error is not None
    text = describe_error(error) if of_error and error is not None else ""
    return StepRun(outcome, end.at_ms - start.at_ms, items, text)


def _counts_of_entries(entries: Iterable[LogEntry]) -> ItemCounts:
    failed, retried, passed = set[Any](), set[Any](), set[Any]()
    for entry in entries:
        if isinstance(entry, AttemptFailed):
            retried.add(entry.item)
        elif isinstance(entry, StepFailed) and entry.item is not None:
            failed.add(entry.item)
        elif isinstance(entry, StepSucceeded) and entry.item is not None:
            (passed if entry.error is None else failed).add(entry.item)
    return ItemCounts(len(failed), len(retried & passed))


def _run_of(step: StepView) -> StepRun:
    counts = _NO_ITEMS
    if step.items:
        of_items = step.items.values()
        failed = sum([each.status is StepStatus.FAILED or _fell_back(each) for each in of_items])
        counts = ItemCounts(failed, sum(map(_was_retried, of_items)))
    outcome = _outcome(step, counts)
    error = _error(step) if outcome in ("FAILED", "RETRIED") else ""
    return StepRun(outcome, _duration_ms(step), counts, error)


def _outcome(step: StepView, items: ItemCounts) -> StepOutcome:
    if step.waiting_since is not None:
        return "WAITS"
    if step.status is not StepStatus.SUCCESS:
        return cast("StepOutcome", step.status.value)
    if step.reused and step.started_ms is None:
        return "REUSED"
    if step.error is not None:
        return "FAILED"  # its fallback has returned the output
    return "RETRIED" if items.retried or _was_retried(step) else "SUCCESS"


def _fell_back(item: StepView) -> bool:
    return item.status is StepStatus.SUCCESS and item.error is not None


def _was_retried(step: StepView) -> bool:
    """Whether a step, or an item, has passed after an attempt that failed."""
    return step.status is StepStatus.SUCCESS and step.error is None and step.retries > 0


def _error(step: StepView) -> str:
    # A crash is no error of the step.
    failed = [each.error for each in step.attempts if each.end != "crashed"]
    errors = [step.error, *reversed(failed)]
    return next((describe_error(error) for error in errors if error is not None), "")


def _duration_ms(step: StepView) -> float | None:
    return None if step.ended_ms is None else step.duration_ms(step.ended_ms)


def step_statistics(runs: Sequence[Mapping[str, StepRun]]) -> dict[str, StepStatistics]:
    """Return the statistics of each step of some runs.

    ``runs`` are the steps of each run, the latest run first; an empty mapping for a damaged one.
    Return the steps of the latest run in their order, then those that only earlier runs had.
    """
    found = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        in_runs = [run.get(name) for run in runs]
        items = [each.items if each else _NO_ITEMS for each in in_runs]
        found[name] = StepStatistics(
            tuple([each and each.outcome for each in in_runs]),
            tuple([each and each.duration_ms for each in in_runs]),
            tuple([each.failed for each in items]),
            tuple([each.retried for each in items]),
            tuple([each.error if each else "" for each in in_runs]),
        )
    return found


def by_trouble(steps: Mapping[str, StepStatistics]) -> dict[str, StepStatistics]:
    """Return steps with those first that failed in the largest share of their runs.

    Of those, the ones with more failed items and then the flakier ones are first; steps without any
    of it stay in their order.
    """

    def trouble(named: tuple[str, StepStatistics]) -> tuple[float, int, float, int]:
        step = named[1]
        items = sum(step.failed_items), sum(step.retried_items)
        return step.failure_rate or 0.0, items[0], step.flakiness or 0.0, items[1]

    return dict(sorted(steps.items(), key=trouble, reverse=True))


_FEWEST_USUAL = 3
"""How often something must have succeeded before its usual duration is known."""


def usual(durations: Sequence[float]) -> float | None:
    """Return how long something usually takes, by its latest successes: the median.

    ``None`` if there are too few of them to tell.
    """
    return median(durations) if len(durations) >= _FEWEST_USUAL else None


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
