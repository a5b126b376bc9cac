"""What a run gives back: plain data that outlives it."""

from __future__ import annotations

import enum
import json
import math
import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import repeat
from typing import Any

from asyncflow._errors import RestoredError, nearest
from asyncflow._record import record

__all__ = ["Attempt", "RestoredOutput", "RunReport", "StepResult", "StepStatus", "describe"]


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
    """One attempt of a step."""

    number: int
    """Counted from 1."""
    started_ms: float
    """Milliseconds from the start of the run to the start of the attempt."""
    duration_ms: float
    error: BaseException | None
    """What it failed with; ``None`` if it succeeded, or was cancelled and cleaned up well."""

    def __reduce__(self) -> tuple[object, ...]:
        return Attempt, (self.number, self.started_ms, self.duration_ms, _portable(self.error))


@record
class StepResult:
    """What became of one step."""

    step_name: str
    status: StepStatus
    attempts: int = 0
    """How many attempts were started: the action was called that many times."""
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
    """Milliseconds from the start of the run to the start of the first attempt."""
    recorded: tuple[Attempt, ...] | None = field(default=None, repr=False)
    """The attempts, unless there was just one, of which all is said above; see `history`."""

    @property
    def history(self) -> tuple[Attempt, ...]:
        """Each attempt with its own figures, in order."""
        if self.recorded is not None:
            return self.recorded
        assert self.started_ms is not None
        return (Attempt(1, self.started_ms, self.duration_ms, self.error),)

    def __reduce__(self) -> tuple[object, ...]:
        values = [getattr(self, each.name) for each in fields(self)]
        values[5] = _portable(self.error)
        return StepResult, tuple(values)


@dataclass(frozen=True, slots=True)
class RestoredOutput:
    """Stands, in a report read from JSON, for an output that JSON could not hold."""

    text: str
    """The ``repr`` of the output."""


class RunReport(Mapping[str, StepResult]):
    """The results of a run: a mapping of step name to `StepResult`, in topological order.

    A report holds no task and no event loop, so it can be kept, pickled and sent. Errors keep
    their tracebacks, which pickle and JSON leave out or turn into text. Two reports are equal
    only if they are the same object: outputs are never compared.

    Attributes:
        run_id: Identifies the run.
        wall_time: When the run started, in seconds since the epoch (UTC).
        total_duration_ms: Milliseconds from the start of the run to its end.
    """

    __slots__ = ("_by_name", "run_id", "total_duration_ms", "wall_time")

    def __init__(
        self,
        run_id: str,
        results: Iterable[StepResult],
        *,
        total_duration_ms: float,
        wall_time: float,
    ) -> None:
        self.run_id = run_id
        self.total_duration_ms = total_duration_ms
        self.wall_time = wall_time
        self._by_name = {result.step_name: result for result in results}

    def __getitem__(self, step_name: str) -> StepResult:
        try:
            return self._by_name[step_name]
        except KeyError:
            hint = nearest(step_name, self._by_name) if isinstance(step_name, str) else ""
            raise KeyError(f"no step is named {step_name!r}{hint}") from None

    def __contains__(self, step_name: object) -> bool:
        return step_name in self._by_name  # a miss is no mistake, so it needs no hint

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __eq__(self, other: object) -> bool:
        return self is other  # the inherited one would compare outputs, which may not bear it

    def __hash__(self) -> int:
        return id(self)

    @property
    def results(self) -> list[StepResult]:
        """All results, in topological order; ties in the order of declaration."""
        return list(self._by_name.values())

    @property
    def succeeded(self) -> list[StepResult]:
        """The results with status ``SUCCESS``."""
        return self._with_status(StepStatus.SUCCESS)

    @property
    def failed(self) -> list[StepResult]:
        """The results with status ``FAILED``."""
        return self._with_status(StepStatus.FAILED)

    @property
    def skipped(self) -> list[StepResult]:
        """The results with status ``SKIPPED``."""
        return self._with_status(StepStatus.SKIPPED)

    @property
    def cancelled(self) -> list[StepResult]:
        """The results with status ``CANCELLED``."""
        return self._with_status(StepStatus.CANCELLED)

    def _with_status(self, status: StepStatus) -> list[StepResult]:
        return [result for result in self._by_name.values() if result.status is status]

    @property
    def all_passed(self) -> bool:
        """Whether every step succeeded. True for an empty pipeline."""
        return all(result.status is StepStatus.SUCCESS for result in self._by_name.values())

    def summary(self) -> dict[str, int | float]:
        """Return the number of steps, how many ended in which way, and the duration.

        The keys are ``total_steps``, ``succeeded``, ``failed``, ``skipped``, ``cancelled`` and
        ``total_duration_ms``.
        """
        return {
            "total_steps": len(self),
            "succeeded": len(self.succeeded),
            "failed": len(self.failed),
            "skipped": len(self.skipped),
            "cancelled": len(self.cancelled),
            "total_duration_ms": self.total_duration_ms,
        }

    def raise_for_failures(self) -> None:
        """Raise what the failed steps raised; return if no step failed.

        Raises:
            Exception: The error of the only failed step, as itself, with a note that names
                the step.
            ExceptionGroup: The errors of several failed steps, each with such a note.
        """
        errors, run_id = [_noted(result, self.run_id) for result in self.failed], self.run_id
        # No variable of this frame may keep the error, or the report: the error keeps this frame.
        del self
        if len(errors) == 1:
            raise errors.pop()
        if errors:
            raise ExceptionGroup(f"{len(errors)} steps of run {run_id} failed", errors)

    def __str__(self) -> str:
        return "\n".join(
            [
                f"Pipeline {'PASSED' if self.all_passed else 'FAILED'}",
                *map(_line, self._by_name.values()),
                f"Total: {self.total_duration_ms:.0f}ms",
            ]
        )

    def __repr__(self) -> str:
        verdict = "PASSED" if self.all_passed else "FAILED"
        return f"<RunReport {self.run_id} {verdict}: {len(self)} step(s)>"

    def __reduce__(self) -> tuple[object, ...]:
        new = partial(RunReport, total_duration_ms=self.total_duration_ms, wall_time=self.wall_time)
        return new, (self.run_id, self.results)

    def to_json(self, *, indent: int | None = None) -> str:
        """Return the report as JSON text.

        An output that JSON would not give back equal (a tuple, a set, a date, an object) is
        written as its ``repr``; an error as its type, its message and its formatted traceback.
        """
        document = {
            "run_id": self.run_id,
            "wall_time": self.wall_time,
            "total_duration_ms": self.total_duration_ms,
            "results": [_result_to_json(result) for result in self._by_name.values()],
        }
        return json.dumps(document, indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> RunReport:
        """Return the report that `to_json` wrote.

        What JSON could not hold comes back as `RestoredOutput` and `RestoredError`.

        Raises:
            ValueError: The text is not JSON.
            KeyError: It is not the JSON of a report.
        """
        document = json.loads(text)
        return cls(
            document["run_id"],
            [_result_from_json(result) for result in document["results"]],
            total_duration_ms=document["total_duration_ms"],
            wall_time=document["wall_time"],
        )


def _noted(result: StepResult, run_id: str) -> Exception:
    error = result.error
    assert isinstance(error, Exception)  # nothing else makes a step FAILED
    note = f"in step {result.step_name!r}, attempt {result.attempts}, of run {run_id}"
    with suppress(Exception):  # some refuse a note: frozen dataclasses, for one
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
    return error


def _line(result: StepResult) -> str:
    parts = [
        f"[{result.status:<7}] {result.step_name} "
        f"({result.attempts} attempt(s), {result.duration_ms:.0f}ms)"
    ]
    if result.reason is not None:
        parts.append(result.reason)
    if result.error is not None:
        parts.append(describe(result.error))
    return ": ".join(parts)


def describe(error: BaseException) -> str:
    """Return ``ErrorType: message`` in one line, even of an error that cannot be printed."""
    name, message = type(error).__name__, _text(str, error)
    if isinstance(error, RestoredError):
        name, message = error.type_name.rpartition(".")[2], error.message
    lines = message.strip().splitlines()
    return f"{name}: {lines[0]}" if lines else name


def _text(render: Callable[[object], str], value: object) -> str:
    try:
        return render(value)
    except Exception as error:  # it is the user's object: whatever it raises must not spread
        return f"<{type(value).__name__}, whose {render.__name__} raised {type(error).__name__}>"


def _portable(error: BaseException | None) -> BaseException | None:
    """Return the error, or its stand-in if it would not survive pickling."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # anything at all may go wrong in there
        assert error is not None
        return _stand_in(error)
    return error


def _stand_in(error: BaseException) -> RestoredError:
    if isinstance(error, RestoredError):
        return error
    kind = type(error)
    try:
        trace = "".join(traceback.format_exception(error))
    except Exception:  # as in _text
        trace = ""
    return RestoredError(f"{kind.__module__}.{kind.__qualname__}", _text(str, error), trace)


def _result_to_json(result: StepResult) -> dict[str, object]:
    output: dict[str, object] = (
        {"output": result.output}
        if _is_plain_json(result.output)
        else {"output_repr": _text(repr, result.output)}
    )
    return {
        "step_name": result.step_name,
        "status": result.status.value,
        "attempts": result.attempts,
        "duration_ms": result.duration_ms,
        **output,
        "error": _error_to_json(result.error),
        "reason": result.reason,
        "started_ms": result.started_ms,
        "history": [
            {
                "number": attempt.number,
                "started_ms": attempt.started_ms,
                "duration_ms": attempt.duration_ms,
                "error": _error_to_json(attempt.error),
            }
            for attempt in result.history
        ],
    }


def _result_from_json(document: dict[str, Any]) -> StepResult:
    return StepResult(
        step_name=document["step_name"],
        status=StepStatus(document["status"]),
        attempts=document["attempts"],
        duration_ms=document["duration_ms"],
        output=(
            RestoredOutput(document["output_repr"])
            if "output_repr" in document
            else document["output"]
        ),
        error=_error_from_json(document["error"]),
        reason=document["reason"],
        started_ms=document["started_ms"],
        recorded=tuple(
            Attempt(**{**attempt, "error": _error_from_json(attempt["error"])})
            for attempt in document["history"]
        ),
    )


def _error_to_json(error: BaseException | None) -> dict[str, str] | None:
    if error is None:
        return None
    kept = _stand_in(error)
    return {"type": kept.type_name, "message": kept.message, "traceback": kept.traceback}


def _error_from_json(document: dict[str, str] | None) -> RestoredError | None:
    if document is None:
        return None
    return RestoredError(document["type"], document["message"], document["traceback"])


def _is_plain_json(value: Any, levels: int = 100) -> bool:
    """Whether JSON gives the value back equal. Exact types only: no method of it is called.

    What is nested deeper than that many levels, perhaps without end, is left to its ``repr``.
    """
    kind = type(value)
    if kind is dict:
        return all(type(key) is str for key in value) and _is_plain_json([*value.values()], levels)
    if kind is list:
        return levels > 0 and all(map(_is_plain_json, value, repeat(levels - 1)))
    if kind is float:
        return math.isfinite(value)
    if kind is int:
        return int(value).bit_length() <= 2_000  # Python writes no much longer ones in decimal
    return value is None or kind in (bool, str)
