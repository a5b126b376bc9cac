"""Reports as JSON text, and back: a table for each kind of object names its fields.

A table says of each field how its value is written, how it is read, and what it must be. The
results are what people read; the events beside them are those that led to them.
"""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from asyncflow._core.history.event_rows import events_from, rows_of
from asyncflow._core.history.json_values import (
    ATTRIBUTES,
    ERROR,
    FLAG,
    INPUTS,
    LIST,
    NUMBER,
    NUMBER_OR_NULL,
    OBJECT,
    TEXT,
    TEXT_OR_NULL,
    WHOLE,
    WHOLE_OR_NULL,
    Kind,
    Table,
    from_json,
    list_of,
    object_of,
    one_of,
    or_null,
    plain,
    refusal,
    schema_of,
    to_json,
)
from asyncflow._core.history.report import RunReport, with_events
from asyncflow._core.history.results import (
    Attempt,
    RunStatus,
    Segment,
    SignalWait,
    StepResult,
    StepStatus,
    with_history,
)
from asyncflow._core.record import replace

_VERSION = 1


def dump(report: RunReport, indent: int | None) -> str:
    """Return the JSON text of a report."""
    return json.dumps(_document_of(report), indent=indent, allow_nan=False)


def load(cls: type[RunReport], text: str | bytes) -> RunReport:
    """Return the report that `dump` wrote.

    Raises:
        ValueError: The text is not JSON, or not that of a report.
    """
    try:
        return _report_of(cls, OBJECT.read(json.loads(text), "it"))
    except RecursionError:
        raise refusal("it", "is nested too deep") from None


def _document_of(report: RunReport) -> dict[str, object]:
    figures = to_json(_REPORT, report) | {"span_ms": report.span_ms}
    figures |= {"critical_path": report.critical_path}
    return {"version": _VERSION, **figures, "events": rows_of(report)}


def _report_of(cls: type[RunReport], document: dict[str, Any]) -> RunReport:
    version = document.get("version")
    if version != _VERSION:
        problem = (
            f"is {reprlib.repr(version)}, and this version of asyncflow reads {_VERSION} alone"
        )
        raise refusal("version", problem)
    values = from_json(_REPORT, document)
    _check_segments(values["results"], max(1, len(values["segments"])))
    report = cls(**values)
    if "events" not in document:
        raise refusal("events", "is missing")
    if document["events"] is None:
        return report
    return with_events(report, [*events_from(document["events"], report)])


def _check_segments(results: Iterable[StepResult], count: int) -> None:
    for result in results:
        for attempt in result.history:
            if not 1 <= attempt.segment <= count:
                problem = f"has an attempt of segment {attempt.segment}, and there are {count}"
                raise refusal(f"the history of {result.step_name!r}", problem)
        _check_segments(result.items or (), count)


def pydantic_schema(cls: Any) -> Any:
    """Return how pydantic reads and writes a report or a result: as `dump` and `load` do."""
    from pydantic_core import core_schema  # pydantic asks for this, so it is there

    def read(value: object) -> object:
        if isinstance(value, cls):
            return value
        document = OBJECT.read(value, "it")
        if issubclass(cls, StepResult):
            return _result_of(from_json(_RESULT, document), "")
        return _report_of(cls, document)

    def write(value: Any) -> object:
        return to_json(_RESULT, value) if issubclass(cls, StepResult) else _document_of(value)

    serialization = core_schema.plain_serializer_function_ser_schema(write, when_used="json")
    return core_schema.no_info_plain_validator_function(read, serialization=serialization)


def json_schema(cls: type) -> dict[str, Any]:
    """Return the JSON schema of a report or a result."""
    if issubclass(cls, StepResult):
        return {"title": cls.__name__, **schema_of(_RESULT)}
    derived = {"span_ms": NUMBER, "critical_path": list_of(TEXT)}
    table = {"version": WHOLE, **_REPORT, **derived, "events": _ROWS}
    return {"title": cls.__name__, **schema_of(table)}


_ATTEMPT: Table = {
    "number": WHOLE,
    "started_ms": NUMBER,
    "duration_ms": NUMBER,
    "error": ERROR,
    "queued_ms": NUMBER,
    "segment": WHOLE,
    "cancelled": FLAG,
    "item": WHOLE_OR_NULL,
    "engine": TEXT,
    "worker": TEXT,
    "retry_in_ms": NUMBER_OR_NULL,
}


_WAIT: Table = {
    "started_ms": NUMBER,
    "ended_ms": NUMBER_OR_NULL,
    "lasted_ms": NUMBER_OR_NULL,
}


def _result_of(fields: dict[str, Any], where: str) -> StepResult:
    status, attempts = StepStatus(fields.pop("status")), fields.pop("history")
    error, fell_back = fields["error"], fields.pop("fell_back")
    attempts = attempts if error is None else _with_error(attempts, error)
    result = with_history(attempts, status=status, **fields)
    if status is StepStatus.FAILED and result.error is None:
        raise refusal(where + "error", "must not be null, because the step has failed")
    for at, item in enumerate(result.items or ()):
        if item.items is not None:
            raise refusal(f"{where}items[{at}].items", "must be null: an item has no items")
    _check_figures(result, fell_back, where)
    return result


def _with_error(attempts: tuple[Attempt, ...], error: BaseException) -> tuple[Attempt, ...]:
    """Give the last attempt the error itself that its step has: views show that once.

    One that was cancelled may have it from the attempt before.
    """
    ended = list(attempts)
    for at in reversed(range(len(ended))):
        each = ended[at]
        if each.error is None or each.error.args != error.args:
            break
        ended[at] = replace(each, error=error)
        if not each.cancelled:
            break
    return tuple(ended)


def _check_figures(result: StepResult, fell_back: bool, where: str) -> None:
    """Refuse a result that says in two places what can't both be true."""
    if fell_back is not result.fell_back:
        problem = f"must be {json.dumps(result.fell_back)}, as the status and the error say"
        raise refusal(where + "fell_back", problem)
    left_out = result.left_out
    if left_out < 0 or (left_out and result.items is None):
        problem = f"must be 0, not {left_out}" if result.items is None else "must not be negative"
        raise refusal(where + "left_out", problem)
    least = len(result.history) + left_out + sum([item.attempts for item in result.items or ()])
    if result.attempts < least:
        problem = f"must be at least {least}, the number of those that are told or counted"
        raise refusal(where + "attempts", problem)


def _results_from_json(value: Any, place: str) -> tuple[StepResult, ...]:
    results: tuple[StepResult, ...] = list_of(object_of(_RESULT, _result_of)).read(value, place)
    for step_name, count in Counter(result.step_name for result in results).items():
        if count > 1:
            raise refusal(place, f"has {count} of step {step_name!r}")
    return results


_RESULTS = Kind(
    lambda results: [to_json(_RESULT, each) for each in results],
    _results_from_json,
    {"type": "array", "items": {"type": "object"}},
)

_RESULT: Table = {
    "step_name": TEXT,
    "status": one_of(StepStatus),
    "attempts": WHOLE,
    "duration_ms": NUMBER,
    "output": None,
    "error": ERROR,
    "fell_back": FLAG,
    "reason": TEXT_OR_NULL,
    "started_ms": NUMBER_OR_NULL,
    "history": list_of(object_of(_ATTEMPT, lambda fields, _: Attempt(**fields))),
    "depends_on": list_of(TEXT),
    "queued_ms": NUMBER,
    "loop_blocked_ms": NUMBER,
    "abandoned": FLAG,
    "by_condition": FLAG,
    "items": or_null(plain("a list or null", list, type(None)), _RESULTS),
    "reused": FLAG,
    "rerun_reason": TEXT_OR_NULL,
    "secret": FLAG,
    "origin": TEXT,
    "engine": TEXT,
    "worker": TEXT,
    "item": WHOLE_OR_NULL,
    "left_out": WHOLE,
    "waiting_since": NUMBER_OR_NULL,
    "waiting_until": NUMBER_OR_NULL,
    "max_retries": WHOLE_OR_NULL,
    "wait": or_null(
        plain("an object or null", dict, type(None)),
        object_of(_WAIT, lambda fields, _: SignalWait(**fields)),
    ),
    "item_value": TEXT_OR_NULL,
}


_SEGMENT: Table = {
    "at_ms": NUMBER,
    "wall_time": NUMBER,
    "ended_ms": NUMBER_OR_NULL,
    "process": TEXT,
}


_WORD = one_of(RunStatus)
_RUN_STATUS = _WORD._replace(read=lambda value, place: RunStatus(_WORD.read(value, place)))

_REPORT: Table = {
    "run_id": TEXT,
    "wall_time": NUMBER,
    "total_duration_ms": NUMBER,
    "stop_reason": TEXT_OR_NULL,
    "pipeline": TEXT,
    "status": _RUN_STATUS,
    "inputs": INPUTS,
    "results": _RESULTS._replace(schema={"type": "array", "items": schema_of(_RESULT)}),
    "segments": list_of(object_of(_SEGMENT, lambda fields, _: Segment(**fields))),
    "parent": TEXT,
    "parent_step": TEXT,
    "rerun_of": TEXT,
    "label": TEXT,
    "attributes": ATTRIBUTES,
}

_ROWS = or_null(
    LIST, Kind(lambda rows: rows, LIST.read, {"type": "array", "items": {"type": "object"}})
)
