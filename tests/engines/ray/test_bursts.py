"""Bursts, many steps and large outputs on a Ray cluster."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from asyncflow import NotSendableError, StepStatus, WorkflowStep, run_pipeline

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="session")]


def noted(folder: Path, kind: str) -> list[str]:
    """Return who has noted something in a folder."""
    return [path.name for path in folder.glob(f"{kind}-*")]


def long_step(name: str, folder: Path, **options: Any) -> WorkflowStep:
    """Return a step that takes a minute, and notes that it began, was cleaned up, or finished."""

    async def work() -> None:
        (folder / f"began-{name}").touch()
        try:
            await asyncio.sleep(60)
            (folder / f"finished-{name}").touch()
        finally:
            await asyncio.sleep(0.05)
            (folder / f"cleaned-{name}").touch()

    return WorkflowStep(name, work, **options)


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
        while len(list(tmp_path.glob("began-*"))) < 200:
            await asyncio.sleep(0.05)
        raise RuntimeError("no")

    steps = [long_step(str(number), tmp_path) for number in range(200)]
    report = await run_pipeline([WorkflowStep("fail", fail), *steps], engine=engine)

    assert report["fail"].status is StepStatus.FAILED
    assert len(report.cancelled) == 200
    assert len(noted(tmp_path, "cleaned")) == 200


async def test_an_output_that_would_stay_but_can_not_be_pickled_is_named(engine: Any) -> None:
    async def make() -> object:
        return [bytes(3_000_000), threading.Lock()]

    async def take(make: object) -> None: ...

    steps = [WorkflowStep("make", make, max_retries=3), WorkflowStep("take", take, ["make"])]
    report = await run_pipeline(steps, engine=engine)

    error = report["make"].error
    assert isinstance(error, NotSendableError)
    assert error.subject == "its output"
    assert report["make"].attempts == 1


async def test_10_000_steps(engine: Any) -> None:
    async def one() -> int:
        return 1

    steps = [WorkflowStep(f"step-{number}", one, timeout_ms=3_000) for number in range(10_000)]
    report = await run_pipeline(steps, engine=engine)

    report.raise_for_failures()
    assert sum(result.output for result in report.results) == 10_000
