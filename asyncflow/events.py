"""What happens in a run, as immutable facts.

A run is the sequence of its events: its state, its report and every view of it are folds over
them. They are handed to each observer in the order in which they happened. All times are
milliseconds since the run started, on the event loop's monotonic clock; the one wall-clock time
is `RunStarted.wall_time`, from which a view may compute the others.

They are slotted dataclasses that only type checkers know as frozen, because one is made for every
start and end of an attempt, and refusing assignments would make each of them take longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from asyncflow._record import record

__all__ = [
    "AttemptFailed",
    "AttemptStarted",
    "Event",
    "Outcome",
    "RunEvent",
    "RunFinished",
    "RunInterrupted",
    "RunStarted",
    "StepCancelled",
    "StepEvent",
    "StepFailed",
    "StepSkipped",
    "StepSucceeded",
]


Outcome: TypeAlias = Literal["passed", "failed", "interrupted"]


@record
class RunStarted:
    """The run began. Always the first event."""

    run_id: str
    """Identifies the run."""
    wall_time: float
    """When it began, in seconds since the epoch (UTC)."""
    dependencies: Mapping[str, tuple[str, ...]]
    """The pipeline: for each step, in topological order, the steps it depends on."""


@record
class RunInterrupted:
    """The run was told to stop by something other than a failed step."""

    at_ms: float
    reason: str
    """Why, in words that complete the sentence "the run stopped because …"."""


@record
class RunFinished:
    """The run ended and nothing of it is alive. Always the last event."""

    at_ms: float
    outcome: Outcome
    """``"interrupted"`` after a `RunInterrupted`, else whether every step succeeded."""


@record
class AttemptStarted:
    """The action of a step is about to be called. The first one is the start of the step."""

    step: str
    attempt: int
    """Counted from 1."""
    at_ms: float


@record
class AttemptFailed:
    """An attempt failed and another one follows."""

    step: str
    attempt: int
    at_ms: float
    error: BaseException
    retry_in_ms: float
    """How long the step waits before its next attempt starts."""


@record
class StepSucceeded:
    """The action returned a value in time."""

    step: str
    attempt: int
    at_ms: float
    output: Any


@record
class StepFailed:
    """An attempt failed and it was the last one."""

    step: str
    attempt: int
    at_ms: float
    error: BaseException


@record
class StepCancelled:
    """A step that had started was cut short because the run stopped."""

    step: str
    attempt: int
    at_ms: float
    reason: str
    error: BaseException | None
    """What the step's clean-up raised, or what its last attempt failed with, if anything."""


@record
class StepSkipped:
    """A step will never start."""

    step: str
    at_ms: float
    reason: str


StepEvent: TypeAlias = (
    AttemptStarted | AttemptFailed | StepSucceeded | StepFailed | StepCancelled | StepSkipped
)
RunEvent: TypeAlias = RunStarted | RunInterrupted | RunFinished
Event: TypeAlias = StepEvent | RunEvent
