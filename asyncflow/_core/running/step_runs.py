"""The nodes of a run (its steps, and the items of its mapped steps): phases, attempts, ends."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeGuard

from asyncflow._core.errors import IllegalEventError, ResultRefusedError
from asyncflow._core.history.log import EndedAttempt, StartedAttempt
from asyncflow._core.history.results import REDACTED_OUTPUT, Key, StepStatus
from asyncflow._core.pipeline.graph import Plan
from asyncflow._core.pipeline.step import tolerates
from asyncflow._core.record import replace
from asyncflow.events import (
    AttemptBegan,
    AttemptFailed,
    AttemptLocated,
    AttemptStarted,
    StepCancelled,
    StepEvent,
    StepFailed,
    StepReused,
    StepSkipped,
    StepSucceeded,
    ThreadAbandoned,
)

if TYPE_CHECKING:
    from asyncflow._core.history.carryover import PendingAttempts
    from asyncflow._core.history.step_view import StepView


class Phase(IntEnum):
    """Where a node stands, with the sentence that says so in errors."""

    text: str

    PENDING = 0, "the step's turn has not come"
    READY = 1, "the step is ready"
    SCHEDULED = 2, "the step is about to start"
    AWAITING = 3, "the step waits for a signal"
    UNREACHABLE = 4, "the step will never start"
    DROPPED = 5, "the step was ready when the run stopped"
    ATTEMPTING = 6, "an attempt of the step is running"
    WAITING = 7, "the step waits for its next attempt"
    QUEUED = 8, "the step is queued for its next attempt"
    RESCHEDULED = 9, "the step is about to start its next attempt"
    MAPPING = 10, "the step goes through its items"
    SETTLED = 11, "the step has ended"

    def __new__(cls, value: int, text: str) -> Phase:
        phase = int.__new__(cls, value)
        phase._value_, phase.text = value, text
        return phase


IN_FLIGHT = (Phase.SCHEDULED, Phase.RESCHEDULED, Phase.ATTEMPTING)
"""The phases that count against ``max_concurrency`` and the pools."""


NodeEnd: TypeAlias = (
    "EndedAttempt | StepSucceeded | StepFailed | StepCancelled | StepSkipped | StepView"
)
"""How a node has ended: in the plain lane, with an event, or as it was restored."""
_ENDS_HERE = (tuple, StepSucceeded, StepFailed, StepCancelled, StepSkipped)


def is_restored(end: NodeEnd | None) -> TypeGuard[StepView]:
    """Whether a node has its end from another segment or another run."""
    # Not by its class: a run that restores nothing does not load it.
    return end is not None and type(end) not in _ENDS_HERE


def status_of(end: NodeEnd | None) -> StepStatus | None:
    """Return how a node has ended, if it has."""
    if isinstance(end, tuple):
        return StepStatus.SUCCESS
    return None if end is None else end.status


def output_of(end: NodeEnd | None) -> Any:
    """Return the output of a node; ``None`` unless it has succeeded."""
    if type(end) is tuple:
        return end[2]
    return end.output if isinstance(end, StepSucceeded) or is_restored(end) else None


AttemptEvent: TypeAlias = (
    AttemptBegan
    | AttemptLocated
    | AttemptFailed
    | StepSucceeded
    | StepFailed
    | StepCancelled
    | ThreadAbandoned
)
"""What happens to the latest attempt of a node."""


class ItemEnd(NamedTuple):
    """How an item of a mapped step has ended."""

    name: str
    """Such as ``fetch[3]``."""
    status: StepStatus
    output: Any
    """``None`` unless it has succeeded."""
    error: BaseException | None


class StepRuns:
    """The table of the nodes of a run.

    The number of a step is its index in the plan. Items of mapped steps get the numbers above, as
    they are added.

    Attributes:
        latest: The latest attempt of each node, if it has started any; also before a resumption.
            Those of the plain lane are tuples.
        ends: How each node has ended, if it has.
        errors: Those of all attempts and nodes.
        submitted: The nodes whose running attempt waits for a worker of an engine.
        blocked: The nodes that have blocked the event loop.
    """

    def __init__(
        self, plan: Plan, pending_attempts: Mapping[Key, PendingAttempts] | None = None
    ) -> None:
        self._plan = plan
        self._pending_attempts = pending_attempts or {}
        self.steps = list(plan.steps)
        count = len(self.steps)
        self.phases = [Phase.PENDING] * count
        self.latest: list[AttemptStarted | StartedAttempt | None] = [None] * count
        for (name, item), each in self._pending_attempts.items():
            if item is None:
                self.latest[plan.index[name]] = each.latest
        self.ends: list[NodeEnd | None] = [None] * count
        self.errors: list[BaseException] = []
        self._last_errors: dict[int, BaseException] = {}
        self.submitted: set[int] = set()
        self.blocked: set[int] = set()
        self._item_of: dict[int, tuple[int, int]] = {}
        self._free: list[int] = []
        """The nodes of items that were forgotten, for other items."""
        self._maps: dict[int, _Map] = {}

    def is_item(self, node: int) -> bool:
        """Whether a node is an item of a mapped step."""
        return node in self._item_of

    def item_of(self, node: int) -> int | None:
        """Which item of its step a node is; ``None`` if it is the step itself."""
        return self._item_of[node][1] if node in self._item_of else None

    def owner_of(self, item: int) -> int:
        """The mapped step to which an item belongs, both as nodes."""
        return self._item_of[item][0]

    def name_of(self, node: int) -> str:
        """The name of a node: ``fetch``, or ``fetch[3]``."""
        name = self.steps[node].name
        return f"{name}[{self._item_of[node][1]}]" if node in self._item_of else name

    def key_of(self, node: int) -> Key:
        """Which step, or which item of which step, a node is."""
        return self.steps[node].name, self.item_of(node)

    def find(self, step: str, item: int | None = None) -> int | None:
        """The node of a step or an item; ``None`` if there is none, or it was forgotten."""
        node = self._plan.index.get(step)
        if node is None or item is None:
            return node
        return self._maps[node].nodes.get(item) if node in self._maps else None

    def find_unended(self, step: str, item: int | None = None) -> int | None:
        """The node of a step or an item; ``None`` if that has ended."""
        node = self.find(step, item)
        return None if node is None or self.has_ended(node) else node

    # Attempts.

    def is_scheduled(self, node: int) -> bool:
        """Whether a node was admitted and its first attempt has not started."""
        return self.phases[node] is Phase.SCHEDULED

    def is_attempting(self, node: int) -> bool:
        """Whether an attempt of a node is running."""
        return self.phases[node] is Phase.ATTEMPTING

    def has_begun(self, node: int) -> bool:
        """Whether an attempt of a node is running, and not in the queue of an engine."""
        return self.is_attempting(node) and node not in self.submitted

    def next_attempt(self, node: int) -> int:
        """The number of the attempt that a node starts next."""
        latest = self.latest[node]
        if latest is None:
            return 1
        return 1 + (latest[1] if isinstance(latest, tuple) else latest.attempt)

    def attempt_started(self, node: int, at_ms: float, queued_ms: float) -> AttemptStarted:
        """Return the event of the next attempt of a node, which starts now."""
        step, attempt = self.steps[node], self.next_attempt(node)
        engine = "" if step.remote is None else step.remote.name
        return AttemptStarted(step.name, attempt, at_ms, queued_ms, self.item_of(node), engine)

    def result_refused(self, node: int, attempt: int, output: object) -> ResultRefusedError:
        """Return what an attempt fails with whose retry policy does not accept its output."""
        shown = REDACTED_OUTPUT if self.steps[node].secret else output
        return ResultRefusedError(self.name_of(node), attempt, shown)

    def latest_attempt(self, node: int) -> AttemptStarted | None:
        """The latest attempt that a node has started, if any; also before a resumption."""
        latest = self.latest[node]
        return AttemptStarted(*latest) if isinstance(latest, tuple) else latest

    def running_attempt(self, node: int) -> AttemptStarted | None:
        """The attempt of a node that is running, if one is."""
        return self.latest_attempt(node) if self.is_attempting(node) else None

    def check_latest(self, node: int, event: AttemptEvent) -> None:
        """Check that the latest attempt of a node is the one that an event is about."""
        if event.attempt == 0 or self.next_attempt(node) != event.attempt + 1:
            raise IllegalEventError(event, f"the latest attempt is {self.latest_attempt(node)!r}")

    def begin_submitted(self, node: int, at_ms: float) -> float:
        """Let an attempt that was submitted to an engine start only now; return how long it waited.

        Until now it was queued.
        """
        submitted = self.latest_attempt(node)
        assert submitted is not None
        waited_ms = at_ms - submitted.at_ms
        queued_ms = submitted.queued_ms + waited_ms
        self.latest[node] = replace(submitted, at_ms=at_ms, queued_ms=queued_ms)
        self.submitted.discard(node)
        return waited_ms

    def pending_attempts(self, node: int) -> PendingAttempts | None:
        """The attempts that a node had before a resumption, if it continues with them."""
        return self._pending_attempts.get(self.key_of(node)) if self._pending_attempts else None

    # Failures and ends.

    def fail(self, node: int, error: BaseException) -> None:
        """Note what the latest attempt of a node has failed with, or the node itself."""
        self._last_errors[node] = error
        self.errors.append(error)

    def last_error(self, node: int) -> BaseException | None:
        """The error of the latest attempt of a node that has failed; also before a resumption."""
        if node in self._last_errors:
            return self._last_errors[node]
        pending = self.pending_attempts(node)
        return None if pending is None else pending.error

    def error_to_ask_for(self, node: int) -> BaseException | None:
        """The error that the next attempt of a node can ask for; see `StepContext.last_error`."""
        pending = self.pending_attempts(node)
        if pending is None or node in self._last_errors:
            return self.last_error(node)
        return pending.last_error

    def has_ended(self, node: int) -> bool:
        """Whether a node has ended."""
        return self.ends[node] is not None

    def status(self, node: int) -> StepStatus | None:
        """How a node has ended, if it has."""
        return status_of(self.ends[node])

    def has_succeeded(self, node: int) -> bool:
        """Whether a node has ended well."""
        return self.status(node) is StepStatus.SUCCESS

    def output(self, node: int) -> Any:
        """The output of a node; ``None`` unless it has succeeded."""
        return output_of(self.ends[node])

    def error(self, node: int) -> BaseException | None:
        """The error of a node that has ended, if it has one."""
        end = self.ends[node]
        has_error = isinstance(end, StepSucceeded | StepFailed | StepCancelled) or is_restored(end)
        return end.error if has_error else None  # type: ignore[union-attr]  # as above

    def must_keep(self, node: int) -> bool:
        """Whether an item that has ended must be kept: for its output, or since it has failed."""
        if self.steps[node].keep_outputs or node in self._last_errors:
            return True
        return not self.has_succeeded(node) or self.error(node) is not None

    # Mapped steps.

    def begin_map(self, step: int, count: int | None) -> None:
        """Begin with the items of a mapped step, of which there are so many, if that is known."""
        self._maps[step] = _Map(count)
        self.phases[step] = Phase.MAPPING

    def add_item(self, step: int, item: int | None = None) -> int:
        """Make an item of a mapped step a node: by default the next one."""
        mapped = self._maps[step]
        if item is None:
            item = len(mapped.nodes)
        if self._free:
            node = self._free.pop()
            self.steps[node], self.phases[node] = self.steps[step], Phase.PENDING
        else:
            node = len(self.steps)
            self.steps.append(self.steps[step])
            self.phases.append(Phase.PENDING)
            self.ends.append(None)
            self.latest.append(None)
        self._item_of[node] = step, item
        pending_attempts = self.pending_attempts(node)
        if pending_attempts is not None:
            self.latest[node] = pending_attempts.latest
        mapped.nodes[item] = node
        mapped.unsettled += 1
        return node

    def forget_item(self, node: int) -> None:
        """Forget an item that has ended, and let another one have its node."""
        step, item = self._item_of.pop(node)
        mapped = self._maps[step]
        del mapped.nodes[item]
        mapped.forgotten += 1
        self.ends[node] = self.latest[node] = None
        self.blocked.discard(node)
        self._free.append(node)

    def count_of_items(self, step: int) -> int:
        """How many items of a mapped step are nodes, or were before they were forgotten."""
        return len(self._maps[step].nodes) + self._maps[step].forgotten

    def find_or_add_item(self, step: int, event: StepEvent) -> int:
        """Return the node of the item that an event is about, which it may be the first of."""
        mapped = self._maps.get(step)
        if mapped is None:
            raise IllegalEventError(event, "the step has not begun to go through its items")
        assert event.item is not None
        if event.item in mapped.nodes:
            return mapped.nodes[event.item]
        if self.phases[step] != Phase.MAPPING or not self._is_first(event):
            raise IllegalEventError(event, "the item has not been started")
        node = self.add_item(step, event.item)  # a stored run is replayed
        self.phases[node] = Phase.READY
        return node

    def _is_first(self, event: StepEvent) -> bool:
        """Whether an event can be the first of an item."""
        if isinstance(event, StepReused | StepSkipped):
            return True
        if (event.step, event.item) in self._pending_attempts:
            return isinstance(event, AttemptStarted | StepFailed | StepSucceeded | StepCancelled)
        is_first = isinstance(event, AttemptStarted) and event.attempt == 1
        # An item may end without an attempt: what it needs of its pool can't be had, so that it
        # fails, or its fallback is asked.
        is_first |= isinstance(event, StepFailed | StepSucceeded) and event.attempt == 0
        return is_first and (event.item or 0) >= 0

    def end_item(self, node: int) -> None:
        """An item has settled, or will never start."""
        self.phases[node] = Phase.SETTLED
        self._maps[self._item_of[node][0]].unsettled -= 1

    def count_loss(self, node: int, status: StepStatus | None) -> bool:
        """Count an item that has failed or is skipped; return whether its step may still succeed.

        A step is not given the items that it skips, so they are no part of what a share is of.
        """
        step = self._item_of[node][0]
        mapped = self._maps[step]
        if status is StepStatus.FAILED:
            mapped.failed += 1
        else:
            mapped.skipped += 1
        given = None if mapped.count is None else mapped.count - mapped.skipped
        return tolerates(self.steps[step], mapped.failed, given)

    def maps(self) -> list[int]:
        """Return the mapped steps that have begun with their items."""
        return list(self._maps)

    def items(self, step: int) -> list[int]:
        """Return the nodes of a mapped step's items, in order."""
        nodes = self._maps[step].nodes
        return [nodes[item] for item in sorted(nodes)]

    def has_unsettled_items(self, step: int) -> bool:
        """Whether an item of a mapped step has not ended."""
        return self._maps[step].unsettled > 0

    def value_given(self, inputs: Mapping[str, Any], step: int, item: int) -> object:
        """Return the value that an item was given, or `item_values.UNKNOWN`."""
        from asyncflow._core.history.item_values import UNKNOWN, value_at  # few runs ask

        mapped = self.steps[step]
        assert mapped.map_over is not None
        if mapped.map_over not in mapped.depends_on:
            return value_at(inputs.get(mapped.map_over), item)
        source = self._plan.index[mapped.map_over]
        maker, end = self.steps[source], self.ends[source]
        if maker.map_over is not None:
            if not maker.keep_outputs:
                return UNKNOWN
            if is_restored(end):
                end = (end.items or {}).get(item)
            else:
                node = self.find(maker.name, item)
                end = None if node is None else self.ends[node]
        if status_of(end) is not StepStatus.SUCCESS:
            return UNKNOWN
        output = REDACTED_OUTPUT if maker.secret else output_of(end)
        return value_at(output, item) if maker.map_over is None else output

    def ends_of_items(self, step: int) -> list[ItemEnd] | None:
        """Return how a mapped step's items have ended, in order; ``None`` while one has not.

        An item that was dropped before it started is left out.
        """
        if self.has_unsettled_items(step):
            return None
        return [
            ItemEnd(self.name_of(node), status, self.output(node), self.error(node))
            for node in self.items(step)
            if (status := self.status(node)) is not None
        ]


class _Map:
    """The items of a mapped step."""

    __slots__ = ("count", "failed", "forgotten", "nodes", "skipped", "unsettled")

    def __init__(self, count: int | None) -> None:
        self.count = count
        self.failed = self.skipped = self.forgotten = 0
        self.nodes: dict[int, int] = {}
        self.unsettled = 0
