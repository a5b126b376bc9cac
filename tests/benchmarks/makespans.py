"""Recorded workflows, replayed in virtual time: the makespan of each schedule / the critical path.

Each task of a trace in WfFormat 1.5, as WfCommons publishes them, becomes a step that sleeps for as
long as the task ran. So a replay of many hours takes milliseconds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from asyncflow import WorkflowStep, run_pipeline, topological_sort
from asyncflow.testing import run_in_virtual_time
from tests.benchmarks.ratios import Row, passed
from tests.traces import NO_TRACES, trace_files


class Task(NamedTuple):
    """A task of a recorded workflow."""

    id: str
    parents: tuple[str, ...]
    runtime_s: float

    async def replay(self) -> None:
        await asyncio.sleep(self.runtime_s)


def makespans(_: int) -> Iterator[Row]:
    """Yield the makespan of each schedule for each trace; that of "ready" is the critical path."""
    paths = trace_files()
    if not paths:
        print(f"makespans: {NO_TRACES}")
    for path in paths:
        tasks = read_trace(path)
        shortest_s = critical_path_s(tasks)
        for schedule, limit in (("tiers", None), ("ready", 1.0)):
            ratio = makespan_s(tasks, schedule) / shortest_s if shortest_s else 1.0
            yield Row(f"{path.stem[:40]}: {schedule} / critical path", round(ratio, 6), limit)


def read_trace(path: Path) -> list[Task]:
    """Return the tasks of a trace, in the order of the file."""
    workflow = json.loads(path.read_bytes())["workflow"]
    runtimes = {task["id"]: task["runtimeInSeconds"] for task in workflow["execution"]["tasks"]}
    return [
        Task(task["id"], tuple(task["parents"]), float(runtimes[task["id"]]))
        for task in workflow["specification"]["tasks"]
    ]


def critical_path_s(tasks: Sequence[Task]) -> float:
    """Return how long the longest chain of dependent tasks takes, in seconds."""
    by_id = {task.id: task for task in tasks}
    ends: dict[str, float] = {}
    for name in topological_sort(_steps(tasks)):
        task = by_id[name]
        ends[name] = task.runtime_s + max((ends[parent] for parent in task.parents), default=0.0)
    return max(ends.values(), default=0.0)


def makespan_s(tasks: Sequence[Task], schedule: Literal["tiers", "ready"]) -> float:
    """Return how long a run of the tasks takes in virtual time, in seconds."""
    report = run_in_virtual_time(run_pipeline(_steps(tasks), schedule=schedule))
    assert passed(report)
    return report.total_duration_ms / 1000


def _steps(tasks: Sequence[Task]) -> list[WorkflowStep]:
    # Without a time limit: the tasks have run, however long.
    return [WorkflowStep(task.id, task.replay, task.parents, timeout_ms=None) for task in tasks]
