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

_WORDS = {
    0.001: "1 ms",
    0.01: "10 ms",
    0.1: "100 ms",
    1: "1 s",
    10: "10 s",
    60: "1 min",
    600: "10 min",
    3_600: "1 h",
    36_000: "10 h",
    86_400: "1 d",
    864_000: "10 d",
    8_640_000: "100 d",
}
_DURATIONS_S = tuple(_WORDS)
_DAY_S = 86_400
_STEPS_S = (
    *(1, 2, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200),
    *(_DAY_S * days for days in (1, 2, 5, 10, 30, 90, 365, 3_650, 36_500)),
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
    words: str = ""
    """What a duration reads like."""


class Scatter(NamedTuple):
    """The drawing."""

    dots: list[tuple[float, float, Dot]]
    """Each run with its place: in percent from the left, and in pixels from the top."""
    times: list[Mark]
    durations: list[Mark]
    form: str
    """What matters of its times: ``second``, ``minute``, ``day``, or ``moment`` for the last two
    together."""


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
        [Mark(down(each), each, _WORDS[each]) for each in _DURATIONS_S if low <= each <= high],
        _form_of(step, last - first),
    )


def _form_of(step_s: float, span_s: float) -> str:
    if step_s >= _DAY_S:
        return "day"
    if span_s > _DAY_S / 2:
        return "moment"
    return "minute" if step_s >= 60 else "second"


def _range_of(durations_s: Sequence[float]) -> tuple[float, float]:
    """Return the marks on the scale of durations that are below and above all of them."""
    shortest = max(min(durations_s), _DURATIONS_S[0])
    longest = max(max(durations_s), shortest)
    low = max(each for each in _DURATIONS_S if each <= shortest)
    high = next((each for each in _DURATIONS_S if each > longest), longest * 2)
    return low, high
