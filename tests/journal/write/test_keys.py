"""At most one started run of a pipeline has a key, in the whole journal."""

from __future__ import annotations

import asyncio
import pickle
from datetime import timedelta
from typing import Any

import pytest
from virtual_journals import in_virtual_time

from asyncflow import (
    LeaseLostError,
    Orchestrator,
    RunAlreadyActiveError,
    RunCancelledError,
    RunStatus,
    Signal,
    WorkflowStep,
    resume_all,
    run_pipeline,
)
from asyncflow.journal import SQLiteJournal
from asyncflow.testing import run_in_virtual_time


async def sync(customer: int = 17, pause_s: float = 1.0, fails: bool = False) -> int:
    await asyncio.sleep(pause_s)
    if fails:
        raise OSError
    return customer


STEPS = [WorkflowStep("sync", sync, timeout_ms=None)]


def keyed(journal: Any, run_id: str, **options: Any) -> Orchestrator:
    given = {"key": "customer-17", "name": "sync", "journal": journal, **options}
    return Orchestrator(STEPS).with_options(run_id=run_id, **given)


async def orphan(journal: Any, database: Any, run_id: str = "lost") -> asyncio.Task[Any]:
    """Leave a run to be continued whose process seems to be dead; return its task, which lives."""
    task = asyncio.create_task(keyed(journal, run_id).run(pause_s=3600))
    while run_id not in [each.run_id for each in await journal.runs("RUNNING")]:
        await asyncio.sleep(0.01)
    database.expire_leases(run_id)
    return task


async def refusal_of(journal: Any, run_id: str = "second", **options: Any) -> RunAlreadyActiveError:
    with pytest.raises(RunAlreadyActiveError) as raised:
        await keyed(journal, run_id, **options).run()
    assert run_id not in [run.run_id for run in await journal.runs()]
    error = raised.value
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    return error


@in_virtual_time
async def test_a_key_is_of_one_run_of_a_pipeline_from_its_start_to_its_end(journal: Any) -> None:
    first = asyncio.create_task(keyed(journal, "first").run())
    await asyncio.sleep(0.5)

    refused = await refusal_of(journal)
    others = [
        keyed(journal, "another pipeline", name="other").run(),
        keyed(journal, "another key", key="customer-18").run(),
        keyed(journal, "no key", key=None).run(),
    ]

    assert (refused.run_id, refused.key, refused.status) == ("first", "customer-17", "RUNNING")
    assert "run 'first', which is RUNNING in " in str(refused)
    assert "enqueue a run to start after it" in str(refused)
    assert all(report.all_passed for report in await asyncio.gather(*others))
    assert (await first).all_passed
    assert (await keyed(journal, "second").run()).all_passed
    assert (await keyed(journal, "first").run()).all_passed  # its stored report
    assert {run.run_id: run.key for run in await journal.runs()} == {
        "first": "customer-17",
        "second": "customer-17",
        "another key": "customer-18",
        "another pipeline": "customer-17",
        "no key": "",
    }


@in_virtual_time
async def test_of_any_number_at_once_one_starts(journal: Any, make_journal: Any) -> None:
    journals = [journal, make_journal()]

    async with asyncio.timeout(60):
        ends = await asyncio.gather(
            *(keyed(journals[n % 2], f"r{n}").run() for n in range(20)), return_exceptions=True
        )

    refused = [end for end in ends if isinstance(end, RunAlreadyActiveError)]
    (passed,) = [end for end in ends if not isinstance(end, Exception)]
    assert len(refused) == 19
    assert {each.run_id for each in refused} == {passed.run_id}
    assert len(await journal.runs()) == 1


@in_virtual_time
async def test_of_two_keys_for_one_id_at_once_the_run_has_the_one_that_it_is_stored_with(
    journal: Any,
) -> None:
    starts = [asyncio.create_task(keyed(journal, "r", key=key).run()) for key in ("k1", "k2")]
    await asyncio.sleep(0.5)
    (record,) = await journal.runs()
    other = {"k1": "k2", "k2": "k1"}[record.key]

    assert (await refusal_of(journal, key=record.key)).run_id == "r"
    assert (await keyed(journal, "of the other key", key=other).run()).all_passed
    ends = await asyncio.gather(*starts, return_exceptions=True)
    assert [isinstance(end, RunAlreadyActiveError) for end in ends].count(True) == 1


@in_virtual_time
async def test_a_run_that_was_drained_has_its_key_until_it_is_resumed_or_cancelled(
    journal: Any,
) -> None:
    async def drain(run_id: str) -> None:
        async with keyed(journal, run_id).start(pause_s=60) as run:
            await asyncio.sleep(0.5)
            run.drain("a night", spare_running=False)

    await drain("night")

    refused = await refusal_of(journal)
    assert (refused.run_id, refused.status) == ("night", "INTERRUPTED")
    assert "resume it, or cancel or forget it to free the key" in str(refused)

    assert (await keyed(journal, "night").run()).all_passed
    await drain("next night")
    assert await journal.cancel("next night")
    assert (await keyed(journal, "second").run()).all_passed

    await drain("last night")
    await journal.forget("last night")
    assert (await keyed(journal, "third").run()).all_passed


@in_virtual_time
async def test_a_run_that_waits_for_a_signal_has_its_key(journal: Any) -> None:
    waits = Orchestrator([WorkflowStep("approved", Signal(bool))], name="sync", journal=journal)
    assert (await waits.with_options(run_id="waits", key="customer-17").run()).status == "WAITING"

    refused = await refusal_of(journal)

    assert (refused.run_id, refused.status) == ("waits", "WAITING")
    assert "until it has ended: send it what it waits for, or cancel it" in str(refused)
    assert await journal.cancel("waits")
    assert (await keyed(journal, "second").run()).all_passed


async def test_a_run_that_lost_its_process_has_its_key_until_it_was_asked_to_stop(
    make_journal: Any, database: Any
) -> None:
    journal, other = make_journal(), make_journal()
    late = await orphan(journal, database)

    refused = await refusal_of(other)
    assert (refused.run_id, refused.status) == ("lost", "ORPHANED")

    assert await other.cancel("lost")
    assert (await keyed(other, "second").run(pause_s=0)).all_passed

    # Its process had stood still: it does not go on without the key.
    with pytest.raises((LeaseLostError, RunCancelledError)):
        async with asyncio.timeout(20):
            await late
    third = asyncio.create_task(keyed(other, "third").run(pause_s=3600))
    while not await other.runs("RUNNING"):
        await asyncio.sleep(0.01)
    with pytest.raises(RunAlreadyActiveError, match="run 'third'"):
        await keyed(other, "lost").run()
    third.cancel()
    await asyncio.wait([third])
    with pytest.raises(RunCancelledError):
        await keyed(other, "lost").run()


async def test_a_process_that_died_before_its_run_began_leaves_the_key_free(
    make_journal: Any, database: Any
) -> None:
    journal, other = make_journal(), make_journal()
    session, _ = await journal.open(
        "r", wait=False, read=lambda stored: stored, key=("sync", "customer-17")
    )
    with pytest.raises(RunAlreadyActiveError, match="run 'r', which is RUNNING in"):
        await keyed(other, "second").run()

    database.expire_leases("r")
    assert (await keyed(other, "second").run(pause_s=0)).all_passed

    # It had stood still, and must not begin beside another run with the key.
    session.execute(("SELECT 1", ()))
    with pytest.raises(LeaseLostError):
        await session.close()


@in_virtual_time
async def test_a_failed_run_is_not_resumed_while_another_run_has_its_key(journal: Any) -> None:
    await keyed(journal, "failed").run(fails=True)
    second = asyncio.create_task(keyed(journal, "second").run())
    await asyncio.sleep(0.5)

    # Its key is stored, whatever the options say.
    for key in ("customer-17", "customer-18", None):
        with pytest.raises(RunAlreadyActiveError, match="run 'second'"):
            await keyed(journal, "failed", key=key).run()

    assert (await second).all_passed
    failed = await keyed(journal, "failed", key=None).run()
    assert failed.status is RunStatus.FAILED
    assert (await journal.record("failed")).key == "customer-17"


@in_virtual_time
async def test_a_stored_run_without_a_key_gets_none(journal: Any) -> None:
    await keyed(journal, "r", key=None).run(fails=True)
    second = asyncio.create_task(keyed(journal, "second").run())
    await asyncio.sleep(0.5)

    resumed = await keyed(journal, "r").run()

    assert resumed.status is RunStatus.FAILED
    assert (await second).all_passed


@pytest.mark.parametrize("key", [None, "customer-18"])
@in_virtual_time
async def test_a_run_with_the_id_of_a_forgotten_one_has_no_key_of_that(
    journal: Any, key: str | None
) -> None:
    await keyed(journal, "r").run()
    await journal.forget("r")
    new = asyncio.create_task(keyed(journal, "r", key=key).run())
    await asyncio.sleep(0.5)

    await keyed(journal, "queued").enqueue({}, on_conflict="replace")
    assert (await journal.queue()).blocked_keys == 0
    assert (await keyed(journal, "queued").run()).all_passed
    assert (await new).all_passed


async def test_a_run_that_is_about_to_begin_has_no_key_of_a_forgotten_one_with_its_id(
    make_journal: Any,
) -> None:
    journal, other = make_journal(), make_journal()
    await keyed(journal, "r").run(pause_s=0)
    await other.forget("r")

    session, _ = await journal.open("r", wait=False, read=lambda stored: stored)

    assert (await keyed(other, "second").run(pause_s=0)).all_passed
    await session.close()


@in_virtual_time
async def test_a_rerun_has_the_key_of_its_pipeline(journal: Any) -> None:
    await keyed(journal, "failed").run(fails=True)
    second = asyncio.create_task(keyed(journal, "second").run())
    await asyncio.sleep(0.5)

    with pytest.raises(RunAlreadyActiveError, match="run 'second'"):
        await keyed(journal, "failed").rerun("failed", "again", inputs={"fails": False})

    assert (await second).all_passed
    again = await keyed(journal, "failed").rerun("failed", "again", inputs={"fails": False})
    assert again.all_passed
    assert (await journal.record("again")).key == "customer-17"


@in_virtual_time
async def test_a_nested_run_can_not_wait_for_the_run_that_it_belongs_to(journal: Any) -> None:
    async def nest(key: str) -> int:
        report = await keyed(journal, f"inner {key}", key=key).run()
        return int(report["sync"].output)

    steps = [WorkflowStep("nest", nest, timeout_ms=None)]
    outer = Orchestrator(steps, name="sync", journal=journal)

    refused = await outer.with_options(run_id="a", key="k").run(key="k")
    passed = await outer.with_options(run_id="b", key="k").run(key="other")

    assert isinstance(refused["nest"].error, RunAlreadyActiveError)
    assert "this step belongs to that run" in str(refused["nest"].error)
    assert passed.all_passed


@in_virtual_time
async def test_runs_that_are_lost_continue_with_their_keys(journal: Any) -> None:
    for number in range(3):
        async with keyed(journal, f"r{number}", key=f"k{number}").start(pause_s=60) as run:
            await asyncio.sleep(0.5)
            run.drain("a night", spare_running=False)

    reports = await resume_all(journal, {"sync": STEPS})

    assert [report.all_passed for report in reports] == [True] * 3


async def test_pruning_forgets_the_keys_of_runs_that_are_gone(
    make_journal: Any, database: Any
) -> None:
    journal = make_journal()
    for number in range(3):
        await keyed(journal, f"r{number}", key=f"k{number}").run(pause_s=0)
    task = asyncio.create_task(keyed(journal, "runs", key="k3").run(pause_s=3600))
    while not await journal.runs("RUNNING"):
        await asyncio.sleep(0.01)

    assert await journal.prune(timedelta(0)) == 3

    assert database.query("SELECT key, run_id FROM keys") == [("k3", "runs")]
    task.cancel()
    await asyncio.wait([task])


async def test_a_key_is_checked_before_anything_runs(make_journal: Any) -> None:
    class OtherJournal:
        async def open(self, run_id: str, *, wait: bool, read: Any) -> Any:
            raise AssertionError

        encode = decode = replay = None

    wrong: list[tuple[object, type[Exception], str]] = [
        (17, TypeError, "key must be a str, not int"),
        ("", ValueError, "key must not be empty"),
        ("x" * 201, ValueError, "key must have at most 200 characters, not 201"),
    ]
    for key, error, match in wrong:
        with pytest.raises(error, match=match):
            keyed(make_journal(), "r", key=key)
    with pytest.raises(ValueError, match="key 'k' needs a journal"):
        await run_pipeline(STEPS, key="k")
    with pytest.raises(ValueError, match="this one has no name: give it one"):
        await run_pipeline(STEPS, key="k", journal=make_journal())
    with pytest.raises(TypeError, match="needs a journal whose open\\(\\) takes a key"):
        await keyed(OtherJournal(), "r").run()


def test_a_key_has_any_characters(database: Any) -> None:
    async def main() -> None:
        async with database.make() as journal:
            for key in ('"', "a\0b", "\ud800", "x" * 200, "schlüssel 🗝"):
                first = asyncio.create_task(keyed(journal, f"first {len(key)}", key=key).run())
                await asyncio.sleep(0.5)
                assert (await refusal_of(journal, key=key)).key == key
                await first
                (record,) = [run for run in await journal.runs() if run.key == key]
                await journal.forget(record.run_id)

    run_in_virtual_time(main())


def test_a_run_has_its_key_in_an_export(tmp_path: Any) -> None:
    async def main() -> None:
        async with SQLiteJournal(tmp_path / "runs.db") as journal:
            await keyed(journal, "r").run()
            await journal.export("r", tmp_path / "r.db")
        async with SQLiteJournal(tmp_path / "r.db") as copy:
            assert (await copy.record("r")).key == "customer-17"
            assert (await copy.report("r")).all_passed
            assert (await keyed(copy, "second").run()).all_passed

    run_in_virtual_time(main())
