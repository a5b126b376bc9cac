"""The engine for clusters of Ray, with the extra ``ray``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Any, TypeAlias

from asyncflow._core.errors import MissingExtraError, OutputLostError, WorkerLostError

try:
    import ray as _ray
except ImportError as _error:
    raise MissingExtraError(
        "asyncflow.engines.ray needs Ray, which comes with an extra: "
        "pip install 'asyncflow-tiers[ray]'",
        name="ray",
    ) from _error

from anyio import to_thread
from ray.exceptions import (  # pyright: ignore[reportMissingImports]
    ActorUnavailableError,
    ObjectLostError,
    RayActorError,
)

from asyncflow._core.arguments import check_count, check_number
from asyncflow._core.history.remote_output import RemoteOutput
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._core.record import record
from asyncflow._kernel.asyncio_compat import outlast
from asyncflow._policies.engine import EngineCall
from asyncflow._policies.workers import ThreadEnd
from asyncflow.engines._ray.cluster import HostHandle, Hosts, Placement
from asyncflow.engines._ray.host import HostAnswer, StoredOutput, ray_reason
from asyncflow.engines._remote.packing import check_sendable, pack_call, unpack_answer
from asyncflow.engines._remote.wire import PackedCall

__all__ = ["RayEngine"]

ray: Any = _ray  # without Ray, type checkers take this module for it
_Connection: TypeAlias = tuple[str, str]
"""The ids of this process's job and of its node, which no other connection has."""

UNCONFIRMED_S = 10.0
"""How many seconds after a request to stop a body it is reported that nothing confirms its end."""


class RayEngine:
    """Runs attempts on a Ray cluster: ``async with RayEngine("auto") as engine:``.

    The engine starts hosts on all nodes, which are actors, and sends each attempt to the host that
    has the least to do. Nodes that join later get hosts within seconds. A host of a lost node or
    process is replaced, and the attempts that it ran fail with a `WorkerLostError`.

    The hosts end with the engine, and with the process that opened it, however that ends. Steps
    need asyncflow and their own code on the nodes: installed there, or through ``runtime_env``.

    Args:
        address: The cluster: ``"auto"`` for the one of this machine, ``"ray://host:10001"`` for a
            remote one (which needs ``ray[client]``), or ``None`` for what `ray.init` takes by
            default: the address in ``RAY_ADDRESS``, the cluster of this machine, or else a new one
            of this machine alone, which ends with the engine. A process that is connected to Ray
            already uses that connection, and keeps it.
        hosts_per_node: How many hosts a node gets at most; ``None`` for as many as its processors
            and resources allow.
        cpus_per_host: How many processors each host reserves; at least 0. With 0, say
            ``hosts_per_node``.
        resources: What else each host reserves, such as ``{"GPU": 1}``. Nodes without it get no
            host.
        steps_per_host: How many attempts a host runs at the same time. Others wait here, which does
            not count against their limits. Coroutines that compute without awaiting run one by one
            anyway, and with 1 they go to a host only when it is free.
        keep_bytes: From which size on an output stays in the cluster, if all steps that take it run
            there; ``None`` brings all outputs home.
        runtime_env: Ray's description of the environment of the hosts.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.
    """

    name = "ray"
    stops_bodies = True
    moves_data = True
    tells_began = True

    def __init__(
        self,
        address: str | None = None,
        *,
        hosts_per_node: int | None = None,
        cpus_per_host: float = 1,
        resources: Mapping[str, float] | None = None,
        steps_per_host: int = 1000,
        keep_bytes: int | None = 2**20,
        runtime_env: Mapping[str, Any] | None = None,
    ) -> None:
        check_number("cpus_per_host", cpus_per_host, 0)
        if hosts_per_node is not None:
            check_count("hosts_per_node", hosts_per_node, 1)
        elif not cpus_per_host:
            raise ValueError("cpus_per_host=0 needs hosts_per_node, which nothing else limits")
        check_count("steps_per_host", steps_per_host, 1)
        if keep_bytes is not None:
            check_count("keep_bytes", keep_bytes, 0)
        self._address = address
        self._keep_bytes = keep_bytes
        self._placement = Placement(
            hosts_per_node, cpus_per_host, resources or {}, steps_per_host, runtime_env
        )
        self._hosts: Hosts | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._owns_connection = False
        self._connection: _Connection = "", ""

    async def __aenter__(self) -> RayEngine:
        if self._loop is not None:
            raise RuntimeError("this RayEngine is open already; make another one")
        self._loop = asyncio.get_running_loop()
        try:
            # In a thread, since it takes seconds, and since in the main one it would replace the
            # process's handler of SIGTERM.
            await to_thread.run_sync(self._connect)
            self._hosts = Hosts(self._placement)
            await self._hosts.open()
        except BaseException:
            await self._close()
            raise
        return self

    def _connect(self) -> None:
        if not ray.is_initialized():
            logger = logging.getLogger("ray._private.worker")
            logger.addFilter(_is_not_about_sigterm)
            try:
                ray.init(self._address, configure_logging=False, log_to_driver=False)
                self._owns_connection = True
            finally:
                logger.removeFilter(_is_not_about_sigterm)
        self._connection = _current_connection()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kill the hosts, and end the connection if the engine made it."""
        await self._close()

    async def _close(self) -> None:
        closing = asyncio.create_task(self._end_all())
        cancellation = await outlast(closing.done, partial(asyncio.wait, [closing]))
        closing.result()
        if cancellation is not None:
            raise cancellation

    async def _end_all(self) -> None:
        hosts, self._hosts = self._hosts, None
        if hosts is not None:
            await hosts.close()
        if self._owns_connection:
            await to_thread.run_sync(ray.shutdown)
        self._owns_connection, self._loop = False, None

    def check(self, step: WorkflowStep, /) -> None:
        """Check that the engine is open, and that the action of a step can be sent.

        Raises:
            RuntimeError: The engine is not open, or it was opened in another event loop.
            NotSendableError: The action can't be sent.
        """
        self._opened()
        check_sendable(step)

    async def run(self, call: EngineCall, /) -> Any:
        """Run an attempt; see `Engine`."""
        hosts = self._opened()
        packed = pack_call(call, self._keep_bytes)
        stayed = {n: v for n, v in call.arguments.items() if isinstance(v, RemoteOutput)}
        largest = max(stayed.values(), key=lambda output: output.size, default=None)
        host = await hosts.take(None if largest is None else largest.reference.node)
        try:
            return await _RayAttempt(call, host, self._connection).run(packed, stayed)
        finally:
            hosts.give_back(host)

    def _opened(self) -> Hosts:
        if self._hosts is None:
            raise RuntimeError("the Ray engine is not open; use it in: async with RayEngine(...)")
        if self._loop is not asyncio.get_running_loop():
            raise RuntimeError(
                "the Ray engine was opened in another event loop; open it in that of the run"
            )
        return self._hosts


@record
class _Reference:
    """What the engine knows an output by that stayed."""

    object: Any
    """Ray's own reference: the cluster has the output as long as this lives."""
    node: str

    def __repr__(self) -> str:
        return f"<output on node {self.node}>"


class _RayAttempt:
    """An attempt that a host makes."""

    def __init__(self, call: EngineCall, host: HostHandle, connection: _Connection) -> None:
        self._call = call
        self._host = host
        self._connection = connection
        self._has_begun = False
        self._thread = ThreadEnd(asyncio.get_running_loop())
        """Done when the thread of the attempt has ended, if that was abandoned."""
        self._unconfirmed: asyncio.TimerHandle | None = None

    def tell(self, kind: str) -> None:
        if kind == "began":
            self._begin()
        elif kind == "thread ended":
            self._thread.report()
        elif self._call.beat is not None:
            self._call.beat()

    def _begin(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._call.began(self._host.name)

    async def run(self, packed: PackedCall, stayed: Mapping[str, RemoteOutput]) -> Any:
        call, host, output = self._call, self._host, None
        token = host.listen(self)
        objects = {name: each.reference.object for name, each in stayed.items()}
        if call.may_keep:
            reference, output = host.actor.run_and_keep.remote(token, packed, objects)
        else:
            reference = host.actor.run.remote(token, packed, objects)
        ended = asyncio.wrap_future(reference.future())
        try:
            await outlast(ended.done, partial(asyncio.wait, [ended]), partial(self._stop, token))
            result = await self._result_of(ended)
        finally:
            host.listeners.pop(token, None)
            if self._unconfirmed is not None:
                self._unconfirmed.cancel()
        if result.has_begun:
            self._begin()
        if result.answer is None:
            assert result.lost is not None
            name, reason = result.lost
            lost = stayed[name]
            raise OutputLostError("ray", lost.worker, reason, lost.step_name, name)
        if result.answer.is_abandoned:
            self._abandon(token)
        return unpack_answer(result.answer, call, partial(self._remote_output, output))

    def _stop(self, token: int, _: object) -> None:
        host = self._host
        host.stop(token)
        reason = f"{host.name} has not answered for {UNCONFIRMED_S:g} s"
        loop = asyncio.get_running_loop()
        self._unconfirmed = loop.call_later(UNCONFIRMED_S, self._call.unconfirmed, reason)

    async def _result_of(self, ended: asyncio.Future[HostAnswer]) -> HostAnswer:
        try:
            return ended.result()
        except RayActorError as error:
            if isinstance(error, ActorUnavailableError):
                self._host.kill()
            # The task that follows the host notices its end too, and has made sure of it.
            await outlast(self._host.gone.done, partial(asyncio.wait, [self._host.gone]))
            reason = self._host.gone.result()
        except ObjectLostError as error:  # the node of a large answer
            reason = ray_reason(error)
        name, number = self._call.running[:2]
        raise WorkerLostError(name, number, self._host.name, reason)

    def _abandon(self, token: int) -> None:
        host, thread = self._host, self._thread
        host.listeners[token] = self  # for the news that the thread has ended

        def forget(_: object) -> None:
            host.listeners.pop(token, None)

        thread.add_done_callback(forget)
        host.gone.add_done_callback(lambda _: thread.report())
        self._call.abandon(thread)

    def _remote_output(self, output: Any, size: int) -> RemoteOutput:
        worker, step_name = self._host.name, self._call.step.name
        reference = _Reference(output, self._host.node)
        fetch = partial(_fetch, output, worker, step_name, self._connection)
        return RemoteOutput("ray", worker, size, reference, fetch, step_name)


async def _fetch(reference: Any, worker: str, step_name: str, connection: _Connection) -> Any:
    # Ray would wait forever for an output of an earlier connection.
    if not ray.is_initialized() or _current_connection() != connection:
        raise RuntimeError("this output stayed on a Ray cluster, and its engine is closed")
    try:
        stored: StoredOutput = await reference
    except ObjectLostError as error:
        raise OutputLostError("ray", worker, ray_reason(error), step_name) from None
    return stored.load()


def _current_connection() -> _Connection:
    context = ray.get_runtime_context()
    return context.get_job_id(), context.get_node_id()


def _is_not_about_sigterm(entry: logging.LogRecord) -> bool:
    return "SIGTERM" not in str(entry.msg)
