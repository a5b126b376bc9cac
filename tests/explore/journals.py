"""The journal that the durable runs of a case share, in memory, and when it fails."""

from __future__ import annotations

from typing import Any

from asyncflow import JournalError
from asyncflow._core.history.results import Key, Payload
from asyncflow.events import AttemptFailed, Event, NoteEvent, StepCancelled, StepFailed
from tests.memory_journal import MemoryJournal, MemorySession

__all__ = ["Journal", "stored_text"]


def stored_text(value: object) -> str:
    """Return what is stored of a value: two of different types are never equal."""
    return f"{type(value).__name__} {value!r}"


class Codec:
    """Encodes a value as its type and its `repr`, and returns the first one that had it."""

    def __init__(self) -> None:
        self._values: dict[bytes, Any] = {}

    def encode(self, subject: str, value: Any, hint: Any) -> Payload:
        text = stored_text(value).encode()
        self._values.setdefault(text, value)
        return Payload("repr", text)

    def decode(self, subject: str, payload: Payload, hint: Any) -> Any:
        return self._values[payload.data]


class Session(MemorySession):
    """A session; that of the first run alone may fail."""

    _journal: Journal

    def append_note(self, note: NoteEvent) -> None:
        if self.failure is None:
            self._journal.notes.append((int(self._run_id), note))

    def fail(self, failure: JournalError) -> None:
        super().fail(failure)
        self._all_stored.set()

    async def flush(self) -> None:
        await self._all_stored.wait()
        if self.failure is not None:
            await self._loop.create_future()

    async def close(self) -> None:
        """Close without a task, which would outlive it by a turn."""
        try:
            await self._all_stored.wait()
            if self.failure is not None:
                raise self.failure
        finally:
            self._journal.open_sessions.pop(self._run_id, None)

    def _write(self) -> None:
        journal = self._journal
        self._check_ends(journal)
        added, fail_at = journal.added, journal.fail_at
        if self._run_id != "0":
            journal.fail_at = None
        super()._write()
        if self._run_id != "0":
            journal.added, journal.fail_at = added, fail_at

    def _check_ends(self, journal: Journal) -> None:
        """Check that what calls have returned is stored no later than the end of their attempt."""
        now = {(key, name) for key, name, *_ in self._called}
        stored = journal.called.get(self._run_id, {})
        for event in self._pending:
            if isinstance(event, AttemptFailed | StepFailed | StepCancelled):
                key = event.step, event.item
                for name in journal.returned.get((self._run_id, key), ()):
                    if (key, name) not in now and name not in stored.get(key, {}):
                        journal.broken.append(f"{event} is stored before call {name!r}")


class Journal(MemoryJournal):
    """Stores what all runs of a case share.

    Attributes:
        notes: What the steps have said, each with its run.
        returned: The names of calls that have returned within their attempts, by run and step.
        broken: Which promises were broken.
        logs: The level from which on it stores log records.
    """

    session = Session
    logs: int | None = None
    max_stream_bytes = 2**20

    def __init__(self, fail_at: int | None, logs: int | None) -> None:
        super().__init__(fail_at=fail_at)
        self.checkpoint_codec = Codec()  # type: ignore[assignment]
        self.notes: list[tuple[int, NoteEvent]] = []
        self.logs = logs
        self.returned: dict[tuple[str, Key], list[str]] = {}
        self.broken: list[str] = []

    def must_store(self, run_id: str, key: Key, name: str) -> None:
        """Note that a call has returned."""
        self.returned.setdefault((run_id, key), []).append(name)

    def follow_streamed(self) -> None:
        """Let runs store what their steps stream."""

    def events_of(self, run: int) -> list[Event]:
        """Return what it has stored of a run."""
        return self.stored.get(str(run), [])

    def saved_of(self, run: int) -> dict[Any, Any]:
        """Return the checkpoints that it has of a run, by step and item."""
        saved = self.saved.get(str(run), {})
        return {key: self.checkpoint_codec.decode("", each, Any) for key, each in saved.items()}
