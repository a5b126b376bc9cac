"""An input that no step takes is refused before anything runs, however the run is started."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
from memory_journal import MemoryJournal

from asyncflow import Orchestrator, Pipeline, WorkflowStep, after, run_pipeline

calls: list[str] = []


async def extract(url: str = "default") -> str:
    calls.append(url)
    return url


async def gather(**outputs: Any) -> dict[str, Any]:
    return outputs


async def numbers() -> list[int]:
    return [1, 2]


async def double(numbers: int, factor: int = 2) -> int:
    return factor * numbers


STEPS = [
    WorkflowStep("extract", extract),
    WorkflowStep("gather", gather, ["extract"], when=lambda is_on=True: is_on),
    WorkflowStep("numbers", numbers),
    WorkflowStep("double", double, ["numbers"], map_over="numbers"),
    WorkflowStep("bound", functools.partial(extract, url="bound")),
]


def refused(name: str, hint: str = "", of: str = "") -> Any:
    text = f"no step{of} takes an input {name!r}{hint}"
    return pytest.raises(ValueError, match=re.escape(text) + "$")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ulr", " (did you mean 'url'?)"),
        ("is_no", " (did you mean 'is_on'?)"),
        ("facter", " (did you mean 'factor'?)"),
        ("outputs", ""),  # a **kwargs parameter receives outputs only
        ("fail_fast", "; options go to with_options(fail_fast=...), or to run_pipeline()"),
        ("run_id", "; options go to with_options(run_id=...), or to run_pipeline()"),
        ("inputs", "; give each input by its name, as in run(url=...)"),
    ],
)
async def test_an_input_that_no_step_takes_is_refused(name: str, hint: str) -> None:
    calls.clear()

    with refused(name, hint):
        await run_pipeline(STEPS, inputs={"url": "x", name: 1})
    with refused(name, hint, " of pipeline 'etl'"):
        await Orchestrator(STEPS, name="etl").run(**{name: 1})

    assert calls == []


async def test_the_name_of_an_input_must_be_text() -> None:
    with pytest.raises(TypeError, match="the names of inputs must be str, not int"):
        await run_pipeline(STEPS, inputs={1: "x"})  # type: ignore[dict-item]


async def test_inputs_without_a_truth_value_are_refused_by_their_type() -> None:
    class Array:
        def __bool__(self) -> bool:
            raise ValueError("the truth value of an array is ambiguous")

    with pytest.raises(TypeError, match=r"inputs must be a mapping .* not Array"):
        await run_pipeline(STEPS, inputs=Array())  # type: ignore[arg-type]


async def test_actions_conditions_and_items_take_inputs() -> None:
    inputs = {"url": "x", "is_on": 0, "factor": 5}

    report = await run_pipeline(STEPS, inputs=inputs)

    assert report["extract"].output == "x"
    assert report["gather"].by_condition
    assert report["double"].output == [5, 10]


async def test_a_step_that_targets_leave_out_still_takes_its_inputs() -> None:
    report = await run_pipeline(STEPS, inputs={"url": "x"}, targets=["numbers"])
    again = await Orchestrator(STEPS, targets=["numbers"]).with_options().run(url="x")

    assert list(report) == list(again) == ["numbers"]
    with refused("ulr", " (did you mean 'url'?)"):
        await run_pipeline(STEPS, inputs={"ulr": "x"}, targets=["numbers"])


async def test_steps_of_included_pipelines_take_inputs() -> None:
    inner, outer = Pipeline("inner"), Pipeline("outer")
    inner.step(extract)
    outer.include(inner)

    @outer.step
    async def load(rows: str = after(inner)) -> str:
        return rows

    assert (await outer.run(url="x"))["load"].output == "x"
    with refused("ulr", " (did you mean 'url'?)", " of pipeline 'outer'"):
        await outer.run(ulr="x")
    with refused("ulr", " (did you mean 'url'?)", " of pipeline 'outer'"):
        await outer.with_options(run_id="r").run(ulr="x")


async def test_a_stored_input_that_no_step_takes_any_more_is_no_mistake() -> None:
    journal = MemoryJournal()

    async def fail(days: int) -> None:
        raise ValueError(days)

    await run_pipeline(
        [WorkflowStep("extract", extract), WorkflowStep("fail", fail, ["extract"])],
        inputs={"url": "x", "days": 3},
        run_id="r",
        journal=journal,
    )
    changed = [WorkflowStep("extract", extract)]
    report = await run_pipeline(changed, run_id="r", journal=journal, allow_missing_steps=True)

    assert report.all_passed
    assert report.inputs["days"] == 3
    with refused("days"):
        await run_pipeline(changed, inputs={"days": 3}, run_id="r", journal=journal)


async def test_each_run_of_an_orchestrator_has_the_inputs_that_it_is_given() -> None:
    orchestrator = Orchestrator(STEPS)

    runs = [await orchestrator.run(**inputs) for inputs in ({}, {"url": "a"}, {"factor": 3}, {})]

    assert [run["extract"].output for run in runs] == ["default", "a", "default", "default"]
    assert [run["double"].output for run in runs] == [[2, 4], [2, 4], [3, 6], [2, 4]]
