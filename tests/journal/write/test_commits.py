"""A run waits for the disk once per step."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from freed import without_collector

from asyncflow import (
    Orchestrator,
    Pipeline,
    RunAlreadyActiveError,
    Signal,
    WorkflowStep,
    current_step,
)
from asyncflow._core.history.results import Payload
from asyncflow._core.running.checkpoints import StoredCall
from asyncflow.journal import SQLiteJournal
from asyncflow.journal._database.sqlite import SQLite
from asyncflow.journal._write.cached import remembered
from asyncflow.journal._write.checkpoints import stored_call
from asyncflow.journal._write.store import Claim, CommitBatch, Refusals, Store

STEPS = 20
OVERHEAD = 4
"""Claim, start of the run, start of its first step, end of the run, release."""


@pytest.fixture
def disk_commits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The COMMIT statements of all connections that the test opens."""
    made: list[str] = []
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect

    def note(statement: str) -> None:
        if statement == "COMMIT":
            made.append(statement)

    def traced(*arguments: object, **options: object) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.set_trace_callback(note)
        return connection

    monkeypatch.setattr(sqlite3, "connect", traced)
    return made


async def return_one() -> int:
    return 1


def chains(count: int) -> list[WorkflowStep]:
    return [
        WorkflowStep(
            f"{chain}-{position}", return_one, [f"{chain}-{position - 1}"] if position else []
        )
        for chain in range(count)
        for position in range(STEPS)
    ]


@pytest.mark.parametrize("schedule", ["tiers", "ready"])
@pytest.mark.parametrize("count", [1, 50])
async def test_a_step_costs_one_commit_that_concurrent_steps_share(
    disk_commits: list[str], tmp_path: Path, count: int, schedule: str
) -> None:
    orchestrator = Orchestrator(chains(count), schedule=schedule)
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        disk_commits.clear()  # ignore those that created the tables

        await orchestrator.with_options(journal=journal).run()

        assert STEPS < len(disk_commits) <= STEPS + OVERHEAD


async def test_a_rerun_commits_what_it_takes_over_with_its_start(tmp_path: Path) -> None:
    steps = [WorkflowStep(f"s{number}", return_one) for number in range(300)]
    steps.append(WorkflowStep("last", return_one, [step.name for step in steps]))
    kinds: list[list[str]] = []
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        orchestrator = Orchestrator(steps, journal=journal)
        await orchestrator.with_options(run_id="r").run()
        write = journal._store.write

        def note(take: Callable[[], Sequence[CommitBatch]]) -> Refusals:
            def taking() -> Sequence[CommitBatch]:
                batches = take()
                kinds.append([row.kind for batch in batches for row in batch.rows])
                return batches

            return write(taking)

        journal._store.write = note  # type: ignore[method-assign]
        await orchestrator.rerun("r", "f", from_="last")

    assert kinds[0][:301] == ["RunStarted", *["ResultReused"] * 300]
    assert [*chain.from_iterable(kinds)].count("ResultReused") == 300


def test_runs_that_share_results_store_them_in_one_order(tmp_path: Path) -> None:
    database = SQLite(str(tmp_path / "runs.db"), "NORMAL", 1.0)
    store, claim = Store(database), Claim("owner", "process", 60, lambda process: False)
    stored: list[str] = []
    execute = store._execute

    def note(cursor: Any, sql: str, parameters: Sequence[Any] = ()) -> None:
        if "INTO cached_results" in sql:
            stored.append(parameters[0])
        execute(cursor, sql, parameters)

    batches = [
        CommitBatch(
            *(run_id, *store.claim([(run_id, claim)]), [], None, False),
            remembered=[remembered(key, run_id, 1, 1, 0.0, None) for key in keys],
        )
        for run_id, keys in (("r1", "db"), ("r2", "ca"))
    ]
    store._execute = note  # type: ignore[method-assign]
    store.write(lambda: batches)
    database.close()

    assert stored == ["a", "b", "c", "d"]


@asynccontextmanager
async def at_once(journal: SQLiteJournal, jobs: int = 1) -> AsyncIterator[None]:
    """Hold the thread that writes until so many jobs wait for it, and questions for their turn."""
    thread, free = journal._write_thread, threading.Event()
    thread.submit(free.wait)
    try:
        while thread._jobs.qsize():
            await asyncio.sleep(0)
        yield
        while thread._jobs.qsize() < jobs:
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
    finally:
        free.set()


async def have_read(journal: SQLiteJournal) -> None:
    """Wait until all tasks have what they read before they write."""
    await asyncio.sleep(0)
    await journal._read(int)


def waiting(journal: SQLiteJournal, run_id: str) -> Orchestrator:
    steps = [WorkflowStep("approved", Signal(bool)), WorkflowStep("go", return_one, ["approved"])]
    return Orchestrator(steps, journal=journal).with_options(run_id=run_id)


async def test_runs_that_start_at_once_and_signals_that_come_at_once_share_commits(
    disk_commits: list[str], tmp_path: Path
) -> None:
    run_ids = [f"r{number}" for number in range(20)]
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        disk_commits.clear()
        async with at_once(journal):
            runs = [asyncio.create_task(waiting(journal, run_id).run()) for run_id in run_ids]
        await asyncio.gather(*runs)
        starting = len(disk_commits)
        disk_commits.clear()
        async with at_once(journal):
            sent = [
                asyncio.create_task(journal.signal(run_id, "approved", True)) for run_id in run_ids
            ]
            await have_read(journal)
        await asyncio.gather(*sent)
        sending = len(disk_commits)

    assert starting < 20
    assert sending <= 2


async def test_each_of_several_claims_and_signals_at_once_has_an_answer_of_its_own(
    tmp_path: Path,
) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        async with at_once(journal):
            runs = [asyncio.create_task(waiting(journal, run_id).run()) for run_id in "rrs"]
        reports = await asyncio.gather(*runs, return_exceptions=True)
        async with at_once(journal):
            sent = [
                asyncio.create_task(journal.signal(run_id, "approved", value))
                for run_id, value in (("r", True), ("r", False), ("s", False))
            ]
            await have_read(journal)
        answers = await asyncio.gather(*sent, return_exceptions=True)

        assert [type(report) is RunAlreadyActiveError for report in reports].count(True) == 1
        assert [type(answer) for answer in answers].count(ValueError) == 1
        assert answers[2] is None
        assert [run.run_id for run in await journal.due()] == ["r", "s"]


async def test_what_is_done_beside_a_failure_is_done_nevertheless(tmp_path: Path) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        await asyncio.gather(*(waiting(journal, run_id).run() for run_id in "abc"))
        signals = journal._worker._signals
        send = signals._send

        def send_or_fail(cursor: Any, sent: Any, sender: str) -> None:
            if sent.run_id == "b":
                raise TypeError("that of b alone")
            send(cursor, sent, sender)

        signals._send = send_or_fail  # type: ignore[method-assign]
        async with at_once(journal):
            sent = [
                asyncio.create_task(journal.signal(run_id, "approved", True)) for run_id in "abc"
            ]
            await have_read(journal)
        answers = await asyncio.gather(*sent, return_exceptions=True)

        assert [type(answer) for answer in answers] == [type(None), TypeError, type(None)]
        assert sorted(run.run_id for run in await journal.due()) == ["a", "c"]


async def test_a_signal_whose_sender_was_cancelled_before_its_turn_is_not_sent(
    tmp_path: Path,
) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        await asyncio.gather(*(waiting(journal, run_id).run() for run_id in "rs"))
        async with at_once(journal):
            sent = [
                asyncio.create_task(journal.signal(run_id, "approved", True)) for run_id in "rs"
            ]
            await have_read(journal)
            while not journal._write_thread._jobs.qsize():
                await asyncio.sleep(0)
            sent[0].cancel()
            await asyncio.wait(sent[:1])
        await sent[1]
        due = [run.run_id for run in await journal.due()]
        await journal.signal("r", "approved", False)

    assert due == ["s"]


async def test_a_run_that_was_cancelled_while_it_starts_can_be_started_at_once(
    tmp_path: Path,
) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        await waiting(journal, "r").run()
        reading = threading.Event()
        journal._read_thread.submit(reading.wait)  # the history of the run is read behind this
        cancelled = asyncio.create_task(waiting(journal, "r").run())
        while not (lease := journal._worker._claimed.get("r")) or lease.released:
            await asyncio.sleep(0)
        async with at_once(journal, 2):
            other = asyncio.create_task(waiting(journal, "s").run())
            while not journal._write_thread._jobs.qsize():
                await asyncio.sleep(0)
            cancelled.cancel()
            await asyncio.wait([cancelled])
            again = asyncio.create_task(waiting(journal, "r").run())
        reading.set()
        reports = await asyncio.gather(other, again)

    assert [report.status for report in reports] == ["WAITING", "WAITING"]


async def test_leases_are_renewed_between_many_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, sizes = Store.claim, []

    def count(store: Store, wanted: Any) -> Any:
        sizes.append(len(wanted))
        return claim(store, wanted)

    monkeypatch.setattr(Store, "claim", count)
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        async with at_once(journal):
            runs = [asyncio.create_task(waiting(journal, f"r{n}").run()) for n in range(150)]
        await asyncio.gather(*runs)

    assert sizes == [64, 64, 22]


async def test_a_refused_claim_or_signal_is_in_no_reference_cycle(tmp_path: Path) -> None:
    kinds = RunAlreadyActiveError, ValueError
    async with (
        SQLiteJournal(tmp_path / "runs.db") as journal,
        SQLiteJournal(tmp_path / "runs.db") as other,
    ):
        session, _ = await journal.open("r", wait=False, read=bool)
        await waiting(journal, "s").run()
        await journal.signal("s", "approved", True)
        with without_collector():
            for refused in (
                other.open("r", wait=False, read=bool),
                other.signal("s", "approved", False),
            ):
                with suppress(*kinds):  # `pytest.raises` would keep it
                    pytest.fail(f"not refused: {await refused}")
            del refused
            for thread in (other._write_thread, other._read_thread):
                await asyncio.wrap_future(thread.submit(int))  # it has forgotten the job before
            left = [
                error
                for error in gc.get_objects()
                if type(error) in kinds and "run '" in str(error)
            ]
        await session.close()

    assert left == []


async def test_a_run_of_this_process_is_refused_without_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        session, _ = await journal.open("r", wait=False, read=bool)
        with monkeypatch.context() as patch:
            patch.delattr(Store, "claim")
            with pytest.raises(RunAlreadyActiveError):
                await journal.open("r", wait=False, read=bool)
        await session.close()


async def test_a_look_for_signals_that_finds_nothing_costs_no_commit(
    disk_commits: list[str], tmp_path: Path
) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        disk_commits.clear()
        await waiting(journal, "r").run()

    assert len(disk_commits) <= 3  # the claim, the wait, the end of the segment


@pytest.mark.parametrize("is_release", [True, False])
def test_only_a_release_may_be_done_again_after_another_process_has_claimed_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_release: bool
) -> None:
    """As after a lost connection, whose commit nobody has acknowledged.

    What a call has returned may not be there: its process must not go on as if it were.
    """
    store = Store(SQLite(str(tmp_path / "runs.db"), "FULL", 1.0))
    mine, theirs = (Claim(name, name, 0.0, lambda process: False) for name in ("me", "they"))
    (token,) = store.claim([("r", mine)])

    def claimed_between(attempt: Callable[[], Any]) -> Any:
        monkeypatch.undo()
        attempt()
        (other,) = store.claim([("r", theirs)])
        assert other == token + 1
        return attempt()

    monkeypatch.setattr(store.database, "retry", claimed_between)

    call = stored_call("r", ("a", None), "ask", StoredCall(1, None, Payload("json", b"1")))
    statements = [] if is_release else [call]
    batch = CommitBatch("r", token, (), None, release=is_release, statements=statements)
    refused = {} if is_release else {("r", token): None}
    assert store.write(lambda: [batch]) == refused
    store.database.close()


async def test_what_is_done_again_after_its_commit_leads_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a lost connection, whose commit nobody has acknowledged."""

    def twice(self: SQLite, attempt: Callable[[], Any]) -> Any:
        attempt()
        return attempt()

    monkeypatch.setattr(SQLite, "retry", twice)
    store = Store(SQLite(str(tmp_path / "lone.db"), "FULL", 1.0))
    claim, rival = (
        Claim(owner, f'{{"claim": "{owner}"}}', 30.0, lambda process: False)
        for owner in ("me", "rival")
    )
    pipeline = Pipeline("orders")
    pipeline.signal("approved", bool)

    @pipeline.step(max_retries=2, cache_ms=1_000)
    async def count() -> int:
        step = current_step()
        step.checkpoint(step.attempt)
        step.progress(step.attempt)
        step.attach("rows", [{"n": step.attempt}])
        if step.attempt == 1:
            raise ValueError("once more")
        return step.last_checkpoint

    assert store.claim([("r", claim)]) == store.claim([("r", claim)])
    assert isinstance(*store.claim([("r", rival)]), RunAlreadyActiveError)
    store.database.close()
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        running = pipeline.with_options(journal=journal, run_id="r")
        waiting = await running.run()
        await journal.signal("r", "approved", True)
        report = await running.run()
        kinds = [type(each.event).__name__ for each in await journal.events("r")]
        notes = await journal.notes("r")
        await journal.forget("r")

    assert (waiting.status, report.status, report["count"].output) == ("WAITING", "PASSED", 1)
    assert (kinds.count("AttemptStarted"), kinds.count("StepSucceeded")) == (2, 2)
    assert [type(each.event).__name__ for each in notes].count("StepProgressed") == 2
