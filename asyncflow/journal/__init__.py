"""A journal keeps every event of a run, so that a run whose process has died can go on.

It comes with an extra: ``pip install 'asyncflow-tiers[journal]'``::

    from asyncflow.journal import SQLiteJournal

    async with SQLiteJournal("runs.db") as journal:
        report = await run_pipeline(steps, run_id="nightly-2024-06-01", journal=journal)

A journal may serve any number of runs at once, in any number of event loops and threads, and any
number of processes may share one database: a run belongs to one of them at a time. A process that
has stopped renewing its lease on a run loses it, and then can't write to it any more.

Anybody who can write to the database decides what a resumed run goes on with. With
``codec="cloudpickle"`` they can run any code there; without it, a pickle is never read.
"""

from __future__ import annotations

from asyncflow.journal._postgres import PostgresJournal
from asyncflow.journal._queries import RunRecord, RunStatus, StoredEvent
from asyncflow.journal._sqlite import SQLiteJournal

__all__ = ["PostgresJournal", "RunRecord", "RunStatus", "SQLiteJournal", "StoredEvent"]

for _public in (PostgresJournal, RunRecord, SQLiteJournal, StoredEvent):
    _public.__module__ = __name__  # where users know them from
