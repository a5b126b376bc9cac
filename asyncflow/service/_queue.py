"""Starts the runs of a journal that wait to start, as they become due and there are places.

Rules:

1. A place comes first, then the run: a run that waits for a place holds no key.
2. Runs that go on, such as one whose signal has come, have precedence for places. So a queue of any
   length holds up none of them.
3. A run is started by its resumption, whose claim decides among all services. One that can't start
   here is left to others for a while, and logged once.
4. What this process enqueues, and what is due at a known time, starts at once. For what other
   processes do, a service polls.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Set
from contextlib import suppress
from typing import TYPE_CHECKING

from asyncflow._core.errors import JournalError
from asyncflow._runtime.orchestrator import Orchestrator
from asyncflow._runtime.pipeline import Pipeline
from asyncflow.service._places import Places
from asyncflow.service._polls import Polls

if TYPE_CHECKING:
    from asyncflow.journal._base import SQLJournal

_POLL_S = 1.0
"""How often to look for runs that other processes have enqueued, or whose key they have freed."""
_AT_ONCE = 100
"""How many runs one poll finds at most."""

_log = logging.getLogger("asyncflow")


class QueueStarter:
    """Starts runs that wait to start.

    ``resume`` resumes a run for which a place was taken, and frees the place in the end; it returns
    whether the run has begun. ``left_alone`` returns the runs that are left to others.
    """

    def __init__(
        self,
        journal: SQLJournal,
        pipelines: Mapping[str, Pipeline | Orchestrator],
        places: Places,
        resume: Callable[[Pipeline | Orchestrator, str], Awaitable[bool]],
        left_alone: Callable[[], Set[str]],
    ) -> None:
        self._journal = journal
        self._pipelines = pipelines
        self._places = places
        self._resume = resume
        self._left_alone = left_alone
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._refused: dict[str, float] = {}
        """The runs that could not start just now, each with when to try again, in seconds."""
        self._again_s = -math.inf
        """When to look at the latest, in seconds, if that is not over."""
        self._damaged: set[object] = set()
        """Their ids, as they were read."""
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Look again, since a place or a key may be free now. Called in the event loop."""
        self._woken.set()

    async def run(self) -> None:
        """Start runs until this is cancelled."""
        loop = asyncio.get_running_loop()

        def wake() -> None:  # another thread may have enqueued a run
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self.wake)

        self._journal._on_enqueue.append(wake)
        try:
            with Polls(self._journal, _POLL_S) as polls:
                while True:
                    self._woken.clear()
                    polls.begin()
                    next_s = await self._start_due()
                    with suppress(TimeoutError):
                        async with polls.until_next(next_s, may_skip=True):
                            await self._woken.wait()
        finally:
            self._journal._on_enqueue.remove(wake)

    async def _start_due(self) -> float:
        """Start the runs that are due, as there are places; return in how many seconds to look."""
        while True:
            free = self._places.free_now
            limit = _AT_ONCE if free is None else min(free, _AT_ONCE)
            skipped = {*self._left_alone(), *self._starting, *self._refused_now(), *self._damaged}
            try:
                await self._journal._replace_due(self._pipelines)
                due = await self._journal._due_to_start(self._pipelines, limit, skipped)
            except JournalError as error:
                _log.warning("the service can't look for runs to start: %s", error)
                return _POLL_S
            for run in due.runs:
                if run.is_damaged:
                    self._damaged.add(run.run_id)
                    _log.error(
                        "run %r can't be started: its row in the queue is damaged; forget it, or "
                        "run it by its id",
                        str(run.run_id),
                    )
                    continue
                if not await self._places.take_one():
                    return math.inf
                pipeline = self._pipelines[run.name]
                task = asyncio.create_task(self._start(pipeline, run.run_id))
                self._starting[run.run_id] = task
            if len(due.runs) < limit or not limit:  # then the end of a run wakes this
                now_s, next_s = _now_s(), math.inf if due.next_s is None else due.next_s
                if due.runs:  # another one may be due that replaces one of these, once it has begun
                    self._again_s = now_s + _POLL_S
                times_s = [*self._refused.values()]
                if now_s < self._again_s:
                    times_s.append(self._again_s)
                return min([next_s, *(at_s - now_s for at_s in times_s)])

    def _refused_now(self) -> Set[str]:
        now_s = _now_s()
        self._refused = {run_id: at_s for run_id, at_s in self._refused.items() if now_s < at_s}
        return self._refused.keys()

    async def _start(self, pipeline: Pipeline | Orchestrator, run_id: str) -> None:
        try:
            if not await self._resume(pipeline, run_id):
                # Another process starts it, or this one can't. There may be thousands of the latter
                # kind: the place that is free again waits for the next poll.
                self._refused[run_id] = _now_s() + _POLL_S
                asyncio.get_running_loop().call_later(_POLL_S, self.wake)
        finally:
            del self._starting[run_id]


def _now_s() -> float:
    return asyncio.get_running_loop().time()
