"""The runs that people have resumed from a page, which this process goes on with.

What the pages ask of a journal, and of the pipelines whose runs they may resume.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from contextvars import Context
from typing import Any, Protocol

from asyncflow._core.errors import RunAlreadyActiveError, RunCancelledError, did_you_mean
from asyncflow._core.replay import latest_steps
from asyncflow.journal._queries import RunRecord, RunStatus, StoredEvent

__all__ = [
    "Resumable",
    "ResumeRefusedError",
    "Resumer",
    "RunsJournal",
]


class RunsJournal(Protocol):
    """A journal as `asyncflow.journal` has them."""

    async def runs(
        self,
        status: RunStatus | None = None,
        pipeline: str | None = None,
        since: float | None = None,
        limit: int | None = 100,
        *,
        before: tuple[float, str] | None = None,
        text: str | None = None,
        orphaned: bool | None = None,
    ) -> list[RunRecord]:
        """Return the runs that are kept, those that began last first."""
        ...

    async def record(self, run_id: str) -> RunRecord:
        """Return what is known of a run at a glance."""
        ...

    async def events(self, run_id: str, after: int = 0) -> list[StoredEvent]:
        """Return the events of a run after a position."""
        ...

    async def cancel(self, run_id: str) -> bool:
        """Ask whoever runs a run to stop it; return whether somebody does."""
        ...


class Resumable(Protocol):
    """What runs a pipeline: an `Orchestrator`, or a `Pipeline`, which has one."""

    def run(self, *, run_id: str | None = None, journal: Any = None) -> Coroutine[Any, Any, Any]:
        """Start a run, or go on with it."""
        ...


_LOOK_EVERY_S = 0.02
_LONGEST_WAIT_S = 3.0
"""For how long the one who has resumed a run waits until that is seen to have begun."""

_log = logging.getLogger("asyncflow")


class ResumeRefusedError(Exception):
    """A run can't be resumed here; the message says why, and what to do."""


class Resumer:
    """Resumes runs, and ends them with the server.

    Args:
        journal: What has kept them.
        pipelines: The pipelines whose runs it can resume, each under its name.

    Raises:
        TypeError: Something among them is no pipeline.
    """

    def __init__(self, journal: RunsJournal, pipelines: Mapping[str, Any]) -> None:
        self._journal = journal
        self._pipelines = {name: _runnable(name, each) for name, each in pipelines.items()}
        self._going_on: dict[str, asyncio.Task[Exception | None]] = {}
        self._is_closed = False

    @property
    def names(self) -> list[str]:
        """The names of the pipelines that it knows."""
        return list(self._pipelines)

    def can_resume(self, record: RunRecord) -> bool:
        """Return whether a run has stopped before its end, and its pipeline is known here."""
        stopped = record.orphaned or record.status in ("failed", "interrupted")
        return stopped and record.pipeline in self._pipelines

    async def resume(self, record: RunRecord) -> None:
        """Go on with a run; returns when it has begun, and does not wait for its end.

        Raises:
            ResumeRefusedError: That can't be, or it has failed at once.
        """
        self._check(record)
        await self._check_steps(record)
        self._check(record)  # the server may have been told to stop meanwhile
        task = self._going_on.get(record.run_id)
        if task is None:
            # Nothing of the request goes on with the run.
            task = asyncio.create_task(
                self._go_on(record), name=f"asyncflow:resume:{record.run_id}", context=Context()
            )
            self._going_on[record.run_id] = task
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
            raise ResumeRefusedError("this server is about to stop; resume the run after that")
        if record.status == "passed":
            raise ResumeRefusedError("it has passed, so there is nothing left to do")
        if record.status == "running" and not record.orphaned:
            raise ResumeRefusedError(f"it is going on already, in {record.owner}")
        if name in self._pipelines:
            return
        if not name:
            raise ResumeRefusedError(
                "its pipeline has no name, so this server can't know which one it is; start it "
                "again with its steps, its id and this journal"
            )
        known = ", ".join(map(repr, self._pipelines)) or "none"
        raise ResumeRefusedError(
            f"this server does not know the pipeline {name!r}"
            f"{did_you_mean(name, self._pipelines)}, but {known}; "
            f"give it the pipeline with pipelines={{{name!r}: …}}, or start the run again "
            "with its steps, its id and this journal"
        )

    async def _check_steps(self, record: RunRecord) -> None:
        """Refuse steps that a run is without; who had left them out may have had a reason."""
        events = [each.event for each in await self._journal.events(record.run_id)]
        had = latest_steps(events)
        steps = getattr(self._pipelines[record.pipeline], "steps", ())
        others = [step.name for step in steps if had and step.name not in had]
        if others:
            raise ResumeRefusedError(
                f"it is without step {others[0]!r} of pipeline {record.pipeline!r}, which targets "
                "have left out, or which is newer; say what is to be run: asyncflow resume RUN "
                "MODULE:PIPELINE --target STEP, or start it again with its steps, its id and this "
                "journal"
            )

    async def _go_on(self, record: RunRecord) -> Exception | None:
        """Go on with a run to its end, and return why it could not."""
        run_id, pipeline = record.run_id, self._pipelines[record.pipeline]
        try:
            await pipeline.run(run_id=run_id, journal=self._journal)
        except RunCancelledError:
            _log.info("run %r was cancelled", run_id)
        except RunAlreadyActiveError as error:
            _log.info("run %r goes on in %s", run_id, error.owner)
            return error
        except Exception as error:
            _log.exception("run %r can't go on", run_id)
            return error
        except asyncio.CancelledError:
            raise
        except BaseException:
            # A step has raised KeyboardInterrupt, SystemExit or the like. Its run has ended; out of
            # this task it would end the whole service.
            _log.exception("run %r has ended, but the server goes on", run_id)
        finally:
            self._going_on.pop(run_id, None)
        return None

    async def close(self, grace_s: float) -> None:
        """Cancel the runs, and wait until their steps have cleaned up.

        Args:
            grace_s: After how many seconds to give up. The runs then go on as long as the loop.
        """
        self._is_closed = True
        tasks = dict(self._going_on)
        for task in tasks.values():
            task.cancel()
        if not tasks:
            return
        _, late = await asyncio.wait(tasks.values(), timeout=grace_s)
        for run_id, task in tasks.items():
            if task in late:
                _log.warning("run %r is still cleaning up after %g s", run_id, grace_s)


def _runnable(name: str, pipeline: Any) -> Resumable:
    """Return what runs a pipeline: itself, or what a `Pipeline` has for that."""
    runnable = getattr(pipeline, "orchestrator", pipeline)
    if not callable(getattr(runnable, "run", None)):
        raise TypeError(
            f"pipelines[{name!r}] must be a Pipeline or an Orchestrator, not "
            f"{type(pipeline).__name__}; Orchestrator(steps, name={name!r}) makes one of steps"
        )
    return runnable  # type: ignore[no-any-return]


def _why_not(error: Exception) -> str:
    if isinstance(error, RunAlreadyActiveError):
        return f"it is going on already, in {error.owner}"
    return f"{type(error).__name__}: {error}"
