"""The list of runs."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import replace
from html import unescape
from typing import Any

import pytest
from web.runs import Gate, failing, passing, slow

from asyncflow import JournalError, Orchestrator, RunStatus, WorkflowStep
from asyncflow._core.analysis.slowness import Slower
from asyncflow._views.preview import moment_text
from asyncflow.journal import QueueStats, SQLiteJournal
from asyncflow.journal._read.queries import RunRecord, RunSummary
from asyncflow.web import app

HOSTILE = "<script>alert('x')</script>"


def ids_in(html: str) -> list[str]:
    found = re.findall(r'<th scope="row"><a [^>]*>(.*?)</a>', html)
    return [unescape(each.replace("<wbr>", "")) for each in found]


def orphan(run_id: str = "lost") -> RunRecord:
    now = time.time()
    return RunRecord(
        run_id, "etl", RunStatus.ORPHANED, now - 60, now - 50, None, latest_ms=10_000.0
    )


async def test_a_long_name_loses_its_middle_and_has_the_whole_one_as_title(
    make_client: Any,
) -> None:
    names = [f"nightly_import_of_all_customers_{country}" for country in ("de", "fr")]
    runs = [replace(orphan(f"{name}-2024-06-01T12:00"), pipeline=name) for name in names]
    async with RecordJournal(*runs) as journal:
        page = (await make_client(app(journal)).get("/")).text

    shown = page.replace("<wbr>", "")
    assert ">nightly_import…_customers_de</a>" in shown
    assert ">nightly_import…_customers_fr</a>" in shown
    for run in runs:
        assert f'title="{run.run_id}"' in page
        assert f'title="{run.pipeline}"' in page


class RecordJournal(SQLiteJournal):
    """A journal that lists records."""

    def __init__(self, *records: RunRecord) -> None:
        super().__init__(":memory:")
        self.records = list(records)
        self.filters: dict[str, Any] = {}

    async def runs(self, **filters: Any) -> list[RunRecord]:
        self.filters = filters
        return self.records

    async def counts(self, **_: Any) -> dict[RunStatus, int]:
        return dict.fromkeys(RunStatus, 0)

    async def queue(self, **_: Any) -> QueueStats:
        return QueueStats(0, 0, None, 0)

    async def summaries(self, records: Any) -> dict[str, RunSummary]:
        return {}

    async def _slower(self, records: Any) -> dict[str, Slower]:
        return {}


@pytest.fixture
async def journal_with_runs(any_journal: Any) -> Any:
    otter = {"tenant": "acme", "tier": 1}
    await passing().with_options(run_id="calm-otter", journal=any_journal, attributes=otter).run()
    await asyncio.sleep(0.001)  # in virtual time, both would start at the same moment
    await failing().with_options(run_id="bold-heron", journal=any_journal, label="order <1>").run()
    gate = Gate()
    interrupted = asyncio.create_task(
        slow(gate).with_options(run_id="shy-lynx", journal=any_journal).run()
    )
    await gate.has_started.wait()
    interrupted.cancel()
    await asyncio.gather(interrupted, return_exceptions=True)
    return any_journal


async def test_runs_are_listed_newest_first(make_client: Any, journal_with_runs: Any) -> None:
    page = (await make_client(app(journal_with_runs)).get("/")).text

    assert ids_in(page) == ["shy-lynx", "bold-heron", "calm-otter"]
    for word in ("PASSED", "FAILED", "INTERRUPTED"):
        assert f"</span> {word}</span>" in page
    assert "order &lt;1&gt;" in page
    assert "Runs in" not in page  # none has a process


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("status=failed", ["bold-heron"]),
        ("status=interrupted", ["shy-lynx"]),
        ("status=orphaned", []),
        ("status=running", []),
        ("pipeline=etl", ["calm-otter"]),
        ("pipeline=nothing", []),
        ("text=HERON", ["bold-heron"]),
        ("text=Order", ["bold-heron"]),
        ("text=etl", ["calm-otter"]),
        ("attribute=tier%3D1", ["calm-otter"]),
        ("attribute=tenant%3Dacme&attribute=tier%3D1&attribute=", ["calm-otter"]),
        ("attribute=tenant%3Dacme&attribute=tier%3D2", []),
        ("attribute=tenant%3Dacme&status=failed", []),
        ("since=1h", ["shy-lynx", "bold-heron", "calm-otter"]),
        ("since=2999-01-01", []),
        ("since=2020-01-01T00:00:00Z&status=passed", ["calm-otter"]),
        ("since=0&limit=1", ["shy-lynx"]),
        ("status=&text=&pipeline=&since=", ["shy-lynx", "bold-heron", "calm-otter"]),
    ],
)
async def test_a_query_filters_the_runs(
    make_client: Any, journal_with_runs: Any, query: str, ids: list[str]
) -> None:
    page = (await make_client(app(journal_with_runs)).get(f"/?{query}")).text

    assert ids_in(page) == ids


async def test_the_attributes_of_a_run_are_links_to_those_with_the_same(
    make_client: Any, journal_with_runs: Any
) -> None:
    client = make_client(app(journal_with_runs))
    page = (await client.get("/?limit=1&attribute=tenant%3Dacme")).text

    assert '<a class="quiet" href="?attribute=tier%3D1&amp;limit=1">tier=1</a>' in page
    assert 'name="attribute" type="search" value="tenant=acme"' in page
    refused = await client.get("/?attribute=tenant")
    assert refused.status_code == 400
    assert "give NAME=VALUE, such as tenant=acme" in refused.text


async def test_pages_are_linked_from_newer_to_older(
    make_client: Any, journal_with_runs: Any
) -> None:
    client, found, url = make_client(app(journal_with_runs)), [], "/?limit=1&text=r"
    while url:
        page = (await client.get(url)).text
        found += ids_in(page)
        older = re.search(r'href="([^"]*)">Older', page)
        url = "/" + unescape(older[1]) if older else ""

    assert found == ["bold-heron", "calm-otter"]
    assert 'href="?text=r&amp;limit=1">← Newest' in page


@pytest.mark.parametrize(
    "query",
    [
        *("status=lost", "since=soon", "since=nan", "since=-1", "since=99999-01-01", "limit=0"),
        *("limit=1001", "limit=x", "limit=²", "before=x", "before=1", "before=nan,x"),
        *("text=%00", "since=1e999", "before=1e999,x"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/runs"])
async def test_an_invalid_query_is_reported(
    make_client: Any, journal: Any, path: str, query: str
) -> None:
    answer = await make_client(app(journal)).get(f"{path}?{query}")

    assert answer.status_code == 400
    assert re.search(rf"\b{query.partition('=')[0]} must |invalid time ", answer.text)


async def test_an_orphaned_run_has_its_own_status(make_client: Any) -> None:
    records = RecordJournal(orphan())
    client = make_client(app(records))

    page = (await client.get("/?status=orphaned")).text

    assert "◇</span> ORPHANED" in page
    assert "its process is gone" in page
    assert "10.0 s" in page
    assert records.filters["status"] == "ORPHANED"
    await client.get("/?status=running")
    assert records.filters["status"] == "RUNNING"


def chips_in(page: str) -> dict[str, tuple[str, str, bool]]:
    """Return the number, the URL and whether it is chosen, of each chip by its word."""
    nav = page[page.index('<nav class="chips"') :].partition("</nav>")[0]
    return {
        re.sub("<[^>]*>", " ", inside).split()[-1 if "figure" not in inside else -2]: (
            "".join(re.findall(r'figure">([\d,]+)', inside)),
            unescape(url),
            "aria-current" in rest,
        )
        for url, rest, inside in re.findall(
            r'<a class="chip[^"]*" href="([^"]*)"([^>]*)>(.*?)</a>', nav
        )
    }


async def test_chips_count_the_runs_of_each_status_and_filter_by_it(
    make_client: Any, journal_with_runs: Any
) -> None:
    client = make_client(app(journal_with_runs))

    chips = chips_in((await client.get("/?since=1h")).text)
    chosen = chips_in((await client.get("/?status=FAILED&pipeline=reports")).text)

    assert {word: number for word, (number, _, _) in chips.items()} == {
        "All": "3",
        "RUNNING": "0",
        "ORPHANED": "0",
        "PASSED": "1",
        "FAILED": "1",
        "INTERRUPTED": "1",
        "WAITING": "0",
    }
    assert [word for word, (_, _, is_chosen) in chips.items() if is_chosen] == ["All"]
    assert chips["FAILED"][1] == "?status=FAILED&since=1h"
    assert ids_in((await client.get("/" + chips["FAILED"][1])).text) == ["bold-heron"]
    assert [word for word, (_, _, is_chosen) in chosen.items() if is_chosen] == ["FAILED"]
    assert (chosen["All"][0], chosen["PASSED"][0]) == ("1", "0")
    assert 'name="status" value="failed"' in (await client.get("/?status=failed")).text


async def test_each_run_says_what_runs_or_went_wrong_and_its_inputs(
    make_client: Any, any_journal: Any
) -> None:
    async def crawl(day: str, key: str, a: int, b: int, c: int, e: str) -> None:
        raise ValueError(f"no page of\n{HOSTILE}{'.' * 300}")

    steps = [WorkflowStep("crawl", crawl)]
    inputs = {"day": "2024-06-01", "key": "hunter2", "a": 1, "b": 2, "c": 3, "e": "x"}
    crawling = Orchestrator(steps, name="crawl", secret_inputs=["key"])
    await crawling.with_options(run_id="r", journal=any_journal).run(**inputs)
    gate = Gate()
    waiting = asyncio.create_task(slow(gate).with_options(run_id="w", journal=any_journal).run())
    await gate.has_started.wait()
    while len(await any_journal.events("w")) < 4:
        pass  # the success of the other step is stored a moment later

    page = (await make_client(app(any_journal)).get("/")).text

    gate.is_open.set()
    await waiting
    brief = [unescape(each) for each in re.findall('<div class="brief">(.*?)</div>', page)]
    told = [re.sub("<[^>]*>", "", each) for each in brief]
    assert told[0] == "1 of 2, gate"
    assert re.search(r'Runs in</th>(?s:.*)where">process \d+ on ', page)
    assert told[1].startswith("crawl: ValueError: no page of")
    assert "…" in told[1]
    assert told[1].endswith("day='2024-06-01', key=redacted, a=1, b=2, …")
    assert len(told[1]) < 300
    assert "hunter2" not in page
    assert HOSTILE not in page


async def test_times_are_relative_with_the_exact_time_and_its_zone_beside(
    make_client: Any,
) -> None:
    record = RunRecord("r", "", RunStatus.PASSED, time.time() - 200, 0.0, None)

    page = (await make_client(app(RecordJournal(record))).get("/")).text

    exact = moment_text(record.started_at)
    assert re.search(rf'<time [^>]*title="{re.escape(exact)}">3 min ago</time>', page)


async def test_a_hostile_name_is_escaped(make_client: Any, journal: Any) -> None:
    await passing(HOSTILE).with_options(run_id=HOSTILE, journal=journal).run()
    client = make_client(app(journal, pipelines={HOSTILE: passing(HOSTILE)}))

    page = await client.get("/", params={"text": "<script>", "since": "2020-01-01"})
    wrong = await client.get("/", params={"status": HOSTILE})
    unknown = await client.get("/runs/" + HOSTILE + "x")

    for answer in (page, wrong, unknown):
        assert "<script>alert" not in answer.text
    assert ids_in(page.text) == [HOSTILE]
    (link,) = set(re.findall(r'href="(/runs/[^"]*)"', page.text))
    assert (await client.get(unescape(link))).status_code == 200


async def test_an_empty_journal_says_how_to_fill_it(make_client: Any, journal: Any) -> None:
    client = make_client(app(journal))

    assert "No runs yet" in (await client.get("/")).text
    assert "No run matches." in (await client.get("/?text=x")).text


async def test_an_unreadable_journal_is_reported(make_client: Any) -> None:
    class Broken(RecordJournal):
        async def runs(self, *args: Any, **filters: Any) -> list[RunRecord]:
            raise JournalError("runs.db", "the disk is gone")

    client = make_client(app(Broken()))

    page, api = await client.get("/"), await client.get("/api/runs")

    assert page.status_code == api.status_code == 503
    assert "journal runs.db: the disk is gone" in page.text
    assert api.json()["error"] == "The journal can't be read"


async def test_an_unknown_path_or_method_is_reported(make_client: Any, journal: Any) -> None:
    client = make_client(app(journal))

    nowhere, wrong = await client.get("/nowhere"), await client.get("/cancel/x")
    program = await client.put("/api/runs")

    assert (nowhere.status_code, wrong.status_code, program.status_code) == (404, 405, 405)
    assert "There is no such page" in nowhere.text
    assert wrong.headers["allow"] == "POST"
    assert program.json()["detail"] == "This path takes GET, HEAD only."
