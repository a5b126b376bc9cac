"""A comparison of two runs says what differs, by how much, and what matters first."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from results import Hostile, cancelled, failed, mapped, report_of, retried, skipped, succeeded

from asyncflow import (
    Attempt,
    RestoredOutput,
    RunReport,
    Segment,
    StepCrashedError,
    StepResult,
    StepStatus,
)
from asyncflow._core.analysis.comparison import (
    InputChange,
    OutputComparison,
    RunComparison,
    compare,
)
from asyncflow._core.history.remote_output import RemoteOutput
from asyncflow._core.history.results import REDACTED_OUTPUT
from asyncflow._core.record import replace


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


def test_what_a_run_reused_of_another_one_is_no_measurement() -> None:
    of_other = replace(took("x", 5, attempts=3, reused=True, origin="o"), started_ms=None)
    own = took("y", 500, reused=True)  # an earlier process of the run measured it
    items = [took("z[0]", 1), replace(took("z[1]", 1, reused=True, origin="o"), started_ms=None)]
    comparison = compared(
        [of_other, own, mapped("z", *items, duration_ms=900)],
        [took("x", 50), took("y", 50), mapped("z", took("z[0]", 1), took("z[1]", 1))],
    )

    x, y, z = comparison.steps
    for each in (comparison, x, z):
        assert (each.difference_ms, each.factor, each.has_notable_duration) == (None, None, False)
    assert comparison.span_difference_ms is None
    assert (x.retry_counts, x.is_notable) == (None, False)
    assert y.difference_ms == 450
    document = json.loads(comparison.to_json())["steps"][0]["run"]
    assert (document["duration_ms"], document["reused_from"]) == (None, "o")


def test_what_fell_back_is_neither_slower_nor_faster_and_ended_differently() -> None:
    fallen, fine = took("x", 90.0, error=OSError()), took("x", 5.0)

    (step,) = compared([fallen], [fine]).steps
    (same,) = compared([fallen], [fallen]).steps

    assert (step.difference_ms, step.has_other_status) == (None, True)
    assert (same.difference_ms, same.has_other_status) == (None, False)


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
        (retried("x", OSError()), took("x", 3)),
        (mapped("x", took("x[0]", 3), took("x[1]", 3)), mapped("x", took("x[0]", 3))),
        (mapped("x", retried("x[0]", OSError())), mapped("x", took("x[0]", 3))),
        (took("x", 3, depends_on=("a",)), took("x", 3)),
        (took("x", 3), took("x", 3, depends_on=("a",))),
        (cancelled("x"), took("x", 3)),
        (mapped("x", failed("x[0]", OSError())), mapped("x", took("x[0]", 3))),
    ],
    ids=[
        *("retried", "more items", "item retried", "new dependency", "lost dependency"),
        *("cancelled", "item failed, tolerated"),
    ],
)
def test_whatever_differs_beside_a_little_time_is_notable(
    run: StepResult, baseline: StepResult
) -> None:
    (step,) = compared([run], [baseline]).steps

    assert not step.has_notable_duration
    assert step.is_notable
    assert not compared([run], [run]).notable_steps


def test_an_attempt_after_one_whose_process_died_or_before_a_new_begin_is_no_repeated_one() -> None:
    crashed = retried("x", StepCrashedError("x", 1, 1))
    again = (
        Attempt(1, 0.0, 1.0, OSError()),
        Attempt(2, 1.0, 1.0, OSError()),
        Attempt(1, 2.0, 1.0, None, segment=2),
    )
    began_anew = took("y", 3, attempts=3, recorded=again)
    comparison = compared([crashed, began_anew], [took("x", 3), took("y", 3)])

    assert [step.retry_counts for step in comparison.steps] == [(0, 0), (0, 0)]
    assert not comparison.notable_steps
    (step,) = compared([retried("x", OSError())], [crashed]).steps
    assert step.retry_counts == (0, 1)


def test_a_running_attempt_after_one_that_failed_is_a_repeated_one() -> None:
    fields = {"started_ms": 0.0, "recorded": (Attempt(1, 0.0, 1.0, OSError()),)}
    waits = StepResult("x", StepStatus.RUNNING, 1, **fields)
    runs = StepResult("x", StepStatus.RUNNING, 2, **fields)

    assert compared([waits], [took("x", 3)]).steps[0].retry_counts == (0, 0)
    assert compared([runs], [took("x", 3)]).steps[0].retry_counts == (0, 1)


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
    assert compared([replace(two, left_out=7)], [one]).steps[0].item_counts == (1, 9)


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


# Outputs.


def output_of(run: object, baseline: object, **fields: Any) -> OutputComparison:
    (step,) = compared([took("x", 1, output=run, **fields)], [took("x", 1, output=baseline)]).steps
    assert step.output is not None
    assert step.is_notable == step.has_other_output == (step.output.change == "changed")
    return step.output


@pytest.mark.parametrize(
    ("run", "baseline", "where", "now", "before"),
    [
        (True, False, "", True, False),
        (1, True, "", 1, True),
        (1, 1.0, "", 1, 1.0),
        ({"a": [1, 2], "b": 0}, {"b": 1, "a": [1, 3]}, "['a'][1]", 2, 3),
        ([{"total": -0.0}], [{"total": 0.0}], "[0]['total']", -0.0, 0.0),
        ([1, 2], [1, 2, 3], "", [1, 2], [1, 2, 3]),
        ({"a": 1}, {"b": 1}, "", {"a": 1}, {"b": 1}),
        ({1: "a"}, {True: "a"}, "", {1: "a"}, {True: "a"}),
        ({"a": 1}, [1], "", {"a": 1}, [1]),
    ],
)
def test_an_output_has_changed_from_the_first_place_that_differs(
    run: object, baseline: object, where: str, now: object, before: object
) -> None:
    changed = output_of(run, baseline)

    assert repr(changed) == repr(OutputComparison("changed", "", where, now, before))


def test_outputs_are_equal_whatever_the_order_of_a_dictionary() -> None:
    table = Hostile()

    assert output_of({"a": 1, "b": float("nan")}, {"b": float("nan"), "a": 1}).change == "equal"
    assert output_of(table, table).change == "equal"
    (step,) = compared([took("x", 1)], [failed("x", OSError())]).steps
    assert step.output is None


@pytest.mark.parametrize(
    ("run", "why"),
    [
        (REDACTED_OUTPUT, "secret"),
        (RemoteOutput("dask", "w1", 8), "engine"),
        (RestoredOutput("{1, 2}"), "stand-in"),
    ],
)
def test_of_an_output_that_is_not_there_as_a_value_nothing_is_known(run: object, why: str) -> None:
    for pair in ((run, run), (run, 1), (1, run)):
        assert output_of(*pair) == OutputComparison("unknown", why)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Hostile, object])
def test_objects_that_can_not_be_compared_are_not(kind: type) -> None:
    assert output_of(kind(), kind()) == OutputComparison("unknown", "incomparable")
    assert output_of(kind(), 1).change == "changed"


def test_an_output_that_is_secret_in_one_run_is_shown_of_neither() -> None:
    item = took("x[0]", 1, output="hunter2", secret=True)
    for run in (
        took("x", 1, output="hunter2", secret=True),
        mapped("x", item, output=["hunter2"]),
    ):
        for pair in (([run], [took("x", 1, output="hunter3")]), ([run], [run])):
            comparison = compared(*pair)

            assert comparison.steps[0].output == OutputComparison("unknown", "secret")
            assert "hunter" not in comparison.to_json() + repr(comparison.steps[0].output)


def test_outputs_of_a_mapped_step_are_compared_by_item() -> None:
    def step(*outputs: object) -> StepResult:
        items = [
            took(f"x[{number}]", 1, output=output)
            for number, output in enumerate(outputs)
            if not isinstance(output, Exception)
        ]
        return mapped("x", *items, output=[each.output for each in items])

    def change(run: StepResult, baseline: StepResult) -> OutputComparison | None:
        return compared([run], [baseline]).steps[0].output

    lost = OSError()
    remote = RemoteOutput("dask", "w1", 8)
    assert change(step(1, [2]), step(1, [2])) == OutputComparison("equal")
    assert change(step(1, lost, [3]), step(1, 2, [4])) == OutputComparison(
        "changed", "", "[2][0]", 3, 4
    )
    assert change(step(1, 2), step(1)) == OutputComparison("changed", "", "", [1, 2], [1])
    assert change(step(remote, 2), step(1, 2)) == OutputComparison("unknown", "engine")
    assert change(step(remote, 2), step(1, 3)) == OutputComparison("changed", "", "[1]", 2, 3)
    not_kept = mapped("x", left_out=2)
    assert change(not_kept, step(1, 2)) == OutputComparison("unknown", "not kept")


def test_json_has_the_beginnings_of_what_has_changed_of_an_output() -> None:
    comparison = compared(
        [took("x", 1, output={"rows": ["a" * 5_000]}), took("y", 1), took("z", 1, output=object())],
        [took("x", 1, output={"rows": ["b" * 5_000]}), took("y", 1), took("z", 1, output=object())],
    )

    x, y, z = (each["output"] for each in json.loads(comparison.to_json())["steps"])
    assert [step.step_name for step in comparison.changed_outputs] == ["x"]
    assert (x["change"], x["where"], x["why"]) == ("changed", "['rows'][0]", None)
    assert x["run"].startswith("'aaa")
    assert len(x["run"]) < 250
    assert y == {"change": "equal", "why": None, "where": None, "run": None, "baseline": None}
    assert (z["change"], z["why"], z["run"]) == ("unknown", "incomparable", None)


def test_a_comparison_of_what_can_not_be_pickled_is_pickled_with_texts_for_it() -> None:
    def of(value: object) -> RunReport:
        steps = [took("x", 1, output=value)]
        return RunReport("r", steps, total_duration_ms=1.0, wall_time=0.0, inputs={"i": value})

    comparison = pickle.loads(pickle.dumps(of(lambda: 1).compare(of(1))))

    (step,), (given,) = comparison.steps, comparison.inputs
    assert (step.output.change, step.output.baseline, given.baseline) == ("changed", 1, 1)
    assert type(step.output.run) is type(given.run) is RestoredOutput


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
            "fell_back": False,
            "reused_from": None,
            "duration_ms": 30.0,
            "attempts": 1,
            "items": None,
            "failed_items": None,
            "error": "OSError: no disk",
        },
        "baseline": {
            "status": "SUCCESS",
            "fell_back": False,
            "reused_from": None,
            "duration_ms": 20.0,
            "attempts": 1,
            "items": None,
            "failed_items": None,
            "error": None,
        },
        "dependencies_added": [],
        "dependencies_removed": [],
        "version": ["1", "2"],
        "takes": ["(a)", "()"],
        "output": None,
    }
    assert (y["change"], y["baseline"], z["baseline"]["items"]) == ("added", None, 1)
