"""Simulates random runs one after the other until one breaks a promise.

Run number ``n`` is the variation ``n % 8`` of pipeline number ``n // 8``: the first variation is
not disturbed, and tells how long the run takes, so that the others can be disturbed anywhere.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Collection, Iterator
from random import Random
from typing import NamedTuple

from tests.explore.cases import (
    Case,
    Fault,
    Flow,
    Step,
    calling,
    change_pools,
    disturb_more,
    durable,
    enriched,
    keyed,
    random_fault,
    random_flow,
)
from tests.explore.model import violations
from tests.explore.world import Pipeline

__all__ = ["VARIATIONS", "Failure", "case_of", "check", "explore", "shrink"]

VARIATIONS = 8
_THOROUGH = 7
"""One in so many runs is also compared with the replay of its events."""
_COLLECT_EVERY = 4_000
_SHRINKS = 3_000
"""How many smaller cases are tried at most."""


class Failure(NamedTuple):
    """A run that broke a promise."""

    number: int
    case: Case
    found: list[str]


def explore(
    first: int,
    runs: int,
    *,
    known: Collection[int] = (),
    on_progress: Callable[[int], object] | None = None,
) -> Failure | None:
    """Simulate runs; return the first one that breaks a promise.

    Args:
        first: The number of the first run.
        runs: How many there are.
        known: The numbers of runs that are left out, since they are known to break one.
        on_progress: Called now and then with how many there were so far.
    """
    end = number = first
    end += runs
    log, was_enabled = logging.getLogger("asyncflow"), gc.isenabled()
    log.propagate = False  # to its NullHandler alone
    gc.disable()  # it is called between runs, in which it finds less
    try:
        while number < end:
            failure = _explore_pipeline(number, end, known)
            if failure is not None:
                return failure
            number = (number // VARIATIONS + 1) * VARIATIONS
            if number % _COLLECT_EVERY == 0:
                gc.collect()
                if on_progress is not None:
                    on_progress(min(number, end) - first)
    finally:
        log.propagate = True
        if was_enabled:
            gc.enable()
    return None


def _explore_pipeline(number: int, end: int, known: Collection[int]) -> Failure | None:
    whole = number // VARIATIONS
    chance = Random(whole)
    flow = _flow_of(whole, chance)
    pipeline = Pipeline(flow)
    turns = events = 0
    for variation in range(VARIATIONS):
        at = whole * VARIATIONS + variation
        if at >= end:
            break
        fault = Fault() if not variation else random_fault(chance, turns, events)
        if variation:
            fault = disturb_more(flow, fault, Random(f"journal {at}"), turns, events)
            fault = change_pools(flow, fault, Random(f"pools {at}"), turns)
        if variation and (at < number or at in known):
            continue
        world = pipeline.simulate(fault)
        if not variation:
            turns, events = world.loop.turns, len(world.log)
        found = violations(Case(flow, fault), world, thorough=at % _THOROUGH == 0)
        world.forget()
        if found:
            return Failure(at, Case(flow, fault), found)
    pipeline.orchestrators.clear()  # their steps refer to the pipeline
    gc.collect(0)
    return None


def _flow_of(whole: int, chance: Random, *, is_enriched: bool = True) -> Flow:
    """Return the pipeline of that number; two in five run in a shuffled order."""
    flow = random_flow(chance)
    if is_enriched:
        flow = enriched(flow, Random(f"more {whole}"))
        flow = keyed(flow, Random(f"keys {whole}"))
        flow = durable(flow, Random(f"durable {whole}"))
        flow = calling(flow, Random(f"calls {whole}"))
    return flow._replace(order=whole) if whole % 5 > 2 else flow


def case_of(number: int, *, is_enriched: bool = True) -> Case:
    """Return what a run with that number simulates."""
    chance = Random(number // VARIATIONS)
    flow = _flow_of(number // VARIATIONS, chance, is_enriched=is_enriched)
    world = Pipeline(flow).simulate(Fault())
    fault, turns, events = Fault(), world.loop.turns, len(world.log)
    for _ in range(number % VARIATIONS):
        fault = random_fault(chance, turns, events)
    if number % VARIATIONS:
        fault = disturb_more(flow, fault, Random(f"journal {number}"), turns, events)
        if is_enriched:
            fault = change_pools(flow, fault, Random(f"pools {number}"), turns)
    return Case(flow, fault)


def check(case: Case) -> list[str]:
    """Simulate one run; return which promises it breaks."""
    return violations(case, Pipeline(case.flow).simulate(case.fault), thorough=True)


def _fails(case: Case) -> bool:
    try:
        return bool(check(case))
    except Exception:  # a smaller case may make no sense, such as one that maps over nothing
        return False


def shrink(case: Case, *, fails: Callable[[Case], bool] = _fails) -> Case:
    """Return the smallest case found that still breaks a promise."""
    left = _SHRINKS
    smaller = True
    while smaller and left > 0:
        smaller = False
        for candidate in _simpler(case):
            left -= 1
            if left < 0:
                break
            if fails(candidate):
                case, smaller = candidate, True
                break
    return case


def _simpler(case: Case) -> Iterator[Case]:
    """Yield cases that are a little simpler, the simplest first."""
    flow, fault = case
    for index in range(len(flow.steps)):
        yield Case(_without(flow, index), fault)
    for name, default in Fault._field_defaults.items():
        if getattr(fault, name) != default:
            yield Case(flow, fault._replace(**{name: default}))
    for name in ("cancels", "strangers", "requests", "changes"):
        points = getattr(fault, name)
        for at in range(len(points)):
            yield Case(flow, fault._replace(**{name: points[:at] + points[at + 1 :]}))
    for name, default in Flow._field_defaults.items():
        is_used = name == "pools" and any(step.pool is not None for step in flow.steps)
        if getattr(flow, name) != default and not is_used:
            yield Case(flow._replace(**{name: default}), fault)
    for index, step in enumerate(flow.steps):
        for simpler in _simpler_steps(step):
            steps = (*flow.steps[:index], simpler, *flow.steps[index + 1 :])
            yield Case(flow._replace(steps=steps), fault)
    for name in ("cancels", "strangers", "requests"):
        points = getattr(fault, name)
        for at, (turn, which) in enumerate(points):
            others = [(turn, 0)] if which else []
            others += [(earlier, which) for earlier in (turn // 2, turn - 1) if 0 <= earlier < turn]
            for other in others:
                changed = (*points[:at], other, *points[at + 1 :])
                yield Case(flow, fault._replace(**{name: changed}))


def _without(flow: Flow, index: int) -> Flow:
    """Return a flow without one of its steps."""
    steps = []
    for at, step in enumerate(flow.steps):
        if at == index:
            continue
        needs = tuple(need - (need > index) for need in step.needs if need != index)
        maps = step.maps
        if maps is not None:
            maps = None if maps == index else maps - (maps > index)
        steps.append(step._replace(needs=needs, maps=maps))
    return flow._replace(steps=tuple(steps))


def _simpler_steps(step: Step) -> Iterator[Step]:
    for name, default in step._field_defaults.items():
        value = getattr(step, name)
        if name not in ("acts", "items") and value != default:
            if name in ("needs",):
                for need in value:
                    if need != step.maps:
                        rest = tuple(other for other in value if other != need)
                        yield step._replace(needs=rest)
            elif name != "retries" or not (step.backoff or step.doubling or step.refused):
                yield step._replace(**{name: default})
    if step.items is not None and step.items.kind != "list":
        yield step._replace(items=step.items._replace(kind="list", breaks=""))
    if len(step.acts) > 1:
        for at in range(len(step.acts)):
            yield step._replace(acts=step.acts[:at] + step.acts[at + 1 :])
    for at, act in enumerate(step.acts):
        for name, default in act._field_defaults.items():
            if getattr(act, name) != default:
                simpler = act._replace(**{name: default})
                yield step._replace(acts=(*step.acts[:at], simpler, *step.acts[at + 1 :]))
        for name in ("waits", "clean"):
            value = getattr(act, name)
            if len(value) > 1:
                simpler = act._replace(**{name: value[:-1]})
                yield step._replace(acts=(*step.acts[:at], simpler, *step.acts[at + 1 :]))
