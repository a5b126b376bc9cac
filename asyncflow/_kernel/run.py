"""One run: when its steps are started and stopped, and that all of them have ended at its end.

It knows no policy: what else may happen in a run are hooks of `asyncflow._kernel.policy`.

Rules:

1. One task a node (a step, or an item of a mapped one), in the run's task group. The group owns
   their lifetimes and nothing else: no child raises into it, so it never cancels anything by
   itself. A group that aborts because of a child loses a cancellation of its parent before 3.13:
   gh-116720.
2. Only the run stops nodes: it asks each of them once.
3. The run waits for its nodes in the body of the group. Whatever happens to it meanwhile, it waits
   until they have all ended, or until a policy lets it end because none runs (``on_idle``).
4. No node starts while a policy holds the run, and the policies close after the last node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any

from asyncflow._core.errors import RunCancelledError
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import Interruption, RunStatus
from asyncflow._core.tracebacks import let_go
from asyncflow._kernel.asyncio_compat import outlast
from asyncflow._kernel.dispatcher import EventDispatcher
from asyncflow._kernel.outcome import by_caller
from asyncflow._kernel.policy import NO_HOOKS, Causes, Hooks, P, Policy
from asyncflow._kernel.run_scope import Parts, RunScope
from asyncflow._kernel.starter import Starter
from asyncflow._kernel.stop_control import StopControl
from asyncflow.events import RunFinished, RunInterrupted

_FAILED = "a policy failed"


class Run:
    """One run of a pipeline; `execute` it once. It is the `Host` of its parts and policies.

    ``policies_of`` makes its policies, in the order in which they act.
    """

    def __init__(self, scope: RunScope, policies_of: Callable[[Parts], Iterable[Policy]]) -> None:
        self._scope = scope
        self._state = scope.state
        self._dispatcher = EventDispatcher(scope.state, self)
        self._stop_control = StopControl(scope, self)
        parts = Parts(
            scope=scope, run=self, dispatcher=self._dispatcher, stop_control=self._stop_control
        )
        self._starter = Starter(parts)
        self._hooks = self._dispatcher.hooks = Hooks(policies_of(parts))
        self._is_broken = self._is_closed = self._has_stopped = False
        self._stop_is_due = True  # until the run has begun, there is nothing to be stopped
        self._wake_up: asyncio.Future[None] | None = None
        self._causes = Causes()

    async def execute(self) -> RunReport:
        """Run the pipeline; return its report, or raise what has ended it early."""
        hooks, causes, raised = self._hooks, self._causes, None
        at_end: list[Callable[[], object]] = []
        await self._begin()
        try:
            at_end.append(self._stop_control.close)
            self._watch(at_end)
            async with asyncio.TaskGroup() as self._starter.group:
                await self._run_nodes()
        except asyncio.CancelledError as at_exit:
            causes.cancellation = causes.cancellation or at_exit
        finally:  # also if the loop is given up
            while at_end:
                at_end.pop()()
        self._close()
        try:
            await _release(hooks, causes)
            raised = await _raised(hooks, causes)
            if raised is not None:
                if isinstance(raised, RunCancelledError):
                    raised.report = self._state.report()
                raise raised
            return self._state.report()
        finally:
            # Or what is raised would keep itself, through this frame or that of an observer.
            causes.interruption = causes.cancellation = causes.cancelled = None
            del self, hooks, causes, raised

    async def _begin(self) -> None:
        """Report that the run begins, and let the policies add what belongs to its beginning."""
        self._call(self._hooks.on_open)
        if not self._is_broken:
            self._dispatcher.emit(self._scope.start.event)
            self._call(self._hooks.on_begin)
            await self._await(self._hooks.on_resume)
        self._stop_is_due = False
        if self._state.stop_reason is not None and not self._has_stopped:
            self.stop_soon()

    def _watch(self, at_end: list[Callable[[], object]]) -> None:
        for hook in self._hooks.on_watch:
            try:
                if (end := hook()) is not None:
                    at_end.append(end)
            except BaseException as bug:
                self.broken(bug, _FAILED)

    async def _run_nodes(self) -> None:
        """Start what may start, and wait until all nodes have ended and all policies have closed.

        It raises nothing: what leaves the body of a task group is kept by that in a cycle.
        """
        if self._causes.cancellation is None and not self._is_broken:
            self._call(self._hooks.on_start)
            self._starter.start_first()
        await outlast(self._is_over, self._until_settled, self._on_cancel)
        await self._await(self._hooks.on_close, self._causes, self._on_cancel)

    def _close(self) -> None:
        """Report the end of the run, and let go of what could outlive it or refers back to it."""
        self._is_closed = True
        self._starter.close()
        state = self._state
        self._call(self._hooks.on_end)
        if not self._is_broken:
            now_ms = self._scope.run_context.now_ms()
            self._dispatcher.emit(RunFinished(now_ms, state.status, state.stop_reason, state.cause))
        self._call(self._hooks.on_ended)
        if errors := state.step_runs.errors:
            let_go(errors)
        # They refer back to us; the group by way of our task before 3.12.8 and 3.13.1: gh-124958.
        self._hooks = self._dispatcher.hooks = NO_HOOKS
        del self._dispatcher, self._stop_control, self._starter

    def _call(self, hooks: tuple[Callable[[], object], ...]) -> None:
        for hook in hooks:
            try:
                hook()
            except BaseException as bug:
                self.broken(bug, _FAILED)

    async def _await(
        self, hooks: tuple[Callable[P, Awaitable[object]], ...], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        for hook in hooks:
            try:
                await hook(*args, **kwargs)
            except asyncio.CancelledError as cancellation:
                self._on_cancel(cancellation)
            except BaseException as bug:
                self.broken(bug, _FAILED)

    # While nodes run.

    async def _until_settled(self) -> None:
        self._wake_up = self._scope.loop.create_future()
        await self._wake_up

    def _wake_if_over(self) -> None:
        is_over, waiter = self._is_over(), self._wake_up
        if is_over and waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _is_over(self) -> bool:
        if self._scope.live:
            return False
        try:
            return self._is_settled() or any(hook() for hook in self._hooks.on_idle)
        except BaseException as bug:
            self.broken(bug, _FAILED)
            return True

    def _is_settled(self) -> bool:
        return not self._scope.live and (not self._state.readiness.unsettled or self._is_broken)

    def is_idle(self) -> bool:
        """Whether nothing runs, and nothing may start."""
        state = self._state
        may_start = state.queue.is_dirty or self._starter.is_held or self._starter.parked
        return not (self._scope.live or may_start)

    def hold(self) -> None:
        """Start no node yet."""
        self._starter.is_held = True

    def let_start(self) -> None:
        """Start nodes after all."""
        self._starter.is_held = False
        self._starter.advance_soon()

    def settled(self, node: int) -> None:
        """See to what follows the end of a node's task."""
        task = self._scope.live.pop(node, None)
        try:
            for hook in self._hooks.on_settled:
                hook(node, task)
        except BaseException as bug:
            self.broken(bug, _FAILED)
        self.advance()

    def fail(self, node: int, failure: Exception) -> None:
        """End a node that fails for good while no attempt of it runs, unless it is rescued."""
        self._starter.nodes.attempts.fail_between(node, failure)
        self.settled(node)

    def park(self, node: int) -> None:
        """Let a node that is about to start wait without a task, until the state queues it."""
        self._scope.live.pop(node, None)
        if self._state.stop_reason is None or self._state.is_exempt_from_stop(node):
            self._starter.parked.add(node)
            self._state.queue.park(node)
        elif self._state.step_runs.is_scheduled(node):  # else its end is known, as the run stopped
            self._starter.report_unstarted(node, self._scope.run_context.now_ms())
        self.advance()

    def start_task(
        self, coroutine: Coroutine[Any, Any, None], **options: Any
    ) -> asyncio.Task[None]:
        """Start a task of a policy in the group of the run."""
        return self._starter.group.create_task(coroutine, **options)

    def advance(self) -> None:
        """Stop the run if that is due; start what may start now; end if nothing is left."""
        if self._state.stop_reason is not None and not self._has_stopped:
            self.stop_soon()
        if self._starter.is_advancing:
            return  # an eager task has ended within its start, which goes on with what follows
        if self._state.queue.is_dirty and not self._is_broken:
            self._starter.advance()
        elif not self._scope.live:
            self._wake_if_over()

    def backs_off(self) -> None:
        """Let the policies know that a node is about to wait for its next attempt."""
        for hook in self._hooks.on_back_off:
            hook()

    # Stopping them.

    def interrupt(self, error: BaseException | None, why: Interruption) -> None:
        """Stop the run; it raises the error in the end, unless it has been interrupted before."""
        if error is not None:
            if self._causes.interruption is not None:
                return
            self._causes.interruption = error
        if self._state.is_under_way:
            self._dispatcher.after_event(partial(self._interrupt, why))

    def _interrupt(self, why: Interruption) -> None:
        if self._state.is_under_way:  # the event may have been the last one
            self._report_interruption(why)
            self.stop_soon()

    def broken(self, bug: BaseException, reason: str) -> None:
        """Interrupt the run for a bug of asyncflow. Its state may be wrong, so it has no end."""
        was_broken, self._is_broken = self._is_broken, True
        if self._scope.loop.is_closed():
            return  # no bug: our coroutines are closed, and nothing can follow
        if not was_broken:
            self._call(self._hooks.on_broken)
        self.interrupt(bug, Interruption("bug", reason))
        self.stop_soon()  # also what has started since an earlier interruption

    def cancel(self, error: RunCancelledError, why: Interruption) -> None:
        """Stop the run, which raises this error in the end, unless all of its steps have ended."""
        if self._is_closed or self._is_settled():
            return
        if self._causes.cancelled is None or self._state.is_overridden_by(why):
            self._causes.cancelled = error
        self._report_interruption(why)
        self.stop_soon()

    def wind_down(self, error: RunCancelledError, why: Interruption) -> None:
        """Do the same, but let the attempts end that are running."""
        if self._state.stop_reason is None:
            self._causes.cancelled = error
            self._report_interruption(why)
        # Otherwise the run has not begun, or stops everything.
        if self._state.status is RunStatus.INTERRUPTED and not self._stop_is_due:
            self._stop(spare_running=True)

    def _on_cancel(self, cancellation: asyncio.CancelledError) -> None:
        self._causes.cancellation = self._causes.cancellation or cancellation
        self._report_interruption(by_caller(cancellation))
        self._stop()

    def _report_interruption(self, why: Interruption) -> None:
        if self._state.status is not RunStatus.INTERRUPTED or self._state.is_overridden_by(why):
            reason = " ".join(filter(None, (why.reason, self.explain())))
            now_ms = self._scope.run_context.now_ms()
            self._dispatcher.emit(RunInterrupted(now_ms, reason, why.cause))

    def explain(self) -> str:
        """Return what explains, beside its reason, that the run stops now; often nothing."""
        try:
            return " ".join(filter(None, (hook() for hook in self._hooks.on_explain)))
        except BaseException as bug:
            self.broken(bug, _FAILED)
            return ""

    def stop_soon(self) -> None:
        """Ask the nodes to stop that must."""
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
        self._call(self._hooks.on_stop)
        now_ms = self._scope.run_context.now_ms()
        self._starter.skip_unreachable()
        for node, task in list(self._scope.live.items()):
            if node in control.requested or state.is_exempt_from_stop(node):
                continue
            if spare_running and state.step_runs.has_begun(node):
                continue
            control.request(node, task, now_ms)
            if state.step_runs.is_scheduled(node):
                # A task that is cancelled before its first line never runs: it reports nothing.
                del self._scope.live[node]
                self._starter.report_unstarted(node, now_ms)
        self._call(self._hooks.on_stopped)
        if self._scope.live:
            control.watchdog.expect_in(0)  # it warns of what has not stopped in its grace period
        if state.queue.is_dirty:
            self._starter.advance_soon()
        self._wake_if_over()


async def _release(hooks: Hooks, causes: Causes) -> None:
    for hook in hooks.on_release:
        try:
            await hook(causes)
        except BaseException as bug:
            causes.interruption = causes.interruption or bug


async def _raised(hooks: Hooks, causes: Causes) -> BaseException | None:
    raised = causes.first()
    try:
        for hook in hooks.on_raise:
            try:
                raised = await hook(raised)
            except BaseException as bug:
                raised = bug
        return raised
    finally:
        del causes, raised  # it keeps this frame
