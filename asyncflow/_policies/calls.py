"""Makes the calls of steps that have a name, and keeps what they return: `StepContext.call`.

Only a run whose actions make such calls loads this module.

Rules:

1. A value is stored before the attempt can end: between the moment at which the function returns
   and the one at which its value goes to the journal, nothing is awaited. A cancellation that comes
   while it is being stored waits until it is.
2. An attempt gets what earlier ones have stored, never its own: it uses a name once with success.
   A name is free again as soon as its call has raised.
3. A call may outlive its attempt, such as in a task that the action has left behind. The next
   attempt that asks for it waits for it. When the step, or item, has ended, its value is dropped.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from weakref import ref
from zlib import crc32

from asyncflow._core.arguments import callable_name, unawaitable_result
from asyncflow._core.history.log import StartedAttempt
from asyncflow._core.history.results import Key
from asyncflow._core.pipeline.annotations import awaited_type
from asyncflow._core.running.checkpoints import Checkpoints, PickleCodec, StoredCall
from asyncflow._core.running.context import RunContext, call_watchers
from asyncflow._core.running.state import RunState
from asyncflow._kernel.asyncio_compat import outlast

if TYPE_CHECKING:
    from asyncflow._policies.durable import Journal
    from asyncflow._policies.notes import NoteQueue

_LONGEST_NAME = 200

_log = logging.getLogger("asyncflow")


class NamedCalls:
    """The calls of one step or item. Only the event loop of its run uses it.

    ``journal`` encodes what they return, if the run has one. ``stored`` are the names of those
    whose values earlier processes have left there.
    """

    def __init__(
        self,
        state: ref[RunState],
        run: RunContext,
        journal: Journal | None,
        key: Key,
        stored: Collection[str],
    ) -> None:
        self._state = state
        self._step = run.plan.steps[run.plan.index[key[0]]]
        self._codec = journal or PickleCodec()
        self._key = key
        self._latest: tuple[object, Any] = None, None
        """The function of the latest call, and the type of what it returns: a loop calls the same
        function again and again."""
        self._attempt = 0
        self._used: set[str] = set()
        """The names of the attempt's calls, without those that have raised."""
        self._made: dict[str, StoredCall | None] = dict.fromkeys(stored)
        """What calls have returned; ``None`` if the journal has it."""
        self._under_way: dict[str, asyncio.Future[None]] = {}

    async def call(
        self,
        run: RunContext,
        running: StartedAttempt,
        name: str,
        function: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Do what `StepContext.call` says."""
        _check(name, function)
        self._use(running, name)
        try:
            return await self._make(run, running, name, function, args, kwargs)
        except BaseException:
            if self._attempt == running[1]:  # else it is a name of a later attempt
                self._used.discard(name)
            raise

    async def _make(
        self,
        run: RunContext,
        running: StartedAttempt,
        name: str,
        function: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Return what is stored under a name; else call, and store it."""
        subject = f"what call {name!r} of step {running[0]!r} returned"
        hint, arguments = self._hint_of(function), _checksum_of(args, kwargs)
        while (earlier := self._under_way.get(name)) is not None:
            await asyncio.wait([earlier])
            self._check_attempt(running, name)
        if name in self._made:
            stored = await self._stored(run.checkpoints, name)
            if stored is not None:
                self._compare(running, name, stored, arguments)
                return self._codec.decode(subject, stored.payload, hint)
            self._check_attempt(running, name)  # else it is gone with the success of the step
        ended = self._under_way[name] = asyncio.get_running_loop().create_future()
        try:
            for watch in call_watchers:
                watch(*self._key, name)
            began_s = run.clock()
            value = await _awaitable(name, function(*args, **kwargs))
            if self.has_ended:
                raise RuntimeError(
                    f"step {self._step.name!r} has ended, so what call {name!r} returned is dropped"
                )
            payload = self._codec.encode(subject, value, hint)
            duration_ms = (run.clock() - began_s) * 1000
            stored = StoredCall(running[1], arguments, payload)
            cancellation = await self._keep(run.checkpoints, name, stored)
            if (notes := cast("NoteQueue | None", run.notes)) is not None:
                notes.called(running, name, duration_ms, len(payload.data))
            if cancellation is not None:
                raise cancellation
            return value
        finally:
            cancellation = None  # it keeps this frame
            del self._under_way[name]
            if not ended.done():
                ended.set_result(None)

    def _hint_of(self, function: Callable[..., Awaitable[Any]]) -> Any:
        key = getattr(function, "__func__", function)  # each access makes another bound method
        if self._latest[0] is not key:
            self._latest = key, awaited_type(function)
        return self._latest[1]

    def _use(self, running: StartedAttempt, name: str) -> None:
        """Use a name in an attempt, which must be running."""
        self._check_attempt(running, name)
        if self._attempt != running[1]:
            self._attempt = running[1]
            self._used.clear()
        if name in self._used:
            when = "is under way" if name in self._under_way else "was made before"
            raise ValueError(
                f"step {running[0]!r}: call {name!r} {when} in this attempt; give each call a name "
                "of its own, such as f'ask-{turn}'"
            )
        self._used.add(name)

    @property
    def has_ended(self) -> bool:
        """Whether the step or item has ended."""
        return self._node() is None

    def _check_attempt(self, running: StartedAttempt, name: str) -> None:
        state, node = self._state(), self._node()
        now = None if state is None or node is None else state.step_runs.running_attempt(node)
        if now is None or now.attempt != running[1]:
            raise RuntimeError(
                f"step {self._step.name!r}: attempt {running[1]} has ended, so it can't make call "
                f"{name!r}"
            )

    def _node(self) -> int | None:
        """Return the node of the step or item; ``None`` if it, or its run, has ended."""
        state = self._state()
        return None if state is None else state.step_runs.find_unended(*self._key)

    async def _stored(self, checkpoints: Checkpoints, name: str) -> StoredCall | None:
        """Return what a call has returned; ``None`` if it can't be read, and must be made again."""
        stored, load = self._made[name], checkpoints.load_call
        if stored is None and load is not None:
            stored = await load(self._key, name)
        return stored

    def _compare(
        self, running: StartedAttempt, name: str, stored: StoredCall, arguments: int | None
    ) -> None:
        if None not in (arguments, stored.arguments) and arguments != stored.arguments:
            _log.warning(
                "step %r, attempt %d: call %r returns what attempt %d has stored, although its "
                "arguments have changed since",
                *(running[0], running[1], name, stored.attempt),
            )

    async def _keep(
        self, checkpoints: Checkpoints, name: str, stored: StoredCall
    ) -> asyncio.CancelledError | None:
        """Keep what a call has returned; return the cancellation that came meanwhile."""
        store = None if self._step.secret else checkpoints.store_call
        if store is None:
            if stored.attempt < self._step.max_retries:
                self._made[name] = stored
            return None
        self._made[name] = stored  # until the journal has it
        storing = asyncio.ensure_future(store(self._key, name, stored))
        cancellation = await outlast(storing.done, partial(asyncio.wait, [storing]))
        try:
            storing.result()
            self._made[name] = None
            return cancellation
        finally:
            del storing, cancellation  # they keep this frame


def _check(name: object, function: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"call: name must be a str, not {type(name).__name__}")
    if not name or len(name) > _LONGEST_NAME:
        raise ValueError(f"call: name must have 1 to {_LONGEST_NAME} characters, not {len(name)}")
    if inspect.iscoroutine(function):
        function.close()  # it will never be awaited, and the TypeError says so better
        raise TypeError(
            f"call {name!r}: pass the function and its arguments, not a coroutine object: "
            f"call({name!r}, {function.__name__}, ...)"
        )
    if not callable(function):
        raise TypeError(f"call {name!r}: {type(function).__name__} is not an async callable")
    if inspect.isasyncgenfunction(function):
        raise TypeError(
            f"call {name!r}: {callable_name(function)} is an async generator function, which "
            "cannot be awaited; pass an async function that returns all of its items"
        )
    if returned := unawaitable_result(function):
        raise TypeError(
            f"call {name!r}: {callable_name(function)} is a plain function that returns "
            f"{returned}, which cannot be awaited; make it 'async def'"
        )


def _awaitable(name: str, returned: object) -> Awaitable[Any]:
    if not inspect.isawaitable(returned):
        raise TypeError(
            f"call {name!r}: its function returned {type(returned).__name__}, which cannot be "
            "awaited; make it 'async def'"
        )
    return returned


def _checksum_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """Return a checksum of what of the arguments can be written as JSON; ``None`` if nothing can.

    It is the same in each process.
    """
    try:
        text = json.dumps([args, kwargs], sort_keys=True, default=_no_json)
    except Exception:  # the user's objects may raise anything, and values may contain themselves
        return None
    return crc32(text.encode("utf-8", "surrogatepass"))


def _no_json(value: object) -> str:
    return type(value).__name__
