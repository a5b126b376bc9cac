"""Steps and their results: the data that a run leaves behind.

Rules:

1. A result outlives its run: it holds no task and no loop, and it can be pickled.
2. Outputs and errors belong to users: one that can't be pickled has a stand-in, and no comparison
   or `repr` of a result raises what one of theirs does.
3. A secret output appears in no `repr`, no JSON and no view.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

from asyncflow._core.errors import RestoredError, StepCrashedError, StepTimeoutError
from asyncflow._core.record import derived, record, show, values_by_name
from asyncflow._core.text import LONGEST_TEXT, cut, escape_controls, safe_text
from asyncflow._core.tracebacks import full_traceback

Key: TypeAlias = tuple[str, int | None]
"""A step, or an item of a mapped step."""
_LONGEST_ITEM_VALUE = 100
"""How many bytes of the value of an item are shown, as in the displays of a run."""

AttemptEnd: TypeAlias = Literal["succeeded", "failed", "timed out", "cancelled", "crashed"]
"""How an attempt ended; it crashed if its process died or its journal failed."""


class StepStatus(enum.StrEnum):
    """The state of a step. The last four are final."""

    PENDING = "PENDING"
    """It has not started."""
    RUNNING = "RUNNING"
    """Its first attempt has started and the step has not ended."""
    SUCCESS = "SUCCESS"
    """Its action returned a value in time."""
    FAILED = "FAILED"
    """Its last attempt failed."""
    SKIPPED = "SKIPPED"
    """It never started; `StepResult.reason` says why."""
    CANCELLED = "CANCELLED"
    """It had started and was cancelled; `StepResult.reason` says why."""


class RunStatus(enum.StrEnum):
    """The state of a run. Any run that has not passed can be resumed."""

    RUNNING = "RUNNING"
    """It has not ended."""
    PASSED = "PASSED"
    """Every step succeeded, or was skipped by condition."""
    FAILED = "FAILED"
    """A step failed, or the run exceeded its deadline."""
    INTERRUPTED = "INTERRUPTED"
    """It was stopped from outside: its caller was cancelled, or it was asked to stop."""
    ORPHANED = "ORPHANED"
    """It has not ended and no process runs it. Only a journal can tell."""
    WAITING = "WAITING"
    """It has not ended, and nothing is left to do until a signal arrives. No process runs it."""


InterruptionCause: TypeAlias = Literal[
    "caller",
    "cancelled",
    "replaced",
    "drained",
    "resource",
    "deadline",
    "journal",
    "step",
    "observer",
    "bug",
]


class Interruption(NamedTuple):
    """Why a run stops: for code, and for people."""

    cause: InterruptionCause
    reason: str
    """In words that complete the sentence "the run stopped because …"."""


def why_cancelled(reason: str, cause: InterruptionCause = "cancelled") -> Interruption:
    """Return why a run stops that was asked to; a journal may give no reason."""
    if not reason:
        return Interruption(cause, "the run was cancelled through its journal")
    return Interruption(cause, f"the run was cancelled: {escape_controls(reason)}")


ENDED = (RunStatus.PASSED, RunStatus.FAILED, RunStatus.INTERRUPTED)
"""The statuses of runs that have ended."""

UNSETTLED = (StepStatus.PENDING, StepStatus.RUNNING)
"""The statuses of steps that have not ended."""


class Payload(NamedTuple):
    """A value as a journal stores it: in bytes, with the codec that decodes them."""

    codec: str
    """The name of the codec; ``"redacted"`` for a secret value, which is not stored."""
    data: bytes


class SignalAnswer(NamedTuple):
    """What was sent to a step that waits for a signal."""

    payload: Payload
    sent_at: float = 0.0
    """In seconds since the epoch."""
    sent_by: str = ""
    note: str = ""


REDACTED = Payload("redacted", b"")
"""Stands for a secret value."""


@record(frozen=True)
class RestoredOutput:
    """Stands for an output that JSON or pickle could not hold, or that is secret."""

    text: str
    """The ``repr`` of the output."""


REDACTED_OUTPUT = RestoredOutput("redacted")
"""Stands for a secret output."""


class Segment(NamedTuple):
    """What one process did of a run: from the start of the run, or a resumption, to its end.

    The clock of a run stands still between two segments: ``at_ms`` of one is ``ended_ms`` of the
    one before. By wall clock, there is a pause.
    """

    at_ms: float
    """When it began, in milliseconds since the start of the run."""
    wall_time: float
    """The same in seconds since the epoch (UTC)."""
    ended_ms: float | None = None
    """When it ended; ``None`` for a segment whose run has not ended. A segment whose process died
    lasted until its latest event."""
    process: str = ""
    """The process, as ``host:pid``; empty without a journal, and in journals of before this was
    kept."""


class SignalWait(NamedTuple):
    """How long a step waited for its signal."""

    started_ms: float
    """When its turn came, in milliseconds since the start of the run."""
    ended_ms: float | None = None
    """When it took what was sent, or its deadline expired; ``None`` while it waits."""
    lasted_ms: float | None = None
    """How many milliseconds it waited by wall clock, the pauses between segments included;
    ``None`` while it waits."""


class _WithOutput(Protocol):
    @property
    def output(self) -> Any: ...
    @property
    def secret(self) -> bool: ...


class _WithOutcome(Protocol):
    @property
    def output(self) -> Any: ...
    @property
    def status(self) -> StepStatus: ...


@record
class Attempt:
    """One attempt of a step. ``segment`` and ``number`` identify it.

    Attempts are equal if their fields are. An error that raises when it is compared equals only
    itself.
    """

    number: int
    """Counted from 1. In a resumed run, a step whose attempt did not finish counts on; one that
    begins anew counts from 1 again."""
    started_ms: float
    """Milliseconds from the start of the run to the start of the attempt, without the pauses
    between segments."""
    duration_ms: float
    """Milliseconds from its start to its end, its clean-up included."""
    error: BaseException | None
    """What it failed with; ``None`` if it succeeded, or was cancelled and its clean-up raised
    nothing."""
    queued_ms: float = 0.0
    """Milliseconds that it waited for a pool, for ``max_concurrency``, for a thread or a process,
    or for a worker of an engine, just before its start. They are no part of ``duration_ms``."""
    segment: int = 1
    """The segment of the run in which it ran, counted from 1: see `RunReport.segments`."""
    cancelled: bool = False
    """Whether it was cancelled because the run stopped."""
    item: int | None = None
    """In the history of a step, the item whose attempt this was in an earlier segment, if the
    latest segment does not have that item; otherwise ``None``."""
    engine: str = ""
    """The engine that ran it; empty for the process of the run."""
    worker: str = ""
    """The worker of that engine; empty also if the attempt had not begun there."""
    retry_in_ms: float | None = None
    """How many milliseconds after its end the next attempt could start; ``None`` if none was to
    follow."""

    def __reduce__(self) -> tuple[object, ...]:
        values = values_by_name(self) | {"error": picklable_error(self.error)}
        return Attempt, tuple(values.values())


@record
class StepResult:
    """How one step ended.

    Results are equal if their fields are. An output or an error that raises when it is compared,
    as the arrays of NumPy do, equals only itself.
    """

    step_name: str
    """The name of the step. That of an item of a mapped step has its index: ``fetch[3]``."""
    status: StepStatus
    attempts: int = 0
    """How many attempts were started, in all segments of the run. For a mapped step, those of its
    items in all."""
    duration_ms: float = 0.0
    """Milliseconds from the start of the first attempt to the end of the step, the waits between
    attempts included. In a resumed run, the sum over the segments in which the step ran: what lies
    between its last attempt in one and its first in the next doesn't count."""
    output: Any = None
    """What the action returned."""
    error: BaseException | None = None
    """The exception as the step raised it, with its traceback and so with the local variables of
    its frames; ``None`` on success, unless it `fell_back`. For a cancelled step, what its clean-up
    raised or what its last attempt failed with, if anything. `history` has the errors of all
    attempts."""
    reason: str | None = None
    """Why a step was skipped or cancelled."""
    started_ms: float | None = None
    """Milliseconds from the start of the run to the start of the first attempt; ``None`` if there
    was none."""
    recorded: tuple[Attempt, ...] | None = None
    """The attempts, unless there was only one, which the other fields describe; see `history`."""
    depends_on: tuple[str, ...] = ()
    """The names of the steps that it depends on, as declared."""
    queued_ms: float = 0.0
    """Milliseconds that its attempts waited for a pool, for ``max_concurrency``, for a thread or a
    process, or for a worker of an engine, in all. They never count against ``timeout_ms`` or
    ``deadline_ms``. The wait before the first attempt comes before ``started_ms``, so it is no part
    of ``duration_ms``; the waits before later attempts lie between attempts, so they are."""
    loop_blocked_ms: float = 0.0
    """Milliseconds for which it blocked the event loop. Only blocks of more than 100 ms count, and
    each of them counts up to 30 ms less than it took."""
    abandoned: bool = False
    """Whether a thread of it outlived its limit and was still running when its attempt ended."""
    by_condition: bool = False
    """For a skipped step, whether the pipeline asked for it, as opposed to a failure: its ``when``
    was false, its ``run_if`` did not apply, or it depends on such a step."""
    items: tuple[StepResult, ...] | None = None
    """The results of the items of a mapped step, in their order; ``None`` for a step that is not
    mapped."""
    reused: bool = False
    """Whether a resumed run, a rerun, or the start of a run that had passed, has this from its
    journal, so that the step did not run again."""
    rerun_reason: str | None = None
    """For a step that a resumed run, or a rerun, repeated although the journal had stored something
    of it, the reason."""
    secret: bool = False
    """Whether there is an output that is secret, so that no journal, JSON or `repr` shows it, and
    `dataclasses.asdict` leaves it out."""
    origin: str = ""
    """In a rerun, the id of the run that this was reused from: its attempts and its duration are
    those of that run."""
    engine: str = ""
    """The engine that ran its latest attempt; empty for the process of the run, and for a mapped
    step, whose ``items`` have their own."""
    worker: str = ""
    """The worker of that engine; empty also if the attempt had not begun there."""
    item: int | None = None
    """Which item of a mapped step this is of, counted from 0; ``None`` for a step."""
    left_out: int = 0
    """How many items have succeeded and are not among ``items``, because the step has
    ``keep_outputs=False``."""
    waiting_since: float | None = None
    """When its turn came, in seconds since the epoch (UTC), if it waits for a signal."""
    waiting_until: float | None = None
    """When its deadline expires, in seconds since the epoch (UTC), if it waits and has one."""
    max_retries: int | None = None
    """How many attempts it, or each of its items, has in all; ``None`` if that is not known."""
    wait: SignalWait | None = None
    """How long it waits, or waited, for its signal; ``None`` for a step that has not done so in
    this run. It is no part of ``duration_ms``."""
    item_value: str | None = None
    """For an item, which value it was given: the beginning of its ``repr``, in a line of about 100
    characters, or ``redacted`` if that is secret. ``None`` if it is not known: what the step is
    mapped over was no list, or its outputs were not kept."""
    _given: object = derived()
    """The value of the item, if no text was made of it yet."""

    if not TYPE_CHECKING:  # it would let any attribute pass

        def __getattr__(self, name: str) -> Any:
            # Python asks here for a slot without a value.
            if name != "item_value":
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            from asyncflow._core.history.value_preview import (
                preview_in_line,  # few programs ask for it
            )

            shown = preview_in_line(self._given, _LONGEST_ITEM_VALUE)
            self.item_value = f"{shown.text}…" if shown.cut else shown.text
            return self.item_value

    @property
    def fell_back(self) -> bool:
        """Whether its output is that of its ``fallback``, since it had failed with its `error`.

        Items of a mapped step do, and not the step itself.
        """
        return has_fallen_back(self)

    @property
    def _hidden(self) -> tuple[str, ...]:
        return hidden_output(self)

    @property
    def history(self) -> tuple[Attempt, ...]:
        """Each attempt that has ended, with its own figures, in order.

        In a resumed run, those of all segments, even of a step that the latest segment skipped.
        Empty for a step that never started in this run. For a mapped step, ``items`` have the
        attempts; here are only those of items that the latest segment does not have.
        """
        if self.recorded is not None:
            return self.recorded
        if self.started_ms is None:
            return ()
        cancelled = self.status is StepStatus.CANCELLED and end_of(self.error) != "timed out"
        return (
            Attempt(
                1,
                self.started_ms,
                self.duration_ms,
                self.error,
                self.queued_ms,
                cancelled=cancelled,
                engine=self.engine,
                worker=self.worker,
            ),
        )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> Any:
        """Let pydantic, and so FastAPI, write a result as `RunReport.to_json` does."""
        from asyncflow._core.history.report_json import pydantic_schema

        return pydantic_schema(cls)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: object, handler: object) -> dict[str, Any]:
        from asyncflow._core.history.report_json import json_schema

        return json_schema(cls)

    def __repr__(self) -> str:
        values = values_by_name(self) | {"output": visible_output(self)}
        del values["recorded"]  # `history` says more
        return show(self, values)

    def __reduce__(self) -> tuple[object, ...]:
        values = values_by_name(self)
        values["output"] = picklable_output(self.output)
        values["error"] = picklable_error(self.error)
        return StepResult, tuple(values.values())


RUN_FACTS = ("parent", "parent_step", "rerun_of", "label", "attributes")
"""What the first event of a run says of it, and the report in the same words."""


def run_facts(of: object) -> dict[str, Any]:
    """Return these facts of an event, a replay or a report, by name."""
    return {name: getattr(of, name) for name in RUN_FACTS}


def fail_fast_reason(step: str) -> str:
    """Return why a run stops that fails fast, by the step that failed."""
    return f"step {step!r} failed and fail_fast is on"


def blocks_dependents(status: StepStatus, by_condition: bool) -> bool:
    """Whether steps that depend on one with this status can't run."""
    if status is StepStatus.SKIPPED:
        return not by_condition
    return status in (StepStatus.FAILED, StepStatus.CANCELLED)


def outputs_of(items: Iterable[_WithOutcome]) -> list[Any]:
    """Return the output of a mapped step: those of its items that have succeeded."""
    return [item.output for item in items if item.status is StepStatus.SUCCESS]


class _Failing(Protocol):
    @property
    def status(self) -> StepStatus: ...
    @property
    def error(self) -> BaseException | None: ...


def has_fallen_back(one: _Failing) -> bool:
    """Whether a step or an item has failed for good, and has the output of its fallback."""
    return one.status is StepStatus.SUCCESS and one.error is not None


def end_of(error: BaseException | None) -> AttemptEnd:
    """Return how an attempt ended that failed with an error."""
    name = error.type_name if isinstance(error, RestoredError) else type(error).__name__
    name = name.rpartition(".")[2]
    if name == StepTimeoutError.__name__:
        return "timed out"
    return "crashed" if name == StepCrashedError.__name__ else "failed"


def attempt_end(attempt: Attempt) -> AttemptEnd:
    """Return how an attempt ended."""
    if attempt.cancelled:
        return "cancelled"
    return "succeeded" if attempt.error is None else end_of(attempt.error)


def retries_among(ends: Sequence[AttemptEnd | None]) -> int:
    """Return how many attempts followed one that failed; an attempt that runs has no end.

    What follows an attempt that crashed is no retry: nothing of the step has failed.
    """
    return sum(end in ("failed", "timed out") for end in ends[:-1])


def with_history(history: tuple[Attempt, ...], **fields: Any) -> StepResult:
    """Return a result that has no record of its only attempt, if it says all of that itself."""
    if fields["attempts"] == 1:
        bare = StepResult(**fields, recorded=None)
        if bare.history == history:
            return bare
    return StepResult(**fields, recorded=history)


def latest_number(result: StepResult) -> int:
    """Return the number of the latest attempt of a step that has ended; 0 if there is none."""
    history = result.history
    return history[-1].number if history else result.attempts


def earlier_attempts(result: StepResult, segment: int) -> int:
    """Return how many attempts of a step, and of its items, ran before a segment."""
    if segment == 1:
        return 0
    items = sum([earlier_attempts(item, segment) for item in result.items or ()])
    return items + sum([attempt.segment < segment for attempt in result.history])


def visible_output(result: _WithOutput) -> object:
    """Return the output, or what stands for it if it is secret."""
    return REDACTED_OUTPUT if result.secret else result.output


def hidden_output(result: _WithOutput) -> tuple[str, ...]:
    """Return the name of the field that has a secret output, if there is one."""
    return ("output",) if result.secret and result.output is not REDACTED_OUTPUT else ()


def with_note(error: BaseException | None, note: str) -> Exception:
    """Return the error of a failed step or item, with a note."""
    assert isinstance(error, Exception)  # nothing else makes it FAILED
    with suppress(Exception):  # some refuse a note: frozen dataclasses, for one
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
    return error


def to_restored_error(error: BaseException) -> RestoredError:
    """Return the stand-in of an error: its type, its message and its traceback, if long cut."""
    if isinstance(error, RestoredError):
        return error
    kind = type(error)
    try:
        trace = full_traceback(error)
    except Exception:  # as in safe_text
        trace = ""
    message = cut(safe_text(str, error), LONGEST_TEXT)
    return RestoredError(
        f"{kind.__module__}.{kind.__qualname__}", message, cut(trace, LONGEST_TEXT)
    )


def picklable_output(value: object) -> object:
    """Return the value, or its stand-in if it would not survive pickling."""
    if _is_picklable(value):
        return value
    from asyncflow._core.value_size import safe_repr  # as in `show`

    return RestoredOutput(safe_repr(value))


def picklable_error(error: BaseException | None) -> BaseException | None:
    """Return the error, or its stand-in if it would not survive pickling."""
    return error if error is None or _is_picklable(error) else to_restored_error(error)


def picklable_event(self: Any) -> tuple[object, ...]:  # the name that type checkers ask for
    """Return how an event with values of users is pickled: with stand-ins, as its result is."""
    values = values_by_name(self)
    if "output" in values:
        values["output"] = picklable_output(values["output"])
    if "error" in values:
        values["error"] = picklable_error(values["error"])
    if "inputs" in values:
        inputs = values["inputs"].items()
        values["inputs"] = {name: picklable_output(value) for name, value in inputs}
    return type(self), tuple(values.values())


_PLAIN = (type(None), bool, int, float, str, bytes)


def _is_picklable(value: object) -> bool:
    """Whether the value can be pickled and read again."""
    if type(value) in _PLAIN:
        return True
    import pickle  # the caller has imported it; other programs should not wait for it

    try:
        pickle.loads(pickle.dumps(value))
    except Exception:  # anything at all may go wrong in there
        return False
    return True
