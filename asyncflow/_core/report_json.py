"""A report as JSON text, and back."""

from __future__ import annotations

import math
import reprlib
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Any, TypeAlias

from asyncflow._core.errors import RestoredError, safe_text
from asyncflow._core.record import replace
from asyncflow._core.results import (
    Attempt,
    RestoredOutput,
    StepResult,
    StepStatus,
    to_restored_error,
    visible_output,
)

__all__ = ["dump", "load"]


def dump(
    figures: Mapping[str, object],
    inputs: Mapping[str, object],
    results: Iterable[StepResult],
    indent: int | None,
) -> str:
    """Return the JSON text of a report: its figures, its inputs, and what became of each step."""
    document = {
        **figures,
        "inputs": {name: _output_to_json(value) for name, value in inputs.items()},
        "results": [*map(_result_to_json, results)],
    }
    import json  # only those who use it shall wait for its import

    return json.dumps(document, indent=indent, allow_nan=False)


def load(text: str | bytes) -> tuple[dict[str, Any], list[StepResult]]:
    """Return the figures and the results that `dump` wrote.

    Raises:
        ValueError: The text is not JSON, or not that of a report.
    """
    import json

    try:
        return _report_from_json(json.loads(text))
    except RecursionError:
        raise _refusal("it", "is nested too deep") from None


# Out.


def _result_to_json(result: StepResult) -> dict[str, object]:
    items = result.items
    return {
        "step_name": result.step_name,
        "status": result.status.value,
        "attempts": result.attempts,
        "duration_ms": result.duration_ms,
        **_output_to_json(visible_output(result)),
        "error": _error_to_json(result.error),
        "reason": result.reason,
        "started_ms": result.started_ms,
        "history": [*map(_attempt_to_json, result.history)],
        "depends_on": result.depends_on,
        "queued_ms": result.queued_ms,
        "loop_blocked_ms": result.loop_blocked_ms,
        "abandoned": result.abandoned,
        "on_purpose": result.on_purpose,
        "items": None if items is None else [*map(_result_to_json, items)],
        "reused": result.reused,
        "rerun_reason": result.rerun_reason,
        "secret": result.secret,
    }


def _attempt_to_json(attempt: Attempt) -> dict[str, object]:
    return {
        "number": attempt.number,
        "started_ms": attempt.started_ms,
        "duration_ms": attempt.duration_ms,
        "error": _error_to_json(attempt.error),
        "queued_ms": attempt.queued_ms,
    }


def _output_to_json(output: object) -> dict[str, object]:
    if type(output) is RestoredOutput:  # written as its text again, so that no trip adds to it
        return {"output_repr": output.text}
    if _is_plain_json(output):
        return {"output": output}
    return {"output_repr": safe_text(repr, output)}


def _error_to_json(error: BaseException | None) -> dict[str, str] | None:
    if error is None:
        return None
    kept = to_restored_error(error)
    return {"type": kept.type_name, "message": kept.message, "traceback": kept.traceback}


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


# In.

_Kind: TypeAlias = tuple[str, type, *tuple[type, ...]]
"""What a value must be: in words, and as the types that are."""

_TEXT: _Kind = "text", str
_TEXT_OR_NULL: _Kind = "text or null", str, type(None)
_WHOLE: _Kind = "a whole number", int
_NUMBER: _Kind = "a number", float, int
_NUMBER_OR_NULL: _Kind = "a number or null", float, int, type(None)
_FLAG: _Kind = "true or false", bool
_LIST: _Kind = "a list", list
_LIST_OR_NULL: _Kind = "a list or null", list, type(None)
_OBJECT: _Kind = "an object", dict
_OBJECT_OR_NULL: _Kind = "an object or null", dict, type(None)

_OUTCOMES = ("passed", "failed", "interrupted", "running")


class _Fields:
    """The fields of a JSON object, checked as they are read.

    ``where`` is the object's own place in the document, with a dot behind it: ``results[3].``.
    """

    def __init__(self, document: dict[str, Any], where: str = "") -> None:
        self._document = document
        self._where = where

    def __contains__(self, name: str) -> bool:
        return name in self._document

    def read(self, name: str, kind: _Kind | None = None) -> Any:
        """Return what stands there; without a kind, anything may."""
        if name not in self._document:
            raise _refusal(self.place(name), "is missing")
        value = self._document[name]
        return value if kind is None else _checked(value, kind, self.place(name))

    def place(self, name: str) -> str:
        return self._where + name

    def each(self, name: str, kind: _Kind) -> list[tuple[Any, str]]:
        """Return the elements of a list, each with its place."""
        values, place = self.read(name, _LIST), self.place(name)
        return [
            (_checked(value, kind, f"{place}[{at}]"), f"{place}[{at}].")
            for at, value in enumerate(values)
        ]


def _checked(value: Any, kind: _Kind, place: str) -> Any:
    words, *types = kind
    if type(value) not in types:
        raise _refusal(place, f"must be {words}, not {reprlib.repr(value)}")
    # Not only what Python's JSON calls NaN and Infinity: an integer may be above all floats.
    if float in types and value is not None and not abs(value) <= sys.float_info.max:
        raise _refusal(place, f"must be finite, not {reprlib.repr(value)}")
    return value


def _refusal(place: str, problem: str) -> ValueError:
    return ValueError(f"not the JSON of a report: {place} {problem}")


def _report_from_json(document: object) -> tuple[dict[str, Any], list[StepResult]]:
    report = _Fields(_checked(document, _OBJECT, "it"))
    figures = {
        "run_id": report.read("run_id", _TEXT),
        "wall_time": report.read("wall_time", _NUMBER),
        "total_duration_ms": report.read("total_duration_ms", _NUMBER),
        "stop_reason": report.read("stop_reason", _TEXT_OR_NULL),
        "pipeline": report.read("pipeline", _TEXT),
        "outcome": _one_of(_OUTCOMES, report, "outcome"),
        "inputs": _inputs_from_json(report),
    }
    return figures, _results_from_json(report, "results")


def _results_from_json(owner: _Fields, name: str) -> list[StepResult]:
    results = [
        _result_from_json(_Fields(document, where)) for document, where in owner.each(name, _OBJECT)
    ]
    for step_name, count in Counter(result.step_name for result in results).items():
        if count > 1:
            raise _refusal(owner.place(name), f"has {count} of step {step_name!r}")
    return results


def _result_from_json(result: _Fields) -> StepResult:
    is_mapped = result.read("items", _LIST_OR_NULL) is not None
    restored = StepResult(
        step_name=result.read("step_name", _TEXT),
        status=StepStatus(_one_of([*StepStatus], result, "status")),
        attempts=result.read("attempts", _WHOLE),
        duration_ms=result.read("duration_ms", _NUMBER),
        output=_output_from_json(result),
        error=_error_from_json(result),
        reason=result.read("reason", _TEXT_OR_NULL),
        started_ms=result.read("started_ms", _NUMBER_OR_NULL),
        recorded=tuple(
            _attempt_from_json(_Fields(document, where))
            for document, where in result.each("history", _OBJECT)
        ),
        depends_on=tuple(name for name, _ in result.each("depends_on", _TEXT)),
        queued_ms=result.read("queued_ms", _NUMBER),
        loop_blocked_ms=result.read("loop_blocked_ms", _NUMBER),
        abandoned=result.read("abandoned", _FLAG),
        on_purpose=result.read("on_purpose", _FLAG),
        items=tuple(_results_from_json(result, "items")) if is_mapped else None,
        reused=result.read("reused", _FLAG),
        rerun_reason=result.read("rerun_reason", _TEXT_OR_NULL),
        secret=result.read("secret", _FLAG),
    )
    if restored.status is StepStatus.FAILED and restored.error is None:
        raise _refusal(result.place("error"), "must not be null, because the step has failed")
    # A single attempt is not recorded when nothing of it is not said in the result.
    bare = replace(restored, recorded=None)
    return bare if bare.attempts == 1 and bare.history == restored.recorded else restored


def _attempt_from_json(attempt: _Fields) -> Attempt:
    return Attempt(
        number=attempt.read("number", _WHOLE),
        started_ms=attempt.read("started_ms", _NUMBER),
        duration_ms=attempt.read("duration_ms", _NUMBER),
        error=_error_from_json(attempt),
        queued_ms=attempt.read("queued_ms", _NUMBER),
    )


def _inputs_from_json(report: _Fields) -> dict[str, object]:
    inputs, place = report.read("inputs", _OBJECT), report.place("inputs.")
    return {
        name: _output_from_json(_Fields(_checked(value, _OBJECT, place + name), f"{place}{name}."))
        for name, value in inputs.items()
    }


def _one_of(words: Iterable[str], owner: _Fields, name: str) -> str:
    word: str = owner.read(name, _TEXT)
    if word not in words:
        problem = f"must be one of {', '.join(words)}, not {reprlib.repr(word)}"
        raise _refusal(owner.place(name), problem)
    return word


def _output_from_json(result: _Fields) -> object:
    if "output_repr" in result:
        return RestoredOutput(result.read("output_repr", _TEXT))
    return result.read("output")


def _error_from_json(owner: _Fields) -> RestoredError | None:
    document = owner.read("error", _OBJECT_OR_NULL)
    if document is None:
        return None
    error = _Fields(document, owner.place("error."))
    return RestoredError(
        error.read("type", _TEXT), error.read("message", _TEXT), error.read("traceback", _TEXT)
    )
