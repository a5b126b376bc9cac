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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from asyncflow import events
from asyncflow._core.arguments import AttributeValue
from asyncflow._core.errors import IllegalEventError, StepCrashedError
from asyncflow._core.history.item_values import give_all
from asyncflow._core.history.remote_output import RemoteOutput, is_remote
from asyncflow._core.history.report import RunReport, with_events
from asyncflow._core.history.results import (
    ENDED,
    REDACTED,
    REDACTED_OUTPUT,
    AttemptEnd,
    InterruptionCause,
    Key,
    Payload,
    RunStatus,
    Segment,
    SignalAnswer,
    SignalWait,
    StepResult,
    StepStatus,
    blocks_dependents,
    end_of,
    outputs_of,
    run_facts,
)
from asyncflow._core.history.step_view import AttemptView, Block, StepView
from asyncflow._core.history.stored_log import OutputReader, log_of
from asyncflow._core.pipeline.graph import with_dependents
from asyncflow._core.record import replace

_Decode: TypeAlias = Callable[[str, Payload], Any]
_UNSETTLED = (StepStatus.PENDING, StepStatus.RUNNING)


class PendingAttempts(NamedTuple):
    """The attempts of a step, or of an item, that has started and not ended."""

    latest: events.AttemptStarted
    error: BaseException | None
    """What it failed with: a `StepCrashedError` if it was interrupted."""
    unfinished: int
    """How many were interrupted."""
    crashes: int
    """How many of these had begun: one that was queued at an engine did not."""
    failure: BaseException | None
    """What the latest that finished failed with."""

    @property
    def is_interrupted(self) -> bool:
        """Whether the latest attempt did not finish: its process died, or its journal failed."""
        return isinstance(self.error, StepCrashedError)

    @property
    def last_error(self) -> BaseException | None:
        """What the next attempt can ask for: see `StepContext.last_error`."""
        if self.failure is None or not self.is_interrupted:
            return self.error
        try:
            last_error = copy(self.failure)  # in the history it has no context
            last_error.__context__ = self.error
        except Exception:  # it was never stored, and refuses to be copied
            return self.failure
        return last_error


class StoredRun:
    """Where a run stands, by its events.

    Outputs are as the events have them: values, or in those of a journal `Payload` objects.

    ``started`` is the first event, if the replay began with it, and ``at_ms`` the time of the
    latest. ``status`` is ``RUNNING`` until its latest segment has ended; ``stop_reason`` says why
    the run stops before, and ``cause`` what interrupted it. ``steps``, ``tiers`` and ``counts`` are
    those of the latest segment, in topological order; ``dependencies``, ``fingerprints`` and
    ``map_over`` are the latest of each step of any segment.
    ``without_items`` says that the history lacks the events of items.
    ``secret_inputs`` are the names of those that must not be shown.
    ``waits`` are the latest events of the steps that wait for a signal, with the times at which the
    waits began.
    """

    def __init__(
        self, history: Iterable[events.Event] = (), *, without_items: bool = False
    ) -> None:
        self.started: events.RunStarted
        self.run_id = self.pipeline = ""
        self.parent = self.parent_step = self.rerun_of = self.label = self.key = ""
        self.attributes: Mapping[str, AttributeValue] = {}
        self.segments: list[Segment] = []
        self.at_ms = 0.0
        self.status = RunStatus.RUNNING
        self.is_orphaned = False
        """Whether its process is gone, if a journal has looked; no event tells."""
        self.stop_reason: str | None = None
        self.cause: InterruptionCause | None = None
        self.was_interrupted = self.was_stopping = False
        self.was_enqueued = False
        """Whether its first segment only stored it, and it started later or was to."""
        self.steps: dict[str, StepView] = {}
        self.tiers: list[list[str]] = []
        self.counts: Counter[StepStatus] = Counter()
        self.passed_steps: frozenset[str] = frozenset()
        """The steps that the run had when it last passed: their results are final."""
        self.dependencies: dict[str, tuple[str, ...]] = {}
        self.fingerprints: dict[str, tuple[str, str]] = {}
        self.map_over: dict[str, str] = {}
        self.inputs: dict[str, Any] = {}
        self.secret_inputs: set[str] = set()
        self.missing_steps: Mapping[str, tuple[str, ...]] = {}
        """The steps that its latest segment skips, since its pipeline does not have them."""
        self.waits: dict[str, events.StepWaiting] = {}
        self.signals: Mapping[str, Any] = {}
        """The signals of its latest segment, each with the JSON schema of its type."""
        self.signal_deadlines: Mapping[str, float] = {}
        """Their deadlines."""
        self.log: list[Any] | None = None
        """All its events, if a caller has kept them for the report of the run."""
        self.asked: dict[str, list[Any]] = {}
        """The schemas that a signal has had in any segment, by its name."""
        self.sent: Mapping[str, SignalAnswer | None] = {}
        """What a journal has received for it by name; ``None`` for a deadline that has expired."""
        self.must_stop = False
        """Whether a journal was asked to cancel it."""
        self.limited_from_ms = 0.0
        """From when on its deadline counts: when it began, or began anew, and as much later as
        nothing ran while it waited."""
        self.pool_pauses: dict[str, events.PoolPaused] = {}
        """The latest pause of each pool, by its name."""
        self.pauses: list[tuple[int, events.PoolPaused]] = []
        """All pauses, each with the segment in which it was reported."""
        self._without_items = without_items
        self.checkpoints: dict[Key, Payload] = {}
        """The checkpoints of steps and items, if a journal has read them; no event has any."""
        self.calls: dict[Key, set[str]] = {}
        """The names of the calls of which a journal has what they returned, likewise."""
        self._is_whole = False
        """Whether it began with the first event, so that no attempt is unknown."""
        self._reasons: Mapping[str, str] = {}
        self._earlier: dict[str, StepView] = {}
        """Each step as the latest segment before this one left it that had the step."""
        self._settled: dict[Key, StepView] = {}
        """What earlier segments settled, as far as it holds."""
        self._pending: dict[Key, StepView] = {}
        """What earlier segments began, as far as it continues."""
        self._reused_items: dict[str, dict[int, StepView]] = {}
        """The items that a rerun reuses, by step, until the event of the step itself."""
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
            if self.waits and not self.counts[StepStatus.RUNNING]:
                self.limited_from_ms += event.at_ms - self.at_ms
            self.at_ms = event.at_ms
        rule(self, event)

    # The run.

    def _on_run_started(self, event: events.RunStarted) -> None:
        self.started, self._is_whole = event, True
        vars(self).update(run_facts(event))
        self.key = event.key
        self._begin(event, 0.0)
        self._explain(event.rerun_reasons)

    def _on_run_resumed(self, event: events.RunResumed) -> None:
        self._settled, self._pending = self.settled(), self._all_pending()
        for key, step in self._pending.items():
            self._crash(key, step)
        self._forget(event)
        self._end_segment()
        self.missing_steps = event.missing_steps
        self._begin(event, event.at_ms)
        self._explain(event.rerun_reasons)
        for name in event.missing_steps:
            step = self.steps[name]
            step.reason, step.by_condition = events.NOT_IN_PIPELINE, True
            self._move(step, StepStatus.SKIPPED)
        for name, item in self._pending:
            if item is None and name in self.steps:
                self._continue((name, None), self.steps[name])
                self._move(self.steps[name], StepStatus.RUNNING)

    def _begin(self, event: events.RunStarted | events.RunResumed, at_ms: float) -> None:
        self.run_id, self.pipeline = event.run_id, event.pipeline or self.pipeline
        self.segments.append(Segment(at_ms, event.wall_time, process=event.process))
        self.signals, self.signal_deadlines = event.signals, event.signal_deadlines
        for name, schema in event.signals.items():
            known = self.asked.setdefault(name, [])
            if schema not in known:
                known.append(schema)
        if self.status is not RunStatus.WAITING:
            self.limited_from_ms = at_ms
        self.status, self.stop_reason, self.cause = RunStatus.RUNNING, None, None
        self.was_interrupted = self.was_stopping = False
        self._reasons = {}
        self.dependencies.update(event.dependencies)
        self.fingerprints.update(event.fingerprints)
        self.map_over.update(event.map_over)
        for name, value in event.inputs.items():
            if _is_redacted(value):
                self.secret_inputs.add(name)
                self.inputs.setdefault(name, value)
            else:
                self.inputs[name] = value
        steps = {**event.dependencies, **self.missing_steps}
        self._lay_out(steps, event.max_retries, event.secret)

    def _explain(self, reasons: Mapping[str, str]) -> None:
        self._reasons = reasons
        for name, why in reasons.items():
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
            earlier = self._earlier.get(name)
            if earlier and (earlier.attempt_count or self._without_items):
                step.carry(earlier)
        self.steps, self.tiers = steps, tiers
        self.counts = Counter({StepStatus.PENDING: len(steps)})

    def _on_run_stops(self, event: events.RunInterrupted | events.RunTimedOut) -> None:
        if self.stop_reason is None or isinstance(event, events.RunInterrupted):
            self.stop_reason = event.reason
        if isinstance(event, events.RunInterrupted):
            self.cause = event.cause
        self.was_interrupted = self.was_stopping = True

    def _on_pool_paused(self, event: events.PoolPaused) -> None:
        self.pool_pauses[event.pool] = event
        self.pauses.append((len(self.segments), event))

    def _on_run_finished(self, event: events.RunFinished) -> None:
        self.status, self.at_ms = event.status, event.at_ms
        self.segments[-1] = self.segments[-1]._replace(ended_ms=event.at_ms)
        self.stop_reason = event.stop_reason or self.stop_reason
        if event.status is RunStatus.WAITING:
            self.was_enqueued = self.was_enqueued or not self.waits
        elif event.status is RunStatus.INTERRUPTED and any(map(self.counts.get, _UNSETTLED)):
            self._stop_steps(event)
        if event.status is RunStatus.PASSED:
            self.passed_steps = frozenset(self.steps.keys() - self.missing_steps.keys())

    def _stop_steps(self, event: events.RunFinished) -> None:
        """End the steps of a run that a journal has ended, as another one replaced it.

        No process ran it, so no event says how each of them ended.
        """
        at_ms, reason = event.at_ms, event.stop_reason or ""
        for key, step in [*self._all()][::-1]:  # items before their step
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
        step, before = self.steps[event.step], self.waits.get(event.step)
        if before is not None and before.since == event.since:  # it began earlier
            event = replace(event, at_ms=before.at_ms)
        self.waits[event.step], step.wait = event, SignalWait(event.at_ms)
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
        before = self._settled.get((event.step, event.item))
        if before is not None and step.status in _UNSETTLED:  # else a later start has found it
            _restore(step, before)
        if event.item is None:
            step.keep_outputs(event.keeps_outputs)
        step.reused, step.rerun_reason = True, None
        self._note_stop(step, event.status)
        self._move(step, event.status, event)

    def _on_result_reused(self, event: events.ResultReused) -> None:
        step, item = self.steps[event.step], event.item
        reused = self._settled[event.step, item] = StepView(
            step.name if item is None else f"{step.name}[{item}]",
            step.depends_on,
            step.tier,
            step.max_retries,
            event.secret or step.secret,
            StepStatus.SUCCESS,
            output=event.output,
            origin=event.origin,
            origin_attempts=event.attempts,
            origin_ms=event.duration_ms,
            error=event.error,
            item=item,
            keeps_outputs=event.keeps_outputs,
        )
        if event.items is not None:
            items = reused.items = self._reused_items.pop(event.step, {})
            reused.item_count = event.items
            reused.tally = Counter(each.status for each in items.values())
            if event.keeps_outputs:
                reused.output = [items[number].output for number in sorted(items)]
        if reused.secret:
            reused.output = REDACTED_OUTPUT
        if item is not None:
            self._reused_items.setdefault(event.step, {})[item] = reused

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
            self._continue((event.step, event.item), item)
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
        number = attempt.number if attempt is not None else 0 if self._is_whole else event.attempt
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
                self.waits.pop(step.name, None)
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

    # From one segment to the next.

    def _all(self) -> Iterator[tuple[Key, StepView]]:
        for name, step in self.steps.items():
            yield (name, None), step
            for number, item in (step.items or {}).items():
                yield (name, number), item

    def _all_pending(self) -> dict[Key, StepView]:
        """Return the steps and items that have begun and not ended."""
        pending = dict(self._pending)
        for key, step in self._all():
            if step.status not in _UNSETTLED:
                pending.pop(key, None)
            elif step.latest is not None:
                pending[key] = step
        return pending

    def _crash(self, key: Key, step: StepView) -> None:
        attempt = step.attempts[-1]
        if attempt.ended_ms is None:
            self._end_attempt(key, step, attempt, "crashed", _crash_of(step), self.at_ms)

    def _end_segment(self) -> None:
        if self.segments:
            self.segments[-1] = self.segments[-1]._replace(ended_ms=self.at_ms)
        for _, step in self._all():
            step.end_active(self.at_ms)
        self._earlier.update(self.steps)

    def _forget(self, event: events.RunResumed) -> None:
        """Forget what does not hold any more now that the run resumes."""
        edges = self.dependencies.items()
        outdated = with_dependents(event.outdated, edges)
        # Dependents of a step that begins anew may be steps that the pipeline leaves out now.
        outdated |= with_dependents(event.unfinished, edges) - event.unfinished.keys()
        for key in list(self._settled):
            step = self._settled[key]
            if key[0] in self.passed_steps:
                continue  # its result is final
            begins_anew = event.afresh or (key[1] is None and key[0] in event.unfinished)
            # What a condition skipped asks it again, and tells until then what dependents lacked.
            if key[0] in outdated or (
                begins_anew and blocks_dependents(step.status, step.by_condition)
            ):
                del self._settled[key]
        given_up = outdated | event.missing_steps.keys()
        for key in list(self._pending):
            if event.afresh or key[0] in given_up:
                del self._pending[key]
        for name in given_up & self.waits.keys():
            del self.waits[name]

    def _continue(self, key: Key, step: StepView) -> None:
        """Let a step or an item continue with the attempts of earlier segments, if it had any."""
        before = self._pending.get(key)
        if before is not None:
            step.fresh_from = before.fresh_from

    # What resumption and reports read.

    def has_all(self, steps: Iterable[str]) -> bool:
        """Whether the latest segment has all these steps."""
        return all(name in self.steps for name in steps)

    def settled(self) -> dict[Key, StepView]:
        """Return the steps and items whose results hold; none that was cancelled."""
        settled = dict(self._settled)
        for key, step in self._all():
            settled_one = self._result_of(step, settled.get(key))
            if settled_one is not None:
                settled[key] = settled_one
        return settled

    def settled_step(self, name: str) -> StepView | None:
        """Return what `settled` has of a step, without looking at any item."""
        before = self._settled.get((name, None))
        return self._result_of(self.steps[name], before) if name in self.steps else before

    def _result_of(self, step: StepView, before: StepView | None) -> StepView | None:
        """Return the result that holds: that of the latest segment, or the one before."""
        if step.item is None and step.name in self.missing_steps:
            return before  # a version that has it runs it after all
        is_restored = step.reused and before is not None
        if is_restored or step.status in (*_UNSETTLED, StepStatus.CANCELLED):
            return before
        if step.status is StepStatus.SUCCESS or before is None or not _has_succeeded(before):
            return step
        return before

    def missing_from(self, known: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Return the steps that the run would still run and that are not among those known.

        Each comes with the steps that it depends on. Those that its latest segment has skipped for
        that are among them.
        """
        return {
            name: step.depends_on
            for name, step in self.steps.items()
            if name not in known
            and (
                name in self.missing_steps
                or (end := self.settled_step(name)) is None
                or blocks_dependents(end.status, end.by_condition)
            )
        }

    def pending_attempts(self) -> dict[Key, PendingAttempts]:
        """Return what has begun and not ended, as it is if the segment ends now."""
        return {key: self._attempts_left(key, step) for key, step in self._all_pending().items()}

    def _attempts_left(self, key: Key, step: StepView) -> PendingAttempts:
        series = step.attempts[step.fresh_from :]
        latest = series[-1]
        unfinished = [each for each in series if each.end == "crashed"]
        if latest.ended_ms is None:
            latest = replace(latest, ended_ms=self.at_ms, end="crashed", error=_crash_of(step))
            if not latest.began:
                latest.begin(self.at_ms)
            unfinished.append(latest)
        start = events.AttemptStarted(
            *(key[0], latest.number, latest.started_ms, latest.queued_ms, key[1], latest.engine)
        )
        crashes = sum(each.began for each in unfinished)
        failures = [
            each.error for each in series if each.error is not None and each.end != "crashed"
        ]
        failure = failures[-1] if failures else None
        return PendingAttempts(start, latest.error, len(unfinished), crashes, failure)

    def unfinished(self) -> dict[str, str]:
        """Return the steps that have begun and not succeeded, each with what became of it."""
        reasons = dict(self._reasons)
        begun = [name for name, step in self.steps.items() if step.items is not None]
        begun += [name for name, _ in self._all_pending()]
        reasons.update(dict.fromkeys(begun, "it had not finished"))
        for name, step in self.steps.items():
            if step.status in _ENDS_OF_UNFINISHED:
                reasons[name] = _ENDS_OF_UNFINISHED[step.status]
        return {name: why for name, why in reasons.items() if not self._has_result(name)}

    def _has_result(self, name: str) -> bool:
        end = self.settled_step(name)
        return end is not None and _has_succeeded(end)

    def drop_outputs(self, steps: Iterable[str]) -> None:
        """Forget what these steps, and items of theirs, have returned."""
        names = frozenset(steps)
        known = [each for (name, _), each in self._settled.items() if name in names]
        for views in (self._earlier, self.steps):
            known += [views[name] for name in names if name in views]
        for step in known:
            step.drop_outputs()

    def report(
        self,
        decode: _Decode,
        decode_input: _Decode | None = None,
        *,
        ran_nothing: bool = False,
    ) -> RunReport:
        """Return the report of the run, even if it has not ended.

        ``decode`` makes a value of the payload of an output, and receives the step's name.
        ``decode_input`` does the same for an input; by default it is ``decode``. With
        ``ran_nothing``, it is for a start that has run nothing: what has ended is reused.
        """
        decode_input, decode = decode_input or decode, OutputReader(decode)
        inputs = {
            name: REDACTED_OUTPUT if name in self.secret_inputs else decode_input(name, value)
            for name, value in self.inputs.items()
        }
        results = [
            _show_outputs(step.to_result(self.at_ms), partial(decode, name))
            for name, step in self.steps.items()
        ]
        if ran_nothing:
            results = [
                each if each.status in _UNSETTLED else replace(each, reused=True, rerun_reason=None)
                for each in results
            ]
        slim = {name for name, step in self.steps.items() if not step.keeps_outputs}
        give_all({each.step_name: each for each in results}, self.map_over, inputs, slim)
        report = RunReport(
            self.run_id,
            results,
            total_duration_ms=self.at_ms,
            wall_time=self.started.wall_time,
            stop_reason=self.stop_reason if self.has_ended else None,
            pipeline=self.pipeline,
            inputs=inputs,
            status=RunStatus.ORPHANED if self.is_orphaned else self.status,
            segments=self.segments,
            **run_facts(self),
        )
        if self.log is None:
            return report
        log = log_of(self.log, decode, inputs, self.secret_steps(), slim)
        if ran_nothing:  # it has only found what is there
            log += [
                events.StepReused(
                    *(each.step_name, self.at_ms, None, each.status, each.origin),
                    keeps_outputs=each.step_name not in slim,
                )
                for each in results
                if each.reused
            ]
        return with_events(report, log)

    def secret_steps(self) -> set[str]:
        """Return the steps of its latest segment whose outputs must not be shown."""
        return {name for name, step in self.steps.items() if step.secret}


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
    events.ResultReused: StoredRun._on_result_reused,
    events.ThreadAbandoned: StoredRun._on_thread_abandoned,
    events.LoopBlocked: StoredRun._on_loop_blocked,
    events.PoolPaused: StoredRun._on_pool_paused,
}
_ENDS_OF_UNFINISHED = {
    StepStatus.FAILED: "it had failed",
    StepStatus.CANCELLED: "it was cancelled",
}


def _restore(step: StepView, before: StepView) -> None:
    """Give a step or an item the result that an earlier segment settled."""
    step.fresh_from, step.ended_ms = before.fresh_from, before.ended_ms
    if step.started_ms is None:  # it was mapped, and had no items
        step.started_ms, step.active = before.started_ms, [*before.active]
    step.output, step.error = before.output, before.error
    step.reason, step.by_condition = before.reason, before.by_condition
    step.item_count, step.tally = before.item_count, before.tally
    step.answer, step.description = before.answer, before.description
    step.origin, step.origin_ms = before.origin, before.origin_ms
    step.origin_attempts, step.keeps_outputs = before.origin_attempts, before.keeps_outputs
    step.wait = before.wait
    if before.items is not None:
        step.items = {n: _restored_item(step, n, item) for n, item in before.items.items()}
    step.secret = step.secret or before.secret


def _restored_item(step: StepView, number: int, before: StepView) -> StepView:
    """Return an item of a restored step, with all attempts that it has had."""
    latest = step.former_items.pop(number, before)
    if latest is before and not step.secret:
        return before
    item = replace(before, secret=before.secret or step.secret)
    item.carry(latest)
    item.fresh_from = before.fresh_from
    return item


def _is_redacted(value: object) -> bool:
    return type(value) is Payload and value == REDACTED  # a user's value may refuse to be compared


def _has_succeeded(step: StepView) -> bool:
    return step.status is StepStatus.SUCCESS


def _crash_of(step: StepView) -> StepCrashedError:
    series = step.attempts[step.fresh_from :]
    crashes = sum(attempt.end == "crashed" for attempt in series) + 1
    return StepCrashedError(step.name, step.attempts[-1].number, crashes)


def decode_outputs(step: StepView, decode: Callable[[Payload], Any]) -> None:
    """Replace the payloads of the outputs of a step, or of an item, by what they stand for."""
    if step.items is None:
        step.output = _decoded(step.output, decode)
        return
    for item in step.items.values():
        decode_outputs(item, decode)
    if isinstance(step.output, list):
        step.output = outputs_of(step.items[number] for number in sorted(step.items))


def _show_outputs(result: StepResult, decode: Callable[[Payload], Any]) -> StepResult:
    """Put its outputs in place of their payloads in a result that was just made, and return it.

    Secret ones stay hidden.
    """
    output = result.output
    if result.items is not None:
        for item in result.items:
            _show_outputs(item, decode)
        output = output and outputs_of(result.items)
    elif result.secret:
        output = REDACTED_OUTPUT
    else:
        output = _decoded(output, decode)
    result.output = output  # type: ignore[misc]
    return result


def _decoded(output: Any, decode: Callable[[Payload], Any]) -> Any:
    if not isinstance(output, Payload):
        return output
    return RemoteOutput.from_payload(output) if is_remote(output) else decode(output)
