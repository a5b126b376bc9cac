"""An event loop whose clock jumps to the next timer when nothing is ready.

Rules:

1. Sleeps and timeouts take no real time, and end in the order and at the times at which they would
   on an infinitely fast machine.
2. Threads and processes run for real. The clock stands still while one works for the loop.
3. A seed changes which of several ready tasks runs first, and which of several timers that are due.
   That order depends on networks and clocks elsewhere. Callbacks keep theirs, before and after
   tasks too: asyncio promises it, and code relies on it.
"""

from __future__ import annotations

import asyncio
import heapq
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from random import Random
from typing import Any, TypeVar

from asyncflow._core.errors import HangError
from asyncflow._core.tracebacks import awaiting_location

T = TypeVar("T")

_STARTS_AT_S = 1_000.0
"""Not 0, where code that takes a moment for a duration, or adds where it must subtract, is right by
chance."""
_WAKE_TIMEOUT_S = 5.0
"""How long, in real time, a loop without timers waits for other threads to wake it."""


def checked_seed(seed: object) -> int:
    """Return what a user gives as a seed."""
    if not isinstance(seed, int):
        raise TypeError(f"seed must be an int, not {type(seed).__name__}")
    return seed


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop with a virtual clock, which starts at 1,000 seconds.

    When nothing is ready to run, the clock jumps to the next timer. If there is no timer either,
    nothing can ever happen again: the loop raises `HangError`, which names where each task waits.

    The clock stands still while a job runs in an executor of this loop (`asyncio.to_thread`,
    ``loop.run_in_executor``), or a step in a thread or process. The loop does not know about other
    threads, processes and sockets: use `standing_still` where code waits for those.

    Args:
        seed: Makes tasks that are ready at the same time, and timers that are due at the same time,
            run in a random order; the same seed always makes the same order. Without a seed, the
            one that was ready, or set, first runs first.

    Raises:
        TypeError: The seed is no integer.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._now, self._made_at = _STARTS_AT_S, time.time()
        self._random: Random | None = None
        self._jobs = 0
        self._default: Any = None
        super().__init__(_JumpingSelector(self._jump))
        if seed is not None:
            try:
                self._random = Random(checked_seed(seed))
            except TypeError:
                self.close()
                raise

    def time(self) -> float:
        """Return the virtual time in seconds, which is 1,000 when the loop is made."""
        return self._now

    def wall_time(self) -> float:
        """Return the seconds since the epoch: those when the loop was made, and virtual ones since.

        Runs take their wall-clock times from it.
        """
        return self._made_at + self._now - _STARTS_AT_S

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Stop the clock while a ``with`` block waits for a thread, a process or a socket.

        The loop can't know about those::

            with asyncio.get_running_loop().standing_still():
                await anyio.to_thread.run_sync(work)

        Meanwhile no timer of this loop fires in any task, and `HangError` is not raised: the loop
        waits in real time, without a limit.
        """
        self._jobs += 1
        try:
            yield
        finally:
            self._jobs -= 1

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Run a function in an executor; the clock stands still until the function returns.

        Cancelling the future does not change that: it does not stop a function that is running.
        """
        if executor is None:
            if self._default is None:
                self.set_default_executor(ThreadPoolExecutor(thread_name_prefix="asyncio"))
            executor = self._default
        future = super().run_in_executor(_WatchedExecutor(executor, self._watch_job), func, *args)
        # Counted apart from the job, which ends a little before its result arrives.
        self._jobs += 1
        future.add_done_callback(self._end_job)
        return future

    def set_default_executor(self, executor: Any) -> None:
        """Set the executor of functions for which none is given."""
        super().set_default_executor(executor)
        self._default = executor

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait in real time for the threads of the default executor to end."""
        with self.standing_still():
            await super().shutdown_default_executor()

    def _watch_job(self, job: Future[Any]) -> None:
        self._jobs += 1
        job.add_done_callback(self._end_job_soon)

    def _end_job_soon(self, job: Future[Any]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self.call_soon_threadsafe(self._end_job, job)

    def _end_job(self, _: object) -> None:
        self._jobs -= 1

    def _jump(self, timeout: float | None, select: _Select) -> _Events:
        """Do what a selector does, but advance the clock where a selector would wait."""
        events = self._wait(timeout, select)
        if self._random is not None:
            shuffle(self, self._random)
        return events

    def _wait(self, timeout: float | None, select: _Select) -> _Events:
        events = select(0)
        if events or timeout == 0:
            return events
        if self._jobs:
            return select(None)
        if timeout is not None:
            self._now += timeout
            return events
        if _another_thread_may_wake_us():
            events = select(_WAKE_TIMEOUT_S)
        if not events:
            raise HangError(_waiting(self))
        return events


def run_in_virtual_time(
    main: Coroutine[Any, Any, T], *, seed: int | None = None, debug: bool | None = None
) -> T:
    """Run a coroutine in a `VirtualTimeLoop` and return its result, as `asyncio.run` does.

    Args:
        main: The coroutine.
        seed: Makes what is ready at the same time run in a random order; see `VirtualTimeLoop`.
        debug: Whether the loop is in asyncio's debug mode.

    Raises:
        HangError: The coroutine can never end.
        TypeError: An argument has the wrong type.
    """
    if not asyncio.iscoroutine(main):
        raise TypeError(f"main must be a coroutine, not {type(main).__name__}")
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(seed), debug=debug) as runner:
        return runner.run(main)


def shuffle(loop: Any, chance: Random) -> None:
    """Put the ready tasks of a loop, and its due timers, in a random order.

    A selector calls it when the loop's clock shows the time of this turn. The timers that are due
    then become ready, after what was ready before.

    ``chance`` decides about the order.
    """
    ready, timers = loop._ready, loop._scheduled
    for neighbours in _ready_tasks(ready) if len(ready) > 1 else ():
        if len(neighbours) < 2:
            continue
        handles = [ready[at] for at in neighbours]
        chance.shuffle(handles)
        for at, handle in zip(neighbours, handles, strict=True):
            ready[at] = handle
    due: list[Any] = []
    ends = loop.time() + loop._clock_resolution
    while timers and timers[0].when() < ends:  # as `asyncio.BaseEventLoop._run_once` does then
        timer = heapq.heappop(timers)
        timer._scheduled = False
        due.append(timer)
    if due:
        chance.shuffle(due)
        ready.extend(due)


def _ready_tasks(ready: deque[Any]) -> Iterator[list[int]]:
    """Yield the positions of tasks that are ready one after the other, without a callback between.

    A callback that was ready after a task may rely on that.
    """
    neighbours: list[int] = []
    # By position: other threads append meanwhile (`call_soon_threadsafe`), and an iterator over a
    # deque fails then. Only the loop's own thread removes, so that each handle keeps its position.
    for at in range(len(ready)):
        if isinstance(getattr(ready[at]._callback, "__self__", None), asyncio.Task):
            neighbours.append(at)
        elif neighbours:
            yield neighbours
            neighbours = []
    if neighbours:
        yield neighbours


class _WatchedExecutor(Executor):
    """An executor that reports each job."""

    def __init__(self, executor: Any, watch: Callable[[Future[Any]], object]) -> None:
        self._executor = executor
        self._watch = watch

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        job: Future[Any] = self._executor.submit(fn, *args, **kwargs)
        self._watch(job)
        return job


_Events = list[tuple[selectors.SelectorKey, int]]
_Select = Callable[[float | None], _Events]


class _JumpingSelector(selectors.DefaultSelector):
    """The platform's selector, with a callback that does the waiting."""

    def __init__(self, jump: Callable[[float | None, _Select], _Events]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> _Events:
        return self._jump(timeout, super().select)


def _another_thread_may_wake_us() -> bool:
    current = threading.current_thread()
    return any(
        thread is not current and thread.name not in _SILENT_THREADS
        for thread in threading.enumerate()
    )


_SILENT_THREADS = ("asyncflow loop monitor", "asyncflow journal")
"""They wake no loop by themselves. The loop monitor may be left from an earlier run; a journal only
returns the results of jobs, which the loop knows about."""


def _waiting(loop: asyncio.AbstractEventLoop) -> list[str]:
    return sorted(
        f"{task.get_name()} at {awaiting_location(task.get_coro())}"
        for task in asyncio.all_tasks(loop)
    )
