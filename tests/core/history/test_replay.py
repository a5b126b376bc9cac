"""A replay rebuilds the state of a run from its stored events, without its pipeline."""

from __future__ import annotations

import gc
import json

import pytest

from asyncflow import RestoredOutput, RunStatus, StepCrashedError, StepStatus, WorkflowStep
from asyncflow._core.errors import IllegalEventError
from asyncflow._core.history.log import History
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.results import REDACTED, Payload
from asyncflow._core.history.stored_report import report_from
from asyncflow._core.pipeline.graph import plan
from asyncflow._core.running.state import RunState
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    LoopBlocked,
    MapStarted,
    RunFinished,
    RunInterrupted,
    RunResumed,
    RunStarted,
    RunTimedOut,
    StepAttached,
    StepCancelled,
    StepFailed,
    StepLogged,
    StepProgressed,
    StepReused,
    StepSkipped,
    StepSucceeded,
    ThreadAbandoned,
)

PENDING, RUNNING, SUCCESS, FAILED, SKIPPED, CANCELLED = StepStatus
BOOM = ValueError("boom")
CHAIN = {"a": (), "b": ("a",), "c": ("b",)}


def started(dependencies=CHAIN):
    fingerprints = dict.fromkeys(dependencies, ("()", ""))
    return RunStarted("r", 1_000.0, dependencies, "p", fingerprints, {"x": payload_of(1)})


def resumed(at_ms, dependencies=CHAIN, **what):
    fingerprints = dict.fromkeys(dependencies, ("()", "2"))
    return RunResumed("r", at_ms, 2_000.0, dependencies, fingerprints, **what)


def payload_of(value):
    return Payload("json", json.dumps(value).encode())


def decode(step, payload):
    return json.loads(payload.data)


def success(step, at_ms, value=1, attempt=1, item=None):
    return StepSucceeded(step, attempt, at_ms, payload_of(value), item)


def half_mapped():
    """Return events after which one item of the mapped step b has ended and another runs."""
    return [
        started(),
        AttemptStarted("a", 1, 0.0),
        success("a", 1.0, [1, 2]),
        MapStarted("b", 2.0),
        AttemptStarted("b", 1, 3.0, item=0),
        AttemptStarted("b", 1, 4.0, item=1),
        success("b", 5.0, 10, item=0),
    ]


class TestReports:
    def test_a_running_step_has_its_duration_and_its_failed_attempts(self):
        run = StoredRun(
            [
                started(),
                AttemptStarted("a", 1, 1.0, 0.5),
                AttemptFailed("a", 1, 3.0, BOOM, 2.0),
                AttemptStarted("a", 2, 5.0),
                ThreadAbandoned("a", 2, 6.0),
                LoopBlocked("a", 2, 9.0, 150.0, "x.py:1 in a"),
            ]
        )

        result = report_from(run, decode)["a"]

        assert (result.status, result.attempts, result.duration_ms) == (RUNNING, 2, 8.0)
        assert [attempt.error for attempt in result.history] == [BOOM]
        run.apply(success("a", 10.0, 7, attempt=2))
        result = report_from(run, decode)["a"]
        assert (result.abandoned, result.loop_blocked_ms) == (True, 150.0)
        assert (result.output, result.attempts, result.started_ms) == (7, 2, 1.0)
        assert result.queued_ms == 0.5

    def test_a_resumed_mapped_step_counts_for_how_long_it_ran_in_each_segment(self):
        run = StoredRun(
            [
                *half_mapped(),
                resumed(5.0, unfinished={"b": "it had not finished"}),
                StepReused("a", 6.0),
                MapStarted("b", 7.0),
            ]
        )
        resuming = report_from(run, decode)["b"]

        run.apply(StepReused("b", 7.0, item=0))
        run.apply(AttemptStarted("b", 2, 8.0, item=1))
        running = report_from(run, decode)["b"]
        run.apply(success("b", 9.0, 20, attempt=2, item=1))
        run.apply(StepSucceeded("b", 0, 9.0, None))
        ended = report_from(run, decode)["b"]

        assert (resuming.started_ms, resuming.duration_ms, resuming.items) == (2.0, 3.0, ())
        earlier = [(each.segment, each.item, each.number) for each in resuming.history]
        assert (resuming.attempts, earlier) == (2, [(1, 0, 1), (1, 1, 1)])
        assert (running.status, running.attempts, running.history) == (RUNNING, 3, ())
        assert (running.started_ms, running.duration_ms) == (2.0, 3.0)
        assert [item.reused for item in running.items] == [True, False]
        assert (ended.started_ms, ended.duration_ms) == (2.0, 4.0)
        assert [item.duration_ms for item in ended.items] == [2.0, 2.0]
        assert [item.started_ms for item in ended.items] == [3.0, 4.0]

    def test_a_step_that_became_secret_hides_the_outputs_of_its_items(self):
        run = StoredRun(
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

        report = report_from(run, decode)

        done, running = report["a"].items
        assert (done.output, done.secret) == (RestoredOutput("redacted"), True)
        assert (running.status, running.secret) == (RUNNING, False)
        assert report.inputs == {"x": RestoredOutput("redacted")}
        assert run.carryover.settled()["a", 0].output == payload_of(10)  # for a resumed run
        assert run.inputs == {"x": payload_of(1)}

    def test_a_decoder_receives_the_name_of_the_step_or_input(self):
        steps, inputs = [], []
        run = StoredRun(
            [
                started(),
                MapStarted("a", 0.0),
                AttemptStarted("a", 1, 0.0, item=0),
                success("a", 1.0, item=0),
            ]
        )
        run.apply(StepSucceeded("a", 0, 1.0, None))

        report_from(
            run, lambda step, payload: steps.append(step), lambda name, payload: inputs.append(name)
        )

        assert steps == ["a"]
        assert inputs == ["x"]


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
            ([success("a", 1.0), StepSkipped("b", 1.0, "why", by_condition=True)], False),
            (
                [
                    success("a", 1.0),
                    StepSkipped("b", 1.0, "why", by_condition=True),
                    StepSkipped("c", 1.0, "why", by_condition=True),
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
    def test_a_run_was_stopping_if_it_was_interrupted_or_skipped_steps(self, events, was_stopping):
        run = StoredRun([started(), AttemptStarted("a", 1, 0.0), *events])

        assert run.was_stopping is was_stopping
        run.apply(resumed(2.0))
        assert not run.was_stopping


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


class TestResumes:
    def test_an_attempt_that_was_running_counts_as_a_crash_and_its_step_resumes(self):
        run = StoredRun(
            [
                started(),
                AttemptStarted("a", 1, 0.0),
                AttemptFailed("a", 1, 1.0, BOOM, 0.0),
                AttemptStarted("a", 2, 2.0),
            ]
        )
        pending_attempts = run.carryover.pending_attempts(run.at_ms)["a", None]
        assert pending_attempts.crashes == 1
        assert isinstance(pending_attempts.error, StepCrashedError)
        assert pending_attempts.failure is BOOM

        run.apply(resumed(5.0, unfinished={"a": "it had not finished"}))
        run.apply(AttemptStarted("a", 3, 6.0))
        assert run.carryover.pending_attempts(run.at_ms)["a", None].crashes == 2
        run.apply(success("a", 7.0, attempt=3))

        result = report_from(run, decode)["a"]
        assert (result.attempts, len(result.history), result.started_ms) == (3, 3, 0.0)
        assert result.rerun_reason == "it had not finished"
        assert run.carryover.pending_attempts(run.at_ms) == {}
        assert run.carryover.settled().keys() == {("a", None)}

    def test_an_attempt_that_no_worker_had_begun_with_was_only_queued(self):
        run = StoredRun([started(), AttemptStarted("a", 1, 0.0, 0.5, engine="dask")])
        run.apply(AttemptStarted("b", 1, 2.0))

        pending = run.carryover.pending_attempts(run.at_ms)["a", None]

        assert (pending.unfinished, pending.crashes) == (1, 0)
        assert (pending.latest.at_ms, pending.latest.queued_ms) == (2.0, 2.5)

    def test_a_fresh_start_drops_attempts_and_failures_and_restores_successes(self):
        run = StoredRun(
            [
                started(),
                AttemptStarted("a", 1, 0.0),
                success("a", 1.0),
                AttemptStarted("b", 1, 1.0),
                StepFailed("b", 1, 2.0, BOOM),
                RunFinished(2.0, RunStatus.FAILED),
                resumed(2.0, unfinished={"b": "it had failed"}, afresh=True),
            ]
        )

        assert run.carryover.pending_attempts(run.at_ms) == {}
        assert run.carryover.settled().keys() == {("a", None)}
        assert run.carryover.unfinished() == {"b": "it had failed"}

    def test_a_stored_success_survives_a_failed_recall(self):
        run = StoredRun(
            [
                started(),
                AttemptStarted("a", 1, 0.0),
                StepSucceeded("a", 1, 1.0, REDACTED),
                resumed(2.0, recalled=("a",)),
                AttemptStarted("a", 1, 2.0),
                StepFailed("a", 1, 3.0, BOOM),
            ]
        )

        assert run.carryover.settled()["a", None].status is SUCCESS
        assert report_from(run, decode)["a"].status is FAILED
        assert "is secret" in report_from(run, decode)["a"].rerun_reason

    def test_a_reused_result_is_marked_as_reused(self):
        run = StoredRun(
            [
                started(),
                AttemptStarted("a", 1, 0.0),
                success("a", 1.0, 5),
                resumed(2.0),
                StepReused("a", 2.0),
            ]
        )

        result = report_from(run, decode)["a"]
        assert (result.reused, result.output, result.started_ms) == (True, 5, 0.0)

    def test_a_reused_mapped_step_keeps_what_its_items_did_in_a_failed_recall(self):
        run = StoredRun(
            [
                started({"a": (), "b": ("a",)}),
                MapStarted("a", 0.0),
                AttemptStarted("a", 1, 0.0, item=0),
                AttemptStarted("a", 1, 0.0, item=1),
                StepSucceeded("a", 1, 2.0, REDACTED, 0),
                StepSucceeded("a", 1, 3.0, REDACTED, 1),
                StepSucceeded("a", 0, 3.0, REDACTED),
                resumed(3.0, {"a": (), "b": ("a",)}, recalled=("a",)),
                MapStarted("a", 3.0),
                AttemptStarted("a", 1, 4.0, item=0),
                StepFailed("a", 1, 6.0, BOOM, 0),
                StepFailed("a", 0, 6.5, BOOM),
                resumed(6.5, {"a": ()}),
                StepReused("a", 6.5),
            ]
        )

        result = report_from(run, decode)["a"]

        assert (result.status, result.reused, result.attempts) == (SUCCESS, True, 3)
        assert [(each.status, each.error) for each in result.items] == [(SUCCESS, None)] * 2
        assert [[each.segment for each in item.history] for item in result.items] == [[1, 2], [1]]
        assert [item.duration_ms for item in result.items] == [4.0, 3.0]
        # In the second segment it began with its first item, and ended with the step.
        assert (result.started_ms, result.duration_ms) == (0.0, 3.0 + 2.5)


NOTES: list[Event] = [
    StepLogged("a", 1, 9e9, 20, "db", "hello"),
    StepProgressed("a", 1, 9e9, 1),
    StepAttached("a", 1, 9e9, "plot", "image/png", b""),
]


class TestItems:
    """The first attempt of an item has no objects until more happens than that it succeeds."""

    def test_an_item_that_just_succeeds_is_two_objects_for_the_garbage_collector(self):
        def events():
            yield started()
            yield AttemptStarted("a", 1, 0.0)
            yield success("a", 1.0)
            yield MapStarted("b", 1.0, count=1_000)
            yield from (AttemptStarted("b", 1, 2.0, item=item) for item in range(1_000))
            yield from (success("b", 3.0, item=item) for item in range(1_000))

        gc.collect()
        before = len(gc.get_objects())
        run = StoredRun(events())
        gc.collect()

        # Its view and its payload. Every collection stops all threads while it visits each object.
        assert len(gc.get_objects()) - before < 2_100
        assert run.steps["b"].to_result(3.0).attempts == 1_000

    @pytest.mark.parametrize("is_read", [False, True], ids=["late", "at once"])
    def test_its_attempt_is_the_same_whenever_it_is_read(self, is_read):
        events = [
            started(),
            AttemptStarted("a", 1, 0.0),
            success("a", 1.0),
            MapStarted("b", 1.0, count=2),
            AttemptStarted("b", 1, 2.0, queued_ms=1.0, item=0),
            AttemptStarted("b", 1, 2.0, item=1),
            success("b", 5.0, item=0),
            LoopBlocked("b", 1, 6.0, 200.0, "here", item=0),
            ThreadAbandoned("b", 1, 6.0, item=1),
            resumed(7.0),
        ]
        run = StoredRun()

        for event in events:
            run.apply(event)
            for item in (run.steps["b"].items or {}).values() if is_read else ():
                assert item.latest is not None

        ended, crashed = run.steps["b"].former_items.values()
        (attempt,) = ended.attempts
        assert (attempt.number, attempt.started_ms, attempt.ended_ms) == (1, 2.0, 5.0)
        assert (attempt.queued_ms, attempt.end, attempt.segment) == (1.0, "succeeded", 1)
        assert [block.blocked_ms for block in attempt.blocks] == [200.0]
        assert (ended.attempt_count, ended.queued_ms, ended.blocked_ms) == (1, 1.0, 200.0)
        assert (ended.duration_ms(9.0), ended.abandoned, crashed.abandoned) == (3.0, False, True)
        assert (crashed.attempts[0].end, crashed.attempts[0].ended_ms) == ("crashed", 7.0)
        assert crashed.duration_ms(9.0) == 5.0


def test_what_steps_say_changes_nothing() -> None:
    silent: list[Event] = [
        RunStarted("r", 0.0, {"a": ()}),
        AttemptStarted("a", 1, 1.0),
        StepSucceeded("a", 1, 2.0, None),
        RunFinished(3.0, RunStatus.PASSED),
    ]
    talking = [each for event in silent for each in (event, *NOTES)]

    one, other = StoredRun(silent), StoredRun(talking)

    assert (one.at_ms, one.status) == (other.at_ms, other.status) == (3.0, "PASSED")
    assert report_from(one, lambda _, value: value).to_json() == (
        report_from(other, lambda _, value: value).to_json()
    )
    state = RunState(plan([WorkflowStep("a", nothing)]))
    for event in talking:
        state.apply(event)
    assert state.report().all_passed


async def nothing() -> None: ...


def test_that_an_item_blocked_the_loop_may_be_known_only_after_its_step_ended() -> None:
    history = History()
    history.log += [
        RunStarted("r", 0.0, {"m": ()}),
        MapStarted("m", 0.0, 1),
        AttemptStarted("m", 1, 0.0, item=0),
        StepSucceeded("m", 1, 300.0, "done", item=0),
        StepSucceeded("m", 0, 300.0, ["done"]),
        LoopBlocked("m", 1, 301.0, 280.0, "etl.py:3 in act", item=0),
        RunFinished(302.0, RunStatus.PASSED),
    ]

    result = history.results({})["m"]

    assert (result.status, result.output) == (StepStatus.SUCCESS, ["done"])
    assert result.loop_blocked_ms == 280.0


def test_what_an_orphan_had_begun_is_cancelled_when_a_journal_ends_it() -> None:
    run = StoredRun(
        [
            RunStarted("r", 0.0, {"a": (), "m": (), "b": ("a",)}),
            AttemptStarted("a", 1, 1.0),
            MapStarted("m", 1.0, 2),
            AttemptStarted("m", 1, 1.0, item=0),
            StepSucceeded("m", 1, 2.0, "done", item=0),
            AttemptStarted("m", 1, 2.0, item=1),
            RunInterrupted(3.0, "run 's' has replaced it", "replaced"),
            RunFinished(3.0, RunStatus.INTERRUPTED, "run 's' has replaced it", "replaced"),
        ]
    )

    report = report_from(run, lambda _, value: value)

    assert str(report).splitlines()[1:-1] == [
        "[CANCELLED] a (1 attempt(s), 2ms): run 's' has replaced it",
        "[CANCELLED] m (2 attempt(s), 2ms): run 's' has replaced it",
        "[SKIPPED] b (0 attempt(s), 0ms): run 's' has replaced it",
    ]
    assert [each.status for each in report["m"].items or ()] == ["SUCCESS", "CANCELLED"]
    assert run.steps["a"].attempts[-1].end == "crashed"
    assert not run.counts[StepStatus.PENDING] + run.counts[StepStatus.RUNNING]
