"""Pipelines that pass, fail, or wait for a gate to open, and what the page of a run receives."""

from __future__ import annotations

import asyncio
from typing import Any

from asyncflow import Orchestrator, WorkflowStep

__all__ = ["Gate", "failing", "parts_of", "passing", "slow"]


async def extract() -> list[int]:
    return [1, 2, 3]


async def load(extract: list[int]) -> int:
    return len(extract)


async def refuse(extract: list[int]) -> None:
    raise ValueError("no such table: orders")


def passing(name: str = "etl") -> Orchestrator:
    steps = [WorkflowStep("extract", extract), WorkflowStep("load", load, ["extract"])]
    return Orchestrator(steps, name=name)


def failing(name: str = "reports") -> Orchestrator:
    steps = [WorkflowStep("extract", extract), WorkflowStep("refuse", refuse, ["extract"])]
    return Orchestrator(steps, name=name)


class Gate:
    """An action that waits until the gate is open, and counts its calls and clean-ups."""

    def __init__(self) -> None:
        self.calls = 0
        self.clean_ups = 0
        self.is_open = asyncio.Event()
        self.has_started = asyncio.Event()

    async def __call__(self) -> str:
        self.calls += 1
        self.has_started.set()
        try:
            await self.is_open.wait()
        finally:
            self.clean_ups += 1
        return "through"


def slow(gate: Gate, name: str = "slow") -> Orchestrator:
    """Return a pipeline that runs until the gate is open."""
    steps = [WorkflowStep("extract", extract), WorkflowStep("gate", gate, timeout_ms=None)]
    return Orchestrator(steps, name=name)


async def parts_of(client: Any, run_id: str, query: str = "") -> dict[str, Any]:
    """Return what the page of a run receives, with its sections as the page shows them."""
    answer = await client.get(f"/parts/{run_id}{query}")
    received = answer.json()
    return {
        **received,
        "sections": {name: part for name, (_, part) in received["sections"].items()},
    }
