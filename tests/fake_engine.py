"""An engine in the loop of its test: bodies are tasks, workers are slots, and all of it obeys."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from asyncflow import OutputLostError, WorkerLostError, WorkflowStep
from asyncflow._policies.workers import ThreadEnd
from asyncflow.engines import EngineCall, RemoteOutput

__all__ = ["FakeEngine"]


class FakeEngine:
    """Runs bodies in tasks of its loop, at most ``workers`` at a time.

    Attributes:
        calls: All that it was given, in order.
        running: The task of each body that runs, by the name of its step.
        overlaps: The steps of which two bodies have run at once.
        refused: The steps that `check` refuses, each with the error.
        kept: The outputs that stay here, by step; a lost one is removed.

    Args:
        workers: How many bodies may run at a time.
        name: What it is called.
        keeps: Whether an output stays if it may.
        stop_s: How many seconds it takes to confirm that a body has ended.
    """

    stops_bodies = tells_began = True

    def __init__(
        self,
        workers: int = 100,
        name: str = "fake",
        *,
        keeps: bool = False,
        moves_data: bool = True,
        stop_s: float = 0.0,
    ) -> None:
        self.name = name
        self.moves_data = moves_data
        self.calls: list[EngineCall] = []
        self.running: dict[str, asyncio.Task[Any]] = {}
        self.overlaps: Counter[str] = Counter()
        self.refused: dict[str, Exception] = {}
        self.kept: dict[str, Any] = {}
        self.open = True
        self._keeps = keeps
        self._stop_s = stop_s
        self._slots = asyncio.Semaphore(workers)
        self._lost: dict[str, str] = {}

    def check(self, step: WorkflowStep, /) -> None:
        if not self.open:
            raise RuntimeError("it is not open")
        if step.name in self.refused:
            raise self.refused[step.name]

    async def run(self, call: EngineCall, /) -> Any:
        self.calls.append(call)
        try:
            async with self._slots:
                return await self._run_body(call)
        finally:
            del self, call  # a traceback keeps this frame

    async def _run_body(self, call: EngineCall) -> Any:
        name = _name_of(call)
        self.overlaps[name] += name in self.running
        arguments = {key: self._here(value, key) for key, value in call.arguments.items()}
        call.began(f"w{len(self.calls)}")
        body = self.running[name] = asyncio.create_task(_awaited(call.step.action, arguments))
        try:
            await _outlasted(body)
        finally:
            del self.running[name]
        if body.cancelled() and self._stop_s:
            await _outlasted(asyncio.ensure_future(asyncio.sleep(self._stop_s)))
        if name in self._lost:
            raise WorkerLostError(name, call.running[1], "w1", self._lost.pop(name))
        may_keep = self._keeps and call.may_keep
        del call, arguments  # as above
        try:
            output = await body
        except BaseException:
            del self
            raise
        finally:
            del body
        if may_keep:
            self.kept[name] = output
            return RemoteOutput(self.name, "w1", 100, name, lambda: self._fetch(name), name)
        return output

    def lose(self, name: str) -> None:
        """Lose the worker on which the body of a step runs."""
        self._lost[name] = "it was killed"
        self.running[name].cancel()

    def _here(self, value: Any, parameter: str) -> Any:
        if not isinstance(value, RemoteOutput):
            return value
        assert value.engine == self.name
        if value.reference not in self.kept:
            reason = "its worker was lost"
            raise OutputLostError(self.name, "w1", reason, value.step_name, parameter)
        return self.kept[value.reference]

    async def _fetch(self, name: str) -> Any:
        await asyncio.sleep(0)
        if name not in self.kept:
            raise OutputLostError(self.name, "w1", "its worker was lost", name)
        return self.kept[name]


def _name_of(call: EngineCall) -> str:
    step, _, _, _, item = call.running
    return step if item is None else f"{step}[{item}]"


async def _awaited(action: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    return await action(**arguments)


async def _outlasted(task: asyncio.Future[Any]) -> None:
    """Wait for a task, which is cancelled with this one, to its end."""
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()


class Abandoning(FakeEngine):
    """An engine that can't stop a body: it reports it as abandoned, and lets it run."""

    stops_bodies = False

    async def _run_body(self, call: EngineCall) -> Any:
        name = _name_of(call)
        self.overlaps[name] += name in self.running
        call.began("w1")
        work = _awaited(call.step.action, dict(call.arguments))
        body = self.running[name] = asyncio.create_task(work)
        ended = ThreadEnd(asyncio.get_running_loop())
        body.add_done_callback(lambda _: (self.running.pop(name), ended.report()))
        with suppress(asyncio.CancelledError):
            await asyncio.wait([body])
        if body.done():
            return await body
        call.abandon(ended)
        raise asyncio.CancelledError
