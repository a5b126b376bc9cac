"""What Python 3.11 alone needs to make an attempt; to be deleted with its support.

There, `asyncio.wait_for` runs a coroutine in a task of its own. If it is cancelled while that task
ends, it discards the result, and may leave the task running (gh-86296). So the driver makes the
task, and asks afterwards what became of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from asyncflow._core.running.state import RunState
from asyncflow._kernel.asyncio_compat import forget_cancels, outlast
from asyncflow._kernel.stop_control import StopControl


async def make_only_attempt(
    node: int,
    state: RunState,
    stop: StopControl,
    make_attempt: Callable[[], Coroutine[Any, Any, object]],
    now_ms: Callable[[], float],
) -> None:
    """Make the only attempt of a plain node, which reports its end by itself."""
    timeout_s, name = state.step_runs.steps[node].timeout_s, stop.watchdog.task_name(node, 1)
    while True:
        # The attempt begins a turn after its timer, and that turn may last.
        state.deadlines.begin_limit(node, now_ms())
        task = asyncio.Task(make_attempt(), name=name)
        try:
            await asyncio.wait_for(task, timeout_s)
        except (TimeoutError, asyncio.CancelledError):
            await outlast(task.done, partial(asyncio.wait, [task]))
            if state.step_runs.is_scheduled(node):
                # A third party has cancelled the task before its first line. If the run had, it
                # would have reported that the node will not start.
                forget_cancels()
                continue
        return
