"""Whether a run or a step took longer than it usually does.

Rules:

1. Something is slower than usual if it took notably longer, as a comparison of two runs says, and
   so much that people notice: a step of 3 ms that takes 20 ms varies with what else the machine
   does.
2. A run is compared if it passed and is no rerun, which runs only a part of its pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from asyncflow._core.analysis.comparison import is_notable
from asyncflow._core.history.results import RunStatus

_LEAST_MS = 100.0
"""From how many milliseconds more on something is slower: what people see as a delay."""


class Slower(NamedTuple):
    """What a run that was slower than usual took longer for."""

    usual_ms: float
    """How many milliseconds such a run usually takes."""
    steps: tuple[tuple[str, float], ...] = ()
    """The steps that were slower than usual, and by how many milliseconds, the most first."""


def is_slower(took_ms: float, usual_ms: float | None) -> bool:
    """Whether something took notably longer than it usually does; not if that is unknown."""
    if usual_ms is None:
        return False
    more_ms = took_ms - usual_ms
    return more_ms >= _LEAST_MS and is_notable(more_ms, usual_ms)


def is_comparable(status: RunStatus, rerun_of: str) -> bool:
    """Whether how long a run took says how long its pipeline takes."""
    return status is RunStatus.PASSED and not rerun_of


def slower_of(
    usual_ms: float, took: Mapping[str, float | None], usual: Mapping[str, float]
) -> Slower:
    """Return which steps of a run that was slower than usual were that too.

    ``took`` says how many milliseconds its steps ran, ``None`` for one that did not, and ``usual``
    how many they usually do, as far as that is known.
    """
    more = [
        (name, took_ms - usual[name])
        for name, took_ms in took.items()
        if took_ms is not None and name in usual and is_slower(took_ms, usual[name])
    ]
    return Slower(usual_ms, tuple(sorted(more, key=lambda each: -each[1])))
