"""Copies one run of any journal into a new SQLite file.

Rules:

1. Rows stay as they are, with their positions, times and checksums. So a damaged run is refused.
2. What is secret was never stored. What has become secret since is left out of the copy.
3. Nothing is overwritten, and no file is left behind if the copy fails.
4. The run may change, or be deleted, while it is read: then it is read again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from asyncflow._core.history.results import REDACTED
from asyncflow._core.record import replace
from asyncflow.events import Event, ResultReused, RunResumed, RunStarted, StepSucceeded
from asyncflow.journal._codec.events import column_of, row_of
from asyncflow.journal._database.sql import Cursor, marks
from asyncflow.journal._database.sqlite import SQLite
from asyncflow.journal._database.tables import EVENT_COLUMNS
from asyncflow.journal._read.run_lists import RunLists
from asyncflow.journal._write.store import TABLES_OF_A_RUN, Store

_COPIED = [
    table for table in TABLES_OF_A_RUN if table not in ("events", "leases", "cached_results")
]
"""The lease is that of the process that runs it, and what other runs reuse is for these."""


def export_run(source: Store, lists: RunLists, run_id: str, path: str) -> None:
    """Copy a run into a new file.

    Raises:
        FileExistsError: There is such a file.
        RunNotFoundError: The run is not there, or not any more.
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
            is_whole = False
            while not is_whole:
                for table in TABLES_OF_A_RUN:
                    cursor.execute(f"DELETE FROM {table}")
                target.make_leases(cursor, [run_id])
                is_whole = _copy(source, lists, run_id, columns, cursor)
        target.database.close()
    except BaseException:
        target.database.close()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        raise


def _copy(
    source: Store, lists: RunLists, run_id: str, columns: dict[str, list[str]], cursor: Cursor
) -> bool:
    """Copy the rows of a run; return whether they are of one moment."""
    selects = {
        table: f"SELECT {', '.join(names)} FROM {table} WHERE run_id = ?"
        for table, names in columns.items()
    }
    before = source.read(selects["runs"], [run_id])
    if not before:
        raise lists.unknown(run_id)
    starts = [
        event for event in source.events(run_id) if isinstance(event, RunStarted | RunResumed)
    ]
    secret = {name for start in starts for name in start.secret}
    hidden, step = set(map(column_of, secret)), columns["checkpoints"].index("step")
    for table, names in columns.items():
        rows = source.read(selects[table], [run_id])
        if table == "checkpoints":
            rows = [row for row in rows if row[step] not in hidden]
        for row in rows:
            cursor.execute(_insertion(table, names), row)
    inputs = {name for start in starts for name, value in start.inputs.items() if value == REDACTED}
    insertion = _insertion("events", EVENT_COLUMNS)
    for position, event in enumerate(source.events(run_id), 1):
        row = row_of(run_id, position, _without_secrets(event, secret, inputs))
        cursor.execute(insertion, row)
    # It may have resumed, ended or been deleted meanwhile. A NaN in a damaged row is not itself.
    return repr(source.read(selects["runs"], [run_id])) == repr(before)


def _insertion(table: str, columns: Sequence[str]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks(len(columns))})"


def _without_secrets(event: Event, steps: Collection[str], inputs: Collection[str]) -> Event:
    if isinstance(event, RunStarted | RunResumed) and not event.inputs.keys().isdisjoint(inputs):
        shown = {n: REDACTED if n in inputs else value for n, value in event.inputs.items()}
        return replace(event, inputs=shown)
    if isinstance(event, StepSucceeded | ResultReused) and event.step in steps:
        return replace(event, output=REDACTED)
    return event
