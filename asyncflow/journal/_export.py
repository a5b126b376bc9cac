"""Copies one run of any journal into a new SQLite file.

Rules:

1. Rows stay as they are, with their positions, times and checksums. So a damaged run is refused.
2. What is secret was never stored. What has become secret since is left out of the copy.
3. Nothing is overwritten, and no file is left behind if the copy fails.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from asyncflow._core.record import replace
from asyncflow._core.replay import StoredRun
from asyncflow._core.results import REDACTED
from asyncflow.events import Event, RunResumed, RunStarted, StepSucceeded, StepTakenOver
from asyncflow.journal._event_codec import column_of, event_checksum, row_of
from asyncflow.journal._sql import EVENT_COLUMNS, marks
from asyncflow.journal._sqlite import SQLite
from asyncflow.journal._store import TABLES_OF_A_RUN, Store

_COPIED = [
    table for table in TABLES_OF_A_RUN if table not in ("events", "leases", "cached_results")
]
"""The lease is that of the process that runs it, and what other runs reuse is for these."""


def export_run(source: Store, run_id: str, path: str) -> None:
    """Copy a run into a new file.

    Raises:
        FileExistsError: There is such a file.
        RunUnreadableError: The run is damaged.
    """
    with open(path, "x"):
        pass
    target = Store(SQLite(path, "FULL", 1.0))
    try:
        with target.database.transaction() as cursor:
            columns = {}
            for table in _COPIED:
                cursor.execute(f"SELECT name FROM pragma_table_info('{table}')")
                columns[table] = [name for (name,) in cursor.fetchall()]
            rows, events = _rows_of(source, run_id, columns)
            target.make_leases(cursor, [run_id])
            for table, names in (*columns.items(), ("events", EVENT_COLUMNS)):
                values = ", ".join(names), marks(len(names))
                sql = "INSERT INTO {} ({}) VALUES ({})".format(table, *values)
                for row in events if table == "events" else rows[table]:
                    cursor.execute(sql, row)
        target.database.close()
    except BaseException:
        target.database.close()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        raise


def _rows_of(
    source: Store, run_id: str, columns: dict[str, list[str]]
) -> tuple[dict[str, list[Any]], list[Sequence[Any]]]:
    """Return the rows of a run in each table, and those of its events, as of one moment."""
    while True:
        selects = {
            table: f"SELECT {', '.join(names)} FROM {table} WHERE run_id = ?"
            for table, names in columns.items()
        }
        rows = {table: source.read(sql, [run_id]) for table, sql in selects.items()}
        events = source.events(run_id)
        # It may have resumed or ended meanwhile.
        if rows["runs"] == source.read(selects["runs"], [run_id]):
            break
    history = [event for _, event in events]
    starts = [each for each in history if isinstance(each, RunStarted | RunResumed)]
    secret = {name for start in starts for name in start.secret}
    at = columns["checkpoints"].index("step")
    hidden = set(map(column_of, secret))
    rows["checkpoints"] = [row for row in rows["checkpoints"] if row[at] not in hidden]
    return rows, list(_event_rows(run_id, history, secret))


def _event_rows(
    run_id: str, events: Sequence[Event], secret: Collection[str]
) -> Iterator[Sequence[Any]]:
    secret_inputs = StoredRun(events).secret_inputs
    for position, event in enumerate(events, 1):
        row = row_of(run_id, position, _without_secrets(event, secret, secret_inputs))
        yield (*row, event_checksum(*row))


def _without_secrets(event: Event, steps: Collection[str], inputs: Collection[str]) -> Event:
    if isinstance(event, RunStarted | RunResumed) and not event.inputs.keys().isdisjoint(inputs):
        shown = {n: REDACTED if n in inputs else value for n, value in event.inputs.items()}
        return replace(event, inputs=shown)
    if isinstance(event, StepSucceeded | StepTakenOver) and event.step in steps:
        return replace(event, output=REDACTED)
    return event
