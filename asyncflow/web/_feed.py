"""The feed of a run: reads it from its journal once for all viewers.

Rules:

1. Updates are not queued: a viewer receives the difference between the parts of the page as they
   are and the version that it has seen.
2. A part knows at which event it changed last, and a viewer that has seen the page at that event
   or later has it. A part that may change without an event, because a step says something, time
   passes or a process dies, is sent again; so are the actions, which a page does not have when it
   is loaded.
3. The busier a run and the larger its page, the less often the parts are rendered.
4. All viewers share the bytes of a part. A viewer costs no more memory if the page is larger.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import aclosing, contextmanager
from contextvars import Context
from typing import NamedTuple

from asyncflow._core.errors import JournalError, RunNotFoundError
from asyncflow._core.results import RunStatus
from asyncflow._views.notes import NOTES, RunNotes
from asyncflow._views.run_view import RunView
from asyncflow.events import Event
from asyncflow.journal._base import SQLJournal
from asyncflow.journal._queries import UNENDED, RunRecord, StoredEvent

ACTIONS = "live"
"""The part that has the actions on the run."""

_SHORTEST_S = 0.3
"""How long to wait between two reads of a run in which something happens."""
_LONGEST_S = 1.0
"""The same if nothing happens; then the parts are rendered again because time passes."""
_SHARE = 4
"""At least so many times as long as the rendering took."""
_BYTES_A_SECOND = 2_000_000
"""What one viewer receives at most."""

_log = logging.getLogger("asyncflow")

Render = Callable[[RunView, Sequence[Event], RunNotes, RunRecord, float], dict[str, bytes]]
"""Renders the parts of a page at a time, in ms since the run started, by the ids of elements. They
are JSON."""


Prepare = Callable[[], Awaitable[object]]


class Update(NamedTuple):
    position: int
    sections: dict[str, bytes]
    """What has changed, as JSON, by the id of its element."""
    trouble: str | None
    """Why the run can't be read at present; ``None`` if it can."""
    end: str | None
    """Why nothing follows: ``"ended"``, ``"gone"``, or ``"reload"`` if it is another run now."""


class _Part(NamedTuple):
    json: bytes
    version: int
    position: float


class RunFeed:
    """The updates of one run. It reads the run as long as there are viewers.

    ``render`` renders the parts of its page. ``prepare`` is awaited before that, to read what they
    need of other runs.
    """

    def __init__(
        self, journal: SQLJournal, run_id: str, render: Render, prepare: Prepare | None = None
    ) -> None:
        self._journal = journal
        self._run_id = run_id
        self._render = render
        self._prepare = prepare
        self._view = RunView()
        self._events: list[Event] = []
        self._notes = RunNotes(with_pictures=False)
        self._noted = 0
        """The position of the latest note that was read."""
        self._applied = 0
        """The position of the latest event in the view."""
        self._position = 0
        """The same of the parts, which another thread renders from the view."""
        self._record: RunRecord | None = None
        self._recorded_at = self._rendered_at = float("-inf")
        self._parts: dict[str, _Part] = {}
        self._version = 0
        self._trouble: str | None = None
        self._reads_begun = self._reads_ended = 0
        self._is_rendered = True
        self._is_gone = self._is_closed = False
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._viewers = 0

    @contextmanager
    def _watched(self) -> Generator[None, None, None]:
        self._viewers += 1
        if self._task is None:
            # The task has a context of its own, not that of the first viewer's request.
            self._task = asyncio.create_task(
                self._watch(), name=f"asyncflow:watch:{self._run_id}", context=Context()
            )
        try:
            yield
        finally:
            self._viewers -= 1
            if not self._viewers:
                self._task.cancel()
                self._task = None

    @property
    def is_watched(self) -> bool:
        return self._viewers > 0

    def close(self) -> None:
        """End the updates of all viewers."""
        self._is_closed = True
        self._changed.set()

    # For a viewer.

    async def updates(self, after: int) -> AsyncGenerator[Update, None]:
        """Yield what changes, until the run has ended.

        ``after`` is the position of the latest event that the viewer has seen.
        """
        with self._watched():
            seen, trouble, reads_before = 0, None, self._reads_begun
            while not self._is_closed:
                changed = self._changed
                if after > self._position > 0 and self._reads_ended <= reads_before:
                    # What was read for other viewers is older than the page of this one.
                    await changed.wait()
                    continue
                if self._is_gone or after > self._position > 0:
                    yield Update(after, {}, None, "gone" if self._is_gone else "reload")
                    return
                has_ended = self._has_ended
                sections = self._since(seen, after)
                if sections or self._trouble != trouble or has_ended:
                    update = Update(
                        self._position, sections, self._trouble, "ended" if has_ended else None
                    )
                    # Before the viewer receives it: what changes meanwhile comes next.
                    seen, trouble = self._version, self._trouble
                    yield update
                    if has_ended:
                        return
                else:
                    await changed.wait()

    def _since(self, seen: int, after: int) -> dict[str, bytes]:
        return {
            name: part.json
            for name, part in self._parts.items()
            if part.version > seen and (seen or part.position > after or name == ACTIONS)
        }

    @property
    def _has_ended(self) -> bool:
        record = self._record
        is_over = record is not None and record.status not in UNENDED
        return is_over and self._view.has_ended and not self._trouble

    # The reading.

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began_at, before = loop.time(), (self._position, self._noted)
            size = 0
            self._reads_begun += 1
            try:
                size = await self._read()
                self._trouble = None
            except RunNotFoundError:
                self._is_gone = True
            except JournalError as error:
                self._trouble = str(error)
            except Exception as error:  # or the viewers would wait forever
                _log.exception("run %r can't be shown", self._run_id)
                self._trouble = f"{type(error).__name__}: {error}"
            self._reads_ended = self._reads_begun
            self._changed.set()
            self._changed = asyncio.Event()
            if self._is_gone:
                return
            is_busy = (self._position, self._noted) != before
            pause_s = _SHORTEST_S if is_busy else _LONGEST_S
            took_s = loop.time() - began_at
            await asyncio.sleep(max(pause_s, _SHARE * took_s, size / _BYTES_A_SECOND))

    async def _read(self) -> int:
        """Read new events and render the parts; return how many bytes of these have changed."""
        now_s = asyncio.get_running_loop().time()
        stored = await self._journal.events(self._run_id, self._applied)
        noted = await self._journal.notes(self._run_id, after=self._noted)
        record = self._record
        if stored or record is None or now_s - self._recorded_at >= _LONGEST_S:
            record = await self._journal.record(self._run_id)
            self._recorded_at = now_s
        is_running = record.status is RunStatus.RUNNING
        is_due = is_running and now_s - self._rendered_at >= _LONGEST_S
        is_same = not stored and not noted and record == self._record
        if is_same and not is_due and self._is_rendered:
            return 0
        is_by_events = bool(stored) and not noted and self._position > 0 and self._is_rendered
        self._is_rendered = False
        if self._prepare is not None:
            await self._prepare()
        try:
            made = await asyncio.to_thread(self._render_new, stored, noted, record)
        except Exception:
            # It may have applied a part. So the next read begins with the first event; and a run
            # that can't be replayed says so in the journal's words.
            self._view, self._events, self._applied = RunView(), [], 0
            self._notes, self._noted = RunNotes(with_pictures=False), 0
            await self._journal.events(self._run_id)
            raise
        self._record, self._rendered_at, self._is_rendered = record, now_s, True
        self._position = self._applied
        return self._take(made, self._position if is_by_events else math.inf)

    def _render_new(
        self, stored: Sequence[StoredEvent], noted: Sequence[StoredEvent], record: RunRecord
    ) -> dict[str, bytes]:
        """Apply the events and render the parts; this may take a while, so in another thread."""
        for each in stored:
            self._view.apply(each.event)
            self._events.append(each.event)
            self._applied = each.position
        for each in noted:
            assert isinstance(each.event, NOTES)
            self._notes.apply(each.event, each.position)
            self._noted = each.position
        now_ms = now_of(self._view, record)
        return self._render(self._view, self._events, self._notes, record, now_ms)

    def _take(self, made: dict[str, bytes], position: float) -> int:
        version, size = self._version + 1, 0
        for name, json in made.items():
            part = self._parts.get(name)
            if part is None or part.json != json:
                self._parts[name] = _Part(json, version, position)
                self._version = version
                size += len(json)
        return size


def now_of(view: RunView, record: RunRecord) -> float:
    """Return the moment of a run to show: the present, or of an orphaned run its latest event."""
    return view.at_ms if record.status is RunStatus.ORPHANED else view.ms_at(time.time())


class RunFeeds:
    def __init__(self, journal: SQLJournal) -> None:
        self._journal = journal
        self._feeds: dict[str, RunFeed] = {}
        self._is_closed = False

    def has(self, run_id: str) -> bool:
        return run_id in self._feeds

    async def updates(
        self, run_id: str, after: int, render: Render, prepare: Prepare | None = None
    ) -> AsyncGenerator[Update, None]:
        if self._is_closed:
            return
        feed = self._feeds.get(run_id)
        if feed is None:
            feed = self._feeds[run_id] = RunFeed(self._journal, run_id, render, prepare)
        try:
            async with aclosing(feed.updates(after)) as updates:
                async for update in updates:
                    yield update
        finally:
            if not feed.is_watched:
                self._feeds.pop(run_id, None)

    def close(self) -> None:
        """End the updates of all viewers, now and from now on."""
        self._is_closed = True
        for feed in self._feeds.values():
            feed.close()
