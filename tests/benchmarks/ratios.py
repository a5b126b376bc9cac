"""Measured figures with their limits, and the ratio of two measurements."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple


class Row(NamedTuple):
    subject: str
    value: float
    limit: float | None
    unit: str = "x"

    @property
    def holds(self) -> bool:
        return self.limit is None or self.value <= self.limit

    def __str__(self) -> str:
        limit = "" if self.limit is None else f"at most {self.limit:g}"
        return f"{self.subject:<58}{self.value:>9.2f} {self.unit:<6}{limit:<14}" + (
            "" if self.holds else "TOO MUCH"
        )


def on_this_python(*limits: float) -> float:
    """Return the limit for this Python of those for 3.11, 3.12, and 3.13 or newer."""
    return limits[min(max(sys.version_info[1], 11), 13) - 11]


def ratio(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> float:
    """Return the ratio of the shortest of each, measured in turn, after one warm-up.

    What else runs on the machine only ever adds to a measurement, so the shortest is the truest.
    """
    ours(), theirs()
    our_s, their_s = zip(*[(ours(), theirs()) for _ in range(rounds)], strict=True)
    return min(our_s) / min(their_s)
