"""Callers cancel a run through its journal, whichever process runs it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from journal.conftest import on_sqlite

from asyncflow import (
    JournalError,
    LeaseLostError,
    Orchestrator,
    RunCancelledError,
    RunNotFoundError,
    RunStatus,
    StepStatus,
    WorkflowStep,
    current_step,
    run_pipeline,
)
from asyncflow._core.history.results import Payload
from asyncflow._core.pipeline.fingerprint import fingerprints_of
from asyncflow._core.pipeline.graph import plan
from asyncflow.events import (
    AttemptStarted,
    Event,
    RunFinished,
    RunInterrupted,
    RunStarted,
    StepSkipped,
    StepSucceeded,
)

Make = Callable[..., Any]

ROOT = Path(__file__).parents[3]
REASON = "the run was cancelled through its journal"
WHY = '"late"\0 \ud800'  # what not every database could store as it is
SHOWN = r'the run was cancelled: "late"\x00 \ud800'


async def quick() -> int:
    return 1


async def sleep_forever() -> None:
    await asyncio.sleep(3600)


def quick_and_slow(action: Callable[[], Awaitable[Any]] = sleep_forever) -> list[WorkflowStep]:
    return [WorkflowStep("quick", quick), WorkflowStep("slow", action, ["quick"], timeout_ms=None)]


@asynccontextmanager
async def running(
    journal: Any, steps: list[WorkflowStep] | None = None, run_id: str = "r"
) -> AsyncIterator[asyncio.Task[Any]]:
    """Start a run, enter the block when its slow step has started, and wait for its end."""
    begun = asyncio.Event()

    def observe(event: Event) -> None:
        if isinstance(event, AttemptStarted) and event.step == "slow":
            begun.set()

    task = asyncio.ensure_future(
        run_pipeline(steps or quick_and_slow(), journal=journal, run_id=run_id, observers=[observe])
    )
    async with asyncio.timeout(20):
        await begun.wait()
        await asyncio.sleep(0.01)
        yield task
        await asyncio.wait([task])


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await holds():
            await asyncio.sleep(0.005)


async def cancel_tokens(database: Any) -> list[Any]:
    return [token for (token,) in database.query("SELECT cancel_token FROM leases")]


# --- latency -------------------------------------------------------------------------------------


@pytest.mark.realtime
async def test_a_cancellation_through_the_runs_own_journal_arrives_at_once(
    make_journal: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncflow.journal._write.worker._POLL_S", 86_400)
    journal = make_journal(lease_s=86_400)
    async with running(journal) as task:
        assert await journal.cancel("r")

        with pytest.raises(RunCancelledError):
            await task
    record = await journal.record("r")
    assert (record.status, record.owner) == ("INTERRUPTED", None)
    events = [stored.event for stored in await journal.events("r")]
    assert [event.reason for event in events if isinstance(event, RunInterrupted)] == [REASON]
    assert events[-1] == RunFinished(events[-1].at_ms, RunStatus.INTERRUPTED, REASON, "cancelled")  # type: ignore[union-attr]
    assert (await journal.report("r"))["slow"].status is StepStatus.CANCELLED


@pytest.mark.realtime
@pytest.mark.parametrize("lease_s", [0.6, 86_400])
async def test_a_cancellation_through_another_journal_arrives_with_the_next_poll(
    make_journal: Make, lease_s: float
) -> None:
    async with running(make_journal(lease_s=lease_s)) as task:
        begun = time.monotonic()

        assert await make_journal().cancel("r", WHY)

        with pytest.raises(RunCancelledError) as cancelled:
            await task
    assert time.monotonic() - begun < 5  # one second on an idle machine
    assert cancelled.value.reason == WHY
    assert (await make_journal().report("r"))["slow"].reason == SHOWN


async def test_a_step_is_not_retried_after_its_nested_run_was_cancelled(
    journal: Any,
) -> None:
    begun: list[str] = []

    async def outer() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                run_pipeline([WorkflowStep("inner", inner)], journal=journal, run_id="inner")
            )

    async def inner() -> None:
        begun.append(current_step().run_id)
        assert await journal.cancel("inner")
        await sleep_forever()

    report = await run_pipeline([WorkflowStep("outer", outer, max_retries=3)], journal=journal)

    assert begun == ["inner"]
    assert report["outer"].attempts == 1
    error = report["outer"].error
    assert isinstance(error, ExceptionGroup)
    assert error.subgroup(RunCancelledError)


@on_sqlite
@pytest.mark.realtime
async def test_polling_costs_one_statement_per_second_for_any_number_of_runs(
    make_journal: Make,
) -> None:
    journal = make_journal()
    polls: list[float] = []
    cancelled = journal._store.cancelled
    journal._store.cancelled = lambda: polls.append(time.monotonic()) or cancelled()
    begun = time.monotonic()
    sessions = [(await journal.open(f"r{n}", wait=False, read=bool))[0] for n in range(20)]

    await until(lambda: asyncio.sleep(0, len(polls) >= 2))

    assert time.monotonic() - begun > 1.5
    for session in sessions:
        await session.close()


@on_sqlite
@pytest.mark.realtime
async def test_a_failed_poll_is_repeated(make_journal: Make) -> None:
    journal = make_journal(lease_s=0.9)
    fails: list[bool] = []
    cancelled = journal._store.cancelled

    def failing_thrice() -> Any:
        if len(fails) < 3:
            fails.append(True)
            raise JournalError("x", "the line is dead")
        return cancelled()

    journal._store.cancelled = failing_thrice
    async with running(journal) as task:
        assert await make_journal().cancel("r")
        with pytest.raises(RunCancelledError):
            await task
    assert len(fails) == 3


# --- before, during and after a run --------------------------------------------------------------


@on_sqlite
@pytest.mark.realtime
async def test_repeated_requests_cancel_a_run_once(make_journal: Make) -> None:
    cleaning, proceed = asyncio.Event(), asyncio.Event()

    async def clean_up() -> None:
        try:
            await sleep_forever()
        finally:
            cleaning.set()
            await proceed.wait()

    journal, other = make_journal(lease_s=0.9), make_journal()
    async with running(journal, quick_and_slow(clean_up)) as task:
        assert await other.cancel("r")
        assert await other.cancel("r")
        await cleaning.wait()
        assert await other.cancel("r")
        assert await journal.cancel("r")
        await asyncio.sleep(0.7)  # long enough for another poll
        assert not task.done()
        proceed.set()
        with pytest.raises(RunCancelledError):
            await task
    interruptions = [e for e in await journal.events("r") if isinstance(e.event, RunInterrupted)]
    assert len(interruptions) == 1


async def test_a_run_cancelled_before_it_starts_calls_no_action(
    journal: Any, database: Any
) -> None:
    calls: list[int] = []

    async def never() -> None:
        calls.append(1)

    last_positions = journal._store.last_positions

    def cancel_first(run_id: str) -> Any:
        database.query("UPDATE leases SET cancel_token = token, cancel_reason = NULL")
        journal._worker._poll_at = 0.0
        return last_positions(run_id)

    journal._store.last_positions = cancel_first

    with pytest.raises(RunCancelledError):
        await run_pipeline([WorkflowStep("never", never)], journal=journal, run_id="r")

    assert calls == []
    assert (await journal.record("r")).status == "INTERRUPTED"


@pytest.mark.parametrize("pause_ms", range(0, 20, 2))
async def test_a_run_either_passes_or_is_interrupted_whenever_it_is_cancelled(
    make_journal: Make, pause_ms: int
) -> None:
    journal, other = make_journal(lease_s=0.9), make_journal()
    steps = [
        WorkflowStep(f"s{n}", lambda: asyncio.sleep(0.001), [f"s{n - 1}"] if n else [])
        for n in range(6)
    ]
    await other.runs()

    async def cancel() -> bool:
        await asyncio.sleep(pause_ms / 1000)
        canceller = journal if pause_ms % 4 else other
        try:
            return bool(await canceller.cancel("r"))
        except RunNotFoundError:
            return False

    async with asyncio.timeout(20):
        run = run_pipeline(steps, journal=journal, run_id="r")
        ended, was_requested = await asyncio.gather(run, cancel(), return_exceptions=True)

    record, events = await other.record("r"), await other.events("r")
    if isinstance(ended, RunCancelledError):
        assert was_requested
        assert record.status == "INTERRUPTED"
    else:
        assert not isinstance(ended, BaseException)
        assert record.status == "PASSED"
    assert isinstance(events[-1].event, RunFinished)
    assert events[-1].event.status == record.status
    assert (await run_pipeline(steps, journal=other, run_id="r")).all_passed


# --- lease holders -------------------------------------------------------------------------------


async def test_a_run_that_has_ended_is_not_cancelled(journal: Any, database: Any) -> None:
    await run_pipeline([WorkflowStep("quick", quick)], journal=journal, run_id="passed")
    async with running(journal, run_id="cancelled"):
        await journal.cancel("cancelled")

    assert await journal.cancel("passed") is False
    assert await journal.cancel("cancelled") is False

    assert await cancel_tokens(database) == [None, None]
    with pytest.raises(RunNotFoundError, match=r"no run 'past' \(did you mean 'passed'\?\)"):
        await journal.cancel("past")
    with pytest.raises(TypeError, match="run_id must be a str, not int"):
        await journal.cancel(7)
    with pytest.raises(TypeError, match="reason must be a str, not int"):
        await journal.cancel("passed", 7)


@pytest.mark.realtime
async def test_a_process_whose_lease_has_expired_learns_of_a_request_when_it_continues(
    make_journal: Make, database: Any
) -> None:
    async with running(make_journal(lease_s=0.9)) as task:
        database.expire_leases()

        assert await make_journal().cancel("r")

        with pytest.raises(RunCancelledError):
            await task


# --- runs without a process ----------------------------------------------------------------------


async def leave(journal: Any, status: str, run_id: str = "r", parent: str = "") -> None:
    """Store a run that has no process, and whose next one would run its step slow."""
    session, _ = await journal.open(run_id, wait=False, read=bool)
    planned = plan(quick_and_slow())
    started = RunStarted(
        run_id,
        1.0,
        planned.depends_on,
        fingerprints=fingerprints_of(planned),
        parent=parent,
        parent_step=parent and "s",
    )
    session.append(started)
    session.append(AttemptStarted("quick", 1, 0.0))
    session.append(StepSucceeded("quick", 1, 1.0, Payload("json", b"1")))
    if status != "ORPHANED":
        cause: Any = status.lower()
        session.append(RunInterrupted(2.0, "the reason", cause))
        session.append(StepSkipped("slow", 2.0, "the reason"))
        session.append(RunFinished(2.0, RunStatus.INTERRUPTED, "the reason", cause))
    await session.close()


@pytest.mark.parametrize("status", ["ORPHANED", "DRAINED", "RESOURCE"])
async def test_a_cancelled_run_without_a_process_ends_when_one_takes_it(
    make_journal: Make, database: Any, status: str
) -> None:
    calls: list[str] = []

    @asynccontextmanager
    async def resource() -> AsyncIterator[str]:
        calls.append("opened")
        yield "db"

    async def slow(db: str) -> None:
        calls.append("slow")

    steps = [WorkflowStep("quick", quick), WorkflowStep("slow", slow, ["quick"])]
    pipeline = Orchestrator(steps, resources={"db": resource}).with_options(run_id="r")
    journal = make_journal()
    await leave(journal, status)

    assert await make_journal().cancel("r", WHY)
    assert await make_journal().cancel("r", "another reason")
    session, _ = await journal.open("r", wait=False, read=bool)  # that process has died as well
    await session.close()
    with pytest.raises(ValueError, match="belongs to pipeline"):
        await (await journal.open("r", wait=False, read=refuse))[0].close()
    with pytest.raises(RunCancelledError) as cancelled:
        await pipeline.with_options(journal=journal).run()

    assert calls == []
    record = await journal.record("r")
    assert (record.status, record.cause) == ("INTERRUPTED", "cancelled")
    report = cancelled.value.report
    assert report is not None
    assert report["quick"].reused
    assert (report["slow"].status, report["slow"].reason) == (StepStatus.SKIPPED, SHOWN)
    assert cancelled.value.reason == WHY
    assert await journal.cancel("r") is False
    assert await cancel_tokens(database) == [None]
    assert (await pipeline.with_options(journal=journal).run()).all_passed
    assert calls == ["opened", "slow"]


def refuse(stored: object) -> None:
    raise ValueError("it belongs to pipeline 'other'")


async def test_a_run_that_was_interrupted_for_another_reason_has_ended(journal: Any) -> None:
    await leave(journal, "CALLER")

    assert await journal.cancel("r") is False

    report = await run_pipeline(quick_and_slow(quick), journal=journal, run_id="r")
    assert report.all_passed


async def test_a_run_all_of_whose_steps_have_ended_passes_although_it_was_cancelled(
    journal: Any, database: Any
) -> None:
    await leave(journal, "ORPHANED")

    assert await journal.cancel("r")

    report = await run_pipeline(
        [WorkflowStep("quick", quick)], journal=journal, run_id="r", allow_missing_steps=True
    )
    assert report.all_passed
    assert await cancel_tokens(database) == [None]


async def test_nested_runs_are_cancelled_with_an_outer_run_that_has_lost_its_process(
    make_journal: Make,
) -> None:
    journal = make_journal()
    await leave(journal, "ORPHANED")
    for run_id, parent in ("inner", "r"), ("innermost", "inner"), ("other", ""):
        await leave(journal, "ORPHANED", run_id, parent)
    await leave(journal, "DRAINED", "drained", "r")

    assert await make_journal().cancel("r", "enough")

    for run_id in "inner", "innermost", "drained":
        with pytest.raises(RunCancelledError, match="was cancelled: enough"):
            await run_pipeline(quick_and_slow(quick), journal=journal, run_id=run_id)
    other = await run_pipeline(quick_and_slow(quick), journal=journal, run_id="other")
    assert other.all_passed


@pytest.mark.realtime
async def test_a_request_addresses_the_lease_holder_not_its_predecessor(
    make_journal: Make, database: Any
) -> None:
    loser, journal = make_journal(lease_s=0.9), make_journal()
    async with running(loser) as lost:
        database.expire_leases()
        database.query("UPDATE leases SET token = token + 1")  # renewal fails
        async with running(journal) as task:
            assert await make_journal().cancel("r")

            with pytest.raises(LeaseLostError):
                await lost
            with pytest.raises(RunCancelledError):
                await task
    assert (await journal.record("r")).status == "INTERRUPTED"


async def test_a_process_that_dies_before_it_has_read_a_request_leaves_it_to_the_next(
    make_journal: Make, database: Any
) -> None:
    journal = make_journal()
    await leave(journal, "ORPHANED", "inner", "r")
    session, _ = await make_journal(lease_s=600).open("r", wait=False, read=bool)
    session.append(RunStarted("r", 1.0, {"quick": (), "slow": ("quick",)}))
    await session.flush()
    assert await journal.cancel("r")
    database.expire_leases()  # its process died

    for run_id in "r", "inner":
        with pytest.raises(RunCancelledError):
            await run_pipeline(quick_and_slow(), journal=journal, run_id=run_id)

    assert await cancel_tokens(database) == [None, None]
    session.append(AttemptStarted("slow", 1, 1.0))
    with pytest.raises(LeaseLostError):
        await session.close()


@pytest.mark.realtime
async def test_other_runs_continue(make_journal: Make) -> None:
    journal = make_journal(lease_s=0.9)
    proceed = asyncio.Event()
    async with (
        running(journal, quick_and_slow(proceed.wait), "other") as other,
        running(journal) as task,
    ):
        await make_journal().cancel("r")
        with pytest.raises(RunCancelledError):
            await task

        proceed.set()

        assert (await other).all_passed


RUNNER = """
import asyncio
from asyncflow import *

async def slow():
    print("running", flush=True)
    try:
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(0.01)
        print("cleaned up", flush=True)

async def main():
    async with make() as journal:
        try:
            await run_pipeline([WorkflowStep("slow", slow)], journal=journal, run_id="r")
        except RunCancelledError as cancelled:
            print(cancelled.run_id, flush=True)

asyncio.run(main())
"""


@pytest.mark.process
async def test_a_run_in_another_process_is_cancelled(journal: Any, database: Any) -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", database.source + RUNNER],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout
        assert await asyncio.to_thread(process.stdout.readline) == "running\n"

        assert await journal.cancel("r")

        out, _ = await asyncio.to_thread(process.communicate, timeout=50)
    assert out == "cleaned up\nr\n"
    assert process.returncode == 0
    assert (await journal.record("r")).status == "INTERRUPTED"


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to detect dead processes")
async def test_a_run_of_a_dead_process_is_cancelled(journal: Any, database: Any) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", database.source + RUNNER],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout
        assert await asyncio.to_thread(process.stdout.readline) == "running\n"
        assert (await journal.record("r")).status == "RUNNING"
        process.kill()
        process.wait()

    assert await journal.cancel("r")

    record = await journal.record("r")
    assert record.status == "ORPHANED"
    assert record.owner.startswith(f"process {process.pid} on ")
    with pytest.raises(RunCancelledError):
        await run_pipeline([WorkflowStep("slow", sleep_forever)], journal=journal, run_id="r")
    assert (await journal.record("r")).cause == "cancelled"
