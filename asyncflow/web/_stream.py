"""The stream that tells a viewer that a run has changed, as Server-Sent Events.

A viewer that takes too long to read is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

_PING_S = 5.0
"""How often the stream says that the server is alive."""
_PATIENCE_S = 20.0
"""How long a browser may take to read an event."""
_RETRY_MS = 1_000
"""How long a browser waits before it connects again."""


class ChangeStream(EventSourceResponse):
    """A response that lasts as long as there may be changes and the viewer reads."""

    def __init__(self, changes: AsyncGenerator[None, None]) -> None:
        self._events = _events_of(changes)
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


async def _events_of(changes: AsyncGenerator[None, None]) -> AsyncGenerator[ServerSentEvent, None]:
    yield ServerSentEvent("", event="ping", retry=_RETRY_MS)
    async with aclosing(changes):
        async for _ in changes:
            yield ServerSentEvent("", event="changed")
            # A connection that is lost is known to be in the next turn of the loop. Until then
            # a server writes into the void, and asyncio logs that.
            await asyncio.sleep(0)
