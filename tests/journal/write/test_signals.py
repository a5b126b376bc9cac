"""Runs that wait for signals without a process: on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import math
import os
import random
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from virtual_journals import in_virtual_time

from asyncflow import (
    Pipeline,
    RunCancelledError,
    RunNotFoundError,
    RunReport,
    RunStatus,
    RunWaitingError,
    StepStatus,
    after,
    resume_all,
)
from asyncflow._core.errors import JournalError
from asyncflow._core.history.results import Payload
from asyncflow._policies.waits import Waits
from asyncflow.events import SignalReceived, StepWaiting
from asyncflow.journal import SQLiteJournal
from asyncflow.journal._database.sqlite import SQLite
from asyncflow.journal._write.session import CommitQueue
from asyncflow.journal._write.signals import SentSignal, Signals
from asyncflow.journal._write.store import Store
from asyncflow.service import Service
from asyncflow.testing import fake, run_in_virtual_time

SUCCESS, PENDING, SKIPPED = StepStatus.SUCCESS, StepStatus.PENDING, StepStatus.SKIPPED
DAY_MS = 86_400_000


class Orders:
    """A pipeline of a draft, its approval, and what is published; ``calls`` are its calls."""

    def __init__(self, *, version: str = "", secret: bool = False, **wait: Any) -> None:
        self.calls: list[str] = []
        pipeline = self.pipeline = Pipeline("orders")

        @pipeline.step(version=version, secret=secret)
        async def draft() -> str:
            self.calls.append("draft")
            return f"draft{version}"

        approved = pipeline.signal("approved", bool, depends_on=[draft], **wait)

        @pipeline.step
        async def publish(draft: str = after(draft), approved: bool = after(approved)) -> str:
            self.calls.append("publish")
            return f"{draft}: {approved}"

    async def run(self, journal: Any, run_id: str = "r", **options: Any) -> RunReport:
        return await self.pipeline.with_options(journal=journal, run_id=run_id, **options).run()


@dataclass
class Even:
    """A type of which no schema says all."""

    number: int

    def __post_init__(self) -> None:
        if self.number % 2:
            raise ValueError("it is odd")


async def drained(orders: Orders, journal: Any) -> None:
    """Start a run, and drain it while it waits and another of its steps runs."""

    @orders.pipeline.step
    async def slow() -> None:
        await asyncio.sleep(5)

    @orders.pipeline.step(depends_on=["slow"])
    async def slow_too() -> None: ...

    async with orders.pipeline.with_options(journal=journal, run_id="r").start() as run:
        await asyncio.sleep(1)
        run.drain("the service was shut down")
        with pytest.raises(RunCancelledError):
            await run.report()


def statuses(report: RunReport) -> dict[str, StepStatus]:
    return {name: result.status for name, result in report.items()}


async def count(journal: Any, run_id: str = "r") -> int:
    return len(await journal.events(run_id))


async def due(journal: Any) -> list[str]:
    return [record.run_id for record in await journal.due()]


@in_virtual_time
async def test_a_run_that_only_waits_ends_its_segment_and_continues_with_the_signal(
    journal: Any,
) -> None:
    orders = Orders()

    first = await orders.run(journal)
    record = await journal.record("r")
    before = await due(journal)
    await journal.signal("r", "approved", True)
    after_it = await due(journal)
    (second,) = await resume_all(journal, [orders.pipeline])

    assert first.status is RunStatus.WAITING
    assert statuses(first) == {"draft": SUCCESS, "approved": PENDING, "publish": PENDING}
    assert list(first.waiting) == ["approved"]
    assert (record.status, record.owner, before, after_it) == ("WAITING", None, [], ["r"])
    assert second["publish"].output == "draft: True"
    assert orders.calls == ["draft", "publish"]
    assert len(second.segments) == 2
    assert await due(journal) == []


async def answers(journal: Any, run_id: str = "r") -> list[SignalReceived]:
    events = [each.event for each in await journal.events(run_id)]
    return [event for event in events if isinstance(event, SignalReceived)]


@in_virtual_time
async def test_an_answer_is_stored_with_who_sent_it_when_and_a_note(
    journal: Any, database: Any
) -> None:
    orders = Orders()
    await orders.run(journal)
    note = 'as discussed,\nsee \0 \ud800 "ticket 4711"'

    await journal.signal("r", "approved", True, sent_by='"Zoë"', note=note)
    await journal.signal("r", "approved", True, sent_by="Bob", note="me too")  # a redelivery
    ((sent_at,),) = database.query("SELECT sent_at FROM signals")
    await orders.run(journal)
    await journal.signal("r", "approved", True, sent_by="Bob", note="me too")

    (answer,) = await answers(journal)
    kinds = [type(each.event).__name__ for each in await journal.events("r")]
    at = kinds.index("SignalReceived")
    assert (answer.sent_at, answer.sent_by, answer.note) == (sent_at, '"Zoë"', note)
    assert kinds[at - 1 : at + 2] == ["StepWaiting", "SignalReceived", "StepSucceeded"]


@in_virtual_time
async def test_an_answer_names_the_process_that_sent_it_unless_the_sender_has_a_name(
    journal: Any, database: Any
) -> None:
    await Orders().run(journal)
    here = Orders().pipeline.with_options(journal=journal, on_wait="stay")
    async with here.start() as run:
        await run.signal("approved", True)
        await run.report()
    async with here.start() as other:
        await other.signal("approved", True, sent_by="Zoë", note="fine")
        await other.report()
    await journal.signal("r", "approved", True)
    await Orders().run(journal)

    process = f"process {os.getpid()} on {socket.gethostname()}"
    assert [(e.sent_by, e.note) for e in await answers(journal)] == [(process, "")]
    assert [(e.sent_by, e.note) for e in await answers(journal, run.run_id)] == [(process, "")]
    assert [(e.sent_by, e.note) for e in await answers(journal, other.run_id)] == [("Zoë", "fine")]


@in_virtual_time
async def test_a_default_and_an_answer_that_is_void_name_no_sender(journal: Any) -> None:
    await Orders(deadline_ms=1_000, default=False).run(journal, "late")
    await asyncio.sleep(60)
    await Orders(deadline_ms=1_000, default=False).run(journal, "late")
    await Orders().run(journal)
    await journal.signal("r", "approved", True, sent_by="Zoë")
    changed = Orders(version="2")
    await changed.run(journal)  # what was answered is gone
    await journal.signal("r", "approved", False, sent_by="Bob")
    await changed.run(journal)

    assert await answers(journal, "late") == []
    assert [answer.sent_by for answer in await answers(journal)] == ["Bob"]


async def test_a_copy_of_a_run_has_who_answered_it(tmp_path: Path) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        await Orders().run(journal)
        await journal.signal("r", "approved", True, sent_by="Zoë", note="fine")
        await journal.export("r", tmp_path / "before.db")
        await Orders().run(journal)
        await journal.export("r", tmp_path / "after.db")

    async with SQLiteJournal(tmp_path / "before.db") as copy:
        await Orders().run(copy)
        before = await answers(copy)
    async with SQLiteJournal(tmp_path / "after.db") as copy:
        after_it = await answers(copy)
    assert [(each.sent_by, each.note) for each in (*before, *after_it)] == [("Zoë", "fine")] * 2


@in_virtual_time
async def test_a_damaged_sender_is_none_that_a_run_names(journal: Any, database: Any) -> None:
    await Orders().run(journal)
    await journal.signal("r", "approved", True, sent_by="Zoë")
    database.query("UPDATE signals SET sent_by = 'Bob'")

    report = await Orders().run(journal)

    assert report.status is RunStatus.WAITING
    assert await answers(journal) == []
    await journal.signal("r", "approved", True, sent_by="Zoë")
    assert (await Orders().run(journal)).status is RunStatus.PASSED


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sent_by": 7}, TypeError, "sent_by must be a str or None, not int"),
        ({"sent_by": ""}, ValueError, "sent_by must have 1 to 200 characters, not 0"),
        ({"sent_by": "x" * 201}, ValueError, "sent_by must have 1 to 200 characters, not 201"),
        ({"note": None}, TypeError, "note must be a str, not NoneType"),
        (
            {"note": "x" * 10_001},
            ValueError,
            "note must have at most 10,000 characters",
        ),
    ],
)
async def test_a_sender_and_a_note_that_can_not_be_right_are_refused(
    tmp_path: Path, options: Any, error: type[Exception], message: str
) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        pipeline = Orders().pipeline
        await pipeline.with_options(journal=journal, run_id="r").run()

        async with Service([pipeline], journal=journal) as service:
            for face in (journal, service):
                with pytest.raises(error, match=message):
                    await face.signal("r", "approved", True, **options)
        async with pipeline.start() as run:
            with pytest.raises(error, match=message):
                await run.signal("approved", True, **options)
            run.cancel()

        await journal.signal("r", "approved", False)  # nothing was stored


async def asked(journal: Any, run_id: str = "r") -> list[str]:
    events = [each.event for each in await journal.events(run_id)]
    return [event.description for event in events if isinstance(event, StepWaiting)]


@in_virtual_time
async def test_what_is_asked_is_found_out_once_and_stored_with_the_wait(journal: Any) -> None:
    calls: list[str] = []

    def ask(draft: str) -> str:
        calls.append(draft)
        return f"Send {draft!r} \ud800?"

    await Orders(description=ask).run(journal)
    changed = Orders(description="What?")
    changed.pipeline.signal("paid", bool)  # so that another process asks, too
    await changed.run(journal)
    await journal.signal("r", "approved", True)
    report = await changed.run(journal)

    text = "Send 'draft' \ud800?"
    assert list(report.waiting) == ["paid"]
    assert [each for each in await asked(journal) if each] == 3 * [text]
    assert calls == ["draft"]


@in_virtual_time
async def test_another_description_makes_no_answer_void(journal: Any) -> None:
    await Orders(description=lambda draft: f"Send {draft}?").run(journal)
    await journal.signal("r", "approved", True)

    changed = Orders(description=lambda: "Send it?")
    report = await changed.run(journal)

    assert report["publish"].output == "draft: True"
    assert changed.calls == ["publish"]


@in_virtual_time
async def test_a_wait_that_begins_anew_asks_anew(journal: Any) -> None:
    def ask(draft: str) -> str:
        return f"Send {draft}?"

    await Orders(description=ask).run(journal)
    await Orders(version="2", description=ask).run(journal)

    assert await asked(journal) == ["Send draft?", "Send draft2?"]


@in_virtual_time
async def test_a_refused_value_leaves_what_is_asked(journal: Any) -> None:
    pipeline = Pipeline("orders")
    pipeline.signal("approved", Even, description="An even number?")
    run = pipeline.with_options(journal=journal, run_id="r")
    await run.run()
    await journal.signal("r", "approved", {"number": 1})
    await run.run()

    assert await asked(journal) == 3 * ["An even number?"]


@in_virtual_time
async def test_a_description_does_not_let_what_it_has_asked_about_run_again(journal: Any) -> None:
    """The output of the secret step is not stored, and the step that waits needs it no more."""
    calls: list[str] = []
    pipeline = Pipeline("orders")

    @pipeline.step(secret=True)
    async def draft() -> str:
        calls.append("draft")
        return "hidden offer"

    pipeline.signal("approved", bool, depends_on=[draft], description=lambda draft: f"{draft}?")
    options = pipeline.with_options(journal=journal, run_id="r")
    async with options.start() as run:
        await asyncio.sleep(1)
        run.drain("the service was shut down")
        with suppress(RunCancelledError):
            await run.report()
    await journal.signal("r", "approved", True)
    report = await options.run()

    assert report["approved"].output is True
    assert calls == ["draft"]
    assert await asked(journal) == ["<secret>?", "<secret>?"]


def with_a_failure(version: str = "", *, is_repaired: bool = False) -> Pipeline:
    """Return a pipeline with a step that a failure loses while a signal holds it up."""
    pipeline = Pipeline("orders", fail_fast=False)
    approved = pipeline.signal("approved", bool)

    @pipeline.step(version=version)
    async def reserve() -> str:
        if not (version or is_repaired):
            raise ValueError("no stock")
        return "reserved"

    @pipeline.step
    async def publish(approved: bool = after(approved), reserve: str = after(reserve)) -> bool:
        return approved

    @pipeline.step
    async def announce(publish: bool = after(publish)) -> bool:
        return publish

    @pipeline.step(run_if="unless_failed", depends_on=[approved])
    async def note() -> None: ...

    @pipeline.step(run_if="always")
    async def clean_up() -> None: ...

    return pipeline


@pytest.mark.parametrize("schedule", ["tiers", "ready"])
@in_virtual_time
async def test_a_waiting_run_skips_what_a_failure_has_lost(journal: Any, schedule: Any) -> None:
    pipeline = with_a_failure().with_options(schedule=schedule, journal=journal, run_id="r")

    waiting = await pipeline.run()
    preview = await pipeline.preview("r")
    await journal.signal("r", "approved", True)
    ended = await pipeline.run()

    skipped = {name: each.reason for name, each in waiting.items() if each.status is SKIPPED}
    reason = "it depends on step 'reserve', which failed"
    assert skipped == {"publish": reason, "announce": reason}
    assert {each.step_name: each.reason for each in preview.skipped} == skipped
    assert waiting.status is RunStatus.WAITING
    assert list(waiting.waiting) == ["approved"]
    assert statuses(ended) == {
        "approved": SUCCESS,
        "reserve": StepStatus.FAILED,
        "publish": SKIPPED,
        "announce": SKIPPED,
        "note": SUCCESS,
        "clean_up": SUCCESS,
    }


@in_virtual_time
async def test_what_a_waiting_run_has_skipped_runs_once_the_failure_is_mended(
    journal: Any,
) -> None:
    await with_a_failure().with_options(journal=journal, run_id="r").run()

    mended = with_a_failure("2").with_options(journal=journal, run_id="r")
    waiting = await mended.run()
    await journal.signal("r", "approved", True)

    assert statuses(waiting)["publish"] is PENDING
    assert (await mended.run())["announce"].output is True


@in_virtual_time
async def test_an_early_signal_for_a_step_that_a_failure_has_lost_is_kept(journal: Any) -> None:
    def made(*, is_repaired: bool = False) -> Pipeline:
        pipeline = with_a_failure(is_repaired=is_repaired)
        pipeline.signal("paid", bool, depends_on=["publish"])
        return pipeline.with_options(journal=journal, run_id="r")

    await made().run()
    await journal.signal("r", "paid", True)
    await journal.signal("r", "approved", True)
    failed = await made().run()
    with pytest.raises(ValueError, match="has another value already"):
        await journal.signal("r", "paid", False)

    assert statuses(failed)["paid"] is SKIPPED
    assert (await made(is_repaired=True).run())["paid"].output is True


@in_virtual_time
async def test_a_signal_that_comes_while_a_segment_ends_is_for_the_next_one(journal: Any) -> None:
    is_open = []

    @asynccontextmanager
    async def database() -> AsyncIterator[list[bool]]:
        is_open[:] = [True]
        yield is_open
        is_open.clear()
        await asyncio.sleep(3)

    pipeline = Pipeline("orders", resources={"database": database})

    @pipeline.step
    async def draft(database: list[bool]) -> str:
        return "draft"

    approved = pipeline.signal("approved", bool, depends_on=[draft])

    @pipeline.step
    async def publish(database: list[bool], approved: bool = after(approved)) -> bool:
        return bool(database)

    options = pipeline.with_options(journal=journal, run_id="r")
    first = asyncio.ensure_future(options.run())
    await asyncio.sleep(1)  # its resource is closing
    await journal.signal("r", "approved", True)

    assert (await first).status is RunStatus.WAITING
    assert await due(journal) == ["r"]
    assert (await options.run())["publish"].output is True


@in_virtual_time
async def test_a_signal_is_stored_with_a_checksum_that_stays_the_same(
    journal: Any, database: Any
) -> None:
    """What this version has stored, the next ones must be able to read."""
    await Orders(deadline_ms=1_000).run(journal)
    await Orders().run(journal, "é")
    await journal._worker.send_signal(SentSignal("r", "approved", None))
    await journal.signal("é", "approved", True, sent_by="Zoë", note="fine")

    rows = database.query("SELECT kind, codec, data, checksum FROM signals ORDER BY run_id")

    assert [(kind, codec, data and bytes(data), sum_) for kind, codec, data, sum_ in rows] == [
        ("expired", None, None, 2_929_126_469),
        ("sent", "json", b"true", 3_247_883_531),
    ]


@in_virtual_time
async def test_a_signal_that_comes_just_after_the_history_was_read_is_taken(
    journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, read = Orders(), journal._read_history
    await orders.run(journal)

    def read_just_before(*args: Any) -> Any:
        answer = read(*args)
        sent = SentSignal("r", "approved", Payload("json", b"true"))
        journal._write_thread.submit(journal._worker._send_all, [sent]).result()
        return answer

    monkeypatch.setattr(journal, "_read_history", read_just_before)
    report = await asyncio.wait_for(orders.run(journal, on_wait="stay"), 60)

    assert report["publish"].output == "draft: True"


@in_virtual_time
async def test_a_value_that_comes_just_after_the_default_was_taken_is_refused(
    journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = Orders(deadline_ms=1_000, default=False)

    @orders.pipeline.step(depends_on=["publish"])
    async def fails() -> None:
        raise ConnectionError

    await orders.run(journal)
    await asyncio.sleep(60)
    report = await orders.run(journal)
    assert report.status is RunStatus.FAILED

    def looked_before_that(run_id: str, name: str, payload: Payload, *sender: str) -> SentSignal:
        return SentSignal(run_id, name, payload, None, *sender)

    monkeypatch.setattr(journal._reader, "check_signal", looked_before_that)

    with pytest.raises(ValueError, match="too late"):
        await journal.signal("r", "approved", True)


@in_virtual_time
async def test_an_owner_whose_lease_has_expired_learns_of_a_signal_if_it_goes_on(
    journal: Any, database: Any
) -> None:
    orders = Orders()
    run = asyncio.ensure_future(orders.run(journal, on_wait="stay"))
    await asyncio.sleep(1)

    database.expire_leases()  # the process stood still
    await journal.signal("r", "approved", True)

    assert (await asyncio.wait_for(run, 60))["publish"].output == "draft: True"


@in_virtual_time
async def test_no_owner_is_told_of_a_signal_after_its_run_has_ended(
    journal: Any, database: Any
) -> None:
    pipeline = Pipeline("orders")

    @pipeline.step
    async def draft() -> None:
        await asyncio.sleep(2)
        raise ValueError("no draft")

    pipeline.signal("approved", bool, depends_on=[draft])
    run = asyncio.ensure_future(pipeline.with_options(journal=journal, run_id="r").run())
    await asyncio.sleep(1)
    await journal.signal("r", "approved", True)  # its turn does not come
    await asyncio.wait([run])

    assert database.query("SELECT run_id FROM leases WHERE signal_token IS NOT NULL") == []


@in_virtual_time
async def test_a_value_that_takes_the_place_of_an_expiry_while_a_run_resumes_is_taken(
    journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, read = Orders(deadline_ms=10_000, default=False), journal._read_history
    await drained(orders, journal)
    await asyncio.sleep(60)
    await journal._worker.send_signal(SentSignal("r", "approved", None))

    def read_just_before(*args: Any) -> Any:
        answer = read(*args)
        sent = SentSignal("r", "approved", Payload("json", b"true"))
        journal._write_thread.submit(journal._worker._send_all, [sent]).result()
        return answer

    monkeypatch.setattr(journal, "_read_history", read_just_before)

    assert (await orders.run(journal))["publish"].output == "draft: True"


@in_virtual_time
async def test_a_continued_run_takes_what_was_sent_without_another_look(
    journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = Orders()
    await orders.run(journal)
    await journal.signal("r", "approved", True)

    monkeypatch.setattr(CommitQueue, "is_told", None)
    assert (await orders.run(journal))["publish"].output == "draft: True"


@in_virtual_time
async def test_a_value_that_is_refused_while_another_one_is_received_is_refused_once(
    journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def letters(delay_s: float) -> Pipeline:
        pipeline = Pipeline("letters")

        @pipeline.step(name=f"wait_{delay_s}")
        async def wait() -> None:
            await asyncio.sleep(delay_s)

        pipeline.signal("first", str)
        pipeline.signal("second", Even, depends_on=[wait])
        return pipeline.with_options(journal=journal, run_id="r")

    receive = CommitQueue.receive

    async def receive_and_be_slow(*args: Any) -> Any:
        received = await receive(*args)
        await asyncio.sleep(5)
        return received

    await letters(0).run()
    await journal.signal("r", "second", {"number": 1})
    monkeypatch.setattr(CommitQueue, "receive", receive_and_be_slow)
    run = asyncio.ensure_future(letters(2).with_options(on_wait="stay").run())
    await asyncio.sleep(1)
    await journal.signal("r", "first", "text")  # it is being received while 'second' waits
    while True:
        await asyncio.sleep(1)
        with suppress(ValueError):  # it has another value, which the run has not refused yet
            await journal.signal("r", "second", {"number": 2})
            break
    report = await asyncio.wait_for(run, 60)

    assert report["second"].output == Even(2)
    events = [stored.event for stored in await journal.events("r")]
    assert len([each for each in events if isinstance(each, StepWaiting) and each.refused]) == 1


@pytest.mark.parametrize("is_waiting", [False, True])
@in_virtual_time
async def test_a_bug_that_a_signal_meets_ends_the_run(
    journal: Any, monkeypatch: pytest.MonkeyPatch, is_waiting: bool
) -> None:
    decode = journal.decode

    def decode_steps(subject: str, *args: Any) -> Any:
        if "signal" in subject:
            raise RuntimeError("a bug")
        return decode(subject, *args)

    orders = Orders()
    await orders.run(journal)
    monkeypatch.setattr(journal, "decode", decode_steps)
    if not is_waiting:
        await journal.signal("r", "approved", True)
    run = asyncio.ensure_future(orders.run(journal, on_wait="stay"))
    await asyncio.sleep(1)
    if is_waiting:
        await journal.signal("r", "approved", True)

    with pytest.raises(RuntimeError, match="a bug"):
        await asyncio.wait_for(run, 60)


@in_virtual_time
async def test_a_look_that_another_task_cancels_is_taken_again(journal: Any) -> None:
    turns = range(8)
    for turn in turns:
        run_id, orders = f"r{turn}", Orders(deadline_ms=DAY_MS)
        run = asyncio.ensure_future(orders.run(journal, run_id, on_wait="stay"))
        await asyncio.sleep(5)
        sending = asyncio.ensure_future(journal.signal(run_id, "approved", True))
        looks: set[int] = set()
        while not (run.done() or len(looks) > turn):
            for task in asyncio.all_tasks():
                if task.get_name() == f"asyncflow:{run_id}:signals":
                    looks.add(len(looks))
                    if len(looks) > turn:
                        task.cancel()
            await asyncio.sleep(0)
        await sending

        assert (await asyncio.wait_for(run, 60))["publish"].output == "draft: True"


@pytest.mark.parametrize("on_wait", ["stay", "suspend"])
@in_virtual_time
async def test_a_look_that_the_journal_refuses_ends_no_run(
    journal: Any, monkeypatch: pytest.MonkeyPatch, on_wait: str
) -> None:
    receive, refusals = Signals.receive, [JournalError("runs.db", "it is locked")]

    def refuse_once(signals: Signals, *claim: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return receive(signals, *claim)

    orders = Orders(deadline_ms=5_000, default=False)
    monkeypatch.setattr(Signals, "receive", refuse_once)
    for expected in ("draft: True", "draft: False"):
        run_id, refusals[:] = expected, [JournalError("runs.db", "it is locked")]
        run = asyncio.ensure_future(orders.run(journal, run_id, on_wait=on_wait))
        await asyncio.sleep(2)
        if "True" in expected:
            await journal.signal(run_id, "approved", True)
        report = await asyncio.wait_for(run, 60)
        if on_wait == "suspend":
            assert report.status is RunStatus.WAITING
            await asyncio.sleep(10)
            (report,) = await resume_all(journal, [orders.pipeline])

        assert report["publish"].output == expected


@in_virtual_time
async def test_looks_that_the_journal_refuses_leave_no_timer(
    journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise JournalError("runs.db", "it is locked")

    monkeypatch.setattr(Signals, "receive", refuse)
    staying = Orders().pipeline.with_options(journal=journal, run_id="r", on_wait="stay")
    async with staying.start() as run:
        await asyncio.sleep(0.2)
        await run.signal("approved", True)  # another look, before the next one
        await asyncio.sleep(0.2)
        run.drain("the service stops")

    timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    assert [each for each in timers if not each.cancelled() and "Waits" in repr(each)] == []


@in_virtual_time
async def test_a_deadline_that_a_refused_value_outran_expires_all_the_same(
    journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = Orders(deadline_ms=1_000, default=False)
    poll = Waits._poll

    async def poll_late(waits: Any) -> None:
        if waits._expired:
            payload = Payload("json", b'"maybe"')
            await journal._worker.send_signal(SentSignal("r", "approved", payload))
            monkeypatch.setattr(Waits, "_poll", poll)
        await poll(waits)

    monkeypatch.setattr(Waits, "_poll", poll_late)
    report = await asyncio.wait_for(orders.run(journal, on_wait="stay"), 60)

    assert report["publish"].output == "draft: False"


@in_virtual_time
async def test_a_deadline_that_expires_while_another_one_is_stored_counts(
    journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = CommitQueue.send

    async def send_slowly(queue: CommitQueue, *signal: Any) -> None:
        await asyncio.sleep(1)
        await send(queue, *signal)

    monkeypatch.setattr(CommitQueue, "send", send_slowly)
    pipeline = Pipeline("offers")
    for deadline_ms in (1_000, 1_500):
        pipeline.signal(f"in_{deadline_ms}", bool, deadline_ms=deadline_ms, default=False)
    staying = pipeline.with_options(journal=journal, run_id="r", on_wait="stay")

    assert (await asyncio.wait_for(staying.run(), 60)).all_passed


@pytest.mark.parametrize(("deadline_ms", "status"), [(13_000, "PASSED"), (11_000, "FAILED")])
@in_virtual_time
async def test_hours_that_a_run_waited_in_its_process_do_not_count_in_the_next_one(
    journal: Any, deadline_ms: float, status: str
) -> None:
    pipeline = Pipeline("trip")
    booked = pipeline.signal("booked", bool)

    @pipeline.step
    async def pack(booked: bool = after(booked)) -> None:
        await asyncio.sleep(6)

    left = pipeline.signal("left", bool, depends_on=[pack])

    @pipeline.step
    async def report(left: bool = after(left)) -> None:
        await asyncio.sleep(6)

    options: Any = {"journal": journal, "on_wait": "stay", "deadline_ms": deadline_ms}
    stays = pipeline.with_options(run_id="r", **options)
    async with stays.start() as run:
        await asyncio.sleep(3_600)
        await run.signal("booked", True)
        await asyncio.sleep(3_600)
        run.drain("the service was shut down")
        assert (await run.report()).status is RunStatus.WAITING

    async with stays.start() as run:
        await asyncio.sleep(3_600)
        await run.signal("left", True)
        assert (await run.report()).status == status


@in_virtual_time
async def test_a_deadline_that_expired_before_it_was_removed_leaves_the_step_waiting(
    journal: Any,
) -> None:
    await Orders(deadline_ms=DAY_MS).run(journal)
    await journal._worker.send_signal(SentSignal("r", "approved", None))

    orders = Orders()
    assert (await orders.run(journal)).status is RunStatus.WAITING
    await journal.signal("r", "approved", True)

    assert (await orders.run(journal))["publish"].output == "draft: True"


@in_virtual_time
async def test_the_same_value_again_is_no_error_even_after_the_run_has_passed(
    journal: Any,
) -> None:
    orders = Orders()
    await orders.run(journal)

    await journal.signal("r", "approved", True)
    await journal.signal("r", "approved", True)
    await orders.run(journal)
    await journal.signal("r", "approved", True)

    with pytest.raises(ValueError, match="has another value already; the first one counts"):
        await journal.signal("r", "approved", False)


@in_virtual_time
async def test_a_signal_is_refused_that_can_not_be_right(journal: Any) -> None:
    await Orders().run(journal)

    with pytest.raises(ValueError, match=r"no signal 'aproved' \(did you mean 'approved'\?\)"):
        await journal.signal("r", "aproved", True)
    with pytest.raises(ValueError, match=r"'approved' must be of type boolean, not \"yes\""):
        await journal.signal("r", "approved", "yes")
    with pytest.raises(ValueError, match=r"no signal 'paid'; its signals are 'approved'$"):
        await journal.signal("r", "paid", True)
    with pytest.raises(ValueError, match="'approved' must be of type bool, not nan"):
        await journal.signal("r", "approved", math.nan)
    with pytest.raises(RunNotFoundError):
        await journal.signal("x", "approved", True)


@pytest.mark.parametrize(
    ("first", "second"),
    [(True, 1), (1, 1.0), ([True], [1]), ({"a": {"b": 0}}, {"a": {"b": False}})],
)
def test_values_that_only_python_calls_equal_differ(
    make_journal: Any, first: Any, second: Any
) -> None:
    async def main() -> None:
        async with make_journal() as journal:
            pipeline = Pipeline("any")
            pipeline.signal("answer", Any)
            await pipeline.with_options(journal=journal, run_id="r").run()
            await journal.signal("r", "answer", first)
            with pytest.raises(ValueError, match="has another value already"):
                await journal.signal("r", "answer", second)

    run_in_virtual_time(main())


def broken_after(orders: Orders) -> Orders:
    """Add a step that fails each time, after what is published."""

    @orders.pipeline.step(depends_on=["publish"])
    async def broken() -> None:
        raise RuntimeError("broken")

    return orders


@in_virtual_time
async def test_a_value_comes_too_late_for_a_step_that_has_its_default(journal: Any) -> None:
    orders = broken_after(Orders(deadline_ms=1_000, default=False))
    await orders.run(journal)
    await asyncio.sleep(60)
    assert (await orders.run(journal)).status is RunStatus.FAILED

    with pytest.raises(ValueError, match="comes too late: its deadline has expired"):
        await journal.signal("r", "approved", True)
    await journal.signal("r", "approved", False)  # it is the same


@in_virtual_time
async def test_a_rerun_refuses_another_value_for_a_signal_that_it_has_taken_over(
    journal: Any,
) -> None:
    orders = broken_after(Orders())
    await orders.run(journal)
    await journal.signal("r", "approved", True)
    await orders.run(journal)
    await orders.pipeline.with_options(journal=journal).rerun("r", "again")

    await journal.signal("again", "approved", True)  # it is the same
    with pytest.raises(ValueError, match="has another value already; the first one counts"):
        await journal.signal("again", "approved", False)
    # Reused or not, what the run was resumed with changes nothing.
    await orders.run(journal, "again")
    with pytest.raises(ValueError, match="has another value already; the first one counts"):
        await journal.signal("again", "approved", False)


@in_virtual_time
async def test_a_signal_that_its_condition_has_skipped_takes_no_value(journal: Any) -> None:
    orders = Orders(when=lambda draft: draft == "draft2")

    @orders.pipeline.step(depends_on=["draft"])
    async def broken() -> None:
        raise RuntimeError("broken")

    await orders.run(journal)

    with pytest.raises(ValueError, match="'approved' of run 'r' was skipped by its condition"):
        await journal.signal("r", "approved", True)


@in_virtual_time
async def test_the_handle_of_a_run_refuses_what_its_journal_would_refuse(journal: Any) -> None:
    orders = Orders()
    orders.pipeline.signal("insured", bool, when=lambda: False)
    orders.pipeline.signal("paid", bool, depends_on=["publish"])
    await orders.run(journal)
    await journal.signal("r", "approved", True)
    await orders.run(journal)
    pipeline = orders.pipeline.with_options(journal=journal, on_wait="stay")
    await pipeline.with_options(on_wait="suspend").rerun("r", "again")

    async with pipeline.with_options(run_id="again").start() as run:
        await asyncio.sleep(1)
        await run.signal("approved", True)
        with pytest.raises(ValueError, match="has another value already; the first one counts"):
            await run.signal("approved", False)
        with pytest.raises(ValueError, match="'insured' of run 'again' takes no value any more"):
            await run.signal("insured", True)
        await run.signal("paid", True)

    await journal.signal("again", "approved", True)


@pytest.mark.parametrize("value", [True, False])
@in_virtual_time
async def test_the_handle_of_a_run_that_has_just_resumed_sends_none_of_its_void_values(
    journal: Any, value: bool
) -> None:
    await Orders().run(journal)
    await journal.signal("r", "approved", True)
    changed = Orders(version="2").pipeline.with_options(journal=journal, run_id="r")

    async with changed.with_options(on_wait="stay").start() as run:
        await run.signal("approved", value)
        report = await asyncio.wait_for(run.report(), 60)

    assert report["publish"].output == f"draft2: {value}"


@in_virtual_time
async def test_a_signal_whose_value_is_void_takes_another_one(journal: Any) -> None:
    orders = Orders(deadline_ms=1_000, default=False)
    await orders.run(journal)
    await asyncio.sleep(60)
    await broken_after(orders).run(journal)

    report = await broken_after(Orders(version="2", deadline_ms=DAY_MS)).run(journal)
    await journal.signal("r", "approved", True)

    assert report.status is RunStatus.WAITING


@dataclass
class Answer:
    verdict: Literal["yes", "no"]
    amount: float
    tags: list[str]


@in_virtual_time
async def test_a_signal_comes_back_as_its_type_says(journal: Any) -> None:
    pipeline = Pipeline("typed")
    pipeline.signal("answer", Answer)
    run = pipeline.with_options(journal=journal, run_id="t").run
    await run()

    with pytest.raises(ValueError, match="'verdict' must be one of 'no', 'yes'"):
        await journal.signal("t", "answer", {"verdict": "perhaps", "amount": 1, "tags": []})
    with pytest.raises(ValueError, match="lacks 'tags'"):
        await journal.signal("t", "answer", {"verdict": "yes", "amount": 1})
    with pytest.raises(ValueError, match=r"'tags' \[0\] must be of type string"):
        await journal.signal("t", "answer", {"verdict": "yes", "amount": 1, "tags": [1]})
    await journal.signal("t", "answer", Answer("yes", 1, ["a"]))

    assert (await run())["answer"].output == Answer("yes", 1.0, ["a"])


# The traps.


@in_virtual_time
async def test_an_approval_is_not_reused_for_another_draft(journal: Any) -> None:
    await Orders().run(journal)
    await journal.signal("r", "approved", True)
    other = Orders(version="2")

    report = await other.run(journal)

    assert report.status is RunStatus.WAITING
    assert other.calls == ["draft"]
    await journal.signal("r", "approved", False)
    assert (await other.run(journal))["publish"].output == "draft2: False"


@in_virtual_time
async def test_an_early_approval_is_void_once_what_had_ended_is_made_anew(
    journal: Any,
) -> None:
    def orders(version: str, *fails: str) -> Pipeline:
        pipeline = Pipeline("orders")

        @pipeline.step(version=version)
        async def draft() -> str:
            if "draft" in fails:
                raise ValueError("no draft")
            return f"draft{version}"

        @pipeline.step
        async def check(draft: str = after(draft)) -> str:
            if "check" in fails:
                raise ValueError("not checked")
            return draft

        pipeline.signal("approved", bool, depends_on=[check])
        return pipeline

    async def run(run_id: str, *pipelines: Pipeline) -> RunReport:
        """Run the first pipeline, approve before that is asked, and resume with the second."""
        first, second = (each.with_options(journal=journal, run_id=run_id) for each in pipelines)
        assert (await first.run()).status is RunStatus.FAILED
        await journal.signal(run_id, "approved", True)
        return await second.run()

    same = await run("same", orders("1", "check"), orders("1"))
    another = await run("another", orders("1", "check"), orders("2"))
    again = await run("again", orders("1", "draft"), orders("1"))

    assert [each.status for each in (same, another, again)] == ["PASSED", "WAITING", "PASSED"]
    with pytest.raises(ValueError, match="has another value"):
        await journal.signal("again", "approved", False)
    await journal.signal("another", "approved", False)  # the old approval is gone


@in_virtual_time
async def test_an_approval_that_has_counted_is_void_when_its_draft_is_made_anew(
    journal: Any,
) -> None:
    pipeline = Orders().pipeline
    pipeline.signal("paid", int, depends_on=["publish"])
    run_first = pipeline.with_options(journal=journal, run_id="r").run
    await run_first()
    await journal.signal("r", "approved", True)
    await run_first()
    other = Orders(version="2")
    other.pipeline.signal("paid", int, depends_on=["publish"])

    report = await other.run(journal)

    assert list(report.waiting) == ["approved"]
    assert report["approved"].rerun_reason is not None


@in_virtual_time
async def test_a_run_stays_in_its_process_if_what_a_signal_answers_is_not_stored(
    journal: Any,
) -> None:
    orders = Orders(secret=True)
    run = orders.pipeline.with_options(journal=journal, run_id="r").start()
    async with run:
        await asyncio.sleep(60)
        await journal.signal("r", "approved", True)
        report = await run.report()

    assert report["publish"].output == "draft: True"
    assert orders.calls == ["draft", "publish"]


@in_virtual_time
async def test_a_wrongly_typed_signal_does_not_wedge_a_run_for_good(journal: Any) -> None:
    orders = Orders()
    await orders.run(journal)
    # Whoever writes to the database by itself is checked by nobody.
    unchecked = SentSignal("r", "approved", Payload("json", b'"yes"'))
    await journal._worker.send_signal(unchecked)

    report = await orders.run(journal)
    events = [each.event for each in await journal.events("r")]
    await journal.signal("r", "approved", True)
    again = await orders.run(journal)

    assert report.status is RunStatus.WAITING
    refusals = [event.refused for event in events if isinstance(event, StepWaiting)]
    assert [bool(refused) for refused in refusals] == [False, False, True]
    assert "signal 'approved'" in refusals[-1]
    assert again["publish"].output == "draft: True"


@in_virtual_time
async def test_a_run_that_begins_and_suspends_in_one_batch_is_woken(journal: Any) -> None:
    pipeline = Pipeline("gated")
    pipeline.signal("gate", bool, deadline_ms=1000, default=False)
    run = pipeline.with_options(journal=journal, run_id="g").run

    await run()
    await asyncio.sleep(2)
    by_deadline = await due(journal)
    await journal.signal("g", "gate", True)

    assert by_deadline == ["g"]
    assert await due(journal) == ["g"]


@in_virtual_time
async def test_a_run_that_waits_continues_and_does_not_start_afresh(journal: Any) -> None:
    orders = Orders()
    calls = []

    @orders.pipeline.step
    async def broken() -> None:
        calls.append(1)
        raise ValueError("broken")

    first = await orders.run(journal, fail_fast=False)
    await journal.signal("r", "approved", True)
    second = await orders.run(journal, fail_fast=False)

    assert first.status is RunStatus.WAITING
    assert second.status is RunStatus.FAILED
    assert second["publish"].status is SUCCESS
    assert calls == [1]


@in_virtual_time
async def test_a_run_deadline_does_not_count_while_a_run_waits_without_a_process(
    journal: Any,
) -> None:
    orders = Orders()

    @orders.pipeline.step
    async def slow() -> None:
        await asyncio.sleep(0.15)

    @orders.pipeline.step(depends_on=["publish"])
    async def slow_too() -> None:
        await asyncio.sleep(0.15)

    for run_id, deadline_ms in ("short", 200), ("long", 350):
        assert (await orders.run(journal, run_id, deadline_ms=deadline_ms)).status == "WAITING"
        await asyncio.sleep(60)
        await journal.signal(run_id, "approved", True)
    short = await orders.run(journal, "short", deadline_ms=200)
    long = await orders.run(journal, "long", deadline_ms=350)

    assert (short.status, long.status) == ("FAILED", "PASSED")
    assert short.total_duration_ms == pytest.approx(200, abs=1)


@in_virtual_time
async def test_a_deadline_counts_from_the_steps_turn_through_a_resumption(journal: Any) -> None:
    pipeline = Orders(deadline_ms=1_000_000, default=False).pipeline
    pipeline.signal("other", bool)
    run = pipeline.with_options(journal=journal, run_id="r").run
    await run()
    await asyncio.sleep(600)
    await journal.signal("r", "other", True)
    await run()
    await asyncio.sleep(500)

    report = await run()

    assert report["publish"].output == "draft: False"
    assert report["approved"].fell_back


@in_virtual_time
async def test_a_signal_and_the_expiry_compete_and_the_first_one_counts(journal: Any) -> None:
    orders = Orders(deadline_ms=1_000, default=False)
    await orders.run(journal)
    await journal.signal("r", "approved", True)
    await asyncio.sleep(60)
    assert (await orders.run(journal))["publish"].output == "draft: True"

    await orders.run(journal, "late")
    await asyncio.sleep(60)
    assert (await orders.run(journal, "late"))["publish"].output == "draft: False"
    with pytest.raises(ValueError, match="comes too late: its deadline has expired"):
        await journal.signal("late", "approved", True)


@in_virtual_time
async def test_a_failed_run_accepts_a_signal_for_its_resumption(journal: Any) -> None:
    orders, problems = Orders(), ["no stock"]

    @orders.pipeline.step
    async def reserve() -> None:
        if problems:
            raise ValueError(problems.pop())

    failed = await orders.run(journal)
    await journal.signal("r", "approved", True)

    report = await orders.run(journal)

    assert failed.status is RunStatus.FAILED
    assert report["publish"].output == "draft: True"


@pytest.mark.parametrize("fallback", [None, lambda error: 1 / 0])
@in_virtual_time
async def test_a_run_that_failed_by_a_deadline_takes_no_answer_before_it_is_resumed(
    journal: Any, fallback: Any
) -> None:
    orders = Orders(deadline_ms=1_000, fallback=fallback)
    await orders.run(journal)
    await asyncio.sleep(60)
    failed = await orders.run(journal)

    too_late = r"comes too late: its deadline has expired; resume the run, and it waits anew$"
    with pytest.raises(ValueError, match=too_late):
        await journal.signal("r", "approved", True)
    resumed = await orders.run(journal)
    await journal.signal("r", "approved", True)
    report = await orders.run(journal)

    assert (failed.status, resumed.status) == (RunStatus.FAILED, RunStatus.WAITING)
    assert report["publish"].output == "draft: True"


@in_virtual_time
async def test_a_failed_deadline_begins_anew_when_the_run_is_resumed(journal: Any) -> None:
    orders = Orders(deadline_ms=1_000)
    await orders.run(journal)
    await asyncio.sleep(60)
    await orders.run(journal)

    report = await orders.run(journal)

    assert report.status is RunStatus.WAITING


@in_virtual_time
async def test_cancelling_a_run_that_waits_ends_it_interrupted(journal: Any) -> None:
    orders = Orders()
    await orders.run(journal)

    assert await journal.cancel("r", "sold out")

    record = await journal.record("r")
    assert (record.status, record.cause) == ("INTERRUPTED", "cancelled")
    assert (await journal.report("r"))["publish"].reason == "the run was cancelled: sold out"
    assert statuses(await journal.report("r")) == {
        "draft": SUCCESS,
        "approved": SKIPPED,
        "publish": SKIPPED,
    }
    await journal.signal("r", "approved", True)  # a deploy loses no approval
    assert (await orders.run(journal))["publish"].output == "draft: True"
    assert orders.calls == ["draft", "publish"]


@in_virtual_time
async def test_a_request_that_finds_a_run_waiting_ends_it_when_it_is_continued(
    journal: Any,
) -> None:
    orders = Orders()
    await orders.run(journal)
    # As when its segment ends between the look of `cancel` and the request.
    await journal._write(journal._worker.cancel, "r", "sold out")

    assert await due(journal) == ["r"]
    await resume_all(journal, [orders.pipeline])

    record = await journal.record("r")
    assert (record.status, record.cause) == ("INTERRUPTED", "cancelled")
    assert (await journal.report("r")).stop_reason == "the run was cancelled: sold out"
    assert await due(journal) == []
    assert orders.calls == ["draft"]


@in_virtual_time
async def test_a_run_that_a_process_has_claimed_is_not_due(journal: Any) -> None:
    orders = Orders()
    for run_id in "rs":
        await orders.run(journal, run_id)
        await journal.signal(run_id, "approved", True)
    before = await due(journal)

    session, _ = await journal.open("r", wait=False, read=lambda stored: stored)
    meanwhile, first = await due(journal), await journal.due(limit=1)
    await session.close()

    assert (before, meanwhile, await due(journal)) == (["r", "s"], ["s"], ["r", "s"])
    assert [run.run_id for run in first] == ["s"]


@in_virtual_time
async def test_runs_are_due_in_the_order_in_which_they_have_become_due(journal: Any) -> None:
    orders = Orders(deadline_ms=1_000)
    for run_id in "abcd":
        await orders.run(journal, run_id)
    await asyncio.sleep(60)
    for run_id in "cad":
        await journal.signal(run_id, "approved", True)

    assert await due(journal) == ["c", "a", "d", "b"]
    assert [record.run_id for record in await journal.due(limit=2)] == ["c", "a"]


@in_virtual_time
async def test_a_signal_to_a_run_that_is_deleted_meanwhile_leaves_nothing(journal: Any) -> None:
    orders = Orders()
    await orders.run(journal)
    check = journal._reader.check_signal

    def check_and_delete(*args: Any) -> bool:
        is_news: bool = check(*args)
        forget = journal._store.forget, "r", journal._claim
        journal._write_thread.submit(journal._worker.call, *forget).result()
        return is_news

    journal._reader.check_signal = check_and_delete
    with pytest.raises(RunNotFoundError):
        await journal.signal("r", "approved", True)

    assert (await orders.run(journal)).status is RunStatus.WAITING


@in_virtual_time
async def test_draining_a_run_that_only_waits_leaves_it_waiting(journal: Any) -> None:
    orders = Orders()
    options = {"journal": journal, "run_id": "r", "on_wait": "stay"}
    async with orders.pipeline.with_options(**options).start() as run:
        await asyncio.sleep(60)
        run.drain("the service was shut down")
        report = await run.report()

    assert report.status is RunStatus.WAITING
    await journal.signal("r", "approved", True)
    assert (await orders.run(journal))["publish"].output == "draft: True"


@in_virtual_time
async def test_draining_a_run_whose_nested_run_only_waits_interrupts_both(journal: Any) -> None:
    orders, outer = Orders(), Pipeline("outer")

    @outer.step(timeout_ms=None)
    async def order() -> str:
        report = await orders.run(journal, "nested", on_wait="stay")
        return report["publish"].output  # type: ignore[no-any-return]

    outer = outer.with_options(journal=journal, run_id="outer")
    async with outer.start() as run:
        await asyncio.sleep(60)
        run.drain("the service was shut down")
        with pytest.raises(RunCancelledError):
            await run.report()

    await journal.signal("nested", "approved", True)
    assert (await outer.run())["order"].output == "draft: True"


@in_virtual_time
async def test_draining_a_run_that_looks_for_a_signal_leaves_that_for_later(
    journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, receive, is_draining = Orders(), CommitQueue.receive, asyncio.Event()

    async def receive_late(queue: CommitQueue, lease: Any) -> Any:
        await is_draining.wait()
        return await receive(queue, lease)

    options = {"journal": journal, "run_id": "r", "on_wait": "stay"}
    async with orders.pipeline.with_options(**options).start() as run:
        await asyncio.sleep(60)
        monkeypatch.setattr(CommitQueue, "receive", receive_late)
        await journal.signal("r", "approved", True)
        while not any(task.get_name().endswith(":signals") for task in asyncio.all_tasks()):
            await asyncio.sleep(0)
        run.drain("the service was shut down")
        await asyncio.sleep(0)
        is_draining.set()
        report = await run.report()

    assert report.status is RunStatus.WAITING
    assert (await orders.run(journal))["publish"].output == "draft: True"


@in_virtual_time
async def test_a_drained_run_with_steps_that_run_keeps_since_when_it_waits(journal: Any) -> None:
    orders = Orders(deadline_ms=100_000, default=False)
    await drained(orders, journal)
    report = await orders.run(journal)

    assert report.status is RunStatus.WAITING
    events = [each.event for each in await journal.events("r")]
    waits = [event for event in events if isinstance(event, StepWaiting)]
    assert len({wait.since for wait in waits}) == 1


@in_virtual_time
async def test_raise_for_failures_raises_for_a_run_that_waits(journal: Any) -> None:
    report = await Orders().run(journal)

    with pytest.raises(RunWaitingError, match="run 'r' waits for 'approved'") as raised:
        report.raise_for_failures()

    assert raised.value.signals == ("approved",)
    assert not report.all_passed
    assert RunReport.from_json(report.to_json()).waiting.keys() == {"approved"}


@in_virtual_time
async def test_resuming_without_news_returns_the_stored_report_and_writes_nothing(
    journal: Any,
) -> None:
    orders = Orders()
    await orders.run(journal)
    before = await count(journal)

    report = await orders.run(journal)

    assert report.status is RunStatus.WAITING
    assert await count(journal) == before
    assert orders.calls == ["draft"]


@in_virtual_time
async def test_a_fake_answers_a_run_that_waits_already(journal: Any) -> None:
    orders = Orders()
    assert (await orders.run(journal)).status is RunStatus.WAITING

    with fake(orders.pipeline, approved=True):
        report = await orders.run(journal)

    assert report["publish"].output == "draft: True"


@in_virtual_time
async def test_what_has_not_ended_in_a_run_that_waits_on_is_no_result_of_its_handle(
    journal: Any,
) -> None:
    orders = Orders()
    for _ in range(2):  # the second time it has no news
        pipeline = orders.pipeline.with_options(journal=journal, run_id="r")
        async with pipeline.start() as run:
            ended = [result.step_name async for result in run.results()]

            assert (ended, run.progress.done) == (["draft"], 1)


@in_virtual_time
async def test_a_run_that_waits_is_pruned_only_if_that_is_asked_for(journal: Any) -> None:
    await Orders().run(journal)

    assert await journal.prune(timedelta(0)) == 0
    assert await journal.prune(timedelta(0), status="WAITING") == 1
    assert await journal.runs() == []


@pytest.mark.parametrize("status", ["WAITING", "FAILED"])
@in_virtual_time
async def test_a_run_that_was_answered_lately_is_not_pruned(
    journal: Any, database: Any, status: str
) -> None:
    orders = Orders()
    if status == "FAILED":

        @orders.pipeline.step
        async def reserve() -> None:
            raise ValueError("no stock")

    await orders.run(journal)
    database.query("UPDATE runs SET updated_at = 1")
    database.query("UPDATE signals SET sent_at = 1")
    await journal.signal("r", "approved", True)

    assert (await journal.record("r")).status == status
    assert await journal.prune(timedelta(days=90), status=status) == 0
    database.query("UPDATE signals SET sent_at = 1")
    spared = status == "WAITING"  # it is due
    assert await journal.prune(timedelta(days=90), status=status) == (0 if spared else 1)


@in_virtual_time
async def test_pruning_the_runs_of_a_status_takes_none_that_has_another_one_by_then(
    journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, read = Orders(), journal._read
    await orders.run(journal)

    async def read_and_answer(call: Any, *arguments: Any) -> Any:
        found = await read(call, *arguments)
        if call == journal._reading.ended:
            await journal.signal("r", "approved", True)
            assert (await orders.run(journal)).all_passed
            await asyncio.sleep(1)
        return found

    monkeypatch.setattr(journal, "_read", read_and_answer)

    assert await journal.prune(timedelta(0), status="WAITING") == 0
    assert (await journal.record("r")).status is RunStatus.PASSED


async def test_pruning_takes_no_run_that_is_being_continued(
    make_journal: Any, database: Any
) -> None:
    chance, orders = random.Random(3), Orders()
    async with make_journal() as journal, make_journal() as other:

        async def prune() -> int:
            count = 0
            for _ in range(6):
                await asyncio.sleep(chance.random() / 50)
                count += await other.prune(timedelta(0), status="WAITING")
            return count

        run_ids = [f"r{number}" for number in range(60)]
        for run_id in run_ids:
            await orders.run(journal, run_id)
        await asyncio.gather(*(journal.signal(run_id, "approved", True) for run_id in run_ids))
        pruned, reports = await asyncio.gather(prune(), resume_all(journal, [orders.pipeline]))
        left = await journal.runs(limit=None)
        for record in left:
            assert (await journal.report(record.run_id)).status is RunStatus.PASSED

    assert len(left) == len(reports) == len(run_ids) - pruned
    (strays,) = database.query(
        "SELECT COUNT(*) FROM signals WHERE run_id NOT IN (SELECT run_id FROM runs)"
    )
    assert strays == (0,)


@in_virtual_time
async def test_a_rerun_takes_over_signals_that_have_counted(journal: Any) -> None:
    orders = Orders()
    await orders.run(journal)
    await journal.signal("r", "approved", True)
    await orders.run(journal)

    again = await orders.pipeline.with_options(journal=journal).rerun("r", "again")

    assert again["approved"].output is True
    assert again["publish"].reused


# Who owns a run.


@in_virtual_time
async def test_a_signal_reaches_a_run_of_this_process_at_once(journal: Any) -> None:
    pipeline = Orders().pipeline.with_options(journal=journal, run_id="r", on_wait="stay")
    async with pipeline.start() as run:
        await asyncio.sleep(60)
        sent_s = asyncio.get_running_loop().time()
        await journal.signal("r", "approved", True)
        await run.report()
        took_s = asyncio.get_running_loop().time() - sent_s

    assert took_s < 0.1


async def test_a_signal_reaches_a_run_of_another_journal_within_a_second(
    make_journal: Any,
) -> None:
    orders = Orders()
    async with make_journal(lease_s=0.6) as journal, make_journal() as other:
        options = {"journal": journal, "run_id": "r", "on_wait": "stay"}
        async with orders.pipeline.with_options(**options).start() as run:
            while orders.calls != ["draft"]:
                await asyncio.sleep(0.01)
            await other.signal("r", "approved", True)
            report = await run.report()

    assert report["publish"].output == "draft: True"


async def test_no_signal_is_lost_between_the_end_of_a_segment_and_its_arrival(
    make_journal: Any,
) -> None:
    chance = random.Random(7)
    orders = Orders()

    async def send(journal: Any, run_id: str) -> None:
        while True:
            try:
                await journal.signal(run_id, "approved", True)
                return
            except RunNotFoundError:
                await asyncio.sleep(chance.random() / 1000)

    async with make_journal() as journal, make_journal() as other:
        run_ids = [f"r{number}" for number in range(100)]
        async with asyncio.TaskGroup() as group:
            for run_id in run_ids:
                group.create_task(orders.run(journal, run_id))
                group.create_task(send(other, run_id))
        await resume_all(journal, [orders.pipeline])

        statuses_now = {record.status for record in await journal.runs(limit=None)}

    assert statuses_now == {RunStatus.PASSED}
    assert orders.calls.count("draft") == orders.calls.count("publish") == 100


async def test_a_signal_a_resumption_and_a_cancellation_at_once_leave_one_owner(
    make_journal: Any,
) -> None:
    orders = Orders()
    async with make_journal() as one, make_journal() as other:
        for number in range(20):
            run_id = f"r{number}"
            await orders.run(one, run_id)
            await asyncio.gather(
                one.signal(run_id, "approved", True),
                other.cancel(run_id),
                orders.run(other, run_id),
                orders.run(one, run_id),
                return_exceptions=True,
            )
            with suppress(RunCancelledError):  # the request came late
                await orders.run(one, run_id)
            await orders.run(one, run_id)

        ended = [record.status for record in await one.runs(limit=None)]

    assert ended == [RunStatus.PASSED] * 20
    assert orders.calls.count("draft") == 20


@pytest.mark.parametrize("pipelines", [None, ["orders", "other"]])
def test_a_look_for_what_is_due_reads_only_that(
    tmp_path: Path, pipelines: list[str] | None
) -> None:
    store = Store(SQLite(str(tmp_path / "runs.db"), "NORMAL", 1.0))
    plans: list[str] = []

    def explain(sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        plans.extend(row[3] for row in Store.read(store, f"EXPLAIN QUERY PLAN {sql}", parameters))
        return []

    store.read = explain  # type: ignore[method-assign]
    Signals(store).due(None, pipelines, 10, (), None)
    store.database.close()

    assert ["runs_due" in plan for plan in plans] == [True]
