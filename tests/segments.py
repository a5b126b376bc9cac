"""A segment of a run, stored as its events tell it."""

from __future__ import annotations

from typing import Any

from asyncflow._core.analysis.statistics import step_runs
from asyncflow._core.history.replay import StoredRun
from asyncflow.events import Event


async def store_segment(
    journal: Any, run_id: str, *events: Event, with_steps: bool = False
) -> None:
    """Take a run as a process does, store these events, and leave it.

    ``with_steps`` says whether its summary has how its steps ended, as that of a driver.
    """
    session, _ = await journal.open(run_id, wait=False, read=bool)
    if with_steps:
        session.append_step_runs(step_runs(StoredRun(events)))
    for event in events:
        session.append(event)
    await session.close()
