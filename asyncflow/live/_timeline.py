"""A timeline in text: when each attempt of each step of a run went on, and when it waited.

The row of one step in a timeline: which of its cells show what, so that the shortest is seen.

A time axis: where its ticks are, and what they are called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from rich.text import Text

from asyncflow._core.results import StepStatus
from asyncflow._views.event_text import duration
from asyncflow._views.run_view import RunView
from asyncflow._views.step_view import AttemptView, StepView
from asyncflow.live._theme import ASCII, COLOURS, Theme, clipped, fitted, look_for, shown, widest

__all__ = [
    "MEANINGS",
    "Cell",
    "Fills",
    "Scale",
    "cells_of",
    "ticks",
    "timeline",
]

_SECOND, _MINUTE, _HOUR, _DAY = 1000.0, 60_000.0, 3_600_000.0, 86_400_000.0
_UNITS = ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min"), (_SECOND, "s"), (1.0, "ms"))
_STEPS = (
    *(unit * 10**power for power in range(-3, 3) for unit in (1.0, 2.0, 5.0)),
    *(_SECOND * count for count in (1, 2, 5, 10, 15, 30)),
    *(_MINUTE * count for count in (1, 2, 5, 10, 15, 30)),
    *(_HOUR * count for count in (1, 2, 3, 6, 12)),
)


def ticks(end_ms: float, cells: int) -> list[tuple[float, str]]:
    """Return round times from 0 to an end, each with what it is called.

    Args:
        end_ms: Where the axis ends, in milliseconds; above 0.
        cells: How long it is.

    There are ten of them at most, and eight cells from one to the next one at least.
    """
    least = end_ms * max(8 / cells, 0.1)
    step = next((step for step in _STEPS if step >= least), 0.0)
    if not step:
        days = 1.0
        while days * _DAY < least:
            days *= 2
        step = days * _DAY
    return [(number * step, _name(number * step, step)) for number in range(int(end_ms / step) + 1)]


def _name(ms: float, step: float) -> str:
    """Return a time in the largest unit in which it has no more than one decimal."""
    if not ms:
        return "0"
    for size, unit in _UNITS:
        tenths = ms / size * 10
        if ms >= size and abs(tenths - round(tenths)) < 1e-6 and (size < _MINUTE or not tenths % 5):
            return f"{ms / size:g} {unit}"
    return f"{ms:.3g} ms"


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


_ASCII_FILLS = Fills(
    attempt="=",
    failed="x",
    cut_short="/",
    timeout="!",
    queue="_",
    backoff=".",
    between="-",
    resumed=":",
)


class _Marks(NamedTuple):
    """What is not in a bar."""

    critical: str
    reused: str
    corner: str
    tick: str
    rule: str


_UNICODE = _Marks("◆", "↻", "├", "┬", "─")
_ASCII = _Marks("*", "r", "+", "+", "-")


class _Sheet(NamedTuple):
    """What a timeline is drawn on."""

    look: Theme
    marks: _Marks
    fills: Fills
    status: int
    """How many cells the column has."""
    name: int
    duration: int
    scale: Scale
    now_ms: float
    critical: frozenset[str]
    resumed: frozenset[int]
    """In which cells the run was resumed."""

    @property
    def left(self) -> int:
        """How many cells there are before the axis."""
        return self.status + 1 + self.name + 3


def timeline(
    view: RunView, *, width: int, now_ms: float | None = None, encoding: str = "utf-8"
) -> Text:
    """Return a timeline, one row a step, without an end of line after the last one.

    Each attempt is a bar of its own, and so are the waits between them and in line. The steps of
    the critical path are marked. If there were several attempts, each begins with its number.

    Args:
        view: The run.
        width: How many cells a line may have; with fewer than 40 it gets hard to read.
        now_ms: What time it is, in milliseconds since the run started, if it has not ended; by
            default the time of the latest event.
        encoding: The encoding of what it is written to. One that does not have the signs gets
            others, in ASCII.
    """
    sheet = _sheet(view, width, view.at_ms if now_ms is None else now_ms, encoding)
    used: set[str] = set()
    lines = _axis(sheet)
    for step in view.steps.values():
        lines.append(_row(step, sheet, used))
    lines += _legend(sheet, used, any(step.reused for step in view.steps.values()), width)
    for line in lines:
        line.rstrip()
        line.truncate(width)
    return Text("\n", no_wrap=True, end="").join(lines)


def _sheet(view: RunView, width: int, now_ms: float, encoding: str) -> _Sheet:
    look = look_for(encoding, "".join([*_UNICODE, *Fills()]))
    is_ascii = look.dash == ASCII.dash
    marks, fills = (_ASCII, _ASCII_FILLS) if is_ascii else (_UNICODE, Fills())
    now_ms = max(now_ms, view.at_ms)
    status = 11 if width >= 56 else 1
    lasted = [duration(step.duration_ms(now_ms) or 0.0) for step in view.steps.values()]
    longest = max(map(len, lasted), default=0)
    name = min(widest(view.steps), max((width - status - longest) * 3 // 10, 6))
    cells = max(width - status - name - longest - 7, 1)
    scale = Scale(max(now_ms, 0.001), cells)
    resumed = frozenset(scale.cell(stretch.at_ms) for stretch in view.stretches[1:])
    critical = frozenset(view.critical_path(now_ms))
    return _Sheet(look, marks, fills, status, name, longest, scale, now_ms, critical, resumed)


def _axis(sheet: _Sheet) -> list[Text]:
    """Return the names of the ticks, and the line with the ticks below them."""
    marks, scale = sheet.marks, sheet.scale
    names, line = "", [marks.corner, *(marks.rule * (scale.cells - 1))]
    for ms, name in ticks(scale.end_ms, scale.cells):
        at = scale.cell(ms)
        if at:
            line[at] = marks.tick
        if at + len(name) <= scale.cells + sheet.duration and at > len(names) - (not at):
            names = names.ljust(at) + name
    blank = " " * sheet.left
    return [Text(blank + names, "dim"), Text(blank + "".join(line), "dim")]


def _row(step: StepView, sheet: _Sheet, used: set[str]) -> Text:
    look, colour = sheet.look, COLOURS[step.status]
    is_critical = step.name in sheet.critical
    text = Text(no_wrap=True)
    text.append(
        fitted(f"{look.signs[step.status]} {step.status}"[: sheet.status], sheet.status), colour
    )
    name = fitted(shown(step.name, look.encoding), sheet.name, look.ellipsis)
    text.append(" ").append(name, "bold" if is_critical else "")
    if is_critical:
        used.add("critical")
    text.append(f" {sheet.marks.critical if is_critical else ' '} ", "magenta")
    cells = cells_of(step, sheet.scale, sheet.now_ms, sheet.fills)
    used.update(cell.part for cell in cells.values())
    if step.status is StepStatus.SKIPPED and step.reason is not None:
        reason = clipped(shown(step.reason, look.encoding), sheet.scale.cells, look.ellipsis)
        text.append(fitted(reason, sheet.scale.cells), "dim")
    else:
        for cell in _with_resumptions(cells, sheet, used):
            text.append(cell.character, cell.colour)
    took = step.duration_ms(sheet.now_ms)
    lasted = "" if took is None else duration(took)
    mark = sheet.marks.reused if step.reused else " "
    return text.append(f" {lasted:>{sheet.duration}}").append(f" {mark}", "dim")


def _with_resumptions(cells: dict[int, Cell], sheet: _Sheet, used: set[str]) -> list[Cell]:
    """Return all cells of a row; a resumption is seen where nothing else is."""
    row = [cells.get(at, Cell(" ")) for at in range(sheet.scale.cells)]
    for at in sheet.resumed - cells.keys():
        row[at] = Cell(sheet.fills.resumed, "dim", "resumed")
        used.add("resumed")
    return row


def _legend(sheet: _Sheet, used: set[str], has_reused: bool, width: int) -> list[Text]:
    """Return what the characters mean that there are, in as many lines as it takes."""
    entries = [
        f"{fill} {meaning}"
        for part, fill, meaning in zip(Fills._fields, sheet.fills, MEANINGS, strict=True)
        if part in used
    ]
    if "critical" in used:
        entries.append(f"{sheet.marks.critical} on the critical path")
    if has_reused:
        entries.append(f"{sheet.marks.reused} reused")
    lines: list[str] = []
    for entry in entries:
        if lines and len(lines[-1]) + len(entry) + 3 <= width:
            lines[-1] += f"   {entry}"
        else:
            lines.append(entry)
    return [Text(), *(Text(line, "dim") for line in lines)] if lines else []
