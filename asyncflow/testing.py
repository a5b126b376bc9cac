"""Tests in virtual time: an event loop whose clock jumps to the next timer when nothing is ready.

Sleeps and timeouts take no real time, and end in the order and at the times at which they would on
an infinitely fast machine. A test of a pipeline that backs off for hours takes milliseconds and is
deterministic::

    from asyncflow.testing import run_in_virtual_time

    report = run_in_virtual_time(run_pipeline(steps))

With pytest-asyncio, use the loop for every async test, in ``conftest.py``::

    def pytest_asyncio_loop_factories(config, item):
        return {"virtual": VirtualTimeLoop}
"""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from asyncflow._core.errors import HangError
from asyncflow._core.tracebacks import awaiting_location

__all__ = ["HangError", "VirtualTimeLoop", "run_in_virtual_time"]

HangError.__module__ = __name__  # its public home

T = TypeVar("T")

_WAKE_TIMEOUT_S = 5.0
"""How long, in real time, a loop without timers waits for other threads to wake it."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop with a virtual clock that starts at 0.

    When nothing is ready to run, the clock jumps to the next timer. If there is no timer either,
    nothing can ever happen again: the loop raises `HangError`, which names where each task waits.

    The clock stands still while a job runs in an executor of this loop (`asyncio.to_thread`,
    `loop.run_in_executor`), or a step in a thread or process. The loop does not know about other
    threads, processes and sockets: use `standing_still` where code waits for those.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._jobs = 0
        self._default: Any = None
        super().__init__(_JumpingSelector(self._jump))

    def time(self) -> float:
        """Return the virtual time, in seconds since the loop was created."""
        return self._now

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


def run_in_virtual_time(main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
    """Run a coroutine in a `VirtualTimeLoop` and return its result, as `asyncio.run` does.

    Args:
        main: The coroutine.
        debug: Whether the loop is in asyncio's debug mode.

    Raises:
        HangError: The coroutine can never end.
    """
    with asyncio.Runner(loop_factory=VirtualTimeLoop, debug=debug) as runner:
        return runner.run(main)


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
