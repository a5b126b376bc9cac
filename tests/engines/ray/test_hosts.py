"""Where the hosts of a Ray engine are, who gets them, and what they leave behind."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from engine_calls import RecordedCall
from ray_clusters import NODE, is_running, until

from asyncflow import WorkflowStep, run_pipeline
from asyncflow.engines import RemoteOutput
from asyncflow.journal import SQLiteJournal

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="session")]

SMALL: Any = {"cpus_per_host": 0, "hosts_per_node": 1}
"""The options of an engine beside the one that all tests share."""


async def pid() -> int:
    return os.getpid()


def pid_call() -> RecordedCall:
    async def pid() -> int:
        return os.getpid()

    return RecordedCall(WorkflowStep("pid", pid))


async def test_attempts_are_spread_over_the_nodes(engine: Any) -> None:
    async def where() -> str:
        import asyncio

        import ray

        await asyncio.sleep(0.2)
        return ray.get_runtime_context().get_node_id()

    await until(lambda: len(engine._hosts._ready) == 2)
    steps = [WorkflowStep(f"where-{number}", where) for number in range(6)]
    report = await run_pipeline(steps, engine=engine)

    nodes = [result.output for result in report.results]
    assert {nodes.count(node) for node in nodes} == {3}


async def test_a_step_goes_to_the_node_of_its_input(engine: Any) -> None:
    async def make() -> bytes:
        return bytes(2_000_000)

    async def take(data: bytes) -> int:
        return len(data)

    made = RecordedCall(WorkflowStep("make", make), may_keep=True)
    output = await engine.run(made.call)
    for _ in range(3):
        taken = RecordedCall(WorkflowStep("take", take), {"data": output})
        await engine.run(taken.call)
        assert taken.workers == made.workers


async def test_a_new_node_gets_hosts(cluster: Any, engine: Any) -> None:
    node = cluster.add_node(**NODE)
    try:
        await until(lambda: len(engine._hosts._ready) == 3)
    finally:
        cluster.remove_node(node)
    await until(lambda: len(engine._hosts._ready) == 2)


async def test_attempts_beyond_the_room_of_a_host_wait_here_and_are_taken_back_at_once(
    cluster: Any, engine: Any, tmp_path: Path
) -> None:
    from asyncflow.engines.ray import RayEngine

    async def block() -> None:
        import time

        (tmp_path / str(os.getpid())).touch()
        time.sleep(1)

    async with RayEngine(steps_per_host=1, **SMALL) as narrow:
        await until(lambda: len(narrow._hosts._ready) == 2)
        calls = [RecordedCall(WorkflowStep("block", block)) for _ in range(4)]
        tasks = [asyncio.create_task(narrow.run(each.call)) for each in calls]
        await until(lambda: len(list(tmp_path.iterdir())) == 2)
        tasks[3].cancel()
        await asyncio.sleep(0.1)
        assert tasks[3].cancelled()
        assert sum(len(each.workers) for each in calls) == 2
        await asyncio.gather(*tasks[:3])
        assert [len(each.workers) for each in calls] == [1, 1, 1, 0]


async def test_a_cluster_without_room_is_refused(engine: Any) -> None:
    from asyncflow.engines.ray import RayEngine

    with pytest.raises(RuntimeError, match=r"no node .* has room .* reserves {'GPU': 1"):
        async with RayEngine(resources={"GPU": 1}):
            pass


async def test_a_host_that_can_not_start_fails_the_opening(engine: Any) -> None:
    from asyncflow.engines.ray import RayEngine

    with pytest.raises(RuntimeError, match="can't start"):
        async with RayEngine(runtime_env={"conda": "no-such-environment"}, **SMALL):
            pass


async def test_hosts_end_with_their_engine_and_the_connection_stays(engine: Any) -> None:
    import ray

    from asyncflow.engines.ray import RayEngine

    other = RayEngine(**SMALL)
    with pytest.raises(RuntimeError, match="not open"):
        other.check(WorkflowStep("pid", pid))
    async with other:
        host = await other.run(pid_call().call)
        with pytest.raises(RuntimeError, match="open already"):
            await other.__aenter__()
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(other.run(pid_call().call)))
    await until(lambda: not is_running(host))
    assert ray.is_initialized()
    assert await engine.run(pid_call().call) != host


async def test_a_closed_engine_fails_what_still_runs(engine: Any) -> None:
    from asyncflow import WorkerLostError
    from asyncflow.engines.ray import RayEngine

    async def hang() -> None:
        import asyncio

        await asyncio.sleep(600)

    other = RayEngine(**SMALL)
    async with other:
        call = RecordedCall(WorkflowStep("hang", hang))
        running = asyncio.create_task(other.run(call.call))
        await until(lambda: call.workers)
    with pytest.raises(WorkerLostError, match=r"ray\.kill"):
        await running


async def test_a_run_is_resumed_with_hosts_that_know_nothing_of_it(
    engine: Any, tmp_path: Path
) -> None:
    from asyncflow.engines.ray import RayEngine

    path = tmp_path / "makes"

    async def make() -> bytes:
        with path.open("a") as file:
            file.write(".")
        return bytes(2_000_000)

    async def count(make: bytes) -> int:
        return len(make)

    async def end(count: int) -> int:
        if not (tmp_path / "mended").exists():
            raise RuntimeError("not yet")
        return count

    steps = [
        WorkflowStep("make", make),
        WorkflowStep("count", count, ["make"]),
        WorkflowStep("end", end, ["count"]),
    ]
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        async with RayEngine(**SMALL) as first:
            report = await run_pipeline(steps, engine=first, journal=journal, run_id="r")
            assert isinstance(report["make"].output, RemoteOutput)
            assert not report.all_passed
        (tmp_path / "mended").touch()
        async with RayEngine(**SMALL) as second:
            report = await run_pipeline(steps, engine=second, journal=journal, run_id="r")

    assert report["end"].output == 2_000_000
    assert path.read_text() == "."  # nothing needed the lost output


async def test_no_log_of_the_cluster_has_a_value_of_a_step(
    engine: Any, ray_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "sEcReT-" + os.urandom(8).hex()

    async def fail(token: str) -> None:
        raise ValueError(f"refused {token}")

    async def keep(token: str) -> list[str]:
        return [token] * 200_000

    async def break_(keep: list[str]) -> object:
        import threading

        return keep[0], threading.Lock()

    async def die(token: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    caplog.set_level(logging.DEBUG)
    logging.getLogger("asyncflow").setLevel(logging.WARNING)
    steps = [
        WorkflowStep("fail", fail),
        WorkflowStep("keep", keep),
        WorkflowStep("break", break_, ["keep"]),
        WorkflowStep("die", die, ["keep"]),
    ]
    report = await run_pipeline(
        steps, engine=engine, inputs={"token": secret}, secret_inputs=["token"], fail_fast=False
    )
    assert len(report.failed) == 3
    await until(lambda: len(engine._hosts._ready) == 2)

    files = [path for path in ray_folder.rglob("*") if path.is_file()]
    assert any(path.name.startswith("raylet") for path in files)
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
    assert secret not in caplog.text
