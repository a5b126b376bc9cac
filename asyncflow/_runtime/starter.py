"""Starts the nodes of a run: one task a node, in the run's task group.

Rules:

1. Nodes start in the run's context, never in that of a step. So a condition belongs to no step,
   and each task gets a fresh copy.
2. Nothing starts while resources are being opened, or after the run has closed.
3. A task that a third party cancels before its first line never runs, so it reports nothing. Its
   node is started again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asyncflow._core.arguments import reject_awaitable
from asyncflow._core.errors import StepCrashedError
from asyncflow._core.step import WorkflowStep
from asyncflow._core.text import name_suffix
from asyncflow._core.tracebacks import strip_internal_frames
from asyncflow._runtime.asyncio_compat import FAILURES, WAIT_FOR_MAKES_A_TASK
from asyncflow._runtime.mapping import MapRunner
from asyncflow._runtime.outcome import as_failure, raised_by, step_cancelled
from asyncflow._runtime.run_scope import Parts
from asyncflow._runtime.step_runner import StepRunner
from asyncflow.events import StepFailed, StepSkipped

if TYPE_CHECKING:
    from asyncflow._runtime.waits import Waits


class Starter:
    """Starts what is ready, and skips what is unreachable.

    Attributes:
        is_held: Whether nothing may start yet, or any more.
        is_advancing: Whether it is starting nodes right now: an eager task may end meanwhile.
    """

    group: asyncio.TaskGroup

    def __init__(self, parts: Parts) -> None:
        scope = self._scope = parts.scope
        self._run = parts.run
        self._dispatcher = parts.dispatcher
        self._permits = parts.permits
        self._watchdog = parts.stop_control.watchdog
        self._state = scope.state
        self._now_ms = scope.run_context.now_ms
        self._is_resumed = scope.start.checkpoint is not None
        self._data = scope.data
        self._runner = StepRunner(parts)
        self.attempts = self._runner.attempts
        self.cache = self._runner.cache
        self._awaited: Mapping[int, object] = {} if self.cache is None else self.cache.awaited
        self.maps = MapRunner(parts)
        self._signals = scope.plan.signals
        self.waits: Waits | None = None
        """What starts the steps that wait for signals; set if there are any."""
        self.is_held = self.is_advancing = False
        plan = scope.plan
        self._step_count = len(plan.steps)
        self._has_conditions = bool(plan.conditional)
        self._calls_users_code = self._has_conditions or (
            scope.state.is_limited and any(plan.steps[index].measures for index in plan.special)
        )
        self._unchecked: list[int] | None = None
        """What the planned look for unstarted nodes will look at; ``None`` if none is planned."""

    def close(self) -> None:
        """Start nothing more, and keep nothing."""
        self.is_held = True
        self._permits.close()
        self.waits = None

    def start_task(
        self, coroutine: Coroutine[Any, Any, None], **options: Any
    ) -> asyncio.Task[None]:
        """Start a task of a policy in the group of the run."""
        return self.group.create_task(coroutine, **options)

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
        if self.is_advancing or self._calls_users_code:
            self.advance_soon()
        else:
            self._scope.context.run(self._advance)

    def _advance(self, again: Sequence[int] = ()) -> None:
        """Start what is ready and skip what is unreachable, until there is neither.

        ``again`` are nodes to start before that, whose tasks never began.
        """
        if self.is_held:
            return
        queue, self.is_advancing = self._state.queue, True
        try:
            if again:
                self._start(again, is_again=True)
            while queue.is_dirty:
                if queue.has_limit:
                    for node in queue.take_placed():
                        self._permits.readmit(node)
                if self._has_conditions:
                    self._ask_conditions()
                self._start(self._state.take_ready())
                if queue.is_dirty:
                    self.skip_unreachable()
        except BaseException as bug:
            self._run.broken(bug, "a step could not be started")
        finally:
            self.is_advancing = False
        if queue.is_limited:
            self._permits.release_late()
        if not self._scope.live:
            self._run.advance()

    def _start(self, batch: Sequence[int], *, is_again: bool = False) -> None:
        if not batch:
            return
        live, launch, permits = self._scope.live, self._runner.launch, self._permits
        prefix, task_name = self._watchdog.prefix, self._watchdog.task_name
        all_steps, step_count = self._state.step_runs.steps, self._step_count
        shortest_s, awaited = math.inf, self._awaited
        for node in batch:
            step, coroutine = all_steps[node], None
            # What was parked had begun to start: nothing of it is asked for again.
            is_new = not (is_again or node in awaited)
            if is_new:
                if permits.turns and permits.readmit(node):
                    continue  # it makes another attempt
                if self._is_resumed and self._fail_if_crashed(node, step):
                    continue
            if self.waits is not None and node in self._signals:
                self.waits.wait(node)
                continue
            if step.map_over is not None:
                if node < step_count:
                    coroutine = self.maps.launch(node, step)
                else:
                    self.maps.note_change(node)
            if step.needs_permit and coroutine is None:
                if step.measures and is_new and not self._measure(node, step):
                    continue
                if step.cache_ms is None:  # else it may need no slot
                    permits.request(node, step)
            if step.timeout_s is not None and step.timeout_s < shortest_s:
                shortest_s = step.timeout_s
            # Before 3.12, each attempt has a task of its own, which has that name.
            own_name = f"{prefix}{step.name}#1" if node < step_count else task_name(node, 1)
            name = None if WAIT_FOR_MAKES_A_TASK else own_name
            task = self.group.create_task(coroutine or launch(node), name=name)
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
        live = self._scope.live
        # A node may be here twice: as two items of a map that forgets what has succeeded.
        started = dict.fromkeys(nodes[:ended])
        unstarted = [node for node in started if node in live and live[node].done()]
        again = list(filter(self._state.is_scheduled, unstarted))
        for node in again:
            del live[node]
        if again:
            self._advance(again)

    # What does not start.

    def _ask_conditions(self) -> None:
        """Ask the conditions of the steps whose turn has come, and report the end of some.

        They are asked before anything is admitted: a step that will not run waits for no pool, and
        neither does what follows it.
        """
        state = self._state
        while unasked := state.take_unasked():  # what is skipped lets others have their turn
            for node in unasked:
                was_asked = self._is_resumed and state.had_begun(node)
                if not was_asked and state.is_queued(node):  # else the run stops
                    self._ask_condition(node, state.step_runs.steps[node])

    def _ask_condition(self, node: int, step: WorkflowStep) -> None:
        condition = step.when
        assert condition is not None
        try:
            met = self._scope.context.copy().run(condition, **self._data.of_condition(node))
            if reject_awaitable(f"the condition of step {step.name!r}", met):
                return
        except FAILURES as error:
            strip_internal_frames(error)
            failure = as_failure(error, step.name, 0)
            self._dispatcher.emit(StepFailed(step.name, 0, self._now_ms(), failure))
            self._run.advance()
        except BaseException as error:
            strip_internal_frames(error)
            why = raised_by(f"the condition of step {step.name!r}", error)
            self._dispatcher.emit(StepSkipped(step.name, self._now_ms(), why.reason))
            self._run.interrupt(error, why)
        else:
            reason = f"its condition{name_suffix(condition)} was not met"
            now_ms = self._now_ms()
            self._dispatcher.emit(StepSkipped(step.name, now_ms, reason, by_condition=True))

    def _measure(self, node: int, step: WorkflowStep) -> bool:
        """Return whether it is known what a node needs of its pool; if not, report its failure."""
        try:
            arguments = self._data.of_action(node)
            self._scope.context.copy().run(self._permits.measure, node, step, arguments)
            return True
        except FAILURES as error:
            strip_internal_frames(error)
            self.attempts.fail_between(node, as_failure(error, step.name, 0))
        except BaseException as error:
            strip_internal_frames(error)
            latest, item = self._state.latest_attempt(node), self._state.step_runs.item_of(node)
            attempt = 0 if latest is None else latest.attempt
            self._dispatcher.emit(StepFailed(step.name, attempt, self._now_ms(), error, item))
            self._run.interrupt(error, raised_by(f"a function of step {step.name!r}", error))
        self.maps.forget(node)
        self._run.advance()
        return False

    def _fail_if_crashed(self, node: int, step: WorkflowStep) -> bool:
        """Fail a node whose process has died too often while it ran; return whether it has."""
        pending = self._state.step_runs.pending_attempts(node)
        if pending is None or not pending.is_interrupted:
            return False
        latest, unfinished, crashes = pending.latest, pending.unfinished, pending.crashes
        if step.remote is not None and not step.remote.tells_began:
            crashes = unfinished  # a body that kills this process at once leaves no word of it
        if crashes <= step.max_crashes:
            return False
        name = self._state.step_runs.name_of(node)
        error = StepCrashedError(name, latest.attempt, crashes)
        self.attempts.fail_between(node, error)
        self.maps.forget(node)
        self._run.advance()
        return True

    def skip_unreachable(self) -> None:
        """Report the steps that will never start."""
        for index, reason, by_condition in self._state.take_unreachable():
            now_ms = self._now_ms()
            if self._state.step_runs.pending_attempts(index) is not None:
                self._report_cancelled(index, now_ms)
            else:
                name = self._state.step_runs.steps[index].name
                self._dispatcher.emit(StepSkipped(name, now_ms, reason, by_condition))

    def report_unstarted(self, node: int, now_ms: float) -> None:
        """Report a node that was scheduled and will not start, since the run stops."""
        state = self._state
        if state.step_runs.pending_attempts(node) is not None:
            self._report_cancelled(node, now_ms)  # it started before the run was resumed
        elif state.step_runs.item_of(node) is None:
            name, reason = state.step_runs.steps[node].name, state.stop_reason or ""
            self._dispatcher.emit(StepSkipped(name, now_ms, reason))
        else:
            state.drop_item(node)
        self._permits.forget(node)
        self.maps.drop(node)

    def _report_cancelled(self, node: int, now_ms: float) -> None:
        """Report the end of a node that has started and of which no attempt is running."""
        error = self._state.last_error(node)
        self._dispatcher.emit(step_cancelled(self._state, node, now_ms, error))
