"""What is known of one step, or of one item of a mapped step, at some moment of its run.

The replay of a run (`StoredRun`) changes these records event by event, and every display reads
them. Times are milliseconds since the run started.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, TypeAlias

from asyncflow._core.errors import RestoredError, StepCrashedError, StepTimeoutError
from asyncflow._core.record import made_by, record
from asyncflow._core.results import Attempt, StepResult, StepStatus, visible_output

__all__ = ["AttemptEnd", "AttemptView", "Block", "StepView", "end_of"]

AttemptEnd: TypeAlias = Literal["succeeded", "failed", "timed out", "cancelled", "crashed"]
"""How an attempt ended; it crashed if its process died or its journal failed."""

_NO_ITEMS: Counter[StepStatus] = Counter()
"""Never changed, so that a plain step needs no tally of its own."""
_ROUNDING_MS = 1e-6
"""By how much a sum of times may differ from the time that it stands for."""


class Block(NamedTuple):
    """A time for which an attempt kept the event loop from doing anything else."""

    at_ms: float
    """When it ended."""
    blocked_ms: float
    where: str
    """The line that blocked: ``file:line in function``; empty if unknown."""


@record(frozen=False)
class AttemptView:
    """One attempt."""

    number: int
    """Counted from 1."""
    started_ms: float
    queued_ms: float = 0.0
    """How long it was queued for a pool or for ``max_concurrency`` just before its start."""
    ended_ms: float | None = None
    """``None`` while it runs."""
    end: AttemptEnd | None = None
    error: BaseException | None = None
    retry_in_ms: float | None = None
    """How long after its end the next attempt may start; ``None`` if none was to follow."""
    abandoned: bool = False
    """Whether its thread outlived it."""
    blocks: tuple[Block, ...] = ()

    def to_attempt(self) -> Attempt:
        """Return the attempt, which has ended, as a result has it."""
        duration_ms = (self.ended_ms or 0.0) - self.started_ms
        return Attempt(self.number, self.started_ms, duration_ms, self.error, self.queued_ms)


@record(frozen=False)
class StepView:
    """One step, or one item of a mapped step."""

    name: str
    """An item's has its index: ``fetch[3]``."""
    depends_on: tuple[str, ...] = ()
    tier: int = 0
    """Counted from 0."""
    max_retries: int | None = None
    """How many attempts it has in all; ``None`` if unknown."""
    secret: bool = False
    """Whether its output must not be shown; then `output` is a stand-in."""
    status: StepStatus = StepStatus.PENDING
    attempts: list[AttemptView] = made_by(default_factory=list)
    """Empty for a mapped step, whose `items` have them."""
    started_ms: float | None = None
    ended_ms: float | None = None
    output: Any = None
    error: BaseException | None = None
    reason: str | None = None
    """Why it was skipped or cancelled."""
    on_purpose: bool = False
    """Whether the pipeline asked for it to be skipped."""
    reused: bool = False
    """Whether a resumed run restored its result from the journal, so that it did not run again."""
    rerun_reason: str | None = None
    """Why a resumed run runs it again, in words that complete "it runs again because …"."""
    items: dict[int, StepView] | None = None
    """The items that have begun, by number; ``None`` if it is not mapped, or has not begun."""
    item_count: int | None = None
    """How many items there are, if that is known before the last one has begun."""
    tally: Counter[StepStatus] = made_by(default_factory=lambda: _NO_ITEMS)
    """How many items have which status."""

    @classmethod
    def from_result(cls, result: StepResult, tier: int = 0) -> StepView:
        """Return what a result says of a step, which is less than its events did."""
        items = None
        if result.items is not None:
            items = {at: cls.from_result(item, tier) for at, item in enumerate(result.items)}
        view = cls(
            result.step_name,
            result.depends_on,
            tier,
            secret=result.secret,
            status=result.status,
            started_ms=result.started_ms,
            output=visible_output(result),
            error=result.error,
            reason=result.reason,
            on_purpose=result.on_purpose,
            reused=result.reused,
            rerun_reason=result.rerun_reason,
            items=items,
        )
        if items is not None:
            view.item_count = len(items)
            view.tally = Counter(item.status for item in items.values())
        if result.started_ms is not None and result.status is not StepStatus.RUNNING:
            # Times are rounded sums: a step does not end before what belongs to it.
            within = [attempt.started_ms for attempt in result.history[-1:]]
            within += [item.ended_ms or 0.0 for item in (items or {}).values()]
            view.ended_ms = max(result.started_ms + result.duration_ms, *within, 0.0)
        view.attempts = _attempts_of(result, view.ended_ms)
        if view.attempts:
            latest = view.attempts[-1]
            latest.abandoned = result.abandoned
            if result.loop_blocked_ms:
                at_ms = latest.started_ms if latest.ended_ms is None else latest.ended_ms
                latest.blocks = (Block(at_ms, result.loop_blocked_ms, ""),)
        return view

    def to_result(self, now_ms: float) -> StepResult:
        """Return the result of the step, or what can be said of it before it has one.

        Args:
            now_ms: The present, if the step has not ended.
        """
        items = None
        attempts, queued_ms, blocked_ms = len(self.attempts), self.queued_ms, self.blocked_ms
        if self.attempts:
            attempts = self.attempts[-1].number
        if self.items is not None:
            items = tuple([self.items[number].to_result(now_ms) for number in sorted(self.items)])
            attempts = sum(item.attempts for item in items)
            queued_ms = sum(item.queued_ms for item in items)
            blocked_ms = sum(item.loop_blocked_ms for item in items)
        return StepResult(
            self.name,
            self.status,
            attempts,
            self.duration_ms(now_ms) or 0.0,
            self.output,
            self.error,
            self.reason,
            self.started_ms,
            self._recorded(),
            self.depends_on,
            queued_ms,
            blocked_ms,
            self.abandoned,
            self.on_purpose,
            items,
            self.reused,
            self.rerun_reason,
            self.secret and self.status is StepStatus.SUCCESS,
        )

    def _recorded(self) -> tuple[Attempt, ...] | None:
        """Return its attempts that have ended; ``None`` for one that says what the result says."""
        ended = [attempt for attempt in self.attempts if attempt.ended_ms is not None]
        if len(ended) == 1 and self.ended_ms is not None:
            only = ended[0]
            if only.retry_in_ms is None and only.end != "crashed":
                return None
        return tuple([attempt.to_attempt() for attempt in ended])

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
        return sum(len(each.attempts) for each in self._runs())

    @property
    def queued_ms(self) -> float:
        """How long its attempts were queued in all, those of its items included."""
        return sum((one.queued_ms for each in self._runs() for one in each.attempts), start=0.0)

    @property
    def blocked_ms(self) -> float:
        """How long it blocked the event loop in all, as far as that was noticed."""
        attempts = (attempt for each in self._runs() for attempt in each.attempts)
        return sum((block.blocked_ms for each in attempts for block in each.blocks), start=0.0)

    @property
    def abandoned(self) -> bool:
        """Whether a thread outlived its attempt, or that of one of its items."""
        return any(attempt.abandoned for each in self._runs() for attempt in each.attempts)

    def _runs(self) -> Iterable[StepView]:
        return (self,) if self.items is None else self.items.values()

    def duration_ms(self, now_ms: float) -> float | None:
        """Return for how long it has run, waits between attempts included.

        Args:
            now_ms: The present, if it has not ended.

        Returns:
            Milliseconds; ``None`` if it has not started.
        """
        if self.started_ms is None:
            return None
        return max((now_ms if self.ended_ms is None else self.ended_ms) - self.started_ms, 0.0)


def end_of(error: BaseException | None) -> AttemptEnd:
    """Return how an attempt ended that failed with an error."""
    name = error.type_name if isinstance(error, RestoredError) else type(error).__name__
    name = name.rpartition(".")[2]
    if name == StepTimeoutError.__name__:
        return "timed out"
    return "crashed" if name == StepCrashedError.__name__ else "failed"


def _attempts_of(result: StepResult, step_ended_ms: float | None) -> list[AttemptView]:
    """Return the attempts of a result, whose step has ended or still runs."""
    views: list[AttemptView] = []
    for attempt in result.history:
        if views:
            before = views[-1]
            before.ended_ms = min(before.ended_ms or 0.0, attempt.started_ms)
            if before.end != "crashed":
                wait_ms = attempt.started_ms - attempt.queued_ms - before.ended_ms
                before.retry_in_ms = max(wait_ms, 0.0)
        view = AttemptView(attempt.number, attempt.started_ms, attempt.queued_ms)
        view.ended_ms = attempt.started_ms + attempt.duration_ms
        view.error, view.end = attempt.error, end_of(attempt.error)
        if view.end == "crashed" and getattr(attempt.error, "attempt", view.number) != view.number:
            view.end = "failed"  # cancelled, with the error of the attempt before
        views.append(view)
    if step_ended_ms is None:
        if result.started_ms is not None and result.attempts > len(views):
            # The attempt that runs is not in the history, which does not say when it started.
            started_ms = max([result.started_ms, *(view.ended_ms or 0.0 for view in views)])
            views.append(AttemptView(result.attempts, started_ms))
        elif views:
            views[-1].retry_in_ms = 0.0
    elif views:
        _end_with_step(views[-1], result, step_ended_ms)
    return views


def _end_with_step(latest: AttemptView, result: StepResult, step_ended_ms: float) -> None:
    """Let the latest attempt end as its step did, unless that ended while it waited for another."""
    if latest.end != "crashed" and step_ended_ms - (latest.ended_ms or 0.0) > _ROUNDING_MS:
        latest.retry_in_ms = 0.0
        return
    if result.status is StepStatus.SUCCESS:
        latest.end = "succeeded"
    elif result.status is StepStatus.CANCELLED and latest.end == "failed":
        latest.end = "cancelled"
    if latest.end != "crashed":
        latest.ended_ms, latest.error = step_ended_ms, result.error
