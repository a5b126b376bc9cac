"""Chains of mapped steps in other libraries: ``make bench-peers``.

The same chain of 200 items runs by hand, in asyncflow, in pydantic-graph, in AntFlow and as tasks
that Prefect maps over each other. Time is real, because Prefect has threads and a server. What is
printed is the time until the last and the first item have left the chain, as ratios to semaphores
by hand in the same process. A library that can't be imported is named, and so is one that fails.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

from asyncflow import Pool, WorkflowStep, run_pipeline

_SIZES = 20, 10, 5
_ITEMS = 200
_UNIT_S = 0.02
"""How many seconds an action takes in the median."""
_MAKESPAN, _FIRST_ITEM = 1.05, 1.5
"""What asyncflow must reach; these are real seconds, so more than in virtual time."""

_random = Random(3)
_SECONDS = [[_UNIT_S * _random.lognormvariate(0, 1) for _ in _SIZES] for _ in range(_ITEMS)]


class Measured(NamedTuple):
    """Seconds from the start of a chain."""

    last: float
    first: float


class _Ends:
    """When items have left the chain."""

    def __init__(self) -> None:
        self._started, self._times = time.perf_counter(), list[float]()

    def add(self) -> None:
        self._times.append(time.perf_counter() - self._started)

    @property
    def measured(self) -> Measured:
        assert len(self._times) == _ITEMS, f"{len(self._times)} items have left the chain"
        return Measured(max(self._times), min(self._times))


def _acts(ends: _Ends) -> list[Callable[[int], Awaitable[int]]]:
    def act_of(stage: int) -> Callable[[int], Awaitable[int]]:
        async def act(item: int) -> int:
            await asyncio.sleep(_SECONDS[item][stage])
            if stage == len(_SIZES) - 1:
                ends.add()
            return item

        return act

    return [act_of(stage) for stage in range(len(_SIZES))]


async def by_hand() -> Measured:
    """Run the chain with a semaphore for each stage."""
    ends = _Ends()
    acts, slots = _acts(ends), [asyncio.Semaphore(size) for size in _SIZES]

    async def one(item: int) -> None:
        for act, slot in zip(acts, slots, strict=True):
            async with slot:
                await act(item)

    async with asyncio.TaskGroup() as group:
        for item in range(_ITEMS):
            group.create_task(one(item))
    return ends.measured


async def with_asyncflow() -> Measured:
    """Run the chain as mapped steps, each in a pool."""
    ends = _Ends()

    async def source() -> range:
        return range(_ITEMS)

    steps = [WorkflowStep("source", source)]
    for act, size in zip(_acts(ends), _SIZES, strict=True):
        before = steps[-1].name
        step = WorkflowStep(
            f"over {before}", act, {"item": before}, map_over=before, pool=Pool(size)
        )
        steps.append(step)
    await run_pipeline(steps, schedule="ready")
    return ends.measured


async def with_pydantic_graph() -> Measured:
    """Run the chain as nodes after a ``map``, each with a semaphore: a graph has no pools."""
    from pydantic_graph import GraphBuilder, StepContext, reduce_list_append

    ends = _Ends()
    graph: Any = GraphBuilder(output_type=list[int])

    def node_of(stage: int, act: Callable[[int], Awaitable[int]], size: int) -> Any:
        slot = asyncio.Semaphore(size)

        async def node(context: StepContext[None, None, Any]) -> int:
            async with slot:
                return await act(context.inputs)

        return graph.step(node_id=f"stage {stage}")(node)

    async def source(context: StepContext[None, None, None]) -> list[int]:
        return list(range(_ITEMS))

    begin = graph.step(node_id="source")(source)
    nodes = [node_of(at, *each) for at, each in enumerate(zip(_acts(ends), _SIZES, strict=True))]
    collect = graph.join(reduce_list_append, initial_factory=list[int])
    graph.add(
        graph.edge_from(graph.start_node).to(begin),
        graph.edge_from(begin).map().to(nodes[0]),
        *(graph.edge_from(one).to(other) for one, other in pairwise(nodes)),
        graph.edge_from(nodes[-1]).to(collect),
        graph.edge_from(collect).to(graph.end_node),
    )
    await graph.build().run(state=None, deps=None, inputs=None)
    return ends.measured


async def with_antflow() -> Measured:
    """Run the chain as stages, each with workers."""
    from antflow import Pipeline, Stage

    ends = _Ends()
    stages = [
        Stage(name=f"stage {at}", workers=size, tasks=[act], task_attempts=1)
        for at, (act, size) in enumerate(zip(_acts(ends), _SIZES, strict=True))
    ]
    await Pipeline(stages).run(range(_ITEMS))
    return ends.measured


async def with_prefect() -> Measured:
    """Run the chain as tasks that are mapped over the futures of others.

    A semaphore limits each, because tags limit tasks through a server only.
    """
    from prefect import flow, task
    from prefect.task_runners import ThreadPoolTaskRunner

    ends: list[_Ends] = []

    def task_of(stage: int, size: int) -> Any:
        slot = threading.Semaphore(size)

        def act(item: int) -> int:
            with slot:
                time.sleep(_SECONDS[item][stage])
                if stage == len(_SIZES) - 1:
                    ends[0].add()
            return item

        return task(name=f"stage {stage}")(act)

    tasks = [task_of(stage, size) for stage, size in enumerate(_SIZES)]

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=len(_SIZES) * _ITEMS))  # type: ignore[arg-type]
    def chain() -> None:
        ends.append(_Ends())  # without the start of its server
        found: Any = list(range(_ITEMS))
        for each in tasks:
            found = each.map(found)
        found.wait()

    await asyncio.to_thread(chain)
    return ends[0].measured


_CHAINS: dict[str, Callable[[], Awaitable[Measured]]] = {
    "asyncflow": with_asyncflow,
    "pydantic-graph": with_pydantic_graph,
    "antflow": with_antflow,
    "prefect": with_prefect,
}


_PREFECT = {
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}


def main() -> int:
    """Print a row for each library, and return whether asyncflow is within its limits."""
    reached = False
    os.environ |= _PREFECT
    print(f"{_ITEMS} items, three steps, {_SIZES} at once; by hand is 1.00")
    for name, chain in _CHAINS.items():
        hand = asyncio.run(by_hand())
        try:
            found = asyncio.run(chain())
        except ImportError as error:
            print(f"{name:<24} not installed here: {error}")
            continue
        except Exception as error:  # one library must not hide the others
            print(f"{name:<24} failed: {type(error).__name__}: {error}")
            continue
        last, first = found.last / hand.last, found.first / hand.first
        label = name if name == "asyncflow" else f"{name} {version(name)}"
        print(f"{label:<24} last item {last:6.2f}   first item {first:6.2f}", flush=True)
        if name == "asyncflow":
            reached = last <= _MAKESPAN and first <= _FIRST_ITEM
    print("asyncflow is within its limits" if reached else "asyncflow is NOT within its limits")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
