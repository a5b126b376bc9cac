"""A journal finds the run to compare with, and compares stored runs."""

from __future__ import annotations

import random
from typing import Any

import pytest
from segments import store_segment

from asyncflow import (
    Orchestrator,
    Pipeline,
    RunNotFoundError,
    RunStatus,
    RunWaitingError,
    WorkflowStep,
    after,
    each,
)
from asyncflow.events import AttemptStarted, RunFinished, RunStarted, StepSucceeded
from asyncflow.journal import OutputComparison


async def store(
    journal: Any,
    run_id: str,
    at: float,
    status: RunStatus = RunStatus.PASSED,
    pipeline: str = "etl",
) -> None:
    begun = RunStarted(run_id, at, {"a": ()}, pipeline)
    await store_segment(journal, run_id, begun, RunFinished(9.0, status))


async def last_passed(journal: Any, run_id: str) -> str | None:
    found = await journal.last_passed(run_id)
    return None if found is None else found.run_id


async def test_the_last_passed_run_is_the_latest_of_the_pipeline_before_a_run(journal: Any) -> None:
    await store(journal, "old", 1.0)
    await store(journal, "good", 2.0)
    await store(journal, "bad", 3.0, RunStatus.FAILED)
    await store(journal, "other", 4.0, pipeline="reports")
    await store(journal, "now", 5.0, RunStatus.FAILED)
    await store(journal, "later", 6.0)
    await store(journal, "nameless", 7.0, pipeline="")
    await store(journal, "nameless too", 8.0, pipeline="")

    assert await last_passed(journal, "now") == "good"
    assert await last_passed(journal, "good") == "old"
    assert await last_passed(journal, "later") == "good"
    assert await last_passed(journal, "other") is None
    assert await last_passed(journal, "nameless too") is None
    with pytest.raises(RunNotFoundError):
        await journal.last_passed("nothing")


async def test_stored_runs_are_compared_with_inputs_and_versions(journal: Any) -> None:
    async def count(days: int, key: str) -> int:
        return days

    async def run(run_id: str, version: str, days: int) -> None:
        steps = [WorkflowStep("count", count, version=version)]
        pipeline = Orchestrator(steps, name="etl", journal=journal, secret_inputs=["key"])
        await pipeline.with_options(run_id=run_id).run(days=days, key="k")

    await run("monday", "1", 1)
    await run("tuesday", "2", 31)

    comparison = await journal.compare("tuesday", "monday")

    (step,) = comparison.steps
    assert (step.version, step.takes, step.change) == (("1", "2"), None, "both")
    days, key = comparison.inputs
    assert (days.name, days.change, days.run, days.baseline) == ("days", "changed", 31, 1)
    assert (key.name, key.change) == ("key", "unknown")
    assert comparison.versions_known
    assert (comparison.run.run_id, comparison.baseline.run_id) == ("tuesday", "monday")
    for pair in (("tuesday", "sunday"), ("sunday", "monday")):
        with pytest.raises(RunNotFoundError):
            await journal.compare(*pair)


async def test_opposite_signals_are_seen_in_the_outputs_and_secrets_in_none(journal: Any) -> None:
    pipeline = Pipeline("orders", journal=journal)
    secrets: list[str] = []

    @pipeline.step
    async def draft() -> tuple[int, ...]:
        return 1, 2

    approved = pipeline.signal("approved", bool, depends_on=[draft])

    @pipeline.step(secret=True, depends_on=[approved])
    async def key() -> str:
        secrets.append(f"hunter{len(secrets)}")
        return secrets[-1]

    @pipeline.step
    async def publish(approved: bool = after(approved)) -> dict[str, Any]:
        return {"rows": [1, 2], "state": "published" if approved else "rejected"}

    @pipeline.step(keep_outputs=False)
    async def ship(part: int = each(draft)) -> float:
        return random.random()

    for run_id, answer in (("monday", True), ("tuesday", False)):
        with pytest.raises(RunWaitingError):
            (await pipeline.with_options(run_id=run_id).run()).raise_for_failures()
        await journal.signal(run_id, "approved", answer)
        (await pipeline.with_options(run_id=run_id).run()).raise_for_failures()

    comparison = await journal.compare("tuesday", "monday")

    assert [step.step_name for step in comparison.changed_outputs] == ["approved", "publish"]
    steps = {step.step_name: step for step in comparison.steps}
    assert {name: step.output for name, step in steps.items()} == {
        "draft": OutputComparison("equal"),
        "approved": OutputComparison("changed", "", "", False, True),
        "publish": OutputComparison("changed", "", "['state']", "rejected", "published"),
        "key": OutputComparison("unknown", "secret"),
        "ship": OutputComparison("unknown", "not kept"),
    }
    assert len(set(secrets)) == 2
    assert "hunter" not in comparison.to_json() + repr(comparison)


async def test_a_duration_is_usual_from_three_successes_on(journal: Any) -> None:
    async def run(run_id: str, at: float, *durations_ms: float) -> None:
        session, _ = await journal.open(run_id, wait=False, read=bool)
        session.append(RunStarted(run_id, at, {"a": (), "b": ()}, "etl"))
        for name, ms in zip("ab", durations_ms, strict=False):
            session.append(AttemptStarted(name, 1, 0.0))
            session.append(StepSucceeded(name, 1, ms, None))
        session.append(RunFinished(9.0, RunStatus.FAILED))
        await session.close()

    await run("r1", 1.0, 1.0, 5.0)
    await run("r2", 2.0, 8.0, 5.0)
    assert (await journal.statistics("etl")).usual_ms == {}

    await run("r3", 3.0, 2.0)
    assert (await journal.statistics("etl")).usual_ms == {"a": 2.0}
