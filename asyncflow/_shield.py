"""Keeps anyio from repeating a cancellation while something has to end in its own time."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

import anyio

__all__ = ["shield"]


def shield() -> AbstractContextManager[object]:
    """Return a context in which a cancellation of anyio's arrives once, if at all.

    Without it, a wait that goes on after it was cancelled would become a busy loop.
    """
    # No scope of anyio's can be around us before it has loaded its backend, which takes a while.
    if "anyio._backends._asyncio" in sys.modules:
        return anyio.CancelScope(shield=True)
    return nullcontext()
