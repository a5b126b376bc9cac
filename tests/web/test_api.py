"""What programs are told, in JSON."""

from __future__ import annotations

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


async def test_runs_are_told_page_by_page(ask: Any, any_journal: Any) -> None:
    for run_id in ("one", "two,", "three"):
        await passing().run(run_id=run_id, journal=any_journal)
    client, found, url = ask(app(any_journal)), [], "/api/runs?limit=2&pipeline=etl"

    while url:
        told = (await client.get(url)).json()
        found += told["runs"]
        url = told["next"]

    assert [run["run_id"] for run in found] == ["three", "two,", "one"]
    record = await any_journal.record("three")
    assert found[0] == {
        "run_id": "three",
        "pipeline": "etl",
        "status": "passed",
        "started_at": record.started_at,
        "updated_at": record.updated_at,
        "owner": None,
        "orphaned": False,
        "duration_s": record.duration_s,
    }
    assert (await client.get("/api/runs/three")).json() == found[0]


async def test_the_events_of_a_run_are_told(ask: Any, any_journal: Any) -> None:
    await failing().run(run_id="r", journal=any_journal)
    client = ask(app(any_journal))

    told = (await client.get("/api/runs/r/events")).json()
    following = (await client.get(f"/api/runs/r/events?after={told['last'] - 1}")).json()
    nothing = (await client.get(f"/api/runs/r/events?after={told['last']}")).json()

    events = told["events"]
    assert [each["position"] for each in events] == [*range(1, told["last"] + 1)]
    assert events[0]["event"] == "RunStarted"
    assert events[0]["dependencies"] == {"extract": [], "refuse": ["extract"]}
    assert events[2] == {
        "position": 3,
        "event": "StepSucceeded",
        "step": "extract",
        "attempt": 1,
        "at_ms": events[2]["at_ms"],
        "output": [1, 2, 3],
        "item": None,
    }
    failed = next(each for each in events if each["event"] == "StepFailed")
    assert failed["error"] == {"type": "builtins.ValueError", "message": "no such table: orders"}
    assert following["events"] == events[-1:]
    assert nothing == {"events": [], "last": told["last"]}


async def test_what_is_secret_is_not_told(ask: Any, journal: Any) -> None:
    async def log_in() -> str:
        return "pass" + "word"

    steps = [WorkflowStep("log_in", log_in, secret=True)]
    await Orchestrator(steps).run(run_id="r", journal=journal)
    client = ask(app(journal))

    for url in ("/api/runs/r/events", "/runs/r", "/events/r"):
        assert "password" not in (await client.get(url)).text


@pytest.mark.parametrize("after", ["x", "-1", "²", "1" * 20])
async def test_a_position_that_is_none_is_refused(ask: Any, journal: Any, after: str) -> None:
    await passing().run(run_id="r", journal=journal)

    answer = await ask(app(journal)).get(f"/api/runs/r/events?after={after}")

    assert answer.status_code == 400
    assert "after must be the position of an event" in answer.json()["detail"]


async def test_an_unknown_run_is_told_of(ask: Any, journal: Any) -> None:
    client = ask(app(journal))

    for url in ("/api/runs/x", "/api/runs/x/events"):
        answer = await client.get(url)
        assert answer.status_code == 404
        assert answer.json()["error"] == "There is no such run"


class Awkward:
    def __repr__(self) -> str:
        raise ValueError("no")


def test_every_value_is_told_as_json() -> None:
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    values = {
        "plain": [None, True, 1, 1.5, "ä", {"a": (1, 2)}, {3: 4}],
        "odd": [math.inf, math.nan, RestoredOutput("redacted"), {1, 2}.__class__(), Awkward()],
        "deep": deep,
        "long": bytes(10_000),
    }

    told = event_json(StoredEvent(7, StepSucceeded("a", 1, 2.0, values)))
    output: Any = told["output"]

    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert output["plain"] == [None, True, 1, 1.5, "ä", {"a": [1, 2]}, {"3": 4}]
    assert output["odd"][:3] == ["inf", "nan", {"repr": "RestoredOutput(text='redacted')"}]
    assert output["odd"][4]["repr"].startswith("<Awkward, whose ")
    assert len(output["long"]["repr"]) == 2_000


def test_errors_and_statuses_are_told_in_words() -> None:
    own = event_json(StoredEvent(1, StepFailed("a", 1, 2.0, KeyError("x"))))
    kept = event_json(StoredEvent(2, StepFailed("a", 1, 2.0, RestoredError("my.Error", "m", ""))))
    reused = event_json(StoredEvent(3, StepReused("a", 2.0)))

    assert own["error"] == {"type": "builtins.KeyError", "message": "'x'"}
    assert kept["error"] == {"type": "my.Error", "message": "m"}
    assert type(reused["status"]) is str
    assert reused["status"] == "SUCCESS"
