"""Ends a run gracefully at the first SIGINT or SIGTERM, and the process at the second one.

Rules:

1. The first one cancels the run as its caller would: what is running is cancelled and awaited, so
   that clean-up is done and the journal is told the end.
2. The second one ends the process within the handler of the interpreter, since a step may be
   blocking the event loop, for which a handler of the loop would wait. The loop is told of
   signals all the same: it wakes up also if they interrupt another thread.
3. One that was ignored when the process began stays so: a script that starts it in the background
   does that, so that Ctrl-C ends the script alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

__all__ = ["Stop", "stopped_by_signals"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STDERR = 2


class Stop:
    """Whether a signal has asked a run to stop.

    Attributes:
        signal: Which one, if one has.
    """

    def __init__(self, task: asyncio.Task[Any], on_stop: Callable[[str], object]) -> None:
        self.signal: signal.Signals | None = None
        self._task = task
        self._on_stop = on_stop
        self._loop = asyncio.get_running_loop()

    def handle(self, number: int, _: FrameType | None) -> None:
        """Do what a signal asks for."""
        if self.signal is not None:
            end_at_once(number)
        else:
            self.signal = signal.Signals(number)
            self._loop.call_soon_threadsafe(self._stop, self.signal.name)

    def _stop(self, name: str) -> None:
        if self._task.cancel(name):
            self._on_stop(name)


def end_at_once(number: int) -> None:
    """End the process without any ado, with the exit code that a shell gives for that signal."""
    # Not by `print`, which the interrupted code may be in the midst of.
    os.write(_STDERR, b"\nstopped at once\n")
    os._exit(128 + number)


@contextmanager
def stopped_by_signals(task: asyncio.Task[Any], on_stop: Callable[[str], object]) -> Iterator[Stop]:
    """Have signals stop a task for as long as this lasts.

    Args:
        task: What the first one cancels.
        on_stop: Called in the event loop with the name of the first one, when it has done so.
    """
    stop, loop = Stop(task, on_stop), asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    before = {number: kept for number, kept in before.items() if kept != signal.SIG_IGN}
    for number in before:
        with suppress(NotImplementedError):  # on Windows
            loop.add_signal_handler(number, _nothing)
        signal.signal(number, stop.handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            with suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            signal.signal(number, handler)


def _nothing() -> None:
    """Stand in for a handler of the loop."""
