"""What a program prints while frames are drawn: captured, and who printed it."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Any, NamedTuple

from asyncflow._core.running.context import current_attempt
from asyncflow.events import (
    AttemptFailed,
    Event,
    StepCancelled,
    StepFailed,
    StepSucceeded,
)
from asyncflow.live._renderer import EventBuffer

_LONGEST_LINE = 10_000
"""How many characters may wait for the end of their line."""

_FLUSHES = 10
"""How often `CapturedOutput.end` writes what was printed meanwhile before it blocks printing."""


class PrintedBy(NamedTuple):
    run_id: str
    step: str
    item: int | None
    attempt: int

    @property
    def label(self) -> str:
        """The step, with the number of its item: ``fetch[3]``."""
        return self.step if self.item is None else f"{self.step}[{self.item}]"


class Printed(NamedTuple):
    by: PrintedBy | None
    """``None`` if no step printed it."""
    text: str


class Output(NamedTuple):
    """What was printed since the last call of `CapturedOutput.take`."""

    before: list[tuple[list[Printed], EventBuffer]]
    """The runs that ended meanwhile, each with the whole lines printed before its end."""
    printed: list[Printed]
    """The whole lines printed since."""
    unfinished: list[Printed]
    """The unfinished line of each attempt and thread."""

    @property
    def lines(self) -> list[Printed]:
        return [*(each for printed, _ in self.before for each in printed), *self.printed]


class CapturedOutput:
    """Replaces ``sys.stdout``, ``sys.stderr`` and the streams of `logging` handlers.

    Rules:

    1. Printing never waits for the terminal.
    2. A line stays whole, even if several attempts or threads print at once.
    3. A forked process, and any process after `end`, prints as usual.

    Frames are drawn on ``screen``. Only streams to the same terminal are replaced: redirected
    output must reach its file.
    """

    def __init__(self, screen: IO[str]) -> None:
        self._lock = threading.RLock()  # a signal handler may print too
        self._process = os.getpid()
        self._before: list[tuple[list[Printed], EventBuffer]] = []
        self._lines: list[Printed] = []
        self._unfinished: dict[tuple[PrintedBy | None, int], str] = {}
        """By attempt and thread."""
        self._is_open = True
        self._streams: list[tuple[IO[str], CapturedStream]] = []
        self._terminal = _terminal_of(screen)

    @property
    def is_open(self) -> bool:
        """Whether this process captures what it prints."""
        return self._is_open and os.getpid() == self._process

    def begin(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            if self._terminal is not None and _terminal_of(stream) == self._terminal:
                captured = CapturedStream(self, stream)
                self._streams.append((stream, captured))
                _replace(stream, captured)

    def end(self, write: Callable[[Sequence[Printed]], object]) -> None:
        """Write what is left and restore the streams."""
        try:
            for _ in range(_FLUSHES):
                lines = self.take().lines
                if not lines:
                    break
                write(lines)
            with self._lock:
                unfinished = [Printed(by, text) for (by, _), text in self._unfinished.items()]
                write(self.take().lines + unfinished)
                self._is_open = False  # under the lock: later output comes after this one
        finally:
            self._is_open = False
            for stream, captured in self._streams:
                _replace(captured, stream)

    def take(self) -> Output:
        """Remove and return what was printed."""
        with self._lock:
            unfinished = [
                Printed(by, text.rpartition("\r")[2]) for (by, _), text in self._unfinished.items()
            ]
            output = Output(self._before, self._lines, unfinished)
            self._before, self._lines = [], []
        return output

    def end_lines(self, run_id: str, events: Iterable[Event]) -> None:
        """End the unfinished lines of the attempts that end in these events."""
        if not self._unfinished:
            return
        ended = {
            PrintedBy(run_id, event.step, event.item, event.attempt)
            for event in events
            if isinstance(event, _ENDS)
        }
        with self._lock:
            for by, thread in list(self._unfinished):
                if by in ended:
                    self._lines.append(Printed(by, f"{self._unfinished.pop((by, thread))}\n"))

    def mark(self, run: EventBuffer, *, ends_lines: bool) -> None:
        """Record that a run ended after what was printed so far.

        ``ends_lines`` says whether to end the unfinished lines, because no step is left to do so.
        """
        with self._lock:
            if ends_lines:
                self._lines += [
                    Printed(by, f"{text}\n") for (by, _), text in self._unfinished.items()
                ]
                self._unfinished.clear()
            self._before.append((self._lines, run))
            self._lines = []

    def add(self, text: str) -> bool:
        """Capture printed text; return whether that was possible."""
        by = _attempt_that_prints()
        key = by, threading.get_ident()
        with self._lock:
            if not self._is_open:
                return False
            text = self._unfinished.pop(key, "") + text
            whole, newline, rest = text.rpartition("\n")
            if newline:
                self._lines.append(Printed(by, f"{whole}\n"))
            if rest.rfind("\r", 0, -1) > 0:  # a progress line that is overwritten again and again
                rest = rest[rest.rfind("\r", 0, -1) :]
            if len(rest) > _LONGEST_LINE:
                self._lines.append(Printed(by, f"{rest}\n"))
            elif rest:
                self._unfinished[key] = rest
        return True


_ENDS = (AttemptFailed, StepSucceeded, StepFailed, StepCancelled)


def _attempt_that_prints() -> PrintedBy | None:
    running = current_attempt()
    if running is None:
        return None
    run_id, attempt = running
    return PrintedBy(run_id, attempt.step, attempt.item, attempt.attempt)


class CapturedStream:
    """A text stream that captures what is written and otherwise is the stream it replaces."""

    def __init__(self, output: CapturedOutput, stream: IO[str]) -> None:
        self._output = output
        self._stream = stream

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if self._output.is_open and self._output.add(text):
            return len(text)
        return self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if not self._output.is_open:
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _terminal_of(stream: Any) -> int | None:
    """Return the device number of the terminal that a stream writes to, or ``None``."""
    try:
        return os.fstat(stream.fileno()).st_rdev if stream.isatty() else None
    except (AttributeError, OSError, ValueError):  # no stream, closed, or without a file
        return None


def _replace(old: object, new: Any) -> None:
    """Replace a stream wherever it is a standard stream or that of a handler."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is old:
            setattr(sys, name, new)
    for logger in [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and handler.stream is old:
                handler.setStream(new)
