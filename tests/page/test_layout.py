"""The layout of a graph has no overlaps, and every edge leads to the right."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given
from strategies import Edges, graphs

from asyncflow._views.dag import Layout, layout


def tiers_of(dependencies: Edges) -> list[int]:
    tiers: dict[str, int] = {}
    for name, needs in dependencies.items():
        tiers[name] = max((tiers[each] for each in needs), default=-1) + 1
    return list(tiers.values())


def topologically_sorted(dependencies: Edges) -> Edges:
    """Return the same graph with each step after its dependencies."""
    ordered: Edges = {}
    while len(ordered) < len(dependencies):
        ordered |= {
            name: needs for name, needs in dependencies.items() if set(needs) <= set(ordered)
        }
    return ordered


def assert_valid(drawn: Layout, dependencies: Edges) -> None:
    for one, other in combinations(drawn.places, 2):
        assert one.layer != other.layer or abs(one.down - other.down) >= 0.99
    for place in drawn.places:
        assert 0 <= place.layer < drawn.layers
        assert 0.49 <= place.down <= drawn.height - 0.49
    names = list(dependencies)
    assert {(names[first], names[last]) for first, last, _ in drawn.edges} == {
        (needed, name) for name, needs in dependencies.items() for needed in needs
    }
    for first, last, bends in drawn.edges:
        layers = [place.layer for place in (drawn.places[first], *bends, drawn.places[last])]
        assert all(one < other for one, other in pairwise(layers))


@given(graphs())
def test_no_two_places_of_any_graph_overlap(edges: Edges) -> None:
    dependencies = topologically_sorted(edges)

    assert_valid(layout(dependencies), dependencies)


@given(graphs())
def test_the_layers_of_connected_steps_are_their_tiers(edges: Edges) -> None:
    dependencies = topologically_sorted(edges)

    drawn = layout(dependencies)

    assert [place.layer for place in drawn.places] == tiers_of(dependencies)


def test_an_edge_that_spans_layers_passes_them_beside_the_steps() -> None:
    drawn = layout({"a": (), "b": ("a",), "c": ("a", "b")})

    (bends,) = [bends for _, _, bends in drawn.edges if bends]
    assert len(bends) == 1
    assert abs(bends[0].down - drawn.places[1].down) >= 0.3


def test_a_large_graph_is_laid_out() -> None:
    dependencies: Edges = {}
    for number in range(600):
        dependencies[f"s{number}"] = tuple(
            f"s{each}" for each in (number - 20, number - 41, number - 63) if each >= 0
        )

    assert_valid(layout(dependencies), dependencies)


def test_a_layout_drops_its_bends_when_they_are_too_many() -> None:
    chain: Edges = {f"s{number}": (f"s{number - 1}",) if number else () for number in range(300)}
    dependencies = chain | {f"t{number}": (f"s{number}", "s299") for number in range(0, 290, 3)}

    drawn = layout(dependencies)

    assert not any(bends for _, _, bends in drawn.edges)
    assert len(drawn.places) == len(dependencies)


def test_a_level_planar_graph_has_no_crossing_edges() -> None:
    drawn = layout(
        {
            "a": (), "b": (), "c": (), "d": ("a",), "e": ("b",), "f": ("c",), "g": ("d", "e"),
            "h": ("g", "f"), "i": ("h",), "j": ("a", "i"), "k": ("i",),
        }
    )  # fmt: skip

    links = [
        pair
        for first, last, bends in drawn.edges
        for pair in pairwise((drawn.places[first], *bends, drawn.places[last]))
    ]
    assert not [
        (one, other)
        for one, other in combinations(links, 2)
        if one[0].layer == other[0].layer
        and (one[0].down - other[0].down) * (one[1].down - other[1].down) < 0
    ]
