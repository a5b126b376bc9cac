"""A segment of a run, stored as its events tell it."""

from __future__ import annotations

from typing import Any

from asyncflow.events import Event


async def store_segment(journal: Any, run_id: str, *events: Event) -> None:
    """Take a run as a process does, store these events, and leave it."""
    session, _ = await journal.open(run_id, wait=False, read=bool)
    for event in events:
        session.append(event)
    await session.close()
