"""The watchdog finds an attempt by the name of its task if the context does not identify it."""

from __future__ import annotations

import asyncio
import time

import pytest

from asyncflow import WorkflowStep
from asyncflow._core.pipeline.graph import OutputTypes, plan
from asyncflow._core.running.state import RunState
from asyncflow._kernel.watchdog import Watchdog
from asyncflow._policies.heartbeats import HeartbeatTimer
from asyncflow._runtime.scope_opening import Request, new_start, open_scope
from asyncflow.events import AttemptStarted, MapStarted, RunStarted, StepSucceeded


async def nothing(a: object = None) -> None: ...


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("asyncflow:r1:a#1", ("a", 1, None)),
        ("asyncflow:r1:a#2", None),
        ("asyncflow:r1:m[0]#1", ("m", 1, 0)),
        ("asyncflow:r1:m[7]#1", None),
        ("asyncflow:r1:x[0]#1", ("x[0]", 1, None)),
        ("asyncflow:r1:never#1", None),
        ("asyncflow:r2:a#1", None),
        ("Task-1", None),
    ],
)
async def test_an_attempt_is_found_by_the_name_of_its_task(
    name: str, found: tuple[str, int, int | None] | None
):
    planned = plan(
        [
            WorkflowStep("a", nothing),
            WorkflowStep("x[0]", nothing),
            WorkflowStep("m", nothing, ["a"], map_over="a"),
            WorkflowStep("never", nothing, ["m"]),
        ]
    )
    state = RunState(planned)
    for event in [
        RunStarted("r1", 1.0, planned.depends_on),
        AttemptStarted("a", 1, 1.0),
        AttemptStarted("x[0]", 1, 1.0),
        StepSucceeded("a", 1, 2.0, [1]),
        StepSucceeded("x[0]", 1, 2.0, None),
        MapStarted("m", 2.0),
        AttemptStarted("m", 1, 3.0, item=0),
    ]:
        state.apply(event)
    request = Request("r1", "", planned, OutputTypes(planned), {}, (), fail_fast=True)
    scope = open_scope(request, new_start(request), state, (), None)

    attempt = Watchdog(scope, {})._attempt_named(name)

    assert found == (attempt and (attempt.step, attempt.attempt, attempt.item))


async def test_a_heartbeat_of_another_process_counts_from_when_it_was_given():
    loop = asyncio.get_running_loop()
    missed = loop.create_future()
    began_s, looks = loop.time(), []

    def last_beat_s() -> float:
        looks.append(loop.time() - began_s)
        return time.monotonic() - 0.4 if len(looks) == 1 else 0.0

    timer = HeartbeatTimer(loop, 1, lambda: missed.set_result(None))
    timer.follow(last_beat_s)
    await missed

    assert looks == pytest.approx([1, 1.6], abs=0.3)
