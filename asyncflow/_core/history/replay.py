"""The replay of a run: the one fold over its events that reports, resumption and displays read.

Rules:

1. It needs no code of the pipeline, and may begin with the first event of a run, or with the one
   that tells an observer that a stored run resumes.
2. A run may resume with a changed pipeline. The steps are those of its latest segment.
3. A success stays, whatever becomes of the run, until a resumption declares it outdated, and with
   it all that depends on it.
4. An attempt that was running when a segment ended has crashed. In the next segment its step
   continues with the attempts that it has left.
5. No attempt is forgotten: a step keeps those of all segments, whatever the latest one does with
   it. An item that the latest segment does not have leaves its attempts to its step.
6. A secret output is marked, and what shows it asks `visible_output`. So is a result that was
   stored openly and is secret now.
7. What a rerun reuses is like what an earlier segment settled, with the figures that it has in
   the other run.
8. A run may have a hundred thousand items, and a full collection of garbage stops all threads while
   it visits every object. So an item that just succeeds is two objects, its view and its payload,
   and who replays stored events keeps none of them (`Store.events`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from asyncflow import events
from asyncflow._core.arguments import AttributeValue
from asyncflow._core.errors import IllegalEventError
from asyncflow._core.history.carryover import Carryover, crash_of
from asyncflow._core.history.results import (
    ENDED,
    REDACTED,
    REDACTED_OUTPUT,
    UNSETTLED,
    AttemptEnd,
    InterruptionCause,
    Key,
    Payload,
    RunStatus,
    Segment,
    SignalAnswer,
    SignalWait,
    StepStatus,
    blocks_dependents,
    end_of,
    outputs_of,
    run_facts,
)
from asyncflow._core.history.step_view import AttemptView, Block, StepView
from asyncflow._core.record import made_by, record, replace


@record(frozen=False)
class JournalFacts:
    """What a journal knows of a run that no event says, as far as it has looked."""

    is_orphaned: bool = False
    """Whether its process is gone."""
    must_stop: bool = False
    """Whether it was asked to cancel the run."""
    checkpoints: dict[Key, Payload] = made_by(default_factory=dict)
    """The checkpoints of steps and items."""
    calls: dict[Key, set[str]] = made_by(default_factory=dict)
    """The names of the calls of which it has what they returned."""


class AskedSignals:
    """The signals of a run: what it asks for, and what has come.

    ``schemas`` are those of the types that its latest segment asks for, by signal, and
    ``deadlines`` when it no longer does. ``waits`` are the latest events of the steps that wait,
    with the times at which the waits began.
    """

    def __init__(self) -> None:
        self.schemas: Mapping[str, Any] = {}
        self.deadlines: Mapping[str, float] = {}
        self.waits: dict[str, events.StepWaiting] = {}
        self.sent: Mapping[str, SignalAnswer | None] = {}
        """What a journal has received by name; ``None`` for a deadline that has expired."""
        self.all_schemas: dict[str, list[Any]] = {}
        """The schemas that a signal has had in any segment, by its name."""

    def ask(self, event: events.RunStarted | events.RunResumed) -> None:
        """Note what a segment that begins asks for."""
        self.schemas, self.deadlines = event.signals, event.signal_deadlines
        for name, schema in event.signals.items():
            known = self.all_schemas.setdefault(name, [])
            if schema not in known:
                known.append(schema)

    def wait(self, event: events.StepWaiting) -> events.StepWaiting:
        """Note that a step waits, and return the event as of the time at which its wait began."""
        before = self.waits.get(event.step)
        if before is not None and before.since == event.since:  # it began earlier
            event = replace(event, at_ms=before.at_ms)
        self.waits[event.step] = event
        return event


class StoredRun:
    """Where a run stands, by its events.

    Outputs are as the events have them: values, or in those of a journal `Payload` objects.

    ``started`` is the first event, if the replay began with it, and ``at_ms`` the time of the
    latest. ``status`` is ``RUNNING`` until its latest segment has ended; ``stop_reason`` says why
    the run stops before, and ``cause`` what interrupted it. ``steps``, ``tiers`` and ``counts`` are
    those of the latest segment, in topological order, and ``carryover`` has what earlier ones left.
    ``without_items`` says that the history lacks the events of items. ``secret_inputs`` are the
    names of those that must not be shown.
    """

    def __init__(
        self, history: Iterable[events.Event] = (), *, without_items: bool = False
    ) -> None:
        self.started: events.RunStarted
        self.run_id = self.pipeline = ""
        self.parent = self.parent_step = self.rerun_of = self.label = self.key = ""
        self.attributes: Mapping[str, AttributeValue] = {}
        self.journal = JournalFacts()
        self.log: list[Any] | None = None
        """All its events, if a caller has kept them for the report of the run."""
        self.segments: list[Segment] = []
        self.at_ms = 0.0
        self.limited_from_ms = 0.0
        """From when on its deadline counts: when it began, or began anew, and as much later as
        nothing ran while it waited."""
        self.status = RunStatus.RUNNING
        self.stop_reason: str | None = None
        self.cause: InterruptionCause | None = None
        self.was_interrupted = self.was_stopping = False
        self.was_enqueued = False
        """Whether its first segment only stored it, and it started later or was to."""
        self.steps: dict[str, StepView] = {}
        self.tiers: list[list[str]] = []
        self.counts: Counter[StepStatus] = Counter()
        self.carryover = Carryover(self.steps)
        self.inputs: dict[str, Any] = {}
        self.secret_inputs: set[str] = set()
        self.signals = AskedSignals()
        self.pauses: list[tuple[int, events.PoolPaused]] = []
        """The pauses of pools, each with the segment in which it was reported."""
        self._without_items = without_items
        for event in history:
            self.apply(event)

    @classmethod
    def with_log(cls, events: Iterable[events.Event]) -> StoredRun:
        """Return the replay of all events of a run, with a log of them for its report."""
        log = [*events]
        run = cls(log)
        run.log = log
        return run

    @property
    def has_ended(self) -> bool:
        """Whether the run has ended. A run that waits has not: its next segment continues it."""
        return self.status in ENDED

    @property
    def is_running(self) -> bool:
        """Whether its latest segment has not ended, as far as its events tell."""
        return self.status is RunStatus.RUNNING

    def apply(self, event: events.Event) -> None:
        """Apply one more event. One that has no rule, such as what steps say, changes nothing."""
        rule = _RULES.get(type(event))
        if rule is None:
            return
        if event.at_ms > self.at_ms:
            if self.signals.waits and not self.counts[StepStatus.RUNNING]:
                self.limited_from_ms += event.at_ms - self.at_ms
            self.at_ms = event.at_ms
        rule(self, event)

    # The run.

    def _on_run_started(self, event: events.RunStarted) -> None:
        self.started = event
        vars(self).update(run_facts(event))
        self.key = event.key
        self._begin(event, 0.0)

    def _on_run_resumed(self, event: events.RunResumed) -> None:
        carryover = self.carryover
        carryover.end_segment()
        for key, step in carryover.pending.items():
            self._crash(key, step)
        for name in carryover.forget(event) & self.signals.waits.keys():
            del self.signals.waits[name]
        self._end_segment()
        self._begin(event, event.at_ms)
        for name in event.missing_steps:
            step = self.steps[name]
            step.reason, step.by_condition = events.NOT_IN_PIPELINE, True
            self._move(step, StepStatus.SKIPPED)
        for name, item in carryover.pending:
            if item is None and name in self.steps:
                carryover.continue_from((name, None), self.steps[name])
                self._move(self.steps[name], StepStatus.RUNNING)

    def _begin(self, event: events.RunStarted | events.RunResumed, at_ms: float) -> None:
        self.run_id, self.pipeline = event.run_id, event.pipeline or self.pipeline
        self.segments.append(Segment(at_ms, event.wall_time, process=event.process))
        self.signals.ask(event)
        self.carryover.begin(event)
        if self.status is not RunStatus.WAITING:
            self.limited_from_ms = at_ms
        self.status, self.stop_reason, self.cause = RunStatus.RUNNING, None, None
        self.was_interrupted = self.was_stopping = False
        for name, value in event.inputs.items():
            if _is_redacted(value):
                self.secret_inputs.add(name)
                self.inputs.setdefault(name, value)
            else:
                self.inputs[name] = value
        steps = {**event.dependencies, **self.carryover.missing}
        self._lay_out(steps, event.max_retries, event.secret)
        for name, why in event.rerun_reasons.items():
            if name in self.steps:
                self.steps[name].rerun_reason = why

    def _lay_out(
        self,
        dependencies: Mapping[str, tuple[str, ...]],
        max_retries: Mapping[str, int] | None = None,
        secret: Sequence[str] = (),
    ) -> None:
        """Begin with pending steps, which are given in topological order, in their tiers."""
        steps: dict[str, StepView] = {}
        tiers: list[list[str]] = []
        max_retries, is_secret = max_retries or {}, frozenset(secret)
        for name, needed in dependencies.items():
            tier = max([steps[each].tier + 1 for each in needed if each in steps], default=0)
            if tier == len(tiers):
                tiers.append([])
            tiers[tier].append(name)
            step = steps[name] = StepView(
                name,
                needed,
                tier,
                max_retries.get(name),
                name in is_secret,
                segment=len(self.segments),
            )
            step.attempts, step.active = [], []  # filling them when they are read takes longer
            # A mapped step without an attempt has no history, unless its items are just unread.
            former = self.carryover.former(name)
            if former and (former.attempt_count or self._without_items):
                step.carry(former)
        self.steps = self.carryover.steps = steps
        self.tiers = tiers
        self.counts = Counter({StepStatus.PENDING: len(steps)})

    def _on_run_stops(self, event: events.RunInterrupted | events.RunTimedOut) -> None:
        if self.stop_reason is None or isinstance(event, events.RunInterrupted):
            self.stop_reason = event.reason
        if isinstance(event, events.RunInterrupted):
            self.cause = event.cause
        self.was_interrupted = self.was_stopping = True

    def _on_pool_paused(self, event: events.PoolPaused) -> None:
        self.pauses.append((len(self.segments), event))

    def _on_run_finished(self, event: events.RunFinished) -> None:
        self.status, self.at_ms = event.status, event.at_ms
        self.segments[-1] = self.segments[-1]._replace(ended_ms=event.at_ms)
        self.stop_reason = event.stop_reason or self.stop_reason
        if event.status is RunStatus.WAITING:
            self.was_enqueued = self.was_enqueued or not self.signals.waits
        elif event.status is RunStatus.INTERRUPTED and any(map(self.counts.get, UNSETTLED)):
            self._stop_steps(event)
        if event.status is RunStatus.PASSED:
            self.carryover.note_pass()

    def _stop_steps(self, event: events.RunFinished) -> None:
        """End the steps of a run that a journal has ended, as another one replaced it.

        No process ran it, so no event says how each of them ended.
        """
        at_ms, reason = event.at_ms, event.stop_reason or ""
        for key, step in [*self.carryover.all()][::-1]:  # items before their step
            name, item = key
            if step.status is StepStatus.PENDING:
                self._on_step_skipped(events.StepSkipped(name, at_ms, reason, item=item))
            elif step.status is StepStatus.RUNNING:
                if step.attempts:
                    self._crash(key, step)
                cancelled = events.StepCancelled(name, 0, at_ms, reason, None, item)
                self._on_step_cancelled(cancelled)

    # A step or an item.

    def _on_attempt_started(self, event: events.AttemptStarted) -> None:
        step = self._step(event)
        is_first = event.attempt == 1 and step.started_ms is None
        is_brief = is_first and event.item is not None and not event.engine
        if is_brief:
            step.begin_brief(event.at_ms, event.queued_ms)
        for each in self._with_owner((event.step, event.item), step)[is_brief:]:
            each.begin_active(event.at_ms)
            if each.started_ms is None:
                each.started_ms = event.at_ms
        if not is_brief:
            number, at_ms, queued_ms = event.attempt, event.at_ms, event.queued_ms
            attempt = AttemptView(number, at_ms, queued_ms, segment=step.segment)
            attempt.engine, attempt.began = event.engine, not event.engine
            step.attempts.append(attempt)
        self._move(step, StepStatus.RUNNING, event)

    def _on_attempt_began(self, event: events.AttemptBegan) -> None:
        step = self._step(event)
        attempt = step.latest
        if attempt is None or (attempt.number, attempt.ended_ms) != (event.attempt, None):
            raise IllegalEventError(event, "no such attempt is running")
        step.delay_start(event.at_ms)
        attempt.begin(event.at_ms)
        attempt.began = True
        attempt.engine, attempt.worker = event.engine, event.worker

    def _on_attempt_located(self, event: events.AttemptLocated) -> None:
        attempt = self._step(event).latest
        if attempt is None or (attempt.number, attempt.ended_ms) != (event.attempt, None):
            raise IllegalEventError(event, "no such attempt is running")
        attempt.worker = event.worker

    def _on_attempt_failed(self, event: events.AttemptFailed) -> None:
        attempt = self._close(self._step(event), event, end_of(event.error), event.error)
        if attempt is not None:
            attempt.retry_in_ms = event.retry_in_ms

    def _on_map_started(self, event: events.MapStarted) -> None:
        step = self.steps[event.step]
        if step.started_ms is None:
            step.started_ms = event.at_ms
            step.begin_active(event.at_ms)
        elif self._without_items:  # else its first item begins the time of this segment
            step.begin_active(event.at_ms)
        step.items, step.tally, step.item_count = {}, Counter(), event.count
        step.keeps_outputs = event.keeps_outputs
        self._move(step, StepStatus.RUNNING)

    def wall_time_of(self, at_ms: float) -> float:
        """Return the wall-clock time of a moment of the run, in seconds since the epoch (UTC).

        Of two segments that meet there, it is that of the second one.
        """
        begin, *others = self.segments
        for segment in others:
            if segment.at_ms <= at_ms:
                begin = segment
        return begin.wall_time + (at_ms - begin.at_ms) / 1000

    def _on_step_waiting(self, event: events.StepWaiting) -> None:
        step, event = self.steps[event.step], self.signals.wait(event)
        step.wait = SignalWait(event.at_ms)
        step.waiting_since, step.waiting_until = event.since, event.until
        step.description, step.otherwise = event.description, event.otherwise
        step.refused = event.refused

    def _on_signal_received(self, event: events.SignalReceived) -> None:
        self.steps[event.step].answer = event

    def _on_step_succeeded(self, event: events.StepSucceeded) -> None:
        step = self._step(event)
        end = "succeeded" if event.error is None else end_of(event.error)
        self._close(step, event, end, event.error)
        step.error = event.error
        if _is_redacted(event.output):
            step.secret, step.output = True, REDACTED_OUTPUT
        elif not step.keeps_outputs:
            step.output = None
        elif step.items is not None and event.output is None:  # a journal stores only the items'
            step.output = outputs_of(step.items[number] for number in sorted(step.items))
        else:
            step.output = event.output
        self._settle(step, event)

    def _on_step_failed(self, event: events.StepFailed) -> None:
        step = self._step(event)
        self._close(step, event, end_of(event.error), event.error)
        step.error = event.error
        self._settle(step, event)

    def _on_step_cancelled(self, event: events.StepCancelled) -> None:
        step, end = self._step(event), end_of(event.error)
        self._close(step, event, end if end == "timed out" else "cancelled", event.error)
        step.error, step.reason = event.error, event.reason
        self._settle(step, event)

    def _on_step_skipped(self, event: events.StepSkipped) -> None:
        step = self._step(event)
        step.reason, step.by_condition = event.reason, event.by_condition
        self._settle(step, event)

    def _on_step_reused(self, event: events.StepReused) -> None:
        step = self._step(event)
        if step.status in UNSETTLED:  # else a later start has found it
            self.carryover.restore((event.step, event.item), step)
        if event.item is None:
            step.keep_outputs(event.keeps_outputs)
        step.reused, step.rerun_reason = True, None
        self._note_stop(step, event.status)
        self._move(step, event.status, event)

    def _on_thread_abandoned(self, event: events.ThreadAbandoned) -> None:
        attempt = self._step(event).latest
        if attempt is not None:
            attempt.abandoned = True

    def _on_loop_blocked(self, event: events.LoopBlocked) -> None:
        step = self._step(event)
        for attempt in reversed(step.attempts):
            if attempt.number == event.attempt and attempt.segment == step.segment:
                block = Block(event.at_ms, event.blocked_ms, event.where)
                attempt.blocks = (*attempt.blocks, block)
                break

    def _step(self, event: Any) -> StepView:
        """Return the step or the item that an event is about."""
        step = self.steps[event.step]
        if event.item is None:
            return step
        if step.items is None:
            raise IllegalEventError(event, "the step has not begun to go through its items")
        item = step.items.get(event.item)
        if item is None:
            item = step.items[event.item] = StepView(
                f"{step.name}[{event.item}]",
                step.depends_on,
                step.tier,
                step.max_retries,
                step.secret,
                segment=step.segment,
                item=event.item,
            )
            step.tally[StepStatus.PENDING] += 1
            before = step.former_items.pop(event.item, None)
            if before is not None:
                item.carry(before)
            self.carryover.continue_from((event.step, event.item), item)
        return item

    def _close(
        self,
        step: StepView,
        event: events.AttemptFailed
        | events.StepSucceeded
        | events.StepFailed
        | events.StepCancelled,
        end: AttemptEnd,
        error: BaseException | None = None,
    ) -> AttemptView | None:
        """End the running attempt, if one is running, and return it unless it is brief."""
        if step.is_brief_now and end == "succeeded" and event.attempt in (0, 1):
            self.steps[event.step].extend_active(event.at_ms)
            return None
        attempt = step.latest
        if attempt is not None:
            number = attempt.number
        else:  # unless the replay began with the first event, there may be one
            number = 0 if hasattr(self, "started") else event.attempt
        if event.attempt not in (0, number):
            raise IllegalEventError(event, f"the latest attempt is {number}")
        if attempt is None or attempt.ended_ms is not None:
            return None
        self._end_attempt((event.step, event.item), step, attempt, end, error, event.at_ms)
        return attempt

    def _end_attempt(
        self,
        key: Key,
        step: StepView,
        attempt: AttemptView,
        end: AttemptEnd,
        error: BaseException | None,
        at_ms: float,
    ) -> None:
        if end == "succeeded":
            attempt.began = True  # although its engine did not report it
        elif not attempt.began:
            step.delay_start(at_ms)
            attempt.begin(at_ms)
        attempt.ended_ms, attempt.end, attempt.error = at_ms, end, error
        for each in self._with_owner(key, step):
            each.extend_active(at_ms)

    def _with_owner(self, key: Key, step: StepView) -> tuple[StepView, ...]:
        """Return a step or an item, and the step to which the item belongs."""
        name, item = key
        return (step,) if item is None else (step, self.steps[name])

    def _settle(self, step: StepView, event: Any) -> None:
        status: StepStatus = event.status
        if step.waiting_since is not None:
            assert step.wait is not None
            lasted_ms = (self.wall_time_of(event.at_ms) - step.waiting_since) * 1000
            wait = SignalWait(step.wait.started_ms, event.at_ms, max(lasted_ms, 0.0))
            step.wait, step.waiting_since, step.waiting_until = wait, None, None
            if status is not StepStatus.SKIPPED:  # else it waits on if the run is resumed
                self.signals.waits.pop(step.name, None)
        if step.is_brief_now:
            step.ended_ms = event.at_ms
        if self._without_items and step.active:
            step.extend_active(event.at_ms)  # its latest item ended about then
        step.end_active(event.at_ms)
        if status is StepStatus.SKIPPED:
            step.ended_ms = step.active[-1].ended_ms if step.active else None
        elif step.started_ms is not None:
            step.ended_ms = event.at_ms
        if event.item is None and not (status is StepStatus.CANCELLED and event.cause):
            self._note_stop(step, status)
        self._move(step, status, event)

    def _note_stop(self, step: StepView, status: StepStatus) -> None:
        """Note that the run stops if a step did not run, or not to its end, because of that."""
        if status is StepStatus.CANCELLED:
            self.was_stopping = True
        elif status is StepStatus.SKIPPED and not step.by_condition:
            needed = [self.steps[name] for name in step.depends_on if name in self.steps]
            if not any(blocks_dependents(other.status, other.by_condition) for other in needed):
                self.was_stopping = True

    def _move(self, step: StepView, status: StepStatus, event: Any = None) -> None:
        """Change the status of a step or an item."""
        counts = self.counts
        if event is not None and event.item is not None:
            counts = self.steps[event.step].tally
        counts[step.status] -= 1
        counts[status] += 1
        step.status = status

    def _crash(self, key: Key, step: StepView) -> None:
        attempt = step.attempts[-1]
        if attempt.ended_ms is None:
            self._end_attempt(key, step, attempt, "crashed", crash_of(step), self.at_ms)

    def _end_segment(self) -> None:
        if self.segments:
            self.segments[-1] = self.segments[-1]._replace(ended_ms=self.at_ms)
        for _, step in self.carryover.all():
            step.end_active(self.at_ms)


_RULES: dict[type, Callable[[StoredRun, Any], None]] = {
    events.RunStarted: StoredRun._on_run_started,
    events.RunResumed: StoredRun._on_run_resumed,
    events.RunInterrupted: StoredRun._on_run_stops,
    events.RunTimedOut: StoredRun._on_run_stops,
    events.RunFinished: StoredRun._on_run_finished,
    events.AttemptStarted: StoredRun._on_attempt_started,
    events.AttemptBegan: StoredRun._on_attempt_began,
    events.AttemptFailed: StoredRun._on_attempt_failed,
    events.AttemptLocated: StoredRun._on_attempt_located,
    events.MapStarted: StoredRun._on_map_started,
    events.StepWaiting: StoredRun._on_step_waiting,
    events.SignalReceived: StoredRun._on_signal_received,
    events.StepSucceeded: StoredRun._on_step_succeeded,
    events.StepFailed: StoredRun._on_step_failed,
    events.StepCancelled: StoredRun._on_step_cancelled,
    events.StepSkipped: StoredRun._on_step_skipped,
    events.StepReused: StoredRun._on_step_reused,
    events.ResultReused: lambda run, event: run.carryover.reuse(event),
    events.ThreadAbandoned: StoredRun._on_thread_abandoned,
    events.LoopBlocked: StoredRun._on_loop_blocked,
    events.PoolPaused: StoredRun._on_pool_paused,
}


def _is_redacted(value: object) -> bool:
    return type(value) is Payload and value == REDACTED  # a user's value may refuse to be compared
