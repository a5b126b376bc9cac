"""What pages say of runs that wait to start."""

from __future__ import annotations

from typing import Any

import pytest
from web.runs import passing
from web.test_runs_page import ids_in

from asyncflow.journal import SQLiteJournal
from asyncflow.web import app


@pytest.fixture
async def queue(journal: SQLiteJournal) -> SQLiteJournal:
    etl = passing().with_options(journal=journal)
    await etl.enqueue({}, run_id="first", key="customer-<17>")
    await etl.enqueue({}, run_id="second", key="customer-<17>")
    await etl.enqueue({}, run_id="later", delay_ms=3_600_000)
    await etl.with_options(run_id="passed").run()
    return journal


async def test_the_list_says_for_what_runs_wait_and_how_many(make_client: Any, queue: Any) -> None:
    page = (await make_client(app(queue)).get("/")).text

    assert '<p class="dim" id="queued">3 runs wait to start: 2 due' in page
    assert '<span class="told pending">waits for a place</span>' in page
    assert '<span class="told pending">waits for key customer-&lt;17&gt;</span>' in page
    assert '<span class="told pending">waits until <time datetime="' in page
    assert '<div class="brief dim">key customer-&lt;17&gt;</div>' in page
    assert page.count('<span class="dim">enqueued</span>') == 3


@pytest.mark.parametrize(
    ("kind", "run_id"), [("place", "first"), ("key", "second"), ("time", "later")]
)
async def test_the_list_is_filtered_by_it(
    make_client: Any, queue: Any, kind: str, run_id: str
) -> None:
    client = make_client(app(queue))

    page = (await client.get(f"/?waits_for={kind}")).text

    assert ids_in(page) == [run_id]
    assert f'<option value="{kind}" selected>' in page
    found = (await client.get(f"/api/runs?waits_for={kind}")).json()["runs"]
    assert [each["run_id"] for each in found] == [run_id]


async def test_a_kind_that_there_is_not_is_a_bad_request(make_client: Any, queue: Any) -> None:
    answer = await make_client(app(queue)).get("/?waits_for=x")

    assert answer.status_code == 400
    assert "waits_for must be one of" in answer.text


async def test_the_page_of_a_run_says_it_too(make_client: Any, queue: Any) -> None:
    client = make_client(app(queue))

    page = (await client.get("/runs/second")).text

    assert "<dt>Waits</dt><dd>for key customer-&lt;17&gt;</dd>" in page
    assert "<dt>Key</dt><dd>customer-&lt;17&gt;</dd>" in page
    assert "<dt>Enqueued</dt>" in page
    assert "<dt>Started</dt>" not in page
    assert ">800 ms</text>" in page  # an empty axis, and not one of a microsecond
    assert "most " not in page
    assert "until <time" in (await client.get("/runs/later")).text


async def test_the_start_of_a_run_that_was_enqueued_is_no_resumption(
    make_client: Any, queue: Any
) -> None:
    await passing().with_options(journal=queue, run_id="first").run()

    page = (await make_client(app(queue)).get("/runs/first")).text

    assert "<dt>Enqueued</dt>" in page
    assert "<dt>Started</dt>" in page
    assert "<dt>Resumed</dt>" not in page
    assert "pause</dt>" not in page


async def test_a_page_starts_a_run_that_waits_to_start_and_resumes_none(
    make_client: Any, queue: Any
) -> None:
    client = make_client(app(queue, pipelines={"etl": passing()}))

    answer = await client.post("/resume/first", headers={"Accept": "application/json"})

    assert answer.json() == {"done": "started"}


async def test_a_run_that_was_replaced_names_the_other(make_client: Any, queue: Any) -> None:
    etl = passing().with_options(journal=queue)
    await etl.enqueue({}, run_id="new", key="customer-<17>", on_conflict="replace")
    client = make_client(app(queue))

    page = (await client.get("/runs/second")).text

    assert "the run was cancelled: run &#39;new&#39; has replaced it" in page
    assert "pending</span>" not in page.partition('class="counts"')[2].partition("</dd>")[0]
    listed = (await client.get("/?status=INTERRUPTED")).text
    assert listed.count("&#39;new&#39; has replaced it") == 2
    assert listed.count('<span class="dim">enqueued</span>') == 2  # they have never started
