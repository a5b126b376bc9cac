"""A limit that steps share: how many may run at once, and how many may start in a second.

Nothing here waits or reads a clock: who asks for a slot gives a callable that is called when it
is its turn, and says what time it is. So one pool serves any number of runs, event loops and
threads at once.

When a step is tried again, and after how long.
"""

from __future__ import annotations

import math
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, TypeAlias
from weakref import ref

from asyncflow._core.arguments import check_count, check_number, is_async, reject_awaitable
from asyncflow._core.errors import ResultRefusedError
from asyncflow._core.record import record

__all__ = [
    "NO_BACKOFF",
    "Pool",
    "PoolTicket",
    "Retry",
    "RetryOn",
]


class Pool:
    """At most ``size`` attempts of the steps that share it run at the same time.

    Share the object: ``WorkflowStep(..., pool=openai)``, in one pipeline or in many. It holds
    across all concurrent runs of the process, whatever event loop or thread they run in, first
    come, first served. A step holds its slot while an attempt runs, not between two attempts,
    and waiting for it is no part of the step's time; see `StepResult.queued_ms`.

    A step that runs another pipeline must not share a pool with it: it would wait for itself.

    Args:
        size: How many slots there are, at least 1.
        per_second: How many attempts may start in a second, above 0; a fraction is fine, and
            ``None`` (the default) means no such limit. Starts are spread evenly, ``5`` lets one
            pass every 200 ms: so no second, wherever it is taken to begin, sees a burst.
            An event loop with a virtual clock begins anew.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.
    """

    __slots__ = (
        *("_clock", "_in_use", "_interval_s", "_queue", "_lock", "_starts"),
        *("per_second", "size"),
    )

    def __init__(self, size: int, *, per_second: float | None = None) -> None:
        check_count("a pool's size", size, 1)
        if per_second is not None:
            if isinstance(per_second, bool) or not isinstance(per_second, int | float):
                raise TypeError(
                    f"a pool's per_second must be a number or None, not {type(per_second).__name__}"
                )
            if not 1 / sys.float_info.max < per_second <= sys.float_info.max:
                raise ValueError(
                    f"a pool's per_second must be finite and above 0, not {per_second}"
                )
        self.size = size
        self.per_second: float | None = per_second
        self._interval_s = 0.0 if per_second is None else 1 / per_second
        self._starts = deque[float]()
        """When attempts start or have just started, ascending; what was given back is gone."""
        self._clock: ref[object] | None = None
        """Whose times those are. Weakly, for it may be an event loop."""
        self._in_use = 0
        self._queue: OrderedDict[PoolTicket, Callable[[], object]] = OrderedDict()
        # Slots come back from other threads, and also when the collector ends a coroutine: in
        # any line of this very code, hence one that the same thread may take twice.
        self._lock = threading.RLock()

    @property
    def in_use(self) -> int:
        """How many slots are taken."""
        return self._in_use

    @property
    def waiting(self) -> int:
        """How many attempts stand in line for a slot."""
        return len(self._queue)

    def request_slot(self, call: Callable[[], object]) -> PoolTicket:
        """Take a slot if one is free; else stand in line.

        Args:
            call: Called, in any thread, once the ticket has a slot; not if it has one already
                when this returns. If it raises `RuntimeError` (a closed event loop does), the
                ticket is given back.
        """
        ticket = PoolTicket(self)
        with self._lock:
            if self._in_use < self.size:
                self._in_use += 1
                ticket.has_slot = True
            else:
                self._queue[ticket] = call
        return ticket

    def __repr__(self) -> str:
        rate = "" if self.per_second is None else f", per_second={self.per_second:g}"
        return f"<Pool({self.size}{rate}): {self._in_use} in use, {len(self._queue)} waiting>"


class PoolTicket:
    """A place in the line of a pool, and then a slot of it, until it is given back."""

    __slots__ = ("_is_done", "_pool", "_start", "_starts", "has_slot")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._start = -math.inf  # none is booked
        self._starts = pool._starts
        """Among which it is booked."""
        self._is_done = False
        self.has_slot = False

    def reserve_start(self, now: float, clock: object) -> float:
        """Book the next start that the pool's rate allows, and return the seconds until then.

        Args:
            now: The time, in seconds, of the clock that will tell when they have passed.
            clock: Which clock that is: the times of another one say nothing about its own.
        """
        pool, interval = self._pool, self._pool._interval_s
        if not interval:
            return 0.0
        with pool._lock:
            if pool._clock is None or pool._clock() is not clock:
                pool._clock, pool._starts = ref(clock), deque()
            starts = pool._starts
            while starts and starts[0] + interval <= now:
                starts.popleft()
            # After all others that were booked, so that nobody overtakes.
            self._start = max(now, starts[-1] + interval) if starts else now
            starts.append(self._start)
            self._starts = starts
        return self._start - now

    def release(self, *, unused: bool = False) -> None:
        """Leave the line, or pass the slot on to whoever is next in it. Once is enough.

        Args:
            unused: Whether nothing was started, so that the booked start can be given back too.
        """
        pool = self._pool
        with pool._lock:
            if self._is_done:
                return
            self._is_done = True
            if unused and self._start in self._starts:
                self._starts.remove(self._start)
            if not self.has_slot:
                del pool._queue[self]
                return
            self.has_slot = False
            while pool._queue:
                ticket, call = pool._queue.popitem(last=False)
                ticket.has_slot = True
                try:
                    call()
                except RuntimeError:  # its event loop is gone, and it with it
                    ticket._is_done, ticket.has_slot = True, False
                    continue
                return
            pool._in_use -= 1


RetryOn: TypeAlias = (
    type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool | float]
)


@record(frozen=True, kw_only=True)
class Retry:
    """How long a step waits before its next attempt, and after which failures there is one.

    The wait after the n-th attempt is ``base_ms * factor ** (n - 1)``, at most ``max_ms``. With
    jitter it is a random part of that, from nothing to all of it ("full jitter": M. Brooker,
    "Exponential Backoff And Jitter", AWS 2015), so that clients which failed together don't come
    back together. How many attempts there are in all is the step's ``max_retries``.

    Attributes:
        base_ms: The wait after the first attempt, in milliseconds; finite and not below 0.
        factor: What each further failure multiplies it with; finite and at least 1.
        max_ms: The longest wait, in milliseconds; not below ``base_ms``.
        jitter: Whether the wait is a random part of this.
        on: After which failures there is another attempt: an exception type, a tuple of them, or
            a callable that is given the exception and returns ``False`` (no), ``True`` (after
            the wait above) or a number of milliseconds (after exactly this: what a server asked
            for in its Retry-After). If the callable raises, the step fails with that.
        until: Called with what an attempt returned; if the answer is false, the attempt has
            failed with `ResultRefusedError` and is followed by another, whatever ``on`` says.
        random: Returns a random number from 0 up to 1, for the jitter; `random.random` unless
            given. ``random.Random(7).random`` makes the waits the same in every run.

    Raises:
        TypeError: An attribute has the wrong type.
        ValueError: A number is out of its range.
    """

    base_ms: float = 100
    factor: float = 2
    max_ms: float = 30_000
    jitter: bool = True
    on: RetryOn = Exception
    until: Callable[[Any], object] | None = None
    random: Callable[[], float] | None = None

    def __post_init__(self) -> None:
        check_number("Retry: base_ms", self.base_ms, 0)
        check_number("Retry: factor", self.factor, 1)
        check_number("Retry: max_ms", self.max_ms, self.base_ms)
        if not isinstance(self.jitter, bool):
            raise TypeError(f"Retry: jitter must be True or False, not {self.jitter!r}")
        for kind in self.on if isinstance(self.on, tuple) else (self.on,):
            if isinstance(kind, type) and not issubclass(kind, Exception):
                raise TypeError(f"Retry: on must name subclasses of Exception, not {kind!r}")
            if not isinstance(kind, type) and (kind is not self.on or not callable(kind)):
                raise TypeError(
                    "Retry: on must be an exception type, a tuple of them or a callable, "
                    f"not {self.on!r}"
                )
        for name in ("until", "random"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"Retry: {name} must be callable, not {type(value).__name__}")
        for name in ("on", "until", "random"):
            if is_async(getattr(self, name)):
                raise TypeError(
                    f"Retry: {name} must be a plain function; what has to be awaited belongs "
                    "into the action"
                )

    def delay_ms(self, attempt: int, error: Exception, random: Callable[[], float]) -> float | None:
        """Return how long to wait after this failure, or ``None`` if nothing shall follow it.

        Args:
            attempt: Which attempt has failed, counted from 1.
            error: What it failed with.
            random: Used for the jitter if the policy has no random source of its own.
        """
        if self.on is not Exception and not isinstance(error, ResultRefusedError):
            verdict = self._verdict(error)
            if verdict is False:
                return None
            if verdict is not True:
                return float(verdict)
        if not self.base_ms:
            return 0.0
        try:
            high = min(self.base_ms * self.factor ** (attempt - 1), self.max_ms)
        except OverflowError:
            high = self.max_ms
        return float(high * (self.random or random)() if self.jitter else high)

    def _verdict(self, error: Exception) -> bool | float:
        if isinstance(self.on, type | tuple):
            return isinstance(error, self.on)
        verdict = reject_awaitable("Retry: on", self.on(error))
        if isinstance(verdict, bool):
            return verdict
        if isinstance(verdict, int | float) and 0 <= verdict <= sys.float_info.max:
            return verdict
        raise TypeError(
            f"Retry: on returned {verdict!r}; it must return True, False or a number of "
            "milliseconds, not below 0"
        )


NO_BACKOFF = Retry(base_ms=0, jitter=False)
"""The next attempt starts in the next turn of the event loop."""
