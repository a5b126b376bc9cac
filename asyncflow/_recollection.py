"""What a view remembers of a run when that goes on: the same as `Story` decides, for what is shown.

The events that follow say which results are reused, and with which attempt a step goes on; here
stands what those results and attempts were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from asyncflow._core.errors import StepCrashedError
from asyncflow._core.graph import with_dependents
from asyncflow._core.results import REDACTED_OUTPUT, StepStatus
from asyncflow._core.step_runs import Key
from asyncflow._step_view import StepView
from asyncflow.events import AttemptStarted, RunResumed

__all__ = ["Recollection", "attempts_before"]


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
