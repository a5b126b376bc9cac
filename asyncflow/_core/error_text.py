"""Errors as text: their type and their message, in one line or in several."""

from __future__ import annotations

from asyncflow._core.errors import RestoredError
from asyncflow._core.text import LONGEST_LINE, cut, escape_controls, safe_text


def describe_error(error: BaseException) -> str:
    """Return ``ErrorType: message`` in one line, the first of the message."""
    return error_lines(error)[0]


def error_lines(error: BaseException) -> list[str]:
    """Return ``ErrorType: message``, each line of the message as one."""
    name, message = type(error).__name__, safe_text(str, error)
    if isinstance(error, RestoredError):
        name, message = error.type_name.rpartition(".")[2], error.message
    lines = message[:LONGEST_LINE].strip().splitlines()  # the message may be larger than memory
    if not lines:
        return [escape_controls(name)]
    lines[0] = f"{name}: {lines[0]}"
    lines[-1] += cut(message, LONGEST_LINE)[LONGEST_LINE:]
    return [escape_controls(line.rstrip()) for line in lines]


def describe_fully(error: BaseException) -> str:
    """Return ``ErrorType: message`` in one line, with all lines of the message."""
    message = cut(safe_text(str, error), LONGEST_LINE)
    return escape_controls(f"{type(error).__name__}: {message}")
