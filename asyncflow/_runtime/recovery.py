"""Resumes the runs of a journal whose process has died."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, cast

from asyncflow._core.errors import RunAlreadyActiveError, RunCancelledError, did_you_mean
from asyncflow._core.report import RunReport
from asyncflow._core.step import WorkflowStep
from asyncflow._runtime.durable import Journal
from asyncflow._runtime.orchestrator import Orchestrator
from asyncflow._runtime.pipeline import Pipeline

__all__ = ["Pipelines", "RecoverableJournal", "RecoverableRun", "resume_all"]

Pipelines: TypeAlias = (
    Iterable[Pipeline | Orchestrator]
    | Mapping[str, Pipeline | Orchestrator | Iterable[WorkflowStep]]
)
_log = logging.getLogger("asyncflow")


class RecoverableRun(Protocol):
    """A run that a journal offers to resume."""

    @property
    def run_id(self) -> str: ...

    @property
    def pipeline(self) -> str:
        """The name of its pipeline."""
        ...


class RecoverableJournal(Journal, Protocol):
    """A journal that knows which of its runs have lost their process."""

    async def orphans(self) -> Sequence[RecoverableRun]:
        """Return the runs that have not ended and that no process runs."""
        ...

    async def runs(
        self, status: Literal["interrupted"], *, limit: int | None
    ) -> Sequence[RecoverableRun]:
        """Return the runs that ended because they were cancelled."""
        ...


async def resume_all(
    journal: RecoverableJournal, pipelines: Pipelines, *, interrupted: bool = False
) -> list[RunReport]:
    """Resume all runs of a journal whose process has died, and return their reports.

    A service calls it when it starts, before or while it takes new work. The runs resume
    concurrently. A run that another replica takes first is left to it. A run that can't resume, for
    example because its pipeline is not among those given, is logged as an error and left as it is;
    it stops neither the other runs nor the service.

    Args:
        journal: The journal.
        pipelines: The pipelines of which there may be runs: a list of `Pipeline` and `Orchestrator`
            objects, each of which has a name of its own, or a mapping of name to such an object or
            to a list of steps.
        interrupted: Whether to resume cancelled runs too, such as those of a service that was shut
            down gracefully. Not by default: a run may have been cancelled for good.

    Raises:
        TypeError: One of the pipelines is not a pipeline.
        ValueError: Two of them have the same name, or one has none.
        JournalError: The runs can't be read from the journal.
    """
    known = _by_name(pipelines)
    reports: list[RunReport] = []
    orphans = [*await journal.orphans()]
    if interrupted:
        orphans += await journal.runs("interrupted", limit=None)

    async def resume(orchestrator: Orchestrator, run_id: str) -> None:
        try:
            reports.append(await orchestrator.with_options(run_id=run_id, journal=journal).run())
        except RunAlreadyActiveError:
            _log.info("run %r resumes in another process", run_id)
        except RunCancelledError as cancelled:
            _log.info("%s", cancelled)
        except Exception:
            _log.exception("run %r can't be resumed", run_id)

    async with asyncio.TaskGroup() as group:
        for orphan in orphans:
            if orphan.pipeline in known:
                group.create_task(resume(known[orphan.pipeline], orphan.run_id))
            else:
                _log.error(
                    "run %r can't be resumed: no pipeline is named %r%s",
                    *(orphan.run_id, orphan.pipeline, did_you_mean(orphan.pipeline, known)),
                )
    return reports


def _by_name(pipelines: Pipelines) -> dict[str, Orchestrator]:
    known: dict[str, Orchestrator] = {}
    if isinstance(pipelines, Mapping):
        named = cast("Mapping[str, Any]", pipelines)
        return {name: _orchestrator(name, pipeline) for name, pipeline in named.items()}
    for pipeline in pipelines:
        if not isinstance(pipeline, Pipeline | Orchestrator):
            raise TypeError(
                "resume_all() takes Pipeline and Orchestrator objects, not "
                f"{type(pipeline).__name__}; give lists of steps by name: {{'etl': steps}}"
            )
        if not pipeline.name:
            raise ValueError("an Orchestrator needs a name here: Orchestrator(..., name=...)")
        if pipeline.name in known:
            raise ValueError(f"two pipelines are named {pipeline.name!r}")
        known[pipeline.name] = _orchestrator(pipeline.name, pipeline)
    return known


def _orchestrator(
    name: str, pipeline: Pipeline | Orchestrator | Iterable[WorkflowStep]
) -> Orchestrator:
    if isinstance(pipeline, Pipeline):
        return pipeline.orchestrator
    return pipeline if isinstance(pipeline, Orchestrator) else Orchestrator(pipeline, name=name)
