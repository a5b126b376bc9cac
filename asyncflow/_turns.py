"""Whose turn it is: when a step becomes ready, and when it is certain that it never will."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from asyncflow._graph import Plan
from asyncflow._phases import DOOMED, PENDING, READY, WITHDRAWN
from asyncflow._queue import StartQueue

__all__ = ["Doom", "Turns"]


class Doom(NamedTuple):
    """A step that will never start."""

    step: int
    reason: str
    on_purpose: bool


class Turns:
    """The turns of the steps of one run. Steps are indexes of its plan.

    Attributes:
        unsettled: How many steps have not settled.
        ordinary_unsettled: How many of them are no clean-up steps.
        lost: Which settled steps failed, or did not run because of that, each with the failed
            step that it goes back to. One failure is not enough to remember: a step asks this
            of each of its dependencies.
        unneeded: The same for steps that were skipped on purpose.
        doomed: The steps that will never start and of which that has not been told.
        stop_reason: Why nothing becomes ready any more, except clean-up steps.

    Args:
        taken_over: The steps of a resumed run that have a result already, and so have no turn;
            ``None`` if the run was not resumed.
    """

    def __init__(
        self,
        plan: Plan,
        phases: list[int],
        queue: StartQueue,
        *,
        by_tiers: bool,
        taken_over: frozenset[int] | None = None,
    ) -> None:
        self._plan = plan
        self._phases = phases
        self._queue = queue
        self._by_tiers = by_tiers
        self._cleanups = plan.cleanups
        # When the run stops, steps of later tiers settle before their turn, which matters only if
        # there are clean-up steps; and what a resumed run takes over settles at its beginning.
        self._in_any_order = taken_over is not None or bool(plan.cleanups)
        self._taken_over = taken_over or frozenset()
        self.unsettled = len(plan.steps)
        self.ordinary_unsettled = len(plan.steps) - len(plan.cleanups)
        self.lost: dict[int, str] = {}
        self.unneeded: dict[int, str] = {}
        self.doomed: list[Doom] = []
        self.stop_reason: str | None = None
        self._parked: list[int] = []
        self._tier = -1
        self._tier_of: dict[int, int] = {}
        self._unsettled_in: list[int] = []
        self._dependencies_unsettled: list[int] = []

    def begin(self, at_ms: float) -> None:
        """The run starts."""
        if self._by_tiers:
            tiers = self._plan.tiers
            self._unsettled_in = list(map(len, tiers))
            if self._in_any_order:
                self._tier_of = {step: at for at, tier in enumerate(tiers) for step in tier}
            self._begin_next_tier(at_ms)
        else:
            self._dependencies_unsettled = [len(needed) for needed in self._plan.dependencies]
            self._take_turns(self._plan.tiers[0] if self._plan.tiers else (), at_ms)

    def settled(self, step: int, at_ms: float) -> None:
        """A step has settled: others may follow."""
        self.unsettled -= 1
        if self._cleanups and step not in self._cleanups:
            self.ordinary_unsettled -= 1
            if self._parked and not self.ordinary_unsettled:
                parked, self._parked = self._parked, []
                self._take_turns(parked, at_ms)
        if self._by_tiers:
            at = self._tier_of[step] if self._in_any_order else self._tier
            left = self._unsettled_in[at] = self._unsettled_in[at] - 1
            if not left and at == self._tier:
                self._begin_next_tier(at_ms)
        else:
            self._release_dependents(step, at_ms)

    def stop(self, reason: str, *, spare_cleanups: bool) -> None:
        """Let nothing become ready any more."""
        if self.stop_reason is None:
            self.stop_reason = reason
            candidates: Iterable[int] = range(len(self._plan.steps))
        else:
            candidates = sorted(self._cleanups)
        spared = self._cleanups if spare_cleanups else ()
        for step in candidates:
            if step in spared or step in self._taken_over:
                continue
            if self._phases[step] in (PENDING, READY):
                # What was ready may have been handed out, if a stored run is being replayed.
                was_ready = self._phases[step] == READY
                self._doom(step, reason, phase=WITHDRAWN if was_ready else DOOMED)

    def _release_dependents(self, step: int, at_ms: float) -> None:
        missing, turns = self._dependencies_unsettled, []
        for dependent in self._plan.dependents[step]:
            missing[dependent] -= 1
            if not missing[dependent]:
                turns.append(dependent)
        self._take_turns(turns, at_ms)

    def _begin_next_tier(self, at_ms: float) -> None:
        tiers = self._plan.tiers
        while self._tier + 1 < len(tiers):
            self._tier += 1
            self._take_turns(tiers[self._tier], at_ms)
            if self._unsettled_in[self._tier]:
                return

    def _take_turns(self, steps: Sequence[int], at_ms: float) -> None:
        if self.stop_reason is not None and not self._cleanups:
            return  # they are doomed, as is all that was pending when the run stopped
        if self.lost or self.unneeded or self._in_any_order:
            steps = [step for step in steps if self._may_start(step)]
        phases = self._phases
        for step in steps:
            phases[step] = READY
        self._queue.put(steps, at_ms)

    def _may_start(self, step: int) -> bool:
        """Whether a step whose turn has come is ready; if it never will be, it is doomed."""
        if self._phases[step] != PENDING or step in self._taken_over:
            return False  # the run is stopping, or has its result already
        needed = self._plan.dependencies[step]
        if step in self._cleanups:
            if self.stop_reason is not None and self.ordinary_unsettled:
                self._parked.append(step)
                return False
            if self._plan.steps[step].run_if == "always" or any(n in self.lost for n in needed):
                return True
            self._doom(step, "nothing that it looks at has failed", on_purpose=True)
            return False
        for grounds, what in (self.lost, "failed"), (self.unneeded, "was skipped"):
            cause = next((grounds[other] for other in needed if other in grounds), None)
            if cause is not None:
                grounds[step] = cause
                reason = f"it depends on step {cause!r}, which {what}"
                self._doom(step, reason, on_purpose=grounds is self.unneeded)
                return False
        return True

    def _doom(
        self, step: int, reason: str, *, phase: int = DOOMED, on_purpose: bool = False
    ) -> None:
        self._phases[step] = phase
        self.doomed.append(Doom(step, reason, on_purpose))
        self._queue.has_news = True
