"""A service continues runs that wait: at once, after a restart, and beside as many as it likes."""

from __future__ import annotations

import asyncio
import logging
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from approvals import orders

from asyncflow import JournalError, Pipeline, RunNotFoundError, RunWaitingError, after
from asyncflow.events import RunFinished
from asyncflow.journal import SQLiteJournal
from asyncflow.service import Service
from asyncflow.testing import run_in_virtual_time

LONG_S = 600


def in_virtual_time(test: Any) -> Any:
    def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        more = [monkeypatch] if "monkeypatch" in signature(test).parameters else []
        run_in_virtual_time(test(tmp_path, *more))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def until_ended(journal: SQLiteJournal, run_id: str = "r") -> str:
    while (record := await journal.record(run_id)).status in ("WAITING", "RUNNING", "ORPHANED"):
        await asyncio.sleep(0.01)
    return record.status


@in_virtual_time
async def test_a_service_continues_a_run_when_its_signal_comes(tmp_path: Path) -> None:
    clock = asyncio.get_running_loop().time
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        async with Service([orders()], journal=journal, max_runs=1) as service:
            for run_id in "rst":  # a run that waits holds no place
                await (await service.start("orders", run_id=run_id)).report()
            assert service.runs == []
            await asyncio.sleep(2 * LONG_S)
            sent_s = clock()
            await service.signal("r", "approved", True)
            status = await until_ended(journal)
            took_s = clock() - sent_s
            with pytest.raises(RunNotFoundError):
                await service.signal("x", "approved", True)

        assert (status, took_s < 0.5) == ("PASSED", True)
        assert (await journal.report("r"))["publish"].output == "draft: True"
        assert (await journal.record("s")).status == "WAITING"


async def client_that_stays() -> dict[str, Any]:
    await asyncio.sleep(10 * LONG_S)
    return {"type": "http.disconnect"}


@in_virtual_time
async def test_the_answer_of_a_run_that_begins_to_wait_says_what_to_do(tmp_path: Path) -> None:
    async with (
        SQLiteJournal(tmp_path / "runs.db") as journal,
        Service([orders()], journal=journal) as service,
    ):
        run = await service.start("orders", run_id="r")
        report = await service.answer(run, client_that_stays)

        assert list(report.waiting) == ["approved"]
        with pytest.raises(RunWaitingError, match=r'202 and .* on_wait="stay"'):
            report.raise_for_failures()


@in_virtual_time
async def test_the_answer_of_a_run_that_stays_comes_at_its_end(tmp_path: Path) -> None:
    pausing = orders(deadline_ms=5_000, default=True).with_options(on_wait="stay")
    async with (
        SQLiteJournal(tmp_path / "runs.db") as journal,
        Service([pausing], journal=journal) as service,
    ):
        report = await service.answer(await service.start(pausing), client_that_stays)

    assert report["publish"].output == "draft: True"


@in_virtual_time
async def test_a_reader_of_events_goes_on_through_a_wait(tmp_path: Path) -> None:
    async with (
        SQLiteJournal(tmp_path / "runs.db") as journal,
        Service([orders()], journal=journal) as service,
    ):
        await (await service.start("orders", run_id="r")).report()

        async def answer() -> None:
            await asyncio.sleep(LONG_S)
            await service.signal("r", "approved", True)

        answering = asyncio.ensure_future(answer())
        ends = [
            stored.event.status
            async for stored in service.events("r")
            if isinstance(stored.event, RunFinished)
        ]
        await answering

    assert ends == ["WAITING", "PASSED"]


@in_virtual_time
async def test_each_service_continues_at_once_only_what_its_own_journal_has_received(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, claimed = SQLiteJournal.open, []

    async def note(journal: SQLiteJournal, run_id: str, **options: Any) -> Any:
        claimed.append((journal, run_id))
        return await claim(journal, run_id, **options)

    path = tmp_path / "runs.db"
    async with SQLiteJournal(path) as first, SQLiteJournal(path) as second:
        async with (
            Service([orders()], journal=first) as a,
            Service([orders()], journal=second) as b,
        ):
            for service, run_id in ((a, "r"), (b, "s")):
                await (await service.start("orders", run_id=run_id)).report()
            await asyncio.sleep(10.5)  # between two looks at all that is due
            monkeypatch.setattr(SQLiteJournal, "open", note)
            await asyncio.gather(a.signal("s", "approved", True), b.signal("r", "approved", True))
            for run_id in "rs":
                assert await until_ended(first, run_id) == "PASSED"

        assert sorted(claimed, key=str) == sorted([(first, "s"), (second, "r")], key=str)


@in_virtual_time
async def test_a_service_continues_a_run_whose_deadline_has_expired_within_a_second(
    tmp_path: Path,
) -> None:
    clock = asyncio.get_running_loop().time
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        async with Service([orders(deadline_ms=5_000, default=False)], journal=journal) as s:
            began_s = clock()
            await (await s.start("orders", run_id="r")).report()
            await until_ended(journal)
            took_s = clock() - began_s

        assert 5 <= took_s <= 6.1
        assert (await journal.report("r"))["publish"].output == "draft: False"


@in_virtual_time
async def test_a_signal_that_another_process_stores_is_noticed_within_a_second(
    tmp_path: Path,
) -> None:
    clock = asyncio.get_running_loop().time
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        async with Service([orders()], journal=journal) as service:
            await (await service.start("orders", run_id="r")).report()
            async with SQLiteJournal(tmp_path / "runs.db") as other:
                await other.signal("r", "approved", True)
            sent_s = clock()
            await until_ended(journal)

        assert clock() - sent_s <= 1.1


@in_virtual_time
async def test_an_approval_outlives_a_restart_of_the_service(tmp_path: Path) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        async with Service([orders()], journal=journal) as service:
            await (await service.start("orders", run_id="r")).report()
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        await asyncio.sleep(LONG_S)
        await journal.signal("r", "approved", True)  # while no service runs
        async with Service([orders()], journal=journal):
            assert await until_ended(journal) == "PASSED"


@in_virtual_time
async def test_a_service_without_a_journal_sends_signals_to_its_runs(tmp_path: Path) -> None:
    async with Service([orders()]) as service:
        run = await service.start("orders", run_id="r")
        await service.signal("r", "approved", True)
        assert (await run.report())["publish"].output == "draft: True"
        with pytest.raises(LookupError, match="has no run 'x' now"):
            await service.signal("x", "approved", True)


@in_virtual_time
async def test_runs_that_cannot_be_continued_hold_up_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncflow.service._recovery._AT_ONCE", 3)
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        new = orders()  # a deployment has added an input, which older runs do not have

        @new.step(depends_on=["publish"])
        async def ship(address: str) -> str:
            return address

        older = [f"older {number}" for number in range(5)]
        for run_id in older:
            await orders().with_options(journal=journal, run_id=run_id).run()
            await journal.signal(run_id, "approved", True)
        await new.with_options(journal=journal, run_id="r").run(address="x")
        await journal.signal("r", "approved", True)
        async with Service([new], journal=journal):
            await asyncio.sleep(3)

        assert (await journal.record("r")).status == "PASSED"
        assert [record.run_id for record in await journal.due()] == older


@in_virtual_time
async def test_equal_calls_of_a_run_that_continues_and_one_that_stays_are_made_once(
    tmp_path: Path,
) -> None:
    calls, pipeline = [], Pipeline("quotes")
    gate = pipeline.signal("gate", bool)

    @pipeline.step(cache_ms=60_000)
    async def quote(gate: bool = after(gate)) -> int:
        calls.append(gate)
        await asyncio.sleep(10)
        return 7

    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        await pipeline.with_options(journal=journal, run_id="continues").run()
        async with Service([pipeline.with_options(on_wait="stay")], journal=journal) as service:
            await service.start("quotes", run_id="stays")
            for run_id in ("continues", "stays"):
                await service.signal(run_id, "gate", True)
            for run_id in ("continues", "stays"):
                assert await until_ended(journal, run_id) == "PASSED"

    assert calls == [True]


@in_virtual_time
async def test_what_a_continued_run_logs_is_stored(tmp_path: Path) -> None:
    pipeline = orders()

    @pipeline.step(depends_on=["publish"])
    async def tell() -> None:
        logging.getLogger("shop").warning("published")

    async with SQLiteJournal(tmp_path / "runs.db", logs="WARNING") as journal:
        async with Service([pipeline], journal=journal) as service:
            await (await service.start("orders", run_id="r")).report()
            await service.signal("r", "approved", True)
            await until_ended(journal)

        (note,) = await journal.notes("r")
        assert "published" in str(note)


@in_virtual_time
async def test_runs_of_other_pipelines_that_are_due_are_left_alone(tmp_path: Path) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        other = Pipeline("other")
        other.signal("gate", bool)
        await other.with_options(journal=journal, run_id="o").run()
        await journal.signal("o", "gate", True)
        async with Service([orders()], journal=journal):
            await asyncio.sleep(60)

        assert [record.run_id for record in await journal.due()] == ["o"]


def nesting(journals: list[SQLiteJournal], **limits: Any) -> Pipeline:
    """Return a pipeline with a step that runs orders, under an id made of its own."""
    daily = Pipeline("daily")

    @daily.step(**limits)
    async def order() -> str:
        inner = orders().with_options(run_id="inner", journal=journals[-1])
        report = await inner.run()
        report.raise_for_failures()
        return str(report["publish"].output)

    return daily


async def statuses(journal: SQLiteJournal) -> dict[str, str]:
    return {record.run_id: str(record.status) for record in await journal.runs()}


@in_virtual_time
async def test_a_nested_run_waits_in_its_process_and_is_answered_there(tmp_path: Path) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        daily = nesting([journal], timeout_ms=None)
        async with Service([daily, orders()], journal=journal) as service:
            handle = await service.start("daily", run_id="outer")
            await asyncio.sleep(LONG_S)
            waiting = await statuses(journal)
            await service.signal("inner", "approved", True)
            report = await handle.report()

            assert waiting == {"outer": "RUNNING", "inner": "RUNNING"}
            assert report["order"].output == "draft: True"
            assert await statuses(journal) == {"outer": "PASSED", "inner": "PASSED"}
            assert len((await journal.report("inner")).segments) == 1


@in_virtual_time
async def test_a_parents_time_limit_ends_a_nested_run_for_good(tmp_path: Path) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        daily = nesting([journal], timeout_ms=1_000)
        async with Service([daily, orders()], journal=journal) as service:
            await (await service.start("daily", run_id="outer")).report()
            await service.signal("inner", "approved", True)  # kept for a resumption
            await asyncio.sleep(LONG_S)

            assert await statuses(journal) == {"outer": "FAILED", "inner": "INTERRUPTED"}


@in_virtual_time
async def test_after_a_crash_a_nested_run_that_waits_continues_with_its_parent_alone(
    tmp_path: Path,
) -> None:
    journals = [SQLiteJournal(tmp_path / "runs.db", close_timeout_s=0)]
    daily = nesting(journals, timeout_ms=None)
    run = asyncio.create_task(daily.with_options(run_id="outer", journal=journals[0]).run())
    await asyncio.sleep(1)
    await journals[0].aclose()
    with pytest.raises(JournalError):
        await run

    journals.append(SQLiteJournal(tmp_path / "runs.db"))
    async with journals[1] as journal:
        await journal.signal("inner", "approved", True)
        async with Service([daily, orders()], journal=journal) as service:
            await asyncio.sleep(60)

            assert service.runs == []
            assert await statuses(journal) == {"outer": "PASSED", "inner": "PASSED"}
            assert (await journal.report("outer"))["order"].output == "draft: True"
            assert (await journal.report("inner"))["draft"].attempts == 1
