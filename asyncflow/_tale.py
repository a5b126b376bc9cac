"""The events of a run as a page lists them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from asyncflow._events_told import subject, told
from asyncflow.events import Event, RunStarted

__all__ = ["Line", "Tale", "tale"]

MOST = 3_000
"""So many events are listed: of more, the first and the last ones."""
_WORDS = 300


class Line(NamedTuple):
    """One event."""

    at_ms: float
    kind: str
    """The name of its class."""
    step: str | None
    attempt: int | None
    item: int | None
    text: str


class Tale(NamedTuple):
    """The events, in the order in which they happened."""

    lines: tuple[Line, ...]
    left_out: int
    """How many are not listed, between the first and the last half."""


def tale(events: Sequence[Event]) -> Tale:
    """Return the list of the events of a run."""
    left_out = max(len(events) - MOST, 0)
    if left_out:
        events = [*events[: MOST // 2], *events[-MOST // 2 :]]
    lines = tuple(_line(event) for event in events)
    return Tale(lines, left_out)


def _line(event: Event) -> Line:
    at_ms = 0.0 if isinstance(event, RunStarted) else event.at_ms
    text, about = told(event), subject(event)  # which has a column of its own
    if event_step := getattr(event, "step", None):
        text = text.removeprefix(about).lstrip(": ")
    return Line(
        at_ms,
        type(event).__name__,
        event_step,
        getattr(event, "attempt", None) or None,
        getattr(event, "item", None),
        text if len(text) <= _WORDS else f"{text[:_WORDS]}…",
    )
