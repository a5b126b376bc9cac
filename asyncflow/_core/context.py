"""What an action can ask about itself while it runs: `current_step`.

Context variables name the run and the attempt. Threads and tasks inherit the context of an action;
another process does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextvars import Context, ContextVar
from typing import Protocol, TypeAlias

from asyncflow._core.graph import Plan
from asyncflow._core.record import record
from asyncflow._core.results import StepResult
from asyncflow.events import AttemptStarted

__all__ = [
    "AttemptExtras",
    "RunContext",
    "StartedAttempt",
    "StepContext",
    "attempt_in",
    "current_attempt",
    "current_step",
    "enter_attempt",
    "enter_run",
    "enter_thread",
    "is_inside_run",
]


class StepContext:
    """What an action may ask about itself while it runs; see `current_step`.

    Attributes:
        run_id: Identifies the run.
        step_name: The step.
        item: The item of a mapped step, counted from 0; ``None`` for other steps.
        attempt: The number of this attempt, counted from 1.
        max_retries: How many attempts there are in all.
        idempotency_key: A string that is the same in every attempt of this step, or item, in
            this run, and different in any other.
        results: For a clean-up step (``run_if`` other than ``"success"``), the results of its
            dependencies, by name; empty for others.
    """

    __slots__ = (
        "_cancel_requested",
        "_clock",
        "_deadline_s",
        "_heartbeat",
        "attempt",
        "idempotency_key",
        "item",
        "max_retries",
        "results",
        "run_id",
        "step_name",
    )

    def __init__(self, run: RunContext, running: StartedAttempt) -> None:
        self.step_name, self.attempt, started_ms, _, self.item = running
        step = run.plan.steps[run.plan.index[self.step_name]]
        self.run_id = run.run_id
        self.max_retries = step.max_retries
        self.idempotency_key = _idempotency_key(run.run_id, step.name, self.item)
        self._clock = run.clock
        self._cancel_requested = _cancel_requested.get()
        extras = run.extras.get((self.step_name, self.item))
        if extras is None:
            limit_ms = math.inf if step.timeout_ms is None else step.timeout_ms
            extras = AttemptExtras(run.at_s(started_ms + limit_ms), None, {})
        self._heartbeat, self.results = extras.heartbeat, extras.results
        self._deadline_s = extras.deadline_s
        if step.run_if == "success":
            self._deadline_s = min(self._deadline_s, run.deadline_s)

    @property
    def cancel_requested(self) -> bool:
        """Whether the attempt must stop. A thread can't be cancelled, so it should check this.

        In a step with ``runs_in="thread"`` it becomes true when a time limit passes, a heartbeat
        is missed, or the run cancels the step; then it stays true. Any thread may read it. In the
        event loop, where an `asyncio.CancelledError` reports the same, it is true in a task that
        was asked to cancel; and it is false in threads that such a step starts itself.
        """
        return self._cancel_requested()

    def remaining_ms(self) -> float | None:
        """Return how many milliseconds this attempt has left, at least 0; ``None`` for no limit.

        The earliest of the deadlines of the attempt, the step and the run counts.
        """
        if self._deadline_s == math.inf:
            return None
        return max(0.0, (self._deadline_s - self._clock()) * 1000)

    def heartbeat(self) -> None:
        """Report that the action is alive, so that the step's ``heartbeat_ms`` begins again.

        Any thread may call it, as often as it likes; without ``heartbeat_ms`` it does nothing.
        """
        if self._heartbeat is not None:
            self._heartbeat.beat()

    def __repr__(self) -> str:
        item = "" if self.item is None else f", item {self.item}"
        return (
            f"<StepContext {self.step_name!r}{item}, attempt {self.attempt}, of run {self.run_id}>"
        )


def _idempotency_key(run_id: str, step_name: str, item: int | None) -> str:
    # Escaped, so that no two triples have the same key.
    run = run_id.replace("%", "%25").replace("/", "%2F")
    step = step_name.replace("%", "%25").replace("#", "%23")
    return f"{run}/{step}" if item is None else f"{run}/{step}#{item}"


def current_step() -> StepContext:
    """Return the context of the step whose action is running.

    It works in the action, in all that the action awaits, and in the tasks and threads that
    inherit the action's context; not in another process.

    Raises:
        RuntimeError: No step's action is running in this context.
    """
    running = _attempt.get(None)
    if running is None:
        raise RuntimeError(
            "current_step() works only while a step's action runs, and in what it calls; "
            "not in another process"
        )
    return StepContext(_run.get(), running)


class Heartbeat(Protocol):
    """A limit that every heartbeat moves on."""

    def beat(self) -> None:
        """Give a heartbeat, from any thread."""


@record
class AttemptExtras:
    """What an action can ask of an attempt only if its step has a policy for it."""

    deadline_s: float
    """The loop's time at which the attempt must have ended."""
    heartbeat: Heartbeat | None
    results: Mapping[str, StepResult]
    """The results of a clean-up step's dependencies."""


@record
class RunContext:
    """What all attempts of a run have in common. Contexts hold it, so it holds nothing large."""

    run_id: str
    plan: Plan
    clock: Callable[[], float]
    """The loop's clock, in seconds."""
    started_s: float
    """The loop's time at the start of the run, in seconds."""
    deadline_s: float
    """The loop's time at which the run's deadline passes."""
    extras: dict[tuple[str, int | None], AttemptExtras]
    """Those of each running attempt that has any, by its step and item."""
    cancel_requested: Callable[[], bool]
    """Whether the running task was asked to cancel. False where no task is running."""

    def now_ms(self) -> float:
        """Return the milliseconds since the start of the run."""
        return (self.clock() - self.started_s) * 1000

    def at_s(self, at_ms: float) -> float:
        """Return the loop's time at a moment of the run."""
        return self.started_s + at_ms / 1000


StartedAttempt: TypeAlias = tuple[str, int, float, float, int | None]
"""The fields of an `AttemptStarted`, of which each attempt makes one: a tuple costs a tenth."""

_run: ContextVar[RunContext] = ContextVar("asyncflow.run")

_attempt: ContextVar[StartedAttempt | None] = ContextVar("asyncflow.attempt")
"""``None`` in what a run does between its attempts."""

_cancel_requested: ContextVar[Callable[[], bool]] = ContextVar("asyncflow.cancel_requested")
"""Whether the attempt must stop. A thread may outlive its attempt, so its context has the flag."""

enter_attempt = _attempt.set
"""Make an attempt of the run the current one, from here on, in this context."""


def enter_run(run: RunContext) -> None:
    """Make a run the current one, from here on, in this context."""
    _run.set(run)
    _attempt.set(None)  # the run may run within a step of another run
    _cancel_requested.set(run.cancel_requested)


def enter_thread(cancel_requested: Callable[[], bool]) -> None:
    """Make a flag the one that `StepContext.cancel_requested` reads, from here on, in this context.

    The worker thread calls it, in its copy of the context: the attempt's own stays as it is.
    """
    _cancel_requested.set(cancel_requested)


def current_attempt() -> tuple[str, AttemptStarted] | None:
    """Return the id of the run and the start of the attempt; ``None`` outside of an action."""
    running = _attempt.get(None)
    return None if running is None else (_run.get().run_id, AttemptStarted(*running))


def attempt_in(context: Context, run: RunContext) -> AttemptStarted | None:
    """Return the attempt that a context belongs to, if it is one of this run."""
    running = context.get(_attempt) if context.get(_run) is run else None
    return None if running is None else AttemptStarted(*running)


def is_inside_run(run_id: str) -> bool:
    """Whether an action of the run with that id is calling this."""
    return _attempt.get(None) is not None and _run.get().run_id == run_id
