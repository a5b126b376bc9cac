"""Converts events to the rows of a table, and back.

Events come back as they were, errors aside: asyncflow's own come back without their traceback and
cause, others as `RestoredError`. Fields without a column are in `EventRow.payload` as JSON, so
that a person can read them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple, get_args

from asyncflow._core.errors import (
    LONGEST_TEXT,
    RestoredError,
    ResultRefusedError,
    RunCancelledError,
    StepCancelledError,
    StepCrashedError,
    StepTimeoutError,
    cut,
    safe_text,
)
from asyncflow._core.results import REDACTED, Payload, StepStatus, to_restored_error
from asyncflow.events import AttemptStarted, Event, RunStarted, StepSucceeded

__all__ = ["EventRow", "column_of", "event_of", "from_column", "is_storable", "row_of"]


class EventRow(NamedTuple):
    """An event with its run and its position."""

    run_id: str
    position: int
    """Counted from 1."""
    kind: str
    """The name of the event's class."""
    step: str | None
    item: int | None
    attempt: int | None
    at_ms: float
    codec: str | None
    """The codec of the event's output; ``None`` if it has none."""
    payload: str | None
    """The output if its codec is JSON; otherwise the fields without a column, as a JSON object."""
    data: bytes | None
    """The output if its codec is not JSON."""


Details = dict[str, Any]


def row_of(run_id: str, position: int, event: Event) -> EventRow:
    """Return the row of an event. The output of a `StepSucceeded` is a `Payload` or ``None``."""
    kind = type(event).__name__
    # Most events are of these two kinds.
    if isinstance(event, StepSucceeded):
        output = _output_columns(event.output)
    elif isinstance(event, AttemptStarted) and not event.queued_ms:
        output = None, None, None
    else:
        step, details = getattr(event, "step", None), _details(event)
        return EventRow(
            run_id,
            position,
            kind,
            None if step is None else column_of(step),
            getattr(event, "item", None),
            getattr(event, "attempt", None),
            getattr(event, "at_ms", 0.0),
            None,
            _json(details) if details else None,
            None,
        )
    step, item, attempt = column_of(event.step), event.item, event.attempt
    return EventRow(run_id, position, kind, step, item, attempt, event.at_ms, *output)


def event_of(row: Sequence[Any]) -> Event:
    """Return the event of a row, given without its run.

    Raises:
        ValueError: A newer asyncflow, or another program, wrote it.
    """
    _, kind, step, item, attempt, at_ms, codec, payload, data = row
    if kind not in _KINDS:
        raise ValueError(f"there is no event {kind!r}")
    cls = _KINDS[kind]
    values: Details = {}
    if cls is StepSucceeded:
        values["output"] = _output_of(codec, payload, data)
        values["secret"] = values["output"] == REDACTED
    elif payload is not None:
        values = json.loads(payload)
        for name, (_, read) in _CONVERSIONS.items():
            if name in values:
                values[name] = read(values[name])
    if cls is not RunStarted:
        values["at_ms"] = at_ms
    if step is not None:
        values["step"] = from_column(step)
    if attempt is not None:
        values["attempt"] = attempt
    if item is not None:
        values["item"] = item
    try:
        event: Event = cls(**values)
    except TypeError as error:
        raise ValueError(f"it is no {kind}: {error}") from error
    return event


def _details(event: Event) -> Details:
    details = {name: getattr(event, name) for name in _DETAILS[type(event)]}
    for name, (write, _) in _CONVERSIONS.items():
        if name in details:
            details[name] = write(details[name])
    return details


def _output_columns(output: Payload | None) -> tuple[str | None, str | None, bytes | None]:
    if output is None:
        return None, None, None
    if _is_text(output.codec):
        return output.codec, output.data.decode(), None
    return output.codec, None, output.data


def _output_of(codec: str | None, payload: str | None, data: bytes | None) -> Payload | None:
    if codec is None:
        return None
    return Payload(codec, data or b"" if payload is None else payload.encode())


def _is_text(codec: str) -> bool:
    return codec.startswith("json")


def column_of(text: str) -> str:
    """Return a text for a column: as it is, or as JSON if the column can't hold it."""
    return json.dumps(text) if text.startswith('"') or not is_storable(text) else text


def from_column(text: str) -> str:
    """Return the text for which `column_of` returned a column."""
    return str(json.loads(text)) if text.startswith('"') else text


def is_storable(text: str) -> bool:
    """Whether every database can store a text as it is."""
    return "\0" not in text and (text.isascii() or _is_unicode(text))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # it has surrogates
        return False
    return True


def _json(details: Details) -> str:
    text = json.dumps(details, ensure_ascii=False)
    return text if _is_unicode(text) else json.dumps(details)


# --- values that JSON does not have --------------------------------------------------------------


def _write_error(error: BaseException | None) -> Details | None:
    if error is None:
        return None
    restored = to_restored_error(error)
    written: Details = {"type": restored.type_name, "message": restored.message}
    own = {name: getattr(error, name, None) for name in _OWN.get(type(error), ())}
    if own and all(isinstance(value, str | int | float) for value in own.values()):
        written["own"] = own
    else:
        written["traceback"] = restored.traceback
    notes = getattr(error, "__notes__", None)
    if notes and isinstance(notes, list):
        written["notes"] = [cut(safe_text(str, note), LONGEST_TEXT) for note in notes]
    return written


def _read_error(written: Details | None) -> BaseException | None:
    if written is None:
        return None
    error: BaseException
    # By its name alone: the class may have moved between modules since.
    name = written["type"].rpartition(".")[2]
    cls = next((cls for cls in _OWN if cls.__name__ == name), None) if "own" in written else None
    if cls is None:
        error = RestoredError(written["type"], written["message"], written.get("traceback", ""))
    else:
        error = cls(**written["own"], **({"result": None} if cls is ResultRefusedError else {}))
    for note in written.get("notes", ()):
        error.add_note(note)
    return error


def _write_inputs(inputs: Mapping[str, Payload]) -> Details:
    return {
        name: {"codec": codec, "json": data.decode()}
        if _is_text(codec)
        else {"codec": codec, "base64": base64.b64encode(data).decode()}
        for name, (codec, data) in inputs.items()
    }


def _read_inputs(written: Details) -> dict[str, Payload]:
    return {
        name: Payload(
            each["codec"],
            each["json"].encode() if "json" in each else base64.b64decode(each["base64"]),
        )
        for name, each in written.items()
    }


def _read_tuples(written: dict[str, list[Any]]) -> dict[str, tuple[Any, ...]]:
    return {name: tuple(values) for name, values in written.items()}


_OWN: dict[type[BaseException], tuple[str, ...]] = {
    StepTimeoutError: ("step_name", "attempt", "timeout_ms", "kind"),
    ResultRefusedError: ("step_name", "attempt"),
    StepCancelledError: ("step_name", "attempt"),
    StepCrashedError: ("step_name", "attempt", "crashes"),
    RunCancelledError: ("run_id",),
}
"""The errors that come back as themselves, and the arguments of each."""

_CONVERSIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "error": (_write_error, _read_error),
    "inputs": (_write_inputs, _read_inputs),
    "dependencies": (dict, _read_tuples),
    "fingerprints": (dict, _read_tuples),
    "outdated": (dict, dict),
    "unfinished": (dict, dict),
    "recalled": (list, tuple),
    "max_retries": (dict, dict),
    "secret": (list, tuple),
    "status": (str, StepStatus),
}

_COLUMNS = {"step", "item", "attempt", "at_ms", "output"}
_DETAILS: dict[type[Any], tuple[str, ...]] = {
    cls: tuple(each.name for each in fields(cls) if each.name not in _COLUMNS)
    for cls in get_args(Event)
}
"""The fields without a column, for each event."""

_KINDS: dict[str, type[Any]] = {cls.__name__: cls for cls in _DETAILS}
