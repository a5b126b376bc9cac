"""The SQL statements about keys: which run had each of them last, and whether it still has it.

- `keys` has one row per key of a pipeline, with the run that had it last. The run has the key while
  a process has its lease, and while another process must continue it. So no row says that a key is
  free, and the end of a run, which locks its lease, locks no key.
- The process that claims a run locks its key first, then the leases of the run and of the one that
  had the key, in one order. What it reads of these runs then can't change before it commits.
- A run that was asked to stop while no process runs it no longer has its key. Its process may only
  have stood still, so the process that takes the key ends its lease.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from asyncflow._core.errors import RunAlreadyActiveError
from asyncflow._core.history.results import RunStatus
from asyncflow.journal._codec.events import column_of, from_column
from asyncflow.journal._database.sql import NOW, Cursor, Database, Parameters

if TYPE_CHECKING:
    from asyncflow.journal._write.store import Claim

CONTINUES = "(r.status IN ('running', 'waiting') OR r.cause IN ('drained', 'resource'))"
"""Whether a run without an owner is one that a service resumes."""


QUEUED = "EXISTS (SELECT 1 FROM queued w WHERE w.run_id = r.run_id)"
"""Whether a run waits to start."""


CancelCause: TypeAlias = Literal["cancelled", "replaced"]
"""Why a run was asked to stop."""


class RunKey(NamedTuple):
    """A key of a pipeline, as columns have the two."""

    pipeline: str
    key: str

    @classmethod
    def of(cls, pipeline: str, key: str) -> RunKey:
        return cls(column_of(pipeline), column_of(key))


class UnlockedKeysError(Exception):
    """A transaction has found runs with ``keys`` that it has not locked; it must begin anew."""

    def __init__(self, keys: set[RunKey]) -> None:
        super().__init__(keys)
        self.keys = keys


_NEW = (
    "INSERT INTO keys (pipeline, key, run_id) VALUES (?, ?, '') "
    "ON CONFLICT (pipeline, key) DO UPDATE SET run_id = keys.run_id"
)
# A run that was forgotten may have had the key, and a new one its id.
_HAD = (
    "SELECT CASE WHEN EXISTS (SELECT 1 FROM runs r WHERE r.run_id = k.run_id "
    "AND (r.key IS NULL OR r.key <> k.key OR r.pipeline <> k.pipeline)) THEN '' ELSE k.run_id END "
    "FROM keys k WHERE k.pipeline = ? AND k.key = ?"
)
_TAKE = "UPDATE keys SET run_id = ? WHERE pipeline = ? AND key = ?"
_KEY_OF = "SELECT r.pipeline, r.key FROM runs r WHERE r.run_id = ?"
_CONTINUED = f"SELECT r.status FROM runs r WHERE r.run_id = ? AND {CONTINUES} AND NOT {QUEUED}"
_IS_UNUSED = (
    "NOT EXISTS (SELECT 1 FROM runs r WHERE r.run_id = {keys}.run_id) "
    "AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.run_id = {keys}.run_id) "
    "AND NOT EXISTS (SELECT 1 FROM queued q WHERE q.pipeline = {keys}.pipeline "
    "AND q.key = {keys}.key)"
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
_FIRST = (
    "SELECT q.run_id FROM queued q WHERE q.pipeline = ? AND q.key = ? ORDER BY q.due_at, q.seq "
    "LIMIT 1"
)
_FIRST_DUE = _FIRST.replace("ORDER BY", f"AND q.due_at <= {NOW} ORDER BY")
_REPLACES = (
    "SELECT q.run_id FROM queued w JOIN queued q ON q.pipeline = w.pipeline AND q.key = w.key "
    f"WHERE w.run_id = ? AND q.replaces = 1 AND (q.run_id = w.run_id OR q.due_at <= {NOW}) "
    "ORDER BY q.due_at DESC, q.seq DESC LIMIT 1"
)
"""The run that replaces others and is due, whether it starts now or is behind the one that does."""
FENCE = (
    "UPDATE leases SET token = token + 1, owner = NULL, process = NULL, expires_at = 0, "
    "cancel_token = CASE WHEN cancel_token = token THEN token + 1 END WHERE run_id = ?"
)
"""Ends the lease of a run that no process seems to have."""


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
        self, key: RunKey, run_id: str, leases: Mapping[str, Sequence[Any]], claim: Claim
    ) -> None:
        """Give a run its key; raise `RunAlreadyActiveError` if another run has it.

        ``leases`` are those that are locked.
        """
        before = self._had[key]
        if before == run_id:
            return
        holder = self.holder(key, leases, claim)
        if holder is not None:
            raise holder
        if before and leases[before][0] is not None:
            self._execute(FENCE, (before,))
        self._execute(_TAKE, (run_id, *key))
        self._had[key] = run_id

    def replaced_by(
        self, key: RunKey, run_id: str, leases: Mapping[str, Sequence[Any]], claim: Claim
    ) -> str | None:
        """Return what replaces the run that had a key when a run starts, if no process has that."""
        before = self._had[key]
        if not before or before == run_id or is_owned(leases[before], claim):
            return None
        self._execute(_REPLACES, (run_id, claim.now))
        replacing = self._cursor.fetchone()
        if replacing is None:
            return None
        self._execute(_CONTINUED, (before,))
        return None if self._cursor.fetchone() is None else str(replacing[0])

    def had_by(self, key: RunKey) -> str:
        """Return the run that had a key last; empty if none did."""
        return self._had[key]

    def free(self, key: RunKey) -> None:
        """Note that the run that had a key has ended in this transaction."""
        self._had[key] = ""

    def holder(
        self, key: RunKey, leases: Mapping[str, Sequence[Any]], claim: Claim
    ) -> RunAlreadyActiveError | None:
        """Return the error about the run that has a key; ``None`` if the key is free."""
        run_id = self._had[key]
        if not run_id:
            return None
        lease = leases[run_id]
        owner, status = "", None
        if is_owned(lease, claim):
            owner, status = lease[0], RunStatus.RUNNING
        else:
            _, _, _, cancel_token, *_, token, _ = lease
            self._execute(_CONTINUED, (run_id,))
            row = self._cursor.fetchone()
            if row is not None and cancel_token != token:
                status = _STATUSES.get(row[0], RunStatus.INTERRUPTED)
        if status is None:
            return None
        way_out = _WAYS_OUT[status]
        return RunAlreadyActiveError(
            run_id, owner, way_out, key=from_column(key.key), status=status
        )

    def _execute(self, sql: str, parameters: Parameters) -> None:
        self._cursor.execute(self._database.translate(sql), parameters)


def is_owned(lease: Sequence[Any], claim: Claim) -> bool:
    """Whether a process has a lease, by the first columns of its row."""
    owner, process, unexpired, *_ = lease
    return owner is not None and bool(unexpired) and not claim.is_void(process)


_STATUSES = {"running": RunStatus.ORPHANED, "waiting": RunStatus.WAITING}
_WAYS_OUT = {
    RunStatus.RUNNING: "wait until it has ended, or enqueue a run to start after it",
    RunStatus.WAITING: "it has the key until it has ended: send it what it waits for, or cancel it",
    RunStatus.ORPHANED: "resume it, or cancel or forget it to free the key",
    RunStatus.INTERRUPTED: "resume it, or cancel or forget it to free the key",
}


def replacement(by: str) -> str:
    """Return why a run was cancelled that another one replaces."""
    return f"run {by!r} has replaced it"


def check_line(database: Database, cursor: Cursor, key: RunKey, now: float | None) -> None:
    """Raise `RunAlreadyActiveError` if a run waits for a key and is due.

    ``now`` is the present in virtual time.
    """
    cursor.execute(database.translate(_FIRST_DUE), (*key, now))
    first = cursor.fetchone()
    if first is not None:
        raise waits_already(first[0], key)


def first_in_line(database: Database, cursor: Cursor, key: RunKey) -> str | None:
    """Return the first run that waits for a key, even if it is not due; ``None`` if none does."""
    cursor.execute(database.translate(_FIRST), key)
    first = cursor.fetchone()
    return None if first is None else str(first[0])


def waits_already(run_id: str, key: RunKey) -> RunAlreadyActiveError:
    """Return the error about a run that waits for a key."""
    return RunAlreadyActiveError(
        run_id,
        "",
        "it waits to start: enqueue a run to start after it, or cancel it",
        key=from_column(key.key),
        status=RunStatus.WAITING,
    )


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
