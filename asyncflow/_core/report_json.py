"""Reports as JSON text, and back: a table for each kind of object names its fields.

A table says of each field how its value is written, how it is read, and what it must be.
"""

from __future__ import annotations

import json
import reprlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from asyncflow._core.errors import RestoredError
from asyncflow._core.record import replace
from asyncflow._core.results import (
    Attempt,
    RestoredOutput,
    RunStatus,
    Segment,
    StepResult,
    StepStatus,
    to_restored_error,
    visible_output,
    without_repetition,
)
from asyncflow._core.value_size import MOST_BYTES, extent, safe_repr

if TYPE_CHECKING:
    from asyncflow._core.report import RunReport

_VERSION = 1


def dump(report: RunReport, indent: int | None) -> str:
    """Return the JSON text of a report."""
    return json.dumps(_document_of(report), indent=indent, allow_nan=False)


def load(text: str | bytes) -> dict[str, Any]:
    """Return the arguments that make the report which `dump` wrote.

    Raises:
        ValueError: The text is not JSON, or not that of a report.
    """
    try:
        return _arguments_of(_OBJECT.read(json.loads(text), "it"))
    except RecursionError:
        raise _refusal("it", "is nested too deep") from None


def _document_of(report: RunReport) -> dict[str, object]:
    return {"version": _VERSION, **_to_json(_REPORT, report), "span_ms": report.span_ms}


def _arguments_of(document: dict[str, Any]) -> dict[str, Any]:
    version = document.get("version")
    if version != _VERSION:
        problem = (
            f"is {reprlib.repr(version)}, and this version of asyncflow reads {_VERSION} alone"
        )
        raise _refusal("version", problem)
    values = _from_json(_REPORT, document)
    _check_segments(values["results"], max(1, len(values["segments"])))
    return values


def _check_segments(results: Iterable[StepResult], count: int) -> None:
    for result in results:
        for attempt in result.history:
            if not 1 <= attempt.segment <= count:
                problem = f"has an attempt of segment {attempt.segment}, and there are {count}"
                raise _refusal(f"the history of {result.step_name!r}", problem)
        _check_segments(result.items or (), count)


def pydantic_schema(cls: Any) -> Any:
    """Return how pydantic reads and writes a report or a result: as `dump` and `load` do."""
    from pydantic_core import core_schema  # pydantic asks for this, so it is there

    def read(value: object) -> object:
        if isinstance(value, cls):
            return value
        document = _OBJECT.read(value, "it")
        if issubclass(cls, StepResult):
            return _result_of(_from_json(_RESULT, document), "")
        return cls(**_arguments_of(document))

    def write(value: Any) -> object:
        return _to_json(_RESULT, value) if issubclass(cls, StepResult) else _document_of(value)

    serialization = core_schema.plain_serializer_function_ser_schema(write, when_used="json")
    return core_schema.no_info_plain_validator_function(read, serialization=serialization)


def json_schema(cls: type) -> dict[str, Any]:
    """Return the JSON schema of a report or a result."""
    if issubclass(cls, StepResult):
        return {"title": cls.__name__, **_schema_of(_RESULT)}
    table = {"version": _WHOLE, **_REPORT, "span_ms": _NUMBER}
    return {"title": cls.__name__, **_schema_of(table)}


class _Kind(NamedTuple):
    """How a value is written, and how it is read, given its place in the document."""

    write: Callable[[Any], object]
    read: Callable[[Any, str], Any]
    schema: Mapping[str, Any]
    """Its JSON schema."""


_Table: TypeAlias = Mapping[str, _Kind | None]
"""The fields of an object; ``None`` stands for an output, which has one of two names."""


def _to_json(table: _Table, data: Any) -> dict[str, object]:
    document: dict[str, object] = {}
    for name, kind in table.items():
        if kind is None:
            document |= _output_to_json(visible_output(data))
        else:
            document[name] = kind.write(getattr(data, name))
    return document


def _from_json(table: _Table, document: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Return the fields of an object; ``where`` is its place with a dot: ``results[3].``."""
    values = {}
    for name, kind in table.items():
        if kind is None:
            values[name] = _output_from_json(document, where)
        elif name in document:
            values[name] = kind.read(document[name], where + name)
        else:
            raise _refusal(where + name, "is missing")
    return values


def _schema_of(table: _Table) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for name, kind in table.items():
        if kind is None:
            properties |= {name: {}, f"{name}_repr": {"type": "string"}}
        else:
            properties[name] = kind.schema
    required = [name for name, kind in table.items() if kind is not None]
    return {"type": "object", "properties": properties, "required": required}


def _refusal(place: str, problem: str) -> ValueError:
    return ValueError(f"not the JSON of a report: {place} {problem}")


def _output_to_json(output: object) -> dict[str, object]:
    if type(output) is RestoredOutput:  # written as its text again, so that no trip adds to it
        return {"output_repr": output.text}
    if extent(output, MOST_BYTES) == "plain" and _is_writable(output):
        return {"output": output}
    return {"output_repr": safe_repr(output)}


def _output_from_json(document: dict[str, Any], where: str) -> object:
    if "output_repr" in document:
        return RestoredOutput(_TEXT.read(document["output_repr"], where + "output_repr"))
    if "output" not in document:
        raise _refusal(where + "output", "is missing")
    return document["output"]


def _is_writable(value: Any, levels: int = 100) -> bool:
    """Whether Python writes a plain value as JSON.

    A value that is nested deeper than that many levels is written as its ``repr``.
    """
    kind = type(value)
    if kind is dict:
        return _is_writable([*value.values()], levels)
    if kind is list:
        return levels > 0 and all(map(_is_writable, value, repeat(levels - 1)))
    # Python writes no much longer integers in decimal.
    return kind is not int or value.bit_length() <= 2_000


def _plain(words: str, *types: type) -> _Kind:
    """Return the kind of a value that JSON has itself: what it must be, in words and as types."""

    def read(value: Any, place: str) -> Any:
        if type(value) not in types:
            raise _refusal(place, f"must be {words}, not {reprlib.repr(value)}")
        # Not only what Python's JSON calls NaN and Infinity: an integer may be above all floats.
        if float in types and value is not None and not abs(value) <= sys.float_info.max:
            raise _refusal(place, f"must be finite, not {reprlib.repr(value)}")
        return value

    # Not a list as the "type": FastAPI before 0.118 and OpenAPI 3.0 refuse it.
    either = [{"type": _SCHEMA_TYPES[each]} for each in types]
    schema = either[0] if len(either) == 1 else {"anyOf": either}
    return _Kind(lambda value: value, read, schema)


_SCHEMA_TYPES = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "array",
    dict: "object",
    type(None): "null",
}

_TEXT = _plain("text", str)
_TEXT_OR_NULL = _plain("text or null", str, type(None))
_WHOLE = _plain("a whole number", int)
_WHOLE_OR_NULL = _plain("a whole number or null", int, type(None))
_NUMBER = _plain("a number", float, int)
_NUMBER_OR_NULL = _plain("a number or null", float, int, type(None))
_FLAG = _plain("true or false", bool)
_LIST = _plain("a list", list)
_OBJECT = _plain("an object", dict)


def _one_of(words: Iterable[str]) -> _Kind:
    known = [*words]

    def read(value: Any, place: str) -> Any:
        if _TEXT.read(value, place) not in known:
            problem = f"must be one of {', '.join(known)}, not {reprlib.repr(value)}"
            raise _refusal(place, problem)
        return value

    return _Kind(str, read, {"enum": known})


def _list_of(kind: _Kind) -> _Kind:
    def read(values: Any, place: str) -> tuple[Any, ...]:
        values = _LIST.read(values, place)
        return tuple(kind.read(value, f"{place}[{at}]") for at, value in enumerate(values))

    schema = {"type": "array", "items": kind.schema}
    return _Kind(lambda values: [*map(kind.write, values)], read, schema)


def _object(table: _Table, make: Callable[[dict[str, Any], str], Any]) -> _Kind:
    """Return the kind of an object that is made of the fields of a table, and its place."""

    def read(value: Any, place: str) -> Any:
        where = place + "."
        return make(_from_json(table, _OBJECT.read(value, place), where), where)

    return _Kind(lambda data: _to_json(table, data), read, _schema_of(table))


def _or_null(checked: _Kind, kind: _Kind) -> _Kind:
    def read(value: Any, place: str) -> Any:
        return None if checked.read(value, place) is None else kind.read(value, place)

    schema = {"anyOf": [kind.schema, {"type": "null"}]}
    return _Kind(lambda value: None if value is None else kind.write(value), read, schema)


def _error_to_json(error: BaseException) -> dict[str, str]:
    left = to_restored_error(error)
    return {"type": left.type_name, "message": left.message, "traceback": left.traceback}


_ERROR_FIELDS: _Table = dict.fromkeys(("type", "message", "traceback"), _TEXT)
_ERROR_OBJECT = _object(_ERROR_FIELDS, lambda fields, _: RestoredError(*fields.values()))
_ERROR = _or_null(
    _plain("an object or null", dict, type(None)), _ERROR_OBJECT._replace(write=_error_to_json)
)

_ATTEMPT: _Table = {
    "number": _WHOLE,
    "started_ms": _NUMBER,
    "duration_ms": _NUMBER,
    "error": _ERROR,
    "queued_ms": _NUMBER,
    "segment": _WHOLE,
    "cancelled": _FLAG,
    "item": _WHOLE_OR_NULL,
    "engine": _TEXT,
    "worker": _TEXT,
    "retry_in_ms": _NUMBER_OR_NULL,
}


def _result_of(fields: dict[str, Any], where: str) -> StepResult:
    status, attempts = StepStatus(fields.pop("status")), fields.pop("history")
    error, fell_back = fields["error"], fields.pop("fell_back")
    if error and attempts and attempts[-1].error and attempts[-1].error.args == error.args:
        # They are one error, which views show once.
        attempts = (*attempts[:-1], replace(attempts[-1], error=error))
    result = StepResult(status=status, recorded=attempts, **fields)
    if status is StepStatus.FAILED and result.error is None:
        raise _refusal(where + "error", "must not be null, because the step has failed")
    for at, item in enumerate(result.items or ()):
        if item.items is not None:
            raise _refusal(f"{where}items[{at}].items", "must be null: an item has no items")
    _check_figures(result, fell_back, where)
    return without_repetition(result)


def _check_figures(result: StepResult, fell_back: bool, where: str) -> None:
    """Refuse a result that says in two places what can't both be true."""
    if fell_back is not result.fell_back:
        problem = f"must be {json.dumps(result.fell_back)}, as the status and the error say"
        raise _refusal(where + "fell_back", problem)
    left_out = result.left_out
    if left_out < 0 or (left_out and result.items is None):
        problem = f"must be 0, not {left_out}" if result.items is None else "must not be negative"
        raise _refusal(where + "left_out", problem)
    least = len(result.history) + left_out + sum([item.attempts for item in result.items or ()])
    if result.attempts < least:
        problem = f"must be at least {least}, the number of those that are told or counted"
        raise _refusal(where + "attempts", problem)


def _results_from_json(value: Any, place: str) -> tuple[StepResult, ...]:
    results: tuple[StepResult, ...] = _list_of(_object(_RESULT, _result_of)).read(value, place)
    for step_name, count in Counter(result.step_name for result in results).items():
        if count > 1:
            raise _refusal(place, f"has {count} of step {step_name!r}")
    return results


_RESULTS = _Kind(
    lambda results: [_to_json(_RESULT, each) for each in results],
    _results_from_json,
    {"type": "array", "items": {"type": "object"}},
)

_RESULT: _Table = {
    "step_name": _TEXT,
    "status": _one_of(StepStatus),
    "attempts": _WHOLE,
    "duration_ms": _NUMBER,
    "output": None,
    "error": _ERROR,
    "fell_back": _FLAG,
    "reason": _TEXT_OR_NULL,
    "started_ms": _NUMBER_OR_NULL,
    "history": _list_of(_object(_ATTEMPT, lambda fields, _: Attempt(**fields))),
    "depends_on": _list_of(_TEXT),
    "queued_ms": _NUMBER,
    "loop_blocked_ms": _NUMBER,
    "abandoned": _FLAG,
    "by_condition": _FLAG,
    "items": _or_null(_plain("a list or null", list, type(None)), _RESULTS),
    "reused": _FLAG,
    "rerun_reason": _TEXT_OR_NULL,
    "secret": _FLAG,
    "origin": _TEXT,
    "engine": _TEXT,
    "worker": _TEXT,
    "item": _WHOLE_OR_NULL,
    "left_out": _WHOLE,
    "waiting_since": _NUMBER_OR_NULL,
    "waiting_until": _NUMBER_OR_NULL,
    "max_retries": _WHOLE_OR_NULL,
}


_SEGMENT: _Table = {
    "at_ms": _NUMBER,
    "wall_time": _NUMBER,
    "ended_ms": _NUMBER_OR_NULL,
    "process": _TEXT,
}


def _inputs_to_json(inputs: Mapping[str, object]) -> dict[str, object]:
    return {name: _output_to_json(value) for name, value in inputs.items()}


def _inputs_from_json(value: Any, place: str) -> dict[str, object]:
    return {
        name: _output_from_json(_OBJECT.read(each, f"{place}.{name}"), f"{place}.{name}.")
        for name, each in _OBJECT.read(value, place).items()
    }


_WORD = _one_of(each for each in RunStatus if each is not RunStatus.ORPHANED)
_RUN_STATUS = _WORD._replace(read=lambda value, place: RunStatus(_WORD.read(value, place)))

_REPORT: _Table = {
    "run_id": _TEXT,
    "wall_time": _NUMBER,
    "total_duration_ms": _NUMBER,
    "stop_reason": _TEXT_OR_NULL,
    "pipeline": _TEXT,
    "status": _RUN_STATUS,
    "inputs": _Kind(_inputs_to_json, _inputs_from_json, {"type": "object"}),
    "results": _RESULTS._replace(schema={"type": "array", "items": _schema_of(_RESULT)}),
    "segments": _list_of(_object(_SEGMENT, lambda fields, _: Segment(**fields))),
    "parent": _TEXT,
    "parent_step": _TEXT,
    "rerun_of": _TEXT,
    "label": _TEXT,
}
