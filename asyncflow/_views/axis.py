"""A time axis: its round times and their labels, and how many spans cover each time.

The page's script (`timeline.js`) draws ticks of a zoomed timeline by the same steps and labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

_STEPS_MS = (
    *(base * 10.0**power for power in (-3, -2, -1, 0, 1, 2) for base in (1, 2, 5)),
    *(seconds * 1_000.0 for seconds in (1, 2, 5, 10, 15, 30)),
    *(minutes * 60_000.0 for minutes in (1, 2, 5, 10, 15, 30)),
    *(hours * 3_600_000.0 for hours in (1, 2, 3, 6, 12)),
    *(days * 86_400_000.0 for days in (1, 2, 7, 14, 30, 90, 365)),
)


class Tick(NamedTuple):
    """A time in milliseconds, and its label."""

    ms: float
    text: str


def ticks(span_ms: float, least_ms: float) -> list[Tick]:
    """Return ticks at round times from 0 to the end of an axis.

    ``span_ms`` is above 0, and ``least_ms`` is the shortest time from one tick to the next.
    """
    step_ms = tick_step_ms(least_ms)
    count = int(span_ms / step_ms * (1 + 1e-9))
    return [Tick(at * step_ms, _label(at * step_ms, step_ms)) for at in range(count + 1)]


def tick_step_ms(least_ms: float) -> float:
    """Return the shortest round time of at least ``least_ms``; above a year, a number of years."""
    years = _STEPS_MS[-1] * math.ceil(least_ms / _STEPS_MS[-1])
    return next((step for step in _STEPS_MS if step >= least_ms), years)


def _label(ms: float, step_ms: float) -> str:
    """Return a time with as many places as tell it apart from the next tick."""
    if not ms:
        return "0"
    if ms < 1_000:
        return f"{ms:g} ms"
    if ms < 60_000:
        places = max(0, math.ceil(-math.log10(step_ms / 1_000) - 1e-9))
        return f"{ms / 1_000:.{places}f} s"
    minutes, seconds = divmod(round(ms / 1_000), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count)


def changing_counts(spans: Iterable[tuple[float, float]]) -> list[tuple[float, int]]:
    """Return at which times the number of spans that cover a time changes, and to what."""
    changes: dict[float, int] = {}
    for start_ms, end_ms in spans:
        changes[start_ms] = changes.get(start_ms, 0) + 1
        changes[end_ms] = changes.get(end_ms, 0) - 1
    points, running = [], 0
    for at_ms in sorted(changes):
        if changes[at_ms]:
            running += changes[at_ms]
            points.append((at_ms, running))
    return points
