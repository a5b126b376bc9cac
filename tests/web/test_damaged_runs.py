"""The pages of a journal in which a run is damaged."""

from __future__ import annotations

import sqlite3
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import pytest
from web.runs import failing, passing

from asyncflow import RunUnreadableError
from asyncflow.journal import SQLiteJournal
from asyncflow.web import app
from asyncflow.web._feed import RunFeeds


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(statement)


async def test_a_damaged_run_has_a_page_that_says_so(make_client: Any, tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    async with SQLiteJournal(path) as journal:
        await passing().with_options(run_id="good", journal=journal).run()
        await failing().with_options(run_id="bad", journal=journal).run()
        client = make_client(app(journal, pipelines={"reports": failing()}))
        change(
            path,
            "UPDATE events SET data = x'39' WHERE data IS NOT NULL AND run_id = 'bad'",
        )

        pages = [await client.get(url) for url in ("/runs/bad",)]
        pages.append(await client.post("/resume/bad", headers={"origin": "http://127.0.0.1:8765"}))
        others = [await client.get(url) for url in ("/", "/runs/good", "/api/runs")]

    for page in pages:
        assert page.status_code == 409
        assert "event 3 of run" in page.text
        assert "the checksum of its data is wrong" in page.text
        assert "Other runs are not affected." in page.text
    assert "<h1>The run can&#39;t be read</h1>" in pages[0].text
    assert [page.status_code for page in others] == [200] * 3


async def test_a_run_whose_row_is_damaged_is_listed(make_client: Any, tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    async with SQLiteJournal(path) as journal:
        await passing().with_options(run_id="good", journal=journal).run()
        await passing().with_options(run_id="bad", journal=journal).run()
        change(path, "UPDATE runs SET started_at = 1e299, pipeline = '\"' WHERE run_id = 'bad'")
        client = make_client(app(journal))

        page, api = await client.get("/"), await client.get("/api/runs")

    assert page.status_code == api.status_code == 200
    assert "DAMAGED" in page.text
    assert page.text.count('<a href="/runs/') == page.text.count('<th scope="row">')
    runs = {run["run_id"]: run for run in api.json()["runs"]}
    assert (runs["bad"]["damaged"], runs["bad"]["started_at"], runs["bad"]["pipeline"]) == (
        *(True, 0.0),
        "",
    )
    assert (runs["bad"]["duration_s"], runs["good"]["damaged"]) == (None, False)


async def test_the_parts_say_that_a_run_is_damaged_until_it_is_restored(
    make_client: Any, tmp_path: Path
) -> None:
    path = tmp_path / "runs.db"
    async with SQLiteJournal(path) as journal:
        await passing().with_options(run_id="r", journal=journal).run()
        change(path, "UPDATE events SET attempt = 5 WHERE position = 2")
        client = make_client(app(journal), headers={"accept": "application/json"})
        feeds = RunFeeds(journal)
        unused: Any = None

        async with aclosing(feeds.changes("r", unused)) as changes:
            await anext(changes)
            damaged = await client.get("/parts/r")
            change(path, "UPDATE events SET attempt = 1 WHERE position = 2")
            await anext(changes)  # a viewer is told
            restored = await client.get("/parts/r")

    assert damaged.status_code == 409
    assert "event 2 of run 'r' can't be read" in damaged.json()["detail"]
    assert (restored.status_code, restored.json()["end"]) == (200, "ended")
    assert "steps" in restored.json()["sections"]


@pytest.mark.parametrize("is_damaged", [True, False])
async def test_events_that_cannot_be_applied_are_read_again(is_damaged: bool) -> None:
    """The journal's words take the place of what applying or rendering them raised."""
    reads: list[int] = []

    class Source:
        async def events(self, run_id: str, after: int = 0) -> list[Any]:
            reads.append(after)
            if is_damaged and len(reads) > 1:
                raise RunUnreadableError("runs.db", "r", "it is damaged")
            return await journal.events(run_id, after)

        async def record(self, run_id: str) -> Any:
            return await journal.record(run_id)

        async def notes(self, run_id: str, **_: Any) -> list[Any]:
            return []

    async def prepare(*_: Any) -> Any:
        def render(*_: Any) -> dict[str, str]:
            raise KeyError("x")

        return render

    async with SQLiteJournal(":memory:") as journal:
        await passing().with_options(run_id="r", journal=journal).run()
        source: Any = Source()
        with pytest.raises(RunUnreadableError if is_damaged else KeyError):
            await RunFeeds(source).parts("r", prepare, 0)

    assert reads == [0, 0]
