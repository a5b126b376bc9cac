"""What names, values and errors read like in one line, whatever they hold or raise."""

from __future__ import annotations

import re
from collections.abc import Callable

from asyncflow._errors import RestoredError

__all__ = ["describe", "in_full", "in_one_line", "name_to_add", "text_of"]

# What would end a line, move the cursor, turn the direction of writing or could not be printed.
# Less than what `str.isprintable` refuses: the joiners of emoji and of Persian are harmless.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def in_one_line(text: str) -> str:
    r"""Return the text with its control characters written as Python writes them: ``\n``."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def describe(error: BaseException) -> str:
    """Return ``ErrorType: message`` in one line, even of an error that cannot be printed."""
    name, message = type(error).__name__, text_of(str, error)
    if isinstance(error, RestoredError):
        name, message = error.type_name.rpartition(".")[2], error.message
    lines = message.strip().splitlines()
    return in_one_line(f"{name}: {lines[0]}" if lines else name)


def in_full(error: BaseException) -> str:
    """Return ``ErrorType: message`` in one line, all of the message."""
    return in_one_line(f"{type(error).__name__}: {text_of(str, error)}")


def text_of(render: Callable[[object], str], value: object) -> str:
    """Return what ``str`` or ``repr`` gives for the value, or a placeholder if that raises."""
    try:
        return render(value)
    except Exception as error:  # it is the user's object: whatever it raises must not spread
        return f"<{type(value).__name__}, whose {render.__name__} raised {type(error).__name__}>"


def name_to_add(function: object) -> str:
    """Return the name of a function after a blank, or nothing if it has none, as a lambda."""
    name = getattr(function, "__name__", "")
    return f" {name}" if name.isidentifier() else ""
