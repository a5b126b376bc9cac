"""Decides which results of a stored run are still valid when it resumes with a pipeline.

Rules:

1. The result of a step is valid if its fingerprint is unchanged, and the results of all steps that
   it depends on are valid. The fingerprint is the data that the step's action takes, and its
   ``version``. How the step is run (attempts, limits, pools) is no part of it.
2. A valid success is restored. So is a failure for good or a skip, if the run continues where it
   was.
3. A run that had ended, or was stopping, starts afresh: everything that has not succeeded runs.
4. A journal stores no secret output. If a step that runs needs one, the step with that output runs
   again too. Results that came of it before are valid all the same.
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
from asyncflow._core.step_view import StepView
from asyncflow.events import RunResumed

__all__ = [
    "Fingerprints",
    "difference",
    "resume",
]


class Fingerprints(PlanView[tuple[str, str]]):
    """For each step of a plan, the data that its action takes, in words, and its version."""

    __slots__ = ()

    def __getitem__(self, name: str) -> tuple[str, str]:
        step = self._plan.steps[self._plan.index[name]]
        return _data_of(step), step.version


def difference(stored: tuple[str, str], now: tuple[str, str]) -> str | None:
    """Return how two fingerprints of a step differ, dependencies aside; ``None`` if they don't."""
    if stored[1] != now[1]:
        return f"its version is {now[1]!r}, and was {stored[1]!r}"
    if stored[0] != now[0]:
        return f"its action asks for {now[0]}, and asked for {stored[0]}"
    return None


def _data_of(step: WorkflowStep) -> str:
    """Return which data a step's action takes: ``(rows=extract, url)``."""
    source_of = dict(step.parameters)
    taken = [f"{p}={source_of[p]}" if p in source_of else p for p in step.signature.names]
    if step.signature.takes_kwargs and step.depends_on:
        taken += [*sorted({f"{p}={name}" for p, name in step.parameters} - set(taken)), "**"]
    text = f"({', '.join(sorted(taken))})"
    return text if step.map_over is None else f"{text} for each of {step.map_over}"


T = TypeVar("T")


def resume(
    run: StoredRun,
    plan: Plan,
    *,
    bindings: Sequence[Binding],
    conditions: Mapping[int, Binding],
    new_inputs: Collection[str],
    fail_fast: bool,
    wall_time: float,
    decode: Callable[[str, Payload], Any],
) -> tuple[RunResumed, Checkpoint]:
    """Decide which results of a stored run are valid, and resume its replay.

    Args:
        run: The replay of the run, to which the event is applied.
        plan: The pipeline as it is now.
        bindings: Where its actions get their arguments.
        conditions: The same for their ``when``.
        new_inputs: The names of the inputs that the run did not have before.
        fail_fast: Whether a failure stops the run.
        wall_time: The present, in seconds since the epoch.
        decode: Makes a value of the payload of a step's output, or raises `PayloadError`.

    Returns:
        The event that begins the new segment, and the checkpoint that it starts from.

    Raises:
        PayloadError: A valid output can't be decoded.
    """
    known, unfinished = _of_plan(run.settled(), plan), run.unfinished()
    has_failed = any(step.status is StepStatus.FAILED for step in known.values())
    afresh = run.outcome is not None or run.was_stopping or (fail_fast and has_failed)
    valid, outdated = _valid_and_outdated(run, plan, known, new_inputs, afresh=afresh)
    begun = unfinished.keys() | _with_results(known, afresh=afresh)
    event = RunResumed(
        run.started.run_id,
        run.at_ms,
        wall_time,
        DependencyView(plan),
        Fingerprints(plan),
        {name: why for name, why in outdated.items() if name in begun},
        {n: why for n, why in unfinished.items() if n in plan.index and n not in outdated | valid},
        _recalled(plan, valid, _secret(known, outdated), bindings, conditions),
        afresh,
        max_retries=MaxRetriesView(plan),
        secret=secret_steps(plan),
    )
    run.apply(event)
    results = {
        key: _decoded(step.to_result(run.at_ms), key[0], decode, event.secret)
        for key, step in _of_plan(run.settled(), plan).items()
        if _is_restored(key, valid, plan, event.recalled)
    }
    started, pending_attempts = run.started, _of_plan(run.pending_attempts(), plan)
    checkpoint = Checkpoint(
        started.run_id,
        started.wall_time,
        event.at_ms,
        results,
        pending_attempts,
        event.rerun_reasons,
        replay=run,
    )
    return event, checkpoint


def _with_results(known: Mapping[Key, StepView], *, afresh: bool) -> set[str]:
    """Return the steps with a result that can be outdated. In a fresh run a skip can't."""
    skipped = StepStatus.SKIPPED
    return {name for (name, _), one in known.items() if not (afresh and one.status is skipped)}


def _of_plan(known: Mapping[Key, T], plan: Plan) -> dict[Key, T]:
    """Return what is known of the plan's steps and of their items."""
    return {key: each for key, each in known.items() if key[0] in plan.index}


def _decoded(
    result: StepResult,
    step: str,
    decode: Callable[[str, Payload], Any],
    secret: Collection[str],
) -> StepResult:
    """Return a result with its outputs decoded."""
    try:
        decoded = with_outputs(result, decode, step)
    except PayloadError as error:
        raise PayloadError(
            error.subject,
            f"{error.problem}; nothing has run: make its type or the journal fit, or give step "
            f"{step!r} another version so that it runs again",
        ) from error
    return as_secret(decoded) if step in secret else decoded


def _valid_and_outdated(
    run: StoredRun,
    plan: Plan,
    known: Mapping[Key, StepView],
    new_inputs: Collection[str],
    *,
    afresh: bool,
) -> tuple[dict[str, None], dict[str, str]]:
    """Return the steps with a valid result, and the outdated ones, each with why."""
    valid: dict[str, None] = {}
    outdated: dict[str, str] = {}
    shape, fingerprints = DependencyView(plan), Fingerprints(plan)
    for name, needed in shape.items():
        if name not in run.fingerprints:
            continue  # a new step
        why = difference(run.fingerprints[name], fingerprints[name])
        step = known.get((name, None))
        if why is None and set(needed) != set(run.dependencies[name]):
            why = f"it depends on {_listed(needed)}, and depended on " + _listed(
                run.dependencies[name]
            )
        added = [each for each in _parameters(plan, name) if each in new_inputs]
        if why is None and added:
            why = f"the run did not have the input {added[0]!r} before"
        if why is None:
            again = next((other for other in needed if other not in valid), None)
            why = None if again is None else f"step {again!r}, which it depends on, runs again"
        if why is not None:
            outdated[name] = why
        elif step is not None and (step.status is StepStatus.SUCCESS or not afresh):
            valid[name] = None
    return valid, outdated


def _parameters(plan: Plan, name: str) -> tuple[str, ...]:
    """Return the parameters of a step's action; none of them is both dependency and input."""
    return plan.steps[plan.index[name]].signature.names


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "nothing"


def _secret(known: Mapping[Key, StepView], outdated: Mapping[str, str]) -> set[str]:
    """Return the steps with a valid secret output, of their own or of an item."""
    secret = {
        name
        for (name, _), step in known.items()
        if step.secret and step.status is StepStatus.SUCCESS
    }
    return secret - outdated.keys()


def _recalled(
    plan: Plan,
    valid: Mapping[str, None],
    secret: Collection[str],
    bindings: Sequence[Binding],
    conditions: Mapping[int, Binding],
) -> tuple[str, ...]:
    """Return the steps with secret results that steps which run need."""
    recalled, needed = [], set()
    for index in reversed(plan.order):
        step = plan.steps[index]
        if index in needed and step.name in secret:
            recalled.append(step.name)
        elif step.name in valid:
            continue
        for _, source in (*bindings[index], *conditions.get(index, ())):
            if source == ITEM:
                needed.add(plan.index[step.map_over or ""])
            elif isinstance(source, int):
                needed.add(source)
    return tuple(reversed(recalled))


def _is_restored(key: Key, valid: Mapping[str, None], plan: Plan, recalled: Sequence[str]) -> bool:
    """Whether a valid result is restored."""
    name, item = key
    if name in recalled:
        return False
    if item is None or name in valid:
        return item is None and name in valid
    # Its items came from an output that may differ now.
    return plan.steps[plan.index[name]].map_over not in recalled
