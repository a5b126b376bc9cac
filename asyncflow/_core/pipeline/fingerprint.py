"""The fingerprint of a step: what a stored result of it depends on, beside its dependencies.

A fingerprint is the data that the step's action takes, and its ``version``. The data is stored as
text, ``(rows=extract, url) for each of extract``: `_data_of` writes it, and `parameters_of` reads
it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from asyncflow._core.pipeline.graph import Plan
from asyncflow._core.pipeline.step import WorkflowStep

_PARAMETER = re.compile(r"\*\*|\w+")
_AFTER_SOURCE = re.compile(r", |\)")


def fingerprints_of(plan: Plan) -> dict[str, tuple[str, str]]:
    """Return the data that each step's action takes, as text, and the step's version, by name."""
    steps = [plan.steps[at] for at in plan.order]
    return {step.name: (_data_of(step, plan.resources), step.version) for step in steps}


def difference(stored: tuple[str, str], now: tuple[str, str]) -> str | None:
    """Return how two fingerprints of a step differ, dependencies aside; ``None`` if they don't."""
    if stored[1] != now[1]:
        return f"its version is {now[1]!r}, and was {stored[1]!r}"
    if stored[0] != now[0]:
        return f"its action asks for {now[0]}, and asked for {stored[0]}"
    return None


def _data_of(step: WorkflowStep, resources: Collection[str]) -> str:
    """Return which data a step's action takes, without resources: ``(rows=extract, url)``."""
    if not step.signature.is_data:
        return "()"
    source_of, names = dict(step.parameters), step.signature.names
    taken = [f"{p}={source_of[p]}" if p in source_of else p for p in names if p not in resources]
    if step.signature.takes_kwargs and step.depends_on:
        taken += [*sorted({f"{p}={name}" for p, name in step.parameters} - set(taken)), "**"]
    text = f"({', '.join(sorted(taken))})"
    return text if step.map_over is None else f"{text} for each of {step.map_over}"


class Parameters(NamedTuple):
    """Which data the action of a step takes."""

    sources: dict[str, str]
    """For each parameter, the step that it names; empty where it has the name of a step or of an
    input. ``**`` stands for all outputs."""
    map_over: str
    """The step that it is mapped over; empty if it is not mapped."""


def parameters_of(data: str, dependencies: Collection[str]) -> Parameters | None:
    """Return what the data of a fingerprint says; ``None`` if no fingerprint says it.

    The name of a step may contain whatever separates parameters, so only dependencies are steps.
    """
    sources, left = {}, data.removeprefix("(")
    longest_first = sorted(dependencies, key=len, reverse=True)
    while left and not left.startswith(")"):
        name = _PARAMETER.match(left)
        if name is None:
            return None
        left, source = left[name.end() :], ""
        if left.startswith("="):
            left = left[1:]
            source = next((each for each in longest_first if _is_next(each, left)), "")
            if not source:
                return None
            left = left[len(source) :]
        sources[name[0]] = source
        left = left.removeprefix(", ")
    return Parameters(sources, left.partition(") for each of ")[2])


def _is_next(source: str, text: str) -> bool:
    return text.startswith(source) and bool(_AFTER_SOURCE.match(text, len(source)))
