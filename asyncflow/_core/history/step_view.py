"""What is known of one step, or of one item of a mapped step, at some moment of its run.

The replay of a run (`StoredRun`) changes these records event by event, and every display reads
them. Times are milliseconds since the run started; between two segments they stand still.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from asyncflow._core.history.results import (
    UNSETTLED,
    Attempt,
    AttemptEnd,
    SignalWait,
    StepResult,
    StepStatus,
    end_of,
    outputs_of,
    retries_among,
    visible_output,
)
from asyncflow._core.record import derived, made_by, record, replace, show, values_by_name

if TYPE_CHECKING:
    from asyncflow.events import SignalReceived

ItemAttemptEnd: TypeAlias = AttemptEnd | Literal["retried"]
"""How an attempt of an item ended, for its item."""

_NO_TALLY: Counter[StepStatus] = Counter()
_NO_ITEMS: dict[int, Any] = {}
"""Neither is ever changed, so that a plain step needs none of its own."""
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
class ActiveTime:
    """The time for which a step, or an item, ran in one segment."""

    segment: int
    started_ms: float
    """When its first attempt there started; for a mapped step, the first one of its items."""
    latest_ms: float
    """When its latest attempt there ended, so far as one has."""
    ended_ms: float | None = None
    """When it ended there, or the segment did; ``None`` while it runs."""


@record(frozen=False)
class AttemptView:
    """One attempt. Its segment and its number identify it."""

    number: int
    """Counted from 1; see `Attempt.number`."""
    started_ms: float
    queued_ms: float = 0.0
    """How long it was queued just before its start: see `Attempt.queued_ms`."""
    ended_ms: float | None = None
    """``None`` while it runs."""
    end: AttemptEnd | None = None
    error: BaseException | None = None
    retry_in_ms: float | None = None
    """How long after its end the next attempt may start; ``None`` if none was to follow."""
    abandoned: bool = False
    """Whether its thread outlived it."""
    blocks: tuple[Block, ...] = ()
    segment: int = 1
    """The segment in which it ran, counted from 1."""
    engine: str = ""
    """The engine to which it was submitted; empty for the process of the run."""
    worker: str = ""
    """The worker that has begun with it."""
    began: bool = True
    """Whether its action was called, as far as is known; not while, or if, it only waited for a
    worker of an engine."""

    @property
    def is_queued(self) -> bool:
        """Whether it waits for a worker of an engine."""
        return not self.began and self.ended_ms is None

    def begin(self, at_ms: float) -> None:
        """Let it start only now: until then it was queued."""
        self.queued_ms += at_ms - self.started_ms
        self.started_ms = at_ms

    def to_attempt(self, item: int | None = None) -> Attempt:
        """Return the attempt, which has ended, as a result has it."""
        return Attempt(
            self.number,
            self.started_ms,
            (self.ended_ms or 0.0) - self.started_ms,
            self.error,
            self.queued_ms,
            self.segment,
            self.end == "cancelled",
            item,
            self.engine,
            self.worker,
            self.retry_in_ms,
        )


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
    attempts: list[AttemptView] = derived()
    """Those of all segments, in order; of a mapped step, its `items` have them."""
    started_ms: float | None = None
    """When its first attempt started, in whatever segment that was."""
    ended_ms: float | None = None
    output: Any = None
    error: BaseException | None = None
    reason: str | None = None
    """Why it was skipped or cancelled."""
    by_condition: bool = False
    """Whether the pipeline asked for it to be skipped."""
    reused: bool = False
    """Whether its result was restored from the journal, so that it did not run again."""
    rerun_reason: str | None = None
    """Why a resumed run runs it again, in words that complete "it runs again because …"."""
    items: dict[int, StepView] | None = None
    """The items that have begun, by number; ``None`` if it is not mapped, or has not begun."""
    item_count: int | None = None
    """How many items there are, if that is known before the last one has begun."""
    tally: Counter[StepStatus] = made_by(default_factory=lambda: _NO_TALLY)
    """How many items have which status."""
    segment: int = 1
    """The segment of the run that this is about, counted from 1."""
    fresh_from: int = 0
    """How many of its attempts came before it began anew: those don't count against
    ``max_retries``."""
    active: list[ActiveTime] = derived()
    """When it ran, by segment."""
    brief_queued_ms: float | None = None
    """How long its only attempt was queued, if that is brief: the other fields say the rest."""
    former_items: dict[int, StepView] = made_by(default_factory=lambda: _NO_ITEMS)
    """The items of earlier segments that this one does not have, or not yet, by number."""
    origin: str = ""
    """The run that its result was reused from, if it comes from another one."""
    origin_attempts: int = 0
    """How many attempts it had there, those of its items left out."""
    origin_ms: float = 0.0
    """How long it took there."""
    item: int | None = None
    """Which item of its step it is; ``None`` for a step."""
    keeps_outputs: bool = True
    """Whether its result has what each item returned."""
    left_out: int = 0
    """How many items have succeeded and are not among `items`."""
    left_out_attempts: int = 0
    """How many attempts these had in all."""
    left_out_queued_ms: float = 0.0
    """How long these were queued in all."""
    waiting_since: float | None = None
    """When its turn came, in seconds since the epoch, if it waits for a signal."""
    waiting_until: float | None = None
    """When its deadline expires, in seconds since the epoch, if it waits and has one."""
    description: str = ""
    """What it asks, if it waits for a signal or has done so."""
    otherwise: str = ""
    """What follows when its deadline expires: see `StepWaiting`."""
    refused: str = ""
    """Why its latest answer does not count, if it waits on after that: see `StepWaiting`."""
    answer: SignalReceived | None = None
    """What its output was sent with, if it is that of a signal."""
    wait: SignalWait | None = None
    """How long it waits, or waited, for its signal."""

    def __repr__(self) -> str:
        return show(self, values_by_name(self) | {"output": visible_output(self)})

    if not TYPE_CHECKING:  # it would let any attribute pass

        def __getattr__(self, name: str) -> Any:
            # Python asks here for a slot without a value.
            if name not in ("attempts", "active"):
                raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
            queued_ms, self.brief_queued_ms = self.brief_queued_ms, None
            if queued_ms is None:
                setattr(self, name, [])
            else:
                self.attempts = [self._brief_attempt(queued_ms)]
                latest_ms = self.started_ms if self.ended_ms is None else self.ended_ms
                self.active = [ActiveTime(self.segment, self.started_ms, latest_ms, self.ended_ms)]
            return getattr(self, name)

    def begin_brief(self, at_ms: float, queued_ms: float) -> None:
        """Note that its first attempt has started, in this process."""
        self.started_ms, self.brief_queued_ms = at_ms, queued_ms

    @property
    def is_brief(self) -> bool:
        """Whether its only attempt is brief: it has succeeded, or runs."""
        return self.brief_queued_ms is not None

    @property
    def is_brief_now(self) -> bool:
        """Whether its only attempt is brief and runs."""
        return self.brief_queued_ms is not None and self.ended_ms is None

    def _brief_attempt(self, queued_ms: float) -> AttemptView:
        assert self.started_ms is not None
        end: AttemptEnd | None = None if self.ended_ms is None else "succeeded"
        return AttemptView(1, self.started_ms, queued_ms, self.ended_ms, end, segment=self.segment)

    def to_result(self, now_ms: float, *, keeps_output: bool = True) -> StepResult:
        """Return the result of the step, or what can be said of it before it has one.

        ``now_ms`` is the present, if the step has not ended. ``keeps_output`` is about an item.
        """
        items, left_out = None, self.left_out
        if self.items is not None:
            of_items = map(self.items.__getitem__, sorted(self.items))
            shown = [
                item
                for item in of_items
                if self.keeps_outputs
                or item.status is not StepStatus.SUCCESS
                or item.error is not None
            ]
            keeps = self.keeps_outputs
            items = tuple([item.to_result(now_ms, keeps_output=keeps) for item in shown])
            left_out += len(self.items) - len(shown)
        attempts, duration_ms = self.attempt_count, self.duration_ms(now_ms) or 0.0
        return StepResult(
            self.name,
            self.status,
            attempts,
            duration_ms,
            self.output if keeps_output else None,
            self.error,
            self.reason,
            self.started_ms,
            None if attempts == 1 and self._says_its_attempt(duration_ms) else self._recorded(),
            self.depends_on,
            self.queued_ms,
            self.blocked_ms,
            self.abandoned,
            self.by_condition,
            items,
            self.reused,
            self.rerun_reason,
            self.secret and self.status is StepStatus.SUCCESS,
            self.origin,
            self.engine,
            self.worker,
            self.item,
            left_out,
            self.waiting_since,
            self.waiting_until,
            self.max_retries,
            self.wait,
        )

    def _says_its_attempt(self, duration_ms: float) -> bool:
        """Whether its result says all of its only attempt: see `StepResult.recorded`."""
        if self.brief_queued_ms is not None and self.ended_ms is not None:
            return self.segment == 1
        if not self.attempts:
            return False
        only = self.attempts[0]
        is_cancelled = self.status is StepStatus.CANCELLED and end_of(self.error) != "timed out"
        return (
            only.ended_ms is not None
            and only.started_ms == self.started_ms
            and only.ended_ms - only.started_ms == duration_ms
            and only.error is self.error
            and only.retry_in_ms is None
            and only.number == only.segment == 1
            and (only.end == "cancelled") is is_cancelled
        )

    def _recorded(self) -> tuple[Attempt, ...]:
        """Return its attempts that have ended, and those of items that it does not have now."""
        history = [each.to_attempt() for each in self.attempts if each.ended_ms is not None]
        if not self.former_items and len(history) < 2:
            return tuple(history)
        for number, item in self.former_items.items():
            history += [each.to_attempt(number) for each in item.attempts]
        history.sort(key=lambda attempt: (attempt.segment, attempt.started_ms))
        return tuple(history)

    @property
    def ran_before(self) -> bool:
        """Whether it ran before the run was resumed, and has not run since."""
        return bool(self.active) and self.active[-1].segment < self.segment and not self.reused

    @property
    def latest(self) -> AttemptView | None:
        """The latest attempt, if there was one since it began, or began anew."""
        return self.attempts[-1] if len(self.attempts) > self.fresh_from else None

    @property
    def engine(self) -> str:
        """The engine of its latest attempt, in whatever segment that was; see `StepResult`."""
        attempts = self._kept_attempts()
        return attempts[-1].engine if attempts else ""

    @property
    def worker(self) -> str:
        """The worker of its latest attempt, in whatever segment that was."""
        attempts = self._kept_attempts()
        return attempts[-1].worker if attempts else ""

    def _kept_attempts(self) -> Sequence[AttemptView]:
        """Return its own attempts, unless the only one is brief."""
        return self.attempts if self.brief_queued_ms is None else ()

    @property
    def retry_at_ms(self) -> float | None:
        """When its next attempt may start, if it waits for that."""
        latest = self.latest
        if self.status is not StepStatus.RUNNING or latest is None:
            return None
        if latest.ended_ms is None or latest.retry_in_ms is None:
            return None
        return latest.ended_ms + latest.retry_in_ms

    def all_attempts(self) -> Iterable[AttemptView]:
        """Return its attempts in all segments, and those of its items, also of former ones.

        They are for reading only: a brief one is made for the caller.
        """
        if not self.items and not self.former_items:
            return self._own_attempts()
        return [attempt for each in self._runs() for attempt in each._own_attempts()]

    def attempts_of_items(self) -> Iterable[tuple[AttemptView, ItemAttemptEnd | None]]:
        """Return the attempts that `all_attempts` does, each with how it ended for its item.

        One that failed was ``"retried"`` if another followed, or will: its item has not failed.
        """
        for each in self._runs():
            own = each._own_attempts()
            for attempt, following in zip_longest(own, own[1:]):
                follows = following is not None or each.retry_at_ms is not None
                is_retried = follows and attempt.retry_in_ms is not None
                yield attempt, "retried" if is_retried else attempt.end

    def _own_attempts(self) -> list[AttemptView]:
        queued_ms = self.brief_queued_ms
        return self.attempts if queued_ms is None else [self._brief_attempt(queued_ms)]

    @property
    def attempt_count(self) -> int:
        """How many attempts were started, those of its items included."""
        counts = [each.own_attempt_count + each.origin_attempts for each in self._runs()]
        return sum(counts) + self.left_out_attempts

    @property
    def retries(self) -> int:
        """How many attempts of its own followed one that failed, since it began, or began anew."""
        if self.brief_queued_ms is not None:
            return 0
        return retries_among([each.end for each in self.attempts[self.fresh_from :]])

    @property
    def has_items(self) -> bool:
        """Whether items of it have begun, also if they are only counted."""
        return bool(self.items or self.left_out)

    @property
    def own_attempt_count(self) -> int:
        """How many attempts of its own were started in this run."""
        return len(self.attempts) if self.brief_queued_ms is None else 1

    @property
    def queued_ms(self) -> float:
        """How long its attempts were queued in all, those of its items included."""
        waits = [
            sum([one.queued_ms for one in each.attempts])
            if each.brief_queued_ms is None
            else each.brief_queued_ms
            for each in self._runs()
        ]
        return sum(waits, self.left_out_queued_ms)

    @property
    def blocked_ms(self) -> float:
        """How long it blocked the event loop in all, as far as that was noticed."""
        attempts = self._all_kept_attempts()
        return sum([block.blocked_ms for one in attempts for block in one.blocks], 0.0)

    @property
    def abandoned(self) -> bool:
        """Whether a thread outlived its attempt, or that of one of its items."""
        return any(one.abandoned for one in self._all_kept_attempts())

    def _all_kept_attempts(self) -> Sequence[AttemptView]:
        if not self.items and not self.former_items:
            return self._kept_attempts()
        return [one for each in self._runs() for one in each._kept_attempts()]

    def _runs(self) -> Iterable[StepView]:
        if not self.items and not self.former_items:
            return (self,)
        return (self, *self.former_items.values(), *(self.items or {}).values())

    def duration_ms(self, now_ms: float) -> float | None:
        """Return for how long it has run, waits between attempts included: see `StepResult`.

        ``now_ms`` is the present, if it has not ended. The milliseconds in the run that its result
        comes from are included; they are ``None`` if it has not started.
        """
        if self.started_ms is None and not self.origin:
            return None
        if self.brief_queued_ms is not None and self.started_ms is not None:
            ended_ms = now_ms if self.ended_ms is None else self.ended_ms
            return max(ended_ms - self.started_ms, 0.0)
        return self.origin_ms + _total_ms(self.active, now_ms)

    def keep_outputs(self, keeps: bool) -> None:
        """Have the outputs of its items or not, if it is mapped, whichever it was made with."""
        if self.items is None or keeps is self.keeps_outputs:
            return
        self.keeps_outputs = keeps
        if not self.secret:
            items = [self.items[number] for number in sorted(self.items)]
            self.output = outputs_of(items) if keeps else None

    def drop_outputs(self) -> None:
        """Forget what it returned, and what its items did."""
        for each in self._runs():
            each.output = None

    # How the replay tells when the step runs.

    def begin_active(self, at_ms: float) -> None:
        """Note that the step runs in its segment, unless that is known."""
        active = self.active
        if active:
            if active[-1].segment == self.segment:
                return
            # What came after its last attempt was no part of a step that runs again.
            active[-1] = replace(active[-1], ended_ms=active[-1].latest_ms)
        active.append(ActiveTime(self.segment, at_ms, at_ms))

    def delay_start(self, began_ms: float) -> None:
        """Note that the running attempt begins only now, some time after it was submitted.

        A step, and the time for which it runs in a segment, begin with their first attempt.
        """
        before = self.attempts[-2] if len(self.attempts) > 1 else None
        if before is None:
            self.started_ms = began_ms
        if before is None or before.segment != self.segment:
            self.active[-1].started_ms = self.active[-1].latest_ms = began_ms

    def extend_active(self, at_ms: float) -> None:
        """Note that an attempt of the step, or of an item of it, has ended."""
        self.active[-1].latest_ms = at_ms

    def include_active(self, started_ms: float, latest_ms: float) -> None:
        """Note from when to when items ran in its segment that were left out."""
        self.begin_active(started_ms)
        time = self.active[-1]
        time.started_ms = min(time.started_ms, started_ms)
        time.latest_ms = max(time.latest_ms, latest_ms)
        if time.ended_ms is None and self.status not in UNSETTLED:
            time.ended_ms = self.ended_ms

    def end_active(self, at_ms: float) -> None:
        """Note that the step has ended, or its segment."""
        if self.brief_queued_ms is not None and self.ended_ms is not None:
            return
        if self.active and self.active[-1].ended_ms is None:
            self.active[-1].ended_ms = at_ms

    def carry(self, before: StepView) -> None:
        """Continue the history that an earlier segment has of the step, or of the item."""
        if before.started_ms is not None:
            self.brief_queued_ms = None
            self.attempts, self.active = [*before.attempts], [*before.active]
            self.fresh_from = len(self.attempts)
            self.started_ms = before.started_ms
        if before.former_items or before.items:
            self.former_items = {**before.former_items, **(before.items or {})}


def _total_ms(times: Iterable[ActiveTime], now_ms: float | None = None) -> float:
    """Return how long times were in all; the present ends one that has no end."""
    total_ms = 0.0
    for time in times:
        ended_ms = time.ended_ms
        if ended_ms is None:
            ended_ms = time.latest_ms if now_ms is None else now_ms
        total_ms += max(ended_ms - time.started_ms, 0.0)
    return total_ms
