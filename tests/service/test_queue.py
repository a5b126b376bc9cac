"""Runs that wait to start: a service starts them when they are due and there is a place."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import timedelta
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import pytest

from asyncflow import (
    Pipeline,
    RunAlreadyActiveError,
    RunIdInUseError,
    RunStatus,
    RunUnreadableError,
    RunWaitingError,
    StepStatus,
    after,
    current_step,
    resume_all,
)
from asyncflow.journal import SQLiteJournal
from asyncflow.service import Service
from asyncflow.testing import run_in_virtual_time


def in_virtual_time(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    def run(tmp_path: Path, **fixtures: Any) -> None:
        async def main() -> None:
            if "tmp_path" in parameters:
                fixtures["tmp_path"] = tmp_path
            async with SQLiteJournal(tmp_path / "runs.db") as journal:
                await test(journal, **fixtures)

        run_in_virtual_time(main())

    parameters = signature(test).parameters
    own = [each for name, each in parameters.items() if name not in ("journal", "tmp_path")]
    path = Parameter("tmp_path", Parameter.POSITIONAL_OR_KEYWORD)
    run.__name__ = test.__name__
    run.__signature__ = signature(test).replace(parameters=[path, *own])  # type: ignore[attr-defined]
    return run


class Log:
    """What the runs of a pipeline have done, and when."""

    def __init__(self) -> None:
        self.pipeline = Pipeline("work")
        self.started: list[str] = []
        self.at_s: dict[str, float] = {}
        self.running: set[str] = set()
        self.most = 0

        @self.pipeline.step(timeout_ms=None)
        async def do(pause_s: float = 1.0) -> str:
            run_id = current_step().run_id
            self.started.append(run_id)
            self.at_s[run_id] = now_s()
            self.running.add(run_id)
            self.most = max(self.most, len(self.running))
            try:
                await asyncio.sleep(pause_s)
            finally:
                self.running.discard(run_id)
            return run_id


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def until_quiet(journal: SQLiteJournal) -> None:
    async with asyncio.timeout(24 * 3600):
        while await journal.runs("WAITING") or await journal.runs("RUNNING"):
            await asyncio.sleep(0.5)


async def statuses(journal: SQLiteJournal) -> dict[str, str]:
    return {run.run_id: run.status for run in await journal.runs()}


@in_virtual_time
async def test_runs_start_as_there_are_places_in_the_order_in_which_they_became_due(
    journal: SQLiteJournal,
) -> None:
    log = Log()
    async with Service([log.pipeline], journal=journal, max_runs=2) as service:
        run_ids = [f"r{number}" for number in range(6)]
        for run_id in run_ids:
            assert await service.enqueue("work", {"pause_s": 2}, run_id=run_id) == run_id
        began_s = now_s()
        assert (await service.stats()).queue is not None

        await until_quiet(journal)

    assert log.started == run_ids
    assert log.most == 2
    assert [round(log.at_s[run_id] - began_s) for run_id in run_ids] == [0, 0, 2, 2, 4, 4]
    assert set((await statuses(journal)).values()) == {"PASSED"}


@in_virtual_time
async def test_what_is_enqueued_here_or_due_at_a_known_time_starts_at_once(
    journal: SQLiteJournal,
) -> None:
    log = Log()
    async with Service([log.pipeline], journal=journal) as service:
        await asyncio.sleep(0.3)
        began_s = now_s()

        await service.enqueue("work", run_id="now")
        await service.enqueue("work", run_id="later", delay_ms=600_100)
        await asyncio.sleep(700)

    assert log.at_s["now"] - began_s < 0.05
    assert log.at_s["later"] - began_s == pytest.approx(600.1, abs=0.04)


@in_virtual_time
async def test_what_another_process_enqueues_starts_within_a_second_and_a_quarter(
    journal: SQLiteJournal, tmp_path: Path
) -> None:
    log = Log()
    async with (
        SQLiteJournal(tmp_path / "runs.db") as other,
        Service([log.pipeline], journal=journal),
    ):
        for number in range(5):
            await asyncio.sleep(3.3)
            began_s = now_s()
            await log.pipeline.with_options(journal=other).enqueue(run_id=f"r{number}")
            await asyncio.sleep(2)
            assert 0 <= log.at_s[f"r{number}"] - began_s <= 1.25


@in_virtual_time
async def test_a_day_without_anything_to_do_costs_nothing(
    journal: SQLiteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, looks = Log(), []
    look = SQLiteJournal._due_to_start

    async def count(self: SQLiteJournal, *args: Any) -> Any:
        looks.append(args)
        return await look(self, *args)

    monkeypatch.setattr(SQLiteJournal, "_due_to_start", count)
    async with Service([log.pipeline], journal=journal, resume_every_s=3600) as service:
        await service.enqueue("work", run_id="r", delay_ms=86_400_000)
        await asyncio.sleep(86_500)

    assert log.started == ["r"]
    assert len(looks) < 10


@in_virtual_time
async def test_the_runs_of_a_key_start_one_after_the_other(journal: SQLiteJournal) -> None:
    log = Log()
    async with Service([log.pipeline], journal=journal) as service:
        for number in range(4):
            await service.enqueue("work", run_id=f"a{number}", key="a")
            await service.enqueue("work", run_id=f"b{number}", key="b")
        began_s = now_s()
        waits = {run.run_id: run.waits_for for run in await journal.runs(waits_for="key")}
        await asyncio.sleep(0.5)
        assert {each.key for each in waits.values() if each} == {"a", "b"}
        assert (await journal.queue()).blocked_keys == 2
        with pytest.raises(RunAlreadyActiveError) as raised:
            await service.start("work", run_id="x", key="a")
        assert (raised.value.run_id, raised.value.status) == ("a1", "WAITING")

        await until_quiet(journal)

        assert (await journal.queue()).waiting == 0
    assert [run_id for run_id in log.started if run_id[0] == "a"] == ["a0", "a1", "a2", "a3"]
    assert log.most == 2
    assert log.at_s["a3"] - began_s == pytest.approx(3.0, abs=0.2)


@in_virtual_time
async def test_a_run_that_is_not_due_holds_up_no_other(journal: SQLiteJournal) -> None:
    log = Log()
    async with Service([log.pipeline], journal=journal) as service:
        await service.enqueue("work", run_id="reminder", key="customer", delay_ms=3_600_000)
        began_s = now_s()
        await service.enqueue("work", run_id="sync", key="customer")
        await asyncio.sleep(2)
        # Nor does it stop a start, but it counts for those who ask for the only one.
        await (await service.start("work", run_id="start", key="customer")).report()
        with pytest.raises(RunAlreadyActiveError, match="'reminder', which is WAITING"):
            await service.enqueue("work", key="customer", on_conflict="raise")
        same = await service.enqueue("work", {"pause_s": 7}, key="customer", on_conflict="return")
        await asyncio.sleep(3_600)

    assert same == "reminder"
    assert log.started == ["sync", "start", "reminder"]
    assert log.at_s["sync"] - began_s < 0.1


@in_virtual_time
async def test_order_within_a_key_is_by_when_runs_became_due(journal: SQLiteJournal) -> None:
    log = Log()
    enqueue = log.pipeline.with_options(journal=journal).enqueue
    for run_id, delay_ms in ("third", 3_000), ("second", 2_000), ("first", 0):
        await enqueue(run_id=run_id, key="k", delay_ms=delay_ms)
    await asyncio.sleep(10)

    async with Service([log.pipeline], journal=journal):
        await until_quiet(journal)

    assert log.started == ["first", "second", "third"]


@in_virtual_time
async def test_raise_and_return_name_the_run_of_the_key(journal: SQLiteJournal) -> None:
    log = Log()
    async with Service([log.pipeline], journal=journal) as service:
        ids = [
            await service.enqueue("work", run_id=f"r{number}", key="k", on_conflict="return")
            for number in range(3)
        ]
        await asyncio.sleep(0.5)
        with pytest.raises(RunAlreadyActiveError) as raised:
            await service.enqueue("work", key="k", on_conflict="raise")
        ids.append(await service.enqueue("work", key="k", on_conflict="return"))
        await asyncio.sleep(1)
        ids.append(await service.enqueue("work", run_id="next", key="k", on_conflict="raise"))
        await until_quiet(journal)

    assert (raised.value.run_id, raised.value.status) == ("r0", "RUNNING")
    assert ids == ["r0", "r0", "r0", "r0", "next"]
    assert log.started == ["r0", "next"]


@in_virtual_time
async def test_the_same_id_again_stores_nothing_whatever_became_of_the_run(
    journal: SQLiteJournal,
) -> None:
    log = Log()
    other = Pipeline("other")

    @other.step
    async def do() -> None: ...

    async def again(**inputs: Any) -> str:
        return await service.enqueue("work", inputs, run_id="webhook-1", key="k")

    async with Service([log.pipeline, other], journal=journal, max_runs=1) as service:
        blocker = await service.start("work", {"pause_s": 5})
        assert await again(pause_s=2.0) == "webhook-1"
        assert await again(pause_s=2.0) == "webhook-1"  # it waits
        assert len(await journal.events("webhook-1")) == 2
        for inputs in ({"pause_s": 3.0}, {}):
            with pytest.raises(RunIdInUseError, match="another input 'pause_s'"):
                await again(**inputs)
        with pytest.raises(RunIdInUseError, match="belongs to pipeline 'work'"):
            await service.enqueue("other", run_id="webhook-1")
        await blocker.report()
        await asyncio.sleep(1)
        assert await again(pause_s=2.0) == "webhook-1"  # it runs
        await until_quiet(journal)
        assert await again(pause_s=2.0) == "webhook-1"  # it has passed
        assert await service.enqueue("work", {"pause_s": 1.0}, run_id="default") == "default"
        assert await service.enqueue("work", run_id="default") == "default"
        await until_quiet(journal)

    assert log.started == [blocker.run_id, "webhook-1", "default"]


@in_virtual_time
async def test_a_replica_without_a_step_of_the_producer_leaves_its_runs_and_says_so_once(
    journal: SQLiteJournal, caplog: pytest.LogCaptureFixture
) -> None:
    new, old = Log(), Log()

    @new.pipeline.step(depends_on=["do"])
    async def check() -> None: ...

    await new.pipeline.with_options(journal=journal).enqueue(run_id="r")
    async with Service([old.pipeline], journal=journal) as service:
        await service.enqueue("work", run_id="own")
        await asyncio.sleep(600)
        assert await statuses(journal) == {"r": "WAITING", "own": "PASSED"}
        record = await journal.record("r")
        assert record.waits_for is not None
        assert record.waits_for.kind == "place"
    said = [each.message for each in caplog.records if each.levelno >= logging.ERROR]
    assert len(said) == 1
    assert "check" in said[0]

    async with Service([new.pipeline], journal=journal):
        await until_quiet(journal)
    assert (await journal.report("r"))["check"].status is StepStatus.SUCCESS


@in_virtual_time
async def test_an_answered_run_goes_before_runs_that_wait_to_start(
    journal: SQLiteJournal,
) -> None:
    log, orders = Log(), Pipeline("orders")
    approved = orders.signal("approved", bool)

    @orders.step
    async def ship(approved: bool = after(approved)) -> float:
        return now_s()

    async with Service([log.pipeline, orders], journal=journal, max_runs=2) as service:
        await (await service.start("orders", run_id="order")).report()
        for number in range(50):
            await service.enqueue("work", {"pause_s": 5}, run_id=f"r{number}")
        await asyncio.sleep(7)
        sent_s = now_s()

        await service.signal("order", "approved", True)
        await asyncio.sleep(10)

        shipped_s = (await journal.report("order"))["ship"].output
        assert shipped_s - sent_s < 5.1  # when the next place was free
        assert (await journal.queue()).waiting > 40


@in_virtual_time
async def test_runs_whose_key_is_held_are_passed_over(journal: SQLiteJournal) -> None:
    log = Log()
    async with Service([log.pipeline], journal=journal, max_runs=2) as service:
        await service.start("work", {"pause_s": 100}, run_id="holder", key="held")
        for number in range(20):
            await service.enqueue("work", run_id=f"behind {number}", key="held")
        began_s = now_s()
        await service.enqueue("work", run_id="free")
        await service.enqueue("work", run_id="other", key="other")
        await asyncio.sleep(5)

        assert log.started == ["holder", "free", "other"]
        assert log.at_s["other"] - began_s < 1.2
        assert await journal.cancel("holder")
        await until_quiet(journal)

    assert log.started[3:] == [f"behind {number}" for number in range(20)]


@in_virtual_time
async def test_a_service_that_drains_starts_nothing_more_and_still_stores(
    journal: SQLiteJournal,
) -> None:
    log = Log()
    async with Service([log.pipeline], journal=journal) as service:
        draining = asyncio.create_task(service.drain())
        await asyncio.sleep(0)
        await service.enqueue("work", run_id="late")
        await draining
        await service.enqueue("work", run_id="later")
        await asyncio.sleep(5)
    assert await statuses(journal) == {"late": "WAITING", "later": "WAITING"}

    async with Service([log.pipeline], journal=journal):
        await until_quiet(journal)
    assert log.started == ["late", "later"]


@in_virtual_time
async def test_who_reads_a_run_that_waits_to_start(journal: SQLiteJournal, tmp_path: Path) -> None:
    log, orders = Log(), Pipeline("orders", journal=journal)
    approved = orders.signal("approved", bool)

    @orders.step
    async def ship(approved: bool = after(approved)) -> bool:
        return approved

    work = log.pipeline.with_options(journal=journal)
    await work.enqueue({"pause_s": 2.0}, run_id="r", label="a label", attributes={"n": 1})
    await orders.enqueue(run_id="o")
    await work.enqueue(run_id="delayed", delay_ms=60_000)

    record = await journal.record("r")
    report = await work.report("r")
    assert (record.label, record.attributes) == ("a label", {"n": 1})
    assert record.enqueued_at == record.started_at
    assert [run.run_id for run in await journal.runs(waits_for="place")] == ["r", "o"]
    assert [run.run_id for run in await journal.runs(waits_for="time")] == ["delayed"]
    assert await journal.runs(waits_for="signal") == []
    with pytest.raises(ValueError, match="waits_for must be one of 'signal', 'time'"):
        await journal.runs(waits_for="room")  # type: ignore[arg-type]
    assert report.status is RunStatus.WAITING
    assert [each.status for each in report.values()] == [StepStatus.PENDING]
    with pytest.raises(RunWaitingError, match="run 'r' waits to start"):
        report.raise_for_failures()
    assert [each.step_name for each in (await work.preview("r")).runs] == ["do"]
    with pytest.raises(ValueError, match="waits to start, so there is nothing to reuse"):
        await work.rerun("r")
    assert (await journal.statistics("work")).runs == ()
    assert await journal.prune(timedelta(0), status="waiting") == 0
    await journal.signal("o", "approved", True)  # its link was given out
    assert (await journal.record("o")).waits_for is not None
    await journal.export("r", tmp_path / "r.db")
    async with SQLiteJournal(tmp_path / "r.db") as copy:
        assert (await copy.report("r")).inputs == {"pause_s": 2.0}

    reports = await resume_all(journal, [work, orders])
    assert {report.run_id: report.status for report in reports} == {"r": "PASSED", "o": "PASSED"}
    assert await journal.cancel("delayed")
    assert (await journal.record("delayed")).status is RunStatus.INTERRUPTED
    await work.enqueue(run_id="forgotten", key="k")
    await journal.forget("forgotten")
    async with Service([log.pipeline], journal=journal):
        await asyncio.sleep(120)
    assert log.started == ["r"]


@in_virtual_time
async def test_a_run_that_waits_takes_signals_and_starts_by_its_id_before_its_turn(
    journal: SQLiteJournal,
) -> None:
    log, orders = Log(), Pipeline("orders")
    approved = orders.signal("approved", bool)

    @orders.step
    async def ship(approved: bool = after(approved)) -> bool:
        return approved

    async with Service([log.pipeline, orders], journal=journal, max_runs=2) as service:
        for run_id in "ab":
            await service.start("work", {"pause_s": 10}, run_id=run_id)
        await service.enqueue("orders", run_id="order")
        for number in range(3):
            await service.enqueue("work", {"pause_s": 1.0}, run_id=f"r{number}", key="k")
        await service.signal("order", "approved", True)
        await log.pipeline.with_options(journal=journal, run_id="r2").run()
        with pytest.raises(RunIdInUseError):
            await log.pipeline.with_options(journal=journal, run_id="r1").run(pause_s=7.0)
        await until_quiet(journal)

    assert log.started == ["a", "b", "r2", "r0", "r1"]
    assert (await journal.report("order"))["ship"].output is True
    assert (await statuses(journal))["r2"] == "PASSED"


@in_virtual_time
async def test_the_place_of_a_run_in_lists_stays_when_it_starts(journal: SQLiteJournal) -> None:
    log = Log()
    work = log.pipeline.with_options(journal=journal)
    for number in range(4):
        await work.enqueue(run_id=f"r{number}")
        await asyncio.sleep(1)
    page = await journal.runs(limit=2)

    await work.with_options(run_id="r0").run()
    await work.with_options(run_id="r3").run()
    rest = await journal.runs(before=page[-1].place)

    assert [run.run_id for run in page] == ["r3", "r2"]
    assert [run.run_id for run in rest] == ["r1", "r0"]
    first = rest[-1]
    assert first.enqueued_at is not None
    assert first.started_at - first.enqueued_at == pytest.approx(4)
    assert first.paused_s == pytest.approx(0)
    assert first.duration_s == pytest.approx(1)
    assert first.span_s == pytest.approx(1)


@in_virtual_time
async def test_a_run_that_a_step_enqueues_goes_its_own_way(journal: SQLiteJournal) -> None:
    log, outer = Log(), Pipeline("outer")

    @outer.step(timeout_ms=None)
    async def remind() -> None:
        run_id = f"{current_step().idempotency_key}/reminder"
        assert await service.enqueue("work", run_id=run_id, delay_ms=1_000) == run_id
        await asyncio.sleep(3600)

    async with Service([log.pipeline, outer], journal=journal) as service:
        await service.start("outer", run_id="outer")
        await asyncio.sleep(0.5)
        (reminder,) = await journal.runs(parent="outer")
        assert await service.cancel("outer")
        await asyncio.sleep(10)

        assert log.started == [reminder.run_id]
        assert (await statuses(journal))[reminder.run_id] == "PASSED"


@in_virtual_time
async def test_what_can_not_be_enqueued_is_refused_before_anything_is_stored(
    journal: SQLiteJournal,
) -> None:
    log = Log()
    work = log.pipeline.with_options(journal=journal)
    wrong: list[tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = [
        ({"pause": 1}, {}, ValueError, "no step .* takes an input 'pause'"),
        ({"pause_s": object()}, {}, Exception, "pause_s"),
        ({}, {"delay_ms": -1}, ValueError, "delay_ms"),
        ({}, {"delay_ms": 1e16}, ValueError, "at most 100 years"),
        ({}, {"delay_ms": "1"}, TypeError, "delay_ms"),
        ({}, {"on_conflict": "drop"}, ValueError, "on_conflict must be 'wait' or"),
        ({}, {"key": ""}, ValueError, "key must not be empty"),
        ({}, {"run_id": "a\nb"}, ValueError, "run_id can't be"),
    ]
    for inputs, options, error, match in wrong:
        with pytest.raises(error, match=match):
            await work.enqueue(inputs, **options)
    with pytest.raises(ValueError, match="input 'pause_s' is secret"):
        await work.with_options(secret_inputs=["pause_s"]).enqueue({"pause_s": 1.0})
    with pytest.raises(RuntimeError, match="needs a journal"):
        await log.pipeline.enqueue()
    async with Service([log.pipeline]) as service:
        with pytest.raises(RuntimeError, match="a service without a journal"):
            await service.enqueue("work")
    assert await journal.runs() == []


@in_virtual_time
async def test_a_damaged_place_in_the_queue_is_left_and_said_once(
    journal: SQLiteJournal, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = Log()
    work = log.pipeline.with_options(journal=journal)
    for run_id in "ab":
        await work.enqueue(run_id=run_id)
    with closing(sqlite3.connect(tmp_path / "runs.db")) as database, database:
        database.execute("UPDATE queued SET due_at = due_at - 5 WHERE run_id = 'a'")

    async with Service([log.pipeline], journal=journal):
        await asyncio.sleep(100)

    assert log.started == ["b"]
    assert [each.message for each in caplog.records if "damaged" in each.message] == [
        "run 'a' can't be started: its row in the queue is damaged; forget it, or run it by its id"
    ]


# --- the newest wins -----------------------------------------------------------------------------


async def causes(journal: SQLiteJournal) -> dict[str, str]:
    return {run.run_id: run.cause or run.status for run in await journal.runs()}


@in_virtual_time
async def test_a_run_that_replaces_drops_those_that_wait_and_cancels_the_one_that_runs(
    journal: SQLiteJournal,
) -> None:
    log, cleaned = Log(), list[float]()

    @log.pipeline.step
    async def slow(do: str = after(log.pipeline.steps[0].action)) -> None:
        try:
            await asyncio.sleep(20)
        finally:
            await asyncio.sleep(3)
            cleaned.append(now_s())

    async with Service([log.pipeline], journal=journal, max_runs=1) as service:
        await service.enqueue("work", run_id="first", key="k")
        await asyncio.sleep(2)
        for run_id in ("second", "third"):
            await service.enqueue("work", run_id=run_id, key="k", delay_ms=60_000)
        began_s = now_s()

        await service.enqueue("work", run_id="newest", key="k", on_conflict="replace")
        assert await causes(journal) == {
            "first": "RUNNING",
            "second": "replaced",
            "third": "replaced",
            "newest": "WAITING",
        }
        await until_quiet(journal)

    assert log.started == ["first", "newest"]
    assert cleaned[0] - began_s == pytest.approx(3, abs=0.1)
    assert log.at_s["newest"] - began_s == pytest.approx(3, abs=0.1)
    assert await causes(journal) == {
        "first": "replaced",
        "second": "replaced",
        "third": "replaced",
        "newest": "PASSED",
    }
    report = await journal.report("second")
    assert report.stop_reason == "the run was cancelled: run 'newest' has replaced it"
    assert len(await journal.events("second")) == 4


@in_virtual_time
async def test_a_delayed_replacement_is_a_debounce_and_lets_what_runs_finish(
    journal: SQLiteJournal,
) -> None:
    log = Log()

    async def change(number: int) -> None:
        await service.enqueue(
            "work", run_id=f"r{number}", key="k", on_conflict="replace", delay_ms=5_000
        )

    async with Service([log.pipeline], journal=journal) as service:
        await service.enqueue("work", {"pause_s": 4}, run_id="runs", key="k")
        await asyncio.sleep(0.5)
        for number in range(10):
            await change(number)
            await asyncio.sleep(1)
        began_s = now_s()
        await until_quiet(journal)

        assert log.started == ["runs", "r9"]
        assert log.at_s["r9"] - began_s == pytest.approx(4, abs=0.1)
        assert (await statuses(journal))["runs"] == "PASSED"


@pytest.mark.parametrize("state", ["waits", "drained", "orphan"])
def test_a_run_that_nobody_runs_ends_as_replaced_when_the_new_one_starts(
    tmp_path: Path, state: str
) -> None:
    pipeline = Pipeline("work")
    gate = pipeline.signal("gate", bool)
    done: list[str] = []

    @pipeline.step(timeout_ms=None)
    async def do(pause_s: float, gate: bool = after(gate)) -> None:
        done.append(current_step().run_id)
        await asyncio.sleep(pause_s)

    async def main() -> None:
        async with SQLiteJournal(tmp_path / "runs.db") as journal:
            work = pipeline.with_options(journal=journal)
            if state != "waits":
                await work.enqueue({"pause_s": 50.0}, run_id="old", key="k")
                await journal.signal("old", "gate", True)
                async with work.with_options(run_id="old").start() as run:
                    await asyncio.sleep(1)
                    run.drain("a deploy", spare_running=False)
            else:
                await work.with_options(run_id="old", key="k").run(pause_s=50.0)
            if state == "orphan":
                with closing(sqlite3.connect(tmp_path / "runs.db")) as database, database:
                    database.execute("DELETE FROM events WHERE position > 6")
                    database.execute("UPDATE runs SET status = 'running', cause = NULL")
                    database.execute("UPDATE runs SET last_event = 3")
                assert [run.run_id for run in await journal.orphans()] == ["old"]
            await work.enqueue({"pause_s": 1.0}, run_id="new", key="k", on_conflict="replace")
            await journal.signal("new", "gate", True)
            assert (await journal.record("new")).waits_for is not None

            # The old one is not resumed, neither before nor after.
            async with Service([pipeline], journal=journal, resume_every_s=3600):
                await asyncio.sleep(10)
                assert await causes(journal) == {"old": "replaced", "new": "PASSED"}
            async with Service([pipeline], journal=journal, resume_every_s=1):
                await asyncio.sleep(100)
            assert await causes(journal) == {"old": "replaced", "new": "PASSED"}
            assert done[-1] == "new"
            report = await journal.report("old")
            assert report.status is RunStatus.INTERRUPTED
            # By hand it can be resumed, as any run that was cancelled.
            assert (await work.with_options(run_id="old").run()).status in ("PASSED", "WAITING")

    run_in_virtual_time(main())


@pytest.mark.parametrize("state", ["runs", "waits"])
@in_virtual_time
async def test_a_replacement_that_is_due_replaces_also_before_its_turn(
    journal: SQLiteJournal, state: str
) -> None:
    pipeline, began = Pipeline("work"), dict[str, float]()
    gate = pipeline.signal("gate", bool)

    @pipeline.step(timeout_ms=None)
    async def do(pause_s: float, gate: bool = after(gate)) -> None:
        began[current_step().run_id] = now_s()
        await asyncio.sleep(pause_s)

    async with Service([pipeline], journal=journal) as service:
        await service.start("work", {"pause_s": 1e6}, run_id="old", key="k")
        if state == "runs":
            await service.signal("old", "gate", True)
        await service.enqueue(
            "work", {"pause_s": 1}, run_id="new", key="k", on_conflict="replace", delay_ms=60_000
        )
        await service.enqueue("work", {"pause_s": 1e6}, run_id="first in line", key="k")
        for run_id in ("new", "first in line"):
            await journal.signal(run_id, "gate", True)
        begun_s = now_s()
        await until_quiet(journal)

    assert began["new"] - begun_s == pytest.approx(60, abs=3)
    assert await causes(journal) == {
        "old": "replaced",
        "first in line": "replaced",
        "new": "PASSED",
    }


@in_virtual_time
async def test_a_damaged_run_is_not_replaced_and_named(
    journal: SQLiteJournal, tmp_path: Path
) -> None:
    work = Log().pipeline.with_options(journal=journal, key="k")
    await work.enqueue(run_id="damaged")
    with closing(sqlite3.connect(tmp_path / "runs.db")) as database, database:
        database.execute("DELETE FROM events WHERE run_id = 'damaged'")

    with pytest.raises(RunUnreadableError, match="run 'damaged' can't be read: its events are mis"):
        await work.enqueue(run_id="new", on_conflict="replace")

    await journal.forget("damaged")
    await work.enqueue(run_id="new", on_conflict="replace")
    assert await causes(journal) == {"new": "WAITING"}


@in_virtual_time
async def test_of_many_replacements_at_once_the_last_one_runs(journal: SQLiteJournal) -> None:
    log = Log()
    async with Service([log.pipeline], journal=journal) as service:
        await service.enqueue("work", {"pause_s": 60}, run_id="runs", key="k")
        await asyncio.sleep(1)
        for number in range(100):
            await service.enqueue("work", run_id=f"r{number}", key="k", on_conflict="replace")
        assert len(await journal.runs("WAITING")) <= 1
        await until_quiet(journal)

    found = await causes(journal)
    assert log.started[-1] == "r99"
    assert found.pop("r99") == "PASSED"
    assert set(found.values()) == {"replaced"}
    assert log.most == 1


@in_virtual_time
async def test_a_replacement_needs_a_key(journal: SQLiteJournal) -> None:
    work = Log().pipeline.with_options(journal=journal)
    for how in ("raise", "return", "replace"):
        with pytest.raises(ValueError, match="is about the runs of a key: give a key too"):
            await work.enqueue(on_conflict=how)  # type: ignore[arg-type]
