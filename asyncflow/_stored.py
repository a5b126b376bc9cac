"""A journal that keeps its runs in an SQL database: all that the databases have in common.

It has two threads, each with a connection of its own. One writes, and claims runs; the other one
reads, which may take long, so that no step of a run waits for that.
"""

from __future__ import annotations

import asyncio
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, TypeVar

from asyncflow._archive import Archive, RunRecord, RunStatus, StoredEvent
from asyncflow._asked import check_new_id, check_status, check_text, seconds_of
from asyncflow._book import Book, Desk, PassedBook
from asyncflow._clerk import Clerk, Holding, Opening
from asyncflow._codec import CODECS, Codec
from asyncflow._errors import JournalError, RunAlreadyActiveError, nearest
from asyncflow._numbers import check_count, check_number
from asyncflow._owner import is_dead, this_owner, this_process
from asyncflow._payload import Payload
from asyncflow._report import RunReport
from asyncflow._rows import column_of
from asyncflow._store import Claim, Store
from asyncflow._thread import Thread
from asyncflow.events import Event

__all__ = ["SQLJournal"]

T = TypeVar("T")
Self = TypeVar("Self", bound="SQLJournal")

_EVENTS_AT_ONCE = 2_000
"""How many events, or runs without any, are deleted in one transaction, in some milliseconds."""

_THREAD = "asyncflow journal"
"""What both threads are called: `asyncflow.testing` knows them by that."""

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 1.0
"""How long to wait before another owner of a run is asked for again."""


class SQLJournal:
    """The journal of one database.

    Args:
        store: The database.
        second: The same one by another connection, for reading; ``None`` if there can't be such.
    """

    def __init__(
        self,
        store: Store,
        second: Store | None,
        *,
        codec: str,
        max_payload_bytes: int,
        lease_s: float,
        owner: str | None,
    ) -> None:
        if codec not in CODECS:
            known = " or ".join(map(repr, CODECS))
            raise ValueError(f"codec must be {known}, not {codec!r}{nearest(codec, CODECS)}")
        check_number("max_payload_bytes", max_payload_bytes, 1)
        self._name = store.database.name
        self._codec = Codec(codec, max_payload_bytes)
        self._store = store
        self._claim = Claim(owner or this_owner(), this_process(), lease_s, is_dead)
        self._clerk = Clerk(self._store, self._claim)
        self._thread = Thread(_THREAD, self._name, self._clerk.renew)
        self._archive = Archive(second or store, self._codec)
        self._reader = Thread(_THREAD, self._name, lambda: None) if second else self._thread
        self._lock = threading.Lock()
        self._desks: weakref.WeakValueDictionary[asyncio.AbstractEventLoop, Desk] = (
            weakref.WeakValueDictionary()
        )
        self._closed = False

    # --- for a run ------------------------------------------------------------------------------

    async def open(
        self, run_id: str, *, wait: bool, read: Callable[[Sequence[Event]], T]
    ) -> tuple[Book | PassedBook, T]:
        """Become the only owner of a run, and read what is kept of it. A run calls this.

        One that has passed, and so can't go on, is read also while somebody else owns it.

        Args:
            run_id: The run.
            wait: Whether to wait until another owner is gone.
            read: Called once with its events, none if it is new, in a thread of the journal.

        Raises:
            RunAlreadyActiveError: Another one owns it, and is not waited for.
            JournalError: The journal can't be read or written.
            TypeError: The id is no text.
            ValueError: No database would take it.
        """
        check_new_id(run_id)
        pause = _FIRST_WAIT_S
        while True:
            try:
                return await self._open(run_id, read)
            except RunAlreadyActiveError as active:
                passed = await self._ask(self._archive.passed, run_id)
                if not passed and not wait:
                    raise
                book = PassedBook(active.run_id, active.owner)
            if passed:
                return book, await self._ask(read, passed)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_WAIT_S)

    async def _open(self, run_id: str, read: Callable[[Sequence[Event]], T]) -> tuple[Book, T]:
        loop, opening = asyncio.get_running_loop(), Opening(self._clerk)
        try:
            # Only when the claim is committed it is sure what there is to read.
            holding = await loop.run_in_executor(self._thread, opening.claim, run_id, loop)
            # What is new does not wait until others have been read.
            thread = self._reader if holding.kept else self._thread
            answer = await loop.run_in_executor(thread, self._read, holding, read)
            return Book(self._desk_of(loop), holding), answer
        except (asyncio.CancelledError, GeneratorExit):
            opening.abandon(self._thread)
            raise
        except BaseException:
            if opening.holding:
                with suppress(JournalError):  # the journal is closed, and has given it up
                    await loop.run_in_executor(self._thread, opening.give_back)
            raise

    def _read(self, holding: Holding, read: Callable[[Sequence[Event]], T]) -> T:
        return read(self._archive.past(holding.run_id, holding.kept) if holding.kept else [])

    def encode(self, subject: str, value: Any, hint: Any) -> Payload:
        """Turn a value into bytes. A run calls this.

        Args:
            subject: What the value is, for the error: "the output of step 'load'".
            value: The value.
            hint: Its type; `Any` if nobody knows.

        Raises:
            PayloadError: It would not come back equal, or it is too large.
        """
        return self._codec.encode(subject, value, hint)

    def decode(self, subject: str, payload: Payload, hint: Any) -> Any:
        """Turn bytes into the value again. A run calls this.

        Args:
            subject: What the value is, for the error.
            payload: The bytes.
            hint: The value's type; `Any` if nobody knows.

        Raises:
            PayloadError: They are not such a value, or this journal doesn't read pickles.
        """
        return self._codec.decode(subject, payload, hint)

    def _desk_of(self, loop: asyncio.AbstractEventLoop) -> Desk:
        with self._lock:
            desk = self._desks.get(loop)
            if desk is None:
                desk = self._desks[loop] = Desk(loop, self._thread, self._clerk)
            return desk

    # --- for people -----------------------------------------------------------------------------

    async def runs(
        self,
        status: RunStatus | None = None,
        pipeline: str | None = None,
        since: datetime | float | None = None,
        limit: int | None = 100,
    ) -> list[RunRecord]:
        """Return the runs that are kept, those that began last first.

        Args:
            status: Only those with this status.
            pipeline: Only those of the pipeline of this name.
            since: Only those that began then or later: a datetime, naive for local time, or
                seconds since the epoch.
            limit: Only so many; ``None`` for all.

        Raises:
            TypeError: One of them is of another type.
            ValueError: There is no such status, time or number.
            JournalError: The journal can't be read.
        """
        check_status(status)
        if since is not None:
            since = seconds_of(since)
        if pipeline is not None:
            check_text("pipeline", pipeline)
            pipeline = column_of(pipeline)
        if limit is not None:
            check_count("limit", limit, 0)
        return await self._ask(
            self._archive.runs, status=status, pipeline=pipeline, since=since, limit=limit
        )

    async def orphans(self) -> list[RunRecord]:
        """Return the runs that have not ended and that nobody runs, those that began last first.

        Their process is provably dead, or has not renewed its lease, or has left them when the
        journal failed. Start them again under their id, and they go on where they were.

        Raises:
            JournalError: The journal can't be read.
        """
        return await self._ask(self._archive.orphans)

    async def events(self, run_id: str, after: int = 0) -> list[StoredEvent]:
        """Return the events of a run in their order.

        Outputs and inputs are what JSON makes of them without a type hint. In place of a secret
        one, and of a pickled one unless the journal has ``codec="cloudpickle"``, stands a
        `RestoredOutput`.

        Args:
            run_id: The run.
            after: Only those whose position is greater.

        Raises:
            RunNotFoundError: There is no such run.
            JournalError: The journal can't be read.
        """
        check_text("run_id", run_id)
        check_count("after", after, 0)
        return await self._ask(self._archive.events, run_id, after)

    async def report(self, run_id: str) -> RunReport:
        """Return the report of a run; of one that has not ended, what is known so far.

        Outputs are what JSON makes of them without a type hint. In place of a secret one, and of a
        pickled one unless the journal has ``codec="cloudpickle"``, stands a `RestoredOutput`.

        Args:
            run_id: The run.

        Raises:
            RunNotFoundError: There is no such run.
            JournalError: The journal can't be read.
        """
        check_text("run_id", run_id)
        return await self._ask(self._archive.report, run_id)

    async def prune(self, older_than: timedelta | float, *, status: RunStatus | None = None) -> int:
        """Delete runs that have ended and return how many; never one that is active.

        Runs that write meanwhile do not wait for long: it takes several transactions.

        Args:
            older_than: Only those that ended longer ago: a timedelta, or seconds.
            status: Only those with this status, which can't be ``"running"``.

        Raises:
            ValueError: No run that has ended has such a status, or the age is negative.
            JournalError: The journal can't be read or written.
        """
        check_status(status)
        if status == "running":
            raise ValueError(
                "prune() deletes runs that have ended, so status can't be 'running'; forget() "
                "deletes one of those that orphans() returns"
            )
        if isinstance(older_than, timedelta):
            older_than = older_than.total_seconds()
        check_number("older_than", older_than, 0, kind="a timedelta or a number", unit=" s")
        found = await self._ask(self._archive.store.ended, older_than, status)
        count = 0
        for some in _portions(found):
            count += await self._do(self._store.prune, some, older_than)
        return count

    async def forget(self, run_id: str) -> None:
        """Delete a run that nobody runs, whatever has become of it.

        Args:
            run_id: The run. The id may be used again, for a new one.

        Raises:
            RunNotFoundError: There is no such run.
            RunAlreadyActiveError: Somebody runs it.
            JournalError: The journal can't be read or written.
        """
        check_text("run_id", run_id)
        await self._ask(self._archive.must_know, run_id)
        await self._do(self._store.forget, run_id, self._claim)

    # --- its life -------------------------------------------------------------------------------

    async def __aenter__(self: Self) -> Self:
        try:
            await self._do(self._store.runs, limit=0)  # whatever is wrong shows now
        except BaseException:
            await self.aclose()  # `__aexit__` is not called
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Commit what is under way and disconnect. Runs that are still going on fail."""
        loop, archived = asyncio.get_running_loop(), self._archive.store.database
        try:
            # They may have to wait for the disk. What is read may give back a claim.
            if self._reader.has_started and not self._closed:
                await loop.run_in_executor(self._reader, archived.close)
            if self._thread.has_started and not self._closed:
                await loop.run_in_executor(self._thread, self._clerk.close)
        finally:
            self.close()

    def close(self) -> None:
        """Do as `aclose` does, and let the calling thread wait for it."""
        self._end()
        self._reader.join()
        self._thread.join()

    def _end(self) -> None:
        self._closed = True
        self._thread.end(self._clerk.close)
        self._reader.end(self._archive.store.database.close)

    def __del__(self) -> None:
        # Without the attribute, its construction has failed.
        if not getattr(self, "_closed", True):
            self._end()
            if self._thread.has_started or self._reader.has_started:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    async def _do(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Have the thread call something that writes."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: call(*args, **kwargs))

    async def _ask(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Have the other thread call something that reads."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reader, lambda: call(*args, **kwargs))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"


def _portions(found: Iterable[tuple[str, int]]) -> Iterator[list[str]]:
    """Divide runs, each with the number of its events, into what one transaction may delete."""
    some: list[str] = []
    size = 0
    for run_id, events in found:
        # One that has more of them is alone.
        if some and size + events > _EVENTS_AT_ONCE:
            yield some
            some, size = [], 0
        some.append(run_id)
        size += events + 1
    if some:
        yield some
