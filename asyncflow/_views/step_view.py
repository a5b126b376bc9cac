"""What a view shows of one step, or of one item of a mapped step, at some moment of its run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from asyncflow._core.errors import RestoredError, StepCrashedError, StepTimeoutError
from asyncflow._core.results import StepStatus
from asyncflow.events import LoopBlocked

__all__ = ["AttemptEnd", "AttemptView", "StepView", "end_of"]

AttemptEnd: TypeAlias = Literal["succeeded", "failed", "timed out", "cancelled", "crashed"]
"""How an attempt has ended; it has crashed if it was cut short with its process or its journal."""

_NOTHING: Counter[StepStatus] = Counter()
"""Never changed: a large run need not hold one for each of its steps."""


@dataclass(slots=True)
class AttemptView:
    """One attempt. Times are milliseconds since the run started."""

    number: int
    """Counted from 1."""
    started_ms: float
    queued_ms: float = 0.0
    """How long it has waited for a pool or for ``max_concurrency`` just before its start."""
    ended_ms: float | None = None
    """``None`` while it runs."""
    end: AttemptEnd | None = None
    error: BaseException | None = None
    retry_in_ms: float | None = None
    """How long after its end the next attempt may start; ``None`` if none was to follow."""
    abandoned: bool = False
    """Whether its thread went on by itself."""
    blocks: tuple[LoopBlocked, ...] = ()
    """When it has kept the event loop from doing anything else."""


@dataclass(slots=True)
class StepView:
    """One step, or one item of a mapped step. Times are milliseconds since the run started."""

    name: str
    """That of an item has its index: ``fetch[3]``."""
    depends_on: tuple[str, ...] = ()
    tier: int = 0
    """Which tier it belongs to, counted from 0."""
    max_retries: int | None = None
    """How many attempts it has in all; ``None`` if that was not told."""
    secret: bool = False
    """Whether its output must not be shown; then `output` is not the one that the step gave."""
    status: StepStatus = StepStatus.PENDING
    attempts: list[AttemptView] = field(default_factory=list)
    """Of a mapped step there are none: its `items` have them."""
    started_ms: float | None = None
    ended_ms: float | None = None
    output: Any = None
    error: BaseException | None = None
    reason: str | None = None
    """Why it was skipped or cancelled."""
    on_purpose: bool = False
    """Whether it was skipped because the pipeline wanted it so."""
    reused: bool = False
    """Whether its result was kept by a journal, so that it did not run again."""
    rerun_reason: str | None = None
    """Why it runs again in a resumed run, in words that complete "it runs again because …"."""
    items: dict[int, StepView] | None = None
    """The items that have begun, by number; ``None`` if it is not mapped, or has not begun."""
    item_count: int | None = None
    """How many items there are, as far as that is known before they have been gone through."""
    tally: Counter[StepStatus] = field(default_factory=lambda: _NOTHING)
    """How many items have which status."""

    @property
    def latest(self) -> AttemptView | None:
        """The latest attempt, if there was one."""
        return self.attempts[-1] if self.attempts else None

    @property
    def retry_at_ms(self) -> float | None:
        """When its next attempt may start, if it waits for that."""
        latest = self.latest
        if self.status is not StepStatus.RUNNING or latest is None:
            return None
        if latest.ended_ms is None or latest.retry_in_ms is None:
            return None
        return latest.ended_ms + latest.retry_in_ms

    @property
    def attempt_count(self) -> int:
        """How many attempts were started, those of its items included."""
        if self.items is None:
            return len(self.attempts)
        return sum(len(item.attempts) for item in self.items.values())

    @property
    def queued_ms(self) -> float:
        """How long its attempts, those of its items included, have waited in line, in all."""
        units = [self] if self.items is None else self.items.values()
        return sum(attempt.queued_ms for unit in units for attempt in unit.attempts)

    @property
    def blocked_ms(self) -> float:
        """How long it, or its items, have blocked the event loop, as far as that was noticed."""
        units = [self] if self.items is None else self.items.values()
        return sum(
            block.blocked_ms for unit in units for each in unit.attempts for block in each.blocks
        )

    @property
    def abandoned(self) -> bool:
        """Whether a thread of it, or of one of its items, went on by itself."""
        units = [self] if self.items is None else self.items.values()
        return any(attempt.abandoned for unit in units for attempt in unit.attempts)

    def duration_ms(self, now_ms: float) -> float | None:
        """Return how long it has run, waits between its attempts included.

        Args:
            now_ms: Until when, if it has not ended.

        Returns:
            Milliseconds; ``None`` if it has not started.
        """
        if self.started_ms is None:
            return None
        return max((now_ms if self.ended_ms is None else self.ended_ms) - self.started_ms, 0.0)


def end_of(error: BaseException | None) -> AttemptEnd:
    """Return how an attempt has ended that failed with an error."""
    name = error.type_name if isinstance(error, RestoredError) else type(error).__name__
    name = name.rpartition(".")[2]
    if name == StepTimeoutError.__name__:
        return "timed out"
    return "crashed" if name == StepCrashedError.__name__ else "failed"
