"""Asks the functions of steps that find out what a node takes of its pool, and for which key."""

from __future__ import annotations

from typing import Any

from asyncflow._core.arguments import reject_awaitable
from asyncflow._core.pipeline.step import (
    WorkflowStep,
    check_pool_key,
    check_slots,
    check_slots_of_key,
    check_tokens,
)
from asyncflow._core.tracebacks import strip_internal_frames
from asyncflow._kernel.asyncio_compat import FAILURES
from asyncflow._kernel.outcome import as_failure, raised_by
from asyncflow._kernel.policy import Policy
from asyncflow._kernel.run_scope import Parts
from asyncflow._policies.permits import Permits
from asyncflow.events import StepFailed


class PoolNeeds(Policy):
    """The policy of a run with such steps. ``permits`` waits for what their nodes need."""

    arguments = frozenset({"pool"})
    calls_users_code = True

    def __init__(self, parts: Parts, permits: Permits) -> None:
        self._scope = parts.scope
        self._run = parts.run
        self._dispatcher = parts.dispatcher
        self._permits = permits

    def on_admit(self, node: int, step: WorkflowStep) -> bool:
        runs = self._scope.state.step_runs
        is_map = step.map_over is not None and runs.item_of(node) is None
        if not step.measures or is_map:
            return True
        try:
            self._permits.needs[node] = self._scope.context.copy().run(self._measure, node, step)
            return True
        except FAILURES as error:
            strip_internal_frames(error)
            self._run.fail(node, as_failure(error, step.name, 0))
        except BaseException as error:
            strip_internal_frames(error)
            latest, now_ms = runs.latest_attempt(node), self._scope.run_context.now_ms
            attempt = 0 if latest is None else latest.attempt
            end = StepFailed(step.name, attempt, now_ms(), error, runs.item_of(node))
            self._dispatcher.emit(end)
            self._run.interrupt(error, raised_by(f"a function of step {step.name!r}", error))
            self._run.settled(node)
        return False

    def _measure(self, node: int, step: WorkflowStep) -> tuple[int, float, str | None]:
        """Return the slots, tokens and key of a node, from what its action is called with.

        Raises:
            BaseException: What a function of the step raises, or it returns what is not possible.
        """
        arguments = self._scope.data.of_action(node)
        needs: dict[str, Any] = {
            "slots": step.slots,
            "tokens": step.tokens or 0.0,
            "pool_key": step.pool_key,
        }
        for argument, function, accepts in step.measures:
            own = accepts.takes_kwargs
            taken = {n: v for n, v in arguments.items() if own or n in accepts.names}
            what = f"step {step.name!r}: {argument}"
            needs[argument] = reject_awaitable(what, function(**taken))
            if argument == "slots":
                check_slots(what, needs["slots"], step.pool)
            elif argument == "tokens":
                check_tokens(what, needs["tokens"], step.pool)
            elif needs["pool_key"] is not None:
                check_pool_key(what, needs["pool_key"])
        if needs["pool_key"] is not None:
            check_slots_of_key(f"step {step.name!r}: slots", needs["slots"], step.pool)
        return needs["slots"], float(needs["tokens"]), needs["pool_key"]
