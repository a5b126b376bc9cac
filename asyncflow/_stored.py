"""A journal that keeps its runs in an SQL database: all that the databases have in common.

It has two threads, each with a connection of its own. One writes, and claims runs; the other one
reads, which may take long, so that no step of a run waits for that.
"""

from __future__ import annotations

import asyncio
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

from asyncflow._archive import Archive
from asyncflow._asked import check_new_id
from asyncflow._book import Book, Desk, PassedBook
from asyncflow._clerk import Clerk, Holding, Opening
from asyncflow._codec import CODECS, Codec
from asyncflow._core.arguments import check_number
from asyncflow._core.errors import JournalError, RunAlreadyActiveError, nearest
from asyncflow._core.report import RunReport
from asyncflow._core.results import Payload
from asyncflow._inquiries import Inquiries
from asyncflow._owner import is_dead, this_owner, this_process
from asyncflow._store import Claim, Store
from asyncflow._thread import Thread
from asyncflow.events import Event

__all__ = ["SQLJournal"]

T = TypeVar("T")
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
            raise ValueError(f"codec must be {known}, not {codec!r}{nearest(codec, CODECS)}")
        check_number("max_payload_bytes", max_payload_bytes, 1)
        self._name = store.database.name
        self._codec = Codec(codec, max_payload_bytes)
        claim = Claim(owner or this_owner(), this_process(), lease_s, is_dead)
        clerk = Clerk(store, claim)
        thread = Thread(_THREAD, self._name, clerk.look_after)
        archive = Archive(second or store, self._codec)
        reader = Thread(_THREAD, self._name, lambda: None) if second else thread
        super().__init__(store, claim, clerk, thread, archive, reader)
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
                    return PassedBook(), answer
                is_to_go_on = True
            if not wait:
                raise RunAlreadyActiveError(run_id, owner)
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

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"
