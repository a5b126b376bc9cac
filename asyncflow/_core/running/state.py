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
from asyncflow._core.errors import IllegalEventError
from asyncflow._core.history.log import History, StartedAttempt, of_plain
from asyncflow._core.history.report import RunReport, report_of
from asyncflow._core.history.results import (
    Interruption,
    InterruptionCause,
    Key,
    RunStatus,
    Segment,
    StepResult,
    StepStatus,
    fail_fast_reason,
    run_facts,
)
from asyncflow._core.pipeline.graph import Plan
from asyncflow._core.running.deadlines import Deadlines
from asyncflow._core.running.scheduler import AdmissionQueue, Readiness
from asyncflow._core.running.step_runs import Phase, StepRuns

if TYPE_CHECKING:
    from asyncflow._core.history.resume import Snapshot
    from asyncflow._core.history.step_view import StepView
    from asyncflow._core.running.chains import Chains

Schedule: TypeAlias = Literal["tiers", "ready"]

# Looked up for every step: a member of an enum takes twice as long.
_ATTEMPTING, _SETTLED = Phase.ATTEMPTING, Phase.SETTLED


class RunState:
    """The state of one run: the driver applies what happens, and asks its parts what follows.

    Attributes:
        step_runs: What is known of each node.
        readiness: Which steps become ready, and which never will.
        queue: Which nodes may start now. It is dirty if `AdmissionQueue.take_ready` or
            `Readiness.take_unreachable` has news.
        deadlines: Until when an attempt may run, and whether another one follows.
        chains: The items between mapped steps; ``None`` if no such step is mapped over another.
        history: What has happened.
        awaiting: The steps that wait for a signal.
        stop_reason: Why the run stops; ``None`` if it does not.
        cause: Why it was interrupted, as data.
        has_timed_out: Whether its deadline has stopped it.
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
        self._fail_fast = fail_fast
        self.stop_reason: str | None = None
        self.cause: InterruptionCause | None = None
        self.has_timed_out = False
        runs = self.step_runs = StepRuns(
            plan, None if snapshot is None else snapshot.pending_attempts
        )
        self._steps, self._phases = runs.steps, runs.phases
        self._latest, self._ends = runs.latest, runs.ends
        self._step_count = len(plan.steps)
        self._started: events.RunStarted | None = None
        self._finished: events.RunFinished | None = None
        self._interrupted = False
        slim = [at for at in plan.having("map_over") if not plan.steps[at].keep_outputs]
        self.history = History(
            None if snapshot is None else snapshot.replay,
            frozenset([plan.steps[at].name for at in slim]),
        )
        self._note = self.history.append if slim else self.history.log.append
        self.awaiting: dict[int, events.StepWaiting] = {}
        self._taken: dict[Key, StepView] = {}
        """What nodes reuse of other runs that start now."""
        self.queue = AdmissionQueue(
            max_concurrency,
            runs.steps,
            runs.phases,
            [at for argument in ("pool", "cache_ms", "runs_in") for at in plan.having(argument)],
        )
        self.readiness = Readiness(
            plan,
            runs.phases,
            self.queue,
            by_tiers=schedule == "tiers",
            restored=None if snapshot is None else snapshot.restored_steps(plan),
        )
        self.chains: Chains | None = None
        if plan.chained:
            from asyncflow._core.running.chains import Chains  # few runs have any

            self.chains = Chains(plan, runs, self.readiness, max_concurrency)
        began_ms = 0.0 if snapshot is None else snapshot.limited_from_ms
        self.deadlines = Deadlines(runs, self.queue, deadline_ms, random, began_ms)

    # What happens.

    def begin(self, node: int, attempt: int, at_ms: float) -> StartedAttempt:
        """Apply the start of an attempt of a plain step or item that was scheduled.

        `begin` and `succeed` are `apply` for most nodes. Each makes a tuple, and no event.
        """
        queue = self.queue
        queued_ms = queue.begin(node, at_ms) if queue.is_limited else 0.0
        item = None if node < self._step_count else self.step_runs.item_of(node)
        started = self._steps[node].name, attempt, at_ms, queued_ms, item
        self._latest[node] = started
        self._phases[node] = _ATTEMPTING
        self._note(started)
        return started

    def succeed(self, node: int, at_ms: float, output: Any) -> None:
        """Apply the success of an attempt that `begin` has started."""
        started: StartedAttempt = self._latest[node]  # type: ignore[assignment]  # from `begin`
        ended = self._ends[node] = started, at_ms, output
        self._note(ended)
        self._phases[node] = _SETTLED
        if self.queue.is_limited:
            self.queue.leave(node)
        if node < self._step_count:
            self.readiness.settled(node, at_ms)
        else:
            self.step_runs.end_item(node)
            if self.chains is not None:
                self.chains.end_item(node, at_ms)

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
            node = self._plan.index[event.step]  # type: ignore[index]  # it has a rule
        except KeyError:
            raise IllegalEventError(event, "the pipeline has no such step") from None
        if event.item is not None:
            node = self.step_runs.find_or_add_item(node, event)  # type: ignore[arg-type]
        before = phases[node]
        if before not in allowed:
            if before == Phase.PENDING and type(event) is events.StepSkipped:
                # A run that waits skips what is lost before its turn.
                self.readiness.skip_if_lost(node)
            if phases[node] not in allowed:
                raise IllegalEventError(event, before.text)
        fold(self, node, event)
        self._note(event)
        if settles:
            phases[node] = _SETTLED
        if self.queue.is_limited:
            self.queue.moved(node, before, phases[node])
        if not settles:
            return
        at_ms = event.at_ms
        if node < self._step_count:
            if self.chains is not None:
                self.chains.end(node, at_ms)
            self.readiness.settled(node, at_ms)
        else:
            self.step_runs.end_item(node)
            if self.chains is not None:
                self.chains.end_item(node, at_ms)

    def _on_run_started(self, event: events.RunStarted) -> None:
        if self._started is not None:
            raise IllegalEventError(event, "the run has started")
        self._started = event
        self.readiness.begin(0.0)

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
        self.readiness.begin(event.at_ms)

    def _on_run_interrupted(self, event: events.RunInterrupted) -> None:
        self._check_runs(event)
        if self._interrupted:  # it was drained, and is cancelled now
            self.readiness.stop_reason = event.reason
        self._interrupted, self.cause = True, event.cause
        self._stop(event.reason, exempt_cleanups=False)

    def _on_run_timed_out(self, event: events.RunTimedOut) -> None:
        self._check_runs(event)
        self.has_timed_out |= self.stop_reason is None
        self._stop(event.reason, exempt_cleanups=True)

    def _on_run_finished(self, event: events.RunFinished) -> None:
        self._check_runs(event)
        if event.status is RunStatus.WAITING:
            if not self.awaiting or any(phase not in _AT_REST for phase in self._phases):
                raise IllegalEventError(event, "something else than signals is left")
        elif self.readiness.unsettled:
            raise IllegalEventError(event, f"{self.readiness.unsettled} step(s) have not ended")
        self._finished = event

    def _on_result_reused(self, event: events.ResultReused) -> None:
        self._check_runs(event)
        node = self.step_runs.find(event.step, event.item)
        if node is None or not self.step_runs.is_scheduled(node):
            return  # a rerun begins with it: the snapshot has the result
        from asyncflow._core.history.step_view import (
            StepView,  # few runs reuse what other runs have
        )

        self._taken[event.step, event.item] = StepView(
            self.step_runs.name_of(node),
            status=StepStatus.SUCCESS,
            output=event.output,
            error=event.error,
            item=event.item,
            origin=event.origin,
        )

    def _check_runs(self, event: events.Event) -> None:
        if self._started is None or self._finished is not None:
            raise IllegalEventError(event, "the run is not running")

    def _on_attempt_started(self, node: int, event: events.AttemptStarted) -> None:
        runs = self.step_runs
        if event.attempt != runs.next_attempt(node):
            raise IllegalEventError(event, f"the latest attempt was {runs.latest_attempt(node)!r}")
        self._latest[node] = event
        self._phases[node] = Phase.ATTEMPTING
        if self.queue.is_limited:
            self.queue.begin(node, event.at_ms)
        if self._plan.given:
            self.deadlines.start(node, event)
        if event.engine:
            runs.submitted.add(node)

    def _on_attempt_began(self, node: int, event: events.AttemptBegan) -> None:
        self.step_runs.check_latest(node, event)
        self.deadlines.begin(node, self.step_runs.begin_submitted(node, event.at_ms))

    def _on_attempt_failed(self, node: int, event: events.AttemptFailed) -> None:
        runs = self.step_runs
        runs.check_latest(node, event)
        if node in runs.submitted:
            self.deadlines.begin(node, runs.begin_submitted(node, event.at_ms))
        runs.fail(node, event.error)
        self._phases[node] = Phase.WAITING

    def _on_map_started(self, node: int, event: events.MapStarted) -> None:
        self.step_runs.begin_map(node, event.count)
        if self.chains is not None:
            self.chains.begin(node, event.count)

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
            self.step_runs.check_latest(node, event)
        self.awaiting.pop(node, None)
        self._ends[node] = event
        if event.error is not None:
            self.step_runs.fail(node, event.error)

    def _on_step_waiting(self, node: int, event: events.StepWaiting) -> None:
        self._phases[node], self.awaiting[node] = Phase.AWAITING, event

    def _on_step_failed(self, node: int, event: events.StepFailed) -> None:
        self._end(node, event)
        self._phases[node] = Phase.SETTLED  # before the run stops, which drops what is ready
        if event.item is None:
            self.readiness.failed_by[node] = event.step
            self._fail_run(event.step)
        elif not self.step_runs.count_loss(node, StepStatus.FAILED):
            self._fail_run(event.step)

    def _fail_run(self, step: str) -> None:
        if self._fail_fast:
            self._stop(fail_fast_reason(step), exempt_cleanups=True)

    def _on_step_cancelled(self, node: int, event: events.StepCancelled) -> None:
        if self._phases[node] < Phase.ATTEMPTING and self._latest[node] is None:
            raise IllegalEventError(event, self._phases[node].text)
        self._end(node, event)
        if event.item is None:
            failed_by = self.readiness.failed_by
            cause = self._plan.index.get(event.cause, node)
            failed_by[node] = failed_by.get(cause, event.step)

    def _on_step_skipped(self, node: int, event: events.StepSkipped) -> None:
        self.awaiting.pop(node, None)
        self._ends[node] = event
        if event.item is not None:
            self._phases[node] = Phase.SETTLED  # as above
            if not self.step_runs.count_loss(node, StepStatus.SKIPPED):
                self._fail_run(event.step)
            return
        grounds = self.readiness.skipped_by if event.by_condition else self.readiness.failed_by
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
            grounds = self.readiness.skipped_by if is_skipped else self.readiness.failed_by
            grounds[node] = event.step
        elif restored.status is not StepStatus.SUCCESS:
            self.step_runs.count_loss(node, restored.status)

    def _on_remark(self, node: int, event: events.AttemptLocated | events.ThreadAbandoned) -> None:
        """Check what is said of the running attempt, and changes nothing that decides."""
        self.step_runs.check_latest(node, event)

    def _on_loop_blocked(self, node: int, event: events.LoopBlocked) -> None:
        self._check_runs(event)
        latest = self.step_runs.latest_attempt(node)
        if latest is None or not 1 <= event.attempt <= latest.attempt:
            raise IllegalEventError(event, f"the latest attempt is {latest!r}")
        self.step_runs.blocked.add(node)

    def _stop(self, reason: str, *, exempt_cleanups: bool) -> None:
        self.readiness.stop(reason, exempt_cleanups=exempt_cleanups)
        self.stop_reason = self.readiness.stop_reason
        for step in self.step_runs.maps():
            if not exempt_cleanups or not self.step_runs.steps[step].is_cleanup:
                for node in self.step_runs.items(step):
                    if self._phases[node] == Phase.READY:
                        self.drop_item(node)

    # Items.

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

    def drop_item(self, node: int) -> None:
        """Forget an item that was added and will never start, since the run stops."""
        self.queue.drop(node)
        self.step_runs.end_item(node)

    def forget_item(self, node: int) -> None:
        """Forget an item that need not be kept; another one may be the same node after that."""
        self.deadlines.forget(node)
        self.step_runs.forget_item(node)

    # What it is.

    def is_exempt_from_stop(self, node: int) -> bool:
        """Whether a node continues although the run stops: it belongs to a clean-up step."""
        return self._steps[node].is_cleanup and not self._interrupted

    def is_overridden_by(self, why: Interruption) -> bool:
        """Whether a run that was drained is cancelled now, so that no other process resumes it."""
        return self.cause == "drained" and why.cause in ("cancelled", "replaced")

    def result(self, node: int) -> StepResult | None:
        """The result of a node, if it has ended, as the report of the run has it."""
        end = self._ends[node]
        if end is None:
            return None
        runs = self.step_runs
        if type(end) is tuple and end[0][1] == 1 and node not in runs.blocked:
            made_of = self._steps[node]  # the replay would keep a view of it
            found = of_plain(end, made_of.depends_on, made_of.max_retries)
        else:
            run, (name, item) = self.history.folded(), runs.key_of(node)
            step = run.steps[name]
            found = (step if item is None else (step.items or {})[item]).to_result(run.at_ms)
        return self._with_item_values(node, found) if self._plan.map_over else found

    def _with_item_values(self, node: int, found: StepResult) -> StepResult:
        from asyncflow._core.history.item_values import give  # few runs ask

        items, inputs = found.items or (), self._started.inputs if self._started else {}
        step = node
        if node >= self._step_count:
            items, step = (found,), self.step_runs.owner_of(node)
        for each in items:
            assert each.item is not None
            give(each, self.step_runs.value_given(inputs, step, each.item))
        return found

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
        return RunStatus.FAILED if self.readiness.failed_by else RunStatus.PASSED

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
