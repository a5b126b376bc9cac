"""The runs of the journal in `kept/`, each of another kind, and how that journal was written.

Every later version must read what an earlier one has written. So a file in `kept/` is never
written anew: when the schema or the rows change, another one is added::

    python -m tests.journal.kept_runs tests/journal/kept/schema-2.db
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from asyncflow import Orchestrator, Pipeline, WorkflowStep, after, current_step, each
from asyncflow.events import AttemptStarted, Event
from asyncflow.journal import SQLiteJournal

__all__ = ["KEPT", "PIPELINES", "write"]

KEPT = Path(__file__).parent / "kept"

broken = False
"""Whether the actions fail that can."""


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
    if current_step().attempt == 1:
        raise ValueError(f"no price of {row.name}")
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


slow = [WorkflowStep("quick", tidy), WorkflowStep("slow", hang, ["quick"], timeout_ms=None)]
PIPELINES = {
    "passed": orders.orchestrator,
    "failed": orders.orchestrator,
    "timed out": Orchestrator(slow, name="slow", deadline_ms=20),
    "interrupted": Orchestrator(slow, name="slow"),
    "cut short": Orchestrator(slow, name="slow"),
}
"""The pipeline of each run that is kept, by the id of the run."""


async def write(path: Path) -> None:
    """Write such a journal."""
    global broken
    inputs = {"password": "hunter2", "day": "monday"}
    async with SQLiteJournal(path, owner="the writer") as journal:
        for run_id in "passed", "failed":
            broken = run_id == "failed"
            run = PIPELINES[run_id].run
            await run(run_id=run_id, journal=journal, inputs=inputs)
        await PIPELINES["timed out"].run(run_id="timed out", journal=journal)
        await until_slow_has_started(journal, "interrupted", cancel=True)
    async with SQLiteJournal(path, owner="one that died") as journal:
        # Closing the journal under it leaves it as a process does that dies.
        task = await until_slow_has_started(journal, "cut short", cancel=False)
    await asyncio.wait([task])
    task.exception()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        # Which machine has written it is nobody's business.
        connection.execute("UPDATE leases SET process = '{}', expires_at = 1")
        connection.execute("VACUUM")


async def until_slow_has_started(
    journal: SQLiteJournal, run_id: str, *, cancel: bool
) -> asyncio.Task[object]:
    """Start a run, go on when its slow step has started, and perhaps cancel it."""
    has_started = asyncio.Event()

    def watch(event: Event) -> None:
        if isinstance(event, AttemptStarted) and event.step == "slow":
            has_started.set()

    run = Orchestrator(slow, name="slow", observers=[watch]).run(run_id=run_id, journal=journal)
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
