"""Which policies a run has, in the order in which they act.

This is the only place that knows them all, and which of them know each other. Modules that few runs
need are loaded here, when one does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from asyncflow._core.running.context import is_within_run
from asyncflow._kernel.policy import Policy
from asyncflow._kernel.run_scope import Parts
from asyncflow._policies.loop_monitor import LoopBlocks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asyncflow._core.pipeline.graph import Plan
    from asyncflow._core.pipeline.step import OpenResource
    from asyncflow._policies.durable import CheckpointSession, RunPersistence
    from asyncflow._policies.notes import NoteQueue
    from asyncflow._policies.observers import Observer, Observing
    from asyncflow._policies.permits import Permits
    from asyncflow._policies.resources import Resources
    from asyncflow._policies.run_link import RunLink
    from asyncflow._policies.waits import Waits

_WORKERS = frozenset({"runs_in", "engine"})
_NEED_PERMITS = _WORKERS | {"cache_ms", "pool"}


def prepare(plan: Plan, max_concurrency: int | None) -> None:
    """Import what attempts wait for, and where they run, before a run's time begins to count."""
    if max_concurrency is not None or not _NEED_PERMITS.isdisjoint(plan.given):
        from asyncflow._policies.permits import prepare_workers

        prepare_workers(plan)


def policies_of(
    parts: Parts,
    *,
    observers: tuple[Observer, ...],
    resources: Mapping[str, OpenResource],
    persistence: RunPersistence | None,
    link: RunLink | None,
    may_suspend: bool,
) -> list[Policy]:
    """Return the policies of a run that is about to begin.

    ``observers`` are its own, ``resources`` is what opens each of its resources, ``persistence``
    its part of a journal, and ``link`` leads to its handle, if it has one. With ``may_suspend``, it
    may end its segment while it waits for signals.
    """
    scope, found = parts.scope, list[Policy]()
    given, add = scope.plan.given, found.append

    # Waits close before the resources: a step whose signal came meanwhile would start without them.
    # And they come before crashes are counted: what waits runs nothing, whatever it was before.
    waits: Waits | None = None
    if "signal" in given:
        from asyncflow._policies.waits import Waits

        waits = Waits(parts, persistence, may_suspend=may_suspend)
        add(waits)
    opened: Resources | None = None
    if resources:
        from asyncflow._policies.resources import Resources

        opened = Resources(parts, resources, waits)
        add(opened)
    if scope.state.deadlines.deadline_ms is not None:
        from asyncflow._policies.run_deadline import RunDeadline

        deadline = RunDeadline(parts, opened)
        add(deadline)
        if waits is not None:
            waits.deadline = deadline

    # Before the journal: what a step says, and what it has saved, is stored with its end. And a
    # secret output is known before what says it is passed on.
    if scope.run_context.secrets is not None:
        from asyncflow._policies.secret_outputs import SecretOutputs

        add(SecretOutputs(scope.run_context.secrets))
    observing: Observing | None = None
    notes = cast("NoteQueue | None", scope.run_context.notes)
    if observers:
        from asyncflow._policies.observers import Observing

        takes_logs = notes is not None and notes.takes_logs
        observing = Observing(parts.run, observers, notes if takes_logs else None)
    if notes is not None:
        from asyncflow._policies.notes import Noted

        add(Noted(scope, notes, persistence, observing, link))
    if persistence is not None:
        from asyncflow._policies.persisting import Persisting

        if persistence.takes_checkpoints:
            from asyncflow._policies.checkpoint_writer import CheckpointWriter

            # Before what is reused: void checkpoints go in the turn of the run's first event.
            add(CheckpointWriter(scope, cast("CheckpointSession", persistence.session)))
        # Before engines: an attempt is submitted only when its start is stored.
        add(Persisting(scope, parts.run, persistence))
        if "cache_ms" in given and persistence.caches:
            from asyncflow._policies.caching import StepCache

            # After the journal, which may have stored a result by now that other runs wait for;
            # and before the other gates: a step that reuses a result needs nothing else.
            add(StepCache(parts, persistence))
    if scope.start.snapshot is not None:
        from asyncflow._policies.resumption import EarlierResults

        add(EarlierResults(parts, persistence))

    # After the journal: nothing is reported that was not stored.
    if observing is not None:
        from asyncflow._policies.observers import AttemptEntries, entry_of

        add(observing)
        if any(map(entry_of, observers)):
            add(AttemptEntries(observing))

    # After the resources: a nested run that drains stands still when these are closed.
    if link is not None or _is_nested():
        from asyncflow._policies.draining import Draining

        draining = Draining(parts, waits, opened)
        add(draining)
        if link is not None:
            from asyncflow._policies.run_link import Linked

            add(Linked(parts, link, draining, waits, persistence))

    if "when" in given:
        from asyncflow._policies.conditions import Conditions

        add(Conditions(parts))
    permits: Permits | None = None
    if scope.state.queue.is_limited:
        from asyncflow._policies.permits import Permits

        permits = Permits(parts)
        if any(scope.plan.steps[at].measures for at in scope.plan.having("pool")):
            from asyncflow._policies.pool_needs import PoolNeeds

            add(PoolNeeds(parts, permits))
    if "map_over" in given:
        from asyncflow._policies.mapping import Maps

        adding = None if permits is None else permits.adding
        maps = Maps(parts, adding, needs_order=persistence is not None)
        add(maps)
        if permits is not None:
            permits.on_larger = maps.look_again

    # The innermost call comes first: a heartbeat is counted around the worker that gives it. And
    # the gate of threads comes before that of slots, which no waiting node should hold.
    if "run_if" in given:
        from asyncflow._policies.cleanups import CleanUps

        add(CleanUps(parts))
    if not _WORKERS.isdisjoint(given):
        from asyncflow._policies.worker_steps import WorkerSteps

        workers = WorkerSteps(parts, permits)
        add(workers)
        if "engine" in given:
            from asyncflow._policies.remote_attempt import RemoteAttempts

            add(RemoteAttempts(parts, workers))
    if "heartbeat_ms" in given:
        from asyncflow._policies.heartbeats import HeartbeatLimits

        add(HeartbeatLimits(parts))
    if permits is not None:
        add(permits)  # the last gate: what it lets an attempt hold, the attempt uses at once

    if "fallback" in given:
        from asyncflow._policies.fallbacks import Fallbacks

        add(Fallbacks())
    add(LoopBlocks(parts))
    return found


def _is_nested() -> bool:
    if not is_within_run():
        return False
    from asyncflow._policies.nested_runs import is_nested

    return is_nested()
