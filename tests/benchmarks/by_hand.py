"""The loop one would write by hand, which asyncflow must not be slower than."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

from asyncflow import WorkflowStep


@dataclass(slots=True)
class Result:
    name: str
    status: str
    attempts: int
    duration_ms: float
    output: Any = None
    error: Exception | None = None


async def run_by_hand(steps: Sequence[WorkflowStep]) -> dict[str, Result]:
    """Run the steps tier by tier; a step that fails for good cancels its siblings."""
    by_name = {step.name: step for step in steps}
    sorter = TopologicalSorter({step.name: step.depends_on for step in steps})
    sorter.prepare()
    results: dict[str, Result] = {}
    while sorter.is_active():
        tier = sorter.get_ready()
        try:
            async with asyncio.TaskGroup() as group:
                for name in tier:
                    group.create_task(run_step(by_name[name], results))
        except* Exception:
            break
        sorter.done(*tier)
    return results


async def run_step(step: WorkflowStep, results: dict[str, Result]) -> None:
    started = time.perf_counter()
    limit_s = None if step.timeout_ms is None else step.timeout_ms / 1000
    for attempt in range(1, step.max_retries + 1):
        try:
            output = await asyncio.wait_for(step.action(), limit_s)
        except Exception as error:
            if attempt == step.max_retries:
                duration_ms = (time.perf_counter() - started) * 1000
                results[step.name] = Result(
                    step.name, "FAILED", attempt, duration_ms, error=error
                )
                raise
            await asyncio.sleep(0)
        else:
            duration_ms = (time.perf_counter() - started) * 1000
            results[step.name] = Result(step.name, "SUCCESS", attempt, duration_ms, output)
            return
