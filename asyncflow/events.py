"""What happens in a run, as immutable facts.

A run is the sequence of its events: its state, its report and every view of it are folds over
them. Each observer receives them in the order in which they happened. All times are milliseconds
since the run started, on the event loop's monotonic clock, which stands still while no process runs
the run. The wall-clock times are `RunStarted.wall_time` and, in a resumed run,
`RunResumed.wall_time`, from which a view may compute the others.

They are slotted records that only type checkers know as frozen: every start and end of an attempt
makes one, and refusing assignments would make each of them take three times as long. The functions
of `dataclasses` accept them. Pickle has stand-ins for outputs and errors that it can't hold.

Every event has ``step``, ``item``, ``attempt`` and ``at_ms``; the first three are ``None`` if it is
not about one. Its ``level`` is that of the log records about it, as `logging` counts: 20 (INFO), 30
(WARNING) or 40 (ERROR). The ``status`` of an event that ends a step is how it ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

from asyncflow._core.arguments import AttributeValue
from asyncflow._core.history.results import (
    InterruptionCause,
    RunStatus,
    StepStatus,
    hidden_output,
    picklable_event,
    visible_output,
)
from asyncflow._core.record import made_by, record, show, values_by_name

__all__ = [
    "AttemptBegan",
    "AttemptFailed",
    "AttemptLocated",
    "AttemptStarted",
    "Event",
    "EventsMissed",
    "LoopBlocked",
    "MapStarted",
    "NoteEvent",
    "PoolPaused",
    "ResultReused",
    "RunEvent",
    "RunFinished",
    "RunInterrupted",
    "RunResumed",
    "RunStarted",
    "RunTimedOut",
    "SignalReceived",
    "StepAttached",
    "StepCalled",
    "StepCancelled",
    "StepEvent",
    "StepFailed",
    "StepLogged",
    "StepProgressed",
    "StepReused",
    "StepSkipped",
    "StepStreamed",
    "StepSucceeded",
    "StepWaiting",
    "ThreadAbandoned",
]

RECALLED = (
    "its output is secret or stayed on an engine, so it was not stored, and another step needs it"
)
"""Why a step that had succeeded runs again in a resumed run, if it is in `RunResumed.recalled`."""
NOT_IN_PIPELINE = "no longer in the pipeline"
"""Why a step is skipped, if it is in `RunResumed.missing_steps`."""

INFO, WARNING, ERROR = 20, 30, 40
"""The levels of events."""


class _OfRun:
    """An event that is about no step."""

    __slots__ = ()

    step: ClassVar[None] = None
    item: ClassVar[None] = None
    attempt: ClassVar[None] = None


@record
class RunStarted(_OfRun):
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
    """In a run with a journal, for each step, what decides whether its stored result is still
    valid: which data its action asks for, in words, and its ``version``."""
    inputs: Mapping[str, Any] = made_by(default_factory=dict)
    """The run's inputs. A `RestoredOutput` stands for each secret one."""
    max_retries: Mapping[str, int] = made_by(default_factory=dict)
    """How many attempts each step has in all."""
    secret: tuple[str, ...] = ()
    """The steps whose output no view may show."""
    parent: str = ""
    """The run one of whose steps started this one, if one did."""
    parent_step: str = ""
    """That step."""
    rerun_of: str = ""
    """The run whose results this one reuses, if it is a rerun."""
    signals: Mapping[str, Any] = made_by(default_factory=dict)
    """The steps that wait for a signal, each with the JSON schema of its type; an empty one if that
    is not known. Its key ``x-python-type`` says which classes an instance of the type is of."""
    signal_deadlines: Mapping[str, float] = made_by(default_factory=dict)
    """The ``deadline_ms`` of those that have one."""
    rerun_reasons: Mapping[str, str] = made_by(default_factory=dict)
    """In a rerun, why steps that the other run had begun run again, by step name, in words that
    complete the sentence "it runs again because …"."""
    label: str = ""
    """What the run is about, for people who look for it, if it has a label."""
    key: str = ""
    """The key of the run, if it has one."""
    from_steps: tuple[str, ...] = ()
    """In a rerun, the steps that it was asked to run again: they reuse no result of any run."""
    process: str = ""
    """The process that runs it from here on, as ``host:pid``, in a run with a journal."""
    attributes: Mapping[str, AttributeValue] = made_by(default_factory=dict)
    """By what people and programs find it: names with strings, numbers and bools."""
    map_over: Mapping[str, str] = made_by(default_factory=dict)
    """For each mapped step, the step or the input over whose items it is mapped."""
    at_ms: ClassVar[float] = 0.0
    level: ClassVar[int] = INFO

    __reduce__ = picklable_event


@record
class RunResumed(_OfRun):
    """A run continues from its journal. Attempts that were running before did not finish."""

    run_id: str
    at_ms: float
    """When the run stopped before: the time of the last stored event."""
    wall_time: float
    """When it continues, in seconds since the epoch (UTC)."""
    dependencies: Mapping[str, tuple[str, ...]]
    """The pipeline as it is now, as in `RunStarted`."""
    fingerprints: Mapping[str, tuple[str, str]]
    outdated: Mapping[str, str] = made_by(default_factory=dict)
    """The steps whose stored results no longer hold, each with the reason, in words that complete
    the sentence "it runs again because …"."""
    unfinished: Mapping[str, str] = made_by(default_factory=dict)
    """The steps that had begun and not succeeded, each with the reason in such words."""
    recalled: tuple[str, ...] = ()
    """The steps whose results, or whose items' results, hold, but which run again because another
    step needs their output, which was not stored: it is secret, or stayed on an engine."""
    afresh: bool = False
    """Whether unfinished steps have all their attempts again, as after a run that had ended."""
    inputs: Mapping[str, Any] = made_by(default_factory=dict)
    """The inputs that the run did not have before, and what stands for those that have become
    secret."""
    pipeline: str = ""
    """What the pipeline is called, if it has a name."""
    max_retries: Mapping[str, int] = made_by(default_factory=dict)
    """As in `RunStarted`."""
    secret: tuple[str, ...] = ()
    """As in `RunStarted`."""
    signals: Mapping[str, Any] = made_by(default_factory=dict)
    """As in `RunStarted`."""
    signal_deadlines: Mapping[str, float] = made_by(default_factory=dict)
    """As in `RunStarted`."""
    missing_steps: Mapping[str, tuple[str, ...]] = made_by(default_factory=dict)
    """The steps that the run would still run and the pipeline no longer has, each with those that
    it depended on. They are skipped by condition."""
    level: ClassVar[int] = INFO

    @property
    def rerun_reasons(self) -> dict[str, str]:
        """Why steps of which the journal had stored something run again, by step name.

        Each completes the sentence "it runs again because …".
        """
        return {**dict.fromkeys(self.recalled, RECALLED), **self.unfinished, **self.outdated}

    process: str = ""
    """The process that runs it now, as ``host:pid``, in a run with a journal."""
    attributes: Mapping[str, AttributeValue] = made_by(default_factory=dict)
    """Those that it has since it began."""
    map_over: Mapping[str, str] = made_by(default_factory=dict)
    """As in `RunStarted`."""


@record
class RunInterrupted(_OfRun):
    """Something other than a failed step or a deadline stopped the run."""

    at_ms: float
    reason: str
    """Why, in words that complete the sentence "the run stopped because …"."""
    cause: InterruptionCause | None = None
    """What stopped it: ``"caller"`` (the task that awaited the run was cancelled), ``"cancelled"``
    (by its handle, its service or its journal), ``"replaced"`` (another run of its key took its
    place), ``"drained"`` (its process shuts down, so that
    another one continues the run), ``"resource"`` (one could not be opened, or was lost),
    ``"deadline"`` (that of the run expired before its resources were open), ``"journal"`` (it
    failed), ``"step"`` or ``"observer"`` (one raised `KeyboardInterrupt`, `SystemExit` or the
    like), ``"bug"`` (one of asyncflow)."""
    level: ClassVar[int] = WARNING


@record
class RunTimedOut(_OfRun):
    """The run exceeded its ``deadline_ms`` and stops."""

    at_ms: float
    deadline_ms: float
    while_paused: str = ""
    """If steps waited for a paused pool: which, and why, as in "while pool 'api' was paused"."""
    level: ClassVar[int] = WARNING

    @property
    def reason(self) -> str:
        """Why, in words that complete the sentence "the run stopped because …"."""
        meanwhile = f" {self.while_paused}" if self.while_paused else ""
        return f"the run exceeded its deadline of {self.deadline_ms:g} ms{meanwhile}"


@record
class PoolPaused(_OfRun):
    """A pool that steps of the run share is paused: no attempt starts in it meanwhile.

    A run reports the pauses that its own attempts cause, and those of others while it waits.
    """

    at_ms: float
    until_ms: float
    """When the pause ends, unless a longer one begins before."""
    pool: str = ""
    """The name of the pool; empty if it has none."""
    by: str = ""
    """The step, or the item, that the service has told when to come back, in whichever run; empty
    after `Pool.pause`."""
    steps: tuple[str, ...] = ()
    """The steps of the run that share the pool, in topological order."""
    level: ClassVar[int] = WARNING


@record
class RunFinished(_OfRun):
    """The run ended, and nothing of it is alive. The last event, unless the run is resumed."""

    at_ms: float
    status: RunStatus
    """``INTERRUPTED`` after a `RunInterrupted`; ``WAITING`` if steps wait for signals, with which
    the run continues; else ``PASSED`` if every step succeeded, or was skipped by condition; else
    ``FAILED``."""
    stop_reason: str | None = None
    """Why the run stopped before its end, if it did."""
    cause: InterruptionCause | None = None
    """As in `RunInterrupted`, if the run was interrupted."""

    @property
    def level(self) -> int:
        """``ERROR`` if the run failed, ``WARNING`` if it was interrupted."""
        if self.status is RunStatus.FAILED:
            return ERROR
        return WARNING if self.status is RunStatus.INTERRUPTED else INFO


@record
class AttemptStarted:
    """The action of a step is about to be called, or its call is submitted to an engine.

    The first one is the start of the step.
    """

    step: str
    attempt: int
    """Counted from 1."""
    at_ms: float
    queued_ms: float = 0.0
    """How many milliseconds it waited before that: for a pool, for ``max_concurrency``, for a
    thread or a process."""
    item: int | None = None
    """The item of a mapped step, counted from 0. Here and in all other events, ``None`` means the
    step itself."""
    engine: str = ""
    """The name of the engine to which it was submitted; empty for this process."""
    level: ClassVar[int] = INFO


@record
class AttemptBegan:
    """A worker of an engine has begun with an attempt, whose time and limits count from here.

    It comes after the `AttemptStarted` that reports its submission. An attempt that ends while it
    waits for a worker has none.
    """

    step: str
    attempt: int
    at_ms: float
    engine: str
    """The name of the engine."""
    worker: str
    """What the engine calls the worker."""
    item: int | None = None
    level: ClassVar[int] = INFO


@record
class AttemptLocated:
    """The process that has run an attempt on an engine, which the engine did not know before.

    An executor tells no sooner, so its `AttemptBegan` has the executor's type. The attempt's end
    follows.
    """

    step: str
    attempt: int
    at_ms: float
    engine: str
    worker: str
    """The process, as ``host:pid``."""
    item: int | None = None
    level: ClassVar[int] = INFO


@record
class AttemptFailed:
    """An attempt failed, and another one follows."""

    step: str
    attempt: int
    at_ms: float
    error: BaseException
    retry_in_ms: float
    """How many milliseconds the step waits before its next attempt may start."""
    item: int | None = None
    level: ClassVar[int] = WARNING

    __reduce__ = picklable_event


@record
class MapStarted:
    """A mapped step begins to read its items."""

    step: str
    at_ms: float
    count: int | None = None
    """How many items there are; ``None`` if only reading them all will tell."""
    keeps_outputs: bool = True
    """Whether its result will have what each item returned; see ``keep_outputs`` of a step."""
    item: ClassVar[None] = None
    attempt: ClassVar[None] = None
    level: ClassVar[int] = INFO


@record
class StepWaiting:
    """The turn of a step has come, and it waits for a signal.

    Each segment of the run in which it waits has this event.
    """

    step: str
    at_ms: float
    since: float
    """When its turn came, in whatever segment that was, in seconds since the epoch (UTC)."""
    deadline_ms: float | None = None
    """How many milliseconds after that its deadline expires, if it has one."""
    refused: str = ""
    """Why a value that was sent does not count, if this segment has refused one."""
    description: str = ""
    """What is asked, as it was when the wait began; empty if nothing says it."""
    otherwise: str = ""
    """What follows when its deadline expires, in words that complete "then …": ``the answer is
    False``."""
    item: ClassVar[None] = None
    attempt: ClassVar[None] = None
    level: ClassVar[int] = INFO

    @property
    def until(self) -> float | None:
        """When its deadline expires, in seconds since the epoch (UTC), if it has one."""
        return None if self.deadline_ms is None else self.since + self.deadline_ms / 1000


@record
class SignalReceived:
    """A step takes the value that was sent to it, with which it succeeds.

    A default, a fallback, and what a rerun reuses were not sent, so they have no such event.
    """

    step: str
    at_ms: float
    """When the run took it."""
    sent_at: float
    """When it was sent, in seconds since the epoch (UTC)."""
    sent_by: str = ""
    """Who has sent it, as the sender said; else the process that did."""
    note: str = ""
    """What the sender has said of it."""
    item: ClassVar[None] = None
    attempt: ClassVar[None] = None
    level: ClassVar[int] = INFO


@record
class StepSucceeded:
    """The action returned a value in time; for a mapped step, for all but the tolerated items."""

    step: str
    attempt: int
    """The attempt that succeeded; 0 for a mapped step as a whole, whose items have the attempts,
    and for a step that waited for a signal."""
    at_ms: float
    output: Any
    item: int | None = None
    secret: bool = False
    """Whether the output is secret, so that no `repr` shows it."""
    error: BaseException | None = None
    """What the last attempt failed with, if the output is that of the step's ``fallback``."""
    status: ClassVar[StepStatus] = StepStatus.SUCCESS

    @property
    def level(self) -> int:
        """``WARNING`` if the step fell back."""
        return INFO if self.error is None else WARNING

    @property
    def _hidden(self) -> tuple[str, ...]:
        return hidden_output(self)

    def __repr__(self) -> str:
        return show(self, values_by_name(self) | {"output": visible_output(self)})

    __reduce__ = picklable_event


@record
class StepFailed:
    """The last attempt failed; for a mapped step, that of an item did."""

    step: str
    attempt: int
    """The attempt that failed; 0 for a mapped step, and for a step whose ``when`` raised."""
    at_ms: float
    error: BaseException
    item: int | None = None
    level: ClassVar[int] = ERROR
    status: ClassVar[StepStatus] = StepStatus.FAILED

    __reduce__ = picklable_event


@record
class StepCancelled:
    """A step that had started was cancelled because the run stopped, or for its ``cause``."""

    step: str
    attempt: int
    """The latest attempt; 0 for a mapped step as a whole."""
    at_ms: float
    reason: str
    error: BaseException | None
    """What the step's clean-up raised, or what its last attempt failed with, if anything."""
    item: int | None = None
    cause: str = ""
    """For a mapped step as a whole that lacks items because the mapped step over which it is mapped
    did not succeed, that step; then the run does not stop. Empty if the run stopped."""
    level: ClassVar[int] = WARNING
    status: ClassVar[StepStatus] = StepStatus.CANCELLED

    __reduce__ = picklable_event


@record
class StepSkipped:
    """A step, or an item of a mapped step, will never start."""

    step: str
    at_ms: float
    reason: str
    by_condition: bool = False
    """Whether its ``when`` or its ``run_if`` is the cause, and not a failure."""
    item: int | None = None
    """The item, if the same item of the step over which it is mapped did not succeed."""
    attempt: ClassVar[None] = None
    status: ClassVar[StepStatus] = StepStatus.SKIPPED

    @property
    def level(self) -> int:
        """``WARNING``, unless it is skipped by condition, or for an item that failed before."""
        return INFO if self.by_condition or self.item is not None else WARNING


@record
class StepReused:
    """A stored result is still valid, so the step does not run again."""

    step: str
    at_ms: float
    item: int | None = None
    status: StepStatus = StepStatus.SUCCESS
    """How it ended. A run that had not ended when it was resumed also keeps the steps that had
    failed or were skipped."""
    origin: str = ""
    """The run that the result was reused from, if it comes from another one."""
    keeps_outputs: bool = True
    """As in `MapStarted`: what the pipeline asks for now."""
    attempt: ClassVar[None] = None
    level: ClassVar[int] = INFO


@record
class ResultReused:
    """A rerun stores the result that a step, or an item, has in another run.

    These events follow `RunStarted`, and a journal stores them with it or not at all. `StepReused`
    follows for each result that the rerun uses; a secret one may have to be made again.
    """

    step: str
    at_ms: float
    origin: str
    """The run whose result it is."""
    attempts: int
    """How many attempts it took there; of a mapped step, the items have them."""
    duration_ms: float
    """How long it took there."""
    output: Any
    """``None`` for a mapped step as a whole, whose items have the outputs, unless it is secret."""
    item: int | None = None
    items: int | None = None
    """How many items a mapped step has."""
    secret: bool = False
    """Whether the output is secret, so that it was not stored."""
    error: BaseException | None = None
    """What it failed with there, if the output is that of its ``fallback``."""
    keeps_outputs: bool = True
    """As in `MapStarted`."""
    attempt: ClassVar[None] = None
    level: ClassVar[int] = INFO

    @property
    def _hidden(self) -> tuple[str, ...]:
        return hidden_output(self)

    def __repr__(self) -> str:
        return show(self, values_by_name(self) | {"output": visible_output(self)})

    __reduce__ = picklable_event


@record
class ThreadAbandoned:
    """A thread did not stop when its attempt had to end, and still runs.

    The attempt's end follows. Until the thread has ended, no other attempt of the step starts, and
    the attempt's pool slot stays taken.
    """

    step: str
    attempt: int
    at_ms: float
    item: int | None = None
    level: ClassVar[int] = WARNING


@record
class LoopBlocked:
    """A step blocked the event loop. It may have ended since."""

    step: str
    attempt: int
    at_ms: float
    blocked_ms: float
    where: str
    """The line that it was at: ``file:line in function``."""
    item: int | None = None
    level: ClassVar[int] = WARNING


@record
class StepLogged:
    """An attempt logged a record, or printed a line."""

    step: str
    attempt: int
    at_ms: float
    level: int
    """As `logging` counts them: 20 is INFO."""
    logger: str
    """The name of the logger; ``"stdout"`` or ``"stderr"`` for a line that was printed."""
    message: str
    item: int | None = None
    traceback: str = ""
    """The traceback of the exception that it was logged with, if any."""


@record
class StepProgressed:
    """An attempt reported its progress: `StepContext.progress`."""

    step: str
    attempt: int
    at_ms: float
    done: float
    total: float | None = None
    """``None`` if it is not known."""
    unit: str = ""
    """What is counted: ``"rows"``."""
    item: int | None = None
    level: ClassVar[int] = INFO


@record
class StepAttached:
    """An attempt attached data for people to look at: `StepContext.attach`."""

    step: str
    attempt: int
    at_ms: float
    name: str
    media_type: str
    """Such as ``"image/png"``; one that `StepContext.attach` accepts."""
    data: bytes
    item: int | None = None
    level: ClassVar[int] = INFO

    def __repr__(self) -> str:
        return show(self, values_by_name(self) | {"data": f"<{len(self.data):,} bytes>"})


@record
class StepCalled:
    """An attempt called a function by a name, which returned: `StepContext.call`.

    There is none for a call of which an earlier attempt has stored what it returned.
    """

    step: str
    attempt: int
    at_ms: float
    """When it returned."""
    name: str
    duration_ms: float
    size: int
    """How many bytes the value takes, as it is stored."""
    item: int | None = None
    level: ClassVar[int] = INFO


@record
class StepStreamed:
    """Values that an attempt streamed within some 20 ms: `StepContext.stream`.

    Journals store it. Observers do not receive it, and `RunHandle.streamed` has the values.
    """

    step: str
    attempt: int
    at_ms: float
    """When it streamed the first of them."""
    segment: int
    """Which process of the run it was, counted from 1."""
    count: int
    """How many values there are."""
    data: bytes
    """A JSON list of them."""
    item: int | None = None
    level: ClassVar[int] = INFO

    def __repr__(self) -> str:
        return show(self, values_by_name(self) | {"data": f"<{len(self.data):,} bytes>"})


@record
class EventsMissed:
    """Takes the place of events that a slow reader of `RunHandle.events` has missed.

    It is no event of the run: neither observers nor journals receive it.
    """

    count: int
    """How many there were."""


StepEvent: TypeAlias = (
    AttemptStarted
    | AttemptBegan
    | AttemptLocated
    | AttemptFailed
    | MapStarted
    | StepWaiting
    | SignalReceived
    | StepSucceeded
    | StepFailed
    | StepCancelled
    | StepSkipped
    | StepReused
    | ResultReused
    | ThreadAbandoned
    | LoopBlocked
)
"""What happens to a step, or to an item of a mapped one."""
RunEvent: TypeAlias = (
    RunStarted | RunResumed | RunInterrupted | RunTimedOut | PoolPaused | RunFinished
)
"""What happens to the run itself."""
NoteEvent: TypeAlias = StepLogged | StepProgressed | StepAttached | StepCalled | StepStreamed
"""What a step says while it runs. It changes no state, so that a replay does without it."""
Event: TypeAlias = StepEvent | RunEvent | NoteEvent
"""Whatever an observer of a run receives."""
