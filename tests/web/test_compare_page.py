"""The page that compares two runs."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest
from compared_runs import MONDAY, store, store_two_runs

from asyncflow import RunStatus
from asyncflow.events import (
    AttemptStarted,
    Event,
    RunFinished,
    RunStarted,
    StepSkipped,
    StepSucceeded,
)
from asyncflow.web import app
from asyncflow.web._compare_page import _MOST_ROWS


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
        "▲ 2.4 s slower (1.5×)",
        "Slower extract 3.0 s slower (4.0×)",
        "Faster load 600 ms faster (0.4×)",
        "Added audit Removed old",
        "days : 30 → 31 dry_run : False (added) token : secret, so it is not known",
        "train: ValueError: column 'season' has 3 unknown values",
    ):
        assert words in page
    assert "that differ" not in page  # all do
    assert '<a href="/runs/monday">' in html
    assert html.count('<rect class="was" y') == 7
    assert '<rect class="f-failed" y="11" height="7" width="50.0%"/>' in html
    assert rows_of(html) == [
        "extract ✓ SUCCESS 1.0 s 4.0 s ▲ 3.0 s slower (4.0×)",
        "prices ✓ SUCCESS 500 ms 520 ms about the same 1 attempt → 2 attempts",
        "fetch ✓ SUCCESS 1.0 s 1.0 s about the same 2 items → 3 items "
        "0 repeated attempts → 1 repeated attempt",
        "audit ✓ SUCCESS – 250 ms added",
        "load ✓ SUCCESS 1.0 s 400 ms ▼ 600 ms faster (0.4×) depends on audit now "
        "no longer depends on old",
        "train ✗ FAILED 2.0 s 2.0 s about the same SUCCESS → FAILED version 1 → 2",
        "notify ⊘ SKIPPED 2 ms – SUCCESS → SKIPPED",
        "old – 300 ms – removed",
    ]


async def test_steps_that_hardly_differ_can_be_left_out(client: Any, journal: Any) -> None:
    start = RunStarted("short", MONDAY, {"extract": (), "prices": ()}, "etl")
    events: list[Event] = [start, AttemptStarted("extract", 1, 0.0)]
    events += [StepSucceeded("extract", 1, 1_005.0, None), AttemptStarted("prices", 1, 0.0)]
    await store(journal, [*events, StepSucceeded("prices", 1, 900.0, None)])

    every = (await client.get("/compare?a=monday&b=short")).text
    fewer = re.findall(r'href="([^"]+)">Only the 6 that differ', every)[0]
    some = (await client.get(unescape(fewer))).text

    assert (len(rows_of(every)), len(rows_of(some))) == (7, 6)
    assert "extract ✓ SUCCESS 1.0 s 1.0 s about the same" in rows_of(every)
    assert 'href="/compare?a=monday&amp;b=short">Show all 7 steps' in some
    same = (await client.get("/compare?a=monday&b=monday&only=notable")).text
    assert "No step differs." in same
    assert "PASSED in both" in same
    assert "Show all" not in same


async def test_the_run_page_links_to_the_comparison_if_an_earlier_run_passed(client: Any) -> None:
    assert (
        '<a class="button" href="/compare?a=tuesday">' in (await client.get("/runs/tuesday")).text
    )
    assert "/compare" not in (await client.get("/runs/monday")).text


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", "Compared are inputs, versions, status, and the duration of each step."),
        ("?a=monday", "No earlier run of the pipeline of 'monday' has passed."),
        ("?b=monday", "Compared are inputs"),
    ],
)
async def test_the_page_asks_for_what_it_is_not_given(client: Any, query: str, words: str) -> None:
    html = (await client.get(f"/compare{query}")).text

    assert words in text_of(html)
    assert '<option value="tuesday"></option><option value="monday"></option>' in html
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


async def test_of_many_steps_only_those_that_differ_are_shown(
    make_client: Any, journal: Any
) -> None:
    names = [f"s{number}" for number in range(_MOST_ROWS + 20)]

    async def store_run(run_id: str, slow: int) -> None:
        events: list[Event] = [RunStarted(run_id, MONDAY, dict.fromkeys(names, ()))]
        for number, name in enumerate(names):
            took_ms = 200.0 + number if number < slow else 100.0
            events += [AttemptStarted(name, 1, 0.0), StepSucceeded(name, 1, took_ms, None)]
        await store(journal, [*events, RunFinished(1_000.0, RunStatus.PASSED)])

    await store_run("fast", 0)
    await store_run("some", 30)
    await store_run("all", len(names))
    client = make_client(app(journal))

    some = (await client.get("/compare?a=some&b=fast")).text
    assert f"Of {len(names)} steps, 30 that differ are shown." in text_of(some)
    assert len(rows_of(some)) == 30
    assert "and 25 more" in some
    every = text_of((await client.get("/compare?a=all&b=fast")).text)
    assert f"{_MOST_ROWS} that differ are shown, the largest differences of {len(names)}." in every
    removed = [RunStarted("none", MONDAY, {"other": ()}), StepSkipped("other", 0.0, "no")]
    await store(journal, [*removed, RunFinished(1.0, RunStatus.PASSED)])
    assert f"and {len(names) - 20} more" in (await client.get("/compare?a=none&b=fast")).text
