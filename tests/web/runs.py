"""Pipelines that pass, fail, or wait for a gate to open, and what the page of a run receives."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from asyncflow import Orchestrator, WorkflowStep

__all__ = ["Gate", "failing", "first_update", "passing", "slow", "updates_in"]


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


def updates_in(text: str) -> list[dict[str, Any]]:
    """Return the updates of a stream, each with its id."""
    updates = []
    for message in text.replace("\r\n", "\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in message.splitlines() if ": " in line)
        if fields.get("event") == "update":
            updates.append({**json.loads(fields["data"]), "id": int(fields["id"])})
    return updates


async def first_update(pages: Any, run_id: str) -> dict[str, Any]:
    """Return the first update that the page of a run receives."""
    messages: list[bytes] = []
    seen = asyncio.Event()

    async def send(message: Any) -> None:
        messages.append(message.get("body", b""))
        if b"event: update" in messages[-1]:
            seen.set()

    async def receive() -> Any:
        await seen.wait()
        return {"type": "http.disconnect"}

    scope = {
        "type": "http",
        "method": "GET",
        "path": f"/events/{run_id}",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "scheme": "http",
        "server": ("localhost", 80),
    }
    await pages(scope, receive, send)
    return updates_in(b"".join(messages).decode())[0]
