"""One frame of a live view: the lines that show a run at a moment, never more than fit.

Rules:

1. If there is room for all steps, each has its line, and keeps its place.
2. Otherwise running and failed steps come first, then small tiers, those near to the running ones
   first. A step without a line is counted in the line of its tier.
3. If there are too many tiers, those that are done share a line, and so do those that wait.
4. The time that a frame takes does not grow with the number of steps.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, chain, islice
from operator import itemgetter
from typing import NamedTuple, TypeAlias

from rich.cells import cell_len
from rich.text import Text

from asyncflow._core.errors import describe_error
from asyncflow._core.results import StepStatus
from asyncflow._core.step_view import StepView
from asyncflow._views.event_text import duration, plural
from asyncflow._views.progress import counted, percentage, progress_text
from asyncflow._views.run_view import RunView, ran_before
from asyncflow.events import (
    Event,
    NoteEvent,
    RunResumed,
    RunStarted,
    StepCancelled,
    StepFailed,
    StepProgressed,
    StepSucceeded,
)
from asyncflow.live._theme import (
    COLOURS,
    Theme,
    bar,
    elide,
    elide_middle,
    fit,
    printable,
    status_for_run,
    widest,
)

__all__ = [
    "Columns",
    "LiveRun",
    "columns_for",
    "frame",
    "summary",
    "title",
]


# The run.


class LiveRun:
    """A run that is watched, and what a frame needs of it without asking every step.

    Attributes:
        view: What is known of the run.
        running: The names of the running steps, in the order of their starts.
        failed: The names of the failed steps, in the order of their failures.
        progress: The latest progress of each step or item that reported any.
        settled_tiers: The number of tiers, from the first on, that have nothing left to do.
        begun_tiers: The number of tiers up to the last one in which a step has started.
        name_width: How many cells the widest name takes.
        height: How many lines its latest frame has.
    """

    def __init__(self) -> None:
        self.view = RunView()
        self.running: dict[str, None] = {}
        self.failed: dict[str, None] = {}
        self.progress: dict[str, dict[int | None, StepProgressed]] = {}
        self.settled_tiers = self.begun_tiers = self.name_width = self.height = 0
        self._ahead_ms: float | None = None
        """How far the run's clock is ahead of ours; events arrive late, never early."""
        self._counts: list[Counter[StepStatus]] = []
        """By tier."""
        self._settled: Counter[StepStatus] = Counter()
        """The counts of the settled tiers together."""
        self._starts = [0]
        """How many steps there are before each tier."""

    @property
    def has_begun(self) -> bool:
        """Whether its first event has arrived."""
        return bool(self.view.segments)

    def now_ms(self) -> float:
        """Return the time on the run's clock, in milliseconds since the run started."""
        view = self.view
        if view.outcome is not None or self._ahead_ms is None:
            return view.at_ms
        return max(view.at_ms, self._ahead_ms + _our_ms())

    def apply(self, *events: Event | NoteEvent) -> None:
        """Apply more events. Outputs, and what steps log and attach, are dropped."""
        if not events:
            return
        view = self.view
        before: dict[str, StepStatus] = {}
        for event in events:
            name: str | None = getattr(event, "step", None)
            if isinstance(event, NoteEvent):
                if isinstance(event, StepProgressed):
                    self.progress.setdefault(event.step, {})[event.item] = event
                continue
            if name is None:
                view.apply(event)
                if isinstance(event, RunStarted | RunResumed):
                    self._begin()
                    before.clear()
                continue
            if name not in before:
                before[name] = view.steps[name].status
            if name in self.progress and isinstance(event, _ENDS):
                self.progress[name].pop(event.item, None)
            if type(event) is StepSucceeded and event.output is not None:
                event = StepSucceeded(name, event.attempt, event.at_ms, None, event.item)
            view.apply(event)
        # Most steps of a large run start and end within one batch: they move once.
        for name, status in before.items():
            step = view.steps[name]
            if step.status is not status:
                self._move(step, status)
        ahead_ms = view.at_ms - _our_ms()
        self._ahead_ms = max(ahead_ms, ahead_ms if self._ahead_ms is None else self._ahead_ms)

    def counts(self, first: int, last: int) -> Counter[StepStatus]:
        """Count the statuses of the steps in the tiers from ``first`` to before ``last``."""
        if first == 0 and last == self.settled_tiers:
            return self._settled
        if first >= self.begun_tiers:
            return Counter({StepStatus.PENDING: self.size(first, last)})
        return sum(self._counts[first:last], Counter())

    def size(self, first: int, last: int) -> int:
        """Return how many steps the tiers from ``first`` to before ``last`` have."""
        return self._starts[last] - self._starts[first]

    def _begin(self) -> None:
        view = self.view
        self.running, self.failed, self.progress = {}, {}, {}
        self.settled_tiers = self.begun_tiers = 0
        self._settled = Counter()
        self._counts = [Counter({StepStatus.PENDING: len(names)}) for names in view.tiers]
        self._starts = list(accumulate(map(len, view.tiers), initial=0))
        self.name_width = widest(view.steps)
        for step in view.steps.values():  # of a resumed run, some are already running
            if step.status is not StepStatus.PENDING:
                self._move(step, StepStatus.PENDING)

    def _move(self, step: StepView, before: StepStatus) -> None:
        status, tier = step.status, step.tier
        self._counts[tier][before] -= 1
        self._counts[tier][status] += 1
        if before is StepStatus.RUNNING:
            del self.running[step.name]
        if status is StepStatus.RUNNING:
            self.running[step.name] = None
        elif status is StepStatus.FAILED:
            self.failed[step.name] = None
        if status is not StepStatus.RUNNING:
            self.progress.pop(step.name, None)
        self.begun_tiers = max(self.begun_tiers, tier + 1)
        if tier == self.settled_tiers:
            self._settle()

    def _settle(self) -> None:
        while self.settled_tiers < self.begun_tiers:
            counts = self._counts[self.settled_tiers]
            if counts[StepStatus.PENDING] or counts[StepStatus.RUNNING]:
                break
            self._settled += counts
            self.settled_tiers += 1


_ENDS = (StepSucceeded, StepFailed, StepCancelled)


def _our_ms() -> float:
    return time.monotonic() * 1000


# The frame.

_Span = tuple[int, int]
"""Tiers, from one to before another one, that share a line."""


def frame(
    run: LiveRun, *, width: int, height: int, now_ms: float, theme: Theme, min_height: int = 0
) -> list[Text]:
    """Return the lines of a frame.

    Args:
        run: The run.
        width: How many cells a line may take.
        height: How many lines there may be, at least 1.
        now_ms: The time, in milliseconds since the run started.
        theme: What to draw with.
        min_height: How many lines there are at least, so that the last ones keep their place.
    """
    head = [title(run, width, now_ms, theme)] if height >= 5 else []
    foot = [summary(run, width, now_ms, theme)]
    if height >= 4:
        foot = [_progress(run, width, theme), *foot]
    if height >= 6 and run.view.stop_reason is not None:
        foot = [_stop(run.view.stop_reason, width, theme), *foot]
    body = _body(run, height - len(head) - len(foot), width, now_ms, theme)
    blank = [Text()] * (min(min_height, height) - len(head) - len(body) - len(foot))
    lines = [*head, *body, *blank, *foot]
    for line in lines:
        line.truncate(width)  # with hardly any cells, the columns don't shrink any further
    return lines


def summary(run: LiveRun, width: int, now_ms: float, theme: Theme) -> Text:
    """Return the line with the status of a run, its duration, and how many steps have which."""
    view = run.view
    status = status_for_run(view.word)
    text = Text(no_wrap=True)
    text.append(f"{theme.symbols[status]} {view.word}", f"bold {COLOURS[status]}")
    text.append(f"  {duration(view.at_ms if view.outcome else now_ms)}")
    counts = _counts_text(view.counts, width - text.cell_len - 3, theme)
    if counts:
        text.append("   ").append(counts)
    return text


def title(run: LiveRun, width: int, now_ms: float, theme: Theme) -> Text:
    """Return the line with the names of the pipeline and of the run."""
    name = printable(run.view.pipeline, theme.encoding)
    rest = f"run {printable(run.view.run_id, theme.encoding)}"
    if len(run.view.segments) > 1:
        span = duration((run.view.at_ms if run.view.outcome else now_ms) + run.view.paused_ms)
        pauses = "the pause" if len(run.view.segments) == 2 else "pauses"
        rest += f" {theme.separator} resumed, {span} with {pauses}"
    text = Text(no_wrap=True)
    if name:
        name = elide_middle(name, max(width // 2, width - 40), theme.ellipsis)
        text.append(name, "bold").append("  ")
    return text.append(elide_middle(rest, max(width - text.cell_len, 0), theme.ellipsis), "dim")


def _progress(run: LiveRun, width: int, theme: Theme) -> Text:
    view = run.view
    label = f"  {view.settled:,} of {len(view.steps):,} steps"
    done, left = bar(view.settled, len(view.steps), max(width - len(label), 0), theme)
    colour = COLOURS[StepStatus.FAILED if run.failed else StepStatus.SUCCESS]
    return Text(no_wrap=True).append(done, colour).append(left, "dim").append(label)


def _stop(reason: str, width: int, theme: Theme) -> Text:
    line = elide_middle(
        printable(f"stopped because {reason}", theme.encoding), width, theme.ellipsis
    )
    return Text(line, COLOURS[StepStatus.CANCELLED], no_wrap=True)


_COUNTED = {
    StepStatus.SUCCESS: "succeeded",
    StepStatus.RUNNING: "running",
    StepStatus.FAILED: "failed",
    StepStatus.CANCELLED: "cancelled",
    StepStatus.SKIPPED: "skipped",
    StepStatus.PENDING: "pending",
}


def _counts_text(counts: Counter[StepStatus], width: int, theme: Theme) -> Text:
    """Return how many steps have which status: ``✓ 12 succeeded  ○ 3 pending``."""
    found = [status for status in _COUNTED if counts[status]]
    parts, gap = [f" {counts[status]:,} {_COUNTED[status]}" for status in found], "  "
    if sum(1 + len(part) + len(gap) for part in parts) - len(gap) > width:
        parts, gap = [f"{counts[status]}" for status in found], " "
    text = Text(no_wrap=True)
    for status, part in zip(found, parts, strict=True):
        part = f"{gap if text else ''}{theme.symbols[status]}{part}"
        if text.cell_len + len(part) <= width:
            text.append(part, COLOURS[status])
    return text


# The tiers.


def _body(run: LiveRun, room: int, width: int, now_ms: float, theme: Theme) -> list[Text]:
    spans = _spans(run, room)
    # As wide as the widest label that may come, so that nothing moves when it does.
    count = len(run.view.tiers)
    last = (count - 1 if len(spans) == count else max(count - 2, 0), count)
    columns = columns_for(width, len(_label(last, width, theme)), run.name_width)
    whole, chosen = _choice(run, spans, room)
    lines = []
    for span in spans:
        label = _label(span, width, theme)
        if span not in whole:
            counts = _counts_text(run.counts(*span), width - columns.tier - 2, theme)
            gutter = fit(label, columns.tier + 2) if columns.tier else ""
            lines.append(Text(gutter, "dim", no_wrap=True).append(counts))
            label = ""
        for name in chosen[span]:
            step = run.view.steps[name]
            if span[1] - span[0] > 1:
                label = _label((step.tier, step.tier + 1), width, theme)
            lines.append(_row(step, run.progress.get(name, {}), label, columns, now_ms, theme))
            label = ""
    return lines


def _label(span: _Span, width: int, theme: Theme) -> str:
    first, last = span[0] + 1, span[1]
    is_one = first == last
    numbers = str(first) if is_one else f"{first}{theme.dash}{last}"
    return numbers if width < 70 else f"{'tier' if is_one else 'tiers'} {numbers}"


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
    spans = [(0, done), *between, (begun, count)]
    # The line of the running ones matters most.
    return [span for span in spans if span[0] < span[1]][-room:]


def _choice(
    run: LiveRun, spans: list[_Span], room: int
) -> tuple[set[_Span], dict[_Span, Sequence[str]]]:
    """Return the spans of which all steps have lines, and the steps with lines of each span."""
    left = room - len(spans)
    span_of = {tier: span for span in spans for tier in range(*span)}
    first: dict[_Span, list[str]] = defaultdict(list)
    for name in _first(run, left):
        first[span_of[run.view.steps[name].tier]].append(name)
        left -= 1
    whole = set()
    chosen: dict[_Span, Sequence[str]] = {span: first[span] for span in spans}
    # Unsettled tiers first, and of these and of the others the ones next to what is running.
    for span in sorted(
        spans, key=lambda span: (span[0] < run.settled_tiers, abs(span[0] - run.settled_tiers))
    ):
        more = run.size(*span) - len(first[span]) - 1  # a whole tier needs no line of its own
        if span[1] - span[0] == 1 and more <= left:
            left -= more
            whole.add(span)
            chosen[span] = run.view.tiers[span[0]]
    return whole, chosen


def _first(run: LiveRun, count: int) -> Iterator[str]:
    """Return the steps that are shown first: running ones, and as many failed ones."""
    failed = min(len(run.failed), max(count - len(run.running), count // 2))
    return chain(islice(run.failed, failed), islice(run.running, max(count - failed, 0)))


# The row of a step.

_Reported: TypeAlias = Mapping[int | None, StepProgressed]
"""The latest progress of a step, and of each of its items, by item."""


class Columns(NamedTuple):
    """How many cells each column takes; there are two between any two."""

    tier: int
    status: int
    name: int
    note: int
    duration: int


def columns_for(width: int, tier: int, name: int) -> Columns:
    """Divide the width of a line; tiers and names take as many cells as given, or less."""
    if width < 44:  # a symbol, a name and a duration
        return Columns(0, 1, max(width - 13, 1), 0, 9)
    status, lasted = 11, 9
    rest = width - tier - status - lasted - 6
    # At 80 columns a name has 17 cells, and a note 28: "next attempt in 3 s (2 of 3)".
    name = min(name, max(17, min(rest * 9 // 20, rest - 30)))
    note = rest - name - 2
    if note < 12:
        name, note = rest, -2
    return Columns(tier, status, name, note, lasted)


def _row(
    step: StepView, reported: _Reported, tier: str, columns: Columns, now_ms: float, theme: Theme
) -> Text:
    text = Text(no_wrap=True)
    if columns.tier:
        text.append(fit(tier, columns.tier + 2), "dim")
    gap = "  " if columns.tier else " "
    status = f"{theme.symbols[step.status]} {step.status}"
    text.append(fit(status[: columns.status], columns.status), COLOURS[step.status])
    name = fit(printable(step.name, theme.encoding), columns.name, theme.ellipsis)
    text.append(gap + name, "dim" if step.status is StepStatus.PENDING else "")
    progress = _current(step, reported.get(None))
    if columns.note > 0:
        note = _progress_note if progress is not None else _note
        text.append("  ").append(note(step, reported, columns.note, now_ms, theme))
    duration_ms = step.duration_ms(now_ms)
    lasted = "" if duration_ms is None else duration(duration_ms)
    if columns.note <= 0 and progress is not None and percentage(progress) is not None:
        lasted = f"{percentage(progress)} %"
    if len(lasted) > columns.duration:
        lasted = lasted.replace(" ", "")
    return text.append(f"{gap}{lasted:>{columns.duration}}", "" if step.ended_ms is None else "dim")


_BAR_WIDTHS = range(4, 17)


def _note(step: StepView, reported: _Reported, width: int, now_ms: float, theme: Theme) -> Text:
    text = Text(no_wrap=True)
    words = printable(_words(step, now_ms, reported), theme.encoding)
    if step.item_count is not None and step.status is StepStatus.RUNNING:
        cells = min(width - len(words) - 2, width // 2, _BAR_WIDTHS[-1])
        if cells in _BAR_WIDTHS:
            done, left = bar(_settled_items(step), step.item_count, cells, theme)
            text.append(done, COLOURS[StepStatus.RUNNING]).append(f"{left}  ", "dim")
    colour = COLOURS[step.status] if step.status is StepStatus.FAILED else "dim"
    if step.retry_at_ms is not None:
        colour = "yellow"
    text.append(elide(words, width - text.cell_len, theme.ellipsis), colour)
    return text.append(" " * (width - text.cell_len))


def _progress_note(
    step: StepView, reported: _Reported, width: int, now_ms: float, theme: Theme
) -> Text:
    """Return the progress of a running attempt, as much of it as fits: at least the percentage."""
    progress, latest = reported[None], step.latest
    assert latest is not None  # it is running
    share, count, rate, left = progress_text(progress, latest.started_ms, now_ms)
    least = _BAR_WIDTHS[0] + 1 if share else 0
    choices = [
        (least, [share, count, rate, left, _words(step, now_ms, reported)]),
        (least, [share, count, rate, left]),
        (least, [share, count, left]),
        (least, [share, count]),
        (0, [share, count]),
        (least, [share, left]),
    ]
    fitting = [
        words
        for room, parts in choices
        if cell_len(words := printable(", ".join(filter(None, parts)), theme.encoding)) + room
        <= width
    ]
    words = fitting[0] if fitting else share or count
    text = Text(no_wrap=True)
    cells = min(width - cell_len(words) - 1, width // 2, _BAR_WIDTHS[-1])
    if share and cells in _BAR_WIDTHS:
        done, empty = bar(percentage(progress) or 0, 100, cells, theme)
        text.append(done, COLOURS[StepStatus.RUNNING]).append(f"{empty} ", "dim")
    text.append(elide(words, width - text.cell_len, theme.ellipsis), "dim")
    return text.append(" " * (width - text.cell_len))


def _current(step: StepView, progress: StepProgressed | None) -> StepProgressed | None:
    """Return the latest progress of a step or an item if it is that of its running attempt."""
    latest = step.latest
    if progress is None or latest is None or latest.ended_ms is not None:
        return None
    return progress if progress.attempt == latest.number else None


def _words(step: StepView, now_ms: float, reported: _Reported) -> str:
    rerun = "" if step.rerun_reason is None else f"again, because {step.rerun_reason}"
    if ran_before(step):
        before = "ran before the run was resumed"
        return ", ".join(filter(None, [before, step.reason or rerun]))
    match step.status:
        case StepStatus.PENDING:
            parts = [rerun]
        case StepStatus.RUNNING:
            parts = [_items(step), *_items_under_way(step, reported), _attempt(step, now_ms), rerun]
        case StepStatus.FAILED:
            error = "" if step.error is None else describe_error(step.error)
            parts = [_items(step), error, _attempts(step)]
        case StepStatus.SUCCESS:
            parts = ["reused" if step.reused else "", _items(step), _attempts(step)]
        case _:
            parts = [step.reason or "", _items(step)]
    return ", ".join(filter(None, parts))


def _attempt(step: StepView, now_ms: float) -> str:
    """Return which attempt is running or comes next."""
    latest, most = step.latest, step.max_retries
    if latest is None:
        return ""
    of = "" if most is None else f" of {most}"
    if step.retry_at_ms is not None:
        # When its time has come, the attempt may have to queue.
        left_s = math.ceil((step.retry_at_ms - now_ms) / 1000)
        when = f"in {left_s} s" if left_s > 0 else "now"
        why = "" if latest.error is None else f": {describe_error(latest.error)}"
        return f"next attempt {when} ({latest.number + 1}{of}){why}"
    which = "" if most in (None, 1) and latest.number == 1 else f"attempt {latest.number}{of}"
    queued = f"queued {duration(latest.queued_ms)}" if latest.queued_ms >= 1 else ""
    return ", ".join(filter(None, [which, queued]))


def _attempts(step: StepView) -> str:
    """Return how many attempts it took, if more than one, and how many before it began anew."""
    count, most = len(step.attempts) - step.fresh_from, step.max_retries
    earlier = plural(step.fresh_from, "earlier attempt") if step.fresh_from else ""
    if count < 2:
        return earlier
    these = f"{count} attempts" if most is None else f"attempt {count} of {most}"
    return ", ".join(filter(None, [these, earlier]))


def _items(step: StepView) -> str:
    if step.items is None:
        return ""
    count = settled = _settled_items(step)
    of = ""
    if step.item_count is not None and step.status is not StepStatus.SUCCESS:
        count, of = step.item_count, f" of {step.item_count:,}"
    failed = step.tally[StepStatus.FAILED]
    text = f"{settled:,}{of} item{'' if count == 1 else 's'}"
    return f"{text}, {failed:,} failed" if failed else text


def _items_under_way(step: StepView, reported: _Reported) -> Iterator[str]:
    """Yield how far running items are that reported it: ``[2] 24 %``."""
    for number, progress in sorted(
        ((at, each) for at, each in reported.items() if at is not None), key=itemgetter(0)
    ):
        item = (step.items or {}).get(number)
        if item is not None and _current(item, progress) is not None:
            share = percentage(progress)
            yield f"[{number}] {counted(progress) if share is None else f'{share} %'}"


def _settled_items(step: StepView) -> int:
    tally = step.tally
    return tally.total() - tally[StepStatus.PENDING] - tally[StepStatus.RUNNING]
