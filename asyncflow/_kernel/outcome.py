"""How an attempt ended, and what follows from it.

Rules:

1. Who asked for a cancellation decides what it means, never where it came from.
2. A limit's cancellation counts even if the attempt swallows it and returns a value.
3. What is neither an `Exception` nor a cancellation is not a failure of the step: it ends the run.

All functions here are pure: they read what they are given, and change nothing but errors' causes.
"""

from __future__ import annotations

import asyncio
from typing import Any

from asyncflow._core.errors import StepCancelledError, StepTimeoutError, TimeoutKind
from asyncflow._core.history.results import Interruption
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._core.running.scheduler import SkippedStep
from asyncflow._core.running.state import RunState
from asyncflow._core.text import escape_controls
from asyncflow.events import AttemptStarted, StepCancelled, StepSkipped, StepSucceeded

_ANYIO_MESSAGES = ("Cancelled by cancel scope", "Cancelled via cancel scope")
"""How cancellations of anyio begin, which name its objects and their addresses."""


def timeout_error(
    kind: TimeoutKind,
    limit_ms: float,
    name: str,
    attempt: int,
    error: BaseException | None,
    source: str = "",
) -> StepTimeoutError:
    """Return what an attempt, or a wait for the next item of a source, fails with that a limit has
    cancelled.

    ``error`` is what the action, or the iterator, made of the cancellation; ``None`` if it returned
    a value.
    """
    timeout = StepTimeoutError(name, attempt, limit_ms, kind, source)
    if isinstance(error, asyncio.CancelledError):
        timeout.__context__ = error  # it tells where the step was
    else:
        timeout.__cause__ = error
    return timeout


def as_failure(error: BaseException, name: str, attempt: int) -> Exception:
    """Return the error; in place of a cancellation that the run did not request, its stand-in."""
    if isinstance(error, Exception):
        return error
    failure = StepCancelledError(name, attempt)
    failure.__cause__ = error
    return failure


def attempt_started(state: RunState, node: int, at_ms: float) -> AttemptStarted:
    """Return the event of an attempt of a node that starts now."""
    return state.step_runs.attempt_started(node, at_ms, state.queue.queued_ms(node, at_ms))


def step_succeeded(
    step: WorkflowStep,
    attempt: int,
    at_ms: float,
    output: Any,
    item: int | None = None,
    error: BaseException | None = None,
) -> StepSucceeded:
    """Return the event of a node that succeeds, although it has failed with an error if it has."""
    return StepSucceeded(step.name, attempt, at_ms, output, item, step.secret, error)


def step_cancelled(
    state: RunState, node: int, at_ms: float, error: BaseException | None
) -> StepCancelled:
    """Return the event of a node that ends because the run stops.

    The node has started. ``error`` is what its clean-up raised, or what its latest attempt failed
    with.
    """
    runs = state.step_runs
    latest = runs.latest_attempt(node)
    attempt = 0 if latest is None else latest.attempt  # a mapped step has none
    if error is None or isinstance(error, asyncio.CancelledError):
        error = None
        if state.has_timed_out:
            assert state.deadlines.deadline_ms is not None
            limit_ms = state.deadlines.deadline_ms
            error = StepTimeoutError(runs.name_of(node), attempt, limit_ms, "run")
    reason = state.stop_reason or ""
    name, item = runs.steps[node].name, runs.item_of(node)
    return StepCancelled(name, attempt, at_ms, reason, error, item)


def step_skipped(state: RunState, skipped: SkippedStep, at_ms: float) -> StepSkipped:
    """Return the event of a step that will never start."""
    name = state.step_runs.steps[skipped.step].name
    return StepSkipped(name, at_ms, skipped.reason, skipped.by_condition)


def raised_by(what: str, error: BaseException) -> Interruption:
    """Return why a run stops when a part of a step has raised what must end the program."""
    return Interruption("step", f"{what} raised {type(error).__name__}")


def by_caller(cancellation: asyncio.CancelledError) -> Interruption:
    """Return why a run stops whose caller was cancelled, with the message of the cancellation.

    A message that is an `Interruption` says it itself.
    """
    message = cancellation.args[0] if cancellation.args else None
    if isinstance(message, Interruption):
        return message
    reason = "the caller was cancelled"
    if isinstance(message, str) and message and not message.startswith(_ANYIO_MESSAGES):
        reason += f": {escape_controls(message)}"
    return Interruption("caller", reason)
