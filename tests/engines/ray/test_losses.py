"""What becomes of attempts and outputs when a process or a node of a Ray cluster is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from engine_calls import RecordedCall
from ray_clusters import NODE, is_running, until

from asyncflow import (
    OutputLostError,
    WorkerLostError,
    WorkflowStep,
    current_step,
    run_pipeline,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="session")]


async def test_a_killed_host_fails_its_attempts_at_once_and_is_replaced(
    engine: Any, tmp_path: Path
) -> None:
    async def work() -> int:
        import asyncio

        step = current_step()
        (tmp_path / step.step_name).write_text(str(os.getpid()))
        while step.attempt == 1:
            await asyncio.sleep(0.1)
        return os.getpid()

    names = ["lost", "retried"]
    steps = [WorkflowStep(name, work, max_retries=1 + (name == "retried")) for name in names]
    run = asyncio.create_task(run_pipeline(steps, engine=engine, fail_fast=False))
    paths = [tmp_path / name for name in names]
    await until(lambda: all(path.exists() and path.read_text() for path in paths))
    killed = {int(path.read_text()) for path in paths}
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    seconds = await until(lambda: not engine._hosts._ready, 10)
    print(f"noticed a killed host after {seconds * 1000:.0f} ms")
    report = await asyncio.wait_for(run, 60)

    assert report["retried"].output not in killed
    assert isinstance(report["retried"].history[0].error, WorkerLostError)
    error = report["lost"].error
    assert isinstance(error, WorkerLostError)
    assert error.reason == "its worker process has died"
    assert int(error.worker.rpartition(":")[2]) in killed
    await until(lambda: len(engine._hosts._ready) == 2)


async def test_an_output_of_a_lost_node_fails_its_consumer_for_good(
    cluster: Any, engine: Any, tmp_path: Path
) -> None:
    from asyncflow.engines.ray import RayEngine

    async def make() -> bytes:
        with (tmp_path / "makes").open("a") as file:
            file.write("made\n")
        return bytes(5_000_000)

    async def take(make: bytes) -> None: ...

    options = {**NODE, "num_cpus": 0, "resources": {"special": 1}}
    node = cluster.add_node(**options)
    options_of_hosts: Any = {"resources": {"special": 1}, "cpus_per_host": 0}
    async with RayEngine(hosts_per_node=1, **options_of_hosts) as special:

        async def lose_node() -> None:
            """Replace the node while no step runs there."""
            lost = special._hosts._ready[0]
            cluster.remove_node(node, allow_graceful=False)
            seconds = await until(lambda: not special._hosts._ready)
            print(f"noticed a lost node after {seconds * 1000:.0f} ms")
            nodes.append(cluster.add_node(**options))
            await until(lambda: special._hosts._ready and lost not in special._hosts._ready)

        nodes: list[Any] = []
        steps = [
            WorkflowStep("make", make, engine=special),
            WorkflowStep("lose_node", lose_node, ["make"], engine="local", timeout_ms=None),
            WorkflowStep("take", take, ["make", "lose_node"], engine=special, max_retries=3),
        ]
        report = await run_pipeline(steps)
        cluster.remove_node(nodes[0])

        assert isinstance(report["take"].error, OutputLostError)
        assert (report["take"].error.step_name, report["take"].error.parameter) == ("make", "make")
        assert report["take"].attempts == 1
        assert (tmp_path / "makes").read_text() == "made\n"
        with pytest.raises(OutputLostError):
            await report["make"].output.fetch()


SUBMITTER = """
import asyncio, os, sys
from asyncflow import WorkflowStep, run_pipeline
from asyncflow.engines.ray import RayEngine

async def work(path: str) -> None:
    with open(path + ".part", "w") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".part", path)
    await asyncio.sleep(600)

async def main() -> None:
    async with RayEngine(sys.argv[1], cpus_per_host=0, hosts_per_node=1) as engine:
        steps = [WorkflowStep("work", work)]
        await run_pipeline(steps, inputs={"path": sys.argv[2]}, engine=engine)

asyncio.run(main())
"""


async def test_hosts_end_with_the_process_that_opened_their_engine(
    cluster: Any, tmp_path: Path
) -> None:
    path = tmp_path / "pid"
    submitter = subprocess.Popen([sys.executable, "-c", SUBMITTER, cluster.address, str(path)])
    try:
        await until(path.exists, 100)
        host = int(path.read_text())
        assert is_running(host)
    finally:
        submitter.kill()
        submitter.wait()
    seconds = await until(lambda: not is_running(host), 30)
    print(f"a host ended {seconds * 1000:.0f} ms after its submitter")


async def test_a_host_that_does_not_answer_is_reported_and_then_awaited(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncflow.engines.ray.UNCONFIRMED_S", 0.5)

    async def work() -> None:
        import asyncio

        try:
            await asyncio.sleep(600)
        finally:
            (tmp_path / "cleaned").touch()

    call = RecordedCall(WorkflowStep("work", work))
    run = asyncio.create_task(engine.run(call.call))
    await until(lambda: call.workers)
    (worker,) = call.workers
    pid = int(worker.rpartition(":")[2])
    os.kill(pid, signal.SIGSTOP)
    try:
        run.cancel()
        await until(lambda: call.reasons, 10)
        assert not run.done()
        assert not (tmp_path / "cleaned").exists()
    finally:
        os.kill(pid, signal.SIGCONT)
    with pytest.raises(asyncio.CancelledError):
        await run
    assert call.reasons == [f"{worker} has not answered for 0.5 s"]
    assert (tmp_path / "cleaned").exists()


WITHOUT_GCS = """
import asyncio, os, signal, sys
import ray
from asyncflow import WorkflowStep, run_pipeline
from asyncflow.engines.ray import RayEngine

async def one(n):
    return n + 1

async def main():
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=100 * 2**20,
             log_to_driver=False, _temp_dir=sys.argv[1])
    async with RayEngine() as engine:
        gcs = ray._private.worker._global_node.all_processes["gcs_server"][0].process
        os.kill(gcs.pid, signal.SIGKILL)
        await asyncio.sleep(1)
        for n in range(20):
            report = await run_pipeline([WorkflowStep("one", one)], inputs={"n": n}, engine=engine)
            assert report["one"].output == n + 1
        print("went on", flush=True)
        os._exit(0)

asyncio.run(main())
"""


async def test_steps_run_on_without_the_control_service_of_the_cluster(ray_folder: Path) -> None:
    # With a cluster of its own, since that has not survived by then.
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WITHOUT_GCS, str(ray_folder / "b")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, errors = await process.communicate()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert b"went on" in output, errors.decode()
