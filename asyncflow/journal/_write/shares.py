"""The SQL statements about pools that processes share, and when a journal executes them.

- `pools` has one row per name of a pool. A process locks it before it reads or writes anything else
  of the pool. It expires when the pause of the pool ends.
- `shares` has one row per pool and process that runs an attempt in it or has one waiting; see
  `asyncflow._core.pools.shares`. It expires as a lease does. One that has expired, and one whose
  process is provably dead, counts no more, and the process that sees it deletes it.

All pools of a process take one transaction. What has not changed is not written again before a
third of a lease has passed.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ref

from asyncflow._core.errors import JournalError
from asyncflow._core.pools.pool import Clock, Pool
from asyncflow._core.pools.shares import TICK_S, Negotiated, PoolNumbers, PoolShare, ShareRow
from asyncflow._core.text import describe_error
from asyncflow.journal._codec.events import column_of, from_column
from asyncflow.journal._database.machine import held_claims, new_claim
from asyncflow.journal._database.sql import Cursor, Database, changing

if TYPE_CHECKING:
    from asyncflow.journal._write.store import Claim
    from asyncflow.journal._write.worker import WorkerThread

_log = logging.getLogger("asyncflow")

_LOCK = "SELECT {now}, {left}, l.paused_by FROM pools l WHERE l.pool = ?{lock}"
_ADD_POOL = (
    "INSERT INTO pools (pool, paused_by, expires_at) VALUES (?, '', 0) "
    "ON CONFLICT (pool) DO NOTHING"
)
_PAUSE = "UPDATE pools SET {expiry}, paused_by = ? WHERE pool = ?"
_ROWS = (
    "SELECT l.process, l.demand, l.granted, l.least, l.since, l.size, l.per_minute, "
    "l.tokens_per_minute, {valid} FROM shares l WHERE l.pool = ?"
)
_ADD = (
    "INSERT INTO shares (pool, process, demand, granted, least, since, size, expires_at) "
    "VALUES (?, ?, 0, 0, 0, 0, 1, 0)"
)
_CHANGE = (
    "UPDATE shares SET demand = ?, granted = ?, least = ?, since = ?, size = ?, per_minute = ?, "
    "tokens_per_minute = ?, {expiry} WHERE pool = ? AND process = ?"
)
_DELETE = "DELETE FROM shares WHERE pool = ? AND process = ?"


class _ShareEntry:
    """A share and its row."""

    def __init__(self, share: PoolShare, process: str) -> None:
        self.share = share
        self.claim, self.process = new_claim(process)
        self.pool = column_of(share.pool.name or "")
        self.renewed_s = -math.inf
        """When the transaction began that has written the row."""
        self.has_warned = False
        """Whether it was logged that the database can't be reached."""
        self.others = set[PoolNumbers]()
        """What other processes say that was logged."""


class _Exchange(NamedTuple):
    """What a transaction has done for a member."""

    had: Negotiated | None
    is_written: bool
    pause_s: float
    paused_by: str
    told_until_s: float | None
    """The end of the pause that it has told the others, by the clock of the share."""
    others: set[PoolNumbers]
    """What the other processes say."""


class Shares:
    """Keeps the shares of a journal's process up to date, in its worker thread.

    ``call`` calls what may find another database. Other threads ask for a share, and wake the
    thread.
    """

    def __init__(
        self,
        database: Database,
        claim: Claim,
        thread: WorkerThread,
        call: Callable[..., Any],
    ) -> None:
        self.database = database
        self._claim = claim
        self._thread = thread
        self._call = call
        self._members: tuple[_ShareEntry, ...] = ()
        self._lock = threading.Lock()
        self._poll_at = math.inf

    def enter(self, pool: Pool, clock: Clock, journal: ref[Any], database: object) -> PoolShare:
        """Return the share of a pool, which a run uses from now on. Any thread may call it.

        The other arguments are those of the share.
        """
        with self._lock:
            for member in self._members:
                share = member.share
                if share.pool is pool and not share.is_closed:
                    break
            else:
                share = PoolShare(pool, clock, journal, database, self._wake)
                member = _ShareEntry(share, self._claim.process)
                held_claims.add(member.claim)
                self._members = (*self._members, member)
            share.enter()
            return share

    def _wake(self) -> None:
        with suppress(JournalError):  # the journal is closed, or of the parent of this process
            self._thread.submit(self._poll_soon)

    def _poll_soon(self) -> None:
        self._poll_at = -math.inf

    def poll(self) -> float | None:
        """Negotiate if that is due; return in how many seconds to call this again.

        In between, it looks at the pools of this process alone: the end of an attempt tells no one.
        """
        now = time.monotonic()
        if not self._members or self._poll_at == math.inf:
            return None
        if now >= self._poll_at:
            if self._due_s() <= now:
                self.negotiate()
                now = time.monotonic()
            for member in self._members:
                if not (member.share.runs or member.share.has_news):
                    member.share.let_go()
                    self._forget(member)
            due_s = self._due_s()
            if due_s == math.inf:  # who has asked may have left the line before it was due
                for member in self._members:
                    member.share.listen()
                due_s = self._due_s()  # who has joined before that may not have asked
            self._poll_at = due_s if due_s == math.inf else min(due_s, now + TICK_S)
        return None if self._poll_at == math.inf else max(0.0, self._poll_at - now)

    def _due_s(self) -> float:
        return min(
            (each.share.due_s(self._claim.lease_s) for each in self._members), default=math.inf
        )

    def negotiate(self) -> None:
        """Tell the database what each share needs, and take what it may have."""
        members = sorted(
            (each for each in self._members if each.share.has_news),
            key=lambda each: each.pool,
        )
        began_s = [each.share.begin() for each in members]
        try:
            done: list[_Exchange] = self._call(self._exchange, members)
        except Exception as error:
            for member in members:
                self._fail(member, error)
            return
        for member, began, exchange in zip(members, began_s, done, strict=True):
            self._settle(member, began, exchange)

    @changing
    def _exchange(self, cursor: Cursor, members: Sequence[_ShareEntry]) -> list[_Exchange]:
        return [self._exchange_one(cursor, member) for member in members]

    def _exchange_one(self, cursor: Cursor, member: _ShareEntry) -> _Exchange:
        share, pool, process = member.share, member.pool, member.process
        now, pause_s, paused_by = self._lock_pool(cursor, pool)
        told_until_s = None
        if share.must_tell_pause:
            told_until_s = share.paused_until_s
            left_s = told_until_s - share.now_s()
            if left_s > max(pause_s, 0.0):
                pause_s, paused_by = left_s, share.paused_by
                self._execute(cursor, _PAUSE, left_s, column_of(paused_by), pool)
        rows = self._live_rows(cursor, member)
        stored = next((row for row in rows if row.process == process), None)
        had = share.negotiate(process, rows, now)
        is_due = share.now_s() >= member.renewed_s + self._claim.lease_s / 3
        is_written = had is not None and (had.row != stored or is_due)
        if had is None and stored is not None:
            self._execute(cursor, _DELETE, pool, process)
        elif had is not None and is_written:
            if stored is None:
                self._execute(cursor, _ADD, pool, process)
            values = *had.row[1:-1], *had.row.numbers, self._claim.lease_s, pool, process
            self._execute(cursor, _CHANGE, *values)
        others = {row.numbers for row in rows if row.process != process}
        return _Exchange(had, is_written, pause_s, paused_by, told_until_s, others)

    def _lock_pool(self, cursor: Cursor, pool: str) -> tuple[float, float, str]:
        """Lock a pool; return the present, how long its pause is, and by what it was made."""
        self._execute(cursor, _LOCK, pool)
        row = cursor.fetchone()
        if row is None:
            self._execute(cursor, _ADD_POOL, pool)
            self._execute(cursor, _LOCK, pool)
            row = cursor.fetchone()
        now, left_s, paused_by = row
        return float(now), float(left_s), from_column(str(paused_by))

    def _live_rows(self, cursor: Cursor, member: _ShareEntry) -> list[ShareRow]:
        """Return the rows that count, and delete the others."""
        self._execute(cursor, _ROWS, member.pool)
        found, rows = cursor.fetchall(), []
        is_waiting = member.share.demand().waiting > 0  # else it does not matter which are dead
        for *values, is_valid in found:
            process = values[0]
            if (
                is_valid
                and all(map(isinstance, values, _TYPES))
                and not (is_waiting and process != member.process and self._claim.is_void(process))
            ):
                _, demand, granted, least, since, *numbers = values
                rows.append(ShareRow(process, demand, granted, least, since, PoolNumbers(*numbers)))
            else:
                self._execute(cursor, _DELETE, member.pool, process)
        return rows

    def _execute(self, cursor: Cursor, sql: str, *parameters: Any) -> None:
        cursor.execute(self.database.translate(sql), parameters)

    def _settle(self, member: _ShareEntry, began_s: float, done: _Exchange) -> None:
        share, had = member.share, done.had
        # Before anything starts by what it has now.
        share.hear_pause(done.pause_s, done.paused_by, done.told_until_s)
        if done.is_written or had is None:
            member.renewed_s = began_s
        share.settle(had, member.renewed_s + self._claim.lease_s)
        own = None if had is None else had.row.numbers
        for other in done.others - {own} - member.others:
            if own is not None:
                member.others.add(other)
                _log.warning(
                    "%s has %s here, and %s in another process: while both use it, the smaller "
                    "numbers count",
                    *(share.pool.title, _in_words(own, share.pool), _in_words(other, share.pool)),
                )
        if member.has_warned:
            member.has_warned = False
            _log.info("%s: its database answers again", share.pool.title)

    def _fail(self, member: _ShareEntry, error: Exception) -> None:
        share = member.share
        share.fail()
        if share.now_s() >= share.until_s and not member.has_warned:
            member.has_warned = True
            _log.warning(
                "no attempt starts in %s until its database answers, which says how many slots "
                "this process has: %s",
                *(share.pool.title, describe_error(error)),
            )

    def _forget(self, member: _ShareEntry) -> None:
        with self._lock:
            if member.share.runs and not member.share.is_closed:
                return
            self._members = tuple(each for each in self._members if each is not member)
        held_claims.discard(member.claim)

    def close(self) -> None:
        """End all leases. What still runs has its slots until these would have expired."""
        idle = []
        for member in self._members:
            member.share.close()
            if not member.share.demand().in_use:
                idle.append(member)
        with suppress(Exception):  # else they expire
            if any(each.share.row for each in idle):
                self._call(self._delete, idle)
        for member in idle:
            self._forget(member)

    @changing
    def _delete(self, cursor: Cursor, members: Sequence[_ShareEntry]) -> None:
        for member in sorted(members, key=lambda each: each.pool):
            self._lock_pool(cursor, member.pool)
            self._execute(cursor, _DELETE, member.pool, member.process)


def _in_words(numbers: PoolNumbers, pool: Pool) -> str:
    """Return the numbers, with the rate as people have set it here."""
    shown: dict[str, float | None] = numbers._asdict()
    if pool.per_second is not None and numbers.per_minute is not None:
        rate = numbers.per_minute / 60
        shown = {"size": numbers.size, "per_second": rate, **shown, "per_minute": None}
    return ", ".join(f"{name} {value:g}" for name, value in shown.items() if value is not None)


_TYPES: tuple[Any, ...] = (str, int, int, int, float, int, float | None, float | None)
"""Those of the columns of a row."""
