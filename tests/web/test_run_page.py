"""The page of a run, and the stream that it follows."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from html import unescape
from typing import Any

from web.runs import Gate, failing, passing, slow

from asyncflow import Orchestrator, WorkflowStep
from asyncflow.journal._queries import RunRecord
from asyncflow.web import app


def told_in(text: str) -> list[dict[str, Any]]:
    """The updates of a stream, each with its id."""
    updates = []
    for message in text.replace("\r\n", "\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in message.splitlines() if ": " in line)
        if fields.get("event") == "update":
            updates.append({**json.loads(fields["data"]), "id": int(fields["id"])})
    return updates


def actions_of(update: dict[str, Any]) -> Any:
    return json.loads(update["sections"]["live"])


async def test_a_run_has_its_page(ask: Any, any_journal: Any) -> None:
    await failing().run(run_id="bold-heron", journal=any_journal)
    last = len(await any_journal.events("bold-heron"))

    answer = await ask(app(any_journal)).get("/runs/bold-heron")

    assert answer.status_code == 200
    assert "no such table: orders" in answer.text
    assert f'data-events-url="/events/bold-heron?after={last}"' in answer.text
    assert 'data-cancel-url="/cancel/bold-heron"' in answer.text
    assert 'data-resume-url="/resume/bold-heron"' in answer.text
    assert '<script src="/assets/live.js?v=' in answer.text
    policy = answer.headers["content-security-policy"]
    assert "connect-src 'self'" in policy
    for element in ("style", "script"):
        (text,) = re.findall(rf"<{element}>(.+?)</{element}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


async def test_a_stream_ends_with_the_run(ask: Any, any_journal: Any) -> None:
    await passing().run(run_id="r", journal=any_journal)
    last = len(await any_journal.events("r"))

    answer = await ask(app(any_journal)).get("/events/r")

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert "retry: 1000" in answer.text
    (update,) = told_in(answer.text)
    assert (update["end"], update["id"]) == ("ended", last)
    assert {"header", "gantt", "dag", "steps", "events"} <= set(update["sections"])
    assert actions_of(update) == {"cancel": False, "resume": False, "note": ""}


async def test_the_page_and_its_stream_are_made_of_the_same_parts(ask: Any, journal: Any) -> None:
    await passing().run(run_id="r", journal=journal)
    client = ask(app(journal))

    page = (await client.get("/runs/r")).text
    (update,) = told_in((await client.get("/events/r")).text)

    sections = {name: html for name, html in update["sections"].items() if name != "live"}
    assert all(f'id="{name}"' in page for name in sections)
    assert all(html in page for name, html in sections.items() if name != "header")


async def test_a_browser_says_what_it_has_seen(ask: Any, journal: Any) -> None:
    await passing().run(run_id="r", journal=journal)
    last = len(await journal.events("r"))
    client = ask(app(journal))

    for url, headers in (
        (f"/events/r?after={last}", {}),
        ("/events/r?after=1", {"last-event-id": str(last)}),  # the later one counts
    ):
        (update,) = told_in((await client.get(url, headers=headers)).text)
        assert set(update["sections"]) == {"live"}
        assert (update["end"], update["id"]) == ("ended", last)
    for seen in ("1", "x", "²", "1" * 30, ""):
        (update,) = told_in((await client.get(f"/events/r?after={seen}")).text)
        assert "steps" in update["sections"]


async def test_a_page_of_an_ended_run_asks_whether_it_goes_on(ask: Any, journal: Any) -> None:
    await failing().run(run_id="r", journal=journal)
    last = len(await journal.events("r"))
    client = ask(app(journal))
    as_script = {"accept": "application/json"}

    before = await client.get(f"/events/r?after={last}", headers=as_script)
    await failing().run(run_id="r", journal=journal)
    afterwards = await client.get(f"/events/r?after={last}", headers=as_script)

    assert (before.json(), afterwards.json()) == ({"more": False}, {"more": True})


async def test_a_run_that_goes_on_is_followed(ask: Any, journal: Any) -> None:
    gate = Gate()
    running = asyncio.create_task(slow(gate).run(run_id="r", journal=journal))
    await gate.has_begun.wait()
    asyncio.get_running_loop().call_later(3, gate.is_open.set)

    updates = told_in((await ask(app(journal)).get("/events/r")).text)
    await running

    assert len(updates) > 3
    assert "RUNNING" in updates[0]["sections"]["header"]
    assert actions_of(updates[0]) == {"cancel": True, "resume": False, "note": ""}
    assert "PASSED" in updates[-1]["sections"]["header"]
    assert [each["id"] for each in updates] == sorted(each["id"] for each in updates)
    assert [each["end"] for each in updates[:-1]] == [None] * (len(updates) - 1)


async def test_a_run_that_stops_can_not_be_cancelled_once_more(ask: Any, journal: Any) -> None:
    gate, cleaned = Gate(), asyncio.Event()

    async def clean_up_slowly() -> None:
        gate.has_begun.set()
        try:
            await asyncio.sleep(1_000)
        finally:
            await cleaned.wait()

    steps = [WorkflowStep("slow", clean_up_slowly, timeout_ms=None)]
    running = asyncio.create_task(Orchestrator(steps).run(run_id="r", journal=journal))
    await gate.has_begun.wait()
    running.cancel()
    await asyncio.sleep(0.1)
    asyncio.get_running_loop().call_later(1, cleaned.set)

    updates = told_in((await ask(app(journal)).get("/events/r")).text)
    await asyncio.gather(running, return_exceptions=True)

    assert "STOPPING" in updates[0]["sections"]["header"]
    assert actions_of(updates[0]) == {"cancel": False, "resume": False, "note": ""}
    assert actions_of(updates[-1])["note"] == "to resume it here, give this server its pipeline"


async def test_an_orphan_says_so(ask: Any, journal: Any) -> None:
    await failing("etl").run(run_id="r", journal=journal)
    events = await journal.events("r")

    class Orphaned:
        """The journal of a run whose process has died."""

        runs = cancel = None

        async def record(self, run_id: str) -> RunRecord:
            return RunRecord("r", "etl", "running", 0.0, 0.0, None, orphaned=True)

        async def events(self, run_id: str, after: int = 0) -> Any:
            return events[after:-1]

    async def first(**options: Any) -> Any:
        pages: Any = app(Orphaned(), **options)
        told: list[bytes] = []
        seen = asyncio.Event()

        async def send(message: Any) -> None:
            told.append(message.get("body", b""))
            if b"event: update" in told[-1]:
                seen.set()

        async def receive() -> Any:
            await seen.wait()
            return {"type": "http.disconnect"}

        scope = {
            "type": "http",
            "method": "GET",
            "path": "/events/r",
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
            "scheme": "http",
            "server": ("localhost", 80),
        }
        await pages(scope, receive, send)
        return actions_of(told_in(b"".join(told).decode())[0])

    known = await first(pipelines={"etl": failing("etl")})
    unknown = await first()

    assert known["resume"]
    assert known["note"] == "orphaned: its process is gone"
    assert not unknown["resume"]
    assert unknown["note"].endswith("to resume it here, give this server its pipeline")


async def test_an_unknown_run_leads_to_its_nearest_names(ask: Any, journal: Any) -> None:
    for run_id in ("nightly-1", "nightly-2", "weekly"):
        await passing().run(run_id=run_id, journal=journal)
    client = ask(app(journal))

    page = await client.get("/runs/nihtly-1")
    program = await client.get("/api/runs/nihtly-1")
    far = await client.get("/runs/zzz")

    assert page.status_code == program.status_code == far.status_code == 404
    links = re.findall(r'href="/runs/([^"]*)"', page.text)
    assert links[0] == "nightly-1"
    assert "weekly" not in links
    assert "Did you mean 'nightly-1'" in program.json()["detail"]
    assert "Did you mean" not in far.text
    assert "All runs" in unescape(far.text)


async def test_an_unknown_run_can_not_be_followed(ask: Any, journal: Any) -> None:
    client = ask(app(journal))

    (update,) = told_in((await client.get("/events/nothing?after=3")).text)
    program = await client.get("/events/nothing", headers={"accept": "application/json"})

    assert update["end"] == "gone"
    assert program.status_code == 404


async def test_a_run_in_which_nothing_has_happened_has_no_page_yet(ask: Any) -> None:
    class Empty:
        runs = cancel = None

        async def record(self, run_id: str) -> RunRecord:
            return RunRecord("r", "etl", "running", 0.0, 0.0, "me")

        async def events(self, run_id: str, after: int = 0) -> Any:
            return []

    pages: Any = app(Empty())  # type: ignore[arg-type]
    answer = await ask(pages).get("/runs/r")

    assert answer.status_code == 404
    assert "The run has not begun" in answer.text


async def test_what_is_wrong_with_the_program_is_not_told(ask: Any) -> None:
    class Broken:
        runs = cancel = events = None

        async def record(self, run_id: str) -> RunRecord:
            raise ZeroDivisionError("secret")

    pages: Any = app(Broken())  # type: ignore[arg-type]
    answer = await ask(pages).get("/api/runs/r")

    assert answer.status_code == 500
    assert "secret" not in answer.text


async def test_text_that_is_no_unicode_has_its_pages_too(ask: Any, any_journal: Any) -> None:
    odd = "odd \ud800 \x00"

    async def give() -> dict[str, str]:
        return {"text": "\x00", odd[:3]: "x"}

    async def fail() -> None:
        raise ValueError(odd)

    steps = [WorkflowStep(f"give {odd}", give), WorkflowStep("fail", fail)]
    await Orchestrator(steps, name=f"name {odd}").run(run_id="r", journal=any_journal)
    client = ask(app(any_journal))

    for url in ("/", "/runs/r", "/events/r", "/api/runs", "/api/runs/r", "/api/runs/r/events"):
        answer = await client.get(url)
        assert answer.status_code == 200, url
        assert "odd" in answer.text
    assert (await client.post("/resume/r")).status_code == 409
    for query in ("/?pipeline=%ED%A0%80", "/?text=%ED%A0%80", "/runs/%ED%A0%80"):
        assert (await client.get(query)).status_code in (200, 400, 404)
