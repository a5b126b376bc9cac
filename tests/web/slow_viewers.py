"""Measures the memory of viewers that read nothing: ``python tests/web/slow_viewers.py 1000``.

A server in a process of its own shows a run with a large page, and each viewer asks for the updates
of this run over a socket with a small buffer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import uvicorn

from asyncflow import Orchestrator, Retry, WorkflowStep
from asyncflow.journal import SQLiteJournal
from asyncflow.web import _stream, app, serve

__all__ = ["PATIENCE_S", "Server", "serving", "slow_viewers"]

STEPS, RUN = 2_500, "r"
PATIENCE_S = 3.0
"""How long the server waits for a slow client; by default it would be 20 seconds."""


async def _serve(kind: str, max_viewers: int) -> None:
    _stream._PATIENCE_S = PATIENCE_S

    async def nothing() -> None: ...

    async def poll() -> int:
        return 0

    # It never ends, and has an event every 300 ms.
    polling = WorkflowStep(
        "poll",
        poll,
        max_retries=10**6,
        retry=Retry(base_ms=300, max_ms=300, until=bool),
        timeout_ms=None,
    )
    steps = [polling, *(WorkflowStep(f"{n:0150}", nothing) for n in range(STEPS))]
    async with SQLiteJournal(":memory:") as journal:
        running = asyncio.create_task(
            Orchestrator(steps).with_options(run_id=RUN, journal=journal).run()
        )
        while not await journal.runs() or len(await journal.events(RUN)) < 2 * STEPS:
            await asyncio.sleep(0.05)
        options: dict[str, Any] = {"max_viewers": max_viewers} if max_viewers else {}
        if kind == "serve":
            await serve(journal, port=0, on_ready=lambda url: print(url, flush=True), **options)
        else:
            listening = socket.create_server(("127.0.0.1", 0))
            print(f"http://127.0.0.1:{listening.getsockname()[1]}/", flush=True)
            config = uvicorn.Config(app(journal, **options), log_config=None)
            await uvicorn.Server(config).serve(sockets=[listening])
        await running


class Server(NamedTuple):
    """A server in a process."""

    process: subprocess.Popen[str]
    port: int

    @property
    def rss_mb(self) -> float:
        """Its resident memory."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        (kb,) = (line.split()[1] for line in lines if line.startswith("VmRSS:"))
        return int(kb) / 1_000

    @property
    def sockets(self) -> int:
        """How many sockets it has open."""
        folder = f"/proc/{self.process.pid}/fd"
        return sum(_is_socket(f"{folder}/{name}") for name in os.listdir(folder))


def _is_socket(path: str) -> bool:
    try:
        return os.readlink(path).startswith("socket:")
    except FileNotFoundError:
        return False


@contextmanager
def serving(log: Path, max_viewers: int = 0, kind: str = "serve") -> Iterator[Server]:
    """Start a server whose log goes to a file, and end it.

    Its kind is ``serve``, or ``uvicorn`` for the app in a server as a user would run it.
    """
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, __file__, kind, str(max_viewers)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        assert process.stdout is not None
        yield Server(process, urlsplit(process.stdout.readline()).port or 0)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


@contextmanager
def slow_viewers(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Connect viewers that ask for updates and read none."""
    with ExitStack() as stack:
        viewers = []
        for _ in range(count):
            viewer = stack.enter_context(socket.socket())
            viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            viewer.settimeout(60)
            viewer.connect(("127.0.0.1", port))
            viewer.sendall(f"GET /events/{RUN} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            viewers.append(viewer)
        yield viewers


def _measure(count: int, seconds: int) -> None:
    log = Path(f"/tmp/slow_viewers.{os.getpid()}.log")
    with serving(log, count) as server:
        with slow_viewers(server.port, 1):
            time.sleep(5)  # the feed has rendered the run
            before = server.rss_mb
            print(f"{before:.0f} MB with one viewer")
            with slow_viewers(server.port, count - 1):
                for second in range(0, seconds + 1, 5):
                    more = (server.rss_mb - before) / count * 1_000
                    print(
                        f"{second:3} s: {server.rss_mb:.0f} MB, {more:.0f} KB a viewer, "
                        f"{server.sockets} sockets",
                        flush=True,
                    )
                    time.sleep(5)
        time.sleep(2)
        print(f"left: {server.rss_mb:.0f} MB, {server.sockets} sockets")
    print(f"log: {len(log.read_text().splitlines())} lines")
    log.unlink()


if __name__ == "__main__":
    if sys.argv[1] in ("serve", "uvicorn"):
        logging.basicConfig(level=logging.WARNING)
        asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
    else:
        _measure(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 45)
