"""What every journal promises, whatever database it keeps its runs in."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop

from asyncflow import RestoredOutput, RunReport
from asyncflow._core.errors import (
    HangError,
    JournalError,
    LeaseLostError,
    PayloadError,
    RunAlreadyActiveError,
    RunNotFoundError,
)
from asyncflow._core.replay import StoredRun
from asyncflow._core.results import REDACTED, REDACTED_OUTPUT, Payload
from asyncflow.events import (
    AttemptStarted,
    Event,
    RunFinished,
    RunResumed,
    RunStarted,
    StepSucceeded,
)
from asyncflow.journal import StoredEvent
from asyncflow.testing import VirtualTimeLoop, run_in_virtual_time

Make = Callable[..., Any]

ROOT = Path(__file__).parents[2]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells who is dead")


def started(run_id: str = "r", pipeline: str = "", wall_time: float = 1.0) -> RunStarted:
    return RunStarted(run_id, wall_time, {"a": (), "b": ("a",)}, pipeline)


def attempt(number: int = 1) -> AttemptStarted:
    return AttemptStarted("a", number, float(number))


async def opened(journal: Any, run_id: str = "r", *, wait: bool = False) -> Any:
    book, _ = await journal.open(run_id, wait=wait, read=list)
    return book


async def kept_events(journal: Any, run_id: str = "r") -> list[Event]:
    return [stored.event for stored in await journal.events(run_id)]


async def a_few_turns() -> None:
    for _ in range(12):
        await asyncio.sleep(0)


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what another thread or process does."""
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.005)


# --- writing and reading -------------------------------------------------------------------------


async def test_a_new_run_has_no_events(journal: Any) -> None:
    book, answer = await journal.open("r", wait=False, read=lambda seen: seen)

    assert list(answer) == []
    await book.close()


async def test_what_was_added_is_read_when_the_run_is_opened_again(
    make_journal: Make, journal: Any
) -> None:
    events = [started(), attempt(), StepSucceeded("a", 1, 2.0, Payload("json", b"7"))]
    book = await opened(journal)
    for event in events:
        book.append(event)
    await book.close()

    again, answer = await make_journal().open("r", wait=False, read=list)

    assert answer == events
    again.append(RunFinished(3.0, "passed"))
    await again.close()
    last = [
        StoredEvent(3, StepSucceeded("a", 1, 2.0, 7)),
        StoredEvent(4, RunFinished(3.0, "passed")),
    ]
    assert await journal.events("r", after=2) == last


async def test_what_is_kept_is_committed(journal: Any, place: Any) -> None:
    book = await opened(journal)

    book.append(started())
    book.append(attempt())
    await book.flush()

    assert place.query("SELECT position, kind FROM events ORDER BY position") == [
        (1, "RunStarted"),
        (2, "AttemptStarted"),
    ]
    await book.close()


async def test_what_is_kept_already_is_not_waited_for(journal: Any) -> None:
    book = await opened(journal)
    book.append(started())
    await book.flush()

    waiting = book.flush()

    with pytest.raises(StopIteration):
        waiting.send(None)
    await book.close()


async def test_what_was_not_waited_for_is_committed_too(journal: Any, place: Any) -> None:
    book = await opened(journal)

    book.append(started())

    await until(lambda: place.query("SELECT kind FROM events") == [("RunStarted",)])
    await book.close()


async def test_the_events_of_many_runs_go_into_one_transaction(journal: Any) -> None:
    books = [await opened(journal, f"r{number}") for number in range(50)]
    count = count_writes(journal)

    for book in books:
        book.append(started())
        book.append(attempt())
    await asyncio.gather(*(book.flush() for book in books))

    assert count() == 1
    await asyncio.gather(*(book.close() for book in books))
    assert count() == 2
    assert {len(await journal.events(f"r{number}")) for number in range(50)} == {2}


async def test_what_follows_within_a_few_turns_goes_into_the_same_transaction(
    journal: Any,
) -> None:
    book = await opened(journal)
    count = count_writes(journal)

    book.append(started())
    for _ in range(5):
        await asyncio.sleep(0)
    book.append(attempt())
    await book.flush()

    assert count() == 1
    await book.close()


async def test_what_is_asked_for_goes_with_all_that_comes_in_the_same_turn(journal: Any) -> None:
    books = [await opened(journal, f"r{number}") for number in range(3)]
    count = count_writes(journal)

    async def begin(book: Any) -> None:
        book.append(started())
        await book.flush()

    first = asyncio.create_task(begin(books[0]))
    books[1].append(started())
    last = asyncio.create_task(begin(books[2]))
    await asyncio.gather(first, last)

    assert count() == 1
    await asyncio.gather(*(book.close() for book in books))


async def test_what_comes_during_a_commit_goes_into_the_next_one(journal: Any) -> None:
    book, others = await opened(journal), [await opened(journal, f"r{n}") for n in range(9)]
    count = count_writes(journal)
    with thread_held(journal):
        book.append(started())
        while book._rows:
            await asyncio.sleep(0)  # until it is handed in
        for number, other in enumerate(others):
            other.append(started())
            await asyncio.sleep(0)
            other.append(attempt(number + 1))

    await asyncio.gather(*(each.flush() for each in [book, *others]))

    assert count() == 2
    await asyncio.gather(*(each.close() for each in [book, *others]))


def count_writes(journal: Any) -> Callable[[], int]:
    store, calls = journal._store, []
    write = store.write
    store.write = lambda take: calls.append(None) or write(take)
    return lambda: len(calls)


class thread_held:
    """The thread of a journal does nothing in a ``with`` block."""

    def __init__(self, journal: Any) -> None:
        self._thread = journal._write_thread
        self._go_on = threading.Event()

    def __enter__(self) -> None:
        self._thread.submit(self._go_on.wait, 20)

    def __exit__(self, *_: object) -> None:
        self._go_on.set()


async def test_a_journal_gives_back_the_values_that_it_was_given(journal: Any) -> None:
    payload = journal.encode("the output of step 'a'", (1, 2), tuple[int, int])

    assert journal.decode("the output of step 'a'", payload, tuple[int, int]) == (1, 2)
    with pytest.raises(PayloadError, match="the output of step 'a'"):
        journal.encode("the output of step 'a'", (1, 2), Any)


async def test_nothing_of_the_database_happens_in_the_thread_of_the_loop(journal: Any) -> None:
    threads = set()
    database = journal._store.database

    def noting(call: Callable[[], Any]) -> Any:
        threads.add(threading.current_thread().name)
        return call()

    for name in ("transaction", "reading", "close"):
        setattr(database, name, partial(noting, getattr(database, name)))

    async with journal:
        book = await opened(journal)
        book.append(started())
        await book.flush()
        await book.close()
        await journal.runs()
        await journal.events("r")
        await journal.orphans()
        await journal.prune(timedelta(0))

    assert threads == {"asyncflow journal"}


def test_time_stands_still_while_something_is_written(make_journal: Make) -> None:
    async def main() -> float:
        async with make_journal() as journal:
            book = await opened(journal)
            for number in range(20):
                book.append(started() if number == 0 else attempt(number))
                await book.flush()
            await book.close()
        return asyncio.get_running_loop().time()

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
def test_it_works_on_every_event_loop(make_journal: Make, loop: Any) -> None:
    async def chain(journal: Any, run_id: str) -> None:
        book = await opened(journal, run_id, wait=True)
        book.append(started(run_id))
        for number in range(1, 10):
            book.append(attempt(number))
            await book.flush()
        await book.close()

    async def main() -> None:
        async with make_journal() as journal:
            await asyncio.gather(*(chain(journal, f"r{number}") for number in range(5)))
            for number in range(5):
                assert len(await journal.events(f"r{number}")) == 10

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


async def test_a_book_leaves_nothing_for_the_collector(journal: Any) -> None:
    await journal.runs()
    gc.collect()
    gc.disable()
    try:
        book = await opened(journal)
        refused = weakref.ref(await refusal_of(journal))
        book.watch(partial(print, book))
        book.append(started())
        await book.flush()
        await book.close()
        await journal.runs()  # the thread has forgotten it, too
        dropped = weakref.ref(book)
        del book
        await asyncio.sleep(0)

        assert dropped() is None
        assert refused() is None
    finally:
        gc.enable()


async def refusal_of(journal: Any) -> Exception:
    try:
        await opened(journal)
    except RunAlreadyActiveError as error:
        return error
    raise AssertionError


@pytest.mark.realtime
def test_a_hang_is_found_at_once_although_a_journal_is_open(make_journal: Make) -> None:
    async def main() -> None:
        await (await opened(make_journal())).close()
        await asyncio.get_running_loop().create_future()

    begun = time.monotonic()
    with pytest.raises(HangError):
        run_in_virtual_time(main())
    assert time.monotonic() - begun < 4


# --- reading beside the writing ------------------------------------------------------------------


async def test_what_is_read_keeps_nobody_from_writing(journal: Any) -> None:
    await a_run(journal, "r")
    reading, go_on = threading.Event(), threading.Event()

    def read(events: Sequence[Event]) -> int:
        reading.set()
        assert go_on.wait(20)
        return len(events)

    opening = asyncio.create_task(journal.open("r", wait=False, read=read))
    await until(reading.is_set)
    history = asyncio.create_task(journal.runs())
    async with asyncio.timeout(10):
        await a_run(journal, "other")
    assert not history.done()
    go_on.set()

    book, count = await opening
    assert count == 1
    assert await ids(history) == ["r", "other"]
    book.append(attempt())
    await book.close()
    assert await kept_events(journal) == [started(), attempt()]


async def test_what_was_committed_before_a_claim_is_read_after_it(make_journal: Make) -> None:
    first, second = make_journal(), make_journal()
    for number in range(20):
        book, events = await (second if number % 2 else first).open("r", wait=True, read=list)
        assert len(events) == number
        book.append(attempt(number) if number else started())
        await book.close()


async def test_a_reader_that_does_not_see_all_is_not_believed(journal: Any) -> None:
    """Such as a standby that is behind, to which the connection for reading was made."""
    await a_run(journal, "r", outcome="passed")
    reader = journal._reader
    reader.store.events = lambda run_id, after=0: [(1, started())]

    with pytest.raises(JournalError, match=r"up to 1 of the 2 events of run 'r'"):
        await opened(journal)

    del reader.store.events
    await (await opened(journal)).close()  # the claim was given back


async def test_a_journal_may_be_closed_between_claim_and_reading(journal: Any) -> None:
    await a_run(journal, "r")
    journal._read_thread.end(int)

    with pytest.raises(JournalError, match="closed"):
        await opened(journal)

    with pytest.raises(JournalError, match="closed"):
        await journal.runs()


# --- owning --------------------------------------------------------------------------------------


async def test_a_run_has_one_owner(make_journal: Make) -> None:
    first, second = make_journal(owner="the first"), make_journal()
    book = await opened(first)

    for journal in (first, second):
        with pytest.raises(RunAlreadyActiveError, match="'r' is active in the first") as caught:
            await opened(journal)
        assert (caught.value.run_id, caught.value.owner) == ("r", "the first")

    await book.close()
    await (await opened(second)).close()


async def test_a_run_that_has_passed_is_read_by_all_at_once(make_journal: Make, place: Any) -> None:
    first, second = make_journal(), make_journal()
    await a_run(first, "r", outcome="passed")
    owner = await opened(first)
    read: list[Event] = []

    def report(events: Sequence[Event]) -> RunReport:
        read[:] = events
        return StoredRun(events).report(lambda step, payload: payload)

    for journal in (first, second):
        for wait in (False, True):
            book, answer = await journal.open("r", wait=wait, read=report)
            assert read == [started(), RunFinished(9.0, "passed")]
            assert answer.outcome == "passed"
            book.watch(print)
            book.append(attempt())
            await book.flush()
            await book.close()
            with pytest.raises(ZeroDivisionError) as caught:
                await journal.open("r", wait=wait, read=lambda _: 1 / 0)
            assert caught.value.__context__ is None

    owner.append(RunResumed("r", 1.0, 2.0, {"a": ()}, {}))
    await owner.flush()
    place.query("UPDATE runs SET status = 'passed'")  # which its last event does not say
    with pytest.raises(RunAlreadyActiveError):
        await journal.open("r", wait=False, read=report)
    await owner.close()


async def test_a_run_that_has_passed_and_is_to_go_on_needs_to_be_free(make_journal: Make) -> None:
    first, second = make_journal(owner="the first"), make_journal()
    await a_run(first, "r", outcome="passed")
    owner = await opened(first)
    seen: list[list[Event]] = []

    def read(events: Sequence[Event]) -> int:
        seen.append(list(events))
        return len(events)

    with pytest.raises(RunAlreadyActiveError, match="run 'r' is active in the first") as caught:
        await second.open("r", wait=False, read=read)
    assert caught.value.__context__ is None
    waiting = asyncio.create_task(second.open("r", wait=True, read=read))
    await until(lambda: len(seen) == 2)
    owner.append(RunResumed("r", 9.0, 2.0, {"a": ()}, {}))
    assert not waiting.done()

    await owner.close()

    book, count = await waiting
    assert count == 3
    assert [len(events) for events in seen] == [2, 2, 3]
    await book.close()


async def test_a_run_can_be_waited_for(make_journal: Make) -> None:
    first, second = make_journal(), make_journal()
    book = await opened(first)
    waiting = asyncio.create_task(opened(second, wait=True))
    await until(lambda: second._write_thread.has_started)
    book.append(started())
    assert not waiting.done()

    await book.close()

    other = await waiting
    assert await kept_events(second) == [started()]
    await other.close()


@pytest.mark.exhaustive
def test_a_run_is_waited_for_in_virtual_time(make_journal: Make) -> None:
    async def main() -> float:
        async with make_journal() as journal:
            book = await opened(journal)
            waiting = asyncio.create_task(opened(journal, wait=True))
            await asyncio.sleep(3_600)
            await book.close()
            await (await waiting).close()
        return asyncio.get_running_loop().time()

    assert 3_600 <= run_in_virtual_time(main()) < 3_601.1


async def test_who_waits_may_be_cancelled(make_journal: Make) -> None:
    first, second = make_journal(), make_journal()
    book = await opened(first)
    waiting = asyncio.create_task(opened(second, wait=True))
    await until(lambda: second._write_thread.has_started)

    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    await book.close()
    await (await opened(first, wait=True)).close()  # the other may be about to give it back


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_claim_is_given_back_when_its_events_can_not_be_read(
    make_journal: Make, error: BaseException
) -> None:
    def read(events: Sequence[Event]) -> None:
        raise error

    async def main() -> None:
        journal = make_journal()
        with pytest.raises(type(error)) as caught:
            await journal.open("r", wait=False, read=read)
        assert caught.value is error
        await (await opened(journal)).close()

    asyncio.run(main())


async def test_a_claim_is_given_back_when_its_caller_was_cancelled_as_it_was_made(
    journal: Any,
) -> None:
    claiming, go_on = threading.Event(), threading.Event()
    claim = journal._store.claim

    def slowly(*args: Any) -> int:
        claiming.set()
        go_on.wait(20)
        return int(claim(*args))

    journal._store.claim = slowly
    opening = asyncio.create_task(opened(journal))
    await until(claiming.is_set)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    go_on.set()

    await (await opened(journal)).close()


async def test_a_claim_is_given_back_when_nobody_can_tell_how_much_there_is_to_read(
    journal: Any, place: Any
) -> None:
    def last_position(run_id: str) -> int:
        raise JournalError("x", "the line is dead")

    journal._store.last_position = last_position

    with pytest.raises(JournalError, match="the line is dead"):
        await opened(journal)

    assert place.query("SELECT owner FROM leases") == [(None,)]


async def test_a_claim_is_given_back_when_its_caller_was_cancelled_meanwhile(journal: Any) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def read(events: Sequence[Event]) -> None:
        reading.set()
        go_on.wait(20)

    opening = asyncio.create_task(journal.open("r", wait=False, read=read))
    await until(reading.is_set)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    go_on.set()

    await (await opened(journal)).close()


async def test_a_claim_is_given_back_when_its_caller_is_cancelled_as_it_comes(
    journal: Any,
) -> None:
    opening = asyncio.create_task(opened(journal))
    await asyncio.sleep(0)  # it has asked
    journal._write_thread.submit(int).result(
        20
    )  # the thread has claimed it; the task will hear of it
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening

    await (await opened(journal)).close()


async def test_a_claim_is_given_back_when_its_coroutine_is_closed(journal: Any) -> None:
    opening = journal.open("r", wait=False, read=list)
    opening.send(None)
    journal._write_thread.submit(int).result(20)  # it is there

    opening.close()

    await (await opened(journal)).close()


async def test_a_claim_that_was_not_begun_is_not_made(journal: Any, place: Any) -> None:
    await journal.runs()
    with thread_held(journal):
        opening = asyncio.create_task(opened(journal))
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening

    await journal.runs()

    assert place.query("SELECT run_id FROM leases") == []


async def test_waiting_may_be_cancelled_and_the_book_is_kept_all_the_same(journal: Any) -> None:
    book = await opened(journal)
    with thread_held(journal):
        book.append(started())
        for wait in (book.flush, book.flush, book.close, book.close):
            waiting = asyncio.create_task(wait())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    await book.close()

    assert await kept_events(journal) == [started()]
    await (await opened(journal)).close()


async def test_a_close_that_is_cancelled_before_it_begins_gives_the_run_up(journal: Any) -> None:
    book = await opened(journal)
    book.append(started())

    closing = asyncio.create_task(book.close())
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing

    async with asyncio.timeout(20):
        await (await opened(journal, wait=True)).close()
    assert await kept_events(journal) == [started()]


async def test_a_close_may_be_repeated(journal: Any) -> None:
    book = await opened(journal)
    book.append(started())

    await asyncio.gather(book.close(), book.close())
    await book.close()

    book.append(attempt())
    await book.flush()
    assert await kept_events(journal) == [started()]


# --- losing a run --------------------------------------------------------------------------------


def take_over(place: Any, run_id: str = "r") -> None:
    place.query(f"UPDATE leases SET token = token + 1, owner = 'x' WHERE run_id = '{run_id}'")


async def test_a_run_that_was_taken_over_is_not_written_to(journal: Any, place: Any) -> None:
    book, other = await opened(journal), await opened(journal, "other")
    failures: list[JournalError] = []
    book.watch(failures.append)
    other.watch(failures.append)
    book.append(started())
    await book.flush()
    take_over(place)

    book.append(attempt())
    other.append(started("other"))
    await other.flush()

    await until(lambda: bool(failures))
    (failure,) = failures
    assert isinstance(failure, LeaseLostError)
    assert "taken over run 'r'" in str(failure)
    assert await kept_events(journal) == [started()]
    assert await kept_events(journal, "other") == [started("other")]
    book.append(attempt(2))
    with pytest.raises(LeaseLostError):
        await book.close()
    with pytest.raises(LeaseLostError):
        await book.close()
    await other.close()
    assert place.query("SELECT owner FROM leases WHERE run_id = 'r'") == [("x",)]


async def test_after_a_failure_nobody_hears_that_something_is_kept(
    journal: Any, place: Any
) -> None:
    book = await opened(journal)
    take_over(place)
    failed = asyncio.Event()
    book.append(started())
    before = asyncio.create_task(book.flush())
    book.watch(lambda failure: failed.set())
    await failed.wait()
    after = asyncio.create_task(book.flush())

    await journal.runs()

    assert not before.done()
    assert not after.done()
    for waiting in (before, after):
        waiting.cancel()
    with pytest.raises(LeaseLostError):
        await book.close()


async def test_after_a_failure_nothing_is_let_go_on_although_it_is_kept(journal: Any) -> None:
    book = await opened(journal)
    with thread_held(journal):
        book.append(started())
        waiting = asyncio.create_task(book.flush())
        await a_few_turns()
    journal._write_thread.submit(int).result(20)  # it is kept; the loop will hear of it
    book._lease.fail(JournalError("x", "the lease is lost"))

    assert await kept_events(journal) == [started()]
    await asyncio.sleep(0)

    assert not waiting.done()
    waiting.cancel()
    book.append(attempt())
    assert book._rows == []
    with pytest.raises(JournalError, match="the lease is lost"):
        await book.close()


async def test_nothing_follows_events_that_could_not_be_written(journal: Any) -> None:
    book = await opened(journal)
    store = journal._store
    write = store.write

    def failing_once(take: Any) -> Any:
        store.write = write
        raise JournalError("x", "the line is dead")

    store.write = failing_once
    with thread_held(journal):
        book.append(started())
        while book._rows:
            await asyncio.sleep(0)  # until it is handed in
        book.append(attempt())

    with pytest.raises(JournalError, match="the line is dead"):
        await book.close()

    assert await journal.runs() == []
    book, events = await journal.open("r", wait=False, read=list)
    assert events == []
    await book.close()


async def test_who_watches_after_a_failure_hears_of_it_once(journal: Any, place: Any) -> None:
    book = await opened(journal)
    take_over(place)
    book.append(started())
    with pytest.raises(LeaseLostError):
        await book.close()
    book.append(attempt())
    failures: list[JournalError] = []

    book.watch(failures.append)

    assert failures == []  # in the next turn
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(failures) == 1


@pytest.mark.realtime
async def test_leases_are_renewed_also_when_nothing_is_written(
    make_journal: Make, place: Any
) -> None:
    journal = make_journal(lease_s=0.3)
    book = await opened(journal)

    def expiry() -> float:
        ((at,),) = place.query("SELECT expires_at FROM leases")
        return float(at)

    first = expiry()
    await until(lambda: expiry() > first + 0.5)  # longer than a lease

    with pytest.raises(RunAlreadyActiveError):
        await opened(make_journal())
    await book.close()
    assert expiry() == 0


async def test_other_runs_do_not_keep_a_lease_from_being_renewed(
    make_journal: Make, place: Any
) -> None:
    journal = make_journal(lease_s=0.3)
    book = await opened(journal)
    (first,) = place.query("SELECT expires_at FROM leases WHERE run_id = 'r'")

    async with asyncio.timeout(20):
        while place.query("SELECT expires_at FROM leases WHERE run_id = 'r'") == [first]:
            await (await opened(journal, "other")).close()

    await book.close()


async def test_a_short_run_renews_nothing(journal: Any) -> None:
    calls: list[Any] = []
    journal._store.renew = lambda *args: calls.append(args) or set()
    await a_run(journal, "r1")
    await a_run(journal, "r2", outcome="passed")
    await journal.runs()

    assert calls == []


@pytest.mark.realtime
async def test_a_blocked_loop_keeps_its_runs(make_journal: Make, place: Any) -> None:
    journal = make_journal(lease_s=0.2)
    book = await opened(journal)
    ((first,),) = place.query("SELECT expires_at FROM leases")

    end = time.monotonic() + 20
    while place.query("SELECT expires_at FROM leases")[0][0] < first + 0.3:
        assert time.monotonic() < end

    book.append(started())
    await book.close()
    assert await kept_events(journal) == [started()]


async def test_a_renewal_that_finds_the_run_taken_over_tells_so(
    make_journal: Make, place: Any
) -> None:
    journal = make_journal(lease_s=0.2)
    book, other = await opened(journal), await opened(journal, "other")
    lost = asyncio.get_running_loop().create_future()
    book.watch(lost.set_result)

    take_over(place)

    failure = await asyncio.wait_for(lost, 20)
    assert isinstance(failure, LeaseLostError)
    with pytest.raises(LeaseLostError):
        await book.close()
    other.append(started("other"))
    await other.close()


@pytest.mark.realtime
async def test_a_lease_that_can_not_be_renewed_ends_the_run(make_journal: Make) -> None:
    journal = make_journal(lease_s=0.2)
    book = await opened(journal)
    lost = asyncio.get_running_loop().create_future()
    book.watch(lost.set_result)

    def renew(*_: object) -> None:
        raise JournalError("x", "the line is dead")

    journal._store.renew = renew

    failure = await asyncio.wait_for(lost, 20)
    assert "the lease of run 'r' could not be renewed: the line is dead" in str(failure)
    with pytest.raises(JournalError, match="could not be renewed"):
        await book.close()


async def test_a_transaction_that_fails_for_no_reason_of_its_own_tells_why(journal: Any) -> None:
    book = await opened(journal)
    book.append(started())
    book.append(AttemptStarted("a", 2**80, 1.0))  # no database takes that

    with pytest.raises(JournalError, match=r"OverflowError|out of range") as caught:
        await book.close()

    assert caught.value.__cause__ is not None
    assert await journal.runs() == []


@pytest.mark.realtime
async def test_a_renewal_that_fails_once_is_repeated(make_journal: Make) -> None:
    journal = make_journal(lease_s=0.5)
    book = await opened(journal)
    store, calls = journal._store, []
    renew = store.renew

    def failing_once(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 5:  # later than the first lease would have lasted
            raise JournalError("x", "the line is dead")
        return renew(*args)

    store.renew = failing_once

    await until(lambda: len(calls) > 7)
    book.append(started())
    await book.close()


async def test_a_run_whose_lease_has_expired_is_taken_over(make_journal: Make, place: Any) -> None:
    first, second = make_journal(), make_journal()
    book = await opened(first)
    book.append(started())
    await book.flush()
    place.query("UPDATE leases SET expires_at = 1")

    again = await opened(second)
    book.append(attempt())

    with pytest.raises(LeaseLostError):
        await book.close()
    again.append(attempt(2))
    await again.close()
    assert await kept_events(second) == [started(), attempt(2)]


@pytest.mark.realtime
async def test_a_book_of_a_dead_loop_is_not_kept_alive(make_journal: Make, place: Any) -> None:
    journal = make_journal(lease_s=0.2)

    def in_a_loop_of_its_own() -> None:
        asyncio.run(opened(journal))

    thread = threading.Thread(target=in_a_loop_of_its_own)
    thread.start()
    await asyncio.to_thread(thread.join)

    book = await asyncio.wait_for(opened(journal, wait=True), 20)

    await book.close()


async def test_a_journal_that_is_closed_ends_the_runs_that_go_on(journal: Any) -> None:
    book = await opened(journal)
    failed = asyncio.get_running_loop().create_future()
    book.watch(failed.set_result)
    book.append(started())
    await book.flush()

    await journal.aclose()

    assert "closed while run 'r' was running" in str(await failed)
    with pytest.raises(JournalError, match="closed while run 'r' was running"):
        await book.close()
    with pytest.raises(JournalError, match="it is closed"):
        await opened(journal)
    await journal.aclose()
    journal.close()


async def test_a_journal_that_is_closed_as_a_run_is_opened_ends_that_run(journal: Any) -> None:
    opening = asyncio.create_task(opened(journal))
    await asyncio.sleep(0)  # it has asked

    journal.close()

    with pytest.raises(JournalError, match="it is closed"):
        await opening


async def test_a_journal_that_is_closed_as_a_run_is_read_ends_that_run(journal: Any) -> None:
    await a_run(journal, "r")
    reading, go_on = threading.Event(), threading.Event()

    def read(events: Sequence[Event]) -> None:
        reading.set()
        go_on.wait(20)

    opening = asyncio.create_task(journal.open("r", wait=False, read=read))
    await until(reading.is_set)
    closing = asyncio.create_task(asyncio.to_thread(journal.close))
    await until(lambda: journal._closed)
    go_on.set()

    book, _ = await opening
    failed = asyncio.get_running_loop().create_future()
    book.watch(failed.set_result)
    assert "closed while run 'r' was running" in str(await failed)
    with pytest.raises(JournalError, match="closed while run 'r' was running"):
        await book.close()
    await closing


async def test_what_is_handed_in_after_the_close_of_the_journal_is_refused(journal: Any) -> None:
    book = await opened(journal)
    book.append(started())

    journal.close()

    with pytest.raises(JournalError, match="closed"):
        await book.close()


# --- loops, threads and processes ----------------------------------------------------------------


def test_loops_in_several_threads_share_a_journal(journal: Any) -> None:
    rounds = 30

    async def work(name: str) -> None:
        async def one(run_id: str) -> None:
            book = await opened(journal, run_id)
            book.append(started(run_id))
            for number in range(1, rounds):
                book.append(attempt(number))
                await book.flush()
            await book.close()

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


def child(place: Any, body: str) -> subprocess.Popen[str]:
    """Start a process that has the names of this module and ``make``."""
    script = f"""
import asyncio, os, sys
{place.source}
from asyncflow._core.errors import *
from asyncflow.events import *
def say(*words):
    print(*words, flush=True)
async def opened(journal, run_id="r", wait=False):
    return (await journal.open(run_id, wait=wait, read=list))[0]
{body}
"""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


HOLDING = """
async def main():
    journal = make(lease_s=LEASE)
    book = await opened(journal)
    lost = asyncio.get_running_loop().create_future()
    book.watch(lost.set_result)
    book.append(RunStarted("r", 1.0, {"a": ()}))
    await book.flush()
    say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    book.append(AttemptStarted("a", 1, 1.0))
    failure = await asyncio.wait_for(lost, 20)
    say(type(failure).__name__)
    try:
        await book.close()
    except LeaseLostError:
        say("lost")
    journal.close()
asyncio.run(main())
"""


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


@pytest.mark.process
@LINUX
async def test_the_run_of_a_killed_process_is_taken_over_at_once(journal: Any, place: Any) -> None:
    with child(place, HOLDING.replace("LEASE", "600")) as process:
        assert line_of(process) == "ready"
        with pytest.raises(RunAlreadyActiveError, match=f"process {process.pid} on "):
            await opened(journal)
        assert await journal.orphans() == []

        process.kill()
        process.wait()

        (orphan,) = await journal.orphans()
        assert orphan.run_id == "r"
        book = await opened(journal)
        assert await journal.orphans() == []
        await book.close()
        (orphan,) = await journal.orphans()  # it has not ended, and nobody runs it
        assert orphan.owner is None


async def test_a_process_of_which_nothing_is_known_counts_as_alive(
    journal: Any, place: Any
) -> None:
    book = await opened(journal)
    place.query('UPDATE leases SET process = \'{"where": "the moon", "pid": 1}\'')

    with pytest.raises(RunAlreadyActiveError):
        await opened(journal)

    await book.close()


@pytest.mark.process
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
async def test_a_process_that_was_stopped_beyond_its_lease_writes_nothing_more(
    make_journal: Make, place: Any
) -> None:
    journal = make_journal()
    with child(place, HOLDING.replace("LEASE", "0.5")) as process:
        assert line_of(process) == "ready"
        process.send_signal(signal.SIGSTOP)

        book = await asyncio.wait_for(opened(journal, wait=True), 20)
        book.append(attempt(7))
        await book.flush()
        process.send_signal(signal.SIGCONT)

        assert process.stdin
        print(file=process.stdin, flush=True)
        assert (line_of(process), line_of(process)) == ("LeaseLostError", "lost")
        book.append(attempt(8))
        await book.close()
    kept = await kept_events(journal)
    assert [event.attempt for event in kept[1:]] == [7, 8]  # type: ignore[union-attr]


RACING = """
async def main():
    async with make() as journal:
        say("ready")
        sys.stdin.readline()
        try:
            book = await opened(journal)
        except RunAlreadyActiveError:
            say("refused")
        else:
            say("mine")
            sys.stdin.readline()
            await book.close()
asyncio.run(main())
"""


@pytest.mark.process
def test_of_two_processes_that_want_a_run_one_gets_it(place: Any) -> None:
    processes = [child(place, RACING) for _ in range(2)]
    for process in processes:  # both come to an empty database and bring the schema
        assert line_of(process) == "ready"

    for process in processes:
        assert process.stdin
        print(file=process.stdin, flush=True)

    assert sorted(map(line_of, processes)) == ["mine", "refused"]
    for process in processes:
        process.communicate(input="\n")
        assert process.returncode == 0


WRITING = """
async def main():
    async with make() as journal:
        async def one(number):
            run_id = f"{os.getpid()}-{number}"
            book = await opened(journal, run_id)
            book.append(RunStarted(run_id, 1.0, {"a": ()}))
            for number in range(20):
                book.append(AttemptStarted("a", number, 1.0))
                await book.flush()
            await book.close()
        await asyncio.gather(*map(one, range(5)))
asyncio.run(main())
"""


@pytest.mark.process
def test_processes_write_at_once(place: Any) -> None:
    processes = [child(place, WRITING) for _ in range(3)]

    for process in processes:
        process.communicate()
        assert process.returncode == 0

    assert place.query("SELECT count(*) FROM events") == [(3 * 5 * 21,)]


@pytest.mark.process
def test_an_interpreter_ends_though_its_journal_is_not_closed(place: Any) -> None:
    body = """
async def main():
    global journal
    journal = make()
    book = await opened(journal)
    book.append(RunStarted("r", 1.0, {"a": ()}))
    await book.flush()
    say("kept")
asyncio.run(main())
"""
    before = time.monotonic()
    with child(place, body) as process:
        out, _ = process.communicate(timeout=20)

    assert out == "kept\n"
    assert process.returncode == 0
    assert time.monotonic() - before < 10  # and not for the lease
    assert place.query("SELECT count(*) FROM events") == [(1,)]


async def test_a_journal_that_is_dropped_says_so_and_its_thread_ends(place: Any) -> None:
    journal = place.make()
    await journal.runs()
    thread = journal._write_thread
    dropped = weakref.ref(journal)

    with pytest.warns(ResourceWarning, match=r"unclosed .*Journal"):
        del journal

    assert dropped() is None
    await asyncio.to_thread(thread.join)


async def test_a_journal_that_was_never_used_may_be_dropped(place: Any) -> None:
    place.make()


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_fork_must_open_the_journal_anew(make_journal: Make) -> None:
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


# --- history -------------------------------------------------------------------------------------


async def a_run(
    journal: Any,
    run_id: str,
    *,
    outcome: Any = None,
    pipeline: str = "",
    wall_time: float = 1.0,
) -> None:
    book = await opened(journal, run_id)
    book.append(started(run_id, pipeline, wall_time))
    if outcome:
        book.append(RunFinished(9.0, outcome))
    await book.close()


async def ids(runs: Any) -> list[str]:
    return [run.run_id for run in await runs]


async def test_the_runs_are_listed_newest_first(journal: Any) -> None:
    await a_run(journal, "r1", outcome="passed", wall_time=100.0)
    await a_run(journal, "r3", outcome="failed", wall_time=300.0, pipeline='"nightly')
    await a_run(journal, "r2", wall_time=200.0)

    assert await ids(journal.runs()) == ["r3", "r2", "r1"]
    assert await ids(journal.runs(status="running")) == ["r2"]
    assert await ids(journal.runs(status="failed", pipeline='"nightly')) == ["r3"]
    assert await ids(journal.runs(status="passed", pipeline='"nightly')) == []
    assert await ids(journal.runs(since=200)) == ["r3", "r2"]
    assert await ids(journal.runs(since=datetime.fromtimestamp(250))) == ["r3"]
    assert await ids(journal.runs(limit=2)) == ["r3", "r2"]
    assert await ids(journal.runs(limit=None)) == ["r3", "r2", "r1"]
    newest = (await journal.runs(limit=1))[0]
    assert (newest.status, newest.pipeline, newest.started_at) == ("failed", '"nightly', 300.0)
    assert newest.updated_at == pytest.approx(time.time(), abs=60)
    assert newest.owner is None
    with pytest.raises(ValueError, match=r"status must be one of 'running', .* not 'done'"):
        await journal.runs(status="done")


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ({"since": "2020-01-01"}, TypeError, "since must be a datetime or seconds since the epoch"),
        ({"since": timedelta(1)}, TypeError, "since the epoch, not timedelta"),
        ({"since": date(2020, 1, 1)}, TypeError, "since the epoch, not date"),
        ({"since": float("nan")}, ValueError, "since must be finite"),
        ({"limit": "3"}, TypeError, "limit must be an int, not str"),
        ({"limit": True}, TypeError, "limit must be an int, not bool"),
        ({"limit": -1}, ValueError, "limit must be at least 0, not -1"),
        ({"pipeline": 3}, TypeError, "pipeline must be a str, not int"),
    ],
)
async def test_what_makes_no_sense_is_not_asked_for(
    journal: Any, asked: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        await journal.runs(**asked)


async def test_a_run_id_that_is_no_text_is_refused(journal: Any) -> None:
    for asking in (opened(journal, 7), journal.report(7), journal.events(7), journal.forget(7)):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="run_id must be a str, not int"):
            await asking
    with pytest.raises(TypeError, match="after must be an int, not str"):
        await journal.events("r", after="1")


async def test_a_record_follows_the_events_of_its_run(make_journal: Make) -> None:
    journal = make_journal(owner="me")

    async def record() -> tuple[str, str | None]:
        (run,) = await journal.runs()
        return run.status, run.owner

    book = await opened(journal)
    book.append(started())
    await book.flush()
    assert await record() == ("running", "me")
    book.append(RunFinished(1.0, "interrupted"))
    await book.close()
    assert await record() == ("interrupted", None)
    book = await opened(journal)
    book.append(RunResumed("r", 1.0, 2.0, {"a": ()}, {}))
    await book.flush()
    assert await record() == ("running", "me")
    book.append(RunFinished(2.0, "passed"))
    await book.close()
    assert await record() == ("passed", None)
    book = await opened(journal)
    book.append(RunResumed("r", 2.0, 2.0, {"a": ()}, {}))
    book.append(RunFinished(2.0, "failed"))
    await book.close()
    assert await record() == ("failed", None)


async def test_the_events_can_be_followed(journal: Any) -> None:
    book = await opened(journal)
    output = StepSucceeded("a", 1, 1.0, journal.encode("the output", {"x": [1]}, Any))
    for event in (started(), attempt(), output):
        book.append(event)
    await book.flush()

    assert (await journal.events("r"))[0] == StoredEvent(1, started())
    assert await journal.events("r", after=2) == [
        StoredEvent(3, StepSucceeded("a", 1, 1.0, {"x": [1]}))
    ]
    assert await journal.events("r", after=3) == []
    await book.close()


async def test_what_can_not_be_decoded_has_a_stand_in(make_journal: Make) -> None:
    pickling, plain = make_journal(codec="cloudpickle"), make_journal()
    book = await opened(pickling)
    inputs = {"secret": REDACTED, "url": pickling.encode("x", "http", str)}
    begun = RunStarted("r", 1.0, {"a": ()}, inputs=inputs)
    book.append(begun)
    pickled = pickling.encode("the output", {1, 2}, Any)
    book.append(StepSucceeded("a", 1, 1.0, pickled))
    book.append(StepSucceeded("a", 0, 1.0, None))
    await book.close()

    seen = await kept_events(plain)

    shown = {"secret": REDACTED_OUTPUT, "url": "http"}
    assert seen[0] == RunStarted("r", 1.0, {"a": ()}, inputs=shown)
    stand_in, nothing = (event.output for event in seen[1:])  # type: ignore[union-attr]
    assert isinstance(stand_in, RestoredOutput)
    assert "pickled" in stand_in.text
    assert nothing is None
    assert (await kept_events(pickling))[1] == StepSucceeded("a", 1, 1.0, {1, 2})


async def test_an_unknown_run_is_refused_with_the_nearest_name(journal: Any) -> None:
    await a_run(journal, "nightly-1")

    with pytest.raises(RunNotFoundError, match=r"no run 'nigthly-1' \(did you mean 'nightly-1'"):
        await journal.events("nigthly-1")


async def test_events_that_make_no_story_are_no_report(journal: Any, place: Any) -> None:
    book = await opened(journal)
    for event in (started(), attempt()):
        book.append(event)
    await book.close()
    place.query("DELETE FROM events WHERE position = 1")

    with pytest.raises(JournalError, match=r"events of run 'r' don't follow .* as they are"):
        await journal.report("r")


async def test_an_event_that_nobody_knows_is_left_as_it_is(journal: Any, place: Any) -> None:
    await a_run(journal, "r")
    place.query("UPDATE events SET kind = 'RunPaused'")

    for reading in (opened(journal), journal.events("r")):
        with pytest.raises(JournalError, match=r"event 1 of run 'r' can't be read .*RunPaused"):
            await reading

    place.query("UPDATE events SET kind = 'RunStarted'")
    await (await opened(journal)).close()  # it was given back


async def test_only_runs_that_have_ended_are_pruned(journal: Any, place: Any) -> None:
    await a_run(journal, "old", outcome="passed")
    await a_run(journal, "failed", outcome="failed")
    await a_run(journal, "running")
    place.query("UPDATE runs SET updated_at = 1")
    await a_run(journal, "new", outcome="passed")
    await a_run(journal, "active", outcome="passed")
    place.query("UPDATE runs SET updated_at = 1 WHERE run_id = 'active'")
    book = await opened(journal, "active")

    assert await journal.prune(timedelta(hours=1), status="passed") == 1
    assert await journal.prune(timedelta(hours=1)) == 1
    assert sorted(await ids(journal.runs())) == ["active", "new", "running"]
    assert {run_id for (run_id,) in place.query("SELECT run_id FROM leases")} == {
        *("active", "new", "running")
    }
    assert {run_id for (run_id,) in place.query("SELECT run_id FROM events")} == {
        *("active", "new", "running")
    }
    await book.close()
    with pytest.raises(ValueError, match="older_than must be finite and at least 0 s"):
        await journal.prune(timedelta(-1))
    with pytest.raises(ValueError, match="status must be"):
        await journal.prune(timedelta(0), status="done")
    with pytest.raises(ValueError, match=r"status can't be 'running'; forget\(\)"):
        await journal.prune(timedelta(0), status="running")


@pytest.mark.parametrize("age", [90, 0.5, True, "90 days", None])
async def test_what_does_not_tell_its_unit_prunes_nothing(journal: Any, age: Any) -> None:
    await a_run(journal, "r", outcome="passed")

    with pytest.raises(TypeError, match=r"such as timedelta\(days=90\), not .*: a number does not"):
        await journal.prune(age)

    assert await ids(journal.runs()) == ["r"]


async def test_many_runs_are_pruned(journal: Any) -> None:
    books = [await opened(journal, f"r{number}") for number in range(150)]
    for book in books:
        book.append(started())
        book.append(RunFinished(1.0, "passed"))
    await asyncio.gather(*(book.close() for book in books))

    assert len(await journal.runs()) == 100
    assert len(await journal.runs(limit=None)) == 150
    assert await journal.prune(timedelta(0)) == 150
    assert await journal.runs() == []


async def test_few_events_are_deleted_at_once_however_many_a_run_has(journal: Any) -> None:
    for run_id, count in (("small 1", 1), ("small 2", 1), ("large 1", 1_500), ("large 2", 2_500)):
        book = await opened(journal, run_id)
        book.append(started(run_id))
        for number in range(count):
            book.append(attempt(number))
        book.append(RunFinished(1.0, "passed"))
        await book.close()
    store, portions = journal._store, []
    prune = store.prune
    store.prune = lambda run_ids, age: portions.append(run_ids) or prune(run_ids, age)

    assert await journal.prune(timedelta(0)) == 4

    assert portions == [["large 1"], ["large 2"], ["small 1", "small 2"]]


async def test_leases_of_runs_that_never_began_are_pruned(journal: Any, place: Any) -> None:
    await (await opened(journal, "refused")).close()
    book = await opened(journal, "beginning")
    await a_run(journal, "running")

    assert await journal.prune(timedelta(0), status="passed") == 0
    assert len(place.query("SELECT run_id FROM leases")) == 3
    assert await journal.prune(timedelta(0)) == 0

    assert sorted(place.query("SELECT run_id FROM leases")) == [("beginning",), ("running",)]
    book.append(started("beginning"))
    await book.close()


@pytest.mark.parametrize("outcome", [None, "passed", "interrupted"])
async def test_a_run_can_be_forgotten(journal: Any, place: Any, outcome: Any) -> None:
    await a_run(journal, "r", outcome=outcome)
    await a_run(journal, "other")

    await journal.forget("r")

    for table in ("events", "leases", "runs"):
        assert place.query(f"SELECT DISTINCT run_id FROM {table}") == [("other",)]
    with pytest.raises(RunNotFoundError):
        await journal.forget("r")


async def test_a_run_that_somebody_owns_is_not_forgotten(
    make_journal: Make, journal: Any, place: Any
) -> None:
    book = await opened(make_journal(owner="me"))
    book.append(started())
    await book.flush()

    with pytest.raises(RunAlreadyActiveError, match="'r' is active in me"):
        await journal.forget("r")
    assert await kept_events(journal) == [started()]

    place.query("UPDATE leases SET expires_at = 1")
    await journal.forget("r")
    book.append(attempt())
    with pytest.raises(LeaseLostError):
        await book.close()


async def test_a_run_that_is_pruned_while_it_is_asked_for_is_not_found(
    journal: Any, place: Any
) -> None:
    await a_run(journal, "r", outcome="passed")
    events = journal._reader.store.events

    def too_late(*asked: Any) -> Any:
        for table in ("events", "runs", "leases"):
            place.query(f"DELETE FROM {table}")
        return events(*asked)

    journal._reader.store.events = too_late

    with pytest.raises(RunNotFoundError):
        await journal.report("r")
    with pytest.raises(RunNotFoundError):
        await journal.events("r")


async def test_tokens_start_from_the_clock(journal: Any, place: Any) -> None:
    """So that of a run id that was pruned and is used again is above all that it had."""
    await a_run(journal, "r", outcome="passed")
    ((before,),) = place.query("SELECT token FROM leases")
    assert before == pytest.approx(time.time() * 1_000, abs=60_000)

    await (await opened(journal)).close()

    assert place.query("SELECT token FROM leases") == [(before + 1,)]


async def test_a_person_can_read_the_database(journal: Any, place: Any) -> None:
    book = await opened(journal)
    book.append(started())
    book.append(StepSucceeded("a", 1, 1.0, journal.encode("x", {"größe": 1}, Any)))
    await book.close()

    rows = place.query("SELECT step, codec, payload FROM events ORDER BY position")

    assert rows[1] == ("a", "json", '{"größe":1}')
    assert json.loads(rows[0][2])["dependencies"] == {"a": [], "b": ["a"]}


@pytest.mark.parametrize(
    "run_id", ["a\0b", "\ud800", '"a', "a\n", "\x1b[2J", "a\x7f", "a\x85", ".", ".."]
)
async def test_a_run_id_that_could_not_stand_everywhere_is_refused(
    journal: Any, run_id: str
) -> None:
    with pytest.raises(ValueError, match="so it must have no control characters") as caught:
        await opened(journal, run_id)

    assert f"run_id can't be {run_id!r}: " in str(caught.value)


async def test_an_empty_run_id_is_refused(journal: Any) -> None:
    with pytest.raises(ValueError, match="must not be empty; leave it out for a generated one"):
        await opened(journal, "")


async def test_any_other_run_id_is_fine(journal: Any, make_journal: Make) -> None:
    ids = ["...", "./a", "a/../b", " ", "größe 7", "'a\"", "🚀", "%0A", "-x", "\\"]

    for run_id in ids:
        await a_run(journal, run_id)

    assert {record.run_id for record in await make_journal().runs()} == set(ids)
    assert [(await journal.record(run_id)).run_id for run_id in ids] == ids


@pytest.mark.parametrize("run_id", ["", "a\0b", "\ud800", '"a'])
@pytest.mark.parametrize("ask", ["record", "report", "events", "cancel", "forget"])
async def test_nothing_is_found_under_an_id_that_no_run_can_have(
    journal: Any, ask: str, run_id: str
) -> None:
    await a_run(journal, "ab")

    with pytest.raises(RunNotFoundError) as caught:
        await getattr(journal, ask)(run_id)

    assert repr(run_id) in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize("run_id", ["a\n", ".", ".."])
async def test_a_run_that_was_kept_before_its_id_was_refused_can_be_read(
    journal: Any, place: Any, run_id: str
) -> None:
    await a_run(journal, "r", outcome="passed")
    for table in ("events", "runs", "leases"):
        place.query(f"UPDATE {table} SET run_id = '{run_id}'")

    assert (await journal.record(run_id)).status == "passed"
    assert len(await journal.events(run_id)) == 2
    assert (await journal.report(run_id)).outcome == "passed"
    assert await journal.cancel(run_id) is False
    await journal.forget(run_id)
    assert await journal.runs() == []
