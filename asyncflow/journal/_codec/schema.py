"""Checks a JSON value against a JSON schema, as far as msgspec and pydantic usually make one.

A journal does not know the types of a pipeline. So a run stores the schemas of its signals, and a
sender learns at once that its value can't be right. What a schema does not say, the run itself
finds when it takes the value.
"""

from __future__ import annotations

import datetime
import decimal
import re
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from operator import ge, gt, le, lt
from typing import Any

import msgspec

_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: type(value) is bool,
    "integer": lambda value: type(value) is int,
    "number": lambda value: type(value) in (int, float),
    "string": lambda value: type(value) is str,
    "array": lambda value: type(value) is list,
    "object": lambda value: type(value) is dict,
}


_BOUNDS: Mapping[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "minimum": ("must be at least {}", ge),
    "maximum": ("must be at most {}", le),
    "exclusiveMinimum": ("must be above {}", gt),
    "exclusiveMaximum": ("must be below {}", lt),
    # Of fractions, libraries differ in what a multiple is.
    "multipleOf": (
        "must be a multiple of {}",
        lambda n, of: float in map(type, (n, of)) or n % of == 0,
    ),
}
_LENGTHS: Mapping[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "minLength": ("must have at least {} characters", ge),
    "maxLength": ("must have at most {} characters", le),
    "minItems": ("must have at least {} items", ge),
    "maxItems": ("must have at most {} items", le),
}
_FORMATS: Mapping[str, tuple[Callable[[str], object], ...]] = {
    "date": (partial(msgspec.convert, type=datetime.date),),
    "uuid": (partial(msgspec.convert, type=uuid.UUID),),
    "text in base64": (partial(msgspec.convert, type=bytes),),
    "decimal": (partial(msgspec.convert, type=decimal.Decimal),),
    "date-time": (lambda text: datetime.datetime.fromisoformat(_plain(text)), float),
    "time": (lambda text: datetime.time.fromisoformat(_plain(text)), float),
}
"""What reads a text of a format. Of the last two, pydantic takes more than msgspec, such as
seconds, and these take all of that."""


def _plain(text: str) -> str:
    return text.upper().replace("\N{MINUS SIGN}", "-")


def mismatch(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> str:
    """Return why a value does not fit a schema; empty if it does."""
    if root is None or "$defs" in schema:  # pydantic's part of another schema has its own
        root = schema
    if "$ref" in schema:
        definition = schema["$ref"].rpartition("/")[2]
        return mismatch(value, root.get("$defs", {}).get(definition, {}), root)
    if "anyOf" in schema:
        found = [mismatch(value, each, root) for each in schema["anyOf"]]
        return "" if "" in found else " or ".join(dict.fromkeys(found))
    if "enum" in schema and not _is_one_of(value, schema["enum"]):
        return f"must be one of {', '.join(map(repr, schema['enum']))}"
    if "const" in schema and not _is_one_of(value, [schema["const"]]):
        return f"must be {schema['const']!r}"
    kind = schema.get("type", "")
    if kind in _TYPES and not _TYPES[kind](value):
        return f"must be of type {kind}"
    if kind == "number" and not _is_float(value):
        return "must be of type number, and not too large"
    if kind in ("integer", "number"):
        return _beyond(value, schema, _BOUNDS)
    if kind in ("string", "array") and (problem := _beyond(len(value), schema, _LENGTHS)):
        return problem
    if kind == "string":
        return _mismatch_of_text(value, schema)
    if kind == "array":
        return _mismatch_of_items(value, schema, root)
    if kind == "object":
        return _mismatch_of_fields(value, schema, root)
    return ""


def _is_float(number: float) -> bool:
    try:
        float(number)
    except OverflowError:
        return False
    return True


def _beyond(
    number: float,
    schema: Mapping[str, Any],
    bounds: Mapping[str, tuple[str, Callable[[Any, Any], bool]]],
) -> str:
    """Return which bound of a schema a value, or its length, exceeds."""
    for name, (words, holds) in bounds.items():
        if name in schema and not holds(number, schema[name]):
            return words.format(schema[name])
    return ""


def _mismatch_of_text(value: str, schema: Mapping[str, Any]) -> str:
    with suppress(re.error):  # pydantic's patterns are those of Rust
        if "pattern" in schema and not re.search(schema["pattern"], value):
            return f"must match {schema['pattern']!r}"
    name = schema.get("format", "")
    if schema.get("contentEncoding") == "base64":  # pydantic's has a format, and is read otherwise
        name = "text in base64"
    for read in _FORMATS.get(name, ()):
        with suppress(ValueError, msgspec.ValidationError):
            read(value)
            return ""
    return f"must be a {name}" if name in _FORMATS else ""


def _mismatch_of_items(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    items, first = schema.get("items"), schema.get("prefixItems", [])
    for at, each in enumerate(value):
        of_each = first[at] if at < len(first) else items
        if isinstance(of_each, Mapping) and (problem := mismatch(each, of_each, root)):
            return f"[{at}] {problem}"
    return ""


def _mismatch_of_fields(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    fields, others = schema.get("properties", {}), schema.get("additionalProperties")
    for name in schema.get("required", ()):
        if name not in value:
            return f"lacks {name!r}"
    for name, each in value.items():
        of_each = fields.get(name, others)
        if of_each is False:
            return f"has an unknown field {name!r}"
        if isinstance(of_each, Mapping) and (problem := mismatch(each, of_each, root)):
            return f"{name!r} {problem}"
    return ""


def _is_one_of(value: Any, choices: list[Any]) -> bool:
    return any(type(value) is type(each) and value == each for each in choices)
