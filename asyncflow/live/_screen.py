"""What a program prints while frames are drawn, which is to stand above them.

Rules:

1. Whoever prints never waits for the terminal, so nothing can hang together with what draws.
2. A line stays whole, whichever threads print at once.
3. In a process that was forked, and when nothing is drawn any more, printing is as it was.

Runs as frames on a terminal, one below the other, which are drawn again and again.

Frames on a terminal, each in the place of the one before.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import IO, Any, Generic, NamedTuple, TypeVar

from rich.color import ColorSystem
from rich.console import Console
from rich.text import Text

from asyncflow.events import Event
from asyncflow.live._frame import LiveRun, frame, summary
from asyncflow.live._painter import Feed
from asyncflow.live._theme import Theme, cut, shown

__all__ = [
    "Frames",
    "Printed",
    "Prints",
    "Screen",
    "is_drawn_on",
]

Name = TypeVar("Name")

_LONGEST = 10_000
"""How many characters may wait for the end of their line."""

_ROUNDS = 10
"""How often what was printed is written, at the end, before whoever prints has to wait."""


class Printed(NamedTuple, Generic[Name]):
    """What was printed since that was last asked."""

    before: list[tuple[str, Name]]
    """What was printed before each mark, and which mark that is."""
    text: str
    """Whole lines, after the last mark."""
    unfinished: list[str]
    """The beginnings of lines, one of each thread that has not ended its line."""


class Prints(Generic[Name]):
    """Stands in for ``sys.stdout`` and ``sys.stderr``, and in handlers of `logging`.

    Args:
        screen: The stream to which frames are drawn. Only streams to the same terminal are
            replaced: results that go to a file must get there.
    """

    def __init__(self, screen: IO[str]) -> None:
        self._lock = threading.RLock()  # a signal handler may print too
        self._process = os.getpid()
        self._texts: list[str | _Mark[Name]] = []
        self._unfinished: dict[int, str] = {}
        self._is_open = True
        self._replaced: list[tuple[str, IO[str], _Stream]] = []
        self._handlers: list[tuple[logging.StreamHandler[Any], IO[str], _Stream]] = []
        self._terminal = _terminal_of(screen)

    @property
    def is_open(self) -> bool:
        """Whether what is printed here is held back."""
        return self._is_open and os.getpid() == self._process

    def begin(self) -> None:
        """Take the place of the streams."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if self._terminal is None or _terminal_of(stream) != self._terminal:
                continue
            ours = _Stream(self, stream)
            setattr(sys, name, ours)
            self._replaced.append((name, stream, ours))
            for handler in _handlers():
                if handler.stream is stream:
                    handler.setStream(ours)
                    self._handlers.append((handler, stream, ours))

    def end(self, write: Callable[[str], object]) -> None:
        """Write what was not taken, let it be printed as ever, and give the streams back."""
        try:
            for _ in range(_ROUNDS):
                text = self._rest()
                if not text:
                    break
                write(text)
            with self._lock:
                write(self._rest() + "".join(self._unfinished.values()))
                self._is_open = False  # from here on, what is printed comes after that
        finally:
            self._is_open = False
            self._give_back()

    def _rest(self) -> str:
        printed = self.take()
        return "".join([*(text for text, _ in printed.before), printed.text])

    def _give_back(self) -> None:
        for name, stream, ours in self._replaced:
            if getattr(sys, name) is ours:
                setattr(sys, name, stream)
        for handler, stream, ours in self._handlers:
            if handler.stream is ours:
                handler.setStream(stream)

    def take(self) -> Printed[Name]:
        """Return what was printed."""
        with self._lock:
            texts, self._texts = self._texts, []
            unfinished = [text.rpartition("\r")[2] for text in self._unfinished.values()]
        before: list[tuple[str, Name]] = []
        lines: list[str] = []
        for text in texts:
            if isinstance(text, str):
                lines.append(text)
            else:
                before.append(("".join(lines), text.name))
                lines = []
        return Printed(before, "".join(lines), unfinished)

    def mark(self, name: Name, *, ends_lines: bool) -> None:
        """Note that what comes now was printed after something.

        Args:
            name: What that is.
            ends_lines: Whether nobody will end the lines that have begun.
        """
        with self._lock:
            if ends_lines:
                self._texts += [f"{text}\n" for text in self._unfinished.values()]
                self._unfinished.clear()
            self._texts.append(_Mark(name))

    def add(self, text: str) -> bool:
        """Take what is printed; return whether that was possible."""
        thread = threading.get_ident()
        with self._lock:
            if not self._is_open:
                return False
            begun = self._unfinished.pop(thread, "")
            whole, newline, rest = text.rpartition("\n")
            if newline:
                self._texts.append(f"{begun}{whole}\n")
                begun = ""
            rest = begun + rest
            if rest.rfind("\r", 0, -1) > 0:  # a line that is written again and again
                rest = rest[rest.rfind("\r", 0, -1) :]
            if len(rest) > _LONGEST:
                self._texts.append(f"{rest}\n")
            elif rest:
                self._unfinished[thread] = rest
        return True


class _Mark(NamedTuple, Generic[Name]):
    name: Name


class _Stream:
    """A stream for text, which is the one it stands for in all but writing."""

    def __init__(self, prints: Prints[Any], stream: IO[str]) -> None:
        self._prints = prints
        self._stream = stream

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if self._prints.is_open and self._prints.add(text):
            return len(text)
        return self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if not self._prints.is_open:
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _terminal_of(stream: Any) -> int | None:
    """Return the number of the terminal that a stream writes to; ``None`` if it is none."""
    try:
        return os.fstat(stream.fileno()).st_rdev if stream.isatty() else None
    except (AttributeError, OSError, ValueError):  # there is no stream, or no file behind it
        return None


def _handlers() -> Iterator[logging.StreamHandler[Any]]:
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler):
                yield handler


def is_drawn_on(stream: object) -> bool:
    """Return whether a stream is one that stands in for another while frames are drawn there."""
    return isinstance(stream, _Stream)


_COLOURS = {
    "standard": ColorSystem.STANDARD,
    "256": ColorSystem.EIGHT_BIT,
    "truecolor": ColorSystem.TRUECOLOR,
}
_UP, _TO_THE_END, _REST_OF_LINE, _PLAIN = "\x1b[{}A", "\x1b[J", "\x1b[K", "\x1b[0m"


class Screen:
    """Args:
    console: Says what colours the terminal has.
    file: What is written to.
    size: Says how many columns and lines it has, at any moment.
    """

    def __init__(
        self, console: Console, file: IO[str], size: Callable[[], tuple[int, int]]
    ) -> None:
        self._console = console
        self._file = file
        self.size = size
        self._lines: list[tuple[str, int]] = []
        """What stands there, and how many cells each line takes."""
        self._width = 0

    def draw(self, above: str, lines: Sequence[Text], *, is_last: bool = False) -> None:
        """Draw a frame in the place of the one that stands there.

        Args:
            above: Text that is to stand above it, for good.
            lines: The lines of the frame, no more than the terminal has.
            is_last: Whether it is to stay there for good.
        """
        width, height = self.size()
        rows = sum(max(-(-cells // width), 1) for _, cells in self._lines)
        is_same = not above and width == self._width
        output = [_UP.format(min(rows, height)) + "\r"] if rows else []
        if above:
            plain = _PLAIN if "\x1b" in above else ""
            output.append(f"{_TO_THE_END}{above}{plain}")
        drawn = [(self._styled(line), line.cell_len) for line in lines]
        for number, (styled, _) in enumerate(drawn):
            stands = is_same and number < rows and self._lines[number][0] == styled
            output.append("\n" if stands else f"{styled}{_REST_OF_LINE}\n")
        if not is_same or rows > len(drawn):
            output.append(_TO_THE_END)
        self._lines, self._width = [] if is_last else drawn, width
        self.write("".join(output))

    def write(self, text: str) -> None:
        """Write text, with escapes for what the terminal's encoding does not have.

        Raises:
            OSError: Nobody reads it any more.
        """
        if not text:
            return
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        try:
            self._file.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._file.flush()
        except ValueError as error:
            raise OSError("the stream is closed") from error

    def _styled(self, line: Text) -> str:
        """Return a line with its colours. `Console.print` does much more, in ten times the time."""
        colours = _COLOURS.get(self._console.color_system or "")
        parts = []
        for text, style, _ in line.render(self._console):
            if style is not None and self._console.no_color:
                style = style.without_color
            parts.append(text if style is None else style.render(text, color_system=colours))
        return "".join(parts)


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

    def __init__(self, screen: Screen, file: IO[str], look: Theme) -> None:
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


def _many(runs: Sequence[_Watched], width: int, height: int, look: Theme) -> list[Text]:
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
