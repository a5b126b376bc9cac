"""What happens in a run, as immutable facts.

A run is the sequence of its events: its state, its report and every view of it are folds over
them. They are handed to each observer in the order in which they happened. All times are
milliseconds since the run started, on the event loop's monotonic clock, which stands still while
no process runs the run. The wall-clock times are `RunStarted.wall_time` and, in a run that was
resumed, `RunResumed.wall_time`, from which a view may compute the others.

They are slotted dataclasses that only type checkers know as frozen, because one is made for every
start and end of an attempt, and refusing assignments would make each of them take longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias

from asyncflow._core.record import made_by, record
from asyncflow._core.results import StepStatus

__all__ = [
    "AttemptFailed",
    "AttemptStarted",
    "Event",
    "LoopBlocked",
    "MapStarted",
    "Outcome",
    "RunEvent",
    "RunFinished",
    "RunInterrupted",
    "RunResumed",
    "RunStarted",
    "RunTimedOut",
    "StepCancelled",
    "StepEvent",
    "StepFailed",
    "StepReused",
    "StepSkipped",
    "StepSucceeded",
    "ThreadAbandoned",
]


Outcome: TypeAlias = Literal["passed", "failed", "interrupted"]

RECALLED = "its output is secret, so it was not stored, and another step needs it"
"""Why a step that had succeeded runs again in a resumed run, if it is in `RunResumed.recalled`."""


@record
class RunStarted:
    """The run began. Always the first event."""

    run_id: str
    """Identifies the run."""
    wall_time: float
    """When it began, in seconds since the epoch (UTC)."""
    dependencies: Mapping[str, tuple[str, ...]]
    """The pipeline: for each step, in topological order, the steps it depends on."""
    pipeline: str = ""
    """What the pipeline is called, if it has a name."""
    fingerprints: Mapping[str, tuple[str, str]] = made_by(default_factory=dict)
    """In a run with a journal, what a stored result of each step goes by: which data its action
    asks for, in words, and the step's ``version``."""
    inputs: Mapping[str, Any] = made_by(default_factory=dict)
    """The run's inputs. In place of a secret one stands a `RestoredOutput` that says so."""
    max_retries: Mapping[str, int] = made_by(default_factory=dict)
    """How many attempts each step has in all."""
    secret: tuple[str, ...] = ()
    """The steps whose output must not be shown."""


@record
class RunResumed:
    """A run that a journal has kept goes on. What was running before was cut short."""

    run_id: str
    at_ms: float
    """When the run stood still: the time of the last event that was kept."""
    wall_time: float
    """When it goes on, in seconds since the epoch (UTC)."""
    dependencies: Mapping[str, tuple[str, ...]]
    """The pipeline as it is now, as in `RunStarted`."""
    fingerprints: Mapping[str, tuple[str, str]]
    outdated: Mapping[str, str] = made_by(default_factory=dict)
    """The steps of which nothing that was kept holds any more, each with the reason, in words that
    complete the sentence "it runs again because …"."""
    unfinished: Mapping[str, str] = made_by(default_factory=dict)
    """The steps that had begun and not succeeded, in the same way."""
    recalled: tuple[str, ...] = ()
    """The steps whose result, or whose items' results, hold, but which run again because that
    output is needed and was not kept, being secret."""
    afresh: bool = False
    """Whether what is unfinished has all its attempts anew, as after a run that had ended."""
    inputs: Mapping[str, Any] = made_by(default_factory=dict)
    """The inputs that it did not have before, and what stands for those that have become secret."""
    pipeline: str = ""
    """What the pipeline is called, if it has a name."""
    max_retries: Mapping[str, int] = made_by(default_factory=dict)
    """As in `RunStarted`."""
    secret: tuple[str, ...] = ()
    """As in `RunStarted`."""

    @property
    def rerun_reasons(self) -> dict[str, str]:
        """Why steps of which something was known run again, by step name.

        Each completes the sentence "it runs again because …".
        """
        return {**dict.fromkeys(self.recalled, RECALLED), **self.unfinished, **self.outdated}


@record
class RunInterrupted:
    """The run was told to stop by something other than a failed step."""

    at_ms: float
    reason: str
    """Why, in words that complete the sentence "the run stopped because …"."""


@record
class RunTimedOut:
    """The run exceeded its ``deadline_ms`` and stops."""

    at_ms: float
    deadline_ms: float

    @property
    def reason(self) -> str:
        """Why, in words that complete the sentence "the run stopped because …"."""
        return f"the run exceeded its deadline of {self.deadline_ms:g} ms"


@record
class RunFinished:
    """The run ended and nothing of it is alive. Always the last event."""

    at_ms: float
    outcome: Outcome
    """``"interrupted"`` after a `RunInterrupted`, else whether every step succeeded."""
    stop_reason: str | None = None
    """Why the run stopped before its end, if it did."""


@record
class AttemptStarted:
    """The action of a step is about to be called. The first one is the start of the step."""

    step: str
    attempt: int
    """Counted from 1."""
    at_ms: float
    queued_ms: float = 0.0
    """How long it has waited for a pool or for ``max_concurrency`` before that."""
    item: int | None = None
    """Which item of a mapped step this is about, counted from 0. Here and in all events that
    have it, ``None`` means the step itself."""


@record
class AttemptFailed:
    """An attempt failed and another one follows."""

    step: str
    attempt: int
    at_ms: float
    error: BaseException
    retry_in_ms: float
    """How long the step waits before its next attempt may start."""
    item: int | None = None


@record
class MapStarted:
    """A mapped step begins to go through its items."""

    step: str
    at_ms: float
    count: int | None = None
    """How many items there are; ``None`` if nobody can tell before they have been gone through."""
    item: ClassVar[None] = None


@record
class StepSucceeded:
    """The action returned a value in time; or it did so for each item of a mapped step."""

    step: str
    attempt: int
    """Which attempt it was; 0 for a mapped step as a whole, whose items have the attempts."""
    at_ms: float
    output: Any
    item: int | None = None


@record
class StepFailed:
    """An attempt failed and it was the last one; or items of a mapped step have failed so."""

    step: str
    attempt: int
    """Which attempt it was; 0 if there was none: a mapped step, or its ``when`` raised."""
    at_ms: float
    error: BaseException
    item: int | None = None


@record
class StepCancelled:
    """A step that had started was cut short because the run stopped."""

    step: str
    attempt: int
    """The latest one; 0 for a mapped step as a whole."""
    at_ms: float
    reason: str
    error: BaseException | None
    """What the step's clean-up raised, or what its last attempt failed with, if anything."""
    item: int | None = None


@record
class StepSkipped:
    """A step will never start."""

    step: str
    at_ms: float
    reason: str
    on_purpose: bool = False
    """Whether its ``when`` or its ``run_if`` wanted it so, not something that failed."""
    item: ClassVar[None] = None


@record
class StepReused:
    """A result that a journal has kept still holds, so the step does not run again."""

    step: str
    at_ms: float
    item: int | None = None
    status: StepStatus = StepStatus.SUCCESS
    """What became of it. In a run that goes on where it stood still, also what had failed for good
    or was skipped is not run again."""


@record
class ThreadAbandoned:
    """A thread could not be stopped when its attempt had to end, and goes on by itself.

    The attempt's end follows. No other attempt starts, and no pool slot of it becomes free,
    before the thread has ended.
    """

    step: str
    attempt: int
    at_ms: float
    item: int | None = None


@record
class LoopBlocked:
    """A step has kept the event loop from doing anything else. It may have ended since."""

    step: str
    attempt: int
    at_ms: float
    blocked_ms: float
    where: str
    """The line it was at: ``file:line in function``."""
    item: int | None = None


StepEvent: TypeAlias = (
    AttemptStarted
    | AttemptFailed
    | MapStarted
    | StepSucceeded
    | StepFailed
    | StepCancelled
    | StepSkipped
    | StepReused
    | ThreadAbandoned
    | LoopBlocked
)
RunEvent: TypeAlias = RunStarted | RunResumed | RunInterrupted | RunTimedOut | RunFinished
Event: TypeAlias = StepEvent | RunEvent
