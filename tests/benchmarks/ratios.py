"""Measured figures with their limits, and the ratio of two measurements."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Row", "ratio"]


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


def ratio(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> float:
    """Return the median of the ratios of pairs, each measured in turn, after one warm-up."""
    ours(), theirs()
    ratios = []
    for number in range(rounds):
        if number % 2:
            their_s, our_s = theirs(), ours()
        else:
            our_s, their_s = ours(), theirs()
        ratios.append(our_s / their_s)
    return statistics.median(ratios)
