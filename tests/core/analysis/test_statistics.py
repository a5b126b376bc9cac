"""Outcomes, percentiles and flakiness of steps over several runs."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from golden_run import GOLDEN, HOSTILE, LONG
from hypothesis import given
from hypothesis import strategies as st
from resumed_run import RESUMED

from asyncflow import RunStatus, StepTimeoutError
from asyncflow._core.analysis.statistics import (
    ItemCounts,
    SameErrors,
    StepOutcome,
    StepRun,
    by_trouble,
    median,
    nearest_rank,
    step_runs,
    step_runs_of,
    step_statistics,
)
from asyncflow._core.history.log import History
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.record import replace
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    MapStarted,
    RunFinished,
    RunResumed,
    RunStarted,
    StepCancelled,
    StepFailed,
    StepReused,
    StepSkipped,
    StepSucceeded,
    StepWaiting,
)

BEGIN = AttemptStarted("a", 1, 10.0)
TIMEOUT = StepTimeoutError("a", 1, 5.0, "attempt")


def resumed(at_ms: float, *, afresh: bool = False) -> RunResumed:
    return RunResumed("r", at_ms, 100.0, {"a": ()}, {}, afresh=afresh, unfinished={"a": "why"})


@pytest.mark.parametrize(
    ("events", "outcome", "duration_ms"),
    [
        ([], "PENDING", None),
        ([BEGIN], "RUNNING", None),
        ([StepWaiting("a", 10.0, 1.0)], "WAITS", None),
        ([StepWaiting("a", 10.0, 1.0), StepSucceeded("a", 0, 30.0, 1)], "SUCCESS", None),
        ([BEGIN, StepSucceeded("a", 1, 30.0, None)], "SUCCESS", 20.0),
        (
            [
                *(BEGIN, AttemptFailed("a", 1, 20.0, ValueError(), 5.0)),
                *(AttemptStarted("a", 2, 25.0), StepSucceeded("a", 2, 30.0, None)),
            ],
            "RETRIED",
            20.0,
        ),
        (
            [
                *(BEGIN, AttemptFailed("a", 1, 20.0, TIMEOUT, 5.0)),
                *(AttemptStarted("a", 2, 25.0), StepSucceeded("a", 2, 30.0, None)),
            ],
            "RETRIED",
            20.0,
        ),
        ([BEGIN, StepFailed("a", 1, 12.0, ValueError())], "FAILED", 2.0),
        # Its fallback returned the output.
        ([BEGIN, StepSucceeded("a", 1, 12.0, None, error=ValueError())], "FAILED", 2.0),
        ([BEGIN, StepCancelled("a", 1, 12.0, "why", None)], "CANCELLED", 2.0),
        ([StepSkipped("a", 5.0, "why")], "SKIPPED", None),
        ([StepReused("a", 0.0)], "REUSED", None),
        ([MapStarted("a", 1.0, 2), StepSucceeded("a", 0, 4.0, None)], "SUCCESS", 3.0),
        # Its process died, which says nothing about the step.
        (
            [
                *(BEGIN, resumed(15.0)),
                *(AttemptStarted("a", 2, 15.0), StepSucceeded("a", 2, 30.0, None)),
            ],
            "SUCCESS",
            20.0,
        ),
        # It failed, was mended, and began anew.
        (
            [
                *(
                    BEGIN,
                    StepFailed("a", 1, 20.0, ValueError()),
                    RunFinished(20.0, RunStatus.FAILED),
                ),
                *(resumed(20.0, afresh=True), AttemptStarted("a", 1, 20.0)),
                StepSucceeded("a", 1, 25.0, None),
            ],
            "SUCCESS",
            15.0,
        ),
        # Its result held in the segment after.
        (
            [
                *(BEGIN, StepSucceeded("a", 1, 30.0, None)),
                RunResumed("r", 30.0, 100.0, {"a": ()}, {}),
                StepReused("a", 30.0),
            ],
            "SUCCESS",
            20.0,
        ),
    ],
)
def test_a_step_has_one_outcome_and_one_duration_in_a_run(
    events: list[Event], outcome: str, duration_ms: float | None
) -> None:
    run = StoredRun([RunStarted("r", 0.0, {"a": ()}), *events])

    found = step_runs(run)["a"]
    assert found._replace(error="") == StepRun(outcome, duration_ms)  # type: ignore[arg-type]
    assert bool(found.error) == (outcome in ("FAILED", "RETRIED"))


def test_a_crash_is_not_the_error_of_a_step_that_was_retried() -> None:
    run = StoredRun(
        [
            *(RunStarted("r", 0.0, {"a": ()}), BEGIN),
            *(AttemptFailed("a", 1, 20.0, OSError("away"), 5.0), AttemptStarted("a", 2, 25.0)),
            *(resumed(30.0), AttemptStarted("a", 3, 30.0), StepSucceeded("a", 3, 35.0, None)),
        ]
    )

    assert step_runs(run)["a"][0::3] == ("RETRIED", "OSError: away")


@pytest.mark.parametrize("events", [GOLDEN, RESUMED])
def test_durations_are_those_of_the_report(events: list[Event]) -> None:
    run = StoredRun(events)

    found = step_runs(run)

    for name, step in run.steps.items():
        expected = step.to_result(run.at_ms).duration_ms
        assert (found[name].duration_ms or 0.0) == pytest.approx(expected), name


def test_every_outcome_of_the_golden_run_is_told() -> None:
    outcomes = {name: each.outcome for name, each in step_runs(StoredRun(GOLDEN)).items()}

    assert outcomes["rates"] == "RETRIED"
    assert outcomes["archive"] == "SKIPPED"
    assert outcomes[HOSTILE] == "FAILED"
    assert outcomes[LONG] in get_args(StepOutcome)


@pytest.mark.parametrize(
    ("values", "middle", "p95"),
    [
        ([], None, None),
        ([7.0], 7.0, 7.0),
        ([3.0, 1.0], 2.0, 3.0),
        ([3.0, 1.0, 2.0], 2.0, 3.0),
        ([float(n) for n in range(1, 21)], 10.5, 19.0),
        ([float(n) for n in range(1, 101)], 50.5, 95.0),
    ],
)
def test_percentiles_are_by_nearest_rank(
    values: list[float], middle: float | None, p95: float | None
) -> None:
    assert median(values) == middle
    assert nearest_rank(values, 95) == p95


def test_the_statistics_of_a_step_tell_of_the_runs_in_which_it_succeeded() -> None:
    runs = [
        {"a": StepRun("FAILED", 900.0)},
        {"a": StepRun("RETRIED", 30.0)},
        {},
        {"a": StepRun("SUCCESS", 10.0)},
        {"a": StepRun("REUSED", None)},
        {"a": StepRun("SUCCESS", 20.0)},
    ]

    step = step_statistics(runs)["a"]

    assert step.outcomes == ("FAILED", "RETRIED", None, "SUCCESS", "REUSED", "SUCCESS")
    assert step.durations_ms == (900.0, 30.0, None, 10.0, None, 20.0)
    assert (step.median_ms, step.p95_ms, step.last_ms) == (20.0, 30.0, 30.0)
    assert (step.failure_rate, step.flakiness) == (0.25, 0.25)


def test_a_mapped_step_is_flaky_if_an_item_passed_after_a_retry() -> None:
    passed, failed = StepSucceeded("a", 1, 3.0, None), StepFailed("a", 1, 3.0, OSError())
    fell_back = StepSucceeded("a", 1, 3.0, None, error=OSError())
    again = [
        AttemptFailed("a", 1, 2.0, OSError(), 0.0),
        AttemptStarted("a", 2, 2.0),
        StepSucceeded("a", 2, 3.0, None),
    ]

    def run_of(*items: list[Any]) -> dict[str, StepRun]:
        begun: list[Event] = [RunStarted("r", 0.0, {"a": ()}), MapStarted("a", 1.0, len(items))]
        for number, events in enumerate(items):
            of_item = [AttemptStarted("a", 1, 1.0), *events]
            begun += [replace(event, item=number) for event in of_item]
        ended = [StepSucceeded("a", 0, 4.0, None), RunFinished(4.0, RunStatus.PASSED)]
        history = History()
        history.log += [*begun, *ended]
        found = step_runs_of(history)
        assert found == step_runs(StoredRun(history.log))
        return found

    plain = run_of([passed])
    tolerant = run_of([failed], [fell_back], [passed])
    retried = run_of([failed], again, again, again)
    step = step_statistics([plain, tolerant, retried, {}])["a"]

    assert step.outcomes == ("SUCCESS", "SUCCESS", "RETRIED", None)
    assert step.failed_items == (0, 2, 1, 0)
    assert step.retried_items == (0, 0, 3, 0)
    assert (step.failure_rate, step.flakiness) == (0.0, 1 / 3)


def test_steps_that_fail_come_first_and_then_flaky_ones() -> None:
    fine, flaky, failed = (StepRun(outcome, 1.0) for outcome in ("SUCCESS", "RETRIED", "FAILED"))  # type: ignore[arg-type]
    tolerant = StepRun("SUCCESS", 1.0, ItemCounts(failed=1))
    run = {"a": fine, "b": flaky, "c": fine, "d": tolerant, "e": failed}

    assert list(by_trouble(step_statistics([run]))) == ["e", "d", "b", "a", "c"]


def test_a_step_that_never_ended_has_no_figures() -> None:
    step = step_statistics([{"a": StepRun("RUNNING", None)}])["a"]

    assert (step.median_ms, step.p95_ms, step.last_ms, step.flakiness) == (None,) * 4


def test_errors_are_grouped_over_runs_numbers_in_their_messages_aside() -> None:
    errors = ["", "KeyError: 'row 7'", "OSError: away", "KeyError: 'row 12'", ""]
    runs = [{"a": StepRun("FAILED" if each else "SUCCESS", 1.0, error=each)} for each in errors]

    step = step_statistics([*runs, {}])["a"]

    assert step.errors == (*errors, "")
    assert step.error_groups == [
        SameErrors("KeyError: 'row 7'", [1, 3]),
        SameErrors("OSError: away", [2]),
    ]


def test_steps_are_those_of_the_latest_run_and_then_those_that_it_lacks() -> None:
    def run(*names: str) -> dict[str, StepRun]:
        return {name: StepRun("SUCCESS", 1.0) for name in names}

    steps = step_statistics([{}, run("c", "a"), run("a", "b", "c"), run("old", "a")])

    assert list(steps) == ["c", "a", "b", "old"]
    assert steps["b"].outcomes == (None, None, "SUCCESS", None)


STEP_RUNS = st.builds(
    StepRun,
    st.sampled_from(get_args(StepOutcome)),
    st.none() | st.floats(0, 1e9, allow_nan=False),
    st.builds(ItemCounts, st.integers(0, 9), st.integers(0, 9)),
)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), STEP_RUNS), max_size=30))
def test_statistics_stay_within_what_was_measured(runs: list[dict[str, StepRun]]) -> None:
    for name, step in step_statistics(runs).items():
        assert [
            None if outcome is None else StepRun(outcome, duration_ms, ItemCounts(*items), error)
            for outcome, duration_ms, error, *items in zip(
                *(step.outcomes, step.durations_ms, step.errors),
                *(step.failed_items, step.retried_items),
                strict=True,
            )
        ] == [run.get(name) for run in runs]
        passed = step.passed_ms
        if passed:
            assert step.median_ms is not None
            assert step.p95_ms is not None
            assert min(passed) <= step.median_ms <= step.p95_ms or len(passed) < 3
            assert step.last_ms == passed[0]
            # The smallest one that at least 95 of 100 don't exceed.
            assert step.p95_ms in passed
            assert 100 * sum(each <= step.p95_ms for each in passed) >= 95 * len(passed)
            assert 100 * sum(each < step.p95_ms for each in passed) < 95 * len(passed)
        assert step.flakiness is None or 0 <= step.flakiness <= 1
        assert (step.flakiness or 0) == 0 or "RETRIED" in step.outcomes


def test_a_long_part_of_a_resumed_run_is_not_replayed_while_the_loop_waits() -> None:
    history = History(StoredRun([RunStarted("r", 0.0, {"a": ()})]))
    history.log.append(resumed(1.0))

    short = step_runs_of(history)
    history.log += [BEGIN] * 10_001

    assert short == {"a": StepRun("PENDING", None)}
    assert step_runs_of(history) is None
