"""A journal in memory with a configurable latency, whose process can die after any event."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from asyncflow import (
    JournalError,
    PayloadError,
    RunAlreadyActiveError,
    RunCancelledError,
    RunNotFoundError,
)
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.results import Key, Payload
from asyncflow._core.running.checkpoints import StoredCall
from asyncflow._core.running.step_cache import CachedResult
from asyncflow.events import Event, StepSucceeded

__all__ = ["MemoryJournal", "MemorySession"]

T = TypeVar("T")
Success: TypeAlias = tuple[str, str, int | None]
"""The run, step and item of a success."""


class JSONCodec:
    """Encodes a value as JSON, whatever its type hint, if it comes back equal."""

    def encode(self, subject: str, value: Any, hint: Any) -> Payload:
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


class MemoryJournal:
    """Stores the events of runs in lists.

    A value is stored as JSON, whatever its type hint, if it comes back equal.

    Args:
        latency_s: How many seconds a write takes. It includes the events appended meanwhile.
        fail_at: The number of the event whose write fails, counted from 1 over all runs.
    """

    checkpoint_codec = JSONCodec()
    session: type[MemorySession]
    """The class of its sessions."""

    def __init__(self, *, latency_s: float = 0.0, fail_at: int | None = None) -> None:
        self.stored: dict[str, list[Event]] = {}
        self.saved: dict[str, dict[Key, Payload]] = {}
        """The checkpoints of each run."""
        self.called: dict[str, dict[Key, dict[str, StoredCall]]] = {}
        """What the calls of each run have returned, by name."""
        self._called_after: dict[str, list[tuple[int, dict[Key, dict[str, StoredCall]]]]] = {}
        self._saved_after: dict[str, list[tuple[int, dict[Key, Payload]]]] = {}
        """The same after so many events, whenever they have changed."""
        self.keys: dict[tuple[str, str], str] = {}
        """The run that had each key last."""
        self.results: dict[str, tuple[float, CachedResult]] = {}
        """What steps with ``cache_ms`` may reuse, each with when it was stored."""
        self._results_after: dict[str, list[tuple[int, str, Success]]] = {}
        """After how many events of a run each of its results was there, its key and whose it is."""
        self.reusable: set[Success] = set()
        """The successes that others may reuse, also if they are stale."""
        self.asked: list[str] = []
        """The keys that were asked for."""
        self.open_sessions: dict[str, MemorySession] = {}
        self.latency_s = latency_s
        self.fail_at = fail_at
        self.added = 0
        self.hints: dict[str, Any] = {}

    def died_after(self, count: int, run_id: str = "r") -> MemoryJournal:
        """Return the journal that a process leaves if it dies after so many events of a run."""
        left = type(self)(latency_s=self.latency_s)
        left.stored = {run_id: self.stored[run_id][:count]}
        for events, saved in self._saved_after.get(run_id, ()):
            if events <= count:
                left.saved[run_id] = saved
        for events, called in self._called_after.get(run_id, ()):
            if events <= count:
                left.called[run_id] = called
        for events, key, success in self._results_after.get(run_id, ()):
            if events <= count:
                left.results[key] = self.results[key]
                left.reusable.add(success)
        return left

    def encode(self, subject: str, value: Any, hint: Any) -> Payload:
        self.hints[subject] = hint
        return self.checkpoint_codec.encode(subject, value, hint)

    def decode(self, subject: str, payload: Payload, hint: Any) -> Any:
        return self.checkpoint_codec.decode(subject, payload, hint)

    async def cached(self, key: str, age_ms: float, /) -> CachedResult | None:
        self.asked.append(key)
        await asyncio.sleep(self.latency_s)
        stored_s, result = self.results.get(key, (-math.inf, None))
        is_fresh = asyncio.get_running_loop().time() - stored_s <= age_ms / 1000
        return result if is_fresh else None

    async def open(
        self,
        run_id: str,
        *,
        wait: bool,
        read: Callable[[StoredRun], T],
        key: tuple[str, str] | None = None,
    ) -> tuple[MemorySession, T]:
        await asyncio.sleep(self.latency_s)
        while run_id in self.open_sessions:
            if not wait:
                raise RunAlreadyActiveError(run_id, "this process")
            await asyncio.sleep(1)
        if key is not None:
            before = self.keys.setdefault(key, run_id)
            if before != run_id and before in self.open_sessions:
                raise RunAlreadyActiveError(before, "this process", "wait", key=key[1])
            self.keys[key] = run_id
        stored = StoredRun.with_log(self.stored.get(run_id, ()))
        stored.journal.checkpoints = dict(self.saved.get(run_id, {}))
        stored.journal.calls = {key: {*names} for key, names in self.called.get(run_id, {}).items()}
        result = read(stored)
        session = self.open_sessions[run_id] = self.session(self, run_id)
        return session, result

    async def replay(self, run_id: str, read: Callable[[StoredRun], T]) -> T:
        await asyncio.sleep(self.latency_s)
        if run_id not in self.stored:
            raise RunNotFoundError(run_id, "memory")
        return read(StoredRun.with_log(self.stored[run_id]))


class MemorySession:
    """The journal's session for one run."""

    def __init__(self, journal: MemoryJournal, run_id: str) -> None:
        self._journal = journal
        self._run_id = run_id
        self._loop = asyncio.get_running_loop()
        self._pending: list[Event] = []
        self._saved: dict[Key, Payload | None] = {}
        self._called: list[tuple[Key, str, StoredCall, asyncio.Future[None]]] = []
        self._results: dict[str, tuple[CachedResult, Success, asyncio.Future[None]]] = {}
        self._writing: asyncio.TimerHandle | None = None
        self._all_stored = asyncio.Event()
        self._all_stored.set()
        self._failed = asyncio.Event()
        self._on_stop: Callable[[JournalError | RunCancelledError], object] | None = None
        self.failure: JournalError | None = None

    def watch(self, on_stop: Callable[[JournalError | RunCancelledError], object]) -> None:
        self._on_stop = on_stop

    def append(self, event: Event) -> None:
        if self.failure is None:
            self._pending.append(event)
            self._write_soon()

    def append_checkpoint(self, step: str, item: int | None, payload: Payload | None) -> None:
        if self.failure is None:
            self._saved[step, item] = payload
            self._write_soon()

    def append_call(
        self, step: str, item: int | None, name: str, stored: StoredCall
    ) -> asyncio.Future[None]:
        waiter: asyncio.Future[None] = self._loop.create_future()
        if self.failure is not None:
            waiter.set_exception(JournalError("memory", "the call was not stored"))
        else:
            self._called.append(((step, item), name, stored, waiter))
            self._write_soon()
        return waiter

    async def load_call(self, step: str, item: int | None, name: str) -> StoredCall | None:
        await asyncio.sleep(self._journal.latency_s)
        return self._journal.called[self._run_id].get((step, item), {}).get(name)

    def append_cached(self, key: str, attempts: int, duration_ms: float) -> asyncio.Future[None]:
        stored: asyncio.Future[None] = self._loop.create_future()
        if self.failure is not None:
            return stored
        # An observer may have ended the run since.
        success = next(each for each in reversed(self._pending) if isinstance(each, StepSucceeded))
        result = CachedResult(self._run_id, attempts, duration_ms, success.output)
        self._results[key] = result, (self._run_id, success.step, success.item), stored
        return stored

    def _write_soon(self) -> None:
        self._all_stored.clear()
        if self._writing is None:
            self._writing = self._loop.call_later(self._journal.latency_s, self._write)

    def _write(self) -> None:
        self._writing = None
        journal = self._journal
        stored = journal.stored.setdefault(self._run_id, [])
        for event in self._pending:
            journal.added += 1
            if journal.added == journal.fail_at:
                self.fail(JournalError("memory", "the disk is full"))
                return
            stored.append(event)
        self._pending.clear()
        if self._called or self._saved:
            self._write_calls(journal, len(stored))
        if self._saved:
            changed = {**journal.saved.get(self._run_id, {}), **self._saved}
            saved = {key: each for key, each in changed.items() if each is not None}
            journal.saved[self._run_id] = saved
            journal._saved_after.setdefault(self._run_id, []).append((len(stored), saved))
            self._saved.clear()
        for key, (result, success, is_stored) in self._results.items():
            journal.results[key] = self._loop.time(), result
            results_after = journal._results_after.setdefault(self._run_id, [])
            results_after.append((len(stored), key, success))
            journal.reusable.add(success)
            is_stored.set_result(None)
        self._results.clear()
        self._all_stored.set()

    def _write_calls(self, journal: MemoryJournal, events: int) -> None:
        before = journal.called.get(self._run_id, {})
        called = {key: dict(calls) for key, calls in before.items()}
        for key, name, stored, waiter in self._called:
            called.setdefault(key, {})[name] = stored
            if not waiter.done():
                waiter.set_result(None)
        self._called.clear()
        for key, saved in self._saved.items():
            if saved is None:
                called.pop(key, None)
        journal.called[self._run_id] = called
        journal._called_after.setdefault(self._run_id, []).append((events, called))

    def fail(self, failure: JournalError) -> None:
        """Let the journal fail, or the run lose its lease."""
        if self._writing is not None:
            self._writing.cancel()
        self.failure = failure
        for _, name, _, waiter in self._called:
            if not waiter.done():
                waiter.set_exception(JournalError("memory", f"call {name!r} was not stored"))
        self._called.clear()
        self._failed.set()
        if self._on_stop is not None:
            self._on_stop(failure)

    @property
    def is_watched(self) -> bool:
        """Whether the run receives cancel requests."""
        return self._on_stop is not None

    def cancel(self) -> None:
        """Deliver a request to cancel the run through the journal."""
        assert self._on_stop is not None
        self._on_stop(RunCancelledError(self._run_id))

    async def flush(self) -> None:
        await self._all_stored.wait()

    async def close(self) -> None:
        try:
            ends = [asyncio.ensure_future(e.wait()) for e in (self._all_stored, self._failed)]
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for end in ends:
                    end.cancel()
            if self.failure is not None:
                raise self.failure
        finally:
            self._journal.open_sessions.pop(self._run_id, None)


MemoryJournal.session = MemorySession
