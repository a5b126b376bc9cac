"""Hands the log records and the printed lines of steps to the runs that keep them.

While such a run is alive, the root logger has one more handler. If the run keeps printed lines, the
standard streams are wrapped too. Both look up which attempt they are called from.

Rules:

1. Logging works as if the handler were not there. Where the program has configured none, records
   still go to `logging.lastResort`, and the level of the root logger is lowered meanwhile. A level
   that the program has configured stands.
2. What is printed reaches its stream first. Other wrappers may come and go: one of ours that lies
   below another stays there, and only passes on what it gets.
3. This module imports nothing of asyncflow, because a worker process loads it by its path.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

_Find: TypeAlias = Callable[[], "tuple[Any, Any] | None"]
"""Returns the notes that keep records of the current attempt, and the attempt."""

_OWN_LOGGER = "asyncflow"
"""Its records are about a run; none is a step's."""

_lock = threading.RLock()
_captures: list[Capture] = []
_finds: tuple[_Find, ...] = ()
_streams: dict[str, _Stream] = {}
"""The wrappers that keep what is printed."""
_latest: dict[str, _Stream] = {}
"""The latest wrappers, which stay: before 3.13.3, `print` in another thread may be using one
without a reference to it (gh-130163)."""
_lowered: tuple[int, _Level] | None = None
"""The level of the root logger before and since it was lowered."""
_quiet = threading.local()
"""Its attribute ``on`` is true while a record is written to a standard stream: no printed line."""


class _Level(int):
    """A level that was set here. When the program sets the same, that is another object."""


class Capture:
    """The part of one run in this.

    ``notes`` is a `asyncflow._policies.notes.NoteQueue`, or what stands for it in a worker process.
    ``find`` returns the current attempt, and the notes to which it belongs.
    """

    def __init__(self, notes: Any, find: _Find) -> None:
        self.level: int | None = notes.level
        self.prints: bool = notes.prints
        self.find = find

    def end(self) -> None:
        """Restore what no other run needs."""
        with _lock:
            _captures.remove(self)
            _update()


def capture(notes: Any, find: _Find) -> Capture:
    """Begin to hand over records and lines; see `Capture`."""
    with _lock:
        begun = Capture(notes, find)
        _captures.append(begun)
        _update()
    return begun


def _update() -> None:
    global _finds, _lowered
    _finds = tuple(dict.fromkeys(each.find for each in reversed(_captures)))
    levels = [each.level for each in _captures if each.level is not None]
    root = logging.getLogger()
    if _lowered is not None:
        before, since = _lowered
        _lowered = None
        if root.level is since:  # else the program has configured it meanwhile
            root.setLevel(before)
    if not levels:
        root.removeHandler(_handler)
    else:
        if _handler not in root.handlers:
            root.addHandler(_handler)
        if len(root.handlers) == 1 and root.level == logging.WARNING > min(levels):
            _lowered = root.level, _Level(min(levels))
            root.setLevel(_lowered[1])
    _wrap_streams(any(each.prints for each in _captures))


def _wrap_streams(is_wanted: bool) -> None:
    for name in ("stdout", "stderr"):
        ours, current = _streams.get(name), getattr(sys, name)
        if ours is None or current is not ours:
            if is_wanted and current is not None:
                wrapper = _latest.get(name)
                if wrapper is None or wrapper.stream is not current:
                    wrapper = _latest[name] = _Stream(name, current)
                _streams[name] = wrapper
                setattr(sys, name, wrapper)
        elif not is_wanted:
            setattr(sys, name, ours.stream)
        if not is_wanted:
            _streams.pop(name, None)


def _found() -> tuple[Any, Any] | None:
    for find in _finds:
        if (found := find()) is not None:
            return found
    return None


@contextmanager
def not_printed() -> Iterator[None]:
    """Keep nothing of what this thread writes to standard streams meanwhile: it is a log record."""
    before = getattr(_quiet, "on", False)
    _quiet.on = True
    try:
        yield
    finally:
        _quiet.on = before


class _Handler(logging.Handler):
    def handle(self, record: logging.LogRecord) -> bool:
        # Without this handler's lock, which a record of a slow run would make all others wait for.
        found = _found() if record.name != _OWN_LOGGER else None
        if found is not None:
            notes, attempt = found
            if notes.level is not None and record.levelno >= notes.level:
                name = str(record.name)
                notes.log(attempt, record.levelno, name, _message(record), _traceback(record))
        last = logging.lastResort
        if last is not None and record.levelno >= last.level and not _is_handled(record):
            with not_printed():
                last.handle(record)
        return True


_handler = _Handler()


def _is_handled(record: logging.LogRecord) -> bool:
    """Whether a record that has reached the root logger has another handler than ours."""
    if len(logging.root.handlers) > 1:
        return True
    logger: Any = logging.Logger.manager.loggerDict.get(record.name)
    while isinstance(logger, logging.Logger) and logger is not logging.root:
        if logger.handlers:
            return True
        logger = logger.parent
    return False


def _message(record: logging.LogRecord) -> str:
    if isinstance(record.msg, dict) and not record.args:
        return text_of(record.msg)
    # Every other handler reports arguments that don't fit. Whatever they raise must not spread.
    with suppress(Exception):
        return record.getMessage()
    with suppress(Exception):
        return f"{record.msg!r} with the arguments {record.args!r}"
    return record.msg if isinstance(record.msg, str) else f"<{type(record.msg).__name__}>"


def text_of(event: Mapping[Any, Any]) -> str:
    """Return an event of structlog as a text."""
    parts = [_shown(str, event.get("event", ""))]
    for name, value in event.items():
        if name not in _OF_EVERY_EVENT and not str(name).startswith("_"):
            parts.append(f"{name}={_shown(repr, value)}")
    return " ".join(parts)


_OF_EVERY_EVENT = frozenset({"event", "level", "log_level", "logger", "timestamp", "exc_info"})
"""What an event of structlog has that its record has too."""


def _shown(render: Callable[[object], str], value: object) -> str:
    try:
        return render(value)
    except Exception:  # it is the user's object
        return f"<{type(value).__name__}>"


def _traceback(record: logging.LogRecord) -> str:
    parts = [str(record.stack_info)] if record.stack_info else []
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if error is not None:
        try:
            parts.insert(0, "".join(traceback.format_exception(error)).rstrip())
        except Exception:  # an error may have attributes that raise
            parts.insert(0, type(error).__name__)
    return "\n".join(parts)


class _Stream:
    """A standard stream whose lines are kept too."""

    def __init__(self, name: str, stream: Any) -> None:
        self.stream = stream
        self._name = name

    def write(self, text: str) -> int:
        written: int = self.stream.write(text)
        if _streams.get(self._name) is self and not getattr(_quiet, "on", False):
            found = _found()
            if found is not None and found[0].prints:
                found[0].printed(found[1], self._name, text)
        return written

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
