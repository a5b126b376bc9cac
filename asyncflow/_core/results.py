"""Steps and their results: the data that a run leaves behind.

Rules:

1. A result outlives its run: it holds no task and no loop, and it can be pickled.
2. Outputs and errors belong to users: one that can't be pickled has a stand-in, and no comparison
   or `repr` of a result raises what one of theirs does.
3. A secret output appears in no `repr`, no JSON and no view.
"""

from __future__ import annotations

import enum
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from asyncflow._core.errors import RestoredError, safe_text
from asyncflow._core.record import record, show, values_by_name

__all__ = [
    "REDACTED",
    "REDACTED_OUTPUT",
    "STATUS_SYMBOLS",
    "Attempt",
    "Payload",
    "RestoredOutput",
    "StepResult",
    "StepStatus",
    "blocks_dependents",
    "picklable_output",
    "to_restored_error",
    "visible_output",
    "with_note",
]


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


STATUS_SYMBOLS: Mapping[StepStatus, str] = {
    StepStatus.PENDING: "○",
    StepStatus.RUNNING: "▷",
    StepStatus.SUCCESS: "✓",
    StepStatus.FAILED: "✗",
    StepStatus.SKIPPED: "⊘",
    StepStatus.CANCELLED: "■",
}
"""What every view shows beside the word. Each symbol is clear without colour and one cell wide."""


class Payload(NamedTuple):
    """A value as a journal stores it: in bytes, with the codec that decodes them."""

    codec: str
    """The name of the codec; ``"redacted"`` for a secret value, which is not stored."""
    data: bytes


REDACTED = Payload("redacted", b"")
"""Stands for a secret value."""


@record(frozen=True)
class RestoredOutput:
    """Stands for an output that JSON or pickle could not hold, or that is secret."""

    text: str
    """The ``repr`` of the output."""


REDACTED_OUTPUT = RestoredOutput("redacted")
"""Stands for a secret output."""


@record
class Attempt:
    """One attempt of a step.

    Attempts are equal if their fields are. An error that raises when it is compared equals only
    itself.
    """

    number: int
    """Counted from 1."""
    started_ms: float
    """Milliseconds from the start of the run to the start of the attempt."""
    duration_ms: float
    """Milliseconds from its start to its end, its clean-up included."""
    error: BaseException | None
    """What it failed with; ``None`` if it succeeded, or was cancelled and its clean-up raised
    nothing."""
    queued_ms: float = 0.0
    """Milliseconds that it waited for a pool, for ``max_concurrency``, for a thread or a process,
    just before its start. They are no part of ``duration_ms``."""

    def __reduce__(self) -> tuple[object, ...]:
        values = values_by_name(self) | {"error": _picklable_error(self.error)}
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
    """How many attempts were started. For a mapped step, those of its items in all."""
    duration_ms: float = 0.0
    """Milliseconds from the start of the first attempt to the end of the last one, the waits
    between them included."""
    output: Any = None
    """What the action returned."""
    error: BaseException | None = None
    """The exception as the step raised it, with its traceback and so with the local variables of
    its frames; ``None`` on success. For a cancelled step, what its clean-up raised or what its
    last attempt failed with, if anything."""
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
    process, in all. They never count against ``timeout_ms`` or ``deadline_ms``. The wait before the
    first attempt comes before ``started_ms``, so it is no part of ``duration_ms``; the waits before
    later attempts lie between attempts, so they are."""
    loop_blocked_ms: float = 0.0
    """Milliseconds for which it blocked the event loop. Only blocks of more than 100 ms count, and
    each of them counts up to 30 ms less than it took."""
    abandoned: bool = False
    """Whether a thread of it outlived its limit and was still running when its attempt ended."""
    on_purpose: bool = False
    """For a skipped step, whether the pipeline asked for it, as opposed to a failure: its ``when``
    was false, its ``run_if`` did not apply, or it depends on such a step."""
    items: tuple[StepResult, ...] | None = None
    """The results of the items of a mapped step, in their order; ``None`` for a step that is not
    mapped."""
    reused: bool = False
    """Whether a resumed run restored this from its journal, so that the step did not run again."""
    rerun_reason: str | None = None
    """For a step that a resumed run ran again although its journal had stored something of it, the
    reason."""
    secret: bool = False
    """Whether there is an output that is secret, so that no journal, JSON or `repr` shows it."""

    @property
    def history(self) -> tuple[Attempt, ...]:
        """Each attempt with its own figures, in order.

        Empty for a step that never started, and for a mapped step, whose ``items`` have the
        attempts.
        """
        if self.recorded is not None:
            return self.recorded
        if self.started_ms is None:
            return ()
        return (Attempt(1, self.started_ms, self.duration_ms, self.error, self.queued_ms),)

    def __repr__(self) -> str:
        values = values_by_name(self) | {"output": visible_output(self)}
        del values["recorded"]  # `history` says more
        return show(self, values)

    def __reduce__(self) -> tuple[object, ...]:
        values = values_by_name(self)
        values["output"] = picklable_output(self.output)
        values["error"] = _picklable_error(self.error)
        return StepResult, tuple(values.values())


def blocks_dependents(status: StepStatus, on_purpose: bool) -> bool:
    """Whether steps that depend on one with this status can't run."""
    if status is StepStatus.SKIPPED:
        return not on_purpose
    return status in (StepStatus.FAILED, StepStatus.CANCELLED)


def visible_output(result: StepResult) -> object:
    """Return the output, or what stands for it if it is secret."""
    return REDACTED_OUTPUT if result.secret and result.output is not None else result.output


def with_note(result: StepResult, note: str) -> Exception:
    """Return the error of a failed step or item, with a note."""
    error = result.error
    assert isinstance(error, Exception)  # nothing else makes it FAILED
    with suppress(Exception):  # some refuse a note: frozen dataclasses, for one
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
    return error


def to_restored_error(error: BaseException) -> RestoredError:
    """Return the stand-in of an error: its type, its message, its traceback."""
    if isinstance(error, RestoredError):
        return error
    kind = type(error)
    try:
        trace = "".join(traceback.format_exception(error))
    except Exception:  # as in safe_text
        trace = ""
    return RestoredError(f"{kind.__module__}.{kind.__qualname__}", safe_text(str, error), trace)


def picklable_output(value: object) -> object:
    """Return the value, or its stand-in if it would not survive pickling."""
    return value if _is_picklable(value) else RestoredOutput(safe_text(repr, value))


def _picklable_error(error: BaseException | None) -> BaseException | None:
    """Return the error, or its stand-in if it would not survive pickling."""
    return error if error is None or _is_picklable(error) else to_restored_error(error)


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
