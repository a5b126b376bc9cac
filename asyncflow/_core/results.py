"""What became of one step: plain data that outlives its run.

How plain data that is made in large numbers is declared.

The sign of each status, which every view shows beside its word.

A value as a journal keeps it.
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


class Payload(NamedTuple):
    """A value in bytes, and what can turn them into the value again."""

    codec: str
    """The name of what has encoded it; ``"redacted"`` if it was secret and is not here."""
    data: bytes


REDACTED = Payload("redacted", b"")


class StepStatus(enum.StrEnum):
    """Where a step stands. The last four are final."""

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
    """It had started and was cut short; `StepResult.reason` says why."""


@record
class Attempt:
    """One attempt of a step.

    Attempts are equal if their fields are. An error that raises when it is compared is equal to
    itself only.
    """

    number: int
    """Counted from 1."""
    started_ms: float
    """Milliseconds from the start of the run to the start of the attempt."""
    duration_ms: float
    """Milliseconds from its start to its end, its clean-up included."""
    error: BaseException | None
    """What it failed with; ``None`` if it succeeded, or was cancelled and cleaned up well."""
    queued_ms: float = 0.0
    """Milliseconds that it waited for a pool or for ``max_concurrency`` just before its start.
    They are no part of ``duration_ms``."""

    def __reduce__(self) -> tuple[object, ...]:
        values = values_by_name(self) | {"error": _picklable_error(self.error)}
        return Attempt, tuple(values.values())


@record
class StepResult:
    """What became of one step.

    Results are equal if their fields are. An output or an error that raises when it is compared,
    as the arrays of NumPy do, is equal to itself only.
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
    """The attempts, unless there was just one, of which all is said above; see `history`."""
    depends_on: tuple[str, ...] = ()
    """The names of the steps that it depends on, as declared."""
    queued_ms: float = 0.0
    """Milliseconds that its attempts waited for a pool or for ``max_concurrency``, in all. They
    never count against ``timeout_ms`` or ``deadline_ms``. The wait before the first attempt comes
    before ``started_ms``, so it is no part of ``duration_ms``; the waits before later attempts lie
    between attempts, so they are."""
    loop_blocked_ms: float = 0.0
    """Milliseconds for which it blocked the event loop, as far as that was noticed: blocks of
    more than 100 ms count, less up to 30 ms until they are."""
    abandoned: bool = False
    """Whether a thread of it outlived its limit, so that the thread was still running when the
    attempt was given up."""
    on_purpose: bool = False
    """For a skipped step, whether that is what the pipeline asked for and not the consequence of
    a failure: its ``when`` was false, its ``run_if`` did not apply, or it depends on such a
    step."""
    items: tuple[StepResult, ...] | None = None
    """The results of the items of a mapped step, in their order; ``None`` for a step that is not
    mapped."""
    reused: bool = False
    """Whether a resumed run has taken this from its journal, so that the step did not run again."""
    rerun_reason: str | None = None
    """For a step of a resumed run of which its journal knew, why it ran again all the same."""
    secret: bool = False
    """Whether there is an output and it is secret, so that neither a journal nor JSON nor `repr`
    shows it."""

    @property
    def history(self) -> tuple[Attempt, ...]:
        """Each attempt with its own figures, in order.

        Empty for a step that never started, and for a mapped step, whose attempts stand in its
        ``items``.
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


@record(frozen=True)
class RestoredOutput:
    """Stands, in a report read from JSON or pickled, for an output that could not go there."""

    text: str
    """The ``repr`` of the output."""


REDACTED_OUTPUT = RestoredOutput("redacted")
"""Stands for an output that is secret."""


def blocks_dependents(status: StepStatus, on_purpose: bool) -> bool:
    """Whether what depends on a step can't run, because the step has failed or did not run."""
    if status is StepStatus.SKIPPED:
        return not on_purpose
    return status in (StepStatus.FAILED, StepStatus.CANCELLED)


def with_note(result: StepResult, note: str) -> Exception:
    """Return what a step or an item has failed with, with a note."""
    error = result.error
    assert isinstance(error, Exception)  # nothing else makes it FAILED
    with suppress(Exception):  # some refuse a note: frozen dataclasses, for one
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
    return error


def to_restored_error(error: BaseException) -> RestoredError:
    """Return what is left of an error where it cannot go itself: type, message, traceback."""
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
    import pickle  # whoever asks has imported it; others shall not wait for it

    try:
        pickle.loads(pickle.dumps(value))
    except Exception:  # anything at all may go wrong in there
        return False
    return True


def visible_output(result: StepResult) -> object:
    """Return the output, or what stands for it where it must not be seen."""
    return REDACTED_OUTPUT if result.secret and result.output is not None else result.output


STATUS_SYMBOLS: Mapping[StepStatus, str] = {
    StepStatus.PENDING: "○",
    StepStatus.RUNNING: "▷",
    StepStatus.SUCCESS: "✓",
    StepStatus.FAILED: "✗",
    StepStatus.SKIPPED: "⊘",
    StepStatus.CANCELLED: "■",
}
"""They can be told apart without colours. Each takes one cell in a terminal."""
