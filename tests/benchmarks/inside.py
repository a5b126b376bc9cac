"""Measures what happens inside a step: calls by name, and values that it streams.

A step that makes calls is measured against as many durable steps in a chain, in the CPU time of all
threads. What streams is measured against the same run that says nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from asyncflow import Orchestrator, WorkflowStep, current_step
from asyncflow.journal import SQLiteJournal
from tests.benchmarks.durable import chains, one
from tests.benchmarks.ratios import Ratio, Row, seconds

CALLS = 100
VALUES = 10_000
MAX_OF_A_STEP = 1.0
MAX_OF_A_CORE = 10
"""What 10,000 values a second may take, in percent."""
READERS = 1_000
MAX_OF_A_READER_US = 30
"""What a value may take for each of many readers."""

_numbers = count()


async def calls() -> None:
    step = current_step()
    for number in range(CALLS):
        await step.call(f"call {number}", one)


async def streams() -> None:
    await _each_ms(current_step().stream)


async def says_nothing() -> None:
    await _each_ms(lambda value: None)


async def _each_ms(take: Callable[[str], object]) -> None:
    """Pass on 10,000 words within a second."""
    for number in range(VALUES):
        take(f"word {number}")
        if not number % 10:
            await asyncio.sleep(0.001)


async def few_values() -> None:
    for number in range(100):
        current_step().stream(number)
        await asyncio.sleep(0.01)


def inside(rounds: int) -> Iterator[Row]:
    with TemporaryDirectory() as folder:
        run = partial(_run_s, Path(folder))
        many, chain = [WorkflowStep("calls", calls)], chains(1, CALLS)
        value = Ratio(lambda: run(many), lambda: run(chain), rounds)
        yield Row("a call by name / a durable step of a chain", value, MAX_OF_A_STEP)
        yield Row("   a call", lambda: value.ours / CALLS * 1e6, None, "us")

        talk, silence = [WorkflowStep("talk", streams)], [WorkflowStep("talk", says_nothing)]

        def of_a_core() -> float:
            found = [run(talk) - run(silence) for _ in range(max(3, rounds // 5))]
            return min(found) * 100  # it takes a second

        yield Row("10,000 values in a second", of_a_core, MAX_OF_A_CORE, "%")

        def of_a_reader_us() -> float:
            few = [WorkflowStep("talk", few_values)]
            return (run(few, readers=READERS) - run(few)) / READERS / 100 * 1e6

        yield Row(
            f"a value for each of {READERS:,} readers", of_a_reader_us, MAX_OF_A_READER_US, "us"
        )


def _run_s(folder: Path, steps: list[WorkflowStep], *, readers: int = 0) -> float:
    """Return the CPU time of a run, with so many readers of what it streams."""

    async def timed() -> float:
        async with SQLiteJournal(folder / "runs.db") as journal:
            await journal.runs()  # opens the database
            run_id = f"run {next(_numbers)}"
            options = {"journal": journal, "run_id": run_id}
            orchestrator = Orchestrator(steps, schedule="ready").with_options(**options)
            if not readers:
                return await seconds(orchestrator.run)
            began = time.process_time()
            async with orchestrator.start() as run:
                await run.flush()
                found = await asyncio.gather(
                    *(_count(journal.streamed(run_id)) for _ in range(readers))
                )
            assert found == [100] * readers, found[:10]
            return time.process_time() - began

    return asyncio.run(timed())


async def _count(values: AsyncIterator[object]) -> int:
    return len([value async for value in values])
