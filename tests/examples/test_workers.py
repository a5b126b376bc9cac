"""The example of four workers: what they share of a provider's limit."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from examples.workers import app, provider

ROOT = Path(__file__).parents[2]
TEXTS, REQUESTS = 12, 25


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@asynccontextmanager
async def served(
    path: str, port: int, folder: Path, *options: str, **environment: str
) -> AsyncIterator[None]:
    """Run uvicorn with an application of the example."""
    line = [sys.executable, "-m", "uvicorn", path, "--port", str(port), *options]
    known = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    with subprocess.Popen(line, cwd=folder, env=known, stderr=subprocess.PIPE) as server:
        try:
            async with httpx.AsyncClient() as client, asyncio.timeout(90):
                while not await answers(client, f"http://127.0.0.1:{port}"):
                    assert server.poll() is None
                    await asyncio.sleep(0.05)
            yield
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=60)


async def answers(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).status_code == 404
    except httpx.TransportError:
        return False


async def all_workers(port: int) -> None:
    """Wait until each worker has answered."""
    workers = set[int]()
    async with asyncio.timeout(90):
        while len(workers) < 4:
            async with httpx.AsyncClient() as client:
                workers.add((await client.get(f"http://127.0.0.1:{port}/limit")).json()["worker"])


@pytest.mark.process
@pytest.mark.timeout(300)
@pytest.mark.skipif(not hasattr(signal, "SIGTERM"), reason="needs SIGTERM")
async def test_four_workers_never_exceed_a_providers_limit_and_see_few_refusals(
    tmp_path: Path,
) -> None:
    there, here = free_port(), free_port()
    texts = [f"text {number}" for number in range(TEXTS)]

    async def ask(after_s: float) -> tuple[list[str], int]:
        await asyncio.sleep(after_s)  # one worker would accept all that come at once
        async with httpx.AsyncClient(
            timeout=120
        ) as client:  # of its own, so that any worker gets it
            answer = await client.post(f"http://127.0.0.1:{here}/summaries", json=texts)
            answer.raise_for_status()
            return answer.json()["summaries"], answer.json()["worker"]

    async with (
        served("examples.workers.provider:app", there, tmp_path),
        served(
            *("examples.workers.app:app", here, tmp_path, "--workers", "4"),
            PROVIDER_URL=f"http://127.0.0.1:{there}",
        ),
        httpx.AsyncClient() as client,
    ):
        await all_workers(here)
        found = await asyncio.gather(*(ask(0.02 * number) for number in range(REQUESTS)))
        seen = (await client.get(f"http://127.0.0.1:{there}/seen")).json()

    assert all(len(summaries) == TEXTS for summaries, _ in found)
    assert len({worker for _, worker in found}) > 1
    assert seen["answered"] == TEXTS * REQUESTS
    assert app.SIZE / 2 < seen["most"] <= app.SIZE == provider.SIZE
    assert seen["beyond"] == 0
    assert seen["rests"] == TEXTS * REQUESTS // provider.REST_EVERY
    # What the workers have under way when the first of them is refused, and no more.
    assert 0 < seen["resting"] <= seen["rests"] * app.SIZE
