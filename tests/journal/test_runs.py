"""A journal stores pipeline runs and returns their reports."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_engine import FakeEngine

from asyncflow import Orchestrator, RestoredOutput, WorkflowStep, run_pipeline
from asyncflow.engines import RemoteOutput
from asyncflow.events import StepSucceeded


async def extract(url: str) -> list[int]:
    return [1, 2, 3]


async def double(item: int) -> int:
    return 2 * item


async def load(doubled: list[int]) -> tuple[int, ...]:
    return tuple(doubled)


CALLS: list[int] = []


@pytest.fixture(autouse=True)
def reset_calls() -> None:
    CALLS.clear()


async def flaky() -> None:
    CALLS.append(len(CALLS) + 1)
    if len(CALLS) < 3:
        raise ValueError(f"call {len(CALLS)}")


def steps() -> list[WorkflowStep]:
    return [
        WorkflowStep("numbers", extract),
        WorkflowStep("doubled", double, {"item": "numbers"}, map_over="numbers"),
        WorkflowStep("load", load, ["doubled"]),
        WorkflowStep("flaky", flaky, max_retries=2),
    ]


async def run(journal: Any, **options: Any) -> Any:
    return await run_pipeline(
        steps(), inputs={"url": "http"}, journal=journal, run_id="r", **options
    )


async def test_events_tell_where_an_output_stayed(make_journal: Any) -> None:
    steps = [WorkflowStep("numbers", extract), WorkflowStep("load", load, {"doubled": "numbers"})]
    engine, journal = FakeEngine(keeps=True), make_journal()
    await run_pipeline(steps, inputs={"url": "http"}, journal=journal, run_id="r", engine=engine)

    stored = [each.event for each in await make_journal().events("r")]
    (kept, _) = [event.output for event in stored if isinstance(event, StepSucceeded)]

    assert isinstance(kept, RemoteOutput)
    assert (kept.engine, kept.worker, kept.size) == ("fake", "w1", 100)


async def test_a_rerun_has_its_results_in_its_own_rows(make_journal: Any, database: Any) -> None:
    def rows() -> list[Any]:
        return database.query("SELECT * FROM events WHERE run_id = 'r' ORDER BY position")  # type: ignore[no-any-return]

    journal = make_journal()
    await run(journal, fail_fast=False)
    before, orchestrator = rows(), Orchestrator(steps())
    rerun = await orchestrator.with_options(journal=journal).rerun("r", "f")
    after = rows()
    await journal.forget("r")

    report = await make_journal().report("f")
    again = await orchestrator.with_options(journal=make_journal()).rerun("f", "g")

    assert before == after
    assert (await journal.record("f")).rerun_of == report.rerun_of == "r"
    assert str(report) == str(rerun)
    assert {each.step_name: each.origin for each in rerun.results} == {
        **dict.fromkeys(("numbers", "doubled", "load"), "r"),
        "flaky": "",
    }
    assert again["load"].output == (2, 4, 6)
    assert [item.origin for item in again["doubled"].items or ()] == ["r"] * 3
    assert again["flaky"].origin == "f"


async def test_a_pickled_output_is_read_only_on_request(make_journal: Any) -> None:
    async def numbers() -> Any:
        return {1, 2}

    pickling = make_journal(codec="cloudpickle")
    await run_pipeline([WorkflowStep("numbers", numbers)], journal=pickling, run_id="r")

    stored = await make_journal().report("r")

    assert isinstance(stored["numbers"].output, RestoredOutput)
    assert 'read only with codec="cloudpickle"' in stored["numbers"].output.text
    assert (await pickling.report("r"))["numbers"].output == {1, 2}


async def test_callers_that_wait_resume_a_passed_run_with_new_steps_one_by_one(
    make_journal: Any,
) -> None:
    journal = make_journal()
    old = [WorkflowStep("count", flaky, max_retries=3)]
    await run_pipeline(old, journal=journal, run_id="r")
    CALLS.clear()
    CALLS.extend([1, 2])
    new = [*old, WorkflowStep("again", flaky)]
    options = {"journal": journal, "run_id": "r", "on_active": "wait"}

    reports = await asyncio.gather(
        *(run_pipeline(each, **options) for each in [old, new, old, new])  # type: ignore[arg-type]
    )

    assert all(report.all_passed for report in reports)
    assert [list(reports[at]) for at in (1, 3)] == [["count", "again"]] * 2
    assert CALLS == [1, 2, 3]
