"""The state of a run is a fold over its events: a table lists the phases that accept each."""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import pytest
from cpu_time import cpu_seconds
from strategies import Edges

from asyncflow import (
    Attempt,
    IllegalEventError,
    RunStatus,
    StepCrashedError,
    StepResult,
    StepStatus,
    WorkflowStep,
)
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.resume import Snapshot
from asyncflow._core.pipeline.graph import Plan, plan
from asyncflow._core.running.state import _STEP_RULES, RunState, Schedule
from asyncflow._core.running.step_runs import _Map
from asyncflow.events import (
    AttemptBegan,
    AttemptFailed,
    AttemptLocated,
    AttemptStarted,
    Event,
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
    StepWaiting,
    ThreadAbandoned,
)

SUCCESS, FAILED = StepStatus.SUCCESS, StepStatus.FAILED
SKIPPED, CANCELLED = StepStatus.SKIPPED, StepStatus.CANCELLED

BOOM = ValueError("boom")
NO_STEPS: dict[str, tuple[str, ...]] = {}

STARTED = RunStarted("r1", 1_000.0, NO_STEPS)
FINISHED = RunFinished(100.0, RunStatus.PASSED)
INTERRUPTED = RunInterrupted(50.0, "the caller was cancelled")
TIMED_OUT = RunTimedOut(50.0, 50.0)

Phase: TypeAlias = Literal[
    "before the run",
    "pending",
    "ready",
    "scheduled",
    "awaiting",
    "unreachable",
    "dropped",
    "attempting",
    "waiting",
    "queued",
    "rescheduled",
    "mapping",
    "settled",
    "after the run",
]
PHASES: dict[Phase, str] = {
    "before the run": "the step's turn has not come",
    "pending": "the step's turn has not come",
    "ready": "the step is ready",
    "scheduled": "the step is about to start",
    "awaiting": "the step waits for a signal",
    "unreachable": "the step will never start",
    "dropped": "the step was ready when the run stopped",
    "attempting": "an attempt of the step is running",
    "waiting": "the step waits for its next attempt",
    "queued": "the step is queued for its next attempt",
    "rescheduled": "the step is about to start its next attempt",
    "mapping": "the step goes through its items",
    "settled": "the step has ended",
    "after the run": "the step has ended",
}


async def nothing() -> None: ...
async def takes_any(**outputs: object) -> None: ...


def plan_of(edges: Edges, max_retries: int = 1) -> Plan:
    return plan(WorkflowStep(name, nothing, edges[name], max_retries=max_retries) for name in edges)


def started(plan: Plan, **options: Any) -> RunState:
    state = RunState(plan, **options)
    state.apply(RunStarted("r1", 1_000.0, plan.depends_on))
    return state


def names(plan: Plan, steps: Sequence[int]) -> list[str]:
    return [plan.steps[step].name for step in steps]


def state_in(phase: Phase, schedule: Schedule, limit: int | None = 1) -> RunState:
    """A state in which the step x, which depends on the step a, is in a given phase."""
    map_over = "a" if phase == "mapping" else None
    x = WorkflowStep("x", takes_any, ["a"], max_retries=3, map_over=map_over)
    planned = plan([WorkflowStep("a", nothing), x])
    options: dict[str, Any] = {"schedule": schedule, "max_concurrency": limit, "fail_fast": False}
    if phase == "before the run":
        return RunState(planned, **options)
    state = started(planned, **options)
    if phase == "pending":
        return state
    assert state.queue.take_ready() == [0]
    state.apply(AttemptStarted("a", 1, 1.0))
    state.apply(
        StepFailed("a", 1, 2.0, BOOM) if phase == "unreachable" else StepSucceeded("a", 1, 2.0, "A")
    )
    if phase not in ("ready", "unreachable", "dropped"):
        assert state.queue.take_ready() == [1]
    events: list[Event] = [INTERRUPTED] if phase == "dropped" else []
    if phase in ("attempting", "waiting", "queued", "rescheduled", "settled", "after the run"):
        events.append(AttemptStarted("x", 1, 3.0))
    if phase in ("waiting", "queued", "rescheduled"):
        events.append(AttemptFailed("x", 1, 4.0, BOOM, 0.0))
    if phase == "awaiting":
        events.append(StepWaiting("x", 3.0, 1_000.0))
    if phase == "mapping":
        events.append(MapStarted("x", 3.0))
    if phase in ("settled", "after the run"):
        events.append(StepSucceeded("x", 1, 5.0, "X"))
    if phase == "after the run":
        events.append(FINISHED)
    for event in events:
        state.apply(event)
    if phase in ("queued", "rescheduled"):
        state.queue.put_again(1, 5.0)
    if phase == "rescheduled":
        assert state.queue.take_ready() == [1]
    return state


def snapshot(state: RunState) -> dict[str, Any]:
    """Return all attributes of a state, in containers that do not change with it."""
    parts = {
        "": state,
        "readiness": state.readiness,
        "queue": state.queue,
        "history": state.history,
        "step_runs": state.step_runs,
        "deadlines": state.deadlines,
    }
    return {
        f"{part}.{name}": frozen(value)
        for part, thing in parts.items()
        for name, value in vars(thing).items()
        if not any(value is other for other in parts.values())
    }


def frozen(value: Any) -> Any:
    if isinstance(value, _Map):
        return frozen(value.nodes), value.unsettled
    if isinstance(value, dict):
        return tuple((key, frozen(each)) for key, each in value.items())
    if isinstance(value, list | deque):
        return tuple(map(frozen, value))
    return value


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
        "count": None,
        "cause": "",
        "keeps_outputs": True,
        "by_condition": False,
        "secret": False,
        "blocked_ms": 150.0,
        "where": "app.py:1 in x",
        "engine": "dask",
        "worker": "w1",
        "since": 2_000.0,
        "deadline_ms": None,
        "refused": "",
        "description": "",
        "otherwise": "",
        "sent_at": 2_000.0,
        "sent_by": "",
        "note": "",
    }
    event: Event = kind(**{each.name: values[each.name] for each in dataclasses.fields(kind)})
    return event


ENDING: tuple[Phase, ...] = (
    *("attempting", "awaiting", "waiting", "mapping"),
    *("ready", "scheduled", "dropped"),
)
ACCEPTED: dict[type, tuple[Phase, ...]] = {
    AttemptStarted: ("ready", "scheduled", "dropped", "waiting", "queued", "rescheduled"),
    AttemptBegan: ("attempting",),
    AttemptLocated: ("attempting",),
    AttemptFailed: ("attempting",),
    MapStarted: ("ready", "scheduled", "dropped"),
    StepWaiting: ("ready", "scheduled", "awaiting", "dropped"),
    # That of a fallback, which may be called where a step fails: see below for any other.
    StepSucceeded: ENDING,
    StepFailed: ENDING,
    StepCancelled: ("attempting", "waiting", "queued", "rescheduled", "mapping"),
    StepSkipped: ("ready", "scheduled", "unreachable", "dropped"),
    ThreadAbandoned: ("attempting",),
    LoopBlocked: ("attempting", "waiting", "queued", "rescheduled", "settled"),
}
WITHOUT_ATTEMPT = {MapStarted, StepSkipped, StepWaiting}
HAS_ATTEMPTED: set[Phase] = {"attempting", "waiting", "queued", "rescheduled", "settled"}
each_schedule = pytest.mark.parametrize("schedule", ["tiers", "ready"])
# Whether an event is accepted does not depend on the schedule.
by_one_schedule = pytest.mark.parametrize(
    "schedule", ["ready", pytest.param("tiers", marks=pytest.mark.exhaustive)]
)


def attempt_due(kind: type, phase: Phase, latest: int = 1) -> int:
    """The attempt that an event must be about, if one could be in this phase."""
    if phase not in HAS_ATTEMPTED:
        return 1 if kind is AttemptStarted else 0
    return latest + 1 if kind is AttemptStarted else latest


def test_the_table_has_every_event_that_changes_a_step() -> None:
    # A StepReused happens in resumed runs alone.
    assert ACCEPTED.keys() | {StepReused} == _STEP_RULES.keys()


@by_one_schedule
class TestTable:
    @pytest.mark.parametrize("phase", PHASES)
    @pytest.mark.parametrize("kind", ACCEPTED)
    def test_an_event_is_accepted_in_the_phases_of_the_table_and_refused_in_all_others(
        self, kind: type, phase: Phase, schedule: Schedule
    ) -> None:
        state = state_in(phase, schedule)
        event = event_of(kind, attempt_due(kind, phase))

        if phase in ACCEPTED[kind]:
            before = snapshot(state)
            state.apply(event)
            assert snapshot(state) != before
        elif (kind, phase) == (LoopBlocked, "after the run"):
            assert refused(state, event) == "the run is not running"
        else:
            assert refused(state, event) == PHASES[phase]

    @pytest.mark.parametrize("phase", ENDING)
    def test_a_step_succeeds_by_its_fallback_alone_while_no_attempt_runs(
        self, phase: Phase, schedule: Schedule
    ) -> None:
        state = state_in(phase, schedule)
        event = StepSucceeded("x", attempt_due(StepSucceeded, phase), 10.0, "X")

        if phase in ("attempting", "awaiting", "mapping"):
            state.apply(event)
        else:
            assert refused(state, event) == PHASES[phase]

    @pytest.mark.parametrize("attempt", [-1, 0, 1, 2, 3, 4])
    @pytest.mark.parametrize("kind", [kind for kind in ACCEPTED if kind not in WITHOUT_ATTEMPT])
    def test_an_event_of_another_attempt_than_is_due_is_refused(
        self, kind: type, attempt: int, schedule: Schedule
    ) -> None:
        for phase in ACCEPTED[kind]:
            for latest in (1, 2) if phase in ("attempting", "waiting") else (1,):
                state = state_in(phase, schedule)
                if latest == 2 and phase == "attempting":
                    state.apply(AttemptFailed("x", 1, 4.0, BOOM, 0.0))
                if latest == 2:
                    state.apply(AttemptStarted("x", 2, 5.0))
                if latest == 2 and phase == "waiting":
                    state.apply(AttemptFailed("x", 2, 6.0, BOOM, 0.0))
                due = attempt_due(kind, phase, latest)
                event = event_of(kind, attempt)

                if attempt == due or (kind is LoopBlocked and 1 <= attempt <= latest):
                    state.apply(event)
                elif phase in HAS_ATTEMPTED or kind is AttemptStarted:
                    assert "the latest attempt" in refused(state, event)
                else:
                    assert refused(state, event) == PHASES[phase]

    @pytest.mark.parametrize("phase", ["ready", "scheduled", *sorted(HAS_ATTEMPTED)])
    @pytest.mark.parametrize("kind", [kind for kind in ACCEPTED if kind not in WITHOUT_ATTEMPT])
    def test_the_table_holds_for_the_items_of_a_mapped_step(
        self, kind: type, phase: Phase, schedule: Schedule
    ) -> None:
        state = state_in("mapping", schedule)
        item = state.add_item(1, 3.0)
        if phase != "ready":
            assert state.queue.take_ready() == [item]
        if phase in HAS_ATTEMPTED:
            state.apply(AttemptStarted("x", 1, 3.0, item=0))
        if phase in ("waiting", "queued", "rescheduled"):
            state.apply(AttemptFailed("x", 1, 4.0, BOOM, 0.0, item=0))
        if phase in ("queued", "rescheduled"):
            state.queue.put_again(item, 5.0)
        if phase == "rescheduled":
            assert state.queue.take_ready() == [item]
        if phase == "settled":
            state.apply(StepSucceeded("x", 1, 5.0, "X", item=0))
        event: Any = event_of(kind, attempt_due(kind, phase))
        event = dataclasses.replace(event, item=0)

        if phase in ACCEPTED[kind]:
            before = snapshot(state)
            state.apply(event)
            assert snapshot(state) != before
        else:
            assert refused(state, event) == PHASES[phase]

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
                assert state.status == "INTERRUPTED"

    def test_a_run_exceeds_its_deadline_only_while_it_runs(self, schedule: Schedule) -> None:
        for phase in PHASES:
            state = state_in(phase, schedule)

            if phase in ("before the run", "after the run"):
                assert refused(state, TIMED_OUT) == "the run is not running"
                assert not state.has_timed_out
            else:
                state.apply(TIMED_OUT)
                assert state.stop_reason is not None

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

    def test_an_empty_run_has_nothing_to_do(self, schedule: Schedule) -> None:
        state = started(plan_of({}), schedule=schedule)

        assert (
            state.queue.take_ready(),
            state.readiness.take_unreachable(),
            state.readiness.unsettled,
        ) == ([], [], 0)
        state.apply(RunFinished(1.0, state.status))
        assert state.report().all_passed
        assert len(state.report()) == 0


def snapshot_of(plan: Plan, *stored: Event, unfinished: Sequence[str] = ()) -> Snapshot:
    """Return the snapshot of a run in which that has happened, and all of which holds."""
    run = StoredRun([RunStarted("r1", 1_000.0, plan.depends_on), *stored])
    run.apply(resumption(plan, unfinished))
    left = run.carryover
    return Snapshot("r1", 1_000.0, 5.0, left.settled(), left.pending_attempts(run.at_ms), run)


def resumption(plan: Plan, unfinished: Sequence[str] = ()) -> RunResumed:
    reasons = dict.fromkeys(unfinished, "it had not finished")
    return RunResumed("r1", 5.0, 2_000.0, plan.depends_on, {}, unfinished=reasons)


def succeeded(name: str, output: object = None) -> tuple[Event, ...]:
    return AttemptStarted(name, 1, 1.0), StepSucceeded(name, 1, 2.0, output)


def resumed(plan: Plan, *stored: Event, unfinished: Sequence[str] = (), **options: Any) -> RunState:
    """Return a run that continues after that has happened."""
    snapshot = snapshot_of(plan, *stored, unfinished=unfinished)
    state = RunState(plan, snapshot=snapshot, **options)
    state.apply(resumption(plan, unfinished))
    return state


@by_one_schedule
class TestShortForms:
    """`begin` and `succeed` are `apply` for the attempts of a plain step."""

    @pytest.mark.parametrize("attempts", [1, 2, 3])
    def test_short_forms_give_the_same_report_as_events(
        self, attempts: int, schedule: Schedule
    ) -> None:
        by_events, by_short_forms = (state_in("scheduled", schedule, None) for _ in range(2))
        for attempt in range(1, attempts + 1):
            by_events.apply(AttemptStarted("x", attempt, 3.0 * attempt))
            by_short_forms.begin(1, attempt, 3.0 * attempt)
            if attempt < attempts:
                failure = AttemptFailed("x", attempt, 3.0 * attempt + 1, BOOM, 0.0)
                by_events.apply(failure)
                by_short_forms.apply(failure)
        by_events.apply(StepSucceeded("x", attempts, 20.0, "X"))
        by_short_forms.succeed(1, 20.0, "X")

        for state in (by_events, by_short_forms):
            state.apply(FINISHED)
        assert by_short_forms.report().results == by_events.report().results
        assert by_short_forms.step_runs.output(1) == "X"

    def test_an_event_of_an_attempt_that_has_not_begun_is_refused(self, schedule: Schedule) -> None:
        state = state_in("scheduled", schedule, None)
        state.begin(1, 1, 3.0)

        with pytest.raises(IllegalEventError, match="the latest attempt"):
            state.apply(StepSucceeded("x", 2, 6.0, "X"))

        assert state.step_runs.is_attempting(1)

    def test_loop_blocks_before_and_after_the_end_are_part_of_the_result(
        self, schedule: Schedule
    ) -> None:
        state = state_in("scheduled", schedule, None)

        state.begin(1, 1, 3.0)
        state.apply(LoopBlocked("x", 1, 4.0, 110.0, "app.py:1 in x"))
        state.succeed(1, 5.0, "X")
        state.apply(LoopBlocked("x", 1, 6.0, 120.0, "app.py:1 in x"))

        result = state.result(1)
        assert result is not None
        assert (result.duration_ms, result.loop_blocked_ms) == (2.0, 230.0)


@each_schedule
class TestResumed:
    def test_only_a_run_with_a_checkpoint_is_resumed_and_only_once(
        self, schedule: Schedule
    ) -> None:
        planned = plan_of({"a": []})
        again = resumption(planned)

        for phase in PHASES:
            state = state_in(phase, schedule)
            assert refused(state, again) == "the run has no snapshot"
        assert refused(resumed(planned), again) == "the run has started"

    @pytest.mark.parametrize("phase", PHASES)
    def test_without_a_checkpoint_no_result_is_reused(
        self, phase: Phase, schedule: Schedule
    ) -> None:
        state = state_in(phase, schedule)

        may_reuse = ("before the run", "pending", "ready", "scheduled")
        why = "no result of it was stored" if phase in may_reuse else PHASES[phase]
        assert refused(state, StepReused("x", 10.0)) == why

    def test_a_clean_up_step_that_was_skipped_is_not_ready_again(self, schedule: Schedule) -> None:
        planned = plan([WorkflowStep("a", nothing), WorkflowStep("b", nothing, run_if="failure")])
        skipped = StepSkipped("b", 3.0, "why", by_condition=True)
        state = resumed(planned, *succeeded("a"), skipped, schedule=schedule)

        for name in "ab":
            state.apply(StepReused(name, 5.0))

        assert (
            state.queue.take_ready(),
            state.readiness.take_unreachable(),
            state.readiness.unsettled,
        ) == ([], [], 0)

    @pytest.mark.parametrize("is_scheduled", [True, False])
    def test_a_step_with_a_pending_attempt_is_cancelled_by_a_stop(
        self, is_scheduled: bool, schedule: Schedule
    ) -> None:
        planned = plan_of({"a": [], "b": []})
        begun = AttemptStarted("a", 1, 1.0)
        state = resumed(planned, begun, unfinished=["a"], schedule=schedule, max_concurrency=1)
        if is_scheduled:
            assert state.queue.take_ready() == [0]
        state.apply(INTERRUPTED)

        state.apply(StepCancelled("a", 1, 50.0, "why", None))

        result = state.result(0)
        assert result is not None
        assert (result.status, result.attempts, len(result.history)) == (CANCELLED, 1, 1)
        refusal = StepCancelled("b", 1, 50.0, "why", None)
        assert refused(state, refusal) == "the step was ready when the run stopped"

    @pytest.mark.parametrize("fail_fast", [True, False])
    @pytest.mark.parametrize("limit", [None, 1])
    def test_the_first_event_of_an_item_that_crashed_too_often_is_its_failure(
        self, fail_fast: bool, limit: int | None, schedule: Schedule
    ) -> None:
        mapped = WorkflowStep("x", takes_any, ["a"], map_over="a")
        planned = plan([WorkflowStep("a", nothing), mapped])
        error = StepCrashedError("x[0]", 1, 1)
        state = resumed(
            planned,
            *succeeded("a", [1]),
            MapStarted("x", 2.0),
            AttemptStarted("x", 1, 3.0, item=0),
            schedule=schedule,
            fail_fast=fail_fast,
            max_concurrency=limit,
        )

        for event in (
            StepReused("a", 5.0),
            MapStarted("x", 5.0),
            StepFailed("x", 1, 5.0, error, 0),
            StepFailed("x", 0, 5.0, ExceptionGroup("items", [error])),
            RunFinished(6.0, RunStatus.FAILED),
        ):
            state.apply(event)

        items = state.report()["x"].items
        assert items is not None
        assert [(item.status, item.attempts) for item in items] == [(FAILED, 1)]

    def test_an_unknown_item_cannot_end_before_its_first_attempt(self, schedule: Schedule) -> None:
        state = state_in("mapping", schedule)

        for event in (
            StepFailed("x", 1, 5.0, BOOM, 0),
            StepCancelled("x", 1, 5.0, "why", None, 0),
            AttemptStarted("x", 2, 5.0, item=0),
            AttemptStarted("x", 1, 5.0, item=-1),
        ):
            assert refused(state, event) == "the item has not been started"


class TestResults:
    @pytest.mark.parametrize(
        ("end", "status", "error", "reason"),
        [
            (StepSucceeded("x", 3, 40.0, "X"), SUCCESS, None, None),
            (StepFailed("x", 3, 40.0, BOOM), FAILED, BOOM, None),
            (StepCancelled("x", 3, 40.0, "why", BOOM), CANCELLED, BOOM, "why"),
            (StepCancelled("x", 3, 40.0, "why", None), CANCELLED, None, "why"),
        ],
    )
    def test_a_result_covers_all_attempts_and_their_backoffs(
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

        result = state.result(0)
        assert result is not None
        output = "X" if status is SUCCESS else None
        history = (
            Attempt(1, 2.0, 3.0, one, retry_in_ms=5.0),
            Attempt(2, 10.0, 7.0, two, retry_in_ms=13.0),
            Attempt(3, 30.0, 10.0, error, cancelled=status is CANCELLED),
        )
        assert result == StepResult("x", status, 3, 38.0, output, error, reason, 2.0, history)
        assert result.history == history

    @pytest.mark.parametrize("kind", [StepFailed, StepCancelled])
    def test_a_single_attempt_is_the_whole_history(self, kind: type) -> None:
        state = started(plan_of({"x": []}))

        state.apply(AttemptStarted("x", 1, 2.0))
        state.apply(event_of(kind, 1))

        result = state.result(0)
        assert result is not None
        assert (result.attempts, result.started_ms, result.duration_ms) == (1, 2.0, 8.0)
        assert result.recorded is None
        cancelled = kind is StepCancelled
        assert result.history == (Attempt(1, 2.0, 8.0, BOOM, cancelled=cancelled),)

    def test_a_result_has_queued_time_loop_blocks_and_abandoned_threads(self) -> None:
        state = state_in("scheduled", "tiers")

        for event in (
            AttemptStarted("x", 1, 3.0, 2.0),
            ThreadAbandoned("x", 1, 4.0),
            LoopBlocked("x", 1, 5.0, 110.0, "app.py:1 in x"),
            AttemptFailed("x", 1, 6.0, BOOM, 0.0),
            LoopBlocked("x", 1, 7.0, 120.0, "app.py:1 in x"),
            AttemptStarted("x", 2, 8.0, 0.5),
            StepSucceeded("x", 2, 9.0, "X"),
            LoopBlocked("x", 2, 9.5, 130.0, "app.py:1 in x"),
        ):
            state.apply(event)

        result = state.result(1)
        assert result is not None
        assert (result.queued_ms, result.loop_blocked_ms, result.abandoned) == (2.5, 360.0, True)
        assert result.output == "X"
        assert [attempt.queued_ms for attempt in result.history] == [2.0, 0.5]

    def test_the_result_of_a_clean_up_step_lists_its_implicit_dependencies(self) -> None:
        tidy = WorkflowStep("tidy", nothing, run_if="always")
        state = started(plan([tidy, WorkflowStep("b", nothing), WorkflowStep("a", nothing)]))

        for event in (
            *(AttemptStarted("b", 1, 1.0), StepSucceeded("b", 1, 2.0, None)),
            *(AttemptStarted("a", 1, 1.0), StepFailed("a", 1, 2.0, BOOM)),
            *(AttemptStarted("tidy", 1, 3.0), StepSucceeded("tidy", 1, 4.0, None)),
        ):
            state.apply(event)

        result = state.result(0)
        assert result is not None
        assert result.depends_on == ("b", "a")


class TestReadiness:
    @each_schedule
    def test_under_fail_fast_a_failure_makes_all_unscheduled_steps_unreachable(
        self, schedule: Schedule
    ) -> None:
        planned = plan_of({"a": [], "b": [], "c": [], "d": ["b"]})
        state = started(planned, schedule=schedule, fail_fast=True, max_concurrency=2)

        assert names(planned, state.queue.take_ready()) == ["a", "b"]
        state.apply(AttemptStarted("a", 1, 1.0))
        state.apply(StepFailed("a", 1, 2.0, BOOM))

        reason = "step 'a' failed and fail_fast is on"
        assert state.stop_reason == reason
        assert state.queue.is_dirty
        assert state.queue.take_ready() == []
        assert state.readiness.take_unreachable() == [(2, reason, False), (3, reason, False)]
        assert state.readiness.take_unreachable() == []
        state.queue.take_ready()
        assert not state.queue.is_dirty
        assert state.readiness.unsettled == 3

    @each_schedule
    def test_the_first_stop_reason_stays_until_the_run_is_interrupted_again(
        self, schedule: Schedule
    ) -> None:
        state = started(plan_of({"a": [], "b": []}), schedule=schedule, max_concurrency=1)

        state.queue.take_ready()
        state.apply(INTERRUPTED)
        state.apply(AttemptStarted("a", 1, 1.0))
        state.apply(StepFailed("a", 1, 2.0, BOOM))
        assert state.stop_reason == INTERRUPTED.reason
        state.apply(RunInterrupted(60.0, "again"))

        assert state.stop_reason == "again"
        # What the first one has kept from starting keeps its reason.
        assert state.readiness.take_unreachable() == [(1, INTERRUPTED.reason, False)]

    @each_schedule
    @pytest.mark.parametrize("phase", ["queued", "rescheduled"])
    def test_a_queued_step_that_is_cancelled_is_not_scheduled_and_frees_its_slot(
        self, schedule: Schedule, phase: str
    ) -> None:
        planned = plan_of({"a": [], "b": []}, max_retries=2)
        state = started(planned, schedule=schedule, max_concurrency=1)
        state.queue.take_ready()
        state.apply(AttemptStarted("a", 1, 1.0))
        state.apply(AttemptFailed("a", 1, 2.0, BOOM, 0.0))
        state.apply(StepSkipped("b", 2.0, "why", by_condition=True))
        state.queue.put_again(0, 3.0)
        if phase == "rescheduled":
            assert state.queue.take_ready() == [0]

        state.apply(StepCancelled("a", 1, 4.0, "why", BOOM))

        assert state.queue.take_ready() == []
        assert state.queue._room == 1

    @each_schedule
    def test_a_scheduled_step_that_is_skipped_frees_its_slot(self, schedule: Schedule) -> None:
        planned = plan_of({"a": [], "b": [], "c": []})
        state = started(planned, schedule=schedule, max_concurrency=1)

        assert names(planned, state.queue.take_ready()) == ["a"]
        state.apply(StepSkipped("a", 1.0, "why"))

        assert names(planned, state.queue.take_ready()) == ["b"]
        assert state.queue.take_ready() == []

    @each_schedule
    def test_an_unreachable_step_frees_no_slot(self, schedule: Schedule) -> None:
        planned = plan_of({"a": [], "x": ["a"], "b": [], "c": ["b"], "d": ["b"]})
        state = started(planned, schedule=schedule, max_concurrency=1, fail_fast=False)
        for name, end in (("a", StepFailed), ("b", StepSucceeded)):
            state.queue.take_ready()
            state.apply(AttemptStarted(name, 1, 1.0))
            state.apply(end(name, 1, 2.0, BOOM))

        assert len(state.queue.take_ready()) == 1
        ((step, reason, _),) = state.readiness.take_unreachable()
        state.apply(StepSkipped(planned.steps[step].name, 3.0, reason))

        assert state.queue.take_ready() == []

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
        assert state.queue.take_ready() == []
        assert state.readiness.take_unreachable() == [(planned.index["c"], reason, False)]
        state.apply(StepCancelled("b", 1, 4.0, reason, None))
        state.apply(StepSkipped("c", 4.0, reason))
        assert state.readiness.unsettled == 0

    @each_schedule
    def test_a_replayed_step_cannot_start_after_the_stop_if_it_was_not_ready_before(
        self, schedule: Schedule
    ) -> None:
        state = started(plan_of({"a": [], "b": ["a"]}), schedule=schedule)

        state.apply(INTERRUPTED)

        assert refused(state, AttemptStarted("b", 1, 60.0)) == PHASES["unreachable"]
        state.apply(AttemptStarted("a", 1, 60.0))

    @each_schedule
    def test_queued_time_counts_from_when_a_step_is_ready(self, schedule: Schedule) -> None:
        tidy = WorkflowStep("tidy", nothing, run_if="always")
        first, *others = plan_of({"a": [], "b": ["a"], "c": ["a"]}).steps
        state = started(plan([first, *others, tidy]), schedule=schedule, max_concurrency=1)
        assert state.queue.queued_ms(0, 5.0) == 5.0
        state.apply(AttemptStarted("a", 1, 5.0))

        state.apply(StepSucceeded("a", 1, 7.0, None))

        assert state.queue.queued_ms(2, 10.0) == 3.0
        state.apply(AttemptStarted("b", 1, 11.0))
        state.apply(AttemptStarted("c", 1, 11.0))
        state.apply(StepFailed("b", 1, 12.0, BOOM))
        state.apply(StepCancelled("c", 1, 14.0, "why", None))
        assert state.queue.queued_ms(3, 20.0) == 6.0

    def test_queued_time_of_a_deferred_clean_up_step_counts_from_when_it_is_ready(self) -> None:
        tidy = WorkflowStep("tidy", nothing, ["a"], run_if="always")
        steps = plan_of({"a": [], "b": [], "c": ["a"]}).steps
        state = started(plan([*steps, tidy]), schedule="ready", max_concurrency=3)
        for event in (
            *(AttemptStarted("a", 1, 1.0), AttemptStarted("b", 1, 1.0)),
            *(StepFailed("a", 1, 2.0, BOOM), StepCancelled("b", 1, 5.0, "why", None)),
        ):
            state.apply(event)
        assert state.queue.take_ready() == []

        state.apply(StepSkipped("c", 6.0, "why"))

        assert state.queue.take_ready() == [3]
        assert state.queue.queued_ms(3, 8.0) == 2.0


@functools.cache
def chain(count: int) -> Plan:
    return plan_of({f"s{i}": [f"s{i - 1}"] if i else [] for i in range(count)})


@functools.cache
def fan(count: int) -> Plan:
    middle = {f"s{i}": ["s0"] for i in range(1, count - 1)}
    return plan_of({"s0": [], **middle, "end": list(middle)})


def fold(plan: Plan, schedule: Schedule, *, fail: bool, fail_fast: bool, limit: int | None) -> int:
    """Run a pipeline; if it must fail, its first step does. Return the number of events."""
    state = RunState(plan, schedule=schedule, fail_fast=fail_fast, max_concurrency=limit)
    state.apply(STARTED)
    events = 1
    while state.readiness.unsettled:
        for step in state.queue.take_ready():
            name = plan.steps[step].name
            state.apply(AttemptStarted(name, 1, 1.0))
            if fail:
                state.apply(StepFailed(name, 1, 2.0, BOOM))
            else:
                state.apply(StepSucceeded(name, 1, 2.0, None))
            events += 2
        for step, reason, _ in state.readiness.take_unreachable():
            state.apply(StepSkipped(plan.steps[step].name, 3.0, reason))
            events += 1
    return events


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("shape", "schedule", "fail", "fail_fast", "limit"),
    [
        pytest.param(chain, "tiers", False, True, None, id="chain-tiers"),
        pytest.param(fan, "ready", False, True, None, id="fan-ready"),
        pytest.param(fan, "tiers", False, True, 7, id="fan-tiers-limited"),
        pytest.param(fan, "ready", True, True, None, id="fan-ready-failed-fast"),
        pytest.param(chain, "ready", True, False, None, id="chain-ready-failed"),
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


# Of the mutants that mutmut makes of `_core.running.state`, `_core.running.scheduler`,
# `_core.running.deadlines`, `_core.running.step_runs` and `_core.pipeline.graph`, these survive
# the tests of the core, since no visible result depends on the difference:
#
# - `RunState.__init__` with `None` for `_interrupted`, and `_on_run_interrupted` with `None` for
#   `exempt_cleanups`, which are only tested for truth.
# - `RunState._on_step_succeeded` without its fast path (`started` is `None`): the slow path through
#   `AttemptLog.result` gives the same result.
# - `Readiness.__init__` with `None` for what the start of the run sets before anything reads it.
# - `Readiness` that checks clean-up steps while other steps have not settled: they are not ready,
#   and are deferred once more.
# - `Readiness` that never takes its fast path for plain pipelines.
# - `bind` without its fast path for actions without parameters: `_binding` finds none.
