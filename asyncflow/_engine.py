"""The default engine: runs one attempt of one step in the event loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Mapping
from contextvars import ContextVar
from typing import Any

from asyncflow._errors import ActionNotAwaitableError
from asyncflow._step import WorkflowStep

__all__ = ["StepContext", "call_action", "current_step", "enter_step"]


class StepContext:
    """What an action may ask about itself while it runs; see `current_step`.

    Attributes:
        run_id: Identifies the run.
        step_name: The step.
        attempt: Which attempt this is, counted from 1.
        max_retries: How many attempts there are in all.
    """

    __slots__ = ("_loop", "_started", "_step", "attempt", "run_id")

    def __init__(
        self,
        run_id: str,
        step: WorkflowStep,
        attempt: int,
        loop: asyncio.AbstractEventLoop,
        started: float,
    ) -> None:
        self.run_id = run_id
        self.attempt = attempt
        self._step = step
        self._loop = loop
        self._started = started

    @property
    def step_name(self) -> str:
        return self._step.name

    @property
    def max_retries(self) -> int:
        return self._step.max_retries

    @property
    def idempotency_key(self) -> str:
        """The same in every attempt of this step in this run, and in no other step or run."""
        return f"{self.run_id}/{self._step.name}"

    def remaining_ms(self) -> float | None:
        """Return how many milliseconds this attempt has left, not below 0; ``None``: no limit."""
        if self._step.timeout_ms is None:
            return None
        elapsed_ms = (self._loop.time() - self._started) * 1000
        return max(0.0, self._step.timeout_ms - elapsed_ms)

    def __repr__(self) -> str:
        return f"<StepContext {self._step.name!r} attempt {self.attempt} of run {self.run_id}>"


_current: ContextVar[StepContext] = ContextVar("asyncflow.current_step")


def enter_step(context: StepContext) -> None:
    """Make the context what `current_step` returns from here on, in this task."""
    _current.set(context)


def current_step() -> StepContext:
    """Return what is known about the step whose action is running.

    It works in the action, in all that the action awaits, and in tasks and threads that inherit
    the action's context.

    Raises:
        RuntimeError: No step's action is running in this context.
    """
    try:
        return _current.get()
    except LookupError:
        raise RuntimeError(
            "current_step() works only while a step's action runs, and in what it calls"
        ) from None


def call_action(step: WorkflowStep, arguments: Mapping[str, Any]) -> Awaitable[Any]:
    """Call the step's action and return what is to be awaited.

    Raises:
        ActionNotAwaitableError: The action returned something else.
    """
    outcome = step.action(**arguments) if arguments else step.action()
    if not inspect.isawaitable(outcome):
        raise ActionNotAwaitableError(step.name, type(outcome).__name__)
    return outcome
