"""The event log of a page: what happened in a run, one line an event."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, TypeVar

from asyncflow._core.history.value_preview import shortened
from asyncflow._core.text import escape_controls
from asyncflow._views.event_text import describe_event, subject
from asyncflow.events import Event, RunResumed

MOST_LOGGED = 3_000
"""Of more events, a log has the first and the last ones."""
_TEXT = 200
"""How many bytes of an event's text a log has at most."""

T = TypeVar("T")


class LoggedEvent(NamedTuple):
    at_ms: float
    kind: str
    text: str
    step: str | None = None
    attempt: int | None = None
    item: int | None = None
    segment: int = 1
    """The segment of the run in which it happened, counted from 1."""


class EventLog(NamedTuple):
    """The events of a run, in the order in which they happened."""

    events: tuple[LoggedEvent, ...]
    left_out: int
    """How many are not listed, between the first and the last half."""


def event_log(events: Sequence[Event]) -> EventLog:
    resumed = accumulate(isinstance(event, RunResumed) for event in events)
    listed, left_out = _first_and_last([*zip(events, resumed, strict=True)])
    return EventLog(tuple([_logged(event, 1 + count) for event, count in listed]), left_out)


def _first_and_last(entries: Sequence[T]) -> tuple[Sequence[T], int]:
    """Return those that are listed, and how many are left out between them."""
    half, left_out = MOST_LOGGED // 2, max(len(entries) - MOST_LOGGED, 0)
    return ([*entries[:half], *entries[-half:]] if left_out else entries), left_out


def _logged(event: Event, segment: int) -> LoggedEvent:
    text, step = describe_event(event), event.step
    if step is not None:  # which has a column of its own
        text = text.removeprefix(subject(event)).lstrip(": ")
    attempt, item = event.attempt or None, event.item
    text = shortened(escape_controls(text[: _TEXT + 1]), _TEXT)
    return LoggedEvent(event.at_ms, type(event).__name__, text, step, attempt, item, segment)
