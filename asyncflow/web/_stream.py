"""The stream of a run's updates to one viewer, as Server-Sent Events, and how many there may be.

Rules:

1. An update is sent in pieces, each in an event of its own, and each when the server has sent most
   of the one before. So a viewer that reads slowly costs its buffers, not a copy of the page.
2. A viewer that takes too long is dropped: it no longer holds any part of the page. When it
   connects again, it receives the present state, not what it missed.
3. There are only so many viewers. One counts until its connection ends, even if it is dropped.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import aclosing, contextmanager

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from asyncflow._core.arguments import check_count
from asyncflow.web._feed import Update

_PING_S = 5.0
"""How often the stream says that the server is alive."""
_PATIENCE_S = 20.0
"""How long a browser may take to read a piece."""
_SLOWEST = 50_000
"""How many bytes a second it must read of an update, beyond that time."""
_PIECE = 16_384
"""How many bytes of an update a piece has at most."""
_RETRY_MS = 1_000
"""How long a browser waits before it connects again."""


class Viewers:
    """Counts the viewers of all runs.

    There may be at most ``most``, which is at least 1.
    """

    def __init__(self, most: int) -> None:
        check_count("max_viewers", most, 1)
        self.most = most
        self._count = 0

    @property
    def is_full(self) -> bool:
        """Whether there may be no other one."""
        return self._count >= self.most

    @contextmanager
    def another(self) -> Generator[None, None, None]:
        """Count one more."""
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


class UpdateStream(EventSourceResponse):
    """A response that lasts as long as there may be updates and the viewer reads them."""

    def __init__(self, updates: AsyncGenerator[Update, None], viewers: Viewers) -> None:
        self._viewers = viewers
        self._events = _events_of(updates)
        super().__init__(
            self._events,
            ping=_PING_S,
            # An event, because a script can't see comments.
            ping_message_factory=lambda: ServerSentEvent("", event="ping"),
            send_timeout=_PATIENCE_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # There is no await between `Viewers.is_full` in `follow` and this line.
        with self._viewers.another():
            try:
                await super().__call__(scope, receive, send)
            except* SendTimeoutError:  # in a group before sse-starlette 3.3
                pass
            finally:
                await self._events.aclose()
            if self.active:
                # The viewer is dropped, or the server ends, and uvicorn logs an error unless the
                # response ends too. Only a server can cut a connection, so this waits until the
                # viewer reads again, or leaves.
                await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _events_of(
    updates: AsyncGenerator[Update, None],
) -> AsyncGenerator[ServerSentEvent | bytes, None]:
    now = asyncio.get_running_loop().time
    yield ServerSentEvent("", event="ping", retry=_RETRY_MS)
    async with aclosing(updates):
        async for update in updates:
            size = sum(map(len, update.sections.values()))
            give_up_at = now() + _PATIENCE_S + size / _SLOWEST
            for event in _encoded(update):
                yield event
                # A connection that is lost is known to be in the next turn of the loop. Until then
                # a server writes into the void, and asyncio logs that.
                await asyncio.sleep(0)
                if now() > give_up_at:
                    return


def _encoded(update: Update) -> Iterator[bytes]:
    """Yield the events of an update.

    The page joins the data of any number of ``piece`` and of the ``update`` after them to one JSON
    text. The JSON is ASCII, so it can be cut anywhere.
    """
    held = b""
    for fragment in _fragments(update):
        for start in range(0, len(fragment), _PIECE):
            piece = fragment[start : start + _PIECE]
            if len(held) + len(piece) > _PIECE:
                yield b"event: piece\r\ndata: %b\r\n\r\n" % held
                held = b""
            held += piece
    yield b"id: %d\r\nevent: update\r\ndata: %b\r\n\r\n" % (update.position, held)


def _fragments(update: Update) -> Iterator[bytes]:
    before = '{"sections":{'
    for name, part in update.sections.items():
        yield f"{before}{json.dumps(name)}:".encode()
        yield part
        before = ","
    if not update.sections:
        yield before.encode()
    yield f'}},"trouble":{json.dumps(update.trouble)},"end":{json.dumps(update.end)}}}'.encode()
