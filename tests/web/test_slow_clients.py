"""Clients that read or write too slowly, against a server in a process of its own."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from web.slow_viewers import PATIENCE_S, RUN, Server, serving, slow_viewers

VIEWERS = 200

pytestmark = [pytest.mark.process, pytest.mark.realtime]


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """Return a server whose log is empty at the end."""
    log = tmp_path / "log"
    with serving(log, kind=getattr(request, "param", "serve")) as server:
        yield server
    assert log.read_text() == ""


def wait_for_update(port: int) -> None:
    with httpx.stream("GET", f"http://127.0.0.1:{port}/events/{RUN}", timeout=60) as answer:
        for line in answer.iter_lines():
            if line == "event: update":
                return


@pytest.mark.parametrize("server", ["serve", "uvicorn"], indirect=True)
def test_200_viewers_that_read_nothing_cost_little_memory_and_are_dropped(
    server: Server, request: pytest.FixtureRequest
) -> None:
    wait_for_update(server.port)
    before, most = server.rss_mb, 0.0

    with slow_viewers(server.port, VIEWERS):
        give_up_at = time.monotonic() + PATIENCE_S + 60
        while server.sockets < VIEWERS and time.monotonic() < give_up_at:
            time.sleep(0.1)
        refused = httpx.get(f"http://127.0.0.1:{server.port}/events/{RUN}", timeout=60)
        drop_at = time.monotonic() + PATIENCE_S + 10
        while server.sockets > 10 and time.monotonic() < drop_at:
            most = max(most, server.rss_mb - before)
            time.sleep(0.5)
        remaining = server.sockets
    wait_for_update(server.port)

    assert refused.status_code == 503
    assert most / VIEWERS < 0.5  # the page has 4 MB
    # An app can't cut a connection, uvicorn does not, and `serve` does.
    assert remaining <= 10 or "uvicorn" in request.node.name


def test_the_sockets_of_requests_that_never_arrive_are_closed(server: Server) -> None:
    body = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf"
    halves = [b"", b"GET / HTTP/1.1\r\nHo", body]
    clients = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in halves]
    started_at = time.monotonic()
    for client, half in zip(clients, halves, strict=True):
        client.sendall(half)

    for client in clients:
        while _received(client):
            pass
        client.close()

    assert PATIENCE_S - 1 < time.monotonic() - started_at < 60


def _received(client: socket.socket) -> bytes:
    try:
        return client.recv(10_000)
    except ConnectionResetError:
        return b""


def test_viewers_that_leave_at_once_cause_no_log_message(server: Server) -> None:
    for _ in range(3):
        with slow_viewers(server.port, 30) as viewers:
            for viewer in viewers[::2]:  # half of them with a reset
                viewer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            time.sleep(0.5)
    wait_for_update(server.port)

    assert server.sockets < 20


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
def test_a_service_that_stops_ends_its_streams_without_an_error(server: Server) -> None:
    with httpx.stream("GET", f"http://127.0.0.1:{server.port}/events/{RUN}", timeout=60) as answer:
        lines = answer.iter_lines()
        while next(lines) != "event: update":
            pass
        server.process.terminate()
        for _ in lines:  # until the response is complete
            pass

    assert server.process.wait(timeout=60) == -signal.SIGTERM
