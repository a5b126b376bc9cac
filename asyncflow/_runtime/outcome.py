"""How an attempt ended, and what follows from it.

Rules:

1. Who asked for a cancellation decides what it means, never where it came from.
2. A limit's cancellation counts even if the attempt swallows it and returns a value.
3. What is neither an `Exception` nor a cancellation is not a failure of the step: it ends the run.

All functions here are pure: they read what they are given, and change nothing but errors' causes.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from asyncflow._core.errors import StepCancelledError, StepTimeoutError, escape_controls
from asyncflow._core.results import Payload
from asyncflow._core.scheduler import Limit
from asyncflow._core.state import RunState
from asyncflow._runtime.asyncio_compat import TIMER_SLACK_S
from asyncflow.events import StepCancelled

__all__ = ["AttemptEnd", "as_failure", "caller_reason", "error_of", "step_cancelled"]

_ANYIO_MESSAGES = ("Cancelled by cancel scope", "Cancelled via cancel scope")
"""How cancellations of anyio begin, which name its objects and their addresses."""


class AttemptEnd(NamedTuple):
    """How an attempt ended, before it is classified."""

    error: BaseException | None
    """What the action raised; ``None`` if it returned."""
    output: Any
    ended_ms: float
    cancels: int
    """How often its task was asked to cancel by then."""
    payload: Payload | None = None
    """The output as a journal stores it."""


def error_of(
    end: AttemptEnd,
    name: str,
    attempt: int,
    *,
    limit: Limit | None,
    heartbeat_ms: float | None,
    stop_requested_ms: float | None,
) -> BaseException | None:
    """Return what an attempt has failed with; ``None`` if it has succeeded.

    A limit has cut the attempt short if its task was asked to cancel after the limit had passed,
    and before the run asked. The clock alone can't tell: a step that blocks the loop passes its
    limit too.

    Args:
        end: How the attempt ended.
        name: The name of its node.
        attempt: Its number.
        limit: The tighter of its limits.
        heartbeat_ms: The step's ``heartbeat_ms``, if a missed heartbeat has cancelled it.
        stop_requested_ms: When the run asked the node to stop, if it did.
    """
    if heartbeat_ms is not None:
        timeout = StepTimeoutError(name, attempt, heartbeat_ms, "heartbeat")
    else:
        horizon_ms = end.ended_ms + TIMER_SLACK_S * 1000
        if stop_requested_ms is not None:
            horizon_ms = stop_requested_ms
        if not end.cancels or limit is None or limit.ends_ms >= horizon_ms:
            return end.error  # the cancellation, if any, was the run's, or the step's own
        timeout = StepTimeoutError(name, attempt, limit.ms, limit.kind)
    if isinstance(end.error, asyncio.CancelledError):
        timeout.__context__ = end.error  # it tells where the step was
    else:
        timeout.__cause__ = end.error
    return timeout


def as_failure(error: BaseException, name: str, attempt: int) -> Exception:
    """Return the error; in place of a cancellation that the run did not request, its stand-in."""
    if isinstance(error, Exception):
        return error
    failure = StepCancelledError(name, attempt)
    failure.__cause__ = error
    return failure


def step_cancelled(
    state: RunState, node: int, at_ms: float, error: BaseException | None
) -> StepCancelled:
    """Return the event of a node that ends because the run stops.

    Args:
        state: The state of the run.
        node: The node, which has started.
        at_ms: When it ends.
        error: What its clean-up raised, or what its latest attempt failed with.
    """
    latest, runs = state.latest_attempt(node), state.step_runs
    attempt = 0 if latest is None else latest.attempt  # a mapped step has none
    if error is None or isinstance(error, asyncio.CancelledError):
        error, deadline_ms = None, state.deadlines.deadline_ms
        if state.has_timed_out and deadline_ms is not None:
            error = StepTimeoutError(runs.name_of(node), attempt, deadline_ms, "run")
    reason = state.stop_reason or ""
    name, item = runs.steps[node].name, runs.item_of(node)
    return StepCancelled(name, attempt, at_ms, reason, error, item)


def caller_reason(cancellation: asyncio.CancelledError) -> str:
    """Return why a run stops whose caller was cancelled, with the message of the cancellation."""
    message = cancellation.args[0] if cancellation.args else None
    if not isinstance(message, str) or not message or message.startswith(_ANYIO_MESSAGES):
        return "the caller was cancelled"
    return f"the caller was cancelled: {escape_controls(message)}"
