"""Reads the inputs of a run, as text or JSON, and gives them the types that the actions ask for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import click
import msgspec

from asyncflow._errors import nearest
from asyncflow._hints import input_types
from asyncflow._step import WorkflowStep, parameters_of

__all__ = ["read_inputs"]


def read_inputs(
    steps: Iterable[WorkflowStep],
    *,
    file: str | None,
    text: str | None,
    pairs: Iterable[str],
) -> dict[str, Any]:
    """Return the inputs of a run; what is given last here precedes.

    Args:
        steps: The steps, whose annotations say the types.
        file: The JSON of a file.
        text: JSON.
        pairs: ``name=text`` each.

    Raises:
        click.UsageError: One of them can't be read, has not the type that is asked for, or no step
            takes it. No value is told, since it may be secret.
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
        values = json.loads(text.removeprefix("\ufeff"))  # which editors of Windows write
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"{option} is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise click.UsageError(f'{option} must be a JSON object, such as {{"days": 3}}')
    return values


def _pair(pair: str) -> tuple[str, str]:
    name, is_there, text = pair.partition("=")
    if not is_there or not name:
        raise click.UsageError("--input takes NAME=VALUE, such as --input days=3")
    return name, text


def _check_names(steps: tuple[WorkflowStep, ...], names: Mapping[str, object]) -> None:
    taken = parameters_of(steps)
    for name in names:
        if name not in taken:
            raise click.UsageError(f"no step takes an input {name!r}{nearest(name, taken)}")


def _from_json(name: str, value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind, str_keys=True, dec_hook=_path)
    except Exception as error:  # types of users may raise anything
        raise _wrong_type(name, kind, error) from None


def _from_text(name: str, text: str, kind: Any) -> Any:
    """Return what a text means to its reader: 3 for an int, a list if it is JSON of one."""
    if kind in (Any, str, object):
        return text
    try:
        return msgspec.convert(text, kind, strict=False, dec_hook=_path)
    except Exception as error:
        first = error
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise _wrong_type(name, kind, first) from None
    return _from_json(name, value, kind)


def _path(kind: type, value: Any) -> Any:
    """Make what msgspec does not know by itself."""
    if issubclass(kind, PurePath) and isinstance(value, str):
        return kind(value)
    raise NotImplementedError(f"{kind.__name__} can be made of no text")


def _wrong_type(name: str, kind: Any, error: Exception) -> click.UsageError:
    wanted = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
    # Other words may repeat the value.
    why = f": {error}" if str(error).startswith("Expected") else ""
    return click.UsageError(f"input {name!r} must be {wanted}{why}")
