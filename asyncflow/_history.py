"""What has been told of the attempts of each unit, and the result that it adds up to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeAlias

from asyncflow._errors import IllegalEventError
from asyncflow._phases import ATTEMPTING, MAPPING, PHASES
from asyncflow._result import Attempt, StepResult, StepStatus
from asyncflow._units import Units
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    LoopBlocked,
    StepCancelled,
    StepFailed,
    StepSkipped,
    StepSucceeded,
    ThreadAbandoned,
)

__all__ = ["Histories", "StepEnd"]

StepEnd: TypeAlias = StepSucceeded | StepFailed | StepCancelled


class Histories:
    """The attempts of each unit of a run, except the latest, and its result when it has ended.

    Attributes:
        has_remarks: Whether anything was noted that goes into a result as it is.
    """

    def __init__(self, units: Units) -> None:
        self._units = units
        self.has_remarks = False
        self._failed: dict[int, tuple[Attempt, ...]] = {}
        self._remarks: dict[int, dict[str, Any]] = {}

    def last_error(self, unit: int) -> BaseException | None:
        """What the latest failed attempt of the unit failed with, if one has."""
        failed = self.attempts(unit)
        return failed[-1].error if failed else None

    def attempts(self, unit: int) -> tuple[Attempt, ...]:
        """Return the attempts of the unit that have failed, also before the run was resumed."""
        failed = self._failed.get(unit)
        if failed is None:
            carried = self._units.carried(unit)
            failed = () if carried is None else carried.failed
        return failed

    def fail(self, unit: int, event: AttemptFailed) -> None:
        """Note that the running attempt has failed and that another one follows."""
        started = self.latest(unit, event)
        self._failed[unit] = (
            *self.attempts(unit),
            _attempt(started, event, event.error),
        )

    def remark(self, unit: int, **facts: Any) -> None:
        """Note something that goes into the result as it is."""
        self.has_remarks = True
        self._remarks.setdefault(unit, {}).update(facts)

    def block(self, unit: int, event: LoopBlocked) -> None:
        """Note that the unit has blocked the loop; it may have ended when the loop could tell."""
        latest, results = self._units.latest[unit], self._units.results
        if latest is None or not 1 <= event.attempt <= latest.attempt:
            raise IllegalEventError(event, f"the latest attempt is {latest!r}")
        blocked_ms = self._remarks.get(unit, {}).get("loop_blocked_ms", 0.0) + event.blocked_ms
        self.remark(unit, loop_blocked_ms=blocked_ms)
        result = results[unit]
        if result is None:
            return
        results[unit] = self.with_remarks(unit, result)
        owner = self._units.owner_of(unit) if self._units.is_item(unit) else unit
        whole = results[owner]
        if owner != unit and whole is not None:
            results[owner] = replace(
                whole,
                loop_blocked_ms=whole.loop_blocked_ms + event.blocked_ms,
                items=tuple(self._units.results_of_items(owner) or ()),
            )

    def with_remarks(self, unit: int, result: StepResult) -> StepResult:
        """Return the result with what was noted of the unit."""
        return replace(result, **self._remarks[unit]) if unit in self._remarks else result

    def result(
        self, unit: int, event: StepEnd, status: StepStatus, error: BaseException | None
    ) -> StepResult:
        """Return the result of a unit that has ended in one way or another."""
        phase = self._units.phases[unit]
        if phase == MAPPING:
            return self._result_of_items(unit, event, status, error)
        if phase < ATTEMPTING and self._units.latest[unit] is None:
            return self._result_without_attempts(unit, event, status, error)
        started, history = self.latest(unit, event), self.attempts(unit) or None
        started_ms, queued_ms = started.at_ms, started.queued_ms
        if history is not None:
            if phase == ATTEMPTING:
                history = (*history, _attempt(started, event, error))
            started_ms = history[0].started_ms
            queued_ms = sum(attempt.queued_ms for attempt in history)
        return StepResult(
            self._units.name_of(unit),
            status,
            event.attempt,
            event.at_ms - started_ms,
            event.output if isinstance(event, StepSucceeded) else None,
            error,
            event.reason if isinstance(event, StepCancelled) else None,
            started_ms,
            history,
            self._units.depends_on(unit),
            queued_ms,
            secret=status is StepStatus.SUCCESS and self._units.steps[unit].secret,
        )

    def skipped(self, unit: int, event: StepSkipped) -> StepResult:
        """Return the result of a step that will never start."""
        return StepResult(
            event.step,
            StepStatus.SKIPPED,
            reason=event.reason,
            recorded=(),
            depends_on=self._units.depends_on(unit),
            on_purpose=event.on_purpose,
        )

    def _result_without_attempts(
        self, unit: int, event: StepEnd, status: StepStatus, error: BaseException | None
    ) -> StepResult:
        if event.attempt or self._units.is_item(unit):
            raise IllegalEventError(event, PHASES[self._units.phases[unit]])
        depends_on = self._units.depends_on(unit)
        return StepResult(event.step, status, error=error, recorded=(), depends_on=depends_on)

    def _result_of_items(
        self, step: int, event: StepEnd, status: StepStatus, error: BaseException | None
    ) -> StepResult:
        items = self._units.results_of_items(step)
        if items is None or event.attempt:
            raise IllegalEventError(event, PHASES[MAPPING])
        started_ms = self.began_ms(step, items)
        return StepResult(
            event.step,
            status,
            sum(result.attempts for result in items),
            event.at_ms - started_ms,
            event.output if isinstance(event, StepSucceeded) else None,
            error,
            event.reason if isinstance(event, StepCancelled) else None,
            started_ms,
            (),
            self._units.depends_on(step),
            queued_ms=sum(result.queued_ms for result in items),
            loop_blocked_ms=sum(result.loop_blocked_ms for result in items),
            abandoned=any(result.abandoned for result in items),
            items=tuple(items),
            secret=status is StepStatus.SUCCESS and self._units.steps[step].secret,
        )

    def began_ms(self, step: int, items: Iterable[StepResult]) -> float:
        """Return when a mapped step began, which may have been before its run was resumed."""
        begun = [item.started_ms for item in items if item.started_ms is not None]
        return min([self._units.map_started_ms(step), *begun])

    def latest(self, unit: int, event: StepEnd | AttemptFailed | ThreadAbandoned) -> AttemptStarted:
        """Return the unit's latest attempt, which must be the one that the event is about."""
        started = self._units.latest[unit]
        if started is None or started.attempt != event.attempt:
            raise IllegalEventError(event, f"the latest attempt is {started!r}")
        return started


def _attempt(
    started: AttemptStarted, end: StepEnd | AttemptFailed, error: BaseException | None
) -> Attempt:
    duration_ms = end.at_ms - started.at_ms
    return Attempt(end.attempt, started.at_ms, duration_ms, error, started.queued_ms)
