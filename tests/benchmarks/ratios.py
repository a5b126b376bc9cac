"""Figures with their limits, and the one loop that measures two things against each other."""

from __future__ import annotations

import asyncio
import gc
import math
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple

from tests.benchmarks.limits import LIMITS

PATIENCE = 3
"""How often a figure above its limit is measured before it counts."""


class Row(NamedTuple):
    """A figure.

    Attributes:
        subject: What it is about.
        value: The figure, or what measures it.
        limit: What it may be at most.
        unit: Its unit; by default it is a ratio.
    """

    subject: str
    value: float | Callable[[], float]
    limit: float | None
    unit: str = "x"

    def measured(self) -> Row:
        """Measure the figure, and again when it is too high.

        A program that is slower is so each time; what else runs on the machine is not there each
        time.
        """
        if not callable(self.value):
            return self
        for _ in range(PATIENCE):
            row = self._replace(value=self.value())
            if row.holds:
                break
        return row

    @property
    def holds(self) -> bool:
        return self.limit is None or self.value <= self.limit

    def __str__(self) -> str:
        limit = "" if self.limit is None else f"at most {self.limit:g}"
        return f"{self.subject:<66}{self.value:>9.2f} {self.unit:<6}{limit:<14}" + (
            "" if self.holds else "TOO MUCH"
        )


class Ratio:
    """The shortest measurement of ours by the shortest of theirs.

    They are measured in turn, so that both meet what else runs on the machine. That can only make a
    measurement longer, so the shortest of many is the truest; a mean or a median moves with the
    load. Calling a ratio again goes on with what it has found.

    Attributes:
        ours: The shortest of ours; infinite before the first call.
        theirs: The shortest of theirs.
    """

    def __init__(self, ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> None:
        """Compare two measurements in at least `rounds` pairs.

        A fast one has up to 12 times as many, as long as that takes less than `rounds` * 0.8 s.
        """
        self._measure = ours, theirs
        self._rounds = rounds
        self.ours = self.theirs = math.inf

    def __call__(self) -> float:
        ours, theirs = self._measure
        if self.ours == math.inf:
            ours(), theirs()  # what is imported, made or grown once
        until = time.monotonic() + self._rounds * 0.8
        for pair in range(12 * self._rounds):
            if pair >= self._rounds and time.monotonic() > until:
                break
            self.ours, self.theirs = min(self.ours, ours()), min(self.theirs, theirs())
        return self.ours / self.theirs


def compared(
    subject: str, ours: Callable[[], float], theirs: Callable[[], float], rounds: int
) -> Row:
    """Return the row of a ratio that `LIMITS` has limits for."""
    return Row(subject, Ratio(ours, theirs, rounds), limit_of(subject))


def limit_of(subject: str) -> float:
    """Return the limit for this Python of those for 3.11, 3.12, and 3.13 or newer."""
    return LIMITS[subject][min(max(sys.version_info[1], 11), 13) - 11]


def passed(found: Any) -> bool:
    """Whether there are results, and all are successes. What is no result is its step's output."""
    statuses = [getattr(result, "status", "SUCCESS") for result in _results(found)]
    return bool(statuses) and all(status == "SUCCESS" for status in statuses)


async def seconds(
    work: Callable[[], Awaitable[object]],
    *,
    clock: Callable[[], float] = time.process_time,
    repeats: int = 1,
    check: Callable[[Any], bool] = passed,
) -> float:
    """Return the time of work, in which every result is read; by default, CPU time of all threads.

    With `repeats`, it is done so often, and the time is that of once.
    """
    gc.collect()
    began = clock()
    for _ in range(repeats):
        found = await work()
        for result in _results(found):
            getattr(result, "output", None)
    took = clock() - began
    assert check(found), f"what was timed did not end as it should: {found!r:.300}"
    return took / repeats


def cpu_s(work: Callable[[], Awaitable[object]], **options: Any) -> float:
    """Return the CPU seconds of work in an event loop of its own, as `seconds` does."""
    return asyncio.run(seconds(work, **options))


def _results(found: Any) -> Iterable[Any]:
    """Return the results of a run, or those of each of several."""
    results = found.values() if isinstance(found, Mapping) else found
    if isinstance(next(iter(results), None), Mapping):
        return [result for each in results for result in each.values()]
    return results
