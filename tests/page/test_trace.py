"""The trace of a run: what viewers rely on, and what it says."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from typing import Any

import pytest

from asyncflow import RunStatus, WorkflowStep, run_pipeline
from asyncflow._views.run_view import RunView
from asyncflow._views.trace import to_trace
from asyncflow.events import (
    AttemptBegan,
    AttemptFailed,
    AttemptStarted,
    Event,
    LoopBlocked,
    RunFinished,
    RunResumed,
    RunStarted,
    StepLogged,
    StepProgressed,
    StepSucceeded,
)
from asyncflow.testing import run_in_virtual_time


def _slices(trace: dict[str, Any]) -> dict[str, list[tuple[str, float, float, int, Any]]]:
    """Return the slices by their id, each with its name, begin, end, depth and arguments.

    Fails if the events are not in order, or if two slices of an id overlap without being nested.
    """
    found: dict[str, list[tuple[str, float, float, int, Any]]] = defaultdict(list)
    stacks: dict[str, list[Any]] = defaultdict(list)
    latest = 0.0
    threads = {}
    for event in trace["traceEvents"]:
        if event["name"] == "thread_name":
            threads[event["tid"]] = event["args"]["name"]
        if event["ph"] == "M":
            continue
        assert event["ts"] >= latest
        latest = event["ts"]
        if event["ph"] == "B":
            stacks[threads[event["tid"]]].append(event)
        elif event["ph"] == "E":
            thread = threads[event["tid"]]
            begin = stacks[thread].pop()
            assert begin["name"] == event["name"]
            depth = len(stacks[thread])
            found[thread].append((event["name"], begin["ts"], event["ts"], depth, begin["args"]))
        elif event["ph"] in "sf":  # an arrow without a slice around its end is not drawn
            assert stacks[threads[event["tid"]]]
    assert not any(stacks.values())
    for slices in found.values():
        slices.sort(key=lambda each: (each[1], each[3], each[2]))
    return found


def _named(trace: dict[str, Any], id_: str) -> list[tuple[str, float, float, int]]:
    return [each[:4] for each in _slices(trace)[id_]]


def test_an_attempt_says_on_which_worker_of_an_engine_it_ran() -> None:
    view = RunView(
        [
            RunStarted("r", 0.0, {"a": ()}),
            AttemptStarted("a", 1, 0.0, engine="dask"),
            AttemptBegan("a", 1, 20.0, "dask", "w1"),
            StepSucceeded("a", 1, 50.0, None),
            RunFinished(50.0, RunStatus.PASSED),
        ]
    )

    slices = _slices(to_trace(view, 50.0))["step a"]

    assert [each[:4] for each in slices] == [
        ("queued", 0.0, 20_000.0, 0),
        ("a", 20_000.0, 50_000.0, 0),
        ("attempt 1", 20_000.0, 50_000.0, 1),
    ]
    assert slices[2][4] == {"end": "succeeded", "on": "dask, worker w1"}


def test_an_arrow_leads_from_the_end_of_a_step_to_each_that_waited_for_it() -> None:
    view = RunView(
        [
            RunStarted("r", 0.0, {"a": (), "b": (), "c": ("a", "b"), "d": ("c",)}),
            AttemptStarted("a", 1, 0.0),
            AttemptStarted("b", 1, 0.0),
            StepSucceeded("a", 1, 5.0, None),
            StepSucceeded("b", 1, 9.0, None),
            AttemptStarted("c", 1, 9.0),
        ]
    )
    trace = to_trace(view, 20.0)
    _slices(trace)

    ends: dict[int, dict[str, tuple[str, float]]] = defaultdict(dict)
    threads = {
        each["tid"]: each["args"]["name"]
        for each in trace["traceEvents"]
        if each["name"] == "thread_name"
    }
    for event in trace["traceEvents"]:
        if event["ph"] in "sf":
            ends[event["id"]][event["ph"]] = threads[event["tid"]], event["ts"]
    assert [*ends.values()] == [
        {"s": ("step a", 5_000.0), "f": ("step c", 9_000.0)},
        {"s": ("step b", 9_000.0), "f": ("step c", 9_000.0)},
    ]


def test_a_log_record_is_an_instant_on_the_line_of_its_step_or_item() -> None:
    view = RunView([RunStarted("r", 0.0, {"a": ()}), AttemptStarted("a", 1, 0.0)])
    notes: list[Event] = [
        StepLogged("a", 1, 3.0, 30, "shop", "only 3 boxes"),
        StepProgressed("a", 1, 4.0, 1, 2),
        StepLogged("gone", 1, 5.0, 30, "shop", "of a step that the run does not have"),
    ]

    events = to_trace(view, 20.0, notes)["traceEvents"]

    (instant,) = [event for event in events if event["ph"] == "i"]
    (line,) = {event["tid"] for event in events if event["name"] == "attempt 1"}
    assert (instant["name"], instant["ts"], instant["tid"]) == ("only 3 boxes", 3_000.0, line)
    assert instant["args"] == {"level": "WARNING", "logger": "shop"}


def test_attempts_backoff_and_queues_are_nested_slices() -> None:
    calls = 0

    async def flaky() -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.01)
        if calls < 2:
            raise OSError("no route")

    events: list[Event] = []
    steps = [
        WorkflowStep("a", flaky, max_retries=2, retry=100),
        WorkflowStep("b", flaky, depends_on=["a"]),
    ]
    run_in_virtual_time(run_pipeline(steps, observers=[events.append]))
    trace = to_trace(RunView(events), now_ms=0.0)

    json.dumps(trace, allow_nan=False)
    names = [(name, depth) for name, _, _, depth in _named(trace, "step a")]
    assert names == [("a", 0), ("attempt 1", 1), ("backoff", 1), ("attempt 2", 1)]
    (_, first, backoff, _) = _slices(trace)["step a"]
    assert first[4] == {"end": "failed", "error": "OSError: no route"}
    assert backoff[2] - backoff[1] == pytest.approx(100_000)
    counts = [each["args"]["attempts"] for each in trace["traceEvents"] if each["ph"] == "C"]
    assert max(counts) == 1
    assert counts[-1] == 0


def test_pauses_of_a_resumed_run_are_as_long_as_they_were() -> None:
    graph = {"a": (), "b": ("a",)}
    view = RunView(
        [
            RunStarted("r", 1_000.0, graph, "etl"),
            AttemptStarted("a", 1, 0.0),
            StepSucceeded("a", 1, 5.0, None),
            AttemptStarted("b", 1, 5.0),
            RunResumed("r", 10.0, 1_060.010, graph, {}),
            AttemptStarted("b", 2, 20.0, queued_ms=4.0),
            LoopBlocked("b", 2, 28.0, 7.0, "x.py:3 in b"),
            AttemptFailed("b", 2, 30.0, OSError("x"), 10.0),
            AttemptStarted("b", 3, 45.0, queued_ms=5.0),
        ]
    )
    trace = to_trace(view, now_ms=50.0)

    gap = 60_000_000
    assert _named(trace, "run") == [
        ("segment 1", 0, 10_000, 0),
        ("segment 2", 10_000 + gap, 50_000 + gap, 0),
    ]
    assert _named(trace, "step b") == [
        ("b", 5_000, 10_000, 0),
        ("attempt 1", 5_000, 10_000, 1),
        ("queued", 16_000 + gap, 20_000 + gap, 0),
        ("b", 20_000 + gap, 50_000 + gap, 0),
        ("attempt 2", 20_000 + gap, 30_000 + gap, 1),
        ("event loop blocked", 21_000 + gap, 28_000 + gap, 2),
        ("backoff", 30_000 + gap, 40_000 + gap, 1),
        ("queued", 40_000 + gap, 45_000 + gap, 1),
        ("attempt 3", 45_000 + gap, 50_000 + gap, 1),
    ]
    assert trace["traceEvents"][0]["args"]["name"] == "run r of etl"
    assert trace["otherData"] == {"run_id": "r", "pipeline": "etl", "status": "RUNNING"}


async def test_items_have_lines_of_their_own_and_no_value_is_in_it() -> None:
    async def fruits() -> list[str]:
        return ["kiwi 1", "kiwi 2", "kiwi 3"]

    async def eat(fruit: str) -> str:
        if fruit == "kiwi 3":
            raise ValueError("odd")
        return fruit * 2

    events: list[Event] = []
    steps = [
        WorkflowStep("fruits", fruits),
        WorkflowStep("eat", eat, map_over="fruits", depends_on={"fruit": "fruits"}),
    ]
    await run_pipeline(steps, fail_fast=False, observers=[events.append])
    assert isinstance(events[-1], RunFinished)
    trace = to_trace(RunView(events), now_ms=0.0)

    slices = _slices(trace)
    steps_ = ["eat", "eat[0]", "eat[1]", "eat[2]", "fruits"]
    assert ["run", *(f"step {name}" for name in steps_)] == sorted(slices)
    assert slices["step eat[2]"][0][4]["error"] == "ValueError: odd"
    assert slices["step eat"][0][4]["depends on"] == "fruits"
    assert "kiwi" not in json.dumps(trace)
