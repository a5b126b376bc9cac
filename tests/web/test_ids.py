"""No request leads to another run than the one that it names."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from web.runs import Gate, passing, slow

from asyncflow import RunNotFoundError
from asyncflow.web import app

AS_SCRIPT = {"accept": "application/json"}
NEXT_TO_IT = ["nightly%0A", "%0Anightly", "nightly%0D%0A", "nightly%0Ax", "nightly%20", "nightly/"]


class Listening:
    """A journal without runs, which notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def record(self, run_id: str) -> Any:
        self.asked.append(run_id)
        raise RunNotFoundError(run_id, "here")

    async def runs(self, **_: Any) -> list[Any]:
        return []

    events = cancel = record


@pytest.mark.parametrize("sent", NEXT_TO_IT)
async def test_a_run_is_not_taken_for_one_with_a_line_break_more(
    ask: Any, journal: Any, sent: str
) -> None:
    gate = Gate()
    running = asyncio.create_task(slow(gate).run(run_id="nightly", journal=journal))
    await gate.has_begun.wait()
    client = ask(app(journal, pipelines={"slow": slow(gate)}), headers=AS_SCRIPT)

    answers = [
        await client.get(f"/runs/{sent}"),
        await client.get(f"/api/runs/{sent}"),
        await client.get(f"/api/runs/{sent}/events"),
        await client.get(f"/events/{sent}"),
        await client.post(f"/cancel/{sent}"),
        await client.post(f"/resume/{sent}"),
    ]
    gate.is_open.set()

    assert [answer.status_code for answer in answers] == [404] * 6
    assert {answer.json()["error"] for answer in answers} == {"There is no such run"}
    assert (await running).all_passed


@pytest.mark.parametrize("run_id", ["a\n", "\n", "a\nb", "a\r\n", "a/b", "a/", "../a", "ü \u2028"])
async def test_the_journal_is_asked_for_the_very_run_that_is_named(ask: Any, run_id: str) -> None:
    journal = Listening()
    pages: Any = app(journal)  # type: ignore[arg-type]
    client = ask(pages, headers=AS_SCRIPT)
    sent = "".join(f"%{byte:02X}" for byte in run_id.encode())

    for path in ("runs", "api/runs", "events"):
        assert (await client.get(f"/{path}/{sent}")).status_code == 404
    for act in ("cancel", "resume"):
        assert (await client.post(f"/{act}/{sent}")).status_code == 404

    assert journal.asked == [run_id] * 5


@pytest.mark.parametrize("sent", ["a%FF", "%ED%A0%80"])
async def test_what_is_no_text_names_no_run(ask: Any, sent: str) -> None:
    journal = Listening()  # which may have one with the sign that stands for what is no text
    pages: Any = app(journal)  # type: ignore[arg-type]

    answer = await ask(pages).post(f"/cancel/{sent}", headers=AS_SCRIPT)

    assert answer.status_code == 404
    assert journal.asked == []


@pytest.mark.parametrize("name", [".", ".."])
async def test_a_name_that_is_a_way_through_directories_leads_to_no_run(
    ask: Any, journal: Any, name: str
) -> None:
    await passing().run(run_id="nightly", journal=journal)
    client = ask(app(journal), headers=AS_SCRIPT)

    for act in ("cancel", "resume"):
        # A client makes a path like "/cancel" of it, or "/".
        assert (await client.post(f"/{act}/{name}")).status_code in (404, 405)


async def test_a_run_whose_name_ends_like_a_path_of_ours_is_told_apart(
    ask: Any, journal: Any
) -> None:
    await passing("one").run(run_id="r", journal=journal)
    await passing("two").run(run_id="r/events", journal=journal)
    client = ask(app(journal))

    assert (await client.get("/api/runs/r%2Fevents")).json()["pipeline"] == "two"
    events = (await client.get("/api/runs/r%2Fevents/events")).json()["events"]
    assert events[0]["pipeline"] == "two"
    assert (await client.get("/api/runs/r/events")).json()["events"][0]["pipeline"] == "one"


def test_a_path_that_is_made_of_an_id_has_all_of_it() -> None:
    route = Route("/runs/{run_id:asyncflow_run}", app, name="run")

    assert str(route.url_path_for("run", run_id="a/b\n")) == "/runs/a/b\n"


@pytest.mark.parametrize("sent", ["nightly%0A", "nightly%0Ax"])
async def test_the_same_is_so_below_another_app(ask: Any, journal: Any, sent: str) -> None:
    gate = Gate()
    running = asyncio.create_task(slow(gate).run(run_id="nightly", journal=journal))
    await gate.has_begun.wait()
    service: Any = Starlette(routes=[Mount("/ui", app(journal))])

    answer = await ask(service).post(f"/ui/cancel/{sent}")
    gate.is_open.set()

    assert answer.status_code == 404
    assert (await running).all_passed
