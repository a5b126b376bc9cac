"""The policy objects that steps take: `Retry`, and the `Pool` that steps share.

Rules:

1. A pool neither waits nor reads a clock: the caller passes the time, and a callable that the pool
   calls when a slot is free. So one pool serves any number of runs, event loops and threads at
   once.
2. A pool is first come, first served, also in the starts that its rate allows. Each run asks it for
   at most as many slots as it has, so runs take turns.
3. A retry policy decides from one failure alone whether another attempt follows, and when.
"""

from __future__ import annotations

import math
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, TypeAlias
from weakref import ref

from asyncflow._core.argument_names import suggests_arguments
from asyncflow._core.arguments import check_count, check_number, is_async, reject_awaitable
from asyncflow._core.errors import ResultRefusedError, safe_text
from asyncflow._core.record import record


@suggests_arguments
class Pool:
    """A limit that steps share: at most ``size`` of their attempts run at the same time.

    Share the object: ``WorkflowStep(..., pool=openai)``, in one pipeline or in many. It limits all
    concurrent runs of the process together, in any event loop or thread. Within a run it is first
    come, first served. Runs take turns: at most ``size`` attempts of each hold a slot or wait in
    the pool's queue, so that one with many waiting steps doesn't starve another. An attempt holds
    its slot while it runs; between two attempts, a step holds none. Waiting for a slot is no part
    of the step's time; see `StepResult.queued_ms`.

    A step that runs another pipeline must not share a pool with it: it would wait for itself.

    Args:
        size: How many slots there are, at least 1.
        per_second: How many attempts may start in a second, above 0; a fraction is fine, and
            ``None`` (the default) means no such limit. Starts are spread evenly: with ``5`` there
            is one every 200 ms, so that no second, wherever it begins, sees a burst. An event loop
            with a virtual clock has starts of its own.

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
                    f"a pool's per_second must be finite and above 0, "
                    f"not {safe_text(str, per_second)}"
                )
        self.size = size
        self.per_second: float | None = per_second
        self._interval_s = 0.0 if per_second is None else 1 / per_second
        self._starts = deque[float]()
        """When attempts start or have just started, ascending."""
        self._clock: ref[object] | None = None
        """The clock of those times. Weakly, since it may be an event loop."""
        self._in_use = 0
        self._queue: OrderedDict[PoolTicket, Callable[[], object]] = OrderedDict()
        # Other threads release slots, and so does the garbage collector when it ends a coroutine:
        # at any line of this code, so that the same thread may take the lock twice.
        self._lock = threading.RLock()

    @property
    def in_use(self) -> int:
        """How many slots are taken."""
        return self._in_use

    @property
    def waiting(self) -> int:
        """How many attempts wait in its queue: at most ``size`` of each run."""
        return len(self._queue)

    def _take_slot(self) -> PoolTicket | None:
        """Take a slot if one is free and the pool has no rate, so that nothing has to wait."""
        with self._lock:
            if self._interval_s or self._in_use >= self.size:
                return None
            self._in_use += 1
        ticket = PoolTicket(self)
        ticket.has_slot = True
        return ticket

    def _request_slot(self, call: Callable[[], object]) -> PoolTicket:
        """Take a slot if one is free, or else join the queue.

        ``call`` is called, in any thread, when the ticket gets a slot later; not if it has one when
        this returns. If it raises `RuntimeError`, as a closed event loop does, the ticket is
        released.
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
    """A place in the queue of a pool, and then a slot of it, until it is released."""

    __slots__ = ("_is_done", "_pool", "_start", "_starts", "has_slot")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._start = -math.inf  # none is reserved
        self._starts = pool._starts
        """Where the start is reserved."""
        self._is_done = False
        self.has_slot = False

    def reserve_start(self, now: float, clock: object) -> float:
        """Reserve the next start that the pool's rate allows, and return the seconds until then.

        ``now`` is the time of the clock, in seconds. ``clock`` identifies that: a pool forgets the
        starts of another one.
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
            # After all others that are reserved, so that no attempt overtakes another.
            self._start = max(now, starts[-1] + interval) if starts else now
            starts.append(self._start)
            self._starts = starts
        return self._start - now

    def release(self, *, unused: bool = False) -> None:
        """Leave the queue, or pass the slot on to the next in it. Only the first call counts.

        ``unused`` says that no attempt started, so that the reserved start is free again too.
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
                except RuntimeError:  # its event loop is closed
                    ticket._is_done, ticket.has_slot = True, False
                    continue
                return
            pool._in_use -= 1


RetryOn: TypeAlias = (
    type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool | float]
)


@suggests_arguments
@record(frozen=True, kw_only=True)
class Retry:
    """After which failures a step has another attempt, and the backoff before it.

    The backoff after the n-th attempt is ``base_ms * factor ** (n - 1)``, at most ``max_ms``. With
    jitter it is a random part of that, from nothing to all of it ("full jitter": M. Brooker,
    "Exponential Backoff And Jitter", AWS 2015), so that clients that failed together don't return
    together. The step's ``max_retries`` is the number of attempts in all.

    Attributes:
        base_ms: The backoff after the first attempt, in milliseconds; finite and at least 0; 100 by
            default.
        factor: What each further failure multiplies it by; finite and at least 1; 2 by default.
        max_ms: The longest backoff, in milliseconds; at least ``base_ms``; 30,000 by default.
        jitter: Whether the backoff is a random part of this; true by default.
        on: After which failures there is another attempt: an exception type, a tuple of them, or
            a callable that receives the exception and returns ``False`` (no), ``True`` (after the
            backoff above) or a number of milliseconds (after exactly this: the Retry-After of a
            server). If the callable raises, the step fails with that.
        until: Called with what an attempt returned. If it returns a false value, the attempt fails
            with `ResultRefusedError`, and another follows, whatever ``on`` says.
        random: Returns a random number from 0 up to 1, for the jitter; `random.random` by default.
            With ``random.Random(7).random`` a new program draws the same backoffs again.

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
            shown = safe_text(repr, self.jitter)
            raise TypeError(f"Retry: jitter must be True or False, not {shown}")
        for kind in self.on if isinstance(self.on, tuple) else (self.on,):
            if isinstance(kind, type) and not issubclass(kind, Exception):
                raise TypeError(f"Retry: on must name subclasses of Exception, not {kind!r}")
            if not isinstance(kind, type) and (kind is not self.on or not callable(kind)):
                raise TypeError(
                    "Retry: on must be an exception type, a tuple of them or a callable, "
                    f"not {safe_text(repr, self.on)}"
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
        """Return the backoff after this failure, or ``None`` if no other attempt may follow.

        Args:
            attempt: The attempt that failed, counted from 1.
            error: What it failed with.
            random: The source of the jitter, if the policy has none of its own.
        """
        if self.on is not Exception and not isinstance(error, ResultRefusedError):
            answer = self._retries_on(error)
            if answer is False:
                return None
            if answer is not True:
                return float(answer)
        if not self.base_ms:
            return 0.0
        try:
            high = min(self.base_ms * self.factor ** (attempt - 1), self.max_ms)
        except OverflowError:
            high = self.max_ms
        return float(high * (self.random or random)() if self.jitter else high)

    def _retries_on(self, error: Exception) -> bool | float:
        if isinstance(self.on, type | tuple):
            return isinstance(error, self.on)
        answer = reject_awaitable("Retry: on", self.on(error))
        if isinstance(answer, bool):
            return answer
        if isinstance(answer, int | float) and 0 <= answer <= sys.float_info.max:
            return answer
        raise TypeError(
            f"Retry: on returned {answer!r}; it must return True, False or a number of "
            "milliseconds, not below 0"
        )


NO_BACKOFF = Retry(base_ms=0, jitter=False)
"""The policy of a step that says nothing: the next attempt starts in the next turn of the loop."""
