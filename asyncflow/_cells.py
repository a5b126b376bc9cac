"""Text that is made to fit into cells of a terminal, of which some characters take two or none."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from rich.cells import cell_len

from asyncflow._core.errors import in_one_line

__all__ = ["clipped", "cut", "fitted", "shown", "widest"]


def shown(text: str, encoding: str) -> str:
    """Return the text in one line, with question marks for what an encoding does not have."""
    return in_one_line(text).encode(encoding, "replace").decode(encoding)


def cut(text: str, width: int, ellipsis: str = "…") -> str:
    """Return a text of at most so many cells, without its middle if it is wider than that."""
    if cell_len(text) <= width:
        return text
    kept = width - cell_len(ellipsis)
    if kept < 1:
        return _head(text, width)
    tail = _head(text[::-1], kept // 2)[::-1]
    return f"{_head(text, kept - kept // 2)}{ellipsis}{tail}"


def clipped(text: str, width: int, ellipsis: str = "…") -> str:
    """Return a text of at most so many cells, without its end if it is wider than that."""
    if cell_len(text) <= width:
        return text
    kept = width - cell_len(ellipsis)
    return _head(text, kept) + ellipsis if kept > 0 else _head(text, width)


def fitted(text: str, width: int, ellipsis: str = "…") -> str:
    """Return the text in exactly so many cells."""
    text = cut(text, width, ellipsis)
    return text + " " * (width - cell_len(text))


def widest(names: Iterable[str]) -> int:
    """Return how many cells the widest name takes."""
    names = list(names)
    if "".join(names).isascii():
        return max(map(len, names), default=0)  # many times faster
    return max(cell_len(in_one_line(name)) for name in names)


def _head(text: str, width: int) -> str:
    """Return the first characters that fit into so many cells."""
    cells = accumulate(map(cell_len, text))
    return "".join(character for character, end in zip(text, cells, strict=True) if end <= width)
