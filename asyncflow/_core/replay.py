"""What the stored events of a run tell, without the code of the pipeline that they are of.

Rules:

1. A run may have been resumed, also with a changed pipeline. The steps are those of the latest
   one.
2. A success is kept, whatever becomes of the run, until a resumption says that it is outdated.
   Then all that has come of it is outdated too.
3. What was running when the run stood still was cut short.
4. What is secret now is not told, also if it was kept when it was not. To the run that goes on it
   is what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from asyncflow._core.errors import StepCrashedError
from asyncflow._core.graph import plan, with_dependents
from asyncflow._core.record import replace
from asyncflow._core.report import RunReport
from asyncflow._core.results import (
    REDACTED,
    REDACTED_OUTPUT,
    Attempt,
    Payload,
    StepResult,
    StepStatus,
    blocks_dependents,
)
from asyncflow._core.step import WorkflowStep
from asyncflow._core.step_runs import AttemptLog, Key, PendingAttempts, Phase, StepRuns
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
    StepSkipped,
    StepSucceeded,
    ThreadAbandoned,
)

__all__ = ["StoredRun", "as_secret", "latest_steps", "with_outputs"]

"""Why a step runs again although its result holds."""

_Decode: TypeAlias = Callable[[str, Payload], Any]


class StoredRun:
    """A fold over the stored events of one run; the first is a `RunStarted`.

    Outputs are `Payload` objects, as in the events of a journal.

    Attributes:
        started: How the run began.
        pipeline: What the pipeline is called, as said last.
        at_ms: The time of the latest event.
        outcome: How the run has ended; ``None`` if it has not.
        was_stopping: Whether it was being stopped, so that steps were cut short or left out.
        dependencies: For each step that it ever had, what that depends on, as said last.
        fingerprints: The same for their fingerprints.
        inputs: The inputs that it was given.
        secret_inputs: Those of them that are not to be told.
    """

    def __init__(self, events: Iterable[Event]) -> None:
        self.started: RunStarted
        self.pipeline = ""
        self.at_ms = 0.0
        self.outcome: Outcome | None = None
        self.was_stopping = False
        self.dependencies: dict[str, tuple[str, ...]] = {}
        self.fingerprints: dict[str, tuple[str, str]] = {}
        self.inputs: dict[str, Any] = {}
        self.secret_inputs: set[str] = set()
        self._secret: frozenset[str] = frozenset()
        self._stop_reason: str | None = None
        self._kept: dict[Key, StepResult] = {}
        self._pending_attempts: dict[Key, PendingAttempts] = {}
        self._reasons: dict[str, str] = {}
        for event in events:
            self.apply(event)

    # What happened.

    def apply(self, event: Event) -> None:
        """Take in one more event."""
        if not isinstance(event, RunStarted):
            self.at_ms = max(self.at_ms, event.at_ms)
        if isinstance(event, RunStarted):
            self.started = event
            self._begin(event)
        elif isinstance(event, RunResumed):
            self._resume(event)
            self._begin(event)
        elif isinstance(event, RunFinished):
            self.outcome, self._stop_reason = event.outcome, event.stop_reason
            self.at_ms = event.at_ms  # sums of times are rounded, and the report's is this one
        elif isinstance(event, RunInterrupted | RunTimedOut):
            self.was_stopping = True
        else:
            self._apply_to_unit(event)

    def _begin(self, event: RunStarted | RunResumed) -> None:
        self.outcome, self.was_stopping, self._stop_reason = None, False, None
        self.pipeline = event.pipeline or self.pipeline
        self.dependencies.update(event.dependencies)
        self.fingerprints.update(event.fingerprints)
        self._secret = frozenset(event.secret)
        for name, payload in event.inputs.items():
            if payload == REDACTED:
                self.secret_inputs.add(name)
                self.inputs.setdefault(name, payload)
            else:
                self.inputs[name] = payload
        # That is all which the fold asks of a step. The dependencies of a clean-up step that
        # names none are among those of the event.
        steps = [WorkflowStep(n, _not_here, needed) for n, needed in event.dependencies.items()]
        self._plan = plan(steps)
        of_plan = {
            k: each for k, each in self._pending_attempts.items() if k[0] in event.dependencies
        }
        self._step_runs = StepRuns(self._plan, of_plan)
        self._attempt_log = AttemptLog(self._step_runs)
        self._reasons = event.rerun_reasons if isinstance(event, RunResumed) else {}
        for name, reason in self._reasons.items():
            self._attempt_log.remark(self._plan.index[name], rerun_reason=reason)

    def _resume(self, event: RunResumed) -> None:
        kept, pending_attempts = self.known(), {} if event.afresh else self.pending_attempts()
        # What came of a step that begins anew can be among what the pipeline leaves out now.
        begun_anew = with_dependents(event.unfinished, self.dependencies.items())
        outdated = with_dependents(event.outdated, self.dependencies.items())
        outdated |= begun_anew - event.unfinished.keys()
        for key, result in list(kept.items()):
            is_final = result.status is StepStatus.SUCCESS or not (
                event.afresh or (key[1] is None and key[0] in event.unfinished)
            )
            if key[0] in outdated or not is_final:
                del kept[key]
        self._kept = kept
        self._pending_attempts = {
            key: each for key, each in pending_attempts.items() if key[0] not in outdated
        }

    def _apply_to_unit(self, event: Any) -> None:
        step = self._plan.index[event.step]
        if isinstance(event, MapStarted):
            self._step_runs.begin_map(step, event.at_ms)
            return
        node = step if event.item is None else self._step_runs.node_of_item(step, event)
        result = self._fold(node, event)
        if result is not None:
            self._settle(node, self._attempt_log.with_remarks(node, result))

    def _fold(self, node: int, event: Any) -> StepResult | None:
        attempt_log, phases = self._attempt_log, self._step_runs.phases
        match event:
            case AttemptStarted():
                self._step_runs.latest[node], phases[node] = event, Phase.ATTEMPTING
            case AttemptFailed():
                attempt_log.fail(node, event)
                phases[node] = Phase.WAITING
            case ThreadAbandoned():
                attempt_log.remark(node, abandoned=True)
            case LoopBlocked():
                attempt_log.block(node, event)
            case StepSucceeded():
                return self._success(node, event)
            case StepFailed():
                return attempt_log.result(node, event, StepStatus.FAILED, event.error)
            case StepCancelled():
                return attempt_log.result(node, event, StepStatus.CANCELLED, event.error)
            case StepSkipped():
                return attempt_log.skipped(node, event)
            case _:  # StepReused
                return replace(self._kept[event.step, event.item], reused=True, rerun_reason=None)
        return None

    def _success(self, node: int, event: StepSucceeded) -> StepResult:
        whole = event
        if self._step_runs.phases[node] == Phase.MAPPING:  # its items have kept theirs
            items = self._step_runs.results_of_items(node) or ()
            whole = replace(event, output=[item.output for item in items])
        result = self._attempt_log.result(node, whole, StepStatus.SUCCESS, None)
        return replace(result, secret=True) if event.output == REDACTED else result

    def _settle(self, node: int, result: StepResult) -> None:
        self._step_runs.results[node] = result
        self.was_stopping |= self._was_left_out(result)
        if self._step_runs.is_item(node):
            self._step_runs.end_item(node)
        else:
            self._step_runs.phases[node] = Phase.SETTLED

    def _was_left_out(self, result: StepResult) -> bool:
        """Whether a step did not run, or not to its end, because the run was being stopped."""
        if result.status is not StepStatus.SKIPPED or result.on_purpose:
            return result.status is StepStatus.CANCELLED
        index, results = self._plan.index, self._step_runs.results
        needed = [results[index[name]] for name in result.depends_on]
        return not any(
            other is not None and blocks_dependents(other.status, other.on_purpose)
            for other in needed
        )

    # What is to be made of it.

    def has_all(self, steps: Iterable[str]) -> bool:
        """Whether its latest pipeline has all these steps."""
        return all(name in self._plan.index for name in steps)

    def known(self) -> dict[Key, StepResult]:
        """Return the results that were kept, of steps and of items; none that was cancelled."""
        known = dict(self._kept)
        for node, result in enumerate(self._step_runs.results):
            key = self._step_runs.key_of(node)
            if result is None or result.status is StepStatus.CANCELLED:
                continue
            if result.status is StepStatus.SUCCESS or not _has_succeeded(known, *key):
                known[key] = result
        return known

    def pending_attempts(self) -> dict[Key, PendingAttempts]:
        """Return what has begun and not ended, as it is when the run stands still now."""
        pending_attempts = dict(self._pending_attempts)
        for node, latest in enumerate(self._step_runs.latest):
            if self._step_runs.phases[node] == Phase.SETTLED:
                pending_attempts.pop(self._step_runs.key_of(node), None)
            elif latest is not None:
                pending_attempts[self._step_runs.key_of(node)] = self._cut_short(node, latest)
        return pending_attempts

    def _cut_short(self, node: int, latest: AttemptStarted) -> PendingAttempts:
        failed = self._attempt_log.attempts(node)
        crashes = sum(isinstance(attempt.error, StepCrashedError) for attempt in failed)
        if self._step_runs.phases[node] == Phase.ATTEMPTING:
            crashes += 1
            error = StepCrashedError(self._step_runs.name_of(node), latest.attempt, crashes)
            duration_ms = self.at_ms - latest.at_ms
            number, started_ms, queued_ms = latest.attempt, latest.at_ms, latest.queued_ms
            failed = (*failed, Attempt(number, started_ms, duration_ms, error, queued_ms))
        return PendingAttempts(latest, failed, crashes)

    def unfinished(self) -> dict[str, str]:
        """Return the steps that have begun and not succeeded, each with what became of it."""
        told, known = dict(self._reasons), self.known()
        maps = [self._plan.steps[step].name for step in self._step_runs.maps()]
        begun = [*maps, *(name for name, _ in self.pending_attempts())]
        told.update(dict.fromkeys(begun, "it was cut short"))
        for step, result in zip(self._plan.steps, self._step_runs.results, strict=False):
            if result is not None and result.status in _ENDS_OF_UNFINISHED:
                told[step.name] = _ENDS_OF_UNFINISHED[result.status]
        return {name: why for name, why in told.items() if not _has_succeeded(known, name)}

    def report(self, decode: _Decode, decode_input: _Decode | None = None) -> RunReport:
        """Return the report of the run, also if it has not ended.

        Args:
            decode: Makes a value of the payload of an output; it is told the step's name.
            decode_input: The same for an input; it is told the input's name. By default `decode`.
        """
        decode_input = decode_input or decode
        inputs = {
            name: REDACTED_OUTPUT if name in self.secret_inputs else decode_input(name, payload)
            for name, payload in self.inputs.items()
        }
        results = [
            as_secret(result) if result.step_name in self._secret else result
            for result in map(self._so_far, self._plan.order)
        ]
        return RunReport(
            self.started.run_id,
            [with_outputs(result, decode) for result in results],
            total_duration_ms=self.at_ms,
            wall_time=self.started.wall_time,
            stop_reason=self._stop_reason,
            pipeline=self.pipeline,
            inputs=inputs,
            outcome=self.outcome or "running",
        )

    def _so_far(self, node: int) -> StepResult:
        """Return the result of a unit, or what can be said before there is one."""
        result, latest = self._step_runs.results[node], self._step_runs.latest[node]
        if result is not None:
            return result
        if self._step_runs.phases[node] == Phase.MAPPING:
            return self._so_far_of_items(node)
        name, depends_on = self._step_runs.name_of(node), self._step_runs.depends_on(node)
        if latest is None:
            return StepResult(name, StepStatus.PENDING, recorded=(), depends_on=depends_on)
        failed = self._attempt_log.attempts(node)
        started_ms = failed[0].started_ms if failed else latest.at_ms
        return StepResult(
            name,
            StepStatus.RUNNING,
            latest.attempt,
            self.at_ms - started_ms,
            started_ms=started_ms,
            recorded=failed,
            depends_on=depends_on,
        )

    def _so_far_of_items(self, step: int) -> StepResult:
        items = [self._so_far(node) for node in self._step_runs.items(step)]
        started_ms = self._attempt_log.began_ms(step, items)
        return StepResult(
            self._step_runs.name_of(step),
            StepStatus.RUNNING,
            sum(item.attempts for item in items),
            self.at_ms - started_ms,
            started_ms=started_ms,
            recorded=(),
            depends_on=self._step_runs.depends_on(step),
            items=tuple(items),
        )


def latest_steps(events: Sequence[Event]) -> Mapping[str, tuple[str, ...]]:
    """Return the steps with which a run began, or went on the last time; none if it has no events.

    Each has with it what it depends on.
    """
    for event in reversed(events):
        if isinstance(event, RunStarted | RunResumed):
            return event.dependencies
    return {}


def with_outputs(result: StepResult, decode: _Decode, step: str | None = None) -> StepResult:
    """Return a result of a `StoredRun` with its outputs, and not what a journal has kept of them.

    Args:
        result: The result of a step, or of an item.
        decode: Makes a value of the payload of an output; it is told the step's name.
        step: The mapped step, if it is that of an item.
    """
    items, output, name = result.items, result.output, step or result.step_name
    if items is not None:
        items = tuple([with_outputs(item, decode, name) for item in items])
        output = output and [item.output for item in items]
    elif output == REDACTED or result.secret:
        output = REDACTED_OUTPUT
    elif isinstance(output, Payload):
        output = decode(name, output)
    return replace(result, items=items, output=output)


def as_secret(result: StepResult) -> StepResult:
    """Return the result of a step that is secret, as such, also if it was not when it was kept."""
    items = result.items and tuple(map(as_secret, result.items))
    return replace(result, items=items, secret=result.status is StepStatus.SUCCESS)


def _has_succeeded(known: Mapping[Key, StepResult], name: str, item: int | None = None) -> bool:
    result = known.get((name, item))
    return result is not None and result.status is StepStatus.SUCCESS


async def _not_here() -> None:
    """Stands for an action, which is not needed to tell what became of it."""


_ENDS_OF_UNFINISHED = {
    StepStatus.FAILED: "it had failed",
    StepStatus.CANCELLED: "it was cancelled",
}
