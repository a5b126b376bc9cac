"""The default engine: runs one attempt of one step in the event loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Mapping
from contextvars import ContextVar
from types import CoroutineType
from typing import Any, NamedTuple

from asyncflow._errors import ActionNotAwaitableError
from asyncflow._graph import Plan
from asyncflow._step import WorkflowStep
from asyncflow.events import AttemptStarted

__all__ = ["RunContext", "StepContext", "call_action", "current_step", "enter_attempt"]


_current: ContextVar[tuple[RunContext, AttemptStarted]] = ContextVar("asyncflow.current_step")
enter_attempt = _current.set
"""Make an attempt of a run what `current_step` tells of, from here on, in this task."""


class RunContext(NamedTuple):
    """What all steps of a run have in common."""

    run_id: str
    plan: Plan
    loop: asyncio.AbstractEventLoop
    started: float
    """The loop's time at the start of the run, in seconds."""


class StepContext:
    """What an action may ask about itself while it runs; see `current_step`.

    Attributes:
        run_id: Identifies the run.
        step_name: The step.
        attempt: Which attempt this is, counted from 1.
        max_retries: How many attempts there are in all.
        idempotency_key: A string that is the same in every attempt of this step in this run,
            and different in any other step or run.
    """

    __slots__ = (
        "_ends",
        "_loop",
        "attempt",
        "idempotency_key",
        "max_retries",
        "run_id",
        "step_name",
    )

    def __init__(self, run: RunContext, running: AttemptStarted) -> None:
        step = run.plan.steps[run.plan.index[running.step]]
        self.run_id = run.run_id
        self.step_name = step.name
        self.attempt = running.attempt
        self.max_retries = step.max_retries
        self.idempotency_key = f"{run.run_id}/{step.name}"
        self._loop = run.loop
        self._ends = (
            None
            if step.timeout_ms is None
            else run.started + (running.at_ms + step.timeout_ms) / 1000
        )

    def remaining_ms(self) -> float | None:
        """Return how many milliseconds this attempt has left, not below 0; ``None``: no limit."""
        if self._ends is None:
            return None
        return max(0.0, (self._ends - self._loop.time()) * 1000)

    def __repr__(self) -> str:
        return f"<StepContext {self.step_name!r}, attempt {self.attempt}, of run {self.run_id}>"


def current_step() -> StepContext:
    """Return what is known about the step whose action is running.

    It works in the action, in all that the action awaits, and in the tasks and threads that
    inherit the action's context.

    Raises:
        RuntimeError: No step's action is running in this context.
    """
    try:
        return StepContext(*_current.get())
    except LookupError:
        raise RuntimeError(
            "current_step() works only while a step's action runs, and in what it calls"
        ) from None


def call_action(step: WorkflowStep, arguments: Mapping[str, Any] | None) -> Awaitable[Any]:
    """Call the step's action and return what is to be awaited.

    Raises:
        ActionNotAwaitableError: The action returned something else.
    """
    outcome = step.action(**arguments) if arguments else step.action()
    if type(outcome) is not CoroutineType and not inspect.isawaitable(outcome):
        raise ActionNotAwaitableError(step.name, type(outcome).__name__)
    return outcome
