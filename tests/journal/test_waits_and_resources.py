"""Runs that have waited and continue with resources, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from freed import Holding, without_collector
from virtual_journals import in_virtual_time

from asyncflow import Pipeline, ResourceError, RunCancelledError, RunReport, after, resume_all
from asyncflow.journal import RunRecord
from asyncflow.service import Service


class Shop:
    """A pipeline whose step after a signal needs a database, which may be down, or slow."""

    def __init__(self, **wait: Any) -> None:
        self.is_down = False
        self.opening_s = 0.0
        self.opened = self.closed = 0
        pipeline = Pipeline("orders", resources={"db": self.open})
        approved = pipeline.signal("approved", bool, **wait)

        @pipeline.step
        async def ship(db: str, approved: bool = after(approved)) -> str:
            return f"shipped: {approved}"

        self.pipeline = pipeline

    @asynccontextmanager
    async def open(self, needed: Any = None) -> AsyncIterator[str]:
        await asyncio.sleep(self.opening_s)
        if self.is_down:
            raise ConnectionError("the database restarts")
        self.opened += 1
        yield "db"
        self.closed += 1

    async def run(self, journal: Any, **options: Any) -> RunReport:
        return await self.pipeline.with_options(journal=journal, run_id="r", **options).run()

    async def answered(self, journal: Any) -> None:
        await self.run(journal)
        await journal.signal("r", "approved", True)
        self.opened = self.closed = 0


async def due(journal: Any) -> list[str]:
    return [record.run_id for record in await journal.due()]


@in_virtual_time
async def test_an_answered_run_waits_on_and_is_due_if_a_resource_is_down(
    journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    shop = Shop()
    await shop.answered(journal)
    shop.is_down = True

    with pytest.raises(ResourceError, match="'db' could not be opened: ConnectionError") as raised:
        await shop.run(journal)
    assert await resume_all(journal, [shop.pipeline]) == []

    assert raised.value.report.status == "WAITING"
    assert list(raised.value.report.waiting) == ["approved"]
    assert (await journal.record("r")).status == "WAITING"
    assert await due(journal) == ["r"]
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR] == [
        "run 'r' can't be resumed"
    ]
    shop.is_down = False
    (report,) = await resume_all(journal, [shop.pipeline])
    assert report["ship"].output == "shipped: True"
    assert shop.opened == shop.closed == 1


@pytest.mark.parametrize("on_wait", ["suspend", "stay"])
@in_virtual_time
async def test_an_expired_deadline_is_not_taken_before_the_resources_are_open(
    journal: Any, on_wait: Any
) -> None:
    shop = Shop(deadline_ms=5_000, default=False)
    await shop.run(journal)
    shop.is_down = True
    await asyncio.sleep(10)

    with pytest.raises(ResourceError) as raised:
        await shop.run(journal, on_wait=on_wait)

    assert raised.value.report.status == "WAITING"
    assert await due(journal) == ["r"]
    shop.is_down = False
    assert (await shop.run(journal, on_wait=on_wait))["ship"].output == "shipped: False"


@in_virtual_time
async def test_a_resource_that_is_not_open_before_the_deadline_of_the_run_leaves_it_due(
    journal: Any,
) -> None:
    shop = Shop()
    await shop.answered(journal)
    shop.opening_s = 100

    for _ in range(2):  # what could not begin has used up nothing of it
        with pytest.raises(ResourceError, match="was not open before the run exceeded its dead"):
            await shop.run(journal, deadline_ms=1_000)

    assert (await journal.record("r")).status == "WAITING"
    assert await due(journal) == ["r"]
    shop.opening_s = 0.9
    assert (await shop.run(journal, deadline_ms=1_000))["ship"].output == "shipped: True"


@in_virtual_time
async def test_a_run_that_drains_while_its_resources_open_waits_on(journal: Any) -> None:
    shop = Shop()
    await shop.answered(journal)
    shop.opening_s = 100

    async with shop.pipeline.with_options(journal=journal, run_id="r").start() as begun:
        await asyncio.sleep(1)
        begun.drain("the service was shut down")
        assert (await begun.report()).status == "WAITING"

    assert await due(journal) == ["r"]
    assert shop.opened == shop.closed == 0


@in_virtual_time
async def test_a_run_that_is_cancelled_while_its_resources_open_ends(journal: Any) -> None:
    shop = Shop()
    await shop.answered(journal)
    shop.opening_s = 100

    async with shop.pipeline.with_options(journal=journal, run_id="r").start() as begun:
        await asyncio.sleep(1)
        begun.cancel("no more")
        with pytest.raises(RunCancelledError):
            await begun.report()

    assert (await journal.record("r")).status == "INTERRUPTED"


@in_virtual_time
async def test_a_run_that_waits_on_opens_no_resource(journal: Any) -> None:
    """Such as one that takes the new deadline of its signal."""
    await Shop().run(journal)
    shop = Shop(deadline_ms=60_000, default=False)
    shop.is_down = True

    assert (await shop.run(journal)).status == "WAITING"

    shop.is_down = False
    async with shop.pipeline.with_options(journal=journal, run_id="r", on_wait="stay").start() as r:
        await asyncio.sleep(1)
        assert shop.opened == 0
        await r.signal("approved", True)
        assert (await r.report())["ship"].output == "shipped: True"
    assert shop.opened == shop.closed == 1


@in_virtual_time
async def test_without_a_collector_a_run_that_drains_while_it_waits_on_is_freed(
    journal: Any,
) -> None:
    shop, held = Shop(), Holding()
    await shop.run(journal)

    def options() -> dict[str, Any]:
        thing = held()  # the resource holds it, and the run holds the resource
        return {"resources": {"db": lambda: shop.open(thing)}, "on_wait": "stay"}

    with without_collector():
        pipeline = shop.pipeline.with_options(journal=journal, run_id="r", **options())
        async with pipeline.start() as begun:
            await asyncio.sleep(1)
            begun.drain("the service was shut down")
            assert (await begun.report()).status == "WAITING"
        del pipeline, begun

        assert held
        assert held.alive() == []


@in_virtual_time
async def test_resume_all_resumes_what_was_drained_or_lacked_a_resource(journal: Any) -> None:
    shop = Shop()
    pipeline = Pipeline("work", resources={"db": shop.open})

    @pipeline.step(timeout_ms=None)
    async def work(db: str) -> None:
        await asyncio.sleep(10)

    async def leave(run_id: str, how: str) -> None:
        async with pipeline.with_options(journal=journal, run_id=run_id).start() as begun:
            await asyncio.sleep(1)
            getattr(begun, how)("the service was shut down")
            if how == "drain":
                begun.drain("the service was shut down", spare_running=False)
            with pytest.raises(RunCancelledError):
                await begun.report()

    await leave("drained", "drain")
    await leave("cancelled", "cancel")
    shop.is_down = True
    with pytest.raises(ResourceError):
        await pipeline.with_options(journal=journal, run_id="down").run()
    shop.is_down = False

    reports = await resume_all(journal, [pipeline])

    assert {report.run_id: report.status for report in reports} == {
        "drained": "PASSED",
        "down": "PASSED",
    }
    assert (await journal.record("cancelled")).status == "INTERRUPTED"


@in_virtual_time
async def test_a_service_waits_for_the_resource_of_an_answered_run(journal: Any) -> None:
    shop = Shop()
    await shop.answered(journal)
    shop.is_down = True

    async with Service([shop.pipeline], journal=journal):
        await asyncio.sleep(60)
        shop.is_down = False
        await asyncio.sleep(20)
        assert (await journal.record("r")).status == "PASSED"


@in_virtual_time
async def test_prune_spares_what_is_due(journal: Any) -> None:
    answered, expired, waiting = Shop(), Shop(deadline_ms=5_000, default=False), Shop()
    for run_id, shop in ("answered", answered), ("expired", expired), ("waiting", waiting):
        await shop.pipeline.with_options(journal=journal, run_id=run_id).run()
    await journal.signal("answered", "approved", True)
    await asyncio.sleep(10)

    def left(records: list[RunRecord]) -> set[str]:
        return {record.run_id for record in records}

    # What was sent since then would be spared anyway, so this is about no age at all.
    count = await journal.prune(timedelta(0), status="WAITING")

    assert (count, left(await journal.runs())) == (1, {"answered", "expired"})


@in_virtual_time
async def test_a_service_leaves_a_due_run_alone_for_longer_each_time_its_resources_fail(
    journal: Any,
) -> None:
    shop = Shop()
    pipeline = shop.pipeline.with_options(deadline_ms=1_000)
    async with Service([pipeline], journal=journal) as service:
        await (await service.start("orders", run_id="r")).report()
        shop.opening_s = 100
        await service.signal("r", "approved", True)
        await asyncio.sleep(3_600)
        lives = len(await journal.events("r")) // 3
        shop.opening_s = 0
        await asyncio.sleep(3_600)

        assert lives < 20
        assert (await journal.report("r"))["ship"].output == "shipped: True"


@in_virtual_time
async def test_a_run_that_waits_out_a_pause_is_logged_when_its_pipeline_lacks_a_step(
    journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Another version has continued it meanwhile. Only then can the first one not resume it."""
    shop = Shop()
    await shop.answered(journal)
    shop.opening_s = 100
    newer = Pipeline("orders")
    newer.signal("approved", bool)
    newer.signal("packed", bool, depends_on=["approved"])
    newer.step(lambda: None, name="ship", depends_on=["packed"])

    slow = shop.pipeline.with_options(deadline_ms=100)
    async with Service([slow], journal=journal):
        await asyncio.sleep(2)
        assert len(await due(journal)) == 1
        await newer.with_options(journal=journal, run_id="r").run()
        await journal.signal("r", "packed", True)
        await asyncio.sleep(10)

    errors = [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
    assert sum("no longer has its step 'packed'" in each for each in errors) == 1
