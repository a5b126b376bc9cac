"""The thread that draws what happens in runs, while their event loops only leave it the events.

Rules:

1. An observer never waits for what draws, and never raises.
2. The thread lives from the start of the first run to the end of the last one. If a run is gone
   without having told its end, it ends too; and so it does before the interpreter does.
3. If drawing fails, nothing is drawn any more, and the runs go on.

A run as lines of text, one for each event, for what is not a terminal.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from asyncflow._core.errors import escape_controls
from asyncflow._views.event_text import told
from asyncflow.events import Event, RunFinished, RunResumed, RunStarted

__all__ = [
    "Drawing",
    "Feed",
    "Lines",
    "Painter",
    "RunObserver",
]

_log = logging.getLogger("asyncflow")

_SHARE = 250
"""How many times longer than drawing takes, at least, are the pauses in between."""
_LONGEST_PAUSE_S = 1.0
_PATIENCE_S = 1.0
"""How long the end of a run waits for the end of the thread."""


class Feed:
    """The events of one run, on their way from its observer to the thread."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque()
        self.has_ended = False
        self.is_open = True


class Drawing(Protocol):
    """What is drawn, and where to. All but `begin` and `mark` are called in the thread."""

    pause_s: float
    """How long to wait between two times, at least."""

    @abstractmethod
    def begin(self) -> None:
        """Called once, when the first run starts."""

    @abstractmethod
    def mark(self, feed: Feed, *, is_last: bool) -> None:
        """Called when a run ends, with whether no other one goes on."""

    @abstractmethod
    def collect(self) -> None:
        """Take in what belongs to the runs that have ended until now, beside their events."""

    @abstractmethod
    def take(self, feed: Feed, events: Sequence[Event]) -> None:
        """Take in events of a run."""

    @abstractmethod
    def draw(self, ended: Sequence[Feed]) -> None:
        """Draw, for the last time what those that have ended are about."""

    @abstractmethod
    def end(self, left: Sequence[Feed]) -> None:
        """Draw for the last time, and leave everything as it was."""

    @abstractmethod
    def give_up(self) -> None:
        """Leave everything as it was, without drawing, since that has failed."""


class RunObserver:
    """Observes one run."""

    __slots__ = ("__weakref__", "_end", "_feed")

    def __init__(self, feed: Feed, end: Callable[[Feed], object]) -> None:
        self._feed = feed
        self._end = end

    def __call__(self, event: Event) -> None:
        feed = self._feed
        if feed.is_open:
            feed.events.append(event)
            if type(event) is RunFinished:
                self._end(feed)


class Painter:
    """Gives each run its observer, and has a thread as long as there are runs.

    Args:
        drawing: Makes what draws; called at the start of each thread.
    """

    def __init__(self, drawing: Callable[[], Drawing]) -> None:
        self._make = drawing
        self._lock = threading.RLock()  # the collector may end a run wherever it likes
        self._wake = threading.Event()
        self._feeds: list[Feed] = []
        self._thread: threading.Thread | None = None
        self._drawing: Drawing | None = None
        self._is_closing = False
        self._at_exit = partial(self.close, _PATIENCE_S)

    def observer(self, *, waits: bool) -> RunObserver:
        """Return the observer of a run that starts.

        Args:
            waits: Whether the end of the last run waits for the end of the thread.
        """
        feed = Feed()
        while not self._add(feed):
            self._join(None)
        observer = RunObserver(feed, self._end_and_wait if waits else self._end)
        weakref.finalize(observer, self._end, feed).atexit = False
        return observer

    def close(self, timeout_s: float | None = None) -> None:
        """End the thread, whatever runs."""
        with self._lock:
            for feed in self._feeds:
                feed.has_ended = True
        self._wake.set()
        self._join(timeout_s)

    def _add(self, feed: Feed) -> bool:
        with self._lock:
            if self._is_closing:
                return False
            if self._drawing is None:
                self._start()
            self._feeds.append(feed)
        return True

    def _start(self) -> None:
        drawing = self._make()
        thread = threading.Thread(
            target=self._draw_until_the_end, args=(drawing,), name="asyncflow:live", daemon=True
        )
        drawing.begin()
        try:
            thread.start()
        except BaseException:  # there are too many
            drawing.give_up()
            raise
        self._thread, self._drawing = thread, drawing
        atexit.register(self._at_exit)

    def _end(self, feed: Feed) -> bool:
        """Note that a run has ended; return whether it was the last one."""
        with self._lock:
            if feed.has_ended:
                return False
            feed.has_ended = True
            is_last = all(each.has_ended for each in self._feeds)
            if self._drawing is not None:
                self._drawing.mark(feed, is_last=is_last)
        if is_last:
            self._wake.set()
        return is_last

    def _end_and_wait(self, feed: Feed) -> None:
        if self._end(feed):
            self._join(_PATIENCE_S)

    def _join(self, timeout_s: float | None) -> None:
        if self._thread is not None:
            self._thread.join(timeout_s)

    # In the thread.

    def _draw_until_the_end(self, drawing: Drawing) -> None:
        failure: Exception | None = None
        try:
            pause_s = drawing.pause_s
            while True:
                self._wake.wait(pause_s)
                self._wake.clear()
                ended = self._take(drawing)
                began = time.thread_time()
                if self._is_over(drawing, ended):
                    break
                spent_s = time.thread_time() - began
                pause_s = min(max(drawing.pause_s, spent_s * _SHARE), _LONGEST_PAUSE_S)
        except Exception as error:
            failure = error
            drawing.give_up()
        finally:
            self._forget()
        if failure is not None and not isinstance(failure, OSError):
            _log.error("the live view failed and draws no more", exc_info=failure)

    def _take(self, drawing: Drawing) -> list[Feed]:
        """Take in the events of all runs; return the runs that have ended."""
        with self._lock:
            feeds = list(self._feeds)
            ended = [feed for feed in feeds if feed.has_ended]
            self._is_closing = len(ended) == len(feeds)
            drawing.collect()
        for feed in feeds:
            drawing.take(feed, [feed.events.popleft() for _ in range(len(feed.events))])
        return ended

    def _is_over(self, drawing: Drawing, ended: list[Feed]) -> bool:
        """Draw how it stands; return whether no run goes on any more."""
        if self._is_closing:
            drawing.end(ended)
            return True
        drawing.draw(ended)
        with self._lock:
            self._feeds = [feed for feed in self._feeds if feed not in ended]
        return False

    def _forget(self) -> None:
        atexit.unregister(self._at_exit)
        with self._lock:
            for feed in self._feeds:
                feed.is_open = False
                feed.events.clear()
            self._feeds, self._drawing, self._is_closing = [], None, False


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
        self._runs[feed] = escape_controls(event.run_id), dict(event.max_retries)
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
