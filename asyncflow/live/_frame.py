"""One frame of a live view: the lines that show a run at some moment, never more than fit.

Rules:

1. If there is room for all steps, each has its line, and they stand where they stood before.
2. Else steps that run or have failed go first, then small tiers, those near to the running ones
   first. What has no line of its own is counted in its tier's line.
3. If there are too many tiers, those that are done share a line, and so do those that wait.

What a live view says of one step, in one line, and of many steps in a few words.

A run that is being watched: what its view shows, and where in its tiers something goes on.

What is asked for each frame takes no time that grows with the number of the steps.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, islice
from typing import NamedTuple

from rich.text import Text

from asyncflow._core.errors import describe_error
from asyncflow._core.results import StepStatus
from asyncflow._views.event_text import duration
from asyncflow._views.run_view import RunView
from asyncflow._views.step_view import StepView
from asyncflow.events import Event, RunResumed, RunStarted, StepSucceeded
from asyncflow.live._theme import (
    COLOURS,
    Theme,
    bar,
    clipped,
    cut,
    fitted,
    shown,
    sign_of_run,
    widest,
)

__all__ = [
    "Columns",
    "LiveRun",
    "columns_for",
    "frame",
    "row",
    "summary",
    "tally_text",
]

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


def row(step: StepView, tier: str, columns: Columns, now_ms: float, look: Theme) -> Text:
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


def tally_text(counts: Counter[StepStatus], width: int, look: Theme) -> Text:
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


def _note(step: StepView, width: int, now_ms: float, look: Theme) -> Text:
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
            error = "" if step.error is None else describe_error(step.error)
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
        why = "" if latest.error is None else f": {describe_error(latest.error)}"
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


class LiveRun:
    """Attributes:
    view: What is known of the run.
    running: The names of the steps that run, those that began first before others.
    failed: The names of the steps that failed, in the order in which they did.
    settled_tiers: How many tiers, from the first one on, have nothing left to do.
    begun_tiers: Up to which tier anything has happened.
    name_width: How many cells the widest name takes.
    height: How many lines its latest frame has.
    """

    def __init__(self) -> None:
        self.view = RunView()
        self.running: dict[str, None] = {}
        self.failed: dict[str, None] = {}
        self.settled_tiers = self.begun_tiers = self.name_width = self.height = 0
        self._ahead_ms: float | None = None
        """How far the run's clock is ahead of ours; events arrive late, never early."""
        self._tallies: list[Counter[StepStatus]] = []
        self._settled: Counter[StepStatus] = Counter()
        """The sum of the tallies of the settled tiers."""
        self._starts = [0]
        """How many steps there are before each tier."""

    @property
    def has_begun(self) -> bool:
        """Whether its first event has arrived."""
        return bool(self.view.stretches)

    def now_ms(self) -> float:
        """Return the time on the run's clock, in milliseconds since the run started."""
        view = self.view
        if view.outcome is not None or self._ahead_ms is None:
            return view.at_ms
        return max(view.at_ms, self._ahead_ms + _our_ms())

    def apply(self, *events: Event) -> None:
        """Apply more events. Outputs are not kept."""
        if not events:
            return
        view = self.view
        before: dict[str, StepStatus] = {}
        for event in events:
            name: str | None = getattr(event, "step", None)
            if name is None:
                view.apply(event)
                if isinstance(event, RunStarted | RunResumed):
                    self._begin()
                    before.clear()
                continue
            if name not in before:
                before[name] = view.steps[name].status
            if type(event) is StepSucceeded and event.output is not None:
                event = StepSucceeded(name, event.attempt, event.at_ms, None, event.item)
            view.apply(event)
        # Most steps of a large run begin and end in one go: they have moved once then.
        for name, status in before.items():
            step = view.steps[name]
            if step.status is not status:
                self._move(step, status)
        ahead_ms = view.at_ms - _our_ms()
        self._ahead_ms = max(ahead_ms, ahead_ms if self._ahead_ms is None else self._ahead_ms)

    def tally(self, first: int, last: int) -> Counter[StepStatus]:
        """Return how many steps have which status in the tiers from one to before another one."""
        if first == 0 and last == self.settled_tiers:
            return self._settled
        if first >= self.begun_tiers:
            return Counter({StepStatus.PENDING: self.size(first, last)})
        return sum(self._tallies[first:last], Counter())

    def size(self, first: int, last: int) -> int:
        """Return how many steps there are in the tiers from one to before another one."""
        return self._starts[last] - self._starts[first]

    def _begin(self) -> None:
        view = self.view
        self.running, self.failed = {}, {}
        self.settled_tiers = self.begun_tiers = 0
        self._settled = Counter()
        self._tallies = [Counter({StepStatus.PENDING: len(names)}) for names in view.tiers]
        self._starts = list(accumulate(map(len, view.tiers), initial=0))
        self.name_width = widest(view.steps)
        for step in view.steps.values():  # of a run that goes on, some run already
            if step.status is not StepStatus.PENDING:
                self._move(step, StepStatus.PENDING)

    def _move(self, step: StepView, before: StepStatus) -> None:
        status, tier = step.status, step.tier
        tally = self._tallies[tier]
        tally[before] -= 1
        tally[status] += 1
        if before is StepStatus.RUNNING:
            del self.running[step.name]
        if status is StepStatus.RUNNING:
            self.running[step.name] = None
        elif status is StepStatus.FAILED:
            self.failed[step.name] = None
        if tier >= self.begun_tiers:
            self.begun_tiers = tier + 1
        if tier == self.settled_tiers:
            self._settle()

    def _settle(self) -> None:
        while self.settled_tiers < self.begun_tiers:
            tally = self._tallies[self.settled_tiers]
            if tally[StepStatus.PENDING] or tally[StepStatus.RUNNING]:
                break
            self._settled += tally
            self.settled_tiers += 1


def _our_ms() -> float:
    return time.monotonic() * 1000


_Span = tuple[int, int]
"""Tiers, from one to before another one, that share a line."""


def frame(
    run: LiveRun, *, width: int, height: int, now_ms: float, look: Theme, least: int = 0
) -> list[Text]:
    """Return the lines.

    Args:
        run: The run.
        width: How many cells a line may have.
        height: How many lines there may be, at least 1.
        now_ms: What time it is, in milliseconds since the run started.
        look: What to draw with.
        least: How many lines there are at least, so that the last ones stay where they are.
    """
    head = [_title(run, width, look)] if height >= 5 else []
    foot = [summary(run, width, now_ms, look)]
    if height >= 4:
        foot = [_progress(run, width, look), *foot]
    if height >= 6 and run.view.stop_reason is not None:
        foot = [_stop(run.view.stop_reason, width, look), *foot]
    room = height - len(head) - len(foot)
    body = _body(run, room, width, now_ms, look)
    blank = [Text()] * (min(least, height) - len(head) - len(body) - len(foot))
    lines = [*head, *body, *blank, *foot]
    for line in lines:
        line.truncate(width)  # with hardly any cells, the columns don't shrink any further
    return lines


def summary(run: LiveRun, width: int, now_ms: float, look: Theme) -> Text:
    """Return the line that says how a run stands: its state, its time, and how many steps."""
    view = run.view
    status = sign_of_run(view.word)
    text = Text(no_wrap=True)
    text.append(f"{look.signs[status]} {view.word}", f"bold {COLOURS[status]}")
    text.append(f"  {duration(view.at_ms if view.outcome else now_ms)}")
    counts = tally_text(view.counts, width - text.cell_len - 3, look)
    if counts:
        text.append("   ").append(counts)
    return text


def _title(run: LiveRun, width: int, look: Theme) -> Text:
    name, run_id = (shown(each, look.encoding) for each in (run.view.pipeline, run.view.run_id))
    again = f" {look.between} resumed" if len(run.view.stretches) > 1 else ""
    text = Text(no_wrap=True)
    if name:
        text.append(cut(name, max(width // 2, width - 40), look.ellipsis), "bold")
        text.append("  ")
    rest = f"run {run_id}{again}"
    return text.append(cut(rest, max(width - text.cell_len, 0), look.ellipsis), "dim")


def _progress(run: LiveRun, width: int, look: Theme) -> Text:
    view = run.view
    label = f"  {view.settled:,} of {len(view.steps):,} steps"
    full, empty = bar(view.settled, len(view.steps), max(width - len(label), 0), look)
    colour = COLOURS[StepStatus.FAILED if run.failed else StepStatus.SUCCESS]
    text = Text(no_wrap=True)
    return text.append(full, colour).append(empty, "dim").append(label)


def _stop(reason: str, width: int, look: Theme) -> Text:
    said = cut(shown(f"stopped because {reason}", look.encoding), width, look.ellipsis)
    return Text(said, COLOURS[StepStatus.CANCELLED], no_wrap=True)


def _body(run: LiveRun, room: int, width: int, now_ms: float, look: Theme) -> list[Text]:
    spans = _spans(run, room)
    labels = [_label(span, width, look) for span in spans]
    # As wide as the widest that there may be, so that nothing moves when others are shown.
    count = len(run.view.tiers)
    widest = (count - 1 if len(spans) == count else max(count - 2, 0), count)
    columns = columns_for(width, len(_label(widest, width, look)), run.name_width)
    whole, chosen = _choice(run, spans, room)
    lines = []
    for span, label in zip(spans, labels, strict=True):
        names: Sequence[str] = chosen.get(span, [])
        if span not in whole:
            counts = tally_text(run.tally(*span), width - columns.tier - 2, look)
            gutter = fitted(label, columns.tier + 2) if columns.tier else ""
            lines.append(Text(gutter, "dim", no_wrap=True).append(counts))
            label = ""
        for name in names:
            step = run.view.steps[name]
            if span[1] - span[0] > 1:
                label = _label((step.tier, step.tier + 1), width, look)
            lines.append(row(step, label, columns, now_ms, look))
            label = ""
    return lines


def _label(span: _Span, width: int, look: Theme) -> str:
    first, last = span[0] + 1, span[1]
    numbers = str(first) if first == last else f"{first}{look.dash}{last}"
    if width < 70:
        return numbers
    return f"tier {numbers}" if first == last else f"tiers {numbers}"


def _spans(run: LiveRun, room: int) -> list[_Span]:
    if room < 1:
        return []
    count = len(run.view.tiers)
    if count <= room // 2 or len(run.view.steps) <= room:
        return [(tier, tier + 1) for tier in range(count)]
    done, begun = run.settled_tiers, max(run.begun_tiers, run.settled_tiers)
    between = [(tier, tier + 1) for tier in range(done, begun)]
    if len(between) > max(room // 2 - 2, 1):
        between = [(done, begun)]
    parts = [(0, done), *between, (begun, count)]
    # The line of those that run is needed most.
    return [part for part in parts if part[0] < part[1]][-room:]


def _choice(
    run: LiveRun, spans: list[_Span], room: int
) -> tuple[set[_Span], dict[_Span, list[str]]]:
    """Return of which tiers all steps have lines, and the steps that have lines for each tier."""
    left = room - len(spans)
    steps, span_of = run.view.steps, {tier: span for span in spans for tier in range(*span)}
    chosen: dict[_Span, list[str]] = defaultdict(list)
    for name in _first(run, left):
        chosen[span_of[steps[name].tier]].append(name)
        left -= 1
    whole = set()
    for span in _nearest(run, spans):
        size = run.size(*span)
        more = size - len(chosen[span]) - 1  # its own line is not needed then
        if span[1] - span[0] == 1 and more <= left:
            left -= more
            whole.add(span)
            chosen[span] = run.view.tiers[span[0]]
    return whole, chosen


def _first(run: LiveRun, count: int) -> Iterator[str]:
    """Return the steps that are shown first: those that run, and as many that have failed."""
    failed = min(len(run.failed), max(count - len(run.running), count // 2))
    return chain(islice(run.failed, failed), islice(run.running, max(count - failed, 0)))


def _nearest(run: LiveRun, spans: list[_Span]) -> list[_Span]:
    """Return the tiers in the order in which they are wanted: those where something goes on,
    those that come next, those that are done.
    """
    return sorted(
        spans,
        key=lambda span: (
            span[0] < run.settled_tiers,
            abs(span[0] - run.settled_tiers),
        ),
    )
