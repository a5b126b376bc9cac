"""Reads the inputs of a run from text and JSON, and converts them to the types of the actions."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

import click
import msgspec

from asyncflow._core.pipeline.annotations import input_types
from asyncflow._core.pipeline.step import WorkflowStep, parameters_of
from asyncflow._core.text import did_you_mean
from asyncflow.journal._codec.models import ModelError, is_model, model_from_json

_HOW_TO_WRITE: Mapping[Any, str] = {
    bool: "true or false",
    int: "such as 3",
    float: "such as 0.5",
    Decimal: "such as 9.99",
    date: "such as 2024-06-01",
    datetime: "such as 2024-06-01T12:00:00",
    time: "such as 12:30:00",
    timedelta: "such as P1D or PT30M",
    UUID: "such as 6f1c1e9e-0d0b-4d7e-9a55-0c1c5a1f2b3d",
    bytes: "in Base64",
}
_VARIABLE = "@env:"
_CONSTRAINT = re.compile(r"Expected `[^`]*` ")
"""How an error of msgspec starts that names a constraint beyond the type: "of length <= 3"."""


def read_inputs(
    steps: Iterable[WorkflowStep],
    *,
    file: str | None,
    text: str | None,
    pairs: Iterable[str],
) -> dict[str, Any]:
    """Return the inputs of a run; of the arguments here, a later one takes precedence.

    ``file`` is the content of a JSON file, ``text`` is JSON, and ``pairs`` are ``name=text`` each.
    An error shows no value, since it may be secret.
    """
    steps = tuple(steps)
    values = {**_object("--inputs", file), **_object("--input-json", text)}
    texts = dict(_pair(pair) for pair in pairs)
    types = input_types(steps, {**values, **texts})
    _check_names(steps, types)
    typed = {name: _from_json(name, value, types[name]) for name, value in values.items()}
    return {**typed, **{name: _from_text(name, each, types[name]) for name, each in texts.items()}}


def _object(option: str, text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        values = json.loads(text.removeprefix("\ufeff"))  # editors on Windows write it
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"{option} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise click.UsageError(f'{option} must be a JSON object, such as {{"days": 3}}')
    return values


def _pair(pair: str) -> tuple[str, str]:
    name, is_there, text = pair.partition("=")
    if not is_there or not name:
        raise click.UsageError("--input takes NAME=VALUE, such as --input days=3")
    return name, _text_from(name, text) if text.startswith("@") else text


def _text_from(name: str, place: str) -> str:
    """Return the text of a variable or a file, which others don't see in a list of processes."""
    if place.startswith("@@"):
        return place[1:]
    if place.startswith(_VARIABLE):
        variable = place.removeprefix(_VARIABLE)
        if variable not in os.environ:
            raise click.UsageError(f"input {name!r}: there is no variable {variable!r}")
        return os.environ[variable]
    try:
        return Path(place[1:]).read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not encoded in UTF-8"
        raise click.UsageError(
            f"input {name!r}: can't read the file after @: {why}; write a text that begins with @ "
            "as @@"
        ) from None


def _check_names(steps: tuple[WorkflowStep, ...], names: Mapping[str, object]) -> None:
    taken = parameters_of(steps)
    for name in names:
        if name not in taken:
            raise click.UsageError(f"no step takes an input {name!r}{did_you_mean(name, taken)}")


def _from_json(name: str, value: Any, kind: Any) -> Any:
    try:
        if hasattr(kind, "__pydantic_validator__"):  # a dataclass of pydantic too
            return model_from_json(kind, value)
        return msgspec.convert(value, kind, str_keys=True, dec_hook=_other_value)
    except Exception as error:  # a user's type may raise anything
        raise _wrong_type(name, kind, error) from None


def _from_text(name: str, text: str, kind: Any) -> Any:
    """Return the value of a text: 3 for an int, a list if it is a JSON array."""
    if kind in (Any, str, object):
        return text
    try:
        return msgspec.convert(text, kind, strict=False, dec_hook=_other_value)
    except Exception as error:  # it may be JSON
        broken = error if _CONSTRAINT.match(str(error)) else None
    try:
        return _from_json(name, json.loads(text), kind)
    except (ValueError, RecursionError):
        raise _wrong_type(name, kind, broken) from None
    except click.UsageError:
        if broken is None:
            raise
        raise _wrong_type(name, kind, broken) from None


def _other_value(kind: type, value: Any) -> Any:
    """Convert to a path or a model of pydantic, which msgspec does not support."""
    if is_model(kind):
        return model_from_json(kind, value)
    if issubclass(kind, PurePath) and isinstance(value, str):
        return kind(value)
    raise NotImplementedError(f"{kind.__name__} can't be made from text")


def _wrong_type(name: str, kind: Any, error: Exception | None = None) -> click.UsageError:
    # Other errors may contain the value.
    is_of_model = isinstance(error, ModelError) or isinstance(
        getattr(error, "__cause__", None), ModelError
    )
    why = f": {error}" if is_of_model or str(error).startswith("Expected") else ""
    return click.UsageError(f"input {name!r} must be {_accepted(kind)}{why}")


# What is accepted, in words.


def _accepted(kind: Any) -> str:
    """Return the name of a type, and how to write a value of it."""
    while hasattr(kind, "__supertype__"):  # a NewType, which may be of another one
        kind = kind.__supertype__
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _accepted(arguments[0])
    if origin in (Union, UnionType):
        return ", or ".join(dict.fromkeys(map(_accepted, arguments)))
    if origin is Literal:
        return _one_of(arguments)
    if kind is NoneType:
        return "null"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _one_of([each.value for each in kind])
    is_plain = isinstance(kind, type) and not arguments
    name = kind.__name__ if is_plain else str(kind).replace("typing.", "")
    return f"{name}, {_HOW_TO_WRITE.get(kind, 'as JSON') if is_plain else 'as JSON'}"


def _one_of(values: Sequence[Any]) -> str:
    return f"one of {', '.join('null' if value is None else repr(value) for value in values)}"
