"""Whether a run stays in its process while it waits, or not, it ends the same.

So it does if a resource is down now and then when it continues.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from inspect import signature
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow import Orchestrator, ResourceError, RunReport, Signal, WorkflowStep
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
            answers[f"s{at}"] = draw(st.booleans()), draw(st.integers(1, 9)) + 0.125
            limits[f"s{at}"] = draw(st.none() | st.sampled_from([2_500.0, 6_500.0]))

    def make() -> list[WorkflowStep]:
        async def action(db: str) -> str:
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
    steps: list[WorkflowStep],
    answers: Answers,
    *,
    on_wait: str,
    outages: Sequence[bool] = (),
    **options: Any,
) -> tuple[str, dict[str, Any]]:
    """``outages`` say whether the resource is down when the run continues, time after time."""
    began_s, loop = asyncio.get_running_loop().time(), asyncio.get_running_loop()
    left, is_down = [*outages], False

    @asynccontextmanager
    async def database() -> AsyncIterator[str]:
        await asyncio.sleep(0)
        if is_down:
            raise ConnectionError("it restarts")
        yield "db"

    if any("db" in signature(step.action).parameters for step in steps):
        options["resources"] = {"db": database}
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
            try:
                report = await run.run()
            except ResourceError as error:
                report = error.report
                assert (report.status, is_down) == ("WAITING", True)
                assert await journal.due()
            if report.status != "WAITING":
                break
            is_down = bool(left) and left.pop()
            while not await journal.due():
                await asyncio.sleep(0.25)
        for each in sending:
            each.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
        return report.status, outcome(await journal.report("r"))


@pytest.mark.parametrize("schedule", ["tiers", "ready"])
@given(pipelines(), st.booleans(), st.lists(st.booleans(), max_size=4))
def test_suspended_and_staying_runs_end_the_same(
    schedule: str,
    drawn: tuple[Callable[[], list[WorkflowStep]], Answers],
    fail_fast: bool,
    outages: list[bool],
) -> None:
    make, answers = drawn
    options: dict[str, Any] = {"schedule": schedule, "fail_fast": fail_fast}

    stayed = run_in_virtual_time(run_to_its_end(make(), answers, on_wait="stay", **options))
    suspended = run_in_virtual_time(
        run_to_its_end(make(), answers, on_wait="suspend", outages=outages, **options)
    )

    assert suspended == stayed
