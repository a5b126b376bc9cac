"""Starts the nodes of a run: one task a node, in the run's task group.

Rules:

1. Nodes start in the run's context, never in that of a step. So what policies call before belongs
   to no step, and each task gets a fresh copy.
2. Nothing starts while a policy holds the run, or after the run has closed.
3. A task that a third party cancels before its first line never runs, so it reports nothing. Its
   node is started again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from asyncflow._kernel.asyncio_compat import WAIT_FOR_MAKES_A_TASK
from asyncflow._kernel.nodes import Nodes
from asyncflow._kernel.outcome import step_cancelled, step_skipped
from asyncflow._kernel.run_scope import Parts
from asyncflow.events import StepSkipped


class Starter:
    """Starts what is ready, and skips what is unreachable.

    Attributes:
        is_held: Whether nothing may start yet, or any more.
        is_advancing: Whether it is starting nodes right now: an eager task may end meanwhile.
        parked: The nodes that had begun to start, and have no task until they start again.
    """

    group: asyncio.TaskGroup

    def __init__(self, parts: Parts) -> None:
        scope = self._scope = parts.scope
        self._run = parts.run
        self._dispatcher = parts.dispatcher
        self._watchdog = parts.stop_control.watchdog
        self._state = scope.state
        self._now_ms = scope.run_context.now_ms
        self.nodes = Nodes(parts)
        self.is_held = self.is_advancing = False
        self.parked: set[int] = set()
        self._step_count = len(scope.plan.steps)
        self._unchecked: list[int] | None = None
        """What the planned look for unstarted nodes will look at; ``None`` if none is planned."""

    def close(self) -> None:
        """Start nothing more."""
        self.is_held = True

    def start_first(self) -> None:
        """Start the first steps."""
        # An eager task may fail at once. Its error's traceback would keep the frames of our
        # callers, and one of them holds the report: so it starts from the loop.
        if self._scope.loop.get_task_factory() is None:
            self.advance()
        else:
            self.advance_soon()

    def advance_soon(self) -> None:
        """Start what is ready, from the next turn of the loop on."""
        self._scope.loop.call_soon(self._advance, context=self._scope.context)

    def advance(self) -> None:
        """Start what is ready, now if that is possible."""
        # Not in the task of a step, to which a condition or the like does not belong; and not while
        # an eager task is running within its start.
        if self.is_advancing or self._dispatcher.hooks.calls_users_code:
            self.advance_soon()
        else:
            self._scope.context.run(self._advance)

    def _advance(self, again: Sequence[int] = ()) -> None:
        """Start what is ready and skip what is unreachable, until there is neither.

        ``again`` are nodes to start before that, whose tasks never began.
        """
        if self.is_held:
            return
        queue, readiness = self._state.queue, self._state.readiness
        hooks, self.is_advancing = self._dispatcher.hooks, True
        try:
            if again:
                self._start(again, is_again=True)
            while queue.is_dirty:
                for hook in hooks.on_advance:
                    hook()
                self._start(queue.take_ready())
                if readiness.unreachable:
                    self.skip_unreachable()
        except BaseException as bug:
            self._run.broken(bug, "a step could not be started")
        finally:
            self.is_advancing = False
        try:
            for hook in hooks.on_advanced:
                hook()
        except BaseException as bug:
            self._run.broken(bug, "a policy failed")
        if not self._scope.live:
            self._run.advance()

    def _start(self, batch: Sequence[int], *, is_again: bool = False) -> None:
        if not batch:
            return
        live, launch, run_hooks = self._scope.live, self.nodes.launch, self._dispatcher.hooks
        prefix, task_name = self._watchdog.prefix, self._watchdog.task_name
        all_steps, step_count, parked = self._state.step_runs.steps, self._step_count, self.parked
        of_nodes, shortest_s = run_hooks.of_nodes, math.inf
        for node in batch:
            step, coroutine = all_steps[node], None
            if node in live:  # it waits in its task for its next attempt
                for turn in run_hooks.on_turn:
                    turn(node)
                continue
            hooks = of_nodes[step.given]
            # What was parked had begun to start: nothing of it is asked for again.
            is_new = hooks.on_admit and not (is_again or node in parked)
            if is_new and not all(admit(node, step) for admit in hooks.on_admit):
                continue
            if parked:
                parked.discard(node)
            for launch_it in hooks.on_launch:
                coroutine = coroutine or launch_it(node, step)
            if coroutine is None:
                for line_up in hooks.on_line_up:
                    line_up(node, step)
                if step.timeout_s is not None and step.timeout_s < shortest_s:
                    shortest_s = step.timeout_s
            # Before 3.12, each attempt has a task of its own, which has that name.
            own_name = f"{prefix}{step.name}#1" if node < step_count else task_name(node, 1)
            name = None if WAIT_FOR_MAKES_A_TASK else own_name
            task = self.group.create_task(coroutine or launch(node, hooks), name=name)
            if not task.done():  # an eager one may be
                live[node] = task
        self._watchdog.expect_in(shortest_s)
        if self._unchecked is None:
            self._unchecked = list(batch)
            self._look_soon(self._unchecked, len(batch))
        else:
            self._unchecked += batch

    def _look_soon(self, nodes: list[int], ended: int) -> None:
        look, context = self._restart_unstarted, self._scope.context
        self._scope.loop.call_soon(look, nodes, ended, context=context)

    def _restart_unstarted(self, nodes: list[int], ended: int) -> None:
        """Restart the nodes whose tasks never began.

        This look is planned once a turn, and not once a batch: in a map, that is an item.

        ``nodes`` is what was started since the last look was planned, and ``ended`` says how many
        of them were started before this one was: if their tasks were cancelled so early, these have
        ended. The others end later in this turn.
        """
        if nodes is self._unchecked:
            self._unchecked = None
        if late := nodes[ended:]:
            self._look_soon(late, len(late))
        live, is_scheduled = self._scope.live, self._state.step_runs.is_scheduled
        # A node may be here twice: as two items of a map that forgets what has succeeded.
        started = dict.fromkeys(nodes[:ended])
        again = [
            node for node in started if node in live and live[node].done() and is_scheduled(node)
        ]
        if again:
            for node in again:
                del live[node]
            self._advance(again)

    # What does not start.

    def skip_unreachable(self) -> None:
        """Report the steps that will never start."""
        for skipped in self._state.readiness.take_unreachable():
            now_ms = self._now_ms()
            if self._state.step_runs.pending_attempts(skipped.step) is not None:
                self._report_cancelled(skipped.step, now_ms)
            else:
                self._dispatcher.emit(step_skipped(self._state, skipped, now_ms))

    def report_unstarted(self, node: int, now_ms: float) -> None:
        """Report a node that was scheduled and will not start, since the run stops."""
        state, runs = self._state, self._state.step_runs
        if runs.pending_attempts(node) is not None:
            self._report_cancelled(node, now_ms)  # it started before the run was resumed
        elif runs.item_of(node) is None:
            name, reason = runs.steps[node].name, state.stop_reason or ""
            self._dispatcher.emit(StepSkipped(name, now_ms, reason))
        else:
            state.drop_item(node)
        hooks = self._dispatcher.hooks
        self.nodes.over(node, hooks.of_nodes[runs.steps[node].given])
        for settled in hooks.on_settled:
            settled(node, None)

    def _report_cancelled(self, node: int, now_ms: float) -> None:
        """Report the end of a node that has started and of which no attempt is running."""
        error = self._state.step_runs.last_error(node)
        self._dispatcher.emit(step_cancelled(self._state, node, now_ms, error))
