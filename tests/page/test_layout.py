"""A pipeline is drawn so that nothing lies on anything else, and each edge goes to the right."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st
from strategies import Edges, graphs

from asyncflow._views import dag
from asyncflow._views.dag import Layout, layout


def tiers_of(dependencies: Edges) -> list[int]:
    tiers: dict[str, int] = {}
    for name, needs in dependencies.items():
        tiers[name] = max((tiers[each] for each in needs), default=-1) + 1
    return list(tiers.values())


def in_order(dependencies: Edges) -> Edges:
    """The same graph with each step after those that it depends on."""
    ordered: Edges = {}
    while len(ordered) < len(dependencies):
        ordered |= {
            name: needs for name, needs in dependencies.items() if set(needs) <= set(ordered)
        }
    return ordered


def check(found: Layout, dependencies: Edges) -> None:
    for one, other in combinations(found.places, 2):
        assert one.layer != other.layer or abs(one.down - other.down) >= 0.99
    for place in found.places:
        assert 0 <= place.layer < found.layers
        assert 0.49 <= place.down <= found.height - 0.49
    names = list(dependencies)
    assert {(names[first], names[last]) for first, last, _ in found.edges} == {
        (needed, name) for name, needs in dependencies.items() for needed in needs
    }
    for first, last, bends in found.edges:
        layers = [place.layer for place in (found.places[first], *bends, found.places[last])]
        assert all(one < other for one, other in pairwise(layers))


@given(graphs())
def test_nothing_lies_on_anything_else_whatever_the_graph(edges: Edges) -> None:
    dependencies = in_order(edges)

    check(layout(dependencies), dependencies)


@given(graphs())
def test_the_layers_of_connected_steps_are_their_tiers(edges: Edges) -> None:
    dependencies = in_order(edges)

    found = layout(dependencies)

    assert [place.layer for place in found.places] == tiers_of(dependencies)


def test_a_chain_is_a_straight_line() -> None:
    found = layout({"a": (), "b": ("a",), "c": ("b",), "d": ("c",)})

    assert {place.down for place in found.places} == {0.5}
    assert found.height == 1.0


def test_an_edge_that_spans_layers_passes_them_beside_the_steps() -> None:
    found = layout({"a": (), "b": ("a",), "c": ("a", "b")})

    (bends,) = [bends for _, _, bends in found.edges if bends]
    assert len(bends) == 1
    assert abs(bends[0].down - found.places[1].down) >= 0.3


def test_edges_of_two_equal_rows_do_not_cross() -> None:
    names = [f"s{number}" for number in range(8)]
    dependencies = dict.fromkeys(names, ()) | {f"t{name}": (name,) for name in names[::-1]}

    found = layout(dependencies)

    order = sorted(range(8), key=lambda number: found.places[number].down)
    follow = sorted(range(8), key=lambda number: found.places[15 - number].down)
    assert order == follow


def test_steps_without_edges_have_their_places() -> None:
    dependencies: Edges = dict.fromkeys("abc", ()) | {"d": ("a",)}

    check(layout(dependencies), dependencies)


def test_no_steps_take_no_place() -> None:
    assert layout({}) == Layout(0, 0.0, (), ())


def test_a_dependency_that_is_no_step_or_comes_later_is_passed_over() -> None:
    found = layout({"a": ("gone", "b"), "b": ("b",)})

    assert found.edges == ()


def test_a_large_graph_is_laid_out_too() -> None:
    dependencies: Edges = {}
    for number in range(600):
        dependencies[f"s{number}"] = tuple(
            f"s{each}" for each in (number - 20, number - 41, number - 63) if each >= 0
        )

    check(layout(dependencies), dependencies)


def test_too_many_bends_are_left_out() -> None:
    chain: Edges = {f"s{number}": (f"s{number - 1}",) if number else () for number in range(300)}
    dependencies = chain | {f"t{number}": (f"s{number}", "s299") for number in range(0, 290, 3)}

    found = layout(dependencies)

    assert not any(bends for _, _, bends in found.edges)
    assert len(found.places) == len(dependencies)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=12))
def test_places_are_as_near_to_the_wanted_ones_as_the_gaps_let_them(wanted: list[float]) -> None:
    layer = list(range(len(wanted)))

    found = dag._apart(wanted, layer, len(layer))

    assert all(other - one >= 1 - 1e-9 for one, other in pairwise(found))
    # They would not lie better if they were moved as a whole.
    distance = sum(abs(place - each) for place, each in zip(found, wanted, strict=True))
    for by in (-1.0, -0.1, 0.1, 1.0):
        moved = sum(abs(place + by - each) for place, each in zip(found, wanted, strict=True))
        assert moved >= distance - 1e-6


def test_a_tree_is_symmetric() -> None:
    leaves = {f"{branch}{leaf}": (branch,) for branch in "abc" for leaf in range(3)}

    found = layout({"root": (), **dict.fromkeys("abc", ("root",)), **leaves})

    assert [place.down for place in found.places[:4]] == [4.5, 1.5, 4.5, 7.5]


def test_edges_that_need_not_cross_do_not() -> None:
    found = layout(
        {
            "a": (), "b": (), "c": (), "d": ("a",), "e": ("b",), "f": ("c",), "g": ("d", "e"),
            "h": ("g", "f"), "i": ("h",), "j": ("a", "i"), "k": ("i",),
        }
    )  # fmt: skip

    links = [
        pair
        for first, last, bends in found.edges
        for pair in pairwise((found.places[first], *bends, found.places[last]))
    ]
    assert not [
        (one, other)
        for one, other in combinations(links, 2)
        if one[0].layer == other[0].layer
        and (one[0].down - other[0].down) * (one[1].down - other[1].down) < 0
    ]
