"""The times of a step that timelines draw: queued, running, blocking the loop, and in a backoff.

Each ends when it ended, not when it was planned to: a busy loop makes a backoff longer, and the end
of the step, of its segment or the present cuts it short.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Literal, NamedTuple, TypeAlias

from asyncflow._core.history.step_view import AttemptView, StepView

SpanKind: TypeAlias = Literal["queue", "attempt", "blocked", "backoff"]


class AttemptSpan(NamedTuple):
    """A time of an attempt, or just before or after it, in milliseconds of the run's clock."""

    kind: SpanKind
    start_ms: float
    end_ms: float
    attempt: AttemptView
    where: str = ""
    """The line that blocked the loop; empty if unknown."""


def spans_of(step: StepView, begins_ms: Sequence[float], now_ms: float) -> Iterator[AttemptSpan]:
    """Yield the spans of the attempts of a step or of an item, but not of its items, in order.

    ``begins_ms`` says when each segment of the run began, and ``now_ms`` is the present.
    """
    for attempt, following in zip_longest(step.attempts, step.attempts[1:]):
        queued_from_ms = max(attempt.started_ms - attempt.queued_ms, 0.0)
        end_ms = now_ms if attempt.ended_ms is None else attempt.ended_ms
        if attempt.is_queued:
            yield AttemptSpan("queue", queued_from_ms, max(end_ms, queued_from_ms), attempt)
            continue
        if attempt.queued_ms > 0:
            yield AttemptSpan("queue", queued_from_ms, attempt.started_ms, attempt)
        yield AttemptSpan("attempt", attempt.started_ms, end_ms, attempt)
        for block in attempt.blocks:
            from_ms = max(block.at_ms - block.blocked_ms, attempt.started_ms)
            to_ms = min(block.at_ms, max(end_ms, from_ms))
            yield AttemptSpan("blocked", from_ms, to_ms, attempt, block.where)
        if attempt.ended_ms is not None and attempt.retry_in_ms is not None:
            back_ms = _end_of_backoff(step, attempt, following, begins_ms, now_ms)
            if back_ms > attempt.ended_ms:
                yield AttemptSpan("backoff", attempt.ended_ms, back_ms, attempt)


def _end_of_backoff(
    step: StepView,
    attempt: AttemptView,
    following: AttemptView | None,
    begins_ms: Sequence[float],
    now_ms: float,
) -> float:
    """Return until when a step waited after an attempt, before the next one queued or started."""
    assert attempt.ended_ms is not None
    assert attempt.retry_in_ms is not None
    if following is not None and following.segment == attempt.segment:
        return following.started_ms - following.queued_ms
    end_ms = min(attempt.ended_ms + attempt.retry_in_ms, now_ms)
    if attempt.segment < len(begins_ms):
        return min(end_ms, begins_ms[attempt.segment])
    return end_ms if step.ended_ms is None else min(end_ms, step.ended_ms)
