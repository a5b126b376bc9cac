"""The items of a mapped step are nodes of the run, numbered after all steps."""

from __future__ import annotations

from typing import Any

import pytest

from asyncflow import Attempt, IllegalEventError, Pool, RunStatus, StepStatus, WorkflowStep
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
    RunStarted,
    RunTimedOut,
    StepCancelled,
    StepFailed,
    StepSucceeded,
    ThreadAbandoned,
)

BOOM = ValueError("boom")
INTERRUPTED = RunInterrupted(60.0, "the caller was cancelled")


async def nothing() -> None: ...


async def takes_a(a: object) -> None: ...


def mapped(*, run_if: Any = "success", pool: Pool | None = None, **options: Any) -> RunState:
    """Return a run whose second step, m, has started its map."""
    state = RunState(
        plan(
            [
                WorkflowStep("a", nothing),
                WorkflowStep(
                    *("m", takes_a, ["a"]), map_over="a", max_retries=3, run_if=run_if, pool=pool
                ),
            ]
        ),
        **options,
    )
    state.apply(RunStarted("r1", 1_000.0, state._plan.depends_on))
    assert state.queue.take_ready() == [0]
    state.apply(AttemptStarted("a", 1, 1.0))
    state.apply(StepSucceeded("a", 1, 2.0, "abc"))
    assert state.queue.take_ready() == [1]
    state.apply(MapStarted("m", 3.0))
    return state


def refused(state: RunState, event: Event) -> str:
    with pytest.raises(IllegalEventError) as refusal:
        state.apply(event)
    assert refusal.value.event is event
    return refusal.value.state


class TestItems:
    def test_an_expanded_item_is_scheduled(self) -> None:
        state = mapped()
        assert not state.queue.is_dirty

        one, two = state.add_item(1, 4.0), state.add_item(1, 5.0)

        assert (one, two) == (2, 3)
        assert state.queue.is_dirty
        assert state.queue.take_ready() == [2, 3]
        assert [state.step_runs.item_of(node) for node in range(4)] == [None, None, 0, 1]
        assert [state.step_runs.is_item(node) for node in range(4)] == [False, False, True, True]
        assert [state.step_runs.name_of(node) for node in range(4)] == ["a", "m", "m[0]", "m[1]"]
        assert state.step_runs.owner_of(3) == 1
        assert state.step_runs.items(1) == [2, 3]

    def test_a_mapped_step_ends_after_its_items_and_has_their_results(self) -> None:
        state = mapped(max_concurrency=5)
        for _ in range(2):
            state.add_item(1, 4.0)
        state.queue.take_ready()
        for event in (
            AttemptStarted("m", 1, 5.0, 1.0, item=1),
            StepSucceeded("m", 1, 7.0, "B", item=1),
            AttemptStarted("m", 1, 6.0, 2.0, item=0),
            ThreadAbandoned("m", 1, 6.5, item=0),
            LoopBlocked("m", 1, 7.0, 150.0, "app.py:1 in m", item=0),
            AttemptFailed("m", 1, 7.0, BOOM, 0.0, item=0),
            AttemptStarted("m", 2, 8.0, 4.0, item=0),
        ):
            state.apply(event)
        end = StepSucceeded("m", 0, 10.0, ["A", "B"])
        assert refused(state, end) == "the step goes through its items"

        state.apply(StepSucceeded("m", 2, 9.0, "A", item=0))
        assert refused(state, StepSucceeded("m", 1, 10.0, [])) == "the step goes through its items"
        state.apply(end)

        result = state.result(1)
        assert result is not None
        assert result.items is not None
        first, second = result.items
        assert (first.step_name, first.status, first.output) == ("m[0]", StepStatus.SUCCESS, "A")
        assert first.history == (
            Attempt(1, 6.0, 1.0, BOOM, 2.0, retry_in_ms=0.0),
            Attempt(2, 8.0, 1.0, None, 4.0),
        )
        assert (first.attempts, first.duration_ms, first.started_ms) == (2, 3.0, 6.0)
        assert (first.queued_ms, first.loop_blocked_ms, first.abandoned) == (6.0, 150.0, True)
        assert (second.step_name, second.output, second.depends_on) == ("m[1]", "B", ("a",))
        assert second.history == (Attempt(1, 5.0, 2.0, None, 1.0),)
        assert (result.step_name, result.status, result.attempts) == ("m", StepStatus.SUCCESS, 3)
        assert (result.output, result.error, result.reason) == (["A", "B"], None, None)
        assert (result.started_ms, result.duration_ms, result.history) == (3.0, 7.0, ())
        assert (result.queued_ms, result.loop_blocked_ms, result.abandoned) == (7.0, 150.0, True)
        assert result.depends_on == ("a",)
        assert state.readiness.unsettled == 0
        state.apply(RunFinished(11.0, RunStatus.PASSED))
        assert list(state.report()) == ["a", "m"]


class TestRefusal:
    def test_a_step_has_no_items_before_its_map_starts(self) -> None:
        state = RunState(plan([WorkflowStep("a", nothing)]))
        state.apply(RunStarted("r1", 1_000.0, {}))

        reason = refused(state, AttemptStarted("a", 1, 1.0, item=0))

        assert reason == "the step has not begun to go through its items"

    @pytest.mark.parametrize(
        "event",
        [
            AttemptStarted("m", 2, 5.0, item=0),
            AttemptStarted("m", 0, 5.0, item=0),
            AttemptStarted("m", 1, 5.0, item=-1),
            AttemptFailed("m", 1, 5.0, BOOM, 0.0, item=0),
            StepSucceeded("m", 1, 5.0, None, item=0),
            StepFailed("m", 1, 5.0, BOOM, item=0),
            StepCancelled("m", 1, 5.0, "why", None, item=0),
            LoopBlocked("m", 1, 5.0, 150.0, "", item=0),
            ThreadAbandoned("m", 1, 5.0, item=0),
        ],
    )
    def test_an_item_begins_with_its_first_attempt(self, event: Event) -> None:
        state = mapped()

        assert refused(state, event) == "the item has not been started"
        assert len(state.step_runs.steps) == 2
        assert state.step_runs.items(1) == []

    @pytest.mark.parametrize("is_scheduled", [False, True])
    def test_an_item_may_fail_without_an_attempt(self, is_scheduled: bool) -> None:
        state = mapped()
        state.add_item(1, 4.0)
        if is_scheduled:
            state.queue.take_ready()

        refused(state, StepFailed("m", 1, 5.0, BOOM, item=0))
        assert state.step_runs.ends_of_items(1) is None
        state.apply(StepFailed("m", 0, 5.0, BOOM, item=0))

        assert len(state.step_runs.ends_of_items(1) or ()) == 1


class TestReplay:
    @pytest.mark.parametrize(
        "end",
        [
            StepFailed("m", 0, 5.0, BOOM, item=1),
            StepSucceeded("m", 0, 5.0, "instead", item=1, error=BOOM),
        ],
    )
    def test_replayed_items_that_made_no_attempt_are_created_by_their_end(self, end: Event) -> None:
        state = mapped()

        state.apply(end)

        assert [(item.name, item.error) for item in state.step_runs.ends_of_items(1) or ()] == [
            ("m[1]", BOOM)
        ]

    def test_replayed_items_are_created_by_their_first_attempt(self) -> None:
        state = mapped(max_concurrency=2)

        state.apply(AttemptStarted("m", 1, 5.0, item=1))
        state.apply(AttemptStarted("m", 1, 5.0, item=0))

        assert state.step_runs.items(1) == [3, 2]
        assert state.queue.take_ready() == []
        state.apply(StepSucceeded("m", 1, 6.0, "B", item=1))
        assert state.step_runs.ends_of_items(1) is None
        state.apply(StepSucceeded("m", 1, 7.0, "A", item=0))
        results = state.step_runs.ends_of_items(1)
        assert results is not None
        assert [result.output for result in results] == ["A", "B"]

    def test_an_item_that_was_scheduled_before_the_stop_may_start_after_it(self) -> None:
        state = mapped()
        state.apply(RunTimedOut(50.0, 50.0))

        state.apply(AttemptStarted("m", 1, 51.0, item=0))

        assert state.step_runs.running_attempt(2) is not None


class TestStop:
    @pytest.mark.parametrize(
        ("run_if", "stop", "is_exempt_from_stop"),
        [
            ("success", INTERRUPTED, False),
            ("success", RunTimedOut(50.0, 50.0), False),
            ("always", INTERRUPTED, False),
            ("always", RunTimedOut(50.0, 50.0), True),
        ],
    )
    def test_queued_items_are_dropped_unless_their_step_is_exempt_from_the_stop(
        self, run_if: Any, stop: Event, is_exempt_from_stop: bool
    ) -> None:
        state = mapped(run_if=run_if, max_concurrency=1)
        running, waiting = state.add_item(1, 4.0), state.add_item(1, 4.0)
        assert state.queue.take_ready() == [running]
        state.apply(AttemptStarted("m", 1, 5.0, item=0))

        state.apply(stop)

        assert state.is_exempt_from_stop(running) is is_exempt_from_stop
        assert state.queue.is_queued(waiting) is is_exempt_from_stop
        state.apply(StepSucceeded("m", 1, 61.0, "A", item=0))
        assert state.queue.take_ready() == ([waiting] if is_exempt_from_stop else [])
        assert (state.step_runs.ends_of_items(1) is None) is is_exempt_from_stop

    def test_a_queued_item_that_is_dropped_frees_no_slot(self) -> None:
        state = mapped(run_if="always", max_concurrency=1)
        one, two, three = (state.add_item(1, 4.0) for _ in range(3))
        assert state.queue.take_ready() == [one]

        state.drop_item(two)

        assert state.queue.take_ready() == []
        state.apply(AttemptStarted("m", 1, 5.0, item=0))
        state.apply(StepSucceeded("m", 1, 6.0, "A", item=0))
        assert state.queue.take_ready() == [three]


class TestBlocked:
    def test_a_late_loop_block_counts_for_the_item_and_its_step(self) -> None:
        state = mapped()
        state.add_item(1, 4.0)
        state.queue.take_ready()
        state.apply(AttemptStarted("m", 1, 5.0, item=0))
        state.apply(LoopBlocked("m", 1, 6.0, 110.0, "", item=0))
        state.apply(StepSucceeded("m", 1, 400.0, "A", item=0))
        late = LoopBlocked("m", 1, 401.0, 390.0, "app.py:1 in m", item=0)

        state.apply(late)
        state.apply(StepSucceeded("m", 0, 402.0, ["A"]))
        state.apply(late)

        result = state.result(1)
        assert result is not None
        assert result.items is not None
        assert [item.loop_blocked_ms for item in result.items] == [890.0]
        assert result.loop_blocked_ms == 890.0
        assert result.output == ["A"]
