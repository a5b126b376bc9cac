"""Run a pipeline for each day by the clock, catch up with missed days, and fill in past ones.

    python examples/schedule.py serve [--cron "0 6 * * *"] [--timezone UTC] [--journal FILE]
    python examples/schedule.py backfill 2026-01-01 2026-01-31 [--journal FILE]

asyncflow is no scheduler. APScheduler says when, and a journal knows what has been done. (This is
for its version 3. Version 4 is an alpha, which its authors advise against in production.)

Each day is a run of its own, whose id has the date. So a day can be asked for any number of times:
one that has passed returns its stored report, one that was interrupted or has failed resumes, and
one that another process runs is waited for. Nothing runs twice, and nothing overlaps.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from contextlib import nullcontext, suppress
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from apscheduler.schedulers.asyncio import (  # type: ignore[import-untyped,unused-ignore]
    AsyncIOScheduler,
)
from apscheduler.triggers.cron import CronTrigger  # type: ignore[import-untyped,unused-ignore]

from asyncflow import Pipeline, Pool, RunReport, after, each
from asyncflow.journal import SQLiteJournal

CATCH_UP_DAYS = 7
"""How many past days each start of the job looks at."""
DAYS_AT_ONCE = Pool(2)
"""However many days are filled in, and by whomever in this process, two run at a time."""


# One day.

sales = Pipeline("sales")


@sales.step(max_retries=3, retry=1_000)
async def fetch(day: date) -> list[int]:
    """Return the orders of a day, in cents; a stand-in for a database or an API."""
    await asyncio.sleep(0)
    return [day.day * 100, day.month * 10, day.year]


@sales.step
async def total(orders: list[int] = after(fetch)) -> int:
    return sum(orders)


# Many days: a run that has no journal of its own, since each day is stored.

many_days = Pipeline("many days", fail_fast=False)


@many_days.step
async def days(first: date, last: date) -> list[date]:
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


@many_days.step(pool=DAYS_AT_ONCE, timeout_ms=None)
async def run_day(journal: SQLiteJournal, day: date = each(days)) -> int:
    """Run a day that has not passed yet, and return its total."""
    one_day = sales.with_options(run_id=f"sales-{day}", journal=journal, on_active="wait")
    report = await one_day.run(day=day)
    report.raise_for_failures()
    total: int = report["total"].output
    return total


async def run_days(journal: SQLiteJournal, first: date, last: date) -> RunReport:
    """Run the days that have not passed yet, from the first to the last one."""
    shared = many_days.with_options(resources={"journal": lambda: nullcontext(journal)})
    return await shared.run(first=first, last=last)


# By the clock.


async def serve(journal: SQLiteJournal, trigger: Any, timezone: ZoneInfo) -> None:
    """Run yesterday, and what was missed of the days before, at the times of a trigger."""

    async def catch_up() -> None:
        last = datetime.now(timezone).date() - timedelta(days=1)
        with suppress(asyncio.CancelledError):  # which APScheduler would log as an error
            print(await run_days(journal, last - timedelta(days=CATCH_UP_DAYS - 1), last))

    scheduler = AsyncIOScheduler(timezone=timezone)
    scheduler.add_job(
        catch_up,
        trigger,
        next_run_time=datetime.now(timezone),  # what was missed while no process was there
        misfire_grace_time=None,  # a time that was missed while this one slept counts, however late
        coalesce=True,  # several of those count once, since the job looks at all days
        max_instances=1,  # while one is running, another does not start
    )
    scheduler.start()
    try:
        await asyncio.Event().wait()
    finally:
        scheduler.shutdown()  # which cancels a running job; the journal waits for the runs


async def main(arguments: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.WARNING)
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with SQLiteJournal(arguments.journal) as journal:
        if arguments.command == "backfill":
            report = await run_days(journal, arguments.first, arguments.last)
            print(report)
            return 0 if report.all_passed else 1
        timezone = ZoneInfo(arguments.timezone)
        with suppress(asyncio.CancelledError):  # SIGTERM, and Ctrl-C
            await serve(
                journal, CronTrigger.from_crontab(arguments.cron, timezone=timezone), timezone
            )
    return 0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--journal", default="sales.db", help="an SQLite file")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    by_clock = commands.add_parser("serve", parents=[common], help="run each day by the clock")
    by_clock.add_argument("--cron", default="0 6 * * *", help="when, as in crontab")
    by_clock.add_argument("--timezone", default="UTC", help="whose times and dates, from the IANA")
    backfill = commands.add_parser("backfill", parents=[common], help="run past days")
    backfill.add_argument("first", type=date.fromisoformat)
    backfill.add_argument("last", type=date.fromisoformat)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(parse())))
