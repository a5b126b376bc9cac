"""A connection to the server that ends if its client is too slow: uvicorn waits forever.

Rules:

1. A request must arrive as a whole, head and body, within a time from its first byte.
2. A client must read what it is sent: every so often a part of it, or all.
3. There are only so many connections. Another one is closed at once.
4. A slow client is no error: its connection is cut, and nothing is logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["GuardedConnection"]

_REQUEST_S = 20.0
"""How long a request may take to arrive."""
_READ_S = 20.0
"""How often a client must have read something."""
_LEAST_READ = 16_384
"""How many bytes it must have read meanwhile, if there are as many."""


class GuardedConnection(H11Protocol):
    """A connection of uvicorn that cuts slow clients.

    Args:
        most: How many connections there may be.
        options: What uvicorn gives a connection.
    """

    def __init__(self, *, most: int, **options: Any) -> None:
        super().__init__(**options)
        self._most = most
        self._arriving = _Timer(self._cut)
        self._reading = _Timer(self._check_reader)
        self._unread = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Otherwise, unread bytes below the mark would keep a connection open forever.
        transport.set_write_buffer_limits(0)
        self._arriving.start(_REQUEST_S)
        if len(self.connections) > self._most:
            self._cut()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._arriving.start(_REQUEST_S)
        else:
            self._arriving.stop()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.transport.get_write_buffer_size()
        self._reading.start(_READ_S)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._arriving.stop()
        self._reading.stop()

    def _check_reader(self) -> None:
        unread = self.transport.get_write_buffer_size()
        if self._unread - unread < _LEAST_READ:
            self._cut()
            return
        self._unread = unread
        self._reading.start(_READ_S)

    def _cut(self) -> None:
        self.transport.abort()


class _Timer:
    """Calls a function once, some time after it was started first."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float) -> None:
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(seconds, self._fire)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        self._handle = None
        self._call()
