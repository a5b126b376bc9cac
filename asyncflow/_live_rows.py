"""What a live view says of one step, in one line, and of many steps in a few words."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

from rich.text import Text

from asyncflow._cells import clipped, fitted, shown
from asyncflow._core.errors import describe
from asyncflow._core.results import StepStatus
from asyncflow._look import COLOURS, Look, bar
from asyncflow._views.event_text import duration
from asyncflow._views.step_view import StepView

__all__ = ["Columns", "columns_for", "row", "tally_text"]

_STATUS, _DURATION = 11, 9
_BAR = range(4, 17)
"""How many cells a bar may have; half of its column is for words."""
_WORDS = {
    StepStatus.SUCCESS: "succeeded",
    StepStatus.RUNNING: "running",
    StepStatus.FAILED: "failed",
    StepStatus.CANCELLED: "cancelled",
    StepStatus.SKIPPED: "skipped",
    StepStatus.PENDING: "pending",
}


class Columns(NamedTuple):
    """How many cells each column takes; there are two between any two."""

    tier: int
    status: int
    name: int
    note: int
    duration: int


def columns_for(width: int, tier: int, name: int) -> Columns:
    """Return the columns for so many cells in all, of which names and tiers want some."""
    if width < 44:  # a sign, a name and a duration
        return Columns(0, 1, max(width - 13, 1), 0, 9)
    rest = width - tier - _STATUS - _DURATION - 6
    # At 80 columns a note has 29 cells: "next attempt in 3 s (2 of 3)".
    name = min(name, max(16, min(rest * 9 // 20, rest - 31)))
    note = rest - name - 2
    if note < 12:
        name, note = rest, -2
    return Columns(tier, _STATUS, name, note, _DURATION)


def row(step: StepView, tier: str, columns: Columns, now_ms: float, look: Look) -> Text:
    """Return the line of a step.

    Args:
        step: The step.
        tier: What stands in the column of the tiers.
        columns: How wide the columns are.
        now_ms: What time it is, in milliseconds since the run started.
        look: What to draw with.
    """
    colour = COLOURS[step.status]
    text = Text(no_wrap=True)
    if columns.tier:
        text.append(fitted(tier, columns.tier + 2), "dim")
    status = f"{look.signs[step.status]} {step.status}"
    text.append(fitted(status[: columns.status], columns.status), colour)
    quiet = "dim" if step.status is StepStatus.PENDING else ""
    gap = "  " if columns.tier else " "
    text.append(gap + fitted(shown(step.name, look.encoding), columns.name, look.ellipsis), quiet)
    if columns.note > 0:
        text.append("  ").append(_note(step, columns.note, now_ms, look))
    took = step.duration_ms(now_ms)
    lasted = "" if took is None else duration(took)
    if len(lasted) > columns.duration:
        lasted = lasted.replace(" ", "")
    return text.append(f"{gap}{lasted:>{columns.duration}}", "" if step.ended_ms is None else "dim")


def tally_text(counts: Counter[StepStatus], width: int, look: Look) -> Text:
    """Return how many steps have which status: ``✓ 12 succeeded  ○ 3 pending``."""
    found = [status for status in _WORDS if counts[status]]
    parts = [f" {counts[status]:,} {_WORDS[status]}" for status in found]
    gap = 2
    if sum(len(part) + 1 + gap for part in parts) - gap > width:
        parts, gap = [f"{counts[status]}" for status in found], 1
    text = Text(no_wrap=True)
    for status, part in zip(found, parts, strict=True):
        space = " " * gap if text else ""
        if text.cell_len + len(space) + 1 + len(part) <= width:
            text.append(space).append(look.signs[status] + part, COLOURS[status])
    return text


def _note(step: StepView, width: int, now_ms: float, look: Look) -> Text:
    text = Text(no_wrap=True)
    words = shown(_words(step, now_ms), look.encoding)
    if step.items is not None and step.status is StepStatus.RUNNING:
        cells = min(width - len(words) - 2, width // 2, _BAR[-1])
        if step.item_count is not None and cells in _BAR:
            full, empty = bar(_settled_items(step), step.item_count, cells, look)
            text.append(full, COLOURS[StepStatus.RUNNING]).append(f"{empty}  ", "dim")
    colour = COLOURS[step.status] if step.status is StepStatus.FAILED else "dim"
    if step.retry_at_ms is not None:
        colour = "yellow"
    text.append(clipped(words, width - text.cell_len, look.ellipsis), colour)
    return text.append(" " * (width - text.cell_len))


def _settled_items(step: StepView) -> int:
    tally = step.tally
    return tally.total() - tally[StepStatus.PENDING] - tally[StepStatus.RUNNING]


def _words(step: StepView, now_ms: float) -> str:
    match step.status:
        case StepStatus.RUNNING:
            parts = [_items(step), _attempt(step, now_ms), _again(step)]
        case StepStatus.FAILED:
            error = "" if step.error is None else describe(step.error)
            parts = [_items(step), error, _attempts(step)]
        case StepStatus.SKIPPED | StepStatus.CANCELLED:
            parts = [step.reason or "", _items(step)]
        case StepStatus.SUCCESS:
            parts = ["reused" if step.reused else "", _items(step), _attempts(step)]
        case _:
            parts = [_again(step)]
    return ", ".join(filter(None, parts))


def _attempt(step: StepView, now_ms: float) -> str:
    latest, most = step.latest, step.max_retries
    if latest is None:
        return ""
    of = "" if most is None else f" of {most}"
    retry_at_ms = step.retry_at_ms
    if retry_at_ms is not None:
        why = "" if latest.error is None else f": {describe(latest.error)}"
        return f"{_in(retry_at_ms - now_ms)} ({latest.number + 1}{of}){why}"
    which = "" if most in (None, 1) and latest.number == 1 else f"attempt {latest.number}{of}"
    queued = f"{duration(latest.queued_ms)} in line" if latest.queued_ms >= 1 else ""
    return ", ".join(filter(None, [which, queued]))


def _in(left_ms: float) -> str:
    """Return when the next attempt comes; it may have to wait in line when its time has come."""
    return f"next attempt in {math.ceil(left_ms / 1000)} s" if left_ms > 0 else "next attempt now"


def _attempts(step: StepView) -> str:
    """Return how many attempts it took, if it was not what anybody would think."""
    count, most = len(step.attempts), step.max_retries
    if count < 2:
        return ""
    return f"{count} attempts" if most is None else f"attempt {count} of {most}"


def _items(step: StepView) -> str:
    if step.items is None:
        return ""
    done, failed = _settled_items(step), step.tally[StepStatus.FAILED]
    count = f"{done:,}" if step.item_count is None else f"{done:,} of {step.item_count:,}"
    if step.status is StepStatus.SUCCESS:
        count = f"{done:,}"
    return f"{count} items" + (f", {failed:,} failed" if failed else "")


def _again(step: StepView) -> str:
    return "" if step.rerun_reason is None else f"again, because {step.rerun_reason}"
