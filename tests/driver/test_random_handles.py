"""Whatever happens to a handle in any turn: nothing is left running, and all it says agrees."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, NamedTuple

from hypothesis import event, given
from hypothesis import strategies as st
from memory_journal import MemoryJournal

from asyncflow import (
    JournalError,
    Orchestrator,
    RunCancelledError,
    RunHandle,
    RunReport,
    WorkflowStep,
)
from asyncflow.events import Event, EventsMissed, RunFinished, RunInterrupted
from asyncflow.testing import run_in_virtual_time

TICK_S = 0.001


class Action(NamedTuple):
    """What happens, how many ticks after the start, and how many turns of the loop after that."""

    kind: str
    ticks: int
    turns: int


class Scenario(NamedTuple):
    steps: list[tuple[int, str]]
    """For each step, how many ticks it takes and how it ends."""
    is_chain: bool
    has_journal: bool
    latency: int
    event_buffer: int
    body: str
    """What the block does: awaits the report, reads events, sleeps, leaves, raises."""
    ticks: int
    actions: list[Action]


ticks = st.integers(0, 4)
scenarios = st.builds(
    Scenario,
    st.lists(
        st.tuples(ticks, st.sampled_from(["returns", "returns", "returns", "fails", "exits"])),
        max_size=3,
    ),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2),
    st.sampled_from([2, 1000]),
    st.sampled_from(["report", "events", "sleep", "leave", "raise"]),
    ticks,
    st.lists(
        st.builds(
            Action,
            st.sampled_from(["cancel", "cancel", "outer", "fails", "journal", "read", "report"]),
            ticks,
            st.integers(0, 9),
        ),
        max_size=4,
    ),
)


class Mine(Exception):
    """What the block raises by itself."""


class Exit(BaseException):
    """What ends the program; the loop lets a task raise it, unlike `SystemExit`."""


class World:
    """Runs one scenario, and checks what is left of it."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.running: Counter[str] = Counter()
        self.seen: list[Event] = []
        self.exit = Exit()
        self.done: list[str] = []
        self.reads: list[asyncio.Task[Any]] = []
        self.reports: list[RunReport | None] = []
        journal = MemoryJournal(latency_s=scenario.latency * TICK_S)
        self.journal = journal if scenario.has_journal else None
        pipeline = Orchestrator(
            [self.step(index) for index in range(len(scenario.steps))],
            journal=self.journal,
            observers=[self.seen.append],
        )
        self.run = pipeline.with_options(run_id="r", event_buffer=scenario.event_buffer).start()

    def step(self, index: int) -> WorkflowStep:
        ticks, end = self.scenario.steps[index]

        async def action() -> None:
            self.running["steps"] += 1
            try:
                await asyncio.sleep(ticks * TICK_S)
                if end == "fails":
                    raise ValueError
                if end == "exits":
                    raise self.exit
            finally:
                try:
                    await asyncio.sleep(0.5 * TICK_S)
                finally:
                    self.running["steps"] -= 1

        before = [f"s{index - 1}"] if self.scenario.is_chain and index else []
        return WorkflowStep(f"s{index}", action, before)

    async def caller(self) -> None:
        async with self.run as run:
            self.done.append("entered")
            await self.body(run)
            self.done.append("left")
        self.done.append("ended")

    async def body(self, run: RunHandle) -> None:
        scenario = self.scenario
        if scenario.body == "report":
            await run.report()
        elif scenario.body == "events":
            self.check_read([each async for each in run.events()])
        elif scenario.body == "sleep":
            await asyncio.sleep(scenario.ticks * TICK_S)
        elif scenario.body == "raise":
            await asyncio.sleep(scenario.ticks * TICK_S)
            raise Mine

    def at(self, action: Action, task: asyncio.Task[None]) -> None:
        loop = asyncio.get_running_loop()

        def act(turns: int) -> None:
            if turns:
                loop.call_soon(act, turns - 1)
            else:
                self.act(action.kind, task)

        loop.call_later(action.ticks * TICK_S, act, action.turns)

    def act(self, kind: str, task: asyncio.Task[None]) -> None:
        session = None if self.journal is None else self.journal.open_sessions.get("r")
        if kind == "cancel":
            self.run.cancel("enough")
        elif kind == "outer":
            self.done.append("outer" if task.cancel() else "too late")
        elif kind == "fails" and session is not None and session.is_watched:
            session.fail(JournalError("memory", "full"))
        elif kind == "journal" and session is not None and session.is_watched:
            session.cancel()
        elif kind == "read" and self.is_started:
            self.reads.append(asyncio.create_task(self.read()))
        elif kind == "report" and self.is_started:
            self.reads.append(asyncio.create_task(self.report()))

    @property
    def is_started(self) -> bool:
        return "not started" not in repr(self.run)

    async def read(self) -> None:
        self.check_read([each async for each in self.run.events()])

    async def report(self) -> None:
        try:
            report = await self.run.report()
        except RunCancelledError as cancelled:
            self.reports.append(cancelled.report)
        except (JournalError, Exit):
            pass
        else:
            assert self.run.status == report.status

    def check_read(self, events: list[Event | EventsMissed]) -> None:
        """Check that a reader saw each event, or how many it did not see."""
        missed = sum(each.count for each in events if isinstance(each, EventsMissed))
        got = [each for each in events if not isinstance(each, EventsMissed)]
        assert missed + len(got) == len(self.seen)
        assert missed == 0 or self.scenario.event_buffer == 2
        assert got == (self.seen[-len(got) :] if not missed else [e for e in self.seen if e in got])

    async def main(self) -> None:
        before = asyncio.all_tasks()
        task = asyncio.create_task(self.caller())
        for action in self.scenario.actions:
            self.at(action, task)
        await asyncio.wait([task])
        assert self.running["steps"] == 0  # nothing runs when the block has ended
        if self.is_started:
            assert self.run.status != "RUNNING"
            self.check_read([each async for each in self.run.events()])
        await asyncio.sleep(10)
        if self.reads:
            await asyncio.wait(self.reads)
        assert asyncio.all_tasks() == before
        assert self.journal is None or not self.journal.open_sessions
        self.check(task)
        for each in self.reads:
            each.result()
        assert {each.status for each in self.reports if each is not None} <= {"INTERRUPTED"}

    def check(self, task: asyncio.Task[None]) -> None:
        is_cancelled = task.cancelled()
        error = None if is_cancelled else task.exception()
        event("cancelled" if is_cancelled else type(error).__name__)
        finished = [each for each in self.seen if isinstance(each, RunFinished)]
        if self.seen:
            assert self.seen[-1:] == finished
        if is_cancelled or "outer" in self.done:
            # A cancellation from outside gets through, unless the program ends.
            assert "outer" in self.done
            assert is_cancelled or error is self.exit
        elif error is None:
            assert self.done == ["entered", "left", "ended"] or "too late" in self.done
        elif isinstance(error, Mine):
            assert self.scenario.body == "raise"
        elif isinstance(error, RunCancelledError):
            assert {each.kind for each in self.scenario.actions} & {"cancel", "journal"}
        elif isinstance(error, JournalError):
            assert self.run.status == "INTERRUPTED"
        else:
            assert error is self.exit
        if self.is_started and self.run.status != "INTERRUPTED":
            assert finished[0].status == self.run.status
            assert not any(isinstance(each, RunInterrupted) for each in self.seen)


@given(scenarios)
def test_nothing_is_left_running_and_all_that_a_handle_says_agrees(scenario: Scenario) -> None:
    run_in_virtual_time(World(scenario).main())
