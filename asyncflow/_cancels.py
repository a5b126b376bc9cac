"""What asyncio tells of the cancellations of a task."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["FAILURES", "cancels", "forget_cancels", "running_task"]

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


def forget_cancels() -> None:
    """Take back all that the running task was asked to cancel."""
    task = running_task()
    while task.cancelling():
        task.uncancel()
