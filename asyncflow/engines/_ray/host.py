"""The host of a Ray engine: an asyncio actor, in whose process the bodies of attempts run.

Rules:

1. Ray gives each concurrency group of an actor an event loop, in a thread of its own. So this actor
   has two: the loop of `run`, where the bodies run, and the loop of all other methods, which answer
   even while a body blocks the first.
2. Ray logs what a method raises. So a method raises nothing that a body does, or that it contains.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import cloudpickle  # type: ignore[import-untyped]
import ray as _ray
from ray.exceptions import ObjectLostError  # pyright: ignore[reportMissingImports]

from asyncflow._core.record import record, replace
from asyncflow.engines._remote.packing import run_packed
from asyncflow.engines._remote.wire import Answer, failed

ray: Any = _ray  # type checkers may take it for the module beside this one
_Method = TypeVar("_Method", bound=Callable[..., Any])

BODIES = "bodies"
CONTROL = "control"
"""The names of the concurrency groups."""

News = tuple[int, str]
"""What a body says before its answer, or a thread after it: its token, and the kind."""

_BEGAN_S = 0.002
_NEWS_S = 0.02
"""How long news waits for more, in seconds. A body that ends meanwhile needs no news of its
beginning, since its answer says it too."""


@record
class HostAnswer:
    """What came of a call."""

    answer: Answer | None
    has_begun: bool
    lost: tuple[str, str] | None = None
    """Why there is no answer: the argument that the cluster has lost, and what Ray says of it."""


@record
class StoredOutput:
    """An output that stays, pickled: then it is known that it can be, and no error holds it.

    Ray shares the parts with the readers on a node, without copying them.
    """

    parts: list[Any]
    """The pickle, and what it refers to."""

    @classmethod
    def of(cls, output: object) -> StoredOutput:
        """Pickle an output; raise whatever its objects raise."""
        buffers: list[pickle.PickleBuffer] = []
        content = cloudpickle.dumps(output, protocol=5, buffer_callback=buffers.append)
        return StoredOutput([content, *buffers])

    def load(self) -> Any:
        """Return the output; raise whatever its objects raise."""
        return pickle.loads(self.parts[0], buffers=self.parts[1:])

    def __reduce__(self) -> Any:
        # What Ray has shared can't be pickled as it is, which a server of `ray://` must do.
        return StoredOutput, ([pickle.PickleBuffer(part) for part in self.parts],)

    def __repr__(self) -> str:
        return f"<StoredOutput of {len(self.parts)} parts>"


def _in_group(name: str, **options: Any) -> Callable[[_Method], _Method]:
    """Let a method of an actor run in a concurrency group, as an untyped decorator of Ray does."""

    def decorate(method: _Method) -> _Method:
        ray.method(concurrency_group=name, **options)(method)
        return method

    return decorate


class RayHost:
    """Runs the bodies of attempts. The engine numbers them with tokens, which rise."""

    def __init__(self) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._control: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._bodies: dict[int, asyncio.Task[HostAnswer]] = {}
        self._refused: set[int] = set()
        """Those that must not begin: the call that stops them has overtaken them."""
        self._news: dict[News, None] = {}
        self._has_news = asyncio.Event()

    @_in_group(CONTROL)
    async def hello(self) -> str:
        """Return the name of this worker."""
        self._control = asyncio.get_running_loop()
        return self.name

    @_in_group(BODIES)
    async def run(self, token: int, packed: bytes, stayed: Mapping[str, Any]) -> HostAnswer:
        """Run a body, and return its answer. Only `stop` stops it.

        ``token`` is its number, ``packed`` what `pack_call` has made, and ``stayed`` are references
        of the arguments that stayed in the cluster.
        """
        attempt = _HostedAttempt(self, token)
        body = asyncio.get_running_loop().create_task(attempt.run(packed, stayed))
        with self._lock:
            if token in self._refused:
                self._refused.remove(token)
                body.cancel()
            else:
                self._bodies[token] = body
        try:
            return await body
        except asyncio.CancelledError:
            if not body.cancelled():
                raise
            return HostAnswer(Answer("not run", worker=self.name), has_begun=False)
        finally:
            with self._lock:
                self._bodies.pop(token, None)
                self._news.pop((token, "began"), None)
                self._news.pop((token, "beat"), None)

    @_in_group(BODIES, num_returns=2)
    async def run_and_keep(
        self, token: int, packed: bytes, stayed: Mapping[str, Any]
    ) -> tuple[HostAnswer, StoredOutput | None]:
        """Do the same for a body whose output may stay: it stays as the second value."""
        result = await self.run(token, packed, stayed)
        answer = result.answer
        if answer is None or answer.kind != "kept":
            return result, None
        try:
            return result, StoredOutput.of(answer.kept)
        except Exception as error:  # whatever its objects raise
            answer = replace(failed("its output", error, self.name), notes=answer.notes)
            return HostAnswer(answer, has_begun=True), None

    @_in_group(CONTROL)
    async def stop(self, tokens: list[int], oldest: int) -> None:
        """Cancel bodies, once each, and refuse those that have not arrived yet.

        ``tokens`` are their numbers. No call with a lower number than ``oldest`` is under way.
        """
        bodies = []
        with self._lock:
            self._refused = {token for token in self._refused if token >= oldest}
            for token in tokens:
                if (body := self._bodies.pop(token, None)) is not None:
                    bodies.append(body)
                else:  # it has not arrived, or its answer is on the way
                    self._refused.add(token)
        if bodies:
            bodies[0].get_loop().call_soon_threadsafe(_cancel, bodies)

    @_in_group(CONTROL)
    async def news(self) -> list[News]:
        """Return what the bodies have to say, as soon as there is anything."""
        while True:
            await self._has_news.wait()
            has_began = any(kind == "began" for _, kind in self._news)
            await asyncio.sleep(_BEGAN_S if has_began else _NEWS_S)
            self._has_news.clear()
            with self._lock:
                news = list(self._news)
                self._news.clear()
            if news:
                return news

    def tell(self, token: int, kind: str) -> None:
        """Put something among the news, from any thread."""
        assert self._control is not None  # the engine sends nothing before the greeting
        with self._lock:
            self._news[token, kind] = None
            if len(self._news) == 1:
                self._control.call_soon_threadsafe(self._has_news.set)


def _cancel(bodies: list[asyncio.Task[HostAnswer]]) -> None:
    for body in bodies:
        body.cancel()


class _HostedAttempt:
    """One attempt, and what the far side calls for it."""

    def __init__(self, host: RayHost, token: int) -> None:
        self.worker = host.name
        self._host = host
        self._token = token
        self._has_begun = False

    async def run(self, packed: bytes, stayed: Mapping[str, Any]) -> HostAnswer:
        arguments = {}
        for name, reference in stayed.items():
            try:
                arguments[name] = (await reference).load()
            except ObjectLostError as error:
                return HostAnswer(None, has_begun=False, lost=(name, ray_reason(error)))
            except Exception as error:  # a module is missing here, for one
                answer = failed(f"argument {name!r}", error, self.worker)
                return HostAnswer(answer, has_begun=False)
        answer = await run_packed(packed, arguments, self)
        return HostAnswer(answer, self._has_begun)

    async def begin(self) -> bool:
        self._has_begun = True
        self._host.tell(self._token, "began")
        return True

    def beat(self) -> None:
        self._host.tell(self._token, "beat")

    def save(self, saved: tuple[str, bytes]) -> None:
        pass  # news have no content: it comes with the answer

    def thread_ended(self) -> None:
        self._host.tell(self._token, "thread ended")


def ray_reason(error: BaseException) -> str:
    """Return what Ray says about a loss, without the advice that follows it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = lines[-1].strip().partition(". ")[0]
    return reason.removeprefix("The actor is dead because ").rstrip(".")
