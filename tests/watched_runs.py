"""The events of random runs, as an observer receives them."""

from __future__ import annotations

from functools import partial
from typing import Any

from memory_journal import MemoryJournal
from random_runs import RUN_ID, RandomPipeline

from asyncflow import run_pipeline
from asyncflow.events import Event
from asyncflow.testing import run_in_virtual_time

__all__ = ["random_events"]


def random_events(seed: int, cut: int | None, *, whole: bool = False) -> list[Event]:
    """Return the events of a run.

    Args:
        seed: The seed of the random pipeline.
        cut: The number of events after which its process died and another one resumed the run.
        whole: Whether to return the events before that, too.
    """
    pipeline = RandomPipeline(seed)
    journal = MemoryJournal()
    events = _events(pipeline, journal)
    if cut is None:
        return events
    journal = journal.died_after(min(cut, len(events) - 1))
    before = [*journal.stored[RUN_ID]] if whole else []
    return before + _events(pipeline, journal)


def _events(pipeline: RandomPipeline, journal: MemoryJournal) -> list[Event]:
    events: list[Event] = []
    world = pipeline.world(journal)

    async def main() -> None:
        run: Any = partial(run_pipeline, pipeline.steps(world), run_id=RUN_ID, journal=journal)
        await run(observers=[world.observe, events.append], **pipeline.options)

    run_in_virtual_time(main())
    return events
