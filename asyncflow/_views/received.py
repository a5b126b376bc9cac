"""What the parameters of a step's action receive, as the fingerprint of the step tells."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from asyncflow._core.analysis.failures import why_failed
from asyncflow._core.history.item_values import UNKNOWN, value_at
from asyncflow._core.history.results import StepStatus, visible_output
from asyncflow._core.history.step_view import StepView
from asyncflow._core.history.value_preview import Preview, preview_in_line
from asyncflow._core.pipeline.fingerprint import Parameters, parameters_of
from asyncflow._core.text import cut, escape_controls
from asyncflow._views.run_view import RunView

_VALUE = 100
"""How many bytes of a value are shown: the step or the input that it comes from shows more."""
_LINE = 240
"""How many characters of all values are shown in a line."""

Source: TypeAlias = Literal["step", "item", "input", "input item", "default", "all"]


class Received(NamedTuple):
    parameter: str
    source: Source
    """``"item"``: an item of a step's output; ``"all"``: the outputs of all dependencies."""
    step: str = ""
    """The step whose output it is, or what has the item: a step, or an input."""
    value: Preview | None = None
    """The beginning of that output, or of the input, or of the item of it; ``None`` if there is
    none, or it is not known."""
    item: int | None = None
    """Which item of the output or of the input it is; ``None`` for a step, which has all."""


def received(view: RunView, step: StepView, item: int | None = None) -> list[Received] | None:
    """Return what each parameter of a step, or of an item of it, receives.

    ``None`` if that is not known.
    """
    found = _parameters(view, step)
    if found is None:
        return None
    taken = [_received(view, step, *pair, found.map_over) for pair in found.sources.items()]
    if item is None:
        return taken
    value = item_value(view, step, item)
    return [
        each._replace(value=value, item=item) if each.source in ("item", "input item") else each
        for each in taken
    ]


def received_text(view: RunView, step: StepView) -> str:
    """Return what a failed step received: ``load received rows=[1, 2], day='monday'``.

    Of a mapped step, that is what the first item received that failed as most of them did. Empty if
    it is not known, and cut if it is long. Defaults are left out: the code says what they are.
    """
    _, groups = why_failed(step)
    item = groups[0].items[0] if groups else None
    taken = received(view, step, item) or ()
    given = [(each.parameter, each.value) for each in taken if each.value is not None]
    if not given:
        return ""
    name = step.name if item is None else f"{step.name}[{item}]"
    shown = ", ".join(f"{key}={value.text}{'…' if value.cut else ''}" for key, value in given)
    return escape_controls(f"{name} received {cut(shown, _LINE)}")


def item_value(view: RunView, step: StepView, item: int, most: int = _VALUE) -> Preview | None:
    """Return the beginning of the value of an item that a mapped step received.

    ``most`` is how many bytes it may take. ``None`` if the value is not known: it was not stored,
    or came from a source that is no list.
    """
    source = _mapped_over(view, step)
    if not source:
        return None
    maker, values = view.steps.get(source), None
    if source not in step.depends_on or maker is None:
        values = view.shown_inputs.get(source)
    elif maker.items is not None:
        # The items of the two steps have the same numbers, even if some of them are missing here.
        of_maker = maker.items.get(item)
        if of_maker is None or of_maker.status is not StepStatus.SUCCESS:
            return None
        known = maker.keeps_outputs
        return preview_in_line(visible_output(of_maker), most) if known else None
    elif maker.status is StepStatus.SUCCESS:
        values = visible_output(maker)
    value = value_at(values, item)
    return None if value is UNKNOWN else preview_in_line(value, most)


def _mapped_over(view: RunView, step: StepView) -> str:
    """Return what a step is mapped over; empty if it is not mapped."""
    if step.name in view.carryover.map_over:
        return view.carryover.map_over[step.name]
    found = _parameters(view, step)  # an older journal says it only here
    return "" if found is None else found.map_over


def _parameters(view: RunView, step: StepView) -> Parameters | None:
    stored = view.carryover.fingerprints.get(step.name)
    # An input over which the step is mapped may be the source of a parameter, as a step may.
    sources = (*step.depends_on, *view.shown_inputs)
    return None if stored is None else parameters_of(stored[0], sources)


def _received(view: RunView, step: StepView, parameter: str, source: str, mapped: str) -> Received:
    if parameter == "**":
        return Received(parameter, "all")
    inputs = view.shown_inputs
    if mapped in inputs and mapped not in step.depends_on and mapped == (source or parameter):
        return Received(parameter, "input item", mapped, preview_in_line(inputs[mapped], _VALUE))
    if not source and parameter not in step.depends_on:
        if parameter in inputs:
            return Received(parameter, "input", value=preview_in_line(inputs[parameter], _VALUE))
        return Received(parameter, "default")
    source = source or parameter
    maker, value = view.steps.get(source), None
    if maker is not None and maker.status is StepStatus.SUCCESS:
        value = preview_in_line(visible_output(maker), _VALUE)
    return Received(parameter, "item" if source == mapped else "step", source, value)
