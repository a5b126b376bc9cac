"""Checks the times and factors that users give: numbers, and such as a timer can work with."""

from __future__ import annotations

import sys

from asyncflow._text import text_of

__all__ = ["check_count", "check_limit", "check_number"]


def check_limit(what: str, limit_ms: object) -> None:
    """Check a limit in milliseconds: ``None``, or finite and above 0.

    Raises:
        TypeError: It is no number.
        ValueError: It is out of this range.
    """
    if limit_ms is None:
        return
    number = _checked_type(what, limit_ms, "a number or None")
    # A NaN would break the timers of every other step of the loop: gh-105331.
    # An integer above all floats is not infinite, but no timer can be set to it.
    if not 0 < number <= sys.float_info.max or number / 1000 == 0:
        raise ValueError(
            f"{what} must be finite and above 0, not {text_of(str, number)}; use None for no limit"
        )


def check_number(
    what: str, value: object, at_least: float, *, kind: str = "a number", unit: str = ""
) -> None:
    """Check a number that is finite and not below another one.

    Args:
        what: How the messages begin: what is checked.
        value: What a user gave.
        at_least: The smallest one.
        kind: What it must be, in words.
        unit: What it counts, with a space before.

    Raises:
        TypeError: It is no number.
        ValueError: It is out of this range.
    """
    number = _checked_type(what, value, kind)
    if not at_least <= number <= sys.float_info.max:
        raise ValueError(
            f"{what} must be finite and at least {at_least:g}{unit}, not {text_of(str, number)}"
        )


def check_count(
    what: str, value: object, at_least: int, *, kind: str = "an int", hint: str = ""
) -> None:
    """Check how many of something there are to be.

    Args:
        what: How the messages begin: what is checked.
        value: What a user gave.
        at_least: The smallest number.
        kind: What it must be, in words.
        hint: How the message ends if the number is too small.

    Raises:
        TypeError: It is no integer.
        ValueError: It is too small.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be {kind}, not {type(value).__name__}")
    if value < at_least:
        raise ValueError(f"{what} must be at least {at_least}, not {value}{hint}")


def _checked_type(what: str, value: object, kind: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be {kind}, not {type(value).__name__}")
    return value
