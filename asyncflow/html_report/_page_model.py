"""The model of a page: what its sections say of a run, in which words and within which limits."""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby, pairwise
from typing import NamedTuple, TypeVar
from urllib.parse import quote

from asyncflow._core.analysis.failures import (
    ItemErrors,
    error_counts,
    failed_items,
    final_errors,
    item_errors,
    own_error,
)
from asyncflow._core.analysis.looks import (
    RUN_LOOKS,
    STEP_LOOKS,
    WORST_FIRST,
    Look,
    counted_looks,
    look_of,
)
from asyncflow._core.analysis.remarks import nth_of, remarks_of, waited_text
from asyncflow._core.analysis.slowness import Slower, is_comparable, is_slower
from asyncflow._core.history.results import (
    RunStatus,
    StepStatus,
    fail_fast_reason,
    visible_output,
)
from asyncflow._core.history.step_view import AttemptView, StepView
from asyncflow._core.history.value_preview import Preview, preview
from asyncflow._core.run_attributes import attributes_text
from asyncflow._core.text import duration, escape_controls, left_out
from asyncflow._views.dag import GraphDrawing, draw_graph
from asyncflow._views.event_text import place_text
from asyncflow._views.item_errors import items_with_values
from asyncflow._views.names import middle_out
from asyncflow._views.next_command import answer_command
from asyncflow._views.notes import RunNotes
from asyncflow._views.preview import error_trace, error_words
from asyncflow._views.progress import left_text
from asyncflow._views.received import Received, item_value, received
from asyncflow._views.run_end import again_steps, endured_steps, is_retried
from asyncflow._views.run_view import PoolPauses, RunView
from asyncflow._views.signal_form import type_of_signal
from asyncflow._views.slowness import slowness_of, slowness_text
from asyncflow._views.spans import spans_of
from asyncflow._views.waiting import Wait
from asyncflow.html_report._items import OUTCOMES, ItemCells, outcome_of
from asyncflow.html_report._notes_model import NotesModel
from asyncflow.html_report._timeline import (
    LAYERS,
    MOST_POINTS,
    Bar,
    Break,
    OutcomeLayer,
    TierBand,
    Timeline,
    TimelineRow,
    bars_of,
    icons_of,
    outcome_layers,
    running_at,
)

MOST_STEPS_WHOLE, MOST_EVENTS_WHOLE = 200, 500
"""Of more, a page has the rows packed, and draws those that come into view. Without its script, it
shows the steps that need attention, and the last events."""
MOST_STEPS_DRAWN = 500
"""Of more, the graph is not drawn."""
MOST_URGENT = 50
"""How many these are at most."""
MOST_EDGES = 6_000
"""With more, the graph is not drawn, and nothing is marked before or after a selected step."""
MOST_STEPS_DETAILED = 2_000
"""Of more steps, only those that did not succeed have details in a file."""
_MOST_OPEN = 10
"""Larger tiers of a large run are closed at first if all of their steps succeeded or were
skipped."""
_FEWEST_FOLDED = 5
"""So many of these steps whose names begin alike share a line in any other tier of it."""
_QUIET = (StepStatus.SUCCESS, StepStatus.SKIPPED)
MOST_ITEMS = 30
"""Of more items of a mapped step, those that went wrong are shown first."""
MOST_ITEM_ROWS = 300
MOST_CELLS, ALL_CELLS = 2_000, 8_000
"""Of more items of a mapped step, and of all such steps together, a cell stands for several."""
MOST_PAUSES = 100
"""Of more pauses of a pool, the longest ones are drawn."""
MOST_TOGETHER = 50
"""How many rows of the timeline are drawn together when they come into view."""
MOST_EARLIER = 50
"""Of more attempts of a step, those that did not succeed are listed, the last ones."""
MOST_EARLIER_TRACES = 20
"""Of more attempts with errors that were not the last one of their step, in all steps together, the
last ones have tracebacks."""

# In bytes of the page.
_OUTPUT, _TRACE, _EARLIER_TRACE, _WORDS = 2_000, 4_000, 2_000, 240
_ITEM_VALUE = 80
_WHOLE = 1_000_000
"""An output or a traceback of a step that is shown alone."""
_REASON = 400
_MOST_ANSWERED = 5
"""Of how many steps the outputs are shown that an answer is about."""
_NAME = 160
_START = re.compile(r".*[_.\-/: ](?=[^_.\-/: ]+$)|.*?[^\d](?=\d+$)", re.DOTALL)
"""What the name of a step may have in common with others: all but its last word or number."""
_TAIL = re.compile(r"(?<=[_.\-/ ])[^\n]{8,20}$")
"""The end of a long name, from where it may break."""

_URGENT = ("FAILED", "CANCELLED", "WAITS", "RUNNING")
_FEWEST_TIMED, _SLOW = 10, 0.9
"""A step is slow if it took longer than this share of the steps that ran, of at least so many, or
notably longer than it usually does."""


_Part = TypeVar("_Part", Bar, OutcomeLayer)


class ConcurrencyStrip(NamedTuple):
    path: str
    """An SVG path, 100 wide, and one high for each attempt."""
    most: int
    """At least 1."""


class NestedRun(NamedTuple):
    run_id: str
    url: str
    status: str


class RelatedRuns(NamedTuple):
    """The runs that a page may link to, as far as they have pages."""

    urls: Mapping[str, str] = {}
    """The page of each run, by its id."""
    nested: Mapping[str, Sequence[NestedRun]] = {}
    """The runs that each step has started, by its name."""


class PageContext(NamedTuple):
    """What a page says of a run beside its events."""

    notes: RunNotes | None = None
    is_orphaned: bool = False
    """Whether the run has not ended and its process is gone."""
    wait: Wait | None = None
    """For what the run waits, if it does and that is known."""
    resume: str = ""
    """The command that resumes the run, which is shown if it can be resumed."""
    related: RelatedRuns = RelatedRuns()
    usual_ms: Mapping[str, float] = {}
    """How many milliseconds each step usually takes, by name, as far as that is known."""
    usual_run_ms: float | None = None
    """The same of the run."""
    attachments_url: str = ""
    """Where a server has what its steps have attached, each with a slash and its position after
    this; empty if no server has the page."""


NO_CONTEXT = PageContext()


class GraphNode(NamedTuple):
    """A box of the graph."""

    steps: tuple[StepView, ...]
    start: str = ""
    """The beginning of the names of its steps, if it stands for several."""


class Fold(NamedTuple):
    """Some rows of a tier: those with a name share a line until a reader opens it."""

    rows: tuple[TimelineRow, ...]
    name: str = ""
    """The beginning of the names of all its steps; empty for rows that have no such line."""
    key: str = ""
    band: TierBand | None = None
    counts: Sequence[tuple[Look, int]] = ()

    def blocks(self) -> Iterator[tuple[TimelineRow, ...]]:
        """Return its rows in the blocks that are drawn together."""
        for at in range(0, len(self.rows), MOST_TOGETHER):
            yield self.rows[at : at + MOST_TOGETHER]


class TierRows(NamedTuple):
    number: int
    band: TierBand | None
    size: int
    folds: list[Fold]
    counts: list[tuple[Look, int]]
    is_open: bool = True


class ListedAttempt(NamedTuple):
    item: str
    """The index of its item, as ``[3]``; empty for an attempt of a step."""
    attempt: AttemptView
    backoff_ms: float | None
    """How long the next attempt waited after it; ``None`` if none was to follow, or did at once."""


class PageModel:
    """A run as a page shows it.

    ``now_ms`` is the moment that is shown, in milliseconds since the run started. ``is_served``
    says whether a server has what the page leaves out. ``numbers`` identify the steps in the page.
    ``causes`` has, for each step that a failure skipped or cancelled, the step that failed.
    ``urgent`` are the steps that a large run shows even without a script.
    """

    def __init__(
        self,
        view: RunView,
        now_ms: float,
        context: PageContext = NO_CONTEXT,
        *,
        only: str | None = None,
    ) -> None:
        self.view = view
        self.now_ms = now_ms
        self.context = context
        self.is_served = bool(context.attachments_url)
        self._only = only
        self._traces: dict[tuple[int, int], Preview] = {}
        """Tracebacks of errors, by their ids, up to a limit."""
        self._errors: dict[str, list[ItemErrors]] = {}
        """The errors of the items of each step, by its name."""
        self.numbers = {name: number for number, name in enumerate(view.steps)}
        self.causes = view.causes()
        self.path = view.critical_path(now_ms)
        self.needed_by: defaultdict[str, list[str]] = defaultdict(list)
        for name, step in view.steps.items():
            for needed in step.depends_on:
                self.needed_by[needed].append(name)
        self._slow_ms = self._slow_from()
        self._edges = sum(len(step.depends_on) for step in view.steps.values())
        urgent = [step for step in view.steps.values() if look_of(step).word in _URGENT]
        self.urgent = [step.name for step in sorted(urgent, key=_urgency)[:MOST_URGENT]]
        self._mapped = sum(each.items is not None for each in view.steps.values())
        self.timeline = Timeline.until(now_ms, view.segments, pauses=self.pauses)
        self._is_critical = frozenset(self.path)
        self._critical_edges = frozenset(pairwise(self.path))
        self._traced = self._traced_attempts()
        self.notes = NotesModel(
            view,
            context.notes or RunNotes(),
            self.detailed,
            now_ms,
            is_orphaned=context.is_orphaned,
            attachments_url=context.attachments_url,
        )

    # The run.

    @property
    def badge(self) -> Look:
        return RUN_LOOKS["ORPHANED" if self.context.is_orphaned else self.view.word]

    @property
    def title(self) -> str:
        """The name of its pipeline, or else its id."""
        return name_text(self.view.pipeline or self.view.run_id)

    @property
    def attributes(self) -> str:
        return attributes_text(self.view.attributes)

    @property
    def origin_url(self) -> str:
        """The page of the run that it is a rerun of; empty if there is none."""
        return self.context.related.urls.get(self.view.rerun_of, "")

    @property
    def parent_url(self) -> str:
        """The page of its parent, at the step that started it; empty if there is none."""
        url = self.context.related.urls.get(self.view.parent, "")
        return url and step_url(url, self.view.parent_step)

    @property
    def tab(self) -> str:
        """What the browser's tab says."""
        run = f" · {name_text(self.view.run_id)}" if self.view.pipeline else ""
        return f"{self.badge.symbol} {self.badge.word} · {self.title}{run}"

    @property
    def counts(self) -> list[tuple[Look, int]]:
        """How many steps have which status, in the order in which a progress bar fills."""
        return self.view.looks(has_died=self.context.is_orphaned)

    @property
    def reused(self) -> int:
        """How many results the run has of an earlier process, or of another run."""
        return sum(step.reused for step in self.view.steps.values())

    @property
    def again(self) -> list[str]:
        """The steps that it has run again."""
        return again_steps(self.view)

    @property
    def consequences(self) -> list[StepView]:
        return [self.view.steps[name] for name in self.causes]

    def other_cause(self, step: StepView) -> str:
        """Return which failure skipped or cancelled a step; empty if it is the one shown first."""
        cause = self.causes.get(step.name, "")
        return "" if self.failures and cause == self.failures[0].name else cause

    @property
    def fails_fast(self) -> bool:
        """Whether the run stopped because of the failure that is shown first."""
        first = self.failures[:1]
        return any(self.view.stop_reason == fail_fast_reason(step.name) for step in first)

    @cached_property
    def failures(self) -> list[StepView]:
        """The steps that failed, the first failure first."""
        return [step for step in self.view.failures if step.status is StepStatus.FAILED]

    @property
    def detailed(self) -> list[StepView]:
        if self._only is not None:
            return [self.view.steps[self._only]]
        if self.is_large and self.is_served:
            return [self.view.steps[name] for name in self.urgent]
        steps = list(self.view.steps.values())
        if len(steps) <= MOST_STEPS_DETAILED:
            return steps
        odd = [step for step in steps if step.status is not StepStatus.SUCCESS]
        return sorted(odd, key=_urgency)[:MOST_STEPS_DETAILED]

    @property
    def is_large(self) -> bool:
        """Whether the rows of its steps are drawn when they come into view."""
        return len(self.view.steps) > MOST_STEPS_WHOLE

    @property
    def is_drawn(self) -> bool:
        """Whether the graph is small enough to be of use."""
        return len(self.view.steps) <= MOST_STEPS_DRAWN and self._edges <= MOST_EDGES

    @property
    def needs(self) -> str:
        """The numbers of the steps that each step depends on, for the script of the page."""
        if self._edges > MOST_EDGES:
            return ""
        needed = [
            [str(self.numbers[each]) for each in step.depends_on if each in self.numbers]
            for step in self.view.steps.values()
        ]
        return "|".join(map(",".join, needed))

    # What it waits for.

    MOST_ASKED = 10
    """How many of the signals that a run waits for the page asks about at its top."""

    def signal_type(self, step: StepView) -> str:
        """Return the type of what a step waits for; empty if it is not known."""
        return type_of_signal(self.view.signals.schemas.get(step.name, {}))

    def answer_command(self, step: StepView) -> str:
        """Return the command that answers a step, as far as a page without a server knows it."""
        schema = self.view.signals.schemas.get(step.name, {})
        return answer_command(self.view.run_id, step.name, schema, "JOURNAL")

    def answered_outputs(self, step: StepView) -> tuple[list[StepView], str]:
        """Return the first steps that an answer is about, as far as they have outputs.

        And how many others there are, in words; empty for none.
        """
        needed = [self.view.steps[name] for name in step.depends_on if name in self.view.steps]
        made = [each for each in needed if each.status is StepStatus.SUCCESS]
        with_output = [each for each in made if each.output is not None]
        more, why = len(with_output) - _MOST_ANSWERED, f"a page has {_MOST_ANSWERED} here"
        return with_output[:_MOST_ANSWERED], left_out(more, "output", why) if more > 0 else ""

    # A step or an item.

    def waited(self, step: StepView) -> str:
        """Return how long it waited for its signal: ``waited 2 min``; empty if it still does."""
        return waited_text(step)

    def look(self, step: StepView) -> Look:
        return look_of(step, has_died=self.context.is_orphaned)

    def is_critical(self, name: str) -> bool:
        return name in self._is_critical

    def is_critical_edge(self, first: str, last: str) -> bool:
        return (first, last) in self._critical_edges

    def chain(self, step: StepView) -> list[str]:
        """Return the mapped steps through which the items of one flowed, it among them.

        Empty if they flowed through no other. Of several steps that took its items, the first one
        follows.
        """
        followers = {source: name for name, source in reversed(self.view.flows.items())}
        chain = [step.name]
        while chain[0] in self.view.flows:
            chain.insert(0, self.view.flows[chain[0]])
        while chain[-1] in followers:
            chain.append(followers[chain[-1]])
        return chain if len(chain) > 1 else []

    def lane(self, chain: Sequence[str], number: int) -> list[tuple[int, Look, str]]:
        """Return how an item went through each step of a chain: its step, its mark, its words."""
        lane = []
        for name in chain:
            item = (self.view.steps[name].items or {}).get(number)
            look = STEP_LOOKS["PENDING"] if item is None else self.look(item)
            took_ms = None if item is None else item.duration_ms(self.now_ms)
            took = "" if took_ms is None else f", {duration(took_ms)}"
            words = f"{name_text(name)}[{number}]: {look.word.lower()}{took}"
            lane.append((self.numbers[name], look, words))
        return lane

    def traits(self, step: StepView) -> str:
        """Return what the filter of the page knows of a step: ``failed``, ``retried``, ``slow``."""
        took = step.duration_ms(self.now_ms)
        found = {
            "failed": step.status is StepStatus.FAILED or failed_items(step) > 0,
            "retried": is_retried(step),
            "slow": took is not None and self._is_slow(step, took),
        }
        return " ".join(trait for trait, has in found.items() if has)

    def _is_slow(self, step: StepView, took_ms: float) -> bool:
        """Whether it took longer than most steps of the run, or than it usually does."""
        return took_ms > self._slow_ms or is_slower(took_ms, self.context.usual_ms.get(step.name))

    def _slow_from(self) -> float:
        """Return above which duration a step is slow, in milliseconds."""
        all_took = (step.duration_ms(self.now_ms) for step in self.view.steps.values())
        took = [each for each in all_took if each is not None]
        if len(took) < _FEWEST_TIMED:
            return math.inf
        return sorted(took)[math.ceil(len(took) * _SLOW) - 1]

    def verb(self, step: StepView) -> str:
        return "cancelled" if step.status is StepStatus.CANCELLED else "skipped"

    def note(self, step: StepView) -> str:
        """Return what there is to say of a step beside its status, in a line."""
        said = remarks_of(step, error_line, has_died=self.context.is_orphaned)
        return "; ".join(map(reason_text, filter(None, said)))

    def attempts(self, step: StepView) -> str:
        """Return how many attempts it has had, and of how many."""
        count, before = step.attempt_count, step.fresh_from
        if before:
            return f"{count} earlier" if before == count else f"{count} ({before} earlier)"
        return self._of_most(step, count)

    def latest(self, step: StepView) -> str:
        """Return the number of its latest attempt, and of how many."""
        return self._of_most(step, 0 if step.latest is None else step.latest.number)

    def _of_most(self, step: StepView, count: int) -> str:
        return nth_of(count, None if step.items is not None else step.max_retries)

    def attempts_by_segment(
        self, step: StepView
    ) -> tuple[list[tuple[int, list[ListedAttempt]]], int]:
        """Return its attempts by segment, with those of items before the latest one.

        Nothing if it simply succeeded. The number says how many are left out.
        """
        runs = [("", step)]
        for number, item in [*step.former_items.items(), *(step.items or {}).items()]:
            runs.append((f"[{number}]", item))
        latest = len(self.view.segments)
        found = [
            (name, attempt, run)
            for name, run in runs
            for attempt in run.attempts
            if not name or attempt.segment < latest
        ]
        odd = [each for each in found if each[1].end not in ("succeeded", None)]
        if not odd and (step.reused or len(found) <= 1):
            return [], 0
        listed = found if len(found) <= MOST_EARLIER else odd[-MOST_EARLIER:]
        listed.sort(key=lambda each: (each[1].segment, each[1].started_ms))
        backoffs = {
            id(span.attempt): span.end_ms - span.start_ms
            for run in {id(run): run for _, _, run in listed}.values()
            for span in spans_of(run, self.timeline.begins, self.now_ms)
            if span.kind == "backoff"
        }
        rows = [ListedAttempt(name, one, backoffs.get(id(one))) for name, one, _ in listed]
        groups = groupby(rows, lambda row: row.attempt.segment)
        return [(segment, list(of)) for segment, of in groups], len(found) - len(listed)

    def is_of_step(self, step: StepView, attempt: AttemptView) -> bool:
        """Whether the error of an attempt is shown as that of its step: it is the last one."""
        # An action may raise one exception many times, and JSON may have what two were like once.
        return attempt in step.attempts[-1:] and attempt.error is step.error

    def is_traced(self, attempt: AttemptView) -> bool:
        """Whether the traceback of an attempt that was not the last one of its step is shown."""
        return id(attempt) in self._traced

    def _traced_attempts(self) -> frozenset[int]:
        latest = len(self.view.segments)
        failed = [
            attempt
            for step in self.detailed
            for attempt in step.all_attempts()
            if attempt.error is not None and not self.is_of_step(step, attempt)
            # The attempts of items are only listed if they are earlier.
            if attempt.segment < latest or step.items is None
        ]
        return frozenset(map(id, failed[-MOST_EARLIER_TRACES:] if self._only is None else failed))

    def output(self, step: StepView) -> Preview:
        return preview(visible_output(step), self._most(_OUTPUT))

    def received(self, step: StepView) -> list[Received] | None:
        """Return what each parameter of a step receives; ``None`` if that is not known."""
        return received(self.view, step)

    def is_cut(self, step: StepView) -> bool:
        """Whether its details show less than there is of its output or its tracebacks."""
        if self._only is not None:
            return False
        is_cut = step.status is StepStatus.SUCCESS and self.output(step).cut
        is_cut = is_cut or (step.error is not None and self.trace(step.error).cut)
        return is_cut or any(
            self.earlier_trace(each.error).cut if self.is_traced(each) else True
            for each in step.attempts
            if each.error is not None and not self.is_of_step(step, each)
        )

    def _most(self, limit: int) -> int:
        return limit if self._only is None else _WHOLE

    def short_output(self, item: StepView) -> Preview:
        return preview(visible_output(item), 80)

    def value(self, value: object) -> Preview:
        return preview(value, 1_500)

    def trace(self, error: BaseException) -> Preview:
        return self._trace(error, self._most(_TRACE))

    def earlier_trace(self, error: BaseException) -> Preview:
        """Return what is shown of the traceback of an attempt that was not the last one."""
        return self._trace(error, self._most(_EARLIER_TRACE))

    def _trace(self, error: BaseException, limit: int) -> Preview:
        key = id(error), limit
        if key not in self._traces:
            self._traces[key] = error_trace(error, limit)
        return self._traces[key]

    # The timeline.

    def rows(self) -> Iterator[TierRows]:
        for number, names in enumerate(self.view.tiers):
            steps = [self.view.steps[name] for name in names]
            band = self.timeline.band(number, steps, self.now_ms)
            has_settled = all(step.status in _QUIET for step in steps)
            is_open = not (self.is_large and has_settled and len(steps) > _MOST_OPEN)
            folds = self._folds(number, steps)
            yield TierRows(number, band, len(steps), folds, self.looks(steps), is_open)

    def looks(self, steps: Sequence[StepView]) -> list[tuple[Look, int]]:
        tally = Counter(step.status for step in steps)
        waiting = sum([step.waiting_since is not None for step in steps])
        return counted_looks(tally, waiting, has_died=self.context.is_orphaned)

    @property
    def _has_folds(self) -> bool:
        return self.is_large and not (self.view.is_running and not self.context.is_orphaned)

    def _alike(self, steps: Sequence[StepView]) -> dict[tuple[str, StepStatus], list[StepView]]:
        """Return the steps of a tier of a large run that ended alike, with nothing to look at, and
        whose names begin alike, by how these begin and how they ended.

        While the run goes on there are none, so that all steps keep their places.
        """
        alike: defaultdict[tuple[str, StepStatus], list[StepView]] = defaultdict(list)
        for step in steps if self._has_folds else ():
            start = _start_of(step.name)
            if start and step.status in _QUIET:
                alike[start, step.status].append(step)
        return {key: same for key, same in alike.items() if len(same) >= _FEWEST_FOLDED}

    def nodes(self) -> list[GraphNode]:
        """Return the boxes of the graph, in topological order; steps that are alike share one."""
        nodes = []
        for names in self.view.tiers:
            steps = [self.view.steps[name] for name in names]
            alike = self._alike(steps)
            for step in steps:
                start = _start_of(step.name)
                same = alike.get((start, step.status))
                if same is None:
                    nodes.append(GraphNode((step,)))
                elif same[0] is step:
                    nodes.append(GraphNode(tuple(same), name_text(start)))
        return nodes

    def draw(self, nodes: Sequence[GraphNode]) -> GraphDrawing:
        """Draw the graph of these boxes. Each is known by its first step."""
        box_of = {step.name: node.steps[0].name for node in nodes for step in node.steps}
        edges = {
            node.steps[0].name: tuple(
                dict.fromkeys(
                    box_of[needed]
                    for step in node.steps
                    for needed in step.depends_on
                    if needed in box_of
                )
            )
            for node in nodes
        }
        labels = {node.steps[0].name: f"{node.start}…" for node in nodes if node.start}
        return draw_graph(edges, labels)

    def is_critical_node(self, node: GraphNode) -> bool:
        return any(self.is_critical(step.name) for step in node.steps)

    def is_critical_between(self, first: GraphNode, last: GraphNode) -> bool:
        return any(
            self.is_critical_edge(needed, step.name)
            for step in last.steps
            if self.is_critical(step.name)
            for needed in {each.name for each in first.steps}.intersection(step.depends_on)
        )

    def _folds(self, tier: int, steps: Sequence[StepView]) -> list[Fold]:
        """Return the rows of a tier: first those of no fold, of which the urgent ones are first."""
        if not self._has_folds:
            return [Fold(tuple(map(self.row, steps)))]
        alike = {key: same for key, same in self._alike(steps).items() if len(same) < len(steps)}
        alone = [step for step in steps if (_start_of(step.name), step.status) not in alike]
        return [
            Fold(tuple(map(self.row, sorted(alone, key=_urgency)))),
            *(
                Fold(
                    tuple(map(self.row, same)),
                    name_text(start),
                    f"{tier + 1}.{self.numbers[same[0].name]}",
                    self.timeline.band(tier, same, self.now_ms),
                    self.looks(same),
                )
                for (start, _), same in alike.items()
            ),
        ]

    def row(self, step: StepView) -> TimelineRow:
        bars = tuple(map(self._ended, bars_of(step, self.timeline, self.now_ms)))
        layers = [
            (
                bar,
                tuple(
                    map(
                        self._ended,
                        outcome_layers(step, bar, self.timeline.span_ms, self.now_ms),
                    )
                ),
            )
            for bar in bars
            if bar.kind == "items"
        ]
        return TimelineRow(step, bars, icons_of(bars), tuple(layers))

    def _ended(self, part: _Part) -> _Part:
        """Return a part of the timeline; what an orphaned run was running has crashed."""
        has_died = part.end == "running" and self.context.is_orphaned
        return part._replace(end="crashed") if has_died else part

    def end(self, attempt: AttemptView) -> str:
        """Return how an attempt ended; what an orphaned run was running has crashed."""
        return attempt.end or ("crashed" if self.context.is_orphaned else "running")

    def place(self, attempt: AttemptView) -> str:
        """Return the engine and the worker on which an attempt runs."""
        return place_text(attempt.engine, attempt.worker)

    def occurring(self) -> set[str]:
        found = {"waits" for step in self.view.steps.values() if step.wait is not None}
        for step in self.view.steps.values():
            for each, of_item in step.attempts_of_items():
                is_retried = of_item == "retried" and step.items is not None
                found.add("retried" if is_retried else self.end(each))
                if each.retry_in_ms:
                    found.add("backoff")
                if each.queued_ms or each.is_queued:
                    found.add("queued")
                if each.blocks:
                    found.add("event loop blocked")
                if each.abandoned:
                    found.add("thread kept running")
        return found

    def left(self, now_ms: float) -> str:
        """Return how long is probably left of a run; a rerun runs only a part of its pipeline."""
        is_running = self.view.is_running and not self.context.is_orphaned
        if not is_running or self.view.rerun_of:
            return ""
        return left_text(self.context.usual_run_ms, now_ms)

    @property
    def usually(self) -> str:
        """How long such a run usually takes, and which steps took longer this time.

        Empty if that is not known, and if the run has not passed.
        """
        view, usual_ms = self.view, self.context.usual_run_ms
        if usual_ms is None or not is_comparable(view.status, view.rerun_of):
            return ""
        return slowness_text(slowness_of(view, usual_ms, self.context.usual_ms) or Slower(usual_ms))

    @cached_property
    def pool_pauses(self) -> list[PoolPauses]:
        return self.view.pool_pauses_until(self.now_ms)

    def pool_pause_text(self, pauses: PoolPauses) -> str:
        """Return for how long a pool was paused, how often, and which step was the reason."""
        often = f" in {len(pauses.times)} pauses" if len(pauses.times) > 1 else ""
        by = f", by {pauses.by}" if pauses.by else ""
        left = ""
        for pause in () if self.context.is_orphaned else self.view.pauses_at(self.now_ms):
            if pause.pool == pauses.pool:
                left = f", {duration(pause.until_ms - self.now_ms)} left"
        pool = f"{pauses.pool} " if pauses.pool else ""
        return f"{pool}{duration(pauses.paused_ms)}{often}{by}{left}"

    def pause_bars(self, pauses: PoolPauses) -> list[Bar]:
        """Return where a pool was paused, at most its longest pauses."""
        longest = heapq.nlargest(MOST_PAUSES, pauses.times, key=lambda each: each[1] - each[0])
        return [self.timeline.bar("paused", *each) for each in sorted(longest)]

    def pauses_of(self, step: str) -> list[int]:
        """Return the numbers of the pools in `pool_pauses` that a step shares."""
        return [at for at, each in enumerate(self.pool_pauses) if step in each.steps]

    def usual_end(self, step: StepView) -> float | None:
        """Return where a step ends that takes as long as it usually does, in percent.

        ``None`` for an item, and if that is not known, or not on the axis: later than the run has
        come, or in a pause.
        """
        usual_ms = self.context.usual_ms.get(step.name)
        if usual_ms is None or len(step.active) != 1 or self.view.steps.get(step.name) is not step:
            return None
        begin = step.active[0]
        end_ms, following = begin.started_ms + usual_ms, self.view.segments[begin.segment :]
        if end_ms > (following[0].at_ms if following else self.timeline.span_ms):
            return None
        return self.timeline.at(end_ms, begin.segment)

    @property
    def pauses(self) -> bool:
        """Whether the run waits for signals, and no process runs it."""
        return self.view.status is RunStatus.WAITING and bool(self.view.waiting)

    @property
    def breaks(self) -> list[Break]:
        return self.timeline.breaks(self.view.pauses_ms)

    @property
    def strip(self) -> ConcurrencyStrip:
        attempts: defaultdict[int, list[AttemptView]] = defaultdict(list)
        for step in self.view.steps.values():
            for attempt in step.all_attempts():
                attempts[attempt.segment].append(attempt)
        path, highest, most = ["M0 0"], 1, max(MOST_POINTS // max(len(attempts), 1), 20)
        for number in sorted(attempts):
            for at_ms, count in running_at(
                attempts[number], self.now_ms, segment=number, most=most
            ):
                path.append(f"H{self.timeline.at(at_ms, number):.3f}V{count}")
                highest = max(highest, count)
        return ConcurrencyStrip("".join([*path, "V0Z"]), highest)

    def item_count(self, step: StepView) -> int:
        """Return how many items a mapped step has, as far as that is known."""
        return max(step.item_count or 0, len(step.items or ()) + step.left_out)

    def tally(self, step: StepView) -> list[tuple[Look, int]]:
        """Return how many of its items that have begun have which status."""
        return counted_looks(step.tally, 0, has_died=self.context.is_orphaned)

    def item_attempts(self, step: StepView, segment: int) -> str:
        """Return how those of its items ended: ``206 attempts: 200 succeeded, 6 retried``."""
        ends = Counter(
            "retried" if end == "retried" else self.end(attempt)
            for attempt, end in step.attempts_of_items()
            if attempt.segment == segment
        )
        if segment == step.segment:
            ends["retried"] += step.left_out_attempts - step.left_out
            ends["succeeded"] += step.left_out
        number = ends.total()
        parts = ", ".join(f"{ends[end]} {end}" for end in reversed(LAYERS) if ends[end])
        return f"{number} {'attempt' if number == 1 else 'attempts'}: {parts}"

    def retries(self, step: StepView) -> int:
        return sum(item.retries for item in (step.items or {}).values())

    def items(self, step: StepView) -> list[tuple[int, StepView]]:
        """Return its items that are shown: first those that went wrong, then retried ones."""
        items = step.items or {}
        most = max(min(MOST_ITEMS, MOST_ITEM_ROWS // max(self._mapped, 1)), 1)
        chosen = heapq.nsmallest(
            most, items, key=lambda number: (OUTCOMES.index(outcome_of(items[number])), number)
        )
        return [(number, items[number]) for number in chosen]

    def cells(self, step: StepView) -> ItemCells:
        most = max(min(MOST_CELLS, ALL_CELLS // max(self._mapped, 1)), 1)
        return ItemCells.of(step, self.item_count(step), most)

    def error_groups(self, step: StepView) -> list[ItemErrors]:
        """Return the errors of its items in groups."""
        found = self._errors.get(step.name)
        if found is None:
            found = self._errors[step.name] = item_errors(step)
        return found

    def final_errors(self, step: StepView) -> list[ItemErrors]:
        return final_errors(self.error_groups(step))

    def message(self, group: ItemErrors) -> str:
        """Return what the first error of a group says, beside its type."""
        return error_line(group.first).removeprefix(group.name).removeprefix(": ")

    def named_items(self, step: StepView, group: ItemErrors) -> list[tuple[int, str]]:
        """Return the first items of a group of errors, each with what it received."""
        return items_with_values(self.view, step, group)

    def item_value(self, step: StepView, item: int) -> Preview | None:
        return item_value(self.view, step, item, _ITEM_VALUE)

    @property
    def endured(self) -> list[StepView]:
        """The steps that succeeded although items of them failed."""
        return [each for each in endured_steps(self.view) if failed_items(each)]

    def failed_items_text(self, step: StepView) -> str:
        """Return ``1,980 of 2,000 · 20 failed: OSError x 10, ValueError x 10``."""
        failed = [group for group in self.error_groups(step) if group.end == "failed"]
        counts = f"{step.tally[StepStatus.SUCCESS]:,} of {self.item_count(step):,}"
        return f"{counts} · {failed_items(step):,} failed: {error_counts(failed)}"

    def error(self, step: StepView) -> BaseException | None:
        """Return the error of a step, unless that only says which of its items have failed."""
        return own_error(step)


def error_line(error: BaseException) -> str:
    """Return what an error says, in a line of the page."""
    return error_words(error, _WORDS)


def name_text(name: str) -> str:
    """Return a name in one line, without its middle if it is too long to be read."""
    return middle_out(line_text(name), _NAME)


def halves(name: str) -> tuple[str, str]:
    """Return a long name as two lines, of which the last one has what its end distinguishes."""
    found = _TAIL.search(name)
    tail = found[0] if found else name[-20:]
    return name.removesuffix(tail), tail


def _start_of(name: str) -> str:
    found = _START.match(name)
    return found[0] if found else ""


def reason_text(reason: str) -> str:
    """Return a reason in one line, which may have the names of steps in it."""
    text = line_text(reason)
    return text if len(text) <= _REASON else f"{text[: _REASON - 1]}…"


def line_text(text: str) -> str:
    """Return a text in one line, as a plain ``str``: a subclass may claim to be HTML."""
    return escape_controls(
        str.encode(text, "utf-8", "surrogatepass").decode("utf-8", "surrogatepass")
    )


def step_url(url: str, step: str) -> str:
    """Return the address of a step in the page of a run, which knows it by its `name_text`."""
    return f"{url}#step={quote(name_text(step), safe='')}"


def _urgency(step: StepView) -> int:
    return WORST_FIRST.index(look_of(step).word)
