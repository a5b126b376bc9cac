"""A client of the tests' web service: plain sockets, which can disconnect at any moment."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Site:
    """A process that serves `site`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        self.process = process
        self.port = int(process.stdout.readline())

    async def connect(
        self, target: str, method: str = "POST"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a request, and return its connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: 0\r\n\r\n".encode())
        await writer.drain()
        return reader, writer

    async def request(self, target: str, method: str = "POST") -> tuple[int, str]:
        """Return the status and the body of a response; 0 if the connection is lost."""
        try:
            reader, writer = await self.connect(target, method)
            try:
                answer = (await reader.read()).decode()
            finally:
                writer.close()
        except ConnectionError:
            return 0, ""
        head, _, body = answer.partition("\r\n\r\n")
        return (int(head.split()[1]) if head else 0), body

    async def figures(self) -> dict[str, Any]:
        _, body = await self.request("/figures", "GET")
        found: dict[str, Any] = json.loads(body)
        return found

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


@contextmanager
def running_site(*arguments: object) -> Iterator[Site]:
    """Run a site until the end of the block, which kills it if it has not ended."""
    command = [sys.executable, "-m", "tests.service.site", *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Site(process)
        finally:
            process.kill()


async def until(check: Any, timeout_s: float = 120) -> None:
    """Wait until what a coroutine function returns is true."""
    async with asyncio.timeout(timeout_s):
        while not await check():
            await asyncio.sleep(0.02)


class Connection:
    """A connection that is kept for many requests."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Connection:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def request(self, target: str, body: bytes = b"") -> int:
        """Send a request, and return the status of the response."""
        head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        await self._reader.readexactly(length)
        return int(head.split()[1])
