"""Resumes and reruns runs from their page, in this process; ends them with the server."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from asyncflow._core.analysis.preview import RunPreview, counts_text, runs_nothing
from asyncflow._core.errors import (
    SHUTDOWN,
    PayloadError,
    RunAlreadyActiveError,
    RunCancelledError,
    RunNotFoundError,
    RunUnreadableError,
)
from asyncflow._core.history.lost_runs import CONTINUED, LostRuns, NotLostError
from asyncflow._core.history.results import Interruption, Payload, RunStatus
from asyncflow._core.pipeline.annotations import input_types
from asyncflow._core.pipeline.signal import check_answer
from asyncflow._core.pipeline.step import inputs_of
from asyncflow._core.text import did_you_mean
from asyncflow._views.waiting import is_queued
from asyncflow.journal._base import SQLJournal
from asyncflow.journal._read.queries import UNENDED, RunRecord
from asyncflow.journal._run_names import free_name


class Resumable(Protocol):
    """An `Orchestrator` or a `Pipeline`, as far as a type checker sees here."""

    def with_options(self, *, run_id: str = ..., journal: Any) -> Any:
        """Return what runs it under this id, with this journal, by its ``run`` or ``rerun``."""
        ...


_PREVIEW_S = 10.0
"""How long to say the same of a run that has ended. Only steps with ``cache_ms`` change by time."""
_LOOK_EVERY_S = 0.02
_LONGEST_WAIT_S = 3.0
"""How long the response to a resumption waits for the run to begin."""

_log = logging.getLogger("asyncflow")


class ResumeRefusedError(Exception):
    """Raised if the server can't resume a run, or run it again: why, and what to do."""


class Resumer:
    """Resumes runs, reruns them, and ends them with the server."""

    def __init__(self, journal: SQLJournal, pipelines: Mapping[str, Any]) -> None:
        if not isinstance(pipelines, Mapping):
            raise TypeError(
                f"pipelines must be a mapping of name to pipeline, not {type(pipelines).__name__}"
            )
        self._journal = journal
        self._pipelines = {name: _runnable(name, each) for name, each in pipelines.items()}
        self._running: dict[str, asyncio.Task[Exception | None]] = {}
        self._is_closed = False
        self._previews: dict[str, tuple[RunRecord, float, str]] = {}
        """What was previewed lately, by the run's id: of which record, how long it holds, what."""
        self._previewing = asyncio.Lock()

    @property
    def names(self) -> list[str]:
        return list(self._pipelines)

    def can_resume(self, record: RunRecord) -> bool:
        """Return whether a run can be resumed, and its pipeline is one of these."""
        stopped = record.status not in (RunStatus.RUNNING, RunStatus.PASSED)
        return stopped and record.pipeline in self._pipelines

    async def resume(self, record: RunRecord, *, lost_only: bool = False) -> bool:
        """Resume a run, and return when it has begun: False if it waits on for a signal.

        With ``lost_only``, only if it still continues by itself when it is opened. Raise
        `ResumeRefusedError` if the run can't be resumed, or failed at once.
        """
        self._check(record)
        run_id, pipeline = record.run_id, self._pipelines[record.pipeline]

        async def has_begun() -> bool:
            now = await self._journal.record(run_id)
            return replace(now, owner=record.owner) != record  # a claimed run has yet to begin

        journal = LostRuns(self._journal, CONTINUED) if lost_only else self._journal
        start = pipeline.with_options(run_id=run_id, journal=journal).run
        await self._begun(
            run_id, self._running.get(run_id) or self._start(run_id, start), has_begun
        )
        return record.status is not RunStatus.WAITING or await has_begun()

    async def continues(self, run_id: str) -> bool:
        """Return whether a run which has an answer goes on: here, from now on, or elsewhere."""
        record = await self._journal.record(run_id)
        if record.status is RunStatus.WAITING and not is_queued(record.waits_for):
            with suppress(ResumeRefusedError):  # no such pipeline is here, or another was faster
                return await self.resume(record, lost_only=True)
            record = await self._journal.record(run_id)
        return record.status is RunStatus.RUNNING

    async def check_signal(self, run_id: str, name: str, value: Any) -> None:
        """Raise `ValueError` if a run that waits is of a pipeline here that takes no such value."""

        async def renew(_: Any) -> bool:
            try:
                await self.resume(await self._journal.record(run_id), lost_only=True)
            except ResumeRefusedError:
                return False
            return True

        await check_answer(self._journal, self._pipelines, run_id, name, value, renew=renew)

    def schemas(self, pipeline: str) -> Mapping[str, Any]:
        """Return the schemas of the signals of a pipeline by name; none if it is not here."""
        here = self._pipelines.get(pipeline)
        return {} if here is None else here._planned().asked(self._journal)[0]

    async def preview(self, record: RunRecord) -> str:
        """Return what resuming a run would do with its steps: ``2 reused, 3 to run``.

        All of the run is read for that, and each page of a run that has ended asks again and again.
        So what is said of such a run may be some seconds old.
        """
        if not self.can_resume(record):
            return ""
        if record.status in UNENDED:
            return await self._previewed(record)
        async with self._previewing:
            clock = asyncio.get_running_loop().time
            for run_id, (_, until_s, _) in [*self._previews.items()]:
                if until_s <= clock():
                    del self._previews[run_id]
            known = self._previews.get(record.run_id)
            if known is None or known[0] != record:
                text = await self._previewed(record)
                known = self._previews[record.run_id] = record, clock() + _PREVIEW_S, text
            return known[2]

    async def _previewed(self, record: RunRecord) -> str:
        pipeline = self._pipelines[record.pipeline].with_options(journal=self._journal)
        try:
            return counts_text(await pipeline.preview(record.run_id))
        except (ValueError, TypeError, RunNotFoundError, PayloadError):
            return ""  # the resumption would be refused, and says why

    def rerun_options(self, record: RunRecord) -> dict[str, object] | None:
        """Return what a page offers for rerunning a run; ``None`` if it can't be.

        These are the names of the inputs that can be given, and of those that are secret.
        """
        pipeline = self._pipelines.get(record.pipeline)
        if record.damaged or pipeline is None:
            return None
        secret = pipeline.secret_inputs
        names = [name for name in inputs_of(pipeline.steps) if name not in pipeline.resources]
        return {
            "inputs": [name for name in names if name not in secret],
            "secret": [name for name in names if name in secret],
        }

    async def rerun(
        self,
        record: RunRecord,
        *,
        from_steps: Sequence[str],
        everything: bool,
        inputs: Mapping[str, Any],
    ) -> str | None:
        """Rerun a run under a new id, and return the id when the new run has begun.

        ``from_steps`` run again, or all with ``everything``. ``inputs`` are those that have another
        value, as of JSON. Return ``None``, and make no run, if no step would run. Raise
        `ResumeRefusedError` if the run can't be rerun, or failed at once.
        """
        pipeline, wanted = self._rerun_of(record, from_steps, inputs, everything=everything)
        if runs_nothing(await _rerun_preview(pipeline, record, wanted)):
            return None
        run_id = await free_name(self._journal)

        async def has_begun() -> bool:
            try:
                await self._journal.record(run_id)
            except RunNotFoundError:
                return False
            return True

        start = partial(pipeline.rerun, record.run_id, run_id, **wanted)
        await self._begun(run_id, self._start(run_id, start), has_begun)
        return run_id

    async def preview_of_rerun(
        self,
        record: RunRecord,
        *,
        from_steps: Sequence[str],
        everything: bool,
        inputs: Mapping[str, Any],
    ) -> RunPreview:
        """Return what `rerun` would do; raise `ResumeRefusedError` if that can't be rerun."""
        pipeline, wanted = self._rerun_of(record, from_steps, inputs, everything=everything)
        return await _rerun_preview(pipeline, record, wanted)

    def _rerun_of(
        self,
        record: RunRecord,
        from_steps: Sequence[str],
        inputs: Mapping[str, Any],
        *,
        everything: bool,
    ) -> tuple[Any, dict[str, Any]]:
        """Return the pipeline of a rerun, and the arguments of its ``rerun``."""
        self._check_pipeline(record, "rerun it")
        pipeline = self._pipelines[record.pipeline]
        if record.damaged:
            raise ResumeRefusedError("it is damaged")
        if everything:
            from_steps = [step.name for step in pipeline.steps]
        typed = self._typed(pipeline, inputs)
        return pipeline.with_options(journal=self._journal), {"from_": from_steps, "inputs": typed}

    def _typed(self, pipeline: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return inputs with values of the types that the actions declare."""
        types, typed = input_types(tuple(pipeline.steps), inputs), dict[str, Any]()
        for name, value in inputs.items():
            if name in pipeline.secret_inputs:
                raise ResumeRefusedError(
                    f"its input {name!r} is secret, so a page can't give it; use `asyncflow rerun` "
                    "with --input, or rerun() in Python"
                )
            payload = Payload("json", json.dumps(value).encode())
            try:
                typed[name] = self._journal.decode(f"input {name!r}", payload, types[name])
            except PayloadError as error:
                raise ResumeRefusedError(
                    f"its input {name!r} does not fit: {error.__cause__ or error.problem}"
                ) from error
        return typed

    def _start(
        self, run_id: str, start: Callable[[], Coroutine[Any, Any, Any]]
    ) -> asyncio.Task[Exception | None]:
        # The run has a context of its own, not the request's.
        task = self._running[run_id] = asyncio.create_task(
            self._run(run_id, start), name=f"asyncflow:resume:{run_id}", context=Context()
        )
        return task

    async def _begun(
        self,
        run_id: str,
        task: asyncio.Task[Exception | None],
        has_begun: Callable[[], Awaitable[bool]],
    ) -> None:
        """Wait until a run has begun, but not too long.

        Raise `ResumeRefusedError` if it failed at once.
        """
        give_up_at = asyncio.get_running_loop().time() + _LONGEST_WAIT_S
        while not task.done() and asyncio.get_running_loop().time() < give_up_at:
            if await has_begun():
                return
            await asyncio.wait([task], timeout=_LOOK_EVERY_S)
        if task.done() and not task.cancelled():
            error = task.result()
            if isinstance(error, RunUnreadableError):
                raise error
            if error is not None:
                raise ResumeRefusedError(_why_not(error)) from error

    def _check(self, record: RunRecord) -> None:
        self._check_open("resume the run")
        if record.status is RunStatus.PASSED:
            raise ResumeRefusedError("it has passed, so nothing is left to do")
        if record.status is RunStatus.RUNNING:
            raise ResumeRefusedError(f"it is running already, in {record.owner}")
        self._check_pipeline(record, "resume it")

    def _check_open(self, what: str) -> None:
        if self._is_closed:
            raise ResumeRefusedError(f"this server is stopping; {what} once it runs again")

    def _check_pipeline(self, record: RunRecord, what: str) -> None:
        self._check_open(what)
        name = record.pipeline
        if name in self._pipelines:
            return
        if not name:
            raise ResumeRefusedError(
                f"its pipeline has no name, so this server can't tell which one it is; {what} "
                "with its steps, its id and this journal"
            )
        known = ", ".join(map(repr, self._pipelines))
        raise ResumeRefusedError(
            f"this server has no pipeline {name!r}"
            f"{did_you_mean(name, self._pipelines)}{known and f'; it has {known}'}; give it the "
            f"pipeline with `asyncflow ui --pipeline` or pipelines={{{name!r}: …}}, or {what} "
            "with its steps, its id and this journal"
        )

    async def _run(
        self, run_id: str, start: Callable[[], Coroutine[Any, Any, Any]]
    ) -> Exception | None:
        """Run a run to its end, and return the error that stopped it, if any."""
        try:
            await start()
        except RunCancelledError:
            _log.info("run %r was cancelled", run_id)
        except RunAlreadyActiveError as error:
            _log.info("run %r is running in %s", run_id, error.owner)
            return error
        except NotLostError as error:
            return error
        except Exception as error:
            _log.exception("run %r can't be started", run_id)
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

        It waits for ``grace_s`` seconds. After that, runs continue as long as the loop.
        """
        self._is_closed = True
        tasks = dict(self._running)
        for task in tasks.values():
            task.cancel(Interruption("drained", SHUTDOWN))
        if not tasks:
            return
        _, late = await asyncio.wait(tasks.values(), timeout=grace_s)
        for run_id, task in tasks.items():
            if task in late:
                _log.warning("run %r is still cleaning up after %g s", run_id, grace_s)


def _runnable(name: str, pipeline: Any) -> Any:
    runnable = getattr(pipeline, "orchestrator", pipeline)
    if not callable(getattr(runnable, "with_options", None)):
        raise TypeError(
            f"pipelines[{name!r}] must be a Pipeline or an Orchestrator, not "
            f"{type(pipeline).__name__}; Orchestrator(steps, name={name!r}) makes one of steps"
        )
    return runnable


async def _rerun_preview(pipeline: Any, record: RunRecord, wanted: dict[str, Any]) -> RunPreview:
    """Return what a rerun would do; raise `ResumeRefusedError` if it would be refused."""
    try:
        found: RunPreview = await pipeline.preview(record.run_id, rerun=True, **wanted)
    except (ValueError, TypeError, PayloadError) as error:
        raise ResumeRefusedError(_why_not(error)) from error
    return found


def _why_not(error: Exception) -> str:
    if isinstance(error, RunAlreadyActiveError):
        return str(error) if error.key else f"it is running already, in {error.owner}"
    return f"{type(error).__name__}: {error}"
