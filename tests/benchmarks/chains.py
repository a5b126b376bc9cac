"""Items that flow through mapped steps, against semaphores and a TaskGroup by hand.

How long a chain takes is measured in virtual time, so it is the same on any machine.
"""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from random import Random
from typing import Any

from asyncflow import Pool, RunReport, WorkflowStep, run_pipeline
from asyncflow.testing import run_in_virtual_time
from tests.benchmarks.ratios import Row, compared, cpu_s

_SIZES = 20, 10, 5
_ITEMS = 200
_MANY = 10_000
_SLOTS = 100
Stage = Callable[[int], Awaitable[int]]


def chains(rounds: int) -> Iterator[Row]:
    ours, theirs = run_in_virtual_time(_flowing()), run_in_virtual_time(_by_hand())
    subject = f"chain of {_ITEMS} items, pools of 20, 10 and 5, until its end"
    yield Row(f"{subject} / by hand", ours[0] / theirs[0], 1.02)
    yield Row("   until its first item is done", ours[1] / theirs[1], 1.2)
    # An item has a result, attempts, and a slot that other runs share; a task has none of these.
    for count in (1, 2):
        yield compared(
            f"10,000 items, mapped steps in pools of 100: {count}",
            lambda count=count: cpu_s(lambda: _map(count)),
            lambda count=count: cpu_s(lambda: _map_by_hand(count)),
            min(rounds, 3),
        )
    _peak_mb(_MANY)  # what is imported when it is first needed
    yield Row(
        "keep_outputs=False: memory of 30,000 items / of 10,000",
        lambda: _peak_mb(3 * _MANY) / _peak_mb(_MANY),
        1.1,
    )


def _peak_mb(items: int) -> float:
    """Return how many MB a map that keeps no outputs takes at most."""

    async def numbers() -> Iterator[int]:
        return iter(range(items))

    steps = [
        WorkflowStep("source", numbers),
        WorkflowStep(
            "over source",
            _at_once,
            {"item": "source"},
            map_over="source",
            pool=Pool(_SLOTS),
            keep_outputs=False,
        ),
    ]
    tracemalloc.start()
    try:
        asyncio.run(run_pipeline(steps))
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


async def _at_once(item: int) -> int:
    return item


def _stages() -> tuple[list[Stage], list[float]]:
    """Return three actions that take random times, and when each item has left the last one."""
    random, ends = Random(3), []
    seconds = [[random.lognormvariate(0, 1) for _ in _SIZES] for _ in range(_ITEMS)]

    def stage(number: int) -> Stage:
        async def act(item: int) -> int:
            await asyncio.sleep(seconds[item][number])
            if number == len(_SIZES) - 1:
                ends.append(asyncio.get_running_loop().time())
            return item

        return act

    return [stage(number) for number in range(len(_SIZES))], ends


async def _flowing() -> tuple[float, float]:
    stages, ends = _stages()
    steps = [WorkflowStep("source", _numbers(_ITEMS))]
    for stage, size in zip(stages, _SIZES, strict=True):
        source = steps[-1].name
        steps.append(
            WorkflowStep(
                f"over {source}", stage, {"item": source}, map_over=source, pool=Pool(size)
            )
        )
    started = asyncio.get_running_loop().time()
    await run_pipeline(steps, schedule="ready")
    return max(ends) - started, min(ends) - started


async def _by_hand() -> tuple[float, float]:
    stages, ends = _stages()
    slots = [asyncio.Semaphore(size) for size in _SIZES]

    async def one(item: int) -> None:
        for stage, slot in zip(stages, slots, strict=True):
            async with slot:
                await stage(item)

    started = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as group:
        for item in range(_ITEMS):
            group.create_task(one(item))
    return max(ends) - started, min(ends) - started


def _numbers(count: int) -> Callable[[], Awaitable[range]]:
    async def numbers() -> range:
        return range(count)

    return numbers


async def _suspend(item: int) -> int:
    await asyncio.sleep(0)
    return item


async def _map(steps: int) -> RunReport:
    made = [WorkflowStep("source", _numbers(_MANY))]
    for _ in range(steps):
        source = made[-1].name
        made.append(
            WorkflowStep(
                f"over {source}", _suspend, {"item": source}, map_over=source, pool=Pool(_SLOTS)
            )
        )
    return await run_pipeline(made, schedule="ready")


async def _map_by_hand(steps: int) -> list[Any]:
    slots = [asyncio.Semaphore(_SLOTS) for _ in range(steps)]

    async def one(item: int) -> int:
        for slot in slots:
            async with slot:
                item = await asyncio.wait_for(_suspend(item), 30)
        return item

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(item)) for item in range(_MANY)]
    return [task.result() for task in tasks]
