"""Each request addresses exactly the run that it names."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from web.runs import Gate, passing, slow

from asyncflow import RunNotFoundError
from asyncflow.journal import SQLiteJournal
from asyncflow.web import app

AS_SCRIPT = {"accept": "application/json"}
SIMILAR_IDS = ["nightly%0A", "%0Anightly", "nightly%0D%0A", "nightly%0Ax", "nightly%20", "nightly/"]


class RecordingJournal(SQLiteJournal):
    """A journal without runs, which records the requested ids."""

    def __init__(self) -> None:
        super().__init__(":memory:")
        self.requested: list[str] = []

    async def record(self, run_id: str) -> Any:
        self.requested.append(run_id)
        raise RunNotFoundError(run_id, "here")

    async def runs(self, **_: Any) -> list[Any]:
        return []

    events = cancel = record


@pytest.mark.parametrize("sent", SIMILAR_IDS)
async def test_an_id_with_a_trailing_line_break_or_slash_names_another_run(
    make_client: Any, journal: Any, sent: str
) -> None:
    gate = Gate()
    running = asyncio.create_task(slow(gate).with_options(run_id="nightly", journal=journal).run())
    await gate.has_started.wait()
    client = make_client(app(journal, pipelines={"slow": slow(gate)}), headers=AS_SCRIPT)

    answers = [
        await client.get(f"/runs/{sent}"),
        await client.get(f"/api/runs/{sent}"),
        await client.get(f"/events/{sent}"),
        await client.get(f"/parts/{sent}"),
        await client.post(f"/cancel/{sent}"),
        await client.post(f"/resume/{sent}"),
    ]
    gate.is_open.set()

    assert [answer.status_code for answer in answers] == [404] * 6
    assert {answer.json()["error"] for answer in answers} == {"There is no such run"}
    assert (await running).all_passed


@pytest.mark.parametrize("run_id", ["a\n", "\n", "a\nb", "a\r\n", "a/b", "a/", "../a", "ü \u2028"])
async def test_the_journal_receives_the_exact_run_id(make_client: Any, run_id: str) -> None:
    journal = RecordingJournal()
    pages: Any = app(journal)  # type: ignore[arg-type]
    client = make_client(pages, headers=AS_SCRIPT)
    sent = "".join(f"%{byte:02X}" for byte in run_id.encode())

    for path in ("runs", "api/runs", "events", "parts"):
        assert (await client.get(f"/{path}/{sent}")).status_code == 404
    for act in ("cancel", "resume"):
        assert (await client.post(f"/{act}/{sent}")).status_code == 404

    assert journal.requested == [run_id] * 6


async def test_an_id_that_ends_like_a_route_is_distinguished_from_it(
    make_client: Any, journal: Any
) -> None:
    await passing("one").with_options(run_id="r", journal=journal).run()
    await passing("two").with_options(run_id="r/notes", journal=journal).run()
    client = make_client(app(journal))

    assert (await client.get("/api/runs/r%2Fnotes")).json()["pipeline"] == "two"
    for path in ("r%2Fnotes/notes", "r/notes"):
        assert (await client.get(f"/api/runs/{path}")).json() == {"notes": [], "last": 0}
