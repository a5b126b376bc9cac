"""A timeline in text: when each attempt of each step ran, and when it waited.

Each step has a row of cells on a common time axis. Anything that took less than a cell still has
one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.text import Text

from asyncflow._core.analysis.looks import DIED_LOOK, OUTCOME_LOOKS, STEP_LOOKS, WAITS_LOOK, look_of
from asyncflow._core.analysis.remarks import DIED
from asyncflow._core.history.results import StepStatus
from asyncflow._core.history.step_view import AttemptView, ItemAttemptEnd, StepView
from asyncflow._core.text import duration
from asyncflow._views.axis import ticks
from asyncflow._views.run_view import RunView
from asyncflow._views.spans import spans_of
from asyncflow._views.waiting import waited_ms
from asyncflow.live._end import path_lines
from asyncflow.live._theme import ASCII, Theme, elide, fit, printable, theme_for, widest


class _Glyphs(NamedTuple):
    """What each part of a timeline is drawn with."""

    attempt: str = "█"
    failed: str = "▓"
    mixed: str = "▚"
    cut_short: str = "▒"
    timeout: str = "!"
    queue: str = "░"
    backoff: str = "·"
    between: str = "─"
    resumed: str = "┊"
    critical: str = "◆"
    wait: str = "╱"
    reused: str = OUTCOME_LOOKS["REUSED"].symbol
    flows: str = "↳"
    died: str = DIED_LOOK.symbol
    corner: str = "├"
    tick: str = "┬"
    rule: str = "─"
    retried: str = "▞"


_UNICODE, _ASCII = _Glyphs(), _Glyphs(*"#x%/!_.-:*w=>?++-r")
_MEANINGS = {
    "attempt": "attempt",
    "failed": "failed attempt",
    "mixed": "some items failed",
    "retried": "items retried",
    "cut_short": "unfinished",
    "timeout": "timed out",
    "queue": "queued",
    "backoff": "backoff",
    "between": "between items",
    "wait": "waits for a signal",
    "resumed": "resumed here",
    "critical": "on the critical path",
    "reused": "reused",
    "died": DIED,
    "flows": "takes each item when the step before has it",
}
"""The legend, by field of `_Glyphs`."""

_MIN_TICK_CELLS = 11
_MAX_TICKS = 10


class Scale(NamedTuple):
    """Which cell shows which time."""

    end_ms: float
    cells: int

    def cell(self, ms: float) -> int:
        return min(max(int(ms / self.end_ms * self.cells), 0), self.cells - 1)

    def span(self, start_ms: float, end_ms: float) -> range:
        """Return the cells of a span of time; at least one."""
        first = self.cell(start_ms)
        # A time that ends where a cell begins does not reach into that cell.
        last = min(math.ceil(end_ms / self.end_ms * self.cells) - 1, self.cells - 1)
        return range(first, max(last, first) + 1)


class _Cell(NamedTuple):
    character: str
    colour: str
    part: str
    """The field of `_Glyphs`."""


class _Grid(NamedTuple):
    theme: Theme
    glyphs: _Glyphs
    status: int
    """How many cells the column takes."""
    name: int
    duration: int
    scale: Scale
    pauses: frozenset[int]
    """In which cells the run was resumed."""
    now_ms: float
    critical: frozenset[str]
    flows: frozenset[str]
    """The steps that took items of a step that had not ended."""
    begins_ms: Sequence[float]
    """When each segment began."""
    resumed: str
    """What a pause between two segments means."""
    is_orphaned: bool
    now_s: float | None
    """The present in seconds since the epoch."""


def timeline(
    view: RunView,
    *,
    width: int,
    now_ms: float | None = None,
    encoding: str = "utf-8",
    is_orphaned: bool = False,
    now_s: float | None = None,
) -> Text:
    """Return a timeline, one row for each step, without a final line break.

    Each attempt, each backoff, each wait in a queue or for a signal is a bar of its own. Steps on
    the critical path are marked, and named below if one of them waited. If a step has several
    attempts, each bar begins with its number.

    ``width`` is how many cells a line may take; fewer than 40 are hard to read. ``now_ms`` is the
    current time of a run that has not ended, in milliseconds since the run started; by default the
    time of its latest event. ``now_s`` is the same by wall clock, in seconds since the epoch, also
    for a run that waits. ``is_orphaned`` says that its process is gone. An ``encoding`` that
    lacks the symbols gets an ASCII timeline.
    """
    now_ms = view.at_ms if now_ms is None else now_ms
    path = view.critical_path(now_ms)
    grid = _grid(view, path, width, now_ms, now_s, encoding, is_orphaned)
    used: set[str] = set()
    lines = [*_axis(grid), *(_row(step, grid, used) for step in view.steps.values())]
    lines += [*_legend(grid, used, width), *path_lines(view, path, width, grid.theme)]
    for line in lines:
        line.rstrip()
        line.truncate(width)
    return Text("\n", no_wrap=True, end="").join(lines)


def _grid(
    view: RunView,
    path: Sequence[str],
    width: int,
    now_ms: float,
    now_s: float | None,
    encoding: str,
    is_orphaned: bool,
) -> _Grid:
    theme = theme_for(encoding, "".join(_UNICODE))
    glyphs = _ASCII if theme.dash == ASCII.dash else _UNICODE
    now_ms = max(now_ms, view.at_ms)
    status = 11 if width >= 56 else 1
    lasted = [_lasted(step, now_ms, now_s) for step in view.steps.values()]
    longest = max(map(len, lasted), default=0)
    flows = frozenset(view.flows)
    names = [f"  {name}" if name in flows else name for name in view.steps]
    name = min(widest(names), max((width - status - longest) * 3 // 10, 6))
    cells = max(width - status - name - longest - 7, 1)
    scale = Scale(max(now_ms, 0.001), cells)
    begins_ms = [segment.at_ms for segment in view.segments]
    pauses = frozenset(map(scale.cell, begins_ms[1:]))
    critical = frozenset(path)
    count, pause = len(view.segments), duration(view.paused_ms)
    many = f"{count - 1} pauses, {pause} in all"
    resumed = f"after {f'a pause of {pause}' if count == 2 else many}"
    sizes = status, name, longest
    marked = critical, flows
    return _Grid(
        *(theme, glyphs, *sizes, scale, pauses, now_ms, *marked, begins_ms, resumed, is_orphaned),
        now_s,
    )


def _lasted(step: StepView, now_ms: float, now_s: float | None) -> str:
    """Return how long a step took, or how long it waits, or waited, for its signal."""
    lasted_ms = step.duration_ms(now_ms)
    if lasted_ms is None and now_s is not None:
        lasted_ms = waited_ms(step, now_s)
    if lasted_ms is None and step.wait is not None:
        lasted_ms = step.wait.lasted_ms
    return "" if lasted_ms is None else duration(lasted_ms)


def _axis(grid: _Grid) -> list[Text]:
    glyphs, scale = grid.glyphs, grid.scale
    labels, line = "", [glyphs.corner, *(glyphs.rule * (scale.cells - 1))]
    least_ms = scale.end_ms * max(_MIN_TICK_CELLS / scale.cells, 1 / _MAX_TICKS)
    for ms, label in ticks(scale.end_ms, least_ms):
        at = scale.cell(ms)
        if at:
            line[at] = glyphs.tick
        if at + len(label) <= scale.cells + grid.duration and at > len(labels) - (not at):
            labels = labels.ljust(at) + label
    margin = " " * (grid.status + grid.name + 4)
    return [Text(margin + labels, "dim"), Text(margin + "".join(line), "dim")]


def _row(step: StepView, grid: _Grid, used: set[str]) -> Text:
    """Return the row of a step, and add the parts that it shows to those that are used."""
    theme, glyphs, cells = grid.theme, grid.glyphs, grid.scale.cells
    is_critical = step.name in grid.critical
    text = Text(no_wrap=True)
    has_died = grid.is_orphaned and step.status is StepStatus.RUNNING
    look = look_of(step, has_died=has_died)
    status = f"{theme.symbol(look)} {look.word}"[: grid.status]
    text.append(fit(status, grid.status), look.colour).append(" ")
    name = printable(step.name, theme.encoding)
    if step.name in grid.flows:
        name = f"{glyphs.flows} {name}"
    name = fit(name, grid.name, theme.ellipsis)
    text.append(name, "bold" if is_critical else "")
    text.append(f" {glyphs.critical if is_critical else ' '} ", "magenta")
    used.update(["critical"] * is_critical + ["reused"] * step.reused)
    used.update(["died"] * has_died)
    used.update(["flows"] * (step.name in grid.flows))
    skipped = step.reason if step.status is StepStatus.SKIPPED else None
    row: dict[int, _Cell] = {}
    if skipped is None or step.active:
        if step.wait is not None:  # it may go on through a pause, which is drawn above it
            end_ms = grid.now_ms if step.wait.ended_ms is None else step.wait.ended_ms
            wait = _Cell(glyphs.wait, WAITS_LOOK.colour, "wait")
            row = dict.fromkeys(grid.scale.span(step.wait.started_ms, end_ms), wait)
        row |= dict.fromkeys(grid.pauses, _Cell(glyphs.resumed, "dim", "resumed"))
        row |= _cells(step, grid)
        used.update(cell.part for cell in row.values())
    left = cells  # for the reason, if there is one
    if skipped is not None:
        left = min(max(row) + 2, cells) if row else 0
    for at in range(left):
        cell = row.get(at)
        text.append(" ") if cell is None else text.append(cell.character, cell.colour)
    if left < cells:
        reason = elide(printable(skipped or "", theme.encoding), cells - left, theme.ellipsis)
        text.append(fit(reason, cells - left), "dim")
    text.append(f" {_lasted(step, grid.now_ms, grid.now_s):>{grid.duration}}")
    return text.append(f" {glyphs.reused if step.reused else ' '}", "dim")


def _legend(grid: _Grid, used: set[str], width: int) -> list[Text]:
    """Return what the glyphs that are used mean, in as many lines as it takes."""
    lines: list[str] = []
    for part, meaning in _MEANINGS.items():
        if part not in used:
            continue
        entry = f"{getattr(grid.glyphs, part)} {meaning}"
        if part == "resumed":
            entry += f", {grid.resumed}; faint: before"
        if lines and len(lines[-1]) + len(entry) + 3 <= width:
            lines[-1] += f"   {entry}"
        else:
            lines.append(entry)
    return [Text(), *(Text(line, "dim") for line in lines)] if lines else []


# The cells of a step.

_PARTS = {
    None: ("attempt", StepStatus.RUNNING),
    "succeeded": ("attempt", StepStatus.SUCCESS),
    "cancelled": ("cut_short", StepStatus.CANCELLED),
    "crashed": ("cut_short", StepStatus.CANCELLED),
    "retried": ("retried", StepStatus.CANCELLED),
    "failed": ("failed", StepStatus.FAILED),
    "timed out": ("failed", StepStatus.FAILED),
}
"""By how an attempt ended. Of items that share a cell, the one with the last end shows."""
_ORDER = tuple(_PARTS)


def _cells(step: StepView, grid: _Grid) -> dict[int, _Cell]:
    row: dict[int, _Cell] = {}
    glyphs, now_ms = grid.glyphs, grid.now_ms

    def paint(
        start_ms: float, end_ms: float | None, segment: int, part: str, colour: str
    ) -> tuple[range, str]:
        span = grid.scale.span(start_ms, now_ms if end_ms is None else end_ms)
        if segment < len(grid.begins_ms) and "dim" not in colour:
            colour = f"dim {colour}"
        row.update(dict.fromkeys(span, _Cell(getattr(glyphs, part), colour, part)))
        return span, colour

    is_mapped = step.items is not None or bool(step.former_items)
    for time in step.active if is_mapped else ():
        paint(time.started_ms, time.ended_ms, time.segment, "between", "dim")
    runs = (step, *step.former_items.values(), *(step.items or {}).values())
    spans = [span for each in runs for span in spans_of(each, grid.begins_ms, now_ms)]
    for kind, start_ms, end_ms, attempt, _ in spans:
        if kind in ("queue", "backoff"):
            colour = "dim" if kind == "queue" else "yellow"
            paint(start_ms, end_ms, attempt.segment, kind, colour)
    attempts: list[tuple[AttemptView, ItemAttemptEnd | None]]
    if is_mapped:
        began = [each for each in step.attempts_of_items() if not each[0].is_queued]
        attempts = sorted(began, key=lambda each: _ORDER.index(each[1]))
    else:
        found = [span.attempt for span in spans if span.kind == "attempt"]
        attempts = [(attempt, attempt.end) for attempt in found]
    for attempt, end in attempts:
        is_cut = end is None and grid.is_orphaned
        part, status = _PARTS["crashed" if is_cut else end]
        before = row.copy() if is_mapped and part == "failed" else {}
        span, colour = paint(
            attempt.started_ms, attempt.ended_ms, attempt.segment, part, STEP_LOOKS[status].colour
        )
        for at in span:
            if at in before and before[at].part in ("attempt", "mixed", "retried"):
                row[at] = _Cell(glyphs.mixed, "yellow", "mixed")
        if not is_mapped and len(step.attempts) > 1:
            row[span[0]] = _Cell(str(attempt.number % 10), f"reverse {colour}", part)
        if end == "timed out":
            row[span[-1]] = _Cell(glyphs.timeout, f"reverse {colour}", "timeout")
    return row
