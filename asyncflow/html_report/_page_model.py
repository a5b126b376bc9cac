"""What the sections of a page say of a run: its words, links and limits."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from asyncflow._core.errors import escape_controls
from asyncflow._core.results import STATUS_SYMBOLS, StepStatus
from asyncflow._core.step_view import StepView
from asyncflow._views.preview import Preview, error_trace, error_words, preview
from asyncflow._views.run_view import RunView
from asyncflow.html_report._timeline import Row, TierBand, Timeline, bars_of, running_at

__all__ = ["Chip", "Sheet", "Strip", "TierRows", "line_text", "name_text"]

MOST_STEPS_DRAWN = 2_000
MOST_EDGES_DRAWN = 6_000
MOST_STEPS_TOLD = 2_000
"""Above so many, only those that did not simply succeed are told of at length."""
MOST_ITEMS = 30
"""So many items of a mapped step are shown, and first those that went wrong."""
MOST_ITEM_ROWS = 300

# In bytes of the page: all outputs together, all tracebacks together, and the limits of each one.
_ALL_OUTPUTS, _OUTPUT = 40_000, range(160, 4_000)
_ALL_TRACES, _TRACE = 30_000, range(400, 12_000)
_WORDS = 240
_NAME = 160

_RUN_SIGNS = {
    "PASSED": "✓",
    "FAILED": "✗",
    "INTERRUPTED": "■",
    "STOPPING": "■",
    "RUNNING": "▷",
    "ORPHANED": "◇",
}
_RUN_CLASSES = {
    "PASSED": "success",
    "FAILED": "failed",
    "INTERRUPTED": "cancelled",
    "STOPPING": "cancelled",
    "RUNNING": "running",
    "ORPHANED": "orphaned",
}
_BAR = (
    StepStatus.SUCCESS,
    StepStatus.FAILED,
    StepStatus.CANCELLED,
    StepStatus.SKIPPED,
    StepStatus.RUNNING,
    StepStatus.PENDING,
)
_ENDS_IN_ORDER = (
    StepStatus.FAILED,
    StepStatus.CANCELLED,
    StepStatus.RUNNING,
    StepStatus.PENDING,
    StepStatus.SKIPPED,
    StepStatus.SUCCESS,
)


@dataclass(frozen=True, slots=True)
class Chip:
    """A status with its sign, its word and how often it is there."""

    kind: str
    sign: str
    word: str
    count: int = 0


class Strip(NamedTuple):
    """How many attempts ran at once."""

    path: str
    """In the language of SVG: 100 wide, and one high for each attempt."""
    most: int
    """The most, and at least 1."""


class TierRows(NamedTuple):
    """A tier of the timeline."""

    number: int
    band: TierBand | None
    rows: tuple[Row, ...]


class Sheet:
    """A run as a page shows it.

    Attributes:
        view: The run.
        now_ms: The moment that is shown, in milliseconds since the run started.
        numbers: The number of each step, by which the page knows it.
        causes: For each step that a failure has skipped or cut short, the step that failed.
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
        self.trace_limit = _within(_ALL_TRACES // failed, _TRACE)

    # The run.

    @property
    def chip(self) -> Chip:
        """How the run stands."""
        word = "ORPHANED" if self.is_orphaned else self.view.word
        return Chip(_RUN_CLASSES[word], _RUN_SIGNS[word], word)

    @property
    def title(self) -> str:
        """What the run is called: by its pipeline, if that has a name."""
        return name_text(self.view.pipeline or self.view.run_id)

    @property
    def tab(self) -> str:
        """What a browser writes on the tab of the page."""
        run = f" · {name_text(self.view.run_id)}" if self.view.pipeline else ""
        return f"{self.chip.sign} {self.chip.word} · {self.title}{run}"

    @property
    def counts(self) -> list[Chip]:
        """How many steps have which status, of those that there are."""
        counts = self.view.counts
        return [self.status(each, counts[each]) for each in STATUS_SYMBOLS if counts[each]]

    @property
    def progress(self) -> list[Chip]:
        """The same in the order in which a bar fills: what is done first, what waits last."""
        counts = self.view.counts
        return [self.status(each, counts[each]) for each in _BAR if counts[each]]

    @property
    def consequences(self) -> list[StepView]:
        """The steps that were skipped or cut short because another one failed."""
        return [self.view.steps[name] for name in self.causes]

    @property
    def failures(self) -> list[StepView]:
        """The steps that failed, the first failure first."""
        failed = [step for step in self.view.steps.values() if step.status is StepStatus.FAILED]
        return sorted(failed, key=lambda step: step.ended_ms or 0.0)

    @property
    def told(self) -> list[StepView]:
        """The steps that are told of at length."""
        steps = list(self.view.steps.values())
        if len(steps) <= MOST_STEPS_TOLD:
            return steps
        odd = [step for step in steps if step.status is not StepStatus.SUCCESS]
        return sorted(odd, key=_urgency)[:MOST_STEPS_TOLD]

    @property
    def is_drawn(self) -> bool:
        """Whether the graph is small enough to be of use."""
        edges = sum(map(len, self.view.dependencies.values()))
        return len(self.view.steps) <= MOST_STEPS_DRAWN and edges <= MOST_EDGES_DRAWN

    # A step or an item.

    def status(self, status: StepStatus, count: int = 0) -> Chip:
        """Return a status with its sign and its word."""
        return Chip(status.lower(), STATUS_SYMBOLS[status], status.value, count)

    def is_critical(self, name: str) -> bool:
        """Whether a step is on the critical path."""
        return name in self._is_critical

    def duration(self, unit: StepView) -> float | None:
        """Return how long a step has taken so far, in milliseconds."""
        return unit.duration_ms(self.now_ms)

    def because(self, step: StepView) -> str | None:
        """Return the step whose failure has skipped this one, or cut it short."""
        return self.causes.get(step.name)

    def verb(self, step: StepView) -> str:
        """Return what was done to a step that a failure has skipped or cut short."""
        return "cancelled" if step.status is StepStatus.CANCELLED else "skipped"

    def note(self, unit: StepView) -> str:
        """Return in a line what there is to say of a step beside its status."""
        notes = []
        if unit.error is not None:
            notes.append(error_words(unit.error, _WORDS))
        elif unit.reason:
            notes.append(_cut(line_text(unit.reason), _WORDS))
        if unit.reused:
            notes.append("reused from the journal")
        return "; ".join(notes)

    def attempts(self, unit: StepView) -> str:
        """Return how many attempts it has had, and of how many."""
        count = unit.attempt_count
        if unit.items is not None or unit.max_retries is None or unit.max_retries == 1:
            return str(count)
        return f"{count} of {unit.max_retries}"

    def output(self, step: StepView) -> Preview:
        """Return what is shown of its output."""
        return self._outputs[step.name]

    def _within_limits(self) -> dict[str, Preview]:
        """Return what is shown of outputs, so that small ones leave their share to large ones."""
        steps = [step for step in self.told if step.status is StepStatus.SUCCESS]
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
        """Return what is shown of an item's output in a list."""
        return preview(item.output, 80)

    def value(self, value: object) -> Preview:
        """Return what is shown of an input."""
        return preview(value, 1_500)

    def trace(self, error: BaseException) -> Preview:
        """Return what is shown of an error's traceback."""
        return error_trace(error, self.trace_limit)

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

    def row(self, unit: StepView) -> Row:
        """Return the row of a step or an item."""
        return Row(unit, bars_of(unit, self.timeline, self.now_ms))

    def strip(self, steps: Iterable[StepView]) -> Strip:
        """Return how many attempts of steps, or of their items, ran at once."""
        path, most = ["M0 0"], 1
        for at_ms, count in running_at(steps, self.now_ms):
            path.append(f"H{self.timeline.at(at_ms):.3f}V{count}")
            most = max(most, count)
        return Strip("".join([*path, "V0Z"]), most)

    def item_count(self, step: StepView) -> int:
        """Return how many items a mapped step has, as far as that is known."""
        return max(step.item_count or 0, len(step.items or ()))

    def tally(self, step: StepView) -> list[Chip]:
        """Return how many of its items have which status, of those that have begun."""
        return [self.status(each, step.tally[each]) for each in STATUS_SYMBOLS if step.tally[each]]

    def items(self, step: StepView) -> list[StepView]:
        """Return those of its items that are shown, in order: rather those that went wrong."""
        items = step.items or {}
        mapped = sum(each.items is not None for each in self.view.steps.values())
        most = max(min(MOST_ITEMS, MOST_ITEM_ROWS // max(mapped, 1)), 1)
        chosen = heapq.nsmallest(most, items, key=lambda number: (_urgency(items[number]), number))
        return [items[number] for number in sorted(chosen)]


def name_text(name: str) -> str:
    """Return a name in one line, and not longer than anyone would read."""
    return _cut(line_text(name), _NAME)


def line_text(text: str) -> str:
    """Return a text in one line, as a plain ``str``: others could say that they are HTML."""
    return escape_controls(
        str.encode(text, "utf-8", "surrogatepass").decode("utf-8", "surrogatepass")
    )


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _within(number: int, limits: range) -> int:
    return min(max(number, limits.start), limits.stop)


def _urgency(unit: StepView) -> int:
    return _ENDS_IN_ORDER.index(unit.status)
