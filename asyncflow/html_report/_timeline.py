"""The bars of a run's timeline, and where they lie, in percent of its width."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, TypeAlias

from asyncflow._core.step_view import AttemptView, StepView

__all__ = ["Bar", "TierBand", "Timeline", "TimelineRow", "bars_of", "running_at"]

BarKind: TypeAlias = Literal["attempt", "queue", "backoff", "blocked", "items"]

_MOST_POINTS = 400


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


class TimelineRow(NamedTuple):
    """A step or an item, with its bars in the order of their times."""

    step: StepView
    bars: tuple[Bar, ...]


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


def running_at(steps: Iterable[StepView], now_ms: float) -> list[tuple[float, int]]:
    """Return at which times the number of running attempts changed, and to what.

    There are at most 400 times. If more are needed, each has the peak of the time around it.
    """
    changes: dict[float, int] = {}
    for step in steps:
        for each in [step] if step.items is None else step.items.values():
            for attempt in each.attempts:
                end_ms = now_ms if attempt.ended_ms is None else attempt.ended_ms
                changes[attempt.started_ms] = changes.get(attempt.started_ms, 0) + 1
                changes[end_ms] = changes.get(end_ms, 0) - 1
    points, running = [], 0
    for at_ms in sorted(changes):
        if changes[at_ms]:
            running += changes[at_ms]
            points.append((at_ms, running))
    return points if len(points) <= _MOST_POINTS else _thinned(points, now_ms)


def _thinned(points: list[tuple[float, int]], now_ms: float) -> list[tuple[float, int]]:
    width = now_ms / _MOST_POINTS
    most: list[int] = []
    running = 0
    following = iter([*points, (now_ms * 2 + 1, 0)])
    at_ms, count = next(following)
    for number in range(_MOST_POINTS):
        peak = running
        while at_ms < (number + 1) * width:
            running = count
            peak = max(peak, running)
            at_ms, count = next(following)
        most.append(peak)
    return [(number * width, peak) for number, peak in enumerate(most)] + [(now_ms, 0)]
