"""Heartbeats that travel from a worker to the run, at most a few of them for each limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from time import monotonic


class Pulse:
    """Passes heartbeats on from any thread or child, at most a few of them for each limit.

    One that comes soon after another waits, and is passed on late. None is ever reported early: the
    run would take the silence that follows for a longer one.

    ``limit_s`` says how many seconds may pass between two heartbeats, and ``beat`` is called in
    ``loop``, the worker's.
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
