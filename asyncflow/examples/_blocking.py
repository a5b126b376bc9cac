"""Runs a blocking job in a thread that can be told to stop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Concatenate, ParamSpec, TypeAlias, TypeVar

__all__ = ["Checkpoint", "StoppedError", "in_thread"]

P = ParamSpec("P")
T = TypeVar("T")

Checkpoint: TypeAlias = Callable[[], None]
"""To be called often by a job: it raises `StoppedError` once the job shall stop."""


class StoppedError(Exception):
    """The task that waits for the job was cancelled. It ends the job and goes no further."""


async def in_thread(
    job: Callable[Concatenate[Checkpoint, P], T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Call ``job(checkpoint, *args, **kwargs)`` in a thread and return what it returns.

    A thread cannot be cancelled, and `asyncio.to_thread` leaves it running when the task that
    waits for it is. Here the job is asked to stop, and the cancellation goes on when it has:
    the files and the connection that it works with are its own until then.
    """
    stop = threading.Event()

    def checkpoint() -> None:
        if stop.is_set():
            raise StoppedError

    call = partial(job, checkpoint, *args, **kwargs)
    work = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        await asyncio.wait([work])
    except asyncio.CancelledError:
        stop.set()
        while not work.done():
            with suppress(asyncio.CancelledError):  # a second one changes nothing
                await asyncio.wait([work])
        work.exception()  # or asyncio would log that nobody asked for it
        raise
    return work.result()
