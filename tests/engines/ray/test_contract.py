"""The contract of the engines, on a Ray cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import engine_work as do
import pytest
import pytest_asyncio
from engines.places import Place
from engines.test_contract import *  # noqa: F403  # its tests

from asyncflow import run_pipeline

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="session")]


@pytest_asyncio.fixture(params=["loop", "thread", "process"], loop_scope="session")
async def place(
    request: pytest.FixtureRequest, engine: Any, ray_folder: Path
) -> AsyncIterator[Place]:
    """An engine of the cluster of these tests."""
    from asyncflow.engines.ray import RayEngine

    def logs() -> str:
        files = [path for path in ray_folder.rglob("logs/*") if path.is_file()]
        return "".join(path.read_text(errors="replace") for path in files)

    yield Place(
        f"ray-{request.param}",
        request.param,
        engine,
        can_lose_workers=request.param != "process",  # it is not the worker that dies
        open_another=lambda: RayEngine(cpus_per_host=0, hosts_per_node=1),
        logs=logs,
    )


async def test_waiting_for_a_worker_does_not_count(engine: Any) -> None:
    # Where a host has room for all, no step waits.
    from asyncflow.engines.ray import RayEngine

    async with RayEngine(steps_per_host=2, cpus_per_host=0, hosts_per_node=1) as narrow:
        step = Place("ray-loop", "loop", narrow).step
        work = partial(do.work, 0.05), partial(do.work_plainly, 0.05)
        steps = [step(f"work-{n}", *work, timeout_ms=1000) for n in range(60)]
        report = await run_pipeline(steps, engine=narrow)

    report.raise_for_failures()
    assert max(result.queued_ms for result in report.results) > 100
