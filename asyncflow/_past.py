"""What a run that is resumed has behind it, as far as that still holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from asyncflow._errors import StepCrashedError
from asyncflow._graph import Plan
from asyncflow._result import Attempt, StepResult
from asyncflow.events import AttemptStarted

__all__ = ["Carried", "Key", "Past"]

Key: TypeAlias = tuple[str, int | None]
"""A step, or an item of a mapped step."""


class Carried(NamedTuple):
    """The attempts of a step, or of an item, that has begun and not ended."""

    latest: AttemptStarted
    failed: tuple[Attempt, ...]
    """All of them. One that was cut short has failed with a `StepCrashedError`."""
    crashes: int
    """How many of them were cut short."""

    @property
    def was_cut_short(self) -> bool:
        """Whether the latest one was."""
        return bool(self.failed) and isinstance(self.failed[-1].error, StepCrashedError)


@dataclass(frozen=True, slots=True)
class Past:
    """Where a run stands that is resumed."""

    run_id: str
    wall_time: float
    """When it began, in seconds since the epoch (UTC)."""
    at_ms: float
    """The time at which it stood still."""
    results: Mapping[Key, StepResult]
    """The results that are taken over."""
    carried: Mapping[Key, Carried]
    """What goes on with the attempts that it has left."""
    reasons: Mapping[str, str]
    """The steps of which something was known and which run again, each with the reason."""
    pipeline: str = ""
    """What the pipeline is called."""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """All inputs of the run, with what stands for a secret one."""

    def steps_begun(self) -> frozenset[str]:
        """The steps that go on: they, or items of theirs, had begun."""
        items = {name for name, item in self.results if item is not None}
        return frozenset(items.union(name for name, _ in self.carried))

    def steps_taken_over(self, plan: Plan) -> frozenset[int]:
        """Return the steps of a plan, and not the items, that have a result already."""
        return frozenset(plan.index[name] for name, item in self.results if item is None)
