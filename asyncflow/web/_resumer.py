"""Resumes runs from their page, in this process, and ends them with the server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from contextvars import Context
from typing import Any, Protocol

from asyncflow._core.comparison import RunComparison
from asyncflow._core.errors import RunAlreadyActiveError, RunCancelledError, did_you_mean
from asyncflow._core.replay import latest_steps
from asyncflow.journal._queries import RunRecord, StoredEvent

__all__ = [
    "Resumable",
    "ResumeRefusedError",
    "Resumer",
    "RunsJournal",
]


class RunsJournal(Protocol):
    """What the pages need of a journal."""

    async def runs(self, *args: Any, **conditions: Any) -> list[RunRecord]:
        """Return the runs that meet the conditions of a `RunFilter`, the latest start first."""
        ...

    async def record(self, run_id: str) -> RunRecord:
        """Return the record of a run."""
        ...

    async def events(self, run_id: str, after: int = 0) -> list[StoredEvent]:
        """Return the events of a run after a position."""
        ...

    async def compare(self, run_id: str, baseline: str) -> RunComparison:
        """Return how a run differs from another one."""
        ...

    async def last_passed(self, run_id: str) -> RunRecord | None:
        """Return the last run of the same pipeline that passed before a run, if there is one."""
        ...

    async def notes(
        self,
        run_id: str,
        *,
        after: int = 0,
        kinds: Any = None,
        step: str | None = None,
        item: int | None = None,
        attempt: int | None = None,
        level: int | str | None = None,
        text: str | None = None,
        limit: int | None = None,
        newest: bool = False,
        data: bool = True,
    ) -> list[StoredEvent]:
        """Return what the steps of a run have said."""
        ...

    async def cancel(self, run_id: str) -> bool:
        """Request the cancellation of a run; return whether a process runs it."""
        ...


class Resumable(Protocol):
    """An `Orchestrator`, or anything else that runs a pipeline."""

    def run(self, *, run_id: str | None = None, journal: Any = None) -> Coroutine[Any, Any, Any]:
        """Start a run, or resume it."""
        ...


_LOOK_EVERY_S = 0.02
_LONGEST_WAIT_S = 3.0
"""How long the response to a resumption waits for the run to begin."""

_log = logging.getLogger("asyncflow")


class ResumeRefusedError(Exception):
    """Raised if the server can't resume a run; the message says why, and what to do."""


class Resumer:
    """Resumes runs, and ends them with the server.

    Args:
        journal: The journal of the runs.
        pipelines: The pipelines whose runs it can resume, by name.

    Raises:
        TypeError: One of them is no pipeline.
    """

    def __init__(self, journal: RunsJournal, pipelines: Mapping[str, Any]) -> None:
        self._journal = journal
        self._pipelines = {name: _runnable(name, each) for name, each in pipelines.items()}
        self._running: dict[str, asyncio.Task[Exception | None]] = {}
        self._is_closed = False

    @property
    def names(self) -> list[str]:
        """The names of its pipelines."""
        return list(self._pipelines)

    def can_resume(self, record: RunRecord) -> bool:
        """Return whether a run can be resumed, and its pipeline is one of these."""
        stopped = record.orphaned or record.status in ("failed", "interrupted")
        return stopped and record.pipeline in self._pipelines

    async def resume(self, record: RunRecord) -> None:
        """Resume a run, and return when it has begun.

        Raises:
            ResumeRefusedError: The run can't be resumed, or failed at once.
        """
        self._check(record)
        await self._check_steps(record)
        self._check(record)  # the server may be stopping meanwhile
        task = self._running.get(record.run_id)
        if task is None:
            # The run has a context of its own, not the request's.
            task = asyncio.create_task(
                self._run(record), name=f"asyncflow:resume:{record.run_id}", context=Context()
            )
            self._running[record.run_id] = task
        give_up_at = asyncio.get_running_loop().time() + _LONGEST_WAIT_S
        while not task.done() and asyncio.get_running_loop().time() < give_up_at:
            if await self._journal.record(record.run_id) != record:
                return  # it has begun
            await asyncio.wait([task], timeout=_LOOK_EVERY_S)
        if task.done() and not task.cancelled():
            error = task.result()
            if error is not None:
                raise ResumeRefusedError(_why_not(error)) from error

    def _check(self, record: RunRecord) -> None:
        name = record.pipeline
        if self._is_closed:
            raise ResumeRefusedError("this server is stopping; resume the run once it runs again")
        if record.status == "passed":
            raise ResumeRefusedError("it has passed, so nothing is left to do")
        if record.status == "running" and not record.orphaned:
            raise ResumeRefusedError(f"it is running already, in {record.owner}")
        if name in self._pipelines:
            return
        if not name:
            raise ResumeRefusedError(
                "its pipeline has no name, so this server can't tell which one it is; resume it "
                "with its steps, its id and this journal"
            )
        known = ", ".join(map(repr, self._pipelines)) or "none"
        raise ResumeRefusedError(
            f"this server has no pipeline {name!r}"
            f"{did_you_mean(name, self._pipelines)}; it has {known}; "
            f"give it the pipeline with pipelines={{{name!r}: …}}, or resume the run "
            "with its steps, its id and this journal"
        )

    async def _check_steps(self, record: RunRecord) -> None:
        """Refuse steps that the run does not have: targets may have left them out."""
        events = [each.event for each in await self._journal.events(record.run_id)]
        had = latest_steps(events)
        steps = getattr(self._pipelines[record.pipeline], "steps", ())
        others = [step.name for step in steps if had and step.name not in had]
        if others:
            raise ResumeRefusedError(
                f"it has no step {others[0]!r} of pipeline {record.pipeline!r}: the step is newer, "
                "or targets left it out; select the steps: asyncflow resume RUN MODULE:PIPELINE "
                "--target STEP, or resume it with its steps, its id and this journal"
            )

    async def _run(self, record: RunRecord) -> Exception | None:
        """Run a run to its end, and return the error that stopped it, if any."""
        run_id, pipeline = record.run_id, self._pipelines[record.pipeline]
        try:
            await pipeline.run(run_id=run_id, journal=self._journal)
        except RunCancelledError:
            _log.info("run %r was cancelled", run_id)
        except RunAlreadyActiveError as error:
            _log.info("run %r is running in %s", run_id, error.owner)
            return error
        except Exception as error:
            _log.exception("run %r can't be resumed", run_id)
            return error
        except asyncio.CancelledError:
            raise
        except BaseException:
            # A step raised KeyboardInterrupt, SystemExit or the like. Its run has ended; leaving
            # this task, the error would end the whole service.
            _log.exception("run %r has ended, the server continues", run_id)
        finally:
            self._running.pop(run_id, None)
        return None

    async def close(self, grace_s: float) -> None:
        """Cancel the runs, and wait until their steps have cleaned up.

        Args:
            grace_s: How many seconds to wait. After that, runs continue as long as the loop.
        """
        self._is_closed = True
        tasks = dict(self._running)
        for task in tasks.values():
            task.cancel()
        if not tasks:
            return
        _, late = await asyncio.wait(tasks.values(), timeout=grace_s)
        for run_id, task in tasks.items():
            if task in late:
                _log.warning("run %r is still cleaning up after %g s", run_id, grace_s)


def _runnable(name: str, pipeline: Any) -> Resumable:
    """Return the object that runs a pipeline."""
    runnable = getattr(pipeline, "orchestrator", pipeline)
    if not callable(getattr(runnable, "run", None)):
        raise TypeError(
            f"pipelines[{name!r}] must be a Pipeline or an Orchestrator, not "
            f"{type(pipeline).__name__}; Orchestrator(steps, name={name!r}) makes one of steps"
        )
    return runnable  # type: ignore[no-any-return]


def _why_not(error: Exception) -> str:
    if isinstance(error, RunAlreadyActiveError):
        return f"it is running already, in {error.owner}"
    return f"{type(error).__name__}: {error}"
