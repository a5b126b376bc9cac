"""What reads a long run keeps no event loop still for 50 ms.

Processor time is measured, since other programs take the rest: that of the loop's thread between
two of its turns, and that of each collection of garbage, which stops all threads.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from asyncflow import Pipeline, after, each
from asyncflow.journal import SQLiteJournal
from asyncflow.service import Service

pytestmark = [pytest.mark.realtime]

ITEMS = 20_000
"""They take some 10 ms, so that other programs may use the processor too."""
LONGEST_S = 0.05

pipeline = Pipeline("long", fail_fast=False)


@pipeline.step
async def numbers(count: int) -> list[int]:
    return list(range(count))


@pipeline.step
async def number(one: int = each(numbers)) -> int:
    return one


approved = pipeline.signal("approved", int, depends_on=[number])


@pipeline.step
async def send(value: int = after(approved)) -> int:
    return value


@asynccontextmanager
async def longest_pause() -> AsyncIterator[list[float]]:
    """Provide a list that gets each pause of the loop, in seconds."""
    pauses, began = [0.0], [0.0]

    def on_collection(phase: str, info: Any) -> None:
        if phase == "start":
            began[0] = time.thread_time()
        else:
            pauses.append(time.thread_time() - began[0])

    async def measure_turns() -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.001)
            pauses.append(time.thread_time() - before)

    gc.collect()
    gc.callbacks.append(on_collection)
    measuring = asyncio.create_task(measure_turns())
    try:
        await asyncio.sleep(0)
        yield pauses
        await asyncio.sleep(0.01)
    finally:
        measuring.cancel()
        gc.callbacks.remove(on_collection)


def test_no_reader_of_a_long_run_keeps_the_loop_still(tmp_path: Path) -> None:
    # In a process of its own: the plugin of pytest reads each report as soon as it is made.
    ran = subprocess.run([sys.executable, __file__, str(tmp_path)], stdout=PIPE, check=True)
    longest = json.loads(ran.stdout)

    assert max(longest.values()) < LONGEST_S, longest


async def longest_pauses(folder: Path) -> dict[str, float]:
    """Return the longest pause of the loop while each of them reads a run."""
    longest: dict[str, float] = {}
    async with SQLiteJournal(folder / "runs.db") as journal:
        mine = pipeline.with_options(journal=journal)
        await mine.with_options(run_id="r").run(count=ITEMS)

        async def continued() -> None:
            async with Service([pipeline], journal=journal, resume_every_s=0.1) as service:
                await service.signal("r", "approved", 1)
                while (await journal.record("r")).status != "PASSED":
                    await asyncio.sleep(0.02)

        async def note(what: str, call: Awaitable[object]) -> None:
            async with longest_pause() as pauses:
                await call
            longest[what] = max(pauses)

        await note("report", journal.report("r"))
        await note("typed report", mine.report("r"))
        await note("events", journal.events("r"))
        await note("preview", mine.preview("r"))
        await note("export", journal.export("r", folder / "copy.db"))
        await note("compare", journal.compare("r", "r"))
        await note("continue", continued())
        await note("rerun", mine.rerun("r", "again", from_=["send"]))
    return longest


if __name__ == "__main__":
    print(json.dumps(asyncio.run(longest_pauses(Path(sys.argv[1])))))
