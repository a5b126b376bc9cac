"""What the explorer runs: a pipeline, what each attempt of its steps does, and what disturbs it.

All of it is plain data, made from one integer, so that a failure can be replayed and made smaller.
Times are in ticks: far enough apart for the driver to tell them, and few, so that they often tie.
"""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

__all__ = [
    "GIVEN",
    "TICK_MS",
    "Act",
    "Case",
    "Fault",
    "Flow",
    "Items",
    "PoolSpec",
    "Step",
    "calling",
    "change_pools",
    "dependencies_of",
    "disturb_more",
    "durable",
    "enriched",
    "keyed",
    "random_fault",
    "random_flow",
    "tiers_of",
]

TICK_MS = 8
GIVEN = -1
"""What `Step.maps` is for a step that is mapped over the input ``given`` of its run."""


def _shown(self: Any) -> str:
    """Return the `repr` without the fields that have their defaults."""
    defaults = self._field_defaults
    fields = [
        f"{name}={value!r}"
        for name, value in zip(self._fields, self, strict=True)
        if name not in defaults or value != defaults[name]
    ]
    return f"{type(self).__name__}({', '.join(fields)})"


class Act(NamedTuple):
    """What one attempt does."""

    waits: tuple[int, ...] = ()
    """It first sleeps so many ticks each; 0 is one turn of the loop."""
    end: str = "return"
    """Then it does one of `ENDS`."""
    on_cancel: str = "obey"
    """What it does when it is cancelled: one of `ANSWERS`. It may return after two."""
    clean: tuple[int, ...] = ()
    """It sleeps so long between the cancellation and its answer."""
    block: int = 0
    """For how many ticks it blocks the loop before all else."""

    def __repr__(self) -> str:
        return _shown(self)


ENDS = {
    "return": 60,
    "raise": 12,
    "hang": 7,
    "exit": 1,  # raise something that is not an Exception
    "cancelled": 2,  # raise CancelledError
    "cancel itself": 2,  # and return before that has an effect
    "cancel itself and wait": 2,
    "await a cancelled future": 2,
    "timeout error": 2,  # raise TimeoutError
}
ANSWERS = {"obey": 60, "return": 14, "raise": 14, "exit": 2, "go on": 6}


STREAM_WAITS = 2


class Items(NamedTuple):
    """What a step returns that another one maps over, or what an input of the run is."""

    count: int
    kind: str = "list"
    """``list``; ``pairs`` for a list in which each item comes twice; ``iterable``; or ``stream``
    for an async iterable that waits once, for `STREAM_WAITS` ticks, before its second item."""
    breaks: str = ""
    """What follows the last item: nothing, ``raise``, ``cancelled`` or ``exit``."""

    def __repr__(self) -> str:
        return _shown(self)


class PoolSpec(NamedTuple):
    """A pool."""

    size: int
    interval: int | None = None
    """How many ticks are between two starts."""
    tokens: int | None = None
    """How many ticks one token takes."""
    budget: int | None = None
    """How many retries it allows, of which none is earned."""
    pauses: bool = True
    per_key: int | None = None

    def __repr__(self) -> str:
        return _shown(self)


class Step(NamedTuple):
    """A step."""

    name: str
    needs: tuple[int, ...] = ()
    acts: tuple[Act, ...] = (Act(),)
    """The n-th attempt does the n-th of them, or the last. Items begin at different ones."""
    retries: int = 1
    timeout: int | None = None
    """In ticks; ``None`` for the default of 30 s."""
    backoff: int = 0
    doubling: bool = False
    refused: int = 0
    """How many attempts return what `Retry.until` refuses."""
    deadline: int | None = None
    heartbeat: int | None = None
    beats: bool = False
    pool: int | None = None
    slots: int = 1
    asks: bool = False
    """Whether a function says how many slots it takes."""
    tokens: int = 0
    priority: int = 0
    key: str = ""
    """Its key in the pool: none, a name, or ``by item``; with ``raise``, the function does that for
    the step, or for each second item."""
    named: int | None = None
    """In how many ticks the service wants to be asked again, if the action raises."""
    maps: int | None = None
    items: Items | None = None
    when: str = ""
    """Nothing, or whether the condition says ``yes`` or ``no``, or does ``raise`` or ``exit``."""
    run_if: str = "success"
    tolerated: float = 0
    fallback: str = ""
    """Nothing, or whether it returns a ``value``, or does ``raise``."""
    keeps: bool = True
    """Whether it keeps its outputs. If not, no other step takes the whole."""
    thread: bool = False
    """Whether it runs in a thread."""
    measured: str = ""
    """What the function for its slots does with the arguments: nothing; ``counts``; or for the
    step, or each second item, ``raise`` or return too ``much``."""
    resource: bool = False
    """Whether it takes the resource of the run."""
    notes: int = 0
    """How many times each attempt says something before each of its waits."""
    saves: int = 0
    """How many checkpoints each attempt makes before each of its waits, and one less before all."""
    pays: str = ""
    """How it makes its waits: nothing for plainly; as calls by name, each ``in turn``, ``at once``
    with another call, beside one that is ``left`` running in a task, or ``again`` after its
    function has raised."""
    streams: int = 0
    """How many values each attempt streams before each of its waits, and at the end of each call
    that it has left running."""
    caches: int = 0
    """For how many ticks it reuses the results of equal calls; with 0 it does not."""
    equal: bool = False
    """Whether what it returns tells neither its item nor its attempt."""

    def __repr__(self) -> str:
        return _shown(self)

    @property
    def is_cleanup(self) -> bool:
        """Whether it runs although the run stops for a failure."""
        return self.run_if in ("failure", "always")


class Flow(NamedTuple):
    """A pipeline and the options of its runs."""

    steps: tuple[Step, ...]
    pools: tuple[PoolSpec, ...] = ()
    fail_fast: bool = False
    schedule: str = "tiers"
    max_concurrency: int | None = None
    deadline: int | None = None
    copies: int = 1
    """How many runs of it go on at once."""
    offset: int = 0
    """How many ticks after the first one the second one starts."""
    eager: bool = False
    ahead: int = 100
    """How many finished items may wait for the next step of a chain."""
    given: Items | None = None
    """The input of the run, if steps are mapped over it."""
    threads: int = 40
    """How many steps may be in a thread at a time."""
    resource: tuple[int, int] | None = None
    """How many ticks the resource of the run opens and closes, if it has one."""
    resource_fails: str = ""
    """When the resource raises: never, or when it ``opens`` or ``closes``."""
    durable: bool = False
    """Whether its runs have a journal, which they share."""
    order: int | None = None
    """Shuffles what is ready at the same time; ``None`` for the order of asyncio."""

    def __repr__(self) -> str:
        return _shown(self)


class Fault(NamedTuple):
    """What disturbs the first run."""

    cancels: tuple[tuple[int, int], ...] = ()
    """The turns of the loop in which its caller is cancelled, and after how many callbacks."""
    strangers: tuple[tuple[int, int], ...] = ()
    """The turns in which a third party cancels a task of a step, and which."""
    observer: tuple[str, int] | None = None
    """What an observer does at which event: ``raise``, ``cancelled``, ``exit``, ``cancel caller``
    or ``cancel task``."""
    scope: tuple[str, int] | None = None
    """Around the run: ``anyio`` or ``timeout``, and after how many ticks it expires."""
    fails_at: int | None = None
    """At the how manieth of the events of the run its journal fails."""
    requests: tuple[tuple[int, int], ...] = ()
    """The turns in which the run is cancelled through its journal, and after how many callbacks."""
    changes: tuple[tuple[int, int, int, PoolSpec], ...] = ()
    """The turns in which the numbers of a pool are set, after how many callbacks, and which."""

    def __repr__(self) -> str:
        return _shown(self)


class Case(NamedTuple):
    """One simulated run."""

    flow: Flow
    fault: Fault = Fault()

    def __repr__(self) -> str:
        return _shown(self)


def dependencies_of(steps: tuple[Step, ...]) -> list[tuple[int, ...]]:
    """Return the dependencies of each step.

    A clean-up step without any depends on all but those, and what follows them.
    """
    last = {index for index, step in enumerate(steps) if step.is_cleanup and not step.needs}
    for index, step in enumerate(steps):  # a step needs only earlier ones
        if last.intersection(step.needs):
            last.add(index)
    others = tuple(index for index in range(len(steps)) if index not in last)
    return [step.needs or (others if step.is_cleanup else ()) for step in steps]


def tiers_of(dependencies: list[tuple[int, ...]]) -> list[int]:
    """Return the number of each step's tier."""
    tiers: dict[int, int] = {}

    def tier_of(step: int) -> int:
        if step not in tiers:
            tiers[step] = max((tier_of(need) + 1 for need in dependencies[step]), default=0)
        return tiers[step]

    return [tier_of(step) for step in range(len(dependencies))]


def random_flow(chance: Random) -> Flow:
    """Return a random pipeline of 1 to 8 steps."""
    random = chance.random
    pools = tuple(_random_pool(chance) for _ in range(int(random() * 3)))
    steps: list[Step] = []
    count = _pick(chance, _COUNTS)
    spicy = random() < 0.6
    for index in range(count):
        needs: tuple[int, ...] = ()
        if index and random() < 0.7:
            needs = tuple(sorted({int(random() * index) for _ in range(1 + int(random() * 2))}))
        mapped = [at for at, step in enumerate(steps) if step.maps is not None]
        if mapped and random() < 0.3:
            needs = tuple(sorted({*needs[:1], mapped[int(random() * len(mapped))]}))
        steps.append(_random_step(chance, f"s{index}", needs, steps, pools, spicy))
    for index, step in enumerate(steps):
        later = [other for other in steps if index in other.needs]
        may_drop = step.maps is not None and all(
            other.maps == index and not other.when for other in later
        )
        if may_drop and random() < 0.4:
            steps[index] = step._replace(keeps=False)
    return Flow(
        tuple(steps),
        pools,
        fail_fast=random() < 0.5,
        schedule="tiers" if random() < 0.5 else "ready",
        max_concurrency=1 + int(random() * 3) if random() < 0.35 else None,
        deadline=1 + int(random() * 9) if random() < 0.2 else None,
        copies=2 if random() < 0.12 else 1,
        offset=int(random() * 3),
        eager=random() < 0.25,
        ahead=int(random() * 3) if random() < 0.5 else 100,
    )


def enriched(flow: Flow, chance: Random) -> Flow:
    """Return a pipeline with more policies, for three in five; those of the numbers stay as is."""
    random = chance.random
    if random() < 0.4:
        return flow
    crowded = bool(flow.pools) and random() < 0.4
    if crowded and random() < 0.6:  # then its line is judged
        flow = flow._replace(max_concurrency=None, copies=1)
    has_resource = flow.deadline is None and random() < 0.3
    in_threads = (0.0, 0.15, 0.4, 0.8)[int(random() * 4)]
    steps = []
    for step in flow.steps:
        if crowded and step.pool is None and random() < 0.6:
            step = step._replace(pool=0)
        if step.pool is not None:
            if random() < (0.7 if crowded else 0.4):
                step = step._replace(priority=int(random() * 3) - 1)
            of_fallback = step.maps is not None and flow.steps[step.maps].fallback
            if random() < 0.25 and not of_fallback:
                what = ("counts", "counts", "raise", "much")[int(random() * 4)]
                step = step._replace(measured=what, asks=False)
        items = step.items
        if items is not None and items.kind == "iterable" and random() < 0.5:
            step = step._replace(items=items._replace(kind="iterator"))
        elif items is not None and items.kind == "stream" and random() < 0.2:
            step = step._replace(items=items._replace(breaks="hang"))
        steps.append(
            step._replace(
                thread=random() < in_threads,
                resource=has_resource and random() < 0.5,
                notes=1 + int(random() * 2) if random() < 0.15 else 0,
            )
        )
    flow = flow._replace(
        steps=tuple(steps),
        resource=(int(random() * 4), int(random() * 3)) if has_resource else None,
        threads=1 + int(random() * 2) if random() < 0.4 else 40,
    )
    return flow if random() < 0.7 else _over_input(flow, chance)


def keyed(flow: Flow, chance: Random) -> Flow:
    """Return a pipeline with keys in its pools, for two in five; the others stay as they are."""
    random = chance.random
    if not flow.pools or random() < 0.6:
        return flow
    pools = tuple(
        pool._replace(per_key=1 + int(random() * 2) if random() < 0.7 else None)
        for pool in flow.pools
    )
    steps = []
    for step in flow.steps:
        of_fallback = step.maps is not None and flow.steps[step.maps].fallback
        if step.pool is not None and random() < 0.7 and not of_fallback and not step.measured:
            per_key = pools[step.pool].per_key or step.slots
            key = ("a", "b", "by item", "by item", "by item", "raise")[int(random() * 6)]
            step = step._replace(key=key, slots=min(step.slots, per_key))
        steps.append(step)
    return flow._replace(steps=tuple(steps), pools=pools)


def durable(flow: Flow, chance: Random) -> Flow:
    """Return a pipeline with policies that store things, for two in five; others stay as is."""
    random = chance.random
    if random() < 0.6:
        return flow
    flow = _saving(flow, chance)
    if flow.resource is not None and random() < 0.2:
        flow = flow._replace(resource_fails="opens" if random() < 0.4 else "closes")
    if random() < 0.3:
        return flow
    may_be_equal = random() < 0.7
    measured = _sources_of(flow, [step for step in flow.steps if step.measured or step.key])
    steps = []
    for at, step in enumerate(flow.steps):
        acts = tuple(act._replace(block=0) for act in step.acts)
        items = _stored(step.items, may_be_equal and at not in measured, chance)
        steps.append(
            step._replace(
                acts=acts,
                items=items,
                caches=_pick(chance, _AGES),
                equal=may_be_equal and at not in measured and random() < 0.4,
            )
        )
    given = _stored(flow.given, may_be_equal and GIVEN not in measured, chance)
    if flow.copies == 1 and random() < 0.3:
        flow = flow._replace(copies=2)
    return flow._replace(steps=tuple(steps), given=given, durable=True)


def calling(flow: Flow, chance: Random) -> Flow:
    """Return a pipeline whose steps make calls by name and stream values, for two in five."""
    random = chance.random
    if random() < 0.6:
        return flow
    pays, streams = random() < 0.8, random() < 0.6
    steps = (
        step._replace(
            pays=_PAYS[int(random() * len(_PAYS))] if pays and not step.thread else "",
            streams=int(random() * 3) if streams else 0,
        )
        for step in flow.steps
    )
    return flow._replace(steps=tuple(steps))


_PAYS = ("", "in turn", "at once", "left", "again")


def _sources_of(flow: Flow, steps: list[Step]) -> set[int]:
    """Return what steps are mapped over, and what that is mapped over, and so on."""
    found = set()
    for step in steps:
        source = step.maps
        while source is not None:
            found.add(source)
            source = None if source == GIVEN else flow.steps[source].maps
    return found


def _saving(flow: Flow, chance: Random) -> Flow:
    random, much = chance.random, chance.random() < 0.5
    steps = (
        step._replace(saves=1 + int(random() * 2) if random() < (0.6 if much else 0.2) else 0)
        for step in flow.steps
    )
    return flow._replace(steps=tuple(steps))


def _stored(items: Items | None, may_be_equal: bool, chance: Random) -> Items | None:
    """Return items that can be stored."""
    if items is None:
        return None
    is_equal = may_be_equal and chance.random() < 0.6
    return Items(items.count, "pairs" if is_equal else "list")


def _over_input(flow: Flow, chance: Random) -> Flow:
    """Return a pipeline of which some steps are mapped over an input of the run."""
    random = chance.random
    steps = tuple(
        step._replace(maps=GIVEN, tolerated=(0, 0, 1, 0.5, 1.0)[int(random() * 5)])
        if step.maps is None and step.items is None and random() < 0.5
        else step
        for step in flow.steps
    )
    if not any(step.maps == GIVEN for step in steps):
        return flow
    kind = ("list", "list", "iterable", "stream")[int(random() * 4)]
    breaks = _pick(chance, _BREAKS) if kind != "list" else ""
    return flow._replace(steps=steps, given=Items(int(random() * 5), kind, breaks))


def _random_pool(chance: Random) -> PoolSpec:
    random = chance.random
    return PoolSpec(
        1 + int(random() * 3),
        1 if random() < 0.2 else None,
        tokens=1 if random() < 0.15 else None,
        budget=int(random() * 3) if random() < 0.15 else None,
        pauses=random() < 0.9,
    )


def random_fault(chance: Random, turns: int, events: int) -> Fault:
    """Return what disturbs a run that took so many turns and events without it."""
    random = chance.random

    def turn() -> tuple[int, int]:
        return int(random() * (turns + 1)), int(random() * 6)

    cancels: tuple[tuple[int, int], ...] = ()
    kind = random()
    if kind < 0.5:
        cancels = (turn(),)
        if random() < 0.3:
            second = cancels[0][0] + int(random() * 6) if random() < 0.5 else turn()[0]
            cancels = (cancels[0], (second, int(random() * 6)))
    strangers = tuple(turn() for _ in range(1 + int(random() * 2))) if 0.45 < kind < 0.75 else ()
    observer = scope = None
    if kind > 0.85 or random() < 0.08:
        observer = _pick(chance, _OBSERVERS), int(random() * (events + 1))
    if random() < 0.08 and not cancels:
        scope = "anyio" if random() < 0.5 else "timeout", int(random() * 8)
    return Fault(cancels, strangers, observer, scope)


def disturb_more(flow: Flow, fault: Fault, chance: Random, turns: int, events: int) -> Fault:
    """Return a disturbance of a durable run that its journal may be, too."""
    if not flow.durable or chance.random() < 0.6:
        return fault
    if chance.random() < 0.6:
        return fault._replace(fails_at=1 + int(chance.random() * (events + 1)))
    turn = int(chance.random() * (turns + 1)), int(chance.random() * 6)
    return fault._replace(requests=(turn,))


def change_pools(flow: Flow, fault: Fault, chance: Random, turns: int) -> Fault:
    """Return a disturbance in which the numbers of pools may change, too."""
    random = chance.random
    used = sorted({step.pool for step in flow.steps if step.pool is not None})
    if not used or random() < 0.6:
        return fault
    changes = []
    for _ in range(1 + int(random() * 3)):
        pool = used[int(random() * len(used))]
        has_tokens = flow.pools[pool].tokens is not None
        numbers = PoolSpec(
            1 + int(random() * 4),
            1 + int(random() * 2) if random() < 0.3 else None,
            tokens=1 + int(random() * 2) if has_tokens and random() < 0.7 else None,
        )
        changes.append((int(random() * (turns + 1)), int(random() * 6), pool, numbers))
    return fault._replace(changes=tuple(changes))


def _pick(chance: Random, table: tuple[list[Any], list[float]]) -> Any:
    return chance.choices(table[0], cum_weights=table[1])[0]


def _table(weights: dict[Any, float]) -> tuple[list[Any], list[float]]:
    total, sums = 0.0, []
    for weight in weights.values():
        total += weight
        sums.append(total)
    return list(weights), sums


_COUNTS = _table({1: 10, 2: 20, 3: 22, 4: 18, 5: 12, 6: 8, 7: 6, 8: 4})
_WAITS = _table(
    {
        (): 25,
        (0,): 14,
        (0, 0): 5,
        (1,): 14,
        (2,): 12,
        (3,): 10,
        (4,): 4,
        (0, 1): 5,
        (1, 0): 5,
        (1, 1): 4,
        (6,): 2,
    }
)
_CLEAN = _table({(): 40, (0,): 20, (1,): 16, (2,): 10, (0, 1): 5, (3, 0): 4, (4,): 4, (700,): 1})
_ENDS = _table(ENDS)
_ANSWERS = _table(ANSWERS)
_OBSERVERS = _table({"raise": 3, "cancelled": 1, "exit": 2, "cancel caller": 2, "cancel task": 2})
_RUN_IF = _table({"always": 7, "failure": 4, "unless_failed": 5})
_AGES = _table({0: 5, 1: 1, 3: 1, 100_000: 4})
_BREAKS = _table({"": 20, "raise": 2, "cancelled": 1, "exit": 0.5})


def _random_act(chance: Random, spicy: bool) -> Act:
    waits = _pick(chance, _WAITS)
    if not spicy and chance.random() < 0.7:
        return Act(waits)
    return Act(
        waits,
        _pick(chance, _ENDS),
        _pick(chance, _ANSWERS),
        _pick(chance, _CLEAN),
        block=1 + int(chance.random() * 3) if chance.random() < 0.012 else 0,
    )


def _random_step(
    chance: Random,
    name: str,
    needs: tuple[int, ...],
    earlier: list[Step],
    pools: tuple[PoolSpec, ...],
    spicy: bool,
) -> Step:
    random = chance.random
    options: dict[str, Any] = {}
    acts = [_random_act(chance, spicy)]
    while random() < 0.4 and len(acts) < 3:
        acts.append(_random_act(chance, spicy))
    if random() < 0.45:
        options["retries"] = 2 + int(random() * 2)
        options["backoff"] = int(random() * 3)
        options["doubling"] = random() < 0.2
        if random() < 0.1:
            options["refused"] = 1 + int(random() * 2)
    if random() < 0.4:
        options["timeout"] = 1 + int(random() * 5)
    if random() < 0.12:
        options["deadline"] = 1 + int(random() * 9)
        if random() < 0.6:
            options["retries"] = 2 + int(random() * 2)
    if random() < 0.1:
        options["heartbeat"], options["beats"] = 1 + int(random() * 3), random() < 0.6
    if pools and random() < (0.7 if "deadline" in options else 0.4):
        pool = options["pool"] = int(random() * len(pools))
        if random() < 0.3:
            options["slots"] = 1 + int(random() * pools[pool].size)
            options["asks"] = random() < 0.3
        if pools[pool].tokens is not None:
            options["tokens"] = int(random() * 4)
        if random() < 0.3:
            options["priority"] = int(random() * 3) - 1
        if random() < 0.4 and (pools[pool].pauses or "retries" in options):
            options["named"] = int(random() * 4)
    chained = [need for need in needs if earlier[need].maps is not None]
    if needs and random() < (0.7 if chained else 0.3):
        source = options["maps"] = chained[-1] if chained else needs[int(random() * len(needs))]
        if earlier[source].items is None and earlier[source].maps is None:
            kind = ("list", "list", "iterable", "stream")[int(random() * 4)]
            breaks = _pick(chance, _BREAKS) if kind != "list" else ""
            items = Items(int(random() * 5), kind, breaks)
            earlier[source] = earlier[source]._replace(items=items)
        if random() < 0.4:
            options["tolerated"] = (1, 2, 0.34, 0.5, 1.0)[int(random() * 5)]
    if random() < 0.08:
        options["when"] = ("yes", "yes", "no", "no", "raise", "exit")[int(random() * 6)]
    if random() < 0.16:
        options["run_if"] = _pick(chance, _RUN_IF)
        if not earlier and random() < 0.5:
            del options["run_if"]
    if random() < 0.12:
        options["fallback"] = "value" if random() < 0.7 else "raise"
    return Step(name, needs, tuple(acts), **options)
