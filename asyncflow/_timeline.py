"""A timeline in text: when each attempt of each step of a run went on, and when it waited."""

from __future__ import annotations

from typing import NamedTuple

from rich.text import Text

from asyncflow._axis import ticks
from asyncflow._cells import clipped, fitted, shown, widest
from asyncflow._core.results import StepStatus
from asyncflow._look import ASCII, COLOURS, Look, look_for
from asyncflow._segments import MEANINGS, Cell, Fills, Scale, cells_of
from asyncflow._views.event_text import duration
from asyncflow._views.run_view import RunView
from asyncflow._views.step_view import StepView

__all__ = ["timeline"]

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

    look: Look
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
