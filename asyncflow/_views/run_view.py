"""What a view shows of a run at some moment: a fold over its events.

Rules:

1. It may begin anywhere: with the first event of a run, or with the one that tells that a stored
   run goes on, as an observer hears it.
2. When a run goes on, what was running before was cut short. Of what was known of a step, that
   holds which the events say is reused, or which goes on with the attempts that it has left.
3. What is secret goes no further than here.

What a view remembers of a run when that goes on: what `StoredRun` decides, for display.

The events that follow say which results are reused, and with which attempt a step goes on; here
stands what those results and attempts were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from asyncflow._core.errors import StepCrashedError
from asyncflow._core.graph import with_dependents
from asyncflow._core.report import critical_path
from asyncflow._core.results import REDACTED_OUTPUT, StepResult, StepStatus, blocks_dependents
from asyncflow._core.step_runs import Key
from asyncflow._views.step_view import AttemptEnd, AttemptView, StepView, end_of
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    LoopBlocked,
    MapStarted,
    Outcome,
    RunFinished,
    RunInterrupted,
    RunResumed,
    RunStarted,
    RunTimedOut,
    StepCancelled,
    StepFailed,
    StepReused,
    StepSkipped,
    StepSucceeded,
    ThreadAbandoned,
)

__all__ = [
    "Recollection",
    "RunView",
    "Segment",
    "attempts_before",
]


class Recollection:
    """The results of steps and items that were kept, and the attempts that were cut short."""

    def __init__(self) -> None:
        self._dependencies: dict[str, tuple[str, ...]] = {}
        self._kept: dict[Key, StepView] = {}
        self._cut_short: dict[Key, StepView] = {}

    def stand_still(self, steps: Mapping[str, StepView]) -> None:
        """Take in where the run stood still."""
        for name, step in steps.items():
            self._dependencies[name] = step.depends_on
            if step.reused and (name, None) in self._kept:
                continue  # it is what it was, and perhaps is shown with less now
            self._take_in((name, None), step)
            for number, item in (step.items or {}).items():
                self._take_in((name, number), item)

    def _take_in(self, key: Key, unit: StepView) -> None:
        if unit.reused and key in self._kept:
            return
        attempt = unit.latest
        if attempt is not None and attempt.ended_ms is None:
            crashes = sum(each.end == "crashed" for each in unit.attempts) + 1
            attempt.error = StepCrashedError(unit.name, attempt.number, crashes)
            attempt.end = "crashed"
        if unit.status in (StepStatus.PENDING, StepStatus.RUNNING):
            if unit.attempts:
                self._cut_short[key] = unit
            return
        self._cut_short.pop(key, None)
        before = self._kept.get(key)
        is_better = before is None or before.status is not StepStatus.SUCCESS
        if unit.status is StepStatus.SUCCESS or (
            is_better and unit.status is not StepStatus.CANCELLED
        ):
            self._kept[key] = unit

    def resume(self, event: RunResumed) -> None:
        """Forget what does not hold any more now that the run goes on."""
        edges = self._dependencies.items()
        outdated = with_dependents(event.outdated, edges)
        outdated |= with_dependents(event.unfinished, edges) - event.unfinished.keys()
        for key, unit in list(self._kept.items()):
            begins_anew = event.afresh or (key[1] is None and key[0] in event.unfinished)
            is_final = unit.status is StepStatus.SUCCESS or not begins_anew
            if key[0] in outdated or not is_final:
                del self._kept[key]
        for key, unit in list(self._cut_short.items()):
            attempt = unit.attempts[-1]
            if attempt.ended_ms is None:
                attempt.ended_ms = event.at_ms
            if event.afresh or key[0] in outdated:
                del self._cut_short[key]

    def steps_cut_short(self) -> list[str]:
        """Return the steps, and not the items, that go on with the attempts they have had."""
        return [name for name, item in self._cut_short if item is None]

    def give_attempts(self, key: Key, unit: StepView) -> None:
        """Let a unit go on with the attempts that it has had, if there were any."""
        before = self._cut_short.get(key)
        if before is not None:
            unit.attempts, unit.started_ms = [*before.attempts], before.started_ms

    def give_result(self, key: Key, unit: StepView) -> None:
        """Give a unit the result that was kept of it, if it was seen."""
        before = self._kept.get(key)
        if before is None:
            return
        unit.attempts, unit.started_ms = before.attempts, before.started_ms
        unit.ended_ms, unit.output, unit.error = before.ended_ms, before.output, before.error
        unit.reason, unit.on_purpose = before.reason, before.on_purpose
        unit.items, unit.item_count, unit.tally = before.items, before.item_count, before.tally
        if unit.secret:
            unit.output = _without_secret(before)
            unit.items = before.items and {
                number: replace(item, output=_without_secret(item), secret=True)
                for number, item in before.items.items()
            }


def _without_secret(unit: StepView) -> Any:
    return REDACTED_OUTPUT if unit.status is StepStatus.SUCCESS else unit.output


def attempts_before(event: Any) -> int:
    """Return how many attempts its unit has had before an event, as the event tells."""
    attempt: int = getattr(event, "attempt", 0)
    return attempt - 1 if isinstance(event, AttemptStarted) else attempt


class Segment(NamedTuple):
    """A time in which one process ran the run, from here to the next one."""

    at_ms: float
    wall_time: float
    """In seconds since the epoch (UTC)."""


class RunView:
    """Where a run stands. It is told the events of the run, one by one.

    Attributes:
        run_id: Identifies the run.
        pipeline: What its pipeline is called, if it has a name.
        stretches: The times in which processes ran it: one, and one more for each time that it
            was resumed.
        at_ms: The time of the latest event, in milliseconds since the run started.
        outcome: How the run has ended; ``None`` while it has not.
        stop_reason: Why it stops, or stopped, before its end, as far as that was told.
        inputs: The inputs of the run, with what stands for a secret one.
        dependencies: For each step, in topological order, the steps it depends on.
        tiers: The names of the steps in their tiers.
        steps: What is shown of each step, in topological order.
        counts: How many steps have which status.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.run_id = ""
        self.pipeline = ""
        self.stretches: list[Segment] = []
        self.at_ms = 0.0
        self.outcome: Outcome | None = None
        self.stop_reason: str | None = None
        self.inputs: dict[str, Any] = {}
        self.dependencies: Mapping[str, tuple[str, ...]] = {}
        self.tiers: list[list[str]] = []
        self.steps: dict[str, StepView] = {}
        self.counts: Counter[StepStatus] = Counter()
        self._was_told_to_stop = False
        self._recollection = Recollection()
        for event in events:
            self.apply(event)

    def apply(self, event: Event) -> None:
        """Take in one more event."""
        if not isinstance(event, RunStarted) and event.at_ms > self.at_ms:
            self.at_ms = event.at_ms
        _RULES[type(event)](self, event)

    # What may be asked.

    @property
    def wall_time(self) -> float:
        """When the run started, as far as that was told, in seconds since the epoch (UTC)."""
        return self.wall_time_of(0.0)

    def wall_time_of(self, at_ms: float) -> float:
        """Return the wall-clock time of a moment of the run, in seconds since the epoch (UTC)."""
        begin, *others = self.stretches
        for stretch in others:
            if stretch.at_ms <= at_ms:
                begin = stretch
        return begin.wall_time + (at_ms - begin.at_ms) / 1000

    def ms_at(self, wall_time: float) -> float:
        """Return which moment of the run it is at a wall-clock time, not before the latest event.

        When the run has ended, its clock stands still.
        """
        if self.outcome is not None or not self.stretches:
            return self.at_ms
        latest = self.stretches[-1]
        return max(self.at_ms, latest.at_ms + (wall_time - latest.wall_time) * 1000)

    @property
    def word(self) -> str:
        """The state of the run in one word: RUNNING, STOPPING, PASSED, FAILED or INTERRUPTED."""
        if self.outcome is not None:
            return self.outcome.upper()
        return "RUNNING" if self.stop_reason is None else "STOPPING"

    @property
    def settled(self) -> int:
        """How many steps have ended, in whatever way."""
        unsettled = self.counts[StepStatus.PENDING] + self.counts[StepStatus.RUNNING]
        return len(self.steps) - unsettled

    @property
    def first_failure(self) -> StepView | None:
        """The step that failed first, if any has."""
        failed = [step for step in self.steps.values() if step.status is StepStatus.FAILED]
        return min(failed, key=lambda step: step.ended_ms or 0.0, default=None)

    def causes(self) -> dict[str, str]:
        """Return for each step that was skipped or cut short because of a failure, which it was.

        In time linear in steps plus dependencies.
        """
        first = None if self._was_told_to_stop else self.first_failure
        causes: dict[str, str] = {}
        for name, step in self.steps.items():
            cause = None if first is None else first.name
            if step.status is StepStatus.SKIPPED:
                if step.on_purpose:
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
        return step is not None and blocks_dependents(step.status, step.on_purpose)

    def critical_path(self, now_ms: float) -> list[str]:
        """Return the chain of dependent steps that has taken longest; see `RunReport`."""
        return critical_path(
            StepResult(
                name,
                step.status,
                duration_ms=step.duration_ms(now_ms) or 0.0,
                started_ms=step.started_ms,
                depends_on=step.depends_on,
            )
            for name, step in self.steps.items()
        )

    # What happens to the run.

    def _on_run_started(self, event: RunStarted) -> None:
        self._begin(event, 0.0)

    def _on_run_resumed(self, event: RunResumed) -> None:
        recollection = self._recollection
        recollection.stand_still(self.steps)
        recollection.resume(event)
        self._begin(event, event.at_ms)
        for name, why in event.rerun_reasons.items():
            if name in self.steps:
                self.steps[name].rerun_reason = why
        for name in recollection.steps_cut_short():
            if name in self.steps:
                recollection.give_attempts((name, None), self.steps[name])
                self._move(self.steps[name], StepStatus.RUNNING)

    def _begin(self, event: RunStarted | RunResumed, at_ms: float) -> None:
        self.run_id, self.pipeline = event.run_id, event.pipeline or self.pipeline
        self.stretches.append(Segment(at_ms, event.wall_time))
        self.outcome = self.stop_reason = None
        self._was_told_to_stop = False
        self.inputs.update(event.inputs)
        self.dependencies = event.dependencies
        secret, max_retries = frozenset(event.secret), event.max_retries
        steps: dict[str, StepView] = {}
        tiers: list[list[str]] = []
        for name, needed in event.dependencies.items():
            tier = 0
            for each in needed:
                if each in steps and steps[each].tier >= tier:
                    tier = steps[each].tier + 1
            if tier == len(tiers):
                tiers.append([])
            tiers[tier].append(name)
            steps[name] = StepView(name, needed, tier, max_retries.get(name), secret=name in secret)
        self.steps, self.tiers = steps, tiers
        self.counts = Counter({StepStatus.PENDING: len(steps)})

    def _on_run_interrupted(self, event: RunInterrupted) -> None:
        self.stop_reason, self._was_told_to_stop = event.reason, True

    def _on_run_timed_out(self, event: RunTimedOut) -> None:
        if self.stop_reason is None:
            self.stop_reason, self._was_told_to_stop = event.reason, True

    def _on_run_finished(self, event: RunFinished) -> None:
        self.outcome = event.outcome
        self.stop_reason = event.stop_reason or self.stop_reason

    # What happens to a step or an item.

    def _on_attempt_started(self, event: AttemptStarted) -> None:
        unit = self._unit(event)
        if unit.started_ms is None:
            unit.started_ms = event.at_ms
        unit.attempts.append(AttemptView(event.attempt, event.at_ms, event.queued_ms))
        self._move(unit, StepStatus.RUNNING, self._owner(event))

    def _on_attempt_failed(self, event: AttemptFailed) -> None:
        attempt = _close(self._unit(event), event.at_ms, end_of(event.error), event.error)
        if attempt is not None:
            attempt.retry_in_ms = event.retry_in_ms

    def _on_map_started(self, event: MapStarted) -> None:
        step = self.steps[event.step]
        step.started_ms, step.item_count, step.attempts = event.at_ms, event.count, []
        if step.items is None:
            step.items = {}
        self._move(step, StepStatus.RUNNING)

    def _on_step_succeeded(self, event: StepSucceeded) -> None:
        unit = self._unit(event)
        _close(unit, event.at_ms, "succeeded")
        if unit.items is not None and event.output is None:  # a journal has kept only the items'
            unit.output = [unit.items[number].output for number in sorted(unit.items)]
        else:
            unit.output = event.output
        if unit.secret:
            unit.output = REDACTED_OUTPUT
        self._settle(unit, StepStatus.SUCCESS, event)

    def _on_step_failed(self, event: StepFailed) -> None:
        unit = self._unit(event)
        _close(unit, event.at_ms, end_of(event.error), event.error)
        unit.error = event.error
        self._settle(unit, StepStatus.FAILED, event)

    def _on_step_cancelled(self, event: StepCancelled) -> None:
        unit = self._unit(event)
        end = end_of(event.error)
        _close(unit, event.at_ms, end if end == "timed out" else "cancelled", event.error)
        unit.error, unit.reason = event.error, event.reason
        self._settle(unit, StepStatus.CANCELLED, event)

    def _on_step_skipped(self, event: StepSkipped) -> None:
        step = self.steps[event.step]
        step.reason, step.on_purpose = event.reason, event.on_purpose
        self._settle(step, StepStatus.SKIPPED, event)

    def _on_step_reused(self, event: StepReused) -> None:
        unit = self._unit(event)
        self._recollection.give_result((event.step, event.item), unit)
        if event.item is not None:
            _begin_earlier(self.steps[event.step], unit)
        unit.reused, unit.rerun_reason = True, None
        self._move(unit, event.status, self._owner(event))

    def _on_thread_abandoned(self, event: ThreadAbandoned) -> None:
        attempt = self._unit(event).latest
        if attempt is not None:
            attempt.abandoned = True

    def _on_loop_blocked(self, event: LoopBlocked) -> None:
        for attempt in reversed(self._unit(event).attempts):
            if attempt.number == event.attempt:
                attempt.blocks = (*attempt.blocks, event)
                break

    # Helpers.

    def _unit(self, event: Any) -> StepView:
        """Return what an event is about."""
        step = self.steps[event.step]
        if event.item is None:
            return step
        if step.items is None:
            step.items = {}
        item = step.items.get(event.item)
        if item is None:
            item = step.items[event.item] = StepView(
                f"{step.name}[{event.item}]",
                tier=step.tier,
                max_retries=step.max_retries,
                secret=step.secret,
            )
            if not step.tally:
                step.tally = Counter()
            step.tally[StepStatus.PENDING] += 1
            if attempts_before(event):
                self._recollection.give_attempts((event.step, event.item), item)
                _begin_earlier(step, item)
        return item

    def _owner(self, event: Any) -> StepView | None:
        """Return the mapped step if an event is about an item of it."""
        return None if event.item is None else self.steps[event.step]

    def _settle(self, unit: StepView, status: StepStatus, event: Any) -> None:
        if unit.started_ms is not None:
            unit.ended_ms = event.at_ms
        self._move(unit, status, self._owner(event))

    def _move(self, unit: StepView, status: StepStatus, step: StepView | None = None) -> None:
        """Change the status of a step, or of an item of the given step."""
        counts = self.counts if step is None else step.tally
        counts[unit.status] -= 1
        counts[status] += 1
        unit.status = status


def _begin_earlier(step: StepView, item: StepView) -> None:
    """Let a mapped step have begun before its run was resumed if an item of it has."""
    if step.started_ms is not None and item.started_ms is not None:
        step.started_ms = min(step.started_ms, item.started_ms)


def _close(
    unit: StepView, at_ms: float, end: AttemptEnd, error: BaseException | None = None
) -> AttemptView | None:
    """Note that the running attempt has ended, if one is running; return it."""
    attempt = unit.attempts[-1] if unit.attempts else None
    if attempt is None or attempt.ended_ms is not None:
        return None
    attempt.ended_ms, attempt.end, attempt.error = at_ms, end, error
    return attempt


_RULES: dict[type, Callable[[RunView, Any], None]] = {
    RunStarted: RunView._on_run_started,
    RunResumed: RunView._on_run_resumed,
    RunInterrupted: RunView._on_run_interrupted,
    RunTimedOut: RunView._on_run_timed_out,
    RunFinished: RunView._on_run_finished,
    AttemptStarted: RunView._on_attempt_started,
    AttemptFailed: RunView._on_attempt_failed,
    MapStarted: RunView._on_map_started,
    StepSucceeded: RunView._on_step_succeeded,
    StepFailed: RunView._on_step_failed,
    StepCancelled: RunView._on_step_cancelled,
    StepSkipped: RunView._on_step_skipped,
    StepReused: RunView._on_step_reused,
    ThreadAbandoned: RunView._on_thread_abandoned,
    LoopBlocked: RunView._on_loop_blocked,
}
