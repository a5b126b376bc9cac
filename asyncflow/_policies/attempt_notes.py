"""What one attempt says: the first notes and the last ones, and how many are missing between.

Nothing here may import asyncflow: a worker process loads this module by its path.
"""

from __future__ import annotations

import _thread
from collections import deque

TYPE_CHECKING = False  # importing `typing` takes long
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_MOST_CHARACTERS, _LAST_NOTES = 16_000_000, 40
"""More than a run keeps, which applies its own limits: what is printed comes in parts, and a line
may be overwritten again and again."""
_LONGEST_TEXT, _LONGEST_UNIT = 40_000, 200
"""How many characters are sent of a text; the run cuts it further."""


_TAKEN = {
    "progress": "record",
    "attach": "attachment",
    "log": "record",
    "printed": "record",
    "stream": "streamed value",
    "leave_out": "record",
}
"""The methods that take a note, and what each takes."""


def pass_on(notes: Any, running: Any, note: Any) -> None:
    """Give the notes of a run one from outside its process, such as ``("stream", text)``.

    What they refuse is counted, with the reason, since nothing can raise where it was said.
    """
    kind, values = (note[0], note[1:]) if type(note) is tuple and note else (None, ())
    if type(kind) is not str or kind not in _TAKEN:  # the action may write to any file it has open
        notes.leave_out(running, 1, "record", "it can't be read")
        return
    try:
        getattr(notes, kind)(running, *values)
    except Exception as error:  # the run has limits of its own, and its own idea of an attachment
        notes.leave_out(running, 1, _TAKEN[kind], str(error))


class FirstAndLast:
    """Decides which notes are the first ones, and keeps the last ones.

    ``most`` is the maximum number of the first ones, ``size`` how large they are together at most,
    and ``last`` the number of the last ones.
    """

    def __init__(self, most: float, size: float, last: int) -> None:
        self.count = self.size = self.left_out = 0
        self.last: deque[Any] = deque(maxlen=last)
        self._most, self._most_size = most, size

    def is_first(self, note: object, size: int) -> bool:
        """Return whether a note is one of the first ones; else it is the last one for now."""
        if self.last or self.count >= self._most or self.size + size > self._most_size:
            self.left_out += len(self.last) == self.last.maxlen
            self.last.append(note)
            return False
        self.count += 1
        self.size += size
        return True


class AttemptNotes:
    """Collects what an attempt says outside the process of its run. Any thread may call it.

    It takes log records from ``level`` on; ``None`` for none. ``send`` takes what goes to the run:
    a method of the run's notes, and its arguments. ``changed`` is called when `missing` or `latest`
    has changed.
    """

    def __init__(
        self,
        level: int | None,
        prints: bool,
        send: Callable[[tuple[Any, ...]], object],
        changed: Callable[[], object] = bool,
    ) -> None:
        self.level = level
        self.prints = prints
        self.takes_logs = level is not None or prints
        self.latest: tuple[float, float | None, str] | None = None
        """The latest progress: what is done, the total, and the unit."""
        self._send = send
        self._changed = changed
        self._notes = FirstAndLast(float("inf"), _MOST_CHARACTERS, _LAST_NOTES)
        self._lock = _thread.RLock()  # the collector may run what logs within any call

    @property
    def missing(self) -> int:
        """How many notes were not sent."""
        return self._notes.left_out + len(self._notes.last)

    def progress(self, _: object, done: float, total: float | None, unit: str, /) -> None:
        self.latest = done, total, unit[:_LONGEST_UNIT]
        self._changed()

    def attach(self, _: object, name: str, data: object, media_type: str | None, /) -> None:
        from asyncflow._policies.attachments import attachment_of  # what calls this has the package

        media_type, content = attachment_of(name, data, media_type)
        self._add("attach", name, content, media_type)

    def log(self, _: object, level: int, logger: str, message: Any, traceback: str = "", /) -> None:
        if not isinstance(message, str):  # an event of structlog
            from asyncflow._policies.log_capture import text_of  # what calls this has the package

            message = text_of(message)
        self._add("log", level, logger, message[:_LONGEST_TEXT], traceback[:_LONGEST_TEXT])

    def printed(self, _: object, stream: str, text: str, /) -> None:
        for at in range(0, len(text), _LONGEST_TEXT):
            self._add("printed", stream, text[at : at + _LONGEST_TEXT])

    def stream(self, _: object, text: str, /) -> None:
        with self._lock:
            self._send(("stream", text))

    def leave_out(self, _: object, count: int, what: str = "record", why: str = "", /) -> None:
        with self._lock:
            if why:
                self._send(("leave_out", count, what, why))
                return
            self._notes.left_out += count
            self._changed()

    def end(self) -> None:
        """Send the last ones, when the attempt has ended."""
        with self._lock:
            while self._notes.last:
                self._send(self._notes.last.popleft())
            self._changed()

    def _add(self, *note: Any) -> None:
        size = sum(len(part) for part in note if isinstance(part, str | bytes))
        with self._lock:
            if self._notes.is_first(note, size):
                self._send(note)
            else:
                self._changed()
