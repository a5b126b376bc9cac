"""Tells where a suspended coroutine waits."""

from __future__ import annotations

from typing import Any

__all__ = ["awaiting_line"]

_LIBRARIES = ("asyncio", "anyio", "asyncflow")


def awaiting_line(coroutine: object) -> str:
    """Return ``file:line in function`` of the innermost await that is the user's own.

    What the coroutine awaits is followed down to the last coroutine, generator or asynchronous
    generator. The lines of asyncio, anyio and asyncflow themselves say little, so one of them is
    named only if there is no other.
    """
    inner, own = "an unknown place", None
    awaiting: object | None = coroutine
    while awaiting is not None:
        frame = _first(awaiting, "cr_frame", "gi_frame", "ag_frame")
        if frame is not None:
            code = frame.f_code
            inner = f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}"
            if frame.f_globals.get("__name__", "").partition(".")[0] not in _LIBRARIES:
                own = inner
        awaiting = _first(awaiting, "cr_await", "gi_yieldfrom", "ag_await")
    return own or inner


def _first(thing: object, *names: str) -> Any:
    found = (getattr(thing, name, None) for name in names)
    return next((value for value in found if value is not None), None)
