"""Where the steps of a pipeline lie in a drawing from left to right, layer by layer.

A layered drawing after K. Sugiyama, S. Tagawa and M. Toda, "Methods for visual understanding of
hierarchical system structures" (1981). Where the package ``fast_sugiyama`` is installed it finds
the places. Without it the layers are the tiers, each is ordered by the barycenters of its
neighbours, and each step lies as near to its neighbours as its layer lets it.

How the steps of a pipeline are drawn: boxes with their names and curves between them.

A pipeline that has not run, drawn as a picture of its own in SVG.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from html import escape
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

from asyncflow._core.errors import escape_controls

__all__ = [
    "Box",
    "Curve",
    "Drawing",
    "Layout",
    "Place",
    "drawing",
    "layout",
    "to_svg",
    "wrapped",
]

try:
    import fast_sugiyama
except ImportError:
    fast_sugiyama = None  # type: ignore[assignment]


Edge: TypeAlias = tuple[int, int]
Layers: TypeAlias = list[list[int]]

_SWEEPS = 6
_MOST_FOR_FAST = 250
"""Above so many edges the package takes seconds; a page must not."""
_MOST_BENDS = 8_000
"""Above so many, edges go straight from step to step."""
_BEND_HEIGHT = 0.3
"""What an edge that passes through a layer takes of a step's height."""


class Place(NamedTuple):
    """A place: the layer, counted from 0, and how far down, in steps' heights."""

    layer: int
    down: float


class Layout(NamedTuple):
    """Where everything lies. A step is known by its number."""

    layers: int
    height: float
    """In steps' heights."""
    places: tuple[Place, ...]
    """Of each step: that of its middle."""
    edges: tuple[tuple[int, int, tuple[Place, ...]], ...]
    """From which step to which, and through which places in between."""


def layout(dependencies: Mapping[str, Sequence[str]]) -> Layout:
    """Return where the steps lie, given for each, in topological order, what it depends on."""
    numbers = {name: number for number, name in enumerate(dependencies)}
    edges = tuple(
        dict.fromkeys(
            (numbers[needed], numbers[name])
            for name, needs in dependencies.items()
            for needed in needs
            if numbers.get(needed, len(numbers)) < numbers[name]
        )
    )
    return _layout(len(numbers), edges)


@lru_cache(maxsize=64)  # a live page asks again and again
def _layout(count: int, edges: tuple[Edge, ...]) -> Layout:
    tiers = _tiers(count, edges)
    if fast_sugiyama is not None and 0 < len(edges) <= _MOST_FOR_FAST:
        found = _fast(count, edges)
        if _is_sound(found, tiers):
            return found
    return _own(edges, tiers)


def _tiers(count: int, edges: Sequence[Edge]) -> list[int]:
    before: defaultdict[int, list[int]] = defaultdict(list)
    for first, last in edges:
        before[last].append(first)
    tiers: list[int] = []
    for number in range(count):
        tiers.append(max((tiers[each] for each in before[number]), default=-1) + 1)
    return tiers


def _is_sound(found: Layout, tiers: list[int]) -> bool:
    """Whether all steps are in their tiers and beside each other, as they are nearly always."""
    if [place.layer for place in found.places] != tiers:
        return False
    ordered = sorted(found.places)
    return all(
        one.layer != other.layer or other.down - one.down > 0.99 for one, other in pairwise(ordered)
    )


def _finished(places: Mapping[int, Place], count: int, ways: Mapping[Edge, list[int]]) -> Layout:
    """Return a layout of places that may begin anywhere."""
    top = min((place.down for place in places.values()), default=0.0)
    moved = {
        number: Place(layer, round(down - top + 0.5, 3)) for number, (layer, down) in places.items()
    }
    return Layout(
        max((place.layer for place in places.values()), default=-1) + 1,
        max((place.down for place in moved.values()), default=-0.5) + 0.5,
        tuple(moved[number] for number in range(count)),
        tuple(
            (first, last, tuple(moved[bend] for bend in bends))
            for (first, last), bends in ways.items()
        ),
    )


# With the package.


def _fast(count: int, edges: tuple[Edge, ...]) -> Layout:
    places: dict[int, Place] = {}
    ways: dict[Edge, list[int]] = {}
    bottom, taken = 0.0, count
    for part in _parts(count, edges):
        if len(part) == 1:
            continue
        own = [edge for edge in edges if edge[0] in part]
        found, links = _from_edges(own)
        # Its numbers of bends begin anew in each part.
        names = {each: each if each in part else taken + at for at, (each, _) in enumerate(found)}
        taken += len(found)
        left = sorted({-at[1] for _, at in found})
        lowest = min(at[0] for _, at in found)
        for each, (down, up) in found:
            places[names[each]] = Place(left.index(-up), bottom + down - lowest)
        bottom = max(places[names[each]].down for each, _ in found) + 1
        ways |= _ways(own, [(names[first], names[last]) for first, last in links], count)
    for at, number in enumerate(each for each in range(count) if each not in places):
        places[number] = Place(0, bottom + at)
    return _finished(places, count, ways)


def _from_edges(edges: list[Edge]) -> tuple[list[tuple[int, tuple[float, float]]], list[Edge]]:
    """Return where the steps of one part, and the bends, lie; and the links between them."""
    assert fast_sugiyama is not None
    parts: Any = fast_sugiyama.from_edges(
        edges,
        vertex_spacing=1,
        dummy_vertices=True,
        dummy_size=_BEND_HEIGHT,
        ranking_type="up",  # in layers that are our tiers
    )
    ((found, _, _, links),) = parts
    return found, links


def _parts(count: int, edges: Sequence[Edge]) -> list[set[int]]:
    """Return the parts that are connected, in the order of their first steps."""
    part = {number: {number} for number in range(count)}
    for one, other in edges:
        small, large = sorted((part[one], part[other]), key=len)
        if small is not large:
            large |= small
            for each in small:
                part[each] = large
    return list({id(each): each for each in part.values()}.values())


def _ways(edges: list[Edge], links: list[Edge], count: int) -> dict[Edge, list[int]]:
    """Return through which bends each edge goes, given the links between steps and bends."""
    following = {first: last for first, last in links if first >= count}
    ways: dict[Edge, list[int]] = {}
    for first, last in links:
        if first >= count:
            continue
        bends = []
        while last >= count:
            bends.append(last)
            last = following[last]
        ways[first, last] = bends
    return {edge: ways.get(edge, []) for edge in edges}


# Without it.


def _own(edges: tuple[Edge, ...], tiers: list[int]) -> Layout:
    count = len(tiers)
    layer = dict(enumerate(tiers))
    ways = _bends(edges, layer, count)
    layers: Layers = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    for number in sorted(layer):
        layers[layer[number]].append(number)
    links = [
        link
        for (first, last), bends in ways.items()
        for link in pairwise([first, *bends, last])
        if layer[link[1]] - layer[link[0]] == 1
    ]
    back: defaultdict[int, list[int]] = defaultdict(list)
    ahead: defaultdict[int, list[int]] = defaultdict(list)
    for first, last in links:
        back[last].append(first)
        ahead[first].append(last)
    layers = _ordered(layers, back, ahead)
    down = _lowered(layers, back, ahead, count)
    places = {number: Place(layer[number], down[number]) for number in layer}
    return _finished(places, count, ways)


def _bends(edges: Sequence[Edge], layer: dict[int, int], count: int) -> dict[Edge, list[int]]:
    """Give each edge that spans several layers a bend in each layer that it passes through."""
    lengths = sum(layer[last] - layer[first] - 1 for first, last in edges)
    ways: dict[Edge, list[int]] = {}
    for first, last in edges:
        between = range(layer[first] + 1, layer[last]) if lengths <= _MOST_BENDS else ()
        ways[first, last] = list(range(count, count + len(between)))
        layer.update(zip(ways[first, last], between, strict=True))
        count += len(between)
    return ways


def _ordered(
    layers: Layers, back: Mapping[int, list[int]], ahead: Mapping[int, list[int]]
) -> Layers:
    """Return the layers in orders in which few edges cross."""
    best, fewest = layers, _crossings(layers, ahead)
    layers = [list(each) for each in layers]
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        neighbours = back if forward else ahead
        for beside, current in pairwise(layers if forward else layers[::-1]):
            at = {number: place for place, number in enumerate(beside)}
            centre = {
                number: _mean([at[each] for each in neighbours.get(number, ())], place)
                for place, number in enumerate(current)
            }
            current.sort(key=centre.__getitem__)
        crossings = _crossings(layers, ahead)
        if crossings < fewest:
            best, fewest = [list(each) for each in layers], crossings
    return best


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _crossings(layers: Layers, ahead: Mapping[int, list[int]]) -> int:
    crossings = 0
    for one, other in pairwise(layers):
        at = {number: place for place, number in enumerate(other)}
        ends: list[int] = []
        for number in one:
            targets = sorted(at[each] for each in ahead.get(number, ()))
            crossings += sum(len(ends) - bisect_right(ends, target) for target in targets)
            for target in targets:
                insort(ends, target)
    return crossings


def _lowered(
    layers: Layers, back: Mapping[int, list[int]], ahead: Mapping[int, list[int]], count: int
) -> dict[int, float]:
    """Return how far down each step and bend lies."""
    down: dict[int, float] = {}
    for layer in layers:
        down.update(zip(layer, _apart([0.0] * len(layer), layer, count), strict=True))
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        neighbours = back if forward else ahead
        for layer in layers if forward else layers[::-1]:
            wanted = [
                _mean([down[each] for each in neighbours.get(number, ())], down[number])
                for number in layer
            ]
            down.update(zip(layer, _apart(wanted, layer, count), strict=True))
    return down


def _apart(wanted: list[float], layer: list[int], count: int) -> list[float]:
    """Return the places nearest to the wanted ones in which nothing overlaps, in this order.

    With the gaps taken off, what is asked for is the nearest sequence that does not fall, as in
    isotonic regression: neighbours that would fall are pooled at their mean.
    """
    offset = 0.0
    offsets: list[float] = []
    for one, other in pairwise([layer[0], *layer]):
        if offsets:
            offset += (_height(one, count) + _height(other, count)) / 2
        offsets.append(offset)
    pools: list[tuple[float, int]] = []
    for each, shift in zip(wanted, offsets, strict=True):
        mean, size = each - shift, 1
        while pools and pools[-1][0] > mean:
            other_mean, other_size = pools.pop()
            mean = (mean * size + other_mean * other_size) / (size + other_size)
            size += other_size
        pools.append((mean, size))
    flat = [mean for mean, size in pools for _ in range(size)]
    return [mean + shift for mean, shift in zip(flat, offsets, strict=True)]


def _height(number: int, count: int) -> float:
    return 1.0 if number < count else _BEND_HEIGHT


BOX_WIDTH, GAP_ACROSS, GAP_DOWN, MARGIN = 226, 60, 16, 12
LINE_HEIGHT, AROUND = 16, 32
"""Of a line of the name; and of what is above and below, its status included."""
TEXT_WIDTH = 178
"""What is left of a box for a line of its name, in pixels, at 12 pixels a letter."""
MOST_LINES = 4

# About how wide a letter is. Too wide an estimate makes a line end early, and does no harm.
_NARROW, _BROAD = frozenset("fijlrtI.,:;'|!()[] "), frozenset("mwMWQO@%—…")
_NARROW_PX, _USUAL_PX, _BROAD_PX, _CAPITAL_PX = 4.8, 7.4, 11.5, 8.8
_WORDS = re.compile(r"[^\s_\-./:]*[\s_\-./:]?")


class Box(NamedTuple):
    """A step. Lengths are pixels."""

    x: float
    y: float
    height: float
    lines: tuple[str, ...]
    """Its name, in as many lines as it needs, and at most four."""


class Curve(NamedTuple):
    """An edge, from one step to another."""

    first: int
    last: int
    path: str
    """In the language of SVG."""


class Drawing(NamedTuple):
    """All of it."""

    width: float
    height: float
    box_width: float
    boxes: tuple[Box, ...]
    curves: tuple[Curve, ...]


def drawing(dependencies: Mapping[str, Sequence[str]]) -> Drawing:
    """Draw the steps, given for each, in topological order, what it depends on."""
    return _drawing(tuple((name, tuple(needs)) for name, needs in dependencies.items()))


@lru_cache(maxsize=16)  # as for the layout
def _drawing(pipeline: tuple[tuple[str, tuple[str, ...]], ...]) -> Drawing:
    names = [wrapped(name) for name, _ in pipeline]
    tallest = max(map(_label_height, names), default=0.0)
    found = layout(dict(pipeline))

    def across(layer: int) -> float:
        return MARGIN + layer * (BOX_WIDTH + GAP_ACROSS)

    def down(place: Place) -> float:
        return round(MARGIN + place.down * (tallest + GAP_DOWN) - GAP_DOWN / 2, 1)

    boxes = tuple(
        Box(
            across(place.layer), down(place) - _label_height(lines) / 2, _label_height(lines), lines
        )
        for place, lines in zip(found.places, names, strict=True)
    )
    curves = tuple(
        Curve(first, last, _path([found.places[first], *bends, found.places[last]], across, down))
        for first, last, bends in found.edges
    )
    return Drawing(
        across(max(found.layers, 1)) - GAP_ACROSS + MARGIN,
        MARGIN * 2 + found.height * (tallest + GAP_DOWN) - GAP_DOWN,
        BOX_WIDTH,
        boxes,
        curves,
    )


def _label_height(lines: Sequence[str]) -> float:
    return AROUND + LINE_HEIGHT * len(lines)


def _path(
    way: Sequence[Place], across: Callable[[int], float], down: Callable[[Place], float]
) -> str:
    x, y = across(way[0].layer) + BOX_WIDTH, down(way[0])
    path = [f"M{x:g} {y:g}"]
    for place in way[1:]:
        to_x, to_y = across(place.layer), down(place)
        middle = (x + to_x) / 2
        path.append(f"C{middle:g} {y:g} {middle:g} {to_y:g} {to_x:g} {to_y:g}")
        x, y = to_x + BOX_WIDTH, to_y
        if place is not way[-1]:  # straight past the boxes of the layer
            path.append(f"H{x:g}")
    return "".join(path)


def wrapped(name: str) -> tuple[str, ...]:
    """Return a name in lines that fit into a box; what does not fit is cut off with an ellipsis."""
    lines, line, width = [], "", 0.0
    for word in _WORDS.findall(escape_controls(name)):
        if line and width + _width(word) > TEXT_WIDTH:
            lines.append(line)
            line, width = "", 0.0
        for letter in word:
            if width + _width(letter) > TEXT_WIDTH:
                lines.append(line)
                line, width = "", 0.0
            line += letter
            width += _width(letter)
    lines.append(line)
    if len(lines) > MOST_LINES:
        lines[MOST_LINES - 1] = f"{lines[MOST_LINES - 1][:-1]}…"
    return tuple(lines[:MOST_LINES])


def _width(text: str) -> float:
    return sum(map(_width_of, text))


def _width_of(letter: str) -> float:
    if letter in _NARROW:
        return _NARROW_PX
    if letter in _BROAD or unicodedata.east_asian_width(letter) in "WF":
        return _BROAD_PX if letter in _BROAD else 13.0
    return _CAPITAL_PX if letter.isupper() or letter in "<>=+~#&" else _USUAL_PX


_STYLE = """
  .box { fill: #f8fafc; stroke: #64748b }
  .edge { fill: none; stroke: #94a3b8; stroke-width: 1.5 }
  text { font: 12px system-ui, sans-serif; fill: #0f172a }
  .tier { font-size: 11px; fill: #475569 }
  @media (prefers-color-scheme: dark) {
    .box { fill: #1e293b; stroke: #94a3b8 }
    .edge { stroke: #64748b }
    text { fill: #f1f5f9 }
    .tier { fill: #cbd5e1 }
  }
"""


def to_svg(
    name: str, tiers: Sequence[Sequence[str]], dependencies: Mapping[str, tuple[str, ...]]
) -> str:
    """Return the picture: a box for each step with its name and tier, a curve for each dependency.

    Args:
        name: What the pipeline is called.
        tiers: The names of the steps in their tiers.
        dependencies: For each step, in topological order, the steps it depends on.
    """
    graph = drawing(dependencies)
    tier_of = {step: number for number, tier in enumerate(tiers, 1) for step in tier}
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{graph.width:g}" '
            f'height="{graph.height:g}" viewBox="0 0 {graph.width:g} {graph.height:g}" role="img">',
            f"<title>{_text(name)}</title>",
            f"<style>{_STYLE}</style>",
            *(f'<path class="edge" d="{curve.path}"/>' for curve in graph.curves),
            *_boxes(graph, dependencies, tier_of),
            "</svg>",
        ]
    )


def _boxes(
    graph: Drawing, steps: Mapping[str, object], tier_of: Mapping[str, int]
) -> Iterator[str]:
    for step, box in zip(steps, graph.boxes, strict=True):
        yield f'<g transform="translate({box.x:g} {box.y:g})"><title>{_text(step)}</title>'
        yield f'<rect class="box" width="{graph.box_width:g}" height="{box.height:g}" rx="6"/>'
        yield from _lines(box)
        yield f'<text class="tier" x="12" y="{box.height - 9:g}">tier {tier_of[step]}</text></g>'


def _text(name: str) -> str:
    return escape(escape_controls(name))


def _lines(box: Box) -> Iterator[str]:
    for number, line in enumerate(box.lines):
        yield f'<text x="12" y="{18 + 16 * number}">{escape(line)}</text>'
