"""What an attempt says in a worker: heartbeats, which leave at once, and notes, which wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic
from typing import Any

from asyncflow._core.context import StartedAttempt
from asyncflow._runtime.attachments import attachment_of
from asyncflow._runtime.log_capture import text_of


class Pulse:
    """Passes heartbeats on from any thread or child, at most a few of them for each limit.

    One that comes soon after another waits, and is passed on late. None is ever reported early: the
    run would take the silence that follows for a longer one.

    Args:
        loop: The worker's event loop.
        limit_s: How many seconds may pass between two heartbeats.
        beat: Called in the loop.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limit_s: float, beat: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._limit_s = limit_s
        self._beat = beat
        self._last_s = self._passed_on_s = monotonic()
        self._is_due = False
        self._child_beat_s: Callable[[], float] = float
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}

    def beat(self) -> None:
        """Note a heartbeat, from any thread."""
        self._last_s = monotonic()
        if not self._is_due:
            self._is_due = True
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._pass_on)

    def follow(self, last_beat_s: Callable[[], float]) -> None:
        """Pass on the heartbeats of a child too; see `HeartbeatTimer.follow`."""
        self._child_beat_s = last_beat_s
        self._poll()

    def is_missed(self) -> bool:
        """Whether the limit has passed since the last heartbeat."""
        return monotonic() - self._last_s >= self._limit_s

    def stop(self) -> None:
        """Pass on no more."""
        self._is_due = True
        for timer in self._timers.values():
            timer.cancel()

    def _poll(self) -> None:
        if self._child_beat_s() > self._last_s:
            self.beat()
        self._call_later(self._limit_s / 20, self._poll)

    def _pass_on(self) -> None:
        waits_s = self._passed_on_s + self._limit_s / 4 - monotonic()
        if waits_s > 0:
            self._call_later(waits_s, self._pass_on)
        else:
            self._passed_on_s = monotonic()
            self._is_due = False
            self._beat()

    def _call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        self._timers[call] = self._loop.call_later(delay_s, call)


_MOST_CHARACTERS = 2_000_000
"""How many characters of records an attempt sends home, before its last ones. The run keeps fewer:
what is printed comes in parts, so a limit on records would not be the same."""
_LAST_RECORDS = 40
_LONGEST = 40_000
"""How many characters of a text are sent; the run cuts it further."""


class RemoteNotes:
    """Collects what an attempt says until its answer takes that home; any thread may call it."""

    def __init__(self, level: int | None, prints: bool) -> None:
        self.level = level
        self.prints = prints
        self.takes_logs = level is not None or prints
        self._lock = threading.RLock()  # the collector may run what logs within any call
        self._progress: tuple[Any, ...] | None = None
        self._records: list[tuple[Any, ...]] = []
        self._last: list[tuple[Any, ...]] = []
        self._left = _MOST_CHARACTERS
        self._left_out = 0

    def progress(self, _: StartedAttempt, done: float, total: float | None, unit: str, /) -> None:
        self._progress = "progress", done, total, unit

    def attach(self, _: StartedAttempt, name: str, data: object, media_type: str | None, /) -> None:
        media_type, content = attachment_of(name, data, media_type)
        self._put("attach", name, content, media_type)

    def log(
        self,
        _: StartedAttempt,
        level: int,
        logger: str,
        message: str | Mapping[Any, Any],
        traceback: str = "",
        /,
    ) -> None:
        text = message if isinstance(message, str) else text_of(message)
        self._put("log", level, logger, text[:_LONGEST], traceback[:_LONGEST])

    def printed(self, _: StartedAttempt, stream: str, text: str, /) -> None:
        for at in range(0, len(text), _LONGEST):
            self._put("printed", stream, text[at : at + _LONGEST])

    def leave_out(self, _: StartedAttempt, count: int, /) -> None:
        with self._lock:
            self._left_out += count

    def take(self) -> list[tuple[Any, ...]]:
        """Return all that was said, the last ones of many included, and forget it."""
        with self._lock:
            taken = self._records + self._last
            if self._left_out:
                taken.append(("leave_out", self._left_out))
            if self._progress is not None:
                taken.append(self._progress)
            self._records, self._last, self._left_out, self._progress = [], [], 0, None
        return taken

    def _put(self, *note: Any) -> None:
        size = sum(len(part) for part in note if isinstance(part, str | bytes))
        with self._lock:
            self._left -= size
            if self._left >= 0:
                self._records.append(note)
                return
            self._left_out += len(self._last) == _LAST_RECORDS
            self._last = [*self._last, note][-_LAST_RECORDS:]
