"""What has changed in a run, told to a browser as it happens."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from asyncflow._web_feed import Update

__all__ = ["UpdateStream", "position_of"]

_PING_S = 5.0
"""How often a browser is told that the server is alive."""
_PATIENCE_S = 30.0
"""For how long a browser may leave what it is sent lying."""
_RETRY_MS = 1_000
"""How long a browser waits before it connects again."""


class UpdateStream(EventSourceResponse):
    """A response that goes on as long as there may be updates, in Server-Sent Events.

    Args:
        updates: What there is to tell.
    """

    def __init__(self, updates: AsyncGenerator[Update, None]) -> None:
        super().__init__(
            _told(updates),
            ping=_PING_S,
            # Not a comment, which the page would not hear of.
            ping_message_factory=lambda: ServerSentEvent("", event="ping"),
            send_timeout=_PATIENCE_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except* SendTimeoutError:  # in a group, before 3.3 of the library
            pass  # the browser may connect again


async def _told(
    updates: AsyncGenerator[Update, None],
) -> AsyncGenerator[ServerSentEvent | bytes, None]:
    yield ServerSentEvent("", event="ping", retry=_RETRY_MS)
    async with aclosing(updates):
        async for update in updates:
            yield _encoded(update)


def _encoded(update: Update) -> bytes:
    """Return an event of the stream. JSON has no line breaks, so nobody has to look for some.

    For the page of a run with many steps that takes a tenth of the time, in the event loop.
    """
    told = {"sections": update.sections, "trouble": update.trouble, "end": update.end}
    data = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
    return f"id: {update.position}\r\nevent: update\r\ndata: {data}\r\n\r\n".encode(
        "utf-8", "backslashreplace"
    )


def position_of(text: str | None) -> int:
    """Return the position that a browser says it has seen; 0 if it has seen none, or says none."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 16 else 0
