"""An attempt does not see the context of the one before, and no thread of ours that of a run."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar, copy_context
from pathlib import Path

import pytest

from asyncflow import Pool, StepStatus, WorkflowStep, current_step, run_pipeline
from asyncflow.events import AttemptStarted, StepCancelled
from asyncflow.journal import SQLiteJournal

MARK: ContextVar[str] = ContextVar("mark", default="clean")


class Flaky:
    """Fails in its first attempt, after it has changed its context."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.tasks: list[str] = []
        self.cleaned = False

    async def __call__(self) -> str:
        self.seen.append(MARK.get())
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task.get_name().rpartition(":")[2])
        MARK.set("dirty")
        if current_step().attempt == 1:
            raise OSError
        return "done"

    async def slow(self) -> str:
        await self()
        try:
            await asyncio.sleep(60)
        finally:
            self.cleaned = True
        return "late"


async def unstarted(name: str) -> asyncio.Task[object]:
    """Wait for a task of that name; return it before its first line has run."""
    while True:
        for task in asyncio.all_tasks():
            if task.get_name().endswith(name):
                return task
        await asyncio.sleep(0)


async def test_an_attempt_does_not_see_context_changes_of_the_one_before():
    flaky = Flaky()

    report = await run_pipeline([WorkflowStep("a", flaky, max_retries=2)])

    assert report["a"].output == "done"
    assert flaky.seen == ["clean", "clean"]
    assert flaky.tasks[1:] == ["a#2"]  # an eager task receives its first name too late to see it


async def test_an_attempt_does_not_see_an_equal_value_that_the_one_before_left():
    basket = ContextVar[list[str]]("basket")
    basket.set([])
    seen = []

    async def action() -> None:
        seen.append(basket.get())
        basket.set([])
        if len(seen) == 1:
            raise OSError

    report = await run_pipeline([WorkflowStep("a", action, max_retries=2)])

    assert report["a"].attempts == 2
    assert seen[0] is seen[1] is basket.get()


@pytest.mark.parametrize("pool", [None, Pool(1)], ids=["no pool", "pool"])
async def test_a_third_party_that_cancels_an_attempt_before_its_first_line_only_delays_it(
    pool: Pool | None,
):
    flaky = Flaky()
    run = asyncio.ensure_future(run_pipeline([WorkflowStep("a", flaky, max_retries=2, pool=pool)]))

    (await unstarted(":a#2")).cancel()
    report = await run

    assert report["a"].output == "done"
    assert report["a"].attempts == 2
    assert flaky.seen == ["clean", "clean"]
    assert pool is None or (pool.in_use, pool.waiting) == (0, 0)


async def test_an_isolated_attempt_that_cancels_its_task_with_its_last_line_has_succeeded():
    flaky = Flaky()

    async def action() -> str:
        value = await flaky()
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return value

    report = await run_pipeline([WorkflowStep("a", action, max_retries=2)])

    assert (report["a"].status, report["a"].output) == (StepStatus.SUCCESS, "done")


@pytest.mark.parametrize("turns", range(25))
async def test_a_run_can_be_cancelled_in_any_turn_between_two_isolated_attempts(turns: int):
    flaky, pool, events = Flaky(), Pool(1), []
    step = WorkflowStep("a", flaky.slow, max_retries=2, pool=pool)
    run = asyncio.ensure_future(run_pipeline([step], observers=[events.append]))

    for _ in range(turns):
        await asyncio.sleep(0)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run

    started = sum(isinstance(event, AttemptStarted) for event in events)
    assert flaky.seen == ["clean"] * started
    assert flaky.cleaned == (started == 2)
    cancelled = [event.attempt for event in events if isinstance(event, StepCancelled)]
    assert cancelled == ([started] if started else [])
    assert (pool.in_use, pool.waiting) == (0, 0)


async def test_an_isolated_attempt_that_returns_a_value_when_stopped_succeeds():
    flaky = Flaky()

    async def stubborn() -> str:
        await flaky()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "kept"
        return "late"

    async def fails() -> None:
        while len(flaky.seen) < 2:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        raise ValueError

    report = await run_pipeline(
        [WorkflowStep("a", stubborn, max_retries=2), WorkflowStep("b", fails)]
    )

    assert report["b"].status is StepStatus.FAILED
    assert (report["a"].status, report["a"].output) == (StepStatus.SUCCESS, "kept")


async def test_a_heartbeat_without_a_heartbeat_limit_does_nothing():
    async def beats() -> int:
        current_step().heartbeat()
        return 1

    assert (await run_pipeline([WorkflowStep("a", beats)]))["a"].output == 1


def test_threads_of_asyncflow_start_with_an_empty_context(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They may inherit that of the code that starts them, and would then keep a run alive."""
    inherited, start = {}, threading.Thread.start

    def start_and_note(self: threading.Thread) -> None:
        inherited[self.name] = len(copy_context())
        start(self)

    monkeypatch.setattr(threading.Thread, "start", start_and_note)

    async def act() -> None:
        MARK.set("a step's")
        async with SQLiteJournal(tmp_path / "runs.db") as journal:
            await journal.runs()

    asyncio.run(run_pipeline([WorkflowStep("outer", act)]))

    assert inherited == {"asyncflow loop monitor": 0, "asyncflow journal": 0}
