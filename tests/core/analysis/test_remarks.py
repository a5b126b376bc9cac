"""What there is to say of a step is said once, in the same words everywhere."""

from __future__ import annotations

import io
from collections.abc import ValuesView

import pytest
from golden_run import GOLDEN
from results import failed, mapped, report_of, succeeded
from resumed_run import RESUMED
from rich.console import Console

from asyncflow import StepStatus
from asyncflow._cli.show_run import step_lines
from asyncflow._core.analysis.remarks import nth_of, remarks_of
from asyncflow._core.history.step_view import StepView
from asyncflow._views.notebook import to_notebook_html
from asyncflow._views.run_view import RunView
from asyncflow.events import Event, ResultReused, RunStarted, StepReused
from asyncflow.html_report._page_model import PageModel
from asyncflow.live._theme import theme_for
from asyncflow.testing._recorded_runs import timeline

REUSED: list[Event] = [
    RunStarted("f", 5.0, {"load": ()}, "etl", rerun_of="calm-otter"),
    ResultReused("load", 0.0, "calm-otter", 1, 7.0, None),
    StepReused("load", 0.0, origin="calm-otter"),
]


class Unwalkable(dict[int, StepView]):
    def values(self) -> ValuesView[int, StepView]:
        raise AssertionError("a running map is not walked")

    __iter__ = items = values  # type: ignore[assignment]


@pytest.mark.parametrize("events", [GOLDEN, RESUMED], ids=["golden", "resumed"])
def test_a_step_and_its_result_have_the_same_remarks(events: list[Event]) -> None:
    view = RunView(events)

    for step in view.steps.values():
        said = remarks_of(step)
        assert remarks_of(step.to_result(view.at_ms)) == said._replace(before="")


def test_every_view_says_the_same_of_a_reused_step() -> None:
    view = RunView(REUSED)
    step = view.steps["load"]
    report = report_of(step.to_result(view.at_ms))
    console = Console(file=io.StringIO())

    texts = [
        *(str(report), report.to_markdown(), timeline(report), PageModel(view, 9.0).note(step)),
        to_notebook_html(view),
        step_lines([step], console, theme_for("utf-8"), 9.0)[0].plain,
    ]

    assert "; ".join(filter(None, remarks_of(step))) == "reused from run calm-otter"
    assert all("reused from run calm" in text for text in texts)


def test_what_items_did_is_said_when_their_step_has_ended() -> None:
    items = (
        succeeded("m[0]", error=ValueError("no")),
        failed("m[1]", OSError("no disk")),
        succeeded("m[2]", reused=True),
    )

    said = remarks_of(mapped("m", *items))

    assert ", ".join(filter(None, said)) == (
        "1 of 3 items failed, tolerated (OSError), 1 of 3 items fell back, 1 of 3 items reused"
    )


def test_the_items_of_a_running_map_are_not_walked() -> None:
    step = StepView("m", status=StepStatus.RUNNING, items=Unwalkable({0: StepView("m[0]")}))

    assert "".join(filter(None, remarks_of(step))) == ""


def test_only_a_running_step_died_with_its_process() -> None:
    runs, waits = StepView("a", status=StepStatus.RUNNING), StepView("b", waiting_since=1.0)

    assert (
        "; ".join(filter(None, remarks_of(runs, has_died=True)))
        == "was running when its process died"
    )
    assert "; ".join(filter(None, remarks_of(waits, has_died=True))) == "waits for a signal"


def test_a_number_of_attempts_says_of_how_many_if_that_is_more_than_one() -> None:
    assert [nth_of(2, most) for most in (3, 1, None)] == ["2 of 3", "2", "2"]
