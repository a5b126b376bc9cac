"""A service deletes old runs of its journal, hour by hour."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from asyncflow import JournalError, Pipeline, ResourceError
from asyncflow.journal import SQLiteJournal
from asyncflow.journal._codec.events import run_checksum
from asyncflow.service import Service
from asyncflow.testing import run_in_virtual_time

KEEP = timedelta(days=90)


class Orders:
    def __init__(self) -> None:
        self.pipeline = Pipeline("orders")
        self.is_broken = False
        self.pipeline.step(self.reserve, name="reserve")

    async def reserve(self, pause_s: float = 0.0) -> None:
        if self.is_broken:
            raise ValueError("no stock")
        await asyncio.sleep(pause_s)


def age(path: Path, *run_ids: str) -> None:
    """Let runs have started and ended 91 days earlier."""
    columns = ", ".join(signature(run_checksum).parameters)
    with closing(sqlite3.connect(path)) as database, database:
        for run_id in run_ids:
            database.execute(
                "UPDATE runs SET started_at = started_at - 91 * 86400, "
                "updated_at = updated_at - 91 * 86400 WHERE run_id = ?",
                (run_id,),
            )
            row = database.execute(f"SELECT {columns} FROM runs WHERE run_id = ?", (run_id,))
            checksum = run_checksum(*row.fetchone())
            database.execute("UPDATE runs SET checksum = ? WHERE run_id = ?", (checksum, run_id))


async def left(journal: SQLiteJournal) -> set[str]:
    return {record.run_id for record in await journal.runs()}


@pytest.mark.parametrize("replicas", [1, 2])
def test_runs_that_ended_longer_ago_are_deleted_within_an_hour_and_then_hour_by_hour(
    tmp_path: Path, replicas: int
) -> None:
    orders, path = Orders(), tmp_path / "runs.db"

    async def main() -> None:
        async with SQLiteJournal(path) as journal, AsyncExitStack() as stack:
            for run_id in ("old", "older", "new"):
                orders.is_broken = run_id == "older"
                await orders.pipeline.with_options(journal=journal, run_id=run_id).run()
            orders.is_broken = False
            age(path, "old", "older")
            for _ in range(replicas):
                service = Service([orders.pipeline], journal=journal, keep=KEEP)
                await stack.enter_async_context(service)
            assert await left(journal) == {"old", "older", "new"}

            await asyncio.sleep(3601)
            assert await left(journal) == {"new"}

            age(path, "new")
            await asyncio.sleep(3601)
            assert await left(journal) == set()

    run_in_virtual_time(main())


def test_in_virtual_time_a_run_grows_old_by_the_clock_of_that(tmp_path: Path) -> None:
    orders, hour = Orders(), timedelta(hours=1)

    async def main() -> None:
        async with (
            SQLiteJournal(tmp_path / "runs.db") as journal,
            Service([orders.pipeline], journal=journal, keep=hour) as service,
        ):
            run = await service.start("orders", run_id="r")
            await run.report()
            await asyncio.sleep(3599)
            assert await left(journal) == {"r"}

            await asyncio.sleep(3600)
            assert await left(journal) == set()

    run_in_virtual_time(main())


def test_a_drained_run_stays_and_the_next_service_continues_it(tmp_path: Path) -> None:
    orders, path = Orders(), tmp_path / "runs.db"

    async def main() -> None:
        async with SQLiteJournal(path) as journal:
            async with Service([orders.pipeline], journal=journal, grace_ms=0) as service:
                await service.start("orders", {"pause_s": 20}, run_id="r")
                await asyncio.sleep(1)
            age(path, "r")

            async with Service([Pipeline("another")], journal=journal, keep=KEEP):
                await asyncio.sleep(7300)
            async with Service([orders.pipeline], journal=journal, keep=KEEP):
                await asyncio.sleep(60)

            assert (await journal.record("r")).status == "PASSED"

    run_in_virtual_time(main())


def test_a_run_that_a_step_enqueued_stays_while_a_service_continues_it(tmp_path: Path) -> None:
    orders, path = Orders(), tmp_path / "runs.db"
    mail, sent, is_down = Pipeline("mail"), list[str](), True

    @asynccontextmanager
    async def open_server() -> AsyncIterator[str]:
        if is_down:
            raise OSError("the server is down")
        yield "server"

    @mail.step
    async def send(server: str) -> None:
        sent.append(server)

    async def main() -> None:
        nonlocal is_down
        async with SQLiteJournal(path) as journal:
            mails = mail.with_options(journal=journal, resources={"server": open_server})

            @orders.pipeline.step
            async def enqueue() -> None:
                await mails.enqueue(run_id="mail")

            await orders.pipeline.with_options(journal=journal, run_id="order").run()
            with pytest.raises(ResourceError):
                await mails.with_options(run_id="mail").run()
            age(path, "order", "mail")

            async with Service([Pipeline("another")], journal=journal, keep=KEEP):
                await asyncio.sleep(7300)
            assert await left(journal) == {"mail"}
            is_down = False
            async with Service([mails], journal=journal, keep=KEEP):
                await asyncio.sleep(60)
            assert sent == ["server"]

    run_in_virtual_time(main())


def test_the_keys_of_deleted_runs_are_deleted(tmp_path: Path) -> None:
    orders, path = Orders(), tmp_path / "runs.db"

    async def main() -> None:
        async with SQLiteJournal(path) as journal:
            for run_id in ("old", "new"):
                keyed = orders.pipeline.with_options(journal=journal, key=f"of {run_id}")
                await keyed.with_options(run_id=run_id).run()
            age(path, "old")

            async with Service([orders.pipeline], journal=journal, keep=KEEP):
                await asyncio.sleep(3700)

            with closing(sqlite3.connect(path)) as database:
                assert database.execute("SELECT key FROM keys").fetchall() == [("of new",)]

    run_in_virtual_time(main())


def test_a_failure_of_the_journal_is_logged_and_the_next_look_deletes(
    tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, path = Orders(), tmp_path / "runs.db"

    async def main() -> None:
        async with SQLiteJournal(path) as journal:
            await orders.pipeline.with_options(journal=journal, run_id="r").run()
            age(path, "r")
            store, is_locked = journal._store, [True]
            prune = store.prune_unneeded

            def locked(*of: Any) -> int:
                if is_locked:
                    raise JournalError("runs.db", is_locked.pop() and "it is locked")
                return prune(*of)

            monkeypatch.setattr(store, "prune_unneeded", locked)
            async with Service([orders.pipeline], journal=journal, keep=KEEP):
                await asyncio.sleep(3601)
                assert await left(journal) == {"r"}
                await asyncio.sleep(3601)
                assert await left(journal) == set()

    run_in_virtual_time(main())
    assert "the service can't delete old runs: journal runs.db: it is locked" in caplog.text


@pytest.mark.parametrize(
    ("keep", "error", "match"),
    [
        (90, TypeError, r"such as timedelta\(days=90\), not 90: a number does not tell its unit"),
        (7776000.0, TypeError, "keep must be a timedelta"),
        (True, TypeError, "keep must be a timedelta"),
        (timedelta(minutes=59), ValueError, r"keep must be at least an hour, not 0:59:00; journal"),
        (timedelta(-1), ValueError, "keep must be at least an hour"),
    ],
)
async def test_how_long_is_checked(
    keep: Any, error: type[Exception], match: str, tmp_path: Path
) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        with pytest.raises(error, match=match):
            Service([Orders().pipeline], journal=journal, keep=keep)
        Service([Orders().pipeline], journal=journal, keep=timedelta(hours=1))


def test_it_needs_the_journal_of_the_service() -> None:
    with pytest.raises(ValueError, match="keep deletes runs of the service's journal; give it one"):
        Service([Orders().pipeline], keep=KEEP)
