"""The critical path is the chain of steps that decided when the run ended."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mapped_run import chain_run
from resumed_run import RESUMED
from strategies import Edges, graphs

from asyncflow import RunReport, RunStatus, StepResult, StepStatus, WorkflowStep, run_pipeline
from asyncflow._core.analysis.critical_path import StepTime, critical_path
from asyncflow._core.history.stored_report import report_from
from asyncflow._views.run_view import RunView, view_of
from asyncflow.events import (
    AttemptStarted,
    Event,
    RunFinished,
    RunInterrupted,
    RunResumed,
    RunStarted,
    StepReused,
    StepSkipped,
    StepSucceeded,
    StepWaiting,
)
from asyncflow.testing import run_in_virtual_time

SUCCESS, FAILED, CANCELLED = StepStatus.SUCCESS, StepStatus.FAILED, StepStatus.CANCELLED


def ran(name: str, start: float, end: float, *needs: str, status: StepStatus = SUCCESS) -> StepTime:
    return StepTime(name, start, end, needs, status)


def run_of(seconds: dict[str, float], needs: dict[str, list[str]], **options: Any) -> RunReport:
    """Run steps that sleep for so long."""

    def action(name: str) -> Any:
        async def act() -> None:
            await asyncio.sleep(seconds[name])
            if name.startswith("bad"):
                raise ValueError(name)

        return act

    steps = [WorkflowStep(name, action(name), needs.get(name, [])) for name in seconds]
    return run_in_virtual_time(run_pipeline(steps, **options))


def test_under_tiers_the_slowest_step_of_each_tier_is_on_it() -> None:
    seconds = {"a": 1.0, "slow": 9.0, "b": 5.0, "c": 2.0}
    needs = {"b": ["a"], "c": ["b"]}

    assert run_of(seconds, needs).critical_path == ["slow", "b", "c"]
    assert run_of(seconds, needs, schedule="ready").critical_path == ["slow"]
    assert run_of(seconds | {"slow": 7.0}, needs, schedule="ready").critical_path == ["a", "b", "c"]


def test_what_held_a_slot_is_on_it() -> None:
    seconds = {"first": 4.0, "second": 1.0, "third": 3.0}

    report = run_of(seconds, {"third": ["second"]}, schedule="ready", max_concurrency=1)

    assert report.critical_path == ["first", "second", "third"]


def test_a_failed_step_comes_before_the_step_whose_clean_up_it_caused() -> None:
    path = critical_path(
        [
            ran("extract", 0, 10),
            ran("long", 10, 52, status=CANCELLED),
            ran("bad", 10, 50, "extract", status=FAILED),
            ran("tidy", 52, 60, "extract"),
        ]
    )

    assert path == ["extract", "bad", "long", "tidy"]
    seconds = {"a": 1.0, "bad": 2.0, "c": 9.0}
    report = run_of(seconds, {"bad": ["a"]}, schedule="ready")
    assert report.critical_path == ["a", "bad"]  # "c" had no clean-up


def test_a_step_comes_after_the_one_whose_items_it_took() -> None:
    path = ["urls", "fetch", "parse"]

    assert RunView(chain_run()).critical_path(12.0) == path
    failed = [ran("fetch", 0, 9, status=CANCELLED), ran("parse", 3, 9, "fetch", status=FAILED)]
    assert critical_path(failed) == ["fetch", "parse"]


def test_a_dependency_goes_before_what_ended_at_about_that_time() -> None:
    other = ran("other", 0, 10.4)

    assert critical_path([ran("a", 0, 10), other, ran("b", 10.5, 20, "a")]) == ["a", "b"]
    assert critical_path([ran("a", 0, 9), other, ran("b", 10.5, 20, "a")]) == ["other", "b"]


def test_steps_that_took_no_time_are_on_it() -> None:
    assert critical_path([ran("a", 0, 0), ran("b", 0, 0, "a"), ran("c", 0, 1, "b")]) == [*"abc"]
    assert critical_path([ran("a", 0, 0), ran("b", 0, 0)]) == ["b"]
    assert critical_path([]) == []


def test_impossible_dependencies_do_not_break_it() -> None:
    assert critical_path([ran("a", 0, 1, "ghost", "a", "b"), ran("b", 1, 3, "a")]) == ["a", "b"]


def test_a_step_that_was_resumed_ended_with_its_last_attempt() -> None:
    view = RunView(RESUMED)
    report = report_from(view, lambda _, output: output)

    assert report.critical_path == view.critical_path(view.at_ms)


def test_a_chain_of_10_000_steps_needs_no_recursion() -> None:
    steps = [ran("s0", 0, 1), *(ran(f"s{n}", n, n + 1, f"s{n - 1}") for n in range(1, 10_000))]

    assert critical_path(steps) == [step.name for step in steps]


@pytest.mark.parametrize("schedule", ["tiers", "ready"])
@given(graphs(), st.data())
def test_the_path_takes_as_long_as_the_run(schedule: str, edges: Edges, data: Any) -> None:
    seconds = {name: float(data.draw(st.integers(1, 4), name)) for name in edges}

    report = run_of(seconds, {name: [*needs] for name, needs in edges.items()}, schedule=schedule)

    path = report.critical_path
    assert sum(report[name].duration_ms for name in path) == report.total_duration_ms
    for one, following in pairwise(path):
        ended_ms = (report[one].started_ms or 0.0) + report[one].duration_ms
        assert report[following].started_ms == ended_ms


def test_only_steps_that_started_are_on_it() -> None:
    results = [
        StepResult("a", SUCCESS, duration_ms=5.0, started_ms=0.0),
        StepResult("b", StepStatus.SKIPPED, depends_on=("a",)),
    ]

    report = RunReport("r", results, total_duration_ms=5.0, wall_time=0.0)

    assert report.critical_path == ["a"]


NEEDS = {"draft": (), "ok": ("draft",), "archive": ("draft",), "send": ("draft", "ok")}
UNANSWERED: list[Event] = [
    RunStarted("r", 1000.0, NEEDS),
    AttemptStarted("draft", 1, 0.0),
    StepSucceeded("draft", 1, 100.0, None),
    StepWaiting("ok", 100.0, 1000.1),
    AttemptStarted("archive", 1, 100.0),
    StepSucceeded("archive", 1, 200.0, None),
    RunFinished(200.0, RunStatus.WAITING),
]
ANSWERED: list[Event] = [
    *UNANSWERED,
    RunResumed("r", 200.0, 1131.2, NEEDS, {}),
    StepReused("draft", 200.0),
    StepReused("archive", 200.0),
    StepWaiting("ok", 200.0, 1000.1),
    StepSucceeded("ok", 0, 201.0, True),
    AttemptStarted("send", 1, 201.0),
    StepSucceeded("send", 1, 301.0, None),
    RunFinished(301.0, RunStatus.PASSED),
]


def by_json(report: RunReport) -> RunReport:
    return RunReport.from_json(report.to_json())


def by_results(report: RunReport) -> RunReport:
    """Return a report that tells no events, as a user makes one."""
    times = report.total_duration_ms, report.wall_time
    return RunReport("r", report.results, total_duration_ms=times[0], wall_time=times[1])


@pytest.mark.parametrize("trip", [lambda report: report, by_json, by_results])
def test_a_wait_for_a_signal_is_on_it_with_the_time_between_two_processes(trip: Any) -> None:
    view = RunView(ANSWERED)
    report = trip(report_from(view, lambda _, output: output))

    assert view.critical_path(301.0) == report.critical_path == ["draft", "ok", "send"]
    assert view_of(report).critical_path(301.0) == report.critical_path
    assert view_of(report).steps["ok"].wait == report["ok"].wait
    wait = report["ok"].wait
    assert wait == (100.0, 201.0, pytest.approx(131_101.0))
    assert (report["ok"].duration_ms, report.total_duration_ms) == (0.0, 301.0)
    assert json.loads(report.to_json())["critical_path"] == ["draft", "ok", "send"]


def test_a_wait_that_goes_on_is_the_end_of_it_and_one_that_was_cut_short_is_not_on_it() -> None:
    waits = RunView(UNANSWERED)
    stopped = [RunInterrupted(300.0, "it was cancelled"), StepSkipped("ok", 300.0, "cancelled")]
    skipped = RunView([*UNANSWERED[:-1], *stopped, StepSkipped("send", 300.0, "cancelled")])

    assert waits.steps["ok"].wait == (100.0, None, None)
    assert waits.critical_path(200.0) == ["draft", "ok"]
    assert report_from(waits, lambda _, output: output).critical_path == ["draft", "ok"]
    assert skipped.critical_path(300.0) == ["draft", "archive"]


def test_a_signal_that_a_later_process_asks_anew_waits_from_then_on() -> None:
    anew = RunView(
        [*UNANSWERED, RunResumed("r", 200.0, 1131.2, NEEDS, {}, outdated={"draft": "changed"})]
    )
    anew.apply(StepWaiting("ok", 250.0, 1131.25))

    assert anew.steps["ok"].wait == (250.0, None, None)
