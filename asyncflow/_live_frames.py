"""Runs as frames on a terminal, one below the other, which are drawn again and again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import IO

from rich.console import Console
from rich.text import Text

from asyncflow._cells import cut, shown
from asyncflow._live_frame import frame, summary
from asyncflow._live_prints import Printed, Prints
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

    def take(self, events: Sequence[Event]) -> None:
        for event in events:
            self.run.apply(event)
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
    console: Says how large the terminal is, and what colours it has.
    file: What is written to.
    look: What to draw with.
    """

    pause_s = 0.12

    def __init__(self, console: Console, file: IO[str], look: Look) -> None:
        self._console = console
        self._look = look
        self._screen = Screen(console, file)
        self._prints = Prints(file)
        self._runs: dict[Feed, _Watched] = {}

    def begin(self) -> None:
        """Take in what is printed from now on."""
        self._prints.begin()

    def seal(self, *, is_last: bool) -> None:
        """Let what is printed from now on stand below the frame, or again above it."""
        if is_last:
            self._prints.seal()
        else:
            self._prints.unseal()

    def take(self, feed: Feed, events: Sequence[Event]) -> None:
        """Take in events of a run."""
        self._runs.setdefault(feed, _Watched()).take(events)

    def draw(self, ended: Sequence[Feed]) -> None:
        """Draw the frames of the runs, those that have ended above the others."""
        self._draw(self._prints.take(), ended)

    def end(self, left: Sequence[Feed]) -> None:
        """Draw the frames for the last time, and give the streams back."""
        printed = self._prints.end()
        self._draw(printed, left)
        self._screen.write(printed.after)

    def give_up(self) -> None:
        """Give the streams back, and write what was printed, if that is possible."""
        printed = self._prints.end()
        try:
            self._screen.write(printed.before + printed.after)
        except OSError:  # it was that which failed
            return

    def _draw(self, printed: Printed, ended: Sequence[Feed]) -> None:
        width, height = self._console.size
        width, height = max(width - 1, 1), max(height - 1, 1)
        above = printed.before
        done = [watched for feed in ended if (watched := self._runs.pop(feed, None)) is not None]
        for watched in done[:-1] if not self._runs else done:
            self._screen.draw(above, self._frame(watched, width, height, is_last=True), 10**9)
            above = ""
        lines = [Text(cut(shown(text, self._look.encoding), width)) for text in printed.unfinished]
        lines = lines[-max(height - _LEAST, 0) :]
        watched_now = done[-1:] if not self._runs else list(self._runs.values())
        is_last = not self._runs
        lines += self._frames(watched_now, width, height - len(lines), is_last=is_last)
        self._screen.draw(above, lines, len(lines) if is_last else 0)

    def _frames(
        self, runs: Sequence[_Watched], width: int, height: int, *, is_last: bool
    ) -> list[Text]:
        begun = [watched for watched in runs if watched.run.view.stretches]
        lines: list[Text] = []
        for number, watched in enumerate(begun):
            share = (height - len(lines)) // (len(begun) - number)
            if share < _LEAST and len(begun) > 1:
                return _many(begun, width, height, self._look)
            lines += self._frame(watched, width, share, is_last=is_last)
        return lines

    def _frame(self, watched: _Watched, width: int, height: int, *, is_last: bool) -> list[Text]:
        lines = frame(
            watched.run,
            width=width,
            height=height,
            now_ms=watched.now_ms(),
            look=self._look,
            least=0 if is_last else watched.height,
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
