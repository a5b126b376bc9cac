"""Runs are run again from their page, and pages of related runs link to each other."""

from __future__ import annotations

import asyncio
import re
from contextlib import nullcontext
from datetime import date
from typing import Any

import pytest
from web.runs import passing

from asyncflow import Orchestrator, Pipeline, WorkflowStep, after, run_pipeline
from asyncflow.web import app
from asyncflow.web._resumer import Resumer


class Work:
    """A pipeline with inputs that counts its calls, and fails while it is broken."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.is_broken = False

    def pipeline(self) -> Pipeline:
        pipeline = Pipeline("etl", secret_inputs=["token"])

        @pipeline.step
        async def extract(day: date = date(2026, 1, 1)) -> str:
            self.calls.append("extract")
            return day.isoformat()

        @pipeline.step
        async def load(rows: str = after(extract), table: str = "t", token: str = "") -> str:
            self.calls.append("load")
            if self.is_broken:
                raise ValueError("no disk")
            return f"{table} {rows}"

        return pipeline


@pytest.fixture
def work() -> Work:
    return Work()


async def ended(journal: Any, run_id: str) -> Any:
    """Wait until a run has ended, and return its report."""
    while (await journal.record(run_id)).status == "RUNNING":
        await asyncio.sleep(0.01)
    return await journal.report(run_id)


async def test_a_run_is_run_again_under_a_new_id(
    make_client: Any, any_journal: Any, work: Work
) -> None:
    work.is_broken = True
    await work.pipeline().orchestrator.with_options(run_id="a/b", journal=any_journal).run()
    work.is_broken = False
    client = make_client(app(any_journal, pipelines={"etl": work.pipeline()}))

    answer = await client.post("/api/runs/a%2Fb/rerun")

    assert answer.status_code == 201
    body = answer.json()
    assert body == {"done": "rerun", "run_id": body["run_id"], "url": f"/runs/{body['run_id']}"}
    assert re.fullmatch("[a-z]+-[a-z]+-[0-9a-f]{4}", body["run_id"])  # as those of the commands
    report = await ended(any_journal, body["run_id"])
    assert report.status == "PASSED"
    assert report.rerun_of == "a/b"
    assert work.calls == ["extract", "load", "load"]
    assert (await any_journal.record("a/b")).status == "FAILED"


async def test_a_resource_is_no_input(make_client: Any, journal: Any) -> None:
    pipeline = Pipeline("etl", resources={"db": lambda: nullcontext("db")})

    @pipeline.step
    async def load(db: str, table: str = "t") -> str:
        return f"{db} {table}"

    await pipeline.with_options(run_id="r", journal=journal).run()
    client = make_client(app(journal, pipelines={"etl": pipeline.orchestrator}))

    offered = Resumer(journal, {"etl": pipeline.orchestrator}).rerun_options(
        await journal.record("r")
    )
    answer = await client.post("/api/runs/r/rerun", json={"from": ["load"]})

    assert offered == {"inputs": ["table"], "secret": []}
    report = await ended(journal, answer.json()["run_id"])
    assert report["load"].output == "db t"


async def test_steps_and_typed_inputs_are_chosen(
    make_client: Any, journal: Any, work: Work
) -> None:
    await work.pipeline().orchestrator.with_options(run_id="r", journal=journal).run()
    client = make_client(app(journal, pipelines={"etl": work.pipeline()}))

    one = await client.post("/api/runs/r/rerun", json={"from": ["load"]})
    day = await client.post("/api/runs/r/rerun", json={"inputs": {"day": "2026-02-03"}})
    every = await client.post("/api/runs/r/rerun", json={"all": True})
    reports = [await ended(journal, each.json()["run_id"]) for each in (one, day, every)]

    assert [[each.step_name for each in report.reused] for report in reports] == [
        ["extract"],
        [],
        [],
    ]
    assert reports[1]["load"].output == "t 2026-02-03"
    assert reports[2]["extract"].rerun_reason == "the rerun starts from it"


async def test_a_preview_changes_with_what_is_chosen_and_makes_no_run(
    make_client: Any, journal: Any, work: Work
) -> None:
    work.is_broken = True
    await work.pipeline().orchestrator.with_options(run_id="r", journal=journal).run()
    client = make_client(app(journal, pipelines={"etl": work.pipeline()}))

    bodies = [{}, {"all": True}, {"inputs": {"day": "2026-02-03"}}]
    answers = [
        (await client.post("/api/runs/r/rerun", json={**body, "preview": True})).json()
        for body in bodies
    ]

    assert [each["counts"] for each in answers] == ["1 reused, 1 to run", "2 to run", "2 to run"]
    assert answers[0] == {
        "done": "preview",
        "counts": "1 reused, 1 to run",
        "runs_nothing": False,
        "steps": [
            {"name": "load", "decision": "runs", "words": "it had failed"},
            {"name": "extract", "decision": "reused", "words": ""},
        ],
        "left_out": 0,
    }
    assert answers[2]["steps"][0]["words"] == "the other run does not have its input 'day'"
    assert len(await journal.runs()) == 1


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "the request is not JSON"),
        (b"[]", 400, "must be an object"),
        (b'{"form": []}', 400, "must be an object"),
        (b'{"from": "load"}', 400, '"from" must be a list of steps'),
        (b'{"from": [1]}', 400, '"from" must be a list of steps'),
        (b'{"inputs": []}', 400, '"inputs" must be an object'),
        (b'{"all": 1}', 400, '"all" must be true or false'),
        (b'{"preview": 1}', 400, '"preview" must be true or false'),
        (b'{"preview": true, "from": ["laod"]}', 409, "did you mean 'load'?"),
        (b'{"preview": true, "inputs": {"table": 1}}', 409, "input 'table' does not fit"),
        (b" " * 1_048_577, 400, "more than 1,048,576 bytes"),
        (b'{"from": ["laod"]}', 409, "did you mean 'load'?"),
        (b'{"inputs": {"tabel": 1}}', 409, "takes an input 'tabel' (did you mean 'table'?)"),
        (b'{"inputs": {"table": 1}}', 409, "input 'table' does not fit: Expected `str`, got `int`"),
        (b'{"inputs": {"token": "x"}}', 409, "its input 'token' is secret, so a page can't give"),
    ],
)
async def test_what_can_not_be_done_is_refused(
    make_client: Any, journal: Any, work: Work, body: bytes, status: int, words: str
) -> None:
    await work.pipeline().orchestrator.with_options(run_id="r", journal=journal).run()
    work.calls.clear()
    client = make_client(app(journal, pipelines={"etl": work.pipeline()}))

    answer = await client.post("/api/runs/r/rerun", content=body)

    assert answer.status_code == status
    assert words in answer.json()["detail"]
    assert work.calls == []
    assert len(await journal.runs()) == 1


async def test_a_secret_input_of_the_run_can_not_be_given_in_a_page(
    make_client: Any, journal: Any, work: Work
) -> None:
    pipeline = work.pipeline()
    await pipeline.orchestrator.with_options(run_id="r", journal=journal).run(token="hunter2")
    client = make_client(app(journal, pipelines={"etl": pipeline}))

    answer = await client.post("/api/runs/r/rerun")

    assert answer.status_code == 409
    assert "input 'token' of run 'r' is secret, so it was not stored" in answer.json()["detail"]


async def test_no_run_is_made_if_nothing_would_run(
    make_client: Any, journal: Any, work: Work
) -> None:
    await work.pipeline().orchestrator.with_options(run_id="r", journal=journal).run()
    work.calls.clear()
    client = make_client(app(journal, pipelines={"etl": work.pipeline()}))

    answer = await client.post("/api/runs/r/rerun")

    assert (answer.status_code, answer.json()) == (200, {"done": "nothing"})
    assert work.calls == []
    assert [run.run_id for run in await journal.runs()] == ["r"]


async def test_a_request_of_another_site_or_without_the_token_is_refused(
    make_client: Any, journal: Any, work: Work
) -> None:
    await work.pipeline().orchestrator.with_options(run_id="r", journal=journal).run()
    pages = app(journal, pipelines={"etl": work.pipeline()}, token="a-token-of-some-length")
    client = make_client(pages)
    shown = {"authorization": "Bearer a-token-of-some-length"}

    without = await client.post("/api/runs/r/rerun")
    elsewhere = await client.post(
        "/api/runs/r/rerun", headers={**shown, "origin": "http://elsewhere.example"}
    )
    ours = await client.post("/api/runs/r/rerun", headers=shown, json={"all": True})

    assert (without.status_code, elsewhere.status_code, ours.status_code) == (401, 403, 201)
    await ended(journal, ours.json()["run_id"])
    assert len(await journal.runs()) == 2


async def test_an_unknown_pipeline_is_refused(make_client: Any, journal: Any) -> None:
    await passing().with_options(run_id="r", journal=journal).run()

    unknown = await make_client(app(journal)).post("/api/runs/r/rerun")
    missing = await make_client(app(journal)).post("/api/runs/x/rerun")

    assert unknown.status_code == 409
    assert "this server has no pipeline 'etl'" in unknown.json()["detail"]
    assert "or rerun it with its steps" in unknown.json()["detail"]
    assert missing.status_code == 404


async def test_the_page_of_a_rerun_links_to_the_run_that_it_comes_from(
    make_client: Any, journal: Any, work: Work
) -> None:
    await work.pipeline().orchestrator.with_options(run_id="a/b", journal=journal).run()
    await work.pipeline().orchestrator.with_options(journal=journal).rerun("a/b", "f", from_="load")
    client = make_client(app(journal))

    page = (await client.get("/runs/f")).text
    await journal.forget("a/b")
    alone = (await client.get("/runs/f")).text

    assert '<dt>Rerun of</dt><dd><a class="mono" href="/runs/a%2Fb">a/b</a></dd>' in page
    assert 'those of run <a class="mono" href="/runs/a%2Fb">a/b</a>.' in page
    assert page.count(">reused</span>") == 2
    assert '<dt>Rerun of</dt><dd><span class="mono">a/b</span></dd>' in alone


async def test_the_pages_of_a_run_and_of_one_that_its_step_starts_link_to_each_other(
    make_client: Any, journal: Any
) -> None:
    async def nested() -> None:
        await passing("inner").with_options(run_id="child/1", journal=journal).run()

    outer = Orchestrator([WorkflowStep("a step", nested)], name="outer")
    await outer.with_options(run_id="r", journal=journal).run()
    client = make_client(app(journal))

    parent, child = (await client.get("/runs/r")).text, (await client.get("/runs/child%2F1")).text

    assert (
        'Started run <a class="mono" href="/runs/child%2F1">child/1</a> '
        '<span class="dim">PASSED</span>'
    ) in parent
    assert (
        '<dt>Started by</dt><dd><a class="mono" href="/runs/r#step=a%20step">r</a>, a step</dd>'
    ) in child


async def test_a_parent_without_a_journal_is_named_without_a_link(
    make_client: Any, journal: Any
) -> None:
    async def nested() -> None:
        await passing("inner").with_options(run_id="child", journal=journal).run()

    await run_pipeline([WorkflowStep("outer", nested)], run_id="alone")

    page = (await make_client(app(journal)).get("/runs/child")).text

    assert '<dt>Started by</dt><dd><span class="mono">alone</span>, outer</dd>' in page
