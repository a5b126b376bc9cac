"""The rows of checkpoints: from where the next attempt of a step or an item continues.

What a call by name has returned has such a row too, with its name.

The owner of a run writes and deletes them in the transactions of its events, which check its lease.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from asyncflow._core.history.results import Key, Payload
from asyncflow._core.running.checkpoints import StoredCall
from asyncflow.journal._codec.events import column_of, data_checksum, event_checksum, from_column
from asyncflow.journal._database.sql import Statement

_NO_ITEM = -1
"""The item of a step as a whole: a column of a primary key holds no NULL."""

_NO_NAME = ""
"""The name of a checkpoint. That of a call is never empty."""

_REPLACE = (
    "INSERT INTO checkpoints (run_id, step, item, name, attempt, arguments, codec, checksum, data) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (run_id, step, item, name) DO UPDATE SET "
    "attempt = excluded.attempt, arguments = excluded.arguments, codec = excluded.codec, "
    "checksum = excluded.checksum, data = excluded.data"
)
_DELETE = "DELETE FROM checkpoints WHERE run_id = ? AND step = ? AND item = ?"

# What calls returned may be large: it is read when its step asks for it.
SELECT_CHECKPOINTS = (
    "SELECT step, item, name, attempt, arguments, codec, checksum, "
    "CASE WHEN name = '' THEN data END FROM checkpoints WHERE run_id = ?"
)

SELECT_CALL = (
    "SELECT step, item, name, attempt, arguments, codec, checksum, data FROM checkpoints "
    "WHERE run_id = ? AND step = ? AND item = ? AND name = ?"
)

_log = logging.getLogger("asyncflow")


class Saved(NamedTuple):
    """What the steps and items of a run have left for their next attempts."""

    checkpoints: dict[Key, Payload]
    calls: dict[Key, set[str]]
    """The names of the calls whose values are stored."""


def changes_of(run_id: str, changed: Mapping[Key, Payload | None]) -> Iterator[Statement]:
    """Yield the statements that replace checkpoints, or delete those that are ``None``.

    With these go the calls of their steps and items.
    """
    for (name, item), payload in changed.items():
        if payload is None:
            yield Statement(_DELETE, (run_id, *_columns_of(name, item)))
        else:
            yield _replacement(run_id, (name, item), _NO_NAME, None, None, payload)


def stored_call(run_id: str, key: Key, name: str, stored: StoredCall) -> Statement:
    """Return the statement that stores what a call has returned."""
    return _replacement(run_id, key, column_of(name), *stored)


def _replacement(
    run_id: str, key: Key, name: str, attempt: int | None, arguments: int | None, payload: Payload
) -> Statement:
    values = *_columns_of(*key), name, attempt, arguments, payload.codec
    checksum = _checksum(run_id, *values, payload.data)
    return Statement(_REPLACE, (run_id, *values, checksum, payload.data))


def _columns_of(step: str, item: int | None) -> tuple[str, int]:
    return column_of(step), _NO_ITEM if item is None else item


def key_of_call(run_id: str, key: Key, name: str) -> tuple[object, ...]:
    """Return the parameters of `SELECT_CALL`."""
    return run_id, *_columns_of(*key), column_of(name)


def saved_of(journal: str, run_id: str, rows: Iterable[Sequence[Any]]) -> Saved:
    """Return what a run has saved. A damaged checkpoint is left out: its step starts from the top.

    What calls returned is checked when it is read.
    """
    checkpoints, calls = dict[Key, Payload](), dict[Key, set[str]]()
    for row in rows:
        step, item, name, *_, codec, _, data = row
        if name == _NO_NAME:
            if _is_whole(journal, run_id, row):
                checkpoints[_key_of(step, item)] = Payload(codec, data)
        elif all(isinstance(each, str) for each in (step, name)) and isinstance(item, int):
            calls.setdefault(_key_of(step, item), set()).add(from_column(name))
    return Saved(checkpoints, calls)


def call_of(journal: str, run_id: str, rows: Sequence[Sequence[Any]]) -> StoredCall | None:
    """Return what a call has returned; ``None`` if it is damaged, or is not there."""
    for row in rows:
        if _is_whole(journal, run_id, row):
            *_, attempt, arguments, codec, _, data = row
            return StoredCall(attempt, arguments, Payload(codec, data))
    return None


def _key_of(step: str, item: int) -> Key:
    return from_column(step), None if item == _NO_ITEM else item


def _is_whole(journal: str, run_id: str, row: Sequence[Any]) -> bool:
    step, item, name, attempt, arguments, codec, checksum, data = row
    try:
        is_whole: bool = checksum == _checksum(
            run_id, step, item, name, attempt, arguments, codec, data
        )
    except Exception:  # in a damaged row anything can be of any type
        is_whole = False
    if not is_whole:
        _log.warning(
            "journal %s: a checkpoint of run %r is damaged and was left out: %r",
            *(journal, run_id, (step, name) if name else step),
        )
    return is_whole


def _checksum(
    run_id: str,
    step: str,
    item: int,
    name: str,
    attempt: int | None,
    arguments: int | None,
    codec: str,
    data: bytes,
) -> int:
    of_data = data_checksum(data)
    of_call = f"{name}:{arguments}"
    return event_checksum(
        run_id, 0, "Checkpoint", step, item, attempt, 0.0, codec, of_call, of_data
    )
