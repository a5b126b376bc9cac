"""One pipeline with every policy on an engine, cancelled in each turn of the event loop.

The explorer, `tests.explore`, does the same with random pipelines that run without an engine.
"""

from __future__ import annotations

import asyncio
import itertools

import pytest
from fake_engine import FakeEngine
from turn_counting import TurnCountingLoop

from asyncflow import Pool, Retry, StepStatus, WorkflowStep, current_step, run_pipeline
from asyncflow.events import AttemptStarted, RunFinished, RunInterrupted, StepSkipped


class World:
    """The pipeline and a record of what its actions did."""

    def __init__(self):
        self.pools = Pool(1), Pool(2, per_second=1_000, tokens_per_minute=60e6, retry_budget=0.5)
        self.running = {}
        self.opened = self.closed = 0
        self.overlaps = []

    def steps(self):
        narrow, paced = self.pools
        doubling = Retry(base_ms=1, jitter=False, until=lambda value: value != "no")
        return [
            WorkflowStep("items", self.items),
            WorkflowStep(
                *("map", self.item, ["items"]),
                map_over="items",
                pool=narrow,
                priority=1,
                max_retries=2,
                retry=Retry(on=lambda error: 1),
            ),
            WorkflowStep(
                *("paced", self.item, ["items"]),
                map_over="items",
                pool=paced,
                slots=lambda items: 1 + items % 2,
                tokens=1_000,
                max_retries=2,
            ),
            WorkflowStep("refused", self.refused, max_retries=3, retry=doubling, pool=paced),
            WorkflowStep("late", self.hang, timeout_ms=3, max_retries=2, pool=narrow),
            WorkflowStep("no heartbeat", self.hang, heartbeat_ms=2, deadline_ms=5),
            WorkflowStep("not wanted", self.hang, when=lambda: False),
            WorkflowStep("wanted", self.quick, ["items"], when=lambda items: True),
            WorkflowStep("failure", self.clean_up, ["late"], run_if="failure", pool=narrow),
            WorkflowStep("always", self.clean_up, run_if="always", max_retries=2, retry=1),
            WorkflowStep("after", self.clean_up, ["always"], run_if="always"),
        ]

    async def _tracked(self, work):
        step = current_step()
        key = step.step_name, step.item
        if self.running.get(key):
            self.overlaps.append(key)
        self.running[key] = True
        try:
            return await work
        finally:
            self.running[key] = False

    async def items(self):
        return Stream(self)

    async def item(self, items):
        async def work():
            await asyncio.sleep(0.0005)
            if items == 1 and current_step().attempt == 1:
                raise ValueError
            return items

        return await self._tracked(work())

    async def refused(self):
        async def work():
            return "no" if current_step().attempt < 3 else "yes"

        return await self._tracked(work())

    async def hang(self):
        async def work():
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.0005)

        return await self._tracked(work())

    async def quick(self, items):
        await asyncio.sleep(0)

    async def clean_up(self):
        async def work():
            await asyncio.sleep(0.001)
            if current_step().step_name == "always" and current_step().attempt == 1:
                raise ValueError
            return sorted(current_step().results)

        return await self._tracked(work())


class Stream:
    """Yields three items to each consumer."""

    def __init__(self, world):
        self.world = world

    async def __aiter__(self):
        self.world.opened += 1
        try:
            for n in range(3):
                await asyncio.sleep(0)
                yield n
        finally:
            self.world.closed += 1


def simulate(turn, eager, options):
    world, events = World(), []
    options = {**options, "engine": FakeEngine(options["engine"])}
    loop = TurnCountingLoop(turn, eager)
    outcome = None

    async def main():
        nonlocal outcome
        run = asyncio.Task(run_pipeline(world.steps(), observers=[events.append], **options))
        loop.victim = run
        await asyncio.wait([run])
        loop.victim = None
        outcome = None if run.cancelled() else run.result()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == []

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())
    assert loop.complaints == []
    assert (outcome is None) == loop.cancel_accepted
    return world, events, outcome, loop.turns


def check(world, events, report):
    assert [(pool.in_use, pool.waiting) for pool in world.pools] == [(0, 0), (0, 0)]
    assert not any(world.running.values())
    assert world.overlaps == []
    assert world.opened == world.closed
    if events:
        assert isinstance(events[-1], RunFinished)
    interrupted = [at for at, each in enumerate(events) if isinstance(each, RunInterrupted)]
    # A cancellation after the end of the last step interrupts nothing.
    assert len(interrupted) <= (report is None and bool(events))
    for at in interrupted:
        assert not any(isinstance(each, AttemptStarted) for each in events[at:])
    if report is not None:
        assert len(report) == 11


@pytest.mark.parametrize(
    ("eager", "options"),
    [
        (False, {"fail_fast": False, "schedule": "ready", "engine": 100}),
        (True, {"fail_fast": True, "max_concurrency": 3, "deadline_ms": 30, "engine": 2}),
    ],
)
def test_a_cancellation_in_any_turn_of_a_run_with_every_policy_leaks_and_loses_nothing(
    eager, options
):
    for turn in itertools.count():
        world, events, report, turns = simulate(turn, eager, options)
        check(world, events, report)
        if turns <= turn:
            break
    assert turns > 30
    assert report["always"].status is StepStatus.SUCCESS
    assert report["after"].status is StepStatus.SUCCESS
    if not options["fail_fast"]:
        assert report["map"].output == report["paced"].output == [0, 1, 2]
        assert report["failure"].status is StepStatus.SUCCESS
        assert [e.step for e in events if isinstance(e, StepSkipped)] == ["not wanted"]
