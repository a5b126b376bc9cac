"""Checks a JSON value against a JSON schema, as far as `msgspec.json.schema` makes one.

A journal does not know the types of a pipeline. So a run stores the schemas of its signals, and a
sender learns at once that its value can't be right. What a schema does not say, the run itself
finds when it takes the value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: type(value) is bool,
    "integer": lambda value: type(value) is int,
    "number": lambda value: type(value) in (int, float),
    "string": lambda value: type(value) is str,
    "array": lambda value: type(value) is list,
    "object": lambda value: type(value) is dict,
}


def mismatch(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> str:
    """Return why a value does not fit a schema; empty if it does."""
    root = root or schema
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
    if kind == "array":
        return _mismatch_of_items(value, schema, root)
    if kind == "object":
        return _mismatch_of_fields(value, schema, root)
    if "pattern" in schema and isinstance(value, str) and not re.search(schema["pattern"], value):
        return f"must match {schema['pattern']!r}"
    return ""


def _mismatch_of_items(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return "has too few items, or too many"
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
        if isinstance(of_each, Mapping) and (problem := mismatch(each, of_each, root)):
            return f"{name!r} {problem}"
    return ""


def _is_one_of(value: Any, choices: list[Any]) -> bool:
    return any(type(value) is type(each) and value == each for each in choices)
