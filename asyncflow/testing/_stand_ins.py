"""Steps whose actions are replaced: which of a run they are, and what they become.

Rules:

1. A step keeps all of its options but two: its stand-in runs in the event loop of this process,
   whatever ``runs_in`` and ``engine`` say, and whatever engine the run has.
2. A stand-in receives what the action would receive, the defaults of its parameters included.
3. A step is recognized by its name and its action, in whatever runs it: another pipeline may
   include it, so its name may have a prefix, and a function may make the action anew.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from functools import wraps
from operator import is_
from typing import Any, TypeAlias

from asyncflow._core.arguments import Upstream, function_of, python_signature
from asyncflow._core.pipeline.annotations import output_type, parameter_types
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._core.record import replace
from asyncflow._runtime.orchestrator import Orchestrator
from asyncflow._runtime.pipeline import Pipeline
from asyncflow._runtime.planned_pipeline import StepReplacement

AnyPipeline: TypeAlias = Pipeline | Orchestrator | Iterable[WorkflowStep]

StandIn: TypeAlias = Callable[[WorkflowStep, dict[str, Any]], Awaitable[Any]]
"""Is called instead of the action of a step, with the step and its arguments."""


def orchestrator_of(pipeline: AnyPipeline) -> Orchestrator:
    """Return a pipeline, planned."""
    if isinstance(pipeline, Orchestrator):
        return pipeline
    return pipeline.orchestrator if isinstance(pipeline, Pipeline) else Orchestrator(pipeline)


def replacement(
    stand_ins: Iterable[tuple[WorkflowStep, StandIn]], is_on: Callable[[], bool]
) -> StepReplacement:
    """Return what puts stand-ins in the place of steps, in all that runs them.

    ``is_on`` says whether they are replaced in a run that starts now.
    """
    # With its step: the id of an action tells which it is, as long as no other object has that id.
    wanted = {(step.name, _origin(step.action)): (step, stand_in) for step, stand_in in stand_ins}
    made: dict[int, tuple[WorkflowStep, WorkflowStep]] = {}

    def replaced(step: WorkflowStep) -> WorkflowStep:
        if id(step) not in made:
            origin, name = _origin(step.action), step.name
            while (name, origin) not in wanted and "/" in name:
                name = name.partition("/")[2]
            found = wanted.get((name, origin))
            made[id(step)] = step, step if found is None else stand_in_step(step, found[1])
        return made[id(step)][1]

    def replace_steps(steps: tuple[WorkflowStep, ...]) -> tuple[WorkflowStep, ...] | None:
        if not is_on():
            return None
        others = tuple(map(replaced, steps))
        return None if all(map(is_, others, steps)) else others

    return replace_steps


def _origin(action: object) -> object:
    """Return what identifies an action: its code, which is the same in all functions that it makes.

    An action without code, such as an object that can be called, identifies itself.
    """
    function = None
    while function is not action:
        function = action
        action = inspect.unwrap(function_of(action))  # type: ignore[arg-type]
    return getattr(function, "__code__", None) or id(function)


def stand_in_step(step: WorkflowStep, stand_in: StandIn) -> WorkflowStep:
    """Return a step that calls something else than its action."""
    defaults = _defaults(step.action)

    @wraps(step.action)
    async def action(**arguments: Any) -> Any:
        return await stand_in(step, defaults | arguments)

    action.__signature__ = _signature_of(step)  # type: ignore[attr-defined]
    action.__annotations__ = parameter_types(step, step.signature.names)
    action.__annotations__["return"] = output_type(step)  # a journal encodes the output by it
    other = replace(step, action=action, runs_in="loop", engine="local")
    object.__setattr__(other, "signature", step.signature)  # it knows what a partial has bound
    return other


def _signature_of(step: WorkflowStep) -> inspect.Signature:
    """Return the parameters that a run may give, without those that a partial has bound."""
    accepts = step.signature
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if name in accepts.required else None,
        )
        for name in accepts.names
    ]
    if accepts.takes_kwargs:
        parameters.append(inspect.Parameter("outputs", inspect.Parameter.VAR_KEYWORD))
    return inspect.Signature(parameters)


def _defaults(action: Callable[..., Any]) -> dict[str, Any]:
    try:
        parameters = python_signature(action).parameters.values()
    except ValueError:  # some callables written in C have none
        return {}
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.default is not parameter.empty and type(parameter.default) is not Upstream
    }
