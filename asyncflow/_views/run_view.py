"""The replay of a run, with what displays derive of it."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any, NamedTuple

from asyncflow._core.analysis.critical_path import StepTime, critical_path, time_of_wait
from asyncflow._core.analysis.failures import failures, first_failure
from asyncflow._core.analysis.looks import Look, counted_looks
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.report import RunReport, paused_ms
from asyncflow._core.history.results import (
    REDACTED_OUTPUT,
    RunStatus,
    Segment,
    StepStatus,
    blocks_dependents,
)
from asyncflow._core.history.step_view import StepView
from asyncflow.events import PoolPaused


def view_of(report: RunReport) -> RunView:
    """Return the view of the run that a user's report is about."""
    if not isinstance(report, RunReport):
        raise TypeError(f"report must be a RunReport, not {type(report).__name__}")
    view = RunView(report.events())
    count_left_out(view, report)
    return view


def count_left_out(view: RunView, report: RunReport) -> None:
    """Add the items that results only count to the view of the events that tell of all others."""
    for name, result in report.items():
        step = view.steps[name]
        if not result.left_out or step.items is None:
            continue
        told = step.to_result(view.at_ms)  # a later attempt of an item has events, and no result
        step.left_out = max(result.left_out - told.left_out, 0)
        step.left_out_attempts = max(result.attempts - told.attempts, 0)
        step.left_out_queued_ms = max(result.queued_ms - told.queued_ms, 0.0)
        step.tally[StepStatus.SUCCESS] += step.left_out


def _times_of(step: StepView, now_ms: float) -> tuple[float, float] | None:
    """Return when a step ran, or waited for its signal, if it did."""
    if step.started_ms is not None:
        return step.started_ms, now_ms if step.ended_ms is None else step.ended_ms
    return time_of_wait(step)


class PoolPauses(NamedTuple):
    """When a pool was paused, as far as a run has waited for it."""

    pool: str
    """Its name; empty if it has none."""
    steps: tuple[str, ...]
    """The steps of the run that share it."""
    by: str
    """The step, or the item, that paused it first; empty if none did."""
    times: list[tuple[float, float, int]]
    """From when to when, in milliseconds of the run, and in which segment."""

    @property
    def paused_ms(self) -> float:
        return sum(end_ms - start_ms for start_ms, end_ms, _ in self.times)


class RunView(StoredRun):
    """Where a run stands, with what displays derive of it. They show no secret."""

    @property
    def pauses_ms(self) -> list[float]:
        """How long the run paused before each segment but the first one, by wall clock."""
        return [paused_ms(pair) for pair in pairwise(self.segments)]

    @property
    def paused_ms(self) -> float:
        """How long it paused in all, so that no process ran it."""
        ran = self._ran
        return paused_ms(ran) if ran else 0.0

    @property
    def _ran(self) -> list[Segment]:
        """The segments in which it ran: all but the one that enqueued it."""
        return self.segments[self.was_enqueued :]

    @property
    def has_started(self) -> bool:
        return bool(self._ran)

    @property
    def started_at(self) -> float:
        """When it started, or was enqueued if it has not, in seconds since the epoch (UTC)."""
        return (self._ran or self.segments)[0].wall_time

    @property
    def resumptions(self) -> int:
        """How many times it was resumed: the start of a run that was enqueued is none."""
        return max(len(self._ran) - 1, 0)

    def pauses_at(self, now_ms: float) -> list[PoolPaused]:
        """Return the pauses of pools that have not ended at a moment of the run."""
        latest = {pause.pool: pause for _, pause in self.pauses} if self.is_running else {}
        return [pause for pause in latest.values() if pause.until_ms > now_ms]

    def pool_pauses_until(self, now_ms: float) -> list[PoolPauses]:
        """Return when each pool was paused, up to a moment of the run.

        A pause that was extended is one. Each ends with its segment.
        """
        found: dict[tuple[str, tuple[str, ...]], PoolPauses] = {}
        ends = [*(segment.at_ms for segment in self.segments[1:]), now_ms]
        for segment, event in self.pauses:
            key = event.pool, event.steps
            pool = found.setdefault(key, PoolPauses(*key, event.by, []))
            end_ms = min(event.until_ms, ends[segment - 1])
            last = pool.times[-1] if pool.times else None
            if last is not None and last[2] == segment and event.at_ms <= last[1]:
                pool.times[-1] = last[0], max(last[1], end_ms), segment
            elif end_ms > event.at_ms:
                pool.times.append((event.at_ms, end_ms, segment))
        return [pool for pool in found.values() if pool.times]

    @property
    def edges(self) -> dict[str, tuple[str, ...]]:
        """For each step, in topological order, the steps it depends on."""
        return {name: step.depends_on for name, step in self.steps.items()}

    @property
    def shown_inputs(self) -> dict[str, Any]:
        """Its inputs, with a stand-in for each secret one."""
        return {
            name: REDACTED_OUTPUT if name in self.secret_inputs else value
            for name, value in self.inputs.items()
        }

    def process_of(self, step: StepView) -> str:
        """Return the process of the run in which a step ran last, as ``host:pid``.

        Empty if it is unknown, or the step, or items of it, ran on an engine.
        """
        if not step.active or self.engine_of(step):
            return ""
        return self.segments[step.active[-1].segment - 1].process

    def engine_of(self, step: StepView) -> str:
        """Return the engine of the latest attempt of a step, or of an item of it that had one."""
        items = (item.engine for item in (step.items or {}).values())
        return step.engine or next(filter(None, items), "")

    def workers_of(self, step: StepView) -> list[str]:
        """Return the workers of the latest attempts of a step and its items, the busiest first."""
        runs = (step, *(step.items or {}).values())
        counts = Counter(each.worker for each in runs if each.worker)
        return [worker for worker, _ in counts.most_common()]

    @property
    def wall_time(self) -> float:
        """When the run started, in seconds since the epoch (UTC)."""
        return self.wall_time_of(0.0)

    def ms_at(self, wall_time: float) -> float:
        """Return which moment of the run it is at a wall-clock time, not before the latest event.

        The clock of a run that has ended, or waits for a signal, stands still.
        """
        if not self.is_running or not self.segments:
            return self.at_ms
        latest = self.segments[-1]
        return max(self.at_ms, latest.at_ms + (wall_time - latest.wall_time) * 1000)

    @property
    def word(self) -> str:
        """The state of the run in one word: STOPPING, QUEUED, or its status."""
        if self.is_queued:
            return "QUEUED"
        is_stopping = self.stop_reason is not None and self.is_running
        return "STOPPING" if is_stopping else self.status

    @property
    def is_queued(self) -> bool:
        """Whether the run waits to start."""
        return self.status is RunStatus.WAITING and not self.signals.waits

    @property
    def ended_steps(self) -> int:
        unsettled = self.counts[StepStatus.PENDING] + self.counts[StepStatus.RUNNING]
        return len(self.steps) - unsettled

    @property
    def waiting(self) -> list[StepView]:
        """The steps that wait for a signal, in topological order."""
        found = [self.steps[name] for name in self.signals.waits if name in self.steps]
        return [step for step in found if step.waiting_since is not None]

    def looks(self, *, has_died: bool = False) -> list[tuple[Look, int]]:
        """Return how many steps have which look; ``has_died`` if the process of the run did."""
        return counted_looks(self.counts, len(self.waiting), has_died=has_died)

    @property
    def first_failure(self) -> StepView | None:
        """The step that failed first, if one has."""
        return first_failure(self.steps.values())

    @property
    def failures(self) -> list[StepView]:
        """The steps with errors, the first failure first, and cancelled ones last."""
        return failures(self.steps.values())

    def causes(self) -> dict[str, str]:
        """Return, for each step that was skipped or cancelled because of a failure, which it was.

        In time linear in steps plus dependencies.
        """
        first = None if self.was_interrupted else self.first_failure
        causes: dict[str, str] = {}
        for name, step in self.steps.items():
            cause = None if first is None else first.name
            if step.status is StepStatus.SKIPPED:
                if step.by_condition:
                    continue
                lost = next((each for each in step.depends_on if self._is_lost(each)), None)
                if lost is not None:
                    failed = self.steps[lost].status is StepStatus.FAILED
                    cause = lost if failed else causes.get(lost)
            elif step.status is not StepStatus.CANCELLED:
                continue
            if cause is not None:
                causes[name] = cause
        return causes

    def _is_lost(self, name: str) -> bool:
        step = self.steps.get(name)
        return step is not None and blocks_dependents(step.status, step.by_condition)

    @property
    def flows(self) -> dict[str, str]:
        """For each mapped step that took items of a mapped step before that had ended, that step.

        So it shows how the run went: under ``tiers`` nothing flows.
        """
        found = {}
        for name, step in self.steps.items():
            for needed in step.depends_on if step.has_items and step.active else ():
                source = self.steps.get(needed)
                if source is None or not source.has_items or not source.active:
                    continue
                time, begun = source.active[-1], step.active[-1]
                ended_ms = math.inf if time.ended_ms is None else time.ended_ms
                if time.segment == begun.segment and begun.started_ms < ended_ms:
                    found[name] = needed
        return found

    def critical_path(self, now_ms: float) -> list[str]:
        """Return the steps that decide when the run ends, so far; see `RunReport`."""
        return critical_path(
            StepTime(name, *times, step.depends_on, step.status)
            for name, step in self.steps.items()
            if (times := _times_of(step, now_ms)) is not None
        )
