"""Asks the conditions of steps with ``when``, and reports the end of those that don't run."""

from __future__ import annotations

from asyncflow._core.arguments import reject_awaitable
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._core.text import name_suffix
from asyncflow._core.tracebacks import strip_internal_frames
from asyncflow._kernel.asyncio_compat import FAILURES
from asyncflow._kernel.outcome import as_failure, raised_by
from asyncflow._kernel.policy import Policy
from asyncflow._kernel.run_scope import Parts
from asyncflow.events import StepFailed, StepSkipped


class Conditions(Policy):
    """The policy of a run with such steps.

    Conditions are asked before anything is admitted: a step that will not run waits for no pool,
    and neither does what follows it.
    """

    calls_users_code = True

    def __init__(self, parts: Parts) -> None:
        scope = parts.scope
        self._run = parts.run
        self._dispatcher = parts.dispatcher
        self._state = scope.state
        self._context = scope.context
        self._data = scope.data
        self._now_ms = scope.run_context.now_ms
        snapshot = scope.start.snapshot
        self._begun = frozenset() if snapshot is None else snapshot.steps_begun()
        """The steps that continue. Their conditions were asked before the run was resumed."""

    def on_advance(self) -> None:
        queue, steps = self._state.queue, self._state.step_runs.steps
        # What is skipped lets others have their turn.
        while unasked := self._state.readiness.take_unasked():
            for node in unasked:
                was_asked = steps[node].name in self._begun
                if not was_asked and queue.is_queued(node):  # else the run stops
                    self._ask(node, steps[node])

    def _ask(self, node: int, step: WorkflowStep) -> None:
        condition = step.when
        assert condition is not None
        try:
            met = self._context.copy().run(condition, **self._data.of_condition(node))
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
