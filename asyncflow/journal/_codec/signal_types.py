"""What a signal takes, as its schema and its shape say: see `asyncflow._core.pipeline.signal`.

Who knows the type of a signal makes an instance of what it takes. A journal knows only what a run
has stored of it, and what no schema says, such as the validator of a model, the run finds when it
takes the value.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import PurePath
from typing import Any

import msgspec

from asyncflow._core.history.results import Payload
from asyncflow._core.pipeline.signal import SHAPE, fits, is_plain, other_type, shape_of, shape_text
from asyncflow._core.text import describe_fully, safe_text
from asyncflow._core.value_size import safe_repr
from asyncflow.journal._codec.models import is_model, schema_of_model
from asyncflow.journal._codec.payloads import Codec, plain_of
from asyncflow.journal._codec.schema import mismatch

_NO_JSON: Mapping[str, Any] = {"not": {}}
"""The schema of a type that JSON has no form for."""

_CODEC = Codec("json", sys.maxsize)


def schema_of_signal(hint: Any) -> dict[str, Any]:
    """Return the JSON schema of a type, with its shape; raise `TypeError` if there is none."""
    try:
        hash(hint)
    except TypeError:  # an Annotated of something
        return _schema_of(hint)
    return deepcopy(_cached_schema(hint))


def _schema_of(hint: Any) -> dict[str, Any]:
    others: list[type] = []

    def schema_of_other(cls: Any) -> dict[str, Any]:
        if is_model(cls):
            return schema_of_model(cls)
        if isinstance(cls, type) and issubclass(cls, PurePath):
            return {"type": "string", "format": "path"}
        if cls is not object:
            others.append(cls)
        return {"title": cls.__name__}  # an empty one would be none

    shape = shape_of(hint)
    try:
        schema = msgspec.json.schema(hint, schema_hook=schema_of_other)
    except Exception as error:  # a model may raise anything
        made = f"msgspec {msgspec.__version__} makes no JSON schema of this hint"
        raise TypeError(f"{made}: {describe_fully(error)}") from error
    # msgspec leaves it out: by its standard, a text without a time zone has another format.
    for kind, name in ((datetime.datetime, "date-time"), (datetime.time, "time")):
        if hint is kind:
            schema["format"] = name
    return {**(_NO_JSON if others else schema), SHAPE: shape}


_cached_schema = lru_cache(256)(_schema_of)


def payload_of(name: str, value: Any, schema: Mapping[str, Any], codec: Codec) -> Payload:
    """Return how a value is sent to a signal of this schema.

    Raise `ValueError` if it is none that the signal takes, and `PayloadError` if it can't be
    stored.
    """
    subject, shape, has_json = f"signal {name!r}", schema.get(SHAPE, {}), _has_json(schema)
    if not (has_json and is_plain(value)) and not fits(value, shape):
        raise ValueError(f"{subject} {other_type(value, shape)}")
    if not has_json:
        return codec.encode(subject, value, Any)
    try:
        payload = codec.encode_parts(subject, value)
    except ValueError as error:
        raise ValueError(f"{subject} does not take {safe_repr(value)}: {error}") from None
    check_payload(name, payload, schema)
    return payload


def check_payload(name: str, payload: Payload, schema: Mapping[str, Any]) -> None:
    """Raise `ValueError` if a signal of this schema does not take what is sent."""
    if payload.codec == "cloudpickle":
        return  # an instance of a type that JSON has no form for
    value, problem = plain_of(payload), ""
    if _has_json(schema):
        problem = mismatch(value, schema)
    elif not fits(value, schema[SHAPE]):
        problem = f"must be of type {shape_text(schema[SHAPE])}"
    if problem:
        raise ValueError(f"signal {name!r} {problem}, not {safe_text(json.dumps, value)}")


def admits(schema: Mapping[str, Any], payload: Payload) -> bool:
    """Whether a signal of this schema takes what was sent, as far as the schema tells."""
    if payload.codec == "cloudpickle":
        return not _has_json(schema)
    try:
        check_payload("", payload, schema)
    except Exception:  # what is stored may be damaged, and of any type
        return False
    return True


def take(name: str, value: Any, hint: Any, schema: Mapping[str, Any]) -> Any:
    """Return the instance of its type that a value which is sent to a signal is, or becomes.

    Raise `ValueError` if it is none that the signal takes.
    """
    shape = schema[SHAPE]
    if not _has_json(schema) and fits(value, shape):
        return value
    payload = payload_of(name, value, schema, _CODEC)
    try:
        taken = _CODEC.read(payload, hint)
    except Exception as error:  # the validator of a model may raise anything
        problem = f"signal {name!r} does not take {safe_repr(value)}: {describe_fully(error)}"
        raise ValueError(problem) from error
    if not fits(taken, shape):  # msgspec knows no bounds but its own
        raise ValueError(f"signal {name!r} {other_type(value, shape)}")
    return taken


def _has_json(schema: Mapping[str, Any]) -> bool:
    """Whether JSON has a form for a type; else it takes instances only."""
    return schema.get("not") != {}
