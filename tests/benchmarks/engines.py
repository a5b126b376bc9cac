"""Measures steps on engines against the calls that they stand for, with as many workers.

A fan's cost is CPU time, of the run and of all processes of the engine, so that the load of the
machine does not matter. What several workers gain, and what moving data takes, is real time; the
workers need no processor for it.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.util import find_spec
from multiprocessing import active_children, get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

from asyncflow import WorkflowStep, run_pipeline
from asyncflow.engines.executor import ExecutorEngine
from tests.benchmarks.ratios import Ratio, Row, seconds

FAN, CHAIN, MANY = 200, 50, 3_000
LARGE = 100_000_000
MAX_OF_A_CALL = 2.0
MIN_SPEEDUP = 1.3

_GIL = Lock()
_TICKS = os.sysconf("SC_CLK_TCK")


def nothing() -> int:
    return 1


async def nothing_async() -> int:
    return 1


def work() -> int:
    """Take time as work that needs the GIL does, one at a time in a process, but no processor.

    So other processes of the machine make it no longer.
    """
    with _GIL:
        time.sleep(0.05)
    return 1


def make() -> bytes:
    return bytes(LARGE)


def change(data: bytes) -> bytes:
    return data[:-1] + b"x"


def length(data: bytes) -> int:
    return len(data)


class Kind:
    """An engine to measure.

    Attributes:
        name: What the rows call it.
        engine: The engine, with two workers.
        single: The same with one worker.
        submit: Makes a call without asyncflow.
        pids: The processes that work for it.
    """

    def __init__(
        self,
        name: str,
        engine: Any,
        single: Any,
        submit: Callable[[Callable[[], Any]], Awaitable[Any]],
        pids: Callable[[], Sequence[int]],
    ) -> None:
        self.name = name
        self.engine = engine
        self.single = single
        self.submit = submit
        self.pids = pids

    async def run(self, steps: Sequence[WorkflowStep], engine: Any = None) -> Any:
        report = await run_pipeline(steps, engine=engine or self.engine)
        report.raise_for_failures()
        return report

    def cpu_s(self) -> float:
        """Return the CPU seconds that this process and those of the engine have taken."""
        return time.process_time() + sum(map(_cpu_s_of, self.pids()))


def _cpu_s_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@asynccontextmanager
async def process_pool() -> AsyncIterator[Kind]:
    def pool(workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))

    raw = pool(2)
    async with AsyncExitStack() as stack:
        stack.callback(raw.shutdown)
        engine = await stack.enter_async_context(ExecutorEngine(partial(pool, 2)))
        single = await stack.enter_async_context(ExecutorEngine(partial(pool, 1)))
        yield Kind(
            "process pool",
            engine,
            single,
            lambda call: asyncio.wrap_future(raw.submit(call)),
            lambda: [child.pid for child in active_children() if child.pid is not None],
        )


@asynccontextmanager
async def dask() -> AsyncIterator[Kind]:
    from distributed import Client

    from asyncflow.engines.dask import DaskEngine
    from tests.engines.dask.cluster import DaskCluster

    with TemporaryDirectory() as folder:
        cluster = DaskCluster(Path(folder))
        try:
            workers = [
                cluster.start_worker(f"--resources={names}", threads=1)
                for names in ("any=1000,first=1000", "any=1000")
            ]
            async with (
                Client(cluster.address, asynchronous=True, set_as_default=False) as client,
                DaskEngine(client, resources={"any": 1}) as engine,
                DaskEngine(client, resources={"first": 1}) as single,
            ):
                await client.wait_for_workers(2)
                pids = [process.pid for process in (cluster.scheduler, *workers)]
                yield Kind(
                    "dask",
                    engine,
                    single,
                    lambda call: client.submit(call, pure=False),
                    lambda: pids,
                )
        finally:
            cluster.close()


def of_a_fan(kind: Kind, wait: Callable[[Awaitable[float]], float], rounds: int) -> Iterator[Row]:
    async def theirs() -> list[Any]:
        return await asyncio.gather(*[kind.submit(nothing) for _ in range(FAN)])

    for action, runs_in in ((nothing, "thread"), (nothing_async, "loop")):
        steps: list[Any] = [
            WorkflowStep(f"s{n}", action, runs_in=runs_in, timeout_ms=None)  # type: ignore[call-overload]
            for n in range(FAN)
        ]
        value = Ratio(
            lambda steps=steps: wait(seconds(lambda: kind.run(steps), clock=kind.cpu_s)),
            lambda: wait(seconds(theirs, clock=kind.cpu_s)),
            rounds,
        )
        # A pool of processes gets no call before a worker is free for it, since a time limit counts
        # from there; its own queue would save it a turn of the loop and of a thread for each call.
        limit = MAX_OF_A_CALL if kind.engine.tells_began else None
        yield Row(f"{kind.name}: fan of {FAN}, {runs_in} / plain calls", value, limit)


async def of_a_chain(kind: Kind) -> AsyncIterator[Row]:
    steps = [
        WorkflowStep(f"s{n}", nothing_async, [f"s{n - 1}"] if n else [], timeout_ms=None)
        for n in range(CHAIN)
    ]
    await kind.run(steps)
    began_s = time.perf_counter()
    await kind.run(steps)
    value = (time.perf_counter() - began_s) / CHAIN * 1000
    yield Row(f"{kind.name}: a step of a chain", value, None, "ms")


def of_two_workers(kind: Kind, wait: Callable[[Awaitable[float]], float]) -> Iterator[Row]:
    steps = [WorkflowStep(f"s{n}", work, runs_in="thread", timeout_ms=None) for n in range(8)]

    def real_s(engine: Any) -> float:
        return wait(seconds(lambda: kind.run(steps, engine), clock=time.perf_counter))

    value = Ratio(lambda: real_s(kind.engine), lambda: real_s(kind.single), 3)
    subject = f"{kind.name}: 8 steps of 50 ms, two workers / one"
    yield Row(subject, value, round(1 / MIN_SPEEDUP, 2))


async def of_data(kind: Kind) -> AsyncIterator[Row]:
    if not kind.engine.moves_data:
        return
    seconds, megabytes = {}, {}
    here: Any = "local"
    for where, runs_in in (("stays", "engine"), ("comes home", "local")):
        steps: list[WorkflowStep] = [WorkflowStep("d0", make, runs_in="thread")]
        steps += [
            WorkflowStep(f"d{n}", change, {"data": f"d{n - 1}"}, runs_in="thread")
            for n in range(1, 6)
        ]
        steps.append(WorkflowStep("length", length, {"data": "d5"}, runs_in="thread"))
        if runs_in == "local":
            # Their consumers are here, so all outputs come home.
            steps += [
                WorkflowStep(f"look-{n}", length, {"data": f"d{n}"}, runs_in="thread", engine=here)
                for n in range(6)
            ]
        gc.collect()
        _forget_peak()
        before, began_s = _peak_mb(), time.perf_counter()
        report = await kind.run(steps)
        seconds[where] = time.perf_counter() - began_s
        megabytes[where] = _peak_mb() - before
        del report
    subject = f"{kind.name}: 100 MB through six steps"
    yield Row(f"{subject}, stays / comes home", seconds["stays"] / seconds["comes home"], 1.0)
    yield Row("   time of what stays", seconds["stays"], None, "s")
    yield Row("   memory of the run, stays", megabytes["stays"], 100, "MB")
    yield Row("   memory of the run, comes home", megabytes["comes home"], None, "MB")


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


async def of_many(kind: Kind) -> AsyncIterator[Row]:
    """Measure more steps than workers could begin within the limit of one."""
    steps = [WorkflowStep(f"s{n}", nothing_async, timeout_ms=1000) for n in range(MANY)]
    gc.collect()
    tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    began_s = time.perf_counter()
    report = await kind.run(steps)
    seconds = time.perf_counter() - began_s
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert len(report.succeeded) == MANY
    yield Row(f"{kind.name}: memory of a step, of {MANY:,} at once", peak / MANY, 20_000, "bytes")
    yield Row("   time of all, with tracemalloc", seconds, None, "s")


def engines(rounds: int) -> Iterator[Row]:
    yield from rows_of(process_pool, rounds)
    if find_spec("distributed") is None:
        print("dask: left out, since distributed is not installed")
    else:
        yield from rows_of(dask, rounds)
    print("ray: has a command of its own, since it needs a network of its own (CONTRIBUTING.md)")


def rows_of(
    opened: Callable[[], AbstractAsyncContextManager[Kind]],
    rounds: int,
    *more: Callable[[Kind], AsyncIterator[Row]],
) -> Iterator[Row]:
    async def listed(rows: AsyncIterator[Row]) -> list[Row]:
        return [row async for row in rows]

    with asyncio.Runner() as runner:
        opening = opened()
        kind = runner.run(opening.__aenter__())
        try:
            yield from of_a_fan(kind, runner.run, rounds)
            yield from of_two_workers(kind, runner.run)
            for rows in (of_a_chain, of_data, of_many, *more):
                yield from runner.run(listed(rows(kind)))
        finally:
            runner.run(opening.__aexit__(None, None, None))
