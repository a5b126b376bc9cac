"""An observer that raises at any event, or is slow, changes no run of any pipeline."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_journal import MemoryJournal
from random_runs import RUN_ID, RandomPipeline

from asyncflow import run_pipeline
from asyncflow.events import AttemptStarted
from asyncflow.testing import run_in_virtual_time


class ObserverError(Exception):
    """The error that the observers here raise."""


class FailingFactory:
    def for_run(self) -> Any:
        raise ObserverError


class RaisesAt:
    """Raises at its n-th call, whatever the event."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.called_after = 0

    def __call__(self, event: object) -> None:
        self.called_after += self.left < 0
        self.left -= 1
        if self.left < 0:
            raise ObserverError

    def enter_attempt(self, running: AttemptStarted) -> None:
        self(running)


class Slow:
    """Does a lot of work at every event."""

    def for_run(self) -> Any:
        return self

    def __call__(self, event: object) -> None:
        sum(range(2_000))

    def enter_attempt(self, running: AttemptStarted) -> None:
        sum(range(2_000))


def outcome_of(seed: int, observers: list[Any], *, durable: bool, cancel_at_ms: int | None) -> Any:
    """Return the report of a random run, or `"cancelled"`, and the events that it emitted."""
    pipeline = RandomPipeline(seed)
    journal = MemoryJournal(latency_s=pipeline.latency_s)
    world = pipeline.world(journal)
    world.enter = lambda context: (context.step_name, context.item)  # type: ignore[method-assign]
    events: list[str] = []

    def record(event: Any) -> None:
        world.observe(event)
        if event.__class__.__name__ not in {"RunStarted"}:  # it holds the wall-clock time
            events.append(repr(event))

    async def main() -> Any:
        run = asyncio.ensure_future(
            run_pipeline(
                pipeline.steps(world),
                run_id=RUN_ID,
                journal=journal if durable else None,
                observers=[*observers, record, *observers],
                **pipeline.options,
            )
        )
        if cancel_at_ms is not None:
            asyncio.get_running_loop().call_later(cancel_at_ms / 1000, run.cancel)
        try:
            report = json.loads((await run).to_json())
        except asyncio.CancelledError:
            return "cancelled"
        return without_tracebacks(report)

    return run_in_virtual_time(main()), events


def without_tracebacks(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: without_tracebacks(each)
            for key, each in value.items()
            if key not in {"traceback", "wall_time"}
        }
    return [without_tracebacks(each) for each in value] if isinstance(value, list) else value


each_run = given(
    seed=st.integers(0, 100_000),
    durable=st.booleans(),
    cancel_at_ms=st.none() | st.integers(0, 12),
    count=st.integers(0, 40),
)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("asyncflow"), "disabled", True)


@each_run
def test_an_observer_that_raises_at_any_event_changes_nothing(
    seed: int, durable: bool, cancel_at_ms: int | None, count: int
) -> None:
    alone = outcome_of(seed, [], durable=durable, cancel_at_ms=cancel_at_ms)
    raises = RaisesAt(count)

    assert outcome_of(seed, [raises], durable=durable, cancel_at_ms=cancel_at_ms) == alone
    assert raises.called_after <= 1  # it observes twice, and each is dropped at its first error


@each_run
def test_a_slow_observer_and_one_that_cannot_be_made_change_nothing(
    seed: int, durable: bool, cancel_at_ms: int | None, count: int
) -> None:
    alone = outcome_of(seed, [], durable=durable, cancel_at_ms=cancel_at_ms)

    assert (
        outcome_of(seed, [Slow(), FailingFactory()], durable=durable, cancel_at_ms=cancel_at_ms)
        == alone
    )
