"""For what a run waits, in words that follow "waits": ``for a place``, ``until 14:05``."""

from __future__ import annotations

from datetime import tzinfo
from typing import Protocol

from asyncflow._core.text import duration, escape_controls, plural
from asyncflow._views.preview import local_zone, moment_iso, moment_text

_MINUTE_S = 60
_DATE, _TO_MINUTE, _TO_SECOND = slice(10), slice(16), slice(19)
"""Parts of a moment: its date, and how far it goes with its time."""


class Wait(Protocol):
    """For what a run waits, as the record of a journal has it."""

    @property
    def kind(self) -> str: ...
    @property
    def signals(self) -> tuple[str, ...]: ...
    @property
    def due_at(self) -> float | None: ...
    @property
    def key(self) -> str: ...


class _MayWait(Protocol):
    @property
    def waiting_since(self) -> float | None: ...


def waited_ms(step: _MayWait, now_s: float) -> float | None:
    """Return how many milliseconds a step has waited for its signal; ``None`` if it does not wait.

    ``now_s`` is the present, in seconds since the epoch.
    """
    since = step.waiting_since
    return None if since is None else max(now_s - since, 0.0) * 1000


class QueueCounts(Protocol):
    """How many runs wait to start, as a journal counts them."""

    @property
    def waiting(self) -> int: ...
    @property
    def due(self) -> int: ...
    @property
    def oldest_due_s(self) -> float | None: ...
    @property
    def blocked_keys(self) -> int: ...


def queue_text(queue: QueueCounts) -> str:
    """Return ``3 runs wait to start: 2 due, the oldest for 4.0 s; 1 key blocked``, or nothing.

    A key is blocked that has runs which are due, and another run which has not ended.
    """
    if not queue.waiting:
        return ""
    verb = "waits" if queue.waiting == 1 else "wait"
    since = f", the oldest for {duration(queue.oldest_due_s * 1000)}" if queue.oldest_due_s else ""
    blocked = f"; {plural(queue.blocked_keys, 'key')} blocked" if queue.blocked_keys else ""
    return f"{plural(queue.waiting, 'run')} {verb} to start: {queue.due:,} due{since}{blocked}"


def is_queued(wait: Wait | None) -> bool:
    """Whether a run waits to start."""
    return wait is not None and wait.kind != "signal"


def wait_text(wait: Wait, now_s: float, zone: tzinfo | None = None) -> str:
    """Return ``for approved``, ``for a place``, ``for key customer-17`` or ``until 14:05``.

    ``now_s`` is the present, in seconds since the epoch: a time of another day has its date, and
    one of the next minute its seconds. By default the zone is that of this machine.
    """
    if wait.kind == "signal":
        first, *more = wait.signals or ("a signal",)
        return f"for {escape_controls(first)}{f' and {len(more)} more' if more else ''}"
    if wait.kind == "key":
        return f"for key {escape_controls(wait.key)}"
    if wait.kind == "place":
        return "for a place"
    due_at = wait.due_at or 0.0
    if not moment_iso(due_at):
        return "until a time that no calendar has"
    shown = _TO_SECOND if due_at - now_s < _MINUTE_S else _TO_MINUTE
    due, now = (moment_text(each, zone or local_zone(each)) for each in (due_at, now_s))
    text = due[shown]
    return f"until {text[11:] if due[_DATE] == now[_DATE] else text}"
