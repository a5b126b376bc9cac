"""Runs the attempts of steps in any executor of `concurrent.futures`.

Such executors are a pool of processes, the one of loky, or those that libraries have for MPI and
clusters. Each of them can run a function elsewhere and none can stop it. So a body has the
semantics of a thread: it is abandoned when its time is up, and no other attempt overlaps it.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self

from asyncflow._core.arguments import check_count
from asyncflow._core.errors import WorkerLostError
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._core.text import describe_fully
from asyncflow._kernel.asyncio_compat import TIMER_SLACK_S, outlast
from asyncflow._policies.engine import EngineCall
from asyncflow._policies.workers import ThreadEnd
from asyncflow.engines._remote.packing import (
    check_sendable,
    pack_call,
    run_packed_alone,
    unpack_answer,
)
from asyncflow.engines._remote.wire import Answer

__all__ = ["ExecutorEngine"]


class ExecutorEngine:
    """Runs attempts in an executor: ``async with ExecutorEngine(make_pool) as engine``.

    Its workers need asyncflow too. An async action gets an event loop of its own there. A body that
    has begun can't be stopped from here. When the time of its attempt is up, the attempt fails and
    the body is abandoned; no further attempt of the step starts while it runs. There, an async
    action is cancelled a moment later, a process is killed, and a plain function with
    ``runs_in="thread"`` can ask `StepContext.cancel_requested`. If the run stops a step before its
    time is up, it waits for the body.

    If a worker dies, the whole pool is broken, as executors have it: each attempt in it fails with
    `WorkerLostError`, and the factory makes another pool.

    Attributes:
        name: ``"executor"``.
        stops_bodies: False.
        moves_data: False: every output comes home.
        tells_began: False: an attempt's time counts from when the executor receives it, which is
            when a worker is free for it. It includes the time that a new worker takes to start.

    Args:
        factory: Makes the executor, and another one if that breaks. The engine shuts it down.
        max_workers: How many attempts the executor has at once, at least 1; by default as many as
            it has workers, or all if it does not say.

    Raises:
        TypeError: ``factory`` is not callable, or ``max_workers`` no integer.
        ValueError: ``max_workers`` is below 1.
    """

    name = "executor"
    stops_bodies = False
    moves_data = False
    tells_began = False

    def __init__(self, factory: Callable[[], Executor], *, max_workers: int | None = None) -> None:
        if isinstance(factory, Executor) or not callable(factory):
            raise TypeError(
                "ExecutorEngine: factory must be a function that makes an executor, since a broken "
                f"one must be replaced, not {type(factory).__name__}; write "
                "lambda: ProcessPoolExecutor(4)"
            )
        if max_workers is not None:
            check_count("ExecutorEngine: max_workers", max_workers, 1)
        self._factory = factory
        self._max_workers = max_workers
        self._loop: asyncio.AbstractEventLoop | None = None
        """The loop in which the engine is open."""
        self._executor: Executor
        self._free: asyncio.Semaphore

    async def __aenter__(self) -> Self:
        """Make the executor.

        Raises:
            RuntimeError: The engine is open already.
            TypeError: The factory makes something else, or the executor of a Dask client.
        """
        if self._loop is not None:
            raise RuntimeError("this ExecutorEngine is open already; make another one")
        self._executor = executor = _checked_executor(self._factory())
        workers = self._max_workers or getattr(executor, "_max_workers", None)
        self._free = asyncio.Semaphore(workers if isinstance(workers, int) else 2**31)
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Shut the executor down, when all bodies in it have ended."""
        self._loop = None
        closing = asyncio.create_task(asyncio.to_thread(self._executor.shutdown))
        cancellation = await outlast(closing.done, partial(asyncio.wait, [closing]))
        closing.result()
        if cancellation is not None:
            raise cancellation

    def check(self, step: WorkflowStep, /) -> None:
        """See `Engine.check`."""
        self._check_open()
        if step.heartbeat_ms is not None:
            raise ValueError(
                f"step {step.name!r}: an executor can't pass heartbeats on; leave heartbeat_ms "
                'out, give the step engine="local", or use another engine'
            )
        check_sendable(step)

    async def run(self, call: EngineCall, /) -> Any:
        """See `Engine.run`."""
        loop = self._check_open()
        deadline_s = math.inf if call.deadline_s is None else loop.time() + call.deadline_s
        packed = pack_call(call, None)
        await self._free.acquire()
        try:
            executor, future = self._submit(call, packed)
        except BaseException:
            self._free.release()
            raise
        limit_s = math.inf if call.limit_s is None else loop.time() + call.limit_s
        ends_s = min(limit_s, deadline_s)
        submission = _Submission(loop, call, future, ends_s, self._free.release)
        worker = type(executor).__name__
        call.began(worker)
        await submission.until_over()
        try:
            answer = future.result()
        except Exception as error:  # the executor's: a body's is in its answer
            if isinstance(error, BrokenExecutor):
                self._renew(executor)
            raise _lost(call, error, worker) from error
        call.located(answer.worker)
        return unpack_answer(answer, call)

    def _submit(self, call: EngineCall, packed: bytes) -> tuple[Executor, Future[Answer]]:
        with suppress(Exception):  # it broke, or was shut down, while it had nothing to do
            return self._executor, self._executor.submit(_run, packed)
        try:
            self._renew(self._executor)
            return self._executor, self._executor.submit(_run, packed)
        except Exception as error:
            raise _lost(call, error, "") from error

    def _renew(self, broken: Executor) -> None:
        if broken is self._executor and self._loop is not None:
            broken.shutdown(wait=False)
            self._executor = _checked_executor(self._factory())

    def _check_open(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise RuntimeError("this ExecutorEngine is not open: use 'async with' around the run")
        if self._loop is not asyncio.get_running_loop():
            raise RuntimeError(
                "this ExecutorEngine was opened in another event loop; open it in that of the run"
            )
        return self._loop


class _Submission:
    """A body that an executor has, until the loop's time at which its own is up."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        call: EngineCall,
        future: Future[Answer],
        ends_s: float,
        release: Callable[[], None],
    ) -> None:
        self._call = call
        self._future = future
        self._loop = loop
        self._ends_s = ends_s
        self._ended = ThreadEnd(loop)
        self._ended.add_done_callback(self._on_ended)
        self._release = release
        self._undisturbed: asyncio.Future[None] = loop.create_future()
        """Done when the body has ended, unless the wait for it is cancelled."""
        future.add_done_callback(self._report)

    def _report(self, _: Future[Answer]) -> None:
        self._ended.report()

    def _on_ended(self, _: object) -> None:
        self._release()
        if not self._undisturbed.done():
            self._undisturbed.set_result(None)

    async def until_over(self) -> None:
        """Wait until the body has ended; if this is cancelled, at most until its time is up.

        Raises:
            asyncio.CancelledError: The body will never begin, or is abandoned.
        """
        try:
            await self._undisturbed  # not `asyncio.wait`, which takes several times as long
        except asyncio.CancelledError:
            if self._future.cancel():
                raise
        while not self._ended.done():
            left_s = self._ends_s - self._loop.time()
            if left_s <= TIMER_SLACK_S:
                self._call.abandon(self._ended)
                raise asyncio.CancelledError
            with suppress(asyncio.CancelledError):  # only the time ends this
                await asyncio.wait([self._ended], timeout=None if left_s == math.inf else left_s)


def _run(packed: bytes) -> Answer:
    """Make the attempt of a call. This is the one function that an executor runs."""
    return run_packed_alone(packed, f"{socket.gethostname()}:{os.getpid()}")


def _lost(call: EngineCall, error: BaseException, worker: str) -> WorkerLostError:
    _, attempt, *_ = call.running
    return WorkerLostError(call.step.name, attempt, worker, describe_fully(error))


def _checked_executor(executor: object) -> Executor:
    """Return what a factory has made, if it is an executor that tells the truth."""
    module = type(executor).__module__
    if module.partition(".")[0] == "distributed":
        # Its futures can be cancelled while their bodies run, which continue.
        raise TypeError(
            "ExecutorEngine: the executor of a Dask client claims to have cancelled what still "
            "runs; use DaskEngine(client) of asyncflow.engines.dask"
        )
    if not isinstance(executor, Executor):
        raise TypeError(
            "ExecutorEngine: factory must return a concurrent.futures.Executor, "
            f"not {type(executor).__name__}"
        )
    return executor
