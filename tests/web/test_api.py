"""The JSON API."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest
from web.runs import failing, passing

from asyncflow import Orchestrator, RestoredError, RestoredOutput, WorkflowStep
from asyncflow.events import StepFailed, StepReused, StepSucceeded
from asyncflow.journal._queries import StoredEvent
from asyncflow.web import app
from asyncflow.web._routes import event_json


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
        "cause": None,
        "crashes": 0,
        "duration_s": record.duration_s,
        "span_s": record.span_s,
    }
    assert (await client.get("/api/runs/three")).json() == found[0]


async def test_the_events_of_a_run_are_returned_from_a_position(
    make_client: Any, any_journal: Any
) -> None:
    await failing().with_options(run_id="r", journal=any_journal).run()
    client = make_client(app(any_journal))

    answer = (await client.get("/api/runs/r/events")).json()
    following = (await client.get(f"/api/runs/r/events?after={answer['last'] - 1}")).json()
    empty = (await client.get(f"/api/runs/r/events?after={answer['last']}")).json()

    events = answer["events"]
    assert [each["position"] for each in events] == [*range(1, answer["last"] + 1)]
    assert events[0]["event"] == "RunStarted"
    assert events[0]["dependencies"] == {"extract": [], "refuse": ["extract"]}
    assert events[2] == {
        "position": 3,
        "event": "StepSucceeded",
        "step": "extract",
        "attempt": 1,
        "at_ms": events[2]["at_ms"],
        "output": [1, 2, 3],
        "secret": False,
        "item": None,
        "error": None,
    }
    failed = next(each for each in events if each["event"] == "StepFailed")
    assert failed["error"] == {"type": "builtins.ValueError", "message": "no such table: orders"}
    assert following["events"] == events[-1:]
    assert empty == {"events": [], "last": answer["last"]}


async def test_secrets_are_not_returned(make_client: Any, journal: Any) -> None:
    async def log_in() -> str:
        return "pass" + "word"

    steps = [WorkflowStep("log_in", log_in, secret=True)]
    await Orchestrator(steps).with_options(run_id="r", journal=journal).run()
    client = make_client(app(journal))

    for url in ("/api/runs/r/events", "/runs/r", "/events/r"):
        assert "password" not in (await client.get(url)).text


@pytest.mark.parametrize("after", ["x", "-1", "²", "1" * 20])
async def test_an_invalid_position_is_refused(make_client: Any, journal: Any, after: str) -> None:
    await passing().with_options(run_id="r", journal=journal).run()

    answer = await make_client(app(journal)).get(f"/api/runs/r/events?after={after}")

    assert answer.status_code == 400
    assert "after must be the position of an event" in answer.json()["detail"]


async def test_an_unknown_run_is_reported(make_client: Any, journal: Any) -> None:
    client = make_client(app(journal))

    for url in ("/api/runs/x", "/api/runs/x/events"):
        answer = await client.get(url)
        assert answer.status_code == 404
        assert answer.json()["error"] == "There is no such run"


class Unprintable:
    def __repr__(self) -> str:
        raise ValueError("no")


def test_every_value_has_a_json_form() -> None:
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    values = {
        "plain": [None, True, 1, 1.5, "ä", {"a": (1, 2)}, {3: 4}],
        "odd": [math.inf, math.nan, RestoredOutput("redacted"), {1, 2}.__class__(), Unprintable()],
        "deep": deep,
        "long": bytes(10_000),
    }

    answer = event_json(StoredEvent(7, StepSucceeded("a", 1, 2.0, values)))
    output: Any = answer["output"]

    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    assert output["plain"] == [None, True, 1, 1.5, "ä", {"a": [1, 2]}, {"3": 4}]
    assert output["odd"][:3] == ["inf", "nan", {"repr": "RestoredOutput(text='redacted')"}]
    assert output["odd"][4]["repr"].startswith("<Unprintable, whose ")
    assert len(output["long"]["repr"]) == 2_000


def test_errors_and_statuses_are_returned_as_text() -> None:
    raised = event_json(StoredEvent(1, StepFailed("a", 1, 2.0, KeyError("x"))))
    restored = event_json(
        StoredEvent(2, StepFailed("a", 1, 2.0, RestoredError("my.Error", "m", "")))
    )
    reused = event_json(StoredEvent(3, StepReused("a", 2.0)))

    assert raised["error"] == {"type": "builtins.KeyError", "message": "'x'"}
    assert restored["error"] == {"type": "my.Error", "message": "m"}
    assert type(reused["status"]) is str
    assert reused["status"] == "SUCCESS"
