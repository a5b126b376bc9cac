"""One frame of a live view: the lines that show a run at a moment, never more than fit.

Rules:

1. If there is room for all steps, each has its line, and keeps its place.
2. Otherwise failed steps, those that wait for a signal and running ones come first, then small
   tiers, those near to the running ones first. A step without a line is counted in the line of its
   tier.
3. If there are too many tiers, those that are done share a line, and so do those that wait.
4. The time that a frame takes does not grow with the number of steps.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice

from rich.text import Text

from asyncflow._core.analysis.looks import RUN_LOOKS, STEP_LOOKS, Look, counted_looks
from asyncflow._core.history.results import StepStatus
from asyncflow._core.history.step_view import StepView
from asyncflow._core.text import duration
from asyncflow._views.event_text import pause_text
from asyncflow._views.progress import left_text
from asyncflow._views.run_view import RunView
from asyncflow._views.waiting import waited_ms
from asyncflow.events import (
    Event,
    NoteEvent,
    PoolPaused,
    RunResumed,
    RunStarted,
    StepCancelled,
    StepFailed,
    StepProgressed,
    StepSucceeded,
)
from asyncflow.live._row import columns_for, row
from asyncflow.live._theme import (
    Theme,
    bar,
    elide_middle,
    fit,
    printable,
    widest,
)

# The run.


@dataclass(slots=True)
class Expected:
    """How long the runs of a view usually take, and their steps by name, in milliseconds."""

    run_ms: float | None = None
    steps_ms: Mapping[str, float] = field(default_factory=dict)
    is_elsewhere: bool = False
    """Whether another process runs them, so that the wall clock tells how far they are."""
    died_at: float | None = None
    """When that process last gave a sign of life, in seconds since the epoch, if it is gone."""


class LiveRun:
    """A run that is watched, and what a frame needs of it without asking every step.

    ``running`` is in the order of the starts, and ``failed`` in that of the failures.
    ``settled_tiers`` counts the tiers, from the first on, that have nothing left to do, and
    ``begun_tiers`` those up to the last one in which a step has started. ``name_width`` is in
    cells, and ``height`` is that of its latest frame, in lines.
    """

    def __init__(self, expected: Expected | None = None) -> None:
        self.view = RunView()
        self.expected = expected or Expected()
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
        return bool(self.view.segments)

    @property
    def is_orphaned(self) -> bool:
        return self.expected.died_at is not None and self.view.is_running

    def now_ms(self) -> float:
        """Return the time on the run's clock, in milliseconds since the run started."""
        view = self.view
        if not view.is_running or self._ahead_ms is None:
            return view.at_ms
        if self.expected.died_at is not None:
            return view.ms_at(self.expected.died_at)
        if self.expected.is_elsewhere:
            return view.ms_at(time.time())
        return max(view.at_ms, self._ahead_ms + _our_ms())

    def apply(self, *events: Event) -> None:
        """Apply more events. Outputs, and what steps log and attach, are dropped."""
        if not events:
            return
        view = self.view
        before: dict[str, StepStatus] = {}
        for event in events:
            name = event.step
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
                error = event.error
                event = StepSucceeded(
                    name, event.attempt, event.at_ms, None, event.item, error=error
                )
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

    ``width`` is how many cells a line may take, and ``height`` how many lines there may be, at
    least 1. There are at least ``min_height``, so that the last ones keep their place. ``now_ms``
    is the time, in milliseconds since the run started.
    """
    head = [title(run, width, now_ms, theme)] if height >= 5 else []
    foot = [summary(run, width, now_ms, theme)]
    if height >= 4:
        foot = [_progress(run, width, theme), *foot]
    if height >= 6 and run.view.stop_reason is not None:
        foot = [_stop(run.view.stop_reason, width, theme), *foot]
    elif height >= 6 and (pauses := run.view.pauses_at(now_ms)):
        foot = [_pause(pauses, now_ms, width, theme), *foot]
    body = _body(run, height - len(head) - len(foot), width, now_ms, theme)
    blank = [Text()] * (min(min_height, height) - len(head) - len(body) - len(foot))
    lines = [*head, *body, *blank, *foot]
    for line in lines:
        line.truncate(width)  # with hardly any cells, the columns don't shrink any further
    return lines


def summary(run: LiveRun, width: int, now_ms: float, theme: Theme) -> Text:
    """Return the line with the status of a run, its duration, and how many steps have which."""
    view = run.view
    word = "ORPHANED" if run.is_orphaned else view.word
    look = RUN_LOOKS[word]
    text = Text(no_wrap=True)
    text.append(f"{theme.symbol(look)} {word}", f"bold {look.colour}")
    text.append(f"  {duration(now_ms if view.is_running else view.at_ms)}")
    # A rerun runs only a part of its pipeline.
    may_end = view.is_running and not run.is_orphaned and not view.rerun_of
    if may_end and (left := left_text(run.expected.run_ms, now_ms)):
        text.append(f", {left}", "dim")
    found = view.looks(has_died=run.is_orphaned)
    counts = _counts_text(found, width - text.cell_len - 3, theme)
    if counts:
        text.append("   ").append(counts)
    return text


def title(run: LiveRun, width: int, now_ms: float, theme: Theme) -> Text:
    """Return the line with the names of the pipeline and of the run."""
    name = printable(run.view.pipeline, theme.encoding)
    rest = f"run {printable(run.view.run_id, theme.encoding)}"
    if len(run.view.segments) > 1:
        span = duration((now_ms if run.view.is_running else run.view.at_ms) + run.view.paused_ms)
        pauses = "the pause" if len(run.view.segments) == 2 else "pauses"
        rest += f" {theme.separator} resumed, {span} with {pauses}"
    text = Text(no_wrap=True)
    if name:
        name = elide_middle(name, max(width // 2, width - 40), theme.ellipsis)
        text.append(name, "bold").append("  ")
    return text.append(elide_middle(rest, max(width - text.cell_len, 0), theme.ellipsis), "dim")


def _progress(run: LiveRun, width: int, theme: Theme) -> Text:
    view = run.view
    label = f"  {view.ended_steps:,} of {len(view.steps):,} steps"
    done, left = bar(view.ended_steps, len(view.steps), max(width - len(label), 0), theme)
    colour = STEP_LOOKS["FAILED" if run.failed else "SUCCESS"].colour
    return Text(no_wrap=True).append(done, colour).append(left, "dim").append(label)


def _stop(reason: str, width: int, theme: Theme) -> Text:
    line = elide_middle(
        printable(f"stopped because {reason}", theme.encoding), width, theme.ellipsis
    )
    return Text(line, STEP_LOOKS["CANCELLED"].colour, no_wrap=True)


def _pause(pauses: Sequence[PoolPaused], now_ms: float, width: int, theme: Theme) -> Text:
    """Return the line with the pools that are paused, and for how long still."""
    texts = [f"{pause_text(each)}, {duration(each.until_ms - now_ms)} left" for each in pauses]
    line = elide_middle(printable("; ".join(texts), theme.encoding), width, theme.ellipsis)
    return Text(line, STEP_LOOKS["SKIPPED"].colour, no_wrap=True)


def _counts_text(found: Sequence[tuple[Look, int]], width: int, theme: Theme) -> Text:
    """Return how many steps have which look: ``✓ 12 succeeded  ○ 3 pending``."""
    parts = [f" {count:,} {look.said}" for look, count in found]
    gap = "  "
    if sum(1 + len(part) + len(gap) for part in parts) - len(gap) > width:
        parts, gap = [f"{count}" for _, count in found], " "
    text = Text(no_wrap=True)
    for (look, _), part in zip(found, parts, strict=True):
        part = f"{gap if text else ''}{theme.symbol(look)}{part}"
        if text.cell_len + len(part) <= width:
            text.append(part, look.colour)
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
            waiting = sum([step.tier in range(*span) for step in run.view.waiting])
            found = counted_looks(run.counts(*span), waiting, has_died=run.is_orphaned)
            counts = _counts_text(found, width - columns.tier - 2, theme)
            gutter = fit(label, columns.tier + 2) if columns.tier else ""
            lines.append(Text(gutter, "dim", no_wrap=True).append(counts))
            label = ""
        for name in chosen[span]:
            step = run.view.steps[name]
            if span[1] - span[0] > 1:
                label = _label((step.tier, step.tier + 1), width, theme)
            usual_ms = run.expected.steps_ms.get(name)
            reported = run.progress.get(name, {})
            has_died = run.is_orphaned and step.status is StepStatus.RUNNING
            waits_ms = waited_ms(step, run.view.wall_time_of(now_ms))
            shown = row(
                *(step, reported, label, columns, now_ms, theme, usual_ms, waits_ms),
                has_died=has_died,
            )
            lines.append(shown)
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
    waiting = [step.name for step in run.view.waiting]
    others = len(waiting) + len(run.running)
    failed = min(len(run.failed), max(count - others, count // 2))
    shown = islice(chain(waiting, run.running), max(count - failed, 0))
    return chain(islice(run.failed, failed), shown)
