"""A run that is cancelled through its journal stops as if its caller had been cancelled."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from memory_journal import MemoryJournal

from asyncflow import (
    JournalError,
    Orchestrator,
    RunCancelledError,
    WorkflowStep,
    resume_all,
    run_pipeline,
)
from asyncflow._policies import resumption
from asyncflow.events import (
    AttemptStarted,
    Event,
    RunFinished,
    RunInterrupted,
    RunStarted,
    StepCancelled,
    StepReused,
    StepSkipped,
    StepSucceeded,
)

REASON = "the run was cancelled through its journal"


class Watched:
    """A durable run whose events a test can await."""

    def __init__(self, *steps: WorkflowStep, journal: MemoryJournal | None = None) -> None:
        self.steps = steps
        self.journal = MemoryJournal() if journal is None else journal
        self.received: list[Event] = []
        self._arrived = asyncio.Event()

    def start(self, **options: Any) -> asyncio.Task[Any]:
        self.received.clear()
        return asyncio.ensure_future(
            run_pipeline(
                self.steps, journal=self.journal, run_id="r", observers=[self._observe], **options
            )
        )

    def _observe(self, event: Event) -> None:
        self.received.append(event)
        self._arrived.set()

    async def until(self, kind: type[Event]) -> None:
        while not any(isinstance(event, kind) for event in self.received):
            self._arrived.clear()
            await self._arrived.wait()

    def cancel(self) -> None:
        self.journal.open_sessions["r"].cancel()

    def ends(self) -> list[tuple[str, str]]:
        """Return the cancelled and skipped steps with their reasons."""
        return [
            (event.step, event.reason)
            for event in self.received
            if isinstance(event, StepCancelled | StepSkipped)
        ]


async def forever() -> None:
    await asyncio.sleep(3600)


async def quick() -> int:
    return 1


async def test_running_steps_are_cancelled_and_clean_up_and_the_run_can_resume() -> None:
    cleaned: list[str] = []

    async def slow() -> int:
        if cleaned:
            return 7
        try:
            await forever()
        finally:
            await asyncio.sleep(0.01)
            cleaned.append("slow")
        raise AssertionError

    run = Watched(
        WorkflowStep("first", quick),
        WorkflowStep("slow", slow, ["first"]),
        WorkflowStep("last", quick, ["slow"]),
    )
    task = run.start()
    await run.until(StepSucceeded)
    while len([e for e in run.received if isinstance(e, AttemptStarted)]) < 2:
        await asyncio.sleep(0)
    await asyncio.sleep(0.001)
    run.cancel()

    with pytest.raises(RunCancelledError) as caught:
        await task

    assert caught.value.run_id == "r"
    assert cleaned == ["slow"]
    assert [e.reason for e in run.received if isinstance(e, RunInterrupted)] == [REASON]
    assert sorted(run.ends()) == [("last", REASON), ("slow", REASON)]
    finished = run.journal.stored["r"][-1]
    assert isinstance(finished, RunFinished)
    assert (finished.status, finished.stop_reason) == ("INTERRUPTED", REASON)
    assert finished.cause == "cancelled"
    assert not run.journal.open_sessions

    report = await run.start()

    assert report.all_passed
    assert report["first"].reused
    assert report["slow"].output == 7


async def test_a_run_cancelled_at_its_start_calls_no_action() -> None:
    async def never() -> None:
        raise AssertionError

    run = Watched(WorkflowStep("never", never))
    task = run.start()
    await run.until(RunStarted)

    run.cancel()

    with pytest.raises(RunCancelledError):
        await task
    assert run.ends() == [("never", REASON)]


async def restoring(monkeypatch: pytest.MonkeyPatch) -> tuple[Watched, asyncio.Task[Any]]:
    """Resume a run of many steps, and return it while it restores them."""
    monkeypatch.setattr(resumption, "_REUSED_A_TURN", 10)
    steps = [WorkflowStep(f"s{number}", quick) for number in range(35)]

    async def broken() -> None:
        raise ValueError("no")

    run = Watched(*steps, WorkflowStep("broken", broken, [step.name for step in steps]))
    await run.start()
    task = run.start()
    await run.until(StepReused)
    assert sum(isinstance(event, StepReused) for event in run.received) < 35
    return run, task


async def test_a_run_can_be_cancelled_while_it_restores_many_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, task = await restoring(monkeypatch)

    run.cancel()

    with pytest.raises(RunCancelledError):
        await task
    assert sum(isinstance(event, StepReused) for event in run.received) == 35
    assert run.ends() == [("broken", REASON)]


async def test_a_journal_failure_while_many_steps_are_restored_ends_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, task = await restoring(monkeypatch)

    run.journal.open_sessions["r"].fail(JournalError("memory", "the disk is full"))

    with pytest.raises(JournalError, match="the disk is full"):
        await task
    assert run.ends() == [("broken", "its journal has failed")]


async def cleaning_up(error: BaseException | None = None) -> None:
    try:
        await forever()
    finally:
        await asyncio.sleep(0.02)
        if error is not None:
            raise error


async def stopping(run: Watched) -> asyncio.Task[Any]:
    """Start a run, cancel it, and return it while its step cleans up."""
    task = run.start()
    await run.until(AttemptStarted)
    await asyncio.sleep(0.005)
    run.cancel()
    await asyncio.sleep(0.005)
    assert not task.done()
    return task


async def test_a_run_that_has_ended_is_not_interrupted() -> None:
    journal = MemoryJournal(latency_s=0.01)
    run = Watched(WorkflowStep("quick", quick), journal=journal)
    task = run.start()
    await run.until(RunFinished)

    run.cancel()

    assert (await task).all_passed


async def test_a_cancel_request_after_the_callers_cancellation_adds_no_interruption() -> None:
    run = Watched(WorkflowStep("slow", cleaning_up))
    task = run.start()
    await run.until(AttemptStarted)
    await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.sleep(0.005)

    run.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    found = [event for event in run.received if isinstance(event, RunInterrupted)]
    assert [(each.cause, each.reason) for each in found] == [("caller", "the caller was cancelled")]


async def test_a_journal_failure_after_the_request_is_raised() -> None:
    run = Watched(WorkflowStep("slow", cleaning_up))
    task = await stopping(run)

    run.journal.open_sessions["r"].fail(JournalError("memory", "the disk is full"))

    with pytest.raises(JournalError, match="the disk is full"):
        await task


class Orphans(MemoryJournal):
    """A journal in which each run is an orphan."""

    async def orphans(self) -> Any:
        found = {"pipeline": "p", "parent": ""}
        return [type("Orphan", (), {"run_id": run_id, **found}) for run_id in self.stored]

    async def runs(self, status: Any, *, limit: int | None, cause: str | None = None) -> Any:
        return []


async def test_a_run_cancelled_while_resume_all_runs_it_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="asyncflow")
    run = Watched(WorkflowStep("slow", forever), journal=Orphans())
    task = await stopping(Watched(WorkflowStep("slow", cleaning_up), journal=run.journal))
    with pytest.raises(RunCancelledError):
        await task
    started = asyncio.Event()

    def observe(event: Event) -> None:
        if isinstance(event, AttemptStarted):
            started.set()

    known = Orchestrator(run.steps, name="p", observers=[observe])
    journal: Any = run.journal
    resuming = asyncio.ensure_future(resume_all(journal, [known], interrupted=True))
    await started.wait()
    await asyncio.sleep(0.001)

    run.cancel()

    assert await resuming == []
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage().startswith("run 'r' was cancelled through its journal; start it")
