"""A journal stores pipeline runs and returns their reports."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_engine import FakeEngine

from asyncflow import Orchestrator, RestoredOutput, StepStatus, WorkflowStep, run_pipeline
from asyncflow._core.errors import RunNotFoundError
from asyncflow.engines import RemoteOutput
from asyncflow.events import AttemptStarted, RunStarted, StepSucceeded


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


async def test_a_journal_returns_the_report_of_a_finished_run(make_journal: Any) -> None:
    report = await run(make_journal(), fail_fast=False)

    stored = await make_journal().report("r")

    assert str(stored) == str(report)
    assert stored["load"].output == [2, 4, 6]  # JSON has no tuples
    assert [item.output for item in stored["doubled"].items or ()] == [2, 4, 6]
    assert stored["flaky"].history[0].error.message == "call 1"
    assert (stored.run_id, stored.wall_time) == (report.run_id, report.wall_time)
    assert stored.total_duration_ms == report.total_duration_ms


async def test_a_failed_run_resumes_where_it_stopped(make_journal: Any) -> None:
    failed = await run(make_journal(), fail_fast=False)

    passed = await run(make_journal(), fail_fast=False)

    assert not failed.all_passed
    assert passed.all_passed
    assert passed["load"].output == (2, 4, 6)
    (record,) = await make_journal().runs()
    assert record.status == "PASSED"
    assert str(await make_journal().report("r")) == str(passed)


async def test_a_fork_has_its_results_in_its_own_rows(make_journal: Any, database: Any) -> None:
    def rows() -> list[Any]:
        return database.query("SELECT * FROM events WHERE run_id = 'r' ORDER BY position")  # type: ignore[no-any-return]

    journal = make_journal()
    await run(journal, fail_fast=False)
    before, orchestrator = rows(), Orchestrator(steps())
    fork = await orchestrator.with_options(journal=journal).fork("r", "f")
    after = rows()
    await journal.forget("r")

    report = await make_journal().report("f")
    again = await orchestrator.with_options(journal=make_journal()).fork("f", "g")

    assert before == after
    assert (await journal.record("f")).forked_from == report.forked_from == "r"
    assert str(report) == str(fork)
    assert {each.step_name: each.origin for each in fork.results} == {
        **dict.fromkeys(("numbers", "doubled", "load"), "r"),
        "flaky": "",
    }
    assert again["load"].output == (2, 4, 6)
    assert [item.origin for item in again["doubled"].items or ()] == ["r"] * 3
    assert again["flaky"].origin == "f"


async def test_a_journal_reports_an_unfinished_run(journal: Any) -> None:
    session, _ = await journal.open("r", wait=False, read=bool)
    session.append(RunStarted("r", 7.0, {"a": (), "b": ("a",)}))
    session.append(AttemptStarted("a", 1, 1.0))
    await session.flush()

    stored = await journal.report("r")

    assert (stored["a"].status, stored["b"].status) == (StepStatus.RUNNING, StepStatus.PENDING)
    await session.close()
    with pytest.raises(RunNotFoundError):
        await journal.report("x")


async def test_a_pickled_output_is_read_only_on_request(make_journal: Any) -> None:
    async def numbers() -> Any:
        return {1, 2}

    pickling = make_journal(codec="cloudpickle")
    await run_pipeline([WorkflowStep("numbers", numbers)], journal=pickling, run_id="r")

    stored = await make_journal().report("r")

    assert isinstance(stored["numbers"].output, RestoredOutput)
    assert 'read only with codec="cloudpickle"' in stored["numbers"].output.text
    assert (await pickling.report("r"))["numbers"].output == {1, 2}


async def test_a_chain_costs_one_transaction_per_step(journal: Any) -> None:
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
    assert len(await journal.runs(status="PASSED")) == 20


async def test_concurrent_callers_of_a_passed_run_all_receive_its_report(
    make_journal: Any,
) -> None:
    await run(make_journal(), fail_fast=False)
    passed = await run(make_journal(), fail_fast=False)

    reports = await asyncio.gather(*(run(make_journal()) for _ in range(5)))

    assert {str(report) for report in reports} == {str(passed)}


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
