"""Calls the action of a step, in the event loop or in a worker."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from asyncflow._core.errors import ActionNotAwaitableError, OutputNotAwaitedError
from asyncflow._core.step import WorkflowStep

if TYPE_CHECKING:
    from asyncflow._runtime.workers import ThreadEnd

__all__ = ["call_action", "call_in_worker", "check_coroutine"]


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
    from asyncflow._runtime.workers import run_in_process, run_in_thread

    if step.runs_in == "process":
        return run_in_process(step.action, arguments)
    return run_in_thread(
        step.action, arguments, ends=ends, on_abandon=on_abandon, has_lapsed=has_lapsed
    )
