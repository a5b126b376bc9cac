"""Finds out which policies act on a step, and in which order, without running anything."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, cast

from asyncflow._core.pipeline.graph import OutputTypes, Plan
from asyncflow._core.pipeline.step import WorkflowStep, inputs_of
from asyncflow._core.running.state import RunState
from asyncflow._kernel.policy import Hooks, NodeHooks, Policy
from asyncflow._kernel.run import Run
from asyncflow._kernel.run_scope import Parts
from asyncflow._policies.durable import Journal, JournalSession, RunPersistence
from asyncflow._policies.policies import policies_of
from asyncflow._runtime.options import RunOptions
from asyncflow._runtime.scope_opening import Request, new_start, open_scope


class ActingPolicies(NamedTuple):
    """The policies that act on the nodes of a step, by the names of their classes."""

    by_hook: dict[str, list[str]]
    """For each hook of nodes that a policy overrides, in the order in which hooks are called."""
    around: list[str]
    """Those that act on the run as a whole."""
    is_plain: bool
    """Whether an attempt has a limit, and nothing else within it."""


class _AnyJournal:
    """Stands in for a journal of asyncflow and its sessions: nothing runs, so none is opened."""

    checkpoint_codec = None

    def _take(self, *args: Any) -> None: ...

    append_note = append_checkpoint = append_cached = cached = on_signal = receive = _take


async def acting_on(plan: Plan, options: RunOptions, step: WorkflowStep) -> ActingPolicies:
    """Return which policies act on a step of a run with these options."""
    names = [name for name in inputs_of(plan.steps) if name not in options.resources]
    types = OutputTypes(plan)
    request = Request("", options.name, plan, types, dict.fromkeys(names), (), fail_fast=True)
    persistence = None
    if options.journal is not None:
        journal, session = cast("Journal", _AnyJournal()), cast("JournalSession", _AnyJournal())
        persistence = RunPersistence(journal, session, types)
    observers = (print,) if options.observers else ()
    state = RunState(plan, max_concurrency=options.max_concurrency, deadline_ms=options.deadline_ms)
    scope = open_scope(request, new_start(request), state, observers, persistence)
    listed = partial(
        policies_of,
        observers=observers,
        resources=options.resources,
        persistence=persistence,
        link=None,
        may_suspend=options.on_wait == "suspend",
    )
    policies: list[Policy] = []

    def noted(parts: Parts) -> list[Policy]:
        policies.extend(listed(parts))
        return policies

    Run(scope, noted)
    hooks = Hooks(policies).of_nodes[step.given]
    by_hook = {
        name: [type(hook.__self__).__name__ for hook in getattr(hooks, name)]
        for name in vars(NodeHooks)
        if name.startswith("on_") and getattr(hooks, name)
    }
    around = [type(policy).__name__ for policy in policies if policy.run_hooks]
    return ActingPolicies(by_hook, around, hooks.is_plain)
