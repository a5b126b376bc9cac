"""Every display says of a run that waits for a signal that it waits, and for what."""

from __future__ import annotations

import re
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
from asyncflow.live._frame import LiveRun, frame
from asyncflow.live._theme import UNICODE
from asyncflow.live._timeline import timeline
from asyncflow.testing import run_in_virtual_time
from asyncflow.testing._recorded_runs import timeline as of_test

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
    waiting = f"4 waiting ({NAME}, other 0, other 1, 1 more)"
    words = f"WAITING in 0 ms: 1 succeeded, {waiting}, 1 pending"

    assert verdict(view_of(report)) == words


def _on_a_timeline(report: RunReport) -> str:
    return timeline(view_of(report), width=200).plain


def _live(report: RunReport) -> str:
    run = LiveRun()
    run.apply(*report.events())
    lines = frame(run, width=200, height=20, now_ms=run.view.at_ms, theme=UNICODE)
    return "\n".join(line.plain for line in lines)


@pytest.mark.parametrize(
    ("shown", "pattern"),
    [
        (str, r"\[WAITS  \] <b>approved "),
        (RunReport.to_mermaid, '<br/>◷ WAITS"]:::waits\n'),
        (lambda report: unescape(report.to_markdown()), r"<code><b>approved</code> \| ◷ WAITS \|"),
        (_on_a_timeline, r"◷ WAITS     <b>approved +  ╱+"),
        (_live, r"◷ WAITS    +<b>approved  waits for a sig"),
        (of_report, r"◷</span> WAITS</td>.*?<path d=\"M[^V]*\" stroke="),
        (RunReport.to_html, r'class="badge waits">.*?◷</span> WAITS</span>'),
        (RunReport.to_html, r'class="node waits'),
        (RunReport.to_html, r'class="bar wait e-open"'),
        (RunReport.to_html, r'role="img" aria-label="WAITS">◷</span>'),
        (RunReport.to_html, r"4 waiting"),
        (of_test, r"◷ WAITS     <b>approved"),
    ],
)
def test_in_each_view_a_step_that_waits_has_its_own_word_icon_and_bar(
    report: RunReport, shown: Any, pattern: str
) -> None:
    assert re.search(pattern, shown(report))
