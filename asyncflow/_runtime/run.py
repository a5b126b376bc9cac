"""One run: when its steps are started and stopped, and that all of them have ended at its end.

Rules:

1. One task a node (a step, or an item of a mapped one), in the run's task group. The group owns
   their lifetimes and nothing else: no child raises into it, so it never cancels anything by
   itself. A group that aborts because of a child loses a cancellation of its parent before 3.13:
   gh-116720.
2. Only the run stops nodes: it asks each of them once.
3. The run waits for its nodes in the body of the group. Whatever happens to it meanwhile, it waits
   until they have all ended.
4. With a journal, the run ends its segment when nothing is left but to wait for signals
   (``may_suspend``). Otherwise it waits, and meanwhile its deadline does not count.
5. No node starts before all resources are open, and they close after the last node. Without them
   all steps are skipped, clean-up steps too.
6. A run that has waited in an earlier segment opens them only when something has come. If that
   fails, it takes nothing and waits on: an answer is not lost because a database restarts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from asyncflow._core.context import capturing_notes
from asyncflow._core.errors import JournalError, ResourceError, RunCancelledError
from asyncflow._core.report import RunReport
from asyncflow._core.results import Interruption, RunStatus, why_cancelled
from asyncflow._core.step_runs import Key
from asyncflow._core.tracebacks import let_go
from asyncflow._runtime.asyncio_compat import outlast
from asyncflow._runtime.dispatcher import EventDispatcher
from asyncflow._runtime.loop_monitor import watch
from asyncflow._runtime.nested_runs import NestedLink, NestedRuns, enter_outer_run
from asyncflow._runtime.observers import Observer
from asyncflow._runtime.outcome import by_caller
from asyncflow._runtime.permits import Permits
from asyncflow._runtime.run_scope import Parts, RunScope
from asyncflow._runtime.starter import Starter
from asyncflow._runtime.stop_control import StopControl
from asyncflow.events import LoopBlocked, RunFinished, RunInterrupted, RunTimedOut

if TYPE_CHECKING:
    from asyncflow._runtime.options import OpenResource
    from asyncflow._runtime.resources import ResourceFailure, RunResources
    from asyncflow._runtime.run_deadline import RunDeadline
    from asyncflow._runtime.run_link import RunLink

_log = logging.getLogger("asyncflow")

_REUSED_A_TURN = 100
"""After how many steps whose stored result a resumed run reuses other tasks get a turn."""
_TAKEN_A_TURN = 250
"""The same for the results that a rerun reuses, those of items included."""


class Run:
    """One run of a pipeline; `execute` it once. It is the `Host` of its parts."""

    def __init__(
        self,
        scope: RunScope,
        observers: tuple[Observer, ...],
        link: RunLink | None,
        *,
        may_suspend: bool = False,
    ) -> None:
        self._scope = scope
        self._state = scope.state
        self._now_ms = scope.run_context.now_ms
        self._link = link
        self._dispatcher = EventDispatcher(scope, self, observers)
        self._stop_control = StopControl(scope, self)
        self._permits = Permits(scope, self, self._dispatcher, self._stop_control)
        self._deadline: RunDeadline | None = None
        if scope.state.deadlines.deadline_ms is not None:
            from asyncflow._runtime.run_deadline import RunDeadline  # few runs have one

            self._deadline = RunDeadline(scope, self._time_out)
        self._starter = Starter(
            Parts(
                scope=scope,
                run=self,
                dispatcher=self._dispatcher,
                stop_control=self._stop_control,
                permits=self._permits,
                deadline=self._deadline,
            )
        )
        self._resources: RunResources | None = None
        self._nested = NestedRuns(scope.loop, scope.context, self._stop_attempt)
        self._outer: NestedLink | None = None
        """Its link to the run around it, if there is one."""
        waits = self._starter.waits
        self._may_suspend = may_suspend and waits is not None and waits.is_stored
        self._is_broken = self._is_closed = self._has_stopped = False
        self._stop_is_due = True  # until the run has begun, there is nothing to be stopped
        self._wake_up: asyncio.Future[None] | None = None
        self._causes = _Causes()
        if scope.notes is not None:
            scope.notes.open(self._dispatcher)

    async def execute(self) -> RunReport:
        """Run the pipeline; return its report, or raise what has ended it early."""
        persistence, causes = self._scope.persistence, self._causes
        failure: BaseException | None = None
        late: asyncio.CancelledError | None = None
        at_end: list[Callable[[], object]] = []
        await self._begin()
        try:
            self._watch(at_end)
            async with asyncio.TaskGroup() as self._starter.group:
                await self._run_nodes()
        except asyncio.CancelledError as at_exit:
            causes.cancellation = causes.cancellation or at_exit
        finally:  # also if the loop is given up
            while at_end:
                at_end.pop()()
        failed = [] if self._resources is None else self._resources.take_failures()
        cache = self._starter.cache
        self._close()
        if persistence is not None:
            failure, late = await persistence.close(self._scope.run_id)
            causes.cancellation = causes.cancellation or late
            if causes.interruption is None:
                causes.interruption = failure
            if cache is not None:
                cache.close()
        raised = causes.first()
        if failed:
            raised = self._report_resources(failed, raised)
        if self._outer is not None:
            if raised is causes.cancelled and self._state.cause == "drained":
                raised = await self._outer.stand_still() or raised
            self._outer.leave()
            self._outer = None  # it refers back to us
        try:
            if raised is not None:
                if isinstance(raised, RunCancelledError):
                    raised.report = self._state.report()
                raise raised
            return self._state.report()
        finally:
            # Or what is raised would keep itself, through this frame or that of an observer.
            causes.interruption = causes.cancellation = causes.cancelled = None
            del self, causes, cache, failure, late, raised, failed

    async def _begin(self) -> None:
        """Report that the run begins, and what it reuses of earlier segments or another run."""
        start, state, persistence = self._scope.start, self._state, self._scope.persistence
        flush = None
        if persistence is not None:
            persistence.session.watch(self._on_journal_stop)
            flush = persistence.session.flush
        self._outer = enter_outer_run(self.drain_soon)
        if self._link is not None:
            self._link.begin(self, state, flush)
        together = persistence.together if persistence is not None and start.taken else None
        with nullcontext() if together is None else together():  # all or nothing
            self._dispatcher.emit(start.event, start.stored_event)
            if start.void and self._dispatcher.checkpoints is not None:
                self._dispatcher.checkpoints.discard(start.void)
            for count, (taken, stored_event) in enumerate(start.taken, 1):
                self._dispatcher.emit(taken, stored_event)
                if count % _TAKEN_A_TURN == 0 and together is not None:
                    await self._give_turn()
        order = () if start.checkpoint is None else self._scope.plan.order
        for count, index in enumerate(order):
            stored = state.stored_end(index, self._now_ms())
            if stored is not None:
                self._dispatcher.emit(stored)
            # The first turn is for the journal, which may have been asked to cancel the run.
            if count % _REUSED_A_TURN == 0:
                await self._give_turn()
        self._stop_is_due = False
        if self._causes.cancellation is not None:
            self._on_cancel(self._causes.cancellation)
        elif state.stop_reason is not None:
            self._stop_soon()

    async def _give_turn(self) -> None:
        """Let other tasks have a turn before the run goes on to begin, unless it is cancelled."""
        if self._causes.cancellation is None:
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError as early:
                self._causes.cancellation = early

    def _watch(self, at_end: list[Callable[[], object]]) -> None:
        """Begin with what ends with the run: its deadline, the loop monitor, log records."""
        at_end += self._stop_control.close, watch(self._scope.loop, self._on_block).stop
        if self._deadline is not None:
            self._deadline.start()
            at_end.append(self._deadline.stop)
        notes = self._scope.notes
        if notes is not None and notes.takes_logs:
            from asyncflow._runtime.log_capture import capture  # few need it

            at_end.append(capture(notes, capturing_notes).end)

    async def _run_nodes(self) -> None:
        """Start what may start, and wait until all nodes have ended and all resources are closed.

        It raises nothing: what leaves the body of a task group is kept by that in a cycle.
        """
        if self._causes.cancellation is None:
            waits = self._starter.waits
            if self._scope.resources and waits is not None and self._continues_wait():
                waits.hold(self._open_resources)
            elif self._scope.resources:
                self._open_resources()
            self._starter.start_first()
        await outlast(self._is_over, self._until_settled, self._on_cancel)
        if self._starter.waits is not None:
            self._starter.waits.close()  # a step that started now had no resources
        if self._resources is not None:
            await self._resources.close(self._causes.first(), self._on_cancel)

    def _close(self) -> None:
        """Report the end of the run, and let go of what could outlive it or refers back to it."""
        self._is_closed = True
        self._starter.close()
        scope, state = self._scope, self._state
        if self._link is not None:
            self._link.end()
        if scope.notes is not None:
            scope.notes.finish()
        if self._dispatcher.checkpoints is not None:
            self._dispatcher.checkpoints.close()
        if not self._is_broken:
            end = RunFinished(self._now_ms(), state.status, state.stop_reason, state.cause)
            self._dispatcher.emit(end)
        if scope.notes is not None:
            scope.notes.close()
        if scope.run_context.secrets is not None:
            scope.run_context.secrets.clear()
        self._nested.close()
        if state.errors:
            let_go(state.errors)
        # They refer back to us; the group by way of our task before 3.12.8 and 3.13.1: gh-124958.
        del self._dispatcher, self._stop_control, self._permits, self._starter
        del self._deadline, self._resources

    async def send(self, name: str, value: Any) -> None:
        """Take a signal from the handle of the run."""
        waits = self._starter.waits
        if waits is None:
            raise ValueError(f"run {self._scope.run_id!r} waits for no signal {name!r}")
        await waits.send(name, value)

    # Resources.

    def _open_resources(self) -> None:
        """Begin to open the resources of the steps that may still run, if these take any."""
        if self._state.status is RunStatus.INTERRUPTED:
            return
        needed = self._needed_resources()
        if not needed:
            self._starter.release_waits()
        else:
            from asyncflow._runtime.resources import RunResources  # few need it

            self._starter.is_held = True
            self._resources = RunResources(self, needed, self._starter.provide)
            name = f"asyncflow:{self._scope.run_id}:resources"
            self._resources.open(name, self._scope.context.copy())

    def _continues_wait(self) -> bool:
        """Whether the run only waits, as in an earlier segment, and may end this one so."""
        return self._may_wait_elsewhere() and self._state.begins_with_waits()

    def _may_wait_elsewhere(self) -> bool:
        """Whether another process may continue the run when it has waited."""
        waits = self._starter.waits
        is_stored = waits is not None and waits.is_stored
        return is_stored and self._outer is None and not self._scope.plan.keeps_waiting

    def lacks_resources(self, why: Interruption) -> None:
        """Stop the run, whose resources can't be opened; one that has waited waits on."""
        waits = self._starter.waits
        if waits is not None and waits.is_held and self._state.stop_reason is None:
            self._suspend()
        else:
            self.interrupt(None, why)

    def _suspend(self) -> None:
        """End the segment, since nothing is left but to wait."""
        waits = self._starter.waits
        assert waits is not None
        self._may_suspend, self._starter.is_held = True, False
        waits.close()  # what may have come is for the next segment
        waits.stop()
        self._wake_if_settled()

    def _needed_resources(self) -> dict[str, OpenResource]:
        taken = {
            source
            for index in self._scope.plan.order
            if not self._state.has_ended(index)
            for source in self._scope.start.bindings.sources(index)
        }
        return {name: each for name, each in self._scope.resources.items() if name in taken}

    def _report_resources(
        self, failed: list[ResourceFailure], raised: BaseException | None
    ) -> BaseException | None:
        """Return what the run raises if resources have failed; log what is not raised."""
        if raised is None:
            first = failed.pop(0)
            raised = ResourceError(first.resource, first.problem, self._state.report())
            raised.__cause__ = first.cause
        for each in failed:
            _log.error(
                "run %r: resource %r %s",
                *(self._scope.run_id, each.resource, each.problem),
                exc_info=each.cause,
            )
        return raised

    # While nodes run.

    async def _until_settled(self) -> None:
        self._wake_up = self._scope.loop.create_future()
        await self._wake_up

    def _wake_if_settled(self) -> None:
        if self._deadline is not None and self._is_at_rest():
            self._deadline.rest()
        waiter = self._wake_up
        if waiter is not None and not waiter.done() and self._is_over():
            waiter.set_result(None)

    def _is_over(self) -> bool:
        if self._scope.live:
            return False
        return self._is_settled() or (self._may_suspend and self._is_at_rest())

    def _is_settled(self) -> bool:
        return not self._scope.live and (not self._state.unsettled or self._is_broken)

    def _is_at_rest(self) -> bool:
        """Whether nothing is left but to wait for signals, and none may have come."""
        waits = self._starter.waits
        return waits is not None and not waits.is_looking and self._only_waits()

    def _only_waits(self) -> bool:
        state = self._state
        return (
            bool(state.awaiting)
            and state.stop_reason is None
            and not (state.queue.is_dirty or self._starter.is_held or self._scope.live)
            and not state.has_parked
        )

    def settled(self, node: int) -> None:
        """See to what follows the end of a node's task."""
        task = self._scope.live.pop(node, None)
        if self._starter.maps.items:
            self._starter.maps.forget(node, task)
        self.advance()

    def advance(self) -> None:
        """Stop the run if that is due; start what may start now; end if nothing is left."""
        if self._state.stop_reason is not None and not self._has_stopped:
            self._stop_soon()
        if self._starter.is_advancing:
            return  # an eager task has ended within its start, which goes on with what follows
        if self._state.queue.is_dirty and not self._is_broken:
            self._starter.advance()
        elif not self._scope.live:
            if self._is_at_rest():
                self._state.skip_lost()  # people see which answers are of use
                self._starter.skip_unreachable()
                if self._state.queue.is_dirty:
                    self._starter.advance_soon()  # this may be called by the starter
                    return
            self._wake_if_settled()

    def _on_block(self, task: asyncio.Task[Any] | None, blocked_ms: float, where: str) -> None:
        """Report a step that has kept the event loop from doing anything else."""
        running = self._stop_control.watchdog.attempt_of(task)
        if running is None:
            return
        name, attempt, item = running.step, running.attempt, running.item
        index = self._scope.plan.index[name]
        step = self._scope.plan.steps[index]
        if step.runs_in != "loop" or step.remote is not None:
            return  # what runs elsewhere only waits in its task, which others may hold up
        if item is None or self._state.step_runs.has_item(index, item):
            self._dispatcher.emit(
                LoopBlocked(name, attempt, self._now_ms(), blocked_ms, where, item)
            )
        _log.warning(
            "step %r, attempt %d, blocked the event loop for %.0f ms at %s; let it await, "
            'or make it a plain function with runs_in="thread"',
            *(name, attempt, blocked_ms, where),
        )

    # Stopping them.

    def interrupt(self, error: BaseException | None, why: Interruption) -> None:
        """Stop the run; it raises the error in the end, unless it has been interrupted before."""
        if error is not None:
            if self._causes.interruption is not None:
                return
            self._causes.interruption = error
        if not self._state.has_finished:
            self._report_interruption(why)
            self._stop_soon()

    def broken(self, bug: BaseException, reason: str) -> None:
        """Interrupt the run for a bug of asyncflow. Its state may be wrong, so it has no end."""
        self._is_broken = True
        if self._scope.loop.is_closed():
            return  # no bug: our coroutines are closed, and nothing can follow
        self._starter.maps.give_up()
        self.interrupt(bug, Interruption("bug", reason))
        self._stop_soon()  # also what has started since an earlier interruption

    def drain_soon(self, reason: str) -> None:
        """Start nothing more, from the next turn of the loop on."""
        self._scope.loop.call_soon(self._drain, reason, context=self._scope.context)

    def _drain(self, reason: str) -> None:
        """Start nothing more, but let the attempts that are running end.

        If these complete the run, it ends as usual. Otherwise it is interrupted, unless it only
        waits for signals.
        """
        state = self._state
        if self._is_closed or self._stop_control.drain_reason or state.stop_reason is not None:
            return
        self._stop_control.drain_reason = reason
        waits = self._starter.waits
        is_held = waits is not None and waits.is_held
        if is_held or (self._may_wait_elsewhere() and self._only_waits()):
            if self._resources is not None:
                self._resources.stop_opening()
            self._suspend()
            return
        self._nested.drain(reason)
        steps = len(self._scope.plan.steps)
        running = [node for node in self._scope.live if node < steps and state.has_begun(node)]
        if len(running) < state.unsettled:
            self.backs_off()

    def backs_off(self) -> None:
        """Interrupt the run, which drains: a node would have to wait."""
        if self._state.stop_reason is None:
            reason = self._stop_control.drain_reason
            self._causes.cancelled = RunCancelledError(self._scope.run_id, reason)
            self._report_interruption(Interruption("drained", reason))
        # Otherwise the run has not begun, or stops everything.
        if self._state.status is RunStatus.INTERRUPTED and not self._stop_is_due:
            self._stop(spare_running=True)

    def _stop_attempt(self, key: Key) -> None:
        """Stop an attempt whose nested runs start nothing more, since this run drains."""
        self.backs_off()
        for node, task in list(self._scope.live.items()):
            running, requested = self._state.running_attempt(node), self._stop_control.requested
            is_it = running is not None and (running.step, running.item) == key
            if is_it and node not in requested:
                self._stop_control.request(node, task, self._now_ms())

    def _on_journal_stop(self, why: JournalError | RunCancelledError) -> None:
        """Stop the run because its journal has failed, or was asked to cancel the run."""
        if isinstance(why, JournalError):
            self.interrupt(why, Interruption("journal", "its journal has failed"))
        else:
            self._cancel(why, why_cancelled(why.reason))

    def cancel_soon(self, error: RunCancelledError, why: Interruption) -> None:
        """Stop the run, from the next turn of the loop on."""
        self._scope.loop.call_soon(self._cancel, error, why, context=self._scope.context)

    def _cancel(self, error: RunCancelledError, why: Interruption) -> None:
        """Stop the run, which raises this error in the end, unless all of its steps have ended."""
        if self._is_closed or self._is_settled():
            return
        if self._causes.cancelled is None or self._overrides(why):
            self._causes.cancelled = error
        self._report_interruption(why)
        self._stop_soon()

    def _on_cancel(self, cancellation: asyncio.CancelledError) -> None:
        self._causes.cancellation = self._causes.cancellation or cancellation
        self._report_interruption(by_caller(cancellation))
        self._stop()

    def _report_interruption(self, why: Interruption) -> None:
        if self._state.status is not RunStatus.INTERRUPTED or self._overrides(why):
            paused = self._permits.paused_pool()
            reason = f"{why.reason} {paused}" if paused else why.reason
            self._dispatcher.emit(RunInterrupted(self._now_ms(), reason, why.cause))

    def _overrides(self, why: Interruption) -> bool:
        """Whether a run that was drained is cancelled now, so that no other process resumes it."""
        return self._state.cause == "drained" and why.cause == "cancelled"

    def _time_out(self) -> None:
        """Stop the run because of its deadline."""
        deadline_ms = self._state.deadlines.deadline_ms
        assert deadline_ms is not None
        if self._resources is not None and self._resources.is_opening:
            self._resources.time_out(deadline_ms)
        elif self._state.stop_reason is None and self._state.ordinary_unsettled:
            paused = self._permits.paused_pool()
            self._dispatcher.emit(RunTimedOut(self._now_ms(), deadline_ms, paused))
            self._stop_soon()

    def _stop_soon(self) -> None:
        # One turn of the loop later, so that steps which fail in the same turn keep their errors.
        if not self._stop_is_due:
            self._stop_is_due = True
            self._scope.loop.call_soon(self._stop, context=self._scope.context)

    def _stop(self, *, spare_running: bool = False) -> None:
        """Ask each live node to stop, once; or only those that run no attempt."""
        self._stop_is_due, self._has_stopped = False, True
        if self._is_closed:
            return
        state, control = self._state, self._stop_control
        if self._resources is not None and state.status is RunStatus.INTERRUPTED:
            self._resources.stop_opening()
            self._starter.is_held = False  # and then nothing is ready
        now_ms = self._now_ms()
        self._starter.skip_unreachable()
        for node, task in list(self._scope.live.items()):
            if node in control.requested or state.is_exempt_from_stop(node):
                continue
            if spare_running and state.has_begun(node):
                continue
            control.request(node, task, now_ms)
            if state.is_scheduled(node):
                # A task that is cancelled before its first line never runs: it reports nothing.
                del self._scope.live[node]
                self._starter.report_unstarted(node, now_ms)
        if self._starter.waits is not None:
            self._starter.waits.stop()
        if self._scope.live:
            control.watchdog.expect_in(0)  # it warns of what has not stopped in its grace period
        if state.queue.is_dirty:
            self._starter.advance_soon()
        self._wake_if_settled()


class _Causes:
    """What has ended a run early: the first of each kind."""

    interruption: BaseException | None = None
    """What ends the program, the failure of the journal, or a bug of asyncflow."""
    cancellation: asyncio.CancelledError | None = None
    """That of the caller."""
    cancelled: RunCancelledError | None = None
    """The run itself was cancelled or drained."""

    def first(self) -> BaseException | None:
        """Return what the run raises, if anything."""
        if self.cancellation is not None and isinstance(self.interruption, JournalError):
            return self.cancellation  # one from outside always gets through
        for cause in (self.interruption, self.cancellation, self.cancelled):
            if cause is not None:
                return cause
        return None
