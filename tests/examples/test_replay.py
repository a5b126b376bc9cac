"""The replay example measures workflow traces, and reports files that it cannot replay."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import networkx
import pytest
from traces import NO_TRACES, trace_files

from examples import replay

over_all_traces = pytest.mark.parametrize(
    "path",
    trace_files() or [pytest.param(None, marks=pytest.mark.skip(NO_TRACES))],
    ids=lambda path: path.stem if path else "none",
)


def write_trace(path: Path, tasks: Iterable[tuple[str, list[str], object]]) -> Path:
    tasks = list(tasks)
    specification = [{"id": name, "parents": parents} for name, parents, _ in tasks]
    execution = [{"id": name, "runtimeInSeconds": runtime} for name, _, runtime in tasks]
    workflow = {"specification": {"tasks": specification}, "execution": {"tasks": execution}}
    path.write_text(json.dumps({"schemaVersion": "1.5", "workflow": workflow}))
    return path


# A long task depends on a short one of the first tier, so waiting for that tier costs time.
UNEVEN = [("a", [], 1.0), ("b", [], 100), ("c", ["a"], 60.5), ("d", ["b", "c"], 2)]


@over_all_traces
def test_the_ready_schedule_takes_as_long_as_the_critical_path_of_every_real_trace(
    path: Path,
) -> None:
    done = replay.replay(path)

    assert done.ready_s == pytest.approx(done.critical_path_s, rel=0, abs=0.0005)


@over_all_traces
def test_networkx_finds_the_same_critical_path(path: Path) -> None:
    tasks = replay.read_trace(path)
    graph = networkx.DiGraph()
    for task in tasks:
        graph.add_edge(task.id, "end of the workflow", weight=task.runtime_s)
    runtimes = {task.id: task.runtime_s for task in tasks}
    graph.add_weighted_edges_from(
        (parent, task.id, runtimes[parent]) for task in tasks for parent in task.parents
    )

    longest = networkx.dag_longest_path_length(graph)

    assert replay.critical_path_s(tasks) == pytest.approx(longest)


@over_all_traces
def test_the_makespan_of_tiers_is_the_sum_of_the_longest_task_of_each(path: Path) -> None:
    tasks = {task.id: task for task in replay.read_trace(path)}
    graph = networkx.DiGraph(
        (parent, task.id) for task in tasks.values() for parent in task.parents
    )
    graph.add_nodes_from(tasks)
    generations = networkx.topological_generations(graph)

    done = replay.replay(path)

    assert done.tiers_s == pytest.approx(
        sum(max(tasks[name].runtime_s for name in tier) for tier in generations)
    )


def test_a_replay_has_the_size_of_the_trace_and_both_makespans(tmp_path: Path) -> None:
    done = replay.replay(write_trace(tmp_path / "uneven.json", UNEVEN))

    assert (done.name, done.tasks, done.dependencies, done.tiers) == ("uneven", 4, 3, 3)
    assert (done.critical_path_s, done.ready_s, done.tiers_s) == pytest.approx((102, 102, 162.5))


def test_the_output_has_one_line_for_each_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uneven = write_trace(tmp_path / "uneven.json", UNEVEN)
    single = write_trace(tmp_path / "single.json", [("only", [], 3)])

    exit_code = replay.main([str(uneven), str(single)])

    heads, *rows = capsys.readouterr().out.splitlines()
    assert exit_code == 0
    assert heads.split()[:5] == ["trace", "tasks", "deps", "tiers", "critical"]
    assert [row.split() for row in rows] == [
        ["uneven", "4", "3", "3", "102.000", "162.500", "1.593", "102.000", "1.000"],
        ["single", "1", "0", "1", "3.000", "3.000", "1.000", "3.000", "1.000"],
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is not JSON"),
        ("\x80", "is not JSON"),
        ("[]", "no list of tasks at workflow.execution.tasks"),
        ('{"workflow": {"tasks": []}}', "no list of tasks at workflow.execution.tasks"),
        ('{"workflow": {"execution": {"tasks": [1]}}}', "is not WfFormat 1.5"),
        ('{"workflow": {"execution": {"tasks": []}}}', "tasks at workflow.specification.tasks"),
        ('{"workflow": {"execution": {"tasks": [{}]}}}', "a task has the id None"),
        (
            '{"workflow": {"execution": {"tasks": []}, "specification": {"tasks": [{"id": "a"}]}}}',
            "task 'a' has no list of parents",
        ),
    ],
)
def test_a_file_that_is_not_a_trace_is_reported_with_the_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, complaint: str
) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(text, encoding="latin-1")

    exit_code = replay.main([str(path)])

    out, err = capsys.readouterr()
    assert exit_code == 2
    assert err.startswith(f"error: {path}: ")
    assert complaint in err
    assert out == ""


@pytest.mark.parametrize(
    ("tasks", "complaint"),
    [
        ([("a", [], None)], "task 'a' has no runtimeInSeconds"),
        ([("a", [], -1)], "must be a finite number, at least 0, not -1"),
        ([("a", [], "1")], "must be a finite number, at least 0, not '1'"),
        ([("a", [], True)], "must be a finite number, at least 0, not True"),
        ([("a", [], float("nan"))], "must be a finite number, at least 0, not nan"),
        ([("a", [], float("inf"))], "must be a finite number, at least 0, not inf"),
        ([("align", [], 1), ("sort", ["algin"], 1)], "unknown step 'algin' (did you mean 'align'"),
        ([("a", ["b"], 1), ("b", ["a"], 1)], "a -> b -> a"),
        ([("a", [], 1), ("a", [], 1)], "two steps are named 'a'"),
    ],
)
def test_an_impossible_trace_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tasks: list[tuple[str, list[str], object]],
    complaint: str,
) -> None:
    path = write_trace(tmp_path / "wrong.json", tasks)

    exit_code = replay.main([str(path)])

    assert exit_code == 2
    assert complaint in capsys.readouterr().err


def test_a_call_without_files_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        replay.main([])

    assert stopped.value.code == 2
    assert "FILE" in capsys.readouterr().err
