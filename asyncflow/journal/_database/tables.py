"""The tables of a journal, the same in every database: see `asyncflow.journal._write.store`.

The statements are SQLite's. `adapted` gives them another database's names of the four types.

Identifiers are compared by their bytes: in Python's order, whatever the locales of a server. The
conditions are about new rows; one that is there and does not meet them is noticed when it is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from zlib import crc32

from asyncflow._core.errors import JournalError


class EventRow(NamedTuple):
    """An event with its run and its position: a row, with the columns of the table."""

    run_id: str
    position: int
    """Counted from 1."""
    kind: str
    """The name of the event's class."""
    step: str | None
    item: int | None
    attempt: int | None
    at_ms: float
    codec: str | None
    """The codec of the event's output; ``None`` if it has none."""
    payload: str | None
    """The fields without a column that have not their default, as a JSON object, if any."""
    data_checksum: int | None
    checksum: int
    """That of all columns before it."""
    data: bytes | None
    """The output, or the data of an attachment."""


EVENT_COLUMNS = EventRow._fields
"""The columns of `events`."""

_EVENT = (
    "run_id TEXT NOT NULL, position INTEGER NOT NULL, kind TEXT NOT NULL, step TEXT, item INTEGER, "
    "attempt INTEGER, at_ms REAL NOT NULL, codec TEXT, payload TEXT, data_checksum INTEGER, "
    "checksum INTEGER NOT NULL"
)

TABLES = {
    "runs": (
        "run_id TEXT PRIMARY KEY, pipeline TEXT NOT NULL, status TEXT NOT NULL CHECK "
        "(status IN ('running', 'waiting', 'passed', 'failed', 'interrupted')), "
        "started_at REAL NOT NULL CHECK (started_at >= 0 AND started_at < 1e300), "
        "updated_at REAL NOT NULL, paused_s REAL NOT NULL DEFAULT 0, last_event INTEGER NOT NULL, "
        "checksum INTEGER NOT NULL, parent TEXT, parent_step TEXT, rerun_of TEXT, label TEXT, "
        "cause TEXT, waits TEXT, due_at REAL, asks INTEGER, key TEXT, attributes TEXT, "
        "enqueued_at REAL, began_at REAL"
    ),
    "keys": (
        "pipeline TEXT NOT NULL, key TEXT NOT NULL, run_id TEXT NOT NULL, due_at REAL, "
        "PRIMARY KEY (pipeline, key)"
    ),
    "queued": (
        "run_id TEXT PRIMARY KEY, pipeline TEXT NOT NULL, key TEXT, due_at REAL NOT NULL, "
        "seq INTEGER NOT NULL, replaces INTEGER NOT NULL, checksum INTEGER NOT NULL"
    ),
    # An index of `runs.attributes`, whose start is that of the run.
    "run_attributes": (
        "run_id TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, started_at REAL NOT NULL, "
        "PRIMARY KEY (run_id, name)"
    ),
    # `renewed_at` and `expires_at` are by the wall clock of the database. In a file, `clock` is
    # `LeaseClock.name`, and `boot_expires_at` a time by `LeaseClock.boot_s`.
    "leases": (
        "run_id TEXT PRIMARY KEY, token INTEGER NOT NULL, owner TEXT, process TEXT, "
        "renewed_at REAL, expires_at REAL NOT NULL, clock TEXT, boot_expires_at REAL, "
        "cancel_token INTEGER, cancel_reason TEXT, cancel_cause TEXT, signal_token INTEGER"
    ),
    "events": (
        # The data come last: SQLite goes through them to what is behind.
        f"{_EVENT}, data BLOB, PRIMARY KEY (run_id, position), CHECK (position > 0 AND item >= 0 "
        "AND attempt >= 0 AND at_ms >= 0 AND at_ms < 1e300)"
    ),
    "notes": f"{_EVENT}, level INTEGER, data BLOB, PRIMARY KEY (run_id, position)",
    "signals": (
        "run_id TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL, sent_at REAL NOT NULL, "
        "sent_by TEXT NOT NULL, note TEXT NOT NULL, codec TEXT, data BLOB, "
        "checksum INTEGER NOT NULL, PRIMARY KEY (run_id, name)"
    ),
    "summaries": (
        "run_id TEXT PRIMARY KEY, position INTEGER NOT NULL, payload TEXT NOT NULL, "
        "data_checksum INTEGER, checksum INTEGER NOT NULL, data BLOB"
    ),
    "checkpoints": (
        # What a call returned has its name; a checkpoint has none, and no arguments.
        "run_id TEXT NOT NULL, step TEXT NOT NULL, item INTEGER NOT NULL, name TEXT NOT NULL, "
        "attempt INTEGER, arguments INTEGER, codec TEXT NOT NULL, checksum INTEGER NOT NULL, "
        "data BLOB NOT NULL, PRIMARY KEY (run_id, step, item, name)"
    ),
    "cached_results": (
        "key TEXT PRIMARY KEY, run_id TEXT NOT NULL, position INTEGER NOT NULL, "
        "attempts INTEGER NOT NULL, duration_ms REAL NOT NULL, stored_at REAL NOT NULL, "
        "checksum INTEGER NOT NULL"
    ),
    # Both expire as leases do: a pause of a pool, and what a process has of it.
    "pools": (
        "pool TEXT PRIMARY KEY, paused_by TEXT NOT NULL, expires_at REAL NOT NULL, clock TEXT, "
        "boot_expires_at REAL"
    ),
    "shares": (
        "pool TEXT NOT NULL, process TEXT NOT NULL, demand INTEGER NOT NULL, "
        "granted INTEGER NOT NULL, least INTEGER NOT NULL, since REAL NOT NULL, "
        "size INTEGER NOT NULL, per_minute REAL, tokens_per_minute REAL, "
        "expires_at REAL NOT NULL, clock TEXT, boot_expires_at REAL, PRIMARY KEY (pool, process)"
    ),
}
"""The columns of each table."""

_INDEXES = (
    "runs_by_start ON runs (started_at, run_id)",
    "runs_by_status ON runs (status, started_at, run_id)",
    # With the status, which counts read.
    "runs_by_pipeline ON runs (pipeline, started_at, run_id, status)",
    "runs_by_parent ON runs (parent, started_at, run_id) WHERE parent IS NOT NULL",
    "runs_by_label ON runs (label, started_at, run_id) WHERE label IS NOT NULL",
    "runs_by_attribute ON run_attributes (name, value, started_at, run_id)",
    "runs_by_cause ON runs (cause, started_at, run_id) WHERE cause IS NOT NULL",
    "runs_due ON runs (due_at) WHERE due_at IS NOT NULL",
    "runs_asking ON runs (pipeline, asks) WHERE asks IS NOT NULL",
    "keys_due ON keys (pipeline, due_at) WHERE due_at IS NOT NULL",
    "queued_without_key ON queued (pipeline, due_at, seq) WHERE key IS NULL",
    "queued_by_key ON queued (pipeline, key, due_at, seq) WHERE key IS NOT NULL",
    "queued_replacing ON queued (pipeline, due_at) WHERE replaces = 1",
    "queued_replacing_by_key ON queued (pipeline, key) WHERE replaces = 1",
    "leases_cancelled ON leases (run_id) WHERE cancel_token IS NOT NULL",
    "leases_signalled ON leases (run_id) WHERE signal_token IS NOT NULL",
    "events_of_runs ON events (run_id, kind, position) WHERE step IS NULL",
    "cached_results_by_run ON cached_results (run_id)",
)

SCHEMA = (
    *(f"CREATE TABLE {table} ({columns})" for table, columns in TABLES.items()),
    *(f"CREATE INDEX {index}" for index in _INDEXES),
)
"""The statements that make the tables."""

VERSION = crc32("\n".join(SCHEMA).encode()) >> 1
"""The version of the schema, which a database stores, in the 31 bits that SQLite has for it.

Until the first release, each change of the schema has another one: its checksum."""


def adapted(statement: str, types: Mapping[str, str], tables: str) -> str:
    """Return a statement with other names of types, and its tables in a namespace."""
    adapted = re.sub(r"\b(TEXT|INTEGER|REAL|BLOB)\b", lambda found: types[found[0]], statement)
    return OF_TABLES.sub(rf"{tables}.\1", adapted)


OF_TABLES = re.compile(rf"\b({'|'.join(TABLES)})\b")
"""Finds the names of tables in a statement."""


def why_unknown(name: str, found: int) -> JournalError:
    """Return the error for a database with another version of the schema, which stays as it is."""
    return JournalError(
        name,
        f"another version of asyncflow has made its tables (schema {found}, and this one makes and "
        f"reads {VERSION} alone); they were left as they are: use that version, or a new journal",
    )
