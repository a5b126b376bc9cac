"""Worker threads in virtual time: one of them runs at a time, and only while the loop waits for it.

`anyio.to_thread.run_sync` is replaced while a case runs. So a case does the same each time, and a
function in a thread sleeps as long as its case says.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any
from unittest.mock import patch

__all__ = ["Turns", "in_turns", "rest"]


class Turns:
    """A function in a thread, with which the loop takes turns."""

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], Any]) -> None:
        self.ended: asyncio.Future[Any] = loop.create_future()
        self._loop, self._call = loop, call
        self._go_on, self._has_paused = threading.Semaphore(0), threading.Semaphore(0)
        self._is_over = False
        threading.Thread(target=self._run, daemon=True).start()

    def go_on(self) -> None:
        """Let the thread run until it rests or ends."""
        self._go_on.release()
        self._has_paused.acquire()
        if self._is_over:
            self._loop.call_soon(self._end)

    def rest(self, seconds: float) -> None:
        """Sleep in virtual time. The thread calls it."""
        if seconds:
            self._loop.call_later(seconds, self.go_on)
        else:
            self._loop.call_soon(self.go_on)
        self._has_paused.release()
        self._go_on.acquire()

    def _run(self) -> None:
        self._go_on.acquire()
        _of_thread.turns = self
        self._call()  # it raises nothing
        self._is_over = True
        self._has_paused.release()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


_of_thread = threading.local()


def rest(seconds: float) -> None:
    """Let the thread that calls it sleep in virtual time."""
    _of_thread.turns.rest(seconds)


async def _run_sync(function: Callable[..., Any], *args: Any, limiter: Any) -> Any:
    await asyncio.sleep(0)  # it may be cancelled before the thread begins
    async with limiter:
        call = partial(copy_context().run, function, *args)
        thread = Turns(asyncio.get_running_loop(), call)
        thread.go_on()
        return await thread.ended


@contextmanager
def in_turns() -> Iterator[None]:
    """Let all steps in threads run in such threads."""
    with patch("anyio.to_thread.run_sync", _run_sync):
        yield
