"""How steps with ``cache_ms`` reuse the results of equal calls: of other runs, and of each other.

A run without such a step does not load this module.

Rules:

1. Of equal calls in an event loop, one leads: it asks the journal, and runs if that has nothing.
   The others are parked: they hold no slot of anything, and have no task.
2. Once the success of the leader is stored, and not before, they all ask the journal. If the
   leader ends in another way, one of each run is queued, and the first that runs leads.
3. What can't be read is run. If that matters, the journal fails when the run stores something.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, cast
from weakref import WeakKeyDictionary

from asyncflow._core.errors import JournalError, PayloadError
from asyncflow._core.history.remote_output import RemoteOutput
from asyncflow._core.history.results import Payload, StepStatus
from asyncflow._core.pipeline.annotations import parameter_types
from asyncflow._core.pipeline.graph import ITEM
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._core.record import replace
from asyncflow._core.running.step_cache import CachedResult, cache_key
from asyncflow._kernel.policy import Causes, NoAttempt, Passage, Policy
from asyncflow._kernel.run_scope import Parts
from asyncflow._policies.durable import CachingJournal, CachingSession, RunPersistence
from asyncflow.events import Event, ResultReused, RunResumed, StepReused, StepSucceeded


class _Call:
    """A call that is under way: in `_under_way` exactly while a node leads it, or some are parked.

    A node leads from when it runs. One that is only queued might be dropped, or wait for a slot
    of what waits for the call; so another one that runs earlier leads.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.is_led = False
        self.is_stored = False
        """Whether the journal has its result. Then no node leads it any more."""
        self.parked: dict[StepCache, deque[int]] = {}
        """The nodes of each run that wait for it."""


_under_way: WeakKeyDictionary[
    asyncio.AbstractEventLoop, WeakKeyDictionary[CachingJournal, dict[str, _Call]]
] = WeakKeyDictionary()
"""The calls of each loop, for each journal by their key."""


class StepCache(Policy):
    """The policy of a run whose steps reuse results."""

    arguments = frozenset({"cache_ms"})

    def __init__(self, parts: Parts, persistence: RunPersistence) -> None:
        scope = parts.scope
        self._run = parts.run
        self._dispatcher = parts.dispatcher
        self._stop_control = parts.stop_control
        self._data = scope.data
        self._persistence = persistence
        self._journal = cast("CachingJournal", persistence.journal)
        self._session = cast("CachingSession", persistence.session)
        self._plan = scope.plan
        self._state = scope.state
        self._now_ms = scope.run_context.now_ms
        start, snapshot = scope.start.event, scope.start.snapshot
        if isinstance(start, RunResumed):
            assert snapshot is not None
            start = snapshot.replay.started
        self._pipeline = scope.start.event.pipeline
        self._from_steps = frozenset(start.from_steps)
        calls_of = _under_way.setdefault(scope.loop, WeakKeyDictionary())
        self._calls = calls_of.setdefault(self._journal, {})
        self._hints: dict[str, dict[str, Any]] = {}
        """The types of each step's arguments."""
        self._led: dict[int, _Call] = {}
        """The calls that nodes of this run lead."""
        self._unstored: set[_Call] = set()
        """Those whose success is not stored yet."""
        self._awaited: dict[int, _Call] = {}
        """What nodes that are parked, or were until now, wait for."""

    def on_gate(
        self, node: int, step: WorkflowStep
    ) -> Callable[[], Coroutine[Any, Any, Passage]] | None:
        # One that leads makes all its attempts.
        return None if node in self._led else partial(self._may_start, node, step)

    async def _may_start(self, node: int, step: WorkflowStep) -> Passage:
        """Let a node run, or reuse a result, or wait for an equal call without a task."""
        awaited = self._awaited.pop(node, None)
        if awaited is None:
            try:
                key = self._key_of(node, step)
            except PayloadError as error:  # an argument can't be stored, so no key has it
                return error
            if key is None:
                return None
        else:
            key = awaited.key
            if awaited.is_stored and await self._reuse(node, step, key):
                return NoAttempt.HAS_ENDED
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = _Call(key)
        elif call.is_led:
            call.parked.setdefault(self, deque()).append(node)
            self._awaited[node] = call
            return NoAttempt.IS_PARKED
        call.is_led, self._led[node] = True, call
        if self._state.step_runs.latest_attempt(node) is not None or step.name in self._from_steps:
            return None  # it continues with its attempts, or the rerun asks for a new result
        return NoAttempt.HAS_ENDED if await self._reuse(node, step, key) else None

    def _key_of(self, node: int, step: WorkflowStep) -> str | None:
        """Return the key of a node's call; ``None`` if an argument stays on an engine."""
        hints = self._hints.get(step.name) or self._hints_of(step)
        stored: dict[str, Payload] = {}
        for name, value in self._data.of_action(node).items():
            if name not in hints:
                continue  # a resource
            if isinstance(value, RemoteOutput):
                return None
            subject = f"argument {name!r} of step {step.name!r}, which has cache_ms,"
            stored[name] = self._persistence.journal.encode(subject, value, hints[name])
        return cache_key(self._pipeline, step, stored)

    def _hints_of(self, step: WorkflowStep) -> dict[str, Any]:
        binding = self._data.bindings[self._plan.index[step.name]]
        names = {name: source for name, source in binding if source not in self._plan.resources}
        hints = self._hints[step.name] = parameter_types(step, names)
        for name, source in names.items():
            if hints[name] is Any and isinstance(source, int) and source != ITEM:
                other = self._plan.steps[source]
                if other.map_over is None:
                    hints[name] = self._persistence.types[other.name]
        return hints

    async def _reuse(self, node: int, step: WorkflowStep, key: str) -> bool:
        """Let a node reuse a result, if there is one that can be read; return whether it does."""
        found = await self._stop_control.undisturbed(node, partial(self._ask, key, step))
        if found is None:
            return False
        origin, attempts, duration_ms, payload = found
        name, item = self._state.step_runs.key_of(node)
        try:
            output = self._persistence.decode(step, payload)
        except PayloadError:
            return False  # its annotation has changed
        now_ms = self._now_ms()
        reused = ResultReused(name, now_ms, origin, attempts, duration_ms, output, item)
        self._persistence.instead[id(reused)] = replace(reused, output=payload)
        self._dispatcher.emit(reused)
        self._dispatcher.emit(StepReused(name, now_ms, item, StepStatus.SUCCESS, origin))
        call = self._led.pop(node, None)
        if call is not None:
            self._end_call(call)
        return True

    async def _ask(self, key: str, step: WorkflowStep) -> CachedResult | None:
        assert step.cache_ms is not None
        try:
            return await self._journal.cached(key, step.cache_ms)
        except JournalError:
            return None

    def on_applied(self, event: Event) -> None:
        """Let equal calls reuse a success, as soon as it is stored: it was handed over before."""
        if not isinstance(event, StepSucceeded) or event.error is not None or not self._led:
            return
        node = self._state.step_runs.find(event.step, event.item)
        assert node is not None
        call = self._led.pop(node, None)
        if call is not None:
            running = self._state.step_runs.latest_attempt(node)
            assert running is not None
            duration_ms = event.at_ms - running.at_ms
            stored = self._session.append_cached(call.key, event.attempt, duration_ms)
            self._unstored.add(call)
            stored.add_done_callback(lambda _: self._on_stored(call))

    def _on_stored(self, call: _Call) -> None:
        if call in self._unstored:
            self._unstored.discard(call)
            self._end_call(call)

    def _end_call(self, call: _Call) -> None:
        """Let all that wait for a call ask the journal, which has its result."""
        del self._calls[call.key]
        call.is_stored = True
        for cache, nodes in call.parked.items():
            unparked = [cache._unpark(node) for node in nodes]
            if any(unparked):  # else its run has stopped
                cache._run.advance()

    def on_over(self, node: int) -> None:
        # Others lead the call of a node that has ended without a success.
        call = self._led.pop(node, None)
        if call is not None:
            self._pass_on(call)

    def _pass_on(self, call: _Call) -> None:
        """Queue a node of each run that waits for a call. The first one that runs leads it.

        One stands for all of its run: if it never runs, the run has stopped, and none of them does.
        """
        call.is_led = False
        woken = []
        for cache, nodes in list(call.parked.items()):
            while nodes:
                if cache._unpark(nodes.popleft()):
                    woken.append(cache)
                    break
            if not nodes:
                del call.parked[cache]
        self._forget_if_over(call)
        for cache in woken:
            cache._run.advance()

    def _forget_if_over(self, call: _Call) -> None:
        if not (call.is_led or call.parked):
            del self._calls[call.key]

    async def on_release(self, causes: Causes) -> None:
        # Others lead the calls of a run that stores nothing more.
        for call in list(self._calls.values()):
            if call.parked.pop(self, None):
                self._forget_if_over(call)
        for call in [*self._led.values(), *self._unstored]:
            self._pass_on(call)
        self._led.clear()
        self._unstored.clear()

    def _unpark(self, node: int) -> bool:
        """Queue a node that was parked; return whether it still was."""
        return self._state.queue.unpark(node, self._now_ms())
