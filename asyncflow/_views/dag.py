"""The graph of a pipeline as a drawing: boxes with names, and curves between them, in layers.

Rules:

1. The layers are the tiers, from left to right (K. Sugiyama, S. Tagawa and M. Toda, "Methods for
   visual understanding of hierarchical system structures", 1981). An edge over several layers has
   a bend in each one that it passes.
2. Barycenters of neighbours order each layer.
3. The boxes of a layer lie below each other, and all layers about the same middle.
4. A step that runs after nearly all others, as a clean-up step does, has a badge in place of its
   edges, which would cross everything. They are drawn straight, for a reader who asks for them.
5. It needs nothing but the standard library, and the same pipeline gives the same drawing.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from html import escape
from itertools import accumulate, pairwise
from typing import NamedTuple, TypeAlias

from asyncflow._core.text import escape_controls

_Edge: TypeAlias = tuple[int, int]
_Layers: TypeAlias = list[list[int]]
_Neighbours: TypeAlias = Mapping[int, Sequence[int]]

_SWEEPS = 8
_MOST_BENDS = 8_000
"""With more, edges go straight from step to step."""
_FEWEST_BUNDLED, _SHARE_BUNDLED = 6, 0.8
"""How many dependencies, and which share of the other steps, a badge stands for at least."""
_BEND_HEIGHT = 0.3
"""The height of a bend, in steps' heights."""


class Place(NamedTuple):
    layer: int
    """Counted from 0."""
    down: float
    """How far down its middle is, in steps' heights."""


class Layout(NamedTuple):
    """Where everything lies. A step is known by its number."""

    layers: int
    height: float
    """In steps' heights."""
    places: tuple[Place, ...]
    edges: tuple[tuple[int, int, tuple[Place, ...]], ...]
    """From which step to which, and over which bends."""
    bundled: frozenset[int] = frozenset()
    """The steps that have a badge in place of the edges that lead to them."""


def layout(dependencies: Mapping[str, Sequence[str]]) -> Layout:
    """Return where the steps lie, given each with its dependencies, in topological order."""
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
def _layout(count: int, edges: tuple[_Edge, ...]) -> Layout:
    layer = _tiers(count, edges)
    bundled = _bundled(count, edges, layer)
    paths = _bends([edge for edge in edges if edge[1] not in bundled], layer)
    layers: _Layers = [[] for _ in range(max(layer, default=-1) + 1)]
    for number, at in enumerate(layer):
        layers[at].append(number)
    before: defaultdict[int, list[int]] = defaultdict(list)
    after: defaultdict[int, list[int]] = defaultdict(list)
    for (first, last), bends in paths.items():
        for one, other in pairwise([first, *bends, last]):
            if layer[other] - layer[one] == 1:
                before[other].append(one)
                after[one].append(other)
    down = _stacked(_ordered(layers, before, after), count)
    top = min(down.values(), default=0.0) - 0.5
    places = [Place(at, round(down[number] - top, 3)) for number, at in enumerate(layer)]
    return Layout(
        len(layers),
        max((place.down for place in places), default=-0.5) + 0.5,
        tuple(places[:count]),
        tuple((*edge, tuple(places[bend] for bend in paths.get(edge, ()))) for edge in edges),
        bundled,
    )


def _tiers(count: int, edges: Sequence[_Edge]) -> list[int]:
    tiers = [0] * count
    for first, last in sorted(edges, key=lambda edge: edge[1]):
        tiers[last] = max(tiers[last], tiers[first] + 1)
    return tiers


def _bundled(count: int, edges: Sequence[_Edge], layer: Sequence[int]) -> frozenset[int]:
    """Return the steps that depend on nearly all others, and not just on those of one tier."""
    needs: defaultdict[int, list[int]] = defaultdict(list)
    for first, last in edges:
        needs[last].append(layer[first])
    least = max(_FEWEST_BUNDLED, _SHARE_BUNDLED * (count - 1))
    return frozenset(
        number for number, tiers in needs.items() if len(tiers) >= least and len({*tiers}) > 1
    )


def _bends(edges: Sequence[_Edge], layer: list[int]) -> dict[_Edge, range]:
    """Give each edge a bend in each layer that it passes, and append the bends to the layers."""
    lengths = sum(layer[last] - layer[first] - 1 for first, last in edges)
    paths: dict[_Edge, range] = {}
    for first, last in edges:
        passed = range(layer[first] + 1, layer[last]) if lengths <= _MOST_BENDS else range(0)
        paths[first, last] = range(len(layer), len(layer) + len(passed))
        layer += passed
    return paths


def _ordered(layers: _Layers, before: _Neighbours, after: _Neighbours) -> _Layers:
    """Return the layers in orders in which few edges cross."""
    best, fewest = layers, _crossings(layers, after)
    for start in (0, 1):  # from the left, then from the right: the better one counts
        current = [list(layer) for layer in layers]
        at = {number: place for layer in current for place, number in enumerate(layer)}
        for sweep in range(start, _SWEEPS + start):
            if not fewest:
                return best
            forward = sweep % 2 == 0
            neighbours = before if forward else after
            for layer in current if forward else current[::-1]:
                centre = {
                    number: _mean([at[each] for each in neighbours.get(number, ())], at[number])
                    for number in layer
                }
                layer.sort(key=centre.__getitem__)
                at.update((number, place) for place, number in enumerate(layer))
            crossings = _crossings(current, after)
            if crossings < fewest:
                best, fewest = [list(layer) for layer in current], crossings
    return best


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _crossings(layers: _Layers, after: _Neighbours) -> int:
    crossings = 0
    for one, other in pairwise(layers):
        at = {number: place for place, number in enumerate(other)}
        ends: list[int] = []
        for number in one:
            targets = sorted(at[each] for each in after.get(number, ()))
            crossings += sum(len(ends) - bisect_right(ends, target) for target in targets)
            for target in targets:
                insort(ends, target)
    return crossings


def _stacked(layers: _Layers, count: int) -> dict[int, float]:
    """Return how far down each step and bend lies: below each other, each layer about the middle.

    The steps have the numbers below ``count``.
    """
    down: dict[int, float] = {}
    for layer in layers:
        heights = [1.0 if number < count else _BEND_HEIGHT for number in layer]
        below = accumulate(heights, initial=-sum(heights) / 2)
        down |= {
            number: top + height / 2
            for number, top, height in zip(layer, below, heights, strict=False)
        }
    return down


BOX_WIDTH, GAP_ACROSS, GAP_DOWN, MARGIN = 226, 60, 16, 12
LINE_HEIGHT, AROUND = 16, 32
"""The height of a line of the name, and of what is above and below these, status included."""
TEXT_WIDTH = 178
"""How wide a line of the name may be, in pixels of a 12 pixel font."""
MOST_LINES = 4

# About how wide a letter is. Too wide an estimate makes a line end early, and does no harm.
_NARROW, _BROAD = frozenset("fijlrtI.,:;'|!()[] "), frozenset("mwMWQO@%—…<>=+~#&")
_NARROW_PX, _USUAL_PX, _BROAD_PX, _CAPITAL_PX = 4.8, 7.4, 11.5, 8.8
_WORDS = re.compile(r"[^\s_\-./:]*[\s_\-./:]?")


class Box(NamedTuple):
    """A step. Lengths are pixels."""

    x: float
    y: float
    height: float
    lines: tuple[str, ...]
    """Its name, in as many lines as it needs, and at most four."""
    badge: str = ""
    """What stands for the edges that lead to it: ``all 19`` or ``17``; empty if nothing."""
    badge_width: float = 0.0


class Curve(NamedTuple):
    """An edge, from one step to another."""

    first: int
    last: int
    path: str
    """In the language of SVG."""
    is_bundled: bool = False
    """Whether the badge of its last step stands for it."""


class GraphDrawing(NamedTuple):
    """The boxes of the steps, in their order, and the curves of their dependencies."""

    width: float
    height: float
    box_width: float
    boxes: tuple[Box, ...]
    curves: tuple[Curve, ...]


def draw_graph(
    dependencies: Mapping[str, Sequence[str]], labels: Mapping[str, str] | None = None
) -> GraphDrawing:
    """Draw the steps, given each with its dependencies, in topological order.

    ``labels`` are the texts of boxes that have another one than their name.
    """
    texts = labels or {}
    pipeline = [(name, tuple(needs), texts.get(name, name)) for name, needs in dependencies.items()]
    return _draw(tuple(pipeline))


@lru_cache(maxsize=16)  # as for the layout
def _draw(pipeline: tuple[tuple[str, tuple[str, ...], str], ...]) -> GraphDrawing:
    names = [wrapped(text) for _, _, text in pipeline]
    tallest = max(map(_label_height, names), default=0.0)
    found = layout({name: needs for name, needs, _ in pipeline})

    def across(layer: int) -> float:
        return MARGIN + layer * (BOX_WIDTH + GAP_ACROSS)

    def down(place: Place) -> float:
        return round(MARGIN + place.down * (tallest + GAP_DOWN) - GAP_DOWN / 2, 1)

    badges = dict.fromkeys(range(len(names)), "")
    for number, needed in Counter(last for _, last, _ in found.edges).items():
        if number in found.bundled:
            badges[number] = f"all {needed}" if needed == len(names) - 1 else str(needed)
    boxes = tuple(
        Box(
            across(place.layer),
            down(place) - _label_height(lines) / 2,
            _label_height(lines),
            lines,
            badges[number],
            round(_width(badges[number]) * 0.85 + 10) if badges[number] else 0.0,
        )
        for number, (place, lines) in enumerate(zip(found.places, names, strict=True))
    )
    curves = tuple(
        Curve(
            first,
            last,
            _path([found.places[first], *bends, found.places[last]], across, down),
            last in found.bundled,
        )
        for first, last, bends in found.edges
    )
    return GraphDrawing(
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
    """Return a name in lines that fit into a box, without its middle if it takes too many."""
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
        tail = "".join(lines)[-99:]
        while _width(f"…{tail}") > TEXT_WIDTH:
            tail = tail[1:]
        lines[MOST_LINES - 1 :] = [f"…{tail}"]
    return tuple(lines)


def _width(text: str) -> float:
    return sum(map(_width_of, text))


def _width_of(letter: str) -> float:
    if letter in _NARROW:
        return _NARROW_PX
    if letter in _BROAD or unicodedata.east_asian_width(letter) in "WF":
        return _BROAD_PX if letter in _BROAD else 13.0
    return _CAPITAL_PX if letter.isupper() else _USUAL_PX


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

    ``dependencies`` are in topological order.
    """
    graph = draw_graph(dependencies)
    tier_of = {step: number for number, tier in enumerate(tiers, 1) for step in tier}
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{graph.width:g}" '
            f'height="{graph.height:g}" viewBox="0 0 {graph.width:g} {graph.height:g}" role="img">',
            f"<title>{_text(name)}</title>",
            f"<style>{_STYLE}</style>",
            *(
                f'<path class="edge" d="{curve.path}"/>'
                for curve in graph.curves
                if not curve.is_bundled
            ),
            *_boxes(graph, dependencies, tier_of),
            "</svg>",
        ]
    )


def _boxes(
    graph: GraphDrawing, steps: Mapping[str, object], tier_of: Mapping[str, int]
) -> Iterator[str]:
    for step, box in zip(steps, graph.boxes, strict=True):
        yield f'<g transform="translate({box.x:g} {box.y:g})"><title>{_text(step)}</title>'
        yield f'<rect class="box" width="{graph.box_width:g}" height="{box.height:g}" rx="6"/>'
        yield from _lines(box)
        if box.badge:
            x, y = -8 - box.badge_width, box.height / 2
            yield f'<rect class="box" x="{x:g}" y="{y - 9:g}" width="{box.badge_width:g}" '
            yield f'height="18" rx="9"/><path class="edge" d="M-8 {y:g}H0"/>'
            yield f'<text class="tier" x="{x + 5:g}" y="{y + 4:g}">{box.badge}</text>'
        yield f'<text class="tier" x="12" y="{box.height - 9:g}">tier {tier_of[step]}</text></g>'


def _text(name: str) -> str:
    return escape(escape_controls(name))


def _lines(box: Box) -> Iterator[str]:
    for number, line in enumerate(box.lines):
        yield f'<text x="12" y="{18 + 16 * number}">{escape(line)}</text>'
