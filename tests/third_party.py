"""What code outside a run can reach: the tasks of the run's steps."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["step_tasks"]


def step_tasks() -> set[asyncio.Task[Any]]:
    """Return the tasks of the steps and items that run, which a task group owns."""
    return {task for task in asyncio.all_tasks() if "TaskGroup._on_task_done" in repr(task)}
