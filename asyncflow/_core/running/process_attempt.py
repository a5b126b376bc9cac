"""The attempt that this process makes, if it is the worker process of a step.

The worker's program sets it. That loads this module by its path, because an import of asyncflow
takes longer than all else there and few actions need one: so nothing here may import asyncflow.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing `typing` takes long
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

sent: tuple[Any, ...] | None = None
"""What `asyncflow._core.running.context.attempt_for_process` returned, or ``None``."""
notes: Any = None
"""Takes what the attempt says, if anything receives it."""
save: Any = None
"""Takes the key of a checkpoint and its encoded value, on to the process of the run."""
beat: Callable[[], object] = bool
clock: Callable[[], float] = float
