"""The page of a pipeline: its runs as bars, its steps by runs, and what they take."""

from __future__ import annotations

import asyncio
import json
import re
from html import unescape
from typing import Any

import pytest
from web.runs import failing, passing

from asyncflow import Orchestrator, RunStatus, WorkflowStep
from asyncflow.journal import RunRecord
from asyncflow.journal._read.queries import statistics_document
from asyncflow.web import _pipeline_page, app
from asyncflow.web._pipeline_page import bars

HOSTILE = "</td><script>alert('x')</script>"


async def fine() -> int:
    return 1


def named(name: str, *steps: str) -> Orchestrator:
    return Orchestrator([WorkflowStep(step, fine) for step in steps or ("one",)], name=name)


async def page_of(client: Any, path: str) -> str:
    answer = await client.get(path)
    assert answer.status_code == 200, answer.text
    page: str = answer.text
    return page


async def test_the_page_shows_each_step_in_each_run(make_client: Any, any_journal: Any) -> None:
    for run_id, pipeline in (
        ("one", failing("etl")),
        ("two", passing("etl")),
        ("three", passing("etl")),
    ):
        await pipeline.with_options(run_id=run_id, journal=any_journal).run()
        await asyncio.sleep(0.001)  # in virtual time, all would start at the same moment

    page = await page_of(make_client(app(any_journal)), "/pipelines/etl")

    matrix = page[page.index('<table class="matrix">') :].partition("</table>")[0]
    drawing, head, *rows = re.findall(r"(?s)<tr>(.*?)</tr>", matrix)
    assert 'colspan="3"' in drawing  # as wide as the columns of the runs
    assert re.findall(r'title="(\w+, \w+)"', head) == [
        "one, FAILED",
        "two, PASSED",
        "three, PASSED",
    ]
    cells = {
        re.search(r'<th scope="row"><a [^>]*>(.*?)</a></th>', row)[1]: re.findall(  # type: ignore[index]
            r'<td>(?:<a class="cell (\w+)" href="([^"]*)"[^>]*>(.)</a>)?</td>', row
        )
        for row in rows
    }
    assert list(cells) == ["extract", "load", "refuse"]
    assert cells["extract"][0] == ("success", "/runs/one#step=extract", "✓")
    assert [kind for kind, _, _ in cells["load"]] == ["", "success", "success"]
    assert cells["refuse"] == [("failed", "/runs/one#step=refuse", "✗"), ("", "", ""), ("", "", "")]
    assert "67 %" in page
    assert re.search(r'title="refuse in one: failed, [\d.]+ ms"', matrix)


async def test_each_run_has_a_bar_that_links_to_its_page(
    make_client: Any, any_journal: Any
) -> None:
    await failing("etl").with_options(run_id="one", journal=any_journal).run()
    await passing("etl").with_options(run_id="two", journal=any_journal).run()

    page = await page_of(make_client(app(any_journal)), "/pipelines/etl")

    drawing = page[page.index('class="plot"') :].partition("</svg>")[0]
    assert re.findall(r'<a href="/runs/(\w+)"', drawing) == ["one", "two"]
    assert re.findall(r'class="bar (\w+)"', drawing) == ["failed", "success"]
    assert 'class="median"' in drawing


async def test_the_symbol_of_a_run_shows_its_steps_beside_the_grid(
    make_client: Any, any_journal: Any
) -> None:
    labelled = failing("etl").with_options(run_id="one & two", label="order 1<2")
    await labelled.with_options(journal=any_journal).run()
    client = make_client(app(any_journal))
    page = await page_of(client, "/pipelines/etl")
    (link,) = re.findall(r'href="(\?run=[^"]*)#run"', page)

    chosen = await page_of(client, "/pipelines/etl" + unescape(link))

    details = chosen[chosen.index('<section id="run"') :].partition("</section>")[0]
    assert 'href="/runs/one%20%26%20two">Open the run' in details
    assert "order 1&lt;2, started" in details
    rows = re.findall(r'<th scope="row"><a href="([^"]*)">(\w+)</a>', details)
    assert rows == [(f"/runs/one%20%26%20two#step={each}", each) for each in ("extract", "refuse")]
    assert re.search(r"failed</td><td class=\"number\">[\d.]+ ms</td>.*<td>\w+Error: ", details)
    assert '<th scope="col" class="chosen">' in chosen
    assert 'id="run"' not in await page_of(client, "/pipelines/etl?run=unknown")


def record(number: int, took_ms: float, status: Any = RunStatus.PASSED, **more: Any) -> RunRecord:
    return RunRecord(f"r{number}", "p", status, 1.0, 1.0, None, latest_ms=took_ms, **more)


def test_bars_are_in_proportion_and_within_the_drawing() -> None:
    runs = [record(4, 3_000.0), record(3, 0.0), record(2, 1_500.0, RunStatus.FAILED)]
    drawn = bars([*runs, record(1, 9e9, damaged=True)], 0.0)

    assert [bar.record.run_id for bar in drawn.bars] == ["r1", "r2", "r3", "r4"]
    assert [value for value, _ in drawn.marks] == [0.0, 2_000.0, 4_000.0]
    heights = [bar.height for bar in drawn.bars]
    assert heights == [2.0, 42.0, 2.0, 84.0]
    assert all(bar.y + bar.height == 130 for bar in drawn.bars)
    assert drawn.median == 88.0
    lefts = [bar.x for bar in drawn.bars]
    assert lefts == sorted(lefts)
    assert lefts[-1] + drawn.bars[-1].width < 100


@pytest.mark.parametrize("name", ["a/b", "ä ö", "a?b#c", "%2F", "..x", "", HOSTILE])
async def test_a_pipeline_with_any_name_has_a_page(
    make_client: Any, journal: Any, name: str
) -> None:
    await named(name, "a+b c#&").with_options(run_id="r 1", journal=journal).run()
    client = make_client(app(journal))

    (link,) = set(re.findall(r'href="(/pipelines/[^"]*)"', await page_of(client, "/")))
    page = await page_of(client, unescape(link))
    api = await client.get("/api" + unescape(link))

    assert api.json()["pipeline"] == name
    assert "<script>alert" not in page
    assert "/runs/r%201#step=a%2Bb%20c%23%26" in page
    assert ("Runs without a pipeline name" in page) == (not name)


async def test_the_api_returns_the_statistics(make_client: Any, any_journal: Any) -> None:
    await passing("etl").with_options(run_id="one", journal=any_journal).run()
    await passing("etl").with_options(run_id="two", journal=any_journal).run()
    client = make_client(app(any_journal))

    found = (await client.get("/api/pipelines/etl")).json()
    one = (await client.get("/api/pipelines/etl?runs=1")).json()

    expected = statistics_document(await any_journal.statistics("etl"))
    assert found == json.loads(json.dumps(expected))
    assert [run["run_id"] for run in one["runs"]] == ["two"]
    assert [step["outcomes"] for step in one["steps"]] == [["SUCCESS"], ["SUCCESS"]]


@pytest.mark.parametrize("runs", ["0", "1001", "x", "²", "-1"])
async def test_an_invalid_number_of_runs_is_reported(
    make_client: Any, journal: Any, runs: str
) -> None:
    answer = await make_client(app(journal)).get(f"/api/pipelines/etl?runs={runs}")

    assert answer.status_code == 400
    assert "runs must be a number from 1 to 1,000" in answer.json()["detail"]


async def test_an_unknown_pipeline_is_reported_with_the_nearest(
    make_client: Any, journal: Any
) -> None:
    for name in ("orders", "customers", ""):
        await named(name).with_options(journal=journal).run()
    client = make_client(app(journal))

    page = await client.get("/pipelines/order")
    api = await client.get("/api/pipelines/nothing%20like%20it")
    no_text = await client.get("/pipelines/%ff")

    assert (page.status_code, api.status_code, no_text.status_code) == (404, 404, 404)
    assert "did you mean 'orders'?" in unescape(page.text)
    assert api.json()["error"] == "There is no such pipeline"


async def test_a_step_has_a_history_with_its_errors_in_groups(
    make_client: Any, any_journal: Any
) -> None:
    for run_id in ("one", "two"):
        await failing("etl").with_options(run_id=run_id, journal=any_journal).run()
        await asyncio.sleep(0.001)
    await passing("etl").with_options(run_id="three", journal=any_journal).run()
    client = make_client(app(any_journal))

    page = await page_of(client, "/pipelines/etl?step=refuse")

    history = page[page.index('id="history"') :].partition("</section>")[0]
    text = " ".join(re.sub("<[^>]*>", " ", history).split())
    assert "ValueError: no such table: orders in 2 of 2 runs, first seen" in text
    assert re.findall(r'<th scope="row"><a href="([^"]*)"', history) == [
        "/runs/two#step=refuse",
        "/runs/one#step=refuse",
    ]
    assert text.count("failed") == 2
    assert 'id="history"' not in await page_of(client, "/pipelines/etl?step=unknown")
    assert 'href="?step=refuse#history"' in page


async def test_a_pipeline_of_many_steps_shows_fewer_runs_and_steps(
    make_client: Any, journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pipeline_page, "_MOST_CELLS", 4)
    monkeypatch.setattr(_pipeline_page, "_MOST_STEPS", 3)
    for _ in range(7):
        await named("etl", *"abcde").with_options(journal=journal).run()

    page = await page_of(make_client(app(journal)), "/pipelines/etl")

    matrix = page[page.index('<table class="matrix">') :].partition("</table>")[0]
    assert matrix.count('<th scope="row">') == 3
    assert matrix.count("<td>") == 3 * 5
    assert "The latest 5 runs, because the pipeline has many steps." in page
    assert "2 more steps have no row." in page
    assert page.count('class="bar ') == 5


async def test_a_step_without_a_row_has_a_history(
    make_client: Any, journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pipeline_page, "_MOST_STEPS", 1)
    await failing("etl").with_options(journal=journal).run()

    page = await page_of(make_client(app(journal)), "/pipelines/etl?step=refuse")

    assert 'id="history"' in page
