"""Journals store every event of a run, so that a run whose process has died can resume.

They come with an extra: ``pip install 'asyncflow-tiers[journal]'``::

    from asyncflow.journal import SQLiteJournal

    async with SQLiteJournal("runs.db") as journal:
        report = await run_pipeline(steps, run_id="nightly-2024-06-01", journal=journal)

One journal serves any number of runs at once, in any number of event loops and threads, and any
number of processes may share one database. Each run belongs to one process at a time. A process
that does not renew its lease on a run loses the run, and can't write to it any more.

Anyone who can write to the database decides what a resumed run starts from. With
``codec="cloudpickle"`` they can run any code in its process; without it, a pickle is never read.
"""

from __future__ import annotations

from asyncflow._core.errors import MissingExtraError

try:
    import msgspec as _msgspec  # noqa: F401  # before the modules that need it
except ImportError as _error:
    raise MissingExtraError(
        "a journal needs msgspec, which comes with an extra: pip install 'asyncflow-tiers[journal]'"
    ) from _error

from asyncflow._core.analysis.comparison import (
    InputChange,
    OutputComparison,
    RunComparison,
    StepComparison,
)
from asyncflow._core.analysis.preview import RunPreview, StepPreview
from asyncflow._core.analysis.statistics import StepOutcome, StepStatistics
from asyncflow.journal._postgres import PostgresJournal
from asyncflow.journal._read.queries import (
    PipelineStatistics,
    QueueStats,
    RunRecord,
    RunSummary,
    StoredEvent,
    WaitsFor,
)
from asyncflow.journal._sqlite import SQLiteJournal

__all__ = [
    "InputChange",
    "OutputComparison",
    "PipelineStatistics",
    "PostgresJournal",
    "QueueStats",
    "RunComparison",
    "RunPreview",
    "RunRecord",
    "RunSummary",
    "SQLiteJournal",
    "StepComparison",
    "StepOutcome",
    "StepPreview",
    "StepStatistics",
    "StoredEvent",
    "WaitsFor",
]

for _public in (
    InputChange,
    OutputComparison,
    PipelineStatistics,
    PostgresJournal,
    QueueStats,
    RunComparison,
    RunPreview,
    RunRecord,
    RunSummary,
    SQLiteJournal,
    StepComparison,
    StepPreview,
    StepStatistics,
    StoredEvent,
    WaitsFor,
):
    _public.__module__ = __name__  # where users import them from
