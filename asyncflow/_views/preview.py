"""Previews of values, errors and moments: short texts, whatever the value is and however large."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, tzinfo
from itertools import islice
from typing import NamedTuple

from asyncflow._core.errors import RestoredError
from asyncflow._core.results import REDACTED_OUTPUT, RestoredOutput, to_restored_error
from asyncflow._core.text import describe_error, escape_controls, safe_text
from asyncflow._core.value_size import safe_repr

_DEEPEST = 8
"""How deep a preview looks into a value, which may contain itself."""


class Preview(NamedTuple):
    text: str
    cut: bool
    """Whether the value is longer."""
    redacted: bool = False


def preview(value: object, limit: int) -> Preview:
    """Return the beginning of a value's ``repr``, in at most ``limit`` bytes of HTML.

    It reads no more than that of a large text, list or mapping, and breaks long ones into lines.
    """
    # Only its type is safe to look at: anything else may raise.
    if type(value) is RestoredOutput and value == REDACTED_OUTPUT:
        return Preview("redacted", cut=False, redacted=True)
    writer = _Writer(limit)
    writer.write(value, 0)
    text = printable("".join(writer.parts))
    shown = _beginning(text, limit)
    return Preview(shown, cut=writer.is_full or shown != text)


def error_words(error: BaseException, limit: int) -> str:
    """Return ``ErrorType: message`` in one line of at most about ``limit`` bytes of HTML."""
    return shortened(describe_error(error), limit)


def shortened(text: str, limit: int) -> str:
    """Return a text, or its beginning and an ellipsis if it takes more bytes of HTML."""
    shown = _beginning(text, limit)
    return text if shown == text else f"{shown}…"


def error_trace(error: BaseException, limit: int) -> Preview:
    """Return the traceback of an error; a long one loses its middle."""
    restored = to_restored_error(error)
    text = restored.traceback or (
        f"{restored.type_name}: {restored.message}" if isinstance(error, RestoredError) else ""
    )
    text = printable(text.rstrip() or describe_error(error))
    if _size(text) <= limit:
        return Preview(text, cut=False)
    head = _beginning(text, limit // 3)
    tail = _beginning(text[::-1], limit - limit // 3)[::-1]
    left_out = len(text) - len(head) - len(tail)
    return Preview(f"{head}\n… {left_out:,} characters left out …\n{tail}", cut=True)


def printable(text: str) -> str:
    """Return the text with its lines, and with all other control characters escaped."""
    return "\n".join(escape_controls(line) for line in text.expandtabs(4).split("\n"))


def _size(text: str) -> int:
    """Return how many bytes a text takes in a page."""
    return sum(map(_size_of, text))


def _size_of(letter: str) -> int:
    return _ESCAPED.get(letter) or len(letter.encode())


def _beginning(text: str, limit: int) -> str:
    """Return the beginning of a text that takes at most ``limit`` bytes of a page."""
    left = limit
    for at, letter in enumerate(text):
        left -= _size_of(letter)
        if left < 0:
            return text[:at]
    return text


_ESCAPED = {"&": 5, "<": 4, ">": 4}


class _Writer:
    """Writes a value into parts of text until there are enough characters."""

    def __init__(self, limit: int) -> None:
        self.parts: list[str] = []
        self._left = limit

    @property
    def is_full(self) -> bool:
        return self._left < 0

    def _put(self, text: str) -> None:
        self.parts.append(text)
        self._left -= len(text)

    def write(self, value: object, depth: int) -> None:
        kind = type(value)
        if kind is RestoredOutput:
            assert isinstance(value, RestoredOutput)
            self._put(value.text[: self._left + 1])
        elif kind is str or kind is bytes:
            self._put(safe_text(repr, value[: self._left + 1]))  # type: ignore[index]
        elif kind in _BRACKETS and depth < _DEEPEST:
            self._write_all(value, depth)
        elif kind in _BRACKETS:
            self._put("…")
        else:
            self._put(safe_repr(value)[: self._left + 1])

    def _write_all(self, value: object, depth: int) -> None:
        before, after = _BRACKETS[type(value)]
        assert isinstance(value, Iterable)
        if not value:
            self._put(_EMPTY.get(type(value), before + after))
            return
        indent = "\n" + "  " * (depth + 1)
        # What is short and flat stays in one line.
        apart, around = (", ", "") if _is_flat(value) else (f",{indent}", indent)
        self._put(before + around)
        for number, each in enumerate(value.items() if isinstance(value, dict) else value):
            if self.is_full:
                return
            if number:
                self._put(apart)
            if isinstance(value, dict):
                key, each = each
                self.write(key, depth + 1)
                self._put(": ")
            self.write(each, depth + 1)
        if type(value) is tuple and len(value) == 1:
            self._put(",")
        self._put(("\n" + "  " * depth if around else "") + after)


_BRACKETS: dict[type, tuple[str, str]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    dict: ("{", "}"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
}
_EMPTY: dict[type, str] = {set: "set()", frozenset: "frozenset()"}
_PLAIN = (type(None), bool, int, float)


def _is_flat(value: Iterable[object]) -> bool:
    if isinstance(value, dict):
        return len(value) <= 4 and all(map(_is_short, [*value, *value.values()]))
    few = list(islice(value, 40))
    return all(type(each) in _PLAIN for each in few) or (len(few) <= 4 and all(map(_is_short, few)))


def _is_short(value: object) -> bool:
    return type(value) in _PLAIN or (type(value) is str and len(value) <= 12)


def moment_text(wall_time: float, zone: tzinfo = UTC) -> str:
    """Return seconds since the epoch as date and time: ``2024-06-01 14:00:00 UTC+02:00``.

    All displays write times like that, but for those on an axis. ``times.js`` does the same in a
    browser, whose zone it knows.
    """
    moment = _moment(wall_time, zone)
    if moment is None:
        return "at an unknown time"
    return f"{moment:%Y-%m-%d %H:%M:%S} {zone_name(moment)}"


def local_moment_text(wall_time: float) -> str:
    """Return seconds since the epoch as `moment_text` does, in the zone of this machine then."""
    return moment_text(wall_time, local_zone(wall_time))


def local_zone(wall_time: float) -> tzinfo:
    """Return the zone of this machine at a time in seconds since the epoch."""
    moment = _moment(wall_time, UTC)
    return UTC if moment is None else moment.astimezone().tzinfo or UTC


def zone_name(moment: datetime) -> str:
    """Return the zone of a time by its offset: ``UTC``, ``UTC+02:00``."""
    offset = moment.isoformat(timespec="seconds")[19:]
    return "UTC" if offset == "+00:00" else f"UTC{offset}"


def ago(seconds: float) -> str:
    """Return how long ago something was, roughly: ``12 s ago``, ``3 min ago``, ``2 d ago``."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= (2 * length if unit == "d" else length):
            return f"{int(seconds // length)} {unit} ago"
    return "just now" if seconds < 1 else f"{int(seconds)} s ago"


def moment_iso(wall_time: float) -> str:
    """Return seconds since the epoch in ISO 8601; empty if no calendar has that time."""
    moment = _moment(wall_time, UTC)
    return "" if moment is None else moment.isoformat(timespec="milliseconds")


def _moment(wall_time: float, zone: tzinfo) -> datetime | None:
    try:
        return datetime.fromtimestamp(wall_time, zone)
    except (ValueError, OverflowError, OSError):
        return None
