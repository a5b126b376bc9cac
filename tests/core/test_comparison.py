"""A comparison of two runs says what differs, by how much, and what matters first."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from results import Hostile, cancelled, failed, mapped, report_of, skipped, succeeded

from asyncflow import RestoredOutput, RunReport, Segment, StepResult, StepStatus
from asyncflow._core.comparison import InputChange, RunComparison, compare, first_failure
from asyncflow._core.results import REDACTED_OUTPUT


def took(name: str, ms: float, **fields: Any) -> StepResult:
    return succeeded(name, duration_ms=ms, **fields)


def compared(run: list[StepResult], baseline: list[StepResult]) -> RunComparison:
    return report_of(*run).compare(report_of(*baseline))


def with_inputs(**inputs: Any) -> RunReport:
    return RunReport("r", [], total_duration_ms=1.0, wall_time=0.0, inputs=inputs)


# Durations.


@pytest.mark.parametrize(
    ("baseline_ms", "run_ms", "is_notable"),
    [
        (1.0, 10.9, False),  # many times slower, but who cares
        (1.0, 11.0, True),
        (100.0, 119.0, False),
        (100.0, 120.0, True),
        (100.0, 81.0, False),
        (100.0, 80.0, True),
        (0.0, 50.0, True),
    ],
)
def test_a_difference_is_notable_from_a_fifth_of_the_baseline_and_from_ten_milliseconds(
    baseline_ms: float, run_ms: float, is_notable: bool
) -> None:
    comparison = RunReport("a", [took("x", run_ms)], total_duration_ms=run_ms, wall_time=0).compare(
        RunReport("b", [took("x", baseline_ms)], total_duration_ms=baseline_ms, wall_time=0)
    )

    (step,) = comparison.steps
    assert step.difference_ms == comparison.difference_ms == run_ms - baseline_ms
    assert step.factor == comparison.factor == (run_ms / baseline_ms if baseline_ms else None)
    assert step.has_notable_duration == comparison.has_notable_duration == is_notable
    assert step.is_notable == is_notable


@pytest.mark.parametrize(
    "other",
    [
        skipped("x"),
        StepResult("x", StepStatus.RUNNING, 1, 90.0, started_ms=0.0),
        failed("x", OSError()),
        cancelled("x"),
    ],
    ids=["skipped", "running", "failed", "cancelled"],
)
def test_only_what_succeeded_in_both_runs_is_slower_or_faster(other: StepResult) -> None:
    comparison = compared([other], [took("x", 50.0)])

    for each in (comparison, *comparison.steps):
        assert (each.difference_ms, each.factor, each.has_notable_duration) == (None, None, False)
    assert comparison.span_difference_ms is None
    assert comparison.critical_difference_ms == 0.0
    (step,) = comparison.steps
    assert step.has_other_status
    assert step.is_notable


def test_pauses_count_in_the_span_only() -> None:
    segments = [Segment(0.0, 0.0, 60.0), Segment(60.0, 10.0, 100.0)]
    paused = RunReport("a", [], total_duration_ms=100.0, wall_time=0.0, segments=segments)
    comparison = paused.compare(RunReport("b", [], total_duration_ms=90.0, wall_time=0.0))

    assert comparison.difference_ms == 10.0
    assert comparison.span_difference_ms == paused.span_ms - 90.0 == 9_950.0


# Steps.


def test_notable_steps_come_with_the_largest_difference_in_time_first() -> None:
    same, slow, new, fast = took("same", 5), took("slow", 300), took("new", 200), took("fast", 10)
    before = {"same": 6, "gone": 150, "slow": 200, "fast": 90, "bad": 3}
    comparison = compared(
        [same, slow, new, fast, failed("bad", OSError())],
        [took(name, ms) for name, ms in before.items()],
    )

    assert [step.step_name for step in comparison.steps] == [
        *("same", "slow", "new", "fast", "bad", "gone"),
    ]
    assert [step.step_name for step in comparison.notable_steps] == [
        *("new", "gone", "slow", "fast", "bad"),
    ]
    assert {step.step_name: step.change for step in comparison.steps if step.change != "both"} == {
        "new": "added",
        "gone": "removed",
    }


@pytest.mark.parametrize(
    ("run", "baseline"),
    [
        (took("x", 3, attempts=2), took("x", 3)),
        (mapped("x", took("x[0]", 3), took("x[1]", 3)), mapped("x", took("x[0]", 3))),
        (mapped("x", took("x[0]", 3, attempts=2)), mapped("x", took("x[0]", 3))),
        (took("x", 3, depends_on=("a",)), took("x", 3)),
        (took("x", 3), took("x", 3, depends_on=("a",))),
        (cancelled("x"), took("x", 3)),
    ],
    ids=["retried", "more items", "item retried", "new dependency", "lost dependency", "cancelled"],
)
def test_whatever_differs_beside_a_little_time_is_notable(
    run: StepResult, baseline: StepResult
) -> None:
    (step,) = compared([run], [baseline]).steps

    assert not step.has_notable_duration
    assert step.is_notable
    assert not compared([run], [run]).notable_steps


def test_dependencies_are_compared_if_both_runs_have_the_step() -> None:
    comparison = compared(
        [took("a", 1), took("b", 1, depends_on=("a", "new")), took("new", 1, depends_on=("a",))],
        [took("a", 1), took("b", 1, depends_on=("a", "old")), took("old", 1, depends_on=("a",))],
    )

    steps = {step.step_name: step for step in comparison.steps}
    assert (steps["b"].dependencies_added, steps["b"].dependencies_removed) == (("new",), ("old",))
    assert not any(
        step.dependencies_added or step.dependencies_removed
        for name, step in steps.items()
        if name != "b"
    )


def test_items_are_counted_if_the_step_is_mapped_in_both_runs() -> None:
    one, two = mapped("x", took("x[0]", 1)), mapped("x", took("x[0]", 1), took("x[1]", 1))

    assert compared([two], [one]).steps[0].item_counts == (1, 2)
    assert compared([two], [took("x", 1)]).steps[0].item_counts is None
    assert compared([two], []).steps[0].item_counts is None


def test_versions_are_compared_if_they_are_known() -> None:
    report = report_of(took("a", 1), took("b", 1), took("c", 1))
    comparison = compare(
        report,
        report_of(took("a", 1), took("b", 1)),
        fingerprints=(
            {"a": ("()", "2"), "b": ("(rows=a)", ""), "c": ("()", "1")},
            {"a": ("()", "1"), "b": ("(a)", "")},
        ),
    )

    assert [(step.version, step.takes) for step in comparison.steps] == [
        (("1", "2"), None),
        (None, ("(a)", "(rows=a)")),
        (None, None),
    ]
    assert [step.is_notable for step in comparison.steps] == [True, True, True]
    assert comparison.versions_known
    assert not report.compare(report).versions_known


# Inputs.


def test_inputs_that_differ_are_listed_and_secret_ones_are_never_known() -> None:
    table = Hostile()
    comparison = with_inputs(
        days=31,
        url="a",
        full=[True],
        new=1,
        token=REDACTED_OUTPUT,
        key=REDACTED_OUTPUT,
        frame=RestoredOutput("<Frame>"),
        other=RestoredOutput("<Other>"),
        table=table,
        kept=table,
    ).compare(
        with_inputs(
            days=1,
            url="a",
            full=[1],
            gone=None,
            token=REDACTED_OUTPUT,
            key="was open once",
            frame=RestoredOutput("<Frame>"),
            other="other",
            table=Hostile(),
            kept=table,
        )
    )

    assert {each.name: each.change for each in comparison.inputs} == {
        "days": "changed",
        "full": "changed",
        "new": "added",
        "token": "unknown",
        "key": "unknown",
        "frame": "unknown",
        "other": "changed",
        "table": "unknown",
        "gone": "removed",
    }
    assert comparison.inputs[0] == InputChange("days", "changed", 31, 1)
    assert "was open once" not in comparison.to_json()


# Outcome.


def test_the_first_failure_is_the_failed_step_that_ended_first() -> None:
    late = failed("late", OSError("no disk"), started_ms=5.0)
    early = failed("early", ValueError("bad"), started_ms=1.0)

    assert first_failure(report_of(late, early)) is early
    assert first_failure(report_of(took("x", 1))) is None


def test_a_comparison_can_be_shown_pickled_and_written_as_json() -> None:
    run = RunReport(
        "tuesday",
        [failed("x", OSError("no disk"), duration_ms=30.0), took("y", 1), skipped("z")],
        total_duration_ms=40.0,
        wall_time=1_000.0,
        pipeline="etl",
        inputs={"days": list(range(200)), "token": REDACTED_OUTPUT},
        stop_reason="step 'x' failed",
    )
    baseline = RunReport(
        "monday",
        [took("x", 20.0), mapped("z", took("z[0]", 1))],
        total_duration_ms=20.0,
        wall_time=900.0,
        inputs={"days": 1, "old": "o"},
    )

    comparison = compare(run, baseline, fingerprints=({"x": ("()", "2")}, {"x": ("(a)", "1")}))

    assert repr(comparison) == "<RunComparison tuesday with monday: 3 of 3 step(s) differ>"
    assert repr(pickle.loads(pickle.dumps(comparison))) == repr(comparison)
    document = json.loads(comparison.to_json(indent=2))
    assert document["run"] == {
        "run_id": "tuesday",
        "pipeline": "etl",
        "status": "FAILED",
        "wall_time": 1_000.0,
        "total_duration_ms": 40.0,
        "span_ms": 40.0,
        "stop_reason": "step 'x' failed",
        "first_failure": "x",
        "first_error": "OSError: no disk",
    }
    assert document["baseline"]["first_failure"] is None
    assert (document["difference_ms"], document["factor"]) == (None, None)  # it has failed
    assert (document["is_notable"], document["versions_known"]) == (False, True)
    days, token, old = document["inputs"]
    assert days["baseline"] == "1"
    assert days["run"].startswith("[0, 1, 2")
    assert days["run"].endswith("more characters)")
    assert token == {"name": "token", "change": "added", "run": "redacted", "baseline": None}
    assert old == {"name": "old", "change": "removed", "run": None, "baseline": "'o'"}
    x, y, z = document["steps"]
    assert x == {
        "step_name": "x",
        "change": "both",
        "is_notable": True,
        "difference_ms": None,
        "factor": None,
        "run": {
            "status": "FAILED",
            "duration_ms": 30.0,
            "attempts": 1,
            "items": None,
            "error": "OSError: no disk",
        },
        "baseline": {
            "status": "SUCCESS",
            "duration_ms": 20.0,
            "attempts": 1,
            "items": None,
            "error": None,
        },
        "dependencies_added": [],
        "dependencies_removed": [],
        "version": ["1", "2"],
        "takes": ["(a)", "()"],
    }
    assert (y["change"], y["baseline"], z["baseline"]["items"]) == ("added", None, 1)
