"""The rows of checkpoints: from where the next attempt of a step or an item continues.

The owner of a run writes and deletes them in the transactions of its events, which check its lease.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from asyncflow._core.results import Payload
from asyncflow._core.step_runs import Key
from asyncflow.journal._event_codec import column_of, data_checksum, event_checksum, from_column
from asyncflow.journal._sql import Statement

_NO_ITEM = -1
"""The item of a step as a whole: a column of a primary key holds no NULL."""

_REPLACE = (
    "INSERT INTO checkpoints (run_id, step, item, codec, data, checksum) VALUES (?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (run_id, step, item) DO UPDATE SET codec = excluded.codec, data = excluded.data, "
    "checksum = excluded.checksum"
)
_DELETE = "DELETE FROM checkpoints WHERE run_id = ? AND step = ? AND item = ?"

SELECT_CHECKPOINTS = "SELECT step, item, codec, data, checksum FROM checkpoints WHERE run_id = ?"

_log = logging.getLogger("asyncflow")


def changes_of(run_id: str, changed: Mapping[Key, Payload | None]) -> Iterator[Statement]:
    """Yield the statements that replace checkpoints, or delete those that are ``None``."""
    for (name, item), payload in changed.items():
        step, number = column_of(name), _NO_ITEM if item is None else item
        if payload is None:
            yield Statement(_DELETE, (run_id, step, number))
        else:
            checksum = _checksum(run_id, step, number, *payload)
            yield Statement(_REPLACE, (run_id, step, number, *payload, checksum))


def checkpoints_of(journal: str, run_id: str, rows: Iterable[Sequence[Any]]) -> dict[Key, Payload]:
    """Return the checkpoints of a run. A damaged one is left out: its step starts from the top."""
    found: dict[Key, Payload] = {}
    for step, item, codec, data, checksum in rows:
        try:
            is_whole = checksum == _checksum(run_id, step, item, codec, data)
        except Exception:  # in a damaged row anything can be of any type
            is_whole = False
        if is_whole:
            found[from_column(step), None if item == _NO_ITEM else item] = Payload(codec, data)
        else:
            _log.warning(
                "journal %s: a checkpoint of run %r is damaged and was left out: %r",
                *(journal, run_id, step),
            )
    return found


def _checksum(run_id: str, step: str, item: int, codec: str, data: bytes) -> int:
    of_data = data_checksum(data)
    return event_checksum(run_id, 0, "Checkpoint", step, item, None, 0.0, codec, None, of_data)
