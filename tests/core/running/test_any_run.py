"""The invariants hold after every event of random runs, and a replay ends the same."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Edges, graphs

from asyncflow import (
    ActionNotAwaitableError,
    Pool,
    RunReport,
    StepStatus,
    WorkflowStep,
)
from asyncflow._core.analysis.statistics import step_runs, step_runs_of
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.pipeline.graph import Plan, plan
from asyncflow._core.running.state import RunState, Schedule
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    MapStarted,
    RunFinished,
    RunInterrupted,
    RunStarted,
    RunTimedOut,
    StepCancelled,
    StepFailed,
    StepSkipped,
    StepSucceeded,
)

FULL = frozenset({"deadline_ms", "until", "run_if"})
"""What makes the driver apply events where it otherwise uses the short form."""

SUCCESS, FAILED = StepStatus.SUCCESS, StepStatus.FAILED
SKIPPED, CANCELLED = StepStatus.SKIPPED, StepStatus.CANCELLED


async def takes_any(**outputs: object) -> None: ...


@dataclasses.dataclass
class Scenario:
    """A pipeline, the options of its run, and how each attempt ends."""

    edges: Edges
    schedule: Schedule
    fail_fast: bool
    max_concurrency: int | None
    max_retries: dict[str, int]
    failures: dict[str, int]
    """How many attempts of each step, or of each of its items, fail before one succeeds."""
    unretryable: set[str]
    """Steps that fail with an error that is never retried."""
    run_if: dict[str, str]
    items: dict[str, int]
    """How many items a step has, if it is mapped."""
    conditions: dict[str, str]
    """How the condition of a step ends: "no", or "raises"."""
    pools: dict[str, int]
    """The size of the pool that a step uses. Steps with the same size share one pool."""
    step_deadlines: dict[str, float]
    deadline_ms: float | None
    interrupted_after: int | None
    """After how many events the run is interrupted."""
    chance: random.Random

    def plan(self) -> Plan:
        pools = {size: Pool(size) for size in self.pools.values()}
        return plan(
            WorkflowStep(
                name,
                takes_any,
                needs,
                max_retries=self.max_retries[name],
                retry=3 if self.max_retries[name] > 1 else 0,
                run_if=self.run_if.get(name, "success"),  # type: ignore[arg-type]
                map_over=needs[0] if self.is_mapped(name) else None,
                when=(lambda: None) if name in self.conditions else None,
                pool=pools.get(self.pools.get(name, 0)),
                deadline_ms=self.step_deadlines.get(name),
            )
            for name, needs in self.edges.items()
        )

    def state(self, plan: Plan) -> RunState:
        return RunState(
            plan,
            fail_fast=self.fail_fast,
            schedule=self.schedule,
            max_concurrency=self.max_concurrency,
            deadline_ms=self.deadline_ms,
        )

    def is_mapped(self, name: str) -> bool:
        return name in self.items and bool(self.edges[name])

    def will_fail(self, name: str) -> bool:
        failures = self.failures[name]
        if self.is_mapped(name) and not self.items[name]:
            return False
        return failures >= self.max_retries[name] or (failures > 0 and name in self.unretryable)


@st.composite
def scenarios(draw: st.DrawFn, *, stops: bool = True) -> Scenario:
    edges = draw(graphs(max_steps=9))
    steps = st.sampled_from(list(edges)) if edges else st.nothing()
    few = st.integers(1, 3)
    failures = st.sampled_from([0, 0, 0, 1, 2, 3])

    def some(values: st.SearchStrategy[Any]) -> dict[str, Any]:
        return draw(st.dictionaries(steps, values, max_size=3)) if edges else {}

    return Scenario(
        edges,
        draw(st.sampled_from(["tiers", "ready"])),
        draw(st.booleans()) if stops else False,
        draw(st.none() | few),
        {name: draw(few) for name in edges},
        {name: draw(failures) for name in edges},
        set(some(st.none())),
        some(st.sampled_from(["failure", "always", "unless_failed"])),
        some(st.integers(0, 4)),
        some(st.sampled_from(["no", "raises"])),
        some(st.integers(1, 2)),
        some(st.integers(2, 30)) if stops else {},
        draw(st.none() | st.integers(1, 40)) if stops else None,
        draw(st.none() | st.integers(1, 40)) if stops else None,
        random.Random(draw(st.integers(0, 2**32))),
    )


class Simulation:
    """A driver without asyncio, which picks each next action at random.

    It tracks which nodes are scheduled, run and have ended, and compares the state with that after
    every event. A node is the number of a step or item, as in the state.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.plan = scenario.plan()
        self.state = scenario.state(self.plan)
        self.events: list[Event] = []
        self.scheduled: list[int] = []  # the first attempt has not started yet
        self.running: list[int] = []
        self.waiting: list[int] = []
        self.queued: list[int] = []  # for another attempt
        self.rescheduled: list[int] = []
        self.mapping: dict[int, int] = {}  # how many items are not expanded yet
        self.items: dict[int, list[int]] = {}
        self.is_complete: dict[int, bool] = {}
        self.unreachable: list[tuple[int, str, bool]] = []  # not skipped yet
        self.attempts: dict[int, int] = {}
        self.status: dict[int, StepStatus] = {}
        self.by_condition: set[int] = set()
        self.ever_scheduled: set[int] = set()
        self.dropped_items: set[int] = set()
        self.unscheduled_at_stop: set[int] | None = None
        self.ready_at_stop: set[int] = set()
        self.interrupted = False
        self.timed_out = False

    def run(self) -> RunReport:
        self.emit(RunStarted("r1", 1_000.0, self.plan.depends_on))
        while self.state.readiness.unsettled:
            self.stop_if_due()
            self.scenario.chance.choice(self.possible())()
            self.check()
        self.emit(RunFinished(self.now, self.state.status))
        return self.state.report()

    @property
    def now(self) -> float:
        return float(len(self.events))

    @property
    def in_flight(self) -> list[int]:
        return [*self.scheduled, *self.running, *self.rescheduled]

    def name(self, node: int) -> str:
        return self.state.step_runs.steps[node].name

    def is_stopping(self, node: int) -> bool:
        return self.state.stop_reason is not None and not self.state.is_exempt_from_stop(node)

    def happens(self, probability: float) -> bool:
        return self.scenario.chance.random() < probability

    def possible(self) -> list[Callable[[], None]]:
        """Return what a driver may do next: at least one action until all steps have ended."""
        actions: list[Callable[[], None]] = []
        if self.state.queue.is_dirty:
            actions.append(self.take_ready)
        else:
            assert self.state.queue.take_ready() == []
            assert self.state.readiness.take_unreachable() == []
            self.check_that_no_queued_node_fits()
        for nodes, action in (
            (self.scheduled, self.start),
            (self.running, self.end_attempt),
            (self.waiting, self.end_backoff),
            (self.rescheduled, self.start_rescheduled),
            (self.unreachable, self.skip),
            ([node for node in self.queued if self.is_stopping(node)], self.cancel_queued),
            (self.expandable_steps(), self.expand_item),
            (self.endable_maps(), self.end_map),
        ):
            if nodes:
                actions.append(action)
        return actions

    def pick(self, nodes: list[Any]) -> Any:
        return nodes.pop(self.scenario.chance.randrange(len(nodes)))

    def take_ready(self) -> None:
        batch = self.state.queue.take_ready()
        assert len(set(batch)) == len(batch)
        for node in batch:
            assert node not in self.status
            assert node not in self.dropped_items
            if node in self.queued:
                self.queued.remove(node)
                self.rescheduled.append(node)
            else:
                assert node not in self.ever_scheduled
                self.ever_scheduled.add(node)
                self.scheduled.append(node)
        self.unreachable += self.state.readiness.take_unreachable()
        self.check()

    def start(self) -> None:
        node = self.pick(self.scheduled)
        name = self.name(node)
        if self.state.step_runs.is_item(node):
            if self.is_stopping(node) and self.happens(0.5):
                self.dropped_items.add(node)
                self.state.drop_item(node)
            else:
                self.begin_attempt(node)
            return
        if self.is_stopping(node) and self.happens(0.5):
            assert self.state.stop_reason is not None
            self.emit(StepSkipped(name, self.now, self.state.stop_reason))
            self.settle(node, SKIPPED)
            return
        self.check_start(node)
        condition = self.scenario.conditions.get(name)
        if condition == "no":
            self.by_condition.add(node)
            self.emit(StepSkipped(name, self.now, "its condition was not met", True))
            self.settle(node, SKIPPED)
        elif condition == "raises":
            self.note_stop(self.scenario.fail_fast)
            self.emit(StepFailed(name, 0, self.now, ValueError(name)))
            self.settle(node, FAILED)
        elif self.scenario.is_mapped(name):
            self.mapping[node], self.items[node] = self.scenario.items[name], []
            self.is_complete[node] = True
            self.emit(MapStarted(name, self.now))
        else:
            self.begin_attempt(node)

    def check_start(self, node: int) -> None:
        needed = self.plan.dependencies[node]
        if self.plan.steps[node].run_if == "success":
            assert all(self.status.get(other) is SUCCESS for other in needed)
        if self.plan.steps[node].run_if == "unless_failed":
            assert all(
                self.status[other] is SUCCESS or other in self.by_condition for other in needed
            )
        assert all(other in self.status for other in needed)
        if self.plan.steps[node].run_if == "failure":
            assert any(
                self.status[other] is not SUCCESS and other not in self.by_condition
                for other in needed
            )
        if self.scenario.schedule == "tiers":
            earlier = next(at for at, tier in enumerate(self.plan.tiers) if node in tier)
            for tier in self.plan.tiers[:earlier]:
                assert all(other in self.status for other in tier)
        if self.unscheduled_at_stop is not None and node not in self.ready_at_stop:
            ordinary = set(range(len(self.plan.steps))) - self.plan.cleanups
            assert node in self.plan.cleanups
            assert ordinary <= self.status.keys()

    def begin_attempt(self, node: int) -> None:
        self.attempts[node] = self.attempts.get(node, 0) + 1
        self.running.append(node)
        queued_ms = self.state.queue.queued_ms(node, self.now)
        assert 0 <= queued_ms <= self.now
        item = self.state.step_runs.item_of(node)
        self.emit(AttemptStarted(self.name(node), self.attempts[node], self.now, queued_ms, item))

    def end_backoff(self) -> None:
        node = self.pick(self.waiting)
        if self.is_stopping(node):
            self.cancel(node)
        elif self.state.queue.is_limited:
            self.queued.append(node)
            self.state.queue.put_again(node, self.now)
        else:
            self.begin_attempt(node)

    def start_rescheduled(self) -> None:
        node = self.pick(self.rescheduled)
        if self.is_stopping(node):
            self.cancel(node)
        else:
            self.begin_attempt(node)

    def cancel_queued(self) -> None:
        node = next(node for node in self.queued if self.is_stopping(node))
        self.queued.remove(node)
        self.cancel(node)

    def end_attempt(self) -> None:
        node = self.pick(self.running)
        name, attempt = self.name(node), self.attempts[node]
        item = self.state.step_runs.item_of(node)
        if self.is_stopping(node) and self.happens(0.7):
            self.cancel(node)
        elif attempt > self.scenario.failures[name]:
            self.emit(StepSucceeded(name, attempt, self.now, f"{name} is done", item))
            self.settle(node, SUCCESS)
        else:
            self.fail(node, attempt, item)

    def fail(self, node: int, attempt: int, item: int | None) -> None:
        name = self.name(node)
        unretryable = name in self.scenario.unretryable
        error = ActionNotAwaitableError(name, "int") if unretryable else ValueError(name, attempt)
        delay_ms = self.state.deadlines.after_failure(node, error, self.now).delay_ms
        if delay_ms is None:
            self.note_stop(self.scenario.fail_fast)
            self.emit(StepFailed(name, attempt, self.now, error, item))
            self.settle(node, FAILED)
        else:
            assert not unretryable
            assert attempt < self.scenario.max_retries[name]
            self.waiting.append(node)
            self.emit(AttemptFailed(name, attempt, self.now, error, delay_ms, item))

    def cancel(self, node: int) -> None:
        reason, item = self.state.stop_reason, self.state.step_runs.item_of(node)
        assert reason is not None
        error = ValueError(node) if self.happens(0.5) else None
        name, attempt = self.name(node), self.attempts[node]
        self.emit(StepCancelled(name, attempt, self.now, reason, error, item))
        self.settle(node, CANCELLED)

    def skip(self) -> None:
        node, reason, by_condition = self.pick(self.unreachable)
        if by_condition:
            self.by_condition.add(node)
        self.emit(StepSkipped(self.name(node), self.now, reason, by_condition))
        self.settle(node, SKIPPED)

    # Mapped steps.

    def expandable_steps(self) -> list[int]:
        """Return the mapped steps that may expand another item: at most one item is queued."""
        return [
            step
            for step, left in self.mapping.items()
            if left and not any(map(self.state.queue.is_queued, self.items[step]))
        ]

    def expand_item(self) -> None:
        step = self.pick(self.expandable_steps())
        if self.is_stopping(step) and self.happens(0.5):
            self.mapping[step], self.is_complete[step] = 0, False
            return
        self.mapping[step] -= 1
        node = self.state.add_item(step, self.now)
        self.items[step].append(node)
        if self.is_stopping(step):
            self.dropped_items.add(node)
            assert not self.state.queue.is_queued(node)

    def endable_maps(self) -> list[int]:
        """Return the mapped steps that may end."""
        has_unsettled = self.state.step_runs.has_unsettled_items
        return [step for step, left in self.mapping.items() if not left and not has_unsettled(step)]

    def end_map(self) -> None:
        step = self.pick(self.endable_maps())
        del self.mapping[step]
        name, items = self.name(step), self.items[step]
        self.dropped_items.update(set(items) - self.status.keys())
        status = {self.status.get(node) for node in items}
        if FAILED in status:
            self.emit(StepFailed(name, 0, self.now, ValueError(name)))
            self.settle(step, FAILED)
        elif self.is_complete[step] and status <= {SUCCESS}:
            self.emit(StepSucceeded(name, 0, self.now, [f"{name} is done"] * len(items)))
            self.settle(step, SUCCESS)
        else:
            assert self.state.stop_reason is not None
            self.emit(StepCancelled(name, 0, self.now, self.state.stop_reason, None))
            self.settle(step, CANCELLED)

    # Stopping.

    def stop_if_due(self) -> None:
        due = self.scenario.interrupted_after
        if due is not None and len(self.events) >= due and not self.interrupted:
            self.interrupted = True
            self.note_stop(True)
            self.emit(RunInterrupted(self.now, "the caller was cancelled"))
        deadline_ms = self.scenario.deadline_ms
        if (
            deadline_ms is not None
            and self.now >= deadline_ms
            and self.state.stop_reason is None
            and self.state.readiness.ordinary_unsettled
        ):
            self.timed_out = True
            self.note_stop(True)
            self.emit(RunTimedOut(self.now, deadline_ms))

    def note_stop(self, stops: bool) -> None:
        if stops and self.unscheduled_at_stop is None:
            steps = set(range(len(self.plan.steps)))
            self.unscheduled_at_stop = steps - self.ever_scheduled - self.status.keys()
            queued = {step for step in steps if self.state.queue.is_queued(step)}
            self.ready_at_stop = self.ever_scheduled | queued

    # Checks.

    def settle(self, node: int, status: StepStatus) -> None:
        assert node not in self.status
        self.status[node] = status
        self.check()

    def emit(self, event: Event) -> None:
        self.apply(event)
        self.events.append(event)
        if isinstance(event, AttemptStarted | AttemptFailed | MapStarted):
            self.check()

    def apply(self, event: Event) -> None:
        """Apply an event, in the short form where the driver uses it."""
        state, step = self.state, self.plan.index.get(getattr(event, "step", ""))
        has_short_form = step is not None and not self.plan.steps[step].given & FULL
        if has_short_form and isinstance(event, AttemptStarted):
            state.begin(self.node_of(event), event.attempt, event.at_ms)
        elif has_short_form and isinstance(event, StepSucceeded) and event.attempt:
            state.succeed(self.node_of(event), event.at_ms, event.output)
        else:
            state.apply(event)

    def node_of(self, event: AttemptStarted | StepSucceeded) -> int:
        step = self.plan.index[event.step]
        return step if event.item is None else self.state.step_runs.find_or_add_item(step, event)

    def room(self, node: int) -> int:
        """Return how many more nodes like this one the limits admit."""
        pool, limit = self.state.step_runs.steps[node].pool, self.scenario.max_concurrency
        rooms = [99 if limit is None else limit - len(self.in_flight)]
        if pool is not None:
            sharing = [
                one for one in self.in_flight if self.state.step_runs.steps[one].pool is pool
            ]
            rooms.append(pool.size - len(sharing))
        return min(rooms)

    def check_that_no_queued_node_fits(self) -> None:
        for node in range(len(self.state.step_runs.steps)):
            if self.state.queue.is_queued(node) or node in self.queued:
                assert self.room(node) == 0

    def check(self) -> None:
        """Compare the state with what the simulation tracks."""
        for node in self.in_flight:
            assert self.room(node) >= 0
        steps = range(len(self.plan.steps))
        unsettled = [step for step in steps if step not in self.status]
        assert self.state.readiness.unsettled == len(unsettled)
        ordinary = [step for step in unsettled if step not in self.plan.cleanups]
        assert self.state.readiness.ordinary_unsettled == len(ordinary)
        for node in range(len(self.state.step_runs.steps)):
            result = self.state.result(node)
            assert (None if result is None else result.status) == self.status.get(node)
            latest = self.state.step_runs.latest_attempt(node)
            assert (0 if latest is None else latest.attempt) == self.attempts.get(node, 0)
            assert (self.state.step_runs.running_attempt(node) is not None) == (
                node in self.running
            )
        nodes = range(len(self.state.step_runs.steps))
        scheduled = list(filter(self.state.step_runs.is_scheduled, nodes))
        assert scheduled == [node for node in nodes if node in self.scheduled]


def facts(report: RunReport) -> tuple[Any, ...]:
    return report.run_id, report.wall_time, report.total_duration_ms, report.results


def replayed(scenario: Scenario, events: Sequence[Event]) -> RunState:
    """Return the state of a run after these events, without a driver."""
    state = scenario.state(scenario.plan())
    for event in events:
        state.apply(event)
    return state


class TestAnyRun:
    @given(scenarios())
    def test_every_step_has_exactly_one_result_and_the_invariants_hold_after_every_event(
        self, scenario: Scenario
    ) -> None:
        simulation = Simulation(scenario)

        report = simulation.run()

        index = simulation.plan.index
        assert list(report) == [simulation.name(step) for step in simulation.plan.order]
        for name, result in report.items():
            assert result.status is simulation.status[index[name]]
            assert result.by_condition is (index[name] in simulation.by_condition)
            assert result.depends_on == simulation.plan.depends_on[name]
            assert (result.output is None) == (result.status is not SUCCESS)
            assert (result.reason is None) == (result.status in (SUCCESS, FAILED))
            if result.items is None:
                assert result.attempts == simulation.attempts.get(index[name], 0)
                numbers = [attempt.number for attempt in result.history]
                assert numbers == list(range(1, result.attempts + 1))
            else:
                started = [
                    node for node in simulation.items[index[name]] if node in simulation.status
                ]
                assert len(result.items) == len(started)
                assert result.attempts == sum(simulation.attempts[node] for node in started)
            events = [
                event
                for event in simulation.events
                if isinstance(event, AttemptStarted) and event.step == name
            ]
            assert result.queued_ms == sum(event.queued_ms for event in events)
            assert len(events) == result.attempts

    @given(scenarios(stops=False))
    def test_without_fail_fast_only_dependents_of_failures_and_unmet_conditions_are_skipped(
        self, scenario: Scenario
    ) -> None:
        report = Simulation(scenario).run()

        oracle = nx.DiGraph(
            (needed, name) for name, needs in scenario.plan().depends_on.items() for needed in needs
        )
        oracle.add_nodes_from(scenario.edges)
        expected = dict[str, tuple[StepStatus, bool]]()
        for name in nx.topological_sort(oracle):
            ends = [expected[needed] for needed in oracle.predecessors(name)]
            is_lost = any(status is not SUCCESS and not purpose for status, purpose in ends)
            run_if, condition = scenario.run_if.get(name), scenario.conditions.get(name)
            enough = all if run_if == "unless_failed" else any
            is_unneeded = bool(ends) and enough(purpose for _, purpose in ends)
            source = scenario.edges[name][0] if scenario.is_mapped(name) else None
            if run_if in (None, "unless_failed") and (is_lost or is_unneeded):
                expected[name] = SKIPPED, not is_lost
            elif run_if == "failure" and not is_lost:
                expected[name] = SKIPPED, True
            elif source is not None and expected[source][0] is not SUCCESS:
                expected[name] = SKIPPED, expected[source][1]  # there are no items
            elif condition == "no":
                expected[name] = SKIPPED, True
            else:
                fails = condition == "raises" or scenario.will_fail(name)
                expected[name] = (FAILED if fails else SUCCESS), False
        assert {name: (one.status, one.by_condition) for name, one in report.items()} == expected
        for result in report.skipped:
            assert result.reason is not None
            if " on step " in result.reason:
                _, cause, what = result.reason.split("'")
                cause_status, _ = expected[cause]
                assert cause_status is (SKIPPED if "skipped" in what else FAILED)
                assert cause in nx.ancestors(oracle, result.step_name)

    @given(scenarios())
    def test_a_stop_skips_exactly_the_unscheduled_steps_except_clean_up_steps(
        self, scenario: Scenario
    ) -> None:
        simulation = Simulation(scenario)

        report = simulation.run()

        index = simulation.plan.index
        skipped = {index[name] for name in report if report[name].status is SKIPPED}
        stopped = simulation.unscheduled_at_stop
        if stopped is None:
            assert simulation.state.stop_reason is None
            assert not report.cancelled
        else:
            assert skipped >= stopped - simulation.plan.cleanups
            if not simulation.interrupted:
                assert all(
                    simulation.plan.steps[step].run_if != "always"
                    for step in skipped & simulation.plan.cleanups
                    if simulation.name(step) not in scenario.conditions
                    and simulation.plan.steps[step].map_over is None  # which can lack its items
                )
        assert all(result.reason for result in report.skipped)
        assert simulation.state.has_timed_out is simulation.timed_out

    @given(scenarios())
    def test_the_status_matches_the_report(self, scenario: Scenario) -> None:
        simulation = Simulation(scenario)

        report = simulation.run()

        expected = "PASSED" if report.all_passed else "FAILED"
        assert simulation.state.status == ("INTERRUPTED" if simulation.interrupted else expected)

    @given(scenarios())
    def test_the_same_events_give_the_same_report(self, scenario: Scenario) -> None:
        simulation = Simulation(scenario)

        report = simulation.run()

        again = replayed(scenario, simulation.events)
        assert facts(again.report()) == facts(report)
        assert again.status == simulation.state.status
        assert again.stop_reason == simulation.state.stop_reason
        assert (again.queue.take_ready(), again.readiness.take_unreachable()) == ([], [])

    @given(scenarios())
    def test_results_made_of_the_log_are_those_of_the_replay(self, scenario: Scenario) -> None:
        simulation = Simulation(scenario)
        report = simulation.run()

        replay = StoredRun(simulation.state.history.events())

        assert report.results == [step.to_result(replay.at_ms) for step in replay.steps.values()]

    @given(scenarios())
    def test_what_statistics_have_of_the_log_they_have_of_the_replay(
        self, scenario: Scenario
    ) -> None:
        simulation = Simulation(scenario)
        simulation.run()
        history = simulation.state.history

        replayed_runs = step_runs(StoredRun(history.events()))
        found = step_runs_of(history)

        assert found is not None
        assert list(found) == list(replayed_runs)
        for name, run in found.items():
            assert run._replace(duration_ms=None) == replayed_runs[name]._replace(duration_ms=None)
            assert run.duration_ms == pytest.approx(replayed_runs[name].duration_ms)

    @given(scenarios(), st.floats(0, 1))
    def test_a_replay_of_any_part_of_a_run_schedules_only_unstarted_steps(
        self, scenario: Scenario, part: float
    ) -> None:
        simulation = Simulation(scenario)
        simulation.run()
        events = simulation.events[: 1 + int(part * (len(simulation.events) - 1))]
        has_started, in_flight = set[str](), set[tuple[str, int | None]]()
        for event in events:
            if isinstance(event, AttemptStarted):
                in_flight.add((event.step, event.item))
            elif not isinstance(event, RunStarted | RunInterrupted | RunTimedOut | RunFinished):
                in_flight.discard((event.step, event.item))
            if not isinstance(event, RunStarted | RunInterrupted | RunTimedOut | RunFinished):
                has_started.add(event.step)

        state = replayed(scenario, events)
        batch = state.queue.take_ready()

        assert has_started.isdisjoint(map(simulation.name, batch))
        if scenario.max_concurrency is not None and batch:
            assert len(in_flight) + len(batch) <= scenario.max_concurrency
        if state.stop_reason is not None:
            assert all(state.is_exempt_from_stop(node) for node in batch)
        assert has_started.isdisjoint(
            simulation.name(skipped.step) for skipped in state.readiness.take_unreachable()
        )
