"""How long an attempt may take, and whether another one follows it if it fails."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from asyncflow._errors import (
    ActionNotAwaitableError,
    OutputNotAwaitedError,
    PayloadError,
    RunCancelledError,
    TimeoutKind,
)
from asyncflow._phases import ATTEMPTING
from asyncflow._queue import StartQueue
from asyncflow._units import Units
from asyncflow.events import AttemptStarted

__all__ = ["Limit", "Limits"]

_SLACK_MS = 0.01
"""By how much a limit may seem to end an attempt early: a timer may be early by the resolution of
the clock, and sums of times are rounded."""


_FINAL = (ActionNotAwaitableError, OutputNotAwaitedError, PayloadError, RunCancelledError)
"""After these no attempt follows: it would have the same effect once more, or go on with a run
that somebody has cancelled."""


def _is_final(error: BaseException) -> bool:
    """Whether no attempt follows an error, be it alone or in a group, as of a TaskGroup."""
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
    """What the step declares."""
    ends_ms: float
    """When it is over."""


class Limits:
    """The limits of the attempts of one run, and its retry policies.

    Attributes:
        deadline_ms: The run's deadline, if it has one.
        began_ms: When the run began to count: above 0 if it was resumed.
    """

    def __init__(
        self,
        units: Units,
        queue: StartQueue,
        deadline_ms: float | None,
        random: Callable[[], float],
        began_ms: float = 0.0,
    ) -> None:
        self.deadline_ms = deadline_ms
        self.began_ms = began_ms
        self._units = units
        self._queue = queue
        self._random = random
        self._counts_from: dict[int, float] = {}
        """When a unit with a deadline began, plus what it has waited in line since."""

    def start(self, unit: int, event: AttemptStarted) -> None:
        """An attempt has started."""
        if self._units.steps[unit].deadline_ms is not None:
            if unit in self._counts_from:
                self._counts_from[unit] += event.queued_ms
            else:
                self._counts_from[unit] = event.at_ms

    def of(self, unit: int, at_ms: float) -> Limit | None:
        """Return the tighter of a unit's own two limits, for an attempt started at that time."""
        step = self._units.steps[unit]
        limit: Limit | None = None
        if step.timeout_ms is not None:
            limit = Limit("attempt", step.timeout_ms, at_ms + step.timeout_ms)
        if step.deadline_ms is not None:
            ends_ms = self._counts_from.get(unit, at_ms) + step.deadline_ms
            if self._units.phases[unit] != ATTEMPTING and unit in self._counts_from:
                ends_ms += self._queue.queued_ms(unit, at_ms)
            if limit is None or ends_ms < limit.ends_ms:
                limit = Limit("step", step.deadline_ms, ends_ms)
        return limit

    def step_ends_ms(self, unit: int) -> float:
        """When the deadline of a unit that has started passes, if it has one."""
        deadline_ms = self._units.steps[unit].deadline_ms
        return math.inf if deadline_ms is None else self._counts_from[unit] + deadline_ms

    def after_failure(self, unit: int, error: Exception, at_ms: float) -> float | None:
        """Decide what follows the failure of the attempt that is running.

        It raises what the step's retry policy raises.

        Returns:
            How many milliseconds to wait before the next attempt, or ``None`` if the unit has
            failed for good.
        """
        if _is_final(error):
            return None
        latest, step = self._units.latest[unit], self._units.steps[unit]
        assert latest is not None
        carried = self._units.carried(unit)
        attempts = latest.attempt - (0 if carried is None else carried.crashes)
        if attempts >= step.max_retries:
            return None
        ends_ms, whose = self.step_ends_ms(unit), "step"
        if self.deadline_ms is not None and step.run_if == "success":
            ends_ms, whose = min((ends_ms, whose), (self.began_ms + self.deadline_ms, "run"))
        random = self._random
        del self  # what the policy raises keeps this frame, which leads to the results
        delay_ms = step.retry.delay_ms(attempts, error, random)
        if delay_ms is None or at_ms + delay_ms < ends_ms - _SLACK_MS:
            return delay_ms
        with suppress(Exception):  # some refuse a note: frozen dataclasses, for one
            error.add_note(
                f"no other attempt follows: its wait of {delay_ms:g} ms would pass the deadline of "
                f"the {whose}"
            )
        return None
