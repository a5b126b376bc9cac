"""Measures asyncflow against a loop written by hand: ``python -m tests.benchmarks``.

Most figures are the ratio of two measurements, taken in turn, in one process, in CPU time. So the
speed of the machine does not matter, and its load hardly does. A round is one pair; the shortest
measurement of each side counts. The last line and the exit status say whether all figures are
within their limits.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import subprocess
import sys
import time
import traceback
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator, Mapping
from graphlib import TopologicalSorter
from tempfile import TemporaryDirectory
from typing import Any

from asyncflow import Orchestrator, WorkflowStep, run_pipeline, topological_sort
from examples.replay import replay
from tests.benchmarks.by_hand import map_by_hand, run_by_hand
from tests.benchmarks.chains import chains
from tests.benchmarks.durable import durable
from tests.benchmarks.engines import engines
from tests.benchmarks.graphs import SHAPES, instant, pipeline, suspending
from tests.benchmarks.looking_back import looking_back
from tests.benchmarks.observing import observing
from tests.benchmarks.pools import MAX_OF_A_SEMAPHORE, pool_policies, pools, refusals
from tests.benchmarks.ratios import Row, on_this_python, ratio
from tests.benchmarks.saying import saying
from tests.benchmarks.testing_kit import testing_kit
from tests.benchmarks.watched import watched
from tests.traces import NO_TRACES, trace_files

# What each Python reaches, and a tenth more: a regression shows, and noise passes. "wide" is fan
# and layered.
LIMITS: dict[str, float] = {
    "chain": on_this_python(1.35, 1.35, 1.4),
    "wide": on_this_python(1.5, 1.35, 1.45),
    "observed": on_this_python(1.55, 1.6, 1.65),
    "third attempt": on_this_python(2.3, 3.6, 3.8),
    "fail-fast": on_this_python(1.75, 1.65, 1.75),
    "memory": on_this_python(1.4, 1.35, 1.35),
    "import": on_this_python(1.8, 1.75, 1.75),
}


def cpu_s(work: Callable[[], Awaitable[Mapping[str, Any] | list[Any]]]) -> float:
    """Return the CPU seconds to run a pipeline and to read every result."""

    async def timed() -> float:
        gc.collect()
        started = time.process_time()
        results = await work()
        for result in results.values() if isinstance(results, Mapping) else results:
            result.output  # noqa: B018
        return time.process_time() - started

    return asyncio.run(timed())


def against_the_hand_written_loop(rounds: int) -> Iterator[Row]:
    for shape, edges in SHAPES.items():
        for action in (instant, suspending):
            steps = pipeline(edges(1_000), action)
            at_most = LIMITS["chain" if shape == "chain" else "wide"]
            value = _against_by_hand(steps, 3 * rounds)
            yield Row(f"{shape} of 1,000 steps, {action.__name__}", value, at_most)
            value = _against_by_hand(steps, 3 * rounds, observers=[[].append])
            at_most = LIMITS["observed"]
            yield Row("   with an observer that stores every event", value, at_most)


def _against_by_hand(steps: list[WorkflowStep], rounds: int, **options: Any) -> float:
    return ratio(
        lambda: cpu_s(lambda: run_pipeline(steps, **options)),
        lambda: cpu_s(lambda: run_by_hand(steps)),
        rounds,
    )


def retries(rounds: int) -> Iterator[Row]:
    def flaky_steps() -> list[WorkflowStep]:
        def flaky() -> Callable[[], Awaitable[int]]:
            calls = 0

            async def action() -> int:
                nonlocal calls
                calls += 1
                if calls % 3:
                    raise ValueError
                return calls

            return action

        return [WorkflowStep(f"s{i}", flaky(), max_retries=3) for i in range(1_000)]

    steps = flaky_steps()
    value = _against_by_hand(steps, 3 * rounds)
    yield Row("1,000 steps that succeed at the third attempt", value, LIMITS["third attempt"])


def fail_fast(rounds: int) -> Iterator[Row]:
    async def sleeping() -> None:
        await asyncio.sleep(3_600)

    async def failing() -> None:
        await asyncio.sleep(0)
        raise ValueError

    steps = [
        WorkflowStep("fails", failing),
        *(WorkflowStep(f"s{i}", sleeping) for i in range(5_000)),
    ]
    value = _against_by_hand(steps, 2 * rounds)
    yield Row("fail-fast with 5,000 sleeping siblings", value, LIMITS["fail-fast"])


def mapped(rounds: int) -> Iterator[Row]:
    items = range(10_000)

    async def numbers() -> range:
        return items

    async def instantly(number: int) -> int:
        return number

    async def suspending(number: int) -> int:
        await asyncio.sleep(0)
        return number

    for action in (instantly, suspending):
        steps = [
            WorkflowStep("numbers", numbers),
            WorkflowStep("mapped", action, {"number": "numbers"}, map_over="numbers"),
        ]
        value = ratio(
            lambda steps=steps: cpu_s(lambda: run_pipeline(steps, max_concurrency=100)),
            lambda action=action: cpu_s(lambda: map_by_hand(action, items, 100, 30)),
            rounds,
        )
        yield Row(
            f"map over 10,000 items, 100 at once, {action.__name__} / gather",
            value,
            MAX_OF_A_SEMAPHORE,
        )


def planning(rounds: int) -> Iterator[Row]:
    steps = pipeline(SHAPES["layered"](100_000), instant)

    def timed(work: Callable[[], object]) -> float:
        gc.collect()
        started = time.process_time()
        work()
        return time.process_time() - started

    def graphlib_sort() -> list[str]:
        return list(
            TopologicalSorter({step.name: step.depends_on for step in steps}).static_order()
        )

    value = ratio(
        lambda: timed(lambda: topological_sort(steps)), lambda: timed(graphlib_sort), rounds
    )
    yield Row("planning 100,000 steps, 300,000 dependencies / graphlib", value, 0.7)


def growth(rounds: int) -> Iterator[Row]:
    for shape in ("chain", "layered"):
        small = pipeline(SHAPES[shape](1_000), suspending)
        large = pipeline(SHAPES[shape](30_000), suspending)
        value = ratio(
            lambda large=large: cpu_s(lambda: run_pipeline(large)) / 30,
            lambda small=small: cpu_s(lambda: run_pipeline(small)),
            rounds,
        )
        yield Row(f"cost of a step, {shape} of 30,000 / of 1,000 steps", value, 1.7)


def memory(_: int) -> Iterator[Row]:
    count = 5_000
    live = {}
    for name, run in {"ours": run_pipeline, "by hand": run_by_hand}.items():

        async def measured(run: Callable[..., Awaitable[object]] = run) -> float:
            entered, gate = 0, asyncio.Event()

            async def waiting() -> None:
                nonlocal entered
                entered += 1
                await gate.wait()

            steps = [WorkflowStep(f"s{i}", waiting) for i in range(count)]
            gc.collect()
            tracemalloc.start()
            running = asyncio.ensure_future(run(steps))
            while entered < count:
                await asyncio.sleep(0)
            gc.collect()
            held = tracemalloc.get_traced_memory()[0] / count
            tracemalloc.stop()
            gate.set()
            await running
            return held

        asyncio.run(measured())  # a warm-up: the loop's set of tasks has its size now
        live[name] = asyncio.run(measured())
    value = live["ours"] / live["by hand"]
    yield Row("memory of a live step / by hand", value, LIMITS["memory"])

    orchestrator = Orchestrator([WorkflowStep(f"s{i}", instant) for i in range(count)])

    async def bytes_of_a_result() -> float:
        await orchestrator.run()
        gc.collect()
        tracemalloc.start()
        report = await orchestrator.run()
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] / len(report)
        tracemalloc.stop()
        return held

    yield Row("memory of a step in the report", asyncio.run(bytes_of_a_result()), 400, "bytes")


def importing(rounds: int) -> Iterator[Row]:
    """Yield the cost of an import in a program that uses asyncio, with compiled files."""
    with TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def cost_s(module: str) -> float:
            before = os.times()
            for _ in range(5):  # the operating system counts in hundredths of a second
                command = [sys.executable, "-c", f"import asyncio, {module}"]
                subprocess.run(command, check=True, env=environment)
            after = os.times()
            return (
                after.children_user
                + after.children_system
                - before.children_user
                - before.children_system
            )

        value = ratio(lambda: cost_s("asyncflow"), lambda: cost_s("anyio"), rounds)
    yield Row("import asyncio, asyncflow / import asyncio, anyio", value, LIMITS["import"])


def makespans(_: int) -> Iterator[Row]:
    """Yield the makespan of each schedule for each recorded workflow, in virtual time."""
    paths = trace_files()
    if not paths:
        print(f"makespans: {NO_TRACES}")
    for path in paths:
        replayed = replay(path)
        for schedule, makespan_s, limit in (
            ("tiers", replayed.tiers_s, None),
            ("ready", replayed.ready_s, 1.0),
        ):
            ratio = round(replayed.ratio(makespan_s) or 1.0, 6)
            yield Row(f"{path.stem[:40]}: {schedule} / critical path", ratio, limit)


SUBJECTS: dict[str, Callable[[int], Iterator[Row]]] = {
    "hand": against_the_hand_written_loop,
    "retries": retries,
    "fail_fast": fail_fast,
    "pools": pools,
    "pool_policies": pool_policies,
    "refusals": refusals,
    "mapped": mapped,
    "chains": chains,
    "planning": planning,
    "growth": growth,
    "memory": memory,
    "importing": importing,
    "makespans": makespans,
    "durable": durable,
    "saying": saying,
    "observing": observing,
    "watched": watched,
    "looking_back": looking_back,
    "engines": engines,
    "testing_kit": testing_kit,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of a slow measurement")
    parser.add_argument("--only", help="measure only subjects with this in their name")
    options = parser.parse_args()
    print(f"Python {sys.version.split()[0]}, {options.rounds} rounds\n")
    failed = 0
    for name, subject in SUBJECTS.items():
        if options.only and options.only not in name:
            continue
        gc.collect()
        gc.freeze()  # what earlier subjects have left behind is not searched during this one
        try:
            for row in subject(options.rounds):
                print(row, flush=True)
                failed += not row.holds
        except Exception:  # the others have their verdict nevertheless
            traceback.print_exc()
            print(f"{name}: FAILED", flush=True)
            failed += 1
    print(f"\n{'PASSED' if not failed else f'FAILED: {failed} of the figures'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
