"""The JSON API."""

from __future__ import annotations

import asyncio
from typing import Any

from web.runs import passing

from asyncflow.web import app


async def test_runs_are_returned_page_by_page(make_client: Any, any_journal: Any) -> None:
    for run_id in ("one", "two,", "three"):
        await passing().with_options(run_id=run_id, journal=any_journal).run()
        await asyncio.sleep(0.001)  # in virtual time, all would start at the same moment
    client, found, url = make_client(app(any_journal)), [], "/api/runs?limit=2&pipeline=etl"

    while url:
        answer = (await client.get(url)).json()
        found += answer["runs"]
        url = answer["next"]

    assert [run["run_id"] for run in found] == ["three", "two,", "one"]
    record = await any_journal.record("three")
    assert found[0] == {
        "run_id": "three",
        "pipeline": "etl",
        "status": "PASSED",
        "started_at": record.started_at,
        "updated_at": record.updated_at,
        "owner": None,
        "latest_ms": record.latest_ms,
        "paused_s": 0.0,
        "damaged": False,
        "parent": "",
        "parent_step": "",
        "rerun_of": "",
        "label": "",
        "key": "",
        "attributes": {},
        "enqueued_at": None,
        "waits_for": None,
        "cause": None,
        "crashes": 0,
        "seen_at": record.seen_at,
        "duration_s": record.duration_s,
        "span_s": record.span_s,
    }
    assert (await client.get("/api/runs/three")).json() == found[0]


async def test_an_unknown_run_is_reported(make_client: Any, journal: Any) -> None:
    client = make_client(app(journal))

    answer = await client.get("/api/runs/x")

    assert answer.status_code == 404
    assert answer.json()["error"] == "There is no such run"
