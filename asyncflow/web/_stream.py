"""The stream of a run's updates to one viewer, as Server-Sent Events.

A viewer that takes too long to read is dropped. When it connects again, it receives the present
state, not what it missed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from asyncflow.web._feed import Update

_PING_S = 5.0
"""How often the stream says that the server is alive."""
_PATIENCE_S = 20.0
"""How long a browser may take to read an update."""
_RETRY_MS = 1_000
"""How long a browser waits before it connects again."""


class UpdateStream(EventSourceResponse):
    """A response that lasts as long as there may be updates and the viewer reads them."""

    def __init__(self, updates: AsyncGenerator[Update, None]) -> None:
        self._events = _events_of(updates)
        super().__init__(
            self._events,
            ping=_PING_S,
            # An event, because a script can't see comments.
            ping_message_factory=lambda: ServerSentEvent("", event="ping"),
            send_timeout=_PATIENCE_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
    yield ServerSentEvent("", event="ping", retry=_RETRY_MS)
    async with aclosing(updates):
        async for update in updates:
            sections = b",".join(
                b'"%b":%b' % (id_.encode(), json_) for id_, json_ in update.sections.items()
            )
            rest = json.dumps({"trouble": update.trouble, "end": update.end}).encode()[1:]
            data = b'{"sections":{%b},%b' % (sections, rest)
            yield b"id: %d\r\nevent: update\r\ndata: %b\r\n\r\n" % (update.position, data)
            # A connection that is lost is known to be in the next turn of the loop. Until then
            # a server writes into the void, and asyncio logs that.
            await asyncio.sleep(0)
