"""What every part of a run needs of it, made once; and how the parts call the run back.

Nothing in a `RunScope` leads back to the run or to one of its parts. An error keeps the frames that
it went through, and these hold parts of the run: so a scope that held one would close a cycle.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Collection, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from asyncflow._core.history.results import Interruption, Key, Payload
from asyncflow._core.pipeline.graph import Bindings, Plan
from asyncflow._core.record import record
from asyncflow._core.running.context import RunContext
from asyncflow._core.running.state import RunState
from asyncflow.events import ResultReused, RunResumed, RunStarted

if TYPE_CHECKING:
    from asyncflow._core.errors import RunCancelledError
    from asyncflow._core.history.resume import Snapshot
    from asyncflow._kernel.action_data import ActionData
    from asyncflow._kernel.dispatcher import EventDispatcher
    from asyncflow._kernel.stop_control import StopControl


class Host(Protocol):
    """The run, as its parts call it back."""

    def settled(self, node: int) -> None:
        """The task of a node ends, and how the node ended is reported."""

    def advance(self) -> None:
        """Go on: there is a new node, or room for one, or one has ended without a task.

        It enters the context of the run, so a callback must not have that as its own, but a copy.
        """

    def fail(self, node: int, failure: Exception) -> None:
        """End a node that fails for good while no attempt of it runs, unless it is rescued."""

    def park(self, node: int) -> None:
        """Let a node that is about to start wait without a task, until the state queues it."""

    def start_task(
        self, coroutine: Coroutine[Any, Any, None], **options: Any
    ) -> asyncio.Task[None]:
        """Start a task of a policy in the group of the run."""
        ...

    def interrupt(self, error: BaseException | None, why: Interruption) -> None:
        """Stop the run, and raise the error, if there is one and the run has no other."""

    def broken(self, bug: BaseException, reason: str) -> None:
        """Do the same for a bug of asyncflow. The state may be wrong from here on."""

    def backs_off(self) -> None:
        """A node is about to wait for its next attempt."""

    def cancel(self, error: RunCancelledError, why: Interruption) -> None:
        """Stop the run, which raises this error in the end, unless all of its steps have ended."""

    def wind_down(self, error: RunCancelledError, why: Interruption) -> None:
        """Do the same, but let the attempts end that are running."""

    def stop_soon(self) -> None:
        """Ask the nodes to stop, from the next turn on: the state has a reason now."""

    def hold(self) -> None:
        """Start no node yet."""

    def let_start(self) -> None:
        """Start nodes after all."""

    def is_idle(self) -> bool:
        """Whether nothing runs, and nothing may start."""
        ...

    def explain(self) -> str:
        """Return what explains, beside its reason, that the run stops now; often nothing."""
        ...


class RunStart(NamedTuple):
    """How a run starts or resumes."""

    inputs: Mapping[str, Any]
    bindings: Bindings
    event: RunStarted | RunResumed
    stored_event: RunStarted | RunResumed | None = None
    """The event as the journal stores it."""
    snapshot: Snapshot | None = None
    reused: Iterable[tuple[ResultReused, ResultReused]] = ()
    """What a rerun reuses: the events that follow, each with the one that the journal stores.
    They can be taken once."""
    saved: Mapping[Key, Payload] = {}
    """The checkpoints that earlier processes left and that are valid."""
    called: Mapping[Key, Collection[str]] = {}
    """The names of the calls of which earlier processes left what they returned, as far as that is
    valid."""
    missing: Mapping[str, str | None] = {}
    """The steps without which a run continues only if it may, each with the nearest of those that
    the pipeline has."""
    void: Collection[Key] = ()
    """The steps and items whose stored checkpoints are not valid any more."""


@record
class RunScope:
    """What the parts of a run share."""

    run_id: str
    plan: Plan
    start: RunStart
    """How the run begins."""
    state: RunState
    run_context: RunContext
    """What attempts can ask about the run."""
    context: contextvars.Context
    """In which attempts, timers and conditions start."""
    loop: asyncio.AbstractEventLoop
    live: dict[int, asyncio.Task[Any]]
    """The task of each node that was started and has not ended."""
    data: ActionData
    """What actions and conditions are called with."""


@record
class Parts:
    """The run and what it has made, for those that run nodes, or wait for them.

    They lead back to the run. So what gets them ends with it.
    """

    scope: RunScope
    run: Host
    dispatcher: EventDispatcher
    stop_control: StopControl
