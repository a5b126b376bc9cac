"""Makes plain names for tables and columns: lower case, words and underscores only."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

__all__ = ["snake_case", "unique_names"]

_ACCENTS = re.compile("[\u0300-\u036f]")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def snake_case(text: str, default: str) -> str:
    """Return the text in lower case with ``_`` between its words, or the default if it has none.

    Letters of every alphabet are kept, without their accents. A name that would begin with a
    digit gets the default and a ``_`` before it.
    """
    plain = _ACCENTS.sub("", unicodedata.normalize("NFKD", text))
    words = re.sub(r"[\W_]+", "_", _HUMP.sub("_", unicodedata.normalize("NFC", plain)))
    name = words.strip("_").casefold()
    if not name:
        return default
    return f"{default}_{name}" if name[0].isdigit() else name


def unique_names(headers: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """Return a name for each header; the second of two equal ones ends in ``_2``, and so on.

    A blank header is named after its place: ``column_3``.
    """
    used = set(taken)
    names = []
    for place, header in enumerate(headers, start=1):
        wanted = name = snake_case(header, f"column_{place}" if not header.strip() else "column")
        count = 1
        while name in used:
            count += 1
            name = f"{wanted}_{count}"
        used.add(name)
        names.append(name)
    return names
