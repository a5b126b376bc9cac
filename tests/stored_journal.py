"""Makes the journal of 0.1.0 that every later version must open, and has the pipelines of its runs.

    python -m tests.stored_journal

writes `tests/journal/stored/0.1.0.db` anew: after each change of the schema, until 0.1.0 is
released, and never after that. Then the file, and the pipelines here, stay as they are: they are
what users have, and `tests/journal/test_stored_journal.py` is the promise to open it.

Everything happens in virtual time, in a process with a made-up name, so that the same code writes
the same rows.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FunctionType
from unittest.mock import patch

from asyncflow import Pipeline, RunCancelledError, after, collect, current_step, each
from asyncflow.journal import SQLiteJournal
from asyncflow.service import Service
from asyncflow.testing import run_in_virtual_time
from tests.release import ROOT, is_released

VERSION = "0.1.0"
FILE = Path(__file__).with_name("journal") / "stored" / f"{VERSION}.db"
NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
LOG = logging.getLogger("shop")
NO_LIMIT_MS = 100 * 365 * 86_400_000.0

called: list[str] = []
"""What was done, and is not done again by who continues what is stored."""


@dataclass(frozen=True)
class Price:
    """A value of a user's class."""

    item: str
    euros: float


@dataclass(frozen=True)
class Approval:
    """What a person answers."""

    ok: bool
    up_to: int = 0


shop = Pipeline("shop", fail_fast=False)


@shop.step
async def items() -> list[str]:
    return ["tea", "milk", "rum"]


@shop.step(secret=True)
async def token() -> str:
    return "hunter2"


@shop.step(max_retries=2, tolerated_failures=1)
async def price(item: str = each(items)) -> Price:
    LOG.warning("asking for %s", item)
    await asyncio.sleep(0.25)
    if item == "rum":
        raise LookupError("nobody sells rum")
    if current_step().attempt == 1 and item == "milk":
        raise ConnectionError("the shop was closed")
    return Price(item, 1.5)


@shop.step
async def total(prices: list[Price] = collect(price), token: str = after(token)) -> float:
    step = current_step()
    await asyncio.sleep(1.5)
    step.progress(2, 3, "prices")
    step.attach("prices", [{"item": "tea", "euros": 1.5}])
    for word in ("the", "total", "is"):
        step.stream(word)
    return sum(each.euros for each in prices)


agent = Pipeline("agent")


@agent.step(timeout_ms=None)
async def think(question: str) -> str:
    step = current_step()
    first = await step.call("ask-1", ask, question)
    step.checkpoint({"answers": 1})
    if step.run_id == "agent-failed":
        raise TimeoutError("the model is busy")
    if step.run_id == "agent-orphaned" and step.attempt == 1:
        await asyncio.sleep(3_600)
    return f"{first}, from {step.last_checkpoint}"


async def ask(question: str) -> str:
    called.append(f"ask {question}")
    return question.upper()


orders = Pipeline("orders")


@orders.step
async def draft(order: str) -> str:
    called.append(f"draft {order}")
    return f"offer for {order}"


def terms(draft: str, order: str) -> str:
    return f"Is this right for {order}: {draft}?"


approved = orders.signal(
    "approved",
    Approval,
    depends_on=[draft],
    description=terms,
    deadline_ms=NO_LIMIT_MS,
    default=Approval(False),
)


@orders.step
async def send(draft: str = after(draft), approved: Approval = after(approved)) -> str:
    return f"sent: {draft}, up to {approved.up_to}" if approved.ok else "withdrawn"


rates = Pipeline("rates")


@rates.step(cache_ms=NO_LIMIT_MS, version="1")
async def rate(currency: str) -> float:
    called.append(f"rate {currency}")
    return 1.07


reports = Pipeline("reports")


@reports.step
async def write(tenant: str) -> str:
    called.append(f"write {tenant}")
    return f"report for {tenant}"


outer = Pipeline("outer")


@outer.step
async def inner() -> str:
    run = reports.with_options(journal=_journals[-1], run_id="nested")
    report = await run.run(tenant="inner")
    return str(report["write"].output)


PIPELINES = [shop, agent, orders, rates, reports, outer]
_journals: list[SQLiteJournal] = []
"""The journal of the runs that a step starts."""


async def fill(journal: SQLiteJournal) -> None:
    """Store one run of each kind that a journal keeps."""
    _journals[:] = [journal]
    acme = shop.with_options(attributes={"tenant": "acme"}, label="order 12345")
    await acme.with_options(journal=journal, run_id="passed").run()
    await shop.with_options(journal=journal).rerun("passed", "rerun", from_="total")
    await agent.with_options(journal=journal, run_id="agent-failed").run(question="why?")
    for run_id in ("waiting", "answered"):
        await orders.with_options(journal=journal, run_id=run_id).run(order=run_id)
    answer = {"sent_by": "alice", "note": "as we said by phone"}
    await journal.signal("answered", "approved", Approval(True, 100), **answer)
    await rates.with_options(journal=journal, run_id="cached").run(currency="CHF")
    await outer.with_options(journal=journal, run_id="outer").run()
    cancelled = agent.with_options(journal=journal, run_id="cancelled")
    async with cancelled.start(question="when?") as run:
        run.cancel("the customer left")
        with suppress(RunCancelledError):
            await run.report()
    async with Service([reports], journal=journal) as service:
        for run_id in ("queued", "queued-behind"):
            await service.enqueue(
                reports, {"tenant": run_id}, run_id=run_id, key="acme", delay_ms=3_600_000
            )
        await service.enqueue(reports, {"tenant": "later"}, run_id="later", delay_ms=7_200_000)


async def main(path: Path) -> None:
    """Fill a new journal, and copy it while a run is active, as if its process died then."""
    async with SQLiteJournal(path.with_name("live.db"), owner="worker 1", logs="INFO") as journal:
        await fill(journal)
        last = agent.with_options(journal=journal, run_id="agent-orphaned")
        async with last.start(question="how?") as run:
            await asyncio.sleep(60)
            copy(path.with_name("live.db"), path)
            run.cancel("it is stored")
            with suppress(RunCancelledError):
                await run.report()


def copy(live: Path, path: Path) -> None:
    """Write what is stored now to a file of its own, without what differs between machines."""
    with closing(sqlite3.connect(live)) as connection:
        connection.execute("VACUUM INTO ?", (str(path),))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE leases SET process = NULL, clock = NULL, boot_expires_at = NULL")
        connection.commit()
        connection.execute("VACUUM")


@contextmanager
def same_everywhere() -> Iterator[None]:
    """Replace what the system says of this process and of the day, and the path of this file."""
    for step in (step for pipeline in PIPELINES for step in pipeline.steps):
        if isinstance(step.action, FunctionType):  # a signal has none
            path = str(Path(__file__).relative_to(ROOT))
            step.action.__code__ = step.action.__code__.replace(co_filename=path)
    with ExitStack() as replaced:
        replaced.enter_context(patch("time.time", NOON.timestamp))
        replaced.enter_context(patch("os.getpid", lambda: 4711))
        # What steps log is in the journal.
        replaced.enter_context(patch("logging.lastResort", None))
        replaced.enter_context(patch("socket.gethostname", lambda: "worker-1"))
        yield


def make(path: Path) -> None:
    """Write the journal to a path."""
    with tempfile.TemporaryDirectory() as place, same_everywhere():
        made = Path(place) / path.name
        run_in_virtual_time(main(made))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(made.read_bytes())


if __name__ == "__main__":
    if is_released(ROOT, VERSION):
        sys.exit(f"{VERSION} is released: {FILE.name} is what users have, and stays as it is")
    make(FILE)
    print(f"{FILE.relative_to(ROOT)}: {FILE.stat().st_size:,} bytes")
