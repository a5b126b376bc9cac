"""Whatever decides what a run does next: a fold over its events.

Rules:

1. A step moves along the table `_STEP_RULES` and no other way. An event that cannot happen to it
   in its phase is refused with `IllegalEventError` and changes nothing.
2. A step's turn comes when its tier begins (``schedule="tiers"``) or when the last of its
   dependencies settles (``schedule="ready"``). A tier begins when every step of the tier before
   has settled.
3. When its turn comes, a step is ready if all its dependencies succeeded, and doomed if not.
4. Once the run is stopping (a step failed under ``fail_fast``, or the run was interrupted)
   nothing becomes ready any more, and all that was not handed out is doomed.
5. No more than ``max_concurrency`` steps are handed out and unsettled at a time.

Nothing here reads a clock, waits, or calls a user's code. So the same events lead to the same
state whenever and wherever they are applied.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias

from asyncflow._errors import ActionNotAwaitableError, IllegalEventError
from asyncflow._graph import Plan
from asyncflow._report import Attempt, RunReport, StepResult, StepStatus
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    Outcome,
    RunFinished,
    RunInterrupted,
    RunStarted,
    StepCancelled,
    StepFailed,
    StepSkipped,
    StepSucceeded,
)

__all__ = ["RunState", "Schedule"]

Schedule: TypeAlias = Literal["tiers", "ready"]

# The phases of a step. Plain integers: they are compared for every event.
_PENDING, _READY, _HANDED_OUT, _DOOMED, _WITHDRAWN, _ATTEMPTING, _WAITING, _SETTLED = range(8)
_PHASES = (
    "the step's turn has not come",
    "the step is ready",
    "the step is about to start",
    "the step will never start",
    "the step was ready when the run stopped",
    "an attempt of the step is running",
    "the step waits for its next attempt",
    "the step has ended",
)


class RunState:
    """The state of one run.

    Steps go in and out by index, as in the `Plan`; events name them.

    Attributes:
        results: The result of each step that has settled, by index.
        unsettled: How many steps have not settled.
        has_news: Whether `ready` or `doomed` may have something new to tell.
        stop_reason: Why the run is stopping; ``None`` while it is not.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        fail_fast: bool = True,
        schedule: Schedule = "tiers",
        max_concurrency: int | None = None,
        random: Callable[[], float] = float,
    ) -> None:
        count = len(plan.steps)
        self._random = random
        self._plan = plan
        self._index = plan.index
        self._fail_fast = fail_fast
        self._by_tiers = schedule == "tiers"
        self._max_concurrency = max_concurrency
        self._started: RunStarted | None = None
        self._finished: RunFinished | None = None
        self._interrupted = False
        self.results: list[StepResult | None] = [None] * count
        self.unsettled = count
        self.has_news = False
        self.stop_reason: str | None = None

        self._phases = [_PENDING] * count
        # The latest attempt that each step has started.
        self._attempts: list[AttemptStarted | None] = [None] * count
        self._failed_attempts: dict[int, tuple[Attempt, ...]] = {}

        self._ready: deque[int] = deque()
        self._doomed: list[tuple[int, str]] = []
        self._in_flight = 0
        # Which settled steps did not succeed, each with the failed step that it goes back to.
        # One failure is not enough to remember: a step asks this of each of its dependencies.
        self._lost: dict[int, str] = {}
        self._tier = -1
        self._tier_unsettled = 0
        self._dependencies_unsettled: list[int] = []

    # What the driver asks.

    def ready(self) -> list[int]:
        """Return the steps that may start now. Each is handed out once."""
        self.has_news = bool(self._doomed)
        ready, phases = self._ready, self._phases
        room = len(ready)
        if self._max_concurrency is not None:
            room = min(room, self._max_concurrency - self._in_flight)
        batch: list[int] = []
        while ready and len(batch) < room:
            step = ready.popleft()
            if phases[step] == _READY:  # it may have been doomed, or started, in the meantime
                phases[step] = _HANDED_OUT
                batch.append(step)
        self._in_flight += len(batch)
        return batch

    def doomed(self) -> list[tuple[int, str]]:
        """Return the steps that will never start, each with the reason. Each is told once."""
        doomed, self._doomed, phases = self._doomed, [], self._phases
        # A stored run that is being replayed has already told what became of some of them.
        return [told for told in doomed if phases[told[0]] in (_DOOMED, _WITHDRAWN)]

    def after_failure(self, step: int, error: Exception) -> float | None:
        """Decide what follows the failure of the attempt that is running.

        Returns:
            How many milliseconds to wait before the next attempt, or ``None`` if the step has
            failed for good.
        """
        if isinstance(error, ActionNotAwaitableError):
            return None  # the next call would have the same effect once more
        attempt = self.running_attempt(step)
        assert attempt is not None
        declared = self._plan.steps[step]
        if attempt.attempt >= declared.max_retries:
            return None
        return declared.retry.delay_ms(attempt.attempt, error, self._random)

    def last_error(self, step: int) -> BaseException | None:
        """What the latest failed attempt of the step failed with, if one has."""
        failed = self._failed_attempts.get(step)
        return failed[-1].error if failed else None

    def latest_attempt(self, step: int) -> AttemptStarted | None:
        """The latest attempt that the step has started, if it has started any."""
        return self._attempts[step]

    def running_attempt(self, step: int) -> AttemptStarted | None:
        """The attempt of the step that is running, if one is."""
        return self._attempts[step] if self._phases[step] == _ATTEMPTING else None

    @property
    def has_finished(self) -> bool:
        """Whether the run is over."""
        return self._finished is not None

    @property
    def outcome(self) -> Outcome:
        """How the run ends, or would if it ended now."""
        if self._interrupted:
            return "interrupted"
        return "failed" if self._lost else "passed"

    def report(self) -> RunReport:
        """Return the report of the run, which must have finished."""
        assert self._started is not None
        assert self._finished is not None
        return RunReport(
            self._started.run_id,
            filter(None, map(self.results.__getitem__, self._plan.order)),
            total_duration_ms=self._finished.at_ms,
            wall_time=self._started.wall_time,
        )

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
            step = self._index[event.step]  # type: ignore[union-attr]
        except KeyError:
            raise IllegalEventError(event, "the pipeline has no such step") from None
        if phases[step] not in allowed:
            raise IllegalEventError(event, _PHASES[phases[step]])
        result = fold(self, step, event)
        if result is None:
            return
        phases[step] = _SETTLED
        self.results[step] = result
        self.unsettled -= 1
        if self._by_tiers:
            self._tier_unsettled -= 1
            if not self._tier_unsettled:
                self._begin_next_tier()
        else:
            self._release_dependents(step)
        if self._ready:
            self.has_news = True  # there is room for one more under max_concurrency

    def _on_run_started(self, event: RunStarted) -> None:
        if self._started is not None:
            raise IllegalEventError(event, "the run has started")
        self._started = event
        if self._by_tiers:
            self._begin_next_tier()
        else:
            self._dependencies_unsettled = [len(needed) for needed in self._plan.dependencies]
            self._take_turns(self._plan.tiers[0] if self._plan.tiers else ())

    def _on_run_interrupted(self, event: RunInterrupted) -> None:
        if self._started is None or self._finished is not None:
            raise IllegalEventError(event, "the run is not running")
        self._interrupted = True
        self._stop(event.reason)

    def _on_run_finished(self, event: RunFinished) -> None:
        if self._started is None or self._finished is not None:
            raise IllegalEventError(event, "the run is not running")
        if self.unsettled:
            raise IllegalEventError(event, f"{self.unsettled} step(s) have not ended")
        self._finished = event

    def _on_attempt_started(self, step: int, event: AttemptStarted) -> None:
        latest = self._attempts[step]
        if event.attempt != (1 if latest is None else latest.attempt + 1):
            raise IllegalEventError(event, f"the latest attempt was {latest!r}")
        if self._phases[step] in (_READY, _WITHDRAWN):
            self._in_flight += 1  # nobody asked for it: a stored run is being replayed
        self._phases[step] = _ATTEMPTING
        self._attempts[step] = event

    def _on_attempt_failed(self, step: int, event: AttemptFailed) -> None:
        self._failed_attempts[step] = self._history(step, event, event.error)
        self._phases[step] = _WAITING

    def _on_step_succeeded(self, step: int, event: StepSucceeded) -> StepResult:
        started = self._attempts[step]
        # The way of most steps, without detours.
        if started is not None and event.attempt == 1 == started.attempt:
            self._in_flight -= 1
            at_ms = started.at_ms
            return StepResult(
                event.step,
                StepStatus.SUCCESS,
                1,
                event.at_ms - at_ms,
                event.output,
                None,
                None,
                at_ms,
            )
        return self._result(step, event, StepStatus.SUCCESS, event.output, None, None)

    def _on_step_failed(self, step: int, event: StepFailed) -> StepResult:
        result = self._result(step, event, StepStatus.FAILED, None, event.error, None)
        self._lost[step] = event.step
        if self._fail_fast:
            self._stop(f"step {event.step!r} failed and fail_fast is on")
        return result

    def _on_step_cancelled(self, step: int, event: StepCancelled) -> StepResult:
        result = self._result(step, event, StepStatus.CANCELLED, None, event.error, event.reason)
        self._lost[step] = event.step
        return result

    def _on_step_skipped(self, step: int, event: StepSkipped) -> StepResult:
        if self._phases[step] == _HANDED_OUT:
            self._in_flight -= 1
        self._lost.setdefault(step, event.step)
        return StepResult(event.step, StepStatus.SKIPPED, reason=event.reason, recorded=())

    # How it follows.

    def _result(
        self,
        step: int,
        event: StepSucceeded | StepFailed | StepCancelled,
        status: StepStatus,
        output: Any,
        error: BaseException | None,
        reason: str | None,
    ) -> StepResult:
        started, attempts = self._attempts[step], event.attempt
        if started is None or started.attempt != attempts:
            raise IllegalEventError(event, f"the latest attempt is {started!r}")
        started_ms, history = started.at_ms, None
        if attempts > 1 or self._phases[step] == _WAITING:
            history = self._history(step, event, error)
            started_ms = history[0].started_ms
        self._in_flight -= 1
        duration_ms = event.at_ms - started_ms
        return StepResult(
            event.step, status, attempts, duration_ms, output, error, reason, started_ms, history
        )

    def _history(
        self, step: int, event: _AttemptEnd, error: BaseException | None
    ) -> tuple[Attempt, ...]:
        """Return the attempts of a step up to the one that the event ends, if one is running."""
        earlier = self._failed_attempts.get(step, ())
        if self._phases[step] == _WAITING:
            return earlier
        started = self._attempts[step]
        if started is None or started.attempt != event.attempt:
            raise IllegalEventError(event, f"the latest attempt is {started!r}")
        attempt = Attempt(event.attempt, started.at_ms, event.at_ms - started.at_ms, error)
        return (*earlier, attempt)

    def _release_dependents(self, step: int) -> None:
        missing, turns = self._dependencies_unsettled, []
        for dependent in self._plan.dependents[step]:
            missing[dependent] -= 1
            if not missing[dependent]:
                turns.append(dependent)
        self._take_turns(turns)

    def _begin_next_tier(self) -> None:
        self._tier += 1
        if self._tier < len(self._plan.tiers):
            tier = self._plan.tiers[self._tier]
            self._tier_unsettled = len(tier)
            self._take_turns(tier)

    def _take_turns(self, steps: Iterable[int]) -> None:
        if self.stop_reason is not None:
            return  # they are doomed, as is all that was pending when the run stopped
        phases, lost = self._phases, self._lost
        self.has_news = True
        for step in steps:
            if lost:
                needed = self._plan.dependencies[step]
                cause = next((lost[other] for other in needed if other in lost), None)
                if cause is not None:
                    lost[step] = cause
                    self._doom(step, f"it depends on step {cause!r}, which failed")
                    continue
            phases[step] = _READY
            self._ready.append(step)

    def _stop(self, reason: str) -> None:
        if self.stop_reason is None:
            self.stop_reason = reason
            for step, phase in enumerate(self._phases):
                if phase in (_PENDING, _READY):
                    self._doom(step, reason)

    def _doom(self, step: int, reason: str) -> None:
        self.has_news = True
        # What was ready may have been handed out, if a stored run is being replayed.
        self._phases[step] = _WITHDRAWN if self._phases[step] == _READY else _DOOMED
        self._doomed.append((step, reason))


_AttemptEnd: TypeAlias = AttemptFailed | StepSucceeded | StepFailed | StepCancelled

_STEP_RULES: dict[
    type, tuple[tuple[int, ...], Callable[[RunState, int, Any], StepResult | None]]
] = {
    # event: the phases in which it can happen, and what it does; a result settles the step
    AttemptStarted: ((_HANDED_OUT, _WAITING, _READY, _WITHDRAWN), RunState._on_attempt_started),
    AttemptFailed: ((_ATTEMPTING,), RunState._on_attempt_failed),
    StepSucceeded: ((_ATTEMPTING,), RunState._on_step_succeeded),
    StepFailed: ((_ATTEMPTING,), RunState._on_step_failed),
    StepCancelled: ((_ATTEMPTING, _WAITING), RunState._on_step_cancelled),
    StepSkipped: ((_DOOMED, _WITHDRAWN, _HANDED_OUT), RunState._on_step_skipped),
}
_RUN_RULES: dict[type, Callable[[RunState, Any], None]] = {
    RunStarted: RunState._on_run_started,
    RunInterrupted: RunState._on_run_interrupted,
    RunFinished: RunState._on_run_finished,
}
