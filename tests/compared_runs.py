"""Two stored runs of a pipeline that differ in all that a comparison shows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from segments import store_segment

from asyncflow import RunStatus
from asyncflow._core.history.results import REDACTED, Payload
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    MapStarted,
    RunFinished,
    RunStarted,
    StepFailed,
    StepSkipped,
    StepSucceeded,
)

__all__ = ["MONDAY", "store", "store_two_runs"]

MONDAY = 1_767_600_000.0


async def store(journal: Any, events: list[Event]) -> None:
    """Store the events of a run."""
    start = events[0]
    assert isinstance(start, RunStarted)
    await store_segment(journal, start.run_id, *events, with_steps=True)


async def store_two_runs(journal: Any) -> None:
    """Store ``monday``, which passed, and ``tuesday``, which failed."""
    await store(journal, [*_monday()])
    await store(journal, [*_tuesday()])


def _start(
    run_id: str,
    wall_time: float,
    dependencies: Mapping[str, tuple[str, ...]],
    version: str,
    inputs: Mapping[str, Any],
) -> RunStarted:
    stored = {
        name: Payload("json", json.dumps(value).encode()) for name, value in inputs.items()
    } | {"token": REDACTED}
    prints = {name: ("()", version if name == "train" else "") for name in dependencies}
    return RunStarted(run_id, wall_time, dependencies, "etl", prints, stored)


def _succeeded(
    name: str, from_ms: float, to_ms: float, attempt: int = 1, output: object = 1
) -> Iterator[Event]:
    yield AttemptStarted(name, attempt, from_ms)
    yield StepSucceeded(name, attempt, to_ms, Payload("json", json.dumps(output).encode()))


def _mapped(name: str, from_ms: float, to_ms: float, count: int, retried: int = 0) -> Any:
    yield MapStarted(name, from_ms, count)
    for item in range(count):
        attempt = 1
        yield AttemptStarted(name, 1, from_ms, 0.0, item)
        if item < retried:
            attempt = 2
            yield AttemptFailed(name, 1, from_ms, OSError("busy"), 0.0, item)
            yield AttemptStarted(name, 2, from_ms, 0.0, item)
        yield StepSucceeded(name, attempt, to_ms, Payload("json", b"1"), item)
    yield StepSucceeded(name, 0, to_ms, None)


def _monday() -> Iterator[Event]:
    needs = {"extract": (), "prices": (), "fetch": ("extract",), "old": ("extract",)}
    needs |= {"load": ("fetch", "old"), "train": ("load",), "notify": ("train",)}
    yield _start("monday", MONDAY, needs, "1", {"days": 30, "mode": "full", "url": "a"})
    yield from _succeeded("extract", 0, 1_000)
    yield from _succeeded("prices", 0, 500, output={"currency": "EUR", "rate": 1.1})
    yield from _mapped("fetch", 1_000, 2_000, 2)
    yield from _succeeded("old", 1_000, 1_300)
    yield from _succeeded("load", 2_000, 3_000)
    yield from _succeeded("train", 3_000, 5_000)
    yield from _succeeded("notify", 5_000, 5_002)
    yield RunFinished(5_003.0, RunStatus.PASSED)


def _tuesday() -> Iterator[Event]:
    needs = {"extract": (), "prices": (), "fetch": ("extract",), "audit": ("extract",)}
    needs |= {"load": ("fetch", "audit"), "train": ("load",), "notify": ("train",)}
    inputs = {"days": 31, "url": "a", "dry_run": False}
    yield _start("tuesday", MONDAY + 86_400, needs, "2", inputs)
    yield from _succeeded("extract", 0, 4_000)
    yield AttemptStarted("prices", 1, 0)
    yield AttemptFailed("prices", 1, 20, ConnectionError("reset by peer"), 0)
    yield from _succeeded("prices", 30, 520, 2, {"rate": 1.2, "currency": "EUR"})
    yield from _mapped("fetch", 4_000, 5_000, 3, retried=1)
    yield from _succeeded("audit", 4_000, 4_250)
    yield from _succeeded("load", 5_000, 5_400)
    yield AttemptStarted("train", 1, 5_400)
    yield StepFailed("train", 1, 7_400, ValueError("column 'season' has 3 unknown values"))
    yield StepSkipped("notify", 7_400, "it depends on step 'train', which failed")
    yield RunFinished(7_401.0, RunStatus.FAILED, "step 'train' failed and fail_fast is on")
