"""Resumes the runs of a journal whose process has died, or for which a signal has come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, cast

from asyncflow._core.errors import (
    PipelineChangedError,
    RunAlreadyActiveError,
    RunCancelledError,
    RunNotFoundError,
)
from asyncflow._core.history.lost_runs import CONTINUED, LostRuns, NotLostError
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import InterruptionCause, RunStatus
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._core.text import did_you_mean, safe_text
from asyncflow._policies.durable import Journal
from asyncflow._runtime.orchestrator import Orchestrator
from asyncflow._runtime.pipeline import Pipeline

Pipelines: TypeAlias = (
    Iterable[Pipeline | Orchestrator]
    | Mapping[str, Pipeline | Orchestrator | Iterable[WorkflowStep]]
)

_AT_ONCE = 1_000
"""How many runs that wait to start one look finds at most."""

_log = logging.getLogger("asyncflow")


class RecoverableRun(Protocol):
    """A run that a journal offers to resume."""

    @property
    def run_id(self) -> str: ...

    @property
    def pipeline(self) -> str:
        """The name of its pipeline."""
        ...

    @property
    def status(self) -> RunStatus: ...

    @property
    def parent(self) -> str:
        """The run one of whose steps has started it; empty if none has."""
        ...

    @property
    def enqueued_at(self) -> float | None:
        """When it was enqueued; ``None`` if it was not."""
        ...

    @property
    def crashes(self) -> int:
        """How many processes have died while they ran it, since it last ended."""
        ...


class RecoverableJournal(Journal, Protocol):
    """A journal that knows which of its runs have lost their process."""

    async def orphans(self) -> Sequence[RecoverableRun]:
        """Return the runs that have not ended and that no process runs."""
        ...

    async def runs(
        self,
        status: Literal[RunStatus.INTERRUPTED],
        *,
        limit: int | None,
        cause: InterruptionCause | None = None,
    ) -> Sequence[RecoverableRun]:
        """Return the runs that were interrupted, by whatever or only by this."""
        ...

    async def record(self, run_id: str) -> RecoverableRun:
        """Return a run, equal to the one that `runs` or `orphans` returned if nothing has changed.

        Raises:
            RunNotFoundError: There is no such run.
        """
        ...


async def resume_all(
    journal: RecoverableJournal, pipelines: Pipelines, *, interrupted: bool = False
) -> list[RunReport]:
    """Resume all runs of a journal that can go on and have no process; return their reports.

    These are the runs whose process has died, those that a service has interrupted because it was
    shut down, those that have lost a resource or could not open one, and those that waited for a
    signal, if that has come or its deadline has expired; and those that wait to start and are due,
    of which those of one key run one after the other.

    A service calls it when it starts, before or while it takes new work. The runs resume
    concurrently. A run that another replica takes first is left to it. The step that started a
    nested run resumes it; this call does so only if the outer run ends without it. A run that can't
    resume, for example because its pipeline is not among those given, is logged as an error and
    left as it is; it stops neither the other runs nor the service.

    Args:
        journal: The journal.
        pipelines: The pipelines of which there may be runs: a list of `Pipeline` and `Orchestrator`
            objects, each of which has a name of its own, or a mapping of name to such an object or
            to a list of steps.
        interrupted: Whether to resume cancelled runs too. Not by default: a run may have been
            cancelled for good.

    Raises:
        TypeError: An argument has the wrong type, or one of the pipelines is not a pipeline.
        ValueError: Two of them have the same name, or one has none.
        JournalError: The runs can't be read from the journal.
    """
    known = pipelines_by_name(pipelines)
    if not callable(getattr(journal, "orphans", None)):
        raise TypeError(
            "journal must be one that knows its orphans, such as those of asyncflow.journal, not "
            f"{type(journal).__name__}"
        )
    if not isinstance(interrupted, bool):
        raise TypeError(f"interrupted must be True or False, not {safe_text(repr, interrupted)}")
    lost = [*await journal.orphans()]
    if callable(getattr(journal, "due", None)):
        lost += await journal.due(limit=None)  # type: ignore[attr-defined]
    if interrupted:
        lost += await journal.runs(RunStatus.INTERRUPTED, limit=None)
    else:
        lost += await find_continued(journal)
    outer = {run.run_id for run in lost}
    nested: dict[str, list[RecoverableRun]] = {}
    for run in lost:
        if outer_run_of(run) in outer:
            nested.setdefault(run.parent, []).append(run)
    lost_only: Any = LostRuns(journal, None if interrupted else CONTINUED)
    reports: list[RunReport] = []

    async def resume(run: RecoverableRun) -> None:
        if outer_run_of(run) and not await is_left_alone(journal, run):
            return
        pipeline, run_id = find_pipeline(run, known), run.run_id
        if pipeline is not None:
            await start(pipeline, run_id)
        resume_each(nested.get(run_id, ()))

    async def start(pipeline: Pipeline | Orchestrator, run_id: str) -> None:
        try:
            reports.append(await pipeline.with_options(run_id=run_id, journal=lost_only).run())
        except NotLostError:
            pass
        except Exception as error:
            log_unresumed(run_id, error)

    def resume_each(runs: Iterable[RecoverableRun]) -> None:
        for run in runs:
            group.create_task(resume(run))

    async def start_queued() -> None:
        """Start the runs that wait to start and are due, those of a key one after the other."""
        started: set[str] = set()
        running: set[asyncio.Task[None]] = set()
        while True:
            due = await journal._due_to_start(known, _AT_ONCE, started)  # type: ignore[attr-defined]
            for run in due.runs:
                started.add(run.run_id)
                running.add(group.create_task(start(known[run.name], run.run_id)))
            if not running:
                return
            _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)

    async with asyncio.TaskGroup() as group:
        resume_each(run for run in lost if outer_run_of(run) not in outer)
        if callable(getattr(journal, "_due_to_start", None)):
            group.create_task(start_queued())
    return reports


async def find_continued(journal: RecoverableJournal) -> list[RecoverableRun]:
    """Return the runs that were interrupted and continue when they can."""
    drained = await journal.runs(RunStatus.INTERRUPTED, limit=None, cause="drained")
    stopped = await journal.runs(RunStatus.INTERRUPTED, limit=None, cause="resource")
    # The outer run of a nested one has dealt with that.
    return [*drained, *(run for run in stopped if not outer_run_of(run))]


def outer_run_of(run: RecoverableRun) -> str:
    """Return the run in whose step a run is nested; empty if in none.

    A run that a step has enqueued goes its own way.
    """
    return run.parent if getattr(run, "enqueued_at", None) is None else ""


async def is_left_alone(journal: RecoverableJournal, nested: RecoverableRun) -> bool:
    """Return whether a nested run is still as it was found, and its outer run does not run.

    While the outer run runs, one of its steps may resume the nested one.
    """
    try:
        if await journal.record(nested.run_id) != nested:
            return False
    except RunNotFoundError:
        return False
    try:
        outer = await journal.record(nested.parent)
    except RunNotFoundError:
        return True
    return outer.status is not RunStatus.RUNNING


def find_pipeline(
    run: RecoverableRun, known: Mapping[str, Pipeline | Orchestrator]
) -> Pipeline | Orchestrator | None:
    """Return the pipeline of a run; log an error if it is not known."""
    pipeline = known.get(run.pipeline)
    if pipeline is None:
        _log.error(
            "run %r can't be resumed: no pipeline is named %r%s",
            *(run.run_id, run.pipeline, did_you_mean(run.pipeline, known)),
        )
    return pipeline


def log_unresumed(run_id: str, error: Exception) -> None:
    """Log why a run was not resumed to its end."""
    if isinstance(error, RunAlreadyActiveError):
        _log.info("run %r resumes in another process", run_id)
    elif isinstance(error, RunCancelledError):
        _log.info("%s", error)
    elif isinstance(error, PipelineChangedError):
        _log.error("%s", error)
    else:
        _log.error("run %r can't be resumed", run_id, exc_info=error)


def pipelines_by_name(pipelines: Pipelines) -> dict[str, Pipeline | Orchestrator]:
    """Return pipelines by their names; of steps, an `Orchestrator`."""
    known: dict[str, Pipeline | Orchestrator] = {}
    if isinstance(pipelines, Mapping):
        named = cast("Mapping[str, Any]", pipelines)
        for name, each in named.items():
            if not isinstance(name, str):
                raise TypeError(f"pipelines must have names for keys, not {type(name).__name__}")
            is_made = isinstance(each, Pipeline | Orchestrator)
            known[name] = each if is_made else Orchestrator(each, name=name)
        return known
    if isinstance(pipelines, str) or not isinstance(pipelines, Iterable):
        raise TypeError(
            "pipelines must be a list of pipelines or a mapping of name to pipeline, not "
            f"{type(pipelines).__name__}"
        )
    for pipeline in pipelines:
        if not isinstance(pipeline, Pipeline | Orchestrator):
            raise TypeError(
                "pipelines must be Pipeline and Orchestrator objects, not "
                f"{type(pipeline).__name__}; give lists of steps by name: {{'etl': steps}}"
            )
        if not pipeline.name:
            raise ValueError("an Orchestrator needs a name here: Orchestrator(..., name=...)")
        if pipeline.name in known:
            raise ValueError(f"two pipelines are named {pipeline.name!r}")
        known[pipeline.name] = pipeline
    return known


resume_all.__module__ = "asyncflow"  # where users know it from
