"""A journal in memory, whose disk is as slow as a test wants, and whose process may die."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from asyncflow import JournalError, PayloadError, RunAlreadyActiveError, RunCancelledError
from asyncflow._core.results import Payload
from asyncflow.events import Event

__all__ = ["MemoryBook", "MemoryJournal"]

T = TypeVar("T")


class MemoryJournal:
    """Keeps the events of runs in lists.

    A value is kept as JSON, whatever its type is said to be, if it comes back equal.

    Args:
        latency_s: How long a write takes. What is added meanwhile goes into the next one.
        fail_at: The number of the event that can't be kept, counted from 1 over all runs.
    """

    def __init__(self, *, latency_s: float = 0.0, fail_at: int | None = None) -> None:
        self.kept: dict[str, list[Event]] = {}
        self.open_books: dict[str, MemoryBook] = {}
        self.latency_s = latency_s
        self.fail_at = fail_at
        self.added = 0
        self.hints: dict[str, Any] = {}

    def died_after(self, count: int, run_id: str = "r") -> MemoryJournal:
        """Return what is left if the process has died when so many events of a run were kept."""
        left = MemoryJournal(latency_s=self.latency_s)
        left.kept = {run_id: self.kept[run_id][:count]}
        return left

    def encode(self, subject: str, value: Any, hint: Any) -> Payload:
        self.hints[subject] = hint
        try:
            text = json.dumps(value)
        except TypeError as error:
            raise PayloadError(subject, f"is no JSON: {error}") from error
        if json.loads(text) != value:
            raise PayloadError(subject, "would come back as something else")
        return Payload("json", text.encode())

    def decode(self, subject: str, payload: Payload, hint: Any) -> Any:
        value = json.loads(payload.data)
        if hint in (int, str) and not isinstance(value, hint):
            raise PayloadError(subject, f"is no {hint.__name__} any more")
        return value

    async def open(
        self, run_id: str, *, wait: bool, read: Callable[[Sequence[Event]], T]
    ) -> tuple[MemoryBook, T]:
        await asyncio.sleep(self.latency_s)
        while run_id in self.open_books:
            if not wait:
                raise RunAlreadyActiveError(run_id, "this process")
            await asyncio.sleep(1)
        result = read(tuple(self.kept.get(run_id, ())))
        book = self.open_books[run_id] = MemoryBook(self, run_id)
        return book, result


class MemoryBook:
    """One run's part of it."""

    def __init__(self, journal: MemoryJournal, run_id: str) -> None:
        self._journal = journal
        self._run_id = run_id
        self._loop = asyncio.get_running_loop()
        self._pending: list[Event] = []
        self._writing: asyncio.TimerHandle | None = None
        self._all_kept = asyncio.Event()
        self._all_kept.set()
        self._failed = asyncio.Event()
        self._on_stop: Callable[[JournalError | RunCancelledError], object] | None = None
        self.failure: JournalError | None = None

    def watch(self, on_stop: Callable[[JournalError | RunCancelledError], object]) -> None:
        self._on_stop = on_stop

    def append(self, event: Event) -> None:
        if self.failure is not None:
            return
        self._pending.append(event)
        self._all_kept.clear()
        if self._writing is None:
            self._writing = self._loop.call_later(self._journal.latency_s, self._write)

    def _write(self) -> None:
        self._writing = None
        journal = self._journal
        kept = journal.kept.setdefault(self._run_id, [])
        for event in self._pending:
            journal.added += 1
            if journal.added == journal.fail_at:
                self.fail(JournalError("memory", "the disk is full"))
                return
            kept.append(event)
        self._pending.clear()
        self._all_kept.set()

    def fail(self, failure: JournalError) -> None:
        """Let the journal fail, or the run be lost."""
        if self._writing is not None:
            self._writing.cancel()
        self.failure = failure
        self._failed.set()
        if self._on_stop is not None:
            self._on_stop(failure)

    @property
    def is_watched(self) -> bool:
        """Whether somebody hears of requests."""
        return self._on_stop is not None

    def cancel(self) -> None:
        """Do as when somebody cancels the run through the journal."""
        assert self._on_stop is not None
        self._on_stop(RunCancelledError(self._run_id))

    async def flush(self) -> None:
        await self._all_kept.wait()

    async def close(self) -> None:
        try:
            ends = [asyncio.ensure_future(e.wait()) for e in (self._all_kept, self._failed)]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()
            if self.failure is not None:
                raise self.failure
        finally:
            self._journal.open_books.pop(self._run_id, None)
