"""The rows by which steps with ``cache_ms`` find results: each names the event that has one.

A row is written in the transaction of its event, and deleted with its run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from asyncflow._core.history.results import Payload
from asyncflow._core.running.step_cache import CachedResult
from asyncflow._core.text import describe_fully
from asyncflow.events import StepSucceeded
from asyncflow.journal._codec.events import event_checksum, event_of
from asyncflow.journal._database.sql import NOW, Statement
from asyncflow.journal._database.tables import EVENT_COLUMNS

_REMEMBER = (
    "INSERT INTO cached_results (key, run_id, position, attempts, duration_ms, stored_at, "
    f"checksum) VALUES (?, ?, ?, ?, ?, {NOW}, ?) ON CONFLICT (key) DO UPDATE SET "
    "run_id = excluded.run_id, position = excluded.position, attempts = excluded.attempts, "
    "duration_ms = excluded.duration_ms, stored_at = excluded.stored_at, "
    "checksum = excluded.checksum"
)

SELECT_CACHED = (
    f"SELECT c.key, {NOW} - c.stored_at, c.run_id, c.position, c.attempts, c.duration_ms, "
    f"c.checksum, {', '.join(f'e.{column}' for column in EVENT_COLUMNS)} FROM cached_results c "
    "JOIN events e ON e.run_id = c.run_id AND e.position = c.position "
    "WHERE c.key IN ({keys})"
)
"""The results with some keys, each with its age in seconds: the present is a parameter."""

Wanted: TypeAlias = Mapping[str, float]
"""Keys, each with how many seconds old its result may be."""

_log = logging.getLogger("asyncflow")


def remembered(
    key: str,
    run_id: str,
    position: int,
    attempts: int,
    duration_ms: float,
    now: float | None,
) -> Statement:
    """Return the statement that lets a result be found. ``now`` is the present in virtual time."""
    values = run_id, position, attempts, duration_ms
    return Statement(_REMEMBER, (key, *values, now, _checksum(key, *values)))


class CacheLookup(NamedTuple):
    """What is asked for: the result with a key, which may be so many seconds old.

    ``now`` is the present in virtual time.
    """

    key: str
    age_s: float
    now: float | None


def wanted_by(lookups: Iterable[CacheLookup]) -> dict[float | None, dict[str, float]]:
    """Return what is wanted at each present. Of equal lookups, the lowest age counts."""
    wanted: dict[float | None, dict[str, float]] = {}
    for key, age_s, now in lookups:
        at = wanted.setdefault(now, {})
        at[key] = min(age_s, at.get(key, age_s))
    return wanted


def cached_of(
    journal: str, wanted: Wanted, rows: Iterable[Sequence[Any]]
) -> dict[str, CachedResult]:
    """Return the results that rows of `SELECT_CACHED` lead to, without the damaged and the old."""
    found = {}
    for key, age_s, *row in rows:
        result = _result_of(journal, key, row) if age_s <= wanted.get(key, -1) else None
        if result is not None:
            found[key] = result
    return found


def _result_of(journal: str, key: str, row: Sequence[Any]) -> CachedResult | None:
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
