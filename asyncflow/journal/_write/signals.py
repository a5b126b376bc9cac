"""The SQL statements about signals: what is sent to a run, who learns of it, and what is due.

The sender writes a row of `signals`, and only the owner of the run makes it an event. A
deadline that expires is a row too: signal and expiry compete for the primary key, and the first one
counts. A row stays, so that the same value may be sent again, until what it answers is void. It has
a checksum, as a row of an event.

A sender locks the lease of the run, as its owner does when it writes. So a signal is there when the
owner ends its segment, or finds the run waiting. There is no row without its run: a sender finds
the very run there whose signals it has looked at, and an owner has stored all that has happened
before it sends.

- While a process runs it, ``signal_token`` tells the owner to look. What came before its claim,
  the owner reads with the history of the run.
- While it waits, ``runs.waits`` has the names that it waits for, and ``runs.due_at`` when a process
  must continue it: at the earliest deadline, or at once. ``runs.asks`` is a checksum of the types
  and deadlines of its signals: a version of the pipeline with others continues it too.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from asyncflow._core.errors import RunNotFoundError
from asyncflow._core.history.results import Payload, SignalAnswer
from asyncflow.journal._codec.events import (
    column_of,
    data_checksum,
    event_checksum,
    from_column,
    is_moment,
)
from asyncflow.journal._database.sql import NOW, Cursor, Statement, changing, marks, padded

if TYPE_CHECKING:
    from asyncflow.journal._write.store import Store


class SentSignal(NamedTuple):
    """What is sent to a run; without a payload, that the deadline of a step has expired."""

    run_id: str
    name: str
    payload: Payload | None
    run: int | None = None
    """The checksum of the run for which the value was found right: another one may have its id by
    then. ``None`` if its owner sends."""
    sent_by: str = ""
    """Who sends it; empty for this process."""
    note: str = ""
    now: float | None = None
    """The present in virtual time."""


SENT, EXPIRED = "sent", "expired"
"""The kinds of rows."""
_DUE_NOW = "{now} - 1e11"
"""The ``due_at`` of a waiting run that a signal has reached: 3,000 years ago, whatever becomes of
the clock, and later for each signal."""

_LEASE = "SELECT l.owner FROM leases l WHERE l.run_id = ?{lock}"
_RUN = "SELECT r.status, r.waits, r.checksum FROM runs r WHERE r.run_id = ?"
_LATEST = (
    "SELECT kind FROM events WHERE run_id = ? AND step = ? AND kind <> 'StepReused' "
    "ORDER BY position DESC LIMIT 1"
)
_INSERT = (
    "INSERT INTO signals (kind, codec, data, checksum, sent_by, note, sent_at, run_id, name) "
    f"VALUES (?, ?, ?, ?, ?, ?, {NOW}, ?, ?)"
)
_REPLACE = (
    "UPDATE signals SET kind = ?, codec = ?, data = ?, checksum = ?, sent_by = ?, "
    f"note = ?, sent_at = {NOW} WHERE run_id = ? AND name = ?"
)
_WAKE = f"UPDATE runs SET due_at = {_DUE_NOW} WHERE run_id = ? AND status = 'waiting'"
_TELL = "UPDATE leases SET signal_token = token WHERE run_id = ?"
_TOLD = "UPDATE leases SET signal_token = NULL WHERE run_id = ? AND token = ?"
_ARE_TOLD = "SELECT run_id FROM leases WHERE signal_token IS NOT NULL AND run_id IN ({run_ids})"
_ALL = (
    "SELECT name, kind, codec, data, checksum, sent_at, sent_by, note FROM signals WHERE run_id = ?"
)
_FIND = f"{_ALL} AND name = ?"
_SIGNALLED = (
    "SELECT run_id, token FROM leases WHERE signal_token IS NOT NULL AND signal_token = token"
)
_DUE = f"SELECT r.run_id FROM runs r WHERE r.due_at IS NOT NULL AND r.due_at <= {NOW}"
_ASKING_OTHERWISE = " UNION ALL ".join(
    "SELECT r.run_id FROM runs r WHERE r.asks IS NOT NULL AND r.pipeline = ? "
    f"AND r.asks {differs} ?"
    for differs in "<>"
)
_ASKS = "SELECT r.pipeline, r.asks FROM runs r WHERE r.run_id = ? AND r.asks IS NOT NULL"
_FORGET = "DELETE FROM signals WHERE run_id = ? AND name = ?"
_WAIT = (
    "UPDATE runs SET waits = ?, asks = ?, due_at = CASE WHEN EXISTS (SELECT 1 FROM leases l "
    "WHERE l.run_id = runs.run_id AND l.cancel_token = l.token) OR EXISTS (SELECT 1 FROM signals s "
    f"WHERE s.run_id = runs.run_id AND s.name IN ({{names}})) THEN {_DUE_NOW} ELSE ? END "
    "WHERE run_id = ?"
)


def forget(run_id: str, name: str, *, only_expired: bool = False) -> Statement:
    """Return what deletes the row of a signal, which is void."""
    sql, parameters = _FORGET, [run_id, column_of(name)]
    if only_expired:
        sql, parameters = f"{_FORGET} AND kind = ?", [*parameters, EXPIRED]
    return Statement(sql, parameters)


def waiting(run_id: str, waits: dict[str, float | None], asks: int | None) -> Statement:
    """Return what notes for what a run waits whose segment ends; its lease is locked."""
    names = padded([*map(column_of, waits)])
    due_at = min((at for at in waits.values() if at is not None), default=None)
    sql = _WAIT.replace("{names}", marks(len(names)))
    return Statement(sql, [json.dumps([*waits]), asks, *names, due_at, run_id])


def wake(run_id: str) -> Statement:
    """Return what lets a run be continued at once if it waits; its lease is locked."""
    return Statement(_WAKE, (run_id,))


def _received(run_id: str, rows: Iterable[Sequence[Any]]) -> dict[str, SignalAnswer | None]:
    received = {}
    for row in rows:
        with suppress(AttributeError, TypeError, ValueError):  # a damaged name is of no step
            received[from_column(row[0])] = _sent(run_id, *row)
    return received


def _sent(
    run_id: str,
    name: Any,
    kind: Any,
    codec: Any,
    data: Any,
    checksum: Any,
    sent_at: Any,
    sent_by: Any,
    note: Any,
) -> SignalAnswer | None:
    """Return what a row says was sent; ``None`` for an expired deadline.

    What is damaged is a value that no run takes: it deletes that and waits on.
    """
    with suppress(Exception):  # in a damaged row anything can be of any type
        if kind == EXPIRED and checksum == _checksum(run_id, name, kind, codec, data):
            return None
        if checksum == _checksum(run_id, name, kind, codec, data, sent_by, note):
            payload, sender = Payload(codec, data), map(from_column, (sent_by, note))
            # The database has set the time, so no checksum has it.
            return SignalAnswer(payload, sent_at if is_moment(sent_at) else 0.0, *sender)
    return SignalAnswer(Payload("damaged", b""))


def _checksum(
    run_id: str, name: str, kind: str, codec: str | None, data: bytes | None, *sender: str
) -> int:
    """Return the checksum of a row; a value that was sent comes with ``sent_by`` and ``note``."""
    of_data, by = data_checksum(data), "\0".join(sender) if sender else None
    return event_checksum(run_id, 0, kind, name, None, None, 0.0, codec, by, of_data)


def names_in(waits: Any) -> list[Any] | None:
    """Return what a waiting run waits for; ``None`` if that is damaged."""
    with suppress(TypeError, ValueError):
        names = json.loads(waits or "[]")
        return names if isinstance(names, list) else None
    return None


class Signals:
    """Executes these statements on one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.database = store.database

    @changing
    def send(
        self, cursor: Cursor, sent: Sequence[SentSignal], sender: str
    ) -> list[Exception | None]:
        """Store signals and wake their runs; return for each why it does not count, if so.

        That is a `ValueError` if a value comes second and differs, or if the run has passed, and a
        `RunNotFoundError` if the run has been deleted. An expiry that comes second changes nothing.
        """
        problems: list[Exception | None] = [None] * len(sent)
        # In one order, so that two processes that lock leases never wait for each other.
        for at in sorted(range(len(sent)), key=lambda at: sent[at].run_id):
            try:
                self._send(cursor, sent[at], sender)
            except (ValueError, RunNotFoundError) as problem:
                problems[at] = problem.with_traceback(None)  # or it would keep the others
        return problems

    def _send(self, cursor: Cursor, sent: SentSignal, sender: str) -> None:
        """Store one signal; raise an error before anything is written."""
        run_id, name, payload, checksum, sent_by, note, now = sent
        column = column_of(name)
        lease = self._row(cursor, _LEASE, run_id)
        run = self._row(cursor, _RUN, run_id)
        # Without a run, even one that is leased, the row would answer the next run of this id.
        if lease is None or run is None or checksum not in (None, run[2]):
            raise RunNotFoundError(run_id, self.database.name)
        (latest_owner,), (status, waits, _) = lease, run
        names = names_in(waits)
        is_waited_for = status == "waiting" and (names is None or name in names)
        found = self._row(cursor, _FIND, run_id, column)
        if found is not None:
            kind, before = found[1], _sent(run_id, *found)
            if payload is None or (before is not None and is_same(before.payload, payload)):
                return
            # A run that was stopped with it waits on when it is resumed, unless its step has ended.
            (latest,) = self._row(cursor, _LATEST, run_id, column) or ("",)
            has_ended = latest in ("StepSucceeded", "StepFailed")
            if kind != EXPIRED or status not in ("failed", "interrupted") or has_ended:
                is_lost = latest == "StepFailed" and status in ("failed", "interrupted")
                way_out = "; resume the run, and it waits anew" if is_lost else ""
                raise ValueError(why_second(run_id, name, kind) + way_out)
        elif status == "passed":
            raise ValueError(f"run {run_id!r} has passed, so it takes no signal {name!r}")
        kind, (codec, data) = (EXPIRED, (None, None)) if payload is None else (SENT, payload)
        by = column_of(sent_by or sender), column_of(note)
        checksum = _checksum(run_id, column, kind, codec, data, *(() if payload is None else by))
        sql = _INSERT if found is None else _REPLACE
        self._execute(cursor, sql, (kind, codec, data, checksum, *by, now, run_id, column))
        if is_waited_for:
            self._execute(cursor, *wake(run_id))
        # It may not have written yet that it has continued the run, or renew an expired lease.
        if latest_owner is not None:
            self._execute(cursor, _TELL, (run_id,))

    def _execute(self, cursor: Cursor, sql: str, parameters: Sequence[Any]) -> None:
        cursor.execute(self.database.translate(sql), parameters)

    def _row(self, cursor: Cursor, sql: str, *parameters: Any) -> Sequence[Any] | None:
        self._execute(cursor, sql, parameters)
        row: Sequence[Any] | None = cursor.fetchone()
        return row

    def told(self, run_ids: Sequence[str]) -> set[str]:
        """Return those of a few runs whose owner is to receive what was sent to them."""
        wanted = padded(run_ids)
        rows = self._store.read(_ARE_TOLD.replace("{run_ids}", marks(len(wanted))), wanted)
        return {run_id for (run_id,) in rows}

    @changing
    def receive(self, cursor: Cursor, run_id: str, token: int) -> dict[str, SignalAnswer | None]:
        """Return what was sent to a run, by name, for its owner; ``None`` for an expired deadline.

        A signal that comes later tells the owner again.
        """
        self._execute(cursor, _TOLD, (run_id, token))
        self._execute(cursor, _ALL, [run_id])
        return _received(run_id, cursor.fetchall())

    def read(self, run_id: str) -> dict[str, SignalAnswer | None]:
        """Return the same for any reader."""
        return _received(run_id, self._store.read(_ALL, [run_id]))

    def waited_for(self, run_id: str) -> tuple[list[str], int | None]:
        """Return the signals that a run waits for which no process runs, and its checksum."""
        for status, waits, checksum in self._store.read(_RUN, [run_id]):
            names = names_in(waits) if status == "waiting" else None
            return names or [], checksum
        return [], None

    def signalled(self) -> list[tuple[str, int]]:
        """Return the claims whose owner must look, each a run id and a token."""
        return [(run_id, token) for run_id, token in self._store.read(_SIGNALLED)]

    def due(
        self,
        now: float | None,
        pipelines: Sequence[str] | None,
        limit: int,
        skipped: Collection[str],
        among: Sequence[str] | None,
    ) -> list[str]:
        """Return the waiting runs to continue but for those skipped, the one due first first.

        ``now`` is the present in virtual time. Of the few runs ``among``, if it is not ``None``.
        """
        sql, wanted = _DUE, padded(among or ())
        if pipelines is not None:
            # As an expression, or SQLite would go through all runs of these pipelines.
            sql += f" AND r.pipeline || '' IN ({marks(len(pipelines)) or 'NULL'})"
        if among is not None:
            sql += f" AND r.run_id IN ({marks(len(wanted)) or 'NULL'})"
        sql += " ORDER BY r.due_at LIMIT ?"
        # Whatever is skipped, as many others are found.
        values = [now, *(pipelines or ()), *wanted, limit + len(skipped)]
        rows = self._store.read(sql, values)
        return [run_id for (run_id,) in rows if run_id not in skipped][:limit]

    def asking_otherwise(
        self, pipeline: str, asks: int, limit: int, skipped: Collection[str]
    ) -> list[str]:
        """Return waiting runs of a pipeline that ask for something else, but for those skipped."""
        values = [column_of(pipeline), asks] * 2
        rows = self._store.read(f"{_ASKING_OTHERWISE} LIMIT ?", [*values, limit + len(skipped)])
        return [run_id for (run_id,) in rows if run_id not in skipped][:limit]

    def asks(self, run_id: str) -> tuple[str, int] | None:
        """Return the pipeline of a run that waits, and what it asks for; else ``None``."""
        for pipeline, asks in self._store.read(_ASKS, [run_id]):
            with suppress(AttributeError, TypeError, ValueError):  # a damaged name is of none
                return from_column(pipeline), asks
        return None


def is_same(first: Payload, second: Payload) -> bool:
    """Whether two payloads have the same value, in JSON whatever the order of its keys."""
    if bytes(first.data) == second.data:
        return True
    try:
        return first.codec.startswith("json") and _sorted(first.data) == _sorted(second.data)
    except ValueError:
        return False


def _sorted(data: bytes) -> str:
    # A text: to Python, true is 1, and 1 is 1.0.
    return json.dumps(json.loads(data), sort_keys=True)


def why_second(run_id: str, name: str, kind: str) -> str:
    """Return why a signal does not count if another value or its expiry came first."""
    if kind == EXPIRED:
        return f"signal {name!r} of run {run_id!r} comes too late: its deadline has expired"
    return f"signal {name!r} of run {run_id!r} has another value already; the first one counts"
