"""The timelines of a failed test's runs, and what its comparisons were about."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path

import pytest

from asyncflow import (
    Pipeline,
    RunReport,
    StepResult,
    StepStatus,
    WorkflowStep,
    collect,
    each,
    run_pipeline,
)
from asyncflow.testing import run_in_virtual_time
from asyncflow.testing._recorded_runs import RecordedRuns, explain, timeline

pipeline = Pipeline("etl")


@pipeline.step
async def fetch() -> list[int]:
    await asyncio.sleep(1)
    return [1, 2]


@pipeline.step(max_retries=3, retry=1_000)
async def load(row: int = each(fetch)) -> None:
    raise OSError(f"disk full at {row}")


@pipeline.step
async def notify(loaded: list[None] = collect(load)) -> None: ...


LOST = (
    "ExceptionGroup: 2 of 2 items of step 'load' failed; the first is load[0]: "
    "OSError: disk full at 1 (2 sub-exceptions)"
)


@pytest.fixture
def runs(request):
    runs = RecordedRuns(keeps_reports="pages" in request.function.__name__)
    runs.begin()
    yield runs
    runs.end()


def run(steps=pipeline, **options):
    return run_in_virtual_time(run_pipeline(steps, run_id="r", **options))


def test_a_timeline_shows_when_each_attempt_ran_and_how_each_step_ended(runs):
    report = run(name="etl")

    assert timeline(report).splitlines() == [
        "etl FAILED in 3.0 s, run r",
        "  ✓ SUCCESS   fetch  |##########                      | 1 attempt, 1.0 s",
        "  ✗ FAILED    load   |          x          x         x| "
        f"2 items, 6 attempts, 2.0 s, {LOST}",
        *(
            f"      item {item}, attempt {attempt}: OSError: disk full at {item + 1}"
            for item in range(2)
            for attempt in range(1, 4)
        ),
        "  ⊘ SKIPPED   notify |                                | "
        "step 'load' failed and fail_fast is on",
    ]  # fmt: skip
    assert [*runs.lines()] == timeline(report).splitlines()


def test_a_timeline_says_why_a_step_that_succeeded_was_retried():
    errors = [OSError("gone"), ValueError("bad"), *[KeyError()] * 20]

    async def flaky():
        if errors:
            raise errors.pop(0)

    first, *lines = timeline(run([WorkflowStep("flaky", flaky, max_retries=30)])).splitlines()[1:]

    assert first.endswith("| 23 attempts, 0 ms")
    assert lines[:2] == ["      attempt 1: OSError: gone", "      attempt 2: ValueError: bad"]
    assert lines[-1] == "      and more failed attempts"
    assert len(lines) == 11


def test_a_reused_step_says_so():
    result = StepResult("a", StepStatus.SUCCESS, attempts=1, reused=True)
    report = RunReport("r", [result], total_duration_ms=0, wall_time=0)

    assert timeline(report).endswith("1 attempt, 0 ms, reused")


def test_only_the_first_runs_and_steps_are_recorded(runs):
    async def nothing(): ...

    steps = [WorkflowStep(str(number), nothing) for number in range(53)]
    for _ in range(12):
        run(steps)

    lines = [*runs.lines()]
    assert lines.count("PASSED in 0 ms, run r") == 10
    assert lines.count("  and 3 more steps") == 10
    assert lines[-1] == "and 2 more runs"


class Output:
    pass


def test_what_a_step_returns_is_not_kept_alive(runs):
    async def make():
        return Output()

    report = run([WorkflowStep("make", make)])
    kept = weakref.ref(report["make"].output)
    del report
    gc.collect()

    assert kept() is None
    assert runs


def test_pages_are_written_of_the_reports_that_were_kept(runs, tmp_path):
    report = run()

    (line,) = runs.write_pages(tmp_path / "new", "tests/test_etl.py::test_load")

    page = tmp_path / "new" / "tests-test_etl.py-test_load-1.html"
    assert line == f"page: {page}"
    assert report.run_id in page.read_text(encoding="utf-8")


def test_pages_of_two_tests_never_have_the_same_name(runs, tmp_path):
    run()
    tests = [f"test_a.py::test[{name}]" for name in ("<", ">", "a/b", "a-b", "日" * 200, "x" * 300)]

    lines = [line for test in tests for line in runs.write_pages(tmp_path, test)]

    assert all(line.startswith("page: ") for line in lines)
    assert len({*tmp_path.iterdir()}) == len(tests)


def test_a_missing_extra_is_named_instead_of_pages(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("asyncflow.RunReport.to_html", lambda _: raise_missing())
    run()
    run()

    assert [*runs.write_pages(Path(tmp_path), "t")] == ["no page: install the extra"]


def raise_missing():
    raise ImportError("install the extra")


def test_a_comparison_of_a_status_names_the_steps_that_have_it(runs):
    report = run(name="etl")

    lines = explain("==", report["load"].status, StepStatus.SUCCESS, runs)

    assert lines[1:] == [
        "Steps that are FAILED:",
        f"  load: 2 items, 6 attempts, 2.0 s, {LOST}  (etl FAILED in 3.0 s, run r)",
    ]
    assert explain("!=", report["load"].status, StepStatus.FAILED, runs) is None
    assert explain("==", 2, 3, runs) is None


def test_a_comparison_of_results_lists_what_differs():
    unequal = Unequal()
    one = StepResult("a", StepStatus.SUCCESS, 1, 2.0, output=unequal)
    other = StepResult("a", StepStatus.FAILED, 3, 2.0, output=Unequal())

    assert explain("==", one, other, RecordedRuns()) == [
        "results of 'a' and 'a'",
        "  status: <StepStatus.SUCCESS: 'SUCCESS'> != <StepStatus.FAILED: 'FAILED'>",
        "  attempts: 1 != 3",
        "  output: <unequal> != <unequal>",
    ]


class Unequal:
    def __eq__(self, other):
        raise ValueError("ambiguous")

    def __repr__(self):
        return "<unequal>"

    __hash__ = None


def test_a_comparison_of_reports_says_when_they_are_equal():
    lines = explain("==", run(), run(), RecordedRuns())

    assert "only if they are the same object" in lines[1]
