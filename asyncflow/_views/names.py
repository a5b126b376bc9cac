"""Names with less room than they need: they lose their middle, since names differ at their ends."""

from __future__ import annotations

from collections.abc import Callable


def _beginning(text: str, room: int) -> str:
    return text[:room]


def middle_out(
    name: str,
    room: int,
    ellipsis: str = "…",
    *,
    size_of: Callable[[str], int] = len,
    beginning: Callable[[str, int], str] = _beginning,
) -> str:
    """Return a name without its middle if it takes more than ``room``.

    Room is counted in characters, unless ``size_of`` counts something else, such as the cells of a
    terminal, for which ``beginning`` returns the part of a text that fits.
    """
    if size_of(name) <= room:
        return name
    tail = (room - 1) // 2
    return f"{beginning(name, room - 1 - tail)}{ellipsis}{beginning(name[::-1], tail)[::-1]}"
