"""The messages of the fence: a connection of its own between a scheduler and an engine or a worker.

Dask's own streams won't do: they close as soon as a worker is retired, while its bodies still clean
up, and a client sends every 10 ms only. A connection that closes tells the other side at once that
the process is gone, and while it is open, nothing is lost and nothing overtakes.

Messages are tuples of an operation, the number of a call, and what belongs to it, all of which
msgpack knows. Nothing here is ever logged: payloads belong to users.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from distributed.comm.core import connect

_VERSION = 1
"""Of the messages. Two versions of asyncflow that differ in it share a scheduler, and ignore each
other."""

ENGINES = f"asyncflow_engine_{_VERSION}"
"""The operation by which an engine opens its connection to the scheduler."""

WORKERS = f"asyncflow_worker_{_VERSION}"
"""The operation by which a worker does."""

OPEN = "open"
"""What the fence answers to either."""

MAX_BYTES = 2**32 - 1
"""How many bytes msgpack takes in one piece. More would break the connection, and all its calls."""

TOO_LARGE = "it has more than 4 GiB; pass it by a file or a store"
"""What to say of more."""


class Wire:
    """One end of a connection. What is sent in the same turn of the loop is written at once.

    ``comm`` belongs to this object from now on.
    """

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self._outgoing: list[tuple[Any, ...]] = []
        self._has_news = asyncio.Event()
        self._is_closing = False
        self._writer = asyncio.create_task(self._write(), name="asyncflow:dask-wire")

    @property
    def is_open(self) -> bool:
        """Whether messages can still arrive at the other end."""
        return not (self._is_closing or self._comm.closed())

    def send(self, *message: Any) -> None:
        """Send a message soon; if the connection is closed, never."""
        if self.is_open:
            self._outgoing.append(message)
            self._has_news.set()

    async def messages(self) -> AsyncIterator[tuple[Any, ...]]:
        """Yield what arrives, until the connection closes."""
        try:
            while True:
                for message in await self._comm.read():
                    yield message
        except OSError:  # closed, by either side
            pass

    def close(self) -> None:
        """Close the connection as soon as what was sent is written."""
        self._is_closing = True
        self._has_news.set()

    def abort(self) -> None:
        """Close the connection at once: the other side may never read what was sent."""
        self._comm.abort()

    async def aclose(self) -> None:
        """Close the connection, and wait until it is closed."""
        self.close()
        await asyncio.wait([self._writer])

    async def _write(self) -> None:
        try:
            while not self._comm.closed():
                messages, self._outgoing = self._outgoing, []
                if messages:
                    await self._comm.write(messages)
                elif self._is_closing:
                    await self._comm.close()
                else:
                    self._has_news.clear()
                    await self._has_news.wait()
        except OSError:  # closed by the other side
            pass
        finally:
            self._comm.abort()


async def open_wire(
    address: str, operation: str, name: str, connection_args: Mapping[str, Any]
) -> Wire:
    """Connect to the fence of a scheduler.

    ``operation`` is `ENGINES` or `WORKERS`, and ``name`` says who connects: an engine's own name,
    or a worker's address. ``connection_args`` are for TLS. Raise `OSError` if the scheduler can't
    be reached.
    """
    comm = await connect(address, **connection_args)
    try:
        await comm.write({"op": operation, "name": name})
        if await comm.read() != OPEN:  # the scheduler was restarted a moment ago
            raise OSError(f"the scheduler at {address} has no fence")
    except BaseException:
        comm.abort()
        raise
    return Wire(comm)
