"""Bounds what a value takes when it is written out as text, before that is done.

A few lists that refer to each other may stand for a billion elements, and each of them is written
as often as it is referred to. So a value is counted against a budget first. The count stops as soon
as the budget is spent, and no text takes less than what it counts: each element of a container at
least two bytes, a text its length.
"""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from sys import getrefcount
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias

from asyncflow._core.text import cut, safe_text

MOST_BYTES = 10_000_000
"""How many bytes of one value appear in a text that has no limit of its own."""

Extent: TypeAlias = Literal["plain", "other", "large", "deep"]
"""A value that is within a budget is ``"plain"`` if it has only what JSON gives back as it was.
Exact types count: the text, integer, list or dictionary of a subclass is no plain one."""

_CONSTANTS = frozenset({type(None), bool})
_TEXT = frozenset({str})
_WORD = 2**64
_MANY = 20

_SHOWN = (
    *((BaseException, "args"), (SimpleNamespace, "__dict__")),
    *((ChainMap, "maps"), (UserDict, "data"), (UserList, "data")),
)
"""Types whose ``repr`` shows what an attribute has."""

_UNSHARED = 3
"""The most references to the value of a loop, if only one object refers to it."""


class _Found:
    """What is known of the parts of a value."""

    __slots__ = ("others", "shared")

    def __init__(self) -> None:
        self.others: set[type] = set()
        """The types of those that are not plain."""
        self.shared: dict[int, tuple[object, int]] = {}
        """What containers count, by their ids; and they themselves, so that they stay."""


def extent(value: object, max_bytes: int) -> Extent:
    """Return whether a value is within a budget, and whether it is plain.

    It takes time in proportion to the budget at most, some 20 ms for a million bytes, and calls no
    method of the value but what reads the fields of an object.
    """
    if type(value) in _CONSTANTS:
        return "plain"
    found = _Found()
    try:
        if _left_after((value,), max_bytes, found) < 0:
            return "large"
    except RecursionError:
        return "deep"
    return "other" if found.others else "plain"


def safe_repr(value: object) -> str:
    """Return the ``repr`` of a value, or what stands for it if that raises or is too large."""
    found = extent(value, MOST_BYTES)
    if found in ("plain", "other"):
        return cut(safe_text(repr, value), MOST_BYTES)
    kind = type(value)
    count = f" of {len(value):,}" if kind in (list, tuple, dict) else ""  # type: ignore[arg-type]
    return f"<{kind.__name__}{count}, too {found} to be shown>"


def _field_names(cls: Any) -> tuple[str, ...] | None:
    if hasattr(cls, "__dataclass_fields__"):
        return tuple(field.name for field in dataclasses.fields(cls))
    if hasattr(cls, "__struct_fields__"):
        return tuple(cls.__struct_fields__)
    if hasattr(cls, "__pydantic_root_model__"):
        return tuple(cls.__pydantic_fields__)
    if hasattr(cls, "__attrs_attrs__"):
        return tuple(field.name for field in cls.__attrs_attrs__)
    return None


field_names: Callable[[type], tuple[str, ...] | None] = lru_cache(256)(_field_names)
"""Return the names of the fields of a class of dataclasses, attrs, msgspec or pydantic; ``None`` if
it is none of these. The cache is small, because a class may have been made for one pipeline."""


def _left_after(values: Iterable[Any], left: int, found: _Found) -> int:
    """Return how much of a budget the values leave: something below 0 if that is exceeded."""
    for each in values:
        kind = type(each)
        if kind is str:
            left -= len(each)
        elif kind is int:
            if not -_WORD < each < _WORD:
                left -= each.bit_length() >> 2  # it has more decimal digits
        elif kind is dict or kind is list or kind is tuple:
            if getrefcount(each) <= _UNSHARED:
                left = _left_after_parts(each, left, found)
            elif id(each) in found.shared:
                left -= found.shared[id(each)][1]
            else:
                before = left
                left = _left_after_parts(each, left, found)
                found.shared[id(each)] = each, before - left
        elif kind is float:
            if not math.isfinite(each):
                found.others.add(float)
        elif kind not in _CONSTANTS:
            size, parts = _taken_apart(each, found)
            left = _left_after(parts, left - size, found)
        if left < 0:
            break
    return left


def _left_after_parts(value: Any, left: int, found: _Found) -> int:
    """Do what `_left_after` does, for one dictionary, list or tuple."""
    kind = type(value)
    if kind is dict:
        left -= 5 * len(value)
        if _TEXT.issuperset(map(type, value)):
            return _left_after(value.values(), left - len("".join(value)), found)
        found.others.add(dict)
        return _left_after(chain(value, value.values()), left, found)
    if kind is tuple:
        found.others.add(tuple)
    left -= 2 * len(value)
    if left < 0 or len(value) < _MANY:
        return _left_after(value, left, found)
    return _left_after_many(value, left, found)


def _left_after_many(values: Sequence[Any], left: int, found: _Found) -> int:
    """Do what `_left_after` does, some times faster if all values are rows, or are numbers."""
    kinds = {*map(type, values)}
    if kinds == {dict}:
        size = 5 * sum(map(len, values))
        if size > left:
            return left - size
        if _TEXT.issuperset(map(type, chain.from_iterable(values))):
            size += sum(map(len, chain.from_iterable(values)))
            return _left_after(chain.from_iterable(map(dict.values, values)), left - size, found)
    if kinds == {int}:
        with suppress(OverflowError):
            array("q", values)
            return left
    return _left_after(values, left, found)


def _taken_apart(value: Any, found: _Found) -> tuple[int, Iterable[Any]]:
    """Return what a value of a less common type counts by itself, and its parts."""
    kind = type(value)
    found.others.add(kind)
    names = field_names(kind)
    if names is not None:
        parts = [_attribute(value, name) for name in names]
        if hasattr(kind, "__pydantic_root_model__"):
            parts.append(_attribute(value, "__pydantic_extra__"))
        return sum(map(len, names)) + 4 * len(names), parts
    # The methods of the built-in types: what a subclass has in their place is not called.
    for base in (set, frozenset, list, tuple, deque):
        if issubclass(kind, base):
            return 2 * base.__len__(value), base.__iter__(value)
    if issubclass(kind, dict):
        return 5 * dict.__len__(value), chain(dict.__iter__(value), dict.values(value))
    if issubclass(kind, str):
        return str.__len__(value), ()
    if issubclass(kind, bytes | bytearray | memoryview):
        return memoryview(value).nbytes, ()
    if kind.__module__ == "decimal":
        return len(safe_text(str, value)), ()
    return 0, [_attribute(value, name) for base, name in _SHOWN if base in kind.__mro__]


def _attribute(value: object, name: str) -> object:
    try:
        return getattr(value, name, None)
    except Exception:  # it is the user's object: whatever it raises must not spread
        return None
