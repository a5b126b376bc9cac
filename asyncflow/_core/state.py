"""Whatever decides what a run does next: a fold over its events.

Rules:

1. A step moves along the table `_STEP_RULES` and no other way. An event that cannot happen to it
   in its phase is refused with `IllegalEventError` and changes nothing.
2. A step's turn comes when its tier begins (``schedule="tiers"``) or when the last of its
   dependencies settles (``schedule="ready"``). A tier begins when every step of the tier before
   has settled.
3. When its turn comes, a step is ready if all its dependencies succeeded, and unreachable if not.
   Another ``run_if`` sets another condition. A run that only waits for signals skips at once what a
   failure has lost, however the waits end: it need not wait for its turn.
4. Once the run is stopping (a step failed under ``fail_fast``, its deadline expired, or it was
   interrupted) nothing becomes ready any more, and what was not scheduled is unreachable. Clean-up
   steps are exempt, unless the run was interrupted: their turn comes when all others have settled.
5. At most ``max_concurrency`` steps are in flight at a time, and of those that share a pool at
   most as many as it has slots. A step is in flight from when it is scheduled to the end of its
   attempt; for the next attempt it is queued again.
6. An item of a mapped step is like a step whose turn has come. The mapped step itself is then no
   longer in flight, and settles after its items.
7. A step that is mapped over a mapped step gets each item as that one ends (`Chains`). With
   ``schedule="ready"`` its turn comes when the first of them succeeds.
8. A mapped step fails for certain when more of its items have failed than it tolerates. Until then
   the failure of an item stops nothing but the same item of later steps.

Nothing here reads a clock or waits, and the only code of a user that it calls is a retry policy.
So the same events lead to the same state whenever and wherever they are applied.

Steps go in and out by their index in the `Plan`; events name them. The items of mapped steps have
numbers too, above those of all steps: a *node* is either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from asyncflow import events
from asyncflow._core.context import StartedAttempt
from asyncflow._core.errors import IllegalEventError
from asyncflow._core.graph import Plan
from asyncflow._core.history import History, of_plain
from asyncflow._core.record import replace
from asyncflow._core.report import RunReport, report_of
from asyncflow._core.results import (
    Interruption,
    InterruptionCause,
    RunStatus,
    Segment,
    StepResult,
    StepStatus,
    fail_fast_reason,
    run_facts,
)
from asyncflow._core.scheduler import (
    AdmissionQueue,
    Deadlines,
    Readiness,
    SkippedStep,
    most_waiting,
)
from asyncflow._core.step_runs import (
    Key,
    NodeEnd,
    Phase,
    Snapshot,
    StepRuns,
    is_restored,
    output_of,
    status_of,
)

if TYPE_CHECKING:
    from asyncflow._core.chains import Chains, ItemQueue
    from asyncflow._core.step_view import StepView

Schedule: TypeAlias = Literal["tiers", "ready"]

# Looked up for every step: a member of an enum takes twice as long.
_READY, _SCHEDULED, _ATTEMPTING, _SETTLED = (
    Phase.READY,
    Phase.SCHEDULED,
    Phase.ATTEMPTING,
    Phase.SETTLED,
)


class RunState:
    """The state of one run: the driver applies what happens, and asks what follows.

    ``queue`` is dirty if `take_ready` or `take_unreachable` has news. ``history`` remembers
    what has happened, and ``errors`` has those of all attempts and steps.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        fail_fast: bool = True,
        schedule: Schedule = "tiers",
        max_concurrency: int | None = None,
        deadline_ms: float | None = None,
        random: Callable[[], float] = float,
        snapshot: Snapshot | None = None,
    ) -> None:
        self._plan = plan
        self._snapshot = snapshot
        self._begun = frozenset() if snapshot is None else snapshot.steps_begun()
        self._index = plan.index
        self._fail_fast = fail_fast
        self.stop_reason: str | None = None
        self.cause: InterruptionCause | None = None
        self.has_timed_out = False
        step_runs = self.step_runs = StepRuns(
            plan, None if snapshot is None else snapshot.pending_attempts
        )
        self._steps = step_runs.steps
        self._phases = step_runs.phases
        self._latest, self._ends = step_runs.latest, step_runs.ends
        self._step_count = len(plan.steps)
        self._started: events.RunStarted | None = None
        self._finished: events.RunFinished | None = None
        self._interrupted = False
        self._slim = frozenset(
            at for at in plan.having("map_over") if not plan.steps[at].keep_outputs
        )
        """The mapped steps that keep no outputs."""
        self.history = History(
            None if snapshot is None else snapshot.replay,
            frozenset([plan.steps[at].name for at in self._slim]),
        )
        self._note = self.history.append if self._slim else self.history.log.append
        self.errors: list[BaseException] = []
        self._last_errors: dict[int, BaseException] = {}
        self._blocked: set[int] = set()
        """The nodes that have blocked the event loop."""
        self._unnoted: dict[int, events.AttemptStarted | StartedAttempt] = {}
        """How the first attempts of items of theirs have started that run, and only that."""
        self.awaiting: dict[int, events.StepWaiting] = {}
        """The steps that wait for a signal."""
        self._parked: set[int] = set()
        """The nodes that are ready and wait for an equal call, in no line."""
        self._max_concurrency = max_concurrency
        self._taken: dict[Key, StepView] = {}
        """What nodes reuse of other runs that start now."""
        self._submitted: set[int] = set()
        """The nodes whose running attempt waits for a worker of an engine."""
        self.queue = AdmissionQueue(
            max_concurrency,
            step_runs.steps,
            [at for argument in ("pool", "cache_ms", "runs_in") for at in plan.having(argument)],
        )
        self.is_limited = self.queue.is_limited
        self._chains: Chains | None = None
        if plan.chained:
            from asyncflow._core.chains import Chains  # few runs have any

            self._chains = Chains(plan, step_runs.phases, max_concurrency)
        self._readiness = Readiness(
            plan,
            step_runs.phases,
            self.queue,
            by_tiers=schedule == "tiers",
            restored=None if snapshot is None else snapshot.restored_steps(plan),
        )
        began_ms = 0.0 if snapshot is None else snapshot.limited_from_ms
        self.deadlines = Deadlines(step_runs, self.queue, deadline_ms, random, began_ms)

    # What happens.

    def begin(self, node: int, attempt: int, at_ms: float) -> StartedAttempt:
        """Apply the start of an attempt of a plain step or item that was scheduled.

        `begin` and `succeed` are `apply` for most nodes. Each makes a tuple, and no event.
        """
        queued_ms = self.queue.begin(node, at_ms) if self.is_limited else 0.0
        item = None if node < self._step_count else self.step_runs.item_of(node)
        started = self._steps[node].name, attempt, at_ms, queued_ms, item
        self._latest[node] = started
        self._phases[node] = _ATTEMPTING
        if attempt == 1 and self._slim and self._may_be_left_out(node):
            self._unnoted[node] = started
        else:
            self._note(started)
        return started

    def succeed(self, node: int, at_ms: float, output: Any) -> None:
        """Apply the success of an attempt that `begin` has started."""
        started: StartedAttempt = self._latest[node]  # type: ignore[assignment]  # from `begin`
        ended = self._ends[node] = started, at_ms, output
        if node in self._unnoted:
            del self._unnoted[node]
            self.history.leave_out(started, at_ms)
        else:
            self._note(ended)
        self._phases[node] = _SETTLED
        if self.is_limited:
            self.queue.leave(node)
        if node < self._step_count:
            self._readiness.settled(node, at_ms)
        else:
            self.step_runs.end_item(node)
            if self._plan.chained:
                self._flow(node, at_ms)

    def apply(self, event: events.Event) -> None:
        """Apply an event.

        Raises:
            IllegalEventError: The event cannot happen in this state. Nothing has changed.
        """
        rule = _STEP_RULES.get(type(event))
        if rule is None:
            run_rule = _RUN_RULES.get(type(event))
            if run_rule is None:
                return  # it changes nothing that decides
            run_rule(self, event)
            is_known = self._snapshot is not None and type(event) in _IN_SNAPSHOT
            if is_known and not self._taken:
                self.history.note_folded(event)
            else:
                self._note(event)
            return
        allowed, settles, fold = rule
        phases = self._phases
        try:
            node = self._index[event.step]  # type: ignore[index]  # it has a rule
        except KeyError:
            raise IllegalEventError(event, "the pipeline has no such step") from None
        if event.item is not None:
            node = self.step_runs.node_of_item(node, event)  # type: ignore[arg-type]
        before = phases[node]
        if before not in allowed:
            if before == Phase.PENDING and type(event) is events.StepSkipped:
                self.look_ahead(node)  # a run that waits skips what is lost before its turn
            if phases[node] not in allowed:
                raise IllegalEventError(event, before.text)
        fold(self, node, event)
        if self._slim and self._is_slim(node):
            self._note_slim(node, event)
        else:
            self._note(event)
        if settles:
            phases[node] = _SETTLED
        if self.is_limited:
            self.queue.moved(node, before, phases[node])
        if not settles:
            return
        at_ms = event.at_ms
        if node < self._step_count:
            if self._plan.chained:
                self._end_in_chain(node, at_ms)
            self._readiness.settled(node, at_ms)
        else:
            self.step_runs.end_item(node)
            if self._plan.chained:
                self._flow(node, at_ms)

    def _is_slim(self, node: int) -> bool:
        return node >= self._step_count and self.step_runs.owner_of(node) in self._slim

    def _note_slim(self, node: int, event: Any) -> None:
        """Note an event of an item whose outputs are not kept, unless it just succeeds."""
        is_first = isinstance(event, events.AttemptStarted) and event.attempt == 1
        if is_first and self._may_be_left_out(node):
            self._unnoted[node] = event
            return
        started = self._unnoted.pop(node, None)
        if started and isinstance(event, events.StepSucceeded) and event.error is None:
            self.history.leave_out(started, event.at_ms)
            return
        if isinstance(event, events.LoopBlocked) and not self.keeps(node):
            return
        if started is not None:
            self._note(started)
        self._note(event)

    def _flow(self, node: int, at_ms: float) -> None:
        """Queue an item that has ended for the steps that are mapped over its step."""
        source, number = self.step_runs.owner_of(node), self.step_runs.item_of(node)
        if source in self._plan.chained:
            assert number is not None
            self._queue_in_chain(source, number, self._ends[node], at_ms)

    def _end_in_chain(self, step: int, at_ms: float) -> None:
        """Note the end of a step that may be in a chain; one that is reused has all its items."""
        end = self._ends[step]
        if is_restored(end) and step in self._plan.chained:
            for number, item in sorted((end.items or {}).items()):
                self._queue_in_chain(step, number, item, at_ms)
        assert self._chains is not None  # as its caller has asked
        self._chains.end(step)

    def _queue_in_chain(self, source: int, number: int, end: NodeEnd | None, at_ms: float) -> None:
        status, problem = status_of(end), ""
        if status is StepStatus.SKIPPED:
            assert isinstance(end, events.StepSkipped) or is_restored(end)
            problem = end.reason or ""
        elif status is not StepStatus.SUCCESS:
            word = "failed" if status is StepStatus.FAILED else "was cancelled"
            problem = f"item {number} of step {self._steps[source].name!r} {word}"
        assert self._chains is not None  # as its callers have asked
        self._chains.end_item(source, number, output_of(end), problem)
        if not problem:
            self._readiness.flow(source, at_ms)

    def _on_run_started(self, event: events.RunStarted) -> None:
        if self._started is not None:
            raise IllegalEventError(event, "the run has started")
        self._started = event
        self._readiness.begin(0.0)

    def _on_run_resumed(self, event: events.RunResumed) -> None:
        snapshot = self._snapshot
        if self._started is not None or snapshot is None:
            raise IllegalEventError(
                event, "the run has started" if snapshot else "the run has no snapshot"
            )
        self._started = events.RunStarted(
            snapshot.run_id,
            snapshot.wall_time,
            event.dependencies,
            event.pipeline,
            inputs=snapshot.inputs,
        )
        self._readiness.begin(event.at_ms)

    def _on_run_interrupted(self, event: events.RunInterrupted) -> None:
        self._check_runs(event)
        if self._interrupted:  # it was drained, and is cancelled now
            self._readiness.stop_reason = event.reason
        self._interrupted, self.cause = True, event.cause
        self._stop(event.reason, exempt_cleanups=False)

    def is_overridden_by(self, why: Interruption) -> bool:
        """Whether a run that was drained is cancelled now, so that no other process resumes it."""
        return self.cause == "drained" and why.cause in ("cancelled", "replaced")

    def _on_run_timed_out(self, event: events.RunTimedOut) -> None:
        self._check_runs(event)
        self.has_timed_out |= self.stop_reason is None
        self._stop(event.reason, exempt_cleanups=True)

    def _on_run_finished(self, event: events.RunFinished) -> None:
        self._check_runs(event)
        if event.status is RunStatus.WAITING:
            if not self.awaiting or any(phase not in _AT_REST for phase in self._phases):
                raise IllegalEventError(event, "something else than signals is left")
        elif self._readiness.unsettled:
            raise IllegalEventError(event, f"{self._readiness.unsettled} step(s) have not ended")
        self._finished = event

    def _on_result_reused(self, event: events.ResultReused) -> None:
        self._check_runs(event)
        node = self._scheduled_node(event.step, event.item)
        if node is None:
            return  # a rerun begins with it: the snapshot has the result
        from asyncflow._core.step_view import StepView  # few runs reuse what other runs have

        self._taken[event.step, event.item] = StepView(
            self.step_runs.name_of(node),
            status=StepStatus.SUCCESS,
            output=event.output,
            error=event.error,
            item=event.item,
            origin=event.origin,
        )

    def _scheduled_node(self, step: str, item: int | None) -> int | None:
        """Return the node of a step or an item, if it is about to start."""
        node = self._index.get(step)
        if node is not None and item is not None:
            has_item = node in self.step_runs.maps() and self.step_runs.has_item(node, item)
            node = self.step_runs.node_of(node, item) if has_item else None
        return node if node is not None and self.is_scheduled(node) else None

    def _check_runs(self, event: events.Event) -> None:
        if self._started is None or self._finished is not None:
            raise IllegalEventError(event, "the run is not running")

    def _on_attempt_started(self, node: int, event: events.AttemptStarted) -> None:
        if event.attempt != self.step_runs.next_attempt(node):
            raise IllegalEventError(event, f"the latest attempt was {self.latest_attempt(node)!r}")
        self._latest[node] = event
        self._phases[node] = Phase.ATTEMPTING
        if self.is_limited:
            self.queue.begin(node, event.at_ms)
        if self._plan.given:
            self.deadlines.start(node, event)
        if event.engine:
            self._submitted.add(node)

    def _on_attempt_began(self, node: int, event: events.AttemptBegan) -> None:
        self._check_latest(node, event)
        self._begin_submitted(node, event.at_ms)

    def _begin_submitted(self, node: int, at_ms: float) -> None:
        """Let an attempt that was submitted to an engine start only now: until then it waited."""
        submitted = self.latest_attempt(node)
        assert submitted is not None
        waited_ms = at_ms - submitted.at_ms
        queued_ms = submitted.queued_ms + waited_ms
        self._latest[node] = replace(submitted, at_ms=at_ms, queued_ms=queued_ms)
        self._submitted.discard(node)
        self.deadlines.begin(node, waited_ms)

    def _on_attempt_failed(self, node: int, event: events.AttemptFailed) -> None:
        self._check_latest(node, event)
        if node in self._submitted:
            self._begin_submitted(node, event.at_ms)
        self._fail(node, event.error)
        self._phases[node] = Phase.WAITING

    def _check_latest(
        self,
        node: int,
        event: events.AttemptBegan
        | events.AttemptLocated
        | events.AttemptFailed
        | events.StepSucceeded
        | events.StepFailed
        | events.StepCancelled
        | events.ThreadAbandoned,
    ) -> None:
        """Check that a node's latest attempt is the one that the event is about."""
        if event.attempt == 0 or self.step_runs.next_attempt(node) != event.attempt + 1:
            raise IllegalEventError(event, f"the latest attempt is {self.latest_attempt(node)!r}")

    def _fail(self, node: int, error: BaseException) -> None:
        self._last_errors[node] = error
        self.errors.append(error)

    def _on_map_started(self, node: int, event: events.MapStarted) -> None:
        self.step_runs.begin_map(node, event.count)
        if self._chains is not None:
            self._chains.begin(node, event.count)

    def _end(
        self, node: int, event: events.StepSucceeded | events.StepFailed | events.StepCancelled
    ) -> None:
        phase = self._phases[node]
        if isinstance(event, events.StepSucceeded) and event.error is None and phase not in _ENDING:
            raise IllegalEventError(event, phase.text)
        if phase is Phase.MAPPING:
            if self.step_runs.has_unsettled_items(node) or event.attempt:
                raise IllegalEventError(event, phase.text)
        elif phase < Phase.ATTEMPTING and self._latest[node] is None:
            if event.attempt:  # one that fails without an attempt has none
                raise IllegalEventError(event, phase.text)
        else:
            self._check_latest(node, event)
        self.awaiting.pop(node, None)
        self._ends[node] = event
        if event.error is not None:
            self._fail(node, event.error)

    def _on_step_waiting(self, node: int, event: events.StepWaiting) -> None:
        self._phases[node], self.awaiting[node] = Phase.AWAITING, event

    def _on_step_failed(self, node: int, event: events.StepFailed) -> None:
        self._end(node, event)
        self._phases[node] = Phase.SETTLED  # before the run stops, which drops what is ready
        if event.item is None:
            self._readiness.failed_by[node] = event.step
            self._fail_run(event.step)
        elif not self.step_runs.tolerates_loss(node, StepStatus.FAILED):
            self._fail_run(event.step)

    def _fail_run(self, step: str) -> None:
        if self._fail_fast:
            self._stop(fail_fast_reason(step), exempt_cleanups=True)

    def _on_step_cancelled(self, node: int, event: events.StepCancelled) -> None:
        if self._phases[node] < Phase.ATTEMPTING and self._latest[node] is None:
            raise IllegalEventError(event, self._phases[node].text)
        self._end(node, event)
        if event.item is None:
            failed_by = self._readiness.failed_by
            cause = self._index.get(event.cause, node)
            failed_by[node] = failed_by.get(cause, event.step)

    def _on_step_skipped(self, node: int, event: events.StepSkipped) -> None:
        self.awaiting.pop(node, None)
        self._ends[node] = event
        if event.item is not None:
            self._phases[node] = Phase.SETTLED  # as above
            if not self.step_runs.tolerates_loss(node, StepStatus.SKIPPED):
                self._fail_run(event.step)
            return
        grounds = self._readiness.skipped_by if event.by_condition else self._readiness.failed_by
        grounds.setdefault(node, event.step)

    def _on_step_reused(self, node: int, event: events.StepReused) -> None:
        key = event.step, event.item
        restored = self._taken.pop(key, None)
        if restored is None and self._snapshot is not None:
            restored = self._snapshot.restored.get(key)
        if restored is None:
            raise IllegalEventError(event, "no result of it was stored")
        self._ends[node] = restored
        if event.item is None and restored.status is not StepStatus.SUCCESS:
            is_skipped = restored.by_condition
            grounds = self._readiness.skipped_by if is_skipped else self._readiness.failed_by
            grounds[node] = event.step
        elif restored.status is not StepStatus.SUCCESS:
            self.step_runs.tolerates_loss(node, restored.status)

    def _on_remark(self, node: int, event: events.AttemptLocated | events.ThreadAbandoned) -> None:
        """Check what is said of the running attempt, and changes nothing that decides."""
        self._check_latest(node, event)

    def _on_loop_blocked(self, node: int, event: events.LoopBlocked) -> None:
        self._check_runs(event)
        latest = self.latest_attempt(node)
        if latest is None or not 1 <= event.attempt <= latest.attempt:
            raise IllegalEventError(event, f"the latest attempt is {latest!r}")
        self._blocked.add(node)

    def drop_item(self, node: int) -> None:
        """Forget an item that was added and will never start, since the run stops."""
        if self._phases[node] == Phase.SCHEDULED and self.is_limited:
            self.queue.leave(node)
        self._parked.discard(node)
        self.step_runs.end_item(node)

    def _stop(self, reason: str, *, exempt_cleanups: bool) -> None:
        self._readiness.stop(reason, exempt_cleanups=exempt_cleanups)
        self.stop_reason = self._readiness.stop_reason
        for step in self.step_runs.maps():
            if not exempt_cleanups or not self.step_runs.steps[step].is_cleanup:
                for node in self.step_runs.items(step):
                    if self._phases[node] == Phase.READY:
                        self.drop_item(node)

    # What follows.

    def take_ready(self) -> list[int]:
        """Return the nodes that may start their next attempt now, each once."""
        phases, queue = self._phases, self.queue
        queue.is_dirty = bool(self._readiness.unreachable)
        # What was queued may have become unreachable, or have been cancelled, in the meantime.
        if not self.is_limited:
            batch = [node for node in queue.take_all() if phases[node] is _READY]
            for node in batch:
                phases[node] = _SCHEDULED
            return batch
        batch = queue.take_placed() if queue.has_limit else []  # they wait in their tasks
        for node in queue.take():
            if phases[node] in (Phase.READY, Phase.QUEUED):
                phases[node] = _SCHEDULED if phases[node] is _READY else Phase.RESCHEDULED
                queue.enter(node)
                batch.append(node)
        return batch

    def take_unasked(self) -> list[int]:
        """Return the steps whose turn has come and whose condition must be asked, each once."""
        unasked, self._readiness.unasked = self._readiness.unasked, []
        return unasked

    def take_unreachable(self) -> list[SkippedStep]:
        """Return the steps that will never start, each once."""
        skipped, self._readiness.unreachable = self._readiness.unreachable, []
        # The events of a stored run that is replayed have settled some of them.
        final = (Phase.UNREACHABLE, Phase.DROPPED)
        return [each for each in skipped if self._phases[each.step] in final]

    def skip_lost(self) -> None:
        """Make the pending steps unreachable that a failure has lost, however the others end."""
        self._readiness.skip_lost()

    def look_ahead(self, step: int) -> None:
        """Make a pending step unreachable if it will never start, however the others end."""
        self._readiness.look_ahead(step)

    def stored_end(
        self, step: int, at_ms: float, item: int | None = None
    ) -> events.StepReused | None:
        """Return the event with which a run reuses a stored result, if there is one."""
        if self._snapshot is None:
            return None
        name = self._steps[step].name
        restored = self._snapshot.restored.get((name, item))
        if restored is None:
            return None
        keeps_outputs = self._steps[step].keep_outputs or item is not None
        return events.StepReused(name, at_ms, item, restored.status, restored.origin, keeps_outputs)

    def begins_with_waits(self) -> bool:
        """Whether nothing may start but signals that earlier segments have waited for."""
        queued = (Phase.READY, Phase.QUEUED)
        nodes = [node for node, phase in enumerate(self._phases) if phase in queued]
        return (
            bool(nodes)
            and not self._readiness.unreachable
            and all(node in self._plan.signals for node in nodes)
            and all(map(self.had_begun, [*nodes, *self._readiness.unasked]))
        )

    def had_begun(self, step: int) -> bool:
        """Whether a step, or an item of it, continues what it had begun before a resumption."""
        return self._steps[step].name in self._begun

    def is_exempt_from_stop(self, node: int) -> bool:
        """Whether a node continues although the run stops: it belongs to a clean-up step."""
        return self._steps[node].is_cleanup and not self._interrupted

    def enqueue_retry(self, node: int, since_ms: float, *, first: bool = False) -> None:
        """Queue a node for its next attempt, for which it may start from the given time on.

        ``first`` says whether it comes before all others that wait for the same pool.
        """
        assert self._phases[node] == Phase.WAITING
        self._phases[node] = Phase.QUEUED
        if first:
            self.queue.put_first(node, since_ms)
        else:
            self.queue.put([node], since_ms)

    def items_for(self, step: int) -> ItemQueue | None:
        """The queue of a step that is mapped over a mapped step; ``None`` for any other step."""
        return None if self._chains is None else self._chains.queues.get(step)

    def holds_back(self, step: int) -> bool:
        """Whether a mapped step must not start another item: too many wait for a later step."""
        return self._chains is not None and self._chains.holds_back(step)

    def add_item(self, step: int, at_ms: float, item: int | None = None) -> int:
        """Make an item of a mapped step, by default the next one, a node, and return that.

        It is queued or, if the run is stopping, will never start.
        """
        node = self.step_runs.add_item(step, item)
        if self.stop_reason is None or self.is_exempt_from_stop(step):
            self._phases[node] = Phase.READY
            self.queue.put([node], at_ms)
        else:
            self.step_runs.end_item(node)
        return node

    def forget_item(self, node: int) -> None:
        """Forget an item that need not be kept; another one may be the same node after that."""
        self.deadlines.forget(node)
        self.step_runs.forget_item(node)

    def _may_be_left_out(self, node: int) -> bool:
        """Whether nothing need be known of an item but that it has succeeded."""
        is_slim = self._is_slim(node)
        return is_slim and not self.history.has_former(*self.step_runs.key_of(node))

    def keeps(self, node: int) -> bool:
        """Whether an item that has ended must be kept: for its output, or since it has failed."""
        runs, is_kept = self.step_runs, node in self._last_errors or not self._is_slim(node)
        return is_kept or not self.has_succeeded(node) or runs.error(node) is not None

    def is_queued(self, node: int) -> bool:
        """Whether a node is ready and was not scheduled yet."""
        return self._phases[node] is _READY and node not in self._parked

    def park(self, node: int) -> None:
        """Let a node that is about to start wait, in no line and with no place."""
        self._phases[node] = _READY
        self._parked.add(node)
        if self.is_limited:
            self.queue.moved(node, _SCHEDULED, _READY)

    def parks_too_many(self, step: int) -> bool:
        """Whether a mapped step must not add another item: too many wait for equal calls."""
        if not self._parked or (self._max_concurrency is None and self._steps[step].pool is None):
            return False  # nothing else stops it either
        most = most_waiting(self._steps[step], self._max_concurrency)
        if len(self._parked) < most:
            return False
        return sum(self._steps[node] is self._steps[step] for node in self._parked) >= most

    def unpark(self, node: int, at_ms: float) -> bool:
        """Queue a node that was parked; return whether it still was."""
        if node not in self._parked:
            return False
        self._parked.discard(node)
        if self._phases[node] is not _READY:
            return False  # the run stops
        self.queue.put([node], at_ms)
        return True

    def is_scheduled(self, node: int) -> bool:
        """Whether a node was returned by `take_ready` and its first attempt has not started."""
        return self._phases[node] is _SCHEDULED

    def waits_for_retry(self, node: int) -> bool:
        """Whether an attempt of the node has failed, and it is not queued for the next one yet."""
        return self._phases[node] is Phase.WAITING

    def is_attempting(self, node: int) -> bool:
        """Whether an attempt of the node is running."""
        return self._phases[node] is _ATTEMPTING

    def has_begun(self, node: int) -> bool:
        """Whether an attempt of the node is running, and not in the queue of an engine."""
        return self.is_attempting(node) and node not in self._submitted

    def latest_attempt(self, node: int) -> events.AttemptStarted | None:
        """The latest attempt that the node has started, if any; also before a resumption."""
        return self.step_runs.latest_attempt(node)

    def running_attempt(self, node: int) -> events.AttemptStarted | None:
        """The attempt of the node that is running, if one is."""
        is_running = self._phases[node] is _ATTEMPTING
        return self.step_runs.latest_attempt(node) if is_running else None

    def last_error(self, node: int) -> BaseException | None:
        """The error of the latest attempt of a node that has failed; also before a resumption."""
        if node in self._last_errors:
            return self._last_errors[node]
        pending = self.step_runs.pending_attempts(node)
        return None if pending is None else pending.error

    def error_to_ask_for(self, node: int) -> BaseException | None:
        """The error that the next attempt of a node can ask for; see `StepContext.last_error`."""
        pending = self.step_runs.pending_attempts(node)
        if pending is None or node in self._last_errors:
            return self.last_error(node)
        return pending.last_error

    def result(self, node: int) -> StepResult | None:
        """The result of a node, if it has ended, as the report of the run has it."""
        end = self._ends[node]
        if end is None:
            return None
        if type(end) is tuple and end[0][1] == 1 and node not in self._blocked:
            made_of = self._steps[node]  # the replay would keep a view of it
            found = of_plain(end, made_of.depends_on, made_of.max_retries)
        else:
            run, (name, item) = self.history.folded(), self.step_runs.key_of(node)
            step = run.steps[name]
            found = (step if item is None else (step.items or {})[item]).to_result(run.at_ms)
        return self._with_item_values(node, found) if self._plan.map_over else found

    def _with_item_values(self, node: int, found: StepResult) -> StepResult:
        from asyncflow._core.item_values import give, value_in_run  # few runs ask

        items, inputs = found.items or (), self._started.inputs if self._started else {}
        step = node
        if node >= self._step_count:
            items, step = (found,), self.step_runs.owner_of(node)
        for each in items:
            assert each.item is not None
            give(each, value_in_run(self.step_runs, self._plan, inputs, step, each.item))
        return found

    def has_ended(self, node: int) -> bool:
        """Whether a node has ended."""
        return self._ends[node] is not None

    def unended(self, step: int, item: int | None) -> int | None:
        """The node of a step, or of an item of it; ``None`` if that has ended."""
        node = step
        if item is not None:
            if not self.step_runs.has_item(step, item):
                return None  # it was forgotten since
            node = self.step_runs.node_of(step, item)
        return None if self.has_ended(node) else node

    def result_of(self, name: str, item: int | None = None) -> StepResult | None:
        """The result of a step or an item by its name, if it has ended."""
        step = self._index[name]
        return self.result(step if item is None else self.step_runs.node_of(step, item))

    def status_of(self, name: str) -> StepStatus | None:
        """How a step has ended, if it has."""
        return self.step_runs.status(self._index[name])

    def has_succeeded(self, node: int) -> bool:
        """Whether a node has settled, and well."""
        return self.step_runs.status(node) is StepStatus.SUCCESS

    def output(self, step: int) -> Any:
        """The output of a step that has settled; ``None`` unless it has succeeded."""
        return output_of(self._ends[step])

    def lacks_output(self, step: int) -> bool:
        """Whether a step that has settled did not succeed."""
        return step in self._readiness.skipped_by or step in self._readiness.failed_by

    @property
    def unsettled(self) -> int:
        """How many steps have not settled."""
        return self._readiness.unsettled

    @property
    def ordinary_unsettled(self) -> int:
        """How many steps have not settled, without clean-up steps."""
        return (
            self._readiness.ordinary_unsettled if self._plan.cleanups else self._readiness.unsettled
        )

    @property
    def is_under_way(self) -> bool:
        """Whether the run has begun, and is not over."""
        return self._started is not None and self._finished is None

    @property
    def has_finished(self) -> bool:
        """Whether the run is over."""
        return self._finished is not None

    @property
    def status(self) -> RunStatus:
        """How the run ends, or would if it ended now."""
        if self._interrupted:
            return RunStatus.INTERRUPTED
        if self.awaiting:
            return RunStatus.WAITING
        return RunStatus.FAILED if self._readiness.failed_by else RunStatus.PASSED

    def report(self) -> RunReport:
        """Return the report of the run, which must have finished."""
        started, finished, is_resumed = self._started, self._finished, self._snapshot is not None
        assert started is not None
        assert finished is not None
        run = self.history.without_outputs() if is_resumed else None
        first = Segment(0.0, started.wall_time, finished.at_ms, started.process)
        return report_of(
            self.history,
            started.run_id,
            total_duration_ms=finished.at_ms,
            wall_time=started.wall_time,
            stop_reason=self.stop_reason,
            pipeline=started.pipeline,
            inputs=started.inputs,
            status=finished.status,
            segments=(first,) if run is None else run.segments,
            **run_facts(started if run is None else run),
        )


_AT_REST = (Phase.PENDING, Phase.AWAITING, Phase.SETTLED)
_UNSTARTED = (Phase.READY, Phase.SCHEDULED, Phase.DROPPED)
_ENDING = (Phase.ATTEMPTING, Phase.AWAITING, Phase.MAPPING)
"""The phases in which a node can succeed by itself, and not by its fallback."""
_BETWEEN_ATTEMPTS = (Phase.WAITING, Phase.QUEUED, Phase.RESCHEDULED)

_STEP_RULES: dict[type, tuple[tuple[Phase, ...], bool, Callable[[RunState, int, Any], None]]] = {
    # event: the phases in which it can happen, whether it settles the node, and what else it does
    events.AttemptStarted: (
        (*_UNSTARTED, *_BETWEEN_ATTEMPTS),
        False,
        RunState._on_attempt_started,
    ),
    events.AttemptBegan: ((Phase.ATTEMPTING,), False, RunState._on_attempt_began),
    events.AttemptFailed: ((Phase.ATTEMPTING,), False, RunState._on_attempt_failed),
    events.MapStarted: (_UNSTARTED, False, RunState._on_map_started),
    events.StepWaiting: ((Phase.AWAITING, *_UNSTARTED), False, RunState._on_step_waiting),
    events.StepSucceeded: (
        # What a fallback saves may fail without an attempt, or between two.
        (*_ENDING, Phase.WAITING, *_UNSTARTED),
        True,
        RunState._end,
    ),
    events.StepFailed: (
        (Phase.ATTEMPTING, Phase.AWAITING, Phase.WAITING, Phase.MAPPING, *_UNSTARTED),
        True,
        RunState._on_step_failed,
    ),
    events.StepCancelled: (
        # What has not started in this run may have started before a resumption.
        (
            Phase.ATTEMPTING,
            Phase.MAPPING,
            Phase.UNREACHABLE,
            *_UNSTARTED,
            *_BETWEEN_ATTEMPTS,
        ),
        True,
        RunState._on_step_cancelled,
    ),
    events.StepReused: (
        # Ready are items only, and scheduled is what reuses the result of an equal call.
        (Phase.PENDING, Phase.READY, Phase.SCHEDULED),
        True,
        RunState._on_step_reused,
    ),
    events.StepSkipped: ((Phase.UNREACHABLE, *_UNSTARTED), True, RunState._on_step_skipped),
    events.AttemptLocated: ((Phase.ATTEMPTING,), False, RunState._on_remark),
    events.ThreadAbandoned: ((Phase.ATTEMPTING,), False, RunState._on_remark),
    events.LoopBlocked: (
        (Phase.ATTEMPTING, Phase.SETTLED, *_BETWEEN_ATTEMPTS),
        False,
        RunState._on_loop_blocked,
    ),
}
_RUN_RULES: dict[type, Callable[[RunState, Any], None]] = {
    events.RunStarted: RunState._on_run_started,
    events.RunResumed: RunState._on_run_resumed,
    events.RunInterrupted: RunState._on_run_interrupted,
    events.RunTimedOut: RunState._on_run_timed_out,
    events.RunFinished: RunState._on_run_finished,
    events.ResultReused: RunState._on_result_reused,
}
"""Other events, such as what steps say, change nothing."""
_IN_SNAPSHOT = (events.RunStarted, events.RunResumed, events.ResultReused)
"""The events that the replay of a snapshot has already."""
