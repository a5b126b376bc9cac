"""One attempt on an engine, from its submission to the end of its body.

A run in which no step has an engine does not load this module.

Rules:

1. The await of the engine is a task of its own. It is cancelled at most once, and awaited to its
   end: that is how the driver knows that the body has ended.
2. The attempt waits for a worker until the engine reports that its body begins. Its limit and its
   heartbeats count from there.
3. An output that others than this engine's steps take comes home with the attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import Any

from asyncflow._core.remote_output import RemoteOutput
from asyncflow._runtime.asyncio_compat import outlast
from asyncflow._runtime.engine import Engine, EngineCall
from asyncflow._runtime.watchdog import HeartbeatTimer

__all__ = ["RemoteAttempt"]


class RemoteAttempt:
    """Runs one attempt on an engine.

    Attributes:
        heartbeat: Receives the heartbeats of the body, once that has begun and if it must give any.
        is_stopping: Whether the engine was asked to stop the body.

    Args:
        on_began: Called when the body begins, with the name of its worker.
    """

    def __init__(self, on_began: Callable[[str], object]) -> None:
        self.heartbeat: HeartbeatTimer | None = None
        self._on_began = on_began
        self._loop = asyncio.get_running_loop()
        self._begun: asyncio.Future[None] = self._loop.create_future()
        self.is_stopping = False
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

    def beat(self) -> None:
        """Note a heartbeat of the body."""
        if self.heartbeat is not None:
            self.heartbeat.beat()

    async def until_begun(self) -> None:
        """Wait until the body begins, or the attempt has ended."""
        ends: list[asyncio.Future[Any]] = [self._task, self._begun]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)

    def stop(self, _: object = None) -> None:
        """Ask the engine to stop the body, once."""
        if not self.is_stopping:
            self.is_stopping = True
            self._task.cancel()

    async def outcome(self) -> Any:
        """Return or raise what the engine does. If this is cancelled, the body is stopped first."""
        task = self._task
        await outlast(task.done, partial(asyncio.wait, [task]), self.stop)
        # A task that is cancelled before its first line never runs.
        output, error = self._ends.pop() if self._ends else (None, asyncio.CancelledError())
        try:
            if error is not None:
                raise error
            return output
        finally:
            del self, task, error  # the traceback of the error keeps this frame

    async def _run(self, engine: Engine, call: EngineCall) -> None:
        """Note what the engine returns or raises: a task must not raise what ends a loop."""
        try:
            output = await engine.run(call)
            if isinstance(output, RemoteOutput) and not call.may_keep:
                output = await output.fetch()
            self._ends.append((output, None))
        except BaseException as error:
            self._ends.append((None, error))
        finally:
            del self, engine, call  # as above
