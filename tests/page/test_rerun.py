"""The displays of a rerun say what it has reused, and from which run."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from asyncflow import RunStatus
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.stored_report import report_from
from asyncflow._views.run_view import RunView
from asyncflow.events import (
    AttemptStarted,
    Event,
    MapStarted,
    ResultReused,
    RunFinished,
    RunStarted,
    StepReused,
    StepSucceeded,
)
from asyncflow.html_report import to_html
from asyncflow.live import LiveView

STEPS = {"source": (), "fetch": ("source",), "load": ("fetch",)}
RERUN: list[Event] = [
    RunStarted(
        *("f", 5.0, STEPS, "etl"),
        parent="outer",
        parent_step="a step",
        rerun_of="calm-otter",
        label="order <12345>",
        rerun_reasons={"load": "it had failed"},
    ),
    ResultReused("source", 0.0, "calm-otter", 2, 1_500.0, [1, 2]),
    ResultReused("fetch", 0.0, "calm-otter", 1, 300.0, "one", 0),
    ResultReused("fetch", 0.0, "calm-otter", 3, 700.0, "two", 1),
    ResultReused("fetch", 0.0, "calm-otter", 0, 800.0, None, items=2),
    StepReused("source", 0.0, origin="calm-otter"),
    StepReused("fetch", 0.0, origin="calm-otter"),
    AttemptStarted("load", 1, 0.0),
    StepSucceeded("load", 1, 40.0, 2),
    RunFinished(40.0, RunStatus.PASSED),
]


def text_of(html: str) -> str:
    """Return the text of a page, in one line."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.partition("</style>")[2]))


@pytest.fixture(params=["events", "report"])
def page(request: pytest.FixtureRequest) -> str:
    if request.param == "events":
        return to_html(RERUN)
    return to_html(report_from(StoredRun.with_log(RERUN), lambda _, output: output))


def test_a_page_says_what_is_reused(page: str) -> None:
    text = text_of(page)

    assert "Rerun of calm-otter" in text
    assert "Label order &lt;12345&gt;" in text
    assert "Started by outer , a step" in text
    assert page.count(">reused</span>") == 4  # in the timeline and in the details
    assert "those of run calm-otter ." in text
    assert "source: result" not in text  # the step has a column of its own
    assert "reused from run calm-otter: 2 attempts, 1.5 s" in text
    assert "reused from run calm-otter: 2 items, 800 ms" in text
    assert "fetch reused from run calm-otter" in text
    assert "Run again because it had failed." in text
    assert "run f started as a rerun of run calm-otter" in text.replace(" of etl", "")
    assert 'href="/runs' not in page


def test_its_figures_are_those_of_the_other_run() -> None:
    view = RunView(RERUN)
    report = report_from(StoredRun.with_log(RERUN), lambda _, output: output)

    assert (view.parent, view.parent_step, view.rerun_of) == ("outer", "a step", "calm-otter")
    assert view.steps["fetch"].attempt_count == 4
    assert view.steps["fetch"].duration_ms(0.0) == 800.0
    assert report["fetch"].output == ["one", "two"]
    assert view.critical_path(40.0) == ["load"]
    assert report.total_duration_ms == 40.0
    again = RunView(report.events())
    assert again.rerun_of == "calm-otter"
    assert again.steps["fetch"].attempt_count == 4
    assert again.steps["fetch"].duration_ms(0.0) == 800.0


def test_part_of_a_mapped_step_can_be_reused() -> None:
    events = [
        *RERUN[:4],
        *[StepReused("source", 0.0, origin="calm-otter"), MapStarted("fetch", 1.0, 2)],
        StepReused("fetch", 1.0, 0, origin="calm-otter"),
        AttemptStarted("fetch", 1, 2.0, item=1),
        StepSucceeded("fetch", 1, 5.0, "new", 1),
        StepSucceeded("fetch", 0, 5.0, ["one", "new"]),
    ]

    step = RunView(events).steps["fetch"]

    assert [item.origin for item in (step.items or {}).values()] == ["calm-otter", ""]
    assert (step.attempt_count, step.duration_ms(0.0)) == (2, 4.0)
    assert "reused from run" in text_of(to_html(events))


def test_lines_in_a_log_report_each_result_once() -> None:
    stream: Any = io.StringIO()
    with LiveView(Console(file=stream)) as view:
        observer = view.for_run()
        for event in RERUN:
            observer(event)

    lines = stream.getvalue().splitlines()

    assert sum("calm-otter" in line for line in lines) == 3
    assert "run f of etl started as a rerun of run calm-otter: 3 steps" in lines[0]
    assert "fetch reused from run calm-otter\n" in stream.getvalue()
