"""What a run tells its handle, and the readers of it: events, and results as they end."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import asyncflow._core.history.replay  # noqa: F401  # the result of a failed step may need it
from asyncflow._core.errors import RunCancelledError
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import Interruption, StepResult, StepStatus
from asyncflow._core.pipeline.graph import Plan
from asyncflow._core.running.streamed import StreamedValue, ValuesMissed
from asyncflow._kernel.policy import Policy
from asyncflow._kernel.run_scope import Parts
from asyncflow.events import (
    AttemptStarted,
    Event,
    EventsMissed,
    MapStarted,
    RunResumed,
    StepCancelled,
    StepFailed,
    StepReused,
    StepSkipped,
    StepStreamed,
    StepSucceeded,
)

if TYPE_CHECKING:
    from asyncflow._core.running.state import RunState
    from asyncflow._policies.draining import Draining
    from asyncflow._policies.durable import RunPersistence
    from asyncflow._policies.waits import Waits

_STARTS = (AttemptStarted, MapStarted)
_ENDS = (StepSucceeded, StepFailed, StepCancelled, StepSkipped, StepReused)
_MOST_STREAMED = 10_000
"""How many values that are streamed a handle keeps, at least, of a run without a journal."""
_IN_A_ROW = 100
"""After how much that is there already a reader lets other tasks run."""


class Notifier:
    """Wakes all who wait for it. A wait may be cancelled at any time, without effect."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def has_waiters(self) -> bool:
        return bool(self._waiters)

    def notify(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)


class RunLink:
    """The run's side of a handle: an observer of the run, and the way to stop it.

    ``state`` is the run's, from its start until its end; then there is the ``report``, unless the
    run has none. ``events`` are the latest ones, at most ``limit``, and ``count`` says how many
    there were. ``ended`` are the steps that have ended, in that order, and ``ended_items`` the
    numbers of items, by step. ``flush`` waits until all events are stored; it is ``None`` without a
    journal, and after the end. ``follow`` reads what is streamed from the journal; ``None`` if that
    has no such method.
    """

    def __init__(
        self,
        run_id: str,
        plan: Plan,
        limit: int,
        follow: Callable[..., AsyncGenerator[StreamedValue, None]] | None = None,
    ) -> None:
        self.follow = follow
        self.run_id = run_id
        self.plan = plan
        self.is_begun = self.has_resumed = self.is_over = False
        self.state: RunState | None = None
        self.report: RunReport | None = None
        self.events: deque[Event] = deque(maxlen=limit)
        self.count = 0
        self.total = len(plan.steps)
        self.running: dict[str, None] = {}
        self.ended: list[str] = []
        self.ended_items: dict[str, array[int]] = {}
        self.streamed: deque[tuple[int, StepStreamed]] = deque()
        """What steps have streamed in a run without a journal, each with the position of its first
        value: the latest values, at least `_MOST_STREAMED`."""
        self.streamed_count = self.streamed_dropped = 0
        """How many values there were, and how many batches of them are no longer kept."""
        self.has_news, self.has_begun, self.has_ended = Notifier(), Notifier(), Notifier()
        self._run: Linked | None = None
        """What it stops and sends signals to, while that runs."""
        self.flush: Callable[[], Awaitable[None]] | None = None

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.count += 1
        if isinstance(event, _STARTS):
            if event.item is None:
                self.running[event.step] = None
        elif isinstance(event, _ENDS):
            if event.item is None:
                self.running.pop(event.step, None)
                self.ended.append(event.step)
            else:
                self.ended_items.setdefault(event.step, array("q")).append(event.item)
            self.has_ended.notify()
        elif isinstance(event, RunResumed):
            self.has_resumed = True
        self.has_news.notify()

    def stream(self, streamed: StepStreamed) -> None:
        """Keep what an attempt has streamed for the readers."""
        self.streamed.append((self.streamed_count + 1, streamed))
        self.streamed_count += streamed.count
        enough = self.streamed_count - _MOST_STREAMED
        while len(self.streamed) > 1 and self.streamed[1][0] <= enough:
            self.streamed.popleft()
            self.streamed_dropped += 1
        self.has_news.notify()

    def has_ended_step(self, name: str) -> bool:
        """Whether a step has ended."""
        if self.state is not None:
            return self.state.step_runs.find_unended(name) is None
        return self.report is not None and self.report[name].status is not StepStatus.PENDING

    def begin(
        self, run: Linked, state: RunState, flush: Callable[[], Awaitable[None]] | None
    ) -> None:
        """Note that the run has begun."""
        self.is_begun, self._run, self.state, self.flush = True, run, state, flush
        self.has_begun.notify()

    def stop(self, error: RunCancelledError, why: Interruption) -> None:
        """Stop the run, from the next turn of the loop on, if it has not ended."""
        if self._run is not None:
            self._run.cancel_soon(error, why)

    def drain(self, reason: str) -> None:
        """Drain the run, from the next turn of the loop on, if it has not ended."""
        if self._run is not None:
            self._run.drain_soon(reason)

    async def send(self, name: str, value: Any, sent_by: str | None, note: str) -> None:
        """Send a signal to the run, which must be running."""
        if self._run is None:
            raise ValueError(f"run {self.run_id!r} is not running, so it takes no signal {name!r}")
        await self._run.send(name, value, sent_by, note)

    def end(self) -> None:
        """Let go of the run."""
        self._run = self.flush = None

    def close(self, report: RunReport | None) -> None:
        """Note that the run is over, and wake all who wait for news of it."""
        self.state, self.report = None, report
        if report is not None and not self.count:  # it had passed earlier, or waits on
            pending, self.total = StepStatus.PENDING, len(report)
            self.ended = [name for name in report if report[name].status is not pending]
        for news in (self.has_begun, self.has_news, self.has_ended):
            news.notify()


class Linked(Policy):
    """The policy of a run that has a handle, which sends it signals and stops it."""

    def __init__(
        self,
        parts: Parts,
        link: RunLink,
        draining: Draining,
        waits: Waits | None,
        persistence: RunPersistence | None,
    ) -> None:
        self._scope = parts.scope
        self._run = parts.run
        self._link = link
        self._waits = waits
        self._persistence = persistence
        self.drain_soon = draining.drain_soon

    def on_open(self) -> None:
        session = None if self._persistence is None else self._persistence.session
        flush = None if session is None else session.flush
        self._link.begin(self, self._scope.state, flush)

    def on_end(self) -> None:
        self._link.end()

    def cancel_soon(self, error: RunCancelledError, why: Interruption) -> None:
        """Stop the run, from the next turn of the loop on."""
        self._scope.loop.call_soon(self._run.cancel, error, why, context=self._scope.context)

    async def send(self, name: str, value: Any, sent_by: str | None, note: str) -> None:
        """Send a signal to the run."""
        if self._waits is None:
            raise ValueError(f"run {self._scope.run_id!r} waits for no signal {name!r}")
        await self._waits.send(name, value, sent_by, note)


class EventReader:
    """An asynchronous iterator over the events of a run, from the first one that is kept.

    It ends when the run is over. Several tasks may have readers of their own.
    """

    def __init__(self, link: RunLink) -> None:
        self._link = link
        self._next = 0
        self._in_a_row = 0

    def __aiter__(self) -> EventReader:
        return self

    async def __anext__(self) -> Event | EventsMissed:
        """Return the next event, or how many were missed, which are no longer kept."""
        link = self._link
        self._in_a_row += 1
        if self._in_a_row > _IN_A_ROW:
            self._in_a_row = 0
            await asyncio.sleep(0)
        while self._next == link.count:
            if link.is_over:
                raise StopAsyncIteration
            self._in_a_row = 0
            await link.has_news.wait()
        first = link.count - len(link.events)
        if self._next < first:
            missed, self._next = first - self._next, first
            return EventsMissed(missed)
        self._next += 1
        return link.events[self._next - 1 - first]


async def streamed_values(
    link: RunLink, step: str | None
) -> AsyncGenerator[StreamedValue | ValuesMissed, None]:
    """Yield what the steps of a run without a journal stream, until the step or the run is over."""
    batches, position = 0, 0  # how many of them it has read, and where the last value was

    def has_ended() -> bool:
        return link.is_over or (step is not None and link.has_ended_step(step))

    while True:
        is_last = has_ended()  # what comes is there before it ends
        while batches < link.streamed_dropped + len(link.streamed):
            batches = max(batches, link.streamed_dropped)
            first, batch = link.streamed[batches - link.streamed_dropped]
            if position < first - 1:
                yield ValuesMissed(first - 1 - position)
            batches, position = batches + 1, first - 1
            about = batch.step, batch.item, batch.segment, batch.attempt
            for number, value in enumerate(json.loads(batch.data), 1):
                position += 1
                if step is None or step == batch.step:
                    yield StreamedValue(position, *about, value, batch.at_ms)
                if number % _IN_A_ROW == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(0)
        if is_last:
            return
        if not has_ended():
            await link.has_news.wait()


class ResultReader:
    """An asynchronous iterator over the results of a run's steps, or of the items of one step.

    It gives each result when the step or item has ended, first those that have ended already, and
    ends with the run. Several tasks may have readers of their own.
    """

    def __init__(
        self, link: RunLink, report: Callable[[], Awaitable[RunReport]], step: str | None
    ) -> None:
        self._link: RunLink | None = link
        """``None`` once it has raised what ended the run: that holds a frame which holds this."""
        self._report: Callable[[], Awaitable[RunReport]] | None = report
        self._step = step
        self._state = link.state
        """That of the run, which this keeps after the end, until all results are given."""
        self._next = 0
        self._in_a_row = 0

    def __aiter__(self) -> ResultReader:
        return self

    async def __anext__(self) -> StepResult:
        """Return the next result, or raise what has ended the run if its steps have not."""
        link, report = self._link, self._report
        if link is None or report is None:
            raise StopAsyncIteration
        self._in_a_row += 1
        if self._in_a_row > _IN_A_ROW:
            self._in_a_row = 0
            await asyncio.sleep(0)
        while (result := self._take(link)) is None:
            if self._has_finished_step(link):
                raise StopAsyncIteration
            if link.is_over:
                self._link = self._report = self._state = None
                try:
                    await report()
                finally:
                    del self, link, report  # what is raised holds this frame
                raise StopAsyncIteration
            self._in_a_row = 0
            await link.has_ended.wait()
        return result

    def _take(self, link: RunLink) -> StepResult | None:
        """Return the next result if there is one."""
        at, ended, step = self._next, link.ended, self._step
        if step is None:
            result = self._result_of(link, ended[at]) if at < len(ended) else None
        elif step in link.ended_items:
            numbers = link.ended_items[step]
            result = self._result_of(link, step, numbers[at]) if at < len(numbers) else None
        else:  # there are no items yet; but if the step was reused, there are no events of items
            whole = self._result_of(link, step)
            items = () if whole is None else whole.items or ()
            result = items[at] if at < len(items) else None
        self._next += result is not None
        return result

    def _has_finished_step(self, link: RunLink) -> bool:
        """Whether the step whose items these are has ended, and not because the run stops."""
        if self._step is None:
            return False
        if self._state is not None:
            node = self._state.step_runs.find(self._step)
            status = None if node is None else self._state.step_runs.status(node)
        else:
            report = link.report
            status = None if report is None else report[self._step].status
        return status in (StepStatus.SUCCESS, StepStatus.FAILED)

    def _result_of(self, link: RunLink, step: str, item: int | None = None) -> StepResult | None:
        state = self._state = self._state or link.state
        if state is not None:
            node = state.step_runs.find(step, item)
            return None if node is None else state.result(node)
        report = link.report
        if report is None:  # the run has not begun, or was ended by an error without one
            return None
        return report[step] if item is None else _item_of(report[step], item)


def _item_of(result: StepResult, item: int) -> StepResult | None:
    """Return the result of an item of a mapped step. Items that have not run have none."""
    name, items = f"{result.step_name}[{item}]", result.items or ()
    at = min(item, len(items) - 1)
    while at >= 0 and items[at].step_name != name:
        at -= 1
    return items[at] if at >= 0 else None


for _public in (EventReader, ResultReader):
    _public.__module__ = "asyncflow"  # where users know them from
