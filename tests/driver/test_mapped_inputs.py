"""Steps that are mapped over an input of the run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from memory_journal import MemoryJournal

from asyncflow import (
    PayloadError,
    Pipeline,
    RunIdInUseError,
    StepStatus,
    StepTimeoutError,
    WorkflowStep,
    after,
    collect,
    each,
    run_pipeline,
    topological_sort,
)
from asyncflow._core.pipeline.annotations import input_types
from asyncflow._core.pipeline.step import inputs_of
from asyncflow.events import MapStarted

SUCCESS, FAILED = StepStatus.SUCCESS, StepStatus.FAILED


async def double(n):
    return n * 2


def over(**options):
    return [WorkflowStep("double", double, {"n": "numbers"}, map_over="numbers", **options)]


async def stream():
    for number in range(3):
        yield number


# Items.


@pytest.mark.parametrize(
    "numbers",
    [[0, 1, 2], (0, 1, 2), range(3), {0: "a", 1: "b", 2: "c"}, lambda: iter(range(3)), stream],
)
async def test_the_items_are_what_the_input_iterates_over(numbers):
    given = numbers() if callable(numbers) else numbers

    report = await run_pipeline(over(), inputs={"numbers": given})

    assert report["double"].output == [0, 2, 4]
    assert [item.step_name for item in report["double"].items] == [f"double[{n}]" for n in range(3)]


async def test_the_number_of_items_is_known_if_the_input_has_a_length():
    events = []

    await run_pipeline(over(), inputs={"numbers": [1, 2]}, observers=[events.append])

    assert [event.count for event in events if isinstance(event, MapStarted)] == [2]


@pytest.mark.parametrize("form", ["each", "mapping", "own name"])
@pytest.mark.parametrize("schedule", ["tiers", "ready"])
async def test_a_pipeline_maps_chains_and_collects_as_over_an_output(form, schedule):
    flow = Pipeline("flow", schedule=schedule)

    if form == "each":

        @flow.step
        async def fetch(repo: str = each("repos")) -> str:
            return repo.upper()

    elif form == "mapping":

        @flow.step(depends_on={"repo": "repos"}, map_over="repos")
        async def fetch(repo: str) -> str:
            return repo.upper()

    else:

        @flow.step(map_over="repos")
        async def fetch(repos: str) -> str:
            return repos.upper()

    @flow.step
    async def size(text: str = each(collect(fetch))) -> int:
        return len(text)

    @flow.step
    async def join(texts: list[str] = collect(fetch), sizes: list[int] = collect(size)) -> str:
        return f"{'+'.join(texts)}={sum(sizes)}"

    report = await flow.run(repos=["a", "bc"])

    assert report["join"].output == "A+BC=3"
    assert inputs_of(flow.steps) == ["repos"]
    assert [*flow.orchestrator.tiers] == [["fetch"], ["size"], ["join"]]


async def test_others_and_conditions_take_the_input_as_a_whole():
    async def count(repos, extra=0):
        return len(repos) + extra

    async def fetch(repo):
        return repo

    def note(repos):
        seen.append(repos)

    seen = []
    steps = [
        WorkflowStep("count", count),
        WorkflowStep(
            "fetch",
            fetch,
            {"repo": "repos"},
            map_over="repos",
            when=lambda repos: seen.append(repos),
        ),
        WorkflowStep("named", fetch, {"repo": "repos"}, map_over="repos", when=lambda repo: repo),
    ]
    report = await run_pipeline(steps, inputs={"repos": ["a", "b"]})

    assert report["count"].output == 2
    assert (seen, report["fetch"].status) == ([["a", "b"]], StepStatus.SKIPPED)
    assert report["named"].output == ["a", "b"]


async def test_a_clean_up_step_may_be_mapped_over_an_input():
    async def fail():
        raise ValueError

    steps = [*over(run_if="always"), WorkflowStep("fail", fail)]
    report = await run_pipeline(steps, inputs={"numbers": [1]})

    assert [report[name].status for name in ("fail", "double")] == [FAILED, SUCCESS]


@pytest.mark.exact_time
async def test_the_deadline_of_the_step_limits_the_waits_for_the_items_of_a_stream():
    async def silent():
        yield 1
        await asyncio.Event().wait()

    report = await run_pipeline(over(deadline_ms=2000), inputs={"numbers": silent()})

    assert isinstance(report["double"].error, StepTimeoutError)
    assert report["double"].error.source == "numbers"


async def test_an_input_that_is_no_collection_fails_the_step():
    report = await run_pipeline(over(), inputs={"numbers": 7})

    assert "which is not a collection of items; pass a list" in str(report["double"].error)


# What is refused before anything runs.


@pytest.mark.parametrize("kind", [lambda: iter([1]), stream, lambda: [1]])
async def test_an_iterator_that_several_steps_take_is_refused(kind):
    async def count(numbers):
        return numbers

    steps = [*over(), WorkflowStep("count", count)]
    if isinstance(kind(), list):
        assert (await run_pipeline(steps, inputs={"numbers": kind()})).all_passed
        return
    takers = "which steps 'double' and 'count' take"
    problem = rf"input 'numbers' is an iterator \(\w+\), {takers}.*; pass a list, "
    with pytest.raises(TypeError, match=problem):
        await run_pipeline(steps, inputs={"numbers": kind()})


async def test_a_name_that_neither_a_step_nor_an_input_has_is_refused():
    async def numbres():
        return [1]

    with pytest.raises(ValueError, match="nothing provides parameter 'n' of step 'double'") as info:
        await run_pipeline([WorkflowStep("numbres", numbres), *over()])

    assert str(info.value).endswith(
        ": it is mapped over unknown step 'numbers' (did you mean 'numbres'?), and no input has "
        "that name"
    )


async def test_a_name_that_both_a_step_and_an_input_have_is_refused():
    async def numbers():
        return [1]

    async def other(numbers=()):
        return numbers

    steps = [WorkflowStep("numbers", numbers), *over(), WorkflowStep("other", other)]
    with pytest.raises(ValueError, match="'numbers', which is both a step and a run input"):
        await run_pipeline(steps, inputs={"numbers": [2]})


def test_a_step_that_is_no_dependency_is_refused():
    step = WorkflowStep("m", double, parameters={"n": "numbers"}, map_over="numbers")
    steps = [WorkflowStep("numbers", double), step]

    with pytest.raises(ValueError, match="'m' maps over 'numbers', which is not one of its depend"):
        topological_sort(steps)


async def test_another_dependency_that_is_no_step_is_refused():
    step = WorkflowStep("m", double, ["a", "others"], parameters={"n": "a"}, map_over="a")

    with pytest.raises(ValueError, match="step 'm' depends on unknown step 'others'"):
        await run_pipeline([step])


# Included pipelines.


def inner():
    flow = Pipeline("inner")

    @flow.step
    async def fetch(repo: str = each("repos")) -> str:
        return repo.upper()

    return flow


async def test_an_included_step_maps_over_the_input_of_the_run():
    outer = Pipeline("outer")
    outer.include(inner())

    report = await outer.run(repos=["a"])

    assert report["inner/fetch"].output == ["A"]


@pytest.mark.parametrize("is_renamed", [True, False])
async def test_an_included_step_maps_over_a_step_outside_that_takes_the_place_of_the_input(
    is_renamed,
):
    outer = Pipeline("outer")

    async def list_repos() -> list[str]:
        return ["a", "b"]

    outer.step(name="found" if is_renamed else "repos")(list_repos)
    outer.include(inner(), depends_on={"repos": list_repos} if is_renamed else [list_repos])
    report = await outer.run()

    assert report["inner/fetch"].output == ["A", "B"]


# With a journal.


def stored(broken, calls, version=""):
    flow = Pipeline("flow", journal=MemoryJournal(), fail_fast=False)

    @flow.step(version=version)
    async def fetch(repo: str = each("repos")) -> str:
        calls.append(repo)
        if repo in broken:
            raise ValueError(repo)
        return repo.upper()

    @flow.step
    async def join(texts: list[str] = collect(fetch)) -> str:
        return "".join(texts)

    return flow


async def test_a_resumed_run_has_its_input_and_runs_no_finished_item_again():
    broken, calls = {"b"}, []
    flow = stored(broken, calls).with_options(run_id="r")
    await flow.run(repos=["a", "b"])
    broken.clear()

    preview = await flow.preview("r")
    assert (preview["fetch"].items, preview["fetch"].reused_items) == (2, 1)
    report = await flow.run()

    assert report["join"].output == "AB"
    assert calls == ["a", "b", "b"]
    with pytest.raises(RunIdInUseError):
        await flow.run(repos=["c"])


async def test_a_rerun_with_another_input_runs_the_items_again():
    calls: list[Any] = []
    flow = stored((), calls).with_options(run_id="r")
    await flow.run(repos=["a"])

    report = await flow.rerun("r", "s", inputs={"repos": ["b", "a"]})

    assert report["join"].output == "BA"
    assert calls == ["a", "b", "a"]


async def test_an_input_that_cannot_be_stored_is_refused():
    flow = stored((), [])

    with pytest.raises(PayloadError, match="input 'repos' is no JSON"):
        await flow.run(repos=(name for name in "ab"))


async def test_a_secret_input_is_not_cached():
    flow = Pipeline("flow", journal=MemoryJournal(), secret_inputs=["repos"])

    @flow.step(cache_ms=1000)
    async def fetch(repo: str = each("repos")) -> str:
        return repo

    with pytest.raises(ValueError, match="its parameter 'repo' is the secret input 'repos'"):
        await flow.run(repos=["a"])


# Its type.


@dataclass
class Repo:
    name: str


def test_the_type_of_the_input_is_that_of_a_list_of_the_items_unless_a_step_takes_it_whole():
    by_item = Pipeline("items")

    @by_item.step
    async def fetch(repo: Repo = each("repos")) -> None: ...

    assert input_types(tuple(by_item.steps), {"repos": 0}) == {"repos": list[Repo]}

    @by_item.step
    async def count(repos: tuple[Repo, ...]) -> None: ...

    assert input_types(tuple(by_item.steps), {"repos": 0}) == {"repos": tuple[Repo, ...]}

    @by_item.step
    async def use(rows: Any = after(count)) -> None: ...

    assert inputs_of(by_item.steps) == ["repos"]
