"""The contract of every journal, whichever database stores its runs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop
from freed import Holding, without_collector
from journal.conftest import on_sqlite
from segments import store_segment
from virtual_journals import in_virtual_time

from asyncflow import (
    Pipeline,
    RestoredOutput,
    RunReport,
    RunStatus,
    WorkflowStep,
    each,
    run_pipeline,
)
from asyncflow._core.errors import (
    HangError,
    JournalError,
    LeaseLostError,
    RunAlreadyActiveError,
    RunNotFoundError,
    RunUnreadableError,
)
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.results import REDACTED, REDACTED_OUTPUT, Payload
from asyncflow._core.history.stored_report import report_from
from asyncflow._core.record import replace
from asyncflow.events import (
    AttemptStarted,
    Event,
    RunFinished,
    RunResumed,
    RunStarted,
    StepProgressed,
    StepSucceeded,
)
from asyncflow.journal import StoredEvent
from asyncflow.journal._codec.events import event_checksum
from asyncflow.testing import VirtualTimeLoop, run_in_virtual_time

Make = Callable[..., Any]

ROOT = Path(__file__).parents[2]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to detect dead processes")


def started(run_id: str = "r", pipeline: str = "", wall_time: float = 1.0) -> RunStarted:
    return RunStarted(run_id, wall_time, {"a": (), "b": ("a",)}, pipeline)


def attempt(number: int = 1) -> AttemptStarted:
    return AttemptStarted("a", number, float(number))


async def opened(journal: Any, run_id: str = "r", *, wait: bool = False) -> Any:
    session, _ = await journal.open(run_id, wait=wait, read=bool)
    return session


async def stored_events(journal: Any, run_id: str = "r") -> list[Event]:
    return [stored.event for stored in await journal.events(run_id)]


async def a_few_loop_iterations() -> None:
    for _ in range(12):
        await asyncio.sleep(0)


async def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for another thread or process."""
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.005)


# --- writing and reading -------------------------------------------------------------------------


async def test_appended_events_are_read_when_the_run_is_opened_again(
    make_journal: Make, journal: Any
) -> None:
    events = [started(), attempt(), StepSucceeded("a", 1, 2.0, Payload("json", b"7"))]
    await store_segment(journal, "r", *events)

    again, at_ms = await make_journal().open("r", wait=False, read=lambda run: run.at_ms)

    assert at_ms == 2.0
    assert await stored_events(journal) == [*events[:2], StepSucceeded("a", 1, 2.0, 7)]
    again.append(RunFinished(3.0, RunStatus.PASSED))
    await again.close()
    last = [
        StoredEvent(3, StepSucceeded("a", 1, 2.0, 7)),
        StoredEvent(4, RunFinished(3.0, RunStatus.PASSED)),
    ]
    assert await journal.events("r", after=2) == last


async def test_a_flush_without_new_events_returns_at_once(journal: Any) -> None:
    session = await opened(journal)
    session.append(started())
    await session.flush()

    waiting = session.flush()

    with pytest.raises(StopIteration):
        waiting.send(None)
    await session.close()


async def test_the_events_of_many_runs_share_one_transaction(journal: Any) -> None:
    sessions = [await opened(journal, f"r{number}") for number in range(50)]
    count = count_writes(journal)

    for number, session in enumerate(sessions):
        session.append(started(f"r{number}"))
        session.append(attempt())
    await asyncio.gather(*(session.flush() for session in sessions))

    assert count() == 1
    await asyncio.gather(*(session.close() for session in sessions))
    assert count() == 2
    assert {len(await journal.events(f"r{number}")) for number in range(50)} == {2}


async def test_events_appended_during_a_commit_go_into_the_next_one(journal: Any) -> None:
    session, others = await opened(journal), [await opened(journal, f"r{n}") for n in range(9)]
    count = count_writes(journal)
    with paused_thread(journal):
        session.append(started())
        while session._rows:
            await asyncio.sleep(0)  # until the session submits its rows
        for number, other in enumerate(others):
            other.append(started())
            await asyncio.sleep(0)
            other.append(attempt(number + 1))

    await asyncio.gather(*(each.flush() for each in [session, *others]))

    assert count() == 2
    await asyncio.gather(*(each.close() for each in [session, *others]))


def count_writes(journal: Any) -> Callable[[], int]:
    store, calls = journal._store, []
    write = store.write
    store.write = lambda take: calls.append(None) or write(take)
    return lambda: len(calls)


class paused_thread:
    """Block the journal's worker thread inside a ``with`` block."""

    def __init__(self, journal: Any) -> None:
        self._thread = journal._write_thread
        self._resume = threading.Event()

    def __enter__(self) -> None:
        self._thread.submit(self._resume.wait, 20)

    def __exit__(self, *_: object) -> None:
        self._resume.set()


async def test_the_loop_thread_never_accesses_the_database(journal: Any) -> None:
    threads = set()
    database = journal._store.database

    def noting(call: Callable[[], Any]) -> Any:
        threads.add(threading.current_thread().name)
        return call()

    for name in ("transaction", "reading", "close"):
        setattr(database, name, partial(noting, getattr(database, name)))

    async with journal:
        session = await opened(journal)
        session.append(started())
        await session.flush()
        await session.close()
        await journal.runs()
        await journal.events("r")
        await journal.orphans()
        await journal.prune(timedelta(0))

    assert threads == {"asyncflow journal"}


def test_virtual_time_stands_still_during_a_write(make_journal: Make) -> None:
    async def main() -> float:
        async with make_journal() as journal:
            session = await opened(journal)
            for number in range(20):
                session.append(started() if number == 0 else attempt(number))
                await session.flush()
            await session.close()
        return asyncio.get_running_loop().time() - 1_000  # where virtual time starts

    assert run_in_virtual_time(main()) == 0


class DebugLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self.set_debug(True)


class EagerLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self.set_task_factory(asyncio.eager_task_factory)


LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [
    *(asyncio.SelectorEventLoop, VirtualTimeLoop, DebugLoop, uvloop.Loop),
    *([EagerLoop] if sys.version_info >= (3, 12) else []),
]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_journal_works_on_every_event_loop(make_journal: Make, loop: Any) -> None:
    async def chain(journal: Any, run_id: str) -> None:
        session = await opened(journal, run_id, wait=True)
        session.append(started(run_id))
        for number in range(1, 10):
            session.append(attempt(number))
            await session.flush()
        await session.close()

    async def main() -> None:
        async with make_journal() as journal:
            await asyncio.gather(*(chain(journal, f"r{number}") for number in range(5)))
            for number in range(5):
                assert len(await journal.events(f"r{number}")) == 10

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


async def test_a_session_leaves_no_reference_cycle(journal: Any) -> None:
    await journal.runs()
    with without_collector():
        session = await opened(journal)
        refused = weakref.ref(await refused_open(journal))
        session.watch(partial(print, session))
        session.append(started())
        await session.flush()
        await session.close()
        await journal.runs()  # the worker thread drops its reference, too
        dropped = weakref.ref(session)
        del session
        await asyncio.sleep(0)

        assert dropped() is None
        assert refused() is None


async def test_without_a_collector_a_run_and_its_resumption_free_what_its_steps_held(
    journal: Any,
) -> None:
    holding = Holding()

    async def hold() -> None:
        thing = holding()
        raise ValueError(f"after {id(thing)}")

    async def run() -> None:
        await run_pipeline([WorkflowStep("a", hold)], journal=journal, run_id="r")

    await journal.runs()
    with without_collector():
        for count in (1, 2):
            await run()
            await journal.runs()  # the worker thread drops its references, too
            await asyncio.sleep(0)
            assert len(holding) == count
            assert holding.alive() == []


async def refused_open(journal: Any) -> Exception:
    try:
        await opened(journal)
    except RunAlreadyActiveError as error:
        return error
    raise AssertionError


@on_sqlite
@pytest.mark.realtime
def test_a_hang_is_detected_at_once_while_a_journal_is_open(make_journal: Make) -> None:
    async def main() -> None:
        await (await opened(make_journal())).close()
        await asyncio.get_running_loop().create_future()

    begun = time.monotonic()
    with pytest.raises(HangError):
        run_in_virtual_time(main())
    assert time.monotonic() - begun < 4


# --- concurrent reads and writes -----------------------------------------------------------------


async def test_readers_do_not_block_writers(journal: Any) -> None:
    await store_run(journal, "r")
    reading, proceed = threading.Event(), threading.Event()

    def read(run: StoredRun) -> int:
        reading.set()
        assert proceed.wait(50)
        return len(run.segments)

    opening = asyncio.create_task(journal.open("r", wait=False, read=read))
    await wait_until(reading.is_set)
    history = asyncio.create_task(journal.runs())
    async with asyncio.timeout(40):
        await store_run(journal, "other")
    assert not history.done()
    proceed.set()

    session, count = await opening
    assert count == 1
    assert await ids(history) == ["r", "other"]
    session.append(attempt())
    await session.close()
    assert await stored_events(journal) == [started(), attempt()]


async def test_a_reader_that_misses_events_is_refused(journal: Any) -> None:
    """The reading connection can lead to a standby that lags behind."""
    await store_run(journal, "r", status=RunStatus.PASSED)
    journal._reading.events = lambda run_id, after=0: [(1, started())]

    with pytest.raises(JournalError, match=r"up to 1 of the 2 events of run 'r'"):
        await opened(journal)

    del journal._reading.events
    await (await opened(journal)).close()  # the claim was released


async def test_a_lease_lost_before_its_events_are_read_is_reported_as_lost(
    make_journal: Make, database: Any
) -> None:
    first, second = make_journal(), make_journal()
    await store_run(first, "r")
    reading, proceed = threading.Event(), threading.Event()
    events = first._reading.events

    def read_late(*args: Any) -> Any:
        reading.set()
        assert proceed.wait(20)
        return events(*args)

    first._reading.events = read_late
    opening = asyncio.create_task(opened(first))
    await wait_until(reading.is_set)
    database.expire_leases()
    session = await opened(second)
    session.append(attempt())
    await session.flush()
    proceed.set()

    with pytest.raises(LeaseLostError, match="another process has taken over run 'r'"):
        await opening

    session.append(attempt(2))  # the other owner continues
    await session.close()
    assert await stored_events(second) == [started(), attempt(), attempt(2)]


# --- ownership -----------------------------------------------------------------------------------


async def test_a_run_has_one_owner(make_journal: Make) -> None:
    first, second = make_journal(owner="the first"), make_journal()
    session = await opened(first)

    for journal in (first, second):
        with pytest.raises(RunAlreadyActiveError, match="'r' is active in the first") as caught:
            await opened(journal)
        assert (caught.value.run_id, caught.value.owner) == ("r", "the first")

    await session.close()
    await (await opened(second)).close()


async def test_any_number_of_callers_read_a_passed_run_at_once(
    make_journal: Make, database: Any
) -> None:
    first, second = make_journal(), make_journal()
    await store_run(first, "r", status=RunStatus.PASSED)
    owner = await opened(first)

    def report(run: StoredRun) -> RunReport:
        return report_from(run, lambda step, payload: payload)

    for journal in (first, second):
        for wait in (False, True):
            session, answer = await journal.open("r", wait=wait, read=report)
            assert (answer.status, answer.total_duration_ms) == ("PASSED", 9.0)
            session.watch(print)
            session.append(attempt())
            await session.flush()
            await session.close()
            with pytest.raises(ZeroDivisionError) as caught:
                await journal.open("r", wait=wait, read=lambda _: 1 / 0)
            assert caught.value.__context__ is None

    owner.append(RunResumed("r", 1.0, 2.0, {"a": ()}, {}))
    await owner.flush()
    database.query("UPDATE runs SET status = 'passed'")  # which contradicts the last event
    with pytest.raises(RunUnreadableError, match="later ones are missing"):
        await journal.open("r", wait=False, read=report)
    await owner.close()


async def test_resuming_a_passed_run_requires_its_lease(make_journal: Make) -> None:
    first, second = make_journal(owner="the first"), make_journal()
    await store_run(first, "r", status=RunStatus.PASSED)
    owner = await opened(first)
    seen: list[int] = []

    def read(run: StoredRun) -> int:
        seen.append(len(run.segments))
        return len(run.segments)

    with pytest.raises(RunAlreadyActiveError, match="run 'r' is active in the first") as caught:
        await second.open("r", wait=False, read=read)
    assert caught.value.__context__ is None
    waiting = asyncio.create_task(second.open("r", wait=True, read=read))
    await wait_until(lambda: len(seen) == 2)
    owner.append(RunResumed("r", 9.0, 2.0, {"a": ()}, {}))
    assert not waiting.done()

    await owner.close()

    session, count = await waiting
    assert count == 2
    assert seen == [1, 1, 2]
    await session.close()


async def test_a_caller_can_wait_for_an_active_run(make_journal: Make) -> None:
    first, second = make_journal(), make_journal()
    session = await opened(first)
    waiting = asyncio.create_task(opened(second, wait=True))
    await wait_until(lambda: second._write_thread.has_started)
    session.append(started())
    assert not waiting.done()

    await session.close()

    other = await waiting
    assert await stored_events(second) == [started()]
    await other.close()


@pytest.mark.exhaustive
def test_a_caller_waits_for_an_active_run_in_virtual_time(make_journal: Make) -> None:
    async def main() -> float:
        async with make_journal() as journal:
            session = await opened(journal)
            waiting = asyncio.create_task(opened(journal, wait=True))
            await asyncio.sleep(3_600)
            await session.close()
            await (await waiting).close()
        return asyncio.get_running_loop().time() - 1_000  # where virtual time starts

    assert 3_600 <= run_in_virtual_time(main()) < 3_601.1


async def test_a_waiting_caller_can_be_cancelled(make_journal: Make) -> None:
    first, second = make_journal(), make_journal()
    session = await opened(first)
    waiting = asyncio.create_task(opened(second, wait=True))
    await wait_until(lambda: second._write_thread.has_started)

    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    await session.close()
    await (await opened(first, wait=True)).close()  # the cancelled caller may still hold it


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_claim_is_released_if_its_events_cannot_be_read(
    make_journal: Make, error: BaseException
) -> None:
    def read(run: StoredRun) -> None:
        raise error

    async def main() -> None:
        journal = make_journal()
        with pytest.raises(type(error)) as caught:
            await journal.open("r", wait=False, read=read)
        assert caught.value is error
        await (await opened(journal)).close()

    asyncio.run(main())


async def test_a_claim_is_released_if_its_caller_is_cancelled_during_the_claim(
    journal: Any,
) -> None:
    claiming, proceed = threading.Event(), threading.Event()
    claim = journal._store.claim

    def slowly(*args: Any) -> Any:
        claiming.set()
        proceed.wait(20)
        return claim(*args)

    journal._store.claim = slowly
    opening = asyncio.create_task(opened(journal))
    await wait_until(claiming.is_set)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    proceed.set()

    await (await opened(journal)).close()


async def test_a_claim_is_released_if_its_caller_is_cancelled_right_after_it(
    journal: Any,
) -> None:
    opening = asyncio.create_task(opened(journal))
    await asyncio.sleep(0)  # the claim is submitted
    # The thread has the claim; the task has not received it yet.
    journal._write_thread.submit(int).result(50)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening

    await (await opened(journal)).close()


async def test_a_claim_is_free_if_its_caller_is_cancelled_after_the_journal_is_closed(
    make_journal: Make,
) -> None:
    journal = make_journal()
    opening = asyncio.create_task(opened(journal))
    for _ in range(2):  # the claim is submitted with those of its turn
        await asyncio.sleep(0)
    journal._write_thread.submit(int).result(50)  # and made
    assert journal.close() == ["r"]
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening

    await (await opened(make_journal())).close()


async def test_a_claim_is_released_if_its_coroutine_is_closed(journal: Any) -> None:
    opening = journal.open("r", wait=False, read=bool)
    opening.send(None)
    journal._write_thread.submit(int).result(50)  # the claim exists

    opening.close()

    await (await opened(journal)).close()


async def test_a_claim_cancelled_before_it_starts_is_not_made(journal: Any, database: Any) -> None:
    await journal.runs()
    with paused_thread(journal):
        opening = asyncio.create_task(opened(journal))
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening

    await journal.runs()

    assert database.query("SELECT run_id FROM leases") == []


async def test_cancelling_a_flush_or_a_close_loses_no_event(journal: Any) -> None:
    session = await opened(journal)
    with paused_thread(journal):
        session.append(started())
        for wait in (session.flush, session.flush, session.close, session.close):
            waiting = asyncio.create_task(wait())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    await session.close()

    assert await stored_events(journal) == [started()]
    await (await opened(journal)).close()


async def test_a_close_cancelled_before_it_starts_still_releases_the_run(journal: Any) -> None:
    session = await opened(journal)
    session.append(started())

    closing = asyncio.create_task(session.close())
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing

    async with asyncio.timeout(20):
        await (await opened(journal, wait=True)).close()
    assert await stored_events(journal) == [started()]


async def test_a_session_can_be_closed_again(journal: Any) -> None:
    session = await opened(journal)
    session.append(started())

    await asyncio.gather(session.close(), session.close())
    await session.close()

    session.append(attempt())
    await session.flush()
    assert await stored_events(journal) == [started()]


# --- losing a lease ------------------------------------------------------------------------------


def steal_lease(database: Any, run_id: str = "r") -> None:
    database.query(f"UPDATE leases SET token = token + 1, owner = 'x' WHERE run_id = '{run_id}'")


async def test_a_session_without_its_lease_writes_nothing(journal: Any, database: Any) -> None:
    session, other = await opened(journal), await opened(journal, "other")
    failures: list[JournalError] = []
    session.watch(failures.append)
    other.watch(failures.append)
    session.append(started())
    await session.flush()
    steal_lease(database)

    session.append(attempt())
    session.append_checkpoint("a", None, ONE)
    session.append_note(StepProgressed("a", 1, 1.0, 1))
    other.append(started("other"))
    await other.flush()

    await wait_until(lambda: bool(failures))
    (failure,) = failures
    assert isinstance(failure, LeaseLostError)
    assert "taken over run 'r'" in str(failure)
    assert await stored_events(journal) == [started()]
    assert await stored_events(journal, "other") == [started("other")]
    session.append(attempt(2))
    session.append_note(StepProgressed("a", 2, 2.0, 2))
    with pytest.raises(LeaseLostError):
        await session.close()
    with pytest.raises(LeaseLostError):
        await session.close()
    await other.close()
    assert database.query("SELECT owner FROM leases WHERE run_id = 'r'") == [("x",)]
    for table in ("checkpoints", "notes"):
        assert database.query(f"SELECT run_id FROM {table}") == []


async def test_after_a_failure_no_flush_returns_even_if_its_events_are_stored(journal: Any) -> None:
    session = await opened(journal)
    with paused_thread(journal):
        session.append(started())
        waiting = asyncio.create_task(session.flush())
        await a_few_loop_iterations()
    journal._write_thread.submit(int).result(50)  # the event is stored; the loop does not know yet
    session._lease.fail(JournalError("x", "the lease is lost"))

    assert await stored_events(journal) == [started()]
    await asyncio.sleep(0)

    assert not waiting.done()
    waiting.cancel()
    session.append(attempt())
    assert session._rows == []
    with pytest.raises(JournalError, match="the lease is lost"):
        await session.close()


async def test_no_event_is_written_after_a_failed_write(journal: Any) -> None:
    session = await opened(journal)
    store = journal._store
    write = store.write

    def failing_once(take: Any) -> Any:
        store.write = write
        raise JournalError("x", "the line is dead")

    store.write = failing_once
    with paused_thread(journal):
        session.append(started())
        while session._rows:
            await asyncio.sleep(0)  # until the session submits its rows
        session.append(attempt())

    with pytest.raises(JournalError, match="the line is dead"):
        await session.close()

    assert await journal.runs() == []
    session, segments = await journal.open("r", wait=False, read=lambda run: run.segments)
    assert segments == []
    await session.close()


@pytest.mark.realtime
async def test_leases_of_idle_runs_are_renewed(make_journal: Make, database: Any) -> None:
    journal = make_journal(lease_s=1)
    session = await opened(journal)

    def lease() -> tuple[float, float]:
        ((expires_at, renewed_at),) = database.query("SELECT expires_at, renewed_at FROM leases")
        return expires_at, renewed_at

    first, claimed_at = lease()
    assert first - claimed_at == pytest.approx(1, abs=0.1)
    await wait_until(lambda: lease()[0] > first + 1.5)  # longer than the lease

    with pytest.raises(RunAlreadyActiveError):
        await opened(make_journal())
    await session.close()
    expires_at, renewed_at = lease()
    assert expires_at == 0
    assert renewed_at >= claimed_at + 1.4  # a dead run counts until then


async def test_a_short_run_renews_nothing(journal: Any) -> None:
    calls: list[Any] = []
    journal._store.renew = lambda *args: calls.append(args) or set()
    await store_run(journal, "r1")
    await store_run(journal, "r2", status=RunStatus.PASSED)
    await journal.runs()

    assert calls == []


@on_sqlite
@pytest.mark.realtime
async def test_a_blocked_loop_keeps_its_leases(make_journal: Make, database: Any) -> None:
    journal = make_journal(lease_s=1)
    session = await opened(journal)
    ((first,),) = database.query("SELECT expires_at FROM leases")

    end = time.monotonic() + 50
    while database.query("SELECT expires_at FROM leases")[0][0] < first + 1.5:
        assert time.monotonic() < end

    session.append(started())
    await session.close()
    assert await stored_events(journal) == [started()]


async def test_a_renewal_reports_a_lost_lease(make_journal: Make, database: Any) -> None:
    journal = make_journal(lease_s=1)
    session, other = await opened(journal), await opened(journal, "other")
    lost = asyncio.get_running_loop().create_future()
    session.watch(lost.set_result)

    steal_lease(database)

    failure = await asyncio.wait_for(lost, 20)
    assert isinstance(failure, LeaseLostError)
    with pytest.raises(LeaseLostError):
        await session.close()
    other.append(started("other"))
    await other.close()


@on_sqlite
@pytest.mark.realtime
async def test_a_lease_that_cannot_be_renewed_fails_the_run(make_journal: Make) -> None:
    journal = make_journal(lease_s=0.2)
    session = await opened(journal)
    lost = asyncio.get_running_loop().create_future()
    session.watch(lost.set_result)

    def renew(*_: object) -> None:
        raise JournalError("x", "the line is dead")

    journal._store.renew = renew

    failure = await asyncio.wait_for(lost, 20)
    assert "the lease of run 'r' could not be renewed: the line is dead" in str(failure)
    with pytest.raises(JournalError, match="could not be renewed"):
        await session.close()


async def test_a_transaction_that_an_event_breaks_reports_the_cause(journal: Any) -> None:
    session = await opened(journal)
    session.append(started())
    session.append(AttemptStarted("a", 1, -1.0))  # the tables take no such time

    with pytest.raises(JournalError, match=r"(?i)check constraint") as caught:
        await session.close()

    assert caught.value.__cause__ is not None
    assert await journal.runs() == []


@on_sqlite
@pytest.mark.realtime
async def test_a_failed_renewal_is_retried(make_journal: Make) -> None:
    journal = make_journal(lease_s=0.5)
    session = await opened(journal)
    store, calls = journal._store, []
    renew = store.renew

    def failing_once(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 5:  # after the first lease would have expired
            raise JournalError("x", "the line is dead")
        return renew(*args)

    store.renew = failing_once

    await wait_until(lambda: len(calls) > 7)
    session.append(started())
    await session.close()


async def test_another_journal_takes_over_a_run_whose_lease_has_expired(
    make_journal: Make, database: Any
) -> None:
    first, second = make_journal(), make_journal()
    session = await opened(first)
    session.append(started())
    await session.flush()
    database.expire_leases()

    again = await opened(second)
    session.append(attempt())

    with pytest.raises(LeaseLostError):
        await session.close()
    again.append(attempt(2))
    await again.close()
    assert await stored_events(second) == [started(), attempt(2)]


@on_sqlite
@pytest.mark.realtime
async def test_a_session_of_a_closed_loop_is_released(make_journal: Make, database: Any) -> None:
    journal = make_journal(lease_s=2)

    def open_in_another_loop() -> None:
        asyncio.run(opened(journal))

    thread = threading.Thread(target=open_in_another_loop)
    thread.start()
    await asyncio.to_thread(thread.join)

    session = await asyncio.wait_for(opened(journal, wait=True), 20)

    await session.close()


# --- leases that were given up -------------------------------------------------------------------


class full_disk:
    """Let every write of a journal fail inside a ``with`` block, also the release of a lease."""

    def __init__(self, journal: Any) -> None:
        self._store = journal._store

    def __enter__(self) -> None:
        for name in ("write", "release", "renew", "claim"):
            setattr(self._store, name, self._fail)

    def __exit__(self, *_: object) -> None:
        for name in ("write", "release", "renew", "claim"):
            delattr(self._store, name)

    def _fail(self, *_: object) -> None:
        raise JournalError("x", "the disk is full")


@pytest.mark.parametrize("own", [True, False])
async def test_a_run_that_this_process_gave_up_is_free_to_it_at_once(
    make_journal: Make, own: bool
) -> None:
    journal, other = make_journal(lease_s=600), make_journal()
    session = await opened(journal)
    session.append(started())
    await session.flush()
    with full_disk(journal):
        session.append(attempt())
        with pytest.raises(JournalError, match="the disk is full"):
            await session.close()
        with pytest.raises(JournalError, match="the disk is full"):
            await opened(journal)
    assert [orphan.run_id for orphan in await other.orphans()] == ["r"]

    again = await opened(journal if own else other)

    session.append(attempt(2))  # the session that was given up writes no more
    with pytest.raises(JournalError, match="the disk is full"):
        await session.close()
    with pytest.raises(RunAlreadyActiveError):
        await opened(other)
    again.append(attempt(7))
    await again.close()
    assert await stored_events(journal) == [started(), attempt(7)]


async def test_a_run_that_still_cleans_up_is_not_free(make_journal: Make) -> None:
    journal, other = make_journal(), make_journal()
    refused = []

    async def act() -> None:
        disk.__enter__()
        try:
            await asyncio.sleep(3_600)
        finally:
            disk.__exit__()
            for each in (journal, other):
                with pytest.raises(RunAlreadyActiveError):
                    await opened(each)
                refused.append(each)

    disk = full_disk(journal)
    steps = [WorkflowStep("a", act), WorkflowStep("b", lambda: asyncio.sleep(0.01))]
    with pytest.raises(JournalError, match="the disk is full"):
        await run_pipeline(steps, journal=journal, run_id="r")
    assert refused == [journal, other]

    with pytest.raises(ZeroDivisionError):
        await other.open("r", wait=False, read=lambda _: 1 / 0)


# --- closing a journal ---------------------------------------------------------------------------


async def test_closing_a_journal_fails_its_active_runs(make_journal: Make) -> None:
    journal = make_journal(close_timeout_s=0)
    session = await opened(journal)
    failed = asyncio.get_running_loop().create_future()
    session.watch(failed.set_result)
    session.append(started())
    await session.flush()

    await journal.aclose()

    assert "closed while run 'r' was running" in str(await failed)
    with pytest.raises(JournalError, match="closed while run 'r' was running"):
        await session.close()
    with pytest.raises(JournalError, match="it is closed"):
        await opened(journal)
    await journal.aclose()
    journal.close()


async def test_closing_a_journal_fails_a_run_that_is_being_opened(journal: Any) -> None:
    opening = asyncio.create_task(opened(journal))
    await asyncio.sleep(0)  # the claim is submitted

    journal.close()

    with pytest.raises(JournalError, match="it is closed"):
        await opening


# --- loops, threads and processes ----------------------------------------------------------------


def test_loops_in_several_threads_share_a_journal(journal: Any) -> None:
    rounds = 30

    async def work(name: str) -> None:
        async def one(run_id: str) -> None:
            session = await opened(journal, run_id)
            session.append(started(run_id))
            for number in range(1, rounds):
                session.append(attempt(number))
                await session.flush()
            await session.close()

        await asyncio.gather(*(one(f"{name}{number}") for number in range(5)))

    threads = [threading.Thread(target=lambda name=name: asyncio.run(work(name))) for name in "xyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def check() -> None:
        for name in "xyz":
            for number in range(5):
                stored = await journal.events(f"{name}{number}")
                assert [each.position for each in stored] == list(range(1, rounds + 1))

    asyncio.run(check())


def start_process(database: Any, body: str) -> subprocess.Popen[str]:
    """Start a process that runs ``body`` with ``make``, ``opened`` and ``say``."""
    script = f"""
import asyncio, os, sys
{database.source}
from asyncflow._core.errors import *
from asyncflow.events import *
def say(*words):
    print(*words, flush=True)
async def opened(journal, run_id="r", wait=False):
    return (await journal.open(run_id, wait=wait, read=bool))[0]
{body}
"""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


HOLDER = """
async def main():
    journal = make(lease_s=LEASE)
    session = await opened(journal)
    lost = asyncio.get_running_loop().create_future()
    session.watch(lost.set_result)
    session.append(RunStarted("r", 1.0, {"a": ()}))
    await session.flush()
    say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    session.append(AttemptStarted("a", 1, 1.0))
    failure = await asyncio.wait_for(lost, 20)
    say(type(failure).__name__)
    try:
        await session.close()
    except LeaseLostError:
        say("lost")
    journal.close()
asyncio.run(main())
"""


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


@pytest.mark.process
@LINUX
async def test_another_process_takes_over_the_run_of_a_killed_process_at_once(
    journal: Any, database: Any
) -> None:
    with start_process(database, HOLDER.replace("LEASE", "600")) as process:
        assert next_line(process) == "ready"
        with pytest.raises(RunAlreadyActiveError, match=f"process {process.pid} on "):
            await opened(journal)
        assert await journal.orphans() == []

        process.kill()
        process.wait()

        (orphan,) = await journal.orphans()
        assert orphan.run_id == "r"
        session = await opened(journal)
        assert await journal.orphans() == []
        await session.close()
        (orphan,) = await journal.orphans()  # it has not ended, and no process runs it
        assert orphan.owner is None


@pytest.mark.process
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
async def test_a_process_suspended_beyond_its_lease_writes_nothing_more(
    make_journal: Make, database: Any
) -> None:
    journal = make_journal()
    with start_process(database, HOLDER.replace("LEASE", "0.5")) as process:
        assert next_line(process) == "ready"
        process.send_signal(signal.SIGSTOP)

        session = await asyncio.wait_for(opened(journal, wait=True), 20)
        session.append(attempt(7))
        await session.flush()
        process.send_signal(signal.SIGCONT)

        assert process.stdin
        print(file=process.stdin, flush=True)
        assert (next_line(process), next_line(process)) == ("LeaseLostError", "lost")
        session.append(attempt(8))
        await session.close()
    stored = await stored_events(journal)
    assert [event.attempt for event in stored[1:]] == [7, 8]  # type: ignore[union-attr]


RACER = """
async def main():
    async with make() as journal:
        say("ready")
        sys.stdin.readline()
        try:
            session = await opened(journal)
        except RunAlreadyActiveError:
            say("refused")
        else:
            say("mine")
            sys.stdin.readline()
            await session.close()
asyncio.run(main())
"""


@pytest.mark.process
def test_only_one_of_two_processes_gets_a_run(database: Any) -> None:
    processes = [start_process(database, RACER) for _ in range(2)]
    for process in processes:  # both find an empty database and create the schema
        assert next_line(process) == "ready"

    for process in processes:
        assert process.stdin
        print(file=process.stdin, flush=True)

    assert sorted(map(next_line, processes)) == ["mine", "refused"]
    for process in processes:
        process.communicate(input="\n")
        assert process.returncode == 0


WRITER = """
async def main():
    async with make() as journal:
        async def one(number):
            run_id = f"{os.getpid()}-{number}"
            session = await opened(journal, run_id)
            session.append(RunStarted(run_id, 1.0, {"a": ()}))
            for number in range(20):
                session.append(AttemptStarted("a", number, 1.0))
                await session.flush()
            await session.close()
        await asyncio.gather(*map(one, range(5)))
asyncio.run(main())
"""


@pytest.mark.process
def test_processes_write_concurrently(database: Any) -> None:
    processes = [start_process(database, WRITER) for _ in range(3)]

    for process in processes:
        process.communicate()
        assert process.returncode == 0

    assert database.query("SELECT count(*) FROM events") == [(3 * 5 * 21,)]


@on_sqlite
@pytest.mark.process
def test_an_unclosed_journal_does_not_keep_the_interpreter_alive(database: Any) -> None:
    body = """
async def main():
    global journal
    journal = make()
    session = await opened(journal)
    session.append(RunStarted("r", 1.0, {"a": ()}))
    await session.flush()
    say("stored")
asyncio.run(main())
"""
    before = time.monotonic()
    with start_process(database, body) as process:
        out, _ = process.communicate(timeout=50)

    assert out == "stored\n"
    assert process.returncode == 0
    assert time.monotonic() - before < 10  # it does not wait for the lease to expire
    assert database.query("SELECT count(*) FROM events") == [(1,)]


async def test_a_dropped_journal_warns_and_ends_its_thread(database: Any) -> None:
    journal = database.make()
    await journal.runs()
    thread = journal._write_thread
    dropped = weakref.ref(journal)

    with pytest.warns(ResourceWarning, match=r"unclosed .*Journal"):
        del journal

    assert dropped() is None
    await asyncio.to_thread(thread.join)


async def test_an_unused_journal_is_dropped_without_a_warning(database: Any) -> None:
    database.make()


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_must_open_its_own_journal(make_journal: Make) -> None:
    journal = make_journal()
    asyncio.run(journal.runs())
    pid = os.fork()
    if not pid:
        code = 1
        try:
            asyncio.run(journal.runs())
        except JournalError as error:
            code = 0 if "parent of this process" in str(error) else 2
            journal.close()
        finally:
            os._exit(code)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    asyncio.run(journal.runs())


# --- stored runs ---------------------------------------------------------------------------------


async def store_run(
    journal: Any,
    run_id: str,
    *,
    status: Any = None,
    pipeline: str = "",
    wall_time: float = 1.0,
) -> None:
    ended = [RunFinished(9.0, status)] if status else []
    await store_segment(journal, run_id, started(run_id, pipeline, wall_time), *ended)


async def ids(runs: Any) -> list[str]:
    return [run.run_id for run in await runs]


async def test_runs_are_listed_newest_first(journal: Any) -> None:
    await store_run(journal, "r1", status=RunStatus.PASSED, wall_time=100.0)
    await store_run(journal, "r3", status=RunStatus.FAILED, wall_time=300.0, pipeline='"nightly')
    await store_run(journal, "r2", wall_time=200.0)

    assert await ids(journal.runs()) == ["r3", "r2", "r1"]
    assert await ids(journal.runs(status="orphaned")) == ["r2"]
    assert await ids(journal.runs(status="FAILED", pipeline='"nightly')) == ["r3"]
    assert await ids(journal.runs(status="PASSED", pipeline='"nightly')) == []
    assert await ids(journal.runs(since=200)) == ["r3", "r2"]
    assert await ids(journal.runs(since=datetime.fromtimestamp(250))) == ["r3"]
    assert await ids(journal.runs(limit=2)) == ["r3", "r2"]
    assert await ids(journal.runs(limit=None)) == ["r3", "r2", "r1"]
    newest = (await journal.runs(limit=1))[0]
    assert (newest.status, newest.pipeline, newest.started_at) == ("FAILED", '"nightly', 300.0)
    assert newest.updated_at == pytest.approx(time.time(), abs=60)
    assert newest.owner is None
    with pytest.raises(ValueError, match=r"status must be one of RUNNING, .* not 'done'"):
        await journal.runs(status="done")


async def test_a_record_follows_the_events_of_its_run(make_journal: Make) -> None:
    journal = make_journal(owner="me")

    async def record() -> tuple[str, str | None]:
        (run,) = await journal.runs()
        return run.status, run.owner

    session = await opened(journal)
    session.append(started())
    await session.flush()
    assert await record() == ("RUNNING", "me")
    session.append(RunFinished(1.0, RunStatus.INTERRUPTED))
    await session.close()
    assert await record() == ("INTERRUPTED", None)
    session = await opened(journal)
    session.append(RunResumed("r", 1.0, 2.0, {"a": ()}, {}))
    await session.flush()
    assert await record() == ("RUNNING", "me")
    session.append(RunFinished(2.0, RunStatus.PASSED))
    await session.close()
    assert await record() == ("PASSED", None)
    resumed = RunResumed("r", 2.0, 2.0, {"a": ()}, {})
    await store_segment(journal, "r", resumed, RunFinished(2.0, RunStatus.FAILED))
    assert await record() == ("FAILED", None)


async def test_events_can_be_read_from_a_position(journal: Any) -> None:
    session = await opened(journal)
    output = StepSucceeded("a", 1, 1.0, journal.encode("the output", {"x": [1]}, Any))
    for event in (started(), attempt(), output):
        session.append(event)
    await session.flush()

    assert (await journal.events("r"))[0] == StoredEvent(1, started())
    assert await journal.events("r", after=2) == [
        StoredEvent(3, StepSucceeded("a", 1, 1.0, {"x": [1]}))
    ]
    assert await journal.events("r", after=3) == []
    await session.close()


async def test_a_value_that_cannot_be_decoded_becomes_a_placeholder(make_journal: Make) -> None:
    pickling, plain = make_journal(codec="cloudpickle"), make_journal()
    inputs = {"secret": REDACTED, "url": pickling.encode("x", "http", str)}
    begun = RunStarted("r", 1.0, {"a": ()}, inputs=inputs)
    pickled = StepSucceeded("a", 1, 1.0, pickling.encode("the output", {1, 2}, Any))
    nothing = StepSucceeded("a", 0, 1.0, None)
    await store_segment(pickling, "r", begun, attempt(), pickled, nothing)

    seen = await stored_events(plain)

    shown = {"secret": REDACTED_OUTPUT, "url": "http"}
    assert seen[0] == RunStarted("r", 1.0, {"a": ()}, inputs=shown)
    placeholder, none = (event.output for event in seen[2:])  # type: ignore[union-attr]
    assert isinstance(placeholder, RestoredOutput)
    assert "pickled" in placeholder.text
    assert none is None
    assert (await stored_events(pickling))[2] == StepSucceeded("a", 1, 1.0, {1, 2})


async def test_a_report_of_a_resumed_run_has_the_events_that_its_journal_has(journal: Any) -> None:
    def pipeline(version: str) -> Pipeline:
        async def rows() -> list[int]:
            return [1, 2]

        async def scale(base: int, rows: int = each("rows")) -> int:
            if rows == 2 and version == "1":
                raise ValueError("two")
            return base * rows

        found = Pipeline("p", journal=journal, fail_fast=False)
        found.step(rows, version=version)
        found.step(scale)
        return found

    await pipeline("1").with_options(run_id="r").run(base=10)

    resumed = await pipeline("2").with_options(run_id="r").run()
    read = await pipeline("2").report("r"), await journal.report("r")

    stored = [each.event for each in await journal.events("r")]
    assert [type(event) for event in stored].count(RunResumed) == 1
    for report in (resumed, *read):
        back = RunReport.from_json(report.to_json())
        for events in (report.events(), back.events()):
            told = [(type(event), getattr(event, "item", None)) for event in events]
            assert told == [(type(event), getattr(event, "item", None)) for event in stored]
        assert back.to_html() == report.to_html()
    for report in read:
        assert [*map(repr, report.events())] == [*map(repr, stored)]


async def test_inconsistent_events_make_no_report(journal: Any) -> None:
    unknown = StepSucceeded("x", 1, 2.0, None)
    await store_segment(journal, "r", started(), attempt(), unknown)

    for read in (journal.report, journal.events, partial(opened, journal)):
        with pytest.raises(RunUnreadableError, match=r"does not follow .*KeyError") as caught:
            await read("r")
        assert (caught.value.run_id, caught.value.position) == ("r", 3)


async def test_an_event_of_a_newer_version_is_reported_and_left_unchanged(
    journal: Any, database: Any
) -> None:
    await store_run(journal, "r")
    paused = event_checksum("r", 1, "RunPaused", None, None, None, 0.0, None, None, None)
    before = database.query("SELECT kind, payload, checksum FROM events")[0]
    database.query(f"UPDATE events SET kind = 'RunPaused', payload = NULL, checksum = {paused}")

    for read in (journal.report, journal.events, partial(opened, journal)):
        with pytest.raises(RunUnreadableError, match=r"there is no event 'RunPaused'.* upgrade"):
            await read("r")

    kind, payload, checksum = before
    database.query(
        f"UPDATE events SET kind = '{kind}', payload = '{payload}', checksum = {checksum}"
    )
    await (await opened(journal)).close()  # the claim was released


# Checkpoints.


async def saved_in(journal: Any, run_id: str = "r") -> dict[Any, Payload]:
    found: dict[Any, Payload] = {}
    session, _ = await journal.open(
        run_id, wait=False, read=lambda stored: found.update(stored.journal.checkpoints)
    )
    await session.close()
    return found


ONE, TWO = Payload("json", b"1"), Payload("json", b"[2]")


async def test_the_latest_checkpoint_of_each_step_and_item_is_read_when_its_run_is_opened(
    journal: Any,
) -> None:
    session = await opened(journal)
    session.append(started())
    session.append_checkpoint("a", None, ONE)
    session.append_checkpoint("a", None, TWO)
    session.append_checkpoint('"\0', 3, ONE)
    await session.flush()
    session.append_checkpoint("a", 0, ONE)
    session.append_checkpoint('"\0', 3, TWO)
    session.append_checkpoint("b", None, ONE)
    await session.close()
    stored = await saved_in(journal)
    session = await opened(journal)
    session.append_checkpoint("a", None, None)
    session.append_checkpoint("b", None, None)
    session.append_checkpoint("b", None, TWO)
    await session.close()

    assert stored == {("a", None): TWO, ("a", 0): ONE, ('"\0', 3): TWO, ("b", None): ONE}
    assert await saved_in(journal) == {("a", 0): ONE, ('"\0', 3): TWO, ("b", None): TWO}


async def test_a_damaged_checkpoint_is_left_out_and_logged(
    journal: Any, database: Any, caplog: Any
) -> None:
    session = await opened(journal)
    session.append(started())
    session.append_checkpoint("a", None, ONE)
    session.append_checkpoint("b", None, TWO)
    await session.close()
    database.query("UPDATE checkpoints SET checksum = checksum + 1 WHERE step = 'a'")

    assert await saved_in(journal) == {("b", None): TWO}
    assert "a checkpoint of run 'r' is damaged and was left out: 'a'" in caplog.text


# Results that steps with `cache_ms` reuse.


async def store_result(journal: Any, run_id: str, output: Payload, key: str = "key") -> None:
    session = await opened(journal, run_id)
    session.append(started(run_id))
    session.append(attempt())
    session.append(StepSucceeded("a", 1, 2.0, output))
    stored = session.append_cached(key, 1, 1.5)
    session.append(RunFinished(3.0, RunStatus.FAILED))
    await stored
    await session.close()


async def test_the_latest_success_of_a_call_is_found_until_it_is_too_old(
    journal: Any, database: Any
) -> None:
    await store_result(journal, "r", ONE)
    first = await journal.cached("key", 60_000)
    await store_result(journal, "other", TWO)
    second = await journal.cached("key", 60_000)
    database.query("UPDATE cached_results SET stored_at = stored_at - 61")

    assert first == ("r", 1, 1.5, ONE)
    assert second == ("other", 1, 1.5, TWO)
    assert await journal.cached("key", 60_000) is None
    assert await journal.cached("key", 120_000) == second
    assert await journal.cached("another", 60_000) is None


async def test_a_success_on_its_way_when_an_earlier_event_is_not_stored_is_found_by_nobody(
    journal: Any, database: Any
) -> None:
    session = await opened(journal)
    session.append(started())
    session.append(attempt())
    await session.flush()
    session.append(StepSucceeded("a", 1, 2.0, ONE))
    session.append_cached("key", 1, 1.5)
    lease, batch = session.take_batch()
    lease.fail(JournalError("journal", "the disk is full"))

    journal._worker.submit([(lease, batch)])
    await journal._write(journal._worker.commit)

    assert database.query("SELECT key FROM cached_results") == []
    with pytest.raises(JournalError, match="the disk is full"):
        await session.close()


async def test_a_success_that_is_not_stored_is_found_by_nobody(journal: Any, database: Any) -> None:
    session = await opened(journal)
    session.append(started())
    session.append(attempt())
    await session.flush()
    database.query("UPDATE leases SET token = token + 1")
    session.append(StepSucceeded("a", 1, 2.0, ONE))
    stored = session.append_cached("key", 1, 1.5)
    with pytest.raises(LeaseLostError):
        await session.close()

    assert await journal.cached("key", 60_000) is None
    assert not stored.done()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE cached_results SET position = position - 1",
        "UPDATE cached_results SET attempts = 2",
        "UPDATE events SET checksum = checksum + 1",
    ],
)
async def test_a_damaged_result_is_not_found(
    journal: Any, database: Any, caplog: Any, damage: str
) -> None:
    await store_result(journal, "r", ONE)
    database.query(damage)

    assert await journal.cached("key", 60_000) is None
    assert "a result of run 'r' can't be reused: " in caplog.text


async def test_only_ended_runs_are_pruned(journal: Any, database: Any) -> None:
    await store_run(journal, "old", status=RunStatus.PASSED)
    await store_run(journal, "failed", status=RunStatus.FAILED)
    await store_run(journal, "running")
    database.query("UPDATE runs SET updated_at = 1")
    await store_run(journal, "new", status=RunStatus.PASSED)
    await store_run(journal, "active", status=RunStatus.PASSED)
    database.query("UPDATE runs SET updated_at = 1 WHERE run_id = 'active'")
    session = await opened(journal, "active")

    assert await journal.prune(timedelta(hours=1), status="PASSED") == 1
    assert await journal.prune(timedelta(hours=1)) == 1
    assert sorted(await ids(journal.runs())) == ["active", "new", "running"]
    assert {run_id for (run_id,) in database.query("SELECT run_id FROM leases")} == {
        *("active", "new", "running")
    }
    assert {run_id for (run_id,) in database.query("SELECT run_id FROM events")} == {
        *("active", "new", "running")
    }
    await session.close()
    with pytest.raises(ValueError, match="older_than must be finite and at least 0 s"):
        await journal.prune(timedelta(-1))
    with pytest.raises(ValueError, match="status must be"):
        await journal.prune(timedelta(0), status="done")
    with pytest.raises(ValueError, match=r"status can't be RUNNING; forget\(\)"):
        await journal.prune(timedelta(0), status="RUNNING")


UNNEEDED = {"passed", "failed", "cancelled", "nested of passed", "nested of nested", "nested alone"}


@in_virtual_time
async def test_a_service_deletes_no_run_that_it_continues_or_a_step_of_which_started_it(
    journal: Any, database: Any
) -> None:
    ended = {status.lower(): (status, None) for status in ("PASSED", "FAILED", "WAITING")}
    ended |= {cause: ("INTERRUPTED", cause) for cause in ("cancelled", "drained", "resource")}
    for name, (status, cause) in ended.items():
        end = RunFinished(1.0, RunStatus(status), cause=cause)
        await store_segment(journal, name, started(name), end)
    await store_segment(journal, "orphaned", started("orphaned"))
    nested = {f"nested of {name}": name for name in ("passed", "drained", "waiting", "orphaned")}
    nested |= {"nested of nested": "nested of passed", "nested of kept": "nested of drained"}
    nested |= {"nested alone": "gone"}
    for name, parent in nested.items():
        cause = "resource" if name == "nested alone" else None
        status = RunStatus.INTERRUPTED if cause else RunStatus.FAILED
        begun = replace(started(name), parent=parent, parent_step="a")
        await store_segment(journal, name, begun, RunFinished(1.0, status, cause=cause))
    database.query("UPDATE runs SET updated_at = updated_at - 7200")
    for name in ("new", "active"):
        await store_run(journal, name, status=RunStatus.PASSED)
    database.query("UPDATE runs SET updated_at = updated_at - 7200 WHERE run_id = 'active'")
    session = await opened(journal, "active")
    before = {*await ids(journal.runs())}

    count = await journal._prune_unneeded(3600)

    left = {*await ids(journal.runs())}
    assert before - left == UNNEEDED
    assert count == len(UNNEEDED)
    events = {run_id for (run_id,) in database.query("SELECT run_id FROM events")}
    assert events == left
    assert await journal._prune_unneeded(3600) == 0
    await session.close()


async def test_a_service_keeps_a_run_that_was_answered_lately(journal: Any, database: Any) -> None:
    asks = replace(started("r"), signals={"approved": {}})
    await store_segment(journal, "r", asks, RunFinished(1.0, RunStatus.FAILED))
    database.query("UPDATE runs SET updated_at = 1")
    await journal.signal("r", "approved", True)

    assert await journal._prune_unneeded(3600) == 0
    database.query("UPDATE signals SET sent_at = 1")
    assert await journal._prune_unneeded(3600) == 1


@in_virtual_time
async def test_runs_are_deleted_by_the_clock_of_virtual_time(journal: Any, database: Any) -> None:
    wall_time = asyncio.get_running_loop().wall_time()
    asks = replace(started("answered"), signals={"approved": {}})
    for begun in (started("r"), asks):
        begun = replace(begun, wall_time=wall_time)
        await store_segment(journal, begun.run_id, begun, RunFinished(1.0, RunStatus.FAILED))
    await asyncio.sleep(86_400)
    await journal.signal("answered", "approved", True)

    await asyncio.sleep(3599)
    day = timedelta(days=1)
    deleted = [await journal._prune_unneeded(90_000), await journal.prune(day + timedelta(hours=1))]
    assert deleted == [0, 0]
    await asyncio.sleep(2)
    assert await journal._prune_unneeded(90_000) == 1
    await asyncio.sleep(86_400)

    assert await ids(journal.runs()) == ["answered"]
    assert await journal.prune(day + timedelta(hours=1)) == 1


@in_virtual_time
async def test_a_service_deletes_many_runs_in_small_transactions_with_rests(
    journal: Any, database: Any
) -> None:
    for number in range(40):
        attempts = [attempt(number) for number in range(90)]
        ended = RunFinished(1.0, RunStatus.PASSED)
        await store_segment(journal, f"r{number}", started(f"r{number}"), *attempts, ended)
    database.query("UPDATE runs SET updated_at = 1")
    store, portions, loop = journal._store, [], asyncio.get_running_loop()
    prune = store.prune_unneeded
    store.prune_unneeded = lambda ids, *of: portions.append(len(ids)) or prune(ids, *of)
    began_s = loop.time()

    assert await journal._prune_unneeded(3600) == 40

    assert portions == [10] * 4
    assert loop.time() - began_s == pytest.approx(5 * 0.02)  # the last one is about keys


@pytest.mark.parametrize("age", [90, 0.5, True, "90 days", None])
async def test_an_age_without_a_unit_prunes_nothing(journal: Any, age: Any) -> None:
    await store_run(journal, "r", status=RunStatus.PASSED)

    with pytest.raises(TypeError, match=r"such as timedelta\(days=90\), not .*: a number does not"):
        await journal.prune(age)

    assert await ids(journal.runs()) == ["r"]


async def test_pruning_deletes_large_runs_one_by_one(journal: Any) -> None:
    for run_id, count in (("small 1", 1), ("small 2", 1), ("large 1", 1_500), ("large 2", 2_500)):
        attempts = [attempt(number) for number in range(count)]
        ended = RunFinished(1.0, RunStatus.PASSED)
        await store_segment(journal, run_id, started(run_id), *attempts, ended)
    store, portions = journal._store, []
    prune = store.prune
    store.prune = lambda ids, *age: portions.append(ids) or prune(ids, *age)

    assert await journal.prune(timedelta(0)) == 4

    assert portions == [["large 1"], ["large 2"], ["small 1", "small 2"]]


async def test_leases_of_runs_that_never_started_are_pruned(journal: Any, database: Any) -> None:
    await (await opened(journal, "refused")).close()
    session = await opened(journal, "beginning")
    await store_run(journal, "running")

    assert await journal.prune(timedelta(0), status="PASSED") == 0
    assert len(database.query("SELECT run_id FROM leases")) == 3
    assert await journal.prune(timedelta(0)) == 0

    assert sorted(database.query("SELECT run_id FROM leases")) == [("beginning",), ("running",)]
    session.append(started("beginning"))
    await session.close()


@pytest.mark.parametrize("status", [None, RunStatus.PASSED, RunStatus.INTERRUPTED])
async def test_a_run_can_be_forgotten(journal: Any, database: Any, status: Any) -> None:
    await store_run(journal, "r", status=status)
    await store_run(journal, "other")

    await journal.forget("r")

    with pytest.raises(RunNotFoundError):
        await journal.forget("r")


@pytest.mark.parametrize("delete", ["prune", "forget"])
async def test_all_that_a_run_has_stored_goes_with_it(
    journal: Any, database: Any, delete: str
) -> None:
    for run_id in "r", "other":
        session = await opened(journal, run_id)
        for event in (started(run_id), attempt(), StepSucceeded("a", 1, 2.0, ONE)):
            session.append(event)
        session.append_checkpoint("b", None, ONE)
        session.append_note(StepProgressed("a", 1, 1.0, 1))
        stored = session.append_cached(f"key of {run_id}", 1, 1.5)
        session.append(RunFinished(3.0, RunStatus.FAILED))
        await stored
        await session.close()
    database.query("UPDATE runs SET updated_at = 1 WHERE run_id = 'r'")

    await (journal.prune(timedelta(hours=1)) if delete == "prune" else journal.forget("r"))

    for table in ("events", "leases", "runs", "checkpoints", "notes", "cached_results"):
        assert database.query(f"SELECT DISTINCT run_id FROM {table}") == [("other",)], table
    assert await journal.cached("key of r", 60_000) is None


async def test_an_active_run_is_not_forgotten(
    make_journal: Make, journal: Any, database: Any
) -> None:
    session = await opened(make_journal(owner="me"))
    session.append(started())
    await session.flush()

    with pytest.raises(RunAlreadyActiveError, match="'r' is active in me"):
        await journal.forget("r")
    assert await stored_events(journal) == [started()]

    database.expire_leases()
    await journal.forget("r")
    session.append(attempt())
    with pytest.raises(LeaseLostError):
        await session.close()


async def test_a_run_pruned_during_a_read_is_not_found(journal: Any, database: Any) -> None:
    await store_run(journal, "r", status=RunStatus.PASSED)
    events = journal._reading.events

    def after_pruning(*filters: Any) -> Any:
        for table in ("events", "runs", "leases"):
            database.query(f"DELETE FROM {table}")
        return events(*filters)

    journal._reading.events = after_pruning

    with pytest.raises(RunNotFoundError):
        await journal.report("r")
    with pytest.raises(RunNotFoundError):
        await journal.events("r")


async def test_tokens_start_from_the_clock(journal: Any, database: Any) -> None:
    """A run id that is reused after pruning gets a token above all that it had before."""
    await store_run(journal, "r", status=RunStatus.PASSED)
    ((before,),) = database.query("SELECT token FROM leases")
    assert before == pytest.approx(time.time() * 1_000, abs=60_000)

    await (await opened(journal)).close()

    assert database.query("SELECT token FROM leases") == [(before + 1,)]


async def test_a_run_id_unsafe_in_urls_or_terminals_is_refused(journal: Any) -> None:
    for run_id in ("a\0b", "\ud800", '"a', "a\n", "\x1b[2J", "a\x7f", "a\x85", ".", ".."):
        with pytest.raises(ValueError, match="so it must have no control characters") as caught:
            await opened(journal, run_id)

        assert f"run_id can't be {run_id!r}: " in str(caught.value)
    with pytest.raises(ValueError, match="must not be empty; leave it out for a generated one"):
        await opened(journal, "")


async def test_every_other_run_id_is_accepted(journal: Any, make_journal: Make) -> None:
    ids = ["...", "./a", "a/../b", " ", "größe 7", "'a\"", "🚀", "%0A", "-x", "\\"]

    for run_id in ids:
        await store_run(journal, run_id)

    assert {record.run_id for record in await make_journal().runs()} == set(ids)
    assert [(await journal.record(run_id)).run_id for run_id in ids] == ids


@pytest.mark.parametrize("ask", ["record", "report", "events", "cancel", "forget"])
async def test_an_impossible_run_id_is_not_found(journal: Any, ask: str) -> None:
    await store_run(journal, "ab")

    for run_id in ("", "a\0b", "\ud800", '"a'):
        with pytest.raises(RunNotFoundError) as caught:
            await getattr(journal, ask)(run_id)

        assert repr(run_id) in str(caught.value)
        str(caught.value).encode()


async def test_a_long_run_is_read_some_rows_at_a_time_as_of_one_moment(
    journal: Any, database: Any
) -> None:
    async def numbers() -> list[int]:
        return list(range(1_000))

    async def double(numbers: int) -> int:
        return 2 * numbers

    steps = [
        WorkflowStep("numbers", numbers),
        WorkflowStep("double", double, ["numbers"], map_over="numbers"),
    ]
    await run_pipeline(steps, journal=journal, run_id="r")
    whole = await journal.events("r")

    def read() -> list[Any]:
        events = journal._reading.events("r")
        first = next(events)
        database.query("DELETE FROM events WHERE run_id = 'r' AND position > 100")
        return [first, *events]

    assert len(await journal._read(read)) == len(whole) > 2_000
