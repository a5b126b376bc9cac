"""The hosts of a Ray engine, from the process that opened it: where they are, and which is free.

Rules:

1. A host is an actor that is never restarted and whose calls are never repeated. When one is lost,
   the engine makes another: so a body runs at most once.
2. Nothing is sent to a host before it has said hello. Until then a call can be taken back at once.
3. A host is gone when Ray says that its process has died. If Ray can't tell, the host is killed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

import ray as _ray
from anyio import to_thread
from ray.exceptions import (  # pyright: ignore[reportMissingImports]
    ActorUnavailableError,
    RayError,
    RayTaskError,
)
from ray.util.scheduling_strategies import (  # pyright: ignore[reportMissingImports]
    NodeAffinitySchedulingStrategy,
)

from asyncflow.engines._ray.host import BODIES, CONTROL, News, RayHost, ray_reason

ray: Any = _ray  # type checkers may take it for the module beside this one
_MAY_LIVE = (ActorUnavailableError, RayTaskError)
"""The errors of a call that do not mean that the process of its actor has ended."""
_LOOK_S = 2.0
"""How often to look for new nodes."""
_CONFIRM_S = 0.5
_CLOSE_S = 10.0

_logger = logging.getLogger("asyncflow.engines.ray")


class Listener(Protocol):
    """An attempt that waits for what its body says."""

    def tell(self, kind: str, /) -> None:
        """Take one thing that its body says before the answer, or its thread after that."""


class HostHandle:
    """One actor. Its attributes belong to the loop of the engine."""

    def __init__(self, actor: Any, node: str) -> None:
        self.actor = actor
        self.node = node
        self.name = ""
        """Empty until it has said hello."""
        self.load = 0
        """How many bodies it runs, or is about to."""
        self.listeners: dict[int, Listener] = {}
        """Its calls under way, by token. Tokens rise."""
        self.gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done when its process has died; the reason."""
        self._next_token = 0
        self._to_stop: list[int] = []

    def listen(self, listener: Listener) -> int:
        """Return the token of a new call."""
        self._next_token += 1
        self.listeners[self._next_token] = listener
        return self._next_token

    def stop(self, token: int) -> None:
        """Stop a body; all of those that must stop in this turn of the loop with one call."""
        if not self._to_stop:
            asyncio.get_running_loop().call_soon(self._send_stops)
        self._to_stop.append(token)

    def _send_stops(self) -> None:
        tokens, self._to_stop = self._to_stop, []
        # What it returns is of no interest: the answers of the bodies are.
        self.actor.stop.remote(tokens, min(self.listeners, default=self._next_token + 1))

    async def follow(self, on_hello: Callable[[HostHandle], None]) -> None:
        """Pass on what the bodies say until the process has died."""
        try:
            reason = await self._follow(on_hello)
        except _MAY_LIVE as error:
            reason = await self._until_dead(ray_reason(error))
        except RayError as error:
            reason = ray_reason(error)
        self.gone.set_result(reason)

    async def _follow(self, on_hello: Callable[[HostHandle], None]) -> str:
        self.name = await self.actor.hello.remote()
        on_hello(self)
        while True:
            news: list[News] = await self.actor.news.remote()
            for token, kind in news:
                if (listener := self.listeners.get(token)) is not None:
                    listener.tell(kind)

    def kill(self) -> None:
        """Kill its process, if it lives and Ray can do it now."""
        if not self.gone.done() and ray.is_initialized():  # else Ray would start a cluster for it
            with suppress(RayError):
                ray.kill(self.actor)

    async def _until_dead(self, reason: str) -> str:
        """Kill a host of which Ray does not know whether it lives, and wait until it is dead."""
        while True:
            self.kill()
            try:
                await self.actor.hello.remote()
            except _MAY_LIVE:
                pass
            except RayError:
                return reason
            await asyncio.sleep(_CONFIRM_S)


class Placement:
    """How many hosts a node gets, and what each of them reserves.

    ``hosts_per_node`` is ``None`` for as many as a node's processors allow. Each host reserves
    ``cpus`` processors and ``resources``, by Ray's names, and runs ``bodies`` at the same time.
    ``runtime_env`` is Ray's description of its environment.
    """

    def __init__(
        self,
        hosts_per_node: int | None,
        cpus: float,
        resources: Mapping[str, float],
        bodies: int,
        runtime_env: Mapping[str, Any] | None,
    ) -> None:
        self._hosts_per_node = hosts_per_node
        needs = {**resources, "CPU": cpus}
        self.needs = {name: amount for name, amount in needs.items() if amount}
        self.bodies = bodies
        self._actor_class = ray.remote(concurrency_groups={BODIES: bodies, CONTROL: 10})(RayHost)
        self._options: dict[str, Any] = {"num_cpus": cpus, "max_restarts": 0, "max_task_retries": 0}
        others = dict(resources)
        for name, option in {"GPU": "num_gpus", "memory": "memory"}.items():
            if name in others:
                self._options[option] = others.pop(name)
        self._options["resources"] = others
        if runtime_env is not None:
            self._options["runtime_env"] = dict(runtime_env)

    def start_missing(self, present: Counter[str]) -> list[tuple[Any, str]]:
        """Start the hosts that are missing, and return their actors and nodes. It may block."""
        return [
            (self._start(node["NodeID"]), node["NodeID"])
            for node in ray.nodes()
            if node["Alive"]
            for _ in range(self._wanted(node["Resources"]) - present[node["NodeID"]])
        ]

    def _wanted(self, resources: Mapping[str, float]) -> int:
        rooms = [
            int(resources.get(name, 0) / amount + 1e-9)  # three times 0.1 is more than 0.3
            for name, amount in self.needs.items()
        ]
        if self._hosts_per_node is not None:
            rooms.append(self._hosts_per_node)
        return min(rooms)

    def _start(self, node: str) -> Any:
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        return self._actor_class.options(**self._options, scheduling_strategy=strategy).remote()


class Hosts:
    """Keeps hosts on all nodes, and gives each call the one that has the least to do."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._hosts: dict[HostHandle, asyncio.Task[None]] = {}
        """All that live, with the tasks that follow them."""
        self._ready: list[HostHandle] = []
        self._waiting: deque[tuple[asyncio.Future[HostHandle], str | None]] = deque()
        self._is_wanted = asyncio.Event()
        """Whether to look for nodes that lack a host at once."""
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watcher: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start the hosts, and wait until one of them is ready.

        Raise `RuntimeError` if no node has room for a host, or a host could not start.
        """
        await self._start_missing()
        if not self._hosts:
            raise RuntimeError(
                f"no node of the Ray cluster has room for a host, which reserves "
                f"{self._placement.needs}; see cpus_per_host, hosts_per_node and resources"
            )
        await self._first
        self._watcher = asyncio.create_task(self._watch(), name="asyncflow:ray:nodes")

    async def close(self) -> None:
        """Kill the hosts, and wait until they are dead; after 10 seconds, leave them to Ray."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        followers = list(self._hosts.values())
        for host in self._hosts:
            host.kill()
        if followers:
            _, unconfirmed = await asyncio.wait(followers, timeout=_CLOSE_S)
            for follower in unconfirmed:
                follower.cancel()
            if unconfirmed:
                await asyncio.wait(unconfirmed)
        for waiter, _ in self._waiting:
            if not waiter.done():
                waiter.set_exception(RuntimeError("the Ray engine was closed during a run"))

    async def take(self, node: str | None) -> HostHandle:
        """Return a host that has room for a body, and occupy that. Waiting callers come first.

        ``node`` is where the host should be, if others have no less to do.
        """
        if not self._waiting and (host := self._pick(node)) is not None:
            host.load += 1
            return host
        waiter: asyncio.Future[HostHandle] = asyncio.get_running_loop().create_future()
        self._waiting.append((waiter, node))
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # cancelled in the turn that it got one
                self.give_back(waiter.result())
            raise

    def give_back(self, host: HostHandle) -> None:
        """Release what `take` has occupied."""
        host.load -= 1
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            waiter, node = self._waiting[0]
            if not waiter.done():
                host = self._pick(node)
                if host is None:
                    return
                host.load += 1
                waiter.set_result(host)
            self._waiting.popleft()

    def _pick(self, node: str | None) -> HostHandle | None:
        host = min(self._ready, key=lambda host: (host.load, host.node != node), default=None)
        return None if host is None or host.load >= self._placement.bodies else host

    # Which hosts there are.

    async def _watch(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_wanted.wait(), _LOOK_S)
            self._is_wanted.clear()
            try:
                await self._start_missing()
            except Exception:  # whatever Ray raises while its control service is away
                _logger.warning("can't look for new nodes of the Ray cluster", exc_info=True)

    async def _start_missing(self) -> None:
        present = Counter(host.node for host in self._hosts)
        # A call of Ray's control service may take a minute if that is down.
        started = await to_thread.run_sync(
            self._placement.start_missing, present, abandon_on_cancel=True
        )
        for actor, node in started:
            host = HostHandle(actor, node)
            name = f"asyncflow:ray:host on {node[:8]}"
            self._hosts[host] = asyncio.create_task(self._follow(host), name=name)

    async def _follow(self, host: HostHandle) -> None:
        try:
            await host.follow(self._add)
        finally:
            del self._hosts[host]
            if not host.gone.done():
                host.gone.set_result("the engine was closed, and Ray does not answer")
        if host in self._ready:
            self._ready.remove(host)
            self._is_wanted.set()
        elif not self._first.done():
            reason = host.gone.result()
            self._first.set_exception(RuntimeError(f"a host of steps can't start: {reason}"))
        elif self._watcher is not None and not self._watcher.done():
            _logger.warning("a host of steps could not start: %s", host.gone.result())

    def _add(self, host: HostHandle) -> None:
        self._ready.append(host)
        if not self._first.done():
            self._first.set_result(None)
        self._serve()
