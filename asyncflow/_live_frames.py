"""Runs as frames on a terminal, one below the other, which are drawn again and again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

from rich.text import Text

from asyncflow._cells import cut, shown
from asyncflow._live_frame import frame, summary
from asyncflow._live_prints import Prints
from asyncflow._live_run import LiveRun
from asyncflow._live_screen import Screen
from asyncflow._live_thread import Feed
from asyncflow._look import Look
from asyncflow.events import Event

__all__ = ["Frames"]

_LEAST = 5
"""How many lines a frame has at least; if there is no room for that, a run is one line."""


class _Watched:
    """A run, its clock, and how high its frame was."""

    def __init__(self) -> None:
        self.run = LiveRun()
        self.height = 0
        self._ahead_ms: float | None = None
        """How far the run's clock is ahead of ours, as far as that was seen."""

    @property
    def has_begun(self) -> bool:
        return bool(self.run.view.stretches)

    def take(self, events: Sequence[Event]) -> None:
        self.run.apply(*events)
        if events:
            # Events come late, never early.
            ahead_ms = self.run.view.at_ms - _our_ms()
            before = ahead_ms if self._ahead_ms is None else self._ahead_ms
            self._ahead_ms = max(ahead_ms, before)

    def now_ms(self) -> float:
        view = self.run.view
        if view.outcome is not None or self._ahead_ms is None:
            return view.at_ms
        return max(view.at_ms, self._ahead_ms + _our_ms())


class Frames:
    """Args:
    screen: Where to draw.
    file: What that writes to.
    look: What to draw with.
    """

    pause_s = 0.12

    def __init__(self, screen: Screen, file: IO[str], look: Look) -> None:
        self._screen = screen
        self._look = look
        self._prints: Prints[Feed] = Prints(file)
        self._runs: dict[Feed, _Watched] = {}
        self._before: list[tuple[str, Feed]] = []
        """The runs that have ended, each with what was printed before, that were not drawn yet."""
        self._text = ""
        """What was printed after that, in whole lines."""
        self._unfinished: list[str] = []

    def begin(self) -> None:
        """Take in what is printed from now on."""
        self._prints.begin()

    def mark(self, feed: Feed, *, is_last: bool) -> None:
        """Let what is printed from now on stand below the last frame of a run."""
        self._prints.mark(feed, ends_lines=is_last)

    def collect(self) -> None:
        """Take in what was printed."""
        printed = self._prints.take()
        self._before += printed.before
        self._text += printed.text
        self._unfinished = printed.unfinished

    def take(self, feed: Feed, events: Sequence[Event]) -> None:
        """Take in events of a run."""
        self._runs.setdefault(feed, _Watched()).take(events)

    def draw(self, ended: Sequence[Feed]) -> None:
        """Draw the last frames of the runs that have ended, and those of the others below."""
        self._draw_last(ended)
        width, height = self._space()
        lines = [Text(cut(shown(text, self._look.encoding), width)) for text in self._unfinished]
        lines = lines[-max(height - _LEAST, 0) :]
        lines += self._frames(width, height - len(lines))
        self._screen.draw(self._text, lines)
        self._text = ""

    def end(self, left: Sequence[Feed]) -> None:
        """Draw the last frames, and give the streams back."""
        self._draw_last(left)
        self._screen.draw(self._text, [])
        self._prints.end(self._screen.write)

    def give_up(self) -> None:
        """Give the streams back, and write what was printed, if that is possible."""
        texts = [*(text for text, _ in self._before), self._text]
        with suppress(Exception):  # it may be that which failed
            self._screen.draw("".join(texts), [])
        with suppress(OSError):
            self._prints.end(self._screen.write)

    def _draw_last(self, ended: Sequence[Feed]) -> None:
        """Draw the last frames of runs, each below what was printed before its end."""
        unmarked = [feed for feed in ended if feed not in {feed for _, feed in self._before}]
        if unmarked:
            self._before += [(self._text, unmarked[0]), *(("", feed) for feed in unmarked[1:])]
            self._text = ""
        while self._before:
            above, feed = self._before[0]
            watched = self._runs.pop(feed)
            lines = self._frame(watched, *self._space(), least=0) if watched.has_begun else []
            self._screen.draw(above, lines, is_last=True)
            del self._before[0]

    def _space(self) -> tuple[int, int]:
        """Return how many cells and lines a frame may have."""
        width, height = self._screen.size()
        return max(width - 1, 1), max(height - 1, 1)

    def _frames(self, width: int, height: int) -> list[Text]:
        begun = [watched for watched in self._runs.values() if watched.has_begun]
        lines: list[Text] = []
        for number, watched in enumerate(begun):
            share = (height - len(lines)) // (len(begun) - number)
            if share < _LEAST and len(begun) > 1:
                return _many(begun, width, height, self._look)
            lines += self._frame(watched, width, share, least=watched.height)
        return lines

    def _frame(self, watched: _Watched, width: int, height: int, *, least: int) -> list[Text]:
        lines = frame(
            watched.run,
            width=width,
            height=height,
            now_ms=watched.now_ms(),
            look=self._look,
            least=least,
        )
        watched.height = len(lines)
        return lines


def _many(runs: Sequence[_Watched], width: int, height: int, look: Look) -> list[Text]:
    """Return a line for each run, as far as there is room."""
    shown_runs = runs if len(runs) <= height else runs[: max(height - 1, 0)]
    lines = []
    for watched in shown_runs:
        view = watched.run.view
        name = cut(shown(view.pipeline or view.run_id, look.encoding), width // 3, look.ellipsis)
        text = Text(f"{name}  ", no_wrap=True)
        text.append(summary(watched.run, width - text.cell_len, watched.now_ms(), look))
        lines.append(text)
    if len(shown_runs) < len(runs):
        lines.append(Text(f"and {len(runs) - len(shown_runs):,} more runs", "dim"))
    return lines


def _our_ms() -> float:
    return time.monotonic() * 1000
