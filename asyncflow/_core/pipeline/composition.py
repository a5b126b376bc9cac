"""How decorated functions and included pipelines become the plain steps of one pipeline.

Rules:

1. A function stands for the one step of this pipeline whose action it is; a pipeline stands for the
   one step as which it is included.
2. A parameter's default asks for an output (`Upstream`). A mapping in ``depends_on`` that names the
   parameter precedes it.
3. A step is mapped if it has a ``map_over``, or a parameter that takes each item of an output. Only
   ``collect`` takes the output of a mapped step, since its function returns one item of that.
4. The step ``load`` of a pipeline that is included as ``ingest`` becomes ``ingest/load``. Whatever
   names a step in it is renamed with it, and each parameter receives what it did before.
5. An included step without dependencies comes after all dependencies of the inclusion.
6. A parameter for which nothing inside provides a value, and the inclusion has a dependency,
   receives the output of that one.
7. An included clean-up step (``run_if``) that names no dependencies waits for the other steps of
   its own pipeline, and not for those of the pipeline around it.
8. One more step, ``ingest`` itself, comes after the last ones and forwards their outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MethodType
from typing import TypeAlias

from asyncflow._core.arguments import (
    Signature,
    Upstream,
    arguments_of,
    check_arguments,
    defaults_of,
    function_of,
    upstream_defaults,
)
from asyncflow._core.pipeline.graph import ForwardOutputs, with_dependents
from asyncflow._core.pipeline.step import (
    Action,
    StepPolicies,
    WorkflowStep,
    check_of_items,
    inputs_mapped_over,
    parameters_of,
    taker_of,
)
from asyncflow._core.record import record, replace
from asyncflow._core.text import did_you_mean

Dependencies: TypeAlias = tuple[object, ...] | dict[str, object]
"""Names, functions and pipelines; in a dictionary, by the parameter that receives the output."""


@record
class DeclaredStep:
    """A function that was declared a step."""

    name: str
    function: Action
    depends_on: Dependencies
    map_over: object
    policies: StepPolicies

    def upstream(self) -> dict[str, Upstream]:
        """Return the outputs that the action's parameters ask for and no mapping overrides."""
        return {
            parameter: upstream
            for parameter, upstream in upstream_defaults(taker_of(self.function)).items()
            if not isinstance(self.depends_on, dict) or parameter not in self.depends_on
        }

    def left_defaults(self, given: Collection[object]) -> Iterator[tuple[str, str, object]]:
        """Yield the defaults that its functions receive: of which function, and which parameter.

        ``given`` are the parameters for which a dependency provides a value.
        """
        takers = {"action": taker_of(self.function), "condition": self.policies.get("when")}
        for what, taker in takers.items():
            bound = taker.keywords if isinstance(taker, partial) else ()
            for parameter, default in ({} if taker is None else defaults_of(taker)).items():
                if parameter not in given and parameter not in bound:
                    yield what, parameter, default

    def is_mapped(self) -> bool:
        return self.map_over is not None or any(up.each for up in self.upstream().values())


@record
class IncludedPipeline:
    """A pipeline that was included with all of its steps."""

    name: str
    pipeline: Iterable[WorkflowStep]
    depends_on: Dependencies


def checked_dependencies(name: str, depends_on: object) -> Dependencies:
    """Return a copy of what a user gave as dependencies."""
    if isinstance(depends_on, str | bytes) or not isinstance(depends_on, Iterable):
        raise TypeError(
            f"step {name!r}: depends_on must be a list of names and functions of steps, or a "
            f"mapping of parameter to these, not {type(depends_on).__name__}"
        )
    if isinstance(depends_on, Mapping):
        for parameter in depends_on:
            if not isinstance(parameter, str):
                raise TypeError(
                    f"step {name!r}: depends_on must map names of parameters, not {parameter!r}"
                )
        return dict(depends_on)
    return tuple(depends_on)


def checked_step_options(pipeline: str, options: StepPolicies | None) -> StepPolicies:
    """Return a copy of the defaults that a user gave for the steps of a pipeline."""
    what = f"pipeline {pipeline!r}: step_options"
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise TypeError(
            f"{what} must be a mapping of arguments of @pipeline.step to their defaults, not "
            f"{type(options).__name__}"
        )
    for name in options:
        if name in arguments_of("WorkflowStep") and name not in StepPolicies.__optional_keys__:
            raise TypeError(f"{what} got {name!r}, which is no default: give it to a single step")
    check_arguments(what, options, StepPolicies.__optional_keys__)
    return options.copy()


def _has_pool(policies: StepPolicies, step: DeclaredStep) -> bool:
    return policies.get("pool") is not None


def _has_items(policies: StepPolicies, step: DeclaredStep) -> bool:
    return step.is_mapped()


_NEEDS: dict[str, Callable[[StepPolicies, DeclaredStep], bool]] = {
    "retry": lambda policies, step: policies.get("max_retries", 1) > 1,
    "slots": _has_pool,
    "tokens": _has_pool,
    "priority": _has_pool,
    "pool_key": _has_pool,
    "tolerated_failures": _has_items,
    "keep_outputs": _has_items,
}
"""What `WorkflowStep` accepts only beside something else, and whether a step has that. A default
does not apply to the other steps."""


def with_defaults(step: DeclaredStep, defaults: StepPolicies) -> DeclaredStep:
    """Return a step of a pipeline that has these defaults."""
    merged: StepPolicies = {**defaults, **step.policies}
    for name, is_met in _NEEDS.items():
        if name in defaults and name not in step.policies and not is_met(merged, step):
            del merged[name]  # type: ignore[misc]  # the key is one of the literals above
    return replace(step, policies=merged)


def check_policies(name: str, function: Action, policies: StepPolicies) -> None:
    """Report a mistake where the decorator is, and not when the steps are built."""
    check_arguments(f"step {name!r}", policies, arguments_of("WorkflowStep"))
    checked = policies.copy()
    if policies.get("runs_in") == "process":
        # The function can't be pickled before its module has it.
        checked["runs_in"] = "thread"
    # Whether the step is mapped, the defaults of its parameters tell when it is built.
    tolerated, keeps = checked.pop("tolerated_failures", 0), checked.pop("keep_outputs", True)
    check_of_items(name, tolerated, keeps)
    WorkflowStep(name, function, **checked)


def identity_of(source: object) -> object:
    """Return a key for a function or a pipeline; some can be neither hashed nor compared."""
    if isinstance(source, MethodType):  # each access to a method makes another object
        return id(source.__self__), id(source.__func__)
    return id(source)


def steps_of(
    pipeline: str, parts: Iterable[DeclaredStep | IncludedPipeline]
) -> tuple[WorkflowStep, ...]:
    """Return the plain steps of a pipeline's parts.

    Raise `ValueError` if a function or a pipeline stands for no step or for several, or a parameter
    takes an output in a way that does not fit it.
    """
    return _Builder(pipeline, tuple(parts)).steps()


class _Builder:
    """Turns the parts of one pipeline into steps: each function and pipeline into its name."""

    def __init__(self, pipeline: str, parts: tuple[DeclaredStep | IncludedPipeline, ...]) -> None:
        self._pipeline = pipeline
        self._parts = parts
        self._names: dict[object, list[str]] = {}
        for part in parts:
            source = part.function if isinstance(part, DeclaredStep) else part.pipeline
            self._names.setdefault(identity_of(source), []).append(part.name)
        self._mapped = {p.name for p in parts if isinstance(p, DeclaredStep) and p.is_mapped()}

    def steps(self) -> tuple[WorkflowStep, ...]:
        steps: list[WorkflowStep] = []
        for part in self._parts:
            if isinstance(part, DeclaredStep):
                steps.append(self._step(part))
            else:
                steps.extend(self._included(part))
        return tuple(steps)

    def _included(self, part: IncludedPipeline) -> list[WorkflowStep]:
        inner = list(part.pipeline)
        if not inner:
            raise ValueError(
                f"pipeline {self._pipeline!r} includes {part.name!r}, which has no steps; import "
                "the modules that declare them first"
            )
        names, parameters = self._edges(part.name, part.depends_on)
        return include_steps(part.name, inner, names, parameters)

    def _step(self, part: DeclaredStep) -> WorkflowStep:
        depends_on, pairs = self._edges(part.name, part.depends_on)
        parameters = dict(pairs)
        map_over = None if part.map_over is None else self._name(part.name, part.map_over)
        for parameter, upstream in part.upstream().items():
            source = self._source(part, parameter, upstream)
            if upstream.each:
                if map_over not in (None, source):
                    raise ValueError(
                        f"step {part.name!r} is mapped over both {map_over!r} and {source!r}; "
                        "let one step return the pairs, and take each of these"
                    )
                map_over = source
            depends_on.append(source)
            parameters[parameter] = source
        self._check_takes_items(part, map_over)
        self._add_condition(part, depends_on, parameters)
        return WorkflowStep(
            part.name,
            part.function,
            depends_on,
            parameters=parameters.items(),
            map_over=map_over,
            **part.policies,
        )

    def _check_takes_items(self, part: DeclaredStep, map_over: str | None) -> None:
        """Refuse a parameter that takes the whole output over whose items the step is mapped."""
        for parameter, upstream in part.upstream().items():
            if not upstream.each and self._source(part, parameter, upstream) == map_over:
                raise ValueError(
                    f"parameter {parameter!r} of step {part.name!r} takes the whole output of "
                    f"{map_over!r}, over whose items the step is mapped; write each(...) to get "
                    "one item, and take what you need of the whole in a step between"
                )

    def _add_condition(
        self, part: DeclaredStep, depends_on: list[str], parameters: dict[str, str]
    ) -> None:
        """Add the dependencies that the parameters of ``when`` declare."""
        when = part.policies.get("when")
        for parameter, upstream in upstream_defaults(when).items() if when is not None else ():
            if isinstance(part.depends_on, dict) and parameter in part.depends_on:
                continue
            source = self._source(part, parameter, upstream)
            if upstream.each:
                raise ValueError(
                    f"parameter {parameter!r} of the condition of step {part.name!r} takes each "
                    f"item of {source!r}, but a condition is asked once; use "
                    f"{'collect' if upstream.is_mapped else 'after'}()"
                )
            if parameters.get(parameter, source) != source:
                raise ValueError(
                    f"step {part.name!r}: its action and its condition take parameter "
                    f"{parameter!r} from different steps, {parameters[parameter]!r} and "
                    f"{source!r}; rename one of the parameters"
                )
            depends_on.append(source)
            parameters[parameter] = source

    def _source(self, part: DeclaredStep, parameter: str, upstream: Upstream) -> str:
        """Return the name of the step whose output a parameter asks for."""
        source = self._name(part.name, upstream.source, parameter)
        if (source in self._mapped) is upstream.is_mapped:
            return source
        shown = _label(upstream.source)
        whole, item = f"collect({shown})", f"each(collect({shown}))"
        if upstream.is_mapped:
            whole, item = f"after({shown})", f"each({shown})"
        raise ValueError(
            f"parameter {parameter!r} of step {part.name!r}: step {source!r} is "
            f"{'not mapped' if upstream.is_mapped else 'mapped, so its output is a list'}; "
            f"write {item if upstream.each else whole}"
        )

    def _edges(
        self, name: str, depends_on: Dependencies
    ) -> tuple[list[str], list[tuple[str, str]]]:
        """Return the names of dependencies, and the pairs of parameter and name among them."""
        if isinstance(depends_on, dict):
            pairs = [(key, self._name(name, source, key)) for key, source in depends_on.items()]
            return [source for _, source in pairs], pairs
        return [self._name(name, source) for source in depends_on], []

    def _name(self, step: str, source: object, parameter: str | None = None) -> str:
        """Return the name of the step that a function or a pipeline stands for."""
        if isinstance(source, str):
            return source  # the plan checks whether there is such a step
        names = self._names.get(identity_of(source), ())
        if len(names) == 1:
            return names[0]
        of = f"step {step!r}" if parameter is None else f"parameter {parameter!r} of step {step!r}"
        if names:
            raise ValueError(
                f"{of} depends on {_label(source)}, which pipeline {self._pipeline!r} includes "
                f"several times; name one of {', '.join(map(repr, names))} in depends_on"
            )
        raise self._unknown(of, source, parameter)

    def _unknown(self, of: str, source: object, parameter: str | None) -> Exception:
        if callable(source):
            instead = "" if parameter is None else f", or give depends_on={{{parameter!r}: ...}}"
            return ValueError(
                f"{of} depends on {_label(source)}, which is not a step of pipeline "
                f"{self._pipeline!r}; decorate it with that one's step, above all its other "
                f"decorators{instead}"
            )
        if isinstance(source, Iterable):
            return ValueError(
                f"{of} depends on {source!r}, which pipeline {self._pipeline!r} does not "
                "include; call its include() with it"
            )
        return TypeError(
            f"{of} depends on {source!r}; a dependency is the name or the function of a step, or "
            "an included pipeline"
        )


def _label(source: object) -> str:
    return str(getattr(function_of(source), "__name__", None) or repr(source))


def include_steps(
    name: str,
    steps: Sequence[WorkflowStep],
    depends_on: Iterable[str] = (),
    parameters: Iterable[tuple[str, str]] = (),
) -> list[WorkflowStep]:
    """Return these steps as part of another pipeline, with the one that stands for them all.

    There is at least one step. They come after ``depends_on``, steps of the other pipeline.
    ``parameters`` are pairs of a parameter and the one of these dependencies that it receives, if
    that has another name.
    """
    mapped = dict(parameters)
    outside = {step: step for step in depends_on if step not in mapped.values()} | mapped
    inputs = inputs_mapped_over(steps)
    _check_mapped(name, steps, {p: mapped[p] for p in mapped if p not in inputs})
    all_others = _not_waiting_for_all(steps)
    return [
        *(_renamed(name, step, outside, all_others, inputs) for step in steps),
        _closing_step(name, steps),
    ]


def _check_mapped(name: str, steps: Sequence[WorkflowStep], mapped: dict[str, str]) -> None:
    for parameter, source in mapped.items():
        if not any(
            _takes(accepts, parameter)
            for step in steps
            for accepts in (step.signature, step.condition)
        ):
            known = parameters_of(steps)
            raise ValueError(
                f"pipeline {name!r} maps parameter {parameter!r} to {source!r}, but none of its "
                f"steps has such a parameter{did_you_mean(parameter, known)}"
            )


def _renamed(
    name: str,
    step: WorkflowStep,
    outside: dict[str, str],
    all_others: list[str],
    inputs: Collection[str],
) -> WorkflowStep:
    # An input over which it is mapped may become the output of a step outside.
    over = outside.get(step.map_over or "", step.map_over) if step.map_over in inputs else None
    inside = [source for source in step.depends_on if over is None or source != step.map_over]
    if _waits_for_all(step):
        inside = all_others
    mapped = {source for _, source in step.parameters}
    parameters = {
        source: f"{name}/{source}"
        for source in inside
        if source in step.depends_on
        and source not in mapped
        and (_takes(step.signature, source) or _takes(step.condition, source))
    }
    parameters.update(
        (parameter, f"{name}/{source}" if over is None or source != step.map_over else over)
        for parameter, source in step.parameters
    )
    depends_on = [f"{name}/{source}" for source in inside]
    for parameter, source in outside.items():
        asks = parameter in step.signature.names or parameter in step.condition.names
        asks = asks or (not inside and _takes(step.signature, parameter))
        asks = asks and parameter not in parameters
        if asks:
            parameters[parameter] = source
        if asks or not inside or source == over:
            depends_on.append(source)
    return replace(
        step,
        name=f"{name}/{step.name}",
        depends_on=tuple(depends_on),
        parameters=tuple(parameters.items()),
        map_over=over or (step.map_over and f"{name}/{step.map_over}"),
    )


def _takes(accepts: Signature, parameter: str) -> bool:
    return parameter in accepts.names or (accepts.takes_kwargs and parameter not in accepts.bound)


def _waits_for_all(step: WorkflowStep) -> bool:
    return step.is_cleanup and not step.depends_on


def _not_waiting_for_all(steps: Sequence[WorkflowStep]) -> list[str]:
    """Return the names of all steps but those that wait for all, and their dependents."""
    waiting = [step.name for step in steps if _waits_for_all(step)]
    late = with_dependents(waiting, [(step.name, step.depends_on) for step in steps])
    return [step.name for step in steps if step.name not in late]


def _closing_step(name: str, steps: Sequence[WorkflowStep]) -> WorkflowStep:
    # A step that runs only after a failure would keep its dependents from running.
    ordinary = [s for s in steps if s.run_if != "failure" and not _waits_for_all(s)] or steps
    depended_on = {source for step in ordinary for source in step.depends_on}
    forward = ForwardOutputs({step.name: step for step in ordinary if step.name not in depended_on})
    last = [f"{name}/{step}" for step in forward.steps]
    is_secret = any(step.secret for step in forward.steps.values())
    return WorkflowStep(name, forward, last, timeout_ms=None, secret=is_secret, engine="local")
