"""Text for people: what is shortened, escaped, counted or suggested, and errors in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from asyncflow._core.errors import RestoredError

LONGEST_LINE = 10_000
"""How many characters of an error's message are shown in a line or a traceback."""
LONGEST_TEXT = 100_000
"""How many characters are stored of an error's message, and of its traceback."""


def cut(text: str, limit: int) -> str:
    """Return the text; of a longer one, the beginning and how many characters are missing."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… ({len(text) - limit:,} more characters)"


def safe_text(render: Callable[[object], str], value: object) -> str:
    """Return what ``str`` or ``repr`` gives for the value, or a placeholder if that raises."""
    try:
        return render(value)
    except Exception as error:  # it is the user's object: whatever it raises must not spread
        return f"<{type(value).__name__}, whose {render.__name__} raised {type(error).__name__}>"


# What would end a line, move the cursor, turn the direction of writing or could not be printed.
# Less than what `str.isprintable` refuses: the joiners of emoji and of Persian are harmless.
_UNSAFE = "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"


def escape_controls(text: str) -> str:
    r"""Return the text with its control characters written as Python writes them: ``\n``."""
    return re.sub(_UNSAFE, lambda found: found[0].encode("unicode_escape").decode(), text)


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


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the likeliest misspelling, or an empty string."""
    found = nearest(word, known)
    return "" if found is None else f" (did you mean {found!r}?)"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the likeliest misspelling of a word, if there is one."""
    import difflib  # only an error message needs it, and it takes a while to import

    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def name_suffix(function: object) -> str:
    """Return the name of a function after a blank, or nothing if it has none, as a lambda."""
    name = getattr(function, "__name__", "")
    return f" {name}" if name.isidentifier() else ""


def plural(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 step``, ``2,000 steps``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def left_out(number: int, noun: str, why: str) -> str:
    """Return what stands in the place of what is missing: ``2 records were left out: …``."""
    return f"{plural(number, noun)} {'was' if number == 1 else 'were'} left out: {why}"


def duration(ms: float) -> str:
    """Return milliseconds in the unit that suits them: ``0.2 ms``, ``1.5 s``, ``3 d 4 h``."""
    if ms < 0.95:
        return f"{ms:.1g} ms"
    if ms < 999.5:
        return f"{ms:.0f} ms"
    if ms < 59_950:
        return f"{ms / 1000:.1f} s"
    minutes, seconds = divmod(round(ms / 1000), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
