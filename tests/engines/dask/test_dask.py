"""The Dask engine, on a scheduler and workers in this process; each test takes a moment."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import dask
import pytest
from dask_work import (
    add,
    bytes_of,
    fail,
    fail_once,
    linger,
    make,
    measure,
    return_when_cancelled,
    sleep_in_thread,
    talk,
    words,
)
from distributed import Client, Future, LocalCluster
from engine_calls import RecordedCall, RecordedNotes

from asyncflow import (
    NotSendableError,
    OutputLostError,
    WorkerLostError,
    WorkflowStep,
    run_pipeline,
)
from asyncflow.engines import RemoteOutput
from asyncflow.engines._dask import link as dask_link
from asyncflow.engines._dask import wire as dask_wire
from asyncflow.engines._dask.body import _Body
from asyncflow.engines._dask.fence import Fence
from asyncflow.engines._dask.wire import WORKERS, open_wire
from asyncflow.engines.dask import DaskEngine
from asyncflow.journal import SQLiteJournal

pytestmark = pytest.mark.process


def new_cluster() -> LocalCluster:
    return LocalCluster(
        n_workers=2,
        threads_per_worker=4,
        processes=False,
        asynchronous=True,
        dashboard_address="127.0.0.1:0",
        host="127.0.0.1",
        protocol="tcp",
    )


@pytest.fixture
async def cluster() -> AsyncIterator[LocalCluster]:
    async with new_cluster() as cluster:
        yield cluster


@pytest.fixture
async def client(cluster: LocalCluster) -> AsyncIterator[Client]:
    async with Client(cluster, asynchronous=True) as client:
        yield client


@pytest.fixture
async def engine(client: Client) -> AsyncIterator[DaskEngine]:
    async with DaskEngine(client, keep_bytes=1_000) as engine:
        yield engine


def recorded(action: Callable[..., Any], **arguments: Any) -> RecordedCall:
    return RecordedCall(WorkflowStep("step", action), arguments)


def made(diary: str) -> RecordedCall:
    """Return a call whose output stays."""
    arguments = {"diary": diary, "size": 5_000}
    return RecordedCall(WorkflowStep("make", make), arguments, may_keep=True)


def address_of(call: RecordedCall) -> str:
    """Return the address of the worker that has begun with a call."""
    return call.workers[0].partition(" ")[0]


async def begun(call: RecordedCall) -> None:
    async with asyncio.timeout(50):
        while not call.workers:
            await asyncio.sleep(0.005)


async def written(diary: str, *expected: str) -> None:
    async with asyncio.timeout(50):
        while set(words(diary)) < set(expected):
            await asyncio.sleep(0.005)


async def forgotten(cluster: LocalCluster) -> None:
    """Wait until the fence has forgotten all engines."""
    async with asyncio.timeout(20):
        while cluster.scheduler.plugins[Fence.name]._engines:
            await asyncio.sleep(0.005)


# What comes of a call.


async def test_a_call_returns_what_the_action_returns_and_says_where_it_began(
    engine: DaskEngine, cluster: LocalCluster
) -> None:
    call = recorded(add, a=1, b=2)

    assert await engine.run(call.call) == 3

    assert address_of(call) in cluster.scheduler.workers
    assert call.workers == [f"{address_of(call)} (pid {os.getpid()})"]


async def test_an_error_comes_home_as_it_is_with_its_remote_traceback(engine: DaskEngine) -> None:
    with pytest.raises(ValueError, match="too bad") as caught:
        await engine.run(recorded(fail, message="too bad").call)

    assert "in fail" in caught.value.__notes__[0]


async def test_notes_and_heartbeats_come_home(engine: DaskEngine) -> None:
    step, notes = WorkflowStep("step", talk, heartbeat_ms=200), RecordedNotes()
    call = RecordedCall(step, notes=notes)

    await engine.run(call.call)

    assert call.beats >= 2
    assert {kind for kind, *_ in notes.said} == {"progress", "log"}


async def test_nothing_is_left_in_the_scheduler_when_calls_have_ended(
    engine: DaskEngine, cluster: LocalCluster, diary: str
) -> None:
    stopped = asyncio.create_task(engine.run(recorded(linger, diary=diary).call))
    await asyncio.gather(*[engine.run(recorded(add, a=n).call) for n in range(20)])
    stopped.cancel()
    await asyncio.wait([stopped])

    async with asyncio.timeout(50):
        while cluster.scheduler.tasks:
            await asyncio.sleep(0.005)
    fence = cluster.scheduler.plugins[Fence.name]
    assert [(each.waiting, each.running, each.early) for each in fence._engines.values()] == [
        ({}, {}, [])
    ]
    assert not any(worker.extensions[WORKERS]._bodies for worker in cluster.workers.values())


async def test_dask_groups_tasks_by_the_names_of_steps_up_to_a_number(
    engine: DaskEngine, cluster: LocalCluster
) -> None:
    steps = [WorkflowStep(f"step{n}", add) for n in range(150)]

    await asyncio.gather(*[engine.run(RecordedCall(step, {"a": 1}).call) for step in steps])

    names = cluster.scheduler.task_prefixes.keys()
    assert names == {f"step{n}" for n in range(100)} | {"step"}


# Cancelling.


async def test_a_cancelled_call_returns_when_its_body_has_cleaned_up(
    engine: DaskEngine, diary: str
) -> None:
    call = recorded(linger, diary=diary, cleanup_s=0.05)
    running = asyncio.create_task(engine.run(call.call))
    await written(diary, "begin-body")

    running.cancel()
    await asyncio.wait([running])

    assert running.cancelled()
    assert words(diary) == ["begin-body", "end-body"]


async def test_the_late_value_of_a_cancelled_call_is_handed_on(engine: DaskEngine) -> None:
    call = recorded(return_when_cancelled)
    running = asyncio.create_task(engine.run(call.call))
    await begun(call)

    running.cancel()

    assert await running == "done"
    assert running.cancelling() == 1


@pytest.mark.parametrize("delay_s", [0.0, 0.02])
async def test_a_burst_of_cancels_lets_no_body_finish_or_begin_later(
    engine: DaskEngine, cluster: LocalCluster, diary: str, delay_s: float
) -> None:
    running = [
        asyncio.create_task(engine.run(recorded(linger, diary=diary, name=str(n)).call))
        for n in range(60)
    ]
    await asyncio.sleep(delay_s)

    for each in running:
        each.cancel()
    await asyncio.wait(running)

    then = words(diary)
    assert all(each.cancelled() for each in running)
    assert sorted(f"end-{word[6:]}" for word in then if word.startswith("begin")) == sorted(
        word for word in then if not word.startswith("begin")
    )
    async with asyncio.timeout(50):  # whatever would begin later has begun then
        while cluster.scheduler.tasks:
            await asyncio.sleep(0.005)
    assert await engine.run(recorded(add, a=1).call) == 1
    assert words(diary) == then


async def test_a_body_that_exceeds_its_limit_is_cancelled_in_time(
    engine: DaskEngine, diary: str
) -> None:
    call = recorded(linger, diary=diary, cleanup_s=0.05)
    running = asyncio.create_task(engine.run(call.call))
    await begun(call)
    began_s = time.monotonic()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(running, 0.5)

    assert 0.54 < time.monotonic() - began_s < 20
    assert words(diary) == ["begin-body", "end-body"]


async def test_a_thread_that_outlives_its_attempt_is_abandoned_and_its_end_reported(
    engine: DaskEngine,
) -> None:
    step = WorkflowStep("step", sleep_in_thread, runs_in="thread", timeout_ms=50)
    call = RecordedCall(step, {"seconds": 0.5})
    running = asyncio.create_task(engine.run(call.call))
    await begun(call)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(running, 0.05)

    (thread,) = call.threads
    assert not thread.done()
    await asyncio.wait_for(thread, 50)


async def test_a_worker_that_does_not_answer_to_a_stop_is_reported(
    engine: DaskEngine, diary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_link, "_ANSWER_WITHIN_S", 0.05)
    monkeypatch.setattr(_Body, "stop", lambda body: None)  # as if its network were cut
    call = recorded(linger, diary=diary)
    running = asyncio.create_task(engine.run(call.call))
    await begun(call)

    running.cancel()
    async with asyncio.timeout(50):
        while not call.reasons:
            await asyncio.sleep(0.005)

    assert address_of(call) in call.reasons[0]
    assert not running.done()
    monkeypatch.undo()
    (body,) = engine._connection.link._bodies.values()  # type: ignore[union-attr]
    body._wire.send("stop", body.number)
    await asyncio.wait([running])
    assert running.cancelled()


async def test_closing_an_engine_stops_its_bodies_and_awaits_them(
    client: Client, diary: str
) -> None:
    async with DaskEngine(client) as engine:
        call = recorded(linger, diary=diary, cleanup_s=0.05)
        running = [asyncio.create_task(engine.run(call.call)) for _ in range(2)]
        await begun(call)
        running[0].cancel()
        await asyncio.sleep(0)

    assert words(diary).count("begin-body") == words(diary).count("end-body")
    await asyncio.wait(running)
    assert client.status == "running"


async def test_two_engines_on_one_client_do_not_stop_each_other(
    client: Client, engine: DaskEngine, diary: str
) -> None:
    async with DaskEngine(client) as other:
        mine, theirs = (recorded(linger, diary=diary, name=n) for n in "ab")
        tasks = [
            asyncio.create_task(engine.run(mine.call)),
            asyncio.create_task(other.run(theirs.call)),
        ]
        await asyncio.gather(begun(mine), begun(theirs))

        tasks[1].cancel()
        await asyncio.wait([tasks[1]])

        assert not tasks[0].done()
        assert "end-b" in words(diary)
    assert await engine.run(recorded(add, a=1).call) == 1
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])
    assert "end-a" in words(diary)


# Losses.


async def test_a_retired_worker_ends_its_body_and_no_other_one_begins(
    engine: DaskEngine, client: Client, diary: str
) -> None:
    call = recorded(linger, diary=diary, cleanup_s=0.2)
    running = asyncio.create_task(engine.run(call.call))
    await begun(call)

    await client.retire_workers([address_of(call)])
    with pytest.raises(WorkerLostError, match="closed or retired") as caught:
        await running

    assert caught.value.worker == address_of(call)
    assert words(diary) == ["begin-body", "end-body"]
    assert await engine.run(recorded(add, a=1).call) == 1
    assert words(diary) == ["begin-body", "end-body"]


async def test_a_body_that_returns_while_its_worker_retires_has_succeeded(
    engine: DaskEngine, client: Client
) -> None:
    call = recorded(return_when_cancelled)
    running = asyncio.create_task(engine.run(call.call))
    await begun(call)

    await client.retire_workers([address_of(call)])

    assert await running == "done"


async def test_a_task_that_dask_forgets_by_itself_is_a_lost_worker(
    client: Client, diary: str
) -> None:
    async with DaskEngine(client, resources={"none has this": 1}) as engine:
        running = asyncio.create_task(engine.run(recorded(add, a=1).call))
        async with asyncio.timeout(50):
            while not client.futures:
                await asyncio.sleep(0.005)

        await client.cancel([Future(key, client) for key in client.futures])
        with pytest.raises(WorkerLostError, match="Dask could not run it") as caught:
            await running

    assert caught.value.worker == ""


async def test_a_body_that_dask_cancels_by_itself_is_a_lost_worker_and_no_cancellation(
    engine: DaskEngine, client: Client, diary: str
) -> None:
    call = recorded(linger, diary=diary)
    running = asyncio.create_task(engine.run(call.call))
    await begun(call)

    await client.cancel([Future(key, client) for key in client.futures])  # so does a restart
    await asyncio.wait([running])

    assert not running.cancelled()
    with pytest.raises(WorkerLostError, match="Dask could not run it") as caught:
        await running
    assert caught.value.worker == address_of(call)
    assert words(diary) == ["begin-body", "end-body"]


async def test_a_run_whose_engine_is_closed_begins_nothing_more(
    client: Client, cluster: LocalCluster, diary: str
) -> None:
    step = WorkflowStep("linger", partial(linger, diary, cleanup_s=0.1), max_retries=3)
    async with DaskEngine(client) as engine:
        running = asyncio.create_task(run_pipeline([step], engine=engine))
        await written(diary, "begin-body")
    report = await running

    first, second, _ = report["linger"].history
    assert isinstance(first.error, WorkerLostError)
    assert first.error.reason == "the engine was closed"
    assert "not open" in str(second.error)
    assert words(diary) == ["begin-body", "end-body"]
    await forgotten(cluster)


async def test_the_closing_of_an_engine_can_be_cancelled(
    client: Client, cluster: LocalCluster, diary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Body, "stop", lambda body: None)  # as if its worker did not answer
    call = recorded(linger, diary=diary)
    engine = await DaskEngine(client).__aenter__()
    running = asyncio.create_task(engine.run(call.call))
    await begun(call)
    closing = asyncio.create_task(engine.__aexit__(None, None, None))
    await asyncio.sleep(0.05)
    monkeypatch.undo()

    closing.cancel()
    await asyncio.wait([closing, running])

    assert isinstance(running.exception(), WorkerLostError)
    await forgotten(cluster)


async def test_calls_that_wait_for_a_scheduler_give_up_together(
    engine: DaskEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    async def connect() -> None:
        tried.append(len(tried))
        await asyncio.sleep(0.05)
        raise OSError("no scheduler")

    await engine._close_link()
    monkeypatch.setattr(engine, "_connect", connect)
    calls = [engine.run(recorded(add).call) for _ in range(20)]
    results = await asyncio.gather(*calls, return_exceptions=True)

    assert {type(result) for result in results} == {WorkerLostError}
    assert len(tried) == 1
    with pytest.raises(WorkerLostError, match="no scheduler"):
        await engine.run(recorded(add).call)
    assert len(tried) == 2  # another one tries again


async def test_what_is_too_large_for_a_message_is_named(
    engine: DaskEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_wire, "MAX_BYTES", 100_000)

    with pytest.raises(NotSendableError, match="the call can't be sent"):
        await engine.run(recorded(measure, data=bytes(200_000)).call)
    with pytest.raises(NotSendableError, match="its output can't be sent"):
        await engine.run(recorded(bytes_of, size=200_000).call)
    assert await engine.run(recorded(bytes_of, size=10).call) == bytes(10)


async def test_a_call_on_a_closed_client_is_a_lost_worker(cluster: LocalCluster) -> None:
    client = await Client(cluster, asynchronous=True)
    async with DaskEngine(client) as engine:
        await client.close()

        with pytest.raises(WorkerLostError, match="closed"):
            await engine.run(recorded(add, a=1).call)
        await engine._close_link()
        with pytest.raises(WorkerLostError, match="its client is closed"):
            await engine.run(recorded(add, a=1).call)


# Outputs that stay.


async def test_without_a_limit_no_output_stays_on_its_worker(
    client: Client, engine: DaskEngine
) -> None:
    call = RecordedCall(WorkflowStep("step", bytes_of), {"size": 10_000}, may_keep=True)
    kept = await engine.run(call.call)
    async with DaskEngine(client, keep_bytes=None) as other:
        call = RecordedCall(WorkflowStep("step", bytes_of), {"size": 10_000}, may_keep=True)
        home = await other.run(call.call)

    assert isinstance(kept, RemoteOutput)
    assert home == bytes(10_000)


async def test_a_large_output_stays_and_goes_where_it_is_needed(
    engine: DaskEngine, diary: str
) -> None:
    call = made(diary)

    output = await engine.run(call.call)

    assert isinstance(output, RemoteOutput)
    assert output.worker == address_of(call)
    assert output.size >= 5_000
    assert (await engine.run(recorded(measure, data=output).call))[1] == 5_000
    assert len(await output.fetch()) == 5_000


async def test_a_lost_output_fails_its_consumer_and_is_not_made_again(
    engine: DaskEngine, client: Client, cluster: LocalCluster, diary: str
) -> None:
    output = await engine.run(made(diary).call)
    (worker,) = [each for each in cluster.workers.values() if each.address == output.worker]

    await worker.close()
    with pytest.raises(OutputLostError, match=r"of step 'make' for parameter 'data', which"):
        await engine.run(recorded(measure, data=output).call)
    with pytest.raises(OutputLostError, match=r"of step 'make', which"):
        await output.fetch()

    assert len(words(diary)) == 1
    await client.cancel([output.reference])
    with pytest.raises(OutputLostError):
        await engine.run(recorded(measure, data=output).call)
    with pytest.raises(OutputLostError):
        await output.fetch()


async def test_an_output_that_dask_forgets_fails_the_consumer_that_waits_for_a_worker(
    engine: DaskEngine, client: Client, diary: str
) -> None:
    output = await engine.run(made(diary).call)
    others = [
        asyncio.create_task(engine.run(recorded(linger, diary=diary).call)) for _ in "12345678"
    ]
    await written(diary, "begin-body")
    consumer = asyncio.create_task(engine.run(recorded(measure, data=output).call))
    async with asyncio.timeout(50):
        while len(client.futures) < 10:
            await asyncio.sleep(0.005)

    await client.cancel([output.reference])
    with pytest.raises(OutputLostError, match=r"of step 'make' for parameter 'data', which"):
        await consumer

    for other in others:
        other.cancel()
    await asyncio.wait(others)


async def test_fetching_an_output_can_be_cancelled(engine: DaskEngine, diary: str) -> None:
    output = await engine.run(made(diary).call)
    fetching = asyncio.create_task(output.fetch())
    await asyncio.sleep(0)

    fetching.cancel()
    await asyncio.wait([fetching])

    assert fetching.cancelled()
    assert len(await output.fetch()) == 5_000


async def test_an_output_is_gone_with_its_engine(client: Client, diary: str) -> None:
    async with DaskEngine(client, keep_bytes=1_000) as engine:
        call = RecordedCall(
            WorkflowStep("make", make),
            {"diary": diary, "size": 5_000},
            may_keep=True,
        )
        output = await engine.run(call.call)

    with pytest.raises(RuntimeError, match="not open"):
        await output.fetch()
    await asyncio.sleep(0)  # Dask forgets in the next turn
    assert not client.futures


# In runs.


async def test_a_consumer_of_a_lost_output_is_not_retried(
    engine: DaskEngine, cluster: LocalCluster, diary: str
) -> None:
    async def lose(order: object) -> None:
        (worker,) = [each for each in cluster.workers.values() if each.data]
        await worker.close()

    steps = [
        WorkflowStep("make", partial(make, diary, 5_000)),
        WorkflowStep("lose", partial(lose, None), ["make"], engine="local"),
        WorkflowStep("measure", measure, {"data": "make", "_": "lose"}, max_retries=3),
    ]
    report = await run_pipeline(steps, engine=engine)

    assert isinstance(report["measure"].error, OutputLostError)
    assert report["measure"].attempts == 1
    assert len(words(diary)) == 1


async def test_a_failure_among_200_steps_stops_them_all(engine: DaskEngine, diary: str) -> None:
    lingering = partial(linger, diary)
    steps = [
        WorkflowStep("fail", partial(fail, "too bad")),
        *[WorkflowStep(f"linger-{n}", lingering) for n in range(200)],
    ]
    started_s = time.monotonic()

    report = await run_pipeline(steps, engine=engine)

    assert time.monotonic() - started_s < 10
    assert [result.step_name for result in report.failed] == ["fail"]
    assert len(report.cancelled) + len(report.skipped) == 200
    assert words(diary).count("begin-body") == words(diary).count("end-body")


async def test_a_run_is_resumed_on_a_fresh_cluster(tmp_path: Path, diary: str) -> None:
    made, tried = f"{diary}-made", f"{diary}-tried"
    steps = [
        WorkflowStep("make", partial(make, made, 5_000)),
        WorkflowStep("other", partial(make, diary, 5_000)),
        WorkflowStep("measure", measure, {"data": "other"}),
        WorkflowStep("load", partial(fail_once, tried), {"data": "make", "size": "measure"}),
    ]
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        for passes in (False, True):
            async with (
                new_cluster() as cluster,
                DaskEngine(cluster.scheduler_address, keep_bytes=1_000) as engine,
            ):
                report = await run_pipeline(steps, engine=engine, journal=journal, run_id="r")
                assert report.all_passed is passes

    assert len(words(made)) == 2  # it stayed on the other cluster, and is needed
    assert len(words(diary)) == 1  # it is not


# Opening.


async def test_an_engine_opens_a_client_of_its_own_and_closes_it(cluster: LocalCluster) -> None:
    async with DaskEngine(cluster.scheduler_address) as engine:
        assert await engine.run(recorded(add, a=1).call) == 1
        with pytest.raises(RuntimeError, match="open already"):
            await engine.__aenter__()

    assert not cluster.scheduler.clients.keys() - {"fire-and-forget"}
    async with engine:  # again
        assert await engine.run(recorded(add, a=1).call) == 1


async def test_a_step_is_checked_before_anything_runs(engine: DaskEngine) -> None:
    lock = threading.Lock()

    async def unsendable() -> None:
        lock.locked()

    engine.check(WorkflowStep("step", add))
    with pytest.raises(TypeError, match="step 'step': its action can't be sent"):
        engine.check(WorkflowStep("step", unsendable))


async def test_an_engine_that_is_not_open_here_is_refused(engine: DaskEngine) -> None:
    step = WorkflowStep("step", add)

    with pytest.raises(RuntimeError, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(_check(engine, step)))
    with pytest.raises(RuntimeError, match="not open"):
        DaskEngine("tcp://127.0.0.1:1").check(step)


async def _check(engine: DaskEngine, step: WorkflowStep) -> None:
    engine.check(step)


async def test_an_engine_takes_an_address_or_an_asynchronous_client(client: Client) -> None:
    with pytest.raises(TypeError, match="not int"):
        DaskEngine(8786)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="asynchronous=True"):
        await asyncio.to_thread(lambda: DaskEngine(client))


async def test_a_client_of_another_loop_is_refused(client: Client) -> None:
    engine = DaskEngine(client)

    async def enter() -> None:
        await engine.__aenter__()

    with pytest.raises(RuntimeError, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(enter()))
    async with engine:  # it is not open by that
        pass


async def test_a_scheduler_that_is_not_there_is_said_at_once() -> None:
    with dask.config.set({"distributed.comm.timeouts.connect": "100ms"}):
        with pytest.raises(OSError, match=r"127\.0\.0\.1:1"):
            async with DaskEngine("tcp://127.0.0.1:1"):
                pass


async def test_a_scheduler_without_asyncflow_is_named(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'asyncflow'")

    monkeypatch.setattr(client, "register_plugin", missing)
    with pytest.raises(RuntimeError, match=r"install asyncflow-tiers\[dask\] there"):
        async with DaskEngine(client):
            pass


async def test_a_scheduler_without_a_fence_is_refused(client: Client) -> None:
    with pytest.raises(OSError, match="has no fence"):
        await open_wire(client.scheduler.address, "asyncflow_engine_0", "me", {})


def test_the_extra_is_named_if_dask_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.startswith("asyncflow.engines."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.setitem(sys.modules, "cloudpickle", None)  # it comes with the same extra

    with pytest.raises(ImportError, match=r"asyncflow-tiers\[dask\]"):
        importlib.import_module("asyncflow.engines.dask")
