"""Clients that read too slowly, against a server in a process of its own."""

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

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]


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


def status_of_stream(port: int) -> int:
    with httpx.stream("GET", f"http://127.0.0.1:{port}/events/{RUN}", timeout=60) as answer:
        return answer.status_code


def test_200_viewers_that_read_nothing_cost_little_memory_and_are_dropped(server: Server) -> None:
    wait_for_update(server.port)
    before, most = server.rss_mb, 0.0

    with slow_viewers(server.port, VIEWERS):
        give_up_at = time.monotonic() + 120
        while (status := status_of_stream(server.port)) == 200 and time.monotonic() < give_up_at:
            time.sleep(0.1)
        drop_at = time.monotonic() + PATIENCE_S + 3
        while time.monotonic() < drop_at:
            most = max(most, server.rss_mb - before)
            time.sleep(0.5)
    wait_for_update(server.port)

    assert status == 503
    assert most / VIEWERS < 0.5  # the page has 4 MB


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
