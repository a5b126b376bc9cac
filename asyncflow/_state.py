"""What the driver asks of the state of a run: what may start now, and what never will."""

from __future__ import annotations

from asyncflow._fold import RunFold, Schedule
from asyncflow._phases import (
    ATTEMPTING,
    CLEARED,
    DOOMED,
    HANDED_OUT,
    QUEUED,
    READY,
    SETTLED,
    WAITING,
    WITHDRAWN,
)
from asyncflow._report import RunReport
from asyncflow._result import StepResult, StepStatus
from asyncflow._turns import Doom
from asyncflow.events import AttemptStarted, Outcome, StepReused, StepSucceeded

__all__ = ["RunState", "Schedule"]


class RunState(RunFold):
    """The state of one run, which is told what happens (`apply`) and asked what follows."""

    # Most steps are plain, and succeed at their first attempt. The next two are `apply` for these,
    # without a look at what only others have; and `apply` itself for all others.

    def start(self, unit: int, event: AttemptStarted) -> None:
        """Apply the start of an attempt of a unit."""
        phases = self._phases
        if (
            phases[unit] == HANDED_OUT
            and event.attempt == 1
            and self._steps[unit].is_plain
            and self._is_straight
        ):
            self._latest[unit] = event
            phases[unit] = ATTEMPTING
        else:
            self.apply(event)

    def succeed(self, unit: int, event: StepSucceeded) -> None:
        """Apply the success of an attempt of a unit."""
        phases = self._phases
        started, step = self._latest[unit], self._steps[unit]
        if (
            phases[unit] == ATTEMPTING
            and event.attempt == 1
            and started is not None
            and started.attempt == 1
            and step.is_plain
            and self._is_straight
            and not self.histories.has_remarks
        ):
            self._results[unit] = StepResult(
                event.step,
                StepStatus.SUCCESS,
                1,
                event.at_ms - started.at_ms,
                event.output,
                None,
                None,
                started.at_ms,
                None,
                step.depends_on,
            )
            phases[unit] = SETTLED
            self._turns.settled(unit, event.at_ms)
        else:
            self.apply(event)

    def ready(self) -> list[int]:
        """Return the units that may start their next attempt now. Each is handed out once."""
        phases, queue = self._phases, self.queue
        queue.has_news = bool(self._turns.doomed)
        # What was doomed, or cancelled, in the meantime stands in line as well.
        if not self.is_limited:
            batch = [unit for unit in queue.take_all() if phases[unit] == READY]
            for unit in batch:
                phases[unit] = HANDED_OUT
            return batch
        batch = []
        for unit in queue.take():
            if phases[unit] in (READY, QUEUED):
                phases[unit] = HANDED_OUT if phases[unit] == READY else CLEARED
                queue.enter(unit)
                batch.append(unit)
        return batch

    def doomed(self) -> list[Doom]:
        """Return the steps that will never start. Each is told once."""
        doomed, self._turns.doomed, phases = self._turns.doomed, [], self._phases
        # A stored run that is being replayed has already told what became of some of them.
        return [doom for doom in doomed if phases[doom.step] in (DOOMED, WITHDRAWN)]

    def held(self, step: int, at_ms: float, item: int | None = None) -> StepReused | None:
        """Return what tells that a resumed run takes over the result of a step or an item, if so.

        Args:
            step: The step.
            at_ms: When that is told.
            item: The item of the step, if it is about that.
        """
        if self._past is None:
            return None
        name = self.units.steps[step].name
        result = self._past.results.get((name, item))
        return None if result is None else StepReused(name, at_ms, item, result.status)

    def had_begun(self, step: int) -> bool:
        """Whether a step, or an item of it, goes on with what it had begun before a resumption."""
        return self.units.steps[step].name in self._begun

    def is_spared(self, unit: int) -> bool:
        """Whether a unit goes on although the run is stopping: it belongs to a clean-up step."""
        return self.units.steps[unit].run_if != "success" and not self._interrupted

    def get_in_line(self, unit: int, at_ms: float) -> None:
        """Put a unit that has waited for its next attempt in line for it."""
        assert self._phases[unit] == WAITING
        self._phases[unit] = QUEUED
        self.queue.put([unit], at_ms)

    def add_item(self, step: int, at_ms: float) -> int:
        """Take up the next item of a mapped step, and return its unit.

        It stands in line, or, if the run is stopping, will never start.
        """
        unit = self.units.add_item(step)
        if self.stop_reason is None or self.is_spared(step):
            self._phases[unit] = READY
            self.queue.put([unit], at_ms)
        else:
            self.units.end_item(unit)
        return unit

    def stands_in_line(self, unit: int) -> bool:
        """Whether a unit whose turn has come has not been handed out."""
        return self._phases[unit] == READY

    def about_to_start(self, units: list[int]) -> list[int]:
        """Return those of the units that were handed out and have not started."""
        phases = self._phases
        return [unit for unit in units if phases[unit] == HANDED_OUT]

    def running_attempt(self, unit: int) -> AttemptStarted | None:
        """The attempt of the unit that is running, if one is."""
        return self.units.latest[unit] if self._phases[unit] == ATTEMPTING else None

    @property
    def unsettled(self) -> int:
        """How many steps have not settled."""
        return self._turns.unsettled

    @property
    def ordinary_unsettled(self) -> int:
        """How many steps have not settled and are no clean-up steps."""
        return self._turns.ordinary_unsettled if self._plan.cleanups else self._turns.unsettled

    @property
    def stop_reason(self) -> str | None:
        """Why the run is stopping; ``None`` while it is not."""
        return self._turns.stop_reason

    @property
    def has_finished(self) -> bool:
        """Whether the run is over."""
        return self._finished is not None

    @property
    def outcome(self) -> Outcome:
        """How the run ends, or would if it ended now."""
        if self._interrupted:
            return "interrupted"
        return "failed" if self._turns.lost else "passed"

    def report(self) -> RunReport:
        """Return the report of the run, which must have finished."""
        assert self._started is not None
        assert self._finished is not None
        return RunReport(
            self._started.run_id,
            filter(None, map(self.units.results.__getitem__, self._plan.order)),
            total_duration_ms=self._finished.at_ms,
            wall_time=self._started.wall_time,
            stop_reason=self.stop_reason,
            pipeline=self._started.pipeline,
            inputs=self._started.inputs,
            outcome=self._finished.outcome,
        )
