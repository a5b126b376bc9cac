"""By what a stored result is told to be still that of its step.

The fingerprint of a step is its name, which data its action asks for, its ``version``, and the
fingerprints of its dependencies. How it is run (attempts, limits, pools) is no part of it.
"""

from __future__ import annotations

from asyncflow._shape import ByName
from asyncflow._step import WorkflowStep

__all__ = ["Fingerprints", "difference"]


class Fingerprints(ByName[tuple[str, str]]):
    """For each step of a plan, which data its action asks for, in words, and its version."""

    __slots__ = ()

    def __getitem__(self, name: str) -> tuple[str, str]:
        step = self._plan.steps[self._plan.index[name]]
        return _data_of(step), step.version


def difference(stored: tuple[str, str], now: tuple[str, str]) -> str | None:
    """Return in which way two fingerprints of a step differ, dependencies aside, if they do."""
    if stored[1] != now[1]:
        return f"its version is {now[1]!r}, and was {stored[1]!r}"
    if stored[0] != now[0]:
        return f"its action asks for {now[0]}, and asked for {stored[0]}"
    return None


def _data_of(step: WorkflowStep) -> str:
    """Return which data a step's action asks for: ``(rows=extract, url)``."""
    source_of = dict(step.parameters)
    asked = [f"{p}={source_of[p]}" if p in source_of else p for p in step.signature.names]
    if step.signature.takes_any and step.depends_on:
        asked += [*sorted({f"{p}={name}" for p, name in step.parameters} - set(asked)), "**"]
    text = f"({', '.join(sorted(asked))})"
    return text if step.map_over is None else f"{text} for each of {step.map_over}"
