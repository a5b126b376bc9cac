"""What a policy may do to a run: the hooks that the run and its parts call.

Rules:

1. A policy is one object a run. It has its own state, and the run knows none by name.
2. A hook is a method whose name begins with ``on_``. A policy overrides those it needs; another
   name that begins so is an error when the class is made, not a hook that never runs.
3. Hooks are called in the order in which `asyncflow._runtime.policies` lists the policies. That is
   where each order that matters has its reason.
4. A hook that raises is a bug of asyncflow: it ends the run, which awaits its steps and raises that
   error. Only what ``on_call`` and ``on_output`` raise is a failure of the attempt.
5. What a policy may ask of the run is a `asyncflow._runtime.run_scope.Host`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, TypeAlias, TypeVar

from asyncflow._core.errors import JournalError, RunCancelledError
from asyncflow.events import AttemptStarted, Event

if TYPE_CHECKING:
    from asyncflow._core.step import WorkflowStep

P = ParamSpec("P")
R = TypeVar("R")

Call: TypeAlias = Callable[[], Awaitable[Any]]
"""Calls the action of an attempt."""


class Causes:
    """What has ended a run early: the first of each kind."""

    interruption: BaseException | None = None
    """What ends the program, the failure of the journal, or a bug of asyncflow."""
    cancellation: asyncio.CancelledError | None = None
    """That of the caller."""
    cancelled: RunCancelledError | None = None
    """The run itself was cancelled or drained."""

    def first(self) -> BaseException | None:
        """Return what the run raises, if anything."""
        if self.cancellation is not None and isinstance(self.interruption, JournalError):
            return self.cancellation  # one from outside always gets through
        for cause in (self.interruption, self.cancellation, self.cancelled):
            if cause is not None:
                return cause
        return None


class Policy:
    """What one policy does in one run. By default, a hook does nothing."""

    overrides: ClassVar[frozenset[str]] = frozenset()
    """The names of the hooks that the class overrides."""

    def __init_subclass__(cls) -> None:
        names = {name for name in vars(cls) if name.startswith("on_")}
        for name in names:
            if not hasattr(Policy, name):
                raise TypeError(f"{cls.__name__}.{name} is no hook of a policy")
        cls.overrides |= names

    # The run, in this order.

    def on_open(self) -> None:
        """The run opens, in the task that runs it: nothing was reported yet."""

    def on_begin(self) -> None:
        """It was reported that the run begins. What is reported here belongs to the same turn."""

    async def on_resume(self) -> None:
        """Nothing has started yet, and other tasks may get turns."""

    def on_watch(self) -> Callable[[], object] | None:
        """Nodes are about to run: begin with what must end with them, and return what ends it.

        What is returned is called even if the event loop is given up, the latest first.
        """
        return None

    def on_start(self) -> None:
        """The first nodes are about to start, in a run that was not cancelled before."""

    async def on_close(
        self, causes: Causes, on_cancel: Callable[[asyncio.CancelledError], object]
    ) -> None:
        """All nodes have ended. The causes say what the run raises so far.

        ``on_cancel`` takes the cancellation of the caller that comes meanwhile.
        """

    def on_end(self) -> None:
        """It is about to be reported that the run ends."""

    def on_ended(self) -> None:
        """That was reported, or the run is broken and has no end. Let go of the run."""

    async def on_release(self, causes: Causes) -> None:
        """Nothing is reported any more. What fails or cancels this joins the causes."""

    async def on_raise(self, raised: BaseException | None) -> BaseException | None:
        """Return what the run raises instead of this, or the same."""
        return raised

    # While nodes run.

    def on_idle(self) -> bool:
        """Nothing runs, and nodes are left. Return whether the run may end all the same.

        It may also report the end of nodes, or let others start.
        """
        return False

    def on_back_off(self) -> None:
        """A node is about to wait for its next attempt."""

    def on_stop(self) -> None:
        """The run is about to ask its nodes to stop."""

    def on_stopped(self) -> None:
        """It has asked them."""

    def on_explain(self) -> str:
        """Return what else explains that the run stops now, for its reason."""
        return ""

    # Events.

    def on_event(self, event: Event) -> None:
        """An event is about to be applied to the state."""

    def on_applied(self, event: Event) -> None:
        """An event was applied to the state."""

    # Nodes.

    def on_attempt(self, running: AttemptStarted) -> None:
        """An attempt is about to call its action, in its context."""

    def on_call(self, call: Call, node: int, step: WorkflowStep, running: AttemptStarted) -> Call:
        """An attempt is about to call its action, within its limit.

        Return what is called instead, such as a coroutine function that awaits this call; or the
        same. The first policy is the innermost one.
        """
        return call

    def on_output(self, node: int, step: WorkflowStep, output: Any) -> None:
        """A node is about to succeed with an output. What this raises, it fails with instead."""


def _none(hook: Callable[Concatenate[Any, P], R], /) -> tuple[Callable[P, R], ...]:
    """Return an empty tuple of what a hook is, bound to its policy."""
    return ()


class Hooks:
    """The hooks of a run: of each, those of the policies that override it, in their order.

    They are found once a run, so that a hook which no policy overrides costs nothing.
    """

    on_open = _none(Policy.on_open)
    on_begin = _none(Policy.on_begin)
    on_resume = _none(Policy.on_resume)
    on_watch = _none(Policy.on_watch)
    on_start = _none(Policy.on_start)
    on_close = _none(Policy.on_close)
    on_end = _none(Policy.on_end)
    on_ended = _none(Policy.on_ended)
    on_release = _none(Policy.on_release)
    on_raise = _none(Policy.on_raise)

    on_idle = _none(Policy.on_idle)
    on_back_off = _none(Policy.on_back_off)
    on_stop = _none(Policy.on_stop)
    on_stopped = _none(Policy.on_stopped)
    on_explain = _none(Policy.on_explain)

    on_event = _none(Policy.on_event)
    on_applied = _none(Policy.on_applied)

    on_attempt = _none(Policy.on_attempt)
    on_call = _none(Policy.on_call)
    on_output = _none(Policy.on_output)

    def __init__(self, policies: Iterable[Policy] = ()) -> None:
        for policy in policies:
            for name in policy.overrides:
                setattr(self, name, (*getattr(self, name), getattr(policy, name)))
