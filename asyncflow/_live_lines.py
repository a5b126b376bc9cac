"""A run as lines of text, one for each event, for what is not a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from asyncflow._events_told import told
from asyncflow._live_thread import Feed
from asyncflow._text import in_one_line
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
            if isinstance(event, RunStarted | RunResumed):
                self._runs[feed] = in_one_line(event.run_id), event.max_retries
                self._are_many = self._are_many or len(self._runs) > 1
            run, attempts = self._runs.get(feed, ("", {}))
            of_run = f" {run}:" if self._are_many else ""
            line = told(event, attempts.get(getattr(event, "step", "")))
            at = _time(0.0 if isinstance(event, RunStarted) else event.at_ms)
            self._text.append(f"[{at}]{of_run} {line}\n")

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


def _time(ms: float) -> str:
    """Return a time of the run's clock: ``0:00:01.234``."""
    seconds, ms = divmod(int(ms), 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}.{ms:03}"
