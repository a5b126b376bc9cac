"""What a run is asked for, how a new one starts, and its scope: clock, deadline, context, notes."""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ref

from asyncflow._core.history.log import StartedAttempt
from asyncflow._core.history.results import REDACTED_OUTPUT, Key
from asyncflow._core.pipeline.graph import OutputTypes, Plan, refuse_shared_inputs
from asyncflow._core.running.checkpoints import Checkpoints
from asyncflow._core.running.context import RunContext, enter_run, surroundings
from asyncflow._core.running.state import RunState
from asyncflow._kernel.action_data import ActionData
from asyncflow._kernel.asyncio_compat import cancel_requested, clock_of
from asyncflow._kernel.run_scope import RunScope, RunStart
from asyncflow._runtime.options import NO_ATTRIBUTES
from asyncflow.events import RunResumed, RunStarted

if TYPE_CHECKING:
    from asyncflow._core.arguments import AttributeValue
    from asyncflow._core.running.secret_texts import SecretTexts
    from asyncflow._policies.calls import NamedCalls
    from asyncflow._policies.durable import Journal, RunPersistence
    from asyncflow._policies.notes import NoteQueue
    from asyncflow._policies.observers import Observer


class Request(NamedTuple):
    """The run that a caller asks for."""

    run_id: str
    pipeline: str
    """The name of the pipeline; empty if it has none."""
    plan: Plan
    types: OutputTypes
    inputs: Mapping[str, Any]
    secret_inputs: Collection[str]
    fail_fast: bool
    parent: str = ""
    """The run one of whose steps asks for it; empty if none does."""
    parent_step: str = ""
    """That step."""
    known_steps: Collection[str] = ()
    """The steps of the pipeline, even those that targets leave out."""
    allows_missing_steps: bool = False
    """Whether the run continues without steps that it would still run and that are not known."""
    stays: bool = False
    """Whether the run stays in its process while it waits for signals."""
    clock: Callable[[], float] = time.time
    """The wall clock, which any thread may ask."""
    label: str = ""
    attributes: Mapping[str, AttributeValue] = NO_ATTRIBUTES
    key: str | None = None


def new_start(request: Request) -> RunStart:
    """Return how a new run starts.

    Raise `ValueError` if nothing provides a parameter of an action, or two things do, and
    `TypeError` if several steps would share the items of an input.
    """
    plan, inputs = request.plan, request.inputs
    event = RunStarted(
        request.run_id,
        request.clock(),
        dict(plan.depends_on),  # observers receive it, and other runs have the plan too
        request.pipeline,
        inputs=redacted(inputs, request.secret_inputs),
        max_retries=dict(plan.max_retries),
        map_over=dict(plan.map_over),
        secret=plan.secret,
        signals={plan.steps[at].name: {} for at in sorted(plan.signals)},
        signal_deadlines=plan.signal_deadlines(),
        parent=request.parent,
        parent_step=request.parent_step,
        label=request.label,
        attributes=dict(request.attributes),  # as with the plan
        key=request.key or "",
    )
    bindings = plan.bindings(inputs.keys())
    if "map_over" in plan.given:
        refuse_shared_inputs(plan, bindings, inputs)
    return RunStart(inputs, bindings, event)


def open_scope(
    request: Request,
    start: RunStart,
    state: RunState,
    observers: Sequence[Observer],
    persistence: RunPersistence | None,
) -> RunScope:
    """Return the scope of a run that is about to begin, in the task that runs it."""
    run_id, plan = request.run_id, request.plan
    loop, outer = asyncio.get_running_loop(), surroundings()
    # The clock of a run stands still while no process runs it.
    at_ms = 0.0 if start.snapshot is None else start.snapshot.at_ms
    now_s = loop.time()
    started_s = now_s - at_ms / 1000
    began_ms, deadline_ms = state.deadlines.began_ms, state.deadlines.deadline_ms
    deadline_s = math.inf
    if deadline_ms is not None:  # a run that waited has used up a part of it
        deadline_s = now_s + (deadline_ms - (at_ms - began_ms)) / 1000
    clock, notes = clock_of(loop), None
    secrets = _secrets_of(start, outer.secrets)
    if observers or (persistence is not None and persistence.takes_notes):
        from asyncflow._core.running.secret_texts import SecretTexts  # as in `_secrets_of`

        secrets = secrets or SecretTexts()

        def now_ms() -> float:
            return (clock() - started_s) * 1000

        notes = _notes_of(now_ms, start, observers, persistence, secrets)
    journal = None if persistence is None else persistence.journal
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
        # Contexts that outlive the run hold it, so it must not hold the state.
        open_calls=partial(_open_calls, loop, ref(state), journal, start.called),
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
    )


def _open_calls(
    loop: asyncio.AbstractEventLoop,
    state: ref[RunState],
    journal: Journal | None,
    stored: Mapping[Key, Collection[str]],
    run: RunContext,
    running: StartedAttempt,
) -> NamedCalls | None:
    """Return what makes the calls of the step, or item, of an attempt; ``None`` in a thread."""
    if asyncio._get_running_loop() is not loop:
        return None
    from asyncflow._policies.calls import NamedCalls  # few runs make any

    step, item = running[0], running[4]
    calls: NamedCalls | None = run.checkpoints.calls.get((step, item))
    if calls is None:
        calls = NamedCalls(state, run, journal, (step, item), stored.get((step, item), ()))
        kept: dict[Key, NamedCalls] = run.checkpoints.calls
        # The plain lane forgets nothing of a node, so each new one drops old ones in turn.
        for key in [*islice(kept, 2)]:
            if not (oldest := kept.pop(key)).has_ended:
                kept[key] = oldest
        if not calls.has_ended:  # else it refuses them all
            kept[step, item] = calls
    return calls


def _notes_of(
    now_ms: Callable[[], float],
    start: RunStart,
    observers: Sequence[Observer],
    persistence: RunPersistence | None,
    secrets: SecretTexts,
) -> NoteQueue:
    """Return what takes the notes of a run that has a journal or observers."""
    from asyncflow._policies.notes import NoteQueue, log_level_of, wants_prints  # others need none

    levels = [log_level_of(each) for each in observers]
    prints = any(map(wants_prints, observers))
    if persistence is not None:
        levels.append(persistence.logs)
        prints = prints or persistence.prints
    segment, most = 1, None
    if isinstance(start.event, RunResumed) and start.snapshot is not None:
        segment = len(start.snapshot.replay.segments)
    if persistence is not None and persistence.streams:
        most = persistence.journal.max_stream_bytes  # type: ignore[attr-defined]  # it streams
    return NoteQueue(
        now_ms,
        secrets=secrets,
        secret=start.event.secret,
        level=min((level for level in levels if level is not None), default=None),
        prints=prints,
        segment=segment,
        max_stream_bytes=most,
    )


def _secrets_of(start: RunStart, outer: SecretTexts | None) -> SecretTexts | None:
    """Return the secrets that a run knows when it starts, or may get to know, if there are any."""
    shown = start.event.inputs if start.snapshot is None else start.snapshot.inputs
    hidden = [name for name in start.inputs if shown.get(name) is REDACTED_OUTPUT]
    if not hidden and not start.event.secret and outer is None:
        return None
    from asyncflow._core.running.secret_texts import SecretTexts  # few runs know one

    secrets = SecretTexts(outer)
    for name in hidden:
        secrets.add(start.inputs[name])
    return secrets


def redacted(inputs: Mapping[str, Any], secret: Collection[str]) -> Mapping[str, Any]:
    """Return inputs with a stand-in for each secret one."""
    if not secret:
        return inputs
    return {name: REDACTED_OUTPUT if name in secret else inputs[name] for name in inputs}
