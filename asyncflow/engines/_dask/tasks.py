"""The tasks of Dask that ask for bodies: submits them, watches them, and lets Dask forget them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from distributed import Client, Future

from asyncflow._core.text import describe_fully
from asyncflow.engines._dask.body import run_body
from asyncflow.engines._dask.link import RemoteBody

_MAX_NAMES = 100
"""Dask groups tasks by name, and becomes slow with thousands of groups."""


class BodyTask:
    """A task that asks for a body.

    ``future`` is Dask's; ``None`` until the task is submitted. ``kept`` are the outputs that it
    takes along, each the future of another such task.
    """

    def __init__(self, body: RemoteBody, key: str, kept: Sequence[Future]) -> None:
        self.body = body
        self.key = key
        self.kept = kept
        self.future: Future | None = None
        self._watching: asyncio.Task[None] | None = None

    def begin(self, future: Future) -> None:
        """Watch the submitted task: if Dask can't run it, its body must not begin."""
        self.future = future
        self._watching = asyncio.create_task(self._watch(), name="asyncflow:dask-task")

    def fail(self, problem: str) -> None:
        """Stop the body, since Dask can't run the task."""
        self.body.stop(f"Dask could not run it: {problem}")

    def end(self, *, is_kept: bool) -> None:
        """Watch no more, and let Dask forget the task unless its output is needed."""
        if self._watching is not None:
            self._watching.cancel()
        if self.future is not None and not is_kept:
            self.future.release()

    async def _watch(self) -> None:
        assert self.future is not None
        state: Any = (
            self.future._state
        )  # public methods would raise the error, or return another future
        await state.wait()
        if state.status in {"cancelled", "error"}:
            self.fail(describe_fully(state.exception))


class Submissions:
    """Submits the tasks of one turn of the loop as one graph, which costs Dask a third of many.

    ``engine`` is what the fence knows the engine by, and ``resources`` is what each task needs of
    its worker.
    """

    def __init__(self, client: Client, engine: str, resources: Mapping[str, float]) -> None:
        self._client = client
        self._engine = engine
        self._resources = resources
        self._names: set[str] = set()
        self._tasks: list[BodyTask] = []

    def add(self, name: str, body: RemoteBody, kept: Sequence[Future]) -> BodyTask:
        """Submit a task at the end of this turn.

        ``name`` is what Dask's displays call it, and all tasks of the same step: its name, unless
        there are very many. ``kept`` are the outputs that it takes along.
        """
        if name not in self._names:
            name = name if len(self._names) < _MAX_NAMES else "step"
            self._names.add(name)
        task = BodyTask(body, f"{name}-{body.number}-{self._engine}", kept)
        if not self._tasks:
            asyncio.get_running_loop().call_soon(self._submit)
        self._tasks.append(task)
        return task

    def _submit(self) -> None:
        tasks, self._tasks = self._tasks, []
        try:
            futures = self._client.map(
                partial(run_body, self._engine),
                [task.body.number for task in tasks],
                [list(task.kept) for task in tasks],
                key=[task.key for task in tasks],
                resources=dict(self._resources) or None,
                pure=False,
                retries=0,
            )
        except Exception as error:  # the client was closed, for one
            for task in tasks:
                task.fail(describe_fully(error))
        else:
            for task, future in zip(tasks, futures, strict=True):
                task.begin(future)
