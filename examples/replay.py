"""Replay recorded workflows in virtual time, and compare the two schedules.

Each file is a trace in WfFormat 1.5, as the WfCommons project publishes them: the tasks of a
real execution, what each depended on, and how long it ran. Every task becomes a step that sleeps
for as long as the task ran. In virtual time a replay of many hours takes milliseconds.

The makespan of a run can't be shorter than the trace's critical path. ``schedule="ready"``
reaches it. ``schedule="tiers"`` may not, because a tier waits for all of the tier before.

    python examples/replay.py [--json] FILE...

The exit code is 0 if all is well, 1 if a replay did not go as it must, and 2 if a file is not a
trace that can be replayed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from asyncflow import WorkflowStep, parallel_groups, run_pipeline, topological_sort
from asyncflow.testing import run_in_virtual_time


class TraceError(ValueError):
    """A file is not a trace that can be replayed."""


class ReplayError(RuntimeError):
    """A replay did not go as it must."""


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a recorded workflow."""

    id: str
    parents: tuple[str, ...]
    runtime_s: float

    async def replay(self) -> None:
        await asyncio.sleep(self.runtime_s)


@dataclass(frozen=True, slots=True)
class Replay:
    """What became of a trace: its shape, and how long each schedule took for it."""

    name: str
    tasks: int
    dependencies: int
    tiers: int
    critical_path_s: float
    tiers_s: float
    """The makespan of ``schedule="tiers"``."""
    ready_s: float
    """The makespan of ``schedule="ready"``."""

    def ratio(self, makespan_s: float) -> float | None:
        """Return how many times the critical path a makespan is; ``None`` if that is 0."""
        return makespan_s / self.critical_path_s if self.critical_path_s else None


def pipeline(tasks: Iterable[Task]) -> list[WorkflowStep]:
    """Return a step for each task, without a time limit: the tasks have run, however long."""
    return [WorkflowStep(task.id, task.replay, task.parents, timeout_ms=None) for task in tasks]


# Reading a trace.


def read_trace(path: Path) -> list[Task]:
    """Return the tasks of a trace, in the order of the file.

    Raises:
        TraceError: The file cannot be read, is not JSON or not WfFormat, or tells no runtime
            of a task.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise TraceError(f"{path}: is not JSON: {error}") from error
    runtimes = {_task_id(path, task): task for task in _section(path, document, "execution")}
    return [
        Task(name, _parents(path, name, task), _runtime_s(path, name, runtimes.get(name, {})))
        for task in _section(path, document, "specification")
        for name in [_task_id(path, task)]
    ]


def _section(path: Path, document: Any, section: str) -> list[dict[str, Any]]:
    place = document
    for key in ("workflow", section, "tasks"):
        place = place.get(key) if isinstance(place, dict) else None
    if not isinstance(place, list) or not all(isinstance(task, dict) for task in place):
        raise TraceError(
            f"{path}: is not WfFormat 1.5: there is no list of tasks at workflow.{section}.tasks"
        )
    return place


def _task_id(path: Path, task: dict[str, Any]) -> str:
    name = task.get("id")
    if not isinstance(name, str) or not name:
        raise TraceError(f"{path}: is not WfFormat 1.5: a task has the id {name!r}")
    return name


def _parents(path: Path, name: str, task: dict[str, Any]) -> tuple[str, ...]:
    parents = task.get("parents")
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise TraceError(f"{path}: is not WfFormat 1.5: task {name!r} has no list of parents")
    return tuple(parents)


def _runtime_s(path: Path, name: str, executed: dict[str, Any]) -> float:
    runtime_s = executed.get("runtimeInSeconds")
    if runtime_s is None:
        raise TraceError(f"{path}: task {name!r} has no runtimeInSeconds in workflow.execution")
    is_number = isinstance(runtime_s, int | float) and not isinstance(runtime_s, bool)
    if not is_number or not 0 <= runtime_s < math.inf:
        raise TraceError(
            f"{path}: runtimeInSeconds of task {name!r} must be a finite number, at least 0, "
            f"not {runtime_s!r}"
        )
    return float(runtime_s)


# Replaying it.


def replay(path: Path) -> Replay:
    """Run a trace in virtual time, once with each schedule.

    Raises:
        TraceError: The file is not a trace that can be replayed.
        ReplayError: A step failed, or ``schedule="ready"`` did not reach the critical path.
    """
    tasks = read_trace(path)
    steps = pipeline(tasks)
    try:
        tiers = parallel_groups(steps)
    except ValueError as error:  # an unknown parent, two tasks of one name, or a cycle
        raise TraceError(f"{path}: {error}") from error
    done = Replay(
        name=path.stem,
        tasks=len(tasks),
        dependencies=sum(len(step.depends_on) for step in steps),
        tiers=len(tiers),
        critical_path_s=critical_path_s(tasks),
        tiers_s=makespan_s(steps, "tiers"),
        ready_s=makespan_s(steps, "ready"),
    )
    if abs(done.ready_s - done.critical_path_s) >= 0.001:
        raise ReplayError(
            f"{path}: schedule='ready' took {done.ready_s:.3f} s, "
            f"but the critical path is {done.critical_path_s:.3f} s"
        )
    return done


def critical_path_s(tasks: Sequence[Task]) -> float:
    """Return how long the longest chain of dependent tasks takes, in seconds."""
    by_id = {task.id: task for task in tasks}
    ends: dict[str, float] = {}
    for name in topological_sort(pipeline(tasks)):
        task = by_id[name]
        ends[name] = task.runtime_s + max((ends[parent] for parent in task.parents), default=0.0)
    return max(ends.values(), default=0.0)


def makespan_s(steps: Sequence[WorkflowStep], schedule: Literal["tiers", "ready"]) -> float:
    """Return how long a run of the steps takes in virtual time, in seconds."""
    report = run_in_virtual_time(run_pipeline(steps, schedule=schedule))
    if not report.all_passed:
        raise ReplayError(str(report))
    return report.total_duration_ms / 1000


# Telling of it.


def as_table(replays: Iterable[Replay]) -> str:
    """Return a line for each trace; times in seconds, ratios to the critical path."""
    heads = ("trace", "tasks", "deps", "tiers", "critical", "tiers", "ratio", "ready", "ratio")
    rows = [
        (
            done.name,
            str(done.tasks),
            str(done.dependencies),
            str(done.tiers),
            f"{done.critical_path_s:.3f}",
            f"{done.tiers_s:.3f}",
            _ratio(done.ratio(done.tiers_s)),
            f"{done.ready_s:.3f}",
            _ratio(done.ratio(done.ready_s)),
        )
        for done in replays
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in [heads, *rows]
    )


def as_json(replays: Iterable[Replay]) -> str:
    """Return a JSON array with an object for each trace."""
    return json.dumps(
        [
            asdict(done)
            | {
                "tiers_ratio": done.ratio(done.tiers_s),
                "ready_ratio": done.ratio(done.ready_s),
            }
            for done in replays
        ],
        indent=2,
    )


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3f}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Replay workflow traces in virtual time.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a WfFormat 1.5 trace")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    replays: list[Replay] = []
    exit_code = 0
    for path in arguments.files:
        try:
            replays.append(replay(path))
        except (TraceError, ReplayError) as error:
            print(f"error: {error}", file=sys.stderr)
            exit_code = max(exit_code, 2 if isinstance(error, TraceError) else 1)
    if arguments.json:
        print(as_json(replays))
    elif replays:
        print(as_table(replays))
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
