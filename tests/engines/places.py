"""Where a step can run: what the contract of the engines is tested on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any

import loky
import pytest

from asyncflow import WorkflowStep
from asyncflow.engines.executor import ExecutorEngine

__all__ = [
    "DASK",
    "LOCAL",
    "Place",
    "Pools",
    "dask_place",
    "executor_engine",
    "executor_place",
    "local_place",
    "open_dask",
]


class Place:
    """An engine, or this process, and where in it a step runs.

    Attributes:
        name: What the tests call it.
        runs_in: ``"loop"``, ``"thread"`` or ``"process"``.
        engine: The engine, which is open; ``None`` for this process.
        stops_bodies: Whether a body that runs is stopped when its attempt must end.
        can_lose_workers: Whether the process of a body may be killed.
        open_another: Opens another engine of this kind.
        logs: Returns what the processes of the engine have logged.
    """

    def __init__(
        self,
        name: str,
        runs_in: str,
        engine: Any = None,
        *,
        can_lose_workers: bool = False,
        open_another: Callable[[], AbstractAsyncContextManager[Any]] = nullcontext,
        logs: Callable[[], str] = str,
    ) -> None:
        self.name = name
        self.runs_in = runs_in
        self.engine = engine
        self.stops_bodies = runs_in != "thread" and (engine is None or engine.stops_bodies)
        self.can_lose_workers = can_lose_workers
        self.open_another = open_another
        self.logs = logs

    def step(
        self,
        name: str,
        action: Callable[..., Any],
        plain_action: Callable[..., Any],
        depends_on: Any = (),
        **policies: Any,
    ) -> WorkflowStep:
        """Make a step for here."""
        chosen = action if self.runs_in == "loop" else plain_action
        return WorkflowStep(name, chosen, depends_on, runs_in=self.runs_in, **policies)


LOCAL = ("loop", "thread", "process")


def local_place(runs_in: str) -> Place:
    return Place(runs_in, runs_in, can_lose_workers=runs_in == "process")


WORKERS = 2


class Pools:
    """Pools of processes that all tests share, since they take long to start."""

    def __init__(self) -> None:
        self._pools: dict[str, Executor] = {}

    def lend(self, kind: str) -> Executor:
        """Return a pool that forgets to shut down; a new one if the last one has broken."""
        if kind not in self._pools:
            self._pools[kind] = _MAKE[kind]()
        return _LentPool(self._pools[kind], lambda: self._pools.pop(kind, None))

    def close(self) -> None:
        for pool in self._pools.values():
            pool.shutdown()


class _LentPool(Executor):
    def __init__(self, pool: Executor, on_broken: Callable[[], object]) -> None:
        self._pool = pool
        self._on_broken = on_broken
        self._max_workers = WORKERS

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = self._pool.submit(function, *args, **kwargs)
        future.add_done_callback(self._look)
        return future

    def _look(self, future: Future[Any]) -> None:
        if not future.cancelled() and isinstance(future.exception(), BrokenExecutor):
            self._on_broken()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the pool to the next one, or to `Pools.close`."""


_MAKE: dict[str, Callable[[], Executor]] = {
    # Not a fork, which copies the threads' locks as they are.
    "pool": lambda: ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")),
    "loky": lambda: loky.ProcessPoolExecutor(WORKERS),
}


def executor_place(pools: Pools, kind: str, runs_in: str, engine: ExecutorEngine) -> Place:
    return Place(
        f"{kind}-{runs_in}",
        runs_in,
        engine,
        can_lose_workers=True,
        open_another=lambda: executor_engine(pools, kind),
    )


def executor_engine(pools: Pools, kind: str) -> ExecutorEngine:
    return ExecutorEngine(lambda: pools.lend(kind))


DASK: tuple[str, ...] = ()
if find_spec("asyncflow.engines.dask") is not None:
    DASK = ("dask-loop", "dask-thread", "dask-process")


def open_dask(request: pytest.FixtureRequest) -> Any:
    """Open an engine on the worker of the cluster that has the same Python."""
    from asyncflow.engines.dask import DaskEngine

    cluster = request.getfixturevalue("dask_cluster")
    return DaskEngine(cluster.address, resources={"same": 1})


def dask_place(request: pytest.FixtureRequest, runs_in: str, engine: Any) -> Place:
    return Place(
        f"dask-{runs_in}",
        runs_in,
        engine,
        open_another=lambda: open_dask(request),
        logs=request.getfixturevalue("dask_cluster").logs,
    )
