"""The runs in the journals of `stored/`, one of each kind, and the program that wrote them.

Every later version must read what an earlier one wrote, so a file in `stored/` is never
replaced: when the schema or the rows change, another file is added::

    python -m tests.journal.stored_runs tests/journal/stored/schema-4.db

Files of schemas before 4 have neither notes nor the runs in `NEWER`.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import sys
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from asyncflow import Orchestrator, Pipeline, WorkflowStep, after, current_step, each
from asyncflow.events import AttemptStarted, Event
from asyncflow.journal import SQLiteJournal

__all__ = ["NEWER", "PIPELINES", "STORED", "write"]

STORED = Path(__file__).parent / "stored"

log = logging.getLogger("orders")

journals: list[SQLiteJournal] = []
"""The journal that is being written."""

broken = False
"""Make the actions fail that can."""


@dataclass
class Row:
    name: str
    amount: Decimal
    tags: tuple[str, ...]


orders = Pipeline("orders", secret_inputs=["password"])
clean = Pipeline("clean")


@orders.step(secret=True)
async def log_in(password: str) -> str:
    return f"token of {password}"


@orders.step
async def extract(log_in: str = after(log_in), day: str = "") -> list[Row]:
    return [Row(f"{day} {name}", Decimal("1.50"), ("new", name)) for name in "äbc"]


@orders.step(max_retries=3)
async def price(row: Row = each(extract)) -> Decimal:
    step = current_step()
    if step.attempt == 1:
        log.warning("no price of %s", row.name)
        raise ValueError(f"no price of {row.name}")
    step.progress(1, 2, "prices")
    step.progress(2, 2, "prices")
    step.attach("price", [{"name": row.name, "amount": 1.5}])
    if broken and row.name.endswith("c"):
        raise KeyError(row.name)
    return row.amount * 2


@clean.step
async def tidy() -> dict[int, str]:
    return {1: "one"}


@clean.step
async def sort(tidy: dict[int, str] = after(tidy)) -> set[str]:
    return set(tidy.values())


orders.include(clean)


@orders.step(when=lambda: False)
async def never() -> None: ...


@orders.step(run_if="failure")
async def alarm() -> str:
    return "sent"


@orders.step(runs_in="thread", name="load", depends_on=["price", "clean"], version="2")
def load(clean: set[str]) -> list[str]:
    return sorted(clean)


async def hang() -> None:
    await asyncio.sleep(3600)


async def nest() -> list[str]:
    nested = PIPELINES["passed"].with_options(run_id="nested", journal=journals[0])
    report = await nested.run(password="hunter2", day="tuesday")
    return [str(price) for price in report["price"].output]


slow = [WorkflowStep("quick", tidy), WorkflowStep("slow", hang, ["quick"], timeout_ms=None)]
PIPELINES = {
    "passed": orders.orchestrator,
    "failed": orders.orchestrator,
    "timed out": Orchestrator(slow, name="slow", deadline_ms=20),
    "interrupted": Orchestrator(slow, name="slow"),
    "cut short": Orchestrator(slow, name="slow"),
    "outer": Orchestrator([WorkflowStep("nest", nest)], name="outer"),
    "nested": orders.orchestrator,
    "fork": orders.orchestrator,
}
"""The pipeline of each stored run, by run id."""

NEWER = frozenset({"outer", "nested", "fork"})
"""A run, one that its step has started, and a fork of the failed one."""


async def write(path: Path) -> None:
    """Write a journal with one run of each kind."""
    global broken
    inputs = {"password": "hunter2", "day": "monday"}
    async with SQLiteJournal(path, owner="the writer", logs="INFO") as journal:
        journals[:] = [journal]
        for run_id in "passed", "failed":
            broken = run_id == "failed"
            pipeline = PIPELINES[run_id].with_options(run_id=run_id, journal=journal)
            await pipeline.run(**inputs)
        broken = False
        await PIPELINES["outer"].with_options(run_id="outer", journal=journal).run()
        fork = PIPELINES["fork"].with_options(journal=journal).rerun
        await fork("failed", "fork", inputs={"password": "hunter2"})
        await PIPELINES["timed out"].with_options(run_id="timed out", journal=journal).run()
        await wait_until_slow_starts(journal, "interrupted", cancel=True)
    async with SQLiteJournal(path, owner="one that died", close_timeout_s=0) as journal:
        # Closing the journal first leaves the run as a dying process would.
        task = await wait_until_slow_starts(journal, "cut short", cancel=False)
    await asyncio.wait([task])
    task.exception()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        # Remove what identifies the machine that wrote the file.
        connection.execute(
            "UPDATE leases SET process = '{}', expires_at = 1, clock = NULL, boot_expires_at = NULL"
        )
        connection.execute("VACUUM")


async def wait_until_slow_starts(
    journal: SQLiteJournal, run_id: str, *, cancel: bool
) -> asyncio.Task[object]:
    """Start a run, wait until its slow step has started, and cancel it on request."""
    has_started = asyncio.Event()

    def observe(event: Event) -> None:
        if isinstance(event, AttemptStarted) and event.step == "slow":
            has_started.set()

    run = (
        Orchestrator(slow, name="slow", observers=[observe])
        .with_options(run_id=run_id, journal=journal)
        .run()
    )
    task = asyncio.ensure_future(run)
    await has_started.wait()
    while not any(each.event.step == "slow" for each in (await journal.events(run_id))[2:]):
        pass
    if cancel:
        task.cancel()
        await asyncio.wait([task])
    return task


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1])))
