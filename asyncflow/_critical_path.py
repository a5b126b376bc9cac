"""Which chain of steps a run took longest for.

The critical path method (J. E. Kelley and M. R. Walker, "Critical-path planning and scheduling",
1959), over measured durations.
"""

from __future__ import annotations

from collections.abc import Iterable

from asyncflow._result import StepResult

__all__ = ["critical_path"]


def critical_path(results: Iterable[StepResult]) -> list[str]:
    """Return the chain of dependent steps whose durations sum to the most, in order.

    In time linear in steps plus dependencies, and iterative. Ties go to the step that comes first
    in topological order. A step that never started takes no time: it links what it depends on to
    what depends on it, and is left out of the answer.

    Args:
        results: In topological order. A dependency that does not stand before its dependent, as
            in no report of a run, is passed over.
    """
    position: dict[str, int] = {}
    chains: list[tuple[float, StepResult, int | None]] = []
    for at, result in enumerate(results):
        before = _longest(
            chains, (position[each] for each in result.depends_on if each in position)
        )
        length = 0.0 if result.started_ms is None else result.duration_ms
        if before is not None:
            length += chains[before][0]
        position[result.step_name] = at
        chains.append((length, result, before))
    path: list[str] = []
    end = _longest(chains, range(len(chains)))
    while end is not None:
        _, result, end = chains[end]
        if result.started_ms is not None:
            path.append(result.step_name)
    path.reverse()
    return path


def _longest(chains: list[tuple[float, StepResult, int | None]], ends: Iterable[int]) -> int | None:
    """Return that of the ends at which the longest chain ends; of equal ones the first."""
    return max(ends, key=lambda end: (chains[end][0], -end), default=None)
