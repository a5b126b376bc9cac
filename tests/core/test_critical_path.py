"""The critical path is the chain of dependent steps that took longest in all."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import networkx as nx
from hypothesis import given
from hypothesis import strategies as st
from strategies import Edges, graphs, oracle_of

from asyncflow import RunReport, StepResult, StepStatus


def ran(name: str, duration_ms: float, *depends_on: str, **fields: Any) -> StepResult:
    fields = {"status": StepStatus.SUCCESS, "started_ms": 0.0, **fields}
    return StepResult(name, duration_ms=duration_ms, depends_on=depends_on, **fields)


def skipped(name: str, *depends_on: str) -> StepResult:
    return StepResult(name, StepStatus.SKIPPED, depends_on=depends_on)


def path_of(*results: StepResult) -> list[str]:
    return RunReport("r1", results, total_duration_ms=1.0, wall_time=1.0).critical_path


def test_the_critical_path_is_the_chain_with_the_longest_time_not_with_the_most_steps() -> None:
    path = path_of(
        ran("a", 1), ran("b", 2), ran("c", 1, "a"), ran("d", 3, "b", "a"), ran("e", 1, "c")
    )

    assert path == ["b", "d"]


def test_the_first_of_several_equal_chains_is_the_critical_path() -> None:
    assert path_of(ran("a", 1), ran("b", 1)) == ["a"]
    assert path_of(ran("a", 1), ran("b", 1), ran("c", 1, "b", "a")) == ["a", "c"]
    assert path_of(ran("a", 1), ran("b", 0, "a")) == ["a"]


def test_a_step_of_no_duration_belongs_to_the_path_if_longer_steps_follow() -> None:
    assert path_of(ran("a", 0), ran("b", 0, "a"), ran("c", 1, "b")) == ["a", "b", "c"]


def test_impossible_dependencies_do_not_break_it() -> None:
    assert path_of(ran("a", 1, "ghost", "a", "b"), ran("b", 2, "a")) == ["a", "b"]


def test_a_chain_of_10_000_steps_needs_no_recursion() -> None:
    steps = [ran("s0", 1), *(ran(f"s{at}", 1, f"s{at - 1}") for at in range(1, 10_000))]

    assert path_of(*steps) == [step.step_name for step in steps]


@given(graphs(), st.data())
def test_the_path_is_as_long_as_the_one_of_networkx(edges: Edges, data: st.DataObject) -> None:
    oracle = oracle_of(edges)
    lasted = {name: data.draw(st.integers(0, 3) | st.none(), name) for name in edges}
    order = list(nx.topological_sort(oracle))

    path = path_of(
        *(
            skipped(name, *edges[name])
            if (duration := lasted[name]) is None
            else ran(name, duration, *edges[name])
            for name in order
        )
    )

    oracle.add_edges_from(("start", name) for name in edges)
    for _, name, edge in oracle.edges(data=True):
        edge["weight"] = lasted[name] or 0
    longest = nx.dag_longest_path_length(oracle)
    assert sum(lasted[name] or 0 for name in path) == longest
    assert all(lasted[name] is not None for name in path)
    assert all(nx.has_path(oracle, one, next_) for one, next_ in pairwise(path))
