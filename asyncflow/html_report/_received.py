"""What the parameters of a step's action receive, as the fingerprint of the step says it.

A journal stores the fingerprint for resumption: ``(rows=extract, url) for each of extract``.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, TypeAlias

from asyncflow._core.results import StepStatus, visible_output
from asyncflow._core.step_view import StepView
from asyncflow._views.preview import Preview, preview
from asyncflow._views.run_view import RunView

_VALUE = 100
"""How many bytes of a value are shown: the step or the input that it comes from shows more."""
_PARAMETER = re.compile(r"\*\*|\w+")
_AFTER_SOURCE = re.compile(r", |\)")

Source: TypeAlias = Literal["step", "item", "input", "default", "all"]


class Received(NamedTuple):
    """A parameter, and what it receives."""

    parameter: str
    source: Source
    """``"item"``: an item of a step's output; ``"all"``: the outputs of all dependencies."""
    step: str = ""
    """The step whose output it is, or has the item."""
    value: Preview | None = None
    """The beginning of that output, or of the input; ``None`` if there is none."""


def received(view: RunView, step: StepView) -> list[Received] | None:
    """Return what each parameter of a step receives; ``None`` if that is not known."""
    stored = view.fingerprints.get(step.name)
    found = None if stored is None else _parsed(stored[0], step.depends_on)
    if found is None:
        return None
    pairs, mapped = found
    return [_received(view, step, *pair, mapped) for pair in pairs]


def _received(view: RunView, step: StepView, parameter: str, source: str, mapped: str) -> Received:
    if parameter == "**":
        return Received(parameter, "all")
    inputs = view.inputs
    if not source and parameter not in step.depends_on:
        if parameter in inputs:
            return Received(parameter, "input", value=preview(inputs[parameter], _VALUE))
        return Received(parameter, "default")
    source = source or parameter
    maker, value = view.steps.get(source), None
    if maker is not None and maker.status is StepStatus.SUCCESS:
        value = preview(visible_output(maker), _VALUE)
    return Received(parameter, "item" if source == mapped else "step", source, value)


def _parsed(text: str, dependencies: tuple[str, ...]) -> tuple[list[tuple[str, str]], str] | None:
    """Return the parameters, each with the step that it names, and the step that is mapped over.

    The name of a step may contain whatever separates parameters, so only dependencies are steps.
    """
    pairs, left = [], text.removeprefix("(")
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
        pairs.append((name[0], source))
        left = left.removeprefix(", ")
    return pairs, left.partition(") for each of ")[2]


def _is_next(source: str, text: str) -> bool:
    return text.startswith(source) and bool(_AFTER_SOURCE.match(text, len(source)))
