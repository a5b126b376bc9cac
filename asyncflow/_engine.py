"""The default engine: runs one attempt of one step, and what its action can ask meanwhile."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context, ContextVar
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio

from asyncflow._current import attempt_variable, current, run_variable
from asyncflow._errors import ActionNotAwaitableError, OutputNotAwaitedError
from asyncflow._graph import Plan
from asyncflow._heart import Heart
from asyncflow._result import StepResult
from asyncflow._step import WorkflowStep
from asyncflow.events import AttemptStarted

if TYPE_CHECKING:
    from asyncflow._workers import ThreadEnd

__all__ = [
    "AttemptExtras",
    "RunContext",
    "StepContext",
    "attempt_in",
    "call_action",
    "call_in_worker",
    "check_coroutine",
    "current_step",
    "enter_attempt",
    "enter_run",
    "is_within",
    "limiter_for",
    "prepare",
]

_run: ContextVar[RunContext] = run_variable
enter_attempt = attempt_variable.set
"""Make an attempt of the run what `current_step` tells of, from here on, in this context."""


class AttemptExtras(NamedTuple):
    """What an action can ask of an attempt only if its step has a policy for it."""

    ends: float
    """When its time is over, in seconds of the loop's clock."""
    heart: Heart | None
    results: Mapping[str, StepResult]
    """The results of a clean-up step's dependencies."""


class RunContext(NamedTuple):
    """What all steps of a run have in common. Contexts keep it, so it keeps nothing large."""

    run_id: str
    plan: Plan
    loop: asyncio.AbstractEventLoop
    started: float
    """The loop's time at the start of the run, in seconds."""
    ends: float
    """The loop's time at which the run's deadline passes."""
    extras: dict[tuple[str, int | None], AttemptExtras]
    """Of each running attempt that has any, by its step and item."""


def enter_run(run: RunContext) -> None:
    """Make a run the one whose attempts `current_step` tells of, from here on, in this context."""
    _run.set(run)
    attempt_variable.set(None)  # it may run within a step of another run


class StepContext:
    """What an action may ask about itself while it runs; see `current_step`.

    Attributes:
        run_id: Identifies the run.
        step_name: The step.
        item: Which item of a mapped step this is, counted from 0; ``None`` for other steps.
        attempt: Which attempt this is, counted from 1.
        max_retries: How many attempts there are in all.
        idempotency_key: A string that is the same in every attempt of this step, or item, in
            this run, and different in any other.
        results: For a clean-up step (``run_if`` other than ``"success"``), the results of the
            steps that it depends on, by name; empty for others.
    """

    __slots__ = (
        "_ends",
        "_heart",
        "_loop",
        "attempt",
        "idempotency_key",
        "item",
        "max_retries",
        "results",
        "run_id",
        "step_name",
    )

    def __init__(self, run: RunContext, running: AttemptStarted) -> None:
        step = run.plan.steps[run.plan.index[running.step]]
        self.run_id = run.run_id
        self.step_name = step.name
        self.item = running.item
        self.attempt = running.attempt
        self.max_retries = step.max_retries
        self.idempotency_key = _key(run.run_id, step.name, running.item)
        self._loop = run.loop
        extras = run.extras.get((running.step, running.item))
        if extras is None:
            limit_ms = math.inf if step.timeout_ms is None else step.timeout_ms
            ends = run.started + (running.at_ms + limit_ms) / 1000
            extras = AttemptExtras(ends, None, {})
        self._ends, self._heart, self.results = extras
        if step.run_if == "success":
            self._ends = min(self._ends, run.ends)

    def remaining_ms(self) -> float | None:
        """Return how many milliseconds this attempt has left, not below 0; ``None``: no limit.

        The tightest of the attempt's, the step's and the run's limit decides.
        """
        if self._ends == math.inf:
            return None
        return max(0.0, (self._ends - self._loop.time()) * 1000)

    def heartbeat(self) -> None:
        """Tell that the action is alive, so that the step's ``heartbeat_ms`` begins anew.

        It may be called as often as one likes, from any thread; without ``heartbeat_ms`` it does
        nothing.
        """
        if self._heart is not None:
            self._heart.beat()

    def __repr__(self) -> str:
        item = "" if self.item is None else f", item {self.item}"
        return (
            f"<StepContext {self.step_name!r}{item}, attempt {self.attempt}, of run {self.run_id}>"
        )


def _key(run_id: str, step_name: str, item: int | None) -> str:
    # Escaped where the parts could otherwise be told apart in two ways.
    run = run_id.replace("%", "%25").replace("/", "%2F")
    step = step_name.replace("%", "%25").replace("#", "%23")
    return f"{run}/{step}" if item is None else f"{run}/{step}#{item}"


def current_step() -> StepContext:
    """Return what is known about the step whose action is running.

    It works in the action, in all that the action awaits, and in the tasks and threads that
    inherit the action's context; not in another process.

    Raises:
        RuntimeError: No step's action is running in this context.
    """
    running = attempt_variable.get(None)
    if running is None:
        raise RuntimeError(
            "current_step() works only while a step's action runs, and in what it calls; "
            "not in another process"
        )
    return StepContext(_run.get(), running)


def is_within(run_id: str) -> bool:
    """Whether this is done by a step of the run with that id."""
    running = current()
    return running is not None and running[0] == run_id


def attempt_in(context: Context, run: RunContext) -> AttemptStarted | None:
    """Return the attempt of a run that a context is of, if it is of any."""
    return context.get(attempt_variable) if context.get(_run) is run else None


def call_action(step: WorkflowStep, arguments: Mapping[str, Any] | None) -> Awaitable[Any]:
    """Call the step's action in the event loop and return what is to be awaited.

    Raises:
        ActionNotAwaitableError: The action returned something else.
    """
    outcome = step.action(**arguments) if arguments else step.action()
    if type(outcome) is not CoroutineType and not inspect.isawaitable(outcome):
        raise ActionNotAwaitableError(step.name, type(outcome).__name__)
    return outcome


def check_coroutine(step: WorkflowStep, output: CoroutineType[Any, Any, Any]) -> None:
    """Refuse a coroutine that an action has returned and that nobody has begun to await.

    Raises:
        OutputNotAwaitedError: It is one.
    """
    if inspect.getcoroutinestate(output) == inspect.CORO_CREATED:
        output.close()  # or Python would warn that nobody has awaited it
        raise OutputNotAwaitedError(step.name, output.__qualname__)


def prepare(plan: Plan) -> None:
    """Import what steps in threads and processes need, before a run's time begins to count."""
    for index in plan.special:
        limiter_for(plan.steps[index])


def limiter_for(step: WorkflowStep) -> anyio.CapacityLimiter | None:
    """Return what limits how many such workers there are, if the step runs in one."""
    if step.runs_in == "loop":
        return None
    # Only those who use it shall wait for its imports.
    from asyncflow._workers import limiter_for as limiter_of

    return limiter_of(step.runs_in)


def call_in_worker(
    step: WorkflowStep,
    arguments: Mapping[str, Any] | None,
    ends: float,
    on_abandon: Callable[[ThreadEnd], None],
    has_lapsed: Callable[[], bool],
) -> Awaitable[Any]:
    """Call the step's action in a thread or a process and return what is to be awaited.

    Args:
        step: The step.
        arguments: What to call its action with.
        ends: When the attempt has to end, in seconds of the loop's clock.
        on_abandon: Called when a thread has not ended by then, with what tells of its end.
        has_lapsed: Whether, when this is cancelled, it has to end at once although it is earlier.
    """
    from asyncflow._workers import run_in_process, run_in_thread

    if step.runs_in == "process":
        return run_in_process(step.action, arguments)
    return run_in_thread(
        step.action, arguments, ends=ends, on_abandon=on_abandon, has_lapsed=has_lapsed
    )
