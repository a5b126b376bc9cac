"""What JSON can hold of a report: a kind of value says how it is written, read and checked.

A table of kinds by name is an object. What is wrong is refused with its place in the document.
"""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import repeat
from typing import Any, NamedTuple, TypeAlias

from asyncflow._core.arguments import AttributeValue
from asyncflow._core.errors import RestoredError
from asyncflow._core.history.results import RestoredOutput, to_restored_error, visible_output
from asyncflow._core.run_attributes import checked_attributes
from asyncflow._core.value_size import MOST_BYTES, extent, safe_repr


class Kind(NamedTuple):
    """How a value is written, and how it is read, given its place in the document."""

    write: Callable[[Any], object]
    read: Callable[[Any, str], Any]
    schema: Mapping[str, Any]
    """Its JSON schema."""
    as_is: Collection[type] = ()
    """The types of which every value is right, so that `read` need not be asked."""


Table: TypeAlias = Mapping[str, Kind | None]
"""The fields of an object; ``None`` stands for an output, which has one of two names."""


def to_json(table: Table, data: Any) -> dict[str, object]:
    document: dict[str, object] = {}
    for name, kind in table.items():
        if kind is None:
            document |= output_to_json(visible_output(data))
        else:
            document[name] = kind.write(getattr(data, name))
    return document


def from_json(table: Table, document: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Return the fields of an object; ``where`` is its place with a dot: ``results[3].``."""
    values = {}
    for name, kind in table.items():
        if kind is None:
            values[name] = output_from_json(document, where)
        elif name in document:
            value = document[name]
            values[name] = value if type(value) in kind.as_is else kind.read(value, where + name)
        else:
            raise refusal(where + name, "is missing")
    return values


def schema_of(table: Table) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for name, kind in table.items():
        if kind is None:
            properties |= {name: {}, f"{name}_repr": {"type": "string"}}
        else:
            properties[name] = kind.schema
    required = [name for name, kind in table.items() if kind is not None]
    return {"type": "object", "properties": properties, "required": required}


def refusal(place: str, problem: str) -> ValueError:
    return ValueError(f"not the JSON of a report: {place} {problem}")


def output_to_json(output: object) -> dict[str, object]:
    if type(output) is RestoredOutput:  # written as its text again, so that no trip adds to it
        return {"output_repr": output.text}
    if extent(output, MOST_BYTES) == "plain" and _is_writable(output):
        return {"output": output}
    return {"output_repr": safe_repr(output)}


def output_from_json(document: dict[str, Any], where: str) -> object:
    if "output_repr" in document:
        return RestoredOutput(TEXT.read(document["output_repr"], where + "output_repr"))
    if "output" not in document:
        raise refusal(where + "output", "is missing")
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


def plain(words: str, *types: type) -> Kind:
    """Return the kind of a value that JSON has itself: what it must be, in words and as types."""

    def read(value: Any, place: str) -> Any:
        if type(value) not in types:
            raise refusal(place, f"must be {words}, not {reprlib.repr(value)}")
        return value

    def read_finite(value: Any, place: str) -> Any:
        # Not only what Python's JSON calls NaN and Infinity: an integer may be above all floats.
        if read(value, place) is not None and not abs(value) <= sys.float_info.max:
            raise refusal(place, f"must be finite, not {reprlib.repr(value)}")
        return value

    # Not a list as the "type": FastAPI before 0.118 and OpenAPI 3.0 refuse it.
    either = [{"type": _SCHEMA_TYPES[each]} for each in types]
    schema = either[0] if len(either) == 1 else {"anyOf": either}
    if float in types:
        return Kind(lambda value: value, read_finite, schema, {*types} - {float, int})
    return Kind(lambda value: value, read, schema, {*types})


_SCHEMA_TYPES = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "array",
    dict: "object",
    type(None): "null",
}

TEXT = plain("text", str)
TEXT_OR_NULL = plain("text or null", str, type(None))
WHOLE = plain("a whole number", int)
WHOLE_OR_NULL = plain("a whole number or null", int, type(None))
NUMBER = plain("a number", float, int)
NUMBER_OR_NULL = plain("a number or null", float, int, type(None))
FLAG = plain("true or false", bool)
LIST = plain("a list", list)
OBJECT = plain("an object", dict)


def one_of(words: Iterable[str]) -> Kind:
    known = [*words]

    def read(value: Any, place: str) -> Any:
        if TEXT.read(value, place) not in known:
            problem = f"must be one of {', '.join(known)}, not {reprlib.repr(value)}"
            raise refusal(place, problem)
        return value

    return Kind(str, read, {"enum": known})


def list_of(kind: Kind) -> Kind:
    def read(values: Any, place: str) -> tuple[Any, ...]:
        values = LIST.read(values, place)
        return tuple(
            [
                value if type(value) in kind.as_is else kind.read(value, f"{place}[{at}]")
                for at, value in enumerate(values)
            ]
        )

    schema = {"type": "array", "items": kind.schema}
    return Kind(lambda values: [*map(kind.write, values)], read, schema)


def object_of(table: Table, make: Callable[[dict[str, Any], str], Any]) -> Kind:
    """Return the kind of an object that is made of the fields of a table, and its place."""

    def read(value: Any, place: str) -> Any:
        where = place + "."
        return make(from_json(table, OBJECT.read(value, place), where), where)

    return Kind(lambda data: to_json(table, data), read, schema_of(table))


def or_null(checked: Kind, kind: Kind) -> Kind:
    def read(value: Any, place: str) -> Any:
        return None if checked.read(value, place) is None else kind.read(value, place)

    schema = {"anyOf": [kind.schema, {"type": "null"}]}
    return Kind(
        lambda value: None if value is None else kind.write(value), read, schema, {type(None)}
    )


def error_to_json(error: BaseException) -> dict[str, str]:
    left = to_restored_error(error)
    return {"type": left.type_name, "message": left.message, "traceback": left.traceback}


_ERROR_FIELDS: Table = dict.fromkeys(("type", "message", "traceback"), TEXT)
_ERROR_OBJECT = object_of(_ERROR_FIELDS, lambda fields, _: RestoredError(*fields.values()))
ERROR = or_null(
    plain("an object or null", dict, type(None)), _ERROR_OBJECT._replace(write=error_to_json)
)


def _inputs_to_json(inputs: Mapping[str, object]) -> dict[str, object]:
    return {name: output_to_json(value) for name, value in inputs.items()}


def _inputs_from_json(value: Any, place: str) -> dict[str, object]:
    return {
        name: output_from_json(OBJECT.read(each, f"{place}.{name}"), f"{place}.{name}.")
        for name, each in OBJECT.read(value, place).items()
    }


INPUTS = Kind(_inputs_to_json, _inputs_from_json, {"type": "object"})


def _attributes_from_json(value: Any, place: str) -> dict[str, AttributeValue]:
    try:
        return checked_attributes(OBJECT.read(value, place))
    except (TypeError, ValueError) as error:
        raise refusal(place, f"can't be read: {error}") from None


ATTRIBUTES = Kind(
    dict,
    _attributes_from_json,
    {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}},
)
