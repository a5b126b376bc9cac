"""How a value of a signal is asked for, by the JSON schema of its type: in a form, in a command.

A form has fields of the kinds below. What no field fits is asked for as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from asyncflow._core.pipeline.signal import SHAPE, shape_text

_PLAIN = ("boolean", "integer", "number", "string")
_MOST_FIELDS = 30
"""An object of more has no fields of its own."""
_EXAMPLES: Mapping[str, Any] = {"boolean": True, "integer": 1, "number": 1.5, "string": "text"}
_FORMATS: Mapping[str, str] = {
    "date": "2027-01-31",
    "date-time": "2027-01-31T12:00:00Z",
    "time": "12:00:00",
    "duration": "PT1H30M",
    "decimal": "1.50",
    "uuid": "6fa459ea-ee8a-4ca4-894e-db77e160355e",
    "path": "folder/file",
}
"""Examples of strings, by their format."""
_SAID = frozenset({"type", "format", "title", "description", "default", "examples", "$defs", SHAPE})
"""The keys of a schema that an example regards. Any other one, such as a bound, may refuse it."""


def field_of(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a form asks for a value: its ``kind``, and what there is to choose or to fill in.

    The kind is that of the schema, ``choice``, ``object`` with ``fields``, or ``json`` for all
    else. Choices are in JSON. Each field has its ``name``, and whether it is ``required``.
    """
    definitions = schema.get("$defs", {})
    schema = _resolved(schema, definitions)
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or not 0 < len(properties) <= _MOST_FIELDS:
        return _simple(schema)
    required = schema.get("required", ())
    fields = [
        {"name": name, "required": name in required, **_of_property(each, definitions)}
        for name, each in properties.items()
    ]
    return {"kind": "object", "fields": fields}


def type_of_signal(schema: Mapping[str, Any]) -> str:
    """Return the type of a signal as its annotation is written; empty if it is not known."""
    return shape_text(schema[SHAPE]) if SHAPE in schema else ""


def example_of(schema: Mapping[str, Any]) -> str:
    """Return a value of a signal in JSON, as an example; ``JSON`` if none is known that fits."""
    value = _example(schema, schema.get("$defs", {}))
    return "JSON" if value is None else json.dumps(value, ensure_ascii=False)


def _resolved(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema, or the one to which it refers: that of an enumeration, or of a class."""
    if "$ref" not in schema:
        return schema
    found: Mapping[str, Any] = definitions.get(schema["$ref"].rpartition("/")[2], {})
    return found


def _simple(schema: Mapping[str, Any]) -> dict[str, Any]:
    if "enum" in schema:
        return {"kind": "choice", "choices": [json.dumps(each) for each in schema["enum"]]}
    kind = schema.get("type")
    found = {"kind": kind if kind in _PLAIN else "json"}
    example = _FORMATS.get(str(schema.get("format")))
    if kind == "string" and example is not None:
        found["example"] = example
    return found


def _of_property(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    others = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    if len(others) == 1 and len(schema["anyOf"]) == 2:
        found["nullable"] = True
    shown = _resolved(others[0] if "nullable" in found else schema, definitions)
    if "properties" not in shown:
        found |= _simple(shown)
    else:
        found["kind"] = "json"
    if "default" in schema:
        found["default"] = json.dumps(schema["default"])
    if isinstance(schema.get("description"), str):
        found["help"] = schema["description"]
    return found


def _example(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    """Return a value for a schema; ``None`` if there is none that must fit."""
    if "$ref" in schema:
        name, schema = schema["$ref"].rpartition("/")[2], _resolved(schema, definitions)
        definitions = {**definitions, name: {}}  # a class may need itself
    if "enum" in schema:
        return schema["enum"][0]
    if isinstance(properties := schema.get("properties"), Mapping):
        required = [name for name in properties if name in schema.get("required", ())]
        value = {name: _example(properties[name], definitions) for name in required}
        return None if None in value.values() else value
    if schema.keys() - _SAID:
        return None
    if "format" in schema:
        return _FORMATS.get(str(schema["format"]))
    return _EXAMPLES.get(str(schema.get("type")))
