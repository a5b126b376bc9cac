"""The Dask engine on processes of their own, which are killed, retired and restarted."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask_work
import pytest
from dask_work import add, fail, linger, make, measure, pid, repeat, version, words
from distributed import Client, LocalCluster
from engine_calls import RecordedCall, RecordedNotes
from engines.dask.cluster import DaskCluster, other_python, until

from asyncflow import (
    NotSendableError,
    StepTimeoutError,
    WorkerLostError,
    WorkflowStep,
    run_pipeline,
)
from asyncflow.engines import RemoteOutput
from asyncflow.engines._dask import fence as dask_fence
from asyncflow.engines.dask import DaskEngine

pytestmark = pytest.mark.process

A_WHILE_S = 100
"""More than anything here takes on a machine that is busy, and less than Dask takes to notice."""


@pytest.fixture
async def client(dask_cluster: DaskCluster) -> AsyncIterator[Client]:
    async with Client(dask_cluster.address, asynchronous=True, set_as_default=False) as client:
        await client.wait_for_workers(2, timeout=A_WHILE_S)
        yield client


@pytest.fixture
async def engine(client: Client) -> AsyncIterator[DaskEngine]:
    async with DaskEngine(client, resources={"same": 1}) as engine:
        yield engine


@pytest.fixture
def lone_cluster(tmp_path: Path) -> Iterator[DaskCluster]:
    """A scheduler and one worker, to be killed."""
    cluster = DaskCluster(tmp_path)
    cluster.start_worker()
    try:
        yield cluster
    finally:
        cluster.close()


def recorded(action: Callable[..., Any], **arguments: Any) -> RecordedCall:
    return RecordedCall(WorkflowStep("step", action), arguments)


async def begun(call: RecordedCall) -> None:
    async with asyncio.timeout(A_WHILE_S):
        while not call.workers:
            await asyncio.sleep(0.005)


async def reach(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(until, condition, A_WHILE_S)


async def test_a_burst_of_cancels_ends_in_other_processes_too(
    engine: DaskEngine, diary: str
) -> None:
    running = [
        asyncio.create_task(engine.run(recorded(linger, diary=diary, name=str(n)).call))
        for n in range(300)
    ]
    await reach(lambda: len(words(diary)) >= 8)

    cancelled_s = time.monotonic()
    for each in running:
        each.cancel()
    await asyncio.wait(running)

    assert time.monotonic() - cancelled_s < A_WHILE_S
    assert all(each.cancelled() for each in running)
    assert not any(word.startswith("finish") for word in words(diary))
    assert len(words(diary)) == 16  # the worker has eight threads


async def test_a_killed_worker_is_told_of_at_once_and_no_other_body_begins(
    dask_cluster: DaskCluster, client: Client, diary: str
) -> None:
    victim = dask_cluster.start_worker("--resources=victim=8")
    async with DaskEngine(client, resources={"victim": 1}) as engine:
        call = recorded(linger, diary=diary)
        running = asyncio.create_task(engine.run(call.call))
        await begun(call)
        async with asyncio.timeout(A_WHILE_S):
            while not words(diary):  # the worker reports a body just before its first line
                await asyncio.sleep(0.01)
        killed_s = time.monotonic()

        dask_cluster.kill(victim)
        with pytest.raises(WorkerLostError) as caught:
            await running

        assert time.monotonic() - killed_s < A_WHILE_S
        assert call.workers[0].startswith(f"{caught.value.worker} (pid ")
        # Where Dask would run it again.
        heir = dask_cluster.start_worker("--resources=victim=8")
        assert await engine.run(recorded(add, a=1, b=2).call) == 3
        assert words(diary) == ["begin-body"]
        dask_cluster.kill(heir)


async def test_a_killed_scheduler_is_a_lost_worker_and_the_next_one_is_found(
    lone_cluster: DaskCluster, diary: str
) -> None:
    async with DaskEngine(lone_cluster.address) as engine:
        client = engine._client
        client._timeout = 1
        call = recorded(linger, diary=diary)
        running = asyncio.create_task(engine.run(call.call))
        await begun(call)
        killed_s = time.monotonic()

        lone_cluster.kill(lone_cluster.scheduler)
        with pytest.raises(WorkerLostError, match="connection to the Dask scheduler"):
            await running

        assert time.monotonic() - killed_s < A_WHILE_S
        await reach(lambda: words(diary) == ["begin-body", "end-body"])
        with dask.config.set({"distributed.comm.timeouts.connect": "300ms"}):
            with pytest.raises(WorkerLostError, match="there is no connection"):
                await engine.run(recorded(add, a=1, b=2).call)
        assert client.status == "closed"

        next_call = asyncio.create_task(engine.run(recorded(add, a=1, b=2).call))
        lone_cluster.start_scheduler()
        lone_cluster.start_worker()
        assert await next_call == 3


async def test_a_step_on_a_frozen_worker_times_out_when_dask_gives_the_worker_up(
    lone_cluster: DaskCluster, diary: str
) -> None:
    frozen = lone_cluster.processes[-1]
    step = WorkflowStep("x", partial(linger, diary), timeout_ms=1_000, max_retries=2)
    async with (
        Client(lone_cluster.address, asynchronous=True, set_as_default=False) as client,
        DaskEngine(client) as engine,
    ):
        running = asyncio.create_task(run_pipeline([step], engine=engine))
        await reach(lambda: words(diary))
        [address] = await client.nthreads()
        frozen.send_signal(signal.SIGSTOP)
        try:
            lone_cluster.start_worker()
            await asyncio.sleep(2)
            assert not running.done()  # it is unknown whether the body still runs

            await client.run_on_scheduler(give_up, address)
            async with asyncio.timeout(A_WHILE_S):
                report = await running

            assert [type(attempt.error) for attempt in report["x"].history] == [
                StepTimeoutError
            ] * 2
            assert words(diary) == ["begin-body", "begin-body", "end-body"]
        finally:
            frozen.send_signal(signal.SIGCONT)  # else the engine would wait for the body
        await reach(lambda: words(diary).count("end-body") == 2)  # it has lost the fence


async def give_up(address: str, dask_scheduler: Any) -> None:
    """Do what Dask does with a worker from which it has not heard for its ``worker-ttl``."""
    dask_fence._ANSWER_WITHIN_S = 1.0
    await dask_scheduler.remove_worker(address, stimulus_id="check-worker-ttl")


async def test_bodies_stop_when_their_submitter_is_killed(
    dask_cluster: DaskCluster, client: Client, diary: str
) -> None:
    submitter = subprocess.Popen(
        [
            *(sys.executable, "-c", "import dask_work; dask_work.main()"),
            *(dask_cluster.address, diary, "4"),
        ],
        env=os.environ | {"PYTHONPATH": str(Path(dask_work.__file__).parent)},
    )
    await reach(lambda: len(words(diary)) >= 4)

    submitter.kill()
    submitter.wait()

    await reach(lambda: words(diary).count("end-body") == 4)
    assert words(diary).count("begin-body") == 4


async def test_a_cluster_that_adapts_runs_everything_once(diary: str) -> None:
    async with adaptive_cluster() as cluster, DaskEngine(cluster.scheduler_address) as engine:
        first = [recorded(make, diary=diary, size=1) for _ in range(40)]
        await asyncio.gather(*[engine.run(call.call) for call in first])
        async with asyncio.timeout(A_WHILE_S):
            while cluster.workers:
                await asyncio.sleep(0.01)
        await engine.run(recorded(make, diary=diary, size=1).call)

    assert len(words(diary)) == 41


@asynccontextmanager
async def adaptive_cluster() -> AsyncIterator[LocalCluster]:
    async with LocalCluster(
        n_workers=0,
        threads_per_worker=2,
        processes=False,
        asynchronous=True,
        dashboard_address="127.0.0.1:0",
        host="127.0.0.1",
        protocol="tcp",
    ) as cluster:
        adaptive = cluster.adapt(minimum=0, maximum=3, interval="50ms", wait_count=2)
        try:
            yield cluster
        finally:
            adaptive.stop()


async def test_100_mb_stay_where_they_are(engine: DaskEngine, diary: str) -> None:
    megabytes = 2**20
    step = WorkflowStep("make", make)
    arguments = {"diary": diary, "size": 100 * megabytes}
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    data = await engine.run(RecordedCall(step, arguments, may_keep=True).call)
    answers = [await engine.run(recorded(measure, data=data).call) for _ in range(3)]

    assert isinstance(data, RemoteOutput)
    assert data.size >= 100 * megabytes
    assert {length for _, length in answers} == {100 * megabytes}
    assert words(diary) == [f"make-{process}" for process, _ in answers[:1]]
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    assert grown_kb < 50_000


async def test_no_secret_is_in_a_log_of_the_cluster(
    engine: DaskEngine, dask_cluster: DaskCluster, client: Client
) -> None:
    secret, notes = "hunter" + "2" * 3, RecordedNotes()

    answer = await engine.run(
        RecordedCall(WorkflowStep("step", repeat), {"secret": secret}, notes=notes).call
    )
    with pytest.raises(ValueError, match=secret):
        await engine.run(recorded(fail, message=secret).call)
    with pytest.raises(TypeError):
        await engine.run(recorded(add, a=secret, b=1).call)

    assert answer == secret
    assert any(secret in str(said) for said in notes.said)
    events = await client.run_on_scheduler(lambda dask_scheduler: repr(dask_scheduler.get_events()))
    assert secret not in dask_cluster.logs()
    assert secret not in events


async def test_1_000_steps_run_and_1_000_time_out(engine: DaskEngine, diary: str) -> None:
    steps = [WorkflowStep(f"add-{n}", partial(add, n, 1)) for n in range(1_000)]
    report = await run_pipeline(steps, engine=engine)

    assert [result.output for result in report.results] == list(range(1, 1_001))

    steps = [
        WorkflowStep(f"linger-{n}", partial(linger, diary, str(n)), timeout_ms=5)
        for n in range(1_000)
    ]
    report = await run_pipeline(steps, engine=engine, fail_fast=False)

    assert {type(result.error) for result in report.results} == {StepTimeoutError}
    begun = [word for word in words(diary) if word.startswith("begin")]
    assert len(words(diary)) == 2 * len(set(begun)) <= 2_000


# Another Python.


@pytest.fixture
async def other(client: Client) -> AsyncIterator[DaskEngine]:
    if other_python() is None:
        pytest.skip("needs an environment with another Python: set ASYNCFLOW_OTHER_PYTHON")
    async with DaskEngine(client, resources={"other": 1}) as engine:
        yield engine


async def test_an_importable_action_runs_in_another_python(other: DaskEngine) -> None:
    assert await other.run(recorded(version).call) != sys.version_info[:2]
    with pytest.raises(ValueError, match="too bad"):
        await other.run(recorded(fail, message="too bad").call)


async def test_a_closure_is_refused_by_name_in_another_python(
    other: DaskEngine, engine: DaskEngine
) -> None:
    offset = 1

    async def closure(a: int) -> int:
        return a + offset

    assert await engine.run(recorded(closure, a=1).call) == 2
    with pytest.raises(NotSendableError, match="closure"):
        await other.run(recorded(closure, a=1).call)
    assert isinstance(await other.run(recorded(pid).call), int)  # its worker is there
