"""What a plan says of each step, by its name; found out when asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from asyncflow._graph import Plan

__all__ = ["ByName", "MaxRetries", "Shape", "secret_steps"]

V = TypeVar("V")


class ByName(Mapping[str, V]):
    """A mapping of the names of the steps, in topological order, to what is said of each."""

    __slots__ = ("_plan",)

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def __iter__(self) -> Iterator[str]:
        return (self._plan.steps[index].name for index in self._plan.order)

    def __len__(self) -> int:
        return len(self._plan.steps)

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[object, ...]:
        return dict, (dict(self),)  # without the actions, which nobody else may need


def secret_steps(plan: Plan) -> tuple[str, ...]:
    """Return the names of the steps whose output must not be shown."""
    return tuple(plan.steps[index].name for index in plan.special if plan.steps[index].secret)


class MaxRetries(ByName[int]):
    """For each step of a plan, how many attempts it has in all."""

    __slots__ = ()

    def __getitem__(self, name: str) -> int:
        return self._plan.steps[self._plan.index[name]].max_retries


class Shape(ByName[tuple[str, ...]]):
    """A plan seen as names: for each step the steps it depends on."""

    __slots__ = ()

    def __getitem__(self, name: str) -> tuple[str, ...]:
        index = self._plan.index[name]
        named = self._plan.steps[index].depends_on
        if named or index not in self._plan.cleanups:
            return named
        return tuple(self._plan.steps[other].name for other in self._plan.dependencies[index])
