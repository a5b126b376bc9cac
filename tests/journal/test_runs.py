"""Runs of pipelines with a journal, and what it tells of them afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncflow import RestoredOutput, StepStatus, WorkflowStep, run_pipeline
from asyncflow._core.errors import RunNotFoundError
from asyncflow.events import AttemptStarted, RunStarted


async def extract(url: str) -> list[int]:
    return [1, 2, 3]


async def double(item: int) -> int:
    return 2 * item


async def load(doubled: list[int]) -> tuple[int, ...]:
    return tuple(doubled)


CALLS: list[int] = []


@pytest.fixture(autouse=True)
def no_calls_yet() -> None:
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


async def test_a_journal_tells_the_report_of_a_run(make_journal: Any) -> None:
    report = await run(make_journal(), fail_fast=False)

    told = await make_journal().report("r")

    assert str(told) == str(report)
    assert told["load"].output == [2, 4, 6]  # of a tuple, JSON knows nothing
    assert [item.output for item in told["doubled"].items or ()] == [2, 4, 6]
    assert told["flaky"].history[0].error.message == "call 1"
    assert (told.run_id, told.wall_time) == (report.run_id, report.wall_time)
    assert told.total_duration_ms == report.total_duration_ms


async def test_a_run_that_has_failed_goes_on_where_it_was(make_journal: Any) -> None:
    failed = await run(make_journal(), fail_fast=False)

    passed = await run(make_journal(), fail_fast=False)

    assert not failed.all_passed
    assert passed.all_passed
    assert passed["load"].output == (2, 4, 6)
    (record,) = await make_journal().runs()
    assert record.status == "passed"
    assert str(await make_journal().report("r")) == str(passed)


async def test_a_journal_tells_what_is_known_so_far(journal: Any) -> None:
    book, _ = await journal.open("r", wait=False, read=list)
    book.append(RunStarted("r", 7.0, {"a": (), "b": ("a",)}))
    book.append(AttemptStarted("a", 1, 1.0))
    await book.flush()

    told = await journal.report("r")

    assert (told["a"].status, told["b"].status) == (StepStatus.RUNNING, StepStatus.PENDING)
    await book.close()
    with pytest.raises(RunNotFoundError):
        await journal.report("x")


async def test_what_was_pickled_is_told_on_request_only(make_journal: Any) -> None:
    async def numbers() -> Any:
        return {1, 2}

    pickling = make_journal(codec="cloudpickle")
    await run_pipeline([WorkflowStep("numbers", numbers)], journal=pickling, run_id="r")

    told = await make_journal().report("r")

    assert isinstance(told["numbers"].output, RestoredOutput)
    assert 'read only with codec="cloudpickle"' in told["numbers"].output.text
    assert (await pickling.report("r"))["numbers"].output == {1, 2}


async def test_a_chain_costs_one_transaction_a_step(journal: Any) -> None:
    async def step() -> int:
        return 1

    chain = [
        WorkflowStep(f"s{number}", step, [f"s{number - 1}"] if number else [])
        for number in range(10)
    ]
    writes: list[Any] = []
    write = journal._store.write
    journal._store.write = lambda take: writes.append(None) or write(take)

    await run_pipeline(chain, journal=journal, run_id="r")

    assert len(writes) == 11


async def test_many_runs_share_a_journal(journal: Any) -> None:
    async def one(number: int) -> Any:
        return await run_pipeline(
            steps()[:3], inputs={"url": "http"}, journal=journal, run_id=f"r{number}"
        )

    reports = await asyncio.gather(*map(one, range(20)))

    assert all(report.all_passed for report in reports)
    assert len(await journal.runs(status="passed")) == 20


async def test_all_who_ask_at_once_for_a_run_that_has_passed_get_its_report(
    make_journal: Any,
) -> None:
    await run(make_journal(), fail_fast=False)
    passed = await run(make_journal(), fail_fast=False)

    reports = await asyncio.gather(*(run(make_journal()) for _ in range(5)))

    assert {str(report) for report in reports} == {str(passed)}


async def test_a_passed_run_that_gets_new_steps_is_waited_for_by_all_who_say_so(
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
