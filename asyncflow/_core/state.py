"""Whatever decides what a run does next: a fold over its events.

Rules:

1. A step moves along the table `_STEP_RULES` and no other way. An event that cannot happen to it
   in its phase is refused with `IllegalEventError` and changes nothing.
2. A step's turn comes when its tier begins (``schedule="tiers"``) or when the last of its
   dependencies settles (``schedule="ready"``). A tier begins when every step of the tier before
   has settled.
3. When its turn comes, a step is ready if all its dependencies succeeded, and doomed if not. A
   clean-up step (``run_if``) goes by another condition.
4. Once the run is stopping (a step failed under ``fail_fast``, its deadline passed, or it was
   interrupted) nothing becomes ready any more, and all that was not handed out is doomed. Clean-up
   steps are spared, unless the run was interrupted; their turn comes when all others have settled.
5. No more than ``max_concurrency`` steps are in flight at a time, and of those that share a pool
   no more than it has slots. A step is in flight from when it is handed out to the end of its
   attempt; for the next attempt it gets in line again.
6. An item of a mapped step is like a step whose turn has come. The step is no longer in flight
   itself then, and settles after its items.

Nothing here reads a clock or waits, and of a user's code it calls nothing but a retry policy's.
So the same events lead to the same state whenever and wherever they are applied.

What the driver asks of the state of a run: what may start now, and what never will.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from asyncflow._core.errors import IllegalEventError
from asyncflow._core.graph import Plan
from asyncflow._core.record import replace
from asyncflow._core.report import RunReport
from asyncflow._core.results import StepResult, StepStatus
from asyncflow._core.scheduler import AdmissionQueue, Deadlines, Readiness, SkippedStep
from asyncflow._core.step_runs import (
    ATTEMPTING,
    DROPPED,
    MAPPING,
    PENDING,
    PHASES,
    QUEUED,
    READY,
    RESCHEDULED,
    SCHEDULED,
    SETTLED,
    UNREACHABLE,
    WAITING,
    AttemptLog,
    Checkpoint,
    StepRuns,
)
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    LoopBlocked,
    MapStarted,
    Outcome,
    RunFinished,
    RunInterrupted,
    RunResumed,
    RunStarted,
    RunTimedOut,
    StepCancelled,
    StepFailed,
    StepReused,
    StepSkipped,
    StepSucceeded,
    ThreadAbandoned,
)

__all__ = [
    "RunFold",
    "RunState",
    "Schedule",
]

Schedule: TypeAlias = Literal["tiers", "ready"]


class RunFold:
    """Where a run stands.

    Steps go in and out by their index in the `Plan`; events name them. The items of mapped steps
    have numbers too, above those of all steps: a *unit* is either.

    Attributes:
        units: The steps of the run and the items of its mapped steps.
        histories: The attempts that each of them has had.
        queue: Where units wait for their start; it says whether `ready` or `unreachable` has news.
        limits: How long attempts may take, and what follows those that fail.
        has_timed_out: Whether the run is stopping because of its deadline.
        is_limited: Whether some unit may have to wait in line before it starts.
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
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self._plan = plan
        self._checkpoint = checkpoint
        self._begun = frozenset() if checkpoint is None else checkpoint.steps_begun()
        self._index = plan.index
        self._fail_fast = fail_fast
        self.has_timed_out = False
        step_runs = self.step_runs = StepRuns(
            plan, None if checkpoint is None else checkpoint.pending_attempts
        )
        self._phases = step_runs.phases
        self._results = step_runs.results
        self._latest = step_runs.latest
        self._step_count = len(plan.steps)
        self._started: RunStarted | None = None
        self._finished: RunFinished | None = None
        self._interrupted = False
        self.attempt_log = AttemptLog(step_runs)
        self.queue = AdmissionQueue(max_concurrency, step_runs.steps, plan.special)
        self.is_limited = self.queue.is_limited
        self._steps = step_runs.steps
        self._is_straight = not self.is_limited and checkpoint is None
        """Whether steps neither stand in line nor have a past."""
        self._readiness = Readiness(
            plan,
            step_runs.phases,
            self.queue,
            by_tiers=schedule == "tiers",
            restored=None if checkpoint is None else checkpoint.restored_steps(plan),
        )
        began_ms = 0.0 if checkpoint is None else checkpoint.at_ms
        self.deadlines = Deadlines(step_runs, self.queue, deadline_ms, random, began_ms)

    # What the driver tells.

    def apply(self, event: Event) -> None:
        """Apply an event.

        Raises:
            IllegalEventError: The event cannot happen in this state. Nothing has changed.
        """
        rule = _STEP_RULES.get(type(event))
        if rule is None:
            _RUN_RULES[type(event)](self, event)
            return
        allowed, fold = rule
        phases = self._phases
        try:
            node = self._index[event.step]  # type: ignore[union-attr]
        except KeyError:
            raise IllegalEventError(event, "the pipeline has no such step") from None
        if event.item is not None:  # type: ignore[union-attr]
            node = self.step_runs.node_of_item(node, event)  # type: ignore[arg-type]
        before = phases[node]
        if before not in allowed:
            raise IllegalEventError(event, PHASES[before])
        result = fold(self, node, event)
        if result is not None:
            phases[node] = SETTLED
            self._results[node] = result
        if self.is_limited:
            self.queue.moved(node, before, phases[node])
        if result is None:
            return
        if self.attempt_log.has_remarks:
            self._results[node] = self.attempt_log.with_remarks(node, result)
        if node < self._step_count:
            self._readiness.settled(node, event.at_ms)  # type: ignore[union-attr]
        else:
            self.step_runs.end_item(node)

    def _on_run_started(self, event: RunStarted) -> None:
        if self._started is not None:
            raise IllegalEventError(event, "the run has started")
        self._started = event
        self._readiness.begin(0.0)

    def _on_run_resumed(self, event: RunResumed) -> None:
        checkpoint = self._checkpoint
        if self._started is not None or checkpoint is None:
            raise IllegalEventError(
                event, "the run has started" if checkpoint else "it has no past"
            )
        self._started = RunStarted(
            checkpoint.run_id,
            checkpoint.wall_time,
            event.dependencies,
            event.pipeline,
            inputs=checkpoint.inputs,
        )
        for name, reason in checkpoint.reasons.items():
            self.attempt_log.remark(self._index[name], rerun_reason=reason)
        self._readiness.begin(event.at_ms)

    def _on_run_interrupted(self, event: RunInterrupted) -> None:
        self._check_runs(event)
        self._interrupted = True
        self._stop(event.reason, exempt_cleanups=False)

    def _on_run_timed_out(self, event: RunTimedOut) -> None:
        self._check_runs(event)
        self.has_timed_out |= self._readiness.stop_reason is None
        self._stop(event.reason, exempt_cleanups=True)

    def _on_run_finished(self, event: RunFinished) -> None:
        self._check_runs(event)
        if self._readiness.unsettled:
            raise IllegalEventError(event, f"{self._readiness.unsettled} step(s) have not ended")
        self._finished = event

    def _check_runs(self, event: Event) -> None:
        if self._started is None or self._finished is not None:
            raise IllegalEventError(event, "the run is not running")

    def _on_attempt_started(self, node: int, event: AttemptStarted) -> None:
        latest = self._latest[node]
        if event.attempt != (1 if latest is None else latest.attempt + 1):
            raise IllegalEventError(event, f"the latest attempt was {latest!r}")
        self._latest[node] = event
        self._phases[node] = ATTEMPTING
        if self.is_limited:
            self.queue.begin(node)
        if self._plan.special:
            self.deadlines.start(node, event)

    def _on_attempt_failed(self, node: int, event: AttemptFailed) -> None:
        self.attempt_log.fail(node, event)
        self._phases[node] = WAITING

    def _on_map_started(self, node: int, event: MapStarted) -> None:
        self.step_runs.begin_map(node, event.at_ms)

    def _on_step_succeeded(self, node: int, event: StepSucceeded) -> StepResult:
        return self.attempt_log.result(node, event, StepStatus.SUCCESS, None)

    def _on_step_failed(self, node: int, event: StepFailed) -> StepResult:
        result = self.attempt_log.result(node, event, StepStatus.FAILED, event.error)
        self._phases[node] = SETTLED  # before the run stops, which withdraws what is ready
        if event.item is None:
            self._readiness.failed_by[node] = event.step
        if self._fail_fast:
            reason = f"step {event.step!r} failed and fail_fast is on"
            self._stop(reason, exempt_cleanups=True)
        return result

    def _on_step_cancelled(self, node: int, event: StepCancelled) -> StepResult:
        if self._phases[node] < ATTEMPTING and self._latest[node] is None:
            raise IllegalEventError(event, PHASES[self._phases[node]])
        result = self.attempt_log.result(node, event, StepStatus.CANCELLED, event.error)
        if event.item is None:
            self._readiness.failed_by[node] = event.step
        return result

    def _on_step_skipped(self, node: int, event: StepSkipped) -> StepResult:
        grounds = self._readiness.skipped_by if event.on_purpose else self._readiness.failed_by
        grounds.setdefault(node, event.step)
        return self.attempt_log.skipped(node, event)

    def _on_step_reused(self, node: int, event: StepReused) -> StepResult:
        key = event.step, event.item
        if self._checkpoint is None or key not in self._checkpoint.results:
            raise IllegalEventError(event, "no result of it was kept")
        result = self._checkpoint.results[key]
        if event.item is None and result.status is not StepStatus.SUCCESS:
            grounds = self._readiness.skipped_by if result.on_purpose else self._readiness.failed_by
            grounds[node] = event.step
        return replace(result, reused=True, rerun_reason=None)

    def _on_thread_abandoned(self, node: int, event: ThreadAbandoned) -> None:
        self.attempt_log.latest(node, event)
        self.attempt_log.remark(node, abandoned=True)

    def _on_loop_blocked(self, node: int, event: LoopBlocked) -> None:
        self._check_runs(event)
        self.attempt_log.block(node, event)

    # How it follows.

    def drop_item(self, node: int) -> None:
        """Forget an item that was taken up and will never start, since the run stops."""
        if self._phases[node] == SCHEDULED and self.is_limited:
            self.queue.leave(node)
        self.step_runs.end_item(node)

    def _stop(self, reason: str, *, exempt_cleanups: bool) -> None:
        self._readiness.stop(reason, exempt_cleanups=exempt_cleanups)
        for step in self.step_runs.maps():
            if not exempt_cleanups or self.step_runs.steps[step].run_if == "success":
                for node in self.step_runs.items(step):
                    if self._phases[node] == READY:
                        self.drop_item(node)


_STEP_RULES: dict[
    type, tuple[tuple[int, ...], Callable[[RunFold, int, Any], StepResult | None]]
] = {
    # event: the phases in which it can happen, and what it does; a result settles the unit
    AttemptStarted: (
        (SCHEDULED, WAITING, RESCHEDULED, QUEUED, READY, DROPPED),
        RunFold._on_attempt_started,
    ),
    AttemptFailed: ((ATTEMPTING,), RunFold._on_attempt_failed),
    MapStarted: ((SCHEDULED, READY, DROPPED), RunFold._on_map_started),
    StepSucceeded: ((ATTEMPTING, MAPPING), RunFold._on_step_succeeded),
    StepFailed: (
        (ATTEMPTING, WAITING, MAPPING, SCHEDULED, READY, DROPPED),
        RunFold._on_step_failed,
    ),
    StepCancelled: (
        # What has never begun in this run may have done so before it was resumed.
        (ATTEMPTING, WAITING, QUEUED, RESCHEDULED, MAPPING, UNREACHABLE, DROPPED, SCHEDULED, READY),
        RunFold._on_step_cancelled,
    ),
    StepReused: ((PENDING, READY), RunFold._on_step_reused),  # ready are items only
    StepSkipped: ((UNREACHABLE, DROPPED, SCHEDULED, READY), RunFold._on_step_skipped),
    ThreadAbandoned: ((ATTEMPTING,), RunFold._on_thread_abandoned),
    LoopBlocked: ((ATTEMPTING, WAITING, QUEUED, RESCHEDULED, SETTLED), RunFold._on_loop_blocked),
}
_RUN_RULES: dict[type, Callable[[RunFold, Any], None]] = {
    RunStarted: RunFold._on_run_started,
    RunResumed: RunFold._on_run_resumed,
    RunInterrupted: RunFold._on_run_interrupted,
    RunTimedOut: RunFold._on_run_timed_out,
    RunFinished: RunFold._on_run_finished,
}


class RunState(RunFold):
    """The state of one run, which is told what happens (`apply`) and asked what follows."""

    # Most steps are plain, and succeed at their first attempt. The next two are `apply` for these,
    # without a look at what only others have; and `apply` itself for all others.

    def start(self, node: int, event: AttemptStarted) -> None:
        """Apply the start of an attempt of a unit."""
        phases = self._phases
        if (
            phases[node] == SCHEDULED
            and event.attempt == 1
            and self._steps[node].is_plain
            and self._is_straight
        ):
            self._latest[node] = event
            phases[node] = ATTEMPTING
        else:
            self.apply(event)

    def succeed(self, node: int, event: StepSucceeded) -> None:
        """Apply the success of an attempt of a unit."""
        phases = self._phases
        started, step = self._latest[node], self._steps[node]
        if (
            phases[node] == ATTEMPTING
            and event.attempt == 1
            and started is not None
            and started.attempt == 1
            and step.is_plain
            and self._is_straight
            and not self.attempt_log.has_remarks
        ):
            self._results[node] = StepResult(
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
            phases[node] = SETTLED
            self._readiness.settled(node, event.at_ms)
        else:
            self.apply(event)

    def ready(self) -> list[int]:
        """Return the units that may start their next attempt now. Each is handed out once."""
        phases, queue = self._phases, self.queue
        queue.is_dirty = bool(self._readiness.unreachable)
        # What was doomed, or cancelled, in the meantime stands in line as well.
        if not self.is_limited:
            batch = [node for node in queue.take_all() if phases[node] == READY]
            for node in batch:
                phases[node] = SCHEDULED
            return batch
        batch = []
        for node in queue.take():
            if phases[node] in (READY, QUEUED):
                phases[node] = SCHEDULED if phases[node] == READY else RESCHEDULED
                queue.enter(node)
                batch.append(node)
        return batch

    def unreachable(self) -> list[SkippedStep]:
        """Return the steps that will never start. Each is told once."""
        unreachable, self._readiness.unreachable, phases = (
            self._readiness.unreachable,
            [],
            self._phases,
        )
        # A stored run that is being replayed has already told what became of some of them.
        return [doom for doom in unreachable if phases[doom.step] in (UNREACHABLE, DROPPED)]

    def stored_end(self, step: int, at_ms: float, item: int | None = None) -> StepReused | None:
        """Return what tells that a resumed run takes over the result of a step or an item, if so.

        Args:
            step: The step.
            at_ms: When that is told.
            item: The item of the step, if it is about that.
        """
        if self._checkpoint is None:
            return None
        name = self.step_runs.steps[step].name
        result = self._checkpoint.results.get((name, item))
        return None if result is None else StepReused(name, at_ms, item, result.status)

    def had_begun(self, step: int) -> bool:
        """Whether a step, or an item of it, goes on with what it had begun before a resumption."""
        return self.step_runs.steps[step].name in self._begun

    def is_exempt_from_stop(self, node: int) -> bool:
        """Whether a unit goes on although the run is stopping: it belongs to a clean-up step."""
        return self.step_runs.steps[node].run_if != "success" and not self._interrupted

    def enqueue_retry(self, node: int, at_ms: float) -> None:
        """Put a unit that has waited for its next attempt in line for it."""
        assert self._phases[node] == WAITING
        self._phases[node] = QUEUED
        self.queue.put([node], at_ms)

    def add_item(self, step: int, at_ms: float) -> int:
        """Take up the next item of a mapped step, and return its unit.

        It stands in line, or, if the run is stopping, will never start.
        """
        node = self.step_runs.add_item(step)
        if self.stop_reason is None or self.is_exempt_from_stop(step):
            self._phases[node] = READY
            self.queue.put([node], at_ms)
        else:
            self.step_runs.end_item(node)
        return node

    def is_queued(self, node: int) -> bool:
        """Whether a unit whose turn has come has not been handed out."""
        return self._phases[node] == READY

    def unstarted(self, step_runs: list[int]) -> list[int]:
        """Return those of the units that were handed out and have not started."""
        phases = self._phases
        return [node for node in step_runs if phases[node] == SCHEDULED]

    def running_attempt(self, node: int) -> AttemptStarted | None:
        """The attempt of the unit that is running, if one is."""
        return self.step_runs.latest[node] if self._phases[node] == ATTEMPTING else None

    @property
    def unsettled(self) -> int:
        """How many steps have not settled."""
        return self._readiness.unsettled

    @property
    def ordinary_unsettled(self) -> int:
        """How many steps have not settled and are no clean-up steps."""
        return (
            self._readiness.ordinary_unsettled if self._plan.cleanups else self._readiness.unsettled
        )

    @property
    def stop_reason(self) -> str | None:
        """Why the run is stopping; ``None`` while it is not."""
        return self._readiness.stop_reason

    @property
    def has_finished(self) -> bool:
        """Whether the run is over."""
        return self._finished is not None

    @property
    def outcome(self) -> Outcome:
        """How the run ends, or would if it ended now."""
        if self._interrupted:
            return "interrupted"
        return "failed" if self._readiness.failed_by else "passed"

    def report(self) -> RunReport:
        """Return the report of the run, which must have finished."""
        assert self._started is not None
        assert self._finished is not None
        return RunReport(
            self._started.run_id,
            filter(None, map(self.step_runs.results.__getitem__, self._plan.order)),
            total_duration_ms=self._finished.at_ms,
            wall_time=self._started.wall_time,
            stop_reason=self.stop_reason,
            pipeline=self._started.pipeline,
            inputs=self._started.inputs,
            outcome=self._finished.outcome,
        )
