"""Every display says of a run that waits for a signal that it waits, and for what."""

from __future__ import annotations

from html import unescape
from typing import Any

import pytest
from rich.text import Text

from asyncflow import Pipeline, RunReport, after
from asyncflow._views.notebook import of_report
from asyncflow._views.run_end import verdict
from asyncflow._views.run_view import RunView, view_of
from asyncflow.journal import SQLiteJournal
from asyncflow.live._end import run_end
from asyncflow.live._theme import UNICODE
from asyncflow.testing import run_in_virtual_time

NAME = "<b>approved"


async def _suspended() -> RunReport:
    orders = Pipeline("orders")

    @orders.step
    async def draft() -> str:
        return "offer"

    approved = orders.signal(NAME, bool, depends_on=[draft], deadline_ms=60_000)
    others = [orders.signal(f"other {n}", int, depends_on=[draft]) for n in range(3)]

    @orders.step(depends_on=others)
    async def send(answer: bool = after(approved), **_: int) -> bool:
        return answer

    async with SQLiteJournal(":memory:") as journal:
        return await orders.with_options(journal=journal, run_id="r").run()


@pytest.fixture(scope="module", params=["fresh", "restored"])
def report(request: pytest.FixtureRequest) -> RunReport:
    report = run_in_virtual_time(_suspended())
    return report if request.param == "fresh" else RunReport.from_json(report.to_json())


def _on_a_terminal(view: RunView) -> str:
    lines = run_end(view, width=200, height=9, theme=UNICODE, title=Text("orders"))
    return "\n".join(line.plain for line in lines)


@pytest.mark.parametrize(
    "shown",
    [str, lambda report: _on_a_terminal(view_of(report))],
    ids=["text", "terminal"],
)
def test_each_text_names_what_a_run_waits_for(report: RunReport, shown: Any) -> None:
    text = shown(report)

    assert "WAITING" in text
    assert NAME in text


@pytest.mark.parametrize(
    "shown",
    [RunReport.to_html, RunReport.to_markdown, of_report],
    ids=["page", "markdown", "notebook"],
)
def test_each_page_names_what_a_run_waits_for_as_text(report: RunReport, shown: Any) -> None:
    text = shown(report)

    assert "WAITING" in text
    assert NAME in unescape(text)
    assert "<b>" not in text


def test_the_verdict_names_a_few_of_the_steps_that_wait(report: RunReport) -> None:
    words = f"WAITING in 0 ms: 1 succeeded, 5 pending, waits for {NAME}, other 0, other 1, 1 more"

    assert verdict(view_of(report)) == words
