"""The nodes of a run (its steps, and the items of its mapped steps): phases, attempts, results.

`StepRuns` is the table of nodes, `AttemptLog` keeps their failed attempts and makes their results,
and a `Checkpoint` is what a resumed run restores of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from asyncflow._core.context import StartedAttempt
from asyncflow._core.errors import IllegalEventError, StepCrashedError
from asyncflow._core.graph import DependencyView, Plan
from asyncflow._core.record import made_by, record, replace
from asyncflow._core.results import Attempt, StepResult, StepStatus, end_of, without_repetition
from asyncflow._core.step import tolerates
from asyncflow.events import (
    AttemptBegan,
    AttemptFailed,
    AttemptStarted,
    LoopBlocked,
    StepCancelled,
    StepEvent,
    StepFailed,
    StepReused,
    StepSkipped,
    StepSucceeded,
    ThreadAbandoned,
)

if TYPE_CHECKING:
    from asyncflow._core.replay import StoredRun

Key: TypeAlias = tuple[str, int | None]
"""A step, or an item of a mapped step."""


class PendingAttempts(NamedTuple):
    """The attempts of a step, or of an item, that has started and not ended."""

    latest: AttemptStarted
    failed: tuple[Attempt, ...]
    """All of them. An interrupted one has failed with a `StepCrashedError`."""
    unfinished: int
    """How many of them were interrupted."""
    crashes: int
    """How many of these had begun: one that was queued at an engine did not."""

    @property
    def is_interrupted(self) -> bool:
        """Whether the latest attempt did not finish: its process died, or its journal failed."""
        return bool(self.failed) and isinstance(self.failed[-1].error, StepCrashedError)


@record
class Checkpoint:
    """Where a run stands that is resumed."""

    run_id: str
    wall_time: float
    """When it began, in seconds since the epoch (UTC)."""
    at_ms: float
    """The time at which it stood still."""
    results: Mapping[Key, StepResult]
    """The results that are restored."""
    pending_attempts: Mapping[Key, PendingAttempts]
    """What continues with the attempts that it has left."""
    reasons: Mapping[str, str]
    """Why steps of which something was known run again, by step."""
    pipeline: str = ""
    """What the pipeline is called."""
    inputs: Mapping[str, Any] = made_by(default_factory=dict)
    """All inputs of the run, with a stand-in for each secret one."""
    replay: StoredRun | None = None
    """The replay of the run, up to the `RunResumed` with which it continues."""

    def steps_begun(self) -> frozenset[str]:
        """The steps that continue: they, or items of theirs, had started."""
        items = {name for name, item in self.results if item is not None}
        return frozenset(items.union(name for name, _ in self.pending_attempts))

    def restored_steps(self, plan: Plan) -> frozenset[int]:
        """Return the steps of a plan (not the items) that have a result already."""
        return frozenset(plan.index[name] for name, item in self.results if item is None)


class Phase(IntEnum):
    """Where a node stands, with the sentence that says so in errors."""

    text: str

    PENDING = 0, "the step's turn has not come"
    READY = 1, "the step is ready"
    SCHEDULED = 2, "the step is about to start"
    UNREACHABLE = 3, "the step will never start"
    DROPPED = 4, "the step was ready when the run stopped"
    ATTEMPTING = 5, "an attempt of the step is running"
    WAITING = 6, "the step waits for its next attempt"
    QUEUED = 7, "the step is queued for its next attempt"
    RESCHEDULED = 8, "the step is about to start its next attempt"
    MAPPING = 9, "the step goes through its items"
    SETTLED = 10, "the step has ended"

    def __new__(cls, value: int, text: str) -> Phase:
        phase = int.__new__(cls, value)
        phase._value_, phase.text = value, text
        return phase


IN_FLIGHT = (Phase.SCHEDULED, Phase.RESCHEDULED, Phase.ATTEMPTING)
"""The phases that count against ``max_concurrency`` and the pools."""


class StepRuns:
    """The table of the nodes of a run.

    The number of a step is its index in the plan. Items of mapped steps get the numbers above, as
    they are added.

    Attributes:
        latest: The latest attempt of each node, if it has started any; also before a resumption.
        starts: The running or only attempt of each node in the plain lane. It becomes an event in
            `latest` when that is asked for: most runs need none before their end.
        ends: When each of these has succeeded, and its output. It becomes a result in `results`.
    """

    def __init__(
        self, plan: Plan, pending_attempts: Mapping[Key, PendingAttempts] | None = None
    ) -> None:
        self._plan = plan
        self._pending_attempts = pending_attempts or {}
        self.steps = list(plan.steps)
        count = len(self.steps)
        self.phases = [Phase.PENDING] * count
        self.latest: list[AttemptStarted | None] = [None] * count
        for (name, item), each in self._pending_attempts.items():
            if item is None:
                self.latest[plan.index[name]] = each.latest
        self.results: list[StepResult | None] = [None] * count
        self.starts: list[StartedAttempt | None] = [None] * count
        self.ends: list[tuple[float, Any] | None] = [None] * count
        self._item_of: dict[int, tuple[int, int]] = {}
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

    def next_attempt(self, node: int) -> int:
        """The number of the attempt that a node starts next."""
        latest = self.latest_attempt(node)
        return 1 if latest is None else latest.attempt + 1

    def latest_attempt(self, node: int) -> AttemptStarted | None:
        """The latest attempt that a node has started, if any; also before a resumption."""
        started = self.starts[node]
        if started is not None:
            self.result(node)  # which needs it
            self.latest[node] = AttemptStarted(*started)
            self.starts[node] = None
        return self.latest[node]

    def result(self, node: int) -> StepResult | None:
        """The result of a node, if it has settled."""
        end = self.ends[node]
        if end is not None:
            started = self.starts[node]
            assert started is not None
            _, attempt, started_ms, queued_ms, item = started
            ended_ms, output = end
            self.results[node] = StepResult(
                started[0] if item is None else self.name_of(node),
                StepStatus.SUCCESS,
                attempt,
                ended_ms - started_ms,
                output,
                started_ms=started_ms,
                depends_on=self.steps[node].depends_on,
                queued_ms=queued_ms,
            )
            self.ends[node] = None
        return self.results[node]

    def pending_attempts(self, node: int) -> PendingAttempts | None:
        """The attempts that a node had before a resumption, if it continues with them."""
        return self._pending_attempts.get(self.key_of(node)) if self._pending_attempts else None

    def key_of(self, node: int) -> Key:
        """Which step, or which item of which step, a node is."""
        return self.steps[node].name, self.item_of(node)

    def depends_on(self, node: int) -> tuple[str, ...]:
        """The names of the steps that a node depends on. A clean-up step may not name them all."""
        step = self.steps[node]
        return DependencyView(self._plan)[step.name] if step.is_cleanup else step.depends_on

    # Mapped steps.

    def begin_map(self, step: int, at_ms: float, count: int | None) -> None:
        """Begin with the items of a mapped step, of which there are so many, if that is known."""
        self._maps[step] = _Map(at_ms, count)
        self.phases[step] = Phase.MAPPING

    def map_started_ms(self, step: int) -> float:
        """When that was last."""
        return self._maps[step].started_ms

    def add_item(self, step: int, item: int | None = None) -> int:
        """Make an item of a mapped step a node: by default the next one."""
        node = len(self.steps)
        self.steps.append(self.steps[step])
        self.phases.append(Phase.PENDING)
        self.results.append(None)
        self.starts.append(None)
        self.ends.append(None)
        mapped = self._maps[step]
        if item is None:
            item = len(mapped.nodes)
        self._item_of[node] = step, item
        pending_attempts = self.pending_attempts(node)
        self.latest.append(None if pending_attempts is None else pending_attempts.latest)
        mapped.nodes[item] = node
        mapped.unsettled += 1
        return node

    def count_of_items(self, step: int) -> int:
        """How many items of a mapped step are nodes."""
        return len(self._maps[step].nodes)

    def node_of(self, step: int, item: int) -> int:
        """Return the node of an item that has been added to a mapped step."""
        return self._maps[step].nodes[item]

    def node_of_item(self, step: int, event: StepEvent) -> int:
        """Return the node of the item that an event is about."""
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
            return isinstance(event, AttemptStarted | StepFailed | StepCancelled)
        return isinstance(event, AttemptStarted) and event.attempt == 1 and (event.item or 0) >= 0

    def end_item(self, node: int) -> None:
        """An item has settled, or will never start."""
        self.phases[node] = Phase.SETTLED
        self._maps[self._item_of[node][0]].unsettled -= 1

    def tolerates_failure(self, node: int) -> bool:
        """Count an item that has failed; return whether its step may succeed all the same."""
        step = self._item_of[node][0]
        mapped = self._maps[step]
        mapped.failed += 1
        return tolerates(self.steps[step], mapped.failed, mapped.count)

    def maps(self) -> list[int]:
        """Return the mapped steps that have begun with their items."""
        return list(self._maps)

    def items(self, step: int) -> list[int]:
        """Return the nodes of a mapped step's items, in order."""
        nodes = self._maps[step].nodes
        return [nodes[item] for item in sorted(nodes)]

    def results_of_items(self, step: int) -> list[StepResult] | None:
        """Return the results of a mapped step's items, in order; ``None`` while one is missing."""
        if self._maps[step].unsettled:
            return None
        return [result for node in self.items(step) if (result := self.result(node)) is not None]


class _Map:
    """The items of a mapped step."""

    __slots__ = ("count", "failed", "nodes", "started_ms", "unsettled")

    def __init__(self, started_ms: float, count: int | None) -> None:
        self.started_ms = started_ms
        self.count = count
        self.failed = 0
        self.nodes: dict[int, int] = {}
        self.unsettled = 0


HERE = "", ""
"""The engine and the worker of an attempt in the process of the run."""

StepEnd: TypeAlias = StepSucceeded | StepFailed | StepCancelled


class AttemptLog:
    """The failed attempts of each node of a run, and its result when it has ended.

    Attributes:
        remarks: Facts that go into the result of a node as they are, by node.
        submitted: The nodes whose running attempt no worker of its engine has begun with.
        places: The engine and the worker of the latest attempt of each node that was submitted to
            an engine.
    """

    def __init__(self, step_runs: StepRuns) -> None:
        self._step_runs = step_runs
        self._failed: dict[int, tuple[Attempt, ...]] = {}
        self.remarks: dict[int, dict[str, Any]] = {}
        self.submitted: set[int] = set()
        self.places: dict[int, tuple[str, str]] = {}

    def last_error(self, node: int) -> BaseException | None:
        """The error of the latest failed attempt of a node, if one has failed."""
        failed = self.attempts(node)
        return failed[-1].error if failed else None

    def errors(self) -> Iterator[BaseException]:
        """Yield the errors of all failed attempts."""
        for attempts in self._failed.values():
            yield from (each.error for each in attempts if each.error is not None)

    def attempts(self, node: int) -> tuple[Attempt, ...]:
        """Return the failed attempts of a node, also those before a resumption."""
        failed = self._failed.get(node)
        if failed is None:
            pending_attempts = self._step_runs.pending_attempts(node)
            failed = () if pending_attempts is None else pending_attempts.failed
        return failed

    def fail(self, node: int, event: AttemptFailed) -> None:
        """Note that the running attempt has failed, and that another one follows."""
        started = self._ended(node, event)
        self._failed[node] = (*self.attempts(node), self._attempt(node, started, event))

    def began(self, node: int, event: AttemptBegan) -> None:
        """Note that a worker has begun with the running attempt, which starts only now."""
        self._start_at(node, self.latest(node, event), event.at_ms)
        self.places[node] = event.engine, event.worker

    def _ended(self, node: int, event: StepEnd | AttemptFailed) -> AttemptStarted:
        """Return the latest attempt, which has ended. If it was submitted, it has only waited."""
        started = self.latest(node, event)
        if node in self.submitted and not isinstance(event, StepSucceeded):
            return self._start_at(node, started, event.at_ms)
        return started

    def _start_at(self, node: int, submitted: AttemptStarted, at_ms: float) -> AttemptStarted:
        """Let a submitted attempt start only now: until then it was queued."""
        self.submitted.discard(node)
        queued_ms = submitted.queued_ms + (at_ms - submitted.at_ms)
        started = replace(submitted, at_ms=at_ms, queued_ms=queued_ms)
        self._step_runs.latest[node] = started
        return started

    def remark(self, node: int, **facts: Any) -> None:
        """Note facts that go into the result as they are."""
        self.remarks.setdefault(node, {}).update(facts)

    def block(self, node: int, event: LoopBlocked) -> None:
        """Note that a node has blocked the loop. It may have ended before the loop could tell."""
        latest, results = self._step_runs.latest_attempt(node), self._step_runs.results
        if latest is None or not 1 <= event.attempt <= latest.attempt:
            raise IllegalEventError(event, f"the latest attempt is {latest!r}")
        blocked_ms = self.remarks.get(node, {}).get("loop_blocked_ms", 0.0) + event.blocked_ms
        self.remark(node, loop_blocked_ms=blocked_ms)
        result = results[node]
        if result is None:
            return
        results[node] = self.with_remarks(node, result)
        owner = self._step_runs.owner_of(node) if self._step_runs.is_item(node) else node
        whole = results[owner]
        if owner != node and whole is not None:
            results[owner] = replace(
                whole,
                loop_blocked_ms=whole.loop_blocked_ms + event.blocked_ms,
                items=tuple(self._step_runs.results_of_items(owner) or ()),
            )

    def with_remarks(self, node: int, result: StepResult) -> StepResult:
        """Return a result with the facts that were noted of its node."""
        return replace(result, **self.remarks[node]) if node in self.remarks else result

    def result(
        self, node: int, event: StepEnd, status: StepStatus, error: BaseException | None
    ) -> StepResult:
        """Return the result of a node that has ended."""
        phase = self._step_runs.phases[node]
        if phase == Phase.MAPPING:
            return self._result_of_items(node, event, status, error)
        if phase < Phase.ATTEMPTING and self._step_runs.latest[node] is None:
            return self._result_without_attempts(node, event, status, error)
        started, history = self._ended(node, event), self.attempts(node) or None
        started_ms, queued_ms = started.at_ms, started.queued_ms
        if history is not None:
            if phase == Phase.ATTEMPTING:
                history = (*history, self._attempt(node, started, event))
            started_ms = history[0].started_ms
            queued_ms = sum(attempt.queued_ms for attempt in history)
        engine, worker = self.places.get(node, HERE)
        result = StepResult(
            self._step_runs.name_of(node),
            status,
            event.attempt,
            event.at_ms - started_ms,
            event.output if isinstance(event, StepSucceeded) else None,
            error,
            event.reason if isinstance(event, StepCancelled) else None,
            started_ms,
            history,
            self._step_runs.depends_on(node),
            queued_ms,
            secret=status is StepStatus.SUCCESS and self._step_runs.steps[node].secret,
            engine=engine,
            worker=worker,
        )
        return result if history is None else without_repetition(result)

    def skipped(self, node: int, event: StepSkipped) -> StepResult:
        """Return the result of a step that will never start."""
        return StepResult(
            self._step_runs.name_of(node),
            StepStatus.SKIPPED,
            reason=event.reason,
            recorded=(),
            depends_on=self._step_runs.depends_on(node),
            on_purpose=event.on_purpose,
        )

    def _result_without_attempts(
        self, node: int, event: StepEnd, status: StepStatus, error: BaseException | None
    ) -> StepResult:
        if event.attempt or self._step_runs.is_item(node):
            raise IllegalEventError(event, self._step_runs.phases[node].text)
        depends_on = self._step_runs.depends_on(node)
        return StepResult(event.step, status, error=error, recorded=(), depends_on=depends_on)

    def _result_of_items(
        self, step: int, event: StepEnd, status: StepStatus, error: BaseException | None
    ) -> StepResult:
        items = self._step_runs.results_of_items(step)
        if items is None or event.attempt:
            raise IllegalEventError(event, Phase.MAPPING.text)
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
            self._step_runs.depends_on(step),
            queued_ms=sum((result.queued_ms for result in items), start=0.0),
            loop_blocked_ms=sum((result.loop_blocked_ms for result in items), start=0.0),
            abandoned=any(result.abandoned for result in items),
            items=tuple(items),
            secret=status is StepStatus.SUCCESS and self._step_runs.steps[step].secret,
        )

    def began_ms(self, step: int, items: Iterable[StepResult]) -> float:
        """Return when a mapped step began, which may have been before a resumption."""
        begun = [item.started_ms for item in items if item.started_ms is not None]
        return min([self._step_runs.map_started_ms(step), *begun])

    def _attempt(self, node: int, started: AttemptStarted, end: StepEnd | AttemptFailed) -> Attempt:
        """Return an attempt that has ended."""
        error = None if isinstance(end, StepSucceeded) else end.error
        return Attempt(
            end.attempt,
            started.at_ms,
            end.at_ms - started.at_ms,
            error,
            started.queued_ms,
            1,
            isinstance(end, StepCancelled) and end_of(error) != "timed out",
            None,
            *self.places.get(node, HERE),
        )

    def latest(
        self, node: int, event: StepEnd | AttemptFailed | AttemptBegan | ThreadAbandoned
    ) -> AttemptStarted:
        """Return a node's latest attempt, which must be the one that the event is about."""
        started = self._step_runs.latest[node]
        if started is None or started.attempt != event.attempt:
            raise IllegalEventError(event, f"the latest attempt is {started!r}")
        return started
