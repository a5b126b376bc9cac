"""The bars of a run's timeline, and where they lie, in percent of its width."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple, TypeAlias

from asyncflow._core.step_view import AttemptView, StepView

__all__ = [
    "LAYERS",
    "Bar",
    "Icon",
    "OutcomeLayer",
    "TierBand",
    "Timeline",
    "TimelineRow",
    "bars_of",
    "icons_of",
    "outcome_layers",
    "running_at",
]

BarKind: TypeAlias = Literal["attempt", "queue", "backoff", "blocked", "items"]

_MOST_POINTS = 400
_MOST_LAYER_POINTS = 200
_LEAST_WIDTH, _LEAST_HEIGHT = 1 / 250, 1 / 4
"""How much of the timeline, and of a bar's height, the failed attempt of an item takes at least."""
_ICON_WIDTH, _ABANDONED_WIDTH = 1.8, 5.0
"""In percent of a timeline of 900 pixels."""


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
    """How an attempt ended; ``running`` if it has not."""
    note: str = ""
    """The line that blocked the loop."""
    abandoned: bool = False


class Icon(NamedTuple):
    """A mark at the end of a bar, which is drawn above all bars of its row."""

    kind: str
    left: float
    attempt: int
    is_crowded: bool
    """Whether the next icon is so near that this one is shown only when zoomed in."""


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
    layers: tuple[OutcomeLayer, ...]
    """The first one is drawn first, below the others; empty but for a mapped step."""


class TierBand(NamedTuple):
    """The time in which the steps of a tier ran."""

    number: int
    left: float
    width: float
    duration_ms: float


class Timeline(NamedTuple):
    """The scale of a timeline: from the start of the run to ``span_ms``."""

    span_ms: float
    decimals: int
    """The decimals of a percentage, which tell a hundredth of a millisecond apart."""

    @classmethod
    def until(cls, now_ms: float) -> Timeline:
        """Return the timeline of a run until a moment."""
        span_ms = max(now_ms, 0.001)
        return cls(span_ms, max(math.ceil(math.log10(span_ms)), 4))

    def at(self, ms: float) -> float:
        """Return the place of a time, in percent."""
        return round(min(max(ms / self.span_ms, 0.0), 1.0) * 100, self.decimals)

    def bar(self, kind: BarKind, start_ms: float, end_ms: float, attempt: int = 0) -> Bar:
        """Return the bar between two times."""
        left = self.at(start_ms)
        width = round(max(self.at(end_ms) - left, 0.0), self.decimals)
        return Bar(kind, left, width, start_ms, end_ms, attempt)

    def band(self, number: int, steps: Iterable[StepView], now_ms: float) -> TierBand | None:
        """Return the band of a tier, if any of its steps has started."""
        times = [
            (step.started_ms, now_ms if step.ended_ms is None else step.ended_ms)
            for step in steps
            if step.started_ms is not None
        ]
        if not times:
            return None
        start_ms, end_ms = min(start for start, _ in times), max(end for _, end in times)
        bar = self.bar("items", start_ms, end_ms)
        return TierBand(number, bar.left, bar.width, end_ms - start_ms)


def bars_of(step: StepView, timeline: Timeline, now_ms: float) -> tuple[Bar, ...]:
    """Return the bars of a step or an item; a mapped step has one, for all its items."""
    if step.items is not None:
        if step.started_ms is None:
            return ()
        end_ms = now_ms if step.ended_ms is None else step.ended_ms
        bar = timeline.bar("items", step.started_ms, end_ms)
        return (bar._replace(end=step.status.lower()),)
    return tuple(
        bar for attempt in step.attempts for bar in _bars_of(step, attempt, timeline, now_ms)
    )


def _bars_of(
    step: StepView, attempt: AttemptView, timeline: Timeline, now_ms: float
) -> Iterator[Bar]:
    number, start_ms = attempt.number, attempt.started_ms
    if attempt.queued_ms > 0:
        yield timeline.bar("queue", start_ms - attempt.queued_ms, start_ms, number)
    end_ms = now_ms if attempt.ended_ms is None else attempt.ended_ms
    yield timeline.bar("attempt", start_ms, end_ms, number)._replace(
        end=attempt.end or "running", abandoned=attempt.abandoned
    )
    for block in attempt.blocks:
        from_ms = max(block.at_ms - block.blocked_ms, start_ms)
        to_ms = min(block.at_ms, max(end_ms, from_ms))
        yield timeline.bar("blocked", from_ms, to_ms, number)._replace(note=block.where)
    if attempt.ended_ms is not None and attempt.retry_in_ms is not None:
        wait_ms = end_ms + attempt.retry_in_ms
        if step.ended_ms is not None:  # cut short in the wait
            wait_ms = min(wait_ms, step.ended_ms)
        yield timeline.bar("backoff", end_ms, wait_ms, number)


def icons_of(bars: Iterable[Bar]) -> tuple[Icon, ...]:
    """Return the icons of the bars of a row, in the same order."""
    icons: list[Icon] = []
    next_left = math.inf
    for bar in reversed([bar for bar in bars if bar.kind in ("attempt", "items")]):
        kinds = [bar.end] if bar.end in ("failed", "timed out", "crashed") else []
        kinds += ["abandoned"] * bar.abandoned
        if kinds:
            left = bar.left + bar.width
            width = _ABANDONED_WIDTH if bar.abandoned else _ICON_WIDTH
            is_crowded = next_left - left < width
            icons += [Icon(kind, left, bar.attempt, is_crowded) for kind in reversed(kinds)]
            next_left = next_left if is_crowded else left
    return tuple(reversed(icons))


def outcome_layers(step: StepView, span_ms: float, now_ms: float) -> tuple[OutcomeLayer, ...]:
    """Return how the attempts of a mapped step's items ended over time, in proportion.

    Each failed attempt is visible, however short it was and however many others ran.

    Args:
        step: The step.
        span_ms: How long the timeline is.
        now_ms: The present, if attempts run.
    """
    if step.items is None or step.started_ms is None:
        return ()
    start_ms = step.started_ms
    width_ms = max((now_ms if step.ended_ms is None else step.ended_ms) - start_ms, 0.001)
    spans: dict[str, list[tuple[float, float]]] = {end: [] for end in LAYERS}
    for item in step.items.values():
        for attempt in item.attempts:
            end_ms = now_ms if attempt.ended_ms is None else attempt.ended_ms
            if attempt.end in _FAILURES:
                end_ms = max(end_ms, attempt.started_ms + span_ms * _LEAST_WIDTH)
            spans[attempt.end or "running"].append((attempt.started_ms, end_ms))
    most = max((count for _, count in running_at([step], now_ms)), default=1)
    heights: dict[float, dict[str, float]] = {}
    for end, times in spans.items():
        least = _LEAST_HEIGHT if end in _FAILURES else 0.0
        for at_ms, count in _thinned(_counts(times), start_ms, width_ms, _MOST_LAYER_POINTS):
            heights.setdefault(at_ms, {})[end] = max(count / most, least) if count else 0.0
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


_FAILURES = ("failed", "timed out", "crashed")
LAYERS = (*_FAILURES, "cancelled", "running", "succeeded")
"""How attempts end, from the lowest layer to the highest."""


def running_at(steps: Iterable[StepView], now_ms: float) -> list[tuple[float, int]]:
    """Return at which times the number of running attempts changed, and to what.

    There are at most 400 times. If more are needed, each has the peak of the time around it.
    """
    points = _counts(
        (attempt.started_ms, now_ms if attempt.ended_ms is None else attempt.ended_ms)
        for step in steps
        for each in ([step] if step.items is None else step.items.values())
        for attempt in each.attempts
    )
    return _thinned(points, 0.0, now_ms, _MOST_POINTS)


def _counts(spans: Iterable[tuple[float, float]]) -> list[tuple[float, int]]:
    """Return at which times the number of spans changes, and to what."""
    changes: dict[float, int] = {}
    for start_ms, end_ms in spans:
        changes[start_ms] = changes.get(start_ms, 0) + 1
        changes[end_ms] = changes.get(end_ms, 0) - 1
    points, running = [], 0
    for at_ms in sorted(changes):
        if changes[at_ms]:
            running += changes[at_ms]
            points.append((at_ms, running))
    return points


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
