"""Which attempt of which run the code that asks belongs to: its context knows."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from asyncflow.events import AttemptStarted

__all__ = ["attempt_variable", "current", "run_variable"]

run_variable: ContextVar[Any] = ContextVar("asyncflow.run")
"""What the attempts of the run have in common: it has at least its ``run_id``."""

attempt_variable: ContextVar[AttemptStarted | None] = ContextVar("asyncflow.attempt")
"""``None`` in what a run does between its attempts."""


def current() -> tuple[str, AttemptStarted] | None:
    """Return the id of the run and the start of the attempt; ``None`` outside of an action.

    It knows the threads and tasks that inherit the context of the action, but no other process.
    """
    running = attempt_variable.get(None)
    return None if running is None else (run_variable.get().run_id, running)
