"""The web server, over real sockets."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from web.runs import Gate, passing, slow

from asyncflow import WorkflowStep, run_pipeline
from asyncflow.web import serve

TOKEN = "a token that is hard to guess"


@asynccontextmanager
async def served(journal: Any, **options: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Any]]:
    """Serve the pages at a free port; yield a client and the server's task."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(journal, port=0, on_ready=ready.set_result, **options))
    await asyncio.wait([ready, task], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    try:
        async with httpx.AsyncClient(base_url=ready.result(), timeout=10) as client:
            yield client, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def first_change(lines: AsyncIterator[str]) -> None:
    async for line in lines:
        if line == "event: changed":
            return


async def test_the_pages_are_served_until_the_task_is_cancelled(journal: Any) -> None:
    await passing().with_options(run_id="r", journal=journal).run()

    async with served(journal) as (client, task):
        assert client.base_url.host == "127.0.0.1"
        assert (await client.get("/runs/r")).status_code == 200
        assert "server" not in (await client.get("/")).headers
        url = client.base_url
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        with pytest.raises(httpx.ConnectError):
            await httpx.AsyncClient().get(url)


@pytest.mark.realtime
async def test_open_streams_end_while_their_run_goes_on(any_journal: Any) -> None:
    gate = Gate()
    running = asyncio.create_task(slow(gate).with_options(run_id="r", journal=any_journal).run())
    await gate.has_started.wait()

    async with served(any_journal) as (client, task), client.stream("GET", "/events/r") as stream:
        await first_change(stream.aiter_lines())
        started_at = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        took_s = time.monotonic() - started_at
    gate.is_open.set()
    await running

    assert took_s < 10  # the run goes on


@pytest.mark.realtime
async def test_a_client_that_reads_nothing_does_not_delay_the_shutdown(journal: Any) -> None:
    gate = Gate()
    running = asyncio.create_task(slow(gate).with_options(run_id="r", journal=journal).run())
    await gate.has_started.wait()

    async with served(journal) as (client, task):
        port = client.base_url.port
        assert port is not None
        with socket.create_connection(("127.0.0.1", port)) as silent_client:
            silent_client.sendall(b"GET /events/r HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await client.get("/")
            started_at = time.monotonic()
            task.cancel()
            await asyncio.wait([task])
            took_s = time.monotonic() - started_at
    gate.is_open.set()
    await running

    assert took_s < 10  # the run goes on


@pytest.mark.realtime
async def test_a_client_with_a_full_buffer_is_disconnected_without_a_log_message(
    journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()

    async def no_op() -> None: ...

    steps = [WorkflowStep("wait", gate), *(WorkflowStep(f"{n:0150}", no_op) for n in range(2500))]
    running = asyncio.create_task(run_pipeline(steps, run_id="r", journal=journal))
    await gate.has_started.wait()

    async with served(journal) as (client, task):
        with socket.socket() as silent_client:
            silent_client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            silent_client.connect(("127.0.0.1", client.base_url.port))
            silent_client.sendall(b"GET /events/r HTTP/1.1\r\nHost: localhost\r\n\r\n")
            async with client.stream(
                "GET", "/events/r"
            ) as other:  # by then, the silent client was told of a change too
                await first_change(other.aiter_lines())
            started_at = time.monotonic()
            task.cancel()
            await asyncio.wait([task])
            took_s = time.monotonic() - started_at
    gate.is_open.set()
    await running

    assert took_s < 10  # on a busy machine
    assert [each.message for each in caplog.records if each.name.startswith("uvicorn")] == []


async def test_after_a_second_cancellation_the_server_still_shuts_down(journal: Any) -> None:
    async with served(journal) as (client, task):
        await client.get("/")
        task.cancel()
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])

        with pytest.raises(httpx.ConnectError):
            await httpx.AsyncClient().get(client.base_url)


async def test_a_resumed_run_is_cancelled_with_the_server(journal: Any) -> None:
    gate = Gate()
    interrupted = asyncio.create_task(slow(gate).with_options(run_id="r", journal=journal).run())
    await gate.has_started.wait()
    interrupted.cancel()
    await asyncio.gather(interrupted, return_exceptions=True)
    gate.has_started.clear()

    async with served(journal, pipelines={"slow": slow(gate)}) as (client, _):
        assert (await client.post("/resume/r")).status_code == 303
        await gate.has_started.wait()

    assert gate.clean_ups == 2
    assert (await journal.record("r")).status == "INTERRUPTED"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "runs.example", ""])
async def test_an_address_beyond_this_machine_requires_a_token(journal: Any, host: str) -> None:
    with pytest.raises(ValueError, match="needs a token of at least 16 characters"):
        await serve(journal, host=host)


async def test_with_a_token_any_address_can_be_served(journal: Any) -> None:
    async with served(journal, host="0.0.0.0", token=TOKEN) as (client, _):
        url = f"http://127.0.0.1:{client.base_url.port}/"
        assert (await client.get(url)).status_code == 401
        right = await client.get(url, headers={"authorization": f"Bearer {TOKEN}"})
        assert right.status_code == 200


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
async def test_the_pages_are_served_over_ipv6(journal: Any) -> None:
    async with served(journal, host="::1") as (client, _):
        assert "[::1]" in str(client.base_url)
        assert (await client.get("/")).status_code == 200


async def test_an_occupied_port_is_reported(journal: Any) -> None:
    async with served(journal) as (client, _):
        port = client.base_url.port
        with pytest.raises(OSError, match=f"can't listen at 127.0.0.1, port {port}") as caught:
            await serve(journal, port=port or 0)

    assert caught.value.errno == errno.EADDRINUSE
    assert "name another port" in str(caught.value)


@pytest.mark.parametrize("host", ["x" * 70, "a..b", "a\0b", "nowhere.invalid", "192.0.2.1"])
async def test_an_invalid_host_is_reported(journal: Any, host: str) -> None:
    with pytest.raises(OSError, match="name another port") as caught:
        await serve(journal, host=host, token=TOKEN)

    assert f"can't listen at {host}, port 8765: " in str(caught.value)
