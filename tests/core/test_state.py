"""Whatever decides what a run does next is a fold over its events, along a table."""

from __future__ import annotations

import copy
import dataclasses
import functools
import random
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import networkx as nx
import pytest
from cpu_time import cpu_seconds
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Edges, graphs, oracle_of

from asyncflow import (
    ActionNotAwaitableError,
    Attempt,
    IllegalEventError,
    RunReport,
    StepResult,
    StepStatus,
    WorkflowStep,
)
from asyncflow._graph import Plan, Shape, plan
from asyncflow._state import RunState, Schedule
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    RunFinished,
    RunInterrupted,
    RunStarted,
    StepCancelled,
    StepFailed,
    StepSkipped,
    StepSucceeded,
)

SUCCESS, FAILED = StepStatus.SUCCESS, StepStatus.FAILED
SKIPPED, CANCELLED = StepStatus.SKIPPED, StepStatus.CANCELLED

BOOM = ValueError("boom")
NO_STEPS: dict[str, tuple[str, ...]] = {}

STARTED = RunStarted("r1", 1_000.0, NO_STEPS)
FINISHED = RunFinished(100.0, "passed")
INTERRUPTED = RunInterrupted(50.0, "the caller was cancelled")

Phase: TypeAlias = Literal[
    "before the run",
    "pending",
    "ready",
    "handed out",
    "doomed",
    "withdrawn",
    "attempting",
    "waiting",
    "settled",
    "after the run",
]
PHASES: dict[Phase, str] = {
    "before the run": "the step's turn has not come",
    "pending": "the step's turn has not come",
    "ready": "the step is ready",
    "handed out": "the step is about to start",
    "doomed": "the step will never start",
    "withdrawn": "the step was ready when the run stopped",
    "attempting": "an attempt of the step is running",
    "waiting": "the step waits for its next attempt",
    "settled": "the step has ended",
    "after the run": "the step has ended",
}


async def nothing() -> None: ...


def plan_of(edges: Edges, max_retries: int = 1) -> Plan:
    return plan(WorkflowStep(name, nothing, edges[name], max_retries=max_retries) for name in edges)


def started(plan: Plan, **options: Any) -> RunState:
    state = RunState(plan, **options)
    state.apply(RunStarted("r1", 1_000.0, Shape(plan)))
    return state


def names(plan: Plan, steps: Sequence[int]) -> list[str]:
    return [plan.steps[step].name for step in steps]


def state_in(phase: Phase, schedule: Schedule) -> RunState:
    """A state in which the step x, which depends on the step a, is in a given phase."""
    planned = plan_of({"a": [], "x": ["a"]}, max_retries=3)
    if phase == "before the run":
        return RunState(planned, schedule=schedule)
    state = started(planned, schedule=schedule, fail_fast=False)
    if phase == "pending":
        return state
    assert state.ready() == [0]
    state.apply(AttemptStarted("a", 1, 1.0))
    state.apply(
        StepFailed("a", 1, 2.0, BOOM) if phase == "doomed" else StepSucceeded("a", 1, 2.0, "A")
    )
    if phase not in ("ready", "doomed", "withdrawn"):
        assert state.ready() == [1]
    steps_to: list[Event] = [INTERRUPTED] if phase == "withdrawn" else []
    if phase in ("attempting", "waiting", "settled", "after the run"):
        steps_to.append(AttemptStarted("x", 1, 3.0))
    if phase == "waiting":
        steps_to.append(AttemptFailed("x", 1, 4.0, BOOM, 0.0))
    if phase in ("settled", "after the run"):
        steps_to.append(StepSucceeded("x", 1, 5.0, "X"))
    if phase == "after the run":
        steps_to.append(FINISHED)
    for event in steps_to:
        state.apply(event)
    return state


def snapshot(state: RunState) -> dict[str, Any]:
    """All that a state knows. Its containers hold nothing that changes, so they are copied flat."""
    parts = {
        "": state,
        "turns": state._turns,
        "queue": state._queue,
        "histories": state._histories,
        "units": state.units,
        "limits": state.limits,
    }
    return {
        f"{part}.{name}": copy.copy(value)
        for part, thing in parts.items()
        for name, value in vars(thing).items()
        if value not in parts.values()
    }


def refused(state: RunState, event: Event) -> str:
    """Check that the state refuses the event and does not change; return why."""
    before = snapshot(state)

    with pytest.raises(IllegalEventError) as refusal:
        state.apply(event)

    assert refusal.value.event is event
    assert snapshot(state) == before
    return refusal.value.state


def event_of(kind: type, attempt: int) -> Event:
    values = {
        "step": "x",
        "attempt": attempt,
        "at_ms": 10.0,
        "error": BOOM,
        "retry_in_ms": 0.0,
        "output": "X",
        "reason": "why",
        "queued_ms": 0.0,
        "item": None,
        "on_purpose": False,
        "blocked_ms": 150.0,
        "where": "app.py:1 in x",
    }
    event: Event = kind(**{each.name: values[each.name] for each in dataclasses.fields(kind)})
    return event


ACCEPTED: dict[type, tuple[Phase, ...]] = {
    AttemptStarted: ("ready", "handed out", "withdrawn", "waiting"),
    AttemptFailed: ("attempting",),
    StepSucceeded: ("attempting",),
    StepFailed: ("attempting",),
    StepCancelled: ("attempting", "waiting"),
    StepSkipped: ("handed out", "doomed", "withdrawn"),
}
each_schedule = pytest.mark.parametrize("schedule", ["tiers", "ready"])


@each_schedule
class TestTable:
    @pytest.mark.parametrize("phase", PHASES)
    @pytest.mark.parametrize("kind", ACCEPTED)
    def test_an_event_is_accepted_in_the_phases_of_the_table_and_refused_in_all_others(
        self, kind: type, phase: Phase, schedule: Schedule
    ) -> None:
        state = state_in(phase, schedule)
        attempt = 2 if phase == "waiting" and kind is AttemptStarted else 1
        event = event_of(kind, attempt)

        if phase in ACCEPTED[kind]:
            before = snapshot(state)
            state.apply(event)
            assert snapshot(state) != before
        else:
            assert refused(state, event) == PHASES[phase]

    @pytest.mark.parametrize("attempt", [-1, 0, 1, 2, 3, 4])
    @pytest.mark.parametrize("kind", [kind for kind in ACCEPTED if kind is not StepSkipped])
    def test_an_event_of_another_attempt_than_is_due_is_refused(
        self, kind: type, attempt: int, schedule: Schedule
    ) -> None:
        for phase in ACCEPTED[kind]:
            for latest in (1, 2) if phase in ("attempting", "waiting") else (0,):
                state = state_in(phase, schedule)
                if latest == 2 and phase == "attempting":
                    state.apply(AttemptFailed("x", 1, 4.0, BOOM, 0.0))
                if latest == 2:
                    state.apply(AttemptStarted("x", 2, 5.0))
                if latest == 2 and phase == "waiting":
                    state.apply(AttemptFailed("x", 2, 6.0, BOOM, 0.0))
                due = latest + 1 if kind is AttemptStarted else latest
                event = event_of(kind, attempt)

                if attempt != due:
                    assert "the latest attempt" in refused(state, event)
                else:
                    state.apply(event)

    @pytest.mark.parametrize("kind", ACCEPTED)
    def test_an_event_of_an_unknown_step_is_refused(self, kind: type, schedule: Schedule) -> None:
        state = state_in("attempting", schedule)
        event = dataclasses.replace(event_of(kind, 1), step="y")  # type: ignore[type-var]

        assert refused(state, event) == "the pipeline has no such step"

    def test_a_run_starts_once(self, schedule: Schedule) -> None:
        for phase in PHASES:
            state = state_in(phase, schedule)

            if phase == "before the run":
                state.apply(STARTED)
            assert refused(state, STARTED) == "the run has started"

    def test_a_run_is_interrupted_only_while_it_runs(self, schedule: Schedule) -> None:
        for phase in PHASES:
            state = state_in(phase, schedule)

            if phase in ("before the run", "after the run"):
                assert refused(state, INTERRUPTED) == "the run is not running"
            else:
                state.apply(INTERRUPTED)
                assert state.outcome == "interrupted"

    def test_a_run_finishes_only_after_all_of_its_steps(self, schedule: Schedule) -> None:
        for phase in PHASES:
            state = state_in(phase, schedule)

            if phase in ("before the run", "after the run"):
                assert refused(state, FINISHED) == "the run is not running"
            elif phase != "settled":
                open_steps = 2 if phase == "pending" else 1
                assert refused(state, FINISHED) == f"{open_steps} step(s) have not ended"
            else:
                assert not state.has_finished
                state.apply(FINISHED)
            assert state.has_finished is (phase in ("settled", "after the run"))

    def test_what_is_refused_in_the_middle_of_a_run_does_not_change_its_end(
        self, schedule: Schedule
    ) -> None:
        state = state_in("attempting", schedule)

        for kind in (AttemptStarted, StepSkipped):
            refused(state, event_of(kind, 2))
        state.apply(StepSucceeded("x", 1, 10.0, "X"))
        state.apply(FINISHED)

        assert [result.output for result in state.report().results] == ["A", "X"]

    def test_an_empty_run_has_nothing_to_do(self, schedule: Schedule) -> None:
        state = started(plan_of({}), schedule=schedule)

        assert (state.ready(), state.doomed(), state.unsettled) == ([], [], 0)
        state.apply(RunFinished(1.0, state.outcome))
        assert state.report().all_passed
        assert len(state.report()) == 0


class TestResults:
    def test_a_success_at_once_is_the_output_and_one_attempt(self) -> None:
        state = started(plan_of({"x": []}))

        state.apply(AttemptStarted("x", 1, 2.0))
        state.apply(StepSucceeded("x", 1, 5.0, "X"))

        expected = StepResult("x", SUCCESS, 1, 3.0, "X", None, None, 2.0, None)
        assert state.units.results == [expected]
        assert expected.history == (Attempt(1, 2.0, 3.0, None),)

    @pytest.mark.parametrize(
        ("end", "status", "error", "reason"),
        [
            (StepSucceeded("x", 3, 40.0, "X"), SUCCESS, None, None),
            (StepFailed("x", 3, 40.0, BOOM), FAILED, BOOM, None),
            (StepCancelled("x", 3, 40.0, "why", BOOM), CANCELLED, BOOM, "why"),
            (StepCancelled("x", 3, 40.0, "why", None), CANCELLED, None, "why"),
        ],
    )
    def test_a_result_covers_all_attempts_and_the_waits_between_them(
        self, end: Event, status: StepStatus, error: Exception | None, reason: str | None
    ) -> None:
        state = started(plan_of({"x": []}, max_retries=3))
        one, two = OSError("one"), OSError("two")

        for event in (
            AttemptStarted("x", 1, 2.0),
            AttemptFailed("x", 1, 5.0, one, 5.0),
            AttemptStarted("x", 2, 10.0),
            AttemptFailed("x", 2, 17.0, two, 13.0),
            AttemptStarted("x", 3, 30.0),
            end,
        ):
            state.apply(event)

        (result,) = state.units.results
        assert result is not None
        output = "X" if status is SUCCESS else None
        history = (
            Attempt(1, 2.0, 3.0, one),
            Attempt(2, 10.0, 7.0, two),
            Attempt(3, 30.0, 10.0, error),
        )
        assert result == StepResult("x", status, 3, 38.0, output, error, reason, 2.0, history)
        assert result.history == history

    @pytest.mark.parametrize("kind", [StepFailed, StepCancelled])
    def test_the_end_of_the_only_attempt_is_its_history(self, kind: type) -> None:
        state = started(plan_of({"x": []}))

        state.apply(AttemptStarted("x", 1, 2.0))
        state.apply(event_of(kind, 1))

        (result,) = state.units.results
        assert result is not None
        assert (result.attempts, result.started_ms, result.duration_ms) == (1, 2.0, 8.0)
        assert result.recorded is None
        assert result.history == (Attempt(1, 2.0, 8.0, BOOM),)

    def test_a_step_that_is_cancelled_between_two_attempts_has_no_third_one(self) -> None:
        state = started(plan_of({"x": []}, max_retries=3))
        one, two = OSError("one"), OSError("two")

        for event in (
            AttemptStarted("x", 1, 2.0),
            AttemptFailed("x", 1, 5.0, one, 5.0),
            AttemptStarted("x", 2, 10.0),
            AttemptFailed("x", 2, 17.0, two, 13.0),
            StepCancelled("x", 2, 20.0, "why", two),
        ):
            state.apply(event)

        (result,) = state.units.results
        history = (Attempt(1, 2.0, 3.0, one), Attempt(2, 10.0, 7.0, two))
        assert result == StepResult("x", CANCELLED, 2, 18.0, None, two, "why", 2.0, history)

    def test_a_step_that_is_cancelled_after_its_first_attempt_has_that_one(self) -> None:
        state = started(plan_of({"x": []}, max_retries=3))

        state.apply(AttemptStarted("x", 1, 2.0))
        state.apply(AttemptFailed("x", 1, 5.0, BOOM, 5.0))
        state.apply(StepCancelled("x", 1, 7.0, "why", BOOM))

        (result,) = state.units.results
        history = (Attempt(1, 2.0, 3.0, BOOM),)
        assert result == StepResult("x", CANCELLED, 1, 5.0, None, BOOM, "why", 2.0, history)

    def test_a_skipped_step_has_a_reason_and_no_attempt(self) -> None:
        state = state_in("doomed", "tiers")

        state.apply(StepSkipped("x", 3.0, "why"))

        result = state.units.results[1]
        assert result == StepResult("x", SKIPPED, 0, 0.0, None, None, "why", None, ())
        assert result.history == ()

    def test_a_report_tells_when_the_run_began_and_how_long_it_took(self) -> None:
        state = state_in("after the run", "tiers")

        report = state.report()

        assert (report.run_id, report.wall_time) == ("r1", 1_000.0)
        assert report.total_duration_ms == FINISHED.at_ms
        assert list(report) == ["a", "x"]

    def test_a_report_is_in_topological_order(self) -> None:
        planned = plan_of({"c": ["a"], "a": [], "b": []})
        state = started(planned)

        while state.unsettled:
            for step in reversed(state.ready()):
                state.apply(AttemptStarted(planned.steps[step].name, 1, 1.0))
                state.apply(StepSucceeded(planned.steps[step].name, 1, 2.0, step))
        state.apply(FINISHED)

        assert list(state.report()) == ["a", "b", "c"]

    @pytest.mark.parametrize("schedule", ["tiers", "ready"])
    def test_a_run_passes_only_if_every_step_succeeds(self, schedule: Schedule) -> None:
        assert state_in("attempting", schedule).outcome == "passed"
        assert state_in("doomed", schedule).outcome == "failed"
        for kind, outcome in (
            (StepSucceeded, "passed"),
            (StepFailed, "failed"),
            (StepCancelled, "failed"),
        ):
            state = state_in("attempting", schedule)
            state.apply(event_of(kind, 1))
            assert state.outcome == outcome
        state = state_in("handed out", schedule)
        state.apply(event_of(StepSkipped, 0))
        assert state.outcome == "failed"


class TestAttempts:
    def test_another_attempt_follows_while_there_are_any_left(self) -> None:
        state = started(plan_of({"x": []}, max_retries=3))
        decisions = []

        for attempt in (1, 2, 3):
            state.apply(AttemptStarted("x", attempt, 1.0))
            decisions.append(state.limits.after_failure(0, BOOM, 1.0))
            state.apply(AttemptFailed("x", attempt, 2.0, BOOM, 0.0))

        assert decisions == [0.0, 0.0, None]

    def test_the_next_attempt_follows_after_the_wait_that_the_step_declares(self) -> None:
        state = started(plan([WorkflowStep("x", nothing, max_retries=2, retry=250)]))

        state.apply(AttemptStarted("x", 1, 1.0))
        delay_ms = state.limits.after_failure(0, BOOM, 1.0)

        assert delay_ms == 250.0
        assert type(delay_ms) is float

    def test_an_action_that_returned_no_awaitable_is_not_called_again(self) -> None:
        state = started(plan_of({"x": []}, max_retries=3))

        state.apply(AttemptStarted("x", 1, 1.0))

        assert state.limits.after_failure(0, ActionNotAwaitableError("x", "int"), 1.0) is None

    def test_the_error_of_the_latest_failed_attempt_is_known(self) -> None:
        state = started(plan_of({"x": []}, max_retries=3))
        one, two = OSError("one"), OSError("two")
        seen = [state.last_error(0)]

        for event in (
            AttemptStarted("x", 1, 1.0),
            AttemptFailed("x", 1, 2.0, one, 0.0),
            AttemptStarted("x", 2, 3.0),
            AttemptFailed("x", 2, 4.0, two, 0.0),
        ):
            state.apply(event)
            seen.append(state.last_error(0))

        assert seen == [None, None, one, one, two]

    def test_the_latest_attempt_is_known_and_whether_it_runs(self) -> None:
        state = started(plan_of({"x": []}, max_retries=3))
        first, second = AttemptStarted("x", 1, 1.0), AttemptStarted("x", 2, 3.0)
        seen = [(state.units.latest[0], state.running_attempt(0))]

        for event in (
            first,
            AttemptFailed("x", 1, 2.0, BOOM, 0.0),
            second,
            StepSucceeded("x", 2, 4.0, None),
        ):
            state.apply(event)
            seen.append((state.units.latest[0], state.running_attempt(0)))

        assert seen == [
            (None, None),
            (first, first),
            (first, None),
            (second, second),
            (second, None),
        ]


class TestWhatFollows:
    def test_tiers_are_the_default(self) -> None:
        planned = plan_of({"a": [], "b": [], "c": ["a"]})
        state = started(planned)

        state.ready()
        state.apply(AttemptStarted("a", 1, 1.0))
        state.apply(StepSucceeded("a", 1, 2.0, None))

        assert state.ready() == []

    @each_schedule
    def test_what_depends_on_a_step_that_was_cut_short_or_skipped_is_doomed(
        self, schedule: Schedule
    ) -> None:
        for ends in (
            [AttemptStarted("a", 1, 1.0), StepCancelled("a", 1, 2.0, "why", None)],
            [StepSkipped("a", 1.0, "why")],
        ):
            planned = plan_of({"a": [], "b": ["a"]})
            state = started(planned, schedule=schedule, fail_fast=False)
            assert state.ready() == [0]

            for event in ends:
                state.apply(event)

            assert state.ready() == []
            assert state.doomed() == [(1, "it depends on step 'a', which failed", False)]

    def test_tiers_wait_for_the_tier_before(self) -> None:
        planned = plan_of({"a": [], "b": [], "c": ["a"]})
        state = started(planned, schedule="tiers")

        assert names(planned, state.ready()) == ["a", "b"]
        state.apply(AttemptStarted("a", 1, 1.0))
        state.apply(StepSucceeded("a", 1, 2.0, None))
        assert state.ready() == []
        assert not state.queue.has_news
        state.apply(AttemptStarted("b", 1, 1.0))
        state.apply(StepSucceeded("b", 1, 2.0, None))
        assert state.queue.has_news
        assert names(planned, state.ready()) == ["c"]

    def test_ready_does_not_wait_for_others(self) -> None:
        planned = plan_of({"a": [], "b": [], "c": ["a"]})
        state = started(planned, schedule="ready")

        assert names(planned, state.ready()) == ["a", "b"]
        state.apply(AttemptStarted("a", 1, 1.0))
        state.apply(StepSucceeded("a", 1, 2.0, None))

        assert state.queue.has_news
        assert names(planned, state.ready()) == ["c"]

    @each_schedule
    def test_a_failure_dooms_what_depends_on_it_and_names_the_step(
        self, schedule: Schedule
    ) -> None:
        planned = plan_of({"a": [], "b": [], "c": ["b", "a"], "d": ["c"], "e": ["b"]})
        state = started(planned, schedule=schedule, fail_fast=False)
        skipped: dict[str, str] = {}

        state.ready()
        state.apply(AttemptStarted("a", 1, 1.0))
        state.apply(StepFailed("a", 1, 2.0, BOOM))
        state.apply(AttemptStarted("b", 1, 1.0))
        state.apply(StepSucceeded("b", 1, 2.0, None))
        assert state.stop_reason is None
        assert names(planned, state.ready()) == ["e"]
        state.apply(AttemptStarted("e", 1, 1.0))
        state.apply(StepSucceeded("e", 1, 2.0, None))
        while state.queue.has_news:
            assert state.ready() == []
            for step, reason, _ in state.doomed():
                skipped[planned.steps[step].name] = reason
                state.apply(StepSkipped(planned.steps[step].name, 3.0, reason))
            state.ready()

        reason = "it depends on step 'a', which failed"
        assert skipped == {"c": reason, "d": reason}
        assert state.unsettled == 0

    @each_schedule
    def test_under_fail_fast_a_failure_dooms_all_that_was_not_handed_out(
        self, schedule: Schedule
    ) -> None:
        planned = plan_of({"a": [], "b": [], "c": [], "d": ["b"]})
        state = started(planned, schedule=schedule, fail_fast=True, max_concurrency=2)

        assert names(planned, state.ready()) == ["a", "b"]
        state.apply(AttemptStarted("a", 1, 1.0))
        state.apply(StepFailed("a", 1, 2.0, BOOM))

        reason = "step 'a' failed and fail_fast is on"
        assert state.stop_reason == reason
        assert state.queue.has_news
        assert state.ready() == []
        assert state.queue.has_news
        assert state.doomed() == [(2, reason, False), (3, reason, False)]
        assert state.doomed() == []
        state.ready()
        assert not state.queue.has_news
        assert state.unsettled == 3

    @each_schedule
    def test_the_first_reason_to_stop_is_kept(self, schedule: Schedule) -> None:
        state = started(plan_of({"a": [], "b": []}), schedule=schedule, max_concurrency=1)

        state.ready()
        state.apply(INTERRUPTED)
        state.apply(AttemptStarted("a", 1, 1.0))
        state.apply(StepFailed("a", 1, 2.0, BOOM))
        state.apply(RunInterrupted(60.0, "again"))

        assert state.stop_reason == INTERRUPTED.reason
        assert state.doomed() == [(1, INTERRUPTED.reason, False)]

    @each_schedule
    def test_a_step_that_waits_for_its_next_attempt_keeps_its_place(
        self, schedule: Schedule
    ) -> None:
        planned = plan_of({"a": [], "b": []}, max_retries=2)
        state = started(planned, schedule=schedule, max_concurrency=1)

        assert names(planned, state.ready()) == ["a"]
        state.apply(AttemptStarted("a", 1, 1.0))
        state.apply(AttemptFailed("a", 1, 2.0, BOOM, 0.0))
        assert state.ready() == []
        state.apply(AttemptStarted("a", 2, 1.0))
        assert state.ready() == []
        state.apply(StepSucceeded("a", 2, 2.0, None))

        assert state.queue.has_news
        assert names(planned, state.ready()) == ["b"]

    @each_schedule
    def test_a_step_that_was_handed_out_and_skipped_leaves_its_place(
        self, schedule: Schedule
    ) -> None:
        planned = plan_of({"a": [], "b": [], "c": []})
        state = started(planned, schedule=schedule, max_concurrency=1)

        assert names(planned, state.ready()) == ["a"]
        state.apply(StepSkipped("a", 1.0, "why"))

        assert names(planned, state.ready()) == ["b"]
        assert state.ready() == []

    @each_schedule
    def test_a_step_that_was_doomed_had_no_place_to_leave(self, schedule: Schedule) -> None:
        planned = plan_of({"a": [], "x": ["a"], "b": [], "c": ["b"], "d": ["b"]})
        state = started(planned, schedule=schedule, max_concurrency=1, fail_fast=False)
        for name, end in (("a", StepFailed), ("b", StepSucceeded)):
            state.ready()
            state.apply(AttemptStarted(name, 1, 1.0))
            state.apply(end(name, 1, 2.0, BOOM))

        assert len(state.ready()) == 1
        ((step, reason, _),) = state.doomed()
        state.apply(StepSkipped(planned.steps[step].name, 3.0, reason))

        assert state.ready() == []

    @each_schedule
    def test_a_replayed_step_is_not_handed_out_again_and_takes_its_place(
        self, schedule: Schedule
    ) -> None:
        planned = plan_of({"a": [], "b": [], "c": [], "d": []})
        state = started(planned, schedule=schedule, max_concurrency=3)

        state.apply(AttemptStarted("a", 1, 1.0))
        state.apply(AttemptStarted("b", 1, 1.0))

        assert names(planned, state.ready()) == ["c"]
        state.apply(StepSucceeded("a", 1, 2.0, None))
        assert names(planned, state.ready()) == ["d"]

    @each_schedule
    def test_a_replayed_step_may_start_after_the_stop_if_it_was_ready_before(
        self, schedule: Schedule
    ) -> None:
        planned = plan_of({"a": [], "b": [], "c": [], "d": ["a"]})
        state = started(planned, schedule=schedule)
        reason = "step 'a' failed and fail_fast is on"

        for event in (
            AttemptStarted("a", 1, 1.0),
            StepFailed("a", 1, 2.0, BOOM),
            AttemptStarted("b", 1, 2.0),
            StepSkipped("d", 3.0, reason),
        ):
            state.apply(event)

        assert refused(state, AttemptStarted("d", 1, 4.0)) == "the step has ended"
        assert state.ready() == []
        assert state.doomed() == [(planned.index["c"], reason, False)]
        state.apply(StepCancelled("b", 1, 4.0, reason, None))
        state.apply(StepSkipped("c", 4.0, reason))
        assert state.unsettled == 0

    @each_schedule
    def test_all_ready_steps_are_handed_out_if_there_is_no_limit(self, schedule: Schedule) -> None:
        planned = plan_of({"b": [], "a": [], "c": ["a"]})
        state = RunState(planned, schedule=schedule)
        assert state.queue.has_news is False
        assert state.ready() == []

        state.apply(STARTED)

        assert state.queue.has_news
        assert state.ready() == [0, 1]
        assert state.ready() == []


@dataclasses.dataclass
class Scenario:
    """A pipeline, how it shall run, and what shall become of each attempt."""

    edges: Edges
    schedule: Schedule
    fail_fast: bool
    max_concurrency: int | None
    max_retries: dict[str, int]
    failures: dict[str, int]
    """How many attempts of each step fail before one succeeds."""
    hopeless: set[str]
    """Steps whose failures are of the kind that is not retried."""
    interrupted_after: int | None
    """After how many events the run is interrupted."""
    chance: random.Random

    def plan(self) -> Plan:
        return plan(
            WorkflowStep(name, nothing, needs, max_retries=self.max_retries[name])
            for name, needs in self.edges.items()
        )

    def state(self, plan: Plan) -> RunState:
        return RunState(
            plan,
            fail_fast=self.fail_fast,
            schedule=self.schedule,
            max_concurrency=self.max_concurrency,
        )

    def will_fail(self, name: str) -> bool:
        failures = self.failures[name]
        return failures >= self.max_retries[name] or (failures > 0 and name in self.hopeless)


@st.composite
def scenarios(draw: st.DrawFn, *, stops: bool = True) -> Scenario:
    edges = draw(graphs(max_steps=10))
    few = st.integers(1, 3)
    failures = st.sampled_from([0, 0, 0, 1, 2, 3])
    return Scenario(
        edges,
        draw(st.sampled_from(["tiers", "ready"])),
        draw(st.booleans()) if stops else False,
        draw(st.none() | few),
        {name: draw(few) for name in edges},
        {name: draw(failures) for name in edges},
        draw(st.sets(st.sampled_from(list(edges)), max_size=2)) if edges else set(),
        draw(st.none() | st.integers(1, 30)) if stops else None,
        random.Random(draw(st.integers(0, 2**32))),
    )


class Simulation:
    """A driver without asyncio: it does in any order what can be done next.

    It keeps its own books of what was handed out, runs and has ended, and holds the state to them
    after every event.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.plan = scenario.plan()
        self.state = scenario.state(self.plan)
        self.events: list[Event] = []
        self.handed_out: list[str] = []  # not started yet
        self.running: list[str] = []
        self.waiting: list[str] = []
        self.doomed: list[tuple[str, str]] = []  # not skipped yet
        self.attempts = dict.fromkeys(scenario.edges, 0)
        self.status: dict[str, StepStatus] = {}
        self.ever_handed_out: set[str] = set()
        self.not_handed_out_at_stop: set[str] | None = None
        self.interrupted = False

    def run(self) -> RunReport:
        self.emit(RunStarted("r1", 1_000.0, Shape(self.plan)))
        while self.state.unsettled:
            self.interrupt_if_due()
            self.scenario.chance.choice(self.possible())()
        self.emit(RunFinished(self.now, self.state.outcome))
        return self.state.report()

    @property
    def now(self) -> float:
        return float(len(self.events))

    def possible(self) -> list[Callable[[], None]]:
        """What a driver may do next; it does not end by itself before all steps have ended."""
        actions: list[Callable[[], None]] = []
        if self.state.queue.has_news:
            actions.append(self.take_news)
        else:
            assert self.state.ready() == []
            assert self.state.doomed() == []
        if self.handed_out:
            actions.append(self.start)
        if self.running:
            actions.append(self.end_attempt)
        if self.waiting:
            actions.append(self.go_on)
        if self.doomed:
            actions.append(self.skip)
        return actions

    def pick(self, names: list[Any]) -> Any:
        return names.pop(self.scenario.chance.randrange(len(names)))

    def take_news(self) -> None:
        batch = names(self.plan, self.state.ready())
        assert self.ever_handed_out.isdisjoint(batch)
        assert len(set(batch)) == len(batch)
        self.ever_handed_out.update(batch)
        self.handed_out += batch
        self.doomed += [(self.plan.steps[step].name, why) for step, why, _ in self.state.doomed()]
        self.check()

    def start(self) -> None:
        name = self.pick(self.handed_out)
        if self.state.stop_reason is not None and self.scenario.chance.random() < 0.5:
            self.emit(StepSkipped(name, self.now, self.state.stop_reason))
            self.settle(name, SKIPPED)
            return
        needed = self.scenario.edges[name]
        assert all(self.status.get(other) is SUCCESS for other in needed)
        if self.scenario.schedule == "tiers":
            earlier = next(
                position
                for position, tier in enumerate(self.plan.tiers)
                if self.plan.index[name] in tier
            )
            for tier in self.plan.tiers[:earlier]:
                assert all(other in self.status for other in names(self.plan, tier))
        self.begin_attempt(name)

    def begin_attempt(self, name: str) -> None:
        self.attempts[name] += 1
        self.running.append(name)
        self.emit(AttemptStarted(name, self.attempts[name], self.now))

    def go_on(self) -> None:
        name = self.pick(self.waiting)
        if self.state.stop_reason is not None:
            self.cancel(name)
        else:
            self.begin_attempt(name)

    def end_attempt(self) -> None:
        name = self.pick(self.running)
        attempt = self.attempts[name]
        if self.state.stop_reason is not None and self.scenario.chance.random() < 0.7:
            self.cancel(name)
        elif attempt > self.scenario.failures[name]:
            self.emit(StepSucceeded(name, attempt, self.now, f"{name} is done"))
            self.settle(name, SUCCESS)
        else:
            self.fail(name, attempt)

    def fail(self, name: str, attempt: int) -> None:
        hopeless = name in self.scenario.hopeless
        error = ActionNotAwaitableError(name, "int") if hopeless else ValueError(name, attempt)
        delay_ms = self.state.limits.after_failure(self.plan.index[name], error, self.now)
        if delay_ms is None:
            self.note_stop(self.scenario.fail_fast)
            self.emit(StepFailed(name, attempt, self.now, error))
            self.settle(name, FAILED)
        else:
            assert not hopeless
            assert attempt < self.scenario.max_retries[name]
            self.waiting.append(name)
            self.emit(AttemptFailed(name, attempt, self.now, error, delay_ms))

    def cancel(self, name: str) -> None:
        assert self.state.stop_reason is not None
        error = ValueError(name) if self.scenario.chance.random() < 0.5 else None
        self.emit(StepCancelled(name, self.attempts[name], self.now, self.state.stop_reason, error))
        self.settle(name, CANCELLED)

    def skip(self) -> None:
        name, reason = self.pick(self.doomed)
        self.emit(StepSkipped(name, self.now, reason))
        self.settle(name, SKIPPED)

    def settle(self, name: str, status: StepStatus) -> None:
        assert name not in self.status
        self.status[name] = status
        self.check()

    def interrupt_if_due(self) -> None:
        due = self.scenario.interrupted_after
        if due is not None and len(self.events) >= due and not self.interrupted:
            self.interrupted = True
            self.note_stop(True)
            self.emit(RunInterrupted(self.now, "the caller was cancelled"))

    def note_stop(self, stops: bool) -> None:
        if stops and self.not_handed_out_at_stop is None:
            never = self.scenario.edges.keys() - self.ever_handed_out
            self.not_handed_out_at_stop = set(never) - self.status.keys()

    def emit(self, event: Event) -> None:
        self.state.apply(event)
        self.events.append(event)
        step = getattr(event, "step", None)
        if step is not None and isinstance(event, AttemptStarted | AttemptFailed):
            self.check()

    def check(self) -> None:
        """Hold the state to the books."""
        in_flight = len(self.handed_out) + len(self.running) + len(self.waiting)
        if self.scenario.max_concurrency is not None:
            assert in_flight <= self.scenario.max_concurrency
        assert self.state.unsettled == len(self.scenario.edges) - len(self.status)
        for name, step in self.plan.index.items():
            result = self.state.units.results[step]
            assert (None if result is None else result.status) == self.status.get(name)
            latest = self.state.latest_attempt(step)
            assert (0 if latest is None else latest.attempt) == self.attempts[name]
            assert (self.state.running_attempt(step) is not None) == (name in self.running)


def facts(report: RunReport) -> tuple[Any, ...]:
    return report.run_id, report.wall_time, report.total_duration_ms, report.results


def replayed(scenario: Scenario, events: Sequence[Event]) -> RunState:
    state = scenario.state(scenario.plan())
    for event in events:
        state.apply(event)
    return state


class TestAnyRun:
    @given(scenarios())
    def test_every_step_has_exactly_one_result_and_every_rule_holds_at_every_event(
        self, scenario: Scenario
    ) -> None:
        simulation = Simulation(scenario)

        report = simulation.run()

        assert {name: result.status for name, result in report.items()} == simulation.status
        assert list(report) == names(simulation.plan, simulation.plan.order)
        assert {name: report[name].attempts for name in report} == simulation.attempts
        for result in report.results:
            assert len(result.history) == result.attempts
            assert [attempt.number for attempt in result.history] == list(
                range(1, result.attempts + 1)
            )
            assert (result.output is None) == (result.status is not SUCCESS)
            assert (result.reason is None) == (result.status in (SUCCESS, FAILED))

    @given(scenarios(stops=False))
    def test_without_fail_fast_exactly_the_descendants_of_failed_steps_are_skipped(
        self, scenario: Scenario
    ) -> None:
        report = Simulation(scenario).run()

        oracle = oracle_of(scenario.edges)
        expected = dict.fromkeys(scenario.edges, SUCCESS)
        for name in nx.topological_sort(oracle):
            if expected[name] is not SKIPPED and scenario.will_fail(name):
                expected[name] = FAILED
                expected.update(dict.fromkeys(nx.descendants(oracle, name), SKIPPED))
        assert {name: result.status for name, result in report.items()} == expected
        for result in report.skipped:
            assert result.reason is not None
            _, cause, _ = result.reason.split("'")
            assert expected[cause] is FAILED
            assert cause in nx.ancestors(oracle, result.step_name)

    @given(scenarios())
    def test_a_stop_skips_exactly_what_was_not_handed_out(self, scenario: Scenario) -> None:
        simulation = Simulation(scenario)

        report = simulation.run()

        never_started = {name for name in report if report[name].status is SKIPPED}
        if simulation.not_handed_out_at_stop is None:
            assert simulation.state.stop_reason is None
            assert not report.cancelled
        else:
            assert never_started >= simulation.not_handed_out_at_stop
            assert all(report[name].reason for name in never_started)

    @given(scenarios())
    def test_the_outcome_is_what_the_report_says(self, scenario: Scenario) -> None:
        simulation = Simulation(scenario)

        report = simulation.run()

        expected = "passed" if report.all_passed else "failed"
        assert simulation.state.outcome == ("interrupted" if simulation.interrupted else expected)

    @given(scenarios())
    def test_the_same_events_give_the_same_report(self, scenario: Scenario) -> None:
        simulation = Simulation(scenario)

        report = simulation.run()

        again = replayed(scenario, simulation.events)
        assert facts(again.report()) == facts(report)
        assert again.outcome == simulation.state.outcome

    @given(scenarios(), st.floats(0, 1))
    @settings(max_examples=200)
    def test_after_any_part_of_a_run_only_what_has_not_started_is_handed_out(
        self, scenario: Scenario, part: float
    ) -> None:
        simulation = Simulation(scenario)
        simulation.run()
        events = simulation.events[: 1 + int(part * (len(simulation.events) - 1))]
        has_started = {event.step for event in events if isinstance(event, AttemptStarted)}
        has_ended = {
            event.step
            for event in events
            if isinstance(event, StepSucceeded | StepFailed | StepCancelled)
        }

        state = replayed(scenario, events)
        batch = names(simulation.plan, state.ready())

        assert has_started.isdisjoint(batch)
        if scenario.max_concurrency is not None:
            assert len(has_started - has_ended) + len(batch) <= scenario.max_concurrency
        if state.stop_reason is not None:
            assert batch == []
        assert has_started.isdisjoint(names(simulation.plan, [step for step, *_ in state.doomed()]))


@functools.cache
def chain(count: int) -> Plan:
    return plan_of({f"s{i}": [f"s{i - 1}"] if i else [] for i in range(count)})


@functools.cache
def fan(count: int) -> Plan:
    middle = {f"s{i}": ["s0"] for i in range(1, count - 1)}
    return plan_of({"s0": [], **middle, "end": list(middle)})


def fold(plan: Plan, schedule: Schedule, *, fail: bool, fail_fast: bool, limit: int | None) -> int:
    """Run a pipeline at once; if it shall fail, its first step does. Return how many events."""
    state = RunState(plan, schedule=schedule, fail_fast=fail_fast, max_concurrency=limit)
    state.apply(STARTED)
    events = 1
    while state.unsettled:
        for step in state.ready():
            name = plan.steps[step].name
            state.apply(AttemptStarted(name, 1, 1.0))
            if fail:
                state.apply(StepFailed(name, 1, 2.0, BOOM))
            else:
                state.apply(StepSucceeded(name, 1, 2.0, None))
            events += 2
        for step, reason, _ in state.doomed():
            state.apply(StepSkipped(plan.steps[step].name, 3.0, reason))
            events += 1
    return events


@pytest.mark.parametrize(
    ("shape", "schedule", "fail", "fail_fast", "limit"),
    [
        pytest.param(chain, "tiers", False, True, None, id="chain-tiers"),
        pytest.param(chain, "ready", False, True, None, id="chain-ready"),
        pytest.param(fan, "tiers", False, True, None, id="fan-tiers"),
        pytest.param(fan, "ready", False, True, None, id="fan-ready"),
        pytest.param(fan, "tiers", False, True, 7, id="fan-tiers-limited"),
        pytest.param(fan, "ready", True, True, None, id="fan-ready-failed-fast"),
        pytest.param(chain, "ready", True, False, None, id="chain-ready-failed"),
        pytest.param(chain, "tiers", True, False, None, id="chain-tiers-failed"),
    ],
)
def test_100_000_steps_fold_in_linear_time(
    shape: Callable[[int], Plan],
    schedule: Schedule,
    fail: bool,
    fail_fast: bool,
    limit: int | None,
) -> None:
    few, many = shape(20_000), shape(100_000)
    events: list[int] = []

    def run(planned: Plan) -> None:
        events.append(fold(planned, schedule, fail=fail, fail_fast=fail_fast, limit=limit))

    taken, expected = cpu_seconds(lambda: run(many), 3), 5 * cpu_seconds(lambda: run(few), 3)

    assert events[0] == 1 + len(many.steps) * (1 if fail else 2) + fail
    assert taken < 2 * expected


# Of the mutants that mutmut makes of `_graph` and `_state`, these survive, since nothing that can
# be seen depends on the difference:
#
# - `RunState.__init__` with `None` for `_interrupted`, which is only asked whether it is true; with
#   `None` or 1 for `_tier_unsettled` and `None` for `_dependencies_unsettled`, which the start of
#   the run sets before anything reads them.
# - `RunState._on_step_succeeded` without its short way (`started` is `None`, or has to be): the
#   long way through `_result` comes to the same result, only later.
# - `_graph.bind` without its short way for actions without parameters: `_binding` finds none.
# - `zip(…, strict=True)` in `bind` and `_binding` with `strict` left out: `plan` makes both of its
#   arguments of the same length, and `strict` is there to keep it so.
