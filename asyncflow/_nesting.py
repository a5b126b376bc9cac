"""The steps of one pipeline as steps of another, under its name.

Rules:

1. The step ``load`` of a pipeline that is included as ``ingest`` becomes ``ingest/load``. Whatever
   of it names a step is renamed with it, and each parameter keeps receiving what it did.
2. Steps without dependencies come after all that the inclusion depends on.
3. A parameter that nothing inside provides, and for which the inclusion has a dependency,
   receives that one's output.
4. A clean-up step (``run_if``) that names no dependencies waits for the other steps of its own
   pipeline, and not for those of the pipeline around it.
5. One more step, ``ingest`` itself, comes after the last ones and hands on their outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from asyncflow._errors import nearest
from asyncflow._graph import with_dependents
from asyncflow._signature import Signature
from asyncflow._step import WorkflowStep, parameters_of

__all__ = ["HandsOn", "nested"]


def nested(
    name: str,
    steps: Sequence[WorkflowStep],
    depends_on: Iterable[str] = (),
    parameters: Iterable[tuple[str, str]] = (),
) -> list[WorkflowStep]:
    """Return these steps as part of another pipeline, with the one that stands for them all.

    Args:
        name: What they are included as.
        steps: The steps, of which there is at least one.
        depends_on: The steps of the other pipeline that these come after.
        parameters: Which of these dependencies have another name inside, as pairs of parameter
            and step name.

    Raises:
        ValueError: No step has a parameter that ``parameters`` names.
    """
    mapped = dict(parameters)
    outside = {step: step for step in depends_on if step not in mapped.values()} | mapped
    _check_mapped(name, steps, mapped)
    all_others = _without_those_that_wait_for_all(steps)
    return [*(_renamed(name, step, outside, all_others) for step in steps), _end(name, steps)]


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
                f"steps has such a parameter{nearest(parameter, known)}"
            )


def _renamed(
    name: str, step: WorkflowStep, outside: dict[str, str], all_others: list[str]
) -> WorkflowStep:
    inside = list(step.depends_on)
    if _waits_for_all(step):
        inside = all_others
    mapped = {source for _, source in step.parameters}
    parameters = {
        source: f"{name}/{source}"
        for source in step.depends_on
        if source not in mapped
        and (_takes(step.signature, source) or _takes(step.condition, source))
    }
    parameters.update((parameter, f"{name}/{source}") for parameter, source in step.parameters)
    depends_on = [f"{name}/{source}" for source in inside]
    for parameter, source in outside.items():
        asks = parameter in step.signature.names or parameter in step.condition.names
        asks = asks or (not inside and _takes(step.signature, parameter))
        asks = asks and parameter not in parameters
        if asks:
            parameters[parameter] = source
        if asks or not inside:
            depends_on.append(source)
    return replace(
        step,
        name=f"{name}/{step.name}",
        depends_on=tuple(depends_on),
        parameters=tuple(parameters.items()),
        map_over=None if step.map_over is None else f"{name}/{step.map_over}",
    )


def _takes(accepts: Signature, parameter: str) -> bool:
    return parameter in accepts.names or (accepts.takes_any and parameter not in accepts.bound)


def _waits_for_all(step: WorkflowStep) -> bool:
    return step.run_if != "success" and not step.depends_on


def _without_those_that_wait_for_all(steps: Sequence[WorkflowStep]) -> list[str]:
    """Return the names of all steps but those that wait for all, and what comes after these."""
    waiting = [step.name for step in steps if _waits_for_all(step)]
    late = with_dependents(waiting, [(step.name, step.depends_on) for step in steps])
    return [step.name for step in steps if step.name not in late]


def _end(name: str, steps: Sequence[WorkflowStep]) -> WorkflowStep:
    # What runs only after a failure would keep all that depends on it from running.
    ordinary = [s for s in steps if s.run_if != "failure" and not _waits_for_all(s)] or steps
    depended_on = {source for step in ordinary for source in step.depends_on}
    hand_on = HandsOn({step.name: step for step in ordinary if step.name not in depended_on})
    last = [f"{name}/{step}" for step in hand_on.steps]
    is_secret = any(step.secret for step in hand_on.steps.values())
    return WorkflowStep(name, hand_on, last, timeout_ms=None, secret=is_secret)


class HandsOn:
    """The action of the step that stands for an included pipeline.

    Attributes:
        steps: The steps whose outputs it hands on, by the names that they have inside.
    """

    def __init__(self, steps: dict[str, WorkflowStep]) -> None:
        self.steps = steps

    # It takes them under their full names, which no input of a run can have by accident.
    async def __call__(self, **outputs: Any) -> Any:
        """Return the only output, or a dictionary of all."""
        if len(self.steps) == 1:
            return next(iter(outputs.values()))
        return dict(zip(self.steps, outputs.values(), strict=True))
