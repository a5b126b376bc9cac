"""What steps say, for scripts and programs: their notes, their attachments, and whole details."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from page.said import HOSTILE_SVG, attached, logged, picture, progressed
from web.noted import NotedJournal
from web.runs import failing, parts_of, passing

from asyncflow import Orchestrator, WorkflowStep, current_step
from asyncflow.events import StepStreamed
from asyncflow.html_report import to_html
from asyncflow.web import app


@pytest.fixture
def noted() -> Iterator[NotedJournal]:
    journal = NotedJournal(":memory:")
    yield journal
    journal.close()


async def test_the_notes_of_a_run_are_returned_from_a_position(
    make_client: Any, noted: NotedJournal
) -> None:
    await passing().with_options(run_id="a/notes", journal=noted).run()
    noted.said["a/notes"] = [
        logged("extract", "one"),
        progressed("extract", 3, 9),
        attached("extract", "x.png", "image/png", b"secret bytes"),
    ]
    client = make_client(app(noted))

    answer = await client.get("/api/runs/a%2Fnotes/notes?after=0")
    rest = (await client.get("/api/runs/a%2Fnotes/notes?after=2")).json()
    none = (await client.get("/api/runs/a%2Fnotes/notes?after=3")).json()

    line, progress, image = answer.json()["notes"]
    assert line == {
        "position": 1,
        "event": "StepLogged",
        "step": "extract",
        "attempt": 1,
        "at_ms": 1.0,
        "level": 20,
        "logger": "app.db",
        "message": "one",
        "item": None,
        "traceback": "",
    }
    assert (progress["event"], progress["done"], progress["total"]) == ("StepProgressed", 3, 9)
    assert image["url"] == "/api/runs/a%2Fnotes/attachments/3"
    assert "data" not in image
    assert answer.json()["last"] == 3
    assert [each["position"] for each in rest["notes"]] == [3]
    assert none == {"notes": [], "last": 3}
    assert "secret bytes" not in answer.text
    assert (await client.get("/api/runs/a%2Fnotes")).json()["run_id"] == "a/notes"


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("kind=log&level=warning", ["two", "three"]),
        ("level=40", ["three"]),
        ("step=load", ["four"]),
        ("attempt=2", ["two"]),
        ("item=0", ["three"]),
        ("text=T", ["two", "three"]),
        ("text=", ["one", "two", "three", "four"]),
        ("limit=1", ["one"]),
        ("limit=2&newest=1", ["three", "four"]),
        ("newest=0&limit=1", ["one"]),
        ("kind=progress", []),
    ],
)
async def test_notes_are_selected_by_the_query(
    make_client: Any, noted: NotedJournal, query: str, found: list[str]
) -> None:
    await passing().with_options(run_id="r", journal=noted).run()
    noted.said["r"] = [
        logged("extract", "one"),
        logged("extract", "two", level=30, attempt=2),
        logged("extract", "three", level=40, item=0),
        logged("load", "four", level=10),
    ]

    answer = await make_client(app(noted)).get(f"/api/runs/r/notes?{query}")

    assert [each["message"] for each in answer.json()["notes"]] == found


async def test_a_response_has_at_most_5000_notes(make_client: Any, noted: NotedJournal) -> None:
    await passing().with_options(run_id="r", journal=noted).run()
    noted.said["r"] = [logged("extract", "x")] * 6_000
    client = make_client(app(noted))

    for query, count in (("", 1_000), ("?limit=99999", 5_000), ("?limit=0", 1_000)):
        answer = await client.get(f"/api/runs/r/notes{query}")
        assert len(answer.json()["notes"]) == count


async def test_what_a_step_says_is_read_from_its_journal(
    make_client: Any, any_journal: Any
) -> None:
    async def talk() -> None:
        step = current_step()
        step.progress(3, 4, "rows")
        step.attach("x.json", {"a": 1})
        step.progress(4, 4, "rows")

    pipeline = Orchestrator([WorkflowStep("talk", talk)], name="talker")
    await pipeline.with_options(run_id="r", journal=any_journal).run()
    client = make_client(app(any_journal))

    notes = (await client.get("/api/runs/r/notes")).json()["notes"]
    (image,) = [each for each in notes if each["event"] == "StepAttached"]
    (progress,) = [each for each in notes if each["event"] == "StepProgressed"]
    data = (await client.get(image["url"])).json()
    page = (await client.get("/runs/r")).text

    assert (progress["done"], data) == (4, {"a": 1})
    assert "4 of 4 rows" in page
    assert image["url"] in page
    assert (await client.get("/api/runs/r/notes?attempt=0")).status_code == 400
    assert (await client.get("/api/runs/r/attachments/0")).status_code == 404


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("after=x", "after must be a number, not 'x'"),
        ("limit=-1", "limit must be a number"),
        ("item=1.5", "item must be a number"),
        ("attempt=" + "1" * 16, "attempt must be a number"),
        ("level=loud", "level must be a number, or a name such as WARNING, not 'loud'"),
        ("level=1000000", "level must be a number"),
        ("kind=noise", "kind must be one of log, progress, attachment, call, not 'noise'"),
    ],
)
async def test_an_invalid_query_is_refused(
    make_client: Any, noted: NotedJournal, query: str, why: str
) -> None:
    answer = await make_client(app(noted)).get(f"/api/runs/r/notes?{query}")

    assert answer.status_code == 400
    assert why in answer.json()["detail"]


async def test_the_page_and_the_file_of_a_run_have_what_earlier_attempts_streamed(
    make_client: Any, journal: Any
) -> None:
    async def ask() -> None:
        step = current_step()
        step.stream(f"answer {step.attempt}")
        if step.attempt < 3:
            raise OSError

    steps = [WorkflowStep("ask", ask, max_retries=3)]
    await Orchestrator(steps, name="talk").with_options(journal=journal, run_id="r").run()
    client = make_client(app(journal))

    page, details = [(await client.get(path)).text for path in ("/runs/r", "/details/r?step=ask")]
    said = [each.event for each in await journal.notes("r", kinds=[StepStreamed])]
    file = to_html(await journal.report("r"), said)

    for html in (page, details, file):
        shown = re.findall(r"<summary>(attempt \d)</summary>.*?<pre>(.*?)</pre>", html, re.DOTALL)
        assert shown == [("attempt 1", "answer 1"), ("attempt 2", "answer 2")]


@pytest.mark.parametrize(
    "path", ["/api/runs/{}/notes", "/api/runs/{}/attachments/1", "/details/{}?step=extract"]
)
async def test_notes_need_the_token_and_a_known_run(
    make_client: Any, noted: NotedJournal, path: str
) -> None:
    await passing().with_options(run_id="r", journal=noted).run()
    noted.said["r"] = [attached("extract", "x.txt", "text/plain", "x")]
    token = "a token that is hard to guess"
    client = make_client(app(noted, token=token))
    allowed = {"authorization": f"Bearer {token}"}

    answers = [
        await client.get(path.format("r")),
        await client.get(path.format("r"), headers=allowed),
    ]
    unknown = await client.get(path.format("unknown"), headers=allowed)
    foreign = await client.get(
        path.format("r"), headers={**allowed, "sec-fetch-site": "cross-site"}
    )

    assert [each.status_code for each in answers] == [401, 200]
    assert (unknown.status_code, foreign.status_code) == (404, 403)


@pytest.mark.parametrize(
    ("name", "media_type", "sent", "file"),
    [
        ("x.png", "image/png", "image/png", "x.png"),
        ("chart.svg", "image/svg+xml", "image/svg+xml", "chart.svg"),
        ("a b.json", "application/json", "application/json; charset=utf-8", "a_b.json"),
        ("t.csv", "text/csv", "text/csv; charset=utf-8", "t.csv"),
        ('"\r\nx: y.txt', "text/plain", "text/plain; charset=utf-8", "_x_y.txt"),
        ("漢.html", "text/html", "application/octet-stream", "_.html"),
        ("\udcff", "text/markdown", "text/markdown; charset=utf-8", "_"),
        ("", "text/xml", "application/octet-stream", "attachment"),
    ],
)
async def test_an_attachment_is_sent_inert(
    make_client: Any, noted: NotedJournal, name: str, media_type: str, sent: str, file: str
) -> None:
    await passing().with_options(run_id="a/attachments/1", journal=noted).run()
    noted.said["a/attachments/1"] = [attached("extract", name, media_type, HOSTILE_SVG)]
    client = make_client(app(noted))

    answer = await client.get("/api/runs/a%2Fattachments%2F1/attachments/1")

    assert answer.status_code == 200
    assert answer.content == HOSTILE_SVG
    assert answer.headers["content-type"] == sent
    assert answer.headers["x-content-type-options"] == "nosniff"
    disposition = answer.headers["content-disposition"]
    assert disposition.startswith(f'attachment; filename="{file}"; filename*=UTF-8')
    policy = answer.headers["content-security-policy"]
    assert policy == "sandbox; default-src 'none'; frame-ancestors 'none'"
    assert answer.headers["cache-control"] == "no-store"


async def test_only_attachments_have_data(make_client: Any, noted: NotedJournal) -> None:
    await passing().with_options(run_id="r", journal=noted).run()
    noted.said["r"] = [logged("extract", "x"), attached("extract", "x", "image/png", picture())]
    client = make_client(app(noted))

    answers = [await client.get(f"/api/runs/r/attachments/{n}") for n in (0, 1, 2, 3)]

    assert [each.status_code for each in answers] == [404, 404, 200, 404]
    assert (await client.get("/api/runs/r/attachments/x")).status_code == 404


async def test_the_page_of_a_run_and_its_parts_have_its_notes(
    make_client: Any, noted: NotedJournal
) -> None:
    await failing().with_options(run_id="r/1", journal=noted).run()
    noted.said["r/1"] = [
        logged("refuse", "the table is missing"),
        attached("extract", "chart.svg", "image/svg+xml", HOSTILE_SVG),
    ]
    client = make_client(app(noted))

    answer = await client.get("/runs/r%2F1")
    received = await parts_of(client, "r%2F1")

    assert 'data-notes-url="/api/runs/r%2F1/notes"' in answer.text
    assert 'data-details-url="/details/r%2F1"' in answer.text
    assert "img-src 'self' data:;" in answer.headers["content-security-policy"]
    for html in (answer.text, "".join(map(str, received["sections"].values()))):
        assert html.count("the table is missing") >= 2
        assert 'src="/api/runs/r%2F1/attachments/2"' in html
        assert "asyncflow resume r/1 MODULE:PIPELINE --journal JOURNAL" in html
        assert "parent.hacked" not in html


async def test_more_lines_of_a_log_look_like_those_of_the_page_and_are_whole(
    make_client: Any, noted: NotedJournal
) -> None:
    await failing().with_options(run_id="r", journal=noted).run()
    short, long = logged("refuse", "the <table> is missing"), logged("refuse", "x" * 5_000)
    noted.said["r"] = [short, long, attached("refuse", "a.txt", "text/plain", b"no line")]
    client = make_client(app(noted))

    page = (await client.get("/details/r?step=refuse")).text
    found = (await client.get("/api/runs/r/notes?step=refuse&html=1")).json()

    lines = re.findall(r"<li.*?</li>", found["html"])
    assert len(lines) == 2
    assert lines[0] in page
    assert "the &lt;table&gt; is missing" in lines[0]
    assert "x" * 5_000 in lines[1]
    assert found["last"] == 3


async def test_the_command_has_the_file_of_the_journal(make_client: Any, tmp_path: Any) -> None:
    path = tmp_path / "my runs.db"
    journal = NotedJournal(path)
    await failing().with_options(run_id="r", journal=journal).run()

    answer = await make_client(app(journal)).get("/runs/r")
    resumable = await make_client(app(journal, pipelines={"reports": failing()})).get("/runs/r")
    journal.close()

    assert f"asyncflow resume r MODULE:PIPELINE --journal &#39;{path}&#39;" in answer.text
    assert "asyncflow resume" not in resumable.text  # it has a button instead


async def test_the_details_of_a_step_are_sent_whole(make_client: Any, noted: NotedJournal) -> None:
    async def long() -> str:
        return "y" * 50_000

    pipeline = Orchestrator([WorkflowStep("a & b", long)], name="etl")
    await pipeline.with_options(run_id="r/1", journal=noted).run()
    noted.said["r/1"] = [logged("a & b", "hello"), logged("other", "not this")]
    client = make_client(app(noted))

    page = (await client.get("/runs/r%2F1")).text
    answer = await client.get("/details/r%2F1?step=a%20%26%20b")
    unknown = await client.get("/details/r%2F1?step=c")

    assert "y" * 50_000 not in page
    assert "Show all of it" in page
    assert "y" * 50_000 in answer.text
    assert answer.text.startswith("<article")
    assert "hello" in answer.text
    assert "not this" not in answer.text
    assert (unknown.status_code, (await client.get("/details/r%2F1")).status_code) == (404, 404)
