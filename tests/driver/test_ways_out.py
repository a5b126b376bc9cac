"""An error about a wrong call names a right one, for what newcomers try."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from asyncflow import (
    Orchestrator,
    Pipeline,
    Pool,
    WorkflowStep,
    after,
    each,
    run_pipeline,
)


async def load(url: str = "") -> list[str]:
    return [url]


def pipeline() -> Any:
    etl = Pipeline("etl")
    etl.step(load)
    return etl


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: pipeline().run({"url": "x"}), "Pipeline.run() takes inputs by name: run(url=...)"),
    (lambda: pipeline().run({"url": "x"}), "if they are in a mapping, unpack it: run(**inputs)"),
    (lambda: pipeline().start("x"), "Pipeline.start() takes inputs by name: start(url=...)"),
    (lambda: Orchestrator(pipeline()).run("x"), "Orchestrator.run() takes inputs by name"),  # type: ignore[call-arg]
    (lambda: pipeline().with_options("r1"), "takes options by name: with_options(run_id=...)"),
    (
        lambda: pipeline().run(inputs={"url": "x"}),
        "give each input by its name, as in run(url=...)",
    ),
    (lambda: pipeline().run(run_id="r1"), "options go to with_options(run_id=...)"),
    (lambda: pipeline().with_options(inputs={}), "give each by its name, as in run(url=...)"),
    (lambda: Pipeline("a", run_id="r1"), "did you mean 'run_id' of with_options?"),  # type: ignore[call-arg]
    (lambda: Pipeline("a", on_wait="stay"), "did you mean 'on_wait' of with_options?"),  # type: ignore[call-arg]
    (lambda: Pipeline("a", max_retries=3), "did you mean 'max_retries' of WorkflowStep?"),  # type: ignore[call-arg]
    (lambda: Pipeline([WorkflowStep("a", load)]), "call run_pipeline(steps)"),  # type: ignore[arg-type]
    (
        lambda: run_pipeline(pipeline(), url="x"),  # type: ignore[call-arg]
        "an input of the run is given in inputs={'url': ...}",
    ),
    (lambda: run_pipeline([load]), "wrap it in one: WorkflowStep(name, function)"),  # type: ignore[list-item]
    (lambda: run_pipeline(WorkflowStep("a", load)), "put a single one in a list"),  # type: ignore[arg-type]
    (lambda: WorkflowStep("a", load, "b"), "write ['b']"),
    (lambda: WorkflowStep("a", load, [load]), "functions go into Pipeline.step(depends_on=...)"),  # type: ignore[list-item]
    (lambda: WorkflowStep("a", load, timeout=3), "did you mean 'timeout_ms'?"),  # type: ignore[call-overload]
    (lambda: WorkflowStep("a", load, pool=5), "make one, Pool(5), and share it"),  # type: ignore[call-overload]
    (lambda: WorkflowStep("a", load(), []), "pass the function itself (load, without the call)"),  # type: ignore[call-overload]
    (lambda: Pool(5, rate=3), "did you mean 'per_second'?"),  # type: ignore[call-arg]
    (lambda: after("load"), "a name goes into @pipeline.step(depends_on=...)"),  # type: ignore[call-overload]
    (lambda: each(["a", "b"]), "values that the caller has are an input: each('urls')"),
    (lambda: pipeline().with_options(journal="a.db"), "wrap it in one: SQLiteJournal(...)"),
]


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize(("call", "way_out"), WRONG)
async def test_a_wrong_call_names_a_right_one(call: Callable[[], Any], way_out: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(way_out)):
        await call()


async def test_the_ways_out_lead_out() -> None:
    inputs = {"url": "x"}
    etl = pipeline()
    sizes = Pipeline("sizes")

    @sizes.step
    async def size(url: str = each("urls")) -> int:
        return len(url)

    assert (await etl.run(**inputs))["load"].output == ["x"]
    assert (await run_pipeline(etl, inputs=inputs))["load"].output == ["x"]
    assert (await etl.with_options(run_id="r1", on_wait="stay").run()).run_id == "r1"
    assert (await run_pipeline([WorkflowStep("load", load)])).all_passed
    assert (await sizes.run(urls=["a", "bc"]))["size"].output == [1, 2]
