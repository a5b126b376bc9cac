"""The texts of secret values, and how they are replaced in what steps say.

Rules:

1. Only the text itself is replaced. An encoding of it is not recognised, such as Base64 or an
   escape of JSON; and where two secrets overlap, a part of the shorter one stays.
2. A value is taken apart at once: the action that receives it may change it.
3. What a step says in a nested run may have the secrets of its outer run in it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

_SHORTEST = 4
"""A shorter text would be found in many others."""
_SECRET_PARTS = 1_000
"""How many parts of a secret value are looked at."""


class SecretTexts:
    """The secrets that a run knows, those of the run around it included. Any thread may use it."""

    def __init__(self, outer: SecretTexts | None = None) -> None:
        self._outer = outer
        self._lock = threading.RLock()
        self._texts: set[str] = set()
        self._sorted: list[str] = []

    def add(self, value: object) -> None:
        """Replace the texts of a secret value, from now on."""
        found = {*_texts_of(value)}  # before the lock: it looks into the user's objects
        with self._lock:
            self._texts |= found

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            self._outer = None
            self._texts.clear()
            self._sorted = []

    def replaced(self, text: str) -> str:
        """Return a text with ``<secret>`` for each secret in it."""
        for secret in self._longest_first():
            text = text.replace(secret, "<secret>")
        return text

    def longest(self) -> int:
        """Return how many characters the longest secret has; 0 if there is none."""
        return max(map(len, self._longest_first()[:1]), default=0)

    def _longest_first(self) -> list[str]:
        # A secret that is part of another one would leave the rest of that.
        with self._lock:
            known = self._texts
            if self._outer is not None:
                known = known.union(self._outer._longest_first())
            if len(known) != len(self._sorted):
                self._sorted = sorted(known, key=len, reverse=True)
            return self._sorted


def _texts_of(value: object) -> Iterator[str]:
    """Yield the texts and numbers in a secret value, and each line of a text."""
    values: list[Any] = [value]
    for _ in range(_SECRET_PARTS):
        if not values:
            return
        each = values.pop()
        if isinstance(each, bytes):
            each = each.decode(errors="ignore")
        if isinstance(each, int | float) and not isinstance(each, bool):
            each = str(each)
        if isinstance(each, str):
            # A key in several lines is printed line by line.
            for text in (each, each.strip(), *each.splitlines()):
                if len(text) >= _SHORTEST:
                    yield text
        elif hasattr(type(each), "__fspath__") or type(each).__module__ in _SHOWN_WHOLE:
            values.append(str(each))
        else:
            with suppress(Exception):  # it is the user's object
                values += islice(_parts_of(each), _SECRET_PARTS)


_SHOWN_WHOLE = frozenset({"datetime", "decimal", "fractions", "ipaddress", "uuid"})
"""The modules of values that are shown as one text."""


def _parts_of(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset | deque):
        return value
    slots = [name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ())]
    own = getattr(value, "__dict__", {})
    return [*own.values(), *(getattr(value, name, None) for name in slots)]
