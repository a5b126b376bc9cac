"""The attributes of a run: which names and values they may have, and how a person types them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from math import isfinite

from asyncflow._core.arguments import AttributeValue
from asyncflow._core.text import safe_text

_MOST, _LONGEST_NAME, _LONGEST_TEXT = 16, 64, 200
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_LARGEST = 2**63


def checked_attributes(attributes: object) -> dict[str, AttributeValue]:
    """Return a copy of attributes with plain values, once they are checked.

    Raise `TypeError` or `ValueError`, which name the attribute and what is wrong with it.
    """
    if not isinstance(attributes, Mapping):
        raise TypeError(
            "attributes must be a mapping of name to str, int, float or bool, not "
            f"{type(attributes).__name__}"
        )
    if len(attributes) > _MOST:
        raise ValueError(
            f"a run has at most {_MOST} attributes, not {len(attributes):,}; what no list needs "
            "belongs in an input"
        )
    return {_checked_name(name): _plain(name, value) for name, value in attributes.items()}


def _checked_name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"the names of attributes must be str, not {type(name).__name__}")
    if len(name) > _LONGEST_NAME or not _NAME.fullmatch(name):
        raise ValueError(
            f"invalid attribute name {safe_text(repr, name)}; it begins with a letter and has at "
            f"most {_LONGEST_NAME} letters, digits, '_', '.' and '-', all of ASCII"
        )
    return str.__str__(name)  # of an Enum too, whose own may say something else


def _plain(name: str, value: object) -> AttributeValue:
    """Return a value as its very type: one of a subclass, such as a StrEnum, is plain then."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        if len(value) > _LONGEST_TEXT:
            raise ValueError(
                f"attribute {name!r} must have at most {_LONGEST_TEXT} characters, not "
                f"{len(value):,}; what is longer belongs in an input"
            )
        return str.__str__(value)
    if isinstance(value, int):
        if not -_LARGEST <= value < _LARGEST:
            raise ValueError(f"attribute {name!r} must fit in 64 bits; give it as a str")
        return int(value)
    if isinstance(value, float):
        if not isfinite(value):
            raise ValueError(f"attribute {name!r} must be a finite number, not {value}")
        return float(value) + 0.0  # -0.0 is 0.0
    raise TypeError(
        f"attribute {name!r} must be a str, int, float or bool, not {type(value).__name__}"
    )


def attributes_from(texts: Iterable[str]) -> dict[str, AttributeValue]:
    """Return attributes that a person typed, each as ``name=value``.

    A value is a number or a bool if JSON reads it as one, a JSON string without its quotes, and
    else the text itself.

    Raise `ValueError` if a text has no ``=``, or a name is there twice, or as `checked_attributes`.
    """
    found: dict[str, AttributeValue] = {}
    for text in texts:
        name, equals, written = text.partition("=")
        if not equals:
            raise ValueError(f"invalid attribute {text!r}; give NAME=VALUE, such as tenant=acme")
        if name in found:
            raise ValueError(f"attribute {name!r} is given twice")
        found[name] = _value_of(written)
    return checked_attributes(found)


def _value_of(written: str) -> AttributeValue:
    try:
        value = json.loads(written)
    except (ValueError, RecursionError):
        return written
    return value if isinstance(value, str | int | float) else written


def attribute_text(name: str, value: AttributeValue) -> str:
    """Return an attribute as `attributes_from` reads it."""
    is_plain = isinstance(value, str) and _value_of(value) == value
    return f"{name}={value if is_plain else json.dumps(value)}"


def attributes_text(attributes: Mapping[str, AttributeValue]) -> str:
    """Return attributes in one line: ``tenant=acme, priority=2``."""
    return ", ".join(attribute_text(name, value) for name, value in attributes.items())
