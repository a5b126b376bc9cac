"""Stores a run's events in its journal as they happen, and releases the run at its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asyncflow._core.errors import JournalError, RunCancelledError
from asyncflow._core.history.results import REDACTED, Interruption, Payload, why_cancelled
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._kernel.policy import Causes, Policy
from asyncflow._kernel.run_scope import Host, RunScope
from asyncflow._policies.durable import RunPersistence
from asyncflow.events import (
    AttemptFailed,
    Event,
    RunFinished,
    StepCancelled,
    StepFailed,
    StepSucceeded,
)

_ENDS = frozenset({AttemptFailed, StepCancelled, StepFailed, StepSucceeded})


class Persisting(Policy):
    """The policy of a run that has a journal."""

    def __init__(self, scope: RunScope, host: Host, persistence: RunPersistence) -> None:
        self._run = host
        self._run_id = scope.run_id
        self._start = scope.start
        self._runs = scope.state.step_runs
        self._history = scope.state.history
        self._persistence = persistence

    def on_open(self) -> None:
        self._persistence.session.watch(self._stop)
        if self._start.stored_event is not None:
            self._persistence.instead[id(self._start.event)] = self._start.stored_event

    def _stop(self, why: JournalError | RunCancelledError) -> None:
        """Stop the run because its journal has failed, or was asked to cancel the run."""
        if isinstance(why, JournalError):
            self._run.interrupt(why, Interruption("journal", "its journal has failed"))
        else:
            self._run.cancel(why, why_cancelled(why.reason, why.cause))

    def on_started(self, node: int, step: WorkflowStep) -> Callable[[], Awaitable[object]]:
        return self._persistence.session.flush  # an attempt is made only once its start is stored

    def on_output(self, node: int, step: WorkflowStep, output: Any) -> None:
        payload = self._persistence.output(self._runs.name_of(node), step, output)
        self._persistence.payloads[step.name, self._runs.item_of(node)] = payload

    def on_applied(self, event: Event) -> None:
        persistence = self._persistence
        if type(event) in _ENDS:
            key: Any = event.step, event.item
            payload = persistence.payloads.pop(key, None)
            if isinstance(event, StepSucceeded):
                event = _stored(event, payload)
        elif type(event) is RunFinished:
            persistence.store_step_runs(self._history)
        elif persistence.instead:
            event = persistence.instead.pop(id(event), event)
        persistence.session.append(event)

    async def on_release(self, causes: Causes) -> None:
        failure, late = await self._persistence.close(self._run_id)
        try:
            causes.cancellation = causes.cancellation or late
            causes.interruption = causes.interruption or failure
        finally:
            del causes, failure, late  # they keep this frame


def _stored(success: StepSucceeded, payload: Payload | None) -> StepSucceeded:
    """Return a success as the journal stores it; with no payload, that of a mapped step."""
    if success.secret:
        payload = REDACTED  # also of a mapped step, which may have no items
    step, item = success.step, success.item
    return StepSucceeded(
        step, success.attempt, success.at_ms, payload, item, success.secret, success.error
    )
