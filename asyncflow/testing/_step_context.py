"""Gives an action that a test calls directly its `current_step`."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from asyncflow._core.arguments import check_count, check_limit
from asyncflow._core.history.log import StartedAttempt
from asyncflow._core.history.results import StepResult
from asyncflow._core.pipeline.graph import plan
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._core.running.context import AttemptExtras, RunContext, enter_direct_call
from asyncflow._kernel.asyncio_compat import cancel_requested


class SaidProgress(NamedTuple):
    """What an action said with `StepContext.progress`."""

    done: float
    total: float | None
    unit: str


class SaidAttachment(NamedTuple):
    """What an action said with `StepContext.attach`."""

    name: str
    data: object
    """As it was given: neither read nor checked."""
    media_type: str | None


class DirectCall:
    """What an action said while a test called it within `step_context`.

    Attributes:
        heartbeats: How many heartbeats it gave. Progress is one too.
        progress: The progress that it reported, in order.
        attachments: What it attached, in order.
        checkpoints: What it saved with `StepContext.checkpoint`, in order, as it was given.
        calls: The names of its calls with `StepContext.call`, in order. They are made, and nothing
            is kept of what they return.
        cancel_requested: What `StepContext.cancel_requested` says; set it to ask an action to stop.
    """

    def __init__(self) -> None:
        self.heartbeats = 0
        self.progress: list[SaidProgress] = []
        self.attachments: list[SaidAttachment] = []
        self.checkpoints: list[object] = []
        self.calls: list[str] = []
        self.cancel_requested = False


class _Recorder:
    """Records what an action says, as a run's notes, its checkpoints, calls and heartbeat timer."""

    takes_logs = False
    level = None

    def __init__(self, call: DirectCall, last_checkpoint: object) -> None:
        self._call = call
        self._last_checkpoint = last_checkpoint

    def beat(self) -> None:
        self._call.heartbeats += 1

    def progress(self, _: StartedAttempt, done: float, total: float | None, unit: str, /) -> None:
        self._call.progress.append(SaidProgress(done, total, unit))

    def attach(self, _: StartedAttempt, name: str, data: object, media_type: str | None, /) -> None:
        self._call.attachments.append(SaidAttachment(name, data, media_type))

    # As the run's checkpoints.

    def save(self, _: StartedAttempt, value: object, *, is_last: bool) -> None:
        self._call.checkpoints.append(value)

    def last(self, _: StartedAttempt) -> object:
        return self._last_checkpoint

    # As the calls of a step.

    async def call(
        self,
        _: RunContext,
        running: StartedAttempt,
        name: str,
        function: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        self._call.calls.append(name)
        return await function(*args, **kwargs)


@contextmanager
def step_context(
    *,
    step_name: str = "step",
    run_id: str = "test",
    attempt: int = 1,
    max_retries: int | None = None,
    item: int | None = None,
    remaining_ms: float | None = None,
    results: Mapping[str, StepResult] | None = None,
    last_error: BaseException | None = None,
    last_checkpoint: object = None,
) -> Iterator[DirectCall]:
    """Let `current_step` work in a ``with`` block, for an action that is called without a run::

        with step_context(attempt=2) as said:
            await fetch("https://example.com")
        assert said.heartbeats == 1

    Args:
        step_name: The step, as `StepContext` has it; so are the next three.
        run_id: The run.
        attempt: The number of the attempt, counted from 1.
        item: The item of a mapped step, counted from 0.
        max_retries: How many attempts there are in all; by default, this one is the last.
        remaining_ms: How many milliseconds are left when the block begins; ``None`` for no limit.
        results: For the action of a clean-up step, the results of its dependencies.
        last_error: What the attempt before failed with.
        last_checkpoint: What an earlier attempt has saved.

    Yields:
        What the action says.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.
    """
    if not isinstance(run_id, str):
        raise TypeError(f"step_context: run_id must be a str, not {type(run_id).__name__}")
    if item is not None:
        check_count("step_context: item", item, 0, kind="an int or None")
    results = {} if results is None else results
    if not isinstance(results, Mapping) or not all(
        isinstance(each, StepResult) for each in results.values()
    ):
        raise TypeError("step_context: results must be a mapping of step name to StepResult")
    check_count("step_context: attempt", attempt, 1)
    check_limit("step_context: remaining_ms", remaining_ms)
    max_retries = attempt if max_retries is None else max_retries
    step = WorkflowStep(step_name, _no_action, max_retries=max_retries)
    said = DirectCall()
    recorder: Any = _Recorder(said, last_checkpoint)
    began_s = _clock()
    ends_s = math.inf if remaining_ms is None else began_s + remaining_ms / 1000
    run = RunContext(
        run_id,
        plan([step]),
        _clock,
        began_s,
        math.inf,
        {(step_name, item): AttemptExtras(ends_s, recorder, results)},
        lambda: said.cancel_requested or cancel_requested(),
        recorder,
        last_errors={} if last_error is None else {(step_name, item): last_error},
        checkpoints=recorder,
        open_calls=lambda run, running: recorder,
    )
    leave = enter_direct_call(run, (step_name, attempt, 0.0, 0.0, item))
    try:
        yield said
    finally:
        leave()


async def _no_action() -> None: ...


def _clock() -> float:
    """Return the time of the running loop, which may be virtual; else that of the machine."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return time.monotonic()
