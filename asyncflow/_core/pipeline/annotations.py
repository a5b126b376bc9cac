"""Types of outputs and inputs, from the annotations of actions.

An annotation that can't be evaluated, or that is missing, means `Any`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any, TypedDict, get_args, get_origin, get_type_hints

from asyncflow._core.pipeline.graph import ForwardOutputs
from asyncflow._core.pipeline.step import WorkflowStep, inputs_mapped_over, taker_of

if sys.version_info >= (3, 14):
    from annotationlib import Format, get_annotations


def output_type(step: WorkflowStep) -> Any:
    """Return the type of a step's output; for a mapped step, that of one item."""
    if step.signal is not None:
        return step.signal.type
    if isinstance(step.action, ForwardOutputs):
        return _type_of_outputs(step.action)
    if step.runs_in != "loop":
        return _annotations_of(_function_of(step.action)).get("return", Any)
    return awaited_type(step.action)


def awaited_type(action: Callable[..., Any]) -> Any:
    """Return the type of what awaiting a call of an async callable returns."""
    function = _function_of(action)
    annotation = _annotations_of(function).get("return", Any)
    return annotation if inspect.iscoroutinefunction(function) else _awaited(annotation)


def input_types(steps: tuple[WorkflowStep, ...], names: Mapping[str, object]) -> dict[str, Any]:
    """Return the type of each run input: that of the first annotated parameter that takes it.

    One that takes each item of the input has the type of the items of a list. ``steps`` are those
    of a whole pipeline.
    """
    types: dict[str, Any] = {}
    over_inputs = inputs_mapped_over(steps)
    by_item = [(step, step.map_over or "") for step in steps if step.map_over in over_inputs]
    for step in steps:
        taken = {*step.signature.names}
        if step.map_over in over_inputs:
            taken -= _takers_of_items(step)
        wanted = [name for name in names if name in taken and types.get(name, Any) is Any]
        types |= parameter_types(step, wanted)
    list_of: Any = list  # as below
    for step, source in by_item:
        if source in names and types.get(source, Any) is Any:
            of_items = parameter_types(step, _takers_of_items(step)).values()
            types[source] = list_of[next((each for each in of_items if each is not Any), Any)]
    return {name: types.get(name, Any) for name in names}


def parameter_types(step: WorkflowStep, names: Collection[str]) -> dict[str, Any]:
    """Return the types of these parameters of what takes the data of a step."""
    if not names:
        return {}
    annotations = _annotations_of(_function_of(taker_of(step.action)))
    return {name: annotations.get(name, Any) for name in names}


def _takers_of_items(step: WorkflowStep) -> set[str]:
    """Return the parameters that receive each item of what a step is mapped over."""
    renamed = {parameter for parameter, name in step.parameters if name == step.map_over}
    return renamed or {step.map_over or ""}


def _type_of_outputs(action: ForwardOutputs) -> Any:
    # Type checkers know these as annotations, not as values that make types.
    list_of: Any = list
    dict_of: Any = TypedDict
    types = {
        name: output_type(step) if step.map_over is None else list_of[output_type(step)]
        for name, step in action.steps.items()
    }
    return next(iter(types.values())) if len(types) == 1 else dict_of("Outputs", types)


def _function_of(action: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(action, partial):
        action = action.func
    is_function = inspect.isroutine(action) or inspect.isclass(action)
    return action if is_function else type(action).__call__


def _annotations_of(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        if not getattr(function, "__annotations__", True):
            return {}  # `get_type_hints` says so too, and takes a while
        return get_type_hints(function, include_extras=True)
    except Exception:  # a name that exists for type checkers only, or anything else
        return _annotations_one_by_one(function)


def _annotations_one_by_one(function: Callable[..., Any]) -> dict[str, Any]:
    """Return those of a function's annotations that can be evaluated."""
    known = getattr(inspect.unwrap(function), "__globals__", {})
    types = {}
    if sys.version_info >= (3, 14):  # pragma: no cover
        annotations = get_annotations(function, format=Format.FORWARDREF)
    else:  # pragma: no cover
        annotations = function.__annotations__
    for name, annotation in annotations.items():
        one = SimpleNamespace(__annotations__={name: annotation})
        with suppress(Exception):
            types.update(get_type_hints(one, known, include_extras=True))
    return types


def _awaited(annotation: Any) -> Any:
    """Return the type of the result of awaiting an object of this type."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if not isinstance(origin, type) or not issubclass(origin, Awaitable) or not arguments:
        return Any
    return arguments[2] if issubclass(origin, Generator) or len(arguments) == 3 else arguments[-1]
