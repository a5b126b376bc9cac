"""What asyncio tells of the cancellations of a task.

Keeps anyio from repeating a cancellation while something has to end in its own time.

What is to be known of the clocks of event loops.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import anyio

__all__ = [
    "FAILURES",
    "TIMER_SLACK_S",
    "cancel_requested",
    "cancels",
    "forget_cancels",
    "has_virtual_time",
    "running_task",
    "shield",
]

FAILURES = (Exception, asyncio.CancelledError)
"""What makes an attempt fail, and an observer be dropped. All else is not theirs, nor ours, to
handle. A cancellation that one of them raises is nobody's: those of the run arrive elsewhere."""


def running_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


def cancels() -> int:
    """Return how often the running task was asked to cancel."""
    return running_task().cancelling()


def cancel_requested() -> bool:
    """Return whether the running task was asked to cancel; False where no task is running."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return False
    return task is not None and task.cancelling() > 0


def forget_cancels() -> None:
    """Take back all that the running task was asked to cancel."""
    task = running_task()
    while task.cancelling():
        task.uncancel()


TIMER_SLACK_S = 0.001
"""How much earlier than asked a timer may fire: uvloop counts in whole ms (uvloop #739)."""


def has_virtual_time(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the loop's clock is its own, and not the one that all real loops share."""
    return abs(loop.time() - time.monotonic()) > 1


def shield() -> AbstractContextManager[object]:
    """Return a context in which a cancellation of anyio's arrives once, if at all.

    Without it, a wait that goes on after it was cancelled would become a busy loop.
    """
    # No scope of anyio's can be around us before it has loaded its backend, which takes a while.
    if "anyio._backends._asyncio" in sys.modules:
        return anyio.CancelScope(shield=True)
    return nullcontext()
