"""What a program prints while frames are drawn, which is to stand above them.

Rules:

1. Whoever prints never waits for the terminal, so nothing can hang together with what draws.
2. A line stays whole, whichever threads print at once.
3. In a process that was forked, and when nothing is drawn any more, printing is as it was.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import IO, Any, Generic, NamedTuple, TypeVar

__all__ = ["Printed", "Prints", "is_drawn_on"]

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
