"""The update stream in real time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from asyncflow.web._feed import Update
from asyncflow.web._run_page import UpdateStream


class EndlessUpdates:
    """Updates that never end, and record when they are closed."""

    def __init__(self, size: int = 1) -> None:
        self.is_closed = False
        self.count = 0
        self._size = size

    async def updates(self) -> AsyncGenerator[Update, None]:
        try:
            while True:
                self.count += 1
                yield Update(self.count, {"a": "x" * self._size}, None, None)
                await asyncio.sleep(0.001)
        finally:
            self.is_closed = True


def scope() -> Any:
    return {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}


async def test_updates_are_closed_when_the_viewer_disconnects() -> None:
    source, sent, seen = EndlessUpdates(), [], asyncio.Event()

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) > 5:
            seen.set()

    async def receive() -> Any:
        await seen.wait()
        return {"type": "http.disconnect"}

    await UpdateStream(source.updates())(scope(), receive, send)

    assert source.is_closed


@pytest.mark.realtime
async def test_a_viewer_that_takes_nothing_is_disconnected_after_a_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asyncflow.web._run_page._PATIENCE_S", 0.2)
    source, count = EndlessUpdates(), 0

    async def send(message: Any) -> None:
        nonlocal count
        count += 1
        if count > 4:
            await asyncio.sleep(1_000)

    async def receive() -> Any:
        await asyncio.sleep(1_000)

    started_at = time.monotonic()
    await UpdateStream(source.updates())(scope(), receive, send)

    assert 0.2 <= time.monotonic() - started_at < 5
    assert source.is_closed
    assert source.count == 3  # no update was produced meanwhile


async def test_an_idle_stream_sends_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncflow.web._run_page._PING_S", 0.02)
    received, seen = [], asyncio.Event()

    async def no_updates() -> AsyncGenerator[Update, None]:
        await asyncio.sleep(1_000)
        yield Update(0, {}, None, None)

    async def send(message: Any) -> None:
        received.append(message.get("body", b""))
        if len(received) > 4:
            seen.set()

    async def receive() -> Any:
        await seen.wait()
        return {"type": "http.disconnect"}

    await UpdateStream(no_updates())(scope(), receive, send)

    assert all(b"event: ping\r\ndata: " in each for each in received[1:])
