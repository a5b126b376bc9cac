"""The units of a run: its steps, and the items of its mapped steps, each with a number."""

from __future__ import annotations

from collections.abc import Mapping

from asyncflow._errors import IllegalEventError
from asyncflow._graph import Plan
from asyncflow._past import Carried, Key
from asyncflow._phases import MAPPING, PENDING, READY, SETTLED
from asyncflow._result import StepResult
from asyncflow._shape import Shape
from asyncflow.events import AttemptStarted, StepCancelled, StepEvent, StepFailed, StepReused

__all__ = ["Units"]


class Units:
    """What a run consists of, and where each part of it stands.

    The number of a step is its index in the plan; the items of mapped steps get the numbers above,
    as they are taken up.

    Attributes:
        steps: The step that each unit is, or is an item of.
        phases: The phase that each unit is in.
        latest: The latest attempt that each unit has started, if it has started any; also before
            the run was resumed.
        results: The result of each unit that has settled.
    """

    def __init__(self, plan: Plan, carried: Mapping[Key, Carried] | None = None) -> None:
        self._plan = plan
        self._carried = carried or {}
        self.steps = list(plan.steps)
        count = len(self.steps)
        self.phases = [PENDING] * count
        self.latest: list[AttemptStarted | None] = [None] * count
        for (name, item), each in self._carried.items():
            if item is None:
                self.latest[plan.index[name]] = each.latest
        self.results: list[StepResult | None] = [None] * count
        self._item_of: dict[int, tuple[int, int]] = {}
        self._maps: dict[int, _Map] = {}

    def is_item(self, unit: int) -> bool:
        """Whether a unit is an item of a mapped step."""
        return unit in self._item_of

    def item_of(self, unit: int) -> int | None:
        """Which item of its step a unit is; ``None`` if it is the step itself."""
        return self._item_of[unit][1] if unit in self._item_of else None

    def owner_of(self, item: int) -> int:
        """The mapped step to which an item belongs, both as units."""
        return self._item_of[item][0]

    def name_of(self, unit: int) -> str:
        """What a unit is called: ``fetch``, or ``fetch[3]``."""
        name = self.steps[unit].name
        return f"{name}[{self._item_of[unit][1]}]" if unit in self._item_of else name

    def next_attempt(self, unit: int) -> int:
        """The number of the attempt that a unit starts next."""
        latest = self.latest[unit]
        return 1 if latest is None else latest.attempt + 1

    def carried(self, unit: int) -> Carried | None:
        """The attempts that a unit had before its run was resumed, if it goes on with them."""
        return self._carried.get(self.key_of(unit)) if self._carried else None

    def key_of(self, unit: int) -> Key:
        """Which step, or which item of which step, a unit is."""
        return self.steps[unit].name, self.item_of(unit)

    def depends_on(self, unit: int) -> tuple[str, ...]:
        """The names of the steps that a unit depends on. A clean-up step may not name them all."""
        step = self.steps[unit]
        return step.depends_on if step.run_if == "success" else Shape(self._plan)[step.name]

    # Mapped steps.

    def begin_map(self, step: int, at_ms: float) -> None:
        """A mapped step begins to go through its items."""
        self._maps[step] = _Map(at_ms)
        self.phases[step] = MAPPING

    def map_started_ms(self, step: int) -> float:
        """When it did so last."""
        return self._maps[step].started_ms

    def add_item(self, step: int, item: int | None = None) -> int:
        """Make an item of a mapped step a unit, by default the item after those there are.

        Each is taken up in its turn, so that there is none without all those before it.
        """
        unit = len(self.steps)
        self.steps.append(self.steps[step])
        self.phases.append(PENDING)
        self.results.append(None)
        mapped = self._maps[step]
        if item is None:
            item = len(mapped.units)
        self._item_of[unit] = step, item
        carried = self.carried(unit)
        self.latest.append(None if carried is None else carried.latest)
        mapped.units[item] = unit
        mapped.unsettled += 1
        return unit

    def count_of_items(self, step: int) -> int:
        """How many items of a mapped step are units."""
        return len(self._maps[step].units)

    def unit_of_item(self, step: int, event: StepEvent) -> int:
        """Return the unit of the item that an event is about."""
        mapped = self._maps.get(step)
        if mapped is None:
            raise IllegalEventError(event, "the step has not begun to go through its items")
        assert event.item is not None
        if event.item in mapped.units:
            return mapped.units[event.item]
        if self.phases[step] != MAPPING or not self._is_first(event):
            raise IllegalEventError(event, "the item has not been started")
        unit = self.add_item(step, event.item)  # nobody took it up: a stored run is replayed
        self.phases[unit] = READY
        return unit

    def _is_first(self, event: StepEvent) -> bool:
        """Whether an event can be the first of an item."""
        if isinstance(event, StepReused):
            return True
        if (event.step, event.item) in self._carried:
            return isinstance(event, AttemptStarted | StepFailed | StepCancelled)
        return isinstance(event, AttemptStarted) and event.attempt == 1 and (event.item or 0) >= 0

    def end_item(self, unit: int) -> None:
        """An item has settled, or will never start."""
        self.phases[unit] = SETTLED
        self._maps[self._item_of[unit][0]].unsettled -= 1

    def maps(self) -> list[int]:
        """Return the steps that have begun to go through their items."""
        return list(self._maps)

    def items(self, step: int) -> list[int]:
        """Return the units of a mapped step's items, in order."""
        units = self._maps[step].units
        return [units[item] for item in sorted(units)]

    def results_of_items(self, step: int) -> list[StepResult] | None:
        """Return the results of a mapped step's items, in order; ``None`` while one is missing."""
        if self._maps[step].unsettled:
            return None
        results = map(self.results.__getitem__, self.items(step))
        return [result for result in results if result is not None]


class _Map:
    """How far a run has come with the items of a mapped step."""

    __slots__ = ("started_ms", "units", "unsettled")

    def __init__(self, started_ms: float) -> None:
        self.started_ms = started_ms
        self.units: dict[int, int] = {}
        self.unsettled = 0
