"""The example of an agent: what is stored is not paid again, and a browser goes on where it was."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from agent_server import SCRIPT, agent_server

from examples.agent.app import create_app

QUESTION = {"text": "How is Bern?"}


class Browser:
    """Reads an `EventSource` as a browser does, and shows it as the page does."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.turns: list[str] = []
        self.end: dict[str, Any] = {}

    async def follow(self, client: httpx.AsyncClient, path: str) -> AsyncIterator[None]:
        headers = {"Last-Event-ID": str(self.ids[-1])} if self.ids else {}
        async with client.stream("GET", path, headers=headers) as answer:
            answer.raise_for_status()
            is_end = False
            async for line in answer.aiter_lines():
                name, _, text = line.partition(": ")
                if name == "event":
                    is_end = text == "end"
                elif name == "id":
                    self.ids.append(int(text))
                elif name == "data" and is_end:
                    self.end = json.loads(text)
                    return
                elif name == "data":
                    self.show(json.loads(text))
                    yield

    def show(self, value: Any) -> None:
        if isinstance(value, str):
            self.turns[-1] += value
        elif "turn" in value:
            del self.turns[value["turn"] :]
            self.turns.append("")


async def test_an_agent_answers_with_tools_though_it_is_refused_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENT_LOG", str(tmp_path / "log"))
    app, browser = create_app(), Browser()
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost"
        ) as client,
    ):
        for _ in range(2):  # a repeated request asks once
            started = await client.put("/questions/q1", json=QUESTION)
            assert started.status_code == 202
        async for _ in browser.follow(client, "/questions/q1/words"):
            pass
        page = await client.get(started.json()["page"])
        other = await client.put("/questions/q1", json={"text": "And Rome?"})
        unknown = await client.get("/questions/none/words")
        start = await client.get("/")

    assert browser.turns[0].startswith("Let me look")
    assert browser.end["answer"].startswith("In Bern the sun shines")
    assert Counter(line.rpartition("/")[2] for line in (tmp_path / "log").read_text().split()) == {
        "ask-0": 1,
        "weather": 1,
        "local_time": 1,
        "ask-1": 1,
    }
    assert "use-0-1" in page.text
    assert (other.status_code, unknown.status_code, start.status_code) == (409, 404, 200)


@pytest.mark.process
async def test_a_killed_agent_pays_for_the_call_that_was_under_way_and_no_other(
    tmp_path: Path,
) -> None:
    browser = Browser()
    async with httpx.AsyncClient(timeout=30) as client:
        with agent_server(tmp_path) as (process, site):
            await asked(client, site)
            with suppress(httpx.TransportError):
                async for _ in browser.follow(client, f"{site}/questions/q1/words"):
                    if len(browser.turns) == 4 and "word10" in browser.turns[3]:
                        process.kill()
        shown, seen = browser.turns[:3], [*browser.ids]
        assert "word50" not in browser.turns[3]
        with agent_server(tmp_path) as (process, site):
            await asked(client, site)
            async for _ in browser.follow(client, f"{site}/questions/q1/words"):
                assert browser.turns[:3] == shown  # it stays on the screen

    assert browser.turns == [f"{turn['text']} " for turn in SCRIPT]
    assert browser.end == {"answer": SCRIPT[3]["text"], "error": None}
    assert browser.ids == sorted({*browser.ids})
    assert browser.ids[: len(seen)] == seen
    paid = Counter((tmp_path / "log").read_text().splitlines())
    assert paid == {
        **{f"q1/agent/ask-{n}": 1 for n in range(3)},
        "q1/agent/ask-3": 2,
        "weather": 3,
    }


async def asked(client: httpx.AsyncClient, site: str) -> None:
    """Ask the question as soon as the server answers."""
    async with asyncio.timeout(60):
        while True:
            with suppress(httpx.ConnectError):
                (await client.put(f"{site}/questions/q1", json=QUESTION)).raise_for_status()
                return
            await asyncio.sleep(0.1)
