"""Runs the attempts of steps on a Dask cluster.

Dask's own futures can't be stopped once they run, and Dask runs a task again that was on a worker
which dies or retires. So a task of Dask only asks for its body, and a fence in the scheduler
(``asyncflow.engines._dask.fence``) lets each body begin once, and stops it.
"""

from __future__ import annotations

import asyncio
import pickle
import weakref
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

from asyncflow._core.errors import (
    MissingExtraError,
    NotSendableError,
    OutputLostError,
    WorkerLostError,
)

try:
    from distributed import Client, Future
except ModuleNotFoundError as missing:
    raise MissingExtraError(
        "asyncflow.engines.dask needs Dask's distributed, which comes with an extra: "
        "pip install 'asyncflow-tiers[dask]'",
        name=missing.name,
    ) from missing

from asyncflow._core.arguments import check_count, check_number
from asyncflow._core.history.remote_output import RemoteOutput
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._kernel.asyncio_compat import outlast
from asyncflow._policies.engine import EngineCall
from asyncflow.engines._dask import wire as dask_wire
from asyncflow.engines._dask.body import Kept
from asyncflow.engines._dask.fence import Fence
from asyncflow.engines._dask.link import Link, RemoteBody, open_link
from asyncflow.engines._dask.tasks import BodyTask, Submissions
from asyncflow.engines._remote.packing import check_sendable, pack_call, unpack_answer
from asyncflow.engines._remote.wire import Answer

__all__ = ["DaskEngine"]


class DaskEngine:
    """Runs attempts on the workers of a Dask cluster: ``async with DaskEngine(address) as engine``.

    Scheduler and workers need asyncflow too. A worker runs as many bodies at once as it has threads
    (``nthreads``), whatever the steps' ``runs_in`` says; the others wait, and their time limits
    don't count yet.

    Attributes:
        name: ``"dask"``.
        stops_bodies: True: a body that must stop is cancelled in its worker, and awaited.
        moves_data: True: large outputs stay in workers, and move between them.
        tells_began: True.

    Args:
        cluster: The address of a scheduler, such as ``"tcp://127.0.0.1:8786"``, or an asynchronous
            `distributed.Client` of this event loop, which stays open. With an address, the engine
            opens a client of its own, and another one when the scheduler was restarted.
        keep_bytes: The size in bytes above which an output stays in its worker, if only steps on
            this engine take it; ``None`` if none shall.
        resources: The abstract resources of Dask that each body needs, such as ``{"GPU": 1}``. Only
            workers that have them run the steps of this engine. Two engines may share a client.

    Raises:
        TypeError: ``cluster`` is neither, the client is not asynchronous, or another argument has
            the wrong type.
        ValueError: An argument is out of its range.
    """

    name = "dask"
    stops_bodies = True
    moves_data = True
    tells_began = True

    def __init__(
        self,
        cluster: str | Client,
        *,
        keep_bytes: int | None = 2**20,
        resources: Mapping[str, float] | None = None,
    ) -> None:
        if not isinstance(cluster, str | Client):
            raise TypeError(
                "DaskEngine: cluster must be the address of a scheduler or a distributed.Client, "
                f"not {type(cluster).__name__}"
            )
        if isinstance(cluster, Client) and not cluster.asynchronous:
            raise TypeError(
                "DaskEngine: the client must belong to the event loop: "
                "await Client(address, asynchronous=True)"
            )
        if keep_bytes is not None:
            check_count("DaskEngine: keep_bytes", keep_bytes, 0, kind="an int or None")
        if resources is not None and not isinstance(resources, Mapping):
            raise TypeError(
                "DaskEngine: resources must be a mapping of name to amount, not "
                f"{type(resources).__name__}"
            )
        for name, amount in (resources or {}).items():
            if not isinstance(name, str):
                raise TypeError(f"DaskEngine: resources must have str names, not {name!r}")
            check_number(f"DaskEngine: resources[{name!r}]", amount, 0)
        self._cluster = cluster
        self._keep_bytes = keep_bytes
        self._resources = dict(resources or {})
        self._loop: asyncio.AbstractEventLoop | None = None
        """The loop in which the engine is open."""
        self._client: Any = cluster if isinstance(cluster, Client) else None
        self._connection: _DaskConnection | None = None
        self._connecting = asyncio.Lock()
        self._failed: OSError | None = None
        """Why the last attempt to connect has failed."""
        self._kept: weakref.WeakSet[Future] = weakref.WeakSet()

    async def __aenter__(self) -> Self:
        if self._loop is not None:
            raise RuntimeError("this DaskEngine is open already; make another one")
        self._loop = asyncio.get_running_loop()
        try:
            async with self._connecting:
                await self._connect()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()

    def check(self, step: WorkflowStep, /) -> None:
        """See `Engine.check`."""
        self._check_open()
        check_sendable(step)

    async def run(self, call: EngineCall, /) -> Any:
        """See `Engine.run`."""
        self._check_open()
        connection = await self._connected(call)
        packed = pack_call(call, self._keep_bytes)
        if len(packed) > dask_wire.MAX_BYTES:
            raise NotSendableError(call.step.name, "the call", dask_wire.TOO_LARGE)
        kept = {
            name: self._future_of(value, name)
            for name, value in call.arguments.items()
            if isinstance(value, RemoteOutput)
        }
        body = connection.link.announce(call, packed, list(kept))
        task = connection.submissions.add(call.step.name, body, list(kept.values()))
        try:
            cancellation = await outlast(
                body.ended.done, lambda: asyncio.wait([body.ended]), lambda _: body.stop()
            )
            word, content = body.ended.result()
            if word == "ended":
                try:
                    return self._unpack(pickle.loads(content), call, task)
                except asyncio.CancelledError:
                    if cancellation is not None or not body.problem:
                        raise
            elif cancellation is not None:
                raise cancellation
            raise _loss(call, body, word, content)
        finally:
            cancellation = None
            task.end(is_kept=task.future in self._kept)

    # How a call ends.

    def _unpack(self, answer: Answer, call: EngineCall, task: BodyTask) -> Any:
        def keep(size: int) -> RemoteOutput:
            future, worker, step_name = task.future, task.body.worker, call.step.name
            assert future is not None
            self._kept.add(future)
            fetch = partial(self._fetch, future, worker, step_name)
            return RemoteOutput(self.name, worker, size, future, fetch, step_name)

        return unpack_answer(answer, call, keep)

    # Outputs that stay.

    def _future_of(self, output: RemoteOutput, parameter: str) -> Future:
        future = output.reference
        if future not in self._kept or future.status in _BROKEN:
            raise _output_lost(output.worker, output.step_name, parameter)
        return future

    async def _fetch(self, future: Future, worker: str, step_name: str) -> Any:
        """Return an output that has stayed in a worker.

        Raise `OutputLostError` if it is lost.
        """
        self._check_open()
        try:
            output: Kept | None = await future
        except (Exception, asyncio.CancelledError) as error:
            if future.status not in _BROKEN:
                raise  # this was cancelled
            raise _output_lost(worker, step_name) from error
        if output is None:
            raise _output_lost(worker, step_name)
        return output.value

    # The connection.

    def _check_open(self) -> None:
        if self._loop is None:
            raise RuntimeError("this DaskEngine is not open: use 'async with' around the run")
        if self._loop is not asyncio.get_running_loop():
            raise RuntimeError(
                "this DaskEngine was opened in another event loop; open it in that of the run"
            )

    async def _connected(self, call: EngineCall) -> _DaskConnection:
        """Return the connection, after making a new one if the scheduler was lost."""
        failed_before = self._failed
        async with self._connecting:
            self._check_open()  # still
            if self._connection is None or not self._connection.link.is_open:
                if self._failed is failed_before:  # else this has waited for one that failed
                    try:
                        await self._connect()
                    except OSError as error:
                        self._failed = error
                if self._failed is not failed_before:
                    _, attempt, *_ = call.running
                    reason = f"there is no connection to the Dask scheduler: {self._failed}"
                    raise WorkerLostError(call.step.name, attempt, "", reason) from self._failed
            assert self._connection is not None
            return self._connection

    async def _connect(self) -> None:
        """Connect to the scheduler.

        Raise `OSError` if it can't be reached, and `RuntimeError` if it can't import asyncflow, or
        its client is in another event loop.
        """
        await self._close_link()
        client = await self._running_client()
        address = client.scheduler.address
        try:
            await client.register_plugin(Fence())
        except ImportError as error:
            raise RuntimeError(
                f"the Dask scheduler at {address} can't load the plugin of asyncflow; install "
                "asyncflow-tiers[dask] there and on its workers, in the same version as here"
            ) from error
        link = await open_link(address, client.connection_args)
        submissions = Submissions(client, link.name, self._resources)
        self._connection = _DaskConnection(link, submissions)

    async def _running_client(self) -> Any:
        client = self._client
        while client is not None and client.status in _PASSING:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.02)
        if client is None or (client.status == "closed" and client is not self._cluster):
            client = self._client = Client(self._cluster, asynchronous=True, set_as_default=False)
            return await client
        if client.loop.asyncio_loop is not self._loop:
            raise RuntimeError("the Dask client of this DaskEngine is in another event loop")
        if client.status != "running":
            raise OSError(f"its client is {client.status}")
        return client

    async def _close_link(self) -> None:
        """Stop all bodies, await their ends, and let Dask forget what they have made."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.link.aclose()
        for future in list(self._kept):
            future.release()
        self._kept.clear()

    async def _close(self) -> None:
        self._loop = None  # nothing more begins
        try:
            async with self._connecting:
                await self._close_link()
        finally:
            if self._client is not None and self._client is not self._cluster:
                client, self._client = self._client, None
                await client.close()


class _DaskConnection(NamedTuple):
    """What an engine has while it is connected; a new one after the scheduler was restarted."""

    link: Link
    submissions: Submissions


_PASSING = frozenset({"connecting", "closing"})
"""The states of a client that another one follows soon."""

_BROKEN = frozenset({"cancelled", "error"})
"""How Dask calls the state of a future whose output it will not have again."""


def _loss(call: EngineCall, body: RemoteBody, word: str, content: Any) -> Exception:
    """Return the error of a call whose body was lost, or that the engine itself has stopped."""
    if word == "missing":
        missing: RemoteOutput = call.arguments[content]
        return _output_lost(missing.worker, missing.step_name, content)
    if word == "refused":
        for name, value in call.arguments.items():
            if isinstance(value, RemoteOutput) and value.reference.status in _BROKEN:
                return _output_lost(value.worker, value.step_name, name)
    _, attempt, *_ = call.running
    reason = content if word == "lost" else body.problem
    return WorkerLostError(call.step.name, attempt, body.worker, reason)


def _output_lost(worker: str, step_name: str, parameter: str = "") -> OutputLostError:
    reason = "its worker has gone with it, or the scheduler was restarted"
    return OutputLostError(DaskEngine.name, worker, reason, step_name, parameter)
