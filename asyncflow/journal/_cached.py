"""The rows by which steps with ``cache_ms`` find results: each names the event that has one.

A row is written in the transaction of its event, and deleted with its run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from asyncflow._core.error_text import describe_fully
from asyncflow._core.results import Payload
from asyncflow._core.step_cache import CachedResult
from asyncflow.events import StepSucceeded
from asyncflow.journal._event_codec import event_checksum, event_of
from asyncflow.journal._sql import EVENT_COLUMNS, Statement

_REMEMBER = (
    "INSERT INTO cached_results (key, run_id, position, attempts, duration_ms, stored_at, "
    "checksum) VALUES (?, ?, ?, ?, ?, {now}, ?) ON CONFLICT (key) DO UPDATE SET "
    "run_id = excluded.run_id, position = excluded.position, attempts = excluded.attempts, "
    "duration_ms = excluded.duration_ms, stored_at = excluded.stored_at, "
    "checksum = excluded.checksum"
)

SELECT_CACHED = (
    "SELECT c.run_id, c.position, c.attempts, c.duration_ms, c.checksum, "
    f"{', '.join(f'e.{column}' for column in EVENT_COLUMNS)} FROM cached_results c "
    "JOIN events e ON e.run_id = c.run_id AND e.position = c.position "
    "WHERE c.key = ? AND c.stored_at >= {now} - ?"
)
"""The results with a key that are not older than so many seconds: one, or none."""

_log = logging.getLogger("asyncflow")


def remembered(
    key: str, run_id: str, position: int, attempts: int, duration_ms: float
) -> Statement:
    """Return the statement that lets a result be found."""
    values = run_id, position, attempts, duration_ms
    return Statement(_REMEMBER, (key, *values, _checksum(key, *values)))


def cached_of(journal: str, key: str, row: Sequence[Any]) -> CachedResult | None:
    """Return the result that a row of `SELECT_CACHED` leads to; ``None`` if it is damaged."""
    run_id, position, attempts, duration_ms, checksum, *event_row = row
    try:
        if checksum != _checksum(key, run_id, position, attempts, duration_ms):
            raise ValueError("its checksum is wrong, so it has changed since it was written")
        event = event_of(event_row)
        if isinstance(event, StepSucceeded) and isinstance(event.output, Payload):
            return CachedResult(run_id, attempts, duration_ms, event.output)
        raise ValueError("it leads to another event")
    # Only our decoding is in here, and in a damaged row anything can be of any type.
    except Exception as error:
        _log.warning(
            "journal %s: a result of run %r can't be reused: %s",
            *(journal, run_id, describe_fully(error)),
        )
        return None


def _checksum(key: str, run_id: str, position: int, attempts: int, duration_ms: float) -> int:
    return event_checksum(
        run_id, position, "Cached", None, None, attempts, duration_ms, None, key, None
    )
