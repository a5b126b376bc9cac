"""The events of a run, told anew from its report.

That they show what the report says, of random runs that were resumed too, is tested in
`tests/driver/test_durable_runs.py`.
"""

import pickle
from dataclasses import replace

import pytest
from golden_run import GOLDEN, SECRET, STOOD_STILL
from results import report_of

from asyncflow import Attempt, RunReport, StepResult, StepStatus, StepTimeoutError
from asyncflow._core.replay import StoredRun
from asyncflow._core.results import REDACTED, REDACTED_OUTPUT
from asyncflow._views.retold import retold
from asyncflow._views.run_view import RunView
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    LoopBlocked,
    MapStarted,
    RunFinished,
    RunStarted,
    StepCancelled,
    StepFailed,
    StepSucceeded,
    ThreadAbandoned,
)

BOOM = ValueError("boom")


def told_of(*results, **figures):
    report = RunReport("r", results, total_duration_ms=10.0, wall_time=100.0, **figures)
    begin, *events = retold(report)
    assert isinstance(begin, RunStarted)
    return events


def golden_report(events):
    """What a journal says of the golden run, which has not kept the secret output."""
    kept = [
        replace(event, output=REDACTED) if getattr(event, "output", None) == SECRET else event
        for event in events
    ]
    return StoredRun(kept).report(lambda step, payload: payload)


def test_a_run_begins_and_ends():
    report = RunReport(
        "r",
        [StepResult("a", StepStatus.SUCCESS, 1, 2.0, "A", started_ms=1.0, secret=True)],
        total_duration_ms=10.0,
        wall_time=100.0,
        pipeline="p",
        inputs={"x": 1},
    )

    assert retold(report) == [
        RunStarted("r", 100.0, {"a": ()}, "p", inputs={"x": 1}, secret=("a",)),
        AttemptStarted("a", 1, 1.0),
        StepSucceeded("a", 1, 3.0, REDACTED_OUTPUT),
        RunFinished(10.0, "passed"),
    ]


def test_what_was_noted_of_an_attempt_comes_at_its_end():
    result = StepResult(
        "a", StepStatus.FAILED, 1, 2.0, None, BOOM, None, 1.0, loop_blocked_ms=150.0, abandoned=True
    )

    assert told_of(result)[:-1] == [
        AttemptStarted("a", 1, 1.0),
        ThreadAbandoned("a", 1, 3.0),
        LoopBlocked("a", 1, 3.0, 150.0, ""),
        StepFailed("a", 1, 3.0, BOOM),
    ]


def test_the_waits_between_attempts_are_told():
    history = (Attempt(1, 1.0, 1.0, BOOM), Attempt(2, 6.0, 1.0, None, queued_ms=1.5))
    result = StepResult("a", StepStatus.SUCCESS, 2, 6.0, "A", started_ms=1.0, recorded=history)

    assert told_of(result)[:-1] == [
        AttemptStarted("a", 1, 1.0),
        AttemptFailed("a", 1, 2.0, BOOM, 2.5),
        AttemptStarted("a", 2, 6.0, 1.5),
        StepSucceeded("a", 2, 7.0, "A"),
    ]


def test_what_was_cancelled_in_a_backoff_had_failed_before():
    history = (Attempt(1, 1.0, 1.0, BOOM),)
    result = StepResult(
        "a", StepStatus.CANCELLED, 1, 5.0, None, BOOM, "why", started_ms=1.0, recorded=history
    )

    assert told_of(result)[:-1] == [
        AttemptStarted("a", 1, 1.0),
        AttemptFailed("a", 1, 2.0, BOOM, 0.0),
        StepCancelled("a", 1, 6.0, "why", BOOM),
    ]


def test_a_run_that_goes_on_is_told_as_far_as_it_has_come():
    history = (Attempt(1, 1.0, 1.0, BOOM),)
    events = told_of(
        StepResult("a", StepStatus.RUNNING, 2, 5.0, started_ms=4.0, recorded=history),
        StepResult("b", StepStatus.RUNNING, 1, 5.0, started_ms=4.0, recorded=history),
        StepResult("c", StepStatus.PENDING, recorded=()),
        outcome="running",
    )

    view = RunView([RunStarted("r", 1.0, dict.fromkeys("abc", ())), *events])
    assert [step.status.value for step in view.steps.values()] == ["RUNNING", "RUNNING", "PENDING"]
    assert [each.ended_ms for each in view.steps["a"].attempts] == [2.0, None]
    assert [each.ended_ms for each in view.steps["b"].attempts] == [2.0]
    assert view.word == "RUNNING"


@pytest.mark.parametrize(
    "result",
    [
        StepResult("a", StepStatus.FAILED),
        StepResult("a", StepStatus.SUCCESS, items=()),
        StepResult(
            "a", StepStatus.SUCCESS, 2, started_ms=0.0, recorded=(Attempt(1, 0.0, 1.0, None),)
        ),
        StepResult(
            *("a", StepStatus.SUCCESS, 2, 2.0, None, None, None, 0.0),
            recorded=(Attempt(1, 0.0, 1.0, None), Attempt(2, 1.0, 1.0, None)),
        ),
    ],
)
def test_what_no_run_comes_to_is_told_all_the_same(result):
    RunView([RunStarted("r", 1.0, {"a": ()}), *told_of(result)])


@pytest.mark.parametrize("kept", [len(GOLDEN), STOOD_STILL])
def test_the_golden_run_is_told_as_it_was(kept):
    events = GOLDEN[:kept]
    report = golden_report(events)

    view, whole = RunView(retold(report)), RunView(events)

    assert [(step.name, step.status, step.attempt_count) for step in view.steps.values()] == [
        (step.name, step.status, step.attempt_count) for step in whole.steps.values()
    ]
    assert (view.word, view.stop_reason, view.inputs) == (
        whole.word,
        whole.stop_reason,
        whole.inputs,
    )
    assert SECRET not in repr(view.steps)


def test_it_is_told_from_a_report_that_was_sent():
    report = golden_report(GOLDEN)

    for sent in (pickle.loads(pickle.dumps(report)), RunReport.from_json(report.to_json())):
        view = RunView(retold(sent))
        ends = [item.attempts[0].end for item in view.steps["fetch"].items.values()]
        assert ends == ["succeeded", "cancelled", "timed out", "cancelled"]
        assert sent.inputs == report.inputs
        assert (sent.pipeline, sent.outcome) == ("nightly import", "failed")


def test_an_item_of_a_step_that_was_not_seen_to_begin_is_shown():
    view = RunView([RunStarted("r", 1.0, {"a": ()}), AttemptStarted("a", 1, 1.0, item=3)])

    assert list(view.steps["a"].items) == [3]


def test_the_end_of_an_attempt_that_was_not_seen_is_passed_over():
    error = StepTimeoutError("a", 1, 5.0, "attempt")
    view = RunView([RunStarted("r", 1.0, {"a": ()}), AttemptFailed("a", 1, 1.0, error, 2.0)])

    assert view.steps["a"].attempts == []


def test_an_empty_report_has_its_begin_and_its_end():
    assert [type(event) for event in retold(report_of())] == [RunStarted, RunFinished]


def test_a_mapped_step_is_told_with_its_items():
    items = (
        StepResult("a[0]", StepStatus.SUCCESS, 1, 1.0, "x", started_ms=1.0),
        StepResult("a[1]", StepStatus.SUCCESS, 1, 2.0, "y", started_ms=1.0),
    )
    result = StepResult(
        "a", StepStatus.SUCCESS, 2, 2.0, ["x", "y"], started_ms=1.0, recorded=(), items=items
    )

    assert told_of(result)[:-1] == [
        MapStarted("a", 1.0, 2),
        AttemptStarted("a", 1, 1.0, item=0),
        AttemptStarted("a", 1, 1.0, item=1),
        StepSucceeded("a", 1, 2.0, "x", 0),
        StepSucceeded("a", 1, 3.0, "y", 1),
        StepSucceeded("a", 0, 3.0, ["x", "y"]),
    ]
