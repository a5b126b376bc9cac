"""Measures the cost of a live view, against the work of the steps."""

from __future__ import annotations

import os
import pty
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from rich.console import Console

from asyncflow import RunReport, WorkflowStep, run_pipeline
from asyncflow.live import LiveView
from tests.benchmarks.graphs import SHAPES, pipeline
from tests.benchmarks.ratios import Ratio, Row, cpu_s

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
            value = Ratio(
                lambda console=console: run_s(steps, console), lambda: run_s(steps, None), rounds
            )
            yield Row(f"2,000 steps of 0.5 ms, watched {place} / not watched", value, MAX_OF_A_RUN)


def run_s(steps: Sequence[WorkflowStep], console: Console | None) -> float:
    """Return the CPU seconds of a run, with a live view if there is a console."""

    async def seen() -> RunReport:
        with LiveView(console) as view:
            return await run_pipeline(steps, observers=[view])

    return cpu_s(lambda: run_pipeline(steps) if console is None else seen())


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
