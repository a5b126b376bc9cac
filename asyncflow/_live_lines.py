"""A run as lines of text, one for each event, for what is not a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from asyncflow._core.errors import in_one_line
from asyncflow._live_thread import Feed
from asyncflow._views.event_text import told
from asyncflow.events import Event, RunResumed, RunStarted

__all__ = ["Lines"]


class Lines:
    """Args:
    write: Writes text, and flushes it.
    """

    pause_s = 0.05

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._text: list[str] = []
        self._runs: dict[Feed, tuple[str, Mapping[str, int]]] = {}
        """What each run is called, and how many attempts its steps have."""
        self._are_many = False

    def begin(self) -> None:
        """Nothing needs to be done."""

    def mark(self, feed: Feed, *, is_last: bool) -> None:
        """Nothing needs to be done."""

    def collect(self) -> None:
        """Nothing needs to be done."""

    def take(self, feed: Feed, events: Sequence[Event]) -> None:
        """Take in events of a run."""
        for event in events:
            if type(event) in _BEGINNINGS:
                self._begin(feed, event)
        run, attempts = self._runs.get(feed, ("", {}))
        of_run = f" {run}:" if self._are_many else ""
        before_ms, at = -1, ""
        for event in events:
            at_ms = 0 if type(event) is RunStarted else int(event.at_ms)  # type: ignore[union-attr]
            if at_ms != before_ms:
                before_ms, at = at_ms, _time(at_ms)
            line = told(event, attempts.get(getattr(event, "step", "")))
            self._text.append(f"[{at}]{of_run} {line}\n")

    def _begin(self, feed: Feed, event: Any) -> None:
        self._runs[feed] = in_one_line(event.run_id), dict(event.max_retries)
        self._are_many = self._are_many or len(self._runs) > 1

    def draw(self, ended: Sequence[Feed]) -> None:
        """Write what has happened."""
        text, self._text = self._text, []
        if text:
            self._write("".join(text))
        for feed in ended:
            self._runs.pop(feed, None)

    def end(self, left: Sequence[Feed]) -> None:
        """Write what has happened."""
        self.draw(left)

    def give_up(self) -> None:
        """Nothing needs to be done."""


_BEGINNINGS = (RunStarted, RunResumed)


def _time(ms: int) -> str:
    """Return a time of the run's clock: ``0:00:01.234``."""
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}.{ms:03}"
