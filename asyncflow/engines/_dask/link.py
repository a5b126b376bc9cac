"""The engine's end of the fence: its calls, and what the fence says of them."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from asyncflow._policies.engine import EngineCall
from asyncflow._policies.workers import ThreadEnd
from asyncflow.engines._dask.wire import ENGINES, Wire, open_wire

_ANSWER_WITHIN_S = 10.0
"""How many seconds a worker may take to say that it stops a body, before that is reported."""


async def open_link(address: str, connection_args: Mapping[str, Any]) -> Link:
    """Connect to the fence of a scheduler, as an engine.

    Raise `OSError` if the scheduler can't be reached, or has no fence.
    """
    name = uuid.uuid4().hex
    return Link(name, await open_wire(address, ENGINES, name, connection_args))


class Link:
    """A connection of an engine to the fence.

    ``name`` is what the fence knows the engine by, and ``wire`` belongs to this object from now on.
    """

    def __init__(self, name: str, wire: Wire) -> None:
        self.name = name
        self._wire = wire
        self._numbers = itertools.count(1)
        self._bodies: dict[int, RemoteBody] = {}
        self._threads: dict[int, ThreadEnd] = {}
        """Of the calls that have ended before their threads did."""
        self._receiving = asyncio.create_task(self._receive(), name="asyncflow:dask-engine")

    @property
    def is_open(self) -> bool:
        """Whether the scheduler is there."""
        return self._wire.is_open and not self._receiving.done()

    def announce(self, call: EngineCall, packed: bytes, kept: Sequence[str]) -> RemoteBody:
        """Let the body of a call begin, as soon as a task asks for it.

        ``packed`` is the call as a worker receives it, and ``kept`` are the names of the arguments
        that the task brings along.
        """
        number = next(self._numbers)
        body = self._bodies[number] = RemoteBody(self._wire, number, call)
        self._wire.send("call", number, bytes(packed), list(kept))
        return body

    async def aclose(self) -> None:
        """Stop all bodies, wait until they have ended, and close the connection."""
        try:
            while bodies := list(self._bodies.values()):
                for body in bodies:
                    body.stop("the engine was closed")
                await asyncio.wait([body.ended for body in bodies])
        finally:
            await self._wire.aclose()
            await asyncio.wait([self._receiving])

    async def _receive(self) -> None:
        try:
            async for operation, number, worker, *rest in self._wire.messages():
                if operation == "thread ended":
                    self._threads.pop(number).resolve()
                    continue
                body = self._bodies.get(number)
                if body is None:
                    continue  # a heartbeat or a checkpoint that a thread sent after the last word
                if operation == "abandoned":
                    self._threads[number] = body.abandon()
                elif body.receive(operation, worker, *rest):
                    del self._bodies[number]
        finally:
            self._wire.close()
            bodies, self._bodies = self._bodies, {}
            for body in bodies.values():
                body.receive("lost", body.worker, "the connection to the Dask scheduler was lost")
            for thread in self._threads.values():
                thread.resolve()


class RemoteBody:
    """The body of a call.

    ``worker`` is the address of its worker; empty until it begins. ``ended`` is resolved when it
    has ended, or will never begin: with what the fence says of it. ``problem`` says why the engine
    itself has stopped it; empty if it has not.
    """

    def __init__(self, wire: Wire, number: int, call: EngineCall) -> None:
        self.number = number
        self.worker = ""
        self.problem = ""
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[tuple[str, Any]] = self._loop.create_future()
        self._wire = wire
        self._call = call
        self._unanswered: asyncio.TimerHandle | None = None
        """Set while the worker has not answered to a stop."""
        self._is_stopped = False

    def stop(self, problem: str = "") -> None:
        """Ask the body to end, or never to begin.

        ``problem`` says why, if its caller has not asked for that.
        """
        if not self._is_stopped:
            self._is_stopped = True
            self.problem = problem
            self._wire.send("stop", self.number)
            self._unanswered = self._loop.call_later(_ANSWER_WITHIN_S, self._report_silence)

    def abandon(self) -> ThreadEnd:
        """Report that the attempt ends before its thread does."""
        thread = ThreadEnd(self._loop)
        self._call.abandon(thread)
        return thread

    def receive(self, operation: str, worker: str, *rest: Any) -> bool:
        """Take what the fence says; return whether that is its last word."""
        if operation == "beat":
            if self._call.beat is not None:
                self._call.beat()
            return False
        if operation == "saved":
            codec, data = rest
            self._call.saved((codec, data))
            return False
        if operation == "began":
            self.worker = worker
            (pid,) = rest
            self._call.began(f"{worker} (pid {pid})")
            return False
        self._hear_answer()
        if operation == "stopping":
            return False
        self.worker = worker
        self.ended.set_result((operation, *rest) if rest else (operation, None))
        return True

    def _hear_answer(self) -> None:
        if self._unanswered is not None:
            self._unanswered.cancel()
            self._unanswered = None

    def _report_silence(self) -> None:
        silent = f"worker {self.worker}" if self.worker else "the Dask scheduler"
        self._call.unconfirmed(
            f"{silent} has not answered for {_ANSWER_WITHIN_S:g} s; the body may still run"
        )
