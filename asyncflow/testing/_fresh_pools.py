"""Lets each simulated run begin with pools that no run has used.

A `Pool` lasts as long as its process. What earlier runs have left in it would decide about a
simulated one, which then could not be simulated again: a retry budget that is spent, the last start
of a rate, slots of a run that was given up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._core.pools.pool import Pool
from asyncflow._runtime.planned_pipeline import replacements


@contextmanager
def fresh_pools() -> Iterator[None]:
    """Let the pools of all runs in this event loop begin anew, each before its first run.

    Their numbers stay.
    """
    loop, fresh = asyncio.get_running_loop(), set[Pool]()

    def begin_anew(steps: tuple[WorkflowStep, ...]) -> None:
        if asyncio._get_running_loop() is loop:  # else it is a run of another thread
            for pool in {step.pool for step in steps} - {None} - fresh:
                assert pool is not None
                pool._begin_anew()
                fresh.add(pool)

    replacements.append(begin_anew)
    try:
        yield
    finally:
        replacements.remove(begin_anew)
