"""Reports a task that blocks an event loop, by sampling the loop from a thread.

Rules:

1. While a loop runs a task, a ping is in its queue, which the loop answers when it gets there. As
   long as it does not, and each look finds the same task, that task blocks the loop: a task can't
   have its turn twice while a ping waits.
2. A thread costs more than a short run, and one that starts later misses what blocks at once. So a
   longer run ends the thread and joins it. A shorter run leaves it to the next one, and it ends
   by itself at most one tick after the last run.
3. A task that waits while other threads compute does not block. Of such a time, only what it has
   computed itself counts. What an observer does in it does not count either.
4. A C function may hold the interpreter, so that the thread can't look. Then the thread wakes too
   late, and if the loop's thread has computed meanwhile, its task has blocked.
5. Without a GIL there is no monitor: the frames of a thread that runs can't be read there
   (gh-152355).
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import Context
from functools import partial
from types import CodeType, FrameType
from typing import Any, TypeAlias
from weakref import ref

from asyncflow._core.tracebacks import user_location
from asyncflow._kernel.asyncio_compat import has_virtual_time
from asyncflow._kernel.policy import Policy
from asyncflow._kernel.run_scope import Parts
from asyncflow.events import LoopBlocked

_log = logging.getLogger("asyncflow")

OnBlock: TypeAlias = Callable[[asyncio.Task[Any] | None, float, str], object]
"""Called with the task, the milliseconds for which it blocked, and the line at which it did."""

NOT_THE_TASK: set[CodeType] = set()
"""What is called from here is not the task's own doing: a policy that calls observers says so."""

_BLOCK_S = 0.1
"""A shorter block is not reported."""
_TICK_S = _BLOCK_S / 4 + 0.0005
"""How long the thread sleeps between two looks: the fifth look at the same task is a block."""
_LONG_S = 0.05
"""A run of this length ends the thread, which costs less than a hundredth of it."""
_IDLE = 0.02
"""A thread that computes for less than this part of the time is in a call that blocks."""
_BUSY = 0.25
"""If other threads compute for this part of the time for which a thread waits, it waits for them.
They need not compute all the time: on a loaded machine they wait too, for other processes."""
_SUSPENDED_S = 1.0
"""A process that has not computed for this long, although it should have, was stopped."""


class Watch:
    """Has what blocks a loop reported to a callable, until `stop`."""

    __slots__ = ("__weakref__", "_since", "loop", "on_block")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_block: OnBlock) -> None:
        self.loop = loop
        self.on_block = on_block
        self._since = time.monotonic()

    def stop(self) -> None:
        """Report nothing more. After the last run, unless it was short, the thread has ended."""
        _monitor.remove(self, ends_the_thread=time.monotonic() - self._since > _LONG_S)


def has_gil() -> bool:
    """Whether one thread at a time runs Python code, as everywhere before Python 3.13."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


class _NoWatch(Watch):
    __slots__ = ()

    def stop(self) -> None:
        pass


def watch(loop: asyncio.AbstractEventLoop, on_block: OnBlock) -> Watch:
    """Report each task that blocks a loop for longer than 100 ms, once the loop responds again.

    It reports any task, also one that the caller has not made. It reports nothing if the loop's
    clock is virtual: its pauses mean nothing. It reports nothing without a GIL either.

    ``on_block`` is called in the loop's thread with the task, the milliseconds, and the line, as
    ``file:line in function``. The task is ``None`` for an observer that a run calls in it, and for
    a plain callback, which is reported only if it follows a task in the same turn of the loop. The
    caller stops the watch; dropping it has the same effect later.
    """
    if has_virtual_time(loop) or not has_gil():
        return _NoWatch(loop, on_block)
    handle = Watch(loop, on_block)
    _monitor.add(handle)
    return handle


class LoopBlocks(Policy):
    """The policy of every run: it reports a step that keeps the loop from doing anything else."""

    def __init__(self, parts: Parts) -> None:
        self._scope = parts.scope
        self._dispatcher = parts.dispatcher
        self._watchdog = parts.stop_control.watchdog

    def on_watch(self) -> Callable[[], object]:
        return watch(self._scope.loop, self._report).stop

    def _report(self, task: asyncio.Task[Any] | None, blocked_ms: float, where: str) -> None:
        running, scope = self._watchdog.attempt_of(task), self._scope
        if running is None:
            return
        name, attempt, item = running.step, running.attempt, running.item
        step = scope.plan.steps[scope.plan.index[name]]
        if step.runs_in != "loop" or step.remote is not None:
            return  # what runs elsewhere only waits in its task, which others may hold up
        if scope.state.step_runs.find(name, item) is not None:  # else the item was forgotten
            now_ms = scope.run_context.now_ms()
            self._dispatcher.emit(LoopBlocked(name, attempt, now_ms, blocked_ms, where, item))
        _log.warning(
            "step %r, attempt %d, blocked the event loop for %.0f ms at %s; let it await, "
            'or make it a plain function with runs_in="thread"',
            *(name, attempt, blocked_ms, where),
        )


class _Ping:
    """A callback in the queue of a loop. If it waits there for too long, the loop is blocked."""

    __slots__ = ("blamed", "since", "task", "until", "where")

    def __init__(self, task: asyncio.Task[Any] | None, since: float) -> None:
        self.task = task
        """The task that was running at each look."""
        self.blamed: asyncio.Task[Any] | None = None
        """That task, unless an observer runs in it."""
        self.since = since
        """Since when it has blocked, without the time for which other threads held it up."""
        self.until: float | None = None
        """When the block was first seen to be over."""
        self.where: str | None = None
        """The line at which it blocks; ``None`` until it has blocked for long."""


class _WatchedLoop:
    """One loop: the monitor's thread calls `look`, its own thread `_answer`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, watches: set[ref[Watch]]) -> None:
        self.loop = loop
        self.watches = watches
        """Weak references, so that a run that never ends is not kept alive."""
        self.thread = threading.get_ident()
        self._cpu_s = _cpu_clock()
        self._worked_s = self._cpu_s()
        self._all_worked_s = time.process_time()
        self._ping: _Ping | None = None

    def is_watched(self) -> bool:
        return not self.loop.is_closed() and any(each() is not None for each in self.watches)

    def look(self, slept_s: float) -> None:
        now = time.monotonic()
        task = asyncio.current_task(self.loop)
        worked_s, held_up_s = self._since_the_last_look(slept_s)
        ping = self._ping
        if ping is not None and ping.where is not None and ping.task is not task:
            ping.until = now
            ping = self._ping = None  # another task may block in the same turn
        if ping is None:
            if task is not None:
                held_s = slept_s - _TICK_S
                is_held = held_s >= _BLOCK_S and worked_s >= _BLOCK_S
                self._send(task, now - held_s if is_held else time.monotonic(), is_held)
        elif ping.where is not None:
            pass  # it is found, and still blocks
        elif ping.task is not task or (slept_s > _SUSPENDED_S and worked_s < 0.1 * slept_s):
            ping.task, ping.since = task, time.monotonic()
        else:
            ping.since += held_up_s
            if now - ping.since >= _BLOCK_S:
                self._find(ping)

    def _since_the_last_look(self, slept_s: float) -> tuple[float, float]:
        """Return how long the loop's thread has computed, and how long others held it up.

        A thread that has computed nothing was not held up: it was in a call that blocks. But if
        this thread was kept from looking too, another one has held the interpreter.
        """
        before_s, self._worked_s = self._worked_s, self._cpu_s()
        all_before_s, self._all_worked_s = self._all_worked_s, time.process_time()
        worked_s = self._worked_s - before_s
        others_s = self._all_worked_s - all_before_s - worked_s
        waited_s = max(0.0, slept_s - worked_s)
        if worked_s < slept_s * _IDLE and slept_s < _BLOCK_S:
            return worked_s, 0.0
        return worked_s, waited_s if others_s > waited_s * _BUSY else 0.0

    def _send(self, task: asyncio.Task[Any], since: float, has_blocked: bool) -> None:
        ping = self._ping = _Ping(task, since)
        if has_blocked:
            self._find(ping)
        self.loop.call_soon_threadsafe(self._answer, ping)

    def _find(self, ping: _Ping) -> None:
        frames = list(_frames(self.thread))
        if not any(frame.f_code in NOT_THE_TASK for frame in frames):
            ping.blamed = ping.task
        ping.where = user_location(frames)  # last: with it, `_answer` may report the block

    def _answer(self, ping: _Ping) -> None:
        if self._ping is ping:
            self._ping = None
        if ping.where is not None:
            blocked_ms = ((ping.until or time.monotonic()) - ping.since) * 1000
            for each in list(self.watches):
                handle = each()
                if handle is not None:
                    handle.on_block(ping.blamed, blocked_ms, ping.where)


class _Monitor:
    """The watched loops of this process, and the thread that looks at them."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew: in the child of a fork, the thread and the holder of the lock are gone."""
        self._lock = threading.Lock()
        self._loops: dict[asyncio.AbstractEventLoop, _WatchedLoop] = {}
        self._thread: threading.Thread | None = None
        self._end = threading.Event()

    def add(self, handle: Watch) -> None:
        with self._lock:
            watched = self._loops.get(handle.loop)
            if watched is None or watched.thread != threading.get_ident():
                known = set() if watched is None else watched.watches
                watched = self._loops[handle.loop] = _WatchedLoop(handle.loop, known)
            watched.watches.add(ref(handle))
            if self._thread is None:
                self._start_thread()

    def remove(self, handle: Watch, *, ends_the_thread: bool) -> None:
        with self._lock:
            watched = self._loops.get(handle.loop)
            if watched is not None:  # else the loop was closed, or this is the child of a fork
                watched.watches.discard(ref(handle))
            # The thread forgets the loop at its next look, unless another run has begun by then.
            if (self._thread is not None and not ends_the_thread) or self._watched():
                return
            thread = self._release_thread()
        if thread is not None:
            thread.join()

    def pause(self) -> None:
        """End the thread before a fork, which is not safe beside a second thread."""
        with self._lock:
            thread = self._release_thread()
        if thread is not None:
            thread.join()

    def resume(self) -> None:
        """Start the thread again after a fork, when a loop that needs it has its next turn."""
        with self._lock:
            watched = self._watched()
        for each in watched:
            with suppress(RuntimeError):  # it has been closed just now
                each.loop.call_soon_threadsafe(self._begin_again)

    def _begin_again(self) -> None:
        with self._lock:
            if self._thread is None and self._watched():
                self._start_thread()

    def _watched(self) -> list[_WatchedLoop]:
        """Forget the loops that are no longer watched, and return the others."""
        for loop, watched in list(self._loops.items()):
            if not watched.is_watched():
                del self._loops[loop]
        return list(self._loops.values())

    def _start_thread(self) -> None:
        self._end = threading.Event()
        # Not a daemon: those may crash the interpreter while it ends.
        self._thread = threading.Thread(
            target=self._run, args=(self._end,), name="asyncflow loop monitor"
        )
        try:
            Context().run(self._thread.start)  # it may inherit that: no attempt's
        except RuntimeError:  # the process may have no more threads: its runs continue without
            self._thread = None

    def _release_thread(self) -> threading.Thread | None:
        """Let the thread end, and return it to be joined."""
        thread, self._thread = self._thread, None
        self._end.set()
        return thread

    def _run(self, end: threading.Event) -> None:
        last, main = time.monotonic(), threading.main_thread()
        # The interpreter waits for us when it ends, so we ask whether the main thread has.
        while not end.wait(_TICK_S) and main.is_alive():
            slept_s, last = time.monotonic() - last, time.monotonic()
            with self._lock:
                watched = self._watched()
                if not watched and not end.is_set():
                    self._thread = None
                    return
            for each in watched:
                self._look(each, slept_s)

    def _look(self, watched: _WatchedLoop, slept_s: float) -> None:
        try:
            watched.look(slept_s)
        except (RuntimeError, OSError):  # the loop was closed, its thread has ended
            with self._lock:
                self._loops.pop(watched.loop, None)


_monitor = _Monitor()
if hasattr(os, "register_at_fork"):  # pragma: no branch
    os.register_at_fork(
        before=_monitor.pause, after_in_parent=_monitor.resume, after_in_child=_monitor.forget
    )


def _cpu_clock() -> Callable[[], float]:
    """Return a clock of the seconds that this thread has computed; elsewhere, the process.

    Made in the thread itself: asking for the clock of a thread that has ended may crash.
    """
    if sys.platform == "linux":
        return partial(time.clock_gettime, time.pthread_getcpuclockid(threading.get_ident()))
    return time.process_time  # pragma: no cover


def _frames(thread: int) -> Iterator[FrameType]:
    """The frames of a thread, the innermost first."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        yield frame
        frame = frame.f_back
