"""One run: when its steps are started and stopped, and that all of them have ended at its end.

Rules:

1. One task a node (a step, or an item of a mapped one), in the run's task group. The group owns
   their lifetimes and nothing else: no child raises into it, so it never cancels anything by
   itself. A group that aborts because of a child loses a cancellation of its parent before 3.13:
   gh-116720.
2. Only the run stops nodes: it asks each of them once.
3. The run waits for its nodes in the body of the group. Whatever happens to it meanwhile, it waits
   until they have all ended.
4. No node starts before all resources are open, and they close after the last node. Without them
   all steps are skipped, clean-up steps too.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asyncflow._core.arguments import reject_awaitable
from asyncflow._core.context import RunContext, capturing_notes, enter_run, known_secrets
from asyncflow._core.errors import (
    JournalError,
    ResourceError,
    RunCancelledError,
    StepCrashedError,
    name_suffix,
)
from asyncflow._core.graph import Plan, outputs_to_keep
from asyncflow._core.report import RunReport
from asyncflow._core.results import REDACTED_OUTPUT, Interruption, RunStatus
from asyncflow._core.secret_texts import SecretTexts
from asyncflow._core.state import RunState
from asyncflow._core.step import WorkflowStep
from asyncflow._core.tracebacks import strip_internal_frames
from asyncflow._runtime.asyncio_compat import (
    FAILURES,
    WAIT_FOR_MAKES_A_TASK,
    cancel_requested,
    clock_of,
    outlast,
)
from asyncflow._runtime.dispatcher import EventDispatcher, Observer
from asyncflow._runtime.durable import RunPersistence, RunStart
from asyncflow._runtime.loop_monitor import watch
from asyncflow._runtime.mapping import MapRunner
from asyncflow._runtime.outcome import as_failure, by_caller, step_cancelled
from asyncflow._runtime.permits import Permits
from asyncflow._runtime.step_runner import StepRunner
from asyncflow._runtime.stop_control import StopControl
from asyncflow._runtime.watchdog import Watchdog
from asyncflow.events import (
    LoopBlocked,
    RunFinished,
    RunInterrupted,
    RunTimedOut,
    StepFailed,
    StepSkipped,
)

if TYPE_CHECKING:
    from asyncflow._runtime.handle import RunLink
    from asyncflow._runtime.log_capture import Capture
    from asyncflow._runtime.notes import NoteQueue
    from asyncflow._runtime.options import OpenResource
    from asyncflow._runtime.remote_attempt import RemoteAttempts
    from asyncflow._runtime.resources import ResourceFailure, RunResources

__all__ = ["Run"]

_log = logging.getLogger("asyncflow")

_REUSED_A_TURN = 100
"""After how many steps whose stored result a resumed run reuses other tasks get a turn."""


class Run:
    """One run of a pipeline; `execute` it once.

    It is the host of the objects that run its steps. They call `settled`, `interrupt` and `broken`,
    and the two that make nodes ready have it advance.

    Args:
        run_id: Identifies the run.
        plan: What to run.
        start: How the run begins.
        state: Its state.
        observers: Who is notified of its events.
        persistence: Its part of a journal, if it has one.
        resources: What opens each resource that its steps may take.
        link: What connects it with its handle, if it has one.
    """

    def __init__(
        self,
        run_id: str,
        plan: Plan,
        start: RunStart,
        state: RunState,
        observers: tuple[Observer, ...],
        persistence: RunPersistence | None,
        resources: Mapping[str, OpenResource],
        link: RunLink | None = None,
    ) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self._plan = plan
        self._start_of_run = start
        self._is_resumed = start.checkpoint is not None
        self._state = state
        self._queue = state.queue
        self._steps = state.step_runs.steps
        self._persistence = persistence
        self._link = link
        # The clock of a run stands still while no process runs it.
        started_s = loop.time() - state.deadlines.began_ms / 1000
        deadline_ms = state.deadlines.deadline_ms
        deadline_s = math.inf if deadline_ms is None else loop.time() + deadline_ms / 1000
        clock, notes = clock_of(loop), None
        takes_notes = persistence is not None and persistence.takes_notes
        secrets = _secrets_of(start, known_secrets())
        if observers or takes_notes:
            secrets = secrets or SecretTexts()
            notes = _notes_of(loop, clock, started_s, start, observers, persistence, secrets)
        self._notes = notes
        outer = None if notes is not None and notes.takes_logs else capturing_notes()
        run = self._run = RunContext(
            *(run_id, plan, clock, started_s, deadline_s, {}, cancel_requested),
            *(notes, secrets, outer),
        )
        context = self._context = contextvars.copy_context()
        context.run(enter_run, run)
        self._live: dict[int, asyncio.Task[Any]] = {}
        """The task of each node that was started and has not ended."""
        session = None if persistence is None else persistence.session
        dispatcher = self._dispatcher = EventDispatcher(
            state,
            session,
            observers,
            self.interrupt,
            notes,
            persistence.store_note if persistence is not None and takes_notes else None,
        )
        if notes is not None:
            notes.open(dispatcher)
        stop = self._stop_control = StopControl(state, run, context, self._live)
        self._watchdog = Watchdog(state, run, context, self._live, stop.requested)
        permits = self._permits = Permits(state, run, dispatcher, stop, self._advance_soon)
        engines: RemoteAttempts | None = None
        if any(plan.steps[index].remote for index in plan.special):
            from asyncflow._runtime.remote_attempt import RemoteAttempts  # few need it

            to_keep = outputs_to_keep(plan, start.bindings, start.conditions)
            engines = RemoteAttempts(
                *(run, context, state, dispatcher, permits, self._watchdog, notes, to_keep)
            )
        self._runner = StepRunner(
            self,
            run,
            context,
            start.bindings,
            start.inputs,
            state,
            dispatcher,
            permits,
            stop,
            self._watchdog,
            persistence,
            notes,
            engines,
        )
        self._maps = MapRunner(
            self,
            run,
            state,
            dispatcher,
            stop,
            self._runner,
            is_durable=persistence is not None,
            advance=self._advance_now,
        )
        self._all_resources = resources
        self._resources: RunResources | None = None
        self._unchecked: list[int] | None = None
        """What the planned look for unstarted nodes will look at; ``None`` if none is planned."""
        self._may_start = True
        self._advancing = False
        self._is_broken = self._is_closed = False
        self._stop_is_due = True  # until the run has begun, there is nothing to be stopped
        self._has_stopped = False
        self._wake_up: asyncio.Future[None] | None = None
        self._interruption: BaseException | None = None
        self._cancelled: RunCancelledError | None = None
        self._drain_reason = ""
        self._deadline: asyncio.TimerHandle | None = None
        self._capture: Capture | None = None

    async def execute(self) -> RunReport:
        """Run the pipeline; return its report, or raise what has interrupted it."""
        cancellation: BaseException | None = await self._begin()
        if self._run.deadline_s < math.inf:
            self._deadline = self._loop.call_at(
                self._run.deadline_s, self._time_out, context=self._context
            )
        self._monitor = watch(self._loop, self._on_block)
        if self._notes is not None and self._notes.takes_logs:
            from asyncflow._runtime.log_capture import capture  # few need it

            self._capture = capture(self._notes, capturing_notes)
        failure: BaseException | None = None
        late: asyncio.CancelledError | None = None
        causes: Sequence[BaseException | None] = ()
        try:
            async with asyncio.TaskGroup() as self._group:
                # From the loop, not from here: the traceback of an eager task that fails at once
                # would keep our callers' frames, and one of them holds the report: a cycle.
                if cancellation is None:
                    self._open_resources()
                    self._advance_soon()
                # What leaves the body of a group is kept by it in a cycle, so nothing leaves it.
                late = await outlast(self._is_over, self._until_settled, self._on_cancel)
                cancellation = late or cancellation
                if self._resources is not None:
                    causes = (self._interruption, cancellation, self._cancelled)
                    late = await self._resources.close(_first(causes), self._on_cancel)
                    cancellation = cancellation or late
        except asyncio.CancelledError as at_exit:
            cancellation = at_exit
        finally:
            if self._capture is not None:  # also if the loop is given up
                self._capture.end()
        failed = [] if self._resources is None else self._resources.take_failures()
        self._close()
        if self._persistence is not None:
            failure, late = await self._persistence.close(self._run.run_id)
            cancellation = late or cancellation
            if self._interruption is None:
                self._interruption = failure
            if cancellation is not None and isinstance(self._interruption, JournalError):
                self._interruption = None  # a cancellation from outside always gets through
        raised = _first((self._interruption, cancellation, self._cancelled))
        if failed:
            raised = self._report_resources(failed, raised)
        try:
            if raised is not None:
                if isinstance(raised, RunCancelledError):
                    raised.report = self._state.report()
                raise raised
            return self._state.report()
        finally:
            # Or what is raised would keep itself, through this frame or that of an observer.
            self._interruption = self._cancelled = None
            del self, cancellation, failure, late, causes, raised, failed

    async def _begin(self) -> asyncio.CancelledError | None:
        """Report that the run begins; return the cancellation that came meanwhile, if any."""
        if self._persistence is not None:
            self._persistence.session.watch(self._on_journal_stop)
        if self._link is not None:
            flush = None if self._persistence is None else self._persistence.session.flush
            self._link.begin(self._state, self._cancel_soon, self._drain_soon, flush)
        self._dispatcher.emit(self._start_of_run.event, self._start_of_run.stored_event)
        for taken, stored_event in self._start_of_run.taken:  # in the same turn: all or nothing
            self._dispatcher.emit(taken, stored_event)
        cancellation, state = None, self._state
        order = self._plan.order if self._is_resumed else ()
        for count, index in enumerate(order):
            stored = state.stored_end(index, self._run.now_ms())
            if stored is not None:
                self._dispatcher.emit(stored)
            if count % _REUSED_A_TURN == _REUSED_A_TURN - 1 and cancellation is None:
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError as early:
                    cancellation = early
        self._stop_is_due = False
        if cancellation is not None:
            self._report_interruption(by_caller(cancellation))
            self._stop()
        elif state.stop_reason is not None:
            self._stop_soon()
        return cancellation

    def _close(self) -> None:
        """Report the end of the run, and let go of what could outlive it or refers back to it."""
        self._is_closed = True
        if self._link is not None:
            self._link.end()
        self._watchdog.stop()
        self._monitor.stop()
        self._stop_control.close()
        if self._deadline is not None:
            self._deadline.cancel()
        if self._notes is not None:
            self._notes.finish()
        if not self._is_broken:
            state = self._state
            now_ms = self._run.now_ms()
            self._dispatcher.emit(RunFinished(now_ms, state.status, state.stop_reason, state.cause))
        if self._notes is not None:
            self._notes.close()
        if self._run.secrets is not None:
            self._run.secrets.clear()
        # They refer back to us; the group by way of our task before 3.12.8 and 3.13.1: gh-124958.
        del self._dispatcher, self._permits, self._runner, self._maps, self._monitor, self._group
        del self._resources

    # Resources.

    def _open_resources(self) -> None:
        """Begin to open the resources of the steps that may still run, if there are any."""
        needed = self._needed_resources() if self._all_resources else {}
        if needed:
            from asyncflow._runtime.resources import RunResources  # few need it

            self._may_start = False
            self._resources = RunResources(self, needed)
            name = f"asyncflow:{self._run.run_id}:resources"
            self._resources.open(name, self._context.copy())

    def _needed_resources(self) -> dict[str, OpenResource]:
        bindings, conditions = self._start_of_run.bindings, self._start_of_run.conditions
        taken = {
            source
            for index in self._plan.order
            if self._state.result(index) is None
            for _, source in (*bindings[index], *conditions.get(index, ()))
        }
        return {name: each for name, each in self._all_resources.items() if name in taken}

    def opened(self, values: Mapping[str, Any]) -> None:
        """Start the first steps, with the resources."""
        self._runner.provide(values)
        self._may_start = True
        self._advance_soon()

    def stop_for_resource(self, why: Interruption) -> None:
        """Stop the run, because a resource has failed."""
        self._report_interruption(why)
        self._stop_soon()

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
                *(self._run.run_id, each.resource, each.problem),
                exc_info=each.cause,
            )
        return raised

    # Waiting for the nodes.

    async def _until_settled(self) -> None:
        self._wake_up = self._loop.create_future()
        await self._wake_up

    def _wake_if_settled(self) -> None:
        waiter = self._wake_up
        if waiter is not None and not waiter.done() and self._is_over():
            waiter.set_result(None)

    def _is_over(self) -> bool:
        return not self._live and (not self._state.unsettled or self._is_broken)

    def settled(self, node: int) -> None:
        """See to what follows the end of a node."""
        self._live.pop(node, None)
        if self._runner.items:
            self._maps.forget(node)
        if self._state.stop_reason is not None and not self._has_stopped:
            self._stop_soon()
        if not self._advancing:  # else an eager task has ended within its start
            if self._queue.is_dirty:
                self._advance_at_once()
            elif not self._live:
                self._wake_if_settled()
        del self  # as in _advance

    # Starting them.

    def _advance_soon(self) -> None:
        self._loop.call_soon(self._advance, context=self._context)

    def _advance_now(self) -> None:
        if self._advancing:
            self._advance_soon()  # an eager task is running within its start
        else:
            self._advance_at_once()

    def _advance_at_once(self) -> None:
        if self._start_of_run.conditions:
            # Not in the task of a step, to which a condition does not belong.
            self._advance_soon()
        else:
            self._context.run(self._advance)
        del self  # as in _advance

    def _advance(self, again: Sequence[int] = ()) -> None:
        """Start what is ready and skip what is unreachable, until there is neither.

        Called in the run's context, so that a node's task starts with a fresh copy of it.

        Args:
            again: Nodes to start before that, whose tasks never began.
        """
        if self._is_closed or not self._may_start:
            return
        self._advancing = True
        try:
            if again:
                self._start(again, is_again=True)
            while self._queue.is_dirty:
                self._start(self._state.take_ready())
                if self._queue.is_dirty:
                    self._skip_unreachable()
        except BaseException as bug:
            self.broken(bug, "a step could not be started")
        finally:
            self._advancing = False
        self._wake_if_settled()
        del self  # the traceback of an eager task keeps this frame

    def _start(self, batch: Sequence[int], *, is_again: bool = False) -> None:
        if not batch:
            return
        group, live, launch = self._group, self._live, self._runner.launch
        prefix, task_name = self._watchdog.prefix, self._watchdog.task_name
        task = coroutine = None
        shortest_s, steps, turns = math.inf, len(self._plan.steps), self._permits.turns
        for node in batch:
            step, coroutine = self._steps[node], None
            if not is_again:
                if turns and self._permits.readmit(node):
                    continue  # it makes another attempt
                if (step.when or self._is_resumed) and not self._ask_condition(node):
                    continue
            if step.map_over is not None:
                if node < steps:
                    coroutine = self._maps.run(node, step)
                else:
                    self._maps.note_change(node)
            if step.timeout_s is not None and step.timeout_s < shortest_s:
                shortest_s = step.timeout_s
            # Before 3.12, each attempt has a task of its own, which has that name.
            own_name = f"{prefix}{step.name}#1" if node < steps else task_name(node, 1)
            name = None if WAIT_FOR_MAKES_A_TASK else own_name
            task = group.create_task(coroutine or launch(node), name=name)
            if not task.done():  # an eager one may be
                live[node] = task
        self._watchdog.expect(self._loop.time() + shortest_s)
        if self._unchecked is None:
            self._unchecked = list(batch)
            look, started = self._restart_unstarted, len(batch)
            self._loop.call_soon(look, self._unchecked, started, context=self._context)
            del look
        else:
            self._unchecked += batch
        # As in _advance; and what the last condition raised keeps this frame, so not a task of
        # another step, whose end leads to the run.
        del self, group, live, launch, task, task_name, coroutine

    def _ask_condition(self, node: int) -> bool:
        """Return whether a node shall run; if not, report its end."""
        step, condition = self._steps[node], self._steps[node].when
        if self._is_resumed and self._fail_if_crashed(node, step):
            self._maps.forget(node)
            return False
        if condition is None or self._state.step_runs.item_of(node) is not None:
            return True
        if self._is_resumed and self._state.had_begun(node):
            return True  # it was asked then
        failure = None
        try:
            arguments = self._runner.arguments(node, self._start_of_run.conditions[node])
            met = self._context.copy().run(condition, **arguments)
            if reject_awaitable(f"the condition of step {step.name!r}", met):
                return True
        except FAILURES as error:
            strip_internal_frames(error)
            failure = as_failure(error, step.name, 0)
            self._fail(StepFailed(step.name, 0, self._run.now_ms(), failure))
        except BaseException as error:
            reason = f"the condition of step {step.name!r} raised {type(error).__name__}"
            self._dispatcher.emit(StepSkipped(step.name, self._run.now_ms(), reason))
            strip_internal_frames(error)
            self.interrupt(error, Interruption("step", reason))
        else:
            reason = f"its condition{name_suffix(condition)} was not met"
            self._dispatcher.emit(
                StepSkipped(step.name, self._run.now_ms(), reason, on_purpose=True)
            )
        finally:
            failure = None  # what the condition raised keeps this frame
            del self  # as in _advance
        return False

    def _fail_if_crashed(self, node: int, step: WorkflowStep) -> bool:
        """Fail a node whose process has died too often while it ran; return whether it has."""
        pending = self._state.step_runs.pending_attempts(node)
        if pending is None or not pending.is_interrupted:
            return False
        latest, _, unfinished, crashes = pending
        if step.remote is not None and not step.remote.tells_began:
            crashes = unfinished  # a body that kills this process at once leaves no word of it
        if crashes <= step.max_crashes:
            return False
        name = self._state.step_runs.name_of(node)
        error = StepCrashedError(name, latest.attempt, crashes)
        now_ms = self._run.now_ms()
        self._fail(StepFailed(step.name, latest.attempt, now_ms, error, latest.item))
        return True

    def _fail(self, failure: StepFailed) -> None:
        """Report a node that has failed without a task."""
        self._dispatcher.emit(failure)
        if self._state.stop_reason is not None:
            self._stop_soon()

    def _restart_unstarted(self, nodes: list[int], ended: int) -> None:
        """Restart nodes whose tasks a third party has cancelled before their first line.

        Such a task never runs, so it reports nothing. This look is planned once a turn, and not
        once a batch: in a map, that is an item.

        Args:
            nodes: What was started since the last look was planned.
            ended: How many of them were started before this one was: if their tasks were cancelled
                so early, these have ended. The others end later in this turn.
        """
        if nodes is self._unchecked:
            self._unchecked = None
        if late := nodes[ended:]:
            self._loop.call_soon(self._restart_unstarted, late, len(late), context=self._context)
        live = self._live
        unstarted = [node for node in nodes[:ended] if node in live and live[node].done()]
        again = list(filter(self._state.is_scheduled, unstarted))
        for node in again:
            del live[node]
        if again:
            self._advance(again)

    # Stopping them.

    def interrupt(self, error: BaseException, why: Interruption) -> None:
        """Stop the run; it raises the error in the end, unless it has been interrupted before."""
        if self._interruption is None:
            self._interruption = error
            if not self._state.has_finished:
                self._report_interruption(why)
                self._stop_soon()

    def _drain_soon(self, reason: str) -> None:
        self._loop.call_soon(self._drain, reason, context=self._context)

    def _drain(self, reason: str) -> None:
        """Start nothing more, but let the attempts that are running end.

        If these complete the run, it ends as usual. Otherwise it is interrupted.
        """
        state = self._state
        if self._is_closed or self._drain_reason or state.stop_reason is not None:
            return
        self._drain_reason = reason
        self._stop_control.on_backoff = self._interrupt_drained
        steps = len(self._plan.steps)
        if sum(node < steps and state.has_begun(node) for node in self._live) < state.unsettled:
            self._interrupt_drained()

    def _interrupt_drained(self) -> None:
        if self._state.stop_reason is None:
            self._cancelled = RunCancelledError(self._run.run_id, self._drain_reason)
            self._report_interruption(Interruption("drained", self._drain_reason))
        # Otherwise the run has not begun, or stops everything.
        if self._state.status is RunStatus.INTERRUPTED and not self._stop_is_due:
            self._stop(spare_running=True)

    def broken(self, bug: BaseException, reason: str) -> None:
        """Interrupt the run for a bug of asyncflow. Its state may be wrong, so it has no end."""
        self._is_broken = True
        self._maps.give_up()
        self.interrupt(bug, Interruption("bug", reason))
        self._stop_soon()  # also what has started since an earlier interruption

    def _skip_unreachable(self) -> None:
        for index, reason, on_purpose in self._state.take_unreachable():
            now_ms = self._run.now_ms()
            if self._state.step_runs.pending_attempts(index) is not None:
                self._report_cancelled(index, now_ms)
            else:
                name = self._steps[index].name
                self._dispatcher.emit(StepSkipped(name, now_ms, reason, on_purpose))

    def _on_journal_stop(self, why: JournalError | RunCancelledError) -> None:
        """Stop the run because its journal has failed, or was asked to cancel the run."""
        if isinstance(why, JournalError):
            self.interrupt(why, Interruption("journal", "its journal has failed"))
        else:
            self._cancel(
                why, Interruption("cancelled", "the run was cancelled through its journal")
            )

    def _cancel_soon(self, error: RunCancelledError, why: Interruption) -> None:
        self._loop.call_soon(self._cancel, error, why, context=self._context)

    def _cancel(self, error: RunCancelledError, why: Interruption) -> None:
        """Stop the run, which raises this error in the end, unless all of its steps have ended."""
        if self._is_closed or self._is_over():
            return
        if self._cancelled is None or self._overrides(why):
            self._cancelled = error
        self._report_interruption(why)
        self._stop_soon()

    def _on_cancel(self, cancellation: asyncio.CancelledError) -> None:
        self._report_interruption(by_caller(cancellation))
        self._stop()

    def _report_interruption(self, why: Interruption) -> None:
        if self._state.status is not RunStatus.INTERRUPTED or self._overrides(why):
            self._dispatcher.emit(RunInterrupted(self._run.now_ms(), why.reason, why.cause))

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
            self._dispatcher.emit(RunTimedOut(self._run.now_ms(), deadline_ms))
            self._stop_soon()

    def _stop_soon(self) -> None:
        # One turn of the loop later, so that steps which fail in the same turn keep their errors.
        if not self._stop_is_due:
            self._stop_is_due = True
            self._loop.call_soon(self._stop, context=self._context)

    def _stop(self, *, spare_running: bool = False) -> None:
        """Ask each live node to stop, once; or only those that run no attempt."""
        self._stop_is_due, self._has_stopped = False, True
        state, control = self._state, self._stop_control
        if self._is_closed:
            return
        if self._resources is not None and state.status is RunStatus.INTERRUPTED:
            self._resources.stop_opening()
            self._may_start = True  # and then nothing is ready
        now_ms = self._run.now_ms()
        self._skip_unreachable()
        for node, task in list(self._live.items()):
            if node in control.requested or state.is_exempt_from_stop(node):
                continue
            if spare_running and state.has_begun(node):
                continue
            control.request(node, task, now_ms)
            if state.is_scheduled(node):
                # A task that is cancelled before its first line never runs: it reports nothing.
                del self._live[node]
                self._report_unstarted(node, now_ms)
        if self._live:
            self._watchdog.expect(self._loop.time())
        if self._queue.is_dirty:
            self._advance_soon()
        self._wake_if_settled()

    def _report_unstarted(self, node: int, now_ms: float) -> None:
        if self._state.step_runs.pending_attempts(node) is not None:
            self._report_cancelled(node, now_ms)  # it started before the run was resumed
        elif self._state.step_runs.item_of(node) is None:
            reason = self._state.stop_reason or ""
            self._dispatcher.emit(StepSkipped(self._steps[node].name, now_ms, reason))
        else:
            self._state.drop_item(node)
        self._maps.forget(node)

    def _report_cancelled(self, node: int, now_ms: float) -> None:
        """Report the end of a node that has started and of which no attempt is running."""
        error = self._state.attempt_log.last_error(node)
        self._dispatcher.emit(step_cancelled(self._state, node, now_ms, error))

    def _on_block(self, task: asyncio.Task[Any] | None, blocked_ms: float, where: str) -> None:
        """Report a step that has kept the event loop from doing anything else."""
        running = self._watchdog.attempt_of(task)
        # What runs elsewhere only waits in its task, which others may hold up.
        step = None if running is None else self._steps[self._plan.index[running.step]]
        if running is None or step is None or step.runs_in != "loop" or step.remote is not None:
            return
        name, attempt, item = running.step, running.attempt, running.item
        self._dispatcher.emit(
            LoopBlocked(name, attempt, self._run.now_ms(), blocked_ms, where, item)
        )
        _log.warning(
            "step %r, attempt %d, blocked the event loop for %.0f ms at %s; let it await, "
            'or make it a plain function with runs_in="thread"',
            *(name, attempt, blocked_ms, where),
        )


def _first(causes: Sequence[BaseException | None]) -> BaseException | None:
    return next((cause for cause in causes if cause is not None), None)


def _notes_of(
    loop: asyncio.AbstractEventLoop,
    clock: Callable[[], float],
    started_s: float,
    start: RunStart,
    observers: Sequence[Observer],
    persistence: RunPersistence | None,
    secrets: SecretTexts,
) -> NoteQueue:
    """Return what takes the notes of a run that has a journal or observers."""
    from asyncflow._runtime.notes import NoteQueue, log_level_of, wants_prints  # others need none

    levels = [log_level_of(each) for each in observers]
    prints = any(map(wants_prints, observers))
    if persistence is not None:
        levels.append(persistence.logs)
        prints = prints or persistence.prints
    return NoteQueue(
        loop,
        clock,
        started_s,
        secrets=secrets,
        secret=start.event.secret,
        level=min((level for level in levels if level is not None), default=None),
        prints=prints,
    )


def _secrets_of(start: RunStart, outer: SecretTexts | None) -> SecretTexts | None:
    """Return the secrets that a run knows when it starts, or may get to know, if there are any."""
    shown = start.event.inputs if start.checkpoint is None else start.checkpoint.inputs
    hidden = [name for name in start.inputs if shown.get(name) is REDACTED_OUTPUT]
    if not hidden and not start.event.secret and outer is None:
        return None
    secrets = SecretTexts(outer)
    for name in hidden:
        secrets.add(start.inputs[name])
    return secrets
