"""Measures asyncflow against a loop written by hand: ``python -m tests.benchmarks``.

Most figures are the ratio of two measurements, taken in turn, in one process, in CPU time, of work
that is checked to have passed. So the speed of the machine does not matter, and its load hardly
does. A round is one pair; the shortest measurement of each side counts. The last line and the exit
status say whether all figures are within their limits.
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
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from graphlib import TopologicalSorter
from tempfile import TemporaryDirectory
from typing import Any

from asyncflow import Orchestrator, WorkflowStep, run_pipeline, topological_sort
from tests.benchmarks.by_hand import map_by_hand, run_by_hand
from tests.benchmarks.chains import chains
from tests.benchmarks.durable import durable
from tests.benchmarks.engines import engines
from tests.benchmarks.graphs import SHAPES, instant, pipeline, suspending
from tests.benchmarks.inside import inside
from tests.benchmarks.looking_back import looking_back
from tests.benchmarks.makespans import makespans
from tests.benchmarks.observing import observing
from tests.benchmarks.pools import pool_policies, pools, refusals, shared_pools
from tests.benchmarks.ratios import Ratio, Row, compared, cpu_s, limit_of, passed
from tests.benchmarks.retention import retention
from tests.benchmarks.saying import saying
from tests.benchmarks.testing_kit import testing_kit
from tests.benchmarks.watched import watched


def against_the_hand_written_loop(rounds: int) -> Iterator[Row]:
    for shape, edges in SHAPES.items():
        for action in (instant, suspending):
            steps = pipeline(edges(1_000), action)
            subject = f"{shape} of 1,000 steps, {action.__name__}"
            yield _against_by_hand(subject, steps, rounds)
            observers = [deque[Any](maxlen=2_000).append]  # it stores all events of one run
            subject += ", with an observer"
            yield _against_by_hand(subject, steps, rounds, observers=observers)


def _against_by_hand(
    subject: str,
    steps: list[WorkflowStep],
    rounds: int,
    check: Callable[[Any], bool] = passed,
    **options: Any,
) -> Row:
    return compared(
        subject,
        lambda: cpu_s(lambda: run_pipeline(steps, **options), check=check),
        lambda: cpu_s(lambda: run_by_hand(steps), check=check),
        rounds,
    )


def three_steps(rounds: int) -> Iterator[Row]:
    """Yield the cost of a short run, which is what a run itself costs."""
    edges = SHAPES["chain"](3)
    steps = pipeline(edges, instant)
    runs: dict[str, Callable[[], Awaitable[object]]] = {
        "Orchestrator.run": Orchestrator(steps).run,
        "run_pipeline": lambda: run_pipeline(steps),
        "steps and run_pipeline": lambda: run_pipeline(pipeline(edges, instant)),
    }
    for name, run in runs.items():
        row = compared(
            f"chain of 3 steps, {name}",
            lambda run=run: cpu_s(run, repeats=200),
            lambda: cpu_s(lambda: run_by_hand(steps), repeats=200),
            rounds,
        )
        yield row
        yield Row("   ours", lambda row=row: row.value.ours * 1e6, None, "us")


def retries(rounds: int) -> Iterator[Row]:
    def flaky() -> Callable[[], Awaitable[int]]:
        calls = 0

        async def action() -> int:
            nonlocal calls
            calls += 1
            if calls % 3:
                raise ValueError
            return calls

        return action

    steps = [WorkflowStep(f"s{i}", flaky(), max_retries=3) for i in range(1_000)]
    yield _against_by_hand("1,000 steps that succeed at the third attempt", steps, rounds)


def fail_fast(rounds: int) -> Iterator[Row]:
    async def sleeping() -> None:
        await asyncio.sleep(3_600)

    async def failing() -> None:
        await asyncio.sleep(0)
        raise ValueError

    for count in (1_000, 5_000):
        steps = [
            WorkflowStep("fails", failing),
            *(WorkflowStep(f"s{i}", sleeping) for i in range(count)),
        ]
        subject = f"fail-fast with {count:,} sleeping siblings"
        yield _against_by_hand(
            subject, steps, rounds, check=lambda found: found["fails"].status == "FAILED"
        )


def mapped(rounds: int) -> Iterator[Row]:
    items = range(10_000)

    async def numbers() -> range:
        return items

    async def instant(number: int) -> int:
        return number

    async def suspending(number: int) -> int:
        await asyncio.sleep(0)
        return number

    for action in (instant, suspending):
        steps = [
            WorkflowStep("numbers", numbers),
            WorkflowStep("mapped", action, {"number": "numbers"}, map_over="numbers"),
        ]
        yield compared(
            f"map over 10,000 items, 100 at once, {action.__name__}",
            lambda steps=steps: cpu_s(lambda: run_pipeline(steps, max_concurrency=100)),
            lambda action=action: cpu_s(lambda: map_by_hand(action, items, 100, 30)),
            rounds,
        )


def planning(rounds: int) -> Iterator[Row]:
    steps = pipeline(SHAPES["layered"](100_000), instant)

    def timed(work: Callable[[], list[Any]]) -> float:
        gc.collect()
        started = time.process_time()
        found = work()
        took = time.process_time() - started
        assert len(found) == len(steps)
        return took

    def graphlib_sort() -> list[Any]:
        return list(
            TopologicalSorter({step.name: step.depends_on for step in steps}).static_order()
        )

    value = Ratio(
        lambda: timed(lambda: topological_sort(steps)), lambda: timed(graphlib_sort), rounds
    )
    yield Row("planning 100,000 steps, 300,000 dependencies / graphlib", value, 0.7)


def growth(rounds: int) -> Iterator[Row]:
    for shape in ("chain", "layered"):
        small = pipeline(SHAPES[shape](1_000), suspending)
        large = pipeline(SHAPES[shape](30_000), suspending)
        value = Ratio(
            lambda large=large: cpu_s(lambda: run_pipeline(large)) / 30,
            lambda small=small: cpu_s(lambda: run_pipeline(small)),
            rounds,
        )
        yield Row(f"cost of a step, {shape} of 30,000 / of 1,000 steps", value, 1.7)


def memory(_: int) -> Iterator[Row]:
    count = 5_000

    async def bytes_of_a_live_step(run: Callable[..., Awaitable[object]]) -> float:
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
        assert passed(await running)
        return held

    # The first pair is a warm-up: the loop's set of tasks has its size then.
    yield compared(
        "memory of a live step",
        lambda: asyncio.run(bytes_of_a_live_step(run_pipeline)),
        lambda: asyncio.run(bytes_of_a_live_step(run_by_hand)),
        1,
    )

    orchestrator = Orchestrator([WorkflowStep(f"s{i}", instant) for i in range(count)])

    async def bytes_of_a_result() -> float:
        await orchestrator.run()
        gc.collect()
        tracemalloc.start()
        report = await orchestrator.run()
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] / len(report)
        tracemalloc.stop()
        assert passed(report)
        return held

    yield Row(
        "memory of a step in the report", lambda: asyncio.run(bytes_of_a_result()), 400, "bytes"
    )


_CPU_S_OF_AN_IMPORT = """
import time{others}
began = time.process_time()
import {module}
print(time.process_time() - began)
"""

_MODULES_OF_A_RUN = """
import asyncio, sys
from asyncflow import WorkflowStep, run_pipeline
report = asyncio.run(run_pipeline([WorkflowStep("step", lambda: asyncio.sleep(0))]))
assert report.status == "PASSED"
print(sum(name.partition(".")[0] == "asyncflow" for name in sys.modules))
"""


def importing(rounds: int) -> Iterator[Row]:
    """Yield the cost of an import in a program that uses asyncio, with compiled files."""
    with TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def printed(program: str) -> float:
            command = [sys.executable, "-c", program]
            return float(subprocess.check_output(command, env=environment, text=True))

        row = compared(
            "import of asyncflow, beside asyncio / of asyncio",
            partial(printed, _CPU_S_OF_AN_IMPORT.format(others=", asyncio", module="asyncflow")),
            partial(printed, _CPU_S_OF_AN_IMPORT.format(others="", module="asyncio")),
            rounds,
        )
        yield row
        yield Row("   ours", lambda: row.value.ours * 1e3, None, "ms")
        subject = "modules that a plain run loads"
        yield Row(subject, printed(_MODULES_OF_A_RUN), limit_of(subject), "")


SUBJECTS: dict[str, Callable[[int], Iterator[Row]]] = {
    "hand": against_the_hand_written_loop,
    "three_steps": three_steps,
    "retries": retries,
    "fail_fast": fail_fast,
    "pools": pools,
    "pool_policies": pool_policies,
    "shared_pools": shared_pools,
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
    "inside": inside,
    "observing": observing,
    "watched": watched,
    "looking_back": looking_back,
    "retention": retention,
    "engines": engines,
    "testing_kit": testing_kit,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of a slow measurement")
    parser.add_argument(
        "--only",
        default="",
        metavar="SUBJECT[: ROW]",
        help=f"measure only subjects, and rows, with this in their name ({', '.join(SUBJECTS)})",
    )
    options = parser.parse_args()
    print(f"Python {sys.version.split()[0]}, {options.rounds} rounds\n")
    only_subject, _, only_row = options.only.partition(": ")
    failed = measured = 0
    for name, subject in SUBJECTS.items():
        if only_subject not in name:
            continue
        gc.collect()
        gc.freeze()  # what earlier subjects have left behind is not searched during this one
        try:
            for row in subject(options.rounds):
                if not row.subject.startswith(" "):  # else it belongs to the last one
                    is_wanted = only_row in row.subject
                if is_wanted:
                    found = row.measured()
                    print(found, flush=True)
                    failed += not found.holds
                    measured += 1
        except Exception:  # the others have their verdict nevertheless
            traceback.print_exc()
            print(f"{name}: FAILED", flush=True)
            failed += 1
    if not measured and not failed:
        parser.error(f"--only {options.only!r} names no row")
    print(f"\n{'PASSED' if not failed else f'FAILED: {failed} of the figures'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
