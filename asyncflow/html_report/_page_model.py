"""The model of a page: what its sections say of a run, in which words and within which limits."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from asyncflow._core.errors import escape_controls
from asyncflow._core.results import STATUS_SYMBOLS, StepStatus
from asyncflow._core.step_view import StepView
from asyncflow._views.preview import Preview, error_trace, error_words, preview
from asyncflow._views.run_view import RunView
from asyncflow.html_report._timeline import TierBand, Timeline, TimelineRow, bars_of, running_at

__all__ = [
    "RUN_BADGES",
    "ConcurrencyStrip",
    "PageModel",
    "StatusBadge",
    "TierRows",
    "line_text",
    "name_text",
]

MOST_STEPS_DRAWN = 2_000
MOST_EDGES_DRAWN = 6_000
MOST_STEPS_DETAILED = 2_000
"""Of more steps, only those that did not succeed have details."""
MOST_ITEMS = 30
"""Of more items of a mapped step, those that went wrong are shown first."""
MOST_ITEM_ROWS = 300

# In bytes of the page: all outputs together, all tracebacks together, and the limits of each one.
_ALL_OUTPUTS, _OUTPUT = 40_000, range(160, 4_000)
_ALL_TRACES, _TRACE = 30_000, range(400, 12_000)
_WORDS = 240
_NAME = 160

RUN_BADGES = {
    "PASSED": ("success", "✓"),
    "FAILED": ("failed", "✗"),
    "INTERRUPTED": ("cancelled", "■"),
    "STOPPING": ("cancelled", "■"),
    "RUNNING": ("running", "▷"),
    "ORPHANED": ("orphaned", "◇"),
    "DAMAGED": ("failed", "!"),
}
"""The CSS class and the symbol of each status of a run."""
_BAR = (
    StepStatus.SUCCESS,
    StepStatus.FAILED,
    StepStatus.CANCELLED,
    StepStatus.SKIPPED,
    StepStatus.RUNNING,
    StepStatus.PENDING,
)
_BY_URGENCY = (
    StepStatus.FAILED,
    StepStatus.CANCELLED,
    StepStatus.RUNNING,
    StepStatus.PENDING,
    StepStatus.SKIPPED,
    StepStatus.SUCCESS,
)


class StatusBadge(NamedTuple):
    """A status, and how many steps have it."""

    kind: str
    """Its CSS class."""
    symbol: str
    word: str
    number: int = 0


class ConcurrencyStrip(NamedTuple):
    """How many attempts ran at once."""

    path: str
    """An SVG path, 100 wide, and one high for each attempt."""
    most: int
    """At least 1."""


class TierRows(NamedTuple):
    """A tier of the timeline."""

    number: int
    band: TierBand | None
    rows: tuple[TimelineRow, ...]


class PageModel:
    """A run as a page shows it.

    Attributes:
        view: The run.
        now_ms: The moment that is shown, in milliseconds since the run started.
        is_orphaned: Whether the run has not ended and its process is gone.
        numbers: The number of each step, which identifies it in the page.
        causes: For each step that a failure skipped or cancelled, the step that failed.
        path: The critical path.
        timeline: The scale of the timeline.
    """

    def __init__(self, view: RunView, now_ms: float, *, is_orphaned: bool = False) -> None:
        self.view = view
        self.now_ms = now_ms
        self.is_orphaned = is_orphaned
        self.numbers = {name: number for number, name in enumerate(view.steps)}
        self.causes = view.causes()
        self.path = view.critical_path(now_ms)
        self.timeline = Timeline.until(now_ms)
        self._is_critical = frozenset(self.path)
        self._outputs = self._within_limits()
        failed = max(view.counts[StepStatus.FAILED] + view.counts[StepStatus.CANCELLED], 1)
        self._trace_limit = _within(_ALL_TRACES // failed, _TRACE)

    # The run.

    @property
    def badge(self) -> StatusBadge:
        """The status of the run."""
        word = "ORPHANED" if self.is_orphaned else self.view.word
        return StatusBadge(*RUN_BADGES[word], word)

    @property
    def title(self) -> str:
        """The name of its pipeline, or else its id."""
        return name_text(self.view.pipeline or self.view.run_id)

    @property
    def tab(self) -> str:
        """What the browser's tab says."""
        run = f" · {name_text(self.view.run_id)}" if self.view.pipeline else ""
        return f"{self.badge.symbol} {self.badge.word} · {self.title}{run}"

    @property
    def counts(self) -> list[StatusBadge]:
        """How many steps have which status."""
        counts = self.view.counts
        return [self.status(each, counts[each]) for each in STATUS_SYMBOLS if counts[each]]

    @property
    def progress(self) -> list[StatusBadge]:
        """The same in the order in which a progress bar fills."""
        counts = self.view.counts
        return [self.status(each, counts[each]) for each in _BAR if counts[each]]

    @property
    def consequences(self) -> list[StepView]:
        """The steps that a failure skipped or cancelled."""
        return [self.view.steps[name] for name in self.causes]

    @property
    def failures(self) -> list[StepView]:
        """The steps that failed, the first failure first."""
        failed = [step for step in self.view.steps.values() if step.status is StepStatus.FAILED]
        return sorted(failed, key=lambda step: step.ended_ms or 0.0)

    @property
    def detailed(self) -> list[StepView]:
        """The steps that have details."""
        steps = list(self.view.steps.values())
        if len(steps) <= MOST_STEPS_DETAILED:
            return steps
        odd = [step for step in steps if step.status is not StepStatus.SUCCESS]
        return sorted(odd, key=_urgency)[:MOST_STEPS_DETAILED]

    @property
    def is_drawn(self) -> bool:
        """Whether the graph is small enough to be of use."""
        edges = sum(map(len, self.view.dependencies.values()))
        return len(self.view.steps) <= MOST_STEPS_DRAWN and edges <= MOST_EDGES_DRAWN

    # A step or an item.

    def status(self, status: StepStatus, number: int = 0) -> StatusBadge:
        """Return the badge of a status."""
        return StatusBadge(status.lower(), STATUS_SYMBOLS[status], status.value, number)

    def is_critical(self, name: str) -> bool:
        """Whether a step is on the critical path."""
        return name in self._is_critical

    def duration(self, step: StepView) -> float | None:
        """Return how long a step has taken so far, in milliseconds."""
        return step.duration_ms(self.now_ms)

    def verb(self, step: StepView) -> str:
        """Return what a failure did to a step."""
        return "cancelled" if step.status is StepStatus.CANCELLED else "skipped"

    def note(self, step: StepView) -> str:
        """Return what there is to say of a step beside its status, in a line."""
        notes = []
        if step.error is not None:
            notes.append(error_words(step.error, _WORDS))
        elif step.reason:
            notes.append(_cut(line_text(step.reason), _WORDS))
        if step.reused:
            notes.append("reused from the journal")
        return "; ".join(notes)

    def attempts(self, step: StepView) -> str:
        """Return how many attempts it has had, and of how many."""
        count = step.attempt_count
        if step.items is not None or step.max_retries is None or step.max_retries == 1:
            return str(count)
        return f"{count} of {step.max_retries}"

    def output(self, step: StepView) -> Preview:
        """Return the preview of a step's output."""
        return self._outputs[step.name]

    def _within_limits(self) -> dict[str, Preview]:
        """Return the previews of all outputs: small ones leave their share to large ones."""
        steps = [step for step in self.detailed if step.status is StepStatus.SUCCESS]
        left, among = _ALL_OUTPUTS, max(len(steps), 1)
        most = _within(4 * left // among, _OUTPUT)
        found = {step.name: preview(step.output, most) for step in steps}
        for name in sorted(found, key=lambda name: found[name].size):
            share = max(left // among, _OUTPUT.start)
            if found[name].size > share:
                found[name] = preview(self.view.steps[name].output, share)
            left -= found[name].size
            among -= 1
        return found

    def short_output(self, item: StepView) -> Preview:
        """Return the preview of an item's output."""
        return preview(item.output, 80)

    def value(self, value: object) -> Preview:
        """Return the preview of an input."""
        return preview(value, 1_500)

    def trace(self, error: BaseException) -> Preview:
        """Return what is shown of an error's traceback."""
        return error_trace(error, self._trace_limit)

    def first_trace(self, error: BaseException) -> Preview:
        """Return what is shown of the traceback of the first failure."""
        return error_trace(error, _TRACE.stop)

    def words(self, error: BaseException) -> str:
        """Return an error in one line."""
        return error_words(error, _WORDS)

    # The timeline.

    def rows(self) -> Iterator[TierRows]:
        """Return the rows of the timeline, tier by tier."""
        for number, names in enumerate(self.view.tiers):
            steps = [self.view.steps[name] for name in names]
            band = self.timeline.band(number, steps, self.now_ms)
            yield TierRows(number, band, tuple(map(self.row, steps)))

    def row(self, step: StepView) -> TimelineRow:
        """Return the row of a step or an item."""
        return TimelineRow(step, bars_of(step, self.timeline, self.now_ms))

    def strip(self, steps: Iterable[StepView]) -> ConcurrencyStrip:
        """Return how many attempts of steps, or of their items, ran at once."""
        path, most = ["M0 0"], 1
        for at_ms, count in running_at(steps, self.now_ms):
            path.append(f"H{self.timeline.at(at_ms):.3f}V{count}")
            most = max(most, count)
        return ConcurrencyStrip("".join([*path, "V0Z"]), most)

    def item_count(self, step: StepView) -> int:
        """Return how many items a mapped step has, as far as that is known."""
        return max(step.item_count or 0, len(step.items or ()))

    def tally(self, step: StepView) -> list[StatusBadge]:
        """Return how many of its items that have begun have which status."""
        tally = step.tally
        return [self.status(each, tally[each]) for each in STATUS_SYMBOLS if tally[each]]

    def items(self, step: StepView) -> list[StepView]:
        """Return its items that are shown, in order: first of all those that went wrong."""
        items = step.items or {}
        mapped = sum(each.items is not None for each in self.view.steps.values())
        most = max(min(MOST_ITEMS, MOST_ITEM_ROWS // max(mapped, 1)), 1)
        chosen = heapq.nsmallest(most, items, key=lambda number: (_urgency(items[number]), number))
        return [items[number] for number in sorted(chosen)]


def name_text(name: str) -> str:
    """Return a name in one line, cut to a length that can be read."""
    return _cut(line_text(name), _NAME)


def line_text(text: str) -> str:
    """Return a text in one line, as a plain ``str``: a subclass may claim to be HTML."""
    return escape_controls(
        str.encode(text, "utf-8", "surrogatepass").decode("utf-8", "surrogatepass")
    )


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _within(number: int, limits: range) -> int:
    return min(max(number, limits.start), limits.stop)


def _urgency(step: StepView) -> int:
    return _BY_URGENCY.index(step.status)
