"""The thread that renders runs: event loops only append their events to a buffer.

Rules:

1. An observer never waits for the terminal and never raises.
2. The thread lives from the start of the first run to the end of the last. It also ends when a run
   disappears without a `RunFinished`, and before the interpreter exits.
3. If rendering fails, nothing more is drawn and the runs continue.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from functools import partial
from typing import Protocol

from asyncflow.events import Event, RunFinished

_log = logging.getLogger("asyncflow")

_PAUSE_FACTOR = 250
"""The pause between two draws is at least this many times the CPU time of one."""
_LONGEST_PAUSE_S = 1.0
_EXIT_TIMEOUT_S = 1.0
"""How long the end of a run waits for the thread to end."""


class EventBuffer:
    """The events of one run, on their way from its observer to the thread."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque()
        self.is_open = True

    def drain(self) -> list[Event]:
        return [self.events.popleft() for _ in range(len(self.events))]


class Renderer(Protocol):
    """What draws runs. The thread calls all methods but `begin` and `run_ended`."""

    pause_s: float
    """The minimum pause between two draws."""
    has_shown_end: bool
    """Whether the end of a run stays on the screen."""

    def begin(self) -> None:
        """Prepare; called once, when the first run starts."""

    def run_ended(self, buffer: EventBuffer, *, is_last: bool) -> None:
        """Note that a run ended, after its last event; `is_last` if no other is running."""

    def take(self, buffers: Sequence[EventBuffer]) -> None:
        """Drain the buffers of all runs, including those that ended since the last draw."""

    def draw(self) -> None:
        """Draw the current state."""

    def end(self) -> None:
        """Restore everything; called after the last draw."""

    def abort(self) -> None:
        """Restore everything after rendering failed."""


class RenderThread:
    """Makes the observer of each run, and keeps a thread while there are runs.

    ``make_renderer`` is called whenever a thread starts.
    """

    def __init__(self, make_renderer: Callable[[], Renderer]) -> None:
        self._make_renderer = make_renderer
        self._lock = threading.RLock()  # the garbage collector may end a run anywhere
        self._wake = threading.Event()
        self._buffers: list[EventBuffer] = []
        self._thread: threading.Thread | None = None
        self._renderer: Renderer | None = None
        self._is_closing = False
        self._at_exit = partial(self.close, _EXIT_TIMEOUT_S)

    def observer(self, *, waits: bool) -> Callable[[Event], None]:
        """Return the observer of a run that starts.

        ``waits`` says whether the end of the last run waits for the thread to end.
        """
        buffer = EventBuffer()
        while not self._add(buffer):
            self._join(None)
        end = self._end_and_wait if waits else self._end

        def observe(event: Event) -> None:
            if buffer.is_open:
                buffer.events.append(event)
                if type(event) is RunFinished:
                    end(buffer)

        weakref.finalize(observe, self._end, buffer).atexit = False
        return observe

    def close(self, timeout_s: float | None = None) -> None:
        """End the thread, even if runs are still running."""
        with self._lock:
            for buffer in self._buffers:
                self._end(buffer)
        self._wake.set()
        self._join(timeout_s)

    def _add(self, buffer: EventBuffer) -> bool:
        with self._lock:
            if self._is_closing:
                return False
            if self._renderer is None:
                self._start()
            self._buffers.append(buffer)
        return True

    def _start(self) -> None:
        renderer = self._make_renderer()
        thread = threading.Thread(
            target=self._render, args=(renderer,), name="asyncflow:live", daemon=True
        )
        renderer.begin()
        try:
            Context().run(thread.start)  # it may inherit that, and outlive the run it starts in
        except BaseException:  # the process has too many threads
            renderer.abort()
            raise
        self._thread, self._renderer = thread, renderer
        atexit.register(self._at_exit)

    def _end(self, buffer: EventBuffer) -> bool:
        """Record that a run ended; return whether it was the last one."""
        with self._lock:
            if not buffer.is_open:
                return False
            buffer.is_open = False
            is_last = not any(each.is_open for each in self._buffers)
            assert self._renderer is not None  # it lives as long as a buffer is open
            self._renderer.run_ended(buffer, is_last=is_last)
        if is_last:
            self._wake.set()
        return is_last

    def _end_and_wait(self, buffer: EventBuffer) -> None:
        if self._end(buffer):
            self._join(_EXIT_TIMEOUT_S)

    def _join(self, timeout_s: float | None) -> None:
        if self._thread is not None:
            self._thread.join(timeout_s)

    # In the thread.

    def _render(self, renderer: Renderer) -> None:
        failure: Exception | None = None
        try:
            pause_s = renderer.pause_s
            while not self._is_closing:
                self._wake.wait(pause_s)
                self._wake.clear()
                with self._lock:
                    buffers = self._buffers
                    self._buffers = [buffer for buffer in buffers if buffer.is_open]
                    self._is_closing = not self._buffers
                renderer.take(buffers)
                began_s = time.thread_time()
                renderer.draw()
                spent_s = time.thread_time() - began_s
                pause_s = min(max(renderer.pause_s, spent_s * _PAUSE_FACTOR), _LONGEST_PAUSE_S)
            renderer.end()
        except Exception as error:
            failure = error
            renderer.abort()
        finally:
            self._reset()
        if failure is not None and not isinstance(failure, OSError):
            _log.error("the live view failed and draws no more", exc_info=failure)

    def _reset(self) -> None:
        atexit.unregister(self._at_exit)
        with self._lock:
            for buffer in self._buffers:
                buffer.is_open = False
                buffer.events.clear()
            self._buffers, self._renderer, self._is_closing = [], None, False
