"""Runs with a PostgreSQL journal survive server faults, or fail and can be resumed."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from postgres_server import PostgresServer

from asyncflow import Pipeline, RunReport, WorkflowStep, each, run_pipeline
from asyncflow._core.errors import JournalError, LeaseLostError
from asyncflow.events import AttemptStarted, Event, RunFinished, RunStarted, StepSucceeded
from asyncflow.journal import PostgresJournal

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def journal(dsn: str) -> AsyncIterator[PostgresJournal]:
    async with PostgresJournal(dsn, lease_s=20.0) as journal:
        yield journal


async def opened(journal: PostgresJournal, run_id: str = "r") -> Any:
    session, _ = await journal.open(run_id, wait=False, read=bool)
    return session


async def at_once(number: int) -> None: ...


def chain(
    length: int,
    calls: Counter[str] | None = None,
    wait: Callable[[int], Awaitable[object]] = at_once,
) -> list[WorkflowStep]:
    """Return steps that each take the output of the previous one, count their calls, and wait."""

    def step(number: int) -> WorkflowStep:
        async def action(before: int = -1) -> int:
            assert before == number - 1
            if calls is not None:
                calls[name] += 1
            await wait(number)
            return number

        name = f"s{number}"
        depends_on = {"before": f"s{number - 1}"} if number else {}
        return WorkflowStep(name, action, depends_on=depends_on)

    return [step(number) for number in range(length)]


# --- faults that a run survives -------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_runs_survive_restarts_of_the_server(
    journal: PostgresJournal, postgres_server: PostgresServer, mode: str
) -> None:
    calls: Counter[str] = Counter()
    runs = asyncio.gather(
        *(
            run_pipeline(chain(60, calls), run_id=f"r{number}", journal=journal)
            for number in range(4)
        )
    )

    for _ in range(3):
        await asyncio.to_thread(postgres_server.restart, mode)
    reports = await runs

    assert all(report.all_passed for report in reports)
    assert set(calls.values()) == {4}
    await assert_complete(journal, reports)


async def test_runs_survive_repeatedly_cut_connections(
    journal: PostgresJournal, postgres_server: PostgresServer
) -> None:
    calls: Counter[str] = Counter()
    succeeded: asyncio.Queue[None] = asyncio.Queue()
    cuts = [asyncio.Event() for _ in range(11)]

    def observe(event: Event) -> None:
        if isinstance(event, StepSucceeded):
            succeeded.put_nowait(None)

    async def wait_for_cuts(number: int) -> None:
        """Let five steps pass for each cut, however long one takes."""
        if number >= 5:
            await cuts[number // 5 - 1].wait()

    runs = asyncio.gather(
        *(
            run_pipeline(
                chain(60, calls, wait_for_cuts),
                run_id=f"r{number}",
                journal=journal,
                observers=[observe],
            )
            for number in range(4)
        )
    )

    for cut in cuts:
        while not succeeded.empty():
            succeeded.get_nowait()
        await succeeded.get()  # so a commit happens between two cuts
        while not await asyncio.to_thread(postgres_server.cut_connections, JOURNAL_CONNECTIONS):
            pass  # the journal is about to connect
        cut.set()
    reports = await runs

    assert all(report.all_passed for report in reports)
    assert set(calls.values()) == {4}
    await assert_complete(journal, reports)


JOURNAL_CONNECTIONS = "application_name = 'asyncflow'"


async def assert_complete(journal: PostgresJournal, reports: list[RunReport]) -> None:
    """Assert that each event of each run is stored once and yields the same report."""
    for report in reports:
        events = await journal.events(report.run_id)
        assert [event.position for event in events] == list(range(1, len(events) + 1))
        assert isinstance(events[0].event, RunStarted)
        assert isinstance(events[-1].event, RunFinished)
        stored = json.loads((await journal.report(report.run_id)).to_json())
        fresh = json.loads(report.to_json())
        assert stored | {"events": None} == fresh | {"events": None}


async def test_a_waiting_caller_survives_a_restart_of_the_server(
    dsn: str, journal: PostgresJournal, postgres_server: PostgresServer
) -> None:
    session = await opened(journal)
    async with PostgresJournal(dsn, lease_s=20.0) as other:
        waiting = asyncio.create_task(other.open("r", wait=True, read=bool))
        await other.runs()

        await asyncio.to_thread(postgres_server.restart, "immediate")
        assert not waiting.done()
        await session.close()

        theirs, _ = await waiting
        await theirs.close()


# --- faults that fail a run, which can be resumed -------------------------------------------------


async def test_a_run_fails_when_the_server_is_down_for_longer_than_a_lease(
    dsn: str, postgres_server: PostgresServer
) -> None:
    calls: Counter[str] = Counter()
    steps = chain(6, calls)

    async def pull_the_plug(before: int) -> int:
        calls["s3"] += 1
        if calls["s3"] == 1:
            await asyncio.to_thread(postgres_server.stop, "immediate")
        return 3

    steps[3] = WorkflowStep("s3", pull_the_plug, depends_on={"before": "s2"})
    async with PostgresJournal(dsn, lease_s=0.6) as journal:
        with pytest.raises(JournalError, match="the connection was lost") as caught:
            await run_pipeline(steps, run_id="r", journal=journal)
        with pytest.raises(JournalError, match="the connection was lost"):
            await run_pipeline(steps, run_id="r", journal=journal)
        postgres_server.start()
        report = await run_pipeline(steps, run_id="r", journal=journal, on_active="wait")

    assert not isinstance(caught.value, LeaseLostError)
    assert report.all_passed
    # The end of s3 was not stored, so s3 runs again; stored steps do not, and s4 had not started.
    assert calls == {"s0": 1, "s1": 1, "s2": 1, "s3": 2, "s4": 1, "s5": 1}


async def test_a_run_fails_when_the_server_hangs_for_longer_than_a_lease(
    dsn: str, postgres_server: PostgresServer
) -> None:
    async with PostgresJournal(dsn, lease_s=0.6) as journal:
        session = await opened(journal)
        failed = asyncio.get_running_loop().create_future()
        session.watch(failed.set_result)
        session.append(RunStarted("r", 1.0, {"a": ()}))
        await session.flush()

        with postgres_server.frozen():
            session.append(AttemptStarted("a", 1, 1.0))
            failure = await failed
        with pytest.raises(JournalError):
            await session.close()

        assert "the server has not answered for 0.6 s" in str(failure)
        events = [stored.event for stored in await journal.events("r")]
        assert events[0] == RunStarted("r", 1.0, {"a": ()})
        again, run = await journal.open("r", wait=True, read=lambda run: run)
        assert run.started == events[0]
        await again.close()


async def test_a_journal_can_be_closed_while_the_server_is_down(
    dsn: str, postgres_server: PostgresServer
) -> None:
    journal = PostgresJournal(dsn, lease_s=0.6)
    session = await opened(journal)
    postgres_server.stop()
    try:
        session.append(RunStarted("r", 1.0, {"a": ()}))

        await journal.aclose()
        with pytest.raises(JournalError):
            await session.close()
    finally:
        postgres_server.start()


# --- several processes ----------------------------------------------------------------------------

RUN_ALL = """
import asyncio, os, random, sys
from asyncflow import WorkflowStep, run_pipeline
from asyncflow._core.errors import RunAlreadyActiveError
from asyncflow.journal import PostgresJournal

dsn, seed = sys.argv[1:]

def chain(run_id):
    def step(number):
        async def action(before=-1):
            assert before == number - 1
            os.write(1, f"{run_id} {number}\\n".encode())  # atomic
            return number
        needs = {"before": f"s{number - 1}"} if number else {}
        return WorkflowStep(f"s{number}", action, depends_on=needs)
    return [step(number) for number in range(8)]

async def attempt(run_id, journal):
    try:
        report = await run_pipeline(chain(run_id), run_id=run_id, journal=journal)
    except RunAlreadyActiveError:
        return
    assert report.all_passed

async def main():
    names = [f"r{number}" for number in range(12)]
    random.Random(seed).shuffle(names)
    async with PostgresJournal(dsn, lease_s=20.0) as journal:
        await asyncio.gather(*(attempt(name, journal) for name in names))

asyncio.run(main())
"""


def replica(dsn: str, seed: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", RUN_ALL, dsn, str(seed)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


ALL_STEPS = sorted(f"r{run} {step}" for run in range(12) for step in range(8))


def test_each_run_is_executed_by_only_one_of_several_processes(dsn: str) -> None:
    processes = [replica(dsn, seed) for seed in range(3)]

    with ThreadPoolExecutor() as executor:
        outputs = list(executor.map(lambda process: process.communicate(timeout=50)[0], processes))

    assert [process.returncode for process in processes] == [0, 0, 0]
    # A process that opens an ended run gets its report and runs no step again.
    assert sorted(line for each in outputs for line in each.splitlines()) == ALL_STEPS


async def test_another_process_finishes_the_runs_of_a_killed_process(
    dsn: str, postgres_server: PostgresServer
) -> None:
    with replica(dsn, 1) as first:
        assert first.stdout
        calls = Counter(first.stdout.readline().strip() for _ in range(40))
        first.kill()
        calls.update(first.stdout.read().splitlines())
    postgres_server.restart("immediate")

    with replica(dsn, 2) as second:
        calls.update(second.communicate(timeout=50)[0].splitlines())

    assert second.returncode == 0
    assert sorted(calls) == ALL_STEPS
    async with PostgresJournal(dsn) as journal:
        for record in await journal.runs():
            assert record.status == "PASSED"
            await assert_each_call_was_stored_first(journal, record.run_id, calls)


async def assert_each_call_was_stored_first(
    journal: PostgresJournal, run_id: str, calls: Counter[str]
) -> None:
    events = [stored.event for stored in await journal.events(run_id)]
    begun = Counter(event.step for event in events if isinstance(event, AttemptStarted))
    succeeded = Counter(event.step for event in events if isinstance(event, StepSucceeded))
    for number in range(8):
        assert calls[f"{run_id} {number}"] <= begun[f"s{number}"]
        assert succeeded[f"s{number}"] == 1


# --- the rights of the program --------------------------------------------------------------------


async def test_the_rights_that_the_guide_grants_suffice(
    dsn: str, postgres_server: PostgresServer
) -> None:
    guide = (ROOT / "docs" / "guides" / "deployment.md").read_text(encoding="utf-8")
    (sql,) = re.findall(r"(?ms)^```sql\n(.*?)^```", guide)
    create_role, _, grants = sql.partition("\n")
    database = dsn.rpartition("/")[2]
    async with PostgresJournal(dsn) as owner:
        await owner.runs()  # creates the schema
    postgres_server.execute(create_role, database)
    postgres_server.execute(grants, database)
    try:
        async with PostgresJournal(dsn.replace("postgres@", "app@"), logs="INFO") as journal:
            report = await run_pipeline(chain(2), journal=journal, run_id="r")
            await journal.cancel("r")
            await journal.forget("r")
            remaining = await journal.runs()
    finally:
        postgres_server.execute("DROP OWNED BY app; DROP ROLE app", database)

    assert report.all_passed
    assert remaining == []


async def test_equal_results_that_two_processes_store_at_once_cause_no_deadlock(dsn: str) -> None:
    def pipeline(journal: PostgresJournal, numbers: list[int]) -> Pipeline:
        made = Pipeline("squares", journal=journal)

        @made.step
        async def source() -> list[int]:
            return numbers

        @made.step(cache_ms=1)
        async def square(number: int = each(source)) -> int:
            await asyncio.sleep(0.001)
            return number**2

        return made

    numbers = [*range(200)]
    async with PostgresJournal(dsn) as one, PostgresJournal(dsn) as other:
        for _ in range(3):
            await asyncio.gather(pipeline(one, numbers).run(), pipeline(other, numbers[::-1]).run())

    await asyncio.sleep(1)  # the server counts with a delay
    with psycopg.connect(dsn) as connection:
        query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        assert connection.execute(query).fetchone() == (0,)
