"""The SQL statements about keys: which run had each of them last, and whether it still has it.

- `keys` has one row per key of a pipeline, with the run that had it last. The run has the key while
  a process has its lease, and while it is to be continued. So no row says that a key is free, and
  the end of a run, which locks its lease, locks no key.
- Whoever claims a run locks its key first, then the leases of the run and of the one that had the
  key, in one order. What it reads about these runs then can't change before it commits.
- A run that was asked to stop while no process runs it has its key no more. Its process may only
  have stood still, so whoever takes the key ends its lease.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from asyncflow._core.errors import RunAlreadyActiveError
from asyncflow._core.results import RunStatus
from asyncflow.journal._event_codec import column_of, from_column
from asyncflow.journal._sql import Cursor, Database, Parameters

CONTINUES = "(r.status IN ('running', 'waiting') OR r.cause IN ('drained', 'resource'))"
"""Whether a run without an owner is one that a service resumes."""


class RunKey(NamedTuple):
    """A key of a pipeline, as columns have the two."""

    pipeline: str
    key: str

    @classmethod
    def of(cls, pipeline: str, key: str) -> RunKey:
        return cls(column_of(pipeline), column_of(key))


class UnlockedKeysError(Exception):
    """A transaction has found runs whose keys it has not locked, and must begin anew with them.

    ``keys`` has the key of each; ``None`` if the run has none, whatever its caller says.
    """

    def __init__(self, keys: dict[str, RunKey | None]) -> None:
        super().__init__(keys)
        self.keys = keys


_NEW = (
    "INSERT INTO keys (pipeline, key, run_id) VALUES (?, ?, '') "
    "ON CONFLICT (pipeline, key) DO UPDATE SET run_id = keys.run_id"
)
_HAD = "SELECT k.run_id FROM keys k WHERE k.pipeline = ? AND k.key = ?"
_TAKE = "UPDATE keys SET run_id = ? WHERE pipeline = ? AND key = ?"
_KEY_OF = "SELECT r.pipeline, r.key FROM runs r WHERE r.run_id = ?"
_CONTINUED = f"SELECT r.status FROM runs r WHERE r.run_id = ? AND {CONTINUES}"
_IS_UNUSED = (
    "NOT EXISTS (SELECT 1 FROM runs r WHERE r.run_id = {keys}.run_id) "
    "AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.run_id = {keys}.run_id)"
)
_UNUSED = (
    f"SELECT k.pipeline, k.key FROM keys k WHERE {_IS_UNUSED.replace('{keys}', 'k')} "
    "ORDER BY k.pipeline, k.key LIMIT ?{lock}"
)
_FORGET = (
    f"DELETE FROM keys WHERE pipeline = ? AND key = ? AND {_IS_UNUSED.replace('{keys}', 'keys')}"
)
_AT_ONCE = 500
"""How many keys one transaction forgets."""
_FENCE = (
    "UPDATE leases SET token = token + 1, owner = NULL, process = NULL, expires_at = 0, "
    "cancel_token = CASE WHEN cancel_token = token THEN token + 1 END WHERE run_id = ?"
)


class LockedKeys:
    """The keys that a transaction has locked, and the run that had each of them last."""

    def __init__(self, database: Database, cursor: Cursor, keys: Iterable[RunKey]) -> None:
        self._database = database
        self._cursor = cursor
        self._had: dict[RunKey, str] = {}
        # In one order, so that two processes that lock keys never wait for each other.
        for key in sorted(keys):
            self._execute(_NEW, key)
            self._execute(_HAD, key)
            (self._had[key],) = cursor.fetchone()

    @property
    def runs(self) -> set[str]:
        """The runs whose leases must be locked before a key is taken."""
        return {run_id for run_id in self._had.values() if run_id}

    def take(
        self, key: RunKey, run_id: str, lease: Sequence[Any] | None, *, is_owned: bool
    ) -> None:
        """Give a run its key.

        ``lease`` is the locked one of the run that had the key last, ``is_owned`` whether a process
        has that lease. Raise `RunAlreadyActiveError` if it still has the key.
        """
        before = self._had[key]
        if before == run_id:
            return
        if before and lease is not None:
            status = self._status(before, lease, is_owned=is_owned)
            if status is not None:
                raise RunAlreadyActiveError(
                    before,
                    lease[0] if is_owned else "",
                    _WAYS_OUT[status],
                    key=from_column(key.key),
                    status=status,
                )
            if lease[0] is not None:
                self._execute(_FENCE, (before,))
        self._execute(_TAKE, (run_id, *key))
        self._had[key] = run_id

    def had_by(self, key: RunKey) -> str:
        """Return the run that had a key last; empty if none did."""
        return self._had[key]

    def _status(self, run_id: str, lease: Sequence[Any], *, is_owned: bool) -> RunStatus | None:
        """Return the status of a run that has its key; ``None`` if it has it no more."""
        if is_owned:
            return RunStatus.RUNNING
        _, _, _, cancel_token, *_, token, _ = lease
        self._execute(_CONTINUED, (run_id,))
        row = self._cursor.fetchone()
        if row is None or cancel_token == token:
            return None
        return _STATUSES.get(row[0], RunStatus.INTERRUPTED)

    def _execute(self, sql: str, parameters: Parameters) -> None:
        self._cursor.execute(self._database.translate(sql), parameters)


_STATUSES = {"running": RunStatus.ORPHANED, "waiting": RunStatus.WAITING}
_WAYS_OUT = {
    RunStatus.RUNNING: "wait until it has ended",
    RunStatus.WAITING: "it has the key until it has ended: send it what it waits for, or cancel it",
    RunStatus.ORPHANED: "resume it, or cancel or forget it to free the key",
    RunStatus.INTERRUPTED: "resume it, or cancel or forget it to free the key",
}


def forget_unused(database: Database, cursor: Cursor) -> bool:
    """Delete some keys whose run is gone; return whether there may be more."""
    # One statement locks them, the next ones see how they have changed before that.
    cursor.execute(database.translate(_UNUSED), (_AT_ONCE,))
    unused = cursor.fetchall()
    for key in unused:
        cursor.execute(database.translate(_FORGET), key)
    return len(unused) == _AT_ONCE


def key_of(database: Database, cursor: Cursor, run_id: str) -> RunKey | None:
    """Return the key of a stored run, if it has one; raise `LookupError` if there is no such run.

    One that is damaged is noticed when the run is read.
    """
    cursor.execute(database.translate(_KEY_OF), (run_id,))
    row = cursor.fetchone()
    if row is None:
        raise LookupError(run_id)
    return RunKey(*row) if all(isinstance(each, str) for each in row) else None
