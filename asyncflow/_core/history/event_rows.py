"""The events of a report in its JSON: an object for each, without what the report says anyway.

Rules:

1. A field that has its default is not written, and neither is what the report says of the run, nor
   an output or an error that the result of the step or the item has. All else is: of an earlier
   segment, each may differ.
2. Which fields there are, and of what kind, follows from the types that an event declares.
3. Events that do not lead to the results beside them are refused.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from asyncflow._core.history.events_of_report import facts_of
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
    list_of,
    one_of,
    output_from_json,
    output_to_json,
    refusal,
)
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.results import (
    RUN_FACTS,
    Attempt,
    RunStatus,
    StepResult,
    StepStatus,
    visible_output,
)
from asyncflow._core.record import REQUIRED, defaults_of
from asyncflow.events import AttemptFailed, Event, NoteEvent, RunResumed, RunStarted

if TYPE_CHECKING:
    from asyncflow._core.history.report import RunReport

_Row: TypeAlias = dict[str, Any]
_Known: TypeAlias = Mapping[tuple[str, int | None], StepResult]
"""The results of steps and items."""
_Facts: TypeAlias = dict[str, Any]
"""What a report says of its run, by the names of the fields of its first event."""


def rows_of(report: RunReport) -> list[_Row] | None:
    """Return the events of a report as JSON has them; ``None`` if its results imply them."""
    history = report._history
    if history is None or not history.is_whole:
        return None
    facts, known = facts_of(report), _known(report.results)
    rows, segment = [], 1
    for event in history.events():
        segment += isinstance(event, RunResumed)
        rows.append(_row(event, facts, known, segment))
    return rows


def events_from(rows: Any, report: RunReport) -> list[Event]:
    """Return the events of a report that `rows_of` wrote.

    Raises:
        ValueError: They are not the events of such a report.
    """
    facts, known = facts_of(report), _known(report.results)
    events: list[Event] = []
    segment = 1
    for at, each in enumerate(LIST.read(rows, "events")):
        place = f"events[{at}]"
        row = OBJECT.read(each, place)
        segment += row.get("kind") == RunResumed.__name__
        events.append(_event(row, f"{place}.", facts, known, segment))
    try:
        run = StoredRun(events)
        problem = _difference(run, report)
    except Exception as error:  # anything at all may happen in an order that can't be
        problem = f"they can't follow each other: {error}"
    if problem:
        raise refusal("events", f"must lead to the results: {problem}")
    return events


def _known(results: Iterable[StepResult]) -> _Known:
    known: dict[tuple[str, int | None], StepResult] = {}
    for result in results:
        known[result.step_name, None] = result
        for item in result.items or ():
            known[result.step_name, item.item] = item
    return known


# --- an event ------------------------------------------------------------------------------------


def _row(event: Event, facts: _Facts, known: _Known, segment: int) -> _Row:
    cls = type(event)
    row: _Row = {"kind": cls.__name__}
    for name, default, kind in _FIELDS[cls]:
        value = getattr(event, name)
        is_of_report = default is _OF_REPORT
        if not (_is_same_fact(name, value, facts[name]) if is_of_report else value == default):
            row[name] = kind.write(value)
    if cls not in _VALUES:
        return row
    node = known.get((event.step, event.item))  # type: ignore[arg-type]  # as above
    if "output" in _VALUES[cls]:
        output = visible_output(event)  # type: ignore[arg-type]
        if not _is_same_output(output, None if node is None else visible_output(node)):
            row |= output_to_json(output)
    error = event.error  # type: ignore[union-attr]
    if not _is_same_error(error, _error_of(cls, event.attempt, segment, node)):
        row["error"] = ERROR.write(error)
    return row


def _event(row: _Row, where: str, facts: _Facts, known: _Known, segment: int) -> Event:
    cls = _KINDS.get(TEXT.read(row.get("kind"), where + "kind"))
    if cls is None:
        raise refusal(where + "kind", f"is that of no event: {row['kind']!r}")
    values: dict[str, Any] = {}
    for name, default, kind in _FIELDS[cls]:
        if name in row:
            value = row[name]
            values[name] = value if type(value) in kind.as_is else kind.read(value, where + name)
        elif default is _OF_REPORT:
            values[name] = facts[name]
        elif default is REQUIRED:
            raise refusal(where + name, "is missing")
    if cls in _VALUES:
        node = known.get((values["step"], values.get("item")))
        if "output" in _VALUES[cls]:
            has_own = "output" in row or "output_repr" in row
            of_node = None if node is None else node.output
            values["output"] = output_from_json(row, where) if has_own else of_node
        if "error" in row:
            values["error"] = ERROR.read(row["error"], where + "error")
        else:
            values["error"] = _error_of(cls, values.get("attempt"), segment, node)
    event: Event = cls(**values)
    return event


def _error_of(
    cls: type, attempt: int | None, segment: int, node: StepResult | None
) -> BaseException | None:
    """Return the error that a result has of such an event."""
    if node is None or cls is not AttemptFailed:
        return None if node is None else node.error
    # Each segment counts attempts from 1, and a step that was mapped has those of its items.
    sought = attempt, segment, None
    found = (each for each in node.history if (each.number, each.segment, each.item) == sought)
    return next((each.error for each in found), None)


def _is_same_output(one: object, other: object) -> bool:
    """Whether a reader of the JSON could not tell one output from the other."""
    if one is other:
        return True
    # Plain values are compared by identity alone: 1 is equal to True.
    text = _text_of(one)
    return text is not None and text == _text_of(other)


def _text_of(output: object) -> object:
    """Return the text that JSON has of an output; ``None`` if it holds the output itself."""
    return output_to_json(output).get("output_repr")


def _is_same_fact(name: str, value: Any, fact: Any) -> bool:
    """Whether a fact is that of the report, and so is its order."""
    if isinstance(fact, Mapping) and [*value] != [*fact]:
        return False
    if name == "inputs":  # they may refuse to be compared
        return all(_is_same_output(each, fact[name]) for name, each in value.items())
    return bool(value == fact)


def _is_same_error(one: BaseException | None, other: BaseException | None) -> bool:
    """Whether a reader of the JSON could not tell one error from the other."""
    return one is other or bool(ERROR.write(one) == ERROR.write(other))


# --- the fields of events ------------------------------------------------------------------------


def _mapping_of(kind: Kind) -> Kind:
    def read(value: Any, place: str) -> dict[str, Any]:
        return {
            name: kind.read(each, f"{place}.{name}")
            for name, each in OBJECT.read(value, place).items()
        }

    schema = {"type": "object", "additionalProperties": kind.schema}
    return Kind(
        lambda value: {name: kind.write(each) for name, each in value.items()}, read, schema
    )


def _member_of(enumeration: type[RunStatus] | type[StepStatus]) -> Kind:
    words = one_of(enumeration)
    return words._replace(read=lambda value, place: enumeration(words.read(value, place)))


_SCHEMA = Kind(lambda value: output_to_json(value).get("output", {}), lambda value, _: value, {})
"""The JSON schema of a signal; an empty one if it is not known, or JSON can't hold it."""

_KINDS_OF_TYPES = {
    "str": TEXT,
    "str | None": TEXT_OR_NULL,
    "int": WHOLE,
    "int | None": WHOLE_OR_NULL,
    "float": NUMBER,
    "float | None": NUMBER_OR_NULL,
    "bool": FLAG,
    "tuple[str, ...]": list_of(TEXT),
    "Mapping[str, str]": _mapping_of(TEXT),
    "Mapping[str, int]": _mapping_of(WHOLE),
    "Mapping[str, tuple[str, ...]]": _mapping_of(list_of(TEXT)),
    "Mapping[str, float]": _mapping_of(NUMBER),
    "Mapping[str, tuple[str, str]]": _mapping_of(list_of(TEXT)),
    "Mapping[str, Any]": _mapping_of(_SCHEMA),
    "RunStatus": _member_of(RunStatus),
    "StepStatus": _member_of(StepStatus),
    "InterruptionCause | None": TEXT_OR_NULL,
}

_KINDS_BY_NAME = {"inputs": INPUTS, "attributes": ATTRIBUTES}

_OF_REPORT: Any = object()
"""Stands for the default of a field that has what the report says."""
_SAID_BY_REPORT = {
    RunStarted: frozenset(
        {"run_id", "wall_time", "dependencies", "pipeline", "inputs", "max_retries", *RUN_FACTS}
    ),
    RunResumed: frozenset({"run_id", "dependencies", "pipeline", "max_retries", "attributes"}),
}


def _fields_of(cls: Any) -> tuple[tuple[str, Any, Kind], ...]:
    """Return the fields that a row has, each with its default and its kind."""
    found = []
    for name, default in defaults_of(cls).items():
        if name in ("output", "error"):
            continue
        if name in _SAID_BY_REPORT.get(cls, ()):
            default = _OF_REPORT
        kind = _KINDS_BY_NAME.get(name) or _KINDS_OF_TYPES[cls.__annotations__[name]]
        found.append((name, default, kind))
    return tuple(found)


_CLASSES = [cls for cls in get_args(Event) if cls not in get_args(NoteEvent)]
"""What a run does, without what its steps say."""
_KINDS: dict[str, Any] = {cls.__name__: cls for cls in _CLASSES}
_FIELDS: dict[Any, tuple[tuple[str, Any, Kind], ...]] = {cls: _fields_of(cls) for cls in _CLASSES}
_VALUES: dict[Any, set[str]] = {
    cls: found for cls in _CLASSES if (found := cls.__annotations__.keys() & {"output", "error"})
}
"""Which of their values a result may have."""


# --- events and results --------------------------------------------------------------------------


def _difference(run: StoredRun, report: RunReport) -> str:
    """Return in what the events of a run differ from the results of its report, if in anything."""
    # No event tells that the process is gone.
    told = RunStatus.RUNNING if report.status is RunStatus.ORPHANED else report.status
    if run.status is not told:
        return f"the run is {run.status}, not {report.status}"
    if run.run_id != report.run_id:
        return f"they are those of run {run.run_id!r}"
    if not math.isclose(run.at_ms, report.total_duration_ms, abs_tol=1e-6):
        return f"the run took {run.at_ms!r} ms, not {report.total_duration_ms!r}"
    if run.stop_reason != report.stop_reason:
        stops = map(reprlib.repr, (run.stop_reason, report.stop_reason))
        return f"the run has stop_reason {', not '.join(stops)}"
    if tuple(run.segments) != report.segments:
        return "the run has other segments"
    if [*run.steps] != [*report]:
        return "the run has other steps"
    for name, result in report.items():
        difference = _differs(run.steps[name].to_result(run.at_ms), result)
        if difference:
            return difference
    return ""


def _differs(led_to: StepResult, result: StepResult) -> str:
    """Return in what a result differs from that to which the events lead, if in anything."""
    if not _is_alike(led_to, result):
        fields = _OF_COUNTED if result.left_out else _OF_RESULTS
        difference = _differing(fields, led_to, result)
        if difference:
            return f"{result.step_name!r} has {difference}"
    items, shown = led_to.items or (), result.items or ()
    if (led_to.items is None) is not (result.items is None) or len(items) != len(shown):
        return f"{result.step_name!r} has other items"
    return next(filter(None, map(_differs, items, shown)), "")


def _is_alike(led_to: StepResult, result: StepResult) -> bool:
    """Whether two results say the same, as most do: asked with few calls, and not of their items.

    Results that say all of their only attempt themselves have the same history if so.
    """
    return bool(
        _figures(led_to) == _figures(result)
        and led_to.recorded is result.recorded is None
        and led_to.error is result.error
        and led_to.output is result.output
    )


def _differing(fields: Iterable[str], led_to: Any, known: Any) -> str:
    for name in fields:
        one, other = getattr(led_to, name), getattr(known, name)
        if name == "output":
            one, other = visible_output(led_to), visible_output(known)
            is_same = one is other or output_to_json(one) == output_to_json(other)
        elif name == "error":
            is_same = _is_same_error(one, other)
        elif name == "history":
            is_same = len(one) == len(other) and not any(
                map(partial(_differing, _OF_ATTEMPTS), one, other)
            )
        elif type(one) is float:
            is_same = math.isclose(one, other, abs_tol=1e-6)
        else:
            is_same = one == other
        if not is_same:
            return f"{name} {reprlib.repr(one)}, not {reprlib.repr(other)}"
    return ""


_OF_ATTEMPTS = tuple(defaults_of(Attempt))
_NOT_COMPARED = ("recorded", "items", "left_out", "item_value")
_OF_RESULTS = (
    *(name for name in defaults_of(StepResult) if name not in _NOT_COMPARED),
    "history",
)
_figures = attrgetter(
    *(name for name in _OF_RESULTS if name not in ("output", "error", "history")), "left_out"
)
_OF_COUNTED = tuple(
    name
    for name in _OF_RESULTS
    if name not in ("attempts", "duration_ms", "started_ms", "queued_ms", "history")
)
"""Those of a mapped step some of whose items are only counted, and left no event."""
