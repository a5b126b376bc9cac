"""The errors of items of a mapped step in words: which items have one, and what these received."""

from __future__ import annotations

from collections.abc import Iterator

from asyncflow._core.analysis.failures import ItemErrors, why_failed
from asyncflow._core.history.step_view import StepView
from asyncflow._core.text import escape_controls, plural
from asyncflow._core.tracebacks import format_error
from asyncflow._views.received import item_value
from asyncflow._views.run_view import RunView

MOST_ITEMS = 8
"""How many items of a group are named."""
_MOST_GROUPS = 10
"""How many groups of errors have a traceback."""
_VALUE = 60
"""How many bytes of what an item received are shown beside its number."""


def items_with_values(
    view: RunView, step: StepView, group: ItemErrors, most: int = MOST_ITEMS
) -> list[tuple[int, str]]:
    """Return the first items of a group, each with what it received; empty if that is not known."""
    found = []
    for item in group.items[:most]:
        value = item_value(view, step, item, _VALUE)
        text = "" if value is None else f"{value.text}{'…' if value.cut else ''}"
        found.append((item, escape_controls(text)))
    return found


def items_text(view: RunView, step: StepView, group: ItemErrors, most: int = MOST_ITEMS) -> str:
    """Return the same in a line: ``[37] of 'a.png', [137] of 'b.png' and 8 more``."""
    named = [
        f"[{item}]{f' of {value}' if value else ''}"
        for item, value in items_with_values(view, step, group, most)
    ]
    more = len(group.items) - len(named)
    return f"{', '.join(named)}{f' and {more:,} more' if more else ''}"


def traceback_lines(view: RunView, step: StepView) -> Iterator[str]:
    """Yield why a step has failed: its traceback, and one for each group of errors of its items."""
    error, groups = why_failed(step)
    if error is not None:
        yield from format_error(error).splitlines()
    for group in groups[:_MOST_GROUPS]:
        yield f"{group.label}: {items_text(view, step, group)}"
        yield from (f"  {line}" for line in format_error(group.first).splitlines())
    if len(groups) > _MOST_GROUPS:
        yield f"and {plural(len(groups) - _MOST_GROUPS, 'other kind')} of errors"
