"""An event loop in which time passes only when there is nothing left to do.

Sleeps and timeouts take no real time and end in exactly the order and at exactly the times at
which they would on an infinitely fast machine. So a test of a pipeline that backs off for hours
takes milliseconds and always gives the same result::

    from asyncflow.testing import run_in_virtual_time

    report = run_in_virtual_time(run_pipeline(steps))

With pytest-asyncio, give the loop to every async test, in ``conftest.py``::

    def pytest_asyncio_loop_factories(config, item):
        return {"virtual": VirtualTimeLoop}
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import selectors
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from asyncflow._core.errors import HangError
from asyncflow._core.tracebacks import awaiting_location

__all__ = ["HangError", "VirtualTimeLoop", "run_in_virtual_time"]

HangError.__module__ = __name__  # where users know it from

T = TypeVar("T")

_PATIENCE_S = 5.0
"""How long, in real time, other threads may take to wake a loop that waits for nothing else."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop with a virtual clock, which starts at 0.

    When nothing is ready to run, the clock jumps to the next timer. When there is no timer
    either, so that nothing can ever happen again, the loop raises `HangError`, which names what
    each task waits for.

    While a job runs in an executor of this loop (`asyncio.to_thread`, `loop.run_in_executor`), or
    a step in a thread or process, the clock stands still. It does not know of other threads, of
    other processes and of sockets: say so with `standing_still` where code waits for those.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._jobs = 0
        self._default: Any = None
        super().__init__(_JumpingSelector(self._jump))

    def time(self) -> float:
        """Return the virtual time, in seconds since the loop was made."""
        return self._now

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Let the clock stand still while a ``with`` block waits for something from elsewhere.

        That may be a thread, a process or a socket: what the loop can't know of::

            with asyncio.get_running_loop().standing_still():
                await anyio.to_thread.run_sync(work)

        Meanwhile no timer of this loop fires, in no task, and `HangError` is not raised: the
        loop waits, in real time, for as long as it takes.
        """
        self._jobs += 1
        try:
            yield
        finally:
            self._jobs -= 1

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Run a function in an executor; the clock stands still until it has returned.

        So it does if the future is cancelled meanwhile: that stops no function that has begun.
        """
        if executor is None:
            if self._default is None:
                self.set_default_executor(ThreadPoolExecutor(thread_name_prefix="asyncio"))
            executor = self._default
        future = super().run_in_executor(_Noted(executor, self._note_job), func, *args)
        # Beside the job, which ends a little before its result is here.
        self._jobs += 1
        future.add_done_callback(self._end_job)
        return future

    def set_default_executor(self, executor: Any) -> None:
        """Set what runs the functions for which no executor is named."""
        super().set_default_executor(executor)
        self._default = executor

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait, in real time, until the default executor's threads have ended."""
        with self.standing_still():
            await super().shutdown_default_executor()

    def _note_job(self, job: concurrent.futures.Future[Any]) -> None:
        self._jobs += 1
        job.add_done_callback(self._end_job_soon)

    def _end_job_soon(self, job: concurrent.futures.Future[Any]) -> None:
        with suppress(RuntimeError):  # the loop was closed: its clock is of no use any more
            self.call_soon_threadsafe(self._end_job, job)

    def _end_job(self, _: object) -> None:
        self._jobs -= 1

    def _jump(self, timeout: float | None, select: _Select) -> _Events:
        """Do what a selector does, but let the clock jump where that one would wait."""
        events = select(0)
        if events or timeout == 0:
            return events
        if self._jobs:
            return select(None)
        if timeout is not None:
            self._now += timeout
            return events
        if _others_may_wake_us():
            events = select(_PATIENCE_S)
        if not events:
            raise HangError(_waiting(self))
        return events


def run_in_virtual_time(main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
    """Run a coroutine as `asyncio.run` does, in a `VirtualTimeLoop`, and return its result.

    Args:
        main: What to run.
        debug: Whether the loop is in asyncio's debug mode.

    Raises:
        HangError: The coroutine can never end.
    """
    with asyncio.Runner(loop_factory=VirtualTimeLoop, debug=debug) as runner:
        return runner.run(main)


class _Noted(concurrent.futures.Executor):
    """An executor of which somebody notes what it is given."""

    def __init__(
        self, executor: Any, note: Callable[[concurrent.futures.Future[Any]], object]
    ) -> None:
        self._executor = executor
        self._note = note

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[Any]:
        job: concurrent.futures.Future[Any] = self._executor.submit(fn, *args, **kwargs)
        self._note(job)
        return job


_Events = list[tuple[selectors.SelectorKey, int]]
_Select = Callable[[float | None], _Events]


class _JumpingSelector(selectors.DefaultSelector):
    """The platform's selector, with its waiting done by somebody else."""

    def __init__(self, jump: Callable[[float | None, _Select], _Events]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> _Events:
        return self._jump(timeout, super().select)


def _others_may_wake_us() -> bool:
    """Whether there is another thread, other than those of ours that wake no such loop."""
    ours = threading.current_thread()
    return any(
        thread is not ours and thread.name not in _OUR_THREADS for thread in threading.enumerate()
    )


_OUR_THREADS = ("asyncflow loop monitor", "asyncflow journal")
"""The one of `_monitor` may be left from an earlier run. That of a journal wakes a loop only with
the result of a job, and of those the loop knows."""


def _waiting(loop: asyncio.AbstractEventLoop) -> list[str]:
    return sorted(
        f"{task.get_name()} at {awaiting_location(task.get_coro())}"
        for task in asyncio.all_tasks(loop)
    )
