"""A thread that does a journal's work, one job after the other.

It is an executor, so that ``loop.run_in_executor`` waits for its jobs, and it differs from that of
the standard library in three ways: it does something of its own at set times, also while no loop
gets to run; it never keeps the interpreter alive; and it starts when it gets its first job.
"""

from __future__ import annotations

import concurrent.futures
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from asyncflow._core.errors import JournalError

__all__ = ["Thread"]

T = TypeVar("T")

_Job = tuple[concurrent.futures.Future[Any], Callable[..., Any], tuple[Any, ...]]


class Thread(concurrent.futures.Executor):
    """One thread.

    Args:
        name: Its name.
        journal: What errors call the journal.
        routine: Called between jobs. It returns after how many seconds it wants to be called
            again, or ``None`` if only after the next job. It must not raise.
    """

    def __init__(self, name: str, journal: str, routine: Callable[[], float | None]) -> None:
        self._name = name
        self._journal = journal
        self._routine = routine
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended = False
        self._process = os.getpid()

    @property
    def has_started(self) -> bool:
        """Whether it has been given a job, and this is not a fork of its process."""
        return self._thread is not None and self._process == os.getpid()

    def submit(
        self, fn: Callable[..., T], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[T]:
        """Let the thread call something, after all that it was given before.

        Raises:
            JournalError: The thread was told to end, or can't start, or this is a fork of its
                process.
        """
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        with self._lock:
            if self._ended:
                raise JournalError(self._journal, "it is closed: make another one to go on")
            if self._process != os.getpid():
                raise JournalError(
                    self._journal, "it belongs to the parent of this process: open it anew"
                )
            if self._thread is None:
                self._thread = self._started()
            self._jobs.put((future, fn, args))
        return future

    def end(self, last: Callable[[], object]) -> None:
        """Let the thread call something after all that it was given, and then end."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            if self.has_started:
                self._jobs.put((concurrent.futures.Future(), last, ()))
                self._jobs.put(None)

    def join(self) -> None:
        """Wait until the thread has ended, which it was told to."""
        if self._thread and self.has_started:
            self._thread.join()

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise JournalError(
                self._journal,
                f"its thread can't be started ({error}), so nothing was read or written: this "
                "process, or its machine, has too many of them",
            ) from error
        return thread

    def _work(self) -> None:
        pause: float | None = None
        while True:
            try:
                job = self._jobs.get(timeout=pause)
            except queue.Empty:
                pass
            else:
                if job is None:
                    return
                _do(*job)
                del job  # what it has returned belongs to others
            pause = self._routine()


def _do(
    future: concurrent.futures.Future[Any], fn: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = fn(*args)
    except BaseException as error:
        future.set_exception(error)
        del future  # the error refers to this frame, and so to it
    else:
        future.set_result(result)
