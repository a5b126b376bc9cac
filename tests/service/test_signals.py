"""A service continues runs that wait: at once, after a restart, and beside as many as it likes."""

from __future__ import annotations

import asyncio
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from asyncflow import Pipeline, RunNotFoundError, after
from asyncflow.journal import SQLiteJournal
from asyncflow.service import Service
from asyncflow.testing import run_in_virtual_time

LONG_S = 600


def orders(**wait: Any) -> Pipeline:
    pipeline = Pipeline("orders")

    @pipeline.step
    async def draft() -> str:
        return "draft"

    approved = pipeline.signal("approved", bool, depends_on=[draft], **wait)

    @pipeline.step
    async def publish(draft: str = after(draft), approved: bool = after(approved)) -> str:
        return f"{draft}: {approved}"

    return pipeline


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
                await (await service.start("orders", run_id)).report()
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


@in_virtual_time
async def test_a_service_continues_a_run_whose_deadline_has_expired_within_a_second(
    tmp_path: Path,
) -> None:
    clock = asyncio.get_running_loop().time
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        async with Service([orders(deadline_ms=5_000, default=False)], journal=journal) as s:
            began_s = clock()
            await (await s.start("orders", "r")).report()
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
            await (await service.start("orders", "r")).report()
            async with SQLiteJournal(tmp_path / "runs.db") as other:
                await other.signal("r", "approved", True)
            sent_s = clock()
            await until_ended(journal)

        assert clock() - sent_s <= 1.1


@in_virtual_time
async def test_an_approval_outlives_a_restart_of_the_service(tmp_path: Path) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        async with Service([orders()], journal=journal) as service:
            await (await service.start("orders", "r")).report()
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        await asyncio.sleep(LONG_S)
        await journal.signal("r", "approved", True)  # while no service runs
        async with Service([orders()], journal=journal):
            assert await until_ended(journal) == "PASSED"


@in_virtual_time
async def test_a_drain_leaves_a_run_that_only_waits_waiting(tmp_path: Path) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        stays = orders().with_options(on_wait="stay")
        async with Service([stays], journal=journal) as service:
            run = await service.start("orders", "r")
            await asyncio.sleep(60)
            assert service.runs == [run]

        assert (await journal.record("r")).status == "WAITING"


@in_virtual_time
async def test_a_service_without_a_journal_sends_signals_to_its_runs(tmp_path: Path) -> None:
    async with Service([orders()]) as service:
        run = await service.start("orders", "r")
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
async def test_runs_of_other_pipelines_that_are_due_are_left_alone(tmp_path: Path) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        other = Pipeline("other")
        other.signal("gate", bool)
        await other.with_options(journal=journal, run_id="o").run()
        await journal.signal("o", "gate", True)
        async with Service([orders()], journal=journal):
            await asyncio.sleep(60)

        assert [record.run_id for record in await journal.due()] == ["o"]
