"""Pipelines whose runs end in every way, or not before they are told to."""

from __future__ import annotations

import asyncio

from asyncflow import Orchestrator, WorkflowStep

__all__ = ["Gate", "failing", "passing", "slow"]


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
    """A step that waits until it is let through, and notes how often it was started."""

    def __init__(self) -> None:
        self.calls = 0
        self.clean_ups = 0
        self.is_open = asyncio.Event()
        self.has_begun = asyncio.Event()

    async def __call__(self) -> str:
        self.calls += 1
        self.has_begun.set()
        try:
            await self.is_open.wait()
        finally:
            self.clean_ups += 1
        return "through"


def slow(gate: Gate, name: str = "slow") -> Orchestrator:
    """A run that goes on until the gate is open."""
    steps = [WorkflowStep("extract", extract), WorkflowStep("gate", gate, timeout_ms=None)]
    return Orchestrator(steps, name=name)
