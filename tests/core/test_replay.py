"""What the stored events of a run tell, without the code of its pipeline."""

from __future__ import annotations

import json

import pytest

from asyncflow import RestoredOutput, StepCrashedError, StepStatus
from asyncflow._core.errors import IllegalEventError
from asyncflow._core.replay import StoredRun, latest_steps
from asyncflow._core.results import REDACTED, Payload
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    LoopBlocked,
    MapStarted,
    RunFinished,
    RunInterrupted,
    RunResumed,
    RunStarted,
    RunTimedOut,
    StepCancelled,
    StepFailed,
    StepReused,
    StepSkipped,
    StepSucceeded,
    ThreadAbandoned,
)

PENDING, RUNNING, SUCCESS, FAILED, SKIPPED, CANCELLED = StepStatus
BOOM = ValueError("boom")
CHAIN = {"a": (), "b": ("a",), "c": ("b",)}


def started(dependencies=CHAIN):
    marks = dict.fromkeys(dependencies, ("()", ""))
    return RunStarted("r", 1_000.0, dependencies, "p", marks, {"x": kept(1)})


def resumed(at_ms, dependencies=CHAIN, **what):
    marks = dict.fromkeys(dependencies, ("()", "2"))
    return RunResumed("r", at_ms, 2_000.0, dependencies, marks, **what)


def kept(value):
    return Payload("json", json.dumps(value).encode())


def decode(step, payload):
    return json.loads(payload.data)


def success(step, at_ms, value=1, attempt=1, item=None):
    return StepSucceeded(step, attempt, at_ms, kept(value), item)


def half_mapped():
    """Of the two items of the mapped step b, one has ended and the other one runs."""
    return [
        started(),
        AttemptStarted("a", 1, 0.0),
        success("a", 1.0, [1, 2]),
        MapStarted("b", 2.0),
        AttemptStarted("b", 1, 3.0, item=0),
        AttemptStarted("b", 1, 4.0, item=1),
        success("b", 5.0, 10, item=0),
    ]


def statuses(story):
    return [result.status for result in story.report(decode).results]


class TestLatestSteps:
    def test_they_are_those_with_which_the_run_went_on_last(self):
        fewer = {"a": (), "b": ("a",)}

        assert latest_steps([]) == {}
        assert latest_steps([started(), AttemptStarted("a", 1, 1.0)]) == CHAIN
        assert latest_steps([started(), resumed(1.0, fewer), AttemptStarted("a", 1, 1.0)]) == fewer


class TestReports:
    def test_a_run_that_has_only_begun_has_pending_steps(self):
        story = StoredRun([started()])

        report = story.report(decode)

        assert statuses(story) == [PENDING] * 3
        assert (report.run_id, report.wall_time, report.total_duration_ms) == ("r", 1_000.0, 0.0)
        assert report["b"].depends_on == ("a",)
        assert report["b"].history == ()
        assert story.outcome is None
        assert story.inputs == {"x": kept(1)}

    def test_a_step_that_runs_tells_how_long_and_what_has_failed(self):
        story = StoredRun(
            [
                started(),
                AttemptStarted("a", 1, 1.0, 0.5),
                AttemptFailed("a", 1, 3.0, BOOM, 2.0),
                AttemptStarted("a", 2, 5.0),
                ThreadAbandoned("a", 2, 6.0),
                LoopBlocked("a", 2, 9.0, 150.0, "x.py:1 in a"),
            ]
        )

        result = story.report(decode)["a"]

        assert (result.status, result.attempts, result.duration_ms) == (RUNNING, 2, 8.0)
        assert [attempt.error for attempt in result.history] == [BOOM]
        story.apply(success("a", 10.0, 7, attempt=2))
        result = story.report(decode)["a"]
        assert (result.abandoned, result.loop_blocked_ms) == (True, 150.0)
        assert (result.output, result.attempts, result.started_ms) == (7, 2, 1.0)
        assert result.queued_ms == 0.5

    def test_a_mapped_step_that_runs_has_begun_when_its_items_did(self):
        story = StoredRun(half_mapped())

        result = story.report(decode)["b"]

        assert (result.status, result.attempts) == (RUNNING, 2)
        assert (result.started_ms, result.duration_ms) == (2.0, 3.0)
        assert [item.step_name for item in result.items] == ["b[0]", "b[1]"]
        assert [(item.status, item.output) for item in result.items] == [
            (SUCCESS, 10),
            (RUNNING, None),
        ]
        assert story.unfinished() == {"b": "it was cut short"}

    def test_a_mapped_step_that_goes_on_has_begun_before_the_run_was_resumed(self):
        story = StoredRun(
            [
                *half_mapped(),
                resumed(5.0, unfinished={"b": "it was cut short"}),
                StepReused("a", 6.0),
                MapStarted("b", 7.0),
            ]
        )
        assert story.report(decode)["b"].started_ms == 7.0  # of its items, nothing is told yet

        story.apply(StepReused("b", 7.0, item=0))
        story.apply(AttemptStarted("b", 2, 8.0, item=1))
        running = story.report(decode)["b"]
        story.apply(success("b", 9.0, 20, attempt=2, item=1))
        story.apply(StepSucceeded("b", 0, 9.0, None))
        ended = story.report(decode)["b"]

        assert (running.status, running.attempts) == (RUNNING, 3)
        assert (running.started_ms, running.duration_ms) == (3.0, 5.0)
        assert [item.reused for item in running.items] == [True, False]
        assert (ended.started_ms, ended.duration_ms) == (3.0, 6.0)
        assert [item.started_ms for item in ended.items] == [3.0, 4.0]

    def test_the_outputs_of_items_make_that_of_their_step(self):
        story = StoredRun(
            [
                started({"a": (), "b": ("a",)}),
                AttemptStarted("a", 1, 0.0),
                StepSucceeded("a", 1, 1.0, REDACTED),
                MapStarted("b", 2.0),
                AttemptStarted("b", 1, 3.0, item=0),
                AttemptStarted("b", 1, 3.0, item=1),
                success("b", 4.0, 20, item=1),
                success("b", 5.0, 10, item=0),
                StepSucceeded("b", 0, 5.0, None),
                RunFinished(6.0, "passed"),
            ]
        )

        report = story.report(decode)

        assert report["b"].output == [10, 20]
        assert [item.output for item in report["b"].items] == [10, 20]
        assert report["a"].output == RestoredOutput("redacted")
        assert report["a"].secret
        assert not report["b"].secret
        assert report.total_duration_ms == 6.0

    def test_what_is_secret_now_is_not_told_of_items_that_are_still_coming_either(self):
        story = StoredRun(
            [
                started({"a": ()}),
                MapStarted("a", 0.0),
                AttemptStarted("a", 1, 0.0, item=0),
                AttemptStarted("a", 1, 0.0, item=1),
                success("a", 1.0, 10, item=0),
                resumed(2.0, {"a": ()}, secret=("a",), inputs={"x": REDACTED}),
                MapStarted("a", 2.0),
                StepReused("a", 2.0, 0),
                AttemptStarted("a", 2, 3.0, item=1),
            ]
        )

        report = story.report(decode)

        done, running = report["a"].items
        assert (done.output, done.secret) == (RestoredOutput("redacted"), True)
        assert (running.status, running.secret) == (RUNNING, False)
        assert report.inputs == {"x": RestoredOutput("redacted")}
        assert story.known()["a", 0].output == kept(10)  # to who goes on with it
        assert story.inputs == {"x": kept(1)}

    def test_a_decoder_is_told_which_step_it_is_about(self):
        told, of_inputs = [], []
        story = StoredRun(
            [
                started(),
                MapStarted("a", 0.0),
                AttemptStarted("a", 1, 0.0, item=0),
                success("a", 1.0, item=0),
            ]
        )
        story.apply(StepSucceeded("a", 0, 1.0, None))

        story.report(
            lambda step, payload: told.append(step), lambda name, payload: of_inputs.append(name)
        )

        assert told == ["a"]
        assert of_inputs == ["x"]


class TestStops:
    @pytest.mark.parametrize(
        ("events", "was_stopping"),
        [
            ([], False),
            ([StepFailed("a", 1, 1.0, BOOM)], False),
            ([StepCancelled("a", 1, 1.0, "why", None)], True),
            ([RunInterrupted(1.0, "why")], True),
            ([RunTimedOut(1.0, 1.0)], True),
            ([StepFailed("a", 1, 1.0, BOOM), StepSkipped("b", 1.0, "why")], False),
            ([success("a", 1.0), StepSkipped("b", 1.0, "why")], True),
            ([success("a", 1.0), StepSkipped("b", 1.0, "why", on_purpose=True)], False),
            (
                [
                    success("a", 1.0),
                    StepSkipped("b", 1.0, "why", on_purpose=True),
                    StepSkipped("c", 1.0, "why", on_purpose=True),
                ],
                False,
            ),
            (
                [
                    StepFailed("a", 1, 1.0, BOOM),
                    StepSkipped("b", 1.0, "why"),
                    StepSkipped("c", 1.0, "why"),
                ],
                False,
            ),
            ([StepSkipped("b", 1.0, "why")], True),
        ],
    )
    def test_a_run_was_being_stopped_if_steps_were_left_out(self, events, was_stopping):
        story = StoredRun([started(), AttemptStarted("a", 1, 0.0), *events])

        assert story.was_stopping is was_stopping
        story.apply(resumed(2.0))
        assert not story.was_stopping

    def test_the_end_is_what_the_run_has_said(self):
        story = StoredRun([started({}), RunFinished(4.0, "failed", "so it was")])

        assert (story.outcome, story.at_ms) == ("failed", 4.0)
        assert story.report(decode).stop_reason == "so it was"


class TestRefusals:
    @pytest.mark.parametrize(
        "events",
        [
            [success("a", 1.0)],
            [AttemptStarted("a", 1, 0.0), success("a", 1.0, attempt=2)],
            [AttemptStarted("a", 1, 0.0), AttemptFailed("a", 3, 1.0, BOOM, 0.0)],
        ],
    )
    def test_the_end_of_an_attempt_that_did_not_start_is_refused(self, events):
        with pytest.raises(IllegalEventError, match=r"the latest attempt is [01]"):
            StoredRun([started(), *events])

    def test_an_item_of_a_step_that_is_not_mapped_is_refused(self):
        with pytest.raises(IllegalEventError, match="has not begun to go through its items"):
            StoredRun([started(), AttemptStarted("a", 1, 0.0, item=3)])


class TestResumptions:
    def test_what_was_running_was_cut_short_and_goes_on(self):
        story = StoredRun(
            [
                started(),
                AttemptStarted("a", 1, 0.0),
                AttemptFailed("a", 1, 1.0, BOOM, 0.0),
                AttemptStarted("a", 2, 2.0),
            ]
        )
        pending_attempts = story.pending_attempts()["a", None]
        assert pending_attempts.crashes == 1
        assert isinstance(pending_attempts.failed[1].error, StepCrashedError)

        story.apply(resumed(5.0, unfinished={"a": "it was cut short"}))
        story.apply(AttemptStarted("a", 3, 6.0))
        assert story.pending_attempts()["a", None].crashes == 2
        story.apply(success("a", 7.0, attempt=3))

        result = story.report(decode)["a"]
        assert (result.attempts, len(result.history), result.started_ms) == (3, 3, 0.0)
        assert result.rerun_reason == "it was cut short"
        assert story.pending_attempts() == {}
        assert story.known().keys() == {("a", None)}

    def test_afresh_attempts_and_failures_are_forgotten_and_successes_kept(self):
        story = StoredRun(
            [
                started(),
                AttemptStarted("a", 1, 0.0),
                success("a", 1.0),
                AttemptStarted("b", 1, 1.0),
                StepFailed("b", 1, 2.0, BOOM),
                RunFinished(2.0, "failed"),
                resumed(2.0, unfinished={"b": "it had failed"}, afresh=True),
            ]
        )

        assert story.pending_attempts() == {}
        assert story.known().keys() == {("a", None)}
        assert story.unfinished() == {"b": "it had failed"}

    def test_what_has_come_of_something_outdated_is_outdated_too(self):
        done = [success(name, 1.0) for name in CHAIN]
        starts = [AttemptStarted(name, 1, 0.0) for name in CHAIN]
        story = StoredRun([started(), *starts, *done])

        story.apply(resumed(2.0, {"b": ()}, outdated={"b": "so"}))

        assert story.known().keys() == {("a", None)}
        assert story.fingerprints == {"a": ("()", ""), "b": ("()", "2"), "c": ("()", "")}
        assert story.dependencies == {"a": (), "b": (), "c": ("b",)}
        assert statuses(story) == [PENDING]

    def test_a_success_is_kept_although_it_is_asked_for_again_in_vain(self):
        story = StoredRun(
            [
                started(),
                AttemptStarted("a", 1, 0.0),
                StepSucceeded("a", 1, 1.0, REDACTED),
                resumed(2.0, recalled=("a",)),
                AttemptStarted("a", 1, 2.0),
                StepFailed("a", 1, 3.0, BOOM),
            ]
        )

        assert story.known()["a", None].status is SUCCESS
        assert story.report(decode)["a"].status is FAILED
        assert "is secret" in story.report(decode)["a"].rerun_reason

    def test_a_reused_result_says_so(self):
        story = StoredRun(
            [
                started(),
                AttemptStarted("a", 1, 0.0),
                success("a", 1.0, 5),
                resumed(2.0),
                StepReused("a", 2.0),
            ]
        )

        result = story.report(decode)["a"]
        assert (result.reused, result.output, result.started_ms) == (True, 5, 0.0)

    def test_items_go_on_or_have_failed_too_often(self):
        story = StoredRun(
            [
                started(),
                MapStarted("a", 0.0),
                *(AttemptStarted("a", 1, 0.0, item=item) for item in range(3)),
                success("a", 1.0, item=0),
                resumed(2.0, unfinished={"a": "it was cut short"}),
                MapStarted("a", 2.0),
                StepReused("a", 2.0, 0),
                StepFailed("a", 1, 2.0, StepCrashedError("a[1]", 1, 1), 1),
                StepCancelled("a", 1, 2.0, "why", None, 2),
                StepFailed("a", 0, 2.0, BOOM),
            ]
        )

        result = story.report(decode)["a"]
        assert [item.status for item in result.items] == [SUCCESS, FAILED, CANCELLED]
        assert [item.attempts for item in result.items] == [1, 1, 1]
        assert story.unfinished() == {"a": "it had failed"}

    def test_what_vanishes_may_come_back(self):
        story = StoredRun(
            [
                started(),
                AttemptStarted("a", 1, 0.0),
                AttemptStarted("b", 1, 0.0),
                success("a", 1.0),
                resumed(2.0, {"a": ()}),
                StepReused("a", 2.0),
            ]
        )
        assert story.unfinished() == {"b": "it was cut short"}
        assert story.pending_attempts().keys() == {("b", None)}

        story.apply(resumed(3.0, unfinished=story.unfinished()))
        story.apply(StepReused("a", 3.0))
        story.apply(AttemptStarted("b", 2, 3.0))
        story.apply(success("b", 4.0, attempt=2))

        assert story.report(decode)["b"].attempts == 2
        assert story.pending_attempts() == {}
