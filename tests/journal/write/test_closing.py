"""Closing a journal waits for its runs, so that a service that stops leaves none without an end."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from journal.conftest import on_sqlite

from asyncflow import JournalError, Orchestrator, WorkflowStep, resume_all, run_pipeline
from asyncflow.journal import SQLiteJournal
from asyncflow.testing import run_in_virtual_time

ROOT = Path(__file__).parents[3]

Make = Callable[..., Any]


async def run_slowly(journal: Any, run_id: str = "r", clean_up_s: float = 0.5) -> asyncio.Task[Any]:
    """Start a run, and return its task when its step has started."""
    has_started = asyncio.Event()

    async def act() -> None:
        has_started.set()
        try:
            await asyncio.sleep(3_600)
        finally:
            await asyncio.sleep(clean_up_s)

    steps = [WorkflowStep("slow", act, timeout_ms=None)]
    task = asyncio.ensure_future(run_pipeline(steps, journal=journal, run_id=run_id))
    await has_started.wait()
    return task


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what journals have warned of."""
    return [
        record.getMessage()
        for record in caplog.records
        if (record.name, record.levelno) == ("asyncflow", logging.WARNING)
        and record.getMessage().startswith("journal ")
    ]


async def statuses(journal: Any) -> dict[str, str]:
    async with journal:
        return {record.run_id: record.status for record in await journal.runs()}


@pytest.mark.parametrize("scoped", [True, False])
def test_runs_that_are_being_cancelled_record_their_end(make_journal: Make, scoped: bool) -> None:
    async def main() -> float:
        journal = make_journal()
        if scoped:
            async with journal:
                tasks = [await run_slowly(journal, run_id) for run_id in ("r", "s")]
                for task in tasks:
                    task.cancel()
        else:
            tasks = [await run_slowly(journal, run_id) for run_id in ("r", "s")]
            for task in tasks:
                task.cancel()
            assert await journal.aclose() == []
        waited_s = asyncio.get_running_loop().time() - 1_000  # where virtual time starts
        for task in tasks:
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await statuses(make_journal()) == {"r": "INTERRUPTED", "s": "INTERRUPTED"}
        return waited_s

    assert run_in_virtual_time(main()) == 0.5


def test_a_run_that_does_not_end_in_time_is_named(
    make_journal: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> float:
        journal = make_journal(close_timeout_s=2)
        quick = await run_slowly(journal, "quick", 1)
        slow = await run_slowly(journal, "slow", 10)
        endless = await run_slowly(journal, "endless")
        quick.cancel()
        slow.cancel()

        assert await journal.aclose() == ["endless", "slow"]

        waited_s = asyncio.get_running_loop().time() - 1_000  # where virtual time starts
        with pytest.raises(JournalError, match="it was closed while run 'endless' was running"):
            await endless
        with pytest.raises(asyncio.CancelledError):
            await slow
        with pytest.raises(asyncio.CancelledError):
            await quick
        assert await journal.aclose() == ["endless", "slow"]
        assert await statuses(make_journal()) == {
            "quick": "INTERRUPTED",
            "slow": "ORPHANED",
            "endless": "ORPHANED",
        }
        return waited_s

    assert run_in_virtual_time(main()) == 2
    (warning,) = warnings_of(caplog)
    assert "closed before these runs had ended" in warning
    assert "'endless', 'slow'" in warning


def test_a_step_can_close_the_journal_of_its_run(
    make_journal: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> float:
        journal = make_journal()
        other = await run_slowly(journal, "other")
        other.cancel()

        async def close() -> None:
            await asyncio.sleep(0)
            await journal.aclose()  # which stops this step

        async def nested() -> None:
            await run_pipeline([WorkflowStep("close", close)], journal=journal, run_id="inner")

        with pytest.raises(JournalError, match="closed while run 'outer' was running"):
            await run_pipeline([WorkflowStep("nested", nested)], journal=journal, run_id="outer")
        (warning,) = warnings_of(caplog)
        assert "closed before these runs had ended" in warning
        assert "'inner', 'outer'" in warning
        with pytest.raises(asyncio.CancelledError):
            await other
        assert await statuses(make_journal()) == {
            "inner": "ORPHANED",
            "outer": "ORPHANED",
            "other": "INTERRUPTED",
        }
        return asyncio.get_running_loop().time() - 1_000  # where virtual time starts

    assert run_in_virtual_time(main()) == 0.5  # it waited for the other run alone


def test_a_thread_step_can_close_the_journal_of_its_run(make_journal: Make) -> None:
    async def main() -> None:
        journal = make_journal(close_timeout_s=60)
        step = WorkflowStep("close", lambda: given_up.extend(journal.close()), runs_in="thread")

        given_up: list[str] = []
        with pytest.raises(JournalError, match="closed while run 'r' was running"):
            await run_pipeline([step], journal=journal, run_id="r")
        assert given_up == ["r"]

    asyncio.run(main())


def test_a_close_that_is_cancelled_waits_no_longer(make_journal: Make) -> None:
    async def main() -> float:
        journal = make_journal()
        run = await run_slowly(journal)
        closing = asyncio.create_task(journal.aclose())
        await asyncio.sleep(1)

        closing.cancel()

        with pytest.raises(asyncio.CancelledError):
            await closing
        assert await journal.aclose() == ["r"]
        ended_s = asyncio.get_running_loop().time() - 1_000  # where virtual time starts
        with pytest.raises(JournalError, match="closed while run 'r' was running"):
            await run
        return ended_s

    assert run_in_virtual_time(main()) == 1


def test_only_steps_of_active_runs_start_runs_while_a_journal_closes(make_journal: Make) -> None:
    async def main() -> None:
        journal = make_journal()
        proceed = asyncio.Event()

        async def nested() -> None:
            await proceed.wait()
            step = WorkflowStep("a", lambda: asyncio.sleep(0))
            await run_pipeline([step], journal=journal, run_id="inner")

        outer = asyncio.ensure_future(
            run_pipeline([WorkflowStep("nested", nested)], journal=journal, run_id="outer")
        )
        while not await journal.runs():
            await asyncio.sleep(0)
        closing = asyncio.create_task(journal.aclose())
        await asyncio.sleep(0)

        with pytest.raises(JournalError, match="it is closed; open another journal"):
            await journal.open("new", wait=False, read=bool)
        proceed.set()

        assert await closing == []
        (await outer).raise_for_failures()
        assert await statuses(make_journal()) == {"inner": "PASSED", "outer": "PASSED"}

    run_in_virtual_time(main())


@pytest.mark.parametrize("timeout_s", [60, 1e300])
def test_a_thread_that_closes_a_journal_waits_for_the_runs_of_loops(
    make_journal: Make, timeout_s: float
) -> None:
    async def main() -> None:
        journal = make_journal(close_timeout_s=timeout_s)
        run = await run_slowly(journal, clean_up_s=0.01)
        run.cancel()

        assert await asyncio.to_thread(journal.close) == []

        with pytest.raises(asyncio.CancelledError):
            await run
        assert await statuses(make_journal()) == {"r": "INTERRUPTED"}

    asyncio.run(main())


def test_a_blocking_close_waits_for_other_loops_only(make_journal: Make) -> None:
    journal = make_journal(close_timeout_s=60)
    is_active, stop = threading.Event(), threading.Event()

    async def elsewhere() -> None:
        run = await run_slowly(journal, "elsewhere", clean_up_s=0.01)
        is_active.set()
        await asyncio.to_thread(stop.wait)
        run.cancel()
        await asyncio.wait([run])

    async def main() -> None:
        thread = threading.Thread(target=asyncio.run, args=[elsewhere()])
        thread.start()
        run = await run_slowly(journal, "here", clean_up_s=0.01)
        assert await asyncio.to_thread(is_active.wait, 20)
        stop.set()

        assert journal.close() == ["here"]  # which this call blocks

        with pytest.raises(JournalError, match="closed while run 'here' was running"):
            await run
        thread.join()
        assert await statuses(make_journal()) == {"elsewhere": "INTERRUPTED", "here": "ORPHANED"}

    asyncio.run(main())


@on_sqlite
@pytest.mark.realtime
def test_a_blocking_close_waits_for_so_long(make_journal: Make) -> None:
    async def main() -> None:
        journal = make_journal(close_timeout_s=0.1)
        run = await run_slowly(journal)

        assert await asyncio.to_thread(journal.close) == ["r"]

        with pytest.raises(JournalError):
            await run

    asyncio.run(main())


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_run_of_a_stopped_loop_is_not_waited_for(make_journal: Make, is_closed: bool) -> None:
    journal = make_journal(close_timeout_s=60)
    loop = asyncio.new_event_loop()
    session, _ = loop.run_until_complete(journal.open("r", wait=False, read=bool))
    if is_closed:
        loop.close()

    assert journal.close() == ["r"]

    if is_closed:  # its run is gone, so the lease is free
        session, _ = asyncio.run(make_journal().open("r", wait=False, read=bool))
    loop.close()
    del session


def test_a_journal_renews_no_lease_of_a_closed_loop(make_journal: Make) -> None:
    journal = make_journal()
    with asyncio.Runner() as runner:
        session, _ = runner.run(journal.open("r", wait=False, read=bool))
    journal._worker._renew_at = 0.0

    journal._write_thread.submit(journal._worker.tick).result(50)

    asyncio.run(make_journal().open("r", wait=False, read=bool))
    del session


# --- a service -----------------------------------------------------------------------------------

STEPS = """
import asyncio
from asyncflow import Orchestrator, WorkflowStep
async def quick():
    return 1
async def slow(quick):
    try:
        await asyncio.sleep(SECONDS)
    finally:
        await asyncio.sleep(0.1)  # clean-up
pipeline = Orchestrator(
    [WorkflowStep("quick", quick), WorkflowStep("slow", slow, ["quick"])], name="orders"
)
"""

SERVICE = """
import contextlib, socket, sys
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from asyncflow.journal import SQLiteJournal

@contextlib.asynccontextmanager
async def lifespan(app):
    async with SQLiteJournal(sys.argv[1], lease_s=600) as journal:
        app.state.journal = journal
        yield

async def order(request):
    run_id = request.path_params["run_id"]
    journal = request.app.state.journal
    report = await pipeline.with_options(run_id=run_id, journal=journal).run()
    return PlainTextResponse(report.status)

app = Starlette(routes=[Route("/{run_id}", order)], lifespan=lifespan)
listening = socket.socket()
listening.bind(("127.0.0.1", 0))
listening.listen(100)
print(listening.getsockname()[1], flush=True)
config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=GRACE)
uvicorn.Server(config).run(sockets=[listening])
"""


@pytest.mark.process
@pytest.mark.skipif(not hasattr(signal, "SIGTERM"), reason="needs SIGTERM")
async def test_a_service_that_stops_on_sigterm_leaves_interrupted_runs(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    script = STEPS.replace("SECONDS", "60") + SERVICE.replace("GRACE", "1")
    command = [sys.executable, "-W", "error", "-c", script, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout
        port = int(service.stdout.readline())

        async def request(run_id: str) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET /{run_id} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
            return answer

        requests = [asyncio.create_task(request(f"order-{number}")) for number in range(30)]
        try:
            async with asyncio.timeout(30), SQLiteJournal(path) as journal:
                while len(await journal.runs(status="RUNNING")) < len(requests):
                    await asyncio.sleep(0.05)
            service.send_signal(signal.SIGTERM)
            await asyncio.gather(*requests, return_exceptions=True)
            service.wait(30)
        finally:
            service.kill()

    namespace: dict[str, Any] = {}
    exec(STEPS.replace("SECONDS", "0"), namespace)
    pipeline: Orchestrator = namespace["pipeline"]
    async with SQLiteJournal(path) as journal:
        assert await journal.orphans() == []
        assert {record.status for record in await journal.runs()} == {"INTERRUPTED"}
        reports = await resume_all(journal, [pipeline], interrupted=True)
    assert len(reports) == len(requests)
    for report in reports:
        assert report.all_passed
        assert [result.step_name for result in report.reused] == ["quick"]
