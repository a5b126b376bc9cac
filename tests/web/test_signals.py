"""The pages of runs that wait for signals, and the values that are sent from there."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, replace
from enum import Enum
from importlib import metadata
from typing import Any, Literal

import pytest
from web.runs import parts_of

from asyncflow import Pipeline, RunStatus, after
from asyncflow.web import app

WEEK_MS = 7 * 86_400_000


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Decision:
    ok: bool
    colours: list[Colour]
    cents: int = 0
    why: str | None = None
    best: Colour = Colour.RED


def waiting(hint: Any = bool, *, breaks: bool = False) -> Pipeline:
    """Return a pipeline of three steps, one of which waits for a signal."""
    orders = Pipeline("orders")

    @orders.step
    async def draft() -> str:
        return "offer"

    approved = orders.signal("approved", hint, depends_on=[draft], deadline_ms=WEEK_MS)

    @orders.step
    async def send(answer: Any = after(approved)) -> Any:
        if breaks:
            raise OSError("no network")
        return answer

    return orders


async def suspended(journal: Any, pipeline: Pipeline | None = None, run_id: str = "r") -> None:
    report = await (pipeline or waiting()).with_options(journal=journal, run_id=run_id).run()
    assert report.status == "WAITING"


async def post(client: Any, value: Any, name: str = "approved", run_id: str = "r") -> Any:
    body = {"name": name, "value": value}
    return await client.post(f"/api/runs/{run_id}/signal", json=body)


async def test_a_value_from_the_page_continues_the_run(make_client: Any, any_journal: Any) -> None:
    await suspended(any_journal, run_id="a/b")
    client = make_client(app(any_journal, pipelines={"orders": waiting()}))

    answer = await post(client, True, run_id="a%2Fb")

    assert (answer.status_code, answer.json()) == (200, {"done": "stored", "continues": True})
    continued = waiting().with_options(journal=any_journal, run_id="a/b", on_active="wait")
    report = await continued.run()
    assert report["send"].output is True


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("approved", "yes", "signal 'approved' must be of type boolean, not \"yes\""),
        ("aproved", True, "run 'r' waits for no signal 'aproved' (did you mean 'approved'?)"),
        ("approved", False, "signal 'approved' of run 'r' has another value already; the first"),
    ],
)
async def test_a_refused_value_is_answered_in_the_words_of_the_journal(
    make_client: Any, journal: Any, name: str, value: Any, why: str
) -> None:
    await suspended(journal)
    client = make_client(app(journal))
    first = await post(client, True)

    answer = await post(client, value, name)

    assert first.status_code == 200
    assert answer.status_code == 409
    assert answer.json()["error"] == "The value is refused"
    assert answer.json()["detail"].startswith(why)
    assert (await post(client, True)).status_code == 200  # a second click


@pytest.mark.parametrize("body", ["", "no JSON", "[]", '{"name": "approved"}', "[" * 100_000])
async def test_a_request_that_names_no_value_is_invalid(
    make_client: Any, journal: Any, body: str
) -> None:
    await suspended(journal)

    answer = await make_client(app(journal)).post("/api/runs/r/signal", content=body)

    assert answer.status_code == 400
    assert "must be" in answer.json()["detail"] or "not JSON" in answer.json()["detail"]


async def test_a_server_without_the_pipeline_leaves_an_answered_run_to_others(
    make_client: Any, journal: Any
) -> None:
    await suspended(journal)
    client = make_client(app(journal, pipelines={"other": waiting()}))

    answer = await post(client, True)

    assert answer.json() == {"done": "stored", "continues": False}
    assert (await journal.record("r")).status == "WAITING"
    async with waiting().with_options(journal=journal, run_id="r", on_wait="stay").start() as run:
        await run.report()
    assert (await post(client, True)).json() == {"done": "stored", "continues": False}


async def test_the_page_says_who_has_answered_when_and_why(make_client: Any, journal: Any) -> None:
    await suspended(journal)
    client = make_client(app(journal, pipelines={"orders": waiting()}))

    body = {"name": "approved", "value": True, "sent_by": "Zoë <b>", "note": "as\ndiscussed <b>"}
    await client.post("/api/runs/r/signal", json=body)
    await waiting().with_options(journal=journal, run_id="r", on_active="wait").run()
    page = (await client.get("/runs/r")).text

    assert re.search(
        r'Answered by Zoë &lt;b&gt;, <time datetime=".*">.*</time>: '
        r'<span class="note">as\ndiscussed &lt;b&gt;</span>',
        page,
    )
    assert page.count("answered by Zoë &lt;b&gt;: as …") == 2  # the table of steps, and the events
    body["note"] = 10_001 * "x"
    assert (await client.post("/api/runs/r/signal", json=body)).status_code == 400


async def test_another_site_can_send_no_signal(make_client: Any, journal: Any) -> None:
    await suspended(journal)
    client = make_client(app(journal), headers={"origin": "https://evil.example"})

    assert (await post(client, True)).status_code == 403
    await journal.signal("r", "approved", False)  # nothing came before


@pytest.mark.parametrize(
    ("hint", "asked"),
    [
        (bool, {"kind": "boolean"}),
        (int, {"kind": "integer"}),
        (float, {"kind": "number"}),
        (str, {"kind": "string"}),
        (Literal["b", "a"], {"kind": "choice", "choices": ['"a"', '"b"']}),
        pytest.param(
            Literal["a", 1],
            {"kind": "choice", "choices": ["1", '"a"']},
            marks=pytest.mark.skipif(
                metadata.version("msgspec").startswith("0.19."),
                reason="msgspec 0.19 sorts what a Literal mixes",
            ),
        ),
        (Colour, {"kind": "choice", "choices": ['"blue"', '"red"']}),
        (dict[str, int], {"kind": "json"}),
        (
            Decision,
            {
                "kind": "object",
                "fields": [
                    {"name": "ok", "required": True, "kind": "boolean"},
                    {"name": "colours", "required": True, "kind": "json"},
                    {"name": "cents", "required": False, "kind": "integer", "default": "0"},
                    {"name": "why", "required": False, "nullable": True, "kind": "string"}
                    | {"default": "null"},
                    {"name": "best", "required": False, "kind": "choice"}
                    | {"choices": ['"blue"', '"red"'], "default": '"red"'},
                ],
            },
        ),
        (bool | None, {"kind": "json"}),
        (Any, {"kind": "json"}),
    ],
)
async def test_the_page_asks_for_a_value_of_the_type(
    make_client: Any, journal: Any, hint: Any, asked: Any
) -> None:
    await suspended(journal, waiting(hint))

    offered = (await parts_of(make_client(app(journal)), "r"))["sections"]["live"]

    assert offered["signals"] == {"approved": asked}
    assert (offered["waiting"], offered["cancel"], offered["note"]) == (True, True, "")


async def test_the_page_takes_values_of_the_type_that_its_pipeline_has_now(
    make_client: Any, journal: Any
) -> None:
    await suspended(journal)
    new = app(journal, pipelines={"orders": waiting(Literal["yes", "no"])})
    client = make_client(new)

    offered = (await parts_of(client, "r"))["sections"]["live"]
    refused, stored = await post(client, True), await post(client, "yes")

    assert offered["signals"] == {"approved": {"kind": "choice", "choices": ['"no"', '"yes"']}}
    assert "must be one of 'no', 'yes'" in refused.json()["detail"]
    assert stored.json() == {"done": "stored", "continues": True}


@pytest.mark.parametrize("what", ["fails", "is forgotten"])
async def test_a_value_from_the_page_starts_no_run_that_ends_meanwhile(
    make_client: Any, journal: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    await suspended(journal)
    client = make_client(app(journal, pipelines={"orders": waiting(bool | str)}))
    read = "_asks" if what == "fails" else "record"
    reads = getattr(journal, read)

    async def end_after(run_id: str) -> Any:
        monkeypatch.setattr(journal, read, reads)
        found = await reads(run_id)
        if what == "fails":
            await journal.signal(run_id, "approved", True)
            await waiting(breaks=True).with_options(journal=journal, run_id=run_id).run()
        else:
            await journal.forget(run_id)
        return found

    monkeypatch.setattr(journal, read, end_after)
    answer = await post(client, True)
    name = "asyncflow:resume:r"
    await asyncio.gather(*(each for each in asyncio.all_tasks() if each.get_name() == name))

    if what == "fails":
        assert (await journal.record("r")).status == "FAILED"
    else:
        assert answer.status_code == 404
        assert await journal.runs() == []


async def test_the_page_asks_for_no_second_answer(make_client: Any, journal: Any) -> None:
    await suspended(journal)
    await journal.signal("r", "approved", True)

    offered = (await parts_of(make_client(app(journal)), "r"))["sections"]["live"]

    assert offered["signals"] == {"approved": {"kind": "answered"}}


async def test_an_answer_to_an_orphan_is_not_said_to_be_taken(
    make_client: Any, journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_of = journal.record

    async def orphaned(run_id: str) -> Any:
        return replace(await record_of(run_id), status=RunStatus.ORPHANED)

    await suspended(journal)
    monkeypatch.setattr(journal, "record", orphaned)
    offered = (await parts_of(make_client(app(journal)), "r"))["sections"]["live"]

    assert offered["signals"] == {"approved": {"kind": "boolean"}}
    assert offered["next"].startswith("A service with pipeline 'orders' continues the run; without")


async def test_a_run_that_waits_on_is_not_said_to_be_resumed(
    make_client: Any, journal: Any
) -> None:
    await suspended(journal)
    events = await journal.events("r")
    client = make_client(app(journal, pipelines={"orders": waiting()}))

    answer = await client.post("/resume/r", headers={"accept": "application/json"})

    assert answer.json() == {"done": "waiting"}
    assert await journal.events("r") == events


async def test_each_page_says_what_a_run_waits_for(make_client: Any, journal: Any) -> None:
    for number in range(7):
        await suspended(journal, run_id=f"r{number}")
    client = make_client(app(journal))

    run, runs, pipeline = [
        (await client.get(path)).text for path in ("/runs/r1", "/", "/pipelines/orders")
    ]

    assert re.search(r'Waits for</dt><dd><div>approved <span class="dim">since .*, until ', run)
    assert "WAITING" in run
    assert "1 of 3, waits for approved" in runs
    assert re.search(r'Waiting</dt><dd><div><a href="/runs/r6">r6</a> for approved', pipeline)
    assert "and 2 more runs" in pipeline
