"""Whether a run stays in its process while it waits, or not, it ends the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow import Orchestrator, RunReport, Signal, WorkflowStep
from asyncflow.journal import SQLiteJournal
from asyncflow.testing import run_in_virtual_time

Answers = dict[str, tuple[bool, float]]
"""For each signal its value, and when it is sent, in seconds."""


@st.composite
def pipelines(draw: st.DrawFn) -> tuple[Callable[[], list[WorkflowStep]], Answers]:
    """Draw a graph of steps, some of which fail and some of which wait, and what is sent to it."""
    count = draw(st.integers(1, 7))
    kinds = draw(st.lists(st.sampled_from(["step", "fails", "waits"]), min_size=count, max_size=7))
    edges = [
        draw(st.sets(st.integers(0, max(at - 1, 0)), max_size=2)) if at else set()
        for at in range(count)
    ]
    answers: Answers = {}
    limits: dict[str, float | None] = {}
    for at in range(count):
        if kinds[at] == "waits":
            answers[f"s{at}"] = draw(st.booleans()), float(draw(st.integers(1, 9)))
            limits[f"s{at}"] = draw(st.none() | st.sampled_from([2_500.0, 6_500.0]))

    def make() -> list[WorkflowStep]:
        async def action() -> str:
            await asyncio.sleep(0.25)
            return "done"

        async def fails() -> None:
            await asyncio.sleep(0.25)
            raise ValueError("broken")

        return [
            WorkflowStep(
                f"s{at}",
                {"step": action, "fails": fails, "waits": Signal(bool)}[kinds[at]],
                [f"s{other}" for other in sorted(edges[at])],
                deadline_ms=limits.get(f"s{at}"),
            )
            for at in range(count)
        ]

    return make, answers


def outcome(report: RunReport) -> dict[str, Any]:
    return {
        name: (result.status, result.output, str(result.error), result.attempts)
        for name, result in report.items()
    }


async def run_to_its_end(
    steps: list[WorkflowStep], answers: Answers, *, on_wait: str, **options: Any
) -> tuple[str, dict[str, Any]]:
    began_s, loop = asyncio.get_running_loop().time(), asyncio.get_running_loop()
    async with SQLiteJournal(":memory:") as journal:
        run = Orchestrator(steps, name="random", **options).with_options(
            journal=journal, run_id="r", on_wait=on_wait
        )

        async def send(name: str, value: bool, at_s: float) -> None:
            await asyncio.sleep(began_s + at_s - loop.time())
            with suppress(ValueError):  # its deadline has expired, or the run has passed
                await journal.signal("r", name, value)

        sending = [asyncio.ensure_future(send(name, *each)) for name, each in answers.items()]
        while True:
            report = await run.run()
            if report.status != "WAITING":
                break
            while not await journal.due():
                await asyncio.sleep(0.25)
        for each in sending:
            each.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
        return report.status, outcome(await journal.report("r"))


@pytest.mark.parametrize("schedule", ["tiers", "ready"])
@given(pipelines(), st.booleans())
def test_suspended_and_staying_runs_end_the_same(
    schedule: str, drawn: tuple[Callable[[], list[WorkflowStep]], Answers], fail_fast: bool
) -> None:
    make, answers = drawn
    options: dict[str, Any] = {"schedule": schedule, "fail_fast": fail_fast}

    stayed = run_in_virtual_time(run_to_its_end(make(), answers, on_wait="stay", **options))
    suspended = run_in_virtual_time(run_to_its_end(make(), answers, on_wait="suspend", **options))

    assert suspended == stayed
