"""What a run promises holds when its steps run on a Ray cluster."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

import process_work
import pytest
from ray_clusters import is_running

from asyncflow import (
    StepStatus,
    StepTimeoutError,
    WorkflowStep,
    current_step,
    run_pipeline,
)
from asyncflow.engines import RemoteOutput

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="session")]


def noted(folder: Path, kind: str) -> list[str]:
    """Return who has noted something in a folder."""
    return [path.name for path in folder.glob(f"{kind}-*")]


def long_step(name: str, folder: Path, **options: Any) -> WorkflowStep:
    """Return a step that takes a minute, and notes that it began, was cleaned up, or finished."""

    async def work() -> None:
        import asyncio

        (folder / f"began-{name}").touch()
        try:
            await asyncio.sleep(60)
            (folder / f"finished-{name}").touch()
        finally:
            await asyncio.sleep(0.05)
            (folder / f"cleaned-{name}").touch()

    return WorkflowStep(name, work, **options)


async def test_steps_run_on_hosts_and_know_their_attempt(engine: Any) -> None:
    async def first() -> tuple[int, str]:
        return os.getpid(), current_step().idempotency_key

    async def second(first: tuple[int, str]) -> int:
        return first[0]

    steps = [WorkflowStep("first", first), WorkflowStep("second", second, ["first"])]
    report = await run_pipeline(steps, engine=engine)

    report.raise_for_failures()
    pid, key = report["first"].output
    assert pid not in (os.getpid(), None)
    assert key == f"{report.run_id}/first"
    assert report["second"].output == pid
    assert report["first"].engine == "ray"
    assert report["first"].worker.endswith(f":{pid}")


async def test_an_error_comes_home_with_its_type_and_remote_traceback(engine: Any) -> None:
    async def fail() -> None:
        raise KeyError("missing")

    report = await run_pipeline([WorkflowStep("fail", fail)], engine=engine)

    error = report["fail"].error
    assert type(error) is KeyError
    assert error.args == ("missing",)
    assert ", in fail\n" in "".join(error.__notes__)


async def test_a_timeout_cancels_the_body_and_awaits_its_clean_up(
    engine: Any, tmp_path: Path
) -> None:
    began_s = time.monotonic()
    report = await run_pipeline([long_step("long", tmp_path, timeout_ms=500)], engine=engine)

    assert isinstance(report["long"].error, StepTimeoutError)
    assert noted(tmp_path, "cleaned") == ["cleaned-long"]
    assert time.monotonic() - began_s < 5


async def test_a_thread_that_exceeds_its_limit_is_abandoned(engine: Any, tmp_path: Path) -> None:
    def block() -> None:
        import time

        time.sleep(1.5)
        (tmp_path / "finished-block").touch()

    step = WorkflowStep("block", block, runs_in="thread", timeout_ms=300)
    report = await run_pipeline([step], engine=engine)

    assert isinstance(report["block"].error, StepTimeoutError)
    assert report["block"].abandoned
    assert not noted(tmp_path, "finished")


async def test_a_process_that_exceeds_its_limit_is_killed(engine: Any, tmp_path: Path) -> None:
    path = tmp_path / "pids"
    step = WorkflowStep("hang", process_work.hang, runs_in="process", timeout_ms=3_000)
    report = await run_pipeline([step], engine=engine, inputs={"path": str(path)})

    assert isinstance(report["hang"].error, StepTimeoutError)
    for pid in map(int, path.read_text().split()):
        assert not is_running(pid)


async def test_no_attempt_overlaps_an_abandoned_thread(engine: Any, tmp_path: Path) -> None:
    def block() -> None:
        import time

        with (tmp_path / "times").open("a") as file:
            file.write(f"{time.monotonic()}\n")
            file.flush()
            time.sleep(1)
            file.write(f"{time.monotonic()}\n")

    step = WorkflowStep("block", block, runs_in="thread", timeout_ms=300, max_retries=2)
    await run_pipeline([step], engine=engine)

    await asyncio.sleep(1)
    times = [float(line) for line in (tmp_path / "times").read_text().split()]
    assert len(times) == 4
    assert times == sorted(times)


async def test_heartbeats_reach_the_run(engine: Any) -> None:
    async def beat() -> str:
        import asyncio

        for _ in range(15):
            await asyncio.sleep(0.1)
            current_step().heartbeat()
        return "alive"

    async def hang() -> None:
        import asyncio

        await asyncio.sleep(60)

    steps = [
        WorkflowStep("beat", beat, heartbeat_ms=1000),
        WorkflowStep("hang", hang, heartbeat_ms=1000),
    ]
    report = await run_pipeline(steps, engine=engine, fail_fast=False)

    assert report["beat"].output == "alive"
    error = report["hang"].error
    assert isinstance(error, StepTimeoutError)
    assert error.kind == "heartbeat"


@pytest.mark.parametrize("delay_s", [0, 0.005, 0.05, 1])
async def test_after_a_burst_of_cancels_no_body_runs(
    engine: Any, tmp_path: Path, delay_s: float
) -> None:
    steps = [long_step(str(number), tmp_path) for number in range(300)]
    run = asyncio.create_task(run_pipeline(steps, engine=engine))
    while delay_s == 1 and len(noted(tmp_path, "began")) < 300:
        await asyncio.sleep(0.1)
    await asyncio.sleep(delay_s)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run

    began = noted(tmp_path, "began")
    assert len(noted(tmp_path, "cleaned")) == len(began)
    assert not noted(tmp_path, "finished")
    await asyncio.sleep(0.5)
    assert noted(tmp_path, "began") == began


async def test_a_failure_stops_200_bodies(engine: Any, tmp_path: Path) -> None:
    async def fail() -> None:
        import asyncio

        while len(list(tmp_path.glob("began-*"))) < 200:
            await asyncio.sleep(0.05)
        raise RuntimeError("no")

    steps = [long_step(str(number), tmp_path) for number in range(200)]
    report = await run_pipeline([WorkflowStep("fail", fail), *steps], engine=engine)

    assert report["fail"].status is StepStatus.FAILED
    assert len(report.cancelled) == 200
    assert len(noted(tmp_path, "cleaned")) == 200


async def test_what_can_not_be_sent_is_named(engine: Any) -> None:
    lock = threading.Lock()

    async def use_lock() -> None:
        with lock:
            pass

    async def take(value: object) -> None: ...

    async def make() -> object:
        import threading

        return threading.Lock()

    async def make_much() -> object:
        import threading

        return [bytes(3_000_000), threading.Lock()]

    async def take_much(make_much: object) -> None: ...

    with pytest.raises(TypeError, match=r"'lock': its action can't be sent"):
        await run_pipeline([WorkflowStep("lock", use_lock)], engine=engine)
    steps = [
        WorkflowStep("take", take),
        WorkflowStep("make", make),
        WorkflowStep("make_much", make_much),
        WorkflowStep("take_much", take_much, ["make_much"]),
    ]
    report = await run_pipeline(steps, engine=engine, inputs={"value": lock}, fail_fast=False)
    assert "argument 'value'" in str(report["take"].error)
    assert "its output" in str(report["make"].error)
    assert "its output" in str(report["make_much"].error)
    assert report["make_much"].attempts == 1


async def test_a_large_output_stays_and_is_brought_home_when_asked_for(engine: Any) -> None:
    async def make() -> bytes:
        return bytes(50_000_000)

    async def double(data: bytes) -> bytes:
        return data + data[:1]

    async def measure(data: bytes) -> int:
        return len(data)

    steps = [
        WorkflowStep("make", make),
        WorkflowStep("double", double, {"data": "make"}),
        WorkflowStep("measure", measure, {"data": "double"}),
    ]
    report = await run_pipeline(steps, engine=engine)

    report.raise_for_failures()
    output = report["double"].output
    assert isinstance(output, RemoteOutput)
    assert output.size >= 50_000_001
    assert report["measure"].output == 50_000_001
    assert len(await output.fetch()) == 50_000_001


async def test_10_000_steps(engine: Any) -> None:
    async def one() -> int:
        return 1

    steps = [WorkflowStep(f"step-{number}", one, timeout_ms=3_000) for number in range(10_000)]
    report = await run_pipeline(steps, engine=engine)

    report.raise_for_failures()
    assert sum(result.output for result in report.results) == 10_000
