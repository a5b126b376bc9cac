"""Decides whether an input of a run has the same value as before.

``==`` is too lax: it takes ``True`` and ``1.0`` for 1, and ``-0.0`` for ``0.0``, at any depth. The
order of a dictionary does not count, since JSON from another program may have any.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from asyncflow._core.value_size import field_names


def is_same_value(one: Any, other: Any) -> bool:
    """Whether two values have the same types and are equal, at any depth.

    Raise what a class of the user raises that can't compare its objects, as arrays can't.
    """
    kind = type(one)
    if kind is not type(other):
        return False
    if kind is float:
        return repr(one) == repr(other)
    if isinstance(one, dict):
        return _has_same_keys(one, other) and all(
            is_same_value(value, other[key]) for key, value in one.items()
        )
    if isinstance(one, set | frozenset):
        return _has_same_keys(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same_value, one, other))
    names = field_names(kind)
    if names is None:
        return bool(one == other)
    if hasattr(kind, "__pydantic_root_model__"):
        names += ("__pydantic_extra__", "__pydantic_private__")
    return all(is_same_value(getattr(one, name), getattr(other, name)) for name in names)


def _has_same_keys(one: Collection[Any], other: Collection[Any]) -> bool:
    """Whether two sets, or the keys of two dictionaries, are the same."""
    originals = {key: key for key in other}
    return len(one) == len(originals) and all(
        key in originals and is_same_value(key, originals[key]) for key in one
    )
