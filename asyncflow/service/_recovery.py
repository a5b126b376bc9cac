"""Resumes the runs that have no process and can go on, for as long as a service lives.

Rules:

1. These are orphans, and runs that a service has interrupted because it was shut down, or that have
   lost a resource. A run that was cancelled stays as it is.
2. A nested run is left to the step that runs it for as long as its outer run runs or will resume.
3. A run may have killed its process, and all runs beside it. The more processes have died with
   runs, the fewer of them resume at a time, and none beside others with which fewer have died. So a
   killer ends up alone, and a run beside it has seen few processes die.
4. A run that waits for a signal is none of these. What has become due of them is looked for more
   often. Those that are not due cost nothing.
5. A run that waits as another version of its pipeline asks for signals is continued, so that it
   takes the types and deadlines of this one: at once if the service finds it at its start. What it
   finds so later may be of a newer version, or of an old one that is about to end, so it lets some
   time pass; and so again, each time twice as much, if another version has continued it since.
   Versions that live side by side take turns ever more rarely.
6. The service whose journal has taken a signal continues the run at once. The others look once a
   second, and leave out what it has claimed: they would all claim it, and all but one in vain.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence, Set
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from asyncflow._core.errors import (
    JournalError,
    PayloadError,
    ResourceError,
    RunAlreadyActiveError,
    RunCancelledError,
    RunUnreadableError,
)
from asyncflow._core.history.lost_runs import CONTINUED, LostRuns, NotLostError
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import RunStatus, StepStatus
from asyncflow._core.pipeline.signal import check_answer
from asyncflow._runtime.handle import RunHandle
from asyncflow._runtime.orchestrator import Orchestrator
from asyncflow._runtime.pipeline import Pipeline
from asyncflow._runtime.recovery import (
    RecoverableRun,
    find_pipeline,
    is_left_alone,
    log_unresumed,
    outer_run_of,
)
from asyncflow.service._errors import ServiceStoppingError, ServiceUnavailableError
from asyncflow.service._places import Places
from asyncflow.service._polls import Polls

if TYPE_CHECKING:
    from asyncflow.journal._base import SQLJournal

_PASSING = (RunAlreadyActiveError, RunCancelledError, JournalError)
"""What prevents a resumption now, and may not do so later."""

_LONGEST_DELAY_S = 3600.0
"""How long a run that loses its resource again and again, or can't be resumed here, waits at most.
"""
_GIVEN_UP_S = 60.0
"""How long a run that can't be resumed here is left to others, at first: another version of its
pipeline may run the step that this one does not have, and then end for good."""
_AT_A_TIME = {1: math.inf, 2: 3, 3: 1}
"""How many runs resume at a time with which so many processes have died, or more."""
_PROBATION_S = 300.0
"""After how many seconds a run that is still alive lets others follow."""
_DUE_EVERY_S = 1.0
"""How often to look for waiting runs that another process has made due, or whose deadline has
expired."""
_PATIENT_S = 600.0
"""How long a run that another process has left waiting may ask for signals as another version does,
at first. Longer than a rolling deploy."""
_MOST_PATIENT_S = 6 * 3600.0
"""How long it may at most."""
_AT_ONCE = 1_000
"""How many of them a look finds at most."""
_TOGETHER = 64
"""How many runs that have received a signal one look is for; a power of two."""
_SOON_S = 0.25
"""How often to look again while such runs wait for each other."""

_log = logging.getLogger("asyncflow")


class Recovery:
    """Looks for runs to resume, again and again.

    One of ``places`` is taken for each run. ``begin`` starts a run for which a place was taken, and
    frees it in the end.
    """

    def __init__(
        self,
        journal: SQLJournal,
        pipelines: Mapping[str, Pipeline | Orchestrator],
        places: Places,
        active: Mapping[str, RunHandle],
        begin: Callable[[Pipeline | Orchestrator, str], Awaitable[RunHandle]],
    ) -> None:
        self._journal = journal
        self._pipelines = pipelines
        self._places = places
        self._active = active
        self._begin = begin
        self._lost_only: Any = LostRuns(journal, CONTINUED)
        self._unresumable: dict[str, tuple[float, float]] = {}
        """The runs that could not be resumed here, or not open their resources: when to try once
        more, and how long to wait after that, both in seconds."""
        self._logged: set[str] = set()
        """Those of which the log says why they could not be resumed here."""
        self._outdated: dict[str, float] = {}
        """The runs that wait as another version of their pipeline asks for signals: when each may
        be continued, in seconds."""
        self._renewed: dict[str, tuple[float, float]] = {}
        """Those that were continued: how long each is left to the other version if it waits so
        again, and until when that is known, both in seconds."""
        self._has_looked = False
        """Whether the service has looked for these runs since its start."""
        self._beginning: set[asyncio.Task[Any]] = set()
        self._continuing: set[str] = set()
        """The runs that were due and begin."""
        self._retries: dict[str, tuple[float, float]] = {}
        """Of runs that have lost a resource: the next delay, and when it ends, both in seconds."""
        self._suspects: dict[str, tuple[int, float]] = {}
        """Of the runs that may kill this process: their key in `_AT_A_TIME`, and since when they
        run here."""

    async def run(self, every_s: float) -> None:
        """Resume runs as there is room for them, before any new ones, until this is cancelled.

        ``every_s`` says how often to look for others, in seconds.
        """
        while True:
            try:
                has_resumed_all = await self._resume(every_s)
                await self._renew_all()
            except JournalError as error:
                _log.warning("the service can't look for runs to resume: %s", error)
                has_resumed_all = True
            await asyncio.sleep(every_s if has_resumed_all else min(every_s, _SOON_S))

    async def _renew_all(self) -> None:
        """Continue the runs that wait as another version of their pipeline asks for signals."""
        clock = asyncio.get_running_loop().time
        look_s, tried = clock(), set[str]()
        for name, pipeline in self._pipelines.items():
            asks = self._asks_of(pipeline)
            while True:
                early = {run_id for run_id, at_s in self._outdated.items() if look_s < at_s}
                skipped = self.left_alone() | early | tried
                found = await self._journal._asking_otherwise(name, asks, _AT_ONCE, skipped)
                for run_id in found:
                    if run_id not in self._outdated:
                        first_s = _PATIENT_S if self._has_looked else 0.0
                        delay_s, _ = self._renewed.get(run_id, (first_s, 0.0))
                        self._outdated[run_id] = clock() + delay_s
                        if delay_s:
                            continue
                    tried.add(run_id)
                    await self._places.wait()
                    self._begin_soon(self._renew_one(pipeline, run_id))
                if len(found) < _AT_ONCE:
                    break
        self._has_looked = True
        outdated, renewed = self._outdated.items(), self._renewed.items()
        self._outdated = {each: at_s for each, at_s in outdated if look_s < at_s or each in tried}
        self._renewed = {
            run_id: (delay_s, until_s)
            for run_id, (delay_s, until_s) in renewed
            if look_s < until_s or run_id in self._outdated
        }

    async def _renew_one(self, pipeline: Pipeline | Orchestrator, run_id: str) -> None:
        """Continue such a run for which a place was taken; if that fails, the next look does."""
        if await self.resume_one(pipeline, run_id):
            self._outdated.pop(run_id, None)
            before_s, _ = self._renewed.get(run_id, (_PATIENT_S / 2, 0.0))
            delay_s = min(2 * before_s, _MOST_PATIENT_S)
            # Until then, a version that is as patient has continued it, if there is one.
            until_s = asyncio.get_running_loop().time() + 2 * _MOST_PATIENT_S
            self._renewed[run_id] = delay_s, until_s

    def _asks_of(self, pipeline: Pipeline | Orchestrator) -> int:
        return pipeline._planned().asked(self._journal)[1]

    async def check_signal(self, run_id: str, name: str, value: Any) -> None:
        """Raise `ValueError` if a run that waits is of a pipeline here that takes no such value."""
        renew = partial(self._renew, run_id)
        await check_answer(self._journal, self._pipelines, run_id, name, value, renew=renew)

    async def _renew(self, run_id: str, pipeline: Pipeline | Orchestrator) -> bool:
        """Continue a run that waits as another version asks, and return whether that succeeded."""
        try:
            await self._places.take()
            run = await self._begin(pipeline.with_options(journal=self._lost_only), run_id)
            await run.flush()
        except (ServiceUnavailableError, NotLostError, RunAlreadyActiveError, RunCancelledError):
            return False
        except (ValueError, PayloadError) as error:
            self._log_once(run_id, error)
            return False
        return True

    async def run_due(self) -> None:
        """Continue the runs that waited and are due, until this is cancelled."""
        loop, signalled = asyncio.get_running_loop(), asyncio.Queue[str]()

        def on_signal(run_id: str) -> None:  # another loop may have sent it
            loop.call_soon_threadsafe(signalled.put_nowait, run_id)

        self._journal._on_signal.append(on_signal)
        try:
            with Polls(self._journal, _DUE_EVERY_S) as polls:
                while True:
                    polls.begin()
                    has_found = await self._continue_due(None)
                    next_s = await self._next_due_s()
                    with suppress(TimeoutError):  # the next look finds what this leaves
                        async with polls.until_next(next_s, may_skip=not has_found):
                            await self._continue_signalled(signalled)
        finally:
            self._journal._on_signal.remove(on_signal)

    async def _next_due_s(self) -> float:
        """Return in how many seconds a run becomes due, or may be tried again here."""
        now_s = asyncio.get_running_loop().time()
        again_s = [at_s - now_s for at_s, _ in self._unresumable.values() if at_s > now_s]
        with suppress(JournalError):
            next_s = await self._journal._next_due_s()
            if next_s is not None:
                again_s.append(next_s)
        return min(again_s, default=math.inf)

    async def _continue_signalled(self, signalled: asyncio.Queue[str]) -> None:
        """Continue the runs that receive a signal, until this is cancelled."""
        while True:
            run_ids = [await signalled.get()]
            while len(run_ids) < _TOGETHER and not signalled.empty():
                run_ids.append(signalled.get_nowait())
            skipped = self.left_alone()
            if among := [run_id for run_id in run_ids if run_id not in skipped]:
                await self._continue_due(among)

    async def _continue_due(self, among: Sequence[str] | None) -> bool:
        """Continue the runs that are due, or those among some runs; return whether any is."""
        try:
            names, skipped = [*self._pipelines], self.left_alone()
            found = await self._journal._due(names, _AT_ONCE, skipped, among)
        except JournalError as error:
            _log.warning("the service can't look for runs that are due: %s", error)
            return True
        for run in found:
            await self._places.wait()
            self._continuing.add(run.run_id)
            self._begin_soon(self._continue(run))
        return bool(found)

    def _begin_soon(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    def left_alone(self) -> Set[str]:
        """Return the runs that this service has, or leaves to others for now."""
        return self._given_up() | self._active.keys() | self._continuing

    def _given_up(self) -> Set[str]:
        """Return the runs that are left to other processes for now."""
        now_s = asyncio.get_running_loop().time()
        return {run_id for run_id, (again_s, _) in self._unresumable.items() if now_s < again_s}

    def ended(self, run: RunHandle) -> None:
        """Note the end of a run.

        One that could not open its resources waits on, and is due: it is left alone for longer each
        time.
        """
        error = run._error
        if isinstance(error, ResourceError) and _waits_on(error.report):
            self._give_up(run.run_id, _DUE_EVERY_S)
        elif error is None:
            self._unresumable.pop(run.run_id, None)
            self._logged.discard(run.run_id)

    def _give_up(self, run_id: str, delay_s: float = _GIVEN_UP_S) -> None:
        _, delay_s = self._unresumable.get(run_id, (0.0, delay_s))
        again_s = asyncio.get_running_loop().time() + delay_s
        self._unresumable[run_id] = again_s, min(2 * delay_s, _LONGEST_DELAY_S)

    async def _continue(self, run: RecoverableRun) -> None:
        """Continue a run for which a place was taken."""
        try:
            await self.resume_one(self._pipelines[run.pipeline], run.run_id)
        finally:
            self._continuing.discard(run.run_id)

    async def _resume(self, every_s: float) -> bool:
        """Resume what may be resumed now; return whether nothing waits for others of its kind."""
        now_s, has_resumed_all = asyncio.get_running_loop().time(), True
        found = await self._find(every_s, now_s)
        given_up = self._given_up()
        lost = {run.run_id for run in found} - given_up
        for suspect, (_, since_s) in list(self._suspects.items()):
            if suspect not in self._active or now_s - since_s >= _PROBATION_S:
                del self._suspects[suspect]
        for run in sorted(found, key=lambda run: run.crashes):
            if run.run_id in given_up or run.run_id in self._active:
                continue
            outer = outer_run_of(run)
            if outer and (outer in lost or not await is_left_alone(self._journal, run)):
                continue
            if not self._may_join(run, now_s):
                has_resumed_all = False
                continue
            pipeline = find_pipeline(run, self._pipelines)
            if pipeline is None:
                self._unresumable[run.run_id] = math.inf, math.inf
            else:
                await self._places.wait()
                self._begin_soon(self.resume_one(pipeline, run.run_id))
        # If this is cancelled, they begin nevertheless and drain with all others, or the service
        # refuses them.
        if self._beginning:
            await asyncio.wait(self._beginning)
        return has_resumed_all

    async def _find(self, every_s: float, now_s: float) -> Sequence[RecoverableRun]:
        """Return the runs to resume."""
        interrupted = partial(self._journal.runs, RunStatus.INTERRUPTED, limit=None)
        found = [*await self._journal.orphans(), *await interrupted(cause="drained")]
        # The outer run of a nested one has dealt with that.
        stopped = [run for run in await interrupted(cause="resource") if not outer_run_of(run)]
        known = self._active.keys() | {run.run_id for run in stopped}
        self._retries = {run_id: each for run_id, each in self._retries.items() if run_id in known}
        for run in stopped:
            delay_s, due_s = self._retries.get(run.run_id, (every_s, now_s))
            if now_s >= due_s:
                self._retries[run.run_id] = min(2 * delay_s, _LONGEST_DELAY_S), now_s + delay_s
                found.append(run)
        return found

    def _may_join(self, run: RecoverableRun, now_s: float) -> bool:
        """Return whether a run may run now beside those that this process has resumed."""
        if not run.crashes:
            return True
        level = min(run.crashes, max(_AT_A_TIME))
        levels = [level for level, _ in self._suspects.values()]
        if set(levels) - {level} or len(levels) >= _AT_A_TIME[level]:
            return False
        self._suspects[run.run_id] = level, now_s
        return True

    async def resume_one(self, pipeline: Pipeline | Orchestrator, run_id: str) -> bool:
        """Resume a run for which a place was taken, and return whether it has begun."""
        try:
            await self._begin(pipeline.with_options(journal=self._lost_only), run_id)
        except (ServiceStoppingError, NotLostError):
            return False
        except RunUnreadableError as error:
            self._log_once(run_id, error)
            self._give_up(run_id)
            return False
        except _PASSING as error:
            log_unresumed(run_id, error)
            return False
        except Exception as error:
            self._log_once(run_id, error)
            self._give_up(run_id)
            return False
        return True

    def _log_once(self, run_id: str, error: Exception) -> None:
        if run_id not in self._logged:
            self._logged.add(run_id)
            log_unresumed(run_id, error)


def _waits_on(report: RunReport | None) -> bool:
    """Whether a run that was continued has done nothing, and waits on."""
    return (
        report is not None
        and report.status is RunStatus.WAITING
        and all(each.reused or each.status is StepStatus.PENDING for each in report.values())
    )
