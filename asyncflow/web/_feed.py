"""The feed of a run: reads it for all viewers, says that it has changed, and renders its parts.

Rules:

1. A viewer is told that a run has changed, and no more. It then asks for the parts of the page, and
   says which it has by their digests. So the feed knows nothing of a viewer, and one that reads
   nothing costs no part.
2. What was read is rendered when a viewer asks for it, once for all of them.
3. No task reads. The first viewer whose wait is over reads for the others too, so that without
   viewers nothing is read.
4. The busier a run and the larger its page, the less often it is read. What prevents that is kept
   as long as what was read: viewers of a damaged run must not each read all of it.
5. A run that was deleted, and started anew under its id, is another run.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Generator, Sequence
from contextlib import aclosing, contextmanager, suppress
from typing import Any, NamedTuple, TypeVar

from anyio import CancelScope

from asyncflow._core.errors import RunNotFoundError
from asyncflow._core.history.results import RunStatus
from asyncflow._views.notes import NOTES, RunNotes
from asyncflow._views.run_view import RunView
from asyncflow.events import Event
from asyncflow.html_report._templates import digest_of
from asyncflow.journal._base import SQLJournal
from asyncflow.journal._read.queries import UNENDED, RunRecord, StoredEvent, counts_until
from asyncflow.journal._read.streams import MOST_ROWS, latest_streamed

_SHORTEST_S = 0.3
"""How long to wait between two reads of a run that is running."""
_LONGEST_S = 1.0
"""The same of another one. After that the page of a running run changes because time passes."""
_SHARE = 4
"""At least so many times as long as reading and rendering took."""
_BYTES_A_SECOND = 2_000_000
"""What one viewer receives at most."""
_LAST_S = 2.0
"""How long the feed of an ended run stays, for its viewers to ask for the last parts."""

T = TypeVar("T")

Render = Callable[[RunView, Sequence[Event], RunNotes], dict[str, Any]]
"""Renders the parts of a page, by the ids of their elements: HTML, or what a script reads."""
Prepare = Callable[[RunRecord, Collection[str]], Awaitable[Render]]
"""Reads what the parts say beside the run's own events. It is given the record of the run and the
signals that have come but are not yet received."""


class PagePart(NamedTuple):
    json: bytes
    digest: str

    @classmethod
    def of(cls, value: Any) -> PagePart:
        text = json.dumps(value)
        return cls(text.encode(), digest_of(value if isinstance(value, str) else text))


class PageParts(NamedTuple):
    position: int
    """Of the latest event in them."""
    by_id: dict[str, PagePart]
    has_ended: bool


class RunFeed:
    """The feed of one run. ``prepare`` is awaited before each rendering."""

    def __init__(self, journal: SQLJournal, run_id: str, prepare: Prepare) -> None:
        self._journal = journal
        self._run_id = run_id
        self._prepare = prepare
        self._forget()
        self._recorded_at = self._changed_at = self._due_at = float("-inf")
        self._parts: PageParts | None = None
        self._digests: dict[str, str] = {}
        """Of the parts that were rendered last."""
        self._version = 0
        self._is_gone = False
        self._failure: Exception | None = None
        """Why it could not be read or rendered."""
        # One at a time reads or renders, since both take a while in another thread.
        self._busy = asyncio.Lock()
        self._changed = asyncio.Event()
        self._closed = asyncio.Event()

    def _forget(self) -> None:
        self._view, self._events = RunView(), list[Event]()
        self._notes = RunNotes(with_pictures=False)
        self._applied = self._noted = self._streamed = 0
        """The positions of the latest event, note and streamed values that were read."""
        self._record: RunRecord | None = None
        self._answered: Collection[str] = ()

    def close(self) -> None:
        """End the changes of all viewers."""
        self._closed.set()
        self._changed.set()
        self._failure = None  # it refers to the frames that it came through, and so to this

    # For a viewer.

    async def changes(self) -> AsyncGenerator[None, None]:
        """Yield at first, and then whenever the parts may have changed, until the run has ended."""
        seen = -1
        while not self._closed.is_set():
            # The request for the parts receives the error.
            with suppress(Exception):
                await self._read_if_due()
            if self._version == seen:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(self._due_at):
                        await self._changed.wait()
                continue
            seen = self._version  # before the viewer is told: what changes meanwhile comes next
            yield
            if self._is_gone or self._has_ended:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closed.wait(), _LAST_S)
                return

    async def parts(self, after: int) -> PageParts:
        """Return the parts of the page.

        ``after`` is the position of the latest event that the viewer has seen. Raise what
        prevents the run from being read.
        """
        async with self._busy:
            if self._failure is not None and not self._is_due:
                raise self._failure.with_traceback(None)  # else it grows with each viewer
            if self._record is None or self._failure is not None or after > self._applied:
                await self._read()
            if self._parts is None:
                self._parts = await self._rendered()
            return self._parts

    @property
    def _has_ended(self) -> bool:
        is_over = self._record is not None and self._record.status not in UNENDED
        return is_over and self._view.has_ended and self._failure is None

    # The reading.

    @property
    def _is_due(self) -> bool:
        return asyncio.get_running_loop().time() >= self._due_at

    async def _read_if_due(self) -> None:
        async with self._busy:
            if self._is_due:
                await self._read()

    async def _read(self) -> None:
        now_s = asyncio.get_running_loop().time()
        had_failed, before = self._failure is not None, self._read_so_far()
        try:
            await self._read_on(now_s)
            self._failure = None
        except Exception as error:
            self._failure, self._is_gone = error, isinstance(error, RunNotFoundError)
            raise
        finally:
            is_running = self._record is not None and self._record.status is RunStatus.RUNNING
            has_aged = is_running and now_s - self._changed_at >= _LONGEST_S
            # Also if the viewer that reads leaves meanwhile: the others are told.
            is_changed = before != self._read_so_far()
            if is_changed or has_aged or had_failed is (self._failure is None):
                self._parts = None
                self._version += 1
                self._changed_at = now_s
                self._changed.set()
                self._changed = asyncio.Event()
            self._wait(_SHORTEST_S if is_running else _LONGEST_S, now_s)

    def _read_so_far(self) -> tuple[object, ...]:
        positions = self._applied, self._noted, self._streamed
        return (*positions, self._record, self._answered)

    async def _read_on(self, now_s: float) -> None:
        """Read the new events and notes, and the record."""
        stored, noted = await self._new()
        is_due = self._record is None or now_s - self._recorded_at >= _LONGEST_S
        if stored or noted or is_due:
            record = await self._journal.record(self._run_id)
            if self._record is not None and record.started_at != self._record.started_at:
                self._forget()
                stored, noted = await self._new()
            # An answer is no event of a run before a process takes it up.
            is_waiting = record.status is RunStatus.WAITING
            found = await self._journal.summaries([record]) if is_waiting else {}
            self._answered = found[self._run_id].answered if is_waiting else ()
            self._record, self._recorded_at = record, now_s
        known = self._streamed
        streamed = await latest_streamed(self._journal, self._run_id, after=self._streamed)

        def apply() -> None:
            for each in stored:
                self._view.apply(each.event)
                self._events.append(each.event)
                self._applied = each.position
            for each in noted:
                assert isinstance(each.event, NOTES)
                self._notes.apply(each.event, each.position)
            values = [each.event for each in streamed]
            self._notes.apply_streamed(values, is_all=len(values) < MOST_ROWS)
            # They share one count, and are stored in its order. So what was read of either kind
            # bounds where the next reading of the other begins, which then passes over nothing.
            self._noted = max([known, self._noted, *(each.position for each in noted[-1:])])
            self._streamed = max([self._noted, *(each.position for each in streamed[-1:])])

        if stored or noted or streamed:
            await self._in_thread(apply)

    async def _new(self) -> tuple[Sequence[StoredEvent], Sequence[StoredEvent]]:
        """Return the events and the notes that were not read before."""
        stored = await self._journal.events(self._run_id, self._applied)
        return stored, await self._journal.notes(self._run_id, after=self._noted)

    async def _rendered(self) -> PageParts:
        began_s = asyncio.get_running_loop().time()
        assert self._record is not None  # it was read
        try:
            render = await self._prepare(self._record, self._answered)

            def made() -> dict[str, PagePart]:
                found = render(self._view, self._events, self._notes)
                return {name: PagePart.of(value) for name, value in found.items()}

            parts = await self._in_thread(made)
        except Exception as error:
            self._failure = error
            self._wait(_SHORTEST_S, began_s)
            raise
        sent = sum(len(e.json) for name, e in parts.items() if self._digests.get(name) != e.digest)
        self._digests = {name: each.digest for name, each in parts.items()}
        self._wait(sent / _BYTES_A_SECOND, began_s)
        return PageParts(self._applied, parts, self._has_ended)

    def _wait(self, pause_s: float, began_s: float) -> None:
        """Read again after a pause, or later if what began at a time took long."""
        now_s = asyncio.get_running_loop().time()
        self._due_at = max(self._due_at, now_s + max(pause_s, _SHARE * (now_s - began_s)))

    async def _in_thread(self, function: Callable[[], T]) -> T:
        running = asyncio.ensure_future(asyncio.to_thread(function))
        # Not even a viewer that leaves stops it halfway: the others have the same view.
        with CancelScope(shield=True):
            await asyncio.wait([running])
        try:
            return running.result()
        except Exception:
            # It may have applied a part. So the next read begins with the first event; and a run
            # that can't be replayed says so in the journal's words.
            self._forget()
            await self._journal.events(self._run_id)
            raise


def now_of(view: RunView, record: RunRecord) -> float:
    """Return the moment of a run to show; see `counts_until`."""
    return view.ms_at(counts_until(record, time.time()))


class RunFeeds:
    """The feeds of the runs that have viewers, each of which serves all viewers of its run."""

    def __init__(self, journal: SQLJournal) -> None:
        self._journal = journal
        self._feeds: dict[str, RunFeed] = {}
        self._users: dict[str, int] = {}
        self._is_closed = False

    def has(self, run_id: str) -> bool:
        return run_id in self._feeds

    async def changes(self, run_id: str, prepare: Prepare) -> AsyncGenerator[None, None]:
        with self._used(run_id, prepare) as feed:
            async with aclosing(feed.changes()) as changes:
                async for _ in changes:
                    yield

    async def parts(self, run_id: str, prepare: Prepare, after: int) -> PageParts:
        with self._used(run_id, prepare) as feed:
            return await feed.parts(after)

    @contextmanager
    def _used(self, run_id: str, prepare: Prepare) -> Generator[RunFeed, None, None]:
        feed = self._feeds.get(run_id)
        if feed is None:
            feed = self._feeds[run_id] = RunFeed(self._journal, run_id, prepare)
            if self._is_closed:
                feed.close()
        self._users[run_id] = self._users.get(run_id, 0) + 1
        try:
            yield feed
        finally:
            self._users[run_id] -= 1
            if not self._users[run_id]:
                del self._users[run_id]
                self._feeds.pop(run_id).close()

    def close(self) -> None:
        """End the changes of all viewers, now and from now on."""
        self._is_closed = True
        for feed in self._feeds.values():
            feed.close()
