"""A run that is being watched: what its view shows, and where in its tiers something goes on.

What is asked for each frame takes no time that grows with the number of the steps.
"""

from __future__ import annotations

from collections import Counter
from itertools import accumulate

from asyncflow._cells import widest
from asyncflow._core.results import StepStatus
from asyncflow._views.run_view import RunView
from asyncflow._views.step_view import StepView
from asyncflow.events import Event, RunResumed, RunStarted, StepSucceeded

__all__ = ["LiveRun"]


class LiveRun:
    """Attributes:
    view: What is known of the run.
    running: The names of the steps that run, those that began first before others.
    failed: The names of the steps that failed, in the order in which they did.
    settled_tiers: How many tiers, from the first one on, have nothing left to do.
    begun_tiers: Up to which tier anything has happened.
    name_width: How many cells the widest name takes.
    """

    def __init__(self) -> None:
        self.view = RunView()
        self.running: dict[str, None] = {}
        self.failed: dict[str, None] = {}
        self.settled_tiers = self.begun_tiers = self.name_width = 0
        self._tallies: list[Counter[StepStatus]] = []
        self._settled: Counter[StepStatus] = Counter()
        """The sum of the tallies of the settled tiers."""
        self._starts = [0]
        """How many steps there are before each tier."""

    def apply(self, *events: Event) -> None:
        """Take in more events. Outputs are not kept."""
        view = self.view
        before: dict[str, StepStatus] = {}
        for event in events:
            name: str | None = getattr(event, "step", None)
            if name is None:
                view.apply(event)
                if isinstance(event, RunStarted | RunResumed):
                    self._begin()
                    before.clear()
                continue
            if name not in before:
                before[name] = view.steps[name].status
            if type(event) is StepSucceeded and event.output is not None:
                event = StepSucceeded(name, event.attempt, event.at_ms, None, event.item)
            view.apply(event)
        # Most steps of a large run begin and end in one go: they have moved once then.
        for name, status in before.items():
            step = view.steps[name]
            if step.status is not status:
                self._move(step, status)

    def tally(self, first: int, last: int) -> Counter[StepStatus]:
        """Return how many steps have which status in the tiers from one to before another one."""
        if first == 0 and last == self.settled_tiers:
            return self._settled
        if first >= self.begun_tiers:
            return Counter({StepStatus.PENDING: self.size(first, last)})
        return sum(self._tallies[first:last], Counter())

    def size(self, first: int, last: int) -> int:
        """Return how many steps there are in the tiers from one to before another one."""
        return self._starts[last] - self._starts[first]

    def _begin(self) -> None:
        view = self.view
        self.running, self.failed = {}, {}
        self.settled_tiers = self.begun_tiers = 0
        self._settled = Counter()
        self._tallies = [Counter({StepStatus.PENDING: len(names)}) for names in view.tiers]
        self._starts = list(accumulate(map(len, view.tiers), initial=0))
        self.name_width = widest(view.steps)
        for step in view.steps.values():  # of a run that goes on, some run already
            if step.status is not StepStatus.PENDING:
                self._move(step, StepStatus.PENDING)

    def _move(self, step: StepView, before: StepStatus) -> None:
        status, tier = step.status, step.tier
        tally = self._tallies[tier]
        tally[before] -= 1
        tally[status] += 1
        if before is StepStatus.RUNNING:
            del self.running[step.name]
        if status is StepStatus.RUNNING:
            self.running[step.name] = None
        elif status is StepStatus.FAILED:
            self.failed[step.name] = None
        if tier >= self.begun_tiers:
            self.begun_tiers = tier + 1
        if tier == self.settled_tiers:
            self._settle()

    def _settle(self) -> None:
        while self.settled_tiers < self.begun_tiers:
            tally = self._tallies[self.settled_tiers]
            if tally[StepStatus.PENDING] or tally[StepStatus.RUNNING]:
                break
            self._settled += tally
            self.settled_tiers += 1
