"""What an attempt came to, as the events that are made of it.

Rules:

1. What a step makes of a cancellation is judged by who asked for it, never by where it came from.
2. A limit's cancellation counts even if the attempt swallows it and returns a value.
3. What is neither an `Exception` nor a cancellation is not the step's failure: it ends the run.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import Any, NamedTuple

from asyncflow._core.errors import (
    StepCancelledError,
    StepCrashedError,
    StepTimeoutError,
    escape_controls,
)
from asyncflow._core.results import REDACTED, Payload
from asyncflow._core.scheduler import Limit
from asyncflow._core.state import RunState
from asyncflow._core.tracebacks import strip_internal_frames
from asyncflow._runtime.asyncio_compat import FAILURES, TIMER_SLACK_S, cancels, forget_cancels
from asyncflow._runtime.dispatcher import Ledger, Observer
from asyncflow._runtime.durable import JournalSession
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    StepCancelled,
    StepFailed,
    StepSucceeded,
)

__all__ = [
    "Shortfall",
    "Verdicts",
    "as_failure",
    "told_by",
]


_OF_ANYIO = ("Cancelled by cancel scope", "Cancelled via cancel scope")
"""How anyio's cancellations begin, which tell of its objects and their addresses."""


class Shortfall(NamedTuple):
    """What an attempt came to, if it was not a value in time."""

    error: BaseException | None
    """What it raised; ``None`` if it returned after its task had been asked to cancel."""
    value: Any
    ended: float
    """In seconds of the loop's clock."""
    cancels: int
    """How often its task had been asked to cancel by then."""


class Verdicts(Ledger):
    """The layer of a run that judges how its attempts have ended."""

    __slots__ = ("_asked", "_began", "_lapsed", "_payloads")

    def __init__(
        self, state: RunState, observers: tuple[Observer, ...], book: JournalSession | None
    ) -> None:
        super().__init__(state, observers, book)
        self._asked: dict[int, float] = {}
        """The units that the run has asked to stop, and when."""
        self._lapsed: set[int] = set()
        """The units whose running attempt was cancelled because it gave no sign of life."""
        self._began: dict[int, float] = {}
        """When the action was called for the running attempt, if its start had to be kept first."""
        self._payloads: dict[int, Payload] = {}
        """What a journal is to keep of what an action has just returned."""

    @abstractmethod
    def _stop_soon(self) -> None:
        """Stop all that is to be stopped."""

    def _has_begun(self, node: int, attempt: int) -> bool:
        """Whether the action was called for this attempt."""
        latest = self._state.step_runs.latest[node]
        return latest is not None and latest.attempt >= attempt

    async def _shortfall_after(
        self, node: int, work: Any, cut: TimeoutError | asyncio.CancelledError
    ) -> Shortfall | None:
        """Return what an attempt came to when the wait for it was cut short."""
        if isinstance(cut, TimeoutError):
            # One of the action is handed on as a value: this is the limit's.
            return self._timed_out(node, cut)
        if isinstance(work, asyncio.Task):
            while not work.done():  # pragma: no cover - only before 3.12
                # Before 3.12 `wait_for` abandons a timed-out task if it is cancelled then.
                try:
                    await asyncio.wait([work])
                except asyncio.CancelledError:
                    continue
            if not work.cancelled():  # pragma: no cover - only before 3.12
                shortfall: Shortfall | None = work.result()
                return shortfall
        if self._state.step_runs.results[node] is not None:
            return None  # it cancelled its own task with its last line, and has succeeded
        return Shortfall(cut, None, self._loop.time(), cancels())

    def _timed_out(self, node: int, timeout: TimeoutError) -> Shortfall:
        running = self._state.running_attempt(node)
        assert running is not None
        name, limit = self._state.step_runs.name_of(node), self._limit_of(node, running)
        assert limit is not None
        error = StepTimeoutError(name, running.attempt, limit.ms, limit.kind)
        error.__context__ = timeout.__cause__  # the cancellation: it tells where the step was
        return Shortfall(error, None, self._loop.time(), 0)

    def _limit_of(self, node: int, running: AttemptStarted) -> Limit | None:
        return self._state.deadlines.of(node, self._began.get(node, running.at_ms))

    def _is_cancelled_already(self, node: int, task: asyncio.Task[None]) -> bool:
        """Whether the running attempt was cancelled by somebody else, so that it may clean up."""
        if self._state.running_attempt(node) is None:
            return False
        return node in self._lapsed or bool(task.cancelling())

    def _is_cut_short(self, node: int) -> bool:
        """Whether it was a limit that has cancelled the running attempt.

        Its task can't tell: an action may have swallowed an earlier cancellation, also its own.
        """
        running = self._state.running_attempt(node)
        if running is None or node in self._lapsed:
            return running is not None
        limit = self._limit_of(node, running)
        return limit is not None and limit.ends_ms <= self._now_ms() + TIMER_SLACK_S * 1000

    def _judge(self, node: int, shortfall: Shortfall) -> float | None:
        """Tell what an attempt came to that was not a value in time.

        Returns:
            How many milliseconds to wait before the next attempt, or ``None`` if the unit ended.
        """
        running, asked = self._state.running_attempt(node), node in self._asked
        assert running is not None
        try:
            error, delay_ms = self._verdict(node, running, shortfall, asked)
            return self._tell_end(node, running, shortfall, error, delay_ms)
        finally:
            # What a retry policy raised keeps this frame too, which must not lead back to it.
            del self
            error = None

    def _verdict(
        self, node: int, running: AttemptStarted, shortfall: Shortfall, asked: bool
    ) -> tuple[BaseException | None, float | None]:
        """Return what the attempt failed with, and the wait if another one follows it."""
        error = shortfall.error
        if shortfall.cancels or node in self._lapsed:
            error = self._late(node, running, shortfall) or error
        if not asked:
            forget_cancels()  # the step's own, or those of its limit
        if asked or not isinstance(error, FAILURES):
            return error, None
        name = self._state.step_runs.name_of(node)
        error = as_failure(error, name, running.attempt)
        try:
            ended_ms = (shortfall.ended - self._started) * 1000
            return error, self._state.deadlines.retry_delay_ms(node, error, ended_ms)
        except BaseException as raised:  # by the step's retry policy
            strip_internal_frames(raised)
            if raised is not error:
                raised.__context__ = error
            if isinstance(raised, FAILURES):
                return as_failure(raised, name, running.attempt), None
            return raised, None
        finally:
            del self, error  # as in _judge

    def _tell_end(
        self,
        node: int,
        running: AttemptStarted,
        shortfall: Shortfall,
        error: BaseException | None,
        delay_ms: float | None,
    ) -> float | None:
        name, attempt, item = running.step, running.attempt, running.item
        ended_ms = (shortfall.ended - self._started) * 1000
        if error is None:
            success = StepSucceeded(name, attempt, ended_ms, shortfall.value, item)
            self._emit(success, self._as_kept(node, success))
        elif not isinstance(error, FAILURES):
            reason = f"step {name!r} raised {type(error).__name__}"
            self._emit(StepCancelled(name, attempt, ended_ms, reason, error, item))
            self._interrupt(error, reason)
        elif node in self._asked:
            self._emit(self._cancelled(node, error))
        elif delay_ms is not None:
            self._emit(AttemptFailed(name, attempt, ended_ms, error, delay_ms, item))
        else:
            self._tell_failure(StepFailed(name, attempt, ended_ms, error, item))
        return delay_ms

    def _as_kept(self, node: int, success: StepSucceeded) -> StepSucceeded | None:
        """Return a success as a journal keeps it, if there is one."""
        if self._book is None:
            return None
        kept = self._payloads.pop(node, None)
        if self._state.step_runs.steps[node].secret:
            kept = REDACTED  # also of a mapped step, which may have no items
        return StepSucceeded(success.step, success.attempt, success.at_ms, kept, success.item)

    def _tell_failure(self, failure: StepFailed) -> None:
        """Tell that a unit has failed for good, and stop what is to be stopped because of that."""
        self._emit(failure)
        if self._state.stop_reason is not None:
            self._stop_soon()

    def _has_crashed_too_often(self, node: int) -> bool:
        """Whether a unit's process has died too often while it ran; if so, tell that it failed."""
        step, pending_attempts = (
            self._state.step_runs.steps[node],
            self._state.step_runs.pending_attempts(node),
        )
        if (
            pending_attempts is None
            or not pending_attempts.is_interrupted
            or pending_attempts.crashes <= step.max_crashes
        ):
            return False
        name, (latest, _, crashes) = self._state.step_runs.name_of(node), pending_attempts
        error = StepCrashedError(name, latest.attempt, crashes)
        failure = StepFailed(step.name, latest.attempt, self._now_ms(), error, latest.item)
        self._tell_failure(failure)
        return True

    def _late(
        self, node: int, running: AttemptStarted, shortfall: Shortfall
    ) -> StepTimeoutError | None:
        """Return the limit's error if it was a limit that the attempt answered so late."""
        step, name = self._state.step_runs.steps[node], self._state.step_runs.name_of(node)
        if node in self._lapsed:
            self._lapsed.discard(node)
            assert step.heartbeat_ms is not None
            late = StepTimeoutError(name, running.attempt, step.heartbeat_ms, "heartbeat")
        else:
            limit = self._limit_of(node, running)
            ended_ms = (shortfall.ended - self._started) * 1000
            horizon_ms = self._asked.get(node, ended_ms + TIMER_SLACK_S * 1000)
            if limit is None or limit.ends_ms >= horizon_ms:
                return None  # the cancellation was the run's, or the step's own
            late = StepTimeoutError(name, running.attempt, limit.ms, limit.kind)
        if isinstance(shortfall.error, asyncio.CancelledError):
            late.__context__ = shortfall.error
        else:
            late.__cause__ = shortfall.error
        return late

    def _tell_cut_short(self, node: int) -> None:
        """Tell of a unit that the run has stopped while no attempt of it was running."""
        # If it had not started, the run has told already that it was skipped.
        if self._state.step_runs.results[node] is None and self._has_begun(node, 1):
            self._tell_cancelled(node)

    def _tell_cancelled(self, node: int) -> None:
        """Tell that a unit ends here which has begun and of which no attempt is running."""
        self._emit(self._cancelled(node, self._state.attempt_log.last_error(node)))

    def _cancelled(self, node: int, error: BaseException | None) -> StepCancelled:
        state, name = self._state, self._state.step_runs.steps[node].name
        latest, item = state.step_runs.latest[node], state.step_runs.item_of(node)
        attempt = 0 if latest is None else latest.attempt  # it is a mapped step
        if error is None or isinstance(error, asyncio.CancelledError):
            error = None
            if state.has_timed_out and state.deadlines.deadline_ms is not None:
                whose = state.step_runs.name_of(node)
                error = StepTimeoutError(whose, attempt, state.deadlines.deadline_ms, "run")
        reason = state.stop_reason or ""
        return StepCancelled(name, attempt, self._now_ms(), reason, error, item)


def as_failure(error: BaseException, step_name: str, attempt: int) -> Exception:
    """Return the error, or if it is a cancellation that nobody asked for, what stands for it."""
    if isinstance(error, Exception):
        return error
    failure = StepCancelledError(step_name, attempt)
    failure.__cause__ = error
    return failure


def told_by(cancellation: asyncio.CancelledError) -> str:
    """Return why a run stops whose caller was cancelled, with what that says, if anything."""
    message = cancellation.args[0] if cancellation.args else None
    if not isinstance(message, str) or not message or message.startswith(_OF_ANYIO):
        return "the caller was cancelled"
    return f"the caller was cancelled: {escape_controls(message)}"
