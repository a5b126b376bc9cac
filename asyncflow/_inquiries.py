"""What people ask a journal of its runs, and what they have it do with them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any, TypeVar

from asyncflow._archive import Archive, RunRecord, RunStatus, StoredEvent
from asyncflow._asked import (
    check_flag,
    check_sought,
    check_status,
    check_text,
    place_of,
    seconds_of,
)
from asyncflow._clerk import Clerk
from asyncflow._core.arguments import check_count, check_number
from asyncflow._core.report import RunReport
from asyncflow._rows import column_of, is_storable
from asyncflow._store import Claim, Store
from asyncflow._thread import Thread

__all__ = ["Inquiries"]

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
        clerk: Clerk,
        thread: Thread,
        archive: Archive,
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
        status: RunStatus | None = None,
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
            status: Only those with this status.
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
        check_status(status)
        check_flag("orphaned", orphaned)
        if pipeline is not None:
            check_text("pipeline", pipeline)
        if text is not None:
            check_sought(text)
        if limit is not None:
            check_count("limit", limit, 0)
        return await self._ask(
            self._archive.runs,
            orphaned=orphaned,
            limit=limit,
            status=status,
            pipeline=None if pipeline is None else column_of(pipeline),
            since=None if since is None else seconds_of("since", since),
            before=None if before is None else place_of(before),
            text=text or None,
        )

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
        check_status(status)
        if status == "running":
            raise ValueError(
                "prune() deletes runs that have ended, so status can't be 'running'; forget() "
                "deletes one of those that orphans() returns"
            )
        if not isinstance(older_than, timedelta):
            raise TypeError(
                f"older_than must be a timedelta, such as timedelta(days=90), not {older_than!r}: "
                "a number does not tell its unit"
            )
        age_s = older_than.total_seconds()
        check_number("older_than", age_s, 0, kind="a timedelta", unit=" s")
        found = await self._ask(self._archive.store.ended, age_s, status)
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
