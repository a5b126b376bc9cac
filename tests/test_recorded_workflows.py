"""How long a run takes with each schedule, for workflows that have run elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import networkx
import pytest
from traces import NO_TRACES, trace_files

from tests.benchmarks.makespans import Task, critical_path_s, makespan_s, read_trace

# A long task depends on a short one of the first tier, so waiting for that tier costs time.
UNEVEN = [
    Task("a", (), 1.0),
    Task("b", (), 100.0),
    Task("c", ("a",), 60.5),
    Task("d", ("b", "c"), 2.0),
]


def test_a_trace_has_its_tasks_in_the_order_of_the_specification(tmp_path: Path) -> None:
    specified = [{"id": task.id, "parents": [*task.parents]} for task in UNEVEN]
    executed = [{"id": task.id, "runtimeInSeconds": task.runtime_s} for task in UNEVEN]
    workflow = {"specification": {"tasks": specified}, "execution": {"tasks": executed[::-1]}}
    path = tmp_path / "uneven.json"
    path.write_text(json.dumps({"schemaVersion": "1.5", "workflow": workflow}))

    assert read_trace(path) == UNEVEN


traced = [pytest.param(path, id=path.stem) for path in trace_files()] or [
    pytest.param(None, id="none", marks=pytest.mark.skip(NO_TRACES))
]


@pytest.mark.parametrize("recorded", [pytest.param(UNEVEN, id="uneven"), *traced])
def test_ready_takes_the_critical_path_and_tiers_the_longest_task_of_each_tier(
    recorded: Path | list[Task],
) -> None:
    tasks = recorded if isinstance(recorded, list) else read_trace(recorded)
    lasts = {task.id: task.runtime_s for task in tasks}
    graph = networkx.DiGraph((parent, task.id) for task in tasks for parent in task.parents)
    graph.add_nodes_from(lasts)
    tiers = networkx.topological_generations(graph)
    ends: dict[str, float] = {}
    for name in networkx.topological_sort(graph):
        ends[name] = lasts[name] + max((ends[each] for each in graph.predecessors(name)), default=0)

    assert critical_path_s(tasks) == pytest.approx(max(ends.values()))
    assert makespan_s(tasks, "ready") == pytest.approx(max(ends.values()), rel=0, abs=0.0005)
    assert makespan_s(tasks, "tiers") == pytest.approx(
        sum(max(map(lasts.__getitem__, tier)) for tier in tiers)
    )
