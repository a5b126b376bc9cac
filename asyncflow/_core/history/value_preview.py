"""Previews of values: short texts, whatever the value is and however large."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from asyncflow._core.history.results import REDACTED_OUTPUT, RestoredOutput
from asyncflow._core.text import escape_controls, safe_text
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
    shown = beginning(text, limit)
    return Preview(shown, cut=writer.is_full or shown != text)


def preview_in_line(value: object, limit: int) -> Preview:
    """Return the beginning of a value's ``repr`` in one line."""
    shown = preview(value, limit)
    text = re.sub(r"(?<=[\[({])\n *|\n *(?=[\])}])", "", shown.text)
    return shown._replace(text=re.sub(r"\n *", " ", text))


def shortened(text: str, limit: int) -> str:
    """Return a text, or its beginning and an ellipsis if it takes more bytes of HTML."""
    shown = beginning(text, limit)
    return text if shown == text else f"{shown}…"


def printable(text: str) -> str:
    """Return the text with its lines, and with all other control characters escaped."""
    return "\n".join(escape_controls(line) for line in text.expandtabs(4).split("\n"))


def size_of(text: str) -> int:
    """Return how many bytes a text takes in a page."""
    return sum(map(_size_of, text))


def _size_of(letter: str) -> int:
    return _ESCAPED.get(letter) or len(letter.encode())


def beginning(text: str, limit: int) -> str:
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
