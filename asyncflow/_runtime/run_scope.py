"""What every part of a run needs of it, made once; and how the parts call the run back.

Nothing in a `RunScope` leads back to the run or to one of its parts. An error keeps the frames that
it went through, and these hold parts of the run: so a scope that held one would close a cycle.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from asyncflow._core.checkpoints import Checkpoints
from asyncflow._core.context import RunContext, enter_run, surroundings
from asyncflow._core.graph import Plan
from asyncflow._core.record import record
from asyncflow._core.results import REDACTED_OUTPUT, Interruption
from asyncflow._core.secret_texts import SecretTexts
from asyncflow._core.state import RunState
from asyncflow._runtime.action_data import ActionData
from asyncflow._runtime.asyncio_compat import cancel_requested, clock_of
from asyncflow._runtime.durable import Request, RunPersistence, RunStart
from asyncflow._runtime.observers import Observer

if TYPE_CHECKING:
    from asyncflow._core.errors import RunCancelledError
    from asyncflow._runtime.dispatcher import EventDispatcher
    from asyncflow._runtime.notes import NoteQueue
    from asyncflow._runtime.options import OpenResource
    from asyncflow._runtime.stop_control import StopControl


class Host(Protocol):
    """The run, as its parts call it back."""

    def settled(self, node: int) -> None:
        """The task of a node ends, and how the node ended is reported."""

    def advance(self) -> None:
        """Go on: there is a new node, or room for one, or one has ended without a task."""

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
    resources: Mapping[str, OpenResource]
    """What opens each resource of the run."""
    persistence: RunPersistence | None
    """The run's part of a journal, if it has one."""
    notes: NoteQueue | None
    """Takes what attempts say; ``None`` if nothing receives it."""


@record
class Parts:
    """The run and what it has made, for those that run nodes, or wait for them.

    They lead back to the run. So what gets them ends with it.
    """

    scope: RunScope
    run: Host
    dispatcher: EventDispatcher
    stop_control: StopControl


def open_scope(
    request: Request,
    start: RunStart,
    state: RunState,
    observers: Sequence[Observer],
    resources: Mapping[str, OpenResource],
    persistence: RunPersistence | None,
) -> RunScope:
    """Return the scope of a run that is about to begin, in the task that runs it."""
    run_id, plan = request.run_id, request.plan
    loop, outer = asyncio.get_running_loop(), surroundings()
    # The clock of a run stands still while no process runs it.
    at_ms = 0.0 if start.checkpoint is None else start.checkpoint.at_ms
    now_s = loop.time()
    started_s = now_s - at_ms / 1000
    began_ms, deadline_ms = state.deadlines.began_ms, state.deadlines.deadline_ms
    deadline_s = math.inf
    if deadline_ms is not None:  # a run that waited has used up a part of it
        deadline_s = now_s + (deadline_ms - (at_ms - began_ms)) / 1000
    clock, notes = clock_of(loop), None
    secrets = _secrets_of(start, outer.secrets)
    if observers or (persistence is not None and persistence.takes_notes):
        secrets = secrets or SecretTexts()

        def now_ms() -> float:
            return (clock() - started_s) * 1000

        notes = _notes_of(now_ms, start, observers, persistence, secrets)
    run_context = RunContext(
        run_id,
        plan,
        clock,
        started_s,
        deadline_s,
        extras={},
        cancel_requested=cancel_requested,
        notes=notes,
        secrets=secrets,
        outer_ends_s=now_s + outer.left_s,
        outer=None if notes is not None and notes.takes_logs else outer.notes,
        pools=outer.pools,
        checkpoints=Checkpoints() if persistence is None else persistence.checkpoints(start.saved),
    )
    context = contextvars.copy_context()
    context.run(enter_run, run_context)
    return RunScope(
        run_id=run_id,
        plan=plan,
        start=start,
        state=state,
        run_context=run_context,
        context=context,
        loop=loop,
        live={},
        data=ActionData(plan, start, state),
        resources=resources,
        persistence=persistence,
        notes=notes,
    )


def _notes_of(
    now_ms: Callable[[], float],
    start: RunStart,
    observers: Sequence[Observer],
    persistence: RunPersistence | None,
    secrets: SecretTexts,
) -> NoteQueue:
    """Return what takes the notes of a run that has a journal or observers."""
    from asyncflow._runtime.notes import NoteQueue, log_level_of, wants_prints  # others need none

    levels = [log_level_of(each) for each in observers]
    prints = any(map(wants_prints, observers))
    if persistence is not None:
        levels.append(persistence.logs)
        prints = prints or persistence.prints
    return NoteQueue(
        now_ms,
        secrets=secrets,
        secret=start.event.secret,
        level=min((level for level in levels if level is not None), default=None),
        prints=prints,
    )


def _secrets_of(start: RunStart, outer: SecretTexts | None) -> SecretTexts | None:
    """Return the secrets that a run knows when it starts, or may get to know, if there are any."""
    shown = start.event.inputs if start.checkpoint is None else start.checkpoint.inputs
    hidden = [name for name in start.inputs if shown.get(name) is REDACTED_OUTPUT]
    if not hidden and not start.event.secret and outer is None:
        return None
    secrets = SecretTexts(outer)
    for name in hidden:
        secrets.add(start.inputs[name])
    return secrets
