"""What of a stored run still holds when it is resumed, perhaps with a changed pipeline.

Rules:

1. What was kept of a step holds if its fingerprint is what it was, and what was kept of all steps
   that it depends on holds too.
2. A success that holds is taken over. So is what had failed for good or was skipped, as long as
   the run goes on where it stood still.
3. A run that had ended, or was told to stop, does not go on: it begins afresh with all that has
   not succeeded.
4. A secret output is in no journal. If a step that runs needs it, its step runs again too; what
   has come of it before holds all the same.

By what a stored result is told to be still that of its step.

The fingerprint of a step is its name, which data its action asks for, its ``version``, and the
fingerprints of its dependencies. How it is run (attempts, limits, pools) is no part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from asyncflow._core.errors import PayloadError
from asyncflow._core.graph import (
    ITEM,
    Binding,
    DependencyView,
    MaxRetriesView,
    Plan,
    PlanView,
    secret_steps,
)
from asyncflow._core.replay import StoredRun, as_secret, with_outputs
from asyncflow._core.results import Payload, StepResult, StepStatus
from asyncflow._core.step import WorkflowStep
from asyncflow._core.step_runs import Checkpoint, Key
from asyncflow.events import RunResumed

__all__ = [
    "Fingerprints",
    "difference",
    "resume",
]


class Fingerprints(PlanView[tuple[str, str]]):
    """For each step of a plan, which data its action asks for, in words, and its version."""

    __slots__ = ()

    def __getitem__(self, name: str) -> tuple[str, str]:
        step = self._plan.steps[self._plan.index[name]]
        return _data_of(step), step.version


def difference(stored: tuple[str, str], now: tuple[str, str]) -> str | None:
    """Return in which way two fingerprints of a step differ, dependencies aside, if they do."""
    if stored[1] != now[1]:
        return f"its version is {now[1]!r}, and was {stored[1]!r}"
    if stored[0] != now[0]:
        return f"its action asks for {now[0]}, and asked for {stored[0]}"
    return None


def _data_of(step: WorkflowStep) -> str:
    """Return which data a step's action asks for: ``(rows=extract, url)``."""
    source_of = dict(step.parameters)
    asked = [f"{p}={source_of[p]}" if p in source_of else p for p in step.signature.names]
    if step.signature.takes_kwargs and step.depends_on:
        asked += [*sorted({f"{p}={name}" for p, name in step.parameters} - set(asked)), "**"]
    text = f"({', '.join(sorted(asked))})"
    return text if step.map_over is None else f"{text} for each of {step.map_over}"


T = TypeVar("T")


def resume(
    story: StoredRun,
    plan: Plan,
    *,
    bindings: Sequence[Binding],
    conditions: Mapping[int, Binding],
    new_inputs: Collection[str],
    fail_fast: bool,
    wall_time: float,
    decode: Callable[[str, Payload], Any],
) -> tuple[RunResumed, Checkpoint]:
    """Decide what of a stored run holds.

    Args:
        story: The run so far. It is told that the run goes on.
        plan: The pipeline as it is now.
        bindings: Where its actions get their arguments.
        conditions: The same for their ``when``.
        new_inputs: The names of the inputs that the run did not have before.
        fail_fast: Whether a failure stops the run.
        wall_time: Now, in seconds since the epoch.
        decode: Makes a value of the payload of a step's output, or raises `PayloadError`.

    Returns:
        What tells that the run goes on, and what it has behind it.

    Raises:
        PayloadError: An output that holds can't be read.
    """
    known, unfinished = _of_plan(story.known(), plan), story.unfinished()
    has_failed = any(result.status is StepStatus.FAILED for result in known.values())
    afresh = story.outcome is not None or story.was_stopping or (fail_fast and has_failed)
    held, outdated = _what_holds(story, plan, known, new_inputs, afresh=afresh)
    begun = unfinished.keys() | _with_results(known, afresh=afresh)
    event = RunResumed(
        story.started.run_id,
        story.at_ms,
        wall_time,
        DependencyView(plan),
        Fingerprints(plan),
        {name: why for name, why in outdated.items() if name in begun},
        {n: why for n, why in unfinished.items() if n in plan.index and n not in outdated | held},
        _recalled(plan, held, _secret(known, outdated), bindings, conditions),
        afresh,
        max_retries=MaxRetriesView(plan),
        secret=secret_steps(plan),
    )
    story.apply(event)
    results = {
        key: _decoded(result, key[0], decode, event.secret)
        for key, result in _of_plan(story.known(), plan).items()
        if _is_taken_over(key, held, plan, event.recalled)
    }
    started, pending_attempts = story.started, _of_plan(story.pending_attempts(), plan)
    checkpoint = Checkpoint(
        started.run_id,
        started.wall_time,
        event.at_ms,
        results,
        pending_attempts,
        event.rerun_reasons,
    )
    return event, checkpoint


def _with_results(known: Mapping[Key, StepResult], *, afresh: bool) -> set[str]:
    """Return the steps that have results to be outdated. In a fresh run no skip is one."""
    skipped = StepStatus.SKIPPED
    return {name for (name, _), one in known.items() if not (afresh and one.status is skipped)}


def _of_plan(known: Mapping[Key, T], plan: Plan) -> dict[Key, T]:
    """Return what is known of the steps that there are now, and of their items."""
    return {key: each for key, each in known.items() if key[0] in plan.index}


def _decoded(
    result: StepResult,
    step: str,
    decode: Callable[[str, Payload], Any],
    secret: Collection[str],
) -> StepResult:
    """Return a result with its outputs. What was done is not done again because of that alone."""
    try:
        decoded = with_outputs(result, decode, step)
    except PayloadError as error:
        raise PayloadError(
            error.subject,
            f"{error.problem}; nothing has run: let its type and the journal be such that it can "
            f"be read, or give step {step!r} another version, so that it runs again",
        ) from error
    return as_secret(decoded) if step in secret else decoded


def _what_holds(
    story: StoredRun,
    plan: Plan,
    known: Mapping[Key, StepResult],
    new_inputs: Collection[str],
    *,
    afresh: bool,
) -> tuple[dict[str, None], dict[str, str]]:
    """Return the steps whose result holds, and those of which nothing holds, each with why."""
    held: dict[str, None] = {}
    outdated: dict[str, str] = {}
    shape, fingerprints = DependencyView(plan), Fingerprints(plan)
    for name, needed in shape.items():
        if name not in story.fingerprints:
            continue  # it is new
        why = difference(story.fingerprints[name], fingerprints[name])
        result = known.get((name, None))
        if why is None and set(needed) != set(story.dependencies[name]):
            why = f"it depends on {_listed(needed)}, and depended on " + _listed(
                story.dependencies[name]
            )
        added = [each for each in _asked_for(plan, name) if each in new_inputs]
        if why is None and added:
            why = f"the run did not have the input {added[0]!r} before"
        if why is None:
            again = next((other for other in needed if other not in held), None)
            why = None if again is None else f"step {again!r}, which it depends on, runs again"
        if why is not None:
            outdated[name] = why
        elif result is not None and (result.status is StepStatus.SUCCESS or not afresh):
            held[name] = None
    return held, outdated


def _asked_for(plan: Plan, name: str) -> tuple[str, ...]:
    """Return the parameters of a step's action; no dependency has the name of an input."""
    return plan.steps[plan.index[name]].signature.names


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "nothing"


def _secret(known: Mapping[Key, StepResult], outdated: Mapping[str, str]) -> set[str]:
    """Return the steps of whose results that hold, or of whose items' results, one is secret."""
    return {name for (name, _), result in known.items() if result.secret} - outdated.keys()


def _recalled(
    plan: Plan,
    held: Mapping[str, None],
    secret: Collection[str],
    bindings: Sequence[Binding],
    conditions: Mapping[int, Binding],
) -> tuple[str, ...]:
    """Return the steps whose secret results are not taken over, because what runs needs them."""
    recalled, needed = [], set()
    for index in reversed(plan.order):
        step = plan.steps[index]
        if index in needed and step.name in secret:
            recalled.append(step.name)
        elif step.name in held:
            continue
        for _, source in (*bindings[index], *conditions.get(index, ())):
            if source == ITEM:
                needed.add(plan.index[step.map_over or ""])
            elif isinstance(source, int):
                needed.add(source)
    return tuple(reversed(recalled))


def _is_taken_over(key: Key, held: Mapping[str, None], plan: Plan, recalled: Sequence[str]) -> bool:
    """Whether a result that holds is used as it is."""
    name, item = key
    if name in recalled:
        return False
    if item is None or name in held:
        return item is None and name in held
    # Its items are those of an output that may be another one now.
    return plan.steps[plan.index[name]].map_over not in recalled
