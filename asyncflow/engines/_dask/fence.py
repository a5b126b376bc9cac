"""The fence: a plugin of the scheduler that lets each body begin once, while it is wanted.

An engine announces each call to the fence, with all that its body needs, and submits a task to Dask
that says no more than the number of the call. When Dask has found a worker for the task, the task
asks the fence: may I begin? The fence says yes once for each number, and only until the engine
stops the call. That has five consequences:

1. Dask may run a task again, as it does when a worker dies, retires or loses an output: the second
   body doesn't begin.
2. A call that is stopped before it begins will never begin.
3. A stop reaches a running body at once, and the engine hears when the body has ended.
4. If the connection of a worker closes, its process is gone: the engine hears of it at once. A
   frozen process keeps its connection open, so when Dask removes a worker, the fence asks it for a
   sign of life and gives it up if there is none.
5. If the connection of an engine closes, its process is gone: its bodies are stopped.

The fence knows live calls only. It ends with the scheduler, and then workers stop their bodies.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from distributed import SchedulerPlugin
from distributed.comm.core import Comm
from distributed.core import Status

from asyncflow.engines._dask.wire import ENGINES, OPEN, WORKERS, Wire

_ANSWER_WITHIN_S = 10.0
"""How many seconds a worker that Dask has removed may take to answer until its bodies are lost."""


@dataclass(eq=False, repr=False)
class _Worker:
    """A worker that has asked to begin something. Its calls go by engine and number."""

    address: str
    wire: Wire
    running: set[tuple[str, int]] = field(default_factory=set)
    """The calls whose bodies run there."""
    abandoned: set[tuple[str, int]] = field(default_factory=set)
    """The calls that have ended before their threads did."""
    unanswered: asyncio.TimerHandle | None = None
    """Set while the worker has not answered whether it is alive."""

    def ask_if_alive(self) -> None:
        """Close the connection unless the worker answers in time."""
        self.wire.send("alive?", 0, "")
        loop = asyncio.get_running_loop()
        self.unanswered = loop.call_later(_ANSWER_WITHIN_S, self.wire.abort)

    def hear_answer(self) -> None:
        """Note that the worker is alive, or that its connection has closed."""
        if self.unanswered is not None:
            self.unanswered.cancel()
            self.unanswered = None


@dataclass(eq=False, repr=False)
class _Submitter:
    """An engine in another process."""

    wire: Wire
    announced: int = 0
    """The number of the latest call."""
    waiting: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    """What the bodies of calls need that have not begun."""
    running: dict[int, _Worker] = field(default_factory=dict)
    """Where the bodies of calls run."""
    early: list[tuple[int, _Worker]] = field(default_factory=list)
    """Tasks that asked before their call was announced: Dask has connections of its own."""


class Fence(SchedulerPlugin):  # type: ignore[misc]  # distributed has no types
    """The plugin. Many engines share it: the first one installs it."""

    name = ENGINES
    idempotent = True

    async def start(self, scheduler: Any) -> None:
        """Begin to accept connections."""
        self._engines: dict[str, _Submitter] = {}
        self._workers: set[_Worker] = set()
        scheduler.handlers[ENGINES] = self.serve_engine
        scheduler.handlers[WORKERS] = self.serve_worker

    async def serve_engine(self, comm: Comm, name: str) -> Status:
        """Serve an engine until its connection closes."""
        await comm.write(OPEN)
        engine = self._engines[name] = _Submitter(Wire(comm))
        try:
            async for operation, number, *rest in engine.wire.messages():
                if operation == "call":
                    self._announce(name, engine, number, tuple(rest))
                else:
                    self._stop(name, engine, number)
        finally:
            del self._engines[name]
            for number, worker in engine.early:
                worker.wire.send("no", number, name)
            for number in engine.running:
                self._stop(name, engine, number)
            engine.wire.close()
        return Status.dont_reply

    async def serve_worker(self, comm: Comm, name: str) -> Status:
        """Serve a worker until its connection closes."""
        await comm.write(OPEN)
        worker = _Worker(name, Wire(comm))
        self._workers.add(worker)
        try:
            async for operation, number, engine_name, *rest in worker.wire.messages():
                if operation == "begin":
                    self._ask(engine_name, number, worker)
                elif operation == "alive":
                    worker.hear_answer()
                else:
                    self._pass_on(operation, number, engine_name, rest, worker)
        finally:
            self._workers.discard(worker)
            worker.hear_answer()
            for engine_name, number in list(worker.running):
                reason = ["its process is gone, frozen or cut off"]
                self._pass_on("lost", number, engine_name, reason, worker)
            for engine_name, number in list(worker.abandoned):
                self._pass_on("thread ended", number, engine_name, [], worker)
            worker.wire.close()
        return Status.dont_reply

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        """Ask a worker that Dask removes whether it is alive: one that retires still cleans up."""
        for each in self._workers:
            if each.address == worker:
                each.ask_if_alive()

    def _announce(
        self, name: str, engine: _Submitter, number: int, needed: tuple[Any, ...]
    ) -> None:
        engine.announced = number
        engine.waiting[number] = needed
        early, engine.early = engine.early, []
        for early_number, worker in early:
            self._ask(name, early_number, worker)

    def _ask(self, name: str, number: int, worker: _Worker) -> None:
        """Answer a task that asks: may I begin?"""
        engine = self._engines.get(name)
        if engine is not None and number > engine.announced:
            engine.early.append((number, worker))
        elif engine is None or number not in engine.waiting or not worker.wire.is_open:
            worker.wire.send("no", number, name)
        else:
            engine.running[number] = worker
            worker.running.add((name, number))
            worker.wire.send("yes", number, name, *engine.waiting.pop(number))

    def _stop(self, name: str, engine: _Submitter, number: int) -> None:
        if engine.waiting.pop(number, None) is not None:
            engine.wire.send("refused", number, "")
        elif number in engine.running:
            engine.running[number].wire.send("stop", number, name)
        # Else its last word is on the way.

    def _pass_on(
        self, operation: str, number: int, name: str, rest: list[Any], worker: _Worker
    ) -> None:
        """Pass on what a worker says of a call to its engine, if that is still there."""
        engine = self._engines.get(name)
        if operation in _LAST_WORDS:
            worker.running.discard((name, number))
            if engine is not None:
                engine.running.pop(number, None)
        elif operation == "abandoned":
            worker.abandoned.add((name, number))
        elif operation == "thread ended":
            worker.abandoned.discard((name, number))
        if engine is not None:
            engine.wire.send(operation, number, worker.address, *rest)


_LAST_WORDS = frozenset({"ended", "lost", "missing", "refused"})
"""What a worker says when a body has ended, or has not begun although it was allowed to."""
