"""Random pipelines of random steps keep the promises, with a cancellation in any turn.

Each example runs in its own virtual-time loop, so it is deterministic, and Hypothesis can replay
and shrink a failure.
"""

from __future__ import annotations

import asyncio
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from turn_counting import TurnCountingLoop

from asyncflow import StepStatus, StepTimeoutError, WorkflowStep, run_pipeline
from asyncflow.events import AttemptStarted, RunFinished, StepFailed, StepSucceeded

BEHAVIOURS = (
    "return",
    "suspend",
    "sleep",
    "fail",
    "fail later",
    "recover",
    "hang",
    "swallow",
    "break in clean-up",
    "slow clean-up",
    "cancel itself",
    "cancel itself and return",
)


class Simulated:
    """An action of the given behaviour that counts its calls and their overlaps."""

    def __init__(self, behaviour):
        self.behaviour = behaviour
        self.calls = self.running = self.highest = 0

    async def __call__(self, **outputs):
        self.calls += 1
        self.running += 1
        self.highest = max(self.highest, self.running)
        try:
            return await self._behave()
        finally:
            self.running -= 1

    async def _behave(self):
        match self.behaviour:
            case "return":
                return "value"
            case "suspend":
                await asyncio.sleep(0)
            case "sleep":
                await asyncio.sleep(0.03)
            case "fail":
                raise ValueError("at once")
            case "fail later":
                await asyncio.sleep(0.02)
                raise ValueError("later")
            case "recover":
                await asyncio.sleep(0)
                if self.calls == 1:
                    raise ValueError("the first time")
            case "hang":
                await asyncio.Event().wait()
            case "cancel itself":
                asyncio.current_task().cancel()
                await asyncio.sleep(0)
            case "cancel itself and return":
                asyncio.current_task().cancel()
            case _:
                await self._answer_a_cancellation()
        return "value"

    async def _answer_a_cancellation(self):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if self.behaviour == "swallow":
                return
            if self.behaviour == "break in clean-up":
                raise OSError("clean-up") from None
            await asyncio.sleep(0.01)
            raise


@st.composite
def pipelines(draw):
    count = draw(st.integers(1, 7))
    steps = []
    for index in range(count):
        needs = draw(st.sets(st.sampled_from(range(index)), max_size=3)) if index else set()
        steps.append(
            WorkflowStep(
                f"s{index}",
                Simulated(draw(st.sampled_from(BEHAVIOURS))),
                [f"s{need}" for need in sorted(needs)],
                max_retries=draw(st.integers(1, 3)),
                timeout_ms=draw(st.sampled_from([10, 25, 40])),
                retry=draw(st.sampled_from([0, 0, 15])),
            )
        )
    return steps


OPTIONS = st.fixed_dictionaries(
    {
        "fail_fast": st.booleans(),
        "schedule": st.sampled_from(["tiers", "ready"]),
        "max_concurrency": st.sampled_from([None, None, 1, 2]),
    }
)


def simulate(steps, options, turn=None, eager=False):
    """Run the steps; return the report or None, the events, and the number of turns."""
    events = []
    loop = TurnCountingLoop(turn, eager)
    report, cancelled = None, False

    async def main():
        nonlocal report, cancelled
        run = asyncio.Task(run_pipeline(steps, observers=[events.append], **options))
        loop.victim = run
        await asyncio.wait([run])
        loop.victim = None
        cancelled = run.cancelled()
        report = None if cancelled else run.result()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())
    assert loop.complaints == []
    assert cancelled == loop.cancel_accepted, "a cancellation from outside always gets through"
    return report, events, loop.turns


def check_promises(steps, options, report, events):
    started = [event for event in events if isinstance(event, AttemptStarted)]
    by_name = {step.name: step for step in steps}
    succeeded = set()
    for event in events:
        if isinstance(event, AttemptStarted):
            assert set(by_name[event.step].depends_on) <= succeeded
        elif isinstance(event, StepSucceeded):
            succeeded.add(event.step)
    for step in steps:
        assert step.action.running == 0
        assert step.action.highest <= 1, "two attempts of a step never overlap"
        assert step.action.calls == sum(event.step == step.name for event in started)
    if events:
        assert isinstance(events[-1], RunFinished)
    if report is not None:
        check_report(steps, options, report, events)


def check_report(steps, options, report, events):
    assert sorted(report) == sorted(step.name for step in steps)
    failed = {event.step for event in events if isinstance(event, StepFailed)}
    for step in steps:
        result = report[step.name]
        assert result.attempts == step.action.calls <= step.max_retries
        assert len(result.history) == result.attempts
        match result.status:
            case StepStatus.SUCCESS:
                assert result.output == "value" or step.action.behaviour in ("swallow",)
                assert result.error is None
            case StepStatus.FAILED:
                assert isinstance(result.error, Exception)
                assert result.attempts == step.max_retries
                assert step.name in failed
            case StepStatus.CANCELLED:
                assert options["fail_fast"]
                assert failed
                assert result.reason
            case StepStatus.SKIPPED:
                assert result.attempts == 0
                assert result.reason
                assert failed
        if step.action.behaviour == "hang" and result.status is StepStatus.FAILED:
            assert isinstance(result.error, StepTimeoutError)
    if not options["fail_fast"]:
        for step in steps:
            lost = any(report[name].status is not StepStatus.SUCCESS for name in step.depends_on)
            assert (report[step.name].status is StepStatus.SKIPPED) == lost
    assert report.all_passed == (not failed)


def copied(steps):
    return [
        WorkflowStep(
            step.name,
            Simulated(step.action.behaviour),
            step.depends_on,
            max_retries=step.max_retries,
            timeout_ms=step.timeout_ms,
            retry=step.retry,
        )
        for step in steps
    ]


@given(pipelines(), OPTIONS, st.booleans())
def test_every_run_keeps_the_promises(steps, options, eager):
    report, events, _ = simulate(steps, options, eager=eager)

    check_promises(steps, options, report, events)


@settings(max_examples=settings().max_examples // 5)  # each example runs once per turn
@given(pipelines(), OPTIONS, st.booleans())
def test_a_run_cancelled_in_any_turn_keeps_the_promises(steps, options, eager):
    for turn in itertools.count():
        fresh = copied(steps)
        report, events, turns = simulate(fresh, options, turn=turn, eager=eager)
        check_promises(fresh, options, report, events)
        if turns <= turn:
            break


@given(pipelines(), OPTIONS)
def test_the_same_pipeline_runs_the_same_way_twice(steps, options):
    again = copied(steps)

    _, events, turns = simulate(steps, options)
    _, events_again, turns_again = simulate(again, options)

    assert turns == turns_again
    assert [(type(e), getattr(e, "step", None), getattr(e, "at_ms", None)) for e in events] == [
        (type(e), getattr(e, "step", None), getattr(e, "at_ms", None)) for e in events_again
    ]
