"""The row of one step in a timeline: which of its cells show what, so that the shortest is seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from asyncflow._core.results import StepStatus
from asyncflow._look import COLOURS
from asyncflow._views.step_view import AttemptView, StepView

__all__ = ["MEANINGS", "Cell", "Fills", "Scale", "cells_of"]


class Fills(NamedTuple):
    """What each part of a row is drawn with."""

    attempt: str = "█"
    failed: str = "▓"
    cut_short: str = "▒"
    timeout: str = "!"
    queue: str = "░"
    backoff: str = "·"
    between: str = "─"
    resumed: str = "┊"


MEANINGS = Fills(
    attempt="attempt",
    failed="failed attempt",
    cut_short="cut short",
    timeout="timed out",
    queue="in line",
    backoff="until the next attempt",
    between="between items",
    resumed="resumed here",
)


class Scale(NamedTuple):
    """Which cell shows which time."""

    end_ms: float
    cells: int

    def cell(self, ms: float) -> int:
        return min(max(int(ms / self.end_ms * self.cells), 0), self.cells - 1)

    def span(self, start_ms: float, end_ms: float) -> range:
        """Return the cells of a time; at least one."""
        first = self.cell(start_ms)
        # A time that ends where a cell begins does not reach into that one.
        last = -int(-(end_ms / self.end_ms * self.cells) // 1) - 1
        return range(first, max(min(last, self.cells - 1), first) + 1)


class Cell(NamedTuple):
    character: str
    colour: str = ""
    part: str = ""
    """The name of its part in `Fills`."""


def cells_of(step: StepView, scale: Scale, now_ms: float, fills: Fills) -> dict[int, Cell]:
    """Return what is drawn of a step, by cell. What takes less than a cell has one all the same."""
    row: dict[int, Cell] = {}

    def paint(start_ms: float, end_ms: float, part: str, colour: str) -> range:
        span = scale.span(start_ms, end_ms)
        row.update(dict.fromkeys(span, Cell(getattr(fills, part), colour, part)))
        return span

    if step.items is not None and step.started_ms is not None:
        paint(step.started_ms, now_ms if step.ended_ms is None else step.ended_ms, "between", "dim")
    for unit in _units(step):
        for start_ms, end_ms, part in _waits(unit, now_ms):
            paint(start_ms, end_ms, part, "dim" if part == "queue" else "yellow")
    for attempt in _attempts(step):
        end_ms = now_ms if attempt.ended_ms is None else attempt.ended_ms
        part, status = _PARTS[attempt.end]
        colour = COLOURS[status]
        span = paint(attempt.started_ms, end_ms, part, colour)
        if step.items is None and len(step.attempts) > 1:
            row[span[0]] = Cell(str(attempt.number % 10), f"reverse {colour}", part)
        if attempt.end == "timed out":
            row[span[-1]] = Cell(fills.timeout, f"reverse {colour}", "timeout")
    return row


_PARTS = {
    None: ("attempt", StepStatus.RUNNING),
    "succeeded": ("attempt", StepStatus.SUCCESS),
    "failed": ("failed", StepStatus.FAILED),
    "timed out": ("failed", StepStatus.FAILED),
    "cancelled": ("cut_short", StepStatus.CANCELLED),
    "crashed": ("cut_short", StepStatus.CANCELLED),
}
_ORDER = (None, "succeeded", "cancelled", "crashed", "failed", "timed out")
"""Of items whose bars are in the same cells, that is seen which comes last here."""


def _units(step: StepView) -> Iterable[StepView]:
    return [step] if step.items is None else step.items.values()


def _attempts(step: StepView) -> list[AttemptView]:
    """Return the attempts in the order in which they are drawn."""
    if step.items is None:
        return step.attempts
    attempts = [attempt for item in step.items.values() for attempt in item.attempts]
    return sorted(attempts, key=lambda attempt: _ORDER.index(attempt.end))


def _waits(unit: StepView, now_ms: float) -> Iterator[tuple[float, float, str]]:
    """Return when a step has waited for its next attempt, and when in line for a free slot."""
    before: AttemptView | None = None
    for attempt in unit.attempts:
        begin_ms = attempt.started_ms - attempt.queued_ms
        if before is not None and before.ended_ms is not None and begin_ms > before.ended_ms:
            yield before.ended_ms, begin_ms, "backoff"
        if attempt.queued_ms > 0:
            yield max(begin_ms, 0.0), attempt.started_ms, "queue"
        before = attempt
    if before is not None and before.ended_ms is not None and unit.retry_at_ms is not None:
        yield before.ended_ms, min(unit.retry_at_ms, max(now_ms, before.ended_ms)), "backoff"
