"""How two runs differ is said in words that have no control character."""

from __future__ import annotations

from typing import Any

import pytest
from results import failed, mapped, report_of, retried, skipped, succeeded
from rich.cells import cell_len

from asyncflow import RestoredOutput, RunReport, RunStatus, StepResult, StepStatus
from asyncflow._core.analysis.comparison import InputChange, StepComparison, compare
from asyncflow._core.history.results import REDACTED_OUTPUT
from asyncflow._core.record import replace
from asyncflow._views.comparison_text import (
    difference_text,
    error_text,
    input_text,
    output_text,
    outputs_text,
    run_difference_text,
    step_facts,
    took_text,
)


def step(run_ms: float, baseline_ms: float) -> StepComparison:
    run, baseline = (succeeded("x", duration_ms=ms) for ms in (run_ms, baseline_ms))
    return StepComparison("x", run, baseline)


@pytest.mark.parametrize(
    ("run_ms", "baseline_ms", "words"),
    [
        (4_300.0, 1_100.0, "3.2 s slower (3.9×)"),
        (100.0, 1_000.0, "900 ms faster (0.1×)"),
        (12.0, 1_000.0, "988 ms faster (0.01×)"),
        (500.0, 0.0, "500 ms slower"),
        (105.0, 100.0, "about the same"),
    ],
)
def test_a_difference_in_time_has_a_unit_and_a_factor(
    run_ms: float, baseline_ms: float, words: str
) -> None:
    assert difference_text(step(run_ms, baseline_ms)) == words


def test_a_difference_that_is_not_known_has_no_words() -> None:
    assert difference_text(StepComparison("x", skipped("x"), succeeded("x"))) == ""


@pytest.mark.parametrize(
    ("run_ms", "baseline_ms", "words"),
    [
        ((3e3, 3e3), (1e3, 1e3), "2.0 s slower (3.0×), 2.0 s of it on the critical path"),
        ((1e3, 1e3), (3e3, 3e3), "2.0 s faster (0.3×), 2.0 s of it on the critical path"),
        (
            (1_400.0, 1_600.0),
            (3_200.0, 3_200.0),
            "1.6 s faster (0.5×); the steps of its critical path that ran in both took 1.8 s less",
        ),
        (
            (3_000.0, 3_000.0),
            (2_900.0, 5_000.0),
            "2.0 s faster (0.6×); the steps of its critical path that ran in both took 100 ms more",
        ),
        ((1e3, 1e3), (1e3, 1e3), "about the same"),
    ],
)
def test_the_difference_of_two_runs_agrees_with_that_of_the_critical_path(
    run_ms: tuple[float, float], baseline_ms: tuple[float, float], words: str
) -> None:
    runs = [
        report_of(succeeded("on_the_path", duration_ms=step_ms), total_duration_ms=total_ms)
        for step_ms, total_ms in (run_ms, baseline_ms)
    ]

    assert run_difference_text(compare(*runs)) == words


def test_what_was_reused_is_said_instead_of_a_difference() -> None:
    reused = replace(succeeded("x", reused=True, origin="o"), started_ms=None)
    part = mapped("y", replace(succeeded("y[0]", reused=True, origin="o"), started_ms=None))
    run = report_of(reused, part)
    comparison = compare(run, report_of(succeeded("x"), mapped("y", succeeded("y[0]"))))

    assert run_difference_text(comparison) == "not compared, since r1 reused 2 steps"
    assert [took_text(each) for each in (reused, succeeded("x", duration_ms=5.0))] == [
        *("reused", "5 ms"),
    ]
    assert took_text(StepResult("x", StepStatus.RUNNING, 1, 9.0, started_ms=0.0)) == ""
    assert step_facts(comparison.steps[1]) == ["1 item reused"]


def test_an_end_that_no_status_tells_is_a_fact_too() -> None:
    fallen = succeeded("x", error=OSError())
    assert step_facts(StepComparison("x", fallen, succeeded("x"))) == ["SUCCESS → fell back"]
    waits = StepResult("x", StepStatus.PENDING, waiting_since=1.0)
    assert step_facts(StepComparison("x", waits, skipped("x"))) == ["SKIPPED → WAITS"]
    tolerated = mapped("x", failed("x[0]", OSError()), succeeded("x[1]"))
    before = mapped("x", succeeded("x[0]"), succeeded("x[1]"))
    facts = step_facts(StepComparison("x", tolerated, before))
    assert facts == ["0 failed items → 1 failed item"]


def test_what_a_dead_process_was_running_is_orphaned() -> None:
    step = StepComparison(
        "x", StepResult("x", StepStatus.RUNNING, 1, started_ms=0.0), succeeded("x")
    )

    assert step_facts(step) == ["SUCCESS → RUNNING"]
    assert step_facts(step, has_died=True) == ["SUCCESS → ORPHANED"]


def test_the_facts_of_a_step_name_all_that_differs() -> None:
    one = retried("x[0]", OSError())
    compared = StepComparison(
        "x",
        mapped("x", one, succeeded("x[1]"), depends_on=("a\n", "c")),
        mapped("x", succeeded("x[0]"), depends_on=("b", "c")),
        version=("", "2\x1b"),
        takes=("(b)", "(a)"),
    )

    assert step_facts(compared) == [
        "1 item → 2 items",
        "0 repeated attempts → 1 repeated attempt",
        "depends on a\\n now",
        "no longer depends on b",
        "version none → 2\\x1b",
        "takes (b) → (a)",
    ]
    assert step_facts(StepComparison("x", one, None)) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (InputChange("x", "added", run="new\n"), "'new\\n' (added)"),
        (InputChange("x", "removed", baseline=1), "1 (removed)"),
        (InputChange("x", "changed", 2, 1), "1 → 2"),
        (InputChange("x", "changed", "x" * 99, 1), f"1 → '{'x' * 59}…"),
        (
            InputChange("x", "unknown", 1, REDACTED_OUTPUT),
            "secret, so it is not known whether it changed",
        ),
        (
            InputChange("x", "unknown", *[RestoredOutput("<Table>")] * 2),
            "<Table> (not known whether it changed)",
        ),
        (InputChange("x", "changed", {"a": [1] * 50}, {}), "{} → {'a': [" + "1, " * 17 + "1,…"),
        (
            InputChange("x", "changed", [["row 0", 1], {"row": [1]}], ["row"] * 5),
            "['row', 'row', 'row', 'row', 'row'] → [['row 0', 1], {'row': [1]}]",
        ),
        (
            InputChange("x", "changed", "x" * 99 + "y", "x" * 99),
            f"'{'x' * 59}… (changed after that)",
        ),
        (InputChange("x", "changed", "a  b", "a b"), "'a b' → 'a  b'"),
    ],
)
def test_an_input_is_said_in_one_short_line(change: InputChange, words: str) -> None:
    assert input_text(change) == words


def returned(run: object, baseline: object, **fields: Any) -> StepComparison:
    results = (report_of(succeeded("x", each, **fields)) for each in (run, baseline))
    return compare(*results).steps[0]


@pytest.mark.parametrize(
    ("run", "baseline", "words"),
    [
        (True, False, "output False → True"),
        ({"by": "ann", "ok": True}, {"by": "ann", "ok": 1}, "output, first at ['ok']: 1 → True"),
        ("b" * 99, "a" * 99, f"output '{'a' * 32}… → '{'b' * 32}…"),
        ("x" * 99 + "1", "x" * 99, f"output '{'x' * 48}… (changed after that)"),
        (["\n\x1b<é"], [""], "output, first at [0]: '' → '\\n\\x1b<é'"),
        ({"k" * 99: "b" * 99}, {"k" * 99: "a" * 99}, "output, first at ['kkkkk"),
        (["日本" * 50], ["語" * 50], "output, first at [0]: '語"),
        (1, 1, ""),
        (REDACTED_OUTPUT, 1, "output secret, so it is not known whether it changed"),
        (object(), object(), "output can't be compared, so it is not known whether it changed"),
    ],
)
def test_an_output_is_said_in_a_line_of_at_most_78_cells(
    run: object, baseline: object, words: str
) -> None:
    text = output_text(returned(run, baseline))

    assert text == words or (text.startswith(words) and len(words) < len(text))
    assert cell_len(text) <= 78


def test_the_outputs_of_two_runs_are_counted_and_the_first_that_changed_is_named() -> None:
    def run(*outputs: object) -> RunReport:
        return report_of(
            *(succeeded(name, each) for name, each in zip("abcd", outputs, strict=True))
        )

    base = run(1, 2, 3, REDACTED_OUTPUT)
    assert outputs_text(compare(run(1, 2, 3, 4), base)) == "3 equal; 1 not known"
    assert outputs_text(compare(run(1, 0, 3, 4), base)) == (
        "that of b changed; 2 equal; 1 not known"
    )
    assert outputs_text(compare(run(1, 0, 0, 4), base)) == (
        "2 changed, first that of b; 1 equal; 1 not known"
    )
    assert outputs_text(compare(report_of(skipped("a")), base)) == ""


def test_a_run_without_a_failed_step_says_why_it_stopped() -> None:
    stopped = RunReport(
        *("r", []),
        total_duration_ms=1,
        wall_time=0,
        status=RunStatus.INTERRUPTED,
        stop_reason="a\nsignal",
    )

    assert error_text(stopped) == "a\\nsignal"
    assert error_text(report_of(succeeded("x"))) == ""
