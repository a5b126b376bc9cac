"""How long attempts may take, and whether and when another one follows a failure."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from asyncflow._core.errors import (
    ActionNotAwaitableError,
    NotSendableError,
    OutputLostError,
    OutputNotAwaitedError,
    PayloadError,
    RunCancelledError,
    SharedIteratorError,
    TimeoutKind,
)
from asyncflow._core.running.scheduler import AdmissionQueue
from asyncflow._core.running.step_runs import Phase, StepRuns
from asyncflow.events import AttemptStarted

ROUNDING_MS = 0.01
"""How early a limit may seem to end an attempt: a timer may be early by the resolution of the
clock, and sums of times are rounded."""


_FINAL = (
    *(ActionNotAwaitableError, NotSendableError, OutputLostError, OutputNotAwaitedError),
    *(PayloadError, RunCancelledError, SharedIteratorError),
)
"""No attempt follows these: it would fail in the same way, or continue a run that was cancelled."""


def _is_final(error: BaseException) -> bool:
    """Whether no attempt follows an error, alone or in a group, as a TaskGroup raises it."""
    if not isinstance(error, BaseExceptionGroup):
        return isinstance(error, _FINAL)
    found: list[BaseException] = [error]
    while found:
        one = found.pop()
        if isinstance(one, BaseExceptionGroup):
            found += one.exceptions
        elif isinstance(one, _FINAL):
            return True
    return False


class Limit(NamedTuple):
    """A limit of an attempt."""

    kind: TimeoutKind
    ms: float
    """As the step declares it."""
    ends_ms: float
    """When it passes, in milliseconds since the start of the run."""


class Deadlines:
    """The limits of the attempts of one run, and its retry policies.

    ``began_ms`` is when this part of the run began: above 0 if it was resumed.
    """

    def __init__(
        self,
        step_runs: StepRuns,
        queue: AdmissionQueue,
        deadline_ms: float | None,
        random: Callable[[], float],
        began_ms: float = 0.0,
    ) -> None:
        self.deadline_ms = deadline_ms
        self.began_ms = began_ms
        self._step_runs = step_runs
        self._queue = queue
        self._random = random
        self._counts_from: dict[int, float] = {}
        """When a node with a deadline began, plus the time that it was queued since."""
        self._submitted_ms: dict[int, float] = {}
        """When each of these was submitted to an engine that has not begun with it."""
        self._limits: dict[int, Limit | None] = {}
        """The limit of the latest attempt of each node that has taken the full lane; ``None`` for
        none, or while it waits for a worker of an engine."""

    def start(self, node: int, event: AttemptStarted) -> None:
        """Note that an attempt has started."""
        if self._step_runs.steps[node].deadline_ms is not None:
            if node in self._counts_from:
                self._counts_from[node] += event.queued_ms
            else:
                self._counts_from[node] = event.at_ms
            if event.engine:
                self._submitted_ms[node] = event.at_ms

    def submit(self, node: int) -> None:
        """Note that an attempt was submitted to an engine: its limit does not count yet."""
        self._limits[node] = None

    def begin(self, node: int, waited_ms: float) -> None:
        """Note that such an attempt begins or ends, so many milliseconds after it was submitted."""
        if self._step_runs.steps[node].deadline_ms is not None:
            self._submitted_ms.pop(node, None)
            self._counts_from[node] += waited_ms

    def begin_limit(self, node: int, at_ms: float) -> Limit | None:
        """Return the limit of an attempt whose timer starts now.

        The attempt itself starts earlier if its start is stored first, and a turn of the loop later
        if it has a task of its own.
        """
        limit = self._limits[node] = self.of(node, at_ms)
        return limit

    def forget(self, node: int) -> None:
        """Forget a node that has ended, and whose number another one will have."""
        self._counts_from.pop(node, None)
        self._limits.pop(node, None)

    def latest_limit(self, node: int) -> Limit | None:
        """Return what `begin_limit` has returned last for a node."""
        return self._limits[node]

    def of(self, node: int, at_ms: float) -> Limit | None:
        """Return the tighter of a node's two limits, for an attempt started at the given time."""
        step = self._step_runs.steps[node]
        limit: Limit | None = None
        if step.timeout_ms is not None:
            limit = Limit("attempt", step.timeout_ms, at_ms + step.timeout_ms)
        if step.deadline_ms is not None:
            ends_ms = self._counts_from.get(node, at_ms) + step.deadline_ms
            if self._step_runs.phases[node] != Phase.ATTEMPTING and node in self._counts_from:
                ends_ms += self._queue.queued_ms(node, at_ms)
            if limit is None or ends_ms < limit.ends_ms:
                limit = Limit("step", step.deadline_ms, ends_ms)
        return limit

    def passed(self, node: int, at_ms: float, before_ms: float) -> Limit | None:
        """Return the tighter limit of a running attempt, if it passes before the given time."""
        step = self._step_runs.steps[node]
        if node not in self._limits and (
            step.timeout_ms is None or at_ms + step.timeout_ms >= before_ms
        ):
            return None  # most steps need no object to tell
        limit = self.of_running(node, at_ms)
        return limit if limit is not None and limit.ends_ms < before_ms else None

    def of_running(self, node: int, at_ms: float) -> Limit | None:
        """Return the tighter limit of a running attempt, which has started at the given time."""
        return self._limits[node] if node in self._limits else self.of(node, at_ms)

    def step_ends_ms(self, node: int) -> float:
        """When the deadline of a node that has started passes; infinity if it has none."""
        deadline_ms = self._step_runs.steps[node].deadline_ms
        return math.inf if deadline_ms is None else self._counts_from[node] + deadline_ms

    def after_failure(self, node: int, error: Exception, at_ms: float) -> AfterFailure:
        """Decide what follows the failure of the attempt that is running.

        Raise what the step's retry policy raises.
        """
        if _is_final(error):
            return AfterFailure(None)
        attempts, step = self._step_runs.next_attempt(node) - 1, self._step_runs.steps[node]
        pending_attempts = self._step_runs.pending_attempts(node)
        if pending_attempts is not None:
            attempts -= pending_attempts.unfinished
        is_last = attempts >= step.max_retries
        if is_last and not step.may_pause:
            return AfterFailure(None)
        answer = step.retry.answer(error)
        named_ms = None if isinstance(answer, bool) else answer
        if is_last or answer is False:
            return AfterFailure(None, named_ms)
        delay_ms = step.retry.backoff_ms(attempts, self._random) if named_ms is None else named_ms
        queued_ms = at_ms - self._submitted_ms.get(node, at_ms)
        ends_ms, whose = self.step_ends_ms(node) + queued_ms, "step"
        if self.deadline_ms is not None and not step.is_cleanup:
            ends_ms, whose = min((ends_ms, whose), (self.began_ms + self.deadline_ms, "run"))
        if at_ms + delay_ms >= ends_ms - ROUNDING_MS:
            note = f"not retried: the {delay_ms:g} ms backoff would exceed the {whose}'s deadline"
        elif step.pool is not None and named_ms is None and not step.pool._retries.spend():
            note = f"not retried: the retry budget of {step.pool.title} is spent"
        else:
            return AfterFailure(delay_ms, named_ms)
        with suppress(Exception):  # some refuse a note: frozen dataclasses, for one
            error.add_note(note)
        return AfterFailure(None, named_ms)


class AfterFailure(NamedTuple):
    """What follows a failed attempt."""

    delay_ms: float | None
    """How long to wait before the next attempt; ``None`` if the node has failed for good."""
    named_ms: float | None = None
    """In how many milliseconds the service wants to be asked again, if it has named a time."""
