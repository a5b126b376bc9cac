"""Serves the pages until the calling task is cancelled."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

import uvicorn
from starlette.types import ASGIApp

_STREAMS_END_S = 1
"""How long responses may take to end before their connections are cut."""
_ALL_ENDS_S = 3
"""How long anything may take; then the server logs an error."""


class _Server(uvicorn.Server):
    """A server that leaves signals to its caller."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def serve_app(
    app: ASGIApp,
    host: str,
    port: int,
    *,
    on_ready: Callable[[str], object],
    on_end: Callable[[], object],
) -> None:
    """Serve an application until the calling task is cancelled.

    ``port`` is 0 for a free one. ``on_ready`` is called with the URL once requests are accepted,
    and ``on_end`` when none are accepted any more, to end open streams. Raise `OSError` if the
    server can't listen there; the message says why, and what to do.
    """
    listening = _listen(host, port)
    config = uvicorn.Config(
        app,
        ws="none",
        # Logging is the caller's to configure, and a token in a URL must not be logged.
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=_ALL_ENDS_S,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]), name="asyncflow:serve")
    try:
        on_ready(_url_of(listening))
        await asyncio.shield(serving)
    finally:
        on_end()
        server.should_exit = True
        cutting = asyncio.get_running_loop().call_later(_STREAMS_END_S, _cut_off, server)
        await _ended(serving)
        cutting.cancel()
        listening.close()


def _cut_off(server: uvicorn.Server) -> None:
    """Cut the connections of clients that don't read their responses."""
    for connection in list(server.server_state.connections):
        connection.transport.abort()


async def _ended(task: asyncio.Task[None]) -> None:
    """Wait for a task that ends soon, although the waiting one may be cancelled again."""
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except (OSError, ValueError) as error:  # of a name that can't be encoded
        number = getattr(error, "errno", None) or errno.EINVAL
        why = getattr(error, "strerror", None) or error
        hint = "name another port, 0 for any that is free, or another host"
        raise OSError(number, f"can't listen at {host}, port {port}: {why}; {hint}") from error


def _url_of(listening: socket.socket) -> str:
    host, port, *_ = listening.getsockname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
