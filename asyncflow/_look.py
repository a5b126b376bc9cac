"""What a run looks like in a terminal: signs, lines and colours, none of which says it alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from asyncflow._core.results import SIGNS, StepStatus

__all__ = ["ASCII", "COLOURS", "UNICODE", "Look", "bar", "look_for", "sign_of_run"]


class Look(NamedTuple):
    """The characters that a view is drawn with; each takes one cell."""

    signs: Mapping[StepStatus, str]
    encoding: str = "utf-8"
    ellipsis: str = "…"
    dash: str = "–"
    done: str = "━"
    undone: str = "─"
    between: str = "·"


UNICODE = Look(SIGNS)
ASCII = Look(
    dict(zip(SIGNS, "o>vx-#", strict=True)),
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


def look_for(encoding: str, also: str = "") -> Look:
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


def bar(done: int, total: int, width: int, look: Look) -> tuple[str, str]:
    """Return the full and the empty part of a progress bar.

    It is full only when all is done, and not empty when anything is.
    """
    full = width if not total else width * done // total
    if done:
        full = max(full, 1)
    return look.done * full, look.undone * (width - full)
