"""One run: when its steps are started and stopped, and that all of them have ended at its end.

Rules:

1. One task a unit (a step, or an item of a mapped one), in the run's task group. The group owns
   their lifetimes and nothing else: no child raises into it, so it never cancels anything by
   itself. A group that aborts because of a child loses a cancellation of its parent before 3.13:
   gh-116720.
2. Only the run stops steps: it notes whom it asked, then cancels each of them once.
3. The run waits for its steps in the body of the group, and whatever happens to it meanwhile it
   goes on waiting until they have all ended.
"""

from __future__ import annotations

import asyncio

from asyncflow._core.arguments import reject_awaitable
from asyncflow._core.errors import JournalError, RunCancelledError, name_suffix
from asyncflow._core.graph import Plan
from asyncflow._core.report import RunReport
from asyncflow._core.state import RunState
from asyncflow._core.tracebacks import strip_internal_frames
from asyncflow._runtime.asyncio_compat import FAILURES, shield
from asyncflow._runtime.dispatcher import Observer
from asyncflow._runtime.durable import RunPersistence, RunStart
from asyncflow._runtime.loop_monitor import Watch, watch
from asyncflow._runtime.mapping import Fanout
from asyncflow._runtime.outcome import as_failure, told_by
from asyncflow._runtime.step_runner import FIRST_TASK_BEARS_THE_NAME
from asyncflow._runtime.watchdog import GRACE_S
from asyncflow.events import (
    RunFinished,
    RunInterrupted,
    RunTimedOut,
    StepFailed,
    StepSkipped,
)

__all__ = ["Run"]

_REUSED_A_TURN = 100
"""After how many steps that a resumed run takes over others get a turn."""


class Run(Fanout):
    """One run of a pipeline; `execute` it once."""

    def __init__(
        self,
        run_id: str,
        plan: Plan,
        opening: RunStart,
        state: RunState,
        observers: tuple[Observer, ...],
        keeper: RunPersistence | None = None,
    ) -> None:
        super().__init__(run_id, plan, opening.bindings, opening.inputs, state, observers, keeper)
        self._opening = opening
        self._conditions = opening.conditions
        self._is_resumed = opening.checkpoint is not None
        self._stop_is_due = True  # until it has begun, there is nothing to be stopped
        self._advancing = False
        self._settled: asyncio.Future[None] | None = None
        self._interruption: BaseException | None = None
        self._request: RunCancelledError | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._doubtful: list[int] = []
        """The units that were to stop and were not cancelled, since somebody else had done so."""
        self._insistence: asyncio.TimerHandle | None = None

    async def execute(self) -> RunReport:
        """Run the pipeline; return its report, or raise what has interrupted it."""
        cancellation: BaseException | None = await self._begin()
        if self._state.deadlines.deadline_ms is not None:
            ends = self._identity.deadline_s
            self._deadline = self._loop.call_at(ends, self._time_out, context=self._context)
        self._monitor: Watch = watch(self._loop, self._on_block)
        failure: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as self._group:
                # From the loop, not from here: the traceback of an eager task that fails at once
                # would keep our callers' frames, and in one of them stands the report: a cycle.
                if cancellation is None:
                    self._advance_soon()
                # What leaves the body of a group is kept by it in a cycle, so nothing leaves it.
                cancellation = await self._until_settled() or cancellation
        except asyncio.CancelledError as at_exit:
            cancellation = at_exit
        self._close()
        if self._keeper is not None:
            failure, late = await self._keeper.close(self._identity.run_id)
            cancellation = late or cancellation
            self._interruption = self._interruption or failure
            if cancellation is not None and isinstance(self._interruption, JournalError):
                self._interruption = None  # a cancellation from outside always gets through
        stopped = cancellation if self._interruption is None else self._interruption
        stopped = self._request if stopped is None else stopped
        if stopped is None:
            return self._state.report()
        try:
            raise stopped
        finally:
            # Or what is raised would keep itself, through this frame.
            del self, cancellation, failure, stopped

    async def _begin(self) -> asyncio.CancelledError | None:
        """Tell that the run begins; return the cancellation that came meanwhile, if any."""
        if self._book is not None:
            self._book.watch(self._heed)
        self._emit(self._opening.event, self._opening.kept)
        cancellation, state = None, self._state
        order = self._identity.plan.order if self._is_resumed else ()
        for count, index in enumerate(order):
            stored_end = state.stored_end(index, self._now_ms())
            if stored_end is not None:
                self._emit(stored_end)
            if count % _REUSED_A_TURN == _REUSED_A_TURN - 1 and cancellation is None:
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError as early:
                    cancellation = early
        self._stop_is_due = False
        if cancellation is not None:
            self._tell_interruption(told_by(cancellation))
            self._stop()
        elif state.stop_reason is not None:
            self._stop_soon()
        return cancellation

    def _close(self) -> None:
        self._watchdog.stop()
        self._monitor.stop()
        # They lead back to us, the group by way of our task, before 3.12.8 and 3.13.1: gh-124958.
        del self._monitor, self._group
        for timer in (self._deadline, self._insistence):
            if timer is not None:
                timer.cancel()
        if not self._is_broken:
            now_ms, state = self._now_ms(), self._state
            self._emit(RunFinished(now_ms, state.outcome, state.stop_reason))

    # Waiting for the steps.

    async def _until_settled(self) -> asyncio.CancelledError | None:
        """Wait until every step has ended; return the cancellation that came meanwhile, if any."""
        try:
            await self._all_settled()
        except asyncio.CancelledError as cancellation:
            self._tell_interruption(told_by(cancellation))
            self._stop()
            # anyio repeats a cancellation until it is obeyed. The shield keeps that from turning
            # the wait for the steps' clean-up into a busy loop.
            with shield():
                while self._live:
                    try:
                        await self._all_settled()
                    except asyncio.CancelledError:
                        continue  # cancelled again; the steps were asked and end in their time
            return cancellation
        return None

    async def _all_settled(self) -> None:
        while not self._is_over():
            self._settled = self._loop.create_future()
            await self._settled

    def _wake_if_settled(self) -> None:
        waiting = self._settled
        if waiting is not None and not waiting.done() and self._is_over():
            waiting.set_result(None)

    def _is_over(self) -> bool:
        return not self._live and (not self._state.unsettled or self._is_broken)

    # Starting them.

    def _advance_soon(self) -> None:
        self._loop.call_soon(self._advance, context=self._context)

    def _advance_now(self) -> None:
        if self._advancing:
            self._advance_soon()  # an eager task is running within its start
        else:
            self._advance_at_once()

    def _advance_at_once(self) -> None:
        if self._conditions:
            # Not in the task of a step: what a condition does is not done by that one.
            self._advance_soon()
        else:
            self._context.run(self._advance)
        del self  # as in _advance

    def _advance(self) -> None:
        """Start what is ready and skip what is doomed, until there is neither.

        Called in the run's context, so that a step's task starts with a fresh copy of it.
        """
        self._advancing = True
        try:
            while self._queue.is_dirty:
                self._start(self._state.ready())
                self._skip_doomed()
        except BaseException as bug:
            self._break_off(bug, "a step could not be started")
        finally:
            self._advancing = False
        self._wake_if_settled()
        del self  # the traceback of an eager task keeps this frame, as it keeps that of _run_unit

    def _start(self, batch: list[int], *, anew: bool = False) -> None:
        if not batch:
            return
        group, live, run, task = self._group, self._live, None, None
        prefix, task_name = self._watchdog.prefix, self._watchdog.task_name
        for node in batch:
            step, run = self._steps[node], self.run_node
            if not step.is_plain or node in self._turns or self._is_resumed:
                if not (anew or (self._is_new(node) and self._is_wanted(node))):
                    continue
                if step.map_over is not None and self._state.step_runs.item_of(node) is None:
                    run = self._run_items
            # Where an attempt has a task of its own, that one bears the name.
            own_name = f"{prefix}{step.name}#1" if step.is_plain else task_name(node, 1)
            name = own_name if FIRST_TASK_BEARS_THE_NAME else None
            task = group.create_task(run(node), name=name)
            if not task.done():  # an eager one may be
                live[node] = task
        self._loop.call_soon(self._restart_unbegun, batch, context=self._context)
        # As in _advance; and what the last condition raised keeps this frame, so not a task of
        # another step, whose end leads to the run.
        del self, group, live, run, task, task_name

    def _is_new(self, node: int) -> bool:
        """Let a unit go on whose turn has come for another attempt; return whether it is new."""
        if node in self._turns:
            self._turns[node].set_result(None)
            return False
        if self._state.step_runs.item_of(node) is not None:
            self._note_change(node)
        return True

    def _is_wanted(self, node: int) -> bool:
        """Ask a step's condition; if the step is not to run, tell that."""
        step, condition = self._steps[node], self._steps[node].when
        if self._is_resumed and self._has_crashed_too_often(node):
            self._forget_item(node)
            return False
        if condition is None or self._state.step_runs.item_of(node) is not None:
            return True
        if self._is_resumed and self._state.had_begun(node):
            return True  # it was asked then
        failure = None
        try:
            arguments = self._arguments(node, self._conditions[node])
            met = self._context.copy().run(condition, **arguments)
            if reject_awaitable(f"the condition of step {step.name!r}", met):
                return True
        except FAILURES as error:
            strip_internal_frames(error)
            failure = as_failure(error, step.name, 0)
            self._tell_failure(StepFailed(step.name, 0, self._now_ms(), failure))
        except BaseException as error:
            reason = f"the condition of step {step.name!r} raised {type(error).__name__}"
            self._emit(StepSkipped(step.name, self._now_ms(), reason))
            strip_internal_frames(error)
            self._interrupt(error, reason)
        else:
            reason = f"its condition{name_suffix(condition)} was not met"
            self._emit(StepSkipped(step.name, self._now_ms(), reason, on_purpose=True))
        finally:
            failure = None  # what the condition raised keeps this frame
            del self  # as in _advance
        return False

    def _restart_unbegun(self, batch: list[int]) -> None:
        """Start those units anew whose tasks a stranger has cancelled before their first line.

        Such a task never runs, so it can tell nobody. It has ended by now, a turn later.
        """
        live = self._live
        unbegun = [
            node for node in self._state.unstarted(batch) if node in live and live[node].done()
        ]
        for node in unbegun:
            del live[node]
        if unbegun:
            self._start(unbegun, anew=True)

    def _follow_up(self, node: int) -> None:
        """See to what follows the end of a unit."""
        if self._values:
            self._forget_item(node)
        if not self._advancing:  # else an eager task has ended within its start
            if self._queue.is_dirty:
                self._advance_at_once()
            elif not self._live:
                self._wake_if_settled()
        del self  # as in _advance

    def _forget_item(self, node: int) -> None:
        if node in self._values:
            del self._values[node]
            self._note_change(node)

    # Stopping them.

    def _break_off(self, bug: BaseException, reason: str) -> None:
        self._is_broken = True
        self._interrupt(bug, reason)

    def _skip_doomed(self) -> None:
        for index, reason, on_purpose in self._state.unreachable():
            if self._state.step_runs.pending_attempts(index) is not None:
                self._tell_cancelled(index)
                continue
            name = self._steps[index].name
            self._emit(StepSkipped(name, self._now_ms(), reason, on_purpose))

    def _interrupt(self, cause: BaseException, reason: str) -> None:
        if self._interruption is None:
            self._interruption = cause
            if not self._state.has_finished:
                self._tell_interruption(reason)
                self._stop_soon()

    def _heed(self, why: JournalError | RunCancelledError) -> None:
        """Stop the run because of what its journal tells."""
        if isinstance(why, JournalError):
            self._interrupt(why, "its journal has failed")
        elif not self._state.has_finished:
            self._request = why
            self._tell_interruption("the run was cancelled through its journal")
            self._stop_soon()

    def _tell_interruption(self, reason: str) -> None:
        if self._state.outcome != "interrupted":
            self._emit(RunInterrupted(self._now_ms(), reason))

    def _time_out(self) -> None:
        """Stop the run because of its deadline."""
        deadline_ms = self._state.deadlines.deadline_ms
        assert deadline_ms is not None
        if self._state.stop_reason is None and self._state.ordinary_unsettled:
            self._emit(RunTimedOut(self._now_ms(), deadline_ms))
            self._stop_soon()

    def _stop_soon(self) -> None:
        # One turn of the loop later, so that steps which fail in the same turn keep their errors.
        if not self._stop_is_due:
            self._stop_is_due = True
            self._loop.call_soon(self._stop, context=self._context)

    def _stop(self) -> None:
        """Ask each live unit to stop, once."""
        self._stop_is_due = False
        if self._state.has_finished:
            return
        now_ms = self._now_ms()
        self._skip_doomed()
        for node, task in list(self._live.items()):
            if node in self._asked or self._state.is_exempt_from_stop(node):
                continue
            self._asked[node] = now_ms
            if self._state.unstarted([node]):
                # A task that is cancelled before its first line never runs: nobody else tells.
                del self._live[node]
                self._report_unstarted(node, now_ms)
            if not self._is_cancelled_already(node, task):
                task.cancel()
            elif not self._is_cut_short(node):
                self._doubtful.append(node)
        if self._live:
            self._watchdog.expect(self._loop.time())
        if self._doubtful:
            if self._insistence is not None:
                self._insistence.cancel()
            self._insistence = self._loop.call_later(GRACE_S, self._insist, context=self._context)
        if self._queue.is_dirty:
            self._advance_soon()
        self._wake_if_settled()

    def _insist(self) -> None:
        """Cancel what others have cancelled and what goes on all the same: it swallowed that."""
        for node in self._doubtful:
            if node in self._live:
                self._live[node].cancel()
        self._doubtful.clear()

    def _report_unstarted(self, node: int, now_ms: float) -> None:
        if (
            self._state.step_runs.pending_attempts(node) is not None
        ):  # it began before the run was resumed
            self._tell_cancelled(node)
        elif self._state.step_runs.item_of(node) is None:
            reason = self._state.stop_reason or ""
            self._emit(StepSkipped(self._steps[node].name, now_ms, reason))
        else:
            self._state.drop_item(node)
        self._forget_item(node)
