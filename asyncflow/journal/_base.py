"""What people ask a journal of its runs, and what they have it do with them.

A journal that keeps its runs in an SQL database: all that the databases have in common.

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

from asyncflow._core.arguments import check_count, check_number
from asyncflow._core.errors import JournalError, RunAlreadyActiveError, did_you_mean
from asyncflow._core.report import RunReport
from asyncflow._core.results import Payload
from asyncflow.events import Event
from asyncflow.journal._event_codec import is_storable
from asyncflow.journal._payload_codec import CODECS, Codec
from asyncflow.journal._queries import (
    ListedStatus,
    RunFilter,
    RunRecord,
    RunStatus,
    StoredEvent,
    check_new_id,
    check_text,
    parse_status,
)
from asyncflow.journal._reader import JournalReader
from asyncflow.journal._session import CommitQueue, FinishedSession, SQLSession
from asyncflow.journal._store import Claim, Store
from asyncflow.journal._worker import (
    JournalWorker,
    Lease,
    PendingClaim,
    Thread,
    is_dead,
    this_owner,
    this_process,
)

__all__ = [
    "Inquiries",
    "SQLJournal",
]

T = TypeVar("T")

_EVENTS_AT_ONCE = 2_000
"""How many events, or runs without any, are deleted in one transaction, in some milliseconds."""


class Inquiries:
    """The layer of a journal that people use.

    Args:
        store: What writes.
        claim: How this journal claims runs.
        clerk: What the thread that writes works with.
        thread: That thread.
        archive: What reads.
        reader: The thread that reads.
    """

    def __init__(
        self,
        store: Store,
        claim: Claim,
        clerk: JournalWorker,
        thread: Thread,
        archive: JournalReader,
        reader: Thread,
    ) -> None:
        self._store = store
        self._claim = claim
        self._clerk = clerk
        self._thread = thread
        self._archive = archive
        self._reader = reader

    async def runs(
        self,
        status: ListedStatus | None = None,
        pipeline: str | None = None,
        since: datetime | float | None = None,
        limit: int | None = 100,
        *,
        before: datetime | float | tuple[float, str] | None = None,
        text: str | None = None,
        orphaned: bool | None = None,
    ) -> list[RunRecord]:
        """Return the runs that are kept, those that began last first.

        Args:
            status: Only those with this status, in small letters or in large ones. Those that are
                orphaned are ``"running"`` too, as `RunRecord.status` says; ``"orphaned"`` is
                short for ``orphaned=True``.
            pipeline: Only those of the pipeline of this name.
            since: Only those that began then or later: a datetime, naive for local time, or
                seconds since the epoch.
            limit: Only so many; ``None`` for all.
            before: Only those that began before that time; or with the `RunRecord.place` of the
                last run of a page, those of the next page.
            text: Only those with this text in their id or the name of their pipeline, in small
                letters or in large ones, up to 1,000 characters.
            orphaned: Only those that are `RunRecord.orphaned`, or with False, only the others.

        Raises:
            TypeError: One of them is of another type.
            ValueError: There is no such status, time or number.
            JournalError: The journal can't be read.
        """
        where = RunFilter(
            status, pipeline, since, limit, before=before, text=text, orphaned=orphaned
        )
        return await self._ask(self._archive.runs, where)

    async def record(self, run_id: str) -> RunRecord:
        """Return what is known of a run at a glance.

        Args:
            run_id: The run.

        Raises:
            RunNotFoundError: There is no such run.
            JournalError: The journal can't be read.
        """
        await self._check_id(run_id)
        return await self._ask(self._archive.record, run_id)

    async def orphans(self) -> list[RunRecord]:
        """Return the runs that have not ended and that nobody runs, those that began last first.

        Their process is provably dead, or has not renewed its lease, or has left them when the
        journal failed. Start them again under their id, and they go on where they were.

        Raises:
            JournalError: The journal can't be read.
        """
        return await self.runs(orphaned=True, limit=None)

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
        await self._check_id(run_id)
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
        await self._check_id(run_id)
        return await self._ask(self._archive.report, run_id)

    async def cancel(self, run_id: str) -> bool:
        """Ask whoever runs a run, in whatever process, to stop it gracefully.

        It is stopped as by a cancellation of its caller: steps that are running are cancelled and
        awaited, what they clean up is done, the end of the run is kept with the status
        ``"interrupted"``, and who awaits the run gets a `RunCancelledError`. The run can be started
        again under its id later, and goes on then; the request is void then.

        This only asks, and does not wait for the end. A run of this journal object hears of it at
        once, that of another one, or of another process, within a second, or within a third of its
        lease if that is less. If it ends by itself before that, or its process dies, it is not
        interrupted. Who waits for the run with ``on_active="wait"`` goes on with it afterwards.

        Args:
            run_id: The run.

        Returns:
            Whether somebody runs it, and so was asked: False if it has ended, or is orphaned.

        Raises:
            RunNotFoundError: There is no such run.
            JournalError: The journal can't be read or written.
        """
        await self._check_id(run_id)
        was_asked = await self._do(self._clerk.cancel, run_id)
        if not was_asked:
            await self._ask(self._archive.record, run_id)
        return was_asked

    async def prune(self, older_than: timedelta, *, status: RunStatus | None = None) -> int:
        """Delete runs that have ended and return how many; never one that is active.

        Runs that write meanwhile do not wait for long: it takes several transactions.

        Args:
            older_than: Only those that ended longer ago than this, such as ``timedelta(days=90)``.
            status: Only those with this status, which can't be ``"running"``.

        Raises:
            TypeError: The age is no timedelta. A number would not tell its unit.
            ValueError: No run that has ended has such a status, or the age is negative.
            JournalError: The journal can't be read or written.
        """
        ended_as = parse_status(status)
        if ended_as in ("running", "orphaned"):
            raise ValueError(
                f"prune() deletes runs that have ended, so status can't be {ended_as!r}; forget() "
                "deletes one of those that orphans() returns"
            )
        if not isinstance(older_than, timedelta):
            raise TypeError(
                f"older_than must be a timedelta, such as timedelta(days=90), not {older_than!r}: "
                "a number does not tell its unit"
            )
        age_s = older_than.total_seconds()
        check_number("older_than", age_s, 0, kind="a timedelta", unit=" s")
        found = await self._ask(self._archive.store.ended, age_s, ended_as)
        count = 0
        for some in _portions(found):
            count += await self._do(self._store.prune, some, age_s)
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
        await self._check_id(run_id)
        await self._ask(self._archive.record, run_id)
        await self._do(self._store.forget, run_id, self._claim)

    async def _check_id(self, run_id: str) -> None:
        check_text("run_id", run_id)
        if not is_storable(run_id):
            # Some databases would say so, some would fail.
            raise await self._ask(self._archive.unknown, run_id)

    async def _do(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Have the thread call something that writes."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: call(*args, **kwargs))

    async def _ask(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Have the other thread call something that reads."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reader, lambda: call(*args, **kwargs))


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


Self = TypeVar("Self", bound="SQLJournal")

_THREAD = "asyncflow journal"
"""What both threads are called: `asyncflow.testing` knows them by that."""

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 1.0
"""How long to wait before another owner of a run is asked for again."""


class SQLJournal(Inquiries):
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
            raise ValueError(f"codec must be {known}, not {codec!r}{did_you_mean(codec, CODECS)}")
        check_number("max_payload_bytes", max_payload_bytes, 1)
        self._name = store.database.name
        self._codec = Codec(codec, max_payload_bytes)
        claim = Claim(owner or this_owner(), this_process(), lease_s, is_dead)
        clerk = JournalWorker(store, claim)
        thread = Thread(_THREAD, self._name, clerk.look_after)
        archive = JournalReader(second or store, self._codec)
        reader = Thread(_THREAD, self._name, lambda: None) if second else thread
        super().__init__(store, claim, clerk, thread, archive, reader)
        self._lock = threading.Lock()
        self._desks: weakref.WeakValueDictionary[asyncio.AbstractEventLoop, CommitQueue] = (
            weakref.WeakValueDictionary()
        )
        self._closed = False

    # --- for a run ------------------------------------------------------------------------------

    async def open(
        self, run_id: str, *, wait: bool, read: Callable[[Sequence[Event]], T]
    ) -> tuple[SQLSession | FinishedSession, T]:
        """Become the only owner of a run, and read what is kept of it. A run calls this.

        One that has passed is read also while somebody else owns it. If a report is all that comes
        of it, it needs no owner; if it is to go on all the same, it has to be free.

        Args:
            run_id: The run.
            wait: Whether to wait until another owner is gone.
            read: Called with its events, none if it is new, in a thread of the journal. Called
                again when a run that had passed, and is to go on, is free.

        Raises:
            RunAlreadyActiveError: Another one owns it, and is not waited for.
            JournalError: The journal can't be read or written.
            TypeError: The id is no text.
            ValueError: No database would take it.
        """
        check_new_id(run_id)
        pause, is_to_go_on = _FIRST_WAIT_S, False
        while True:
            try:
                return await self._open(run_id, read)
            except RunAlreadyActiveError as active:
                owner = active.owner
            passed = [] if is_to_go_on else await self._ask(self._archive.passed, run_id)
            if passed:
                answer = await self._ask(read, passed)
                if isinstance(answer, RunReport):
                    return FinishedSession(), answer
                is_to_go_on = True
            if not wait:
                raise RunAlreadyActiveError(run_id, owner)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_WAIT_S)

    async def _open(
        self, run_id: str, read: Callable[[Sequence[Event]], T]
    ) -> tuple[SQLSession, T]:
        loop, opening = asyncio.get_running_loop(), PendingClaim(self._clerk)
        try:
            # Only when the claim is committed it is sure what there is to read.
            holding = await loop.run_in_executor(self._thread, opening.claim, run_id, loop)
            # What is new does not wait until others have been read.
            thread = self._reader if holding.kept else self._thread
            answer = await loop.run_in_executor(thread, self._read, holding, read)
            return SQLSession(self._desk_of(loop), holding), answer
        except (asyncio.CancelledError, GeneratorExit):
            opening.abandon(self._thread)
            raise
        except BaseException:
            if opening.holding:
                with suppress(JournalError):  # the journal is closed, and has given it up
                    await loop.run_in_executor(self._thread, opening.give_back)
            raise

    def _read(self, holding: Lease, read: Callable[[Sequence[Event]], T]) -> T:
        return read(self._archive.history(holding.run_id, holding.kept) if holding.kept else [])

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

    def _desk_of(self, loop: asyncio.AbstractEventLoop) -> CommitQueue:
        with self._lock:
            desk = self._desks.get(loop)
            if desk is None:
                desk = self._desks[loop] = CommitQueue(loop, self._thread, self._clerk)
            return desk

    # --- its life -------------------------------------------------------------------------------

    async def __aenter__(self: Self) -> Self:
        try:
            await self._do(self._store.runs, RunFilter(limit=0))  # whatever is wrong shows now
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

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"
