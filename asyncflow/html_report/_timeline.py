"""The bars of a run's timeline, and where they lie, in percent of its width."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from asyncflow._core.history.results import Segment, SignalWait
from asyncflow._core.history.step_view import ActiveTime, AttemptView, StepView
from asyncflow._views.axis import changing_counts
from asyncflow._views.event_text import place_text
from asyncflow._views.spans import AttemptSpan, SpanKind, spans_of

BarKind: TypeAlias = SpanKind | Literal["items", "wait", "paused"]

MOST_POINTS = 400
_MOST_LAYER_POINTS = 200
_LEAST_WIDTH, _LEAST_HEIGHT = 1 / 250, 1 / 4
"""How much of the timeline, and of a bar's height, the failed attempt of an item takes at least."""
_ICON_WIDTH, _ABANDONED_WIDTH = 1.8, 5.0
_EMPTY_MS = 1_000.0
"""How long the timeline is of a run in which no time has passed."""
_GAP, _MOST_GAPS = 1.6, 25.0
"""A break, and all breaks together; in percent of a timeline of 900 pixels, like the widths."""


class Break(NamedTuple):
    """A pause of the run between two segments, in which the axis has a gap."""

    left: float
    width: float
    segment: int
    """The segment that begins after it."""
    pause_ms: float


class Bar(NamedTuple):
    """A time from ``start_ms`` to ``end_ms``; ``left`` and ``width`` are in percent."""

    kind: BarKind
    left: float
    width: float
    start_ms: float
    end_ms: float
    attempt: int = 0
    """Which attempt it is, or follows; 0 for the items of a mapped step as a whole."""
    end: str = ""
    """How an attempt ended; ``running`` if it has not, and ``open`` for a wait that has not."""
    note: str = ""
    """The line that blocked the loop."""
    abandoned: bool = False
    segment: int = 1
    """The segment of the run in which it was, counted from 1."""
    place: str = ""
    """The engine and the worker on which an attempt ran."""


class Icon(NamedTuple):
    """A mark at the end of a bar, which is drawn above all bars of its row."""

    kind: str
    left: float
    attempt: int
    segment: int
    is_crowded: bool
    """Whether the next icon, or the end of the row, is so near that this one is shown only when
    zoomed in."""


class OutcomeLayer(NamedTuple):
    """The attempts of a mapped step's items that ended in one way, or in one of a lower layer."""

    end: str
    path: str
    """How many ran at each time, as an SVG path in units of the step's bar: 0 to 1 each way."""


class TimelineRow(NamedTuple):
    """A step or an item, with its bars in the order of their times."""

    step: StepView
    bars: tuple[Bar, ...]
    icons: tuple[Icon, ...]
    layers: tuple[tuple[Bar, tuple[OutcomeLayer, ...]], ...]
    """Of a mapped step, the layers of each bar; the first one is drawn first, below the others."""


class TierBand(NamedTuple):
    """The time in which the steps of a tier ran."""

    number: int
    left: float
    width: float
    duration_ms: float


class Timeline(NamedTuple):
    """The scale of a timeline: from the start of the run to ``span_ms``.

    The clock of a run stands still between two segments. There the axis has a break: a narrow gap,
    however long the pause was.
    """

    span_ms: float
    decimals: int
    """The decimals of a percentage, which tell a hundredth of a millisecond apart."""
    begins: tuple[float, ...] = (0.0,)
    """When each segment begins, in milliseconds. Of a run that pauses now, the last one is the
    segment that may follow, so that the axis ends with a break."""

    @classmethod
    def until(
        cls, now_ms: float, segments: Sequence[Segment] = (), *, pauses: bool = False
    ) -> Timeline:
        """Return the scale of a run up to now; ``pauses`` if no process runs it, but may."""
        span_ms = max(now_ms, 0.001) if now_ms else _EMPTY_MS
        begins = tuple([segment.at_ms for segment in segments]) or (0.0,)
        begins += (span_ms,) * pauses
        return cls(span_ms, max(math.ceil(math.log10(span_ms)), 4), begins)

    @property
    def gap(self) -> float:
        """How wide a break is, in percent."""
        return min(_GAP, _MOST_GAPS / max(len(self.begins) - 1, 1))

    def segment_at(self, ms: float) -> int:
        """Return the segment at a time; of two that meet there, the second one."""
        return max(bisect_right(self.begins, ms), 1)

    def at(self, ms: float, segment: int | None = None) -> float:
        """Return the place of a time, in percent.

        ``segment`` is by default as `segment_at` says.
        """
        gaps = ((segment or self.segment_at(ms)) - 1) * self.gap
        width = 100 - (len(self.begins) - 1) * self.gap
        return round(min(max(ms / self.span_ms, 0.0), 1.0) * width + gaps, self.decimals)

    def bar(
        self, kind: BarKind, start_ms: float, end_ms: float, segment: int = 1, attempt: int = 0
    ) -> Bar:
        left = self.at(start_ms, segment)
        width = round(max(self.at(end_ms, segment) - left, 0.0), self.decimals)
        return Bar(kind, left, width, start_ms, end_ms, attempt, segment=segment)

    def band(self, number: int, steps: Iterable[StepView], now_ms: float) -> TierBand | None:
        bars = [
            self.bar("items", time.started_ms, _end_of(time, now_ms), time.segment)
            for step in steps
            for time in step.active
        ]
        if not bars:
            return None
        left, right = min(bar.left for bar in bars), max(bar.left + bar.width for bar in bars)
        lasted_ms = max(bar.end_ms for bar in bars) - min(bar.start_ms for bar in bars)
        return TierBand(number, left, round(right - left, self.decimals), lasted_ms)

    def breaks(self, pauses_ms: Sequence[float]) -> list[Break]:
        """Return the breaks between the segments, given the pauses between them."""
        return [
            Break(
                round(self.at(self.begins[segment - 1], segment) - self.gap, self.decimals),
                self.gap,
                segment,
                pause_ms,
            )
            for segment, pause_ms in enumerate(pauses_ms, 2)
        ]


def bars_of(step: StepView, timeline: Timeline, now_ms: float) -> tuple[Bar, ...]:
    """Return the bars of a step or an item; a mapped step has one a segment, for all its items."""
    waits = () if step.wait is None else (_bar_of_wait(step.wait, timeline),)
    if step.items is not None or step.former_items:
        return tuple(_bars_of_items(step, timeline, now_ms))
    spans = spans_of(step, timeline.begins, now_ms)
    return (*(_bar_of(span, timeline) for span in spans), *waits)


def _bar_of_wait(wait: SignalWait, timeline: Timeline) -> Bar:
    """Return the bar of a wait for a signal: to the end of the axis if it goes on."""
    left, end_ms = timeline.at(wait.started_ms), wait.ended_ms
    right = 100.0 if end_ms is None else timeline.at(end_ms)
    width = round(max(right - left, 0.0), timeline.decimals)
    until_ms = timeline.span_ms if end_ms is None else end_ms
    segment = len(timeline.begins)  # not faint, whenever it began
    return Bar(
        *("wait", left, width, wait.started_ms, until_ms),
        end="open" if end_ms is None else "",
        segment=segment,
    )


def _bar_of(span: AttemptSpan, timeline: Timeline) -> Bar:
    attempt = span.attempt
    bar = timeline.bar(span.kind, span.start_ms, span.end_ms, attempt.segment, attempt.number)
    if span.kind == "queue" and attempt.is_queued:
        return bar._replace(place=attempt.engine)
    if span.kind != "attempt":
        return bar._replace(note=span.where)
    place = attempt.engine and place_text(attempt.engine, attempt.worker)
    return bar._replace(end=attempt.end or "running", abandoned=attempt.abandoned, place=place)


def _bars_of_items(step: StepView, timeline: Timeline, now_ms: float) -> Iterator[Bar]:
    for time in step.active:
        bar = timeline.bar("items", time.started_ms, _end_of(time, now_ms), time.segment)
        is_latest = time is step.active[-1] and (step.reused or time.segment == step.segment)
        yield bar._replace(end=step.status.lower() if is_latest else "")


def _end_of(time: ActiveTime, now_ms: float) -> float:
    return now_ms if time.ended_ms is None else time.ended_ms


def icons_of(bars: Iterable[Bar]) -> tuple[Icon, ...]:
    icons: list[Icon] = []
    next_left = math.inf
    for bar in reversed([bar for bar in bars if bar.kind in ("attempt", "items")]):
        kinds = [bar.end] if bar.end in ("failed", "timed out", "crashed") else []
        kinds += ["abandoned"] * bar.abandoned
        if kinds:
            left = bar.left + bar.width
            width = _ABANDONED_WIDTH if bar.abandoned else _ICON_WIDTH
            is_crowded = next_left - left < width
            icons += [
                Icon(kind, left, bar.attempt, bar.segment, is_crowded) for kind in reversed(kinds)
            ]
            next_left = next_left if is_crowded else left
        elif next_left == math.inf:  # an icon beyond the end of the row would seem to be its own
            next_left = bar.left + bar.width
    return tuple(reversed(icons))


def outcome_layers(
    step: StepView, bar: Bar, span_ms: float, now_ms: float
) -> tuple[OutcomeLayer, ...]:
    """Return how the attempts of a mapped step's items ended over time, in proportion.

    Each failed attempt is visible, however short it was and however many others ran.

    ``bar`` is that of all its items in a segment, ``span_ms`` is how long the timeline is, and
    ``now_ms`` is the present, if attempts run.
    """
    start_ms, width_ms = bar.start_ms, max(bar.end_ms - bar.start_ms, 0.001)
    spans: dict[str, list[tuple[float, float]]] = {end: [] for end in LAYERS}
    for attempt, end in step.attempts_of_items():
        if attempt.segment == bar.segment:
            end_ms = now_ms if attempt.ended_ms is None else attempt.ended_ms
            if end in _FAILURES:
                end_ms = max(end_ms, attempt.started_ms + span_ms * _LEAST_WIDTH)
            spans[end or "running"].append((attempt.started_ms, end_ms))
    if step.left_out and bar.segment == step.segment:  # nothing tells when in this time they ran
        spans["succeeded"].append((bar.start_ms, bar.end_ms))
    points = running_at(step.all_attempts(), now_ms, segment=bar.segment)
    most = max((count for _, count in points), default=0) or 1  # attempts may take no time
    heights: dict[float, dict[str, float]] = {}
    for layer, times in spans.items():
        least = _LEAST_HEIGHT if layer in _FAILURES else 0.0
        for at_ms, count in _thinned(
            changing_counts(times), start_ms, width_ms, _MOST_LAYER_POINTS
        ):
            heights.setdefault(at_ms, {})[layer] = max(count / most, least) if count else 0.0
    return _stacked(heights, [end for end in LAYERS if spans[end]], start_ms, width_ms)


def _stacked(
    heights: Mapping[float, Mapping[str, float]], ends: list[str], start_ms: float, width_ms: float
) -> tuple[OutcomeLayer, ...]:
    paths: dict[str, list[str]] = {end: ["M0 1"] for end in ends}
    current, drawn = dict.fromkeys(ends, 0.0), dict.fromkeys(ends, "1")
    for at_ms in sorted(heights):
        current |= heights[at_ms]
        x = f"{min(max((at_ms - start_ms) / width_ms, 0.0), 1.0):.4g}"
        height = 0.0
        for end in ends:  # from the lowest
            height += current[end]
            y = f"{max(1 - height, 0.0):.3g}"
            if y != drawn[end]:
                paths[end].append(f"H{x}V{y}")
                drawn[end] = y
    return tuple(OutcomeLayer(end, "".join([*paths[end], "H1V1Z"])) for end in reversed(ends))


_FAILURES = ("failed", "timed out", "crashed", "retried")
LAYERS = (*_FAILURES, "cancelled", "running", "succeeded")
"""How attempts of items end, from the lowest layer to the highest."""


def running_at(
    attempts: Iterable[AttemptView], now_ms: float, *, segment: int = 1, most: int = MOST_POINTS
) -> list[tuple[float, int]]:
    """Return at which times of a segment the number of running attempts changed, and to what.

    If that is at more than `most` times, each of these has the peak of the time around it.
    """
    points = changing_counts(
        (attempt.started_ms, now_ms if attempt.ended_ms is None else attempt.ended_ms)
        for attempt in attempts
        if attempt.segment == segment
    )
    if not points:
        return []
    return _thinned(points, points[0][0], points[-1][0] - points[0][0], most)


def _thinned(
    points: list[tuple[float, int]], from_ms: float, span_ms: float, most: int
) -> list[tuple[float, int]]:
    """Return the points, or if there are too many, the peaks of equal parts of the time."""
    if len(points) <= most:
        return points
    width = span_ms / most
    peaks: list[int] = []
    running = 0
    following = iter([*points, (math.inf, 0)])
    at_ms, count = next(following)
    for number in range(most):
        peak = running
        while at_ms < from_ms + (number + 1) * width:
            running = count
            peak = max(peak, running)
            at_ms, count = next(following)
        peaks.append(peak)
    ends = [(from_ms + number * width, peak) for number, peak in enumerate(peaks)]
    return [*ends, (from_ms + span_ms, 0)]
