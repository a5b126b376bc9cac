"""Measures the cost of a live view, against the work of the steps."""

from __future__ import annotations

import asyncio
import gc
import os
import pty
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from rich.console import Console

from asyncflow import WorkflowStep, run_pipeline
from asyncflow.live import LiveView
from tests.benchmarks.graphs import SHAPES, pipeline
from tests.benchmarks.ratios import Row, ratio

WORK_S = 0.0005
"""The CPU time of each step."""
MAX_OF_A_RUN = 1.1


async def working() -> None:
    began = time.thread_time()
    while time.thread_time() - began < WORK_S:
        sum(range(100))


def watched(rounds: int) -> Iterator[Row]:
    """Yield ratios of the CPU time of all threads, the drawing one included."""
    steps = pipeline(SHAPES["layered"](2_000), working)
    with _terminal() as (terminal, nowhere):
        for place, console in {
            "on a terminal": Console(
                file=terminal, force_terminal=True, color_system="truecolor", width=200, height=50
            ),
            "as lines": Console(file=nowhere, force_terminal=False),
        }.items():
            value = ratio(
                lambda console=console: cpu_s(steps, console), lambda: cpu_s(steps, None), rounds
            )
            yield Row(f"2,000 steps of 0.5 ms, watched {place} / not watched", value, MAX_OF_A_RUN)


def cpu_s(steps: Sequence[WorkflowStep], console: Console | None) -> float:
    """Return the CPU seconds of a run, with a live view if there is a console."""
    gc.collect()
    began = time.process_time()
    if console is None:
        asyncio.run(run_pipeline(steps))
    else:
        with LiveView(console) as view:
            asyncio.run(run_pipeline(steps, observers=[view]))
    return time.process_time() - began


@contextmanager
def _terminal() -> Iterator[tuple[IO[str], IO[str]]]:
    """Open a pseudo-terminal with a reader, and the null device."""
    ours, theirs = pty.openpty()

    def read() -> None:
        try:
            while os.read(ours, 65536):
                pass
        except OSError:  # it was closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with open(theirs, "w") as terminal, open(os.devnull, "w") as nowhere:
            yield terminal, nowhere
    finally:
        reader.join()
        os.close(ours)
