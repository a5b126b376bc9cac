"""The attempt that this process makes, if it is the worker process of a step.

The worker's program sets it. That loads this module by its path, because an import of asyncflow
takes longer than all else there and few actions need one: so nothing here may import asyncflow.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing `typing` takes long
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class ProcessAttempt:
    """What `asyncflow.current_step` needs in a worker process."""

    __slots__ = ("beat", "clock", "notes", "sent")

    def __init__(
        self,
        sent: tuple[Any, ...],
        notes: Any,
        beat: Callable[[], object],
        clock: Callable[[], float],
    ) -> None:
        self.sent = sent
        """What `asyncflow._core.context.attempt_for_process` returned."""
        self.notes = notes
        """Takes what the attempt says, if anything receives it."""
        self.beat = beat
        self.clock = clock


current: ProcessAttempt | None = None
