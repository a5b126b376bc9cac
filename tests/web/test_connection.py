"""The connections of the server, with a transport whose client reads when the test says so."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from asyncflow.web import app
from asyncflow.web._connection import GuardedConnection

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Client(asyncio.Transport):
    """The transport of a connection, and the client at its other end."""

    def __init__(self, app: Any, state: ServerState | None = None, most: int = 10) -> None:
        super().__init__()
        self.unread = b""
        self.is_cut = False
        self._room = 1_000  # of the operating system
        self._is_paused = False
        self._protocol = GuardedConnection(
            most=most,
            config=uvicorn.Config(app, log_config=None, ws="none", lifespan="off"),
            server_state=ServerState() if state is None else state,
            app_state={},
        )
        self._protocol.connection_made(self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 0

    def get_write_buffer_size(self) -> int:
        return len(self.unread)

    def write(self, data: Any) -> None:
        self.unread += data[self._room :]
        self._room = max(self._room - len(data), 0)
        if self.unread and not self._is_paused:
            self._is_paused = True
            self._protocol.pause_writing()

    def read(self, size: int = 10**9) -> None:
        self.unread = self.unread[size:]
        self._room = 0 if self.unread else 1_000
        if not self.unread and self._is_paused:
            self._is_paused = False
            self._protocol.resume_writing()

    def is_closing(self) -> bool:
        return self.is_cut

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None:
        """Close when all is read, which a slow client never does."""
        if not self.unread:
            self.abort()

    def abort(self) -> None:
        if not self.is_cut:
            self.is_cut = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    async def send(self, data: bytes) -> None:
        self._protocol.data_received(data)
        await asyncio.sleep(0.1)


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Answer with 100,000 bytes, once the request has arrived."""
    while (message := await receive())["type"] == "http.request" and message["more_body"]:
        pass
    headers = [(b"content-length", b"100000")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"x" * 100_000})


@pytest.fixture(autouse=True)
def no_logs(caplog: pytest.LogCaptureFixture) -> Any:
    """Assert that a slow client causes no log message."""
    yield
    logged = caplog.get_records("call")
    assert [each for each in logged if each.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    "half",
    [
        b"",
        b"GET / HTTP/1.1\r\nHo",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf",
    ],
)
async def test_a_request_that_never_arrives_is_cut_after_20_seconds(half: bytes) -> None:
    client = Client(answer)
    if half:
        await client.send(half)

    await asyncio.sleep(19)
    assert not client.is_cut
    await asyncio.sleep(2)
    assert client.is_cut


async def test_each_byte_of_a_request_gives_it_no_more_time() -> None:
    client, clock = Client(answer), asyncio.get_running_loop().time
    started_s = clock()
    for byte in GET[:30]:
        await client.send(bytes([byte]))
        await asyncio.sleep(1)
        if client.is_cut:
            break

    assert clock() - started_s == pytest.approx(20, abs=2)


async def test_the_next_request_on_a_connection_has_20_seconds_too() -> None:
    client = Client(answer)
    await client.send(GET)
    client.read()
    await client.send(b"GET")

    await asyncio.sleep(19)
    assert not client.is_cut
    await asyncio.sleep(2)
    assert client.is_cut


async def test_an_idle_connection_is_closed_by_uvicorn() -> None:
    client = Client(answer)
    await client.send(GET)
    client.read()

    await asyncio.sleep(6)

    assert client.is_cut


async def test_a_slow_response_has_all_the_time_that_it_needs() -> None:
    async def answer_slowly(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(100)
        await answer(scope, receive, send)

    client = Client(answer_slowly)
    await client.send(GET)
    await asyncio.sleep(101)

    assert not client.is_cut
    assert len(client.unread) > 90_000
    client.read()
    await asyncio.sleep(6)


async def test_a_client_that_reads_nothing_is_cut_after_20_seconds() -> None:
    client = Client(answer)
    await client.send(GET)

    await asyncio.sleep(19)
    assert not client.is_cut
    await asyncio.sleep(2)
    assert client.is_cut


@pytest.mark.parametrize(("size", "is_cut"), [(20_000, False), (1_000, True)])
async def test_a_client_that_reads_must_read_some_kilobytes_in_20_seconds(
    size: int, is_cut: bool
) -> None:
    client = Client(answer)
    await client.send(GET)

    for _ in range(4):
        await asyncio.sleep(15)
        client.read(size)

    assert client.is_cut is is_cut
    client.read()
    await asyncio.sleep(6)


async def test_a_response_that_is_cut_ends_without_an_error() -> None:
    clock, ends = asyncio.get_running_loop().time, []
    started_s = clock()

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(3):  # the second one waits until the client has read the first
            await send({"type": "http.response.body", "body": b"x" * 10_000, "more_body": True})
        ends.append(clock())

    client = Client(stream)
    await client.send(GET)
    await asyncio.sleep(30)

    assert ends == [pytest.approx(started_s + 20, abs=1)]


async def test_one_connection_too_many_is_closed_at_once() -> None:
    state = ServerState()
    clients = [Client(answer, state, most=2) for _ in range(3)]

    assert [client.is_cut for client in clients] == [False, False, True]
    await asyncio.sleep(0.1)
    clients[0].abort()
    await asyncio.sleep(0.1)
    assert not Client(answer, state, most=2).is_cut
    await asyncio.sleep(21)


async def test_a_login_that_is_cut_ends_without_an_error(journal: Any) -> None:
    client = Client(app(journal, token="a token that is hard to guess"))

    await client.send(b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nto")
    await asyncio.sleep(25)

    assert client.is_cut
