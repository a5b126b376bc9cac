"""What the parameters of a step's action receive, as the fingerprint of the step tells."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, TypeAlias

from asyncflow._core.fingerprint import parameters_of
from asyncflow._core.results import StepStatus, visible_output
from asyncflow._core.step_view import StepView
from asyncflow._views.preview import Preview, preview
from asyncflow._views.run_view import RunView

_VALUE = 100
"""How many bytes of a value are shown: the step or the input that it comes from shows more."""

Source: TypeAlias = Literal["step", "item", "input", "input item", "default", "all"]


class Received(NamedTuple):
    parameter: str
    source: Source
    """``"item"``: an item of a step's output; ``"all"``: the outputs of all dependencies."""
    step: str = ""
    """The step whose output it is, or what has the item: a step, or an input."""
    value: Preview | None = None
    """The beginning of that output, or of the input; ``None`` if there is none."""


def received(view: RunView, step: StepView) -> list[Received] | None:
    """Return what each parameter of a step receives; ``None`` if that is not known."""
    stored = view.fingerprints.get(step.name)
    # An input over which the step is mapped may be the source of a parameter, as a step may.
    sources = (*step.depends_on, *view.shown_inputs)
    found = None if stored is None else parameters_of(stored[0], sources)
    if found is None:
        return None
    return [_received(view, step, *pair, found.map_over) for pair in found.sources.items()]


def _received(view: RunView, step: StepView, parameter: str, source: str, mapped: str) -> Received:
    if parameter == "**":
        return Received(parameter, "all")
    inputs = view.shown_inputs
    if mapped in inputs and mapped not in step.depends_on and mapped == (source or parameter):
        return Received(parameter, "input item", mapped, _in_a_line(inputs[mapped]))
    if not source and parameter not in step.depends_on:
        if parameter in inputs:
            return Received(parameter, "input", value=_in_a_line(inputs[parameter]))
        return Received(parameter, "default")
    source = source or parameter
    maker, value = view.steps.get(source), None
    if maker is not None and maker.status is StepStatus.SUCCESS:
        value = _in_a_line(visible_output(maker))
    return Received(parameter, "item" if source == mapped else "step", source, value)


def _in_a_line(value: object) -> Preview:
    shown = preview(value, _VALUE)
    text = re.sub(r"(?<=[\[({])\n *|\n *(?=[\])}])", "", shown.text)
    return shown._replace(text=re.sub(r"\n *", " ", text))
