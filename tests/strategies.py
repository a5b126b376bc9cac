"""Hypothesis strategies for pipelines, and the same graphs in networkx as the oracle."""

from __future__ import annotations

import networkx as nx
from hypothesis import strategies as st

__all__ = ["Edges", "graphs", "oracle_of"]

Edges = dict[str, list[str]]
"""The dependencies of each step, in the order of declaration."""


@st.composite
def graphs(draw: st.DrawFn, *, max_steps: int = 12, acyclic: bool = True) -> Edges:
    """Draw a graph of a few steps, with steps and dependencies in any order."""
    count = draw(st.integers(0, max_steps))
    names = draw(st.permutations([f"s{number}" for number in range(count)]))
    edges: Edges = {}
    for position, name in enumerate(names):
        others = names[:position] if acyclic else names
        edges[name] = (
            draw(st.lists(st.sampled_from(others), unique=True, max_size=4)) if others else []
        )
    return {name: edges[name] for name in draw(st.permutations(names))}


def oracle_of(edges: Edges) -> nx.DiGraph:
    graph = nx.DiGraph()
    graph.add_nodes_from(edges)
    graph.add_edges_from((needed, name) for name, needs in edges.items() for needed in needs)
    return graph
