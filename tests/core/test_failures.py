"""Every text and every page shows failures in the same order."""

from __future__ import annotations

import re
from dataclasses import replace

from results import cancelled, failed, mapped, report_of, skipped, succeeded

from asyncflow import RunReport, RunStatus
from asyncflow._cli.output import format_tracebacks
from asyncflow._core.failures import failures, first_failure
from asyncflow._views.run_view import RunView
from asyncflow.events import (
    AttemptStarted,
    RunFinished,
    RunResumed,
    RunStarted,
    StepFailed,
)


def test_what_failed_first_comes_first_and_what_was_cancelled_with_an_error_last() -> None:
    late, early = failed("late", OSError("b"), started_ms=5.0), failed("early", OSError("a"))
    stopped, plain = cancelled("stopped", ValueError("no clean-up")), cancelled("plain")
    fell_back = succeeded("fell back", error=ValueError("no rows"))
    steps = [plain, stopped, late, skipped("lost"), fell_back, early]

    assert failures(steps) == [early, late, stopped]
    assert first_failure(steps) is early
    assert first_failure([stopped, fell_back]) is None


def test_a_mapped_step_failed_when_its_last_item_ended() -> None:
    items = [failed("map[0]", OSError(), started_ms=1.0, duration_ms=9.0)]
    whole = replace(mapped("map", *items), status=items[0].status, error=OSError())

    assert failures([whole, failed("y", OSError(), started_ms=2.0)])[0].step_name == "y"


def test_texts_and_pages_of_a_resumed_run_agree_on_the_first_failure() -> None:
    needs: dict[str, tuple[str, ...]] = {"twice": (), "once": ()}
    view = RunView(
        [
            RunStarted("r", 0.0, needs),
            AttemptStarted("twice", 1, 0.0),
            RunResumed("r", 1000.0, 9.0, needs, {}, unfinished={"twice": "it was cut"}),
            AttemptStarted("once", 1, 1000.0),
            StepFailed("once", 1, 1500.0, OSError("once")),
            AttemptStarted("twice", 2, 1600.0),
            StepFailed("twice", 2, 1700.0, OSError("twice")),
            RunFinished(1700.0, RunStatus.FAILED),
        ]
    )
    results = [step.to_result(view.at_ms) for step in view.steps.values()]
    report = RunReport("r", results, total_duration_ms=1700.0, wall_time=0.0)

    assert [step.name for step in view.failures] == ["once", "twice"]
    assert [result.step_name for result in failures(results)] == ["once", "twice"]
    assert re.findall("Step (.*) failed", format_tracebacks(report)) == ["once", "twice"]
    assert re.findall("Traceback of <code>(.*)</code>", report.to_markdown()) == ["once", "twice"]
    assert report_of(*results).compare(report).to_json().count('"first_failure": "once"') == 2
