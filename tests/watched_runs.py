"""The events of random runs, as an observer hears them."""

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
        seed: What is random comes of this.
        cut: After how many events its process died, so that another one went on.
        whole: Whether those before that are told too.
    """
    pipeline = RandomPipeline(seed)
    journal = MemoryJournal()
    events = _events(pipeline, journal)
    if cut is None:
        return events
    journal = journal.died_after(min(cut, len(events) - 1))
    before = [*journal.kept[RUN_ID]] if whole else []
    return before + _events(pipeline, journal)


def _events(pipeline: RandomPipeline, journal: MemoryJournal) -> list[Event]:
    events: list[Event] = []
    world = pipeline.world(journal)

    async def main() -> None:
        run: Any = partial(run_pipeline, pipeline.steps(world), run_id=RUN_ID, journal=journal)
        await run(observers=[world.observe, events.append], **pipeline.options)

    run_in_virtual_time(main())
    return events
