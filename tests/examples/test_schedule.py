"""The example of schedules runs each day once, catches up, resumes, and never overlaps."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from asyncflow import Pipeline
from asyncflow.journal import SQLiteJournal

pytest.importorskip("apscheduler", reason="APScheduler is not installed")

from apscheduler.triggers.base import BaseTrigger

from examples import schedule

UTC = ZoneInfo("UTC")


class Times(BaseTrigger):  # type: ignore[misc]  # it is not typed
    """A trigger that fires so many times after the first, each a millisecond later."""

    def __init__(self, times: int = 0) -> None:
        self.times = times

    def get_next_fire_time(self, _: object, now: datetime) -> datetime | None:
        self.times -= 1
        return now + timedelta(milliseconds=1) if self.times >= 0 else None


class Sales:
    """Takes the place of the pipeline of a day; its step can be held up, and can fail."""

    def __init__(self) -> None:
        self.calls: Counter[date] = Counter()
        self.running = self.most = 0
        self.failing: set[date] = set()
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()
        self.gate.set()

    async def total(self, day: date) -> int:
        self.calls[day] += 1
        self.running += 1
        self.most = max(self.most, self.running)
        self.begun.set()
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        if day in self.failing:
            raise OSError(f"no data of {day}")
        return day.day


@pytest.fixture
async def sales(monkeypatch: pytest.MonkeyPatch) -> Sales:
    made = Sales()
    pipeline = Pipeline("sales")
    pipeline.step(made.total)
    monkeypatch.setattr(schedule, "sales", pipeline)
    return made


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SQLiteJournal]:
    async with SQLiteJournal(tmp_path / "sales.db") as opened:
        yield opened


async def stop(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


JANUARY = [date(2026, 1, day) for day in range(1, 11)]


async def test_a_backfill_runs_two_days_at_a_time_and_those_that_failed_again(
    sales: Sales, journal: SQLiteJournal
) -> None:
    sales.failing = {JANUARY[3]}
    sales.gate.clear()
    backfill = asyncio.create_task(schedule.run_days(journal, JANUARY[0], JANUARY[-1]))
    while sales.running < 2:
        await asyncio.sleep(0)
    sales.gate.set()

    first = await backfill
    sales.failing = set()
    second = await schedule.run_days(journal, JANUARY[0], JANUARY[-1])

    items = first["run_day"].items or ()
    assert [str(item.status) for item in items] == [*["SUCCESS"] * 3, "FAILED", *["SUCCESS"] * 6]
    assert second["run_day"].output == list(range(1, 11))
    assert sales.calls == {day: 2 if day == JANUARY[3] else 1 for day in JANUARY}
    assert sales.most == 2


async def test_each_day_runs_once_although_two_processes_ask_for_it(
    sales: Sales, journal: SQLiteJournal, tmp_path: Path
) -> None:
    async with SQLiteJournal(tmp_path / "sales.db") as other:
        reports = await asyncio.gather(
            *(schedule.run_days(each, JANUARY[0], JANUARY[2]) for each in (journal, other))
        )

    assert [report["run_day"].output for report in reports] == [[1, 2, 3]] * 2
    assert set(sales.calls.values()) == {1}


async def test_the_days_that_were_missed_run_at_the_start(
    sales: Sales, journal: SQLiteJournal
) -> None:
    serving = asyncio.create_task(schedule.serve(journal, Times(), UTC))
    today = datetime.now(UTC).date()
    while len(await journal.runs("PASSED")) < schedule.CATCH_UP_DAYS:
        await sales.begun.wait()
    await stop(serving)

    days = {today - timedelta(days=n) for n in range(1, schedule.CATCH_UP_DAYS + 1)}
    assert set(sales.calls) == days


async def test_a_day_that_a_shutdown_interrupts_resumes_at_the_next_start(
    sales: Sales, journal: SQLiteJournal, caplog: pytest.LogCaptureFixture
) -> None:
    sales.gate.clear()
    serving = asyncio.create_task(schedule.serve(journal, Times(), UTC))
    while sales.running < 2:
        await asyncio.sleep(0)
    await stop(serving)
    while await journal.runs("RUNNING"):
        await asyncio.sleep(0)

    interrupted = await journal.runs("INTERRUPTED")
    sales.gate.set()
    again = asyncio.create_task(schedule.serve(journal, Times(), UTC))
    while len(await journal.runs("PASSED")) < schedule.CATCH_UP_DAYS:
        await sales.begun.wait()
    await stop(again)

    assert len(interrupted) == 2
    assert sorted(sales.calls.values()) == [1] * (schedule.CATCH_UP_DAYS - 2) + [2, 2]
    assert caplog.messages == []  # APScheduler would log a cancelled job as an error


async def test_a_time_that_comes_while_the_job_runs_starts_no_second_one(
    sales: Sales, journal: SQLiteJournal, caplog: pytest.LogCaptureFixture
) -> None:
    sales.gate.clear()
    trigger = Times(3)
    serving = asyncio.create_task(schedule.serve(journal, trigger, UTC))
    while trigger.times >= 0 or sales.running < 2:
        await asyncio.sleep(0)
    await stop(serving)

    assert sales.calls.total() == sales.most == 2
    assert "maximum number of running instances reached" in caplog.text


def test_the_arguments_are_read() -> None:
    backfill = schedule.parse(["backfill", "2026-01-01", "2026-01-31", "--journal", "x.db"])
    serve = schedule.parse(["serve"])

    assert (backfill.first, backfill.last) == (date(2026, 1, 1), date(2026, 1, 31))
    assert (serve.cron, serve.timezone, serve.journal) == ("0 6 * * *", "UTC", "sales.db")


async def test_the_program_fills_in_days_and_prints_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "sales.db")

    code = await schedule.main(
        schedule.parse(["backfill", "2026-01-01", "2026-01-03", "--journal", file])
    )

    assert code == 0
    assert capsys.readouterr().out.startswith("Pipeline PASSED\n[SUCCESS] days")
