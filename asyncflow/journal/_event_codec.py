"""Converts events to the rows of a table, and back.

Events come back as they were, errors aside: asyncflow's own come back without their traceback and
cause, others as `RestoredError`. Fields without a column are in `EventRow.payload` as JSON, so
that a person can read them.

Each row has a checksum of all its other columns, its run and its position included. So a row that
has changed is noticed, and so is one that belongs to another run or stood at another place. It is
meant for accidents: a program that deliberately changes a row can compute it.
"""

from __future__ import annotations

import base64
import json
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints
from zlib import crc32

from asyncflow._core.error_text import LONGEST_TEXT
from asyncflow._core.errors import (
    NotSendableError,
    OutputLostError,
    RestoredError,
    ResultRefusedError,
    RunCancelledError,
    StepCancelledError,
    StepCrashedError,
    StepTimeoutError,
    WorkerLostError,
)
from asyncflow._core.results import (
    ENDED,
    REDACTED,
    Payload,
    RunStatus,
    StepStatus,
    to_restored_error,
)
from asyncflow._core.text import cut, safe_text
from asyncflow.events import (
    AttemptStarted,
    Event,
    ResultReused,
    RunFinished,
    RunStarted,
    StepSucceeded,
)


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
    """The codec of the event's output; ``None`` if it has none; `FELL_BACK` for the output of a
    fallback, which is in the JSON object with the error."""
    payload: str | None
    """The output if its codec is JSON; otherwise the fields without a column, as a JSON object."""
    data: bytes | None
    """The output if its codec is not JSON."""


Details = dict[str, Any]

FELL_BACK = "fallback"

_NUMBERS = struct.Struct("<qqqd")


def row_of(run_id: str, position: int, event: Event) -> EventRow:
    """Return the row of an event. The output of a `StepSucceeded` is a `Payload` or ``None``."""
    kind = type(event).__name__
    # Most events are of these two kinds.
    if isinstance(event, StepSucceeded):
        output = (
            _output_columns(event.output)
            if event.error is None
            else (FELL_BACK, _json(_details(event)), None)
        )
    elif isinstance(event, AttemptStarted) and not (event.queued_ms or event.engine):
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


def event_checksum(
    run_id: str,
    position: int,
    kind: str,
    step: str | None,
    item: int | None,
    attempt: int | None,
    at_ms: float,
    codec: str | None,
    payload: str | None,
    data: bytes | None,
) -> int:
    """Return the checksum of an `EventRow`: the CRC-32 of its numbers, its texts and its data.

    It differs for certain after a change within 32 neighbouring bits of that, and after any other
    change with a probability of 1 - 2**-32.

    Raise `ValueError` for a text with surrogates, which no row has, and `TypeError` or
    `struct.error` for a number of another type, or one that is too large.
    """
    # Not by marshal or `repr`, which depend on the version of Python. SQLite makes -0.0 a 0.0.
    numbers = _NUMBERS.pack(
        position, -1 if item is None else item, -1 if attempt is None else attempt, at_ms + 0.0
    )
    texts = f"{run_id}\0{kind}\0{step}\0{codec}\0{payload}".encode()
    checksum = crc32(texts, crc32(numbers))
    return crc32(data, checksum) if data else checksum


def run_checksum(
    run_id: str,
    pipeline: str,
    started_at: float,
    parent: str | None,
    parent_step: str | None,
    rerun_of: str | None,
    label: str | None,
) -> int:
    """Return the checksum of what never changes in the row of a run.

    Raise `ValueError` for a text with surrogates, which no row has.
    """
    others = f"{parent}\0{parent_step}\0{rerun_of}\0{label}"
    return crc32(f"{run_id}\0{pipeline}\0{started_at!r}\0{others}".encode())


def event_of(row: Sequence[Any]) -> Event:
    """Return the event of a row, given with its checksum.

    Raises:
        ValueError: The row has changed since it was written, or a newer asyncflow, or another
            program, wrote it.
        Exception: The same, noticed later: a damaged row may have values of any type.
    """
    *columns, checksum = row
    if event_checksum(*columns) != checksum:
        raise ValueError("its checksum is wrong, so it has changed since it was written")
    _, _, kind, step, item, attempt, at_ms, codec, payload, data = columns
    if kind not in _KINDS:
        raise ValueError(f"there is no event {kind!r}")
    cls: Any = _KINDS[kind]
    values: Details = {}
    if cls is StepSucceeded and codec != FELL_BACK:
        values["output"] = _output_of(codec, payload, data)
    elif payload is not None:
        values = json.loads(payload)
        for name, (_, read) in _CONVERSIONS.items():
            if name in values:
                values[name] = read(values[name])
        if cls is RunFinished:
            values["status"] = _END_OF.get(values.pop("outcome", None))
        for name, fits in _checks(cls):
            if name in values and not fits(values[name]):
                raise ValueError(f"it is no {kind}: its {name} is of another type, or too large")
    if cls in _WITH_OUTPUTS:
        values["secret"] = values.get("output") == REDACTED
    # The checksum has refused what is no number.
    if not 0 <= at_ms < _LONGEST_MS or (attempt or 0) < 0 or (item or 0) < 0:
        raise ValueError(f"it is no {kind}: a number is out of range")
    if cls is not RunStarted:
        values["at_ms"] = at_ms + 0.0  # without the sign of -0.0, as the checksum takes it
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


def event_without_output(row: Sequence[Any]) -> Event:
    """Return the event of a row that was read without its output, so that its checksum can't tell.

    A `ResultReused` is without its figures too, which are stored in the same column, and a
    `StepSucceeded` with a stand-in of its error, if it has one.

    Raise as `event_of` does, for what is noticed without the checksum.
    """
    details, codec = None, FELL_BACK if row[7] == FELL_BACK else None
    if codec == FELL_BACK:
        details = _UNREAD_ERROR
    elif row[2] == ResultReused.__name__:
        details = _NOTHING_TAKEN
    columns = [*row[:7], codec, details, None]
    return event_of([*columns, event_checksum(*columns)])


def _details(event: Event) -> Details:
    if isinstance(event, RunFinished):  # with the name and the word that journals have always had
        details = {"outcome": status_column(event.status), "stop_reason": event.stop_reason}
        return details if event.cause is None else {**details, "cause": event.cause}
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


def status_column(status: RunStatus) -> str:
    """Return the status of a run for a column, in which an orphaned run is ``running``."""
    return ("running" if status is RunStatus.ORPHANED else status).lower()


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


_encode = json.JSONEncoder(ensure_ascii=False).encode  # `json.dumps` makes an encoder a call


def _json(details: Details) -> str:
    text = _encode(details)
    return text if _is_unicode(text) else json.dumps(details)


# --- values that JSON does not have --------------------------------------------------------------


def _read_dependencies(written: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    known: set[str] = set()
    for name, needed in written.items():
        if not known.issuperset(needed):
            raise ValueError(f"step {name!r} comes before one that it depends on")
        known.add(name)
    return _read_tuples(written)


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
    if not _fits_error(written):
        raise ValueError("its error is of another type")
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


def _write_payload(payload: Payload | None) -> Details | None:
    if payload is None:
        return None
    codec, data = payload
    if _is_text(codec):
        return {"codec": codec, "json": data.decode()}
    return {"codec": codec, "base64": base64.b64encode(data).decode()}


def _read_payload(written: Details | None) -> Payload | None:
    if written is None:
        return None
    data = written["json"].encode() if "json" in written else base64.b64decode(written["base64"])
    return Payload(written["codec"], data)


def _write_inputs(inputs: Mapping[str, Payload]) -> Details:
    return {name: _write_payload(payload) for name, payload in inputs.items()}


def _read_inputs(written: dict[str, Details]) -> dict[str, Payload | None]:
    return {name: _read_payload(each) for name, each in written.items()}


def _read_tuples(written: dict[str, list[Any]]) -> dict[str, tuple[Any, ...]]:
    return {name: tuple(values) for name, values in written.items()}


_OWN: dict[type[BaseException], tuple[str, ...]] = {
    StepTimeoutError: ("step_name", "attempt", "timeout_ms", "kind"),
    ResultRefusedError: ("step_name", "attempt"),
    StepCancelledError: ("step_name", "attempt"),
    StepCrashedError: ("step_name", "attempt", "crashes"),
    RunCancelledError: ("run_id", "reason"),
    WorkerLostError: ("step_name", "attempt", "worker", "reason"),
    OutputLostError: ("engine", "worker", "reason", "step_name", "parameter"),
    NotSendableError: ("step_name", "subject", "problem"),
}
"""The errors that come back as themselves, and the arguments of each."""

_CONVERSIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "error": (_write_error, _read_error),
    "inputs": (_write_inputs, _read_inputs),
    "dependencies": (dict, _read_dependencies),
    "missing_steps": (dict, _read_tuples),
    "fingerprints": (dict, _read_tuples),
    "outdated": (dict, dict),
    "unfinished": (dict, dict),
    "recalled": (list, tuple),
    "rerun_reasons": (dict, dict),
    "from_steps": (list, tuple),
    "output": (_write_payload, _read_payload),
    "max_retries": (dict, dict),
    "secret": (list, tuple),
    "signals": (dict, dict),
    "signal_deadlines": (dict, dict),
    "status": (str, StepStatus),
}

_END_OF = {status_column(each): each for each in (*ENDED, RunStatus.WAITING)}
_COLUMNS = {"step", "item", "attempt", "at_ms"}
_WITH_OUTPUTS = (StepSucceeded, ResultReused)
"""Whether they are secret, their outputs tell."""
_DETAILS: dict[type[Any], tuple[str, ...]] = {
    cls: tuple(
        each.name
        for each in fields(cls)
        if each.name not in _COLUMNS and not (each.name == "secret" and cls in _WITH_OUTPUTS)
    )
    for cls in get_args(Event)
}
"""The fields without a column, for each event."""
_KINDS: dict[str, type[Any]] = {cls.__name__: cls for cls in _DETAILS}
_UNREAD_ERROR = _json(
    _details(StepSucceeded("", 0, 0.0, None, error=RestoredError("Exception", "not read", "")))
)
_NOTHING_TAKEN = _json(_details(ResultReused("", 0.0, "", 0, 0.0, None)))


# --- the types of fields -------------------------------------------------------------------------

# Rows whose checksum is right may still not fit: they were damaged before the journal had
# checksums, or another program wrote them. Displays rely on the types, and on times that they can
# write as dates.

_LONGEST_MS = 1e14
"""Three thousand years."""
_LATEST_S = 1.5e11
"""The year 6723: the sum of both is a date."""

_Check = Callable[[Any], bool]


def is_moment(value: object) -> bool:
    """Whether a value of a row is a time in seconds since the epoch that can be a date."""
    return type(value) in (float, int) and 0 <= value < _LATEST_S  # type: ignore[operator]


@cache
def _checks(cls: Any) -> Sequence[tuple[str, _Check]]:
    """Return the fields without a column, each with what tells whether a value is of its type."""
    hints = get_type_hints(cls)
    return [
        (name, is_moment if name in ("wall_time", "since") else _check_of(hints[name]))
        for name in _DETAILS[cls]
    ]


def _check_of(hint: Any) -> _Check:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        any_of = [_check_of(each) for each in arguments]
        return lambda value: any(fits(value) for fits in any_of)
    if origin is Literal:
        return lambda value: value in arguments
    if origin is tuple:
        element, length = _check_of(arguments[0]), len(arguments)
        is_any_length = arguments[-1] is ...
        return lambda value: (is_any_length or len(value) == length) and all(map(element, value))
    if origin is not None:  # a mapping of texts
        element = _check_of(arguments[1])
        return lambda value: (
            all(isinstance(name, str) for name in value) and all(map(element, value.values()))
        )
    return _CHECKS.get(hint, lambda value: isinstance(value, hint))


def _is_duration(value: Any) -> bool:
    # A policy may ask for any backoff.
    return type(value) in (float, int) and 0 <= value <= sys.float_info.max


_CHECKS: dict[Any, _Check] = {
    Any: lambda value: True,
    NoneType: lambda value: value is None,
    int: lambda value: type(value) is int and value >= 0,
    float: _is_duration,
}
"""Instances of every other type are checked by `isinstance`."""


def _fits_error(written: Any) -> bool:
    own, notes = written.get("own", {}), written.get("notes", [])
    return (
        all(isinstance(written.get(name, ""), str) for name in ("type", "message", "traceback"))
        and all(isinstance(value, str | int | float) for value in own.values())
        and all(isinstance(note, str) for note in notes)
    )
