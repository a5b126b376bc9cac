"""Converts events to the rows of a table, and back.

Events come back as they were, errors aside: asyncflow's own come back without their traceback and
cause, others as `RestoredError`. Fields without a column are in `EventRow.payload` as JSON, so
that a person can read them, unless they have their default. What they must be, when they are read,
follows from the types that the event itself declares.

Each row has a checksum of its other columns, its run and its position included. So a row that
has changed is noticed, and so is one that belongs to another run or stood at another place. It is
meant for accidents: a program that deliberately changes a row can compute it. The data of a row,
which may be long, have a checksum of their own, so that the others can be read without them.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, reduce
from math import isfinite
from operator import or_
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints
from zlib import crc32

import msgspec

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
from asyncflow._core.history.results import REDACTED, Payload, RunStatus, to_restored_error
from asyncflow._core.record import REQUIRED, defaults_of
from asyncflow._core.text import LONGEST_TEXT, cut, safe_text
from asyncflow.events import Event, RunStarted
from asyncflow.journal._database.tables import EventRow

Details = dict[str, Any]

_NUMBERS = struct.Struct("<qqqdq")


def row_of(run_id: str, position: int, event: Event) -> EventRow:
    """Return the row of an event. The output of a `StepSucceeded` is a `Payload` or ``None``."""
    cls = type(event)
    details: Details = {}
    for name, default in _FIELDS[cls]:
        value = getattr(event, name)
        if value is default:
            continue
        # What has no other default may raise when it is compared: an error is a user's.
        if default is None or default is REQUIRED or value != default:
            details[name] = _write_inputs(value) if name == "inputs" else value
    codec = data = None
    if cls in _DATA:
        data = getattr(event, _DATA[cls])
        if isinstance(data, Payload):
            codec, data = data
    step = event.step
    return sealed(
        run_id,
        position,
        cls.__name__,
        None if step is None else column_of(step),
        event.item,
        event.attempt,
        event.at_ms,
        codec,
        to_json(details) if details else None,
        data,
    )


def sealed(
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
) -> EventRow:
    """Return the row with these columns and their checksums."""
    of_data = None if data is None else crc32(data)
    columns = run_id, position, kind, step, item, attempt, at_ms, codec, payload, of_data
    return EventRow(*columns, event_checksum(*columns), data)


def data_checksum(data: bytes | None) -> int | None:
    """Return the checksum of the data of a row; ``None`` if it has none."""
    return None if data is None else crc32(data)


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
    of_data: int | None,
) -> int:
    """Return the checksum of an `EventRow`: the CRC-32 of its numbers and its texts.

    Its numbers include the checksum of its data. It differs for certain after a change within 32
    neighbouring bits of that, and after any other change with a probability of 1 - 2**-32.

    Raise `ValueError` for a text with surrogates, which no row has, and `TypeError` or
    `struct.error` for a number of another type, or one that is too large.
    """
    # Not by marshal or `repr`, which depend on the version of Python. SQLite makes -0.0 a 0.0.
    numbers = _NUMBERS.pack(
        position,
        -1 if item is None else item,
        -1 if attempt is None else attempt,
        at_ms + 0.0,
        -1 if of_data is None else of_data,
    )
    return crc32(f"{run_id}\0{kind}\0{step}\0{codec}\0{payload}".encode(), crc32(numbers))


def run_checksum(
    run_id: str,
    pipeline: str,
    started_at: float,
    parent: str | None,
    parent_step: str | None,
    rerun_of: str | None,
    label: str | None,
    key: str | None,
    attributes: str | None,
) -> int:
    """Return the checksum of what never changes in the row of a run.

    Raise `ValueError` for a text with surrogates, which no row has.
    """
    others = f"{parent}\0{parent_step}\0{rerun_of}\0{label}\0{key}\0{attributes}"
    return crc32(f"{run_id}\0{pipeline}\0{started_at!r}\0{others}".encode())


def event_of(row: Sequence[Any], *, is_brief: bool = False) -> Event:
    """Return the event of a sealed row, which if it is brief was read without its data.

    The output of such an event is ``None``.

    Raises:
        ValueError: The row has changed since it was written, or a newer asyncflow, or another
            program, wrote it.
        Exception: The same, noticed later: a damaged row may have values of any type.
    """
    *columns, checksum, data = row
    if event_checksum(*columns) != checksum:
        raise ValueError("its checksum is wrong, so it has changed since it was written")
    if not is_brief and data_checksum(data) != columns[-1]:
        raise ValueError("the checksum of its data is wrong, so they have changed")
    _, _, kind, step, item, attempt, at_ms, codec, payload, _ = columns
    if kind not in _KINDS:
        raise ValueError(f"there is no event {kind!r}")
    cls = _KINDS[kind]
    values: Details = {} if payload is None else _read_details(cls, payload)
    # The checksum has refused what is no number.
    if not 0 <= at_ms < _LONGEST_MS or (attempt or 0) < 0 or (item or 0) < 0:
        raise ValueError(f"it is no {kind}: a number is out of range")
    holds = _DATA.get(cls)
    if holds == "output":
        values["output"] = None if codec is None or is_brief else Payload(codec, data or b"")
        values["secret"] = codec == REDACTED.codec
    elif holds is not None:
        values[holds] = data or b""
    if cls is not RunStarted:
        values["at_ms"] = at_ms + 0.0  # without the sign of -0.0, as the checksum takes it
    if step is not None:
        values["step"] = sys.intern(from_column(step))  # a report keeps all events of a run
    if attempt is not None:
        values["attempt"] = attempt
    if item is not None:
        values["item"] = item
    try:
        event: Event = cls(**values)
    except TypeError as error:
        raise ValueError(f"it is no {kind}: {error}") from error
    return event


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


def to_json(details: object) -> str:
    """Return values as JSON, those that it does not have as `_plain` says."""
    try:
        return _encoder.encode(details).decode()
    except UnicodeEncodeError:  # a text has surrogates
        return json.dumps(details, default=_plain)


def _plain(value: object) -> object:
    """Return a value that JSON does not have as others."""
    if isinstance(value, BaseException):
        return write_error(value)
    if isinstance(value, Mapping):
        return dict(value)
    for kind in (str, float, int):
        if isinstance(value, kind):  # of a subclass, such as a number of numpy
            return kind(value)
    if isinstance(value, _Value):
        return msgspec.to_builtins(value)
    raise TypeError(f"JSON has no {type(value).__name__}")


_encoder = msgspec.json.Encoder(enc_hook=_plain)


# --- which fields are in the JSON object, and what they must be ----------------------------------

# A row whose checksum is right may still not fit: another program wrote it. Displays rely on the
# types, and on times that they can write as dates.

_LONGEST_MS = 1e14
"""Three thousand years."""
_LATEST_S = 1.5e11
"""The year 6723: the sum of both is a date."""


def is_moment(value: object) -> bool:
    """Whether a value of a row is a time in seconds since the epoch that can be a date."""
    return type(value) in (float, int) and 0 <= value < _LATEST_S  # type: ignore[operator]


_CLASSES: Sequence[Any] = get_args(Event)
_DATA: dict[Any, str] = {
    cls: name for cls in _CLASSES for name in ("output", "data") if name in cls._fields
}
"""Which field is in the column for data."""


def _fields_of(cls: Any) -> tuple[tuple[str, Any], ...]:
    """Return the fields of an event without a column, each with its default."""
    others = {"step", "item", "attempt", "at_ms", _DATA.get(cls)}
    if _DATA.get(cls) == "output":
        others.add("secret")  # the output tells
    return tuple([each for each in defaults_of(cls).items() if each[0] not in others])


_FIELDS: dict[Any, tuple[tuple[str, Any], ...]] = {cls: _fields_of(cls) for cls in _CLASSES}
_KINDS: dict[str, Any] = {cls.__name__: cls for cls in _FIELDS}


class StoredError(msgspec.Struct, forbid_unknown_fields=True):
    """An error in the JSON object of a row."""

    type: str
    message: str
    traceback: str = ""
    own: dict[str, str | int | float] | None = None
    """The arguments of one of asyncflow."""
    notes: tuple[str, ...] = ()


class _Value(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """A `Payload` in the JSON object of a row."""

    codec: str
    json: str | None = None
    base64: bytes | None = None


_Count = Annotated[int, msgspec.Meta(ge=0)]
# A policy may ask for any backoff. And an integer stays one: it may count something.
_Number = _Count | Annotated[float, msgspec.Meta(ge=0, le=sys.float_info.max)]
_Moment = Annotated[float, msgspec.Meta(ge=0, lt=_LATEST_S)]

_STORED_AS: dict[Any, Any] = {int: _Count, float: _Number, BaseException: StoredError}
_GENERIC: dict[Any, Any] = {tuple: tuple, Mapping: dict}
_STORED_AS_BY_NAME = {
    "inputs": dict[str, _Value],
    "wall_time": _Moment,
    "since": _Moment,
    "sent_at": _Moment,
    "attributes": dict[str, str | int | float | bool],
}


def _stored_as(hint: Any) -> Any:
    """Return as which type a value of a type is read."""
    arguments = tuple(map(_stored_as, get_args(hint)))
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return reduce(or_, arguments)
    if origin in _GENERIC:
        return _GENERIC[origin][arguments]
    return _STORED_AS.get(hint, hint)


@cache
def _details(cls: Any) -> Any:
    """Return the type of the JSON object of an event, made of the event's own hints."""
    hints = get_type_hints(cls)
    return msgspec.defstruct(
        cls.__name__,
        [
            (name, _STORED_AS_BY_NAME.get(name) or _stored_as(hints[name]), *defaults)
            for name, default in _FIELDS[cls]
            for defaults in [() if default is REQUIRED else (default,)]
        ],
        kw_only=True,
        forbid_unknown_fields=True,
    )


def from_json(text: str, as_type: Any) -> Any:
    """Return what `to_json` has written; raise `ValueError` if it is of another type."""
    try:
        try:
            return msgspec.json.decode(text, type=as_type)
        except msgspec.DecodeError:  # it may have surrogates, which msgspec does not read
            return msgspec.convert(json.loads(text), as_type)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error


def _read_details(cls: Any, payload: str) -> Details:
    try:
        found = from_json(payload, _details(cls))
    except ValueError as error:
        raise ValueError(f"it is no {cls.__name__}: {error}") from error
    values = {name: getattr(found, name) for name, _ in _FIELDS[cls]}
    for name, read in _READ.items():
        if name in values:
            values[name] = read(values[name])
    return values


def _write_inputs(inputs: Mapping[str, Payload]) -> dict[str, _Value]:
    return {
        name: _Value(codec, data.decode()) if _is_text(codec) else _Value(codec, base64=data)
        for name, (codec, data) in inputs.items()
    }


def _read_inputs(written: Mapping[str, _Value]) -> dict[str, Payload]:
    return {
        name: Payload(each.codec, (each.base64 or b"") if each.json is None else each.json.encode())
        for name, each in written.items()
    }


def _is_text(codec: str) -> bool:
    return codec.startswith("json")


def _read_dependencies(written: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    known: set[str] = set()
    for name, needed in written.items():
        if not known.issuperset(needed):
            raise ValueError(f"step {name!r} comes before one that it depends on")
        known.add(name)
    return written


def _read_status(status: Any) -> Any:
    if status in (RunStatus.RUNNING, RunStatus.ORPHANED):
        raise ValueError(f"nothing ends as {status}")
    return status


def read_error(written: StoredError | None) -> BaseException | None:
    """Return the error that was written, or what stands for it."""
    if written is None:
        return None
    error: BaseException
    # By its name alone: the class may have moved between modules since.
    name, own = written.type.rpartition(".")[2], written.own
    cls = next((cls for cls in _OWN if cls.__name__ == name), None)
    if own is None or cls is None:
        error = RestoredError(written.type, written.message, written.traceback)
    else:
        error = cls(**own, **({"result": None} if cls is ResultRefusedError else {}))
    for note in written.notes:
        error.add_note(note)
    return error


_READ: dict[str, Callable[[Any], Any]] = {
    "error": read_error,
    "inputs": _read_inputs,
    "dependencies": _read_dependencies,
    "status": _read_status,
}
"""How the values are read of which JSON has others."""


def _is_own(value: object) -> bool:
    """Whether an argument of an error, which an action may have made, is one that JSON has."""
    if isinstance(value, float):
        return isfinite(value)
    return isinstance(value, str | int) and not isinstance(value, bool)


def write_error(error: BaseException) -> Details:
    """Return an error for JSON."""
    restored = to_restored_error(error)
    written: Details = {"type": restored.type_name, "message": restored.message}
    own = {name: getattr(error, name, None) for name in _OWN.get(type(error), ())}
    if own and all(map(_is_own, own.values())):
        written["own"] = own
    else:
        written["traceback"] = restored.traceback
    notes = getattr(error, "__notes__", None)
    if notes and isinstance(notes, list):
        written["notes"] = [cut(safe_text(str, note), LONGEST_TEXT) for note in notes]
    return written


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
