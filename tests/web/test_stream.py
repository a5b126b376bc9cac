"""The stream that tells one viewer of changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from sse_starlette.sse import AppStatus
from web.runs import Gate, slow

from asyncflow.web import app
from asyncflow.web._stream import ChangeStream


class EndlessChanges:
    """Changes that never end, and record when they are closed."""

    def __init__(self) -> None:
        self.is_closed = False
        self.count = 0

    async def changes(self) -> AsyncGenerator[None, None]:
        try:
            while True:
                self.count += 1
                yield
                await asyncio.sleep(0.001)
        finally:
            self.is_closed = True


class Connection:
    """What a server gives an app: it takes some messages, and then none until it is read again."""

    def __init__(self, takes: float, pause_s: float = 0) -> None:
        self.sent: list[bytes] = []
        self.is_done = False
        self.is_read, self.is_left = asyncio.Event(), asyncio.Event()
        self._takes = takes
        self._pause_s = pause_s

    async def send(self, message: Any) -> None:
        await asyncio.sleep(self._pause_s)
        if len(self.sent) >= self._takes:
            await self.is_read.wait()
        self.sent.append(message.get("body", b""))
        self.is_done = not message.get("more_body", True)

    async def receive(self) -> Any:
        await self.is_left.wait()
        return {"type": "http.disconnect"}

    async def serve(self, source: EndlessChanges) -> None:
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
        await ChangeStream(source.changes())(scope, self.receive, self.send)


async def test_changes_are_closed_when_the_viewer_disconnects() -> None:
    source, connection = EndlessChanges(), Connection(takes=1_000_000)
    serving = asyncio.create_task(connection.serve(source))
    await asyncio.sleep(1)

    connection.is_left.set()
    await serving

    assert source.is_closed


async def test_a_lost_connection_is_noticed_before_much_more_is_written_to_it() -> None:
    connection, written = Connection(takes=0), 0

    async def send(_: Any) -> None:  # as uvicorn does, which learns of the loss a turn later
        nonlocal written
        written += 1
        asyncio.get_running_loop().call_soon(connection.is_left.set)

    connection.send = send  # type: ignore[method-assign]
    await connection.serve(EndlessChanges())

    assert written < 5  # from the fifth on, asyncio logs a warning


async def test_a_viewer_that_reads_nothing_is_no_viewer_after_20_seconds() -> None:
    source, connection = EndlessChanges(), Connection(takes=4)
    serving = asyncio.create_task(connection.serve(source))

    await asyncio.sleep(19)
    assert not source.is_closed
    await asyncio.sleep(2)
    assert source.is_closed
    assert source.count == 3  # nothing was asked meanwhile

    # The app can't cut the connection: it ends when the viewer reads again, and counts until then.
    assert not serving.done()
    connection.is_read.set()
    await serving
    assert connection.is_done


async def test_an_idle_stream_sends_pings() -> None:
    connection = Connection(takes=1_000)

    class NoChanges(EndlessChanges):
        async def changes(self) -> AsyncGenerator[None, None]:
            await asyncio.sleep(1_000)
            yield

    serving = asyncio.create_task(connection.serve(NoChanges()))
    await asyncio.sleep(21)
    connection.is_left.set()
    await serving

    assert [b"event: ping\r\ndata: " in each for each in connection.sent] == [False, *[True] * 5]


async def test_when_the_server_stops_the_response_is_completed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, connection = EndlessChanges(), Connection(takes=1_000_000)
    serving = asyncio.create_task(connection.serve(source))
    await asyncio.sleep(1)

    monkeypatch.setattr(AppStatus, "should_exit", True)  # uvicorn's signal handler sets it
    await asyncio.wait_for(serving, 10)

    assert connection.is_done
    assert source.is_closed


async def test_a_request_for_the_head_of_a_stream_ends(make_client: Any, journal: Any) -> None:
    gate = Gate()
    running = asyncio.create_task(slow(gate).with_options(run_id="r", journal=journal).run())
    await gate.has_started.wait()

    answer = await make_client(app(journal)).head("/events/r")
    gate.is_open.set()
    await running

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
