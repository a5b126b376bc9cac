"""What the driver must know of the versions of asyncio, uvloop and anyio, in one place."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import anyio

FAILURES = (Exception, asyncio.CancelledError)
"""What fails an attempt, and drops an observer. Everything else ends the run. A cancellation that
one of them raises was not requested by the run: those are known otherwise."""

NO_TIME_S = 1e-8
"""What is left of a wait that is over: a loop takes a timer for due that is nearer than the
resolution of its clock, and a virtual clock does not advance for it."""

TIMER_SLACK_S = 0.001
"""How much earlier than asked a timer may fire: uvloop counts in whole ms (uvloop #739)."""

_COMMON_TIME = asyncio.BaseEventLoop.time  # as it is before anything patches it

WAIT_FOR_MAKES_A_TASK = sys.version_info < (3, 12)
"""Before 3.12, `asyncio.wait_for` runs a coroutine in a task of its own. If it is cancelled while
that task ends, it discards the result, and may leave the task running (gh-86296). So there the
driver makes the task, and asks it afterwards."""


def running_task() -> asyncio.Task[Any]:
    """Return the task that is running."""
    task = asyncio.current_task()
    assert task is not None
    return task


def cancel_count() -> int:
    """Return how often the running task was asked to cancel."""
    return asyncio.current_task().cancelling()  # type: ignore[union-attr]  # there is one


def cancel_requested() -> bool:
    """Return whether the running task was asked to cancel; False where no task is running."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return False
    return task is not None and task.cancelling() > 0


def is_closed_over(task: asyncio.Task[Any], error: BaseException) -> bool:
    """Whether an error closes the coroutine of a task whose loop is gone, as nothing it awaits can.

    It must propagate at once: nothing can be awaited any more.
    """
    if not isinstance(error, GeneratorExit):
        return False
    try:
        return asyncio.current_task() is not task
    except RuntimeError:  # no event loop runs in this thread
        return True


def forget_cancels() -> None:
    """Take back all that the running task was asked to cancel."""
    task: Any = asyncio.current_task()
    while task.cancelling():
        task.uncancel()


async def outlast(
    is_over: Callable[[], bool],
    wait: Callable[[], Awaitable[object]],
    on_cancel: Callable[[asyncio.CancelledError], object] | None = None,
) -> asyncio.CancelledError | None:
    """Wait until something is over, although the waiting task is cancelled.

    ``wait`` makes what to await, again and again until it is over; ``on_cancel`` is called at the
    first cancellation. Return the first cancellation that came meanwhile, which the caller must
    raise or take back.
    """
    try:
        while not is_over():
            await wait()
    except asyncio.CancelledError as cancellation:
        if on_cancel is not None:
            on_cancel(cancellation)
        with _shield():
            while not is_over():
                with suppress(asyncio.CancelledError):
                    await wait()
        return cancellation
    return None


def _shield() -> AbstractContextManager[object]:
    """Return a context in which anyio does not repeat a cancellation until it is obeyed.

    Without it, a wait that continues after a cancellation would be a busy loop.
    """
    scope = cancel_scope()
    if scope is None:
        return nullcontext()
    scope.shield = True
    return scope


def cancel_scope() -> anyio.CancelScope | None:
    """Return a scope of anyio whose ``shield`` can be set later; ``None`` where none is needed."""
    # No scope of anyio can be around us before it has loaded its backend, which takes a while.
    return anyio.CancelScope() if "anyio._backends._asyncio" in sys.modules else None


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return the loop's clock, without the method around it where that adds nothing."""
    return time.monotonic if _has_common_time(loop) else loop.time


def _has_common_time(loop: asyncio.AbstractEventLoop) -> bool:
    return getattr(loop.time, "__func__", None) is _COMMON_TIME


def wall_clock() -> Callable[[], float]:
    """Return the wall clock: that of the running loop if it has one, as in virtual time.

    A deadline of days must expire there too.
    """
    return getattr(asyncio.get_running_loop(), "wall_time", time.time)


def has_virtual_time(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the loop's clock is its own, and not the one that all real loops share."""
    return not _has_common_time(loop) and abs(loop.time() - time.monotonic()) > 1
