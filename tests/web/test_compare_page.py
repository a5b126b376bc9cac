"""The page that compares two runs."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest
from compared_runs import MONDAY, store, store_two_runs

from asyncflow._core.history.results import Payload
from asyncflow.events import (
    AttemptStarted,
    Event,
    RunStarted,
    StepSucceeded,
)
from asyncflow.web import app


def text_of(html: str) -> str:
    html = re.sub(r"(?s)<(style|script|head)\b.*?</\1>", "", html)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def rows_of(html: str) -> list[str]:
    body = html.partition('<table id="compared">')[2]
    return [text_of(row) for row in re.findall(r"(?s)<tr.*?</tr>", body)][1:]


@pytest.fixture
async def client(make_client: Any, journal: Any) -> Any:
    await store_two_runs(journal)
    return make_client(app(journal))


async def test_a_run_is_compared_with_the_last_passed_one(client: Any) -> None:
    html = (await client.get("/compare?a=tuesday")).text

    page = text_of(html)
    assert 'value="monday"' in html
    for words in (
        "PASSED → FAILED",
        "days : 30 → 31 dry_run : False (added) token : secret, so it is not known",
        "Outputs 2 changed, first that of prices; 2 equal",
        "train: ValueError: column 'season' has 3 unknown values",
    ):
        assert words in page
    assert '<a href="/runs/monday">' in html
    assert set(rows_of(html)) == {
        "extract ✓ SUCCESS 1.0 s 4.0 s ▲ 3.0 s slower (4.0×)",
        "prices ✓ SUCCESS 500 ms 520 ms about the same 0 repeated attempts → 1 "
        "repeated attempt output, first at ['rate']: 1.1 → 1.2",
        "fetch ✓ SUCCESS 1.0 s 1.0 s about the same 2 items → 3 items "
        "0 repeated attempts → 1 repeated attempt output [1, 1] → [1, 1, 1]",
        "audit ✓ SUCCESS – 250 ms added",
        "load ✓ SUCCESS 1.0 s 400 ms ▼ 600 ms faster (0.4×) depends on audit now "
        "no longer depends on old",
        "train ✗ FAILED 2.0 s 2.0 s SUCCESS → FAILED version 1 → 2",
        "notify ⊘ SKIPPED 2 ms – SUCCESS → SKIPPED",
        "old – 300 ms – removed",
    }


async def test_steps_that_hardly_differ_are_shown_on_request(client: Any, journal: Any) -> None:
    start = RunStarted("short", MONDAY, {"extract": (), "prices": ()}, "etl")
    events: list[Event] = [start, AttemptStarted("extract", 1, 0.0)]
    events += [
        StepSucceeded("extract", 1, 1_005.0, Payload("json", b"1")),
        AttemptStarted("prices", 1, 0.0),
    ]
    await store(journal, [*events, StepSucceeded("prices", 1, 900.0, None)])

    some = (await client.get("/compare?a=monday&b=short")).text
    more = re.findall(r'href="([^"]+)">Show all 7 steps', some)[0]
    every = (await client.get(unescape(more))).text

    assert (len(rows_of(some)), len(rows_of(every))) == (6, 7)
    assert "extract ✓ SUCCESS 1.0 s 1.0 s about the same" in rows_of(every)
    same = (await client.get("/compare?a=monday&b=monday")).text
    assert "No step differs." in same
    assert "PASSED in both" in same


async def test_the_run_page_links_to_the_comparison_if_an_earlier_run_passed(client: Any) -> None:
    assert (
        '<a class="button" href="/compare?a=tuesday">' in (await client.get("/runs/tuesday")).text
    )
    assert "/compare" not in (await client.get("/runs/monday")).text


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", "Compares inputs, versions and status, and the output and the duration of each step."),
        ("?a=monday", "No earlier run of the pipeline of 'monday' has passed."),
        ("?b=monday", "Compares inputs"),
    ],
)
async def test_the_page_asks_for_what_it_is_not_given(client: Any, query: str, words: str) -> None:
    html = (await client.get(f"/compare{query}")).text

    assert words in text_of(html)
    assert 'id="compared"' not in html


async def test_an_unknown_run_is_reported(client: Any) -> None:
    for query in ("a=monda", "a=monday&b=tuesda"):
        answer = await client.get(f"/compare?{query}")
        assert answer.status_code == 404
        assert "The journal has no run" in answer.text


async def test_programs_receive_the_comparison_as_json(client: Any) -> None:
    document = (await client.get("/api/compare?a=tuesday")).json()
    assert document["baseline"]["run_id"] == "monday"
    assert len(document["steps"]) == 8

    nothing, alone = await client.get("/api/compare"), await client.get("/api/compare?a=monday")
    assert (nothing.status_code, alone.status_code) == (400, 404)
    assert nothing.json()["detail"] == "Name the runs to compare as a= and b=."


async def test_of_many_steps_the_first_ones_are_shown(
    make_client: Any, journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncflow.web._compare_page._MOST_ROWS", 3)
    await store_two_runs(journal)

    html = (await make_client(app(journal)).get("/compare?a=tuesday")).text

    assert "The first 3 are shown, without 5 more." in text_of(html)
    assert len(rows_of(html)) == 3
