"""The loop that a user would write by hand. asyncflow must not be slower.

`graphlib` gives the order, a `TaskGroup` runs each tier, and `try`/`except` around `wait_for` makes
the attempts. It has what users need after a run (an immutable result of each step) and for
debugging (a named task, a debug log line for each start and end). It has none of the guards that
asyncflow's semantics require.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from graphlib import TopologicalSorter
from typing import Any

from asyncflow import WorkflowStep

log = logging.getLogger("by_hand")  # its debug level is off, as in production


@dataclass(frozen=True, slots=True)
class Result:
    name: str
    status: str
    attempts: int
    duration_ms: float
    output: Any = None
    error: Exception | None = None


async def run_by_hand(
    steps: Sequence[WorkflowStep], slots: asyncio.Semaphore | None = None
) -> dict[str, Result]:
    """Run the steps tier by tier; one that fails for good cancels its siblings and ends the run.

    With slots, a step waits for one of them first.
    """
    run_step = _run_step if slots is None else partial(_run_step_in_slot, slots)
    by_name = {step.name: step for step in steps}
    sorter = TopologicalSorter({step.name: step.depends_on for step in steps})
    sorter.prepare()
    results: dict[str, Result] = {}
    while sorter.is_active():
        tier = sorter.get_ready()
        try:
            async with asyncio.TaskGroup() as group:
                for name in tier:
                    group.create_task(run_step(by_name[name], results), name=name)
        except ExceptionGroup:
            break
        sorter.done(*tier)
    return results


async def _run_step(step: WorkflowStep, results: dict[str, Result]) -> None:
    started = time.perf_counter()
    limit_s = None if step.timeout_ms is None else step.timeout_ms / 1000
    for attempt in range(1, step.max_retries + 1):
        log.debug("%s: attempt %d", step.name, attempt)
        try:
            output = await asyncio.wait_for(step.action(), limit_s)
        except Exception as error:
            if attempt < step.max_retries:
                await asyncio.sleep(0)  # the backoff: let other tasks run
                continue
            duration_ms = (time.perf_counter() - started) * 1000
            log.debug("%s: failed after %.0f ms", step.name, duration_ms)
            results[step.name] = Result(step.name, "FAILED", attempt, duration_ms, error=error)
            raise
        duration_ms = (time.perf_counter() - started) * 1000
        log.debug("%s: done in %.0f ms", step.name, duration_ms)
        results[step.name] = Result(step.name, "SUCCESS", attempt, duration_ms, output)
        return


async def _run_step_in_slot(
    slots: asyncio.Semaphore, step: WorkflowStep, results: dict[str, Result]
) -> None:
    # Around all attempts, so that the timeout of an attempt does not include the wait.
    async with slots:
        await _run_step(step, results)


async def map_by_hand(
    action: Callable[[Any], Awaitable[Any]], items: Iterable[Any], limit: int, timeout_s: float
) -> list[Result]:
    """Call the action for each item, at most `limit` at a time; return the results."""
    slots = asyncio.Semaphore(limit)

    async def one(index: int, item: Any) -> Result:
        async with slots:
            started = time.perf_counter()
            name = f"item {index}"
            log.debug("%s", name)
            try:
                output = await asyncio.wait_for(action(item), timeout_s)
            except Exception as error:
                duration_ms = (time.perf_counter() - started) * 1000
                log.debug("%s: failed after %.0f ms", name, duration_ms)
                return Result(name, "FAILED", 1, duration_ms, error=error)
            duration_ms = (time.perf_counter() - started) * 1000
            log.debug("%s: done in %.0f ms", name, duration_ms)
            return Result(name, "SUCCESS", 1, duration_ms, output)

    return await asyncio.gather(*(one(index, item) for index, item in enumerate(items)))
