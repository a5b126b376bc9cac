"""The resources of a run: opened before its first step, and closed after its last one.

Rules:

1. One task opens, holds and closes them. So cancel scopes and task groups in them work, and no
   cancellation of the caller cuts their clean-up short.
2. Only the run stops that task, once, and only while it opens them.
3. A resource receives what the run raises, as by an ``async with`` around the run, but can't
   suppress it.
4. An error keeps the frames that it went through. None of them may lead back to it: hence each
   ``del self``.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Mapping
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import anyio

from asyncflow._core.arguments import is_async, python_signature
from asyncflow._core.errors import ResourceError
from asyncflow._core.history.results import Interruption, RunStatus
from asyncflow._core.pipeline.step import OpenResource
from asyncflow._core.text import describe_error
from asyncflow._core.tracebacks import awaiting_location, strip_internal_frames
from asyncflow._kernel.asyncio_compat import (
    FAILURES,
    cancel_scope,
    is_closed_over,
    outlast,
    running_task,
)
from asyncflow._kernel.policy import Causes, Policy
from asyncflow._kernel.run_scope import Host, Parts
from asyncflow._kernel.watchdog import GRACE_S

if TYPE_CHECKING:
    from asyncflow._policies.waits import Waits

_log = logging.getLogger("asyncflow")


class Resources(Policy):
    """The policy of a run that may have to open resources.

    A run that has waited in an earlier segment opens them only when something has come. If that
    fails, it takes nothing and waits on: an answer is not lost because a database restarts.
    """

    def __init__(
        self, parts: Parts, resources: Mapping[str, OpenResource], waits: Waits | None
    ) -> None:
        self._resources = resources
        self._waits = waits
        self._scope = parts.scope
        self._run = parts.run
        self._state = parts.scope.state
        self._opened: RunResources | None = None
        """Those of the steps that may still run, if these take any."""

    def on_start(self) -> None:
        if self._waits is None or not self._waits.hold(self._open):
            self._open()

    def _open(self) -> None:
        if self._state.status is RunStatus.INTERRUPTED:
            return
        needed = self._needed()
        if needed:
            self._run.hold()
            self._opened = RunResources(self._run, needed, self)
            name = f"asyncflow:{self._scope.run_id}:resources"
            self._opened.open(name, self._scope.context.copy())
        elif self._waits is not None:
            self._waits.release()

    def _needed(self) -> dict[str, OpenResource]:
        taken = {
            source
            for index in self._scope.plan.order
            if not self._state.step_runs.has_ended(index)
            for source in self._scope.start.bindings.sources(index)
        }
        return {name: each for name, each in self._resources.items() if name in taken}

    def provide(self, values: Mapping[str, Any]) -> None:
        """Start the first nodes, with the resources of the run."""
        self._scope.data.provide(values)
        self._state.queue.wait_from(self._scope.run_context.now_ms())  # nodes waited for no slot
        if self._waits is not None:
            self._waits.release()
        self._run.let_start()

    def fail(self, why: Interruption) -> None:
        """Stop the run, whose resources can't be opened; one that has waited waits on."""
        waits = self._waits
        waits_on = waits is not None and waits.is_held and self._state.stop_reason is None
        if not waits_on or not (waits and waits.suspend()):
            self._run.interrupt(None, why)

    def stop_opening(self) -> None:
        """Open no more of them."""
        if self._opened is not None:
            self._opened.stop_opening()

    def time_out(self, deadline_ms: float) -> bool:
        """Stop the run if its deadline has expired before all were open; return whether it has."""
        if self._opened is None or not self._opened.is_opening:
            return False
        self._opened.time_out(deadline_ms)
        return True

    def on_stop(self) -> None:
        if self._opened is not None and self._state.status is RunStatus.INTERRUPTED:
            self._opened.stop_opening()
            self._run.let_start()  # and then nothing is ready

    async def on_close(
        self, causes: Causes, on_cancel: Callable[[asyncio.CancelledError], object]
    ) -> None:
        if self._opened is not None:
            await self._opened.close(causes.first(), on_cancel)

    async def on_raise(self, raised: BaseException | None) -> BaseException | None:
        failed = [] if self._opened is None else self._opened.take_failures()
        self._opened = None  # it refers back to us
        try:
            if failed and raised is None:
                first = failed.pop(0)
                raised = ResourceError(first.resource, first.problem, self._state.report())
                raised.__cause__ = first.cause
            for each in failed:
                _log.error(
                    "run %r: resource %r %s",
                    *(self._scope.run_id, each.resource, each.problem),
                    exc_info=each.cause,
                )
            return raised
        finally:
            del self, raised, failed


class ResourceFailure(NamedTuple):
    """Which resource has failed, and how."""

    resource: str
    """Empty if a third party has cancelled the task of the resources."""
    problem: str
    cause: BaseException | None


class RunResources:
    """Opens, holds and closes the resources of one run.

    It opens ``resources``, at least one, in this order. The ``policy`` provides them when all are
    open, or learns that they can't be opened.
    """

    def __init__(
        self, host: Host, resources: Mapping[str, OpenResource], policy: Resources
    ) -> None:
        self.is_opening = True
        self._run = host
        self._policy = policy
        self._resources = resources
        self._latest = next(iter(resources))
        self._open: list[tuple[str, Any, anyio.CancelScope | None]] = []
        self._values: dict[str, Any] = {}
        self._task: asyncio.Task[None]
        self._is_stopped = False
        self._may_close = asyncio.get_running_loop().create_future()
        self._raised: BaseException | None = None
        self._failures: list[ResourceFailure] = []

    def open(self, name: str, context: Context) -> None:
        """Begin to open them.

        ``name`` is that of their task, and ``context`` that in which they are opened and closed.
        """
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._hold(), name=name, context=context)
        self._task.add_done_callback(self._check_begun)

    def stop_opening(self) -> None:
        """Open no more of them."""
        if self.is_opening and not self._is_stopped:
            self._is_stopped = True
            self._task.cancel()

    def time_out(self, deadline_ms: float) -> None:
        """Stop the run, whose deadline has expired before all of them were open."""
        problem = f"was not open before the run exceeded its deadline of {deadline_ms:g} ms"
        self._fail(self._latest, problem, None)
        reason = f"resource {self._latest!r} {problem}"
        self._policy.fail(Interruption("deadline", reason))
        self.stop_opening()

    async def close(
        self,
        raised: BaseException | None,
        on_cancel: Callable[[asyncio.CancelledError], object],
    ) -> asyncio.CancelledError | None:
        """Close them, the latest first, although the caller is cancelled.

        ``raised`` is what the run raises, and ``on_cancel`` is called at the first cancellation.
        Return that, if any came meanwhile.
        """
        task = self._task
        self._raised = raised
        self._may_close.set_result(None)
        try:
            return await outlast(task.done, partial(asyncio.wait, [task]), on_cancel)
        finally:
            self._raised = None
            del self, raised, on_cancel

    def take_failures(self) -> list[ResourceFailure]:
        """Return which resources have failed, and forget them."""
        failures, self._failures = self._failures, []
        return failures

    async def _hold(self) -> None:
        """Open the resources, hold them until they may close, and close them."""
        self._task = running_task()  # an eager one begins before `open` has it
        cancelled: asyncio.CancelledError | None = None
        raised = await self._open_all()
        self.is_opening = False
        try:
            if raised is None and not self._is_stopped:
                self._policy.provide(self._values)
            cancelled = await outlast(self._may_close.done, self._until_close, self._on_cancel)
            if raised is None:
                raised = self._raised if cancelled is None else cancelled
            while self._open:
                raised = await self._close(*self._open.pop(), raised, cancelled)
            if cancelled is not None and not self._failures:
                self._fail("", "was cancelled by a third party", cancelled)
        finally:
            del self, raised, cancelled

    async def _open_all(self) -> BaseException | None:
        """Open the resources; return what has ended that early."""
        raised = None
        try:
            for name, resource in self._resources.items():
                self._latest = name
                raised = await self._enter(name, resource)
                if raised is not None or self._is_stopped:
                    break
            return raised
        finally:
            del self, raised

    async def _enter(self, name: str, resource: OpenResource) -> BaseException | None:
        """Open a resource; return what it raises."""
        manager = warning = None
        scope = cancel_scope()
        try:
            if scope is not None:
                scope.__enter__()
            manager = resource()
            kind: Any = type(manager)
            check_manager(manager)
            warning = self._warn_later(name, "opening", manager)
            self._values[name] = await kind.__aenter__(manager)
            self._open.append((name, manager, scope))
        except BaseException as error:
            if is_closed_over(self._task, error):
                raise
            strip_internal_frames(error)
            if not (self._is_stopped and isinstance(error, asyncio.CancelledError)):
                self._fail(name, f"could not be opened: {describe_error(error)}", error)
                reason = f"resource {name!r} could not be opened: {type(error).__name__}"
                self._policy.fail(Interruption("resource", reason))
            if scope is not None:
                scope.__exit__(None, None, None)
            return error
        finally:
            if warning is not None:
                warning.cancel()
            del self, manager, resource, warning
        return None

    async def _close(
        self,
        name: str,
        manager: Any,
        scope: anyio.CancelScope | None,
        raised: BaseException | None,
        cancelled: asyncio.CancelledError | None,
    ) -> BaseException | None:
        """Close a resource; return what the next one receives.

        ``scope`` is around it, so that one of another resource does not cancel its closing.
        ``raised`` is what it receives, and ``cancelled`` what has stopped the run while the
        resources were open.
        """
        kind, trace = (None, None) if raised is None else (type(raised), raised.__traceback__)
        verb = "failed while it closed" if cancelled is None else "stopped the run"
        warning = self._warn_later(name, "closing", manager)
        try:
            if scope is not None:
                scope.shield = True
            is_its_own = await type(manager).__aexit__(manager, kind, raised, trace)
            if is_its_own and cancelled is not None and raised is cancelled:
                self._fail(name, verb, cancelled)  # a cancel scope, for one
            return raised
        except BaseException as error:
            if is_closed_over(self._task, error):
                raise
            if error is not raised:
                strip_internal_frames(error)
                if error.__context__ is None:
                    error.__context__ = raised
                self._fail(name, f"{verb}: {describe_error(error)}", error)
            return error
        finally:
            warning.cancel()
            if scope is not None:
                scope.__exit__(None, None, None)
            del self, manager, raised, trace, cancelled, warning

    async def _until_close(self) -> None:
        await asyncio.wait([self._may_close])

    def _on_cancel(self, cancellation: asyncio.CancelledError) -> None:
        """Stop the run: a resource, or a third party, has cancelled this task."""
        self._run.interrupt(None, Interruption("resource", "a resource has cancelled it"))

    def _check_begun(self, task: asyncio.Task[None]) -> None:
        """Stop the run if a third party has cancelled the task before its first line."""
        if task.cancelled() and not self._is_stopped:
            self.is_opening = False
            self._fail("", "was cancelled by a third party", None)
            reason = "the task of its resources was cancelled"
            self._policy.fail(Interruption("resource", reason))

    def _warn_later(self, name: str, doing: str, manager: Any) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(GRACE_S, self._warn, name, doing, manager)

    def _warn(self, name: str, doing: str, manager: Any) -> None:
        """Log which resource takes long, since no event shows it."""
        # What awaits an async generator does not lead to it; its context manager has it.
        where = awaiting_location(getattr(manager, "gen", self._task.get_coro()))
        _log.warning(
            "resource %r is still %s after %g s, at %s (%s)",
            *(name, doing, GRACE_S, where, self._task.get_name()),
        )

    def _fail(self, name: str, problem: str, cause: BaseException | None) -> None:
        if cause is None or isinstance(cause, FAILURES):
            self._failures.append(ResourceFailure(name, problem, cause))
        else:
            reason = f"resource {name!r} raised {type(cause).__name__}"
            self._run.interrupt(cause, Interruption("resource", reason))


def check_manager(value: object) -> None:
    """Check what a function returned that opens a resource."""
    if hasattr(type(value), "__aenter__") and hasattr(type(value), "__aexit__"):
        return
    if inspect.iscoroutine(value):
        value.close()  # it will never be awaited, and the TypeError says so better
    hint = "decorate an async generator function with contextlib.asynccontextmanager"
    if hasattr(type(value), "__enter__"):
        hint = "open it within an async generator function that is decorated with "
        hint += "contextlib.asynccontextmanager"
    raise TypeError(
        f"what opens it returned {type(value).__name__}, which is no async context manager; {hint}"
    )


def checked_resources(resources: object) -> dict[str, OpenResource]:
    """Return a copy of what a user gave as resources."""
    if not isinstance(resources, Mapping):
        raise TypeError(
            "resources must be a mapping of parameter name to what opens the resource, not "
            f"{type(resources).__name__}"
        )
    for name, resource in resources.items():
        if not isinstance(name, str):
            raise TypeError(f"the names of resources must be str, not {type(name).__name__}")
        _check_resource(name, resource)
    return cast("dict[str, OpenResource]", dict(resources))


def _check_resource(name: str, resource: object) -> None:
    if not callable(resource):
        raise TypeError(
            f"resource {name!r} must be a function that returns an async context manager, not "
            f"{type(resource).__name__}; to share what is open already, give "
            "lambda: contextlib.nullcontext(...)"
        )
    if is_async(resource):
        raise TypeError(
            f"resource {name!r} is an async function, which is no async context manager; let it "
            "yield the resource, and decorate it with contextlib.asynccontextmanager"
        )
    try:
        signature = python_signature(resource)
    except ValueError:  # some callables written in C have none
        return
    try:
        signature.bind()
    except TypeError as error:
        raise TypeError(
            f"resource {name!r} is opened without arguments, but {error}; give them with "
            "functools.partial"
        ) from None
