"""What a run looks like in a terminal: signs, lines and colours, none of which says it alone.

Text that is made to fit into cells of a terminal, of which some characters take two or none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import NamedTuple

from rich.cells import cell_len

from asyncflow._core.errors import escape_controls
from asyncflow._core.results import STATUS_SYMBOLS, StepStatus

__all__ = [
    "ASCII",
    "COLOURS",
    "UNICODE",
    "Theme",
    "bar",
    "clipped",
    "cut",
    "fitted",
    "look_for",
    "shown",
    "sign_of_run",
    "widest",
]


def shown(text: str, encoding: str) -> str:
    """Return the text in one line, with question marks for what an encoding does not have."""
    return escape_controls(text).encode(encoding, "replace").decode(encoding)


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
    return max(cell_len(escape_controls(name)) for name in names)


def _head(text: str, width: int) -> str:
    """Return the first characters that fit into so many cells."""
    cells = accumulate(map(cell_len, text))
    return "".join(character for character, end in zip(text, cells, strict=True) if end <= width)


class Theme(NamedTuple):
    """The characters that a view is drawn with; each takes one cell."""

    signs: Mapping[StepStatus, str]
    encoding: str = "utf-8"
    ellipsis: str = "…"
    dash: str = "–"
    done: str = "━"
    undone: str = "─"
    between: str = "·"


UNICODE = Theme(STATUS_SYMBOLS)
ASCII = Theme(
    dict(zip(STATUS_SYMBOLS, "o>vx-#", strict=True)),
    encoding="ascii",
    ellipsis="~",
    dash="-",
    done="#",
    undone="-",
    between="-",
)
"""For encodings that don't have the signs; these look alike."""

COLOURS: Mapping[StepStatus, str] = {
    StepStatus.PENDING: "dim",
    StepStatus.RUNNING: "cyan",
    StepStatus.SUCCESS: "green",
    StepStatus.FAILED: "bold red",
    StepStatus.SKIPPED: "dim",
    StepStatus.CANCELLED: "yellow",
}


def look_for(encoding: str, also: str = "") -> Theme:
    """Return the characters to use in an encoding.

    Args:
        encoding: Its name.
        also: What else it must have, if not all is to be in ASCII.
    """
    try:
        "".encode(encoding)
    except LookupError:
        return ASCII
    try:
        "".join([*UNICODE.signs.values(), *UNICODE[2:], also]).encode(encoding)
    except UnicodeEncodeError:
        return ASCII._replace(encoding=encoding)
    return UNICODE._replace(encoding=encoding)


def sign_of_run(word: str) -> StepStatus:
    """Return the status whose sign and colour stand for the state of a run."""
    return {
        "RUNNING": StepStatus.RUNNING,
        "PASSED": StepStatus.SUCCESS,
        "FAILED": StepStatus.FAILED,
    }.get(word, StepStatus.CANCELLED)


def bar(done: int, total: int, width: int, look: Theme) -> tuple[str, str]:
    """Return the full and the empty part of a progress bar.

    It is full only when all is done, and not empty when anything is.
    """
    full = width if not total else width * done // total
    if done:
        full = max(full, 1)
    return look.done * full, look.undone * (width - full)
