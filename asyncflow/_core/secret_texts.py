"""The texts of secret values, and how they are replaced in what steps say.

Rules:

1. Each place of a text is looked up among the secrets, so that a line costs the same however many
   there are: a secret input may be a mapping of thousands.
2. Where secrets overlap in a text, all of them are replaced, so that no part of one is left.
3. A value is taken apart at once: the action that receives it may change it.
4. What a step says in a nested run may have the secrets of its outer run in it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

_SECRET = "<secret>"
"""What stands for a secret text."""

_SHORTEST = 4
"""A shorter text would be found in many others."""
_SECRET_PARTS = 1_000
"""How many parts of a secret value are looked at."""
_FEW = 50
"""Up to so many beginnings of secrets, to search a text for each is faster than to look up each of
its places."""


class SecretTexts:
    """The secrets that a run knows, those of the run around it included. Any thread may use it.

    Args:
        outer: Those of the run around it.
    """

    def __init__(self, outer: SecretTexts | None = None) -> None:
        self._outer = outer
        self._lock = threading.RLock()
        self._texts: set[str] = set()
        self._lengths: dict[str, list[int]] = {}
        """The lengths of the secrets that begin with so many characters, the longest first."""

    def add(self, value: object) -> None:
        """Replace the texts of a secret value, from now on."""
        found = {*_texts_of(value)}  # before the lock: it looks into the user's objects
        with self._lock:
            for text in found - self._texts:
                lengths = self._lengths.setdefault(text[:_SHORTEST], [])
                if len(text) not in lengths:
                    lengths.append(len(text))
                    lengths.sort(reverse=True)
            self._texts |= found

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            self._outer = None
            self._texts.clear()
            self._lengths.clear()

    @property
    def longest(self) -> int:
        """How many characters the longest secret has; 0 if there is none."""
        with self._lock:
            own = max((lengths[0] for lengths in self._lengths.values()), default=0)
        return own if self._outer is None else max(own, self._outer.longest)

    def replaced(self, text: str) -> str:
        """Return a text with a stand-in for each secret in it."""
        parts, end = [], 0
        for start, stop in _merged(self._found(text)):
            parts += [text[end:start], _SECRET]
            end = stop
        return "".join([*parts, text[end:]]) if parts else text

    def _found(self, text: str) -> list[tuple[int, int]]:
        """Return where secrets begin and end in a text; of those that begin together, the longest.

        They are in no order.
        """
        with self._lock:
            lengths, texts = self._lengths, self._texts
            found = [] if self._outer is None else self._outer._found(text)
            for start in _places(lengths, text):
                for length in lengths[text[start : start + _SHORTEST]]:
                    if text[start : start + length] in texts:
                        found.append((start, start + length))
                        break
        return found


def _places(known: Mapping[str, object], text: str) -> Iterable[int]:
    """Return where a text has one of several beginnings of secrets."""
    if len(known) > _FEW:
        ends = range(len(text) - _SHORTEST + 1)
        return [at for at in ends if text[at : at + _SHORTEST] in known]
    places = []
    for each in known:
        at = text.find(each)
        while at >= 0:
            places.append(at)
            at = text.find(each, at + 1)
    return places


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans in their order, those that overlap as one."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], stop)
        else:
            merged.append((start, stop))
    return merged


def _texts_of(value: object) -> Iterator[str]:
    """Yield the texts and numbers in a secret value, and each line of a text."""
    values: list[Any] = [value]
    for _ in range(_SECRET_PARTS):
        if not values:
            return
        each = values.pop()
        if isinstance(each, bytes):
            if len(each) >= _SHORTEST:
                yield from _in_base64(each)
            each = each.decode(errors="ignore")
        if isinstance(each, str):
            for text in {each, each.strip(), *each.splitlines()}:
                if len(text) >= _SHORTEST:
                    yield from _forms_of(text)
        elif isinstance(each, int | float):
            if len(str(each)) >= _SHORTEST and not isinstance(each, bool):
                yield str(each)
        elif hasattr(type(each), "__fspath__") or type(each).__module__ in _SHOWN_WHOLE:
            values.append(str(each))
        else:
            with suppress(Exception):  # it is the user's object
                values += islice(_parts_of(each), _SECRET_PARTS)


_SHOWN_WHOLE = frozenset({"datetime", "decimal", "fractions", "ipaddress", "uuid"})
"""The modules of values that are shown as one text."""


def _forms_of(text: str) -> Iterator[str]:
    """Yield a text as it is, and as it is within values, JSON, CSV, XML, addresses and Base64."""
    yield text
    yield from _in_base64(text.encode(errors="replace"))
    if text.isascii() and text.isalnum():
        return
    import html
    import json
    from urllib.parse import quote, quote_plus

    yield repr(text)[1:-1]
    yield json.dumps(text)[1:-1]
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield text.replace('"', '""')
    yield html.escape(text)
    yield html.escape(text, quote=False)
    for escape in (quote, quote_plus):
        yield escape(text, safe="", errors="replace")


def _in_base64(data: bytes) -> Iterator[str]:
    """Yield how data is encoded in Base64, alone and within longer data.

    Within longer data, such as ``user:password``, these are the characters that depend on nothing
    before or after it. They differ by the place where it begins, since three bytes become four
    characters.
    """
    from base64 import b64encode

    parts = [b64encode(data).decode().rstrip("=")]
    for before in range(3):
        encoded = b64encode(bytes(before) + data).decode()
        parts.append(encoded[-(-before * 4 // 3) : (before + len(data)) * 4 // 3])
    for part in parts:
        yield part
        yield part.replace("+", "-").replace("/", "_")


def _parts_of(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset | deque):
        return value
    slots = [name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ())]
    own = getattr(value, "__dict__", {})
    return [*own.values(), *(getattr(value, name, None) for name in slots)]
