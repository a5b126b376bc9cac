"""What a run owes its policies, whatever they do: the contract of `asyncflow._kernel.policy`."""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import chain
from typing import Any

import pytest
from fake_engine import FakeEngine
from memory_journal import MemoryJournal

from asyncflow import (
    Orchestrator,
    Pipeline,
    Pool,
    Retry,
    RunStatus,
    Signal,
    WorkflowStep,
    each,
)
from asyncflow._kernel.policy import Hooks, NodeHooks, Policy
from asyncflow._runtime import planned_pipeline
from asyncflow.events import Event, StepSucceeded

pytestmark = pytest.mark.exact_time  # a busy machine moves what happens in which order

HOOKS = sorted(name for name in vars(Policy) if name.startswith("on_"))


class BrokenPolicyError(Exception):
    """What a policy raises that has a bug."""


class Work:
    """A pipeline that uses what a run has: items, retries, failures, clean-up, a step to stop."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.is_mended = False
        self.journal = MemoryJournal()
        self.pipeline = Pipeline("work", fail_fast=False, journal=self.journal)
        step = self.pipeline.step

        @step(max_retries=2, retry=0)
        async def numbers() -> list[int]:
            return await self.work("numbers", [1, 2], fails=self.begun["numbers"] < 1)

        @step
        async def double(number: int = each(numbers)) -> int:
            return await self.work(f"double {number}", 2 * number)

        @step(depends_on=["numbers"], pool=Pool(1), retry=Retry(on=lambda error: 10), max_retries=2)
        async def fails() -> None:
            await self.work("fails", None, fails=not self.is_mended)

        # When all others have ended, the run is idle until this deadline expires.
        self.pipeline.signal("approved", bool, deadline_ms=100, default=True)

        @step(run_if="always", depends_on=["double", "fails"])
        async def clean_up() -> None:
            await self.work("clean_up", None)

    def succeeded(self) -> set[str]:
        """Return which steps and items must never run again, as the journal has it."""
        return {
            event.step if event.item is None else f"{event.step} {event.item + 1}"
            for event in self.journal.stored.get("r", ())
            if isinstance(event, StepSucceeded) and event.step != "clean_up"
        }

    async def work(self, name: str, value: Any, *, fails: bool = False) -> Any:
        self.begun[name] += 1
        try:
            await asyncio.sleep(0.01)
            if fails:
                raise ValueError(name)
            return value
        finally:
            self.ended[name] += 1


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what gives each run one more policy, as the first one or the last one."""
    others = planned_pipeline.policies_of

    def add(make: Any, *, first: bool) -> None:
        def policies_of(*args: Any, **options: Any) -> tuple[Policy, ...]:
            found = others(*args, **options)
            return (make(), *found) if first else (*found, make())

        monkeypatch.setattr(planned_pipeline, "policies_of", policies_of)

    return add


async def interrupted(work: Work) -> None:
    """Run a pipeline that is cancelled while steps run."""
    async with work.pipeline.with_options(run_id="r").start() as run:
        await asyncio.sleep(0.005)
        run.cancel("enough")


async def events_of(work: Work) -> list[Event]:
    seen: list[Event] = []
    pipeline = work.pipeline.with_options(observers=[seen.append], run_id="r")
    await pipeline.run()
    return seen


def broken_in(hook: str) -> type[Policy]:
    def raises(self: Policy, *args: Any) -> Any:
        raise BrokenPolicyError(hook)

    async def raises_later(self: Policy, *args: Any) -> Any:
        raise BrokenPolicyError(hook)

    is_async = inspect.iscoroutinefunction(getattr(Policy, hook))
    members: dict[str, Any] = {hook: raises_later if is_async else raises}
    if hook == "on_abort":  # which is called while a node is to stop in such a wait
        members["on_started"] = lambda *_: lambda: asyncio.sleep(1)
    if hook == "on_broken":
        members["on_start"] = raises
    return type("Broken", (Policy,), members)


def counting(called: Counter[str]) -> Policy:
    """Return a policy that overrides each hook, and does no more than the others."""

    def forward(name: str) -> Any:
        def hook(self: Policy, *args: Any) -> Any:
            called[name] += 1
            return getattr(Policy, name)(self, *args)

        return hook

    kind: type[Policy] = type("Counting", (Policy,), {name: forward(name) for name in HOOKS})
    return kind()


@pytest.mark.parametrize("first", [True, False])
async def test_a_policy_that_does_nothing_changes_nothing(add: Any, first: bool) -> None:
    expected = [type(event) for event in await events_of(Work())]
    called: Counter[str] = Counter()
    add(lambda: counting(called), first=first)

    seen = [type(event) for event in await events_of(Work())]

    assert seen == expected
    stopping = {"on_stop", "on_stopped", "on_explain", "on_abort", "on_broken"}
    assert {*HOOKS} - {*called} == stopping


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("hook", HOOKS)
async def test_a_policy_that_raises_ends_the_run_and_loses_nothing(
    add: Any, hook: str, first: bool
) -> None:
    work = Work()
    make = broken_in(hook)
    add(lambda: Policy() if work.is_mended else make(), first=first)
    if hook in ("on_call", "on_output"):  # what these raise is a failure of the attempt
        report = await work.pipeline.with_options(run_id="r").run()
        assert {type(report[name].error) for name in ("numbers", "clean_up")} == {BrokenPolicyError}
    elif hook == "on_rescue":
        report = await work.pipeline.with_options(run_id="r").run()
        assert type(report["fails"].error) is BrokenPolicyError
    elif hook in ("on_stop", "on_stopped", "on_explain", "on_abort"):
        with pytest.raises(BrokenPolicyError):
            await interrupted(work)
    else:
        with pytest.raises(BrokenPolicyError):
            await work.pipeline.with_options(run_id="r").run()
    assert work.begun == work.ended
    stored = work.succeeded()
    work.is_mended = True
    before = Counter(work.begun)

    report = await work.pipeline.with_options(run_id="r").run()

    assert report.status is RunStatus.PASSED
    assert work.begun == work.ended
    assert not {name for name in stored if work.begun[name] > before[name]}


BEFORE = [
    ("Waits", "Resources"),  # a step whose signal comes while these close would start without them
    ("SecretOutputs", "Noted"),  # a secret is known before what says it is passed on
    ("Noted", "CheckpointWriter"),
    ("CheckpointWriter", "Persisting"),  # what a step has saved is stored with its end
    ("CheckpointWriter", "EarlierResults"),  # void checkpoints go with the run's first event
    ("Persisting", "StepCache"),  # others may reuse only what is stored
    ("Persisting", "Observing"),  # nothing is reported that was not stored
    ("Waits", "EarlierResults"),  # what waits now runs nothing, however often it has crashed
    ("StepCache", "Permits"),  # what reuses a result needs no slot
    ("WorkerSteps", "Permits"),  # no slot is held during the wait for an abandoned thread
    ("Persisting", "RemoteAttempts"),  # an attempt is submitted when its start is stored
    ("RemoteAttempts", "HeartbeatLimits"),  # the limit is around the call that is replaced
    ("Resources", "Draining"),  # a nested run stands still when they are closed
    ("WorkerSteps", "HeartbeatLimits"),  # the limit is around the worker that gives heartbeats
]


async def test_policies_act_in_the_order_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    others = planned_pipeline.policies_of

    def policies_of(*args: Any, **options: Any) -> list[Policy]:
        found = others(*args, **options)
        names[:] = [type(policy).__name__ for policy in found]
        return found

    @asynccontextmanager
    async def resource() -> AsyncIterator[int]:
        yield 1

    async def fails(db: int) -> None:
        raise ValueError(db)

    def plain() -> None: ...

    async def quick() -> int:
        return 1

    everything = Orchestrator(
        [
            WorkflowStep("fails", fails, heartbeat_ms=1000),
            WorkflowStep("plain", plain, ["fails"], runs_in="thread"),
            WorkflowStep("cached", quick, ["fails"], cache_ms=1000),
            WorkflowStep("hidden", quick, ["fails"], secret=True),
            WorkflowStep("clean_up", quick, ["fails"], run_if="always"),
            WorkflowStep("approved", Signal(bool), ["fails"]),
            WorkflowStep("away", quick, ["fails"], engine=FakeEngine()),
        ],
        journal=MemoryJournal(),
        observers=[lambda event: None],
        resources={"db": resource},
        deadline_ms=60_000,
        name="everything",
    )
    run_it = everything.with_options(run_id="r")
    monkeypatch.setattr(planned_pipeline, "policies_of", policies_of)
    await run_it.run()
    async with run_it.start() as run:  # it resumes, and has a handle
        await run.report()

    assert {*chain(*BEFORE)} <= {*names}
    assert [pair for pair in BEFORE if names.index(pair[0]) > names.index(pair[1])] == []


def test_every_hook_of_a_policy_is_found() -> None:
    found = [name for name in (*vars(Hooks), *vars(NodeHooks)) if name.startswith("on_")]

    assert sorted(found) == HOOKS


def test_a_misspelt_hook_is_an_error_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match=r"Misspelt\.on_ende is no hook of a policy"):

        class Misspelt(Policy):
            def on_ende(self) -> None: ...
