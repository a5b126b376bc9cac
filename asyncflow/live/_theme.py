"""The characters that views draw in a terminal, and text that fits into cells.

A cell is the width of one Latin letter; a character takes one, two or none. A word always says what
a symbol and a colour say.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size

from asyncflow._core.analysis.looks import OUTCOME_LOOKS, RUN_LOOKS, STEP_LOOKS, Look
from asyncflow._core.text import escape_controls
from asyncflow._views.names import middle_out


def printable(text: str, encoding: str) -> str:
    """Return the text in one line, with question marks for what the encoding lacks."""
    return escape_controls(text).encode(encoding, "replace").decode(encoding)


def elide(text: str, width: int, ellipsis: str = "…") -> str:
    """Return the text without its end if it takes more than ``width`` cells."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(set_cell_size(text, width - 1) + ellipsis, width)


def elide_middle(text: str, width: int, ellipsis: str = "…") -> str:
    """Return the text without its middle if it takes more than ``width`` cells."""
    if cell_len(text) <= width:
        return text
    cut = middle_out(text, width, ellipsis, size_of=cell_len, beginning=set_cell_size)
    return set_cell_size(cut, width)


def fit(text: str, width: int, ellipsis: str = "…") -> str:
    """Return the text in exactly ``width`` cells, without its middle if it takes more."""
    return set_cell_size(elide_middle(text, width, ellipsis), width)


def widest(names: Iterable[str]) -> int:
    """Return how many cells the widest name takes."""
    names = list(names)
    if "".join(names).isascii():
        return max(map(len, names), default=0)  # many times faster
    return max(cell_len(escape_controls(name)) for name in names)


class Theme(NamedTuple):
    """The characters that views are drawn with; each takes one cell."""

    encoding: str = "utf-8"
    ellipsis: str = "…"
    dash: str = "–"
    done: str = "━"
    left: str = "─"
    separator: str = "·"

    @property
    def is_ascii(self) -> bool:
        return self.ellipsis.isascii()

    def symbol(self, look: Look) -> str:
        return look.ascii if self.is_ascii else look.symbol


UNICODE = Theme()
ASCII = Theme(encoding="ascii", ellipsis="~", dash="-", done="#", left="-", separator="-")
"""For encodings without the Unicode symbols."""


def theme_for(encoding: str, also: str = "") -> Theme:
    """Return the Unicode theme if the encoding has all its characters, else the ASCII theme.

    ``also`` are more characters that the encoding must have.
    """
    looks = *STEP_LOOKS.values(), *RUN_LOOKS.values(), *OUTCOME_LOOKS.values()
    try:
        "".join([*(look.symbol for look in looks), *UNICODE[1:], also]).encode(encoding)
    except LookupError:
        return ASCII
    except UnicodeEncodeError:
        return ASCII._replace(encoding=encoding)
    return UNICODE._replace(encoding=encoding)


def bar(done: int, total: int, width: int, theme: Theme) -> tuple[str, str]:
    """Return the filled and the empty part of a progress bar.

    Only a complete one is full, and only one where nothing is done is empty.
    """
    filled = width * done // total if total else width
    if done:
        filled = max(filled, 1)
    return theme.done * filled, theme.left * (width - filled)
