"""A pipeline can be inspected before it runs, without a call of the user's code."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncflow import Orchestrator, WorkflowStep, run_pipeline


def forbidden(*_: object, **__: object) -> Any:
    raise AssertionError("user code was called")


STEPS = [
    WorkflowStep("load", forbidden, ["clean", "enrich"], when=lambda: forbidden()),
    WorkflowStep("extract", forbidden),
    WorkflowStep("clean", forbidden, ["extract"]),
    WorkflowStep("enrich", forbidden, ["extract"]),
    WorkflowStep("notify", forbidden, run_if="always"),
]


async def test_only_steps_that_will_run_are_shown():
    orchestrator = Orchestrator(STEPS, targets=["clean"])

    assert orchestrator.tiers == [["extract"], ["clean"]]
    assert orchestrator.execution_order == ["extract", "clean"]
    assert "enrich" not in orchestrator.to_mermaid()


async def test_a_report_shows_the_status_of_each_step():
    async def fine() -> None:
        await asyncio.sleep(0.01)

    report = await run_pipeline([WorkflowStep("a", fine), WorkflowStep("b", fine, ["a"])])

    assert report.critical_path == ["a", "b"]
    assert report.to_mermaid().count("SUCCESS") >= 2


async def test_only_steps_and_dependencies_that_will_run_are_listed():
    orchestrator = Orchestrator(STEPS, targets=iter(["clean"]))

    assert [step.name for step in orchestrator.steps] == ["extract", "clean"]
    assert orchestrator.dependencies == {"extract": (), "clean": ("extract",)}
    assert set(Orchestrator(STEPS).dependencies["notify"]) == {
        step.name for step in STEPS if step.name != "notify"
    }


async def test_with_options_changes_the_given_options_and_keeps_the_others():
    called: list[str] = []

    async def fail() -> None:
        raise OSError("gone")

    async def fine() -> str:
        return "fine"

    steps = [WorkflowStep("bad", fail), WorkflowStep("good", fine), WorkflowStep("more", fine)]
    one = Orchestrator(
        iter(steps),
        name="pair",
        targets=["bad", "good"],
        observers=[lambda _: called.append("x")],
    )

    other = one.with_options(fail_fast=False, targets=None)

    assert other.name == "pair"
    assert other.execution_order == ["bad", "good", "more"]
    assert one.execution_order == ["bad", "good"]
    assert one.with_options(name="else").execution_order == ["bad", "good"]
    report = await other.run()
    assert [result.step_name for result in report.succeeded] == ["good", "more"]
    assert called


async def test_a_run_can_have_its_own_observers():
    async def fine() -> None: ...

    always: list[object] = []
    once: list[object] = []
    orchestrator = Orchestrator([WorkflowStep("one", fine)], observers=[always.append])
    mine = once.append

    await orchestrator.with_options(observers=[*orchestrator.observers, mine]).run()
    count = len(always)
    await orchestrator.with_options(observers=[mine]).run()

    assert once[:count] == always
    assert len(once) == 2 * count
    with pytest.raises(TypeError, match="observers must be a list"):
        orchestrator.with_options(observers=print)  # type: ignore[arg-type]


def test_with_options_says_how_to_run_other_steps():
    with pytest.raises(
        TypeError,
        match=r"with_options\(\) got steps, but it keeps them; .*Orchestrator\(steps, \.\.\.",
    ):
        Orchestrator(STEPS).with_options(steps=STEPS[:1])
    with pytest.raises(TypeError, match=r"unknown option 'fail_fats' \(did you mean 'fail_fast'"):
        Orchestrator(STEPS).with_options(fail_fats=True)
