"""The attempts of a run on engines, each from its submission to the end of its body.

A run in which no step has an engine does not load this module.

Rules:

1. The await of the engine is a task of its own. It is cancelled at most once, and awaited to its
   end: that is how the driver knows that the body has ended.
2. The attempt waits for a worker until the engine reports that its body begins. Its limit and its
   heartbeats count from there.
3. What an engine reports of an attempt that has ended does not count: the node may have another.
4. An output that others than this engine's steps take comes home with the attempt. One that stayed
   elsewhere is never sent.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from functools import partial
from typing import Any, TypeVar, cast

from asyncflow._core.errors import NotSendableError
from asyncflow._core.history.log import StartedAttempt
from asyncflow._core.history.remote_output import RemoteOutput
from asyncflow._core.history.results import Payload
from asyncflow._core.pipeline.graph import outputs_to_keep
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._core.running.context import enter_attempt
from asyncflow._kernel.asyncio_compat import outlast
from asyncflow._kernel.policy import Call, Policy
from asyncflow._kernel.run_scope import Parts
from asyncflow._policies.engine import Engine, EngineCall
from asyncflow._policies.worker_steps import WorkerSteps
from asyncflow.events import AttemptBegan, AttemptLocated, AttemptStarted

_Said = TypeVar("_Said")

_log = logging.getLogger("asyncflow")


class RemoteAttempts(Policy):
    """The policy of a run with steps on engines: it submits their attempts, and passes on what the
    engines report.
    """

    arguments = frozenset({"engine"})
    makes_attempts_elsewhere = True

    def __init__(self, parts: Parts, workers: WorkerSteps) -> None:
        scope = parts.scope
        self._dispatcher = parts.dispatcher
        self._data = scope.data
        self._workers = workers
        self._run_context = scope.run_context
        self._context = scope.context
        self._state = scope.state
        self._runs = scope.state.step_runs
        self._notes = scope.run_context.notes
        self._watchdog = parts.stop_control.watchdog
        self._to_keep = outputs_to_keep(scope.plan, scope.start.bindings)
        """The nodes whose outputs may stay on the engines that make them."""
        self._under_way: dict[int, RemoteAttempt] = {}

    def on_started(self, node: int, step: WorkflowStep) -> Callable[[], Awaitable[None]]:
        remote = self._under_way[node] = self._submit(node, self._data.of_action(node))
        return remote.until_begun

    def on_abort(self, node: int) -> bool:
        remote = self._under_way.get(node)
        if remote is None:
            return False
        remote.stop()
        return True

    def on_call(self, call: Call, node: int, step: WorkflowStep, running: AttemptStarted) -> Call:
        return self._under_way.pop(node).outcome

    def _submit(self, node: int, arguments: Mapping[str, Any]) -> RemoteAttempt:
        """Submit the running attempt of a node, whose start was reported."""
        running = self._runs.running_attempt(node)
        assert running is not None
        step, number = running.step, running.attempt
        started = step, number, running.at_ms, running.queued_ms, running.item
        context = self._context.copy()
        context.run(enter_attempt, started)
        for hook in self._dispatcher.hooks.on_attempt:
            context.run(hook, running)
        attempt = RemoteAttempt(partial(self._on_began, node))
        call = self._call_for(node, started, attempt, arguments)
        engine = cast("Engine", call.step.remote)
        self._state.deadlines.submit(node)
        attempt.submit(engine, call, self._watchdog.engine_task_name(node, number), context)
        return attempt

    def _call_for(
        self,
        node: int,
        started: StartedAttempt,
        attempt: RemoteAttempt,
        arguments: Mapping[str, Any],
    ) -> EngineCall:
        step = self._runs.steps[node]
        now_ms, ends_s = self._run_context.now_ms(), self._run_context.ends_s(step)
        limit = self._state.deadlines.of(node, now_ms)
        beat = partial(attempt.while_it_lasts(self._on_beat), started)
        return EngineCall(
            run_id=self._run_context.run_id,
            step=step,
            running=started,
            arguments=arguments,
            limit_s=None if limit is None else (limit.ends_ms - now_ms) / 1000,
            deadline_s=None if ends_s == math.inf else max(0.0, ends_s - self._run_context.clock()),
            may_keep=node in self._to_keep,
            began=attempt.begin,
            located=attempt.while_it_lasts(partial(self._on_located, node)),
            beat=None if step.heartbeat_ms is None else beat,
            saved=attempt.while_it_lasts(partial(self._on_saved, started)),
            abandon=attempt.while_it_lasts(partial(self._workers.abandon, node)),
            unconfirmed=attempt.while_it_lasts(partial(self._on_unconfirmed, node)),
            notes=self._notes,
        )

    def _on_began(self, node: int, worker: str) -> None:
        """Report that a worker begins with the running attempt of a node."""
        running = self._runs.running_attempt(node)
        assert running is not None
        name, attempt, engine = running.step, running.attempt, running.engine
        self._dispatcher.emit(
            AttemptBegan(name, attempt, self._run_context.now_ms(), engine, worker, running.item)
        )

    def _on_located(self, node: int, worker: str) -> None:
        """Report which process has run the running attempt of a node."""
        running = self._runs.running_attempt(node)
        assert running is not None
        name, attempt, engine = running.step, running.attempt, running.engine
        self._dispatcher.emit(
            AttemptLocated(name, attempt, self._run_context.now_ms(), engine, worker, running.item)
        )

    def _on_beat(self, started: StartedAttempt) -> None:
        """Note a heartbeat of the body."""
        extras = self._run_context.extras.get((started[0], started[4]))
        if extras is not None and extras.heartbeat is not None:
            extras.heartbeat.beat()

    def _on_saved(self, started: StartedAttempt, saved: tuple[str, bytes]) -> None:
        """Keep a checkpoint of an attempt."""
        self._run_context.checkpoints.keep(started, Payload(*saved))

    def _on_unconfirmed(self, node: int, reason: str) -> None:
        """Warn that an engine can't tell whether a body has ended."""
        running = self._runs.running_attempt(node)
        assert running is not None
        _log.warning(
            "step %r, attempt %d: engine %r can't confirm that it has ended: %s",
            *(self._runs.name_of(node), running.attempt, running.engine, reason),
        )


class RemoteAttempt:
    """One attempt on an engine.

    ``on_began`` is called when the body begins, with the name of its worker.
    """

    def __init__(self, on_began: Callable[[str], object]) -> None:
        self._on_began = on_began
        self._loop = asyncio.get_running_loop()
        self._begun: asyncio.Future[None] = self._loop.create_future()
        self._is_stopping = False
        self._task: asyncio.Task[None]
        self._ends: list[tuple[Any, BaseException | None]] = []

    def submit(self, engine: Engine, call: EngineCall, name: str, context: Context) -> None:
        """Give the attempt to an engine, in a task with this name and context."""
        # Not an eager task, for the same reason as the driver's others.
        work = self._run(engine, call)
        self._task = asyncio.Task(work, loop=self._loop, name=name, context=context)

    def begin(self, worker: str) -> None:
        """Note that the body begins, as the engine reports it."""
        if not self._begun.done() and not self._task.done():
            self._begun.set_result(None)
            self._on_began(worker)

    def while_it_lasts(self, report: Callable[[_Said], object]) -> Callable[[_Said], None]:
        """Return a function that passes on what an engine says, until the attempt has ended."""

        def say(said: _Said) -> None:
            if not self._task.done():
                report(said)

        return say

    async def until_begun(self) -> None:
        """Wait until the body begins, or the attempt has ended."""
        ends: list[asyncio.Future[Any]] = [self._task, self._begun]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)

    def stop(self, _: object = None) -> None:
        """Ask the engine to stop the body, once."""
        if not self._is_stopping:
            self._is_stopping = True
            self._task.cancel()

    async def outcome(self) -> Any:
        """Return or raise what the engine does. If this is cancelled, the body is stopped first."""
        task = self._task
        await outlast(task.done, partial(asyncio.wait, [task]), self.stop)
        # A task that is cancelled before its first line never runs.
        output, error = self._ends.pop() if self._ends else (None, asyncio.CancelledError())
        if error is not None:
            raise error
        return output

    async def _run(self, engine: Engine, call: EngineCall) -> None:
        """Note what the engine returns or raises: a task must not raise what ends a loop."""
        try:
            _check_arguments(engine, call)
            output = await engine.run(call)
            if isinstance(output, RemoteOutput) and not call.may_keep:
                output = await output.fetch()
            self._ends.append((output, None))
        except BaseException as error:
            self._ends.append((None, error))


def _check_arguments(engine: Engine, call: EngineCall) -> None:
    """Check that what stayed on an engine goes to no other one."""
    for name, value in call.arguments.items():
        if isinstance(value, RemoteOutput) and (
            value.engine != engine.name or value.reference is None
        ):
            raise NotSendableError(
                call.step.name,
                f"argument {name!r}",
                f"it is an output that stayed on engine {value.engine!r}"
                f"{', of which this is a copy' if value.reference is None else ''}; fetch it "
                "first, and pass that",
            )
