"""Calls of engines made by hand, and an attempt's host in a worker that records what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from asyncflow import WorkflowStep
from asyncflow._policies.workers import ThreadEnd
from asyncflow.engines import EngineCall


class RecordedNotes:
    """Records what an attempt says, in order."""

    def __init__(self, level: int | None = 10, *, prints: bool = False) -> None:
        self.level = level
        self.prints = prints
        self.takes_logs = level is not None or prints
        self.said: list[tuple[Any, ...]] = []

    def __getattr__(self, kind: str) -> Any:
        if kind.startswith("_"):
            raise AttributeError(kind)
        return lambda running, *values: self.said.append((kind, *values))


class RecordedHost:
    """Lets each attempt begin, unless it is told not to."""

    worker = "worker-1"

    def __init__(self, *, lets_begin: bool = True) -> None:
        self.lets_begin = lets_begin
        self.began = asyncio.Event()
        self.beats = 0
        self.saved: list[tuple[str, bytes]] = []
        self.ended = asyncio.Event()

    async def begin(self) -> bool:
        self.began.set()
        return self.lets_begin

    def beat(self) -> None:
        self.beats += 1

    def save(self, saved: tuple[str, bytes]) -> None:
        self.saved.append(saved)

    def thread_ended(self) -> None:
        self.ended.set()


class RecordedCall:
    """A call made by hand, and what the engine has reported about it.

    Args:
        step: The step.
        arguments: What its action is called with.
        notes: Takes what the attempt says.
        others: Other fields of the call.
    """

    def __init__(
        self,
        step: WorkflowStep,
        arguments: Mapping[str, Any] | None = None,
        *,
        notes: Any = None,
        attempt: int = 1,
        **others: Any,
    ) -> None:
        self.workers: list[str] = []
        self.located: list[str] = []
        self.beats = 0
        self.saved: list[tuple[str, bytes]] = []
        self.threads: list[ThreadEnd] = []
        self.reasons: list[str] = []
        self.notes = notes
        fields: dict[str, Any] = {
            "run_id": "run-1",
            "step": step,
            "running": (step.name, attempt, 0.0, 0.0, None),
            "arguments": arguments or {},
            "limit_s": step.timeout_s,
            "deadline_s": None,
            "may_keep": False,
            "began": self.workers.append,
            "located": self.located.append,
            "beat": None if step.heartbeat_ms is None else self._beat,
            "saved": self.saved.append,
            "abandon": self.threads.append,
            "unconfirmed": self.reasons.append,
            "notes": notes,
        }
        self.call = EngineCall(**fields | others)

    def _beat(self) -> None:
        self.beats += 1
