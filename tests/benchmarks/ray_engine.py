"""Measures steps on a Ray cluster of two nodes against calls of a plain actor on each.

Run it in a network namespace of its own: ``make bench-ray``.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

sys.path.insert(0, "tests")

from ray_clusters import has_own_network, two_nodes, until

from asyncflow import WorkflowStep, run_pipeline
from tests.benchmarks.engines import Kind, rows_of
from tests.benchmarks.ratios import Row


class Actor:
    """Calls what it is given, as a user of Ray would write it."""

    async def call(self, function: Callable[[], Any]) -> Any:
        return function()


async def linger() -> None:
    await asyncio.sleep(60)


async def fail() -> None:
    await asyncio.sleep(2)
    raise RuntimeError


def plain_calls() -> Callable[[Callable[[], Any]], Awaitable[Any]]:
    """Return what calls a function in one of two actors."""
    import ray

    actor: Any = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(Actor)
    actors: Iterator[Any] = cycle([actor.remote(), actor.remote()])

    async def submit(function: Callable[[], Any]) -> Any:
        return await next(actors).call.remote(function)

    return submit


async def of_cancels(kind: Kind) -> AsyncIterator[Row]:
    steps = [WorkflowStep(f"s{n}", linger) for n in range(300)]
    running = asyncio.create_task(run_pipeline(steps, engine=kind.engine))
    await asyncio.sleep(2)
    began_s = time.perf_counter()
    running.cancel()
    await asyncio.wait([running])
    yield Row("ray: cancel of 300", (time.perf_counter() - began_s) * 1000, None, "ms")
    report = await run_pipeline([*steps[:200], WorkflowStep("fail", fail)], engine=kind.engine)
    ms = report.total_duration_ms - report["fail"].duration_ms
    yield Row("ray: fail-fast of 200", ms, None, "ms")


@asynccontextmanager
async def ray(address: str) -> AsyncIterator[Kind]:
    from asyncflow.engines.ray import RayEngine

    small: Any = {"cpus_per_host": 0, "hosts_per_node": 1}
    async with (
        RayEngine(address, **small) as engine,
        RayEngine(**small, resources={"first": 1}) as single,
    ):
        await until(lambda: len(engine._hosts._ready) == 2)
        submit = plain_calls()
        pids = await asyncio.gather(submit(os.getpid), submit(os.getpid))
        pids += [int(host.name.rpartition(":")[2]) for host in engine._hosts._ready]
        yield Kind("ray", engine, single, submit, lambda: pids)


def main() -> None:
    if not has_own_network():
        sys.exit("Ray needs a network namespace of its own: make bench-ray")
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        # With room for all outputs, which would go to the disk else.
        room = {"object_store_memory": 900 * 2**20}
        with two_nodes(Path(folder), resources={"first": 1}, **room) as cluster:
            for row in rows_of(partial(ray, cluster.address), 5, of_cancels):
                print(row.measured(), flush=True)


if __name__ == "__main__":
    main()
