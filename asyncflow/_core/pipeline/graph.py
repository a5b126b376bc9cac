"""The plan of a pipeline: its order, its tiers, and where each action gets its arguments.

Rules:

1. Names are unique, and every dependency names a step.
2. A tier holds the steps whose dependencies are all in earlier tiers, at least one of them in the
   tier just before.
3. The order is the tiers one after the other, each in the order of declaration.
4. A clean-up step (``run_if`` ``"failure"`` or ``"always"``) that names no dependencies comes after
   all steps but those that come after such a step.
5. A graph that Kahn's algorithm (A. B. Kahn, "Topological sorting of large networks", 1962)
   cannot empty has a cycle.

Here, a step is its index in the order of declaration: lists of integers cost a third of what
dictionaries of names cost.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from asyncflow._core.arguments import (
    NO_PARAMETERS,
    Signature,
    check_names,
    instead_of_iterator,
    is_iterator,
)
from asyncflow._core.errors import CyclicDependencyError, MissingInputError, shared_by
from asyncflow._core.pipeline.step import WorkflowStep, inputs_mapped_over
from asyncflow._core.record import derived, made_by, record, replace
from asyncflow._core.text import did_you_mean

if TYPE_CHECKING:
    from asyncflow._core.pools.pool import Pool

K = TypeVar("K")


def topological_sort(steps: Iterable[WorkflowStep]) -> list[str]:
    """Return the names of the steps, each after all of its dependencies.

    Kahn's algorithm, iterative, in time linear in steps plus dependencies. The order is the
    tiers of `parallel_groups` one after the other, so it is the same for the same steps.

    Raises:
        ValueError: Two steps have the same name, or a dependency names an unknown step.
        CyclicDependencyError: The steps depend on each other in a circle.
    """
    planned = plan(steps)
    return [planned.steps[index].name for index in planned.order]


def parallel_groups(steps: Iterable[WorkflowStep]) -> list[list[str]]:
    """Return the tiers: groups of steps that do not depend on each other.

    Every dependency of a step is in an earlier group, so the steps of a group can run at the same
    time. Within a group, steps are in the order of declaration.

    Raises:
        ValueError: Two steps have the same name, or a dependency names an unknown step.
        CyclicDependencyError: The steps depend on each other in a circle.
    """
    planned = plan(steps)
    return [[planned.steps[index].name for index in tier] for tier in planned.tiers]


@record
class Plan:
    """A valid pipeline, with its order. Steps are indexes; edges are there in both directions."""

    steps: tuple[WorkflowStep, ...]
    index: dict[str, int]
    """The index of each step by its name, in the order of declaration."""
    dependencies: list[tuple[int, ...]]
    dependents: Dependents
    tiers: list[list[int]]
    order: list[int]
    """The topological order: the tiers, one after the other."""
    given: Mapping[str, tuple[int, ...]]
    """The steps that were given an argument, by its name: see `WorkflowStep.given`."""
    cleanups: frozenset[int]
    """The clean-up steps: ``run_if`` is ``"failure"`` or ``"always"``."""
    _cache: _PlanCache = derived()
    secret: tuple[str, ...] = ()
    """The steps whose output is secret, by name."""
    targets: frozenset[str] = frozenset()
    """The steps that the caller has named, if not all steps run."""
    resources: frozenset[str] = frozenset()
    """The names of the parameters that receive a resource of the run."""
    chained: Mapping[int, tuple[int, ...]] = made_by(default_factory=dict)
    """For each mapped step, the steps that are mapped over it. Their items have its numbers."""
    flows: Mapping[int, int] = made_by(default_factory=dict)
    """For each step that can run an item before the step over which it is mapped has ended, that
    step."""
    signals: frozenset[int] = frozenset()
    """The steps that wait for a signal."""
    conditional: frozenset[int] = frozenset()
    """The steps that have a condition."""
    untiered: frozenset[int] = frozenset()
    """These and all that depend on them: tiers don't wait for them, and they for no tier."""
    shared_pools: frozenset[Pool] = frozenset()
    """The pools of its steps that processes share."""
    keeps_waiting: bool = False
    """Whether a run must stay in its process while it waits: what a signal answers would have to be
    made again later, because it is not stored."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_cache", _PlanCache())

    @property
    def depends_on(self) -> Mapping[str, tuple[str, ...]]:
        """The dependencies of each step, all by name, in topological order. All runs share it."""
        found = self._cache.depends_on
        if found is None:
            steps = self.steps
            found = {steps[at].name: steps[at].depends_on for at in self.order}
            for at in self.cleanups:  # one may come after all steps, and name none
                found[steps[at].name] = tuple([steps[to].name for to in self.dependencies[at]])
            self._cache.depends_on = found
        return found

    @property
    def max_retries(self) -> Mapping[str, int]:
        """How many attempts each step has in all, in the same way."""
        found = self._cache.max_retries
        if found is None:
            in_order = map(self.steps.__getitem__, self.order)
            found = self._cache.max_retries = {step.name: step.max_retries for step in in_order}
        return found

    @property
    def map_over(self) -> Mapping[str, str]:
        """What each mapped step is mapped over: a step or an input, in the same way."""
        found = self._cache.map_over
        if found is None:
            mapped = [self.steps[at] for at in self.having("map_over")]
            found = {step.name: step.map_over for step in mapped if step.map_over is not None}
            self._cache.map_over = found
        return found

    def having(self, argument: str) -> tuple[int, ...]:
        """Return the steps that were given an argument, in order."""
        return self.given.get(argument, ())

    def signal_deadlines(self) -> dict[str, float]:
        """Return the ``deadline_ms`` of the signals that have one, by name."""
        steps = [self.steps[at] for at in sorted(self.signals)]
        return {step.name: step.deadline_ms for step in steps if step.deadline_ms is not None}

    def bindings(self, inputs: Set[str]) -> Bindings:
        """Return what `bind` and `bind_conditions` do. Most runs have the inputs of the latest."""
        bound = self._cache.bindings
        if bound is None or bound[0] != inputs:
            bound = {*inputs}, Bindings(bind(self, inputs), bind_conditions(self, inputs))
            self._cache.bindings = bound
        return bound[1]


class _PlanCache:
    """What was found out about a plan when it was first asked for."""

    bindings: tuple[set[str], Bindings] | None = None
    """Those that were asked for last, and the names of the inputs for which."""
    depends_on: dict[str, tuple[str, ...]] | None = None
    max_retries: dict[str, int] | None = None
    map_over: dict[str, str] | None = None


class Dependents:
    """The dependents of each step, one after the other in one list.

    Those of a step begin at index ``first[step]`` of the list `flat`. With a list for each step,
    the garbage collector would make planning take half as long again.
    """

    __slots__ = ("first", "flat")

    def __init__(self, dependencies: Sequence[Sequence[int]]) -> None:
        counts = [0] * len(dependencies)
        for needed in dependencies:
            for step in needed:
                counts[step] += 1
        self.first = list(accumulate(counts, initial=0))
        self.flat = flat = [0] * self.first[-1]
        ends = self.first.copy()  # where the next one of each step goes
        for dependent, needed in enumerate(dependencies):
            for step in needed:
                end = ends[step]
                flat[end] = dependent
                ends[step] = end + 1

    def __getitem__(self, step: int) -> list[int]:
        return self.flat[self.first[step] : self.first[step + 1]]

    def __len__(self) -> int:
        return len(self.first) - 1


def plan(steps: Iterable[WorkflowStep], targets: Iterable[str] | None = None) -> Plan:
    """Check a pipeline and find its tiers.

    ``targets`` are the steps to run; all others are left out, except the dependencies of these.
    ``None`` means all. The whole pipeline is checked in either case.
    """
    if isinstance(steps, WorkflowStep) or not isinstance(steps, Iterable):
        raise TypeError("steps must be a list of WorkflowStep objects; put a single one in a list")
    steps = tuple(steps)
    index, given = _index(steps), _given(steps)
    mapped = given.get("map_over", ())
    if any(steps[at].map_over not in index for at in mapped):
        steps = tuple(map(partial(_without_its_input, index), steps))
    try:
        # Tuples of integers: the garbage collector looks at them only once.
        dependencies = [tuple([index[name] for name in step.depends_on]) for step in steps]
    except KeyError:
        raise _unknown_dependency(steps, index) from None
    cleanups = frozenset(given.get("run_if", ()))
    dependents = Dependents(dependencies)
    after_all = [at for at in cleanups if not dependencies[at]]
    if after_all:
        _depend_on_all_others(after_all, dependencies, dependents)
        dependents = Dependents(dependencies)
    tiers = _tiers(steps, dependencies, dependents)
    if targets is not None:
        chosen = _indexes_of(targets, index)
        needed = _reachable(chosen, lambda at: [index[name] for name in steps[at].depends_on])
        left = plan([step for at, step in enumerate(steps) if at in needed])
        return replace(left, targets=frozenset(steps[at].name for at in chosen))
    order = [step for tier in tiers for step in tier]
    for at in mapped:
        if not steps[at].keep_outputs:
            _check_not_collected(steps[at], [steps[later] for later in dependents[at]])
    chained, flows = _chains(steps, index, mapped)
    signals = frozenset(given.get("signal", ()))
    pools = {steps[at].pool for at in given.get("pool", ())}
    answered = _reachable(signals, dependencies.__getitem__) if signals else set()
    return Plan(
        *(steps, index, dependencies, dependents, tiers, order, given, cleanups),
        secret=tuple(steps[at].name for at in given.get("secret", ())),
        chained=chained,
        flows=flows,
        signals=signals,
        conditional=frozenset(given.get("when", ())),
        shared_pools=frozenset(pool for pool in pools if pool is not None and pool.shared),
        untiered=frozenset(_reachable(signals, dependents.__getitem__)),
        keeps_waiting=any(_is_unstored(steps[at]) for at in answered),
    )


def _without_its_input(index: Mapping[str, int], step: WorkflowStep) -> WorkflowStep:
    """Return a step without the dependency that is an input, over which it is mapped."""
    if step.map_over is None or step.map_over in index or step.map_over not in step.depends_on:
        return step
    return replace(
        step, depends_on=tuple(name for name in step.depends_on if name != step.map_over)
    )


def _given(steps: Iterable[WorkflowStep]) -> dict[str, tuple[int, ...]]:
    """Return `Plan.given`."""
    found: dict[str, list[int]] = {}
    for at, step in enumerate(steps):
        for argument in step.given:
            found.setdefault(argument, []).append(at)
    return {argument: tuple(indexes) for argument, indexes in found.items()}


def _is_unstored(step: WorkflowStep) -> bool:
    """Whether the output of a step may not be stored."""
    return step.secret or (step.remote is not None and step.remote.moves_data)


def _check_not_collected(source: WorkflowStep, dependents: Iterable[WorkflowStep]) -> None:
    """Check that no step takes the output of a mapped step that does not keep it."""
    name = source.name
    for step in dependents:
        if name not in step.depends_on:
            continue  # it only comes after all
        takers = {p for p, needed in step.parameters if needed == name} or {name}
        for accepts in (step.signature, step.condition):
            is_item = accepts is step.signature and step.map_over == name
            taken = takers if accepts.takes_kwargs else takers.intersection(accepts.names)
            if taken and not is_item:
                raise ValueError(
                    f"step {step.name!r} takes the output of step {name!r}, which has "
                    "keep_outputs=False; map it over that step, depend on it without a parameter, "
                    "or let it keep its outputs"
                )


def _chains(
    steps: Sequence[WorkflowStep], index: Mapping[str, int], mapped: Iterable[int]
) -> tuple[dict[int, tuple[int, ...]], dict[int, int]]:
    """Return `Plan.chained` and `Plan.flows`."""
    chained: dict[int, tuple[int, ...]] = {}
    flows: dict[int, int] = {}
    for at in mapped:
        step = steps[at]
        source = None if step.map_over is None else index.get(step.map_over)
        if source is not None and step.map_over not in step.depends_on:
            raise ValueError(
                f"step {step.name!r} maps over {step.map_over!r}, which is not one of its "
                "dependencies; name it in depends_on too"
            )
        if source is None or steps[source].map_over is None:
            continue
        chained[source] = (*chained.get(source, ()), at)
        # A condition is asked with the whole output, and other steps look at how it ended.
        if step.when is None and step.run_if == "success" and not steps[source].is_cleanup:
            flows[at] = source
    return chained, flows


def _depend_on_all_others(
    last: list[int], dependencies: list[tuple[int, ...]], dependents: Dependents
) -> None:
    """Make these steps depend on all steps but themselves and their dependents."""
    after_them = _reachable(last, dependents.__getitem__)
    others = tuple(step for step in range(len(dependencies)) if step not in after_them)
    for step in last:
        dependencies[step] = others


def _indexes_of(targets: Iterable[str], index: Mapping[str, int]) -> list[int]:
    indexes = []
    for name in check_names("targets", targets, "step"):
        if name not in index:
            raise ValueError(f"targets name unknown step {name!r}{did_you_mean(name, index)}")
        indexes.append(index[name])
    return indexes


def _reachable(start: Iterable[K], neighbours: Callable[[K], Iterable[K]]) -> set[K]:
    """Return these steps and all that are reached from them, from neighbour to neighbour."""
    queue = list(start)
    reached = set(queue)
    for step in queue:  # it grows while it is read
        for other in neighbours(step):
            if other not in reached:
                reached.add(other)
                queue.append(other)
    return reached


def _index(steps: tuple[WorkflowStep, ...]) -> dict[str, int]:
    for kind in set(map(type, steps)):
        if not issubclass(kind, WorkflowStep):
            is_function = any(type(step) is kind and hasattr(step, "__code__") for step in steps)
            instead = "; wrap it in one: WorkflowStep(name, function)" if is_function else ""
            raise TypeError(
                f"a pipeline is made of WorkflowStep objects, not {kind.__name__}{instead}"
            )
    index = {step.name: position for position, step in enumerate(steps)}
    if len(index) < len(steps):
        # The index knows the last step of each name.
        twice = next(step.name for at, step in enumerate(steps) if index[step.name] != at)
        raise ValueError(f"two steps are named {twice!r}; names must be unique")
    return index


def _unknown_dependency(steps: Sequence[WorkflowStep], known: Collection[str]) -> ValueError:
    step, name = next(
        (step, name) for step in steps for name in step.depends_on if name not in known
    )
    return ValueError(
        f"step {step.name!r} depends on unknown step {name!r}{did_you_mean(name, known)}"
    )


def _tiers(
    steps: Sequence[WorkflowStep], dependencies: list[tuple[int, ...]], dependents: Dependents
) -> list[list[int]]:
    tier_of: list[int] = []
    try:
        # Most pipelines declare a step before its dependents; then one look at each is enough.
        for needed in dependencies:
            tier_of.append(1 + max(map(tier_of.__getitem__, needed)) if needed else 0)
    except IndexError:
        tier_of = []
    if len(tier_of) < len(steps):  # not above: a cyclic dependency would show that error too
        tier_of = _kahn(steps, dependencies, dependents)
    tiers: list[list[int]] = [[] for _ in range(max(tier_of, default=-1) + 1)]
    for step, tier in enumerate(tier_of):
        tiers[tier].append(step)
    return tiers


def _kahn(
    steps: Sequence[WorkflowStep], dependencies: list[tuple[int, ...]], dependents: Dependents
) -> list[int]:
    """Return the tier of each step, in whatever order they are declared."""
    missing = [len(needed) for needed in dependencies]
    first, flat = dependents.first, dependents.flat
    tier_of = [0] * len(steps)
    # The queue grows while it is read. A step joins it after its last dependency, which is in the
    # latest tier of them all.
    queue = [step for step, count in enumerate(missing) if not count]
    for step in queue:
        next_tier = tier_of[step] + 1
        for dependent in flat[first[step] : first[step + 1]]:
            missing[dependent] -= 1
            if not missing[dependent]:
                tier_of[dependent] = next_tier
                queue.append(dependent)
    if len(queue) < len(steps):
        stuck = [step for step, count in enumerate(missing) if count]
        raise CyclicDependencyError([steps[step].name for step in _cycle(stuck, dependencies)])
    return tier_of


def _cycle(stuck: list[int], dependencies: list[tuple[int, ...]]) -> list[int]:
    """Return one circle among the steps that Kahn's algorithm did not reach.

    Each of them depends on another one of them. So a walk from dependency to dependency never ends,
    and must return to a step where it has been.
    """
    among = set(stuck)
    walked: dict[int, int] = {}  # each step of the walk, and its position in it
    step = stuck[0]
    while step not in walked:
        walked[step] = len(walked)
        step = next(needed for needed in dependencies[step] if needed in among)
    circle = list(walked)[walked[step] :]
    circle.reverse()  # the walk went from a step to what it depends on
    first = circle.index(min(circle))
    return [*circle[first:], *circle[:first], circle[first]]


Binding: TypeAlias = tuple[tuple[str, int | str], ...]
"""Where an action gets its arguments: pairs of a parameter and its source, which is the index of a
step, for its output, or the name of a run input or a resource; an `ItemOf` for each item of an
input."""


class ItemOf(str):
    """The name of a run input, in a binding for each of its items."""

    __slots__ = ()


class Bindings(NamedTuple):
    """Where the actions and the conditions of a plan get their arguments, by step."""

    actions: list[Binding]
    conditions: dict[int, Binding]

    def sources(self, step: int) -> list[int | str]:
        """Return where the action and the condition of a step get their arguments."""
        return [source for _, source in (*self.actions[step], *self.conditions.get(step, ()))]


ITEM = -1
"""Stands in a binding for the step over whose output the action is mapped."""


def bind(plan: Plan, inputs: Collection[str] = ()) -> list[Binding]:
    """Find where each action gets its arguments, for each step by its index.

    Raise `ValueError` if nothing provides a required parameter, two things do, or an action in
    another process or on an engine would receive a resource.
    """
    for at in plan.having("map_over"):
        _check_mapped_over(plan.steps[at], plan, inputs)
    nothing: Binding = ()
    return [
        nothing
        if step.signature is NO_PARAMETERS
        else _binding(step, step.signature, plan, inputs, step.map_over)
        for step in plan.steps
    ]


def _check_mapped_over(step: WorkflowStep, plan: Plan, inputs: Collection[str]) -> None:
    """Check that a mapped step is mapped over a step or an input, and not over both."""
    source = step.map_over
    if source is None or (source in plan.index) is not (source in inputs):
        return
    if source in inputs:
        raise ValueError(
            f"step {step.name!r} is mapped over {source!r}, which is both a step and a run input; "
            "rename the input"
        )
    parameter = next((taker for taker, name in step.parameters if name == source), source)
    known = [name for name in plan.index if name != step.name]
    raise MissingInputError(
        parameter,
        f"step {step.name!r}",
        f"it is mapped over unknown step {source!r}{did_you_mean(source, known)}, and no input has "
        "that name",
    )


def bind_conditions(plan: Plan, inputs: Collection[str] = ()) -> dict[int, Binding]:
    """Find where each ``when`` gets its arguments, for each step that has one, by its index.

    Raise as `bind` does.
    """
    return {
        index: _binding(step, step.condition, plan, inputs, None)
        for index, step in ((at, plan.steps[at]) for at in plan.having("when"))
    }


def _binding(
    step: WorkflowStep,
    accepts: Signature,
    plan: Plan,
    inputs: Collection[str],
    map_over: str | None,
) -> Binding:
    offered = _offered(step, plan, map_over)
    sources: list[tuple[str, int | str]] = []
    for parameter in accepts.names:
        if parameter in offered:
            source = offered.pop(parameter)
            if source != parameter:  # the input itself, over which the step is mapped
                _check_single_source(step, parameter, inputs, plan.resources)
            sources.append((parameter, source))
        elif parameter in plan.resources:
            if not accepts.is_data:
                raise ValueError(
                    f"the description of step {step.name!r} takes resource {parameter!r}, which "
                    "may not be open when the step begins to wait; let a step before it take that"
                )
            if accepts is step.signature:
                _check_same_process(step, parameter)
            sources.append((parameter, parameter))
        elif parameter in inputs:
            sources.append((parameter, parameter))
        elif parameter in accepts.required:
            raise _nothing_provides(step, accepts, parameter, plan, [*offered, *inputs])
    if accepts.takes_kwargs:
        for parameter, source in offered.items():
            if parameter not in accepts.bound:
                if source != parameter:
                    _check_single_source(step, parameter, inputs, plan.resources)
                sources.append((parameter, source))
    return tuple(sources)


def _nothing_provides(
    step: WorkflowStep, accepts: Signature, parameter: str, plan: Plan, known: list[str]
) -> ValueError:
    of_what = "the condition of " if accepts is step.condition else ""
    of_what = of_what if accepts.is_data else "the description of "
    taker = f"{of_what}step {step.name!r}"
    for received, name in step.parameters:
        if name == parameter:
            return ValueError(
                f"nothing provides parameter {parameter!r} of {taker}: the output of step {name!r} "
                f"is received as {received!r} there"
            )
    if parameter in plan.index and parameter != step.name:
        marker = "" if of_what else f"write {parameter}=after({parameter}), or "
        return ValueError(
            f"nothing provides parameter {parameter!r} of {taker}: there is a step {parameter!r}, "
            f"but it is not a dependency; {marker}name it in depends_on"
        )
    what = "a dependency of the step nor a run input"
    if plan.resources:
        what = "a dependency of the step, nor a run input, nor a resource"
    hint = f"it is neither {what}{did_you_mean(parameter, [*known, *plan.resources])}"
    return MissingInputError(parameter, taker, hint)


def _offered(step: WorkflowStep, plan: Plan, map_over: str | None) -> dict[str, int | str]:
    """Return a step's dependencies as sources, by the parameter that would receive their output.

    An input over which it is mapped is among them. ``map_over`` is what each item is taken of;
    ``None`` for a condition, which takes all items at once.
    """
    source_of: dict[str, int | str] = {name: plan.index[name] for name in step.depends_on}
    if step.map_over is not None and step.map_over not in plan.index:
        source_of[step.map_over] = ItemOf(step.map_over) if map_over else step.map_over
    elif map_over is not None:
        source_of[map_over] = ITEM
    renamed = {name for _, name in step.parameters}
    offered = {name: source for name, source in source_of.items() if name not in renamed}
    offered.update((parameter, source_of[name]) for parameter, name in step.parameters)
    return offered


def _check_single_source(
    step: WorkflowStep, parameter: str, inputs: Collection[str], resources: Collection[str]
) -> None:
    if parameter in inputs or parameter in resources:
        kind = "resource" if parameter in resources else "input"
        a_kind = "a resource" if parameter in resources else "a run input"
        raise ValueError(
            f"parameter {parameter!r} of step {step.name!r} is provided twice: by a "
            f"dependency and by {a_kind} of that name; rename the {kind}, or map the "
            "dependency to another parameter"
        )


def outputs_to_keep(plan: Plan, bindings: Bindings) -> frozenset[int]:
    """Return the steps whose outputs may stay on the engines that make them.

    Only steps on the same engine take such an output, and at least one does. No condition takes it,
    no step is mapped over it, and it is none that the caller has named as a target. The output of a
    mapped step is a list that the run makes.
    """
    steps = plan.steps
    engines = {at: steps[at].remote for at in plan.having("engine")}
    taken: set[int] = set()
    needed_here = {plan.index[name] for name in plan.targets}
    needed_here.update(at for at in engines if steps[at].map_over or steps[at].retry.until)
    for step, binding in zip(steps, bindings.actions, strict=True):
        for _, source in binding:
            if source == ITEM:
                needed_here.add(plan.index[step.map_over or ""])
            elif isinstance(source, int):
                taken.add(source)
                if engines.get(source) is not step.remote:
                    needed_here.add(source)
    for binding in bindings.conditions.values():
        needed_here.update(source for _, source in binding if isinstance(source, int))
    moves = {at for at, engine in engines.items() if engine is not None and engine.moves_data}
    return frozenset((moves & taken) - needed_here)


def _check_same_process(step: WorkflowStep, parameter: str) -> None:
    if step.remote is not None:
        where, instead = f"on engine {step.remote.name!r}", 'give the step engine="local"'
    elif step.runs_in == "process":
        where, instead = "in another process", "let the step run in the loop or a thread"
    else:
        return
    raise ValueError(
        f"step {step.name!r} runs {where}, to which its parameter {parameter!r} can't be sent: "
        f"that receives resource {parameter!r} of the run; open one in the action, or {instead}"
    )


def with_dependents(
    names: Iterable[str], dependencies: Iterable[tuple[str, Iterable[str]]]
) -> set[str]:
    """Return these steps and all that depend on them, directly or not."""
    dependents: dict[str, list[str]] = {}
    for name, needed in dependencies:
        for other in needed:
            dependents.setdefault(other, []).append(name)
    return _reachable(names, lambda name: dependents.get(name, ()))


class ForwardOutputs:
    """The action of the step that stands for an included pipeline.

    It returns the outputs of ``steps``, by the names that they have inside.
    """

    def __init__(self, steps: dict[str, WorkflowStep]) -> None:
        self.steps = steps

    # The parameters have the full names of the steps, which no input of a run has by accident.
    async def __call__(self, **outputs: Any) -> Any:
        """Return the only output, or a dictionary of all outputs."""
        if len(self.steps) == 1:
            return next(iter(outputs.values()))
        return dict(zip(self.steps, outputs.values(), strict=True))


def takers_of(plan: Plan, bindings: Bindings, source: int) -> list[int]:
    """Return the steps that take the output of a step, or each of its items.

    A mapped step whose items all take it is there twice. A step that takes what an included
    pipeline forwards takes the output of the step inside.
    """
    takers: list[int] = []
    queue = [source]
    for at in queue:  # it grows while it is read
        for later in plan.dependents[at]:
            times = _times_taken(plan.steps[later], bindings, later, at, plan.steps[at].name)
            if times and isinstance(plan.steps[later].action, ForwardOutputs):
                queue.append(later)
            else:
                takers += [later] * times
    return takers


def refuse_shared_inputs(plan: Plan, bindings: Bindings, inputs: Mapping[str, object]) -> None:
    """Refuse an input that is an iterator, if a step is mapped over it and it is taken again."""
    for name in sorted(
        inputs_mapped_over(plan.steps[at] for at in plan.having("map_over")) & inputs.keys()
    ):
        if name in plan.index or not is_iterator(inputs[name]):
            continue
        times = [_times_taken(step, bindings, at, name, name) for at, step in enumerate(plan.steps)]
        if sum(times) > 1:
            takers = [step.name for step, taken in zip(plan.steps, times, strict=True) if taken]
            raise TypeError(
                f"input {name!r} is an iterator ({type(inputs[name]).__name__}), which "
                f"{shared_by(takers)}; pass {instead_of_iterator(inputs[name])}"
            )


def _times_taken(
    step: WorkflowStep, bindings: Bindings, at: int, source: int | str, name: str
) -> int:
    """Return how often a step takes the output of another one, or an input, of that name.

    Its action and its condition are one, but each item takes what a mapped step is given whole.
    """
    is_given = any(
        each == source and not isinstance(each, ItemOf) for _, each in bindings.actions[at]
    )
    if step.map_over is not None and is_given:
        return 2
    return int(is_given or step.map_over == name or source in bindings.sources(at))


def maker_of(plan: Plan, source: int) -> int:
    """Return the step that has made the output of a step: inside, if that only forwards it."""
    while isinstance(forward := plan.steps[source].action, ForwardOutputs):
        if len(forward.steps) != 1:
            break  # a dictionary of several
        source = plan.dependencies[source][0]
    return source


class OutputTypes:
    """The annotated output type of each step of a plan, found when it is first needed."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._types: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._types:
            from asyncflow._core.pipeline.annotations import output_type  # only for a journal

            self._types[name] = output_type(self._plan.steps[self._plan.index[name]])
        return self._types[name]
