"""The page of a run, its parts, and the stream that tells of changes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from html import unescape
from typing import Any

import pytest
from segments import store_segment
from web.runs import Gate, failing, parts_of, passing, slow

from asyncflow import Orchestrator, RunStatus, WorkflowStep
from asyncflow.events import AttemptStarted, RunFinished, RunStarted, StepSucceeded
from asyncflow.journal import SQLiteJournal
from asyncflow.journal._read.queries import PipelineStatistics, RunRecord
from asyncflow.web import app

FINAL = {"cancel": False, "resume": False, "rerun": None, "note": "", "orphaned": False}
FINAL |= {"preview": "", "waiting": False, "queued": False, "signals": {}}
FINAL |= {"places": {}, "next": ""}
"""The actions on a run that has passed."""


def actions_of(received: dict[str, Any]) -> Any:
    return received["sections"]["live"]


async def test_a_run_has_its_page(make_client: Any, any_journal: Any) -> None:
    await failing().with_options(run_id="bold-heron", journal=any_journal).run()
    last = len(await any_journal.events("bold-heron"))

    answer = await make_client(app(any_journal)).get("/runs/bold-heron")

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


async def test_the_parts_of_an_ended_run_say_so(make_client: Any, any_journal: Any) -> None:
    await passing().with_options(run_id="r", journal=any_journal).run()
    last = len(await any_journal.events("r"))

    answer = await make_client(app(any_journal)).get("/parts/r")
    received = await parts_of(make_client(app(any_journal)), "r")

    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert (received["end"], received["position"]) == ("ended", last)
    assert {"header", "gantt", "dag", "steps", "events"} <= set(received["sections"])
    assert actions_of(received) == FINAL


async def test_the_page_and_its_parts_have_the_same_sections(
    make_client: Any, journal: Any
) -> None:
    await passing().with_options(run_id="r", journal=journal).run()
    client = make_client(app(journal))

    page = (await client.get("/runs/r")).text
    received = await parts_of(client, "r")

    sections = {name: html for name, html in received["sections"].items() if name != "live"}
    assert all(f'id="{name}"' in page for name in sections)
    assert all(html in page for name, html in sections.items() if name != "header")


async def test_a_page_receives_the_parts_that_it_does_not_have(
    make_client: Any, journal: Any
) -> None:
    gate = Gate()
    running = asyncio.create_task(slow(gate).with_options(run_id="r", journal=journal).run())
    await gate.has_started.wait()
    await asyncio.sleep(1)  # until the step that has nothing to wait for has ended
    client = make_client(app(journal))
    page = (await client.get("/runs/r")).text
    have = re.findall(r'data-have="(.*?) "', page)[0].split()

    first = (await client.get(f"/parts/r?have={','.join(have)}")).json()
    more = [f"{name}:{digest}" for name, (digest, _) in first["sections"].items()]
    has_all = ",".join([*have, *more])
    second = (await client.get(f"/parts/r?have={has_all}")).json()
    gate.is_open.set()
    await running
    last = await parts_of(client, "r", f"?have={has_all}")

    changing = {"header", "gantt", "steps", "details", "dag"}  # they have durations
    assert {"live"} <= set(first["sections"]) <= {"live", *changing}
    assert set(second["sections"]) <= changing
    assert {"header", "events", "steps"} <= set(last["sections"])
    assert not {"data", "failure"} & set(last["sections"])


async def test_the_page_of_an_ended_run_asks_for_new_events(make_client: Any, journal: Any) -> None:
    await failing().with_options(run_id="r", journal=journal).run()
    last = len(await journal.events("r"))
    client = make_client(app(journal))

    before = await parts_of(client, "r", f"?after={last}")
    for unread in ("1", "x", "²", "1" * 30, ""):
        received = await parts_of(client, "r", f"?after={unread}")
        assert ("steps" in received["sections"], received["end"]) == (True, "ended")
    await failing().with_options(run_id="r", journal=journal).run()
    after = await parts_of(client, "r", f"?after={last}")

    assert set(before["sections"]) == {"live"}  # the page has all others
    assert (before["end"], before["position"]) == ("ended", last)
    assert "steps" in after["sections"]
    assert after["position"] > last


async def test_the_page_of_a_run_that_was_forgotten_does_not_show_another_one_with_its_id(
    make_client: Any, journal: Any
) -> None:
    await failing().with_options(run_id="r", journal=journal).run()
    last = len(await journal.events("r"))
    client = make_client(app(journal))
    url = re.search(r'data-parts-url="/parts/r([^"]+)"', (await client.get("/runs/r")).text)
    assert url is not None
    before = await parts_of(client, "r", f"{url[1]}&after={last}")
    await journal.forget("r")
    await asyncio.sleep(1)
    await passing().with_options(run_id="r", journal=journal).run()

    after = await parts_of(client, "r", f"{url[1]}&after={last}")

    assert before["end"] == "ended"
    assert (after["end"], after["sections"]) == ("reload", {})


async def test_a_stream_tells_of_a_run_until_it_has_ended(make_client: Any, journal: Any) -> None:
    gate = Gate()
    running = asyncio.create_task(slow(gate).with_options(run_id="r", journal=journal).run())
    await gate.has_started.wait()
    asyncio.get_running_loop().call_later(6, gate.is_open.set)
    client = make_client(app(journal))

    before = await parts_of(client, "r")
    answer = await client.get("/events/r")
    after = await parts_of(client, "r")
    last = await client.get(f"/events/r?after={after['position']}")
    await running

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert "retry: 1000" in answer.text
    assert 5 <= answer.text.count("event: changed") <= 9
    assert len(answer.text) < 1_000  # it has no part of the page
    assert last.text.count("event: changed") == 1
    assert ("RUNNING" in before["sections"]["header"], before["end"]) == (True, None)
    assert actions_of(before) == {**FINAL, "cancel": True}
    assert ("PASSED" in after["sections"]["header"], after["end"]) == (True, "ended")


async def test_a_page_that_has_seen_the_last_event_receives_all_that_differs_from_its_feed(
    make_client: Any, journal: Any
) -> None:
    gate = Gate()
    running = asyncio.create_task(slow(gate).with_options(run_id="r", journal=journal).run())
    await gate.has_started.wait()
    client = make_client(app(journal))
    stream = asyncio.create_task(client.get("/events/r"))
    await asyncio.sleep(1)
    gate.is_open.set()
    await running
    last = len(await journal.events("r"))
    await asyncio.sleep(1)

    received = await parts_of(client, "r", f"?after={last}")
    await stream

    assert received["end"] == "ended"
    assert {"header", "steps", "live"} <= set(received["sections"])


async def test_a_stopping_run_cannot_be_cancelled_again(make_client: Any, journal: Any) -> None:
    gate, cleaned = Gate(), asyncio.Event()

    async def clean_up_slowly() -> None:
        gate.has_started.set()
        try:
            await asyncio.sleep(1_000)
        finally:
            await cleaned.wait()

    steps = [WorkflowStep("slow", clean_up_slowly, timeout_ms=None)]
    running = asyncio.create_task(
        Orchestrator(steps).with_options(run_id="r", journal=journal).run()
    )
    await gate.has_started.wait()
    running.cancel()
    await asyncio.sleep(0.1)
    client = make_client(app(journal))

    stopping = await parts_of(client, "r")
    cleaned.set()
    await asyncio.gather(running, return_exceptions=True)
    stopped = await parts_of(client, "r")

    assert "STOPPING" in stopping["sections"]["header"]
    assert actions_of(stopping) == FINAL
    assert actions_of(stopped)["note"] == "to resume it here, give this server its pipeline"


async def test_an_orphaned_run_is_reported_as_orphaned(make_client: Any, journal: Any) -> None:
    await failing("etl").with_options(run_id="r", journal=journal).run()
    events = await journal.events("r")

    class Orphaned(SQLiteJournal):
        """The journal of a run whose process died."""

        async def runs(self, **conditions: Any) -> list[RunRecord]:
            return []

        async def record(self, run_id: str) -> RunRecord:
            return RunRecord("r", "etl", RunStatus.ORPHANED, 0.0, 0.0, None)

        async def events(self, run_id: str, after: int = 0) -> Any:
            return events[after:-1]

        async def notes(self, run_id: str, **_: Any) -> Any:
            return []

        async def statistics(self, pipeline: str, *, runs: int) -> PipelineStatistics:
            return PipelineStatistics(pipeline, (), {})

    async def first_actions(**options: Any) -> Any:
        async with Orphaned(":memory:") as orphaned:
            return actions_of(await parts_of(make_client(app(orphaned, **options)), "r"))

    known = await first_actions(pipelines={"etl": failing("etl")})
    unknown = await first_actions()

    rerun = {"inputs": [], "secret": []}
    left = {**FINAL, "cancel": True, "orphaned": True}
    assert known == {**left, "resume": True, "rerun": rerun}
    note = "to resume it here, give this server its pipeline"
    assert unknown == {**left, "note": note}


async def test_an_unknown_run_is_reported(make_client: Any, journal: Any) -> None:
    client = make_client(app(journal))

    page, api = [await client.get(f"{where}/runs/x") for where in ("", "/api")]

    assert page.status_code == api.status_code == 404
    assert "The journal has no run 'x'" in api.json()["detail"]
    assert "All runs" in unescape(page.text)


@pytest.mark.parametrize("path", ["events", "parts"])
async def test_the_stream_and_the_parts_of_an_unknown_run_are_not_found(
    make_client: Any, journal: Any, path: str
) -> None:
    as_script = {"accept": "application/json"}

    for after in ("", "?after=3"):
        answer = await make_client(app(journal)).get(f"/{path}/nothing{after}", headers=as_script)
        assert (answer.status_code, answer.json()["error"]) == (404, "There is no such run")


async def test_a_run_without_events_has_no_page(make_client: Any) -> None:
    class Empty:
        runs = cancel = None

        async def record(self, run_id: str) -> RunRecord:
            return RunRecord("r", "etl", RunStatus.RUNNING, 0.0, 0.0, "me")

        async def events(self, run_id: str, after: int = 0) -> Any:
            return []

    pages: Any = app(Empty())  # type: ignore[arg-type]
    answer = await make_client(pages).get("/runs/r")

    assert answer.status_code == 404
    assert "The run has not begun" in answer.text


async def test_an_internal_error_is_not_exposed(make_client: Any) -> None:
    class Broken:
        runs = cancel = events = None

        async def record(self, run_id: str) -> RunRecord:
            raise ZeroDivisionError("secret")

    pages: Any = app(Broken())  # type: ignore[arg-type]
    answer = await make_client(pages).get("/api/runs/r")

    assert answer.status_code == 500
    assert "secret" not in answer.text


async def test_a_page_and_its_parts_say_how_long_a_step_usually_takes(
    make_client: Any, journal: Any
) -> None:
    async def store(run_id: str, ms: float) -> None:
        begun = RunStarted(run_id, 0.0, {"load": ()}, "etl"), AttemptStarted("load", 1, 0.0)
        ended = StepSucceeded("load", 1, ms, None), RunFinished(ms, RunStatus.PASSED)
        await store_segment(journal, run_id, *begun, *ended, with_steps=True)

    client = make_client(app(journal))
    await store("a", 1_000.0)
    await store("b", 2_000.0)
    assert "usually" not in (await client.get("/runs/b")).text

    await store("c", 9_000.0)

    page = (await client.get("/runs/c")).text
    received = await parts_of(client, "c")
    assert "<dd>9.0 s, usually 2.0 s</dd>" in page
    assert "usually 2.0 s" in received["sections"]["details"]
    assert received["sections"]["gantt"] in page
    told = "usually 2.0 s: load +7.0 s"
    assert f'9.0 s<span class="dim">, {told}</span>' in received["sections"]["header"]
    listed = (await client.get("/")).text
    assert [told in row for row in listed.split("<tr>")[2:]] == [True, False, False]


async def test_a_running_run_says_how_long_is_left_on_its_page_and_in_the_list(
    make_client: Any, journal: Any
) -> None:
    now_s = time.time()

    async def begin(run_id: str, wall_time: float) -> Any:
        session, _ = await journal.open(run_id, wait=False, read=bool)
        session.append(RunStarted(run_id, wall_time, {"load": ()}, "etl"))
        return session

    for run_id in "abc":
        session = await begin(run_id, now_s - 10_000.0)
        session.append(RunFinished(3_600_000.0, RunStatus.PASSED))
        await session.close()
    running = await begin("now", now_s - 1_200.0)
    await running.flush()

    client = make_client(app(journal))
    page, listed = (await client.get("/runs/now")).text, (await client.get("/")).text
    await running.close()

    left = r"about (39 min \d+ s|40 min 0 s) left"
    assert re.search(rf"<dt>Running for</dt>.*20 min \d+ s.*, {left}", page)
    assert len(re.findall(left, listed)) == 1
    assert not re.search(r"about .* left", (await client.get("/runs/a")).text)


async def test_the_second_viewer_of_a_run_reads_no_statistics(make_client: Any) -> None:
    asked: list[str] = []

    class Counting(SQLiteJournal):
        async def statistics(self, pipeline: str, *, runs: int = 50) -> PipelineStatistics:
            asked.append(pipeline)
            return await super().statistics(pipeline, runs=runs)

    gate = Gate()
    async with Counting(":memory:") as journal:
        running = asyncio.create_task(slow(gate).with_options(run_id="r", journal=journal).run())
        await gate.has_started.wait()
        client = make_client(app(journal))
        viewers = [asyncio.create_task(client.get("/events/r")) for _ in range(2)]
        for _ in range(3):
            await asyncio.sleep(1)
            await asyncio.gather(*(client.get("/parts/r") for _ in range(2)))
        gate.is_open.set()
        await asyncio.gather(running, *viewers)

    assert asked == ["slow"]
