"""The recipe of docs/guides/streaming.md: two tabs, a reload, and a replica that is killed."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

pytestmark = pytest.mark.process

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "streaming.md"
WORDS = [f"word {number}" for number in range(40)]


def recipe() -> str:
    """Return the recipe as a program, which says more words than that of the page."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    (server,) = [block for block in blocks if "EventSourceResponse" in block]
    assert len([line for line in server.splitlines() if line.strip()]) <= 30
    program = blocks[0] + server
    for text, other in (
        ('("so", "it", "begins")', repr(WORDS)),
        ("sleep(0.01)", "sleep(0.05)"),
        ("journal=journal)", "journal=journal, resume_every_s=0.3)"),
    ):
        assert program.count(text) == 1
        program = program.replace(text, other)
    return program


class Replica(NamedTuple):
    process: subprocess.Popen[bytes]
    url: str


@contextmanager
def replica(folder: Path) -> Iterator[Replica]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "talks:app", "--port", str(port)]
    with subprocess.Popen([*command, "--log-level", "error"], cwd=folder) as process:
        try:
            yield Replica(process, f"http://127.0.0.1:{port}/talks/t1")
        finally:
            process.kill()


class Tab:
    """An `EventSource` of a browser: the values by their ids, and the last id."""

    def __init__(self) -> None:
        self.values: list[tuple[int, tuple[int, ...], str]] = []

    @property
    def last_id(self) -> int:
        return self.values[-1][0] if self.values else 0

    async def follow(self, url: str) -> AsyncIterator[int]:
        """Yield after each value how many there are, until the server says that it is the end."""
        headers = {"Last-Event-ID": str(self.last_id)} if self.values else {}
        async with (
            httpx.AsyncClient(timeout=30) as client,
            client.stream("GET", f"{url}/words", headers=headers) as answer,
        ):
            position = 0
            async for line in answer.aiter_lines():
                name, _, text = line.partition(": ")
                if (name, text) == ("event", "end"):
                    return
                if name == "id":
                    position = int(text)
                elif name == "data":
                    value = json.loads(text)
                    self.values.append((position, tuple(value["from"]), value["text"]))
                    yield len(self.values)
        raise ConnectionError("the stream has ended too early")

    async def follow_to_the_end(self, url: str) -> None:
        async for _ in self.follow(url):
            pass


async def started(url: str) -> None:
    async with asyncio.timeout(30), httpx.AsyncClient() as client:
        while True:
            try:
                (await client.put(url)).raise_for_status()
                return
            except httpx.ConnectError:
                await asyncio.sleep(0.1)


async def test_tabs_miss_nothing_though_one_is_reloaded_and_the_replica_is_killed(
    tmp_path: Path,
) -> None:
    tmp_path.joinpath("talks.py").write_text(recipe(), encoding="utf-8")
    first, second, reloaded = Tab(), Tab(), Tab()
    with replica(tmp_path) as one:
        await started(one.url)
        with replica(tmp_path) as other:
            async for count in second.follow(one.url):
                if count == 3:
                    break  # and loads the page again
            with suppress(httpx.TransportError):  # its connection is cut
                async for count in first.follow(one.url):
                    if count == 10:
                        one.process.kill()
            assert 10 <= len(first.values) < len(WORDS)
            async with asyncio.timeout(60):
                while True:
                    try:
                        await asyncio.gather(
                            first.follow_to_the_end(other.url),
                            reloaded.follow_to_the_end(other.url),
                        )
                        break
                    except httpx.ConnectError:
                        await asyncio.sleep(0.1)

    assert first.values == reloaded.values
    assert second.values == reloaded.values[:3]
    attempts = sorted({attempt for _, attempt, _ in reloaded.values})
    assert attempts == [(1, 1), (2, 2)]
    assert [text for _, attempt, text in reloaded.values if attempt == (2, 2)] == WORDS
    said = [text for _, attempt, text in reloaded.values if attempt == (1, 1)]
    assert said == WORDS[: len(said)]
    assert len(said) >= 10
