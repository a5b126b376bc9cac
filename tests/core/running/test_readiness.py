"""Which steps are ready: clean-up steps, skips by condition, and a stopping run."""

from __future__ import annotations

from typing import Any

import pytest

from asyncflow import IllegalEventError, Signal, WorkflowStep
from asyncflow._core.pipeline.graph import Plan, plan
from asyncflow._core.running.state import RunState, Schedule
from asyncflow.events import (
    AttemptStarted,
    Event,
    RunInterrupted,
    RunStarted,
    RunTimedOut,
    StepCancelled,
    StepFailed,
    StepSkipped,
    StepSucceeded,
    StepWaiting,
)

BOOM = ValueError("boom")
TIMED_OUT = RunTimedOut(50.0, 1_500.0)
INTERRUPTED = RunInterrupted(60.0, "the caller was cancelled")
FAILED_FAST = "step 'a' failed and fail_fast is on"

each_schedule = pytest.mark.parametrize("schedule", ["tiers", "ready"])


async def nothing() -> None: ...


class Run:
    """A run state, driven by the names of steps."""

    def __init__(self, *steps: WorkflowStep, **options: Any) -> None:
        self.plan: Plan = plan(steps)
        self.state = RunState(self.plan, **options)
        self.state.apply(RunStarted("r1", 1_000.0, self.plan.depends_on))

    def apply(self, *events: Event) -> None:
        for event in events:
            self.state.apply(event)

    def take_ready(self) -> list[str]:
        return [self.plan.steps[node].name for node in self.state.queue.take_ready()]

    def take_unreachable(self) -> dict[str, tuple[str, bool]]:
        return {
            self.plan.steps[skipped.step].name: (skipped.reason, skipped.by_condition)
            for skipped in self.state.readiness.take_unreachable()
        }

    def start(self, *names: str) -> None:
        self.apply(*(AttemptStarted(name, 1, 1.0) for name in names))

    def succeed(self, *names: str) -> None:
        self.apply(*(StepSucceeded(name, 1, 2.0, None) for name in names))

    def skip_unreachable(self) -> dict[str, tuple[str, bool]]:
        """Skip unreachable steps until none is left; return them with their reasons."""
        skipped: dict[str, tuple[str, bool]] = {}
        while unreachable := self.take_unreachable():
            skipped |= unreachable
            self.apply(*(StepSkipped(name, 3.0, *why) for name, why in unreachable.items()))
        return skipped


def step(name: str, depends_on: Any = (), **policies: Any) -> WorkflowStep:
    return WorkflowStep(name, nothing, depends_on, **policies)


def failure_of(name: str) -> list[Event]:
    return [AttemptStarted(name, 1, 1.0), StepFailed(name, 1, 2.0, BOOM)]


def cancellation_of(name: str) -> list[Event]:
    return [AttemptStarted(name, 1, 1.0), StepCancelled(name, 1, 2.0, "why", None)]


@each_schedule
class TestRunIf:
    @pytest.mark.parametrize(
        ("ends", "runs"),
        [
            (
                [AttemptStarted("a", 1, 1.0), StepSucceeded("a", 1, 2.0, None)],
                "always success unless_failed",
            ),
            (failure_of("a"), "always failure"),
            (cancellation_of("a"), "always failure"),
            ([StepSkipped("a", 2.0, "why")], "always failure"),
            ([StepSkipped("a", 2.0, "why", by_condition=True)], "always"),
        ],
    )
    def test_decides_after_which_ends_of_its_dependencies_a_step_runs(
        self, schedule: Schedule, ends: list[Event], runs: str
    ) -> None:
        occasions = ("success", "unless_failed", "failure", "always")
        followers = [step(run_if, ["a"], run_if=run_if) for run_if in occasions]
        run = Run(step("a"), *followers, schedule=schedule, fail_fast=False)
        assert run.take_ready() == ["a"]

        run.apply(*ends)

        assert sorted(run.take_ready()) == runs.split()
        is_lost = "failure" in runs
        expected = {
            "success": ("it depends on step 'a', which failed", False)
            if is_lost
            else ("it depends on step 'a', which was skipped", True),
            "failure": ('run_if="failure", and no dependency failed', True),
            "unless_failed": ("it depends on step 'a', which failed", False)
            if is_lost
            else ('run_if="unless_failed", and no dependency succeeded', True),
        }
        assert run.take_unreachable() == {
            name: why for name, why in expected.items() if name not in runs.split()
        }

    def test_dependents_of_a_clean_up_step_follow_its_end(self, schedule: Schedule) -> None:
        run = Run(
            step("a"),
            step("alarm", ["a"], run_if="failure"),
            step("after", ["alarm"]),
            step("last", ["after"]),
            schedule=schedule,
        )
        run.take_ready()
        run.start("a")
        run.succeed("a")
        run.take_ready()

        skipped = run.skip_unreachable()

        assert skipped == {
            "alarm": ('run_if="failure", and no dependency failed', True),
            "after": ("it depends on step 'alarm', which was skipped", True),
            "last": ("it depends on step 'alarm', which was skipped", True),
        }
        assert run.state.status == "PASSED"


@each_schedule
class TestStop:
    def test_a_clean_up_step_waits_for_the_clean_up_step_that_it_names(
        self, schedule: Schedule
    ) -> None:
        """Even if the steps of later tiers, which never start, have settled long before."""
        run = Run(
            *(step("a"), step("b")),
            *(step("one", ["a"], run_if="always"), step("c", ["a"])),
            *(step("two", ["one"], run_if="always"), step("d", ["c"])),
            *(step(name, ["d"]) for name in "efgh"),
            schedule=schedule,
        )
        run.take_ready()
        run.start("a", "b")
        run.apply(StepFailed("a", 1, 2.0, BOOM))
        run.skip_unreachable()

        run.apply(StepCancelled("b", 1, 3.0, "why", None))

        assert run.take_ready() == ["one"]
        run.start("one")
        assert run.take_ready() == []
        run.succeed("one")
        assert run.take_ready() == ["two"]

    def test_an_interruption_skips_clean_up_steps_that_were_exempt_from_a_failure(
        self, schedule: Schedule
    ) -> None:
        run = Run(
            *(step("a"), step("b"), step("c", ["b"])),
            step("parked", ["a"], run_if="always"),
            step("later", ["parked"], run_if="failure"),
            schedule=schedule,
        )
        run.take_ready()
        run.start("a", "b")
        run.apply(StepFailed("a", 1, 2.0, BOOM))
        assert run.state.is_exempt_from_stop(3)
        assert run.take_unreachable() == {"c": (FAILED_FAST, False)}

        run.apply(INTERRUPTED)

        assert run.state.stop_reason == FAILED_FAST
        assert run.take_unreachable() == dict.fromkeys(
            ["parked", "later"], (INTERRUPTED.reason, False)
        )
        run.apply(
            *(StepSkipped(name, 70.0, "why") for name in ("c", "parked", "later")),
            StepCancelled("b", 1, 70.0, "why", None),
        )
        assert (run.take_ready(), run.take_unreachable(), run.state.readiness.unsettled) == (
            [],
            {},
            0,
        )

    def test_running_clean_up_steps_are_not_stopped_by_a_second_reason(
        self, schedule: Schedule
    ) -> None:
        run = Run(
            step("a"),
            step("one", run_if="always"),
            step("two", ["one"], run_if="always"),
            schedule=schedule,
        )
        run.take_ready()
        run.apply(*failure_of("a"))
        assert run.take_ready() == ["one"]

        run.apply(TIMED_OUT, *failure_of("one"))

        assert run.state.stop_reason == FAILED_FAST
        assert run.take_ready() == ["two"]

    def test_a_clean_up_step_that_was_ready_before_the_stop_still_starts(
        self, schedule: Schedule
    ) -> None:
        run = Run(
            *(step("a"), step("b", ["a"]), step("tidy", ["a"], run_if="always")),
            schedule=schedule,
            max_concurrency=1,
        )
        run.take_ready()
        run.start("a")
        run.succeed("a")
        assert run.take_ready() == ["b"]

        run.apply(*failure_of("b"))

        assert run.take_ready() == ["tidy"]

    def test_a_deadline_is_the_stop_reason_only_if_it_comes_first(self, schedule: Schedule) -> None:
        run = Run(step("a"), step("b"), schedule=schedule)
        run.take_ready()
        assert not run.state.has_timed_out

        run.apply(TIMED_OUT)
        assert run.state.has_timed_out
        assert run.state.stop_reason == "the run exceeded its deadline of 1500 ms"
        run.apply(TIMED_OUT, INTERRUPTED)
        assert run.state.has_timed_out

        other = Run(step("a"), step("b"), schedule=schedule)
        other.take_ready()
        other.apply(*failure_of("a"), TIMED_OUT)
        assert not other.state.has_timed_out
        assert other.state.stop_reason == FAILED_FAST


@each_schedule
def test_what_a_failure_has_lost_can_be_skipped_while_another_step_waits(
    schedule: Schedule,
) -> None:
    steps = [
        WorkflowStep("signal", Signal(bool)),
        step("a"),
        step("lost", ["a", "signal"]),
        step("alarm", ["lost"], run_if="failure"),
        step("may run", ["signal"]),
    ]
    run, follower = (Run(*steps, schedule=schedule, fail_fast=False) for _ in range(2))
    for each in (run, follower):
        assert sorted(each.take_ready()) == ["a", "signal"]
        each.apply(StepWaiting("signal", 0.0, 1_000.0), *failure_of("a"))

    run.state.readiness.skip_lost()
    skipped = run.skip_unreachable()

    # An observer that folds the events learns the same.
    follower.apply(StepSkipped("lost", 3.0, *skipped["lost"]))
    with pytest.raises(IllegalEventError):
        follower.apply(StepSkipped("may run", 3.0, "why"))
    assert skipped == {"lost": ("it depends on step 'a', which failed", False)}
    assert run.take_ready() == follower.take_ready() == ["alarm"]
    for each in (run, follower):
        each.apply(StepSucceeded("signal", 0, 4.0, True))
        assert each.take_ready() == ["may run"]


def test_nothing_is_skipped_early_because_a_condition_has_skipped_something() -> None:
    """The signal may fail yet, and a failure counts for more than a condition."""
    run = Run(
        WorkflowStep("signal", Signal(bool)),
        step("a"),
        step("both", ["a", "signal"]),
        step("alarm", ["both"], run_if="failure"),
        fail_fast=False,
    )
    run.take_ready()
    run.apply(StepWaiting("signal", 0.0, 1_000.0), StepSkipped("a", 2.0, "why", by_condition=True))

    run.state.readiness.skip_lost()
    assert run.take_unreachable() == {}
    run.apply(StepFailed("signal", 0, 3.0, BOOM))

    assert run.skip_unreachable() == {"both": ("it depends on step 'signal', which failed", False)}
    assert run.take_ready() == ["alarm"]
