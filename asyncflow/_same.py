"""Whether a value came back as it was: exact types, exact values, the order of dictionaries.

``==`` does not do: it takes ``True`` for 1 and ``-0.0`` for ``0.0``, it doesn't take NaN for NaN,
and classes define it as they like.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import marshal
import math
import uuid
from typing import Any

from asyncflow._core.errors import in_one_line, text_of

__all__ = ["difference"]

_BY_VALUE = (str, int, bytes, bytearray)
_BY_REPR = (
    *(float, bool, type(None), decimal.Decimal, uuid.UUID, datetime.timedelta),
    *(datetime.datetime, datetime.date, datetime.time),
)
"""Their ``repr`` tells all about them: of a date, its time zone and ``fold`` too."""


def difference(one: Any, other: Any, *, simple: bool = False) -> str:
    """Return what of a value came back different and where, in words; nothing if it is the same.

    Args:
        one: The value.
        other: What came back.
        simple: Whether ``other`` is made of nothing but what JSON has, and tuples.
    """
    if simple:
        try:
            # Many times faster, and as strict: of the bytes that it also makes of other objects,
            # none can be in what is simple. Version 2 does not ask what is interned or shared.
            if marshal.dumps(one, 2) == marshal.dumps(other, 2):
                return ""
        except ValueError:  # an instance of another class
            pass
    try:
        return _difference(one, other, "")
    except RecursionError:
        return "it is nested too deeply to be compared"
    except Exception as error:  # the user's objects may raise anything
        return f"it can't be compared with what comes back: {type(error).__name__}"


def _difference(one: Any, other: Any, path: str) -> str:
    kind = type(one)
    if kind is not type(other):
        if kind is float and not math.isfinite(one):
            return _say(f"JSON has no {one!r}", path)
        return _say(f"{_name(kind)} would come back as {_name(type(other))}", path)
    if kind in _BY_VALUE:
        return "" if one == other else _changed(one, other, path)
    if kind in _BY_REPR:
        return "" if repr(one) == repr(other) else _changed(one, other, path)
    if isinstance(one, enum.Enum):
        return "" if one is other else _changed(one, other, path)
    if kind is dict:
        return _in_dict(one, other, path)
    if isinstance(one, list | tuple):
        return _in_sequence(one, other, path)
    if kind in (set, frozenset):
        return _in_set(one, other, path)
    names = _fields(one)
    if names is None:
        return _say(f"there is no telling whether a {_name(kind)} comes back the same", path)
    for name in names:
        found = _difference(getattr(one, name), getattr(other, name), f"{path}.{name}")
        if found:
            return found
    return ""


def _in_sequence(one: Any, other: Any, path: str) -> str:
    if len(one) != len(other):
        return _say(f"{len(one)} elements would come back as {len(other)}", path)
    for index, (mine, theirs) in enumerate(zip(one, other, strict=True)):
        if found := _difference(mine, theirs, f"{path}[{index}]"):
            return found
    return ""


def _in_dict(one: dict[Any, Any], other: dict[Any, Any], path: str) -> str:
    if len(one) != len(other):
        return _say(f"{len(one)} keys would come back as {len(other)}", path)
    for (key, mine), (back, theirs) in zip(one.items(), other.items(), strict=True):
        if found := _difference(key, back, f"a key of {path}" if path else "a key"):
            return found
        if found := _difference(mine, theirs, f"{path}[{_short(key)}]"):
            return found
    return ""


def _in_set(one: Any, other: Any, path: str) -> str:
    if len(one) != len(other):
        return _say(f"{len(one)} elements would come back as {len(other)}", path)
    partners = {each: each for each in other}
    for each in one:
        if each not in partners:
            return _say(f"{_short(each)} would not come back", path)
        if found := _difference(
            each, partners[each], f"an element of {path}" if path else "an element"
        ):
            return found
    return ""


def _fields(value: Any) -> tuple[str, ...] | None:
    """Return the fields of an instance of a dataclass, of attrs or of msgspec's Struct."""
    cls: Any = type(value)
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    if hasattr(cls, "__struct_fields__"):
        return tuple(cls.__struct_fields__)
    if hasattr(cls, "__attrs_attrs__"):
        return tuple(field.name for field in cls.__attrs_attrs__)
    return None


def _changed(one: Any, other: Any, path: str) -> str:
    return _say(f"{_short(one)} would come back as {_short(other)}", path)


def _say(what: str, path: str) -> str:
    return f"{what}, at {_middle_out(path)}" if path else what


def _name(cls: type) -> str:
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )


def _short(value: Any) -> str:
    return _middle_out(in_one_line(text_of(repr, value)))


def _middle_out(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:50]}…{text[-25:]}"
