"""Tells which of the lines that code is at is the user's own."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from types import FrameType
from typing import Any

__all__ = ["awaiting_line", "own_line"]

_LIBRARIES = ("asyncio", "anyio", "asyncflow", "uvloop")


def awaiting_line(coroutine: object) -> str:
    """Return ``file:line in function`` of the innermost await that is the user's own.

    What the coroutine awaits is followed down to the last coroutine, generator or asynchronous
    generator; see `own_line`.
    """
    frames: list[FrameType] = []
    awaiting: object | None = coroutine
    while awaiting is not None:
        frame = _first(awaiting, "cr_frame", "gi_frame", "ag_frame")
        if frame is not None:
            frames.append(frame)
        awaiting = _first(awaiting, "cr_await", "gi_yieldfrom", "ag_await")
    return own_line(reversed(frames))


def own_line(frames: Iterable[FrameType]) -> str:
    """Return ``file:line in function`` of the first frame that is the user's own.

    That is one of neither the standard library, nor an installed package, nor asyncflow. Those
    say little, so the first of them is named only if there is no other.

    Args:
        frames: The innermost first.
    """
    innermost = None
    for frame in frames:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in _LIBRARIES and not frame.f_code.co_filename.startswith(_installed()):
            return _place(frame)
        innermost = innermost or _place(frame)
    return innermost or "an unknown place"


def _place(frame: FrameType) -> str:
    """Return ``file:line in function``."""
    code = frame.f_code
    return f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}"


@cache
def _installed() -> tuple[str, ...]:
    """With what the files begin that are not the user's own."""
    import sysconfig  # nothing else needs it, and it takes a while to import

    folders = ("stdlib", "platstdlib", "purelib", "platlib")
    return ("<frozen ", *map(sysconfig.get_path, folders))


def _first(thing: object, *names: str) -> Any:
    found = (getattr(thing, name, None) for name in names)
    return next((value for value in found if value is not None), None)
