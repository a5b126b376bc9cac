"""How the steps of a pipeline are drawn: boxes with their names and curves between them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from asyncflow._core.errors import in_one_line
from asyncflow._layout import Place, layout

__all__ = ["Box", "Curve", "Drawing", "drawing", "wrapped"]

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
    tallest = max(map(_height, names), default=0.0)
    found = layout(dict(pipeline))

    def across(layer: int) -> float:
        return MARGIN + layer * (BOX_WIDTH + GAP_ACROSS)

    def down(place: Place) -> float:
        return round(MARGIN + place.down * (tallest + GAP_DOWN) - GAP_DOWN / 2, 1)

    boxes = tuple(
        Box(across(place.layer), down(place) - _height(lines) / 2, _height(lines), lines)
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


def _height(lines: Sequence[str]) -> float:
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
    for word in _WORDS.findall(in_one_line(name)):
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
