"""The program of the guide: a person approves an order by a link, and the server dies meanwhile."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from asyncflow.journal import SQLiteJournal
from tests.service.client import ROOT, until

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL"),
]
PAGE = ROOT / "docs" / "guides" / "waiting.md"


def program() -> str:
    """Return the blocks of the page up to the service, but for those that it says are parts."""
    blocks = re.findall(
        r"(?<!a part of a service -->\n)^```python\n(.+?)^```",
        PAGE.read_text("utf-8"),
        re.DOTALL | re.M,
    )
    last = next(at for at, block in enumerate(blocks) if "FastAPI(" in block)
    return "\n\n".join(blocks[: last + 1])


@contextmanager
def served(folder: Path) -> Iterator[tuple[httpx.AsyncClient, subprocess.Popen[str]]]:
    """Serve the program until the end of the block, which kills it."""
    command = [sys.executable, "-m", "uvicorn", "shop:app", "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(
        command,
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            assert process.stderr is not None
            said = ""
            while not (found := re.search(r"running on (http://\S+)", said)):
                said += process.stderr.readline() or pytest.fail(said)
            yield httpx.AsyncClient(base_url=found[1]), process
        finally:
            process.kill()


async def test_an_order_is_approved_by_its_link_after_the_server_was_killed(
    tmp_path: Path,
) -> None:
    pytest.importorskip("fastapi", reason="needs fastapi")
    (tmp_path / "shop.py").write_text(program(), encoding="utf-8")
    async with SQLiteJournal(tmp_path / "orders.db") as journal:

        async def is_waiting() -> bool:
            return (await journal.record("17")).status == "WAITING"

        async def has_passed() -> bool:
            return (await journal.record("17")).status == "PASSED"

        with served(tmp_path) as (client, process):
            async with client:
                answer = await client.post("/orders/17", params={"text": "17 chairs"})
                link = answer.json()["approve"]
                await until(is_waiting)
            process.kill()

        with served(tmp_path) as (client, _):
            async with client:
                form = await client.get(link)
                assert await is_waiting()  # to look at the link approves nothing
                actions = re.findall(r"action='(\?yes=\w+)'", form.text)
                yes, no = (link + action for action in actions)

                first = await client.post(yes)
                await until(has_passed)
                second, other = await asyncio.gather(client.post(yes), client.post(no))
                unknown = await client.post("/orders/18/approval?yes=true")

        report = await journal.report("17")
    assert (first.status_code, first.json()) == (200, {"order": "17", "answer": "stored"})
    assert (second.status_code, other.status_code, unknown.status_code) == (200, 409, 409)
    assert "another value already; the first one counts" in other.json()["detail"]
    assert report["send"].output == "sent: offer for 17 chairs"
    assert report["draft"].attempts == 1
