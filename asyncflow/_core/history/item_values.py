"""Which value each item of a mapped step was given, as far as a run keeps what it comes from.

Rules:

1. It is known of a list or a tuple, an input or the output of a step, and of the items of a mapped
   step, whose numbers are the same. Whatever else is mapped over is read once, and not kept.
2. What is secret as a whole is secret in its parts.
3. An item has the value itself until a caller asks for its text, which takes longer to make than
   all else of a result (`StepResult.item_value`). The value is in the same report, which keeps it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from asyncflow._core.history.results import (
    REDACTED_OUTPUT,
    RestoredOutput,
    StepResult,
    StepStatus,
    visible_output,
)

UNKNOWN: Final = object()
"""Stands for a value that is not known."""


def value_at(values: object, item: int) -> object:
    """Return the value of an item of what a step is mapped over, or `UNKNOWN`."""
    if type(values) in (list, tuple) and 0 <= item < len(values):  # type: ignore[arg-type]
        return values[item]  # type: ignore[index]
    is_secret = type(values) is RestoredOutput and values == REDACTED_OUTPUT
    return values if is_secret else UNKNOWN


def give(item: StepResult, value: object) -> None:
    """Let the result of an item say which value the item was given, unless that is not known."""
    if value is not UNKNOWN:
        # An empty slot is filled from ``_given`` when it is first read.
        del item.item_value  # pyright: ignore[reportAttributeAccessIssue]
        item._given = value  # type: ignore[misc]


def give_all(
    results: Mapping[str, StepResult],
    map_over: Mapping[str, str],
    inputs: Mapping[str, Any],
    slim: Collection[str],
) -> None:
    """Do so with all items of results. ``slim`` are the mapped steps that keep no outputs."""
    for name, source in map_over.items():
        mapped, maker = results.get(name), results.get(source)
        if mapped is None or not mapped.items:
            continue
        if maker is None or source not in mapped.depends_on:
            _give_from(mapped, inputs.get(source))
        elif maker.items is None:
            if maker.status is StepStatus.SUCCESS:
                _give_from(mapped, visible_output(maker))
        elif source not in slim:
            made = {each.item: each for each in maker.items if each.status is StepStatus.SUCCESS}
            for item in mapped.items:
                if item.item in made:
                    give(item, visible_output(made[item.item]))


def _give_from(mapped: StepResult, values: object) -> None:
    for item in mapped.items or ():
        if item.item is not None:
            give(item, value_at(values, item.item))
