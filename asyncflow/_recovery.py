"""What a service does when it starts: it goes on with the runs whose process has died."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Protocol

from asyncflow._errors import RunAlreadyActiveError, nearest
from asyncflow._journal import Journal
from asyncflow._orchestrator import Orchestrator
from asyncflow._pipeline import Pipeline
from asyncflow._report import RunReport

__all__ = ["Orphan", "Orphanage", "resume_all"]
_log = logging.getLogger("asyncflow")


class Orphan(Protocol):
    """A run that nobody runs, though it has not ended."""

    @property
    def run_id(self) -> str:
        """Identifies the run."""
        ...

    @property
    def pipeline(self) -> str:
        """What its pipeline is called."""
        ...


class Orphanage(Journal, Protocol):
    """A journal that knows which of its runs have lost their process."""

    async def orphans(self) -> Sequence[Orphan]:
        """Return them."""
        ...


async def resume_all(
    journal: Orphanage, pipelines: Iterable[Pipeline | Orchestrator]
) -> list[RunReport]:
    """Go on with all runs of a journal whose process has died, and return their reports.

    A service calls it when it starts, before or while it takes new work. All of them go on at the
    same time. One that another replica takes first is left to that; one whose pipeline is not
    among those given is left as it is, with a warning.

    Args:
        journal: The journal.
        pipelines: The pipelines of which there may be runs. Each has a name of its own.

    Raises:
        ValueError: Two of them have the same name, or one has none.
        JournalError: The journal has failed.
        ExceptionGroup: Some runs could not go on. The others have ended.
    """
    known = _by_name(pipelines)
    reports: list[RunReport] = []
    failures: list[Exception] = []

    async def go_on(orchestrator: Orchestrator, run_id: str) -> None:
        try:
            reports.append(await orchestrator.run(run_id=run_id, journal=journal))
        except RunAlreadyActiveError:
            _log.info("run %r goes on in another process", run_id)
        except Exception as failure:
            failure.add_note(f"when run {run_id!r} was to go on")
            failures.append(failure)

    async with asyncio.TaskGroup() as group:
        for orphan in await journal.orphans():
            if orphan.pipeline in known:
                group.create_task(go_on(known[orphan.pipeline], orphan.run_id))
            else:
                _log.warning(
                    "run %r can't go on: no pipeline is named %r%s",
                    *(orphan.run_id, orphan.pipeline, nearest(orphan.pipeline, known)),
                )
    if failures:
        raise ExceptionGroup(f"{len(failures)} runs could not go on", failures)
    return reports


def _by_name(pipelines: Iterable[Pipeline | Orchestrator]) -> dict[str, Orchestrator]:
    known: dict[str, Orchestrator] = {}
    for pipeline in pipelines:
        if not isinstance(pipeline, Pipeline | Orchestrator):
            raise TypeError(
                "resume_all() takes Pipeline and Orchestrator objects, not "
                f"{type(pipeline).__name__}"
            )
        if not pipeline.name:
            raise ValueError("an Orchestrator needs a name here: Orchestrator(..., name=...)")
        if pipeline.name in known:
            raise ValueError(f"two pipelines are named {pipeline.name!r}")
        known[pipeline.name] = pipeline.orchestrator if isinstance(pipeline, Pipeline) else pipeline
    return known
