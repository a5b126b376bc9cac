"""Which steps become ready, which never will, and which of the ready nodes may start now.

`Readiness` decides when it is a step's turn, or that it is skipped; `AdmissionQueue` admits nodes,
first come, first served.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from asyncflow._core.pipeline.graph import Plan
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._core.running.step_runs import IN_FLIGHT, Phase

# Looked up for every step: a member of an enum takes twice as long.
_READY, _SCHEDULED = Phase.READY, Phase.SCHEDULED


class AdmissionQueue:
    """Admits queued nodes, as far as the run's limit and the pools have room.

    Other runs share a pool, so an admitted node does not have a slot of it yet. But the queue
    admits at most as many nodes as the pool has slots, so that runs take turns at the pool. Of
    nodes that may have a key it admits more, since in that line keys and runs take turns, and a key
    that is not in line can't. A mapped step needs no slot itself: its items do.

    At most ``limit`` nodes have a place at a time; ``None`` means any number. A node gets its place
    when it is admitted. If it must wait for its pool, it lends the place to others, and claims one
    when it has its slot. A node that was admitted may wait for an equal call: it is parked, in no
    line and with no place. ``steps`` and ``phases`` are those of the nodes, and may become longer.
    ``limited`` are the steps that may have a pool, or run elsewhere than in the event loop.

    Attributes:
        is_dirty: Whether there may be a node to admit, or a step that has become unreachable.
        is_limited: Whether a node may have to wait, here or for a pool, thread or process.
        has_limit: Whether it may have to wait here.
    """

    def __init__(
        self,
        limit: int | None,
        steps: Sequence[WorkflowStep],
        phases: list[Phase],
        limited: Iterable[int],
    ) -> None:
        self.has_limit = limit is not None
        self.is_limited = self.has_limit or any(steps[step].needs_permit for step in limited)
        self.is_dirty = False
        self._limit = limit
        self._room = math.inf if limit is None else limit
        self._steps = steps
        self._phases = phases
        self._step_count = len(steps)
        self._line: deque[int] = deque()
        self._held: dict[object, deque[int]] = {}
        """The nodes that came first when their pool had no room."""
        self._taken: dict[object, int] = {}
        self._placed: set[int] = set()
        self._placeless: dict[int, None] = {}
        """The nodes that have claimed a place when there was none, in order."""
        self._parked: set[int] = set()
        self._since: dict[int, float] = {}

    def put(self, nodes: Sequence[int], at_ms: float) -> None:
        """Queue nodes behind all others."""
        if not nodes:
            return
        self._line.extend(nodes)
        self.is_dirty = True
        if self.is_limited:
            for node in nodes:
                if self.has_limit or self._steps[node].needs_permit:
                    self._since[node] = at_ms

    def put_again(self, node: int, since_ms: float, *, first: bool = False) -> None:
        """Queue a node for its next attempt, for which it may start from the given time on.

        ``first`` says whether it comes before all others that wait for the same pool.
        """
        assert self._phases[node] == Phase.WAITING
        self._phases[node] = Phase.QUEUED
        if first:
            self._held.setdefault(self._steps[node].line, deque()).appendleft(node)
            self._since[node] = since_ms
            self.is_dirty = True
        else:
            self.put([node], since_ms)

    def is_queued(self, node: int) -> bool:
        """Whether a node is ready and was not admitted yet."""
        return self._phases[node] is _READY and node not in self._parked

    def wait_from(self, at_ms: float) -> None:
        """Let all queued nodes wait only from then on: before, nothing could start."""
        self._since = dict.fromkeys(self._since, at_ms)

    def queued_ms(self, node: int, at_ms: float) -> float:
        """How long a node has been queued, or has waited since it was admitted."""
        return max(0.0, at_ms - self._since.get(node, at_ms))

    def take_ready(self) -> list[int]:
        """Return the nodes that may start their next attempt now, each once."""
        phases, self.is_dirty = self._phases, False
        # What was queued may have become unreachable, or have been cancelled, in the meantime.
        if not self.is_limited:
            line, self._line = self._line, deque()
            batch = [node for node in line if phases[node] is _READY]
            for node in batch:
                phases[node] = _SCHEDULED
            return batch
        batch = self._take_placed() if self.has_limit else []  # they wait in their tasks
        for node in self._take():
            if phases[node] in (_READY, Phase.QUEUED):
                phases[node] = _SCHEDULED if phases[node] is _READY else Phase.RESCHEDULED
                self._enter(node)
                batch.append(node)
        return batch

    def _take(self) -> Iterator[int]:
        """Yield the nodes for which there is room. Each enters before the next is asked for."""
        for held in self._held.values():
            while held and self._has_room(self._steps[held[0]]):
                yield held.popleft()
        while self._line and self._room > 0:
            node = self._line.popleft()
            step = self._steps[node]
            is_map = step.map_over is not None and node < self._step_count
            if step.pool is None or is_map or self._has_room(step):
                yield node
            else:
                self._held.setdefault(step.line, deque()).append(node)

    def _has_room(self, step: WorkflowStep) -> bool:
        assert step.pool is not None
        most = step.pool._size
        if step.pool_key is not None:  # others may have another one
            most = max(_MOST_WAITING, 2 * most)
        return self._room > 0 and self._taken.get(step.line, 0) < most

    def _enter(self, node: int) -> None:
        """Count a node as in flight. It need not have been queued."""
        self._count(node, 1)
        if self.has_limit:
            self._place(node)

    def lend(self, node: int) -> None:
        """Let other nodes have the place of one that waits for its pool."""
        if node in self._placed:
            self._placed.discard(node)
            self._room += 1
            if not self.is_dirty:
                self.look_again()

    def claim(self, node: int) -> bool:
        """Return whether a node has a place; if not, `take_ready` will return it with one.

        One that claims a place again keeps its turn.
        """
        if not self.has_limit or node in self._placed:
            return True
        if self._room > 0:
            self._placeless.pop(node, None)
            self._place(node)
            return True
        self._placeless[node] = None
        return False

    def _take_placed(self) -> list[int]:
        """Return the nodes that get now the places which they have claimed."""
        placed = list(self._placeless)[: max(0, int(min(self._room, len(self._placeless))))]
        for node in placed:
            del self._placeless[node]
            self._place(node)
        return placed

    def _place(self, node: int) -> None:
        self._placed.add(node)
        self._room -= 1

    def leave(self, node: int) -> None:
        """Count a node as no longer in flight."""
        self._count(node, -1)
        if self.has_limit:
            self.lend(node)
            self._placeless.pop(node, None)
        if not self.is_dirty:
            self.look_again()

    def look_again(self) -> None:
        """Note that a node may be admitted now, if any waits."""
        self.is_dirty = self.is_dirty or bool(
            self._line or self._placeless or any(self._held.values())
        )

    def moved(self, node: int, before: Phase, now: Phase) -> None:
        """Count a node whose phase has changed."""
        was_in, is_in = before in IN_FLIGHT, now in IN_FLIGHT
        if was_in and not is_in:
            self.leave(node)
        elif is_in and not was_in:
            self._enter(node)  # it was not queued: a stored run is replayed

    def drop(self, node: int) -> None:
        """Forget a node that was put and will never start."""
        if self.is_limited and self._phases[node] is _SCHEDULED:
            self.leave(node)
        self._parked.discard(node)

    def park(self, node: int) -> None:
        """Let a node that is about to start wait for an equal call."""
        self._phases[node] = _READY
        self._parked.add(node)
        if self.is_limited:
            self.leave(node)

    def unpark(self, node: int, at_ms: float) -> bool:
        """Queue a node that was parked; return whether it still was."""
        if node not in self._parked:
            return False
        self._parked.discard(node)
        if self._phases[node] is not _READY:
            return False  # the run stops
        self.put([node], at_ms)
        return True

    def has_parked_too_many(self, step: int) -> bool:
        """Whether a mapped step must not add another item: too many wait for equal calls."""
        if not self._parked or (self._limit is None and self._steps[step].pool is None):
            return False  # nothing else stops it either
        most = most_waiting(self._steps[step], self._limit)
        if len(self._parked) < most:
            return False
        return sum(self._steps[node] is self._steps[step] for node in self._parked) >= most

    def begin(self, node: int, at_ms: float) -> float:
        """Note that a node waits no longer, and return how long it has."""
        return max(0.0, at_ms - self._since.pop(node, at_ms))

    def _count(self, node: int, change: int) -> None:
        step = self._steps[node]
        is_map = step.map_over is not None and node < self._step_count
        if step.pool is not None and not is_map:
            self._taken[step.line] = self._taken.get(step.line, 0) + change


class SkippedStep(NamedTuple):
    """A step that will never start."""

    step: int
    reason: str
    by_condition: bool


class Readiness:
    """Which steps of a run become ready, and when. Steps are indexes of its plan.

    With ``by_tiers``, a step waits for the whole tier before it, unless it waits for a signal or
    depends on one: the others must not stand still until that arrives. ``restored`` are the steps
    of a resumed run that have a result already, and so never start; ``None`` if the run was not
    resumed.

    Attributes:
        unsettled: How many steps have not settled.
        failed_by: The settled steps that failed, or did not run because of a failure, each with
            the name of the step that failed first. A step asks this of each of its dependencies.
        skipped_by: The same for steps that were skipped by condition.
        flowing: The mapped steps of which an item has succeeded, so that steps which are mapped
            over them have something to do, whatever becomes of the others.
        unreachable: The steps that will never start, until they are taken.
        unasked: The steps whose turn has come and that have a condition, until they are taken.
        stop_reason: Why nothing but clean-up steps becomes ready any more.
    """

    def __init__(
        self,
        plan: Plan,
        phases: list[Phase],
        queue: AdmissionQueue,
        *,
        by_tiers: bool,
        restored: frozenset[int] | None = None,
    ) -> None:
        self._plan = plan
        self._phases = phases
        self._queue = queue
        self._by_tiers = by_tiers
        self._untiered: Collection[int] = plan.untiered if by_tiers else range(len(plan.steps))
        """The steps that have their turn when the last of their dependencies has settled."""
        self._cleanups = plan.cleanups
        # When the run stops, steps of later tiers settle before their turn, which matters only if
        # there are clean-up steps; and what a resumed run restores settles at its beginning.
        self._in_any_order = restored is not None or bool(plan.cleanups)
        self._restored = restored or frozenset()
        self.unsettled = len(plan.steps)
        self._ordinary_unsettled = len(plan.steps) - len(plan.cleanups)
        """Without clean-up steps; it is counted only if there are any."""
        self.failed_by: dict[int, str] = {}
        self.skipped_by: dict[int, str] = {}
        self.flowing: set[int] = set()
        self.unreachable: list[SkippedStep] = []
        self.unasked: list[int] = []
        self.stop_reason: str | None = None
        self._held: list[int] = []
        """The clean-up steps whose turn has come, and that wait for all other steps."""
        self._tier = -1
        self._tiers = plan.tiers
        self._tier_of: dict[int, int] = {}
        self._unsettled_in: list[int] = []
        self._dependencies_unsettled: list[int] = []

    def begin(self, at_ms: float) -> None:
        """Start the run."""
        tiers, untiered = self._plan.tiers, self._untiered
        if untiered:
            self._dependencies_unsettled = [len(needed) for needed in self._plan.dependencies]
        if self._by_tiers:
            if untiered:
                tiers = self._tiers = [[at for at in tier if at not in untiered] for tier in tiers]
            self._unsettled_in = list(map(len, tiers))
            if self._in_any_order:
                self._tier_of = {step: at for at, tier in enumerate(tiers) for step in tier}
            self._begin_next_tier(at_ms)
        if untiered and self._plan.tiers:
            first = self._plan.tiers[0]
            self._take_turns([at for at in first if at in untiered], at_ms)

    def settled(self, step: int, at_ms: float) -> None:
        """Note that a step has settled, so that others may follow."""
        self.unsettled -= 1
        if self._cleanups and step not in self._cleanups:
            self._ordinary_unsettled -= 1
            if self._held and not self._ordinary_unsettled:
                held, self._held = self._held, []
                self._take_turns(held, at_ms)
        untiered = self._untiered
        if self._by_tiers and not (untiered and step in untiered):
            at = self._tier_of[step] if self._in_any_order else self._tier
            left = self._unsettled_in[at] = self._unsettled_in[at] - 1
            if not left and at == self._tier:
                self._begin_next_tier(at_ms)
        if untiered:
            self._release_dependents(step, at_ms)

    def flow(self, source: int, at_ms: float) -> None:
        """Note that an item of a mapped step has succeeded, so that later steps may take it."""
        if source in self.flowing:
            return
        self.flowing.add(source)
        flows = self._plan.flows
        later = [each for each in self._plan.chained[source] if flows.get(each) == source]
        self._release(later, at_ms)

    def stop(self, reason: str, *, exempt_cleanups: bool) -> None:
        """Let nothing become ready any more, clean-up steps aside if they are exempt."""
        if self.stop_reason is None:
            self.stop_reason = reason
            candidates: Iterable[int] = range(len(self._plan.steps))
        else:
            candidates = sorted(self._cleanups)
        spared = self._cleanups if exempt_cleanups else ()
        for step in candidates:
            if step in spared or step in self._restored:
                continue
            if self._phases[step] in (Phase.PENDING, Phase.READY, Phase.AWAITING):
                # What was ready may have been scheduled, if a stored run is replayed.
                was_ready = self._phases[step] == Phase.READY
                self._skip(step, reason, phase=Phase.DROPPED if was_ready else Phase.UNREACHABLE)

    @property
    def ordinary_unsettled(self) -> int:
        """How many steps have not settled, without clean-up steps."""
        return self._ordinary_unsettled if self._cleanups else self.unsettled

    def take_unreachable(self) -> list[SkippedStep]:
        """Return the steps that will never start, each once."""
        skipped, self.unreachable = self.unreachable, []
        # The events of a stored run that is replayed have settled some of them.
        final = (Phase.UNREACHABLE, Phase.DROPPED)
        return [each for each in skipped if self._phases[each.step] in final]

    def take_unasked(self) -> list[int]:
        """Return the steps whose turn has come and whose condition must be asked, each once."""
        unasked, self.unasked = self.unasked, []
        return unasked

    def lacks_output(self, step: int) -> bool:
        """Whether a step that has settled did not succeed."""
        return step in self.skipped_by or step in self.failed_by

    def skip_lost(self) -> None:
        """Make the pending steps unreachable that a failure has lost, however the others end.

        What a condition has skipped tells less: a failure that comes yet would count for more.
        """
        for step in self._plan.order if self.failed_by else ():
            if not self.failed_by.keys().isdisjoint(self._plan.dependencies[step]):
                self.skip_if_lost(step)

    def skip_if_lost(self, step: int) -> None:
        """Make a pending step unreachable if it will never start, however the others end.

        Steps are asked in topological order. If the run stops, what has not settled counts as a
        failure, after which a step may run.
        """
        follows_failures = self._plan.steps[step].run_if == "failure"
        is_certain = not follows_failures or self._restored >= {*self._plan.dependencies[step]}
        if self._phases[step] == Phase.PENDING and is_certain:
            self._decide(step)

    def _release_dependents(self, step: int, at_ms: float) -> None:
        dependents = self._plan.dependents[step]
        if step in self.flowing:  # some were released with its first item
            flows = self._plan.flows
            dependents = [each for each in dependents if flows.get(each) != step]
        self._release(dependents, at_ms)

    def _release(self, dependents: Iterable[int], at_ms: float) -> None:
        """Let steps take their turn that have waited for nothing else, not even a tier."""
        missing, turns = self._dependencies_unsettled, []
        if self._by_tiers:
            dependents = [each for each in dependents if each in self._untiered]
        for dependent in dependents:
            missing[dependent] -= 1
            if not missing[dependent]:
                turns.append(dependent)
        self._take_turns(turns, at_ms)

    def _begin_next_tier(self, at_ms: float) -> None:
        tiers = self._tiers
        while self._tier + 1 < len(tiers):
            self._tier += 1
            self._take_turns(tiers[self._tier], at_ms)
            if self._unsettled_in[self._tier]:
                return

    def _take_turns(self, steps: Sequence[int], at_ms: float) -> None:
        if self.stop_reason is not None and not self._cleanups:
            return  # they are unreachable, as is all that was pending when the run stopped
        if self.failed_by or self.skipped_by or self._in_any_order:
            steps = [step for step in steps if self._decide(step)]
        phases = self._phases
        for step in steps:
            phases[step] = Phase.READY
        if self._plan.conditional:
            self.unasked += filter(self._plan.conditional.__contains__, steps)
        self._queue.put(steps, at_ms)

    def _decide(self, step: int) -> bool:
        """Return whether a step whose turn has come is ready; else hold it, or skip it."""
        if self._phases[step] != Phase.PENDING or step in self._restored:
            return False  # the run is stopping, or has its result already
        needed, why = self._plan.dependencies[step], "it depends on step"
        if step in self._cleanups and self.stop_reason is not None and self._ordinary_unsettled:
            self._held.append(step)
            return False
        run_if, source = self._plan.steps[step].run_if, self._plan.steps[step].map_over
        if run_if != "success":
            has_failed = any(other in self.failed_by for other in needed)
            if run_if == "failure" and not has_failed:
                self._skip(step, 'run_if="failure", and no dependency failed', by_condition=True)
                return False
            if run_if != "unless_failed" or not has_failed:
                if run_if == "unless_failed" and needed and self.skipped_by.keys() >= {*needed}:
                    reason = 'run_if="unless_failed", and no dependency succeeded'
                    self._skip(step, reason, by_condition=True)
                    return False
                # It can do without the outputs of its dependencies, but not without its items.
                at = None if source is None else self._plan.index.get(source)
                needed = () if at is None else (at,)
                why = "its items depend on step"
        elif (flow := self._plan.flows.get(step)) in self.flowing:
            # The items that have succeeded go through, even if others have failed it.
            needed = tuple(other for other in needed if other != flow)
        for grounds, what in (self.failed_by, "failed"), (self.skipped_by, "was skipped"):
            cause = next((grounds[other] for other in needed if other in grounds), None)
            if cause is not None:
                grounds[step] = cause
                reason = f"{why} {cause!r}, which {what}"
                self._skip(step, reason, by_condition=grounds is self.skipped_by)
                return False
        return True

    def _skip(
        self,
        step: int,
        reason: str,
        *,
        phase: Phase = Phase.UNREACHABLE,
        by_condition: bool = False,
    ) -> None:
        self._phases[step] = phase
        self.unreachable.append(SkippedStep(step, reason, by_condition))
        self._queue.is_dirty = True


_MOST_WAITING = 100
"""How many items may wait for a later step, equal calls or their key, unless more than half as many
run."""


def most_waiting(step: WorkflowStep, max_concurrency: int | None) -> int:
    """Return how many items may wait for a step before what adds them is held back."""
    sizes = [max_concurrency, None if step.pool is None else step.pool.size]
    at_once = min((size for size in sizes if size is not None), default=0)
    return max(_MOST_WAITING, 2 * at_once)
