"""How long runs took, over the time at which they began, as a drawing.

Rules:

1. A run is told by a shape, and its colour only repeats it.
2. Durations stand on a logarithmic scale: there are runs of milliseconds beside others of hours.
3. Places from left to right are shares of the width, those from top to bottom are pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Dot", "Mark", "Scatter", "scatter"]

HEIGHT, _TOP, _BOTTOM = 168, 12, 140
_MARGIN = 2.5
"""How much of the width stays free at either end, in percent."""

_DURATIONS_S = (0.001, 0.01, 0.1, 1, 10, 60, 600, 3_600, 36_000, 86_400, 864_000, 8_640_000)
_STEPS_S = (
    *(1, 2, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200),
    *(86_400 * days for days in (1, 2, 5, 10, 30, 90, 365, 3_650, 36_500)),
)
_MOST_STEPS = 6


class Dot(NamedTuple):
    """What is drawn of a run."""

    run_id: str
    state: str
    started_at: float
    """In seconds since the epoch."""
    duration_s: float


class Mark(NamedTuple):
    """Where something is drawn."""

    at: float
    """In percent from the left, or in pixels from the top."""
    value: float
    """A time in seconds since the epoch, or a duration in seconds."""


class Scatter(NamedTuple):
    """The drawing."""

    dots: list[tuple[float, float, Dot]]
    """Each run with its place: in percent from the left, and in pixels from the top."""
    times: list[Mark]
    durations: list[Mark]
    has_days: bool
    """Whether its times are more than a day apart, so that their dates matter."""


def scatter(dots: Sequence[Dot]) -> Scatter | None:
    """Return the drawing of some runs; ``None`` if there are none."""
    if not dots:
        return None
    starts = [dot.started_at for dot in dots]
    first, last = min(starts), max(starts)
    if last - first < 10:  # a single one is drawn in the middle
        middle = (first + last) / 2
        first, last = middle - 5, middle + 5
    low, high = _range_of([dot.duration_s for dot in dots])

    def across(time: float) -> float:
        share = (time - first) / (last - first)
        return round(_MARGIN + share * (100 - 2 * _MARGIN), 3)

    def down(duration_s: float) -> float:
        share = math.log(max(duration_s, low) / low) / math.log(high / low)
        return round(_BOTTOM - share * (_BOTTOM - _TOP), 2)

    step = next((each for each in _STEPS_S if (last - first) / each <= _MOST_STEPS), _STEPS_S[-1])
    ticks = range(math.ceil(first / step), math.floor(last / step) + 1)
    return Scatter(
        [(across(dot.started_at), down(dot.duration_s), dot) for dot in dots],
        [Mark(across(tick * step), tick * step) for tick in ticks],
        [Mark(down(each), each) for each in _DURATIONS_S if low <= each <= high],
        last - first > 86_400,
    )


def _range_of(durations_s: Sequence[float]) -> tuple[float, float]:
    """Return the marks on the scale of durations that are below and above all of them."""
    shortest = max(min(durations_s), _DURATIONS_S[0])
    longest = max(max(durations_s), shortest)
    low = max(each for each in _DURATIONS_S if each <= shortest)
    high = next((each for each in _DURATIONS_S if each > longest), longest * 2)
    return low, high
