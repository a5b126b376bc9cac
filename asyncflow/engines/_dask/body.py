"""What runs in a worker: the task that Dask runs for a call, and the worker's end of the fence."""

from __future__ import annotations

import asyncio
import os
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

from distributed import get_worker

from asyncflow._core.record import replace
from asyncflow.engines._dask import wire as dask_wire
from asyncflow.engines._dask.wire import WORKERS, Wire, open_wire
from asyncflow.engines._remote.packing import run_packed
from asyncflow.engines._remote.wire import Answer


class Kept:
    """An output that stays in its worker, as the result of its task. Dask moves it if it must.

    ``size`` is about how many bytes it has.
    """

    def __init__(self, value: Any, size: int) -> None:
        self.value = value
        self.size = size

    def __sizeof__(self) -> int:
        return self.size  # Dask asks, to know how full a worker is


async def run_body(engine: str, number: int, kept: Sequence[Kept | None]) -> Kept | None:
    """Run the body of a call, if it may begin. This is the one function that Dask runs for us.

    ``engine`` is the engine's own name. In ``kept``, the arguments that stayed in workers, ``None``
    stands for one that is lost: Dask has run its task again, which was not allowed to begin. Return
    the output, if it stays here; otherwise the engine has received it, if there is any. Raise
    `OSError` if the fence can't be reached.
    """
    return await _fence_of(get_worker()).run(engine, number, kept)


def _fence_of(worker: Any) -> _FenceConnection:
    """Return the connection that all bodies in a worker share, which Dask closes with it."""
    found: _FenceConnection | None = worker.extensions.get(WORKERS)
    if found is None or found.is_over:
        found = worker.extensions[WORKERS] = _FenceConnection(worker)
    return found


class _FenceConnection:
    """A worker's connection to the fence. If it closes, all bodies are stopped."""

    def __init__(self, worker: Any) -> None:
        self.address: str = worker.address
        self.is_over = False
        self._is_closing = False
        self._bodies: dict[tuple[str, int], _Body] = {}
        self._wire: Wire | None = None
        self._opened: asyncio.Future[Wire] = asyncio.get_running_loop().create_future()
        self._serving = asyncio.create_task(self._serve(worker), name="asyncflow:dask-fence")

    async def run(self, engine: str, number: int, kept: Sequence[Kept | None]) -> Kept | None:
        """Run a body, if it may begin; see `run_body`."""
        wire = await asyncio.shield(self._opened)
        key = engine, number
        if key in self._bodies:  # Dask runs the task again while the first body cleans up
            return None
        body = self._bodies[key] = _Body(wire, number, engine, self.address)
        try:
            return await body.run(kept)
        finally:
            del self._bodies[key]
            if self._is_closing and not self._bodies:
                wire.close()

    async def close(self) -> None:
        """Close the connection, or let the last body do it.

        Dask calls this as the worker closes, and has cancelled the tasks of all bodies by then.
        """
        self._is_closing = True
        if self._wire is not None and not self._bodies:
            await self._wire.aclose()

    async def _serve(self, worker: Any) -> None:
        try:
            wire = await open_wire(
                worker.scheduler.address, WORKERS, worker.address, worker.connection_args
            )
        except OSError as error:
            self.is_over = True
            self._opened.set_exception(error)
            return
        self._wire = wire
        self._opened.set_result(wire)
        try:
            async for operation, number, engine, *needed in wire.messages():
                if operation == "alive?":
                    wire.send("alive", number, engine)
                    continue
                body = self._bodies.get((engine, number))
                if body is None:
                    if operation == "yes":
                        wire.send("lost", number, engine, _CLOSED)
                elif operation == "stop":
                    body.stop()
                else:
                    body.permit(needed if operation == "yes" else None)
        finally:
            self.is_over = True
            for body in self._bodies.values():
                body.lose_fence()
            wire.close()


_CLOSED = "it was closed or retired"


class _Body:
    """One body: what `run_packed` asks of an engine in its worker, an `AttemptHost`."""

    def __init__(self, wire: Wire, number: int, engine: str, worker: str) -> None:
        self.worker = worker
        self._wire = wire
        self._call = number, engine
        self._needed: asyncio.Future[Sequence[Any] | None] = (
            asyncio.get_running_loop().create_future()
        )
        self._attempt: asyncio.Task[Answer] | None = None
        self._is_permitted = False
        self._is_stopped = False
        """Whether the engine has asked for the end."""
        self._is_cancelled = False
        self._is_closed = False
        """Whether the worker closes."""
        self._is_abandoned = False
        """Whether home was told that the thread may outlive the attempt."""
        self._has_thread_ended = False

    # What the fence says.

    def permit(self, needed: Sequence[Any] | None) -> None:
        """Let the body begin with what it needs; ``None``: it may not."""
        if not self._needed.done():
            self._is_permitted = needed is not None
            self._needed.set_result(needed)
        elif needed is not None:  # the worker closes
            self._say("lost", _CLOSED)

    def stop(self) -> None:
        """Ask the body to end."""
        self._is_stopped = True
        self._say("stopping")
        self._cancel()

    def lose_fence(self) -> None:
        """Ask the body to end, or not to begin: nothing will hear of it."""
        if not self._needed.done():
            self._needed.set_exception(ConnectionError("the connection to the fence has closed"))
        self._cancel()

    def _cancel(self) -> None:
        """Cancel the attempt, once: another time would disturb its clean-up."""
        if not self._is_cancelled:
            self._is_cancelled = True
            if self._attempt is not None and not self._attempt.cancelling():
                self._attempt.cancel()

    # What the attempt says.

    async def begin(self) -> bool:
        """Report at home that the body begins, unless it was stopped."""
        if not self._is_cancelled:
            self._say("began", os.getpid())
            await asyncio.sleep(0)  # it is written now: the body may block the loop
        return not self._is_cancelled

    def beat(self) -> None:
        """Pass on a heartbeat."""
        self._say("beat")

    def save(self, saved: tuple[str, bytes]) -> None:
        """Pass on a checkpoint."""
        self._say("saved", *saved)

    def thread_ended(self) -> None:
        """Report at home that a thread has ended that the attempt has abandoned."""
        self._has_thread_ended = True
        if self._is_abandoned:
            self._say("thread ended")

    def _abandon(self) -> None:
        self._is_abandoned = True
        self._say("abandoned")
        if self._has_thread_ended:  # a moment ago
            self._say("thread ended")

    def _say(self, operation: str, *rest: Any) -> None:
        self._wire.send(operation, *self._call, *rest)

    # The task.

    async def run(self, kept: Sequence[Kept | None]) -> Kept | None:
        """Ask the fence, and run the attempt if it agrees."""
        self._say("begin")
        try:
            needed = await self._needed
            if needed is None:
                return None
            packed, names = needed
            return await self._run(packed, dict(zip(names, kept, strict=True)))
        except BaseException as error:  # the worker closes, or this is a bug
            if self._is_permitted:
                self._say("lost", f"{type(error).__name__} ended it")
            raise

    async def _run(self, packed: bytes, kept: Mapping[str, Kept | None]) -> Kept | None:
        if self._is_cancelled:
            self._say("refused")
            return None
        outputs = {name: output.value for name, output in kept.items() if output is not None}
        lost = kept.keys() - outputs.keys()
        if lost:
            self._say("missing", min(lost))
            return None
        return self._report(await self._make_attempt(packed, outputs))

    async def _make_attempt(self, packed: bytes, values: Mapping[str, Any]) -> Answer | None:
        """Return the answer; ``None`` if the attempt was cancelled before it had begun."""
        attempt = self._attempt = asyncio.create_task(run_packed(packed, values, self))
        while not attempt.done():
            try:
                await asyncio.wait([attempt])
            except asyncio.CancelledError:  # Dask cancels its tasks as the worker closes
                self._is_closed = True
                self._cancel()
        return None if attempt.cancelled() else attempt.result()

    def _report(self, answer: Answer | None) -> Kept | None:
        """Send the last word, and return the output if it stays here."""
        is_lost = self._is_closed and not self._is_stopped
        if is_lost and (answer is None or answer.kind != "returned"):
            self._say("lost", _CLOSED)
        elif answer is None:
            self._say("refused")
        else:
            if answer.is_abandoned:
                self._abandon()
            content = pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)
            if len(content) > dask_wire.MAX_BYTES:
                text = "", dask_wire.TOO_LARGE, ""
                failed = replace(
                    answer, kind="failed", content=b"", subject="its output", text=text
                )
                content = pickle.dumps(failed, pickle.HIGHEST_PROTOCOL)
            self._say("ended", content)
            if answer.kind == "kept":
                return Kept(answer.kept, answer.size)
        return None
